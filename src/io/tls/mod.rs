//! TLS over a transport, as a transport: what is above sees plaintext, what is below sees records.
//!
//! rustls makes the handshakes (`handshake`, a step at a time: `shaking`) and says what the keys are; records are opened
//! (`opening`) and sealed (`sealing`) here (`record`, `channel`) between chunks of the arena, with no allocation for each.
//! What is sent to one peer in a turn goes into as few records as can be; a connection without TLS costs one look at a
//! table, and nothing where nobody has TLS.
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
mod opening;
mod over_ring;
mod record;
mod sealing;
mod settings;
mod shaking;
mod transport;

#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::sync::Arc;

use super::{Errno, Event, Transport};
use crate::ids::ConnectionId;
use crate::memory::{Nodes, Outbox, Slice};

pub use blocking::Blocking;
pub use certificate::Certificate;
pub use handshake::Facts;
pub use settings::{About, Acceptor, Allowed, Connector, Fault, Trust, Version};

use channel::Channel;
use handshake::{HANDSHAKE_SIZE_MAX, Handshake};
use record::RECORD_SIZE_MAX;

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

impl Session {
    fn new(generation: u32, state: State, facts: Facts, early: Vec<u8>) -> Session {
        Session {
            generation,
            state,
            facts,
            pending: Outbox::default(),
            held: Outbox::default(),
            dirty: false,
            waiting: false,
            ended: false,
            mute: false,
            leaving: false,
            early,
        }
    }
}

enum State {
    Handshake(Box<Handshake>),
    Open(Box<Channel>),
    /// The handshake has failed.
    Failed,
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
}
