//! One handshake, step by step: rustls's state machine, the bytes that have come for it, and what it leaves behind.
//!
//! Invariant: what came with the last message of the handshake is neither lost nor taken for plaintext: whole records are
//! opened by rustls, the rest is the beginning of the channel's first record.

use std::sync::Arc;

use rustls::ProtocolVersion;
use rustls::client::UnbufferedClientConnection;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::server::UnbufferedServerConnection;
use rustls::unbuffered::{ConnectionState, EncodeError, UnbufferedStatus};

use super::certificate;
use super::channel::{Channel, Kernel};
use super::record::{Opener, RECORD_SIZE_MAX, Sealer, alert};
use super::settings::{ALPN, Acceptor, Connector};

/// Bytes of a handshake that are kept, at most: a client's certificates are the longest of it.
pub(super) const HANDSHAKE_SIZE_MAX: usize = 32 * 1024;

enum Side {
    Server { connection: UnbufferedServerConnection, acceptor: Arc<Acceptor>, demands_alpn: bool },
    Client { connection: UnbufferedClientConnection, verifies: bool, demands_alpn: bool },
}

/// A handshake under way.
pub(super) struct Handshake {
    side: Option<Side>,
    incoming: Vec<u8>,
    /// Data that came with the peer's last message.
    plaintext: Vec<u8>,
    /// It stands in the queue of those that can go on.
    pub queued: bool,
    /// The number of the certificate that was shown.
    shown: Option<usize>,
}

/// What a finished handshake has found out.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    /// As `TLSv1.3`.
    pub version: &'static str,
    /// The cipher suite's name.
    pub cipher: String,
    /// The peer's own certificate, DER, where it has shown one.
    pub peer_certificate: Option<Box<[u8]>>,
    /// Whether that certificate was checked against the configured authorities.
    pub verified: bool,
    /// Of the server's certificate (on a client's connection QCP's own), for channel binding `tls-server-end-point`; empty
    /// where there is none.
    pub end_point: Box<[u8]>,
}

/// How far a step came.
pub(super) enum Progress {
    /// The peer is to speak.
    Waiting,
    /// Through: the channel, what was found out, and the data that came already.
    Done(Box<Channel>, Facts, Vec<u8>),
    /// Refused; what is to be sent says why.
    Failed(String),
}

/// What one look at rustls's state brought.
enum Look {
    Again,
    Waiting,
    Open,
    Closed,
    Failed(rustls::Error),
}

/// Both sides have the same methods, and no trait in common.
macro_rules! look {
    ($connection:expr, $incoming:expr, $plaintext:expr, $outgoing:expr) => {{
        let UnbufferedStatus { discard, state } = $connection.process_tls_records(&mut $incoming[..]);
        let look = match state {
            Ok(ConnectionState::EncodeTlsData(mut data)) => {
                encode(|room| data.encode(room), $outgoing);
                Look::Again
            }
            Ok(ConnectionState::TransmitTlsData(data)) => {
                data.done();
                Look::Again
            }
            Ok(ConnectionState::ReadTraffic(mut data)) => {
                let mut look = Look::Again;
                while let Some(record) = data.next_record() {
                    match record {
                        Ok(record) => $plaintext.extend_from_slice(record.payload),
                        Err(error) => look = Look::Failed(error),
                    }
                }
                look
            }
            Ok(ConnectionState::BlockedHandshake) => Look::Waiting,
            Ok(ConnectionState::WriteTraffic(_)) => Look::Open,
            Ok(_) => Look::Closed,
            Err(error) => Look::Failed(error),
        };
        $incoming.drain(..discard);
        look
    }};
}

fn encode(mut encode: impl FnMut(&mut [u8]) -> Result<usize, EncodeError>, outgoing: &mut Vec<u8>) {
    let at = outgoing.len();
    let mut size = 0;
    // The first try says how much room is needed.
    for _ in 0..2 {
        outgoing.resize(at + size, 0);
        match encode(&mut outgoing[at..]) {
            Ok(written) => {
                outgoing.truncate(at + written);
                return;
            }
            Err(EncodeError::InsufficientSize(needed)) => size = needed.required_size,
            Err(EncodeError::AlreadyEncoded) => return,
        }
    }
}

impl Handshake {
    /// As the one who is spoken to. `demands_alpn`: the client began with TLS at once, and has to name the protocol.
    pub(super) fn accept(acceptor: Arc<Acceptor>, demands_alpn: bool) -> Result<Self, String> {
        let connection = UnbufferedServerConnection::new(acceptor.config.clone()).map_err(|error| describe(&error))?;
        Ok(Self::new(Side::Server { connection, acceptor, demands_alpn }))
    }

    /// As the one who speaks first, to `host`.
    pub(super) fn connect(connector: &Connector, host: String, demands_alpn: bool) -> Result<Self, String> {
        let name = ServerName::try_from(host).map_err(|_| "its name is no host name".to_owned())?;
        let connection = UnbufferedClientConnection::new(connector.config.clone(), name);
        let connection = connection.map_err(|error| describe(&error))?;
        Ok(Self::new(Side::Client { connection, verifies: connector.verifies, demands_alpn }))
    }

    fn new(side: Side) -> Self {
        Self { side: Some(side), incoming: Vec::new(), plaintext: Vec::new(), queued: false, shown: None }
    }

    /// Bytes of the peer's, for the next step; they have room.
    pub(super) fn add(&mut self, bytes: &[u8]) {
        assert!(bytes.len() <= self.room());
        self.incoming.extend_from_slice(bytes);
    }

    /// Bytes that can be added now.
    pub(super) fn room(&self) -> usize {
        HANDSHAKE_SIZE_MAX - self.incoming.len()
    }

    /// Whether the step with the signature is behind it.
    pub(super) fn has_begun(&self) -> bool {
        self.shown.is_some() || self.speaks_first()
    }

    /// Whether the first step needs nothing of the peer's.
    pub(super) fn speaks_first(&self) -> bool {
        matches!(self.side, Some(Side::Client { .. }))
    }

    /// Goes as far as what has come allows; what is to be sent is appended to `outgoing`.
    pub(super) fn step(&mut self, outgoing: &mut Vec<u8>) -> Progress {
        loop {
            match self.look(outgoing) {
                Look::Again => {}
                Look::Failed(error) => {
                    // The alert about it stands in the queue, perhaps behind other messages. As long as anything does, a
                    // look takes it and does not look at what came, of which rustls has given up in the middle.
                    while self.has_queued() {
                        let _ = self.look(outgoing);
                    }
                    return Progress::Failed(describe(&error));
                }
                Look::Closed => return Progress::Failed("the peer closed during the handshake".to_owned()),
                Look::Waiting => return Progress::Waiting,
                Look::Open if self.is_handshaking() => return Progress::Waiting,
                Look::Open => return self.finish(outgoing),
            }
        }
    }

    /// Whether messages stand ready to be sent.
    fn has_queued(&self) -> bool {
        match &self.side {
            Some(Side::Server { connection, .. }) => connection.wants_write(),
            Some(Side::Client { connection, .. }) => connection.wants_write(),
            None => false,
        }
    }

    fn look(&mut self, outgoing: &mut Vec<u8>) -> Look {
        match self.side.as_mut().expect("a finished handshake is not stepped") {
            Side::Server { connection, acceptor, .. } => {
                let look = look!(connection, self.incoming, self.plaintext, outgoing);
                self.shown = acceptor.take_shown().or(self.shown);
                look
            }
            Side::Client { connection, .. } => look!(connection, self.incoming, self.plaintext, outgoing),
        }
    }

    /// May be: this side could send already, but the peer's last message is not here.
    fn is_handshaking(&self) -> bool {
        match &self.side {
            Some(Side::Server { connection, .. }) => connection.is_handshaking(),
            Some(Side::Client { connection, .. }) => connection.is_handshaking(),
            None => false,
        }
    }

    fn finish(&mut self, outgoing: &mut Vec<u8>) -> Progress {
        let side = self.side.take().expect("looked at by the caller");
        let (facts, has_alpn, demands_alpn, converted) = match side {
            Side::Server { connection, acceptor, demands_alpn } => {
                let mut facts = facts(&connection, acceptor.verifies);
                facts.end_point = self.shown.map(|at| acceptor.end_point(at)).unwrap_or_default();
                let has_alpn = connection.alpn_protocol() == Some(ALPN);
                let converted = connection.dangerous_into_kernel_connection();
                (facts, has_alpn, demands_alpn, converted.map(|(secrets, kernel)| (secrets, Kernel::Server(kernel))))
            }
            Side::Client { connection, verifies, demands_alpn } => {
                let mut facts = facts(&connection, verifies);
                facts.end_point = facts.peer_certificate.as_deref().map(certificate::end_point).unwrap_or_default();
                let has_alpn = connection.alpn_protocol() == Some(ALPN);
                let converted = connection.dangerous_into_kernel_connection();
                (facts, has_alpn, demands_alpn, converted.map(|(secrets, kernel)| (secrets, Kernel::Client(kernel))))
            }
        };
        let (secrets, kernel) = match converted {
            Ok(converted) => converted,
            Err(error) => return Progress::Failed(describe(&error)),
        };
        let is_13 = facts.version == "TLSv1.3";
        let sealer = Sealer::new(&secrets.tx.1, secrets.tx.0, is_13);
        let opener = Opener::new(&secrets.rx.1, secrets.rx.0, is_13);
        let (Some(sealer), Some(opener)) = (sealer, opener) else {
            return Progress::Failed("a cipher that is not known here".to_owned());
        };
        let mut channel = Channel::new(kernel, sealer, opener, is_13);
        if demands_alpn && !has_alpn {
            let mut room = [0; Channel::CONTROL_SIZE_MAX];
            let size = channel.seal_alert(alert::NO_APPLICATION_PROTOCOL, &mut room).unwrap_or_default();
            outgoing.extend_from_slice(&room[..size]);
            return Progress::Failed("TLS without SSLRequest needs ALPN to name postgresql".to_owned());
        }
        if self.incoming.len() > RECORD_SIZE_MAX {
            return Progress::Failed("a record is too long".to_owned());
        }
        if !self.incoming.is_empty() {
            channel.begun = std::mem::take(&mut self.incoming);
        }
        Progress::Done(Box::new(channel), facts, std::mem::take(&mut self.plaintext))
    }
}

fn facts(connection: &rustls::CommonState, verified: bool) -> Facts {
    let certificate = connection.peer_certificates().and_then(|chain: &[CertificateDer<'_>]| chain.first());
    Facts {
        version: match connection.protocol_version() {
            Some(ProtocolVersion::TLSv1_3) => "TLSv1.3",
            Some(ProtocolVersion::TLSv1_2) => "TLSv1.2",
            _ => "unknown",
        },
        cipher: connection
            .negotiated_cipher_suite()
            .and_then(|suite| suite.suite().as_str().map(str::to_owned))
            .unwrap_or_default(),
        peer_certificate: certificate.map(|certificate| certificate.as_ref().into()),
        verified: verified && certificate.is_some(),
        end_point: Box::default(),
    }
}

/// For the log and for people: rustls's own words, without its type names where there are better ones.
pub(super) fn describe(error: &rustls::Error) -> String {
    use rustls::{CertificateError, Error};
    match error {
        Error::NoCertificatesPresented => "the peer has shown no certificate".to_owned(),
        Error::InvalidCertificate(CertificateError::UnknownIssuer) => {
            "the certificate is not signed by a configured authority".to_owned()
        }
        Error::InvalidCertificate(CertificateError::Expired | CertificateError::ExpiredContext { .. }) => {
            "the certificate has expired".to_owned()
        }
        Error::InvalidMessage(_) => "what came is not TLS".to_owned(),
        Error::AlertReceived(alert) => format!("the peer refused: {}", alert.as_str().unwrap_or("an unknown alert")),
        other => other.to_string(),
    }
}
