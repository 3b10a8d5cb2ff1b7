//! What moves on the pipes: bytes to a shard, bytes from it, and what its closing a connection means.

use super::*;

impl World {
    pub(super) fn plan_delivery(&mut self, core: usize, connection: ConnectionId) {
        if self.cores[core].shard.io.plan_delivery(connection) {
            let after = self.latency();
            self.plan(after, Action::Deliver(core, connection));
        }
    }

    pub(super) fn plan_drain(&mut self, core: usize, connection: ConnectionId) {
        if self.cores[core].shard.io.plan_drain(connection) {
            let slow = self.peer(core, connection).is_some_and(|peer| match peer {
                Peer::Application(index) => self.applications[index].slow,
                Peer::Server(_) | Peer::Canceller => false,
            });
            let after = if slow { self.random.between(MILLI, 20 * MILLI) } else { self.latency() };
            self.plan(after, Action::Drain(core, connection));
        }
    }

    pub(super) fn peer(&self, core: usize, connection: ConnectionId) -> Option<Peer> {
        let peer = self.cores[core].shard.io.peer_of(connection)?;
        (peer != NOBODY).then(|| self.peers[peer as usize])
    }

    pub(super) fn deliver(&mut self, core: usize, connection: ConnectionId) {
        let Self { cores, random, .. } = self;
        match cores[core].shard.io.deliver(connection, random, self.dials.halves == 0) {
            Ok(Some(event)) => {
                if let (Event::Received { bytes, .. }, true) = (&event, self.trace.is_some()) {
                    let line = format!("{:?} -> shard {core}: {} bytes", self.peer(core, connection), bytes.len());
                    self.keep_line(line);
                }
                if let Some(Peer::Server(index)) = self.peer(core, connection) {
                    self.look_whether_clean(index);
                }
                self.feed(core, event);
                self.plan_delivery(core, connection);
            }
            Ok(None) => {}
            Err(()) => {
                self.coverage.note("no chunk left to receive into");
                if self.cores[core].shard.io.plan_delivery(connection) {
                    self.plan(MILLI, Action::Deliver(core, connection));
                }
            }
        }
    }

    pub(super) fn drain(&mut self, core: usize, connection: ConnectionId) {
        let Some(peer) = self.peer(core, connection) else { return };
        let gone = match peer {
            Peer::Application(index) => self.applications[index].stage == application::Stage::Gone,
            Peer::Server(index) => self.servers[index].stage == Stage::Dead,
            Peer::Canceller => false,
        };
        let slow = matches!(peer, Peer::Application(index) if self.applications[index].slow);
        let most = match self.random.below(3) {
            _ if slow => 1 + self.random.below(2000),
            0 => 1 + self.random.below(100),
            _ => 65536,
        };
        let drained = self.cores[core].shard.io.drain(connection, most, gone);
        if !drained.bytes.is_empty() {
            match peer {
                Peer::Application(index) => self.heard(index, &drained.bytes),
                Peer::Server(index) => self.served(index, &drained.bytes),
                // "there is no reply", but an error when the pooler is ending or has no memory.
                Peer::Canceller => {
                    assert!(self.quitting.is_some() || self.dials.chunks < 64, "a cancel request is never answered")
                }
            }
        }
        if let Some(event) = drained.event {
            self.feed(core, event);
        }
        match drained.closed {
            Some(peer) => self.closed_by_pooler(peer),
            None => self.plan_drain(core, connection),
        }
    }

    pub(super) fn closed_by_pooler(&mut self, peer: super::super::transport::Peer) {
        if peer == NOBODY {
            return;
        }
        match self.peers[peer as usize] {
            Peer::Application(index) => {
                let one = &mut self.applications[index];
                one.connection = None;
                one.left = true;
                if one.stage == application::Stage::Gone {
                    return;
                }
                let told = one.stage == application::Stage::Dismissed;
                let half = one.hears_half();
                let answering = !one.is_settled();
                one.stage = application::Stage::Gone;
                trace!(self, "client {index}: closed by the pooler");
                // In the middle of an answer nothing can be told any more; a small arena may run out there.
                let torn = answering && (self.administrator.has_dismissed || self.dials.chunks < 64);
                let cut = self.dials.has_faults() || self.quitting.is_some() || torn;
                assert!(told || cut, "client {index} was closed without a word");
                assert!(!half || cut, "client {index} got half a message");
            }
            Peer::Server(index) => {
                self.servers[index].left = true;
                self.servers[index].stage = Stage::Dead;
                trace!(self, "server {index}: closed by the pooler");
            }
            Peer::Canceller => {}
        }
    }
}
