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

/// How hard QCP looks for what changed a session's state behind its text: in functions, triggers, DO blocks.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Transparency {
    /// Only what the text says, and DO and CALL.
    Fast,
    /// Also behind each text's first executions, and now and then after that.
    #[default]
    Balanced,
    /// Behind every transaction.
    Strict,
}

pub mod channels;
pub mod fault;
pub mod parameters;
pub mod pipeline;
pub mod prepared;
pub mod scanner;
pub mod suspects;
pub mod timeouts;
