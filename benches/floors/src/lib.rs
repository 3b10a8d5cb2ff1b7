//! What the four programs of the harness share.
//!
//! Everything here runs on loopback, for a bounded time, against peers that behave: an impossible answer ends the
//! program with a message instead of being handled, because a floor must not pay for what a pooler has to.

pub mod arguments;
pub mod dial;
pub mod epoll;
pub mod ring;
pub mod scanner;
pub mod switchboard;
pub mod watch;
pub mod wire;
