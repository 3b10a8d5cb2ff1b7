//! PostgreSQL's lexer as far as it takes to find words, names, constants and the ends of statements.

use super::block::is_space;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Kind {
    Word,
    Quoted,
    /// A quoted name behind `U&`, which may be any by its escapes.
    Escaped,
    Text,
    Number,
    Parameter,
    Mark(u8),
    End,
    /// A quote or comment that has no end, or bytes that cannot be.
    Unreadable,
}

#[derive(Clone, Copy)]
pub(super) struct Token {
    pub(super) kind: Kind,
    pub(super) start: usize,
    pub(super) end: usize,
}

pub(super) struct Lexer<'t> {
    pub(super) text: &'t [u8],
    pub(super) at: usize,
    pub(super) backslashes: bool,
}

pub(super) const fn is_word_start(byte: u8) -> bool {
    byte.is_ascii_alphabetic() || byte == b'_' || byte >= 0x80
}

pub(super) const fn is_word(byte: u8) -> bool {
    is_word_start(byte) || byte.is_ascii_digit() || byte == b'$'
}

/// Whether the quoted name that begins at `quote` is one with escapes: U&"..".
pub(super) fn is_escaped(text: &[u8], quote: usize) -> bool {
    match text[..quote] {
        [.., before, b'u' | b'U', b'&'] => !is_word(before),
        [b'u' | b'U', b'&'] => true,
        _ => false,
    }
}

impl Lexer<'_> {
    pub(super) fn peek(&self, ahead: usize) -> u8 {
        self.text.get(self.at + ahead).copied().unwrap_or(0)
    }

    pub(super) fn next(&mut self) -> Token {
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

    pub(super) fn token(&mut self, kind: Kind, end: usize) -> Token {
        let start = self.at;
        self.at = end;
        Token { kind, start, end }
    }

    /// `false`: a comment has no end.
    pub(super) fn skip_space(&mut self) -> bool {
        loop {
            match self.peek(0) {
                byte if is_space(byte) => self.at += 1,
                b'-' if self.peek(1) == b'-' => self.skip_line(),
                b'/' if self.peek(1) == b'*' => {
                    let mut depth = 0;
                    loop {
                        match (self.peek(0), self.peek(1)) {
                            (b'/', b'*') => (depth, self.at) = (depth + 1, self.at + 2),
                            (b'*', b'/') => (depth, self.at) = (depth - 1, self.at + 2),
                            _ => {
                                let rest = self.text.get(self.at + 1..).unwrap_or_default();
                                let Some(next) = memchr::memchr2(b'/', b'*', rest) else {
                                    self.at = self.text.len();
                                    return false;
                                };
                                self.at += 1 + next;
                            }
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

    /// To the end of the line.
    pub(super) fn skip_line(&mut self) {
        let rest = &self.text[self.at..];
        self.at += memchr::memchr2(b'\n', b'\r', rest).unwrap_or(rest.len());
    }

    /// `self.at` is at the opening quote.
    pub(super) fn text_constant(&mut self, start: usize, backslashes: bool) -> Token {
        let mut at = self.at + 1;
        self.at = start;
        loop {
            let rest = self.text.get(at..).unwrap_or_default();
            let next = if backslashes { memchr::memchr2(b'\'', b'\\', rest) } else { memchr::memchr(b'\'', rest) };
            let Some(next) = next else { return self.token(Kind::Unreadable, self.text.len()) };
            at += next;
            if self.text[at] == b'\'' && self.text.get(at + 1) != Some(&b'\'') {
                // Where backslashes escape in all constants, a part of one may as well be one by itself.
                match self.continuation(at + 1).filter(|_| backslashes && !self.backslashes) {
                    Some(next) => at = next + 1,
                    None => return self.token(Kind::Text, at + 1),
                }
                continue;
            }
            at += 2;
        }
    }

    /// The quote with which a constant goes on that has ended before `at`: "separated only by whitespace with at least one newline"
    /// (String Constants), comments to the end of a line among it.
    fn continuation(&self, at: usize) -> Option<usize> {
        let mut lexer = Lexer { text: self.text, at, backslashes: false };
        while is_space(lexer.peek(0)) || lexer.peek(0) == b'-' && lexer.peek(1) == b'-' {
            match lexer.peek(0) {
                b'-' => lexer.skip_line(),
                _ => lexer.at += 1,
            }
        }
        let has_newline = self.text[at..lexer.at].iter().any(|byte| matches!(byte, b'\n' | b'\r'));
        (has_newline && lexer.peek(0) == b'\'').then_some(lexer.at)
    }

    pub(super) fn quoted_name(&mut self, start: usize) -> Token {
        let kind = if is_escaped(self.text, start) { Kind::Escaped } else { Kind::Quoted };
        let mut at = start + 1;
        loop {
            let Some(next) = memchr::memchr(b'"', &self.text[at..]) else {
                return self.token(Kind::Unreadable, self.text.len());
            };
            at += next + 1;
            if self.text.get(at) != Some(&b'"') {
                return self.token(kind, at);
            }
            at += 1;
        }
    }

    /// `$tag$ .. $tag$`, or a lone dollar sign.
    pub(super) fn dollar_constant(&mut self, start: usize) -> Token {
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
pub(super) struct Word {
    bytes: [u8; 40],
    size: usize,
}

impl Word {
    pub(super) fn new(text: &[u8]) -> Self {
        let mut bytes = [0; 40];
        let size = if text.len() <= bytes.len() { text.len() } else { 0 };
        for (to, from) in bytes.iter_mut().zip(&text[..size]) {
            *to = from.to_ascii_lowercase();
        }
        Self { bytes, size }
    }

    pub(super) fn get(&self) -> &[u8] {
        &self.bytes[..self.size]
    }
}
