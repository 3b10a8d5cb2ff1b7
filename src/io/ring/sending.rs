//! What peers are sent: one operation each at a time, and what becomes of those that do not take it.
//!
//! Most sends are short and find room in their socket, so they are over when the system call that submits them returns. Such
//! a send is asked to complete only if it fails: one completion less to write, to read, and to be woken by. It must not
//! wait in the kernel then: where the socket is full it fails, and is made again as one that waits and completes.

use std::time::Duration;

use io_uring::{opcode, squeue, types};

use super::Ring;
use super::connection::{Closing, Operation, Patience, Sending, unpack, user_data};
use crate::ids::ConnectionId;
use crate::io::{Errno, Event};

/// Pieces of one vectored send.
pub(super) const VECTOR_MAX: usize = 16;
/// Vectored sends in flight; beyond, pieces are sent one by one.
pub(super) const VECTORS: usize = 128;
/// Up to this size, several pieces are copied into one rather than sent as a vector.
pub(super) const COALESCE_MAX: usize = 4096;
/// Up to this size, what comes while an earlier send is in flight is copied aside.
pub(super) const GATHER_MAX: usize = 2048;
/// A longer piece than this may well find its socket full: its send waits there, and completes.
pub(super) const SILENT_MAX: usize = 16 * 1024;
/// Connections looked at in one tick for a send that does not end.
pub(super) const LOOKED_AT: usize = 512;
/// A send in flight at two looks, with this between them, is stuck.
pub(super) const LOOK_EVERY: Duration = Duration::from_millis(200);

pub(super) struct Vector {
    pub(super) header: libc::msghdr,
    pub(super) pieces: [libc::iovec; VECTOR_MAX],
}

impl Ring {
    pub(super) fn mark_dirty(&mut self, id: ConnectionId) {
        let Some(connection) = self.connections.get_mut(id.index, id.generation) else { return };
        if !connection.dirty {
            connection.dirty = true;
            self.dirty[connection.group as usize].push(id);
        }
    }

    pub(super) fn start_send(&mut self, id: ConnectionId) {
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
        let mut flags = libc::MSG_NOSIGNAL | libc::MSG_WAITALL;
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
            // Whoever waits to hear that it is through hears it only from a completion.
            let alone = outbox.pieces() == 1 && connection.closing == Closing::No && connection.detaching.is_none();
            let silent = alone && !connection.notify && !connection.full && slice.len() <= SILENT_MAX;
            let mut operation = squeue::Flags::empty();
            if silent {
                connection.silent = slice.len() as u32;
                self.silent.push(id);
                flags |= libc::MSG_DONTWAIT;
                operation = squeue::Flags::SKIP_SUCCESS;
            }
            opcode::Send::new(socket, slice.as_ptr(), slice.len() as u32).flags(flags).build().flags(operation)
        };
        connection.operations += 1;
        self.push(entry.user_data(user_data(Operation::Send, id)));
    }

    /// After a system call that has taken all that was queued, with all completions at hand: sends that were to complete only
    /// if they fail, and have not, are through.
    pub(super) fn settle_silent(&mut self) {
        for entry in &self.completions[self.completions_at..] {
            if let (Operation::Send, id) = unpack(entry.user_data())
                && let Some(connection) = self.connections.get_mut(id.index, id.generation)
            {
                // It has failed, or found room for a part; `on_sent` sees to that.
                connection.full |= connection.silent > 0;
                connection.silent = 0;
            }
        }
        while let Some(id) = self.silent.pop() {
            let Some(connection) = self.connections.get_mut(id.index, id.generation) else { continue };
            let size = std::mem::take(&mut connection.silent);
            if size == 0 {
                continue;
            }
            let is_plain = connection.closing == Closing::No && connection.detaching.is_none() && !connection.notify;
            if is_plain && connection.outbox.bytes() == size as usize {
                connection.operations -= 1;
                connection.sending = Sending::No;
                connection.outbox.clear(&mut self.nodes);
            } else if let Some(Event::Drained { connection }) = self.on_sent(id, size as i32) {
                // The system call had to be made twice, and meanwhile something else has happened.
                self.drained.push(connection);
            }
        }
    }

    pub(super) fn on_sent(&mut self, id: ConnectionId, result: i32) -> Option<Event> {
        let slot = self.connections.get_mut(id.index, id.generation);
        let connection = slot.expect("a slot is kept while an operation is in flight");
        connection.operations -= 1;
        let silent = std::mem::take(&mut connection.silent);
        connection.full |= result < silent as i32;
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
        connection.full &= !connection.outbox.is_empty();
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

    /// Looks for peers that do not take what they are sent: what is queued for them is copied aside, into blocks, so that
    /// a few bytes do not hold a chunk each. Only some connections each time; all of them a few times a second.
    pub(super) fn look_for_stuck(&mut self) {
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
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::super::moving::tests::{connected, next, ring};
    use super::*;
    use crate::io::Transport;

    /// A piece that says which one it is, all through.
    fn piece(ring: &mut Ring, id: ConnectionId, number: u8) {
        let bytes = ring.scratch().copy(&[number; 8192]).expect("a chunk is free");
        ring.send(id, bytes);
    }

    #[test]
    fn a_short_send_is_over_when_it_is_submitted() {
        let mut ring = ring();
        let (id, mut peer) = connected(&mut ring);
        piece(&mut ring, id, 7);
        assert_eq!(ring.queued(id), (8192, 1));
        ring.submit().expect("the ring takes it");
        assert_eq!(ring.queued(id), (0, 0), "it was made, and nothing that completes has been looked at");
        assert!(ring.silent.is_empty());
        let mut heard = [0; 8192];
        peer.read_exact(&mut heard).expect("it is sent");
        assert_eq!(heard, [7; 8192]);
    }

    #[test]
    fn a_full_socket_gets_all_in_order_when_it_is_read() {
        let mut ring = ring();
        let (id, mut peer) = connected(&mut ring);
        let mut sent = 0;
        // A socket takes some megabytes at most.
        while ring.queued(id).0 == 0 {
            assert!(sent < 10_000, "it never fills");
            piece(&mut ring, id, sent as u8);
            sent += 1;
            ring.submit().expect("the ring takes it");
            while ring.next_event().is_some() {}
        }
        // Most often a part of the last one is through. More of them wait behind it, and one of them says when all is.
        for _ in 0..2 {
            piece(&mut ring, id, sent as u8);
            sent += 1;
        }
        ring.notify_drained(id);
        ring.submit().expect("the ring takes it");
        let reader = std::thread::spawn(move || {
            let mut heard = vec![0; sent * 8192];
            peer.read_exact(&mut heard).expect("all is sent");
            (heard, peer)
        });
        assert!(matches!(next(&mut ring), Event::Drained { connection } if connection == id));
        let (heard, mut peer) = reader.join().expect("it reads");
        for (number, piece) in heard.chunks(8192).enumerate() {
            assert!(piece.iter().all(|byte| *byte == number as u8), "piece {number} of {sent}");
        }
        // And it is as quick as before again.
        piece(&mut ring, id, 9);
        ring.submit().expect("the ring takes it");
        assert_eq!(ring.queued(id), (0, 0), "it was made, and nothing that completes has been looked at");
        let mut heard = [0; 8192];
        peer.read_exact(&mut heard).expect("it is sent");
        assert_eq!(heard, [9; 8192]);
    }
}
