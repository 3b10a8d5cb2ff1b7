//! Servers that die, stop, restart, are full or refuse: clients are told, nothing is done twice, and all goes on when
//! the server does.

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use super::support::door::{Door, Manner};
use super::support::pooler::{Qcp, Setup};
use super::support::postgres::{SUPERUSER, postgres};
use super::support::raw::{
    Message, PATIENCE, PROTOCOL_3_0, RawClient, Received, error_field, message, startup, zero_ended,
};
use super::support::server::Server;
use super::support::wait_until;

/// `reconnect.max_backoff`, and a login.
const BACK: Duration = Duration::from_secs(6);

fn start(server: &Server, yaml: &str) -> Qcp {
    Setup::new(yaml).server(&server.name()).start()
}

fn client(qcp: &Qcp) -> RawClient {
    RawClient::login(&qcp.tcp(), SUPERUSER, "postgres")
}

fn query(text: &str) -> Vec<u8> {
    message(b'Q', &zero_ended(text))
}

/// The client gets a FATAL error, and then the end. Gives its SQLSTATE and text.
fn last_words(client: &mut RawClient) -> (String, String) {
    let mut words = None;
    loop {
        match client.receive(PATIENCE) {
            Received::Message(Message { tag: b'E', body }) => {
                assert_eq!(error_field(&body, b'V'), "FATAL");
                assert!(words.is_none(), "one error is enough");
                words = Some((error_field(&body, b'C'), error_field(&body, b'M')));
            }
            Received::Message(_) => {}
            Received::Closed => return words.expect("never a bare disconnect"),
            Received::Quiet => panic!("neither an answer nor an error"),
        }
    }
}

fn check_goes_on(client: &mut RawClient, answer: &str) {
    let begun = Instant::now();
    let said = client.query(&format!("SELECT '{answer}'"));
    assert_eq!(said.expect("the server is back"), [answer]);
    assert!(begun.elapsed() < BACK, "{:?}", begun.elapsed());
}

fn count_lines(qcp: &Qcp, text: &str) -> usize {
    qcp.log().lines().filter(|line| line.contains(text)).count()
}

#[test]
fn a_killed_backend_is_reported_and_replaced() {
    let server = Server::start(&[]);
    server.execute("postgres", "CREATE TABLE kept (n int)");
    let qcp = start(&server, "pool: {size: 2}\n");
    let (mut victim, mut idle) = (client(&qcp), client(&qcp));
    let pid: u32 = victim.query("BEGIN; INSERT INTO kept VALUES (1); SELECT pg_backend_pid()").expect("it answers")[0]
        .parse()
        .expect("a number");
    server.signal(pid, Signal::SIGKILL);
    victim.send(&query("COMMIT"));
    let (code, text) = last_words(&mut victim);
    assert!(["08006", "57P02"].contains(&code.as_str()), "{code}: {text}");
    server.wait_ready();
    check_goes_on(&mut idle, "replaced");
    assert_eq!(idle.query("SELECT count(*) FROM kept").expect("it answers"), ["0"]);
}

#[test]
fn a_killed_server_is_waited_for() {
    let server = Server::start(&[]);
    let qcp = start(&server, "pool: {size: 2, queue_timeout: 20s}\n");
    let (mut busy, mut idle) = (client(&qcp), client(&qcp));
    busy.send(&query("SELECT pg_sleep(60)"));
    wait_until("the query runs", BACK, || server.count_activity("wait_event = 'PgSleep'") == 1);
    server.kill();
    let (code, text) = last_words(&mut busy);
    assert!(["08006", "57P01"].contains(&code.as_str()), "{code}: {text}");
    // Asked while nobody is there, answered when somebody is.
    idle.send(&query("SELECT 'waited'"));
    std::thread::sleep(Duration::from_millis(700));
    server.start_again();
    let begun = Instant::now();
    let replies = idle.receive_until_ready();
    assert!(replies.iter().any(|reply| reply.body.ends_with(b"waited")), "{replies:?}");
    assert!(begun.elapsed() < BACK, "{:?}", begun.elapsed());
}

#[test]
fn a_restart_costs_who_has_a_backend_and_nobody_else() {
    let server = Server::start(&[]);
    let qcp = start(&server, "pool: {size: 3}\n");
    let mut busy = client(&qcp);
    let mut idle: Vec<RawClient> = (0..10).map(|_| client(&qcp)).collect();
    busy.query("BEGIN").expect("it answers");
    server.stop("fast");
    assert_eq!(last_words(&mut busy).0, "57P01", "the server's own words");
    server.start_again();
    for (number, client) in idle.iter_mut().enumerate() {
        check_goes_on(client, &number.to_string());
    }
}

#[test]
fn one_line_is_logged_for_each_change() {
    let server = Server::start(&[]);
    let qcp = start(&server, "pool: {size: 4, queue_timeout: 30s}\n");
    let mut clients: Vec<RawClient> = (0..8).map(|_| client(&qcp)).collect();
    server.stop("fast");
    for client in &mut clients {
        client.send(&query("SELECT 'waited'"));
    }
    std::thread::sleep(Duration::from_secs(2));
    server.start_again();
    for client in &mut clients {
        let replies = client.receive_until_ready();
        assert!(replies.iter().any(|reply| reply.body.ends_with(b"waited")), "{replies:?}");
    }
    assert_eq!(count_lines(&qcp, "WARN"), 1, "{}", qcp.log());
    assert_eq!(count_lines(&qcp, "no server connection"), 1);
    assert_eq!(count_lines(&qcp, "connected again after "), 1);
}

#[test]
fn a_stopped_backend_holds_up_its_own_client_only() {
    let server = Server::start(&[]);
    let qcp = start(&server, "pool: {size: 2}\n");
    let (mut held, mut other) = (client(&qcp), client(&qcp));
    let pid = held.query("BEGIN; SELECT pg_backend_pid()").expect("it answers")[0].parse().expect("a number");
    server.signal(pid, Signal::SIGSTOP);
    held.send(&query("SELECT 'held'"));
    for _ in 0..20 {
        check_goes_on(&mut other, "unhurt");
    }
    assert_eq!(held.receive(Duration::from_millis(300)), Received::Quiet);
    server.signal(pid, Signal::SIGCONT);
    assert!(held.receive_until_ready().iter().any(|reply| reply.body.ends_with(b"held")));
}

#[test]
fn a_stopped_server_is_waited_for() {
    let server = Server::start(&[]);
    let qcp = start(&server, "pool: {size: 2, queue_timeout: 20s}\n");
    let mut clients: Vec<RawClient> = (0..6).map(|_| client(&qcp)).collect();
    check_goes_on(&mut clients[0], "warm");
    let processes = server.processes();
    for &pid in &processes {
        server.signal(pid, Signal::SIGSTOP);
    }
    for client in &mut clients {
        client.send(&query("SELECT 'waited'"));
    }
    std::thread::sleep(Duration::from_secs(2));
    for &pid in processes.iter().rev() {
        server.signal(pid, Signal::SIGCONT);
    }
    for client in &mut clients {
        let replies = client.receive_until_ready();
        assert!(replies.iter().any(|reply| reply.body.ends_with(b"waited")), "{replies:?}");
    }
}

#[test]
fn a_full_server_is_waited_for_and_then_speaks_for_itself() {
    let server = Server::start(&["max_connections=8"]);
    server.execute("postgres", "CREATE ROLE usual LOGIN");
    let qcp = start(&server, "session_state: none\npool: {size: 4, queue_timeout: 2s}\n");
    let login = || RawClient::login(&qcp.tcp(), "usual", "postgres");
    let (mut first, mut second) = (login(), login());
    server.execute("postgres", "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'usual'");
    wait_until("the pool is empty", BACK, || server.count_activity("usename = 'usual'") == 0);
    let mut strangers = Vec::new();
    loop {
        let mut stranger = RawClient::connect(&server.tcp());
        stranger.send(&startup(PROTOCOL_3_0, &[("user", "usual"), ("database", "postgres")]));
        if stranger.receive_until_ready().last().is_none_or(|last| last.tag != b'Z') {
            break;
        }
        strangers.push(stranger);
    }
    assert!(!strangers.is_empty());

    // For one of them a place becomes free in time.
    second.send(&query("SELECT 'waited'"));
    std::thread::sleep(Duration::from_millis(500));
    drop(strangers.pop());
    assert!(second.receive_until_ready().iter().any(|reply| reply.body.ends_with(b"waited")));

    // The other waits in vain: the pool's only backend is gone, and its place at the server taken.
    server.execute("postgres", "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'usual' AND client_port IN (SELECT client_port FROM pg_stat_activity WHERE query LIKE '%waited%')");
    let mut stranger = RawClient::connect(&server.tcp());
    stranger.send(&startup(PROTOCOL_3_0, &[("user", "usual"), ("database", "postgres")]));
    assert!(stranger.receive_until_ready().last().is_some_and(|last| last.tag == b'Z'));
    let begun = Instant::now();
    first.send(&query("SELECT 'in vain'"));
    let (code, text) = last_words(&mut first);
    assert_eq!(code, "53300");
    assert!(text.contains("remaining connection slots are reserved"), "the server's own words: {text}");
    assert!(begun.elapsed() >= Duration::from_millis(1900), "{:?}", begun.elapsed());
}

#[test]
fn a_server_that_starts_up_is_knocked_at_with_growing_pauses() {
    let server = postgres();
    let door = Door::before(server.tcp(), Manner::Open);
    let qcp = Setup::new("session_state: none\npool: {size: 8, queue_timeout: 20s}\n").server(&door.address()).start();
    let mut clients: Vec<RawClient> = (0..20).map(|_| client(&qcp)).collect();
    server.execute("postgres", "SELECT 1");
    // Those that the logins have brought are ended; the door is shut before.
    let text = "the database system is starting up";
    door.set(Manner::Refuse("57P03", text, Duration::from_millis(30)));
    let pid = clients[0].query("SELECT pg_backend_pid()").expect("it answers").remove(0);
    let ours = format!("pid IN (SELECT pid FROM pg_stat_activity WHERE client_addr IS NOT NULL AND pid = {pid})");
    server.execute("postgres", &format!("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE {ours}"));
    wait_until("it is gone", BACK, || server.count_activity(&ours) == 0);
    door.take_knocks();
    for client in &mut clients {
        client.send(&query("SELECT 'waited'"));
    }
    std::thread::sleep(Duration::from_secs(3));
    let knocks = door.take_knocks();
    // At 0, 100, 300, 700, 1500 ms and so on, four at a time.
    assert!((8..=28).contains(&knocks.len()), "{} knocks in 3 s", knocks.len());
    assert!(door.inside_most() <= 4, "{} logins at once", door.inside_most());
    door.set(Manner::Open);
    let begun = Instant::now();
    for client in &mut clients {
        let replies = client.receive_until_ready();
        assert!(replies.iter().any(|reply| reply.body.ends_with(b"waited")), "{replies:?}");
    }
    assert!(begun.elapsed() < BACK, "{:?}", begun.elapsed());
    assert_eq!(count_lines(&qcp, "no server connection"), 1, "{}", qcp.log());
    assert_eq!(count_lines(&qcp, "connected again after "), 1, "{}", qcp.log());
    let opened = door.take_knocks().len();
    assert!(opened <= 16, "{opened} connections for a pool of 8");
}

#[test]
fn a_server_that_starts_up_too_long_speaks_for_itself() {
    let text = "the database system is starting up";
    let refuse = Manner::Refuse("57P03", text, Duration::ZERO);
    let door = Door::before(postgres().tcp(), refuse);
    let qcp = Setup::new("auth: {method: trust}\npool: {size: 2, queue_timeout: 1s}\n").server(&door.address()).start();
    let mut waiter = RawClient::connect(&qcp.tcp());
    waiter.send(&startup(PROTOCOL_3_0, &[("user", SUPERUSER), ("database", "postgres")]));
    assert_eq!(last_words(&mut waiter), ("57P03".to_owned(), text.to_owned()));
}

#[test]
fn a_login_that_is_refused_later_is_passed_on_word_for_word() {
    let server = Server::start(&[]);
    server.execute("postgres", "CREATE ROLE usual LOGIN");
    let qcp = start(&server, "pool: {size: 2}\n");
    let mut clients: Vec<RawClient> = (0..4).map(|_| RawClient::login(&qcp.tcp(), "usual", "postgres")).collect();
    server.set_access("host all usual 127.0.0.1/32 reject");
    server.execute("postgres", "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'usual'");
    wait_until("the pool is empty", BACK, || server.count_activity("usename = 'usual'") == 0);
    let refusal = |address| {
        let mut direct = RawClient::connect(&address);
        direct.send(&startup(PROTOCOL_3_0, &[("user", "usual"), ("database", "postgres")]));
        last_words(&mut direct)
    };
    let expected = refusal(server.tcp());
    assert_eq!(expected.0, "28000");
    for client in &mut clients {
        client.send(&query("SELECT 1"));
    }
    for client in &mut clients {
        assert_eq!(last_words(client), expected);
    }
    assert_eq!(count_lines(&qcp, "WARN"), 1, "{}", qcp.log());
    // Logins are checked by the server again, although it let this user in without a question a moment ago.
    assert_eq!(refusal(qcp.tcp()), expected);
    server.set_access("host all usual 127.0.0.1/32 trust");
    let mut back = RawClient::login(&qcp.tcp(), "usual", "postgres");
    check_goes_on(&mut back, "let in again");
}
