//! The question behind a transaction, and what follows from its answer.

use crate::ids::{BackendId, ClientId, ConnectionId};
use crate::io::Transport;
use crate::session::fault::Fault;
use crate::session::parameters::{self, Setting, VectorId};
use crate::session::scanner::Effects;
use crate::session::suspects::{Answer, Suspects};

use super::super::link::MARK_REPLAY;
use super::Shard;

/// Mark of the question behind a transaction.
pub(in crate::shard) const MARK_CHECK: u32 = 6;
/// Mark of a question that is not the last of those asked at once.
pub(in crate::shard) const MARK_CHECK_AHEAD: u32 = 16;
/// Rows of the answer are read up to this size.
pub(in crate::shard) const ROW_SIZE_MAX: u32 = 16 * 1024;
/// Settings of one backend that are remembered as the server's own.
const UNSET_MAX: usize = 16;

/// A question and what has come of its answer.
pub(in crate::shard) struct Asked {
    pub(super) suspects: Suspects,
    answer: Answer,
    undone: bool,
}

impl<T: Transport> Shard<T> {
    /// The transaction is over and something is suspected: asks the server what is true.
    pub(in crate::shard) fn begin_question(&mut self, id: BackendId) {
        if let Some(link) = self.backend(id) {
            link.kept.settles = link.kept.doubt;
            link.kept.changes = false;
        }
        self.end_changes();
        let Some(client) = self.client_of(id) else { return };
        let Some(wanted) = self.client(client).map(|client| client.wanted) else { return };
        let mut sql = std::mem::take(&mut self.sql);
        sql.clear();
        let link = self.backends.get_mut(id.index, id.generation).expect("the caller has looked it up");
        let mut suspects = std::mem::take(&mut link.kept.suspects);
        if !self.pools.get(link.pool).is_superusers {
            suspects.ask_what_superusers_set();
        }
        link.kept.refused = false;
        let known = self.vectors.settings(wanted).iter().map(|setting| &*setting.name);
        suspects.write_question(known, &link.kept.held, &mut sql);
        let undone = std::mem::take(&mut link.kept.undone);
        link.kept.asked = Some(Box::new(Asked { suspects, answer: Answer::default(), undone }));
        let asked = self.ask_question(id, client, sql);
        if !asked {
            self.fail(client, &Fault::NoMemory);
        }
    }

    /// Asks so that what the client has set for its own statements does not hold for these. `false`: no memory.
    fn ask_question(&mut self, id: BackendId, client: ClientId, mut sql: Vec<u8>) -> bool {
        let link = self.backends.get(id.index, id.generation).expect("the caller has looked it up");
        let client = self.clients.get(client.index, client.generation).expect("a linked client is there");
        let names = || link.kept.asked.iter().flat_map(|asked| asked.suspects.names());
        let may_have = |name: &str| {
            self.vectors.get(client.wanted, name).is_some() || names().any(|known| known == name.as_bytes())
        };
        let waits = may_have("default_transaction_isolation") || may_have("default_transaction_deferrable");
        // Whether what it began with has been reset, only an answer without a value can say.
        let is_limited = may_have(parameters::STATEMENT_TIMEOUT)
            && self.vectors.get(client.startup, parameters::STATEMENT_TIMEOUT).is_none();
        if is_limited {
            sql.splice(0..0, *b"SET LOCAL statement_timeout = 0;");
        }
        if waits {
            sql.splice(0..0, parameters::NO_WAITING.iter().copied());
        }
        let mark = if is_limited { MARK_CHECK_AHEAD } else { MARK_CHECK };
        let mut asked = self.ask_own(id, &sql, mark);
        if asked && is_limited {
            // The last value of a name is the one that is taken.
            sql.clear();
            sql.extend_from_slice(if waits { parameters::NO_WAITING } else { b"" });
            sql.extend_from_slice(
                b"SELECT n,pg_catalog.current_setting(n,true) FROM pg_catalog.unnest(ARRAY['statement_timeout']) n",
            );
            asked = self.ask_own(id, &sql, MARK_CHECK);
        }
        self.sql = sql;
        asked
    }

    /// A row of the answer.
    pub(in crate::shard) fn on_check_row(&mut self, id: BackendId, message: &[u8], size: u32) {
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

    /// What the login may not set, no replay can set elsewhere, or take back here: who has it stays.
    pub(in crate::shard) fn keep_forbidden(&mut self, id: BackendId) {
        let Some(link) = self.backends.get_mut(id.index, id.generation) else { return };
        let Some(asked) = link.kept.asked.as_mut() else { return };
        link.kept.unanswered = None;
        if !self.pools.get(link.pool).is_superusers && asked.suspects.take_forbidden(&mut asked.answer) {
            link.kept.pins = link.kept.pins.and(Effects::LASTING);
        }
    }

    /// The answer is whole.
    pub(in crate::shard) fn on_check_done(&mut self, id: BackendId) {
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
            true => {
                let resets = suspects.effects().has(Effects::RESETS);
                answer.reset_of(vectors.settings(client.startup), resets).cloned().collect()
            }
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
        // What a name is that is not ASCII depends on the encoding of whoever has the backend.
        let mut unknown = answer.unreadable || settings.iter().any(|setting| !setting.name.is_ascii());
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
        learned.on_answer(&suspects, suspects.finding(before, &answer, changed, undone));
        let unset: Vec<Box<str>> =
            suspects.names().filter_map(|name| std::str::from_utf8(name).ok()).map(Into::into).collect();
        let mut pins = suspects.pins(before, &answer);
        if unknown {
            // What it is set to cannot be remembered: it stays where it is.
            pins = pins.and(Effects::LASTING);
        }
        if std::mem::take(&mut link.kept.settles) && !unknown {
            (link.kept.doubt, link.kept.path) = (false, 0);
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
            self.fail(client_id, &Fault::NoMemory);
        }
    }

    /// What a backend has now may be the server's own value. Where the client began its session with another, that would
    /// look as if it had been reset (`Answer::reset_of`). `value`: as reported.
    pub(in crate::shard) fn note_unset(&mut self, id: BackendId, name: &str, value: Option<&str>) {
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
    pub(in crate::shard) fn has_unset(&self, id: ClientId, backend: BackendId) -> bool {
        let link = self.backends.get(backend.index, backend.generation);
        let client = self.clients.get(id.index, id.generation);
        link.zip(client).is_some_and(|(link, client)| {
            link.unset.iter().any(|name| self.vectors.get(client.startup, name).is_some())
        })
    }

    /// The client is told what its settings are.
    pub(super) fn tell_settings(&mut self, connection: ConnectionId, settings: Vec<Setting>) {
        for setting in settings {
            self.write(connection, setting.name.len() + setting.value.len() + 16, |writer| {
                let name = parameters::reported_name(&setting.name);
                let _ = writer.parameter_status(name.as_bytes(), setting.value.as_bytes());
            });
        }
    }

    /// The backend gets the settings of `wanted`. `false`: no memory.
    pub(super) fn replay(&mut self, id: BackendId, wanted: VectorId) -> bool {
        if !self.ask_settings(id, wanted, MARK_REPLAY) {
            return false;
        }
        let held = self.vectors.hold(wanted);
        let link = self.backends.get_mut(id.index, id.generation).expect("the caller has looked it up");
        self.vectors.let_go(std::mem::replace(&mut link.has, held));
        true
    }

    /// The question was refused (a cancel, a statement_timeout, a role without rights): nothing is known, so the client
    /// stays until it is answered.
    pub(in crate::shard) fn on_check_error(&mut self, id: BackendId, text: &str) {
        log::debug!("the state of a session could not be asked for: {text}; its client keeps its backend");
        let Some(link) = self.backend(id) else { return };
        let (began, kept) = (link.asked, &mut link.kept);
        let Some(asked) = kept.asked.take() else { return };
        kept.suspects.add(asked.suspects.effects());
        for name in asked.suspects.names() {
            kept.suspects.add_name(name);
        }
        kept.undone |= asked.undone;
        let before = kept.unanswered.filter(|(at, _)| *at == began).map_or(0, |(_, times)| times);
        kept.unanswered = Some((began, before + 1));
    }
}
