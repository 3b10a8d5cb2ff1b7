//! Cancel requests: from clients to the backend that works for them, over a connection of their own.
//!
//! Invariant: while a cancel connection is open, its backend is not lent to anyone else; so a late cancel cannot hit the
//! next client's query.

use crate::ids::{BackendId, ClientId};
use crate::io::{Close, Transport};
use crate::session::fault::Fault;
use crate::session::pipeline::{Entry, Expect};

use super::clean::CANCEL_AGAIN;
use super::preserve::Cancelled;
use super::tables::SECRET_SIZE;
use super::{Backend, BackendState, Cancel, ClientState, Owner, Shard};

impl<T: Transport> Shard<T> {
    /// Any shard may be asked; the key says which client is meant.
    pub(super) fn on_cancel_request(&mut self, slot: u32, secret: &[u8]) {
        let found = self.clients.next_used(slot).filter(|&(index, _)| index == slot);
        let id = found.map(|(index, generation)| ClientId { index, generation });
        let key_of = |client: &super::Client| if client.long_key { SECRET_SIZE } else { 4 };
        let is_meant = |client: &super::Client| is_same(&client.secret[..key_of(client)], secret);
        let known = id.and_then(|id| Some((id, self.clients.get(id.index, id.generation)?)));
        let Some((id, client)) = known.filter(|(_, client)| is_meant(client)) else {
            // "process_id" as the client was told it, whoever told it that.
            let process_id = (u32::from(self.settings.id.0) << 24) | (slot.wrapping_add(1) & 0xff_ffff);
            self.cancel_elsewhere(process_id, secret);
            return;
        };
        match client.state {
            ClientState::Waiting(_) => {
                self.leave_queue(id);
                self.refuse_request(id, &Fault::CancelledInQueue);
            }
            ClientState::Linked(backend) => {
                if self.backend(backend).is_some_and(|link| link.kept.proving) {
                    // Its request has not gone there yet.
                    self.clean(backend, false);
                    self.refuse_request(id, &Fault::CancelledInQueue);
                } else {
                    self.cancel_request(backend);
                }
            }
            ClientState::Piped(backend) => self.cancel_query(backend),
            ClientState::Startup
            | ClientState::Moving(_)
            | ClientState::Login(_)
            | ClientState::Ready
            | ClientState::Console(_) => {}
        }
    }

    /// Asks the server to cancel the request that the linked client waits for, or, where a query of our own comes before
    /// it, will do so then.
    pub(super) fn cancel_request(&mut self, id: BackendId) {
        let Some(link) = self.backend(id) else { return };
        link.kept.cancel_waits = false;
        match link.pipeline.head() {
            Some(Entry { expect: Expect::OwnQuery, .. }) => link.kept.cancel_waits = link.pipeline.is_client_busy(),
            Some(_) if link.pipeline.is_client_busy() => self.cancel_query(id),
            Some(_) | None => {}
        }
    }

    /// A query of our own is done: a cancel that waited for that is sent.
    pub(super) fn cancel_held(&mut self, id: BackendId) {
        if self.backend(id).is_none_or(|link| !link.kept.cancel_waits) {
            return;
        }
        self.cancel_request(id);
        let at = self.io.now();
        // What waits on, or has nothing left to wait for, has not been sent.
        let is_sent = |link: &&mut Backend| !link.kept.cancel_waits && link.pipeline.is_client_busy();
        let Some(link) = self.backend(id).filter(is_sent) else { return };
        let end = link.pipeline.end_of_batch();
        link.kept.cancelled = end.map(|end| Cancelled { batch: (link.asked, end), at });
    }

    /// Such a cancel is sent in the moment in which the server turns to the client's request, long after its client has
    /// asked for it. One that is there first is for nothing: so it is sent once more.
    pub(super) fn cancel_held_again(&mut self, id: BackendId) {
        let now = self.io.now();
        let Some(link) = self.backend(id) else { return };
        let Some(cancelled) = link.kept.cancelled.filter(|cancelled| now >= cancelled.at + CANCEL_AGAIN) else {
            return;
        };
        link.kept.cancelled = None;
        if link.pipeline.end_of_batch().is_some_and(|end| cancelled.batch == (link.asked, end)) {
            self.cancel_request(id);
        }
    }

    /// Asks the server to cancel what a backend works on.
    pub(super) fn cancel_query(&mut self, id: BackendId) {
        let deadline = self.io.now() + self.settings.cancel_timeout;
        let Some(backend) = self.backend(id) else { return };
        // One under way does as much as two.
        if backend.cancels > 0 || self.cancels.len() == self.cancels.capacity() {
            return;
        }
        // "to the very address of that backend" (not another one that the name resolves to by now).
        let address = self.backend(id).and_then(|backend| backend.address.clone());
        let Some(Ok(connection)) = address.map(|address| self.io.connect(&address)) else { return };
        let encryption = super::tls::Encryption::None;
        let cancel = Cancel { connection, backend: id, encryption, deadline };
        let Ok((index, generation)) = self.cancels.insert(cancel) else { unreachable!("checked above") };
        self.io.set_owner(connection, Owner::Cancel(index, generation).pack());
        self.backend(id).expect("looked up above").cancels += 1;
    }

    pub(super) fn on_cancel_connected(&mut self, index: u32, generation: u32, failed: bool) {
        if failed {
            self.end_cancel(index, generation, true);
        } else if !self.begin_cancel_encryption(index, generation) {
            self.send_cancel(index, generation);
        }
    }

    /// Says what is to be cancelled; the connection is as its backend's is.
    pub(super) fn send_cancel(&mut self, index: u32, generation: u32) {
        let Some(cancel) = self.cancels.get(index, generation) else { return };
        let (connection, id) = (cancel.connection, cancel.backend);
        let Some((process_id, key)) = self.backend(id).map(|backend| (backend.process_id, backend.key)) else {
            self.end_cancel(index, generation, false);
            return;
        };
        self.write(connection, 32, |writer| {
            writer.cancel_request(process_id, &key.to_be_bytes()).expect("the room was asked for");
        });
    }

    /// "the server ... closes the connection": the signal has been sent by then (Canceling Requests in Progress).
    pub(super) fn on_cancel_ended(&mut self, index: u32, generation: u32) {
        self.end_cancel(index, generation, false);
    }

    fn end_cancel(&mut self, index: u32, generation: u32, closed: bool) {
        let Some(cancel) = self.cancels.remove(index, generation) else { return };
        if !closed {
            self.io.close(cancel.connection, Close::Now);
        }
        let Some(backend) = self.backend(cancel.backend) else { return };
        backend.cancels -= 1;
        match backend.state {
            BackendState::Cleaning(_) => self.go_on_cleaning(cancel.backend),
            BackendState::Linked(client) => {
                if self.client(client).is_some_and(|client| client.paused) {
                    self.resume_client(client);
                }
                if self.backend(cancel.backend).is_some() {
                    self.try_release(cancel.backend);
                }
            }
            BackendState::Resolving
            | BackendState::Connecting
            | BackendState::LoggingIn
            | BackendState::Idle
            | BackendState::LookingUp(_)
            | BackendState::Listening(_)
            | BackendState::Moving(_)
            | BackendState::Piped(_) => {}
        }
    }

    /// Cancel connections that hang: their backends are closed rather than lent.
    pub(super) fn scan_cancels(&mut self) {
        let now = self.io.now();
        let mut from = 0;
        while let Some((index, generation)) = self.cancels.next_used(from) {
            from = index + 1;
            let cancel = self.cancels.get(index, generation).expect("just found");
            if now < cancel.deadline {
                continue;
            }
            let backend = cancel.backend;
            if let Some(backend) = self.backend(backend) {
                backend.tainted = true;
            }
            self.end_cancel(index, generation, false);
        }
    }
}

/// Compares secrets in a time that does not tell where they differ.
fn is_same(one: &[u8], other: &[u8]) -> bool {
    one.len() == other.len() && one.iter().zip(other).fold(0, |sum, (a, b)| sum | (a ^ b)) == 0
}
