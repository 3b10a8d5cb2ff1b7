//! What peers are sent: one operation each at a time, and what becomes of those that do not take it.

use std::time::Duration;

use io_uring::{opcode, types};

use super::Ring;
use super::connection::{Closing, Operation, Patience, Sending, user_data};
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
            self.dirty.push(id);
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

    pub(super) fn on_sent(&mut self, id: ConnectionId, result: i32) -> Option<Event> {
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
