//! What a session means: pure decisions about messages, no socket, no clock.
#![forbid(unsafe_code)]

/// When a client's backend goes back to its pool.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum RelayMode {
    /// When the client leaves.
    Session,
    /// When the server's ReadyForQuery says Idle, and only then.
    #[default]
    Smart,
    /// As `Smart`; a transaction that spans queries is rolled back with an error.
    Statement,
}

pub mod fault;
pub mod parameters;
pub mod pipeline;
pub mod prepared;
