//! From who a client is to its ReadyForQuery: which settings its session begins with, and what it is greeted with.
//!
//! Settings of the startup packet are tried on a backend once; what a server has taken is remembered.

use crate::ids::{BackendId, ClientId, PoolId};
use crate::io::Transport;
use crate::protocol::startup::{self, Replication, StartupMessage, Switch};
use crate::protocol::{Direction, Framer, TransactionStatus};
use crate::session::fault::Fault;
use crate::session::parameters::{self, Setting, VectorId};

use super::login::Stage;
use super::pools::PROVEN_MAX;
use super::{ClientState, Shard};

/// Mark of the query that tries a login's settings.
pub(super) const MARK_APPLY: u32 = 1;

impl<T: Transport> Shard<T> {
    /// The client is who it says. Its settings are tried where they are not known to be good.
    pub(super) fn admit(&mut self, id: ClientId) {
        if self.login(id).is_some_and(|login| login.visit.is_some()) {
            self.open_visit(id);
            return;
        }
        let Some(client) = self.client(id) else { return };
        let (connection, Some(pool)) = (client.connection, client.pool) else { return };
        self.write(connection, 16, |writer| writer.authentication_ok().expect("the room was asked for"));
        if let Err(fault) = self.count_names(id) {
            self.fail(id, &fault);
            return;
        }
        if self.login(id).is_some_and(|login| login.packet.is_some()) {
            self.open_for_admitted(id);
            return;
        }
        if self.is_proven(id) && !self.pools.get(pool).parameters.is_empty() {
            self.complete_login(id);
            return;
        }
        self.set_stage(id, Stage::Backend);
        if let Err(fault) = self.checkout(id) {
            self.fail(id, &Fault::NoServer(fault.answer().message));
        }
    }

    /// Whether the server has taken these settings before; if so the client wants what it made of them.
    fn is_proven(&mut self, id: ClientId) -> bool {
        let Some(raw) = self.login(id).map(|login| login.raw) else { return false };
        let Some(pool) = self.client(id).and_then(|client| client.pool) else { return false };
        if raw == VectorId::NEUTRAL {
            return true;
        }
        let known = self.pools.get(pool).proven.iter().find(|(given, _)| *given == raw).map(|(_, made)| *made);
        let Some(made) = known else { return false };
        let made = self.vectors.hold(made);
        let client = self.client(id).expect("looked up above");
        let old = std::mem::replace(&mut client.wanted, made);
        self.vectors.let_go(old);
        true
    }

    /// A backend is here for a login: of the pool, or the one that checked it.
    pub(super) fn on_login_backend(&mut self, id: ClientId, backend: BackendId) {
        if self.login(id).is_some_and(|login| login.stage == Stage::Lookup) {
            self.ask_for_secret(id, backend);
            return;
        }
        if self.is_proven(id) {
            self.complete_login(id);
            self.give_back(backend);
            return;
        }
        let Some(raw) = self.login(id).map(|login| login.raw) else {
            self.give_back(backend);
            return;
        };
        self.set_stage(id, Stage::Applying(backend));
        let wanted = self.vectors.hold(raw);
        let client = self.client(id).expect("looked up above");
        let old = std::mem::replace(&mut client.wanted, wanted);
        self.vectors.let_go(old);
        self.join(id, backend);
        if !self.ask_settings(backend, wanted, MARK_APPLY) {
            self.fail(id, &Fault::NoMemory);
            return;
        }
        // A backend from another shard, or one whose settings this pool has forgotten that they are good, may be set so
        // already: then there is nothing to ask, and no answer comes.
        if self.backend(backend).is_some_and(|backend| !backend.pipeline.is_busy()) {
            self.on_settings_applied(id, backend);
        }
    }

    /// The server has taken the login's settings.
    pub(super) fn on_settings_applied(&mut self, id: ClientId, backend: BackendId) {
        let Some(raw) = self.login(id).map(|login| login.raw) else { return };
        let client = self.client(id).expect("looked up above");
        let (made, pool) = (client.wanted, client.pool.expect("a login has a pool"));
        let (raw, made) = (self.vectors.hold(raw), self.vectors.hold(made));
        let proven = &mut self.pools.get_mut(pool).proven;
        let oldest = (proven.len() >= PROVEN_MAX).then(|| proven.remove(0));
        proven.push((raw, made));
        if let Some((raw, made)) = oldest {
            self.vectors.let_go(raw);
            self.vectors.let_go(made);
        }
        let held = self.vectors.hold(made);
        if let Some(backend) = self.backend(backend) {
            let old = std::mem::replace(&mut backend.has, held);
            self.vectors.let_go(old);
        }
        self.complete_login(id);
        self.give_back(backend);
    }

    /// ParameterStatus to ReadyForQuery, all of it QCP's own.
    pub(super) fn complete_login(&mut self, id: ClientId) {
        let stamp = self.stamp(self.io.now());
        let Some(client) = self.client(id) else { return };
        let (connection, wanted, secret, long_key) = (client.connection, client.wanted, client.secret, client.long_key);
        let pool = client.pool.expect("a login has a pool");
        let ClientState::Login(login) = std::mem::replace(&mut client.state, ClientState::Ready) else {
            unreachable!("only a login is completed")
        };
        self.pools.get_mut(pool).totals.logins += 1;
        let client = self.client(id).expect("looked up above");
        client.framer = Framer::new(Direction::Frontend);
        client.active = stamp;
        client.startup = wanted;
        self.vectors.hold(wanted);
        self.vectors.let_go(login.raw);
        let process_id = self.process_id(id);
        self.greet(pool, wanted);
        let (_, greeting) = self.pools.get(pool).greeting.as_ref().expect("just made");
        let written = self.io.scratch().write(greeting.len() + 64, |free| {
            let mut writer = crate::protocol::Writer::new(free);
            let key = if long_key { &secret[..] } else { &secret[..4] };
            let written = writer
                .raw(greeting)
                .and_then(|()| writer.backend_key_data(process_id, key))
                .and_then(|()| writer.ready_for_query(TransactionStatus::Idle));
            written.expect("the room was asked for");
            writer.written_size()
        });
        match written {
            Some(bytes) => {
                self.io.send(connection, bytes);
                if !self.has_leaving || self.rehome(id) {
                    self.resume_client(id);
                }
            }
            None => self.fail(id, &Fault::NoMemory),
        }
    }

    /// Makes the pool's greeting that of clients with these settings. Most clients of a pool have the same.
    fn greet(&mut self, pool: PoolId, wanted: VectorId) {
        let entry = self.pools.get(pool);
        if entry.greeting.as_ref().is_some_and(|(of, _)| *of == wanted) {
            return;
        }
        let parameters = &entry.parameters;
        let own: usize = self.vectors.settings(wanted).iter().map(|setting| setting.value.len()).sum();
        let size: usize = parameters.iter().map(|(name, value)| name.len() + value.len() + 16).sum();
        // What does not fit into a chunk beside the key is left out: clients need none of it to go on.
        let mut room = vec![0; (size + own).min(self.io.arena().chunk_size() - 64)];
        let mut writer = crate::protocol::Writer::new(&mut room);
        for (name, value) in parameters {
            let value = self.vectors.get(wanted, &name.to_ascii_lowercase()).unwrap_or(value);
            let _ = writer.parameter_status(name.as_bytes(), value.as_bytes());
        }
        let greeting = writer.written().into();
        let wanted = self.vectors.hold(wanted);
        let old = self.pools.get_mut(pool).greeting.replace((wanted, greeting));
        if let Some((old, _)) = old {
            self.vectors.let_go(old);
        }
    }

    /// The process id that a client is given: it names the shard and the client's slot.
    pub(super) fn process_id(&self, id: ClientId) -> u32 {
        // Not 0, which some drivers take for none.
        u32::from(self.settings.id.0) << 24 | (id.index + 1)
    }
}

/// The settings that a startup packet asks for. `None`: some can only be given when a session starts, or only the server
/// can say what is wrong with them; the client gets a backend of its own.
pub(super) fn wishes(startup: &StartupMessage<'_>) -> Option<Vec<Setting>> {
    if startup.replication() != Ok(Replication::No) {
        return None;
    }
    let mut wishes = Vec::new();
    let mut wish = |name: &[u8], value: &[u8]| {
        let name = std::str::from_utf8(name).ok()?.to_ascii_lowercase();
        let value = std::str::from_utf8(value).ok()?;
        if parameters::is_startup_only(&name) {
            return None;
        }
        wishes.push(Setting { name: name.into(), value: value.into() });
        Some(())
    };
    // PostgreSQL reads the options first, then the packet's own parameters.
    for switch in startup::switches(startup.options().unwrap_or_default()) {
        match switch {
            Switch::Setting { name, value } => wish(&name, &value)?,
            Switch::NoValue { .. } | Switch::Other { .. } => return None,
        }
    }
    for (name, value) in startup.settings() {
        wish(name, value)?;
    }
    Some(wishes)
}
