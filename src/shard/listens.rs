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

mod hearing;
mod sharing;
mod unlisten;

use std::rc::Rc;

use crate::ids::{BackendId, ClientId, PoolId};
use crate::io::{Close, Transport};
use crate::memory::{Slice, Stash};
use crate::protocol::reader;
use crate::protocol::tag::backend as tag;
use crate::session::RelayMode;
use crate::session::channels::Channels;
use crate::session::fault::Fault;

use super::clean::Stage as CleanStage;
use super::{BackendState, Purpose, Running, Server, Shard};

/// Mark of the question on what a backend listens.
pub(super) const MARK_CHANNELS: u32 = 7;
/// Mark of the query that sends the mark.
const MARK_MARK: u32 = 8;
/// Mark of the query that has a backend forget its channels.
const MARK_UNLISTEN: u32 = 9;
/// Mark of the query that has a backend listen on what its client does.
pub(super) const MARK_REAL: u32 = 10;

/// The channel of the marks: one that no application has.
const MARK_CHANNEL: &str = "qcp_mark_9c1e5b07d2a84f36";
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
    /// It hears marks. Until its first query is answered, one that somebody sends may come too early for it.
    hears_marks: bool,
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
    /// The client has sent something since the server was asked: the names may be old.
    stale: bool,
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

    /// The client sends something.
    pub(super) fn outdate(&mut self) {
        self.stale = true;
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
        (listener.busy, listener.hears_marks) = (false, true);
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
        self.hand_in(id);
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

    /// Whether somebody listens who may have to hear of what a client of this mode notifies.
    pub(super) fn says_notified(&self, mode: RelayMode) -> bool {
        mode != RelayMode::Session && !self.listeners.is_empty()
    }
}

impl Hearing {
    fn new(listener: u32) -> Self {
        Self { listener, held: Vec::new(), held_size: 0, moving: None }
    }

    /// Whether what the listener hears has to wait for the rest of what the client's backend has heard. Until the listener
    /// has seen the mark, it tells of other channels only than those that move, and the client's requests go on: so then
    /// nothing waits.
    fn waits_for_move(&self) -> bool {
        self.moving.as_ref().is_some_and(|moving| moving.passed)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_quoted() {
        let mut sql = Vec::new();
        write_name(b"a\"; drop table x; --", &mut sql);
        assert_eq!(sql, b"\"a\"\"; drop table x; --\";");
    }
}
