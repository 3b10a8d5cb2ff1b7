//! Requests that name a prepared statement: the client's name becomes the backend's, and a statement that the backend
//! lacks is prepared there first, in the same write.
//!
//! Errors are the server's own wherever it can be made to give them: an unknown name goes there unchanged.

use crate::ids::{BackendId, ClientId};
use crate::io::Transport;
use crate::memory::Slice;
use crate::protocol::TransactionStatus;
use crate::protocol::reader;
use crate::protocol::tag::{TargetKind, frontend as tag};
use crate::protocol::writer::NO_PARAMETER_TYPES;
use crate::session::RelayMode;
use crate::session::fault::Fault;
use crate::session::pipeline::{Entry, Expect};
use crate::session::prepared::{self, NAME_SIZE_MAX, Names, Number};

use super::preserve::{MARK_DEALLOCATE, MARK_FORGETS};
use super::relay::{Request, Verdict};
use super::statements::Class;
use super::{Shard, Unnamed};

/// Set in the mark of a Parse that the server will refuse because the client has the name already: the number is that of
/// the statement which the name stands for.
pub(super) const MARK_DUPLICATE: u32 = 1 << 31;
/// And that it does so by another than the statement of this number.
pub(super) const MARK_STOOD_IN: u32 = 1 << 30;
/// No statement's number.
const STAND_IN: Number = (1 << 30) - 1;

/// A name that no statement on a backend has.
pub(super) const NOBODYS_NAME: &[u8] = b"qcp_unknown";

impl<T: Transport> Shard<T> {
    /// Parse, Bind, Describe or Close, in a mode that shares backends. There is room for four requests.
    pub(super) fn on_statement_request(
        &mut self,
        id: ClientId,
        backend: BackendId,
        request: Request,
        bytes: &Slice,
        run: &mut usize,
    ) -> Verdict {
        let message = &bytes[request.at..request.at + request.available];
        let whole = request.available == request.size as usize;
        if self.is_unsettled(id, backend, request.tag, message) {
            // What the name stands for depends on whether the batch before succeeds: its answer resumes.
            let client = self.client(id).expect("the caller has looked it up");
            client.paused = true;
            return Verdict::Pause;
        }
        let verdict = match request.tag {
            tag::PARSE => match reader::parse_name(message) {
                Ok(Some(name)) if name.is_empty() => {
                    let text = &message[name.end + 1..];
                    let client = self.clients.get_mut(id.index, id.generation).expect("the caller has looked it up");
                    client.unnamed.clear();
                    if self.keeps_session(backend) {
                        self.note_unnamed(backend, message, whole);
                        self.before_text(id, backend, bytes, run, request.at);
                    }
                    let client = self.clients.get_mut(id.index, id.generation).expect("looked up above");
                    // Without room for it, the backend stays until it is bound.
                    let kept = whole && client.unnamed.add_spare(self.io.arena(), text).is_ok();
                    self.ask(backend, Expect::Parse, 0);
                    let link = self.backend(backend).expect("a linked backend is there");
                    link.unnamed = if kept { Unnamed::Kept } else { Unnamed::Parsed };
                    Ok(Verdict::Forward)
                }
                Ok(Some(name)) if name.len() > NAME_SIZE_MAX => Err(Fault::NameTooLong),
                Ok(Some(_)) if request.size as usize > self.io.arena().chunk_size() - 64 => {
                    Err(Fault::StatementTooLong(request.size as usize))
                }
                Ok(Some(_)) if !whole => return Verdict::Hold(request.size as usize),
                Ok(Some(_)) => {
                    self.flush_run(id, bytes, *run, request.at);
                    *run = request.at;
                    self.count_for(backend, |totals| totals.client_parses += 1);
                    self.on_parse(id, backend, message)
                }
                Ok(None) => Err(Fault::NameTooLong),
                Err(malformed) => Err(Fault::Malformed(malformed)),
            },
            tag::BIND => match reader::bind_names(message) {
                Ok(Some(names)) => {
                    let (portal, statement) = (&message[names.portal], &message[names.statement.clone()]);
                    if self.keeps_session(backend) {
                        if let Some(number) = self.find_name(id, statement) {
                            self.note_statement(backend, number);
                        }
                        self.note_values(backend, message, whole);
                        self.before_text(id, backend, bytes, run, request.at);
                    }
                    if statement.is_empty() {
                        self.on_unnamed(id, backend, request, bytes, run, Expect::Bind)
                    } else {
                        self.flush_run(id, bytes, *run, request.at);
                        *run = request.at;
                        let end = names.statement.end + 1;
                        let rest_size = request.size as usize - end;
                        self.count_for(backend, |totals| totals.binds += 1);
                        self.rename(id, backend, statement, Expect::Bind, end, |writer, name| {
                            writer.bind_head(portal, name, rest_size).expect("the room was asked for");
                        })
                    }
                }
                Ok(None) => Err(Fault::NameTooLong),
                Err(malformed) => Err(Fault::Malformed(malformed)),
            },
            _ => match reader::target(message) {
                Ok(Some(target)) if target.kind == TargetKind::Portal => {
                    let expect = if request.tag == tag::CLOSE { Expect::Close } else { Expect::Describe };
                    self.ask(backend, expect, 0);
                    Ok(Verdict::Forward)
                }
                Ok(Some(target)) => {
                    let name = &message[target.name.clone()];
                    match (request.tag == tag::CLOSE, name.is_empty()) {
                        (true, true) => {
                            self.forget_unnamed(id, backend);
                            self.ask(backend, Expect::Close, 0);
                            Ok(Verdict::Forward)
                        }
                        (true, false) => {
                            self.flush_run(id, bytes, *run, request.at);
                            *run = request.at;
                            self.on_close(id, backend, name)
                        }
                        (false, true) => self.on_unnamed(id, backend, request, bytes, run, Expect::Describe),
                        (false, false) => {
                            self.flush_run(id, bytes, *run, request.at);
                            *run = request.at;
                            let size = request.size as usize;
                            self.rename(id, backend, name, Expect::Describe, size, |writer, name| {
                                writer.describe(TargetKind::Statement, name).expect("the room was asked for");
                            })
                        }
                    }
                }
                Ok(None) => Err(Fault::NameTooLong),
                Err(malformed) => Err(Fault::Malformed(malformed)),
            },
        };
        verdict.unwrap_or_else(|fault| {
            // The message never reaches the server, so what the client believes of its pipeline is not true any more.
            if let Some(backend) = self.backend(backend) {
                backend.pipeline.doubt();
            }
            self.fail(id, &fault);
            Verdict::Gone
        })
    }

    /// What can be answered truthfully while the client has no backend: a Sync, a Close, and the Parse of a statement that
    /// this pool's server has taken before. So a driver that prepares within one transaction what another client has
    /// prepared waits for nobody. `false`: a backend is needed.
    pub(super) fn answer_idle(&mut self, id: ClientId, request: Request, bytes: &Slice) -> bool {
        let message = &bytes[request.at..request.at + request.available];
        let Some(client) = self.client(id) else { return false };
        let (connection, wanted, Some(pool)) = (client.connection, client.wanted, client.pool) else { return false };
        if client.mode == RelayMode::Session || request.available < request.size as usize {
            return false;
        }
        match request.tag {
            tag::SYNC => self.write(connection, 8, |writer| {
                writer.ready_for_query(TransactionStatus::Idle).expect("the room was asked for");
            }),
            tag::CLOSE => {
                let Ok(Some(target)) = reader::target(message) else { return false };
                let name = &message[target.name];
                if target.kind == TargetKind::Statement && !name.is_empty() {
                    let number = self.close_name(id, name);
                    let mut closed = false;
                    self.with_names(id, |names| closed = names.closed(number));
                    if closed {
                        self.statements.let_go(number);
                    }
                }
                self.write(connection, 8, |writer| writer.close_complete().expect("the room was asked for"))
            }
            _ => {
                let Ok(parse) = reader::parse(message) else { return false };
                let text = &message[crate::protocol::HEAD_SIZE + parse.name.len() + 1..];
                if parse.name.is_empty() || parse.name.len() > NAME_SIZE_MAX || self.find_name(id, parse.name).is_some()
                {
                    return false;
                }
                let projection = self.vectors.projection(wanted);
                let Some(number) = self.statements.find_accepted(text, projection, self.pools.get(pool).serial) else {
                    return false;
                };
                if self.define_name(id, parse.name, number).is_err() {
                    self.statements.let_go(number);
                    return false;
                }
                self.with_names(id, |names| names.defined(number));
                self.write(connection, 8, |writer| writer.parse_complete().expect("the room was asked for"))
            }
        }
    }

    /// Marks a client's name as closing; the statement that it stood for, 0 for none.
    fn close_name(&mut self, id: ClientId, name: &[u8]) -> Number {
        let Some(client) = self.client(id) else { return 0 };
        let Some(block) = client.names.as_mut() else { return 0 };
        let mut names = Names::new(block.bytes_mut(), client.names_used as usize);
        let Some(found) = names.find(name) else { return 0 };
        names.close(found);
        found.number
    }

    fn on_parse(&mut self, id: ClientId, backend: BackendId, message: &[u8]) -> Result<Verdict, Fault> {
        let parse = reader::parse(message).map_err(Fault::Malformed)?;
        let found = if self.keeps_session(backend) { self.note_text(backend, parse.query) } else { None };
        self.before_text_here(id, backend);
        if self.is_name_undecided(id, backend, parse.name) {
            return Ok(self.pause(id));
        }
        if let Some(number) = self.find_name(id, parse.name) {
            if self.is_statement_undecided(backend, number) {
                return Ok(self.pause(id));
            }
            // The server is made to say 42P05 by a name that it has; `answers` puts the client's name into the words.
            let link = self.backend(backend).expect("a linked backend is there");
            let (there, mark) = match link.prepared.touch(number) {
                true => (number, MARK_DUPLICATE),
                false => (self.stand_in(backend)?, MARK_DUPLICATE | MARK_STOOD_IN),
            };
            self.ask(backend, Expect::Parse, mark | number);
            return self.send_parse(backend, there, parse.query, parse.parameter_types);
        }
        let text = &message[crate::protocol::HEAD_SIZE + parse.name.len() + 1..];
        let projection = self.projection_of(backend);
        let interned = self.statements.intern(text, projection);
        let number = interned.map_err(|_full| Fault::NoRoom("prepared statements"))?;
        if let Some(found) = found
            && self.statements.class(number).is_none()
        {
            self.statements.classify(number, Class::new(&found, self.scanner.names()));
        }
        if self.is_statement_undecided(backend, number) {
            self.statements.let_go(number);
            return Ok(self.pause(id));
        }
        if let Err(fault) = self.define_name(id, parse.name, number) {
            self.statements.let_go(number);
            return Err(fault);
        }
        let link = self.backend(backend).expect("a linked backend is there");
        if !link.prepared.touch(number) {
            self.make_room(backend, number)?;
            self.ask(backend, Expect::Parse, number);
            return self.send_parse(backend, number, parse.query, parse.parameter_types);
        }
        if link.pipeline.may_answer_for_server() {
            self.ask(backend, Expect::VirtualParse, number);
            self.answer_virtual(id, backend);
            return Ok(Verdict::Drop);
        }
        // Whether the transaction has failed by then, only the server knows: it has to be asked.
        self.ask(backend, Expect::OwnClose, number);
        self.send_close(backend, number)?;
        self.ask(backend, Expect::Parse, number);
        self.send_parse(backend, number, parse.query, parse.parameter_types)
    }

    /// Whether what `name` means depends on how an earlier batch ends, which may fail without cutting this one off.
    fn is_name_undecided(&mut self, id: ClientId, backend: BackendId, name: &[u8]) -> bool {
        let mut open = false;
        self.with_names(id, |names| open = names.is_open(name));
        open && self.backend(backend).is_some_and(|backend| backend.pipeline.is_undecided())
    }

    /// Whether the backend has a statement depends on how an earlier batch ends, which may fail without cutting this one
    /// off.
    fn is_statement_undecided(&mut self, backend: BackendId, number: Number) -> bool {
        let changes = |entry: Entry| match entry.expect {
            Expect::Parse | Expect::OwnParse | Expect::OwnClose => entry.mark & !MARK_DUPLICATE == number,
            Expect::Query => entry.mark == MARK_FORGETS || entry.mark == MARK_DEALLOCATE | number,
            _ => false,
        };
        self.backend(backend).is_some_and(|backend| backend.pipeline.has_undecided(changes))
    }

    fn on_close(&mut self, id: ClientId, backend: BackendId, name: &[u8]) -> Result<Verdict, Fault> {
        if self.is_name_undecided(id, backend, name) {
            return Ok(self.pause(id));
        }
        // Answers tell names of one statement apart by what they do, so two at once could be mixed up.
        let number = self.find_name(id, name).unwrap_or_default();
        let mut open = false;
        self.with_names(id, |names| open = names.is_number_open(number));
        if number != 0 && open {
            return Ok(self.pause_for_answers(id, backend));
        }
        let number = self.close_name(id, name);
        // "It is not an error to issue Close against a nonexistent statement or portal name" (Close).
        self.ask(backend, Expect::VirtualClose, number);
        self.answer_virtual(id, backend);
        Ok(Verdict::Drop)
    }

    /// A Bind or Describe of a named statement, under the backend's name for it; `write` writes what replaces the
    /// message's first `end` bytes.
    fn rename(
        &mut self,
        id: ClientId,
        backend: BackendId,
        name: &[u8],
        expect: Expect,
        end: usize,
        write: impl FnOnce(&mut crate::protocol::Writer<'_>, &[u8]),
    ) -> Result<Verdict, Fault> {
        if self.is_name_undecided(id, backend, name) {
            return Ok(self.pause(id));
        }
        let mut room = [0; 16];
        let mut mark = 0;
        let own = match self.find_name(id, name) {
            Some(number) if self.is_statement_undecided(backend, number) => return Ok(self.pause(id)),
            Some(number) => {
                self.ensure(backend, number)?;
                mark = number;
                prepared::backend_name(number, &mut room)
            }
            // 26000 is the server's to say, and no name of a client's exists there.
            None if name.starts_with(b"qcp_") => NOBODYS_NAME,
            None => name,
        };
        self.ask(backend, expect, mark);
        // The portal's name is at most what a prefix holds.
        if !self.send_own(backend, 2048, |writer| write(writer, own)) {
            return Err(Fault::NoMemory);
        }
        Ok(Verdict::Replaced(end))
    }

    /// Bind or Describe of the unnamed statement: only the client's own, never what another client left there.
    fn on_unnamed(
        &mut self,
        id: ClientId,
        backend: BackendId,
        request: Request,
        bytes: &Slice,
        run: &mut usize,
        expect: Expect,
    ) -> Result<Verdict, Fault> {
        let link = self.backend(backend).expect("a linked backend is there");
        match link.unnamed {
            Unnamed::Parsed | Unnamed::Kept | Unnamed::Bound => {
                if expect == Expect::Bind {
                    link.unnamed = Unnamed::Bound;
                    self.client(id).expect("the caller has looked it up").unnamed.clear();
                }
                self.ask(backend, expect, 0);
                return Ok(Verdict::Forward);
            }
            Unnamed::Others => {}
        }
        self.flush_run(id, bytes, *run, request.at);
        *run = request.at;
        let client = self.clients.get_mut(id.index, id.generation).expect("the caller has looked it up");
        if !client.unnamed.is_empty() {
            // Parsed on another backend: it comes along.
            if self.keeps_session(backend) {
                let mut copy = std::mem::take(&mut self.sql);
                copy.clear();
                copy.extend_from_slice(self.client(id).expect("looked up above").unnamed.bytes());
                self.note_text(backend, copy.split(|&byte| byte == 0).next().unwrap_or_default());
                self.sql = copy;
            }
            let client = self.clients.get_mut(id.index, id.generation).expect("looked up above");
            let text = client.unnamed.bytes();
            let written = self.io.scratch().write(text.len() + 16, |free| {
                let mut writer = crate::protocol::Writer::new(free);
                writer.parse_head(b"", text.len()).and_then(|()| writer.raw(text)).expect("the room was asked for");
                writer.written_size()
            });
            if expect == Expect::Bind {
                client.unnamed.clear();
            }
            self.ask(backend, Expect::OwnParse, 0);
            self.ask(backend, expect, 0);
            let link = self.backend(backend).expect("a linked backend is there");
            link.unnamed = if expect == Expect::Bind { Unnamed::Bound } else { Unnamed::Kept };
            let (Some(bytes), Some(connection)) = (written, link.connection) else { return Err(Fault::NoMemory) };
            self.io.send(connection, bytes);
            return Ok(Verdict::Forward);
        }
        // Closed first, so that the server itself says that there is none.
        self.ask(backend, Expect::OwnClose, 0);
        self.ask(backend, expect, 0);
        let closed = self.send_own(backend, 16, |writer| {
            writer.close(TargetKind::Statement, b"").expect("the room was asked for");
        });
        if closed { Ok(Verdict::Forward) } else { Err(Fault::NoMemory) }
    }

    /// The client has no unnamed statement any more.
    pub(super) fn forget_unnamed(&mut self, id: ClientId, backend: BackendId) {
        if let Some(client) = self.client(id) {
            client.unnamed.clear();
        }
        if let Some(backend) = self.backend(backend) {
            backend.unnamed = Unnamed::Others;
        }
    }

    /// Prepares a statement on the backend if it is not there.
    pub(super) fn ensure(&mut self, backend: BackendId, number: Number) -> Result<(), Fault> {
        let link = self.backend(backend).expect("a linked backend is there");
        if link.prepared.touch(number) {
            return Ok(());
        }
        if self.statements.projection(number) != self.projection_of(backend) {
            self.note_foreign(backend, number);
        }
        self.make_room(backend, number)?;
        self.ask(backend, Expect::OwnParse, number);
        let mut room = [0; 16];
        let name = prepared::backend_name(number, &mut room);
        let text = self.statements.text(number);
        let connection = self.backends.get(backend.index, backend.generation).and_then(|backend| backend.connection);
        let written = self.io.scratch().write(name.len() + text.len() + 16, |free| {
            let mut writer = crate::protocol::Writer::new(free);
            writer.parse_head(name, text.len()).and_then(|()| writer.raw(text)).expect("the room was asked for");
            writer.written_size()
        });
        let (Some(bytes), Some(connection)) = (written, connection) else { return Err(Fault::NoMemory) };
        self.io.send(connection, bytes);
        Ok(())
    }

    /// Prepares nothing, under a name that no statement has: for what only needs that there is one, where the client's own
    /// could not be prepared any more (its tables are gone, or no longer in the search_path).
    pub(super) fn stand_in(&mut self, backend: BackendId) -> Result<Number, Fault> {
        self.ask(backend, Expect::OwnClose, 0);
        self.send_close(backend, STAND_IN)?;
        self.ask(backend, Expect::OwnParse, MARK_DUPLICATE);
        self.send_parse(backend, STAND_IN, b"", NO_PARAMETER_TYPES)?;
        Ok(STAND_IN)
    }

    /// Counts `number` as prepared on the backend, which closes another for it if it is full.
    fn make_room(&mut self, backend: BackendId, number: Number) -> Result<(), Fault> {
        let link = self.backend(backend).expect("a linked backend is there");
        let stale = link.stale.iter().position(|&stale| stale == number).map(|at| link.stale.swap_remove(at));
        let evicted = link.prepared.evict();
        link.prepared.insert(number);
        if stale.is_some() {
            self.ask(backend, Expect::OwnClose, number);
            self.send_close(backend, number)?;
        }
        if let Some(evicted) = evicted {
            self.ask(backend, Expect::OwnClose, evicted);
            self.send_close(backend, evicted)?;
        }
        Ok(())
    }

    fn send_parse(
        &mut self,
        backend: BackendId,
        number: Number,
        query: &[u8],
        parameter_types: &[u8],
    ) -> Result<Verdict, Fault> {
        self.count_for(backend, |totals| totals.server_parses += 1);
        let mut room = [0; 16];
        let name = prepared::backend_name(number, &mut room);
        let size = name.len() + query.len() + parameter_types.len() + 16;
        let sent = self.send_own(backend, size, |writer| {
            writer.parse(name, query, parameter_types).expect("the room was asked for");
        });
        if sent { Ok(Verdict::Drop) } else { Err(Fault::NoMemory) }
    }

    fn send_close(&mut self, backend: BackendId, number: Number) -> Result<(), Fault> {
        let mut room = [0; 16];
        let name = prepared::backend_name(number, &mut room);
        let sent = self.send_own(backend, 32, |writer| {
            writer.close(TargetKind::Statement, name).expect("the room was asked for");
        });
        if sent { Ok(()) } else { Err(Fault::NoMemory) }
    }

    /// Whether the statement name in a message stands for something that an earlier batch has yet to decide.
    fn is_unsettled(&mut self, id: ClientId, backend: BackendId, tag: u8, message: &[u8]) -> bool {
        let Some(link) = self.backends.get(backend.index, backend.generation) else { return false };
        if !link.pipeline.is_busy() {
            return false;
        }
        let Some(client) = self.clients.get_mut(id.index, id.generation) else { return false };
        let Some(block) = client.names.as_mut() else { return false };
        let names = Names::new(block.bytes_mut(), client.names_used as usize);
        let range = match tag {
            tag::PARSE => reader::parse_name(message).ok().flatten(),
            tag::BIND => reader::bind_names(message).ok().flatten().map(|names| names.statement),
            _ => reader::target(message).ok().flatten().map(|target| target.name),
        };
        let Some(name) = range.map(|range| &message[range]) else { return false };
        names.unsettled(name).any(|number| link.pipeline.is_undecided_before_sync(number))
    }

    pub(super) fn find_name(&mut self, id: ClientId, name: &[u8]) -> Option<Number> {
        let client = self.client(id)?;
        let used = client.names_used as usize;
        let names = Names::new(client.names.as_mut()?.bytes_mut(), used);
        names.find(name).map(|found| found.number)
    }

    /// Adds a name to the client's block, which grows up to a chunk.
    fn define_name(&mut self, id: ClientId, name: &[u8], number: Number) -> Result<(), Fault> {
        let client = self.clients.get_mut(id.index, id.generation).expect("the caller has looked it up");
        let end = client.names_used as usize + Names::size(name);
        if client.names.as_ref().is_none_or(|block| block.size() < end) {
            let mut larger = self.io.arena().spare_block(end).ok_or(Fault::NoRoom("names of prepared statements"))?;
            if let Some(block) = &client.names {
                let used = client.names_used as usize;
                larger.bytes_mut()[..used].copy_from_slice(&block.bytes()[..used]);
            }
            client.names = Some(larger);
        }
        let block = client.names.as_mut().expect("there is one of the size");
        let mut names = Names::new(block.bytes_mut(), client.names_used as usize);
        names.define(name, number).expect("there is room");
        client.names_used = names.used() as u32;
        Ok(())
    }

    /// Does something with a client's names.
    pub(super) fn with_names(&mut self, id: ClientId, change: impl FnOnce(&mut Names<'_>)) {
        let Some(client) = self.client(id) else { return };
        let Some(block) = client.names.as_mut() else { return };
        let mut names = Names::new(block.bytes_mut(), client.names_used as usize);
        change(&mut names);
        client.names_used = names.used() as u32;
        if client.names_used == 0 {
            client.names = None;
        }
    }
}
