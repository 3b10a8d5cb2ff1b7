//! What must add up at any time, for the simulation: read only, all of it counted anew.

use std::time::Instant;

use crate::ids::{BackendId, ClientId, ShardId};
use crate::io::Transport;

use super::{BackendState, ClientState, Purpose, Shard, login};

/// A shard's tables, counted.
#[derive(Default, Debug)]
pub struct Census {
    /// Used slots.
    pub clients: usize,
    /// Used slots.
    pub backends: usize,
    /// Used slots.
    pub cancels: usize,
    /// Who has whom, as the clients say it.
    pub clients_links: Vec<(ClientId, BackendId)>,
    /// Who has whom, as the backends say it.
    pub backends_links: Vec<(ClientId, BackendId)>,
    /// Parts of pools.
    pub pools: Vec<PoolCensus>,
    /// Nodes of held-back requests in use.
    pub nodes_used: usize,
    /// Texts of prepared statements that are kept.
    pub statements: usize,
    /// Links broken and panics caught.
    pub broken: u64,
    /// Configurations that were taken over.
    pub generation: u32,
}

/// A shard's part of one pool, counted.
#[derive(Debug)]
pub struct PoolCensus {
    /// `database/user`.
    pub name: String,
    /// The server.
    pub server: String,
    /// As configured, over all shards.
    pub size: u32,
    /// What each shard has of them before any has moved.
    pub shares: Vec<u32>,
    /// This part's places.
    pub permits: u32,
    /// Places that it owes.
    pub debt: u32,
    /// Places of the reserve.
    pub drawn: u32,
    /// Places taken, as the part counts them.
    pub open: u32,
    /// Backends in the table that hold a place.
    pub counted: u32,
    /// Backends that wait for work.
    pub idle: usize,
    /// It lends nothing any more, and goes with its last link.
    pub retired: bool,
    /// It lends nothing now.
    pub paused: bool,
    /// Clients in the queue.
    pub waiting: usize,
    /// Those who wait need what is at other shards.
    pub wants_more: bool,
    /// Questions asked of other shards.
    pub asked: u32,
    /// Shards that have answered that they have nothing.
    pub nothing: usize,
    /// Who waits and since when, by the clients' table.
    pub queue: Vec<(ClientId, Instant)>,
}

impl<T: Transport> Shard<T> {
    /// Counts everything; walks all tables.
    pub fn census(&self) -> Census {
        let mut census = Census {
            clients: self.clients.len(),
            backends: self.backends.len(),
            cancels: self.cancels.len(),
            nodes_used: self.settings.nodes_count - self.nodes.free_count(),
            statements: self.statements.count(),
            broken: self.counters.broken + self.counters.panics,
            generation: self.generation,
            ..Census::default()
        };
        for (index, generation, client) in self.clients.iter() {
            let id = ClientId { index, generation };
            match &client.state {
                ClientState::Linked(backend) | ClientState::Piped(backend) => census.clients_links.push((id, *backend)),
                ClientState::Login(login) => {
                    if let login::Stage::Applying(backend) = login.stage {
                        census.clients_links.push((id, backend));
                    }
                }
                ClientState::Startup
                | ClientState::Moving(_)
                | ClientState::Ready
                | ClientState::Waiting(_)
                | ClientState::Console(_) => {}
            }
        }
        for (index, generation, backend) in self.backends.iter() {
            if let BackendState::Linked(client) | BackendState::Piped(client) = backend.state {
                census.backends_links.push((client, BackendId { index, generation }));
            }
        }
        census.clients_links.sort_unstable_by_key(|(client, _)| client.index);
        census.backends_links.sort_unstable_by_key(|(client, _)| client.index);
        let shards = || (0..self.settings.shard_count).map(ShardId);
        for id in self.pools.ids() {
            let pool = self.pools.get(id);
            let of_pool = self.backends.iter().filter(|(_, _, backend)| backend.pool == id);
            let waits = |state: &ClientState| match state {
                ClientState::Waiting(_) => true,
                ClientState::Login(login) => matches!(login.stage, login::Stage::Backend | login::Stage::Lookup),
                ClientState::Startup
                | ClientState::Moving(_)
                | ClientState::Ready
                | ClientState::Linked(_)
                | ClientState::Piped(_)
                | ClientState::Console(_) => false,
            };
            let waiting = self.clients.iter().filter(|(_, _, client)| client.pool == Some(id) && waits(&client.state));
            let queue = waiting.filter_map(|(index, generation, _)| {
                let client = ClientId { index, generation };
                Some((client, self.waiters.since(client)?))
            });
            census.pools.push(PoolCensus {
                name: format!("{}/{}", pool.key.database, pool.key.user),
                server: pool.key.server.to_string(),
                size: pool.settings.pool.size,
                shares: shards().map(|shard| pool.homes.share(pool.settings.pool.size, shard)).collect(),
                permits: pool.part.permits(),
                debt: pool.part.debt(),
                drawn: pool.part.drawn(),
                open: pool.part.open(),
                counted: of_pool.filter(|(_, _, backend)| backend.purpose == Purpose::Pool).count() as u32,
                idle: pool.part.idle().len(),
                retired: pool.retired,
                paused: pool.part.is_paused(),
                waiting: pool.part.waiting(),
                wants_more: pool.part.wants_more(),
                asked: pool.round,
                nothing: pool.nothing.iter().filter(|(_, times)| *times > 0).count(),
                queue: queue.collect(),
            });
        }
        census
    }
}
