//! Transactions that are prepared and decided later (`hold_prepared_transactions`).

use std::time::Duration;

use super::support::pooler::Qcp;
use super::support::postgres::{SUPERUSER, postgres};
use super::support::raw::{RawClient, message, zero_ended};
use super::support::wait_until;

fn qcp(database: &str, holds: bool) -> Qcp {
    postgres().create_database(database);
    let key = format!("hold_prepared_transactions: {holds}\n");
    let mode = "relay_mode: Smart\nsession_state: preserve\ntransparency: fast\npool: {size: 2}\n";
    Qcp::start(&format!("{mode}{key}"), 1)
}

fn client(qcp: &Qcp, database: &str) -> RawClient {
    RawClient::login(&qcp.tcp(), SUPERUSER, database)
}

fn run(client: &mut RawClient, statement: &str) -> Vec<String> {
    client.query(statement).unwrap_or_else(|error| panic!("{statement}: {error:?}"))
}

/// Why clients are kept on their backends.
fn pins(qcp: &Qcp) -> String {
    qcp.control(&["show", "pins"]).success()
}

fn prepare(client: &mut RawClient, name: &str) {
    run(client, "begin; select pg_current_xact_id()");
    run(client, &format!("select 1; prepare transaction '{name}'"));
}

#[test]
fn who_has_prepared_stays_until_it_is_decided() {
    let database = "two_phase_held";
    let qcp = qcp(database, true);
    let (mut one, mut other) = (client(&qcp, database), client(&qcp, database));
    prepare(&mut one, "it''s");
    run(&mut one, "select 1");
    assert!(pins(&qcp).contains("PREPARE TRANSACTION"), "{}", pins(&qcp));
    // Another's is another's.
    prepare(&mut other, "another");
    run(&mut other, "rollback prepared 'another'");
    run(&mut other, "select 1");
    assert_eq!(pins(&qcp).matches("PREPARE TRANSACTION").count(), 1);
    run(&mut one, "commit prepared 'it''s'");
    run(&mut one, "select 1");
    assert!(!pins(&qcp).contains("PREPARE TRANSACTION"), "{}", pins(&qcp));

    // One that was not prepared after all keeps nobody.
    run(&mut one, "begin");
    one.query("select 1/0").expect_err("it fails");
    assert!(run(&mut one, "prepare transaction 'never'").is_empty());
    run(&mut one, "select 1");
    assert!(!pins(&qcp).contains("PREPARE TRANSACTION"), "{}", pins(&qcp));
}

/// By the extended protocol, several, and decided by somebody else.
#[test]
fn whoever_decides_sets_free() {
    let database = "two_phase_others";
    let qcp = qcp(database, true);
    let (mut one, mut other) = (client(&qcp, database), client(&qcp, database));
    for name in ["a", "b"] {
        run(&mut one, "begin");
        run(&mut one, "select pg_advisory_xact_lock(1)");
        let parse = [zero_ended("s"), zero_ended(&format!("prepare transaction '{name}'")), vec![0, 0]].concat();
        let bind = [zero_ended(""), zero_ended("s"), vec![0; 6]].concat();
        let close = [vec![b'S'], zero_ended("s")].concat();
        let batch = [
            message(b'P', &parse),
            message(b'B', &bind),
            message(b'E', &[0; 5]),
            message(b'C', &close),
            message(b'S', &[]),
        ];
        one.send(&batch.concat());
        let replies = one.receive_until_ready();
        assert!(!replies.iter().any(|reply| reply.tag == b'E'), "{replies:?}");
        // Its lock would keep the next from being prepared.
        if name == "a" {
            run(&mut one, "commit prepared 'a'");
        }
    }
    run(&mut one, "select 1");
    assert!(pins(&qcp).contains("PREPARE TRANSACTION"), "{}", pins(&qcp));
    run(&mut other, "commit prepared 'b'");
    run(&mut one, "select 1");
    // The server is asked behind the answer.
    wait_until("it is free", Duration::from_secs(5), || !pins(&qcp).contains("PREPARE TRANSACTION"));
}

#[test]
fn without_the_key_nobody_stays() {
    let database = "two_phase_free";
    let qcp = qcp(database, false);
    let mut one = client(&qcp, database);
    prepare(&mut one, "free");
    run(&mut one, "select 1");
    assert!(!pins(&qcp).contains("PREPARE TRANSACTION"), "{}", pins(&qcp));
    run(&mut one, "rollback prepared 'free'");
}

#[test]
fn the_key_holds_for_one_database_and_one_user() {
    let database = "two_phase_own";
    postgres().create_database(database);
    let yaml = format!(
        "relay_mode: Smart\nsession_state: preserve\npool: {{size: 2}}\n\
         databases: {{{database}: {{hold_prepared_transactions: true}}, two_phase_not: {{dbname: {database}}}}}\n\
         users: {{trust_user: {{hold_prepared_transactions: false}}}}\n"
    );
    let qcp = Qcp::start(&yaml, 1);
    for (user, name, holds) in
        [(SUPERUSER, database, true), (SUPERUSER, "two_phase_not", false), ("trust_user", database, false)]
    {
        let mut one = RawClient::login(&qcp.tcp(), user, name);
        prepare(&mut one, "own");
        // Asked behind the answer: the next is behind that.
        run(&mut one, "select 1");
        assert_eq!(pins(&qcp).contains("PREPARE TRANSACTION"), holds, "{user} in {name}");
        run(&mut one, "rollback prepared 'own'");
    }
}
