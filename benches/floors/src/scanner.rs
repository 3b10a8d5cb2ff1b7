//! Follows message headers through a stream that arrives in arbitrary pieces; bodies are stepped over.

const HEADER_SIZE: usize = 5;

#[derive(Default)]
pub struct Scanner {
    /// Bytes of the current message's body that have not arrived.
    body_left: usize,
    tag: u8,
    /// A header of which only the first `header_held` bytes have arrived.
    header: [u8; HEADER_SIZE],
    header_held: usize,
}

impl Scanner {
    /// Calls `ended` with the tag and the last byte of each message that ends in `bytes`. The last byte is all of
    /// ReadyForQuery's body; of a message without a body it means nothing.
    #[inline]
    pub fn scan(&mut self, bytes: &[u8], mut ended: impl FnMut(u8, u8)) {
        let mut rest = bytes;
        if self.is_inside_message() {
            rest = self.resume(rest, &mut ended);
        }
        while let Some(header) = rest.first_chunk::<HEADER_SIZE>() {
            let size = message_size(header);
            if size > rest.len() {
                self.tag = header[0];
                self.body_left = size - rest.len();
                return;
            }
            ended(header[0], rest[size - 1]);
            rest = &rest[size..];
        }
        if !rest.is_empty() {
            self.header[..rest.len()].copy_from_slice(rest);
            self.header_held = rest.len();
        }
    }

    #[inline]
    pub fn is_inside_message(&self) -> bool {
        self.body_left > 0 || self.header_held > 0
    }

    /// Finishes the message that an earlier piece began, as far as `bytes` go; returns what follows it.
    #[cold]
    fn resume<'a>(&mut self, mut bytes: &'a [u8], ended: &mut impl FnMut(u8, u8)) -> &'a [u8] {
        if self.header_held > 0 {
            let missing = (HEADER_SIZE - self.header_held).min(bytes.len());
            self.header[self.header_held..][..missing].copy_from_slice(&bytes[..missing]);
            self.header_held += missing;
            bytes = &bytes[missing..];
            if self.header_held < HEADER_SIZE {
                return bytes;
            }
            self.header_held = 0;
            self.tag = self.header[0];
            self.body_left = message_size(&self.header) - HEADER_SIZE;
            if self.body_left == 0 {
                ended(self.tag, 0);
                return bytes;
            }
        }
        let taken = self.body_left.min(bytes.len());
        self.body_left -= taken;
        if self.body_left == 0 && taken > 0 {
            ended(self.tag, bytes[taken - 1]);
        }
        &bytes[taken..]
    }
}

/// The whole message with its tag. A length below four, which no peer of ours sends, counts as four.
#[inline]
fn message_size(header: &[u8; HEADER_SIZE]) -> usize {
    let length = u32::from_be_bytes([header[1], header[2], header[3], header[4]]);
    1 + (length as usize).max(4)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire;

    fn check(pieces: &[&[u8]]) -> (Vec<(u8, u8)>, bool) {
        let mut scanner = Scanner::default();
        let mut ended = Vec::new();
        for piece in pieces {
            scanner.scan(piece, |tag, last| ended.push((tag, last)));
        }
        (ended, scanner.is_inside_message())
    }

    #[test]
    fn any_split_gives_the_same_messages() {
        let mut stream = wire::message(b'Z', b"I");
        stream.extend(wire::message(b'D', &[7; 40]));
        stream.extend(wire::message(b'Z', b"T"));
        let whole = (vec![(b'Z', b'I'), (b'D', 7), (b'Z', b'T')], false);
        for first in 0..=stream.len() {
            for second in first..=stream.len() {
                let pieces = [&stream[..first], &stream[first..second], &stream[second..]];
                assert_eq!(check(&pieces), whole, "split at {first} and {second}");
            }
        }
    }

    #[test]
    fn a_started_message_shows() {
        assert!(check(&[b"Z"]).1);
        assert!(check(&[b"Z\0\0\0\x05"]).1);
        assert!(!check(&[b"Z\0\0\0\x05I"]).1);
    }
}
