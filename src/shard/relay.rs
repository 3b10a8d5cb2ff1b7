//! From the client to the server: frame, tell the pipeline, forward. Bodies are not looked at unless a name in them has
//! to be changed.
//!
//! Invariant: a request is counted in the pipeline before its first byte is sent.

use crate::ids::{BackendId, ClientId};
use crate::io::Transport;
use crate::memory::Slice;
use crate::protocol::tag::frontend as tag;
use crate::protocol::{Step, TransactionStatus};
use crate::session::RelayMode;
use crate::session::fault::Fault;
use crate::session::pipeline::Expect;
use crate::session::scanner::Effects;

use super::spliced::MARK_FORGETS;
use super::{ClientState, Discard, STASH_MAX, Shard, Unnamed};

/// What becomes of a client's message.
pub(super) enum Verdict {
    /// It goes to the server as it is.
    Forward,
    /// Its first bytes have been replaced (and sent); from this offset on it goes as it is.
    Replaced(usize),
    /// It does not go to the server.
    Drop,
    /// More of it must be here before anything can be said.
    Hold(usize),
    /// It cannot be taken now; it is held back, and tried again when something changes.
    Pause,
    /// The client has been told off or is gone; nothing more of it is looked at.
    Gone,
}

/// Where a message lies in the slice that it came in.
#[derive(Clone, Copy)]
pub(super) struct Request {
    pub tag: u8,
    /// The whole message with its tag.
    pub size: u32,
    /// Its first byte.
    pub at: usize,
    /// Bytes of it that are here.
    pub available: usize,
}

/// Bytes of a message that are wanted before its names are looked for.
const NAMES_PREFIX: usize = 1024;

/// A message up to this size is not begun to be sent before all of it is here: who writes it a byte a second would
/// hold a backend meanwhile.
const WHOLE_MAX: usize = super::STASH_MAX;

/// How much of a message must be in one piece, by its tag. `whole_max`: see [`WHOLE_MAX`].
#[inline]
fn need(mode: RelayMode, tag: u8, size: u32, whole_max: usize) -> usize {
    if size as usize <= whole_max && tag != tag::COPY_DATA {
        return size as usize;
    }
    match tag {
        tag::PARSE | tag::BIND | tag::DESCRIBE | tag::CLOSE if mode != RelayMode::Session => {
            NAMES_PREFIX.min(size as usize)
        }
        _ => 0,
    }
}

impl<T: Transport> Shard<T> {
    /// Bytes of a client that is ready or linked.
    pub(super) fn relay_request(&mut self, id: ClientId, bytes: Slice) {
        let client = self.clients.get_mut(id.index, id.generation).expect("the caller has looked it up");
        if client.stash.is_empty() {
            self.relay_whole(id, &bytes);
            return;
        }
        // Half a message is kept: what it lacks is added, and it goes first.
        let mut bytes = bytes;
        while !bytes.is_empty() {
            let Some(client) = self.clients.get_mut(id.index, id.generation) else { return };
            if client.stash.is_empty() {
                break;
            }
            let missing = (client.need as usize).saturating_sub(client.stash.len()).min(bytes.len());
            if client.stash.add_spare(self.io.arena(), &bytes[..missing]).is_err() {
                self.fail(id, &Fault::NoMemory);
                return;
            }
            bytes.advance(missing);
            if client.stash.len() < client.need as usize {
                return;
            }
            client.need = 0;
            let Some(begun) = client.stash.take(self.io.scratch()) else {
                self.fail(id, &Fault::NoMemory);
                return;
            };
            // What follows waits at the front while the message is looked at: it may have to stay there.
            if !bytes.is_empty() && !self.put_in_front(id, bytes) {
                return;
            }
            self.relay_whole(id, &begun);
            let Some(client) = self.clients.get_mut(id.index, id.generation) else { return };
            if client.paused || matches!(client.state, ClientState::Waiting(_)) {
                return;
            }
            let Some(rest) = client.pending.pop(&mut self.nodes) else { return };
            bytes = rest;
        }
        if !bytes.is_empty() && self.client(id).is_some() {
            self.relay_whole(id, &bytes);
        }
    }

    fn relay_whole(&mut self, id: ClientId, bytes: &Slice) {
        let mut at = 0;
        // The run `run..at` goes to the server in one piece.
        let mut run = 0;
        loop {
            let Some(client) = self.clients.get_mut(id.index, id.generation) else { return };
            let mode = client.mode;
            let before = client.framer;
            // Where there is no room to keep what is half here, it goes on as it comes.
            let arena = self.io.arena();
            let whole_max = if arena.has_spare() { WHOLE_MAX.min(arena.chunk_size() / 4) } else { 0 };
            match client.framer.next(&bytes[at..], |tag, size| need(mode, tag, size, whole_max)) {
                Ok(Step::Message { tag, size, available }) => {
                    match self.on_request(id, Request { tag, size, at, available }, bytes, &mut run) {
                        Verdict::Forward => at += available,
                        Verdict::Replaced(offset) => {
                            debug_assert!(run == at, "what comes before has been sent");
                            run = at + offset;
                            at += available;
                        }
                        Verdict::Drop => {
                            self.flush_run(id, bytes, run, at);
                            at += available;
                            run = at;
                            if let Some(client) = self.client(id) {
                                client.dropping = (size as usize) > available;
                            }
                        }
                        Verdict::Hold(need) => {
                            self.flush_run(id, bytes, run, at);
                            self.put_back(id, before, bytes, at, need);
                            return;
                        }
                        Verdict::Pause => {
                            self.flush_run(id, bytes, run, at);
                            self.put_back(id, before, bytes, at, 0);
                            return;
                        }
                        Verdict::Gone => return,
                    }
                }
                Ok(Step::Rest { length, last }) => {
                    at += length;
                    if client.dropping {
                        client.dropping = !last;
                        run = at;
                    } else {
                        self.on_rest(id, &bytes[at - length..at], last);
                    }
                }
                Ok(Step::Incomplete { need }) => {
                    self.flush_run(id, bytes, run, at);
                    self.put_back(id, before, bytes, at, need);
                    return;
                }
                Ok(Step::End) => {
                    self.flush_run(id, bytes, run, at);
                    // A COPY that failed while its data was still coming: no other answer will release the backend.
                    if let Some(backend) = self.backend_of(id)
                        && self.backend(backend).is_some_and(|backend| backend.pipeline.is_whole())
                    {
                        self.try_release(backend);
                    }
                    return;
                }
                Err(malformed) => {
                    if let Some(backend) = self.backend_of(id)
                        && let Some(backend) = self.backend(backend)
                    {
                        backend.pipeline.doubt();
                    }
                    self.fail(id, &Fault::Malformed(malformed));
                    return;
                }
            }
        }
    }

    /// Sends `bytes[from..to]` to the client's backend.
    #[inline]
    pub(super) fn flush_run(&mut self, id: ClientId, bytes: &Slice, from: usize, to: usize) {
        if from == to {
            return;
        }
        let Some(backend) = self.backend_of(id) else { return };
        let Some(connection) =
            self.backends.get(backend.index, backend.generation).and_then(|backend| backend.connection)
        else {
            return;
        };
        self.io.send(connection, bytes.part(from, to));
        if self.is_congested(connection) {
            let client = self.client(id).expect("a linked client is there");
            client.paused = true;
            let source = client.connection;
            self.io.receive(source, false);
            self.io.notify_drained(connection);
        }
    }

    /// Keeps what could not be taken: part of a message (`need` bytes are wanted of it), or a request that waits.
    fn put_back(&mut self, id: ClientId, framer: crate::protocol::Framer, bytes: &Slice, at: usize, need: usize) {
        let Some(client) = self.clients.get_mut(id.index, id.generation) else { return };
        client.framer = framer;
        client.need = need as u32;
        let rest = bytes.part(at, bytes.len());
        if need > 0 {
            if client.stash.add_spare(self.io.arena(), &rest).is_err() {
                self.fail(id, &Fault::NoMemory);
            }
            return;
        }
        if client.stash.is_empty() && rest.len() <= STASH_MAX && client.keep_short(self.io.arena(), &rest) {
            return;
        }
        let connection = client.connection;
        self.io.receive(connection, false);
        if self.put_in_front(id, rest) {
            self.refuse_without_room(id);
        }
    }

    /// Puts back what was taken from the front of what is pending. `false`: there is no room, and the client is told.
    fn put_in_front(&mut self, id: ClientId, bytes: Slice) -> bool {
        let Some(client) = self.clients.get_mut(id.index, id.generation) else { return false };
        let mut behind = std::mem::take(&mut client.pending);
        let mut full = client.pending.push(&mut self.nodes, bytes, true).is_err();
        while let Some(slice) = behind.pop(&mut self.nodes) {
            full |= client.pending.push(&mut self.nodes, slice, true).is_err();
        }
        if full {
            self.fail(id, &Fault::NoMemory);
        }
        !full
    }

    /// One message of the client's. Whoever sends something of our own for it sends `run` first, and moves it on.
    #[inline]
    fn on_request(&mut self, id: ClientId, request: Request, bytes: &Slice, run: &mut usize) -> Verdict {
        let tag = request.tag;
        let client = self.clients.get_mut(id.index, id.generation).expect("the caller has looked it up");
        let source = client.connection;
        if self.is_congested(source) {
            // Who does not read its answers gets no further ones.
            let client = self.client(id).expect("looked up above");
            client.paused = true;
            self.io.receive(source, false);
            self.io.notify_drained(source);
            return Verdict::Pause;
        }
        let client = self.clients.get_mut(id.index, id.generation).expect("looked up above");
        if client.discard != Discard::No {
            return self.discard_request(id, tag);
        }
        if client.paused || client.terminating {
            return Verdict::Pause;
        }
        let ready = matches!(client.state, ClientState::Ready);
        if ready && matches!(tag, tag::SYNC | tag::PARSE | tag::CLOSE) && self.answer_idle(id, request, bytes) {
            return Verdict::Drop;
        }
        let client = self.clients.get_mut(id.index, id.generation).expect("looked up above");
        let backend = match client.state {
            ClientState::Linked(backend) => backend,
            ClientState::Ready => match self.begin_request(id, tag) {
                Ok(backend) => backend,
                Err(verdict) => return verdict,
            },
            ClientState::Waiting(_) => return Verdict::Pause,
            ClientState::Startup
            | ClientState::Moving(_)
            | ClientState::Login(_)
            | ClientState::Piped(_)
            | ClientState::Console(_) => {
                unreachable!("only requests of clients past their login are relayed")
            }
        };
        // What belongs to a COPY is part of the batch under way.
        let begins = !matches!(tag, tag::COPY_DATA | tag::COPY_DONE | tag::COPY_FAIL | tag::FLUSH);
        if begins && self.answers_in_turn(backend) {
            self.flush_run(id, bytes, *run, request.at);
            *run = request.at;
            return self.pause_for_answers(id, backend);
        }
        match tag {
            tag::TERMINATE => {
                self.flush_run(id, bytes, *run, request.at);
                self.on_terminate(id, backend);
                return Verdict::Gone;
            }
            tag::PASSWORD => {
                self.fail(id, &Fault::OutOfPlace(tag));
                return Verdict::Gone;
            }
            _ => {}
        }
        let link = self.backends.get_mut(backend.index, backend.generation).expect("a linked backend is there");
        if link.kept.proving || link.cancels > 0 && !link.pipeline.is_busy() {
            // The client's settings may be refused yet: the answer resumes. Or a cancel meant for the last request must not
            // hit this one: its end does.
            let client = self.client(id).expect("looked up above");
            client.paused = true;
            return Verdict::Pause;
        }
        // A request and what may be put in before it: two queries of our own, two Closes and a Parse of a statement, another
        // Parse or a Sync.
        if !link.pipeline.has_room(8) {
            self.flush_run(id, bytes, *run, request.at);
            *run = request.at;
            return self.pause_for_answers(id, backend);
        }
        if link.kept.is_leaving() {
            // Its channels are on their way to another connection: what it says of them now would be lost on it.
            self.flush_run(id, bytes, *run, request.at);
            *run = request.at;
            return self.pause(id);
        }
        if begins && link.kept.unsettled && !link.pipeline.is_unsynced() {
            // On what the client listens is found out before its next batch.
            link.kept.unsettled = link.pipeline.is_undecided();
            if link.kept.unsettled {
                self.flush_run(id, bytes, *run, request.at);
                *run = request.at;
                return self.pause_for_answers(id, backend);
            }
        }
        if link.pipeline.is_skipping() && !matches!(tag, tag::SYNC) {
            // "reads and discards messages until a Sync is reached": so they need not go there.
            return Verdict::Drop;
        }
        let pool = link.pool;
        if matches!(tag, tag::QUERY | tag::PARSE | tag::BIND)
            && !self.pools.get(pool).settings.upkeep.slow_query.is_zero()
        {
            self.note_slow_text(id, backend, request, bytes);
        }
        let link = self.backends.get_mut(backend.index, backend.generation).expect("looked up above");
        let mode = link.mode;
        let mut mark = 0;
        match tag {
            tag::QUERY => {
                // "a simple Query message also destroys the unnamed statement" (Extended Query).
                link.unnamed = Unnamed::Others;
                self.client(id).expect("looked up above").unnamed.clear();
                if self.keeps_session(backend)
                    && let Some(verdict) = self.note_query(id, backend, request, bytes, run)
                {
                    return verdict;
                }
                let link = self.backends.get(backend.index, backend.generation).expect("looked up above");
                if link.kept.suspects.effects().has(Effects::PREPARED) {
                    mark = MARK_FORGETS;
                }
                self.before_text(id, backend, bytes, run, request.at);
            }
            tag::EXECUTE if mode != RelayMode::Session => mark = link.kept.mark_execute(),
            tag::FUNCTION_CALL if self.keeps_session(backend) => self.suspect(backend, Effects::OPAQUE),
            tag::PARSE | tag::BIND | tag::DESCRIBE | tag::CLOSE if mode != RelayMode::Session => {
                return self.on_statement_request(id, backend, request, bytes, run);
            }
            _ => {}
        }
        let link = self.backends.get_mut(backend.index, backend.generation).expect("a linked backend is there");
        let counted = link.pipeline.on_frontend(tag, mark);
        debug_assert!(counted.is_ok(), "there was room");
        Verdict::Forward
    }

    /// What was asked before is still answered, as on a direct connection; what was not synced has no effect.
    fn on_terminate(&mut self, id: ClientId, backend: BackendId) {
        let link = self.backend(backend).expect("a linked backend is there");
        if link.pipeline.is_busy() && !link.pipeline.is_unsynced() {
            let client = self.client(id).expect("the caller has looked it up");
            client.terminating = true;
            client.paused = true;
            let source = client.connection;
            self.io.receive(source, false);
        } else {
            self.terminate(id);
        }
    }

    /// The first message of a request: the client needs a backend.
    fn begin_request(&mut self, id: ClientId, tag: u8) -> Result<BackendId, Verdict> {
        match tag {
            tag::TERMINATE => {
                self.dismiss(id);
                return Err(Verdict::Gone);
            }
            // "probably got here because a COPY failed, and the frontend is still sending data" (postgres.c): nobody
            // waits for it.
            tag::COPY_DATA | tag::COPY_DONE | tag::COPY_FAIL | tag::FLUSH => return Err(Verdict::Drop),
            tag::PASSWORD => {
                self.fail(id, &Fault::OutOfPlace(tag));
                return Err(Verdict::Gone);
            }
            _ => {}
        }
        if self.running != super::Running::Yes {
            self.fail(id, &Fault::ShuttingDown);
            return Err(Verdict::Gone);
        }
        if let Err(fault) = self.checkout(id) {
            self.refuse(id, &fault, Some(tag));
            return Err(self.discard_request(id, tag));
        }
        match self.client(id).map(|client| &client.state) {
            Some(&ClientState::Linked(backend)) => Ok(backend),
            Some(_) => Err(Verdict::Pause),
            None => Err(Verdict::Gone),
        }
    }

    /// Requests that an error has already answered.
    fn discard_request(&mut self, id: ClientId, tag: u8) -> Verdict {
        let client = self.client(id).expect("the caller has looked it up");
        let connection = client.connection;
        match (client.discard, tag) {
            (_, tag::TERMINATE) => {
                self.leave(id);
                return Verdict::Gone;
            }
            (Discard::Message, _) => client.discard = Discard::No,
            (Discard::UntilSync, tag::SYNC) => {
                client.discard = Discard::No;
                self.write(connection, 8, |writer| {
                    writer.ready_for_query(TransactionStatus::Idle).expect("the room was asked for");
                });
            }
            (Discard::UntilSync | Discard::No, _) => {}
        }
        Verdict::Drop
    }

    /// The pipeline is full: answers must come first. A Flush makes the server send what it holds.
    pub(super) fn pause_for_answers(&mut self, id: ClientId, backend: BackendId) -> Verdict {
        let verdict = self.pause(id);
        let link = self.backend(backend).expect("a linked backend is there");
        // Once: the message is looked at again more often than answers come.
        if link.pipeline.is_unflushed()
            && let Some(connection) = link.connection
        {
            let counted = link.pipeline.on_frontend(tag::FLUSH, 0);
            debug_assert!(counted.is_ok(), "a Flush takes no room");
            self.write(connection, 8, |writer| writer.flush().expect("the room was asked for"));
        }
        verdict
    }

    /// What is under way decides how the message is taken; the next answer has it looked at again.
    pub(super) fn pause(&mut self, id: ClientId) -> Verdict {
        let client = self.client(id).expect("the caller has looked it up");
        client.paused = true;
        let source = client.connection;
        self.io.receive(source, false);
        Verdict::Pause
    }

    /// Sends bytes of our own to a backend. `false`: the arena is used up.
    pub(super) fn send_own(
        &mut self,
        backend: BackendId,
        room: usize,
        write: impl FnOnce(&mut crate::protocol::Writer<'_>),
    ) -> bool {
        let Some(connection) = self.backend(backend).and_then(|backend| backend.connection) else { return true };
        self.write(connection, room, write)
    }

    /// Counts a request of which the caller sends the bytes; there is room for it.
    pub(super) fn ask(&mut self, backend: BackendId, expect: Expect, mark: u32) {
        if let Some(backend) = self.backend(backend) {
            let asked = backend.pipeline.ask(expect, mark);
            debug_assert!(asked.is_ok(), "the caller has made sure of the room");
        }
    }
}
