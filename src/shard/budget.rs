//! A pool's size is places split over the shards. A shard whose clients wait asks the others; a place that nobody uses
//! moves to it by mailbox. Nothing is exchanged while nobody waits.
//!
//! Invariant: a place is counted by one shard, or is in one message; `borrowed` says where it came from.

use std::time::Duration;

use crate::ids::{PoolId, ShardId};
use crate::io::{Close, Transport};
use crate::pool::Backoff;

use super::mailbox::Mail;
use super::pools::{Key, PoolSettings};
use super::{Running, Shard, share};

/// A shard that was not given anything asks again after this.
const ASK_EVERY: Duration = Duration::from_millis(20);

impl<T: Transport> Shard<T> {
    /// The shard's part of a pool, made if need be. `None`: there are too many.
    pub(super) fn pool_of(&mut self, key: Key, settings: PoolSettings) -> Option<PoolId> {
        if let Some(pool) = self.pools.find(&key) {
            return Some(pool);
        }
        let (id, shard_count) = (self.settings.id, self.settings.shard_count);
        let permits = share(settings.pool.size, id, shard_count);
        let (min, max) = self.settings.backoff;
        self.pools.insert(key, settings, permits, Backoff::new(min, max), shard_count)
    }

    /// Asks the other shards for a place, if clients wait for one that is not here.
    pub(super) fn ask_for_place(&mut self, id: PoolId) {
        let now = self.io.now();
        if self.settings.shard_count == 1 || !self.pools.get(id).part.wants_permit() {
            return;
        }
        let pool = self.pools.get_mut(id);
        if pool.ask_at.is_some_and(|at| now < at) {
            return;
        }
        pool.ask_at = Some(now + ASK_EVERY);
        let key = pool.key.clone();
        let own = self.settings.id;
        for shard in self.mailbox.others(own) {
            self.mailbox.send(shard, Mail::Ask { key: key.clone(), from: own });
        }
    }

    /// Another shard's clients wait. A place that is not used here goes there; an idle backend makes room for it.
    pub(super) fn on_ask(&mut self, key: Key, from: ShardId) {
        if self.running != Running::Yes {
            return;
        }
        let Some(settings) = self.catalogue.pool(&key.database, &key.user) else { return };
        let Some(id) = self.pool_of(key.clone(), settings) else { return };
        let mut given = self.pools.get_mut(id).part.give_permit();
        if !given && let Some(backend) = self.pools.get(id).part.spare_idle() {
            self.close_backend(backend, Close::Flushed);
            given = self.pools.get_mut(id).part.give_permit();
        }
        if given {
            self.give(id, from, 1);
        } else {
            self.pools.get_mut(id).refused_at = Some(self.io.now());
        }
    }

    /// Places from another shard.
    pub(super) fn on_give(&mut self, key: Key, from: ShardId, places: u32) {
        let settings = self.catalogue.pool(&key.database, &key.user);
        let Some(id) = settings.and_then(|settings| self.pool_of(key, settings)) else {
            // Only a changed configuration or a full table brings this about; the pool is smaller from here on.
            log::error!("a place of a pool was given to a shard that cannot have the pool");
            return;
        };
        let pool = self.pools.get_mut(id);
        pool.part.add_permits(places);
        pool.borrowed[from.0 as usize] += places as i32;
        self.refill(id);
    }

    /// A pool that nobody uses here returns what it has borrowed.
    pub(super) fn return_places(&mut self, id: PoolId) {
        let pool = self.pools.get(id);
        if pool.clients > 0 || pool.backends > 0 {
            return;
        }
        for shard in self.mailbox.others(self.settings.id) {
            let borrowed = self.pools.get(id).borrowed[shard.0 as usize];
            let mut places = 0;
            while places < borrowed && self.pools.get_mut(id).part.give_permit() {
                places += 1;
            }
            if places > 0 {
                self.give(id, shard, places as u32);
            }
        }
    }

    fn give(&mut self, id: PoolId, to: ShardId, places: u32) {
        let pool = self.pools.get_mut(id);
        pool.borrowed[to.0 as usize] -= places as i32;
        let mail = Mail::Give { key: pool.key.clone(), from: self.settings.id, places };
        self.mailbox.send(to, mail);
    }
}
