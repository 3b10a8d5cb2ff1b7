//! The shard's own io_uring: accept, connect, receive, send, close and wake, with one system call for all that is
//! queued. [`super::Transport`] over it is what the shard uses; `process::shards` pumps it.
//!
//! Invariant: memory that the kernel may touch is owned here until the completion says that it is done with it. A
//! connection's slot is reused only when no operation of it is in flight.

mod moving;

use std::cell::Cell;
use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, FromRawFd, IntoRawFd, OwnedFd, RawFd};
use std::time::{Duration, Instant};

use io_uring::{EnterFlags, IoUring, cqueue, opcode, squeue, types};
use nix::sys::socket::{self as sys, AddressFamily, SockFlag, SockType, SockaddrLike, SockaddrStorage};

use super::buffers::Buffers;
use super::bulk::{self, Bulk};
use super::doorbell::Doorbell;
use super::resolve::Resolver;
use super::{Close, Errno, Event, Group, Parcel, SocketAddress, Transport};
use crate::ids::ConnectionId;
use crate::memory::{Arena, Nodes, Outbox, Scratch, Slab, Slice};

/// What a ring is made for.
pub struct Settings {
    /// The shard's chunks.
    pub arena: Arena,
    /// Connections of all kinds, at most.
    pub connections_max: usize,
    /// Nodes for unsent pieces.
    pub nodes_count: usize,
    /// Chunks that clients can never take.
    pub backend_reserve: usize,
    /// Chunks that stand ready for the kernel in each group, at most.
    pub ready_max: usize,
}

/// Submission queue entries: what is queued between two system calls; a full queue is submitted early.
const SUBMISSIONS: u32 = 1024;
/// Completion queue entries; the kernel keeps what overflows.
const COMPLETIONS: u32 = 8192;
/// Pieces of one vectored send.
const VECTOR_MAX: usize = 16;
/// Vectored sends in flight; beyond, pieces are sent one by one.
const VECTORS: usize = 128;
/// Up to this size, several pieces are copied into one rather than sent as a vector.
const COALESCE_MAX: usize = 4096;
/// Chunks left for messages of our own when the arena is nearly used up.
const SCRATCH_RESERVE: usize = 2;
/// A smaller receive than this says that the large answer is through.
const BULK_MIN: usize = 4096;
/// What a client may say at once while memory is short.
const TIGHT_RECEIVE: u32 = 4096;
/// So much without a word to the sender between is a stream: it is received several chunks at a time.
const STREAM_MIN: u32 = 256 * 1024;
/// When a stream brings less than a quarter of what there is room for, the next receive waits so long. Servers write 8 KB at a
/// time, and a receive for each of those costs more than its bytes.
const PACE: types::Timespec = types::Timespec::new().nsec(100_000);
/// How long a peer may take to accept what is sent before a close.
const LINGER: Duration = Duration::from_secs(5);
/// Up to this size, what comes while an earlier send is in flight is copied aside.
const GATHER_MAX: usize = 2048;
/// Connections looked at in one tick for a send that does not end.
const LOOKED_AT: usize = 512;
/// A send in flight at two looks, with this between them, is stuck.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// An io_uring with the sockets of one shard.
pub struct Ring {
    // The ring goes first: after it is gone the kernel touches nothing of the rest.
    ring: IoUring,
    buffers: [Buffers; 2],
    connections: Slab<Connection>,
    nodes: Nodes,
    /// Never grows: the kernel reads them where they are.
    vectors: Box<[Vector]>,
    vectors_free: Vec<u16>,
    bulk: Bulk,
    /// What one receive brought beyond its first chunk, and its first.
    arrived: VecDeque<(ConnectionId, Slice)>,
    /// Connections that may receive again when the turn is through, if their owner still wants that then.
    rearm: Vec<ConnectionId>,
    /// Streams that came short; see [`PACE`].
    paced: Vec<ConnectionId>,
    pace_armed: bool,
    pace: Box<types::Timespec>,
    arena: Arena,
    scratch: Scratch,
    backend_reserve: usize,
    ready_max: usize,
    /// Connections with something to send and no send in flight.
    dirty: Vec<ConnectionId>,
    /// Connections whose receive found no buffer, for each group.
    starved: [VecDeque<ConnectionId>; 2],
    /// Closing, with operations in flight that are cancelled at the end of the turn.
    closing: Vec<ConnectionId>,
    lingering: Vec<(ConnectionId, Instant)>,
    /// Where the next tick goes on to look for sends that do not end.
    look_from: u32,
    /// How often all connections have been looked at, and when the next time begins.
    looks: u8,
    look_at: Instant,
    /// Ended by [`Transport::abort`]; their owners have yet to hear of it.
    aborted: Vec<ConnectionId>,
    /// About to leave for another shard.
    detached: Vec<ConnectionId>,
    /// Came from another shard with bytes that their owners want.
    early: Vec<ConnectionId>,
    listeners: Vec<Listener>,
    doorbell: Doorbell,
    resolver: Resolver,
    completions: Vec<cqueue::Entry>,
    completions_at: usize,
    rung: bool,
    now: Instant,
    tick: Box<types::Timespec>,
    /// When the next tick is due, if one is under way.
    tick_at: Option<Instant>,
    enters: Cell<u64>,
}

struct Listener {
    socket: OwnedFd,
    local: bool,
    /// Accepting failed (no descriptors): armed again at the next tick.
    resting: bool,
}

struct Connection {
    socket: RawFd,
    owner: u64,
    outbox: Outbox,
    group: Group,
    local: bool,
    receive: Receive,
    /// What the owner wants; `receive` is how far the kernel is with it.
    wanted: bool,
    sending: Sending,
    /// How the send in flight is looked at.
    patience: Patience,
    connecting: Option<Box<SockaddrStorage>>,
    /// Leaves for another shard; what has come since.
    #[allow(clippy::box_collection)] // One word in each slot.
    detaching: Option<Box<Vec<u8>>>,
    /// What came along from another shard and is still to be told.
    #[allow(clippy::box_collection)]
    early: Option<Box<Vec<u8>>>,
    /// A large answer is under way: receive one chunk at a time, as the reader takes it.
    bulk: bool,
    /// Bytes received since something was last sent to this peer.
    streamed: u32,
    /// Its receive of several chunks.
    large: Option<u8>,
    /// The last receive of the stream brought little.
    short: bool,
    /// The last receive left something in the socket.
    left: bool,
    dirty: bool,
    notify: bool,
    ended: bool,
    closing: Closing,
    /// Operations in flight.
    operations: u8,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Receive {
    Off,
    Armed,
    Cancelling,
    Starved,
    /// Waits for more to have come.
    Paced,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Sending {
    No,
    /// The first piece, or part of it.
    Piece,
    Vector(u16),
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Closing {
    No,
    Flushing,
    /// Cancelled what was in flight, waiting for it.
    Waiting,
    /// The close itself is in flight.
    Closed,
}

/// What is known of a send in flight.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Patience {
    /// It has not been seen yet.
    New,
    /// It was in flight when all connections were looked at for this time.
    Seen(u8),
    /// It is cancelled, so that what is left of it can be copied aside.
    Ending,
    /// What it sends has been copied aside already.
    Kept,
}

struct Vector {
    header: libc::msghdr,
    pieces: [libc::iovec; VECTOR_MAX],
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
enum Operation {
    Accept,
    Connect,
    Receive,
    Send,
    Close,
    Cancel,
    Doorbell,
    Tick,
    Pace,
}

const OPERATIONS: [Operation; 9] = [
    Operation::Accept,
    Operation::Connect,
    Operation::Receive,
    Operation::Send,
    Operation::Close,
    Operation::Cancel,
    Operation::Doorbell,
    Operation::Tick,
    Operation::Pace,
];

/// A completion carries operation (8 bits), generation (24) and index (32).
fn user_data(operation: Operation, connection: ConnectionId) -> u64 {
    debug_assert!(connection.generation < 1 << 24);
    (operation as u64) << 56 | u64::from(connection.generation) << 32 | u64::from(connection.index)
}

const NOBODY: ConnectionId = ConnectionId { index: 0, generation: 0 };

impl Ring {
    /// Errors: the kernel's, with what was being done.
    pub fn new(settings: Settings, doorbell: Doorbell) -> io::Result<Self> {
        let ring = IoUring::builder()
            .setup_cqsize(COMPLETIONS)
            .setup_submit_all()
            .setup_single_issuer()
            .setup_defer_taskrun()
            .setup_taskrun_flag()
            .build(SUBMISSIONS)?;
        let ready_max = settings.ready_max.max(2);
        let buffers = [
            Buffers::new(&ring.submitter(), Group::Client as u16, ready_max)?,
            Buffers::new(&ring.submitter(), Group::Backend as u16, ready_max)?,
        ];
        let vector = || {
            // SAFETY: all-zero is a valid value of both C structs.
            unsafe { std::mem::zeroed::<Vector>() }
        };
        let resolver = Resolver::new(doorbell.clone());
        let mut this = Self {
            ring,
            buffers,
            connections: Slab::new(settings.connections_max),
            nodes: Nodes::new(settings.nodes_count),
            vectors: (0..VECTORS).map(|_| vector()).collect(),
            vectors_free: (0..VECTORS as u16).collect(),
            bulk: Bulk::new(),
            arrived: VecDeque::with_capacity(bulk::PIECES),
            rearm: Vec::with_capacity(settings.connections_max),
            paced: Vec::with_capacity(settings.connections_max),
            pace_armed: false,
            pace: Box::new(PACE),
            scratch: Scratch::new(&settings.arena),
            arena: settings.arena,
            backend_reserve: settings.backend_reserve,
            ready_max,
            dirty: Vec::with_capacity(settings.connections_max),
            starved: [
                VecDeque::with_capacity(settings.connections_max),
                VecDeque::with_capacity(settings.connections_max),
            ],
            closing: Vec::new(),
            lingering: Vec::new(),
            look_from: 0,
            looks: 0,
            look_at: Instant::now(),
            aborted: Vec::new(),
            detached: Vec::new(),
            early: Vec::new(),
            listeners: Vec::new(),
            doorbell,
            resolver,
            completions: Vec::with_capacity(512),
            completions_at: 0,
            rung: false,
            now: Instant::now(),
            tick: Box::new(types::Timespec::new()),
            tick_at: None,
            enters: Cell::new(0),
        };
        this.arena.set_block_floor(this.backend_reserve + SCRATCH_RESERVE);
        this.arm_doorbell();
        this.refill();
        Ok(this)
    }

    /// Bytes of all tables, term by term, for the sums: connections, nodes, vectors, queues.
    pub fn table_sizes(connections_max: usize, nodes_count: usize) -> [(&'static str, usize, usize); 5] {
        let (slots, slot_size) = Bulk::table_size();
        [
            ("large receives", slots, slot_size),
            ("connections", connections_max, Slab::<Connection>::slot_size()),
            ("pieces to send", nodes_count, Nodes::node_size()),
            ("vectored sends", VECTORS, size_of::<Vector>()),
            ("queues of connections", connections_max, 5 * size_of::<ConnectionId>()),
        ]
    }

    /// Accepts clients on `socket`, which must listen.
    pub fn listen(&mut self, socket: OwnedFd, local: bool) {
        self.listeners.push(Listener { socket, local, resting: false });
        self.arm_accept(self.listeners.len() - 1);
    }

    /// Sends what is queued and waits for at least one completion. `tick`: a [`Event::Tick`] comes at the latest then.
    pub fn wait(&mut self, tick: Duration) -> io::Result<()> {
        self.end_turn();
        self.arm_tick(tick);
        self.enters.set(self.enters.get() + 1);
        match self.ring.submit_and_wait(1) {
            Ok(_) => {}
            Err(error) if matches!(error.raw_os_error(), Some(libc::EINTR | libc::EBUSY | libc::EAGAIN)) => {}
            Err(error) => return Err(error),
        }
        self.now = Instant::now();
        Ok(())
    }

    /// Sends what is queued without waiting; whether completions are there to be looked at.
    pub fn submit(&mut self) -> io::Result<bool> {
        self.end_turn();
        self.enters.set(self.enters.get() + 1);
        let count = self.ring.submission().len() as u32;
        // GETEVENTS although nothing is waited for: it runs what the kernel has deferred. Work that was deferred while
        // the park's signal was off would otherwise never be announced.
        // SAFETY: no argument is passed, and the count is what stands in the queue.
        let entered = unsafe {
            let flags = EnterFlags::GETEVENTS.bits();
            self.ring.submitter().enter::<libc::sigset_t>(count, 0, flags, None)
        };
        match entered {
            Ok(_) => {}
            Err(error) if matches!(error.raw_os_error(), Some(libc::EINTR | libc::EBUSY | libc::EAGAIN)) => {}
            Err(error) => return Err(error),
        }
        // The queue's view is made anew so that it sees what the kernel just wrote.
        Ok(!self.ring.completion().is_empty())
    }

    /// Time has passed elsewhere; the clock goes on.
    pub fn wake(&mut self) {
        self.now = Instant::now();
    }

    /// Has the kernel signal `eventfd` for each completion while `park` waits elsewhere.
    pub fn register_park(&mut self, eventfd: RawFd) -> io::Result<()> {
        self.ring.submitter().register_eventfd(eventfd)?;
        self.ring.completion().disable_eventfd();
        Ok(())
    }

    /// Turns the signal of [`Self::register_park`] on or off.
    pub fn signal_park(&mut self, on: bool) {
        let queue = self.ring.completion();
        if on { queue.enable_eventfd() } else { queue.disable_eventfd() }
    }

    /// Asks for the next tick, at the latest `after` from now. One is under way at most; one that is due much later is
    /// brought forward.
    pub fn arm_tick(&mut self, after: Duration) {
        let (due, at) = (self.tick_at, self.now + after);
        // What is a little late is not worth a request to the kernel.
        if due.is_some_and(|due| due <= at + after) {
            return;
        }
        self.tick_at = Some(at);
        *self.tick = types::Timespec::new().sec(after.as_secs()).nsec(after.subsec_nanos());
        let tick = user_data(Operation::Tick, NOBODY);
        if due.is_none() {
            let entry = opcode::Timeout::new(&raw const *self.tick).build();
            self.push(entry.user_data(tick));
            return;
        }
        // Where it has just fired there is none to bring forward, and its completion asks for the next one.
        let entry = opcode::TimeoutUpdate::new(tick, &raw const *self.tick).build();
        let nobody = ConnectionId { index: u32::MAX, generation: 0 };
        self.push(entry.flags(squeue::Flags::SKIP_SUCCESS).user_data(user_data(Operation::Cancel, nobody)));
    }

    /// System calls made to submit and wait.
    pub fn enters(&self) -> u64 {
        self.enters.get()
    }

    /// Connections open or closing.
    pub fn connection_count(&self) -> usize {
        self.connections.len()
    }

    /// What happened next; `None` when all completions have been seen.
    pub fn next_event(&mut self) -> Option<Event> {
        loop {
            if let Some((connection, bytes)) = self.arrived.pop_front() {
                let slot = self.connections.get_mut(connection.index, connection.generation);
                match slot.filter(|slot| slot.closing == Closing::No && !slot.ended) {
                    Some(Connection { detaching: Some(received), .. }) => received.extend_from_slice(&bytes),
                    Some(_) => return Some(Event::Received { connection, bytes }),
                    None => {}
                }
                continue;
            }
            if let Some(connection) = self.aborted.pop() {
                return Some(Event::Ended { connection, error: Some(Errno(libc::ENOBUFS)) });
            }
            if let Some(event) = self.next_detached().or_else(|| self.next_early()) {
                return Some(event);
            }
            if self.rung {
                if let Some((ticket, addresses)) = self.resolver.next() {
                    return Some(Event::Resolved { ticket, addresses });
                }
                self.rung = false;
                return Some(Event::Rung);
            }
            if self.completions_at == self.completions.len() {
                self.completions.clear();
                self.completions_at = 0;
                let room = self.completions.capacity();
                self.completions.extend(self.ring.completion().take(room));
                if self.completions.is_empty() {
                    return None;
                }
            }
            let entry = self.completions[self.completions_at].clone();
            self.completions_at += 1;
            let event = self.on_completion(&entry);
            if event.is_some() {
                return event;
            }
        }
    }

    fn on_completion(&mut self, entry: &cqueue::Entry) -> Option<Event> {
        let data = entry.user_data();
        let operation = OPERATIONS[(data >> 56) as usize];
        let connection = ConnectionId { index: data as u32, generation: (data >> 32) as u32 & 0xff_ffff };
        match operation {
            Operation::Receive => self.on_receive(connection, entry),
            Operation::Send => self.on_sent(connection, entry.result()),
            Operation::Accept => self.on_accept(connection.index as usize, entry),
            Operation::Connect => self.on_connect(connection, entry.result()),
            Operation::Close => {
                self.connections.remove(connection.index, connection.generation);
                None
            }
            Operation::Cancel => {
                self.finished(connection);
                None
            }
            Operation::Doorbell => {
                self.doorbell.silence();
                self.rung = true;
                if !cqueue::more(entry.flags()) {
                    self.arm_doorbell();
                }
                None
            }
            Operation::Tick => {
                self.tick_at = None;
                self.on_tick();
                Some(Event::Tick)
            }
            Operation::Pace => {
                self.pace_armed = false;
                while let Some(id) = self.paced.pop() {
                    let Some(connection) = self.connections.get_mut(id.index, id.generation) else { continue };
                    if connection.receive == Receive::Paced {
                        connection.receive = Receive::Off;
                        // What has come since is received by one chunk first; it says whether there is more.
                        connection.short = false;
                        self.arm_if_wanted(id);
                    }
                }
                None
            }
        }
    }

    fn on_receive(&mut self, id: ConnectionId, entry: &cqueue::Entry) -> Option<Event> {
        let (result, more) = (entry.result(), cqueue::more(entry.flags()));
        let named = cqueue::buffer_select(entry.flags());
        let slot = self.connections.get_mut(id.index, id.generation);
        let connection = slot.expect("a slot is kept while an operation is in flight");
        let bytes = named.and_then(|buffer| {
            let chunk = self.buffers[connection.group as usize].returned(buffer);
            (result > 0).then(|| chunk.filled(result as usize))
        });
        if !more {
            connection.receive = Receive::Off;
            connection.operations -= 1;
        }
        let alive = connection.closing == Closing::No && !connection.ended;
        if result > 0 {
            let size = result as usize;
            connection.bulk &= size >= BULK_MIN;
            connection.streamed = connection.streamed.saturating_add(size as u32);
            connection.left = cqueue::sock_nonempty(entry.flags());
            let pieces = if connection.large.is_some() { bulk::PIECES } else { 1 };
            connection.short = size * 4 < pieces * self.arena.chunk_size();
        }
        if let Some(slot) = connection.large.take() {
            self.bulk.end(slot, result.max(0) as usize, |bytes| {
                if let Some(received) = &mut connection.detaching {
                    received.extend_from_slice(&bytes);
                } else if alive {
                    self.arrived.push_back((id, bytes));
                }
            });
        }
        let event = if result > 0 {
            // Of several chunks, each is an event of its own.
            match (bytes, &mut connection.detaching) {
                (Some(bytes), Some(received)) => {
                    received.extend_from_slice(&bytes);
                    None
                }
                (Some(bytes), None) => alive.then_some(Event::Received { connection: id, bytes }),
                (None, _) => None,
            }
        } else {
            match -result {
                libc::ENOBUFS => {
                    if alive && connection.wanted {
                        connection.receive = Receive::Starved;
                        self.starved[connection.group as usize].push_back(id);
                    }
                    None
                }
                libc::ECANCELED | libc::EINTR | libc::EAGAIN => None,
                error => {
                    connection.ended = true;
                    let error = (error != 0).then_some(Errno(error));
                    alive.then_some(Event::Ended { connection: id, error })
                }
            }
        };
        if more {
            return event;
        }
        if alive && connection.wanted && !connection.ended {
            if connection.receive == Receive::Off {
                // Not at once: who gets a whole chunk may want no more for now, and what is armed must be cancelled.
                self.rearm.push(id);
            }
        } else {
            self.finished_check(id);
            self.detach_check(id);
        }
        event
    }

    fn on_sent(&mut self, id: ConnectionId, result: i32) -> Option<Event> {
        let slot = self.connections.get_mut(id.index, id.generation);
        let connection = slot.expect("a slot is kept while an operation is in flight");
        connection.operations -= 1;
        if let Sending::Vector(vector) = connection.sending {
            self.vectors_free.push(vector);
        }
        connection.sending = Sending::No;
        let ending = std::mem::replace(&mut connection.patience, Patience::New) == Patience::Ending;
        if result > 0 {
            connection.outbox.consume(&mut self.nodes, result as usize);
        }
        if connection.closing == Closing::Waiting {
            connection.outbox.clear(&mut self.nodes);
            self.finished_check(id);
            return None;
        }
        let cut_short = ending && result == -libc::ECANCELED;
        if result < 0 && !cut_short && !matches!(-result, libc::EINTR | libc::EAGAIN) {
            connection.outbox.clear(&mut self.nodes);
            if connection.closing == Closing::Flushing {
                self.begin_close(id);
                return None;
            }
            let first = !connection.ended;
            connection.ended = true;
            return first.then_some(Event::Ended { connection: id, error: Some(Errno(-result)) });
        }
        if !connection.outbox.is_empty() {
            if ending {
                connection.outbox.compact(&mut self.nodes, &self.arena);
                connection.patience = Patience::Kept;
            }
            self.mark_dirty(id);
            return None;
        }
        if connection.closing == Closing::Flushing {
            self.begin_close(id);
            return None;
        }
        let notify = std::mem::take(&mut connection.notify);
        if connection.detaching.is_some() {
            self.detach_check(id);
        }
        notify.then_some(Event::Drained { connection: id })
    }

    fn on_accept(&mut self, listener: usize, entry: &cqueue::Entry) -> Option<Event> {
        let result = entry.result();
        if !cqueue::more(entry.flags()) {
            if result == -libc::ECANCELED {
                return None;
            }
            if result < 0 && self.listeners.get(listener).is_some() {
                log::warn!("accepting a client failed: {}; trying again", Errno(-result));
                self.listeners[listener].resting = true;
            } else {
                self.arm_accept(listener);
            }
        }
        if result < 0 {
            return None;
        }
        // SAFETY: the kernel has just made this descriptor for us; nobody else has it.
        let socket = unsafe { OwnedFd::from_raw_fd(result) };
        let local = self.listeners.get(listener).is_some_and(|listener| listener.local);
        match self.insert(socket, Group::Client, local) {
            Ok(connection) => Some(Event::Accepted { connection, local }),
            Err(_full) => None,
        }
    }

    fn on_connect(&mut self, id: ConnectionId, result: i32) -> Option<Event> {
        let slot = self.connections.get_mut(id.index, id.generation);
        let connection = slot.expect("a slot is kept while an operation is in flight");
        connection.operations -= 1;
        connection.connecting = None;
        if connection.closing != Closing::No {
            self.finished_check(id);
            return None;
        }
        if result < 0 {
            self.begin_close(id);
            return Some(Event::Connected { connection: id, error: Some(Errno(-result)) });
        }
        self.receive(id, true);
        Some(Event::Connected { connection: id, error: None })
    }

    fn on_tick(&mut self) {
        self.look_for_stuck();
        for listener in 0..self.listeners.len() {
            if std::mem::take(&mut self.listeners[listener].resting) {
                self.arm_accept(listener);
            }
        }
        let mut at = 0;
        while at < self.lingering.len() {
            let (id, until) = self.lingering[at];
            let slot = self.connections.get(id.index, id.generation);
            let waits = slot.is_some_and(|connection| connection.closing == Closing::Flushing);
            if waits && self.now < until {
                at += 1;
                continue;
            }
            self.lingering.swap_remove(at);
            if waits {
                self.begin_close(id);
            }
        }
    }

    /// Looks for peers that do not take what they are sent: what is queued for them is copied aside, into blocks, so that
    /// a few bytes do not hold a chunk each. Only some connections each time; all of them a few times a second.
    fn look_for_stuck(&mut self) {
        if self.now < self.look_at {
            return;
        }
        for _ in 0..LOOKED_AT {
            let Some((index, generation)) = self.connections.next_used(self.look_from) else {
                self.look_from = 0;
                self.looks = self.looks.wrapping_add(1);
                self.look_at = self.now + LOOK_EVERY;
                return;
            };
            self.look_from = index + 1;
            let looks = self.looks;
            let connection = self.connections.get_mut(index, generation).expect("just found");
            let live = matches!(connection.closing, Closing::No | Closing::Flushing);
            if connection.sending == Sending::No || !live || connection.ended {
                continue;
            }
            match connection.patience {
                Patience::New => connection.patience = Patience::Seen(looks),
                Patience::Seen(then) if then == looks => {}
                Patience::Seen(_) => {
                    if !connection.outbox.is_shared(&self.nodes) {
                        connection.patience = Patience::Kept;
                        continue;
                    }
                    connection.patience = Patience::Ending;
                    connection.operations += 1;
                    let id = ConnectionId { index, generation };
                    let entry = opcode::AsyncCancel::new(user_data(Operation::Send, id)).build();
                    self.push(entry.user_data(user_data(Operation::Cancel, id)));
                }
                Patience::Ending | Patience::Kept => {}
            }
        }
    }

    /// One operation more is done; the last one of a closing connection lets its descriptor go.
    fn finished(&mut self, id: ConnectionId) {
        if let Some(connection) = self.connections.get_mut(id.index, id.generation) {
            connection.operations -= 1;
            self.finished_check(id);
            self.detach_check(id);
        }
    }

    fn finished_check(&mut self, id: ConnectionId) {
        let Some(connection) = self.connections.get_mut(id.index, id.generation) else { return };
        if connection.closing == Closing::Waiting && connection.operations == 0 {
            connection.closing = Closing::Closed;
            connection.outbox.clear(&mut self.nodes);
            let entry = opcode::Close::new(types::Fd(connection.socket)).build();
            self.push(entry.user_data(user_data(Operation::Close, id)));
        }
    }

    fn begin_close(&mut self, id: ConnectionId) {
        let Some(connection) = self.connections.get_mut(id.index, id.generation) else { return };
        if matches!(connection.closing, Closing::Waiting | Closing::Closed) {
            return;
        }
        connection.closing = Closing::Waiting;
        connection.wanted = false;
        if connection.operations > 0 {
            self.closing.push(id);
        }
        self.finished_check(id);
    }

    /// Cancels what is still in flight of closing connections. Most often the peer's own end has come in the same turn,
    /// and there is nothing to cancel.
    fn cancel_closing(&mut self) {
        while let Some(id) = self.closing.pop() {
            let Some(connection) = self.connections.get_mut(id.index, id.generation) else { continue };
            if connection.closing != Closing::Waiting || connection.operations == 0 {
                continue;
            }
            connection.operations += 1;
            let all = types::CancelBuilder::fd(types::Fd(connection.socket)).all();
            self.push(opcode::AsyncCancel2::new(all).build().user_data(user_data(Operation::Cancel, id)));
        }
    }

    fn insert(&mut self, socket: OwnedFd, group: Group, local: bool) -> Result<ConnectionId, OwnedFd> {
        let connection = Connection {
            socket: socket.as_raw_fd(),
            owner: 0,
            outbox: Outbox::default(),
            group,
            local,
            receive: Receive::Off,
            wanted: false,
            sending: Sending::No,
            patience: Patience::New,
            connecting: None,
            detaching: None,
            early: None,
            bulk: false,
            streamed: 0,
            large: None,
            short: false,
            left: false,
            dirty: false,
            notify: false,
            ended: false,
            closing: Closing::No,
            operations: 0,
        };
        match self.connections.insert(connection) {
            Ok((index, generation)) => {
                // From here on the slot owns the descriptor; the close operation ends it.
                let _ = socket.into_raw_fd();
                Ok(ConnectionId { index, generation })
            }
            Err(_) => Err(socket),
        }
    }

    fn mark_dirty(&mut self, id: ConnectionId) {
        let Some(connection) = self.connections.get_mut(id.index, id.generation) else { return };
        if !connection.dirty {
            connection.dirty = true;
            self.dirty.push(id);
        }
    }

    /// Hands all that was queued in this turn to the kernel's queue, and chunks to the buffer groups.
    fn end_turn(&mut self) {
        for at in 0..self.dirty.len() {
            let id = self.dirty[at];
            if let Some(connection) = self.connections.get_mut(id.index, id.generation) {
                connection.dirty = false;
                if connection.sending == Sending::No
                    && matches!(connection.closing, Closing::No | Closing::Flushing)
                    && !connection.outbox.is_empty()
                {
                    self.start_send(id);
                }
            }
        }
        self.dirty.clear();
        self.cancel_closing();
        while let Some(id) = self.rearm.pop() {
            self.arm_if_wanted(id);
        }
        self.scratch.rest();
        self.refill();
    }

    fn arm_if_wanted(&mut self, id: ConnectionId) {
        let Some(connection) = self.connections.get(id.index, id.generation) else { return };
        let alive = connection.closing == Closing::No && !connection.ended;
        if alive && connection.wanted && connection.receive == Receive::Off {
            self.arm_receive(id);
        }
    }

    fn refill(&mut self) {
        let [clients, backends] = &mut self.buffers;
        let mut ready = self.ready_max.min(backends.capacity());
        if self.arena.is_tight() {
            // What stands ready can all be filled in one turn, by answers for clients that do not read.
            ready = (ready / 4).max(2);
        }
        backends.refill(&self.arena, ready, SCRATCH_RESERVE);
        let ready = self.ready_max.min(clients.capacity());
        clients.refill(&self.arena, ready, SCRATCH_RESERVE + self.backend_reserve);
        for group in [Group::Backend, Group::Client] {
            let mut count = self.buffers[group as usize].len().min(self.starved[group as usize].len());
            while count > 0 {
                count -= 1;
                let Some(id) = self.starved[group as usize].pop_front() else { break };
                let Some(connection) = self.connections.get_mut(id.index, id.generation) else { continue };
                if connection.receive == Receive::Starved {
                    connection.receive = Receive::Off;
                    self.arm_if_wanted(id);
                }
            }
        }
    }

    fn start_send(&mut self, id: ConnectionId) {
        let connection = self.connections.get_mut(id.index, id.generation).expect("checked by the caller");
        let outbox = &mut connection.outbox;
        if outbox.pieces() > 1 && outbox.bytes() <= COALESCE_MAX.min(self.arena.chunk_size()) {
            let nodes = &self.nodes;
            let copied = self.scratch.write(outbox.bytes(), |room| {
                let mut at = 0;
                for slice in outbox.iter(nodes) {
                    room[at..at + slice.len()].copy_from_slice(slice);
                    at += slice.len();
                }
                at
            });
            if let Some(slice) = copied {
                outbox.replace(&mut self.nodes, slice);
            }
        }
        let flags = libc::MSG_NOSIGNAL | libc::MSG_WAITALL;
        let socket = types::Fd(connection.socket);
        let vector = if outbox.pieces() > 1 { self.vectors_free.pop() } else { None };
        let entry = if let Some(number) = vector {
            let vector = &mut self.vectors[number as usize];
            let mut count = 0;
            for (slice, piece) in outbox.iter(&self.nodes).zip(&mut vector.pieces) {
                *piece = libc::iovec { iov_base: slice.as_ptr().cast_mut().cast(), iov_len: slice.len() };
                count += 1;
            }
            vector.header.msg_iov = vector.pieces.as_mut_ptr();
            vector.header.msg_iovlen = count;
            connection.sending = Sending::Vector(number);
            opcode::SendMsg::new(socket, &raw const vector.header).flags(flags as u32).build()
        } else {
            let slice = outbox.iter(&self.nodes).next().expect("checked by the caller");
            connection.sending = Sending::Piece;
            opcode::Send::new(socket, slice.as_ptr(), slice.len() as u32).flags(flags).build()
        };
        connection.operations += 1;
        self.push(entry.user_data(user_data(Operation::Send, id)));
    }

    fn arm_receive(&mut self, id: ConnectionId) {
        let connection = self.connections.get_mut(id.index, id.generation).expect("checked by the caller");
        debug_assert!(connection.receive == Receive::Off);
        let streams = connection.bulk && connection.streamed >= STREAM_MIN;
        if streams && connection.short {
            connection.receive = Receive::Paced;
            self.paced.push(id);
            if !self.pace_armed {
                self.pace_armed = true;
                let entry = opcode::Timeout::new(&raw const *self.pace).build();
                self.push(entry.user_data(user_data(Operation::Pace, NOBODY)));
            }
            return;
        }
        connection.receive = Receive::Armed;
        connection.operations += 1;
        let (socket, group) = (types::Fd(connection.socket), connection.group as u16);
        let tight = self.arena.is_tight();
        // Only where it ends at once: one that waited would hold its chunks, for as long as the backend is idle.
        let large = if streams && connection.left && !tight {
            self.bulk.begin(&self.arena, self.backend_reserve + SCRATCH_RESERVE)
        } else {
            None
        };
        let entry = if let Some((slot, header)) = large {
            connection.large = Some(slot);
            opcode::RecvMsg::new(socket, header).build()
        } else if connection.bulk || tight {
            // One chunk at a time, so that stopping costs no cancellation and a slow reader holds little. Where memory is
            // short nobody may fill several before anybody can say stop, and what a client says may have to be kept.
            let most = if tight && connection.group == Group::Client { TIGHT_RECEIVE } else { 0 };
            let entry = opcode::Recv::new(socket, std::ptr::null_mut(), most).buf_group(group).build();
            entry.flags(squeue::Flags::BUFFER_SELECT)
        } else {
            opcode::RecvMulti::new(socket, group).build()
        };
        self.push(entry.user_data(user_data(Operation::Receive, id)));
    }

    fn arm_accept(&mut self, listener: usize) {
        let Some(Listener { socket, .. }) = self.listeners.get(listener) else { return };
        let entry = opcode::AcceptMulti::new(types::Fd(socket.as_raw_fd())).flags(libc::SOCK_CLOEXEC).build();
        let number = ConnectionId { index: listener as u32, generation: 0 };
        self.push(entry.user_data(user_data(Operation::Accept, number)));
    }

    fn arm_doorbell(&mut self) {
        let entry = opcode::PollAdd::new(types::Fd(self.doorbell.as_raw_fd()), libc::POLLIN as u32).multi(true).build();
        self.push(entry.user_data(user_data(Operation::Doorbell, NOBODY)));
    }

    fn push(&mut self, entry: squeue::Entry) {
        loop {
            // SAFETY: what the entry points to is owned by this struct until its completion (the module's invariant).
            if unsafe { self.ring.submission().push(&entry) }.is_ok() {
                return;
            }
            self.enters.set(self.enters.get() + 1);
            match self.ring.submit() {
                Ok(_) => {}
                Err(error) if matches!(error.raw_os_error(), Some(libc::EINTR | libc::EBUSY | libc::EAGAIN)) => {}
                Err(error) => panic!("io_uring takes no more submissions: {error}"),
            }
        }
    }
}

impl Transport for Ring {
    fn arena(&self) -> &Arena {
        &self.arena
    }

    fn scratch(&mut self) -> &mut Scratch {
        &mut self.scratch
    }

    fn now(&self) -> Instant {
        self.now
    }

    fn set_owner(&mut self, connection: ConnectionId, owner: u64) {
        if let Some(connection) = self.connections.get_mut(connection.index, connection.generation) {
            connection.owner = owner;
        }
    }

    #[inline]
    fn owner(&self, connection: ConnectionId) -> Option<u64> {
        // Also while it closes: a connect that failed is told to the one who asked for it.
        self.connections.get(connection.index, connection.generation).map(|connection| connection.owner)
    }

    #[inline]
    fn send(&mut self, id: ConnectionId, bytes: Slice) {
        let Some(connection) = self.connections.get_mut(id.index, id.generation) else { return };
        if connection.closing != Closing::No || connection.ended || bytes.is_empty() {
            return;
        }
        connection.streamed = 0;
        let in_flight = connection.sending != Sending::No;
        if in_flight && bytes.len() <= GATHER_MAX && connection.outbox.gather(&mut self.nodes, &self.arena, &bytes) {
            return;
        }
        if connection.outbox.push(&mut self.nodes, bytes, in_flight).is_err() {
            log::error!("no node is left for a piece to send: a connection is closed");
            self.abort(id);
            return;
        }
        if !in_flight {
            self.mark_dirty(id);
        }
    }

    #[inline]
    fn queued(&self, connection: ConnectionId) -> (usize, usize) {
        let slot = self.connections.get(connection.index, connection.generation);
        slot.map_or((0, 0), |connection| (connection.outbox.bytes(), connection.outbox.pieces()))
    }

    fn abort(&mut self, id: ConnectionId) {
        let Some(connection) = self.connections.get_mut(id.index, id.generation) else { return };
        if connection.closing == Closing::No && !connection.ended {
            connection.ended = true;
            self.aborted.push(id);
        }
    }

    fn taken(&self, connection: ConnectionId) -> u64 {
        let slot = self.connections.get(connection.index, connection.generation);
        slot.map_or(0, |connection| taken(connection.socket, connection.local))
    }

    fn is_starved(&self) -> bool {
        let group = Group::Client as usize;
        self.buffers[group].len() == 0 && !self.starved[group].is_empty()
    }

    fn notify_drained(&mut self, connection: ConnectionId) {
        if let Some(connection) = self.connections.get_mut(connection.index, connection.generation) {
            connection.notify = true;
        }
    }

    fn receive(&mut self, id: ConnectionId, on: bool) {
        let Some(connection) = self.connections.get_mut(id.index, id.generation) else { return };
        if connection.closing != Closing::No || connection.ended || connection.wanted == on {
            return;
        }
        if connection.detaching.is_some() {
            return;
        }
        connection.wanted = on;
        if on && self.tells_early(id) {
            return;
        }
        let connection = self.connections.get_mut(id.index, id.generation).expect("looked up above");
        match (on, connection.receive) {
            (true, Receive::Off) => self.arm_receive(id),
            (false, Receive::Armed) => {
                connection.receive = Receive::Cancelling;
                // More has come than the reader takes: from now on one chunk at a time, which needs no cancellation.
                connection.bulk = true;
                connection.operations += 1;
                let entry = opcode::AsyncCancel::new(user_data(Operation::Receive, id)).build();
                self.push(entry.user_data(user_data(Operation::Cancel, id)));
            }
            // A starved or paced one still stands in its queue; a cancelled one is armed again when the cancellation is through.
            (true, Receive::Starved | Receive::Armed | Receive::Cancelling | Receive::Paced) => {}
            (false, Receive::Off | Receive::Cancelling | Receive::Starved | Receive::Paced) => {}
        }
    }

    fn connect(&mut self, address: &SocketAddress) -> Result<ConnectionId, Errno> {
        let errno = |error: nix::Error| Errno(error as i32);
        let (family, storage, local) = match address {
            SocketAddress::Tcp(address) => {
                let family = if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
                (family, SockaddrStorage::from(*address), false)
            }
            SocketAddress::Unix(path) => {
                let unix = sys::UnixAddr::new(path).map_err(errno)?;
                // SAFETY: the pointer and length describe the address made above, which lives until after the call.
                let storage = unsafe { SockaddrStorage::from_raw(unix.as_ptr().cast(), Some(unix.len())) };
                (AddressFamily::Unix, storage.ok_or(Errno(libc::ENAMETOOLONG))?, true)
            }
        };
        let socket = sys::socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).map_err(errno)?;
        if !local {
            sys::setsockopt(&socket, sys::sockopt::TcpNoDelay, &true).map_err(errno)?;
            sys::setsockopt(&socket, sys::sockopt::KeepAlive, &true).map_err(errno)?;
        }
        let id = self.insert(socket, Group::Backend, local).map_err(|_full| Errno(libc::ENFILE))?;
        let connection = self.connections.get_mut(id.index, id.generation).expect("just inserted");
        connection.operations += 1;
        let storage = connection.connecting.insert(Box::new(storage));
        let entry = opcode::Connect::new(types::Fd(connection.socket), storage.as_ptr(), storage.len()).build();
        self.push(entry.user_data(user_data(Operation::Connect, id)));
        Ok(id)
    }

    fn close(&mut self, id: ConnectionId, how: Close) {
        let Some(connection) = self.connections.get_mut(id.index, id.generation) else { return };
        if connection.closing != Closing::No {
            return;
        }
        let unsent = !connection.outbox.is_empty() && !connection.ended;
        if how == Close::Now || !unsent {
            self.begin_close(id);
            return;
        }
        self.receive(id, false);
        let connection = self.connections.get_mut(id.index, id.generation).expect("looked up above");
        connection.closing = Closing::Flushing;
        let until = self.now + LINGER;
        self.lingering.push((id, until));
    }

    fn peer(&self, connection: ConnectionId) -> String {
        let slot = self.connections.get(connection.index, connection.generation);
        let Some(connection) = slot else { return String::new() };
        if connection.local {
            return "unix".to_owned();
        }
        match sys::getpeername::<SockaddrStorage>(connection.socket) {
            Ok(address) => tcp_address(&address).map_or_else(|| address.to_string(), |address| address.to_string()),
            Err(_) => "unknown".to_owned(),
        }
    }

    fn is_local(&self, connection: ConnectionId) -> bool {
        let slot = self.connections.get(connection.index, connection.generation);
        let Some(connection) = slot else { return false };
        if connection.local {
            return true;
        }
        let address = sys::getpeername::<SockaddrStorage>(connection.socket).ok();
        address.as_ref().and_then(tcp_address).is_some_and(|address| address.ip().to_canonical().is_loopback())
    }

    fn address(&self, connection: ConnectionId) -> Option<std::net::IpAddr> {
        let connection = self.connections.get(connection.index, connection.generation)?;
        if connection.local {
            return None;
        }
        let address = sys::getpeername::<SockaddrStorage>(connection.socket).ok();
        address.as_ref().and_then(tcp_address).map(|address| address.ip().to_canonical())
    }

    fn peer_user(&self, connection: ConnectionId) -> Option<String> {
        let connection = self.connections.get(connection.index, connection.generation)?;
        if !connection.local {
            return None;
        }
        // SAFETY: the slot owns the descriptor, and it is not kept beyond this call.
        let socket = unsafe { std::os::fd::BorrowedFd::borrow_raw(connection.socket) };
        let peer = sys::getsockopt(&socket, sys::sockopt::PeerCredentials).ok()?;
        let user = nix::unistd::User::from_uid(nix::unistd::Uid::from_raw(peer.uid())).ok()??;
        Some(user.name)
    }

    fn detach(&mut self, connection: ConnectionId) {
        self.begin_detach(connection);
    }

    fn adopt(&mut self, parcel: Parcel, group: Group) -> Option<ConnectionId> {
        self.adopt_parcel(parcel, group)
    }

    fn stop_listening(&mut self) {
        for listener in 0..self.listeners.len() {
            let number = ConnectionId { index: listener as u32, generation: 0 };
            let entry = opcode::AsyncCancel::new(user_data(Operation::Accept, number)).build();
            let nobody = ConnectionId { index: u32::MAX, generation: 0 };
            self.push(entry.user_data(user_data(Operation::Cancel, nobody)));
        }
        self.listeners.clear();
    }

    fn resolve(&mut self, host: &str, port: u16, ticket: u64) {
        self.resolver.start(host, port, ticket);
    }
}

/// See [`Transport::taken`]: what the peer's kernel has acknowledged. A Unix socket says only how much is on its way.
fn taken(socket: RawFd, local: bool) -> u64 {
    if local {
        let mut unread: libc::c_int = 0;
        // SAFETY: the call writes an int to where it is pointed.
        unsafe { libc::ioctl(socket, libc::TIOCOUTQ, &raw mut unread) };
        return unread as u64;
    }
    // SAFETY: all-zero is a valid value of the C struct; the call writes at most `length` bytes to it.
    unsafe {
        let mut info: libc::tcp_info = std::mem::zeroed();
        let mut length = size_of::<libc::tcp_info>() as libc::socklen_t;
        let target = (&raw mut info).cast();
        if libc::getsockopt(socket, libc::IPPROTO_TCP, libc::TCP_INFO, target, &raw mut length) != 0 {
            return 0;
        }
        info.tcpi_bytes_acked
    }
}

fn tcp_address(address: &SockaddrStorage) -> Option<SocketAddr> {
    if let Some(address) = address.as_sockaddr_in() {
        return Some(SocketAddr::from((address.ip(), address.port())));
    }
    address.as_sockaddr_in6().map(|address| SocketAddr::from((address.ip(), address.port())))
}
