//! One pool over two cores is as good as one of a single core: clients that all live on one shard get what the whole pool
//! has, and whoever waits is served in turn; nor do backends wander where nobody is better off. Figures are ratios of one run,
//! and printed.

mod support;

use std::collections::HashMap;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use support::pooler::Qcp;
use support::postgres::{SUPERUSER, postgres};
use support::raw::{Message, RawClient, message, zero_ended};

const BACKENDS: usize = 4;
/// How long a request keeps its backend: the pool is what is scarce, not the machine.
const REQUEST: &str = "SELECT pg_sleep(0.002)";

/// Which shard a client lives on: its cancel key says so.
fn shard(client: &RawClient) -> u8 {
    client.key[0]
}

/// `count` clients that live on each of the two shards.
fn clients(qcp: &Qcp, database: &str, count: usize) -> [Vec<RawClient>; 2] {
    let mut clients = [Vec::new(), Vec::new()];
    while clients.iter().any(|some: &Vec<_>| some.len() < count) {
        let client = RawClient::login(&qcp.tcp(), SUPERUSER, database);
        let some = &mut clients[usize::from(shard(&client))];
        // The others leave again.
        if some.len() < count {
            some.push(client);
        }
    }
    clients
}

/// Each asks again as soon as it is answered, for so long: how long each answer took.
fn run(clients: &mut [&mut RawClient], span: Duration) -> Vec<Duration> {
    run_with(clients, span, REQUEST, |_, _| ())
}

/// The same, and `seen` is shown each answer and who got it.
fn run_with(
    clients: &mut [&mut RawClient],
    span: Duration,
    request: &str,
    mut seen: impl FnMut(usize, &[Message]),
) -> Vec<Duration> {
    let request = message(b'Q', &zero_ended(request));
    let begun = Instant::now();
    let mut asked_at = vec![begun; clients.len()];
    let mut waits = Vec::new();
    for client in clients.iter_mut() {
        client.send(&request);
    }
    let mut under_way = clients.len();
    while under_way > 0 {
        let mut polled: Vec<PollFd> =
            clients.iter().map(|client| PollFd::new(client.as_fd(), PollFlags::POLLIN)).collect();
        poll(&mut polled, PollTimeout::from(20_000u16)).expect("sockets can be polled");
        let answered: Vec<usize> = (0..polled.len()).filter(|&at| polled[at].any().unwrap_or(false)).collect();
        assert!(!answered.is_empty(), "{under_way} clients wait for ever");
        for at in answered {
            let replies = clients[at].receive_until_ready();
            assert!(replies.iter().all(|reply| reply.tag != b'E'), "{replies:?}");
            seen(at, &replies);
            waits.push(asked_at[at].elapsed());
            if begun.elapsed() < span {
                asked_at[at] = Instant::now();
                clients[at].send(&request);
            } else {
                under_way -= 1;
            }
        }
    }
    waits
}

fn median(mut figures: Vec<f64>) -> f64 {
    figures.sort_by(f64::total_cmp);
    figures[figures.len() / 2]
}

#[test]
fn clients_of_one_shard_get_the_whole_pool() {
    const EACH: usize = 16;
    const ROUNDS: usize = 9;
    const SPAN: Duration = Duration::from_millis(500);
    postgres().create_database("fair_share");
    let qcp = Qcp::start(&format!("relay_mode: Smart\npool: {{size: {BACKENDS}, placement: round-robin}}\n"), 2);
    let [mut here, mut there] = clients(&qcp, "fair_share", EACH);
    let mut measure = || {
        let mut ratios = Vec::new();
        // Interleaved, so that what else the machine does falls on both; the first round is not counted.
        for round in 0..=ROUNDS {
            let on_both = run(&mut here[..EACH / 2].iter_mut().chain(&mut there[..EACH / 2]).collect::<Vec<_>>(), SPAN);
            let on_one = run(&mut here.iter_mut().collect::<Vec<_>>(), SPAN);
            if round > 0 {
                ratios.push(on_one.len() as f64 / on_both.len() as f64);
            }
        }
        let ratio = median(ratios);
        println!("throughput of clients on one shard, of that on both: {ratio:.3}");
        ratio
    };
    // A machine that is busy with something else is given another chance; what is unfair is so each time.
    let ratio = (0..3).map(|_| measure()).find(|&ratio| ratio >= 0.95);
    assert!(ratio.is_some(), "all clients on one shard get less than 0.95 of what they get on both, three times");
}

#[test]
fn who_waits_is_served_in_turn() {
    const WAITERS: usize = 200;
    postgres().create_database("fair_turns");
    let qcp = Qcp::start(&format!("relay_mode: Smart\npool: {{size: {BACKENDS}, placement: round-robin}}\n"), 2);
    let [mut here, mut there] = clients(&qcp, "fair_turns", WAITERS / 2);
    let mut all: Vec<&mut RawClient> = here.iter_mut().chain(&mut there).collect();
    // They begin at once, and the last of these waits for all the others: from then on the queue is always full.
    run(&mut all, Duration::from_millis(500));
    let waits = run(&mut all, Duration::from_secs(5));
    let (count, longest) = (waits.len(), waits.iter().max().expect("some").as_secs_f64());
    let usual = median(waits.iter().map(Duration::as_secs_f64).collect());
    println!("{count} waits: median {usual:.3} s, longest {longest:.3} s, {:.2} of it", longest / usual);
    assert!(longest <= 3.0 * usual, "the longest wait is {longest:.3} s, the median {usual:.3} s");
}

#[test]
fn backends_stay_where_others_wait_as_long() {
    const EACH: usize = 16;
    const SPAN: Duration = Duration::from_secs(1);
    const REQUEST: &str = "SELECT pg_backend_pid() FROM pg_sleep(0.001)";
    postgres().create_database("fair_stay");
    let qcp = Qcp::start("relay_mode: Smart\npool: {size: 8, placement: round-robin}\n", 2);
    let [mut here, mut there] = clients(&qcp, "fair_stay", EACH);
    let mut all: Vec<&mut RawClient> = here.iter_mut().chain(&mut there).collect();
    let mut measure = || {
        let (mut lived_at, mut moves) = (HashMap::new(), 0);
        let waits = run_with(&mut all, SPAN, REQUEST, |at, replies| {
            let row = replies.iter().find(|reply| reply.tag == b'D').expect("a row");
            let is_here = at < EACH;
            moves += usize::from(lived_at.insert(row.body.clone(), is_here).is_some_and(|before| before != is_here));
        });
        println!("{} answers, and {moves} times a backend was next seen at the other shard", waits.len());
        waits.len() as f64 / moves as f64
    };
    // A machine that is busy with something else lets one shard fall behind now and then.
    let is_seldom = (0..3).map(|_| measure()).any(|answers| answers >= 50.0);
    assert!(is_seldom, "a backend goes to the other shard more often than after 50 answers, three times");
}
