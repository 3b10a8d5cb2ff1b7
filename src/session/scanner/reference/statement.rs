//! A statement, token by token.

use std::hash::Hasher;

use super::super::{COMPUTED, Effects, NAME_SIZE_MAX, Only};
use super::Scanner;
use super::lexer::{Kind, Lexer, Token, Word};

pub(super) struct Statement<'s, 'l, 't, H> {
    pub(super) scanner: &'s mut Scanner,
    pub(super) lexer: &'l mut Lexer<'t>,
    pub(super) hasher: &'s mut H,
    pub(super) effects: Effects,
    pub(super) only: Option<Only>,
    /// It may contain an EXECUTE.
    pub(super) explains: bool,
}

impl<H: Hasher> Statement<'_, '_, '_, H> {
    pub(super) fn add(&mut self, effects: Effects) {
        self.effects = self.effects.and(effects);
    }

    pub(super) fn next(&mut self) -> Token {
        let token = self.lexer.next();
        self.note(&token);
        token
    }

    /// What the fingerprint is made of: words, names and marks, but no constants.
    pub(super) fn note(&mut self, token: &Token) {
        match token.kind {
            Kind::Word => self.hasher.write(&self.lexer.text[token.start..token.end].to_ascii_lowercase()),
            Kind::Quoted => self.hasher.write(&self.lexer.text[token.start..token.end]),
            Kind::Mark(mark) => self.hasher.write_u8(mark),
            Kind::Text | Kind::Number | Kind::Parameter => self.hasher.write_u8(b'?'),
            Kind::End | Kind::Unreadable => {}
        }
    }

    pub(super) fn word(&self, token: &Token) -> Word {
        match token.kind {
            Kind::Word => Word::new(&self.lexer.text[token.start..token.end]),
            _ => Word::new(b""),
        }
    }

    pub(super) fn bytes(&self, token: &Token) -> &[u8] {
        &self.lexer.text[token.start..token.end]
    }

    /// Reads to the end of the statement; `false`: it cannot be read.
    pub(super) fn read(&mut self, first: Token) -> bool {
        self.note(&first);
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
                return self.read_end(all.then_some(Only::DiscardAll));
            }
            b"listen" | b"unlisten" => self.add(Effects::LISTEN),
            b"notify" => self.add(Effects::NOTIFY),
            b"declare" | b"close" => self.add(Effects::CURSOR),
            b"load" => self.add(Effects::LASTING),
            b"do" | b"call" => self.add(Effects::OPAQUE.and(Effects::PARSER)),
            b"prepare" => {
                let name = self.next();
                let two_phase = self.word(&name).get() == b"transaction";
                self.add(if two_phase { Effects::TWO_PHASE } else { Effects::PREPARED });
                return self.read_rest(name);
            }
            b"execute" => {
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
                self.add(Effects::TEMPORARY);
                return self.read_definition();
            }
            b"explain" => self.explains = true,
            // A column's default may be a sequence.
            b"insert" | b"merge" | b"copy" => self.add(Effects::SEQUENCE),
            b"select" | b"update" | b"delete" | b"with" | b"values" | b"table" | b"begin" | b"start" | b"commit"
            | b"end" | b"rollback" | b"abort" | b"savepoint" | b"release" | b"truncate" | b"comment" | b"grant"
            | b"revoke" | b"analyze" | b"analyse" | b"vacuum" | b"reindex" | b"cluster" | b"checkpoint" | b"lock"
            | b"show" | b"fetch" | b"move" | b"refresh" | b"reassign" | b"security" | b"import" => {}
            _ if matches!(first.kind, Kind::Mark(b'(')) => {}
            _ => self.add(Effects::OPAQUE),
        }
        let next = self.next();
        self.read_rest(next)
    }

    /// The rest of a statement, from `token` on: words that matter wherever they stand.
    pub(super) fn read_rest(&mut self, mut token: Token) -> bool {
        let mut before = Word::new(b"");
        loop {
            match token.kind {
                Kind::End | Kind::Mark(b';') => return true,
                Kind::Unreadable => {
                    self.add(Effects::OPAQUE);
                    return false;
                }
                Kind::Word => {
                    let word = self.word(&token);
                    if let Some(next) = self.read_word(&before, &word) {
                        token = next;
                        before = word;
                        continue;
                    }
                    before = word;
                }
                // A quoted name may be that of a function, too: "set_config"('a', ..).
                Kind::Quoted => {
                    let bytes = &self.lexer.text[token.start + 1..token.end - 1];
                    let word = Word::new(bytes);
                    if word.get() == bytes
                        && let Some(next) = self.read_word(&before, &word)
                    {
                        token = next;
                        before = word;
                        continue;
                    }
                    before = Word::new(b"");
                }
                _ => before = Word::new(b""),
            }
            token = self.next();
        }
    }

    /// A word in the midst of a statement. Returns the token behind it where that has been read.
    pub(super) fn read_word(&mut self, before: &Word, word: &Word) -> Option<Token> {
        match word.get() {
            b"set_config" => return Some(self.read_set_config()),
            b"temp" | b"temporary" if before.get() == b"into" => self.add(Effects::TEMPORARY),
            b"nextval" | b"setval" | b"insert" => self.add(Effects::SEQUENCE),
            b"currval" | b"lastval" => self.add(Effects::LAST_VALUE),
            b"setseed" => self.add(Effects::LASTING),
            b"pg_notify" => self.add(Effects::NOTIFY),
            // What it says must be true where another connection listens for this client.
            b"pg_listening_channels" => self.add(Effects::LISTEN),
            b"execute" if self.explains => {
                let name = self.next();
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
            name if name.starts_with(b"dblink_connect") => self.add(Effects::LASTING),
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
        let plain = self.lexer.text[name.start] == b'\'' && comma.kind == Kind::Mark(b',');
        let text = &self.lexer.text[start.min(end)..end];
        let added = if plain && !text.iter().any(|byte| matches!(byte, b'\'' | b'\\')) {
            self.scanner.add_name(text)
        } else {
            COMPUTED
        };
        self.add(added);
        comma
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

    /// CREATE, ALTER or DROP of something.
    pub(super) fn read_definition(&mut self) -> bool {
        loop {
            let token = self.next();
            let word = self.word(&token);
            match word.get() {
                b"or" | b"replace" | b"global" | b"local" | b"temp" | b"temporary" | b"unlogged" | b"constraint"
                | b"event" | b"trusted" | b"procedural" => {}
                b"function" | b"procedure" | b"routine" | b"trigger" | b"extension" | b"rule" | b"view"
                | b"operator" | b"domain" | b"cast" | b"language" | b"schema" => {
                    self.add(Effects::RELEARN);
                    let next = self.next();
                    return self.read_rest(next);
                }
                _ => return self.read_rest(token),
            }
        }
    }

    pub(super) fn read_set(&mut self) -> bool {
        let names = self.scanner.ends.len();
        let before = self.effects;
        let mut token = self.next();
        let mut word = self.word(&token);
        let mut local = false;
        if matches!(word.get(), b"session" | b"local") {
            local = word.get() == b"local";
            let next = self.next();
            let following = self.word(&next);
            match following.get() {
                b"characteristics" => {
                    for name in [
                        "default_transaction_isolation",
                        "default_transaction_read_only",
                        "default_transaction_deferrable",
                    ] {
                        let added = self.scanner.add_name(name.as_bytes());
                        self.add(added);
                    }
                    let next = self.next();
                    return self.read_rest(next);
                }
                b"authorization" => {
                    let added = self.scanner.add_name(b"session_authorization");
                    self.add(added);
                    // The role goes with it.
                    let added = self.scanner.add_name(b"role");
                    self.add(added);
                    let next = self.next();
                    return self.read_rest(next);
                }
                _ => (token, word) = (next, following),
            }
        }
        let added = match word.get() {
            b"transaction" | b"constraints" => Effects::NONE,
            b"time" => self.scanner.add_name(b"timezone"),
            b"names" => self.scanner.add_name(b"client_encoding"),
            b"schema" => self.scanner.add_name(b"search_path"),
            b"role" => self.scanner.add_name(b"role"),
            b"xml" => self.scanner.add_name(b"xmloption"),
            b"seed" => Effects::LASTING,
            b"session" => {
                // SET LOCAL SESSION AUTHORIZATION
                let added = self.scanner.add_name(b"session_authorization");
                added.and(self.scanner.add_name(b"role"))
            }
            _ => {
                let (added, next) = self.read_setting_name(token);
                token = next;
                self.add(added);
                // `SET x TO DEFAULT` is RESET x.
                if matches!(token.kind, Kind::Mark(b'=')) || self.word(&token).get() == b"to" {
                    let value = self.next();
                    let default = self.word(&value).get() == b"default";
                    if local {
                        self.scanner.keep_names(names);
                        self.effects = before.and(added.common(Effects::PARSER));
                    } else if default {
                        self.add(Effects::RESETS);
                        return self.read_end_from(value, Some(Only::Reset));
                    }
                    return self.read_rest(value);
                }
                self.add(Effects::OPAQUE);
                return self.read_rest(token);
            }
        };
        self.add(added);
        if local {
            self.scanner.keep_names(names);
            self.effects = before.and(added.common(Effects::PARSER));
        }
        let next = self.next();
        self.read_rest(next)
    }

    pub(super) fn read_reset(&mut self) -> bool {
        let token = self.next();
        let word = self.word(&token);
        self.add(Effects::RESETS);
        let added = match word.get() {
            b"all" => {
                self.add(Effects::ANY_SETTING.and(Effects::PARSER));
                return self.read_end(Some(Only::ResetAll));
            }
            b"time" => {
                let _zone = self.next();
                self.scanner.add_name(b"timezone")
            }
            b"session" => {
                let _authorization = self.next();
                let added = self.scanner.add_name(b"session_authorization");
                added.and(self.scanner.add_name(b"role"))
            }
            b"role" => self.scanner.add_name(b"role"),
            b"transaction" => Effects::NONE,
            _ => {
                let (added, next) = self.read_setting_name(token);
                self.add(added);
                return self.read_end_from(next, Some(Only::Reset));
            }
        };
        self.add(added);
        self.read_end(Some(Only::Reset))
    }

    /// A name of one or more parts, from `token` on; the token behind it.
    pub(super) fn read_setting_name(&mut self, token: Token) -> (Effects, Token) {
        let (mut name, mut size) = ([0; NAME_SIZE_MAX + 1], 0);
        let mut add = |bytes: &[u8]| {
            let room = bytes.len().min(name.len() - size);
            name[size..size + room].copy_from_slice(&bytes[..room]);
            size += room;
        };
        let mut token = token;
        let mut odd = false;
        loop {
            match token.kind {
                Kind::Word => add(self.bytes(&token)),
                Kind::Quoted => {
                    let bytes = &self.lexer.text[token.start + 1..token.end - 1];
                    odd |= bytes.contains(&b'"');
                    add(bytes);
                }
                _ => {
                    odd = true;
                    break;
                }
            }
            let next = self.next();
            if next.kind != Kind::Mark(b'.') {
                token = next;
                break;
            }
            add(b".");
            token = self.next();
        }
        let effects =
            if odd { Effects::ANY_SETTING.and(Effects::PARSER) } else { self.scanner.add_name(&name[..size]) };
        (effects, token)
    }

    /// Nothing may follow for the statement to be what `only` says.
    pub(super) fn read_end(&mut self, only: Option<Only>) -> bool {
        let token = self.next();
        self.read_end_from(token, only)
    }

    pub(super) fn read_end_from(&mut self, token: Token, only: Option<Only>) -> bool {
        let mut token = token;
        // `SET x TO DEFAULT`: the value itself.
        if self.word(&token).get() == b"default" {
            token = self.next();
        }
        if matches!(token.kind, Kind::End | Kind::Mark(b';')) {
            self.only = only;
            return true;
        }
        self.read_rest(token)
    }
}
