//! 64 bytes of a text at once: which of them belong to words, and which are space.

use wide::u8x16;

/// Bytes of a block.
pub(super) const SIZE: usize = 64;

/// One bit for each byte, that of the first byte the lowest.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Block {
    /// Bytes that are part of a word, wherever they stand in it: digits and dollar signs among them.
    pub(super) words: u64,
    pub(super) spaces: u64,
}

pub(super) const fn is_space(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | b'\n' | b'\r' | 0x0b | 0x0c)
}

impl Block {
    #[inline]
    pub(super) fn new(bytes: &[u8; SIZE]) -> Self {
        let all = |byte: u8| u8x16::splat(byte);
        let is_in = |bytes: u8x16, first: u8, count: u8| {
            let from = bytes - all(first);
            from.min(all(count - 1)).simd_eq(from)
        };
        let mut block = Self { words: 0, spaces: 0 };
        let (parts, _) = bytes.as_chunks::<16>();
        for (at, part) in parts.iter().enumerate() {
            let bytes = u8x16::new(*part);
            let letters = is_in(bytes | all(0x20), b'a', 26);
            let others = bytes.simd_eq(all(b'_')) | bytes.simd_eq(all(b'$'));
            // What is asked for is the highest bit of each byte, which those from 0x80 on have by themselves.
            let word = letters | is_in(bytes, b'0', 10) | others | bytes;
            let space = bytes.simd_eq(all(b' ')) | is_in(bytes, b'\t', 5);
            block.words |= u64::from(word.to_bitmask()) << (at * 16);
            block.spaces |= u64::from(space.to_bitmask()) << (at * 16);
        }
        block
    }

    /// Where `byte` is.
    #[inline]
    pub(super) fn positions(bytes: &[u8; SIZE], byte: u8) -> u64 {
        let (parts, _) = bytes.as_chunks::<16>();
        let found = |at: usize| u64::from(u8x16::new(parts[at]).simd_eq(u8x16::splat(byte)).to_bitmask()) << (at * 16);
        found(0) | found(1) | found(2) | found(3)
    }

    /// Where words and marks begin. The first byte begins one unless it is space.
    #[inline]
    pub(super) fn tokens(self) -> u64 {
        !self.spaces & !(self.words & (self.words << 1))
    }

    /// How many bytes of a word stand at `at`, as far as the block goes; none for a mark.
    #[inline]
    pub(super) fn word_size(self, at: usize) -> usize {
        (!(self.words >> at)).trailing_zeros() as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::scanner::lexer::is_word;

    fn one_by_one(bytes: &[u8; SIZE]) -> Block {
        let mut block = Block { words: 0, spaces: 0 };
        for (at, &byte) in bytes.iter().enumerate() {
            block.words |= u64::from(is_word(byte)) << at;
            block.spaces |= u64::from(is_space(byte)) << at;
        }
        block
    }

    #[test]
    fn every_byte_is_what_it_is() {
        for byte in 0..=u8::MAX {
            let mut bytes = [b' '; SIZE];
            for at in 0..SIZE {
                bytes[at] = byte;
                assert_eq!(Block::new(&bytes), one_by_one(&bytes), "{byte} at {at}");
                bytes[at] = b'x';
            }
        }
        let block = Block::new(&std::array::from_fn(|at| b"ab  c.d,$1 "[at % 11]));
        assert_eq!(block.tokens() & 0x7ff, 0b001_1111_0001);
        assert_eq!((block.word_size(0), block.word_size(1), block.word_size(5)), (2, 1, 0));
    }
}
