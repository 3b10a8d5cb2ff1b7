//! PostgreSQL's frontend/backend protocol, versions 3.0 and 3.2: slices in, slices out.
//!
//! Nothing here owns a buffer, reads a clock or knows a socket, and nothing that runs per query allocates.
//! Who only forwards uses [`framer`] alone, which reads five bytes of a message; who looks into one asks [`reader`],
//! and who says something of QCP's own writes it with [`writer`]. The packets before the first tagged message are in
//! [`startup`]. What a peer did wrong is a [`Malformed`], never a panic: each decoder is attacked in `tests/fuzz`.
//!
//! Convention: a *message* or a *prefix* is a slice that begins at the message's tag, and ranges count from there.
//!
//! ```text
//! | tag 1 | length 4, big-endian, counts itself | body: length - 4 |
//! |<---------------------- size = 1 + length --------------------->|
//! ```
#![forbid(unsafe_code)]

pub mod error;
pub mod framer;
#[cfg(any(test, feature = "fuzz"))]
pub mod properties;
pub mod reader;
pub mod startup;
pub mod tag;
pub mod trace;
pub mod writer;

pub use error::{ErrorFields, Malformed, SqlState};
pub use framer::{Framer, Step};
pub use tag::{Direction, TransactionStatus};
pub use writer::{Full, Writer};

/// The tag and the length: what every message has.
pub const HEAD_SIZE: usize = 5;
