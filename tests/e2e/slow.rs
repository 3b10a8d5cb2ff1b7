//! Clients that do not read their answers, and clients that write a byte at a time: the others do not notice, memory stays
//! within its sum, and nobody is stuck for ever.
//!
//! The figures of a full-size run, with and without the slow ones in turns, on a quiet machine:
//! `cargo test --release --test e2e slow::full_size -- --ignored --nocapture`

use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::support::Address;
use super::support::pooler::Qcp;
use super::support::postgres::{SUPERUSER, postgres};
use super::support::proc::{allow_descriptors, resident};
use super::support::raw::{PROTOCOL_3_0, RawClient, Received, error_field, message, startup, zero_ended};
use super::support::wait_until;

/// How a load is shaped.
#[derive(Clone, Copy)]
struct Shape {
    cores: usize,
    chunks: u32,
    /// Clients that ask and read, with a pause between.
    busy: u32,
    pause: Duration,
    /// Clients that say nothing.
    idle: u32,
    /// Clients that read nothing: so many of each kind.
    slow: u32,
    /// How long the latencies are measured in each phase.
    measured: Duration,
    rounds: u32,
    kinds: &'static [&'static str],
}

/// Kinds of clients that read nothing. Those of one kind share a database, the last kind that of the busy clients.
const KINDS: [&str; 3] = ["huge", "flood", "short"];

/// What the busy clients saw.
#[derive(Clone, Copy)]
struct Latency {
    count: usize,
    p50: Duration,
    p99: Duration,
    max: Duration,
}

impl std::fmt::Display for Latency {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { count, p50, p99, max } = self;
        write!(formatter, "{count} queries, p50 {p50:?}, p99 {p99:?}, longest {max:?}")
    }
}

fn query(statement: &str) -> Vec<u8> {
    message(b'Q', &zero_ended(statement))
}

/// Clients in a closed loop with pauses, all in one thread, for so long.
fn measure(address: &Address, database: &str, shape: Shape) -> Latency {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let until = Instant::now() + shape.measured;
    let mut all = runtime.block_on(async {
        let clients: Vec<_> = (0..shape.busy)
            .map(|_| tokio::spawn(busy_client(address.clone(), database.to_owned(), until, shape.pause)))
            .collect();
        let mut all = Vec::new();
        for client in clients {
            all.extend(client.await.expect("a busy client is served"));
        }
        all
    });
    all.sort();
    let at = |share: usize| all[(all.len() - 1) * share / 1000];
    Latency { count: all.len(), p50: at(500), p99: at(990), max: at(1000) }
}

async fn busy_client(address: Address, database: String, until: Instant, pause: Duration) -> Vec<Duration> {
    let mut stream = tokio::net::TcpStream::connect((address.host.as_str(), address.port)).await.expect("qcp accepts");
    stream.set_nodelay(true).expect("a fresh socket");
    let mut received = Vec::new();
    let hello = startup(PROTOCOL_3_0, &[("user", SUPERUSER), ("database", &database)]);
    ask(&mut stream, &hello, &mut received).await;
    let question = query("SELECT 1");
    let mut latencies = Vec::new();
    while Instant::now() < until {
        let begun = Instant::now();
        ask(&mut stream, &question, &mut received).await;
        latencies.push(begun.elapsed());
        let rows = received.iter().filter(|&&tag| tag == b'D').count();
        assert_eq!(rows, 1, "{:?}", String::from_utf8_lossy(&received));
        tokio::time::sleep(pause).await;
    }
    latencies
}

/// Sends, and receives up to ReadyForQuery; leaves the tags of what came in `tags`.
async fn ask(stream: &mut tokio::net::TcpStream, bytes: &[u8], tags: &mut Vec<u8>) {
    stream.write_all(bytes).await.expect("qcp is there");
    tags.clear();
    let mut bytes = Vec::new();
    loop {
        let mut piece = [0; 4096];
        let patience = Duration::from_secs(30);
        let count = tokio::time::timeout(patience, stream.read(&mut piece)).await;
        let count = count.expect("no client starves").expect("qcp is there");
        assert!(count > 0, "qcp closed it: {:?}", String::from_utf8_lossy(&bytes));
        bytes.extend_from_slice(&piece[..count]);
        while bytes.len() >= 5 {
            let length = u32::from_be_bytes([bytes[1], bytes[2], bytes[3], bytes[4]]) as usize;
            if bytes.len() <= length {
                break;
            }
            tags.push(bytes[0]);
            assert_ne!(bytes[0], b'E', "{:?}", String::from_utf8_lossy(&bytes));
            bytes.drain(..=length);
        }
        if tags.last() == Some(&b'Z') {
            return;
        }
    }
}

/// Connects the clients that read nothing, and has them ask for what they will not read.
fn connect_slow(qcp: &Qcp, prefix: &str, shape: Shape) -> Vec<RawClient> {
    let mut clients = Vec::new();
    for number in 0..shape.slow {
        let kind = shape.kinds[number as usize % shape.kinds.len()];
        let mut client = login_slow(qcp, &format!("{prefix}_{kind}"));
        match kind {
            // Far more than anybody keeps for it: it holds its backend, or waits for one.
            "huge" => client.send(&query("SELECT repeat('x', 1000000) FROM generate_series(1, 50)")),
            // As many short questions as there is room for; the answers get stuck one by one.
            "flood" => {
                client.send_some(&query("SELECT 1").repeat(20_000));
            }
            // A little more than the kernel keeps for it, in the pool of the busy ones.
            _ => client.send(&query(&format!("SELECT repeat('x', {})", SHORT_BYTES + number % 8192))),
        }
        clients.push(client);
    }
    clients
}

/// A client that reads nothing may come when those before it have taken all memory: it is told so, and comes again.
fn login_slow(qcp: &Qcp, database: &str) -> RawClient {
    let hello = startup(PROTOCOL_3_0, &[("user", SUPERUSER), ("database", database)]);
    for _ in 0..200 {
        let mut client = RawClient::connect_narrow(&qcp.tcp());
        client.send(&hello);
        match client.receive_until_ready().last() {
            Some(last) if last.tag == b'E' => assert_eq!(error_field(&last.body, b'C'), "53200"),
            Some(last) if last.tag == b'Z' => return client,
            other => panic!("{other:?}"),
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    panic!("it is refused for ten seconds");
}

/// What a narrow socket takes of an answer that is not read, about.
const SHORT_BYTES: u32 = 40_000;

/// In-use chunks, of how many, and the most there were.
fn chunks(qcp: &Qcp) -> (u64, u64, u64) {
    let text = qcp.control(&["show", "memory"]).success();
    let line = text.lines().find(|line| line.starts_with("arena")).expect("show memory tells of the arena").to_owned();
    let numbers: Vec<u64> =
        line.split_whitespace().filter_map(|word| word.replace([',', ' '], "").parse().ok()).collect();
    let [all, _size, used, most] = numbers[..] else { panic!("{line}") };
    (used, all, most)
}

fn configuration(shape: Shape) -> String {
    format!(
        "arena: {{chunks_count: {}}}\nauth: {{method: trust}}\nlog_level: Warn\n\
         pool: {{size: 16, queue_timeout: 0s}}\nlimits: {{max_clients: {}, client_stall_timeout: 0s}}\n",
        shape.chunks,
        shape.busy + shape.idle + shape.slow + 100
    )
}

/// Latencies of the busy clients, in turns without and with the slow ones.
fn run(prefix: &str, shape: Shape) -> Vec<[Latency; 2]> {
    allow_descriptors(u64::from(shape.busy + shape.idle + shape.slow) + 2000);
    for kind in KINDS {
        postgres().create_database(&format!("{prefix}_{kind}"));
    }
    let busy_database = format!("{prefix}_short");
    let qcp = Qcp::start(&configuration(shape), shape.cores);
    let idle: Vec<RawClient> =
        (0..shape.idle).map(|_| RawClient::login(&qcp.tcp(), SUPERUSER, &busy_database)).collect();
    // Every shard learns what the servers say at login: with all backends held, later logins do without one.
    for kind in KINDS {
        let database = format!("{prefix}_{kind}");
        let _known: Vec<RawClient> = (0..32).map(|_| RawClient::login(&qcp.tcp(), SUPERUSER, &database)).collect();
    }
    // Opens the backends.
    measure(&qcp.tcp(), &busy_database, Shape { measured: Duration::from_secs(1), ..shape });
    let (at_rest, _, _) = chunks(&qcp);
    let mut rounds = Vec::new();
    for round in 0..shape.rounds {
        let without = measure(&qcp.tcp(), &busy_database, shape);
        let slow = connect_slow(&qcp, prefix, shape);
        std::thread::sleep(Duration::from_secs(2));
        let (rss, stuck) = (resident(qcp.pid()), chunks(&qcp));
        let with = measure(&qcp.tcp(), &busy_database, shape);
        let (used, all, most) = chunks(&qcp);
        println!(
            "round {round}: without {without}\n         with    {with}\n         chunks {stuck:?}, then {used} of \
             {all}, at most {most}; rss {rss}, then {}; some closed {} times for want of memory",
            resident(qcp.pid()),
            qcp.log().matches("the arena is used up: ").count(),
        );
        assert!(used < all, "some chunks are left");
        drop(slow);
        wait_until("all chunks come back", Duration::from_secs(60), || chunks(&qcp).0 <= at_rest);
        rounds.push([without, with]);
    }
    drop(idle);
    rounds
}

#[test]
fn readers_that_do_not_read_do_not_stop_the_others() {
    let shape = Shape {
        cores: 2,
        chunks: 64,
        busy: 16,
        pause: Duration::from_millis(5),
        idle: 0,
        slow: 600,
        measured: Duration::from_secs(2),
        rounds: 1,
        kinds: &KINDS,
    };
    for [without, with] in run("slow_readers", shape) {
        // No figures on a busy machine; but nobody waits for one who does not read.
        assert!(with.count * 4 > without.count, "{without}; {with}");
        assert!(with.p99 < without.p99 * 4 + Duration::from_millis(50), "{without}; {with}");
    }
}

/// Done-when 4 of the issue. The figures are printed; on a quiet machine the bar is twice.
#[test]
#[ignore = "10,000 clients, a quiet machine, and a minute"]
fn full_size() {
    let shape = Shape {
        cores: 2,
        chunks: 512,
        busy: 64,
        pause: Duration::from_millis(20),
        idle: 10_000 - 5000 - 64,
        slow: 5000,
        measured: Duration::from_secs(10),
        rounds: 3,
        kinds: &["huge", "short"],
    };
    let rounds = run("slow_full", shape);
    let p99 = |which: usize| rounds.iter().map(|round| round[which].p99).sum::<Duration>() / rounds.len() as u32;
    let (without, with) = (p99(0), p99(1));
    println!("p99 without {without:?}, with {with:?}: {:.2}", with.as_secs_f64() / without.as_secs_f64());
    assert!(with <= without * 2, "the bar");
}

/// In one pool, readers that hold every backend are closed in their turn while others wait; one that reads, however
/// slowly, is not.
#[test]
fn a_reader_that_stalls_gives_way_to_those_who_wait() {
    postgres().create_database("slow_stall");
    let yaml = "pool: {size: 2, queue_timeout: 0s}\nlimits: {client_stall_timeout: 1s}\narena: {total_size: 8 MB}\n";
    for unix in [false, true] {
        let qcp = Qcp::start(yaml, 1);
        let login = || match unix {
            true => RawClient::login(&qcp.unix(), SUPERUSER, "slow_stall"),
            false => RawClient::connect_narrow(&qcp.tcp()).logged_in(SUPERUSER, "slow_stall"),
        };
        let huge = query("SELECT repeat('x', 1000000) FROM generate_series(1, 50)");
        let mut slow: Vec<RawClient> = (0..4).map(|_| login()).collect();
        for client in &mut slow {
            client.send(&huge);
        }
        // While nobody waits any more, nobody is closed; the fifth asks behind the four.
        std::thread::sleep(Duration::from_millis(200));
        let mut other = login();
        let begun = Instant::now();
        assert_eq!(other.query("SELECT 'served'").expect("it is its turn at last"), ["served"]);
        let waited = begun.elapsed();
        assert!(waited > Duration::from_millis(800), "two rounds of readers were before it: {waited:?}");
        assert!(waited < Duration::from_secs(15), "{waited:?}");
        assert!(qcp.log().contains("took nothing of its answer for"), "unix: {unix}\n{}", qcp.log());

        // Reads a little now and then, and lives for longer than the limit.
        let mut reader = login();
        reader.send(&huge);
        let mut blocked: Vec<RawClient> = (0..2).map(|_| login()).collect();
        for client in &mut blocked {
            client.send(&huge);
        }
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_secs(4) {
            assert!(reader.read_raw(100_000) > 0, "unix: {unix}: a reader that reads was closed");
            std::thread::sleep(Duration::from_millis(300));
        }
    }
}

/// Ten times as many writers as there are chunks: half of them write their startup packet a byte at a time, and are
/// closed by login_timeout; half of them a query, and hold no backend before it is whole.
#[test]
fn writers_of_single_bytes_hold_neither_chunks_nor_backends() {
    const CHUNKS: usize = 64;
    const EVERY: Duration = Duration::from_millis(150);
    const LOGIN_TIMEOUT: Duration = Duration::from_secs(4);
    allow_descriptors(4000);
    postgres().create_database("slow_writers");
    let yaml = format!(
        "arena: {{chunks_count: {CHUNKS}}}\nauth: {{method: trust}}\nlog_level: Warn\npool: {{size: 2}}\n\
         limits: {{login_timeout: {}s}}\n",
        LOGIN_TIMEOUT.as_secs()
    );
    let qcp = Qcp::start(&yaml, 2);
    let login = || RawClient::login(&qcp.tcp(), SUPERUSER, "slow_writers");
    let statement = query("SELECT 'a byte at a time'");
    let hello = startup(PROTOCOL_3_0, &[("user", SUPERUSER), ("database", "slow_writers"), ("options", "-c a.b=c")]);
    let begun = Instant::now();
    let mut strangers: Vec<RawClient> = (0..CHUNKS * 5).map(|_| RawClient::connect(&qcp.tcp())).collect();
    let mut askers: Vec<RawClient> = (0..CHUNKS * 5).map(|_| login()).collect();
    let mut busy = login();
    let mut longest = Duration::ZERO;
    for at in 0..statement.len() {
        for client in &mut askers {
            client.send(&statement[at..=at]);
        }
        for client in &mut strangers {
            client.send(&hello[at..=at]);
        }
        let asked = Instant::now();
        assert_eq!(busy.query("SELECT 'busy'").expect("the others hold no backend"), ["busy"]);
        longest = longest.max(asked.elapsed());
        std::thread::sleep(EVERY);
    }
    assert!(longest < Duration::from_secs(2), "{longest:?}");
    let (used, all, most) = chunks(&qcp);
    println!("{used} of {all} chunks in use, at most {most}; the longest query took {longest:?}");
    for client in &mut askers {
        let answer = client.receive_until_ready();
        assert!(answer.iter().any(|reply| reply.body.ends_with(b"a byte at a time")), "{answer:?}");
    }
    std::thread::sleep((LOGIN_TIMEOUT + Duration::from_secs(1)).saturating_sub(begun.elapsed()));
    for client in &mut strangers {
        let Received::Message(told) = client.receive(Duration::from_secs(2)) else { panic!("it is told why") };
        assert_eq!(error_field(&told.body, b'M'), "canceling authentication due to timeout");
        assert_eq!(client.receive(Duration::from_secs(2)), Received::Closed);
    }
}
