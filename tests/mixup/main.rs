//! The mixed-up checker: hundreds of clients on five backends, over real sockets, while the server is killed, stopped and
//! restarted. Whoever gets anything but exactly the answers to its own questions ends the run.
//!
//! `scripts/mixup --minutes 30` runs it long; a minute of it is part of `scripts/test`. The clients speak the protocol by
//! hand (`talk` says what, `client` how): simple and extended queries, prepared statements, pipelines, transactions, COPY,
//! errors, large rows, portals, notices, cancels; they leave in the middle of messages. Each write has a number: at the
//! end each that was acknowledged is in the table exactly once, each that was not at most once. A failure prints the
//! seed and what the client has sent and got last.
//!
//! By environment: `MIXUP_SECONDS`, `MIXUP_SEED`, `MIXUP_EVERY` (seconds between disturbances), `MIXUP_ONLY` (one of them).

mod client;
mod disturb;
#[path = "../simulation/random.rs"]
mod random;
#[path = "../support/mod.rs"]
mod support;
mod talk;

use std::collections::BTreeMap;
use std::fmt::Write;
use std::os::fd::AsFd;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use client::{Client, Counts, Shared};
use random::Random;
use support::pooler::{Qcp, Setup};
use support::postgres::SUPERUSER;
use support::proc::resident;
use support::raw::RawClient;
use support::server::Server;
use support::wait_until;
use talk::Fate;

const THREADS: usize = 4;
const POOL_SIZE: usize = 5;
/// `auth.check_connections`: what logins that are being checked may add.
const CHECK_CONNECTIONS: usize = 4;
/// Connections that the server accepts; three of them are the superuser's.
const SERVER_CONNECTIONS: usize = 24;

struct Run {
    session: bool,
    password: Option<&'static str>,
    clients: usize,
    seconds: u64,
}

#[test]
fn smart() {
    run(&Run { session: false, password: None, clients: 400, seconds: 30 });
}

#[test]
fn smart_with_passwords() {
    run(&Run { session: false, password: Some("salted and peppered"), clients: 100, seconds: 15 });
}

#[test]
fn session() {
    run(&Run { session: true, password: None, clients: 40, seconds: 15 });
}

/// One run at a time: each is a load of its own.
static ALONE: Mutex<()> = Mutex::new(());

fn number_of(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name} is a number")))
}

fn run(plan: &Run) {
    let _alone = ALONE.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    let seed = number_of("MIXUP_SEED").unwrap_or_else(|| {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970");
        now.as_nanos() as u64
    });
    let seconds = number_of("MIXUP_SECONDS").unwrap_or(plan.seconds);
    let every = Duration::from_secs(number_of("MIXUP_EVERY").unwrap_or(if seconds > 120 { 20 } else { 5 }));
    eprintln!("seed {seed}");
    support::proc::allow_descriptors(2 * plan.clients as u64 + 200);

    let server = Server::start(&[
        &format!("max_connections={SERVER_CONNECTIONS}"),
        "log_connections=on",
        "log_disconnections=on",
        "log_statement=none",
        "log_min_messages=log",
        "log_min_error_statement=panic",
    ]);
    server.execute("postgres", "CREATE DATABASE mixup; ");
    server.execute("postgres", "CREATE ROLE stranger LOGIN; CREATE ROLE mixup LOGIN");
    server.execute("mixup", "CREATE TABLE writes (client int, number int, how text); GRANT ALL ON writes TO mixup");
    if let Some(password) = plan.password {
        server.execute("postgres", &format!("ALTER ROLE mixup PASSWORD '{password}'"));
        server.set_access("host all mixup 127.0.0.1/32 scram-sha-256\nhost all stranger 127.0.0.1/32 trust");
    }
    let mode = if plan.session { "Session" } else { "Smart" };
    let qcp = Setup::new(&format!(
        "relay_mode: {mode}\nlog_level: Info\npool: {{size: {POOL_SIZE}, queue_timeout: 5s}}\narena: {{total_size: 64 MB}}\n"
    ))
    .cores(2)
    .server(&server.name())
    .start();
    let chunks_at_rest = chunks_in_use(&qcp);

    let shared = Shared {
        address: qcp.tcp(),
        user: "mixup",
        password: plan.password,
        begun: Instant::now(),
        leave: AtomicBool::new(false),
        disturbed_until: AtomicU64::new(0),
        failures: Mutex::new(Vec::new()),
        losses: Mutex::new(BTreeMap::new()),
        sleepers: AtomicU32::new(0),
        counts: Counts::default(),
    };
    let mut random = Random(seed);
    let mut resident_warm = 0;
    let clients: Vec<Client> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS)
            .map(|thread| {
                let ids = (0..plan.clients).filter(move |id| id % THREADS == thread);
                let session = plan.session;
                let clients: Vec<Client> = ids.map(|id| Client::new(id, seed, id % 10 == 3, session)).collect();
                let shared = &shared;
                scope.spawn(move || step_all(clients, shared))
            })
            .collect();
        let until = shared.begun + Duration::from_secs(seconds);
        let (mut next, mut next_count) = (shared.begun + every, shared.begun);
        while Instant::now() < until && !has_failed(&shared) {
            std::thread::sleep(Duration::from_millis(50));
            if resident_warm == 0 && shared.begun.elapsed() > Duration::from_secs(seconds / 3) {
                resident_warm = resident(qcp.pid());
            }
            if Instant::now() >= next_count {
                let backends = show(&qcp, "backends").as_array().expect("rows").len();
                if backends > POOL_SIZE + CHECK_CONNECTIONS {
                    fail(&shared, format!("at {} ms the pooler has {backends} backends", shared.now_ms()));
                }
                next_count = Instant::now() + Duration::from_millis(500);
            }
            if Instant::now() < next {
                continue;
            }
            let only = std::env::var("MIXUP_ONLY").ok();
            let what = match only {
                Some(name) => *disturb::ALL.iter().find(|one| format!("{one:?}") == name).expect("a disturbance"),
                None => *random.one_of(&disturb::ALL),
            };
            if let Err(failure) = disturb::disturb(&server, &shared, &mut random, what) {
                fail(&shared, failure);
            }
            next = Instant::now() + every;
        }
        shared.leave.store(true, Ordering::Relaxed);
        threads.into_iter().flat_map(|thread| thread.join().expect("clients do not panic")).collect()
    });

    let counts = &shared.counts;
    let of = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    eprintln!(
        "{} requests answered, {} refused or cancelled on the way; {} logins, {} refused; connections lost {}, of which \
         {} in half a message and {} reset, {} because the pool was empty; {} deserted; {} cancel requests, {} queries cancelled",
        of(&counts.answered),
        of(&counts.hurt),
        of(&counts.logins),
        of(&counts.refused_logins),
        of(&counts.lost),
        of(&counts.torn),
        of(&counts.reset),
        of(&counts.unfilled),
        of(&counts.deserted),
        of(&counts.cancels),
        of(&counts.cancelled)
    );
    for (how, count) in &*shared.losses.lock().expect("nobody panics with it") {
        eprintln!("{count:>8} lost: {how}");
    }
    let failures = std::mem::take(&mut *shared.failures.lock().expect("nobody panics with it"));
    if !failures.is_empty() {
        let log = qcp.log();
        let lines: Vec<&str> = log.lines().collect();
        eprintln!("the last lines of qcp's log:\n{}", lines[lines.len().saturating_sub(40)..].join("\n"));
        eprintln!("seed {seed}: {} failures; the first:\n{}", failures.len(), failures[0]);
        // The server's own Drop lets go on what was stopped; qcp's would print all of its log.
        drop(qcp);
        panic!("mixed up: {}", failures[0].lines().next().unwrap_or_default());
    }
    check_writes(&server, &clients);
    check_at_rest(&qcp, chunks_at_rest);
    check_server_log(&server);
    let log = qcp.log();
    for wrong in ["panic", "lost track", " ERROR "] {
        let found = log.lines().find(|line| line.contains(wrong));
        assert!(found.is_none(), "in qcp's log: {found:?}");
    }
    let resident_end = resident(qcp.pid());
    eprintln!("memory: {resident_warm} bytes after a third of the time, {resident_end} at the end");
    assert!(resident_end < resident_warm + (4 << 20), "from {resident_warm} to {resident_end} bytes");
}

fn has_failed(shared: &Shared) -> bool {
    !shared.failures.lock().expect("nobody panics with it").is_empty()
}

fn fail(shared: &Shared, failure: String) {
    shared.failures.lock().expect("nobody panics with it").push(failure);
}

/// Steps some clients until they are all gone, or somebody has failed.
fn step_all(mut clients: Vec<Client>, shared: &Shared) -> Vec<Client> {
    while !clients.iter().all(Client::is_gone) && !has_failed(shared) {
        let ready: Vec<bool> = {
            let (mut places, mut descriptors) = (Vec::new(), Vec::new());
            for (at, client) in clients.iter().enumerate() {
                let Some(socket) = client.socket() else { continue };
                let write = if client.wants_to_write() { PollFlags::POLLOUT } else { PollFlags::empty() };
                places.push(at);
                descriptors.push(PollFd::new(socket.as_fd(), PollFlags::POLLIN | write));
            }
            let _ = poll(&mut descriptors, PollTimeout::from(5_u8));
            let mut ready = vec![false; clients.len()];
            for (at, descriptor) in places.into_iter().zip(&descriptors) {
                ready[at] = descriptor.any().unwrap_or(false);
            }
            ready
        };
        for (client, ready) in clients.iter_mut().zip(ready) {
            if !ready && !client.is_timer_due() {
                continue;
            }
            if let Err(failure) = client.turn(shared) {
                fail(shared, failure);
            }
        }
    }
    clients
}

/// What was acknowledged is there once, what was not at most once, what was undone is not.
fn check_writes(server: &Server, clients: &[Client]) {
    let mut reader = RawClient::login(&server.tcp(), SUPERUSER, "mixup");
    let mut ask = |statement: &str| reader.query(statement).unwrap_or_else(|error| panic!("{statement}: {error:?}"));
    ask("CREATE INDEX ON writes (client)");
    let (mut wrong, mut present, mut unknown) = (String::new(), 0, 0);
    for client in clients {
        let (id, fates) = (client.facts.id, &client.facts.writes);
        let mut counts = vec![0_usize; fates.len()];
        let statement = "SELECT number || ' ' || count(*) FROM writes WHERE client =";
        for row in ask(&format!("{statement} {id} GROUP BY number")) {
            let (number, count) = row.split_once(' ').expect("two numbers");
            let number: usize = number.parse().expect("a number");
            assert!(number < fates.len(), "client {id} has not yet made its write {number}");
            counts[number] = count.parse().expect("a number");
        }
        for (number, (fate, count)) in fates.iter().zip(counts).enumerate() {
            let right = match fate {
                Fate::Present => count == 1,
                Fate::Unknown => count <= 1,
                Fate::Absent => count == 0,
            };
            present += usize::from(*fate == Fate::Present);
            unknown += usize::from(*fate == Fate::Unknown);
            if !right {
                let _ = writeln!(wrong, "client {id}, write {number}: {fate:?}, and there {count} times");
            }
        }
    }
    assert!(wrong.is_empty(), "lost or doubled writes:\n{wrong}");
    let strangers = ask(&format!("SELECT count(*) FROM writes WHERE client NOT BETWEEN 0 AND {}", clients.len() - 1));
    assert_eq!(strangers, ["0"], "writes of nobody's");
    eprintln!("{present} writes acknowledged and there once; {unknown} unacknowledged, at most once");
    assert!(present > 100, "the run did hardly anything");
}

fn show(qcp: &Qcp, topic: &str) -> serde_json::Value {
    let text = qcp.control(&["show", topic, "--json"]).success();
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{topic}: {error}: {text}"))
}

fn chunks_in_use(qcp: &Qcp) -> u64 {
    show(qcp, "memory")["chunks_in_use"].as_u64().expect("a number")
}

/// When all clients have left, nothing of them is.
fn check_at_rest(qcp: &Qcp, chunks_at_rest: u64) {
    wait_until("the last client's slot is free", Duration::from_secs(15), || {
        show(qcp, "clients").as_array().expect("rows").is_empty()
    });
    let is_settled = || {
        let pools = show(qcp, "pools");
        pools.as_array().expect("rows").iter().all(|pool| {
            let of = |name: &str| pool[name].as_u64().expect("a number");
            let is_quiet = of("waiting") == 0 && of("linked") == 0 && of("cleaning") == 0 && of("dialing") == 0;
            // Over all shards no place is lost and none is made.
            is_quiet && of("permits") == POOL_SIZE as u64
        })
    };
    wait_until("the pool is at rest", Duration::from_secs(15), is_settled);
    let backends = show(qcp, "backends").as_array().expect("rows").len();
    assert!(backends <= POOL_SIZE, "{backends} backends");
    // What each shard keeps at hand for its buffers may differ by a few.
    let chunks = chunks_in_use(qcp);
    eprintln!("chunks in use: {chunks_at_rest} before, {chunks} after");
    assert!(chunks <= chunks_at_rest + 16, "{chunks} chunks in use, {chunks_at_rest} before");
}

/// Counts by the server's log how many connections the pooler had at a time.
fn check_server_log(server: &Server) {
    let (mut open, mut most) = (std::collections::HashSet::new(), 0);
    let log = server.log();
    for line in log.lines() {
        let mut words = line.splitn(3, ' ');
        let (Some(pid), Some(user), Some(text)) = (words.next(), words.next(), words.next()) else { continue };
        if text.contains("all server processes terminated") || text.contains("database system was") {
            open.clear();
        } else if user == "mixup" && text.contains("connection authorized") {
            open.insert(pid.to_owned());
            most = most.max(open.len());
        } else if text.contains("FATAL:") || text.contains("disconnection:") {
            open.remove(pid);
        }
    }
    eprintln!("the server had at most {most} connections of the pooler's at a time");
    // A connection that the pooler has closed counts here until its process has ended, which is after the next is open.
    let ending = CHECK_CONNECTIONS;
    assert!(most > 0 && most <= POOL_SIZE + CHECK_CONNECTIONS + ending, "{most} connections at a time");
}
