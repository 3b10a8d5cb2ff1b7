//! Each timeout of `limits` and `pool`, by its effect.

use std::time::{Duration, Instant};

use super::support::door::{Door, Manner};
use super::support::pooler::{Qcp, Setup};
use super::support::postgres::{SUPERUSER, postgres};
use super::support::raw::{CANCEL_REQUEST, PATIENCE, RawClient, Received, error_field, message, untagged, zero_ended};
use super::support::wait_until;

fn client(qcp: &Qcp, database: &str) -> RawClient {
    RawClient::login(&qcp.tcp(), SUPERUSER, database)
}

fn error_of(client: &mut RawClient) -> (String, String) {
    let replies = client.receive_until_ready();
    let error = replies.iter().find(|reply| reply.tag == b'E').unwrap_or_else(|| panic!("no error: {replies:?}"));
    (error_field(&error.body, b'V'), error_field(&error.body, b'C'))
}

#[test]
fn a_query_that_lasts_too_long_is_cancelled_and_its_client_stays() {
    postgres().create_database("timeouts_query");
    let qcp = Qcp::start("limits: {query_timeout: 500ms}\npool: {size: 1}\n", 1);
    let mut client = client(&qcp, "timeouts_query");
    let before = client.query("SELECT pg_backend_pid()").expect("served");
    let begun = Instant::now();
    let (code, text) = client.query("SELECT pg_sleep(30)").expect_err("cancelled");
    assert_eq!((code.as_str(), text.as_str()), ("57014", "canceling statement due to user request"));
    let took = begun.elapsed();
    assert!(took >= Duration::from_millis(450) && took < Duration::from_secs(3), "{took:?}");
    assert_eq!(client.query("SELECT pg_backend_pid()").expect("it stays, and its backend too"), before);
    // In a transaction: it fails, and is the client's to end.
    client.query("BEGIN").expect("served");
    assert_eq!(client.query("SELECT pg_sleep(30)").expect_err("cancelled").0, "57014");
    assert_eq!(client.query("SELECT 1").expect_err("the transaction has failed").0, "25P02");
    client.query("ROLLBACK").expect("served");
    // Many short ones are not one long one.
    for _ in 0..8 {
        client.query("SELECT pg_sleep(0.1)").expect("short");
    }
    // In the extended protocol.
    client.send(&message(b'P', b"\0SELECT pg_sleep(30)\0\0\0"));
    client.send(&message(b'B', b"\0\0\0\0\0\0\0\0"));
    client.send(&message(b'E', b"\0\0\0\0\0"));
    client.send(&message(b'S', b""));
    assert_eq!(error_of(&mut client), ("ERROR".to_owned(), "57014".to_owned()));
    assert_eq!(client.query("SELECT 1").expect("it stays"), ["1"]);
}

#[test]
fn a_user_may_have_another_timeout() {
    postgres().create_database("timeouts_user");
    let yaml = format!("limits: {{query_timeout: 300ms}}\nusers: {{{SUPERUSER}: {{limits: {{query_timeout: 0s}}}}}}\n");
    let qcp = Qcp::start(&yaml, 1);
    client(&qcp, "timeouts_user").query("SELECT pg_sleep(1.2)").expect("nothing is in its way");
}

#[test]
fn a_server_that_does_not_cancel_is_left() {
    let server = postgres();
    server.create_database("timeouts_deaf");
    let qcp = Qcp::start("limits: {query_timeout: 300ms, cancel_timeout: 1s}\n", 1);
    let mut client = client(&qcp, "timeouts_deaf");
    // It takes the cancel, and goes on.
    let deaf =
        "DO $$BEGIN LOOP BEGIN PERFORM pg_sleep(30); EXCEPTION WHEN query_canceled THEN NULL; END; END LOOP; END$$";
    client.send(&message(b'Q', &super::support::raw::zero_ended(deaf)));
    assert_eq!(error_of(&mut client), ("FATAL".to_owned(), "57014".to_owned()));
    server
        .execute("postgres", "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = 'timeouts_deaf'");
}

#[test]
fn a_transaction_that_nothing_is_asked_of_is_ended() {
    let server = postgres();
    server.create_database("timeouts_idle");
    let qcp = Qcp::start("limits: {idle_in_transaction_timeout: 500ms}\npool: {size: 1}\n", 1);
    let (mut holder, mut waiter) = (client(&qcp, "timeouts_idle"), client(&qcp, "timeouts_idle"));
    holder.query("BEGIN").expect("served");
    holder.query("CREATE TABLE t (x int)").expect("served");
    // At work, a transaction is not idle.
    holder.query("SELECT pg_sleep(1)").expect("served");
    assert_eq!(error_of(&mut holder), ("FATAL".to_owned(), "25P03".to_owned()));
    assert_eq!(waiter.query("SELECT to_regclass('t') IS NULL").expect("rolled back, and lent again"), ["t"]);
    std::thread::sleep(Duration::from_millis(900));
    assert_eq!(waiter.query("SELECT 1").expect("outside of a transaction nobody is closed"), ["1"]);
}

#[test]
fn a_transaction_that_lasts_too_long_is_ended() {
    postgres().create_database("timeouts_transaction");
    let qcp = Qcp::start("limits: {transaction_timeout: 700ms}\npool: {size: 1}\n", 1);
    let (mut holder, mut other) = (client(&qcp, "timeouts_transaction"), client(&qcp, "timeouts_transaction"));
    holder.query("BEGIN").expect("served");
    let begun = Instant::now();
    let ended = loop {
        std::thread::sleep(Duration::from_millis(50));
        holder.send(&message(b'Q', b"SELECT 1\0"));
        let replies = holder.receive_until_ready();
        if let Some(error) = replies.iter().find(|reply| reply.tag == b'E') {
            break error_field(&error.body, b'C');
        }
        assert!(begun.elapsed() < Duration::from_secs(5), "it goes on and on");
    };
    assert_eq!(ended, "25P04");
    for _ in 0..30 {
        assert_eq!(other.query("SELECT pg_sleep(0.05)").expect("each is a transaction of its own").len(), 1);
    }
}

#[test]
fn a_client_that_asks_for_nothing_is_closed() {
    postgres().create_database("timeouts_client");
    for mode in ["Smart", "Session"] {
        let qcp = Qcp::start(&format!("relay_mode: {mode}\nlimits: {{client_idle_timeout: 600ms}}\n"), 1);
        let (mut idle, mut busy) = (client(&qcp, "timeouts_client"), client(&qcp, "timeouts_client"));
        idle.query("SELECT 1").expect("served");
        busy.query("BEGIN").expect("served");
        let begun = Instant::now();
        assert_eq!(error_of(&mut idle), ("FATAL".to_owned(), "57P05".to_owned()));
        assert!(begun.elapsed() >= Duration::from_millis(500), "{:?}", begun.elapsed());
        assert_eq!(busy.query("SELECT 1").expect("a transaction is not idleness"), ["1"]);
    }
}

#[test]
fn an_idle_backend_that_the_network_has_swallowed_is_replaced() {
    let server = postgres();
    server.create_database("timeouts_probe");
    // One that is still asked what its client has changed is not idle.
    let yaml = "session_state: none\npool: {size: 1, keepalive_interval: 400ms, keepalive_timeout: 400ms}\n";
    let qcp = Qcp::start(yaml, 1);
    let mut client = client(&qcp, "timeouts_probe");
    let before = client.query("SELECT pg_backend_pid()").expect("served");
    // Asked again and again, one that answers is kept.
    let probes = || server.count_activity("datname = 'timeouts_probe' AND query = '' AND state = 'idle'");
    wait_until("it is asked", Duration::from_secs(5), || probes() == 1);
    std::thread::sleep(Duration::from_millis(1500));
    assert_eq!(client.query("SELECT pg_backend_pid()").expect("served"), before);
    // Stopped by a signal, it is as good as gone: the kernel still takes what it is sent.
    let pid: i32 = before[0].parse().expect("a process id");
    let pid = nix::unistd::Pid::from_raw(pid);
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGSTOP).expect("it is there");
    wait_until("it is given up", Duration::from_secs(5), || qcp.log().contains("could not be cleaned in time"));
    let after = client.query("SELECT pg_backend_pid()").expect("another is opened");
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGCONT).expect("it is there");
    assert_ne!(after, before);
}

/// It is sent when the question before the client's request is answered, and comes before the server has read that request.
#[test]
fn a_cancel_that_waited_and_came_too_early_is_sent_again() {
    const LONG: &str = "SELECT pg_sleep(20)";
    let database = "timeouts_cancel";
    postgres().create_database(database);
    let door = Door::before(postgres().tcp(), Manner::Open);
    let yaml = "relay_mode: Smart\nsession_state: preserve\npool: {size: 3}\n";
    let qcp = Setup::new(yaml).server(&door.address()).start();
    let simple = message(b'Q', &zero_ended(LONG));
    let extended = [
        message(b'P', &[b"\0", LONG.as_bytes(), b"\0\0\0"].concat()),
        message(b'B', &[0; 8]),
        message(b'E', &[0; 5]),
        message(b'S', &[]),
    ];
    for request in [simple, extended.concat()] {
        let (mut client, mut lock) = (client(&qcp, database), client(&qcp, database));
        lock.query("BEGIN; LOCK TABLE pg_catalog.pg_depend IN ACCESS EXCLUSIVE MODE").expect("served");
        // What it may have left behind is asked, which takes until the lock is gone.
        client.query("DO $$BEGIN NULL; END$$").expect("served");
        // By itself: with the request behind it in one piece, the door would hold both.
        let asked = || postgres().count_activity(&format!("datname = '{database}' AND wait_event_type = 'Lock'"));
        wait_until("it is asked", PATIENCE, || asked() == 1);
        door.hold_questions(LONG);
        client.send(&request);
        std::thread::sleep(Duration::from_millis(200));
        let mut cancel = RawClient::connect(&qcp.tcp());
        cancel.send(&untagged(CANCEL_REQUEST, &client.key));
        assert_eq!(cancel.receive(PATIENCE), Received::Closed);
        door.take_knocks();
        lock.query("COMMIT").expect("served");
        wait_until("it is sent", PATIENCE, || !door.take_knocks().is_empty());
        // And has come to the server, which does nothing for that backend's client yet.
        std::thread::sleep(Duration::from_millis(200));
        let begun = Instant::now();
        door.let_ask();
        assert_eq!(error_of(&mut client), ("ERROR".to_owned(), "57014".to_owned()));
        assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
        // And what comes behind it is not cancelled.
        assert_eq!(client.query("SELECT 'whole' FROM pg_sleep(1)").expect("served"), ["whole"]);
    }
}
