//! `qcp --check`: logs in to every server that clients can get to, and says in one line each how that went.
//!
//! Runs instead of the shards, on plain blocking sockets. No step is without an end: whoever does not answer within
//! `reconnect.connect_timeout` has not answered.

use std::fmt;
use std::fs::File;
use std::io::{self, Read, Write};
use std::net::ToSocketAddrs;
use std::os::fd::AsRawFd;
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::socket::{
    AddressFamily, SetSockOpt, SockFlag, SockType, SockaddrLike, SockaddrStorage, UnixAddr, connect, setsockopt,
    socket, sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike};

use crate::auth::channel::Channel;
use crate::auth::outgoing::{self, Outgoing};
use crate::auth::scram::{Binding, NONCE_SIZE};
use crate::auth::secrets::Secret;
use crate::auth::settings::{Credentials, Method};
use crate::config::{Config, ServerAddress, format_duration};
use crate::control::report::{LoginOutcome, LoginRow};
use crate::io::Errno;
use crate::io::tls::Blocking;
use crate::protocol::error::field;
use crate::protocol::reader::{self, Authentication};
use crate::protocol::startup::{self, Version};
use crate::protocol::tag::backend as tag;
use crate::protocol::writer::Full;
use crate::protocol::{Direction, Framer, Malformed, SqlState, Step, Writer};
use crate::shard::tls::{ServerMode, ServerTls, TlsSettings};

/// The user to log in as, and the database that stands for those the file does not name, where `PGUSER` and
/// `PGDATABASE` say nothing.
const NAME_DEFAULT: &str = "postgres";

/// Longest message of a server's that is waited for.
const MESSAGE_SIZE_MAX: usize = 64 * 1024;
/// A startup packet with the longest names that a configuration and an environment are likely to have.
const REQUEST_SIZE_MAX: usize = 8 * 1024;

const RECOVERY_QUERY: &[u8] = b"SELECT pg_catalog.pg_is_in_recovery()";

/// What a server that is well says.
enum Welcome {
    /// It lets this user in without a challenge.
    In { version: String, is_standby: bool },
    /// It asks for something first, by this method; whether the database is there, it says only after that. `binds`: it
    /// offers to bind the login to the channel, which clients over TLS must not try.
    Asks { method: String, binds: bool },
}

/// Why a login was not a success.
enum Failure {
    HostNotFound(String),
    Unreachable(Errno),
    /// Whether the connection was made by then.
    TimedOut {
        connected: bool,
        after: Duration,
    },
    /// It closed the connection without a word.
    Closed,
    /// What it sends is no answer to a login.
    Unexpected(u8),
    Malformed(Malformed),
    MessageTooLong(usize),
    NameTooLong,
    /// No TLS, and why not.
    NoTls(String),
    /// In the server's own words, and whether they are about who logs in.
    Refused {
        words: String,
        is_password: bool,
    },
    /// QCP does not go on with the login.
    NoAnswer(String),
    /// It asks for something by this method, and `auth` has nobody who could answer.
    NobodyToAnswer(String),
}

/// What came of one login, or of a server that no login can get to: one line.
struct Finding<'a> {
    server: &'a ServerAddress,
    user: &'a str,
    database: &'a str,
    outcome: Result<Welcome, Failure>,
}

/// How a login goes about it; the same for all.
#[derive(Clone, Copy)]
struct Attempt<'a> {
    user: &'a str,
    /// Whether there is somebody who could answer a server's challenge.
    can_answer: bool,
    /// With what it is answered, where the whole login is to be made.
    secret: Option<&'a Secret>,
    timeout: Duration,
    config: &'a Config,
    tls: &'a TlsSettings,
}

/// Success if all is well.
pub fn check(config: &Config) -> ExitCode {
    let tls = match super::tls::load(config, None) {
        Ok(tls) => tls,
        Err(error) => {
            eprintln!("qcp: {error}");
            return ExitCode::FAILURE;
        }
    };
    let named = |variable| std::env::var(variable).ok().filter(|name| !name.is_empty());
    let user = named("PGUSER").unwrap_or_else(|| NAME_DEFAULT.to_owned());
    let database = named("PGDATABASE").unwrap_or_else(|| NAME_DEFAULT.to_owned());
    let can_answer = config.pool(&database, &user).is_none_or(|pool| {
        let knows = |known: &std::sync::Arc<Credentials>| known.secret.is_some();
        pool.rules.method == Method::Server || pool.rules.credentials.as_ref().is_some_and(knows)
    });
    let timeout = config.reconnect.connect_timeout;
    let attempt = Attempt { user: &user, can_answer, secret: None, timeout, config, tls: &tls };

    let destinations = config.destinations(&database);
    let mut all_well = true;
    // Servers side by side, so that several dead ones do not add up; each has one login at a time.
    thread::scope(|scope| {
        let start = |(server, databases)| scope.spawn(move || check_server(server, databases, attempt));
        let threads: Vec<_> = destinations.into_iter().map(start).collect();
        for thread in threads {
            for finding in thread.join().expect("a check does not panic") {
                all_well &= finding.outcome.is_ok();
                // The exit code is there for whoever has closed the other end.
                let _ = writeln!(io::stdout(), "{finding}");
            }
        }
    });
    if all_well { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Logs in to each server of a database as a user: with this password, or with what QCP itself would log in with.
pub(super) fn check_login(
    config: &Config,
    tls: &TlsSettings,
    database: &str,
    user: &str,
    password: Option<&str>,
) -> Result<Vec<LoginRow>, String> {
    let Some(pool) = config.pool(database, user) else {
        return Err(format!("database {database:?} is not served"));
    };
    let given = password.map(Secret::from_text);
    let own = pool.rules.credentials.as_deref().filter(|_| given.is_none());
    let secret = given.as_ref().or_else(|| own.and_then(|own| own.secret.as_deref()));
    let user = own.and_then(|own| own.user.as_deref()).unwrap_or(user);
    let timeout = config.reconnect.connect_timeout;
    let attempt = Attempt { user, can_answer: false, secret, timeout, config, tls };
    let row = |server: &ServerAddress, way: usize| {
        let (outcome, says) = match log_in(server, &pool.server_database, &tls.servers[way], attempt) {
            Ok(welcome @ Welcome::In { .. }) if secret.is_none() => (LoginOutcome::Ok, welcome.to_string()),
            Ok(Welcome::In { version, is_standby }) => {
                let role = if is_standby { "standby" } else { "primary" };
                (LoginOutcome::Ok, format!("PostgreSQL {version}, {role}"))
            }
            Ok(welcome @ Welcome::Asks { .. }) => (LoginOutcome::Error, welcome.to_string()),
            Err(Failure::NobodyToAnswer(method)) => {
                (LoginOutcome::Error, format!("it asks for {method}: give the user's password as PGPASSWORD"))
            }
            Err(failure @ Failure::Refused { is_password: true, .. }) => {
                (LoginOutcome::InvalidPassword, failure.to_string())
            }
            Err(failure) => (LoginOutcome::Error, failure.to_string()),
        };
        LoginRow {
            server: server.to_string(),
            database: pool.server_database.clone(),
            user: user.to_owned(),
            outcome,
            says,
        }
    };
    // Side by side, so that several dead ones do not add up.
    thread::scope(|scope| {
        let threads: Vec<_> = pool
            .servers
            .iter()
            .zip(&pool.tls)
            .map(|(server, &way)| {
                let row = &row;
                scope.spawn(move || row(server, way))
            })
            .collect();
        let join =
            |thread: thread::ScopedJoinHandle<'_, LoginRow>| thread.join().map_err(|_| "a check panicked".to_owned());
        threads.into_iter().map(join).collect()
    })
}

/// One login for each database, as long as the server answers.
fn check_server<'a>(
    server: &'a ServerAddress,
    databases: Vec<(&'a str, usize)>,
    attempt: Attempt<'a>,
) -> Vec<Finding<'a>> {
    let mut findings = Vec::new();
    for (database, tls) in databases {
        let outcome = log_in(server, database, &attempt.tls.servers[tls], attempt);
        let goes_on = outcome.as_ref().err().is_none_or(Failure::is_of_the_login);
        findings.push(Finding { server, user: attempt.user, database, outcome });
        if !goes_on {
            break;
        }
    }
    findings
}

fn log_in(server: &ServerAddress, database: &str, tls: &ServerTls, attempt: Attempt<'_>) -> Result<Welcome, Failure> {
    let refused = |outcome: &Result<Welcome, Failure>| {
        matches!(outcome, Err(Failure::Refused { .. } | Failure::NoTls(_) | Failure::Closed))
    };
    let ways = match (server, tls.mode) {
        (ServerAddress::Unix { .. }, _) | (_, ServerMode::Disable) => [false, false],
        (_, ServerMode::Allow) => [false, true],
        (_, ServerMode::Prefer) => [true, false],
        (_, ServerMode::Require) => [true, true],
    };
    let first = log_in_by(server, database, attempt, ways[0].then_some(tls));
    if ways[0] == ways[1] || !refused(&first) {
        return first;
    }
    log_in_by(server, database, attempt, ways[1].then_some(tls))
}

fn log_in_by(
    server: &ServerAddress,
    database: &str,
    attempt: Attempt<'_>,
    tls: Option<&ServerTls>,
) -> Result<Welcome, Failure> {
    let mut conversation = Conversation::open(server, attempt.timeout, tls)?;
    conversation.send(|writer| {
        let parameters = [(&b"user"[..], attempt.user.as_bytes()), (b"database", database.as_bytes())];
        writer.startup_message(Version::V3_0, parameters)
    })?;
    if let Some(secret) = attempt.secret {
        conversation.log_in_with(attempt.user, secret, attempt.config.auth.settings.scram_iterations_max)?;
    } else if let Some((method, offers)) = conversation.first_word()? {
        let binds = offers && attempt.tls.client.acceptor.is_some();
        return if attempt.can_answer {
            Ok(Welcome::Asks { method, binds })
        } else {
            Err(Failure::NobodyToAnswer(method))
        };
    }
    let version = conversation.greeting()?;
    conversation.send(|writer| writer.query(RECOVERY_QUERY))?;
    let is_standby = conversation.value()?.as_deref() == Some(b"t");
    // The server would log a connection that is only dropped.
    let _ = conversation.send(|writer| writer.terminate());
    Ok(Welcome::In { version, is_standby })
}

/// A connection to a server, and what came over it and was not looked at yet.
struct Conversation {
    socket: Wire,
    timeout: Duration,
    until: Instant,
    framer: Framer,
    received: Vec<u8>,
}

/// A socket, as it is or with TLS over it.
enum Wire {
    Plain(File),
    Tls(Box<Blocking>),
}

impl Wire {
    fn socket(&self) -> &File {
        match self {
            Self::Plain(socket) => socket,
            Self::Tls(tls) => tls.socket(),
        }
    }

    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Plain(socket) => socket.read(buffer),
            Self::Tls(tls) => tls.read(buffer),
        }
    }

    fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        match self {
            Self::Plain(socket) => socket.write_all(bytes),
            Self::Tls(tls) => tls.write_all(bytes),
        }
    }

    /// Asks for TLS, and makes the handshake. The socket's time limits hold for each read and write of it.
    fn secure(mut socket: File, tls: &ServerTls, host: &str, timeout: Duration) -> Result<Self, Failure> {
        let failed = |error: io::Error| match error.kind() {
            io::ErrorKind::Other => Failure::NoTls(error.to_string()),
            _ => Failure::from_io(&error, true, timeout),
        };
        if !tls.direct {
            socket.write_all(&startup::SSL_REQUEST_PACKET).map_err(failed)?;
            let mut answer = [0];
            socket.read_exact(&mut answer).map_err(failed)?;
            if answer != [startup::TLS_ACCEPTED] {
                return Err(Failure::NoTls("it has no TLS, and tls.server.mode demands it".to_owned()));
            }
        }
        let connector = tls.connector.as_ref().expect("there is one unless TLS is off");
        let tls = Blocking::connect(connector, host, tls.direct, socket).map_err(failed)?;
        Ok(Self::Tls(Box::new(tls)))
    }
}

impl Conversation {
    fn open(server: &ServerAddress, timeout: Duration, tls: Option<&ServerTls>) -> Result<Self, Failure> {
        let until = Instant::now() + timeout;
        let mut failure = Failure::HostNotFound("it has no address".to_owned());
        for address in addresses(server)? {
            match dial(&*address, until) {
                Ok(socket) => {
                    let socket = match (tls, server) {
                        (Some(tls), ServerAddress::Tcp { host, .. }) => {
                            let left = until.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
                            let limited = limit(&socket, sockopt::ReceiveTimeout, left);
                            limited.map_err(|error| Failure::from_io(&error, true, timeout))?;
                            Wire::secure(socket, tls, host, timeout)?
                        }
                        _ => Wire::Plain(socket),
                    };
                    let framer = Framer::new(Direction::Backend);
                    return Ok(Self { socket, timeout, until, framer, received: Vec::new() });
                }
                Err(error) => failure = Failure::from_io(&error, false, timeout),
            }
        }
        Err(failure)
    }

    fn send(&mut self, write: impl FnOnce(&mut Writer<'_>) -> Result<(), Full>) -> Result<(), Failure> {
        let mut room = [0; REQUEST_SIZE_MAX];
        let mut writer = Writer::new(&mut room);
        write(&mut writer).map_err(|Full| Failure::NameTooLong)?;
        let sent = self.socket.write_all(writer.written());
        sent.map_err(|error| Failure::from_io(&error, true, self.timeout))
    }

    /// What the server asks for, if it does, and whether it offers to bind that to the channel.
    fn first_word(&mut self) -> Result<Option<(String, bool)>, Failure> {
        loop {
            let (tag, message) = self.next()?;
            match tag {
                tag::AUTHENTICATION => {
                    let authentication = reader::authentication(&message).map_err(Failure::Malformed)?;
                    let binds = match &authentication {
                        Authentication::Sasl { mechanisms } => mechanisms.offers(b"SCRAM-SHA-256-PLUS"),
                        _ => false,
                    };
                    let method = method_of(&authentication).ok_or(Failure::Unexpected(tag))?;
                    return Ok(method.map(|method| (method, binds)));
                }
                tag::NEGOTIATE_PROTOCOL_VERSION | tag::NOTICE_RESPONSE => {}
                _ => return Err(Failure::Unexpected(tag)),
            }
        }
    }

    /// The whole exchange, to the end of the server's questions.
    fn log_in_with(&mut self, user: &str, secret: &Secret, iterations_max: u32) -> Result<(), Failure> {
        let credentials = outgoing::Credentials { user, secret: Some(secret), derived: None };
        let mut login = Outgoing::new(Binding::default(), iterations_max);
        let mut nonce = [0; NONCE_SIZE];
        getrandom::fill(&mut nonce).map_err(|error| Failure::NoAnswer(error.to_string()))?;
        loop {
            let (tag, message) = self.next()?;
            match tag {
                tag::NEGOTIATE_PROTOCOL_VERSION | tag::NOTICE_RESPONSE => continue,
                tag::AUTHENTICATION => {}
                _ => return Err(Failure::Unexpected(tag)),
            }
            let what = reader::authentication(&message).map_err(Failure::Malformed)?;
            let mut room = zeroize::Zeroizing::new([0; REQUEST_SIZE_MAX]);
            let mut writer = Writer::new(&mut room[..]);
            let step = login.on_message(&what, credentials, &Channel::default(), &nonce, &mut writer);
            let mut step = step.map_err(|Full| Failure::NameTooLong)?;
            while step == outgoing::Step::Work {
                step = login.work(u32::MAX, &mut writer).map_err(|Full| Failure::NameTooLong)?;
            }
            let sent = self.socket.write_all(writer.written());
            sent.map_err(|error| Failure::from_io(&error, true, self.timeout))?;
            match step {
                outgoing::Step::Going | outgoing::Step::Work => {}
                outgoing::Step::In(_) => return Ok(()),
                outgoing::Step::Failed(failed) => return Err(Failure::NoAnswer(failed.to_string())),
            }
        }
    }

    /// The server's version, from what it says between the login and ReadyForQuery.
    fn greeting(&mut self) -> Result<String, Failure> {
        let mut version = "of an unknown version".to_owned();
        loop {
            let (tag, message) = self.next()?;
            match tag {
                tag::PARAMETER_STATUS => {
                    let status = reader::parameter_status(&message).map_err(Failure::Malformed)?;
                    if status.name == b"server_version" {
                        version = text(status.value);
                    }
                }
                tag::BACKEND_KEY_DATA | tag::NOTICE_RESPONSE => {}
                tag::READY_FOR_QUERY => return Ok(version),
                _ => return Err(Failure::Unexpected(tag)),
            }
        }
    }

    /// The first value of a query's last row.
    fn value(&mut self) -> Result<Option<Vec<u8>>, Failure> {
        let mut value = None;
        loop {
            let (tag, message) = self.next()?;
            match tag {
                tag::DATA_ROW => {
                    let mut values = reader::data_row(&message).map_err(Failure::Malformed)?;
                    value = values.next().flatten().map(<[u8]>::to_vec);
                }
                tag::ROW_DESCRIPTION | tag::COMMAND_COMPLETE | tag::PARAMETER_STATUS | tag::NOTICE_RESPONSE => {}
                tag::READY_FOR_QUERY => return Ok(value),
                _ => return Err(Failure::Unexpected(tag)),
            }
        }
    }

    /// The next message, whole. An error of the server's is a failure wherever it comes.
    fn next(&mut self) -> Result<(u8, Vec<u8>), Failure> {
        loop {
            match self.framer.next(&self.received, |_, size| size as usize).map_err(Failure::Malformed)? {
                Step::Message { tag, available, .. } => {
                    let message: Vec<u8> = self.received.drain(..available).collect();
                    if tag == tag::ERROR_RESPONSE {
                        let code = reader::fields(&message).code();
                        let is_password =
                            matches!(code, Some(SqlState::INVALID_PASSWORD | SqlState::INVALID_AUTHORIZATION));
                        return Err(Failure::Refused { words: words(&message), is_password });
                    }
                    return Ok((tag, message));
                }
                Step::Incomplete { need } if need > MESSAGE_SIZE_MAX => return Err(Failure::MessageTooLong(need)),
                Step::Incomplete { .. } | Step::End => self.receive()?,
                Step::Rest { .. } => unreachable!("messages are asked for whole"),
            }
        }
    }

    fn receive(&mut self) -> Result<(), Failure> {
        let mut piece = [0; 4096];
        let left = self.until.saturating_duration_since(Instant::now());
        let read = match left.is_zero() {
            true => Err(io::ErrorKind::TimedOut.into()),
            false => {
                limit(self.socket.socket(), sockopt::ReceiveTimeout, left).and_then(|()| self.socket.read(&mut piece))
            }
        };
        match read {
            Ok(0) => Err(Failure::Closed),
            Ok(count) => {
                self.received.extend_from_slice(&piece[..count]);
                Ok(())
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(()),
            Err(error) => Err(Failure::from_io(&error, true, self.timeout)),
        }
    }
}

fn addresses(server: &ServerAddress) -> Result<Vec<Box<dyn SockaddrLike>>, Failure> {
    match server {
        ServerAddress::Unix { path } => {
            let address = UnixAddr::new(path).map_err(|error| Failure::Unreachable(Errno(error as i32)))?;
            Ok(vec![Box::new(address)])
        }
        ServerAddress::Tcp { host, port } => match (host.as_str(), *port).to_socket_addrs() {
            Ok(found) => Ok(found.map(|address| Box::new(SockaddrStorage::from(address)) as _).collect()),
            Err(error) => {
                let reason = error.to_string();
                let of_std = "failed to lookup address information: ";
                Err(Failure::HostNotFound(reason.strip_prefix(of_std).unwrap_or(&reason).to_owned()))
            }
        },
    }
}

/// As the `connect` of std, but with an end for a socket file as well, where a full backlog makes it wait.
fn dial(address: &dyn SockaddrLike, until: Instant) -> io::Result<File> {
    let left = until.saturating_duration_since(Instant::now());
    if left.is_zero() {
        return Err(io::ErrorKind::TimedOut.into());
    }
    let family = address.family().unwrap_or(AddressFamily::Unspec);
    let socket = File::from(socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?);
    limit(&socket, sockopt::SendTimeout, left)?;
    connect(socket.as_raw_fd(), address)?;
    Ok(socket)
}

/// Lets `what` of a socket take no longer than `left`. Nothing at all would mean without an end.
fn limit(socket: &File, what: impl SetSockOpt<Val = TimeVal>, left: Duration) -> io::Result<()> {
    let microseconds = i64::try_from(left.as_micros()).unwrap_or(i64::MAX).max(1);
    Ok(setsockopt(socket, what, &TimeVal::microseconds(microseconds))?)
}

/// By its name in `pg_hba.conf`; `None` for what cannot be the first word of a login. Inside: nothing is asked.
fn method_of(authentication: &Authentication<'_>) -> Option<Option<String>> {
    let method = match authentication {
        Authentication::Ok => return Some(None),
        Authentication::CleartextPassword => "password".to_owned(),
        Authentication::Md5Password { .. } => "md5".to_owned(),
        // Best first, and the plain one is what goes through a pooler.
        Authentication::Sasl { mechanisms } if mechanisms.offers(b"SCRAM-SHA-256") => "scram-sha-256".to_owned(),
        Authentication::Sasl { mechanisms } => text(mechanisms.iter().next().unwrap_or_default()).to_lowercase(),
        Authentication::Gss => "gss".to_owned(),
        Authentication::Sspi => "sspi".to_owned(),
        Authentication::Other { code } => format!("authentication method {code}"),
        Authentication::SaslContinue { .. } | Authentication::SaslFinal { .. } | Authentication::GssContinue { .. } => {
            return None;
        }
    };
    Some(Some(method))
}

/// What an ErrorResponse says.
fn words(message: &[u8]) -> String {
    let fields = reader::fields(message);
    // Not localized if there is such a one (9.6 and later).
    let severity = fields.get(field::SEVERITY).or_else(|| fields.get(field::SEVERITY_LOCALIZED));
    format!("{}: {}", text(severity.unwrap_or(b"ERROR")), text(fields.message().unwrap_or_default()))
}

/// For one line of output, whatever a server sends.
fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).replace(char::is_control, " ")
}

impl Failure {
    fn from_io(error: &io::Error, connected: bool, after: Duration) -> Failure {
        match (error.kind(), error.raw_os_error()) {
            // What a socket's time limit ends with: the last of them a `connect`.
            (io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock, _) | (_, Some(libc::EINPROGRESS)) => {
                Failure::TimedOut { connected, after }
            }
            (io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe, _) if connected => Failure::Closed,
            (_, code) => Failure::Unreachable(Errno(code.unwrap_or(libc::EIO))),
        }
    }

    /// Whether another login at the same server may do better.
    fn is_of_the_login(&self) -> bool {
        match self {
            Failure::Refused { .. }
            | Failure::NoAnswer(_)
            | Failure::NoTls(_)
            | Failure::NobodyToAnswer(_)
            | Failure::NameTooLong => true,
            Failure::HostNotFound(_)
            | Failure::Unreachable(_)
            | Failure::TimedOut { .. }
            | Failure::Closed
            | Failure::Unexpected(_)
            | Failure::Malformed(_)
            | Failure::MessageTooLong(_) => false,
        }
    }
}

impl fmt::Display for Finding<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { server, user, database, outcome } = self;
        match outcome {
            Ok(welcome) => write!(f, "{server}: ok: database {database}, user {user}: {welcome}"),
            Err(failure) if failure.is_of_the_login() => {
                write!(f, "{server}: failed: database {database}, user {user}: {failure}")
            }
            Err(failure) => write!(f, "{server}: failed: {failure}"),
        }
    }
}

impl fmt::Display for Welcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Welcome::In { version, is_standby } => {
                let role = if *is_standby { "standby" } else { "primary" };
                write!(f, "let in without a password; PostgreSQL {version}, {role}")
            }
            Welcome::Asks { method, binds } => {
                write!(f, "reachable; asks for {method}; logins are checked by the server")?;
                if *binds {
                    // Both legs are TLS, and a login is bound to one.
                    f.write_str("; clients over TLS have to connect with channel_binding=disable")?;
                }
                Ok(())
            }
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Failure::HostNotFound(reason) => write!(f, "host not found: {reason}"),
            Failure::Unreachable(errno) => errno.fmt(f),
            Failure::TimedOut { connected, after } => {
                let what = if *connected { "connected, but the login timed out" } else { "timed out" };
                let after = format_duration(*after);
                write!(f, "{what} after {after} (reconnect.connect_timeout)")
            }
            Failure::Closed => f.write_str("the server closed the connection without a word"),
            Failure::Unexpected(tag) => {
                let tag = char::from(*tag).escape_default();
                write!(f, "a message of type \"{tag}\" is no answer to a login: is it PostgreSQL?")
            }
            Failure::Malformed(malformed) => write!(f, "{malformed}: is it PostgreSQL?"),
            Failure::MessageTooLong(size) => write!(f, "a message of {size} bytes: is it PostgreSQL?"),
            Failure::NameTooLong => f.write_str("the name of the user or of the database is too long"),
            Failure::NoTls(why) => write!(f, "no TLS: {why}"),
            Failure::Refused { words, .. } => f.write_str(words),
            Failure::NoAnswer(why) => f.write_str(why),
            Failure::NobodyToAnswer(method) => {
                write!(f, "asks for {method}, and with auth: {{method: trust}} there is nobody to answer")
            }
        }
    }
}
