//! What is known of one connection, and how completions name it.

use std::os::fd::{AsRawFd, IntoRawFd, OwnedFd, RawFd};

use nix::sys::socket::SockaddrStorage;

use super::Ring;
use crate::ids::ConnectionId;
use crate::io::Group;
use crate::memory::Outbox;

pub(super) struct Connection {
    pub(super) socket: RawFd,
    pub(super) owner: u64,
    pub(super) outbox: Outbox,
    pub(super) group: Group,
    pub(super) local: bool,
    pub(super) receive: Receive,
    /// What the owner wants; `receive` is how far the kernel is with it.
    pub(super) wanted: bool,
    pub(super) sending: Sending,
    /// Bytes of a send that completes only if it fails; 0: the send in flight, if there is one, completes.
    pub(super) silent: u32,
    /// The socket was full at the last send.
    pub(super) full: bool,
    /// How the send in flight is looked at.
    pub(super) patience: Patience,
    pub(super) connecting: Option<Box<SockaddrStorage>>,
    /// Leaves for another shard; what has come since.
    #[allow(clippy::box_collection)] // One word in each slot.
    pub(super) detaching: Option<Box<Vec<u8>>>,
    /// What came along from another shard and is still to be told.
    #[allow(clippy::box_collection)]
    pub(super) early: Option<Box<Vec<u8>>>,
    /// A large answer is under way: receive one chunk at a time, as the reader takes it.
    pub(super) bulk: bool,
    /// Bytes received since something was last sent to this peer.
    pub(super) streamed: u32,
    /// Its receive of several chunks.
    pub(super) large: Option<u8>,
    /// The last receive of the stream brought little.
    pub(super) short: bool,
    /// The last receive left something in the socket.
    pub(super) left: bool,
    pub(super) dirty: bool,
    pub(super) notify: bool,
    pub(super) ended: bool,
    pub(super) closing: Closing,
    /// Operations in flight.
    pub(super) operations: u8,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Receive {
    Off,
    Armed,
    Cancelling,
    Starved,
    /// Waits for more to have come.
    Paced,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Sending {
    No,
    /// The first piece, or part of it.
    Piece,
    Vector(u16),
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Closing {
    No,
    Flushing,
    /// Cancelled what was in flight, waiting for it.
    Waiting,
    /// The close itself is in flight.
    Closed,
}

/// What is known of a send in flight.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Patience {
    /// It has not been seen yet.
    New,
    /// It was in flight when all connections were looked at for this time.
    Seen(u8),
    /// It is cancelled, so that what is left of it can be copied aside.
    Ending,
    /// What it sends has been copied aside already.
    Kept,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub(super) enum Operation {
    Accept,
    Connect,
    Receive,
    Send,
    Close,
    Cancel,
    Doorbell,
    Tick,
    Pace,
}

pub(super) const OPERATIONS: [Operation; 9] = [
    Operation::Accept,
    Operation::Connect,
    Operation::Receive,
    Operation::Send,
    Operation::Close,
    Operation::Cancel,
    Operation::Doorbell,
    Operation::Tick,
    Operation::Pace,
];

/// A completion carries operation (8 bits), generation (24) and index (32).
pub(super) fn user_data(operation: Operation, connection: ConnectionId) -> u64 {
    debug_assert!(connection.generation < 1 << 24);
    (operation as u64) << 56 | u64::from(connection.generation) << 32 | u64::from(connection.index)
}

/// The inverse of [`user_data`].
#[inline]
pub(super) fn unpack(data: u64) -> (Operation, ConnectionId) {
    let connection = ConnectionId { index: data as u32, generation: (data >> 32) as u32 & 0xff_ffff };
    (OPERATIONS[(data >> 56) as usize], connection)
}

pub(super) const NOBODY: ConnectionId = ConnectionId { index: 0, generation: 0 };

impl Ring {
    pub(super) fn insert(&mut self, socket: OwnedFd, group: Group, local: bool) -> Result<ConnectionId, OwnedFd> {
        let connection = Connection {
            socket: socket.as_raw_fd(),
            owner: 0,
            outbox: Outbox::default(),
            group,
            local,
            receive: Receive::Off,
            wanted: false,
            sending: Sending::No,
            silent: 0,
            full: false,
            patience: Patience::New,
            connecting: None,
            detaching: None,
            early: None,
            bulk: false,
            streamed: 0,
            large: None,
            short: false,
            left: false,
            dirty: false,
            notify: false,
            ended: false,
            closing: Closing::No,
            operations: 0,
        };
        match self.connections.insert(connection) {
            Ok((index, generation)) => {
                // From here on the slot owns the descriptor; the close operation ends it.
                let _ = socket.into_raw_fd();
                Ok(ConnectionId { index, generation })
            }
            Err(_) => Err(socket),
        }
    }
}
