//! Encrypted connections that leave for another shard, and those that come from there: their keys go along.
//!
//! Invariant: the stream goes on where it was. What was opened here and not yet told goes along as plaintext and is told
//! first; what was not opened goes along as it came.

use super::channel::Channel;
use super::{Facts, Session, State, Tls};
use crate::ids::ConnectionId;
use crate::io::{Event, Group, Parcel, Transport};

/// TLS's part of a [`Parcel`].
struct Layer {
    channel: Box<Channel>,
    facts: Facts,
    /// Opened and not yet told.
    early: Vec<u8>,
}

impl<T: Transport> Tls<T> {
    pub(super) fn begin_detach(&mut self, id: ConnectionId) {
        let Some(session) = self.session(id) else { return self.inner.detach(id) };
        // Only what is through its handshake has a place to go to; its owner has logged it in by then.
        debug_assert!(matches!(session.state, State::Open(_)));
        session.leaving = true;
        // What its owner was to be told after this event is the next owner's.
        let mut told = std::mem::take(&mut self.ready);
        told.retain(|event| match event {
            Event::Received { connection, bytes } if *connection == id => {
                if let Some(session) = self.session(id) {
                    session.early.extend_from_slice(bytes);
                }
                false
            }
            _ => true,
        });
        self.ready = told;
        self.seal_pending(id);
        self.detach_if_sealed(id);
    }

    /// Lets it go once nothing waits to be sealed for it.
    pub(super) fn detach_if_sealed(&mut self, id: ConnectionId) {
        let Some(session) = self.session(id) else { return };
        if session.leaving && session.pending.is_empty() {
            session.leaving = false;
            self.inner.detach(id);
        }
    }

    /// The inner connection has left: its keys leave with it.
    pub(super) fn on_detached(&mut self, id: ConnectionId, parcel: &mut Parcel) {
        if self.session(id).is_none() {
            return;
        }
        let Self { sessions, nodes, .. } = self;
        let mut session = sessions[id.index as usize].take().expect("just looked up");
        self.count -= 1;
        let mut unopened = Vec::new();
        while let Some(piece) = session.held.pop(nodes) {
            unopened.extend_from_slice(&piece);
        }
        if !unopened.is_empty() {
            unopened.append(&mut parcel.received);
            parcel.received = unopened;
        }
        session.pending.clear(nodes);
        let Session { state: State::Open(channel), facts, early, .. } = *session else { return };
        parcel.layer = Some(Box::new(Layer { channel, facts, early }));
    }

    pub(super) fn adopt_parcel(&mut self, mut parcel: Parcel, group: Group) -> Option<ConnectionId> {
        let layer = parcel.layer.take();
        let id = self.inner.adopt(parcel, group)?;
        let Some(layer) = layer else { return Some(id) };
        let Layer { channel, facts, early } = *layer.downcast::<Layer>().expect("all shards have the same transport");
        let slot = self.sessions.get_mut(id.index as usize).expect("all shards have TLS if one has");
        assert!(slot.is_none(), "a slot's last connection was closed");
        *slot = Some(Box::new(Session::new(id.generation, State::Open(channel), facts, early)));
        self.count += 1;
        Some(id)
    }

    /// What was opened by the shard before is told before anything else is.
    pub(super) fn tell_early(&mut self, id: ConnectionId) {
        let Some(session) = self.session(id) else { return };
        if session.early.is_empty() {
            return;
        }
        let early = std::mem::take(&mut session.early);
        let piece_size = self.inner.arena().chunk_size();
        for piece in early.chunks(piece_size) {
            let Some(bytes) = self.inner.scratch().copy(piece) else {
                log::error!("the arena is used up: a connection is closed");
                return self.inner.abort(id);
            };
            self.ready.push_back(Event::Received { connection: id, bytes });
        }
    }
}
