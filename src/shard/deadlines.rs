//! What happens because time has passed, and how the end goes.

use std::time::Duration;

use crate::ids::{BackendId, ClientId, PoolId};
use crate::io::{Close, Transport};
use crate::protocol::error::Severity;
use crate::protocol::{ErrorFields, SqlState};
use crate::session::fault::{self, Fault};
use crate::session::timeouts::{Doing, Overdue};

use super::clean::CANCEL_AGAIN;
use super::own_check::is_sentenced;
use super::servers::none_suits;
use super::{BackendState, ClientState, Purpose, Running, Shard};

/// Memory that is used up for so long will not come back by itself.
const STARVED_MAX: Duration = Duration::from_secs(1);
/// Clients closed at once when it does not.
const SHED_MAX: usize = 16;
/// How often all clients and backends are looked at.
const SCAN_EVERY: Duration = Duration::from_millis(250);

impl<T: Transport> Shard<T> {
    pub(super) fn on_tick(&mut self) {
        let now = self.io.now();
        let mut from = 0;
        while let Some(pool) = self.pools.next_used(from) {
            from = pool.0 + 1;
            self.expire_waiters(pool);
            let part = &self.pools.get(pool).part;
            if part.waiting() > 0 || part.debt() > 0 {
                self.refill(pool);
            }
        }
        self.work();
        self.watch_servers();
        self.look_names_up();
        self.note_closed_doors();
        if now >= self.scan_at {
            self.scan_at = now + SCAN_EVERY;
            self.scan_clients();
            self.expire_parked();
            self.send_off();
            self.send_off_idle();
            self.shed_load();
            self.scan_backends();
            self.scan_cancels();
            self.scan_pools();
            self.end_changes();
        }
        if let Running::Draining(until) = self.running {
            self.go_on_draining(now >= until);
        }
    }

    /// Clients that have waited `queue_timeout`.
    fn expire_waiters(&mut self, id: PoolId) {
        let now = self.io.now();
        loop {
            let Self { pools, waiters, .. } = self;
            let pool = pools.get_mut(id);
            let timeout = pool.settings.pool.queue_timeout;
            let Some((_, since)) = pool.part.first_waiter(waiters) else { return };
            let waited = now.duration_since(since);
            if timeout.is_zero() || waited < timeout {
                return;
            }
            let Some((client, _)) = pool.part.pop_waiter(waiters) else { return };
            if pool.unfit {
                let fault = Fault::NoneSuits(none_suits(pool.settings.route));
                self.refuse_request(client, &fault);
                continue;
            }
            let trouble = pool.trouble.as_ref().filter(|_| pool.part.lent() == 0);
            if let Some(refusal) = trouble.and_then(|trouble| trouble.refusal.clone()) {
                self.refuse_in_servers_words(client, &refusal);
            } else if let Some(trouble) = trouble {
                let fault = Fault::NoServer(format!("{}: {}", pool.key.server, trouble.why));
                self.fail(client, &fault);
            } else {
                let name = format!("{}/{}", pool.key.database, pool.key.user);
                let waiting = pool.part.waiting();
                let fault = Fault::QueueTimeout { pool: name, waiting, waited, held: self.held(id) };
                self.refuse_request(client, &fault);
            }
        }
    }

    fn scan_clients(&mut self) {
        let stamp = self.stamp(self.io.now());
        let login_timeout = self.settings.login_timeout;
        let mut from = 0;
        while let Some((index, generation)) = self.clients.next_used(from) {
            from = index + 1;
            let client = self.clients.get(index, generation).expect("just found");
            if is_sentenced(&client.state) {
                self.speak_sentence(ClientId { index, generation });
                continue;
            }
            let logs_in = matches!(client.state, ClientState::Startup | ClientState::Moving(_) | ClientState::Login(_));
            if logs_in && client.since.age(stamp) >= login_timeout {
                self.fail(ClientId { index, generation }, &Fault::LoginTimeout);
                continue;
            }
            self.tell_waiting(ClientId { index, generation });
            let Some(client) = self.clients.get(index, generation) else { continue };
            let (ClientState::Ready, Some(pool)) = (&client.state, client.pool) else { continue };
            let settings = &self.pools.get(pool).settings;
            // Its own `idle_session_timeout`: no backend has it while it has none.
            let own =
                if settings.preserve.is_some() { self.vectors.idle_session(client.wanted) } else { Duration::ZERO };
            let idle = client.active.age(stamp);
            let over = |limit: Duration| !limit.is_zero() && idle >= limit;
            if over(own) {
                self.fail(ClientId { index, generation }, &Fault::SessionIdle);
            } else if over(settings.timeouts.client_idle) {
                self.fail(ClientId { index, generation }, &Fault::ClientIdle);
            }
        }
    }

    /// A client that waits long for a backend is told so, once.
    fn tell_waiting(&mut self, id: ClientId) {
        let now = self.io.now();
        let Some(client) = self.clients.get(id.index, id.generation) else { return };
        let (ClientState::Waiting(_), Some(pool)) = (&client.state, client.pool) else { return };
        let Some(since) = self.waiters.since(id) else { return };
        let entry = self.pools.get(pool);
        let (notice, waited) = (entry.settings.upkeep.queue_notice, now.duration_since(since));
        if notice.is_zero() || waited < notice || client.noticed {
            return;
        }
        let (connection, waiting) = (client.connection, entry.part.waiting());
        let name = format!("{}/{}", entry.key.database, entry.key.user);
        let text = fault::queue_notice(&name, waited, waiting, &self.held(pool));
        self.client(id).expect("looked up above").noticed = true;
        let fields = ErrorFields::new(Severity::Notice, SqlState::SUCCESSFUL_COMPLETION, &text);
        self.write(connection, text.len() + 64, |writer| {
            writer.notice_response(&fields).expect("the room was asked for");
        });
    }

    fn scan_backends(&mut self) {
        let now = self.io.now();
        let mut from = 0;
        while let Some((index, generation)) = self.backends.next_used(from) {
            from = index + 1;
            let id = BackendId { index, generation };
            let backend = self.backends.get(index, generation).expect("just found");
            if backend.deadline.is_some_and(|deadline| now >= deadline) {
                let why = match backend.state {
                    BackendState::Cleaning(_) => "it could not be cleaned in time",
                    BackendState::Moving(_) => "it could not be moved in time",
                    _ => "timeout (reconnect.connect_timeout)",
                };
                self.on_backend_gone(id, why);
                continue;
            }
            self.cancel_again(id);
            let Some(backend) = self.backends.get(index, generation) else { continue };
            if let BackendState::Linked(client) = backend.state {
                self.cancel_held_again(id);
                if !self.watch_times(id, client) {
                    self.watch_reader(id, client);
                }
                continue;
            }
            if !matches!(backend.state, BackendState::Idle) || backend.purpose != Purpose::Pool {
                continue;
            }
            let pool = self.pools.get(backend.pool);
            let idle_timeout = pool.settings.pool.idle_timeout;
            let unused = idle_timeout > Duration::ZERO && now.duration_since(backend.used) >= idle_timeout;
            let minimum = self.minimum(backend.pool);
            let surplus = pool.part.open() > minimum;
            if self.can_replace(backend.pool) && (self.is_expired(backend) || unused && surplus) {
                self.close_backend(id, Close::Flushed);
                continue;
            }
            let interval = pool.settings.pool.keepalive_interval;
            if !interval.is_zero() && now.duration_since(backend.used.max(backend.probed)) >= interval {
                self.probe(id);
            }
        }
    }

    /// What a client with a backend has done for too long is ended; whether the client was.
    fn watch_times(&mut self, id: BackendId, client: ClientId) -> bool {
        let link = self.backends.get(id.index, id.generation).expect("the caller has looked it up");
        let timeouts = self.pools.get(link.pool).settings.timeouts;
        // A login whose settings are being tried has limits.login_timeout.
        let is_linked = self.client(client).is_some_and(|client| matches!(client.state, ClientState::Linked(_)));
        if timeouts.are_none() || !is_linked {
            return false;
        }
        let tick = self.tick();
        let link = self.backends.get(id.index, id.generation).expect("looked up above");
        let doing = Doing {
            status: link.pipeline.status(),
            busy: link.pipeline.is_client_busy(),
            asked: link.asked.until(tick),
            begun: link.begun.until(tick),
        };
        let fault = match timeouts.overdue(doing) {
            None => return false,
            Some(Overdue::Query) => return self.end_query_late(id, client),
            Some(Overdue::IdleInTransaction) => Fault::IdleInTransaction,
            Some(Overdue::Transaction) => Fault::TransactionTimeout,
            Some(Overdue::Idle) => Fault::ClientIdle,
        };
        self.fail(client, &fault);
        true
    }

    /// Has the server cancel what lasts longer than `query_timeout`: the client gets the server's own error and stays. Only
    /// where that has no effect the client is closed, and its backend with it; whether it was.
    fn end_query_late(&mut self, id: BackendId, client: ClientId) -> bool {
        let (now, patience) = (self.io.now(), self.settings.cancel_timeout);
        let link = self.backend(id).expect("the caller has looked it up");
        let (since, cancelled) = match link.late {
            Some((asked, since, cancelled)) if asked == link.asked => (since, Some(cancelled)),
            Some(_) | None => (now, None),
        };
        if now.duration_since(since) >= patience {
            link.tainted = true;
            self.fail(client, &Fault::QueryTimeout);
            return true;
        }
        // It may have come before the server had begun with the query.
        if cancelled.is_none_or(|at| now.duration_since(at) >= CANCEL_AGAIN) {
            link.late = Some((link.asked, since, now));
            if cancelled.is_none() {
                log::info!("{}: a query is cancelled (limits.query_timeout)", self.pool_name_of(id));
            }
            self.cancel_request(id);
        }
        false
    }

    fn pool_name_of(&self, id: BackendId) -> String {
        let pool = self.backends.get(id.index, id.generation).map(|backend| backend.pool);
        pool.map_or_else(String::new, |pool| self.pool_name(pool))
    }

    /// Where clients that do not read have taken the memory that all others are received into, the worst of them are
    /// closed: whatever else bounds them, this is what keeps the shard from standing still.
    fn shed_load(&mut self) {
        let now = self.io.now();
        if !self.io.is_starved() {
            self.starved_since = None;
            return;
        }
        if now.duration_since(*self.starved_since.get_or_insert(now)) < STARVED_MAX {
            return;
        }
        let weight = |client: &super::Client| {
            let queued = self.io.queued(client.connection).0;
            if queued == 0 { 0 } else { queued + client.pending.bytes() }
        };
        let mut readers: Vec<_> = self
            .clients
            .iter()
            .map(|(index, generation, client)| (weight(client), ClientId { index, generation }))
            .filter(|&(weight, _)| weight > 0)
            .collect();
        readers.sort_unstable_by_key(|&(weight, _)| std::cmp::Reverse(weight));
        readers.truncate(SHED_MAX);
        if !readers.is_empty() {
            log::warn!(
                "the arena is used up: {} clients that do not take what it holds for them are closed",
                readers.len()
            );
        }
        for (weight, id) in readers {
            let Some(connection) = self.client(id).map(|client| client.connection) else { continue };
            log::info!(
                "{}: closed, because the arena is used up and holds {weight} bytes for it",
                self.peer(connection)
            );
            self.leave(id);
        }
    }

    /// A client that has a backend, has not taken all that it was sent, and takes nothing any more is closed, if others
    /// wait for the backend.
    fn watch_reader(&mut self, id: BackendId, client: ClientId) {
        let (now, limit) = (self.io.now(), self.settings.client_stall_timeout);
        let Some(connection) = self.client(client).map(|client| client.connection) else { return };
        if limit.is_zero() || self.io.queued(connection).0 == 0 {
            self.backend(id).expect("the caller has looked it up").stalled = None;
            return;
        }
        let taken = self.io.taken(connection);
        let backend = self.backend(id).expect("the caller has looked it up");
        let since = match backend.stalled {
            Some((since, before)) if before == taken => since,
            Some(_) | None => {
                backend.stalled = Some((now, taken));
                return;
            }
        };
        let pool = backend.pool;
        let pool = self.pools.get(pool);
        let stalled = now.duration_since(since);
        if stalled >= limit && (pool.part.waiting() > 0 || pool.is_asked_for(now)) {
            let pool = format!("{}/{}", pool.key.database, pool.key.user);
            self.fail(client, &Fault::ClientStalled { pool, stalled });
        }
    }

    /// Keeps `min_size`, and forgets pools that nobody uses.
    fn scan_pools(&mut self) {
        let now = self.io.now();
        let mut from = 0;
        while let Some(id) = self.pools.next_used(from) {
            from = id.0 + 1;
            self.refill(id);
            self.thin_out(id);
            let excess = self.pools.get(id).part.excess();
            self.close_idle(id, excess);
            self.return_places(id);
            for (raw, made) in self.pools.remove_if_unused(id, now) {
                self.vectors.let_go(raw);
                self.vectors.let_go(made);
            }
        }
    }

    /// Begins to end: no more clients, and those that are here go when their transactions are done.
    pub(super) fn drain(&mut self, within: Duration) {
        let until = self.io.now() + within;
        if self.running == Running::Stopped {
            return;
        }
        self.running = Running::Draining(until);
        self.io.stop_listening();
        self.go_on_draining(within.is_zero());
    }

    fn go_on_draining(&mut self, at_once: bool) {
        let mut from = 0;
        while let Some((index, generation)) = self.clients.next_used(from) {
            from = index + 1;
            let id = ClientId { index, generation };
            let idle = match self.clients.get(index, generation).expect("just found").state {
                // Nobody will be lent a backend any more, so there is nothing to wait for.
                ClientState::Startup
                | ClientState::Moving(_)
                | ClientState::Login(_)
                | ClientState::Ready
                | ClientState::Waiting(_)
                | ClientState::Console(_) => true,
                ClientState::Piped(_) => false,
                // In Session mode a client keeps its backend; it goes when nothing is under way.
                ClientState::Linked(backend) => self.backend(backend).is_none_or(|backend| backend.pipeline.is_whole()),
            };
            if idle || at_once {
                self.fail(id, &Fault::ShuttingDown);
            }
        }
        if !self.clients.is_empty() {
            return;
        }
        let mut from = 0;
        while let Some((index, generation)) = self.backends.next_used(from) {
            from = index + 1;
            let id = BackendId { index, generation };
            let busy = matches!(
                self.backends.get(index, generation).expect("just found").state,
                BackendState::Cleaning(super::clean::Stage::Draining | super::clean::Stage::RollingBack)
            );
            if !busy || at_once {
                self.close_backend(id, Close::Flushed);
            }
        }
        if self.backends.is_empty() {
            self.running = Running::Stopped;
        }
    }
}
