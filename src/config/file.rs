//! The configuration as it is written: one struct for each map of the YAML, one field for each key.
//!
//! A field that is absent stays `None`; defaults and the checks between keys are in [`super::resolve`]. A new key is a
//! field here, and leaves [`key_comes_later`].

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;

use serde::Deserialize;
use serde::de::value::MapAccessDeserializer;
use serde::de::{self, Deserializer, MapAccess, Unexpected, Visitor};

use super::address::{ListenAddress, ServerAddress};
use super::problem::{KeyPath, Segment};
use super::tls::{Negotiation, TlsMode, TlsVersion};
use super::values::{Count, FromText, Hidden, Name, OneOrMany, Parsed, Query, Size, Switch, Wait};
use super::{LogFormat, LogOutput, SessionState};
use crate::auth::hba::Network;
use crate::auth::settings::Method;
use crate::pool::{Route, Schedule};
use crate::session::RelayMode;
use crate::session::Transparency;

#[derive(Deserialize, Default, Debug)]
#[serde(deny_unknown_fields, default, expecting = "a map of settings")]
pub(super) struct File {
    pub listening_address: Option<OneOrMany<Parsed<ListenAddress>>>,
    pub servers: Option<Vec<Server>>,
    pub relay_mode: Option<Parsed<RelayMode>>,
    pub log_level: Option<Parsed<log::LevelFilter>>,
    pub log_output: Option<Output>,
    pub log_format: Option<Parsed<LogFormat>>,
    pub arena: Arena,
    pub cores: Option<Count<1, 1024>>,
    pub session_state: Option<Parsed<SessionState>>,
    pub transparency: Option<Parsed<Transparency>>,
    pub pool: Pool,
    pub limits: Limits,
    pub reconnect: Reconnect,
    pub auth: Auth,
    pub tls: Tls,
    pub proxy_protocol_from: Option<Vec<Parsed<Network>>>,
    pub databases_only: Option<bool>,
    pub databases: Option<BTreeMap<String, Database>>,
    pub users: Option<BTreeMap<String, User>>,
    pub dedicated_databases: Option<Vec<Name>>,
    pub dedicated_users: Option<Vec<Name>>,
    pub control: Control,
    pub metrics: Metrics,
    pub console: Option<Parsed<Switch>>,
    pub tcp: Tcp,
    pub slow_query: Option<Parsed<Wait<0>>>,
    pub queue_notice: Option<Parsed<Wait<0>>>,
    pub dns_ttl: Option<Parsed<Wait<0>>>,
    pub role_check_interval: Option<Parsed<Wait<10>>>,
    pub route: Option<Parsed<Route>>,
    pub shutdown_timeout: Option<Parsed<Wait<0>>>,
}

#[derive(Deserialize, Default, Debug)]
#[serde(deny_unknown_fields, default, expecting = "a map of settings")]
pub(super) struct Arena {
    pub chunk_size: Option<Size>,
    pub chunks_count: Option<Count<1, CHUNKS_COUNT_MAX>>,
    pub total_size: Option<Size>,
}

/// With the largest chunks this is 16,384 GB.
pub(super) const CHUNKS_COUNT_MAX: u32 = 1 << 24;

#[derive(Deserialize, Default, Clone, PartialEq, Debug)]
#[serde(deny_unknown_fields, default, expecting = "a map of settings")]
pub(super) struct Pool {
    pub size: Option<Count<1, 100_000>>,
    pub min_size: Option<Count<0, 100_000>>,
    pub reserve_size: Option<Count<0, 100_000>>,
    pub reserve_timeout: Option<Parsed<Wait<0>>>,
    pub max_backends: Option<Count<0, 100_000>>,
    pub max_queue: Option<Count<0, 1_000_000>>,
    pub queue_timeout: Option<Parsed<Wait<0>>>,
    pub schedule: Option<Parsed<Schedule>>,
    pub placement: Option<Parsed<Schedule>>,
    pub idle_timeout: Option<Parsed<Wait<0>>>,
    pub lifetime: Option<Parsed<Wait<0>>>,
    pub keepalive_interval: Option<Parsed<Wait<0>>>,
    pub keepalive_timeout: Option<Parsed<Wait<1>>>,
    pub reset_query: Option<Parsed<Query>>,
    pub max_statements: Option<Count<1, 10_000>>,
}

#[derive(Deserialize, Default, Debug)]
#[serde(deny_unknown_fields, default, expecting = "a map of settings")]
pub(super) struct Limits {
    pub max_clients: Option<Count<1, 1_000_000>>,
    pub max_clients_per_address: Option<Count<0, 1_000_000>>,
    pub login_timeout: Option<Parsed<Wait<1>>>,
    pub client_stall_timeout: Option<Parsed<Wait<0>>>,
    pub cancel_timeout: Option<Parsed<Wait<1>>>,
    pub query_timeout: Option<Parsed<Wait<0>>>,
    pub idle_in_transaction_timeout: Option<Parsed<Wait<0>>>,
    pub transaction_timeout: Option<Parsed<Wait<0>>>,
    pub client_idle_timeout: Option<Parsed<Wait<0>>>,
}

/// `limits` of one database or user.
#[derive(Deserialize, Default, Clone, PartialEq, Debug)]
#[serde(deny_unknown_fields, default, expecting = "a map of settings")]
pub(super) struct OwnLimits {
    pub max_clients: Option<Count<0, 1_000_000>>,
    pub query_timeout: Option<Parsed<Wait<0>>>,
    pub idle_in_transaction_timeout: Option<Parsed<Wait<0>>>,
    pub transaction_timeout: Option<Parsed<Wait<0>>>,
    pub client_idle_timeout: Option<Parsed<Wait<0>>>,
}

#[derive(Deserialize, Default, Debug)]
#[serde(deny_unknown_fields, default, expecting = "a map of settings")]
pub(super) struct Reconnect {
    pub connect_timeout: Option<Parsed<Wait<1>>>,
    pub min_backoff: Option<Parsed<Wait<1>>>,
    pub max_backoff: Option<Parsed<Wait<1>>>,
}

#[derive(Deserialize, Default, Debug)]
#[serde(deny_unknown_fields, default, expecting = "a map of settings")]
pub(super) struct Auth {
    pub method: Option<Parsed<Method>>,
    pub check_connections: Option<Count<1, 1000>>,
    pub users: Option<BTreeMap<String, Hidden>>,
    pub user_file: Option<Parsed<PathBuf>>,
    pub hba_file: Option<Parsed<PathBuf>>,
    pub ident_file: Option<Parsed<PathBuf>>,
    pub scram_iterations_max: Option<Count<1, 100_000_000>>,
    pub failed_logins_max: Option<Count<0, 1_000_000>>,
    pub query: Option<Name>,
    pub query_user: Option<Name>,
    pub query_database: Option<Name>,
    pub server_user: Option<Name>,
    pub server_password: Option<Hidden>,
    pub server_password_file: Option<Parsed<PathBuf>>,
    pub server_password_env: Option<Name>,
    pub admin_users: Option<Vec<Name>>,
    pub stats_users: Option<Vec<Name>>,
}

/// `auth` of one database or user.
#[derive(Deserialize, Default, Debug)]
#[serde(deny_unknown_fields, default, expecting = "a map of settings")]
pub(super) struct OwnAuth {
    pub method: Option<Parsed<Method>>,
    pub server_user: Option<Name>,
    pub server_password: Option<Hidden>,
    pub server_password_file: Option<Parsed<PathBuf>>,
    pub server_password_env: Option<Name>,
}

#[derive(Deserialize, Default, Debug)]
#[serde(deny_unknown_fields, default, expecting = "a map of settings")]
pub(super) struct Database {
    pub servers: Option<Vec<Server>>,
    pub dbname: Option<Name>,
    pub route: Option<Parsed<Route>>,
    pub relay_mode: Option<Parsed<RelayMode>>,
    pub session_state: Option<Parsed<SessionState>>,
    pub transparency: Option<Parsed<Transparency>>,
    pub slow_query: Option<Parsed<Wait<0>>>,
    pub pool: Pool,
    pub limits: OwnLimits,
    pub tls: Option<ServerTls>,
    pub auth: OwnAuth,
}

#[derive(Deserialize, Default, Debug)]
#[serde(deny_unknown_fields, default, expecting = "a map of settings")]
pub(super) struct User {
    pub route: Option<Parsed<Route>>,
    pub relay_mode: Option<Parsed<RelayMode>>,
    pub session_state: Option<Parsed<SessionState>>,
    pub transparency: Option<Parsed<Transparency>>,
    pub slow_query: Option<Parsed<Wait<0>>>,
    pub pool: Pool,
    pub limits: OwnLimits,
    pub auth: OwnAuth,
}

#[derive(Deserialize, Default, Debug)]
#[serde(deny_unknown_fields, default, expecting = "a map of settings")]
pub(super) struct Tls {
    pub client: ClientTls,
    pub server: ServerTls,
}

#[derive(Deserialize, Default, Debug)]
#[serde(deny_unknown_fields, default, expecting = "a map of settings")]
pub(super) struct ClientTls {
    pub mode: Option<Parsed<TlsMode>>,
    pub certificate: Option<Parsed<PathBuf>>,
    pub key: Option<Parsed<PathBuf>>,
    pub certificates: Option<Vec<Pair>>,
    pub ca: Option<Parsed<PathBuf>>,
    pub minimum_version: Option<Parsed<TlsVersion>>,
    pub ciphers: Option<Vec<String>>,
    pub curves: Option<Vec<String>>,
}

#[derive(Deserialize, Default, Debug)]
#[serde(deny_unknown_fields, default, expecting = "a map with certificate and key")]
pub(super) struct Pair {
    pub certificate: Option<Parsed<PathBuf>>,
    pub key: Option<Parsed<PathBuf>>,
}

#[derive(Deserialize, Default, Debug)]
#[serde(deny_unknown_fields, default, expecting = "a map of settings")]
pub(super) struct ServerTls {
    pub mode: Option<Parsed<TlsMode>>,
    pub ca: Option<Parsed<PathBuf>>,
    pub certificate: Option<Parsed<PathBuf>>,
    pub key: Option<Parsed<PathBuf>>,
    pub sni: Option<bool>,
    pub negotiation: Option<Parsed<Negotiation>>,
    pub minimum_version: Option<Parsed<TlsVersion>>,
    pub ciphers: Option<Vec<String>>,
    pub curves: Option<Vec<String>>,
}

#[derive(Deserialize, Default, Debug)]
#[serde(deny_unknown_fields, default, expecting = "a map of settings")]
pub(super) struct Control {
    pub socket: Option<Parsed<PathBuf>>,
}

#[derive(Deserialize, Default, Debug)]
#[serde(deny_unknown_fields, default, expecting = "a map of settings")]
pub(super) struct Tcp {
    pub keepalive: Option<Parsed<Wait<0>>>,
    pub user_timeout: Option<Parsed<Wait<0>>>,
    pub backlog: Option<Count<1, 1_000_000>>,
}

#[derive(Deserialize, Default, Debug)]
#[serde(deny_unknown_fields, default, expecting = "a map of settings")]
pub(super) struct Metrics {
    pub address: Option<Parsed<SocketAddr>>,
}

/// An element of `servers`: the address alone, or a map that has it.
#[derive(Debug)]
pub(super) struct Server {
    pub address: ServerAddress,
    pub weight: Option<Count<0, 1000>>,
    pub tls: Option<ServerTls>,
}

impl<'de> Deserialize<'de> for Server {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Server, D::Error> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct ServerMap {
            address: Parsed<ServerAddress>,
            weight: Option<Count<0, 1000>>,
            tls: Option<ServerTls>,
        }

        struct ServerVisitor;

        impl<'de> Visitor<'de> for ServerVisitor {
            type Value = Server;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}; or a map with the key address", ServerAddress::allowed())
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Server, E> {
                let address = ServerAddress::from_text(text);
                let server = address.map(|address| Server { address, weight: None, tls: None });
                server.ok_or_else(|| E::invalid_value(Unexpected::Str(text), &self))
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Server, A::Error> {
                let ServerMap { address, weight, tls } = ServerMap::deserialize(MapAccessDeserializer::new(map))?;
                Ok(Server { address: address.0, weight, tls })
            }
        }

        deserializer.deserialize_any(ServerVisitor)
    }
}

/// `log_output`: a word, or a map that names a file.
#[derive(Debug)]
pub(super) struct Output(pub LogOutput);

impl<'de> Deserialize<'de> for Output {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Output, D::Error> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct FileMap {
            file: Parsed<PathBuf>,
        }

        struct OutputVisitor;

        impl<'de> Visitor<'de> for OutputVisitor {
            type Value = Output;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("one of stderr, stdout, syslog, {file: PATH}")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Output, E> {
                match text {
                    "stderr" => Ok(Output(LogOutput::Stderr)),
                    "stdout" => Ok(Output(LogOutput::Stdout)),
                    "syslog" => Ok(Output(LogOutput::Syslog)),
                    _ => Err(E::invalid_value(Unexpected::Str(text), &self)),
                }
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Output, A::Error> {
                let FileMap { file } = FileMap::deserialize(MapAccessDeserializer::new(map))?;
                Ok(Output(LogOutput::File(file.0)))
            }
        }

        deserializer.deserialize_any(OutputVisitor)
    }
}

/// Keys that QCP's users will find in its documents, but that this version does not have yet.
pub(super) fn key_comes_later(path: &KeyPath) -> bool {
    let path = words(path);
    let Some((key, map)) = path.split_last() else { return false };
    let later: &[&str] = match map {
        [] => &["hold_prepared_transactions"],
        _ => &[],
    };
    later.contains(key)
}

fn words(path: &KeyPath) -> Vec<&str> {
    fn word(segment: &Segment) -> &str {
        match segment {
            Segment::Key(key) => key,
            Segment::Index(_) => "",
        }
    }

    path.0.iter().map(word).collect()
}
