//! `qcp-ctrl` as a user runs it: what it prints, and the exit code that scripts go by.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::process::{Command as Program, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use qcp::control::command::{Command, Topic};
use qcp::control::report::{self, Draining, Reopened, RunState, ShardReport, Status};
use qcp::control::socket::{Bound, Server};
use qcp::control::wire::Answer;

/// A directory with a pooler's control socket in it, and no pooler behind.
struct Scratch(PathBuf);

#[derive(Debug)]
struct Outcome {
    code: i32,
    stdout: String,
    stderr: String,
}

impl Scratch {
    fn new() -> Scratch {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("qcp-ctrl-{}-{number}", std::process::id()));
        fs::create_dir(&path).expect("a writable temporary directory");
        Scratch(path)
    }

    fn socket(&self) -> PathBuf {
        self.0.join("control.sock")
    }

    fn serve(&self) -> Server {
        let bound = Bound::bind(&[self.socket()], Instant::now).expect("a free place");
        bound.serve(Box::new(answer), Box::new(drop)).expect("a thread")
    }

    /// Runs `qcp-ctrl --socket ..` with further words.
    fn ctrl(&self, words: &str) -> Outcome {
        let socket = self.socket();
        let options = ["--socket", socket.to_str().expect("a plain path")];
        run(Program::new(env!("CARGO_BIN_EXE_qcp-ctrl")).args(options).args(words.split_whitespace()))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.0).expect("nothing of others in it");
    }
}

fn run(program: &mut Program) -> Outcome {
    let output = program.output().expect("the program is there");
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("it writes UTF-8");
    let code = output.status.code().expect("not ended by a signal");
    Outcome { code, stdout: text(output.stdout), stderr: text(output.stderr) }
}

fn answer(command: Command) -> Answer {
    match command {
        Command::Quit { now: true } => Err("not now".to_string()),
        Command::Quit { now: false } => Ok(Draining { pid: 123, shutdown_timeout_ms: 30_000 }.reply()),
        Command::Status => {
            let status = Status {
                version: "0.1.0".to_string(),
                pid: 123,
                uptime_s: 5,
                state: RunState::Running,
                cores: 1,
                clients: 0,
                backends: 0,
                listening: vec!["127.0.0.1:8080".to_string()],
                config: "qcp.yaml".to_string(),
            };
            Ok(status.reply())
        }
        Command::Reopen => Ok(Reopened { file: Some("/tmp/qcp.log".to_string()) }.reply()),
        Command::Show(topic) => Ok(report::show(topic, vec![ShardReport::default()])),
        Command::Reload { .. } => Ok(report::Reloaded::default().reply()),
        Command::Order(act, database) => {
            Ok(report::Ordered { act: act.name().to_owned(), database, ..Default::default() }.reply())
        }
        Command::Get(_) => Ok(report::show_keys(&[])),
        Command::Set { .. } => Err("no such key".to_string()),
        Command::Top | Command::Upgrade | Command::Takeover | Command::Cancel { .. } => Err("not here".to_string()),
        Command::CheckLogin { .. } => Ok(report::show_logins(&[])),
    }
}

/// `--watch` asks again and again, one line of JSON each time, until its reader or the pooler is gone.
#[test]
fn watching_goes_on_until_the_pooler_is_gone() {
    let scratch = Scratch::new();
    let server = scratch.serve();
    let mut watching = Program::new(env!("CARGO_BIN_EXE_qcp-ctrl"))
        .arg("--socket")
        .arg(scratch.socket())
        .args(["show", "pools", "--json", "--watch", "100ms"])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("the program is there");
    let mut lines = BufReader::new(watching.stdout.take().expect("piped above")).lines();
    for _ in 0..3 {
        let line = lines.next().expect("it goes on").expect("a pipe of ours can be read");
        serde_json::from_str::<serde_json::Value>(&line).expect("a line is one document");
    }
    server.close().until_exit();
    assert_eq!(watching.wait().expect("the child is ours").code(), Some(3));
    assert_eq!(scratch.ctrl("show pools --watch 1ms").code, 2);
}

#[test]
fn what_is_done_exits_0() {
    let scratch = Scratch::new();
    let server = scratch.serve();
    let status = scratch.ctrl("status");
    assert_eq!((status.code, status.stderr.as_str()), (0, ""));
    assert!(status.stdout.starts_with("qcp 0.1.0, process 123, running for 5s\n"), "{status:?}");
    assert_eq!(scratch.ctrl("reopen").stdout, "opened /tmp/qcp.log anew\n");
    for topic in Topic::ALL.map(Topic::name) {
        let shown = scratch.ctrl(&format!("show {topic}"));
        assert_eq!((shown.code, shown.stderr.as_str()), (0, ""), "{topic}");
        let json = scratch.ctrl(&format!("show {topic} --json"));
        assert_eq!(json.code, 0, "{topic}");
        serde_json::from_str::<serde_json::Value>(&json.stdout).expect(topic);
    }
    server.close().until_exit();
}

#[test]
fn what_the_pooler_refuses_exits_1_with_its_reason() {
    let scratch = Scratch::new();
    let server = scratch.serve();
    let refused = scratch.ctrl("quit --now");
    assert_eq!((refused.code, refused.stdout.as_str(), refused.stderr.as_str()), (1, "", "qcp-ctrl: not now\n"));
    server.close().until_exit();
}

#[test]
fn wrong_usage_exits_2_and_says_what_is_right() {
    let scratch = Scratch::new();
    let check = |words: &str, reason: &str| {
        let outcome = scratch.ctrl(words);
        assert_eq!(outcome.code, 2, "{words}: {outcome:?}");
        assert!(outcome.stderr.contains(reason), "{words}: {outcome:?}");
    };
    check("", "Usage: qcp-ctrl");
    check("dance", "unrecognized subcommand 'dance'");
    check("show", "[possible values: memory, pools, clients, pins, backends, shards,");
    check("show tea", "[possible values: memory, pools, clients, pins, backends, shards,");
    check("status --now", "unexpected argument '--now'");
    check("--config qcp.yaml status", "cannot be used with");
}

#[test]
fn nobody_there_exits_3() {
    let scratch = Scratch::new();
    let missing = scratch.ctrl("status");
    let expected = format!("qcp-ctrl: no qcp listens at {}\n", scratch.socket().display());
    assert_eq!((missing.code, missing.stderr), (3, expected.clone()));
    drop(UnixListener::bind(scratch.socket()).expect("a free place"));
    let stale = scratch.ctrl("quit");
    assert_eq!((stale.code, stale.stderr), (3, expected));
}

#[test]
fn quit_waits_for_the_end() {
    let scratch = Scratch::new();
    let server = scratch.serve();
    let no_wait = scratch.ctrl("quit --no-wait");
    assert_eq!((no_wait.code, no_wait.stdout.as_str()), (0, "qcp, process 123, is draining, for 30.0s at most\n"));

    thread::scope(|scope| {
        let quit = scope.spawn(|| scratch.ctrl("quit"));
        thread::sleep(Duration::from_millis(300));
        assert!(!quit.is_finished());
        // Stands for the end of the process, in which the kernel does the same.
        drop(server.close());
        let outcome = quit.join().expect("no panic");
        assert_eq!(outcome.code, 0);
        assert!(outcome.stdout.ends_with("at most\nstopped\n"), "{outcome:?}");
    });
}

#[test]
fn the_socket_is_found_by_the_configuration() {
    let scratch = Scratch::new();
    let server = scratch.serve();
    let file = scratch.0.join("qcp.yaml");
    let text = format!(
        "listening_address: 127.0.0.1:8080\nservers: [\"127.0.0.1:5432\"]\nrelay_mode: Smart\ncontrol:\n  socket: {}\n",
        scratch.socket().display()
    );
    fs::write(&file, text).expect("writable");
    let ctrl =
        |config: &PathBuf| run(Program::new(env!("CARGO_BIN_EXE_qcp-ctrl")).arg("--config").arg(config).arg("status"));
    assert_eq!(ctrl(&file).code, 0);
    let missing = ctrl(&scratch.0.join("none.yaml"));
    assert_eq!(missing.code, 2);
    assert!(missing.stderr.contains("none.yaml: cannot be read: No such file"), "{missing:?}");
    server.close().until_exit();
}

#[test]
fn a_reader_that_has_seen_enough_is_no_fault() {
    let scratch = Scratch::new();
    let server = scratch.serve();
    let mut child = Program::new(env!("CARGO_BIN_EXE_qcp-ctrl"))
        .arg("--socket")
        .arg(scratch.socket())
        .args(["show", "memory"])
        .stdout(Stdio::piped())
        .spawn()
        .expect("the program is there");
    drop(child.stdout.take());
    assert_eq!(child.wait().expect("it ends").code(), Some(0));
    server.close().until_exit();
}

/// Needs to be root to become somebody else; the decision itself is tested where it is made.
#[test]
fn another_user_is_turned_away() {
    use std::os::unix::process::CommandExt;

    let scratch = Scratch::new();
    let server = scratch.serve();
    if !nix::unistd::geteuid().is_root() {
        server.close().until_exit();
        return;
    }
    // Where another user can execute it, wherever the build is. Copied by another process, because the children of the
    // tests beside this one would inherit a descriptor open for writing, and the kernel does not run such a file.
    let program = scratch.0.join("qcp-ctrl");
    assert_eq!(run(Program::new("cp").arg(env!("CARGO_BIN_EXE_qcp-ctrl")).arg(&program)).code, 0);
    let ctrl = || run(Program::new(&program).arg("--socket").arg(scratch.socket()).arg("status").uid(65534).gid(65534));

    let kept_out = ctrl();
    assert_eq!(kept_out.code, 1);
    assert!(kept_out.stderr.contains("is not open to you"), "{kept_out:?}");

    // Even where somebody has opened the file to all.
    fs::set_permissions(scratch.socket(), fs::Permissions::from_mode(0o666)).expect("ours");
    let refused = ctrl();
    assert_eq!(refused.code, 1);
    let expected = "qcp-ctrl: uid 65534 may not control this qcp, only root and uid 0, which runs it\n";
    assert_eq!(refused.stderr, expected);
    server.close().until_exit();
}
