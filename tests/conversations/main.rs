//! Conversations: the raw messages of `*.conv` files, spoken to PostgreSQL and through QCP. A client must not be able to
//! tell the two apart, so the traces must match.
//!
//! `CONVERSATION=name` plays only those whose names hold `name`. `BLESS=1` writes what PostgreSQL itself answered into
//! the files; lines for single targets (`B@...`) are never rewritten.

mod messages;
mod player;
mod script;
#[path = "../support/mod.rs"]
mod support;
mod trace;

use std::fmt::Write;
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use player::{Heard, play};
use script::{Act, Script};
use support::Address;
use support::pooler::Qcp;
use support::postgres::{SUPERUSER, postgres};

/// Whom a conversation is had with.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Target {
    Direct,
    Session,
    /// One backend for all clients.
    SmartOne,
    /// Several, so that a client meets other backends than before.
    SmartFour,
    Statement,
    /// One backend, with `session_state: preserve`.
    KeepOne,
    /// Several.
    KeepThree,
}

impl Target {
    fn name(self) -> &'static str {
        match self {
            Target::Direct => "direct",
            Target::Session => "session",
            Target::SmartOne => "smart-1",
            Target::SmartFour => "smart-4",
            Target::Statement => "statement",
            Target::KeepOne => "keep-1",
            Target::KeepThree => "keep-3",
        }
    }

    /// Whether a word of a script means this target among others.
    fn is(self, word: &str) -> bool {
        match word {
            "qcp" => self != Target::Direct,
            "smart" => matches!(self, Target::SmartOne | Target::SmartFour),
            "keep" => matches!(self, Target::KeepOne | Target::KeepThree),
            word => word == self.name(),
        }
    }

    fn configuration(self) -> Option<&'static str> {
        match self {
            Target::Direct => None,
            Target::Session => Some("relay_mode: Session\npool: {size: 4}\n"),
            Target::SmartOne => Some("relay_mode: Smart\nsession_state: none\npool: {size: 1}\n"),
            Target::SmartFour => Some("relay_mode: Smart\nsession_state: none\npool: {size: 4}\n"),
            Target::Statement => Some("relay_mode: Statement\nsession_state: none\npool: {size: 4}\n"),
            Target::KeepOne => Some("relay_mode: Smart\nsession_state: preserve\npool: {size: 1}\n"),
            Target::KeepThree => Some("relay_mode: Smart\nsession_state: preserve\npool: {size: 3}\n"),
        }
    }
}

#[test]
fn direct() {
    converse(Target::Direct);
}

#[test]
fn session() {
    converse(Target::Session);
}

#[test]
fn smart_with_one_backend() {
    converse(Target::SmartOne);
}

#[test]
fn smart_with_several_backends() {
    converse(Target::SmartFour);
}

#[test]
fn statement() {
    converse(Target::Statement);
}

#[test]
fn preserve_with_one_backend() {
    converse(Target::KeepOne);
}

#[test]
fn preserve_with_several_backends() {
    converse(Target::KeepThree);
}

/// Plays every conversation with a target and compares; fails with all differences at once.
fn converse(target: Target) {
    let server = postgres();
    let database = format!("conversations_{}", target.name().replace('-', "_"));
    server.create_database(&database);
    server.execute(&database, "CREATE TABLE words (id int PRIMARY KEY, word text NOT NULL)");
    let qcp = target.configuration().map(|yaml| Qcp::start(yaml, 1));
    let address = qcp.as_ref().map_or(server.tcp(), Qcp::tcp);

    let mut failed = Vec::new();
    for path in scripts() {
        let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        server.execute(&database, "TRUNCATE words; INSERT INTO words VALUES (1, 'one'), (2, 'two'), (3, 'three')");
        // A message that cannot be read at all panics, and says why; the other conversations are still worth having.
        let checked = catch_unwind(AssertUnwindSafe(|| check(&path, target, &address, &database)));
        let differences = checked.unwrap_or_else(|_| Err("it came to an end\n".to_owned()));
        if let Err(differences) = differences {
            eprintln!("==== {name} ({})\n{differences}", target.name());
            failed.push(name);
        }
    }
    assert!(failed.is_empty(), "{} of these differ: {failed:?}", target.name());
}

/// Plays one conversation; `Err` shows where it differs from what its file expects.
fn check(path: &Path, target: Target, address: &Address, database: &str) -> Result<(), String> {
    let text = fs::read_to_string(path).map_err(|error| error.to_string())?;
    let script = Script::parse(&text, |line| line.replace("$database", database).replace("$user", SUPERUSER))?;
    let is_excluded = script.excluded.iter().any(|word| target.is(word));
    if is_excluded || script.only.as_ref().is_some_and(|word| !target.is(word)) {
        return Ok(());
    }
    let heard = play(&script, address, database);
    if target == Target::Direct && std::env::var_os("BLESS").is_some() {
        return fs::write(path, blessed(&script, &heard)).map_err(|error| error.to_string());
    }
    let differences = differences(&script, &heard, target);
    if differences.is_empty() { Ok(()) } else { Err(differences) }
}

fn scripts() -> Vec<PathBuf> {
    let wanted = std::env::var("CONVERSATION").unwrap_or_default();
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/conversations");
    let entries = fs::read_dir(folder).expect("the folder of this file");
    let mut paths: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "conv"));
    paths.retain(|path| path.file_stem().is_some_and(|stem| stem.to_string_lossy().contains(&wanted)));
    paths.sort();
    paths
}

/// What came and was not expected (+), and what was expected and did not come (-).
fn differences(script: &Script, heard: &[Heard], target: Target) -> String {
    let mut shown = String::new();
    let steps = script.steps.iter().filter_map(|step| match &step.act {
        Act::Until { expected, .. } => Some((step.line, expected)),
        _ => None,
    });
    for ((line, expected), heard) in steps.zip(heard) {
        let meant = |word: &Option<String>| word.as_deref().is_none_or(|word| target.is(word));
        let expected: Vec<&String> =
            expected.iter().filter(|line| meant(&line.target)).map(|line| &line.text).collect();
        if expected.iter().copied().eq(&heard.trace) {
            continue;
        }
        let _ = writeln!(shown, "line {}: {}", line + 1, script.lines[line]);
        let same = expected.iter().zip(&heard.trace).take_while(|(left, right)| *left == right).count();
        for line in &heard.trace[..same] {
            let _ = writeln!(shown, "    {line}");
        }
        for line in &expected[same..] {
            let _ = writeln!(shown, "  - {line}");
        }
        for line in &heard.trace[same..] {
            let _ = writeln!(shown, "  + {line}");
        }
    }
    shown
}

/// The file with what was heard in the place of what it expected.
fn blessed(script: &Script, heard: &[Heard]) -> String {
    let mut text = String::new();
    let mut keeps_expected = false;
    for (index, line) in script.lines.iter().enumerate() {
        let is_expected = line.starts_with("B ") || line.starts_with("B@");
        if is_expected && !keeps_expected {
            continue;
        }
        text += line;
        text.push('\n');
        let Some(heard) = heard.iter().find(|heard| heard.line == index) else { continue };
        let old = script.lines[index + 1..].iter().take_while(|line| line.starts_with('B'));
        keeps_expected = old.clone().any(|line| line.starts_with("B@"));
        if !keeps_expected {
            for line in &heard.trace {
                let _ = writeln!(text, "B {line}");
            }
        }
    }
    text
}
