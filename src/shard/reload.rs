//! A changed configuration: a whole one, for all that comes from now on. Nobody is dropped by it but clients whose database
//! is not served any more.
//!
//! A pool whose size or times changed goes on with the new ones; backends above its size are closed as they become free.
//! A changed `relay_mode` holds for clients that come from now on: what there is of a client's session is where its own mode
//! keeps it. Where what a backend *is* changed (its server, its database there, QCP's login, what clients may leave in it), the pool
//! is *retired*: it lends nothing any more and goes with its last link, and its clients belong to another of the same name
//! from their next request on.
//!
//! Invariant: a pool's places over all shards, less what some owe, are its size before and after: each shard adds by how much
//! its own share has grown, so what is on its way counts on. Places of a retired pool count for nobody.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use crate::auth;
use crate::auth::limiter::Limiter;
use crate::ids::{BackendId, ClientId, PoolId};
use crate::io::{Close, Transport};
use crate::pool::Refill;
use crate::session::fault::Fault;

use super::placement;
use super::pools::{Asked, Key, PoolSettings};
use super::{BackendState, Catalogue, ClientState, Server, Shard, TlsSettings};

/// What a reload changes at once: this and no half of it.
pub struct Reload {
    /// Which databases and users there are, and what applies to each.
    pub catalogue: Box<dyn Catalogue + Send>,
    /// Certificates, and how servers are connected to.
    pub tls: Arc<TlsSettings>,
    /// See [`super::Settings`].
    pub auth: Arc<auth::settings::Settings>,
    /// See [`super::Settings`]; more than there were places for at the start is those.
    pub clients_max: u32,
    /// See [`super::Settings`].
    pub login_timeout: Duration,
    /// See [`super::Settings`].
    pub client_stall_timeout: Duration,
    /// See [`super::Settings`].
    pub connect_timeout: Duration,
    /// See [`super::Settings`].
    pub cancel_timeout: Duration,
    /// See [`super::Settings`].
    pub backoff: (Duration, Duration),
    /// See [`super::Settings`].
    pub dns_ttl: Duration,
    /// See [`super::Settings`].
    pub role_check_interval: Duration,
    /// See [`super::Settings`].
    pub check_connections: u32,
    /// Backends are replaced too, each when it is free.
    pub recycle: bool,
}

impl<T: Transport> Shard<T> {
    pub(super) fn on_reload(&mut self, reload: Reload) {
        self.generation += 1;
        let catalogue: Box<dyn Catalogue> = reload.catalogue;
        self.asked = Asked::default();
        self.catalogue_before = Some(std::mem::replace(&mut self.catalogue, Rc::from(catalogue)));
        if self.settings.auth.limiter != reload.auth.limiter {
            self.limiter = Limiter::new(reload.auth.limiter);
        }
        let settings = &mut self.settings;
        settings.tls = reload.tls;
        settings.auth = reload.auth;
        settings.clients_max = reload.clients_max.min(self.clients.capacity() as u32);
        settings.login_timeout = reload.login_timeout;
        settings.client_stall_timeout = reload.client_stall_timeout;
        settings.connect_timeout = reload.connect_timeout;
        settings.cancel_timeout = reload.cancel_timeout;
        settings.backoff = reload.backoff;
        settings.role_check_interval = reload.role_check_interval;
        settings.dns_ttl = reload.dns_ttl;
        settings.check_connections = reload.check_connections;
        // What was known of users and servers is asked again.
        self.found.clear();
        self.verifiers.clear();
        let mut from = 0;
        while let Some(pool) = self.pools.next_used(from) {
            from = pool.0 + 1;
            self.reconfigure(pool);
        }
        self.count_those_there();
        self.review_pools();
        if reload.recycle {
            self.recycle(|_| true);
        }
        for given in std::mem::take(&mut self.given_ahead) {
            self.on_give(given);
        }
        let mut from = 0;
        while let Some(pool) = self.pools.next_used(from) {
            from = pool.0 + 1;
            self.refill(pool);
        }
    }

    fn reconfigure(&mut self, id: PoolId) {
        let (own, shard_count, now) = (self.settings.id, self.settings.shard_count, self.io.now());
        let pool = self.pools.get(id);
        if pool.retired {
            // It opens nothing any more; this only has to be there.
            self.pools.get_mut(id).settings.tls.fill(0);
            return;
        }
        let new = self.catalogue.pool(&pool.key.database, &pool.key.user);
        let Some(new) = new.filter(|new| serves(&pool.key.server, &pool.settings, new)) else {
            self.pools.get_mut(id).settings.tls.fill(0);
            self.pools.retire(id);
            self.has_leaving = true;
            self.close_idle(id, u32::MAX);
            return;
        };
        let homes = placement::homes(&pool.key, new.pool.size, shard_count);
        let (old_size, size) = (pool.settings.pool.size, new.pool.size);
        let pool = self.pools.get_mut(id);
        let more = homes.share(size, own) as i32 - pool.homes.share(old_size, own) as i32;
        pool.part.reconfigure(new.pool.clone(), self.settings.backoff, more, now);
        if size != old_size {
            pool.homes = homes;
            // What a shard has that is no home now is asked of it.
            pool.is_spread = true;
            pool.nothing.fill((0, 0));
            pool.asked = None;
        }
        if pool.settings.rules != new.rules && pool.part.refill() == Refill::Impossible {
            pool.part.set_refill(Refill::Unknown);
        }
        pool.settings = new;
        pool.trusted_until = None;
        let excess = pool.part.excess();
        self.close_idle(id, excess);
    }

    /// Closes idle backends of a pool, the ones used longest ago first.
    pub(super) fn close_idle(&mut self, id: PoolId, count: u32) {
        for _ in 0..count {
            let Some(&backend) = self.pools.get(id).part.idle().first() else { return };
            self.close_backend(backend, Close::Flushed);
        }
    }

    /// Clients that are between requests, or wait, leave pools that are left now; the others when they let go of their
    /// backend.
    pub(super) fn rehome_all(&mut self) {
        let is_left = |id| {
            let pool = self.pools.get(id);
            pool.retired || pool.unfit && pool.clients > 0
        };
        self.has_leaving = self.pools.ids().any(is_left);
        if !self.has_leaving {
            return;
        }
        let mut from = 0;
        while let Some((index, generation)) = self.clients.next_used(from) {
            from = index + 1;
            let id = ClientId { index, generation };
            let client = self.clients.get(index, generation).expect("just found");
            let Some(pool) = client.pool.filter(|&pool| self.pools.get(pool).is_left()) else { continue };
            let is_ready = matches!(client.state, ClientState::Ready);
            let waits = self.waiters.since(id).is_some();
            // Its place in the queue is not given up for nothing.
            if !waits && !is_ready || !self.pools.get(pool).retired && self.better_server(pool).is_none() {
                continue;
            }
            if waits {
                self.leave_queue(id);
            }
            if self.rehome(id) && waits {
                match self.checkout(id) {
                    Ok(()) => self.resume_client(id),
                    Err(fault) => self.refuse_request(id, &fault),
                }
            }
        }
    }

    /// A client of a retired pool belongs to the one in its place from now on, and one whose server does not suit to a pool
    /// at a server that does, if one is known. `false`: there is none, and the client has been told so.
    pub(super) fn rehome(&mut self, id: ClientId) -> bool {
        let Some(old) = self.client(id).and_then(|client| client.pool) else { return true };
        let pool = self.pools.get(old);
        if !pool.is_left() {
            return true;
        }
        let retired = pool.retired;
        let better = if retired { None } else { self.better_server(old) };
        if !retired && better.is_none() {
            return true;
        }
        let Key { server, database, user } = self.pools.get(old).key.clone();
        let Some(settings) = self.catalogue.pool(&database, &user) else {
            self.fail(id, &Fault::UnknownDatabase(database.into()));
            return false;
        };
        let server = match better {
            Some(better) => better,
            None if settings.servers.contains(&server) && self.suits(&server, &settings) => server,
            None => settings.servers[self.choose_server(&settings)].clone(),
        };
        let Some(new) = self.pool_of(Key { server, database, user }, settings) else {
            self.fail(id, &Fault::NoRoom("pools"));
            return false;
        };
        self.change_pool(id, old, new);
        let client = self.client(id).expect("looked up above");
        if client.hears.is_some() {
            self.fail(id, &Fault::ListenerLost("its database is served from elsewhere now".to_owned()));
            return false;
        }
        true
    }

    /// Has backends of some pools replaced: idle ones at once, the others when they are free.
    pub(super) fn recycle(&mut self, of: impl Fn(&Key) -> bool) {
        let mut from = 0;
        while let Some((index, generation)) = self.backends.next_used(from) {
            from = index + 1;
            let id = BackendId { index, generation };
            let backend = self.backends.get(index, generation).expect("just found");
            let pool = self.pools.get(backend.pool);
            if !of(&pool.key) {
                continue;
            }
            // A pool that cannot be filled again keeps what it has.
            let replaceable = self.can_replace(backend.pool);
            match backend.state {
                BackendState::Idle if replaceable => self.close_backend(id, Close::Flushed),
                BackendState::Linked(_) | BackendState::Cleaning(_) if replaceable => {
                    self.backend(id).expect("just found").tainted = true;
                }
                BackendState::Resolving
                | BackendState::Connecting
                | BackendState::LoggingIn
                | BackendState::Idle
                | BackendState::LookingUp(_)
                | BackendState::Linked(_)
                | BackendState::Cleaning(_)
                | BackendState::Piped(_)
                // Those who listen by it would have to be closed.
                | BackendState::Listening(_)
                | BackendState::Moving(_) => {}
            }
        }
    }
}

/// Whether the backends of a pool at this server are what they would be under new settings, too.
pub(super) fn serves(server: &Server, old: &PoolSettings, new: &PoolSettings) -> bool {
    old.servers.contains(server)
        && new.servers.contains(server)
        && new.server_database == old.server_database
        && new.preserve == old.preserve
        && new.rules.credentials == old.rules.credentials
}
