//! A client connects, and its first packets: encryption requests, cancel requests, the startup packet.

use crate::ids::{ClientId, ConnectionId, ShardId};
use crate::io::{Close, Transport};
use crate::memory::Slice;
use crate::protocol::startup::{self, Packet};
use crate::session::fault::Fault;

use super::mailbox::Mail;
use super::proxied::Origin;
use super::{Client, Owner, Running, Shard};

impl<T: Transport> Shard<T> {
    pub(super) fn on_accepted(&mut self, connection: ConnectionId, unix: bool) {
        if self.running != Running::Yes {
            self.io.close(connection, Close::Now);
            return;
        }
        let limit = self.settings.clients_max;
        let entered = self.population.enter(limit);
        let inserted = if entered {
            self.clients.insert(Client::new(connection, unix, self.stamp(self.io.now()))).ok()
        } else {
            None
        };
        let Some((index, generation)) = inserted else {
            if entered {
                self.population.leave();
            }
            let fault = Fault::TooManyClients(limit);
            self.note_junk(connection, &fault.answer());
            self.write_error(connection, &fault, None);
            self.io.close(connection, Close::Flushed);
            return;
        };
        self.counters.accepted += 1;
        let id = ClientId { index, generation };
        self.io.set_owner(connection, Owner::Client(id).pack());
        if self.comes_from_proxy(connection) {
            // Whom it speaks for, and so whether there are too many of these, is known when its header is here.
            self.client(id).expect("just inserted").origin = Origin::HeaderDue;
        } else if !self.count_address(id) {
            return;
        }
        self.io.receive(connection, true);
    }

    /// Bytes before the login. They are collected until a packet is whole.
    pub(super) fn on_startup_bytes(&mut self, id: ClientId, bytes: Slice) {
        let Some(client) = self.client(id) else { return };
        let connection = client.connection;
        if client.origin == Origin::HeaderDue {
            self.on_proxy_bytes(id, bytes);
            return;
        }
        let begins = client.stash.is_empty() && bytes.first() == Some(&startup::TLS_HANDSHAKE);
        if begins && self.on_direct_tls(id, &bytes) {
            return;
        }
        let Some(bytes) = self.whole_so_far(id, bytes) else {
            self.fail(id, &Fault::NoMemory);
            return;
        };
        match startup::packet(&bytes) {
            Ok(None) => {
                let arena = self.io.arena().clone();
                let kept = self.client(id).is_some_and(|client| client.stash.add_spare(&arena, &bytes).is_ok());
                if !kept {
                    self.fail(id, &Fault::NoMemory);
                }
            }
            Ok(Some((packet @ (Packet::SslRequest | Packet::GssEncRequest), size))) => {
                // Bytes behind the request would be plaintext that the client believes to be encrypted.
                if bytes.len() > size {
                    self.fail(id, &Fault::PlaintextAhead);
                    return;
                }
                if packet == Packet::SslRequest {
                    self.on_ssl_request(id);
                } else if let Some(answer) = self.io.scratch().copy(&[startup::ENCRYPTION_REFUSED]) {
                    self.io.send(connection, answer);
                }
            }
            Ok(Some((Packet::CancelRequest(request), _))) => {
                let shard = ShardId((request.process_id >> 24) as u16);
                let mail = Mail::Cancel {
                    slot: (request.process_id & 0xff_ffff).wrapping_sub(1),
                    secret: request.key.to_vec(),
                };
                // In plaintext too, whatever `tls.client.mode` says: libpq before 17 has no other, and PostgreSQL takes it.
                if shard == self.settings.id {
                    self.on_one_mail(mail);
                } else if !self.mailbox.send(shard, mail) {
                    // No shard of ours; another process may have had more.
                    self.cancel_elsewhere(request.process_id, request.key);
                }
                // "there is no reply": the connection is closed whatever came of it (Canceling Requests in Progress).
                self.leave(id);
            }
            Ok(Some((Packet::StartupMessage(_), size))) => self.begin_login(id, &bytes, size, None),
            Err(refused) => self.fail(id, &Fault::Startup(refused)),
        }
    }

    /// `bytes` with what was kept before them. `None`: the arena is used up.
    pub(super) fn whole_so_far(&mut self, id: ClientId, bytes: Slice) -> Option<Slice> {
        let client = self.clients.get_mut(id.index, id.generation)?;
        if client.stash.is_empty() {
            return Some(bytes);
        }
        client.stash.add_spare(self.io.arena(), &bytes).ok()?;
        client.stash.take_secret(self.io.scratch())
    }
}
