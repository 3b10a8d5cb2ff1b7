//! psql through qcp does what it does on a direct connection: most tests run both and compare.

use std::time::Duration;

use nix::sys::signal::Signal;

use super::support::pooler::Qcp;
use super::support::postgres::{SUPERUSER, postgres};
use super::support::programs::{Finished, Program, psql};
use super::support::{Address, wait_until};

const SMART: &str = "relay_mode: Smart\npool: {size: 2}\n";

/// Does one thing with psql on a direct connection and through qcp; what it printed must be the same.
fn check(database: &str, act: impl Fn(Program) -> Finished) {
    let server = postgres();
    server.create_database(database);
    let qcp = Qcp::start(SMART, 1);
    let play = |address: &Address| act(psql(address, SUPERUSER, database).arg("-X"));
    let direct = play(&server.tcp());
    let pooled = play(&qcp.tcp());
    assert_eq!(direct.stdout, pooled.stdout);
    assert_eq!(direct.stderr, pooled.stderr);
    assert_eq!(direct.status, pooled.status);
}

#[test]
fn errors_and_notices_read_the_same() {
    let script = "SELECT 1/0;\nSELECT nothing;\n\\d no_such_table\nDO $$ BEGIN RAISE NOTICE 'hello'; END $$;\n\
                  BEGIN;\nSELECT oops;\nSELECT 1;\nROLLBACK;\n\\d pg_class\n\\l postgres\nSELECT 'the end';\n";
    check("psql_errors", |psql| psql.input(script).finish());
}

#[test]
fn copy_goes_both_ways() {
    const ROWS: usize = 200_000;
    let rows: String = (0..ROWS).map(|row| format!("{row}\trow number {row}\n")).collect();
    let script = format!(
        "CREATE TABLE copied (id int, word text);\n\\copy copied from stdin\n{rows}\\.\n\
         SELECT count(*), sum(id), max(word) FROM copied;\n\\copy copied to stdout\nDROP TABLE copied;\n"
    );
    check("psql_copy", |psql| {
        let finished = psql.arg("-q").input(script.clone()).finish();
        assert!(finished.stdout.lines().count() > ROWS, "{}", finished.stderr);
        finished
    });
}

#[test]
fn a_failed_copy_leaves_the_connection_usable() {
    let script = "CREATE TEMP TABLE failing (id int);\n\\copy failing from stdin\n1\ntwo\n3\n\\.\nSELECT 'usable';\n";
    // The temporary table needs the same backend throughout: one transaction has it in any mode.
    let script = format!("BEGIN;\nSAVEPOINT before;\n{script}ROLLBACK;\nSELECT 'usable';\n");
    check("psql_copy_fails", |psql| psql.input(script.clone()).finish());
}

#[test]
fn an_interrupt_cancels_the_query() {
    check("psql_interrupt", |psql| {
        let running = psql.input("SELECT pg_sleep(30);\n").start();
        let asleep = "datname = 'psql_interrupt' AND state = 'active' AND query LIKE '%pg_sleep%'";
        wait_until("the query runs", Duration::from_secs(10), || postgres().count_activity(asleep) == 1);
        running.signal(Signal::SIGINT);
        let finished = running.finish();
        assert!(finished.stderr.contains("canceling statement due to user request"), "{finished:?}");
        finished
    });
}

#[test]
fn an_interrupt_ends_a_watch() {
    let server = postgres();
    server.create_database("psql_watch");
    let qcp = Qcp::start(SMART, 1);
    for address in [server.tcp(), qcp.tcp()] {
        let script = "SELECT 'watched' \\watch 0.1\nSELECT 'after it';\n";
        let running = psql(&address, SUPERUSER, "psql_watch").arg("-X").input(script).start();
        std::thread::sleep(Duration::from_millis(700));
        running.signal(Signal::SIGINT);
        let finished = running.finish();
        assert!(finished.stdout.matches("watched").count() > 2, "{finished:?}");
        assert!(finished.stdout.contains("after it"), "{finished:?}");
    }
}
