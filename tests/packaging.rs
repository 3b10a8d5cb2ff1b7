//! What is installed and shipped: the manual agrees with the programs, the units are right, the package is whole and what is in
//! it runs. Nothing is installed on the machine.

use std::fs;
use std::io::{ErrorKind, Read};
use std::net::TcpStream;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

#[path = "../examples/manual.rs"]
mod manual;

/// A folder of one test.
struct Scratch(PathBuf);

impl Scratch {
    fn new(test: &str) -> Scratch {
        let path = std::env::temp_dir().join(format!("qcp-{test}-{}", std::process::id()));
        fs::create_dir_all(&path).expect("the temporary folder is writable");
        Scratch(path)
    }

    fn file(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Ends with the test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn binaries() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_qcp")).parent().expect("it is in a folder")
}

fn run(command: &mut Command) -> Output {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    output
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn free_port() -> u16 {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port is free");
    listener.local_addr().expect("it is bound").port()
}

#[test]
fn the_manual_has_every_option_and_command() {
    let scratch = Scratch::new("manual");
    manual::write(&scratch.0).expect("it can be written");
    for program in ["qcp", "qcp-ctrl"] {
        let page = fs::read_to_string(scratch.file(&format!("man/{program}.1"))).expect("a page");
        let completion = fs::read_to_string(scratch.file(&format!("bash/{program}.bash"))).expect("a completion");
        let help = run(Command::new(binaries().join(program)).arg("--help"));
        let help = text(&help.stdout);
        let words = help.split(|letter: char| !(letter.is_ascii_lowercase() || letter == '-'));
        let options: Vec<&str> = words.filter(|word| word.starts_with("--") && word.len() > 3).collect();
        assert!(options.len() >= 3, "{help}");
        for option in options {
            // roff writes a hyphen as \-.
            let known = page.contains(&option.replace('-', "\\-")) || option == "--now" || option == "--json";
            assert!(known, "{program}: {option} is not in the manual");
        }
        let commands: Vec<&str> = match help.split_once("Commands:\n") {
            Some((_, rest)) => {
                let lines = rest.lines().take_while(|line| !line.is_empty());
                lines
                    .filter(|line| line.starts_with("  ") && !line.starts_with("   "))
                    .filter_map(|line| line.split_whitespace().next())
                    .collect()
            }
            None => Vec::new(),
        };
        assert_eq!(commands.is_empty(), program == "qcp", "{help}");
        for command in commands.into_iter().filter(|command| *command != "help") {
            assert!(completion.contains(command), "{program} {command} is not completed");
            assert!(scratch.file(&format!("man/{program}-{command}.1")).exists(), "{program} {command} has no page");
        }
        // groff has nothing to say against it.
        let checked = run(Command::new("groff")
            .args(["-man", "-Tutf8", "-ww", "-z"])
            .arg(scratch.file(&format!("man/{program}.1"))));
        assert_eq!(text(&checked.stderr), "", "{program}.1");
        run(Command::new("bash").arg("-n").arg(scratch.file(&format!("bash/{program}.bash"))));
    }
}

#[test]
fn the_package_is_whole_and_what_is_in_it_runs() {
    let scratch = Scratch::new("package");
    manual::write(&scratch.file("manual")).expect("it can be written");
    let built = run(Command::new(root().join("scripts/package-deb"))
        .arg(&scratch.0)
        .env("QCP_BINARIES", binaries())
        .env("QCP_MANUAL", scratch.file("manual")));
    let package = PathBuf::from(text(&built.stdout).trim());
    let list = text(&run(Command::new("dpkg-deb").arg("--contents").arg(&package)).stdout);
    for expected in [
        "-rwxr-xr-x root/root ./usr/bin/qcp",
        "-rwxr-xr-x root/root ./usr/bin/qcp-ctrl",
        "-rw-r--r-- root/root ./usr/lib/systemd/system/qcp.service",
        "-rw-r--r-- root/root ./usr/lib/systemd/system/qcp.socket",
        "-rw-r----- root/root ./etc/qcp/qcp.yaml",
        "-rw-r--r-- root/root ./usr/share/man/man1/qcp.1.gz",
        "-rw-r--r-- root/root ./usr/share/man/man1/qcp-ctrl-show.1.gz",
        "-rw-r--r-- root/root ./usr/share/bash-completion/completions/qcp-ctrl",
        "-rw-r--r-- root/root ./usr/share/zsh/vendor-completions/_qcp",
        "-rw-r--r-- root/root ./usr/share/fish/vendor_completions.d/qcp-ctrl.fish",
        "-rw-r--r-- root/root ./usr/share/doc/qcp/config-example.yaml",
    ] {
        let (mode_and_owner, path) = expected.rsplit_once(' ').expect("three words");
        let found = list.lines().find(|line| line.ends_with(&format!(" {path}")));
        let found = found.unwrap_or_else(|| panic!("{path} is missing\n{list}"));
        assert!(found.starts_with(mode_and_owner), "{found}");
    }
    let field = |name: &str| {
        text(&run(Command::new("dpkg-deb").args(["--field"]).arg(&package).arg(name)).stdout).trim().to_owned()
    };
    assert_eq!(field("Version"), env!("CARGO_PKG_VERSION"));
    assert!(field("Depends").contains("libc6 (>= "), "{}", field("Depends"));
    let unpacked = scratch.file("unpacked");
    run(Command::new("dpkg-deb").arg("--raw-extract").arg(&package).arg(&unpacked));
    for script in ["postinst", "prerm", "postrm"] {
        run(Command::new("sh").arg("-n").arg(unpacked.join("DEBIAN").join(script)));
    }
    assert_eq!(fs::read_to_string(unpacked.join("DEBIAN/conffiles")).expect("there is one"), "/etc/qcp/qcp.yaml\n");
    let version = run(Command::new(unpacked.join("usr/bin/qcp")).arg("--version"));
    assert_eq!(text(&version.stdout), format!("qcp {}\n", env!("CARGO_PKG_VERSION")));

    // What is shipped starts, with what of it can be had here.
    let config = fs::read_to_string(unpacked.join("etc/qcp/qcp.yaml")).expect("there is one");
    let port = free_port();
    let socket = scratch.file("control.sock");
    let config = config.replace("127.0.0.1:8080", &format!("127.0.0.1:{port}"));
    let config = format!("{config}control: {{socket: {}}}\narena: {{total_size: 32 MB}}\n", socket.display());
    fs::write(scratch.file("qcp.yaml"), config).expect("the folder is writable");
    let mut command = Command::new(unpacked.join("usr/bin/qcp"));
    command.arg("--config").arg(scratch.file("qcp.yaml")).stderr(Stdio::null());
    let qcp = Running(command.spawn().expect("it is there"));
    wait(|| TcpStream::connect(("127.0.0.1", port)).is_ok());
    run(Command::new(unpacked.join("usr/bin/qcp-ctrl")).arg("--socket").arg(&socket).arg("quit"));
    drop(qcp);
    verify_units(&unpacked);
}

/// systemd's own opinion, of the units as they are installed.
fn verify_units(unpacked: &Path) {
    if Command::new("systemd-analyze").arg("--version").output().is_err() {
        // Whether the filter leaves io_uring in is then not known either; a machine with systemd says so.
        eprintln!("systemd-analyze is not here: the units were not verified");
        return;
    }
    // The programs are not where the units say, here.
    let units = unpacked.join("units");
    fs::create_dir_all(&units).expect("the folder is writable");
    for unit in ["qcp.service", "qcp.socket"] {
        let source = fs::read_to_string(unpacked.join("usr/lib/systemd/system").join(unit)).expect("there is one");
        assert!(!source.contains('@') || !source.contains("@bindir@"), "{unit}");
        let there = source.replace("/usr/bin/", &format!("{}/usr/bin/", unpacked.display()));
        fs::write(units.join(unit), there).expect("the folder is writable");
    }
    let verified = run(Command::new("systemd-analyze")
        .args(["verify", "--man=no", "--recursive-errors=no"])
        .args([units.join("qcp.service"), units.join("qcp.socket")]));
    let said = text(&verified.stderr);
    assert!(!said.lines().any(|line| line.contains("qcp.service") || line.contains("qcp.socket")), "{said}");
    let sets = ["@system-service", "@aio"]
        .map(|set| text(&run(Command::new("systemd-analyze").args(["syscall-filter", set])).stdout));
    assert!(sets[0].contains("@aio"), "{}", sets[0]);
    for call in ["io_uring_setup", "io_uring_enter", "io_uring_register"] {
        assert!(sets[1].contains(call), "{call}");
    }
}

fn wait(mut condition: impl FnMut() -> bool) {
    let until = Instant::now() + Duration::from_secs(20);
    while !condition() {
        assert!(Instant::now() < until, "not within 20 s");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// As systemd starts it: with its sockets open already, and told where to say how it goes.
#[test]
fn sockets_of_systemd_are_served_and_it_is_told() {
    const START: &str = "import fcntl, os, socket, sys\n\
        s = socket.socket()\n\
        s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)\n\
        s.bind(('127.0.0.1', int(sys.argv[1])))\n\
        s.listen(16)\n\
        u = socket.socket(socket.AF_UNIX)\n\
        u.bind(sys.argv[2])\n\
        u.listen(16)\n\
        high = [fcntl.fcntl(x, fcntl.F_DUPFD, 20) for x in (s, u)]\n\
        os.dup2(high[0], 3)\n\
        os.dup2(high[1], 4)\n\
        os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS='2')\n\
        os.execv(sys.argv[3], sys.argv[3:])\n";
    let scratch = Scratch::new("activation");
    let port = free_port();
    let notify = UnixDatagram::bind(scratch.file("notify")).expect("a free name");
    notify.set_read_timeout(Some(Duration::from_secs(20))).expect("our socket");
    let told = || {
        let mut room = [0; 512];
        loop {
            match notify.recv(&mut room) {
                // This process was stopped meanwhile: a wait with a limit ends with that.
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                told => return text(&room[..told.expect("it is told")]),
            }
        }
    };
    let folder = scratch.0.display();
    let config = |size: usize| {
        format!(
            "listening_address: [\"127.0.0.1:{port}\", \"unix:{folder}:{port}\"]\nservers: [\"127.0.0.1:1\"]\n\
             control: {{socket: {folder}/control.sock}}\narena: {{total_size: 32 MB}}\npool: {{size: {size}}}\n"
        )
    };
    let file = scratch.file("qcp.yaml");
    fs::write(&file, config(2)).expect("the folder is writable");
    let start = |more: &[&str]| {
        let mut command = Command::new("python3");
        command.args(["-c", START, &port.to_string()]).arg(scratch.file(&format!(".s.PGSQL.{port}")));
        command.arg(env!("CARGO_BIN_EXE_qcp")).args(["--cores", "2", "--config"]).arg(&file).args(more);
        command.env("NOTIFY_SOCKET", scratch.file("notify")).stderr(Stdio::piped());
        Running(command.spawn().expect("python3 is there"))
    };
    let mut qcp = start(&[]);
    let pid = qcp.0.id();
    assert!(told().starts_with(&format!("READY=1\nMAINPID={pid}\n")));
    // qcp itself answers there: it says that it has no server.
    let greets = |stream: &mut dyn ReadWrite| {
        stream.write_all(&[0, 0, 0, 8, 4, 210, 22, 47]).expect("an SSLRequest");
        let mut answer = [0];
        stream.read_exact(&mut answer).expect("it answers");
        assert_eq!(answer, *b"N");
    };
    for _ in 0..8 {
        greets(&mut TcpStream::connect(("127.0.0.1", port)).expect("it is open"));
        let path = scratch.file(&format!(".s.PGSQL.{port}"));
        greets(&mut std::os::unix::net::UnixStream::connect(path).expect("it is open"));
    }
    let control = |command: &str| {
        run(Command::new(binaries().join("qcp-ctrl")).arg("--socket").arg(scratch.file("control.sock")).arg(command))
    };
    fs::write(&file, config(3)).expect("the folder is writable");
    control("reload");
    assert!(told().starts_with("RELOADING=1\nMONOTONIC_USEC="));
    assert!(told().starts_with("READY=1\n"));
    // The other is a child of this one: of the same unit, to systemd.
    let said = text(&control("upgrade").stdout);
    let successor: u32 = said.split_whitespace().nth(1).and_then(|pid| pid.parse().ok()).expect("its process id");
    let mut all = vec![told(), told()];
    all.sort();
    assert_eq!(all[0], format!("MAINPID={successor}\n"));
    assert!(all[1].starts_with(&format!("READY=1\nMAINPID={successor}\n")), "{all:?}");
    assert!(qcp.0.wait().expect("our child").success());
    greets(&mut TcpStream::connect(("127.0.0.1", port)).expect("it is open"));
    control("quit");
    assert!(scratch.file(&format!(".s.PGSQL.{port}")).exists(), "its name is systemd's");
    assert!(told().starts_with("STOPPING=1\n"), "and the one before has said nothing more");
    let mut log = String::new();
    qcp.0.stderr.take().expect("piped").read_to_string(&mut log).expect("text");
    assert!(!log.contains("ERROR"), "{log}");
}

trait ReadWrite: Read + std::io::Write {}
impl<T: Read + std::io::Write> ReadWrite for T {}
