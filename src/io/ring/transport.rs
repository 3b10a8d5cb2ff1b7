//! The ring as the shard's [`Transport`].

use std::os::fd::OwnedFd;
use std::time::Instant;

use io_uring::opcode;

use super::Ring;
use super::connection::{Closing, Operation, Receive, Sending, user_data};
use super::peers::taken;
use super::sending::GATHER_MAX;
use crate::ids::{ConnectionId, DoorId};
use crate::io::{Close, Errno, Group, Parcel, SocketAddress, Transport};
use crate::memory::{Arena, Scratch, Slice};

impl Transport for Ring {
    fn arena(&self) -> &Arena {
        &self.arena
    }

    fn scratch(&mut self) -> &mut Scratch {
        &mut self.scratch
    }

    fn now(&self) -> Instant {
        self.now
    }

    fn set_owner(&mut self, connection: ConnectionId, owner: u64) {
        if let Some(connection) = self.connections.get_mut(connection.index, connection.generation) {
            connection.owner = owner;
        }
    }

    #[inline]
    fn owner(&self, connection: ConnectionId) -> Option<u64> {
        // Also while it closes: a connect that failed is told to the one who asked for it.
        self.connections.get(connection.index, connection.generation).map(|connection| connection.owner)
    }

    #[inline]
    fn send(&mut self, id: ConnectionId, bytes: Slice) {
        let Some(connection) = self.connections.get_mut(id.index, id.generation) else { return };
        if connection.closing != Closing::No || connection.ended || bytes.is_empty() {
            return;
        }
        connection.streamed = 0;
        let in_flight = connection.sending != Sending::No;
        if in_flight && bytes.len() <= GATHER_MAX && connection.outbox.gather(&mut self.nodes, &self.arena, &bytes) {
            return;
        }
        if connection.outbox.push(&mut self.nodes, bytes, in_flight).is_err() {
            log::error!("no node is left for a piece to send: a connection is closed");
            self.abort(id);
            return;
        }
        if !in_flight {
            self.mark_dirty(id);
        }
    }

    #[inline]
    fn queued(&self, connection: ConnectionId) -> (usize, usize) {
        let slot = self.connections.get(connection.index, connection.generation);
        slot.map_or((0, 0), |connection| (connection.outbox.bytes(), connection.outbox.pieces()))
    }

    fn abort(&mut self, id: ConnectionId) {
        let Some(connection) = self.connections.get_mut(id.index, id.generation) else { return };
        if connection.closing == Closing::No && !connection.ended {
            connection.ended = true;
            self.aborted.push(id);
        }
    }

    fn taken(&self, connection: ConnectionId) -> u64 {
        let slot = self.connections.get(connection.index, connection.generation);
        slot.map_or(0, |connection| taken(connection.socket, connection.local))
    }

    fn is_starved(&self) -> bool {
        let group = Group::Client as usize;
        self.buffers[group].len() == 0 && !self.starved[group].is_empty()
    }

    fn notify_drained(&mut self, connection: ConnectionId) {
        if let Some(connection) = self.connections.get_mut(connection.index, connection.generation) {
            connection.notify = true;
        }
    }

    fn receive(&mut self, id: ConnectionId, on: bool) {
        let Some(connection) = self.connections.get_mut(id.index, id.generation) else { return };
        if connection.closing != Closing::No || connection.ended || connection.wanted == on {
            return;
        }
        if connection.detaching.is_some() {
            return;
        }
        connection.wanted = on;
        if on && self.tells_early(id) {
            return;
        }
        let connection = self.connections.get_mut(id.index, id.generation).expect("looked up above");
        match (on, connection.receive) {
            (true, Receive::Off) => self.arm_receive(id),
            (false, Receive::Armed) => {
                connection.receive = Receive::Cancelling;
                // More has come than the reader takes: from now on one chunk at a time, which needs no cancellation.
                connection.bulk = true;
                connection.operations += 1;
                let entry = opcode::AsyncCancel::new(user_data(Operation::Receive, id)).build();
                self.push(entry.user_data(user_data(Operation::Cancel, id)));
            }
            // A starved or paced one still stands in its queue; a cancelled one is armed again when the cancellation is through.
            (true, Receive::Starved | Receive::Armed | Receive::Cancelling | Receive::Paced) => {}
            (false, Receive::Off | Receive::Cancelling | Receive::Starved | Receive::Paced) => {}
        }
    }

    fn connect(&mut self, address: &SocketAddress) -> Result<ConnectionId, Errno> {
        self.open(address)
    }

    fn close(&mut self, id: ConnectionId, how: Close) {
        self.end(id, how);
    }

    fn local(&self, connection: ConnectionId) -> String {
        self.own_name_of(connection)
    }

    fn peer(&self, connection: ConnectionId) -> String {
        self.name_of(connection)
    }

    fn is_local(&self, connection: ConnectionId) -> bool {
        self.is_near(connection)
    }

    fn address(&self, connection: ConnectionId) -> Option<std::net::IpAddr> {
        self.address_of(connection)
    }

    fn is_run_by_owner(&self, connection: ConnectionId) -> bool {
        let own = nix::unistd::geteuid();
        self.uid_of(connection).is_some_and(|uid| uid.is_root() || uid == own)
    }

    fn peer_user(&self, connection: ConnectionId) -> Option<String> {
        self.user_of(connection)
    }

    fn detach(&mut self, connection: ConnectionId) {
        self.begin_detach(connection);
    }

    fn adopt(&mut self, parcel: Parcel, group: Group) -> Option<ConnectionId> {
        self.adopt_parcel(parcel, group)
    }

    fn stop_listening(&mut self) {
        self.unlisten(|_| true);
    }

    fn listen(&mut self, socket: OwnedFd, local: bool, door: DoorId) {
        self.accept_on(socket, local, door);
    }

    fn close_door(&mut self, door: DoorId) {
        self.unlisten(|known| known == door);
    }

    fn is_open(&self, door: DoorId) -> bool {
        self.listeners.iter().flatten().any(|listener| listener.door == door)
    }

    fn resolve(&mut self, host: &str, port: u16, ticket: u64) {
        self.resolver.start(host, port, ticket);
    }
}
