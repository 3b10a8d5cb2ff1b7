use std::io::Write;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Instant;

use super::*;
use crate::control::client::{Connection, Failure};
use crate::control::command::Topic;
use crate::control::wire::Reply;

/// A directory of its own for each test, gone with it.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> Scratch {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("qcp-socket-{}-{number}", std::process::id()));
        fs::create_dir(&path).expect("a writable temporary directory");
        Scratch(path)
    }

    fn socket(&self) -> PathBuf {
        self.0.join("made/control.sock")
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.0).expect("nothing of others in it");
    }
}

fn start(path: &Path) -> Server {
    bind(path).expect("a free place").serve(Box::new(echo), Box::new(drop)).expect("a thread")
}

fn bind(path: &Path) -> Result<Bound, BindFault> {
    Bound::bind(&[path.to_path_buf()], Instant::now)
}

fn echo(command: Command) -> Answer {
    match command {
        Command::Show(Topic::Memory) => Err("no memory of it".to_string()),
        Command::Show(Topic::Shards) => panic!("the test asked for it"),
        _ => Ok(Reply::new(&command, format!("{command}\n"))),
    }
}

fn ask(path: &Path, command: Command) -> Result<Reply, Failure> {
    Connection::open(&[path.to_path_buf()], PATIENCE, Instant::now)?.ask(command, 3 * PATIENCE)
}

/// What the server says to bytes that a `Connection` would never send.
fn answer_to(path: &Path, bytes: &[u8]) -> Result<Answer, LineFault> {
    let mut stream = UnixStream::connect(path).expect("the server listens");
    // The server may close before it has read everything.
    let _ = stream.write_all(bytes);
    let line = wire::receive_line(&stream, wire::ANSWER_SIZE_MAX, Deadline::after(3 * PATIENCE, Instant::now))?;
    Ok(wire::decode_answer(&line).expect("an answer of this version"))
}

fn refusal(path: &Path, bytes: &[u8]) -> String {
    answer_to(path, bytes).expect("a line").expect_err("a refusal")
}

#[test]
fn a_command_is_answered_or_refused() {
    let scratch = Scratch::new();
    let path = scratch.socket();
    let server = start(&path);
    assert_eq!(ask(&path, Command::Status).expect("an answer").text, "status\n");
    let refused = ask(&path, Command::Show(Topic::Memory)).expect_err("the handler says no");
    assert_eq!((refused.to_string().as_str(), refused.exit_code()), ("no memory of it", 1));
    server.close().until_exit();
}

#[test]
fn the_file_is_for_its_owner_only_and_goes_with_the_server() {
    let scratch = Scratch::new();
    let path = scratch.socket();
    let server = start(&path);
    let names = || -> Vec<_> {
        let entries = fs::read_dir(scratch.0.join("made")).expect("made by bind");
        entries.map(|entry| entry.expect("readable").file_name()).collect()
    };
    assert_eq!(fs::metadata(&path).expect("the socket").permissions().mode() & 0o7777, 0o600);
    assert_eq!(names(), ["control.sock"]);
    server.close().until_exit();
    assert!(names().is_empty());
    let nobody = ask(&path, Command::Status).expect_err("closed");
    assert_eq!(nobody.exit_code(), 3);
}

#[test]
fn a_file_that_another_put_in_our_place_stays() {
    let scratch = Scratch::new();
    let path = scratch.socket();
    let server = start(&path);
    fs::remove_file(&path).expect("ours");
    let _other = UnixListener::bind(&path).expect("free again");
    server.close().until_exit();
    assert!(path.exists());
}

#[test]
fn a_living_pooler_keeps_its_socket() {
    let scratch = Scratch::new();
    let path = scratch.socket();
    let server = start(&path);
    let fault = bind(&path).err().expect("held");
    let expected = format!(
        "{} is held by qcp, process {}: stop it with qcp-ctrl quit, or configure another control.socket",
        path.display(),
        std::process::id()
    );
    assert_eq!(fault.to_string(), expected);
    assert!(ask(&path, Command::Status).is_ok());
    server.close().until_exit();
}

#[test]
fn a_stale_socket_is_replaced() {
    let scratch = Scratch::new();
    let path = scratch.0.join("control.sock");
    drop(UnixListener::bind(&path).expect("free"));
    // What a start that was killed leaves behind is no hindrance either.
    fs::create_dir(scratch.0.join(".qcp-control")).expect("free");
    drop(UnixListener::bind(scratch.0.join(".qcp-control/s")).expect("free"));
    let server = start(&path);
    assert!(ask(&path, Command::Status).is_ok());
    server.close().until_exit();
}

#[test]
fn of_two_that_start_at_once_one_gets_the_place() {
    let scratch = Scratch::new();
    let path = scratch.socket();
    let starts: Vec<_> = (0..4)
        .map(|_| {
            let path = path.clone();
            thread::spawn(move || {
                bind(&path).map(|bound| bound.serve(Box::new(echo), Box::new(drop)).expect("a thread"))
            })
        })
        .collect();
    let ends: Vec<_> = starts.into_iter().map(|start| start.join().expect("no panic")).collect();
    let held = |end: &&Result<Server, BindFault>| {
        matches!(end, Err(BindFault::HeldByQcp { .. } | BindFault::HeldByStranger { .. }))
    };
    assert_eq!(ends.iter().filter(held).count(), 3);
    for server in ends.into_iter().flatten() {
        server.close().until_exit();
    }
}

#[test]
fn what_is_not_ours_is_left_alone() {
    let scratch = Scratch::new();
    let file = scratch.0.join("file");
    fs::write(&file, "precious").expect("writable");
    let fault = bind(&file).err().expect("refused").to_string();
    assert!(fault.contains("is not a socket"), "{fault}");
    assert_eq!(fs::read_to_string(&file).expect("still there"), "precious");

    let path = scratch.0.join("other");
    let _silent = UnixListener::bind(&path).expect("free");
    let fault = bind(&path).err().expect("refused").to_string();
    assert!(fault.contains("does not answer as a running qcp does"), "{fault}");
}

#[test]
fn a_place_out_of_reach_leads_to_the_next() {
    let scratch = Scratch::new();
    let path = scratch.socket();
    // The kernel lets nobody make a directory there, not even root.
    let candidates = [PathBuf::from("/sys/qcp/control.sock"), path.clone()];
    assert_eq!(Bound::bind(&candidates, Instant::now).expect("the second").path(), path);
    let fault = bind(&candidates[0]).err().expect("no other place").to_string();
    assert!(fault.starts_with("cannot make the directory of /sys/qcp/control.sock: "), "{fault}");
}

#[test]
fn a_client_goes_on_to_where_somebody_listens() {
    let scratch = Scratch::new();
    let path = scratch.socket();
    let server = start(&path);
    let candidates = [scratch.0.join("nobody"), path.clone()];
    let connection = Connection::open(&candidates, PATIENCE, Instant::now).expect("the second");
    assert_eq!(connection.path(), path);
    server.close().until_exit();
}

#[test]
fn a_silent_peer_does_not_hold_up_the_others() {
    let scratch = Scratch::new();
    let path = scratch.socket();
    let server = start(&path);
    let silent = UnixStream::connect(&path).expect("the server listens");
    let before = Instant::now();
    assert!(ask(&path, Command::Status).is_ok());
    assert!(before.elapsed() < PATIENCE + Duration::from_secs(1));
    let line = wire::receive_line(&silent, 1000, Deadline::after(PATIENCE, Instant::now)).expect("told why");
    assert_eq!(wire::decode_answer(&line), Ok(Err("no whole line in time".to_string())));
    server.close().until_exit();
}

#[test]
fn a_request_that_is_none_is_refused() {
    let scratch = Scratch::new();
    let path = scratch.socket();
    let server = start(&path);
    let endless = vec![b' '; wire::REQUEST_SIZE_MAX * 4];
    assert_eq!(refusal(&path, &endless), "a line may have at most 65536 bytes");
    assert!(refusal(&path, b"\n").starts_with("not a message of the control protocol"));
    assert!(refusal(&path, b"GET / HTTP/1.1\r\n\r\n").starts_with("not a message of the control protocol"));
    assert!(refusal(&path, b"{\"version\":9,\"command\":\"status\"}\n").starts_with("control protocol 9 meets 1"));
    assert!(ask(&path, Command::Status).is_ok());
    server.close().until_exit();
}

#[test]
fn a_panic_costs_one_answer() {
    let scratch = Scratch::new();
    let path = scratch.socket();
    let server = start(&path);
    let refused = ask(&path, Command::Show(Topic::Shards)).expect_err("a defect").to_string();
    assert_eq!(refused, "show shards met a defect of qcp, see its log");
    assert!(ask(&path, Command::Status).is_ok());
    server.close().until_exit();
}

#[test]
fn only_root_and_the_owner_are_heard() {
    let check = |uid: u32, owner_uid: u32, expected: Result<(), &str>| {
        let (near, far) = UnixStream::pair().expect("two descriptors");
        wire::send_line(&far, &wire::encode_request(Command::Status), Deadline::after(PATIENCE, Instant::now))
            .expect("room");
        let handler: Handler = Box::new(echo);
        let done = converse(&near, Peer { uid, owner_uid, may_wait_for_exit: true, clock: Instant::now }, &handler)
            .expect("answered");
        assert_eq!(done.is_some(), expected.is_ok());
        drop(near);
        let line = wire::receive_line(&far, 1000, Deadline::after(PATIENCE, Instant::now)).expect("an answer");
        let answer = wire::decode_answer(&line).expect("of this version").map(|_| ());
        assert_eq!(answer, expected.map_err(str::to_string));
    };
    check(0, 1000, Ok(()));
    check(1000, 1000, Ok(()));
    check(1001, 1000, Err("uid 1001 may not control this qcp, only root and uid 1000, which runs it"));
    check(1001, 0, Err("uid 1001 may not control this qcp, only root and uid 0, which runs it"));
}

#[test]
fn who_quits_learns_when_the_process_has_gone() {
    let scratch = Scratch::new();
    let path = scratch.socket();
    let server = start(&path);
    let mut connection = Connection::open(std::slice::from_ref(&path), PATIENCE, Instant::now).expect("somebody");
    assert_eq!(connection.ask(Command::Quit { now: false }, PATIENCE).expect("done").text, "quit\n");
    // Others are served while it drains.
    assert!(ask(&path, Command::Status).is_ok());
    let farewell = server.close();
    let still = connection.wait_for_exit(Duration::from_millis(50)).expect_err("not yet");
    assert!(matches!(still, Failure::StillRunning { .. }), "{still}");
    drop(farewell);

    let server = start(&path);
    let mut connection = Connection::open(&[path], PATIENCE, Instant::now).expect("somebody");
    connection.ask(Command::Quit { now: true }, PATIENCE).expect("done");
    // Stands for the end of the process, in which the kernel does the same.
    drop(server.close());
    connection.wait_for_exit(PATIENCE).expect("gone");
}

#[test]
fn those_who_wait_for_the_end_are_bounded() {
    let scratch = Scratch::new();
    let path = scratch.socket();
    let server = start(&path);
    let quit = || {
        let mut connection = Connection::open(std::slice::from_ref(&path), PATIENCE, Instant::now).expect("somebody");
        connection.ask(Command::Quit { now: false }, PATIENCE).map(|_| connection)
    };
    let waiting: Vec<Connection> = (0..MOURNERS_MAX).map(|_| quit().expect("room")).collect();
    let refused = quit().err().expect("full").to_string();
    assert_eq!(refused, "64 others have asked to quit and wait for the end");
    drop(waiting);
    assert!(quit().is_ok());
    drop(server.close());
}
