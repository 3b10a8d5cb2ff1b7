//! pgbench runs clean, and the server never has more backends than the pool may.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use super::support::pooler::Qcp;
use super::support::postgres::{SUPERUSER, postgres};
use super::support::programs::pgbench;
use super::support::raw::RawClient;

/// `auth.check_connections`: what logins that are being checked may add.
const CHECK_CONNECTIONS: usize = 4;

/// Counts the backends of a database over and over until it is stopped.
struct BackendsWatch {
    stop: Arc<AtomicBool>,
    most: Arc<AtomicUsize>,
    thread: JoinHandle<()>,
}

impl BackendsWatch {
    fn start(database: &str) -> BackendsWatch {
        let stop = Arc::new(AtomicBool::new(false));
        let most = Arc::new(AtomicUsize::new(0));
        let statement = format!(
            "SELECT count(*) FROM pg_stat_activity WHERE datname = '{database}' AND backend_type = 'client backend'"
        );
        let (stop_seen, most_seen) = (Arc::clone(&stop), Arc::clone(&most));
        let thread = std::thread::spawn(move || {
            let mut client = RawClient::login(&postgres().tcp(), SUPERUSER, "postgres");
            while !stop_seen.load(Ordering::Relaxed) {
                let count = client.query(&statement).expect("the statement is right");
                most_seen.fetch_max(count[0].parse().expect("a count is a number"), Ordering::Relaxed);
                std::thread::sleep(Duration::from_millis(20));
            }
        });
        BackendsWatch { stop, most, thread }
    }

    /// The most that there were at a time.
    fn finish(self) -> usize {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().expect("the watch does not fail");
        self.most.load(Ordering::Relaxed)
    }
}

/// Runs pgbench with 64 clients and the given options through a qcp, on tables of its own.
fn check(database: &str, yaml: &str, cores: usize, pool_size: usize, runs: &[&[&str]]) {
    let server = postgres();
    server.create_database(database);
    pgbench(&server.tcp(), SUPERUSER, database).args(["-i", "-q", "-s", "8"]).finish().success();
    let qcp = Qcp::start(&format!("{yaml}\npool: {{size: {pool_size}}}\n"), cores);

    for options in runs {
        let watch = BackendsWatch::start(database);
        let finished =
            pgbench(&qcp.tcp(), SUPERUSER, database).args(["-n", "-c", "64", "-j", "2"]).args(*options).finish();
        let most = watch.finish();
        assert!(finished.status.success(), "{options:?}: {finished:?}");
        assert!(!finished.stderr.contains("error"), "{options:?}: {}", finished.stderr);
        assert!(finished.stdout.contains("number of failed transactions: 0"), "{options:?}: {}", finished.stdout);
        assert!(most <= pool_size + CHECK_CONNECTIONS, "{options:?}: {most} backends of {pool_size}");
    }
}

/// The three ways in which pgbench speaks the protocol.
const PROTOCOLS: [&[&str]; 3] =
    [&["-T", "2", "-M", "simple"], &["-T", "2", "-M", "extended"], &["-T", "2", "-M", "prepared"]];

#[test]
fn session_with_one_core() {
    check("load_session_1", "relay_mode: Session", 1, 64, &PROTOCOLS[..1]);
}

#[test]
fn session_with_two_cores() {
    check("load_session_2", "relay_mode: Session", 2, 64, &PROTOCOLS[..1]);
}

#[test]
fn smart_with_one_core() {
    check("load_smart_1", "relay_mode: Smart", 1, 16, &PROTOCOLS);
}

#[test]
fn smart_with_two_cores() {
    check("load_smart_2", "relay_mode: Smart", 2, 16, &PROTOCOLS);
}

#[test]
fn statement_mode_without_transactions() {
    check("load_statement", "relay_mode: Statement", 1, 16, &[&["-T", "2", "-S", "-M", "prepared"]]);
}

#[test]
fn a_connection_for_each_transaction() {
    check("load_connect", "relay_mode: Smart", 1, 16, &[&["-T", "3", "-S", "-C"]]);
}
