//! How a connection ends: what is left is sent, what is in flight is cancelled, then the descriptor is closed.

use std::time::Duration;

use io_uring::{opcode, types};

use super::Ring;
use super::connection::{Closing, Operation, Receive, user_data};
use crate::ids::ConnectionId;
use crate::io::{Close, Transport};

/// How long a peer may take to accept what is sent before a close.
pub(super) const LINGER: Duration = Duration::from_secs(5);

impl Ring {
    pub(super) fn begin_close(&mut self, id: ConnectionId) {
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

    /// Cancels what is still in flight of closing connections. Where a client closes behind its Terminate, its end has come
    /// in the same turn most often, and there is nothing to cancel. One that waits for ours is not kept waiting.
    pub(super) fn cancel_closing(&mut self) {
        while let Some(id) = self.closing.pop() {
            let Some(connection) = self.connections.get_mut(id.index, id.generation) else { continue };
            if connection.closing != Closing::Waiting || connection.operations == 0 {
                continue;
            }
            let only_receive = connection.operations == 1 && connection.receive == Receive::Armed;
            connection.operations += 1;
            let entry = if only_receive {
                opcode::AsyncCancel::new(user_data(Operation::Receive, id)).build()
            } else {
                // The kernel looks through all that is in flight for these.
                let all = types::CancelBuilder::fd(types::Fd(connection.socket)).all();
                opcode::AsyncCancel2::new(all).build()
            };
            self.push(entry.user_data(user_data(Operation::Cancel, id)));
        }
    }

    /// One operation more is done; the last one of a closing connection lets its descriptor go.
    pub(super) fn finished(&mut self, id: ConnectionId) {
        if let Some(connection) = self.connections.get_mut(id.index, id.generation) {
            connection.operations -= 1;
            self.finished_check(id);
            self.detach_check(id);
        }
    }

    pub(super) fn finished_check(&mut self, id: ConnectionId) {
        let Some(connection) = self.connections.get_mut(id.index, id.generation) else { return };
        if connection.closing == Closing::Waiting && connection.operations == 0 {
            connection.closing = Closing::Closed;
            connection.outbox.clear(&mut self.nodes);
            let entry = opcode::Close::new(types::Fd(connection.socket)).build();
            self.push(entry.user_data(user_data(Operation::Close, id)));
        }
    }

    /// See [`Transport::close`].
    pub(super) fn end(&mut self, id: ConnectionId, how: Close) {
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

    /// Closes those that have had time enough to take what was sent.
    pub(super) fn close_lingering(&mut self) {
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
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::time::Duration;

    use super::super::moving::tests::{connected, ring};
    use super::*;
    use crate::io::Event;

    /// Ticks, one each `every`, until the slot is free.
    fn ticks_until_closed(ring: &mut Ring, every: Duration) -> usize {
        let mut ticks = 0;
        for _ in 0..50 {
            ring.wait(every).expect("the ring waits");
            while let Some(event) = ring.next_event() {
                assert!(matches!(event, Event::Tick), "nothing is heard of it");
                ticks += 1;
            }
            if ring.connection_count() == 0 {
                return ticks;
            }
        }
        panic!("it is never closed");
    }

    /// One is under way since the connect.
    fn settle_tick(ring: &mut Ring) {
        while ring.tick_at.is_some() {
            std::thread::sleep(Duration::from_millis(1));
            ring.submit().expect("the ring takes it");
            while ring.next_event().is_some() {}
        }
    }

    #[test]
    fn a_peer_that_stays_is_not_waited_for() {
        let mut ring = ring();
        let (id, mut peer) = connected(&mut ring);
        settle_tick(&mut ring);
        ring.close(id, Close::Flushed);
        assert_eq!(ticks_until_closed(&mut ring, Duration::from_secs(10)), 0);
        assert_eq!(peer.read(&mut [0; 1]).expect("it ends in an orderly way"), 0);
    }

    #[test]
    fn a_peer_gets_what_was_sent_before() {
        let mut ring = ring();
        let (id, mut peer) = connected(&mut ring);
        let bytes = ring.scratch().copy(b"the last answer").expect("there is memory");
        ring.send(id, bytes);
        ring.close(id, Close::Flushed);
        ticks_until_closed(&mut ring, Duration::from_millis(20));
        let mut got = Vec::new();
        peer.read_to_end(&mut got).expect("it ends in an orderly way");
        assert_eq!(got, b"the last answer");
    }

    #[test]
    fn a_peer_that_goes_is_closed_with_that() {
        let mut ring = ring();
        let (id, peer) = connected(&mut ring);
        settle_tick(&mut ring);
        ring.close(id, Close::Flushed);
        drop(peer);
        assert_eq!(ticks_until_closed(&mut ring, Duration::from_secs(10)), 0);
    }
}
