//! One qcp takes over from another: nobody who connects is refused, what runs comes to its end, and if the new one cannot
//! start, the old one has not been touched.

use std::net::TcpStream;
use std::time::{Duration, Instant};

use super::support::free_port;
use super::support::pooler::{Qcp, control};
use super::support::postgres::{SUPERUSER, postgres};
use super::support::programs::{Finished, pgbench, psql};
use super::support::raw::{PATIENCE, RawClient, Received, error_field, message, untagged, zero_ended};
use super::support::wait_until;

const CANCEL: u32 = 80_877_102;

fn login(qcp: &Qcp, database: &str) -> RawClient {
    RawClient::login(&qcp.tcp(), SUPERUSER, database)
}

fn assert_clean(finished: &Finished) {
    assert!(finished.status.success(), "{finished:?}");
    let is_bad =
        |line: &&str| ["error", "refused", "fatal", "aborted"].iter().any(|word| line.to_lowercase().contains(word));
    let bad: Vec<&str> = finished.stderr.lines().filter(is_bad).collect();
    assert!(bad.is_empty(), "{bad:?}");
    assert!(finished.stdout.contains("number of failed transactions: 0"), "{}", finished.stdout);
}

/// Clients that connect for each transaction, over TCP and over the Unix socket, notice nothing of a chain of takeovers; a
/// transaction of the first process ends in it.
fn check(database: &str, chain: &[usize]) {
    let server = postgres();
    server.create_database(database);
    server.execute(database, "CREATE TABLE kept (n int)");
    let yaml = "pool: {size: 4}\nlimits: {login_timeout: 20s}\n";
    let mut qcp = Qcp::start(yaml, chain[0]);
    let mut busy = login(&qcp, database);
    busy.query("BEGIN").expect("the server answers");
    std::thread::scope(|scope| {
        let bench = |address| {
            scope.spawn(move || {
                let bench = pgbench(&address, SUPERUSER, database).input("");
                let script = ["-n", "-C", "-c", "8", "-j", "2", "-T", "6", "-b", "select-only"];
                bench.args(script).finish()
            })
        };
        server.execute(database, "CREATE TABLE pgbench_accounts (aid int, abalance int)");
        server.execute(database, "CREATE TABLE pgbench_branches (bid int); INSERT INTO pgbench_branches VALUES (1)");
        let benches = [bench(qcp.tcp()), bench(qcp.unix())];
        let mut olds = Vec::new();
        for &cores in &chain[1..] {
            std::thread::sleep(Duration::from_millis(1200));
            let mut new = qcp.succeeded_by(yaml, cores);
            new.wait_until_it_serves();
            let old = std::mem::replace(&mut qcp, new);
            let status = qcp.control(&["status"]).success();
            assert!(status.contains(&qcp.pid().to_string()), "{status}");
            olds.push(old);
        }
        for bench in benches {
            assert_clean(&bench.join().expect("it ends"));
        }
        busy.query("INSERT INTO kept VALUES (1)").expect("its transaction goes on");
        busy.query("COMMIT").expect("and ends");
        for old in &mut olds {
            assert!(old.wait().success(), "{}", old.log());
        }
    });
    assert!(matches!(busy.receive(PATIENCE), Received::Message(_)), "it is told why it is sent off");
    assert_eq!(server.execute(database, "SELECT count(*) FROM kept").trim(), "1");
    // What stands in the file system is the last one's, and works.
    for address in [qcp.tcp(), qcp.unix()] {
        assert_eq!(psql(&address, SUPERUSER, database).args(["-Atc", "SELECT 1"]).finish().success().trim(), "1");
    }
    assert_eq!(left_in(&qcp), ["control.sock"]);
    qcp.control(&["quit"]).success();
    assert!(qcp.wait().success());
    assert_eq!(left_in(&qcp), [""; 0]);
    assert!(!qcp.file(&format!(".s.PGSQL.{}", qcp.tcp().port)).exists());
}

/// Control sockets, by name.
fn left_in(qcp: &Qcp) -> Vec<String> {
    let folder = qcp.control_socket();
    let entries = std::fs::read_dir(folder.parent().expect("it is in a folder")).expect("it is there");
    let names = entries.map(|entry| entry.expect("it can be read").file_name().to_string_lossy().into_owned());
    names.filter(|name| name.contains("control")).collect()
}

#[test]
fn nobody_is_refused_with_as_many_cores() {
    check("takeover_same", &[2, 2]);
}

#[test]
fn nobody_is_refused_with_more_cores_and_then_fewer() {
    check("takeover_other", &[1, 3, 1]);
}

#[test]
fn cancels_for_the_old_ones_clients_are_passed_on() {
    let server = postgres();
    server.create_database("takeover_cancel");
    // The second has fewer cores than there are in the key, so that it has no such shard.
    let first = Qcp::start("pool: {size: 6}\n", 2);
    let mut clients: Vec<RawClient> = (0..6).map(|_| login(&first, "takeover_cancel")).collect();
    for client in &mut clients {
        client.send(&message(b'Q', &zero_ended("BEGIN; SELECT pg_sleep(60)")));
    }
    let asleep = || server.count_activity("datname = 'takeover_cancel' AND wait_event = 'PgSleep'");
    // None waits for a backend: a cancel that comes when its query has just been sent is without effect, as on any connection.
    wait_until("they sleep", Duration::from_secs(5), || asleep() == 6);
    let mut second = first.succeeded_by("pool: {size: 6}\n", 1);
    second.wait_until_it_serves();
    // And one further on: its predecessor's predecessor is asked, too.
    let mut third = second.succeeded_by("pool: {size: 6}\n", 1);
    third.wait_until_it_serves();
    for client in &mut clients {
        let begun = Instant::now();
        RawClient::connect(&third.tcp()).send(&untagged(CANCEL, &client.key));
        let replies = client.receive_until_ready();
        let error = replies.iter().find(|reply| reply.tag == b'E').unwrap_or_else(|| panic!("{replies:?}"));
        assert_eq!(error_field(&error.body, b'C'), "57014");
        assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
        client.query("ROLLBACK").expect("it goes on");
    }
    assert_eq!(asleep(), 0);
    // The old one can be asked under its own name.
    let aside = first.file(&format!("control.sock.{}", first.pid()));
    if aside.exists() {
        let status = control(&aside, &["status"]);
        assert!(status.stdout.contains("draining") || status.status.code() == Some(3), "{status:?}");
    }
}

#[test]
fn a_new_one_that_cannot_start_leaves_the_old_one_as_it_was() {
    postgres().create_database("takeover_fails");
    let qcp = Qcp::start("pool: {size: 2}\n", 2);
    let mut client = login(&qcp, "takeover_fails");
    let held = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let taken = held.local_addr().expect("it is bound");
    for yaml in [
        format!("listening_address: [\"127.0.0.1:$port\", \"{taken}\"]\n"),
        "arena: {chunks_count: 2}\n".to_owned(),
        "pool: {size: none}\n".to_owned(),
    ] {
        let mut new = qcp.succeeded_by(&yaml, 2);
        assert!(!new.wait().success(), "{yaml}: {}", new.log());
    }
    drop(held);
    qcp.rewrite("pool: {size: 2}\n");
    client.query("SELECT 1").expect("nobody was dropped");
    for address in [qcp.tcp(), qcp.unix()] {
        let mut new = RawClient::login(&address, SUPERUSER, "takeover_fails");
        new.query("SELECT 1").expect("new ones are let in");
    }
    assert!(qcp.control(&["status"]).success().contains("running"));
}

/// At the worst moment: the old one has stopped to accept, and the new one is killed before it does.
#[test]
fn a_new_one_that_dies_in_the_middle_gives_everything_back() {
    use std::io::{BufRead, BufReader, Write};
    use std::os::unix::net::UnixStream;
    postgres().create_database("takeover_dies");
    let qcp = Qcp::start("pool: {size: 2}\n", 2);
    for _ in 0..3 {
        let ask = || {
            let new = UnixStream::connect(qcp.control_socket()).expect("it is there");
            let mut lines = BufReader::new(new.try_clone().expect("a descriptor is left"));
            let mut line = String::new();
            (&new).write_all(b"{\"version\":1,\"command\":\"takeover\"}\n").expect("it listens");
            lines.read_line(&mut line).expect("an offer");
            (new, lines, line)
        };
        let (mut new, mut lines, mut line) = ask();
        // It accepts again a moment before it is done with the one that died.
        wait_until("it is done with the last one", Duration::from_secs(10), || {
            if line.contains("another process is about to take over") {
                (new, lines, line) = ask();
            }
            line.contains("\"Ok\"")
        });
        (&new).write_all(b"\"hand-over\"\n").expect("it listens");
        line.clear();
        lines.read_line(&mut line).expect("a word");
        assert!(line.contains("stopped"), "{line}");
        // Nobody accepts now; who connects waits.
        let waits = TcpStream::connect(("127.0.0.1", qcp.tcp().port)).expect("the socket is open");
        drop((new, lines));
        let mut client = login(&qcp, "takeover_dies");
        client.query("SELECT 1").expect("it accepts again");
        drop(waits);
    }
    assert_eq!(left_in(&qcp), ["control.sock"]);
    assert!(qcp.control(&["status"]).success().contains("running"));
    assert!(!qcp.log().contains("WARN  control"), "{}", qcp.log());
}

#[test]
fn who_does_nothing_is_sent_off_and_who_works_is_not() {
    postgres().create_database("takeover_idle");
    let yaml = "pool: {size: 4}\nshutdown_timeout: 4s\n";
    let mut old = Qcp::start(yaml, 1);
    let mut idle = login(&old, "takeover_idle");
    let mut busy = login(&old, "takeover_idle");
    let mut long = login(&old, "takeover_idle");
    long.query("BEGIN").expect("the server answers");
    let begun = Instant::now();
    let mut new = old.succeeded_by(yaml, 1);
    new.wait_until_it_serves();
    let mut queries = 0;
    let code = loop {
        if let Received::Message(message) = idle.receive(Duration::from_millis(50)) {
            break error_field(&message.body, b'C');
        }
        busy.query("SELECT 1").expect("who works is served");
        queries += 1;
    };
    assert_eq!(code, "57P01");
    assert!(queries > 5 && begun.elapsed() < Duration::from_secs(5), "{queries} in {:?}", begun.elapsed());
    // Who never pauses goes after shutdown_timeout, between two transactions.
    wait_until("it is sent off", Duration::from_secs(10), || {
        busy.send(&message(b'Q', &zero_ended("SELECT 1")));
        busy.receive_until_ready().last().is_none_or(|last| last.tag != b'Z')
    });
    // A transaction is not.
    std::thread::sleep(Duration::from_secs(1));
    long.query("COMMIT").expect("a transaction ends as it would");
    assert!(old.wait().success(), "{}", old.log());
    login(&new, "takeover_idle").query("SELECT 1").expect("served");
}

#[test]
fn there_must_be_somebody_to_take_over_from() {
    let mut qcp = Qcp::start("", 1);
    qcp.control(&["quit"]).success();
    qcp.wait();
    let mut new = qcp.succeeded_by("", 1);
    assert!(!new.wait().success());
    assert!(new.log().contains("--takeover: no qcp listens at"), "{}", new.log());
}

#[test]
fn the_metrics_move_along() {
    let yaml = format!("metrics: {{address: 127.0.0.1:{}}}\n", free_port());
    let port: u16 =
        yaml.rsplit(':').next().and_then(|rest| rest.trim_end_matches(['}', '\n']).parse().ok()).expect("a port");
    let page = || {
        use std::io::{Read, Write};
        let mut stream = TcpStream::connect(("127.0.0.1", port)).expect("it listens");
        stream.write_all(b"GET /readyz HTTP/1.1\r\n\r\n").expect("it reads");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("it answers");
        answer
    };
    let mut old = Qcp::start(&yaml, 1);
    assert!(page().starts_with("HTTP/1.1 "), "{}", page());
    let mut new = old.succeeded_by(&yaml, 1);
    new.wait_until_it_serves();
    assert!(old.wait().success(), "{}", old.log());
    for _ in 0..20 {
        assert!(!page().contains("draining"));
    }
}
