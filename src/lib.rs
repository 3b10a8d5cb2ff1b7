#![doc = include_str!("ARCHITECTURE.md")]

pub mod auth;
pub mod config;
pub mod control;
pub mod ids;
pub mod import;
pub mod io;
pub mod memory;
pub mod pool;
pub mod process;
pub mod protocol;
pub mod session;
pub mod shard;
