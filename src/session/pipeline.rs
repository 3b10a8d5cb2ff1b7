//! Requests in flight on a backend and the replies still due: what decides when a backend may go back.
//!
//! Invariant: [`Pipeline::is_whole`] is true only when every request of which a byte went to the server has been
//! answered, the last answer was ReadyForQuery with Idle, and nothing sent to the server waits for a Sync. A request
//! counts from its *first* byte. What cannot be told apart from outside makes the pipeline *uncertain*: it is never
//! whole again, and the backend is closed instead of lent.
//!
//! Owned by the shard of the backend. Pure: no clock, no socket; memory is taken once, in [`Pipeline::new`].

use crate::protocol::TransactionStatus;
use crate::protocol::tag::{backend, frontend};

/// What the server is to answer next.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Expect {
    /// A simple query: anything, until ReadyForQuery.
    Query,
    /// A function call: one result or an error, then ReadyForQuery.
    FunctionCall,
    /// ReadyForQuery.
    Sync,
    /// ParseComplete.
    Parse,
    /// BindComplete.
    Bind,
    /// RowDescription or NoData, for a statement behind ParameterDescription.
    Describe,
    /// Rows, until CommandComplete, EmptyQueryResponse or PortalSuspended; or a COPY.
    Execute,
    /// CloseComplete.
    Close,
    /// The client ended a copy of which the server has not spoken yet. No answer of its own.
    CopyEnd,
    /// ParseComplete for a Parse that QCP put in: the client does not see it.
    OwnParse,
    /// CloseComplete for a Close that QCP put in.
    OwnClose,
    /// A simple query of QCP's own, to ReadyForQuery: nothing of it is for the client.
    OwnQuery,
    /// ReadyForQuery for a Sync that QCP put in.
    OwnSync,
    /// Not sent to the server: the client is told ParseComplete when its turn comes.
    VirtualParse,
    /// Not sent to the server: the client is told CloseComplete when its turn comes.
    VirtualClose,
}

/// A request and a number that its maker wants back with the answer (a statement, for instance).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Entry {
    /// What is expected.
    pub expect: Expect,
    /// Opaque here.
    pub mark: u32,
}

/// What becomes of a message from the server.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Reply {
    /// It is for the client, and part of an answer (or asynchronous).
    Forward,
    /// It is for QCP alone.
    Swallow,
    /// It ends the answer to this request. Whether the client sees it is [`Expect::is_own`].
    Answered(Entry),
    /// An error of the request at the head; what was cut off behind it is in [`Pipeline::take_skipped`].
    Failed(Entry),
}

/// The server broke the protocol, or our counting did: the link cannot go on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Broken {
    /// This message answers nothing that was asked.
    Unexpected(u8),
}

/// No room for another request: answers must come first.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Full;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Copy {
    None,
    /// The server reads CopyData.
    In,
    /// The client has ended it; the server has not said so yet.
    InEnded,
    Out,
}

/// The pipeline of one backend.
pub struct Pipeline {
    entries: Box<[Entry]>,
    head: usize,
    length: usize,
    status: TransactionStatus,
    copy: Copy,
    /// Extended-protocol messages went out behind the last Sync.
    unsynced: bool,
    /// They went out behind the last Flush, too: the server may keep its answers.
    unflushed: bool,
    /// "The backend ... reads and discards messages until a Sync is reached" (Extended Query): the error is known, the
    /// Sync not yet sent.
    skipping: bool,
    uncertain: bool,
    /// Syncs that the server read during COPY and therefore ignored, as far as can be told.
    syncs_ignored: u32,
    /// Entries `length..length + skipped` behind the head were cut off by the last error.
    skipped: usize,
}

/// Requests that fit. The server's send buffer (8 KiB) holds fewer than 1,640 unflushed answers of 5 bytes; where a
/// client pipelines more than fits here without a Sync, the relay adds a Flush.
pub const CAPACITY: usize = 512;

impl Expect {
    /// Whether the client must not see the answer.
    pub fn is_own(self) -> bool {
        match self {
            Self::OwnParse | Self::OwnClose | Self::OwnQuery | Self::OwnSync => true,
            Self::Query
            | Self::FunctionCall
            | Self::Sync
            | Self::Parse
            | Self::Bind
            | Self::Describe
            | Self::Execute
            | Self::Close
            | Self::CopyEnd
            | Self::VirtualParse
            | Self::VirtualClose => false,
        }
    }

    /// Whether it is answered by QCP rather than by the server.
    fn is_virtual(self) -> bool {
        matches!(self, Self::VirtualParse | Self::VirtualClose | Self::CopyEnd)
    }

    /// Whether ReadyForQuery ends its answer.
    fn ends_with_ready(self) -> bool {
        matches!(self, Self::Query | Self::FunctionCall | Self::Sync | Self::OwnQuery | Self::OwnSync)
    }
}

impl Default for Pipeline {
    fn default() -> Self {
        Self::new()
    }
}

impl Pipeline {
    /// Of a backend that has just said ReadyForQuery with Idle.
    pub fn new() -> Self {
        Self::with(vec![Entry { expect: Expect::Sync, mark: 0 }; CAPACITY].into_boxed_slice())
    }

    /// As new, keeping the memory.
    pub fn reset(&mut self) {
        *self = Self::with(std::mem::take(&mut self.entries));
    }

    fn with(entries: Box<[Entry]>) -> Self {
        Self {
            entries,
            head: 0,
            length: 0,
            status: TransactionStatus::Idle,
            copy: Copy::None,
            unsynced: false,
            unflushed: false,
            skipping: false,
            uncertain: false,
            syncs_ignored: 0,
            skipped: 0,
        }
    }

    /// Whether the backend may go back to its pool, as far as its requests are concerned.
    #[inline]
    pub fn is_whole(&self) -> bool {
        self.length == 0
            && self.status == TransactionStatus::Idle
            && !self.unsynced
            && !self.skipping
            && self.copy == Copy::None
            && !self.uncertain
    }

    /// What the last ReadyForQuery said.
    pub fn status(&self) -> TransactionStatus {
        self.status
    }

    /// Whether any answer is due.
    pub fn is_busy(&self) -> bool {
        self.length > 0
    }

    /// Whether an answer to a request of the client's is due.
    pub fn is_client_busy(&self) -> bool {
        (0..self.length).any(|at| !self.at(at).expect.is_own())
    }

    /// Whether extended-protocol messages wait for a Sync, or the server discards everything until one.
    pub fn is_unsynced(&self) -> bool {
        self.unsynced || self.skipping
    }

    /// Whether the server may keep answers that a Flush would bring.
    pub fn is_unflushed(&self) -> bool {
        self.unflushed
    }

    /// Whether the server may be reading CopyData.
    pub fn is_copying_in(&self) -> bool {
        self.copy == Copy::In
    }

    /// Whether it can never be whole again.
    pub fn is_uncertain(&self) -> bool {
        self.uncertain
    }

    /// Says that something was sent or seen that cannot be counted.
    pub fn doubt(&mut self) {
        self.uncertain = true;
    }

    /// Whether `count` more requests fit.
    #[inline]
    pub fn has_room(&self, count: usize) -> bool {
        self.length + count <= CAPACITY
    }

    /// Whether a reply of our own would be true for certain: no earlier batch is undecided and the transaction can
    /// take statements. ("commands ignored until end of transaction block" is an answer that only the server gives.)
    pub fn may_answer_for_server(&self) -> bool {
        !self.is_undecided() && !self.skipping && self.copy == Copy::None && self.status != TransactionStatus::Failed
    }

    /// Whether an earlier batch is not answered yet: it may fail without what comes now being cut off with it.
    pub fn is_undecided(&self) -> bool {
        (0..self.length).any(|at| self.at(at).expect.ends_with_ready())
    }

    /// Whether a request like this stands in an earlier batch, or is one, that is not answered yet.
    pub fn has_undecided(&self, is_like: impl Fn(Entry) -> bool) -> bool {
        let end = (0..self.length).rev().find(|&at| self.at(at).expect.ends_with_ready());
        end.is_some_and(|end| (0..=end).any(|at| is_like(self.at(at))))
    }

    /// Whether the server is discarding what comes, up to a Sync: nothing has an effect but that.
    pub fn is_skipping(&self) -> bool {
        self.skipping
    }

    /// Whether the request at the head is one that the client itself sent and waits for.
    pub fn head(&self) -> Option<Entry> {
        (self.length > 0).then(|| self.at(0))
    }

    /// Where the end of the batch at the head stands, if it is known: another one stands there only when [`CAPACITY`] requests
    /// have come behind it.
    pub fn end_of_batch(&self) -> Option<usize> {
        let end = (0..self.length).find(|&at| self.at(at).expect.ends_with_ready())?;
        Some((self.head + end) % CAPACITY)
    }

    /// Whether a Parse or Close with this mark is still undecided in an *earlier* batch: an error there takes it back,
    /// but not what comes behind the Sync.
    pub fn is_undecided_before_sync(&self, mark: u32) -> bool {
        let names = |expect| matches!(expect, Expect::Parse | Expect::VirtualParse | Expect::VirtualClose);
        let entries = || (0..self.length).map(|at| self.at(at));
        let first = entries().position(|entry| entry.mark == mark && names(entry.expect));
        first.is_some_and(|first| entries().skip(first).any(|entry| entry.expect == Expect::Sync))
    }

    /// Whether an answer of this kind goes to the client as it is, changes nothing here, and lets nothing become due: most
    /// of what servers say.
    #[inline]
    pub fn only_passes(&self, tag: u8) -> bool {
        let Some(head) = self.head() else { return false };
        let passes = match tag {
            backend::DATA_ROW | backend::COPY_DATA => !head.expect.is_own(),
            backend::ROW_DESCRIPTION => head.expect == Expect::Query,
            _ => false,
        };
        #[cfg(debug_assertions)]
        if passes {
            reached::note(head.expect, tag);
        }
        passes
    }

    /// The request that is `at` places behind the head.
    pub fn pending(&self, at: usize) -> Option<Entry> {
        (at < self.length).then(|| self.at(at))
    }

    /// Counts a message of the client's, at its first byte.
    #[inline]
    pub fn on_frontend(&mut self, tag: u8, mark: u32) -> Result<(), Full> {
        match tag {
            frontend::QUERY => self.ask(Expect::Query, mark),
            frontend::FUNCTION_CALL => self.ask(Expect::FunctionCall, mark),
            frontend::SYNC => self.ask(Expect::Sync, mark),
            frontend::PARSE => self.ask(Expect::Parse, mark),
            frontend::BIND => self.ask(Expect::Bind, mark),
            frontend::DESCRIBE => self.ask(Expect::Describe, mark),
            frontend::EXECUTE => self.ask(Expect::Execute, mark),
            frontend::CLOSE => self.ask(Expect::Close, mark),
            frontend::COPY_DONE | frontend::COPY_FAIL => self.end_copy(),
            frontend::FLUSH => {
                self.unflushed = false;
                Ok(())
            }
            frontend::COPY_DATA | frontend::TERMINATE | frontend::PASSWORD => Ok(()),
            // The framer refuses other tags.
            _ => {
                self.uncertain = true;
                Ok(())
            }
        }
    }

    /// Counts a request: the client's, or one of QCP's own.
    #[inline]
    pub fn ask(&mut self, expect: Expect, mark: u32) -> Result<(), Full> {
        match expect {
            Expect::Sync if self.copy == Copy::In => {
                // "Flush and Sync messages received during copy-in mode are ignored" (COPY Operations).
                self.syncs_ignored += 1;
                return Ok(());
            }
            Expect::Sync | Expect::OwnSync => {
                self.unsynced = false;
                self.unflushed = false;
                self.skipping = false;
            }
            // Discarded by the server: "reads and discards messages until a Sync is reached".
            _ if self.skipping => return Ok(()),
            // A simple query ends the implicit transaction of what went before, as a Sync does.
            Expect::Query | Expect::FunctionCall | Expect::OwnQuery => {
                self.unsynced = false;
                self.unflushed = false;
            }
            Expect::CopyEnd => {}
            Expect::VirtualParse | Expect::VirtualClose => {}
            Expect::Parse
            | Expect::Bind
            | Expect::Describe
            | Expect::Execute
            | Expect::Close
            | Expect::OwnParse
            | Expect::OwnClose => {
                self.unsynced = true;
                self.unflushed = true;
            }
        }
        if self.copy == Copy::In {
            // The server will take this for an error in the copy; what it discards then is not ours to guess.
            self.uncertain = true;
        }
        if self.length == CAPACITY {
            return Err(Full);
        }
        let at = (self.head + self.length) % CAPACITY;
        self.entries[at] = Entry { expect, mark };
        self.length += 1;
        Ok(())
    }

    fn end_copy(&mut self) -> Result<(), Full> {
        match self.copy {
            Copy::In => {
                self.copy = Copy::InEnded;
                Ok(())
            }
            // Without a COPY the server ignores it; with one of which it has not spoken yet, the order matters.
            Copy::None | Copy::InEnded | Copy::Out if self.length > 0 && !self.skipping => self.ask(Expect::CopyEnd, 0),
            Copy::None | Copy::InEnded | Copy::Out => Ok(()),
        }
    }

    /// A message of the server's. `status` is ReadyForQuery's.
    #[inline]
    pub fn on_backend(&mut self, tag: u8, status: Option<TransactionStatus>) -> Result<Reply, Broken> {
        let Some(head) = self.head() else { return self.on_unasked(tag, status) };
        #[cfg(debug_assertions)]
        reached::note(head.expect, tag);
        let own = head.expect.is_own();
        let part = if own { Reply::Swallow } else { Reply::Forward };
        match tag {
            backend::DATA_ROW | backend::COPY_DATA => Ok(part),
            backend::NOTICE_RESPONSE => Ok(part),
            backend::PARAMETER_STATUS | backend::NOTIFICATION_RESPONSE => Ok(Reply::Forward),
            backend::READY_FOR_QUERY => self.on_ready(head, status),
            backend::ERROR_RESPONSE => Ok(self.on_error(head)),
            backend::COPY_IN_RESPONSE => {
                self.begin_copy();
                Ok(part)
            }
            backend::COPY_OUT_RESPONSE | backend::COPY_BOTH_RESPONSE => {
                self.copy = Copy::Out;
                Ok(part)
            }
            backend::COPY_DONE => {
                self.copy = Copy::None;
                Ok(part)
            }
            backend::COMMAND_COMPLETE | backend::EMPTY_QUERY_RESPONSE | backend::PORTAL_SUSPENDED => {
                if matches!(self.copy, Copy::In | Copy::InEnded) {
                    // The copy came to its end, so the Syncs in it were ignored for certain.
                    self.syncs_ignored = 0;
                }
                self.copy = Copy::None;
                match head.expect {
                    Expect::Query | Expect::OwnQuery => Ok(part),
                    Expect::Execute => Ok(self.answered()),
                    _ => Err(Broken::Unexpected(tag)),
                }
            }
            backend::PARSE_COMPLETE => self.answer(tag, matches!(head.expect, Expect::Parse | Expect::OwnParse)),
            backend::BIND_COMPLETE => self.answer(tag, head.expect == Expect::Bind),
            backend::CLOSE_COMPLETE => self.answer(tag, matches!(head.expect, Expect::Close | Expect::OwnClose)),
            backend::PARAMETER_DESCRIPTION => Ok(part),
            backend::ROW_DESCRIPTION | backend::NO_DATA => match head.expect {
                Expect::Describe => Ok(self.answered()),
                Expect::Query | Expect::OwnQuery => Ok(part),
                _ => Err(Broken::Unexpected(tag)),
            },
            backend::FUNCTION_CALL_RESPONSE => Ok(part),
            _ => Err(Broken::Unexpected(tag)),
        }
    }

    /// The next reply that QCP gives in the server's place, if its turn has come.
    #[inline]
    pub fn next_virtual(&mut self) -> Option<Entry> {
        while self.length > 0 && self.at(0).expect.is_virtual() {
            let entry = self.pop();
            if entry.expect != Expect::CopyEnd {
                return Some(entry);
            }
        }
        None
    }

    /// Requests that the last error cut off: they have had no effect and get no answer.
    pub fn take_skipped(&mut self) -> Option<Entry> {
        if self.skipped == 0 {
            return None;
        }
        self.skipped -= 1;
        Some(self.pop())
    }

    fn on_unasked(&mut self, tag: u8, status: Option<TransactionStatus>) -> Result<Reply, Broken> {
        match tag {
            backend::NOTICE_RESPONSE
            | backend::PARAMETER_STATUS
            | backend::NOTIFICATION_RESPONSE
            | backend::ERROR_RESPONSE => Ok(Reply::Forward),
            backend::READY_FOR_QUERY if self.syncs_ignored > 0 => {
                // It was not ignored after all: the copy had failed before the server read it.
                self.syncs_ignored -= 1;
                self.uncertain = true;
                self.status = status.unwrap_or(self.status);
                Ok(Reply::Forward)
            }
            _ => Err(Broken::Unexpected(tag)),
        }
    }

    fn on_ready(&mut self, head: Entry, status: Option<TransactionStatus>) -> Result<Reply, Broken> {
        let Some(status) = status else { return Err(Broken::Unexpected(backend::READY_FOR_QUERY)) };
        self.copy = Copy::None;
        self.status = status;
        if head.expect.ends_with_ready() {
            return Ok(self.answered());
        }
        if self.syncs_ignored > 0 {
            self.syncs_ignored -= 1;
            self.uncertain = true;
            return Ok(Reply::Forward);
        }
        Err(Broken::Unexpected(backend::READY_FOR_QUERY))
    }

    /// "When an error is detected while processing any extended-query message, the backend issues ErrorResponse, then
    /// reads and discards messages until a Sync is reached, then issues ReadyForQuery" (Extended Query).
    fn on_error(&mut self, head: Entry) -> Reply {
        let copied_in = matches!(self.copy, Copy::In | Copy::InEnded);
        if copied_in && (self.syncs_ignored > 0 || self.copy == Copy::In && self.length > 1) {
            // Whether the server read those Syncs before the copy failed (and ignored them) or after (and answers them)
            // cannot be told from here.
            self.uncertain = true;
        }
        self.copy = Copy::None;
        match head.expect {
            Expect::Query | Expect::FunctionCall | Expect::Sync | Expect::OwnQuery | Expect::OwnSync => {
                if head.expect.is_own() { Reply::Swallow } else { Reply::Forward }
            }
            _ => {
                let sync = (0..self.length).find(|&at| matches!(self.at(at).expect, Expect::Sync | Expect::OwnSync));
                self.skipping = sync.is_none();
                let cut = sync.unwrap_or(self.length);
                self.pop();
                self.skipped = cut - 1;
                Reply::Failed(head)
            }
        }
    }

    fn begin_copy(&mut self) {
        self.copy = Copy::In;
        // What the client had sent already, the server reads in copy mode: Syncs are ignored until the copy's end.
        let at = 1;
        while at < self.length {
            match self.at(at).expect {
                Expect::Sync => {
                    self.remove(at);
                    self.syncs_ignored += 1;
                    self.unsynced = self.waits_for_sync();
                }
                Expect::CopyEnd => {
                    self.remove(at);
                    self.copy = Copy::InEnded;
                    self.unsynced = self.waits_for_sync();
                    return;
                }
                _ => {
                    self.uncertain = true;
                    return;
                }
            }
        }
    }

    /// Whether the last request that is not QCP's to answer is an extended-protocol one.
    fn waits_for_sync(&self) -> bool {
        let last = (0..self.length).rev().map(|at| self.at(at).expect).find(|expect| !expect.is_virtual());
        last.is_some_and(|expect| !expect.ends_with_ready())
    }

    fn answer(&mut self, tag: u8, fits: bool) -> Result<Reply, Broken> {
        if fits { Ok(self.answered()) } else { Err(Broken::Unexpected(tag)) }
    }

    fn answered(&mut self) -> Reply {
        Reply::Answered(self.pop())
    }

    fn at(&self, offset: usize) -> Entry {
        debug_assert!(offset < self.length);
        self.entries[(self.head + offset) % CAPACITY]
    }

    fn pop(&mut self) -> Entry {
        assert!(self.length > 0, "an answer is popped only where one is due");
        let entry = self.entries[self.head];
        self.head = (self.head + 1) % CAPACITY;
        self.length -= 1;
        entry
    }

    fn remove(&mut self, offset: usize) {
        for at in offset..self.length - 1 {
            self.entries[(self.head + at) % CAPACITY] = self.at(at + 1);
        }
        self.length -= 1;
    }
}

/// Which transitions were taken on this thread: what the simulation has reached. Not in what is shipped.
#[cfg(debug_assertions)]
pub mod reached {
    use std::cell::RefCell;

    use super::Expect;

    thread_local! {
        static SEEN: RefCell<Vec<(Expect, u8, u64)>> = const { RefCell::new(Vec::new()) };
    }

    pub(super) fn note(expect: Expect, tag: u8) {
        SEEN.with_borrow_mut(|seen| match seen.iter_mut().find(|(of, by, _)| (*of, *by) == (expect, tag)) {
            Some((_, _, count)) => *count += 1,
            None => seen.push((expect, tag, 1)),
        });
    }

    /// What was asked, the tag of what was answered, and how often, since the last call.
    pub fn take() -> Vec<(Expect, u8, u64)> {
        SEEN.take()
    }
}

#[cfg(test)]
#[path = "pipeline_tests.rs"]
mod tests;
