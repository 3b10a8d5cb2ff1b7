//! pg_ident.conf: which names of the system, or of certificates, may be which users.

use std::path::Path;

use super::tokens::{self, Line};
use super::{Broken, Files, Pattern};

/// What a map says of a name.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mapped {
    /// It may be this user.
    Yes,
    /// It may not.
    No,
    /// There is no map of this name.
    NoMap,
}

#[derive(Clone, PartialEq, Debug)]
enum System {
    Name(String),
    Pattern(Pattern),
}

#[derive(Clone, PartialEq, Debug)]
enum User {
    All,
    /// In it `\1` stands for what the first group of the system's name matched.
    Name(String),
    Pattern(Pattern),
}

#[derive(Clone, PartialEq, Debug)]
struct Entry {
    map: String,
    system: System,
    user: User,
}

/// All maps.
#[derive(Clone, PartialEq, Default, Debug)]
pub struct IdentMaps(Vec<Entry>);

impl IdentMaps {
    /// Reads a file with all that it includes.
    pub fn read(path: &Path, files: &dyn Files) -> Result<IdentMaps, Broken> {
        let lines = tokens::lines(path, files)?;
        lines.iter().map(entry).collect::<Result<_, _>>().map(IdentMaps)
    }

    /// Whether a map is there.
    pub fn has(&self, map: &str) -> bool {
        self.0.iter().any(|entry| entry.map == map)
    }

    /// Whether `system`, a name of the system or of a certificate, may be `user`. Without a map only the same name may.
    pub fn may_be(&self, map: Option<&str>, system: &str, user: &str) -> Mapped {
        let Some(map) = map else {
            return if system == user { Mapped::Yes } else { Mapped::No };
        };
        if !self.has(map) {
            return Mapped::NoMap;
        }
        let mut entries = self.0.iter().filter(|entry| entry.map == map);
        if entries.any(|entry| entry.allows(system, user)) { Mapped::Yes } else { Mapped::No }
    }
}

impl Entry {
    fn allows(&self, system: &str, user: &str) -> bool {
        let group = match &self.system {
            System::Name(name) if name == system => None,
            System::Name(_) => return false,
            System::Pattern(pattern) => match pattern.0.captures(system) {
                Some(captures) => captures.get(1),
                None => return false,
            },
        };
        match &self.user {
            User::All => true,
            User::Name(name) if name.contains("\\1") => {
                group.is_some_and(|group| name.replacen("\\1", group.as_str(), 1) == user)
            }
            User::Name(name) => name == user,
            User::Pattern(pattern) => pattern.0.is_match(user),
        }
    }
}

fn entry(line: &Line) -> Result<Entry, Broken> {
    let singles: Option<Vec<_>> =
        line.fields.iter().map(|field| if let [one] = &field[..] { Some(one) } else { None }).collect();
    let Some([map, system, user]) = singles.as_deref() else {
        return Err(line.broken("expected three words: map, name of the system, user"));
    };
    let pattern = |text: &str| Pattern::new(text).map_err(|what| line.broken(what));
    let system = match system.text.strip_prefix('/') {
        Some(text) => System::Pattern(pattern(text)?),
        None => System::Name(system.text.clone()),
    };
    let user = match user.text.strip_prefix('/') {
        _ if user.is("all") => User::All,
        _ if user.text.starts_with('+') && !user.quoted => {
            return Err(line.broken("members of a role (+) are not resolved in maps yet; list the users"));
        }
        Some(text) => User::Pattern(pattern(text)?),
        None => User::Name(user.text.clone()),
    };
    let needs_group = matches!(&user, User::Name(name) if name.contains("\\1"));
    let has_group = matches!(&system, System::Pattern(pattern) if pattern.0.captures_len() > 1);
    if needs_group && !has_group {
        return Err(line.broken("\\1 stands for a group of the system's name, which has none"));
    }
    Ok(Entry { map: map.text.clone(), system, user })
}
