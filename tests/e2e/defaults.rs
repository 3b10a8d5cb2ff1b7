//! Without an `auth` section: what a server sees of the logins that it checks, and what becomes of the pool. Who gets in
//! where the server trusts is in `logins` and `access`, TLS on both legs in `tls`.

use std::time::{Duration, Instant};

use super::support::pooler::Qcp;
use super::support::postgres::{SUPERUSER, postgres};
use super::support::programs::psql;
use super::support::raw::{PATIENCE, PROTOCOL_3_0, RawClient, Received, error_field, message, startup};
use super::support::wait_until;

/// In the clear, so that a login by hand is two messages.
const USER: &str = "password_user";
const PASSWORD: &[u8] = b"in the clear\0";

fn log_in(qcp: &Qcp, database: &str) -> RawClient {
    let mut client = RawClient::connect(&qcp.tcp());
    client.send(&startup(PROTOCOL_3_0, &[("user", USER), ("database", database)]));
    client.send(&message(b'p', PASSWORD));
    let said = client.receive_until_ready();
    assert!(said.last().is_some_and(|last| last.tag == b'Z'), "{said:?}\n{}", qcp.log());
    client
}

#[test]
fn a_login_brings_a_backend_and_a_full_pool_takes_no_more() {
    postgres().create_database("defaults_full");
    let qcp = Qcp::start("pool: {size: 2}\nauth: {check_connections: 3}\n", 1);
    let mut clients: Vec<RawClient> = (0..2).map(|_| log_in(&qcp, "defaults_full")).collect();
    assert_eq!(postgres().count_backends("defaults_full"), 2, "each login has brought one");
    for client in &mut clients {
        client.query("BEGIN").expect("it has a backend");
    }
    // The pool is in use: these are checked beyond it, so many at a time, and what checked them is closed.
    let most = std::thread::scope(|scope| {
        let logins: Vec<_> = (0..16).map(|_| scope.spawn(|| log_in(&qcp, "defaults_full"))).collect();
        let mut most = 0;
        while logins.iter().any(|login| !login.is_finished()) {
            // A server process ends a moment after its connection: what is too many must be so twice.
            let count = postgres().count_backends("defaults_full");
            if count > most {
                std::thread::sleep(Duration::from_millis(20));
                most = most.max(count.min(postgres().count_backends("defaults_full")));
            }
        }
        let entered: Vec<_> = logins.into_iter().map(|login| login.join().expect("it is let in")).collect();
        assert_eq!(entered.len(), 16);
        most
    });
    assert!(most <= 2 + 3, "{most} server connections for a pool of 2 and 3 to check logins");
    wait_until("the others are closed", Duration::from_secs(5), || postgres().count_backends("defaults_full") == 2);
}

#[test]
fn a_server_that_trusts_is_asked_once() {
    postgres().create_database("defaults_trust");
    let qcp = Qcp::start("pool: {size: 3}\n", 1);
    let enter = || {
        let mut client = RawClient::connect(&qcp.tcp());
        client.send(&startup(PROTOCOL_3_0, &[("user", SUPERUSER), ("database", "defaults_trust")]));
        let said = client.receive_until_ready();
        assert!(said.last().is_some_and(|last| last.tag == b'Z'), "{said:?}");
        client
    };
    // Together, and then one after the other.
    let together: Vec<_> = std::thread::scope(|scope| {
        (0..20).map(|_| scope.spawn(enter)).collect::<Vec<_>>().into_iter().map(|one| one.join()).collect()
    });
    assert!(together.iter().all(|login| login.is_ok()));
    for _ in 0..20 {
        drop(enter());
    }
    // The server counts the sessions that it has begun.
    let count = || {
        let statement = "SELECT sessions FROM pg_stat_database WHERE datname = 'defaults_trust'";
        postgres().execute("postgres", statement).trim().parse::<u32>().expect("a number")
    };
    wait_until("the server has counted", Duration::from_secs(10), || count() >= 1);
    std::thread::sleep(Duration::from_millis(1500));
    assert!(count() <= 3, "{} server logins for 40 of clients", count());
}

#[test]
fn a_pool_that_cannot_be_refilled_keeps_its_last_backend() {
    postgres().create_database("defaults_last");
    let qcp = Qcp::start("pool: {size: 2, idle_timeout: 300ms, lifetime: 300ms}\n", 1);
    let mut client = log_in(&qcp, "defaults_last");
    let mut other = log_in(&qcp, "defaults_last");
    assert_eq!(client.query("SELECT 1"), Ok(vec!["1".to_owned()]));
    let since = Instant::now();
    while since.elapsed() < Duration::from_secs(2) {
        assert!(postgres().count_backends("defaults_last") >= 1, "the last one is not closed");
        std::thread::sleep(Duration::from_millis(50));
    }
    assert_eq!(postgres().count_backends("defaults_last"), 1, "what is too old goes, but the last");
    assert_eq!(client.query("SELECT 2"), Ok(vec!["2".to_owned()]));
    // Where it is lost, the clients are told, so that they log in again.
    postgres()
        .execute("postgres", "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = 'defaults_last'");
    wait_until("it is gone", Duration::from_secs(5), || postgres().count_backends("defaults_last") == 0);
    for client in [&mut client, &mut other] {
        client.send(&message(b'Q', b"SELECT 3\0"));
        let Received::Message(refusal) = client.receive(PATIENCE) else { panic!("no answer\n{}", qcp.log()) };
        assert_eq!((refusal.tag, error_field(&refusal.body, b'C').as_str()), (b'E', "08006"), "{refusal:?}");
        let text = error_field(&refusal.body, b'M');
        assert!(text.contains("asks a password that qcp does not keep"), "{text}");
        assert!(error_field(&refusal.body, b'H').contains("Connect again"), "{refusal:?}");
        assert_eq!(client.receive(PATIENCE), Received::Closed);
    }
    assert_eq!(log_in(&qcp, "defaults_last").query("SELECT 4"), Ok(vec!["4".to_owned()]));
}

/// Where `auth` supplies a password, none of that holds.
#[test]
fn a_pool_that_can_be_refilled_is() {
    postgres().create_database("defaults_refill");
    let yaml = "pool: {size: 2, idle_timeout: 300ms}\nauth: {method: server, server_password: in the clear}\n";
    let qcp = Qcp::start(yaml, 1);
    let mut client = log_in(&qcp, "defaults_refill");
    wait_until("the idle backend is closed", Duration::from_secs(5), || {
        postgres().count_backends("defaults_refill") == 0
    });
    assert_eq!(client.query("SELECT 1"), Ok(vec!["1".to_owned()]));
    // The client's own password still counts, not the one that QCP has.
    let wrong = psql(&qcp.tcp(), USER, "defaults_refill").args(["-XAtw", "-c", "SELECT 1"]).env("PGPASSWORD", "guess");
    assert!(wrong.finish().failure().contains("password authentication failed"));
}

/// A client is greeted with what the server makes of its wishes, by the login that tries them and by the next, which only believes.
#[test]
fn a_greeting_has_the_servers_values() {
    let qcp = Qcp::start("pool: {size: 1}\n", 1);
    for _ in 0..2 {
        let mut client = RawClient::connect(&qcp.tcp());
        let options = "-c default_transaction_read_only=true -c datestyle=german";
        client.send(&startup(PROTOCOL_3_0, &[("user", SUPERUSER), ("database", "postgres"), ("options", options)]));
        let greeting = client.receive_until_ready();
        for status in [&b"default_transaction_read_only\0on\0"[..], b"DateStyle\0German, DMY\0"] {
            assert!(greeting.iter().any(|message| message.tag == b'S' && message.body == status), "{greeting:?}");
        }
    }
}
