//! `tls`: with clients and with servers. What the files hold is read by `process::tls`; here is what can be said without
//! them.

use std::path::PathBuf;

use super::file;
use super::problem::{Error, KeyPath, Problem};
use super::resolve::Source;
use super::values::Parsed;

/// PostgreSQL's `sslmode`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub enum TlsMode {
    /// No TLS.
    #[default]
    Disable,
    /// With clients: as they like. With servers: if they do not let QCP in without.
    Allow,
    /// With clients: as they like. With servers: if they have it.
    Prefer,
    /// Always.
    Require,
    /// And the peer's certificate is signed by an authority.
    VerifyCa,
    /// And it is for the configured host (servers) or for the user (clients).
    VerifyFull,
}

/// The oldest version that is spoken.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum TlsVersion {
    #[default]
    V1_2,
    V1_3,
}

/// How a server is asked for TLS.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Negotiation {
    /// By an SSLRequest.
    #[default]
    Postgres,
    /// Not at all: TLS from the first byte, with ALPN. PostgreSQL 17 has it.
    Direct,
}

/// With clients.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct ClientTls {
    pub mode: TlsMode,
    /// Certificates and their keys, the one that is shown where no name fits first.
    pub pairs: Vec<(PathBuf, PathBuf)>,
    /// The first pair is `certificate` and `key`, not an element of `certificates`.
    pub has_own_pair: bool,
    pub ca: Option<PathBuf>,
    pub allowed: TlsAllowed,
}

/// With servers.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ServerTls {
    pub mode: TlsMode,
    /// What servers are shown that ask for a certificate.
    pub pair: Option<(PathBuf, PathBuf)>,
    pub ca: Option<PathBuf>,
    pub sni: bool,
    pub negotiation: Negotiation,
    pub allowed: TlsAllowed,
}

impl Default for ServerTls {
    fn default() -> ServerTls {
        ServerTls {
            mode: TlsMode::Disable,
            pair: None,
            ca: None,
            sni: true,
            negotiation: Negotiation::Postgres,
            allowed: TlsAllowed::default(),
        }
    }
}

/// What is allowed; empty lists: what is good today.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct TlsAllowed {
    pub minimum_version: TlsVersion,
    pub ciphers: Vec<String>,
    pub curves: Vec<String>,
}

/// A chunk has to hold the longest record, 18 KB.
pub const TLS_CHUNK_SIZE_MIN: usize = 20 * 1024;

pub(super) fn client(source: &Source, written: file::ClientTls) -> Result<ClientTls, Error> {
    let path = KeyPath::of(["tls", "client"]);
    let own = pair(source, &path, written.certificate, written.key)?;
    let has_own_pair = own.is_some();
    let mut pairs: Vec<_> = own.into_iter().collect();
    for (index, written) in written.certificates.unwrap_or_default().into_iter().enumerate() {
        let element = path.join(["certificates"]).element(index);
        match pair(source, &element, written.certificate, written.key)? {
            Some(pair) => pairs.push(pair),
            None => return Err(source.error(element, Problem::MissingKey("certificate"))),
        }
    }
    let mode = written.mode.map(|mode| mode.0).unwrap_or_default();
    let ca = written.ca.map(|path| path.0);
    if mode > TlsMode::Disable && pairs.is_empty() {
        return Err(source.error(path, Problem::MissingKey("certificate")));
    }
    if mode >= TlsMode::VerifyCa && ca.is_none() {
        return Err(source.error(path, Problem::MissingKey("ca")));
    }
    let allowed = allowed(written.minimum_version, written.ciphers, written.curves);
    Ok(ClientTls { mode, pairs, has_own_pair, ca, allowed })
}

/// `path`: of the map.
pub(super) fn server(source: &Source, path: &KeyPath, written: file::ServerTls) -> Result<ServerTls, Error> {
    let mode = written.mode.map(|mode| mode.0).unwrap_or_default();
    let ca = written.ca.map(|path| path.0);
    if mode >= TlsMode::VerifyCa && ca.is_none() {
        return Err(source.error(path.clone(), Problem::MissingKey("ca")));
    }
    let negotiation = written.negotiation.map(|negotiation| negotiation.0).unwrap_or_default();
    // libpq has the same rule: a server that is not asked cannot say no.
    if negotiation == Negotiation::Direct && mode < TlsMode::Require {
        let problem = Problem::value("direct", "postgres, unless mode is require, verify-ca or verify-full");
        return Err(source.error(path.join(["negotiation"]), problem));
    }
    Ok(ServerTls {
        mode,
        pair: pair(source, path, written.certificate, written.key)?,
        ca,
        sni: written.sni.unwrap_or(true),
        negotiation,
        allowed: allowed(written.minimum_version, written.ciphers, written.curves),
    })
}

type File = Option<Parsed<PathBuf>>;

/// A certificate and its key: both, or neither.
fn pair(source: &Source, path: &KeyPath, certificate: File, key: File) -> Result<Option<(PathBuf, PathBuf)>, Error> {
    match (certificate, key) {
        (Some(certificate), Some(key)) => Ok(Some((certificate.0, key.0))),
        (None, None) => Ok(None),
        (Some(_), None) => Err(source.error(path.clone(), Problem::MissingKey("key"))),
        (None, Some(_)) => Err(source.error(path.clone(), Problem::MissingKey("certificate"))),
    }
}

fn allowed(
    minimum_version: Option<Parsed<TlsVersion>>,
    ciphers: Option<Vec<String>>,
    curves: Option<Vec<String>>,
) -> TlsAllowed {
    TlsAllowed {
        minimum_version: minimum_version.map(|version| version.0).unwrap_or_default(),
        ciphers: ciphers.unwrap_or_default(),
        curves: curves.unwrap_or_default(),
    }
}
