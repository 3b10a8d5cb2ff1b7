//! An application: what it sends, and the reference that says what it must see.

use std::collections::VecDeque;

use qcp::ids::ConnectionId;

use super::dials::Dials;
use super::postgres::{REPORTED, Session, Status};
use super::random::Random;
use super::wire::{self, Mark, message};

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Stage {
    /// Not connected yet.
    Absent,
    /// Asked whether the connection can be encrypted.
    Encryption,
    Login,
    Running,
    /// Was told a fatal error; the end must follow.
    Dismissed,
    Gone,
}

pub struct Application {
    pub id: u32,
    pub shard: usize,
    pub connection: Option<ConnectionId>,
    pub stage: Stage,
    pub database: String,
    pub user: String,
    wrong_password: bool,
    pub startup: Vec<(String, String)>,
    long_key: bool,
    pub slow: bool,
    inbox: Vec<u8>,
    /// What it would have without a pooler.
    pub reference: Session,
    /// Sent and not yet looked at by the reference.
    sent: VecDeque<Vec<u8>>,
    /// What the login reported.
    reported: Vec<(String, String)>,
    pub process_id: u32,
    pub key: Vec<u8>,
    pub cancels: u32,
    pub actions_left: usize,
    next_request: u32,
    /// Waits for the server to take COPY data: how it goes on.
    copying: Option<Vec<Vec<u8>>>,
    /// Nothing may be pipelined behind what it sent last: a DISCARD ALL, of which the pooler learns by its answer.
    pub alone: bool,
    /// The unnamed statement was parsed since it was last certain to be someone else's.
    unnamed: bool,
    /// Bytes that it holds back in the middle of a message.
    pub held: Vec<u8>,
    pub heard_at: u64,
    /// Errors of the pooler's own that it has seen.
    pub faults: Vec<wire::Fields>,
    pub answers: u64,
}

/// What a message from the pooler means for the world.
pub enum Heard {
    Nothing,
    /// It answers with this.
    Send(Vec<u8>),
    /// A fatal error: the end must follow.
    Fatal(wire::Fields),
}

/// Texts of prepared statements; the same for all clients.
const TEXTS: [&str; 9] = [
    "echo $1",
    "echo $1 rows=3",
    "echo $1 rows=9 size=40",
    "echo $1 rows=4 size=1500",
    "show application_name $1",
    "begin $1",
    "commit $1",
    "fail $1",
    "bad $1",
];

impl Application {
    pub fn new(id: u32, dials: &Dials, random: &mut Random) -> Self {
        let mut startup = Vec::new();
        if random.in_thousand(dials.startup_settings) {
            startup.push(("application_name".to_owned(), format!("app{}", random.below(4))));
            if random.below(4) == 0 {
                startup.push(("search_path".to_owned(), format!("schema{}", random.below(2))));
            }
            if random.below(4) == 0 {
                startup.push(("TimeZone".to_owned(), (*random.one_of(&["Europe/Berlin", "bad/zone"])).to_owned()));
            }
        }
        Self {
            id,
            shard: random.below(dials.shards),
            connection: None,
            stage: Stage::Absent,
            database: format!("db{}", random.below(dials.databases)),
            user: format!("user{}", random.below(dials.users)),
            wrong_password: random.in_thousand(dials.wrong_password),
            reference: Session::new(&startup),
            startup,
            long_key: random.below(4) == 0,
            slow: random.in_thousand(dials.slow_readers),
            inbox: Vec::new(),
            sent: VecDeque::new(),
            reported: Vec::new(),
            process_id: 0,
            key: Vec::new(),
            cancels: 0,
            actions_left: dials.actions,
            next_request: 0,
            copying: None,
            alone: false,
            unnamed: false,
            held: Vec::new(),
            heard_at: 0,
            faults: Vec::new(),
            answers: 0,
        }
    }

    pub fn encryption_request(&mut self) -> Vec<u8> {
        self.stage = Stage::Encryption;
        [8u32.to_be_bytes(), 80_877_103u32.to_be_bytes()].concat()
    }

    pub fn startup_packet(&mut self) -> Vec<u8> {
        self.stage = Stage::Login;
        let version: u32 = if self.long_key { 0x0003_0002 } else { 0x0003_0000 };
        let mut body = version.to_be_bytes().to_vec();
        let own = [("user".to_owned(), self.user.clone()), ("database".to_owned(), self.database.clone())];
        for (name, value) in own.iter().chain(&self.startup) {
            body.extend_from_slice(format!("{name}\0{value}\0").as_bytes());
        }
        body.push(0);
        let mut packet = (body.len() as u32 + 4).to_be_bytes().to_vec();
        packet.extend_from_slice(&body);
        packet
    }

    pub fn has_bad_settings(&self) -> bool {
        self.startup.iter().any(|(_, value)| value.starts_with("bad"))
    }

    pub fn has_wrong_password(&self) -> bool {
        self.wrong_password
    }

    /// Bytes from the pooler; `note` is given each message.
    pub fn hear(&mut self, bytes: &[u8], mut note: impl FnMut(&[u8])) -> Result<Vec<Heard>, String> {
        self.inbox.extend_from_slice(bytes);
        let mut heard = Vec::new();
        if self.stage == Stage::Encryption && !self.inbox.is_empty() {
            if self.inbox.remove(0) != b'N' {
                return Err("encryption was not refused by N".to_owned());
            }
            heard.push(Heard::Send(self.startup_packet()));
        }
        while let Some(message) = wire::take(&mut self.inbox) {
            note(&message);
            heard.push(match self.stage {
                Stage::Login => self.hear_login(&message)?,
                Stage::Running => self.hear_answer(&message)?,
                // Nobody reads on behind a fatal error.
                Stage::Dismissed => Heard::Nothing,
                Stage::Absent | Stage::Encryption | Stage::Gone => {
                    return Err(format!("{:?}: nothing more was to come: {}", self.stage, wire::show(&message)));
                }
            });
        }
        Ok(heard)
    }

    /// Whether part of a message has come.
    pub fn hears_half(&self) -> bool {
        !self.inbox.is_empty()
    }

    fn hear_login(&mut self, message: &[u8]) -> Result<Heard, String> {
        match message[0] {
            b'R' if message[5..9] == [0, 0, 0, 3] => {
                let password: &[u8] = if self.wrong_password { b"wrong\0" } else { b"right\0" };
                return Ok(Heard::Send(wire::message(b'p', password)));
            }
            b'R' | b'N' | b'v' => {}
            b'S' => {
                let mut at = 5;
                let name = wire::string(message, &mut at).to_owned();
                self.reported.push((name, wire::string(message, &mut at).to_owned()));
            }
            b'K' => {
                self.process_id = u32::from_be_bytes(message[5..9].try_into().unwrap());
                self.key = message[9..].to_vec();
            }
            b'Z' => {
                for (name, _) in REPORTED {
                    let value = self.reported.iter().rev().find(|(known, _)| known == name).map(|(_, value)| &**value);
                    let wanted = self.reference.setting(&name.to_lowercase());
                    if value != Some(wanted) {
                        return Err(format!("the login reports {name} as {value:?}, not {wanted:?}"));
                    }
                }
                self.stage = Stage::Running;
            }
            b'E' => {
                self.stage = Stage::Dismissed;
                return Ok(Heard::Fatal(wire::fields(message)));
            }
            _ => return Err(format!("no message of a login: {}", wire::show(message))),
        }
        Ok(Heard::Nothing)
    }

    fn hear_answer(&mut self, message: &[u8]) -> Result<Heard, String> {
        if message[0] == b'E' && wire::fields(message).severity == "FATAL" {
            self.stage = Stage::Dismissed;
            return Ok(Heard::Fatal(wire::fields(message)));
        }
        loop {
            if let Some(wanted) = wire::take(&mut self.reference.out) {
                self.reference.flushed = self.reference.flushed.saturating_sub(wanted.len());
                self.answers += 1;
                return if is_same(&wanted, message) {
                    Ok(Heard::Nothing)
                } else {
                    Err(format!("got {}, but a server says {}", wire::show(message), wire::show(&wanted)))
                };
            }
            if self.reference.sleeping().is_some() {
                let cancelled = message[0] == b'E' && self.cancels > 0;
                self.reference.wake(cancelled);
                continue;
            }
            if message[0] == b'E' && self.is_fault(message) {
                return Ok(Heard::Nothing);
            }
            let Some(sent) = self.sent.pop_front() else {
                return Err(format!("nobody asked for {}", wire::show(message)));
            };
            self.reference.process(&sent);
        }
    }

    /// Whether an error is the pooler's own, in the place of the next request.
    fn is_fault(&mut self, message: &[u8]) -> bool {
        let fields = wire::fields(message);
        let its_own = match &*fields.code {
            "53300" | "53200" => !fields.text.starts_with("pg: "),
            "57014" => self.cancels > 0 && !fields.text.starts_with("pg: "),
            "0A000" => !fields.text.starts_with("pg: "),
            _ => false,
        };
        if !its_own || self.reference.status != Status::Idle {
            return false;
        }
        self.skip_silent();
        let Some(next) = self.sent.front() else { return false };
        let tag = next[0];
        if matches!(tag, b'Q' | b'F') {
            self.sent.pop_front();
        }
        self.reference.refuse(tag);
        self.unnamed = false;
        self.faults.push(fields);
        true
    }

    /// Lets the reference read what brings no answer.
    fn skip_silent(&mut self) {
        while self.reference.sleeping().is_none()
            && let Some(next) = self.sent.front()
            && (self.reference.ignores(next[0])
                || self.reference.is_copying_in() && matches!(next[0], b'd' | b'H' | b'S'))
        {
            let next = self.sent.pop_front().unwrap();
            self.reference.process(&next);
        }
    }

    /// Whether all that is due has come.
    pub fn is_settled(&mut self) -> bool {
        if self.stage != Stage::Running || self.reference.sleeping().is_some() || !self.inbox.is_empty() {
            return false;
        }
        self.skip_silent();
        self.sent.is_empty() && self.reference.flushed == 0 && self.held.is_empty()
    }

    /// What it waits for, for people.
    pub fn waits_for(&self) -> String {
        let next: Vec<String> = self.sent.iter().take(3).map(|message| wire::show(message)).collect();
        let mut out = self.reference.out.clone();
        let due = wire::take(&mut out).map(|message| wire::show(&message));
        format!("due {due:?}, sleeping {:?}, then {next:?}", self.reference.sleeping())
    }

    pub fn sent_size(&self) -> usize {
        self.sent.iter().map(Vec::len).sum()
    }

    pub fn is_copying(&self) -> bool {
        self.copying.is_some()
    }

    fn mark(&mut self) -> Mark {
        self.next_request += 1;
        Mark { client: self.id, request: self.next_request }
    }

    /// The next messages, in one write; nothing when it has to wait.
    pub fn act(&mut self, dials: &Dials, random: &mut Random) -> Vec<u8> {
        let mut messages = Vec::new();
        self.alone = false;
        if let Some(rest) = self.copying.take() {
            if self.reference.is_copying_in() {
                messages = rest;
            } else if rest.last().is_some_and(|last| last[0] == b'S') {
                messages.push(message(b'S', b""));
            }
        } else {
            self.actions_left -= 1;
            let count = if random.in_thousand(dials.pipelining) { 1 + random.below(4) } else { 1 };
            for _ in 0..count {
                self.one_action(dials, random, &mut messages);
                if self.copying.is_some() || self.alone {
                    break;
                }
            }
        }
        let bytes = messages.concat();
        self.sent.extend(messages);
        bytes
    }

    fn one_action(&mut self, dials: &Dials, random: &mut Random, messages: &mut Vec<Vec<u8>>) {
        let weights = [dials.simple, dials.extended, dials.copy, dials.calls, dials.odd];
        let mut at = random.below(weights.iter().sum::<u32>() as usize) as u32;
        let mut choice = 0;
        while at >= weights[choice] {
            at -= weights[choice];
            choice += 1;
        }
        match choice {
            0 => messages.push(self.simple(dials, random)),
            1 => self.extended(dials, random, messages),
            2 => self.copy(dials, random, messages),
            3 => messages.push(self.call()),
            _ => self.odd(random, messages),
        }
    }

    fn simple(&mut self, dials: &Dials, random: &mut Random) -> Vec<u8> {
        self.unnamed = false;
        let count = if random.below(5) == 0 { random.below(4) } else { 1 };
        let texts: Vec<String> = (0..count).map(|_| self.statement(dials, random)).collect();
        message(b'Q', format!("{}\0", texts.join(";")).as_bytes())
    }

    fn statement(&mut self, dials: &Dials, random: &mut Random) -> String {
        let mark = self.mark();
        if self.reference.status != Status::Idle && random.below(4) == 0 {
            return format!("{} {mark}", random.one_of(&["commit", "rollback"]));
        }
        if random.in_thousand(dials.errors) {
            return (*random.one_of(&[format!("fail {mark}"), format!("nonsense {mark}")])).clone();
        }
        if random.in_thousand(dials.transactions) {
            return format!("{} {mark}", random.one_of(&["begin", "begin", "commit", "commit", "rollback"]));
        }
        if random.in_thousand(dials.settings) {
            return match random.below(4) {
                0 => format!("set timezone to Zone/{} {mark}", random.below(3)),
                1 => format!("set application_name to bad {mark}"),
                2 => format!("show application_name {mark}"),
                _ => format!("set application_name to name{} {mark}", random.below(5)),
            };
        }
        // What a RESET returns to is the neutral packet's value, so a client with settings of its own cannot be compared.
        if random.in_thousand(dials.discards) && self.startup.is_empty() {
            self.alone = true;
            return format!("{} all", random.one_of(&["discard", "deallocate"]));
        }
        if random.in_thousand(dials.sleeps) {
            return format!("sleep {mark} ms={}", random.one_of(&[1, 20, 400]));
        }
        if random.in_thousand(dials.large) {
            return format!("echo {mark} rows={} size={}", 1 + random.below(20), random.below(9000));
        }
        if random.below(20) == 0 {
            return format!("notice {mark}");
        }
        if random.in_thousand(dials.large) {
            return format!("echo {mark} {}", "y".repeat(random.below(20_000)));
        }
        format!("echo {mark} rows={} size={}", 1 + random.below(4), random.below(60))
    }

    fn extended(&mut self, dials: &Dials, random: &mut Random, messages: &mut Vec<Vec<u8>>) {
        let nothing_open = messages.is_empty() && self.sent.is_empty() && self.reference.is_clean();
        if nothing_open && random.below(8) == 0 {
            // To be bound behind the Sync: the pooler has to keep the backend for it.
            messages.push(message(b'P', format!("\0{}\0\0\0", TEXTS[random.below(4)]).as_bytes()));
            messages.push(message(b'S', b""));
            self.unnamed = true;
            self.alone = true;
            return;
        }
        for _ in 0..1 + random.below(3) {
            let named = random.below(2) == 0;
            let name = if named { format!("s{}", random.below(4)) } else { String::new() };
            let mut known = named || self.unnamed;
            if random.below(if named { 3 } else { 2 }) == 0 || !known {
                // Mostly one name means one text, as in an application.
                let at =
                    if random.below(4) == 0 { random.below(TEXTS.len()) } else { name.len() + self.id as usize % 2 };
                messages.push(message(b'P', format!("{name}\0{}\0\0\0", TEXTS[at]).as_bytes()));
                known = true;
                self.unnamed |= !named;
            }
            if random.below(6) == 0 {
                messages.push(message(b'D', format!("S{name}\0").as_bytes()));
            }
            if random.below(8) == 0 {
                messages.push(message(b'H', b""));
            }
            if known && random.below(8) != 0 {
                let portal = if random.below(6) == 0 { "p" } else { "" };
                let mark = self.mark().to_string();
                let padding = if random.in_thousand(dials.large) { random.below(6000) } else { 0 };
                let value = format!("{mark} {}", "z".repeat(padding));
                let mut body = format!("{portal}\0{name}\0").into_bytes();
                body.extend_from_slice(&[0, 0, 0, 1]);
                body.extend_from_slice(&(value.len() as u32).to_be_bytes());
                body.extend_from_slice(value.as_bytes());
                body.extend_from_slice(&[0, 0]);
                messages.push(message(b'B', &body));
                if random.below(5) == 0 {
                    messages.push(message(b'D', format!("P{portal}\0").as_bytes()));
                }
                for _ in 0..*random.one_of(&[0, 1, 1, 1, 1, 1, 2]) {
                    let most: u32 = if random.below(5) == 0 { 2 } else { 0 };
                    let body = [portal.as_bytes(), &[0], &most.to_be_bytes()].concat();
                    messages.push(message(b'E', &body));
                }
                if random.below(10) == 0 {
                    messages.push(message(b'C', format!("P{portal}\0").as_bytes()));
                }
            }
            if random.below(8) == 0 {
                messages.push(message(b'C', format!("S{name}\0").as_bytes()));
                self.unnamed &= named;
            }
        }
        if random.below(10) == 0 {
            messages.push(message(b'H', b""));
            return;
        }
        messages.push(message(b'S', b""));
        // What was bound, the pooler need not keep behind the Sync; what an error cut off was never there.
        self.unnamed = false;
    }

    fn copy(&mut self, dials: &Dials, random: &mut Random, messages: &mut Vec<Vec<u8>>) {
        let mark = self.mark();
        if random.below(3) == 0 {
            self.unnamed = false;
            let size = if random.in_thousand(dials.large) { 5000 } else { 30 };
            let text = format!("copyout {mark} rows={} size={size}\0", random.below(20));
            messages.push(message(b'Q', text.as_bytes()));
            return;
        }
        let simple = random.below(2) == 0;
        self.unnamed = false;
        if simple {
            messages.push(message(b'Q', format!("copyin {mark}\0").as_bytes()));
        } else {
            messages.push(message(b'P', b"\0copyin $1\0\0\0"));
            let value = mark.to_string();
            let mut body = b"\0\0\0\0\0\x01".to_vec();
            body.extend_from_slice(&(value.len() as u32).to_be_bytes());
            body.extend_from_slice(value.as_bytes());
            body.extend_from_slice(&[0, 0]);
            messages.push(message(b'B', &body));
            messages.push(message(b'E', b"\0\0\0\0\0"));
            // A Sync that the server may read in copy mode, where it is ignored.
            messages.push(message(if random.in_thousand(dials.odd) { b'S' } else { b'H' }, b""));
        }
        let mut rest = Vec::new();
        for _ in 0..random.below(12) {
            let size = if random.in_thousand(dials.large) { random.below(20_000) } else { random.below(100) };
            rest.push(message(b'd', format!("{mark} data {}", "d".repeat(size)).as_bytes()));
        }
        if random.below(4) == 0 {
            rest.push(message(b'f', b"on a whim\0"));
        } else {
            rest.push(message(b'c', b""));
        }
        if !simple {
            rest.push(message(b'S', b""));
        }
        // Data is sent ahead now and then: the server takes it all the same.
        if random.in_thousand(dials.odd) {
            messages.append(&mut rest);
        } else {
            self.copying = Some(rest);
        }
    }

    fn call(&mut self) -> Vec<u8> {
        self.unnamed = false;
        let value = self.mark().to_string();
        let mut body = 1u32.to_be_bytes().to_vec();
        body.extend_from_slice(&[0, 0, 0, 1]);
        body.extend_from_slice(&(value.len() as u32).to_be_bytes());
        body.extend_from_slice(value.as_bytes());
        body.extend_from_slice(&[0, 0]);
        message(b'F', &body)
    }

    /// What no sane driver sends, but PostgreSQL takes.
    fn odd(&mut self, random: &mut Random, messages: &mut Vec<Vec<u8>>) {
        self.unnamed = false;
        for _ in 0..1 + random.below(3) {
            match random.below(8) {
                0 => messages.push(message(b'S', b"")),
                1 => messages.push(message(b'c', b"")),
                2 => messages.push(message(b'f', b"why not\0")),
                3 => messages.push(message(b'd', b"nobody reads this")),
                4 => messages.push(message(b'C', format!("Ss{}\0", random.below(4)).as_bytes())),
                5 => messages.push(message(b'E', b"nowhere\0\0\0\0\0")),
                6 => messages.push(message(b'Q', b" \0")),
                _ => messages.push(message(b'D', b"Sqcp_1\0")),
            }
        }
        messages.push(message(b'S', b""));
    }
}

/// Errors are compared by what they say; a missing statement by its code, since its name on the backend is another, and
/// so one that exists twice: of several names for one text the pooler may name another.
fn is_same(wanted: &[u8], got: &[u8]) -> bool {
    if wanted[0] != got[0] || !matches!(wanted[0], b'E' | b'N') {
        return wanted == got;
    }
    let (wanted, got) = (wire::fields(wanted), wire::fields(got));
    // In a failed transaction the pooler may have to prepare what is to exist twice, and cannot.
    let by_code = matches!((&*wanted.code, &*got.code), ("26000", "26000") | ("42P05", "42P05" | "25P02"));
    wanted == got || by_code
}
