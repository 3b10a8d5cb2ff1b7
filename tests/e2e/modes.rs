//! When a backend goes back, and in which state.

use std::time::Duration;

use super::support::pooler::Qcp;
use super::support::postgres::{SUPERUSER, postgres};
use super::support::raw::{RawClient, error_field, message, zero_ended};
use super::support::wait_until;

fn client(qcp: &Qcp, database: &str) -> RawClient {
    RawClient::login(&qcp.tcp(), SUPERUSER, database)
}

#[test]
fn session_mode_lends_a_backend_for_the_session_and_resets_it() {
    postgres().create_database("modes_session");
    let qcp = Qcp::start("relay_mode: Session\npool: {size: 1}\n", 1);
    let mut first = client(&qcp, "modes_session");
    let pid = first.query("SELECT pg_backend_pid()").expect("the server answers");
    first.query("SET work_mem = '5MB'").expect("the server answers");
    first.query("CREATE TEMP TABLE mine (n int)").expect("the server answers");
    first.query("PREPARE mine AS SELECT 1").expect("the server answers");
    first.query("SELECT pg_advisory_lock(42)").expect("the server answers");
    assert_eq!(first.query("SHOW work_mem").expect("the server answers"), ["5MB"]);
    drop(first);

    let mut second = client(&qcp, "modes_session");
    assert_eq!(second.query("SELECT pg_backend_pid()").expect("the server answers"), pid);
    assert_ne!(second.query("SHOW work_mem").expect("the server answers"), ["5MB"]);
    assert_eq!(second.query("SELECT * FROM mine").expect_err("it is gone").0, "42P01");
    assert_eq!(second.query("EXECUTE mine").expect_err("it is gone").0, "26000");
    let locks = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()";
    assert_eq!(second.query(locks).expect("the server answers"), ["0"]);
}

#[test]
fn smart_mode_shares_one_backend_between_many() {
    postgres().create_database("modes_smart");
    let qcp = Qcp::start("relay_mode: Smart\npool: {size: 1}\n", 1);
    let mut clients: Vec<RawClient> = (0..20).map(|_| client(&qcp, "modes_smart")).collect();
    let mut pids: Vec<String> = Vec::new();
    for client in clients.iter_mut().rev() {
        pids.extend(client.query("SELECT pg_backend_pid()").expect("the server answers"));
    }
    pids.dedup();
    assert_eq!(pids.len(), 1);
}

#[test]
fn smart_mode_keeps_the_backend_for_a_transaction() {
    postgres().create_database("modes_transaction");
    let qcp = Qcp::start("relay_mode: Smart\npool: {size: 4}\n", 1);
    let mut clients: Vec<RawClient> = (0..4).map(|_| client(&qcp, "modes_transaction")).collect();
    let pid = |client: &mut RawClient| client.query("SELECT pg_backend_pid()").expect("the server answers");
    for client in &mut clients {
        client.query("BEGIN").expect("the server answers");
    }
    let pids: Vec<_> = clients.iter_mut().map(pid).collect();
    for _ in 0..3 {
        assert_eq!(clients.iter_mut().map(pid).collect::<Vec<_>>(), pids);
    }
    for client in &mut clients {
        client.query("COMMIT").expect("the server answers");
    }
}

#[test]
fn statement_mode_refuses_transactions_and_keeps_the_client() {
    postgres().create_database("modes_statement");
    let qcp = Qcp::start("relay_mode: Statement\npool: {size: 1}\n", 1);
    let mut client = client(&qcp, "modes_statement");
    assert_eq!(client.query("BEGIN").expect_err("it is refused").0, "0A000");
    assert_eq!(
        client.query("CREATE TABLE t (n int); BEGIN; INSERT INTO t VALUES (1)").expect_err("it is refused").0,
        "0A000"
    );
    assert_eq!(client.query("SELECT 1").expect("the client stays"), ["1"]);
    assert_eq!(client.query("BEGIN; SELECT 2; COMMIT").expect("it is whole"), ["2"]);
    assert_eq!(postgres().count_activity("datname = 'modes_statement' AND state LIKE 'idle in transaction%'"), 0);
}

/// A client that vanishes at the worst moment leaves a pool of one that works, and nothing open on the server.
fn check_vanishing(database: &str, mode: &str, act: impl Fn(&mut RawClient)) {
    let server = postgres();
    server.create_database(database);
    server.execute(database, "CREATE TABLE kept (n int)");
    let qcp = Qcp::start(&format!("relay_mode: {mode}\npool: {{size: 1}}\n"), 1);
    for _ in 0..5 {
        let mut vanishing = client(&qcp, database);
        act(&mut vanishing);
        drop(vanishing);
        let mut next = client(&qcp, database);
        assert_eq!(next.query("SELECT count(*) FROM kept").expect("the server answers"), ["0"]);
        assert_eq!(next.query("SHOW transaction_isolation").expect("the server answers"), ["read committed"]);
    }
    let open = format!("datname = '{database}' AND (state LIKE 'idle in transaction%' OR state = 'active')");
    wait_until("nothing is left open", Duration::from_secs(5), || server.count_activity(&open) == 0);
    assert!(server.count_backends(database) <= 1);
}

#[test]
fn a_client_that_vanishes_in_a_transaction_leaves_nothing() {
    for mode in ["Session", "Smart"] {
        check_vanishing(&format!("modes_gone_{}", mode.to_lowercase()), mode, |client| {
            client.query("BEGIN ISOLATION LEVEL SERIALIZABLE").expect("the server answers");
            client.query("INSERT INTO kept VALUES (1)").expect("the server answers");
        });
    }
}

#[test]
fn a_client_that_vanishes_in_a_failed_transaction_leaves_nothing() {
    check_vanishing("modes_gone_failed", "Smart", |client| {
        client.query("BEGIN ISOLATION LEVEL SERIALIZABLE").expect("the server answers");
        client.query("SELECT 1/0").expect_err("it fails");
    });
}

#[test]
fn a_client_that_vanishes_during_a_query_leaves_nothing() {
    check_vanishing("modes_gone_busy", "Smart", |client| {
        client.send(&super::support::raw::message(b'Q', b"BEGIN; SELECT pg_sleep(0.5)\0"));
        std::thread::sleep(Duration::from_millis(50));
    });
}

#[test]
fn a_client_that_vanishes_in_a_copy_leaves_nothing() {
    check_vanishing("modes_gone_copy", "Smart", |client| {
        client.send(&super::support::raw::message(b'Q', b"COPY kept FROM STDIN\0"));
        client.send(&super::support::raw::message(b'd', b"1\n2\n"));
        std::thread::sleep(Duration::from_millis(50));
    });
}

#[test]
fn a_backend_that_dies_is_replaced() {
    let server = postgres();
    server.create_database("modes_dies");
    let qcp = Qcp::start("pool: {size: 1}\n", 1);
    let mut client = client(&qcp, "modes_dies");
    let first = client.query("SELECT pg_backend_pid()").expect("the server answers");
    server.execute("postgres", &format!("SELECT pg_terminate_backend({})", first[0]));
    wait_until("it is dead", Duration::from_secs(5), || server.count_activity(&format!("pid = {}", first[0])) == 0);
    std::thread::sleep(Duration::from_millis(100));
    let second = client.query("SELECT pg_backend_pid()").expect("an idle client does not notice");
    assert_ne!(first, second);
}

/// What the messages of one batch, up to its Sync, are answered with: tags, and the codes of errors.
fn answers(client: &mut RawClient, messages: &[(u8, &[&[u8]])]) -> String {
    let mut bytes: Vec<u8> = messages.iter().flat_map(|(tag, parts)| message(*tag, &parts.concat())).collect();
    bytes.extend(message(b'S', b""));
    client.send(&bytes);
    let said = client.receive_until_ready();
    let say = |message: &super::support::raw::Message| match message.tag {
        b'E' => error_field(&message.body, b'C'),
        tag => (tag as char).to_string(),
    };
    said.iter().map(say).collect::<Vec<_>>().join(" ")
}

#[test]
fn a_statement_longer_than_a_chunk_keeps_its_name_and_its_backend() {
    postgres().create_database("modes_long");
    let qcp = Qcp::start("relay_mode: Smart\nsession_state: preserve\npool: {size: 1, queue_timeout: 500ms}\n", 1);
    let (mut client, mut other) = (client(&qcp, "modes_long"), client(&qcp, "modes_long"));
    let text = zero_ended(&format!("SELECT length('{}')", "x".repeat(100_000)));
    let bind: (u8, &[&[u8]]) = (b'B', &[b"\0long\0\0\0\0\0\0\0"]);
    let execute: (u8, &[&[u8]]) = (b'E', &[b"\0\0\0\0\0"]);
    assert_eq!(answers(&mut client, &[(b'P', &[b"long\0", &text, b"\0\0"])]), "1 Z");
    assert_eq!(other.query("SELECT 1").expect_err("it is kept").0, "53300");
    assert_eq!(answers(&mut client, &[bind, execute]), "2 D C Z");
    // The same name again, also for a short one.
    assert_eq!(answers(&mut client, &[(b'P', &[b"long\0", b"SELECT 1\0\0\0"])]), "42P05 Z");
    assert_eq!(answers(&mut client, &[(b'C', &[b"Slong\0"])]), "3 Z");
    assert_eq!(answers(&mut client, &[bind, execute]), "26000 Z");
    assert_eq!(other.query("SELECT 1").expect("the server answers"), ["1"]);
    assert_eq!(answers(&mut client, &[(b'P', &[b"long\0", b"SELECT 1\0\0\0"]), bind, execute]), "1 2 D C Z");
    assert_eq!(other.query("SELECT 1").expect("the server answers"), ["1"]);
}

#[test]
fn a_statement_that_somebody_took_away_is_prepared_again() {
    postgres().create_database("modes_taken");
    let qcp = Qcp::start("relay_mode: Smart\nsession_state: preserve\npool: {size: 1}\n", 1);
    let (mut client, mut other) = (client(&qcp, "modes_taken"), client(&qcp, "modes_taken"));
    let bind: (u8, &[&[u8]]) = (b'B', &[b"\0s\0\0\0\0\0\0\0"]);
    let execute: (u8, &[&[u8]]) = (b'E', &[b"\0\0\0\0\0"]);
    assert_eq!(answers(&mut client, &[(b'P', &[b"s\0", b"SELECT 1\0\0\0"]), bind, execute]), "1 2 D C Z");
    // Where nobody looks.
    other.query("DO $$ BEGIN EXECUTE 'DEALLOCATE ALL'; END $$").expect("the server answers");
    assert_eq!(answers(&mut client, &[bind, execute]), "26000 Z");
    assert_eq!(answers(&mut client, &[bind, execute]), "2 D C Z");
}

/// While no backend is free, a Parse of what the server took before is answered without it (a client that waits for that may hold
/// what it waits for). What the server says then is true from the Parse on.
#[test]
fn what_was_answered_ahead_is_prepared_as_the_server_says() {
    postgres().create_database("modes_ahead");
    let qcp = Qcp::start("relay_mode: Smart\nsession_state: preserve\npool: {size: 1}\n", 1);
    let (mut one, mut other) = (client(&qcp, "modes_ahead"), client(&qcp, "modes_ahead"));
    let parse: (u8, &[&[u8]]) = (b'P', &[b"s\0", b"SELECT a FROM going\0\0\0"]);
    let bind: (u8, &[&[u8]]) = (b'B', &[b"\0s\0\0\0\0\0\0\0"]);
    let execute: (u8, &[&[u8]]) = (b'E', &[b"\0\0\0\0\0"]);
    one.query("CREATE TABLE going (a int)").expect("the server answers");
    assert_eq!(answers(&mut one, &[parse, bind, execute]), "1 2 C Z");
    // In one batch: told of it with its Bind, and the name is free.
    one.query("BEGIN; DROP TABLE going").expect("the server answers");
    let said = std::thread::scope(|scope| {
        let said = scope.spawn(|| answers(&mut other, &[parse, bind, execute]));
        let waits = || qcp.control(&["show", "clients", "--json"]).success().contains("waiting");
        wait_until("it waits", Duration::from_secs(5), waits);
        one.query("COMMIT").expect("the server answers");
        said.join().expect("it is answered")
    });
    assert_eq!(said, "1 42P01 Z");
    assert_eq!(answers(&mut other, &[bind, execute]), "26000 Z");
    assert_eq!(answers(&mut other, &[(b'P', &[b"s\0", b"SELECT 1\0\0\0"]), bind, execute]), "1 2 D C Z");
    // In a batch of its own: the client knows that it has it.
    assert_eq!(answers(&mut other, &[(b'C', &[b"Ss\0"])]), "3 Z");
    one.query("CREATE TABLE going (a int)").expect("the server answers");
    one.query("BEGIN; DROP TABLE going").expect("the server answers");
    assert_eq!(answers(&mut other, &[parse]), "1 Z");
    one.query("COMMIT").expect("the server answers");
    assert_eq!(answers(&mut other, &[bind, execute]), "42P01 Z");
    one.query("CREATE TABLE going (a int)").expect("the server answers");
    assert_eq!(answers(&mut other, &[bind, execute]), "2 C Z");
}

#[test]
fn a_text_longer_than_a_chunk_is_looked_at_as_it_passes() {
    postgres().create_database("modes_long_text");
    postgres().execute("modes_long_text", "CREATE TABLE words (word text)");
    let qcp = Qcp::start("relay_mode: Smart\nsession_state: preserve\npool: {size: 1, queue_timeout: 500ms}\n", 1);
    let (mut client, mut other) = (client(&qcp, "modes_long_text"), client(&qcp, "modes_long_text"));
    let rows = "('set, load and prepare'), ".repeat(10_000);
    client.query(&format!("INSERT INTO words VALUES {rows}('last')")).expect("the server answers");
    assert_eq!(other.query("SELECT count(*) FROM words").expect("nobody is kept"), ["10001"]);

    let words = "one word ".repeat(20_000);
    client.query(&format!("SELECT '{words}'; SET long.own = 'mine'")).expect("the server answers");
    let own = "SELECT coalesce(current_setting('long.own', true), '')";
    assert_eq!(other.query(own).expect("the server answers"), [""]);
    assert_eq!(client.query(own).expect("the server answers"), ["mine"]);
    client.query(&format!("SELECT setseed(0.5), '{words}'")).expect("the server answers");
    assert_eq!(other.query("SELECT 1").expect_err("the client is kept").0, "53300");
}
