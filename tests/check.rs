//! `qcp --check` as an operator runs it, against servers that a thread of the test plays.

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;

use qcp::protocol::reader;
use qcp::protocol::startup::{self, Packet};
use qcp::protocol::tag::frontend as tag;
use qcp::protocol::{Direction, ErrorFields, Framer, SqlState, Step, TransactionStatus, Writer};

/// What a played server does with a login.
#[derive(Clone, Copy)]
enum Server {
    /// Lets in whom it knows: user postgres, to the databases postgres and reports_v2.
    Primary,
    Standby,
    Md5,
    Scram,
    Full,
    /// Takes the connection, and says nothing.
    Silent,
    /// Closes at once.
    Curt,
    Http,
}

impl Server {
    /// Plays until the test's process ends.
    fn start(self) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("a bound socket");
        self.play(move || listener.accept().map(|(stream, _)| stream).ok());
        address
    }

    fn start_at(self, socket: &Path) {
        let listener = std::os::unix::net::UnixListener::bind(socket).expect("a free place");
        self.play(move || listener.accept().map(|(stream, _)| stream).ok());
    }

    fn play<S: Read + Write>(self, accept: impl Fn() -> Option<S> + Send + 'static) {
        thread::spawn(move || {
            let mut silent = Vec::new();
            while let Some(mut stream) = accept() {
                match self {
                    Server::Silent => silent.push(stream),
                    Server::Curt => {}
                    Server::Http => {
                        startup_of(&mut stream).expect("qcp speaks first");
                        stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").expect("it is taken");
                    }
                    Server::Primary | Server::Standby | Server::Md5 | Server::Scram | Server::Full => {
                        // A client that goes in the middle has seen enough.
                        let _ = self.serve(&mut stream);
                    }
                }
            }
        });
    }

    fn serve(self, stream: &mut (impl Read + Write)) -> std::io::Result<()> {
        let mut room = [0; 4096];
        let mut writer = Writer::new(&mut room);
        let refusal = self.greet(&startup_of(stream)?, &mut writer);
        stream.write_all(writer.written())?;
        if refusal {
            return Ok(());
        }
        let mut framer = Framer::new(Direction::Frontend);
        let mut received = Vec::new();
        loop {
            match framer.next(&received, |_, size| size as usize).expect("qcp speaks the protocol") {
                Step::Message { tag: tag::QUERY, available, .. } => {
                    assert_eq!(reader::query(&received), Ok(&b"SELECT pg_catalog.pg_is_in_recovery()"[..]));
                    received.drain(..available);
                    let mut writer = Writer::new(&mut room);
                    self.answer(&mut writer);
                    // Byte by byte: a message may come in any pieces.
                    for byte in writer.written().chunks(1) {
                        stream.write_all(byte)?;
                    }
                }
                Step::Message { tag, .. } => {
                    assert_eq!(tag, tag::TERMINATE);
                    return Ok(());
                }
                Step::Incomplete { .. } | Step::End => {
                    let mut piece = [0; 512];
                    let count = stream.read(&mut piece)?;
                    if count == 0 {
                        return Ok(());
                    }
                    received.extend_from_slice(&piece[..count]);
                }
                Step::Rest { .. } => unreachable!("messages are asked for whole"),
            }
        }
    }

    /// Whether that was all.
    fn greet(self, packet: &[u8], writer: &mut Writer<'_>) -> bool {
        let Ok(Some((Packet::StartupMessage(startup), _))) = startup::packet(packet) else {
            panic!("a startup packet comes first")
        };
        // Neutral: a setting of the check's own would be one that no backend of the pool has.
        assert_eq!(startup.settings().count(), 0);
        let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
        let (user, database) = (text(startup.user()), text(startup.database()));
        let mut refuse = |code, message: &str| {
            writer.error_response(&ErrorFields::fatal(code, message)).expect("there is room");
            true
        };
        match self {
            Server::Md5 => writer.authentication_md5_password([1, 2, 3, 4]).expect("there is room"),
            Server::Scram => {
                let mechanisms: [&[u8]; 2] = [b"SCRAM-SHA-256-PLUS", b"SCRAM-SHA-256"];
                writer.authentication_sasl(&mechanisms).expect("there is room");
            }
            Server::Full => return refuse(SqlState::TOO_MANY_CONNECTIONS, "sorry, too many clients already"),
            Server::Primary | Server::Standby if user != "postgres" => {
                return refuse(SqlState::INVALID_AUTHORIZATION, &format!("role \"{user}\" does not exist"));
            }
            Server::Primary | Server::Standby if !["postgres", "reports_v2"].contains(&&*database) => {
                return refuse(SqlState::INVALID_CATALOG_NAME, &format!("database \"{database}\" does not exist"));
            }
            Server::Primary | Server::Standby => {
                writer.authentication_ok().expect("there is room");
                writer.parameter_status(b"server_version", b"15.14").expect("there is room");
                writer.backend_key_data(7, &[1, 2, 3, 4]).expect("there is room");
                writer.ready_for_query(TransactionStatus::Idle).expect("there is room");
            }
            Server::Silent | Server::Curt | Server::Http => unreachable!("they do not speak the protocol"),
        }
        false
    }

    fn answer(self, writer: &mut Writer<'_>) {
        let in_recovery: &[u8] = if matches!(self, Server::Standby) { b"t" } else { b"f" };
        writer.row_description(&[b"pg_is_in_recovery"]).expect("there is room");
        writer.data_row(&[Some(in_recovery)]).expect("there is room");
        writer.command_complete(b"SELECT 1").expect("there is room");
        writer.ready_for_query(TransactionStatus::Idle).expect("there is room");
    }
}

fn startup_of(stream: &mut impl Read) -> std::io::Result<Vec<u8>> {
    let mut packet = vec![0; 4];
    stream.read_exact(&mut packet)?;
    let length = u32::from_be_bytes([packet[0], packet[1], packet[2], packet[3]]);
    packet.resize(length as usize, 0);
    stream.read_exact(&mut packet[4..])?;
    Ok(packet)
}

/// A directory of the test's own.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> Scratch {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("qcp-check-{}-{number}", std::process::id()));
        fs::create_dir(&path).expect("a writable temporary directory");
        Scratch(path)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.0).expect("nothing of others in it");
    }
}

/// Runs `qcp --check` with this configuration; its exit code and what it prints.
fn run(config: &str, environment: &[(&str, &str)]) -> (i32, String) {
    let scratch = Scratch::new();
    let file = scratch.0.join("qcp.yaml");
    fs::write(&file, config).expect("writable");
    let mut program = Command::new(env!("CARGO_BIN_EXE_qcp"));
    program.args(["--check", "--cores", "1", "--config"]).arg(&file);
    program.env_remove("PGUSER").env_remove("PGDATABASE").envs(environment.iter().copied());
    let output = program.output().expect("the program is there");
    assert_eq!(String::from_utf8_lossy(&output.stderr), "", "{config}");
    let code = output.status.code().expect("not ended by a signal");
    (code, String::from_utf8(output.stdout).expect("it writes UTF-8"))
}

fn check(config: &str, code: i32, lines: &[String]) {
    let expected: String = lines.iter().map(|line| format!("{line}\n")).collect();
    assert_eq!(run(config, &[]), (code, expected), "{config}");
}

#[test]
fn servers_that_are_well() {
    let (primary, standby) = (Server::Primary.start(), Server::Standby.start());
    let login = "database postgres, user postgres";
    check(
        &format!("servers: [\"{primary}\", \"{standby}\"]"),
        0,
        &[
            format!("{primary}: ok: {login}: let in without a password; PostgreSQL 15.14, primary"),
            format!("{standby}: ok: {login}: let in without a password; PostgreSQL 15.14, standby"),
        ],
    );
}

#[test]
fn a_socket_file() {
    let scratch = Scratch::new();
    Server::Primary.start_at(&scratch.0.join(".s.PGSQL.5432"));
    let address = format!("unix:{}", scratch.0.display());
    let line = format!(
        "{address}: ok: database postgres, user postgres: let in without a password; PostgreSQL 15.14, primary"
    );
    check(&format!("servers: [\"{address}\"]"), 0, &[line]);
    check(
        &format!("servers: [\"{address}:5433\"]"),
        1,
        &[format!("{address}:5433: failed: No such file or directory")],
    );
}

#[test]
fn every_listed_database_and_the_servers_it_lives_on() {
    let (primary, scram) = (Server::Primary.start(), Server::Scram.start());
    let config = format!(
        "servers: [\"{primary}\"]\ndatabases:\n  reports: {{dbname: reports_v2}}\n  sales: {{}}\n  \
         shop: {{servers: [\"{scram}\"]}}\n"
    );
    let inside = "let in without a password; PostgreSQL 15.14, primary";
    let asks = "reachable; asks for scram-sha-256; logins are checked by the server";
    check(
        &config,
        1,
        &[
            format!("{primary}: ok: database postgres, user postgres: {inside}"),
            format!("{primary}: ok: database reports_v2, user postgres: {inside}"),
            format!("{primary}: failed: database sales, user postgres: FATAL: database \"sales\" does not exist"),
            format!("{scram}: ok: database shop, user postgres: {asks}"),
        ],
    );
}

#[test]
fn the_environment_says_as_whom_and_where() {
    let primary = Server::Primary.start();
    let config = format!("servers: [\"{primary}\"]");
    let refused = run(&config, &[("PGUSER", "alice"), ("PGDATABASE", "shop")]);
    let reason = "database shop, user alice: FATAL: role \"alice\" does not exist";
    assert_eq!(refused, (1, format!("{primary}: failed: {reason}\n")));
    assert_eq!(run(&config, &[("PGDATABASE", "reports_v2")]).0, 0);
}

#[test]
fn a_challenge_is_well_if_somebody_will_answer_it() {
    for (server, method) in [(Server::Md5, "md5"), (Server::Scram, "scram-sha-256")] {
        let address = server.start();
        let line =
            |verdict: &str, rest: &str| format!("{address}: {verdict}: database postgres, user postgres: {rest}");
        let checked = format!("reachable; asks for {method}; logins are checked by the server");
        check(&format!("servers: [\"{address}\"]"), 0, &[line("ok", &checked)]);
        let unanswered = format!("asks for {method}, and with auth: {{method: trust}} there is nobody to answer");
        check(&format!("servers: [\"{address}\"]\nauth: {{method: trust}}"), 1, &[line("failed", &unanswered)]);
    }
}

#[test]
fn what_fails_is_told_apart() {
    let fails = |server: SocketAddr, reason: &str| {
        let config = format!("servers: [\"{server}\"]\nreconnect: {{connect_timeout: 300ms}}\n");
        check(&config, 1, &[format!("{server}: failed: {reason}")]);
    };
    let free = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a free port");
    fails(free, "Connection refused");
    let words = "database postgres, user postgres: FATAL: sorry, too many clients already";
    fails(Server::Full.start(), words);
    fails(Server::Silent.start(), "connected, but the login timed out after 300ms (reconnect.connect_timeout)");
    fails(Server::Curt.start(), "the server closed the connection without a word");
    fails(Server::Http.start(), "invalid message length 1414811695 in message type H: is it PostgreSQL?");
}

/// The kernel answers for a listener as long as its backlog has room, and not at all after that.
#[test]
fn a_host_that_does_not_answer() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("a bound socket");
    nix::sys::socket::listen(&listener, nix::sys::socket::Backlog::new(1).expect("small")).expect("ours");
    let connect = || TcpStream::connect_timeout(&address, std::time::Duration::from_millis(100));
    let waiting: Vec<TcpStream> = std::iter::from_fn(|| connect().ok()).collect();
    check(
        &format!("servers: [\"{address}\"]\nreconnect: {{connect_timeout: 300ms}}\n"),
        1,
        &[format!("{address}: failed: timed out after 300ms (reconnect.connect_timeout)")],
    );
    drop(waiting);
}

#[test]
fn a_server_that_fails_does_not_hide_the_next_but_its_own_databases() {
    let primary = Server::Primary.start();
    // An empty label: no name server is asked.
    let config = format!("servers: [\"a..b:1\", \"{primary}\"]\ndatabases: {{reports_v2: {{}}}}");
    let (code, output) = run(&config, &[]);
    let lines: Vec<&str> = output.lines().collect();
    assert_eq!((code, lines.len()), (1, 3), "{output}");
    assert!(lines[0].starts_with("a..b:1: failed: host not found: "), "{output}");
    assert!(lines[1..].iter().all(|line| line.starts_with(&format!("{primary}: ok: "))), "{output}");
}
