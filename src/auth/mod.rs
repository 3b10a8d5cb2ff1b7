//! Who a client is, and who QCP is to a server: secrets, the exchanges that prove them, and the files that say who may
//! come in how.
//!
//! Pure: no socket, no clock, no random number; what an exchange needs of these comes in as an argument. Nothing here
//! writes a secret to a log, and what holds one wipes it when it is dropped.
#![forbid(unsafe_code)]

pub mod channel;
pub mod console;
pub mod hba;
pub mod incoming;
pub mod limiter;
pub mod md5;
pub mod outgoing;
#[cfg(any(test, feature = "fuzz"))]
pub mod properties;
pub mod proxy;
pub mod query;
pub mod scram;
pub mod secrets;
pub mod settings;
pub mod userlist;

#[cfg(test)]
mod exchange_tests;
