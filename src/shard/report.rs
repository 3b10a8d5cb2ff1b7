//! What there is, for people: rows of plain data that `control` merges and prints.

pub use crate::control::report::ShardReport;
use crate::control::report::{
    BackendRow, BackendState as ReportedBackend, ClientRow, ClientState as ReportedClient, Counters, MemoryReport,
    PoolRow, RelayMode as ReportedMode,
};
use crate::ids::{ClientId, ConnectionId};
use crate::io::Transport;
use crate::protocol::TransactionStatus;
use crate::session::RelayMode;
use crate::session::prepared::count_names;

use super::{BackendState, ClientState, Shard, Tick};

impl<T: Transport> Shard<T> {
    /// Everything, as it is now. Walks all tables: for people, not for each second.
    pub(super) fn report(&self) -> ShardReport {
        let now = self.io.now();
        let stamp = self.stamp(now);
        let tick = Tick::new(self.started, now);
        let shard = self.settings.id.0;
        let clients = self.clients.iter().map(|(index, generation, client)| {
            let id = ClientId { index, generation };
            let pool = client.pool.map(|pool| &self.pools.get(pool).key);
            let backend = self.backend_of(id).and_then(|id| self.backends.get(id.index, id.generation));
            let state = match client.state {
                ClientState::Startup | ClientState::Moving(_) | ClientState::Login(_) => ReportedClient::Login,
                ClientState::Ready => ReportedClient::Idle,
                ClientState::Waiting(_) => ReportedClient::Waiting,
                ClientState::Linked(_) => ReportedClient::Active,
                ClientState::Piped(_) => ReportedClient::Dedicated,
                ClientState::Console(_) => ReportedClient::Console,
            };
            let (database, user) = match (&client.state, pool) {
                (ClientState::Console(visit), _) => (visit.database.to_string(), visit.user.to_string()),
                (_, Some(key)) => (key.database.to_string(), key.user.to_string()),
                (_, None) => (String::new(), String::new()),
            };
            ClientRow {
                id: u64::from(self.process_id(id)),
                user,
                database,
                state,
                shard,
                address: self.peer(client.connection),
                connected_s: client.since.age(stamp).as_secs(),
                application_name: self.vectors.get(client.wanted, "application_name").unwrap_or_default().to_owned(),
                backend_pid: backend.map(|backend| backend.process_id as i32),
                pinned: backend.map(|backend| backend.kept.pin_names()).unwrap_or_default(),
                pinned_s: backend
                    .and_then(|backend| backend.kept.pinned_since)
                    .map_or(0, |since| now.duration_since(since).as_secs()),
                quiet_s: client.active.age(stamp).as_secs(),
                tls: self.io.facts(client.connection).is_some(),
                cipher: self.cipher_of(client.connection),
                local: self.io.local(client.connection),
                replication: client.replication.name().to_owned(),
                prepared_statements: {
                    let packed = client.names.as_ref().map_or(&[][..], |names| names.bytes());
                    count_names(&packed[..(client.names_used as usize).min(packed.len())]) as u64
                },
                wait_ms: self.waiters.since(id).map_or(0, |since| now.duration_since(since).as_millis() as u64),
            }
        });
        let backends = self.backends.iter().map(|(_, _, backend)| {
            let key = &self.pools.get(backend.pool).key;
            let (state, client) = match backend.state {
                BackendState::Resolving | BackendState::Connecting => (ReportedBackend::Dialing, None),
                BackendState::LoggingIn => (ReportedBackend::Login, backend.checks),
                BackendState::Idle => (ReportedBackend::Idle, None),
                BackendState::Linked(client) => (ReportedBackend::Linked, Some(client)),

                BackendState::LookingUp(client) => (ReportedBackend::Linked, Some(client)),
                BackendState::Listening(_) => (ReportedBackend::Listening, None),
                BackendState::Cleaning(_) | BackendState::Moving(_) => (ReportedBackend::Cleaning, None),
                BackendState::Piped(client) => (ReportedBackend::Dedicated, Some(client)),
            };
            BackendRow {
                pid: (backend.process_id != 0).then_some(backend.process_id as i32),
                user: key.user.to_string(),
                database: key.database.to_string(),
                server: key.server.to_string(),
                state,
                shard,
                age_s: now.duration_since(backend.born).as_secs(),
                idle_s: now.duration_since(backend.used).as_secs(),
                client: client.map(|client| u64::from(self.process_id(client))),
                transaction_ms: {
                    let open =
                        backend.pipeline.status() != TransactionStatus::Idle || backend.pipeline.is_client_busy();
                    let linked = matches!(backend.state, BackendState::Linked(_));
                    if linked && open { backend.begun.until(tick).as_millis().max(1) as u64 } else { 0 }
                },
                busy: backend.pipeline.is_client_busy(),
                close_needed: backend.tainted,
                tls: backend.leg.encryption == super::tls::Encryption::Done,
                cipher: backend.connection.map(|connection| self.cipher_of(connection)).unwrap_or_default(),
                local: backend.connection.map(|connection| self.io.local(connection)).unwrap_or_default(),
                replication: {
                    let client = client.and_then(|client| self.clients.get(client.index, client.generation));
                    client.map_or("none", |client| client.replication.name()).to_owned()
                },
                prepared_statements: backend.prepared.count() as u64,
            }
        });
        let pools = self.pools.ids().map(|id| {
            let pool = self.pools.get(id);
            let of_pool = || {
                let backends = self.backends.iter().map(|(_, _, backend)| backend);
                backends.filter(move |backend| backend.pool == id)
            };
            let count =
                |wanted: fn(&BackendState) -> bool| of_pool().filter(|backend| wanted(&backend.state)).count() as u64;
            let oldest = pool.part.first_waiter(&self.waiters).map(|(_, since)| now.duration_since(since));
            PoolRow {
                server: pool.key.server.to_string(),
                role: self.servers.role(&pool.key.server).unwrap_or_default().to_owned(),
                database: pool.key.database.to_string(),
                user: pool.key.user.to_string(),
                mode: match pool.settings.mode {
                    RelayMode::Session => ReportedMode::Session,
                    RelayMode::Smart => ReportedMode::Smart,
                    RelayMode::Statement => ReportedMode::Statement,
                },
                size: u64::from(pool.settings.pool.size),
                permits: u64::from(pool.part.permits()),
                idle: pool.part.idle().len() as u64,
                linked: count(|state| matches!(state, BackendState::Linked(_))),
                dialing: u64::from(pool.part.opening()),
                cleaning: count(|state| matches!(state, BackendState::Cleaning(_))),
                waiting: pool.part.waiting() as u64,
                oldest_wait_ms: oldest.map_or(0, |waited| waited.as_millis() as u64),
                queries: pool.totals.query().count(),
                transactions: pool.totals.links + of_pool().map(|backend| backend.carried.links).sum::<u64>(),
                clients: u64::from(pool.clients),
            }
        });
        let arena = self.io.arena();
        let sums = self.sums();
        ShardReport {
            shard,
            core: None,
            uptime_s: now.duration_since(self.started).as_secs(),
            clients: clients.collect(),
            backends: backends.collect(),
            pools: pools.collect(),
            memory: MemoryReport {
                terms: self.settings.memory_terms.clone(),
                arena_chunks: arena.chunk_count() as u64,
                arena_chunk_size: arena.chunk_size() as u64,
                chunks_in_use: (arena.chunk_count() - arena.free_count()) as u64,
                chunks_peak: arena.in_use_peak() as u64,
                rss_bytes: None,
            },
            counters: Counters {
                clients: self.clients.len() as u64,
                backends: self.backends.len() as u64,
                queries: sums.queries,
                transactions: sums.links,
                bytes_in: sums.bytes_in,
                bytes_out: sums.bytes_out,
                waits: sums.waits,
            },
            paused: self.orders.paused(),
            disabled: self.orders.disabled(),
            names: self.names_known(),
        }
    }

    /// As `TLSv1.3/TLS13_AES_256_GCM_SHA384`; empty: not encrypted.
    fn cipher_of(&self, connection: ConnectionId) -> String {
        self.io.facts(connection).map_or_else(String::new, |facts| format!("{}/{}", facts.version, facts.cipher))
    }
}
