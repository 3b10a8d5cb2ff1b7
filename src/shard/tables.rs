//! What a shard keeps of each connection: the entries of its tables, and in which states they are.
//!
//! Only `link` writes who has whom; see [`super`].

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::{clean, console, listens, login, placement, preserve, proxied, room, slow, tally, tls};
use crate::auth::outgoing::Outgoing;
use crate::ids::{BackendId, ClientId, ConnectionId, PoolId, ShardId};
use crate::io::SocketAddress;
use crate::memory::{Block, Outbox, Stash};
use crate::pool::Role;
use crate::protocol::startup::Replication;
use crate::protocol::{Direction, Framer, HEAD_SIZE, Step};
use crate::session::RelayMode;
use crate::session::parameters::VectorId;
use crate::session::pipeline::Pipeline;
use crate::session::prepared::Prepared;

/// Where a client is on its way.
pub(super) enum ClientState {
    /// Nothing, or part of a startup packet, has come.
    Startup,
    /// Will live on another shard: its socket is being taken out.
    Moving(Box<placement::Move>),
    /// The startup packet is here.
    Login(Box<login::Login>),
    /// No request is under way.
    Ready,
    /// A request waits for a backend, since then. The queue knows that as well, as an `Instant`: this one is for counting.
    Waiting(Tick),
    /// Has a backend.
    Linked(BackendId),
    /// Has a backend of its own to which everything is passed.
    Piped(BackendId),
    /// At the console.
    Console(Box<console::Visit>),
}

/// Requests of a client that are dropped because it was told an error.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Discard {
    No,
    /// The rest of the message under way.
    Message,
    /// All up to the Sync, which is answered here.
    UntilSync,
}

pub(super) struct Client {
    pub(super) connection: ConnectionId,
    pub(super) state: ClientState,
    pub(super) framer: Framer,
    /// Part of a message, or a short request that waits.
    pub(super) stash: Stash,
    /// Bytes that must be in the stash before it is looked at again; 0: it is a request that waits.
    pub(super) need: u32,
    /// Received and not yet looked at: the server's side is full.
    pub(super) pending: Outbox,
    pub(super) paused: bool,
    pub(super) discard: Discard,
    /// The message under way is not for the server.
    pub(super) dropping: bool,
    pub(super) pool: Option<PoolId>,
    /// Its pool's when it came: what it has of a session is kept as that mode keeps it, so a reload does not change it.
    pub(super) mode: RelayMode,
    pub(super) wanted: VectorId,
    /// What it began with, and what its RESET goes back to.
    pub(super) startup: VectorId,
    pub(super) secret: [u8; SECRET_SIZE],
    /// Its prepared statements' names, packed by `session::prepared`.
    pub(super) names: Option<Block>,
    pub(super) names_used: u32,
    /// Speaks protocol 3.2, which has longer cancel keys.
    pub(super) long_key: bool,
    /// Said Terminate while answers were due: it ends when it has them.
    pub(super) terminating: bool,
    /// Where it listens for notifications, and what waits for it.
    pub(super) hears: Option<Box<listens::Hearing>>,
    /// What its last Parse of the unnamed statement said, until that is bound.
    pub(super) unnamed: Stash,
    /// Came over a Unix socket.
    pub(super) unix: bool,
    /// What its PROXY header says, from whom one must come.
    pub(super) origin: proxied::Origin,
    /// Where it is counted against limits.
    pub(super) seats: tally::Seats,
    /// When the login ends at the latest; later, since when it is connected.
    pub(super) since: Stamp,
    /// When its login ended, or its last request that brought it a backend.
    pub(super) active: Stamp,
    /// Received and not yet counted with a backend; past 4 GB, which only a client at the console may reach, not all.
    pub(super) bytes_in: u32,
    /// It has been told that it waits.
    pub(super) noticed: bool,
    /// What it asked for when it came.
    pub(super) replication: Replication,
}

/// A moment: microseconds since the shard started. The difference of two costs an instruction, that of two `Instant`s fifty.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Debug)]
pub(super) struct Tick(u64);

impl Tick {
    /// `at`, of a shard that `started` then; what was before that is its start.
    pub(super) fn new(started: Instant, at: Instant) -> Self {
        let lapsed = at.saturating_duration_since(started);
        Self(lapsed.as_secs() * 1_000_000 + u64::from(lapsed.subsec_micros()))
    }

    /// From this one to `later`; nothing, where that is earlier.
    pub(super) fn until(self, later: Self) -> Duration {
        Duration::from_micros(self.us_until(later))
    }

    /// As [`Self::until`], in whole microseconds.
    #[inline]
    pub(super) fn us_until(self, later: Self) -> u64 {
        later.0.saturating_sub(self.0)
    }
}

/// A moment since the shard started, to 66 ms: what an idle client remembers takes four bytes instead of sixteen. Good for
/// eight years between two.
#[derive(Clone, Copy)]
pub(super) struct Stamp(u32);

impl Stamp {
    /// Bits of the microseconds that are left out.
    const COARSE: u32 = 16;

    pub(super) fn new(at: Tick) -> Self {
        Self((at.0 >> Self::COARSE) as u32)
    }

    /// How long before `now` it was: never longer than it is, and up to 131 ms shorter.
    pub(super) fn age(self, now: Self) -> Duration {
        let whole = now.0.wrapping_sub(self.0).saturating_sub(1);
        Duration::from_micros(u64::from(whole) << Self::COARSE)
    }
}

/// Bytes of a cancel key beside the process id, where the protocol has room for them (3.2).
pub(super) const SECRET_SIZE: usize = 16;

/// What a backend is doing.
pub(super) enum BackendState {
    /// Its address is looked up.
    Resolving,
    /// The connection is being made.
    Connecting,
    /// Logging in: by itself, or by what `client` answers.
    LoggingIn,
    Idle,
    /// Of a pool, asked for the secret of a user on this client's behalf.
    LookingUp(ClientId),
    Linked(ClientId),
    /// Has no client; is being brought into a state in which it can be lent.
    Cleaning(clean::Stage),
    /// Of one client alone.
    Piped(ClientId),
    /// Listens for clients; where it stands in the table of listeners.
    Listening(u32),
    /// Clean, and on its way to another shard, whose clients wait.
    Moving(ShardId),
}

/// What a backend was opened for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Purpose {
    /// For the pool: it holds a place there.
    Pool,
    /// To check a login, beyond the pool's places.
    Check,
    /// For one client alone.
    Dedicated,
    /// Listens for the clients of its database, beyond the pool's places.
    Listen,
    /// Is asked what its server is, beyond the pool's places.
    Watch,
}

pub(super) struct Backend {
    pub(super) connection: Option<ConnectionId>,
    pub(super) state: BackendState,
    pub(super) purpose: Purpose,
    pub(super) pool: PoolId,
    /// That of the client that has it, or had it last.
    pub(super) mode: RelayMode,
    /// The client whose login it checks.
    pub(super) checks: Option<ClientId>,
    pub(super) framer: Framer,
    /// Part of a message.
    pub(super) stash: Stash,
    pub(super) need: u32,
    /// The message under way is not for the client.
    pub(super) dropping: bool,
    pub(super) paused: bool,
    pub(super) challenged: bool,
    /// QCP's own login, where it is not relayed.
    pub(super) login: Option<Box<Outgoing>>,
    pub(super) pipeline: Pipeline,
    pub(super) has: VectorId,
    pub(super) prepared: Prepared,
    /// Statements that the server has in a state of no use: closed before they are prepared again.
    pub(super) stale: Vec<u32>,
    /// Settings of the client's startup packet may have been changed by a SET that the server does not report.
    pub(super) touched: bool,
    /// Settings in `has` that may have their value from the server rather than from a SET: behind a RESET, or a ROLLBACK.
    pub(super) unset: Vec<Box<str>>,
    /// A client has had it, and let go of it.
    pub(super) served: bool,
    /// What it is set to is not known any more: it is closed instead of lent.
    pub(super) tainted: bool,
    pub(super) unnamed: Unnamed,
    pub(super) last_values: preserve::LastValues,
    pub(super) process_id: u32,
    pub(super) key: u32,
    /// Cancel connections under way for it.
    pub(super) cancels: u32,
    /// Being drained for nobody: what it works on is cancelled once more then.
    pub(super) cancel_again: Option<Instant>,
    /// The query under way lasts too long: which one (by when it began), since when, and when it was last cancelled.
    pub(super) late: Option<(Tick, Instant, Instant)>,
    /// It is being asked whether it is there.
    pub(super) probing: bool,
    /// When it was last asked that.
    pub(super) probed: Instant,
    /// Of a pool: its part in what its server may have.
    pub(super) seat: Option<room::Seat>,
    /// What its server was at its login; `None`: it does not say.
    pub(super) role: Option<Role>,
    /// What the server reports during its login.
    pub(super) reported: Vec<(Box<str>, Box<str>)>,
    pub(super) addresses: Vec<SocketAddr>,
    pub(super) address: Option<SocketAddress>,
    pub(super) leg: tls::Leg,
    pub(super) deadline: Option<Instant>,
    /// Since when its client has taken nothing of what is queued for it, and what it had taken by then.
    pub(super) stalled: Option<(Instant, u64)>,
    pub(super) born: Instant,
    pub(super) used: Instant,
    /// When the query under way began, and its transaction.
    pub(super) asked: Tick,
    pub(super) begun: Tick,
    pub(super) carried: Carried,
    /// Microseconds that the client which has it waited for it, until its pool counts that.
    pub(super) waited: Option<u64>,
    /// When the client that has it got it.
    pub(super) lent_at: Instant,
    /// The first error the server sent during its login, whole.
    pub(super) refusal: Option<Box<[u8]>>,
    /// It could not be opened, by the server's fault: the next attempt waits.
    pub(super) blamed: bool,
    /// Its last error ends the connection, and the client has seen it.
    pub(super) fatal: bool,
    /// With `session_state: preserve`.
    pub(super) kept: preserve::Kept,
    /// Of the stream of a dedicated client: whether a message is under way.
    pub(super) stream: Stream,
    /// What the transaction under way has asked, where slow ones are logged.
    pub(super) texts: Option<Box<slow::Texts>>,
}

/// How far the messages of a stream are that is passed on as it comes.
#[derive(Default)]
pub(super) struct Stream {
    /// The beginning of a message's head.
    head: [u8; HEAD_SIZE],
    used: usize,
    /// These are no messages that we know.
    lost: bool,
}

impl Stream {
    /// These bytes come next; `framer` counts what of a message has yet to come.
    pub(super) fn pass(&mut self, framer: &mut Framer, mut bytes: &[u8]) {
        while !bytes.is_empty() && !self.lost {
            if framer.at_boundary() {
                let count = bytes.len().min(HEAD_SIZE - self.used);
                self.head[self.used..self.used + count].copy_from_slice(&bytes[..count]);
                self.used += count;
                bytes = &bytes[count..];
                if self.used == HEAD_SIZE {
                    self.used = 0;
                    self.lost = framer.next(&self.head, |_, _| HEAD_SIZE).is_err();
                }
            } else if let Ok(Step::Rest { length, .. }) = framer.next(bytes, |_, _| 0) {
                bytes = &bytes[length..];
            }
        }
    }

    /// Whether the last message is whole.
    pub(super) fn is_whole(&self, framer: &Framer) -> bool {
        self.used == 0 && framer.at_boundary() && !self.lost
    }
}

/// What is counted where it happens, of a backend, and belongs to its pool's totals.
#[derive(Clone, Copy, Default)]
pub(super) struct Carried {
    /// Times that a client was given it.
    pub(super) links: u64,
    /// From its clients.
    pub(super) bytes_in: u64,
    /// From the server.
    pub(super) bytes_out: u64,
}

/// Whose unnamed statement a backend has.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Unnamed {
    /// Nobody's that is still linked.
    Others,
    /// The linked client's, not yet bound, and too large to be remembered: the client keeps its backend.
    Parsed,
    /// The linked client's, not yet bound; the client remembers what it said.
    Kept,
    /// The linked client's.
    Bound,
}

pub(super) struct Cancel {
    pub(super) connection: ConnectionId,
    pub(super) backend: BackendId,
    pub(super) encryption: tls::Encryption,
    pub(super) deadline: Instant,
}

/// Whom a connection belongs to, as the transport keeps it.
pub(super) enum Owner {
    Client(ClientId),
    Backend(BackendId),
    Cancel(u32, u32),
}

impl Owner {
    pub(super) fn pack(&self) -> u64 {
        let (kind, index, generation) = match *self {
            Self::Client(id) => (1, id.index, id.generation),
            Self::Backend(id) => (2, id.index, id.generation),
            Self::Cancel(index, generation) => (3, index, generation),
        };
        kind << 56 | u64::from(generation) << 32 | u64::from(index)
    }

    #[inline]
    pub(super) fn unpack(packed: u64) -> Option<Self> {
        let (index, generation) = (packed as u32, (packed >> 32) as u32 & 0xff_ffff);
        match packed >> 56 {
            1 => Some(Self::Client(ClientId { index, generation })),
            2 => Some(Self::Backend(BackendId { index, generation })),
            3 => Some(Self::Cancel(index, generation)),
            _ => None,
        }
    }
}

impl Backend {
    /// Nothing is known of it but what it is for.
    pub(super) fn new(pool: PoolId, purpose: Purpose, statements_max: usize, now: Instant) -> Self {
        Self {
            connection: None,
            state: BackendState::Resolving,
            purpose,
            pool,
            mode: RelayMode::Smart,
            checks: None,
            framer: Framer::new(Direction::Backend),
            stash: Stash::default(),
            need: 0,
            dropping: false,
            paused: false,
            challenged: false,
            login: None,
            pipeline: Pipeline::new(),
            has: VectorId::NEUTRAL,
            prepared: Prepared::new(statements_max),
            stale: Vec::new(),
            touched: false,
            unset: Vec::new(),
            served: false,
            tainted: false,
            unnamed: Unnamed::Others,
            last_values: preserve::LastValues::default(),
            process_id: 0,
            key: 0,
            cancels: 0,
            cancel_again: None,
            late: None,
            probing: false,
            probed: now,
            seat: None,
            role: None,
            reported: Vec::new(),
            addresses: Vec::new(),
            address: None,
            leg: tls::Leg::default(),
            deadline: None,
            stalled: None,
            born: now,
            used: now,
            lent_at: now,
            asked: Tick::default(),
            begun: Tick::default(),
            carried: Carried::default(),
            waited: None,
            refusal: None,
            blamed: false,
            fatal: false,
            kept: preserve::Kept::default(),
            stream: Stream::default(),
            texts: None,
        }
    }

    /// The server has this statement for certain. Without room to count it, it is closed before it is prepared again.
    pub(super) fn confirm(&mut self, number: u32) {
        if !self.prepared.confirm(number) {
            self.expect_stale(number);
        }
    }

    /// The server may have this statement: it is closed before it is prepared again.
    pub(super) fn expect_stale(&mut self, number: u32) {
        if !self.stale.contains(&number) {
            self.stale.push(number);
        }
    }

    /// Has a statement closed before it is prepared again. Past `stale_max` of them the backend is closed instead of lent.
    pub(super) fn mark_stale(&mut self, number: u32, stale_max: usize) {
        if self.stale.contains(&number) {
            return;
        }
        if self.stale.len() < stale_max {
            self.stale.push(number);
        } else {
            self.tainted = true;
        }
    }

    /// Whether the server keeps statements of clients for it.
    pub(super) fn has_statements(&self) -> bool {
        self.prepared.count() > 0 || !self.stale.is_empty()
    }
}

impl Client {
    /// So many bytes have come, and there is no backend to count them with.
    #[inline]
    pub(super) fn count_in(&mut self, size: usize) {
        self.bytes_in = self.bytes_in.saturating_add(size as u32);
    }

    pub(super) fn new(connection: ConnectionId, unix: bool, now: Stamp) -> Self {
        Self {
            connection,
            state: ClientState::Startup,
            framer: Framer::new(Direction::Frontend),
            stash: Stash::default(),
            need: 0,
            pending: Outbox::default(),
            paused: false,
            discard: Discard::No,
            dropping: false,
            pool: None,
            mode: RelayMode::Smart,
            wanted: VectorId::NEUTRAL,
            startup: VectorId::NEUTRAL,
            secret: [0; SECRET_SIZE],
            names: None,
            names_used: 0,
            long_key: false,
            terminating: false,
            hears: None,
            unnamed: Stash::default(),
            unix,
            origin: proxied::Origin::Own,
            seats: tally::Seats::default(),
            since: now,
            active: now,
            bytes_in: 0,
            noticed: false,
            replication: Replication::No,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stamp_is_never_older_than_the_moment() {
        let started = Instant::now();
        let at = |ms: u64| Stamp::new(Tick::new(started, started + Duration::from_millis(ms)));
        for (then, now) in [(0, 0), (0, 66), (60, 70), (999, 1_000), (1_234, 3_600_000), (7, 86_400_000_000)] {
            let (age, real) = (at(then).age(at(now)), Duration::from_millis(now - then));
            assert!(age <= real && real - age <= Duration::from_millis(135), "{then} to {now}: {age:?}");
        }
        assert_eq!(Tick::new(started + Duration::from_secs(9), started), Tick(0));
        assert_eq!((Tick(5).us_until(Tick(7)), Tick(7).us_until(Tick(5))), (2, 0));
        let (old, new) = (Stamp(u32::MAX), Stamp(15));
        assert_eq!(old.age(new), Duration::from_micros(15 << Stamp::COARSE));
    }

    #[test]
    fn a_stream_is_whole_behind_its_messages_however_it_is_cut() {
        let messages: [&[u8]; 3] = [b"Z\0\0\0\x05I", b"D\0\0\0\x0a\0\x01\xff\xff\xff\xff", b"2\0\0\0\x04"];
        let bytes = messages.concat();
        let ends: Vec<usize> = messages
            .iter()
            .scan(0, |at, message| {
                *at += message.len();
                Some(*at)
            })
            .collect();
        for piece in 1..=bytes.len() {
            let (mut stream, mut framer, mut at) = (Stream::default(), Framer::new(Direction::Backend), 0);
            assert!(stream.is_whole(&framer));
            for part in bytes.chunks(piece) {
                stream.pass(&mut framer, part);
                at += part.len();
                assert_eq!(stream.is_whole(&framer), ends.contains(&at), "{at} in pieces of {piece}");
            }
        }
        let (mut stream, mut framer) = (Stream::default(), Framer::new(Direction::Backend));
        stream.pass(&mut framer, b"HTTP/1.1 400 Bad Request");
        assert!(!stream.is_whole(&framer));
    }
}
