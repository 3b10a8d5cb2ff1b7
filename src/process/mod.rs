//! The process around the shards: what it needs from the kernel, its log, its listening sockets, its start and end.
#![forbid(unsafe_code)]

pub mod limits;
pub mod listeners;
pub mod log;

use std::fmt;
use std::process::ExitCode;

use crate::config::Config;

/// Why the pooler did not start, or stopped.
#[derive(Debug)]
pub enum Error {
    /// Stands here until the shards do.
    NotBuiltYet,
}

impl std::error::Error for Error {}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::NotBuiltYet => write!(f, "not built yet"),
        }
    }
}

/// The number of shards: what the command line says, or else the configuration, or else the cores this process may run
/// on.
pub fn cores(command_line: Option<usize>, config: &Config) -> usize {
    let available = || core_affinity::get_core_ids().map_or(1, |cores| cores.len().max(1));
    command_line.or(config.cores).unwrap_or_else(available)
}

/// Runs the pooler until it is told to stop.
pub fn run(_config: Config, _cores: usize) -> Result<(), Error> {
    Err(Error::NotBuiltYet)
}

/// Logs in to every server and prints one line for each; success if all is well.
pub fn check(_config: &Config) -> ExitCode {
    eprintln!("qcp: {}", Error::NotBuiltYet);
    ExitCode::FAILURE
}
