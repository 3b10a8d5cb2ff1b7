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

use super::{BackendState, ClientState, Server, Shard};

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

impl<T: Transport> Shard<T> {
    /// A client that has a backend sends something: if nothing was under way, a query begins.
    #[inline]
    pub(super) fn begin_query(&mut self, id: BackendId) {
        let now = self.tick();
        let Some(backend) = self.backends.get_mut(id.index, id.generation) else { return };
        if !backend.pipeline.is_busy() {
            backend.asked = now;
            if backend.pipeline.status() == TransactionStatus::Idle {
                backend.begun = now;
            }
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
        // Most transactions are one query.
        let transaction = (backend.pipeline.status() == TransactionStatus::Idle)
            .then(|| if backend.begun == backend.asked { took } else { Measured::of_us(backend.begun.us_until(now)) });
        // What is still under way in the pipeline has been begun by now.
        backend.asked = now;
        let (is_over, begun) = (transaction.is_some(), backend.begun);
        if is_over {
            backend.begun = now;
        }
        let bytes_out = std::mem::take(&mut backend.bytes_out);
        let (pool, is_noted) = (backend.pool, backend.texts.is_some());
        let bytes_in = match backend.state {
            BackendState::Linked(client) => {
                let client = self.clients.get_mut(client.index, client.generation);
                client.map_or(0, |client| std::mem::take(&mut client.bytes_in))
            }
            _ => 0,
        };
        let totals = &mut self.pools.get_mut(pool).totals;
        totals.queries += 1;
        totals.bytes_in += bytes_in;
        totals.bytes_out += bytes_out;
        totals.query.record_measured(took);
        if let Some(took) = transaction {
            totals.transaction.record_measured(took);
        }
        if is_over && is_noted {
            self.log_if_slow(id, begun.until(now));
        }
    }

    /// Everything that is counted; walks the tables once.
    pub(super) fn metrics(&self) -> ShardMetrics {
        let now = self.io.now();
        let arena = self.io.arena();
        let counters = &self.counters;
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
                ClientState::Waiting | ClientState::Moving(_) | ClientState::Console(_) => continue,
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
            bytes_in: counters.bytes_in,
            bytes_out: counters.bytes_out,
            queries: counters.queries,
            links: counters.transactions,
            waits: counters.waits,
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

/// What pools did that are gone, by database: totals of a database must not go down. Bounded; past that they do.
#[derive(Default)]
pub(super) struct Retired(HashMap<Box<str>, Totals, foldhash::fast::RandomState>);

/// Databases that are remembered.
const RETIRED_MAX: usize = 1024;

impl Retired {
    pub(super) fn add(&mut self, database: &str, totals: &Totals) {
        if let Some(known) = self.0.get_mut(database) {
            known.add(totals);
        } else if self.0.len() < RETIRED_MAX {
            self.0.insert(database.into(), *totals);
        }
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&str, &Totals)> {
        self.0.iter().map(|(name, totals)| (&**name, totals))
    }
}
