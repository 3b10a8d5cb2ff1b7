//! What can be wrong with a configuration, as values: which file, line and key, what was found, what is allowed.

use std::fmt;

/// Where a value stands in the file.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Segment {
    Key(String),
    Index(usize),
}

/// From the outermost key to the innermost; shown as `servers[1].address`.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct KeyPath(pub Vec<Segment>);

impl KeyPath {
    pub fn of<'a>(keys: impl IntoIterator<Item = &'a str>) -> KeyPath {
        KeyPath(keys.into_iter().map(|key| Segment::Key(key.to_owned())).collect())
    }

    /// The path of what is below this map.
    pub fn join<'a>(&self, keys: impl IntoIterator<Item = &'a str>) -> KeyPath {
        KeyPath(self.0.iter().cloned().chain(KeyPath::of(keys).0).collect())
    }

    /// The path of an element of this list.
    pub fn element(&self, index: usize) -> KeyPath {
        KeyPath(self.0.iter().cloned().chain([Segment::Index(index)]).collect())
    }
}

impl fmt::Display for KeyPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, segment) in self.0.iter().enumerate() {
            match segment {
                Segment::Key(key) if index == 0 => write!(f, "{key}")?,
                Segment::Key(key) => write!(f, ".{key}")?,
                Segment::Index(index) => write!(f, "[{index}]")?,
            }
        }
        Ok(())
    }
}

/// A configuration that was refused; nothing of it is in force.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Error {
    pub file: String,
    /// `None` where the fault is not in what was written, such as a file that cannot be read.
    pub line: Option<usize>,
    pub key: KeyPath,
    pub problem: Problem,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Problem {
    /// The system's word for why the file cannot be read.
    Unreadable(String),
    /// Not YAML; the parser's own words.
    Syntax(String),
    Value {
        found: String,
        allowed: String,
    },
    UnknownKey {
        allowed: &'static [&'static str],
    },
    DuplicateKey,
    MissingKey(&'static str),
    /// The file that a key names does not do; in whole words.
    File(String),
    /// Something is wrong with a file that the key names; it says where in it.
    Broken(String),
    /// The two cannot both be there.
    Excludes {
        other: String,
    },
}

impl Problem {
    pub(super) fn value(found: impl fmt::Display, allowed: impl fmt::Display) -> Problem {
        Problem::Value { found: found.to_string(), allowed: allowed.to_string() }
    }
}

impl std::error::Error for Error {}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_place(f, &self.file, self.line, &self.key)?;
        match &self.problem {
            Problem::Unreadable(reason) => write!(f, "cannot be read: {reason}"),
            Problem::Syntax(reason) => write!(f, "not YAML: {reason}"),
            Problem::Value { found, allowed } => write!(f, "found {found}: {allowed}"),
            Problem::UnknownKey { allowed } => {
                write!(f, "unknown key")?;
                if let Some(Segment::Key(key)) = self.key.0.last()
                    && let Some(suggestion) = near_miss(key, allowed)
                {
                    write!(f, "; did you mean {suggestion}?")?;
                }
                write!(f, "; allowed here: {}", allowed.join(", "))
            }
            Problem::DuplicateKey => write!(f, "is there twice"),
            Problem::Broken(what) => f.write_str(what),
            Problem::MissingKey(key) => write!(f, "lacks the key {key}"),
            Problem::File(text) => f.write_str(text),
            Problem::Excludes { other } => write!(f, "cannot be given together with {other}"),
        }
    }
}

/// Something that works, but likely not as its writer thinks.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Warning {
    pub file: String,
    pub line: Option<usize>,
    pub key: KeyPath,
    pub text: String,
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_place(f, &self.file, self.line, &self.key)?;
        f.write_str(&self.text)
    }
}

fn write_place(f: &mut fmt::Formatter<'_>, file: &str, line: Option<usize>, key: &KeyPath) -> fmt::Result {
    write!(f, "{file}:")?;
    if let Some(line) = line {
        write!(f, "{line}:")?;
    }
    f.write_str(" ")?;
    if !key.0.is_empty() {
        write!(f, "{key}: ")?;
    }
    Ok(())
}

/// The allowed key that was probably meant: one or two slips of the finger away, fewer than half of its letters.
fn near_miss<'a>(written: &str, allowed: &[&'a str]) -> Option<&'a str> {
    const SLIPS_MAX: usize = 2;
    // Keys are short; what is not is no slip, and would cost time to compare.
    if written.len() > 64 {
        return None;
    }
    let nearest = allowed.iter().map(|key| (distance(written, key), *key)).min()?;
    (nearest.0 <= SLIPS_MAX && nearest.0 * 2 < nearest.1.len()).then_some(nearest.1)
}

/// Letters to add, drop or exchange to get from one word to the other (Levenshtein's distance).
fn distance(from: &str, to: &str) -> usize {
    let to: Vec<char> = to.to_lowercase().chars().collect();
    let mut row: Vec<usize> = (0..=to.len()).collect();
    for (index, letter) in from.to_lowercase().chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = index + 1;
        for (column, other) in to.iter().enumerate() {
            let exchanged = diagonal + usize::from(letter != *other);
            diagonal = row[column + 1];
            row[column + 1] = exchanged.min(row[column] + 1).min(diagonal + 1);
        }
    }
    row[to.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn near_misses() {
        let check = |written, expected| {
            assert_eq!(near_miss(written, &["servers", "pool", "size", "cores"]), expected, "{written}");
        };
        check("server", Some("servers"));
        check("Servers", Some("servers"));
        check("sise", Some("size"));
        check("poll", Some("pool"));
        check("score", Some("cores"));
        check("xy", None);
        check("listen", None);
        check(&"x".repeat(10_000), None);
    }

    #[test]
    fn a_path_reads_like_the_file() {
        let mut path = KeyPath::of(["databases", "*", "servers"]);
        path.0.push(Segment::Index(1));
        path.0.push(Segment::Key("address".to_owned()));
        assert_eq!(path.to_string(), "databases.*.servers[1].address");
    }
}
