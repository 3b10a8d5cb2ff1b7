//! What was reached over all seeds of a run.

use std::collections::BTreeMap;

#[cfg(debug_assertions)]
use qcp::shard::mailbox::reached;

/// Beginnings of what is noted: "backend moved" is a `Mail::Give` with a backend. Transitions and messages are noted only
/// where debug assertions are on.
const REQUIRED: &[&str] = &[
    "backend moved",
    "bytes after a stop",
    "cancel ended a query",
    "client moved",
    "clients wait in a paused pool",
    "client vanished in COPY",
    "connect hangs",
    "connect refused",
    "fatal: 08006 no server connection",
    "fatal: 08006 the server connection was lost",
    "fatal: 28P01",
    "fatal: 28000",
    "fatal: 3D000",
    "fatal: 57P01 qcp is shutting down",
    "fatal: 57P01 terminating connection to",
    "fatal: 57P03 database",
    "fault: all server connections",
    "fault: canceling statement",
    "fault: no server connection of pool",
    "login refused",
    "logs in with a request",
    "no chunk left to receive into",
    "order: Disable",
    "order: Drain",
    "order: Enable",
    "order: Kill",
    "order: Pause",
    "order: Reconnect",
    "order: Resume",
    "places are owed",
    "pool retired",
    "reload: another mode",
    "reload: fewer databases",
    "reload: fewer servers",
    "reload: larger",
    "reload: recycle",
    "reload: smaller",
    "server connection died",
];

/// What is asked and the tags by which it can be answered.
#[cfg(debug_assertions)]
const TRANSITIONS: &[(&str, &str)] = &[
    ("Query", "CEGHINSTZc"),
    ("FunctionCall", "EVZ"),
    ("Sync", "SZ"),
    ("Parse", "1E"),
    ("Bind", "2E"),
    ("Describe", "ETnt"),
    ("Execute", "CEGNs"),
    ("Close", "3"),
    ("OwnParse", "1E"),
    ("OwnClose", "3"),
    ("OwnQuery", "CESZ"),
];

#[derive(Default)]
pub struct Coverage(pub BTreeMap<String, u64>);

impl Coverage {
    pub fn note(&mut self, what: &str) {
        match self.0.get_mut(what) {
            Some(count) => *count += 1,
            None => {
                self.0.insert(what.to_owned(), 1);
            }
        }
    }

    pub fn add(&mut self, other: &Self) {
        for (what, count) in &other.0 {
            *self.0.entry(what.clone()).or_default() += count;
        }
    }

    /// Transitions of the pipelines, and messages of the shards, on this thread since the last call.
    #[cfg(debug_assertions)]
    pub fn take_reached(&mut self) {
        for (kind, count) in reached::take().filter(|(_, count)| *count > 0) {
            *self.0.entry(format!("mail: {kind}")).or_default() += count;
        }
        for (expect, tag, count) in qcp::session::pipeline::reached::take() {
            *self.0.entry(format!("pipeline: {expect:?} {}", char::from(tag))).or_default() += count;
        }
    }

    /// What must be reached by a run of some size, and was not.
    pub fn missing(&self) -> Vec<String> {
        let is_missing = |what: &String| !self.0.keys().any(|reached| reached.starts_with(&**what));
        #[cfg(debug_assertions)]
        let transitions = TRANSITIONS
            .iter()
            .flat_map(|(expect, tags)| tags.chars().map(move |tag| format!("pipeline: {expect} {tag}")))
            .chain(reached::KINDS.iter().map(|kind| format!("mail: {kind}")));
        #[cfg(not(debug_assertions))]
        let transitions = std::iter::empty();
        REQUIRED.iter().map(|what| (*what).to_owned()).chain(transitions).filter(is_missing).collect()
    }

    pub fn print(&self) {
        for (what, count) in &self.0 {
            println!("  {what}: {count}");
        }
    }
}
