//! What was found in texts, so that a text that comes again is hashed and compared, but not read: a table of fixed size, in which
//! texts that fall on one place displace each other.
//!
//! Invariant: an answer is what the scanner would find; the whole text is compared, so no text can pass for another.

use std::hash::{BuildHasher, Hasher};

use foldhash::fast::FixedState;

use super::{Found, Scanner};

/// The table. Texts of which settings' names, or one special statement, would have to be kept are not in it.
pub struct Classes {
    slots: Box<[Slot]>,
    /// As many bytes for each slot.
    texts: Box<[u8]>,
}

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
        Self { slots: vec![empty; SLOTS].into(), texts: vec![0; SLOTS * TEXT_SIZE_MAX].into() }
    }
}

impl Classes {
    /// Bytes of the table, for the sums.
    pub const fn size() -> usize {
        SLOTS * (size_of::<Slot>() + TEXT_SIZE_MAX)
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
    fn a_known_text_is_hashed_once_and_not_read() {
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
                assert_eq!(classes.scan(&mut scanner, text.as_bytes(), backslashes), expected, "{text}");
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
            for number in 0..3 * SLOTS {
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
