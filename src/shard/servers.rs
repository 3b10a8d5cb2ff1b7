//! What the servers are, and which of them clients belong to: asked every `role_check_interval` where there are several,
//! and told to the other shards when it changes. What follows from it is decided in `pool::roles`.
//!
//! A server says what it is at each login, and again when that changes, before its next ReadyForQuery ("in_hot_standby", since
//! PostgreSQL 14). So an idle backend is asked with an empty query. Where there is none, a connection of QCP's own, the
//! *watcher*, is asked, if QCP can log in without a client; it holds no place of a pool.
//!
//! Invariant: a pool whose server does not suit lends nothing (its part is paused); its clients belong to a pool of the same
//! name at a server that does as soon as one is known, from their next request on.

use std::time::Instant;

use crate::ids::{BackendId, ClientId, PoolId};
use crate::io::{Close, Transport};
use crate::memory::Slice;
use crate::pool::roles::{self, Candidate, Standing};
use crate::pool::{Refill, Role, Route, Schedule};
use crate::protocol::reader;
use crate::protocol::tag::backend as tag;
use crate::session::fault::Fault;

use super::login::Stage;
use super::mailbox::Mail;
use super::pools::{Key, Pool, PoolSettings};
use super::{BackendState, ClientState, Purpose, Running, Server, Shard};

/// What a server reports of itself.
pub(super) const ROLE_PARAMETER: &[u8] = b"in_hot_standby";
/// Asked of servers that do not report it.
const ROLE_QUERY: &[u8] = b"SELECT pg_catalog.pg_is_in_recovery()";

/// A server of several.
struct Known {
    server: Server,
    standing: Standing,
    /// The connection that is there to be asked.
    watcher: Option<BackendId>,
    /// Another is not tried before then.
    watch_at: Option<Instant>,
    /// Some pool's clients may go to it.
    wanted: bool,
}

/// The servers of all pools that have several, or a route of their own.
#[derive(Default)]
pub(super) struct Servers {
    known: Vec<Known>,
    /// What has been said, and not looked at.
    heard: Vec<(Server, Role)>,
    check_at: Option<Instant>,
    turn: usize,
}

impl Servers {
    fn find(&self, server: &Server) -> Option<&Known> {
        self.known.iter().find(|known| known.server == *server)
    }

    fn get(&mut self, server: &Server) -> &mut Known {
        let at = self.known.iter().position(|known| known.server == *server);
        let at = at.unwrap_or_else(|| {
            let server = server.clone();
            self.known.push(Known {
                server,
                standing: Standing::default(),
                watcher: None,
                watch_at: None,
                wanted: true,
            });
            self.known.len() - 1
        });
        &mut self.known[at]
    }

    /// What is known of each server of a pool.
    fn standings(&self, settings: &PoolSettings) -> Vec<Standing> {
        let standing = |server| self.find(server).map_or_else(Standing::default, |known| known.standing);
        settings.servers.iter().map(standing).collect()
    }

    /// What a server is, for people. `None`: nobody asks.
    pub(super) fn role(&self, server: &Server) -> Option<&'static str> {
        let known = self.find(server)?;
        Some(match known.standing.role() {
            _ if known.standing.is_down() => "down",
            Role::Primary => "primary",
            Role::Standby => "standby",
            Role::Unknown => "unknown",
        })
    }
}

impl PoolSettings {
    /// Whether it matters what its servers are.
    pub(super) fn is_routed(&self) -> bool {
        self.servers.len() > 1 || self.route != Route::Any
    }
}

impl<T: Transport> Shard<T> {
    /// Which of a pool's servers a client goes to that comes now.
    pub(super) fn choose_server(&mut self, settings: &PoolSettings) -> usize {
        if settings.servers.len() == 1 {
            return 0;
        }
        let candidates: Vec<Candidate> = settings
            .servers
            .iter()
            .zip(&settings.weights)
            .zip(self.servers.standings(settings))
            .map(|((server, &weight), standing)| {
                let load = if settings.pool.schedule == Schedule::LoadBalancing { self.clients_at(server) } else { 0 };
                Candidate { standing, weight, load }
            })
            .collect();
        self.servers.turn = self.servers.turn.wrapping_add(1);
        let (now, random) = (self.io.now(), self.next_random());
        let chances = (self.servers.turn, random);
        roles::choose(settings.route, settings.pool.schedule, &candidates, chances, now)
    }

    fn clients_at(&self, server: &Server) -> u32 {
        let pools = self.pools.ids().map(|pool| self.pools.get(pool));
        pools.filter(|pool| pool.key.server == *server).map(|pool| pool.clients).sum()
    }

    /// Whether clients of these settings may be at this server.
    pub(super) fn suits(&self, server: &Server, settings: &PoolSettings) -> bool {
        if !settings.is_routed() {
            return true;
        }
        let Some(at) = settings.servers.iter().position(|known| known == server) else { return false };
        roles::may_stay(settings.route, &self.servers.standings(settings), at)
    }

    /// Where the clients of a pool that does not suit go, if something better is known.
    pub(super) fn better_server(&mut self, id: PoolId) -> Option<Server> {
        let pool = self.pools.get(id);
        let settings = self.catalogue.pool(&pool.key.database, &pool.key.user)?;
        let own = pool.key.server.clone();
        let chosen = settings.servers[self.choose_server(&settings)].clone();
        (chosen != own && self.suits(&chosen, &settings)).then_some(chosen)
    }

    /// A login at a pool whose server does not suit: whether it went to another. `relayed`: it asks the server itself, so it
    /// may as well ask one of which nothing is known.
    pub(super) fn move_login(&mut self, id: ClientId, relayed: bool) -> bool {
        let Some(pool) = self.client(id).and_then(|client| client.pool) else { return false };
        let key = self.pools.get(pool).key.clone();
        let Some(settings) = self.catalogue.pool(&key.database, &key.user) else { return false };
        let chosen = settings.servers[self.choose_server(&settings)].clone();
        if chosen == key.server || !relayed && !self.suits(&chosen, &settings) {
            return false;
        }
        let Some(login) = self.login(id) else { return false };
        // Each of them once, and once more for those whose turn comes again.
        login.tries += 1;
        if usize::from(login.tries) > 2 * settings.servers.len() {
            return false;
        }
        let Some(new) = self.pool_of(Key { server: chosen, ..key }, settings) else { return false };
        self.change_pool(id, pool, new);
        true
    }

    /// A client belongs to another pool of the same name.
    pub(super) fn change_pool(&mut self, id: ClientId, from: PoolId, to: PoolId) {
        self.pools.get_mut(from).clients -= 1;
        self.pools.get_mut(to).clients += 1;
        if let Some(client) = self.client(id) {
            client.pool = Some(to);
        }
        self.has_leaving |= self.pools.get(to).unfit;
    }

    /// A server has said what it is, at a login. Whoever it does not suit any more has left its pools when this returns.
    pub(super) fn note_role(&mut self, server: &Server, role: Role) {
        self.learn_role(server, role, None, true);
    }

    /// A backend has logged in: what its server has said of itself.
    pub(super) fn note_login_role(&mut self, id: BackendId) {
        let Some(backend) = self.backend(id) else { return };
        let (pool, role) = (backend.pool, backend.role);
        let pool = self.pools.get(pool);
        if !pool.settings.is_routed() {
            return;
        }
        let server = pool.key.server.clone();
        match role {
            Some(role) => self.note_role(&server, role),
            None => self.note_reached(&server),
        }
    }

    /// A backend has answered a probe: its server is what it was, or has said what it is now.
    pub(super) fn confirm_role(&mut self, id: BackendId) {
        self.heed_roles();
        let now = self.io.now();
        let Some(pool) = self.backend(id).map(|backend| backend.pool) else { return };
        let pool = self.pools.get(pool);
        if pool.settings.is_routed() {
            let standing = &mut self.servers.get(&pool.key.server).standing;
            if standing.role() != Role::Unknown {
                standing.hear(standing.role(), None, now);
            }
        }
    }

    /// A server has said what it is, in the midst of something: it is looked at when that is done.
    pub(super) fn overhear_role(&mut self, pool: PoolId, value: &[u8]) {
        let pool = self.pools.get(pool);
        if pool.settings.is_routed() {
            let server = pool.key.server.clone();
            self.servers.heard.push((server, role_of(value)));
        }
    }

    /// Looks at what has been overheard.
    pub(super) fn heed_roles(&mut self) {
        while let Some((server, role)) = self.servers.heard.pop() {
            self.note_role(&server, role);
        }
    }

    /// Another shard has heard of a change.
    pub(super) fn on_role_elsewhere(&mut self, server: &Server, role: Role, promoted: Option<Instant>) {
        self.learn_role(server, role, promoted, false);
    }

    fn learn_role(&mut self, server: &Server, role: Role, promoted: Option<Instant>, tell: bool) {
        let now = self.io.now();
        let known = self.servers.get(server);
        let before = known.standing;
        if !known.standing.hear(role, promoted, now) {
            return;
        }
        let after = known.standing;
        if tell {
            let what = match role {
                Role::Primary if after.promoted().is_some() && before.role() == Role::Standby => {
                    "has become the primary"
                }
                Role::Primary => "is a primary",
                Role::Standby => "is a standby",
                Role::Unknown => "answers",
            };
            log::info!("server {server} {what}");
        }
        if tell {
            for shard in self.mailbox.others(self.settings.id) {
                let (server, promoted) = (server.clone(), after.promoted());
                self.mailbox.send(shard, Mail::Role { server, role, promoted });
            }
        }
        self.review_pools();
    }

    /// A server could not be reached.
    pub(super) fn note_unreachable(&mut self, pool: PoolId, why: &str) {
        let pool = self.pools.get(pool);
        if !pool.settings.is_routed() {
            return;
        }
        let server = pool.key.server.clone();
        let (now, backoff, jitter) = (self.io.now(), self.settings.backoff, self.next_random() as u8);
        let known = self.servers.get(&server);
        // From here on its own pauses decide when it is tried.
        known.watch_at = None;
        if known.standing.fail(now, backoff, jitter) {
            log::warn!("server {server} is down: {why}");
            self.review_pools();
        }
    }

    /// A server has let somebody in, and does not say what it is.
    fn note_reached(&mut self, server: &Server) {
        let standing = &mut self.servers.get(server).standing;
        let was_down = standing.is_down();
        standing.reach();
        if was_down {
            self.review_pools();
        }
    }

    /// Looks at every pool of several servers anew: what of it lends, and where its clients belong.
    pub(super) fn review_pools(&mut self) {
        let mut resumed = Vec::new();
        let mut from = 0;
        while let Some(id) = self.pools.next_used(from) {
            from = id.0 + 1;
            let pool = self.pools.get(id);
            if pool.retired || !pool.settings.is_routed() && !pool.unfit {
                continue;
            }
            let unfit = !self.suits(&pool.key.server, &pool.settings);
            if unfit && self.is_superseded(id) {
                self.end_links(id);
            }
            if unfit == self.pools.get(id).unfit {
                continue;
            }
            let paused = self.orders.pauses(&self.pools.get(id).key.database);
            let pool = self.pools.get_mut(id);
            pool.unfit = unfit;
            pool.part.pause(unfit || paused);
            if unfit {
                pool.trouble = None;
                // What cannot be opened again is kept: it can be asked what its server is.
                while self.can_replace(id) && !self.pools.get(id).part.idle().is_empty() {
                    self.close_idle(id, 1);
                }
            } else if !paused {
                resumed.push(id);
            }
        }
        self.rehome_all();
        for id in resumed {
            if self.pools.is_used(id) {
                self.resume_pool(id);
            }
        }
        // Logins that wait for a server that suits.
        self.awake.append(&mut self.parked);
    }

    fn is_superseded(&self, id: PoolId) -> bool {
        let pool = self.pools.get(id);
        let at = pool.settings.servers.iter().position(|known| *known == pool.key.server);
        at.is_some_and(|at| roles::is_superseded(pool.settings.route, &self.servers.standings(&pool.settings), at))
    }

    /// Another server is the primary now: what is under way at this one would be lost.
    fn end_links(&mut self, id: PoolId) {
        let name = self.pools.get(id).key.server.to_string();
        let mut from = 0;
        while let Some((index, generation)) = self.backends.next_used(from) {
            from = index + 1;
            let backend = self.backends.get(index, generation).expect("just found");
            if backend.pool == id
                && let BackendState::Linked(client) | BackendState::Piped(client) = backend.state
            {
                self.fail(client, &Fault::Superseded(name.clone()));
            }
        }
    }

    /// Asks the servers what they are, when that is due.
    pub(super) fn watch_servers(&mut self) {
        self.heed_roles();
        let now = self.io.now();
        if self.running != Running::Yes || self.servers.check_at.is_some_and(|at| now < at) {
            return;
        }
        self.servers.check_at = Some(now + self.settings.role_check_interval);
        for known in &mut self.servers.known {
            known.wanted = false;
        }
        // For each server one who asks: a pool that is there, or one like it.
        let mut askers: Vec<(Server, PoolId)> = Vec::new();
        for id in self.pools.ids() {
            let pool = self.pools.get(id);
            if pool.clients == 0 || pool.retired || !pool.settings.is_routed() {
                continue;
            }
            for server in &pool.settings.servers {
                let better = |asker: PoolId| self.pools.get(asker).part.refill() == Refill::Impossible;
                match askers.iter_mut().find(|(known, _)| known == server) {
                    None => askers.push((server.clone(), id)),
                    Some((_, asker)) if better(*asker) => *asker = id,
                    Some(_) => {}
                }
            }
        }
        for (server, asker) in askers {
            self.servers.get(&server).wanted = true;
            self.watch(&server, asker);
        }
        let idle = self.servers.known.iter_mut().filter(|known| !known.wanted);
        let unneeded: Vec<BackendId> = idle.filter_map(|known| known.watcher.take()).collect();
        for id in unneeded {
            self.close_backend(id, Close::Flushed);
        }
    }

    /// Asks one server. `asker`: a pool whose clients may go there.
    fn watch(&mut self, server: &Server, asker: PoolId) {
        let now = self.io.now();
        let known = self.servers.get(server);
        if let Some(watcher) = known.watcher {
            match self.backends.get(watcher.index, watcher.generation) {
                Some(backend) if matches!(backend.state, BackendState::Idle) => {
                    // Until it has answered the deadline stands.
                    if backend.deadline.is_none() {
                        self.ask_role(watcher);
                    }
                    return;
                }
                // It logs in.
                Some(_) => return,
                None => self.servers.get(server).watcher = None,
            }
        }
        let at_server = |backend: &super::Backend| {
            let pool = self.pools.get(backend.pool);
            let reports = pool.parameters.iter().any(|(name, _)| name.as_bytes() == ROLE_PARAMETER);
            backend.purpose == Purpose::Pool
                && matches!(backend.state, BackendState::Idle)
                && reports
                && pool.key.server == *server
        };
        let idle = self.backends.iter().find(|(_, _, backend)| at_server(backend));
        if let Some((index, generation, _)) = idle {
            self.probe(BackendId { index, generation });
            return;
        }
        let known = self.servers.get(server);
        if !known.standing.may_try(now) || known.watch_at.is_some_and(|at| now < at) {
            return;
        }
        let Key { database, user, .. } = self.pools.get(asker).key.clone();
        let Some(settings) = self.catalogue.pool(&database, &user) else { return };
        if !settings.servers.contains(server) {
            return;
        }
        let Some(pool) = self.pool_of(Key { server: server.clone(), database, user }, settings) else { return };
        // Without a password there is only what clients' logins have brought.
        if self.pools.get(pool).part.refill() == Refill::Impossible {
            return;
        }
        // A refusal that says nothing of the server is not asked for four times a second.
        self.servers.get(server).watch_at = Some(now + self.settings.backoff.1);
        if let Some(watcher) = self.open_backend(pool, Purpose::Watch, None, None) {
            self.servers.get(server).watcher = Some(watcher);
        }
    }

    /// A watcher has logged in.
    pub(super) fn begin_watching(&mut self, id: BackendId) {
        let Some(backend) = self.backend(id) else { return };
        backend.state = BackendState::Idle;
        let (pool, reports) = (backend.pool, backend.role.is_some());
        let server = self.pools.get(pool).key.server.clone();
        let known = self.servers.get(&server);
        known.watch_at = None;
        known.watcher = Some(id);
        if !reports {
            self.ask_role(id);
        }
    }

    fn ask_role(&mut self, id: BackendId) {
        let Some(backend) = self.backend(id) else { return };
        let (Some(connection), pool, reports) = (backend.connection, backend.pool, backend.role.is_some()) else {
            return;
        };
        let deadline = self.io.now() + self.pools.get(pool).settings.pool.keepalive_timeout;
        self.backend(id).expect("looked up above").deadline = Some(deadline);
        let written = self.write(connection, 64, |writer| {
            let asked = if reports { writer.sync() } else { writer.query(ROLE_QUERY) };
            asked.expect("the room was asked for");
        });
        if !written {
            self.close_backend(id, Close::Now);
        }
    }

    /// A message to a watcher.
    pub(super) fn on_watched(&mut self, id: BackendId, kind: u8, message: &Slice) {
        let now = self.io.now();
        let Self { backends, pools, .. } = self;
        let Some(backend) = backends.get_mut(id.index, id.generation) else { return };
        let server = pools.get(backend.pool).key.server.clone();
        match kind {
            tag::PARAMETER_STATUS => {
                if let Ok(status) = reader::parameter_status(message)
                    && status.name == ROLE_PARAMETER
                {
                    backend.role = Some(role_of(status.value));
                }
            }
            tag::DATA_ROW => {
                let value = reader::data_row(message).ok().and_then(|mut values| values.next().flatten());
                let role =
                    value.map_or(Role::Unknown, |value| if value == b"t" { Role::Standby } else { Role::Primary });
                self.note_role(&server, role);
            }
            tag::READY_FOR_QUERY => {
                backend.deadline = None;
                backend.used = now;
                if let Some(role) = backend.role {
                    self.note_role(&server, role);
                }
            }
            tag::NOTICE_RESPONSE | tag::NOTIFICATION_RESPONSE | tag::ROW_DESCRIPTION | tag::COMMAND_COMPLETE => {}
            // Most likely 57P01; the end of the connection follows.
            _ => self.close_backend(id, Close::Now),
        }
    }

    /// A login has found that its server does not suit, and was the one to find out: it goes on at another, or is told to
    /// come again. Whether the caller is to go on with it.
    pub(super) fn stays_at(&mut self, id: ClientId) -> bool {
        let Some(pool) = self.client(id).and_then(|client| client.pool) else { return false };
        let entry = self.pools.get(pool);
        if !entry.unfit {
            return true;
        }
        let can_open = entry.part.refill() != Refill::Impossible;
        if (can_open || self.has_better_backends(pool)) && self.move_login(id, false) {
            self.go_on_elsewhere(id);
            return false;
        }
        if self.may_serve(pool) {
            return true;
        }
        self.refuse_server(id);
        false
    }

    /// Whether a client that has come to a pool's server may be served there, though another may be better.
    pub(super) fn may_serve(&self, id: PoolId) -> bool {
        let pool = self.pools.get(id);
        let role = self.servers.find(&pool.key.server).map(|known| known.standing.role());
        // Another calls itself the primary too, and nobody has seen either of them become it.
        let is_one_of_several = pool.settings.route == Route::Primary && role == Some(Role::Primary);
        !pool.unfit || is_one_of_several && !self.is_superseded(id)
    }

    /// Whether there are backends at the server that the clients of a pool would be better at: they are of use to a client that
    /// this server has let in, though none can be opened.
    fn has_better_backends(&mut self, id: PoolId) -> bool {
        let Some(server) = self.better_server(id) else { return false };
        let key = Key { server, ..self.pools.get(id).key.clone() };
        self.pools.find(&key).is_some_and(|better| self.pools.get(better).part.open() > 0)
    }

    /// Tells a login that the server it went to does not suit.
    pub(super) fn refuse_server(&mut self, id: ClientId) {
        let Some(pool) = self.client(id).and_then(|client| client.pool) else { return };
        let Pool { key, settings, .. } = self.pools.get(pool);
        let (server, wanted) = (key.server.to_string(), route_name(settings.route));
        let role = match self.servers.role(&key.server) {
            // Another was promoted since.
            Some("primary") if settings.route == Route::Primary => "former primary",
            Some(role @ ("primary" | "standby")) => role,
            Some(_) | None => "server of which nothing is known",
        };
        self.fail(id, &Fault::WrongServer { server, role, wanted });
    }

    /// A login's server could not be reached: whether it goes to another.
    pub(super) fn try_login_elsewhere(&mut self, id: ClientId, pool: PoolId) -> bool {
        if !self.pools.get(pool).settings.is_routed() {
            return false;
        }
        let asks = self.asks_server(id, pool);
        let moved = self.move_login(id, asks);
        if moved {
            self.set_stage(id, Stage::Answer);
            self.awake.push_back(id);
        }
        moved
    }

    /// The client has been let in, at a server that does not suit, and belongs to another pool now.
    fn go_on_elsewhere(&mut self, id: ClientId) {
        if !matches!(self.client(id).map(|client| &client.state), Some(ClientState::Login(_))) {
            return;
        }
        self.set_stage(id, Stage::Backend);
        if let Err(fault) = self.checkout(id) {
            self.fail(id, &Fault::NoServer(fault.answer().message));
        }
    }

    /// Logins that have waited `queue_timeout` for a server that suits.
    pub(super) fn expire_parked(&mut self) {
        let now = self.io.now();
        for _ in 0..self.parked.len() {
            let Some(id) = self.parked.pop_front() else { return };
            let Some(client) = self.clients.get(id.index, id.generation) else { continue };
            let Some(pool) = client.pool else { continue };
            let (entry, waited) = (self.pools.get(pool), client.since.age(self.stamp(now)));
            let timeout = entry.settings.pool.queue_timeout;
            let ordered = self.orders.pauses(&entry.key.database);
            if entry.unfit && !ordered && !timeout.is_zero() && waited >= timeout {
                let fault = Fault::NoServer(none_suits(entry.settings.route));
                self.fail(id, &fault);
            } else {
                self.parked.push_back(id);
            }
        }
    }
}

/// Why clients wait although servers are there.
pub(super) fn none_suits(route: Route) -> String {
    format!("none of the servers is known to be a {} now (route)", route_name(route))
}

pub(super) fn route_name(route: Route) -> &'static str {
    match route {
        Route::Primary => "primary",
        Route::Standby => "standby",
        Route::Any => "server that answers",
    }
}

/// What a value of [`ROLE_PARAMETER`] says.
pub(super) fn role_of(value: &[u8]) -> Role {
    match value {
        b"off" => Role::Primary,
        b"on" => Role::Standby,
        _ => Role::Unknown,
    }
}
