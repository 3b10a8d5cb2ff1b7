//! TLS on both sides, as the shard decides it: who is asked for it, what an answer to an SSLRequest means, and what a
//! handshake's end leads to. The records are `io::tls`'s.
//!
//! Invariant: nothing that was said in plaintext is taken for encrypted: bytes behind an SSLRequest, or behind its answer,
//! end the connection (CVE-2021-23214, CVE-2021-23222). A server leg that was to be encrypted is never opened in plaintext
//! instead, but by `allow` and `prefer`, whose meaning that is.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::auth::channel::{Certificate as Names, Channel};
use crate::ids::{BackendId, ClientId, ConnectionId, PoolId};
use crate::io::tls::{Acceptor, Certificate, Connector, Secure};
use crate::io::{Close, Transport};
use crate::memory::Slice;
use crate::protocol::{startup, tag::backend};
use crate::session::fault::Fault;

use super::{BackendState, Server, Shard};

/// TLS, both sides; replaced as a whole when certificates are reloaded.
#[derive(Clone, Default, Debug)]
pub struct TlsSettings {
    /// With clients.
    pub client: ClientTls,
    /// With servers, by [`super::PoolSettings::tls`].
    pub servers: Vec<ServerTls>,
}

/// How clients over TCP may connect. Unix sockets are never encrypted, as with PostgreSQL.
#[derive(Clone, Default, Debug)]
pub struct ClientTls {
    /// What is shown to them. `None`: none may use TLS.
    pub acceptor: Option<Arc<Acceptor>>,
    /// None may do without.
    pub required: bool,
    /// The certificate's common name has to be the user's.
    pub named: bool,
}

/// How servers over TCP are connected to.
#[derive(Clone, Default, Debug)]
pub struct ServerTls {
    /// Whether at all.
    pub mode: ServerMode,
    /// What is shown to them, and checked. There unless `mode` is `Disable`.
    pub connector: Option<Arc<Connector>>,
    /// Without asking by SSLRequest.
    pub direct: bool,
}

/// PostgreSQL's `sslmode`; what is checked is the connector's affair.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum ServerMode {
    /// Never.
    #[default]
    Disable,
    /// If the server does not let QCP in without.
    Allow,
    /// If the server has it.
    Prefer,
    /// Always.
    Require,
}

/// How far a connection to a server is with it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) enum Encryption {
    /// It is plaintext, or it is not decided yet.
    #[default]
    None,
    /// An SSLRequest is sent.
    Asked,
    /// Under way.
    Handshake,
    Done,
}

/// What is known of a connection to a server and its encryption.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Leg {
    pub encryption: Encryption,
    /// The first way (of `allow` or `prefer`) did not work: this is the other.
    pub second: bool,
}

/// What a server says to an SSLRequest.
enum Reply {
    Encrypt,
    Plaintext,
    Error,
    /// No answer, or more than one.
    Nonsense,
}

impl Reply {
    fn of(bytes: &[u8]) -> Self {
        match bytes {
            [startup::TLS_ACCEPTED] => Self::Encrypt,
            [startup::ENCRYPTION_REFUSED] => Self::Plaintext,
            // What the error says came before the server was known to be the one: it is not repeated (CVE-2024-10977).
            [backend::ERROR_RESPONSE, ..] => Self::Error,
            _ => Self::Nonsense,
        }
    }
}

/// Failed handshakes are logged once in so long.
const LOG_EVERY: Duration = Duration::from_secs(10);

/// Handshakes that failed, for the log.
#[derive(Default)]
pub(super) struct Failures {
    quiet_until: Option<Instant>,
    untold: u32,
}

impl<T: Transport> Shard<T> {
    /// An SSLRequest of a client's, in plaintext.
    pub(super) fn on_ssl_request(&mut self, id: ClientId) {
        let Some(client) = self.client(id) else { return };
        let (connection, is_unix) = (client.connection, client.unix);
        if self.io.facts(connection).is_some() {
            self.fail(id, &Fault::EncryptedTwice);
            return;
        }
        let acceptor = self.settings.tls.client.acceptor.clone().filter(|_| !is_unix);
        let answer = if acceptor.is_some() { startup::TLS_ACCEPTED } else { startup::ENCRYPTION_REFUSED };
        let Some(answer) = self.io.scratch().copy(&[answer]) else {
            self.leave(id);
            return;
        };
        self.io.send(connection, answer);
        if let Some(acceptor) = acceptor {
            self.io.secure(connection, Secure::Accept { acceptor, begun: None });
        }
    }

    /// A client begins with TLS at once. `false`: it may not.
    pub(super) fn on_direct_tls(&mut self, id: ClientId, begun: &Slice) -> bool {
        let Some(client) = self.client(id) else { return true };
        let (connection, is_unix) = (client.connection, client.unix);
        if self.io.facts(connection).is_some() {
            return false;
        }
        let Some(acceptor) = self.settings.tls.client.acceptor.clone().filter(|_| !is_unix) else { return false };
        self.io.secure(connection, Secure::Accept { acceptor, begun: Some(begun.clone()) });
        true
    }

    pub(super) fn on_client_secured(&mut self, id: ClientId, error: Option<String>) {
        let Some(why) = error else { return };
        if let Some(connection) = self.client(id).map(|client| client.connection) {
            self.note_failed_handshake(connection, &why);
        }
        // What it was told is on its way: the alert.
        self.dismiss(id);
    }

    fn note_failed_handshake(&mut self, connection: ConnectionId, why: &str) {
        let now = self.io.now();
        let Failures { quiet_until, untold } = &mut self.tls_failures;
        if quiet_until.is_some_and(|until| now < until) {
            *untold += 1;
            return;
        }
        *quiet_until = Some(now + LOG_EVERY);
        let untold = std::mem::take(untold);
        let more = if untold > 0 { format!(" ({untold} more since the last such line)") } else { String::new() };
        log::info!("{}: no TLS: {why}{more}", self.peer(connection));
    }

    /// Whether a client may log in over its connection as it is.
    pub(super) fn check_encryption(&self, id: ClientId) -> Result<(), Fault> {
        let Some(client) = self.clients.get(id.index, id.generation) else { return Ok(()) };
        let missing = self.settings.tls.client.required && !client.unix && self.io.facts(client.connection).is_none();
        if missing { Err(Fault::TlsRequired) } else { Ok(()) }
    }

    /// `tls.client.mode: verify-full`: whether the certificate is the user's.
    pub(super) fn check_certificate_name(&self, id: ClientId, user: &str) -> Result<(), Fault> {
        let Some(client) = self.clients.get(id.index, id.generation) else { return Ok(()) };
        if !self.settings.tls.client.named || client.unix {
            return Ok(());
        }
        let certificate = self.channel(client.connection).certificate;
        let name = certificate.and_then(|certificate| certificate.common_name);
        if name.as_deref() == Some(user) { Ok(()) } else { Err(Fault::CertificateOfAnother(user.to_owned())) }
    }

    /// What authentication may know of a connection.
    pub(super) fn channel(&self, connection: ConnectionId) -> Channel {
        let Some(facts) = self.io.facts(connection) else { return Channel::default() };
        let certificate = facts.peer_certificate.as_deref().filter(|_| facts.verified);
        let names = certificate.and_then(Certificate::read).map(|read| Names {
            common_name: read.common_name,
            distinguished_name: Some(read.distinguished_name),
            alternative_names: read.dns_names,
        });
        let end_point = (!facts.end_point.is_empty()).then(|| facts.end_point.to_vec());
        Channel { tls: true, end_point, certificate: names }
    }

    /// How the pool's server is connected to. `None`: in plaintext.
    fn tls_of(&self, pool: PoolId) -> Option<&ServerTls> {
        let pool = self.pools.get(pool);
        let tls = self.settings.tls.servers.get(pool.settings.tls_to(&pool.key.server))?;
        let is_tcp = matches!(pool.key.server, Server::Tcp(..));
        (is_tcp && tls.mode != ServerMode::Disable && tls.connector.is_some()).then_some(tls)
    }

    /// A connection to a server is made. Begins what comes before the login; `false`: nothing does.
    pub(super) fn begin_encryption(&mut self, id: BackendId) -> bool {
        let Some(backend) = self.backends.get(id.index, id.generation) else { return false };
        let (pool, second) = (backend.pool, backend.leg.second);
        let connection = backend.connection.expect("it has just been connected");
        let Some(tls) = self.tls_of(pool) else { return false };
        let direct = tls.direct;
        let encrypts = match tls.mode {
            ServerMode::Disable => false,
            ServerMode::Allow => second,
            ServerMode::Prefer => !second,
            ServerMode::Require => true,
        };
        if !encrypts {
            return false;
        }
        if direct {
            self.secure_leg(pool, connection, true);
            self.backend(id).expect("looked up above").leg.encryption = Encryption::Handshake;
        } else {
            self.backend(id).expect("looked up above").leg.encryption = Encryption::Asked;
            match self.io.scratch().copy(&startup::SSL_REQUEST_PACKET) {
                Some(request) => self.io.send(connection, request),
                None => self.on_backend_gone(id, "the arena is used up"),
            }
        }
        true
    }

    fn secure_leg(&mut self, pool: PoolId, connection: ConnectionId, direct: bool) {
        let connector = self.tls_of(pool).and_then(|tls| tls.connector.clone());
        let connector = connector.expect("asked for only where there is one");
        let host = match &self.pools.get(pool).key.server {
            Server::Tcp(host, _) => host.clone(),
            Server::Unix(_) => unreachable!("a Unix socket is not encrypted"),
        };
        self.io.secure(connection, Secure::Connect { connector, host, direct });
    }

    /// Bytes of a server's before its login.
    pub(super) fn on_ssl_reply(&mut self, id: BackendId, bytes: &[u8]) {
        let Some(backend) = self.backend(id) else { return };
        let (pool, Some(connection)) = (backend.pool, backend.connection) else { return };
        if backend.leg.encryption != Encryption::Asked {
            return self.on_backend_gone(id, "it speaks before it is spoken to");
        }
        match Reply::of(bytes) {
            Reply::Encrypt => {
                backend.leg.encryption = Encryption::Handshake;
                self.secure_leg(pool, connection, false);
            }
            Reply::Plaintext => {
                backend.leg.encryption = Encryption::None;
                let first_of_prefer = !backend.leg.second && self.mode_of_leg(pool) == ServerMode::Prefer;
                if first_of_prefer {
                    self.backend(id).expect("looked up above").leg.second = true;
                    self.begin_backend_login(id);
                } else {
                    self.on_backend_gone(id, "it has no TLS, and tls.server.mode demands it");
                }
            }
            Reply::Error => {
                if !self.try_other_way(id) {
                    self.on_backend_gone(id, "it answered the SSLRequest with an error");
                }
            }
            Reply::Nonsense => self.on_backend_gone(id, "its answer to the SSLRequest makes no sense"),
        }
    }

    fn mode_of_leg(&self, pool: PoolId) -> ServerMode {
        self.tls_of(pool).map(|tls| tls.mode).unwrap_or_default()
    }

    pub(super) fn on_backend_secured(&mut self, id: BackendId, error: Option<String>) {
        let Some(backend) = self.backend(id) else { return };
        match error {
            None => {
                backend.leg.encryption = Encryption::Done;
                self.begin_backend_login(id);
            }
            Some(why) => {
                if !self.try_other_way(id) {
                    self.on_backend_gone(id, &format!("TLS: {why}"));
                }
            }
        }
    }

    /// By `allow` and `prefer`, what did not work with TLS is tried without, and the other way round; once.
    pub(super) fn try_other_way(&mut self, id: BackendId) -> bool {
        let Some(backend) = self.backend(id) else { return false };
        let (pool, second) = (backend.pool, backend.leg.second);
        let has_two_ways = matches!(self.mode_of_leg(pool), ServerMode::Allow | ServerMode::Prefer);
        if second || !has_two_ways {
            return false;
        }
        let backend = self.backend(id).expect("looked up above");
        let (Some(connection), Some(address)) = (backend.connection.take(), backend.address.clone()) else {
            return false;
        };
        backend.leg = Leg { encryption: Encryption::None, second: true };
        backend.state = BackendState::Connecting;
        backend.framer = crate::protocol::Framer::new(crate::protocol::Direction::Backend);
        backend.stash.clear();
        backend.reported.clear();
        self.io.close(connection, Close::Now);
        self.connect(id, address);
        true
    }

    /// A cancel connection is made; `true`: it is encrypted first, as its backend's is.
    pub(super) fn begin_cancel_encryption(&mut self, index: u32, generation: u32) -> bool {
        let Some(cancel) = self.cancels.get(index, generation) else { return false };
        let (connection, id) = (cancel.connection, cancel.backend);
        let Some(backend) = self.backends.get(id.index, id.generation) else { return false };
        if backend.leg.encryption != Encryption::Done {
            return false;
        }
        let pool = backend.pool;
        // The configuration may have changed since; in plaintext it does not go.
        let direct = self.tls_of(pool).map(|tls| tls.direct);
        let request = match direct {
            Some(true) => {
                self.secure_leg(pool, connection, true);
                None
            }
            Some(false) => self.io.scratch().copy(&startup::SSL_REQUEST_PACKET),
            None => None,
        };
        let cancel = self.cancels.get_mut(index, generation).expect("looked up above");
        match (direct, request) {
            (Some(true), _) => cancel.encryption = Encryption::Handshake,
            (_, Some(request)) => {
                cancel.encryption = Encryption::Asked;
                self.io.send(connection, request);
            }
            (_, None) => self.on_cancel_ended(index, generation),
        }
        true
    }

    /// Bytes on a cancel connection: the answer to its SSLRequest, or nothing that matters.
    pub(super) fn on_cancel_bytes(&mut self, index: u32, generation: u32, bytes: &[u8]) {
        let Some(cancel) = self.cancels.get_mut(index, generation) else { return };
        if cancel.encryption != Encryption::Asked {
            return;
        }
        cancel.encryption = Encryption::Handshake;
        let (connection, id) = (cancel.connection, cancel.backend);
        let pool = self.backend(id).map(|backend| backend.pool);
        match (Reply::of(bytes), pool) {
            (Reply::Encrypt, Some(pool)) if self.tls_of(pool).is_some() => self.secure_leg(pool, connection, false),
            _ => self.on_cancel_ended(index, generation),
        }
    }

    pub(super) fn on_cancel_secured(&mut self, index: u32, generation: u32, failed: bool) {
        let Some(cancel) = self.cancels.get_mut(index, generation) else { return };
        if failed {
            self.on_cancel_ended(index, generation);
            return;
        }
        cancel.encryption = Encryption::Done;
        self.send_cancel(index, generation);
    }
}

/// Whether a client's first answer in SASL says that it could bind the channel and saw no offer to: the server, which did
/// offer it, would take that for somebody in between.
pub(super) fn could_have_bound(initial_response: &[u8]) -> bool {
    // Tag and length, the mechanism's name, the length of the data, the data: "y,,n=,r=...".
    let Some(body) = initial_response.get(5..) else { return false };
    let Some(name) = body.iter().position(|&byte| byte == 0) else { return false };
    body.get(name + 5) == Some(&b'y')
}
