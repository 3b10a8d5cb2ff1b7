//! What a login may know of the connection that it comes over. Filled in by whoever owns the connection (TLS), read by
//! the exchanges (channel binding) and by the rules of access (`hostssl`, `cert`).

/// A connection, as authentication sees it.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Channel {
    /// Whether it is encrypted by TLS, which ends here.
    pub tls: bool,
    /// The data of `tls-server-end-point` (RFC 5929): the hash of the server's certificate, over whose connection the
    /// exchange goes. `None`: no TLS, or a certificate whose hash is not known; then there is no channel binding.
    pub end_point: Option<Vec<u8>>,
    /// The client's certificate, where it gave one that was verified against the CA.
    pub certificate: Option<Certificate>,
}

/// Names of a client's verified certificate.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Certificate {
    /// The subject's common name.
    pub common_name: Option<String>,
    /// The subject's distinguished name as RFC 2253 writes it, `CN=batch,OU=jobs,O=Example`.
    pub distinguished_name: Option<String>,
    /// DNS names, addresses and mail addresses of subjectAltName.
    pub alternative_names: Vec<String>,
}
