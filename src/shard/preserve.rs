//! `session_state: preserve`: what a client's statements may have changed is noted as they pass; behind the
//! transaction the server is asked what is true; settings then follow the client, and other state keeps the client on
//! its backend (it is *pinned*) until the server says that it is gone.
//!
//! Invariant: a backend is not lent to another client while something is suspected or pinned.

use std::hash::BuildHasher;

use foldhash::fast::FixedState;

use crate::ids::{BackendId, ClientId};
use crate::io::Transport;
use crate::memory::Slice;
use crate::protocol::{HEAD_SIZE, reader};
use crate::session::parameters::{self, VectorId};
use crate::session::prepared::Number;
use crate::session::scanner::{self, Effects, Found, Only, Sieve};
use crate::session::suspects::Suspects;
use crate::session::{RelayMode, Transparency};

use super::listens::Share;
use super::mailbox::Mail;
use super::relay::{Request, Verdict};
use super::spliced::{MARK_DEALLOCATE, MARK_FORGETS};
use super::statements::Class;
use super::{Shard, Tick};

mod question;
mod resets;
mod sequences;

pub(super) use question::{Asked, MARK_CHECK, MARK_CHECK_AHEAD, ROW_SIZE_MAX};
pub(super) use sequences::LastValues;

/// Of [`Kept::path`].
const UNKNOWN_PATH: u64 = u64::MAX;
/// An arbitrary odd number.
const ODD: u64 = 0x9e37_79b9_7f4a_7c15;
/// Bytes of the names of transactions that one client has prepared and not decided.
const HELD_SIZE_MAX: usize = 2048;
/// Times that a question is asked behind one request.
const ASKED_MAX: u8 = 2;

/// What a backend has of its client's session beside settings and prepared statements.
#[derive(Default)]
pub(super) struct Kept {
    /// What the statements since the last question may have changed.
    pub suspects: Suspects,
    /// The question that is under way.
    pub asked: Option<Box<Asked>>,
    /// What keeps the client here.
    pub pins: Effects,
    /// Since when.
    pub pinned_since: Option<std::time::Instant>,
    /// Transactions that the client has prepared, as it has named them, with commas between them.
    held: Vec<u8>,
    /// The query under way is a RESET or DISCARD by itself.
    reset: Option<Reset>,
    /// When it came, nothing was suspected: what it resets, and nothing else, is what has changed since the last question.
    reset_alone: bool,
    /// A statement takes names of settings as parameters.
    parameters: bool,
    /// The error of the EXECUTE under way has been given already.
    pub told: bool,
    /// The statement that the EXECUTE under way names.
    pub executes: Number,
    /// The unnamed statement is DEALLOCATE of this one, which the client calls so; or the query under way is.
    pub deallocates: Option<(Number, Box<[u8]>)>,
    /// In the unnamed statement a name has been put in: it is put together anew for each Bind, as the name may stand for another.
    pub spliced: bool,
    /// A portal has been executed that may have taken prepared statements away.
    pub forgets: bool,
    /// Until the transaction ends, what texts mean may be another matter than `has` says.
    pub doubt: bool,
    /// Which texts were run since it is so: with the same ones the settings are the same. [`UNKNOWN_PATH`] where values do not stand
    /// in the texts; 0 without doubt.
    path: u64,
    /// The question that is under way will say.
    settles: bool,
    /// The transaction changes functions, triggers or the like: what texts do.
    changes: bool,
    /// Statements that were prepared under settings other than those they are known by.
    foreign: Vec<Number>,
    /// The client is gone and left something: DISCARD ALL before anybody else.
    pub must_reset: bool,
    /// The client's channels are on their way to the listener of its database.
    pub share: Option<Box<Share>>,
    /// They cannot go there.
    pub refused: bool,
    /// The client hears by a listener.
    pub hears: bool,
    /// This transaction may notify.
    pub notified: bool,
    /// The client's ReadyForQuery waits for the listener.
    pub ready_held: bool,
    /// What the client began its session with may have been reset, among other things: to be found out.
    pub resets: bool,
    /// And first for what its UNLISTEN has left, or its RESET.
    pub ready_waits: bool,
    /// The backend listens on all that its client does.
    pub real: bool,
    /// It must, before the text under way goes there.
    pub wants_real: bool,
    /// What gives the backend its client's settings may be refused, and is under way: nothing of the client's goes there
    /// before it is done, and till then `has` is what was there before.
    pub proving: bool,
    /// What the client waits for is to be cancelled, when the queries of our own before it are done.
    pub cancel_waits: bool,
    /// Such a cancel has been sent: which batch it was for, and when.
    pub cancelled: Option<Cancelled>,
    /// When the client's last request began behind which a question was refused, and how often it was.
    pub unanswered: Option<(Tick, u8)>,
    /// A text about to go there asks for last values of sequences, and those that are there are another client's.
    strange_values: bool,
    /// A request that may change on what it listens is, or will be, under way: what comes behind it waits.
    pub unsettled: bool,
    /// Of the text that is passing, as it is too long to be here at once.
    sieve: Option<Box<Sieve>>,
    /// Since the last question an error, or a ROLLBACK, has taken something back.
    pub undone: bool,
    /// What the client has said UNLISTEN of in its transaction; `None`: of all.
    pub unlistened: Vec<Option<Box<[u8]>>>,
}

/// What a cancel that waited was sent for.
#[derive(Clone, Copy)]
pub(super) struct Cancelled {
    /// When the client's request began, and where in the pipeline the end of the cancelled batch stands.
    pub batch: (Tick, usize),
    pub at: std::time::Instant,
}

/// A statement that gives settings the value which the client began its session with.
enum Reset {
    /// One, or a few that belong together.
    Names(Vec<Box<str>>),
    All,
    Discard,
}

impl Kept {
    /// Whether another client may have the backend, as far as this goes.
    #[inline]
    pub(super) fn is_clean(&self) -> bool {
        self.suspects.is_empty()
            && self.pins.is_empty()
            && self.asked.is_none()
            && self.share.is_none()
            && !self.real
            && !self.ready_held
    }

    /// Whether something is to be done at the end of the batch under way, before its ReadyForQuery: a notification of the
    /// client's own is waited for, or settings are given back.
    #[inline]
    pub(super) fn has_end(&self) -> bool {
        self.hears || self.notified || self.resets || self.reset.is_some()
    }

    /// Whether the server has been asked in vain what this request has left behind, which began at `asked`: it is asked
    /// again behind the next one, and the client stays until then.
    pub(super) fn is_unanswered(&self, asked: Tick) -> bool {
        self.unanswered.is_some_and(|(at, times)| at == asked && times >= ASKED_MAX)
    }

    /// Whether the client's channels are between two connections.
    pub(super) fn is_leaving(&self) -> bool {
        self.share.as_ref().is_some_and(|share| !share.is_open())
    }

    /// Whether the client has, or may have, statements here under names of its own.
    pub(super) fn has_own_names(&self) -> bool {
        let asked = self.asked.as_ref().map(|asked| asked.suspects.effects());
        let suspected = self.suspects.effects().and(asked.unwrap_or(Effects::NONE));
        self.pins.has(Effects::PREPARED) || suspected.has(Effects::PREPARES)
    }

    /// The mark of an Execute that comes now: whether it may take prepared statements away.
    #[inline]
    pub(super) fn mark_execute(&mut self) -> u32 {
        let mark = match &self.deallocates {
            Some((number, _)) => MARK_DEALLOCATE | number,
            None if self.suspects.effects().has(Effects::PREPARED) => MARK_FORGETS,
            None => return 0,
        };
        self.forgets = true;
        mark
    }

    /// What keeps the client here, for people.
    pub(super) fn pin_names(&self) -> Vec<String> {
        const NAMES: [(Effects, &str); 8] = [
            (Effects::TEMPORARY, "temporary objects"),
            (Effects::LISTEN, "LISTEN"),
            (Effects::CURSOR, "cursor WITH HOLD"),
            (Effects::PREPARED, "PREPARE"),
            (Effects::LOCK, "advisory lock"),
            (Effects::TWO_PHASE, "PREPARE TRANSACTION"),
            (Effects::SEQUENCE, "last value of a sequence"),
            (Effects::LASTING, "LOAD, setseed or what cannot be asked about"),
        ];
        let pins = NAMES.iter().filter(|(kind, _)| self.pins.has(*kind)).map(|(_, name)| *name);
        let unanswered = self.unanswered.map(|_| "an unanswered question");
        pins.chain(unanswered).map(str::to_owned).collect()
    }

    /// Whether the query under way gives settings their first values.
    pub(super) fn is_resetting(&self) -> bool {
        self.reset.is_some()
    }

    /// The client is gone: what it left must be taken away. `false`: that cannot be done.
    pub(super) fn on_client_gone(&mut self) -> bool {
        self.must_reset = !self.is_clean() || self.proving;
        let lasting = self.pins.has(Effects::LASTING.and(Effects::SEQUENCE));
        self.forget();
        !lasting
    }

    /// The backend is as after its login.
    pub(super) fn forget(&mut self) {
        self.suspects.clear();
        self.asked = None;
        self.pins = Effects::NONE;
        self.held.clear();
        self.pinned_since = None;
        self.reset = None;
        self.doubt = false;
        self.path = 0;
        self.settles = false;
        self.changes = false;
        self.parameters = false;
        self.share = None;
        self.refused = false;
        self.hears = false;
        self.notified = false;
        self.ready_held = false;
        self.ready_waits = false;
        self.resets = false;
        self.real = false;
        self.wants_real = false;
        self.strange_values = false;
        self.proving = false;
        self.cancel_waits = false;
        self.cancelled = None;
        self.unanswered = None;
        self.told = false;
        self.sieve = None;
        self.deallocates = None;
        self.spliced = false;
        self.forgets = false;
        self.unsettled = false;
        self.undone = false;
        self.unlistened.clear();
    }
}

impl<T: Transport> Shard<T> {
    /// A simple query of the client's is about to go to the server. `Some`: it has been dealt with.
    pub(super) fn note_query(
        &mut self,
        id: ClientId,
        backend: BackendId,
        request: Request,
        bytes: &Slice,
        run: &mut usize,
    ) -> Option<Verdict> {
        let message = &bytes[request.at..request.at + request.available];
        if request.available < request.size as usize {
            self.begin_sifting(backend, &message[HEAD_SIZE.min(message.len())..]);
            return None;
        }
        let text = reader::query(message).ok()?;
        let known = self.backend(backend)?.kept.suspects.is_empty();
        let found = self.note_text(backend, text)?;
        match found.only? {
            only @ (Only::Prepared { .. } | Only::Prepares { .. }) => {
                let (name, deallocates) = only.named()?;
                let (before, after) = (&text[..name.start], &text[name.end..]);
                self.splice(id, backend, (before, &text[name], after), deallocates, request, bytes, run)
            }
            only => {
                let begun_with = self.client(id)?.startup != VectorId::NEUTRAL;
                let link = self.backend(backend)?;
                let gives_back = link.kept.resets || begun_with && matches!(only, Only::ResetAll | Only::DiscardAll);
                if gives_back && link.pipeline.is_undecided() && !link.pipeline.is_unsynced() {
                    // Whose settings the server reports is known only when nothing else is under way.
                    link.kept.resets = false;
                    return Some(self.pause_for_answers(id, backend));
                }
                self.begin_reset(backend, &only, known);
                None
            }
        }
    }

    /// The values of a Bind, where a statement takes names of settings from them: what may be one is suspected.
    pub(super) fn note_values(&mut self, backend: BackendId, message: &[u8], whole: bool) {
        let Some(link) = self.backends.get_mut(backend.index, backend.generation) else { return };
        if !link.kept.parameters {
            return;
        }
        let super::BackendState::Linked(client) = link.state else { return };
        let client = self.clients.get(client.index, client.generation);
        let begun_with = client.is_some_and(|client| client.startup != VectorId::NEUTRAL);
        let suspects = &mut link.kept.suspects;
        let Some(values) = reader::bind_values(message).ok().filter(|_| whole) else {
            link.kept.pins = link.kept.pins.and(Effects::LASTING);
            return;
        };
        for value in values {
            let Some(value) = value else {
                // A setting that is set to NULL has the value again that the session began with.
                if begun_with {
                    suspects.add(Effects::ANY_SETTING.and(Effects::RESETS));
                    link.kept.resets = true;
                }
                continue;
            };
            let is_name = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'$' | 0x80..);
            if value.is_empty() || !value.iter().all(is_name) {
                continue;
            }
            if value.len() > 128 || !value.is_ascii() || value.eq_ignore_ascii_case(b"seed") {
                // Nobody can ask for it, or not by this name.
                link.kept.pins = link.kept.pins.and(Effects::LASTING);
            } else {
                suspects.add(Effects::SETTINGS);
                suspects.add_name(&value.to_ascii_lowercase());
            }
        }
    }

    /// The beginning of a text that is too long to be here at once: what comes of it is looked at as it passes.
    fn begin_sifting(&mut self, backend: BackendId, piece: &[u8]) {
        if let Some(link) = self.backend(backend) {
            link.kept.sieve = Some(Box::default());
            self.sift(backend, piece, false);
        }
    }

    /// More of a client's message; the last of it.
    #[inline]
    pub(super) fn on_rest(&mut self, id: ClientId, piece: &[u8], last: bool) {
        let Some(backend) = self.backend_of(id) else { return };
        if self.backend(backend).is_some_and(|link| link.kept.sieve.is_some()) {
            self.sift(backend, piece, last);
        }
    }

    fn sift(&mut self, backend: BackendId, piece: &[u8], last: bool) {
        let Some(mut sieve) = self.backend(backend).and_then(|link| link.kept.sieve.take()) else { return };
        let effects = self.scanner.sift(&mut sieve, piece, last).and(Effects::OPAQUE).and(Effects::PARSER);
        let found = Found { effects, only: None, fingerprint: 0 };
        if self.note_scanned(backend, &found, 0).is_some() {
            self.note_listens(backend, found.effects, b"", false);
        }
        if let Some(link) = self.backend(backend).filter(|_| !last) {
            link.kept.sieve = Some(sieve);
        }
    }

    /// Whether the linked client's session is kept.
    #[inline]
    pub(super) fn keeps_session(&self, backend: BackendId) -> bool {
        let link = self.backends.get(backend.index, backend.generation);
        let keeps = |link: &super::Backend| self.pools.get(link.pool).settings.preserve.is_some();
        link.is_some_and(|link| link.mode != RelayMode::Session && keeps(link))
    }

    /// Whether the client's next batch waits until those before it are answered: what has its place before the
    /// ReadyForQuery of one of them would otherwise come behind the answers of the next, or too late for it.
    #[inline]
    pub(super) fn answers_in_turn(&self, backend: BackendId) -> bool {
        let Some(link) = self.backends.get(backend.index, backend.generation) else { return false };
        let ends = link.kept.has_end() && !link.pipeline.is_unsynced() && !link.pipeline.is_copying_in();
        if !ends || !link.pipeline.is_undecided() {
            return false;
        }
        let fast = self.pools.get(link.pool).settings.preserve == Some(Transparency::Fast);
        link.kept.resets
            || link.kept.is_resetting()
            || link.kept.hears && !fast
            || link.kept.notified && self.says_notified(link.mode)
    }

    /// Of the settings that the linked client has. Where they are in doubt it is one that nobody else has.
    pub(super) fn projection_of(&mut self, backend: BackendId) -> u64 {
        let random = self.next_random();
        let link = self.backends.get(backend.index, backend.generation);
        let known = link.map(|link| (link.kept.doubt, link.has));
        match known {
            Some((true, _)) => random | 1 << 63,
            Some((false, has)) => self.vectors.projection(has),
            None => 0,
        }
    }

    /// Suspects state of these kinds.
    pub(super) fn suspect(&mut self, backend: BackendId, effects: Effects) {
        if let Some(link) = self.backend(backend) {
            link.kept.suspects.add(effects);
            if let super::BackendState::Linked(client) = link.state {
                link.kept.strange_values |= link.last_values.note(client, effects);
            }
        }
    }

    /// What has been noted of a text may ask for something on the backend before the text goes there: what of the client's
    /// bytes comes before it, from `run` on, is sent first.
    pub(super) fn before_text(&mut self, id: ClientId, backend: BackendId, bytes: &Slice, run: &mut usize, at: usize) {
        if self.backend(backend).is_some_and(|link| link.kept.wants_real || link.kept.strange_values) {
            self.flush_run(id, bytes, *run, at);
            *run = at;
            self.before_text_here(id, backend);
        }
    }

    /// The same where everything before has been sent.
    pub(super) fn before_text_here(&mut self, id: ClientId, backend: BackendId) {
        self.make_real(id, backend);
        self.drop_last_values(id, backend);
    }

    /// A text that the client has the server run, or prepare.
    pub(super) fn note_text(&mut self, backend: BackendId, text: &[u8]) -> Option<Found> {
        self.client_of(backend)?;
        let backslashes = self.has_backslashes(backend);
        let found = self.classes.scan(&mut self.scanner, text, backslashes);
        let constants = if found.effects.has(Effects::PARSER) { FixedState::default().hash_one(text) } else { 0 };
        self.note_scanned(backend, &found, constants)?;
        self.note_listens(backend, found.effects, text, backslashes);
        if found.effects.has(Effects::TWO_PHASE) {
            self.note_prepared(backend, text);
        }
        Some(found)
    }

    /// Whether backslashes escape in the plain constants of the linked client's texts.
    fn has_backslashes(&self, backend: BackendId) -> bool {
        let Some(link) = self.backends.get(backend.index, backend.generation) else { return false };
        let super::BackendState::Linked(client) = link.state else { return false };
        let wanted = self.clients.get(client.index, client.generation).map(|client| client.wanted);
        let strings = wanted.and_then(|wanted| self.vectors.get(wanted, "standard_conforming_strings"));
        strings.map_or(self.pools.get(link.pool).backslashes, |value| value == "off")
    }

    /// What was found in a text that is about to run; names of settings are the scanner's last. `constants`: a number of the text with
    /// its constants, if it changes settings that decide what texts mean; 0 is of one that is not known.
    fn note_scanned(&mut self, backend: BackendId, found: &Found, constants: u64) -> Option<()> {
        let random = self.next_random();
        let Self { scanner, clients, vectors, .. } = self;
        let link = self.backends.get(backend.index, backend.generation)?;
        let super::BackendState::Linked(client) = link.state else { return None };
        let startup = clients.get(client.index, client.generation)?.startup;
        // The server would go back to what *its* session began with.
        let begun_with = |name: &[u8]| std::str::from_utf8(name).is_ok_and(|name| vectors.get(startup, name).is_some());
        let resets = found.effects.has(Effects::RESETS)
            && startup != VectorId::NEUTRAL
            && (found.effects.has(Effects::ANY_SETTING) || scanner.names().any(begun_with));
        self.note_found(backend, found, constants, random);
        if resets {
            self.suspect(backend, Effects::ANY_SETTING.and(Effects::RESETS));
            self.backend(backend)?.kept.resets = true;
        }
        Some(())
    }

    /// The client prepares transactions: where they are to be held, it stays until the server does not know them any more.
    fn note_prepared(&mut self, backend: BackendId, text: &[u8]) {
        let backslashes = self.has_backslashes(backend);
        let Some(link) = self.backends.get_mut(backend.index, backend.generation) else { return };
        let pool = self.pools.get(link.pool);
        if !pool.settings.hold_prepared {
            return;
        }
        let kept = &mut link.kept;
        let names = scanner::prepared_transactions(text, backslashes);
        let size: usize = names.iter().flatten().map(|name| name.len() + 1).sum();
        let Some(names) = names.filter(|_| kept.held.len() + size <= HELD_SIZE_MAX) else {
            kept.pins = kept.pins.and(Effects::LASTING);
            return;
        };
        for name in names {
            if !kept.held.is_empty() {
                kept.held.push(b',');
            }
            kept.held.extend_from_slice(name);
        }
        kept.suspects.add(Effects::TWO_PHASE);
    }

    /// A text of the unnamed statement, as far as it is here.
    pub(super) fn note_unnamed(&mut self, backend: BackendId, message: &[u8], whole: bool) -> Option<Found> {
        match reader::parse(message) {
            Ok(parse) if whole => self.note_text(backend, parse.query),
            _ => {
                self.begin_sifting(backend, &message[HEAD_SIZE.min(message.len())..]);
                None
            }
        }
    }

    /// A statement of which only the name comes is about to run.
    pub(super) fn note_statement(&mut self, backend: BackendId, number: Number) {
        let Some(class) = self.statements.class(number) else {
            let copy = std::mem::take(&mut self.sql);
            let copy = self.copy_text(copy, number);
            let query = copy.split(|&byte| byte == 0).next().unwrap_or_default();
            if let Some(found) = self.note_text(backend, query) {
                self.statements.classify(number, Class::new(&found, self.scanner.names()));
            }
            self.sql = copy;
            return;
        };
        let found = Found { effects: class.effects, only: None, fingerprint: class.fingerprint };
        self.scanner.recall(class.names());
        if self.note_scanned(backend, &found, u64::from(number)).is_none() {
            return;
        }
        // Which channels, or transactions, only the text says.
        let named = Effects::LISTEN.and(Effects::NOTIFY).and(Effects::OPAQUE).and(Effects::TWO_PHASE);
        if found.effects.has(named) {
            let text = std::mem::take(&mut self.sql);
            let text = self.copy_text(text, number);
            let query = text.split(|&byte| byte == 0).next().unwrap_or_default();
            let backslashes = self.has_backslashes(backend);
            self.note_listens(backend, found.effects, query, backslashes);
            if found.effects.has(Effects::TWO_PHASE) {
                self.note_prepared(backend, query);
            }
            self.sql = text;
        }
    }

    fn copy_text(&self, mut to: Vec<u8>, number: Number) -> Vec<u8> {
        to.clear();
        to.extend_from_slice(self.statements.text(number));
        to
    }

    /// `found` in a text of the client's; names of settings are the scanner's last.
    fn note_found(&mut self, backend: BackendId, found: &Found, constants: u64, random: u64) {
        self.end_changes();
        let Self { scanner, backends, pools, learned, vectors, changing, .. } = self;
        let Some(link) = backends.get_mut(backend.index, backend.generation) else { return };
        let pool = pools.get_mut(link.pool);
        let mut effects = found.effects;
        let holds = link.kept.pins.has(Effects::TWO_PHASE);
        if effects.is_empty() && !holds && pool.settings.preserve == Some(Transparency::Fast) {
            return;
        }
        if effects.has(Effects::SETTINGS) {
            effects = effects.without(Effects::SETTINGS);
            // What the server reports by itself needs no question.
            for name in scanner.names().filter(|name| !parameters::is_tracked(name)) {
                effects = effects.and(Effects::SETTINGS);
                link.kept.suspects.add_name(name);
            }
        }
        if effects.has(Effects::PARSER) {
            (link.kept.doubt, link.kept.settles) = (true, false);
            let computed = Effects::OPAQUE.and(Effects::PARAMETER).and(Effects::LASTING).and(Effects::ANY_SETTING);
            if constants == 0 || effects.has(computed) {
                link.kept.path = UNKNOWN_PATH;
            }
        }
        if link.kept.doubt && link.kept.path != UNKNOWN_PATH {
            let path = link.kept.path ^ if effects.has(Effects::PARSER) { constants } else { found.fingerprint };
            link.kept.path = path.wrapping_mul(ODD).rotate_left(29);
        }
        link.kept.parameters |= effects.has(Effects::PARAMETER);
        effects = effects.without(Effects::PARSER.and(Effects::PARAMETER));
        let changes = effects.has(Effects::RELEARN) && !std::mem::replace(&mut link.kept.changes, true);
        if changes {
            changing.push(backend);
            learned.begin_change();
        }
        if let super::BackendState::Linked(client) = link.state {
            link.kept.strange_values |= link.last_values.note(client, effects);
        }
        // Only where somebody asks for last values does it matter who has them; that nobody knows what a text asks for is no reason.
        let unseen = Effects::UNSEEN.without(Effects::PARSER);
        let first = effects.has(Effects::LAST_VALUE) && effects.common(Effects::UNSEEN) != unseen && !pool.last_values;
        pool.last_values |= first;
        let sequence = if pool.last_values { Effects::SEQUENCE } else { Effects::NONE };
        let pins = effects.common(Effects::LASTING.and(sequence));
        link.kept.pins = link.kept.pins.and(pins);
        let asked = Effects::RELEARN.and(Effects::LAST_VALUE).and(Effects::TWO_PHASE).and(Effects::LASTING);
        let asked = asked.and(Effects::NOTIFY).and(Effects::RESETS).and(Effects::EXECUTES);
        link.kept.suspects.add(effects.without(asked.and(Effects::SEQUENCE)));
        if holds {
            // It, or somebody else, may have decided.
            link.kept.suspects.add(Effects::TWO_PHASE);
        }
        match pool.settings.preserve {
            Some(Transparency::Balanced) => {
                // What a text does depends on the pool, and on settings.
                let place = u64::from(pool.serial) ^ vectors.projection(link.has) ^ link.kept.path;
                let place = (link.kept.path != UNKNOWN_PATH).then_some(place.wrapping_mul(ODD));
                learned.on_text(found, place, random, &mut link.kept.suspects);
            }
            Some(Transparency::Strict) => link.kept.suspects.add(Effects::OPAQUE),
            Some(Transparency::Fast) | None => {}
        }
        if first {
            let database = pool.key.database.clone();
            self.tell_last_values(&database);
        }
        if changes {
            self.tell_others(|| Mail::Change { begins: true });
        }
    }

    /// Transactions that changed what texts do, by a function, a trigger, are over, or their backends are gone.
    pub(super) fn end_changes(&mut self) {
        if self.changing.is_empty() {
            return;
        }
        let Self { changing, backends, .. } = self;
        let before = changing.len();
        changing.retain(|id| backends.get(id.index, id.generation).is_some_and(|link| link.kept.changes));
        for _ in changing.len()..before {
            self.learned.end_change();
            self.tell_others(|| Mail::Change { begins: false });
        }
    }

    /// The same on another shard.
    pub(super) fn on_change_elsewhere(&mut self, begins: bool) {
        match begins {
            true => self.learned.begin_change(),
            false => self.learned.end_change(),
        }
    }

    /// The client stays on its backend between transactions.
    pub(super) fn note_pinned(&mut self, id: BackendId) {
        let now = self.io.now();
        if let Some(link) = self.backend(id) {
            link.kept.pinned_since = link.kept.pinned_since.or(Some(now));
        }
    }

    /// A statement is prepared here under other settings than those it is known by: others must not find it.
    pub(super) fn note_foreign(&mut self, backend: BackendId, number: Number) {
        if let Some(link) = self.backend(backend)
            && !link.kept.foreign.contains(&number)
        {
            link.kept.foreign.push(number);
        }
    }

    /// The backend is about to be lent to others.
    pub(super) fn hide_foreign(&mut self, backend: BackendId) {
        let Some(link) = self.backend(backend) else { return };
        for number in std::mem::take(&mut link.kept.foreign) {
            link.prepared.remove(number);
            link.expect_stale(number);
        }
    }

    /// A client's notification carries the process id that the client was given, where it is its own.
    pub(super) fn is_own_notification(&mut self, id: BackendId, message: &[u8]) -> bool {
        let Some(link) = self.backend(id) else { return false };
        let own = link.process_id.to_be_bytes();
        message.get(HEAD_SIZE..HEAD_SIZE + 4) == Some(&own[..])
    }

    /// The client is gone or let go of: its backend is closed if what it left cannot be taken away.
    pub(super) fn leave_kept(&mut self, id: BackendId) -> bool {
        let Some(link) = self.backend(id) else { return false };
        if !link.kept.on_client_gone() {
            link.tainted = true;
        }
        self.hide_foreign(id);
        true
    }
}
