//! From the server to the client: frame, tell the pipeline, forward; and what an answer means for prepared statements
//! and settings.

use crate::control::report::metrics::Origin;
use crate::ids::{BackendId, ClientId};
use crate::io::Transport;
use crate::memory::Slice;
use crate::protocol::error::{Severity, field};
use crate::protocol::tag::backend as tag;
use crate::protocol::{ErrorFields, HEAD_SIZE, SqlState, Step, TransactionStatus, reader};
use crate::session::RelayMode;
use crate::session::fault::Fault;
use crate::session::parameters;
use crate::session::pipeline::{Entry, Expect, Reply};

use super::link::MARK_REPLAY;
use super::login::MARK_APPLY;
use super::preserve::{MARK_CHECK, MARK_DEALLOCATE, ROW_SIZE_MAX};
use super::requests::MARK_DUPLICATE;
use super::{BackendState, ClientState, Shard, Unnamed};

/// How a statement's name on backends begins where an error quotes it.
const BACKEND_NAME: &[u8] = b"\"qcp_";

/// Mark of the ROLLBACK of Statement mode.
const MARK_STATEMENT_MODE: u32 = 5;

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
enum Pass {
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
        backend.bytes_out += bytes.len() as u64;
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
            self.on_backend_bytes(id, bytes);
        }
    }

    fn relay_answer_whole(&mut self, id: BackendId, bytes: &Slice) {
        let mut at = 0;
        let mut run = 0;
        let mut ready = false;
        loop {
            let Some(backend) = self.backends.get_mut(id.index, id.generation) else { return };
            let asked = backend.kept.asked.is_some();
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
                    let resets = status.is_some() && backend.kept.is_resetting();
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

    #[inline]
    fn on_answer(&mut self, id: BackendId, reply: Reply, tag: u8, message: &[u8], size: u32) -> Pass {
        match tag {
            tag::PARAMETER_STATUS => return self.on_parameter(id, message, size),
            tag::COMMAND_COMPLETE => self.on_command_complete(id, message),
            tag::DATA_ROW if reply == Reply::Swallow => self.on_check_row(id, message, size),
            tag::NOTIFICATION_RESPONSE => return self.on_notification(id, message, size),
            tag::ERROR_RESPONSE => {
                self.forget_reset(id);
                let own = self.backend(id).and_then(|backend| backend.pipeline.head());
                if matches!(reader::fields(message).severity(), Some(Severity::Fatal | Severity::Panic))
                    && let Some(backend) = self.backend(id)
                {
                    backend.fatal = true;
                }
                if reply == Reply::Swallow
                    && let Some(Entry { expect: Expect::OwnQuery, mark }) = own
                {
                    return self.on_own_query_error(id, mark, message);
                }
                if reply != Reply::Swallow
                    && let Some(code) = reader::fields(message).code()
                {
                    self.errors.count(code, Origin::Server);
                }
            }
            _ => {}
        }
        let pass = match reply {
            Reply::Forward => Pass::Client,
            Reply::Swallow => Pass::Nobody,
            Reply::Answered(entry) => self.on_answered(id, entry, message),
            Reply::Failed(entry) => self.on_failed(id, entry, message),
        };
        let names_statement = || memchr::memmem::find(message, BACKEND_NAME).is_some();
        if tag == tag::ERROR_RESPONSE
            && matches!(pass, Pass::Client)
            && message.len() == size as usize
            && names_statement()
        {
            return self.say_in_clients_words(id, message);
        }
        pass
    }

    #[inline]
    fn on_answered(&mut self, id: BackendId, entry: Entry, message: &[u8]) -> Pass {
        match entry.expect {
            Expect::Parse if entry.mark != 0 => {
                self.accept(id, entry.mark);
                if let Some(client) = self.client_of(id) {
                    self.with_names(client, |names| names.defined(entry.mark));
                }
                Pass::Client
            }
            Expect::OwnQuery => {
                self.on_own_query_done(id, entry.mark);
                if self.backend(id).is_some() { Pass::Nobody } else { Pass::Gone }
            }
            Expect::OwnParse => {
                self.accept(id, entry.mark);
                Pass::Nobody
            }
            Expect::OwnClose | Expect::OwnSync => Pass::Nobody,
            Expect::Query | Expect::Sync => self.on_ready(id, message),
            Expect::Parse
            | Expect::FunctionCall
            | Expect::Bind
            | Expect::Describe
            | Expect::Execute
            | Expect::Close
            | Expect::CopyEnd
            | Expect::VirtualParse
            | Expect::VirtualClose => Pass::Client,
        }
    }

    fn accept(&mut self, id: BackendId, number: u32) {
        let Some(backend) = self.backends.get_mut(id.index, id.generation) else { return };
        // An earlier batch that failed may have had it forgotten, after this Parse was sent.
        if number & MARK_DUPLICATE == 0 && !backend.prepared.touch(number) {
            backend.confirm(number);
            self.count_pending(id);
        }
        let Some(backend) = self.backends.get(id.index, id.generation) else { return };
        self.statements.accept(number, self.pools.get(backend.pool).serial);
    }

    /// In Statement mode a transaction over several queries is rolled back at once.
    #[inline]
    fn on_ready(&mut self, id: BackendId, _message: &[u8]) -> Pass {
        self.end_query(id);
        self.finish_reset(id);
        let Some(backend) = self.backend(id) else { return Pass::Gone };
        let (pool, status, busy) = (backend.pool, backend.pipeline.status(), backend.pipeline.is_busy());
        let statement_mode = self.mode_of(pool) == RelayMode::Statement;
        if !statement_mode || status == TransactionStatus::Idle || busy {
            return Pass::Client;
        }
        let Some(client) = self.client_of(id) else { return Pass::Client };
        if !self.ask_own(id, b"ROLLBACK", MARK_STATEMENT_MODE) {
            self.fail(client, &Fault::NoMemory);
            return Pass::Gone;
        }
        Pass::Nobody
    }

    /// An error cut off an extended request and what came behind it: nothing of that has had an effect.
    fn on_failed(&mut self, id: BackendId, entry: Entry, message: &[u8]) -> Pass {
        let code = reader::fields(message).code();
        let stale_max = self.settings.statements_max;
        // Undone in reverse, as they were done. Errors are rare enough for a list.
        let mut skipped = Vec::new();
        while let Some(entry) = self.backend(id).and_then(|backend| backend.pipeline.take_skipped()) {
            skipped.push(entry);
        }
        for entry in skipped.into_iter().rev() {
            self.undo(id, entry);
        }
        let duplicate = entry.expect == Expect::Parse && entry.mark & MARK_DUPLICATE != 0;
        if duplicate && code == Some(SqlState::DUPLICATE_STATEMENT) {
            self.say_duplicate(id, entry.mark & !MARK_DUPLICATE);
        } else if !duplicate {
            self.undo(id, entry);
            if code == Some(SqlState::FEATURE_NOT_SUPPORTED) && entry.expect == Expect::Bind && entry.mark != 0 {
                // "cached plan must not change result type": prepared anew the next time.
                if let Some(backend) = self.backend(id) {
                    backend.prepared.remove(entry.mark);
                    backend.mark_stale(entry.mark, stale_max);
                }
            } else if code == Some(SqlState::DUPLICATE_STATEMENT)
                && matches!(entry.expect, Expect::Parse | Expect::OwnParse)
                && entry.mark != 0
                && let Some(backend) = self.backend(id)
            {
                // Something else stands there under this name: it is closed first the next time.
                backend.mark_stale(entry.mark, stale_max);
            }
        }
        self.count_pending(id);
        // A statement that EXECUTE names was to be prepared first: the EXECUTE itself will say what is wrong.
        let ahead = self.backend(id).and_then(|backend| backend.pipeline.head());
        if entry.expect == Expect::OwnParse && ahead.is_some_and(|ahead| ahead.expect == Expect::OwnSync) {
            return Pass::Nobody;
        }
        match duplicate && code == Some(SqlState::DUPLICATE_STATEMENT) {
            true => Pass::Nobody,
            false => Pass::Client,
        }
    }

    /// What is prepared and closed by requests still in the pipeline will be, whatever was forgotten for an error.
    fn count_pending(&mut self, id: BackendId) {
        let Some(backend) = self.backend(id) else { return };
        for at in 0.. {
            let Some(Entry { expect, mark }) = backend.pipeline.pending(at) else { break };
            match expect {
                Expect::Parse | Expect::OwnParse if mark & !MARK_DUPLICATE != 0 => {
                    backend.confirm(mark & !MARK_DUPLICATE);
                }
                Expect::OwnClose if mark != 0 => backend.prepared.remove(mark),
                Expect::Parse => backend.unnamed = Unnamed::Parsed,
                Expect::Bind if mark == 0 && backend.unnamed == Unnamed::Parsed => backend.unnamed = Unnamed::Bound,
                Expect::Query => backend.unnamed = Unnamed::Others,
                _ => {}
            }
        }
    }

    fn undo(&mut self, id: BackendId, entry: Entry) {
        let number = entry.mark;
        let client = self.client_of(id);
        match entry.expect {
            Expect::Parse | Expect::VirtualParse if number != 0 && number & MARK_DUPLICATE == 0 => {
                if let Some(client) = client {
                    let mut undefined = false;
                    self.with_names(client, |names| undefined = names.undefine(number));
                    if undefined {
                        self.statements.let_go(number);
                    }
                }
                if entry.expect == Expect::Parse
                    && let Some(backend) = self.backend(id)
                {
                    backend.prepared.remove(number);
                }
            }
            Expect::Parse => {
                if let Some(backend) = self.backend(id) {
                    backend.unnamed = Unnamed::Others;
                }
            }
            Expect::VirtualClose if number != 0 => {
                if let Some(client) = client {
                    self.with_names(client, |names| names.unclose(number));
                }
            }
            // The unnamed statement, brought along for its Bind.
            Expect::OwnParse if number == 0 => {
                if let Some(backend) = self.backend(id) {
                    backend.unnamed = Unnamed::Others;
                }
            }
            Expect::OwnParse => {
                if let Some(backend) = self.backend(id) {
                    backend.prepared.remove(number);
                }
            }
            // The server has not read it, so the statement is still there, unless an earlier Close had been read by then.
            // Another Close before it is prepared again is right in both cases.
            Expect::OwnClose if number != 0 => {
                if let Some(backend) = self.backend(id) {
                    backend.prepared.remove(number);
                    backend.expect_stale(number);
                }
            }
            _ => {}
        }
    }

    /// The server's words, with the client's name in them.
    fn say_duplicate(&mut self, id: BackendId, number: u32) {
        let Some(client) = self.client_of(id) else { return };
        let mut name = String::new();
        self.with_names(client, |names| {
            if let Some(found) = names.name_of(number) {
                name = String::from_utf8_lossy(found).into_owned();
            }
        });
        let text = format!("prepared statement \"{name}\" already exists");
        let fields = ErrorFields::error(SqlState::DUPLICATE_STATEMENT, &text);
        let Some(connection) = self.client(client).map(|client| client.connection) else { return };
        self.write(connection, text.len() + 128, |writer| {
            writer.error_response(&fields).expect("the room was asked for");
        });
    }

    /// An error that names a prepared statement as the backend knows it, with the client's names instead.
    fn say_in_clients_words(&mut self, id: BackendId, message: &[u8]) -> Pass {
        let Some(client) = self.client_of(id) else { return Pass::Nobody };
        let mut text = Vec::with_capacity(message.len());
        let mut rest = &message[HEAD_SIZE..];
        while let Some(at) = memchr::memmem::find(rest, BACKEND_NAME) {
            let (before, found) = rest.split_at(at + BACKEND_NAME.len());
            let digits = found.iter().take_while(|byte| byte.is_ascii_digit()).count();
            let number = std::str::from_utf8(&found[..digits]).ok().and_then(|digits| digits.parse().ok());
            let mut own = None;
            if let Some(number) = number {
                self.with_names(client, |names| own = names.name_of(number).map(<[u8]>::to_vec));
            }
            match own {
                Some(name) => {
                    text.extend_from_slice(&before[..at + 1]);
                    text.extend_from_slice(&name);
                }
                None => {
                    text.extend_from_slice(before);
                    text.extend_from_slice(&found[..digits]);
                }
            }
            rest = &found[digits..];
        }
        text.extend_from_slice(rest);
        let Some(connection) = self.client(client).map(|client| client.connection) else { return Pass::Nobody };
        let length = (text.len() as u32 + 4).to_be_bytes();
        self.write(connection, text.len() + HEAD_SIZE, |writer| {
            let head = writer.raw(&[tag::ERROR_RESPONSE]).and_then(|()| writer.raw(&length));
            // Longer than a chunk only with hundreds of names in it; then the connection is better closed than confused.
            let _ = head.and_then(|()| writer.raw(&text));
        });
        Pass::Nobody
    }

    #[inline]
    fn has_virtual(&mut self, id: BackendId) -> bool {
        let Some(backend) = self.backend(id) else { return false };
        let head = backend.pipeline.head();
        head.is_some_and(|head| matches!(head.expect, Expect::VirtualParse | Expect::VirtualClose | Expect::CopyEnd))
    }

    /// Gives the replies whose turn has come and that the server does not give.
    pub(super) fn answer_virtual(&mut self, client: ClientId, id: BackendId) {
        // Part of the answer before them is still to come.
        if self.backend(id).is_none_or(|backend| !backend.framer.at_boundary()) {
            return;
        }
        while let Some(entry) = self.backend(id).and_then(|backend| backend.pipeline.next_virtual()) {
            let Some(connection) = self.client(client).map(|client| client.connection) else { return };
            let parse = entry.expect == Expect::VirtualParse;
            self.write(connection, 8, |writer| {
                let written = if parse { writer.parse_complete() } else { writer.close_complete() };
                written.expect("the room was asked for");
            });
            if parse {
                self.with_names(client, |names| names.defined(entry.mark));
            } else if entry.mark != 0 {
                let mut closed = false;
                self.with_names(client, |names| closed = names.closed(entry.mark));
                if closed {
                    self.statements.let_go(entry.mark);
                }
            }
        }
    }

    /// "DISCARD ALL" and "DEALLOCATE ALL" leave a backend without prepared statements, and the client without names.
    fn on_command_complete(&mut self, id: BackendId, message: &[u8]) {
        let Ok(command) = reader::command_complete(message) else { return };
        if matches!(command, b"SET" | b"RESET" | b"DISCARD ALL") {
            let has = self.backends.get(id.index, id.generation).map(|backend| backend.has);
            let pool = self.backends.get(id.index, id.generation).map(|backend| backend.pool);
            let asks = pool.is_some_and(|pool| self.preserves(pool));
            let untracked = !asks && has.is_some_and(|has| self.vectors.has_untracked(has));
            if let Some(backend) = self.backend(id) {
                backend.touched |= untracked;
            }
        }
        let head = self.backend(id).and_then(|backend| backend.pipeline.head());
        if let Some(Entry { expect: Expect::Query, mark }) = head
            && mark & MARK_DEALLOCATE != 0
            && command == b"DEALLOCATE"
        {
            self.on_deallocated(id, mark & !MARK_DEALLOCATE);
        }
        if !matches!(command, b"DISCARD ALL" | b"DEALLOCATE ALL") {
            return;
        }
        let Some(backend) = self.backend(id) else { return };
        backend.prepared.clear();
        backend.stale.clear();
        self.count_pending(id);
        let Some(client) = self.client_of(id) else { return };
        let mut numbers = Vec::new();
        self.with_names(client, |names| {
            while let Some(number) = names.take_live() {
                numbers.push(number);
            }
        });
        for number in numbers {
            self.statements.let_go(number);
        }
    }

    /// A setting that the server reports follows the client.
    fn on_parameter(&mut self, id: BackendId, message: &[u8], size: u32) -> Pass {
        let head = self.backend(id).and_then(|backend| backend.pipeline.head());
        let own = head.filter(|head| head.expect == Expect::OwnQuery).map(|head| head.mark);
        if message.len() < size as usize {
            // Too long to be remembered, so the backend is not lent to others.
            if let Some(backend) = self.backend(id) {
                backend.tainted = true;
            }
            return Pass::Client;
        }
        let Ok(status) = reader::parameter_status(message) else { return Pass::Client };
        let (Ok(name), Ok(value)) = (std::str::from_utf8(status.name), std::str::from_utf8(status.value)) else {
            return Pass::Client;
        };
        let Some(client) = self.client_of(id) else {
            self.note_parameter(id, message);
            return Pass::Nobody;
        };
        // What a replay sets, the client knows already; what a RESET in it does, is not the client's wish.
        if own == Some(MARK_REPLAY) {
            return Pass::Nobody;
        }
        if !parameters::is_tracked(status.name) {
            return if own.is_some() { Pass::Nobody } else { Pass::Client };
        }
        let name = name.to_ascii_lowercase();
        if self.is_reset_away(id, &name) {
            return Pass::Nobody;
        }
        let wanted = self.client(client).expect("a linked client is there").wanted;
        let applying = self.client(client).is_some_and(|client| matches!(client.state, ClientState::Login(_)));
        if applying && self.vectors.get(wanted, &name).is_none() {
            return Pass::Nobody;
        }
        match self.vectors.change(wanted, &name, value) {
            Ok(changed) => {
                self.client(client).expect("looked up above").wanted = changed;
                let held = self.vectors.hold(changed);
                if let Some(backend) = self.backend(id) {
                    let old = std::mem::replace(&mut backend.has, held);
                    self.vectors.let_go(old);
                }
            }
            Err(_full) => {
                if let Some(backend) = self.backend(id) {
                    backend.tainted = true;
                }
            }
        }
        if applying { Pass::Nobody } else { Pass::Client }
    }

    /// A backend without a client reports a setting: that is what it has now.
    pub(super) fn note_parameter(&mut self, id: BackendId, message: &[u8]) {
        let Ok(status) = reader::parameter_status(message) else { return };
        if !parameters::is_tracked(status.name) {
            return;
        }
        let Some(backend) = self.backends.get_mut(id.index, id.generation) else { return };
        let name = String::from_utf8_lossy(status.name).to_ascii_lowercase();
        let value = String::from_utf8_lossy(status.value);
        match self.vectors.change(backend.has, &name, &value) {
            Ok(changed) => backend.has = changed,
            Err(_full) => backend.tainted = true,
        }
    }

    /// The process id in it is the backend's; a client that notifies itself knows itself by another.
    fn on_notification(&mut self, id: BackendId, message: &[u8], size: u32) -> Pass {
        if message.len() < size as usize || !self.is_own_notification(id, message) {
            return Pass::Client;
        }
        let Some(client) = self.client_of(id) else { return Pass::Nobody };
        let process_id = self.process_id(client);
        let (Ok(notification), Some(connection)) =
            (reader::notification_response(message), self.client(client).map(|client| client.connection))
        else {
            return Pass::Client;
        };
        self.write(connection, message.len(), |writer| {
            let _ = writer.notification_response(process_id, notification.channel, notification.payload);
        });
        Pass::Nobody
    }

    fn on_own_query_done(&mut self, id: BackendId, mark: u32) {
        match mark {
            MARK_APPLY => {
                if let Some(client) = self.client_of(id) {
                    self.on_settings_applied(client, id);
                }
            }
            MARK_STATEMENT_MODE => {
                let Some(id) = self.client_of(id) else { return };
                let Some(client) = self.client(id) else { return };
                let connection = client.connection;
                self.write_error(connection, &Fault::TransactionInStatementMode, Some(TransactionStatus::Idle));
            }
            MARK_REPLAY => {}
            MARK_CHECK => self.on_check_done(id),
            _ => self.on_own_answer(id, mark),
        }
    }

    fn on_own_query_error(&mut self, id: BackendId, mark: u32, message: &[u8]) -> Pass {
        let Some(client) = self.client_of(id) else {
            self.on_own_error(id);
            return Pass::Nobody;
        };
        let text =
            String::from_utf8_lossy(reader::fields(message).get(field::MESSAGE).unwrap_or_default()).into_owned();
        if mark == MARK_CHECK {
            self.on_check_error(id, &text);
        } else if mark == MARK_APPLY {
            // As on a direct connection: the server's own words, but fatal. The backend is as it was: what several
            // statements in one query set, their error has undone.
            self.refuse_settings(client, message, &text);
        } else if mark == MARK_REPLAY && self.is_whole_last_word(id, message) {
            // The server ends the connection, for whatever reason, and not for the settings.
            self.on_own_error(id);
            self.refuse_in_servers_words(client, message);
        } else {
            self.on_own_error(id);
            self.fail(client, &Fault::ReplayRefused(text));
        }
        if self.backend(id).is_some() { Pass::Nobody } else { Pass::Gone }
    }

    /// Whether a message is the whole of an error after which the server hangs up.
    fn is_whole_last_word(&self, id: BackendId, message: &[u8]) -> bool {
        let length = message.get(1..HEAD_SIZE).and_then(|bytes| bytes.try_into().ok()).map(u32::from_be_bytes);
        let fatal = self.backends.get(id.index, id.generation).is_some_and(|backend| backend.fatal);
        fatal && length.is_some_and(|length| message.len() == length as usize + 1)
    }

    fn refuse_settings(&mut self, id: ClientId, message: &[u8], text: &str) {
        let Some(connection) = self.client(id).map(|client| client.connection) else { return };
        let fields = reader::fields(message);
        let text_of = |kind| fields.get(kind).and_then(|bytes| std::str::from_utf8(bytes).ok());
        let answer = ErrorFields {
            severity: Severity::Fatal,
            code: fields.code().unwrap_or(SqlState::INVALID_PARAMETER_VALUE),
            message: text,
            detail: text_of(field::DETAIL),
            hint: text_of(field::HINT),
        };
        self.write(connection, message.len() + 64, |writer| {
            let _ = writer.error_response(&answer);
        });
        self.dismiss(id);
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
