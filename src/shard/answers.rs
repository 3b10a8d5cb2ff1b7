//! What an answer means for the requests it answers: prepared statements that are there now or are not, what an error took
//! back, and the replies that QCP gives in the server's place.

use crate::control::report::metrics::Origin;
use crate::ids::{BackendId, ClientId};
use crate::io::Transport;
use crate::protocol::error::Severity;
use crate::protocol::tag::backend as tag;
use crate::protocol::{ErrorFields, HEAD_SIZE, SqlState, TransactionStatus, reader};
use crate::session::RelayMode;
use crate::session::fault::Fault;
use crate::session::pipeline::{Entry, Expect, Reply};

use super::replies::Pass;
use super::reported::MARK_STATEMENT_MODE;
use super::requests::{MARK_DUPLICATE, MARK_OWN_NAME, MARK_STOOD_IN};
use super::spliced::{MARK_DEALLOCATE, MARK_EXECUTES};
use super::{Shard, Unnamed};

/// How a statement's name on backends begins where an error quotes it.
const BACKEND_NAME: &[u8] = b"\"qcp_";

impl<T: Transport> Shard<T> {
    #[inline]
    pub(super) fn on_answer(&mut self, id: BackendId, reply: Reply, tag: u8, message: &[u8], size: u32) -> Pass {
        match tag {
            tag::PARAMETER_STATUS => return self.on_parameter(id, message, size),
            tag::COMMAND_COMPLETE => self.on_command_complete(id, reply, message),
            tag::DATA_ROW if reply == Reply::Swallow => self.on_check_row(id, message, size),
            tag::NOTIFICATION_RESPONSE => return self.on_notification(id, message, size),
            tag::ERROR_RESPONSE => {
                self.forget_reset(id);
                if let Some(backend) = self.backend(id)
                    && backend.pipeline.status() == TransactionStatus::Idle
                {
                    backend.kept.unlistened.clear();
                }
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
                if own == Some(Entry { expect: Expect::Query, mark: MARK_EXECUTES }) {
                    let number = self.backend(id).map_or(0, |backend| backend.kept.executes);
                    self.note_failed_statement(id, number, reader::fields(message).code());
                }
                if own == Some(Entry { expect: Expect::Query, mark: MARK_EXECUTES })
                    && self.backend(id).is_some_and(|backend| !backend.fatal && std::mem::take(&mut backend.kept.told))
                {
                    return Pass::Nobody;
                }
                if reply != Reply::Swallow {
                    if let Some(backend) = self.backend(id) {
                        backend.kept.undone = true;
                    }
                    if let Some(code) = reader::fields(message).code() {
                        self.errors.count(code, Origin::Server);
                    }
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
        // The server's last word is the client's, whatever it was that it cut off.
        let is_last = || self.backends.get(id.index, id.generation).is_some_and(|backend| backend.fatal);
        let pass = match pass {
            Pass::Nobody if tag == tag::ERROR_RESPONSE && is_last() => Pass::Client,
            pass => pass,
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
    pub(super) fn on_answered(&mut self, id: BackendId, entry: Entry, message: &[u8]) -> Pass {
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
                self.keep_tried(id, entry.mark);
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

    pub(super) fn accept(&mut self, id: BackendId, number: u32) {
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
    pub(super) fn on_ready(&mut self, id: BackendId, _message: &[u8]) -> Pass {
        self.end_query(id);
        self.finish_reset(id);
        let Some(backend) = self.backend(id) else { return Pass::Gone };
        let (status, busy) = (backend.pipeline.status(), backend.pipeline.is_busy());
        let statement_mode = backend.mode == RelayMode::Statement;
        if status == TransactionStatus::Idle {
            self.apply_unlistened(id);
        }
        let backend = self.backends.get(id.index, id.generation).expect("looked up above");
        let asks =
            backend.kept.resets || (backend.kept.hears || backend.kept.notified) && self.says_notified(backend.mode);
        if asks && self.holds_ready(id) {
            return Pass::Nobody;
        }
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
    pub(super) fn on_failed(&mut self, id: BackendId, entry: Entry, message: &[u8]) -> Pass {
        let code = reader::fields(message).code();
        let stale_max = self.settings.statements_max;
        // Undone in reverse, as they were done. Errors are rare enough for a list.
        let mut skipped = Vec::new();
        while let Some(entry) = self.backend(id).and_then(|backend| backend.pipeline.take_skipped()) {
            skipped.push(entry);
        }
        for entry in skipped.into_iter().rev() {
            if entry.expect == Expect::OwnParse {
                self.keep_tried(id, entry.mark);
            }
            self.undo(id, entry);
        }
        let by_own_name = entry.expect == Expect::Parse && entry.mark == MARK_OWN_NAME;
        let duplicate = entry.expect == Expect::Parse && entry.mark & MARK_DUPLICATE != 0 && !by_own_name;
        if duplicate && code == Some(SqlState::DUPLICATE_STATEMENT) {
            self.say_duplicate(id, entry.mark & !(MARK_DUPLICATE | MARK_STOOD_IN));
        } else if !duplicate {
            self.undo(id, entry);
            if entry.expect == Expect::OwnParse {
                self.forget_untried(id, entry.mark);
            }
            if matches!(entry.expect, Expect::Bind | Expect::Describe) {
                self.note_failed_statement(id, entry.mark, code);
            } else if code == Some(SqlState::DUPLICATE_STATEMENT)
                && matches!(entry.expect, Expect::Parse | Expect::OwnParse)
                && entry.mark != 0
                && !by_own_name
                && let Some(backend) = self.backend(id)
            {
                // Something else stands there under this name: it is closed first the next time.
                backend.mark_stale(entry.mark, stale_max);
            }
        }
        self.count_pending(id);
        let ahead = self.backend(id).and_then(|backend| backend.pipeline.head());
        if entry.expect == Expect::OwnParse && ahead.is_some_and(|ahead| ahead.expect == Expect::OwnSync) {
            // A statement that EXECUTE names was to be prepared first. What is wrong with it now a server that has it would
            // say at the EXECUTE; this one would say that it has none.
            let Some(backend) = self.backend(id) else { return Pass::Gone };
            let behind = backend.pipeline.pending(1).is_some_and(|behind| behind.mark == MARK_EXECUTES);
            backend.kept.told = behind && code != Some(SqlState::DUPLICATE_STATEMENT);
            return if backend.kept.told { Pass::Client } else { Pass::Nobody };
        }
        match duplicate && code == Some(SqlState::DUPLICATE_STATEMENT) {
            true => Pass::Nobody,
            false => Pass::Client,
        }
    }

    /// What the client has been told is prepared is.
    fn keep_tried(&mut self, id: BackendId, number: u32) {
        if let Some(client) = self.client_of(id).filter(|_| number != 0) {
            self.with_names(client, |names| names.keep_tried(number));
        }
    }

    /// What the client has been told is prepared, in the batch that failed for it, is not.
    fn forget_untried(&mut self, id: BackendId, number: u32) {
        let Some(client) = self.client_of(id).filter(|_| number != 0) else { return };
        let mut forgotten = false;
        self.with_names(client, |names| forgotten = names.forget_untried(number));
        if forgotten {
            self.statements.let_go(number);
        }
    }

    /// A statement could not be used, which may be because of what the server has under its name: it is prepared anew the next
    /// time.
    fn note_failed_statement(&mut self, id: BackendId, number: u32, code: Option<SqlState>) {
        let stale_max = self.settings.statements_max;
        let Some(backend) = self.backend(id).filter(|_| number != 0) else { return };
        match code {
            // "cached plan must not change result type", "cache lookup failed for type .."
            Some(SqlState::FEATURE_NOT_SUPPORTED | SqlState::INTERNAL_ERROR) => {
                backend.prepared.remove(number);
                backend.mark_stale(number, stale_max);
            }
            // Somebody has taken it away, where that was not to be seen.
            Some(SqlState::INVALID_STATEMENT_NAME) => backend.prepared.remove(number),
            _ => {}
        }
    }

    /// What is prepared and closed by requests still in the pipeline will be, whatever was forgotten for an error.
    pub(super) fn count_pending(&mut self, id: BackendId) {
        let Some(backend) = self.backend(id) else { return };
        for at in 0.. {
            let Some(Entry { expect, mark }) = backend.pipeline.pending(at) else { break };
            match expect {
                Expect::Parse if mark & MARK_STOOD_IN != 0 => {}
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

    pub(super) fn undo(&mut self, id: BackendId, entry: Entry) {
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
            Expect::Parse if number == 0 => {
                if let Some(backend) = self.backend(id) {
                    backend.unnamed = Unnamed::Others;
                    backend.kept.deallocates = None;
                }
                // What it was before is not known any more; that it is none is better than that it is another.
                if let Some(client) = client.and_then(|client| self.client(client)) {
                    client.unnamed.clear();
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
    pub(super) fn say_duplicate(&mut self, id: BackendId, number: u32) {
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
    pub(super) fn say_in_clients_words(&mut self, id: BackendId, message: &[u8]) -> Pass {
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
    pub(super) fn has_virtual(&mut self, id: BackendId) -> bool {
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
    pub(super) fn on_command_complete(&mut self, id: BackendId, reply: Reply, message: &[u8]) {
        let Ok(command) = reader::command_complete(message) else { return };
        if matches!(command, b"SET" | b"RESET" | b"DISCARD ALL") {
            let has = self.backends.get(id.index, id.generation).map(|backend| backend.has);
            let untracked = !self.keeps_session(id) && has.is_some_and(|has| self.vectors.has_untracked(has));
            if let Some(backend) = self.backend(id) {
                backend.touched |= untracked;
            }
        }
        // What it answers: an Execute is not at the head any more, a query still is.
        let head = match reply {
            Reply::Answered(entry) => Some(entry),
            _ => self.backend(id).and_then(|backend| backend.pipeline.head()),
        };
        if let Some(Entry { expect: Expect::Query | Expect::Execute, mark }) = head
            && mark & MARK_DEALLOCATE != 0
            && command == b"DEALLOCATE"
        {
            self.on_deallocated(id, mark & !MARK_DEALLOCATE);
        }
        if command == b"ROLLBACK"
            && let Some(backend) = self.backend(id)
        {
            // What was said since the savepoint, or all of it; nobody says which.
            backend.kept.unlistened.clear();
            backend.kept.undone = true;
        }
        if !matches!(command, b"DISCARD ALL" | b"DEALLOCATE ALL") {
            return;
        }
        let own = head.is_some_and(|head| head.expect.is_own());
        if command == b"DISCARD ALL"
            && !own
            && let Some(client) = self.client_of(id)
        {
            self.hear_nothing(client);
            if let Some(backend) = self.backend(id) {
                // It has forgotten its channels.
                backend.kept.real = false;
            }
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
}
