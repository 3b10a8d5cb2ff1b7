//! The oracles: what must hold after every step, and at the end.

use super::*;

impl World {
    /// Nothing of its last client is left, here or on the way: the next may have it.
    pub(super) fn look_whether_clean(&mut self, index: usize) {
        let server = &mut self.servers[index];
        let undelivered = self.cores[server.shard].shard.io.undelivered(server.connection);
        if server.is_clean(undelivered) {
            server.holder = None;
        }
    }

    pub(super) fn look_at_pool_size(&self, index: usize) {
        let server = &self.servers[index];
        if self.dials.dedicated {
            return;
        }
        let same = self.servers.iter().filter(|one| {
            one.stage == Stage::Ready
                && !one.left
                && (one.port, &one.user, &one.database) == (server.port, &server.user, &server.database)
        });
        let checks = if self.dials.trust { 0 } else { CHECKS as usize * self.cores.len() };
        // Settings that only a startup packet can give make a client dedicated; the simulation has none.
        // Of a pool that was replaced, or made smaller, some may still be at work.
        let administrator = &self.administrator;
        // Of several servers each shard asks what they are, by a connection of its own.
        let watchers = if self.dials.servers > 1 || self.dials.reloads > 0 { self.cores.len() } else { 0 };
        let most = (administrator.size_most + self.dials.reserve_size) as usize * (1 + administrator.replaced as usize)
            + checks
            + watchers;
        let count = same.count();
        assert!(count <= most, "{count} backends of {}/{}, at most {most}", server.database, server.user);
    }

    /// What must hold in a shard at any time.
    pub(super) fn look_at(&mut self, core: usize) {
        let census = self.cores[core].shard.census();
        assert_eq!(census.broken, 0, "a link broke, or a panic was caught");
        assert_eq!(census.clients_links, census.backends_links, "a backend has one client, and that client it");
        for pool in &census.pools {
            self.look_at_excess(core, pool, census.generation);
            assert_eq!(pool.open, pool.counted, "{pool:?}");
            assert_eq!(pool.waiting, pool.queue.len(), "{pool:?}");
        }
        self.note_places(core, &census);
        self.look_at_order(core, &census);
        self.look_at_foreign_order(core, &census);
        self.note_wanting(core, &census);
        self.cores[core].last = census;
    }

    /// A pool has no more backends than places. Made smaller or retired, it may have those that are lent; smaller, it has
    /// no more of them from then on.
    fn look_at_excess(&self, core: usize, pool: &PoolCensus, generation: u32) {
        if pool.retired {
            assert!(pool.idle == 0 && pool.queue.is_empty(), "{pool:?}");
            return;
        }
        if pool.open <= pool.permits {
            return;
        }
        // Places of the reserve go back while they are in use.
        assert!(pool.idle == 0 && (generation > 0 || self.dials.reserve_size > 0), "{pool:?}");
        // With the reload others may have come from other shards.
        let last = &self.cores[core].last;
        let before = last.pools.iter().find(|before| is_same(before, pool)).map_or(0, |before| before.open);
        // What the reserve was drawn for may be served in the same step.
        let before = before.max(pool.permits + self.dials.reserve_size);
        assert!(last.generation < generation || pool.open <= before, "{pool:?}, before it had {before}");
    }

    /// Who waits longest in a shard's queue is served first, and nobody while the pool is paused.
    pub(super) fn look_at_order(&mut self, core: usize, census: &Census) {
        for before in &self.cores[core].last.pools {
            let Some(after) = census.pools.iter().find(|pool| is_same(pool, before)) else { continue };
            if before.paused && after.paused {
                let linked = |(client, _): &&_| census.clients_links.iter().any(|(linked, _)| linked == client);
                let served = before.queue.iter().find(linked);
                assert!(served.is_none(), "{served:?} is served by a paused pool: {before:?}");
                if !after.queue.is_empty() {
                    self.coverage.note("clients wait in a paused pool");
                }
            }
            for (client, since) in &before.queue {
                let served = census.clients_links.iter().any(|(linked, _)| linked == client);
                let passed = after.queue.iter().find(|(_, other)| other < since);
                if let (true, Some((older, _))) = (served, passed) {
                    panic!("{client:?} is served before {older:?}, who has waited longer");
                }
            }
        }
    }

    /// Notes when a place of a pool was given away or came.
    fn note_places(&mut self, core: usize, census: &Census) {
        for after in &census.pools {
            if after.retired {
                self.coverage.note("pool retired");
            }
            if after.debt > 0 {
                self.coverage.note("places are owed");
            }
            let before = self.cores[core].last.pools.iter().find(|before| is_same(before, after));
            if before.is_some_and(|before| before.permits != after.permits) {
                self.places_moved_at.insert((after.name.clone(), after.server.clone()), self.now);
            }
        }
    }

    /// Notes whose turn it would be if another shard had a backend to spare.
    fn note_wanting(&mut self, core: usize, census: &Census) {
        let mut wanting = Vec::new();
        for pool in &census.pools {
            let Some(first) = pool.queue.iter().min_by_key(|(_, since)| since) else { continue };
            if !pool.wants_more {
                continue;
            }
            let same = |(name, server, waits, _): &&_| (name, server, waits) == (&pool.name, &pool.server, first);
            let since = self.cores[core].wanting.iter().find(same).map_or(self.now, |(_, _, _, since)| *since);
            wanting.push((pool.name.clone(), pool.server.clone(), *first, since));
        }
        self.cores[core].wanting = wanting;
    }

    /// A backend is not handed to a client while one at another shard, which has asked for a while, waits much longer.
    fn look_at_foreign_order(&self, core: usize, census: &Census) {
        // Time enough for a few questions; and what has just moved may explain anything.
        if self.now < self.moved_at + FOREIGN || !locked(&self.roads).is_empty() {
            return;
        }
        // So may a pool that goes on, or is another now.
        let changed_at = self.administrator.changed_at;
        if !self.administrator.is_settled() || changed_at.is_some_and(|at| self.now < at + FOREIGN) {
            return;
        }
        let now = self.base + Duration::from_micros(self.now);
        for before in &self.cores[core].last.pools {
            // A place may be on its way to them.
            let moved_at = self.places_moved_at.get(&(before.name.clone(), before.server.clone()));
            if moved_at.is_some_and(|at| self.now < at + FOREIGN) {
                continue;
            }
            let served = before
                .queue
                .iter()
                .filter(|(client, _)| census.clients_links.iter().any(|(linked, _)| linked == client));
            for (client, since) in served {
                let waited = now.duration_since(*since);
                for (other, one) in self.cores.iter().enumerate().filter(|(other, _)| *other != core) {
                    let asks = one.wanting.iter().find(|(name, server, _, from)| {
                        (name, server) == (&before.name, &before.server) && self.now >= from + FOREIGN
                    });
                    let Some((_, _, (first, older), _)) = asks else { continue };
                    let older = now.duration_since(*older);
                    assert!(
                        older <= waited + Duration::from_millis(5).max(waited / 3),
                        "{client:?} of shard {core} is served after {waited:?}, but {first:?} of shard {other} waits for {older:?}"
                    );
                }
            }
        }
    }

    /// No server has more backends of pools than it may have.
    fn look_at_seats(&mut self) {
        let most = self.dials.max_backends;
        if most == 0 {
            return;
        }
        let pools = || self.cores.iter().flat_map(|core| &core.last.pools);
        for server in pools().map(|pool| &pool.server) {
            let count: u32 = pools().filter(|pool| pool.server == *server).map(|pool| pool.counted).sum();
            assert!(count <= most, "{count} backends at {server}, at most {most}");
            if count == most && pools().any(|pool| pool.server == *server && pool.waiting > 0) {
                self.coverage.note("a full server is waited for");
                return;
            }
        }
    }

    /// A pool's places over all shards are never more than its size, and its size when no message is under way.
    pub(super) fn look_at_permits(&mut self) {
        self.look_at_seats();
        if !self.administrator.is_settled() {
            return;
        }
        let in_messages = self.cores.iter().any(|core| core.ring_planned);
        // Each shard is counted after all that it does, so this is how they are now.
        let parts: Vec<&Census> = self.cores.iter().map(|core| &core.last).collect();
        let pools = parts.iter().flat_map(|part| &part.pools).filter(|pool| !pool.retired);
        let mut names: Vec<_> = pools.map(|pool| (&pool.name, &pool.server)).collect();
        names.sort();
        names.dedup();
        for (name, server) in names {
            let size = self.administrator.served.pool_size;
            let part_of = |part: &Census| {
                part.pools.iter().position(|pool| !pool.retired && (&pool.name, &pool.server) == (name, server))
            };
            let shares = parts.iter().find_map(|part| Some(part.pools[part_of(part)?].shares.clone()));
            let shares = shares.expect("the name comes from one of them");
            assert_eq!(shares.iter().sum::<u32>(), size, "shares of {name} at {server}");
            let places = parts.iter().zip(&shares).map(|(part, share)| {
                // A shard that has not made its part yet will make it with its share.
                part_of(part).map_or(*share as i32, |at| part.pools[at].permits as i32 - part.pools[at].debt as i32)
            });
            let drawn = parts.iter().filter_map(|part| Some(part.pools[part_of(part)?].drawn as i32)).sum::<i32>();
            assert!(drawn <= self.dials.reserve_size as i32, "{drawn} places of the reserve of {name} at {server}");
            if drawn > 0 {
                self.coverage.note("reserve drawn");
            }
            let (places, size): (i32, i32) = (places.sum(), size as i32 + drawn);
            assert!(places <= size, "{places} places of {name} at {server}");
            assert!(places == size || in_messages, "{places} places of {name} at {server}");
        }
    }

    /// Every waiter is served or told by its deadline, and nobody waits for ever.
    pub(super) fn look_at_waits(&mut self) {
        // A quiet shard looks at its clock ten times a second.
        let limit = self.administrator.queue_timeout(self.now) + Duration::from_millis(105);
        for core in &self.cores {
            for pool in &core.last.pools {
                let Some((_, since)) = pool.queue.iter().min_by_key(|(_, since)| since) else { continue };
                let waited = (self.base + Duration::from_micros(self.now)).duration_since(*since);
                assert!(waited <= limit || core.stopped, "a waiter was not told: {pool:?}");
            }
        }
        for one in &mut self.applications {
            if one.stage == application::Stage::Gone || one.stage == application::Stage::Absent {
                continue;
            }
            if self.now > one.heard_at + PATIENCE && !one.is_settled() && one.held.is_empty() {
                panic!("client {} in {:?} waits without end: {}", one.id, one.stage, one.waits_for());
            }
        }
    }

    pub(super) fn look_at_the_end(&mut self) {
        for (index, core) in self.cores.iter_mut().enumerate() {
            let census = core.shard.census();
            assert!(core.stopped, "shard {index} has not stopped: {census:?}");
            let left = (census.clients, census.backends, census.nodes_used);
            assert_eq!(left, (0, 0, 0), "shard {index} keeps something: {census:?}");
            // Texts of prepared statements stay, each in a block: what a client or a backend held has come back.
            core.shard.io.end();
            let kept = core.arena.chunk_count() - core.arena.free_count();
            assert!(kept <= census.statements, "shard {index} keeps {kept} chunks: {census:?}");
        }
        let late: u64 = self.cores.iter().map(|core| core.shard.io.late).sum();
        if late > 0 {
            self.coverage.note("bytes after a stop");
        }
        // Who was on the way to a shard that has ended goes with it, and with the process.
        let shard_count = self.cores.len();
        self.cores.clear();
        self.count_strays();
        let all = self.population.count();
        assert!(all <= self.strays, "{all} clients are counted, {} came nowhere", self.strays);
        for shard in 0..shard_count {
            let count = self.population.load(ShardId(shard as u16));
            assert!(count <= self.strays, "{count} clients are counted at shard {shard}");
        }
        for one in &self.applications {
            assert!(self.quitting.is_some() || one.stage == application::Stage::Gone);
        }
    }
}

/// Whether these are one pool; one that is retired is none any more.
fn is_same(one: &PoolCensus, other: &PoolCensus) -> bool {
    !one.retired && !other.retired && (&one.name, &one.server) == (&other.name, &other.server)
}
