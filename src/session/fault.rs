//! What a peer did, or what QCP could not do for it: values, and the one table that turns them into an answer.
//!
//! Whose fault decides: the client's, a server's, or the pooler's own (full, draining, misconfigured). A broken
//! invariant of ours is an assertion, not a fault; [`Fault::Broken`] is what the client of that link is told.

use std::fmt;
use std::time::Duration;

use crate::protocol::error::Severity;
use crate::protocol::startup::Refused;
use crate::protocol::{Malformed, SqlState};

/// Something that a client has to be told by QCP itself.
#[derive(Debug)]
pub enum Fault {
    // The client's.
    /// A message that PostgreSQL would not take either.
    Malformed(Malformed),
    /// A startup packet that PostgreSQL would not take either.
    Startup(Refused),
    /// No right at the console.
    NotForConsole(String),
    /// Too many are at the console of this shard.
    TooManyVisits(usize),
    /// Something else than an answer while a login is under way.
    Unexpected(u8),
    /// A password after the login.
    OutOfPlace(u8),
    /// No login within `limits.login_timeout`.
    LoginTimeout,
    /// A statement name beyond what is kept.
    NameTooLong,
    /// A user or database name that is not UTF-8.
    NameNotText,
    /// Let in by the server without a password, but from another machine.
    TrustFromAfar,
    /// No PROXY header from a network of `proxy_protocol_from`, or a wrong one.
    NotProxy(&'static str),
    /// Another SSLRequest behind the first handshake.
    EncryptedTwice,
    /// Something came with its request for encryption, before the answer.
    PlaintextAhead,
    /// In plaintext, where `tls.client.mode` demands TLS.
    TlsRequired,
    /// `tls.client.mode: verify-full`, and the certificate is not this user's.
    CertificateOfAnother(String),
    /// Both legs are TLS, and what binds a login to one cannot be passed on to the other.
    BindingNotRelayed,
    /// The login failed: a wrong password or no such user, which are told apart only in the log.
    WrongPassword(String),
    /// The kernel says that somebody else runs the client.
    PeerFailed(String),
    /// The rules do not let it in.
    NoAccess(String),
    /// An exchange of secrets that went wrong.
    Exchange(SqlState, String),
    /// The server could not be asked for users' secrets (`auth.query`); the log says why.
    NoSecrets,
    /// Too many logins from its address have failed (`auth.failed_logins_max`).
    TooManyFailures(u32),
    /// The server has refused a relayed login, which the client hears in its words; for the log.
    RefusedByServer(SqlState, String),
    /// In Statement mode, a transaction over several queries.
    TransactionInStatementMode,
    // A server's.
    /// No backend, and why not.
    NoServer(String),
    /// The server is gone while the client's request was with it.
    ServerGone(String),
    /// The server, which another is in the place of now.
    Superseded(String),
    /// A login went to a server that its clients are not to be at.
    WrongServer {
        /// Which.
        server: String,
        /// What it is.
        role: &'static str,
        /// What it should be.
        wanted: &'static str,
    },
    /// None of several servers is what it should be.
    NoneSuits(String),
    /// The server asks a password that QCP does not know.
    CannotRefill,
    /// The server did not take settings that it had taken before.
    ReplayRefused(String),
    // The pooler's.
    /// `limits.max_clients`.
    TooManyClients(u32),
    /// `limits.max_clients` of one database or user, or `limits.max_clients_per_address`.
    TooManyOf(Limited),
    /// `pool.max_queue`.
    QueueFull {
        /// `database/user`.
        pool: String,
        /// Clients waiting.
        waiting: usize,
        /// Who has the backends.
        held: Held,
    },
    /// `pool.queue_timeout`.
    QueueTimeout {
        /// `database/user`.
        pool: String,
        /// Clients waiting.
        waiting: usize,
        /// How long.
        waited: Duration,
        /// Who has the backends.
        held: Held,
    },
    /// Cancelled while it waited.
    CancelledInQueue,
    /// The arena is used up.
    NoMemory,
    /// A long request found no backend, and the arena is nearly used up.
    NoMemoryToWait,
    /// `limits.client_stall_timeout`.
    ClientStalled {
        /// `database/user`.
        pool: String,
        /// How long.
        stalled: Duration,
    },
    /// The connection that listened for it is lost, and what it would have heard.
    ListenerLost(String),
    /// More notifications wait for it than are kept.
    ListenerSlow,
    /// Too many settings, statements or pools of clients' own.
    NoRoom(&'static str),
    /// A prepared statement larger than a chunk.
    StatementTooLong(usize),
    /// Not a database of this pooler.
    UnknownDatabase(String),
    /// `limits.query_timeout`, and the server did not stop when it was asked to.
    QueryTimeout,
    /// `limits.idle_in_transaction_timeout`.
    IdleInTransaction,
    /// `limits.transaction_timeout`.
    TransactionTimeout,
    /// `limits.client_idle_timeout`.
    ClientIdle,
    /// Its own `idle_session_timeout`.
    SessionIdle,
    /// `qcp-ctrl disable`, or `drain`, and no `enable` since.
    Disabled(String),
    /// `qcp-ctrl kill` or `drain`.
    Dismissed(String),
    /// Draining.
    ShuttingDown,
    /// An invariant of the link is broken.
    Broken,
}

/// Of what there are too many clients.
#[derive(Debug)]
pub enum Limited {
    /// Of this database.
    Database(String),
    /// Of this user.
    User(String),
    /// From the client's address: so many may be there.
    Address(u32),
}

/// What to say and do.
pub struct Answer {
    /// `Error`: the client stays; `Fatal`: it is closed.
    pub severity: Severity,
    /// The code.
    pub code: SqlState,
    /// What happened.
    pub message: String,
    /// What to do.
    pub hint: Option<&'static str>,
    /// How it is logged.
    pub log: log::Level,
}

impl Fault {
    /// Whether anybody who can connect can bring it about as often as he likes, without having logged in: such a fault is
    /// logged once in a while for each address.
    pub fn is_anybodys(&self) -> bool {
        matches!(
            self,
            Self::Malformed(_)
                | Self::Unexpected(_)
                | Self::LoginTimeout
                | Self::NameNotText
                | Self::EncryptedTwice
                | Self::PlaintextAhead
                | Self::TlsRequired
                | Self::CertificateOfAnother(_)
                | Self::BindingNotRelayed
                | Self::TrustFromAfar
                | Self::UnknownDatabase(_)
                | Self::TooManyClients(_)
                | Self::NotProxy(_)
                | Self::TooManyOf(_)
                | Self::Startup(_)
        )
    }

    /// The table.
    pub fn answer(&self) -> Answer {
        use Severity::{Error, Fatal};
        use log::Level::{Debug, Error as LogError, Info, Warn};
        let answer = |severity, code, message: String, log| Answer { severity, code, message, hint: None, log };
        let hint = |answer: Answer, hint| Answer { hint: Some(hint), ..answer };
        match self {
            Self::Malformed(Malformed::UnknownTag(tag)) | Self::OutOfPlace(tag) => {
                answer(Fatal, SqlState::PROTOCOL_VIOLATION, format!("invalid frontend message type {tag}"), Info)
            }
            Self::Malformed(what) => answer(Fatal, SqlState::PROTOCOL_VIOLATION, what.to_string(), Info),
            // Logged where it is counted, not each time.
            Self::Startup(what) => answer(Fatal, what.code(), what.to_string(), Debug),
            Self::Unexpected(tag) => {
                let text = format!("expected password response, got message type {tag}");
                answer(Fatal, SqlState::PROTOCOL_VIOLATION, text, Info)
            }
            Self::NotForConsole(user) => hint(
                answer(
                    Fatal,
                    SqlState::INVALID_AUTHORIZATION,
                    format!("user \"{user}\" may not use the console"),
                    Info,
                ),
                "Who may is listed in auth.admin_users and auth.stats_users; over the Unix socket also who runs qcp.",
            ),
            Self::TooManyVisits(limit) => {
                let text = format!("sorry, too many clients at the console already ({limit} are allowed)");
                answer(Fatal, SqlState::TOO_MANY_CONNECTIONS, text, Info)
            }
            Self::LoginTimeout => {
                let text = "canceling authentication due to timeout".to_owned();
                answer(Fatal, SqlState::QUERY_CANCELED, text, Info)
            }
            Self::NameTooLong => {
                let text = "prepared statement name is longer than 255 bytes".to_owned();
                answer(Fatal, SqlState::PROGRAM_LIMIT_EXCEEDED, text, Info)
            }
            Self::NameNotText => {
                let text = "the user or database name is not valid UTF-8".to_owned();
                answer(Fatal, SqlState::PROTOCOL_VIOLATION, text, Info)
            }
            Self::TrustFromAfar => hint(
                answer(
                    Fatal,
                    SqlState::INVALID_AUTHORIZATION,
                    "the server lets this database and user in without a password, which qcp passes on only to \
                     clients of its own machine"
                        .to_owned(),
                    Warn,
                ),
                "To let clients in from anywhere without a password, configure auth: {method: trust}.",
            ),
            // Logged where it is counted, not each time.
            Self::NotProxy(why) => hint(
                answer(Fatal, SqlState::PROTOCOL_VIOLATION, (*why).to_owned(), Debug),
                "Connections from this address have to begin with a PROXY header (proxy_protocol_from).",
            ),
            Self::EncryptedTwice => {
                let text = "an SSLRequest on a connection that is encrypted".to_owned();
                answer(Fatal, SqlState::PROTOCOL_VIOLATION, text, Info)
            }
            Self::PlaintextAhead => {
                let text = "received unencrypted data behind a request for encryption".to_owned();
                answer(Fatal, SqlState::PROTOCOL_VIOLATION, text, Info)
            }
            Self::TlsRequired => hint(
                answer(
                    Fatal,
                    SqlState::INVALID_AUTHORIZATION,
                    "connections without TLS are not allowed (tls.client.mode)".to_owned(),
                    Info,
                ),
                "Connect with sslmode=require, or better.",
            ),
            Self::CertificateOfAnother(user) => answer(
                Fatal,
                SqlState::INVALID_AUTHORIZATION,
                format!("certificate authentication failed for user \"{user}\""),
                Info,
            ),
            Self::BindingNotRelayed => hint(
                answer(
                    Fatal,
                    SqlState::INVALID_AUTHORIZATION,
                    "the server would bind this login to its own TLS connection, which qcp cannot pass on".to_owned(),
                    Info,
                ),
                "Let qcp check logins itself (auth in its configuration), or connect with channel_binding=disable.",
            ),
            // Failed logins are logged where they are counted: once for each address and while.
            Self::WrongPassword(user) => {
                let text = format!("password authentication failed for user \"{user}\"");
                answer(Fatal, SqlState::INVALID_PASSWORD, text, Debug)
            }
            Self::PeerFailed(user) => {
                let text = format!("Peer authentication failed for user \"{user}\"");
                answer(Fatal, SqlState::INVALID_AUTHORIZATION, text, Debug)
            }
            Self::NoAccess(why) => answer(Fatal, SqlState::INVALID_AUTHORIZATION, why.clone(), Debug),
            Self::Exchange(code, why) => answer(Fatal, *code, why.clone(), Debug),
            Self::NoSecrets => hint(
                answer(
                    Fatal,
                    SqlState::CONNECTION_FAILURE,
                    "qcp could not ask the server for this user's secret".to_owned(),
                    Info,
                ),
                "qcp's log says why.",
            ),
            Self::TooManyFailures(limit) => hint(
                answer(
                    Fatal,
                    SqlState::INVALID_AUTHORIZATION,
                    format!("{limit} logins from this address have failed within a minute; wait before the next"),
                    Debug,
                ),
                "The limit is auth.failed_logins_max.",
            ),
            Self::RefusedByServer(code, text) => {
                answer(Fatal, *code, format!("login refused by the server: {text}"), Debug)
            }
            Self::TransactionInStatementMode => hint(
                answer(
                    Error,
                    SqlState::FEATURE_NOT_SUPPORTED,
                    "transactions over several queries are not allowed in relay mode Statement; it was rolled back"
                        .to_owned(),
                    Debug,
                ),
                "Use relay_mode: Smart for this database or user.",
            ),
            Self::NoServer(why) => {
                answer(Fatal, SqlState::CONNECTION_FAILURE, format!("no server connection: {why}"), Info)
            }
            Self::ServerGone(why) => hint(
                answer(Fatal, SqlState::CONNECTION_FAILURE, format!("the server connection was lost: {why}"), Info),
                "Whether the last statement took effect is not known.",
            ),
            Self::Superseded(server) => hint(
                answer(
                    Fatal,
                    SqlState::CONNECTION_FAILURE,
                    format!(
                        "the server connection was given up: another server has become the primary in the place of {server}"
                    ),
                    Info,
                ),
                "What was not committed is lost, and whether the last statement took effect is not known. Connect again.",
            ),
            Self::WrongServer { server, role, wanted } => hint(
                answer(
                    Fatal,
                    SqlState::CONNECTION_FAILURE,
                    format!("server {server} is a {role}, and this login is for a {wanted} (route)"),
                    Info,
                ),
                "Connect again: qcp knows now what that server is.",
            ),
            Self::NoneSuits(why) => hint(
                answer(Error, SqlState::CANNOT_CONNECT_NOW, format!("no server connection: {why}"), Info),
                "Try again, or see what qcp's log says of the servers.",
            ),
            Self::CannotRefill => hint(
                answer(
                    Fatal,
                    SqlState::CONNECTION_FAILURE,
                    "no server connection is left, and the server asks a password that qcp does not keep".to_owned(),
                    Info,
                ),
                "Connect again: the login opens a new server connection.",
            ),
            Self::ReplayRefused(why) => {
                answer(Fatal, SqlState::CONNECTION_FAILURE, format!("the session's settings were refused: {why}"), Warn)
            }
            Self::TooManyClients(limit) => hint(
                answer(
                    Fatal,
                    SqlState::TOO_MANY_CONNECTIONS,
                    format!("sorry, too many clients already (limits.max_clients is {limit})"),
                    Warn,
                ),
                "Raise limits.max_clients, or close connections.",
            ),
            // PostgreSQL's own words, which it has for ALTER DATABASE and ALTER ROLE .. CONNECTION LIMIT.
            Self::TooManyOf(Limited::Database(name)) => hint(
                answer(
                    Fatal,
                    SqlState::TOO_MANY_CONNECTIONS,
                    format!("too many connections for database \"{name}\""),
                    Debug,
                ),
                "The limit is limits.max_clients of this database in qcp's configuration.",
            ),
            Self::TooManyOf(Limited::User(name)) => hint(
                answer(
                    Fatal,
                    SqlState::TOO_MANY_CONNECTIONS,
                    format!("too many connections for role \"{name}\""),
                    Debug,
                ),
                "The limit is limits.max_clients of this user in qcp's configuration.",
            ),
            Self::TooManyOf(Limited::Address(limit)) => hint(
                answer(
                    Fatal,
                    SqlState::TOO_MANY_CONNECTIONS,
                    format!("too many connections from this address ({limit} are allowed)"),
                    Debug,
                ),
                "The limit is limits.max_clients_per_address.",
            ),
            Self::QueueFull { pool, waiting, held } => Answer {
                hint: held.hint(),
                ..answer(
                    Error,
                    SqlState::TOO_MANY_CONNECTIONS,
                    format!(
                        "all server connections of pool {pool} are busy and {waiting} clients wait (pool.max_queue){held}"
                    ),
                    Info,
                )
            },
            Self::QueueTimeout { pool, waiting, waited, held } => Answer {
                hint: held.hint(),
                ..answer(
                    Error,
                    SqlState::TOO_MANY_CONNECTIONS,
                    format!(
                        "no server connection of pool {pool} became free within {} ms (pool.queue_timeout); \
                         {waiting} more clients wait{held}",
                        waited.as_millis(),
                    ),
                    Info,
                )
            },
            Self::CancelledInQueue => {
                let text = "canceling statement due to user request".to_owned();
                answer(Error, SqlState::QUERY_CANCELED, text, Debug)
            }
            Self::NoMemory => hint(
                answer(Fatal, SqlState::OUT_OF_MEMORY, "qcp's arena is used up".to_owned(), Warn),
                "Raise arena.chunks_count or arena.total_size.",
            ),
            Self::NoMemoryToWait => hint(
                answer(
                    Error,
                    SqlState::OUT_OF_MEMORY,
                    "no server connection is free, and qcp's arena has no room to keep the request until then"
                        .to_owned(),
                    Warn,
                ),
                "Raise arena.chunks_count or arena.total_size, or pool.size.",
            ),
            Self::ClientStalled { pool, stalled } => hint(
                answer(
                    Fatal,
                    SqlState::CONNECTION_FAILURE,
                    format!(
                        "the client took nothing of its answer for {} ms while others waited for its server \
                         connection of pool {pool} (limits.client_stall_timeout)",
                        stalled.as_millis()
                    ),
                    Warn,
                ),
                "Read the whole answer, or fetch it in parts (a cursor, a row limit).",
            ),
            Self::ListenerLost(why) => hint(
                answer(
                    Fatal,
                    SqlState::CONNECTION_FAILURE,
                    format!("the server connection that listened for this client was lost: {why}"),
                    Info,
                ),
                "Notifications may have been missed. Connect again, LISTEN again, and look at what they were about.",
            ),
            Self::ListenerSlow => hint(
                answer(
                    Fatal,
                    SqlState::PROGRAM_LIMIT_EXCEEDED,
                    "too many notifications wait for this client".to_owned(),
                    Warn,
                ),
                "Read them as they come, and do not stay in a transaction while many arrive.",
            ),
            Self::NoRoom(what) => {
                answer(Fatal, SqlState::CONFIGURATION_LIMIT_EXCEEDED, format!("qcp has no room for more {what}"), Warn)
            }
            Self::StatementTooLong(size) => hint(
                answer(
                    Fatal,
                    SqlState::PROGRAM_LIMIT_EXCEEDED,
                    format!("a named prepared statement of {size} bytes does not fit into a chunk"),
                    Info,
                ),
                "Raise arena.chunk_size, use the unnamed statement, or use relay_mode: Session.",
            ),
            Self::UnknownDatabase(name) => {
                answer(Fatal, SqlState::INVALID_CATALOG_NAME, format!("database \"{name}\" does not exist"), Info)
            }
            // As PostgreSQL words its own timeouts, for those who look for that.
            Self::QueryTimeout => hint(
                answer(
                    Fatal,
                    SqlState::QUERY_CANCELED,
                    "the statement lasted longer than limits.query_timeout, and the server did not cancel it"
                        .to_owned(),
                    Warn,
                ),
                "Whether the statement took effect is not known.",
            ),
            Self::IdleInTransaction => {
                let text = "terminating connection due to idle-in-transaction timeout".to_owned();
                answer(Fatal, SqlState::IDLE_IN_TRANSACTION_TIMEOUT, text, Info)
            }
            Self::TransactionTimeout => {
                let text = "terminating connection due to transaction timeout".to_owned();
                answer(Fatal, SqlState::TRANSACTION_TIMEOUT, text, Info)
            }
            Self::ClientIdle => {
                let text = "terminating connection due to idle-session timeout (client_idle_timeout)".to_owned();
                answer(Fatal, SqlState::IDLE_SESSION_TIMEOUT, text, Info)
            }
            Self::SessionIdle => {
                let text = "terminating connection due to idle-session timeout".to_owned();
                answer(Fatal, SqlState::IDLE_SESSION_TIMEOUT, text, Info)
            }
            Self::Disabled(name) => {
                let text = format!("database \"{name}\" is disabled: its administrator lets nobody in");
                answer(Fatal, SqlState::CANNOT_CONNECT_NOW, text, Info)
            }
            Self::Dismissed(name) => {
                let text = format!("terminating connection to \"{name}\" due to administrator command");
                answer(Fatal, SqlState::ADMIN_SHUTDOWN, text, Info)
            }
            Self::ShuttingDown => answer(Fatal, SqlState::ADMIN_SHUTDOWN, "qcp is shutting down".to_owned(), Debug),
            Self::Broken => answer(
                Fatal,
                SqlState::INTERNAL_ERROR,
                "qcp lost track of this connection and closed it to be safe".to_owned(),
                LogError,
            ),
        }
    }
}

/// What a client that waits long for a backend is told.
pub fn queue_notice(pool: &str, waited: Duration, waiting: usize, held: &Held) -> String {
    let waited = waited.as_millis();
    format!(
        "no server connection of pool {pool} is free yet: waiting for {waited} ms, with {waiting} in the queue{held}"
    )
}

/// What keeps the server connections, for those who wait for one.
#[derive(Default, Debug)]
pub struct Held {
    /// Since when the longest of those who have a backend for a transaction has it.
    pub oldest: Option<Duration>,
    /// Clients that keep theirs between transactions.
    pub pinned: usize,
    /// Why they do, each reason once.
    pub reasons: Vec<String>,
}

impl Held {
    /// What can be done about it.
    fn hint(&self) -> Option<&'static str> {
        let hint = "qcp-ctrl show pins (SHOW PINS at the console) says which clients keep server connections, and why.";
        (self.pinned > 0).then_some(hint)
    }
}

impl fmt::Display for Held {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.oldest {
            Some(age) if age < Duration::from_secs(1) => write!(to, "; oldest transaction: {} ms", age.as_millis())?,
            Some(age) => write!(to, "; oldest transaction: {} s", age.as_secs())?,
            None => {}
        }
        match self.pinned {
            0 => Ok(()),
            1 => write!(to, "; 1 client keeps its connection between transactions ({})", self.reasons.join(", ")),
            count => {
                write!(
                    to,
                    "; {count} clients keep their connections between transactions ({})",
                    self.reasons.join(", ")
                )
            }
        }
    }
}
