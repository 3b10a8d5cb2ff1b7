//! What the text of a query says about the state of its session: not a parser, but enough of PostgreSQL's lexer to find
//! the statements, their first words and the names that matter. What it cannot read is *opaque*, and asked about.
//!
//! It errs on one side only: a state that it suspects where there is none costs a question to the server; the caller
//! asks the server in any case, and believes nothing that is said here.
//!
//! Owned by one shard, which scans one text at a time; allocates only for names, into buffers that are kept.

use std::hash::{BuildHasher, Hasher};
use std::ops::Range;

use foldhash::fast::FixedState;

use super::parameters::is_read_by_parser;

/// Kinds of state that a text may have changed: a set.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Effects(u32);

impl Effects {
    /// Nothing.
    pub const NONE: Self = Self(0);
    /// Settings whose names are in the text.
    pub const SETTINGS: Self = Self(1);
    /// Settings whose names are not in the text, or all.
    pub const ANY_SETTING: Self = Self(1 << 1);
    /// Temporary tables and what else lives in the temporary schema.
    pub const TEMPORARY: Self = Self(1 << 2);
    /// Channels that are listened on.
    pub const LISTEN: Self = Self(1 << 3);
    /// Cursors that outlive their transaction.
    pub const CURSOR: Self = Self(1 << 4);
    /// Statements prepared by PREPARE.
    pub const PREPARED: Self = Self(1 << 5);
    /// Advisory locks of the session.
    pub const LOCK: Self = Self(1 << 6);
    /// The last values of sequences may be others: what `currval` would say.
    pub const SEQUENCE: Self = Self(1 << 7);
    /// What nobody can ask about, and only the end of the connection takes away: LOAD, setseed.
    pub const LASTING: Self = Self(1 << 8);
    /// It runs code that is not in the text, or cannot be read: anything may have changed.
    pub const OPAQUE: Self = Self(1 << 9);
    /// Functions, triggers or extensions are others now: what was learned about texts is not true any more.
    pub const RELEARN: Self = Self(1 << 10);
    /// A transaction was prepared for two-phase commit.
    pub const TWO_PHASE: Self = Self(1 << 11);
    /// It asks for the last value of a sequence: `currval`, `lastval`.
    pub const LAST_VALUE: Self = Self(1 << 12);

    /// A setting that decides what a text means may be another until the transaction ends, or longer.
    pub const PARSER: Self = Self(1 << 13);

    /// Settings whose names come as parameters.
    pub const PARAMETER: Self = Self(1 << 14);

    /// It notifies those who listen, which needs no question.
    pub const NOTIFY: Self = Self(1 << 15);

    /// Both.
    #[must_use]
    pub const fn and(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// What is in both.
    #[must_use]
    pub const fn common(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    /// This without `other`.
    #[must_use]
    pub const fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    /// Whether any of `other` is in it.
    pub const fn has(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }

    /// Whether there is none.
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }
}

/// What the whole text is, where it is one statement of a kind that is dealt with by itself.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Only {
    /// RESET of one setting (its name is the scanner's only one), or SET to DEFAULT.
    Reset,
    /// RESET ALL.
    ResetAll,
    /// DISCARD ALL.
    DiscardAll,
    /// EXECUTE, EXPLAIN EXECUTE or DEALLOCATE of the statement whose name stands there.
    Prepared {
        /// Where the name is in the text, with its quotes.
        name: Range<usize>,
        /// Whether it is a DEALLOCATE.
        deallocates: bool,
    },
}

/// What was found.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Found {
    /// What may have changed.
    pub effects: Effects,
    /// Where the text is one statement of a special kind.
    pub only: Option<Only>,
    /// The same for texts that differ in nothing but constants, space and comments.
    pub fingerprint: u64,
}

/// Reads texts; keeps the names of the last.
#[derive(Default)]
pub struct Scanner {
    /// One behind the other, in lower case.
    names: Vec<u8>,
    ends: Vec<usize>,
}

/// Names that one text may mention; more are [`Effects::ANY_SETTING`].
const NAMES_MAX: usize = 16;
/// A setting whose name is put together while the text runs. Nobody can ask for custom ones of which the name is not
/// known.
const COMPUTED: Effects = Effects::ANY_SETTING.and(Effects::PARSER).and(Effects::LASTING);
/// Longest name of a setting that is kept; longer ones are cut off by no rule of PostgreSQL's, so they are asked about.
const NAME_SIZE_MAX: usize = 128;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kind {
    Word,
    Quoted,
    Text,
    Number,
    Parameter,
    Mark(u8),
    End,
    /// A quote or comment that has no end, or bytes that cannot be.
    Unreadable,
}

struct Token {
    kind: Kind,
    start: usize,
    end: usize,
}

struct Lexer<'t> {
    text: &'t [u8],
    at: usize,
    backslashes: bool,
}

const fn is_word_start(byte: u8) -> bool {
    byte.is_ascii_alphabetic() || byte == b'_' || byte >= 0x80
}

const fn is_word(byte: u8) -> bool {
    is_word_start(byte) || byte.is_ascii_digit() || byte == b'$'
}

impl Lexer<'_> {
    fn peek(&self, ahead: usize) -> u8 {
        self.text.get(self.at + ahead).copied().unwrap_or(0)
    }

    fn next(&mut self) -> Token {
        if !self.skip_space() {
            return self.token(Kind::Unreadable, self.text.len());
        }
        let start = self.at;
        let Some(&byte) = self.text.get(start) else { return self.token(Kind::End, start) };
        if is_word_start(byte) {
            let quote = self.peek(1) == b'\'';
            // E'..' and the like; U&'..' is a word, a mark and a text, of which the text has no backslashes.
            if quote && matches!(byte, b'e' | b'E') {
                self.at += 1;
                return self.text_constant(start, true);
            }
            if quote && matches!(byte, b'b' | b'B' | b'x' | b'X' | b'n' | b'N') {
                self.at += 1;
                return self.text_constant(start, self.backslashes);
            }
            let size = self.text[start..].iter().position(|&byte| !is_word(byte)).unwrap_or(self.text.len() - start);
            return self.token(Kind::Word, start + size);
        }
        match byte {
            b'\'' => self.text_constant(start, self.backslashes),
            b'"' => self.quoted_name(start),
            b'$' if self.peek(1).is_ascii_digit() => {
                let digits = self.text[start + 1..].iter().take_while(|byte| byte.is_ascii_digit()).count();
                self.token(Kind::Parameter, start + 1 + digits)
            }
            b'$' => self.dollar_constant(start),
            b'0'..=b'9' => {
                let size = self.text[start..].iter().take_while(|&&byte| is_word(byte) || byte == b'.').count();
                self.token(Kind::Number, start + size)
            }
            0 => self.token(Kind::Unreadable, self.text.len()),
            _ => self.token(Kind::Mark(byte), start + 1),
        }
    }

    fn token(&mut self, kind: Kind, end: usize) -> Token {
        let start = self.at;
        self.at = end;
        Token { kind, start, end }
    }

    /// `false`: a comment has no end.
    fn skip_space(&mut self) -> bool {
        loop {
            match self.peek(0) {
                b' ' | b'\t' | b'\n' | b'\r' | 0x0b | 0x0c => self.at += 1,
                b'-' if self.peek(1) == b'-' => {
                    let rest = &self.text[self.at..];
                    self.at += rest.iter().position(|&byte| byte == b'\n' || byte == b'\r').unwrap_or(rest.len());
                }
                b'/' if self.peek(1) == b'*' => {
                    let mut depth = 0;
                    loop {
                        match (self.peek(0), self.peek(1)) {
                            (b'/', b'*') => (depth, self.at) = (depth + 1, self.at + 2),
                            (b'*', b'/') => (depth, self.at) = (depth - 1, self.at + 2),
                            _ if self.at >= self.text.len() => return false,
                            _ => self.at += 1,
                        }
                        if depth == 0 {
                            break;
                        }
                    }
                }
                _ => return true,
            }
        }
    }

    /// `self.at` is at the opening quote.
    fn text_constant(&mut self, start: usize, backslashes: bool) -> Token {
        let mut at = self.at + 1;
        loop {
            match self.text.get(at) {
                Some(b'\'') if self.text.get(at + 1) == Some(&b'\'') => at += 2,
                Some(b'\'') => break,
                Some(b'\\') if backslashes => at += 2,
                Some(_) => at += 1,
                None => {
                    self.at = start;
                    return self.token(Kind::Unreadable, self.text.len());
                }
            }
        }
        self.at = start;
        self.token(Kind::Text, at + 1)
    }

    fn quoted_name(&mut self, start: usize) -> Token {
        let mut at = start + 1;
        loop {
            match self.text.get(at) {
                Some(b'"') if self.text.get(at + 1) == Some(&b'"') => at += 2,
                Some(b'"') => return self.token(Kind::Quoted, at + 1),
                Some(_) => at += 1,
                None => return self.token(Kind::Unreadable, self.text.len()),
            }
        }
    }

    /// `$tag$ .. $tag$`, or a lone dollar sign.
    fn dollar_constant(&mut self, start: usize) -> Token {
        let tag = self.text[start + 1..].iter().take_while(|&&byte| is_word(byte) && byte != b'$').count();
        let end = start + 1 + tag;
        if self.text.get(end) != Some(&b'$') {
            return self.token(Kind::Mark(b'$'), start + 1);
        }
        let mark = &self.text[start..=end];
        match memchr::memmem::find(&self.text[end + 1..], mark) {
            Some(at) => self.token(Kind::Text, end + 1 + at + mark.len()),
            None => self.token(Kind::Unreadable, self.text.len()),
        }
    }
}

/// A word in lower case, as far as it can be a known one.
struct Word {
    bytes: [u8; 32],
    size: usize,
}

impl Word {
    fn new(text: &[u8]) -> Self {
        let mut bytes = [0; 32];
        let size = if text.len() <= bytes.len() { text.len() } else { 0 };
        for (to, from) in bytes.iter_mut().zip(&text[..size]) {
            *to = from.to_ascii_lowercase();
        }
        Self { bytes, size }
    }

    fn get(&self) -> &[u8] {
        &self.bytes[..self.size]
    }
}

impl Scanner {
    /// Names of settings that the last text mentions, in lower case; `role` and `session_authorization` among them.
    pub fn names(&self) -> impl Iterator<Item = &[u8]> {
        let starts = std::iter::once(0).chain(self.ends.iter().copied());
        starts.zip(&self.ends).map(|(start, &end)| &self.names[start..end])
    }

    /// Reads a text. `backslashes`: they escape in plain constants (`standard_conforming_strings` is off).
    pub fn scan(&mut self, text: &[u8], backslashes: bool) -> Found {
        self.names.clear();
        self.ends.clear();
        let mut lexer = Lexer { text, at: 0, backslashes };
        let mut hasher = FixedState::default().build_hasher();
        let mut effects = Effects::NONE;
        let mut only = None;
        let mut statements = 0;
        loop {
            let token = lexer.next();
            match token.kind {
                Kind::End => break,
                Kind::Mark(b';') => continue,
                Kind::Unreadable => {
                    effects = effects.and(Effects::OPAQUE);
                    break;
                }
                _ => {}
            }
            statements += 1;
            let mut statement = Statement {
                scanner: self,
                lexer: &mut lexer,
                hasher: &mut hasher,
                effects,
                only: None,
                explains: false,
            };
            let ended = statement.read(token);
            effects = statement.effects;
            only = statement.only;
            if !ended {
                break;
            }
        }
        if statements != 1 {
            only = None;
        }
        Found { effects, only, fingerprint: hasher.finish() }
    }

    fn add_name(&mut self, name: &[u8]) -> Effects {
        if name.is_empty() || name.len() > NAME_SIZE_MAX || self.ends.len() == NAMES_MAX {
            return Effects::ANY_SETTING.and(Effects::PARSER);
        }
        let start = self.names.len();
        self.names.extend(name.iter().map(u8::to_ascii_lowercase));
        self.ends.push(self.names.len());
        let parser = if is_read_by_parser(&self.names[start..]) { Effects::PARSER } else { Effects::NONE };
        Effects::SETTINGS.and(parser)
    }

    /// Drops what was added behind the first `count` names.
    fn keep_names(&mut self, count: usize) {
        self.ends.truncate(count);
        self.names.truncate(self.ends.last().copied().unwrap_or(0));
    }
}

struct Statement<'s, 'l, 't, H> {
    scanner: &'s mut Scanner,
    lexer: &'l mut Lexer<'t>,
    hasher: &'s mut H,
    effects: Effects,
    only: Option<Only>,
    /// It may contain an EXECUTE.
    explains: bool,
}

impl<H: Hasher> Statement<'_, '_, '_, H> {
    fn add(&mut self, effects: Effects) {
        self.effects = self.effects.and(effects);
    }

    fn next(&mut self) -> Token {
        let token = self.lexer.next();
        self.note(&token);
        token
    }

    /// What the fingerprint is made of: words, names and marks, but no constants.
    fn note(&mut self, token: &Token) {
        match token.kind {
            Kind::Word => self.hasher.write(Word::new(&self.lexer.text[token.start..token.end]).get()),
            Kind::Quoted => self.hasher.write(&self.lexer.text[token.start..token.end]),
            Kind::Mark(mark) => self.hasher.write_u8(mark),
            Kind::Text | Kind::Number | Kind::Parameter => self.hasher.write_u8(b'?'),
            Kind::End | Kind::Unreadable => {}
        }
    }

    fn word(&self, token: &Token) -> Word {
        match token.kind {
            Kind::Word => Word::new(&self.lexer.text[token.start..token.end]),
            _ => Word::new(b""),
        }
    }

    fn bytes(&self, token: &Token) -> &[u8] {
        &self.lexer.text[token.start..token.end]
    }

    /// Reads to the end of the statement; `false`: it cannot be read.
    fn read(&mut self, first: Token) -> bool {
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
                self.add(Effects::LOCK.and(Effects::CURSOR).and(Effects::SEQUENCE));
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
    fn read_rest(&mut self, mut token: Token) -> bool {
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
    fn read_word(&mut self, before: &Word, word: &Word) -> Option<Token> {
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
    fn read_set_config(&mut self) -> Token {
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
    fn read_prepared(&mut self, name: Token, deallocates: bool) -> bool {
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
    fn read_definition(&mut self) -> bool {
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

    fn read_set(&mut self) -> bool {
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

    fn read_reset(&mut self) -> bool {
        let token = self.next();
        let word = self.word(&token);
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
    fn read_setting_name(&mut self, token: Token) -> (Effects, Token) {
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
    fn read_end(&mut self, only: Option<Only>) -> bool {
        let token = self.next();
        self.read_end_from(token, only)
    }

    fn read_end_from(&mut self, token: Token, only: Option<Only>) -> bool {
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

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn scan(text: &str) -> (Effects, Vec<String>, Option<Only>) {
        let mut scanner = Scanner::default();
        let found = scanner.scan(text.as_bytes(), false);
        let names = scanner.names().map(|name| String::from_utf8_lossy(name).into_owned()).collect();
        (found.effects, names, found.only)
    }

    fn effects(text: &str) -> Effects {
        scan(text).0.without(Effects::PARSER)
    }

    #[test]
    fn what_changes_nothing() {
        for text in [
            "",
            ";;",
            "select 1",
            "-- set x to 1\nselect 1",
            "/* listen /* x */ */ select 'set_config(''a'', 1)' ",
            "select $$ do something $$, $a$ pg_temp $a$",
            "select \"listen\" from t",
            "with a as (select 1) table a",
            "begin; update t set a = 1; commit",
            "set local work_mem to 1",
            "set local time zone 'UTC'",
            "set local role x",
            "set transaction isolation level serializable",
            "set constraints all deferred",
            "select pg_advisory_xact_lock(1), pg_try_advisory_xact_lock_shared(2)",
            "(select 1) union (select 2)",
            "explain analyze select 1",
            "show search_path",
        ] {
            assert_eq!(effects(text), Effects::NONE, "{text}");
        }
    }

    #[test]
    fn what_changes_something() {
        for (text, expected) in [
            ("create temp table t (a int)", Effects::TEMPORARY),
            ("select * into temporary t from u", Effects::TEMPORARY),
            ("select 1 from pg_temp.t", Effects::TEMPORARY),
            ("LISTEN a", Effects::LISTEN),
            ("unlisten *", Effects::LISTEN),
            ("declare c cursor with hold for select 1", Effects::CURSOR),
            ("close all", Effects::CURSOR),
            ("prepare a as select 1", Effects::PREPARED),
            ("prepare transaction 'x'", Effects::TWO_PHASE),
            ("deallocate all", Effects::PREPARED),
            ("create table t as execute a", Effects::TEMPORARY),
            ("select set_config($1, 'a', false)", Effects::PARAMETER),
            ("select set_config('a' || 'b', '', true)", Effects::ANY_SETTING.and(Effects::LASTING)),
            ("select set_config from t", Effects::NONE),
            ("select 1; select pg_advisory_lock(1)", Effects::LOCK),
            ("select \"pg_try_advisory_lock\"(1)", Effects::LOCK),
            ("load 'x'", Effects::LASTING),
            ("do $$ begin end $$", Effects::OPAQUE),
            ("call p()", Effects::OPAQUE),
            ("frobnicate", Effects::OPAQUE),
            ("select 'no end", Effects::OPAQUE),
            ("select /* no end", Effects::OPAQUE),
            ("select $a$ no end", Effects::OPAQUE),
            ("select \"no end", Effects::OPAQUE),
            ("insert into t values (1)", Effects::SEQUENCE),
            ("select nextval('s'), lastval()", Effects::SEQUENCE.and(Effects::LAST_VALUE)),
            (
                "create or replace function f() returns int language sql as 'select 1'",
                Effects::RELEARN.and(Effects::TEMPORARY),
            ),
            ("drop trigger t on u", Effects::RELEARN.and(Effects::TEMPORARY)),
            ("set seed to 0.5", Effects::LASTING),
        ] {
            assert_eq!(effects(text), expected, "{text}");
        }
    }

    #[test]
    fn names_of_settings() {
        for (text, expected) in [
            ("set work_mem = 1", &["work_mem"][..]),
            ("SET SESSION My.\"Tenant\" TO 'a'", &["my.tenant"]),
            ("set time zone 'UTC'; set names 'utf8'", &["timezone", "client_encoding"]),
            ("set schema 'a'", &["search_path"]),
            ("set role x", &["role"]),
            ("reset role", &["role"]),
            ("set session authorization x", &["session_authorization", "role"]),
            ("reset session authorization", &["session_authorization", "role"]),
            ("select set_config('a.b', 'c', false), set_config('d', $1, true)", &["a.b", "d"]),
            ("set search_path = a, b; set local x = 1; reset y", &["search_path", "y"]),
            (
                "set session characteristics as transaction read only",
                &["default_transaction_isolation", "default_transaction_read_only", "default_transaction_deferrable"],
            ),
        ] {
            let (effects, names, _) = scan(text);
            assert_eq!(names, expected, "{text}");
            assert_eq!(effects.without(Effects::PARSER), Effects::SETTINGS, "{text}");
        }
        for text in ["reset all", "set \"a\"\"b\" = 1"] {
            assert_eq!(effects(text), Effects::ANY_SETTING, "{text}");
        }
    }

    #[test]
    fn what_decides_the_meaning_of_texts() {
        for text in ["set local search_path to a", "set time zone 'UTC'", "reset all", "do ''", "set role x"] {
            assert!(scan(text).0.has(Effects::PARSER), "{text}");
        }
        for text in ["set local my.tenant to 'a'", "set work_mem to 1", "select 1"] {
            assert!(!scan(text).0.has(Effects::PARSER), "{text}");
        }
    }

    #[test]
    fn statements_that_stand_alone() {
        assert_eq!(scan("RESET work_mem;").2, Some(Only::Reset));
        assert_eq!(scan("set work_mem to default").2, Some(Only::Reset));
        assert_eq!(scan("/* x */ reset all -- y").2, Some(Only::ResetAll));
        assert_eq!(scan("discard all;").2, Some(Only::DiscardAll));
        assert_eq!(scan("discard temp").2, None);
        assert_eq!(scan("reset work_mem; select 1").2, None);
        assert_eq!(scan("execute \"a b\"(1)").2, Some(Only::Prepared { name: 8..13, deallocates: false }));
        assert_eq!(scan("deallocate prepare a").2, Some(Only::Prepared { name: 19..20, deallocates: true }));
        assert_eq!(scan("deallocate all").2, None);
        assert_eq!(
            scan("explain (costs off) execute p(1)").2,
            Some(Only::Prepared { name: 28..29, deallocates: false })
        );
        assert_eq!(scan("create table t as execute p").2, Some(Only::Prepared { name: 26..27, deallocates: false }));
    }

    #[test]
    fn backslashes_where_they_escape() {
        let mut scanner = Scanner::default();
        assert!(scanner.scan(br"select '\'; listen a; --'", true).effects.is_empty());
        assert_eq!(scanner.scan(br"select '\'; listen a; --'", false).effects, Effects::LISTEN);
        assert!(scanner.scan(br"select e'\'; listen a; --'", false).effects.is_empty());
    }

    #[test]
    fn fingerprints_leave_constants_out() {
        let of = |text: &str| Scanner::default().scan(text.as_bytes(), false).fingerprint;
        assert_eq!(of("select 1, 'a' from T"), of("SELECT  22, 'b' /* c */ from t"));
        assert_ne!(of("select 1 from t"), of("select 1 from u"));
    }

    proptest! {
        /// No text makes it panic, and what is behind a comment is as it was.
        #[test]
        fn any_text(text in "[a-z'\"$;(/*) -]{0,40}", backslashes: bool) {
            let mut scanner = Scanner::default();
            let found = scanner.scan(text.as_bytes(), backslashes);
            let commented = format!("/* set x = 1 */ {text}");
            prop_assert_eq!(scanner.scan(commented.as_bytes(), backslashes).effects, found.effects);
        }

        #[test]
        fn any_bytes(text: Vec<u8>) {
            Scanner::default().scan(&text, false);
        }
    }
}
