//! pg_hba.conf and pg_ident.conf in PostgreSQL's format: who may come in from where, and how it is checked.
//!
//! What QCP cannot do (LDAP, GSSAPI, host names, ..) is an error when the file is read, with file and line: a rule that
//! was passed over could let somebody in by a later one.

mod ident;
mod rules;
mod tokens;

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

pub use ident::{IdentMaps, Mapped};
pub use rules::{Access, ClientCertificate, Found, Hba, Method, Network, Rule};

/// How files are read: this layer has no hands.
pub trait Files {
    /// The text of a file.
    fn read(&self, path: &Path) -> io::Result<String>;

    /// The files of a folder, in any order.
    fn list(&self, folder: &Path) -> io::Result<Vec<PathBuf>>;
}

/// Why a file is not taken.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Broken {
    /// The file, as it was named.
    pub file: PathBuf,
    /// Counted from 1. 0: the file as a whole.
    pub line: usize,
    /// What is wrong there.
    pub what: String,
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            0 => write!(f, "{}: {}", self.file.display(), self.what),
            line => write!(f, "{}:{line}: {}", self.file.display(), self.what),
        }
    }
}

/// A regular expression of either file: `/` and the expression. Matched anywhere, as PostgreSQL does.
#[derive(Clone, Debug)]
struct Pattern(regex::Regex);

impl Pattern {
    fn new(text: &str) -> Result<Pattern, String> {
        let compiled = regex::RegexBuilder::new(text).size_limit(1 << 20).build();
        compiled.map(Pattern).map_err(|_| format!("\"{text}\" is not a regular expression"))
    }
}

impl PartialEq for Pattern {
    fn eq(&self, other: &Pattern) -> bool {
        self.0.as_str() == other.0.as_str()
    }
}

#[cfg(test)]
mod tests;
