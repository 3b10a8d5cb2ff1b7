//! What the text of a query says about the state of its session: not a parser, but enough of PostgreSQL's lexer to find
//! the statements, their first words and the names that matter. What it cannot read is *opaque*, and asked about.
//!
//! It errs on one side only: a state that it suspects where there is none costs a question to the server; the caller
//! asks the server in any case, and believes nothing that is said here.
//!
//! Owned by one shard, which scans one text at a time; allocates only for names, into buffers that are kept.

use std::ops::Range;

use super::parameters::is_read_by_parser;
pub use channels::{Said, channels};
pub use classes::Classes;
use lexer::Kind;
pub use mask::mask;
pub use sieve::Sieve;
use skim::{Cursor, Windows};
use statement::Statement;
pub use two_phase::prepared_transactions;

mod block;
mod body;
mod channels;
mod classes;
#[cfg(debug_assertions)]
pub mod counted;
mod lexer;
mod mask;
mod print;
mod sieve;
mod skim;
mod statement;
mod two_phase;

/// Kinds of state that a text may have changed: a set.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Effects(u32);

impl Effects {
    /// Nothing.
    pub const NONE: Self = Self(0);
    /// Settings whose names are in the text.
    pub const SETTINGS: Self = Self(1);
    /// Settings whose names are not in the text, or all.
    pub const ANY_SETTING: Self = Self(1 << 1);
    /// Temporary tables and what else lives in the temporary schema.
    pub const TEMPORARY: Self = Self(1 << 2);
    /// Channels that are listened on.
    pub const LISTEN: Self = Self(1 << 3);
    /// Cursors that outlive their transaction.
    pub const CURSOR: Self = Self(1 << 4);
    /// Statements prepared by PREPARE.
    pub const PREPARED: Self = Self(1 << 5);
    /// Advisory locks of the session.
    pub const LOCK: Self = Self(1 << 6);
    /// The last values of sequences may be others: what `currval` would say.
    pub const SEQUENCE: Self = Self(1 << 7);
    /// What nobody can ask about, and only the end of the connection takes away: LOAD, setseed.
    pub const LASTING: Self = Self(1 << 8);
    /// It runs code that is not in the text, or cannot be read: anything may have changed.
    pub const OPAQUE: Self = Self(1 << 9);
    /// Functions, triggers or extensions are others now: what was learned about texts is not true any more.
    pub const RELEARN: Self = Self(1 << 10);
    /// A transaction was prepared for two-phase commit.
    pub const TWO_PHASE: Self = Self(1 << 11);
    /// It asks for the last value of a sequence: `currval`, `lastval`.
    pub const LAST_VALUE: Self = Self(1 << 12);

    /// A setting that decides what a text means may be another until the transaction ends, or longer.
    pub const PARSER: Self = Self(1 << 13);

    /// Settings whose names come as parameters.
    pub const PARAMETER: Self = Self(1 << 14);

    /// Settings go back to what the session began with, by RESET or DEFAULT.
    pub const RESETS: Self = Self(1 << 16);

    /// It notifies those who listen, which needs no question.
    pub const NOTIFY: Self = Self(1 << 15);

    /// It runs what another text has said: a statement of PREPARE, a cursor.
    pub const EXECUTES: Self = Self(1 << 17);

    /// It prepares statements by PREPARE, under names of its own.
    pub const PREPARES: Self = Self(1 << 18);

    /// What may be said where nobody can read it.
    pub const UNSEEN: Self = Self::OPAQUE
        .and(Self::LASTING)
        .and(Self::ANY_SETTING)
        .and(Self::PARSER)
        .and(Self::RESETS)
        .and(Self::PREPARED)
        .and(Self::SEQUENCE)
        .and(Self::LAST_VALUE)
        .and(Self::RELEARN)
        .and(Self::NOTIFY);

    /// Both.
    #[must_use]
    pub const fn and(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// What is in both.
    #[must_use]
    pub const fn common(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    /// This without `other`.
    #[must_use]
    pub const fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    /// Whether any of `other` is in it.
    pub const fn has(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }

    /// Whether there is none.
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }
}

/// What the whole text is, where it is one statement of a kind that is dealt with by itself.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Only {
    /// RESET of one setting (its name is the scanner's only one), or SET to DEFAULT.
    Reset,
    /// RESET ALL.
    ResetAll,
    /// DISCARD ALL.
    DiscardAll,
    /// EXECUTE, EXPLAIN EXECUTE or DEALLOCATE of the statement whose name stands there.
    Prepared {
        /// Where the name is in the text, with its quotes.
        name: Range<usize>,
        /// Whether it is a DEALLOCATE.
        deallocates: bool,
    },
    /// PREPARE of a statement of this name.
    Prepares {
        /// As above.
        name: Range<usize>,
    },
}

impl Only {
    /// Where a prepared statement is named, and whether it is deallocated.
    pub fn named(self) -> Option<(Range<usize>, bool)> {
        match self {
            Self::Prepared { name, deallocates } => Some((name, deallocates)),
            Self::Prepares { name } => Some((name, false)),
            Self::Reset | Self::ResetAll | Self::DiscardAll => None,
        }
    }
}

/// What was found.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Found {
    /// What may have changed.
    pub effects: Effects,
    /// Where the text is one statement of a special kind.
    pub only: Option<Only>,
    /// The same for texts that differ in nothing but constants, space and comments.
    pub fingerprint: u64,
}

/// Reads texts; keeps the names of the last.
#[derive(Default)]
pub struct Scanner {
    names: Names,
    windows: Windows,
}

/// Names of settings.
#[derive(Default)]
struct Names {
    /// One behind the other, in lower case.
    names: Vec<u8>,
    ends: Vec<usize>,
}

/// Names that one text may mention; more are [`Effects::ANY_SETTING`].
const NAMES_MAX: usize = 16;
/// A setting whose name is put together while the text runs. Nobody can ask for custom ones of which the name is not
/// known.
const COMPUTED: Effects = Effects::ANY_SETTING.and(Effects::PARSER).and(Effects::LASTING);
/// Longest name of a setting that is kept.
const NAME_SIZE_MAX: usize = 128;
/// "The system uses no more than NAMEDATALEN-1 bytes of an identifier" (Lexical Structure).
const IDENTIFIER_SIZE_MAX: usize = 63;

impl Scanner {
    /// Names of settings that the last text mentions, in lower case; `role` and `session_authorization` among them.
    pub fn names(&self) -> impl Iterator<Item = &[u8]> {
        self.names.iter()
    }

    /// Names that were found before are the last text's again.
    pub fn recall<'n>(&mut self, names: impl Iterator<Item = &'n [u8]>) {
        self.names.clear();
        for name in names.take(NAMES_MAX) {
            self.names.add(name);
        }
    }

    /// Reads a text. `backslashes`: they escape in plain constants (`standard_conforming_strings` is off).
    pub fn scan(&mut self, text: &[u8], backslashes: bool) -> Found {
        let Self { names, windows } = self;
        #[cfg(debug_assertions)]
        counted::add_scanned(text.len());
        names.clear();
        let mut cursor = Cursor::new(text, backslashes, windows);
        let mut effects = Effects::NONE;
        let mut only = None;
        let mut statements = 0;
        loop {
            let before = cursor.print;
            let token = cursor.next();
            match token.kind {
                Kind::End => break,
                // A statement without a word leaves no trace.
                Kind::Mark(b';') => {
                    cursor.print = before;
                    continue;
                }
                Kind::Unreadable => {
                    effects = effects.and(Effects::OPAQUE);
                    break;
                }
                _ => {}
            }
            statements += 1;
            let mut statement =
                Statement { names, cursor: &mut cursor, effects, only: None, explains: false, defines: false };
            let ended = statement.read(token);
            effects = statement.effects;
            only = statement.only;
            if !ended {
                break;
            }
        }
        if statements != 1 {
            only = None;
        }
        Found { effects, only, fingerprint: cursor.print.finish() }
    }
}

impl Names {
    fn iter(&self) -> impl Iterator<Item = &[u8]> {
        let starts = std::iter::once(0).chain(self.ends.iter().copied());
        starts.zip(&self.ends).map(|(start, &end)| &self.names[start..end])
    }

    fn clear(&mut self) {
        self.names.clear();
        self.ends.clear();
    }

    fn add(&mut self, name: &[u8]) -> Effects {
        if name.eq_ignore_ascii_case(b"seed") {
            // It has no value that could be asked for or set again.
            return Effects::LASTING;
        }
        // What other letters are depends on the client's encoding.
        let is_kept = name.len() <= NAME_SIZE_MAX && self.ends.len() < NAMES_MAX && name.is_ascii();
        if name.is_empty() || !is_kept {
            return if name.contains(&b'.') { COMPUTED } else { Effects::ANY_SETTING.and(Effects::PARSER) };
        }
        let start = self.names.len();
        self.names.extend(name.iter().map(u8::to_ascii_lowercase));
        self.ends.push(self.names.len());
        let parser = if is_read_by_parser(&self.names[start..]) { Effects::PARSER } else { Effects::NONE };
        Effects::SETTINGS.and(parser)
    }

    /// Drops what was added behind the first `count` names.
    fn keep(&mut self, count: usize) {
        self.ends.truncate(count);
        self.names.truncate(self.ends.last().copied().unwrap_or(0));
    }
}

/// Functions that do what nobody can ask about.
fn is_lasting(name: &[u8]) -> bool {
    const NAMES: [&[u8]; 9] = [
        b"setseed",
        b"pg_backup_start",
        b"pg_backup_stop",
        b"pg_start_backup",
        b"pg_stop_backup",
        b"pg_create_physical_replication_slot",
        b"pg_create_logical_replication_slot",
        b"pg_copy_physical_replication_slot",
        b"pg_copy_logical_replication_slot",
    ];
    NAMES.contains(&name) || name.starts_with(b"dblink_connect") || name.starts_with(b"pg_replication_origin_session_")
}

#[cfg(test)]
mod reference;
#[cfg(test)]
mod tests;
