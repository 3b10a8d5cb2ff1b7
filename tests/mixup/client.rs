//! One client over real sockets: connects, talks, checks every answer, leaves in every way, and comes back.
//!
//! Never blocks: a thread steps a hundred of them in turn.

use std::collections::{BTreeMap, VecDeque};
use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use postgres_protocol::authentication::sasl::{ChannelBinding, ScramSha256};

use super::random::Random;
use super::support::Address;
use super::support::raw::{PROTOCOL_3_0, error_field, message, startup, untagged, zero_ended};
use super::talk::{Author, Cancel, Effect, Expect, Facts, Fate, Manners, Ready, STATEMENTS, Step, What};

const CANCEL_REQUEST: u32 = 80_877_102;
/// No client waits longer for anything: 20 s beyond what the pooler may take.
const PATIENCE: Duration = Duration::from_secs(25);
/// A cancel of one's own may still hit what one asks within this time.
const CANCEL_LATE: Duration = Duration::from_secs(15);
/// Lines kept of what a client sent and got.
const TRACE_LINES: usize = 60;

/// What all clients of a run know.
pub struct Shared {
    pub address: Address,
    pub user: &'static str,
    pub password: Option<&'static str>,
    pub begun: Instant,
    /// The clients are to leave, when they are through with what they are at.
    pub leave: AtomicBool,
    /// Milliseconds since the begin up to which a connection may be lost: something is done to the server.
    pub disturbed_until: AtomicU64,
    pub failures: Mutex<Vec<String>>,
    /// How connections were lost, and how often.
    pub losses: Mutex<BTreeMap<String, u64>>,
    /// Cancelled queries under way: they hold backends.
    pub sleepers: AtomicU32,
    pub counts: Counts,
}

/// What came to pass.
#[derive(Default)]
pub struct Counts {
    pub logins: AtomicU64,
    pub refused_logins: AtomicU64,
    pub answered: AtomicU64,
    pub hurt: AtomicU64,
    pub lost: AtomicU64,
    pub torn: AtomicU64,
    pub reset: AtomicU64,
    pub deserted: AtomicU64,
    pub unfilled: AtomicU64,
    pub cancels: AtomicU64,
    pub cancelled: AtomicU64,
}

impl Shared {
    pub fn now_ms(&self) -> u64 {
        self.begun.elapsed().as_millis() as u64
    }

    fn is_disturbed(&self) -> bool {
        self.now_ms() <= self.disturbed_until.load(Ordering::Relaxed)
    }
}

fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

enum Phase {
    /// Not connected until then.
    Away(Instant),
    Login(Option<Box<ScramSha256>>),
    Talking,
    Gone,
}

pub struct Client {
    pub facts: Facts,
    random: Random,
    cancels: bool,
    session: bool,
    phase: Phase,
    socket: Option<TcpStream>,
    received: Vec<u8>,
    taken: usize,
    out: Vec<u8>,
    sent: usize,
    /// Bytes of one read, and of one write.
    portion: usize,
    steps: VecDeque<Step>,
    step: Option<Step>,
    /// When the step under way is sent.
    send_at: Instant,
    is_sent: bool,
    expects: VecDeque<Expect>,
    /// The request under way ended in an error of the permitted kind: up to its ReadyForQuery nothing more is due.
    skipping: bool,
    /// The talk under way was disturbed, so the rest of it makes no sense.
    hurt: bool,
    status: u8,
    /// Talks until it says good-bye.
    talks: u64,
    /// Pauses for so long when so many bytes of the step are sent.
    hold: Option<(usize, Duration)>,
    held_until: Option<Instant>,
    /// Goes away without a word when so many bytes of the step are sent, and this long after.
    desert: Option<(usize, Duration)>,
    deserting: Option<Instant>,
    key: Vec<u8>,
    cancel_sockets: Vec<(TcpStream, Instant)>,
    cancel_at: Option<Instant>,
    cancelled_at: Option<Instant>,
    is_sleeper: bool,
    progress: Instant,
    trace: VecDeque<String>,
}

impl Client {
    pub fn new(id: usize, seed: u64, cancels: bool, session: bool) -> Client {
        let mut random = Random(seed ^ (id as u64) << 32);
        let now = Instant::now();
        let away = Phase::Away(now + Duration::from_millis(random.between(0, 500)));
        Client {
            facts: Facts {
                id,
                tokens: 0,
                writes: Vec::new(),
                prepared: [const { None }; STATEMENTS],
                application_name: String::new(),
            },
            random,
            cancels,
            session,
            phase: away,
            socket: None,
            received: Vec::new(),
            taken: 0,
            out: Vec::new(),
            sent: 0,
            portion: 65_536,
            steps: VecDeque::new(),
            step: None,
            send_at: now,
            is_sent: false,
            expects: VecDeque::new(),
            skipping: false,
            hurt: false,
            status: b'I',
            talks: 0,
            hold: None,
            held_until: None,
            desert: None,
            deserting: None,
            key: Vec::new(),
            cancel_sockets: Vec::new(),
            cancel_at: None,
            cancelled_at: None,
            is_sleeper: false,
            progress: now,
            trace: VecDeque::new(),
        }
    }

    pub fn socket(&self) -> Option<&TcpStream> {
        self.socket.as_ref()
    }

    pub fn wants_to_write(&self) -> bool {
        self.sent < self.out.len() && self.held_until.is_none_or(|until| Instant::now() >= until)
    }

    /// Whether there may be something to do although nothing came.
    pub fn is_timer_due(&self) -> bool {
        match self.phase {
            Phase::Gone => !self.cancel_sockets.is_empty(),
            Phase::Away(until) => Instant::now() >= until || !self.cancel_sockets.is_empty(),
            Phase::Login(_) => self.progress.elapsed() > PATIENCE,
            Phase::Talking => true,
        }
    }

    pub fn is_gone(&self) -> bool {
        matches!(self.phase, Phase::Gone) && self.cancel_sockets.is_empty()
    }

    /// Does what can be done now. An error is a failure of the run.
    pub fn turn(&mut self, shared: &Shared) -> Result<(), String> {
        let result = self.try_turn(shared);
        result.map_err(|what| {
            let lines: Vec<&str> = self.trace.iter().map(String::as_str).collect();
            let due = self.expects.iter().take(4).collect::<Vec<_>>();
            format!(
                "at {} ms, client {}: {what}\n  due: {due:?}\n  its last messages:\n    {}",
                shared.now_ms(),
                self.facts.id,
                lines.join("\n    ")
            )
        })
    }

    fn try_turn(&mut self, shared: &Shared) -> Result<(), String> {
        let now = Instant::now();
        self.look_after_cancels(shared, now)?;
        match self.phase {
            Phase::Gone => return Ok(()),
            Phase::Away(_) if shared.leave.load(Ordering::Relaxed) => {
                self.phase = Phase::Gone;
                return Ok(());
            }
            Phase::Away(until) if now < until => return Ok(()),
            Phase::Away(_) => return self.connect(shared),
            Phase::Login(_) | Phase::Talking => {}
        }
        self.read(shared)?;
        if matches!(self.phase, Phase::Talking) {
            self.go_on(shared, now);
        }
        if self.socket.is_some() {
            self.write(shared, now)?;
        }
        if self.socket.is_some() && now.duration_since(self.progress) > PATIENCE {
            return Err(format!("neither an answer nor an error for {PATIENCE:?}"));
        }
        Ok(())
    }

    fn note(&mut self, shared: &Shared, line: String) {
        if self.trace.len() == TRACE_LINES {
            self.trace.pop_front();
        }
        self.trace.push_back(format!("{:>7} {line}", shared.now_ms()));
    }

    fn connect(&mut self, shared: &Shared) -> Result<(), String> {
        let address = (shared.address.host.as_str(), shared.address.port);
        let socket = TcpStream::connect(address).map_err(|error| format!("the pooler refuses: {error}"))?;
        socket.set_nonblocking(true).and_then(|()| socket.set_nodelay(true)).expect("a fresh socket");
        self.socket = Some(socket);
        self.note(shared, "connected".to_owned());
        self.received.clear();
        self.taken = 0;
        self.out.clear();
        self.sent = 0;
        self.portion = if self.random.in_thousand(100) { self.random.between(1, 2000) as usize } else { 65_536 };
        self.steps.clear();
        self.step = None;
        self.expects.clear();
        self.skipping = false;
        self.hurt = false;
        self.facts.prepared = [const { None }; STATEMENTS];
        self.facts.application_name = String::new();
        self.talks = self.random.between(1, if self.session { 4 } else { 40 });
        self.progress = Instant::now();
        let mut parameters = vec![("user", shared.user), ("database", "mixup")];
        let name = format!("app{}", self.facts.id % 8);
        if self.random.in_thousand(250) {
            parameters.push(("application_name", &name));
            self.facts.application_name = name.clone();
        }
        self.out.extend(startup(PROTOCOL_3_0, &parameters));
        self.phase = Phase::Login(None);
        Ok(())
    }

    /// Ends the connection, and comes back after a while.
    fn part(&mut self, shared: &Shared) {
        self.socket = None;
        if std::mem::take(&mut self.is_sleeper) {
            shared.sleepers.fetch_sub(1, Ordering::Relaxed);
        }
        self.cancel_at = None;
        self.hold = None;
        self.held_until = None;
        self.desert = None;
        self.deserting = None;
        self.step = None;
        let pause = if shared.is_disturbed() { self.random.between(50, 500) } else { self.random.between(0, 100) };
        self.phase = Phase::Away(Instant::now() + Duration::from_millis(pause));
    }

    /// The pooler has closed the connection.
    fn lost(&mut self, shared: &Shared, how: &str) -> Result<(), String> {
        self.note(shared, format!("lost: {how}"));
        if !shared.is_disturbed() {
            return Err(format!("the connection was lost ({how}) while nothing was done to the server"));
        }
        *shared.losses.lock().expect("nobody panics with it").entry(how.to_owned()).or_default() += 1;
        count(if matches!(self.phase, Phase::Login(_)) { &shared.counts.refused_logins } else { &shared.counts.lost });
        self.part(shared);
        Ok(())
    }

    // What is sent.

    /// Begins the next step when the last is answered, and goes away where that is planned.
    fn go_on(&mut self, shared: &Shared, now: Instant) {
        if self.deserting.is_some_and(|at| now >= at) {
            self.note(shared, "goes away".to_owned());
            count(&shared.counts.deserted);
            self.part(shared);
            return;
        }
        if self.deserting.is_some() {
            return;
        }
        if let Some(step) = &self.step {
            if !self.is_sent && now >= self.send_at {
                let bytes = if step.copy_data && self.skipping { Vec::new() } else { step.bytes.clone() };
                self.begin_sending(shared, bytes);
            }
            let is_done = self.is_sent && self.sent == self.out.len() && self.expects.is_empty();
            if !is_done {
                return;
            }
            self.end_step(shared);
        }
        self.next_step(shared, now);
    }

    fn begin_sending(&mut self, shared: &Shared, bytes: Vec<u8>) {
        self.is_sent = true;
        self.progress = Instant::now();
        let until = self.desert.map_or(usize::MAX, |(at, _)| at);
        let expects: Vec<Ready> = self
            .expects
            .iter()
            .filter_map(|expect| match &expect.what {
                What::Ready(ready) if ready.end <= until => Some(ready.clone()),
                _ => None,
            })
            .collect();
        for ready in expects {
            for number in ready.writes {
                self.facts.writes[number as usize] = Fate::Unknown;
            }
        }
        self.note(shared, format!("> {}", describe_requests(&bytes)));
        self.out.extend(bytes);
        if let Some((at, _)) = self.desert {
            self.out.truncate(at);
        }
        let Some(cancel) = self.step.as_ref().and_then(|step| step.cancel) else { return };
        let delay = Duration::from_millis(self.random.between(0, 60));
        if cancel != Cancel::Late {
            self.cancel_at = Some(Instant::now() + delay);
        }
    }

    fn end_step(&mut self, shared: &Shared) {
        let step = self.step.take().expect("the caller has looked");
        self.cancel_at = None;
        if std::mem::take(&mut self.is_sleeper) {
            shared.sleepers.fetch_sub(1, Ordering::Relaxed);
        }
        if step.cancel == Some(Cancel::Late) {
            self.send_cancel(shared, self.key.clone());
            self.cancelled_at = Some(Instant::now());
        }
    }

    fn next_step(&mut self, shared: &Shared, now: Instant) {
        if self.hurt && !self.skipping {
            self.steps.clear();
            if self.status != b'I' {
                let bytes = message(b'Q', &zero_ended("ROLLBACK"));
                let mut step = Step { bytes, ..Step::default() };
                let end = step.bytes.len();
                let ready = Ready { status: b'I', end, writes: Vec::new() };
                let whats = [What::Tag("ROLLBACK".to_owned()), What::Ready(ready)];
                step.expects.extend(whats.map(|what| Expect { what, effect: Effect::None }));
                self.steps.push_back(step);
            }
            self.hurt = false;
        }
        if self.steps.is_empty() {
            if self.talks == 0 || shared.leave.load(Ordering::Relaxed) {
                self.say_goodbye(shared);
                return;
            }
            self.talks -= 1;
            let manners = Manners { session: self.session, cancels: self.cancels };
            let talk = Author::new(&mut self.facts, &mut self.random, manners).talk();
            self.steps.extend(talk);
        }
        let step = self.steps.pop_front().expect("a talk has steps");
        if step.cancel == Some(Cancel::Right) {
            // They hold backends until they are cancelled: a few of them are enough.
            if shared.sleepers.fetch_add(1, Ordering::Relaxed) >= 2 {
                shared.sleepers.fetch_sub(1, Ordering::Relaxed);
                return;
            }
            self.is_sleeper = true;
        }
        if self.random.in_thousand(15) {
            let at = self.random.below(step.bytes.len() + 1);
            self.desert = Some((at, Duration::from_millis(self.random.between(0, 30))));
        }
        // Half a request is with the server while the ones before it are answered.
        if self.random.in_thousand(60) && !step.bytes.is_empty() {
            let at = self.random.below(step.bytes.len());
            self.hold = Some((at, Duration::from_millis(self.random.between(1, 30))));
        }
        self.expects = step.expects.clone();
        self.send_at = now + step.pause;
        self.is_sent = false;
        // What is skipped needs no answer but the ReadyForQuery.
        if self.skipping {
            self.skip();
        }
        self.step = Some(step);
    }

    fn say_goodbye(&mut self, shared: &Shared) {
        if self.random.in_thousand(700)
            && let Some(mut socket) = self.socket.take()
        {
            let _ = socket.write_all(&message(b'X', b""));
        }
        self.note(shared, "says good-bye".to_owned());
        self.part(shared);
    }

    fn write(&mut self, shared: &Shared, now: Instant) -> Result<(), String> {
        if self.held_until.is_some_and(|until| now < until) {
            return Ok(());
        }
        while self.sent < self.out.len() {
            let mut end = self.out.len().min(self.sent + self.portion);
            if let Some((at, pause)) = self.hold {
                end = end.min(at);
                if self.sent >= at {
                    self.hold = None;
                    self.held_until = Some(now + pause);
                    return Ok(());
                }
            }
            let portion = &self.out[self.sent..end];
            let Some(socket) = &mut self.socket else { return Ok(()) };
            match socket.write(portion) {
                Ok(count) => {
                    self.sent += count;
                    self.progress = now;
                    // A slow one does one portion at a time.
                    if self.portion < 65_536 {
                        break;
                    }
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                // Whatever the pooler has said before is still to be read.
                Err(_) => {
                    self.sent = self.out.len();
                    return self.read(shared);
                }
            }
        }
        if self.sent == self.out.len() {
            self.out.clear();
            self.sent = 0;
            if let Some((_, delay)) = self.desert
                && self.is_sent
                && self.deserting.is_none()
            {
                self.deserting = Some(now + delay);
            }
        }
        Ok(())
    }

    // Cancel requests.

    fn look_after_cancels(&mut self, shared: &Shared, now: Instant) -> Result<(), String> {
        let mut scrap = [0; 64];
        let mut failed = None;
        self.cancel_sockets.retain_mut(|(socket, since)| match socket.read(&mut scrap) {
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                if now.duration_since(*since) > PATIENCE {
                    failed = Some("a cancel request is not dealt with");
                }
                true
            }
            Ok(0) | Err(_) => false,
            Ok(_) => {
                failed = Some("a cancel request was answered");
                false
            }
        });
        if let Some(failed) = failed {
            return Err(failed.to_owned());
        }
        if self.cancel_at.is_some_and(|at| now >= at) {
            self.cancel_at = None;
            let mut key = self.key.clone();
            match self.step.as_ref().and_then(|step| step.cancel) {
                Some(Cancel::Right) => {
                    self.cancelled_at = Some(now);
                    // Too early, it has no effect: it is repeated until it has.
                    self.cancel_at = Some(now + Duration::from_millis(300));
                }
                Some(Cancel::Wrong) if key.len() == 8 => {
                    // Another client's place with this one's secret, or a secret that is wrong in one bit.
                    let at = if self.random.in_thousand(500) { 3 } else { 4 + self.random.below(4) };
                    key[at] ^= 1 << self.random.below(8);
                }
                _ => return Ok(()),
            }
            self.send_cancel(shared, key);
        }
        Ok(())
    }

    fn send_cancel(&mut self, shared: &Shared, key: Vec<u8>) {
        let address = (shared.address.host.as_str(), shared.address.port);
        let Ok(mut socket) = TcpStream::connect(address) else { return };
        if socket.write_all(&untagged(CANCEL_REQUEST, &key)).is_ok() && socket.set_nonblocking(true).is_ok() {
            self.note(shared, "(a cancel request)".to_owned());
            count(&shared.counts.cancels);
            self.cancel_sockets.push((socket, Instant::now()));
        }
    }

    // What is received.

    fn read(&mut self, shared: &Shared) -> Result<(), String> {
        loop {
            let Some(socket) = &mut self.socket else { return Ok(()) };
            let mut piece = [0; 65_536];
            match socket.read(&mut piece[..self.portion]) {
                Ok(0) => return self.on_end(shared, "closed"),
                Ok(length) => {
                    self.received.extend_from_slice(&piece[..length]);
                    self.progress = Instant::now();
                    self.take_messages(shared)?;
                    if self.portion < 65_536 {
                        return Ok(());
                    }
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return self.on_end(shared, &error.to_string()),
            }
        }
    }

    fn on_end(&mut self, shared: &Shared, how: &str) -> Result<(), String> {
        if self.deserting.is_some() {
            self.part(shared);
            return Ok(());
        }
        // A half message cannot be followed by an error; all else has to be.
        if self.taken < self.received.len() {
            count(&shared.counts.torn);
        } else if how != "closed" {
            count(&shared.counts.reset);
        } else {
            return Err("the connection was closed without a word".to_owned());
        }
        self.lost(shared, how)
    }

    fn take_messages(&mut self, shared: &Shared) -> Result<(), String> {
        const HEADER: usize = 5;
        while self.received.len() - self.taken >= HEADER && self.socket.is_some() {
            let unread = &self.received[self.taken..];
            let length = u32::from_be_bytes([unread[1], unread[2], unread[3], unread[4]]) as usize;
            if unread.len() <= length {
                break;
            }
            let (tag, body) = (unread[0], unread[HEADER..=length].to_vec());
            self.taken += 1 + length;
            // Who goes away does not listen.
            if self.deserting.is_none() {
                self.note(shared, format!("< {}", describe(tag, &body)));
                self.on_message(shared, tag, &body)?;
            }
        }
        self.received.drain(..self.taken);
        self.taken = 0;
        Ok(())
    }

    fn on_message(&mut self, shared: &Shared, tag: u8, body: &[u8]) -> Result<(), String> {
        let code = error_field(body, b'C');
        match tag {
            b'E' if matches!(error_field(body, b'V').as_str(), "FATAL" | "PANIC") => {
                let known = ["57P01", "57P02", "57P03", "08006", "53300"];
                if !known.contains(&code.as_str()) {
                    return Err(format!("an error of no expected kind: {}", describe(tag, body)));
                }
                // A client that goes away in the middle of a message costs its backend, and only a login opens another:
                // those who wait for the last one are told so.
                let no_refill = shared.password.is_some() && error_field(body, b'M').contains("asks a password");
                if no_refill {
                    count(&shared.counts.unfilled);
                    self.part(shared);
                    return Ok(());
                }
                return self.lost(shared, &format!("{code} {}", error_field(body, b'M')));
            }
            // The crash of another backend is announced like this.
            b'N' if code == "57P02" && shared.is_disturbed() => return Ok(()),
            b'S' => return self.on_parameter(body),
            _ => {}
        }
        if matches!(self.phase, Phase::Login(_)) {
            self.on_login_message(shared, tag, body)
        } else {
            self.on_answer(shared, tag, body)
        }
    }

    fn on_parameter(&self, body: &[u8]) -> Result<(), String> {
        let mut parts = body.split(|&byte| byte == 0);
        let name = parts.next().unwrap_or_default();
        let value = String::from_utf8_lossy(parts.next().unwrap_or_default()).into_owned();
        let own = value.is_empty()
            || value == self.facts.application_name
            || value == format!("app{}", self.facts.id % 8)
            || value.starts_with(&format!("c{}t", self.facts.id));
        if name == b"application_name" && !own {
            return Err(format!("told that it is called {value:?}, which is somebody else"));
        }
        Ok(())
    }

    fn on_login_message(&mut self, shared: &Shared, tag: u8, body: &[u8]) -> Result<(), String> {
        let kind = body.first_chunk().map_or(0, |bytes| u32::from_be_bytes(*bytes));
        match (tag, kind) {
            (b'R', 0) => {}
            (b'R', 10) => {
                let password = shared.password.ok_or("a password is asked for")?;
                let scram = ScramSha256::new(password.as_bytes(), ChannelBinding::unsupported());
                let mut answer = zero_ended("SCRAM-SHA-256");
                answer.extend((scram.message().len() as u32).to_be_bytes());
                answer.extend(scram.message());
                self.out.extend(message(b'p', &answer));
                self.phase = Phase::Login(Some(Box::new(scram)));
            }
            (b'R', 11 | 12) => {
                let Phase::Login(Some(scram)) = &mut self.phase else { return Err("SCRAM out of turn".to_owned()) };
                if kind == 11 {
                    scram.update(&body[4..]).map_err(|error| format!("SCRAM: {error}"))?;
                    let answer = message(b'p', scram.message());
                    self.out.extend(answer);
                } else {
                    scram.finish(&body[4..]).map_err(|error| format!("SCRAM: {error}"))?;
                }
            }
            (b'K', _) => self.key = body.to_vec(),
            (b'Z', _) => {
                count(&shared.counts.logins);
                self.status = b'I';
                self.phase = Phase::Talking;
            }
            _ => return Err(format!("in a login: {}", describe(tag, body))),
        }
        Ok(())
    }

    fn on_answer(&mut self, shared: &Shared, tag: u8, body: &[u8]) -> Result<(), String> {
        let chained = self.step.as_ref().is_some_and(|step| step.chained);
        if chained && self.hurt {
            return self.on_chained(shared, tag, body);
        }
        // Before the data of a refused COPY was begun.
        if self.skipping && tag == b'Z' && self.expects.is_empty() {
            self.status = body[0];
            self.skipping = false;
            return Ok(());
        }
        // What is cancelled may have got so far, or not.
        if self.is_sleeper && matches!(tag, b'T' | b'C') {
            return Ok(());
        }
        let Some(due) = self.expects.front() else {
            return Err(format!("an answer that nobody asked for: {}", describe(tag, body)));
        };
        if matches(&due.what, tag, body) {
            let due = self.expects.pop_front().expect("just looked at");
            match due.effect {
                Effect::None => {}
                Effect::Prepared(slot, text) => self.facts.prepared[slot] = Some(text),
                Effect::Closed(slot) => self.facts.prepared[slot] = None,
                Effect::ClosedAll => self.facts.prepared = [const { None }; STATEMENTS],
                Effect::Named(name) => self.facts.application_name = name,
            }
            if let What::Ready(ready) = due.what {
                self.status = ready.status;
                count(&shared.counts.answered);
                let cancelled = self.step.as_ref().is_some_and(|step| step.cancel == Some(Cancel::Right));
                if cancelled {
                    count(&shared.counts.cancelled);
                }
                if !self.skipping {
                    for number in ready.writes {
                        self.facts.writes[number as usize] = Fate::Present;
                    }
                }
                self.skipping = false;
            }
            return Ok(());
        }
        match (tag, &due.what) {
            // After an error the status is what the server says.
            (b'Z', What::Ready(_)) if self.skipping => {
                self.status = body[0];
                self.skipping = false;
                self.expects.pop_front();
                Ok(())
            }
            (b'E', _) if !self.skipping && self.may_be_refused(&error_field(body, b'C'), shared) => {
                count(&shared.counts.hurt);
                self.hurt = true;
                if chained {
                    return Ok(());
                }
                self.skipping = true;
                self.undo_writes();
                self.skip();
                Ok(())
            }
            _ => Err(format!("not what was asked for: {}", describe(tag, body))),
        }
    }

    /// Whether a request may end in this error, whatever it asked.
    fn may_be_refused(&self, code: &str, shared: &Shared) -> bool {
        let cancelled = self.cancelled_at.is_some_and(|at| at.elapsed() < CANCEL_LATE);
        match code {
            // pool.queue_timeout
            "53300" => shared.is_disturbed() && self.status == b'I',
            "57014" => cancelled,
            _ => false,
        }
    }

    /// The request under way is undone as a whole.
    fn undo_writes(&mut self) {
        let ready = self.expects.iter().find_map(|expect| match &expect.what {
            What::Ready(ready) => Some(ready.writes.clone()),
            _ => None,
        });
        for number in ready.unwrap_or_default() {
            self.facts.writes[number as usize] = Fate::Absent;
        }
    }

    /// Drops what is due of the request under way, but its ReadyForQuery.
    fn skip(&mut self) {
        while self.expects.front().is_some_and(|expect| !matches!(expect.what, What::Ready(_))) {
            self.expects.pop_front();
        }
    }

    /// The rest of a transaction that was disturbed: only whose it is can be said.
    fn on_chained(&mut self, shared: &Shared, tag: u8, body: &[u8]) -> Result<(), String> {
        let own = format!("c{}t", self.facts.id);
        match tag {
            b'Z' => {
                self.skip();
                self.expects.pop_front();
                self.status = body[0];
                count(&shared.counts.answered);
                Ok(())
            }
            b'D' if !String::from_utf8_lossy(body).contains(&own) => {
                Err(format!("a row of somebody else's: {}", describe(tag, body)))
            }
            _ => Ok(()),
        }
    }
}

/// Whether a message is the one that is due.
fn matches(what: &What, tag: u8, body: &[u8]) -> bool {
    match what {
        What::ParseComplete => tag == b'1',
        What::BindComplete => tag == b'2',
        What::CloseComplete => tag == b'3',
        What::ParameterDescription => tag == b't',
        What::RowDescription(name) => {
            let first = || {
                body[2..].split(|&byte| byte == 0).next().unwrap_or_default()
                    == name.as_deref().unwrap_or_default().as_bytes()
            };
            tag == b'T' && (name.is_none() || first())
        }
        What::Row(values) => {
            tag == b'D' && {
                let mut whole = (values.len() as u16).to_be_bytes().to_vec();
                for value in values {
                    whole.extend((value.len() as u32).to_be_bytes());
                    whole.extend(value.as_bytes());
                }
                whole == body
            }
        }
        What::Repeated(token, count) => {
            let size = token.len() * count;
            tag == b'D'
                && body.len() == size + 6
                && body[6..].chunks(token.len()).all(|piece| piece == token.as_bytes())
        }
        What::Suspended => tag == b's',
        What::Empty => tag == b'I',
        What::Tag(text) => tag == b'C' && body.strip_suffix(&[0]) == Some(text.as_bytes()),
        What::Error(code, text) => {
            tag == b'E' && error_field(body, b'C') == *code && error_field(body, b'M').contains(text)
        }
        What::Notice(text) => tag == b'N' && error_field(body, b'M') == *text,
        What::CopyIn => tag == b'G',
        What::CopyOut => tag == b'H',
        What::CopyData(text) => tag == b'd' && body == text.as_bytes(),
        What::CopyDone => tag == b'c',
        What::Ready(ready) => tag == b'Z' && body == [ready.status],
    }
}

fn describe(tag: u8, body: &[u8]) -> String {
    let text: String = String::from_utf8_lossy(&body[..body.len().min(120)])
        .chars()
        .map(|letter| if letter.is_control() { '.' } else { letter })
        .collect();
    format!("{} {text} ({} bytes)", tag as char, body.len())
}

fn describe_requests(bytes: &[u8]) -> String {
    let (mut at, mut parts) = (0, Vec::new());
    while at + 5 <= bytes.len() && parts.len() < 12 {
        let length = u32::from_be_bytes([bytes[at + 1], bytes[at + 2], bytes[at + 3], bytes[at + 4]]) as usize;
        let end = (at + 1 + length).min(bytes.len());
        parts.push(describe(bytes[at], &bytes[at + 5..end]));
        at = end;
    }
    format!("{}{}", parts.join("\n            "), if at < bytes.len() { "\n            .." } else { "" })
}
