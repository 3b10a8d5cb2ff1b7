//! Texts of prepared statements, each kept once for all clients of the shard, in blocks of the arena.

use std::collections::{HashMap, VecDeque};
use std::hash::BuildHasher;

use foldhash::fast::RandomState;

use crate::memory::{Arena, Block};
use crate::session::prepared::Number;
use crate::session::scanner::{Effects, Found};

/// The table. Bytes and number are bounded.
pub(super) struct Statements {
    arena: Arena,
    statements: HashMap<Number, Statement, RandomState>,
    by_hash: HashMap<u64, Number, RandomState>,
    hasher: RandomState,
    /// Statements that no client names any more, oldest first; kept because another client may.
    unheld: VecDeque<Number>,
    next: Number,
    bytes: usize,
    bytes_max: usize,
}

struct Statement {
    /// Query, zero, parameter types: what follows the name in a Parse.
    text: Block,
    length: u32,
    hash: u64,
    /// Of the settings under which it is prepared: see `Vectors::projection`.
    projection: u64,
    class: Option<Class>,
    holders: u32,
    /// Serials of pools whose server has taken it, the last few; 0 is none.
    accepted: [u32; 4],
}

impl Statement {
    fn is(&self, text: &[u8], projection: u64) -> bool {
        self.projection == projection && self.text.bytes()[..self.length as usize] == *text
    }
}

/// What was found in a text, where that has been looked at.
pub(super) struct Class {
    pub(super) effects: Effects,
    pub(super) fingerprint: u64,
    /// Settings that it names, one behind the other, each with a zero behind.
    names: [u8; CLASS_NAMES_SIZE],
    names_size: u8,
}

/// Room for the names of a statement's settings. A text that names more is read each time it runs.
const CLASS_NAMES_SIZE: usize = 48;

impl Class {
    /// `None`: the names are too long to be kept.
    pub(super) fn new<'n>(found: &Found, found_names: impl Iterator<Item = &'n [u8]>) -> Option<Self> {
        let (mut names, mut used) = ([0; CLASS_NAMES_SIZE], 0);
        for name in found_names {
            names.get_mut(used..used + name.len() + 1)?[..name.len()].copy_from_slice(name);
            used += name.len() + 1;
        }
        Some(Self { effects: found.effects, fingerprint: found.fingerprint, names, names_size: used as u8 })
    }

    pub(super) fn names(&self) -> impl Iterator<Item = &[u8]> {
        let names = &self.names[..usize::from(self.names_size)];
        names.split_inclusive(|&byte| byte == 0).map(|name| &name[..name.len() - 1])
    }
}

/// No room for another text.
pub(super) struct Full;

/// Statements without a holder that are kept.
const UNHELD_MAX: usize = 256;

impl Statements {
    pub(super) fn new(arena: Arena, bytes_max: usize) -> Self {
        Self {
            arena,
            statements: HashMap::default(),
            by_hash: HashMap::default(),
            hasher: RandomState::default(),
            unheld: VecDeque::new(),
            next: 1,
            bytes: 0,
            bytes_max,
        }
    }

    /// Texts that are kept.
    pub(super) fn count(&self) -> usize {
        self.statements.len()
    }

    /// The number of a text under settings of this projection; the caller holds it.
    pub(super) fn intern(&mut self, text: &[u8], projection: u64) -> Result<Number, Full> {
        let hash = self.hasher.hash_one((text, projection));
        if let Some(&number) = self.by_hash.get(&hash) {
            let statement = self.statements.get_mut(&number).expect("the two tables agree");
            if statement.is(text, projection) {
                statement.holders += 1;
                return Ok(number);
            }
        }
        let block = loop {
            // What counts is the block, which may be larger than the text.
            let block = self.arena.spare_block(text.len());
            match block.filter(|block| self.bytes + block.size() <= self.bytes_max) {
                Some(block) => break block,
                None => self.drop_oldest().then_some(()).ok_or(Full)?,
            }
        };
        let length = text.len() as u32;
        let mut statement =
            Statement { text: block, length, hash, projection, class: None, holders: 1, accepted: [0; 4] };
        statement.text.bytes_mut()[..text.len()].copy_from_slice(text);
        self.bytes += statement.text.size();
        let number = self.next;
        self.next = self.next.checked_add(1).expect("four billion different statements on one shard");
        self.statements.insert(number, statement);
        self.by_hash.insert(hash, number);
        Ok(number)
    }

    /// The number of a text that the server of this pool has taken before; the caller holds it.
    pub(super) fn find_accepted(&mut self, text: &[u8], projection: u64, pool: u32) -> Option<Number> {
        let &number = self.by_hash.get(&self.hasher.hash_one((text, projection)))?;
        let statement = self.statements.get_mut(&number)?;
        if !statement.is(text, projection) || !statement.accepted.contains(&pool) {
            return None;
        }
        statement.holders += 1;
        Some(number)
    }

    /// The server of this pool has taken it.
    #[inline]
    pub(super) fn accept(&mut self, number: Number, pool: u32) {
        let Some(statement) = self.statements.get_mut(&number) else { return };
        if !statement.accepted.contains(&pool) {
            statement.accepted.rotate_right(1);
            statement.accepted[0] = pool;
        }
    }

    /// What follows the name in a Parse of this statement.
    pub(super) fn text(&self, number: Number) -> &[u8] {
        let statement = &self.statements[&number];
        &statement.text.bytes()[..statement.length as usize]
    }

    /// Under settings of which projection it is known.
    pub(super) fn projection(&self, number: Number) -> u64 {
        self.statements[&number].projection
    }

    /// What it may change, where that has been looked at.
    pub(super) fn class(&self, number: Number) -> Option<&Class> {
        self.statements.get(&number)?.class.as_ref()
    }

    /// Says what it may change, if it can be kept.
    pub(super) fn classify(&mut self, number: Number, class: Option<Class>) {
        if let Some(statement) = self.statements.get_mut(&number) {
            statement.class = class;
        }
    }

    /// One holder less.
    pub(super) fn let_go(&mut self, number: Number) {
        let Some(statement) = self.statements.get_mut(&number) else { return };
        assert!(statement.holders > 0, "only a holder lets go");
        statement.holders -= 1;
        if statement.holders == 0 {
            self.unheld.push_back(number);
            if self.unheld.len() > UNHELD_MAX {
                self.drop_oldest();
            }
        }
    }

    /// Frees the oldest statement that nobody holds; `false` when there is none.
    fn drop_oldest(&mut self) -> bool {
        while let Some(number) = self.unheld.pop_front() {
            if self.statements.get(&number).is_none_or(|statement| statement.holders > 0) {
                continue;
            }
            let statement = self.statements.remove(&number).expect("just looked at");
            self.bytes -= statement.text.size();
            if self.by_hash.get(&statement.hash) == Some(&number) {
                self.by_hash.remove(&statement.hash);
            }
            return true;
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_text_has_one_number_until_it_is_forgotten() {
        let arena = Arena::new(65536, 4).unwrap();
        let mut statements = Statements::new(arena, 600);
        let one = statements.intern(b"select 1\0\0\0", 0).ok().unwrap();
        assert!(statements.intern(b"select 1\0\0\0", 0).ok() == Some(one));
        let two = statements.intern(b"select 2\0\0\0", 0).ok().unwrap();
        assert_ne!(one, two);
        assert!(statements.intern(&[b'x'; 300], 0).is_err());
        statements.let_go(two);
        // Still known ...
        assert!(statements.intern(b"select 2\0\0\0", 0).ok() == Some(two));
        statements.let_go(two);
        // ... until its room is needed.
        let three = statements.intern(&[b'x'; 256], 0).ok().unwrap();
        assert!(statements.intern(b"select 2\0\0\0", 0).is_err());
        assert_eq!(statements.text(three), [b'x'; 256]);
        assert_eq!(statements.text(one), b"select 1\0\0\0");
    }

    #[test]
    fn names_of_settings_are_kept_as_they_were() {
        let found = crate::session::scanner::Scanner::default().scan(b"select 1", false);
        let kept = |names: &[&[u8]]| {
            let class = Class::new(&found, names.iter().copied())?;
            Some(class.names().map(<[u8]>::to_vec).collect::<Vec<_>>())
        };
        for names in [&[][..], &[&b"a"[..]], &[b"role", b"session_authorization"], &[&[b'x'; CLASS_NAMES_SIZE - 1]]] {
            assert_eq!(kept(names), Some(names.iter().map(|name| name.to_vec()).collect()));
        }
        assert_eq!(kept(&[&[b'x'; CLASS_NAMES_SIZE]]), None);
    }
}
