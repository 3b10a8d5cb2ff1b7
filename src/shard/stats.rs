//! What is counted beside the work, for the metrics: a few additions for each answer, no memory, no clock of its own.

use std::collections::HashMap;
use std::time::Duration;

use crate::control::report::RelayMode as ReportedMode;
pub use crate::control::report::metrics::ShardMetrics;
use crate::control::report::metrics::{Measured, Origin, PoolMetrics, Totals};
use crate::ids::{BackendId, PoolId};
use crate::io::Transport;
use crate::protocol::{SqlState, TransactionStatus};
use crate::session::RelayMode;

use super::{Backend, BackendState, Carried, ClientState, Purpose, Server, Shard};

/// Codes that are counted apart; PostgreSQL has about 260, and a function may make up others.
const CODES_MAX: usize = 512;
/// What the others are counted as.
const OTHERS: &str = "other";

/// Errors that clients were told, by code.
pub(super) struct Errors {
    counts: HashMap<(SqlState, Origin), u64, foldhash::fast::RandomState>,
    others: u64,
}

impl Errors {
    pub(super) fn new() -> Self {
        Self { counts: HashMap::with_capacity_and_hasher(CODES_MAX, Default::default()), others: 0 }
    }

    pub(super) fn count(&mut self, code: SqlState, origin: Origin) {
        if let Some(count) = self.counts.get_mut(&(code, origin)) {
            *count += 1;
        } else if self.counts.len() < CODES_MAX {
            self.counts.insert((code, origin), 1);
        } else {
            self.others += 1;
        }
    }

    fn rows(&self) -> Vec<(String, Origin, u64)> {
        let rows = self.counts.iter().map(|(&(code, origin), &count)| (code.to_string(), origin, count));
        let others = (self.others > 0).then(|| (OTHERS.to_owned(), Origin::Server, self.others));
        rows.chain(others).collect()
    }
}

impl Totals {
    fn carry(&mut self, carried: &Carried) {
        self.links += carried.links;
        self.bytes_in += carried.bytes_in;
        self.bytes_out += carried.bytes_out;
    }
}

impl Backend {
    /// Whether what it carries is its pool's.
    fn works_for_clients(&self) -> bool {
        matches!(self.purpose, Purpose::Pool | Purpose::Dedicated)
    }
}

impl<T: Transport> Shard<T> {
    /// A client that has a backend sends `size` bytes: if nothing was under way, a query begins.
    #[inline]
    pub(super) fn begin_query(&mut self, id: BackendId, size: usize) {
        let now = self.tick();
        let Some(backend) = self.backends.get_mut(id.index, id.generation) else { return };
        backend.client_sends(size);
        // A question of our own behind the last transaction is not the client's.
        if !backend.pipeline.is_busy() || !backend.pipeline.is_client_busy() {
            backend.asked = now;
            if backend.pipeline.status() == TransactionStatus::Idle {
                backend.begun = now;
            }
        }
    }

    /// What a backend has carried goes to its pool's totals: it ends, or begins to do something else.
    pub(super) fn hand_in(&mut self, id: BackendId) {
        let Some(backend) = self.backends.get_mut(id.index, id.generation) else { return };
        let carried = std::mem::take(&mut backend.carried);
        if backend.works_for_clients() {
            self.pools.get_mut(backend.pool).totals.carry(&carried);
        } else {
            self.bytes_apart.0 += carried.bytes_in;
            self.bytes_apart.1 += carried.bytes_out;
        }
    }

    /// The client that waited for this backend lets go of it, perhaps without an answer.
    pub(super) fn count_wait(&mut self, id: BackendId) {
        let Some(backend) = self.backends.get_mut(id.index, id.generation) else { return };
        if let Some(us) = backend.waited.take() {
            self.pools.get_mut(backend.pool).totals.wait.record_measured(Measured::of_us(us));
        }
    }

    /// Counts something of a backend for its pool.
    #[inline]
    pub(super) fn count_for(&mut self, id: BackendId, count: impl FnOnce(&mut Totals)) {
        if let Some(backend) = self.backends.get(id.index, id.generation) {
            count(&mut self.pools.get_mut(backend.pool).totals);
        }
    }

    /// A ReadyForQuery for the client: one query is answered, and with it perhaps a transaction.
    #[inline]
    pub(super) fn end_query(&mut self, id: BackendId) {
        let now = self.tick();
        let Some(backend) = self.backends.get_mut(id.index, id.generation) else { return };
        let took = Measured::of_us(backend.asked.us_until(now));
        let (asked, begun) = (backend.asked, backend.begun);
        let is_over = backend.pipeline.status() == TransactionStatus::Idle;
        // What is still under way in the pipeline has been begun by now.
        backend.asked = now;
        let totals = &mut *self.pools.get_mut(backend.pool).totals;
        if let Some(us) = backend.waited.take() {
            totals.wait.record_measured(Measured::of_us(us));
        }
        if !is_over {
            return totals.query_took(took);
        }
        backend.begun = now;
        if begun == asked {
            totals.query_took_alone(took);
        } else {
            totals.query_took(took);
            totals.transaction_took(Measured::of_us(begun.us_until(now)));
        }
        if backend.texts.is_some() {
            self.log_if_slow(id, begun.until(now));
        }
    }

    /// What the shard has done since its start: what its pools have, those that are gone among them, and what does not
    /// belong to any. Walks the tables.
    pub(super) fn sums(&self) -> Sums {
        let mut totals = self.pools.retired_all();
        self.pools.ids().for_each(|id| totals.add(&self.pools.get(id).totals));
        self.backends.iter().for_each(|(_, _, backend)| totals.carry(&backend.carried));
        let of_clients = self.clients.iter().map(|(_, _, client)| u64::from(client.bytes_in));
        Sums {
            queries: totals.query().count(),
            links: totals.links,
            bytes_in: totals.bytes_in + self.bytes_apart.0 + of_clients.sum::<u64>(),
            bytes_out: totals.bytes_out + self.bytes_apart.1,
            waits: totals.wait.count(),
        }
    }

    /// Everything that is counted; walks the tables.
    pub(super) fn metrics(&self) -> ShardMetrics {
        let now = self.io.now();
        let arena = self.io.arena();
        let (counters, sums) = (&self.counters, self.sums());
        // By slot of their pool.
        let mut pools: Vec<Option<PoolMetrics>> = Vec::new();
        for id in self.pools.ids() {
            let pool = self.pools.get(id);
            let oldest = pool.part.first_waiter(&self.waiters).map(|(_, since)| now.duration_since(since));
            let (host, port) = match &pool.key.server {
                Server::Tcp(host, port) => (host.clone(), port.to_string()),
                Server::Unix(path) => (path.display().to_string(), String::new()),
            };
            pools.resize(id.0 as usize + 1, None);
            pools[id.0 as usize] = Some(PoolMetrics {
                server: pool.key.server.to_string(),
                host,
                port,
                database: pool.key.database.to_string(),
                server_database: pool.settings.server_database.clone(),
                user: pool.key.user.to_string(),
                mode: match pool.settings.mode {
                    RelayMode::Session => ReportedMode::Session,
                    RelayMode::Smart => ReportedMode::Smart,
                    RelayMode::Statement => ReportedMode::Statement,
                },
                size: u64::from(pool.settings.pool.size),
                clients_idle: 0,
                clients_active: 0,
                clients_waiting: pool.part.waiting() as u64,
                oldest_wait: oldest.unwrap_or(Duration::ZERO),
                backends_idle: 0,
                backends_active: 0,
                backends_cleaning: 0,
                backends_login: 0,
                in_trouble: pool.trouble.is_some(),
                totals: *pool.totals,
            });
        }
        for (_, _, backend) in self.backends.iter().filter(|(_, _, backend)| backend.works_for_clients()) {
            if let Some(Some(pool)) = pools.get_mut(backend.pool.0 as usize) {
                pool.totals.carry(&backend.carried);
            }
        }
        let mut in_pool = |id: PoolId, count: fn(&mut PoolMetrics) -> &mut u64| {
            if let Some(Some(pool)) = pools.get_mut(id.0 as usize) {
                *count(pool) += 1;
            }
        };
        let mut clients_login = 0;
        for (_, _, client) in self.clients.iter() {
            let count: fn(&mut PoolMetrics) -> &mut u64 = match client.state {
                ClientState::Startup | ClientState::Login(_) => {
                    clients_login += 1;
                    continue;
                }
                // Counted with the queue; and where it goes.
                ClientState::Waiting(_) | ClientState::Moving(_) | ClientState::Console(_) => continue,
                ClientState::Ready => |pool| &mut pool.clients_idle,
                ClientState::Linked(_) | ClientState::Piped(_) => |pool| &mut pool.clients_active,
            };
            if let Some(pool) = client.pool {
                in_pool(pool, count);
            }
        }
        for (_, _, backend) in self.backends.iter() {
            in_pool(
                backend.pool,
                match backend.state {
                    BackendState::Resolving | BackendState::Connecting | BackendState::LoggingIn => {
                        |pool| &mut pool.backends_login
                    }
                    BackendState::Idle => |pool| &mut pool.backends_idle,
                    BackendState::Linked(_)
                    | BackendState::Piped(_)
                    | BackendState::LookingUp(_)
                    | BackendState::Listening(_) => |pool| &mut pool.backends_active,
                    BackendState::Cleaning(_) | BackendState::Moving(_) => |pool| &mut pool.backends_cleaning,
                },
            );
        }
        ShardMetrics {
            shard: self.settings.id.0,
            clients: self.clients.len() as u64,
            clients_login,
            backends: self.backends.len() as u64,
            bytes_in: sums.bytes_in,
            bytes_out: sums.bytes_out,
            queries: sums.queries,
            links: sums.links,
            waits: sums.waits,
            accepted: counters.accepted,
            broken: counters.broken + counters.panics,
            arena_chunks: arena.chunk_count() as u64,
            arena_chunk_size: arena.chunk_size() as u64,
            arena_used: (arena.chunk_count() - arena.free_count()) as u64,
            arena_peak: arena.in_use_peak() as u64,
            pools: pools.into_iter().flatten().collect(),
            retired: self.pools.retired().map(|(name, totals)| (name.to_owned(), *totals)).collect(),
            errors: self.errors.rows(),
        }
    }
}

/// What a shard has done since its start.
pub(super) struct Sums {
    /// Answered.
    pub(super) queries: u64,
    /// Times that a client was given a backend.
    pub(super) links: u64,
    /// From clients.
    pub(super) bytes_in: u64,
    /// From servers.
    pub(super) bytes_out: u64,
    /// Times that a client was given one after a wait.
    pub(super) waits: u64,
}

/// What pools did that are gone, by database: totals of a database must not go down. Bounded; past that they do.
#[derive(Default)]
pub(super) struct Retired {
    by_database: HashMap<Box<str>, Totals, foldhash::fast::RandomState>,
    /// Of those that are not remembered too.
    all: Totals,
}

/// Databases that are remembered.
const RETIRED_MAX: usize = 1024;

impl Retired {
    pub(super) fn add(&mut self, database: &str, totals: &Totals) {
        self.all.add(totals);
        if let Some(known) = self.by_database.get_mut(database) {
            known.add(totals);
        } else if self.by_database.len() < RETIRED_MAX {
            self.by_database.insert(database.into(), *totals);
        }
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&str, &Totals)> {
        self.by_database.iter().map(|(name, totals)| (&**name, totals))
    }

    pub(super) fn all(&self) -> Totals {
        self.all
    }
}
