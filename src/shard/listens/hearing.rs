//! What clients are told of that a listener has heard, and when: between their transactions, and before the
//! ReadyForQuery of one that could know of it.

use crate::ids::{BackendId, ClientId};
use crate::io::Transport;
use crate::memory::{Slice, Stash};
use crate::protocol::{HEAD_SIZE, TransactionStatus, reader};
use crate::session::Transparency;
use crate::session::fault::Fault;

use super::super::{ClientState, Shard};
use super::{HELD_MAX, MARK_CHANNEL, Wait};

impl<T: Transport> Shard<T> {
    /// Whether the ReadyForQuery that is here has to wait until the listener has nothing on its way.
    pub(in crate::shard) fn holds_ready(&mut self, id: BackendId) -> bool {
        let Some(client_id) = self.client_of(id) else { return false };
        let link = self.backends.get_mut(id.index, id.generation).expect("a linked backend is there");
        if link.pipeline.status() != TransactionStatus::Idle {
            return false;
        }
        if link.pipeline.is_client_busy() {
            // This was asked before anything that notifies or resets: what does waits for what is before it
            // (`answers_in_turn`).
            self.tell_held(client_id);
            return false;
        }
        let pool = link.pool;
        let notified = link.kept.notified;
        let hears = link.kept.hears;
        let resets = std::mem::take(&mut link.kept.resets);
        let fast = self.pools.get(pool).settings.preserve == Some(Transparency::Fast);
        let client = self.client(client_id).expect("a linked client is there");
        // Those who leave hear nothing more.
        let waits = !client.terminating;
        let resets = resets && waits;
        let slot = if waits && (notified || hears && !fast) { self.listener_of(pool) } else { None };
        if slot.is_none() && !resets {
            self.backend(id).expect("looked up above").kept.notified = false;
            self.tell_held(client_id);
            return false;
        };
        let link = self.backend(id).expect("looked up above");
        link.kept.ready_held = true;
        // An UNLISTEN takes effect before its answer: first it is found out what is left.
        link.kept.ready_waits = link.kept.real || resets;
        let waits = link.kept.ready_waits;
        self.client(client_id).expect("looked up above").paused = true;
        if !waits {
            self.wait_for_listener(client_id, id);
        }
        true
    }

    /// It is known on what the client listens: now its ReadyForQuery waits for the listener.
    pub(in crate::shard) fn go_on_to_ready(&mut self, id: BackendId) {
        let Some(link) = self.backends.get(id.index, id.generation) else { return };
        let kept = &link.kept;
        let known = kept.suspects.is_empty() || kept.is_unanswered(link.asked);
        let settled = known && kept.asked.is_none() && kept.share.is_none();
        // Where nobody else listens for it there is nothing to be found out.
        let alone = || self.listener_of(link.pool).is_none();
        if !kept.ready_waits || !settled || kept.real && !kept.refused && !alone() {
            return;
        }
        self.backend(id).expect("looked up above").kept.ready_waits = false;
        let Some(client) = self.client_of(id) else { return };
        self.wait_for_listener(client, id);
    }

    /// The client's ReadyForQuery waits until nothing that it could know of is on its way.
    fn wait_for_listener(&mut self, client: ClientId, id: BackendId) {
        let Some(link) = self.backend(id) else { return };
        let (pool, asks) = (link.pool, link.kept.hears || link.kept.notified);
        match if asks { self.listener_of(pool) } else { None } {
            Some(slot) => {
                self.listener(slot).expect("found above").waiting.push(Wait::Ready(client, id));
                self.drive(slot);
            }
            None => self.say_ready(client, id),
        }
    }

    /// Nothing is on its way any more: the client's transaction is over for it, too.
    pub(super) fn say_ready(&mut self, client: ClientId, id: BackendId) {
        if self.client_of(id) != Some(client) {
            return;
        }
        let link = self.backend(id).expect("looked up above");
        link.kept.ready_held = false;
        link.kept.notified = false;
        let connection = self.client(client).expect("a linked client is there").connection;
        self.tell_held(client);
        self.write(connection, 8, |writer| {
            writer.ready_for_query(TransactionStatus::Idle).expect("the room was asked for");
        });
        self.resume_client(client);
        if self.client_of(id) == Some(client) {
            self.release_if_whole(id);
        }
    }

    /// A notification that a listener has heard.
    pub(super) fn on_heard(&mut self, slot: u32, message: &Slice) {
        let Ok(notification) = reader::notification_response(message) else { return };
        if notification.channel == MARK_CHANNEL.as_bytes() {
            return self.on_mark(notification.payload);
        }
        let mut ears = std::mem::take(&mut self.ears);
        ears.clear();
        if let Some(listener) = self.listener(slot) {
            ears.extend(listener.channels.listeners(notification.channel));
        }
        for &client in &ears {
            self.tell(client, notification.process_id, message);
        }
        self.ears = ears;
    }

    /// A notification for one client.
    fn tell(&mut self, id: ClientId, process_id: u32, message: &Slice) {
        let Ok(notification) = reader::notification_response(message) else { return };
        let Self { clients, backends, .. } = self;
        let Some(client) = clients.get_mut(id.index, id.generation) else { return };
        let Some(hearing) = &mut client.hears else { return };
        if let Some(moving) = &hearing.moving
            && !moving.passed
            && moving.names.iter().any(|name| **name == *notification.channel)
        {
            // Its backend has told it, or will.
            return;
        }
        let link = match client.state {
            ClientState::Linked(backend) => backends.get(backend.index, backend.generation),
            _ => None,
        };
        let now = match (&client.state, link) {
            (ClientState::Ready | ClientState::Waiting(_), _) => true,
            (_, Some(link)) => {
                !link.pipeline.is_client_busy()
                    && link.pipeline.status() == TransactionStatus::Idle
                    && link.framer.at_boundary()
                    && !link.kept.ready_held
            }
            _ => false,
        };
        let own = link.is_some_and(|link| link.process_id == process_id && link.kept.notified);
        let now = now && !hearing.waits_for_move();
        let connection = client.connection;
        let mut room = [0; 16];
        let head = &mut room[..HEAD_SIZE + 4];
        head.copy_from_slice(&message[..HEAD_SIZE + 4]);
        if own {
            let given = self.process_id(id);
            head[HEAD_SIZE..].copy_from_slice(&given.to_be_bytes());
        }
        let rest = message.part(head.len(), message.len());
        let hearing = self.client(id).and_then(|client| client.hears.as_mut()).expect("looked at above");
        if now && hearing.held.is_empty() {
            if own {
                let Some(head) = self.io.scratch().copy(head) else { return self.io.abort(connection) };
                self.io.send(connection, head);
                self.io.send(connection, rest);
            } else {
                self.io.send(connection, message.clone());
            }
            if self.io.queued(connection).0 > HELD_MAX {
                self.fail(id, &Fault::ListenerSlow);
            }
            return;
        }
        hearing.held_size += message.len();
        let mut room = hearing.held_size <= HELD_MAX;
        let mut whole = std::mem::take(&mut self.sql);
        whole.clear();
        whole.extend_from_slice(head);
        whole.extend_from_slice(&rest);
        let Self { clients, io, .. } = self;
        let client = clients.get_mut(id.index, id.generation).expect("looked at above");
        let held = &mut client.hears.as_mut().expect("looked at above").held;
        if held.last_mut().is_none_or(|last| last.add_spare(io.arena(), &whole).is_err()) {
            let mut next = Stash::default();
            room &= next.add_spare(io.arena(), &whole).is_ok();
            held.push(next);
        }
        self.sql = whole;
        if !room {
            self.fail(id, &Fault::ListenerSlow);
        } else if now {
            self.tell_held(id);
        }
    }

    /// What has waited for the end of the client's transaction.
    pub(in crate::shard) fn tell_held(&mut self, id: ClientId) {
        let Some(client) = self.client(id) else { return };
        let connection = client.connection;
        let Some(hearing) = &mut client.hears else { return };
        if hearing.held.is_empty() || hearing.waits_for_move() {
            return;
        }
        hearing.held_size = 0;
        let slot = hearing.listener;
        for held in std::mem::take(&mut hearing.held) {
            let Self { listeners, io, .. } = self;
            let listener = listeners.get(slot as usize).and_then(Option::as_ref);
            // What it has unlistened meanwhile it does not want to hear any more.
            let wants = |message: &[u8]| match (reader::notification_response(message), listener) {
                (Ok(notification), Some(listener)) => listener.channels.hears(id, notification.channel),
                _ => false,
            };
            let told = io.scratch().write(held.len(), |free| {
                let (mut rest, mut size) = (held.bytes(), 0);
                while let Some(length) = rest.get(1..HEAD_SIZE).and_then(|length| length.try_into().ok()) {
                    let end = (u32::from_be_bytes(length) as usize + 1).min(rest.len());
                    if wants(&rest[..end]) {
                        free[size..size + end].copy_from_slice(&rest[..end]);
                        size += end;
                    }
                    rest = &rest[end..];
                }
                size
            });
            match told {
                Some(bytes) if bytes.is_empty() => {}
                Some(bytes) => self.io.send(connection, bytes),
                None => return self.io.abort(connection),
            }
        }
    }

    /// The linked backend's transaction is over for its client.
    pub(in crate::shard) fn tell_held_by(&mut self, id: BackendId) {
        let Some(link) = self.backends.get(id.index, id.generation) else { return };
        if link.kept.hears
            && !link.kept.ready_held
            && !link.pipeline.is_client_busy()
            && let Some(client) = self.client_of(id)
        {
            self.tell_held(client);
        }
    }
}
