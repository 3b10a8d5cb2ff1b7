//! The shard's own io_uring: accept, connect, receive, send, close and wake, with one system call for all that is
//! queued. [`super::Transport`] over it is what the shard uses; `process::shards` pumps it.
//!
//! Invariant: memory that the kernel may touch is owned here until the completion says that it is done with it; of a silent
//! send (`sending`), until the system call that makes it has returned. A connection's slot is reused only when no operation of
//! it is in flight.

mod closing;
mod connection;
mod moving;
mod opening;
mod peers;
mod receiving;
mod sending;
mod transport;

use std::cell::Cell;
use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::time::{Duration, Instant};

use io_uring::{EnterFlags, IoUring, cqueue, opcode, squeue, types};

use self::connection::{Closing, Connection, NOBODY, Operation, Receive, Sending, unpack, user_data};
use self::opening::Listener;
use self::receiving::PACE;
use self::sending::{VECTORS, Vector};
use super::buffers::Buffers;
use super::bulk::{self, Bulk};
use super::doorbell::Doorbell;
use super::resolve::Resolver;
use super::{Errno, Event, Group};
use crate::ids::ConnectionId;
use crate::memory::{Arena, Nodes, Scratch, Slab, Slice};

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
/// Chunks left for messages of our own when the arena is nearly used up.
const SCRATCH_RESERVE: usize = 2;

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
    /// Connections of each group with something to send and no send in flight.
    dirty: [Vec<ConnectionId>; 2],
    /// Connections with a send that completes only if it fails.
    silent: Vec<ConnectionId>,
    /// Their owners are to be told that all is sent.
    drained: Vec<ConnectionId>,
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
    listeners: Vec<Option<Listener>>,
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
    /// Keepalive and user timeout of connections to servers; see [`Ring::tune`].
    tcp: (Duration, Duration),
}

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
            dirty: [Vec::with_capacity(settings.connections_max), Vec::with_capacity(settings.connections_max)],
            starved: [
                VecDeque::with_capacity(settings.connections_max),
                VecDeque::with_capacity(settings.connections_max),
            ],
            closing: Vec::with_capacity(settings.connections_max),
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
            completions: Vec::with_capacity(COMPLETIONS as usize),
            silent: Vec::with_capacity(settings.connections_max),
            drained: Vec::new(),
            completions_at: 0,
            rung: false,
            now: Instant::now(),
            tick: Box::new(types::Timespec::new()),
            tick_at: None,
            enters: Cell::new(0),
            tcp: (Duration::ZERO, Duration::ZERO),
        };
        this.arena.set_floor(this.backend_reserve + SCRATCH_RESERVE);
        this.arm_doorbell();
        this.refill();
        Ok(this)
    }

    /// Bytes of all tables, term by term, for the sums: connections, nodes, vectors, queues.
    pub fn table_sizes(connections_max: usize, nodes_count: usize) -> [(&'static str, usize, usize); 6] {
        let (slots, slot_size) = Bulk::table_size();
        [
            ("large receives", slots, slot_size),
            ("connections", connections_max, Slab::<Connection>::slot_size()),
            ("pieces to send", nodes_count, Nodes::node_size()),
            ("vectored sends", VECTORS, size_of::<Vector>()),
            ("queues of connections", connections_max, 8 * size_of::<ConnectionId>()),
            ("completions", COMPLETIONS as usize, size_of::<cqueue::Entry>()),
        ]
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
        self.collect();
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
        self.collect();
        Ok(self.completions_at < self.completions.len())
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
            if let Some(connection) = self.drained.pop() {
                return Some(Event::Drained { connection });
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
                self.take_completions();
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

    /// After a system call: what has completed is at hand, and silent sends are settled.
    fn collect(&mut self) {
        self.take_completions();
        if self.silent.is_empty() {
            return;
        }
        // Not all was taken (the kernel was short of memory): some of them have yet to be made.
        if !self.ring.submission().is_empty() {
            return;
        }
        // What found no room in the queue may tell of a send that failed.
        while self.ring.submission().cq_overflow() {
            self.enters.set(self.enters.get() + 1);
            // SAFETY: no argument is passed.
            let entered = unsafe {
                let flags = EnterFlags::GETEVENTS.bits();
                self.ring.submitter().enter::<libc::sigset_t>(0, 0, flags, None)
            };
            self.take_completions();
            if entered.is_err() {
                return;
            }
        }
        self.settle_silent();
    }

    fn take_completions(&mut self) {
        if self.completions_at == self.completions.len() {
            self.completions.clear();
            self.completions_at = 0;
        }
        self.completions.extend(self.ring.completion());
    }

    fn on_completion(&mut self, entry: &cqueue::Entry) -> Option<Event> {
        let (operation, connection) = unpack(entry.user_data());
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

    /// Hands all that was queued in this turn to the kernel's queue, and chunks to the buffer groups.
    fn end_turn(&mut self) {
        // Servers work while clients are answered, and not the other way round: see benches/README.md for what that saves.
        self.send_dirty(Group::Backend);
        self.send_dirty(Group::Client);
        self.cancel_closing();
        while let Some(id) = self.rearm.pop() {
            self.arm_if_wanted(id);
        }
        self.scratch.rest();
        self.refill();
    }

    fn send_dirty(&mut self, group: Group) {
        for at in 0..self.dirty[group as usize].len() {
            let id = self.dirty[group as usize][at];
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
        self.dirty[group as usize].clear();
    }

    fn on_tick(&mut self) {
        self.look_for_stuck();
        for listener in 0..self.listeners.len() {
            if self.listeners[listener].as_mut().is_some_and(|listener| std::mem::take(&mut listener.resting)) {
                self.arm_accept(listener);
            }
        }
        self.close_lingering();
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
