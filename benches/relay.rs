//! The relay: a real shard over pipes in memory, 64 clients on 16 backends; a request in, its answer out.
//!
//! Timed is what the shard does, not the clients and the server that are played around it. Given `--transactions KIND
//! COUNT`, it runs so many and prints nothing: `scripts/callgrind` counts their instructions. A kind is one of those below, with
//! `:fast` or `:balanced` behind where sessions are kept.

#[path = "../tests/support/played.rs"]
mod played;

use std::cell::Cell;
use std::time::{Duration, Instant};

use criterion::{Criterion, Throughput, criterion_group};
use played::{Kind, Part, Sizes, World};
use qcp::session::Transparency;

const SIZES: Sizes = Sizes { clients: 64, backends: 16, texts: 4, statements_max: 200, preserve: None };
const WARM_UP: usize = 20;

thread_local! {
    static BEGUN: Cell<Option<Instant>> = const { Cell::new(None) };
    static SPENT: Cell<Duration> = const { Cell::new(Duration::ZERO) };
}

fn world(kind: Kind, preserve: Option<Transparency>) -> World {
    let begin = || BEGUN.set(Some(Instant::now()));
    let end = || {
        let begun = BEGUN.take().expect("it was begun");
        SPENT.set(SPENT.get() + begun.elapsed());
    };
    let mut world = World::new(Sizes { preserve, ..SIZES }, begin, end);
    world.transact(kind, Part::Prepare);
    for _ in 0..WARM_UP {
        world.transact(kind, Part::Transaction);
    }
    assert_eq!(world.backend_count(), SIZES.backends, "all are in use");
    world
}

fn name(kind: Kind) -> &'static str {
    match kind {
        Kind::Simple => "simple",
        Kind::Extended => "extended",
        Kind::Prepared => "prepared",
        Kind::PreparedEachTime => "prepared-each-time",
    }
}

/// One iteration is one transaction of each client.
fn relay(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("relay");
    group.throughput(Throughput::Elements(SIZES.clients as u64));
    let all = Kind::ALL.into_iter().map(|kind| (kind, None, ""));
    let kept =
        [(Kind::Simple, Some(Transparency::Fast), ":fast"), (Kind::Simple, Some(Transparency::Balanced), ":balanced")];
    for (kind, preserve, suffix) in all.chain(kept) {
        let mut world = world(kind, preserve);
        group.bench_function(format!("{}{suffix}", name(kind)), |bencher| {
            bencher.iter_custom(|count| {
                SPENT.set(Duration::ZERO);
                for _ in 0..count {
                    world.transact(kind, Part::Transaction);
                }
                SPENT.get()
            });
        });
    }
    group.finish();
}

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let Some(at) = arguments.iter().position(|argument| argument == "--transactions") else {
        benches();
        Criterion::default().configure_from_args().final_summary();
        return;
    };
    let wanted = arguments.get(at + 1).map(String::as_str);
    let (wanted, preserve) = match wanted.and_then(|wanted| wanted.split_once(':')) {
        Some((kind, "fast")) => (Some(kind), Some(Transparency::Fast)),
        Some((kind, "balanced")) => (Some(kind), Some(Transparency::Balanced)),
        Some((_, other)) => panic!("{other}: neither fast nor balanced"),
        None => (wanted, None),
    };
    let kind = Kind::ALL.into_iter().find(|&kind| Some(name(kind)) == wanted).expect("a kind of transaction");
    let count = arguments.get(at + 2).and_then(|count| count.parse::<usize>().ok()).expect("how many");
    assert!(count.is_multiple_of(SIZES.clients), "each of {} clients runs as many", SIZES.clients);
    let mut world = world(kind, preserve);
    for _ in 0..count / SIZES.clients {
        world.transact(kind, Part::Transaction);
    }
}

criterion_group!(
    name = benches;
    // Most of the time goes into the world around the shard.
    config = Criterion::default().warm_up_time(Duration::from_millis(500)).measurement_time(Duration::from_secs(2)).sample_size(20);
    targets = relay
);
