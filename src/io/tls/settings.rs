//! What handshakes are made with: certificates, keys, authorities and what is allowed, read from files at start and at each
//! reload. Whatever is wrong with them is found here, before a client comes.

use std::cell::Cell;
use std::fmt;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{Resumption, verify_server_cert_signed_by_trust_anchor, verify_server_name};
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms, aws_lc_rs};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::{
    ClientHello, NoServerSessionStorage, ParsedCertificate, ResolvesServerCert, WebPkiClientVerifier,
};
use rustls::sign::CertifiedKey;
use rustls::version::{TLS12, TLS13};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore, ServerConfig, SignatureScheme,
    SupportedProtocolVersion,
};
use zeroize::Zeroize;

use super::certificate::{self, Certificate};

/// The protocol's name in ALPN.
pub const ALPN: &[u8] = b"postgresql";

/// The oldest version that is spoken; older ones than 1.2 never are.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Version {
    /// TLS 1.2.
    #[default]
    V1_2,
    /// TLS 1.3.
    V1_3,
}

/// Names of what is allowed; empty: what is good today.
#[derive(Clone, Copy, Debug)]
pub struct Allowed<'a> {
    /// The oldest version.
    pub minimum_version: Version,
    /// Cipher suites, by IANA's names or OpenSSL's.
    pub ciphers: &'a [String],
    /// Groups for the key exchange.
    pub curves: &'a [String],
}

/// What is wrong with the settings.
#[derive(Debug)]
pub struct Fault {
    /// Which of them.
    pub about: About,
    /// What is wrong with it.
    pub problem: String,
}

/// A setting that can be at fault.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum About {
    /// The certificate's file; of several, which.
    Certificate(usize),
    /// The key's file; of several, which.
    Key(usize),
    /// The authorities' file.
    Authority,
    /// The cipher suites' names.
    Ciphers,
    /// The groups' names.
    Curves,
}

fn fault<T>(about: About, problem: impl fmt::Display) -> Result<T, Fault> {
    Err(Fault { about, problem: problem.to_string() })
}

/// How QCP answers clients' handshakes. One for all shards.
pub struct Acceptor {
    pub(super) config: Arc<ServerConfig>,
    /// Clients' certificates are checked against an authority.
    pub(super) verifies: bool,
    end_points: Vec<Box<[u8]>>,
    authority: Vec<u8>,
}

impl fmt::Debug for Acceptor {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "Acceptor({} certificates)", self.end_points.len())
    }
}

thread_local! {
    /// rustls asks for a certificate in the middle of a step and does not say later which one it was given.
    static SHOWN: Cell<Option<usize>> = const { Cell::new(None) };
}

impl Acceptor {
    /// `pairs` are certificates and their keys; the first is shown where no name fits. `before`: what it replaces, so that
    /// clients' tickets stay good where the authority has not changed.
    pub fn new(
        pairs: &[(&Path, &Path)],
        authority: Option<&Path>,
        demands_certificate: bool,
        allowed: Allowed<'_>,
        before: Option<&Acceptor>,
    ) -> Result<Self, Fault> {
        let provider = provider(allowed)?;
        let mut shown = Vec::new();
        for (at, (certificate, key)) in pairs.iter().enumerate() {
            shown.push(Shown::read(at, certificate, key, &provider)?);
        }
        let end_points = shown.iter().map(|shown| shown.end_point.clone()).collect();
        let (roots, text) = match authority {
            Some(path) => read_authority(path).map(|(roots, text)| (Some(roots), text))?,
            None => (None, Vec::new()),
        };
        let builder = ServerConfig::builder_with_provider(provider.clone());
        let builder =
            builder.with_protocol_versions(versions(allowed)).or_else(|error| fault(About::Ciphers, error))?;
        let builder = match roots {
            None => builder.with_no_client_auth(),
            Some(roots) => {
                let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
                let verifier = if demands_certificate { verifier } else { verifier.allow_unauthenticated() };
                let verifier = verifier.build().or_else(|error| fault(About::Authority, error))?;
                builder.with_client_cert_verifier(verifier)
            }
        };
        let mut config = builder.with_cert_resolver(Arc::new(Shelf(shown)));
        config.alpn_protocols = vec![ALPN.to_vec()];
        config.session_storage = Arc::new(NoServerSessionStorage {});
        // A ticket stands for a certificate that was checked then, by the authority of then.
        let kept = before.filter(|before| before.authority == text).map(|before| before.config.ticketer.clone());
        config.ticketer = match kept {
            Some(ticketer) => ticketer,
            None => aws_lc_rs::Ticketer::new().or_else(|error| fault(About::Key(0), error))?,
        };
        // Drivers take the first, if any.
        config.send_tls13_tickets = 1;
        config.enable_secret_extraction = true;
        Ok(Self { config: Arc::new(config), verifies: authority.is_some(), end_points, authority: text })
    }

    /// The certificate that the step just made has shown, if it was that step.
    pub(super) fn take_shown(&self) -> Option<usize> {
        SHOWN.take()
    }

    pub(super) fn end_point(&self, at: usize) -> Box<[u8]> {
        self.end_points.get(at).cloned().unwrap_or_default()
    }
}

/// A certificate that clients are shown.
#[derive(Debug)]
struct Shown {
    names: Vec<String>,
    key: Arc<CertifiedKey>,
    end_point: Box<[u8]>,
}

/// All of them.
#[derive(Debug)]
struct Shelf(Vec<Shown>);

impl ResolvesServerCert for Shelf {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let fits = |shown: &Shown, host: &str| shown.names.iter().any(|name| certificate::is_for(name, host));
        let named = hello.server_name().and_then(|host| self.0.iter().position(|shown| fits(shown, host)));
        let at = named.unwrap_or_default();
        SHOWN.set(Some(at));
        self.0.get(at).map(|shown| shown.key.clone())
    }
}

impl Shown {
    fn read(at: usize, certificate: &Path, key: &Path, provider: &CryptoProvider) -> Result<Self, Fault> {
        let (chain, key) = read_pair(at, certificate, key)?;
        let first = chain[0].clone();
        let Some(read) = Certificate::read(&first) else {
            return fault(About::Certificate(at), "its first certificate is not X.509");
        };
        let key = certified(at, chain, key, provider)?;
        let names = read.host_names().map(str::to_owned).collect();
        Ok(Self { names, key: Arc::new(key), end_point: certificate::end_point(&first) })
    }
}

/// How QCP speaks TLS to servers. One for all shards and for all servers with the same settings.
pub struct Connector {
    pub(super) config: Arc<ClientConfig>,
    /// Servers' certificates are checked against an authority.
    pub(super) verifies: bool,
}

impl fmt::Debug for Connector {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Connector")
    }
}

/// How much of a server's certificate is checked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Trust {
    /// Nothing: what is encrypted may be encrypted for anybody.
    Blind,
    /// That an authority has signed it.
    Authority,
    /// And that it is for the host that was configured.
    Host,
}

impl Connector {
    /// `pair` is what servers are shown that ask for a certificate.
    pub fn new(
        trust: Trust,
        authority: Option<&Path>,
        pair: Option<(&Path, &Path)>,
        sni: bool,
        allowed: Allowed<'_>,
    ) -> Result<Self, Fault> {
        let provider = provider(allowed)?;
        let (roots, anchors) = match authority {
            Some(path) => {
                let (roots, text) = read_authority(path)?;
                let anchors = CertificateDer::pem_slice_iter(&text).filter_map(Result::ok).collect();
                (Some(roots), anchors)
            }
            None if trust == Trust::Blind => (None, Vec::new()),
            None => return fault(About::Authority, "is missing, and mode demands that certificates are checked"),
        };
        let check = ServerCheck {
            roots: if trust == Trust::Blind { None } else { roots },
            anchors,
            host: trust == Trust::Host,
            algorithms: provider.signature_verification_algorithms,
        };
        let builder = ClientConfig::builder_with_provider(provider.clone());
        let builder =
            builder.with_protocol_versions(versions(allowed)).or_else(|error| fault(About::Ciphers, error))?;
        let builder = builder.dangerous().with_custom_certificate_verifier(Arc::new(check));
        let mut config = match pair {
            None => builder.with_no_client_auth(),
            Some((certificate, key)) => {
                let (chain, key) = read_pair(0, certificate, key)?;
                let key = certified(0, chain, key, &provider)?;
                builder.with_client_cert_resolver(Arc::new(rustls::sign::SingleCertAndKey::from(key)))
            }
        };
        config.alpn_protocols = vec![ALPN.to_vec()];
        config.resumption = Resumption::disabled();
        config.enable_sni = sni;
        config.enable_secret_extraction = true;
        Ok(Self { config: Arc::new(config), verifies: trust != Trust::Blind })
    }
}

/// Checks servers' certificates as libpq does, which is not quite what the web does: an authority alone may be enough, and
/// a certificate that is its own authority is one.
#[derive(Debug)]
struct ServerCheck {
    /// `None`: nothing is checked.
    roots: Option<RootCertStore>,
    anchors: Vec<CertificateDer<'static>>,
    host: bool,
    algorithms: WebPkiSupportedAlgorithms,
}

impl ServerCertVerifier for ServerCheck {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let Some(roots) = &self.roots else { return Ok(ServerCertVerified::assertion()) };
        let encoding = || Error::InvalidCertificate(CertificateError::BadEncoding);
        let read = Certificate::read(end_entity).ok_or_else(encoding)?;
        if self.anchors.iter().any(|anchor| anchor.as_ref() == end_entity.as_ref()) {
            // The file names this very certificate: what is left to check is its time.
            let now = now.as_secs() as i64;
            if now < read.valid.0 {
                return Err(Error::InvalidCertificate(CertificateError::NotValidYet));
            }
            if now > read.valid.1 {
                return Err(Error::InvalidCertificate(CertificateError::Expired));
            }
        } else {
            let parsed = ParsedCertificate::try_from(end_entity)?;
            verify_server_cert_signed_by_trust_anchor(&parsed, roots, intermediates, now, self.algorithms.all)?;
        }
        if !self.host {
            return Ok(ServerCertVerified::assertion());
        }
        match server_name {
            // "If the certificate's SAN has no name of the type dNSName, the common name is used" (libpq, verify-full).
            ServerName::DnsName(host) if read.dns_names.is_empty() => {
                let fits = read.host_names().any(|name| certificate::is_for(name, host.as_ref()));
                if !fits {
                    return Err(Error::InvalidCertificate(CertificateError::NotValidForName));
                }
            }
            _ => verify_server_name(&ParsedCertificate::try_from(end_entity)?, server_name)?,
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        if self.roots.is_none() {
            return Ok(HandshakeSignatureValid::assertion());
        }
        rustls::crypto::verify_tls12_signature(message, cert, signed, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        if self.roots.is_none() {
            return Ok(HandshakeSignatureValid::assertion());
        }
        rustls::crypto::verify_tls13_signature(message, cert, signed, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

fn versions(allowed: Allowed<'_>) -> &'static [&'static SupportedProtocolVersion] {
    static BOTH: [&SupportedProtocolVersion; 2] = [&TLS13, &TLS12];
    match allowed.minimum_version {
        Version::V1_2 => &BOTH,
        Version::V1_3 => &BOTH[..1],
    }
}

fn provider(allowed: Allowed<'_>) -> Result<Arc<CryptoProvider>, Fault> {
    let mut provider = aws_lc_rs::default_provider();
    if !allowed.ciphers.is_empty() {
        let mut chosen = Vec::new();
        for name in allowed.ciphers {
            let known = provider.cipher_suites.iter().find(|suite| {
                let own = suite.suite().as_str().unwrap_or_default();
                // rustls calls those of 1.3 TLS13_..., IANA TLS_...
                let own = own.replacen("TLS13_", "TLS_", 1);
                own.eq_ignore_ascii_case(name) || openssl_name(&own).eq_ignore_ascii_case(name)
            });
            match known {
                Some(suite) => chosen.push(*suite),
                None => {
                    let known = provider.cipher_suites.iter().filter_map(|suite| suite.suite().as_str());
                    let known: Vec<_> = known.map(|name| name.replacen("TLS13_", "TLS_", 1)).collect();
                    return fault(About::Ciphers, format!("{name:?} is not one of {}", known.join(", ")));
                }
            }
        }
        provider.cipher_suites = chosen;
    }
    if !allowed.curves.is_empty() {
        let mut chosen = Vec::new();
        for name in allowed.curves {
            let known = CURVES.iter().position(|names| names.iter().any(|known| known.eq_ignore_ascii_case(name)));
            let group = known.and_then(|at| {
                let group = [
                    aws_lc_rs::kx_group::X25519,
                    aws_lc_rs::kx_group::SECP256R1,
                    aws_lc_rs::kx_group::SECP384R1,
                    aws_lc_rs::kx_group::X25519MLKEM768,
                ];
                group.get(at).copied()
            });
            match group {
                Some(group) => chosen.push(group),
                None => {
                    let known: Vec<_> = CURVES.iter().map(|names| names[0]).collect();
                    return fault(About::Curves, format!("{name:?} is not one of {}", known.join(", ")));
                }
            }
        }
        provider.kx_groups = chosen;
    }
    Ok(Arc::new(provider))
}

/// Each group's names, IANA's first.
const CURVES: [&[&str]; 4] =
    [&["X25519"], &["secp256r1", "prime256v1", "P-256"], &["secp384r1", "P-384"], &["X25519MLKEM768"]];

/// `TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256` is `ECDHE-RSA-AES128-GCM-SHA256` there; those of 1.3 have the same name.
fn openssl_name(iana: &str) -> String {
    let Some((exchange, cipher)) = iana.strip_prefix("TLS_").and_then(|name| name.split_once("_WITH_")) else {
        return iana.to_owned();
    };
    let cipher = cipher.replace("AES_", "AES").replace("CHACHA20_POLY1305_SHA256", "CHACHA20_POLY1305");
    format!("{}-{}", exchange.replace('_', "-"), cipher.replace('_', "-"))
}

type Pair = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

fn read_pair(at: usize, certificate: &Path, key: &Path) -> Result<Pair, Fault> {
    let text = fs::read(certificate).or_else(|error| fault(About::Certificate(at), error))?;
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&text).collect();
    let chain = chain.or_else(|error| fault(About::Certificate(at), error))?;
    if chain.is_empty() {
        return fault(About::Certificate(at), "has no certificate in it (PEM)");
    }
    check_permissions(key).or_else(|problem| fault(About::Key(at), problem))?;
    let mut text = fs::read(key).or_else(|error| fault(About::Key(at), error))?;
    let key = PrivateKeyDer::from_pem_slice(&text);
    text.zeroize();
    match key {
        Ok(key) => Ok((chain, key)),
        Err(rustls::pki_types::pem::Error::NoItemsFound) => {
            fault(About::Key(at), "has no private key in it that is not encrypted (PEM)")
        }
        Err(error) => fault(About::Key(at), error),
    }
}

fn certified(
    at: usize,
    chain: Vec<CertificateDer<'static>>,
    mut key: PrivateKeyDer<'static>,
    provider: &CryptoProvider,
) -> Result<CertifiedKey, Fault> {
    let certified = CertifiedKey::from_der(chain, key.clone_key(), provider);
    key.zeroize();
    match certified {
        Ok(certified) => Ok(certified),
        Err(Error::InconsistentKeys(_)) => fault(About::Key(at), "does not belong to the certificate"),
        Err(error) => fault(About::Key(at), error),
    }
}

/// PostgreSQL's rule: "Permissions should be u=rw (0600) or less, or u=rw,g=r (0640) or less if owned by root."
fn check_permissions(key: &Path) -> Result<(), String> {
    let about = fs::metadata(key).map_err(|error| error.to_string())?;
    if !about.is_file() {
        return Err("is not a file".to_owned());
    }
    let own = nix::unistd::geteuid().as_raw();
    if about.uid() != own && about.uid() != 0 {
        return Err("must belong to the user that runs QCP, or to root".to_owned());
    }
    let forbidden = if about.uid() == 0 { 0o037 } else { 0o077 };
    if about.mode() & forbidden != 0 {
        let allowed = if about.uid() == 0 { "0640 (u=rw,g=r)" } else { "0600 (u=rw)" };
        return Err(format!("others may read or change it (mode {:04o}): make that {allowed}", about.mode() & 0o7777));
    }
    Ok(())
}

fn read_authority(path: &Path) -> Result<(RootCertStore, Vec<u8>), Fault> {
    let text = fs::read(path).or_else(|error| fault(About::Authority, error))?;
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(&text) {
        let certificate = certificate.or_else(|error| fault(About::Authority, error))?;
        if let Err(error) = roots.add(certificate) {
            return fault(About::Authority, error);
        }
    }
    if roots.is_empty() {
        return fault(About::Authority, "has no certificate in it (PEM)");
    }
    Ok((roots, text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ciphers_have_two_names() {
        let check = |iana, expected| assert_eq!(openssl_name(iana), expected);
        check("TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256", "ECDHE-RSA-AES128-GCM-SHA256");
        check("TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256", "ECDHE-ECDSA-CHACHA20-POLY1305");
        check("TLS_AES_128_GCM_SHA256", "TLS_AES_128_GCM_SHA256");
    }
}
