//! What PostgreSQL does with a session's messages, as far as a pooler can tell: a pure state machine without clock or
//! socket. The fake server runs one for each connection; each application runs another as its reference, fed with what
//! it sent itself, so that "what it must see" is what it would have seen without a pooler.
//!
//! Statements are words: `echo c7.42 rows=2 size=10`, `begin c7.43`, `sleep c7.44 ms=50`; `$1` stands for a parameter.

use std::collections::{BTreeMap, VecDeque};

use super::wire::{self, Mark, put, put_fields};

/// The reported settings, as the server spells them, with their defaults.
pub const REPORTED: [(&str, &str); 7] = [
    ("application_name", ""),
    ("client_encoding", "UTF8"),
    ("DateStyle", "ISO, MDY"),
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

    fn extended(&mut self, tag: u8, body: &[u8]) {
        let ran = match tag {
            b'P' => self.parse(body),
            b'B' => self.bind(body),
            b'D' => self.describe(body),
            b'E' => self.execute(body),
            _ => {
                let name = wire::string(body, &mut 1).to_owned();
                if body[0] == b'S' {
                    self.statements.remove(&name);
                } else {
                    self.portals.remove(&name);
                }
                put(&mut self.out, b'3', b"");
                Ok(())
            }
        };
        if let Err((code, text)) = ran {
            self.fail(code, &text);
            self.mode = Mode::Skipping;
        }
    }

    fn aborted(&self, text: &str) -> Result<(), (&'static str, String)> {
        let verb = text.split_whitespace().next().unwrap_or("").to_lowercase();
        if self.status == Status::Failed && !matches!(&*verb, "commit" | "rollback") {
            return Err(("25P02", "pg: current transaction is aborted".to_owned()));
        }
        Ok(())
    }

    fn parse(&mut self, body: &[u8]) -> Result<(), (&'static str, String)> {
        let mut at = 0;
        let (name, text) = (wire::string(body, &mut at).to_owned(), wire::string(body, &mut at).to_owned());
        if name.is_empty() {
            self.statements.remove("");
        }
        self.aborted(&text)?;
        if text.starts_with("bad") {
            return Err(("42601", format!("pg: syntax error in {text}")));
        }
        if !name.is_empty() && self.statements.contains_key(&name) {
            return Err(("42P05", format!("prepared statement \"{name}\" already exists")));
        }
        self.begin_implicit();
        self.statements.insert(name, text);
        put(&mut self.out, b'1', b"");
        Ok(())
    }

    fn bind(&mut self, body: &[u8]) -> Result<(), (&'static str, String)> {
        let mut at = 0;
        let (portal, statement) = (wire::string(body, &mut at).to_owned(), wire::string(body, &mut at).to_owned());
        let Some(text) = self.statements.get(&statement) else {
            return Err(("26000", format!("prepared statement \"{statement}\" does not exist")));
        };
        self.aborted(text)?;
        // No formats; one value at most.
        let count = u16::from_be_bytes([body[at + 2], body[at + 3]]);
        let mut value = String::new();
        if count > 0 {
            let size = u32::from_be_bytes(body[at + 4..at + 8].try_into().unwrap()) as usize;
            value = String::from_utf8(body[at + 8..at + 8 + size].to_vec()).unwrap();
        }
        if portal.is_empty() {
            self.portals.remove("");
        } else if self.portals.contains_key(&portal) {
            return Err(("42P03", format!("pg: cursor {portal} already exists")));
        }
        let text = text.replace("$1", &value);
        self.begin_implicit();
        self.portals.insert(portal, Portal { text, position: 0 });
        put(&mut self.out, b'2', b"");
        Ok(())
    }

    fn describe(&mut self, body: &[u8]) -> Result<(), (&'static str, String)> {
        let name = wire::string(body, &mut 1).to_owned();
        let text = if body[0] == b'S' {
            let Some(text) = self.statements.get(&name) else {
                return Err(("26000", format!("prepared statement \"{name}\" does not exist")));
            };
            text.clone()
        } else {
            let Some(portal) = self.portals.get(&name) else {
                return Err(("34000", format!("pg: portal {name} does not exist")));
            };
            portal.text.clone()
        };
        if self.status == Status::Failed {
            self.aborted("describe")?;
        }
        if body[0] == b'S' {
            let count = u16::from(text.contains("$1"));
            let mut types = count.to_be_bytes().to_vec();
            types.extend_from_slice(&25u32.to_be_bytes()[..4 * count as usize]);
            put(&mut self.out, b't', &types);
        }
        if returns_rows(&text) {
            self.put_row_description()
        } else {
            put(&mut self.out, b'n', b"")
        }
        Ok(())
    }

    fn execute(&mut self, body: &[u8]) -> Result<(), (&'static str, String)> {
        let mut at = 0;
        let name = wire::string(body, &mut at).to_owned();
        let most = u32::from_be_bytes(body[at..at + 4].try_into().unwrap()) as usize;
        let Some(portal) = self.portals.get(&name) else {
            return Err(("34000", format!("pg: portal {name} does not exist")));
        };
        let (text, position) = (portal.text.clone(), portal.position);
        if text.is_empty() {
            put(&mut self.out, b'I', b"");
            return Ok(());
        }
        let most = if most == 0 { usize::MAX } else { most };
        if position == usize::MAX && !returns_rows(&text) {
            return Err(("55000", "pg: portal cannot be run".to_owned()));
        }
        if let Some(portal) = self.portals.get_mut(&name) {
            portal.position = if returns_rows(&text) { position.saturating_add(most) } else { usize::MAX };
        }
        if let Ran::Failed = self.run(&text, By::Execute, position, most) {
            self.mode = Mode::Skipping;
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

    fn run(&mut self, text: &str, by: By, from: usize, most: usize) -> Ran {
        if let Err((code, why)) = self.aborted(text) {
            self.fail(code, &why);
            return Ran::Failed;
        }
        self.begin_implicit();
        let mark = wire::mark(text.as_bytes());
        if from == 0 {
            self.effects.executed.extend(mark);
        }
        let words: Vec<&str> = text.split_whitespace().collect();
        let number = |name: &str| {
            let value = words.iter().find_map(|word| word.strip_prefix(name)?.strip_prefix('='));
            value.map_or(0, |value| value.parse().expect("the simulation writes numbers"))
        };
        let name = mark.map_or_else(|| "nobody".to_owned(), |mark| mark.to_string());
        match &*words[0].to_lowercase() {
            "echo" => {
                if by == By::Query {
                    self.put_row_description();
                }
                let rows: usize = number("rows").max(1);
                let padding = "x".repeat(number("size"));
                for row in (from..rows).take(most) {
                    self.put_row(&format!("{name} row {row} {padding}"));
                }
                if from.saturating_add(most) < rows {
                    put(&mut self.out, b's', b"");
                } else {
                    self.complete(&format!("SELECT {rows}"));
                }
            }
            "show" => {
                if by == By::Query {
                    self.put_row_description();
                }
                let value = self.setting(&unquoted(words[1])).to_owned();
                self.put_row(&format!("{name} {value}"));
                self.complete("SHOW");
            }
            "begin" => {
                if self.status == Status::Idle {
                    self.status = Status::InBlock;
                } else {
                    self.notice("25001", "pg: there is already a transaction in progress");
                }
                self.complete("BEGIN");
            }
            "commit" => self.end_block(true),
            "rollback" => self.end_block(false),
            "fail" => {
                self.fail("22012", &format!("pg: {name} fails"));
                return Ran::Failed;
            }
            "notice" => {
                self.notice("01000", &format!("pg: {name} notices"));
                self.complete("NOTICE");
            }
            "set" => {
                let value = words[3..].join(" ");
                let value = value.split(" c").next().unwrap_or("").trim_matches('\'').to_owned();
                let setting = unquoted(words[1]);
                if value.starts_with("bad") {
                    self.fail("22023", &format!("pg: invalid value for parameter {setting}"));
                    return Ran::Failed;
                }
                self.settings.insert(setting, value);
                self.complete("SET");
            }
            // How the pooler sets what the server does not report.
            "select" => {
                let mut parts = text.split('\'');
                let (setting, value) = (parts.nth(1).unwrap().to_lowercase(), parts.nth(1).unwrap().to_owned());
                self.settings.insert(setting, value.clone());
                self.put_row_description();
                self.put_row(&value);
                self.complete("SELECT 1");
            }
            "reset" => {
                let setting = unquoted(words[1]);
                match self.defaults.get(&setting).cloned() {
                    Some(value) => self.settings.insert(setting, value),
                    None => self.settings.remove(&setting),
                };
                self.complete("RESET");
            }
            "discard" => {
                if self.status != Status::Idle || !self.rest.is_empty() {
                    self.fail("25001", "pg: DISCARD ALL cannot run inside a transaction block");
                    return Ran::Failed;
                }
                self.statements.clear();
                self.portals.clear();
                self.settings = self.defaults.clone();
                self.complete("DISCARD ALL");
            }
            "deallocate" => {
                self.statements.clear();
                self.complete("DEALLOCATE ALL");
            }
            "copyin" => {
                put(&mut self.out, b'G', &[0, 0, 1, 0, 0]);
                self.flushed = self.out.len();
                self.mode = Mode::CopyIn { by, rows: 0 };
                return Ran::Waits;
            }
            "copyout" => {
                put(&mut self.out, b'H', &[0, 0, 1, 0, 0]);
                let padding = "x".repeat(number("size"));
                for row in 0..number("rows") {
                    put(&mut self.out, b'd', format!("{name} copy {row} {padding}\n").as_bytes());
                }
                put(&mut self.out, b'c', b"");
                self.complete(&format!("COPY {}", number("rows")));
            }
            "sleep" => {
                self.flushed = self.out.len();
                self.mode = Mode::Sleeping { by, mark, ms: number("ms") as u64 };
                return Ran::Waits;
            }
            "die" => self.effects.dies = Some(true),
            verb => {
                self.fail("42601", &format!("pg: syntax error at {verb}"));
                return Ran::Failed;
            }
        }
        Ran::Done
    }

    fn end_block(&mut self, commit: bool) {
        let failed = self.status == Status::Failed;
        if self.status == Status::Idle {
            self.notice("25P01", "pg: there is no transaction in progress");
        }
        if let Some(before) = self.before.take()
            && !commit
        {
            self.settings = before;
        }
        self.portals.clear();
        self.status = Status::Idle;
        self.complete(if commit && !failed { "COMMIT" } else { "ROLLBACK" });
    }

    /// A message while COPY FROM STDIN is under way.
    fn copy(&mut self, by: By, rows: usize, tag: u8, body: &[u8]) {
        self.mode = Mode::Ready;
        match tag {
            b'd' => self.mode = Mode::CopyIn { by, rows: rows + 1 },
            // "Flush and Sync messages received during copy-in mode are ignored" (COPY Operations).
            b'H' | b'S' => self.mode = Mode::CopyIn { by, rows },
            b'c' => {
                self.complete(&format!("COPY {rows}"));
                self.after(by, Ran::Done);
            }
            b'f' => {
                let why = wire::string(body, &mut 0);
                self.fail("57014", &format!("pg: COPY from stdin failed: {why}"));
                self.after(by, Ran::Failed);
            }
            _ => {
                self.fail("08P01", "pg: unexpected message type during COPY from stdin");
                self.after(by, Ran::Failed);
            }
        }
    }
}

fn returns_rows(text: &str) -> bool {
    matches!(text.split_whitespace().next(), Some("echo" | "show"))
}

fn unquoted(word: &str) -> String {
    word.trim_matches(['"', '\'']).to_lowercase()
}
