//! The scanner as it was at first, one byte after the other: slow, and what the fast one is compared with.

use std::hash::{BuildHasher, Hasher};

use foldhash::fast::FixedState;

use super::{Effects, Found, Names};
use lexer::{Kind, Lexer};
use statement::Statement;

mod lexer;
mod statement;

#[derive(Default)]
pub(super) struct Scanner {
    names: Names,
}

impl Scanner {
    /// Names of settings that the last text mentions, in lower case; `role` and `session_authorization` among them.
    pub(super) fn names(&self) -> impl Iterator<Item = &[u8]> {
        self.names.iter()
    }

    /// Reads a text. `backslashes`: they escape in plain constants (`standard_conforming_strings` is off).
    pub(super) fn scan(&mut self, text: &[u8], backslashes: bool) -> Found {
        self.names.clear();
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
                defines: false,
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
}
