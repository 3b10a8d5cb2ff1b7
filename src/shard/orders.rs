//! What an administrator orders while qcp runs: pause, drain, kill, disable, reconnect. What holds until it is taken back is
//! kept here, so that a pool that is made later obeys too.

use crate::ids::{BackendId, ClientId, PoolId};
use crate::io::{Close, Transport};
use crate::pool::Refill;
use crate::session::fault::Fault;

use super::{BackendState, ClientState, Shard};

/// Of which databases; as clients name them.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Scope {
    /// Every one.
    All,
    /// This one.
    Database(Box<str>),
}

/// What is to be done.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Order {
    /// Nothing is lent; backends are closed as they become free, and clients wait.
    Pause(Scope),
    /// Takes back a pause, by whatever order.
    Resume(Scope),
    /// Nobody is let in, and clients are sent off between transactions.
    Drain(Scope),
    /// Clients and backends are closed at once, and the database is paused.
    Kill(Scope),
    /// Nobody is let in.
    Disable(Scope),
    /// Takes back what keeps clients out.
    Enable(Scope),
    /// Backends are replaced, each when it is free.
    Reconnect(Scope),
}

/// What holds for some databases, or for all.
#[derive(Default)]
struct Held {
    all: bool,
    /// Without `all`: these. With it: these not.
    databases: Vec<Box<str>>,
}

/// What was ordered and not taken back.
#[derive(Default)]
pub(super) struct Orders {
    paused: Held,
    disabled: Held,
    drained: Held,
}

impl Scope {
    fn has(&self, database: &str) -> bool {
        match self {
            Self::All => true,
            Self::Database(name) => **name == *database,
        }
    }
}

impl Held {
    fn has(&self, database: &str) -> bool {
        self.databases.iter().any(|name| **name == *database) != self.all
    }

    /// For people: `*` is all but those behind it.
    fn names(&self) -> impl Iterator<Item = String> {
        let all = self.all.then(|| "*".to_owned());
        all.into_iter().chain(self.databases.iter().map(ToString::to_string))
    }

    /// Whether it holds for none.
    fn is_empty(&self) -> bool {
        !self.all && self.databases.is_empty()
    }

    fn add(&mut self, scope: &Scope) {
        match scope {
            Scope::All => *self = Self { all: true, databases: Vec::new() },
            Scope::Database(name) => self.set(name, true),
        }
    }

    fn remove(&mut self, scope: &Scope) {
        match scope {
            Scope::All => *self = Self::default(),
            Scope::Database(name) => self.set(name, false),
        }
    }

    fn set(&mut self, name: &str, held: bool) {
        self.databases.retain(|known| **known != *name);
        if held != self.all {
            self.databases.push(name.into());
        }
    }
}

impl Orders {
    /// Whether a database is paused.
    pub(super) fn pauses(&self, database: &str) -> bool {
        self.paused.has(database)
    }

    /// Databases that are paused.
    pub(super) fn paused(&self) -> Vec<String> {
        self.paused.names().collect()
    }

    /// Databases that let nobody in.
    pub(super) fn disabled(&self) -> Vec<String> {
        self.disabled.names().chain(self.drained.names()).collect()
    }

    /// Whether nobody is let in to a database.
    pub(super) fn refuses(&self, database: &str) -> bool {
        self.disabled.has(database) || self.drained.has(database)
    }
}

impl<T: Transport> Shard<T> {
    pub(super) fn on_order(&mut self, order: &Order) {
        match order {
            Order::Pause(scope) => {
                self.orders.paused.add(scope);
                self.apply_pauses();
            }
            Order::Resume(scope) => {
                self.orders.paused.remove(scope);
                self.apply_pauses();
            }
            Order::Drain(scope) => {
                self.orders.drained.add(scope);
                self.send_off();
            }
            Order::Kill(scope) => {
                self.orders.paused.add(scope);
                self.apply_pauses();
                self.kill(scope);
            }
            Order::Disable(scope) => self.orders.disabled.add(scope),
            Order::Enable(scope) => {
                self.orders.disabled.remove(scope);
                self.orders.drained.remove(scope);
            }
            Order::Reconnect(scope) => self.recycle(|key| scope.has(&key.database)),
        }
    }

    /// Makes every pool what the orders say.
    fn apply_pauses(&mut self) {
        let mut from = 0;
        while let Some(id) = self.pools.next_used(from) {
            from = id.0 + 1;
            let pool = self.pools.get(id);
            let paused = self.orders.pauses(&pool.key.database) || pool.unfit;
            if paused == pool.part.is_paused() {
                continue;
            }
            self.pools.get_mut(id).part.pause(paused);
            if paused {
                // What cannot be opened again is kept, or nobody could go on afterwards.
                if self.pools.get(id).part.refill() != Refill::Impossible {
                    self.close_idle(id, u32::MAX);
                }
            } else {
                self.resume_pool(id);
            }
        }
        // Those whose database is still paused are parked again.
        self.awake.append(&mut self.parked);
    }

    /// Those who waited are served.
    pub(super) fn resume_pool(&mut self, id: PoolId) {
        for _ in 0..self.pools.get(id).part.waiting() {
            let Some(&backend) = self.pools.get(id).part.idle().last() else { break };
            self.pools.get_mut(id).part.borrow_idle(backend);
            self.give_back(backend);
        }
        self.refill(id);
    }

    fn kill(&mut self, scope: &Scope) {
        let mut from = 0;
        while let Some((index, generation)) = self.clients.next_used(from) {
            from = index + 1;
            let id = ClientId { index, generation };
            let client = self.clients.get(index, generation).expect("just found");
            let Some(pool) = client.pool else { continue };
            let database = &self.pools.get(pool).key.database;
            if scope.has(database) {
                let fault = Fault::Dismissed(database.to_string());
                self.fail(id, &fault);
            }
        }
        let mut from = 0;
        while let Some((index, generation)) = self.backends.next_used(from) {
            from = index + 1;
            let id = BackendId { index, generation };
            let backend = self.backends.get(index, generation).expect("just found");
            if !scope.has(&self.pools.get(backend.pool).key.database) {
                continue;
            }
            match backend.state {
                // Told to stop working; closed when it has, or when it takes too long (`clean`).
                BackendState::Cleaning(_) => self.backend(id).expect("just found").tainted = true,
                BackendState::Resolving
                | BackendState::Connecting
                | BackendState::LoggingIn
                | BackendState::Idle
                | BackendState::LookingUp(_)
                | BackendState::Linked(_)
                | BackendState::Piped(_)
                | BackendState::Listening(_)
                | BackendState::Moving(_) => self.close_backend(id, Close::Flushed),
            }
        }
    }

    /// Sends off clients of drained databases that are between transactions.
    pub(super) fn send_off(&mut self) {
        if self.orders.drained.is_empty() {
            return;
        }
        let mut from = 0;
        while let Some((index, generation)) = self.clients.next_used(from) {
            from = index + 1;
            let id = ClientId { index, generation };
            let client = self.clients.get(index, generation).expect("just found");
            let Some(pool) = client.pool else { continue };
            let database = &self.pools.get(pool).key.database;
            if !self.orders.drained.has(database) {
                continue;
            }
            let idle = match client.state {
                ClientState::Startup | ClientState::Moving(_) | ClientState::Login(_) | ClientState::Ready => true,
                ClientState::Waiting(_) | ClientState::Piped(_) | ClientState::Console(_) => false,
                ClientState::Linked(backend) => {
                    let link = self.backends.get(backend.index, backend.generation);
                    link.is_none_or(|link| link.pipeline.is_whole())
                }
            };
            if idle {
                let fault = Fault::Dismissed(database.to_string());
                self.fail(id, &fault);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_is_taken_out_of_all_and_put_back() {
        let mut held = Held::default();
        let one = Scope::Database("one".into());
        let shown = |held: &Held| (held.has("one"), held.has("two"), held.names().collect::<Vec<_>>().join(" "));
        held.add(&one);
        held.add(&one);
        assert_eq!(shown(&held), (true, false, "one".to_owned()));
        held.add(&Scope::All);
        assert_eq!(shown(&held), (true, true, "*".to_owned()));
        held.remove(&one);
        held.remove(&one);
        assert_eq!(shown(&held), (false, true, "* one".to_owned()));
        held.add(&one);
        assert_eq!(shown(&held), (true, true, "*".to_owned()));
        held.remove(&one);
        held.add(&Scope::All);
        assert_eq!(shown(&held), (true, true, "*".to_owned()));
        held.remove(&Scope::All);
        assert!(held.is_empty() && !held.has("one"));
    }
}
