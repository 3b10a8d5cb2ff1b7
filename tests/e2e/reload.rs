//! A changed configuration is applied whole or not at all, and nobody is dropped.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use nix::sys::signal::Signal;

use super::support::Address;
use super::support::pooler::Qcp;
use super::support::postgres::{SUPERUSER, postgres};
use super::support::programs::psql;
use super::support::raw::{RawClient, message};
use super::support::wait_until;

fn client(qcp: &Qcp, database: &str) -> RawClient {
    RawClient::login(&qcp.tcp(), SUPERUSER, database)
}

#[test]
fn a_smaller_pool_closes_backends_behind_their_transactions() {
    let server = postgres();
    server.create_database("reload_size");
    for cores in [1, 2] {
        let qcp = Qcp::start("pool: {size: 4}\n", cores);
        let mut clients: Vec<RawClient> = (0..4).map(|_| client(&qcp, "reload_size")).collect();
        for client in &mut clients {
            client.query("BEGIN").expect("a place for each");
        }
        let said = qcp.reload("pool: {size: 1}\n");
        assert!(said.contains("pool.size: 4 -> 1"), "{said}");
        assert_eq!(server.count_backends("reload_size"), 4, "transactions go on");
        for client in &mut clients {
            assert_eq!(client.query("SELECT 1").expect("its transaction goes on"), ["1"]);
            client.query("COMMIT").expect("its transaction goes on");
        }
        wait_until("backends above the new size are closed", Duration::from_secs(5), || {
            server.count_backends("reload_size") <= 1
        });
        for client in &mut clients {
            assert_eq!(client.query("SELECT 2").expect("nobody was dropped"), ["2"]);
        }
        assert!(server.count_backends("reload_size") <= 1);

        qcp.reload("pool: {size: 3}\n");
        for client in &mut clients[..3] {
            client.query("BEGIN").expect("a place for each again");
        }
        assert_eq!(server.count_backends("reload_size"), 3);
    }
}

#[test]
fn a_configuration_with_a_fault_changes_nothing() {
    postgres().create_database("reload_fault");
    let qcp = Qcp::start("pool: {size: 2, queue_timeout: 300ms}\n", 1);
    let mut one = client(&qcp, "reload_fault");
    qcp.rewrite("pool: {size: 1, queue_timeout: soon}\n");
    let said = qcp.control(&["reload"]).failure();
    assert!(said.contains("pool.queue_timeout") && said.contains("soon"), "{said}");
    let mut two = client(&qcp, "reload_fault");
    one.query("BEGIN").expect("the server answers");
    assert_eq!(two.query("SELECT 1").expect("there are two places still"), ["1"]);
    qcp.signal(Signal::SIGHUP);
    wait_until("the signal is looked at", Duration::from_secs(5), || {
        qcp.log().matches("nothing was reloaded").count() == 2
    });
}

#[test]
fn timeouts_and_limits_hold_at_once() {
    postgres().create_database("reload_limits");
    let qcp = Qcp::start("pool: {size: 1, queue_timeout: 1h}\n", 1);
    let mut holder = client(&qcp, "reload_limits");
    let mut waiter = client(&qcp, "reload_limits");
    holder.query("BEGIN").expect("the server answers");
    qcp.rewrite("pool: {size: 1, queue_timeout: 200ms}\nlimits: {max_clients: 2}\n");
    qcp.signal(Signal::SIGHUP);
    wait_until("the signal is looked at", Duration::from_secs(5), || {
        qcp.log().contains("reloaded: pool.queue_timeout")
    });
    assert_eq!(waiter.query("SELECT 1").expect_err("nothing is free").0, "53300");
    let refused = psql(&qcp.tcp(), SUPERUSER, "reload_limits").args(["-c", "SELECT 1"]).finish().failure();
    assert!(refused.contains("limits.max_clients is 2"), "{refused}");
    holder.query("COMMIT").expect("the server answers");
}

#[test]
fn a_limit_of_a_database_counts_who_is_there_already() {
    postgres().create_database("reload_counts");
    for cores in [1, 2] {
        let qcp = Qcp::start("pool: {size: 2}\n", cores);
        let mut there: Vec<RawClient> = (0..2).map(|_| client(&qcp, "reload_counts")).collect();
        qcp.reload("databases: {reload_counts: {limits: {max_clients: 3}}}\npool: {size: 2}\n");
        let third = client(&qcp, "reload_counts");
        let refused = || psql(&qcp.tcp(), SUPERUSER, "reload_counts").args(["-c", "SELECT 1"]).finish().failure();
        assert!(refused().contains("too many connections for database"));
        // A lower limit sends nobody away.
        qcp.reload("databases: {reload_counts: {limits: {max_clients: 1}}}\npool: {size: 2}\n");
        for client in &mut there {
            client.query("SELECT 1").expect("it stays");
        }
        drop((third, there.pop()));
        assert!(refused().contains("too many connections for database"));
        drop(there);
        wait_until("they are gone", Duration::from_secs(5), || {
            psql(&qcp.tcp(), SUPERUSER, "reload_counts").args(["-c", "SELECT 1"]).finish().status.success()
        });
    }
}

/// What a client has prepared in Smart mode, and what it has set in Session mode, is where that mode keeps it.
#[test]
fn another_mode_holds_for_clients_that_come_from_then_on() {
    let server = postgres();
    server.create_database("reload_both");
    let (smart, session) =
        ("relay_mode: Smart\npool: {size: 2}\n", "relay_mode: Session\npool: {size: 2, queue_timeout: 300ms}\n");
    let parse = [message(b'P', b"mine\0SELECT 'prepared'::text\0\0\0"), message(b'S', b"")].concat();
    let bind = [message(b'B', b"\0mine\0\0\0\0\0\0\0"), message(b'E', b"\0\0\0\0\0"), message(b'S', b"")].concat();
    let run = |client: &mut RawClient| {
        client.send(&bind);
        let answer = client.receive_until_ready();
        assert!(answer.iter().any(|message| message.tag == b'D' && message.body.ends_with(b"prepared")), "{answer:?}");
    };
    let qcp = Qcp::start(smart, 1);
    let mut old = client(&qcp, "reload_both");
    old.send(&parse);
    old.receive_until_ready();
    run(&mut old);
    qcp.reload(session);
    // One of the two backends is the new client's now; the old one gives the other back, and has its statement there.
    let mut new = client(&qcp, "reload_both");
    new.query("SET work_mem = '3MB'").expect("the server answers");
    let mut third = client(&qcp, "reload_both");
    for _ in 0..3 {
        run(&mut old);
        assert_eq!(new.query("SHOW work_mem").expect("its own backend"), ["3MB"]);
    }
    assert_eq!(third.query("SELECT name FROM pg_prepared_statements").expect("free"), [""; 0]);
    assert!(old.query("SELECT 1").is_err(), "both are taken for good");
    qcp.reload(smart);
    assert_eq!(new.query("SHOW work_mem").expect("its own backend"), ["3MB"]);
    drop(third);
    run(&mut old);
    assert_eq!(new.query("SHOW work_mem").expect("its own backend"), ["3MB"]);
    let mut fourth = client(&qcp, "reload_both");
    for _ in 0..3 {
        run(&mut old);
        assert_eq!(fourth.query("SHOW work_mem").expect("in turn"), ["4MB"]);
    }
}

#[test]
fn a_session_outlives_a_pool_whose_sessions_are_kept_otherwise() {
    let server = postgres();
    server.create_database("reload_mode");
    let qcp = Qcp::start("relay_mode: Session\nsession_state: none\npool: {size: 1, queue_timeout: 300ms}\n", 1);
    let mut holder = client(&qcp, "reload_mode");
    holder.query("SET work_mem = '3MB'").expect("the server answers");
    holder.query("CREATE TEMP TABLE mine (x int)").expect("the server answers");
    qcp.reload("relay_mode: Smart\nsession_state: preserve\npool: {size: 1, queue_timeout: 5s}\n");
    let mut other = client(&qcp, "reload_mode");
    // The session that was begun goes on; the pool of the new mode is another one.
    assert_eq!(holder.query("SHOW work_mem").expect("it keeps its session"), ["3MB"]);
    holder.query("SELECT * FROM mine").expect("it keeps its session");
    assert_eq!(other.query("SHOW work_mem").expect("of the new pool"), ["4MB"]);
    drop(holder);
    wait_until("its backend goes with it", Duration::from_secs(5), || server.count_backends("reload_mode") == 1);
    assert_eq!(other.query("SELECT count(*) FROM pg_class WHERE relname = 'mine'").expect("clean"), ["0"]);
}

#[test]
fn a_database_moves_under_its_clients() {
    let server = postgres();
    server.create_database("reload_from");
    server.create_database("reload_to");
    for cores in [1, 2] {
        let qcp =
            Qcp::start("session_state: none\ndatabases: {moving: {dbname: reload_from}}\npool: {size: 3}\n", cores);
        let mut clients: Vec<RawClient> = (0..6).map(|_| client(&qcp, "moving")).collect();
        for client in &mut clients {
            assert_eq!(client.query("SELECT current_database()").expect("served"), ["reload_from"]);
        }
        clients[0].query("BEGIN").expect("served");
        let said = qcp.reload("session_state: none\ndatabases: {moving: {dbname: reload_to}}\npool: {size: 3}\n");
        assert!(said.contains("databases.moving.dbname: reload_from -> reload_to"), "{said}");
        assert_eq!(clients[0].query("SELECT current_database()").expect("its transaction"), ["reload_from"]);
        clients[0].query("COMMIT").expect("its transaction");
        for client in &mut clients {
            assert_eq!(client.query("SELECT current_database()").expect("nobody was dropped"), ["reload_to"]);
        }
        wait_until("nothing stays", Duration::from_secs(5), || server.count_backends("reload_from") == 0);
    }
}

#[test]
fn what_is_not_served_any_more_has_no_backends() {
    let server = postgres();
    server.create_database("reload_gone");
    server.create_database("reload_stays");
    let with = "databases_only: true\ndatabases: {reload_gone: {}, reload_stays: {}}\n";
    let qcp = Qcp::start(with, 1);
    let (mut gone, mut stays) = (client(&qcp, "reload_gone"), client(&qcp, "reload_stays"));
    gone.query("SELECT 1").expect("served");
    stays.query("SELECT 1").expect("served");
    qcp.reload("databases_only: true\ndatabases: {reload_stays: {}}\n");
    wait_until("nothing stays", Duration::from_secs(5), || server.count_backends("reload_gone") == 0);
    assert_eq!(stays.query("SELECT 2").expect("it is not concerned"), ["2"]);
    let refused = psql(&qcp.tcp(), SUPERUSER, "reload_gone").args(["-c", "SELECT 1"]).finish().failure();
    assert!(refused.contains("does not exist"), "{refused}");
    // And it can come back.
    qcp.reload(with);
    assert_eq!(client(&qcp, "reload_gone").query("SELECT 3").expect("served again"), ["3"]);
}

#[test]
fn passwords_are_read_again() {
    postgres().create_database("reload_password");
    let yaml = "auth: {method: scram-sha-256, user_file: $folder/users}\nlog_level: Info\n";
    // The file has to be there at the start: made by a first qcp that needs none.
    let qcp = Qcp::start("auth: {method: trust}\n", 1);
    let users = qcp.file("users");
    let write = |secret: &str| std::fs::write(&users, format!("\"{SUPERUSER}\" \"{secret}\"\n")).expect("writable");
    let log_in = |password: &str| {
        psql(&qcp.tcp(), SUPERUSER, "reload_password").env("PGPASSWORD", password).args(["-Atc", "SELECT 1"]).finish()
    };
    write("first");
    qcp.reload(yaml);
    assert_eq!(log_in("first").success().trim(), "1");
    write("second");
    let said = qcp.control(&["reload"]).success();
    assert!(said.contains("auth: "), "{said}");
    assert!(log_in("first").failure().contains("password authentication failed"));
    assert_eq!(log_in("second").success().trim(), "1");
}

#[test]
fn what_needs_a_restart_is_said() {
    postgres().create_database("reload_restart");
    let qcp = Qcp::start("log_level: Debug\n", 1);
    let mut client = client(&qcp, "reload_restart");
    let yaml = "tcp: {backlog: 7}\ncores: 3\npool: {size: 7}\nlimits: {max_clients: 20000}\n";
    for _ in 0..2 {
        let said = qcp.reload(yaml);
        let restart = |key: &str| said.lines().any(|line| line.starts_with(key) && line.ends_with("(needs a restart)"));
        assert!(restart("tcp.backlog:") && restart("cores:") && restart("limits.max_clients:"), "{said}");
        assert!(!restart("pool.size:"), "{said}");
    }
    client.query("SELECT 1").expect("nobody was dropped");
    assert_eq!(qcp.control(&["get", "pool.size"]).success().trim(), "7");
    let refused = "tls: {server: {mode: prefer}}\n";
    qcp.rewrite(refused);
    assert!(qcp.control(&["reload"]).failure().contains("restart"));
}

/// Clients stay, by whatever address they came.
#[test]
fn addresses_come_and_go() {
    postgres().create_database("reload_addresses");
    let qcp = Qcp::start("pool: {size: 2}\n", 2);
    let (first, second) = (qcp.tcp(), Address::loopback(super::support::free_port()));
    let connects = |address: &Address| std::net::TcpStream::connect((address.host.as_str(), address.port)).is_ok();
    let listening = |addresses: &[&str]| format!("listening_address: {addresses:?}\npool: {{size: 2}}\n");
    let mut early = client(&qcp, "reload_addresses");
    let mut over_unix = RawClient::login(&qcp.unix(), SUPERUSER, "reload_addresses");

    let other = format!("127.0.0.1:{}", second.port);
    let said = qcp.reload(&listening(&["127.0.0.1:$port", &other]));
    assert!(said.contains("listening_address: ") && !said.contains("restart"), "{said}");
    let mut late = RawClient::login(&second, SUPERUSER, "reload_addresses");
    late.query("SELECT 1").expect("it comes by the new address");
    assert!(connects(&first), "the old one is still there");
    assert!(!qcp.file(&format!(".s.PGSQL.{}", first.port)).exists(), "the socket file has gone");

    qcp.reload(&listening(&[&other]));
    assert!(!connects(&first), "nobody comes by the old one");
    for client in [&mut early, &mut over_unix, &mut late] {
        client.query("SELECT 1").expect("nobody was dropped");
    }

    // One that is taken: nothing is changed, nothing else of the file either.
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = taken.local_addr().expect("it is bound").to_string();
    qcp.rewrite(&listening(&["127.0.0.1:$port", &address]).replace("size: 2", "size: 9"));
    let said = qcp.control(&["reload"]).failure();
    assert!(said.contains("in use"), "{said}");
    assert!(!connects(&first) && connects(&second));
    assert_eq!(qcp.control(&["get", "pool.size"]).success().trim(), "2");

    // All addresses of the machine instead of one of them, on the same port, and back; and the socket file again.
    qcp.reload(&listening(&[&format!("0.0.0.0:{}", second.port), "unix:$folder:$port"]));
    RawClient::login(&second, SUPERUSER, "reload_addresses").query("SELECT 1").expect("served");
    RawClient::login(&qcp.unix(), SUPERUSER, "reload_addresses").query("SELECT 1").expect("served");
    qcp.reload(&listening(&[&other]));
    RawClient::login(&second, SUPERUSER, "reload_addresses").query("SELECT 1").expect("served");
    assert!(qcp.control(&["status"]).success().contains(&other));
    late.query("SELECT 1").expect("nobody was dropped");
}

#[test]
fn recycling_replaces_backends() {
    let server = postgres();
    server.create_database("reload_recycle");
    let qcp = Qcp::start("session_state: none\npool: {size: 1}\n", 1);
    let mut client = client(&qcp, "reload_recycle");
    let before = client.query("SELECT pg_backend_pid()").expect("served");
    qcp.control(&["reload"]).success();
    assert_eq!(client.query("SELECT pg_backend_pid()").expect("served"), before);
    qcp.control(&["reload", "--recycle"]).success();
    let after = client.query("SELECT pg_backend_pid()").expect("served");
    assert_ne!(after, before);
    client.query("BEGIN").expect("served");
    qcp.control(&["reconnect"]).success();
    assert_eq!(client.query("SELECT pg_backend_pid()").expect("its transaction goes on"), after);
    client.query("COMMIT").expect("served");
    assert_ne!(client.query("SELECT pg_backend_pid()").expect("served"), after);
}

/// Sizes, modes, users, databases, servers' names, times and addresses change under load; nobody is dropped, no answer is
/// wrong. Session mode is not among them: who is in it keeps its backend until it disconnects.
#[test]
fn many_reloads_under_load() {
    const RELOADS: usize = 200;
    let server = postgres();
    server.create_database("reload_load");
    let second = super::support::free_port();
    let settings: Vec<String> = (0..8)
        .map(|at| {
            let (size, mode) = (1 + at * 3 % 7, ["Smart", "Smart", "Statement"][at % 3]);
            let user = if at % 2 == 0 { "users: {joe: {pool: {size: 1}}}\n" } else { "" };
            let database = if at % 3 == 0 { "databases: {reload_load: {pool: {lifetime: 1s}}}\n" } else { "" };
            // The same server by another name: every backend is replaced.
            let host = if at % 4 < 2 { "127.0.0.1" } else { "localhost" };
            let doors =
                ["\"127.0.0.1:$port\"".to_owned(), format!("\"127.0.0.1:{second}\""), "\"unix:$folder\"".to_owned()];
            let doors: Vec<String> =
                doors.into_iter().enumerate().filter(|(door, _)| *door != at % 3).map(|(_, door)| door).collect();
            format!(
                "listening_address: [{}]\nservers: [\"{host}:{}\"]\nrelay_mode: {mode}\n\
                 pool: {{size: {size}, queue_timeout: {}s}}\n{user}{database}",
                doors.join(", "),
                server.tcp().port,
                60 + at
            )
        })
        .collect();
    let qcp = Qcp::start("pool: {size: 4}\n", 2);
    let (ended, answered) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        for who in 0..8 {
            let mut client = client(&qcp, "reload_load");
            let (ended, answered) = (&ended, &answered);
            scope.spawn(move || {
                let mut count = 0;
                while !ended.load(Ordering::Relaxed) {
                    count += 1;
                    let expected = format!("{who}.{count}");
                    let said = client.query(&format!("SELECT '{expected}'"));
                    assert_eq!(said.expect("nobody is dropped"), [expected]);
                    answered.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        // And some that come and go, by whichever address is there.
        for address in [qcp.tcp(), Address::loopback(second), qcp.unix()] {
            let (ended, answered) = (&ended, &answered);
            scope.spawn(move || {
                while !ended.load(Ordering::Relaxed) {
                    // The address may have gone, and with it whoever had not been accepted yet. Who is in is served.
                    if let Some(mut client) = RawClient::try_login(&address, SUPERUSER, "reload_load") {
                        client.query("SELECT 1").expect("who is in is served");
                        answered.fetch_add(1, Ordering::Relaxed);
                    }
                }
            });
        }
        for round in 0..RELOADS {
            qcp.rewrite(&settings[round % settings.len()]);
            let reloaded = qcp.control(&["reload"]);
            if reloaded.status.code() != Some(0) {
                ended.store(true, Ordering::Relaxed);
                reloaded.success();
            }
        }
        qcp.reload("relay_mode: Smart\npool: {size: 2}\n");
        wait_until("no backend is above the last size", Duration::from_secs(10), || {
            server.count_backends("reload_load") <= 2
        });
        let before = answered.load(Ordering::Relaxed);
        wait_until("all are still served", Duration::from_secs(10), || answered.load(Ordering::Relaxed) > before + 100);
        ended.store(true, Ordering::Relaxed);
    });
    assert!(!qcp.log().contains("ERROR"), "{}", qcp.log());
}
