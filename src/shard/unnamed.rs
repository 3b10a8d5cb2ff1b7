//! The unnamed statement: each client's own, although the backends that it meets have one each.
//!
//! "An unnamed prepared statement lasts only until the next Parse statement specifying the unnamed statement as destination is
//! issued" (Extended Query): until then the client's block has its text, which comes along to the backend that it is bound on.
//! What there is no room for keeps its backend until it is bound.

use crate::ids::{BackendId, ClientId};
use crate::io::Transport;
use crate::memory::Slice;
use crate::protocol::HEAD_SIZE;
use crate::protocol::tag::{TargetKind, frontend as tag};
use crate::session::fault::Fault;
use crate::session::pipeline::Expect;
use crate::session::scanner::{Found, Only};

use super::relay::{Request, Verdict};
use super::spliced::Spliced;
use super::{Shard, Unnamed};

/// What is kept of a bound unnamed statement, which may be bound again: longer texts are as a rule bound once.
const UNNAMED_KEPT_MAX: usize = 4096;

impl<T: Transport> Shard<T> {
    /// A Parse of the unnamed statement.
    pub(super) fn on_unnamed_parse(
        &mut self,
        id: ClientId,
        backend: BackendId,
        request: Request,
        bytes: &Slice,
        run: &mut usize,
    ) -> Result<Verdict, Fault> {
        let message = &bytes[request.at..request.at + request.available];
        let whole = request.available == request.size as usize;
        let mut names_statement = false;
        if self.keeps_session(backend) {
            let found = self.note_unnamed(backend, message, whole);
            names_statement = found.and_then(|found| found.only).and_then(Only::named).is_some();
            self.before_text(id, backend, bytes, run, request.at);
        }
        self.ask(backend, Expect::Parse, 0);
        self.keep_unnamed(id, backend, &message[HEAD_SIZE + 1..], whole);
        let link = self.backend(backend).expect("a linked backend is there");
        (link.kept.deallocates, link.kept.spliced) = (None, false);
        if names_statement && link.unnamed == Unnamed::Kept {
            // The server looks for the statement when it is bound: then it is brought along, by the name that it has there.
            link.unnamed = Unnamed::Others;
        }
        Ok(Verdict::Forward)
    }

    /// The client's unnamed statement is this from now on: `text` with its parameter types.
    fn keep_unnamed(&mut self, id: ClientId, backend: BackendId, text: &[u8], whole: bool) {
        let client = self.clients.get_mut(id.index, id.generation).expect("the caller has looked it up");
        client.unnamed.clear();
        // Without room for it, the backend stays until it is bound.
        let kept = whole && client.unnamed.add_spare(self.io.arena(), text).is_ok();
        let link = self.backend(backend).expect("a linked backend is there");
        link.unnamed = if kept { Unnamed::Kept } else { Unnamed::Parsed };
    }

    /// Bind or Describe of the unnamed statement: only the client's own, never what another client left there. `brought`: what
    /// [`Self::note_brought`] has found.
    pub(super) fn on_unnamed(
        &mut self,
        id: ClientId,
        backend: BackendId,
        request: Request,
        bytes: &Slice,
        run: &mut usize,
        brought: Option<Found>,
    ) -> Result<Verdict, Fault> {
        let expect = if request.tag == tag::BIND { Expect::Bind } else { Expect::Describe };
        let link = self.backend(backend).expect("a linked backend is there");
        match link.unnamed {
            Unnamed::Parsed | Unnamed::Kept | Unnamed::Bound => {
                if expect == Expect::Bind {
                    link.unnamed = if link.kept.spliced { Unnamed::Others } else { Unnamed::Bound };
                    self.spare_unnamed(id);
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
            // Parsed on another backend, or to be looked at anew: it comes along.
            match self.splice_brought(id, backend, brought)? {
                Spliced::Yes => {}
                Spliced::No => self.send_unnamed(id, backend)?,
                Spliced::Later => return Ok(self.pause(id)),
            }
            if expect == Expect::Bind {
                self.spare_unnamed(id);
            }
            self.ask(backend, expect, 0);
            let link = self.backend(backend).expect("a linked backend is there");
            link.unnamed = match (expect, link.kept.spliced) {
                (Expect::Bind, false) => Unnamed::Bound,
                (Expect::Bind, true) => Unnamed::Others,
                _ => Unnamed::Kept,
            };
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

    /// Prepares the client's unnamed statement on the backend.
    fn send_unnamed(&mut self, id: ClientId, backend: BackendId) -> Result<(), Fault> {
        self.ask(backend, Expect::OwnParse, 0);
        if let Some(link) = self.backend(backend) {
            (link.kept.deallocates, link.kept.spliced) = (None, false);
        }
        let client = self.clients.get(id.index, id.generation).expect("the caller has looked it up");
        let text = client.unnamed.bytes();
        let written = self.io.scratch().write(text.len() + 16, |free| {
            let mut writer = crate::protocol::Writer::new(free);
            writer.parse_head(b"", text.len()).and_then(|()| writer.raw(text)).expect("the room was asked for");
            writer.written_size()
        });
        let connection = self.backend(backend).and_then(|link| link.connection);
        let (Some(bytes), Some(connection)) = (written, connection) else { return Err(Fault::NoMemory) };
        self.io.send(connection, bytes);
        Ok(())
    }

    /// The unnamed statement has been bound. It may be bound again, so it is kept where it is small and memory is not short.
    fn spare_unnamed(&mut self, id: ClientId) {
        let tight = self.io.arena().is_tight();
        let client = self.client(id).expect("the caller has looked it up");
        if tight || client.unnamed.len() > UNNAMED_KEPT_MAX {
            client.unnamed.clear();
        }
    }

    /// Notes the unnamed statement's text where it is about to come along to a backend.
    pub(super) fn note_brought(&mut self, id: ClientId, backend: BackendId) -> Option<Found> {
        if self.backend(backend)?.unnamed != Unnamed::Others {
            return None;
        }
        let client = self.clients.get(id.index, id.generation).filter(|client| !client.unnamed.is_empty())?;
        let mut copy = std::mem::take(&mut self.sql);
        copy.clear();
        copy.extend_from_slice(client.unnamed.bytes());
        let found = self.note_text(backend, copy.split(|&byte| byte == 0).next().unwrap_or_default());
        self.sql = copy;
        found
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
}
