//! The transport that is seen from above.

use std::os::fd::OwnedFd;
use std::time::Instant;

use super::handshake::{Facts, Handshake};
use super::opening::keep;
use super::record::alert;
use super::{Secure, Session, State, Tls};
use crate::ids::{ConnectionId, DoorId};
use crate::io::{Close, Errno, Group, Parcel, SocketAddress, Transport};
use crate::memory::{Arena, Scratch, Slice};

impl<T: Transport> Transport for Tls<T> {
    #[inline]
    fn arena(&self) -> &Arena {
        self.inner.arena()
    }

    #[inline]
    fn scratch(&mut self) -> &mut Scratch {
        self.inner.scratch()
    }

    #[inline]
    fn now(&self) -> Instant {
        self.inner.now()
    }

    fn set_owner(&mut self, connection: ConnectionId, owner: u64) {
        self.inner.set_owner(connection, owner);
    }

    #[inline]
    fn owner(&self, connection: ConnectionId) -> Option<u64> {
        self.inner.owner(connection)
    }

    #[inline]
    fn send(&mut self, id: ConnectionId, bytes: Slice) {
        if self.count == 0 || self.session(id).is_none() {
            self.inner.send(id, bytes);
            return;
        }
        let Self { sessions, nodes, inner, .. } = self;
        let session = sessions[id.index as usize].as_deref_mut().expect("just looked up");
        // During a handshake there is nobody who could read it.
        if bytes.is_empty() || session.mute || !matches!(session.state, State::Open(_)) {
            return;
        }
        if session.pending.push(nodes, bytes, false).is_err() {
            log::error!("no node is left for a piece to send: a connection is closed");
            inner.abort(id);
            return;
        }
        self.mark_dirty(id);
    }

    #[inline]
    fn queued(&self, connection: ConnectionId) -> (usize, usize) {
        let (bytes, pieces) = self.inner.queued(connection);
        if self.count == 0 {
            return (bytes, pieces);
        }
        match self.sessions.get(connection.index as usize).and_then(Option::as_deref) {
            Some(session) => (bytes + session.pending.bytes(), pieces + session.pending.pieces()),
            None => (bytes, pieces),
        }
    }

    fn taken(&self, connection: ConnectionId) -> u64 {
        self.inner.taken(connection)
    }

    fn is_starved(&self) -> bool {
        self.inner.is_starved()
    }

    fn notify_drained(&mut self, connection: ConnectionId) {
        self.inner.notify_drained(connection);
    }

    fn abort(&mut self, connection: ConnectionId) {
        self.inner.abort(connection);
    }

    fn receive(&mut self, connection: ConnectionId, on: bool) {
        if on && self.count > 0 {
            self.tell_early(connection);
        }
        self.inner.receive(connection, on);
    }

    fn connect(&mut self, address: &SocketAddress) -> Result<ConnectionId, Errno> {
        self.inner.connect(address)
    }

    fn detach(&mut self, id: ConnectionId) {
        self.begin_detach(id);
    }

    fn adopt(&mut self, parcel: Parcel, group: Group) -> Option<ConnectionId> {
        self.adopt_parcel(parcel, group)
    }

    fn close(&mut self, id: ConnectionId, how: Close) {
        if self.count > 0 && self.session(id).is_some() {
            if how == Close::Flushed {
                self.seal_pending(id);
                let session = self.session(id).expect("just looked up");
                if session.pending.is_empty() && !session.mute {
                    self.say_alert(id, alert::CLOSE_NOTIFY);
                }
            }
            let Self { sessions, nodes, spare, .. } = self;
            let mut session = sessions[id.index as usize].take().expect("just looked up");
            session.pending.clear(nodes);
            session.held.clear(nodes);
            if let State::Open(channel) = &mut session.state {
                keep(spare, std::mem::take(&mut channel.begun));
            }
            self.count -= 1;
        }
        self.inner.close(id, how);
    }

    fn local(&self, connection: ConnectionId) -> String {
        self.inner.local(connection)
    }

    fn peer(&self, connection: ConnectionId) -> String {
        self.inner.peer(connection)
    }

    fn is_local(&self, connection: ConnectionId) -> bool {
        self.inner.is_local(connection)
    }

    fn address(&self, connection: ConnectionId) -> Option<std::net::IpAddr> {
        self.inner.address(connection)
    }

    fn is_run_by_owner(&self, connection: ConnectionId) -> bool {
        self.inner.is_run_by_owner(connection)
    }

    fn peer_user(&self, connection: ConnectionId) -> Option<String> {
        self.inner.peer_user(connection)
    }

    fn listen(&mut self, socket: OwnedFd, local: bool, door: DoorId) {
        self.inner.listen(socket, local, door);
    }

    fn close_door(&mut self, door: DoorId) {
        self.inner.close_door(door);
    }

    fn is_open(&self, door: DoorId) -> bool {
        self.inner.is_open(door)
    }

    fn stop_listening(&mut self) {
        self.inner.stop_listening();
    }

    fn resolve(&mut self, host: &str, port: u16, ticket: u64) {
        self.inner.resolve(host, port, ticket);
    }

    fn secure(&mut self, id: ConnectionId, how: Secure) {
        let (handshake, begun) = match how {
            Secure::Accept { acceptor, begun } => (Handshake::accept(acceptor, begun.is_some()), begun),
            Secure::Connect { connector, host, direct } => (Handshake::connect(&connector, host, direct), None),
        };
        let slot = self.sessions.get_mut(id.index as usize).expect("TLS is asked for only where it is configured");
        assert!(slot.is_none(), "a connection is secured once");
        let (state, failure) = match handshake {
            Ok(handshake) => (State::Handshake(Box::new(handshake)), None),
            Err(why) => (State::Failed, Some(why)),
        };
        let session = slot.insert(Box::new(Session::new(id.generation, state, Facts::default(), Vec::new())));
        self.count += 1;
        if let State::Handshake(handshake) = &mut session.state
            && handshake.speaks_first()
        {
            handshake.queued = true;
            self.steps.push_back(id);
        }
        if let Some(why) = failure {
            self.fail(id, why);
        }
        if let Some(bytes) = begun {
            self.on_bytes(id, bytes);
        }
    }

    fn facts(&self, connection: ConnectionId) -> Option<&Facts> {
        let session = self.sessions.get(connection.index as usize)?.as_deref()?;
        let is_open = session.generation == connection.generation && matches!(session.state, State::Open(_));
        is_open.then_some(&session.facts)
    }
}
