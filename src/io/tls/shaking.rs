//! The steps of handshakes, one in a turn, and what comes of the last.

use std::panic::{AssertUnwindSafe, catch_unwind};

use super::handshake::Progress;
use super::{State, Tls};
use crate::ids::ConnectionId;
use crate::io::{Event, Transport};

impl<T: Transport> Tls<T> {
    /// Makes the one step of a handshake that a turn has room for. Whether there was one.
    pub fn step(&mut self) -> bool {
        if self.stepped {
            return false;
        }
        while let Some(id) = self.steps.pop_front() {
            let Some(session) = self.session(id) else { continue };
            if matches!(session.state, State::Handshake(_)) && !session.ended {
                self.stepped = true;
                self.step_handshake(id);
                return true;
            }
        }
        false
    }

    pub(super) fn step_handshake(&mut self, id: ConnectionId) {
        let Self { sessions, outgoing, .. } = self;
        let session = sessions[id.index as usize].as_deref_mut().expect("looked up by the caller");
        let State::Handshake(handshake) = &mut session.state else { return };
        handshake.queued = false;
        // A client can bring about a panic in no way that is known; one would end the shard, so it ends the handshake.
        let progress = catch_unwind(AssertUnwindSafe(|| handshake.step(outgoing)));
        let progress = progress.unwrap_or_else(|_| Progress::Failed("a panic was caught".to_owned()));
        self.send_outgoing(id);
        match progress {
            Progress::Waiting => self.open_held(id),
            Progress::Failed(why) => self.fail(id, why),
            Progress::Done(channel, facts, plaintext) => {
                let session = self.session(id).expect("it was there a moment ago");
                session.state = State::Open(channel);
                session.facts = facts;
                self.ready.push_back(Event::Secured { connection: id, error: None });
                let piece_size = self.inner.arena().chunk_size();
                for piece in plaintext.chunks(piece_size) {
                    let Some(bytes) = self.inner.scratch().copy(piece) else {
                        log::error!("the arena is used up: a connection is closed");
                        return self.inner.abort(id);
                    };
                    self.ready.push_back(Event::Received { connection: id, bytes });
                }
                self.open_held(id);
            }
        }
    }

    /// A handshake that did not come to its end: nothing more is read or said.
    pub(super) fn fail(&mut self, id: ConnectionId, why: String) {
        let Some(session) = self.session(id) else { return };
        session.state = State::Failed;
        session.mute = true;
        if !std::mem::replace(&mut session.ended, true) {
            self.ready.push_back(Event::Secured { connection: id, error: Some(why) });
        }
        self.inner.receive(id, false);
    }

    /// Sends what a handshake has to say.
    fn send_outgoing(&mut self, id: ConnectionId) {
        let piece_size = self.inner.arena().chunk_size();
        for piece in self.outgoing.chunks(piece_size) {
            match self.inner.scratch().copy(piece) {
                Some(bytes) => self.inner.send(id, bytes),
                None => {
                    log::error!("the arena is used up: a connection is closed");
                    self.inner.abort(id);
                    break;
                }
            }
        }
        self.outgoing.clear();
    }
}
