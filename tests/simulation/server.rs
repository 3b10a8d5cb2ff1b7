//! One connection of the fake PostgreSQL server: its login, its session, and whose requests it has seen.

use std::collections::VecDeque;

use qcp::ids::ConnectionId;

use super::postgres::Session;
use super::random::Random;
use super::wire::{self, message, put_fields};

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Stage {
    Startup,
    Password,
    Ready,
    Dead,
}

pub struct ServerConnection {
    pub shard: usize,
    /// The pooler's end.
    pub connection: ConnectionId,
    /// Whether the pooler has closed its end.
    pub left: bool,
    pub stage: Stage,
    pub process_id: u32,
    pub key: u32,
    pub port: u16,
    pub user: String,
    pub database: String,
    inbox: Vec<u8>,
    /// Messages to be processed.
    pub queue: VecDeque<Vec<u8>>,
    pub session: Session,
    /// The client whose requests came since the connection was last clean with nothing on its way.
    pub holder: Option<u32>,
    /// A sleep that ended early must not be ended again by its own alarm.
    pub alarm: u64,
    /// Will be processed at some time already.
    pub planned: bool,
}

/// What came of some bytes.
pub enum Arrived {
    Nothing,
    /// There are messages to process.
    Messages,
    Answer(Vec<u8>),
    /// It is answered, and the connection is closed.
    Refused(Vec<u8>),
    Cancel {
        process_id: u32,
        key: u32,
    },
}

/// What a server's owner has turned on.
pub struct Manner {
    pub password: bool,
    /// Refuses this login with this code.
    pub refuses: Option<&'static str>,
}

impl ServerConnection {
    pub fn new(shard: usize, connection: ConnectionId, process_id: u32, port: u16, random: &mut Random) -> Self {
        Self {
            shard,
            connection,
            left: false,
            stage: Stage::Startup,
            process_id,
            key: random.next() as u32,
            port,
            user: String::new(),
            database: String::new(),
            inbox: Vec::new(),
            queue: VecDeque::new(),
            session: Session::new(&[]),
            holder: None,
            alarm: 0,
            planned: false,
        }
    }

    /// Errors: what a server must never see.
    pub fn arrive(&mut self, bytes: &[u8], manner: &Manner) -> Result<Arrived, String> {
        self.inbox.extend_from_slice(bytes);
        match self.stage {
            Stage::Startup => {
                let Some(packet) = wire::take_packet(&mut self.inbox) else { return Ok(Arrived::Nothing) };
                self.start(&packet, manner)
            }
            Stage::Password => {
                let Some(message) = wire::take(&mut self.inbox) else { return Ok(Arrived::Nothing) };
                if message != wire::message(b'p', b"right\0") {
                    return Ok(self.refuse("28P01"));
                }
                Ok(Arrived::Answer(self.welcome()))
            }
            Stage::Ready => {
                while let Some(message) = wire::take(&mut self.inbox) {
                    self.look(&message)?;
                    self.queue.push_back(message);
                }
                Ok(if self.queue.is_empty() { Arrived::Nothing } else { Arrived::Messages })
            }
            Stage::Dead => Ok(Arrived::Nothing),
        }
    }

    fn start(&mut self, packet: &[u8], manner: &Manner) -> Result<Arrived, String> {
        let word = |at: usize| u32::from_be_bytes(packet[at..at + 4].try_into().unwrap());
        if word(4) == 80_877_102 {
            return Ok(Arrived::Cancel { process_id: word(8), key: word(12) });
        }
        if word(4) != 0x0003_0000 {
            return Err(format!("a startup packet of version {:x}", word(4)));
        }
        let mut at = 8;
        let mut startup = Vec::new();
        while packet[at] != 0 {
            let name = wire::string(packet, &mut at).to_owned();
            let value = wire::string(packet, &mut at).to_owned();
            match &*name {
                "user" => self.user = value,
                "database" => self.database = value,
                _ => startup.push((name, value)),
            }
        }
        self.session = Session::new(&startup);
        if let Some(code) = manner.refuses {
            return Ok(self.refuse(code));
        }
        if startup.iter().any(|(_, value)| value.starts_with("bad")) {
            return Ok(self.refuse("22023"));
        }
        if manner.password {
            self.stage = Stage::Password;
            return Ok(Arrived::Answer(message(b'R', &3u32.to_be_bytes())));
        }
        Ok(Arrived::Answer(self.welcome()))
    }

    fn refuse(&mut self, code: &str) -> Arrived {
        let mut bytes = Vec::new();
        put_fields(&mut bytes, b'E', "FATAL", code, "pg: no login now");
        Arrived::Refused(bytes)
    }

    fn welcome(&mut self) -> Vec<u8> {
        self.stage = Stage::Ready;
        self.session.report_all();
        let mut bytes = message(b'R', &0u32.to_be_bytes());
        bytes.append(&mut self.session.out);
        bytes.extend(message(b'K', &[self.process_id.to_be_bytes(), self.key.to_be_bytes()].concat()));
        bytes.extend(message(b'Z', b"I"));
        bytes
    }

    /// A request arrives: the last client must be done here.
    fn look(&mut self, message: &[u8]) -> Result<(), String> {
        let Some(mark) = wire::mark(message) else { return Ok(()) };
        match self.holder {
            Some(holder) if holder != mark.client => Err(format!(
                "server process {} gets {} while client {holder} is not done there",
                self.process_id,
                wire::show(message)
            )),
            _ => {
                self.holder = Some(mark.client);
                Ok(())
            }
        }
    }

    /// Whether nothing is under way; `undelivered` bytes have not reached the pooler yet. What is left of a COPY that is
    /// over is not, nor a Flush with nothing before it: the server reads over them, whoever asks next.
    pub fn is_clean(&self, undelivered: usize) -> bool {
        self.session.is_clean()
            && self.inbox.is_empty()
            && self.queue.iter().all(|message| matches!(message[0], b'd' | b'c' | b'f' | b'H'))
            && self.session.out.is_empty()
            && undelivered == 0
    }

    /// What the server puts on the wire now.
    pub fn flush(&mut self) -> Vec<u8> {
        // PostgreSQL's send buffer has 8 KiB.
        let count = if self.session.out.len() > 8192 { self.session.out.len() } else { self.session.flushed };
        self.session.flushed = 0;
        self.session.out.drain(..count).collect()
    }
}
