//! Start and end: what stands in the way of a start is named, and every end is a clean one.

use std::net::TcpStream;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use super::support::pooler::{Qcp, Setup, control};
use super::support::postgres::{SUPERUSER, postgres};
use super::support::raw::{PATIENCE, RawClient, Received, message, zero_ended};
use super::support::wait_until;

fn client(qcp: &Qcp, database: &str) -> RawClient {
    RawClient::login(&qcp.tcp(), SUPERUSER, database)
}

fn refuses_clients(qcp: &Qcp) -> bool {
    TcpStream::connect(("127.0.0.1", qcp.tcp().port)).is_err()
}

/// The last words to a client are a FATAL error, or none; then the connection ends.
fn check_sent_away(client: &mut RawClient) {
    loop {
        match client.receive(PATIENCE) {
            Received::Message(_) => {}
            Received::Closed => return,
            Received::Quiet => panic!("the client was forgotten"),
        }
    }
}

/// Ends the pooler by `act`, with an idle client and one in a transaction, which is let finish.
fn check_drains(database: &str, act: impl FnOnce(&Qcp) + Send) {
    let server = postgres();
    server.create_database(database);
    server.execute(database, "CREATE TABLE kept (n int)");
    let mut qcp = Qcp::start("pool: {size: 2}\nshutdown_timeout: 20s\n", 2);
    let mut idle = client(&qcp, database);
    let mut busy = client(&qcp, database);
    busy.query("BEGIN").expect("the server answers");
    std::thread::scope(|scope| {
        scope.spawn(|| act(&qcp));
        wait_until("it stops accepting", Duration::from_secs(5), || refuses_clients(&qcp));
        busy.query("INSERT INTO kept VALUES (1)").expect("a transaction is let finish");
        busy.query("COMMIT").expect("a transaction is let finish");
        check_sent_away(&mut busy);
        check_sent_away(&mut idle);
    });
    assert!(qcp.wait().success(), "{}", qcp.log());
    assert_eq!(server.execute(database, "SELECT count(*) FROM kept").trim(), "1");
    wait_until("its backends end", Duration::from_secs(5), || server.count_backends(database) == 0);
    assert!(!qcp.control_socket().exists(), "the control socket is removed");
}

#[test]
fn quit_drains() {
    check_drains("lifecycle_quit", |qcp| {
        qcp.control(&["quit"]).success();
    });
}

#[test]
fn sigterm_drains() {
    check_drains("lifecycle_term", |qcp| qcp.signal(Signal::SIGTERM));
}

/// Ends the pooler by `act` while a query runs that would take far longer.
fn check_ends_now(database: &str, act: impl FnOnce(&Qcp)) {
    let server = postgres();
    server.create_database(database);
    let mut qcp = Qcp::start("pool: {size: 2}\n", 2);
    let mut busy = client(&qcp, database);
    busy.send(&message(b'Q', &zero_ended("SELECT pg_sleep(60)")));
    let asleep = format!("datname = '{database}' AND state = 'active'");
    wait_until("the query runs", Duration::from_secs(5), || server.count_activity(&asleep) == 1);
    let begun = Instant::now();
    act(&qcp);
    assert!(qcp.wait().success(), "{}", qcp.log());
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    check_sent_away(&mut busy);
}

#[test]
fn quit_now_does_not_wait() {
    check_ends_now("lifecycle_now", |qcp| {
        qcp.control(&["quit", "--now"]).success();
    });
}

#[test]
fn sigint_does_not_wait() {
    check_ends_now("lifecycle_int", |qcp| qcp.signal(Signal::SIGINT));
}

#[test]
fn a_second_signal_ends_a_drain() {
    check_ends_now("lifecycle_second", |qcp| {
        qcp.signal(Signal::SIGTERM);
        wait_until("it drains", Duration::from_secs(5), || refuses_clients(qcp));
        qcp.signal(Signal::SIGINT);
    });
}

#[test]
fn a_drain_ends_at_its_timeout() {
    let server = postgres();
    server.create_database("lifecycle_timeout");
    let mut qcp = Qcp::start("pool: {size: 2}\nshutdown_timeout: 1s\n", 1);
    let mut holder = client(&qcp, "lifecycle_timeout");
    holder.query("BEGIN").expect("the server answers");
    let begun = Instant::now();
    qcp.signal(Signal::SIGTERM);
    assert!(qcp.wait().success(), "{}", qcp.log());
    assert!(begun.elapsed() >= Duration::from_millis(900), "{:?}", begun.elapsed());
    check_sent_away(&mut holder);
}

#[test]
fn an_idle_pooler_quits_at_once() {
    for cores in [1, 2] {
        let mut qcp = Qcp::start("pool: {size: 2}\n", cores);
        let begun = Instant::now();
        qcp.control(&["quit"]).success();
        assert!(qcp.wait().success(), "{}", qcp.log());
        assert!(begun.elapsed() < Duration::from_secs(3), "{:?}", begun.elapsed());
    }
}

#[test]
fn a_taken_port_is_named() {
    let first = Qcp::start("", 1);
    let port = first.tcp().port;
    let said = Setup::new(&format!("listening_address: 127.0.0.1:{port}\n")).refused();
    assert!(said.contains(&format!("127.0.0.1:{port}")) && said.contains("in use"), "{said}");
    assert!(RawClient::login(&first.tcp(), SUPERUSER, "postgres").query("SELECT 1").is_ok(), "the first is unharmed");
}

#[test]
fn a_control_socket_that_somebody_answers_is_not_taken_away() {
    let first = Qcp::start("", 1);
    let socket = first.control_socket();
    let said = Setup::new(&format!("control: {{socket: {}}}\n", socket.display())).refused();
    assert!(said.contains(&socket.display().to_string()), "{said}");
    first.control(&["status"]).success();
}

#[test]
fn a_control_socket_left_behind_is_taken_over() {
    let mut first = Qcp::start("", 1);
    let socket = first.control_socket();
    first.signal(Signal::SIGKILL);
    first.wait();
    assert!(socket.exists(), "nobody was there to remove it");
    assert_eq!(control(&socket, &["status"]).status.code(), Some(3), "nobody there");
    let second = Setup::new(&format!("control: {{socket: {}}}\n", socket.display())).start();
    control(&socket, &["status"]).success();
    drop(second);
}

#[test]
fn the_control_program_reports() {
    let qcp = Qcp::start("pool: {size: 2}\n", 2);
    let mut client = client(&qcp, "postgres");
    client.query("SELECT 1").expect("the server answers");
    assert!(!qcp.control(&["status"]).success().is_empty());
    for report in ["memory", "pools", "clients", "backends", "shards"] {
        assert!(!qcp.control(&["show", report]).success().is_empty(), "{report}");
        let json = qcp.control(&["show", report, "--json"]).success();
        serde_json::from_str::<serde_json::Value>(&json).unwrap_or_else(|error| panic!("{report}: {error}: {json}"));
    }
    let wrong = qcp.control(&["show", "nonsense"]);
    assert_eq!(wrong.status.code(), Some(2), "{wrong:?}");
}

#[test]
fn a_configuration_is_checked_against_the_server() {
    Setup::new("").check().success();
    let nowhere = super::support::free_port();
    let said = Setup::new("").server(&format!("127.0.0.1:{nowhere}")).check();
    assert!(!said.status.success(), "{said:?}");
    assert!(format!("{}{}", said.stdout, said.stderr).contains(&nowhere.to_string()), "{said:?}");
    let said = Setup::new("no_such_key: 1\n").check().failure();
    assert!(said.contains("no_such_key"), "{said}");
}
