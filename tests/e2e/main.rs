//! End to end: qcp as a process, in front of a real PostgreSQL, with the drivers that people use.
//!
//! Each test has a qcp and a database of its own, so that they run side by side and count only their own backends.

#[path = "../support/mod.rs"]
mod support;

mod access;
mod auth;
mod console;
mod defaults;
mod drivers;
mod gone;
mod keys;
mod kinds;
mod lifecycle;
mod limits;
mod listen;
mod load;
mod logins;
mod memory;
mod methods;
mod modes;
mod names;
mod orders;
mod psql;
mod queue;
mod refused;
mod reload;
mod roles;
mod routes;
mod servers;
mod shards;
mod slow;
mod takeover;
mod timeouts;
mod tls;
mod two_phase;
