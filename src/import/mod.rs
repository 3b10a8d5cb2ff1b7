//! From PgBouncer's configuration to QCP's: `qcp --import-pgbouncer`.
//!
//! Each key of the INI file is given an outcome by what PgBouncer's documentation says of it; then the real loader
//! reads the configuration that comes of it. What the loader refuses is taken out and said, so that two things hold
//! whatever this version of QCP has: the configuration loads, and no key is dropped in silence.
#![forbid(unsafe_code)]

mod draft;
mod entries;
mod ini;
mod keys;
#[cfg(any(test, feature = "fuzz"))]
pub mod properties;
#[cfg(test)]
mod tests;

use std::fmt;
use std::fmt::Write;
use std::io;
use std::path::{Path, PathBuf};

use crate::config::{self, Config, KeyPath, Problem, Segment};
use draft::{Setting, Value, printable};
use entries::Judge;
use ini::{Entry, Place, Secrets};

pub use ini::Error as FileError;

/// A configuration of QCP's, and what became of each key that it was made from.
#[derive(Debug)]
pub struct Import {
    /// Loads.
    pub yaml: String,
    /// In the order of the files, PgBouncer's defaults last.
    pub findings: Vec<Finding>,
}

/// What became of one key.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Finding {
    /// `None`: it is not in the files, and PgBouncer's default is not QCP's.
    pub place: Option<Place>,
    /// `pool_mode`, `[databases] foo: pool_size`.
    pub key: String,
    pub verdict: Verdict,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// To these keys; or to none, since QCP does the same by itself.
    Mapped { to: Vec<String>, note: Option<String> },
    /// Why.
    Ignored(String),
    /// QCP will have the key, but this version refuses it. `is_open`: to go on without it would be another thing than
    /// what PgBouncer did.
    Later { to: Vec<String>, for_now: Option<String>, is_open: bool },
    /// What a person has to choose.
    Decide(String),
}

impl Verdict {
    /// Whether a person has to look at it before the configuration is run.
    pub fn is_open(&self) -> bool {
        match self {
            Verdict::Mapped { .. } | Verdict::Ignored(_) => false,
            Verdict::Later { is_open, .. } => *is_open,
            Verdict::Decide(_) => true,
        }
    }
}

/// Why nothing can be imported.
#[derive(Debug)]
pub enum Error {
    File(FileError),
    /// The loader refuses something that no key of the files is the reason of: a mistake of ours.
    Refused(config::Error),
}

impl std::error::Error for Error {}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::File(error) => error.fmt(f),
            Error::Refused(error) => write!(f, "what was made of it is refused, which is a mistake of qcp's: {error}"),
        }
    }
}

/// Imports from the disk. A relative name is looked for where qcp runs, as PgBouncer does, and then beside the file.
pub fn from_disk(file: &Path) -> Result<Import, Error> {
    let beside = file.parent().unwrap_or(Path::new("")).to_owned();
    let mut load = |name: &str| match std::fs::read_to_string(name) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => std::fs::read_to_string(beside.join(name)),
        read => read,
    };
    import(&file.display().to_string(), &mut load, Path::new("/proc/net/if_inet6").exists())
}

/// `ipv6`: whether this machine has it, for PgBouncer's "all addresses".
pub fn import(file: &str, load: &mut ini::Load, ipv6: bool) -> Result<Import, Error> {
    let entries = ini::read(file, load).map_err(Error::File)?;
    let folder = Path::new(file).parent().unwrap_or(Path::new("")).to_owned();
    let importer = Importer::new(&entries, load, ipv6, folder);
    importer.run(file)
}

/// What a key becomes, before the loader has been asked.
enum Outcome {
    /// `nicety`: without it nothing goes wrong.
    To {
        settings: Vec<Setting>,
        note: Option<String>,
        nicety: bool,
    },
    Same(String),
    Ignored(String),
    Decide(String),
    /// Made together with other keys.
    Part {
        of: &'static str,
    },
}

impl Outcome {
    fn to<'a>(path: impl IntoIterator<Item = &'a str>, value: Value) -> Outcome {
        Outcome::To { settings: vec![Setting::new(path, value)], note: None, nicety: false }
    }

    fn same(what: &str) -> Outcome {
        Outcome::Same(what.to_owned())
    }

    fn ignore(why: &str) -> Outcome {
        Outcome::Ignored(why.to_owned())
    }

    fn decide(what: &str) -> Outcome {
        Outcome::Decide(what.to_owned())
    }

    fn nicety(mut self) -> Outcome {
        if let Outcome::To { nicety, .. } = &mut self {
            *nicety = true;
        }
        self
    }

    fn note(mut self, text: &str) -> Outcome {
        if let Outcome::To { note, .. } = &mut self {
            *note = Some(text.to_owned());
        }
        self
    }

    /// A nicety, and what is so without it.
    fn otherwise(self, text: &str) -> Outcome {
        self.nicety().note(text)
    }
}

struct Importer<'a> {
    entries: &'a [Entry],
    /// Where the imported file is.
    folder: PathBuf,
    /// There is a `::` to listen on.
    ipv6: bool,
    users: Option<Result<Secrets, String>>,
    hba: Option<Result<(), String>>,
    judge: Judge,
    findings: Vec<Finding>,
    /// With the findings that they come from.
    settings: Vec<(Setting, Vec<usize>)>,
    /// Of each finding: whether QCP can do without.
    niceties: Vec<bool>,
}

impl<'a> Importer<'a> {
    fn new(entries: &'a [Entry], load: &mut ini::Load, ipv6: bool, folder: PathBuf) -> Self {
        let mut importer = Importer {
            entries,
            folder,
            ipv6,
            users: None,
            hba: None,
            judge: Judge::None,
            findings: Vec::new(),
            settings: Vec::new(),
            niceties: Vec::new(),
        };
        let mut read = |key: &str| {
            let name = importer.value(key).filter(|name| !name.is_empty())?;
            Some(load(name).map_err(|error| format!("{name} cannot be read: {error}")))
        };
        let (users, hba) = (read("auth_file"), read("auth_hba_file"));
        importer.users = users.map(|text| {
            ini::user_list(&text?).map_err(|line| format!("line {line} of it is not \"user\" \"password\""))
        });
        importer.hba =
            hba.map(|text| match text?.lines().any(|line| line.split_whitespace().any(|word| word == "ldap")) {
                true => Err("it has the method ldap, which QCP lacks".to_owned()),
                false => Ok(()),
            });
        importer.judge = Importer::judge_of(importer.value("auth_type").unwrap_or("md5"));
        importer
    }

    /// What `[pgbouncer]` says of a key: the last of its name.
    fn entry(&self, key: &str) -> Option<&'a Entry> {
        self.entries.iter().rev().find(|entry| &*entry.section == "pgbouncer" && entry.key == key)
    }

    fn value(&self, key: &str) -> Option<&'a str> {
        self.entry(key).map(|entry| entry.value.as_str())
    }

    fn has(&self, key: &str) -> bool {
        self.value(key).is_some_and(|value| !value.is_empty())
    }

    /// Nobody is in transaction or statement mode.
    fn has_only_session_mode(&self) -> bool {
        let mut modes = self.entries.iter().filter(|entry| match &*entry.section {
            "pgbouncer" => entry.key == "pool_mode" && !entry.value.eq_ignore_ascii_case("session"),
            _ => entry.value.contains("pool_mode"),
        });
        modes.next().is_none()
    }

    fn run(mut self, file: &str) -> Result<Import, Error> {
        let (addresses, wrong) = self.listening();
        let mut of_listening = Vec::new();
        for entry in self.entries {
            match &*entry.section {
                "pgbouncer" if self.entry(&entry.key).is_some_and(|last| last.place != entry.place) => {
                    self.add(entry, &entry.key, Outcome::ignore("given again behind it"));
                }
                "pgbouncer" => {
                    let outcome = self.global(&entry.key, &entry.value).unwrap_or_else(Outcome::Decide);
                    let reason = wrong.iter().find(|(key, _)| *key == entry.key);
                    match (outcome, reason) {
                        (Outcome::Part { .. }, Some((_, reason))) => {
                            self.add(entry, &entry.key, Outcome::decide(reason))
                        }
                        (Outcome::Part { of }, None) => {
                            of_listening.push(self.findings.len());
                            let verdict = Verdict::Mapped { to: vec![of.to_owned()], note: None };
                            self.push(Some(entry.place.clone()), &entry.key, verdict, false);
                        }
                        (outcome, _) => self.add(entry, &entry.key, outcome),
                    }
                }
                "databases" if self.is_given_again(entry) => {
                    self.add(entry, &format!("[databases] {}", entry.key), Outcome::ignore("given again behind it"));
                }
                "databases" => self.database(entry),
                "users" if self.is_given_again(entry) => {
                    self.add(entry, &format!("[users] {}", entry.key), Outcome::ignore("given again behind it"));
                }
                "users" => self.user(entry),
                "peers" => {
                    let several =
                        "one qcp has all cores: multiply the pool sizes by the number of peers on this machine";
                    self.add(entry, &format!("[peers] {}", entry.key), Outcome::decide(several));
                }
                section => {
                    let label = format!("[{section}] {}", entry.key);
                    self.add(entry, &label, Outcome::decide("not a section of PgBouncer 1.25"));
                }
            }
        }
        self.add_defaults(&wrong);
        if !addresses.is_empty() {
            self.settings.push((Setting::new(["listening_address"], Value::List(addresses)), of_listening));
        }
        self.settle(file)
    }

    /// An entry of the same section and name comes later; PgBouncer takes that.
    fn is_given_again(&self, entry: &Entry) -> bool {
        let same = |other: &&Entry| other.section == entry.section && other.key == entry.key;
        self.entries.iter().rev().find(same).is_some_and(|last| last.place != entry.place)
    }

    /// What PgBouncer does without being told, and QCP would not.
    fn add_defaults(&mut self, wrong: &[(&str, String)]) {
        for (key, setting) in entries::defaults(self) {
            let outcome = Outcome::To { settings: vec![setting], note: None, nicety: false };
            self.add_at(None, key, outcome);
        }
        if !self.has("auth_type") {
            let outcome = self.auth("auth_type", "md5");
            self.add_at(None, "auth_type", outcome);
        }
        if !self.has("server_tls_sslmode") {
            let outcome = self.global("server_tls_sslmode", "prefer").unwrap_or_else(Outcome::Decide);
            self.add_at(None, "server_tls_sslmode", outcome);
        }
        if self.entries.iter().all(|entry| &*entry.section != "databases" || entry.key != "*") {
            let only = Setting::new(["databases_only"], Value::Bare("true".to_owned()));
            let outcome = Outcome::To { settings: vec![only], note: None, nicety: false };
            self.add_at(None, "[databases] without *", outcome);
        }
        // Of a key that is not there; one that is has been told.
        for (key, reason) in wrong {
            if self.entry(key).is_none() {
                self.add_at(None, key, Outcome::decide(reason));
            }
        }
    }

    fn add(&mut self, entry: &Entry, key: &str, outcome: Outcome) {
        self.add_at(Some(entry.place.clone()), key, outcome);
    }

    fn add_at(&mut self, place: Option<Place>, key: &str, outcome: Outcome) {
        let at = self.findings.len();
        let (verdict, nicety) = match outcome {
            Outcome::To { settings, note, nicety } => {
                let to = settings.iter().map(Setting::name).collect();
                self.settings.extend(settings.into_iter().map(|setting| (setting, vec![at])));
                (Verdict::Mapped { to, note }, nicety)
            }
            Outcome::Same(what) => (Verdict::Mapped { to: Vec::new(), note: Some(what) }, false),
            Outcome::Ignored(why) => (Verdict::Ignored(why), false),
            Outcome::Decide(what) => (Verdict::Decide(what), false),
            Outcome::Part { of } => (Verdict::Mapped { to: vec![of.to_owned()], note: None }, false),
        };
        self.push(place, key, verdict, nicety);
    }

    fn push(&mut self, place: Option<Place>, key: &str, verdict: Verdict, nicety: bool) {
        self.findings.push(Finding { place, key: printable(key), verdict });
        self.niceties.push(nicety);
    }

    /// Takes out what the loader refuses, until it refuses nothing.
    fn settle(mut self, file: &str) -> Result<Import, Error> {
        self.settings.sort_by_key(|(setting, _)| rank(setting));
        loop {
            let settings = self.settings.iter().map(|(setting, origins)| (setting, self.origins(origins)));
            let body = draft::render(settings);
            let Err(error) = Config::parse(file, &body) else {
                // What was nice to have is there: the note on its lack has no place.
                for (finding, nicety) in self.findings.iter_mut().zip(&self.niceties) {
                    if let (Verdict::Mapped { note, .. }, true) = (&mut finding.verdict, nicety) {
                        *note = None;
                    }
                }
                return Ok(Import { yaml: head(file, &self.findings) + &body, findings: self.findings });
            };
            self.take_out(error)?;
        }
    }

    fn take_out(&mut self, error: config::Error) -> Result<(), Error> {
        let path = keys_of(&error.key);
        let is_unknown = matches!(error.problem, Problem::UnknownKey { .. });
        let is_meant = |setting: &Setting| setting.path.iter().zip(&path).all(|(own, refused)| own == refused);
        // What is wrong only of a user and a database together is told by a path that nobody has written.
        let end = path.len().saturating_sub(2);
        let is_like = |setting: &Setting| path.len() > 2 && setting.path.ends_with(&path[end..]);
        let is_written = self.settings.iter().any(|(setting, _)| !path.is_empty() && is_meant(setting));
        let (refused, kept): (Vec<_>, Vec<_>) = std::mem::take(&mut self.settings)
            .into_iter()
            .partition(|(setting, _)| if is_written { is_meant(setting) } else { is_like(setting) });
        self.settings = kept;
        if refused.is_empty() {
            return Err(Error::Refused(error));
        }
        let whole = error.to_string();
        let reason = whole.split_once(&format!("{}: ", error.key)).map_or(whole.as_str(), |(_, reason)| reason);
        for (setting, origins) in refused {
            for at in origins {
                let (finding, nicety) = (&mut self.findings[at], self.niceties[at]);
                finding.verdict = match &mut finding.verdict {
                    _ if !is_unknown => Verdict::Decide(printable(&format!("{}: {reason}", setting.name()))),
                    Verdict::Mapped { to, note } => Verdict::Later {
                        to: std::mem::take(to),
                        for_now: note.take().filter(|_| nicety),
                        is_open: !nicety,
                    },
                    told => told.clone(),
                };
            }
        }
        Ok(())
    }

    /// The keys that a setting comes from.
    fn origins(&self, origins: &[usize]) -> String {
        let names: Vec<String> = origins
            .iter()
            .map(|&at| match &self.findings[at] {
                Finding { place: Some(place), key, .. } => format!("{key}, line {}", place.line),
                Finding { place: None, key, .. } => format!("PgBouncer's default of {key}"),
            })
            .collect();
        if names.is_empty() { "PgBouncer's default".to_owned() } else { names.join("; ") }
    }
}

/// Whether this version of QCP takes these keys, right values or not.
fn is_taken(yaml: &str) -> bool {
    let loaded = Config::parse("probe", yaml).map_err(|error| error.problem);
    !matches!(loaded, Err(Problem::UnknownKey { .. }))
}

/// The path without what is below a list.
fn keys_of(path: &KeyPath) -> Vec<String> {
    let keys = path.0.iter().map_while(|segment| match segment {
        Segment::Key(key) => Some(key.clone()),
        Segment::Index(_) => None,
    });
    keys.collect()
}

/// The order of the top level in a configuration that a person would write.
fn rank(setting: &Setting) -> usize {
    const ORDER: [&str; 6] = ["listening_address", "servers", "databases_only", "relay_mode", "pool", "limits"];
    const LAST: [&str; 2] = ["databases", "users"];
    let top = setting.path.first().map_or("", String::as_str);
    let early = ORDER.iter().position(|key| *key == top);
    let late = LAST.iter().position(|key| *key == top).map(|at| ORDER.len() + 1 + at);
    early.or(late).unwrap_or(ORDER.len())
}

/// What a person reads first: all that is not beside a key below.
fn head(file: &str, findings: &[Finding]) -> String {
    let mut text = format!("# Made by qcp --import-pgbouncer from {}\n", printable(file));
    type Wanted = fn(&Verdict) -> bool;
    let groups: [(&str, Wanted); 4] = [
        ("Needs your decision", |verdict| matches!(verdict, Verdict::Decide(_))),
        ("This version of qcp does not have yet", |verdict| matches!(verdict, Verdict::Later { .. })),
        ("Ignored", |verdict| matches!(verdict, Verdict::Ignored(_))),
        ("QCP does the same without a key", |verdict| matches!(verdict, Verdict::Mapped { to, .. } if to.is_empty())),
    ];
    for (title, wanted) in groups {
        let lines: Vec<&Finding> = findings.iter().filter(|finding| wanted(&finding.verdict)).collect();
        if !lines.is_empty() {
            let _ = write!(text, "#\n# {title}:\n");
        }
        for finding in lines {
            let _ = writeln!(text, "#   {}", printable(&finding.to_string()));
        }
    }
    text + "\n"
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.place {
            Some(place) => write!(f, "{}: {}: {}", printable(&place.to_string()), self.key, self.verdict),
            None => write!(f, "PgBouncer's default: {}: {}", self.key, self.verdict),
        }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Verdict::Mapped { to, note } => {
                f.write_str("mapped: ")?;
                match (to.as_slice(), note) {
                    ([], Some(note)) => write!(f, "as QCP is: {note}"),
                    ([], None) => f.write_str("as QCP is"),
                    (to, None) => f.write_str(&printable(&to.join(", "))),
                    (to, Some(note)) => write!(f, "{} ({note})", printable(&to.join(", "))),
                }
            }
            Verdict::Ignored(why) => write!(f, "ignored: {why}"),
            Verdict::Later { to, for_now, is_open } => {
                write!(
                    f,
                    "{}not there yet: {}",
                    if *is_open { "needs your decision: " } else { "" },
                    printable(&to.join(", "))
                )?;
                match for_now {
                    Some(for_now) => write!(f, "; for now {for_now}"),
                    None => Ok(()),
                }
            }
            Verdict::Decide(what) => write!(f, "needs your decision: {what}"),
        }
    }
}

impl Import {
    /// How many of each, in a line.
    pub fn summary(&self) -> String {
        let count = |wanted: fn(&Verdict) -> bool| self.findings.iter().filter(|found| wanted(&found.verdict)).count();
        format!(
            "{} mapped, {} ignored, {} not there yet, {} need your decision",
            count(|verdict| matches!(verdict, Verdict::Mapped { .. })),
            count(|verdict| matches!(verdict, Verdict::Ignored(_))),
            count(|verdict| matches!(verdict, Verdict::Later { .. })),
            count(Verdict::is_open),
        )
    }

    /// What a person has to look at first.
    pub fn open(&self) -> impl Iterator<Item = &Finding> {
        self.findings.iter().filter(|finding| finding.verdict.is_open())
    }
}
