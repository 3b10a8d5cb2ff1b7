//! What a seed is about: every seed turns some features up and others off, so that rare ones meet each other.

use std::time::Duration;

use qcp::pool::{Schedule, Settings};
use qcp::session::RelayMode;
use qcp::shard::{Catalogue, PoolSettings, Server};

use super::random::Random;

/// Counts are per thousand unless they say otherwise.
#[derive(Clone, Debug)]
pub struct Dials {
    pub shards: usize,
    pub clients: usize,
    /// Actions of each client.
    pub actions: usize,
    pub databases: usize,
    pub users: usize,
    pub servers: usize,
    pub pool_size: u32,
    pub min_size: u32,
    pub max_queue: u32,
    pub queue_timeout_ms: u64,
    pub idle_timeout_ms: u64,
    pub lifetime_ms: u64,
    pub placement: Schedule,
    pub mode: RelayMode,
    pub dedicated: bool,
    /// The pooler checks no logins; otherwise the server does.
    pub trust: bool,
    /// The server asks for a password.
    pub password: bool,
    pub wrong_password: u32,
    pub chunk_size: usize,
    pub chunks: usize,
    pub statements_max: usize,
    /// Longest way of bytes, in microseconds.
    pub latency_us: u64,
    pub think_us: u64,
    /// Large rows and texts.
    pub large: u32,
    pub simple: u32,
    pub extended: u32,
    pub copy: u32,
    pub calls: u32,
    pub transactions: u32,
    pub settings: u32,
    pub discards: u32,
    pub errors: u32,
    pub sleeps: u32,
    pub pipelining: u32,
    pub odd: u32,
    pub startup_settings: u32,
    pub cancels: u32,
    pub vanish: u32,
    pub halves: u32,
    pub slow_readers: u32,
    /// A server connection dies; a server goes down, refuses, hangs.
    pub deaths: u32,
    pub outages: u32,
    pub refusals: u32,
    pub stalls: u32,
    /// The end comes while clients are at work.
    pub early_end: bool,
    pub unix: bool,
    pub names: bool,
}

impl Dials {
    pub fn new(random: &mut Random) -> Self {
        // Off in a third of the seeds, and at most so much in the others.
        let mut dial = |most: u64| if random.below(3) == 0 { 0 } else { random.between(1, most) as u32 };
        let faults = dial(1) > 0;
        let (deaths, outages, refusals, stalls) = (dial(20), dial(300), dial(300), dial(30));
        let mut dials = Self {
            shards: 0,
            clients: 0,
            actions: 0,
            databases: 0,
            users: 0,
            servers: 0,
            pool_size: 0,
            min_size: dial(2),
            max_queue: if dial(2) == 2 { 6 } else { 0 },
            queue_timeout_ms: 0,
            idle_timeout_ms: u64::from(dial(300)),
            lifetime_ms: u64::from(dial(500)),
            placement: Schedule::LoadBalancing,
            mode: RelayMode::Smart,
            dedicated: false,
            trust: false,
            password: false,
            wrong_password: dial(300),
            chunk_size: 0,
            chunks: 0,
            statements_max: 1 + dial(6) as usize,
            latency_us: 0,
            think_us: 0,
            large: dial(150),
            simple: 50 + dial(1000),
            extended: 50 + dial(1000),
            copy: dial(400),
            calls: dial(200),
            transactions: dial(500),
            settings: dial(250),
            discards: dial(100),
            errors: dial(200),
            sleeps: dial(250),
            pipelining: dial(700),
            odd: dial(150),
            startup_settings: dial(600),
            cancels: dial(300),
            vanish: dial(40),
            halves: dial(200),
            slow_readers: dial(300),
            deaths: if faults { deaths } else { 0 },
            outages: if faults { outages } else { 0 },
            refusals: if faults { refusals } else { 0 },
            stalls,
            early_end: dial(8) == 8,
            unix: false,
            names: false,
        };
        dials.shards = 2 + random.below(2);
        dials.clients = 8 + random.below(9);
        dials.actions = 20 + random.below(20);
        dials.databases = 1 + random.below(2);
        dials.users = 1 + random.below(2);
        dials.servers = 1 + random.below(2);
        dials.pool_size = 1 + random.below(6) as u32;
        dials.queue_timeout_ms = *random.one_of(&[50, 300, 2000, 10_000]);
        dials.mode = *random.one_of(&[RelayMode::Smart, RelayMode::Smart, RelayMode::Smart, RelayMode::Session]);
        dials.placement = *random.one_of(&[Schedule::RoundRobin, Schedule::Random, Schedule::LoadBalancing]);
        dials.dedicated = random.below(16) == 0;
        dials.trust = random.below(2) == 0;
        dials.password = !dials.trust && random.below(2) == 0;
        dials.chunk_size = *random.one_of(&[4096, 8192, 16384]);
        dials.chunks = *random.one_of(&[24, 64, 64, 128]);
        dials.latency_us = *random.one_of(&[20, 200, 2000, 20_000]);
        dials.think_us = *random.one_of(&[100, 2000, 20_000]);
        dials.unix = random.below(4) == 0;
        dials.names = random.below(4) == 0;
        dials
    }

    /// Whether the server or the way to it may fail.
    pub fn has_faults(&self) -> bool {
        self.deaths > 0 || self.outages > 0 || self.refusals > 0
    }

    pub fn queue_timeout(&self) -> Duration {
        Duration::from_millis(self.queue_timeout_ms)
    }
}

/// Serves every database by the same settings.
pub struct Everything(pub Dials);

impl Catalogue for Everything {
    fn pool(&self, database: &str, _user: &str) -> Option<PoolSettings> {
        let dials = &self.0;
        if database == "nowhere" {
            return None;
        }
        let server = |index: usize| {
            let port = 5000 + index as u16;
            match (dials.unix, dials.names) {
                (true, _) => Server::Unix(format!("/server/{port}").into()),
                (false, true) => Server::Tcp("server.example".to_owned(), port),
                (false, false) => Server::Tcp("127.0.0.1".to_owned(), port),
            }
        };
        Some(PoolSettings {
            servers: (0..dials.servers).map(server).collect(),
            server_database: database.to_owned(),
            mode: dials.mode,
            dedicated: dials.dedicated,
            pool: Settings {
                size: dials.pool_size,
                min_size: dials.min_size.min(dials.pool_size),
                max_queue: dials.max_queue,
                queue_timeout: dials.queue_timeout(),
                idle_timeout: Duration::from_millis(dials.idle_timeout_ms),
                lifetime: Duration::from_millis(dials.lifetime_ms),
                schedule: Schedule::RoundRobin,
                placement: dials.placement,
            },
        })
    }
}
