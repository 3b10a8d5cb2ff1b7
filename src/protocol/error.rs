//! What goes wrong in the protocol: malformed messages of a peer, and the fields of the errors that QCP sends.

use std::fmt;

/// A message that is not one. The peer wrote it, so it is a value and never a panic; every variant is SQLSTATE 08P01.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Malformed {
    /// No message type of this direction has the tag.
    UnknownTag(u8),
    /// The length counts itself, so it cannot be less than four.
    LengthBelowFour(i32),
    /// Shorter than any message of its type.
    TooShort { tag: u8, length: u32 },
    /// Longer than PostgreSQL takes, or than a type of fixed size is.
    TooLong { tag: u8, length: u32 },
    /// The body ends before a value in it does.
    Truncated { tag: u8 },
    /// A string has no terminating zero.
    Unterminated { tag: u8 },
    /// The body goes on after its last value.
    TrailingBytes { tag: u8 },
    /// A byte or number in the body that must be one of a few is none of them.
    UnknownKind { tag: u8, kind: u32 },
    /// A secret key shorter than four or longer than 256 bytes.
    KeySize { tag: u8, size: usize },
}

/// PostgreSQL's own words for the same faults, where it has any.
impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Malformed::UnknownTag(tag) => write!(f, "invalid message type {tag}"),
            Malformed::LengthBelowFour(length) => write!(f, "invalid message length {length}"),
            Malformed::TooShort { tag, length } | Malformed::TooLong { tag, length } => {
                write!(f, "invalid message length {length} in message type {}", char::from(tag))
            }
            Malformed::Truncated { tag } => {
                write!(f, "insufficient data left in message type {}", char::from(tag))
            }
            Malformed::Unterminated { tag } => {
                write!(f, "invalid string in message type {}", char::from(tag))
            }
            Malformed::TrailingBytes { tag } => write!(f, "invalid message format in message type {}", char::from(tag)),
            Malformed::UnknownKind { tag, kind } => {
                write!(f, "invalid subtype {kind} in message type {}", char::from(tag))
            }
            Malformed::KeySize { tag, size } => {
                write!(f, "invalid key of {size} bytes in message type {}", char::from(tag))
            }
        }
    }
}

impl std::error::Error for Malformed {}

/// The five characters that drivers act on.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct SqlState([u8; 5]);

impl SqlState {
    pub const SUCCESSFUL_COMPLETION: SqlState = SqlState(*b"00000");
    pub const PROTOCOL_VIOLATION: SqlState = SqlState(*b"08P01");
    pub const CONNECTION_DOES_NOT_EXIST: SqlState = SqlState(*b"08003");
    pub const CONNECTION_FAILURE: SqlState = SqlState(*b"08006");
    pub const SERVER_REJECTED_CONNECTION: SqlState = SqlState(*b"08004");
    pub const FEATURE_NOT_SUPPORTED: SqlState = SqlState(*b"0A000");
    pub const INVALID_PARAMETER_VALUE: SqlState = SqlState(*b"22023");
    pub const ACTIVE_SQL_TRANSACTION: SqlState = SqlState(*b"25001");
    pub const IN_FAILED_TRANSACTION: SqlState = SqlState(*b"25P02");
    pub const IDLE_IN_TRANSACTION_TIMEOUT: SqlState = SqlState(*b"25P03");
    pub const TRANSACTION_TIMEOUT: SqlState = SqlState(*b"25P04");
    pub const INVALID_STATEMENT_NAME: SqlState = SqlState(*b"26000");
    pub const INVALID_CURSOR_NAME: SqlState = SqlState(*b"34000");
    pub const INVALID_AUTHORIZATION: SqlState = SqlState(*b"28000");
    pub const INVALID_PASSWORD: SqlState = SqlState(*b"28P01");
    pub const INVALID_CATALOG_NAME: SqlState = SqlState(*b"3D000");
    pub const SYNTAX_ERROR: SqlState = SqlState(*b"42601");
    pub const INSUFFICIENT_PRIVILEGE: SqlState = SqlState(*b"42501");
    pub const UNDEFINED_OBJECT: SqlState = SqlState(*b"42704");
    pub const DUPLICATE_STATEMENT: SqlState = SqlState(*b"42P05");
    pub const OUT_OF_MEMORY: SqlState = SqlState(*b"53200");
    pub const TOO_MANY_CONNECTIONS: SqlState = SqlState(*b"53300");
    pub const CONFIGURATION_LIMIT_EXCEEDED: SqlState = SqlState(*b"53400");
    pub const PROGRAM_LIMIT_EXCEEDED: SqlState = SqlState(*b"54000");
    pub const QUERY_CANCELED: SqlState = SqlState(*b"57014");
    pub const ADMIN_SHUTDOWN: SqlState = SqlState(*b"57P01");
    pub const CANNOT_CONNECT_NOW: SqlState = SqlState(*b"57P03");
    pub const IDLE_SESSION_TIMEOUT: SqlState = SqlState(*b"57P05");
    pub const INTERNAL_ERROR: SqlState = SqlState(*b"XX000");

    /// `None` unless these are five digits and upper-case letters, as PostgreSQL's own are.
    pub fn from_bytes(bytes: &[u8]) -> Option<SqlState> {
        let code: [u8; 5] = bytes.try_into().ok()?;
        let valid = code.iter().all(|byte| byte.is_ascii_digit() || byte.is_ascii_uppercase());
        valid.then_some(SqlState(code))
    }

    pub fn as_bytes(&self) -> &[u8; 5] {
        &self.0
    }

    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.0).expect("only digits and upper-case letters are put in")
    }
}

impl fmt::Debug for SqlState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Display for SqlState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// How bad it is. Those after `Panic` are a NoticeResponse's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Severity {
    /// The statement failed, the session goes on.
    Error,
    /// The session ends.
    Fatal,
    /// The server ends.
    Panic,
    Warning,
    Notice,
    Info,
    Log,
    Debug,
}

impl Severity {
    pub const fn as_str(self) -> &'static str {
        match self {
            Severity::Error => "ERROR",
            Severity::Fatal => "FATAL",
            Severity::Panic => "PANIC",
            Severity::Warning => "WARNING",
            Severity::Notice => "NOTICE",
            Severity::Info => "INFO",
            Severity::Log => "LOG",
            Severity::Debug => "DEBUG",
        }
    }

    pub fn from_bytes(bytes: &[u8]) -> Option<Severity> {
        match bytes {
            b"ERROR" => Some(Severity::Error),
            b"FATAL" => Some(Severity::Fatal),
            b"PANIC" => Some(Severity::Panic),
            b"WARNING" => Some(Severity::Warning),
            b"NOTICE" => Some(Severity::Notice),
            b"INFO" => Some(Severity::Info),
            b"LOG" => Some(Severity::Log),
            b"DEBUG" => Some(Severity::Debug),
            _ => None,
        }
    }
}

/// The field types of ErrorResponse and NoticeResponse that QCP writes or asks for.
pub mod field {
    pub const SEVERITY_LOCALIZED: u8 = b'S';
    pub const SEVERITY: u8 = b'V';
    pub const CODE: u8 = b'C';
    pub const MESSAGE: u8 = b'M';
    pub const DETAIL: u8 = b'D';
    pub const HINT: u8 = b'H';
    pub const POSITION: u8 = b'P';
    pub const WHERE: u8 = b'W';
    pub const ROUTINE: u8 = b'R';
}

/// An error or a notice of QCP's own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ErrorFields<'a> {
    pub severity: Severity,
    pub code: SqlState,
    pub message: &'a str,
    pub detail: Option<&'a str>,
    pub hint: Option<&'a str>,
}

impl<'a> ErrorFields<'a> {
    pub const fn new(severity: Severity, code: SqlState, message: &'a str) -> Self {
        ErrorFields { severity, code, message, detail: None, hint: None }
    }

    pub const fn error(code: SqlState, message: &'a str) -> Self {
        ErrorFields::new(Severity::Error, code, message)
    }

    pub const fn fatal(code: SqlState, message: &'a str) -> Self {
        ErrorFields::new(Severity::Fatal, code, message)
    }

    pub const fn with_detail(mut self, detail: &'a str) -> Self {
        self.detail = Some(detail);
        self
    }

    pub const fn with_hint(mut self, hint: &'a str) -> Self {
        self.hint = Some(hint);
        self
    }
}
