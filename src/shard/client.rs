//! A client's bytes by where it is on its way, and how it ends.

use crate::ids::{BackendId, ClientId};
use crate::io::{Close, Errno, Transport};
use crate::memory::{Arena, Slice};
use crate::protocol::error::Severity;
use crate::session::fault::Fault;
use crate::session::prepared::Names;

use super::{Backend, BackendState, Client, ClientState, Discard, STASH_MAX, Shard};

/// How a client ended.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Ending {
    /// It said Terminate.
    Terminated,
    /// Its connection broke, or QCP closed it: nobody waits for answers.
    Lost,
}

impl Backend {
    /// Its client sends this many bytes.
    #[inline]
    pub(super) fn client_sends(&mut self, size: usize) {
        self.carried.bytes_in += size as u64;
        if let Some(share) = &mut self.kept.share {
            share.outdate();
        }
    }
}

impl Client {
    /// Copies what cannot be looked at yet into the client's block. `false`: there is none to be had.
    pub(super) fn keep_short(&mut self, arena: &Arena, bytes: &[u8]) -> bool {
        let kept = match self.state {
            ClientState::Waiting(_) => self.stash.add_waiting(arena, bytes),
            _ => self.stash.add_spare(arena, bytes),
        };
        kept.is_ok()
    }
}

impl<T: Transport> Shard<T> {
    #[inline]
    pub(super) fn on_client_bytes(&mut self, id: ClientId, bytes: Slice) {
        let Some(client) = self.client(id) else { return };
        match client.state {
            ClientState::Ready | ClientState::Linked(_) if !client.paused && client.pending.is_empty() => {
                match client.state {
                    ClientState::Linked(backend) => self.begin_query(backend, bytes.len()),
                    // The backend that it will be given takes the count over.
                    _ => client.count_in(bytes.len()),
                }
                self.relay_request(id, bytes);
            }
            _ => self.on_other_client_bytes(id, bytes),
        }
    }

    /// The same of a client that is not at work, or that has asked for more than can be looked at now.
    fn on_other_client_bytes(&mut self, id: ClientId, bytes: Slice) {
        let Some(client) = self.client(id) else { return };
        match client.state {
            ClientState::Linked(backend) | ClientState::Piped(backend) => {
                if let Some(backend) = self.backend(backend) {
                    backend.client_sends(bytes.len());
                }
            }
            _ => client.count_in(bytes.len()),
        }
        match self.client(id).expect("looked up above").state {
            ClientState::Ready | ClientState::Linked(_) | ClientState::Waiting(_) => self.hold_back(id, bytes),
            ClientState::Startup => self.on_startup_bytes(id, bytes),
            // Its transport keeps what comes.
            ClientState::Moving(_) => {}
            ClientState::Login(_) => self.on_login_bytes(id, bytes),
            ClientState::Piped(backend) => self.pipe_request(id, backend, bytes),
            ClientState::Console(_) => self.on_visitor_bytes(id, bytes),
        }
    }

    /// Keeps bytes until they can be looked at. What is short is copied into a block; for more than that the client is
    /// not read any further.
    pub(super) fn hold_back(&mut self, id: ClientId, bytes: Slice) {
        let client = self.clients.get_mut(id.index, id.generation).expect("the caller has looked it up");
        let short = client.pending.is_empty() && client.need == 0 && client.stash.len() + bytes.len() <= STASH_MAX;
        if short && client.keep_short(self.io.arena(), &bytes) {
            return;
        }
        let connection = client.connection;
        let pushed = client.pending.push(&mut self.nodes, bytes, false);
        self.io.receive(connection, false);
        match pushed {
            Ok(()) => self.refuse_without_room(id),
            Err(_) => self.fail(id, &Fault::NoMemory),
        }
    }

    /// A request that waits keeps the chunks that it is in as far as others can still be received from.
    pub(super) fn refuse_without_room(&mut self, id: ClientId) {
        let Some(client) = self.client(id) else { return };
        if matches!(client.state, ClientState::Waiting(_)) && !self.io.arena().has_room() {
            self.leave_queue(id);
            self.refuse_request(id, &Fault::NoMemoryToWait);
        }
    }

    /// Looks at what was held back, as far as that is possible now.
    pub(super) fn resume_client(&mut self, id: ClientId) {
        let backend = self.backend_of(id);
        if backend.and_then(|id| self.backend(id)).is_some_and(|link| link.kept.ready_held) {
            // Its answer is not complete yet.
            return;
        }
        let Some(client) = self.client(id) else { return };
        client.paused = false;
        if matches!(client.state, ClientState::Piped(_)) {
            let connection = client.connection;
            self.io.receive(connection, true);
        }
        if !matches!(
            self.client(id).map(|client| &client.state),
            Some(ClientState::Ready | ClientState::Linked(_) | ClientState::Piped(_))
        ) {
            return;
        }
        if client_is_kept(self.client(id).map(|client| (client.need, client.stash.is_empty()))) {
            let client = self.clients.get_mut(id.index, id.generation).expect("looked up above");
            match client.stash.take(self.io.scratch()) {
                Some(bytes) => self.relay_request(id, bytes),
                None => return self.fail(id, &Fault::NoMemory),
            }
        }
        loop {
            let Some(client) = self.clients.get_mut(id.index, id.generation) else { return };
            if client.paused || !matches!(client.state, ClientState::Ready | ClientState::Linked(_)) {
                return;
            }
            let Some(bytes) = client.pending.pop(&mut self.nodes) else { break };
            self.relay_request(id, bytes);
        }
        let Some(client) = self.client(id) else { return };
        let connection = client.connection;
        self.io.receive(connection, true);
    }

    /// Ends a login of a dedicated client: from here on everything is passed.
    pub(super) fn begin_pipe(&mut self, id: ClientId, backend: BackendId) {
        let Some(client) = self.client(id) else { return };
        let state = std::mem::replace(&mut client.state, ClientState::Piped(backend));
        if let ClientState::Login(login) = state {
            self.vectors.let_go(login.raw);
        }
        let client = self.clients.get_mut(id.index, id.generation).expect("looked up above");
        let held = if client.stash.is_empty() { None } else { client.stash.take(self.io.scratch()) };
        if let Some(bytes) = held {
            self.pipe_request(id, backend, bytes);
        }
        while let Some(client) = self.clients.get_mut(id.index, id.generation)
            && let Some(bytes) = client.pending.pop(&mut self.nodes)
        {
            self.pipe_request(id, backend, bytes);
        }
        self.resume_client(id);
    }

    fn pipe_request(&mut self, id: ClientId, backend: BackendId, bytes: Slice) {
        let Some(connection) = self.backend(backend).and_then(|backend| backend.connection) else { return };
        self.io.send(connection, bytes);
        if self.is_congested(connection) {
            let client = self.client(id).expect("the caller has looked it up");
            client.paused = true;
            let source = client.connection;
            self.io.receive(source, false);
            self.io.notify_drained(connection);
        }
    }

    pub(super) fn pipe_answer(&mut self, id: BackendId, client: ClientId, bytes: Slice) {
        let Some(connection) = self.client(client).map(|client| client.connection) else { return };
        if let Some(backend) = self.backend(id) {
            backend.stream.pass(&mut backend.framer, &bytes);
        }
        self.io.send(connection, bytes);
        self.pause_if_congested(id, connection);
    }

    /// Stops reading a backend whose client does not take what it has.
    pub(super) fn pause_if_congested(&mut self, id: BackendId, client: crate::ids::ConnectionId) {
        if !self.is_congested(client) {
            return;
        }
        let Some(backend) = self.backend(id) else { return };
        backend.paused = true;
        if let Some(connection) = backend.connection {
            self.io.receive(connection, false);
            self.io.notify_drained(client);
        }
    }

    /// The client has taken what it was sent.
    pub(super) fn resume_backend(&mut self, id: BackendId) {
        let Some(backend) = self.backend(id) else { return };
        if std::mem::take(&mut backend.paused)
            && let Some(connection) = backend.connection
        {
            self.io.receive(connection, true);
        }
    }

    /// Tells a client what is wrong. Where that is fatal, it is closed.
    pub(super) fn fail(&mut self, id: ClientId, fault: &Fault) {
        let Some(client) = self.client(id) else { return };
        let connection = client.connection;
        let answer = fault.answer();
        let is_stranger = matches!(client.state, ClientState::Startup | ClientState::Moving(_) | ClientState::Login(_));
        if is_stranger && fault.is_anybodys() {
            self.note_junk(connection, &answer);
        } else if log::log_enabled!(answer.log) {
            log::log!(answer.log, "{}: {}: {}", self.peer(connection), answer.code, answer.message);
        }
        if answer.severity == Severity::Error {
            let status = self.status_of(id);
            self.write_error(connection, fault, Some(status));
            return;
        }
        // Behind half a message of the server's the error would be taken for the rest of it.
        if !self.is_torn(id) {
            self.write_error(connection, fault, None);
        }
        self.dismiss(id);
    }

    /// Whether the client has got the beginning of a message of the server's, and not its end.
    fn is_torn(&self, id: ClientId) -> bool {
        let backend = self.backend_of(id).and_then(|id| self.backends.get(id.index, id.generation));
        backend.is_some_and(|backend| match backend.state {
            BackendState::Piped(_) => !backend.stream.is_whole(&backend.framer),
            _ => !backend.framer.at_boundary() && !backend.dropping,
        })
    }

    /// Answers the request that a client waits for with an error; the client stays.
    pub(super) fn refuse_request(&mut self, id: ClientId, fault: &Fault) {
        let stamp = self.stamp(self.io.now());
        let Some(client) = self.client(id) else { return };
        if matches!(client.state, ClientState::Login(_)) {
            self.fail(id, &Fault::NoServer(fault.answer().message));
            return;
        }
        client.state = ClientState::Ready;
        client.active = stamp;
        let tag = self.first_tag(id);
        self.refuse(id, fault, tag);
        self.resume_client(id);
    }

    /// Answers a request that begins with `tag` with an error. What belongs to it is discarded: in the extended protocol
    /// all up to the Sync.
    pub(super) fn refuse(&mut self, id: ClientId, fault: &Fault, tag: Option<u8>) {
        use crate::protocol::tag::frontend;
        let Some(client) = self.client(id) else { return };
        let simple = matches!(tag, Some(frontend::QUERY | frontend::FUNCTION_CALL));
        client.discard = if simple { Discard::Message } else { Discard::UntilSync };
        let connection = client.connection;
        log::info!("{}: {}", self.peer(connection), fault.answer().message);
        self.write_error(connection, fault, simple.then_some(crate::protocol::TransactionStatus::Idle));
    }

    /// The tag of the request that a client waits with.
    pub(super) fn first_tag(&self, id: ClientId) -> Option<u8> {
        let client = self.clients.get(id.index, id.generation)?;
        let stashed = client.stash.bytes().first().copied();
        stashed.or_else(|| client.pending.iter(&self.nodes).next().and_then(|bytes| bytes.first().copied()))
    }

    /// Takes a waiting client out of its queue.
    pub(super) fn leave_queue(&mut self, id: ClientId) {
        let Some(pool) = self.client(id).and_then(|client| client.pool) else { return };
        let Self { pools, waiters, .. } = self;
        pools.get_mut(pool).part.remove_waiter(waiters, id);
    }

    /// Ends a client, sending first what is queued for it.
    pub(super) fn dismiss(&mut self, id: ClientId) {
        self.end_client(id, Close::Flushed, Ending::Lost);
    }

    /// Ends a client that is gone.
    pub(super) fn leave(&mut self, id: ClientId) {
        self.end_client(id, Close::Now, Ending::Lost);
    }

    /// The client has closed its connection, or the connection is lost.
    pub(super) fn on_client_gone(&mut self, id: ClientId, error: Option<Errno>) {
        let Some(client) = self.client(id) else { return };
        if matches!(client.state, ClientState::Startup | ClientState::Login(_)) && log::log_enabled!(log::Level::Debug)
        {
            let connection = client.connection;
            let why = error.map_or_else(|| "closed".to_owned(), |error| error.to_string());
            log::debug!("{}: gone before it was logged in: {why}", self.peer(connection));
        }
        self.leave(id);
    }

    /// Ends a client that said Terminate: what it has asked for is still done, as on a direct connection.
    pub(super) fn terminate(&mut self, id: ClientId) {
        self.end_client(id, Close::Flushed, Ending::Terminated);
    }

    /// Ends a link whose invariants are broken, both sides.
    pub(super) fn break_client(&mut self, id: ClientId) {
        self.counters.broken += 1;
        if let Some(backend) = self.backend_of(id)
            && let Some(backend) = self.backend(backend)
        {
            backend.pipeline.doubt();
        }
        self.fail(id, &Fault::Broken);
    }

    fn end_client(&mut self, id: ClientId, how: Close, ending: Ending) {
        self.leave_queue(id);
        let Some(mut client) = self.clients.remove(id.index, id.generation) else { return };
        self.bytes_apart.0 += u64::from(client.bytes_in);
        self.population.leave();
        self.give_seats_back(std::mem::take(&mut client.seats));
        match &client.state {
            ClientState::Startup => {}
            ClientState::Moving(moving) => self.population.unsettle(moving.to),
            ClientState::Login(_)
            | ClientState::Ready
            | ClientState::Waiting(_)
            | ClientState::Linked(_)
            | ClientState::Piped(_)
            | ClientState::Console(_) => self.population.unsettle(self.settings.id),
        }
        let mid_message = !client.framer.at_boundary();
        client.pending.clear(&mut self.nodes);
        client.stash.clear();
        client.unnamed.clear();
        let hearing = client.hears.take();
        if let Some(mut names) = client.names.take() {
            let mut names = Names::new(names.bytes_mut(), client.names_used as usize);
            while let Some(number) = names.take_any() {
                self.statements.let_go(number);
            }
        }
        self.vectors.let_go(client.wanted);
        self.vectors.let_go(client.startup);
        self.io.close(client.connection, how);
        if let Some(pool) = client.pool {
            self.pools.get_mut(pool).clients -= 1;
        }
        match client.state {
            ClientState::Linked(backend) => self.unlink(backend, mid_message, ending),
            ClientState::Piped(backend) => self.close_backend(backend, Close::Flushed),
            ClientState::Login(login) => {
                if let super::login::Stage::Applying(backend) = login.stage {
                    self.unlink(backend, false, ending);
                }
                self.drop_login(&login);
            }
            ClientState::Console(_) => self.end_visit(id),
            ClientState::Startup | ClientState::Moving(_) | ClientState::Ready | ClientState::Waiting(_) => {}
        }
        self.check_queue.retain(|&waiting| waiting != id);
        if let Some(hearing) = hearing {
            self.leave_listener(id, &hearing);
        }
    }

    /// A backend whose client is gone.
    fn unlink(&mut self, id: BackendId, mid_message: bool, ending: Ending) {
        let Some(backend) = self.backend(id) else { return };
        if !matches!(backend.state, BackendState::Linked(_)) {
            return;
        }
        if mid_message {
            // Not even a Terminate can follow: the server would take it for the rest of the message.
            self.close_backend(id, Close::Now);
            return;
        }
        self.clean(id, ending == Ending::Lost);
    }
}

/// Whether a request waits in the stash, rather than half a message.
fn client_is_kept(state: Option<(u32, bool)>) -> bool {
    matches!(state, Some((0, false)))
}
