//! One statement: its first words decide what it may change, and some words do wherever they stand.

use super::body::look_inside;
use super::lexer::{Kind, Token, Word};
use super::print;
use super::skim::Cursor;
use super::{COMPUTED, Effects, IDENTIFIER_SIZE_MAX, NAME_SIZE_MAX, Names, Only, is_lasting};

/// Words that are the first, or the second, of so many statements that they are looked for first of all.
mod known {
    use super::print::piece_of;

    macro_rules! words {
        ($($name:ident $word:literal)*) => { $(pub(super) const $name: u64 = piece_of($word);)* };
    }

    words! {
        SELECT b"select" UPDATE b"update" DELETE b"delete" WITH b"with" VALUES b"values" BEGIN b"begin" START b"start"
        COMMIT b"commit" END b"end" ROLLBACK b"rollback" RELEASE b"release" FETCH b"fetch" SHOW b"show" ANALYZE b"analyze"
        COMMENT b"comment" GRANT b"grant" REVOKE b"revoke" TRUNCATE b"truncate" INSERT b"insert" COPY b"copy"
        CREATE b"create" ALTER b"alter" DROP b"drop" TABLE b"table" INDEX b"index" ROLE b"role" USER b"user" TYPE b"type"
        SEQUENCE b"sequence" OR b"or" REPLACE b"replace" TEMP b"temp"
    }
}

pub(super) struct Statement<'s, 'c, 't> {
    pub(super) names: &'s mut Names,
    pub(super) cursor: &'c mut Cursor<'t>,
    pub(super) effects: Effects,
    pub(super) only: Option<Only>,
    /// It may contain an EXECUTE.
    pub(super) explains: bool,
    /// It defines something.
    pub(super) defines: bool,
}

impl Statement<'_, '_, '_> {
    pub(super) fn add(&mut self, effects: Effects) {
        self.effects = self.effects.and(effects);
    }

    pub(super) fn next(&mut self) -> Token {
        self.cursor.next()
    }

    pub(super) fn word(&self, token: &Token) -> Word {
        match token.kind {
            Kind::Word => Word::new(&self.cursor.text[token.start..token.end]),
            _ => Word::new(b""),
        }
    }

    /// A word of up to 8 bytes, as [`known`] ones are written; zero for all else.
    fn short_word(&self, token: &Token) -> u64 {
        let size = token.end - token.start;
        if token.kind != Kind::Word || size > 8 {
            return 0;
        }
        match self.cursor.text[token.start..].first_chunk() {
            Some(bytes) => print::piece(bytes, size),
            None => print::piece_of(self.bytes(token)),
        }
    }

    pub(super) fn bytes(&self, token: &Token) -> &[u8] {
        &self.cursor.text[token.start..token.end]
    }

    /// Reads to the end of the statement; `false`: it cannot be read.
    pub(super) fn read(&mut self, first: Token) -> bool {
        match self.short_word(&first) {
            known::SELECT
            | known::UPDATE
            | known::DELETE
            | known::WITH
            | known::VALUES
            | known::BEGIN
            | known::START
            | known::COMMIT
            | known::END
            | known::ROLLBACK
            | known::RELEASE
            | known::SHOW
            | known::ANALYZE
            | known::COMMENT
            | known::GRANT
            | known::REVOKE
            | known::TRUNCATE => return self.read_on(),
            // A column's default may be a sequence.
            known::INSERT | known::COPY => {
                self.add(Effects::SEQUENCE);
                return self.read_on();
            }
            known::FETCH => {
                self.add(Effects::EXECUTES);
                return self.read_on();
            }
            first @ (known::CREATE | known::ALTER | known::DROP) => {
                self.explains = first == known::CREATE;
                return self.read_definition(first == known::ALTER);
            }
            _ => {}
        }
        let word = self.word(&first);
        match word.get() {
            b"set" => return self.read_set(),
            b"reset" => return self.read_reset(),
            b"discard" => {
                let what = self.next();
                let what = self.word(&what);
                self.add(
                    Effects::ANY_SETTING
                        .and(Effects::PARSER)
                        .and(Effects::PREPARED)
                        .and(Effects::TEMPORARY)
                        .and(Effects::LISTEN),
                );
                self.add(Effects::LOCK.and(Effects::CURSOR));
                let all = what.get() == b"all";
                if all {
                    self.add(Effects::RESETS);
                }
                let end = self.next();
                return self.read_end(end, all.then_some(Only::DiscardAll));
            }
            b"listen" | b"unlisten" => self.add(Effects::LISTEN),
            b"notify" => self.add(Effects::NOTIFY),
            b"declare" | b"close" => self.add(Effects::CURSOR),
            b"load" => self.add(Effects::LASTING),
            b"do" => return self.read_do(),
            b"call" => self.add(Effects::OPAQUE.and(Effects::PARSER)),
            b"prepare" => {
                let name = self.next();
                let two_phase = self.word(&name).get() == b"transaction";
                if two_phase {
                    self.add(Effects::TWO_PHASE);
                    return self.read_rest(name);
                }
                return self.read_prepare(name);
            }
            b"execute" => {
                self.add(Effects::EXECUTES);
                let name = self.next();
                return self.read_prepared(name, false);
            }
            b"deallocate" => {
                self.add(Effects::PREPARED);
                let mut name = self.next();
                if self.word(&name).get() == b"prepare" {
                    name = self.next();
                }
                if self.word(&name).get() == b"all" {
                    return self.read_rest(name);
                }
                return self.read_prepared(name, true);
            }
            b"create" | b"alter" | b"drop" => {
                self.explains = word.get() == b"create";
                return self.read_definition(word.get() == b"alter");
            }
            b"explain" => self.explains = true,
            b"fetch" | b"move" => self.add(Effects::EXECUTES),
            // A column's default may be a sequence.
            b"insert" | b"merge" | b"copy" => self.add(Effects::SEQUENCE),
            b"select" | b"update" | b"delete" | b"with" | b"values" | b"table" | b"begin" | b"start" | b"commit"
            | b"end" | b"rollback" | b"abort" | b"savepoint" | b"release" | b"truncate" | b"comment" | b"grant"
            | b"revoke" | b"analyze" | b"analyse" | b"vacuum" | b"reindex" | b"cluster" | b"checkpoint" | b"lock"
            | b"show" | b"refresh" | b"reassign" | b"security" | b"import" => {}
            _ if matches!(first.kind, Kind::Mark(b'(')) => {}
            _ => self.add(Effects::OPAQUE),
        }
        self.read_on()
    }

    /// The rest of a statement, of which nothing has been read.
    pub(super) fn read_on(&mut self) -> bool {
        let mut behind_into = false;
        let next = self.cursor.skim(&mut behind_into);
        self.read_rest_behind(next, behind_into)
    }

    /// The rest of a statement, from `token` on.
    pub(super) fn read_rest(&mut self, token: Token) -> bool {
        self.read_rest_behind(token, false)
    }

    /// Words that matter wherever they stand. `behind_into`: the word before `token` is INTO.
    fn read_rest_behind(&mut self, mut token: Token, mut behind_into: bool) -> bool {
        loop {
            let mut next = None;
            let mut is_into = false;
            match token.kind {
                Kind::End | Kind::Mark(b';') => return true,
                Kind::Unreadable => {
                    self.add(Effects::OPAQUE);
                    return false;
                }
                Kind::Word => {
                    let word = self.word(&token);
                    is_into = word.get() == b"into";
                    next = self.read_word(behind_into, &word);
                }
                // A quoted name may be that of a function, too: "set_config"('a', ..).
                Kind::Quoted => {
                    let bytes = &self.cursor.text[token.start + 1..token.end - 1];
                    let word = Word::new(bytes);
                    if word.get() == bytes {
                        next = self.read_word(behind_into, &word);
                    }
                }
                Kind::Escaped => self.add(Effects::UNSEEN),
                Kind::Text | Kind::Number | Kind::Parameter | Kind::Mark(_) => {}
            }
            behind_into = is_into;
            token = match next {
                Some(next) => {
                    behind_into = false;
                    next
                }
                None => self.cursor.skim(&mut behind_into),
            };
        }
    }

    /// A word in the midst of a statement. Returns the token behind it where that has been read.
    pub(super) fn read_word(&mut self, behind_into: bool, word: &Word) -> Option<Token> {
        match word.get() {
            b"set_config" => return Some(self.read_set_config()),
            b"temp" | b"temporary" if behind_into => self.add(Effects::TEMPORARY),
            b"nextval" | b"setval" | b"insert" => self.add(Effects::SEQUENCE),
            b"currval" | b"lastval" => self.add(Effects::LAST_VALUE),
            // UPDATE t SET a = DEFAULT; what is defined takes no value yet.
            b"default" if !self.defines => self.add(Effects::SEQUENCE),
            b"pg_notify" => self.add(Effects::NOTIFY),
            // What it says must be true where another connection listens for this client.
            b"pg_listening_channels" => self.add(Effects::LISTEN),
            b"execute" if self.explains => {
                let name = self.next();
                self.add(Effects::EXECUTES);
                if matches!(name.kind, Kind::Word | Kind::Quoted) {
                    self.only = Some(Only::Prepared { name: name.start..name.end, deallocates: false });
                }
                return Some(name);
            }
            name if name.starts_with(b"pg_temp") => self.add(Effects::TEMPORARY),
            // pg_try_advisory_xact_lock_shared and its kin end with the transaction.
            name if (name.starts_with(b"pg_advisory_") || name.starts_with(b"pg_try_advisory_"))
                && memchr::memmem::find(name, b"_xact_").is_none() =>
            {
                self.add(Effects::LOCK);
            }
            name if is_lasting(name) => self.add(Effects::LASTING),
            _ => {}
        }
        None
    }

    /// `set_config` has been read: its name, if it is a plain constant. Returns the token behind.
    pub(super) fn read_set_config(&mut self) -> Token {
        let open = self.next();
        if open.kind != Kind::Mark(b'(') {
            // A column or table of that name.
            return open;
        }
        let name = self.next();
        let comma = match name.kind {
            Kind::Text | Kind::Parameter => self.next(),
            _ => {
                self.add(COMPUTED);
                return name;
            }
        };
        if name.kind == Kind::Parameter {
            let plain = comma.kind == Kind::Mark(b',');
            self.add(if plain { Effects::PARAMETER.and(Effects::PARSER) } else { COMPUTED });
            return comma;
        }
        let (start, end) = (name.start + 1, name.end - 1);
        let plain = self.cursor.text[name.start] == b'\'' && comma.kind == Kind::Mark(b',');
        let text = &self.cursor.text[start.min(end)..end];
        let added = if plain && !text.iter().any(|byte| matches!(byte, b'\'' | b'\\')) {
            self.names.add(text)
        } else {
            COMPUTED
        };
        self.add(added);
        if comma.kind != Kind::Mark(b',') {
            return comma;
        }
        let value = self.next();
        if value.kind != Kind::Text {
            // NULL is the value that the session began with.
            self.add(Effects::RESETS);
        }
        value
    }

    /// EXECUTE or DEALLOCATE of `name`.
    pub(super) fn read_prepared(&mut self, name: Token, deallocates: bool) -> bool {
        if !matches!(name.kind, Kind::Word | Kind::Quoted) {
            self.add(Effects::OPAQUE);
            return self.read_rest(name);
        }
        let range = name.start..name.end;
        let next = self.next();
        let read = self.read_rest(next);
        self.only = Some(Only::Prepared { name: range, deallocates });
        read
    }

    /// DO: what its code says that the server cannot be asked about.
    fn read_do(&mut self) -> bool {
        self.add(Effects::OPAQUE.and(Effects::PARSER));
        loop {
            let token = self.next();
            match token.kind {
                Kind::End | Kind::Mark(b';') => return true,
                Kind::Unreadable => return false,
                Kind::Escaped => self.add(Effects::UNSEEN),
                Kind::Text => {
                    let found = look_inside(&self.cursor.text[token.start..token.end], self.names);
                    self.add(found);
                }
                Kind::Word | Kind::Quoted | Kind::Number | Kind::Parameter | Kind::Mark(_) => {}
            }
        }
    }

    /// PREPARE of a statement, `name` being the token behind it. What it changes, it does later, and as often as it is executed.
    fn read_prepare(&mut self, name: Token) -> bool {
        let changes = Effects::SETTINGS.and(Effects::ANY_SETTING).and(Effects::PARAMETER).and(Effects::LOCK);
        let before = std::mem::take(&mut self.effects);
        let only =
            matches!(name.kind, Kind::Word | Kind::Quoted).then(|| Only::Prepares { name: name.start..name.end });
        let read = self.read_rest(name);
        self.only = only;
        let later = if self.effects.has(changes) { Effects::LASTING } else { Effects::NONE };
        self.effects = self.effects.and(before).and(Effects::PREPARED).and(Effects::PREPARES).and(later);
        read
    }

    /// CREATE, ALTER or DROP of something.
    pub(super) fn read_definition(&mut self, alters: bool) -> bool {
        self.defines = true;
        self.add(Effects::TEMPORARY);
        loop {
            let token = self.next();
            match self.short_word(&token) {
                known::TABLE if alters => {}
                known::TABLE | known::INDEX | known::ROLE | known::USER | known::TYPE | known::SEQUENCE => {
                    return self.read_on();
                }
                known::OR | known::REPLACE | known::TEMP => continue,
                _ => {}
            }
            let word = self.word(&token);
            match word.get() {
                b"or" | b"replace" | b"global" | b"local" | b"temp" | b"temporary" | b"unlogged" | b"constraint"
                | b"event" | b"trusted" | b"procedural" => {}
                // Triggers, defaults and constraints; what is added may have its values from a sequence.
                b"table" if alters => {
                    self.add(Effects::RELEARN.and(Effects::SEQUENCE));
                    let next = self.next();
                    return self.read_rest(next);
                }
                b"function" | b"procedure" | b"routine" | b"aggregate" | b"trigger" | b"extension" | b"rule"
                | b"policy" | b"view" | b"operator" | b"domain" | b"cast" | b"language" | b"schema" => {
                    self.add(Effects::RELEARN);
                    let next = self.next();
                    return self.read_rest(next);
                }
                _ => return self.read_rest(token),
            }
        }
    }

    /// The token behind a word or name; a mark, or the end, is its own.
    fn behind(&mut self, token: Token) -> Token {
        if matches!(token.kind, Kind::Word | Kind::Quoted) { self.next() } else { token }
    }

    pub(super) fn read_set(&mut self) -> bool {
        let names = self.names.ends.len();
        let before = self.effects;
        let dot = Kind::Mark(b'.');
        let mut token = self.next();
        let mut behind = self.behind(token);
        let mut local = false;
        // Any word is a setting's where a dot follows.
        let first = self.word(&token);
        if matches!(first.get(), b"session" | b"local") && behind.kind != dot {
            local = first.get() == b"local";
            token = behind;
            behind = self.behind(token);
            match self.word(&token).get() {
                b"characteristics" if behind.kind != dot => {
                    for name in [
                        "default_transaction_isolation",
                        "default_transaction_read_only",
                        "default_transaction_deferrable",
                    ] {
                        let added = self.names.add(name.as_bytes());
                        self.add(added);
                    }
                    return self.read_rest(behind);
                }
                b"authorization" if behind.kind != dot => return self.read_authorization(behind),
                _ => {}
            }
        }
        let word = if behind.kind == dot { Word::new(b"") } else { self.word(&token) };
        let is_default = |token: &Token, this: &Self| this.word(token).get() == b"default";
        // `resets`: its value is the one that the session began with.
        let (added, value, resets) = match word.get() {
            b"transaction" | b"constraints" => (Effects::NONE, behind, false),
            b"time" => {
                let zone = self.behind(behind);
                let resets = matches!(self.word(&zone).get(), b"local" | b"default");
                (self.names.add(b"timezone"), zone, resets)
            }
            b"names" => {
                let resets = matches!(behind.kind, Kind::End | Kind::Mark(b';')) || is_default(&behind, self);
                (self.names.add(b"client_encoding"), behind, resets)
            }
            b"schema" => (self.names.add(b"search_path"), behind, false),
            b"role" => {
                let value = if self.is_to(&behind) { self.next() } else { behind };
                (self.names.add(b"role"), value, is_default(&value, self))
            }
            b"xml" => (self.names.add(b"xmloption"), behind, false),
            b"session" => {
                // SET LOCAL SESSION AUTHORIZATION
                let added = self.names.add(b"session_authorization");
                (added.and(self.names.add(b"role")), behind, false)
            }
            _ => {
                let (added, next) = self.read_setting_name(token, behind);
                if !self.is_to(&next) {
                    self.add(added.and(Effects::OPAQUE));
                    return self.read_rest(next);
                }
                let value = self.next();
                (added, value, is_default(&value, self))
            }
        };
        if local {
            self.names.keep(names);
            // What has no value that a transaction could take back is no setting.
            let stays = if added == Effects::LASTING { added } else { added.common(Effects::PARSER) };
            self.effects = before.and(stays);
            let next = if resets { self.behind(value) } else { value };
            return self.read_rest(next);
        }
        self.add(added);
        if resets {
            self.add(Effects::RESETS);
            let end = self.behind(value);
            return self.read_end(end, Some(Only::Reset));
        }
        self.read_rest(value)
    }

    /// SET SESSION AUTHORIZATION has been read.
    fn read_authorization(&mut self, value: Token) -> bool {
        let added = self.names.add(b"session_authorization");
        // The role goes with it.
        let added = added.and(self.names.add(b"role"));
        self.add(added);
        if self.word(&value).get() == b"default" {
            self.add(Effects::RESETS);
            let end = self.next();
            return self.read_end(end, Some(Only::Reset));
        }
        self.read_rest(value)
    }

    /// Whether a setting's value follows.
    fn is_to(&self, token: &Token) -> bool {
        token.kind == Kind::Mark(b'=') || self.word(token).get() == b"to"
    }

    pub(super) fn read_reset(&mut self) -> bool {
        let token = self.next();
        let behind = self.behind(token);
        let word = if behind.kind == Kind::Mark(b'.') { Word::new(b"") } else { self.word(&token) };
        self.add(Effects::RESETS);
        let (added, end) = match word.get() {
            b"all" => {
                self.add(Effects::ANY_SETTING.and(Effects::PARSER));
                return self.read_end(behind, Some(Only::ResetAll));
            }
            b"time" => (self.names.add(b"timezone"), self.behind(behind)),
            b"session" => {
                let added = self.names.add(b"session_authorization");
                (added.and(self.names.add(b"role")), self.behind(behind))
            }
            b"role" => (self.names.add(b"role"), behind),
            b"transaction" => (Effects::NONE, behind),
            _ => self.read_setting_name(token, behind),
        };
        self.add(added);
        self.read_end(end, Some(Only::Reset))
    }

    /// A name of one or more parts, from `token` on, with `behind` behind it; the token behind all of it.
    fn read_setting_name(&mut self, mut token: Token, mut behind: Token) -> (Effects, Token) {
        let (mut name, mut size) = ([0; NAME_SIZE_MAX + 1], 0);
        let mut add = |bytes: &[u8]| {
            let room = bytes.len().min(name.len() - size);
            name[size..size + room].copy_from_slice(&bytes[..room]);
            size += room;
        };
        let mut odd = false;
        loop {
            let bytes = match token.kind {
                Kind::Word => self.bytes(&token),
                Kind::Quoted => &self.cursor.text[token.start + 1..token.end - 1],
                _ => {
                    odd = true;
                    behind = token;
                    break;
                }
            };
            odd |= bytes.contains(&b'"') || !bytes.is_ascii();
            add(&bytes[..bytes.len().min(IDENTIFIER_SIZE_MAX)]);
            if behind.kind != Kind::Mark(b'.') {
                break;
            }
            add(b".");
            token = self.next();
            behind = self.behind(token);
        }
        let name = &name[..size];
        let effects = match odd {
            true if name.contains(&b'.') => COMPUTED,
            true => Effects::ANY_SETTING.and(Effects::PARSER),
            false => self.names.add(name),
        };
        (effects, behind)
    }

    /// Nothing may follow, from `token` on, for the statement to be what `only` says.
    fn read_end(&mut self, token: Token, only: Option<Only>) -> bool {
        if matches!(token.kind, Kind::End | Kind::Mark(b';')) {
            self.only = only;
            return true;
        }
        self.read_rest(token)
    }
}
