//! Limits beyond a pool's size: `max_backends` of a server, over all its pools and shards, and `reserve_size`, more places for
//! clients that have waited long.
//!
//! A backend that holds a pool's place holds a *seat* at its server too: one count for all shards, in the table that clients
//! are counted in. Where all seats are taken, an idle backend of another pool makes room, here or, by message, at
//! another shard; if there is none, the next one that comes back to a pool that has more than the one that waits.
//!
//! Invariant: no more seats are taken than the limit of who takes the last one; a seat is given back when what holds it is
//! dropped.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::ids::{BackendId, PoolId, ShardId};
use crate::io::{Close, Transport};
use crate::pool::budget::{self, Standing};

use super::mailbox::Mail;
use super::tally::{Counted, Name};
use super::{Population, Running, Server, Shard};

/// Other shards are asked again after this.
const ASK_EVERY: Duration = Duration::from_millis(10);
/// A question that was not repeated is not remembered longer: a quiet shard looks at its queues ten times a second.
const CLAIM_FOR: Duration = Duration::from_millis(120);

/// Until pools are looked at again.
const THIN_OUT_FOR: Duration = Duration::from_millis(250);
/// The claim of those who wait for none, where a server has too many.
const NOBODYS: u32 = 0;

/// A backend's part in what its server may have.
pub(super) struct Seat {
    population: Arc<Population>,
    /// `None`: the table is full, and there is no limit.
    counted: Option<Counted>,
}

impl Drop for Seat {
    fn drop(&mut self) {
        if let Some(counted) = self.counted.take() {
            self.population.tally.leave(counted);
        }
    }
}

/// Clients of a pool wait for a seat at its server.
pub(super) struct Claim {
    server: Server,
    from: ShardId,
    /// Which of that shard's pools.
    serial: u32,
    waits: Standing,
    /// When it was last said.
    at: Instant,
}

impl<T: Transport> Shard<T> {
    /// Takes a place of the pool and a seat at its server, for a backend that is to be opened. `None`: one of them is not to be
    /// had.
    pub(super) fn begin_open(&mut self, id: PoolId) -> Option<Seat> {
        if !self.pools.get(id).part.has_unused() {
            return None;
        }
        let seat = self.take_seat(id)?;
        let begun = self.pools.get_mut(id).part.begin_open();
        debug_assert!(begun, "there is an unused place");
        Some(seat)
    }

    /// A seat at a pool's server. Without one, somebody is asked to make room.
    pub(super) fn take_seat(&mut self, id: PoolId) -> Option<Seat> {
        let now = self.io.now();
        let pool = self.pools.get(id);
        let limit = pool.settings.pool.max_backends;
        let waits = self.standing_of(id);
        if limit > 0 && !self.room_claims.is_empty() {
            let serial = pool.serial;
            self.room_claims.retain(|claim| now < claim.at + CLAIM_FOR);
            let own = self.settings.id;
            let others = self.room_claims.iter().filter(|claim| (claim.from, claim.serial) != (own, serial));
            let pool = self.pools.get(id);
            let mut others = others.filter(|claim| claim.server == pool.key.server);
            if others.any(|claim| budget::sits_first(&claim.waits, &waits)) {
                self.claim_room(id, waits);
                return None;
            }
        }
        let pool = self.pools.get(id);
        let most = if limit == 0 { u32::MAX } else { limit };
        let counted = self.population.tally.enter(Name::Server(&pool.key.server), most);
        let mut counted = counted.ok();
        if counted.is_none() && limit > 0 {
            // Said before one is closed, so that nobody else takes its seat.
            self.claim_room(id, waits);
            // What is idle here goes at once, and its seat with it.
            if !self.close_spare(id) {
                return None;
            }
            let pool = self.pools.get(id);
            counted = Some(self.population.tally.enter(Name::Server(&pool.key.server), most).ok()?);
        }
        let (own, serial) = (self.settings.id, self.pools.get(id).serial);
        self.room_claims.retain(|claim| (claim.from, claim.serial) != (own, serial));
        Some(Seat { population: self.population.clone(), counted })
    }

    fn standing_of(&self, id: PoolId) -> Standing {
        let part = &self.pools.get(id).part;
        let since = part.first_waiter(&self.waiters).map(|(_, since)| since);
        Standing { open: part.open(), since }
    }

    /// Clients of a pool wait for a seat: says so here and to the other shards.
    fn claim_room(&mut self, id: PoolId, waits: Standing) {
        // Nobody makes room for what nobody waits for.
        if waits.since.is_none() {
            return;
        }
        let (now, own) = (self.io.now(), self.settings.id);
        let pool = self.pools.get_mut(id);
        let (server, serial) = (pool.key.server.clone(), pool.serial);
        let asks = pool.room_at.is_none_or(|at| now >= at);
        if asks {
            pool.room_at = Some(now + ASK_EVERY);
            for shard in self.mailbox.others(own) {
                let (server, from) = (server.clone(), own);
                self.mailbox.send(shard, Mail::Room { server, from, serial, waits });
            }
        }
        self.note_claim(Claim { server, from: own, serial, waits, at: now });
    }

    fn note_claim(&mut self, claim: Claim) {
        self.room_claims.retain(|known| (known.from, known.serial) != (claim.from, claim.serial));
        self.room_claims.push(claim);
    }

    /// Another shard's clients wait for a seat at this server.
    pub(super) fn on_room(&mut self, server: Server, from: ShardId, serial: u32, waits: Standing) {
        if self.running != Running::Yes {
            return;
        }
        let at = self.io.now();
        let spare = self.spare_at(&server, None);
        self.note_claim(Claim { server, from, serial, waits, at });
        if let Some(spare) = spare {
            self.close_backend(spare, Close::Flushed);
        }
    }

    /// Closes an idle backend of another pool at the same server; whether there was one.
    fn close_spare(&mut self, id: PoolId) -> bool {
        let server = self.pools.get(id).key.server.clone();
        let spare = self.spare_at(&server, Some(id));
        if let Some(spare) = spare {
            self.close_backend(spare, Close::Flushed);
        }
        spare.is_some()
    }

    /// An idle backend at this server, of the pool that has most of them. One that cannot be had again stays.
    fn spare_at(&self, server: &Server, except: Option<PoolId>) -> Option<BackendId> {
        let pools = self.pools.ids().filter(|&id| Some(id) != except && self.pools.get(id).key.server == *server);
        let spare = pools.filter(|&id| {
            let part = &self.pools.get(id).part;
            let is_spare = !part.idle().is_empty() && part.waiting() == 0 && part.open() > self.minimum(id);
            is_spare && self.can_replace(id)
        });
        let most = spare.max_by_key(|&id| self.pools.get(id).part.open())?;
        self.pools.get(most).part.idle().first().copied()
    }

    /// Whether a backend that comes back to this pool is closed, so that another pool at its server can have one.
    pub(super) fn makes_room(&mut self, id: PoolId) -> bool {
        let (now, own) = (self.io.now(), self.settings.id);
        self.room_claims.retain(|claim| now < claim.at + CLAIM_FOR);
        let waits = self.standing_of(id);
        let pool = self.pools.get(id);
        let claims = self.room_claims.iter().filter(|claim| (claim.from, claim.serial) != (own, pool.serial));
        let mut claims = claims.filter(|claim| claim.server == pool.key.server);
        let wants = |claim: &Claim| match claim.serial {
            NOBODYS => self.is_overfull(id),
            _ => budget::makes_room(&waits, &claim.waits, now),
        };
        self.can_replace(id) && claims.any(wants)
    }

    /// Whether a server has more backends than it may have: a reload has made them fewer.
    fn is_overfull(&self, id: PoolId) -> bool {
        let pool = self.pools.get(id);
        let limit = pool.settings.pool.max_backends;
        limit > 0 && self.population.tally.count(Name::Server(&pool.key.server)) > limit
    }

    /// Closes what a server has too many, idle ones now and the others as they come back.
    pub(super) fn thin_out(&mut self, id: PoolId) {
        if !self.is_overfull(id) {
            return;
        }
        let server = self.pools.get(id).key.server.clone();
        while self.pools.is_used(id) && self.is_overfull(id) {
            let Some(spare) = self.spare_at(&server, None) else { break };
            self.close_backend(spare, Close::Flushed);
        }
        let (from, at) = (self.settings.id, self.io.now() + THIN_OUT_FOR);
        self.note_claim(Claim { server, from, serial: NOBODYS, waits: Standing { open: 0, since: None }, at });
    }

    /// More places for those who have waited `reserve_timeout`; and back with them when nobody waits any more.
    pub(super) fn draw_reserve(&mut self, id: PoolId) {
        let (now, own) = (self.io.now(), self.settings.id);
        let pool = self.pools.get(id);
        let settings = &pool.settings.pool;
        if settings.reserve_size == 0 && pool.part.drawn() == 0 && pool.part.excess() == 0 {
            return;
        }
        let share = pool.homes.share(settings.reserve_size, own);
        let waits_long = |since: Instant| now.duration_since(since) >= settings.reserve_timeout;
        let own_waiter = pool.part.first_waiter(&self.waiters).map(|(_, since)| since);
        let foreign = pool.longest_claim(now);
        let is_needed = own_waiter.into_iter().chain(foreign).any(waits_long);
        let is_wanted = own_waiter.is_some() || foreign.is_some();
        let part = &mut self.pools.get_mut(id).part;
        while part.drawn() > share || part.drawn() > 0 && !is_wanted {
            part.return_reserve(now);
        }
        let excess = part.excess();
        if is_needed && part.drawn() < share && !part.has_unused() && !part.is_paused() {
            part.draw_reserve();
        }
        self.close_idle(id, excess);
    }
}
