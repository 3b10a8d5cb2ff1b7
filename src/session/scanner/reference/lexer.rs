//! The lexer of the scanner as it was at first: byte by byte.

use super::super::lexer::is_escaped;

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
    pub(super) fn text_constant(&mut self, start: usize, backslashes: bool) -> Token {
        let mut at = self.at + 1;
        loop {
            match self.text.get(at) {
                Some(b'\'') if self.text.get(at + 1) == Some(&b'\'') => at += 2,
                Some(b'\'') if backslashes && !self.backslashes && self.goes_on(at + 1).is_some() => {
                    at = self.goes_on(at + 1).expect("just seen") + 1;
                }
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

    /// Where a constant goes on that has ended before `at`.
    fn goes_on(&self, mut at: usize) -> Option<usize> {
        let mut newline = false;
        loop {
            match self.text.get(at)? {
                b'\n' | b'\r' => (newline, at) = (true, at + 1),
                b' ' | b'\t' | 0x0b | 0x0c => at += 1,
                b'-' if self.text.get(at + 1) == Some(&b'-') => {
                    let rest = &self.text[at..];
                    at += rest.iter().position(|&byte| byte == b'\n' || byte == b'\r')?;
                }
                b'\'' if newline => return Some(at),
                _ => return None,
            }
        }
    }

    pub(super) fn quoted_name(&mut self, start: usize) -> Token {
        let kind = if is_escaped(self.text, start) { Kind::Escaped } else { Kind::Quoted };
        let mut at = start + 1;
        loop {
            match self.text.get(at) {
                Some(b'"') if self.text.get(at + 1) == Some(&b'"') => at += 2,
                Some(b'"') => return self.token(kind, at + 1),
                Some(_) => at += 1,
                None => return self.token(Kind::Unreadable, self.text.len()),
            }
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
