//! What is going to happen, and in which order: the earliest first, and among what happens at one time the seed decides.

use qcp::ids::ConnectionId;
use qcp::io::SocketAddress;
use qcp::shard::orders::Order;

pub enum Action {
    /// The application connects, or does the next thing.
    Act(usize),
    /// The rest of a message that an application held back.
    Release(usize),
    Deliver(usize, ConnectionId),
    Drain(usize, ConnectionId),
    Connect(usize, ConnectionId, SocketAddress),
    Resolve(usize, u64, u16),
    Linger(usize, ConnectionId),
    /// The shard has given the connection up, and hears so.
    End(usize, ConnectionId),
    /// The connection leaves its shard.
    Depart(usize, ConnectionId),
    Rung(usize),
    /// With its number: one that was brought forward does not come.
    Tick(usize, u64),
    Process(usize),
    Alarm(usize, u64),
    Outage,
    /// The administrator does something, or does not.
    Administrate,
    /// Takes an order back.
    Order(Order),
    Quit,
}

pub struct Plan {
    pub at: u64,
    /// Among what happens at one time, the seed decides.
    pub order: u64,
    pub action: Action,
}

impl PartialEq for Plan {
    fn eq(&self, other: &Self) -> bool {
        (self.at, self.order) == (other.at, other.order)
    }
}

impl Eq for Plan {}

impl PartialOrd for Plan {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Plan {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at, self.order).cmp(&(other.at, other.order))
    }
}
