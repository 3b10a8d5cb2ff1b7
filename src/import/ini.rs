//! PgBouncer's files as they are written: the INI file with its includes, connect strings, the list of users.
//!
//! Read as PgBouncer reads them: a comment is a whole line, a value goes to the end of its line, nothing else is quoted
//! but names of databases (`"a""b"`) and values in connect strings (`'it''s'`). All that is read is bounded.

use std::fmt;
use std::io;
use std::rc::Rc;

/// PgBouncer's own bound on files within files.
const INCLUDE_DEPTH_MAX: usize = 10;
/// Entries of all files together. A million databases are a mistake, or an attack.
const ENTRIES_MAX: usize = 100_000;

/// A line of a file.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Place {
    /// As it was named.
    pub file: Rc<str>,
    /// From 1.
    pub line: usize,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.file, self.line)
    }
}

/// One `key = value`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Entry {
    /// Without its brackets.
    pub section: Rc<str>,
    /// Without quotes.
    pub key: String,
    /// Without the space around it.
    pub value: String,
    /// Where it stands.
    pub place: Place,
}

/// Why a file cannot be imported at all.
#[derive(Debug)]
pub enum Error {
    /// The system's reason, and the line that includes the file.
    Unreadable { file: String, from: Option<Place>, reason: io::Error },
    /// PgBouncer would refuse the line as well.
    Syntax { place: Place, reason: &'static str },
    /// More than anybody can mean.
    TooMuch { place: Place, reason: &'static str },
}

impl std::error::Error for Error {}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Unreadable { file, from: None, reason } => write!(f, "{file}: cannot be read: {reason}"),
            Error::Unreadable { file, from: Some(place), reason } => {
                write!(f, "{place}: %include {file}: cannot be read: {reason}")
            }
            Error::Syntax { place, reason } | Error::TooMuch { place, reason } => write!(f, "{place}: {reason}"),
        }
    }
}

/// How a file is read that is named so; tests have files that are nowhere.
pub type Load<'a> = dyn FnMut(&str) -> io::Result<String> + 'a;

/// All entries of a file and of those that it includes, in their order.
pub fn read(file: &str, load: &mut Load) -> Result<Vec<Entry>, Error> {
    let mut reader = Reader { load, section: None, entries: Vec::new() };
    reader.file(file, None, 0)?;
    Ok(reader.entries)
}

struct Reader<'a, 'b> {
    load: &'a mut Load<'b>,
    /// An included file goes on with the section that it is included in.
    section: Option<Rc<str>>,
    entries: Vec<Entry>,
}

impl Reader<'_, '_> {
    fn file(&mut self, name: &str, from: Option<&Place>, depth: usize) -> Result<(), Error> {
        let text = (self.load)(name).map_err(|reason| Error::Unreadable {
            file: name.to_owned(),
            from: from.cloned(),
            reason,
        })?;
        let name: Rc<str> = name.into();
        // An editor of another system may have put it there.
        let text = text.strip_prefix('\u{feff}').unwrap_or(&text);
        for (index, line) in text.lines().enumerate() {
            let place = Place { file: name.clone(), line: index + 1 };
            let line = line.trim_matches(|c: char| c.is_ascii_whitespace() || c == '\u{b}');
            if line.is_empty() || line.starts_with(['#', ';']) {
                continue;
            }
            if let Some(rest) = line.strip_prefix('%') {
                let Some(file) = rest.strip_prefix("include").filter(|file| file.starts_with([' ', '\t'])) else {
                    return Err(Error::Syntax { place, reason: "after % only \"include FILE\" is known" });
                };
                if depth >= INCLUDE_DEPTH_MAX {
                    return Err(Error::TooMuch { place, reason: "files include files more than 10 deep" });
                }
                self.file(file.trim_ascii(), Some(&place), depth + 1)?;
                continue;
            }
            if let Some(rest) = line.strip_prefix('[') {
                let Some((section, "")) = rest.split_once(']') else {
                    return Err(Error::Syntax { place, reason: "a section is [name], alone on its line" });
                };
                self.section = Some(section.into());
                continue;
            }
            let entry = self.entry(line, place)?;
            if self.entries.len() >= ENTRIES_MAX {
                return Err(Error::TooMuch { place: entry.place, reason: "more than 100,000 settings" });
            }
            self.entries.push(entry);
        }
        Ok(())
    }

    fn entry(&self, line: &str, place: Place) -> Result<Entry, Error> {
        let Some((key, rest)) = key(line) else {
            return Err(Error::Syntax { place, reason: "neither a comment, nor a [section], nor \"key = value\"" });
        };
        let Some(value) = rest.trim_ascii_start().strip_prefix('=') else {
            return Err(Error::Syntax { place, reason: "a \"=\" is missing behind the key" });
        };
        let Some(section) = self.section.clone() else {
            return Err(Error::Syntax { place, reason: "a setting before the first [section]" });
        };
        Ok(Entry { section, key, value: value.trim_ascii().to_owned(), place })
    }
}

/// The key at the beginning of a line, and what is behind it. A name in quotes may have anything in it.
fn key(line: &str) -> Option<(String, &str)> {
    let Some(quoted) = line.strip_prefix('"') else {
        let is_of_key = |c: char| c.is_alphanumeric() || matches!(c, '_' | '.' | '-' | '*');
        let end = line.find(|c| !is_of_key(c)).unwrap_or(line.len());
        return (end > 0).then(|| (line[..end].to_owned(), &line[end..]));
    };
    let (name, rest) = unquote(quoted, '"')?;
    (!name.is_empty()).then_some((name, rest))
}

/// What stands before the closing quote, and what comes after it; `text` begins behind the opening one. A quote within is
/// written twice.
fn unquote(text: &str, quote: char) -> Option<(String, &str)> {
    let (mut inside, mut rest) = (String::new(), text);
    loop {
        let end = rest.find(quote)?;
        inside += &rest[..end];
        rest = &rest[end + quote.len_utf8()..];
        match rest.strip_prefix(quote) {
            None => return Some((inside, rest)),
            Some(after) => {
                inside.push(quote);
                rest = after;
            }
        }
    }
}

/// The pairs of a connect string: `host=a port=5432 connect_query='select ''x'''`. The error says what is wrong.
pub fn connect_string(text: &str) -> Result<Vec<(String, String)>, &'static str> {
    let mut pairs = Vec::new();
    let mut rest = text.trim_ascii();
    while !rest.is_empty() {
        let end = rest.find(['=', ' ', '\t']).unwrap_or(rest.len());
        let (key, after) = rest.split_at(end);
        let Some(after) = after.trim_ascii_start().strip_prefix('=').filter(|_| !key.is_empty()) else {
            return Err("not a list of key=value");
        };
        let after = after.trim_ascii_start();
        let (value, after) = match after.strip_prefix('\'') {
            Some(quoted) => unquote(quoted, '\'').ok_or("a value lacks its closing quote")?,
            None => {
                let end = after.find([' ', '\t']).unwrap_or(after.len());
                (after[..end].to_owned(), &after[end..])
            }
        };
        if !after.is_empty() && !after.starts_with([' ', '\t']) {
            return Err("no space behind a closing quote");
        }
        pairs.push((key.to_owned(), value));
        rest = after.trim_ascii_start();
    }
    Ok(pairs)
}

/// How the passwords of an `auth_file` are kept.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Secrets {
    pub plain: usize,
    pub md5: usize,
    pub scram: usize,
}

/// Counts the users of an `auth_file`; the passwords stay where they are. The error is the line that is broken.
pub fn user_list(text: &str) -> Result<Secrets, usize> {
    let mut secrets = Secrets::default();
    for (index, line) in text.lines().enumerate() {
        let line = line.trim_ascii();
        if line.is_empty() || line.starts_with([';', '#']) {
            continue;
        }
        let secret = || {
            let (_, rest) = unquote(line.strip_prefix('"')?, '"')?;
            Some(unquote(rest.trim_ascii_start().strip_prefix('"')?, '"')?.0)
        };
        match secret().ok_or(index + 1)?.as_str() {
            secret if secret.starts_with("SCRAM-SHA-256$") => secrets.scram += 1,
            secret if secret.starts_with("md5") && secret.len() == 35 => secrets.md5 += 1,
            _ => secrets.plain += 1,
        }
    }
    Ok(secrets)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_files(files: &[(&str, &str)]) -> Result<Vec<(String, String, String, String)>, String> {
        let mut load = |name: &str| {
            let found = files.iter().find(|(file, _)| *file == name);
            found.map(|(_, text)| (*text).to_owned()).ok_or(io::ErrorKind::NotFound.into())
        };
        let entries = read(files[0].0, &mut load).map_err(|error| error.to_string())?;
        let strings = |entry: Entry| (entry.section.to_string(), entry.key, entry.value, entry.place.to_string());
        Ok(entries.into_iter().map(strings).collect())
    }

    #[test]
    fn sections_comments_and_values_to_the_end_of_the_line() {
        let text = "\u{feff}; a comment\n# another\n\n[databases]\r\n  foo=host=a # no comment ; here\r\n* = \n\
                    \"a \"\"b\"\"\" \t=\tx  \n[pgbouncer]\nlisten_port = 6432";
        let entry = |section: &str, key: &str, value: &str, line: usize| {
            (section.to_owned(), key.to_owned(), value.to_owned(), format!("a.ini:{line}"))
        };
        assert_eq!(
            read_files(&[("a.ini", text)]).unwrap(),
            [
                entry("databases", "foo", "host=a # no comment ; here", 5),
                entry("databases", "*", "", 6),
                entry("databases", "a \"b\"", "x", 7),
                entry("pgbouncer", "listen_port", "6432", 9),
            ]
        );
    }

    #[test]
    fn includes() {
        let files = [("a", "[pgbouncer]\nx=1\n%include b\nz=3"), ("b", "y=2\n[users]\nu=v")];
        let places: Vec<_> = read_files(&files).unwrap().into_iter().map(|entry| (entry.0, entry.1, entry.3)).collect();
        let entry = |section: &str, key: &str, place: &str| (section.to_owned(), key.to_owned(), place.to_owned());
        assert_eq!(
            places,
            [
                entry("pgbouncer", "x", "a:2"),
                entry("pgbouncer", "y", "b:1"),
                entry("users", "u", "b:3"),
                entry("users", "z", "a:4"),
            ]
        );
        let check = |files: &[_], reason: &str| assert_eq!(read_files(files).unwrap_err(), reason);
        check(&[("a", "%include a")], "a:1: files include files more than 10 deep");
        check(&[("a", "\n%include b")], "a:2: %include b: cannot be read: entity not found");
        check(&[("a", "%included b")], "a:1: after % only \"include FILE\" is known");
    }

    #[test]
    fn what_pgbouncer_refuses_is_refused_by_line() {
        let check = |text, reason: &str| assert_eq!(read_files(&[("a", text)]).unwrap_err(), format!("a:{reason}"));
        check("x = 1", "1: a setting before the first [section]");
        check("[a]\n\n[b\nx=1", "3: a section is [name], alone on its line");
        check("[a]\nx", "2: a \"=\" is missing behind the key");
        check("[a]\n= 1", "2: neither a comment, nor a [section], nor \"key = value\"");
        check("[a]\n\"x = 1", "2: neither a comment, nor a [section], nor \"key = value\"");
        check("[a]\n\"\" = 1", "2: neither a comment, nor a [section], nor \"key = value\"");
    }

    #[test]
    fn connect_strings() {
        let check = |text, expected: Result<&[(&str, &str)], &str>| {
            let pairs = connect_string(text);
            let pairs = pairs.as_ref().map(|pairs| pairs.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect());
            assert_eq!(pairs.map_err(|reason| *reason), expected.map(<[_]>::to_vec), "{text}");
        };
        check("", Ok(&[]));
        check("host=a port=5432", Ok(&[("host", "a"), ("port", "5432")]));
        check(" host = a\tport= 1 ", Ok(&[("host", "a"), ("port", "1")]));
        check("q='it''s = 1' b=''", Ok(&[("q", "it's = 1"), ("b", "")]));
        check("password=a=b", Ok(&[("password", "a=b")]));
        check("password= x=y", Ok(&[("password", "x=y")]));
        check("host", Err("not a list of key=value"));
        check("=a", Err("not a list of key=value"));
        check("host=a b", Err("not a list of key=value"));
        check("q='a", Err("a value lacks its closing quote"));
        check("q='a'b=c", Err("no space behind a closing quote"));
    }

    #[test]
    fn user_lists() {
        let text = ";old\n\"a\" \"secret\"\n\n\"b\"\"c\" \"md500000000000000000000000000000000\" junk\n\
                    \"d\" \"SCRAM-SHA-256$4096:x$y:z\"\n\"e\" \"\"\n";
        assert_eq!(user_list(text), Ok(Secrets { plain: 2, md5: 1, scram: 1 }));
        assert_eq!(user_list("\"a\" \"b\"\na b"), Err(2));
        assert_eq!(user_list("\"a\" \"b"), Err(1));
    }
}
