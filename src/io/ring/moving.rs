//! Sockets that leave this ring for another shard's, and those that come from there.
//!
//! To leave: the receive is cancelled; when no operation is in flight any more and nothing is left to send, the slot is
//! freed and the descriptor goes. What is received meanwhile is copied: it goes along.

use std::os::fd::{FromRawFd, OwnedFd};

use io_uring::opcode;

use super::Ring;
use super::connection::{Closing, Operation, Receive, Sending, user_data};
use crate::ids::ConnectionId;
use crate::io::{Event, Group, Parcel};

/// What a [`Parcel`] of a ring carries.
struct Socket {
    descriptor: OwnedFd,
    local: bool,
}

impl Ring {
    pub(super) fn begin_detach(&mut self, id: ConnectionId) {
        let Some(connection) = self.connections.get_mut(id.index, id.generation) else { return };
        if connection.closing != Closing::No || connection.ended || connection.detaching.is_some() {
            return;
        }
        // What was brought here and not yet looked at goes on.
        connection.detaching = Some(connection.early.take().unwrap_or_default());
        connection.wanted = false;
        match connection.receive {
            Receive::Armed => {
                connection.receive = Receive::Cancelling;
                connection.operations += 1;
                let entry = opcode::AsyncCancel::new(user_data(Operation::Receive, id)).build();
                self.push(entry.user_data(user_data(Operation::Cancel, id)));
            }
            // Its place in the queue of those that wait for a buffer, or for more, means nothing from now on.
            Receive::Starved | Receive::Paced => connection.receive = Receive::Off,
            Receive::Off | Receive::Cancelling => {}
        }
        self.detach_check(id);
    }

    /// Notes a connection that is ready to go.
    pub(super) fn detach_check(&mut self, id: ConnectionId) {
        let Some(connection) = self.connections.get(id.index, id.generation) else { return };
        if connection.detaching.is_some() && connection.operations == 0 && connection.outbox.is_empty() {
            self.detached.push(id);
        }
    }

    /// The next connection that has left.
    pub(super) fn next_detached(&mut self) -> Option<Event> {
        while let Some(id) = self.detached.pop() {
            let Some(connection) = self.connections.get_mut(id.index, id.generation) else { continue };
            // Since it was noted it may have been closed, or something was queued for it.
            let ready = connection.operations == 0 && connection.outbox.is_empty();
            if !ready || connection.closing != Closing::No || connection.ended {
                continue;
            }
            debug_assert!(connection.sending == Sending::No && connection.receive == Receive::Off);
            let Some(received) = connection.detaching.take() else { continue };
            let owner = connection.owner;
            // SAFETY: the slot owned the descriptor, no operation on it is in flight, and the slot goes with the next line.
            let descriptor = unsafe { OwnedFd::from_raw_fd(connection.socket) };
            let socket = Box::new(Socket { descriptor, local: connection.local });
            self.connections.remove(id.index, id.generation);
            let parcel = Parcel { socket, received: *received, layer: None };
            return Some(Event::Detached { connection: id, owner, parcel });
        }
        None
    }

    pub(super) fn adopt_parcel(&mut self, parcel: Parcel, group: Group) -> Option<ConnectionId> {
        let Parcel { socket, received, layer: _ } = parcel;
        let socket = socket.downcast::<Socket>().expect("all shards have the same transport");
        let id = self.insert(socket.descriptor, group, socket.local).ok()?;
        if !received.is_empty() {
            let connection = self.connections.get_mut(id.index, id.generation).expect("just inserted");
            connection.early = Some(Box::new(received));
        }
        Some(id)
    }

    /// Bytes that came along with a connection whose owner wants them now. Without a chunk for them they are told later.
    pub(super) fn next_early(&mut self) -> Option<Event> {
        for at in 0..self.early.len() {
            let id = self.early[at];
            let Some(connection) = self.connections.get_mut(id.index, id.generation) else {
                self.early.swap_remove(at);
                return self.next_early();
            };
            let told = connection.closing != Closing::No || connection.ended || !connection.wanted;
            let Some(bytes) = (if told { None } else { connection.early.as_mut() }) else {
                self.early.swap_remove(at);
                return self.next_early();
            };
            let size = bytes.len().min(self.arena.chunk_size());
            let Some(slice) = self.scratch.copy(&bytes[..size]) else { continue };
            bytes.drain(..size);
            if bytes.is_empty() {
                connection.early = None;
                self.early.swap_remove(at);
                if connection.receive == Receive::Off {
                    self.arm_receive(id);
                }
            }
            return Some(Event::Received { connection: id, bytes: slice });
        }
        None
    }

    /// Whether what came along with the connection has to be told before anything else is received.
    pub(super) fn tells_early(&mut self, id: ConnectionId) -> bool {
        let has = self.connections.get(id.index, id.generation).is_some_and(|connection| connection.early.is_some());
        if has && !self.early.contains(&id) {
            self.early.push(id);
        }
        has
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::Settings;
    use super::*;
    use crate::io::doorbell::Doorbell;
    use crate::io::{Close, SocketAddress, Transport};
    use crate::memory::Arena;
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};
    use std::time::Duration;

    pub(in crate::io::ring) fn ring() -> Ring {
        let settings = Settings {
            arena: Arena::new(16384, 32).expect("memory is left"),
            connections_max: 8,
            nodes_count: 64,
            backend_reserve: 4,
            ready_max: 4,
        };
        Ring::new(settings, Doorbell::new().expect("descriptors are left")).expect("a ring can be made")
    }

    pub(in crate::io::ring) fn next(ring: &mut Ring) -> Event {
        for _ in 0..200 {
            match ring.next_event() {
                Some(Event::Tick | Event::Rung) => {}
                Some(event) => return event,
                None => ring.wait(Duration::from_millis(10)).expect("the ring waits"),
            }
        }
        panic!("nothing happens");
    }

    /// A connection of `ring`'s and its peer.
    pub(in crate::io::ring) fn connected(ring: &mut Ring) -> (ConnectionId, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port is free");
        let address = SocketAddress::Tcp(listener.local_addr().expect("it is bound"));
        let id = ring.connect(&address).expect("a slot is free");
        ring.submit().expect("the ring takes it");
        let (peer, _) = listener.accept().expect("it connects");
        peer.set_read_timeout(Some(Duration::from_secs(10))).expect("it is open");
        assert!(matches!(next(ring), Event::Connected { error: None, .. }));
        (id, peer)
    }

    fn detached(ring: &mut Ring, id: ConnectionId) -> Parcel {
        ring.set_owner(id, 77);
        ring.detach(id);
        let Event::Detached { connection, owner, parcel } = next(ring) else { panic!("it leaves") };
        assert_eq!((connection, owner), (id, 77));
        assert_eq!(ring.connection_count(), 0, "the slot is free");
        parcel
    }

    fn received(ring: &mut Ring, id: ConnectionId, count: usize) -> Vec<u8> {
        let mut all = Vec::new();
        while all.len() < count {
            let Event::Received { connection, bytes } = next(ring) else { panic!("bytes come") };
            assert_eq!(connection, id);
            all.extend_from_slice(&bytes);
        }
        all
    }

    #[test]
    fn a_socket_goes_with_all_that_has_come_and_all_that_was_sent() {
        let (mut from, mut to) = (ring(), ring());
        let (id, mut peer) = connected(&mut from);
        let bytes = from.scratch().copy(b"before").expect("a chunk is free");
        from.send(id, bytes);
        peer.write_all(b"unread").expect("it is open");
        let mut parcel = detached(&mut from, id);
        // Whether the bytes had come by then is the kernel's affair.
        parcel.received.splice(0..0, *b"first ");
        peer.write_all(b" and more").expect("it is open");
        let id = to.adopt(parcel, Group::Backend).expect("a slot is free");
        to.receive(id, true);
        assert_eq!(received(&mut to, id, 21), b"first unread and more");
        let bytes = to.scratch().copy(b" after").expect("a chunk is free");
        to.send(id, bytes);
        to.submit().expect("the ring takes it");
        let mut heard = [0; 12];
        peer.read_exact(&mut heard).expect("it is open");
        assert_eq!(&heard, b"before after");
    }

    #[test]
    fn a_parcel_that_nobody_takes_closes_its_socket() {
        let mut from = ring();
        let (id, mut peer) = connected(&mut from);
        drop(detached(&mut from, id));
        assert_eq!(peer.read(&mut [0; 1]).expect("it ends in an orderly way"), 0);
    }

    #[test]
    fn one_that_ends_or_is_closed_on_its_way_out_does_not_leave() {
        let mut from = ring();
        let (id, peer) = connected(&mut from);
        drop(peer);
        std::thread::sleep(Duration::from_millis(20));
        from.detach(id);
        assert!(matches!(next(&mut from), Event::Ended { .. }));
        from.close(id, Close::Now);
        let (id, _peer) = connected(&mut from);
        from.detach(id);
        from.close(id, Close::Now);
        for _ in 0..5 {
            from.wait(Duration::from_millis(5)).expect("the ring waits");
            while let Some(event) = from.next_event() {
                assert!(matches!(event, Event::Tick), "nothing is heard of it");
            }
        }
        assert_eq!(from.connection_count(), 0);
    }
}
