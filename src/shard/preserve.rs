//! `session_state: preserve`: what a client's statements may have changed is noted as they pass; behind the
//! transaction the server is asked what is true; settings then follow the client, and other state keeps the client on
//! its backend (it is *pinned*) until the server says that it is gone.
//!
//! Invariant: a backend is not lent to another client while something is suspected or pinned.

use crate::ids::{BackendId, ClientId};
use crate::io::Transport;
use crate::memory::Slice;
use crate::protocol::{HEAD_SIZE, reader};
use crate::session::parameters::{self, Setting, VectorId};
use crate::session::pipeline::Expect;
use crate::session::prepared::{self, Number};
use crate::session::scanner::{self, Effects, Found, Only};
use crate::session::suspects::{Answer, Suspects};
use crate::session::{RelayMode, Transparency};

use super::Shard;
use super::listens::Share;
use super::relay::{Request, Verdict};
use super::statements::Class;

mod resets;
mod sequences;

pub(super) use sequences::LastValues;

/// Mark of the question behind a transaction.
pub(super) const MARK_CHECK: u32 = 6;
/// Set in the mark of a query that is DEALLOCATE of the statement of this number.
pub(super) const MARK_DEALLOCATE: u32 = 1 << 31;
/// Mark of a query of the client's that may take prepared statements away.
pub(super) const MARK_FORGETS: u32 = 1 << 30;
/// Mark of a query that is EXECUTE of a statement of the protocol.
pub(super) const MARK_EXECUTES: u32 = 1 << 29;
/// Rows of the answer are read up to this size.
pub(super) const ROW_SIZE_MAX: u32 = 16 * 1024;
/// Bytes of the names of transactions that one client has prepared and not decided.
const HELD_SIZE_MAX: usize = 2048;
/// Settings of one backend that are remembered as the server's own.
const UNSET_MAX: usize = 16;

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
    /// Until the transaction ends, what texts mean may be another matter than `has` says.
    pub doubt: bool,
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
    /// A text about to go there asks for last values of sequences, and those that are there are another client's.
    strange_values: bool,
    /// A request that may change on what it listens is, or will be, under way: what comes behind it waits.
    pub unsettled: bool,
    /// Since the last question an error, or a ROLLBACK, has taken something back.
    pub undone: bool,
    /// What the client has said UNLISTEN of in its transaction; `None`: of all.
    pub unlistened: Vec<Option<Box<[u8]>>>,
}

/// A question and what has come of its answer.
pub(super) struct Asked {
    suspects: Suspects,
    answer: Answer,
    undone: bool,
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

    /// Whether the client's channels are between two connections.
    pub(super) fn is_leaving(&self) -> bool {
        self.share.as_ref().is_some_and(|share| !share.is_open())
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
        NAMES.iter().filter(|(kind, _)| self.pins.has(*kind)).map(|(_, name)| (*name).to_owned()).collect()
    }

    /// Whether the query under way gives settings their first values.
    pub(super) fn is_resetting(&self) -> bool {
        self.reset.is_some()
    }

    /// The client is gone: what it left must be taken away. `false`: that cannot be done.
    pub(super) fn on_client_gone(&mut self) -> bool {
        self.must_reset = !self.is_clean();
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
        self.told = false;
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
            self.suspect(backend, Effects::OPAQUE);
            return None;
        }
        let text = reader::query(message).ok()?;
        let known = self.backend(backend)?.kept.suspects.is_empty();
        let found = self.note_text(backend, text)?;
        match found.only? {
            Only::Prepared { name, deallocates } => {
                let size = name.len();
                let (before, after) = (&text[..name.start], &text[name.start + size..]);
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
        let Some(link) = self.backend(backend) else { return };
        if !link.kept.parameters {
            return;
        }
        let suspects = &mut link.kept.suspects;
        let Some(values) = reader::bind_values(message).ok().filter(|_| whole) else {
            link.kept.pins = link.kept.pins.and(Effects::LASTING);
            return;
        };
        for value in values.flatten() {
            let is_name = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'$');
            if !value.is_empty() && value.len() <= 128 && value.iter().all(is_name) {
                suspects.add(Effects::SETTINGS);
                suspects.add_name(&value.to_ascii_lowercase());
            }
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
        self.note_scanned(backend, &found)?;
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

    /// What was found in a text that is about to run; names of settings are the scanner's last.
    fn note_scanned(&mut self, backend: BackendId, found: &Found) -> Option<()> {
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
        self.note_found(backend, found, random);
        if resets {
            self.suspect(backend, Effects::ANY_SETTING);
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
    pub(super) fn note_unnamed(&mut self, backend: BackendId, message: &[u8], whole: bool) {
        match reader::parse(message) {
            Ok(parse) if whole => {
                self.note_text(backend, parse.query);
            }
            _ => self.suspect(backend, Effects::OPAQUE),
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
        if self.note_scanned(backend, &found).is_none() {
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
    fn note_found(&mut self, backend: BackendId, found: &Found, random: u64) {
        let Self { scanner, backends, pools, learned, .. } = self;
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
        link.kept.doubt |= effects.has(Effects::PARSER);
        link.kept.parameters |= effects.has(Effects::PARAMETER);
        effects = effects.without(Effects::PARSER.and(Effects::PARAMETER));
        if effects.has(Effects::RELEARN) {
            learned.forget();
        }
        if let super::BackendState::Linked(client) = link.state {
            link.kept.strange_values |= link.last_values.note(client, effects);
        }
        // Only where somebody asks for last values does it matter who has them.
        let first = effects.has(Effects::LAST_VALUE) && !pool.last_values;
        pool.last_values |= first;
        let sequence = if pool.last_values { Effects::SEQUENCE } else { Effects::NONE };
        let pins = effects.common(Effects::LASTING.and(sequence));
        link.kept.pins = link.kept.pins.and(pins);
        let asked = Effects::RELEARN.and(Effects::LAST_VALUE).and(Effects::TWO_PHASE).and(Effects::LASTING);
        let asked = asked.and(Effects::NOTIFY).and(Effects::RESETS);
        link.kept.suspects.add(effects.without(asked.and(Effects::SEQUENCE)));
        if holds {
            // It, or somebody else, may have decided.
            link.kept.suspects.add(Effects::TWO_PHASE);
        }
        match pool.settings.preserve {
            Some(Transparency::Balanced) => learned.on_text(found, random, &mut link.kept.suspects),
            Some(Transparency::Strict) => link.kept.suspects.add(Effects::OPAQUE),
            Some(Transparency::Fast) | None => {}
        }
        if first {
            let database = pool.key.database.clone();
            self.tell_last_values(&database);
        }
    }

    /// The transaction is over and something is suspected: asks the server what is true.
    pub(super) fn begin_question(&mut self, id: BackendId) {
        let Some(client) = self.client_of(id) else { return };
        let Some(wanted) = self.client(client).map(|client| client.wanted) else { return };
        let mut sql = std::mem::take(&mut self.sql);
        sql.clear();
        let link = self.backends.get_mut(id.index, id.generation).expect("the caller has looked it up");
        let suspects = std::mem::take(&mut link.kept.suspects);
        link.kept.refused = false;
        let known = self.vectors.settings(wanted).iter().map(|setting| &*setting.name);
        suspects.write_question(known, &link.kept.held, &mut sql);
        let undone = std::mem::take(&mut link.kept.undone);
        link.kept.asked = Some(Box::new(Asked { suspects, answer: Answer::default(), undone }));
        let asked = self.ask_own(id, &sql, MARK_CHECK);
        self.sql = sql;
        if !asked {
            self.fail(client, &crate::session::fault::Fault::NoMemory);
        }
    }

    /// A row of the answer.
    pub(super) fn on_check_row(&mut self, id: BackendId, message: &[u8], size: u32) {
        let Some(link) = self.backend(id) else { return };
        if let Some(share) = link.kept.share.as_mut().filter(|share| share.is_asking()) {
            if message.len() == size as usize {
                share.add_row(message);
            }
            return;
        }
        let Some(asked) = link.kept.asked.as_mut() else { return };
        if message.len() < size as usize {
            asked.answer.unreadable = true;
        } else {
            asked.answer.add_row(message);
        }
    }

    /// The answer is whole.
    pub(super) fn on_check_done(&mut self, id: BackendId) {
        let now = self.io.now();
        let Some(client_id) = self.client_of(id) else { return };
        let Some(asked) = self.backend(id).and_then(|backend| backend.kept.asked.take()) else { return };
        let Asked { mut suspects, answer, undone } = *asked;
        let Self { clients, backends, pools, vectors, learned, .. } = self;
        let client = clients.get_mut(client_id.index, client_id.generation).expect("a linked client is there");
        let link = backends.get_mut(id.index, id.generation).expect("looked up above");
        let user = &*pools.get(link.pool).key.user;
        let all = suspects.asks_for_all_settings();
        let mut settings = answer.settings_of(vectors.settings(client.wanted), all, user);
        // What it began with and the server's session does not have any more has been reset: so it is what it was.
        let again: Vec<Setting> = match all && !answer.unreadable {
            true => answer.reset_of(vectors.settings(client.startup)).cloned().collect(),
            false => Vec::new(),
        };
        let told: Vec<Setting> = again
            .iter()
            .filter(|setting| parameters::is_tracked(setting.name.as_bytes()))
            .filter(|setting| vectors.get(client.wanted, &setting.name) != Some(&*setting.value))
            .cloned()
            .collect();
        settings.retain(|setting| !again.iter().any(|reset| reset.name == setting.name));
        let (has, connection) = (settings.clone(), client.connection);
        settings.extend(again);
        let mut unknown = answer.unreadable;
        let mut changed = false;
        match vectors.intern(settings) {
            Ok(made) => {
                changed = made != client.wanted;
                vectors.let_go(std::mem::replace(&mut client.wanted, made));
                match vectors.intern(has) {
                    Ok(has) => vectors.let_go(std::mem::replace(&mut link.has, has)),
                    Err(_full) => unknown = true,
                }
            }
            Err(_full) => unknown = true,
        }
        let wanted = client.wanted;
        // Until the listener has seen the mark, the move goes on; what is known of the channels may be old by now.
        if link.kept.share.as_ref().is_some_and(|share| share.is_open()) {
            link.kept.share = None;
        }
        let before = link.kept.pins;
        learned.on_answer(suspects.texts(), suspects.finding(before, &answer, changed, undone));
        let unset: Vec<Box<str>> =
            suspects.names().filter_map(|name| std::str::from_utf8(name).ok()).map(Into::into).collect();
        let mut pins = suspects.pins(before, &answer);
        if unknown {
            // What it is set to cannot be remembered: it stays where it is.
            pins = pins.and(Effects::LASTING);
        }
        if !pins.has(Effects::TWO_PHASE) {
            link.kept.held.clear();
        }
        link.kept.pins = pins;
        link.kept.pinned_since = (!pins.is_empty()).then(|| link.kept.pinned_since.unwrap_or(now));
        if link.kept.suspects.is_empty() {
            // The memory is used again.
            suspects.clear();
            link.kept.suspects = suspects;
        }
        for name in unset {
            self.note_unset(id, &name, None);
        }
        let has = self.backends.get(id.index, id.generation).expect("looked up above").has;
        self.tell_settings(connection, told);
        if has != wanted && !self.replay(id, wanted) {
            self.fail(client_id, &crate::session::fault::Fault::NoMemory);
        }
    }

    /// What a backend has now may be the server's own value. Where the client began its session with another, that would
    /// look as if it had been reset (`Answer::reset_of`). `value`: as reported.
    pub(super) fn note_unset(&mut self, id: BackendId, name: &str, value: Option<&str>) {
        let Some(link) = self.backends.get_mut(id.index, id.generation) else { return };
        let own = &self.pools.get(link.pool).parameters;
        let is_own = |value: &str| own.iter().any(|(known, own)| known.eq_ignore_ascii_case(name) && **own == *value);
        if value.is_some_and(|value| !is_own(value)) || link.unset.iter().any(|known| **known == *name) {
            return;
        }
        if parameters::is_tracked(name.as_bytes()) || link.unset.len() < UNSET_MAX {
            link.unset.push(name.into());
        } else {
            // All that the server does not report is set for whoever has the backend next.
            link.touched = true;
        }
    }

    /// Whether a setting that the client began its session with may be the server's own on a backend that it gets.
    pub(super) fn has_unset(&self, id: ClientId, backend: BackendId) -> bool {
        let link = self.backends.get(backend.index, backend.generation);
        let client = self.clients.get(id.index, id.generation);
        link.zip(client).is_some_and(|(link, client)| {
            link.unset.iter().any(|name| self.vectors.get(client.startup, name).is_some())
        })
    }

    /// The client is told what its settings are.
    fn tell_settings(&mut self, connection: crate::ids::ConnectionId, settings: Vec<Setting>) {
        for setting in settings {
            self.write(connection, setting.name.len() + setting.value.len() + 16, |writer| {
                let name = parameters::reported_name(&setting.name);
                let _ = writer.parameter_status(name.as_bytes(), setting.value.as_bytes());
            });
        }
    }

    /// The backend gets the settings of `wanted`. `false`: no memory.
    fn replay(&mut self, id: BackendId, wanted: VectorId) -> bool {
        if !self.ask_settings(id, wanted, super::link::MARK_REPLAY) {
            return false;
        }
        let held = self.vectors.hold(wanted);
        let link = self.backends.get_mut(id.index, id.generation).expect("the caller has looked it up");
        self.vectors.let_go(std::mem::replace(&mut link.has, held));
        true
    }

    /// The question was refused (a statement_timeout, a role without rights): nothing is known, so the client stays.
    pub(super) fn on_check_error(&mut self, id: BackendId, text: &str) {
        let now = self.io.now();
        log::debug!("the state of a session could not be asked for: {text}; its client keeps its backend");
        let Some(link) = self.backend(id) else { return };
        link.kept.asked = None;
        link.kept.pins = link.kept.pins.and(Effects::LASTING);
        link.kept.pinned_since = link.kept.pinned_since.or(Some(now));
    }

    /// The client stays on its backend between transactions.
    pub(super) fn note_pinned(&mut self, id: BackendId) {
        let now = self.io.now();
        if let Some(link) = self.backend(id) {
            link.kept.pinned_since = link.kept.pinned_since.or(Some(now));
        }
    }

    /// EXECUTE or DEALLOCATE of a statement that the client prepared by the protocol: it has another name here.
    #[allow(clippy::too_many_arguments)]
    fn splice(
        &mut self,
        id: ClientId,
        backend: BackendId,
        (before, name, after): (&[u8], &[u8], &[u8]),
        deallocates: bool,
        request: Request,
        bytes: &Slice,
        run: &mut usize,
    ) -> Option<Verdict> {
        let own: Vec<u8> = match name {
            [b'"', inner @ .., b'"'] => String::from_utf8_lossy(inner).replace("\"\"", "\"").into_bytes(),
            _ => name.to_ascii_lowercase(),
        };
        let number = self.find_name(id, &own)?;
        if self.backend(backend).is_some_and(|link| link.pipeline.is_undecided()) {
            return Some(self.pause(id));
        }
        self.flush_run(id, bytes, *run, request.at);
        *run = request.at;
        let had = self.backend(backend).is_some_and(|link| link.prepared.touch(number));
        let ready = match deallocates && !had {
            true => self.stand_in(backend),
            false => self.ensure(backend, number).map(|()| number),
        };
        let mut room = [0; 16];
        let there = prepared::backend_name(ready.as_ref().map_or(number, |there| *there), &mut room);
        let sent = ready.is_ok()
            && (had || {
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

    /// The server has deallocated a statement under the name that it has there.
    pub(super) fn on_deallocated(&mut self, id: BackendId, number: Number) {
        let Some(client) = self.client_of(id) else { return };
        if let Some(link) = self.backend(id) {
            link.prepared.remove(number);
        }
        let mut closed = false;
        self.with_names(client, |names| {
            if let Some(name) = names.name_of(number).map(<[u8]>::to_vec)
                && let Some(found) = names.find(&name)
            {
                names.close(found);
                closed = names.closed(number);
            }
        });
        if closed {
            self.statements.let_go(number);
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
