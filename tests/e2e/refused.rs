//! Settings that the server does not take again, or does not take back, and questions that it does not answer: they cost
//! nobody who only comes by.

use std::time::Duration;

use super::support::pooler::Qcp;
use super::support::postgres::{SUPERUSER, postgres};
use super::support::raw::{RawClient, message, zero_ended};
use super::support::wait_until;

fn run(client: &mut RawClient, statement: &str) -> Vec<String> {
    client.query(statement).unwrap_or_else(|error| panic!("{statement}: {error:?}"))
}

fn pins(qcp: &Qcp) -> String {
    qcp.control(&["show", "pins"]).success()
}

#[test]
fn who_has_what_its_login_may_not_set_stays_on_its_backend() {
    let server = postgres();
    let database = "refused_pinned";
    server.create_database(database);
    server.execute(database, "CREATE ROLE refused_boss SUPERUSER ROLE trust_user");
    server.execute(
        database,
        "CREATE FUNCTION quiet() RETURNS text LANGUAGE sql SECURITY DEFINER \
         AS $$SELECT set_config('log_min_duration_statement', '1h', false)$$",
    );
    let qcp = Qcp::start("pool: {size: 1}\n", 1);
    let client = || RawClient::login(&qcp.tcp(), "trust_user", database);
    let (mut one, mut other) = (client(), client());
    // What it may not set and has not set keeps nobody.
    one.query("set log_statement to 'all'").expect_err("no superuser");
    run(&mut other, "select 1");
    for set in ["set role refused_boss; set session_replication_role = 'replica'", "select quiet()"] {
        run(&mut one, set);
        assert_eq!(run(&mut one, "select 1"), ["1"]);
        assert!(pins(&qcp).contains("LOAD, setseed"), "{}", pins(&qcp));
        // The other waits, and has its own settings then.
        other.send(&message(
            b'Q',
            &zero_ended(
                "select current_setting('session_replication_role') || current_setting('log_min_duration_statement')",
            ),
        ));
        drop(one);
        let replies = other.receive_until_ready();
        let row = replies.iter().find(|reply| reply.tag == b'D').unwrap_or_else(|| panic!("{replies:?}"));
        assert!(row.body.ends_with(b"origin-1"), "{row:?}");
        one = client();
    }
}

#[test]
fn who_cannot_have_its_settings_is_told_so_and_stays() {
    let server = postgres();
    let database = "refused_roles";
    server.create_database(database);
    server.execute(database, "CREATE ROLE refused_left ROLE trust_user; CREATE ROLE refused_right ROLE trust_user");
    let qcp = Qcp::start("pool: {size: 1}\n", 1);
    let client = || RawClient::login(&qcp.tcp(), "trust_user", database);
    let (mut left, mut right, mut plain) = (client(), client(), client());
    run(&mut left, "set role refused_left");
    run(&mut right, "set role refused_right");
    server.execute(database, "REVOKE refused_left FROM trust_user");
    for _ in 0..2 {
        for between in [&mut right, &mut plain] {
            run(between, "select 1");
            let (code, text) = left.query("select current_user").expect_err("it may not be that any more");
            assert_eq!((code.as_str(), text.as_str()), ("42501", "permission denied to set role \"refused_left\""));
        }
        assert_eq!(run(&mut right, "select current_user"), ["refused_right"]);
        assert_eq!(run(&mut plain, "select current_user"), ["trust_user"]);
    }
    // In the extended protocol, to the Sync.
    left.send(&message(b'P', b"\0select 1\0\0\0"));
    left.send(&message(b'B', b"\0\0\0\0\0\0\0\0"));
    left.send(&message(b'E', b"\0\0\0\0\0"));
    left.send(&message(b'S', b""));
    let tags: Vec<u8> = left.receive_until_ready().iter().map(|reply| reply.tag).collect();
    assert_eq!(tags, b"EZ");
    server.execute(database, "GRANT refused_left TO trust_user");
    assert_eq!(run(&mut left, "select current_user"), ["refused_left"]);
}

/// Somebody beside QCP keeps the question about temporary tables from being answered.
fn lock(database: &str) -> RawClient {
    let mut locker = RawClient::login(&postgres().tcp(), SUPERUSER, database);
    run(&mut locker, "begin; lock table pg_catalog.pg_depend in access exclusive mode");
    locker
}

#[test]
fn a_question_that_was_cancelled_is_asked_again() {
    let server = postgres();
    let database = "refused_questions";
    server.create_database(database);
    let qcp = Qcp::start("pool: {size: 1}\n", 1);
    let client = || RawClient::login(&qcp.tcp(), SUPERUSER, database);
    let (mut one, mut other) = (client(), client());
    run(&mut one, "select 1");
    let mut locker = lock(database);
    run(&mut one, "do $$begin null; end$$");
    let waiting = format!("datname = '{database}' AND wait_event_type = 'Lock'");
    let limit = Duration::from_secs(5);
    wait_until("it is asked", limit, || server.count_activity(&waiting) == 1);
    wait_until("it is not asked any more", limit, || {
        server.execute("postgres", &format!("SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE {waiting}"));
        pins(&qcp).contains("an unanswered question") && server.count_activity(&waiting) == 0
    });
    run(&mut locker, "rollback");
    run(&mut one, "select 2");
    wait_until("it is answered", limit, || !pins(&qcp).contains("unanswered"));
    assert_eq!(run(&mut other, "select 3"), ["3"]);
}

#[test]
fn what_a_client_sets_for_its_statements_does_not_hold_for_questions() {
    let server = postgres();
    let database = "refused_limits";
    server.create_database(database);
    server.execute(database, "CREATE TABLE t (x int)");
    let qcp = Qcp::start("pool: {size: 1}\n", 1);
    let client = || RawClient::login(&qcp.tcp(), SUPERUSER, database);
    let (mut one, mut other) = (client(), client());
    let mut locker = lock(database);
    run(&mut one, "set statement_timeout = '200ms'; do $$begin null; end$$");
    std::thread::sleep(Duration::from_millis(600));
    assert!(!pins(&qcp).contains("unanswered"), "{}", pins(&qcp));
    run(&mut locker, "rollback");
    assert_eq!(run(&mut other, "show statement_timeout"), ["0"]);
    assert_eq!(run(&mut one, "show statement_timeout"), ["200ms"]);
    run(&mut one, "reset statement_timeout; do $$begin null; end$$");
    assert_eq!(run(&mut one, "show statement_timeout"), ["0"]);

    // Such a transaction waits for others to end.
    run(&mut locker, "begin isolation level serializable; insert into t values (1)");
    run(
        &mut one,
        "set my.x = 1; set session characteristics as transaction isolation level serializable, read only, deferrable",
    );
    assert_eq!(run(&mut other, "show default_transaction_deferrable"), ["off"]);
    assert_eq!(run(&mut one, "show default_transaction_deferrable"), ["on"]);
    run(&mut other, "set my.x = 2");
    assert_eq!(run(&mut one, "show default_transaction_deferrable"), ["on"]);
    run(&mut locker, "rollback");
}
