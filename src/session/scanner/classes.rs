//! What was found in texts, so that a text that comes again and again is hashed and compared, but not read: a table of fixed size, in
//! which texts that fall on one place displace each other. A text is taken in when it comes a second time, so that those which
//! never do cost no more than a look at two small lists of marks: the table is too large for a core's first cache.
//!
//! Invariant: an answer is what the scanner would find; the whole text is compared, so no text can pass for another.

use std::hash::{BuildHasher, Hasher};

use foldhash::fast::FixedState;

use super::{Found, Scanner};

/// The table. Texts of which settings' names, or one special statement, would have to be kept are not in it.
pub struct Classes {
    /// Of the texts in the table.
    marks: Box<[Mark; SLOTS]>,
    /// Of those that came last.
    seen: Box<[Mark; SLOTS]>,
    slots: Box<[Slot]>,
    /// As many bytes for each slot.
    texts: Box<[u8]>,
}

/// A part of a text's hash; 0: of none.
type Mark = u32;

#[derive(Clone)]
struct Slot {
    hash: u64,
    size: usize,
    backslashes: bool,
    /// `None`: the slot is empty.
    found: Option<Found>,
}

/// Texts that are remembered.
const SLOTS: usize = 1024;
/// Longest text; what takes longer to read than it takes to be asked is the server's longer business, too.
const TEXT_SIZE_MAX: usize = 256;

impl Default for Classes {
    fn default() -> Self {
        let empty = Slot { hash: 0, size: 0, backslashes: false, found: None };
        Self {
            marks: Box::new([0; SLOTS]),
            seen: Box::new([0; SLOTS]),
            slots: vec![empty; SLOTS].into(),
            texts: vec![0; SLOTS * TEXT_SIZE_MAX].into(),
        }
    }
}

impl Classes {
    /// Bytes of the table, for the sums.
    pub const fn size() -> usize {
        SLOTS * (2 * size_of::<Mark>() + size_of::<Slot>() + TEXT_SIZE_MAX)
    }

    /// As [`Scanner::scan`], names included.
    pub fn scan(&mut self, scanner: &mut Scanner, text: &[u8], backslashes: bool) -> Found {
        if text.len() > TEXT_SIZE_MAX {
            return scanner.scan(text, backslashes);
        }
        let mut hasher = FixedState::default().build_hasher();
        hasher.write(text);
        let hash = hasher.finish();
        #[cfg(debug_assertions)]
        super::counted::add_hashed(text.len());
        let place = hash as usize % SLOTS;
        let mark = (hash >> 32) as Mark | 1;
        let comes_again = std::mem::replace(&mut self.seen[place], mark) == mark;
        if self.marks[place] != mark && !comes_again {
            return scanner.scan(text, backslashes);
        }
        let slot = &mut self.slots[place];
        let kept = &mut self.texts[place * TEXT_SIZE_MAX..][..text.len()];
        if let Some(found) = &slot.found
            && (slot.hash, slot.size, slot.backslashes) == (hash, text.len(), backslashes)
            && kept == text
        {
            scanner.names.clear();
            return found.clone();
        }
        let found = scanner.scan(text, backslashes);
        if found.only.is_none() && scanner.names.ends.is_empty() {
            self.marks[place] = mark;
            kept.copy_from_slice(text);
            *slot = Slot { hash, size: text.len(), backslashes, found: Some(found.clone()) };
        }
        found
    }
}

#[cfg(all(test, debug_assertions))]
mod tests {
    use super::super::counted;
    use super::*;

    #[test]
    fn a_text_that_has_come_twice_is_hashed_once_and_not_read() {
        let (mut classes, mut scanner) = (Classes::default(), Scanner::default());
        let long = "x".repeat(TEXT_SIZE_MAX + 1);
        for (text, is_kept) in [
            ("select 1", true),
            ("select nextval('s'), pg_advisory_lock(1)", true),
            ("set local work_mem to 1", true),
            ("do ''", true),
            ("select 'no end", true),
            ("set work_mem to 1", false),
            ("reset all", false),
            (&long, false),
            ("", true),
        ] {
            for backslashes in [false, true] {
                let expected = Scanner::default().scan(text.as_bytes(), backslashes);
                for _ in 0..2 {
                    assert_eq!(classes.scan(&mut scanner, text.as_bytes(), backslashes), expected, "{text}");
                }
                let before = counted::so_far();
                assert_eq!(classes.scan(&mut scanner, text.as_bytes(), backslashes), expected, "{text}");
                let after = counted::so_far();
                let read = after.scanned - before.scanned;
                assert_eq!(read, if is_kept { 0 } else { text.len() as u64 }, "{text}");
                let hashed = after.hashed - before.hashed;
                assert_eq!(hashed, if text.len() <= TEXT_SIZE_MAX { text.len() as u64 } else { 0 }, "{text}");
            }
        }
    }

    #[test]
    fn names_are_those_of_the_last_text() {
        let (mut classes, mut scanner) = (Classes::default(), Scanner::default());
        classes.scan(&mut scanner, b"select 1", false);
        classes.scan(&mut scanner, b"set a = 1", false);
        assert_eq!(scanner.names().collect::<Vec<_>>(), [b"a"]);
        classes.scan(&mut scanner, b"select 1", false);
        assert_eq!(scanner.names().count(), 0);
    }

    #[test]
    fn many_texts_displace_each_other_and_are_never_mistaken() {
        let (mut classes, mut scanner) = (Classes::default(), Scanner::default());
        for round in 0..3 {
            for number in (0..3 * SLOTS).flat_map(|number| [number; 3]) {
                let text = match number % 3 {
                    0 => format!("select {number}"),
                    1 => format!("listen a{number}"),
                    _ => format!("set x{number} = 1"),
                };
                let found = classes.scan(&mut scanner, text.as_bytes(), false);
                assert_eq!(found, Scanner::default().scan(text.as_bytes(), false), "{text}, {round}");
            }
        }
    }
}
