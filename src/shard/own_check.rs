//! Logins that QCP checks itself: by a password, by who the kernel says the client is, by the rules of a file.
//!
//! What is decided is in `auth`; here it is carried out. Rounds of PBKDF2 are done some at a time between the turns of
//! the shard ([`Shard::work`]), so that a storm of logins stalls nobody's queries.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use crate::auth::channel::Channel;
use crate::auth::hba::{Access, ClientCertificate, Found, Mapped};
use crate::auth::incoming::{self, Denied, Incoming, Step};
use crate::auth::scram::{NONCE_SIZE, Refusal};
use crate::auth::secrets::{Secret, Verifier};
use crate::auth::{hba, settings::Method};
use crate::ids::{BackendId, ClientId, ConnectionId};
use crate::io::Transport;
use crate::memory::Slice;
use crate::pool::Refill;
use crate::protocol::error::field;
use crate::protocol::reader;
use crate::protocol::tag::frontend;
use crate::protocol::{SqlState, Step as Framed, Writer};
use crate::session::fault::{Answer, Fault};

use super::login::{Login, Stage};
use super::mailbox::Mail;
use super::{ClientState, Shard};

/// Rounds of PBKDF2 between two turns: some hundred microseconds.
const ROUNDS_PER_TURN: u32 = 512;
/// The longest message of QCP's own in a login.
pub(super) const MESSAGE_ROOM: usize = 8 * 1024;
/// Verifiers that are remembered.
const VERIFIERS_MAX: usize = 4096;

/// Whose password goes through its rounds.
#[derive(Clone, Copy)]
pub(super) enum Working {
    Client(ClientId),
    Backend(BackendId),
}

/// A login that has failed and hears of it later.
pub(super) struct Sentence {
    until: Instant,
    words: Words,
}

/// What it hears.
enum Words {
    Own(Fault),
    /// The server's ErrorResponse. A copy: for so long nobody's login holds a chunk.
    Servers(Box<[u8]>),
}

/// What a rule or the configuration asks of a client.
#[derive(Clone, Copy)]
struct Demand<'a> {
    map: Option<&'a str>,
    by_distinguished_name: bool,
}

impl<T: Transport> Shard<T> {
    /// Whether there is work that [`Shard::work`] should go on with.
    pub fn has_work(&self) -> bool {
        !self.working.is_empty()
    }

    /// Does a little of what takes long.
    pub fn work(&mut self) {
        let Some(working) = self.working.pop_front() else { return };
        match working {
            Working::Client(id) => self.work_on_check(id),
            Working::Backend(id) => self.work_on_own_login(id, ROUNDS_PER_TURN),
        }
        self.settle();
    }

    /// Whether an address may try at all; it is told where not.
    pub(super) fn may_log_in(&mut self, id: ClientId) -> bool {
        let now = self.io.now();
        let Some(connection) = self.client(id).map(|client| client.connection) else { return false };
        // Asking who it is takes a system call.
        let allowed = self.limiter.is_empty()
            || self.address(connection).is_none_or(|address| self.limiter.may_try(address, now));
        if !allowed {
            self.fail(id, &Fault::TooManyFailures(self.settings.auth.limiter.failures_max));
        }
        allowed
    }

    /// Checks a client by a method of QCP's own.
    pub(super) fn check_here(&mut self, id: ClientId, method: Method) {
        let demand = Demand { map: None, by_distinguished_name: false };
        match method {
            Method::Trust => self.admit(id),
            Method::Reject => {
                let why = "every login of this database and user is rejected (auth.method is reject)".to_owned();
                self.refuse_access(id, why);
            }
            Method::Password => self.ask_client(id, incoming::Method::Password),
            Method::Md5 => self.ask_client(id, incoming::Method::Md5),
            Method::Scram => self.ask_client(id, incoming::Method::Scram),
            Method::ScramPlus => self.ask_client(id, incoming::Method::ScramPlus),
            Method::Peer => self.check_peer(id, demand),
            Method::Cert => self.check_certificate(id, demand),
            Method::Hba => self.check_by_rules(id),
            Method::Server => unreachable!("the caller relays those"),
        }
    }

    /// The first rule of `hba_file` that fits says how.
    pub(super) fn check_by_rules(&mut self, id: ClientId) {
        let auth = self.settings.auth.clone();
        let Some(hba) = &auth.hba else { return self.refuse_access(id, "there are no rules of access".to_owned()) };
        let Some(client) = self.client(id) else { return };
        let connection = client.connection;
        let Some((database, user)) = self.names_of(id) else { return };
        let replication = self.login(id).is_some_and(|login| login.replication);
        let channel = self.channel(connection);
        let address = self.address(connection);
        let mut access = Access {
            database: &database,
            user: &user,
            replication,
            address,
            tls: channel.tls,
            own: &auth.own_addresses,
            roles: None,
        };
        let about = format!(
            "for host \"{}\", user \"{user}\", database \"{}\", {}",
            address.map_or_else(|| "[local]".to_owned(), |address| address.to_string()),
            if replication { "replication" } else { &database },
            if channel.tls { "SSL encryption" } else { "no encryption" }
        );
        let mut found = hba.find(&access);
        let roles;
        if found == Found::NeedsRoles {
            let Some(known) = self.roles_of(id) else { return };
            roles = known;
            access.roles = Some(&roles);
            found = hba.find(&access);
        }
        let rule = match found {
            Found::Rule(rule) => rule,
            Found::None => return self.refuse_access(id, format!("no pg_hba.conf entry {about}")),
            Found::NeedsRoles => unreachable!("they are known by now"),
        };
        log::debug!("{}: rule {}", self.peer(connection), rule.place);
        let demand = Demand { map: rule.map.as_deref(), by_distinguished_name: rule.by_distinguished_name };
        let certified = match rule.certificate {
            None => true,
            Some(ClientCertificate::VerifyCa) => channel.certificate.is_some(),
            Some(ClientCertificate::VerifyFull) => self.is_certified(&channel, demand, &user),
        };
        if !certified {
            return self.refuse_access(id, format!("connection requires a valid client certificate, {about}"));
        }
        match rule.method {
            hba::Method::Trust | hba::Method::Cert => self.admit(id),
            hba::Method::Reject => self.refuse_access(id, format!("pg_hba.conf rejects connection {about}")),
            hba::Method::Password => self.ask_client(id, incoming::Method::Password),
            hba::Method::Md5 => self.ask_client(id, incoming::Method::Md5),
            hba::Method::Scram => self.ask_client(id, incoming::Method::Scram),
            hba::Method::Peer => self.check_peer(id, demand),
        }
    }

    /// The system's name of who runs the client.
    fn check_peer(&mut self, id: ClientId, demand: Demand<'_>) {
        let Some(connection) = self.client(id).map(|client| client.connection) else { return };
        let Some((_, user)) = self.names_of(id) else { return };
        let system = self.io.peer_user(connection);
        let auth = self.settings.auth.clone();
        let mapped = system.as_deref().map(|system| auth.ident.may_be(demand.map, system, &user));
        if mapped == Some(Mapped::Yes) {
            self.admit(id);
            return;
        }
        log::debug!(
            "{}: peer authentication of \"{user}\" failed: the client is run by {}",
            self.peer(connection),
            system.as_deref().unwrap_or("nobody that the kernel names")
        );
        self.deny(id, Fault::PeerFailed(user));
    }

    fn check_certificate(&mut self, id: ClientId, demand: Demand<'_>) {
        let Some(connection) = self.client(id).map(|client| client.connection) else { return };
        let Some((_, user)) = self.names_of(id) else { return };
        let channel = self.channel(connection);
        if self.is_certified(&channel, demand, &user) {
            self.admit(id);
        } else {
            self.refuse_access(id, format!("certificate authentication failed for user \"{user}\""));
        }
    }

    fn is_certified(&self, channel: &Channel, demand: Demand<'_>, user: &str) -> bool {
        let Some(certificate) = channel.certificate.as_ref().filter(|_| channel.tls) else { return false };
        let name = match demand.by_distinguished_name {
            true => certificate.distinguished_name.as_deref(),
            false => certificate.common_name.as_deref(),
        };
        name.is_some_and(|name| self.settings.auth.ident.may_be(demand.map, name, user) == Mapped::Yes)
    }

    /// Asks for the password, once it is known by what it is checked.
    fn ask_client(&mut self, id: ClientId, method: incoming::Method) {
        if let Some(secret) = self.secret_of(id, method) {
            self.ask_with(id, method, secret);
        }
    }

    /// Sends the first question.
    pub(super) fn ask_with(&mut self, id: ClientId, method: incoming::Method, secret: Option<Arc<Secret>>) {
        let Some(connection) = self.client(id).map(|client| client.connection) else { return };
        let Some((_, user)) = self.names_of(id) else { return };
        let auth = self.settings.auth.clone();
        let channel = self.channel(connection);
        let verifier = self.known_verifier(&user, secret.as_ref());
        let random: [u8; NONCE_SIZE] = random();
        let mut room = [0; MESSAGE_ROOM];
        let mut writer = Writer::new(&mut room);
        let login = incoming::Login {
            method,
            user: &user,
            secret,
            users: auth.kinds,
            verifier,
            channel: &channel,
            salts: &self.salts,
            random: &random,
        };
        let (exchange, step) = Incoming::begin(login, &mut writer).expect("the room is for the longest");
        if let Some(login) = self.login(id) {
            login.stage = Stage::Here;
            login.exchange = Some(Box::new(exchange));
        }
        let written = self.io.scratch().copy(writer.written());
        self.on_check_step(id, step, written);
    }

    /// A message of the client's while QCP checks it.
    pub(super) fn on_clients_answer(&mut self, id: ClientId, bytes: Slice) {
        let is_busy = self.login(id).is_none_or(|login| login.sentence.is_some() || login.working);
        if is_busy {
            // Its last answer is still being looked at; this one is not before that has come to an end.
            self.hold_back(id, bytes);
            return;
        }
        let Some(bytes) = self.whole_so_far(id, bytes) else {
            self.fail(id, &Fault::NoMemory);
            return;
        };
        let Some(client) = self.client(id) else { return };
        let framed = client.framer.next(&bytes, |_, size| size as usize);
        match framed {
            Ok(Framed::Message { tag: frontend::PASSWORD, size, available }) if available == size as usize => {
                if bytes.len() > available {
                    self.keep_rest(id, bytes.part(available, bytes.len()));
                }
                // Many may have come before the first of them failed: only so many are looked at.
                if self.may_log_in(id) {
                    self.on_answer_whole(id, &bytes[..available]);
                }
            }
            Ok(Framed::Message { tag, .. }) => self.fail(id, &Fault::Unexpected(tag)),
            Ok(Framed::Incomplete { need }) if need <= MESSAGE_ROOM + 16 => {
                let arena = self.io.arena().clone();
                let kept = self.client(id).is_some_and(|client| client.stash.add_spare(&arena, &bytes).is_ok());
                if !kept {
                    self.fail(id, &Fault::NoMemory);
                }
            }
            Ok(Framed::Incomplete { .. } | Framed::Rest { .. } | Framed::End) => {
                self.fail(id, &Fault::Exchange(SqlState::PROTOCOL_VIOLATION, "the answer is too long".to_owned()));
            }
            Err(malformed) => self.fail(id, &Fault::Malformed(malformed)),
        }
    }

    fn on_answer_whole(&mut self, id: ClientId, message: &[u8]) {
        let Some(mut exchange) = self.login(id).and_then(|login| login.exchange.take()) else { return };
        let mut room = [0; MESSAGE_ROOM];
        let mut writer = Writer::new(&mut room);
        let step = exchange.on_answer(message, &mut writer).expect("the room is for the longest");
        if let Some(login) = self.login(id) {
            login.exchange = Some(exchange);
        }
        let written = self.io.scratch().copy(writer.written());
        self.on_check_step(id, step, written);
    }

    fn work_on_check(&mut self, id: ClientId) {
        let Some(login) = self.login(id) else { return };
        login.working = false;
        let Some(mut exchange) = login.exchange.take() else { return };
        let mut room = [0; MESSAGE_ROOM];
        let mut writer = Writer::new(&mut room);
        let step = exchange.work(ROUNDS_PER_TURN, &mut writer).expect("the room is for the longest");
        if let Some(verifier) = exchange.take_made()
            && let Some((_, user)) = self.names_of(id)
        {
            let secret = self.secret_in_use(id);
            self.remember_verifier(&user, secret.as_ref(), verifier);
        }
        self.login(id).expect("looked up above").exchange = Some(exchange);
        let written = self.io.scratch().copy(writer.written());
        self.on_check_step(id, step, written);
    }

    fn on_check_step(&mut self, id: ClientId, step: Step, written: Option<Slice>) {
        let Some(connection) = self.client(id).map(|client| client.connection) else { return };
        match (written, &step) {
            (Some(bytes), _) if !bytes.is_empty() => self.io.send(connection, bytes),
            (Some(_), _) | (None, Step::Work | Step::Denied(_)) => {}
            (None, Step::Asked | Step::Accepted(_)) => return self.fail(id, &Fault::NoMemory),
        }
        match step {
            Step::Asked => self.go_on_with_held(id),
            Step::Work => {
                if let Some(login) = self.login(id) {
                    login.working = true;
                }
                self.working.push_back(Working::Client(id));
            }
            Step::Accepted(proven) => {
                self.learn(id, proven);
                self.note_success(id);
                self.admit(id);
            }
            Step::Denied(denied) => self.on_denied(id, &denied),
        }
    }

    /// Keys and verifiers of a login that went well.
    fn learn(&mut self, id: ClientId, proven: incoming::Proven) {
        let Some(pool) = self.client(id).and_then(|client| client.pool) else { return };
        let pool = self.pools.get_mut(pool);
        // Another user's keys are of no use for a login as this one.
        let own = pool.settings.rules.credentials.is_some();
        if let Some(derived) = proven.keys.filter(|_| !own)
            && pool.derived.as_ref() != Some(&derived)
        {
            pool.derived = Some(derived);
            pool.part.set_refill(Refill::Free);
        }
    }

    fn known_verifier(&self, user: &str, secret: Option<&Arc<Secret>>) -> Option<Verifier> {
        let (of, verifier) = self.verifiers.get(user)?;
        let is_current = match (of.upgrade(), secret) {
            (Some(of), Some(secret)) => Arc::ptr_eq(&of, secret),
            (None, None) => true,
            (Some(_), None) | (None, Some(_)) => false,
        };
        is_current.then(|| verifier.clone())
    }

    fn remember_verifier(&mut self, user: &str, secret: Option<&Arc<Secret>>, verifier: Verifier) {
        if self.verifiers.len() >= VERIFIERS_MAX && !self.verifiers.contains_key(user) {
            let any = self.verifiers.keys().next().cloned();
            if let Some(any) = any {
                self.verifiers.remove(&any);
            }
        }
        self.verifiers.insert(user.into(), (secret.map_or_else(Weak::new, Arc::downgrade), verifier));
    }

    fn on_denied(&mut self, id: ClientId, denied: &Denied) {
        let Some(connection) = self.client(id).map(|client| client.connection) else { return };
        let Some((_, user)) = self.names_of(id) else { return };
        log::debug!("{}: login of \"{user}\" failed: {denied}", self.peer(connection));
        let fault = match denied {
            Denied::Password(_) => {
                self.doubt_secret(id);
                Fault::WrongPassword(user)
            }
            Denied::Malformed | Denied::Exchange(Refusal::Malformed(_)) => {
                Fault::Exchange(SqlState::PROTOCOL_VIOLATION, denied.to_string())
            }
            Denied::Exchange(Refusal::Unsupported(_)) => {
                Fault::Exchange(SqlState::FEATURE_NOT_SUPPORTED, denied.to_string())
            }
            Denied::Exchange(_) | Denied::NoChannel => {
                Fault::Exchange(SqlState::INVALID_AUTHORIZATION, denied.to_string())
            }
        };
        self.deny(id, fault);
    }

    fn refuse_access(&mut self, id: ClientId, why: String) {
        self.deny(id, Fault::NoAccess(why));
    }

    /// A failed login: it counts for its address, and where that has failed often it hears of it later.
    fn deny(&mut self, id: ClientId, fault: Fault) {
        let delay = self.note_failure(id, &fault);
        if delay.is_zero() {
            self.fail(id, &fault);
        } else {
            self.sentence(id, delay, Words::Own(fault));
        }
    }

    /// The server has refused a relayed login. Whose name or password it does not take is treated as QCP's own checks
    /// would: the server's words wait as long, and its connection is given back meanwhile.
    pub(super) fn on_relayed_refusal(&mut self, id: ClientId, message: &Slice) {
        let Some(connection) = self.client(id).map(|client| client.connection) else { return };
        let fields = reader::fields(message);
        let text = String::from_utf8_lossy(fields.get(field::MESSAGE).unwrap_or_default()).into_owned();
        let code = fields.code().unwrap_or(SqlState::PROTOCOL_VIOLATION);
        let fault = Fault::RefusedByServer(code, text);
        let delay = if code.as_str().starts_with("28") {
            self.note_failure(id, &fault)
        } else {
            // A database that is not there, a server that is full: nobody guesses passwords by that.
            self.note_junk(connection, &fault.answer());
            Duration::ZERO
        };
        if delay.is_zero() {
            self.io.send(connection, message.clone());
            self.dismiss(id);
        } else {
            self.sentence(id, delay, Words::Servers(message[..].into()));
        }
    }

    fn sentence(&mut self, id: ClientId, delay: Duration, words: Words) {
        let until = self.io.now() + delay;
        if let Some(login) = self.login(id) {
            // What it says from here on is looked at by nobody.
            login.stage = Stage::Here;
            login.exchange = None;
            login.sentence = Some(Sentence { until, words });
        }
    }

    /// A login for which something had to be proven went well: it takes a failure of its address back.
    pub(super) fn note_success(&mut self, id: ClientId) {
        // Asking who it is takes a system call.
        if self.limiter.is_empty() {
            return;
        }
        let Some(connection) = self.client(id).map(|client| client.connection) else { return };
        if let Some(address) = self.address(connection)
            && self.limiter.succeeded(address)
        {
            self.tell_others(|| Mail::Succeeded(address));
        }
    }

    /// Counts a failed login, and logs the first of a window.
    fn note_failure(&mut self, id: ClientId, fault: &Fault) -> Duration {
        let now = self.io.now();
        let Some(connection) = self.client(id).map(|client| client.connection) else { return Duration::ZERO };
        // Those of a Unix socket count for the log alone: the permissions of its folder say who may try.
        let address = self.address(connection);
        let counted = address.unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED));
        let consequence = self.limiter.failed(counted, now);
        // An address that is refused is refused by all: else it would have as many tries as there are shards.
        self.tell_others(|| Mail::Failed(counted));
        if consequence.is_logged {
            let (count, from) = (consequence.failures, self.peer(connection));
            let more = match address {
                Some(_) if count > 1 => "; for the rest of this minute logins from there are refused",
                Some(_) | None => "; more from there within a minute are not logged",
            };
            log::info!("{from}: {} (failed login {count}{more})", fault.answer().message);
        }
        if address.is_some() { consequence.delay } else { Duration::ZERO }
    }

    /// What anybody who can connect can do: scanners do it all day long, so it is logged once a minute for each address.
    pub(super) fn note_junk(&mut self, connection: ConnectionId, answer: &Answer) {
        let now = self.io.now();
        let address = self.address(connection).unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED));
        let (peer, Answer { code, message, .. }) = (self.peer(connection), answer);
        match self.junk.failed(address, now).failures {
            1 => log::info!("{peer}: {code}: {message}; more like it from there within a minute is not logged"),
            _ => log::debug!("{peer}: {code}: {message}"),
        }
    }

    pub(super) fn tell_others(&self, mail: impl Fn() -> Mail) {
        for shard in self.mailbox.others(self.settings.id) {
            self.mailbox.send(shard, mail());
        }
    }

    /// Another shard has counted a failed login.
    pub(super) fn on_failure_elsewhere(&mut self, address: IpAddr) {
        let now = self.io.now();
        self.limiter.failed(address, now);
    }

    /// Another shard has taken one back.
    pub(super) fn on_success_elsewhere(&mut self, address: IpAddr) {
        self.limiter.succeeded(address);
    }

    /// Tells those whose time has come.
    pub(super) fn speak_sentence(&mut self, id: ClientId) {
        let now = self.io.now();
        let Some(login) = self.login(id) else { return };
        if login.sentence.as_ref().is_some_and(|sentence| now >= sentence.until)
            && let Some(sentence) = login.sentence.take()
        {
            match sentence.words {
                Words::Own(fault) => self.fail(id, &fault),
                Words::Servers(refusal) => self.refuse_in_servers_words(id, &refusal),
            }
        }
    }

    /// Database and user of a login, as the client names them.
    pub(super) fn names_of(&mut self, id: ClientId) -> Option<(String, String)> {
        let visit = match &self.client(id)?.state {
            ClientState::Login(login) => login.visit.as_ref(),
            ClientState::Console(visit) => Some(visit),
            _ => None,
        };
        if let Some(visit) = visit {
            return Some((visit.database.to_string(), visit.user.to_string()));
        }
        let pool = self.home_of(id)?;
        let key = &self.pools.get(pool).key;
        Some((key.database.to_string(), key.user.to_string()))
    }
}

/// New random bytes.
pub(super) fn random<const SIZE: usize>() -> [u8; SIZE] {
    let mut random = [0; SIZE];
    getrandom::fill(&mut random).expect("the kernel has random numbers");
    random
}

/// Whether a client that asks again is still at its login.
pub(super) fn is_sentenced(state: &ClientState) -> bool {
    matches!(state, ClientState::Login(login) if matches!(**login, Login { sentence: Some(_), .. }))
}
