//! What PostgreSQL does with a session's messages, as far as a pooler can tell: a pure state machine without clock or
//! socket. The fake server runs one for each connection; each application runs another as its reference, fed with what
//! it sent itself, so that "what it must see" is what it would have seen without a pooler.
//!
//! Statements are words: `echo c7.42 rows=2 size=10`, `begin c7.43`, `sleep c7.44 ms=50`; `$1` stands for a parameter.

mod extended;
mod statements;

use std::collections::{BTreeMap, VecDeque};

use super::wire::{self, Mark, put, put_fields};
use statements::returns_rows;

/// The reported settings, as the server spells them, with their defaults.
pub const REPORTED: [(&str, &str); 8] = [
    ("application_name", ""),
    ("client_encoding", "UTF8"),
    ("DateStyle", "ISO, MDY"),
    ("in_hot_standby", "off"),
    ("IntervalStyle", "postgres"),
    ("server_version", "17.2"),
    ("standard_conforming_strings", "on"),
    ("TimeZone", "UTC"),
];

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Status {
    Idle,
    InBlock,
    Failed,
}

#[derive(Clone, PartialEq, Eq, Debug)]
enum Mode {
    Ready,
    /// "reads and discards messages until a Sync is reached".
    Skipping,
    CopyIn {
        by: By,
        rows: usize,
    },
    Sleeping {
        by: By,
        mark: Option<Mark>,
        ms: u64,
    },
}

/// What a statement was started by.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum By {
    Query,
    Execute,
}

enum Ran {
    Done,
    Failed,
    /// It waits for data or for time.
    Waits,
}

struct Portal {
    text: String,
    /// Rows sent so far, when it was suspended.
    position: usize,
}

/// What the world has to know of a message that was processed.
#[derive(Default)]
pub struct Effects {
    /// Statements that were executed, by their marks.
    pub executed: Vec<Mark>,
    /// The connection ends: the client said so (`false`), or the statement `die` (`true`).
    pub dies: Option<bool>,
}

pub struct Session {
    settings: BTreeMap<String, String>,
    defaults: BTreeMap<String, String>,
    reported: BTreeMap<String, String>,
    /// Settings before the transaction under way, explicit or not.
    before: Option<BTreeMap<String, String>>,
    pub status: Status,
    statements: BTreeMap<String, String>,
    portals: BTreeMap<String, Portal>,
    mode: Mode,
    /// Extended-protocol messages came behind the last Sync.
    unsynced: bool,
    /// Statements of a simple query that are still to be run.
    rest: VecDeque<String>,
    pub out: Vec<u8>,
    /// How much of `out` the server has flushed.
    pub flushed: usize,
    pub effects: Effects,
}

impl Session {
    /// As it begins; `startup` are the settings of the startup packet.
    pub fn new(startup: &[(String, String)]) -> Self {
        let mut defaults: BTreeMap<String, String> =
            REPORTED.iter().map(|(name, value)| (name.to_lowercase(), (*value).to_owned())).collect();
        for (name, value) in startup {
            defaults.insert(name.to_lowercase(), value.clone());
        }
        Self {
            settings: defaults.clone(),
            reported: defaults.clone(),
            defaults,
            before: None,
            status: Status::Idle,
            statements: BTreeMap::new(),
            portals: BTreeMap::new(),
            mode: Mode::Ready,
            unsynced: false,
            rest: VecDeque::new(),
            out: Vec::new(),
            flushed: 0,
            effects: Effects::default(),
        }
    }

    /// ParameterStatus of all that is reported.
    pub fn report_all(&mut self) {
        for (name, _) in REPORTED {
            let value = self.settings[&name.to_lowercase()].clone();
            self.put_parameter(name, &value);
        }
    }

    pub fn setting(&self, name: &str) -> &str {
        self.settings.get(name).map_or("", String::as_str)
    }

    /// Nothing of the last client is left but its settings and statements.
    pub fn is_clean(&self) -> bool {
        self.status == Status::Idle && self.mode == Mode::Ready && !self.unsynced
    }

    /// It sleeps, for so long, for this request.
    pub fn sleeping(&self) -> Option<(Option<Mark>, u64)> {
        match self.mode {
            Mode::Sleeping { mark, ms, .. } => Some((mark, ms)),
            Mode::Ready | Mode::Skipping | Mode::CopyIn { .. } => None,
        }
    }

    pub fn is_copying_in(&self) -> bool {
        matches!(self.mode, Mode::CopyIn { .. })
    }

    /// Whether a message of this type has neither effect nor answer now.
    pub fn ignores(&self, tag: u8) -> bool {
        match self.mode {
            Mode::Ready => matches!(tag, b'd' | b'c' | b'f' | b'H'),
            Mode::Skipping => tag != b'S' && tag != b'X',
            Mode::CopyIn { .. } | Mode::Sleeping { .. } => false,
        }
    }

    /// The sleep is over: its time has come, or a cancel.
    pub fn wake(&mut self, cancelled: bool) {
        let Mode::Sleeping { by, .. } = std::mem::replace(&mut self.mode, Mode::Ready) else {
            panic!("only a sleeper wakes");
        };
        if cancelled {
            self.fail("57014", "pg: canceling statement due to user request");
            self.after(by, Ran::Failed);
        } else {
            self.complete("SLEEP");
            self.after(by, Ran::Done);
        }
    }

    /// The message that comes next fails for reasons of the pooler's: as any error, but of an idle session.
    pub fn refuse(&mut self, tag: u8) {
        self.before = None;
        if matches!(tag, b'Q' | b'F') {
            self.ready();
        } else {
            self.mode = Mode::Skipping;
        }
    }

    pub fn process(&mut self, message: &[u8]) {
        let (tag, body) = (message[0], &message[5..]);
        if tag == b'X' {
            self.effects.dies = Some(false);
            return;
        }
        match self.mode {
            Mode::Sleeping { .. } => panic!("a sleeper reads nothing"),
            Mode::Skipping if tag != b'S' => return,
            Mode::CopyIn { by, rows } => return self.copy(by, rows, tag, body),
            Mode::Ready | Mode::Skipping => {}
        }
        match tag {
            b'Q' => self.query(body),
            b'P' | b'B' | b'D' | b'E' | b'C' => {
                self.unsynced = true;
                self.extended(tag, body);
            }
            b'S' => {
                self.mode = Mode::Ready;
                self.ready();
            }
            b'H' => self.flushed = self.out.len(),
            b'F' => self.call(body),
            b'd' | b'c' | b'f' => {}
            _ => panic!("the framer lets no such message through: {}", wire::show(message)),
        }
    }

    fn query(&mut self, body: &[u8]) {
        self.statements.remove("");
        self.portals.remove("");
        let text = wire::string(body, &mut 0);
        self.rest = text.split(';').map(|part| part.trim().to_owned()).filter(|part| !part.is_empty()).collect();
        if self.rest.is_empty() {
            put(&mut self.out, b'I', b"");
        }
        self.go_on();
    }

    /// Runs what is left of a simple query.
    fn go_on(&mut self) {
        while let Some(text) = self.rest.pop_front() {
            match self.run(&text, By::Query, 0, usize::MAX) {
                Ran::Done => {}
                Ran::Failed => self.rest.clear(),
                Ran::Waits => return,
            }
        }
        self.ready();
    }

    fn after(&mut self, by: By, ran: Ran) {
        match (by, ran) {
            (By::Query, Ran::Failed) => {
                self.rest.clear();
                self.go_on();
            }
            (By::Query, Ran::Done) => self.go_on(),
            (By::Execute, Ran::Failed) => self.mode = Mode::Skipping,
            (By::Execute, Ran::Done) | (_, Ran::Waits) => {}
        }
    }

    /// ReadyForQuery; without a block the transaction ends here.
    fn ready(&mut self) {
        self.unsynced = false;
        if self.status == Status::Idle {
            self.before = None;
            self.portals.clear();
        }
        for (name, _) in REPORTED {
            let name_lower = name.to_lowercase();
            let value = self.settings[&name_lower].clone();
            if self.reported[&name_lower] != value {
                self.put_parameter(name, &value);
                self.reported.insert(name_lower, value);
            }
        }
        let status = match self.status {
            Status::Idle => b'I',
            Status::InBlock => b'T',
            Status::Failed => b'E',
        };
        put(&mut self.out, b'Z', &[status]);
        self.flushed = self.out.len();
    }

    fn put_parameter(&mut self, name: &str, value: &str) {
        put(&mut self.out, b'S', format!("{name}\0{value}\0").as_bytes());
    }

    fn complete(&mut self, tag: &str) {
        put(&mut self.out, b'C', format!("{tag}\0").as_bytes());
    }

    fn fail(&mut self, code: &str, text: &str) {
        put_fields(&mut self.out, b'E', "ERROR", code, text);
        self.flushed = self.out.len();
        if let Some(before) = self.before.take() {
            self.settings = before;
        }
        self.portals.clear();
        if self.status == Status::InBlock {
            self.status = Status::Failed;
        }
    }

    fn notice(&mut self, code: &str, text: &str) {
        put_fields(&mut self.out, b'N', "WARNING", code, text);
    }

    fn aborted(&self, text: &str) -> Result<(), (&'static str, String)> {
        let verb = text.split_whitespace().next().unwrap_or("").to_lowercase();
        if self.status == Status::Failed && !matches!(&*verb, "commit" | "rollback") {
            return Err(("25P02", "pg: current transaction is aborted".to_owned()));
        }
        Ok(())
    }

    fn call(&mut self, body: &[u8]) {
        // Object id, no formats, one argument, format of the result.
        let size = u32::from_be_bytes(body[8..12].try_into().unwrap()) as usize;
        let value = body[12..12 + size].to_vec();
        self.unsynced = false;
        if self.status == Status::Failed {
            self.fail("25P02", "pg: current transaction is aborted");
        } else {
            self.effects.executed.extend(wire::mark(&value));
            let mut result = (value.len() as u32).to_be_bytes().to_vec();
            result.extend_from_slice(&value);
            put(&mut self.out, b'V', &result);
        }
        self.ready();
    }

    fn begin_implicit(&mut self) {
        if self.before.is_none() && self.status != Status::Failed {
            self.before = Some(self.settings.clone());
        }
    }

    fn put_row_description(&mut self) {
        let mut body = 1u16.to_be_bytes().to_vec();
        body.extend_from_slice(b"text\0");
        body.extend_from_slice(&[0; 6]);
        body.extend_from_slice(&25u32.to_be_bytes());
        body.extend_from_slice(&[0xff; 6]);
        body.extend_from_slice(&[0; 2]);
        put(&mut self.out, b'T', &body);
    }

    fn put_row(&mut self, value: &str) {
        let mut body = 1u16.to_be_bytes().to_vec();
        body.extend_from_slice(&(value.len() as u32).to_be_bytes());
        body.extend_from_slice(value.as_bytes());
        put(&mut self.out, b'D', &body);
    }
}
