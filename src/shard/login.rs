//! From the startup packet to who the client is: its pool, who checks the login, and what is said meanwhile. What comes
//! then is in `welcome`.
//!
//! With `auth: {method: server}` the exchange is relayed word for word to a new server connection, which joins the pool
//! when it has room. A login that the server lets in without a challenge is remembered for [`TRUST_FOR`].

use std::time::Duration;

use crate::auth::incoming::Incoming;
use crate::auth::settings::Method;
use crate::ids::{BackendId, ClientId, PoolId, ShardId};
use crate::io::{Close, Transport};
use crate::memory::Slice;
use crate::pool::Refill;
use crate::protocol::Step;
use crate::protocol::startup::{self, Packet, Replication, StartupMessage, Version};
use crate::protocol::tag::frontend;
use crate::session::fault::Fault;
use crate::session::parameters::VectorId;

use super::console::Visit;
use super::lookup::Lookup;
use super::own_check::Sentence;
use super::pools::Key;
use super::room::Seat;
use super::welcome::wishes;
use super::{ClientState, Purpose, SECRET_SIZE, Server, Shard, Tick};

/// Secrets for clients' cancel keys that are fetched at once.
const SECRETS_FETCHED: usize = 64;

/// How much of a client's answer has to be here before it is passed on: SASL's mechanism, and whether it binds the channel.
const PASSWORD_PREFIX: usize = 64;

/// How long "no challenge" is believed.
const TRUST_FOR: Duration = Duration::from_secs(30);

/// What the startup packet said, while it matters.
pub(super) struct Login {
    pub stage: Stage,
    /// The settings that it asked for.
    pub raw: VectorId,
    /// Challenges of the server that the client has yet to answer.
    pub answers_due: u32,
    /// The server has offered channel binding, and the client was not told.
    pub unbound: bool,
    /// For a backend of its own, the packet as it goes to the server.
    pub packet: Option<Box<[u8]>>,
    /// Whether it asks for physical replication.
    pub replication: bool,
    /// The exchange, where QCP checks the login itself.
    pub exchange: Option<Box<Incoming>>,
    /// Its user's secret is asked for.
    pub lookup: Option<Box<Lookup>>,
    /// The client's password goes through its rounds.
    pub working: bool,
    /// It has failed, and is told so later.
    pub sentence: Option<Sentence>,
    /// QCP has let it in itself, before there was a backend of its own.
    pub admitted: bool,
    /// It wants the console: there is no pool then, and no server.
    pub visit: Option<Box<Visit>>,
    /// How often it has gone to another server.
    pub tries: u8,
    /// Since when it waits for a backend, if it has waited for one.
    pub waits: Option<Tick>,
}

impl Login {
    /// Of a startup packet with these settings.
    pub(super) fn new(raw: VectorId, stage: Stage) -> Self {
        Self {
            stage,
            raw,
            answers_due: 0,
            unbound: false,
            packet: None,
            replication: false,
            exchange: None,
            lookup: None,
            working: false,
            sentence: None,
            admitted: false,
            visit: None,
            tries: 0,
            waits: None,
        }
    }
}

/// What a login waits for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Stage {
    /// Whether the server will ask for a password: another login is finding out.
    Answer,
    /// A connection to check it.
    Check,
    /// A backend, to ask for the user's secret.
    Lookup,
    /// The answer to that.
    LookingUp,
    /// The client's answer to QCP's own question.
    Here,
    /// The server, to which the exchange is relayed.
    Relayed(BackendId),
    /// A backend of the pool, to learn what the server reports or to try the settings.
    Backend,
    /// The server's verdict on the settings.
    Applying(BackendId),
}

impl<T: Transport> Shard<T> {
    /// `bytes` begins with a startup packet of `size` bytes. `server`: the client came for this one from another shard.
    pub(super) fn begin_login(&mut self, id: ClientId, bytes: &Slice, size: usize, server: Option<Server>) {
        let packet = bytes.part(0, size);
        let Ok(Some((Packet::StartupMessage(startup), _))) = startup::packet(&packet) else {
            unreachable!("the caller has just read it")
        };
        match self.try_begin_login(id, &startup, server) {
            Ok(None) => {}
            Ok(Some((to, server))) => return self.begin_move(id, to, server, (bytes, size)),
            Err(fault) => return self.fail(id, &fault),
        }
        if bytes.len() > size {
            if let Some(client) = self.client(id) {
                // They are counted with the packet; of one that came from another shard, there.
                client.bytes_in = client.bytes_in.saturating_sub((bytes.len() - size) as u32);
            }
            self.on_client_bytes(id, bytes.part(size, bytes.len()));
        }
    }

    /// `Some`: the client is to live on that shard, and have that server.
    fn try_begin_login(
        &mut self,
        id: ClientId,
        startup: &StartupMessage<'_>,
        server: Option<Server>,
    ) -> Result<Option<(ShardId, Server)>, Fault> {
        let text = |bytes| std::str::from_utf8(bytes).map_err(|_| Fault::NameNotText);
        self.check_encryption(id)?;
        let (user, database) = (text(startup.user())?, text(startup.database())?);
        self.check_certificate_name(id, user)?;
        if self.try_begin_visit(id, startup, database, user) {
            return Ok(None);
        }
        let Some(settings) = self.asked.pool(&*self.catalogue, database, user) else {
            return Err(Fault::UnknownDatabase(database.to_owned()));
        };
        if self.orders.refuses(database) {
            return Err(Fault::Disabled(database.to_owned()));
        }
        let wishes = wishes(startup);
        let dedicated = settings.dedicated || wishes.is_none();
        let server_user = settings.rules.credentials.as_ref().and_then(|credentials| credentials.user.as_deref());
        let packet = dedicated.then(|| own_packet(startup, server_user, &settings.server_database));
        let arrived = server.is_some();
        // What the shard that sent it went by may have changed meanwhile.
        let server = server.filter(|server| settings.servers.contains(server));
        let server = server.unwrap_or_else(|| settings.servers[self.choose_server(&settings)].clone());
        let key = Key { server, database: database.into(), user: user.into() };
        // A client with a backend of its own has nothing of the pool's.
        if !arrived && !dedicated {
            let shard = self.choose_shard(&key, &settings);
            if shard != self.settings.id {
                return Ok(Some((shard, key.server)));
            }
        }
        let raw = self.vectors.intern(wishes.unwrap_or_default()).map_err(|_| Fault::NoRoom("clients' settings"))?;
        let mode = settings.mode;
        let found = self.pools.find(&key);
        let Some(pool) = found.or_else(|| self.pool_of(key, (*settings).clone())) else {
            self.vectors.let_go(raw);
            return Err(Fault::NoRoom("pools"));
        };
        let entry = self.pools.get_mut(pool);
        entry.clients += 1;
        self.has_leaving |= entry.unfit;
        self.population.settle(self.settings.id);

        let version = startup.version.negotiate().expect("other versions are refused");
        let secret = self.next_secret();
        let client = self.client(id).expect("the caller has looked it up");
        client.pool = Some(pool);
        client.mode = mode;
        client.secret = secret;
        client.long_key = version == Version::V3_2;
        client.replication = startup.replication().unwrap_or(Replication::No);
        client.state = ClientState::Login(Box::new(Login {
            packet,
            replication: startup.replication() == Ok(Replication::Physical),
            ..Login::new(raw, Stage::Answer)
        }));
        let connection = client.connection;
        if version != startup.version || startup.protocol_options().next().is_some() {
            self.write(connection, 512, |writer| {
                let _ = writer.negotiate_protocol_version(version.code(), startup.protocol_options());
            });
        }
        if !self.may_log_in(id) {
            return Ok(None);
        }
        self.authenticate(id);
        Ok(None)
    }

    pub(super) fn login(&mut self, id: ClientId) -> Option<&mut Login> {
        match &mut self.client(id)?.state {
            ClientState::Login(login) => Some(login),
            ClientState::Startup
            | ClientState::Moving(_)
            | ClientState::Ready
            | ClientState::Waiting(_)
            | ClientState::Linked(_)
            | ClientState::Piped(_)
            | ClientState::Console(_) => None,
        }
    }

    pub(super) fn set_stage(&mut self, id: ClientId, stage: Stage) {
        if let Some(login) = self.login(id) {
            login.stage = stage;
        }
    }

    /// Finds out whether the client may come in.
    pub(super) fn authenticate(&mut self, id: ClientId) {
        let Some(pool) = self.client(id).and_then(|client| client.pool) else { return };
        if self.pools.get(pool).part.is_paused() && !self.goes_on_elsewhere(id, pool) {
            self.parked.push_back(id);
            return;
        }
        let Some(pool) = self.client(id).and_then(|client| client.pool) else { return };
        let method = self.pools.get(pool).settings.rules.method;
        if self.is_relayed(pool) && self.login(id).is_some_and(|login| login.packet.is_some()) {
            self.open_for_login(id, Purpose::Dedicated, None);
            return;
        }
        if method != Method::Server {
            self.check_here(id, method);
            return;
        }
        let now = self.io.now();
        if self.pools.get(pool).trusted_until.is_some_and(|until| now < until) {
            self.admit_trusted(id);
        } else if self.pools.get(pool).asking {
            self.set_stage(id, Stage::Answer);
            self.pools.get_mut(pool).askers.push(id);
        } else {
            self.begin_check(id);
        }
    }

    /// Whether the server checks clients of a pool: where nobody else does, or could log in for them, it does both in one.
    fn is_relayed(&self, pool: PoolId) -> bool {
        let rules = &self.pools.get(pool).settings.rules;
        match rules.method {
            Method::Server => true,
            Method::Trust => rules.credentials.is_none(),
            _ => false,
        }
    }

    /// A login to a pool that lends nothing: whether it goes on all the same, at another server, or to ask this one what it is.
    fn goes_on_elsewhere(&mut self, id: ClientId, pool: PoolId) -> bool {
        let entry = self.pools.get(pool);
        if !entry.unfit || self.orders.pauses(&entry.key.database) {
            return false;
        }
        let asks = entry.part.refill() != Refill::Free && self.asks_server(id, pool);
        self.move_login(id, asks) || asks
    }

    /// Whether a login is relayed to the server.
    pub(super) fn asks_server(&mut self, id: ClientId, pool: PoolId) -> bool {
        let method = self.pools.get(pool).settings.rules.method;
        let is_dedicated = self.login(id).is_some_and(|login| login.packet.is_some());
        method == Method::Server || is_dedicated && self.is_relayed(pool)
    }

    fn admit_trusted(&mut self, id: ClientId) {
        let Some(connection) = self.client(id).map(|client| client.connection) else { return };
        if self.is_local(connection) {
            self.admit(id);
        } else {
            self.fail(id, &Fault::TrustFromAfar);
        }
    }

    /// Opens a connection to check a login: one of the pool's places, or one beyond, or waits for one.
    fn begin_check(&mut self, id: ClientId) {
        let Some(pool) = self.client(id).and_then(|client| client.pool) else { return };
        let seat = self.begin_open(pool);
        let purpose = if seat.is_some() {
            Purpose::Pool
        } else if self.checks < self.settings.check_connections {
            self.checks += 1;
            // A place that comes from another shard while the login lasts makes the connection one of the pool's.
            self.ask_others(pool, None);
            Purpose::Check
        } else {
            self.set_stage(id, Stage::Check);
            self.check_queue.push_back(id);
            return;
        };
        let pool = self.pools.get_mut(pool);
        pool.asking = pool.part.refill() != Refill::Impossible;
        self.open_for_login(id, purpose, seat);
    }

    /// A check connection beyond the pool is free: the next login that waits for one.
    pub(super) fn begin_next_check(&mut self) {
        let Some(id) = self.check_queue.pop_front() else { return };
        if self.login(id).is_some_and(|login| login.stage == Stage::Check) {
            self.begin_check(id);
        }
    }

    pub(super) fn open_for_login(&mut self, id: ClientId, purpose: Purpose, seat: Option<Seat>) {
        let Some(pool) = self.client(id).and_then(|client| client.pool) else { return };
        match self.open_backend(pool, purpose, Some(id), seat) {
            Some(backend) => self.set_stage(id, Stage::Relayed(backend)),
            None => self.fail(id, &Fault::NoRoom("server connections")),
        }
    }

    /// The server's first word: whether it asks for anything. The logins that wait for it go on.
    pub(super) fn on_first_word(&mut self, backend: BackendId, challenge: bool) {
        let Some(backend) = self.backend(backend) else { return };
        let (id, dedicated) = (backend.pool, backend.purpose == Purpose::Dedicated);
        if dedicated {
            return;
        }
        let now = self.io.now();
        let pool = self.pools.get_mut(id);
        let has_password = pool.settings.rules.credentials.as_ref().is_some_and(|known| known.secret.is_some());
        let knows_password = has_password || pool.derived.is_some();
        pool.part.set_refill(if challenge && !knows_password { Refill::Impossible } else { Refill::Free });
        pool.trusted_until = (!challenge).then(|| now + TRUST_FOR);
        self.stop_asking(id);
    }

    /// Nobody finds out for the others any more: each of them asks for itself.
    pub(super) fn stop_asking(&mut self, pool: PoolId) {
        let pool = self.pools.get_mut(pool);
        if std::mem::take(&mut pool.asking) {
            let askers = std::mem::take(&mut pool.askers);
            self.awake.extend(askers);
        }
    }

    /// A message of the client's while its login is under way.
    pub(super) fn on_login_bytes(&mut self, id: ClientId, bytes: Slice) {
        // Behind what waits already.
        if self.client(id).is_some_and(|client| !client.pending.is_empty()) {
            self.hold_back(id, bytes);
            return;
        }
        self.take_login_bytes(id, bytes);
    }

    fn take_login_bytes(&mut self, id: ClientId, bytes: Slice) {
        // A password, perhaps in plain text.
        bytes.hold_secret();
        let Some(Login { stage, .. }) = self.login(id) else { return };
        if *stage == Stage::Here {
            self.on_clients_answer(id, bytes);
            return;
        }
        let &mut Stage::Relayed(backend) = stage else {
            // Sent ahead: it waits until the login is through.
            self.hold_back(id, bytes);
            return;
        };
        let Some(bytes) = self.whole_so_far(id, bytes) else {
            self.fail(id, &Fault::NoMemory);
            return;
        };
        let mut at = 0;
        let mut rest = None;
        loop {
            let due = self.login(id).map_or(0, |login| login.answers_due);
            let Some(client) = self.client(id) else { return };
            // PostgreSQL reads nothing before it has asked for it, or let the client in. What would reach the server now might
            // be answered when the backend is another client's.
            if due == 0 && client.framer.at_boundary() {
                rest = Some(at).filter(|&at| at < bytes.len());
                break;
            }
            match client.framer.next(&bytes[at..], |_, size| PASSWORD_PREFIX.min(size as usize)) {
                Ok(Step::Message { tag: frontend::PASSWORD, available, .. }) => {
                    if !self.may_log_in(id) {
                        return;
                    }
                    let unbound = self.login(id).is_some_and(|login| std::mem::take(&mut login.unbound));
                    if unbound && super::tls::could_have_bound(&bytes[at..at + available]) {
                        self.fail(id, &Fault::BindingNotRelayed);
                        return;
                    }
                    at += available;
                    self.login(id).expect("looked up above").answers_due = due - 1;
                }
                Ok(Step::Rest { length, .. }) => at += length,
                Ok(Step::End) => break,
                Ok(Step::Message { tag, .. }) => {
                    self.fail(id, &Fault::Unexpected(tag));
                    return;
                }
                Ok(Step::Incomplete { .. }) => {
                    let arena = self.io.arena().clone();
                    let kept =
                        self.client(id).is_some_and(|client| client.stash.add_spare(&arena, &bytes[at..]).is_ok());
                    if !kept {
                        self.fail(id, &Fault::NoMemory);
                        return;
                    }
                    break;
                }
                Err(malformed) => {
                    self.fail(id, &Fault::Malformed(malformed));
                    return;
                }
            }
        }
        if at > 0
            && let Some(connection) = self.backend(backend).and_then(|backend| backend.connection)
        {
            self.io.send(connection, bytes.part(0, at));
        }
        if let Some(rest) = rest {
            self.keep_rest(id, bytes.part(rest, bytes.len()));
        }
    }

    /// Keeps what a client has sent ahead, in front of what it has sent since.
    pub(super) fn keep_rest(&mut self, id: ClientId, rest: Slice) {
        let Some(client) = self.client(id) else { return };
        if client.pending.is_empty() {
            self.hold_back(id, rest);
            return;
        }
        let arena = self.io.arena().clone();
        let kept = self.client(id).is_some_and(|client| client.stash.add_spare(&arena, &rest).is_ok());
        if !kept {
            self.fail(id, &Fault::NoMemory);
        }
    }

    /// The client has been asked: what it has sent ahead may be the answer.
    pub(super) fn go_on_with_held(&mut self, id: ClientId) {
        let Some(client) = self.clients.get_mut(id.index, id.generation) else { return };
        let connection = client.connection;
        let held = if client.stash.is_empty() {
            client.pending.pop(&mut self.nodes)
        } else {
            let taken = client.stash.take_secret(self.io.scratch());
            if taken.is_none() {
                self.fail(id, &Fault::NoMemory);
                return;
            }
            taken
        };
        let Some(bytes) = held else { return };
        self.io.receive(connection, true);
        self.take_login_bytes(id, bytes);
    }

    /// A new secret, of the kernel's random numbers, which are fetched for many at a time.
    pub(super) fn next_secret(&mut self) -> [u8; SECRET_SIZE] {
        if self.secrets.is_empty() {
            let mut fetched = [0; SECRET_SIZE * SECRETS_FETCHED];
            getrandom::fill(&mut fetched).expect("the kernel has random numbers");
            let secrets = fetched
                .chunks_exact(SECRET_SIZE)
                .map(|secret| <[u8; SECRET_SIZE]>::try_from(secret).expect("of this size"));
            self.secrets.extend(secrets);
        }
        self.secrets.pop().expect("just fetched")
    }

    /// Ends a login's hold on what it waited for; the client is going.
    pub(super) fn drop_login(&mut self, login: &Login) {
        self.vectors.let_go(login.raw);
        if let Some(lookup) = &login.lookup {
            self.pools.get_mut(lookup.home).clients -= 1;
        }
        if let Stage::Relayed(backend) = login.stage {
            let relayed = self.backend(backend).is_some_and(|backend| backend.checks.take().is_some());
            if relayed {
                self.close_backend(backend, Close::Now);
            }
        }
    }
}

/// The client's own startup packet, as it goes to the server: in QCP's version, to the database's name there.
fn own_packet(startup: &StartupMessage<'_>, user: Option<&str>, database: &str) -> Box<[u8]> {
    let user = user.map_or_else(|| startup.user(), str::as_bytes);
    let is_ours = |name: &[u8]| name == b"user" || name == b"database" || name.starts_with(b"_pq_.");
    let kept = startup.parameters.filter(|(name, _)| !is_ours(name));
    let parameters = kept.chain([(&b"user"[..], user), (b"database", database.as_bytes())]);
    let mut room = vec![0; startup::PACKET_SIZE_MAX + user.len() + database.len() + 32];
    let mut writer = crate::protocol::Writer::new(&mut room);
    writer.startup_message(Version::V3_0, parameters).expect("it is hardly longer than the client's");
    writer.written().into()
}
