//! Names for the things a shard owns. Distinct indexes are distinct types, so that a client's slot can never be
//! used as a backend's.

/// One core with all it owns, counted from 0.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct ShardId(pub u16);

macro_rules! generational {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
        pub struct $name {
            /// Slot in the shard's table.
            pub index: u32,
            /// Raised each time the slot is reused, so that what was meant for the one before is recognised.
            pub generation: u32,
        }
    };
}

generational! {
    /// A connection from an application, on the shard that owns it.
    ClientId
}
generational! {
    /// A connection to PostgreSQL, on the shard that owns it.
    BackendId
}
generational! {
    /// A socket of the shard's transport.
    ConnectionId
}

/// An address that clients come by, as all shards call it. Never used twice in the life of the process.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct DoorId(pub u32);

/// A shard's part of a pool (one server, database and user), an index into the shard's table of pools.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct PoolId(pub u32);
