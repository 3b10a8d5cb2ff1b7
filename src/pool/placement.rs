//! Which shards have a part of a pool, how what the pool has is split over them, and on which of them a client lives.
//!
//! Invariant: all shards come to the same answer from the same pool, without asking each other.

use super::Schedule;
use crate::ids::ShardId;

/// The shards of one pool: at most as many as it has backends, from one that its name decides, so that small pools are
/// spread over the shards.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Homes {
    first: u16,
    count: u16,
    shard_count: u16,
}

/// So many clients more than elsewhere are not worth a move.
const SLACK: u32 = 2;

impl Homes {
    /// `hash` is the pool's, the same on all shards.
    pub fn new(hash: u64, size: u32, shard_count: u16) -> Self {
        let count = size.clamp(1, u32::from(shard_count)) as u16;
        Self { first: (hash % u64::from(shard_count)) as u16, count, shard_count }
    }

    /// How many there are.
    pub fn count(self) -> u16 {
        self.count
    }

    /// Whether the pool has a part there.
    pub fn has(self, shard: ShardId) -> bool {
        self.rank(shard) < self.count
    }

    /// All of them.
    pub fn iter(self) -> impl Iterator<Item = ShardId> {
        (0..self.count).map(move |rank| self.at(rank))
    }

    fn at(self, rank: u16) -> ShardId {
        ShardId(((u32::from(self.first) + u32::from(rank)) % u32::from(self.shard_count)) as u16)
    }

    fn rank(self, shard: ShardId) -> u16 {
        ((u32::from(shard.0) + u32::from(self.shard_count) - u32::from(self.first)) % u32::from(self.shard_count))
            as u16
    }

    /// What a shard has of `total`; the shares of all shards are the whole.
    pub fn share(self, total: u32, shard: ShardId) -> u32 {
        if !self.has(shard) {
            return 0;
        }
        let count = u32::from(self.count);
        total / count + u32::from(u32::from(self.rank(shard)) < total % count)
    }

    /// How many clients may wait at one shard if `total` may wait at all of them, 0 for no limit. At least one: with
    /// fewer than there are shards, each of them lets one wait.
    pub fn queue_share(self, total: u32, shard: ShardId) -> u32 {
        if total == 0 { 0 } else { self.share(total, shard).max(1) }
    }

    /// Where a client lives that came to `own`. `turn` and `random` are for those schedules; `load` says how many clients
    /// live on a shard. By load a client stays where it came unless that is worth a move.
    pub fn choose(
        self,
        own: ShardId,
        schedule: Schedule,
        turn: usize,
        random: u64,
        load: impl Fn(ShardId) -> u32,
    ) -> ShardId {
        match schedule {
            Schedule::RoundRobin => self.at((turn % usize::from(self.count)) as u16),
            Schedule::Random => self.at((random % u64::from(self.count)) as u16),
            Schedule::LoadBalancing => {
                let least = self.iter().min_by_key(|&shard| load(shard)).expect("there is one at least");
                let here = load(own);
                let stays = self.has(own) && here <= load(least) + SLACK.max(here / 8);
                if stays { own } else { least }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn shares_are_the_whole(hash: u64, size in 1u32..40, total in 0u32..1000, shard_count in 1u16..65) {
            let homes = Homes::new(hash, size, shard_count);
            let shards = || (0..shard_count).map(ShardId);
            prop_assert_eq!(homes.count() as u32, size.min(u32::from(shard_count)));
            prop_assert_eq!(shards().filter(|&shard| homes.has(shard)).count(), homes.count() as usize);
            prop_assert!(homes.iter().all(|shard| homes.has(shard)));
            prop_assert_eq!(shards().map(|shard| homes.share(total, shard)).sum::<u32>(), total);
            prop_assert!(homes.iter().all(|shard| homes.share(size, shard) > 0), "each has a place");
            let queued = homes.iter().map(|shard| homes.queue_share(total, shard)).sum::<u32>();
            let least = if total == 0 { 0 } else { total.max(u32::from(homes.count())) };
            prop_assert_eq!(queued, least);
        }

        #[test]
        fn a_client_lives_where_its_pool_is(hash: u64, size in 1u32..9, own in 0u16..8, turn: usize, random: u64) {
            let homes = Homes::new(hash, size, 8);
            for schedule in [Schedule::RoundRobin, Schedule::Random, Schedule::LoadBalancing] {
                let chosen = homes.choose(ShardId(own), schedule, turn, random, |shard| u32::from(shard.0) * 7);
                prop_assert!(homes.has(chosen));
            }
        }
    }

    #[test]
    fn by_load_a_client_moves_only_when_it_is_worth_it() {
        let homes = Homes::new(0, 4, 2);
        let chosen = |own: u32, other: u32| {
            let load = move |shard: ShardId| if shard.0 == 0 { own } else { other };
            homes.choose(ShardId(0), Schedule::LoadBalancing, 0, 0, load).0
        };
        assert_eq!((chosen(0, 0), chosen(2, 0), chosen(3, 0)), (0, 0, 1));
        assert_eq!((chosen(80, 70), chosen(81, 70)), (0, 1));
        let single = Homes::new(1, 1, 2);
        assert_eq!(single.choose(ShardId(0), Schedule::LoadBalancing, 0, 0, |_| 9), ShardId(1));
    }

    #[test]
    fn turns_go_round() {
        let homes = Homes::new(2, 3, 4);
        let chosen: Vec<u16> =
            (0..6).map(|turn| homes.choose(ShardId(0), Schedule::RoundRobin, turn, 0, |_| 0).0).collect();
        assert_eq!(chosen, [2, 3, 0, 2, 3, 0]);
    }
}
