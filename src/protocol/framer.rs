//! Cuts a stream into messages: the one framer of the relay, used for both directions.
//!
//! It reads a message's five-byte head and counts the rest; bodies may be of any size and are not looked at. It holds
//! no bytes: what it calls [`Step::Incomplete`] the caller keeps, and comes back with more behind it.
//! Whatever the stream is split into, the messages are the same.

use super::HEAD_SIZE;
pub use super::Malformed;
use super::tag::Direction;

#[derive(Clone, Copy)]
pub struct Framer {
    direction: Direction,
    /// Bytes of the message under way that have yet to come.
    remaining: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// `length` bytes continue the message whose head was returned before, and end it if `last`.
    Rest { length: usize, last: bool },
    /// A message begins. `size` is the whole of it with its tag; `available` of its bytes are in the slice, at least
    /// as many as were needed.
    Message { tag: u8, size: u32, available: usize },
    /// Too few bytes to decide: at least `need`, counted from the message's first, must be in one piece.
    Incomplete { need: usize },
    /// The slice is used up.
    End,
}

impl Framer {
    pub const fn new(direction: Direction) -> Self {
        Framer { direction, remaining: 0 }
    }

    /// What comes next in `bytes`, which begin where the last step ended: the caller has moved on by `length` or
    /// `available`. `need(tag, size)` says how many bytes from the message's first the caller wants in one piece
    /// before it hears of the message: at most all of it, and its head in any case.
    #[inline]
    pub fn next(&mut self, bytes: &[u8], need: impl FnOnce(u8, u32) -> usize) -> Result<Step, Malformed> {
        let Some(&tag) = bytes.first() else {
            return Ok(Step::End);
        };
        if self.remaining > 0 {
            let length = bytes.len().min(self.remaining as usize);
            self.remaining -= length as u32;
            return Ok(Step::Rest { length, last: self.remaining == 0 });
        }

        // An unknown tag is refused before its length has come: whoever speaks another protocol may never send one.
        let allowed = self.direction.lengths(tag).ok_or(Malformed::UnknownTag(tag))?;
        let Some(&[_, length @ ..]) = bytes.first_chunk::<HEAD_SIZE>() else {
            return Ok(Step::Incomplete { need: HEAD_SIZE });
        };
        let length = u32::from_be_bytes(length);
        if length < allowed.min || length > allowed.max {
            return Err(refuse(tag, length, allowed.min));
        }

        let size = length + 1;
        let need = need(tag, size).min(size as usize);
        if bytes.len() < need {
            return Ok(Step::Incomplete { need });
        }
        let available = bytes.len().min(size as usize);
        self.remaining = size - available as u32;
        Ok(Step::Message { tag, size, available })
    }

    /// Whether the last message returned has ended. Bytes that the caller holds belong to the next.
    pub fn at_boundary(&self) -> bool {
        self.remaining == 0
    }

    /// How many bytes of the message under way have yet to come.
    pub fn remaining(&self) -> u32 {
        self.remaining
    }
}

#[cold]
fn refuse(tag: u8, length: u32, min: u32) -> Malformed {
    let signed = length as i32;
    if signed < 4 {
        Malformed::LengthBelowFour(signed)
    } else if length < min {
        Malformed::TooShort { tag, length }
    } else {
        Malformed::TooLong { tag, length }
    }
}

#[cfg(test)]
mod tests {
    use super::super::properties::{Seen, cut, message};
    use super::super::tag::{LARGE_LENGTH_MAX, backend, frontend};
    use super::*;
    use proptest::prelude::*;

    fn refused(direction: Direction, bytes: &[u8]) -> Malformed {
        cut(direction, &[bytes], |_, _| 0).1.expect_err("this is malformed")
    }

    #[test]
    fn cuts_a_pipeline() {
        let stream = [message(frontend::PARSE, b"\0SELECT 1\0\0\0"), message(frontend::SYNC, b"")].concat();
        let (seen, rest) = cut(Direction::Frontend, &[&stream], |_, _| 0);
        assert_eq!(seen.iter().map(|(tag, _)| *tag).collect::<Vec<_>>(), [frontend::PARSE, frontend::SYNC]);
        assert_eq!(rest, Ok(Vec::new()));
    }

    #[test]
    fn streams_a_gigabyte_that_is_not_there() {
        let mut head = vec![frontend::COPY_DATA];
        head.extend(LARGE_LENGTH_MAX.to_be_bytes());
        let mut framer = Framer::new(Direction::Frontend);
        let size = 0x3fff_ffff;
        assert_eq!(framer.next(&head, |_, _| 0), Ok(Step::Message { tag: frontend::COPY_DATA, size, available: 5 }));
        assert_eq!(framer.remaining(), size - 5);
        assert_eq!(framer.next(&[0; 100], |_, _| 0), Ok(Step::Rest { length: 100, last: false }));
    }

    #[test]
    fn refuses_what_is_no_message() {
        use Direction::{Backend, Frontend};
        assert_eq!(refused(Frontend, b"G"), Malformed::UnknownTag(b'G'));
        assert_eq!(refused(Backend, b"\0"), Malformed::UnknownTag(0));
        assert_eq!(refused(Frontend, b"Q\0\0\0\x03"), Malformed::LengthBelowFour(3));
        assert_eq!(refused(Frontend, b"Q\xff\xff\xff\xff"), Malformed::LengthBelowFour(-1));
        let length = 0x3fff_ffff;
        assert_eq!(refused(Frontend, b"Q\x3f\xff\xff\xff"), Malformed::TooLong { tag: b'Q', length });
        assert_eq!(refused(Frontend, b"S\0\0\0\x05"), Malformed::TooLong { tag: b'S', length: 5 });
        assert_eq!(refused(Frontend, b"E\0\0\x27\x11"), Malformed::TooLong { tag: b'E', length: 10_001 });
        assert_eq!(refused(Backend, b"Z\0\0\0\x04"), Malformed::TooShort { tag: b'Z', length: 4 });
        assert_eq!(refused(Backend, b"K\0\0\x01\x09"), Malformed::TooLong { tag: b'K', length: 265 });
    }

    #[test]
    fn holds_until_what_is_needed_is_there() {
        let bytes = message(backend::PARAMETER_STATUS, b"TimeZone\0UTC\0");
        let mut framer = Framer::new(Direction::Backend);
        for length in 1..bytes.len() {
            let need = if length < HEAD_SIZE { HEAD_SIZE } else { bytes.len() };
            assert_eq!(framer.next(&bytes[..length], |_, size| size as usize), Ok(Step::Incomplete { need }));
        }
        let whole = Step::Message { tag: b'S', size: bytes.len() as u32, available: bytes.len() };
        assert_eq!(framer.next(&bytes, |_, size| size as usize), Ok(whole));
        assert!(framer.at_boundary());
    }

    proptest! {
        #[test]
        fn any_split_gives_the_same_messages(
            bodies in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..40), 0..12),
            cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..12),
            need in 0usize..60,
            broken in any::<bool>(),
        ) {
            let tags = [frontend::QUERY, frontend::BIND, frontend::COPY_DATA];
            let expected: Vec<Seen> = bodies.iter().enumerate()
                .map(|(index, body)| (tags[index % 3], message(tags[index % 3], body)))
                .collect();
            let mut stream: Vec<u8> = expected.iter().flat_map(|(_, bytes)| bytes.clone()).collect();
            if broken {
                stream.extend(b"S\0\0\0\x07abc");
            }
            let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(stream.len() + 1)).collect();
            cuts.extend([0, stream.len()]);
            cuts.sort_unstable();
            let pieces: Vec<&[u8]> = cuts.windows(2).map(|cut| &stream[cut[0]..cut[1]]).collect();

            let (seen, end) = cut(Direction::Frontend, &pieces, |_, _| need);
            prop_assert_eq!(seen, expected);
            match broken {
                true => prop_assert_eq!(end, Err(Malformed::TooLong { tag: b'S', length: 7 })),
                false => prop_assert_eq!(end, Ok(Vec::new())),
            }
        }

        #[test]
        fn any_split_of_noise_gives_the_same_outcome(stream in prop::collection::vec(any::<u8>(), 0..200)) {
            let bytes: Vec<&[u8]> = stream.chunks(1).collect();
            for direction in [Direction::Frontend, Direction::Backend] {
                let whole = cut(direction, &[&stream], |_, _| 9);
                prop_assert_eq!(cut(direction, &bytes, |_, _| 9), whole);
            }
        }
    }
}
