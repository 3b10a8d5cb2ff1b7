//! The message types of both directions: tag, name and the lengths that are allowed, in one table each.

/// Who sends. The same tag means different things in the two directions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Direction {
    /// From the client towards the server.
    Frontend,
    /// From the server towards the client.
    Backend,
}

impl Direction {
    /// The name of the message type, as the manual spells it.
    pub fn message_name(self, tag: u8) -> Option<&'static str> {
        match self {
            Direction::Frontend => frontend::name(tag),
            Direction::Backend => backend::name(tag),
        }
    }

    /// The lengths that a message of this type may have; `None` if there is no such type.
    #[inline]
    pub fn lengths(self, tag: u8) -> Option<Lengths> {
        let lengths = match self {
            Direction::Frontend => &frontend::LENGTHS,
            Direction::Backend => &backend::LENGTHS,
        };
        let allowed = lengths[tag as usize];
        (allowed.max > 0).then_some(allowed)
    }
}

/// The bounds, both included, of a message's length field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lengths {
    pub min: u32,
    pub max: u32,
}

/// PostgreSQL's `PQ_SMALL_MESSAGE_LIMIT`: what it takes from a client where no text or data is expected.
pub const SMALL_LENGTH_MAX: u32 = 10_000;

/// PostgreSQL's `PQ_LARGE_MESSAGE_LIMIT`, one byte below what it can allocate at once.
pub const LARGE_LENGTH_MAX: u32 = 0x3fff_fffe;

/// PostgreSQL's `PG_MAX_AUTH_TOKEN_LENGTH`.
pub const PASSWORD_LENGTH_MAX: u32 = 65_535;

/// A server builds a body in a buffer of at most 1 GB and counts the length field besides.
pub const BACKEND_LENGTH_MAX: u32 = 0x3fff_ffff + 4;

/// The bounds, both included, of a secret key: four bytes in 3.0; "the maximum length is 256 bytes" in 3.2
/// (Message Formats, BackendKeyData).
pub const KEY_SIZE_MIN: usize = 4;
pub const KEY_SIZE_MAX: usize = 256;

/// Writes the constants, `name` and `LENGTHS` of one direction from its table.
macro_rules! message_types {
    ($($constant:ident = $tag:literal $name:ident $min:tt..=$max:expr;)*) => {
        $(pub const $constant: u8 = $tag;)*

        pub(super) fn name(tag: u8) -> Option<&'static str> {
            match tag {
                $($constant => Some(stringify!($name)),)*
                _ => None,
            }
        }

        /// Indexed by tag; a tag that does not exist has the maximum 0.
        pub(super) static LENGTHS: [Lengths; 256] = {
            let mut lengths = [Lengths { min: 0, max: 0 }; 256];
            $(lengths[$constant as usize] = Lengths { min: $min, max: $max };)*
            lengths
        };
    };
}

/// What clients send. The limits are those of PostgreSQL's `SocketBackend`; a body of the wrong make-up is the
/// server's to refuse, but what the pipeline counts (Sync, Flush) must be exactly what it looks like.
pub mod frontend {
    use super::{LARGE_LENGTH_MAX, Lengths, PASSWORD_LENGTH_MAX, SMALL_LENGTH_MAX};

    message_types! {
        QUERY         = b'Q' Query           4..=LARGE_LENGTH_MAX;
        PARSE         = b'P' Parse           4..=LARGE_LENGTH_MAX;
        BIND          = b'B' Bind            4..=LARGE_LENGTH_MAX;
        DESCRIBE      = b'D' Describe        4..=SMALL_LENGTH_MAX;
        EXECUTE       = b'E' Execute         4..=SMALL_LENGTH_MAX;
        CLOSE         = b'C' Close           4..=SMALL_LENGTH_MAX;
        FLUSH         = b'H' Flush           4..=4;
        SYNC          = b'S' Sync            4..=4;
        FUNCTION_CALL = b'F' FunctionCall    4..=LARGE_LENGTH_MAX;
        COPY_DATA     = b'd' CopyData        4..=LARGE_LENGTH_MAX;
        COPY_DONE     = b'c' CopyDone        4..=SMALL_LENGTH_MAX;
        COPY_FAIL     = b'f' CopyFail        4..=SMALL_LENGTH_MAX;
        TERMINATE     = b'X' Terminate       4..=SMALL_LENGTH_MAX;
        // Also SASLInitialResponse, SASLResponse and GSSResponse: which one, only the exchange so far can tell.
        PASSWORD      = b'p' PasswordMessage 4..=PASSWORD_LENGTH_MAX;
    }
}

/// What servers send.
pub mod backend {
    use super::{BACKEND_LENGTH_MAX, KEY_SIZE_MAX, KEY_SIZE_MIN, Lengths};

    /// The length field and the process id, which come before the key.
    const KEY_HEAD: u32 = 8;

    message_types! {
        AUTHENTICATION             = b'R' Authentication           8..=BACKEND_LENGTH_MAX;
        BACKEND_KEY_DATA           = b'K' BackendKeyData
            (KEY_HEAD + KEY_SIZE_MIN as u32)..=KEY_HEAD + KEY_SIZE_MAX as u32;
        READY_FOR_QUERY            = b'Z' ReadyForQuery            5..=5;
        ROW_DESCRIPTION            = b'T' RowDescription           4..=BACKEND_LENGTH_MAX;
        DATA_ROW                   = b'D' DataRow                  4..=BACKEND_LENGTH_MAX;
        COMMAND_COMPLETE           = b'C' CommandComplete          4..=BACKEND_LENGTH_MAX;
        EMPTY_QUERY_RESPONSE       = b'I' EmptyQueryResponse       4..=4;
        ERROR_RESPONSE             = b'E' ErrorResponse            4..=BACKEND_LENGTH_MAX;
        NOTICE_RESPONSE            = b'N' NoticeResponse           4..=BACKEND_LENGTH_MAX;
        NOTIFICATION_RESPONSE      = b'A' NotificationResponse     4..=BACKEND_LENGTH_MAX;
        PARAMETER_STATUS           = b'S' ParameterStatus          4..=BACKEND_LENGTH_MAX;
        PARAMETER_DESCRIPTION      = b't' ParameterDescription     4..=BACKEND_LENGTH_MAX;
        PARSE_COMPLETE             = b'1' ParseComplete            4..=4;
        BIND_COMPLETE              = b'2' BindComplete             4..=4;
        CLOSE_COMPLETE             = b'3' CloseComplete            4..=4;
        NO_DATA                    = b'n' NoData                   4..=4;
        PORTAL_SUSPENDED           = b's' PortalSuspended          4..=4;
        COPY_IN_RESPONSE           = b'G' CopyInResponse           4..=BACKEND_LENGTH_MAX;
        COPY_OUT_RESPONSE          = b'H' CopyOutResponse          4..=BACKEND_LENGTH_MAX;
        COPY_BOTH_RESPONSE         = b'W' CopyBothResponse         4..=BACKEND_LENGTH_MAX;
        COPY_DATA                  = b'd' CopyData                 4..=BACKEND_LENGTH_MAX;
        COPY_DONE                  = b'c' CopyDone                 4..=4;
        FUNCTION_CALL_RESPONSE     = b'V' FunctionCallResponse     4..=BACKEND_LENGTH_MAX;
        NEGOTIATE_PROTOCOL_VERSION = b'v' NegotiateProtocolVersion 4..=BACKEND_LENGTH_MAX;
    }
}

/// What ReadyForQuery says about the session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TransactionStatus {
    Idle,
    InTransaction,
    /// In a transaction block that takes nothing more but its end.
    Failed,
}

impl TransactionStatus {
    pub const fn as_byte(self) -> u8 {
        match self {
            TransactionStatus::Idle => b'I',
            TransactionStatus::InTransaction => b'T',
            TransactionStatus::Failed => b'E',
        }
    }
}

impl TryFrom<u8> for TransactionStatus {
    /// The byte that is no status.
    type Error = u8;

    fn try_from(byte: u8) -> Result<Self, u8> {
        match byte {
            b'I' => Ok(TransactionStatus::Idle),
            b'T' => Ok(TransactionStatus::InTransaction),
            b'E' => Ok(TransactionStatus::Failed),
            _ => Err(byte),
        }
    }
}

/// What Describe and Close speak of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TargetKind {
    Statement,
    Portal,
}

impl TargetKind {
    pub const fn as_byte(self) -> u8 {
        match self {
            TargetKind::Statement => b'S',
            TargetKind::Portal => b'P',
        }
    }
}

impl TryFrom<u8> for TargetKind {
    /// The byte that is no kind.
    type Error = u8;

    fn try_from(byte: u8) -> Result<Self, u8> {
        match byte {
            b'S' => Ok(TargetKind::Statement),
            b'P' => Ok(TargetKind::Portal),
            _ => Err(byte),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn status_and_kind_bytes_go_both_ways() {
        for byte in 0..=u8::MAX {
            match TransactionStatus::try_from(byte) {
                Ok(status) => assert_eq!(status.as_byte(), byte),
                Err(given) => assert_eq!(given, byte),
            }
            match TargetKind::try_from(byte) {
                Ok(kind) => assert_eq!(kind.as_byte(), byte),
                Err(given) => assert_eq!(given, byte),
            }
        }
    }

    #[test]
    fn every_type_has_a_name_and_sane_lengths() {
        for direction in [Direction::Frontend, Direction::Backend] {
            let types = (0..=u8::MAX).filter(|&tag| direction.message_name(tag).is_some());
            assert_eq!(types.count(), if direction == Direction::Frontend { 14 } else { 24 });
            for tag in 0..=u8::MAX {
                let lengths = direction.lengths(tag);
                assert_eq!(lengths.is_some(), direction.message_name(tag).is_some());
                if let Some(lengths) = lengths {
                    assert!(lengths.min >= 4 && lengths.min <= lengths.max);
                }
            }
        }
    }
}
