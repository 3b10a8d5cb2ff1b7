//! What a seed is about: every seed turns some features up and others off, so that rare ones meet each other.

use std::time::Duration;

use qcp::auth::secrets::{Secret, Users};
use qcp::auth::settings::{Method, Rules};
use qcp::auth::{self, limiter};
use qcp::pool::{Route, Schedule, Settings};
use qcp::session::RelayMode;
use qcp::shard::{Catalogue, ClientsMax, PoolSettings, Server};

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
    pub reserve_size: u32,
    pub max_backends: u32,
    /// Clients go to one of several servers that call themselves the primary, rather than to any.
    pub one_primary: bool,
    pub max_queue: u32,
    pub queue_timeout_ms: u64,
    pub idle_timeout_ms: u64,
    pub lifetime_ms: u64,
    pub placement: Schedule,
    pub mode: RelayMode,
    pub dedicated: bool,
    /// The pooler checks no logins; otherwise the server does.
    pub trust: bool,
    /// The pooler checks passwords itself.
    pub checks: bool,
    /// The server asks for a password.
    pub password: bool,
    pub wrong_password: u32,
    /// Failed logins of one address before it is refused.
    pub failures_max: u32,
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
    /// An administrator changes the configuration, gives orders.
    pub reloads: u32,
    pub orders: u32,
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
            reserve_size: 0,
            max_backends: 0,
            one_primary: false,
            max_queue: if dial(2) == 2 { 6 } else { 0 },
            queue_timeout_ms: 0,
            idle_timeout_ms: u64::from(dial(300)),
            lifetime_ms: u64::from(dial(500)),
            placement: Schedule::LoadBalancing,
            mode: RelayMode::Smart,
            dedicated: false,
            trust: false,
            checks: false,
            password: false,
            wrong_password: dial(300),
            failures_max: 1 + dial(8),
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
            reloads: dial(300),
            orders: dial(300),
            early_end: dial(8) == 8,
            unix: false,
            names: false,
        };
        dials.shards = 2 + random.below(2);
        dials.clients = 8 + random.below(9);
        // 200 requests at least, if nobody vanishes.
        dials.actions = 25 + random.below(16);
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
        dials.checks = !dials.trust && random.below(3) == 0;
        dials.chunk_size = *random.one_of(&[4096, 8192, 16384]);
        dials.chunks = *random.one_of(&[24, 64, 64, 128]);
        dials.latency_us = *random.one_of(&[20, 200, 2000, 20_000]);
        dials.think_us = *random.one_of(&[100, 2000, 20_000]);
        dials.unix = random.below(4) == 0;
        dials.names = random.below(4) == 0;
        dials.one_primary = random.below(2) == 0;
        dials.reserve_size = if random.below(3) == 0 { 1 + random.below(3) as u32 } else { 0 };
        dials.max_backends = if random.below(4) == 0 { 1 + random.below(8) as u32 } else { 0 };
        dials
    }

    /// What can be turned down without ceasing to be a world, with the least of each; what takes away most comes first.
    pub const REDUCIBLE: &[(&str, u64)] = &[
        ("clients", 1),
        ("actions", 1),
        ("early_end", 0),
        ("unix", 0),
        ("names", 0),
        ("dedicated", 0),
        ("reloads", 0),
        ("orders", 0),
        ("deaths", 0),
        ("outages", 0),
        ("refusals", 0),
        ("stalls", 0),
        ("vanish", 0),
        ("cancels", 0),
        ("slow_readers", 0),
        ("halves", 0),
        ("odd", 0),
        ("pipelining", 0),
        ("sleeps", 0),
        ("errors", 0),
        ("discards", 0),
        ("settings", 0),
        ("startup_settings", 0),
        ("transactions", 0),
        ("calls", 0),
        ("copy", 0),
        ("large", 0),
        ("wrong_password", 0),
        ("checks", 0),
        ("password", 0),
        ("databases", 1),
        ("users", 1),
        ("servers", 1),
        ("shards", 2),
        ("pool_size", 1),
        ("min_size", 0),
        ("reserve_size", 0),
        ("max_backends", 0),
        ("one_primary", 0),
        ("max_queue", 0),
        ("idle_timeout_ms", 0),
        ("lifetime_ms", 0),
    ];

    /// One of [`Self::REDUCIBLE`] as a number.
    pub fn get(&self, name: &str) -> u64 {
        match name {
            "clients" => self.clients as u64,
            "actions" => self.actions as u64,
            "early_end" => u64::from(self.early_end),
            "unix" => u64::from(self.unix),
            "names" => u64::from(self.names),
            "dedicated" => u64::from(self.dedicated),
            "reloads" => u64::from(self.reloads),
            "orders" => u64::from(self.orders),
            "deaths" => u64::from(self.deaths),
            "outages" => u64::from(self.outages),
            "refusals" => u64::from(self.refusals),
            "stalls" => u64::from(self.stalls),
            "vanish" => u64::from(self.vanish),
            "cancels" => u64::from(self.cancels),
            "slow_readers" => u64::from(self.slow_readers),
            "halves" => u64::from(self.halves),
            "odd" => u64::from(self.odd),
            "pipelining" => u64::from(self.pipelining),
            "sleeps" => u64::from(self.sleeps),
            "errors" => u64::from(self.errors),
            "discards" => u64::from(self.discards),
            "settings" => u64::from(self.settings),
            "startup_settings" => u64::from(self.startup_settings),
            "transactions" => u64::from(self.transactions),
            "calls" => u64::from(self.calls),
            "copy" => u64::from(self.copy),
            "large" => u64::from(self.large),
            "wrong_password" => u64::from(self.wrong_password),
            "checks" => u64::from(self.checks),
            "password" => u64::from(self.password),
            "databases" => self.databases as u64,
            "users" => self.users as u64,
            "servers" => self.servers as u64,
            "shards" => self.shards as u64,
            "pool_size" => u64::from(self.pool_size),
            "min_size" => u64::from(self.min_size),
            "reserve_size" => u64::from(self.reserve_size),
            "max_backends" => u64::from(self.max_backends),
            "one_primary" => u64::from(self.one_primary),
            "max_queue" => u64::from(self.max_queue),
            "idle_timeout_ms" => self.idle_timeout_ms,
            "lifetime_ms" => self.lifetime_ms,
            _ => panic!("no dial {name} can be turned down"),
        }
    }

    pub fn set(&mut self, name: &str, value: u64) {
        match name {
            "clients" => self.clients = value as usize,
            "actions" => self.actions = value as usize,
            "early_end" => self.early_end = value != 0,
            "unix" => self.unix = value != 0,
            "names" => self.names = value != 0,
            "dedicated" => self.dedicated = value != 0,
            "reloads" => self.reloads = value as u32,
            "orders" => self.orders = value as u32,
            "deaths" => self.deaths = value as u32,
            "outages" => self.outages = value as u32,
            "refusals" => self.refusals = value as u32,
            "stalls" => self.stalls = value as u32,
            "vanish" => self.vanish = value as u32,
            "cancels" => self.cancels = value as u32,
            "slow_readers" => self.slow_readers = value as u32,
            "halves" => self.halves = value as u32,
            "odd" => self.odd = value as u32,
            "pipelining" => self.pipelining = value as u32,
            "sleeps" => self.sleeps = value as u32,
            "errors" => self.errors = value as u32,
            "discards" => self.discards = value as u32,
            "settings" => self.settings = value as u32,
            "startup_settings" => self.startup_settings = value as u32,
            "transactions" => self.transactions = value as u32,
            "calls" => self.calls = value as u32,
            "copy" => self.copy = value as u32,
            "large" => self.large = value as u32,
            "wrong_password" => self.wrong_password = value as u32,
            "checks" => self.checks = value != 0,
            "password" => self.password = value != 0,
            "databases" => self.databases = value as usize,
            "users" => self.users = value as usize,
            "servers" => self.servers = value as usize,
            "shards" => self.shards = value as usize,
            "pool_size" => self.pool_size = value as u32,
            "min_size" => self.min_size = value as u32,
            "reserve_size" => self.reserve_size = value as u32,
            "max_backends" => self.max_backends = value as u32,
            "one_primary" => self.one_primary = value > 0,
            "max_queue" => self.max_queue = value as u32,
            "idle_timeout_ms" => self.idle_timeout_ms = value,
            "lifetime_ms" => self.lifetime_ms = value,
            _ => panic!("no dial {name} can be turned down"),
        }
    }

    /// Whether the server or the way to it may fail.
    pub fn has_faults(&self) -> bool {
        self.deaths > 0 || self.outages > 0 || self.refusals > 0
    }

    fn method(&self) -> Method {
        match (self.trust, self.checks) {
            (true, _) => Method::Trust,
            (false, true) => Method::Password,
            (false, false) => Method::Server,
        }
    }

    /// Whether a client with a wrong password is turned away.
    pub fn asks_password(&self) -> bool {
        !self.trust && (self.password || self.checks)
    }

    /// What the pooler knows of its users.
    pub fn auth(&self) -> auth::settings::Settings {
        let mut users = Users::default();
        if self.checks {
            for number in 0..self.users {
                users.insert(&format!("user{number}"), Secret::from_text("right"));
            }
        }
        let limiter = limiter::Settings { failures_max: self.failures_max, ..auth::settings::LIMITER };
        auth::settings::Settings { users, limiter, ..Default::default() }
    }

    pub fn queue_timeout(&self) -> Duration {
        Duration::from_millis(self.queue_timeout_ms)
    }
}

/// Serves the first databases, each by the same settings.
pub struct Everything(pub Dials);

impl Catalogue for Everything {
    fn pool(&self, database: &str, _user: &str) -> Option<PoolSettings> {
        let dials = &self.0;
        let number: usize = database.strip_prefix("db")?.parse().ok()?;
        if number >= dials.databases {
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
            weights: vec![1; dials.servers],
            route: if dials.one_primary && dials.servers > 1 { Route::Primary } else { Route::Any },
            server_database: database.to_owned(),
            mode: dials.mode,
            preserve: None,
            hold_prepared: false,
            dedicated: dials.dedicated,
            tls: vec![0; dials.servers],
            rules: Rules { method: dials.method(), credentials: None },
            clients_max: ClientsMax::default(),
            timeouts: Default::default(),
            upkeep: Default::default(),
            pool: Settings {
                size: dials.pool_size,
                min_size: dials.min_size.min(dials.pool_size),
                reserve_size: dials.reserve_size,
                reserve_timeout: Duration::from_millis(20),
                max_backends: dials.max_backends,
                max_queue: dials.max_queue,
                queue_timeout: dials.queue_timeout(),
                idle_timeout: Duration::from_millis(dials.idle_timeout_ms),
                lifetime: Duration::from_millis(dials.lifetime_ms),
                keepalive_interval: Duration::ZERO,
                keepalive_timeout: Duration::from_secs(10),
                schedule: Schedule::RoundRobin,
                placement: dials.placement,
            },
        })
    }
}

#[test]
fn a_seed_is_large_enough() {
    for seed in 0..10_000 {
        let dials = Dials::new(&mut Random(seed));
        assert!(dials.shards >= 2 && dials.clients >= 8 && dials.clients * dials.actions >= 200, "{dials:?}");
    }
}
