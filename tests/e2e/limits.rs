//! Limits beyond a pool's size: what a server may have over all pools, and the reserve.

use std::time::{Duration, Instant};

use super::support::pooler::{Qcp, Setup};
use super::support::postgres::SUPERUSER;
use super::support::raw::{RawClient, message, zero_ended};
use super::support::server::Server;
use super::support::wait_until;

const LONG: Duration = Duration::from_secs(15);

/// QCP lets everybody in itself, so that no connection checks a login.
const TRUST: &str = "auth: {method: trust}\n";

fn start(server: &Server, yaml: &str, cores: usize) -> Qcp {
    Setup::new(&(TRUST.to_owned() + yaml)).cores(cores).server(&server.name()).start()
}

fn query(text: &str) -> Vec<u8> {
    message(b'Q', &zero_ended(text))
}

/// Backends that are not the tests' own.
fn count(server: &Server, condition: &str) -> usize {
    server.count_activity(&format!("backend_type = 'client backend' AND {condition}"))
}

/// Three databases that want far more than the server may have: never more than that, and each gets its share.
fn check_sharing(cores: usize) {
    let server = Server::start(&[]);
    for name in ["one", "two", "three"] {
        server.execute("postgres", &format!("CREATE DATABASE {name}"));
    }
    let qcp = start(&server, "pool: {size: 20, max_backends: 4, queue_timeout: 20s}\n", cores);
    let until = Instant::now() + Duration::from_secs(4);
    let threads: Vec<_> = ["one", "two", "three"]
        .into_iter()
        .flat_map(|name| (0..8).map(move |_| name))
        .map(|name| {
            let address = qcp.tcp();
            std::thread::spawn(move || {
                let mut client = RawClient::login(&address, SUPERUSER, name);
                let (mut answers, mut longest) = (0, Duration::ZERO);
                while Instant::now() < until {
                    let begun = Instant::now();
                    client.query("SELECT pg_sleep(0.01)").expect("it waits for its turn");
                    longest = longest.max(begun.elapsed());
                    answers += 1;
                }
                (name, answers, longest)
            })
        })
        .collect();
    let mut most = 0;
    while Instant::now() < until {
        // One that is closed takes the server a moment to be rid of.
        let there = count(&server, "datname <> 'postgres' AND state IS NOT NULL");
        let again = count(&server, "datname <> 'postgres' AND state IS NOT NULL");
        most = most.max(there.min(again));
    }
    let mut by_name = std::collections::BTreeMap::new();
    for thread in threads {
        let (name, answers, longest) = thread.join().expect("nobody is turned away");
        assert!(longest < Duration::from_secs(3), "{name}: {longest:?}");
        *by_name.entry(name).or_insert(0) += answers;
    }
    println!("at most {most} backends; {by_name:?}");
    assert!((3..=4).contains(&most), "{most} backends");
    let (least, greatest) = (by_name.values().min().expect("three"), by_name.values().max().expect("three"));
    assert!(least * 3 >= *greatest, "{by_name:?}");
}

#[test]
fn a_server_has_no_more_backends_than_it_may_and_pools_share_them() {
    check_sharing(1);
}

#[test]
fn pools_share_a_server_over_cores() {
    check_sharing(2);
}

#[test]
fn an_idle_backend_makes_room_for_another_pool() {
    let server = Server::start(&[]);
    server.execute("postgres", "CREATE DATABASE other");
    for cores in [1, 2] {
        let qcp = start(&server, "pool: {size: 5, max_backends: 3}\n", cores);
        let mut clients: Vec<RawClient> = (0..3).map(|_| RawClient::login(&qcp.tcp(), SUPERUSER, "postgres")).collect();
        for client in &mut clients {
            client.query("BEGIN").expect("it answers");
        }
        for client in &mut clients {
            client.query("COMMIT").expect("it answers");
        }
        let begun = Instant::now();
        let mut others: Vec<RawClient> = (0..2).map(|_| RawClient::login(&qcp.tcp(), SUPERUSER, "other")).collect();
        for client in &mut others {
            client.query("BEGIN").expect("there is room");
        }
        assert!(begun.elapsed() < Duration::from_secs(1), "{:?}", begun.elapsed());
        wait_until("the others are gone", LONG, || count(&server, "datname = 'postgres'") <= 1);
        assert_eq!(count(&server, "datname = 'other'"), 2);
    }
}

#[test]
fn a_server_that_may_have_fewer_is_thinned_out() {
    let server = Server::start(&[]);
    let qcp = start(&server, "pool: {size: 6}\n", 1);
    let mut clients: Vec<RawClient> = (0..6).map(|_| RawClient::login(&qcp.tcp(), SUPERUSER, "postgres")).collect();
    for client in &mut clients {
        client.query("BEGIN").expect("it answers");
    }
    qcp.reload(&format!("{TRUST}pool: {{size: 6, max_backends: 2}}\n"));
    assert_eq!(count(&server, "state = 'idle in transaction'"), 6, "nobody is interrupted");
    for client in &mut clients {
        client.query("COMMIT").expect("its transaction ends as it would");
    }
    wait_until("there are as many as may be", LONG, || count(&server, "true") <= 2);
    for client in &mut clients {
        client.query("SELECT 1").expect("it goes on");
    }
    assert!(count(&server, "true") <= 2);
}

#[test]
fn who_has_waited_long_gets_a_place_of_the_reserve() {
    let server = Server::start(&[]);
    for cores in [1, 2] {
        let qcp = start(&server, "pool: {size: 1, reserve_size: 1, reserve_timeout: 500ms}\n", cores);
        let mut holder = RawClient::login(&qcp.tcp(), SUPERUSER, "postgres");
        let mut second = RawClient::login(&qcp.tcp(), SUPERUSER, "postgres");
        let mut third = RawClient::login(&qcp.tcp(), SUPERUSER, "postgres");
        holder.query("BEGIN").expect("it answers");
        let begun = Instant::now();
        second.query("BEGIN").expect("the reserve is for it");
        let waited = begun.elapsed();
        assert!((Duration::from_millis(450)..Duration::from_millis(1500)).contains(&waited), "{waited:?}");
        assert_eq!(count(&server, "true"), 2);
        // There is no more of it.
        third.send(&query("SELECT 1"));
        std::thread::sleep(Duration::from_secs(1));
        assert_eq!(count(&server, "true"), 2);
        holder.query("COMMIT").expect("it answers");
        assert!(third.receive_until_ready().iter().any(|reply| reply.tag == b'D'));
        second.query("COMMIT").expect("it answers");
        wait_until("the reserve is given back", LONG, || count(&server, "true") == 1);
        assert_eq!(holder.query("SELECT 1").expect("it goes on"), ["1"]);
        drop(qcp);
        wait_until("the last is gone", LONG, || count(&server, "true") == 0);
    }
}
