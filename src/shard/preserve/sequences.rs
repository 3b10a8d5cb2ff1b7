//! Whose last values of sequences a backend has: what `currval` and `lastval` would tell.
//!
//! Only where somebody asks for them does it matter, so only from then on do clients keep their backends for them. What was
//! there before is nobody else's to see: who asks is told that there is no value in this session, as the server does,
//! rather than another client's.

use crate::ids::{BackendId, ClientId};
use crate::io::Transport;
use crate::protocol::TransactionStatus;
use crate::session::scanner::Effects;

use super::super::mailbox::Mail;
use super::super::{Shard, Unnamed};

const MARK_SEQUENCES: u32 = 14;

/// Who was the last to use sequences on a backend.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub(in crate::shard) enum LastValues {
    #[default]
    Nobodys,
    Of(ClientId),
    /// Somebody who is not known here.
    Somebodys,
}

impl LastValues {
    /// The client is about to run something with these effects. `true`: it asks, and what is there is not its own.
    #[inline]
    pub(super) fn note(&mut self, client: ClientId, effects: Effects) -> bool {
        let strange = !matches!(*self, LastValues::Nobodys) && *self != LastValues::Of(client);
        if effects.has(Effects::SEQUENCE) && !effects.has(Effects::OPAQUE) {
            *self = LastValues::Of(client);
        } else if effects.has(Effects::OPAQUE.and(Effects::EXECUTES)) {
            // It may have used one, or not: then what another has left is still there.
            *self = if strange { LastValues::Somebodys } else { LastValues::Of(client) };
        }
        strange && effects.has(Effects::LAST_VALUE)
    }
}

impl<T: Transport> Shard<T> {
    /// The first client has asked for a last value in a pool of this database.
    pub(super) fn tell_last_values(&mut self, database: &str) {
        self.pools.ask_last_values(database);
        self.tell_others(|| Mail::LastValues(database.into()));
    }

    /// A text that asks for last values is about to go to a backend that may have another client's: they are dropped
    /// first. Within a pipeline that is not possible.
    pub(in crate::shard) fn drop_last_values(&mut self, id: ClientId, backend: BackendId) {
        let Some(link) = self.backend(backend) else { return };
        if !std::mem::take(&mut link.kept.strange_values) {
            return;
        }
        let status = link.pipeline.status();
        let free = !link.pipeline.is_client_busy()
            && !link.pipeline.is_unsynced()
            && matches!(status, TransactionStatus::Idle | TransactionStatus::InTransaction)
            && link.unnamed != Unnamed::Parsed;
        if free
            && self.ask_own(backend, b"DISCARD SEQUENCES", MARK_SEQUENCES)
            && let Some(link) = self.backend(backend)
        {
            link.last_values = LastValues::Of(id);
        }
    }
}
