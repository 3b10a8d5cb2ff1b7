//! Prepared statements shared over clients: a client's names for them, and which of them a backend has.
//!
//! A statement is a text with its parameter types, numbered by the shard; on backends it is called `qcp_<number>`, so
//! that clients' own names never meet there. Invariant: a number is never given to another text. Owned by one shard.

use std::io::Write;

/// A statement's number. Zero is none.
pub type Number = u32;

/// The name of a statement on backends, written into `room`.
pub fn backend_name(number: Number, room: &mut [u8; 16]) -> &[u8] {
    let mut rest = &mut room[..];
    write!(rest, "qcp_{number}").expect("4 letters and at most 10 digits fit");
    let left = rest.len();
    &room[..16 - left]
}

/// The name that an identifier stands for, as it is written in SQL with its quotes.
pub fn name_in_sql(identifier: &[u8]) -> Vec<u8> {
    match identifier {
        [b'"', inner @ .., b'"'] => {
            let mut doubled = false;
            let once = |&&byte: &&u8| {
                doubled = byte == b'"' && !doubled;
                byte != b'"' || doubled
            };
            inner.iter().filter(once).copied().collect()
        }
        _ => identifier.to_ascii_lowercase(),
    }
}

/// How far a client's name is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Standing {
    /// The server has accepted it.
    Live,
    /// Its Parse is in the pipeline: valid for what follows there, gone if an error cuts it off.
    Defining,
    /// Its Close is in the pipeline: gone for what follows there, back if an error cuts it off.
    Closing,
}

/// A client's statement names, packed into a block of the caller's:
///
/// ```text
/// | standing 1 | name length 1 | number 4 | name .. | ...
/// ```
///
/// The standing's highest bit says that no server has been asked for this name ([`Found::unseen`]), the next that its Parse was
/// answered in the batch that is under way ([`Names::forget_untried`]).
///
/// The same name may stand twice while a Close and a new Parse are both in the pipeline; the later one counts.
pub struct Names<'a> {
    room: &'a mut [u8],
    used: usize,
}

/// Longest name; PostgreSQL itself compares 63 bytes.
pub const NAME_SIZE_MAX: usize = 255;
const HEAD: usize = 6;

/// The block is too small for one more name.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Full;

/// One name, found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Found {
    /// The statement.
    pub number: Number,
    /// How far it is.
    pub standing: Standing,
    /// The client's Parse was answered without a server: what its text means has yet to be found out for this name.
    pub unseen: bool,
    at: usize,
}

const UNSEEN: u8 = 0x80;
const UNTRIED: u8 = 0x40;

/// How many names are packed in these bytes.
pub fn count_names(mut packed: &[u8]) -> usize {
    let mut count = 0;
    while let Some(&size) = packed.get(1) {
        packed = packed.get(HEAD + usize::from(size)..).unwrap_or_default();
        count += 1;
    }
    count
}

impl<'a> Names<'a> {
    /// Looks at `used` bytes of `room`.
    pub fn new(room: &'a mut [u8], used: usize) -> Self {
        assert!(used <= room.len());
        Self { room, used }
    }

    /// Bytes in use.
    pub fn used(&self) -> usize {
        self.used
    }

    /// Bytes that one more name takes.
    pub fn size(name: &[u8]) -> usize {
        HEAD + name.len()
    }

    /// The statement that `name` means for a message that comes now.
    pub fn find(&self, name: &[u8]) -> Option<Found> {
        let last = self.entries().filter(|(_, entry)| *entry == name).last()?.0;
        (last.standing != Standing::Closing).then_some(last)
    }

    /// Whether a Parse or a Close of `name` is in the pipeline.
    pub fn is_open(&self, name: &[u8]) -> bool {
        self.entries().any(|(found, entry)| found.standing != Standing::Live && entry == name)
    }

    /// Whether a Parse or a Close of any name of `number` is in the pipeline.
    pub fn is_number_open(&self, number: Number) -> bool {
        self.entries().any(|(found, _)| found.standing != Standing::Live && found.number == number)
    }

    /// Adds a name whose Parse goes into the pipeline.
    pub fn define(&mut self, name: &[u8], number: Number) -> Result<(), Full> {
        assert!(name.len() <= NAME_SIZE_MAX);
        let end = self.used + Self::size(name);
        let Some(entry) = self.room.get_mut(self.used..end) else { return Err(Full) };
        entry[0] = Standing::Defining as u8;
        entry[1] = name.len() as u8;
        entry[2..HEAD].copy_from_slice(&number.to_le_bytes());
        entry[HEAD..].copy_from_slice(name);
        self.used = end;
        Ok(())
    }

    /// Marks a found name: its Close goes into the pipeline.
    pub fn close(&mut self, found: Found) {
        self.set(found, Standing::Closing);
    }

    /// A found name has been answered without a server.
    pub fn set_unseen(&mut self, found: Found) {
        self.room[found.at] |= UNSEEN | UNTRIED;
    }

    /// A server is being asked for a found name.
    pub fn set_seen(&mut self, found: Found) {
        self.room[found.at] &= !UNSEEN;
    }

    /// The client has synchronised, so all that it has been told is prepared is.
    pub fn keep_untried(&mut self) {
        let mut at = 0;
        while let Some(head) = self.room[..self.used].get_mut(at..at + HEAD) {
            head[0] &= !UNTRIED;
            at += HEAD + usize::from(head[1]);
        }
    }

    /// A server has taken `number`, or has not come to it: the name that was answered before stands.
    pub fn keep_tried(&mut self, number: Number) {
        if let Some(found) = self.untried(number) {
            self.room[found.at] &= !UNTRIED;
        }
    }

    /// No server takes `number`: a name of it that was answered in the same batch is none, as if the server had said so at
    /// once. Whether there was one.
    pub fn forget_untried(&mut self, number: Number) -> bool {
        let found = self.untried(number);
        found.inspect(|&found| self.remove(found)).is_some()
    }

    fn untried(&self, number: Number) -> Option<Found> {
        let all = || self.entries().map(|(found, _)| found).filter(|found| found.number == number);
        all().find(|found| self.room[found.at] & UNTRIED != 0)
    }

    fn set(&mut self, found: Found, standing: Standing) {
        self.room[found.at] = self.room[found.at] & (UNSEEN | UNTRIED) | standing as u8;
    }

    /// The first name of `number` that is Defining is accepted now.
    pub fn defined(&mut self, number: Number) {
        if let Some(found) = self.first(number, Standing::Defining) {
            self.set(found, Standing::Live);
        }
    }

    /// The first Defining name of `number` was cut off by an error. Whether there was one.
    pub fn undefine(&mut self, number: Number) -> bool {
        let found = self.first(number, Standing::Defining);
        found.inspect(|&found| self.remove(found)).is_some()
    }

    /// The first Closing name of `number` is closed now. Whether there was one.
    pub fn closed(&mut self, number: Number) -> bool {
        let found = self.first(number, Standing::Closing);
        found.inspect(|&found| self.remove(found)).is_some()
    }

    /// The first Closing name of `number` was kept: an error cut its Close off.
    pub fn unclose(&mut self, number: Number) {
        if let Some(found) = self.first(number, Standing::Closing) {
            self.set(found, Standing::Live);
        }
    }

    /// Any one statement that a name stands for, until there are none: for giving them up.
    pub fn take_any(&mut self) -> Option<Number> {
        let (found, _) = self.entries().next()?;
        self.remove(found);
        Some(found.number)
    }

    /// Any one statement whose Parse is not still in the pipeline, until there are none.
    pub fn take_live(&mut self) -> Option<Number> {
        let (found, _) = self.entries().find(|(found, _)| found.standing != Standing::Defining)?;
        self.remove(found);
        Some(found.number)
    }

    /// The statements that `name` stands for and that are not settled: a Parse or Close is in the pipeline.
    pub fn unsettled(&self, name: &[u8]) -> impl Iterator<Item = Number> {
        let entries = self.entries().filter(move |(found, entry)| *entry == name && found.standing != Standing::Live);
        entries.map(|(found, _)| found.number)
    }

    /// A name that stands for `number`.
    pub fn name_of(&self, number: Number) -> Option<&[u8]> {
        self.entries().find(|(found, _)| found.number == number).map(|(_, name)| name)
    }

    fn first(&self, number: Number, standing: Standing) -> Option<Found> {
        self.entries().map(|(found, _)| found).find(|found| found.number == number && found.standing == standing)
    }

    fn entries(&self) -> impl Iterator<Item = (Found, &[u8])> {
        let bytes = &self.room[..self.used];
        let mut at = 0;
        std::iter::from_fn(move || {
            let head = bytes.get(at..at + HEAD)?;
            let standing = match head[0] & !(UNSEEN | UNTRIED) {
                0 => Standing::Live,
                1 => Standing::Defining,
                _ => Standing::Closing,
            };
            let number = u32::from_le_bytes([head[2], head[3], head[4], head[5]]);
            let end = at + HEAD + head[1] as usize;
            let unseen = head[0] & UNSEEN != 0;
            let found = (Found { number, standing, unseen, at }, &bytes[at + HEAD..end]);
            at = end;
            Some(found)
        })
    }

    fn remove(&mut self, found: Found) {
        let end = found.at + HEAD + self.room[found.at + 1] as usize;
        self.room.copy_within(end..self.used, found.at);
        self.used -= end - found.at;
    }
}

/// Which statements a backend has, least recently used first to go. A plain table: look-ups hash into it.
pub struct Prepared {
    slots: Box<[Slot]>,
    count: usize,
    count_max: usize,
    clock: u32,
}

#[derive(Clone, Copy, Default)]
struct Slot {
    number: Number,
    used_at: u32,
}

impl Prepared {
    /// Of a new backend; at most `count_max` statements (at least 1).
    pub fn new(count_max: usize) -> Self {
        let count_max = count_max.max(1);
        let slots = (count_max * 2).next_power_of_two();
        Self { slots: vec![Slot::default(); slots].into_boxed_slice(), count: 0, count_max, clock: 0 }
    }

    /// Statements on the backend.
    pub fn count(&self) -> usize {
        self.count
    }

    /// Whether the backend has it; if so it counts as used now.
    pub fn touch(&mut self, number: Number) -> bool {
        self.clock = self.clock.wrapping_add(1);
        let at = self.find(number);
        if self.slots[at].number != number {
            return false;
        }
        self.slots[at].used_at = self.clock;
        true
    }

    /// The statement to close before another is added, if the backend is full.
    pub fn evict(&mut self) -> Option<Number> {
        if self.count < self.count_max {
            return None;
        }
        let clock = self.clock;
        let used = self.slots.iter().filter(|slot| slot.number != 0);
        let oldest = used.max_by_key(|slot| clock.wrapping_sub(slot.used_at))?.number;
        self.remove(oldest);
        Some(oldest)
    }

    /// The backend has it (or will, when the Parse that is on its way succeeds).
    pub fn insert(&mut self, number: Number) {
        debug_assert!(number != 0 && self.count < self.slots.len() / 2 + 1);
        let at = self.find(number);
        self.count += usize::from(self.slots[at].number != number);
        self.slots[at] = Slot { number, used_at: self.clock };
    }

    /// The server has it for certain; whether there was room to remember that.
    pub fn confirm(&mut self, number: Number) -> bool {
        let known = self.touch(number);
        let room = self.count < self.count_max;
        if !known && room {
            self.insert(number);
        }
        known || room
    }

    /// The backend does not have it (any more).
    pub fn remove(&mut self, number: Number) {
        let mut hole = self.find(number);
        if self.slots[hole].number != number {
            return;
        }
        self.count -= 1;
        self.slots[hole] = Slot::default();
        // Entries behind the hole move up where their own place is at or before it.
        let mask = self.slots.len() - 1;
        let mut at = (hole + 1) & mask;
        while self.slots[at].number != 0 {
            let home = Self::home(self.slots[at].number, mask);
            if (at.wrapping_sub(home) & mask) >= (at.wrapping_sub(hole) & mask) {
                self.slots[hole] = std::mem::take(&mut self.slots[at]);
                hole = at;
            }
            at = (at + 1) & mask;
        }
    }

    /// The backend has none.
    pub fn clear(&mut self) {
        self.slots.fill(Slot::default());
        self.count = 0;
    }

    fn find(&self, number: Number) -> usize {
        let mask = self.slots.len() - 1;
        let mut at = Self::home(number, mask);
        while self.slots[at].number != 0 && self.slots[at].number != number {
            at = (at + 1) & mask;
        }
        at
    }

    fn home(number: Number, mask: usize) -> usize {
        (number.wrapping_mul(0x9e37_79b1) >> 8) as usize & mask
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashMap;

    #[test]
    fn names_on_backends() {
        let mut room = [0; 16];
        assert_eq!(backend_name(7, &mut room), b"qcp_7");
        assert_eq!(backend_name(u32::MAX, &mut room), b"qcp_4294967295");
    }

    #[test]
    fn names_in_sql() {
        for (written, name) in [("Ab", "ab"), ("\"Ab\"", "Ab"), ("\"a\"\"b\"\"\"\"\"", "a\"b\"\""), ("\"\"", "")] {
            assert_eq!(name_in_sql(written.as_bytes()), name.as_bytes());
        }
    }

    #[test]
    fn what_was_answered_before_a_server_was_asked() {
        let mut room = [0; 64];
        let mut names = Names::new(&mut room, 0);
        for name in [&b"r"[..], b"s", b"t"] {
            names.define(name, 1).unwrap();
            names.defined(1);
        }
        assert!(!names.forget_untried(1), "all of them are the server's word");
        names.set_unseen(names.find(b"s").unwrap());
        names.set_seen(names.find(b"s").unwrap());
        assert!(!names.find(b"s").unwrap().unseen);
        assert!(names.forget_untried(1));
        assert_eq!(names.find(b"s"), None);
        assert!(names.find(b"r").is_some() && names.find(b"t").is_some());
        // Kept by a Sync, or by the server's word.
        names.set_unseen(names.find(b"r").unwrap());
        names.keep_untried();
        assert!(!names.forget_untried(1) && names.find(b"r").unwrap().unseen);
        names.set_unseen(names.find(b"t").unwrap());
        names.keep_tried(1);
        assert!(!names.forget_untried(1));
    }

    #[test]
    fn close_and_parse_of_one_name_in_one_pipeline() {
        let mut room = [0; 64];
        let mut names = Names::new(&mut room, 0);
        names.define(b"s", 1).unwrap();
        names.defined(1);
        let found = names.find(b"s").unwrap();
        assert_eq!((found.number, found.standing), (1, Standing::Live));
        names.set_unseen(found);
        names.close(names.find(b"s").unwrap());
        assert_eq!(names.find(b"s"), None);
        names.define(b"s", 2).unwrap();
        assert_eq!(names.find(b"s").unwrap().number, 2);
        // An error cuts both off ...
        names.unclose(1);
        names.undefine(2);
        assert_eq!(names.find(b"s").unwrap().number, 1);
        assert!(names.find(b"s").unwrap().unseen);
        // ... or both are done.
        let found = names.find(b"s").unwrap();
        names.close(found);
        names.define(b"s", 2).unwrap();
        names.closed(1);
        names.defined(2);
        assert_eq!(names.find(b"s").unwrap().number, 2);
        assert_eq!((names.take_any(), names.take_any(), names.used()), (Some(2), None, 0));
    }

    #[test]
    fn a_full_block_says_so() {
        let mut room = [0; 10];
        let mut names = Names::new(&mut room, 0);
        assert_eq!(names.define(b"longer", 1), Err(Full));
        assert_eq!(names.define(b"s", 1), Ok(()));
    }

    proptest! {
        #[test]
        fn the_table_agrees_with_a_map(steps in proptest::collection::vec((1u32..40, 0u8..3), 0..400)) {
            let mut prepared = Prepared::new(20);
            let mut model: HashMap<u32, usize> = HashMap::new();
            for (time, (number, what)) in steps.into_iter().enumerate() {
                match what {
                    0 => {
                        prop_assert_eq!(prepared.touch(number), model.contains_key(&number));
                        model.entry(number).and_modify(|used| *used = time);
                    }
                    1 => {
                        prepared.remove(number);
                        model.remove(&number);
                    }
                    _ if !model.contains_key(&number) => {
                        prepared.touch(number);
                        let evicted = prepared.evict();
                        let oldest = model.iter().min_by_key(|(_, used)| **used).map(|(number, _)| *number);
                        prop_assert_eq!(evicted, oldest.filter(|_| model.len() == 20));
                        evicted.and_then(|number| model.remove(&number));
                        prepared.insert(number);
                        model.insert(number, time);
                    }
                    _ => {}
                }
                prop_assert_eq!(prepared.count(), model.len());
            }
        }
    }
}
