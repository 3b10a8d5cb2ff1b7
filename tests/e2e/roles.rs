//! Several servers: who is the primary is known and followed, and clients keep their connections when it changes. With
//! real streaming replication.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use super::support::pooler::{Qcp, Setup};
use super::support::postgres::SUPERUSER;
use super::support::programs::psql;
use super::support::raw::{
    Message, PATIENCE, PROTOCOL_3_0, RawClient, Received, error_field, message, startup, zero_ended,
};
use super::support::server::Server;
use super::support::wait_until;

/// "Writes go on within a second of the new primary accepting them."
const WITHIN: Duration = Duration::from_secs(1);
const LONG: Duration = Duration::from_secs(15);

/// A primary with a table, and its standby.
fn pair() -> (Server, Server) {
    let primary = Server::start(&[]);
    primary.execute("postgres", "CREATE TABLE kept (n int, at int DEFAULT inet_server_port())");
    let standby = Server::standby_of(&primary, &[]);
    (primary, standby)
}

/// The standby comes first: what is chosen without asking is wrong.
fn start(primary: &Server, standby: &Server, yaml: &str, cores: usize) -> Qcp {
    let servers = format!("servers: [{:?}, {:?}]\n", standby.name(), primary.name());
    Setup::new(&(servers + yaml)).cores(cores).start()
}

fn client(qcp: &Qcp) -> RawClient {
    RawClient::login(&qcp.tcp(), SUPERUSER, "postgres")
}

fn query(text: &str) -> Vec<u8> {
    message(b'Q', &zero_ended(text))
}

fn port_of(client: &mut RawClient) -> u16 {
    client.query("SELECT inet_server_port()").expect("it answers")[0].parse().expect("a port")
}

/// What came in the place of an answer, if the connection ended with an error.
fn last_words(client: &mut RawClient) -> (String, String) {
    let mut words = None;
    loop {
        match client.receive(PATIENCE) {
            Received::Message(Message { tag: b'E', body }) => {
                words = Some((error_field(&body, b'C'), error_field(&body, b'M')));
            }
            Received::Message(_) => {}
            Received::Closed => return words.expect("never a bare disconnect"),
            Received::Quiet => panic!("neither an answer nor an error"),
        }
    }
}

/// A client that writes one row after another, and comes again when it is sent away.
struct Tally {
    stop: AtomicBool,
    /// What took effect for certain, and what may have.
    written: AtomicUsize,
    doubtful: AtomicUsize,
    sent_away: AtomicUsize,
    other_errors: AtomicUsize,
}

fn write_on(
    address: &super::support::Address,
    tally: &Tally,
    first_after: &std::sync::Mutex<Vec<Instant>>,
    since: &std::sync::Mutex<Option<Instant>>,
) {
    let mut client = RawClient::login(address, SUPERUSER, "postgres");
    let mut noted = false;
    while !tally.stop.load(Ordering::Relaxed) {
        client.send(&query("INSERT INTO kept VALUES (1)"));
        let replies = client.receive_until_ready();
        let error = replies.iter().find(|reply| reply.tag == b'E');
        let code = error.map(|error| error_field(&error.body, b'C'));
        match (code.as_deref(), replies.last().is_some_and(|last| last.tag == b'Z')) {
            (None, true) => {
                tally.written.fetch_add(1, Ordering::Relaxed);
                let is_after = since.lock().unwrap().is_some();
                if is_after && !noted {
                    noted = true;
                    first_after.lock().unwrap().push(Instant::now());
                }
            }
            (Some("08006" | "57P01" | "57P02"), false) => {
                tally.doubtful.fetch_add(1, Ordering::Relaxed);
                tally.sent_away.fetch_add(1, Ordering::Relaxed);
                let mut again = RawClient::connect(address);
                again.send(&startup(PROTOCOL_3_0, &[("user", SUPERUSER), ("database", "postgres")]));
                let replies = again.receive_until_ready();
                assert!(replies.last().is_some_and(|last| last.tag == b'Z'), "no login: {replies:?}");
                client = again;
            }
            (code, stays) => {
                eprintln!("a writer was told {code:?}, and stays: {stays}; {replies:?}");
                tally.other_errors.fetch_add(1, Ordering::Relaxed);
                return;
            }
        }
    }
}

/// 64 clients: 32 do nothing, 16 are in transactions, 16 write. The primary dies, its standby is promoted, and the old one comes
/// back as a standby of the new.
fn check_promotion(cores: usize) {
    let (primary, standby) = pair();
    let qcp = start(&primary, &standby, "pool: {size: 20, queue_timeout: 30s}\n", cores);
    let mut idle: Vec<RawClient> = (0..32).map(|_| client(&qcp)).collect();
    let ports: Vec<u16> = idle.iter_mut().map(port_of).collect();
    assert!(ports.iter().all(|&port| port == primary.tcp().port), "{ports:?}");
    let mut busy: Vec<RawClient> = (0..16).map(|_| client(&qcp)).collect();
    for client in &mut busy {
        client.query("BEGIN; INSERT INTO kept VALUES (2)").expect("the primary takes it");
    }
    let tally = Arc::new(Tally {
        stop: AtomicBool::new(false),
        written: AtomicUsize::new(0),
        doubtful: AtomicUsize::new(0),
        sent_away: AtomicUsize::new(0),
        other_errors: AtomicUsize::new(0),
    });
    let (first_after, since) = (Arc::new(std::sync::Mutex::default()), Arc::new(std::sync::Mutex::new(None)));
    let writers: Vec<_> = (0..16)
        .map(|_| {
            let (address, tally, first_after, since) = (qcp.tcp(), tally.clone(), first_after.clone(), since.clone());
            std::thread::spawn(move || write_on(&address, &tally, &first_after, &since))
        })
        .collect();
    wait_until("they write", LONG, || tally.written.load(Ordering::Relaxed) > 200);

    primary.stop("immediate");
    // Asked while nobody is there to answer.
    idle[0].send(&query("INSERT INTO kept VALUES (3)"));
    std::thread::sleep(Duration::from_millis(500));
    standby.promote();
    let mut direct = RawClient::login(&standby.tcp(), SUPERUSER, "postgres");
    wait_until("it is the primary", LONG, || direct.query("SELECT pg_is_in_recovery()").expect("it answers") == ["f"]);
    let accepts = Instant::now();
    *since.lock().unwrap() = Some(accepts);
    assert!(idle[0].receive_until_ready().last().is_some_and(|last| last.tag == b'Z'), "it has waited");
    wait_until("all write again", LONG, || first_after.lock().unwrap().len() == 16);
    let slowest = first_after.lock().unwrap().iter().max().expect("16 of them").duration_since(accepts);
    assert!(slowest < WITHIN, "{slowest:?}\n{}", qcp.log());
    println!(
        "writes went on after {slowest:?}, {} of 16 writers were sent away",
        tally.sent_away.load(Ordering::Relaxed)
    );

    for client in &mut busy {
        client.send(&query("COMMIT"));
        let (code, text) = last_words(client);
        assert!(["08006", "57P01", "57P02"].contains(&code.as_str()), "{code}: {text}");
    }
    for client in &mut idle {
        assert_eq!(port_of(client), standby.tcp().port, "nobody who was idle has noticed");
    }
    // Of those who wrote, only who had a statement under way was sent away.
    assert!(tally.sent_away.load(Ordering::Relaxed) <= 16);

    primary.follow(&standby);
    assert!(primary.is_standby());
    wait_until("qcp knows it", LONG, || {
        let back = format!("server {} is a standby", primary.name());
        qcp.log().rfind(&back) > qcp.log().rfind("has become the primary")
    });
    for client in &mut idle {
        assert_eq!(
            client.query("INSERT INTO kept VALUES (4) RETURNING at").expect("it is taken"),
            [standby.tcp().port.to_string()]
        );
    }
    for _ in 0..16 {
        assert_eq!(port_of(&mut client(&qcp)), standby.tcp().port);
    }
    std::thread::sleep(Duration::from_millis(600));
    tally.stop.store(true, Ordering::Relaxed);
    for writer in writers {
        writer.join().expect("no writer panics");
    }
    assert_eq!(tally.other_errors.load(Ordering::Relaxed), 0, "25006 is what the old primary would say");
    let kept: usize =
        standby.execute("postgres", "SELECT count(*) FROM kept WHERE n = 1").trim().parse().expect("a number");
    // Replication is asynchronous, so the last rows of the old primary may be lost; none is there twice.
    let (written, doubtful) = (tally.written.load(Ordering::Relaxed), tally.doubtful.load(Ordering::Relaxed));
    assert!(kept <= written + doubtful, "{kept} rows of {written} and {doubtful}");
    assert_eq!(standby.execute("postgres", "SELECT count(*) FROM kept WHERE n = 2").trim(), "0");
    assert_eq!(standby.execute("postgres", "SELECT count(*) FROM kept WHERE n = 3").trim(), "1", "once");
}

#[test]
fn a_promotion_costs_who_is_in_a_transaction_and_nobody_else() {
    check_promotion(1);
}

#[test]
fn a_promotion_is_followed_on_every_core() {
    check_promotion(2);
}

#[test]
fn clients_go_where_the_route_says() {
    let (primary, standby) = pair();
    let yaml = "databases: {reports: {dbname: postgres, route: standby}, either: {dbname: postgres, route: any}}\n\
                users: {usual: {route: standby}}\n";
    primary.execute("postgres", "CREATE ROLE usual LOGIN");
    let qcp = start(&primary, &standby, yaml, 1);
    let port = |database: &str| port_of(&mut RawClient::login(&qcp.tcp(), SUPERUSER, database));
    for _ in 0..6 {
        assert_eq!(port("postgres"), primary.tcp().port);
        assert_eq!(port("reports"), standby.tcp().port);
    }
    wait_until("the role is there", LONG, || {
        standby.execute("postgres", "SELECT count(*) FROM pg_roles WHERE rolname = 'usual'").trim() == "1"
    });
    assert_eq!(port_of(&mut RawClient::login(&qcp.tcp(), "usual", "postgres")), standby.tcp().port);
    let mut ports: Vec<u16> = (0..6).map(|_| port("either")).collect();
    ports.sort_unstable();
    ports.dedup();
    assert_eq!(ports.len(), 2, "in turn");
    let error =
        RawClient::login(&qcp.tcp(), SUPERUSER, "reports").query("CREATE TABLE refused ()").expect_err("a standby");
    assert_eq!(error.0, "25006");
    let shown = qcp.control(&["show", "pools"]).success();
    let role_of = |server: &Server| {
        let line = shown.lines().find(|line| line.contains(&server.name())).unwrap_or_else(|| panic!("{shown}"));
        line.split_whitespace().last().unwrap_or_default().to_owned()
    };
    assert_eq!((role_of(&primary), role_of(&standby)), ("primary".to_owned(), "standby".to_owned()), "{shown}");
}

#[test]
fn clients_are_shared_out_by_weight() {
    let (primary, standby) = pair();
    let servers =
        format!("servers: [{{address: {:?}, weight: 3}}, {:?}]\nroute: any\n", primary.name(), standby.name());
    let qcp = Setup::new(&servers).start();
    let mut clients: Vec<RawClient> = (0..40).map(|_| client(&qcp)).collect();
    let at_primary =
        clients.iter_mut().filter_map(|client| (port_of(client) == primary.tcp().port).then_some(())).count();
    assert_eq!(at_primary, 30);
    // One that is down has nobody, and its clients go on at the other without a word.
    standby.stop("immediate");
    for client in &mut clients {
        assert_eq!(port_of(client), primary.tcp().port);
    }
}

#[test]
fn who_waits_for_a_primary_is_told_when_there_is_none() {
    let (primary, standby) = pair();
    let qcp = start(&primary, &standby, "session_state: none\npool: {queue_timeout: 1s}\n", 1);
    let mut waiter = client(&qcp);
    assert_eq!(port_of(&mut waiter), primary.tcp().port);
    primary.stop("fast");
    primary.start_as_standby();
    wait_until("qcp knows it", LONG, || qcp.log().contains(&format!("server {} is a standby", primary.name())));
    let begun = Instant::now();
    let (code, text) = waiter.query("INSERT INTO kept VALUES (1)").expect_err("nobody takes it");
    assert_eq!(code, "57P03", "{text}");
    assert!(text.contains("primary"), "{text}");
    assert!(begun.elapsed() >= Duration::from_millis(900), "{:?}", begun.elapsed());
    standby.promote();
    wait_until("it goes on", LONG, || waiter.query("INSERT INTO kept VALUES (1)").is_ok());
}

/// The server asks a password, and only clients know it: nobody but their logins finds out what it is.
#[test]
fn logins_that_are_relayed_find_the_primary() {
    let (primary, standby) = pair();
    primary.execute("postgres", "CREATE ROLE usual LOGIN PASSWORD 'secret'; GRANT ALL ON kept TO usual");
    for server in [&primary, &standby] {
        server.set_access("host all usual 127.0.0.1/32 scram-sha-256");
    }
    wait_until("the role is there", LONG, || {
        standby.execute("postgres", "SELECT count(*) FROM pg_roles WHERE rolname = 'usual'").trim() == "1"
    });
    let qcp = start(&primary, &standby, "pool: {queue_timeout: 3s}\n", 1);
    let ask = |sql: &str| {
        psql(&qcp.tcp(), "usual", "postgres").env("PGPASSWORD", "secret").args(["-qAtX", "-c", sql]).finish()
    };
    let mut refusals = Vec::new();
    let mut first_port = || loop {
        let asked = ask("SELECT inet_server_port()");
        if asked.status.success() {
            return asked.success().trim().parse::<u16>().expect("a port");
        }
        refusals.push(asked.stderr);
        assert!(refusals.len() < 40, "{refusals:?}\n{}", qcp.log());
        std::thread::sleep(Duration::from_millis(200));
    };
    assert_eq!(first_port(), primary.tcp().port);
    for _ in 0..5 {
        assert_eq!(ask("SELECT inet_server_port()").success().trim(), primary.tcp().port.to_string());
    }
    primary.stop("immediate");
    standby.promote();
    assert_eq!(first_port(), standby.tcp().port);
    ask("INSERT INTO kept VALUES (1)").success();
    assert!(
        refusals.iter().all(|text| text.contains("is a standby") || text.contains("no server connection")),
        "{refusals:?}"
    );
}
