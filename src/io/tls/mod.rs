//! TLS over a transport, as a transport: what is above sees plaintext, what is below sees records.
//!
//! rustls makes the handshakes (`handshake`) and says what the keys are; records are opened and sealed here (`record`,
//! `channel`) between chunks of the arena, with no allocation for each. What is sent to one peer in a turn goes into as few
//! records as can be; a connection without TLS costs one look at a table, and nothing where nobody has TLS.
//!
//! Handshakes compute for a tenth of a millisecond (ECDSA) to one (RSA), so one step is made per turn, and the others
//! wait in a queue: a storm of them slows itself down, not the queries that run beside it.
//!
//! Invariant: bytes are opened in the order in which they came, and sealed in the order in which they were sent; where no
//! chunk is to be had they wait. Owned by one shard.

mod blocking;
mod certificate;
mod channel;
mod handshake;
mod moving;
mod over_ring;
mod record;
mod settings;

#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::ops::Deref;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Instant;

use super::{Close, Errno, Event, Group, Parcel, SocketAddress, Transport};
use crate::ids::ConnectionId;
use crate::memory::{Arena, Nodes, Outbox, Scratch, Slice};

pub use blocking::Blocking;
pub use certificate::Certificate;
pub use handshake::Facts;
pub use settings::{About, Acceptor, Allowed, Connector, Fault, Trust, Version};

use channel::{Channel, Content};
use handshake::{HANDSHAKE_SIZE_MAX, Handshake, Progress};
use record::{CONTENT_SIZE_MAX, HEADER_SIZE, OVERHEAD_MAX, RECORD_SIZE_MAX, Wrong, alert};

/// The smallest chunk into which any record can be opened.
pub const CHUNK_SIZE_MIN: usize = (RECORD_SIZE_MAX + 64).next_multiple_of(1024);

/// How a connection becomes encrypted; see [`Transport::secure`].
pub enum Secure {
    /// The peer, a client, speaks first.
    Accept {
        /// The certificates and what is allowed.
        acceptor: Arc<Acceptor>,
        /// What has come of its first message already, without an SSLRequest; then it has to name the protocol by ALPN.
        begun: Option<Slice>,
    },
    /// This side speaks first, to a server.
    Connect {
        /// What is checked and what is allowed.
        connector: Arc<Connector>,
        /// The host as configured: a name, or an address.
        host: String,
        /// The server was not asked by an SSLRequest, so it has to name the protocol by ALPN.
        direct: bool,
    },
}

/// A transport of which some connections are encrypted.
pub struct Tls<T> {
    inner: T,
    /// By the connection's slot. Empty where TLS is off.
    sessions: Box<[Option<Box<Session>>]>,
    /// Sessions that there are.
    count: usize,
    nodes: Nodes,
    /// Handshakes that can go on.
    steps: VecDeque<ConnectionId>,
    stepped: bool,
    /// Sessions with something to seal.
    dirty: Vec<ConnectionId>,
    /// Sessions whose bytes wait for a chunk to be opened into, and the list that is being worked off.
    waiting: [Vec<ConnectionId>; 2],
    /// Events that one event of the inner transport has brought.
    ready: VecDeque<Event>,
    /// Buffers for begun records, used again.
    spare: Vec<Vec<u8>>,
    outgoing: Vec<u8>,
}

struct Session {
    generation: u32,
    state: State,
    facts: Facts,
    /// To be sealed at the end of the turn.
    pending: Outbox,
    /// To be opened.
    held: Outbox,
    dirty: bool,
    waiting: bool,
    /// Its owner was told that it has ended, or is about to be.
    ended: bool,
    /// Nothing can be sent any more.
    mute: bool,
    /// It goes to another shard when all is sealed.
    leaving: bool,
    /// Opened by the shard that it came from, to be told here.
    early: Vec<u8>,
}

enum State {
    Handshake(Box<Handshake>),
    Open(Box<Channel>),
    /// The handshake has failed.
    Failed,
}

/// What became of bytes that came.
enum Taken {
    All,
    /// So much is left (it may be nothing, and a whole record kept): it cannot be taken now.
    Not(Option<Slice>),
}

/// Buffers kept for the next begun record; more are freed.
const SPARE_MAX: usize = 64;

/// What one connection takes on the heap beyond its table entry, at most. Keys and handshakes are on the heap of two
/// libraries, so this is measured rather than added up: `tests::what_a_connection_takes`.
const HANDSHAKE_BYTES: usize = 24 * 1024;
const OPEN_BYTES: usize = 8 * 1024;

/// Bytes on the heap for `connections` encrypted connections, term by term: name, count, bytes of each, what for.
pub fn table_sizes(connections: usize) -> [(&'static str, usize, usize, &'static str); 3] {
    let entry = size_of::<Option<Box<Session>>>() + size_of::<Session>();
    [
        ("TLS sessions", connections, entry + OPEN_BYTES, "at most, if all are encrypted; keys and states"),
        ("TLS records", connections, RECORD_SIZE_MAX, "at most; records of which a part has come"),
        (
            "TLS handshakes",
            connections,
            HANDSHAKE_BYTES + HANDSHAKE_SIZE_MAX,
            "at most, if all connect at once; freed when they are through",
        ),
    ]
}

impl<T: Transport> Tls<T> {
    /// Over `inner`. `connections_max`: as `inner` has it, 0 where TLS is off; `nodes_count`: pieces that wait, over all
    /// connections.
    pub fn new(inner: T, connections_max: usize, nodes_count: usize) -> Self {
        assert!(connections_max == 0 || inner.arena().chunk_size() >= CHUNK_SIZE_MIN);
        Self {
            inner,
            sessions: (0..connections_max).map(|_| None).collect(),
            count: 0,
            nodes: Nodes::new(if connections_max == 0 { 1 } else { nodes_count }),
            steps: VecDeque::new(),
            stepped: false,
            dirty: Vec::with_capacity(connections_max),
            waiting: [Vec::new(), Vec::new()],
            ready: VecDeque::with_capacity(64),
            spare: Vec::with_capacity(SPARE_MAX),
            outgoing: Vec::new(),
        }
    }

    #[inline]
    fn session(&mut self, id: ConnectionId) -> Option<&mut Session> {
        let session = self.sessions.get_mut(id.index as usize)?.as_deref_mut()?;
        (session.generation == id.generation).then_some(session)
    }

    /// What an event of the inner transport is to the one above; more may stand in [`Self::next_ready`].
    #[inline]
    pub fn on_event(&mut self, event: Event) -> Option<Event> {
        if self.count == 0 {
            return Some(event);
        }
        self.on_event_of_some(event)
    }

    fn on_event_of_some(&mut self, event: Event) -> Option<Event> {
        match event {
            Event::Received { connection, bytes } => {
                if self.session(connection).is_none() {
                    return Some(Event::Received { connection, bytes });
                }
                self.on_bytes(connection, bytes);
                self.next_ready()
            }
            Event::Ended { connection, error } => {
                if self.session(connection).is_none() {
                    return Some(Event::Ended { connection, error });
                }
                // What came before the end is looked at first, most often an alert that says why; where there is no chunk
                // for it, it is lost with the connection. A handshake's first step is not: that is the one that costs.
                let session = self.session(connection).expect("just looked up");
                let steps =
                    matches!(&session.state, State::Handshake(handshake) if handshake.queued && handshake.has_begun());
                if steps {
                    self.step_handshake(connection);
                }
                self.open_held(connection);
                let session = self.session(connection).expect("just looked up");
                session.mute = true;
                if !std::mem::replace(&mut session.ended, true) {
                    let event = match session.state {
                        State::Handshake(_) | State::Failed => {
                            let why = error.map_or_else(|| "the peer hung up".to_owned(), |error| error.to_string());
                            Event::Secured { connection, error: Some(format!("{why} during the handshake")) }
                        }
                        // Without a close_notify it may be somebody else who has ended it.
                        State::Open(_) => Event::Ended { connection, error: error.or(Some(Errno(libc::ECONNRESET))) },
                    };
                    self.ready.push_back(event);
                }
                self.next_ready()
            }
            Event::Drained { connection } => {
                if self.session(connection).is_some_and(|session| !session.pending.is_empty()) {
                    self.inner.notify_drained(connection);
                    return None;
                }
                Some(Event::Drained { connection })
            }
            Event::Detached { connection, owner, mut parcel } => {
                self.on_detached(connection, &mut parcel);
                Some(Event::Detached { connection, owner, parcel })
            }
            other => Some(other),
        }
    }

    /// The next event that was made of earlier ones.
    #[inline]
    pub fn next_ready(&mut self) -> Option<Event> {
        loop {
            let event = self.ready.pop_front()?;
            let connection = match &event {
                Event::Received { connection, .. }
                | Event::Ended { connection, .. }
                | Event::Secured { connection, .. } => *connection,
                _ => return Some(event),
            };
            // It may have been closed meanwhile.
            if self.session(connection).is_some() {
                return Some(event);
            }
        }
    }

    /// Whether something can be done without waiting.
    pub fn has_work(&self) -> bool {
        !self.steps.is_empty() || !self.ready.is_empty()
    }

    /// After a wait: what found no chunk is tried again.
    #[inline]
    pub fn begin_turn(&mut self) {
        self.stepped = false;
        if !self.waiting[0].is_empty() {
            self.try_again();
        }
    }

    fn try_again(&mut self) {
        self.waiting.swap(0, 1);
        while let Some(id) = self.waiting[1].pop() {
            if let Some(session) = self.session(id) {
                session.waiting = false;
                self.open_held(id);
            }
        }
    }

    /// Makes the one step of a handshake that a turn has room for. Whether there was one.
    pub fn step(&mut self) -> bool {
        if self.stepped {
            return false;
        }
        while let Some(id) = self.steps.pop_front() {
            let Some(session) = self.session(id) else { continue };
            if matches!(session.state, State::Handshake(_)) && !session.ended {
                self.stepped = true;
                self.step_handshake(id);
                return true;
            }
        }
        false
    }

    /// Before a wait: what was queued in this turn is sealed and sent.
    #[inline]
    pub fn end_turn(&mut self) {
        if !self.dirty.is_empty() {
            self.seal_all();
        }
    }

    fn seal_all(&mut self) {
        for at in 0..self.dirty.len() {
            self.seal_pending(self.dirty[at]);
            self.detach_if_sealed(self.dirty[at]);
        }
        let Self { sessions, dirty, .. } = self;
        // Those that found no chunk stay.
        dirty.retain(|id| {
            let session = sessions.get(id.index as usize).and_then(Option::as_deref);
            session.is_some_and(|session| session.generation == id.generation && session.dirty)
        });
    }

    fn mark_dirty(&mut self, id: ConnectionId) {
        let Some(session) = self.session(id) else { return };
        if !std::mem::replace(&mut session.dirty, true) {
            self.dirty.push(id);
        }
    }

    fn on_bytes(&mut self, id: ConnectionId, bytes: Slice) {
        let Self { sessions, nodes, .. } = self;
        let Some(session) = sessions[id.index as usize].as_deref_mut() else { return };
        if session.ended {
            return;
        }
        // Behind what waits already.
        if session.waiting || !session.held.is_empty() {
            if session.held.push(nodes, bytes, false).is_err() {
                log::error!("no node is left for bytes that wait: a connection is closed");
                self.inner.abort(id);
            }
            return;
        }
        if let Taken::Not(Some(rest)) = self.take(id, Some(bytes)) {
            self.put_in_front(id, rest);
        }
    }

    /// Looks again at what could not be taken before.
    fn open_held(&mut self, id: ConnectionId) {
        // First with nothing new: a begun record may be whole, and have waited for a chunk.
        let mut next = None;
        loop {
            if let Taken::Not(rest) = self.take(id, next) {
                if let Some(rest) = rest {
                    self.put_in_front(id, rest);
                }
                return;
            }
            let Self { sessions, nodes, .. } = self;
            let Some(session) = sessions[id.index as usize].as_deref_mut() else { return };
            next = session.held.pop(nodes);
            if next.is_none() {
                return;
            }
        }
    }

    /// Puts a piece before all that is held; there are few, and it is rare.
    fn put_in_front(&mut self, id: ConnectionId, first: Slice) {
        let Self { sessions, nodes, .. } = self;
        let Some(session) = sessions[id.index as usize].as_deref_mut() else { return };
        let mut pieces = vec![first];
        while let Some(piece) = session.held.pop(nodes) {
            pieces.push(piece);
        }
        for piece in pieces {
            if session.held.push(nodes, piece, true).is_err() {
                log::error!("no node is left for bytes that wait: a connection is closed");
                self.inner.abort(id);
                return;
            }
        }
    }

    /// Takes bytes of the peer's: opens them, or hands them to the handshake.
    fn take(&mut self, id: ConnectionId, bytes: Option<Slice>) -> Taken {
        let Some(session) = self.session(id) else { return Taken::All };
        if session.ended {
            return Taken::All;
        }
        match &mut session.state {
            State::Failed => Taken::All,
            State::Open(_) => {
                let taken = self.open(id, bytes);
                if matches!(taken, Taken::Not(_))
                    && let Some(session) = self.session(id)
                    && !std::mem::replace(&mut session.waiting, true)
                {
                    self.waiting[0].push(id);
                }
                taken
            }
            State::Handshake(handshake) => {
                let Some(bytes) = bytes else { return Taken::All };
                let fits = handshake.room().min(bytes.len());
                if fits == 0 && !handshake.queued {
                    self.fail(id, "its handshake is too long".to_owned());
                    return Taken::All;
                }
                handshake.add(&bytes[..fits]);
                if !std::mem::replace(&mut handshake.queued, true) {
                    self.steps.push_back(id);
                }
                if fits == bytes.len() { Taken::All } else { Taken::Not(Some(bytes.part(fits, bytes.len()))) }
            }
        }
    }

    fn step_handshake(&mut self, id: ConnectionId) {
        let Self { sessions, outgoing, .. } = self;
        let session = sessions[id.index as usize].as_deref_mut().expect("looked up by the caller");
        let State::Handshake(handshake) = &mut session.state else { return };
        handshake.queued = false;
        // A client can bring about a panic in no way that is known; one would end the shard, so it ends the handshake.
        let progress = catch_unwind(AssertUnwindSafe(|| handshake.step(outgoing)));
        let progress = progress.unwrap_or_else(|_| Progress::Failed("a panic was caught".to_owned()));
        self.send_outgoing(id);
        match progress {
            Progress::Waiting => self.open_held(id),
            Progress::Failed(why) => self.fail(id, why),
            Progress::Done(channel, facts, plaintext) => {
                let session = self.session(id).expect("it was there a moment ago");
                session.state = State::Open(channel);
                session.facts = facts;
                self.ready.push_back(Event::Secured { connection: id, error: None });
                let piece_size = self.inner.arena().chunk_size();
                for piece in plaintext.chunks(piece_size) {
                    let Some(bytes) = self.inner.scratch().copy(piece) else {
                        log::error!("the arena is used up: a connection is closed");
                        return self.inner.abort(id);
                    };
                    self.ready.push_back(Event::Received { connection: id, bytes });
                }
                self.open_held(id);
            }
        }
    }

    /// A handshake that did not come to its end: nothing more is read or said.
    fn fail(&mut self, id: ConnectionId, why: String) {
        let Some(session) = self.session(id) else { return };
        session.state = State::Failed;
        session.mute = true;
        if !std::mem::replace(&mut session.ended, true) {
            self.ready.push_back(Event::Secured { connection: id, error: Some(why) });
        }
        self.inner.receive(id, false);
    }

    /// Sends what a handshake has to say.
    fn send_outgoing(&mut self, id: ConnectionId) {
        let piece_size = self.inner.arena().chunk_size();
        for piece in self.outgoing.chunks(piece_size) {
            match self.inner.scratch().copy(piece) {
                Some(bytes) => self.inner.send(id, bytes),
                None => {
                    log::error!("the arena is used up: a connection is closed");
                    self.inner.abort(id);
                    break;
                }
            }
        }
        self.outgoing.clear();
    }

    /// Opens records.
    fn open(&mut self, id: ConnectionId, mut bytes: Option<Slice>) -> Taken {
        let Self { inner, sessions, ready, spare, .. } = self;
        let session = sessions[id.index as usize].as_deref_mut().expect("looked up by the caller");
        let State::Open(channel) = &mut session.state else { return Taken::All };
        let mut opened: Option<Slice> = None;
        let mut without_chunk = false;
        let outcome = loop {
            let begun = !channel.begun.is_empty();
            let here = bytes.as_deref().unwrap_or_default();
            let size = match channel.record_size(if begun { &channel.begun } else { here }) {
                Ok(size) => size,
                Err(wrong) => break Err(wrong),
            };
            if begun {
                // The header first, then what it says.
                let missing = size.unwrap_or(HEADER_SIZE).saturating_sub(channel.begun.len()).min(here.len());
                channel.begun.extend_from_slice(&here[..missing]);
                let exhausted = missing == here.len();
                advance(&mut bytes, missing);
                if size.is_none_or(|size| channel.begun.len() < size) {
                    if exhausted {
                        break Ok(Content::Control);
                    }
                    continue;
                }
            } else if size.is_none_or(|size| here.len() < size) {
                if !here.is_empty() {
                    channel.begun = spare.pop().unwrap_or_else(|| Vec::with_capacity(RECORD_SIZE_MAX));
                    channel.begun.extend_from_slice(here);
                    bytes = None;
                }
                break Ok(Content::Control);
            }
            let size = size.expect("a whole record is here");
            let whole = std::mem::take(&mut channel.begun);
            let record = if begun { &whole[..] } else { &bytes.as_deref().unwrap_or_default()[..size] };
            let mut content = Ok(Content::Control);
            let written = inner.scratch().write(channel.room(size), |room| {
                content = channel.open(record, room);
                if let Ok(Content::Data(length)) = content { length } else { 0 }
            });
            let Some(written) = written else {
                channel.begun = whole;
                without_chunk = true;
                break Ok(Content::Control);
            };
            if begun {
                keep(spare, whole);
            } else {
                advance(&mut bytes, size);
            }
            match content {
                Ok(Content::Data(_)) => {
                    let apart = match &mut opened {
                        Some(before) => before.join(written).err(),
                        None => Some(written),
                    };
                    if let Some(apart) = apart
                        && let Some(bytes) = opened.replace(apart)
                    {
                        ready.push_back(Event::Received { connection: id, bytes });
                    }
                }
                Ok(Content::Control) => {}
                other => break other,
            }
        };
        if let Some(bytes) = opened {
            ready.push_back(Event::Received { connection: id, bytes });
        }
        let is_due = channel.is_due();
        match outcome {
            Ok(Content::Closed) => self.end(id, None),
            Ok(Content::Alert(description)) => {
                log::info!("{}: the peer ended TLS by the alert {description}", self.inner.peer(id));
                self.end(id, Some(Errno(libc::ECONNRESET)));
            }
            Err(Wrong { alert, what }) => {
                log::info!("{}: {what}; the connection is closed", self.inner.peer(id));
                self.say_alert(id, alert);
                self.end(id, Some(Errno(libc::EPROTO)));
            }
            Ok(Content::Control | Content::Data(_)) => {
                if is_due {
                    self.mark_dirty(id);
                }
                if without_chunk {
                    return Taken::Not(bytes);
                }
            }
        }
        Taken::All
    }

    /// The peer's stream has ended.
    fn end(&mut self, id: ConnectionId, error: Option<Errno>) {
        let Some(session) = self.session(id) else { return };
        session.mute |= error.is_some();
        if !std::mem::replace(&mut session.ended, true) {
            self.ready.push_back(Event::Ended { connection: id, error });
        }
    }

    /// Sends an alert behind what was sealed before.
    fn say_alert(&mut self, id: ConnectionId, description: u8) {
        let Self { inner, sessions, .. } = self;
        let Some(session) = sessions.get_mut(id.index as usize).and_then(Option::as_deref_mut) else { return };
        let State::Open(channel) = &mut session.state else { return };
        let seal = |room: &mut [u8]| channel.seal_alert(description, room).unwrap_or_default();
        if let Some(bytes) = inner.scratch().write(Channel::CONTROL_SIZE_MAX, seal) {
            inner.send(id, bytes);
        }
    }

    /// Seals and sends what is queued for one peer. Without a chunk it stays queued, and dirty.
    fn seal_pending(&mut self, id: ConnectionId) {
        let Self { inner, sessions, nodes, .. } = self;
        let Some(session) = sessions.get_mut(id.index as usize).and_then(Option::as_deref_mut) else { return };
        if session.generation != id.generation {
            return;
        }
        session.dirty = false;
        if session.mute {
            session.pending.clear(nodes);
            return;
        }
        let Session { state: State::Open(channel), pending, dirty, .. } = session else { return };
        while channel.wants_control() || !pending.is_empty() {
            let is_control = channel.wants_control();
            let length = pending.bytes().min(CONTENT_SIZE_MAX);
            let room = if is_control { Channel::CONTROL_SIZE_MAX } else { length + OVERHEAD_MAX + 1 };
            let mut sealed = None;
            let written = inner.scratch().write(room, |room| {
                if is_control {
                    sealed = channel.seal_control(room);
                } else {
                    gather(pending.iter(nodes), &mut room[channel.content_at()..][..length]);
                    sealed = channel.seal_data(room, length);
                }
                sealed.unwrap_or_default()
            });
            match (written, sealed) {
                (None, _) => {
                    *dirty = true;
                    return;
                }
                (Some(_), None) => {
                    log::warn!(
                        "a TLS key has sealed all that it may, and there is no next one: a connection is closed"
                    );
                    inner.abort(id);
                    return;
                }
                (Some(bytes), Some(_)) => inner.send(id, bytes),
            }
            if !is_control {
                pending.consume(nodes, length);
            }
        }
    }
}

fn advance(bytes: &mut Option<Slice>, count: usize) {
    if let Some(slice) = bytes {
        slice.advance(count);
        if slice.is_empty() {
            // Its chunk is free from now on.
            *bytes = None;
        }
    }
}

/// Fills `room` from the front of the pieces.
fn gather<'a, P: Deref<Target = [u8]> + 'a>(pieces: impl Iterator<Item = &'a P>, room: &mut [u8]) {
    let mut at = 0;
    for piece in pieces {
        let count = piece.len().min(room.len() - at);
        room[at..at + count].copy_from_slice(&piece[..count]);
        at += count;
        if at == room.len() {
            return;
        }
    }
}

/// Keeps a record's buffer for the next.
fn keep(spare: &mut Vec<Vec<u8>>, mut buffer: Vec<u8>) {
    if spare.len() < SPARE_MAX && buffer.capacity() >= RECORD_SIZE_MAX {
        buffer.clear();
        spare.push(buffer);
    }
}

impl<T: Transport> Transport for Tls<T> {
    #[inline]
    fn arena(&self) -> &Arena {
        self.inner.arena()
    }

    #[inline]
    fn scratch(&mut self) -> &mut Scratch {
        self.inner.scratch()
    }

    #[inline]
    fn now(&self) -> Instant {
        self.inner.now()
    }

    fn set_owner(&mut self, connection: ConnectionId, owner: u64) {
        self.inner.set_owner(connection, owner);
    }

    #[inline]
    fn owner(&self, connection: ConnectionId) -> Option<u64> {
        self.inner.owner(connection)
    }

    #[inline]
    fn send(&mut self, id: ConnectionId, bytes: Slice) {
        if self.count == 0 || self.session(id).is_none() {
            self.inner.send(id, bytes);
            return;
        }
        let Self { sessions, nodes, inner, .. } = self;
        let session = sessions[id.index as usize].as_deref_mut().expect("just looked up");
        // During a handshake there is nobody who could read it.
        if bytes.is_empty() || session.mute || !matches!(session.state, State::Open(_)) {
            return;
        }
        if session.pending.push(nodes, bytes, false).is_err() {
            log::error!("no node is left for a piece to send: a connection is closed");
            inner.abort(id);
            return;
        }
        self.mark_dirty(id);
    }

    #[inline]
    fn queued(&self, connection: ConnectionId) -> (usize, usize) {
        let (bytes, pieces) = self.inner.queued(connection);
        if self.count == 0 {
            return (bytes, pieces);
        }
        match self.sessions.get(connection.index as usize).and_then(Option::as_deref) {
            Some(session) => (bytes + session.pending.bytes(), pieces + session.pending.pieces()),
            None => (bytes, pieces),
        }
    }

    fn taken(&self, connection: ConnectionId) -> u64 {
        self.inner.taken(connection)
    }

    fn is_starved(&self) -> bool {
        self.inner.is_starved()
    }

    fn notify_drained(&mut self, connection: ConnectionId) {
        self.inner.notify_drained(connection);
    }

    fn abort(&mut self, connection: ConnectionId) {
        self.inner.abort(connection);
    }

    fn receive(&mut self, connection: ConnectionId, on: bool) {
        if on && self.count > 0 {
            self.tell_early(connection);
        }
        self.inner.receive(connection, on);
    }

    fn connect(&mut self, address: &SocketAddress) -> Result<ConnectionId, Errno> {
        self.inner.connect(address)
    }

    fn detach(&mut self, id: ConnectionId) {
        self.begin_detach(id);
    }

    fn adopt(&mut self, parcel: Parcel, group: Group) -> Option<ConnectionId> {
        self.adopt_parcel(parcel, group)
    }

    fn close(&mut self, id: ConnectionId, how: Close) {
        if self.count > 0 && self.session(id).is_some() {
            if how == Close::Flushed {
                self.seal_pending(id);
                let session = self.session(id).expect("just looked up");
                if session.pending.is_empty() && !session.mute {
                    self.say_alert(id, alert::CLOSE_NOTIFY);
                }
            }
            let Self { sessions, nodes, spare, .. } = self;
            let mut session = sessions[id.index as usize].take().expect("just looked up");
            session.pending.clear(nodes);
            session.held.clear(nodes);
            if let State::Open(channel) = &mut session.state {
                keep(spare, std::mem::take(&mut channel.begun));
            }
            self.count -= 1;
        }
        self.inner.close(id, how);
    }

    fn peer(&self, connection: ConnectionId) -> String {
        self.inner.peer(connection)
    }

    fn is_local(&self, connection: ConnectionId) -> bool {
        self.inner.is_local(connection)
    }

    fn address(&self, connection: ConnectionId) -> Option<std::net::IpAddr> {
        self.inner.address(connection)
    }

    fn peer_user(&self, connection: ConnectionId) -> Option<String> {
        self.inner.peer_user(connection)
    }

    fn stop_listening(&mut self) {
        self.inner.stop_listening();
    }

    fn resolve(&mut self, host: &str, port: u16, ticket: u64) {
        self.inner.resolve(host, port, ticket);
    }

    fn secure(&mut self, id: ConnectionId, how: Secure) {
        let (handshake, begun) = match how {
            Secure::Accept { acceptor, begun } => (Handshake::accept(acceptor, begun.is_some()), begun),
            Secure::Connect { connector, host, direct } => (Handshake::connect(&connector, host, direct), None),
        };
        let slot = self.sessions.get_mut(id.index as usize).expect("TLS is asked for only where it is configured");
        assert!(slot.is_none(), "a connection is secured once");
        let (state, failure) = match handshake {
            Ok(handshake) => (State::Handshake(Box::new(handshake)), None),
            Err(why) => (State::Failed, Some(why)),
        };
        let session = slot.insert(Box::new(Session {
            generation: id.generation,
            state,
            facts: Facts::default(),
            pending: Outbox::default(),
            held: Outbox::default(),
            dirty: false,
            waiting: false,
            ended: false,
            mute: false,
            leaving: false,
            early: Vec::new(),
        }));
        self.count += 1;
        if let State::Handshake(handshake) = &mut session.state
            && handshake.speaks_first()
        {
            handshake.queued = true;
            self.steps.push_back(id);
        }
        if let Some(why) = failure {
            self.fail(id, why);
        }
        if let Some(bytes) = begun {
            self.on_bytes(id, bytes);
        }
    }

    fn facts(&self, connection: ConnectionId) -> Option<&Facts> {
        let session = self.sessions.get(connection.index as usize)?.as_deref()?;
        let is_open = session.generation == connection.generation && matches!(session.state, State::Open(_));
        is_open.then_some(&session.facts)
    }
}
