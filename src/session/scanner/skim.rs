//! Reads on through a statement until something comes that matters, 64 bytes at a time.
//!
//! Invariant: what is passed over is what the lexer would have passed, token by token.

use super::block::{self, Block};
use super::lexer::{Kind, Lexer, Token, is_escaped, is_word};
use super::print::{self, Print, piece_of};

/// Beginnings of words that matter wherever they stand; others that begin so are told apart by the caller.
const BEGINNINGS: [&[u8; 4]; 19] = [
    b"set_", b"temp", b"next", b"setv", b"inse", b"curr", b"last", b"sets", b"exec", b"dbli", b"defa", b"pg_a",
    b"pg_b", b"pg_c", b"pg_l", b"pg_n", b"pg_r", b"pg_s", b"pg_t",
];

/// [`BEGINNINGS`], each at the place that [`place`] gives it.
const PLACES: [u32; 1 << PLACE_BITS] = {
    let mut places = [0; 1 << PLACE_BITS];
    let mut at = 0;
    while at < BEGINNINGS.len() {
        let beginning = piece_of(BEGINNINGS[at]) as u32;
        assert!(places[place(beginning)] == 0, "each has a place of its own: another FACTOR is needed");
        places[place(beginning)] = beginning;
        at += 1;
    }
    places
};

const PLACE_BITS: u32 = 6;
const FACTOR: u32 = 0x008a_05a7;

#[inline]
const fn place(beginning: u32) -> usize {
    (beginning.wrapping_mul(FACTOR) >> (u32::BITS - PLACE_BITS)) as usize
}

#[inline]
fn may_matter(piece: u64) -> bool {
    let beginning = piece as u32;
    PLACES[place(beginning)] == beginning
}

/// First bytes of what is no plain word and no plain mark.
const SPECIAL: [bool; 256] = {
    let mut special = [false; 256];
    let bytes = b"\0'\"$;-/0123456789";
    let mut at = 0;
    while at < bytes.len() {
        special[bytes[at] as usize] = true;
        at += 1;
    }
    special
};

/// A block, and as much behind it as is looked at from its last byte on.
const WINDOW: usize = block::SIZE + 16;

/// Where in a text the scanner is, and what it made of it.
pub(super) struct Cursor<'t> {
    pub(super) text: &'t [u8],
    backslashes: bool,
    windows: &'t mut Windows,
    place: Place,
    pub(super) print: Print,
}

/// A block of the text, and how far it has been read.
#[derive(Clone, Copy)]
struct Place {
    /// The block begins here.
    from: usize,
    block: Block,
    /// Where words and marks begin that have not been read, up to `cut`.
    tokens: u64,
    /// The next block begins here, counted from this: before a word that this one cuts off, or at its end.
    cut: usize,
    /// The end of the last token, as far as it is in the block.
    ended: usize,
}

impl Place {
    #[inline(always)]
    fn new(window: &[u8; WINDOW], from: usize) -> Self {
        let block = Block::new(head(window));
        let cut = block::SIZE - (!block.words).leading_zeros() as usize;
        // A word of a whole block and more is looked at byte by byte.
        let cut = if cut == 0 { block::SIZE } else { cut };
        Self { from, block, tokens: block.tokens() & u64::MAX >> (block::SIZE - cut), cut, ended: 0 }
    }

    /// What has been read ends at `passed`, counted from the block's beginning. `false`: that is behind the block, or what follows
    /// there is a word that the block cuts off, which is so where all of the block looked like one.
    #[inline(always)]
    fn pass(&mut self, passed: usize) -> bool {
        if passed >= self.cut || self.block.words >> passed == u64::MAX >> passed {
            return false;
        }
        // Where a word follows at once, the block does not show that it begins there.
        self.tokens = self.tokens & u64::MAX << passed | !self.block.spaces & 1 << passed;
        self.ended = passed;
        true
    }
}

#[inline(always)]
fn head(window: &[u8; WINDOW]) -> &[u8; block::SIZE] {
    window.first_chunk().expect("a window is longer than a block")
}

/// A text's end with zeros behind, so that whole windows can be looked at there.
pub(super) struct Windows {
    end: [u8; 2 * WINDOW],
    /// What of the text is there.
    from: usize,
}

impl Default for Windows {
    fn default() -> Self {
        Self { end: [0; 2 * WINDOW], from: usize::MAX }
    }
}

impl Windows {
    /// The bytes of the text from `at` on, with zeros behind its end. No other text may follow.
    #[inline]
    fn at<'w>(&'w mut self, text: &'w [u8], at: usize) -> &'w [u8; WINDOW] {
        let rest = &text[at..];
        if let Some(window) = rest.first_chunk() {
            return window;
        }
        if at < self.from {
            self.from = at;
            let (copy, behind) = self.end.split_at_mut(rest.len());
            copy.copy_from_slice(rest);
            behind[..WINDOW].fill(0);
        }
        self.end[at - self.from..].first_chunk().expect("less than a window is left, and zeros behind it")
    }
}

impl<'t> Cursor<'t> {
    #[inline]
    pub(super) fn new(text: &'t [u8], backslashes: bool, windows: &'t mut Windows) -> Self {
        windows.from = usize::MAX;
        let place = Place::new(windows.at(text, 0), 0);
        Self { text, backslashes, windows, place, print: Print::new() }
    }

    /// The next token. The fingerprint gets it.
    #[inline]
    pub(super) fn next(&mut self) -> Token {
        loop {
            let place = &mut self.place;
            let window = self.windows.at(self.text, place.from);
            if place.tokens == 0 {
                *place = Place::new(self.windows.at(self.text, place.from + place.cut), place.from + place.cut);
                continue;
            }
            let plain = Plain::new(window, place.block, place.tokens);
            let is_prefix = plain.size == 1 && window[plain.here + 1] == b'\'';
            if !plain.is_plain() || is_prefix || !plain.add(window, &mut self.print) {
                match self.read_special(plain, None) {
                    Some(token) => return token,
                    None => continue,
                }
            }
            place.tokens &= place.tokens - 1;
            place.ended = plain.here + plain.size.max(1);
            let kind = if plain.size == 0 { Kind::Mark(plain.first) } else { Kind::Word };
            return Token { kind, start: place.from + plain.here, end: place.from + place.ended };
        }
    }

    /// Reads on to the next token that is the end of the statement or a word or name that may matter. The fingerprint gets all.
    /// `behind_into`: whether the token before is INTO; before the one that is returned, then.
    pub(super) fn skim(&mut self, behind_into: &mut bool) -> Token {
        const INTO: u64 = piece_of(b"into");
        let mut last = if *behind_into { INTO } else { 0 };
        let (text, backslashes) = (self.text, self.backslashes);
        let (mut place, mut print) = (self.place, self.print);
        let mut window = self.windows.at(text, place.from);
        // The fingerprint without the last token.
        let mut before = print;
        let found = loop {
            if place.tokens == 0 {
                let from = place.from + place.cut;
                window = self.windows.at(text, from);
                place = Place::new(window, from);
                continue;
            }
            let plain = Plain::new(window, place.block, place.tokens);
            let Plain { here, size, first, piece } = plain;
            let was = print;
            if plain.is_plain() & !may_matter(piece) && plain.add(window, &mut print) {
                place.tokens &= place.tokens - 1;
                (before, last) = (was, piece);
                continue;
            }
            match first {
                b';' => {
                    place.tokens &= place.tokens - 1;
                    place.ended = here + 1;
                    print.add_mark(b';');
                    let start = place.from + here;
                    break Token { kind: Kind::Mark(b';'), start, end: start + 1 };
                }
                b'0'..=b'9' if size < block::SIZE && window[here + size] != b'.' => {
                    place.tokens &= place.tokens - 1;
                    print.add_constant();
                    last = 0;
                    continue;
                }
                b'-' | b'/' if window[here + 1] != if first == b'-' { b'-' } else { b'*' } => {
                    place.tokens &= place.tokens - 1;
                    print.add_mark(first);
                    last = 0;
                    continue;
                }
                b'-' => {
                    let ends = Block::positions(head(window), b'\n') | Block::positions(head(window), b'\r');
                    let ends = ends & u64::MAX << here;
                    if ends != 0 {
                        place.tokens &= ends | ends.wrapping_neg();
                        continue;
                    }
                }
                b'\'' | b'"' => {
                    let prefix = plain.prefix(window, place.ended);
                    let ends = Block::positions(head(window), first) & (u64::MAX << here) << 1;
                    let end = ends.trailing_zeros() as usize + 1;
                    // Another behind it would be one that is part of the text.
                    let is_whole = end < place.cut && window[end] != first;
                    let start = place.from + here;
                    let is_plain = if first == b'"' { !is_escaped(text, start) } else { !backslashes };
                    if is_whole && prefix == 0 && is_plain {
                        place.pass(end);
                        let name = &text[start..place.from + end];
                        if first == b'\'' {
                            print.add_constant();
                        } else {
                            print.add_quoted(name);
                            if may_matter_in(&name[1..]) {
                                break Token { kind: Kind::Quoted, start, end: place.from + end };
                            }
                        }
                        last = 0;
                        continue;
                    }
                }
                _ if plain.is_plain() && may_matter(piece) && plain.add(window, &mut print) => {
                    place.tokens &= place.tokens - 1;
                    place.ended = here + size;
                    let start = place.from + here;
                    break Token { kind: Kind::Word, start, end: start + size };
                }
                _ => {}
            }
            (self.place, self.print) = (place, print);
            let token = self.read_special(plain, Some(before));
            (place, print) = (self.place, self.print);
            window = self.windows.at(text, place.from);
            let Some(token) = token else { continue };
            let matters = match token.kind {
                Kind::End | Kind::Unreadable | Kind::Escaped | Kind::Mark(b';') => true,
                Kind::Word => may_matter_in(&text[token.start..token.end]),
                Kind::Quoted => may_matter_in(&text[token.start + 1..token.end - 1]),
                Kind::Text | Kind::Number | Kind::Parameter | Kind::Mark(_) => false,
            };
            if matters {
                break token;
            }
            let name = &text[token.start..token.end];
            last = if token.kind == Kind::Word && name.len() == 4 { piece_of(name) } else { 0 };
            before = print;
        };
        (self.place, self.print) = (place, print);
        *behind_into = last == INTO;
        found
    }

    /// Has the lexer read what is no plain word or mark, or passes over a comment. `before`: the fingerprint without the last token.
    #[inline(never)]
    fn read_special(&mut self, plain: Plain, before: Option<Print>) -> Option<Token> {
        let text = self.text;
        let window = self.windows.at(text, self.place.from);
        let start = self.place.from + plain.here;
        let mut lexer = Lexer { text, at: start, backslashes: self.backslashes };
        let token = match plain.first {
            b'-' if window[plain.here + 1] == b'-' => {
                lexer.skip_line();
                None
            }
            b'\'' => Some(match plain.prefix(window, self.place.ended) {
                0 => lexer.text_constant(start, self.backslashes),
                // It has been taken for a word.
                letter => {
                    self.print = before.expect("whoever reads one token only looks for this first");
                    lexer.text_constant(start - 1, self.backslashes || letter == b'e')
                }
            }),
            _ => Some(lexer.next()),
        };
        if let Some(token) = &token {
            note(text, token, &mut self.print);
        }
        if !self.place.pass(lexer.at - self.place.from) {
            self.place = Place::new(self.windows.at(text, lexer.at), lexer.at);
        }
        token
    }
}

/// A token as far as the block shows it.
#[derive(Clone, Copy)]
struct Plain {
    here: usize,
    /// Of a word; none: a mark.
    size: usize,
    first: u8,
    /// How it begins.
    piece: u64,
}

impl Plain {
    /// The first of `tokens`, of which there are some.
    #[inline(always)]
    fn new(window: &[u8; WINDOW], block: Block, tokens: u64) -> Self {
        let here = tokens.trailing_zeros() as usize % block::SIZE;
        let size = block.word_size(here);
        let bytes = window[here..].first_chunk().expect("a window is so much longer than a block");
        let piece = print::piece(bytes, size);
        Self { here, size, first: window[here], piece }
    }

    /// Whether it is a word, or a mark by itself, and of no special kind.
    #[inline(always)]
    fn is_plain(&self) -> bool {
        !SPECIAL[self.first as usize] & print::is_ascii(self.piece)
    }

    /// Adds a plain word to the fingerprint. `false`: it is too long for that.
    #[inline(always)]
    fn add(&self, window: &[u8; WINDOW], print: &mut Print) -> bool {
        if self.size > 8 {
            let bytes = window[self.here + 8..].first_chunk().expect("a window is so much longer than a block");
            let rest = print::piece(bytes, self.size - 8);
            if self.size > 16 || !print::is_ascii(rest) {
                return false;
            }
            print.add(self.piece);
            print.add(rest);
            print.add_size(self.size);
        } else {
            print.add(self.piece);
        }
        true
    }

    /// Of a quote: the letter before it that makes one constant with it, in lower case, or zero. `ended`: the last token but one
    /// has ended here, or before a word of which the letter would be a part.
    #[inline(always)]
    fn prefix(&self, window: &[u8; WINDOW], ended: usize) -> u8 {
        if self.first != b'\'' || self.here <= ended {
            return 0;
        }
        let letter = window[self.here - 1] | 0x20;
        let is_alone = self.here == ended + 1 || !is_word(window[self.here - 2]);
        if is_alone && matches!(letter, b'e' | b'b' | b'x' | b'n') { letter } else { 0 }
    }
}

fn may_matter_in(name: &[u8]) -> bool {
    name.first_chunk::<4>().is_some_and(|first| may_matter(piece_of(first)))
}

/// The fingerprint gets a token that the lexer has read.
pub(super) fn note(text: &[u8], token: &Token, print: &mut Print) {
    match token.kind {
        Kind::Word => print.add_word(&text[token.start..token.end]),
        Kind::Quoted | Kind::Escaped => print.add_quoted(&text[token.start..token.end]),
        Kind::Mark(mark) => print.add_mark(mark),
        Kind::Text | Kind::Number | Kind::Parameter => print.add_constant(),
        Kind::End | Kind::Unreadable => {}
    }
}
