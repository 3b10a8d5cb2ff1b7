//! YAML to what each layer wants to know.
//!
//! `yaml` reads the text, `file` has a struct for each map in it, `values` and `address` what stands at the end of a
//! key, `resolve` the defaults and the checks between keys. A [`Config`] is whole and checked: nothing after it asks
//! whether a number makes sense.
#![forbid(unsafe_code)]

mod access;
mod address;
mod changes;
mod file;
mod pgbouncer;
mod problem;
mod resolve;
mod sizes;
pub mod sums;
mod tls;
mod values;
mod yaml;

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashSet};
use std::ffi::OsStr;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use zeroize::Zeroizing;

pub use address::{Listen, SERVER_PORT_DEFAULT, ServerAddress};
pub use changes::{Change, Known};
pub use pgbouncer::from_pgbouncer;
pub use problem::{Error, KeyPath, Problem, Segment, Warning};
pub use sizes::{format_duration, format_size, parse_duration, parse_size};
pub use tls::{ClientTls, Negotiation, ServerTls, TLS_CHUNK_SIZE_MIN, TlsAllowed, TlsMode, TlsVersion};

use crate::auth::{self, settings::Rules};
use crate::pool;
use crate::session::timeouts::Timeouts;
use crate::session::{RelayMode, Transparency};
use resolve::{Everyone, Override, Source};

/// All that a configuration file says, with the defaults for what it does not say.
#[derive(Clone, PartialEq, Debug)]
pub struct Config {
    /// At least one, each once.
    pub listen: Vec<Listen>,
    /// Shards; `None`: the cores this process may run on.
    pub cores: Option<usize>,
    pub arena: Arena,
    pub log: Log,
    /// Over all shards.
    pub max_clients: u32,
    /// From accept to the end of the handshake.
    pub login_timeout: Duration,
    /// For a client that takes nothing of its answer while others wait for its backend; zero: no limit.
    pub client_stall_timeout: Duration,
    /// For a cancel request to a server; its backend is closed then.
    pub cancel_timeout: Duration,
    /// How long a server's name is believed to mean what it meant; zero: it is looked up for each connection.
    pub dns_ttl: Duration,
    /// How often servers are asked what they are, where that matters.
    pub role_check_interval: Duration,
    pub reconnect: Reconnect,
    pub tcp: Tcp,
    pub auth: Auth,
    pub tls_client: ClientTls,
    /// As configured; [`control_sockets`] says where it is otherwise.
    pub control_socket: Option<PathBuf>,
    /// Where Prometheus finds the metrics; `None`: nowhere.
    pub metrics: Option<SocketAddr>,
    /// Whether the databases `qcp` and `pgbouncer` are the console.
    pub console: bool,
    /// How long `quit` waits for transactions to end; zero is not at all.
    pub shutdown_timeout: Duration,

    // What `pool` chooses from. In order, so that of several faults the same one is always named.
    servers: Vec<Place>,
    /// Each `tls` for servers, with its path: the one for all first.
    server_tls: Vec<(KeyPath, ServerTls)>,
    everyone: Everyone,
    databases: BTreeMap<String, Database>,
    /// What `databases` has under `*`: for those it does not name.
    other_databases: Option<Database>,
    users: BTreeMap<String, Override>,
    databases_only: bool,
    dedicated_databases: HashSet<String>,
    dedicated_users: HashSet<String>,

    source: Source,
}

/// All data buffers of all shards together.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Arena {
    /// Bytes of one chunk.
    pub chunk_size: usize,
    pub chunks_count: usize,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Log {
    pub level: log::LevelFilter,
    pub output: LogOutput,
    pub format: LogFormat,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub enum LogOutput {
    Stderr,
    Stdout,
    File(PathBuf),
    Syslog,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum LogFormat {
    #[default]
    Text,
    /// An object of JSON in each line.
    Json,
}

/// What is done for a pool beside lending.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Upkeep {
    /// Session mode, before another client gets the backend; empty: nothing.
    pub reset_query: String,
    /// Prepared statements that are kept on one backend.
    pub max_statements: u32,
    /// A transaction that lasts longer is logged; zero: none.
    pub slow_query: Duration,
    /// A client that waits longer for a backend is told so; zero: none.
    pub queue_notice: Duration,
}

/// How TCP's own means are used.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Tcp {
    /// A quiet peer is probed after this; zero: as the system does it.
    pub keepalive: Duration,
    /// Bytes that nobody has acknowledged for so long end the connection; zero: as the system does it.
    pub user_timeout: Duration,
    /// Connections that wait for a listener to take them.
    pub backlog: u32,
}

/// How QCP opens connections to servers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Reconnect {
    pub connect_timeout: Duration,
    /// The pause after the first failure; it doubles up to `max_backoff`.
    pub min_backoff: Duration,
    pub max_backoff: Duration,
}

#[derive(Clone, PartialEq, Debug)]
pub struct Auth {
    /// Connections per server, beyond the pool, that check logins when the pool is full.
    pub check_connections: u32,
    /// What is the same for all databases and users.
    pub settings: Arc<auth::settings::Settings>,
}

/// What of its session a client keeps in Smart mode when its backend changes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
enum SessionState {
    /// What the server reports, and prepared statements of the protocol.
    None,
    /// All of it.
    #[default]
    Preserve,
}

/// An element of `servers`.
#[derive(Clone, PartialEq, Debug)]
struct Place {
    address: ServerAddress,
    /// How many clients it is to have, compared with the others.
    weight: u32,
    /// Its own, of [`Config::server_tls`].
    tls: Option<usize>,
}

/// An entry of `databases`.
#[derive(Clone, PartialEq, Debug)]
struct Database {
    servers: Option<Vec<Place>>,
    dbname: Option<String>,
    /// Its own, of [`Config::server_tls`].
    tls: Option<usize>,
    changes: Override,
}

/// What applies to one database and user.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PoolConfig {
    /// At least one, each once.
    pub servers: Vec<ServerAddress>,
    /// For each of `servers`, how many clients it is to have, compared with the others.
    pub weights: Vec<u32>,
    /// Which of `servers` clients go to.
    pub route: pool::Route,
    /// What the database is called there.
    pub server_database: String,
    pub relay_mode: RelayMode,
    /// Whether a client in Smart mode keeps its whole session, and how hard that is looked after.
    pub preserve: Option<Transparency>,
    /// Whether such a client stays on its backend while a transaction that it has prepared is neither committed nor rolled
    /// back.
    pub hold_prepared: bool,
    /// Not pooled: each client has a backend of its own for as long as it is there.
    pub dedicated: bool,
    /// For each of `servers`, which of [`Config::server_tls`].
    pub tls: Vec<usize>,
    pub pool: pool::Settings,
    /// How long its clients may do what.
    pub timeouts: Timeouts,
    /// What is done for it beside lending.
    pub upkeep: Upkeep,
    /// Who checks clients, and how QCP logs in.
    pub rules: Rules,
    /// Clients of this database and of this user, at most; 0: no limit.
    pub clients_max: (u32, u32),
}

impl Config {
    pub fn load(path: &Path) -> Result<(Config, Vec<Warning>), Error> {
        let name = path.display().to_string();
        match std::fs::read_to_string(path) {
            // Secrets may stand in it.
            Ok(text) => Config::parse(&name, &Zeroizing::new(text)),
            Err(error) => {
                let problem = Problem::Unreadable(error.to_string());
                Err(Error { file: name, line: None, key: KeyPath::default(), problem })
            }
        }
    }

    /// As [`Config::load`]; `name` is what errors call the text.
    pub fn parse(name: &str, text: &str) -> Result<(Config, Vec<Warning>), Error> {
        resolve::resolve(Source::new(name, text))
    }

    /// As [`Config::parse`], with values of some keys instead of what the text says of them; keys with dots between.
    pub fn parse_over(name: &str, text: &str, over: Vec<(String, String)>) -> Result<(Config, Vec<Warning>), Error> {
        resolve::resolve(Source::new(name, text).with(over))
    }

    /// The same text with values of some keys instead.
    pub fn with_over(&self, over: Vec<(String, String)>) -> Result<(Config, Vec<Warning>), Error> {
        resolve::resolve(self.source.clone().with(over))
    }

    /// What is over the text.
    pub fn over(&self) -> &[(String, String)] {
        self.source.over()
    }

    /// The file it came from, as it was named.
    pub fn file(&self) -> &str {
        self.source.name()
    }

    /// What applies to one database and user. `None`: it is not listed, and `databases_only` says that it must be.
    pub fn pool(&self, database: &str, user: &str) -> Option<PoolConfig> {
        let listed = self.databases.get(database).or(self.other_databases.as_ref());
        if listed.is_none() && self.databases_only {
            return None;
        }
        let (servers, server_database) = self.places(database, listed);
        let mut settings = self.everyone.clone();
        for changes in listed.map(|listed| &listed.changes).into_iter().chain(self.users.get(user)) {
            settings = changes.over(settings);
        }
        Some(PoolConfig {
            servers: servers.iter().map(|place| place.address.clone()).collect(),
            weights: servers.iter().map(|place| place.weight).collect(),
            route: settings.route.unwrap_or(match servers.len() {
                1 => pool::Route::Any,
                _ => pool::Route::Primary,
            }),
            server_database: server_database.to_owned(),
            relay_mode: settings.relay_mode,
            preserve: (settings.session_state == SessionState::Preserve).then_some(settings.transparency),
            hold_prepared: settings.hold_prepared_transactions,
            dedicated: self.dedicated_databases.contains(database) || self.dedicated_users.contains(user),
            tls: servers.iter().map(|place| tls_of(place, listed)).collect(),
            pool: settings.pool,
            timeouts: settings.timeouts,
            upkeep: settings.upkeep,
            rules: access::with_known_password(settings.rules, user, &self.auth.settings.users),
            clients_max: (
                listed.map_or(0, |listed| listed.changes.clients_max()),
                self.users.get(user).map_or(0, Override::clients_max),
            ),
        })
    }

    /// How a user's login at the console would be checked if it were a database of the servers'. `None`: there is no
    /// console.
    pub fn console_method(&self, user: &str) -> Option<auth::settings::Method> {
        let everyone = self.everyone.clone();
        let settings = self.users.get(user).map_or(everyone.clone(), |changes| changes.over(everyone));
        self.console.then_some(settings.rules.method)
    }

    /// The databases that are listed, by name, `*` left out.
    pub fn database_names(&self) -> impl Iterator<Item = &str> {
        self.databases.keys().map(String::as_str)
    }

    /// The users that are listed, by name: in `users` and with secrets.
    pub fn user_names(&self) -> impl Iterator<Item = &str> {
        self.users.keys().map(String::as_str).chain(self.auth.settings.users.iter().map(|(name, _)| name))
    }

    /// What is said of a user alone: its pools' size, its mode, and how many clients it may have.
    pub fn user_settings(&self, user: &str) -> (Option<u32>, Option<RelayMode>, u32) {
        self.users.get(user).map_or((None, None, 0), Override::of_user)
    }

    /// Each `tls` for servers with its path: the one for all first.
    pub fn server_tls(&self) -> &[(KeyPath, ServerTls)] {
        &self.server_tls
    }

    /// Whether any connection may be encrypted.
    pub fn has_tls(&self) -> bool {
        let servers = self.server_tls.iter().any(|(_, tls)| tls.mode != TlsMode::Disable);
        servers || self.tls_client.mode != TlsMode::Disable
    }

    /// A complaint about a key, with its place in the file.
    pub fn error(&self, key: KeyPath, problem: Problem) -> Error {
        self.source.error(key, problem)
    }

    /// Each server that clients can get to, in the order in which the file comes to it, with the databases there and which
    /// of [`Self::server_tls`] the way to them goes by. `unlisted` stands for the databases that the file does not name.
    pub fn destinations<'a>(&'a self, unlisted: &'a str) -> Vec<(&'a ServerAddress, Vec<(&'a str, usize)>)> {
        let unlisted = (!self.databases_only).then_some((unlisted, self.other_databases.as_ref()));
        let listed = self.databases.iter().map(|(name, listed)| (name.as_str(), Some(listed)));
        let mut destinations: Vec<(&ServerAddress, Vec<(&str, usize)>)> = Vec::new();
        for (database, listed) in unlisted.into_iter().chain(listed) {
            let (servers, server_database) = self.places(database, listed);
            for place in servers {
                let way = (server_database, tls_of(place, listed));
                match destinations.iter_mut().find(|(known, _)| **known == place.address) {
                    Some((_, there)) if there.contains(&way) => {}
                    Some((_, there)) => there.push(way),
                    None => destinations.push((&place.address, vec![way])),
                }
            }
        }
        destinations
    }

    /// Where a database lives, and what it is called there.
    fn places<'a>(&'a self, database: &'a str, listed: Option<&'a Database>) -> (&'a [Place], &'a str) {
        let servers = listed.and_then(|listed| listed.servers.as_deref()).unwrap_or(&self.servers);
        let server_database = listed.and_then(|listed| listed.dbname.as_deref()).unwrap_or(database);
        (servers, server_database)
    }

    /// Each entry of `databases` with its path.
    fn database_changes(&self) -> impl Iterator<Item = (KeyPath, &Override)> {
        let others = self.other_databases.iter().map(|database| ("*", database));
        let databases = self.databases.iter().map(|(name, database)| (name.as_str(), database)).chain(others);
        databases.map(|(name, database)| (KeyPath::of(["databases", name]), &database.changes))
    }

    /// Each entry of `users` with its path.
    fn user_changes(&self) -> impl Iterator<Item = (KeyPath, &Override)> {
        self.users.iter().map(|(name, changes)| (KeyPath::of(["users", name.as_str()]), changes))
    }
}

/// Which of [`Config::server_tls`] one of a database's servers is connected to by. A database goes before the top level,
/// and of what stands at the same level what is said of the server alone.
fn tls_of(place: &Place, database: Option<&Database>) -> usize {
    let of_database = database.and_then(|database| database.tls);
    let is_its_own = database.is_some_and(|database| database.servers.is_some());
    let chosen = if is_its_own { place.tls.or(of_database) } else { of_database.or(place.tls) };
    chosen.unwrap_or(TLS_OF_ALL)
}

/// The place of `tls.server` in [`Config::server_tls`].
const TLS_OF_ALL: usize = 0;

/// Where the control socket may be, in the order to try. The pooler takes the first that it can use, `qcp-ctrl` the
/// first where somebody answers. `runtime_directory` is the environment's `XDG_RUNTIME_DIR`.
pub fn control_sockets(configured: Option<&Path>, runtime_directory: Option<&OsStr>) -> Vec<PathBuf> {
    if let Some(path) = configured {
        return vec![path.to_owned()];
    }
    // "If an implementation does not have a value for it, or it is not an absolute path, it is to be ignored."
    let runtime_directory = runtime_directory.map(Path::new).filter(|directory| directory.is_absolute());
    let of_user = runtime_directory.map(|directory| directory.join("qcp/control.sock"));
    std::iter::once(PathBuf::from("/run/qcp/control.sock")).chain(of_user).collect()
}
