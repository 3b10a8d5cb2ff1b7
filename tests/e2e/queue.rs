//! Clients that wait for a backend: in their turn, and not for ever.

use std::time::{Duration, Instant};

use super::support::pooler::Qcp;
use super::support::postgres::{SUPERUSER, postgres};
use super::support::raw::{RawClient, error_field, message, untagged, zero_ended};

const CANCEL_REQUEST: u32 = 80_877_102;

fn client(qcp: &Qcp, database: &str) -> RawClient {
    RawClient::login(&qcp.tcp(), SUPERUSER, database)
}

#[test]
fn a_wait_that_is_too_long_is_an_error_and_the_client_stays() {
    postgres().create_database("queue_timeout");
    let qcp = Qcp::start("pool: {size: 1, queue_timeout: 500ms}\n", 1);
    let mut holder = client(&qcp, "queue_timeout");
    let mut waiter = client(&qcp, "queue_timeout");
    holder.query("BEGIN").expect("the server answers");
    let begun = Instant::now();
    assert_eq!(waiter.query("SELECT 1").expect_err("nothing is free").0, "53300");
    assert!(begun.elapsed() >= Duration::from_millis(450), "{:?}", begun.elapsed());

    // In the extended protocol the rest of the batch is discarded: one error, one ReadyForQuery.
    waiter.send(&message(b'P', b"s1\0SELECT 1\0\0\0"));
    waiter.send(&message(b'B', b"\0s1\0\0\0\0\0\0\0"));
    waiter.send(&message(b'E', b"\0\0\0\0\0"));
    waiter.send(&message(b'S', b""));
    let replies = waiter.receive_until_ready();
    let tags: Vec<u8> = replies.iter().map(|reply| reply.tag).collect();
    assert_eq!(tags, b"EZ", "{replies:?}");
    assert_eq!(error_field(&replies[0].body, b'C'), "53300");
    assert_eq!(replies[1].body, b"I");

    holder.query("COMMIT").expect("the server answers");
    assert_eq!(waiter.query("SELECT 2").expect("the backend is free"), ["2"]);
}

#[test]
fn a_queue_that_is_full_says_so_at_once() {
    postgres().create_database("queue_full");
    let qcp = Qcp::start("pool: {size: 1, max_queue: 1}\n", 1);
    let mut holder = client(&qcp, "queue_full");
    let mut waiter = client(&qcp, "queue_full");
    let mut refused = client(&qcp, "queue_full");
    holder.query("BEGIN").expect("the server answers");
    waiter.send(&message(b'Q', &zero_ended("SELECT 'waited'")));
    std::thread::sleep(Duration::from_millis(200));
    let begun = Instant::now();
    assert_eq!(refused.query("SELECT 1").expect_err("the queue is full").0, "53300");
    assert!(begun.elapsed() < Duration::from_secs(1));
    holder.query("COMMIT").expect("the server answers");
    assert!(waiter.receive_until_ready().iter().any(|reply| reply.body.ends_with(b"waited")));
    assert_eq!(refused.query("SELECT 1").expect("the client stayed"), ["1"]);
}

#[test]
fn who_came_first_is_served_first() {
    const WAITERS: usize = 8;
    let server = postgres();
    server.create_database("queue_order");
    server.execute("queue_order", "CREATE TABLE served (place serial, who int)");
    let qcp = Qcp::start("pool: {size: 1}\n", 1);
    let mut holder = client(&qcp, "queue_order");
    let mut waiters: Vec<RawClient> = (0..WAITERS).map(|_| client(&qcp, "queue_order")).collect();
    holder.query("BEGIN").expect("the server answers");
    for (who, waiter) in waiters.iter_mut().enumerate() {
        waiter.send(&message(b'Q', &zero_ended(&format!("INSERT INTO served (who) VALUES ({who})"))));
        std::thread::sleep(Duration::from_millis(20));
    }
    holder.query("COMMIT").expect("the server answers");
    for waiter in &mut waiters {
        waiter.receive_until_ready();
    }
    let order = server.execute("queue_order", "SELECT string_agg(who::text, ',' ORDER BY place) FROM served");
    let expected: Vec<String> = (0..WAITERS).map(|who| who.to_string()).collect();
    assert_eq!(order.trim(), expected.join(","));
}

#[test]
fn a_cancel_takes_a_client_out_of_the_queue() {
    postgres().create_database("queue_cancel");
    let qcp = Qcp::start("pool: {size: 1}\n", 1);
    let mut holder = client(&qcp, "queue_cancel");
    let mut waiter = client(&qcp, "queue_cancel");
    holder.query("BEGIN").expect("the server answers");
    waiter.send(&message(b'Q', &zero_ended("SELECT 1")));
    std::thread::sleep(Duration::from_millis(200));
    RawClient::connect(&qcp.tcp()).send(&untagged(CANCEL_REQUEST, &waiter.key));
    let replies = waiter.receive_until_ready();
    assert_eq!(error_field(&replies[0].body, b'C'), "57014");
    assert_eq!(holder.query("SELECT 'unhurt'").expect("only the waiter was meant"), ["unhurt"]);
    holder.query("COMMIT").expect("the server answers");
    assert_eq!(waiter.query("SELECT 2").expect("the client stays"), ["2"]);
}

#[test]
fn a_waiter_that_hangs_up_is_forgotten() {
    postgres().create_database("queue_gone");
    let qcp = Qcp::start("pool: {size: 1}\n", 1);
    let mut holder = client(&qcp, "queue_gone");
    holder.query("BEGIN; CREATE TABLE served (who int)").expect("the server answers");
    let mut gone = client(&qcp, "queue_gone");
    gone.send(&message(b'Q', &zero_ended("INSERT INTO served VALUES (1)")));
    std::thread::sleep(Duration::from_millis(100));
    drop(gone);
    std::thread::sleep(Duration::from_millis(100));
    holder.query("COMMIT").expect("the server answers");
    assert_eq!(holder.query("SELECT count(*) FROM served").expect("the server answers"), ["0"]);
}

#[test]
fn more_clients_than_allowed_are_told() {
    postgres().create_database("queue_clients");
    let qcp = Qcp::start("limits: {max_clients: 2}\n", 1);
    let clients: Vec<RawClient> = (0..2).map(|_| client(&qcp, "queue_clients")).collect();
    let mut refused = RawClient::connect(&qcp.tcp());
    let parameters = [("user", SUPERUSER), ("database", "queue_clients")];
    refused.send(&super::support::raw::startup(super::support::raw::PROTOCOL_3_0, &parameters));
    let replies = refused.receive_until_ready();
    assert_eq!(error_field(&replies[0].body, b'C'), "53300");
    assert_eq!(error_field(&replies[0].body, b'V'), "FATAL");
    drop(clients);
    std::thread::sleep(Duration::from_millis(200));
    assert_eq!(client(&qcp, "queue_clients").query("SELECT 1").expect("there is room again"), ["1"]);
}

#[test]
fn who_waits_in_vain_reads_what_keeps_the_connections() {
    postgres().create_database("queue_pinned");
    let qcp = Qcp::start("pool: {size: 2, queue_timeout: 300ms}\n", 1);
    let client = || RawClient::login(&qcp.tcp(), SUPERUSER, "queue_pinned");
    let (mut one, mut two, mut waiter) = (client(), client(), client());
    one.query("create temp table t (a int)").expect("served");
    two.query("select pg_advisory_lock(1)").expect("served");
    two.query("begin").expect("served");
    waiter.send(&message(b'Q', b"select 1\0"));
    let replies = waiter.receive_until_ready();
    let error = replies.iter().find(|reply| reply.tag == b'E').unwrap_or_else(|| panic!("no error: {replies:?}"));
    let (text, hint) = (error_field(&error.body, b'M'), error_field(&error.body, b'H'));
    assert!(text.contains("oldest transaction: ") && text.contains("2 clients keep"), "{text}");
    assert!(text.contains("temporary objects") && text.contains("advisory lock"), "{text}");
    assert!(hint.contains("show pins"), "{hint}");
}
