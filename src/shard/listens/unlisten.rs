//! What a client says that hears by a listener and wants to hear of something else, or of nothing: UNLISTEN, and texts that
//! may say so.

use crate::ids::{BackendId, ClientId};
use crate::io::Transport;
use crate::protocol::TransactionStatus;
use crate::session::scanner::{self, Effects, Said};

use super::super::Shard;
use super::{MARK_REAL, write_name};

/// UNLISTENs of one transaction that are remembered; more are without effect.
const UNLISTENED_MAX: usize = 256;

impl<T: Transport> Shard<T> {
    /// A text that may change on what the client listens is about to go to a backend that knows nothing of that: so that
    /// the server can say afterwards what is true, it listens on the same first. Inside a transaction it would listen only
    /// at the end; there, what the text says is remembered.
    pub(in crate::shard) fn make_real(&mut self, id: ClientId, backend: BackendId) {
        let Some(link) = self.backend(backend) else { return };
        if !std::mem::take(&mut link.kept.wants_real) || link.kept.real {
            return;
        }
        if link.pipeline.is_busy() || link.pipeline.is_unsynced() || link.pipeline.status() != TransactionStatus::Idle {
            return;
        }
        let Some(slot) = self.client(id).and_then(|client| client.hears.as_ref()).map(|hearing| hearing.listener)
        else {
            return;
        };
        let mut sql = std::mem::take(&mut self.sql);
        sql.clear();
        if let Some(listener) = self.listener(slot) {
            for name in listener.channels.names_of(id) {
                sql.extend_from_slice(b"LISTEN ");
                write_name(name, &mut sql);
            }
        }
        if !sql.is_empty()
            && self.ask_own(backend, &sql, MARK_REAL)
            && let Some(link) = self.backend(backend)
        {
            link.kept.real = true;
        }
        self.sql = sql;
    }

    /// The client's own UNLISTEN inside a transaction has been committed, as far as can be told.
    pub(in crate::shard) fn apply_unlistened(&mut self, id: BackendId) {
        let Some(link) = self.backend(id) else { return };
        let unlistened = std::mem::take(&mut link.kept.unlistened);
        if unlistened.is_empty() {
            return;
        }
        let Some(client) = self.client_of(id) else { return };
        let Some(slot) = self.client(client).and_then(|client| client.hears.as_ref()).map(|hearing| hearing.listener)
        else {
            return;
        };
        if let Some(listener) = self.listener(slot) {
            for name in unlistened {
                match name {
                    Some(name) => listener.channels.unlisten(client, &name),
                    None => listener.channels.leave(client),
                }
            }
        }
        self.forget_hearing_if_none(client);
        self.drive(slot);
    }

    /// What the linked client says of channels in a transaction.
    pub(in crate::shard) fn note_listens(
        &mut self,
        backend: BackendId,
        effects: Effects,
        text: &[u8],
        backslashes: bool,
    ) {
        let Some(link) = self.backend(backend) else { return };
        link.kept.notified |= effects.has(Effects::NOTIFY.and(Effects::OPAQUE));
        if !link.kept.hears || !effects.has(Effects::LISTEN.and(Effects::OPAQUE)) {
            return;
        }
        link.kept.wants_real = true;
        link.kept.unsettled = true;
        let inside =
            link.pipeline.is_busy() || link.pipeline.is_unsynced() || link.pipeline.status() != TransactionStatus::Idle;
        if !inside || link.kept.real {
            return;
        }
        for said in scanner::channels(text, backslashes).into_iter().flatten() {
            let Some(link) = self.backend(backend) else { return };
            let name = match said {
                Said::Listen(name) => {
                    self.forget_unlistened(backend, &name);
                    continue;
                }
                Said::Unlisten(name) => Some(name),
                Said::UnlistenAll => None,
            };
            // What is there already, or says nothing new, need not grow the list.
            let known = link.kept.unlistened.contains(&name) || link.kept.unlistened.len() >= UNLISTENED_MAX;
            if !known {
                link.kept.unlistened.push(name);
            }
        }
    }

    /// In the transaction in which it has said UNLISTEN of a channel, the client says LISTEN of it again.
    fn forget_unlistened(&mut self, id: BackendId, name: &[u8]) {
        let Some(link) = self.backend(id) else { return };
        let mut unlistened = std::mem::take(&mut link.kept.unlistened);
        if unlistened.iter().any(Option::is_none) {
            // All but this one.
            let client = self.client_of(id);
            let hearing = client.and_then(|client| self.client(client)).and_then(|client| client.hears.as_ref());
            let listener = hearing.map(|hearing| hearing.listener).and_then(|slot| self.listener(slot));
            let names = listener.zip(client).map(|(listener, client)| listener.channels.names_of(client));
            unlistened = names.into_iter().flatten().map(|name| Some(name.into())).collect();
        }
        unlistened.retain(|other| other.as_deref() != Some(name));
        if let Some(link) = self.backend(id) {
            link.kept.unlistened = unlistened;
        }
    }
}
