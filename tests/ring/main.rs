//! The ring against in-memory pipes: the same traffic over both, from one seed, gives the same trace. And how a ring that
//! is parked is woken.
//!
//! `SEEDS=n` runs more seeds, `SEED=n` one of them, `FROM=n` begins there.

#[allow(dead_code)]
#[path = "../simulation/random.rs"]
mod random;
#[allow(dead_code)]
#[path = "../simulation/transport.rs"]
mod transport;

mod nets;
mod parking;
mod script;
mod stuck;
