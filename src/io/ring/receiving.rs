//! What peers send: receives that repeat, one chunk at a time, or several; buffers for them.

use io_uring::{cqueue, opcode, squeue, types};

use super::connection::{Closing, NOBODY, Operation, Receive, user_data};
use super::{Ring, SCRATCH_RESERVE};
use crate::ids::ConnectionId;
use crate::io::{Errno, Event, Group, bulk};

/// A smaller receive than this says that the large answer is through.
pub(super) const BULK_MIN: usize = 4096;
/// What a client may say at once while memory is short.
pub(super) const TIGHT_RECEIVE: u32 = 4096;
/// So much without a word to the sender between is a stream: it is received several chunks at a time.
pub(super) const STREAM_MIN: u32 = 256 * 1024;
/// When a stream brings less than a quarter of what there is room for, the next receive waits so long. Servers write 8 KB at a
/// time, and a receive for each of those costs more than its bytes.
pub(super) const PACE: types::Timespec = types::Timespec::new().nsec(100_000);

impl Ring {
    pub(super) fn on_receive(&mut self, id: ConnectionId, entry: &cqueue::Entry) -> Option<Event> {
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

    pub(super) fn arm_receive(&mut self, id: ConnectionId) {
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

    pub(super) fn arm_if_wanted(&mut self, id: ConnectionId) {
        let Some(connection) = self.connections.get(id.index, id.generation) else { return };
        let alive = connection.closing == Closing::No && !connection.ended;
        if alive && connection.wanted && connection.receive == Receive::Off {
            self.arm_receive(id);
        }
    }

    pub(super) fn refill(&mut self) {
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
}
