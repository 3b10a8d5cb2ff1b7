//! End to end: qcp as a process, in front of a real PostgreSQL, with the drivers that people use.

#[path = "../support/mod.rs"]
mod support;
