//! A backend's life: resolved, connected, logged in, idle, closed.

use std::net::SocketAddr;

use crate::auth::settings::Method;
use crate::ids::{BackendId, ClientId, PoolId};
use crate::io::{Close, Errno, SocketAddress, Transport};
use crate::memory::Slice;
use crate::protocol::error::field;
use crate::protocol::reader::{self, Authentication};
use crate::protocol::startup::Version;
use crate::protocol::tag::backend as tag;
use crate::protocol::{SqlState, Step};
use crate::session::fault::Fault;

use super::pools::Trouble;
use super::room::Seat;
use super::servers::{ROLE_PARAMETER, role_of};
use super::{Backend, BackendState, ClientState, Owner, Purpose, Server, Shard};

/// Largest message of a server's during a login that is looked at whole.
const LOGIN_MESSAGE_MAX: usize = 16 * 1024;

impl<T: Transport> Shard<T> {
    /// Begins to open a backend; its place in the pool (or beside it) has been taken. `None`: the table is full, and the
    /// place is given back.
    pub(super) fn open_backend(
        &mut self,
        pool: PoolId,
        purpose: Purpose,
        checks: Option<ClientId>,
        seat: Option<Seat>,
    ) -> Option<BackendId> {
        let now = self.io.now();
        let mut backend = Backend::new(pool, purpose, self.statements_max_of(pool), now);
        backend.checks = checks;
        backend.seat = seat;
        backend.deadline = Some(now + self.settings.connect_timeout);
        let Ok((index, generation)) = self.backends.insert(backend) else {
            match purpose {
                Purpose::Pool => self.pools.get_mut(pool).part.open_failed(now, 0, false),
                Purpose::Check => self.checks -= 1,
                Purpose::Dedicated | Purpose::Listen | Purpose::Watch => {}
            }
            self.stop_asking(pool);
            return None;
        };
        let id = BackendId { index, generation };
        self.pools.get_mut(pool).backends += 1;
        match self.pools.get(pool).key.server.clone() {
            Server::Unix(path) => self.connect(id, SocketAddress::Unix(path)),
            Server::Tcp(host, port) => match host.parse() {
                Ok(address) => self.connect(id, SocketAddress::Tcp(SocketAddr::new(address, port))),
                Err(_) => match self.remembered_addresses(&Server::Tcp(host.clone(), port)) {
                    Some(addresses) => self.connect_to(id, addresses),
                    None => self.io.resolve(&host, port, Owner::Backend(id).pack()),
                },
            },
        }
        Some(id)
    }

    pub(super) fn on_resolved(&mut self, ticket: u64, addresses: Result<Vec<SocketAddr>, String>) {
        if self.on_name_resolved(ticket, &addresses) {
            return;
        }
        let Some(Owner::Backend(id)) = Owner::unpack(ticket) else { return };
        let Some(pool) = self.backend(id).map(|backend| backend.pool) else { return };
        match addresses {
            Ok(addresses) => {
                let server = self.pools.get(pool).key.server.clone();
                self.learn_addresses(&server, &addresses);
                self.connect_to(id, addresses);
            }
            Err(why) => self.on_backend_gone(id, &why),
        }
    }

    fn connect_to(&mut self, id: BackendId, mut addresses: Vec<SocketAddr>) {
        let Some(backend) = self.backend(id) else { return };
        addresses.reverse();
        backend.addresses = addresses;
        self.connect_next(id, "the host name has no address");
    }

    fn connect_next(&mut self, id: BackendId, why: &str) {
        let Some(backend) = self.backend(id) else { return };
        match backend.addresses.pop() {
            Some(address) => self.connect(id, SocketAddress::Tcp(address)),
            None => self.on_backend_gone(id, why),
        }
    }

    pub(super) fn connect(&mut self, id: BackendId, address: SocketAddress) {
        match self.io.connect(&address) {
            Ok(connection) => {
                self.io.set_owner(connection, Owner::Backend(id).pack());
                let backend = self.backend(id).expect("the caller has looked it up");
                backend.connection = Some(connection);
                backend.address = Some(address);
                backend.state = BackendState::Connecting;
            }
            Err(error) => self.connect_next(id, &error.to_string()),
        }
    }

    pub(super) fn on_backend_connected(&mut self, id: BackendId, error: Option<Errno>) {
        let Some(backend) = self.backend(id) else { return };
        if let Some(error) = error {
            backend.connection = None;
            self.connect_next(id, &error.to_string());
            return;
        }
        if !self.begin_encryption(id) {
            self.begin_backend_login(id);
        }
    }

    /// The connection is as it is to be: the login begins.
    pub(super) fn begin_backend_login(&mut self, id: BackendId) {
        let Some(backend) = self.backend(id) else { return };
        backend.state = BackendState::LoggingIn;
        let connection = backend.connection.expect("it has just been connected");
        let (pool, checks, purpose) = (backend.pool, backend.checks, backend.purpose);
        if purpose == Purpose::Dedicated {
            let login = checks.and_then(|client| self.client(client));
            let packet = login.and_then(|client| match &mut client.state {
                // Kept for a second try, with TLS or without.
                ClientState::Login(login) => login.packet.clone(),
                _ => None,
            });
            let sent = packet.and_then(|packet| self.io.scratch().copy(&packet));
            match sent {
                Some(bytes) => self.io.send(connection, bytes),
                None => self.on_backend_gone(id, "the client is gone"),
            }
            return;
        }
        // Neutral: what one client asks for must not become the value that another's RESET returns to.
        let pool = self.pools.get(pool);
        let own = pool.settings.rules.credentials.as_ref().and_then(|credentials| credentials.user.as_deref());
        let user: Box<str> = own.map_or_else(|| pool.key.user.clone(), Into::into);
        let database = pool.settings.server_database.clone();
        let sent = self.write(connection, user.len() + database.len() + 64, |writer| {
            let parameters = [(&b"user"[..], user.as_bytes()), (b"database", database.as_bytes())];
            writer.startup_message(Version::V3_0, parameters).expect("the room was asked for");
        });
        if !sent {
            self.on_backend_gone(id, "the arena is used up");
        }
    }

    #[inline]
    pub(super) fn on_backend_bytes(&mut self, id: BackendId, bytes: Slice) {
        let Some(backend) = self.backend(id) else { return };
        backend.carried.bytes_out += bytes.len() as u64;
        match backend.state {
            BackendState::Linked(_) | BackendState::Cleaning(_) => self.relay_answer(id, bytes),
            // Its transport keeps what comes.
            BackendState::Moving(_) => {}
            BackendState::Piped(client) => self.pipe_answer(id, client, bytes),
            BackendState::LoggingIn | BackendState::Idle | BackendState::LookingUp(_) | BackendState::Listening(_) => {
                self.on_whole_messages(id, bytes)
            }
            BackendState::Connecting => self.on_ssl_reply(id, &bytes),
            BackendState::Resolving => {}
        }
    }

    /// Bytes that have been here before, and are for what the backend is doing now.
    pub(super) fn on_rest_of_bytes(&mut self, id: BackendId, bytes: Slice) {
        if let Some(backend) = self.backend(id) {
            backend.carried.bytes_out = backend.carried.bytes_out.saturating_sub(bytes.len() as u64);
        }
        self.on_backend_bytes(id, bytes);
    }

    /// Takes the messages of a login, or of an idle backend, one by one. When one of them changes what the backend is
    /// doing, the rest goes that way.
    fn on_whole_messages(&mut self, id: BackendId, bytes: Slice) {
        let backend = self.backends.get_mut(id.index, id.generation).expect("the caller has looked it up");
        let bytes = if backend.stash.is_empty() {
            bytes
        } else {
            let added = backend.stash.add(self.io.arena(), &bytes);
            match added.ok().and_then(|()| backend.stash.take(self.io.scratch())) {
                Some(whole) => whole,
                None => return self.on_backend_gone(id, "the arena is used up"),
            }
        };
        let mut at = 0;
        loop {
            let Some(backend) = self.backend(id) else { return };
            let whole = matches!(
                backend.state,
                BackendState::LoggingIn | BackendState::Idle | BackendState::LookingUp(_) | BackendState::Listening(_)
            );
            if !whole {
                if at < bytes.len() {
                    self.on_rest_of_bytes(id, bytes.part(at, bytes.len()));
                }
                return;
            }
            match backend.framer.next(&bytes[at..], |_, size| (size as usize).min(LOGIN_MESSAGE_MAX)) {
                Ok(Step::Message { tag, size, available }) => {
                    let message = bytes.part(at, at + available);
                    at += available;
                    if available < size as usize && tag != tag::ERROR_RESPONSE && tag != tag::NOTICE_RESPONSE {
                        self.on_backend_gone(id, "it sent a message that is too long for a login");
                        return;
                    }
                    self.on_own_message(id, tag, &message);
                }
                Ok(Step::Rest { length, .. }) => at += length,
                Ok(Step::Incomplete { .. }) => {
                    let backend = self.backends.get_mut(id.index, id.generation).expect("looked up above");
                    if backend.stash.add(self.io.arena(), &bytes[at..]).is_err() {
                        self.on_backend_gone(id, "the arena is used up");
                    }
                    return;
                }
                Ok(Step::End) => return,
                Err(malformed) => return self.on_backend_gone(id, &malformed.to_string()),
            }
        }
    }

    fn on_own_message(&mut self, id: BackendId, tag: u8, message: &Slice) {
        let Some(backend) = self.backend(id) else { return };
        if matches!(backend.state, BackendState::Idle) {
            if backend.purpose == Purpose::Watch {
                self.on_watched(id, tag, message);
                return;
            }
            match tag {
                tag::NOTICE_RESPONSE | tag::NOTIFICATION_RESPONSE => {}
                tag::PARAMETER_STATUS => self.note_parameter(id, message),
                // Most likely 57P01; the end of the connection follows.
                _ => self.close_backend(id, Close::Now),
            }
            return;
        }
        if let BackendState::Listening(slot) = backend.state {
            self.on_listener_message(id, slot, tag, message);
            return;
        }
        if let BackendState::LookingUp(client) = backend.state {
            self.on_looked_up(id, client, tag, message);
            return;
        }
        match tag {
            tag::AUTHENTICATION => match reader::authentication(message) {
                Ok(what) => self.on_authentication(id, &what, message),
                Err(malformed) => self.on_backend_gone(id, &malformed.to_string()),
            },
            tag::PARAMETER_STATUS => {
                if let Ok(status) = reader::parameter_status(message) {
                    self.on_login_parameter(id, status.name, status.value);
                }
                self.pass_login_message(id, message);
            }
            tag::BACKEND_KEY_DATA => {
                if let Ok(key) = reader::backend_key_data(message)
                    && let Ok(secret) = key.key.try_into()
                {
                    backend.process_id = key.process_id;
                    backend.key = u32::from_be_bytes(secret);
                }
                self.pass_login_key(id);
            }
            tag::READY_FOR_QUERY => self.on_logged_in(id, message),
            tag::NOTICE_RESPONSE => {
                if let Some(connection) = self.checked_client(id) {
                    self.io.send(connection, message.clone());
                }
            }
            tag::ERROR_RESPONSE => self.on_refused(id, message),
            tag::NEGOTIATE_PROTOCOL_VERSION => {}
            _ => self.on_backend_gone(id, "it sent a message that has no place in a login"),
        }
    }

    /// The connection of the client whose login this backend checks.
    fn checked_client(&self, id: BackendId) -> Option<crate::ids::ConnectionId> {
        let client = self.backends.get(id.index, id.generation)?.checks?;
        self.clients.get(client.index, client.generation).map(|client| client.connection)
    }

    fn on_authentication(&mut self, id: BackendId, what: &Authentication<'_>, message: &Slice) {
        if self.logs_in_itself(id) {
            self.on_own_authentication(id, what);
            return;
        }
        let backend = self.backend(id).expect("the caller has looked it up");
        let challenged = backend.challenged;
        if *what == Authentication::Ok {
            if !challenged {
                self.on_first_word(id, false);
            }
            let Some(backend) = self.backend(id) else { return };
            let Some(client) = backend.checks else { return };
            let Some(connection) = self.checked_client(id) else { return };
            let trusts = self
                .backend(id)
                .map(|backend| backend.pool)
                .is_some_and(|pool| self.pools.get(pool).settings.rules.method == Method::Trust);
            if !challenged && !trusts && !self.is_local(connection) {
                self.disown(id);
                self.fail(client, &Fault::TrustFromAfar);
                return;
            }
            self.io.send(connection, message.clone());
            if challenged {
                self.note_success(client);
            }
            if let Err(fault) = self.count_names(client) {
                self.disown(id);
                self.fail(client, &fault);
            }
            return;
        }
        backend.challenged = true;
        if !challenged {
            self.on_first_word(id, true);
        }
        let asks = !matches!(what, Authentication::SaslFinal { .. });
        let client = self.backend(id).and_then(|backend| backend.checks);
        if asks && let Some(login) = client.and_then(|client| self.login(client)) {
            login.answers_due += 1;
        }
        // SCRAM-SHA-256-PLUS binds to the TLS channel, and the client's is not the server's.
        if let Authentication::Sasl { mechanisms } = what
            && mechanisms.offers(b"SCRAM-SHA-256-PLUS")
        {
            let Some(connection) = self.checked_client(id) else { return };
            self.write(connection, 64, |writer| {
                writer.authentication_sasl(&[b"SCRAM-SHA-256"]).expect("the room was asked for");
            });
            if let Some(login) = client.and_then(|client| self.login(client)) {
                login.unbound = true;
            }
        } else if let Some(connection) = self.checked_client(id) {
            self.io.send(connection, message.clone());
        }
        if let Some(client) = client {
            self.go_on_with_held(client);
        }
    }

    /// The client whose login a backend checks is told by the caller that it cannot stay. What the pool can use goes on.
    fn disown(&mut self, id: BackendId) {
        let Some(backend) = self.backend(id) else { return };
        backend.checks = None;
        if backend.purpose == Purpose::Dedicated {
            self.close_backend(id, Close::Now);
        }
    }

    fn on_login_parameter(&mut self, id: BackendId, name: &[u8], value: &[u8]) {
        let Some(backend) = self.backend(id) else { return };
        if name == ROLE_PARAMETER {
            backend.role = Some(role_of(value));
        }
        if backend.purpose == Purpose::Dedicated {
            return;
        }
        let (Ok(name), Ok(value)) = (std::str::from_utf8(name), std::str::from_utf8(value)) else { return };
        backend.reported.push((name.into(), value.into()));
    }

    fn pass_login_message(&mut self, id: BackendId, message: &Slice) {
        let dedicated = self.backend(id).is_some_and(|backend| backend.purpose == Purpose::Dedicated);
        if dedicated && let Some(connection) = self.checked_client(id) {
            self.io.send(connection, message.clone());
        }
    }

    /// A dedicated client is given QCP's own key, by which its cancel requests find the way.
    fn pass_login_key(&mut self, id: BackendId) {
        let Some(backend) = self.backend(id) else { return };
        let (Some(id), Purpose::Dedicated) = (backend.checks, backend.purpose) else { return };
        let process_id = self.process_id(id);
        let Some(client) = self.client(id) else { return };
        let (connection, secret, long_key) = (client.connection, client.secret, client.long_key);
        self.write(connection, 64, |writer| {
            let key = if long_key { &secret[..] } else { &secret[..4] };
            writer.backend_key_data(process_id, key).expect("the room was asked for");
        });
    }

    fn on_logged_in(&mut self, id: BackendId, message: &Slice) {
        let now = self.io.now();
        let Some(backend) = self.backend(id) else { return };
        backend.deadline = None;
        backend.used = now;
        // No client gets them.
        let bytes_out = std::mem::take(&mut backend.carried.bytes_out);
        let (pool, purpose, checks) = (backend.pool, backend.purpose, backend.checks.take());
        let took = now.duration_since(backend.born);
        self.pools.get_mut(pool).totals.connect.record(took);
        self.bytes_apart.1 += bytes_out;
        let backend = self.backend(id).expect("looked up above");
        // All of them at once: a client that comes meanwhile must not be told half.
        let reported = std::mem::take(&mut backend.reported);
        if !reported.is_empty() && self.pools.get(pool).parameters != reported {
            self.pools.get_mut(pool).learn_parameters(reported);
            if let Some((of, _)) = self.pools.get_mut(pool).greeting.take() {
                self.vectors.let_go(of);
            }
        }
        if let Some(trouble) = self.pools.get_mut(pool).trouble.take() {
            let down = now.duration_since(trouble.since).as_secs_f64();
            log::info!("{}: connected again after {down:.1} s", self.pool_name(pool));
        }
        self.note_login_role(id);
        if purpose == Purpose::Watch {
            self.begin_watching(id);
            return;
        }
        if purpose == Purpose::Dedicated {
            let Some(client) = checks else { return self.close_backend(id, Close::Now) };
            // Replication goes where it is sent.
            let replicates = self.login(client).is_some_and(|login| login.replication);
            if !replicates && !self.may_serve(pool) {
                self.refuse_server(client);
                self.close_backend(id, Close::Now);
                return;
            }
            self.backend(id).expect("looked up above").state = BackendState::Piped(client);
            let Some(connection) = self.client(client).map(|client| client.connection) else { return };
            self.io.send(connection, message.clone());
            self.begin_pipe(client, id);
            return;
        }
        let mut purpose = purpose;
        let seat = if purpose == Purpose::Check { self.begin_open(pool) } else { None };
        let part = &mut self.pools.get_mut(pool).part;
        match purpose {
            Purpose::Pool => part.opened(),
            Purpose::Check if seat.is_some() => {
                part.opened();
                let backend = self.backend(id).expect("looked up above");
                backend.purpose = Purpose::Pool;
                backend.seat = seat;
                purpose = Purpose::Pool;
                self.checks -= 1;
            }
            Purpose::Check | Purpose::Dedicated | Purpose::Listen | Purpose::Watch => {}
        }
        debug_assert!(purpose != Purpose::Dedicated);
        let backend = self.backend(id).expect("looked up above");
        backend.state = BackendState::Cleaning(super::clean::Stage::Done);
        backend.pipeline.reset();
        match checks {
            Some(client) if self.stays_at(client) => self.on_login_backend(client, id),
            Some(_) | None => self.give_back(id),
        }
    }

    /// The server refuses a login: its own words go to the client whose login it is, or to all who wait.
    fn on_refused(&mut self, id: BackendId, message: &Slice) {
        let fields = reader::fields(message);
        let text = String::from_utf8_lossy(fields.get(field::MESSAGE).unwrap_or_default()).into_owned();
        let is_own = self.logs_in_itself(id);
        let backend = self.backend(id).expect("the caller has looked it up");
        if !backend.challenged && self.try_other_way(id) {
            return;
        }
        let backend = self.backend(id).expect("the caller has looked it up");
        let pool = backend.pool;
        // Somebody else may take the client in, where this one takes nobody.
        let elsewhere =
            fields.code() == Some(SqlState::CANNOT_CONNECT_NOW) && self.pools.get(pool).settings.is_routed();
        if elsewhere {
            self.on_backend_gone(id, &text);
            return;
        }
        let backend = self.backend(id).expect("looked up above");
        let checks = backend.checks.take();
        let rewritten = if is_own { self.own_refusal(pool, message) } else { None };
        if is_own && let Some(client) = checks {
            let refusal = rewritten.as_deref().unwrap_or(message);
            self.refuse_admitted(id, client, refusal);
            return;
        }
        if let Some(client) = checks {
            self.on_relayed_refusal(client, message);
            self.close_backend(id, Close::Now);
            return;
        }
        let refusal = rewritten.unwrap_or_else(|| message.to_vec().into_boxed_slice());
        self.backend(id).expect("looked up above").refusal = Some(refusal);
        self.on_backend_gone(id, &text);
    }

    /// The connection is lost, could not be made, or makes no sense any more.
    pub(super) fn on_backend_gone(&mut self, id: BackendId, why: &str) {
        let Some(backend) = self.backend(id) else { return };
        let (pool, refusal) = (backend.pool, backend.refusal.take());
        let watches = backend.purpose == Purpose::Watch;
        let checks = backend.checks.take();
        match backend.state {
            BackendState::Linked(client) => {
                // The server has told the client itself why it goes.
                let told = backend.fatal;
                backend.pipeline.doubt();
                log::info!("{}: a server connection was lost: {why}", self.pool_name(pool));
                if told {
                    self.dismiss(client);
                } else {
                    self.fail(client, &Fault::ServerGone(why.to_owned()));
                }
            }
            BackendState::Piped(client) => self.dismiss(client),
            BackendState::Resolving | BackendState::Connecting | BackendState::LoggingIn => {
                backend.blamed = true;
                let answered = backend.challenged || refusal.is_some();
                if !watches {
                    self.note_trouble(pool, why, refusal.clone());
                }
                if !answered {
                    let server = self.pools.get(pool).key.server.clone();
                    self.doubt_addresses(&server);
                    self.note_unreachable(pool, why);
                }
                if let Some(client) = checks
                    && (answered || !self.try_login_elsewhere(client, pool))
                {
                    let server = &self.pools.get(pool).key.server;
                    self.fail(client, &Fault::NoServer(format!("{server}: {why}")));
                }
            }
            BackendState::LookingUp(client) => {
                log::info!("{}: auth.query was interrupted: {why}", self.pool_name(pool));
                self.fail(client, &Fault::NoSecrets);
            }
            BackendState::Listening(slot) => self.on_listener_gone(slot, why),
            BackendState::Idle | BackendState::Cleaning(_) | BackendState::Moving(_) => {
                log::debug!("{}: a server connection was closed: {why}", self.pool_name(pool));
            }
        }
        self.close_backend(id, Close::Now);
        if let Some(refusal) = refusal.filter(|_| !watches)
            && !is_passing(&refusal)
        {
            // What it has let in so far it may not let in any more: from here on it is asked again.
            self.pools.get_mut(pool).trusted_until = None;
            self.refuse_waiters(pool, &refusal);
        }
    }

    /// Logs a change for the worse once, not for each attempt.
    fn note_trouble(&mut self, pool: PoolId, why: &str, refusal: Option<Box<[u8]>>) {
        let now = self.io.now();
        if self.pools.get(pool).trouble.is_none() {
            log::warn!("{}: no server connection: {why}; trying again", self.pool_name(pool));
        }
        let trouble = &mut self.pools.get_mut(pool).trouble;
        let since = trouble.as_ref().map_or(now, |trouble| trouble.since);
        *trouble = Some(Trouble { why: why.to_owned(), since, tried: now, refusal });
    }

    /// The server has refused a login of our own, and nobody else's backend can serve those who wait.
    fn refuse_waiters(&mut self, pool: PoolId, refusal: &[u8]) {
        if self.pools.get(pool).part.lent() > 0 {
            return;
        }
        while let Some((client, _)) = {
            let Self { pools, waiters, .. } = self;
            pools.get_mut(pool).part.pop_waiter(waiters)
        } {
            self.refuse_in_servers_words(client, refusal);
        }
    }

    /// Ends a client that waits with what the server has said to a login of QCP's own.
    pub(super) fn refuse_in_servers_words(&mut self, id: ClientId, refusal: &[u8]) {
        if let Some(connection) = self.client(id).map(|client| client.connection)
            && let Some(bytes) = self.io.scratch().copy(refusal)
        {
            self.io.send(connection, bytes);
        }
        self.dismiss(id);
    }

    /// Closes a backend and gives back its place. Whoever it served has been told.
    pub(super) fn close_backend(&mut self, id: BackendId, how: Close) {
        let now = self.io.now();
        let jitter = self.next_random() as u8;
        self.hand_in(id);
        let Some(mut backend) = self.backends.remove(id.index, id.generation) else { return };
        self.vectors.let_go(backend.has);
        backend.stash.clear();
        if let BackendState::Listening(slot) = backend.state {
            self.on_listener_gone(slot, "it was closed");
        }
        let pool = backend.pool;
        if let Some(connection) = backend.connection {
            // What a dedicated client says is not looked at: a Terminate could become the end of half a message.
            let speaks = !matches!(backend.state, BackendState::Connecting | BackendState::Piped(_));
            if speaks && how == Close::Flushed {
                self.write(connection, 8, |writer| writer.terminate().expect("the room was asked for"));
            }
            self.io.close(connection, how);
        }
        let opening =
            matches!(backend.state, BackendState::Resolving | BackendState::Connecting | BackendState::LoggingIn);
        let entry = self.pools.get_mut(pool);
        entry.backends -= 1;
        match backend.purpose {
            Purpose::Pool if opening => entry.part.open_failed(now, jitter, backend.blamed),
            Purpose::Pool if matches!(backend.state, BackendState::Idle) => entry.part.lost_idle(id),
            Purpose::Pool => entry.part.lost_lent(),
            Purpose::Check | Purpose::Dedicated | Purpose::Listen | Purpose::Watch => {}
        }
        if opening && backend.purpose != Purpose::Dedicated {
            self.stop_asking(pool);
        }
        if backend.purpose == Purpose::Check {
            self.checks -= 1;
        }
        self.give_way(pool);
        self.refill(pool);
    }

    /// Opens backends for those who wait, or tells them that there can be none.
    pub(super) fn refill(&mut self, id: PoolId) {
        if self.running != super::Running::Yes || self.pools.get(id).retired {
            return;
        }
        let now = self.io.now();
        self.draw_reserve(id);
        // Whoever has to wait comes by here, and mostly every place is taken.
        if self.pools.get(id).part.has_unused() {
            let minimum = self.minimum(id);
            while self.pools.get(id).part.may_open(now, minimum) {
                let Some(seat) = self.begin_open(id) else { break };
                if self.open_backend(id, Purpose::Pool, None, Some(seat)).is_none() {
                    break;
                }
            }
        }
        self.ask_for_place(id);
        // Where others have a part of the pool, their answers decide.
        let pool = self.pools.get(id);
        if pool.homes.count() == 1 && pool.homes.has(self.settings.id) && !pool.is_spread {
            self.despair(id);
        }
    }

    /// This shard's share of `min_size`, once the pool has been used.
    pub(super) fn minimum(&self, id: PoolId) -> u32 {
        let pool = self.pools.get(id);
        if pool.parameters.is_empty() || u64::from(pool.clients) + pool.totals.logins + pool.totals.links == 0 {
            return 0;
        }
        pool.homes.share(pool.settings.pool.min_size, self.settings.id).min(pool.part.permits())
    }

    /// `database/user at server`, for people.
    pub(super) fn pool_name(&self, id: PoolId) -> String {
        let key = &self.pools.get(id).key;
        format!("{}/{} at {}", key.database, key.user, key.server)
    }

    /// Whether a backend is too old to be lent again.
    pub(super) fn is_expired(&self, backend: &Backend) -> bool {
        let lifetime = self.pools.get(backend.pool).settings.pool.lifetime;
        let age = self.io.now().duration_since(backend.born);
        // At each release, so what is young for sure is seen by its whole seconds.
        if lifetime.is_zero() || (age.as_secs() + 1) * 10 < lifetime.as_secs() * 9 {
            return false;
        }
        // Up to a tenth earlier, by what the server has numbered it: those that were opened together do not end together.
        let tenths = backend.process_id.wrapping_mul(0x9e37_79b9) >> 24;
        let lifetime = lifetime - lifetime / 10 * tenths / 255;
        age >= lifetime
    }
}

/// Whether a server that refuses a login like this will take it in a while: it is full, starting up or shutting down.
/// Clients then wait as long as they would for a free backend.
fn is_passing(refusal: &[u8]) -> bool {
    let code = reader::fields(refusal).code();
    code.is_some_and(|code| code == SqlState::TOO_MANY_CONNECTIONS || code == SqlState::CANNOT_CONNECT_NOW)
}
