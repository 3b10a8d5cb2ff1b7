//! LISTEN for many clients over one backend for each database: the *listener*.
//!
//! A client's LISTEN runs on the backend that it has, as on a direct connection; so what a transaction, a savepoint or a
//! function does to it is the server's business. Behind the transaction the server is asked on what that backend
//! listens, and the client's part in it *moves* to the listener: the listener listens too; a notification of our own (the
//! mark) is seen by both; what comes before the mark the client gets from its backend, what comes behind it from the
//! listener; then the backend forgets its channels and is free. So each notification reaches the client once, in order.
//! The first backend that would be pinned by LISTEN alone becomes the listener, and its place in the pool is free.
//!
//! Invariant: a client hears of a notification between its transactions only, and before the ReadyForQuery of a
//! transaction that could know of it: that answer waits until the listener has said that nothing is on its way.
//!
//! A listener that is lost may have missed notifications: its clients are told and closed, as they would be if it were
//! their own connection.

use std::rc::Rc;

use crate::ids::{BackendId, ClientId, PoolId};
use crate::io::{Close, Transport};
use crate::memory::{Slice, Stash};
use crate::protocol::tag::backend as tag;
use crate::protocol::{HEAD_SIZE, TransactionStatus, reader};
use crate::session::channels::Channels;
use crate::session::fault::Fault;
use crate::session::parameters::VectorId;
use crate::session::scanner::Effects;
use crate::session::{RelayMode, Transparency};

use super::clean::Stage as CleanStage;
use super::{BackendState, ClientState, Purpose, Running, Server, Shard};

/// Mark of the question on what a backend listens.
pub(super) const MARK_CHANNELS: u32 = 7;
/// Mark of the query that sends the mark.
const MARK_MARK: u32 = 8;
/// Mark of the query that has a backend forget its channels.
const MARK_UNLISTEN: u32 = 9;
/// Mark of the query that has a backend listen on what its client does.
pub(super) const MARK_REAL: u32 = 10;

/// The channel of the marks.
const MARK_CHANNEL: &[u8] = b"qcp_mark";
/// Bytes of notifications that wait for one client.
const HELD_MAX: usize = 1 << 20;
/// Bytes of one query of a listener's; and of the names that one client may have there.
const NAMES_SIZE_MAX: usize = 16 * 1024;

/// Bytes of the tables of channels of one shard, for the sums.
pub const fn channels_size_max(clients_max: usize) -> usize {
    256 * clients_max + (1 << 20)
}

/// One backend that listens for clients of one database.
pub(super) struct Listener {
    server: Server,
    database: String,
    backend: BackendId,
    channels: Channels<ClientId>,
    /// A query of ours is under way.
    busy: bool,
    /// Channels in it.
    asked: Vec<Rc<[u8]>>,
    /// Who waits for its answer.
    answering: Vec<Wait>,
    /// Who waits for the answer to the next.
    waiting: Vec<Wait>,
}

/// What waits for a listener's answer.
enum Wait {
    /// This client's ReadyForQuery, from that backend.
    Ready(ClientId, BackendId),
    /// The move of the client of this backend.
    Share(BackendId),
}

/// What a client has that hears by a listener.
pub(super) struct Hearing {
    listener: u32,
    /// Notifications that wait for the end of its transaction.
    held: Vec<Stash>,
    held_size: usize,
    moving: Option<Moving>,
}

/// Channels on their way from a backend to the listener.
struct Moving {
    names: Vec<Box<[u8]>>,
    token: Box<str>,
    /// The listener has seen the mark.
    passed: bool,
}

/// How far a backend is on the way to being rid of its client's channels.
pub(super) struct Share {
    stage: Stage,
    names: Vec<Box<[u8]>>,
    /// The mark has come: what follows, the client gets from the listener.
    cut: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// The server is asked on what it listens.
    Asking,
    /// It has said so.
    Known,
    /// The listener is being asked to listen, too.
    Hearing,
    /// The mark and UNLISTEN are under way.
    Leaving,
    /// They are done; the listener has not seen the mark yet.
    Left,
}

impl Share {
    /// Whether rows are the names of channels.
    pub(super) fn is_asking(&self) -> bool {
        self.stage == Stage::Asking
    }

    /// Whether nothing has been done yet that cannot be done again.
    pub(super) fn is_open(&self) -> bool {
        matches!(self.stage, Stage::Asking | Stage::Known | Stage::Hearing)
    }

    /// A row of the answer.
    pub(super) fn add_row(&mut self, message: &[u8]) {
        let values = reader::data_row(message).ok();
        self.names.extend(values.into_iter().flatten().flatten().map(Into::into));
    }
}

impl<T: Transport> Shard<T> {
    /// The listener of a pool's database.
    fn listener_of(&self, pool: PoolId) -> Option<u32> {
        let pool = self.pools.get(pool);
        let fits = |listener: &Listener| {
            listener.server == pool.key.server && listener.database == pool.settings.server_database
        };
        let at = self.listeners.iter().position(|slot| slot.as_ref().is_some_and(fits))?;
        Some(at as u32)
    }

    fn listener(&mut self, slot: u32) -> Option<&mut Listener> {
        self.listeners.get_mut(slot as usize)?.as_mut()
    }

    /// The linked client's transaction is over, and its backend listens, or may. `true`: something is under way.
    pub(super) fn go_on_sharing(&mut self, id: BackendId) -> bool {
        let Some(link) = self.backends.get(id.index, id.generation) else { return true };
        if let Some(share) = &link.kept.share {
            if share.stage == Stage::Known {
                return self.decide(id);
            }
            return true;
        }
        let (pool, real, pins) = (link.pool, link.kept.real, link.kept.pins);
        if !(pins.has(Effects::LISTEN) || real) || link.kept.refused || self.running != Running::Yes {
            return false;
        }
        let can_promote = pins == Effects::LISTEN && self.can_replace(pool);
        if self.listener_of(pool).is_none() && !can_promote || !self.has_listeners_encoding(id) {
            return false;
        }
        let share = Share { stage: Stage::Asking, names: Vec::new(), cut: false };
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
    pub(super) fn on_sharing_answer(&mut self, id: BackendId, mark: u32) {
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
            if pins == Effects::LISTEN && !names.is_empty() && self.can_replace(pool) {
                self.promote(client_id, id, &names);
                return true;
            }
            let link = self.backend(id).expect("looked up above");
            link.kept.share = None;
            if names.is_empty() {
                link.kept.pins = pins.without(Effects::LISTEN);
                link.kept.real = false;
                self.release_if_whole(id);
                return true;
            }
            link.kept.refused = true;
            return false;
        };
        let token = self.new_token(client_id);
        let Self { listeners, clients, backends, .. } = self;
        let channels = &mut listeners[slot as usize].as_mut().expect("found above").channels;
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
        let heard = added.iter().all(|name| channels.is_heard(name));
        let moves = !added.is_empty();
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
            let sql = format!("LISTEN qcp_mark; NOTIFY qcp_mark, '{token}'");
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
            asked: Vec::new(),
            answering: Vec::new(),
            waiting: Vec::new(),
        };
        match self.listeners.get_mut(slot) {
            Some(free) => *free = Some(listener),
            None => self.listeners.push(Some(listener)),
        }
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
        self.vectors.write_change(has, VectorId::NEUTRAL, std::mem::take(&mut link.touched), &mut sql);
        self.vectors.let_go(has);
        if !sql.is_empty() {
            sql.extend_from_slice(b";");
        }
        sql.extend_from_slice(b"SET idle_session_timeout = 0; LISTEN qcp_mark");
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

    /// Asks of the listener what is wanted of it, if it is free.
    fn drive(&mut self, slot: u32) {
        let mut sql = std::mem::take(&mut self.sql);
        sql.clear();
        let Some(listener) = self.listener(slot) else {
            self.sql = sql;
            return;
        };
        if listener.busy {
            self.sql = sql;
            return;
        }
        if listener.channels.is_empty() && listener.waiting.is_empty() {
            self.sql = sql;
            return self.retire(slot);
        }
        while sql.len() < NAMES_SIZE_MAX
            && let Some(name) = listener.channels.take_unwanted()
        {
            sql.extend_from_slice(b"UNLISTEN ");
            write_name(&name, &mut sql);
        }
        while sql.len() < NAMES_SIZE_MAX
            && let Some(name) = listener.channels.take_wanted()
        {
            sql.extend_from_slice(b"LISTEN ");
            write_name(&name, &mut sql);
            listener.asked.push(name);
        }
        if sql.is_empty() && listener.waiting.is_empty() {
            self.sql = sql;
            return;
        }
        listener.busy = true;
        listener.answering = std::mem::take(&mut listener.waiting);
        let backend = listener.backend;
        let connection = self.backend(backend).and_then(|backend| backend.connection);
        let sent = connection.is_some_and(|connection| {
            self.write(connection, sql.len() + 16, |writer| {
                let _ = writer.query(&sql);
            })
        });
        self.sql = sql;
        if !sent {
            self.on_backend_gone(backend, "qcp's arena is used up");
        }
    }

    /// A message from a listener.
    pub(super) fn on_listener_message(&mut self, id: BackendId, slot: u32, tag: u8, message: &Slice) {
        match tag {
            tag::NOTIFICATION_RESPONSE => self.on_heard(slot, message),
            tag::READY_FOR_QUERY => self.on_listener_ready(slot),
            tag::COMMAND_COMPLETE | tag::EMPTY_QUERY_RESPONSE | tag::NOTICE_RESPONSE | tag::PARAMETER_STATUS => {}
            _ => {
                let fields = reader::fields(message);
                let text = fields.get(crate::protocol::error::field::MESSAGE).unwrap_or(b"a message out of place");
                let text = String::from_utf8_lossy(text).into_owned();
                self.on_backend_gone(id, &text);
            }
        }
    }

    fn on_listener_ready(&mut self, slot: u32) {
        let Some(listener) = self.listener(slot) else { return };
        listener.busy = false;
        for name in std::mem::take(&mut listener.asked) {
            listener.channels.heard(&name);
        }
        for wait in std::mem::take(&mut listener.answering) {
            self.end_wait(wait);
        }
        self.drive(slot);
    }

    fn end_wait(&mut self, wait: Wait) {
        match wait {
            Wait::Ready(client, backend) => self.say_ready(client, backend),
            Wait::Share(id) => {
                let Some(link) = self.backend(id) else { return };
                if link.kept.share.as_ref().is_some_and(|share| share.stage == Stage::Hearing) {
                    // Its client may have changed its mind meanwhile: it is asked again.
                    link.kept.share = None;
                    self.release_if_whole(id);
                }
            }
        }
    }

    fn release_if_whole(&mut self, id: BackendId) {
        if self.backend(id).is_some_and(|link| link.pipeline.is_whole()) {
            self.try_release(id);
        }
    }

    /// Whether the ReadyForQuery that is here has to wait until the listener has nothing on its way.
    pub(super) fn holds_ready(&mut self, id: BackendId) -> bool {
        let Some(client_id) = self.client_of(id) else { return false };
        let link = self.backends.get_mut(id.index, id.generation).expect("a linked backend is there");
        if link.pipeline.status() != TransactionStatus::Idle {
            return false;
        }
        let (pool, busy) = (link.pool, link.pipeline.is_client_busy());
        let notified = link.kept.notified;
        let hears = link.kept.hears;
        let resets = std::mem::take(&mut link.kept.resets);
        let fast = self.pools.get(pool).settings.preserve == Some(Transparency::Fast);
        let client = self.client(client_id).expect("a linked client is there");
        // Behind a pipeline's other answers there is no place for it; those who leave hear nothing more.
        let waits = !busy && !client.terminating;
        let resets = resets && waits;
        let slot = if waits && (notified || hears && !fast) { self.listener_of(pool) } else { None };
        if slot.is_none() && !resets {
            self.backend(id).expect("looked up above").kept.notified = false;
            self.tell_held(client_id);
            return false;
        };
        let link = self.backend(id).expect("looked up above");
        link.kept.ready_held = true;
        // An UNLISTEN takes effect before its answer: first it is found out what is left.
        link.kept.ready_waits = link.kept.real || resets;
        let waits = link.kept.ready_waits;
        self.client(client_id).expect("looked up above").paused = true;
        if !waits {
            self.wait_for_listener(client_id, id);
        }
        true
    }

    /// It is known on what the client listens: now its ReadyForQuery waits for the listener.
    pub(super) fn go_on_to_ready(&mut self, id: BackendId) {
        let Some(link) = self.backend(id) else { return };
        let kept = &mut link.kept;
        let settled = kept.suspects.is_empty() && kept.asked.is_none() && kept.share.is_none();
        if !kept.ready_waits || !settled || kept.real && !kept.refused {
            return;
        }
        kept.ready_waits = false;
        let Some(client) = self.client_of(id) else { return };
        self.wait_for_listener(client, id);
    }

    /// The client's ReadyForQuery waits until nothing that it could know of is on its way.
    fn wait_for_listener(&mut self, client: ClientId, id: BackendId) {
        let Some(link) = self.backend(id) else { return };
        let (pool, asks) = (link.pool, link.kept.hears || link.kept.notified);
        match if asks { self.listener_of(pool) } else { None } {
            Some(slot) => {
                self.listener(slot).expect("found above").waiting.push(Wait::Ready(client, id));
                self.drive(slot);
            }
            None => self.say_ready(client, id),
        }
    }

    /// Nothing is on its way any more: the client's transaction is over for it, too.
    fn say_ready(&mut self, client: ClientId, id: BackendId) {
        if self.client_of(id) != Some(client) {
            return;
        }
        let link = self.backend(id).expect("looked up above");
        link.kept.ready_held = false;
        link.kept.notified = false;
        let connection = self.client(client).expect("a linked client is there").connection;
        self.tell_held(client);
        self.write(connection, 8, |writer| {
            writer.ready_for_query(TransactionStatus::Idle).expect("the room was asked for");
        });
        self.resume_client(client);
        if self.client_of(id) == Some(client) {
            self.release_if_whole(id);
        }
    }

    /// A notification that a listener has heard.
    fn on_heard(&mut self, slot: u32, message: &Slice) {
        let Ok(notification) = reader::notification_response(message) else { return };
        if notification.channel == MARK_CHANNEL {
            return self.on_mark(notification.payload);
        }
        let mut ears = std::mem::take(&mut self.ears);
        ears.clear();
        if let Some(listener) = self.listener(slot) {
            ears.extend(listener.channels.listeners(notification.channel));
        }
        for &client in &ears {
            self.tell(client, notification.process_id, message);
        }
        self.ears = ears;
    }

    /// A notification for one client.
    fn tell(&mut self, id: ClientId, process_id: u32, message: &Slice) {
        let Ok(notification) = reader::notification_response(message) else { return };
        let Self { clients, backends, .. } = self;
        let Some(client) = clients.get_mut(id.index, id.generation) else { return };
        let Some(hearing) = &mut client.hears else { return };
        if let Some(moving) = &hearing.moving
            && !moving.passed
            && moving.names.iter().any(|name| **name == *notification.channel)
        {
            // Its backend has told it, or will.
            return;
        }
        let link = match client.state {
            ClientState::Linked(backend) => backends.get(backend.index, backend.generation),
            _ => None,
        };
        let now = match (&client.state, link) {
            (ClientState::Ready | ClientState::Waiting, _) => true,
            (_, Some(link)) => {
                !link.pipeline.is_client_busy()
                    && link.pipeline.status() == TransactionStatus::Idle
                    && link.framer.at_boundary()
                    && !link.kept.ready_held
            }
            _ => false,
        };
        let own = link.is_some_and(|link| link.process_id == process_id && link.kept.notified);
        let now = now && hearing.moving.is_none();
        let connection = client.connection;
        let mut room = [0; 16];
        let head = &mut room[..HEAD_SIZE + 4];
        head.copy_from_slice(&message[..HEAD_SIZE + 4]);
        if own {
            let given = self.process_id(id);
            head[HEAD_SIZE..].copy_from_slice(&given.to_be_bytes());
        }
        let rest = message.part(head.len(), message.len());
        let hearing = self.client(id).and_then(|client| client.hears.as_mut()).expect("looked at above");
        if now && hearing.held.is_empty() {
            if own {
                let Some(head) = self.io.scratch().copy(head) else { return self.io.abort(connection) };
                self.io.send(connection, head);
                self.io.send(connection, rest);
            } else {
                self.io.send(connection, message.clone());
            }
            if self.io.queued(connection).0 > HELD_MAX {
                self.fail(id, &Fault::ListenerSlow);
            }
            return;
        }
        hearing.held_size += message.len();
        let mut room = hearing.held_size <= HELD_MAX;
        let mut whole = std::mem::take(&mut self.sql);
        whole.clear();
        whole.extend_from_slice(head);
        whole.extend_from_slice(&rest);
        let Self { clients, io, .. } = self;
        let client = clients.get_mut(id.index, id.generation).expect("looked at above");
        let held = &mut client.hears.as_mut().expect("looked at above").held;
        if held.last_mut().is_none_or(|last| last.add_spare(io.arena(), &whole).is_err()) {
            let mut next = Stash::default();
            room &= next.add_spare(io.arena(), &whole).is_ok();
            held.push(next);
        }
        self.sql = whole;
        if !room {
            self.fail(id, &Fault::ListenerSlow);
        } else if now {
            self.tell_held(id);
        }
    }

    /// What has waited for the end of the client's transaction.
    pub(super) fn tell_held(&mut self, id: ClientId) {
        let Some(client) = self.client(id) else { return };
        let connection = client.connection;
        let Some(hearing) = &mut client.hears else { return };
        if hearing.held.is_empty() || hearing.moving.is_some() {
            return;
        }
        hearing.held_size = 0;
        let slot = hearing.listener;
        for held in std::mem::take(&mut hearing.held) {
            let Self { listeners, io, .. } = self;
            let listener = listeners.get(slot as usize).and_then(Option::as_ref);
            // What it has unlistened meanwhile it does not want to hear any more.
            let wants = |message: &[u8]| match (reader::notification_response(message), listener) {
                (Ok(notification), Some(listener)) => listener.channels.hears(id, notification.channel),
                _ => false,
            };
            let told = io.scratch().write(held.len(), |free| {
                let (mut rest, mut size) = (held.bytes(), 0);
                while let Some(length) = rest.get(1..HEAD_SIZE).and_then(|length| length.try_into().ok()) {
                    let end = (u32::from_be_bytes(length) as usize + 1).min(rest.len());
                    if wants(&rest[..end]) {
                        free[size..size + end].copy_from_slice(&rest[..end]);
                        size += end;
                    }
                    rest = &rest[end..];
                }
                size
            });
            match told {
                Some(bytes) if bytes.is_empty() => {}
                Some(bytes) => self.io.send(connection, bytes),
                None => return self.io.abort(connection),
            }
        }
    }

    /// The linked backend's transaction is over for its client.
    pub(super) fn tell_held_by(&mut self, id: BackendId) {
        let Some(link) = self.backends.get(id.index, id.generation) else { return };
        if link.kept.hears
            && !link.kept.ready_held
            && !link.pipeline.is_client_busy()
            && let Some(client) = self.client_of(id)
        {
            self.tell_held(client);
        }
    }

    /// The listener has seen a mark: from here on it is the one who tells that client.
    fn on_mark(&mut self, token: &[u8]) {
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
        }
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
    fn forget_hearing_if_none(&mut self, id: ClientId) {
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
    pub(super) fn is_heard_elsewhere(&mut self, id: BackendId, message: &[u8]) -> bool {
        let Ok(notification) = reader::notification_response(message) else { return false };
        let Some(client_id) = self.client_of(id) else { return false };
        let Self { clients, backends, listeners, .. } = self;
        let Some(link) = backends.get_mut(id.index, id.generation) else { return false };
        let client = clients.get(client_id.index, client_id.generation).expect("a linked client is there");
        let Some(hearing) = &client.hears else { return false };
        let moving = hearing.moving.as_ref();
        if let Some(share) = &mut link.kept.share {
            let is_mark = notification.channel == MARK_CHANNEL;
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

    /// A text that may change on what the client listens is about to go to a backend that knows nothing of that: so that
    /// the server can say afterwards what is true, it listens on the same first. Inside a transaction it would listen only
    /// at the end; there, what the text says is remembered.
    pub(super) fn make_real(&mut self, id: ClientId, backend: BackendId, bytes: &Slice, run: &mut usize, at: usize) {
        if self.backend(backend).is_some_and(|link| link.kept.wants_real) {
            self.flush_run(id, bytes, *run, at);
            *run = at;
            self.make_real_here(id, backend);
        }
    }

    /// The same where everything before has been sent.
    pub(super) fn make_real_here(&mut self, id: ClientId, backend: BackendId) {
        let Some(link) = self.backend(backend) else { return };
        if !std::mem::take(&mut link.kept.wants_real) || link.kept.real {
            return;
        }
        if link.pipeline.is_busy() || link.pipeline.is_unsynced() || link.pipeline.status() != TransactionStatus::Idle {
            return;
        }
        let Some(slot) = self.client(id).and_then(|client| client.hears.as_ref()).map(|hearing| hearing.listener)
        else {
            return;
        };
        let mut sql = std::mem::take(&mut self.sql);
        sql.clear();
        if let Some(listener) = self.listener(slot) {
            for name in listener.channels.names_of(id) {
                sql.extend_from_slice(b"LISTEN ");
                write_name(name, &mut sql);
            }
        }
        if !sql.is_empty()
            && self.ask_own(backend, &sql, MARK_REAL)
            && let Some(link) = self.backend(backend)
        {
            link.kept.real = true;
        }
        self.sql = sql;
    }

    /// The client's own UNLISTEN inside a transaction has been committed, as far as can be told.
    pub(super) fn apply_unlistened(&mut self, id: BackendId) {
        let Some(link) = self.backend(id) else { return };
        let unlistened = std::mem::take(&mut link.kept.unlistened);
        if unlistened.is_empty() {
            return;
        }
        let Some(client) = self.client_of(id) else { return };
        let Some(slot) = self.client(client).and_then(|client| client.hears.as_ref()).map(|hearing| hearing.listener)
        else {
            return;
        };
        if let Some(listener) = self.listener(slot) {
            for name in unlistened {
                match name {
                    Some(name) => listener.channels.unlisten(client, &name),
                    None => listener.channels.leave(client),
                }
            }
        }
        self.forget_hearing_if_none(client);
        self.drive(slot);
    }

    /// The client listens on nothing any more: DISCARD ALL.
    pub(super) fn hear_nothing(&mut self, id: ClientId) {
        let Some(client) = self.client(id) else { return };
        let Some(hearing) = client.hears.take() else { return };
        if let Some(listener) = self.listener(hearing.listener) {
            listener.channels.leave(id);
        }
        self.drive(hearing.listener);
    }

    /// The client is gone; `hearing` was its.
    pub(super) fn leave_listener(&mut self, id: ClientId, hearing: &Hearing) {
        if let Some(listener) = self.listener(hearing.listener) {
            listener.channels.leave(id);
        }
        self.drive(hearing.listener);
    }

    /// Nobody listens any more: the backend goes back to its pool if there is a place.
    fn retire(&mut self, slot: u32) {
        let Some(listener) = self.listeners[slot as usize].take() else { return };
        let id = listener.backend;
        let running = self.running == Running::Yes;
        let Some(pool) = self.backend(id).map(|backend| backend.pool) else { return };
        let part = &mut self.pools.get_mut(pool).part;
        if !running || !part.begin_open() {
            self.close_backend(id, Close::Flushed);
            return;
        }
        part.opened();
        let backend = self.backend(id).expect("looked up above");
        backend.purpose = Purpose::Pool;
        backend.state = BackendState::Cleaning(CleanStage::Draining);
        backend.pipeline.reset();
        backend.kept.must_reset = true;
        self.go_on_cleaning(id);
    }

    /// The connection of a listener is gone: what it would have heard is lost.
    pub(super) fn on_listener_gone(&mut self, slot: u32, why: &str) {
        let Some(listener) = self.listeners.get_mut(slot as usize).and_then(Option::take) else { return };
        let clients: Vec<ClientId> = listener.channels.clients().collect();
        log::warn!(
            "{}: the connection that listened for {} clients is lost: {why}; they are told and closed",
            listener.database,
            clients.len()
        );
        for client in clients {
            self.fail(client, &Fault::ListenerLost(why.to_owned()));
        }
        for wait in listener.answering.into_iter().chain(listener.waiting) {
            self.end_wait(wait);
        }
    }

    /// In a transaction the linked client has said UNLISTEN: of what, where the text says nothing else.
    pub(super) fn note_listens(&mut self, backend: BackendId, effects: Effects, text: &[u8]) {
        let Some(link) = self.backend(backend) else { return };
        link.kept.notified |= effects.has(Effects::NOTIFY.and(Effects::OPAQUE));
        if !link.kept.hears || !effects.has(Effects::LISTEN.and(Effects::OPAQUE)) {
            return;
        }
        link.kept.wants_real = true;
        let inside =
            link.pipeline.is_busy() || link.pipeline.is_unsynced() || link.pipeline.status() != TransactionStatus::Idle;
        if inside
            && !link.kept.real
            && let Some(name) = unlistened(text)
        {
            link.kept.unlistened.push(name);
        }
    }

    /// Whether somebody listens who may have to hear of what a client of this mode notifies.
    pub(super) fn says_notified(&self, mode: RelayMode) -> bool {
        mode != RelayMode::Session && !self.listeners.is_empty()
    }
}

impl Hearing {
    fn new(listener: u32) -> Self {
        Self { listener, held: Vec::new(), held_size: 0, moving: None }
    }
}

/// A channel's name, quoted, and the end of the statement.
fn write_name(name: &[u8], sql: &mut Vec<u8>) {
    sql.push(b'"');
    for &byte in name {
        if byte == b'"' {
            sql.push(byte);
        }
        sql.push(byte);
    }
    sql.extend_from_slice(b"\";");
}

/// What a text unlistens that is one UNLISTEN: `Some(None)` is all.
fn unlistened(text: &[u8]) -> Option<Option<Box<[u8]>>> {
    let text = std::str::from_utf8(text).ok()?.trim().trim_end_matches(';').trim_end();
    let (word, name) = text.split_once(char::is_whitespace)?;
    if !word.eq_ignore_ascii_case("unlisten") {
        return None;
    }
    let name = name.trim_start();
    let plain =
        |name: &str| !name.is_empty() && name.chars().all(|letter| letter.is_alphanumeric() || "_$".contains(letter));
    match name.strip_prefix('"').and_then(|name| name.strip_suffix('"')) {
        _ if name == "*" => Some(None),
        Some(quoted) => Some(Some(quoted.replace("\"\"", "\"").into_bytes().into())),
        None if plain(name) => Some(Some(name.to_ascii_lowercase().into_bytes().into())),
        None => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_quoted() {
        let mut sql = Vec::new();
        write_name(b"a\"; drop table x; --", &mut sql);
        assert_eq!(sql, b"\"a\"\"; drop table x; --\";");
    }

    #[test]
    fn what_an_unlisten_says() {
        let named = |name: &str| Some(Some(name.as_bytes().into()));
        assert_eq!(unlistened(b"UNLISTEN Jobs ;"), named("jobs"));
        assert_eq!(unlistened(b" unlisten \"Jo\"\"bs\""), named("Jo\"bs"));
        assert_eq!(unlistened(b"unlisten *"), Some(None));
        for text in ["unlisten a; select 1", "listen a", "unlisten", "unlisten /* x */ a"] {
            assert_eq!(unlistened(text.as_bytes()), None, "{text}");
        }
    }
}
