//! Received bytes: to the handshake, or, record by record, opened into chunks of the arena. What finds no chunk waits.

use super::channel::Content;
use super::record::{HEADER_SIZE, RECORD_SIZE_MAX, Wrong};
use super::{Channel, SPARE_MAX, State, Tls};
use crate::ids::ConnectionId;
use crate::io::{Errno, Event, Transport};
use crate::memory::Slice;

/// What became of bytes that came.
enum Taken {
    All,
    /// So much is left (it may be nothing, and a whole record kept): it cannot be taken now.
    Not(Option<Slice>),
}

impl<T: Transport> Tls<T> {
    pub(super) fn on_bytes(&mut self, id: ConnectionId, bytes: Slice) {
        let Self { sessions, nodes, .. } = self;
        let Some(session) = sessions[id.index as usize].as_deref_mut() else { return };
        if session.ended {
            return;
        }
        // Behind what waits already.
        if session.waiting || !session.held.is_empty() {
            if session.held.push(nodes, bytes, false).is_err() {
                log::error!("no node is left for bytes that wait: a connection is closed");
                self.inner.abort(id);
            }
            return;
        }
        if let Taken::Not(Some(rest)) = self.take(id, Some(bytes)) {
            self.put_in_front(id, rest);
        }
    }

    /// Looks again at what could not be taken before.
    pub(super) fn open_held(&mut self, id: ConnectionId) {
        // First with nothing new: a begun record may be whole, and have waited for a chunk.
        let mut next = None;
        loop {
            if let Taken::Not(rest) = self.take(id, next) {
                if let Some(rest) = rest {
                    self.put_in_front(id, rest);
                }
                return;
            }
            let Self { sessions, nodes, .. } = self;
            let Some(session) = sessions[id.index as usize].as_deref_mut() else { return };
            next = session.held.pop(nodes);
            if next.is_none() {
                return;
            }
        }
    }

    /// Puts a piece before all that is held; there are few, and it is rare.
    fn put_in_front(&mut self, id: ConnectionId, first: Slice) {
        let Self { sessions, nodes, .. } = self;
        let Some(session) = sessions[id.index as usize].as_deref_mut() else { return };
        let mut pieces = vec![first];
        while let Some(piece) = session.held.pop(nodes) {
            pieces.push(piece);
        }
        for piece in pieces {
            if session.held.push(nodes, piece, true).is_err() {
                log::error!("no node is left for bytes that wait: a connection is closed");
                self.inner.abort(id);
                return;
            }
        }
    }

    /// Takes bytes of the peer's: opens them, or hands them to the handshake.
    fn take(&mut self, id: ConnectionId, bytes: Option<Slice>) -> Taken {
        let Some(session) = self.session(id) else { return Taken::All };
        if session.ended {
            return Taken::All;
        }
        match &mut session.state {
            State::Failed => Taken::All,
            State::Open(_) => {
                let taken = self.open(id, bytes);
                if matches!(taken, Taken::Not(_))
                    && let Some(session) = self.session(id)
                    && !std::mem::replace(&mut session.waiting, true)
                {
                    self.waiting[0].push(id);
                }
                taken
            }
            State::Handshake(handshake) => {
                let Some(bytes) = bytes else { return Taken::All };
                let fits = handshake.room().min(bytes.len());
                if fits == 0 && !handshake.queued {
                    self.fail(id, "its handshake is too long".to_owned());
                    return Taken::All;
                }
                handshake.add(&bytes[..fits]);
                if !std::mem::replace(&mut handshake.queued, true) {
                    self.steps.push_back(id);
                }
                if fits == bytes.len() { Taken::All } else { Taken::Not(Some(bytes.part(fits, bytes.len()))) }
            }
        }
    }

    /// Opens records.
    fn open(&mut self, id: ConnectionId, mut bytes: Option<Slice>) -> Taken {
        let Self { inner, sessions, ready, spare, .. } = self;
        let session = sessions[id.index as usize].as_deref_mut().expect("looked up by the caller");
        let State::Open(channel) = &mut session.state else { return Taken::All };
        let mut opened: Option<Slice> = None;
        let mut without_chunk = false;
        let outcome = loop {
            let begun = !channel.begun.is_empty();
            let here = bytes.as_deref().unwrap_or_default();
            let size = match channel.record_size(if begun { &channel.begun } else { here }) {
                Ok(size) => size,
                Err(wrong) => break Err(wrong),
            };
            if begun {
                // The header first, then what it says.
                let missing = size.unwrap_or(HEADER_SIZE).saturating_sub(channel.begun.len()).min(here.len());
                channel.begun.extend_from_slice(&here[..missing]);
                let exhausted = missing == here.len();
                advance(&mut bytes, missing);
                if size.is_none_or(|size| channel.begun.len() < size) {
                    if exhausted {
                        break Ok(Content::Control);
                    }
                    continue;
                }
            } else if size.is_none_or(|size| here.len() < size) {
                if !here.is_empty() {
                    channel.begun = spare.pop().unwrap_or_else(|| Vec::with_capacity(RECORD_SIZE_MAX));
                    channel.begun.extend_from_slice(here);
                    bytes = None;
                }
                break Ok(Content::Control);
            }
            let size = size.expect("a whole record is here");
            let whole = std::mem::take(&mut channel.begun);
            let record = if begun { &whole[..] } else { &bytes.as_deref().unwrap_or_default()[..size] };
            let mut content = Ok(Content::Control);
            let written = inner.scratch().write(channel.room(size), |room| {
                content = channel.open(record, room);
                if let Ok(Content::Data(length)) = content { length } else { 0 }
            });
            let Some(written) = written else {
                channel.begun = whole;
                without_chunk = true;
                break Ok(Content::Control);
            };
            if begun {
                keep(spare, whole);
            } else {
                advance(&mut bytes, size);
            }
            match content {
                Ok(Content::Data(_)) => {
                    let apart = match &mut opened {
                        Some(before) => before.join(written).err(),
                        None => Some(written),
                    };
                    if let Some(apart) = apart
                        && let Some(bytes) = opened.replace(apart)
                    {
                        ready.push_back(Event::Received { connection: id, bytes });
                    }
                }
                Ok(Content::Control) => {}
                other => break other,
            }
        };
        if let Some(bytes) = opened {
            ready.push_back(Event::Received { connection: id, bytes });
        }
        let is_due = channel.is_due();
        match outcome {
            Ok(Content::Closed) => self.end(id, None),
            Ok(Content::Alert(description)) => {
                log::info!("{}: the peer ended TLS by the alert {description}", self.inner.peer(id));
                self.end(id, Some(Errno(libc::ECONNRESET)));
            }
            Err(Wrong { alert, what }) => {
                log::info!("{}: {what}; the connection is closed", self.inner.peer(id));
                self.say_alert(id, alert);
                self.end(id, Some(Errno(libc::EPROTO)));
            }
            Ok(Content::Control | Content::Data(_)) => {
                if is_due {
                    self.mark_dirty(id);
                }
                if without_chunk {
                    return Taken::Not(bytes);
                }
            }
        }
        Taken::All
    }

    /// The peer's stream has ended.
    fn end(&mut self, id: ConnectionId, error: Option<Errno>) {
        let Some(session) = self.session(id) else { return };
        session.mute |= error.is_some();
        if !std::mem::replace(&mut session.ended, true) {
            self.ready.push_back(Event::Ended { connection: id, error });
        }
    }

    /// Sends an alert behind what was sealed before.
    pub(super) fn say_alert(&mut self, id: ConnectionId, description: u8) {
        let Self { inner, sessions, .. } = self;
        let Some(session) = sessions.get_mut(id.index as usize).and_then(Option::as_deref_mut) else { return };
        let State::Open(channel) = &mut session.state else { return };
        let seal = |room: &mut [u8]| channel.seal_alert(description, room).unwrap_or_default();
        if let Some(bytes) = inner.scratch().write(Channel::CONTROL_SIZE_MAX, seal) {
            inner.send(id, bytes);
        }
    }
}

fn advance(bytes: &mut Option<Slice>, count: usize) {
    if let Some(slice) = bytes {
        slice.advance(count);
        if slice.is_empty() {
            // Its chunk is free from now on.
            *bytes = None;
        }
    }
}

/// Keeps a record's buffer for the next.
pub(super) fn keep(spare: &mut Vec<Vec<u8>>, mut buffer: Vec<u8>) {
    if spare.len() < SPARE_MAX && buffer.capacity() >= RECORD_SIZE_MAX {
        buffer.clear();
        spare.push(buffer);
    }
}
