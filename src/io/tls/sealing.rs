//! What is to be sent: gathered in a turn, and sealed into as few records as can be at its end.

use std::ops::Deref;

use super::channel::Channel;
use super::record::{CONTENT_SIZE_MAX, OVERHEAD_MAX};
use super::{Session, State, Tls};
use crate::ids::ConnectionId;
use crate::io::Transport;

impl<T: Transport> Tls<T> {
    /// Before a wait: what was queued in this turn is sealed and sent.
    #[inline]
    pub fn end_turn(&mut self) {
        if !self.dirty.is_empty() {
            self.seal_all();
        }
    }

    fn seal_all(&mut self) {
        for at in 0..self.dirty.len() {
            self.seal_pending(self.dirty[at]);
            self.detach_if_sealed(self.dirty[at]);
        }
        let Self { sessions, dirty, .. } = self;
        // Those that found no chunk stay.
        dirty.retain(|id| {
            let session = sessions.get(id.index as usize).and_then(Option::as_deref);
            session.is_some_and(|session| session.generation == id.generation && session.dirty)
        });
    }

    pub(super) fn mark_dirty(&mut self, id: ConnectionId) {
        let Some(session) = self.session(id) else { return };
        if !std::mem::replace(&mut session.dirty, true) {
            self.dirty.push(id);
        }
    }

    /// Seals and sends what is queued for one peer. Without a chunk it stays queued, and dirty.
    pub(super) fn seal_pending(&mut self, id: ConnectionId) {
        let Self { inner, sessions, nodes, .. } = self;
        let Some(session) = sessions.get_mut(id.index as usize).and_then(Option::as_deref_mut) else { return };
        if session.generation != id.generation {
            return;
        }
        session.dirty = false;
        if session.mute {
            session.pending.clear(nodes);
            return;
        }
        let Session { state: State::Open(channel), pending, dirty, .. } = session else { return };
        while channel.wants_control() || !pending.is_empty() {
            let is_control = channel.wants_control();
            let length = pending.bytes().min(CONTENT_SIZE_MAX);
            let room = if is_control { Channel::CONTROL_SIZE_MAX } else { length + OVERHEAD_MAX + 1 };
            let mut sealed = None;
            let written = inner.scratch().write(room, |room| {
                if is_control {
                    sealed = channel.seal_control(room);
                } else {
                    gather(pending.iter(nodes), &mut room[channel.content_at()..][..length]);
                    sealed = channel.seal_data(room, length);
                }
                sealed.unwrap_or_default()
            });
            match (written, sealed) {
                (None, _) => {
                    *dirty = true;
                    return;
                }
                (Some(_), None) => {
                    log::warn!(
                        "a TLS key has sealed all that it may, and there is no next one: a connection is closed"
                    );
                    inner.abort(id);
                    return;
                }
                (Some(bytes), Some(_)) => inner.send(id, bytes),
            }
            if !is_control {
                pending.consume(nodes, length);
            }
        }
    }
}

/// Fills `room` from the front of the pieces.
fn gather<'a, P: Deref<Target = [u8]> + 'a>(pieces: impl Iterator<Item = &'a P>, room: &mut [u8]) {
    let mut at = 0;
    for piece in pieces {
        let count = piece.len().min(room.len() - at);
        room[at..at + count].copy_from_slice(&piece[..count]);
        at += count;
        if at == room.len() {
            return;
        }
    }
}
