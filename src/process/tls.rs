//! Reads the files that `tls` names, at start, for `--check` and at each reload, and makes what the shards use of them.

use std::path::PathBuf;
use std::sync::Arc;

use crate::config::{
    Config, Error, KeyPath, Negotiation, Problem, ServerTls as Written, TLS_CHUNK_SIZE_MIN, TlsAllowed, TlsMode,
    TlsVersion,
};
use crate::io::tls::{About, Acceptor, Allowed, CHUNK_SIZE_MIN, Connector, Fault, Trust, Version};
use crate::shard::tls::{ClientTls, ServerMode, ServerTls, TlsSettings};

const _: () = assert!(TLS_CHUNK_SIZE_MIN >= CHUNK_SIZE_MIN);

/// All of it. `before`: what it replaces.
pub(super) fn load(config: &Config, before: Option<&TlsSettings>) -> Result<TlsSettings, Error> {
    let mut servers = Vec::new();
    for (path, written) in config.server_tls() {
        servers.push(server(written).map_err(|fault| complain(config, path, &[], written.pair.as_ref(), fault))?);
    }
    Ok(TlsSettings { client: client(config, before)?, servers })
}

fn client(config: &Config, before: Option<&TlsSettings>) -> Result<ClientTls, Error> {
    let written = &config.tls_client;
    if written.mode == TlsMode::Disable {
        return Ok(ClientTls::default());
    }
    let pairs: Vec<_> = written.pairs.iter().map(|(certificate, key)| (certificate.as_path(), key.as_path())).collect();
    let acceptor = Acceptor::new(
        &pairs,
        written.ca.as_deref(),
        written.mode >= TlsMode::VerifyCa,
        allowed(&written.allowed),
        before.and_then(|before| before.client.acceptor.as_deref()),
    );
    let acceptor = acceptor.map_err(|fault| {
        let path = KeyPath::of(["tls", "client"]);
        let own = written.pairs.first().filter(|_| written.has_own_pair);
        complain(config, &path, &written.pairs[own.iter().len()..], own, fault)
    })?;
    Ok(ClientTls {
        acceptor: Some(Arc::new(acceptor)),
        required: written.mode >= TlsMode::Require,
        named: written.mode == TlsMode::VerifyFull,
    })
}

pub(super) fn server(written: &Written) -> Result<ServerTls, Fault> {
    let (mode, trust) = match written.mode {
        TlsMode::Disable => return Ok(ServerTls::default()),
        TlsMode::Allow => (ServerMode::Allow, Trust::Blind),
        TlsMode::Prefer => (ServerMode::Prefer, Trust::Blind),
        // As in libpq: with an authority at hand it is asked.
        TlsMode::Require if written.ca.is_none() => (ServerMode::Require, Trust::Blind),
        TlsMode::Require | TlsMode::VerifyCa => (ServerMode::Require, Trust::Authority),
        TlsMode::VerifyFull => (ServerMode::Require, Trust::Host),
    };
    let pair = written.pair.as_ref().map(|(certificate, key)| (certificate.as_path(), key.as_path()));
    let connector = Connector::new(trust, written.ca.as_deref(), pair, written.sni, allowed(&written.allowed))?;
    let direct = written.negotiation == Negotiation::Direct;
    Ok(ServerTls { mode, connector: Some(Arc::new(connector)), direct })
}

fn allowed(written: &TlsAllowed) -> Allowed<'_> {
    Allowed {
        minimum_version: match written.minimum_version {
            TlsVersion::V1_2 => Version::V1_2,
            TlsVersion::V1_3 => Version::V1_3,
        },
        ciphers: &written.ciphers,
        curves: &written.curves,
    }
}

/// The fault with its place in the configuration. `listed`: pairs that stand in `certificates`, `own`: the one before.
fn complain(
    config: &Config,
    path: &KeyPath,
    listed: &[(PathBuf, PathBuf)],
    own: Option<&(PathBuf, PathBuf)>,
    Fault { about, problem }: Fault,
) -> Error {
    let of_pair = |at: usize, key| match own {
        Some(pair) if at == 0 => (path.join([key]), Some(pair)),
        _ => {
            let at = at - usize::from(own.is_some());
            (path.join(["certificates"]).element(at).join([key]), listed.get(at))
        }
    };
    let (path, file) = match about {
        About::Certificate(at) => {
            let (path, pair) = of_pair(at, "certificate");
            (path, pair.map(|pair| pair.0.clone()))
        }
        About::Key(at) => {
            let (path, pair) = of_pair(at, "key");
            (path, pair.map(|pair| pair.1.clone()))
        }
        About::Authority => (path.join(["ca"]), None),
        About::Ciphers => (path.join(["ciphers"]), None),
        About::Curves => (path.join(["curves"]), None),
    };
    let text = match file {
        Some(file) => format!("{}: {problem}", file.display()),
        None => problem,
    };
    config.error(path, Problem::File(text))
}
