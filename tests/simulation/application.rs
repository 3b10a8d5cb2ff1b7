//! An application: what it sends, and the reference that says what it must see.

mod asking;
mod hearing;

use std::collections::VecDeque;

use qcp::ids::ConnectionId;

use super::dials::Dials;
use super::postgres::{REPORTED, Session, Status};
use super::random::Random;
use super::shrink::Keep;
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
    /// The pooler has given it up; it may not have read so yet.
    pub left: bool,
    /// Numbers of the actions that it will take, in order. What an action is about hangs on its number and on nothing that
    /// others do, so that some can be left out while the rest stay what they were.
    pub actions: VecDeque<u32>,
    seed: u64,
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

impl Application {
    pub fn new(id: u32, dials: &Dials, keep: &Keep, random: &mut Random) -> Self {
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
            left: false,
            actions: keep.actions_of(id, dials.actions).into(),
            seed: random.next(),
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
}
