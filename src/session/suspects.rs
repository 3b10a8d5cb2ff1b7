//! What must be asked about a backend before its client can let go of it, the question, and what the answer means.
//!
//! The rule: the scanner only *suspects*; the server is asked what is true when the transaction is over, and that is
//! believed. So savepoints, errors, SET LOCAL and everything else that decides whether a SET lasts is the server's own
//! business.
//!
//! Owned by the shard of the backend. Pure.

use super::parameters::{self, Setting, write_literal};
use super::scanner::{Effects, Found};
use crate::protocol::reader;

/// What the statements of one client on one backend may have changed.
#[derive(Default)]
pub struct Suspects {
    effects: Effects,
    /// Names of settings, each once, with a zero behind.
    names: Vec<u8>,
    /// Fingerprints of texts that are still being learned.
    texts: [u64; TEXTS_MAX],
    texts_used: u8,
    /// Of [`Learned`] when they came.
    age: u32,
}

/// Texts on trial in one transaction; more are not learned from it.
const TEXTS_MAX: usize = 8;
/// Bytes of names; past it, all settings are asked about.
const NAMES_SIZE_MAX: usize = 2048;

/// Kinds that the server can be asked about.
const ASKABLE: Effects = Effects::TEMPORARY
    .and(Effects::LISTEN)
    .and(Effects::CURSOR)
    .and(Effects::PREPARED)
    .and(Effects::LOCK)
    .and(Effects::TWO_PHASE);

impl Suspects {
    /// Nothing to ask.
    pub fn is_empty(&self) -> bool {
        self.effects.is_empty()
    }

    /// What is suspected.
    pub fn effects(&self) -> Effects {
        self.effects
    }

    /// Forgets everything, keeps the memory.
    pub fn clear(&mut self) {
        self.effects = Effects::NONE;
        self.names.clear();
        self.texts_used = 0;
    }

    /// Suspects this, too.
    pub fn add(&mut self, effects: Effects) {
        self.effects = self.effects.and(effects);
    }

    /// Suspects a setting.
    pub fn add_name(&mut self, name: &[u8]) {
        if self.names().any(|known| known == name) {
            return;
        }
        if self.names.len() + name.len() >= NAMES_SIZE_MAX {
            // Nobody can ask for a custom one of which the name is not known.
            let custom = name.contains(&b'.');
            self.add(if custom { Effects::ANY_SETTING.and(Effects::LASTING) } else { Effects::ANY_SETTING });
            return;
        }
        self.names.extend_from_slice(name);
        self.names.push(0);
    }

    /// Settings that are suspected by name.
    pub fn names(&self) -> impl Iterator<Item = &[u8]> {
        self.names.split(|&byte| byte == 0).filter(|name| !name.is_empty())
    }

    fn add_text(&mut self, fingerprint: u64, age: u32) {
        if self.age != age {
            // What the others did, they did before something was learned anew.
            self.age = age;
            self.texts_used = 0;
        }
        if let Some(free) = self.texts.get_mut(self.texts_used as usize) {
            *free = fingerprint;
            self.texts_used += 1;
        }
    }

    /// Writes the question. `known`: names of settings that the client has already; `held`: constants, with commas between
    /// them, that name transactions which the client has prepared.
    pub fn write_question<'n>(&self, known: impl Iterator<Item = &'n str>, held: &[u8], sql: &mut Vec<u8>) {
        let all = self.effects.has(Effects::OPAQUE);
        let mut column = |kind: Effects, question: &str| {
            sql.extend_from_slice(if sql.is_empty() { b"SELECT " } else { b"," });
            sql.extend_from_slice(if all || self.effects.has(kind) { question } else { "false" }.as_bytes());
        };
        column(Effects::LISTEN, "EXISTS(SELECT FROM pg_catalog.pg_listening_channels())");
        column(
            Effects::TEMPORARY,
            "EXISTS(SELECT FROM pg_catalog.pg_depend WHERE refclassid OPERATOR(pg_catalog.=) 2615 \
             AND refobjid OPERATOR(pg_catalog.=) pg_catalog.pg_my_temp_schema())",
        );
        column(Effects::CURSOR, "EXISTS(SELECT FROM pg_catalog.pg_cursors WHERE is_holdable)");
        column(
            Effects::PREPARED,
            "EXISTS(SELECT FROM pg_catalog.pg_prepared_statements WHERE NOT pg_catalog.starts_with(name,'qcp_'))",
        );
        column(
            Effects::LOCK,
            "EXISTS(SELECT FROM pg_catalog.pg_locks WHERE locktype OPERATOR(pg_catalog.=) 'advisory' \
             AND pid OPERATOR(pg_catalog.=) pg_catalog.pg_backend_pid())",
        );
        if held.is_empty() {
            sql.extend_from_slice(b",false");
        } else {
            sql.extend_from_slice(
                b",EXISTS(SELECT FROM pg_catalog.pg_prepared_xacts WHERE gid OPERATOR(pg_catalog.=) ANY(ARRAY[",
            );
            sql.extend_from_slice(held);
            sql.extend_from_slice(b"]::pg_catalog.text[]))");
        }
        let any = all || self.effects.has(Effects::ANY_SETTING);
        if !any && !self.effects.has(Effects::SETTINGS) {
            return;
        }
        sql.extend_from_slice(b";");
        if any {
            sql.extend_from_slice(
                // Not `setting`, which has the number without its unit: the same value must look the same each time.
                b"SELECT pg_catalog.lower(name),pg_catalog.current_setting(name,true) FROM pg_catalog.pg_settings \
                  WHERE source OPERATOR(pg_catalog.=) 'session' UNION ALL ",
            );
        }
        sql.extend_from_slice(b"SELECT n,pg_catalog.current_setting(n,true) FROM pg_catalog.unnest(ARRAY[");
        let mut first = true;
        let mut add = |name: &str| {
            if !std::mem::take(&mut first) {
                sql.push(b',');
            }
            write_literal(name, sql);
        };
        for name in self.names() {
            // What is not text is no name that the server knows.
            let name = std::str::from_utf8(name).unwrap_or_default();
            // What the view shows by itself is only there if it is the session's: what has been reset is not.
            if !any || is_hidden(name) || is_withheld(name) {
                add(name);
            }
        }
        if any {
            // The view does not show these.
            for name in known.chain(["role", "session_authorization"]).filter(|name| is_hidden(name)) {
                if !self.names().any(|own| own == name.as_bytes()) {
                    add(name);
                }
            }
        }
        sql.extend_from_slice(b"]::pg_catalog.text[]) n");
    }

    /// The login may not set what only superusers may. Where that is suspected by name, whether the session has set it is
    /// asked too: its value does not say so.
    pub fn ask_what_superusers_set(&mut self) {
        let is_theirs = |name| std::str::from_utf8(name).is_ok_and(parameters::is_of_superusers);
        if self.names().any(is_theirs) {
            self.add(Effects::ANY_SETTING);
        }
    }

    /// Whether the answer says that the session has settings which its login may not set, as another role or a function
    /// may have: no replay could set them, or take them back. Those that it was asked of and has not are left out.
    pub fn take_forbidden(&self, answer: &mut Answer) -> bool {
        let mut found = false;
        let named = |name: &str| self.names().any(|known| known == name.as_bytes());
        let told: Vec<Box<str>> = answer.settings.iter().map(|(name, _)| name.clone()).collect();
        answer.settings.retain(|(name, _)| {
            if !parameters::is_of_superusers(name) {
                return true;
            }
            // Once for its name, once for having been set.
            let count = told.iter().filter(|told| *told == name).count();
            let is_set = count > usize::from(named(name));
            found |= is_set;
            is_set
        });
        found
    }

    /// Whether the answer says all that there is to be said about settings.
    pub fn asks_for_all_settings(&self) -> bool {
        self.effects.has(Effects::OPAQUE.and(Effects::ANY_SETTING))
    }

    /// What pins now, by the answer; `before`: what did. What was not asked about is as it was.
    pub fn pins(&self, before: Effects, answer: &Answer) -> Effects {
        let asked = if self.effects.has(Effects::OPAQUE) { ASKABLE } else { self.effects.common(ASKABLE) };
        before.without(asked).and(answer.pins).and(self.effects.common(Effects::LASTING))
    }

    /// What the answer says of the texts on trial: `undone`, where an error or a ROLLBACK has taken something back.
    pub fn finding(&self, before: Effects, answer: &Answer, settings_changed: bool, undone: bool) -> Finding {
        let hidden = answer.pins.without(self.effects).without(before);
        if !hidden.is_empty() || settings_changed && !self.effects.has(Effects::SETTINGS.and(Effects::ANY_SETTING)) {
            Finding::Surprise
        } else if undone || settings_changed || !answer.pins.is_empty() || answer.unreadable {
            Finding::Nothing
        } else {
            Finding::Clean
        }
    }

    /// Texts on trial.
    fn texts(&self) -> &[u64] {
        &self.texts[..self.texts_used as usize]
    }
}

/// Settings that the view shows to few: whoever asks for one by its name gets an error instead, which is an answer, too.
fn is_withheld(name: &str) -> bool {
    matches!(name, "dynamic_library_path" | "session_preload_libraries")
}

/// Settings that `pg_settings` does not show: custom ones and roles.
fn is_hidden(name: &str) -> bool {
    name.contains('.') || name == "role" || name == "session_authorization"
}

/// What an answer says of the texts behind which it was asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Finding {
    /// They change something that they do not say.
    Surprise,
    /// They were carried out and changed nothing.
    Clean,
    /// What there is may be what other texts said, or have been there before; or an error or a ROLLBACK took back whatever
    /// they did.
    Nothing,
}

/// What the server said.
#[derive(Default, Debug)]
pub struct Answer {
    /// Kinds of state that are there.
    pub pins: Effects,
    /// Settings with their values; `None`: the server knows no such setting.
    pub settings: Vec<(Box<str>, Option<Box<str>>)>,
    /// Something in it could not be read.
    pub unreadable: bool,
}

impl Answer {
    /// Takes a DataRow.
    pub fn add_row(&mut self, message: &[u8]) {
        const KINDS: [Effects; 6] = [
            Effects::LISTEN,
            Effects::TEMPORARY,
            Effects::CURSOR,
            Effects::PREPARED,
            Effects::LOCK,
            Effects::TWO_PHASE,
        ];
        let Ok(values) = reader::data_row(message) else {
            self.unreadable = true;
            return;
        };
        let values: Vec<Option<&[u8]>> = values.collect();
        match values[..] {
            [Some(name), value] => {
                let value = value.map(std::str::from_utf8).transpose();
                match (std::str::from_utf8(name), value) {
                    (Ok(name), Ok(value)) => self.settings.push((name.into(), value.map(Into::into))),
                    _ => self.unreadable = true,
                }
            }
            _ if values.len() == KINDS.len() => {
                for (kind, value) in KINDS.into_iter().zip(&values) {
                    if *value == Some(b"t") {
                        self.pins = self.pins.and(kind);
                    }
                }
            }
            _ => self.unreadable = true,
        }
    }

    /// Of the settings that a client began its session with, those that have no value of the session's any more. To be
    /// asked only where the answer has all that there are. `resets`: custom ones may have been reset, which leaves them empty.
    pub fn reset_of<'s>(&self, startup: &'s [Setting], resets: bool) -> impl Iterator<Item = &'s Setting> {
        let answered = |name: &str| self.settings.iter().find(|(known, _)| **known == *name);
        startup.iter().filter(move |setting| match answered(&setting.name) {
            None => !is_hidden(&setting.name),
            Some((name, value)) => resets && name.contains('.') && value.as_deref().is_none_or(str::is_empty),
        })
    }

    /// The client's settings by this answer. `all`: settings that are not in it have no value of the session's. `user`:
    /// who is logged in.
    pub fn settings_of(&self, before: &[Setting], all: bool, user: &str) -> Vec<Setting> {
        let answered = |name: &str| self.settings.iter().find(|(known, _)| **known == *name);
        let keeps = |setting: &&Setting| {
            // What the server reports by itself is known from there.
            let reported = parameters::is_tracked(setting.name.as_bytes());
            reported || answered(&setting.name).is_none() && !all
        };
        let is_own = |name: &str| {
            // A transaction's own, of which the view tells at any time.
            let passes = matches!(name, "transaction_isolation" | "transaction_read_only" | "transaction_deferrable");
            !parameters::is_tracked(name.as_bytes()) && !passes && name != "seed"
        };
        // A role that nobody chose is none of the client's settings.
        let is_default = |name: &str, value: &str| match name {
            "role" => value == "none",
            "session_authorization" => value == user,
            _ => false,
        };
        let kept = before.iter().filter(keeps).cloned();
        let told = self.settings.iter().filter_map(|(name, value)| {
            let value = value.clone()?;
            let wanted = is_own(name) && !is_default(name, &value);
            wanted.then(|| Setting { name: name.clone(), value })
        });
        kept.chain(told).collect()
    }
}

/// What is known of texts by having asked behind them: those that never changed anything but what they say are asked
/// about only now and then. A table of fixed size; texts that fall on one place displace each other.
///
/// What a text does depends on where it runs, and under which settings: its key is made of that, too.
pub struct Learned {
    slots: Box<[Slot]>,
    /// How often all was forgotten.
    age: u32,
    /// Transactions that are changing what texts do, on all shards: until they end nothing is learned.
    changes: u32,
}

#[derive(Clone, Copy, Default)]
struct Slot {
    fingerprint: u32,
    /// Clean answers in a row; [`ALWAYS`]: it was found to change something.
    clean: u8,
}

/// Texts that are remembered.
const SLOTS: usize = 4096;
/// So many clean answers make a text trusted.
const TRIALS: u8 = 3;
const ALWAYS: u8 = u8::MAX;
/// One in so many executions of a trusted text is asked about all the same.
const SAMPLE: u64 = 1000;

impl Default for Learned {
    fn default() -> Self {
        Self { slots: vec![Slot::default(); SLOTS].into_boxed_slice(), age: 0, changes: 0 }
    }
}

impl Learned {
    /// Bytes of the table, for the sums.
    pub const fn size() -> usize {
        SLOTS * size_of::<Slot>()
    }

    /// A transaction begins to change what texts do.
    pub fn begin_change(&mut self) {
        self.changes += 1;
        self.forget();
    }

    /// It has ended.
    pub fn end_change(&mut self) {
        self.changes = self.changes.saturating_sub(1);
        self.forget();
    }

    /// Nothing is known any more.
    fn forget(&mut self) {
        self.slots.fill(Slot::default());
        self.age = self.age.wrapping_add(1);
    }

    /// A text is about to run: whether it must be asked about. `place`: where it runs, and under which settings; the same for the
    /// same; `None`: nothing can be learned now. `random` chooses the samples.
    pub fn on_text(&mut self, found: &Found, place: Option<u64>, random: u64, suspects: &mut Suspects) {
        if found.effects.has(Effects::OPAQUE) {
            return;
        }
        // What EXECUTE or FETCH does, another text has said.
        let learns = self.changes == 0 && !found.effects.has(Effects::EXECUTES);
        let Some(key) = place.filter(|_| learns) else {
            suspects.add(Effects::OPAQUE);
            return;
        };
        let key = found.fingerprint ^ key;
        let (place, mark) = place_of(key);
        let slot = &mut self.slots[place];
        if slot.fingerprint != mark {
            *slot = Slot { fingerprint: mark, clean: 0 };
        }
        if slot.clean < TRIALS || slot.clean == ALWAYS || random.is_multiple_of(SAMPLE) {
            suspects.add(Effects::OPAQUE);
            suspects.add_text(key, self.age);
        }
    }

    /// What was found behind texts on trial.
    pub fn on_answer(&mut self, suspects: &Suspects, finding: Finding) {
        if suspects.age != self.age {
            return;
        }
        for &key in suspects.texts() {
            let (place, mark) = place_of(key);
            let slot = &mut self.slots[place];
            // Another may have taken its place meanwhile.
            if slot.fingerprint != mark {
                continue;
            }
            slot.clean = match (finding, slot.clean) {
                (Finding::Surprise, _) | (_, ALWAYS) => ALWAYS,
                (Finding::Clean, clean) => (clean + 1).min(TRIALS),
                (Finding::Nothing, clean) => clean,
            };
        }
    }
}

/// Where a text stands in the table, and what tells it from others there.
fn place_of(key: u64) -> (usize, u32) {
    ((key >> 32) as usize % SLOTS, key as u32)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::Writer;
    use crate::session::scanner::Scanner;

    fn suspects(text: &str) -> Suspects {
        let mut scanner = Scanner::default();
        let found = scanner.scan(text.as_bytes(), false);
        let mut suspects = Suspects::default();
        suspects.add(found.effects);
        for name in scanner.names() {
            suspects.add_name(name);
        }
        suspects
    }

    fn question(suspects: &Suspects, known: &[&str]) -> String {
        let mut sql = Vec::new();
        suspects.write_question(known.iter().copied(), b"", &mut sql);
        String::from_utf8(sql).unwrap()
    }

    fn row(values: &[Option<&str>]) -> Vec<u8> {
        let mut room = [0; 512];
        let mut writer = Writer::new(&mut room);
        let values: Vec<Option<&[u8]>> = values.iter().map(|value| value.map(str::as_bytes)).collect();
        writer.data_row(&values).unwrap();
        writer.written().to_vec()
    }

    fn setting(name: &str, value: &str) -> Setting {
        Setting { name: name.into(), value: value.into() }
    }

    #[test]
    fn only_what_is_suspected_is_asked() {
        let locks = question(&suspects("select pg_advisory_lock(1)"), &[]);
        assert!(locks.starts_with("SELECT false,false,false,false,EXISTS(") && !locks.contains(';'), "{locks}");
        let settings = question(&suspects("set work_mem = 1; set work_mem = 2; set \"my\".\"o'x\" = 1"), &["other"]);
        assert!(settings.ends_with("unnest(ARRAY['work_mem','my.o''x']::pg_catalog.text[]) n"), "{settings}");
        assert!(!settings.contains("pg_settings"));
        let mut prepared = suspects("select 1");
        prepared.add(Effects::TWO_PHASE);
        let mut sql = Vec::new();
        prepared.write_question([].into_iter(), b"'a','b'", &mut sql);
        let sql = String::from_utf8(sql).unwrap();
        assert!(sql.ends_with("gid OPERATOR(pg_catalog.=) ANY(ARRAY['a','b']::pg_catalog.text[]))"), "{sql}");
        let all = question(&suspects("do ''"), &["my.known", "work_mem"]);
        // As it is asked by name, or a value with a unit would seem to change.
        assert!(all.contains("current_setting(name,true) FROM pg_catalog.pg_settings"), "{all}");
        assert!(
            all.contains("pg_settings") && all.contains("ARRAY['my.known','role','session_authorization']"),
            "{all}"
        );
    }

    #[test]
    fn pins_are_what_the_answer_says_of_what_was_asked() {
        let mut answer = Answer::default();
        answer.add_row(&row(&[Some("f"), Some("t"), Some("f"), Some("f"), Some("f"), Some("f")]));
        let before = Effects::LISTEN.and(Effects::LOCK).and(Effects::LASTING);
        let suspects = suspects("listen a; create temp table t (a int)");
        assert_eq!(suspects.pins(before, &answer), Effects::TEMPORARY.and(Effects::LOCK).and(Effects::LASTING));
        let finding = |before, changed, undone| suspects.finding(before, &answer, changed, undone);
        assert_eq!(finding(before, false, false), Finding::Nothing, "the temporary table is the text's own");
        assert_eq!(finding(before, true, false), Finding::Surprise);
        assert_eq!(finding(before, true, true), Finding::Surprise);
    }

    #[test]
    fn settings_are_what_the_answer_says() {
        let mut answer = Answer::default();
        for (name, value) in [
            ("work_mem", Some("7MB")),
            ("my.gone", None),
            ("role", Some("none")),
            ("session_authorization", Some("me")),
            ("transaction_read_only", Some("on")),
            ("datestyle", Some("ISO")),
        ] {
            answer.add_row(&row(&[Some(name), value]));
        }
        assert!(!answer.unreadable);
        let before =
            [setting("datestyle", "German"), setting("my.gone", "x"), setting("other", "1"), setting("role", "r")];
        let some = answer.settings_of(&before, false, "me");
        assert_eq!(some, [setting("datestyle", "German"), setting("other", "1"), setting("work_mem", "7MB")]);
        let all = answer.settings_of(&before, true, "me");
        assert_eq!(all, [setting("datestyle", "German"), setting("work_mem", "7MB")]);
        answer.add_row(&row(&[Some("a"), Some("b"), Some("c")]));
        assert!(answer.unreadable);
    }

    #[test]
    fn what_the_login_may_not_set_is_found() {
        let mut suspects = suspects("set log_statement = 'all'; set work_mem = 1");
        assert!(!suspects.asks_for_all_settings());
        suspects.ask_what_superusers_set();
        assert!(suspects.asks_for_all_settings(), "a value does not say who has set it");
        let answer = |names: &[&str]| {
            let mut answer = Answer::default();
            for name in names {
                answer.add_row(&row(&[Some(name), Some("x")]));
            }
            answer
        };
        let mut not_set = answer(&["work_mem", "log_statement", "work_mem"]);
        assert!(!suspects.take_forbidden(&mut not_set));
        assert_eq!(not_set.settings.len(), 2);
        assert!(suspects.take_forbidden(&mut answer(&["log_statement", "work_mem", "log_statement"])));
        assert!(suspects.take_forbidden(&mut answer(&["session_replication_role"])), "by a function");
        let mut own = super::tests::suspects("set work_mem = 1");
        own.ask_what_superusers_set();
        assert!(!own.asks_for_all_settings() && !own.take_forbidden(&mut answer(&["work_mem"])));
    }

    #[test]
    fn what_was_reset_comes_back() {
        let mut answer = Answer::default();
        for (name, value) in [("work_mem", Some("7MB")), ("app.x", Some("")), ("app.y", Some("2")), ("app.z", None)] {
            answer.add_row(&row(&[Some(name), value]));
        }
        let startup = ["work_mem", "statement_timeout", "app.x", "app.y", "app.z", "app.other"];
        let startup = startup.map(|name| setting(name, "1"));
        let reset = |resets| answer.reset_of(&startup, resets).map(|setting| &*setting.name).collect::<Vec<_>>();
        assert_eq!(reset(true), ["statement_timeout", "app.x", "app.z"]);
        assert_eq!(reset(false), ["statement_timeout"]);
        // One of the server's is asked for by name only where it is not seen by its source.
        let mut asked = suspects("reset work_mem; set app.x = 1");
        assert!(question(&asked, &[]).ends_with("ARRAY['work_mem','app.x']::pg_catalog.text[]) n"));
        asked.add(Effects::ANY_SETTING);
        let all = question(&asked, &[]);
        assert!(all.ends_with("ARRAY['app.x','role','session_authorization']::pg_catalog.text[]) n"), "{all}");
    }

    #[test]
    fn custom_settings_that_are_too_many_to_be_named_stay() {
        let mut suspects = Suspects::default();
        for number in 0..300 {
            suspects.add_name(format!("setting_{number}").as_bytes());
        }
        assert_eq!(suspects.pins(Effects::NONE, &Answer::default()), Effects::NONE);
        suspects.add_name(b"app.a_name_for_which_there_is_no_room_any_more");
        assert_eq!(suspects.pins(Effects::NONE, &Answer::default()), Effects::LASTING);
    }

    #[test]
    fn settings_of_the_session_alone() {
        let mut answer = Answer::default();
        for name in ["transaction_isolation", "transaction_app.x", "transaction_timeout", "seed"] {
            answer.add_row(&row(&[Some(name), Some("1")]));
        }
        let settings = answer.settings_of(&[], true, "me");
        assert_eq!(settings, [setting("transaction_app.x", "1"), setting("transaction_timeout", "1")]);
    }

    /// Has `text` run at `place`; whether it is asked about.
    fn runs(learned: &mut Learned, text: &str, place: Option<u64>, random: u64, finding: Finding) -> bool {
        let (mut scanner, mut suspects) = (Scanner::default(), Suspects::default());
        let found = scanner.scan(text.as_bytes(), false);
        learned.on_text(&found, place, random, &mut suspects);
        learned.on_answer(&suspects, finding);
        suspects.effects().has(Effects::OPAQUE)
    }

    #[test]
    fn a_text_is_trusted_after_clean_answers() {
        let mut learned = Learned::default();
        let mut asks = |random, finding| runs(&mut learned, "select f(1)", Some(7), random, finding);
        for _ in 0..3 {
            assert!(asks(1, Finding::Nothing), "it is on trial");
            assert!(asks(1, Finding::Clean), "nothing was learned");
        }
        assert!(!asks(1, Finding::Clean));
        assert!(asks(SAMPLE, Finding::Surprise), "a sample");
        assert!(asks(1, Finding::Clean), "it was found to change something");
        assert!(asks(1, Finding::Clean), "once found, never trusted");
        learned.forget();
        assert!(runs(&mut learned, "select f(1)", Some(7), 1, Finding::Clean), "new again");
    }

    #[test]
    fn what_was_learned_holds_where_it_was_learned() {
        let mut learned = Learned::default();
        for (text, place, trusted) in [
            ("select f(1)", Some(7), true),
            ("select f(1)", Some(8), false),
            ("select f(1)", None, false),
            ("execute f(1)", Some(7), false),
            ("explain analyze execute f", Some(7), false),
            ("fetch c", Some(7), false),
        ] {
            assert!(runs(&mut learned, text, place, 1, Finding::Clean), "{text} at {place:?}");
            if trusted || place.is_none() || text.contains('c') && text != "select f(1)" {
                for _ in 0..2 {
                    runs(&mut learned, text, place, 1, Finding::Clean);
                }
                assert_eq!(runs(&mut learned, text, place, 1, Finding::Clean), !trusted, "{text} at {place:?}");
            }
        }
    }

    #[test]
    fn what_ran_before_all_was_forgotten_teaches_nothing() {
        let (mut learned, mut scanner) = (Learned::default(), Scanner::default());
        let found = scanner.scan(b"select f(1)", false);
        for _ in 0..3 {
            let mut suspects = Suspects::default();
            learned.on_text(&found, Some(7), 1, &mut suspects);
            learned.forget();
            let mut other = Suspects::default();
            learned.on_text(&found, Some(7), 1, &mut other);
            learned.on_answer(&suspects, Finding::Clean);
        }
        let mut suspects = Suspects::default();
        learned.on_text(&found, Some(7), 1, &mut suspects);
        assert!(!suspects.is_empty());
    }

    #[test]
    fn nothing_is_learned_while_what_texts_do_is_being_changed() {
        let mut learned = Learned::default();
        let asks = |learned: &mut Learned| runs(learned, "select f(1)", Some(7), 1, Finding::Clean);
        learned.begin_change();
        learned.begin_change();
        learned.end_change();
        assert!((0..9).all(|_| asks(&mut learned)));
        learned.end_change();
        assert!((0..3).all(|_| asks(&mut learned)));
        assert!(!asks(&mut learned));
        learned.begin_change();
        assert!(asks(&mut learned));
    }
}
