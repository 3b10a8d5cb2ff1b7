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
use crate::session::fault::Fault;
use crate::session::pipeline::{Entry, Expect};
use crate::session::prepared::{self, Found, NAME_SIZE_MAX, Names, Number};
use crate::session::scanner::Effects;
use crate::session::{RelayMode, Transparency};

use super::Shard;
use super::relay::{Request, Verdict};
use super::spliced::{MARK_DEALLOCATE, MARK_FORGETS};
use super::statements::Class;

/// Set in the mark of a Parse that the server will refuse because the client has the name already: the number is that of
/// the statement which the name stands for.
pub(super) const MARK_DUPLICATE: u32 = 1 << 31;
/// And that it does so by another than the statement of this number.
pub(super) const MARK_STOOD_IN: u32 = 1 << 30;
/// No statement's number.
const STAND_IN: Number = (1 << 30) - 1;
/// Mark of a Parse that the server is given under the client's own name; the backend is the client's until that is gone.
pub(super) const MARK_OWN_NAME: u32 = MARK_DUPLICATE | MARK_STOOD_IN | STAND_IN;

/// A name that no statement on a backend has.
pub(super) const NOBODYS_NAME: &[u8] = b"qcp_unknown";

impl<T: Transport> Shard<T> {
    /// Parse, Bind, Describe or Close, in a mode that shares backends. There is room for eight requests.
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
        if self.is_forgetting(backend) {
            // Which statements are left by then, its answer says.
            self.flush_run(id, bytes, *run, request.at);
            *run = request.at;
            return self.pause_for_answers(id, backend);
        }
        let verdict = match request.tag {
            tag::PARSE => match reader::parse_name(message) {
                Ok(Some(name)) if name.is_empty() => self.on_unnamed_parse(id, backend, request, bytes, run),
                Ok(Some(name)) if name.len() > NAME_SIZE_MAX => Err(Fault::NameTooLong),
                Ok(Some(name)) if self.goes_by_own_name(id, backend, &message[name.clone()], request.size) => {
                    self.on_parse_by_own_name(id, backend, request, bytes, run)
                }
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
                    let mut brought = None;
                    if self.keeps_session(backend) {
                        if let Some(number) = self.find_name(id, statement) {
                            self.note_statement(backend, number);
                        } else if statement.is_empty() {
                            brought = self.note_brought(id, backend);
                        }
                        self.note_values(backend, message, whole);
                        self.before_text(id, backend, bytes, run, request.at);
                    }
                    if statement.is_empty() {
                        self.on_unnamed(id, backend, request, bytes, run, brought)
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
                        (false, true) => {
                            let keeps = self.keeps_session(backend);
                            let brought = if keeps { self.note_brought(id, backend) } else { None };
                            self.on_unnamed(id, backend, request, bytes, run, brought)
                        }
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
            tag::SYNC => {
                self.with_names(id, |names| names.keep_untried());
                self.write(connection, 8, |writer| {
                    writer.ready_for_query(TransactionStatus::Idle).expect("the room was asked for");
                })
            }
            tag::CLOSE => {
                let Ok(Some(target)) = reader::target(message) else { return false };
                let name = &message[target.name];
                if target.kind == TargetKind::Statement && name.is_empty() {
                    client.unnamed.clear();
                } else if target.kind == TargetKind::Statement {
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
                // With a backend at hand the server is asked: what a text means may have changed since.
                if self.asks_anew(pool) && self.pools.get(pool).part.has_free() {
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
                let unseen = self.asks_anew(pool);
                self.with_names(id, |names| {
                    names.defined(number);
                    if let Some(found) = names.find(parse.name).filter(|_| unseen) {
                        names.set_unseen(found);
                    }
                });
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

    /// Whether a Parse of this name goes to the server as it is: the client has statements there under names of its own, with
    /// which it must not meet, or it is too long to be kept.
    fn goes_by_own_name(&mut self, id: ClientId, backend: BackendId, name: &[u8], size: u32) -> bool {
        let long = size as usize > self.io.arena().chunk_size() - 64;
        (long && self.keeps_session(backend) || self.has_own_names(backend))
            && !name.starts_with(b"qcp_")
            && self.find_name(id, name).is_none()
            && !self.is_name_undecided(id, backend, name)
    }

    /// Whether the linked client may have statements on the backend under names of its own.
    fn has_own_names(&mut self, backend: BackendId) -> bool {
        let Some(link) = self.backend(backend) else { return false };
        link.kept.has_own_names()
    }

    fn on_parse_by_own_name(
        &mut self,
        id: ClientId,
        backend: BackendId,
        request: Request,
        bytes: &Slice,
        run: &mut usize,
    ) -> Result<Verdict, Fault> {
        let message = &bytes[request.at..request.at + request.available];
        let whole = request.available == request.size as usize;
        self.note_unnamed(backend, message, whole);
        self.suspect(backend, Effects::PREPARED.and(Effects::PREPARES));
        self.before_text(id, backend, bytes, run, request.at);
        self.ask(backend, Expect::Parse, MARK_OWN_NAME);
        Ok(Verdict::Forward)
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
        let (pool, certain) = (link.pool, link.pipeline.may_answer_for_server());
        if certain && !self.asks_anew(pool) {
            self.ask(backend, Expect::VirtualParse, number);
            self.answer_virtual(id, backend);
            return Ok(Verdict::Drop);
        }
        // What its names mean by now, and whether the transaction has failed by then, only the server knows.
        self.ask(backend, Expect::OwnClose, number);
        self.send_close(backend, number)?;
        self.ask(backend, Expect::Parse, number);
        self.send_parse(backend, number, parse.query, parse.parameter_types)
    }

    /// Whether each client's Parse is the server's to take, although it has the statement: its tables may be others by now, or
    /// hidden by temporary ones.
    fn asks_anew(&self, pool: crate::ids::PoolId) -> bool {
        matches!(self.pools.get(pool).settings.preserve, Some(Transparency::Balanced | Transparency::Strict))
    }

    /// Whether what `name` means depends on how an earlier batch ends, which may fail without cutting this one off.
    pub(super) fn is_name_undecided(&mut self, id: ClientId, backend: BackendId, name: &[u8]) -> bool {
        let mut open = false;
        self.with_names(id, |names| open = names.is_open(name));
        open && self.backend(backend).is_some_and(|backend| backend.pipeline.is_undecided())
    }

    /// Whether the backend has a statement depends on how an earlier batch ends, which may fail without cutting this one
    /// off.
    pub(super) fn is_statement_undecided(&mut self, backend: BackendId, number: Number) -> bool {
        let changes = |entry: Entry| match entry.expect {
            Expect::Parse | Expect::OwnParse | Expect::OwnClose => entry.mark & !MARK_DUPLICATE == number,
            Expect::Query | Expect::Execute => entry.mark == MARK_FORGETS || entry.mark == MARK_DEALLOCATE | number,
            _ => false,
        };
        self.backend(backend).is_some_and(|backend| backend.pipeline.has_undecided(changes))
    }

    /// Whether a portal that may take prepared statements away is being executed.
    fn is_forgetting(&mut self, backend: BackendId) -> bool {
        let Some(link) = self.backend(backend).filter(|link| link.kept.forgets) else { return false };
        let pending = (0..).map_while(|at| link.pipeline.pending(at));
        let mut forgetting = pending.filter(|entry| entry.expect == Expect::Execute && entry.mark != 0);
        link.kept.forgets = forgetting.next().is_some();
        link.kept.forgets
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
        if number == 0 && self.has_own_names(backend) && !name.starts_with(b"qcp_") {
            self.suspect(backend, Effects::PREPARED);
            self.ask(backend, Expect::Close, 0);
            return Ok(Verdict::Forward);
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
        let own = match self.find_found(id, name) {
            Some(found) if self.is_statement_undecided(backend, found.number) => return Ok(self.pause(id)),
            Some(Found { number, unseen, .. }) => {
                match unseen {
                    true => self.ensure_named(id, backend, name, number)?,
                    false => self.ensure(backend, number)?,
                }
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

    /// As [`Self::ensure`], for the client that calls it so: anew where no server has been asked for that name.
    pub(super) fn ensure_named(
        &mut self,
        id: ClientId,
        backend: BackendId,
        name: &[u8],
        number: Number,
    ) -> Result<(), Fault> {
        if self.take_unseen(id, name) && self.backend(backend).is_some_and(|link| link.prepared.touch(number)) {
            self.ask(backend, Expect::OwnClose, number);
            self.send_close(backend, number)?;
            return self.send_known(backend, number);
        }
        self.ensure(backend, number)
    }

    /// Whether no server has been asked for the client's name.
    pub(super) fn is_unseen(&mut self, id: ClientId, name: &[u8]) -> bool {
        self.find_found(id, name).is_some_and(|found| found.unseen)
    }

    /// The same; it is about to be.
    fn take_unseen(&mut self, id: ClientId, name: &[u8]) -> bool {
        let unseen = self.is_unseen(id, name);
        if unseen {
            self.with_names(id, |names| {
                if let Some(found) = names.find(name) {
                    names.set_seen(found);
                }
            });
        }
        unseen
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
        self.send_known(backend, number)
    }

    /// Prepares a statement on the backend, which has none of its name.
    fn send_known(&mut self, backend: BackendId, number: Number) -> Result<(), Fault> {
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
        self.find_found(id, name).map(|found| found.number)
    }

    fn find_found(&mut self, id: ClientId, name: &[u8]) -> Option<Found> {
        let client = self.client(id)?;
        let used = client.names_used as usize;
        Names::new(client.names.as_mut()?.bytes_mut(), used).find(name)
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
