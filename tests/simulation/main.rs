//! Shards, applications and a fake PostgreSQL on a virtual clock, from one seed: the code that runs is the code that
//! ships; only sockets and time differ. A failure is a number.
//!
//! `SEED=n cargo test --test simulation replay -- --nocapture` runs one seed; one that fails is shrunk (for `SHRINK` seconds,
//! 60 unless told otherwise), and what is left is printed as a `KEEP` that runs the same again.
//! `scripts/simulate` runs many.

mod application;
mod coverage;
mod dials;
mod postgres;
mod random;
mod server;
mod shrink;
mod transport;
mod wire;
mod world;

use std::time::{Duration, Instant};

use coverage::Coverage;
use shrink::Keep;

/// So many seeds must reach all that can be reached.
const ENOUGH: u64 = 5000;

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name} is a number, not {text}")))
}

/// Runs what is kept of a seed; when it fails, shrinks it and runs the least that fails with a trace, of which the last
/// lines are printed.
fn attempt(seed: u64, keep: &Keep) -> world::World {
    let hook = std::panic::take_hook();
    shrink::listen();
    let (world, result) = world::run(seed, keep, false);
    if result.is_ok() {
        std::panic::set_hook(hook);
        return world;
    }
    let seconds = Duration::from_secs(number("SHRINK").unwrap_or(60));
    let least = shrink::shrink(seed, keep, Instant::now() + seconds);
    let (world, shrunk) = world::run(seed, &least, true);
    std::panic::set_hook(hook);
    let lines = number("LINES").unwrap_or(60) as usize;
    let trace = world.trace.as_ref().expect("it was asked for");
    for line in trace.iter().skip(trace.len().saturating_sub(lines)) {
        println!("{line}");
    }
    println!("{:?}", world.dials);
    println!("the least that fails: {}", shrunk.err().unwrap_or_else(|| "nothing with a trace".to_owned()));
    println!("again: SEED={seed} KEEP={least} cargo test --test simulation replay -- --nocapture");
    panic!("seed {seed} fails: {}", result.unwrap_err());
}

/// Names the seeds that fail, up to so many, and why, without a word about how.
fn survey(from: u64, count: u64, most: u64) {
    std::panic::set_hook(Box::new(|_| ()));
    let mut failures = 0;
    for seed in from..from + count {
        if let (_, Err(why)) = world::run(seed, &Keep::default(), false) {
            println!("seed {seed}: {why}");
            failures += 1;
            if failures == most {
                break;
            }
        }
    }
    println!("{failures} seeds of {count} failed");
}

#[test]
fn seeds() {
    let from = number("FROM").unwrap_or(1);
    let count = number("SEEDS");
    let seconds = Duration::from_secs(number("SECONDS").unwrap_or(50));
    let started = Instant::now();
    let mut coverage = Coverage::default();
    let (mut steps, mut requests, mut seed) = (0, 0, from);
    if let Some(most) = number("SURVEY") {
        return survey(from, count.unwrap_or(1000), most);
    }
    while count.map_or(started.elapsed() < seconds, |count| seed < from + count) {
        let world = attempt(seed, &Keep::default());
        steps += world.steps;
        requests += world.requests;
        coverage.add(&world.coverage);
        seed += 1;
    }
    let count = seed - from;
    let took = started.elapsed().as_secs_f64();
    println!(
        "{count} seeds from {from}: {steps} steps, {requests} actions, {:.0} seeds per second",
        count as f64 / took
    );
    #[cfg(debug_assertions)]
    coverage.take_reached();
    coverage.print();
    // A few seeds need not reach everything.
    if count >= ENOUGH {
        let missing = coverage.missing();
        assert!(missing.is_empty(), "never reached: {missing:?}");
    }
}

#[test]
fn replay() {
    if let Some(seed) = number("SEED") {
        let keep = std::env::var("KEEP").unwrap_or_default();
        attempt(seed, &Keep::parse(&keep).unwrap_or_else(|why| panic!("{why}")));
        println!("seed {seed} is clean");
    }
}
