//! Who gets which backend: pure decisions about a shard's part of each pool.
#![forbid(unsafe_code)]

pub mod budget;
pub mod part;
pub mod placement;
pub mod roles;
pub mod waiters;

use std::time::Duration;

pub use part::{Backoff, Checkin, Checkout, Part, Refill};
pub use placement::Homes;
pub use roles::{Role, Route};
pub use waiters::Waiters;

/// Which of several suitable servers a login goes to, or which of a pool's shards a client lives on.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Schedule {
    /// One after the other.
    #[default]
    RoundRobin,
    /// Any, by the shard's seeded random numbers.
    Random,
    /// The one with the fewest clients.
    LoadBalancing,
}

/// What the configuration says about one pool; the same on every shard.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Settings {
    /// Backends over all shards together; at least 1.
    pub size: u32,
    /// Backends kept open over all shards once the pool has been used; at most `size`.
    pub min_size: u32,
    /// More of them, over all shards, for clients that have waited `reserve_timeout`.
    pub reserve_size: u32,
    /// See there.
    pub reserve_timeout: Duration,
    /// Backends of all pools at one server; 0 is no limit.
    pub max_backends: u32,
    /// Waiting clients over all shards; 0 is no limit.
    pub max_queue: u32,
    /// A client that waited so long gets an error; zero is no limit.
    pub queue_timeout: Duration,
    /// An idle backend above `min_size` is closed after this; zero is never.
    pub idle_timeout: Duration,
    /// A backend is not lent again after this; zero is never.
    pub lifetime: Duration,
    /// A backend that is idle for so long is asked whether it is there; zero is never.
    pub keepalive_interval: Duration,
    /// One that does not answer in this time is closed.
    pub keepalive_timeout: Duration,
    /// Which of several servers.
    pub schedule: Schedule,
    /// Which of the pool's shards a client lives on.
    pub placement: Schedule,
}
