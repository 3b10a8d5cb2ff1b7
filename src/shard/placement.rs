//! Where a client lives: the shard that accepted it reads its startup packet, and if the pool is elsewhere, or too many
//! clients are here, the client moves, once, before anything of it is checked. Its socket, what has come over it and when
//! it came travel in one message; its id and cancel key are made where it lives in the end.
//!
//! Invariant: a client is counted once over all shards, wherever it is on its way.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Instant;

use crate::ids::{ClientId, ShardId};
use crate::io::{Close, Group, Parcel, Transport};
use crate::memory::Slice;
use crate::pool::Homes;
use crate::session::fault::Fault;

use super::mailbox::Mail;
use super::pools::{Key, PoolSettings};
use super::proxied::Origin;
use super::tally::{Seats, Tally};
use super::{Client, ClientState, Owner, Running, Server, Shard};

/// How many clients there are, in all and on each shard: what the shards share, touched when a client comes, moves and
/// goes, never by a query.
pub struct Population {
    all: AtomicU32,
    /// Those past placement, and those on their way there.
    shards: Box<[Line]>,
    /// Of those, the ones that limits of their own hold for.
    pub(super) tally: Tally,
}

/// In a cache line of its own: each shard writes mostly its own.
#[repr(align(64))]
#[derive(Default)]
struct Line(AtomicU32);

impl Population {
    /// Nobody yet. `clients_max`: over all shards.
    pub fn new(shard_count: usize, clients_max: usize) -> Self {
        let shards = (0..shard_count).map(|_| Line::default()).collect();
        Self { all: AtomicU32::new(0), shards, tally: Tally::new(clients_max) }
    }

    /// Clients of all shards.
    pub fn count(&self) -> u32 {
        self.all.load(Ordering::Relaxed)
    }

    /// One client more, if fewer than `limit` are there.
    pub(super) fn enter(&self, limit: u32) -> bool {
        let more = |count| (count < limit).then_some(count + 1);
        self.all.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).is_ok()
    }

    pub(super) fn leave(&self) {
        self.all.fetch_sub(1, Ordering::Relaxed);
    }

    /// A client lives on `shard` from now on, or is on its way there.
    pub(super) fn settle(&self, shard: ShardId) {
        self.shards[usize::from(shard.0)].0.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn unsettle(&self, shard: ShardId) {
        self.shards[usize::from(shard.0)].0.fetch_sub(1, Ordering::Relaxed);
    }

    /// Clients that live on a shard, or are on their way there.
    pub fn load(&self, shard: ShardId) -> u32 {
        self.shards[usize::from(shard.0)].0.load(Ordering::Relaxed)
    }
}

/// A client that leaves, while its socket is taken out.
pub(super) struct Move {
    pub to: ShardId,
    server: Server,
    bytes: Vec<u8>,
    packet_size: usize,
}

/// A client on its way to the shard where it will live.
pub struct Arrival {
    parcel: Parcel,
    /// The startup packet and what had come behind it.
    bytes: Vec<u8>,
    packet_size: usize,
    /// The one of several servers that was chosen for it.
    server: Server,
    /// Came over a Unix socket.
    unix: bool,
    /// What its PROXY header said.
    origin: Origin,
    /// Where it is counted.
    seats: Seats,
    /// When it was accepted.
    since: Instant,
}

/// The shards of a pool.
pub(super) fn homes(key: &Key, size: u32, shard_count: u16) -> Homes {
    if shard_count == 1 {
        return Homes::new(0, size, 1);
    }
    // With the same keys in all threads of a process, unlike the standard library's random ones.
    let mut hasher = DefaultHasher::new();
    key.hash(&mut hasher);
    Homes::new(hasher.finish(), size, shard_count)
}

impl<T: Transport> Shard<T> {
    /// Where a client of this pool that came here is to live.
    pub(super) fn choose_shard(&mut self, key: &Key, settings: &PoolSettings) -> ShardId {
        let own = self.settings.id;
        if self.settings.shard_count == 1 {
            return own;
        }
        let homes = homes(key, settings.pool.size, self.settings.shard_count);
        let (turn, random) = (self.pools.next_turn(), self.next_random());
        homes.choose(own, settings.pool.placement, turn, random, |shard| self.population.load(shard))
    }

    /// Takes a client's socket out. `packet`: what has come of it, and how much of that is its startup packet.
    pub(super) fn begin_move(&mut self, id: ClientId, to: ShardId, server: Server, packet: (&Slice, usize)) {
        let (bytes, packet_size) = (packet.0.to_vec(), packet.1);
        let Some(client) = self.client(id) else { return };
        client.state = ClientState::Moving(Box::new(Move { to, server, bytes, packet_size }));
        let connection = client.connection;
        // From now on, so that of a crowd not all go there.
        self.population.settle(to);
        self.io.detach(connection);
    }

    /// A client's socket is out of this shard's transport.
    pub(super) fn on_client_detached(&mut self, id: ClientId, parcel: Parcel) {
        if !self.client(id).is_some_and(|client| matches!(client.state, ClientState::Moving(_))) {
            return;
        }
        let Some(client) = self.clients.remove(id.index, id.generation) else { return };
        self.bytes_apart.0 += u64::from(client.bytes_in);
        let ClientState::Moving(moving) = client.state else { unreachable!("just looked at") };
        let Move { to, server, bytes, packet_size } = *moving;
        let now = self.stamp(self.io.now());
        let (unix, origin, seats, age) = (client.unix, client.origin, client.seats, client.since.age(now));
        let since = self.io.now() - age;
        let arrival = Arrival { parcel, bytes, packet_size, server, unix, origin, seats, since };
        // A shard that has ended has taken the process with it.
        self.mailbox.send(to, Mail::Client(Box::new(arrival)));
    }

    /// A client comes from the shard that accepted it.
    pub(super) fn on_arrival(&mut self, arrival: Arrival) {
        let Arrival { parcel, bytes, packet_size, server, unix, origin, seats, since } = arrival;
        // Its login counts it again.
        self.population.unsettle(self.settings.id);
        let Some(connection) = self.io.adopt(parcel, Group::Client) else {
            log::error!("no slot is left for a client from another shard");
            self.give_seats_back(seats);
            self.population.leave();
            return;
        };
        let Ok((index, generation)) = self.clients.insert(Client::new(connection, unix, self.stamp(since))) else {
            self.give_seats_back(seats);
            self.population.leave();
            self.io.close(connection, Close::Now);
            return;
        };
        let id = ClientId { index, generation };
        self.io.set_owner(connection, Owner::Client(id).pack());
        let client = self.client(id).expect("just inserted");
        (client.origin, client.seats) = (origin, seats);
        if self.running != Running::Yes {
            self.fail(id, &Fault::ShuttingDown);
            return;
        }
        let Some(bytes) = self.io.scratch().copy(&bytes) else {
            self.fail(id, &Fault::NoMemory);
            return;
        };
        self.io.receive(connection, true);
        self.begin_login(id, &bytes, packet_size, Some(server));
    }
}
