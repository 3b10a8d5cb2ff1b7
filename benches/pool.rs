//! Who gets which backend: checkout and checkin of an idle one, and the queue with 64 and 10,000 clients on 16.

use std::hint::black_box;
use std::time::{Duration, Instant};

use criterion::{Criterion, criterion_group, criterion_main};
use qcp::ids::{BackendId, ClientId};
use qcp::pool::{Backoff, Checkin, Checkout, Part, Schedule, Settings, Waiters};

const BACKENDS: u32 = 16;

fn pool(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("pool");
    let now = Instant::now();
    group.bench_function("an idle one out and in", |bencher| {
        let mut waiters = Waiters::new(1);
        let mut part = part(&mut waiters);
        bencher.iter(|| {
            let Checkout::Ready(backend) = part.checkout(&mut waiters, client(0), black_box(now), 0) else {
                panic!("all are idle");
            };
            assert_eq!(part.checkin(&mut waiters, backend), Checkin::Idle);
        });
    });
    for clients in [64, 10_000] {
        // Every client asks again as soon as it is served: one hand-over and one place in the queue.
        group.bench_function(format!("the queue of {clients}"), |bencher| {
            let mut waiters = Waiters::new(clients as usize);
            let mut part = part(&mut waiters);
            let mut served: Vec<(ClientId, BackendId)> = Vec::new();
            for index in 0..clients {
                if let Checkout::Ready(backend) = part.checkout(&mut waiters, client(index), now, 0) {
                    served.push((client(index), backend));
                }
            }
            let mut at = 0;
            bencher.iter(|| {
                let (before, backend) = served[at];
                let Checkin::HandTo(next) = part.checkin(&mut waiters, backend) else { panic!("others wait") };
                served[at] = (next, backend);
                assert_eq!(part.checkout(&mut waiters, before, black_box(now), 0), Checkout::Wait);
                at = (at + 1) % served.len();
            });
        });
        // A client that gives up leaves from the middle.
        group.bench_function(format!("out of the middle of {clients}"), |bencher| {
            let mut waiters = Waiters::new(clients as usize);
            let mut part = part(&mut waiters);
            for index in 0..clients {
                part.checkout(&mut waiters, client(index), now, 0);
            }
            bencher.iter(|| {
                assert!(part.remove_waiter(&mut waiters, client(clients / 2)));
                assert_eq!(part.checkout(&mut waiters, client(clients / 2), black_box(now), 0), Checkout::Wait);
            });
        });
    }
    group.finish();
}

/// With all backends idle.
fn part(waiters: &mut Waiters) -> Part {
    let settings = Settings {
        size: BACKENDS,
        min_size: 0,
        reserve_size: 0,
        reserve_timeout: Duration::ZERO,
        max_backends: 0,
        max_queue: 0,
        queue_timeout: Duration::from_secs(10),
        idle_timeout: Duration::from_secs(600),
        lifetime: Duration::from_secs(3600),
        keepalive_interval: Duration::ZERO,
        keepalive_timeout: Duration::from_secs(10),
        schedule: Schedule::RoundRobin,
        placement: Schedule::LoadBalancing,
    };
    let backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(5));
    let mut part = Part::new(settings, BACKENDS, backoff);
    for index in 0..BACKENDS {
        assert!(part.begin_open());
        part.opened();
        assert_eq!(part.checkin(waiters, BackendId { index, generation: 0 }), Checkin::Idle);
    }
    part
}

fn client(index: u32) -> ClientId {
    ClientId { index, generation: 0 }
}

criterion_group!(benches, pool);
criterion_main!(benches);
