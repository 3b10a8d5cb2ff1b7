//! EXECUTE and DEALLOCATE, in SQL, of statements that the client prepared by the protocol: the names are in one namespace, and
//! on backends those of the protocol are others, which are put into the text.

use std::ops::Range;

use crate::ids::{BackendId, ClientId};
use crate::io::Transport;
use crate::memory::Slice;
use crate::protocol::{HEAD_SIZE, reader};
use crate::session::fault::Fault;
use crate::session::pipeline::Expect;
use crate::session::prepared::{self, Number};
use crate::session::scanner::{Found, Only};

use super::Shard;
use super::relay::{Request, Verdict};

/// Set in the mark of a query, or of an Execute, that is DEALLOCATE of the statement of this number.
pub(super) const MARK_DEALLOCATE: u32 = 1 << 31;
/// Mark of a query of the client's, or of an Execute, that may take prepared statements away.
pub(super) const MARK_FORGETS: u32 = 1 << 30;
/// Mark of a query that is EXECUTE of a statement of the protocol.
pub(super) const MARK_EXECUTES: u32 = 1 << 29;

/// Whether a statement's name has been put into a text.
pub(super) enum Spliced {
    Yes,
    /// It is none of a statement of the protocol.
    No,
    /// What it stands for depends on answers that are due.
    Later,
}

impl<T: Transport> Shard<T> {
    /// EXECUTE or DEALLOCATE of a statement that the client prepared by the protocol: it has another name here. PREPARE of a name
    /// that it has is refused by the server, as it is put in there too.
    #[allow(clippy::too_many_arguments)]
    pub(super) fn splice(
        &mut self,
        id: ClientId,
        backend: BackendId,
        (before, name, after): (&[u8], &[u8], &[u8]),
        deallocates: bool,
        request: Request,
        bytes: &Slice,
        run: &mut usize,
    ) -> Option<Verdict> {
        let own = prepared::name_in_sql(name);
        if self.is_name_undecided(id, backend, &own) {
            return Some(self.pause(id));
        }
        let number = self.find_name(id, &own)?;
        if self.backend(backend).is_some_and(|link| link.pipeline.is_undecided()) {
            return Some(self.pause(id));
        }
        self.flush_run(id, bytes, *run, request.at);
        *run = request.at;
        if !deallocates {
            self.note_statement(backend, number);
            self.before_text_here(id, backend);
        }
        let unseen = self.is_unseen(id, &own);
        let link = self.backend(backend)?;
        let (there, unsynced) = (link.prepared.touch(number), link.pipeline.is_unsynced());
        let had = there && !unseen;
        link.kept.executes = number;
        let ready = match deallocates && !there {
            true => self.stand_in(backend),
            false => self.ensure_named(id, backend, &own, number).map(|()| number),
        };
        let link = self.backend(backend)?;
        link.kept.deallocates = deallocates.then(|| (number, own.into_boxed_slice()));
        let mut room = [0; 16];
        let there = prepared::backend_name(ready.as_ref().map_or(number, |there| *there), &mut room);
        let sent = ready.is_ok()
            // A Sync of ours would commit what the client has yet to end.
            && (had || unsynced || {
                self.ask(backend, Expect::OwnSync, 0);
                self.send_own(backend, 8, |writer| writer.sync().expect("the room was asked for"))
            })
            && {
                let mark = match deallocates {
                    true => MARK_DEALLOCATE | number,
                    false => MARK_EXECUTES,
                };
                self.ask(backend, Expect::Query, mark);
                self.send_own(backend, request.size as usize + there.len() + HEAD_SIZE, |writer| {
                    let _ = writer.query_parts(&[before, there, after]);
                })
            };
        if !sent {
            self.fail(id, &crate::session::fault::Fault::NoMemory);
            return Some(Verdict::Gone);
        }
        Some(Verdict::Drop)
    }

    /// The same of the unnamed statement, which is about to be bound; `found` in its text.
    pub(super) fn splice_brought(
        &mut self,
        id: ClientId,
        backend: BackendId,
        found: Option<Found>,
    ) -> Result<Spliced, Fault> {
        let named = found.and_then(|found| found.only).and_then(Only::named);
        let Some((name, deallocates)) = named else { return Ok(Spliced::No) };
        let text = self.client(id).expect("the caller has looked it up").unnamed.bytes().to_vec();
        let Some(end) = text.iter().position(|&byte| byte == 0) else { return Ok(Spliced::No) };
        let parse = reader::Parse { name: b"", query: &text[..end], parameter_types: &text[end + 1..] };
        let own = prepared::name_in_sql(&parse.query[name.clone()]);
        if self.is_name_undecided(id, backend, &own) {
            return Ok(Spliced::Later);
        }
        let Some(number) = self.find_name(id, &own) else { return Ok(Spliced::No) };
        if self.is_statement_undecided(backend, number) {
            return Ok(Spliced::Later);
        }
        self.send_spliced((id, backend), &parse, (number, name), own, deallocates)?;
        Ok(Spliced::Yes)
    }

    fn send_spliced(
        &mut self,
        (id, backend): (ClientId, BackendId),
        parse: &reader::Parse<'_>,
        (number, name): (Number, Range<usize>),
        own: Vec<u8>,
        deallocates: bool,
    ) -> Result<(), Fault> {
        if !deallocates {
            self.note_statement(backend, number);
        }
        self.before_text_here(id, backend);
        let had = self.backend(backend).is_some_and(|link| link.prepared.touch(number));
        let there = match deallocates && !had {
            true => self.stand_in(backend)?,
            false => self.ensure_named(id, backend, &own, number).map(|()| number)?,
        };
        let mut room = [0; 16];
        let there = prepared::backend_name(there, &mut room);
        let text = [&parse.query[..name.start], there, &parse.query[name.end..]].concat();
        self.ask(backend, Expect::OwnParse, 0);
        let link = self.backend(backend).expect("a linked backend is there");
        link.kept.deallocates = deallocates.then(|| (number, own.into_boxed_slice()));
        link.kept.spliced = true;
        let sent = self.send_own(backend, text.len() + parse.parameter_types.len() + 16, |writer| {
            writer.parse(b"", &text, parse.parameter_types).expect("the room was asked for");
        });
        if sent { Ok(()) } else { Err(Fault::NoMemory) }
    }

    /// The server has deallocated a statement under the name that it has there.
    pub(super) fn on_deallocated(&mut self, id: BackendId, number: Number) {
        let Some(client) = self.client_of(id) else { return };
        let Some(link) = self.backend(id) else { return };
        link.prepared.remove(number);
        let Some((_, name)) = link.kept.deallocates.take().filter(|(named, _)| *named == number) else { return };
        let mut closed = false;
        self.with_names(client, |names| {
            if let Some(found) = names.find(&name).filter(|found| found.number == number) {
                names.close(found);
                closed = names.closed(number);
            }
        });
        if closed {
            self.statements.let_go(number);
        }
    }
}
