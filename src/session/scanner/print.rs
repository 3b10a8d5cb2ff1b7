//! A text's fingerprint: of its words, names and marks in their order, while constants, space and comments are left out and
//! words count in lower case.

/// Bytes of a word that are taken at once.
const PIECE: usize = 8;

/// What is made of the tokens so far.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Print(u64);

/// What is kept of the first bytes of a word, by how many it has (a mark has none, and is one byte), and what is set in them, so
/// that letters are in lower case.
const KEPT: [u64; 65] = {
    let mut kept = [u64::MAX; 65];
    kept[0] = 0xff;
    let mut size = 1;
    while size < PIECE {
        kept[size] = (1 << (8 * size)) - 1;
        size += 1;
    }
    kept
};
const SET: [u64; 65] = {
    let mut set = KEPT;
    set[0] = 0;
    let mut size = 1;
    while size < set.len() {
        set[size] &= 0x2020_2020_2020_2020;
        size += 1;
    }
    set
};

/// The first bytes of a word of `size` bytes, up to 64, with which `bytes` begin, as a number; 0: of a mark. In lower case where they
/// are ASCII.
#[inline(always)]
pub(super) fn piece(bytes: &[u8; PIECE], size: usize) -> u64 {
    u64::from_le_bytes(*bytes) & KEPT[size] | SET[size]
}

/// The same of a known word.
pub(super) const fn piece_of(word: &[u8]) -> u64 {
    assert!(word.len() <= PIECE);
    let (mut piece, mut at) = (0, 0);
    while at < word.len() {
        piece |= ((word[at] | 0x20) as u64) << (8 * at);
        at += 1;
    }
    piece
}

#[inline(always)]
pub(super) const fn is_ascii(piece: u64) -> bool {
    piece & 0x8080_8080_8080_8080 == 0
}

impl Print {
    pub(super) fn new() -> Self {
        Self(0)
    }

    /// A word of up to 8 bytes, a mark, or a part of a longer word.
    #[inline(always)]
    pub(super) fn add(&mut self, piece: u64) {
        // Two arbitrary numbers.
        let product = u128::from(self.0 ^ piece ^ 0x9e37_79b9_7f4a_7c15) * 0xf135_7aea_2e62_a9c5;
        self.0 = product as u64 ^ (product >> 64) as u64;
    }

    /// A word of any length. Behind more than 8 bytes comes how many there were.
    pub(super) fn add_word(&mut self, word: &[u8]) {
        let is_ascii = word.is_ascii();
        for part in word.chunks(PIECE) {
            let mut bytes = [0; PIECE];
            bytes[..part.len()].copy_from_slice(part);
            // Other letters are taken as they are: nobody here knows their lower case.
            self.add(match is_ascii {
                true => piece(&bytes, part.len()),
                false => u64::from_le_bytes(bytes.map(|byte| byte.to_ascii_lowercase())),
            });
        }
        if word.len() > PIECE {
            self.add_size(word.len());
        }
    }

    /// How long a word was.
    #[inline(always)]
    pub(super) fn add_size(&mut self, size: usize) {
        // No word is such a number: none begins with a zero.
        self.add((size as u64) << 8);
    }

    /// A name in quotes: with them, as it stands there.
    pub(super) fn add_quoted(&mut self, name: &[u8]) {
        for part in name.chunks(PIECE) {
            let mut bytes = [0; PIECE];
            bytes[..part.len()].copy_from_slice(part);
            self.add(u64::from_le_bytes(bytes));
        }
    }

    #[inline(always)]
    pub(super) fn add_mark(&mut self, mark: u8) {
        self.add(u64::from(mark));
    }

    /// Any constant, number or parameter.
    #[inline(always)]
    pub(super) fn add_constant(&mut self) {
        self.add_mark(b'?');
    }

    pub(super) fn finish(self) -> u64 {
        self.0
    }
}
