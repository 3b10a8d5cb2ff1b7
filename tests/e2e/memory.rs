//! Memory is taken once at the start, and an idle pooler does nothing.

use std::time::{Duration, Instant};

use super::support::pooler::Qcp;
use super::support::postgres::{SUPERUSER, postgres};
use super::support::proc::{allow_descriptors, cpu_time, forget_peak, resident, resident_peak};
use super::support::raw::{RawClient, error_field, message, zero_ended};

/// What `RSS does not move` means.
const MOVE_MAX: u64 = 1 << 20;
/// With trust nobody asks the server, so all that is measured is qcp.
const SMALL: &str = "arena: {total_size: 8 MB}\nauth: {method: trust}\npool: {size: 4}\nlog_level: Warn\n";

/// Acts through a warm qcp with a small arena; its memory must not move while that lasts.
fn check_flat(database: &str, act: impl FnOnce(&mut RawClient)) {
    postgres().create_database(database);
    let qcp = Qcp::start(SMALL, 1);
    let mut client = RawClient::login(&qcp.tcp(), SUPERUSER, database);
    client.query("SELECT 1").expect("the server answers");
    let before = resident(qcp.pid());
    forget_peak(qcp.pid());
    act(&mut client);
    let after = resident_peak(qcp.pid());
    assert!(after < before + MOVE_MAX, "RSS went from {before} to {after} bytes");
    assert_eq!(client.query("SELECT 'alive'").expect("the server answers"), ["alive"]);
}

#[test]
fn a_result_of_500_mb_passes_through_an_arena_of_8() {
    const ROW_BYTES: u64 = 1_000_000;
    const ROWS: u64 = 500;
    check_flat("memory_result", |client| {
        let statement = format!("SELECT repeat('x', {ROW_BYTES}) FROM generate_series(1, {ROWS})");
        client.send(&message(b'Q', &zero_ended(&statement)));
        assert!(client.drain_rows() > ROWS * ROW_BYTES);
    });
}

#[test]
fn a_parameter_of_200_mb_passes_through_an_arena_of_8() {
    const PIECE_BYTES: usize = 1_000_000;
    const PIECES: usize = 200;
    const PARAMETER_BYTES: usize = PIECE_BYTES * PIECES;
    check_flat("memory_parameter", |client| {
        client.send(&message(b'P', b"\0SELECT octet_length($1::bytea)\0\0\0"));
        // Bind: unnamed portal and statement, one format (binary), one value, no result formats.
        let head = b"\0\0\0\x01\0\x01\0\x01";
        let tail = b"\0\0";
        let length = 4 + head.len() + 4 + PARAMETER_BYTES + tail.len();
        client.send(b"B");
        client.send(&(length as u32).to_be_bytes());
        client.send(head);
        client.send(&(PARAMETER_BYTES as u32).to_be_bytes());
        let piece = vec![b'x'; PIECE_BYTES];
        for _ in 0..PIECES {
            client.send(&piece);
        }
        client.send(tail);
        client.send(&message(b'E', b"\0\0\0\0\0"));
        client.send(&message(b'S', b""));
        let replies = client.receive_until_ready();
        let row = replies.iter().find(|reply| reply.tag == b'D').expect("the length comes back");
        assert!(row.body.ends_with(PARAMETER_BYTES.to_string().as_bytes()), "{row:?}");
    });
}

#[test]
fn a_reader_that_stops_reading_does_not_stop_the_others() {
    postgres().create_database("memory_slow_reader");
    let qcp = Qcp::start(SMALL, 1);
    let login = || RawClient::login(&qcp.tcp(), SUPERUSER, "memory_slow_reader");
    let mut slow: Vec<RawClient> = (0..3).map(|_| login()).collect();
    for client in &mut slow {
        client.send(&message(b'Q', &zero_ended("SELECT repeat('x', 1000000) FROM generate_series(1, 50)")));
    }
    std::thread::sleep(Duration::from_millis(500));
    let mut other = login();
    for _ in 0..100 {
        other.query("SELECT 1").expect("the fourth backend answers");
    }
    for client in &mut slow {
        assert!(client.drain_rows() > 50_000_000);
    }
}

#[test]
fn ten_thousand_idle_clients_cost_a_kilobyte_each_and_no_time() {
    const CLIENTS: u32 = 10_000;
    const COST_MAX: u64 = 1024;
    const IDLE: Duration = Duration::from_secs(4);
    // One for each client, here and in qcp, and what else is open.
    allow_descriptors(u64::from(CLIENTS) + 2000);
    postgres().create_database("memory_clients");

    let empty = Qcp::start(&format!("{SMALL}limits: {{max_clients: 10}}\n"), 1);
    // Its listener answers before its shard has taken its memory; a login comes behind that.
    let one = RawClient::login(&empty.tcp(), SUPERUSER, "memory_clients");
    // The address is listened on before the shard has taken its arena: who has logged in has met the shard.
    drop(RawClient::login(&empty.tcp(), SUPERUSER, "memory_clients"));
    let resident_empty = resident(empty.pid());
    drop((one, empty));

    let qcp = Qcp::start(&format!("{SMALL}limits: {{max_clients: {CLIENTS}}}\n"), 1);
    let login = |_| RawClient::login(&qcp.tcp(), SUPERUSER, "memory_clients");
    let mut clients: Vec<RawClient> = (0..CLIENTS).map(login).collect();
    let cost = resident(qcp.pid()).saturating_sub(resident_empty) / u64::from(CLIENTS);
    assert!(cost <= COST_MAX, "{cost} bytes for each client");

    // The least of a few: what others do on the machine is charged to whoever runs when the clock ticks.
    let spend = || {
        let before = cpu_time(qcp.pid());
        std::thread::sleep(IDLE);
        cpu_time(qcp.pid()) - before
    };
    let mut spent = spend();
    for _ in 0..2 {
        spent = if spent > IDLE / 200 { spend().min(spent) } else { spent };
    }
    assert!(spent <= IDLE / 200, "{spent:?} of processor time in {IDLE:?} of idleness");

    for client in &mut clients {
        assert_eq!(client.query("SELECT 1").expect("the server answers"), ["1"]);
    }
    let cost = resident(qcp.pid()).saturating_sub(resident_empty) / u64::from(CLIENTS);
    assert!(cost <= COST_MAX, "{cost} bytes for each client after its query");
}

#[test]
fn requests_that_wait_are_kept_or_refused_and_what_they_held_comes_back() {
    const DATABASE: &str = "memory_waiting";
    const ROUNDS: usize = 4;
    postgres().create_database(DATABASE);
    let config = "arena: {total_size: 1 MB}\nauth: {method: trust}\npool: {size: 1}\nlog_level: Warn\n";
    let qcp = Qcp::start(config, 1);
    let login = || RawClient::login(&qcp.tcp(), SUPERUSER, DATABASE);
    let mut holder = login();
    // Together they ask for more than there is.
    let mut clients: Vec<RawClient> = (0..400).map(|_| login()).collect();
    let request = |size| message(b'Q', &zero_ended(&format!("SELECT 'kept' /* {} */", "x".repeat(size))));
    let (request, more) = (request(3_000), request(2_000));
    let kept: Vec<usize> = (0..ROUNDS)
        .map(|_| {
            holder.query("BEGIN").expect("it is served");
            for client in &mut clients {
                client.send(&request);
            }
            std::thread::sleep(Duration::from_millis(300));
            // Who waits goes on asking.
            for client in &mut clients {
                client.send(&more);
            }
            std::thread::sleep(Duration::from_millis(300));
            let begun = Instant::now();
            holder.query("COMMIT").expect("who has a backend is heard, whoever waits");
            assert!(begun.elapsed() < Duration::from_secs(2), "it was heard after {:?}", begun.elapsed());
            let served = |client: &mut RawClient| {
                let replies = client.receive_until_ready();
                assert_eq!(replies.last().expect("each is answered").tag, b'Z', "{replies:?}");
                let refused = replies.iter().find(|reply| reply.tag == b'E');
                if let Some(refused) = refused {
                    assert_eq!(error_field(&refused.body, b'C'), "53200", "{}", error_field(&refused.body, b'M'));
                }
                usize::from(refused.is_none())
            };
            clients.iter_mut().map(|client| served(client) + served(client)).sum()
        })
        .collect();
    println!("kept of {}: {kept:?}", 2 * clients.len());
    let (least, most) = (kept.iter().min().expect("some"), kept.iter().max().expect("some"));
    assert!(*least >= 40 && least * 2 >= *most, "of {} requests as many were kept as: {kept:?}", 2 * clients.len());
}
