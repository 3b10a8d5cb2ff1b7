//! Clients of one database, of one user and of one address, counted over all shards where these have limits. Counted when
//! a client comes, and again when it goes; never by a query.
//!
//! Invariant: a name is counted in one slot, whichever shards its clients are on.

use std::hash::{BuildHasher, Hash, RandomState};
use std::net::IpAddr;
use std::num::NonZeroU32;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::auth::limiter;
use crate::ids::ClientId;
use crate::io::Transport;
use crate::session::fault::{Fault, Limited};

use super::{ClientState, Server, Shard};

/// Slots that a name may be in. With a quarter of all slots in use the chance that one group is full is below 1e-6.
const GROUP: usize = 16;
/// Room for so many names for each client: its own three, and as few of them in a group as said above.
const SLOTS_PER_CLIENT: usize = 4;
const COUNT_BITS: u32 = 24;
const COUNT_MASK: u64 = (1 << COUNT_BITS) - 1;

/// A fixed table of counts, which shards share. A slot is one word, `mark << 24 | count`, the mark being what tells the
/// names of a group apart; a slot whose count is 0 is free for any name.
pub struct Tally {
    slots: Box<[AtomicU64]>,
    /// New with each process: nobody can choose names that meet in one slot.
    keys: RandomState,
}

/// Where a client is counted, to be given back by [`Tally::leave`].
#[derive(Debug, PartialEq, Eq)]
pub struct Counted {
    /// The slot, counted from 1: so an `Option` of it takes four bytes.
    place: NonZeroU32,
}

impl Counted {
    fn at(slot: usize) -> Counted {
        Counted { place: NonZeroU32::MIN.saturating_add(slot as u32) }
    }

    fn slot(&self) -> usize {
        self.place.get() as usize - 1
    }
}

/// Why a client is not counted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Refused {
    /// There are as many as may be.
    Limit,
    /// The name's group is full.
    NoRoom,
}

impl Tally {
    /// For so many clients.
    pub fn new(clients_max: usize) -> Tally {
        let count = Tally::slots_for(clients_max);
        Tally { slots: (0..count).map(|_| AtomicU64::new(0)).collect(), keys: RandomState::new() }
    }

    /// Slots for so many clients; each takes 8 bytes.
    pub fn slots_for(clients_max: usize) -> usize {
        (clients_max * SLOTS_PER_CLIENT).next_power_of_two().max(GROUP)
    }

    /// One more of `name`, if fewer than `limit` are there.
    pub fn enter(&self, name: impl Hash, limit: u32) -> Result<Counted, Refused> {
        let hash = self.keys.hash_one(name);
        let first = (hash as usize % (self.slots.len() / GROUP)) * GROUP;
        let group = &self.slots[first..first + GROUP];
        let mark = hash >> COUNT_BITS;
        let limit = u64::from(limit).min(COUNT_MASK);
        let is_own = |word: u64| word >> COUNT_BITS == mark;
        let is_used = |word: u64| word & COUNT_MASK > 0;
        loop {
            let words: [u64; GROUP] = std::array::from_fn(|at| group[at].load(Ordering::SeqCst));
            let find = |fits: &dyn Fn(u64) -> bool| words.iter().position(|&word| fits(word));
            let own = find(&|word| is_own(word) && is_used(word));
            // Those who begin at once begin in the same slot, if one has the mark already.
            let place = own.or_else(|| find(&is_own)).or_else(|| find(&|word| !is_used(word)));
            let Some(at) = place else { return Err(Refused::NoRoom) };
            let count = if own.is_some() { words[at] & COUNT_MASK } else { 0 };
            if count >= limit {
                return Err(Refused::Limit);
            }
            let more = mark << COUNT_BITS | (count + 1);
            if group[at].compare_exchange(words[at], more, Ordering::SeqCst, Ordering::SeqCst).is_err() {
                continue;
            }
            let counted = Counted::at(first + at);
            // Another shard may have begun to count the same name in another slot. Of two the later sees the earlier.
            let is_elsewhere = |(other, slot): (usize, &AtomicU64)| {
                let word = slot.load(Ordering::SeqCst);
                other != at && is_own(word) && is_used(word)
            };
            if own.is_none() && group.iter().enumerate().any(is_elsewhere) {
                self.leave(counted);
                continue;
            }
            return Ok(counted);
        }
    }

    /// How many of `name` are there.
    pub fn count(&self, name: impl Hash) -> u32 {
        let hash = self.keys.hash_one(name);
        let first = (hash as usize % (self.slots.len() / GROUP)) * GROUP;
        let words = self.slots[first..first + GROUP].iter().map(|slot| slot.load(Ordering::SeqCst));
        let own = words.filter(|word| word >> COUNT_BITS == hash >> COUNT_BITS);
        own.map(|word| (word & COUNT_MASK) as u32).max().unwrap_or_default()
    }

    /// One less where it was counted.
    pub fn leave(&self, counted: Counted) {
        self.slots[counted.slot()].fetch_sub(1, Ordering::SeqCst);
    }
}

/// Where one client is counted.
#[derive(Debug, Default)]
pub(super) struct Seats {
    /// For its address, from the moment when that is known.
    pub address: Option<Counted>,
    /// For its database and its user, from the end of its login.
    pub database: Option<Counted>,
    pub user: Option<Counted>,
}

/// What is counted, so that no two kinds of names meet.
#[derive(Hash)]
pub(super) enum Name<'a> {
    /// Its backends.
    Server(&'a Server),
    Address(IpAddr),
    Database(&'a str),
    User(&'a str),
}

fn fault(refused: Refused, limited: Limited) -> Fault {
    match refused {
        Refused::Limit => Fault::TooManyOf(limited),
        Refused::NoRoom => Fault::NoRoom("counts of clients"),
    }
}

impl<T: Transport> Shard<T> {
    /// Counts a client for its address. `false`: there are too many, and it has been told.
    pub(super) fn count_address(&mut self, id: ClientId) -> bool {
        let limit = self.settings.auth.clients_of_address_max;
        let Some(client) = self.client(id) else { return false };
        let connection = client.connection;
        if limit == 0 || client.seats.address.is_some() {
            return true;
        }
        let Some(address) = self.address(connection) else { return true };
        match self.population.tally.enter(Name::Address(limiter::network(address)), limit) {
            Ok(counted) => {
                self.client(id).expect("looked up above").seats.address = Some(counted);
                true
            }
            Err(refused) => {
                self.fail(id, &fault(refused, Limited::Address(limit)));
                false
            }
        }
    }

    /// Counts a client, whose login has gone well, for its database and its user. `Err`: there are too many of either; it
    /// is told that behind AuthenticationOk, as PostgreSQL does it.
    pub(super) fn count_names(&mut self, id: ClientId) -> Result<(), Fault> {
        let Some(pool) = self.client(id).and_then(|client| client.pool) else { return Ok(()) };
        let pool = self.pools.get(pool);
        let (limits, tally) = (pool.settings.clients_max, &self.population.tally);
        let (database, user) = (&*pool.key.database, &*pool.key.user);
        let count = |limit: u32, name: Name<'_>| (limit > 0).then(|| tally.enter(name, limit)).transpose();
        let of_database = count(limits.database, Name::Database(database));
        let of_database = of_database.map_err(|refused| fault(refused, Limited::Database(database.to_owned())));
        let of_user = count(limits.user, Name::User(user));
        let of_user = of_user.map_err(|refused| fault(refused, Limited::User(user.to_owned())));
        let client = self.client(id).expect("looked up above");
        // Whatever is counted is given back when the client goes.
        let refused_by_user = match of_user {
            Ok(counted) => {
                client.seats.user = counted;
                None
            }
            Err(fault) => Some(fault),
        };
        client.seats.database = of_database?;
        refused_by_user.map_or(Ok(()), Err)
    }

    /// Limits have changed: clients that are there count, too, though none of them is sent away.
    pub(super) fn count_those_there(&mut self) {
        let address_limit = self.settings.auth.clients_of_address_max;
        let mut from = 0;
        while let Some((index, generation)) = self.clients.next_used(from) {
            from = index + 1;
            let id = ClientId { index, generation };
            let client = self.clients.get(index, generation).expect("just found");
            let is_in = match client.state {
                ClientState::Ready | ClientState::Waiting(_) | ClientState::Linked(_) | ClientState::Piped(_) => true,
                // Counted when their login ends.
                ClientState::Startup | ClientState::Moving(_) | ClientState::Login(_) | ClientState::Console(_) => {
                    false
                }
            };
            let Some(pool) = client.pool.filter(|_| is_in) else { continue };
            let wants_address = address_limit > 0 && client.seats.address.is_none();
            let address = if wants_address { self.address(client.connection) } else { None };
            let pool = self.pools.get(pool);
            let (limits, tally) = (pool.settings.clients_max, &self.population.tally);
            let count = |limit: u32, known: &Option<Counted>, name: Name<'_>| {
                if limit > 0 && known.is_none() { tally.enter(name, u32::MAX).ok() } else { None }
            };
            let of_database = count(limits.database, &client.seats.database, Name::Database(&pool.key.database));
            let of_user = count(limits.user, &client.seats.user, Name::User(&pool.key.user));
            let of_address =
                address.and_then(|address| tally.enter(Name::Address(limiter::network(address)), u32::MAX).ok());
            let seats = &mut self.client(id).expect("just found").seats;
            seats.database = seats.database.take().or(of_database);
            seats.user = seats.user.take().or(of_user);
            seats.address = seats.address.take().or(of_address);
        }
    }

    /// A client is gone.
    pub(super) fn give_seats_back(&self, seats: Seats) {
        let Seats { address, database, user } = seats;
        for counted in [address, database, user].into_iter().flatten() {
            self.population.tally.leave(counted);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_name_has_its_own_count() {
        let tally = Tally::new(100);
        let mut inside = Vec::new();
        for name in ["a", "b", "c"] {
            for _ in 0..3 {
                inside.push(tally.enter(Name::User(name), 3).expect("there is room"));
            }
            assert_eq!(tally.enter(Name::User(name), 3), Err(Refused::Limit));
        }
        // A database of the same name is something else.
        inside.push(tally.enter(Name::Database("a"), 3).expect("there is room"));
        tally.leave(inside.remove(0));
        tally.leave(tally.enter(Name::User("a"), 3).expect("one has gone"));
        inside.into_iter().for_each(|counted| tally.leave(counted));
        assert!(tally.slots.iter().all(|slot| slot.load(Ordering::SeqCst) & COUNT_MASK == 0));
    }

    #[test]
    fn as_many_names_as_clients_fit() {
        let tally = Tally::new(1000);
        let counted: Vec<_> = (0..1000).map(|name| tally.enter(name, 1).expect("there is room")).collect();
        for name in 0..1000 {
            assert_eq!(tally.enter(name, 1), Err(Refused::Limit));
        }
        counted.into_iter().for_each(|counted| tally.leave(counted));
        // Slots are used again for others.
        for name in 1000..100_000 {
            tally.leave(tally.enter(name, 1).expect("there is room"));
        }
    }

    #[test]
    fn shards_at_once_never_exceed_a_limit() {
        const LIMIT: u32 = 5;
        let tally = Tally::new(1);
        let inside: Vec<_> = (0..3).map(|_| AtomicU64::new(0)).collect();
        std::thread::scope(|scope| {
            for thread in 0..4 {
                let (tally, inside) = (&tally, &inside);
                scope.spawn(move || {
                    for round in 0..20_000 {
                        let name = (thread + round) % inside.len();
                        let Ok(counted) = tally.enter(name, LIMIT) else { continue };
                        let count = inside[name].fetch_add(1, Ordering::SeqCst) + 1;
                        assert!(count <= u64::from(LIMIT), "{count} of one name");
                        inside[name].fetch_sub(1, Ordering::SeqCst);
                        tally.leave(counted);
                    }
                });
            }
        });
        assert!(tally.slots.iter().all(|slot| slot.load(Ordering::SeqCst) & COUNT_MASK == 0));
    }
}
