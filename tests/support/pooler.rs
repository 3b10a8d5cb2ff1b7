//! A qcp in front of the private PostgreSQL: started for one test, stopped at its end.

use std::fs;
use std::net::TcpStream;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::postgres::postgres;
use super::programs::{Finished, Program};
use super::{Address, free_port, wait_until};

/// Small enough to start at once, large enough for every test that does not name its own.
const ARENA: &str = "arena: {total_size: 32 MB}\n";

pub struct Qcp {
    child: Child,
    folder: Arc<Folder>,
    port: u16,
    setup: Setup,
    log: PathBuf,
}

/// Removed when the last pooler that uses it is gone.
struct Folder(PathBuf);

impl std::ops::Deref for Folder {
    type Target = PathBuf;

    fn deref(&self) -> &PathBuf {
        &self.0
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// How a pooler that is to be started differs from the usual.
pub struct Setup {
    /// Keys of the configuration beside those that `Qcp` writes itself.
    yaml: String,
    cores: usize,
    /// Overrides the address of the server.
    server: String,
    /// What its /etc/hosts says, if that is its own.
    hosts: Option<String>,
}

impl Setup {
    /// The given keys of the configuration, one core, the server by TCP. In the keys `$port` stands for the port that
    /// the pooler was given, `$folder` for its own temporary folder.
    pub fn new(yaml: &str) -> Setup {
        let server = postgres().tcp();
        Setup { yaml: yaml.to_owned(), cores: 1, server: format!("{}:{}", server.host, server.port), hosts: None }
    }

    pub fn cores(mut self, cores: usize) -> Setup {
        self.cores = cores;
        self
    }

    /// As `servers` would name it.
    pub fn server(mut self, address: &str) -> Setup {
        self.server = address.to_owned();
        self
    }

    /// With an /etc/hosts of its own, which [`Qcp::set_hosts`] changes.
    pub fn hosts(mut self, text: &str) -> Setup {
        self.hosts = Some(text.to_owned());
        self
    }

    /// Starts it and waits until it accepts, by TCP; by Unix it does before.
    pub fn start(self) -> Qcp {
        let mut qcp = Qcp::spawn(self);
        let deadline = Instant::now() + Duration::from_secs(20);
        while TcpStream::connect(("127.0.0.1", qcp.port)).is_err() {
            let ended = qcp.child.try_wait().expect("the child is ours");
            assert!(ended.is_none(), "qcp ended at its start: {ended:?}\n{}", qcp.log());
            assert!(Instant::now() < deadline, "qcp does not accept\n{}", qcp.log());
            std::thread::sleep(Duration::from_millis(10));
        }
        qcp
    }

    /// Runs `qcp --check` with it.
    pub fn check(self) -> Finished {
        let folder = temporary_folder();
        let config = write_configuration(&self, &folder, free_port());
        let finished = Program::new(env!("CARGO_BIN_EXE_qcp")).arg("--check").arg("--config").arg(&config).finish();
        let _ = fs::remove_dir_all(&folder);
        finished
    }

    /// Starts one that is expected to refuse, and gives what it said.
    pub fn refused(self) -> String {
        let mut qcp = Qcp::spawn(self);
        let status = qcp.wait();
        assert!(!status.success(), "qcp should have refused to start\n{}", qcp.log());
        qcp.log()
    }
}

impl Qcp {
    pub fn start(yaml: &str, cores: usize) -> Qcp {
        Setup::new(yaml).cores(cores).start()
    }

    fn spawn(setup: Setup) -> Qcp {
        Qcp::spawn_in(setup, Arc::new(Folder(temporary_folder())), free_port(), &[], &[])
    }

    /// Starts another one that is to take over from this, with this many cores and other keys.
    pub fn succeeded_by(&self, yaml: &str, cores: usize) -> Qcp {
        let setup =
            Setup { yaml: yaml.to_owned(), cores, server: self.setup.server.clone(), hosts: self.setup.hosts.clone() };
        Qcp::spawn_in(setup, self.folder.clone(), self.port, &["--takeover"], &[])
    }

    /// Waits until it has taken over.
    pub fn wait_until_it_serves(&mut self) {
        wait_until("it takes over", Duration::from_secs(20), || {
            let ended = self.child.try_wait().expect("the child is ours");
            assert!(ended.is_none(), "qcp ended at its start: {ended:?}\n{}", self.log());
            self.log().contains("listens on")
        });
    }

    fn spawn_in(setup: Setup, folder: Arc<Folder>, port: u16, more: &[&str], environment: &[(&str, &str)]) -> Qcp {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let config = write_configuration(&setup, &folder, port);
        let path = folder.join(format!("log-{}", COUNT.fetch_add(1, Ordering::Relaxed)));
        let log = fs::File::create(&path).expect("the temporary folder is writable");
        let log_too = log.try_clone().expect("a descriptor is left");
        // setpriv becomes qcp, under the same pid, and has the kernel kill it when the test's thread is gone.
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL"]);
        if let Some(hosts) = &setup.hosts {
            let own = folder.join("hosts");
            fs::write(&own, hosts).expect("the temporary folder is writable");
            // A mount of its own over the file; still the same pid. Who is not root is it in there.
            let root = if nix::unistd::geteuid().is_root() { "--mount" } else { "--map-root-user" };
            command
                .args(["unshare", root, "--mount", "sh", "-c", "mount --bind \"$0\" /etc/hosts && exec \"$@\""])
                .arg(own);
        }
        let child = command
            .args([env!("CARGO_BIN_EXE_qcp"), "--cores", &setup.cores.to_string(), "--config"])
            .arg(&config)
            .args(more)
            .envs(environment.iter().copied())
            .stdin(Stdio::null())
            .stdout(log)
            .stderr(log_too)
            .spawn()
            .expect("setpriv is part of util-linux");
        Qcp { child, folder, port, setup, log: path }
    }

    /// Writes its configuration anew, with other keys than those it was started with; nothing is reloaded yet.
    pub fn rewrite(&self, yaml: &str) {
        let Setup { cores, server, hosts, .. } = &self.setup;
        let setup = Setup { yaml: yaml.to_owned(), cores: *cores, server: server.clone(), hosts: hosts.clone() };
        write_configuration(&setup, &self.folder, self.port);
    }

    /// Changes its own /etc/hosts.
    pub fn set_hosts(&self, text: &str) {
        fs::write(self.folder.join("hosts"), text).expect("the temporary folder is writable");
    }

    /// Reloads with other keys than those it was started with, and gives what `qcp-ctrl` said.
    pub fn reload(&self, yaml: &str) -> String {
        self.rewrite(yaml);
        self.control(&["reload"]).success()
    }

    /// A file in its temporary folder.
    pub fn file(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    pub fn tcp(&self) -> Address {
        Address::loopback(self.port)
    }

    /// By the Unix socket that every pooler of the tests also listens on.
    pub fn unix(&self) -> Address {
        Address { host: self.folder.display().to_string(), port: self.port }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn control_socket(&self) -> PathBuf {
        self.folder.join("control.sock")
    }

    /// Runs `qcp-ctrl` on it.
    pub fn control(&self, arguments: &[&str]) -> Finished {
        control(&self.control_socket(), arguments)
    }

    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.pid() as i32), signal).expect("qcp lives");
    }

    /// Waits for its end, which must come soon.
    pub fn wait(&mut self) -> ExitStatus {
        let mut ended = None;
        wait_until("qcp ends", Duration::from_secs(20), || {
            ended = self.child.try_wait().expect("the child is ours");
            ended.is_some()
        });
        ended.unwrap_or_else(|| ExitStatus::from_raw(0))
    }

    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_else(|error| format!("(no log: {error})"))
    }
}

impl Drop for Qcp {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let state = match self.child.try_wait() {
                Ok(None) => "which runs".to_owned(),
                Ok(Some(status)) => format!("which has ended: {status}"),
                Err(error) => error.to_string(),
            };
            eprintln!("---- log of qcp {}, {state}\n{}----", self.pid(), self.log());
        }
        // Both fail only when it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Runs `qcp-ctrl` on a control socket.
pub fn control(socket: &Path, arguments: &[&str]) -> Finished {
    Program::new(env!("CARGO_BIN_EXE_qcp-ctrl")).arg("--socket").arg(socket).args(arguments).finish()
}

fn temporary_folder() -> PathBuf {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let name = format!("qcp-test-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
    let folder = std::env::temp_dir().join(name);
    fs::create_dir_all(&folder).expect("the temporary folder is writable");
    folder
}

fn write_configuration(setup: &Setup, folder: &Path, port: u16) -> PathBuf {
    let path = folder.join("qcp.yaml");
    fs::write(&path, configuration(setup, folder, port)).expect("the temporary folder is writable");
    path
}

fn configuration(setup: &Setup, folder: &Path, port: u16) -> String {
    let folder = folder.display();
    let mut text = String::new();
    let mut own = |key: &str, line: String| {
        if !setup.yaml.lines().any(|given| given.starts_with(key)) {
            text += &line;
        }
    };
    own("servers:", format!("servers: [{:?}]\n", setup.server));
    // They are opened in this order: who sees that TCP is accepted finds both.
    own("listening_address:", format!("listening_address: [\"unix:{folder}\", \"127.0.0.1:{port}\"]\n"));
    own("control:", format!("control: {{socket: {folder}/control.sock}}\n"));
    own("log_level:", "log_level: Debug\n".to_owned());
    own("arena:", ARENA.to_owned());
    text += &setup.yaml;
    text.replace("$port", &port.to_string()).replace("$folder", &folder.to_string())
}
