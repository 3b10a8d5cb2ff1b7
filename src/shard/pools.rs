//! The shard's table of pools: made when the first client asks for one, dropped when nobody uses it any more.

use std::collections::{HashMap, HashSet};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::auth::incoming::Derived;
use crate::auth::settings::Rules;
use crate::control::report::metrics::Totals;
use crate::ids::{ClientId, PoolId};
use crate::pool::{self, Backoff, Homes, Part, Route};
use crate::session::parameters::VectorId;
use crate::session::timeouts::Timeouts;
use crate::session::{RelayMode, Transparency};

use super::budget::Claim;
use super::stats::Retired;
use super::{Catalogue, Server};

/// What applies to one database and user.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PoolSettings {
    /// At least one.
    pub servers: Vec<Server>,
    /// For each of them, how many of the clients it is to have, compared with the others.
    pub weights: Vec<u32>,
    /// Which of them clients go to.
    pub route: Route,
    /// What the database is called there.
    pub server_database: String,
    /// When a backend goes back.
    pub mode: RelayMode,
    /// Whether clients keep their whole session where backends are shared, and how hard that is looked after.
    pub preserve: Option<Transparency>,
    /// Whether a client whose session is kept stays while a transaction that it has prepared is not decided.
    pub hold_prepared: bool,
    /// Not pooled at all.
    pub dedicated: bool,
    /// For each of `servers`, which of [`super::TlsSettings::servers`] it is connected to by.
    pub tls: Vec<usize>,
    /// Sizes and times.
    pub pool: pool::Settings,
    /// How long clients may do what.
    pub timeouts: Timeouts,
    /// What is done beside lending.
    pub upkeep: Upkeep,
    /// Who checks clients, and how QCP logs in.
    pub rules: Rules,
    /// How many clients there may be.
    pub clients_max: ClientsMax,
}

/// What is done for a pool beside lending; by default what needs no saying.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Upkeep {
    /// Session mode, before another client gets the backend, instead of DISCARD ALL; empty: nothing.
    pub reset_query: Option<Arc<str>>,
    /// Prepared statements that are kept on one backend, where that is not [`super::Settings::statements_max`].
    pub statements_max: Option<usize>,
    /// A transaction that lasts longer is logged; zero: none.
    pub slow_query: Duration,
    /// A client that waits longer for a backend is told so; zero: none.
    pub queue_notice: Duration,
}

impl PoolSettings {
    /// Which of [`super::TlsSettings::servers`] the way to this server goes by.
    pub(super) fn tls_to(&self, server: &Server) -> usize {
        let at = self.servers.iter().position(|known| known == server);
        // One that is not listed (any more) is not reached by less than the first of those that are.
        self.tls.get(at.unwrap_or_default()).copied().unwrap_or_default()
    }
}

/// Clients over all shards and pools, at most; 0: no limit.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct ClientsMax {
    /// Of the database.
    pub database: u32,
    /// Of the user.
    pub user: u32,
}

/// An unused pool without a server is forgotten after this: whoever sends clients by `/readyz` tries again then.
const TROUBLE_KEPT: Duration = Duration::from_secs(30);
/// With more pools than this, at once.
const TROUBLES_KEPT: usize = 64;

/// A pool is one server, database and user.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Key {
    /// Where.
    pub server: Server,
    /// As clients name it.
    pub database: Box<str>,
    /// Who.
    pub user: Box<str>,
}

/// Why a pool has no new backends at the moment.
pub(super) struct Trouble {
    /// How the last attempt failed.
    pub why: String,
    /// Since the first of them.
    pub since: Instant,
    /// The last attempt.
    pub tried: Instant,
    /// The server's own message, if it was the server that refused the last.
    pub refusal: Option<Box<[u8]>>,
}

pub(super) struct Pool {
    /// Never given to another pool of this shard; not 0.
    pub serial: u32,
    pub key: Key,
    pub settings: PoolSettings,
    pub part: Part,
    /// A reload has put another in its place, or none: it lends nothing any more, and goes with its last link.
    pub retired: bool,
    /// Its server is not one that its clients may go to: it lends nothing, and they leave it when another is known.
    pub unfit: bool,
    /// What the server reports at login, in its order; empty until a backend has logged in.
    pub parameters: Vec<(Box<str>, Box<str>)>,
    /// The server lets this user in without a challenge; believed until then.
    pub trusted_until: Option<Instant>,
    /// A login is being checked of which it is not known yet whether there will be a challenge.
    pub asking: bool,
    /// Logins that wait for that answer.
    pub askers: Vec<ClientId>,
    /// Settings that the server took: as given, and as it reports them.
    pub proven: Vec<(VectorId, VectorId)>,
    /// What a client with these settings is told at the end of its login, but for its key.
    pub greeting: Option<(VectorId, Box<[u8]>)>,
    /// Keys that log in at the server: of QCP's own last login there, or of a client's.
    pub derived: Option<Derived>,
    /// Clients that belong to it.
    pub clients: u32,
    /// Backends of any purpose.
    pub backends: u32,
    /// While attempts to open a backend fail.
    pub trouble: Option<Trouble>,
    /// Counted for the metrics.
    pub totals: Box<Totals>,
    /// By the server's own settings, backslashes escape in plain constants.
    pub backslashes: bool,
    /// Its backends are logged in as a superuser.
    pub is_superusers: bool,
    /// Clients have asked for the last values of sequences.
    pub last_values: bool,
    /// For each shard, places that came from it less those that went there.
    pub borrowed: Box<[i32]>,
    /// The shards that have a part of it.
    pub homes: Homes,
    /// Clients of it live on other shards too, and so may what they were given.
    pub is_spread: bool,
    /// When other shards were asked for a place, and since when the longest of those who waited did.
    pub asked: Option<(Instant, Option<Instant>)>,
    /// How often they were asked.
    pub round: u32,
    /// They are not asked to make room at the server before then.
    pub room_at: Option<Instant>,
    /// For each shard, the last question to which it had nothing, and how many in a row those were.
    pub nothing: Box<[(u32, u32)]>,
    /// Those of other shards who wait and have asked lately, at most one for each shard.
    pub claims: Vec<Claim>,
}

impl Pool {
    /// Whether its clients belong elsewhere.
    pub(super) fn is_left(&self) -> bool {
        self.retired || self.unfit
    }

    /// Whether clients of other shards wait for a place.
    pub(super) fn is_asked_for(&self, now: Instant) -> bool {
        self.claims.iter().any(|claim| claim.is_fresh(now))
    }

    /// What the server reports at login.
    pub(super) fn learn_parameters(&mut self, reported: Vec<(Box<str>, Box<str>)>) {
        let is_off =
            |(name, value): &(Box<str>, Box<str>)| &**name == "standard_conforming_strings" && &**value == "off";
        self.backslashes = reported.iter().any(is_off);
        self.is_superusers = reported.iter().any(|(name, value)| &**name == "is_superuser" && &**value == "on");
        self.parameters = reported;
    }
}

/// What the catalogue has said of the last databases and users that logged in: to put it together takes longer than all else
/// of a login does, and the next one is mostly to the same.
#[derive(Default)]
pub(super) struct Asked {
    entries: Vec<(Box<str>, Box<str>, Rc<PoolSettings>)>,
    /// Which one makes room.
    turn: usize,
}

impl Asked {
    const ENTRIES_MAX: usize = 16;

    /// As [`super::Catalogue::pool`].
    pub(super) fn pool(&mut self, catalogue: &dyn Catalogue, database: &str, user: &str) -> Option<Rc<PoolSettings>> {
        let known = self.entries.iter().find(|(of, by, _)| **of == *database && **by == *user);
        if let Some((.., settings)) = known {
            return Some(settings.clone());
        }
        let settings = Rc::new(catalogue.pool(database, user)?);
        let entry = (database.into(), user.into(), settings.clone());
        if self.entries.len() < Self::ENTRIES_MAX {
            self.entries.push(entry);
        } else {
            self.turn = (self.turn + 1) % Self::ENTRIES_MAX;
            self.entries[self.turn] = entry;
        }
        Some(settings)
    }
}

#[derive(Default)]
pub(super) struct Pools {
    slots: Vec<Option<Pool>>,
    by_key: HashMap<Key, u32, foldhash::fast::RandomState>,
    vacant: Vec<u32>,
    retired: Retired,
    /// Databases in whose pools clients have asked for the last values of sequences: pools come and go, programs stay.
    last_values: HashSet<Box<str>, foldhash::fast::RandomState>,
    next_turn: usize,
    last_serial: u32,
}

/// Pools of one shard, at most: each takes some hundred bytes outside the arena, and as many again for what is counted.
pub(super) const POOLS_MAX: usize = 4096;
/// Proven vectors remembered for one pool.
pub(super) const PROVEN_MAX: usize = 32;

impl Pools {
    pub(super) fn find(&self, key: &Key) -> Option<PoolId> {
        self.by_key.get(key).map(|&index| PoolId(index))
    }

    /// `None` when there are too many.
    pub(super) fn insert(
        &mut self,
        key: Key,
        settings: PoolSettings,
        homes: Homes,
        permits: u32,
        backoff: Backoff,
        shard_count: u16,
    ) -> Option<PoolId> {
        if self.by_key.len() >= POOLS_MAX {
            return None;
        }
        self.last_serial = self.last_serial.wrapping_add(1).max(1);
        let pool = Pool {
            serial: self.last_serial,
            key: key.clone(),
            part: Part::new(settings.pool.clone(), permits, backoff),
            settings,
            retired: false,
            unfit: false,
            parameters: Vec::new(),
            trusted_until: None,
            asking: false,
            askers: Vec::new(),
            proven: Vec::new(),
            greeting: None,
            derived: None,
            clients: 0,
            backends: 0,
            trouble: None,
            totals: Box::default(),
            backslashes: false,
            is_superusers: false,
            last_values: self.last_values.contains(&*key.database),
            borrowed: vec![0; shard_count as usize].into_boxed_slice(),
            homes,
            is_spread: false,
            asked: None,
            round: 0,
            room_at: None,
            nothing: vec![(0, 0); shard_count as usize].into_boxed_slice(),
            claims: Vec::new(),
        };
        let index = match self.vacant.pop() {
            Some(index) => {
                self.slots[index as usize] = Some(pool);
                index
            }
            None => {
                self.slots.push(Some(pool));
                self.slots.len() as u32 - 1
            }
        };
        self.by_key.insert(key, index);
        Some(PoolId(index))
    }

    #[inline]
    pub(super) fn get(&self, id: PoolId) -> &Pool {
        self.slots[id.0 as usize].as_ref().expect("a pool lives while clients or backends belong to it")
    }

    #[inline]
    pub(super) fn get_mut(&mut self, id: PoolId) -> &mut Pool {
        self.slots[id.0 as usize].as_mut().expect("a pool lives while clients or backends belong to it")
    }

    /// Forgets a pool that nobody uses; returns the vectors it held.
    pub(super) fn remove_if_unused(&mut self, id: PoolId, now: Instant) -> Vec<(VectorId, VectorId)> {
        let pool = self.get(id);
        // For a while it is known that its server cannot be reached, also when who asked for it has left. Not of many: names
        // that anybody may make up would fill the table.
        let few = self.slots.len() - self.vacant.len() <= TROUBLES_KEPT;
        if few && pool.trouble.as_ref().is_some_and(|trouble| now < trouble.tried + TROUBLE_KEPT) {
            return Vec::new();
        }
        // What was lent must be remembered, or the pool would be made anew with a whole share.
        if pool.clients > 0 || pool.backends > 0 || pool.borrowed.iter().any(|&places| places != 0) {
            return Vec::new();
        }
        let pool = self.slots[id.0 as usize].take().expect("looked at above");
        // Another may have its name by now.
        if !pool.retired {
            self.by_key.remove(&pool.key);
        }
        self.retired.add(&pool.key.database, &pool.totals);
        self.vacant.push(id.0);
        let mut held = pool.proven;
        held.extend(pool.greeting.map(|(of, _)| (of, VectorId::NEUTRAL)));
        held
    }

    /// Makes room for another pool of the same name; this one lends nothing any more.
    pub(super) fn retire(&mut self, id: PoolId) {
        let pool = self.get_mut(id);
        pool.retired = true;
        pool.borrowed.fill(0);
        pool.claims.clear();
        let key = pool.key.clone();
        self.by_key.remove(&key);
    }

    /// From now on it matters in all pools of this database who has the last values of sequences. Of more databases than
    /// there can be pools, it is remembered as long as their pools live.
    pub(super) fn ask_last_values(&mut self, database: &str) {
        if self.last_values.len() < POOLS_MAX {
            self.last_values.insert(database.into());
        }
        for pool in self.slots.iter_mut().flatten().filter(|pool| *pool.key.database == *database) {
            pool.last_values = true;
        }
    }

    /// What pools that are gone have done, by database.
    pub(super) fn retired(&self) -> impl Iterator<Item = (&str, &Totals)> {
        self.retired.iter()
    }

    /// All of it together.
    pub(super) fn retired_all(&self) -> Totals {
        self.retired.all()
    }

    pub(super) fn ids(&self) -> impl Iterator<Item = PoolId> {
        let used = self.slots.iter().enumerate().filter(|(_, slot)| slot.is_some());
        used.map(|(index, _)| PoolId(index as u32))
    }

    /// Whether there is one of this number.
    pub(super) fn is_used(&self, id: PoolId) -> bool {
        self.slots.get(id.0 as usize).is_some_and(Option::is_some)
    }

    /// The first pool in a slot at or behind `index`: for walks that change the table on the way.
    pub(super) fn next_used(&self, index: u32) -> Option<PoolId> {
        let slots = self.slots.get(index as usize..)?;
        let offset = slots.iter().position(Option::is_some)?;
        Some(PoolId(index + offset as u32))
    }

    /// Counts the clients that are placed in turn.
    pub(super) fn next_turn(&mut self) -> usize {
        self.next_turn = self.next_turn.wrapping_add(1);
        self.next_turn
    }
}
