//! Joining a client and a backend, and parting them: checkout, replay, checkin. The only writer of who has whom.

use crate::control::report::metrics::Measured;
use crate::ids::{BackendId, ClientId};
use crate::io::{Close, Transport};
use crate::pool::{Checkin, Checkout};
use crate::protocol::error::field;
use crate::protocol::{TransactionStatus, reader};
use crate::session::RelayMode;
use crate::session::fault::{Fault, Held};
use crate::session::parameters::VectorId;

use super::clean::Stage;
use super::{BackendState, ClientState, Purpose, Shard, Stamp, Tick, Unnamed};

/// Mark of the query that replays a client's settings.
pub(super) const MARK_REPLAY: u32 = 2;

impl<T: Transport> Shard<T> {
    /// The client needs a backend: it has one when this returns, or it waits, or it is gone and knows why. Errors: there is none to be had, and the
    /// client has to be told.
    pub(super) fn checkout(&mut self, id: ClientId) -> Result<(), Fault> {
        // A retired pool lends nothing, nor does one whose server does not suit: its clients belong to another by now.
        if self.has_leaving && !self.rehome(id) {
            return Ok(());
        }
        let now = self.io.now();
        let own = self.settings.id;
        let Some(pool) = self.client(id).and_then(|client| client.pool) else { return Ok(()) };
        loop {
            let Self { pools, waiters, backends, clients, .. } = self;
            let wanted = clients.get(id.index, id.generation).map(|client| client.wanted);
            let entry = pools.get_mut(pool);
            let queue_max = entry.homes.queue_share(entry.settings.pool.max_queue, own);
            // One that has this client's settings needs none set.
            let suits =
                |idle: BackendId| backends.get(idle.index, idle.generation).map(|backend| backend.has) == wanted;
            match entry.part.checkout_like(waiters, id, now, queue_max, suits) {
                Checkout::Ready(backend) => {
                    let expired = self.backends.get(backend.index, backend.generation);
                    if expired.is_some_and(|backend| self.is_expired(backend)) && self.can_replace(pool) {
                        self.backend(backend).expect("an idle backend is there").state =
                            BackendState::Cleaning(Stage::Done);
                        self.close_backend(backend, Close::Flushed);
                        continue;
                    }
                    self.serve(id, backend);
                }
                Checkout::Wait => {
                    let waits = self.tick();
                    let client = self.client(id).expect("looked up above");
                    client.noticed = false;
                    match &mut client.state {
                        ClientState::Ready => client.state = ClientState::Waiting(waits),
                        ClientState::Login(login) => login.waits = Some(waits),
                        _ => {}
                    }
                    self.refill(pool);
                }
                Checkout::QueueFull => {
                    let entry = self.pools.get(pool);
                    let name = format!("{}/{}", entry.key.database, entry.key.user);
                    let waiting = entry.part.waiting();
                    return Err(Fault::QueueFull { pool: name, waiting, held: self.held(pool) });
                }
            }
            return Ok(());
        }
    }

    /// Whether a backend that is closed can be had again.
    pub(super) fn can_replace(&self, pool: crate::ids::PoolId) -> bool {
        let part = &self.pools.get(pool).part;
        part.refill() == crate::pool::Refill::Free || part.open() > 1
    }

    /// A lent backend for a client that waits for it, whatever for.
    fn serve(&mut self, id: ClientId, backend: BackendId) {
        match self.client(id).map(|client| &client.state) {
            Some(ClientState::Login(_)) => {
                self.count_wait_of_login(id);
                self.backend(backend).expect("a lent backend is there").state = BackendState::Cleaning(Stage::Done);
                self.on_login_backend(id, backend);
            }
            Some(ClientState::Ready | ClientState::Waiting(_)) => self.link(id, backend),
            Some(
                ClientState::Startup
                | ClientState::Moving(_)
                | ClientState::Linked(_)
                | ClientState::Piped(_)
                | ClientState::Console(_),
            )
            | None => {
                unreachable!("only a client that waits is in the queue")
            }
        }
    }

    /// A login is given a backend, perhaps after a wait.
    fn count_wait_of_login(&mut self, id: ClientId) {
        let now = self.tick();
        let Some(client) = self.client(id) else { return };
        let ClientState::Login(login) = &mut client.state else { return };
        let (since, pool) = (login.waits.take(), client.pool.expect("a login that waits has a pool"));
        if let Some(since) = since {
            self.pools.get_mut(pool).totals.wait.record_measured(Measured::of_us(since.us_until(now)));
        }
    }

    /// Makes them one, for a request.
    fn link(&mut self, id: ClientId, backend: BackendId) {
        self.join(id, backend);
        let now = self.tick();
        let client = self.client(id).expect("the caller has looked it up");
        let waited = match std::mem::replace(&mut client.state, ClientState::Linked(backend)) {
            ClientState::Waiting(since) => Some(since.us_until(now)),
            _ => None,
        };
        let (wanted, hears) = (client.wanted, client.hears.is_some());
        let bytes_in = std::mem::take(&mut client.bytes_in);
        let link = self.backend(backend).expect("the caller has looked it up");
        (link.asked, link.begun) = (now, now);
        link.carried.links += 1;
        link.carried.bytes_in += u64::from(bytes_in);
        link.waited = waited;
        link.kept.hears = hears;
        // A reload may have changed the mode: others' statements, by names of ours, are not for a client that names its own.
        if link.mode == RelayMode::Session && link.has_statements() && !self.forget_before(backend) {
            self.fail(id, &Fault::NoMemory);
            return;
        }
        let link = self.backend(backend).expect("looked up above");
        let (has, unset) = (link.has, !link.unset.is_empty());
        if has != wanted || link.touched || unset && self.has_unset(id, backend) {
            if !self.ask_settings(backend, wanted, MARK_REPLAY) {
                self.fail(id, &Fault::NoMemory);
                return;
            }
            let doubtful = self.vectors.is_doubtful(has) || self.vectors.is_doubtful(wanted);
            let link = self.backends.get_mut(backend.index, backend.generation).expect("looked up above");
            link.kept.proving = doubtful && link.pipeline.is_busy();
            if !link.kept.proving {
                link.has = self.vectors.hold(wanted);
                self.vectors.let_go(has);
            }
        }
    }

    /// What the client's settings were to be is what they are: its request, which has waited for that, goes on.
    pub(super) fn on_replayed(&mut self, id: BackendId) {
        let Some(client) = self.client_of(id) else { return };
        let Some(wanted) = self.client(client).map(|client| client.wanted) else { return };
        let link = self.backends.get_mut(id.index, id.generation).expect("a linked backend is there");
        if std::mem::take(&mut link.kept.proving) {
            let held = self.vectors.hold(wanted);
            self.vectors.let_go(std::mem::replace(&mut link.has, held));
        }
    }

    /// The server does not give the client its settings, and nothing of the client's has gone there. Where those of another
    /// were to be undone for it, that may be why: that backend is brought back to what it was after its login, and the
    /// client gets what there is then. Otherwise it reads why, and stays.
    #[cold]
    pub(super) fn on_replay_refused(&mut self, id: BackendId, client_id: ClientId, message: &[u8]) {
        let Some(link) = self.backend(id) else { return };
        let (has, served, fatal, pool) = (link.has, link.served, link.fatal, link.pool);
        let Some(client) = self.client(client_id) else { return };
        let (connection, wanted) = (client.connection, client.wanted);
        // Nothing takes back that a session has had temporary tables.
        let marred = served && self.vectors.get(wanted, "temp_buffers").is_some() && self.can_replace(pool);
        let is_own = has == VectorId::NEUTRAL && !marred && !fatal;
        let text = reader::fields(message).get(field::MESSAGE).map(String::from_utf8_lossy).unwrap_or_default();
        log::info!("{}: the settings of {} were refused: {text}", self.pool_name(pool), self.peer(connection));
        self.backend(id).expect("looked up above").tainted |= marred;
        self.clean(id, false);
        let client = self.client(client_id).expect("looked up above");
        client.state = ClientState::Ready;
        if is_own {
            return self.refuse_for_settings(client_id, message);
        }
        match self.checkout(client_id) {
            Ok(()) => self.resume_client(client_id),
            Err(fault) => self.refuse_request(client_id, &fault),
        }
    }

    /// Says on the backend's side whom it serves.
    pub(super) fn join(&mut self, id: ClientId, backend: BackendId) {
        let now = self.io.now();
        let mode = self.client(id).expect("the caller has looked it up").mode;
        let backend = self.backend(backend).expect("the caller has looked it up");
        assert!(backend.pipeline.is_whole(), "only a whole backend is lent");
        backend.mode = mode;
        backend.lent_at = now;
        assert!(backend.cancels == 0, "a late cancel must not hit the next client's query");
        assert!(
            matches!(backend.state, BackendState::Idle | BackendState::Cleaning(Stage::Done)),
            "a backend has one client at most"
        );
        backend.state = BackendState::Linked(id);
        backend.unnamed = Unnamed::Others;
        backend.kept.deallocates = None;
        backend.stalled = None;
    }

    /// Behind a ReadyForQuery: takes the backend back if nothing stands against it. DESIGN's release rule; each line
    /// is one of its conditions.
    #[inline]
    pub(super) fn try_release(&mut self, id: BackendId) {
        let backend = self.backends.get(id.index, id.generation).expect("the caller has looked it up");
        let BackendState::Linked(client_id) = backend.state else { return };
        let client = self.clients.get(client_id.index, client_id.generation).expect("a linked client is there");
        let mode = backend.mode;
        let kept = mode == RelayMode::Session && self.running == super::Running::Yes;
        let connection = backend.connection.expect("a linked backend is connected");
        let held = backend.kept.ready_held;
        // Nothing under way, and what comes next waits for the answer that is held: that it comes must not wait for that.
        let next = client.framer.at_boundary() // no byte of a further request
            && client.stash.is_empty() // nothing unparsed
            && client.pending.is_empty();
        let whole = backend.pipeline.is_whole() // answered, Idle, synced, no COPY, nothing uncertain
            && (next || held)
            && backend.framer.at_boundary()
            && backend.stash.is_empty()
            && self.io.queued(connection).0 == 0 // nothing unsent
            && backend.cancels == 0
            && !backend.fatal // its end follows, and the client has been told so
            && backend.unnamed != Unnamed::Parsed; // the one pin there is so far
        if !whole && self.io.queued(connection).0 > 0 {
            self.io.notify_drained(connection);
        }
        // While memory is short, who has not taken its answer keeps the backend: so no more clients hold unsent answers
        // than there are backends, beyond those that did when it became short.
        let behind = client.connection;
        if whole && !kept && self.io.arena().is_tight() && self.io.queued(behind).0 > 0 {
            self.io.notify_drained(behind);
            return;
        }
        if !whole || kept || !matches!(client.state, ClientState::Linked(_)) {
            return;
        }
        self.tell_held_by(id);
        self.go_on_to_ready(id);
        if !matches!(self.client(client_id).map(|client| &client.state), Some(ClientState::Linked(_))) {
            return;
        }
        let backend = self.backends.get(id.index, id.generation).expect("looked up above");
        if held && !backend.kept.ready_held {
            // It has been given, and whatever came next is under way.
            return;
        }
        if !backend.kept.is_clean() {
            // Something of the session stays here, or may: the server is asked, once.
            let unanswered = backend.kept.is_unanswered(backend.asked);
            let suspects = !backend.kept.suspects.is_empty() && !unanswered;
            if backend.kept.asked.is_none() && suspects && mode != RelayMode::Session {
                self.begin_question(id);
            } else if backend.kept.asked.is_none() && mode != RelayMode::Session && !self.go_on_sharing(id) {
                let link = self.backend(id).expect("looked up above");
                link.kept.refused |= link.kept.ready_waits;
                self.note_pinned(id);
                self.go_on_to_ready(id);
            }
            return;
        }
        self.hide_foreign(id);
        if self.backend(id).expect("looked up above").kept.hears {
            self.abandon_move(client_id);
        }
        let link = self.backend(id).expect("looked up above");
        link.kept.forget();
        link.served = true;
        let (pool, asked) = (link.pool, link.asked);
        let active = Stamp::new(asked);
        let moves = self.has_leaving && self.pools.get(pool).is_left();
        let client = self.client(client_id).expect("looked up above");
        client.state = ClientState::Ready;
        client.active = active;
        client.paused = false;
        let connection = client.connection;
        self.io.receive(connection, true);
        if mode == RelayMode::Session {
            self.clean(id, false);
        } else {
            self.give_back(id);
        }
        if self.running != super::Running::Yes {
            self.fail(client_id, &Fault::ShuttingDown);
        } else if moves {
            self.rehome(client_id);
        }
    }

    /// A clean backend without a client: it is handed on when the event is through.
    #[inline]
    pub(super) fn give_back(&mut self, id: BackendId) {
        let Some(backend) = self.backends.get_mut(id.index, id.generation) else { return };
        assert!(backend.pipeline.is_whole(), "only a whole backend goes back");
        if !self.vectors.idle_session(backend.has).is_zero() {
            return self.end_idle_timeout(id);
        }
        backend.state = BackendState::Cleaning(Stage::Done);
        self.returned.push_back(id);
    }

    /// A backend that was given back goes to whoever waits, or becomes idle.
    pub(super) fn hand_on(&mut self, id: BackendId) {
        let now = self.io.now();
        let Some(backend) = self.backend(id) else { return };
        if !matches!(backend.state, BackendState::Cleaning(Stage::Done)) {
            return;
        }
        // A probe is not a use.
        let probed = std::mem::take(&mut backend.probing);
        if !probed {
            backend.used = now;
        }
        backend.paused = false;
        if probed {
            self.confirm_role(id);
        }
        let Some(backend) = self.backend(id) else { return };
        // The server's last word may have come behind the ReadyForQuery, in the same bytes: whoever got this backend would
        // be hung up on.
        if backend.tainted || backend.fatal {
            self.close_backend(id, Close::Flushed);
            return;
        }
        let backend = self.backend(id).expect("looked up above");
        let (pool, purpose, connection) = (backend.pool, backend.purpose, backend.connection);
        if purpose != Purpose::Pool || self.running != super::Running::Yes {
            self.close_backend(id, Close::Flushed);
            return;
        }
        let crowded = !self.room_claims.is_empty() && self.makes_room(pool);
        let backend = self.backends.get(id.index, id.generation).expect("looked up above");
        let entry = self.pools.get(pool);
        // The last one that cannot be had again stays: it can be asked what its server is.
        let needless = entry.clients == 0 && !entry.unfit || self.can_replace(pool);
        let paused = entry.part.is_paused() && needless;
        let unwanted = entry.retired || entry.part.excess() > 0 || paused;
        if unwanted || crowded || self.is_expired(backend) && self.can_replace(pool) {
            self.close_backend(id, Close::Flushed);
            return;
        }
        self.io.receive(connection.expect("a clean backend is connected"), true);
        if let Some(to) = self.claimant(pool) {
            self.send_backend(id, to);
            return;
        }
        let Self { pools, waiters, .. } = self;
        let entry = pools.get_mut(pool);
        match entry.part.checkin(waiters, id) {
            Checkin::Idle => self.backend(id).expect("looked up above").state = BackendState::Idle,
            Checkin::HandTo(client) => {
                self.serve(client, id);
                self.resume_client(client);
            }
        }
    }

    /// What keeps this part's backends, for those who wait for one.
    pub(super) fn held(&self, pool: crate::ids::PoolId) -> Held {
        let now = self.io.now();
        let mut held = Held::default();
        for (_, _, backend) in self.backends.iter().filter(|(_, _, backend)| backend.pool == pool) {
            if !matches!(backend.state, BackendState::Linked(_)) {
                continue;
            }
            let idle = !backend.pipeline.is_client_busy() && backend.pipeline.status() == TransactionStatus::Idle;
            let reasons = backend.kept.pin_names();
            if !idle || reasons.is_empty() {
                let since = match reasons.is_empty() {
                    true => now.duration_since(backend.lent_at),
                    false => backend.begun.until(Tick::new(self.started, now)),
                };
                held.oldest = held.oldest.max(Some(since));
            }
            held.pinned += usize::from(!reasons.is_empty());
            let news: Vec<String> = reasons.into_iter().filter(|reason| !held.reasons.contains(reason)).collect();
            held.reasons.extend(news);
        }
        held
    }

    /// What the last ReadyForQuery on the client's backend said; Idle without one.
    pub(super) fn status_of(&self, id: ClientId) -> TransactionStatus {
        let backend = self.backend_of(id).and_then(|id| self.backends.get(id.index, id.generation));
        backend.map_or(TransactionStatus::Idle, |backend| backend.pipeline.status())
    }
}
