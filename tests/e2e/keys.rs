//! Keys of the configuration that have no other place: each is seen to do what it says, at a real PostgreSQL.

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::sys::socket::{getsockopt, sockopt};

use super::support::pooler::Qcp;
use super::support::postgres::{SUPERUSER, postgres};
use super::support::programs::Program;
use super::support::raw::{RawClient, error_field, message, zero_ended};
use super::support::wait_until;

fn client(qcp: &Qcp, database: &str) -> RawClient {
    RawClient::login(&qcp.tcp(), SUPERUSER, database)
}

fn ask(client: &mut RawClient, statement: &str) {
    client.send(&message(b'Q', &zero_ended(statement)));
}

#[test]
fn a_backend_is_reset_by_the_statement_that_is_configured() {
    postgres().create_database("keys_reset");
    // What the second client of the only backend finds of the first one's.
    let left_by = |keys: &str| {
        let qcp = Qcp::start(&format!("relay_mode: Session\npool: {{size: 1, {keys}}}\n"), 1);
        let mut first = client(&qcp, "keys_reset");
        first
            .query("SET work_mem = '12MB'; CREATE TEMP TABLE left_behind (a int); SET TimeZone = 'Asia/Tokyo'")
            .expect("served");
        let pid = first.query("SELECT pg_backend_pid()").expect("served");
        drop(first);
        let mut second = client(&qcp, "keys_reset");
        assert_eq!(second.query("SELECT pg_backend_pid()").expect("served"), pid, "the same backend");
        let of = |client: &mut RawClient, what: &str| client.query(what).expect("served").remove(0);
        let tables = of(&mut second, "SELECT count(*) FROM pg_class WHERE relname = 'left_behind'");
        (of(&mut second, "SHOW work_mem"), tables, of(&mut second, "SHOW TimeZone"))
    };
    let found = |memory: &str, tables: &str| (memory.to_owned(), tables.to_owned(), "UTC".to_owned());
    assert_eq!(left_by("queue_timeout: 5s"), found("4MB", "0"));
    assert_eq!(left_by("reset_query: DISCARD TEMP"), found("12MB", "0"));
    assert_eq!(left_by("reset_query: RESET ALL"), found("4MB", "1"));
    assert_eq!(left_by("reset_query: ''"), found("12MB", "1"));
    // One that fails is no reset: the backend is not lent again.
    let qcp = Qcp::start("relay_mode: Session\npool: {size: 1, reset_query: SELECT nothing_such}\n", 1);
    let mut first = client(&qcp, "keys_reset");
    let pid = first.query("SELECT pg_backend_pid()").expect("served");
    drop(first);
    assert_ne!(client(&qcp, "keys_reset").query("SELECT pg_backend_pid()").expect("served"), pid);
}

#[test]
fn a_backend_keeps_so_many_statements() {
    postgres().create_database("keys_statements");
    let qcp = Qcp::start(
        "pool: {size: 1, max_statements: 5}\ndatabases: {keys_more: {dbname: keys_statements, pool: {max_statements: 9}}}\n",
        1,
    );
    for (database, expected) in [("keys_statements", "5"), ("keys_more", "9")] {
        let mut client = client(&qcp, database);
        for number in 0..30 {
            client.send(&message(b'P', format!("s{number}\0SELECT {number}\0\0\0").as_bytes()));
            client.send(&message(b'B', format!("\0s{number}\0\0\0\0\0\0\0").as_bytes()));
            client.send(&message(b'E', b"\0\0\0\0\0"));
            client.send(&message(b'S', b""));
            assert!(client.receive_until_ready().iter().all(|reply| reply.tag != b'E'));
        }
        assert_eq!(client.query("SELECT count(*) FROM pg_prepared_statements").expect("served"), [expected]);
    }
}

#[test]
fn slow_transactions_are_logged_without_their_constants() {
    postgres().create_database("keys_slow");
    // With `preserve` the next request comes while the server is asked what the last one has changed.
    for state in ["none", "preserve"] {
        slow_transactions_are_logged(state);
    }
}

fn slow_transactions_are_logged(state: &str) {
    let own = "users: {nobody: {slow_query: 0s}}\ndatabases: {keys_quick: {dbname: keys_slow, slow_query: 0s}}";
    let qcp = Qcp::start(&format!("session_state: {state}\nslow_query: 300ms\n{own}\n"), 1);
    let mut one = client(&qcp, "keys_slow");
    one.query("SELECT 'quick secret'").expect("served");
    one.query("SELECT pg_sleep(0.35), 'simple secret' /* said secret */").expect("served");
    one.query("BEGIN").expect("served");
    one.query("SELECT 'first secret'").expect("served");
    std::thread::sleep(Duration::from_millis(350));
    one.query("COMMIT").expect("served");
    // Prepared before, and then bound.
    one.send(&message(b'P', b"named\0SELECT pg_sleep($1), 'prepared secret'\0\0\0"));
    one.send(&message(b'S', b""));
    one.receive_until_ready();
    one.send(&message(b'B', b"\0named\0\0\0\0\x01\0\0\0\x030.4\0\0"));
    one.send(&message(b'E', b"\0\0\0\0\0"));
    one.send(&message(b'S', b""));
    one.receive_until_ready();
    // A long one is cut.
    let long = format!("SELECT pg_sleep(0.35), '{}', 2", "long secret ".repeat(500));
    one.query(&long).expect("served");
    client(&qcp, "keys_quick").query("SELECT pg_sleep(0.35), 5").expect("served");
    let log = qcp.log();
    let slow: Vec<&str> = log.lines().filter_map(|line| line.split_once(" slow: ").map(|(_, said)| said)).collect();
    assert_eq!(slow.len(), 4, "{log}");
    assert!(slow[0].contains("pool keys_slow/postgres at 127.0.0.1:"), "{}", slow[0]);
    assert!(slow[0].contains(", client 127.0.0.1:"), "{}", slow[0]);
    assert!(slow[0].ends_with(": SELECT pg_sleep(?), ?"), "{}", slow[0]);
    assert!(slow[1].ends_with(": BEGIN; SELECT ?; COMMIT"), "{}", slow[1]);
    assert!(slow[2].ends_with(": SELECT pg_sleep($1), ?"), "{}", slow[2]);
    assert!(slow[3].ends_with(": SELECT pg_sleep(?), ... (cut)"), "{}", slow[3]);
    let took: u64 = slow[0].split(' ').next().and_then(|ms| ms.parse().ok()).expect("a number");
    assert!((350..5000).contains(&took), "{took}");
    assert!(!log.contains("secret"), "{log}");
}

#[test]
fn who_waits_long_is_told() {
    postgres().create_database("keys_notice");
    let qcp = Qcp::start("pool: {size: 1, queue_timeout: 20s}\nqueue_notice: 500ms\n", 1);
    let (mut holder, mut waiter) = (client(&qcp, "keys_notice"), client(&qcp, "keys_notice"));
    for _ in 0..2 {
        holder.query("BEGIN").expect("served");
        let asked = Instant::now();
        ask(&mut waiter, "SELECT 'served'");
        std::thread::sleep(Duration::from_millis(1600));
        holder.query("COMMIT").expect("served");
        let replies = waiter.receive_until_ready();
        let notices: Vec<_> = replies.iter().filter(|reply| reply.tag == b'N').collect();
        assert_eq!(notices.len(), 1, "once for each wait, after {:?}: {replies:?}", asked.elapsed());
        assert!(error_field(&notices[0].body, b'M').contains("pool keys_notice/postgres"), "{replies:?}");
        assert_eq!(error_field(&notices[0].body, b'S'), "NOTICE");
        assert_eq!(replies[0].tag, b'N');
        assert!(replies.iter().any(|reply| reply.tag == b'D' && reply.body.ends_with(b"served")));
    }
    // Who need not wait, or not for long, hears nothing.
    ask(&mut waiter, "SELECT 1");
    assert!(waiter.receive_until_ready().iter().all(|reply| reply.tag != b'N'));
    qcp.reload("pool: {size: 1, queue_timeout: 20s}\nqueue_notice: 0s\n");
    holder.query("BEGIN").expect("served");
    ask(&mut waiter, "SELECT 1");
    std::thread::sleep(Duration::from_millis(1200));
    holder.query("COMMIT").expect("served");
    assert!(waiter.receive_until_ready().iter().all(|reply| reply.tag != b'N'));
}

/// The TCP sockets of a process, as descriptors of this one.
fn sockets_of(pid: u32) -> Vec<OwnedFd> {
    // SAFETY: both calls take plain numbers; what they return is a new descriptor of ours, or an error.
    let own = |number: i64| (number >= 0).then(|| unsafe { OwnedFd::from_raw_fd(number as i32) });
    let process = own(unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) }).expect("the process is there");
    let mut sockets = Vec::new();
    for entry in std::fs::read_dir(format!("/proc/{pid}/fd")).expect("it is ours").flatten() {
        let number: i32 = entry.file_name().to_string_lossy().parse().expect("a number");
        let is_socket = std::fs::read_link(entry.path()).is_ok_and(|to| to.to_string_lossy().starts_with("socket:"));
        if is_socket {
            let call = unsafe { libc::syscall(libc::SYS_pidfd_getfd, process.as_raw_fd(), number, 0) };
            sockets.extend(own(call));
        }
    }
    sockets.retain(|socket| getsockopt(socket, sockopt::TcpKeepIdle).is_ok());
    sockets
}

#[test]
fn tcp_is_told_when_a_peer_is_gone() {
    postgres().create_database("keys_tcp");
    let qcp = Qcp::start("tcp: {keepalive: 42s, user_timeout: 77s, backlog: 33}\n", 2);
    let mut client = client(&qcp, "keys_tcp");
    client.query("SELECT 1").expect("served");
    let sockets = sockets_of(qcp.pid());
    // Two listeners, the client and the backend at the least.
    assert!(sockets.len() >= 4, "{}", sockets.len());
    for socket in &sockets {
        assert!(getsockopt(socket, sockopt::KeepAlive).expect("a socket"));
        assert_eq!(getsockopt(socket, sockopt::TcpKeepIdle).expect("a socket"), 42);
        assert_eq!(getsockopt(socket, sockopt::TcpKeepInterval).expect("a socket"), 7);
        assert_eq!(getsockopt(socket, sockopt::TcpUserTimeout).expect("a socket"), 77_000);
    }
    let port = format!(":{}", qcp.tcp().port);
    let listening = Program::new("ss").args(["-ltnH", "sport", "=", &port]).finish().success();
    assert!(listening.lines().count() == 2, "{listening}");
    for line in listening.lines() {
        assert_eq!(line.split_whitespace().nth(2), Some("33"), "{listening}");
    }
    // It cannot be changed while qcp runs, and that is said.
    assert!(qcp.reload("tcp: {keepalive: 43s}\n").contains("tcp.keepalive: 42s -> 43s (needs a restart)"));
    let quiet = Qcp::start("tcp: {keepalive: 0s}\n", 1);
    let mut client = self::client(&quiet, "keys_tcp");
    client.query("SELECT 1").expect("served");
    for socket in sockets_of(quiet.pid()) {
        assert!(getsockopt(&socket, sockopt::KeepAlive).expect("a socket"), "the system's own");
        assert_ne!(getsockopt(&socket, sockopt::TcpKeepIdle).expect("a socket"), 60);
        assert_eq!(getsockopt(&socket, sockopt::TcpUserTimeout).expect("a socket"), 0);
    }
}

fn pids(database: &str) -> Vec<String> {
    let asked = "SELECT pid FROM pg_stat_activity WHERE backend_type = 'client backend' AND datname = ";
    let said = postgres().execute("postgres", &format!("{asked}'{database}' ORDER BY pid"));
    said.lines().map(str::to_owned).collect()
}

#[test]
fn backends_are_kept_and_closed_by_their_times() {
    let server = postgres();
    server.create_database("keys_times");
    let qcp = Qcp::start("pool: {size: 4, min_size: 2, idle_timeout: 500ms}\n", 1);
    let mut clients: Vec<RawClient> = (0..4).map(|_| client(&qcp, "keys_times")).collect();
    for client in &mut clients {
        client.query("BEGIN").expect("a place for each");
    }
    assert_eq!(pids("keys_times").len(), 4);
    for client in &mut clients {
        client.query("COMMIT").expect("served");
    }
    // idle_timeout takes what is above min_size, and no more.
    wait_until("two are closed", Duration::from_secs(5), || pids("keys_times").len() == 2);
    std::thread::sleep(Duration::from_millis(1200));
    let kept = pids("keys_times");
    assert_eq!(kept.len(), 2);
    // min_size is filled again, though nobody asks for anything.
    server.execute("postgres", &format!("SELECT pg_terminate_backend({})", kept[0]));
    wait_until("there are two again", Duration::from_secs(5), || {
        let now = pids("keys_times");
        now.len() == 2 && !now.contains(&kept[0])
    });
    // lifetime ends both, but not the one that is lent.
    let holder = clients[0].query("BEGIN; SELECT pg_backend_pid()").expect("served").remove(0);
    let before = pids("keys_times");
    qcp.reload("pool: {size: 4, min_size: 2, lifetime: 1s}\n");
    wait_until("the idle one is another", Duration::from_secs(5), || {
        let now = pids("keys_times");
        now.contains(&holder) && now.len() == 2 && now != before
    });
    clients[0].query("COMMIT").expect("it kept its own");
    wait_until("so is the other", Duration::from_secs(5), || !pids("keys_times").contains(&holder));
}

#[test]
fn the_log_says_as_much_as_its_level() {
    postgres().create_database("keys_level");
    let said = |level: &str| {
        let qcp = Qcp::start(&format!("log_level: {level}\npool: {{size: 1}}\n"), 1);
        client(&qcp, "keys_level").query("SELECT 1").expect("served");
        assert!(!qcp.control(&["reload"]).success().is_empty());
        let log = qcp.log();
        ["INFO", "DEBUG", "TRACE"].map(|word| log.contains(&format!(" {word} ")))
    };
    assert_eq!(said("Error"), [false, false, false]);
    assert!(matches!(said("Info"), [true, false, false]));
    let qcp = Qcp::start("log_level: Off\n", 1);
    let before = qcp.log();
    qcp.reload("log_level: Info\n");
    qcp.control(&["reload"]).success();
    assert!(before.is_empty() && qcp.log().contains("reloaded"), "it changes while it runs: {}", qcp.log());
}

#[test]
fn servers_are_taken_in_turn() {
    let server = postgres();
    server.create_database("keys_turn");
    // One server by two names.
    let port = server.tcp().port;
    let both = format!("servers: [\"127.0.0.1:{port}\", \"localhost:{port}\"]\nroute: any\n");
    let counts = |schedule: &str| {
        let qcp = Qcp::start(&format!("{both}pool: {{size: 8, schedule: {schedule}}}\n"), 1);
        let mut clients: Vec<RawClient> = (0..8).map(|_| client(&qcp, "keys_turn")).collect();
        for client in &mut clients {
            client.query("BEGIN").expect("a place for each");
        }
        let json = qcp.control(&["show", "backends", "--json"]).success();
        let rows: serde_json::Value = serde_json::from_str(&json).expect("it is JSON");
        let rows = rows.as_array().expect("rows");
        let of = |host: &str| {
            let is_linked = |row: &&serde_json::Value| row["state"] == "linked";
            let is_there =
                |row: &&serde_json::Value| row["server"].as_str().is_some_and(|server| server.starts_with(host));
            rows.iter().filter(is_linked).filter(is_there).count()
        };
        (of("127.0.0.1"), of("localhost"))
    };
    assert_eq!(counts("round-robin"), (4, 4));
    assert_eq!(counts("load-balancing"), (4, 4));
    let (one, other) = counts("random");
    assert_eq!(one + other, 8);
}

#[test]
fn attempts_are_as_far_apart_as_is_said() {
    // Accepts, and closes at once: each attempt is seen.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("it is bound").to_string();
    let attempts = std::sync::Arc::new(std::sync::Mutex::new(Vec::new()));
    let seen = attempts.clone();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            seen.lock().expect("nobody panics").push(Instant::now());
            drop(stream);
        }
    });
    let yaml =
        "reconnect: {min_backoff: 200ms, max_backoff: 600ms}\npool: {queue_timeout: 20s}\nauth: {method: trust}\n";
    let qcp = super::support::pooler::Setup::new(yaml).server(&address).start();
    let mut waiting = RawClient::connect(&qcp.tcp());
    waiting.send(&super::support::raw::startup(
        super::support::raw::PROTOCOL_3_0,
        &[("user", "joe"), ("database", "none")],
    ));
    waiting.send(&message(b'Q', &zero_ended("SELECT 1")));
    std::thread::sleep(Duration::from_secs(4));
    let attempts = attempts.lock().expect("nobody panics").clone();
    let pauses: Vec<u128> = attempts.windows(2).map(|pair| (pair[1] - pair[0]).as_millis()).collect();
    // With jitter: none before half of the first pause, none long after the last.
    assert!(pauses.len() >= 4, "{pauses:?}");
    assert!(pauses.iter().all(|pause| (90..2000).contains(pause)), "{pauses:?}");
    assert!(pauses.len() <= 30, "{pauses:?}");
}

#[test]
fn what_holds_for_a_database_or_a_user_goes_before_the_rest() {
    let server = postgres();
    server.create_database("keys_own");
    let yaml = "session_state: none\nslow_query: 0s\npool: {size: 1}\n\
                databases: {keys_kept: {dbname: keys_own, session_state: preserve, transparency: strict}, keys_own: {}, \
                keys_logged: {dbname: keys_own, slow_query: 50ms}}\n\
                users: {trust_user: {session_state: preserve, transparency: fast, slow_query: 50ms, relay_mode: Session}}\n";
    let qcp = Qcp::start(yaml, 1);
    // Whether a setting goes with its client, where another has changed it meanwhile.
    let is_kept = |user: &str, database: &str| {
        let mut one = RawClient::login(&qcp.tcp(), user, database);
        one.query("SET work_mem = '7MB'").expect("served");
        if user == SUPERUSER {
            let mut other = RawClient::login(&qcp.tcp(), user, database);
            other.query("SET work_mem = '9MB'").expect("served");
        }
        one.query("SHOW work_mem").expect("served") == ["7MB"]
    };
    assert!(is_kept(SUPERUSER, "keys_kept"));
    assert!(!is_kept(SUPERUSER, "keys_own"));
    assert!(is_kept("trust_user", "keys_own"), "the user goes before the database");
    let slow = |user: &str, database: &str| {
        let before = qcp.log().matches(" slow: ").count();
        RawClient::login(&qcp.tcp(), user, database).query("SELECT pg_sleep(0.1)").expect("served");
        qcp.log().matches(" slow: ").count() - before
    };
    assert_eq!(
        (slow(SUPERUSER, "keys_own"), slow(SUPERUSER, "keys_logged"), slow("trust_user", "keys_own")),
        (0, 1, 1)
    );
}
