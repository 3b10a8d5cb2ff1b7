//! Messages to a shard: from other shards and from the control thread. A lock-free queue and a doorbell; nothing is
//! shared but what is handed over.

use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use crate::ids::{ClientId, DoorId, ShardId};
use crate::io::doorbell::Doorbell;
use crate::pool::Role;
use crate::pool::budget::{Standing, Waits};

use super::Server;
use super::budget::Given;
use super::console::Told;
use super::orders::Order;
use super::placement::Arrival;
use super::pools::Key;
use super::reload::Reload;
use super::report::ShardReport;
use super::stats::ShardMetrics;

/// What a shard can be told.
pub enum Mail {
    /// Let transactions finish, then end; at the latest after this time.
    Quit(Duration),
    /// Accept clients on these too. The sender is dropped when they are known to the shard.
    Listen(Vec<Listener>, Sender<()>),
    /// Accept no more by these doors. The sender is dropped when nobody can come by them any more.
    Close(Vec<DoorId>, Sender<()>),
    /// Clients come to another process from now on. Serve those that are here, and send off those that do nothing; after this
    /// time also whoever is between two transactions.
    SeeOff(Duration),
    /// The configuration has changed. The sender is dropped when that is done.
    Reload(Box<Reload>, Sender<()>),
    /// What somebody at the control socket wants done. The sender is dropped when it is.
    Order(Order, Sender<()>),
    /// Say what there is.
    Report(Sender<ShardReport>),
    /// Say what was counted.
    Metrics(Sender<ShardMetrics>),
    /// A cancel request that came to another shard.
    Cancel {
        /// The client's slot.
        slot: u32,
        /// As the request had it: 4 bytes, or more.
        secret: Vec<u8>,
    },
    /// A login from this address has failed at another shard.
    Failed(IpAddr),
    /// One has gone well, and took a failure back there.
    Succeeded(IpAddr),
    /// A client that is to live on the shard that reads this.
    Client(Box<Arrival>),
    /// Clients of this pool wait at shard `from`, and all its places are taken: is there one to spare, or a backend?
    Ask {
        /// The pool.
        key: Key,
        /// Who asks.
        from: ShardId,
        /// How long they wait; `None`: a login wants a place.
        waits: Option<Waits>,
        /// Whether a place without a backend is of use.
        can_open: bool,
        /// Counts the questions of this shard.
        round: u32,
    },
    /// The answer of a shard that has no backend of the pool at all, so that nobody waits for one that cannot come.
    Nothing {
        /// The pool.
        key: Key,
        /// Who answers.
        from: ShardId,
        /// That of the question.
        round: u32,
    },
    /// Places of a pool move to the shard that reads this.
    Give(Box<Given>),
    /// Clients of a pool wait for one of the backends that a server may have (`pool.max_backends`): is one idle?
    Room {
        /// Which server.
        server: Server,
        /// Who asks.
        from: ShardId,
        /// Which of its pools.
        serial: u32,
        /// How that stands.
        waits: Standing,
    },
    /// A server has said what it is, and it was news.
    Role {
        /// Which.
        server: Server,
        /// What it is.
        role: Role,
        /// When it was seen to become the primary, if it was.
        promoted: Option<Instant>,
    },
    /// A client has asked for the last value of a sequence, in a pool of this database.
    LastValues(Box<str>),
    /// A transaction changes functions, triggers or the like, so that texts may do what they did not; or it has ended.
    Change {
        /// Which of both.
        begins: bool,
    },
    /// What a client at the console is answered.
    Told(ClientId, Told),
    /// Close the client with this process id; whether there was one.
    KillClient(u32, Sender<bool>),
}

/// A socket on which a shard accepts clients.
pub struct Listener {
    /// It listens.
    pub socket: OwnedFd,
    /// Clients come over a Unix socket.
    pub local: bool,
    /// By which name it is closed.
    pub door: DoorId,
}

/// How to reach a shard, from any thread.
#[derive(Clone)]
pub struct Address {
    sender: Sender<Mail>,
    doorbell: Doorbell,
}

/// A shard's own end.
pub struct Mailbox {
    receiver: Receiver<Mail>,
    /// All shards, this one too, by their number.
    peers: Vec<Address>,
}

/// One address and one receiver for each doorbell.
pub fn mailboxes(doorbells: &[Doorbell]) -> (Vec<Address>, Vec<Mailbox>) {
    let (senders, receivers): (Vec<_>, Vec<_>) = doorbells.iter().map(|_| channel()).unzip();
    let pairs = senders.into_iter().zip(doorbells);
    let addresses: Vec<_> = pairs.map(|(sender, doorbell)| Address { sender, doorbell: doorbell.clone() }).collect();
    let mailboxes = receivers.into_iter().map(|receiver| Mailbox { receiver, peers: addresses.clone() }).collect();
    (addresses, mailboxes)
}

impl Address {
    /// Puts a message in and rings; `false` when the shard is gone.
    pub fn send(&self, mail: Mail) -> bool {
        let sent = self.sender.send(mail).is_ok();
        self.doorbell.ring();
        sent
    }
}

impl Mailbox {
    /// The next message.
    pub fn next(&self) -> Option<Mail> {
        self.receiver.try_recv().ok()
    }

    /// All shards but `own`.
    pub fn others(&self, own: ShardId) -> impl Iterator<Item = ShardId> + use<> {
        (0..self.peers.len() as u16).map(ShardId).filter(move |&shard| shard != own)
    }

    /// Sends to another shard; `false` when there is none of this number.
    pub fn send(&self, to: ShardId, mail: Mail) -> bool {
        self.peers.get(to.0 as usize).is_some_and(|peer| peer.send(mail))
    }
}

/// Which messages shards of this thread have read: what the simulation has reached. Not in what is shipped.
#[cfg(debug_assertions)]
pub mod reached {
    use std::cell::Cell;

    use super::Mail;

    /// Every kind of message but those of the console and of the process's sockets.
    pub const KINDS: [&str; 14] = [
        "Quit",
        "Reload",
        "Order",
        "Report",
        "Metrics",
        "Cancel",
        "Failed",
        "Succeeded",
        "Client",
        "Ask",
        "Nothing",
        "Give",
        "Role",
        "Room",
    ];

    thread_local! {
        static SEEN: Cell<[u64; KINDS.len()]> = const { Cell::new([0; KINDS.len()]) };
    }

    pub(in crate::shard) fn note(mail: &Mail) {
        let kind = match mail {
            Mail::Quit(_) => 0,
            Mail::Reload(..) => 1,
            Mail::Order(..) => 2,
            Mail::Report(_) => 3,
            Mail::Metrics(_) => 4,
            Mail::Cancel { .. } => 5,
            Mail::Failed(_) => 6,
            Mail::Succeeded(_) => 7,
            Mail::Client(_) => 8,
            Mail::Ask { .. } => 9,
            Mail::Nothing { .. } => 10,
            Mail::Give(_) => 11,
            Mail::Role { .. } => 12,
            Mail::Room { .. } => 13,
            // Of the console and of real sockets, which are not simulated.
            Mail::Told(..) | Mail::KillClient(..) | Mail::Listen(..) | Mail::Close(..) | Mail::SeeOff(_) => return,
            // Of kept sessions, which are not either.
            Mail::LastValues(_) | Mail::Change { .. } => return,
        };
        let mut seen = SEEN.get();
        seen[kind] += 1;
        SEEN.set(seen);
    }

    /// How often each kind was read since the last call.
    pub fn take() -> impl Iterator<Item = (&'static str, u64)> {
        KINDS.into_iter().zip(SEEN.take())
    }
}
