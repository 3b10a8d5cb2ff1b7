//! The outside: sockets, the clock, the doorbell. glommio and io-uring are named only here and in `process`.
//!
//! [`Transport`] is the seam: the shard is written against it, and the ring and the tests' in-memory pipes implement
//! it. It knows nothing of messages. Owned by one shard.

mod buffers;
mod bulk;
pub mod descriptors;
pub mod doorbell;
pub mod parcel;
pub mod park;
pub mod resolve;
pub mod ring;
pub mod tls;

use std::os::fd::OwnedFd;
use std::time::Instant;

pub use parcel::Parcel;

use crate::ids::{ConnectionId, DoorId};
use crate::memory::{Arena, Scratch, Slice};

/// Whose sockets take from which buffers: clients can never take the chunks that backends need to answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Group {
    /// Connections from applications.
    Client,
    /// Connections to servers.
    Backend,
}

/// Where to connect to.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum SocketAddress {
    /// A resolved TCP address.
    Tcp(std::net::SocketAddr),
    /// A Unix socket's file.
    Unix(std::path::PathBuf),
}

/// An error number of the kernel.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Errno(pub i32);

impl std::fmt::Display for Errno {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let text = std::io::Error::from_raw_os_error(self.0).to_string();
        formatter.write_str(text.split(" (os error").next().unwrap_or(&text))
    }
}

/// What happened outside.
pub enum Event {
    /// A client has connected; nothing is received until [`Transport::receive`].
    Accepted {
        /// Its connection.
        connection: ConnectionId,
        /// Whether it came over a Unix socket.
        local: bool,
    },
    /// A connection of ours is made, or not. In the latter case it is closed already.
    Connected {
        /// The connection.
        connection: ConnectionId,
        /// Why not.
        error: Option<Errno>,
    },
    /// Bytes came.
    Received {
        /// From where.
        connection: ConnectionId,
        /// At least one byte.
        bytes: Slice,
    },
    /// The peer has closed its side, or the connection broke. Nothing more will come; the owner closes it.
    Ended {
        /// The connection.
        connection: ConnectionId,
        /// `None`: closed in an orderly way.
        error: Option<Errno>,
    },
    /// A connection is ready to go to another shard (see [`Transport::detach`]); its id is not valid any more.
    Detached {
        /// Which it was.
        connection: ConnectionId,
        /// As set by [`Transport::set_owner`].
        owner: u64,
        /// The connection.
        parcel: Parcel,
    },
    /// All that was queued is sent (see [`Transport::notify_drained`]).
    Drained {
        /// The connection.
        connection: ConnectionId,
    },
    /// A handshake that [`Transport::secure`] began is over.
    Secured {
        /// The connection; what is received from now on was encrypted.
        connection: ConnectionId,
        /// Why it failed; then its owner closes it.
        error: Option<String>,
    },
    /// A host name was looked up.
    Resolved {
        /// As given to [`Transport::resolve`].
        ticket: u64,
        /// The addresses, or why there are none.
        addresses: Result<Vec<std::net::SocketAddr>, String>,
    },
    /// The doorbell rang: look into the mailbox.
    Rung,
    /// Time has passed: look at the deadlines.
    Tick,
}

/// How to close.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Close {
    /// What is queued is dropped.
    Now,
    /// What is queued is sent first, for as long as the peer takes it within a few seconds.
    Flushed,
}

/// Sockets and time, as the shard sees them.
pub trait Transport {
    /// The shard's chunks.
    fn arena(&self) -> &Arena;

    /// Where messages of our own are written.
    fn scratch(&mut self) -> &mut Scratch;

    /// The time of this turn; it stands still between two waits.
    fn now(&self) -> Instant;

    /// Whom events of this connection are for; opaque here.
    fn set_owner(&mut self, connection: ConnectionId, owner: u64);

    /// As set; `None` when the connection is gone.
    fn owner(&self, connection: ConnectionId) -> Option<u64>;

    /// Queues bytes; they leave at the end of the turn, together with what else was queued for this peer.
    fn send(&mut self, connection: ConnectionId, bytes: Slice);

    /// Bytes and pieces queued and not yet sent.
    fn queued(&self, connection: ConnectionId) -> (usize, usize);

    /// A number that changes when the peer takes some of what it was sent. Costs a system call.
    fn taken(&self, connection: ConnectionId) -> u64;

    /// Whether clients have something to say and there is no chunk to receive it into.
    fn is_starved(&self) -> bool;

    /// Asks for one [`Event::Drained`] when nothing is queued any more.
    fn notify_drained(&mut self, connection: ConnectionId);

    /// Gives a connection up whose peer can no longer be sent a whole stream: its owner hears [`Event::Ended`].
    fn abort(&mut self, connection: ConnectionId);

    /// Starts or stops receiving. After a stop, what the kernel had received already may still arrive.
    fn receive(&mut self, connection: ConnectionId, on: bool);

    /// Begins to connect. Errors: no socket to be had.
    fn connect(&mut self, address: &SocketAddress) -> Result<ConnectionId, Errno>;

    /// Takes a connection out, so that another shard may have it: nothing more is received, what is queued is sent, then
    /// [`Event::Detached`] brings it with all that had come. If it ends before, there is [`Event::Ended`] as ever; until
    /// then it may be closed as ever.
    fn detach(&mut self, connection: ConnectionId);

    /// Takes in what another shard's transport has let go. Nothing is received until [`Transport::receive`]. `None`: there
    /// is no slot, and the connection is closed.
    fn adopt(&mut self, parcel: Parcel, group: Group) -> Option<ConnectionId>;

    /// Ends a connection; its id is not valid any more.
    fn close(&mut self, connection: ConnectionId, how: Close);

    /// The peer's address, for people.
    fn peer(&self, connection: ConnectionId) -> String;

    /// Our own end's address, for people; empty where there is none to tell.
    fn local(&self, _connection: ConnectionId) -> String {
        String::new()
    }

    /// Whether the peer is on this machine: a Unix socket or a loopback address.
    fn is_local(&self, connection: ConnectionId) -> bool;

    /// The peer's address. `None`: a Unix socket, or it is gone.
    fn address(&self, connection: ConnectionId) -> Option<std::net::IpAddr>;

    /// The name of the user of this machine who runs the peer. `None`: not over a Unix socket, or nobody by a name.
    fn peer_user(&self, connection: ConnectionId) -> Option<String>;

    /// Whether the peer came over a Unix socket, and is run by root or by the user who runs this process.
    fn is_run_by_owner(&self, _connection: ConnectionId) -> bool {
        false
    }

    /// Accepts clients on `socket`, which must listen. `door` names it from then on; several sockets may have one name. Only
    /// for transports that have sockets.
    fn listen(&mut self, _socket: OwnedFd, _local: bool, _door: DoorId) {}

    /// Accepts no more clients at a door. Those that were accepted already may still be told of.
    fn close_door(&mut self, _door: DoorId) {}

    /// Whether a client may still come by this door.
    fn is_open(&self, _door: DoorId) -> bool {
        false
    }

    /// Accepts no more clients.
    fn stop_listening(&mut self);

    /// Has a host name looked up away from the shard; [`Event::Resolved`] brings the answer under `ticket`.
    fn resolve(&mut self, host: &str, port: u16, ticket: u64);

    /// Begins TLS on a connection on which all that was agreed on in plaintext has been said; [`Event::Secured`] says how
    /// that ended. Only for transports that have it.
    fn secure(&mut self, _connection: ConnectionId, _how: tls::Secure) {
        unreachable!("this transport has no TLS, and none is configured for it");
    }

    /// What the handshake has found out. `None`: the connection is not encrypted.
    fn facts(&self, _connection: ConnectionId) -> Option<&tls::Facts> {
        None
    }
}
