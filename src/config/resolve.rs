//! What is written, with the defaults and with the checks between keys, to a [`Config`].
//!
//! The order of precedence is user, database, everyone, default: each lays what it says over the one after it.

use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::hash::Hash;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use serde::Deserialize;
use zeroize::Zeroizing;

use super::address::{Listen, ListenAddress, ServerAddress};
use super::file::{self, File};
use super::problem::{Error, KeyPath, Problem, Warning};
use super::sizes::{format_duration, format_size};
use super::tls::{self, TLS_CHUNK_SIZE_MIN};
use super::values::{FromText, Name, OneOrMany, Parsed, Size, Switch, Wait};
use super::yaml::{self, Fault};
use super::{
    Arena, Config, Database, Log, LogOutput, Place, Reconnect, SERVER_PORT_DEFAULT, SessionState, Tcp, Upkeep, access,
};
use crate::auth::{self, settings::Rules};
use crate::pool;
use crate::session::timeouts::Timeouts;
use crate::session::{RelayMode, Transparency};

const LISTEN_PORT: u16 = 8080;
const CHUNK_SIZE: u64 = 66_560;
/// A startup packet (10,000 bytes) and what a server says in a login must fit.
const CHUNK_SIZE_MIN: u64 = 16384;
const CHUNK_SIZE_MAX: u64 = 1 << 20;
const CHUNK_SIZE_UNIT: u64 = 1024;
const CHUNKS_COUNT: u32 = 3150;
const MAX_CLIENTS: u32 = 10_000;
const LOGIN_TIMEOUT: Duration = Duration::from_secs(60);
const CLIENT_STALL_TIMEOUT: Duration = Duration::from_secs(60);
const CANCEL_TIMEOUT: Duration = Duration::from_secs(10);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
const MIN_BACKOFF: Duration = Duration::from_millis(100);
const MAX_BACKOFF: Duration = Duration::from_secs(5);
const DNS_TTL: Duration = Duration::from_secs(15);
const ROLE_CHECK_INTERVAL: Duration = Duration::from_millis(250);
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(30);
const TCP_KEEPALIVE: Duration = Duration::from_secs(60);
const TCP_BACKLOG: u32 = 4096;
const RESET_QUERY: &str = "DISCARD ALL";
const MAX_STATEMENTS: u32 = 200;
const QUEUE_NOTICE: Duration = Duration::from_secs(5);
const POOL: pool::Settings = pool::Settings {
    size: 20,
    min_size: 0,
    reserve_size: 0,
    reserve_timeout: Duration::from_secs(5),
    max_backends: 0,
    max_queue: 0,
    queue_timeout: Duration::from_secs(10),
    idle_timeout: Duration::from_secs(10 * 60),
    lifetime: Duration::from_secs(60 * 60),
    keepalive_interval: Duration::from_secs(60),
    keepalive_timeout: Duration::from_secs(10),
    schedule: pool::Schedule::RoundRobin,
    placement: pool::Schedule::LoadBalancing,
};

/// The text that a configuration was read from, so that an error can name the line.
#[derive(Clone)]
pub(super) struct Source {
    name: String,
    text: Zeroizing<String>,
    /// Values of keys instead of what the text says.
    over: Vec<(String, String)>,
}

impl fmt::Debug for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Source").field(&self.name).finish()
    }
}

/// Two configurations that say the same are equal, whatever file they come from.
impl PartialEq for Source {
    fn eq(&self, _: &Source) -> bool {
        true
    }
}

impl Source {
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn new(name: &str, text: &str) -> Source {
        Source { name: name.to_owned(), text: Zeroizing::new(text.to_owned()), over: Vec::new() }
    }

    pub(super) fn with(mut self, over: Vec<(String, String)>) -> Source {
        self.over = over;
        self
    }

    pub(super) fn text(&self) -> &str {
        &self.text
    }

    pub(super) fn over(&self) -> &[(String, String)] {
        &self.over
    }

    pub(super) fn syntax_error(&self, line: Option<usize>, reason: String) -> Error {
        Error { file: self.name.clone(), line, key: KeyPath::default(), problem: Problem::Syntax(reason) }
    }

    pub(super) fn error(&self, key: KeyPath, problem: Problem) -> Error {
        let nth = usize::from(problem == Problem::DuplicateKey);
        Error { file: self.name.clone(), line: yaml::line_of(&self.text, &key, nth), key, problem }
    }

    pub(super) fn warning(&self, key: KeyPath, text: &str) -> Warning {
        let line = yaml::line_of(&self.text, &key, 0);
        Warning { file: self.name.clone(), line, key, text: text.to_owned() }
    }

    fn read(&self) -> Result<File, Error> {
        let node = self.node()?;
        File::deserialize(&node).map_err(|Fault { path, problem }| {
            let problem = match problem {
                Problem::UnknownKey { .. } if file::key_comes_later(&path) => Problem::LaterKey,
                other => other,
            };
            self.error(path, problem)
        })
    }
}

/// What applies to every database and user that says nothing else.
#[derive(Clone, PartialEq, Debug)]
pub(super) struct Everyone {
    pub relay_mode: RelayMode,
    /// `None`: the primary, where there are several servers.
    pub route: Option<pool::Route>,
    pub session_state: SessionState,
    pub transparency: Transparency,
    pub pool: pool::Settings,
    pub timeouts: Timeouts,
    pub upkeep: Upkeep,
    pub rules: Rules,
}

/// What a database or a user says instead.
#[derive(Clone, PartialEq, Debug)]
pub(super) struct Override {
    relay_mode: Option<Parsed<RelayMode>>,
    route: Option<Parsed<pool::Route>>,
    session_state: Option<Parsed<SessionState>>,
    transparency: Option<Parsed<Transparency>>,
    pool: file::Pool,
    limits: file::OwnLimits,
    slow_query: Option<Parsed<Wait<0>>>,
    pub(super) access: access::Change,
}

impl Override {
    pub(super) fn over(&self, below: Everyone) -> Everyone {
        Everyone {
            relay_mode: self.relay_mode.as_ref().map_or(below.relay_mode, |mode| mode.0),
            route: self.route.as_ref().map(|route| route.0).or(below.route),
            session_state: self.session_state.as_ref().map_or(below.session_state, |state| state.0),
            transparency: self.transparency.as_ref().map_or(below.transparency, |transparency| transparency.0),
            pool: pool_over(&self.pool, below.pool),
            timeouts: timeouts_over(&self.limits, below.timeouts),
            upkeep: upkeep_over(&self.pool, self.slow_query.as_ref(), below.upkeep),
            rules: self.access.over(below.rules),
        }
    }

    /// `limits.max_clients`, which is not handed on: a database and its users have each their own.
    pub(super) fn clients_max(&self) -> u32 {
        self.limits.max_clients.map_or(0, |count| count.0)
    }

    /// What an entry of `users` says, for people: the size of pools, the mode, how many clients.
    pub(super) fn of_user(&self) -> (Option<u32>, Option<RelayMode>, u32) {
        let mode = self.relay_mode.as_ref().map(|mode| mode.0);
        (self.pool.size.map(|count| count.0), mode, self.clients_max())
    }

    fn sets_any_size(&self) -> bool {
        self.pool.size.is_some() || self.pool.min_size.is_some()
    }
}

fn upkeep_over(written: &file::Pool, slow_query: Option<&Parsed<Wait<0>>>, below: Upkeep) -> Upkeep {
    Upkeep {
        reset_query: written.reset_query.as_ref().map_or(below.reset_query, |query| query.0.0.clone()),
        max_statements: written.max_statements.map_or(below.max_statements, |count| count.0),
        slow_query: slow_query.map_or(below.slow_query, |wait| wait.0.0),
        queue_notice: below.queue_notice,
    }
}

fn timeouts_over(written: &file::OwnLimits, below: Timeouts) -> Timeouts {
    let over = |written: &Option<Parsed<Wait<0>>>, below| written.as_ref().map_or(below, |wait| wait.0.0);
    Timeouts {
        query: over(&written.query_timeout, below.query),
        idle_in_transaction: over(&written.idle_in_transaction_timeout, below.idle_in_transaction),
        transaction: over(&written.transaction_timeout, below.transaction),
        client_idle: over(&written.client_idle_timeout, below.client_idle),
    }
}

fn pool_over(written: &file::Pool, below: pool::Settings) -> pool::Settings {
    pool::Settings {
        size: written.size.map_or(below.size, |count| count.0),
        min_size: written.min_size.map_or(below.min_size, |count| count.0),
        reserve_size: written.reserve_size.map_or(below.reserve_size, |count| count.0),
        reserve_timeout: written.reserve_timeout.as_ref().map_or(below.reserve_timeout, |wait| wait.0.0),
        max_backends: written.max_backends.map_or(below.max_backends, |count| count.0),
        max_queue: written.max_queue.map_or(below.max_queue, |count| count.0),
        queue_timeout: written.queue_timeout.as_ref().map_or(below.queue_timeout, |wait| wait.0.0),
        idle_timeout: written.idle_timeout.as_ref().map_or(below.idle_timeout, |wait| wait.0.0),
        lifetime: written.lifetime.as_ref().map_or(below.lifetime, |wait| wait.0.0),
        keepalive_interval: written.keepalive_interval.as_ref().map_or(below.keepalive_interval, |wait| wait.0.0),
        keepalive_timeout: written.keepalive_timeout.as_ref().map_or(below.keepalive_timeout, |wait| wait.0.0),
        schedule: written.schedule.as_ref().map_or(below.schedule, |schedule| schedule.0),
        placement: written.placement.as_ref().map_or(below.placement, |placement| placement.0),
    }
}

pub(super) fn resolve(source: Source) -> Result<(Config, Vec<Warning>), Error> {
    let mut warnings = Vec::new();
    let file = source.read()?;
    let everyones_tls = KeyPath::of(["tls", "server"]);
    let mut server_tls = vec![(everyones_tls.clone(), tls::server(&source, &everyones_tls, file.tls.server)?)];
    let servers = servers(&source, file.servers, &KeyPath::of(["servers"]), &mut server_tls)?;
    let mut databases = databases(&source, file.databases, &mut warnings, &mut server_tls)?;
    let users = users(&source, file.users, &mut warnings)?;
    let others = access::Others {
        proxies: file.proxy_protocol_from.unwrap_or_default().into_iter().map(|network| network.0).collect(),
        clients_of_address_max: file.limits.max_clients_per_address.map_or(0, |count| count.0),
    };
    let (auth, rules) = access::resolve(&source, file.auth, others, &mut warnings)?;
    let everyones_timeouts = file::OwnLimits {
        max_clients: None,
        query_timeout: file.limits.query_timeout,
        idle_in_transaction_timeout: file.limits.idle_in_transaction_timeout,
        transaction_timeout: file.limits.transaction_timeout,
        client_idle_timeout: file.limits.client_idle_timeout,
    };
    let upkeep = Upkeep {
        reset_query: RESET_QUERY.to_owned(),
        max_statements: MAX_STATEMENTS,
        slow_query: Duration::ZERO,
        queue_notice: file.queue_notice.map_or(QUEUE_NOTICE, |wait| wait.0.0),
    };
    let config = Config {
        listen: listen(&source, file.listening_address)?,
        cores: file.cores.map(|count| count.0 as usize),
        arena: arena(&source, file.arena, &mut warnings)?,
        log: Log {
            level: file.log_level.map_or(log::LevelFilter::Info, |level| level.0),
            output: file.log_output.map_or(LogOutput::Stderr, |output| output.0),
            format: file.log_format.map(|format| format.0).unwrap_or_default(),
        },
        max_clients: file.limits.max_clients.map_or(MAX_CLIENTS, |count| count.0),
        login_timeout: file.limits.login_timeout.map_or(LOGIN_TIMEOUT, |wait| wait.0.0),
        client_stall_timeout: file.limits.client_stall_timeout.map_or(CLIENT_STALL_TIMEOUT, |wait| wait.0.0),
        cancel_timeout: file.limits.cancel_timeout.map_or(CANCEL_TIMEOUT, |wait| wait.0.0),
        dns_ttl: file.dns_ttl.map_or(DNS_TTL, |wait| wait.0.0),
        role_check_interval: file.role_check_interval.map_or(ROLE_CHECK_INTERVAL, |wait| wait.0.0),
        reconnect: reconnect(&source, file.reconnect)?,
        tcp: Tcp {
            keepalive: file.tcp.keepalive.map_or(TCP_KEEPALIVE, |wait| wait.0.0),
            user_timeout: file.tcp.user_timeout.map_or(Duration::ZERO, |wait| wait.0.0),
            backlog: file.tcp.backlog.map_or(TCP_BACKLOG, |count| count.0),
        },
        auth,
        tls_client: tls::client(&source, file.tls.client)?,
        server_tls,
        control_socket: file.control.socket.map(|path| path.0),
        metrics: file.metrics.address.map(|address| address.0),
        console: file.console.is_none_or(|console| console.0 == Switch::On),
        shutdown_timeout: file.shutdown_timeout.map_or(SHUTDOWN_TIMEOUT, |wait| wait.0.0),
        servers: servers.unwrap_or_else(|| {
            let address = ServerAddress::Tcp { host: Ipv4Addr::LOCALHOST.to_string(), port: SERVER_PORT_DEFAULT };
            vec![Place { address, weight: 1, tls: None }]
        }),
        everyone: Everyone {
            relay_mode: file.relay_mode.map(|mode| mode.0).unwrap_or_default(),
            route: file.route.map(|route| route.0),
            session_state: file.session_state.map(|state| state.0).unwrap_or_default(),
            transparency: file.transparency.map(|transparency| transparency.0).unwrap_or_default(),
            pool: pool_over(&file.pool, POOL),
            timeouts: timeouts_over(&everyones_timeouts, Timeouts::default()),
            upkeep: upkeep_over(&file.pool, file.slow_query.as_ref(), upkeep),
            rules,
        },
        other_databases: databases.remove("*"),
        databases,
        users,
        databases_only: file.databases_only.unwrap_or(false),
        dedicated_databases: names(file.dedicated_databases),
        dedicated_users: names(file.dedicated_users),
        source,
    };
    if config.databases_only && config.other_databases.is_some() {
        let problem = Problem::Excludes { other: "databases.*, which lists every database".to_owned() };
        return Err(config.source.error(KeyPath::of(["databases_only"]), problem));
    }
    if config.has_tls() && config.arena.chunk_size < TLS_CHUNK_SIZE_MIN {
        let allowed = format!("at least {TLS_CHUNK_SIZE_MIN} (bytes) with tls: a chunk has to hold a whole record");
        let problem = Problem::value(config.arena.chunk_size, allowed);
        return Err(config.source.error(KeyPath::of(["arena", "chunk_size"]), problem));
    }
    for name in auth::console::DATABASES {
        if config.console && config.databases.contains_key(name) {
            let problem =
                Problem::value(format!("{name:?}"), "another name: this is the console's, unless console: off");
            return Err(config.source.error(KeyPath::of(["databases", name]), problem));
        }
    }
    check_min_sizes(&config)?;
    access::check(&config, &mut warnings)?;
    Ok((config, warnings))
}

/// A socket file is named after the port of the first TCP address: a client that changes from one to the other by its
/// host alone finds QCP.
fn listen(source: &Source, written: Option<OneOrMany<Parsed<ListenAddress>>>) -> Result<Vec<Listen>, Error> {
    let path = KeyPath::of(["listening_address"]);
    let Some(OneOrMany(written)) = written else {
        return Ok(vec![Listen::Tcp(SocketAddr::from((Ipv4Addr::UNSPECIFIED, LISTEN_PORT)))]);
    };
    let first_port = written.iter().find_map(|Parsed(address)| match address {
        ListenAddress::Tcp(address) => Some(address.port()),
        ListenAddress::Unix { .. } => None,
    });
    let mut listen = Vec::new();
    for (index, Parsed(address)) in written.into_iter().enumerate() {
        let Some(address) = address.resolve(first_port.unwrap_or(LISTEN_PORT)) else {
            let problem = Problem::value("a directory with too long a path", ListenAddress::allowed());
            return Err(source.error(path.element(index), problem));
        };
        listen.push(address);
    }
    check_list(source, &listen, &path)?;
    Ok(listen)
}

/// Each `tls` for servers that was found so far, with its path.
type Found = Vec<(KeyPath, tls::ServerTls)>;

fn servers(
    source: &Source,
    written: Option<Vec<file::Server>>,
    path: &KeyPath,
    found: &mut Found,
) -> Result<Option<Vec<Place>>, Error> {
    let Some(written) = written else { return Ok(None) };
    let addresses: Vec<&ServerAddress> = written.iter().map(|server| &server.address).collect();
    check_list(source, &addresses, path)?;
    let places = written.into_iter().enumerate().map(|(index, file::Server { address, weight, tls })| {
        let path = path.element(index).join(["tls"]);
        if tls.is_some() && matches!(address, ServerAddress::Unix { .. }) {
            let problem = Problem::value(format!("it for {address}"), "none: a Unix socket is not encrypted");
            return Err(source.error(path, problem));
        }
        Ok(Place { address, weight: weight.map_or(1, |weight| weight.0), tls: own_tls(source, path, tls, found)? })
    });
    places.collect::<Result<_, _>>().map(Some)
}

/// Where a database's or a server's own `tls` is among those found. `None`: it has none.
fn own_tls(
    source: &Source,
    path: KeyPath,
    written: Option<file::ServerTls>,
    found: &mut Found,
) -> Result<Option<usize>, Error> {
    let Some(written) = written else { return Ok(None) };
    let tls = tls::server(source, &path, written)?;
    found.push((path, tls));
    Ok(Some(found.len() - 1))
}

/// At least one, each once.
fn check_list<T: Hash + Eq + ToString>(source: &Source, list: &[T], path: &KeyPath) -> Result<(), Error> {
    if list.is_empty() {
        return Err(source.error(path.clone(), Problem::value("an empty list", "at least one address")));
    }
    let mut seen = HashSet::new();
    match list.iter().position(|address| !seen.insert(address)) {
        None => Ok(()),
        Some(index) => {
            let found = format!("{:?} a second time", list[index].to_string());
            Err(source.error(path.element(index), Problem::value(found, "each address once")))
        }
    }
}

fn arena(source: &Source, written: file::Arena, warnings: &mut Vec<Warning>) -> Result<Arena, Error> {
    let chunk_size = written.chunk_size.map_or(CHUNK_SIZE, |size| size.0);
    let in_range = (CHUNK_SIZE_MIN..=CHUNK_SIZE_MAX).contains(&chunk_size);
    if !in_range || !chunk_size.is_multiple_of(CHUNK_SIZE_UNIT) {
        let allowed = format!("a multiple of {CHUNK_SIZE_UNIT} from {CHUNK_SIZE_MIN} to {CHUNK_SIZE_MAX} (bytes)");
        return Err(source.error(KeyPath::of(["arena", "chunk_size"]), Problem::value(chunk_size, allowed)));
    }
    let chunks_count = match written.total_size {
        None => u64::from(written.chunks_count.map_or(CHUNKS_COUNT, |count| count.0)),
        Some(Size(total_size)) => {
            if written.chunks_count.is_some() {
                let text = "has no effect, because total_size is there too";
                warnings.push(source.warning(KeyPath::of(["arena", "chunks_count"]), text));
            }
            let total_size_max = chunk_size * u64::from(file::CHUNKS_COUNT_MAX);
            if !(chunk_size..=total_size_max).contains(&total_size) {
                let (min, max) = (format_size(chunk_size), format_size(total_size_max));
                let problem = Problem::value(format_size(total_size), format!("from one chunk, {min}, to {max}"));
                return Err(source.error(KeyPath::of(["arena", "total_size"]), problem));
            }
            total_size / chunk_size
        }
    };
    // Both are far below 2^32; QCP runs on 64 bits only.
    Ok(Arena { chunk_size: chunk_size as usize, chunks_count: chunks_count as usize })
}

fn reconnect(source: &Source, written: file::Reconnect) -> Result<Reconnect, Error> {
    let min_backoff = written.min_backoff.map_or(MIN_BACKOFF, |wait| wait.0.0);
    let max_backoff = written.max_backoff.as_ref().map_or(MAX_BACKOFF, |wait| wait.0.0);
    if min_backoff > max_backoff {
        let (min, max) = (format_duration(min_backoff), format_duration(max_backoff));
        // The one that is written is at fault; of both, the second.
        let (key, problem) = match written.max_backoff.is_some() {
            true => ("max_backoff", Problem::value(max, format!("at least min_backoff, which is {min}"))),
            false => ("min_backoff", Problem::value(min, format!("at most max_backoff, which is {max}"))),
        };
        return Err(source.error(KeyPath::of(["reconnect", key]), problem));
    }
    let connect_timeout = written.connect_timeout.map_or(CONNECT_TIMEOUT, |wait| wait.0.0);
    Ok(Reconnect { connect_timeout, min_backoff, max_backoff })
}

type Entries<T> = Option<BTreeMap<String, T>>;

fn databases(
    source: &Source,
    written: Entries<file::Database>,
    warnings: &mut Vec<Warning>,
    found: &mut Found,
) -> Result<BTreeMap<String, Database>, Error> {
    let mut databases = BTreeMap::new();
    for (name, entry) in written.unwrap_or_default() {
        let path = KeyPath::of(["databases", name.as_str(), "servers"]);
        let database = Database {
            servers: servers(source, entry.servers, &path, found)?,
            dbname: entry.dbname.map(|name| name.0),
            tls: own_tls(source, KeyPath::of(["databases", name.as_str(), "tls"]), entry.tls, found)?,
            changes: Override {
                relay_mode: entry.relay_mode,
                route: entry.route,
                session_state: entry.session_state,
                transparency: entry.transparency,
                pool: entry.pool,
                limits: entry.limits,
                slow_query: entry.slow_query,
                access: access::change(
                    source,
                    &KeyPath::of(["databases", name.as_str(), "auth"]),
                    entry.auth,
                    warnings,
                )?,
            },
        };
        databases.insert(name, database);
    }
    Ok(databases)
}

fn users(
    source: &Source,
    written: Entries<file::User>,
    warnings: &mut Vec<Warning>,
) -> Result<BTreeMap<String, Override>, Error> {
    let written = written.unwrap_or_default();
    if written.contains_key("*") {
        let problem = Problem::value("\"*\"", "a user's name; what is for every user stands at the top level");
        return Err(source.error(KeyPath::of(["users", "*"]), problem));
    }
    let mut changes = |name: &str, entry: file::User| {
        let access = access::change(source, &KeyPath::of(["users", name, "auth"]), entry.auth, warnings)?;
        Ok(Override {
            relay_mode: entry.relay_mode,
            route: entry.route,
            session_state: entry.session_state,
            transparency: entry.transparency,
            pool: entry.pool,
            limits: entry.limits,
            slow_query: entry.slow_query,
            access,
        })
    };
    written.into_iter().map(|(name, entry)| changes(&name, entry).map(|changes| (name, changes))).collect()
}

fn names(written: Option<Vec<Name>>) -> HashSet<String> {
    written.unwrap_or_default().into_iter().map(|name| name.0).collect()
}

/// `min_size` is at most `size` for every database and user, wherever each of the two was set.
fn check_min_sizes(config: &Config) -> Result<(), Error> {
    // Those that say nothing about sizes are as everyone.
    let changing = |changes: &(KeyPath, &Override)| changes.1.sets_any_size();
    let databases: Vec<_> = config.database_changes().filter(changing).map(Some).chain([None]).collect();
    let users: Vec<_> = config.user_changes().filter(changing).map(Some).chain([None]).collect();
    for database in &databases {
        for user in &users {
            let mut settings = config.everyone.clone();
            for (_, changes) in database.iter().chain(user) {
                settings = changes.over(settings);
            }
            let pool::Settings { size, min_size, .. } = settings.pool;
            if min_size <= size {
                continue;
            }
            // The innermost is the one to change: what is further out is right for others.
            let (path, sets_min_size) = match user.as_ref().or(database.as_ref()) {
                Some((path, changes)) => (path.clone(), changes.pool.min_size.is_some()),
                None => (KeyPath::default(), true),
            };
            let (key, problem) = match sets_min_size {
                true => ("min_size", Problem::value(min_size, format!("at most pool.size, which is {size} there"))),
                false => ("size", Problem::value(size, format!("at least pool.min_size, which is {min_size} there"))),
            };
            return Err(config.source.error(path.join(["pool", key]), problem));
        }
    }
    Ok(())
}
