//! Owned bytes: one arena per shard, taken once at start, and the tables of fixed size beside it.
//!
//! The home of `unsafe`. Invariant: bytes that someone can see through a [`Slice`] are never written again while the
//! slice lives; bytes that the kernel may write belong to a [`Chunk`] of which nobody holds a slice.

pub mod arena;
pub mod block;
pub mod outbox;
pub mod scratch;
pub mod slab;
pub mod stash;

pub use arena::{Arena, Chunk, Slice};
pub use block::Block;
pub use outbox::{Nodes, Outbox, Piece};
pub use scratch::Scratch;
pub use slab::Slab;
pub use stash::Stash;
