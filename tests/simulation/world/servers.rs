//! The servers: connections come, messages are processed, servers stall, refuse, die and go down.

use super::*;

impl World {
    pub(super) fn connect(&mut self, core: usize, connection: ConnectionId, address: &SocketAddress) {
        let port = match address {
            SocketAddress::Tcp(address) => address.port(),
            SocketAddress::Unix(path) => {
                path.file_name().and_then(|name| name.to_str()).and_then(|name| name.parse().ok()).expect("a port")
            }
        };
        let down = self.now < self.down_until[usize::from(port - 5000)];
        let second = matches!(address, SocketAddress::Tcp(address) if address.ip().to_string() == "127.0.0.2");
        if down && self.hangs {
            self.coverage.note("connect hangs");
            return;
        }
        let result = if down || self.dials.names && !self.dials.unix && !second && self.random.below(4) == 0 {
            self.coverage.note("connect refused");
            Err(Errno(libc::ECONNREFUSED))
        } else {
            let index = self.servers.len();
            let process_id = 100_000 + index as u32;
            let server = ServerConnection::new(core, connection, process_id, port, &mut self.random);
            self.servers.push(server);
            Ok(self.new_peer(Peer::Server(index)))
        };
        if let Some(event) = self.cores[core].shard.io.connected(connection, result) {
            self.feed(core, event);
            self.plan_drain(core, connection);
        }
    }

    /// Bytes for the server.
    pub(super) fn served(&mut self, index: usize, bytes: &[u8]) {
        let refused = self.dials.refusals > 0 && self.random.in_thousand(self.dials.refusals);
        let code = *self.random.one_of(&["53300", "57P03", "28P01"]);
        let manner = Manner { password: self.dials.password, refuses: refused.then_some(code) };
        self.look_whether_clean(index);
        let arrived = self.servers[index].arrive(bytes, &manner);
        match arrived.unwrap_or_else(|why| panic!("{why}")) {
            Arrived::Nothing => {}
            Arrived::Messages => self.plan_processing(index),
            Arrived::Answer(answer) => {
                self.answer(index, &answer);
                if self.servers[index].stage == Stage::Ready {
                    self.look_at_pool_size(index);
                }
            }
            Arrived::Refused(answer) => {
                self.coverage.note("login refused");
                self.answer(index, &answer);
                self.die(index, None);
            }
            Arrived::Cancel { process_id, key } => {
                self.cancelled(process_id, key);
                self.die(index, None);
            }
        }
    }

    pub(super) fn plan_processing(&mut self, index: usize) {
        let server = &mut self.servers[index];
        if std::mem::replace(&mut server.planned, true) {
            return;
        }
        let stalls = self.random.in_thousand(self.dials.stalls);
        let after = if stalls { self.random.between(1, 2 * SECOND) } else { self.random.between(1, 500) };
        self.plan(after, Action::Process(index));
    }

    pub(super) fn process(&mut self, index: usize) {
        self.servers[index].planned = false;
        if self.servers[index].stage != Stage::Ready {
            return;
        }
        if self.dials.deaths > 0 && self.random.in_thousand(self.dials.deaths) {
            return self.kill(index);
        }
        let most = 1 + self.random.below(8);
        for _ in 0..most {
            let server = &mut self.servers[index];
            if server.session.sleeping().is_some() {
                break;
            }
            let Some(message) = server.queue.pop_front() else { break };
            trace!(self, "server {index}: processes {}", wire::show(&message));
            self.servers[index].session.process(&message);
        }
        self.after_processing(index);
    }

    pub(super) fn after_processing(&mut self, index: usize) {
        let server = &mut self.servers[index];
        let effects = std::mem::take(&mut server.session.effects);
        for mark in effects.executed {
            assert!(self.executed.insert(mark), "{mark} was executed twice");
        }
        let answer = server.flush();
        let sleeping = server.session.sleeping();
        self.answer(index, &answer);
        if effects.dies.is_some() {
            self.die(index, None);
            return;
        }
        if let Some((_, ms)) = sleeping {
            self.servers[index].alarm += 1;
            let alarm = self.servers[index].alarm;
            self.plan(ms * MILLI, Action::Alarm(index, alarm));
        } else if !self.servers[index].queue.is_empty() {
            self.plan_processing(index);
        }
        self.look_whether_clean(index);
    }

    pub(super) fn answer(&mut self, index: usize, bytes: &[u8]) {
        let server = &self.servers[index];
        let (core, connection) = (server.shard, server.connection);
        if self.trace.is_some() {
            let mut rest = bytes.to_vec();
            while let Some(message) = wire::take(&mut rest) {
                trace!(self, "server {index}: says {}", wire::show(&message));
            }
        }
        if let Some(wire) = self.under_way(Peer::Server(index)) {
            locked(&wire).arrive(bytes);
            return;
        }
        self.cores[core].shard.io.arrive(connection, bytes);
        self.plan_delivery(core, connection);
    }

    /// The connection ends behind what was said.
    pub(super) fn die(&mut self, index: usize, error: Option<Errno>) {
        let server = &mut self.servers[index];
        server.stage = Stage::Dead;
        let (core, connection) = (server.shard, server.connection);
        if let Some(wire) = self.under_way(Peer::Server(index)) {
            locked(&wire).hang_up(error);
            return;
        }
        self.cores[core].shard.io.hang_up(connection, error);
        self.plan_delivery(core, connection);
        self.plan_drain(core, connection);
    }

    /// The server process dies, at any byte of what it says.
    pub(super) fn kill(&mut self, index: usize) {
        trace!(self, "server {index}: dies");
        self.coverage.note("server connection died");
        match self.random.below(3) {
            0 => {
                let mut last = Vec::new();
                wire::put_fields(&mut last, b'E', "FATAL", "57P01", "pg: terminating connection");
                self.answer(index, &last);
                self.die(index, None);
            }
            1 => {
                let server = &mut self.servers[index];
                while server.session.sleeping().is_none()
                    && let Some(message) = server.queue.pop_front()
                {
                    server.session.process(&message);
                }
                let marks = std::mem::take(&mut server.session.effects).executed;
                for mark in marks {
                    assert!(self.executed.insert(mark), "{mark} was executed twice");
                }
                let mut bytes = self.servers[index].flush();
                bytes.truncate(self.random.below(bytes.len() + 1));
                self.answer(index, &bytes);
                self.die(index, None);
            }
            _ => self.die(index, Some(Errno(libc::ECONNRESET))),
        }
    }

    /// A server goes down for a while, and now and then takes its connections with it.
    pub(super) fn outage(&mut self) {
        if self.quitting.is_some() {
            return;
        }
        let after = self.random.between(20 * MILLI, SECOND);
        self.plan(after, Action::Outage);
        if !self.random.in_thousand(self.dials.outages) {
            return;
        }
        let server = self.random.below(2);
        self.down_until[server] = self.now + self.random.between(10 * MILLI, 5 * SECOND);
        self.hangs = self.random.below(3) == 0;
        trace!(self, "server {server} is down, connects hang: {}", self.hangs);
        if self.random.below(2) == 0 {
            for index in 0..self.servers.len() {
                let one = &self.servers[index];
                if usize::from(one.port - 5000) == server && one.stage != Stage::Dead {
                    self.kill(index);
                }
            }
        }
    }

    /// A cancel request has come to the server.
    pub(super) fn cancelled(&mut self, process_id: u32, key: u32) {
        let found = self.servers.iter().position(|server| server.process_id == process_id && server.key == key);
        let index = found.unwrap_or_else(|| panic!("a cancel with a wrong key for {process_id}"));
        if self.servers[index].stage != Stage::Ready {
            return;
        }
        if let Some(holder) = self.servers[index].holder {
            let one = &self.applications[holder as usize];
            let gone = one.left || one.stage == application::Stage::Gone;
            assert!(one.cancels > 0 || gone, "client {holder} is hit by a cancel that is not its own");
        }
        self.coverage.note("cancel reached the server");
        if self.servers[index].session.sleeping().is_some() {
            self.coverage.note("cancel ended a query");
            self.servers[index].alarm += 1;
            self.servers[index].session.wake(true);
            self.after_processing(index);
        }
    }
}
