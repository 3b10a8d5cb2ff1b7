//! How a client's channels move from its backend to the listener of its database, or its backend becomes the listener.
//!
//! Invariant: until both have seen the mark, the client hears of these channels from its backend; then from the listener.

use crate::ids::{BackendId, ClientId};
use crate::io::Transport;
use crate::protocol::reader;
use crate::session::channels::Channels;
use crate::session::fault::Fault;
use crate::session::parameters::VectorId;
use crate::session::scanner::Effects;

use super::super::{BackendState, ClientState, Purpose, Running, Shard};
use super::{
    Hearing, Listener, MARK_CHANNEL, MARK_CHANNELS, MARK_MARK, MARK_UNLISTEN, Moving, NAMES_SIZE_MAX, Share, Stage,
    Wait, channels_size_max,
};

impl<T: Transport> Shard<T> {
    /// The linked client's transaction is over, and its backend listens, or may. `true`: something is under way.
    pub(in crate::shard) fn go_on_sharing(&mut self, id: BackendId) -> bool {
        let Some(link) = self.backends.get(id.index, id.generation) else { return true };
        if link.kept.ready_held && !link.kept.ready_waits {
            // Its ReadyForQuery waits for the listener: what comes before that must not have to wait for a move to end.
            return true;
        }
        if let Some(share) = &link.kept.share {
            match share.stage {
                Stage::Known if share.stale => self.backend(id).expect("looked up above").kept.share = None,
                Stage::Known => return self.decide(id),
                Stage::Asking | Stage::Hearing | Stage::Leaving | Stage::Left => return true,
            }
        }
        let Some(link) = self.backends.get(id.index, id.generation) else { return true };
        let (pool, real, pins) = (link.pool, link.kept.real, link.kept.pins);
        if !(pins.has(Effects::LISTEN) || real) || link.kept.refused || self.running != Running::Yes {
            return false;
        }
        let can_promote = pins.without(Effects::LISTEN).is_empty() && self.can_replace(pool);
        let alone = self.listener_of(pool).is_none();
        // While its ReadyForQuery is held it becomes no listener: nobody would give that any more. It is given first.
        if alone && (link.kept.ready_held || !can_promote && !real) || !self.has_listeners_encoding(id) {
            return false;
        }
        let share = Share { stage: Stage::Asking, names: Vec::new(), cut: false, stale: false };
        self.backend(id).expect("looked up above").kept.share = Some(Box::new(share));
        self.ask_for_sharing(id, b"SELECT pg_catalog.pg_listening_channels()", MARK_CHANNELS)
    }

    fn ask_for_sharing(&mut self, id: BackendId, sql: &[u8], mark: u32) -> bool {
        if !self.ask_own(id, sql, mark)
            && let Some(client) = self.client_of(id)
        {
            self.fail(client, &Fault::NoMemory);
        }
        true
    }

    /// Notifications come in the encoding of the connection that hears them, and a listener's is the database's.
    fn has_listeners_encoding(&self, id: BackendId) -> bool {
        let Some(link) = self.backends.get(id.index, id.generation) else { return false };
        let parameters = &self.pools.get(link.pool).parameters;
        let own = parameters.iter().find(|(name, _)| name.eq_ignore_ascii_case("client_encoding"));
        let plain = |name: &str| {
            let letters = name.chars().filter(char::is_ascii_alphanumeric);
            letters.map(|letter| letter.to_ascii_lowercase()).collect::<String>()
        };
        match (self.vectors.get(link.has, "client_encoding"), own) {
            (None, _) => true,
            (Some(has), Some((_, own))) => plain(has) == plain(own),
            (Some(_), None) => false,
        }
    }

    /// A query of this module's has been answered.
    pub(in crate::shard) fn on_sharing_answer(&mut self, id: BackendId, mark: u32) {
        let Some(client) = self.client_of(id) else { return };
        let Some(link) = self.backend(id) else { return };
        match (mark, &mut link.kept.share) {
            (MARK_CHANNELS, Some(share)) => share.stage = Stage::Known,
            (MARK_UNLISTEN, Some(share)) => {
                share.stage = Stage::Left;
                link.kept.pins = link.kept.pins.without(Effects::LISTEN);
                link.kept.real = false;
                let hearing = self.client(client).and_then(|client| client.hears.as_ref());
                let moving = hearing.and_then(|hearing| hearing.moving.as_ref());
                if moving.is_none_or(|moving| moving.passed) {
                    self.end_move(client, id);
                }
            }
            _ => {}
        }
    }

    /// It is known on what the backend listens: its client's part moves to the listener.
    fn decide(&mut self, id: BackendId) -> bool {
        let Some(client_id) = self.client_of(id) else { return false };
        let link = self.backends.get_mut(id.index, id.generation).expect("the caller has looked it up");
        let Some(share) = &mut link.kept.share else { return false };
        let names = std::mem::take(&mut share.names);
        let (pool, real, pins) = (link.pool, link.kept.real, link.kept.pins);
        let Some(slot) = self.listener_of(pool) else {
            let others = pins.without(Effects::LISTEN);
            let held = self.backend(id).is_some_and(|link| link.kept.ready_held);
            if others.is_empty() && !names.is_empty() && !held && self.can_replace(pool) {
                self.promote(client_id, id, &names);
                return true;
            }
            // The listener went meanwhile: what it listened on for this client, its own backend does.
            let link = self.backend(id).expect("looked up above");
            link.kept.share = None;
            link.kept.real = false;
            link.kept.pins = if names.is_empty() { others } else { others.and(Effects::LISTEN) };
            link.kept.refused = !names.is_empty() && !held;
            if held {
                self.go_on_to_ready(id);
            } else if names.is_empty() {
                self.release_if_whole(id);
            }
            return names.is_empty() || held;
        };
        let token = self.new_token(client_id);
        let Self { listeners, clients, backends, .. } = self;
        let listener = listeners[slot as usize].as_mut().expect("found above");
        let (channels, hears_marks) = (&mut listener.channels, listener.hears_marks);
        let client = clients.get_mut(client_id.index, client_id.generation).expect("a linked client is there");
        let link = backends.get_mut(id.index, id.generation).expect("looked up above");
        let before = client.hears.as_mut().and_then(|hearing| hearing.moving.take());
        let was_moving =
            |name: &[u8]| before.as_ref().is_some_and(|moving| moving.names.iter().any(|own| **own == *name));
        let gone: Vec<Box<[u8]>> = channels
            .names_of(client_id)
            .filter(|name| real || was_moving(name))
            .filter(|name| !names.iter().any(|own| **own == **name))
            .map(Into::into)
            .collect();
        for name in gone {
            channels.unlisten(client_id, &name);
        }
        let added: Vec<Box<[u8]>> =
            names.into_iter().filter(|name| !channels.hears(client_id, name) || was_moving(name)).collect();
        let size = channels.names_of(client_id).map(<[u8]>::len).sum::<usize>()
            + added.iter().map(|name| name.len()).sum::<usize>();
        let full = size > NAMES_SIZE_MAX || added.iter().any(|name| channels.listen(client_id, name).is_err());
        if full {
            // Where there is no room for it, its backend goes on listening for it.
            for name in &added {
                channels.unlisten(client_id, name);
            }
            link.kept.share = None;
            link.kept.refused = true;
            return false;
        }
        let moves = !added.is_empty();
        let heard = !moves || hears_marks && added.iter().all(|name| channels.is_heard(name));
        if moves || client.hears.is_some() {
            let hearing = client.hears.get_or_insert_with(|| Box::new(Hearing::new(slot)));
            hearing.moving = moves.then(|| Moving { names: added, token: token.clone().into(), passed: false });
            link.kept.hears = true;
        }
        let share = link.kept.share.as_mut().expect("looked at above");
        if !heard {
            share.stage = Stage::Hearing;
            self.listener(slot).expect("found above").waiting.push(Wait::Share(id));
            self.drive(slot);
            return true;
        }
        share.stage = Stage::Leaving;
        share.cut = false;
        if moves {
            let sql = format!("LISTEN {MARK_CHANNEL}; NOTIFY {MARK_CHANNEL}, '{token}'");
            self.ask_for_sharing(id, sql.as_bytes(), MARK_MARK);
        }
        if self.backend(id).is_some() {
            self.ask_for_sharing(id, b"UNLISTEN *", MARK_UNLISTEN);
        }
        self.drive(slot);
        true
    }

    /// One that nobody else makes, over all shards and processes.
    fn new_token(&mut self, id: ClientId) -> String {
        format!("{}.{}.{:x}.{}", id.index, id.generation, self.next_random(), self.settings.id.0)
    }

    /// The backend becomes the listener of its database; its place in the pool is free.
    fn promote(&mut self, client_id: ClientId, id: BackendId, names: &[Box<[u8]>]) {
        let pool = self.backend(id).expect("the caller has looked it up").pool;
        let slot = self.listeners.iter().position(Option::is_none).unwrap_or(self.listeners.len());
        let taken: usize = self.listeners.iter().flatten().map(|listener| listener.channels.bytes()).sum();
        let bytes_max = channels_size_max(self.settings.clients_max as usize).saturating_sub(taken);
        let mut channels = Channels::new(bytes_max);
        let size: usize = names.iter().map(|name| name.len()).sum();
        if size > NAMES_SIZE_MAX || names.iter().any(|name| channels.listen(client_id, name).is_err()) {
            let link = self.backend(id).expect("looked up above");
            link.kept.share = None;
            link.kept.refused = true;
            return;
        }
        while let Some(name) = channels.take_wanted() {
            channels.heard(&name);
        }
        let settings = self.pools.get(pool);
        let listener = Listener {
            server: settings.key.server.clone(),
            database: settings.settings.server_database.clone(),
            backend: id,
            channels,
            busy: true,
            hears_marks: false,
            asked: Vec::new(),
            answering: Vec::new(),
            waiting: Vec::new(),
        };
        match self.listeners.get_mut(slot) {
            Some(free) => *free = Some(listener),
            None => self.listeners.push(Some(listener)),
        }
        self.hand_in(id);
        self.hide_foreign(id);
        let mut sql = std::mem::take(&mut self.sql);
        sql.clear();
        let link = self.backends.get_mut(id.index, id.generation).expect("looked up above");
        link.kept.forget();
        let has = std::mem::replace(&mut link.has, VectorId::NEUTRAL);
        link.state = BackendState::Listening(slot as u32);
        link.purpose = Purpose::Listen;
        link.stalled = None;
        let connection = link.connection.expect("a linked backend is connected");
        // What the client has set is not the listener's, and no timeout of the server's ends it.
        self.vectors.write_change(has, VectorId::NEUTRAL, std::mem::take(&mut link.touched), &[], &mut sql);
        link.unset.clear();
        self.vectors.let_go(has);
        if !sql.is_empty() {
            sql.extend_from_slice(b";");
        }
        sql.extend_from_slice(b"SET idle_session_timeout = 0; LISTEN ");
        sql.extend_from_slice(MARK_CHANNEL.as_bytes());
        let written = self.write(connection, sql.len() + 16, |writer| {
            let _ = writer.query(&sql);
        });
        self.sql = sql;
        self.pools.get_mut(pool).part.lost_lent();
        let client = self.client(client_id).expect("a linked client is there");
        client.state = ClientState::Ready;
        client.paused = false;
        client.hears = Some(Box::new(Hearing::new(slot as u32)));
        let client_connection = client.connection;
        self.io.receive(client_connection, true);
        self.io.receive(connection, true);
        if !written {
            self.on_backend_gone(id, "qcp's arena is used up");
        }
        self.give_way(pool);
        self.refill(pool);
    }

    /// The listener has seen a mark: from here on it is the one who tells that client.
    pub(super) fn on_mark(&mut self, token: &[u8]) {
        let Ok(token) = std::str::from_utf8(token) else { return };
        let mut parts = token.split('.').map(str::parse);
        let (Some(Ok(index)), Some(Ok(generation))) = (parts.next(), parts.next()) else { return };
        let id = ClientId { index, generation };
        let Some(hearing) = self.client(id).and_then(|client| client.hears.as_mut()) else { return };
        let Some(moving) = hearing.moving.as_mut().filter(|moving| *moving.token == *token) else { return };
        moving.passed = true;
        let Some(backend) = self.backend_of(id) else { return };
        let left = self.backend(backend).and_then(|link| link.kept.share.as_ref());
        if left.is_some_and(|share| share.stage == Stage::Left) {
            self.end_move(id, backend);
            self.release_if_whole(backend);
            // What it has asked meanwhile has waited.
            if self.backend_of(id) == Some(backend) {
                self.resume_client(id);
            }
        }
    }

    /// The client goes on without its backend, which does not listen: a move that was begun is none any more.
    pub(in crate::shard) fn abandon_move(&mut self, id: ClientId) {
        let Some(hearing) = self.client(id).and_then(|client| client.hears.as_mut()) else { return };
        let Some(moving) = hearing.moving.take() else { return };
        let slot = hearing.listener;
        if let Some(listener) = self.listener(slot) {
            for name in &moving.names {
                listener.channels.unlisten(id, name);
            }
        }
        self.tell_held(id);
        self.forget_hearing_if_none(id);
        self.drive(slot);
    }

    fn end_move(&mut self, client: ClientId, id: BackendId) {
        if let Some(link) = self.backend(id) {
            link.kept.share = None;
        }
        if let Some(hearing) = self.client(client).and_then(|client| client.hears.as_mut()) {
            hearing.moving = None;
        }
        self.forget_hearing_if_none(client);
        self.tell_held_by(id);
    }

    /// Who listens on nothing any more is as others are.
    pub(super) fn forget_hearing_if_none(&mut self, id: ClientId) {
        let Some(client) = self.clients.get_mut(id.index, id.generation) else { return };
        let Some(hearing) = &client.hears else { return };
        let (slot, keeps) = (hearing.listener, !hearing.held.is_empty() || hearing.moving.is_some());
        let hears = self.listener(slot).is_some_and(|listener| listener.channels.names_of(id).next().is_some());
        if !hears && !keeps {
            self.client(id).expect("looked up above").hears = None;
            self.drive(slot);
        }
    }

    /// A notification that a linked backend has heard itself. `true`: it is not for its client, or not from here.
    pub(in crate::shard) fn is_heard_elsewhere(&mut self, id: BackendId, message: &[u8]) -> bool {
        let Ok(notification) = reader::notification_response(message) else { return false };
        let Some(client_id) = self.client_of(id) else { return false };
        let Self { clients, backends, listeners, .. } = self;
        let Some(link) = backends.get_mut(id.index, id.generation) else { return false };
        let client = clients.get(client_id.index, client_id.generation).expect("a linked client is there");
        let Some(hearing) = &client.hears else { return false };
        let moving = hearing.moving.as_ref();
        if let Some(share) = &mut link.kept.share {
            let is_mark = notification.channel == MARK_CHANNEL.as_bytes();
            share.cut |= is_mark && moving.is_some_and(|moving| moving.token.as_bytes() == notification.payload);
            if share.cut || is_mark {
                return true;
            }
        }
        if moving.is_some_and(|moving| moving.names.iter().any(|name| **name == *notification.channel)) {
            return false;
        }
        let listener = listeners.get(hearing.listener as usize).and_then(Option::as_ref);
        listener.is_some_and(|listener| listener.channels.hears(client_id, notification.channel))
    }
}
