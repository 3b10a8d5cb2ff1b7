//! A pool's size is places split over the shards that have a part of it. A shard whose clients wait asks the others; a place
//! that nobody uses moves to it by mailbox, or a backend with its place: an idle one, or one that comes back while the
//! clients here have waited less long. Nothing is exchanged while nobody waits.
//!
//! Invariant: a place is counted by one shard, or is in one message; `borrowed` says where it came from. A backend that
//! moves keeps its place where it was until its socket is out.

use std::time::{Duration, Instant};

use crate::ids::{BackendId, PoolId, ShardId};
use crate::io::{Close, Group, Parcel, SocketAddress, Transport};
use crate::pool::budget::{self, Waits};
use crate::pool::{Backoff, Refill};
use crate::session::fault::Fault;
use crate::session::parameters::Setting;

use super::clean::Stage;
use super::mailbox::Mail;
use super::pools::{Key, Pool, PoolSettings};
use super::preserve::LastValues;
use super::room::Seat;
use super::{Backend, BackendState, Owner, Purpose, Running, Shard, placement, reload};

/// A shard asks again after this, for each two other shards of the pool: so the messages of all together stay few.
const ASK_EVERY: Duration = Duration::from_millis(5);
/// What is said of a queue that moves holds for so many such pauses: the next question is late now and then.
const STEADY: u32 = 2;
/// And for no longer than this, however many shards there are: whoever waits where nothing moves after all waits so much longer.
const STEADY_MAX: Duration = Duration::from_millis(30);
/// A question that was not repeated is not remembered longer: a quiet shard looks at its queues ten times a second.
const CLAIM_FOR: Duration = Duration::from_millis(120);
/// A backend that cannot be taken out of its transport in this time is closed.
const MOVE_TIMEOUT: Duration = Duration::from_secs(1);
/// So many times in a row all shards must say that they have nothing before it is believed: a backend may be on its way
/// between two of them.
const ROUNDS: u32 = 3;

/// Another shard's clients wait for a backend of this pool.
#[derive(Clone, Copy)]
pub(super) struct Claim {
    from: ShardId,
    /// How long, as it was when it was said.
    waits: Waits,
    /// Whether a place without a backend is of use there.
    can_open: bool,
    /// When it was last said.
    at: Instant,
}

/// Places of a pool that move to another shard.
pub struct Given {
    key: Key,
    /// Who gives.
    from: ShardId,
    places: u32,
    /// Of which generation of settings they are.
    generation: u32,
    /// The backend that has one of them.
    backend: Option<Box<Traveller>>,
    /// How long those wait who stay behind, so that what comes of it can go back.
    waits: Option<Waits>,
    /// As in [`Mail::Ask`].
    can_open: bool,
}

impl Claim {
    /// Whether it is likely to hold still.
    pub(super) fn is_fresh(&self, now: Instant) -> bool {
        now < self.at + CLAIM_FOR
    }

    /// Since when the longest of them waits.
    fn since(&self, now: Instant) -> Instant {
        self.waits.since(self.at, now)
    }
}

/// A backend between two shards, and what the next one has to know of it.
pub struct Traveller {
    parcel: Parcel,
    process_id: u32,
    key: u32,
    address: Option<SocketAddress>,
    leg: super::tls::Leg,
    born: Instant,
    used: Instant,
    /// What it is set to.
    settings: Vec<Setting>,
    touched: bool,
    unset: Vec<Box<str>>,
    /// It has prepared statements, under names that mean something else there.
    has_statements: bool,
    seat: Option<Seat>,
    /// What the server reports at a login.
    reported: Vec<(Box<str>, Box<str>)>,
    refill: Refill,
}

impl Pool {
    /// The shards that shard `own` asks: those that have a part of the pool, or all of them once clients live elsewhere,
    /// which only a change of its size brings about; what the pool has may be there.
    fn asks(&self, own: ShardId, shard_count: u16) -> impl Iterator<Item = ShardId> + '_ {
        let everywhere = self.is_spread || !self.homes.has(own);
        (0..shard_count).map(ShardId).filter(move |&shard| shard != own && (everywhere || self.homes.has(shard)))
    }

    /// Since when the longest of other shards' clients waits.
    pub(super) fn longest_claim(&self, now: Instant) -> Option<Instant> {
        self.claims.iter().filter(|claim| claim.is_fresh(now)).map(|claim| claim.since(now)).min()
    }

    /// What another shard has said of its waiters. One claim for each shard: whoever is next when the longest waiter has
    /// been served need not ask again first.
    fn claim(&mut self, from: ShardId, waits: Option<Waits>, can_open: bool, now: Instant) {
        self.claims.retain(|claim| claim.from != from);
        self.claims.extend(waits.map(|waits| Claim { from, waits, can_open, at: now }));
    }

    /// What other shards are told of those who wait here since then; they are asked every `pause` while somebody does.
    fn waits(&self, since: Instant, pause: Duration, now: Instant) -> Waits {
        // The longest waiter of the last time has been served since, and there is what the others are served with.
        let served = self.asked.is_some_and(|(at, before)| {
            now < at + STEADY * pause && before.is_some_and(|before| before < since) && self.part.debt() == 0
        });
        let is_moving = served && self.part.open() > 0;
        Waits { since, steady_for: if is_moving { (STEADY * pause).min(STEADY_MAX) } else { Duration::ZERO } }
    }
}

impl<T: Transport> Shard<T> {
    /// The shard's part of a pool, made if need be. `None`: there are too many.
    pub(super) fn pool_of(&mut self, key: Key, settings: PoolSettings) -> Option<PoolId> {
        if let Some(pool) = self.pools.find(&key) {
            return Some(pool);
        }
        let (id, shard_count) = (self.settings.id, self.settings.shard_count);
        let homes = placement::homes(&key, settings.pool.size, shard_count);
        let permits = homes.share(settings.pool.size, id);
        let (min, max) = self.settings.backoff;
        let unfit = !self.suits(&key.server, &settings);
        let paused = self.orders.pauses(&key.database) || unfit;
        let backoff = Backoff::new(min, max);
        let made = self.pools.insert(key, settings, homes, permits, backoff, shard_count)?;
        let pool = self.pools.get_mut(made);
        pool.unfit = unfit;
        pool.part.pause(paused);
        Some(made)
    }

    /// Asks the other shards, if clients wait for what is not here.
    pub(super) fn ask_for_place(&mut self, id: PoolId) {
        let part = &self.pools.get(id).part;
        if self.settings.shard_count == 1 || !part.wants_more() {
            return;
        }
        let since = part.wants_since(&self.waiters);
        self.ask_others(id, since);
    }

    /// Asks the other shards. `since`: when the longest waiter came; without one a place alone is wanted, for a login.
    pub(super) fn ask_others(&mut self, id: PoolId, since: Option<Instant>) {
        let (now, own) = (self.io.now(), self.settings.id);
        let shard_count = self.settings.shard_count;
        let pause = self.ask_pause(id);
        let pool = self.pools.get_mut(id);
        if pause.is_zero() || pool.asked.is_some_and(|(at, _)| now < at + pause) {
            return;
        }
        let waits = since.map(|since| pool.waits(since, pause, now));
        pool.asked = Some((now, since));
        pool.round += 1;
        let round = pool.round;
        let can_open = since.is_none() || pool.part.refill() != Refill::Impossible || pool.part.debt() > 0;
        let pool = self.pools.get(id);
        for shard in pool.asks(own, shard_count) {
            self.mailbox.send(shard, Mail::Ask { key: pool.key.clone(), from: own, waits, can_open, round });
        }
    }

    /// After what time other shards are asked again; zero if there is none to ask.
    fn ask_pause(&self, id: PoolId) -> Duration {
        let others = self.pools.get(id).asks(self.settings.id, self.settings.shard_count).count();
        ASK_EVERY * (others as u32).div_ceil(2)
    }

    /// Another shard's clients wait.
    pub(super) fn on_ask(&mut self, key: Key, from: ShardId, waits: Option<Waits>, can_open: bool, round: u32) {
        if self.running != Running::Yes {
            return;
        }
        let now = self.io.now();
        let settings = self.catalogue.pool(&key.database, &key.user);
        // It may not have seen a reload that this shard has seen.
        let Some(settings) = settings.filter(|settings| settings.servers.contains(&key.server)) else { return };
        let Some(id) = self.pool_of(key.clone(), settings) else { return };
        let pool = self.pools.get_mut(id);
        pool.is_spread |= !pool.homes.has(from);
        if can_open && pool.part.give_permit() {
            self.give(id, from, 1, None);
            return;
        }
        let Some(waits) = waits else { return };
        if let Some(backend) = pool.part.spare_idle() {
            pool.part.borrow_idle(backend);
            self.send_backend(backend, from);
            return;
        }
        let has_none = pool.part.open() == 0;
        // Without a backend too, if there are places: those who wait here then wait for the server to take logins again, and
        // the others' turn comes with that.
        if pool.part.permits() > 0 {
            pool.claim(from, Some(waits), can_open, now);
        }
        if has_none {
            self.mailbox.send(from, Mail::Nothing { key, from: self.settings.id, round });
        }
    }

    /// Another shard has no backend of the pool. When none has, and none can be opened, nobody need wait.
    pub(super) fn on_nothing(&mut self, key: &Key, from: ShardId, round: u32) {
        let Some(id) = self.pools.find(key) else { return };
        let (own, shard_count) = (self.settings.id, self.settings.shard_count);
        let pool = self.pools.get_mut(id);
        let heard = &mut pool.nothing[usize::from(from.0)];
        // In a row: an answer that is missing begins anew.
        *heard = if round <= heard.0 + 1 { (round, heard.1 + 1) } else { (round, 1) };
        let last = pool.round;
        let nothing = &pool.nothing;
        let all = pool.asks(own, shard_count).all(|shard| {
            let (round, times) = nothing[usize::from(shard.0)];
            times >= ROUNDS && round + ROUNDS >= last
        });
        if all {
            self.despair(id);
        }
    }

    /// Those who wait are told that there can be no backend, if that is so.
    pub(super) fn despair(&mut self, id: PoolId) {
        let part = &self.pools.get(id).part;
        if part.refill() != Refill::Impossible || part.open() > 0 {
            return;
        }
        while let Some((client, _)) = {
            let Self { pools, waiters, .. } = self;
            pools.get_mut(id).part.pop_waiter(waiters)
        } {
            self.fail(client, &Fault::CannotRefill);
        }
    }

    /// To which shard a clean backend goes before the clients who wait here, if to any.
    #[inline]
    pub(super) fn claimant(&mut self, id: PoolId) -> Option<ShardId> {
        if self.pools.get(id).claims.is_empty() { None } else { self.oldest_claimant(id, |_| true) }
    }

    /// The shard whose clients have waited longest, among those that have use for what there is, if it goes before this
    /// one's. Its claim is settled with that.
    fn oldest_claimant(&mut self, id: PoolId, has_use: impl Fn(&Claim) -> bool) -> Option<ShardId> {
        let now = self.io.now();
        let Self { pools, waiters, .. } = self;
        let pool = pools.get_mut(id);
        pool.claims.retain(|claim| claim.is_fresh(now));
        let claims = pool.claims.iter().enumerate().filter(|(_, claim)| has_use(claim));
        let (at, oldest) = claims.min_by_key(|(_, claim)| claim.since(now))?;
        let own = pool.part.first_waiter(waiters).map(|(_, since)| since);
        budget::goes_away(oldest.since(now), own, now).then(|| pool.claims.swap_remove(at).from)
    }

    /// Places without a backend go to other shards first, if clients have waited longer there: a backend was closed, or a
    /// place came that nobody needs any more.
    pub(super) fn give_way(&mut self, id: PoolId) {
        while self.running == Running::Yes && self.pools.get(id).part.has_unused() {
            let Some(to) = self.oldest_claimant(id, |claim| claim.can_open) else { return };
            self.pools.get_mut(id).part.yield_permit();
            self.give(id, to, 1, None);
        }
    }

    /// Begins to move a clean backend, which counts as lent.
    pub(super) fn send_backend(&mut self, id: BackendId, to: ShardId) {
        let deadline = self.io.now() + MOVE_TIMEOUT;
        let backend = self.backend(id).expect("the caller has looked it up");
        backend.state = BackendState::Moving(to);
        backend.deadline = Some(deadline);
        let connection = backend.connection.expect("a clean backend is connected");
        self.io.detach(connection);
    }

    /// A backend's socket is out of this shard's transport.
    pub(super) fn on_backend_detached(&mut self, id: BackendId, parcel: Parcel) {
        let Some(backend) = self.backend(id) else { return };
        let BackendState::Moving(to) = backend.state else { return };
        // Its connection is the parcel now.
        backend.connection = None;
        let pool = self.pools.get(self.backends.get(id.index, id.generation).expect("just looked at").pool);
        let unwanted = pool.retired || pool.part.excess() > 0;
        if !parcel.received.is_empty() || self.running != Running::Yes || unwanted {
            // Most likely the server's goodbye; whoever asks again gets the place.
            drop(parcel);
            self.close_backend(id, Close::Now);
            return;
        }
        self.hand_in(id);
        let backend = self.backends.remove(id.index, id.generation).expect("just looked at");
        let settings = self.vectors.settings(backend.has).to_vec();
        self.vectors.let_go(backend.has);
        let pool = self.pools.get_mut(backend.pool);
        pool.backends -= 1;
        pool.part.left();
        let has_statements = backend.has_statements();
        let traveller = Traveller {
            parcel,
            process_id: backend.process_id,
            key: backend.key,
            address: backend.address,
            leg: backend.leg,
            born: backend.born,
            used: backend.used,
            settings,
            touched: backend.touched,
            unset: backend.unset,
            has_statements,
            seat: backend.seat,
            reported: pool.parameters.clone(),
            refill: pool.part.refill(),
        };
        self.give(backend.pool, to, 1, Some(Box::new(traveller)));
        self.refill(backend.pool);
    }

    /// Places from another shard, and perhaps the backend that has one of them.
    pub(super) fn on_give(&mut self, given: Given) {
        if given.generation > self.generation {
            // The sender has seen a reload that this shard is about to see: these are places of the new sizes.
            self.given_ahead.push(given);
            return;
        }
        let Given { key, from, places, generation, backend, waits, can_open } = given;
        let settings = self.catalogue.pool(&key.database, &key.user);
        // Of before the last reload (a sender is never further behind: the next waits until all shards have had this one):
        // if the pool was retired by it, its places went with it.
        if generation < self.generation {
            let before = self.catalogue_before.as_ref().and_then(|before| before.pool(&key.database, &key.user));
            let is_same = |(old, new): (&PoolSettings, &PoolSettings)| reload::serves(&key.server, old, new);
            if !before.as_ref().zip(settings.as_ref()).is_some_and(is_same) {
                return;
            }
        }
        let now = self.io.now();
        let Some(id) = settings.and_then(|settings| self.pool_of(key, settings)) else {
            // Only a changed configuration or a full table brings this about; the pool is smaller from here on.
            log::error!("a place of a pool was given to a shard that cannot have the pool");
            return;
        };
        let pool = self.pools.get_mut(id);
        pool.part.add_permits(places);
        pool.borrowed[from.0 as usize] += places as i32;
        pool.claim(from, waits, can_open, now);
        pool.nothing.fill((0, 0));
        let has_room = pool.part.open() < pool.part.permits();
        if let Some(traveller) = backend.filter(|_| has_room) {
            self.take_in(id, *traveller);
        }
        self.give_way(id);
        self.refill(id);
    }

    /// A backend comes from another shard, whose place has been added. If there is no room for it, it is closed.
    fn take_in(&mut self, pool: PoolId, traveller: Traveller) {
        if self.running != Running::Yes {
            return;
        }
        let Ok(has) = self.vectors.intern(traveller.settings) else { return };
        let Some(connection) = self.io.adopt(traveller.parcel, Group::Backend) else {
            self.vectors.let_go(has);
            return;
        };
        let mut backend = Backend::new(pool, Purpose::Pool, self.statements_max_of(pool), traveller.born);
        backend.connection = Some(connection);
        backend.state = BackendState::Cleaning(Stage::Done);
        backend.pipeline.reset();
        backend.has = has;
        backend.touched = traveller.touched;
        backend.unset = traveller.unset;
        backend.last_values = LastValues::Somebodys;
        backend.process_id = traveller.process_id;
        backend.key = traveller.key;
        backend.address = traveller.address;
        backend.leg = traveller.leg;
        backend.used = traveller.used;
        backend.seat = traveller.seat;
        let Ok((index, generation)) = self.backends.insert(backend) else {
            self.io.close(connection, Close::Now);
            self.vectors.let_go(has);
            return;
        };
        let id = BackendId { index, generation };
        let entry = self.pools.get_mut(pool);
        entry.backends += 1;
        entry.part.arrived();
        if entry.part.refill() == Refill::Unknown {
            entry.part.set_refill(traveller.refill);
        }
        if entry.parameters.is_empty() {
            entry.learn_parameters(traveller.reported);
        }
        self.io.set_owner(connection, Owner::Backend(id).pack());
        self.io.receive(connection, true);
        if traveller.has_statements {
            self.forget_statements(id);
        } else {
            self.give_back(id);
        }
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
                self.give(id, shard, places as u32, None);
            }
        }
    }

    fn give(&mut self, id: PoolId, to: ShardId, places: u32, backend: Option<Box<Traveller>>) {
        let (now, pause) = (self.io.now(), self.ask_pause(id));
        let Self { pools, waiters, .. } = self;
        let pool = pools.get_mut(id);
        pool.borrowed[to.0 as usize] -= places as i32;
        let since = pool.part.wants_since(waiters).filter(|_| pool.part.wants_more());
        let waits = since.map(|since| pool.waits(since, pause, now));
        let can_open = pool.part.refill() != Refill::Impossible;
        let (key, from, generation) = (pool.key.clone(), self.settings.id, self.generation);
        let given = Given { key, from, places, generation, backend, waits, can_open };
        self.mailbox.send(to, Mail::Give(Box::new(given)));
    }
}
