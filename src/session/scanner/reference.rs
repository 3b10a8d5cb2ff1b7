//! The scanner as it was at first, one byte after the other: slow, and what the fast one is compared with.

use std::hash::{BuildHasher, Hasher};

use foldhash::fast::FixedState;

use super::super::parameters::is_read_by_parser;
use super::{Effects, Found, NAME_SIZE_MAX, NAMES_MAX};
use lexer::{Kind, Lexer};
use statement::Statement;

mod lexer;
mod statement;

#[derive(Default)]
pub(super) struct Scanner {
    names: Vec<u8>,
    ends: Vec<usize>,
}

impl Scanner {
    /// Names of settings that the last text mentions, in lower case; `role` and `session_authorization` among them.
    pub(super) fn names(&self) -> impl Iterator<Item = &[u8]> {
        let starts = std::iter::once(0).chain(self.ends.iter().copied());
        starts.zip(&self.ends).map(|(start, &end)| &self.names[start..end])
    }

    /// Reads a text. `backslashes`: they escape in plain constants (`standard_conforming_strings` is off).
    pub(super) fn scan(&mut self, text: &[u8], backslashes: bool) -> Found {
        self.names.clear();
        self.ends.clear();
        let mut lexer = Lexer { text, at: 0, backslashes };
        let mut hasher = FixedState::default().build_hasher();
        let mut effects = Effects::NONE;
        let mut only = None;
        let mut statements = 0;
        loop {
            let token = lexer.next();
            match token.kind {
                Kind::End => break,
                Kind::Mark(b';') => continue,
                Kind::Unreadable => {
                    effects = effects.and(Effects::OPAQUE);
                    break;
                }
                _ => {}
            }
            statements += 1;
            let mut statement = Statement {
                scanner: self,
                lexer: &mut lexer,
                hasher: &mut hasher,
                effects,
                only: None,
                explains: false,
            };
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
        Found { effects, only, fingerprint: hasher.finish() }
    }

    fn add_name(&mut self, name: &[u8]) -> Effects {
        if name.is_empty() || name.len() > NAME_SIZE_MAX || self.ends.len() == NAMES_MAX {
            return Effects::ANY_SETTING.and(Effects::PARSER);
        }
        let start = self.names.len();
        self.names.extend(name.iter().map(u8::to_ascii_lowercase));
        self.ends.push(self.names.len());
        let parser = if is_read_by_parser(&self.names[start..]) { Effects::PARSER } else { Effects::NONE };
        Effects::SETTINGS.and(parser)
    }

    /// Drops what was added behind the first `count` names.
    fn keep_names(&mut self, count: usize) {
        self.ends.truncate(count);
        self.names.truncate(self.ends.last().copied().unwrap_or(0));
    }
}
