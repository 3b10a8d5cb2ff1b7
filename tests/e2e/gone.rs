//! Clients that vanish, in every state: what they leave is a backend that is clean or closed, and nothing else.

use std::time::Duration;

use super::support::pooler::Qcp;
use super::support::postgres::{SUPERUSER, postgres};
use super::support::raw::{PROTOCOL_3_0, RawClient, Received, message, startup, untagged, zero_ended};
use super::support::wait_until;

/// Longer than any of these takes; a query of a minute is not waited for.
const SOON: Duration = Duration::from_secs(3);

fn show(qcp: &Qcp, topic: &str) -> serde_json::Value {
    let text = qcp.control(&["show", topic, "--json"]).success();
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{topic}: {error}: {text}"))
}

fn chunks_in_use(qcp: &Qcp) -> u64 {
    show(qcp, "memory")["chunks_in_use"].as_u64().expect("a number")
}

fn query(text: &str) -> Vec<u8> {
    message(b'Q', &zero_ended(text))
}

/// Lets a client do something and vanish, several times over; then the pool of one is as it was, and clean.
fn check(database: &str, act: impl Fn(&Qcp, &mut RawClient)) {
    let server = postgres();
    server.create_database(database);
    server.execute(database, "CREATE TABLE kept (n int)");
    for mode in ["Smart", "Session"] {
        let qcp = Qcp::start(&format!("relay_mode: {mode}\npool: {{size: 1}}\n"), 1);
        let mut warm = RawClient::login(&qcp.tcp(), SUPERUSER, database);
        assert_eq!(warm.query("SELECT 1").expect("the server answers"), ["1"]);
        drop(warm);
        wait_until("the first client is forgotten", SOON, || {
            show(&qcp, "clients").as_array().is_some_and(Vec::is_empty)
        });
        let before = chunks_in_use(&qcp);
        for _ in 0..3 {
            let mut client = RawClient::login(&qcp.tcp(), SUPERUSER, database);
            act(&qcp, &mut client);
            drop(client);
            let unfinished = format!(
                "datname = '{database}' AND backend_type = 'client backend' AND (state <> 'idle' OR backend_xid IS NOT NULL)"
            );
            wait_until("nothing of it goes on at the server", SOON, || server.count_activity(&unfinished) == 0);
            wait_until("its slot is free", SOON, || show(&qcp, "clients").as_array().is_some_and(Vec::is_empty));
            wait_until("its backend is at rest", SOON, || {
                let backends = show(&qcp, "backends");
                backends.as_array().is_some_and(|rows| rows.iter().all(|row| row["state"] == "idle"))
            });
            assert!(server.count_backends(database) <= 1);
            wait_until("its chunks are free", SOON, || chunks_in_use(&qcp) <= before);
            for row in show(&qcp, "pools").as_array().expect("rows") {
                assert_eq!((&row["linked"], &row["waiting"], &row["cleaning"]), (&0.into(), &0.into(), &0.into()));
                assert_eq!(row["permits"], 1, "the place is there: {row}");
            }
            let mut next = RawClient::login(&qcp.tcp(), SUPERUSER, database);
            assert_eq!(next.query("SELECT count(*) FROM kept").expect("a clean backend"), ["0"]);
            assert_eq!(next.query("SELECT 'own'").expect("a clean backend"), ["own"]);
        }
    }
}

#[test]
fn with_half_a_startup_packet() {
    check("gone_startup", |qcp, _| {
        let mut other = RawClient::connect(&qcp.tcp());
        let packet = startup(PROTOCOL_3_0, &[("user", SUPERUSER), ("database", "gone_startup")]);
        other.send(&packet[..packet.len() - 5]);
    });
}

#[test]
fn with_half_a_header() {
    check("gone_header", |_, client| client.send(&query("SELECT 1")[..3]));
}

#[test]
fn with_half_a_message() {
    check("gone_message", |_, client| {
        let bytes = query(&format!("INSERT INTO kept VALUES (1) -- {}", "x".repeat(100_000)));
        client.send(&bytes[..70_000]);
        std::thread::sleep(Duration::from_millis(50));
    });
}

#[test]
fn with_a_batch_that_has_no_sync() {
    check("gone_batch", |_, client| {
        client.send(&message(b'P', b"\0INSERT INTO kept VALUES (1)\0\0\0"));
        client.send(&message(b'B', b"\0\0\0\0\0\0\0\0"));
        client.send(&message(b'E', b"\0\0\0\0\0"));
        client.send(&message(b'H', b""));
        assert!(matches!(client.receive(SOON), Received::Message(_)));
    });
}

#[test]
fn in_a_transaction() {
    check("gone_transaction", |_, client| {
        client.query("BEGIN; INSERT INTO kept VALUES (1)").expect("the server answers");
    });
}

#[test]
fn in_a_failed_transaction() {
    check("gone_failed", |_, client| {
        client.query("BEGIN; INSERT INTO kept VALUES (1)").expect("the server answers");
        client.query("SELECT 1 / 0").expect_err("a division by zero");
    });
}

#[test]
fn while_its_query_runs() {
    let server = postgres();
    check("gone_query", |_, client| {
        client.send(&query("INSERT INTO kept VALUES (1); SELECT pg_sleep(60)"));
        let asleep = "datname = 'gone_query' AND state = 'active' AND wait_event = 'PgSleep'";
        wait_until("the query runs", SOON, || server.count_activity(asleep) == 1);
    });
}

#[test]
fn right_behind_its_query() {
    // The cancel may come before the server has begun with the query; it must be stopped all the same.
    check("gone_behind", |_, client| client.send(&query("INSERT INTO kept VALUES (1); SELECT pg_sleep(60)")));
}

#[test]
fn with_a_pipeline_of_queries() {
    check("gone_pipeline", |_, client| {
        let batch = query("SELECT pg_sleep(0.1)").repeat(3);
        client.send(&batch);
        std::thread::sleep(Duration::from_millis(20));
    });
}

#[test]
fn with_its_data_of_a_copy_half_sent() {
    for (name, cut) in [("gone_copy_in_between", 0), ("gone_copy_in_header", 3), ("gone_copy_in_data", 9)] {
        check(name, |_, client| {
            client.send(&query("COPY kept FROM STDIN"));
            assert!(matches!(client.receive(SOON), Received::Message(reply) if reply.tag == b'G'));
            client.send(&message(b'd', b"1\n"));
            client.send(&message(b'd', b"22222222\n")[..cut]);
            std::thread::sleep(Duration::from_millis(20));
        });
    }
}

#[test]
fn with_the_data_of_a_copy_unread() {
    check("gone_copy_out", |_, client| {
        client.send(&query("COPY (SELECT repeat('x', 1000) FROM generate_series(1, 1000000)) TO STDOUT"));
        assert!(matches!(client.receive(SOON), Received::Message(reply) if reply.tag == b'H'));
        std::thread::sleep(Duration::from_millis(50));
    });
}

#[test]
fn with_rows_unread() {
    check("gone_rows", |_, client| {
        client.send(&query("SELECT repeat('x', 100000) FROM generate_series(1, 10000)"));
        assert!(matches!(client.receive(SOON), Received::Message(_)));
        std::thread::sleep(Duration::from_millis(50));
    });
}

#[test]
fn while_it_waits() {
    check("gone_waiting", |qcp, client| {
        client.query("BEGIN").expect("the server answers");
        let mut waiter = RawClient::connect(&qcp.tcp());
        waiter.send(&startup(PROTOCOL_3_0, &[("user", SUPERUSER), ("database", "gone_waiting")]));
        waiter.receive_until_ready();
        waiter.send(&query("INSERT INTO kept VALUES (1)"));
        std::thread::sleep(Duration::from_millis(50));
        drop(waiter);
        wait_until("the waiter is forgotten", SOON, || {
            show(qcp, "clients").as_array().is_some_and(|rows| rows.len() == 1)
        });
    });
}

#[test]
fn while_its_cancel_is_under_way() {
    check("gone_cancel", |qcp, client| {
        client.send(&query("SELECT pg_sleep(60)"));
        std::thread::sleep(Duration::from_millis(50));
        RawClient::connect(&qcp.tcp()).send(&untagged(80_877_102, &client.key));
    });
}

/// The server ends a session while QCP asks it what the client has changed: the client hears of it in the server's words.
#[test]
fn the_servers_last_word_is_the_clients_while_qcp_asks() {
    let server = postgres();
    server.create_database("gone_asked");
    let qcp = Qcp::start("relay_mode: Smart\nsession_state: preserve\npool: {size: 1}\n", 1);
    let mut client = RawClient::login(&qcp.tcp(), SUPERUSER, "gone_asked");
    let pid = client.query("SELECT pg_backend_pid()").expect("the server answers").remove(0);
    wait_until("it is known that this has changed nothing", SOON, || {
        show(&qcp, "backends").as_array().is_some_and(|rows| rows.iter().all(|row| row["state"] == "idle"))
    });
    let mut locks = RawClient::login(&server.tcp(), SUPERUSER, "gone_asked");
    locks.query("BEGIN").expect("it begins");
    locks.query("LOCK TABLE pg_catalog.pg_depend IN ACCESS EXCLUSIVE MODE").expect("nobody else reads it now");
    client.query("DO $$ BEGIN PERFORM 1; END $$").expect("it needs no lock");
    let waits = format!("pid = {pid} AND wait_event_type = 'Lock'");
    wait_until("QCP's question waits", SOON, || server.count_activity(&waits) == 1);
    locks.query(&format!("SELECT pg_terminate_backend({pid})")).expect("it is told to go");
    let Received::Message(last) = client.receive(SOON) else { panic!("it was closed without a word") };
    let text = String::from_utf8_lossy(&last.body).into_owned();
    assert!(last.tag == b'E' && text.contains("FATAL") && text.contains("57P01"), "{text}");
    assert_eq!(client.receive(SOON), Received::Closed);
}
