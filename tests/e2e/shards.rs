//! One pool over several cores: clients live where it is, and what it has goes to where they wait.

use std::time::{Duration, Instant};

use super::support::pooler::Qcp;
use super::support::postgres::{SUPERUSER, postgres};
use super::support::raw::{
    Message, PATIENCE, PROTOCOL_3_0, RawClient, Received, error_field, message, startup, untagged, zero_ended,
};
use super::support::wait_until;

const CANCEL_REQUEST: u32 = 80_877_102;

/// Which shard a client lives on: its cancel key says so.
fn shard(client: &RawClient) -> u8 {
    client.key[0]
}

fn client(qcp: &Qcp, database: &str) -> RawClient {
    RawClient::login(&qcp.tcp(), SUPERUSER, database)
}

/// A login that the server checks by a password in the clear.
fn client_with_password(qcp: &Qcp, database: &str) -> RawClient {
    let mut client = RawClient::connect(&qcp.tcp());
    client.send(&startup(PROTOCOL_3_0, &[("user", "password_user"), ("database", database)]));
    let asked = client.receive(PATIENCE);
    assert!(matches!(&asked, Received::Message(message) if message.tag == b'R'), "{asked:?}");
    client.send(&message(b'p', &zero_ended("in the clear")));
    let replies = client.receive_until_ready();
    assert!(replies.last().is_some_and(|last| last.tag == b'Z'), "{replies:?}");
    client
}

/// Starts a query at all clients together, and says how long the longest takes.
fn sleep_all(clients: &mut [RawClient], each: Duration) -> Duration {
    let begun = Instant::now();
    for client in clients.iter_mut() {
        client.send(&message(b'Q', &zero_ended(&format!("SELECT pg_sleep({})", each.as_secs_f64()))));
    }
    for client in clients {
        let replies: Vec<Message> = client.receive_until_ready();
        assert!(replies.iter().all(|reply| reply.tag != b'E'), "{replies:?}");
    }
    begun.elapsed()
}

#[test]
fn a_pool_of_one_serves_clients_that_any_core_accepts() {
    postgres().create_database("shards_one");
    for placement in ["load-balancing", "round-robin", "random"] {
        let qcp = Qcp::start(&format!("pool: {{size: 1, placement: {placement}}}\n"), 2);
        let mut clients: Vec<RawClient> = (0..12).map(|_| client(&qcp, "shards_one")).collect();
        for client in &mut clients {
            assert_eq!(client.query("SELECT 1").expect("it is served"), ["1"]);
        }
        assert!(clients.iter().all(|client| shard(client) == shard(&clients[0])), "a pool of one is on one shard");
        assert!(postgres().count_backends("shards_one") <= 1);
        drop(qcp);
        wait_until("the backend is gone", Duration::from_secs(10), || postgres().count_backends("shards_one") == 0);
    }
}

#[test]
fn clients_are_spread_by_load_and_in_turn() {
    postgres().create_database("shards_spread");
    for (placement, most) in [("load-balancing", 3), ("round-robin", 2)] {
        let qcp = Qcp::start(&format!("pool: {{size: 4, placement: {placement}}}\n"), 2);
        let clients: Vec<RawClient> = (0..16).map(|_| client(&qcp, "shards_spread")).collect();
        let first = clients.iter().filter(|client| shard(client) == 0).count();
        // Each shard counts its own turns, so in turn they may be one apart for each.
        assert!(first.abs_diff(8) <= most, "{placement}: {first} of 16 live on shard 0");
    }
}

#[test]
fn all_backends_serve_clients_that_are_on_one_core() {
    const EACH: Duration = Duration::from_millis(500);
    postgres().create_database("shards_lent");
    let qcp = Qcp::start("pool: {size: 4, placement: round-robin}\n", 2);
    let mut clients: Vec<RawClient> = (0..16).map(|_| client(&qcp, "shards_lent")).collect();
    // Both shards have backends, and those of one lose their clients.
    sleep_all(&mut clients, Duration::from_millis(50));
    clients.retain(|client| shard(client) == 0);
    clients.truncate(4);
    assert_eq!(clients.len(), 4);
    let before = postgres().execute("shards_lent", "SELECT string_agg(pid::text, ' ' ORDER BY pid) FROM pg_stat_activity WHERE datname = 'shards_lent' AND pid <> pg_backend_pid()");
    let took = sleep_all(&mut clients, EACH);
    assert!(took < EACH * 2, "four backends for four clients took {took:?}");
    let after = postgres().execute("shards_lent", "SELECT string_agg(pid::text, ' ' ORDER BY pid) FROM pg_stat_activity WHERE datname = 'shards_lent' AND pid <> pg_backend_pid()");
    assert_eq!(before, after, "the backends have moved, and none was opened");
}

#[test]
fn backends_move_where_none_can_be_opened() {
    const EACH: Duration = Duration::from_millis(500);
    postgres().create_database("shards_password");
    let qcp = Qcp::start("pool: {size: 2, placement: round-robin}\n", 2);
    let mut clients: Vec<RawClient> = (0..12).map(|_| client_with_password(&qcp, "shards_password")).collect();
    sleep_all(&mut clients, Duration::from_millis(20));
    assert_eq!(postgres().count_backends("shards_password"), 2);
    for own in [0, 1, 0] {
        let mut alone: Vec<RawClient> = Vec::new();
        let (mut here, there): (Vec<_>, Vec<_>) = clients.drain(..).partition(|client| shard(client) == own);
        alone.extend(here.drain(..2));
        let took = sleep_all(&mut alone, EACH);
        assert!(took < EACH * 2, "two backends for two clients of shard {own} took {took:?}");
        clients = alone.into_iter().chain(here).chain(there).collect();
    }
    assert_eq!(postgres().count_backends("shards_password"), 2);
}

#[test]
fn statements_and_settings_are_right_behind_a_move() {
    postgres().create_database("shards_state");
    let qcp = Qcp::start("pool: {size: 2, placement: round-robin}\n", 2);
    let mut clients: Vec<RawClient> = (0..8).map(|_| client(&qcp, "shards_state")).collect();
    let execute = |client: &mut RawClient, parse: Option<usize>| {
        if let Some(number) = parse {
            client.send(&message(b'P', format!("s\0SELECT 'statement {number}'\0\0\0").as_bytes()));
        }
        client.send(&message(b'B', b"\0s\0\0\0\0\0\0\0"));
        client.send(&message(b'E', b"\0\0\0\0\0"));
        client.send(&message(b'S', b""));
        let replies = client.receive_until_ready();
        let row = replies.iter().find(|reply| reply.tag == b'D').unwrap_or_else(|| panic!("{replies:?}"));
        String::from_utf8_lossy(&row.body[6..]).into_owned()
    };
    for (number, client) in clients.iter_mut().enumerate() {
        client.query(&format!("SET application_name = 'client {number}'")).expect("the server answers");
        assert_eq!(execute(client, Some(number)), format!("statement {number}"));
    }
    // Each time the backends are wanted by the clients of one shard alone.
    for round in 0..6 {
        let own = round % 2;
        for (number, client) in clients.iter_mut().enumerate().filter(|(_, client)| shard(client) == own) {
            client.send(&message(b'Q', &zero_ended("SELECT pg_sleep(0.05), 1")));
            let _ = number;
        }
        for client in clients.iter_mut().filter(|client| shard(client) == own) {
            client.receive_until_ready();
        }
        for (number, client) in clients.iter_mut().enumerate().filter(|(_, client)| shard(client) == own) {
            assert_eq!(execute(client, None), format!("statement {number}"), "round {round}");
            let name = client.query("SHOW application_name").expect("the server answers");
            assert_eq!(name, [format!("client {number}")], "round {round}");
        }
    }
}

#[test]
fn a_cancel_finds_its_client_from_any_core() {
    postgres().create_database("shards_cancel");
    let qcp = Qcp::start("pool: {size: 4, placement: round-robin}\n", 2);
    for _ in 0..8 {
        let mut client = client(&qcp, "shards_cancel");
        let begun = Instant::now();
        client.send(&message(b'Q', &zero_ended("SELECT pg_sleep(15)")));
        std::thread::sleep(Duration::from_millis(100));
        // Twice, and once by a wrong key: which core accepts them is the kernel's choice.
        let mut wrong = client.key.clone();
        wrong[4] ^= 1;
        for key in [&wrong, &client.key, &client.key] {
            RawClient::connect(&qcp.tcp()).send(&untagged(CANCEL_REQUEST, key));
        }
        let replies = client.receive_until_ready();
        let error = replies.iter().find(|reply| reply.tag == b'E').unwrap_or_else(|| panic!("{replies:?}"));
        assert_eq!(error_field(&error.body, b'C'), "57014");
        assert!(begun.elapsed() < Duration::from_secs(10));
        // Too late: nothing of this client runs.
        RawClient::connect(&qcp.tcp()).send(&untagged(CANCEL_REQUEST, &client.key));
        std::thread::sleep(Duration::from_millis(20));
        assert_eq!(client.query("SELECT 1").expect("the client stays"), ["1"]);
    }
}

#[test]
fn who_waits_is_told_what_for() {
    postgres().create_database("shards_told");
    let qcp = Qcp::start("pool: {size: 1, queue_timeout: 300ms}\n", 2);
    let mut holder = client(&qcp, "shards_told");
    let mut waiter = client(&qcp, "shards_told");
    holder.query("BEGIN").expect("the server answers");
    std::thread::sleep(Duration::from_millis(900));
    let (code, text) = waiter.query("SELECT 1").expect_err("nothing is free");
    assert_eq!(code, "53300");
    assert!(text.contains("shards_told/") && text.contains("oldest transaction: 1 s"), "{text}");
}
