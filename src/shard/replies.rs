//! From the server to the client: frame, tell the pipeline, forward. What an answer means is in `answers` and `reported`.

use crate::ids::{BackendId, ClientId};
use crate::io::Transport;
use crate::memory::Slice;
use crate::protocol::tag::backend as tag;
use crate::protocol::{Step, reader};

use super::preserve::ROW_SIZE_MAX;
use super::{BackendState, ClientState, Shard};

/// A setting that the server reports is looked at up to this size.
const PARAMETER_SIZE_MAX: u32 = 4096;
/// Bytes of an error that are looked at: severity, code and message come first.
const ERROR_PREFIX: u32 = 1024;
/// A notification is looked at up to this size: its payload is "less than 8000 bytes" (NOTIFY).
const NOTIFICATION_SIZE_MAX: u32 = 16 * 1024;
/// Longest command tag; "DEALLOCATE ALL" is what is looked for.
const TAG_SIZE_MAX: u32 = 128;

#[inline]
fn need(tag: u8, size: u32) -> usize {
    let need = match tag {
        tag::DATA_ROW | tag::COPY_DATA => 0,
        tag::READY_FOR_QUERY => size,
        tag::COMMAND_COMPLETE => size.min(TAG_SIZE_MAX),
        tag::PARAMETER_STATUS => size.min(PARAMETER_SIZE_MAX),
        tag::ERROR_RESPONSE => size.min(ERROR_PREFIX),
        tag::NOTIFICATION_RESPONSE => size.min(NOTIFICATION_SIZE_MAX),
        _ => 0,
    };
    need as usize
}

/// What becomes of a message from the server.
pub(super) enum Pass {
    Client,
    Nobody,
    /// The link is gone; so are the bytes.
    Gone,
}

impl<T: Transport> Shard<T> {
    /// Bytes of a backend that is linked, or being cleaned.
    #[inline]
    pub(super) fn relay_answer(&mut self, id: BackendId, bytes: Slice) {
        let backend = self.backends.get_mut(id.index, id.generation).expect("the caller has looked it up");
        if backend.stash.is_empty() {
            self.relay_answer_whole(id, &bytes);
            return;
        }
        let mut bytes = bytes;
        while !bytes.is_empty() {
            let Some(backend) = self.backends.get_mut(id.index, id.generation) else { return };
            if backend.stash.is_empty() {
                break;
            }
            let missing = (backend.need as usize).saturating_sub(backend.stash.len()).min(bytes.len());
            let added = backend.stash.add(self.io.arena(), &bytes[..missing]);
            bytes.advance(missing);
            if added.is_ok() && backend.stash.len() < backend.need as usize {
                return;
            }
            let begun = if added.is_ok() { backend.stash.take(self.io.scratch()) } else { None };
            match begun {
                Some(begun) => self.relay_answer_whole(id, &begun),
                None => return self.on_backend_gone(id, "qcp's arena is used up"),
            }
        }
        if !bytes.is_empty() && self.backend(id).is_some() {
            // It may have gone back to the pool by now, and the bytes with it.
            self.on_rest_of_bytes(id, bytes);
        }
    }

    fn relay_answer_whole(&mut self, id: BackendId, bytes: &Slice) {
        let mut at = 0;
        let mut run = 0;
        let mut ready = false;
        loop {
            let Some(backend) = self.backends.get_mut(id.index, id.generation) else { return };
            let asked = backend.kept.asked.is_some() || backend.kept.share.is_some();
            let need = |tag, size: u32| match tag {
                tag::DATA_ROW if asked => size.min(ROW_SIZE_MAX) as usize,
                _ => need(tag, size),
            };
            match backend.framer.next(&bytes[at..], need) {
                Ok(Step::Message { tag, available, .. }) if backend.pipeline.only_passes(tag) => {
                    backend.dropping = false;
                    at += available;
                }
                Ok(Step::Message { tag, size, available }) => {
                    let end = at + available;
                    let message = &bytes[at..end];
                    let status = match tag {
                        tag::READY_FOR_QUERY => reader::ready_for_query(message).ok(),
                        _ => None,
                    };
                    let own = backend.pipeline.head().is_some_and(|head| head.expect.is_own());
                    let reply = match backend.pipeline.on_backend(tag, status) {
                        Ok(reply) => reply,
                        Err(broken) => {
                            log::error!("a server's answer does not fit its requests: {broken:?}");
                            self.on_backend_broken(id);
                            return;
                        }
                    };
                    ready |= status.is_some();
                    let resets = status.is_some() && (backend.kept.is_resetting() || backend.kept.hears);
                    if matches!(tag, tag::ERROR_RESPONSE | tag::NOTIFICATION_RESPONSE) || own || resets {
                        // What is said in its place must come behind what came before it.
                        self.flush_answer(id, bytes, run, at);
                        run = at;
                    }
                    let pass = self.on_answer(id, reply, tag, message, size);
                    let Some(backend) = self.backend(id) else { return };
                    match pass {
                        Pass::Client => {
                            backend.dropping = false;
                            at = end;
                        }
                        Pass::Nobody => {
                            backend.dropping = available < size as usize;
                            self.flush_answer(id, bytes, run, at);
                            at = end;
                            run = at;
                        }
                        Pass::Gone => return,
                    }
                    if available == size as usize {
                        self.flush_and_answer(id, bytes, &mut run, at);
                    }
                }
                Ok(Step::Rest { length, last }) => {
                    at += length;
                    if backend.dropping {
                        backend.dropping = !last;
                        run = at;
                    }
                    if last {
                        self.flush_and_answer(id, bytes, &mut run, at);
                    }
                }
                Ok(Step::Incomplete { need }) => {
                    backend.need = need as u32;
                    let added = backend.stash.add(self.io.arena(), &bytes[at..]);
                    self.flush_answer(id, bytes, run, at);
                    if added.is_err() {
                        self.on_backend_gone(id, "qcp's arena is used up");
                        return;
                    }
                    break;
                }
                Ok(Step::End) => {
                    self.flush_answer(id, bytes, run, at);
                    break;
                }
                Err(malformed) => {
                    self.on_backend_gone(id, &malformed.to_string());
                    return;
                }
            }
        }
        let Some(backend) = self.backend(id) else { return };
        match backend.state {
            BackendState::Cleaning(_) => self.go_on_cleaning(id),
            BackendState::Linked(client) => {
                if ready && self.client(client).is_some_and(|client| client.terminating) {
                    if self.backend(id).is_some_and(|backend| !backend.pipeline.is_busy()) {
                        self.dismiss(client);
                    }
                    return;
                }
                if self.client(client).is_some_and(|client| client.paused) {
                    self.resume_if_room(client, id);
                }
                if ready && self.backend(id).is_some() {
                    self.try_release(id);
                }
            }
            BackendState::Resolving
            | BackendState::Moving(_)
            | BackendState::Connecting
            | BackendState::LoggingIn
            | BackendState::Idle
            | BackendState::LookingUp(_)
            | BackendState::Listening(_)
            | BackendState::Piped(_) => {}
        }
    }

    /// Behind the last byte of a message: the replies whose turn has come and that the server does not give.
    #[inline]
    fn flush_and_answer(&mut self, id: BackendId, bytes: &Slice, run: &mut usize, at: usize) {
        if !self.has_virtual(id) {
            return;
        }
        self.flush_answer(id, bytes, *run, at);
        *run = at;
        match self.client_of(id) {
            Some(client) => self.answer_virtual(client, id),
            None => while self.backend(id).is_some_and(|link| link.pipeline.next_virtual().is_some()) {},
        }
    }

    /// Sends `bytes[from..to]` to the backend's client, if it has one.
    #[inline]
    fn flush_answer(&mut self, id: BackendId, bytes: &Slice, from: usize, to: usize) {
        if from == to {
            return;
        }
        let Some(client) = self.client_of(id) else { return };
        let Some(client) = self.clients.get(client.index, client.generation) else { return };
        let connection = client.connection;
        if matches!(client.state, ClientState::Login(_)) {
            return;
        }
        self.io.send(connection, bytes.part(from, to));
        self.pause_if_congested(id, connection);
    }

    /// A client whose pipeline was full goes on when half of it is answered.
    fn resume_if_room(&mut self, client: ClientId, id: BackendId) {
        let Some(backend) = self.backends.get(id.index, id.generation) else { return };
        let room = backend.pipeline.has_room(crate::session::pipeline::CAPACITY / 2);
        let free = backend.connection.is_some_and(|connection| !self.is_congested(connection));
        if room && free {
            self.resume_client(client);
        }
    }

    /// The link of this backend cannot go on: both sides are closed.
    pub(super) fn on_backend_broken(&mut self, id: BackendId) {
        let Some(backend) = self.backend(id) else { return };
        backend.pipeline.doubt();
        match self.client_of(id) {
            Some(client) => self.break_client(client),
            None => {
                self.counters.broken += 1;
                self.close_backend(id, crate::io::Close::Now);
            }
        }
    }
}
