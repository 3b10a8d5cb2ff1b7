//! Pipes in memory in the place of sockets: what the shard asks for is noted, and the world carries it out when the
//! seed says so. Time stands still unless the world moves it.
//!
//! Kept of what the ring promises: bytes that came before a stop may be seen after it; nothing is seen after a close or an
//! end; with no chunk left nothing is received, not even an end.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use qcp::ids::ConnectionId;
use qcp::io::{Close, Errno, Event, Group, Parcel, SocketAddress, Transport};
use qcp::memory::{Arena, Scratch, Slab, Slice};

use super::random::Random;

/// Who is at the other end; the world's own number.
pub type Peer = u32;

/// What the shard did that the world has to act upon.
pub enum Wish {
    Connect {
        connection: ConnectionId,
        address: SocketAddress,
    },
    /// There is something to send.
    Wrote {
        connection: ConnectionId,
    },
    /// It wants to receive.
    Receives {
        connection: ConnectionId,
    },
    /// Closed, after what was sent before; the slot is gone.
    Closed {
        peer: Peer,
    },
    /// Closed when what is queued has left.
    Closing {
        connection: ConnectionId,
    },
    /// Given up: its owner is to hear that it has ended.
    Aborted {
        connection: ConnectionId,
    },
    /// Is to leave for another shard.
    Detaching {
        connection: ConnectionId,
    },
    /// Came from another shard.
    Adopted {
        peer: Peer,
        connection: ConnectionId,
    },
    Resolve {
        ticket: u64,
        port: u16,
    },
}

struct Connection {
    peer: Peer,
    owner: u64,
    group: Group,
    wanted: bool,
    /// Some bytes were received before the stop and are still to be told.
    late: bool,
    outbox: VecDeque<Slice>,
    outbox_bytes: usize,
    taken: u64,
    notify: bool,
    wire: Arc<Mutex<Wire>>,
    ended: bool,
    flushing: bool,
    detaching: bool,
    /// Came along from another shard.
    early: Vec<u8>,
    /// The world will deliver, or drain, at some time already.
    delivery_planned: bool,
    drain_planned: bool,
}

/// What is on its way to a shard. It outlasts a move from one shard to another.
#[derive(Default)]
pub struct Wire {
    inbound: VecDeque<u8>,
    /// What comes behind the inbound bytes.
    end: Option<Option<Errno>>,
}

impl Wire {
    /// Bytes from the peer; they are on their way.
    pub fn arrive(&mut self, bytes: &[u8]) {
        if self.end.is_none() {
            self.inbound.extend(bytes);
        }
    }

    /// The peer has closed. `error`: what is on its way is lost.
    pub fn hang_up(&mut self, error: Option<Errno>) {
        if self.end.is_none() {
            if error.is_some() {
                self.inbound.clear();
            }
            self.end = Some(error);
        }
    }
}

/// Connections between two shards, by their peers; and those whose parcel was dropped.
#[derive(Default)]
pub struct Roads {
    under_way: Vec<(Peer, Arc<Mutex<Wire>>)>,
    pub dropped: Vec<Peer>,
}

impl Roads {
    pub fn is_empty(&self) -> bool {
        self.under_way.is_empty()
    }

    pub fn wire(&self, peer: Peer) -> Option<Arc<Mutex<Wire>>> {
        self.under_way.iter().find(|(moving, _)| *moving == peer).map(|(_, wire)| wire.clone())
    }

    fn leave(&mut self, peer: Peer) -> Option<Arc<Mutex<Wire>>> {
        let at = self.under_way.iter().position(|(moving, _)| *moving == peer)?;
        Some(self.under_way.swap_remove(at).1)
    }
}

/// What a [`Parcel`] of these pipes carries.
struct Moving {
    peer: Peer,
    roads: Arc<Mutex<Roads>>,
}

impl Drop for Moving {
    fn drop(&mut self) {
        let mut roads = self.roads.lock().unwrap_or_else(PoisonError::into_inner);
        // Not there: it was adopted.
        if roads.leave(self.peer).is_some() {
            roads.dropped.push(self.peer);
        }
    }
}

pub fn locked<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The pipes of one shard.
pub struct Pipes {
    arena: Arena,
    scratch: Scratch,
    now: Instant,
    connections: Slab<Connection>,
    pub wishes: Vec<Wish>,
    failed: Vec<ConnectionId>,
    pub listening: bool,
    /// Chunks that clients can never take.
    backend_reserve: usize,
    pub connect_errno: Option<Errno>,
    pub late: u64,
    roads: Arc<Mutex<Roads>>,
}

/// Chunks left for messages of our own, as the ring has it.
const SCRATCH_RESERVE: usize = 2;
pub const NOBODY: Peer = Peer::MAX;

impl Pipes {
    pub fn new(arena: Arena, now: Instant, backend_reserve: usize, roads: Arc<Mutex<Roads>>) -> Self {
        arena.set_floor(backend_reserve + SCRATCH_RESERVE);
        Self {
            scratch: Scratch::new(&arena),
            arena,
            now,
            connections: Slab::new(4096),
            wishes: Vec::new(),
            failed: Vec::new(),
            listening: true,
            backend_reserve,
            connect_errno: None,
            late: 0,
            roads,
        }
    }

    /// Drops all connections and what they hold.
    pub fn end(&mut self) {
        while let Some((index, generation)) = self.connections.next_used(0) {
            self.connections.remove(index, generation);
        }
        self.scratch.rest();
    }

    pub fn set_now(&mut self, now: Instant) {
        self.now = now;
    }

    pub fn end_turn(&mut self) {
        for id in std::mem::take(&mut self.failed) {
            self.connections.remove(id.index, id.generation);
        }
        self.scratch.rest();
    }

    /// A client has come.
    pub fn accept(&mut self, peer: Peer) -> (ConnectionId, Event) {
        let connection = self.insert(peer, Group::Client);
        (connection, Event::Accepted { connection, local: true })
    }

    fn insert(&mut self, peer: Peer, group: Group) -> ConnectionId {
        let connection = Connection {
            peer,
            owner: 0,
            group,
            wanted: false,
            late: false,
            outbox: VecDeque::new(),
            outbox_bytes: 0,
            taken: 0,
            notify: false,
            wire: Arc::default(),
            ended: false,
            flushing: false,
            detaching: false,
            early: Vec::new(),
            delivery_planned: false,
            drain_planned: false,
        };
        let (index, generation) = self.connections.insert(connection).ok().expect("fewer connections than slots");
        ConnectionId { index, generation }
    }

    fn get(&mut self, id: ConnectionId) -> Option<&mut Connection> {
        self.connections.get_mut(id.index, id.generation)
    }

    /// A connection of the shard's own is made (`Ok`: to this peer), or not. `None`: the shard has closed it by now.
    pub fn connected(&mut self, id: ConnectionId, result: Result<Peer, Errno>) -> Option<Event> {
        let connection = self.get(id)?;
        match result {
            Ok(peer) => {
                connection.peer = peer;
                connection.wanted = true;
                Some(Event::Connected { connection: id, error: None })
            }
            Err(error) => {
                // Still there while it closes: its owner is told.
                connection.flushing = true;
                self.failed.push(id);
                Some(Event::Connected { connection: id, error: Some(error) })
            }
        }
    }

    /// Whether a delivery has to be planned now.
    pub fn plan_delivery(&mut self, id: ConnectionId) -> bool {
        let news = self.has_news(id);
        self.get(id).is_some_and(|connection| news && !std::mem::replace(&mut connection.delivery_planned, true))
    }

    /// Whether a drain has to be planned now.
    pub fn plan_drain(&mut self, id: ConnectionId) -> bool {
        self.get(id).is_some_and(|connection| {
            !connection.outbox.is_empty() && !std::mem::replace(&mut connection.drain_planned, true)
        })
    }

    pub fn peer_of(&self, id: ConnectionId) -> Option<Peer> {
        self.connections.get(id.index, id.generation).map(|connection| connection.peer)
    }

    /// Bytes from the peer; they are on their way.
    pub fn arrive(&mut self, id: ConnectionId, bytes: &[u8]) {
        if let Some(connection) = self.get(id) {
            locked(&connection.wire).arrive(bytes);
        }
    }

    /// The peer has closed. `reset`: what is on its way is lost.
    pub fn hang_up(&mut self, id: ConnectionId, error: Option<Errno>) {
        if let Some(connection) = self.get(id) {
            locked(&connection.wire).hang_up(error);
        }
    }

    /// A connection leaves, with some of what is on its way to it, or has ended. `Err`: not yet, something is unsent.
    pub fn depart(&mut self, id: ConnectionId, random: &mut Random) -> Result<Option<Event>, ()> {
        let Some(connection) = self.get(id) else { return Ok(None) };
        if connection.flushing || connection.ended {
            return Ok(None);
        }
        if !connection.outbox.is_empty() {
            return Err(());
        }
        let mut received = std::mem::take(&mut connection.early);
        let end = {
            let mut wire = locked(&connection.wire);
            let size = random.below(wire.inbound.len() + 1);
            received.extend(wire.inbound.drain(..size));
            if wire.inbound.is_empty() && random.below(2) == 0 { wire.end } else { None }
        };
        if let Some(error) = end {
            connection.ended = true;
            return Ok(Some(Event::Ended { connection: id, error }));
        }
        let connection = self.connections.remove(id.index, id.generation).expect("looked up above");
        locked(&self.roads).under_way.push((connection.peer, connection.wire));
        let socket = Box::new(Moving { peer: connection.peer, roads: self.roads.clone() });
        let parcel = Parcel { socket, received, layer: None };
        Ok(Some(Event::Detached { connection: id, owner: connection.owner, parcel }))
    }

    /// Bytes on their way to the shard.
    pub fn undelivered(&self, id: ConnectionId) -> usize {
        self.connections
            .get(id.index, id.generation)
            .map_or(0, |connection| connection.early.len() + locked(&connection.wire).inbound.len())
    }

    /// Whether [`Self::deliver`] could bring anything.
    pub fn has_news(&self, id: ConnectionId) -> bool {
        let Some(connection) = self.connections.get(id.index, id.generation) else { return false };
        let wire = locked(&connection.wire);
        let something =
            !connection.early.is_empty() || !wire.inbound.is_empty() || wire.end.is_some() && connection.wanted;
        something
            && !connection.detaching
            && !connection.ended
            && !connection.flushing
            && (connection.wanted || connection.late)
    }

    /// The next bytes or the end, if the shard receives and a chunk is free. `Err`: there is no chunk.
    pub fn deliver(&mut self, id: ConnectionId, random: &mut Random, whole: bool) -> Result<Option<Event>, ()> {
        if let Some(connection) = self.get(id) {
            connection.delivery_planned = false;
        }
        if !self.has_news(id) {
            return Ok(None);
        }
        let (free, chunk_size) = (self.arena.free_count(), self.arena.chunk_size());
        let reserve = self.backend_reserve;
        let arena = self.arena.clone();
        let connection = self.get(id).expect("looked at above");
        let reserve = SCRATCH_RESERVE + if connection.group == Group::Client { reserve } else { 0 };
        if free <= reserve {
            return Err(());
        }
        let was_late = !connection.wanted;
        connection.late = false;
        let mut wire = locked(&connection.wire);
        if !connection.early.is_empty() {
            for byte in connection.early.drain(..).rev() {
                wire.inbound.push_front(byte);
            }
        }
        if wire.inbound.is_empty() {
            connection.ended = true;
            let error = wire.end.expect("has_news has seen it");
            return Ok(Some(Event::Ended { connection: id, error }));
        }
        let most = wire.inbound.len().min(chunk_size);
        let size = match random.below(4) {
            _ if whole => most,
            0 => 1 + random.below(most.min(8)),
            1 => 1 + random.below(most),
            _ => most,
        };
        let bytes: Vec<u8> = wire.inbound.drain(..size).collect();
        drop(wire);
        // A scratch of its own for each: like the kernel's, the chunk is held by nobody else.
        let bytes = Scratch::new(&arena).copy(&bytes).expect("a chunk is free");
        self.late += u64::from(was_late);
        Ok(Some(Event::Received { connection: id, bytes }))
    }

    /// Takes up to `most` bytes that the peer accepts now; `gone`: it is not there, and they are lost. Then what the shard
    /// learns of it, and whether the connection is closed now.
    pub fn drain(&mut self, id: ConnectionId, most: usize, gone: bool) -> Drained {
        let mut drained = Drained { bytes: Vec::new(), event: None, closed: None };
        let Some(connection) = self.get(id) else { return drained };
        connection.drain_planned = false;
        while drained.bytes.len() < most || gone {
            let Some(slice) = connection.outbox.front_mut() else { break };
            let count = if gone { slice.len() } else { slice.len().min(most - drained.bytes.len()) };
            drained.bytes.extend_from_slice(&slice[..count]);
            connection.outbox_bytes -= count;
            connection.taken += count as u64;
            slice.advance(count);
            if slice.is_empty() {
                connection.outbox.pop_front();
            }
        }
        if gone {
            drained.bytes.clear();
            if !connection.ended && !connection.flushing {
                connection.ended = true;
                drained.event = Some(Event::Ended { connection: id, error: Some(Errno(libc::ECONNRESET)) });
                return drained;
            }
        }
        if connection.outbox.is_empty() {
            if connection.flushing {
                drained.closed = Some(connection.peer);
                self.connections.remove(id.index, id.generation);
            } else if std::mem::take(&mut connection.notify) {
                drained.event = Some(Event::Drained { connection: id });
            }
        }
        drained
    }

    /// A close that waits for its peer has waited long enough.
    pub fn give_up(&mut self, id: ConnectionId) -> Option<Peer> {
        let connection = self.get(id)?;
        let peer = connection.flushing.then_some(connection.peer)?;
        self.connections.remove(id.index, id.generation);
        Some(peer)
    }
}

/// What [`Pipes::drain`] brought.
pub struct Drained {
    pub bytes: Vec<u8>,
    pub event: Option<Event>,
    pub closed: Option<Peer>,
}

impl Transport for Pipes {
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
        if let Some(connection) = self.get(connection) {
            connection.owner = owner;
        }
    }

    fn owner(&self, connection: ConnectionId) -> Option<u64> {
        self.connections.get(connection.index, connection.generation).map(|connection| connection.owner)
    }

    fn send(&mut self, id: ConnectionId, bytes: Slice) {
        let Some(connection) = self.get(id) else { return };
        if connection.flushing || connection.ended || bytes.is_empty() {
            return;
        }
        connection.outbox_bytes += bytes.len();
        connection.outbox.push_back(bytes);
        self.wishes.push(Wish::Wrote { connection: id });
    }

    fn queued(&self, connection: ConnectionId) -> (usize, usize) {
        let slot = self.connections.get(connection.index, connection.generation);
        slot.map_or((0, 0), |connection| (connection.outbox_bytes, connection.outbox.len()))
    }

    fn taken(&self, connection: ConnectionId) -> u64 {
        self.connections.get(connection.index, connection.generation).map_or(0, |connection| connection.taken)
    }

    fn is_starved(&self) -> bool {
        false
    }

    fn notify_drained(&mut self, connection: ConnectionId) {
        if let Some(connection) = self.get(connection) {
            connection.notify = true;
        }
    }

    fn abort(&mut self, id: ConnectionId) {
        if let Some(connection) = self.get(id)
            && !connection.flushing
            && !connection.ended
        {
            connection.ended = true;
            self.wishes.push(Wish::Aborted { connection: id });
        }
    }

    fn receive(&mut self, id: ConnectionId, on: bool) {
        let Some(connection) = self.get(id) else { return };
        if connection.flushing || connection.ended || connection.detaching || connection.wanted == on {
            return;
        }
        connection.wanted = on;
        connection.late = !on && !locked(&connection.wire).inbound.is_empty();
        if on {
            self.wishes.push(Wish::Receives { connection: id });
        }
    }

    fn connect(&mut self, address: &SocketAddress) -> Result<ConnectionId, Errno> {
        if let Some(error) = self.connect_errno {
            return Err(error);
        }
        let connection = self.insert(NOBODY, Group::Backend);
        self.wishes.push(Wish::Connect { connection, address: address.clone() });
        Ok(connection)
    }

    fn close(&mut self, id: ConnectionId, how: Close) {
        let Some(connection) = self.get(id) else { return };
        if connection.flushing {
            return;
        }
        if how == Close::Flushed && !connection.outbox.is_empty() && !connection.ended {
            connection.flushing = true;
            connection.wanted = false;
            self.wishes.push(Wish::Closing { connection: id });
            return;
        }
        let peer = connection.peer;
        self.connections.remove(id.index, id.generation);
        self.wishes.push(Wish::Closed { peer });
    }

    fn detach(&mut self, id: ConnectionId) {
        let Some(connection) = self.get(id) else { return };
        if connection.flushing || connection.ended || connection.detaching {
            return;
        }
        connection.detaching = true;
        connection.wanted = false;
        connection.late = false;
        self.wishes.push(Wish::Detaching { connection: id });
    }

    fn adopt(&mut self, parcel: Parcel, group: Group) -> Option<ConnectionId> {
        let moving = parcel.socket.downcast::<Moving>().expect("all shards have the same transport");
        let wire = locked(&self.roads).leave(moving.peer).expect("what was packed is under way");
        let id = self.insert(moving.peer, group);
        let connection = self.get(id).expect("just inserted");
        connection.wire = wire;
        connection.early = parcel.received;
        self.wishes.push(Wish::Adopted { peer: moving.peer, connection: id });
        Some(id)
    }

    fn peer(&self, connection: ConnectionId) -> String {
        format!("{connection:?}")
    }

    /// Some come by a Unix socket, and many from few addresses.
    fn address(&self, connection: ConnectionId) -> Option<std::net::IpAddr> {
        let last = (self.peer_of(connection)? % 5) as u8;
        (last > 0).then(|| [10, 0, 0, last].into())
    }

    fn peer_user(&self, _connection: ConnectionId) -> Option<String> {
        None
    }

    fn is_local(&self, _connection: ConnectionId) -> bool {
        true
    }

    fn stop_listening(&mut self) {
        self.listening = false;
    }

    fn resolve(&mut self, _host: &str, port: u16, ticket: u64) {
        self.wishes.push(Wish::Resolve { ticket, port });
    }
}
