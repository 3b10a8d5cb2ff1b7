//! Talking to a running pooler: what may be asked, what is answered, and the Unix socket between the two programs.
//!
//! `qcp` answers on a plain thread of its own, which no core owns: it asks the shards by mailbox and never touches what
//! is theirs. `qcp-ctrl` is the other end.
#![forbid(unsafe_code)]

pub mod client;
pub mod command;
pub mod console;
pub mod report;
pub mod socket;
pub mod table;
pub mod top;
pub mod wire;
