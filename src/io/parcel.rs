//! A socket on its way from one shard to another: its descriptor, and copies of what has come over it. Chunks never change
//! shard, so nothing in here is one.
//!
//! Invariant: who drops a parcel closes its socket; so one that lies in the mailbox of a shard that has ended is no leak.

use std::any::Any;

/// See [`super::Transport::detach`].
pub struct Parcel {
    /// What the transport that packed it needs to go on; only a transport of the same kind can. Dropped, it closes.
    pub socket: Box<dyn Any + Send>,
    /// Received and not yet told. Whoever adopts the parcel is told.
    pub received: Vec<u8>,
    /// Of a transport over the transport (TLS), by that one.
    pub layer: Option<Box<dyn Any + Send>>,
}
