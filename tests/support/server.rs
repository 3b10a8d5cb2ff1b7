//! A PostgreSQL of one test alone, which may be killed, stopped and started again.
//!
//! As with the shared one, a guard shell that reads from a pipe of this process ends it and removes its folder, however
//! this process ends.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::postgres::{SUPERUSER, newest_programs, unprivileged, unprivileged_command};
use super::programs::psql;
use super::{Address, free_port, wait_until};

/// Ends the postmaster of the folder $1, if there is one, when standard input ends. What was stopped is let go on.
const GUARD: &str = r#"
trap '' INT TERM HUP
cat >/dev/null
read -r postmaster <"$1/data/postmaster.pid" 2>/dev/null && kill -CONT "$postmaster" && kill -QUIT "$postmaster"
tries=0
while [ -e "$1/data/postmaster.pid" ] && [ $tries -lt 100 ]; do sleep 0.1; tries=$((tries + 1)); done
rm -rf "$1"
"#;

pub struct Server {
    programs: PathBuf,
    folder: PathBuf,
    port: u16,
    settings: Vec<String>,
    guard: Child,
}

impl Server {
    /// Makes and starts one that lets everybody in; `settings` are added to its own.
    pub fn start(settings: &[&str]) -> Server {
        let server = Server::new(settings);
        let initdb = server
            .command("initdb")
            .args(["--auth=trust", "--encoding=UTF8", "--locale=C", "--no-sync", "--username", SUPERUSER])
            .arg("--pgdata")
            .arg(server.data())
            .output()
            .expect("initdb starts");
        assert!(initdb.status.success(), "initdb: {}", String::from_utf8_lossy(&initdb.stderr));
        server.launch();
        server.wait_ready();
        server
    }

    /// Makes and starts one that follows another as its standby, with what that has.
    pub fn standby_of(primary: &Server, settings: &[&str]) -> Server {
        let server = Server::new(settings);
        server.follow(primary);
        server
    }

    /// Is made anew as a standby of another, and started.
    pub fn follow(&self, primary: &Server) {
        let _ = fs::remove_dir_all(self.data());
        let port = primary.port.to_string();
        let mut backup = self.command("pg_basebackup");
        backup.args(["-h", "127.0.0.1", "-p", &port, "-U", SUPERUSER, "-R", "-X", "stream", "-c", "fast", "--no-sync"]);
        let backup = backup.arg("-D").arg(self.data()).output().expect("pg_basebackup starts");
        assert!(backup.status.success(), "pg_basebackup: {}", String::from_utf8_lossy(&backup.stderr));
        self.start_again();
    }

    /// A stopped primary starts as a standby that follows nobody.
    pub fn start_as_standby(&self) {
        fs::write(self.data().join("standby.signal"), "").expect("the data folder is writable");
        self.start_again();
    }

    /// Has a standby become a primary, without waiting for it.
    pub fn promote(&self) {
        self.execute("postgres", "SELECT pg_promote(false)");
    }

    pub fn is_standby(&self) -> bool {
        self.execute("postgres", "SELECT pg_is_in_recovery()").trim() == "t"
    }

    fn new(settings: &[&str]) -> Server {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("qcp-server-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let folder = std::env::temp_dir().join(name);
        fs::create_dir_all(&folder).expect("the temporary folder is writable");
        fs::set_permissions(&folder, fs::Permissions::from_mode(0o755)).expect("the folder is ours");
        if let Some(owner) = unprivileged() {
            chown(&folder, Some(owner.uid.as_raw()), Some(owner.gid.as_raw())).expect("root may give it away");
        }
        let mut guard = Command::new("sh");
        guard.args(["-c", GUARD, "guard"]).arg(&folder).process_group(0);
        let guard = guard.stdin(Stdio::piped()).spawn().expect("sh is everywhere");
        let settings = settings.iter().map(|setting| (*setting).to_owned()).collect();
        Server { programs: newest_programs(), folder, port: free_port(), settings, guard }
    }

    pub fn tcp(&self) -> Address {
        Address::loopback(self.port)
    }

    /// As `servers` of the configuration names it.
    pub fn name(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    fn data(&self) -> PathBuf {
        self.folder.join("data")
    }

    fn command(&self, program: &str) -> Command {
        unprivileged_command(&self.programs.join(program))
    }

    /// Starts the postmaster, without waiting for it.
    pub fn launch(&self) {
        let log = fs::OpenOptions::new().create(true).append(true).open(self.folder.join("log"));
        let log = log.expect("the temporary folder is writable");
        let log_too = log.try_clone().expect("a descriptor is left");
        let mut postmaster = self.command("postgres");
        postmaster.arg("-D").arg(self.data()).arg("-k").arg(&self.folder).args(["-p", &self.port.to_string()]);
        // A commit is in the kernel's hands when it is acknowledged: a killed server loses none.
        let own = [
            "listen_addresses=127.0.0.1",
            "shared_buffers=32MB",
            "fsync=off",
            "synchronous_commit=on",
            "full_page_writes=off",
            "autovacuum=off",
            "timezone=UTC",
            "log_line_prefix=%p %u ",
        ];
        for setting in own.iter().copied().chain(self.settings.iter().map(String::as_str)) {
            postmaster.args(["-c", setting]);
        }
        postmaster.process_group(0).stdin(Stdio::null()).stdout(log).stderr(log_too);
        let mut child = postmaster.spawn().expect("setpriv is part of util-linux");
        // Somebody has to fetch its exit status, whenever it ends.
        std::thread::spawn(move || child.wait());
    }

    pub fn wait_ready(&self) {
        wait_until("PostgreSQL accepts", Duration::from_secs(60), || self.is_ready());
    }

    pub fn is_ready(&self) -> bool {
        let reply = Command::new(self.programs.join("pg_isready"))
            .args(["-q", "-h", "127.0.0.1", "-p", &self.port.to_string()])
            .status();
        reply.is_ok_and(|status| status.success())
    }

    /// The postmaster's process id, while it runs.
    pub fn postmaster(&self) -> Option<u32> {
        let text = fs::read_to_string(self.data().join("postmaster.pid")).ok()?;
        text.lines().next()?.trim().parse().ok()
    }

    /// All processes of the server, the postmaster first.
    pub fn processes(&self) -> Vec<u32> {
        let Some(postmaster) = self.postmaster() else { return Vec::new() };
        let mut found = vec![postmaster];
        for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
            let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
            let Ok(stat) = fs::read_to_string(entry.path().join("stat")) else { continue };
            // Behind the program's name in parentheses: the state, then the parent.
            let parent = stat.rsplit_once(')').and_then(|(_, rest)| rest.split_whitespace().nth(1)?.parse().ok());
            if parent == Some(postmaster) {
                found.push(pid);
            }
        }
        found
    }

    pub fn signal(&self, pid: u32, signal: Signal) {
        // It may have ended on its own meanwhile.
        let _ = kill(Pid::from_raw(pid as i32), signal);
    }

    /// `kill -9` of the postmaster; comes back when none of its children is left.
    pub fn kill(&self) {
        let processes = self.processes();
        self.signal(processes[0], Signal::SIGKILL);
        wait_until("the server's processes end", Duration::from_secs(60), || {
            processes.iter().all(|&pid| has_ended(pid))
        });
    }

    /// `pg_ctl stop` in a mode (`fast`, `immediate`).
    pub fn stop(&self, mode: &str) {
        let Some(postmaster) = self.postmaster() else { return };
        let mut control = self.command("pg_ctl");
        let status = control.args(["stop", "-s", "-m", mode, "-D"]).arg(self.data()).status();
        assert!(status.is_ok_and(|status| status.success()), "pg_ctl stop: {}", self.log());
        wait_until("the postmaster ends", Duration::from_secs(20), || has_ended(postmaster));
    }

    /// Starts it and waits until it accepts.
    pub fn start_again(&self) {
        self.launch();
        self.wait_ready();
    }

    /// Writes pg_hba.conf anew: the superuser may always come in, others by these lines. Needs a reload where it runs.
    pub fn set_access(&self, lines: &str) {
        let text = format!("local all {SUPERUSER} trust\nhost all {SUPERUSER} 127.0.0.1/32 trust\n{lines}\n");
        fs::write(self.data().join("pg_hba.conf"), text).expect("the data folder is writable");
        self.execute("postgres", "SELECT pg_reload_conf()");
    }

    /// Runs statements directly as the superuser and gives what they print, unaligned and without headings.
    pub fn execute(&self, database: &str, statements: &str) -> String {
        psql(&self.tcp(), SUPERUSER, database)
            .args(["-qAtX", "-v", "ON_ERROR_STOP=1", "-c", statements])
            .finish()
            .success()
    }

    /// Rows of pg_stat_activity for which a condition holds, the asking backend aside.
    pub fn count_activity(&self, condition: &str) -> usize {
        let statement =
            format!("SELECT count(*) FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND ({condition})");
        self.execute("postgres", &statement).trim().parse().expect("a count is a number")
    }

    /// Where its log is.
    pub fn log_path(&self) -> PathBuf {
        self.folder.join("log")
    }

    pub fn log(&self) -> String {
        read_lossy(&self.log_path())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // What was stopped by a test that failed meanwhile has to go on in order to end.
        for pid in self.processes() {
            self.signal(pid, Signal::SIGCONT);
        }
        drop(self.guard.stdin.take());
        let _ = self.guard.wait();
    }
}

/// Whether a process is gone, or waits only for somebody to fetch its exit status.
fn has_ended(pid: u32) -> bool {
    let Ok(stat) = fs::read_to_string(format!("/proc/{pid}/stat")) else { return true };
    stat.rsplit_once(')').is_some_and(|(_, rest)| rest.trim_start().starts_with('Z'))
}

fn read_lossy(path: &Path) -> String {
    fs::read(path)
        .map_or_else(|error| format!("(no log: {error})"), |bytes| String::from_utf8_lossy(&bytes).into_owned())
}
