//! Clients at the console, the databases `qcp` and `pgbouncer`. What is said and answered there is `control::console`'s, on
//! a thread of the process; here are the login, which gets its rights from QCP's own lists and never from a server, and the
//! way of the bytes: a piece at a time to that thread, and its answer back as fast as the client takes it.
//!
//! Invariant: of each client one piece is under way, so what the thread has to keep is bounded by the clients that may be
//! here.

use std::sync::mpsc::Sender;

use crate::auth::console::{self, Right};
use crate::ids::{ClientId, ShardId};
use crate::io::Transport;
use crate::memory::Slice;
use crate::protocol::startup::{Replication, StartupMessage};
use crate::protocol::{Direction, Framer, TransactionStatus};
use crate::session::fault::Fault;
use crate::session::parameters::VectorId;

use super::login::{Login, Stage};
use super::{ClientState, Shard};

/// Clients of one shard that may be at the console at once.
const VISITS_MAX: usize = 16;
/// An answer is handed to the transport in pieces of this size.
const PIECE: usize = 16 * 1024;

/// To the thread that answers.
pub type Desk = Sender<Request>;

/// Something of a client at the console.
pub struct Request {
    /// Its shard.
    pub shard: ShardId,
    /// And which of its clients.
    pub client: ClientId,
    /// What happened.
    pub what: What,
}

/// What happened to a client at the console.
pub enum What {
    /// It sent this. What it may do, `None`: nothing any more, is what the lists say now.
    Said(Vec<u8>, Option<Right>),
    /// It is gone.
    Left,
}

/// The thread's answer.
pub struct Told {
    /// Whole messages.
    pub bytes: Vec<u8>,
    /// The client is to be closed behind them.
    pub ends: bool,
    /// More of the answer is to come.
    pub more: bool,
}

/// What is kept of a client at the console.
pub(super) struct Visit {
    pub database: Box<str>,
    pub user: Box<str>,
    /// It may do everything, whatever the lists say.
    pub is_owner: bool,
    /// What it sent is being answered.
    busy: bool,
    answer: Vec<u8>,
    /// How much of the answer the transport has.
    sent: usize,
    ends: bool,
    /// More of the answer is to come.
    more: bool,
}

impl<T: Transport> Shard<T> {
    /// Whom clients of the console are handed to; without it there is none.
    pub fn set_console(&mut self, desk: Desk) {
        self.console = Some(desk);
    }

    /// Begins the login of a client that wants the console. `false`: it wants a real database.
    pub(super) fn try_begin_visit(
        &mut self,
        id: ClientId,
        startup: &StartupMessage<'_>,
        database: &str,
        user: &str,
    ) -> bool {
        let is_console = console::DATABASES.contains(&database) && startup.replication() == Ok(Replication::No);
        if !is_console || self.console.is_none() {
            return false;
        }
        let Some(configured) = self.catalogue.console(user) else { return false };
        let version = startup.version.negotiate().expect("other versions are refused");
        let secret = self.next_secret();
        let Some(client) = self.client(id) else { return true };
        let connection = client.connection;
        client.secret = secret;
        client.long_key = version == crate::protocol::startup::Version::V3_2;
        // Who is root here, or runs QCP, could as well use the control socket.
        let is_owner = self.io.is_run_by_owner(connection);
        let visit = Visit {
            database: database.into(),
            user: user.into(),
            is_owner,
            busy: false,
            answer: Vec::new(),
            sent: 0,
            ends: false,
            more: false,
        };
        let login = Login { visit: Some(Box::new(visit)), ..Login::new(VectorId::NEUTRAL, Stage::Here) };
        self.client(id).expect("looked up above").state = ClientState::Login(Box::new(login));
        self.population.settle(self.settings.id);
        if version != startup.version || startup.protocol_options().next().is_some() {
            self.write(connection, 512, |writer| {
                let _ = writer.negotiate_protocol_version(version.code(), startup.protocol_options());
            });
        }
        if self.may_log_in(id) {
            let auth = self.settings.auth.clone();
            self.check_here(id, console::method(&auth, configured, user, is_owner));
        }
        true
    }

    /// What a client at the console may do, by the lists as they are now.
    fn right_of(&self, visit: &Visit) -> Option<Right> {
        console::right(&self.settings.auth, &visit.user, visit.is_owner)
    }

    /// The client is who it says: greets it as a server would.
    pub(super) fn open_visit(&mut self, id: ClientId) {
        let stamp = self.stamp(self.io.now());
        let Some(visit) = self.login(id).and_then(|login| login.visit.take()) else { return };
        if self.right_of(&visit).is_none() {
            self.fail(id, &Fault::NotForConsole(visit.user.into()));
            return;
        }
        let others = self.clients.iter().filter(|(_, _, client)| matches!(client.state, ClientState::Console(_)));
        if others.count() >= VISITS_MAX {
            self.fail(id, &Fault::TooManyVisits(VISITS_MAX));
            return;
        }
        let Some(client) = self.clients.get_mut(id.index, id.generation) else { return };
        let (connection, secret, long_key) = (client.connection, client.secret, client.long_key);
        client.framer = Framer::new(Direction::Frontend);
        client.active = stamp;
        client.state = ClientState::Console(visit);
        let process_id = self.process_id(id);
        let written = self.write(connection, 1024, |writer| {
            let key = if long_key { &secret[..] } else { &secret[..4] };
            let parameters = [
                ("server_version", crate::control::report::CONSOLE_VERSION),
                ("client_encoding", "UTF8"),
                ("server_encoding", "UTF8"),
                ("DateStyle", "ISO"),
                ("IntervalStyle", "postgres"),
                ("TimeZone", "GMT"),
                ("integer_datetimes", "on"),
                ("standard_conforming_strings", "on"),
                ("is_superuser", "on"),
            ];
            let written = writer
                .authentication_ok()
                .and_then(|()| {
                    let mut parameters = parameters.iter();
                    parameters.try_for_each(|(name, value)| writer.parameter_status(name.as_bytes(), value.as_bytes()))
                })
                .and_then(|()| writer.backend_key_data(process_id, key))
                .and_then(|()| writer.ready_for_query(TransactionStatus::Idle));
            written.expect("the room was asked for");
        });
        if !written {
            return;
        }
        self.go_on_with_visit(id);
    }

    /// A client at the console has sent something.
    pub(super) fn on_visitor_bytes(&mut self, id: ClientId, bytes: Slice) {
        let busy = match self.client(id).map(|client| &client.state) {
            Some(ClientState::Console(visit)) => visit.busy,
            _ => return,
        };
        if busy {
            self.hold_back(id, bytes);
        } else {
            self.hand_over(id, &bytes);
        }
    }

    fn hand_over(&mut self, id: ClientId, bytes: &[u8]) {
        let (stamp, shard) = (self.stamp(self.io.now()), self.settings.id);
        let Some(client) = self.clients.get_mut(id.index, id.generation) else { return };
        let connection = client.connection;
        client.active = stamp;
        let ClientState::Console(visit) = &mut client.state else { return };
        visit.busy = true;
        let right = console::right(&self.settings.auth, &visit.user, visit.is_owner);
        let request = Request { shard, client: id, what: What::Said(bytes.to_vec(), right) };
        let sent = self.console.as_ref().is_some_and(|desk| desk.send(request).is_ok());
        if !sent {
            self.fail(id, &Fault::ShuttingDown);
            return;
        }
        // Until that is answered.
        self.io.receive(connection, false);
    }

    /// The answer to what a client at the console has sent.
    pub(super) fn on_told(&mut self, id: ClientId, told: Told) {
        let Some(client) = self.client(id) else { return };
        let ClientState::Console(visit) = &mut client.state else { return };
        // What came before may still be on its way: an answer that waits for something is told in parts.
        visit.answer.drain(..visit.sent);
        visit.sent = 0;
        visit.answer.extend(told.bytes);
        (visit.ends, visit.more) = (told.ends, told.more);
        self.send_to_visitor(id);
    }

    /// Sends on of the answer, as much as the client takes.
    pub(super) fn send_to_visitor(&mut self, id: ClientId) {
        loop {
            let Some(client) = self.clients.get_mut(id.index, id.generation) else { return };
            let connection = client.connection;
            let ClientState::Console(visit) = &mut client.state else { return };
            if visit.sent == visit.answer.len() {
                let (busy, ends) = (visit.busy && !visit.more, visit.ends);
                (visit.answer, visit.sent) = (Vec::new(), 0);
                if ends {
                    self.dismiss(id);
                } else if busy {
                    visit.busy = false;
                    self.go_on_with_visit(id);
                }
                return;
            }
            if self.io.queued(connection).0 > 0 {
                self.io.notify_drained(connection);
                return;
            }
            let piece = visit.sent..(visit.sent + PIECE).min(visit.answer.len());
            let Some(bytes) = self.io.scratch().copy(&visit.answer[piece.clone()]) else {
                return self.fail(id, &Fault::NoMemory);
            };
            visit.sent = piece.end;
            self.io.send(connection, bytes);
        }
    }

    /// What has come of the client meanwhile, or else the next that comes.
    fn go_on_with_visit(&mut self, id: ClientId) {
        let Some(client) = self.clients.get_mut(id.index, id.generation) else { return };
        let connection = client.connection;
        let held = if client.stash.is_empty() {
            client.pending.pop(&mut self.nodes)
        } else {
            let taken = client.stash.take(self.io.scratch());
            if taken.is_none() {
                return self.fail(id, &Fault::NoMemory);
            }
            taken
        };
        match held {
            Some(bytes) => self.hand_over(id, &bytes),
            None => self.io.receive(connection, true),
        }
    }

    /// Closes one client, whatever it does. `false`: there is none by this id.
    pub(super) fn kill_client(&mut self, process_id: u32) -> bool {
        let Some((index, generation)) = self.client_by_process_id(process_id) else { return false };
        let id = ClientId { index, generation };
        let database = self.names_of(id).map(|(database, _)| database).unwrap_or_default();
        self.fail(id, &Fault::Dismissed(database));
        true
    }

    fn client_by_process_id(&self, process_id: u32) -> Option<(u32, u32)> {
        let index = (process_id & 0xff_ffff).checked_sub(1)?;
        let found = self.clients.next_used(index)?;
        (found.0 == index && process_id >> 24 == u32::from(self.settings.id.0)).then_some(found)
    }

    /// A client at the console is gone.
    pub(super) fn end_visit(&self, id: ClientId) {
        let request = Request { shard: self.settings.id, client: id, what: What::Left };
        if let Some(desk) = &self.console {
            // The thread ends with the process only.
            let _ = desk.send(request);
        }
    }
}
