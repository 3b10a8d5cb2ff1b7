//! What an administrator orders while qcp runs: pause, resume, drain, kill, disable, enable, get, set.

use std::time::Duration;

use nix::sys::signal::Signal;

use super::support::pooler::Qcp;
use super::support::postgres::{ROLES, SUPERUSER, postgres};
use super::support::programs::{Program, psql};
use super::support::raw::{RawClient, error_field, message, zero_ended};
use super::support::wait_until;

fn client(qcp: &Qcp, database: &str) -> RawClient {
    RawClient::login(&qcp.tcp(), SUPERUSER, database)
}

fn ask(client: &mut RawClient, statement: &str) {
    client.send(&message(b'Q', &zero_ended(statement)));
}

#[test]
fn a_paused_pool_lets_its_clients_wait() {
    let server = postgres();
    server.create_database("orders_pause");
    server.create_database("orders_beside");
    for cores in [1, 2] {
        let qcp = Qcp::start("pool: {size: 2}\n", cores);
        let mut busy = client(&qcp, "orders_pause");
        let mut idle = client(&qcp, "orders_pause");
        let mut beside = client(&qcp, "orders_beside");
        idle.query("SELECT 1").expect("served");
        busy.query("BEGIN").expect("served");
        let said = qcp.control(&["pause", "orders_pause", "--timeout", "300ms"]).failure();
        assert!(said.contains("not done"), "a transaction is under way: {said}");
        busy.query("COMMIT").expect("what was begun is ended");
        qcp.control(&["pause", "orders_pause"]).success();
        wait_until("no backend is left", Duration::from_secs(5), || server.count_backends("orders_pause") == 0);
        ask(&mut idle, "SELECT 'waited'");
        std::thread::sleep(Duration::from_millis(300));
        assert_eq!(server.count_backends("orders_pause"), 0, "nothing is opened");
        assert_eq!(beside.query("SELECT 2").expect("another database is not concerned"), ["2"]);
        qcp.control(&["resume", "orders_pause"]).success();
        assert!(idle.receive_until_ready().iter().any(|reply| reply.body.ends_with(b"waited")));
        assert_eq!(busy.query("SELECT 3").expect("served again"), ["3"]);
    }
}

#[test]
fn a_pause_ends_like_the_queue() {
    postgres().create_database("orders_timeout");
    let qcp = Qcp::start("pool: {queue_timeout: 300ms}\n", 1);
    let mut client = client(&qcp, "orders_timeout");
    client.query("SELECT 1").expect("served");
    qcp.control(&["pause"]).success();
    assert_eq!(client.query("SELECT 1").expect_err("nothing is lent").0, "53300");
    qcp.control(&["resume"]).success();
    assert_eq!(client.query("SELECT 2").expect("the client stayed"), ["2"]);
}

#[test]
fn one_database_goes_on_where_all_are_paused() {
    let server = postgres();
    server.create_database("orders_goes_on");
    server.create_database("orders_stays");
    let qcp = Qcp::start("pool: {queue_timeout: 300ms}\n", 2);
    let (mut goes_on, mut stays) = (client(&qcp, "orders_goes_on"), client(&qcp, "orders_stays"));
    goes_on.query("SELECT 1").expect("served");
    qcp.control(&["pause"]).success();
    qcp.control(&["resume", "orders_goes_on"]).success();
    assert_eq!(goes_on.query("SELECT 2").expect("served again"), ["2"]);
    assert_eq!(stays.query("SELECT 1").expect_err("nothing is lent").0, "53300");
    // Who comes later is treated alike.
    assert_eq!(client(&qcp, "orders_goes_on").query("SELECT 3").expect("served"), ["3"]);
    qcp.control(&["pause", "orders_goes_on"]).success();
    assert_eq!(goes_on.query("SELECT 1").expect_err("nothing is lent").0, "53300");
    qcp.control(&["resume"]).success();
    for client in [&mut goes_on, &mut stays] {
        assert_eq!(client.query("SELECT 4").expect("served"), ["4"]);
    }
}

#[test]
fn signals_pause_and_resume() {
    let server = postgres();
    server.create_database("orders_signals");
    let qcp = Qcp::start("", 1);
    let mut client = client(&qcp, "orders_signals");
    client.query("SELECT 1").expect("served");
    qcp.signal(Signal::SIGUSR1);
    wait_until("it is paused", Duration::from_secs(5), || server.count_backends("orders_signals") == 0);
    ask(&mut client, "SELECT 'waited'");
    std::thread::sleep(Duration::from_millis(200));
    assert_eq!(server.count_backends("orders_signals"), 0);
    qcp.signal(Signal::SIGUSR2);
    assert!(client.receive_until_ready().iter().any(|reply| reply.body.ends_with(b"waited")));
}

#[test]
fn a_login_waits_out_a_pause() {
    postgres().create_database("orders_login");
    let qcp = Qcp::start("", 1);
    qcp.control(&["pause"]).success();
    let login = psql(&qcp.tcp(), SUPERUSER, "orders_login").args(["-Atc", "SELECT 1"]).start();
    std::thread::sleep(Duration::from_millis(500));
    assert_eq!(postgres().count_backends("orders_login"), 0);
    qcp.control(&["resume"]).success();
    assert_eq!(login.finish().success().trim(), "1");
}

#[test]
fn a_killed_database_can_be_dropped() {
    let server = postgres();
    for (cores, name) in [(1, "orders_kill_1"), (2, "orders_kill_2")] {
        server.create_database(name);
        let qcp = Qcp::start("pool: {size: 4}\n", cores);
        let mut sleeper = client(&qcp, name);
        let mut open = client(&qcp, name);
        let mut idle = client(&qcp, name);
        open.query("BEGIN").expect("served");
        idle.query("SELECT 1").expect("served");
        ask(&mut sleeper, "SELECT pg_sleep(60)");
        std::thread::sleep(Duration::from_millis(200));
        qcp.control(&["kill", name]).success();
        for client in [&mut sleeper, &mut open, &mut idle] {
            let replies = client.receive_until_ready();
            assert_eq!(error_field(&replies[0].body, b'C'), "57P01", "{replies:?}");
        }
        // Who connects now waits: nobody is in the way.
        let waits = psql(&qcp.tcp(), SUPERUSER, name).args(["-Atc", "SELECT 1"]).start();
        std::thread::sleep(Duration::from_millis(200));
        server.execute("postgres", &format!("DROP DATABASE {name}"));
        server.execute("postgres", &format!("CREATE DATABASE {name}"));
        qcp.control(&["resume", name]).success();
        assert_eq!(waits.finish().success().trim(), "1");
    }
}

#[test]
fn a_disabled_database_lets_nobody_in() {
    postgres().create_database("orders_disable");
    let qcp = Qcp::start("", 1);
    let mut there = client(&qcp, "orders_disable");
    qcp.control(&["disable", "orders_disable"]).success();
    assert_eq!(there.query("SELECT 1").expect("who is there stays"), ["1"]);
    let refused = psql(&qcp.tcp(), SUPERUSER, "orders_disable").args(["-c", "SELECT 1"]).finish().failure();
    assert!(refused.contains("is disabled"), "{refused}");
    qcp.control(&["enable", "orders_disable"]).success();
    assert_eq!(client(&qcp, "orders_disable").query("SELECT 2").expect("let in again"), ["2"]);
    assert!(qcp.control(&["disable"]).failure().contains("which database"));
}

#[test]
fn a_drained_database_loses_its_clients_between_transactions() {
    postgres().create_database("orders_drain");
    let qcp = Qcp::start("", 1);
    let (mut busy, mut idle) = (client(&qcp, "orders_drain"), client(&qcp, "orders_drain"));
    busy.query("BEGIN").expect("served");
    qcp.control(&["drain", "orders_drain", "--no-wait"]).success();
    assert_eq!(error_field(&idle.receive_until_ready()[0].body, b'C'), "57P01");
    std::thread::sleep(Duration::from_millis(400));
    assert_eq!(busy.query("SELECT 1").expect("its transaction goes on"), ["1"]);
    busy.query("COMMIT").expect("its transaction goes on");
    assert_eq!(error_field(&busy.receive_until_ready()[0].body, b'C'), "57P01");
    qcp.control(&["drain", "orders_drain"]).success();
    qcp.control(&["enable", "orders_drain"]).success();
    client(&qcp, "orders_drain");
}

#[test]
fn one_key_is_set_until_the_next_reload() {
    postgres().create_database("orders_set");
    let qcp = Qcp::start("pool: {size: 2, queue_timeout: 300ms}\n", 1);
    let (mut one, mut two) = (client(&qcp, "orders_set"), client(&qcp, "orders_set"));
    assert_eq!(qcp.control(&["get", "pool.size"]).success().trim(), "2");
    let said = qcp.control(&["set", "pool.size", "1"]).success();
    assert!(said.contains("pool.size: 2 -> 1"), "{said}");
    assert_eq!(qcp.control(&["get", "pool.size"]).success().trim(), "1");
    one.query("BEGIN").expect("served");
    assert_eq!(two.query("SELECT 1").expect_err("one place").0, "53300");
    qcp.control(&["reload"]).success();
    assert_eq!(two.query("SELECT 1").expect("two places again"), ["1"]);
    assert!(qcp.control(&["set", "pool.size", "many"]).failure().contains("pool.size"));
    assert!(qcp.control(&["set", "pool.sise", "1"]).failure().contains("pool.sise"));
    assert!(qcp.control(&["get", "pool.sise"]).failure().contains("no key"));
    let all = qcp.control(&["get", "--json"]).success();
    let rows: serde_json::Value = serde_json::from_str(&all).expect("it is JSON");
    let rows = rows.as_array().expect("rows");
    let changeable =
        |key: &str| rows.iter().find(|row| row["key"] == key).expect("it has a default")["changeable"] == true;
    assert!(changeable("listening_address") && !changeable("arena.chunk_size"));
}

#[test]
fn logins_are_checked_at_the_servers() {
    let server = postgres();
    let database = "orders_login_check";
    server.create_database(database);
    let asks = |qcp: &Qcp, user: &str, password: &str| {
        let program = Program::new(env!("CARGO_BIN_EXE_qcp-ctrl")).arg("--socket").arg(qcp.control_socket());
        program.env("PGPASSWORD", password).args(["check-login", database, user]).finish()
    };
    let qcp = Qcp::start("", 1);
    for method in ["scram-sha-256", "md5", "password"] {
        let role = ROLES.iter().find(|role| role.method == method).expect("there is one of each");
        let said = asks(&qcp, role.name, role.password).success();
        assert!(said.contains(&format!("ok: database {database}, user {}", role.name)), "{said}");
        assert!(said.contains("primary"), "{said}");
        let wrong = asks(&qcp, role.name, "wrong");
        assert!(wrong.stdout.contains("invalid password") && wrong.status.code() == Some(1), "{wrong:?}");
        let none = asks(&qcp, role.name, "");
        assert!(none.stdout.contains("error:") && none.stdout.contains("PGPASSWORD"), "{none:?}");
        assert!(!qcp.log().contains(role.password), "a password is in no log");
    }
    assert!(asks(&qcp, SUPERUSER, "").success().contains("let in without a password"));
    // With what QCP itself has, under another name.
    let role = ROLES.iter().find(|role| role.method == "scram-sha-256").expect("there is one");
    let own = format!(
        "auth: {{method: trust, server_user: {}, server_password: '{}'}}\ndatabases_only: true\n\
         databases: {{{database}: {{}}, gone: {{servers: [\"127.0.0.1:1\"]}}}}\n",
        role.name, role.password
    );
    let qcp = Qcp::start(&own, 1);
    assert!(asks(&qcp, "whoever", "").success().contains(&format!("user {}", role.name)));
    let gone = qcp.control(&["check-login", "gone", "x", "--json"]);
    assert!(gone.stdout.contains("\"outcome\": \"error\"") && gone.status.code() == Some(1), "{gone:?}");
    assert!(qcp.control(&["check-login", "elsewhere", "x"]).failure().contains("not served"));
}

#[test]
fn top_shows_who_waits_and_what_lasts() {
    postgres().create_database("orders_top");
    let qcp = Qcp::start("pool: {size: 1}\n", 2);
    let (mut holder, mut waiter) = (client(&qcp, "orders_top"), client(&qcp, "orders_top"));
    holder.query("BEGIN").expect("served");
    let pid = holder.query("SELECT pg_backend_pid()").expect("served").remove(0);
    ask(&mut waiter, "SELECT 1");
    std::thread::sleep(Duration::from_millis(1200));
    // Without a terminal it is one screen.
    let shown = qcp.control(&["top", "--every", "300ms"]).success();
    let line =
        |what: &str| shown.lines().find(|line| line.contains(what)).unwrap_or_else(|| panic!("{what}:\n{shown}"));
    let pool = shown.lines().find(|line| line.starts_with("orders_top ")).expect("the pool is there");
    let pool: Vec<&str> = pool.split_whitespace().collect();
    assert_eq!(&pool[2..6], ["1/1", "0", "2", "1"], "busy, idle, clients, waiting:\n{shown}");
    assert!(line("waiting 1").contains("clients 2"), "{shown}");
    let transaction: Vec<&str> = line(&format!(" {pid} ")).split_whitespace().collect();
    assert_eq!((transaction[1], transaction[3]), ("idle", "orders_top"), "{shown}");
    assert!(transaction[0].ends_with('s') && !transaction[0].ends_with("ms"), "more than a second:\n{shown}");
    assert_eq!(shown.lines().filter(|line| line.trim_start().starts_with(['0', '1']) && line.contains('%')).count(), 2);
    holder.query("COMMIT").expect("served");
    waiter.receive_until_ready();
    // At a terminal it goes on until q.
    let script = "import pty, os, sys, time, select, fcntl, termios, struct\n\
                  pid, terminal = pty.fork()\n\
                  if pid == 0:\n\
                  \x20   fcntl.ioctl(0, termios.TIOCSWINSZ, struct.pack('HHHH', 24, 80, 0, 0))\n\
                  \x20   os.execv(sys.argv[1], sys.argv[1:])\n\
                  seen = b''\n\
                  until = time.time() + 3\n\
                  while time.time() < until:\n\
                  \x20   if select.select([terminal], [], [], 0.2)[0]: seen += os.read(terminal, 65536)\n\
                  os.write(terminal, b'q')\n\
                  print('ended', os.waitpid(pid, 0)[1], b'orders_top' in seen, b'[?1049h' in seen)\n";
    let socket = qcp.control_socket();
    let program = Program::new("/usr/bin/python3").args(["-c", script, env!("CARGO_BIN_EXE_qcp-ctrl"), "--socket"]);
    let said = program.arg(&socket).arg("top").env("TERM", "xterm").finish().success();
    assert_eq!(said.trim(), "ended 0 True True");
}
