//! What the pooler tells about itself. Each shard fills in a [`ShardReport`]; [`show`] makes one answer of all of them,
//! as rows for a script and as a table for a human.

mod counted;
pub mod metrics;

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use serde::{Deserialize, Serialize};

pub use counted::show_counted;

use super::command::Topic;
use super::table::{self, left, right};
use super::wire::Reply;

/// What a client at the console is told that it is connected to: in PgBouncer's way, by which programs know a console.
pub const CONSOLE_VERSION: &str = concat!(env!("CARGO_PKG_VERSION"), "/qcp");

/// What one shard says when it is asked for a topic. Lists that the topic does not need stay empty.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct ShardReport {
    pub shard: u16,
    /// The processor that the shard is bound to, if it is.
    pub core: Option<u32>,
    pub uptime_s: u64,
    pub clients: Vec<ClientRow>,
    pub backends: Vec<BackendRow>,
    pub pools: Vec<PoolRow>,
    pub memory: MemoryReport,
    pub counters: Counters,
    /// Databases that are paused, and those that let nobody in, by an administrator's order; `*` is all of
    /// them but those behind it.
    pub paused: Vec<String>,
    pub disabled: Vec<String>,
    /// Servers' names, as far as they are remembered.
    pub names: Vec<NameRow>,
}

/// What a server's name means.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct NameRow {
    pub host: String,
    pub port: u16,
    /// Until it is looked up again.
    pub ttl_s: u64,
    /// Each with the port.
    pub addresses: Vec<String>,
}

/// Always filled in, whatever was asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Counters {
    /// Connected now.
    pub clients: u64,
    /// Connected now.
    pub backends: u64,
    pub queries: u64,
    pub transactions: u64,
    /// From clients and to clients, since the start.
    pub bytes_in: u64,
    pub bytes_out: u64,
    /// Requests that found no backend free, since the start.
    pub waits: u64,
}

#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct ClientRow {
    /// Names the client over all shards.
    pub id: u64,
    pub user: String,
    pub database: String,
    pub state: ClientState,
    pub shard: u16,
    pub address: String,
    pub connected_s: u64,
    pub application_name: String,
    /// The server's process id of the backend that it is linked to.
    pub backend_pid: Option<i32>,
    /// Of the wait that goes on; 0 if it does not wait.
    pub wait_ms: u64,
    /// What keeps it on its backend beyond its transactions (`session_state: preserve`); empty: nothing.
    pub pinned: Vec<String>,
    /// For how long.
    pub pinned_s: u64,
    /// Since its last request, or its login.
    pub quiet_s: u64,
    /// Whether its connection is encrypted.
    pub tls: bool,
    /// Our own end's address, as `address` is spelled; empty: none, or not told.
    #[serde(default)]
    pub local: String,
    /// Version and cipher; empty: its connection is not encrypted.
    #[serde(default)]
    pub cipher: String,
    /// `none`, `physical` or `logical`.
    #[serde(default)]
    pub replication: String,
    /// Named ones.
    pub prepared_statements: u64,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ClientState {
    Login,
    Idle,
    Waiting,
    Active,
    Dedicated,
    /// At the console, which has no backend.
    Console,
    Closing,
}

#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct BackendRow {
    /// The server's process id, once it has told.
    pub pid: Option<i32>,
    pub user: String,
    pub database: String,
    pub server: String,
    pub state: BackendState,
    pub shard: u16,
    pub age_s: u64,
    /// 0 if it is not idle.
    pub idle_s: u64,
    /// [`ClientRow::id`] of the client that it is linked to.
    pub client: Option<u64>,
    /// Since its transaction began; 0 if none is under way.
    pub transaction_ms: u64,
    /// It works on something for its client.
    pub busy: bool,
    /// It is to be replaced as soon as it is free.
    pub close_needed: bool,
    /// Whether its connection is encrypted.
    pub tls: bool,
    /// Our own end's address, as `address` is spelled; empty: none, or not told.
    #[serde(default)]
    pub local: String,
    /// Version and cipher; empty: its connection is not encrypted.
    #[serde(default)]
    pub cipher: String,
    /// `none`, `physical` or `logical`.
    #[serde(default)]
    pub replication: String,
    pub prepared_statements: u64,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BackendState {
    Dialing,
    Login,
    Idle,
    Linked,
    Cleaning,
    Dedicated,
    /// Hears notifications for the clients of its database.
    Listening,
    Closing,
}

/// A shard's part of a pool, or the parts of all shards added up.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct PoolRow {
    pub server: String,
    /// `primary`, `standby`, `unknown` or `down`; empty where nobody asks.
    #[serde(default)]
    pub role: String,
    pub database: String,
    pub user: String,
    pub mode: RelayMode,
    /// Backends that all shards together may have: the same in every part.
    pub size: u64,
    /// Backends that this part may have.
    pub permits: u64,
    pub idle: u64,
    pub linked: u64,
    pub dialing: u64,
    pub cleaning: u64,
    pub waiting: u64,
    pub oldest_wait_ms: u64,
    pub queries: u64,
    pub transactions: u64,
    pub clients: u64,
}

/// Spelled as in the configuration.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum RelayMode {
    Session,
    Smart,
    Statement,
}

#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct MemoryReport {
    pub terms: Vec<Term>,
    pub arena_chunks: u64,
    pub arena_chunk_size: u64,
    pub chunks_in_use: u64,
    /// Added up over shards this is an upper bound, because their peaks need not have been at one time.
    pub chunks_peak: u64,
    /// Of the whole process, so at most one of the reports has it.
    pub rss_bytes: Option<u64>,
}

/// One addend of the memory that is taken at start.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Term {
    pub name: String,
    pub count: u64,
    pub each_bytes: u64,
    pub bytes: u64,
    /// What it is for, in a few words.
    pub what: String,
}

#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct ShardRow {
    pub shard: u16,
    pub core: Option<u32>,
    #[serde(flatten)]
    pub counters: Counters,
}

#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Status {
    pub version: String,
    pub pid: u32,
    pub uptime_s: u64,
    pub state: RunState,
    pub cores: u64,
    pub clients: u64,
    pub backends: u64,
    pub listening: Vec<String>,
    /// The file that was loaded.
    pub config: String,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RunState {
    Running,
    Draining,
}

/// The answer to `quit`, given at once; the end itself is seen by the connection, which closes with the process.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Draining {
    pub pid: u32,
    /// How long the drain may take.
    pub shutdown_timeout_ms: u64,
}

/// The answer to `reopen`.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Reopened {
    /// `None`: the log is not a file.
    pub file: Option<String>,
}

/// The answer to `upgrade`: who is to take over.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Upgrading {
    pub pid: u32,
}

impl Upgrading {
    pub fn reply(&self) -> Reply {
        Reply::new(self, format!("process {} starts, to take over\n", self.pid))
    }
}

/// The answer to `reload` and `set`.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct Reloaded {
    /// What is in force now.
    pub changed: Vec<ChangedKey>,
    /// What differs from the start and is in force only after a restart.
    pub needs_restart: Vec<ChangedKey>,
    pub warnings: Vec<String>,
    /// Backends are being replaced.
    pub recycled: bool,
}

/// A key of the configuration that was changed.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ChangedKey {
    pub key: String,
    /// `None`: its default.
    pub from: Option<String>,
    pub to: Option<String>,
}

/// The answer to what is ordered: how far it is.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Ordered {
    pub act: String,
    /// `None`: all.
    pub database: Option<String>,
    pub clients: u64,
    /// Of them.
    pub waiting: u64,
    pub backends: u64,
    /// Of them.
    pub idle: u64,
}

/// The answer to `check-login`: how the login went at one server.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct LoginRow {
    pub server: String,
    /// As the server calls it.
    pub database: String,
    pub user: String,
    pub outcome: LoginOutcome,
    pub says: String,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LoginOutcome {
    Ok,
    InvalidPassword,
    Error,
}

/// The answer to `check-login`.
pub fn show_logins(rows: &[LoginRow]) -> Reply {
    let line = |LoginRow { server, database, user, outcome, says }: &LoginRow| {
        let outcome = match outcome {
            LoginOutcome::Ok => "ok",
            LoginOutcome::InvalidPassword => "invalid password",
            LoginOutcome::Error => "error",
        };
        format!("{server}: {outcome}: database {database}, user {user}: {says}\n")
    };
    Reply::new(&rows, rows.iter().map(line).collect())
}

/// The answer to `get`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct KeyRow {
    pub key: String,
    pub value: String,
    /// Empty where there is none.
    pub default: String,
    /// Without a restart.
    pub changeable: bool,
}

impl Reloaded {
    pub fn reply(&self) -> Reply {
        let mut text = String::new();
        if self.changed.is_empty() && self.needs_restart.is_empty() {
            text += "nothing has changed\n";
        }
        for change in &self.changed {
            text += &format!("{change}\n");
        }
        for change in &self.needs_restart {
            text += &format!("{change} (needs a restart)\n");
        }
        for warning in &self.warnings {
            text += &format!("warning: {warning}\n");
        }
        if self.recycled {
            text += "server connections are being replaced\n";
        }
        Reply::new(self, text)
    }
}

impl std::fmt::Display for ChangedKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let of = |value: &Option<String>| value.clone().unwrap_or_else(|| "(default)".to_owned());
        write!(f, "{}: {} -> {}", self.key, of(&self.from), of(&self.to))
    }
}

impl Ordered {
    pub fn reply(&self) -> Reply {
        let of = self.database.as_deref().unwrap_or("all databases");
        let Self { act, clients, waiting, backends, idle, .. } = self;
        let text = format!("{act} {of}: {clients} clients ({waiting} wait), {backends} backends ({idle} idle)\n");
        Reply::new(self, text)
    }
}

/// The answer to `get`.
pub fn show_keys(rows: &[KeyRow]) -> Reply {
    let text = match rows {
        [one] => format!("{}\n", one.value),
        rows => rows.iter().map(|row| format!("{}: {}\n", row.key, row.value)).collect(),
    };
    Reply::new(&rows, text)
}

#[derive(Serialize)]
struct MemoryTotal<'report> {
    total_bytes: u64,
    #[serde(flatten)]
    report: &'report MemoryReport,
}

/// The answer to `show`, from what all shards have told.
pub fn show(topic: Topic, reports: Vec<ShardReport>) -> Reply {
    match topic {
        Topic::Memory => show_memory(&merge_memory(reports.into_iter().map(|report| report.memory))),
        Topic::Pools => show_pools(&merge_pools(reports.into_iter().flat_map(|report| report.pools))),
        Topic::Clients => {
            let mut rows: Vec<ClientRow> = reports.into_iter().flat_map(|report| report.clients).collect();
            rows.sort_by_key(|row| (row.shard, row.id));
            show_clients(&rows)
        }
        Topic::Pins => {
            let rows = reports.into_iter().flat_map(|report| report.clients);
            let mut rows: Vec<ClientRow> = rows.filter(|row| !row.pinned.is_empty()).collect();
            rows.sort_by_key(|row| std::cmp::Reverse(row.pinned_s));
            show_pins(&rows)
        }
        Topic::Backends => {
            let mut rows: Vec<BackendRow> = reports.into_iter().flat_map(|report| report.backends).collect();
            rows.sort_by(|a, b| {
                (a.shard, &a.server, &a.database, a.pid).cmp(&(b.shard, &b.server, &b.database, b.pid))
            });
            show_backends(&rows)
        }
        Topic::Shards => {
            let mut rows: Vec<ShardRow> = reports.iter().map(ShardReport::row).collect();
            rows.sort_by_key(|row| row.shard);
            show_shards(&rows)
        }
        // These are of another report.
        Topic::Stats | Topic::Errors => show_counted(topic, &[]),
    }
}

impl ShardReport {
    pub fn row(&self) -> ShardRow {
        ShardRow { shard: self.shard, core: self.core, counters: self.counters }
    }
}

/// Adds up the parts of each pool, in the order of server, database and user.
pub fn merge_pools(parts: impl IntoIterator<Item = PoolRow>) -> Vec<PoolRow> {
    let mut pools = BTreeMap::new();
    for part in parts {
        match pools.entry((part.server.clone(), part.database.clone(), part.user.clone())) {
            Entry::Vacant(place) => {
                place.insert(part);
            }
            Entry::Occupied(mut pool) => pool.get_mut().add(&part),
        }
    }
    pools.into_values().collect()
}

/// Whether a list of databases, as [`ShardReport::paused`] has it, has this one.
pub fn is_held(held: &[String], database: &str) -> bool {
    let all = held.first().is_some_and(|first| first == "*");
    let named = held.iter().skip(usize::from(all)).any(|name| name == database);
    named != all
}

impl PoolRow {
    fn add(&mut self, part: &PoolRow) {
        // While a changed configuration makes its way to the shards they may differ for a moment.
        self.size = self.size.max(part.size);
        self.permits += part.permits;
        self.idle += part.idle;
        self.linked += part.linked;
        self.dialing += part.dialing;
        self.cleaning += part.cleaning;
        self.waiting += part.waiting;
        self.oldest_wait_ms = self.oldest_wait_ms.max(part.oldest_wait_ms);
        self.queries += part.queries;
        self.transactions += part.transactions;
        self.clients += part.clients;
    }
}

/// Adds up the terms of all shards. A term that is of another size elsewhere keeps a line of its own, so that count
/// times size stays true on every line.
pub fn merge_memory(parts: impl IntoIterator<Item = MemoryReport>) -> MemoryReport {
    let mut sum = MemoryReport::default();
    for part in parts {
        for term in part.terms {
            let same = |known: &&mut Term| known.name == term.name && known.each_bytes == term.each_bytes;
            match sum.terms.iter_mut().find(same) {
                None => sum.terms.push(term),
                Some(known) => {
                    known.count += term.count;
                    known.bytes += term.bytes;
                }
            }
        }
        sum.arena_chunks += part.arena_chunks;
        sum.arena_chunk_size = sum.arena_chunk_size.max(part.arena_chunk_size);
        sum.chunks_in_use += part.chunks_in_use;
        sum.chunks_peak += part.chunks_peak;
        sum.rss_bytes = sum.rss_bytes.max(part.rss_bytes);
    }
    sum
}

impl MemoryReport {
    pub fn total_bytes(&self) -> u64 {
        self.terms.iter().map(|term| term.bytes).sum()
    }
}

fn show_memory(report: &MemoryReport) -> Reply {
    let columns = [
        left("term", |term: &Term| term.name.clone()),
        right("count", |term| table::grouped(term.count)),
        right("each", |term| table::grouped(term.each_bytes)),
        right("bytes", |term| table::grouped(term.bytes)),
        left("what", |term| term.what.clone()),
    ];
    let total_bytes = report.total_bytes();
    let mut text = table::render(&columns, &report.terms);
    text += &format!("\ntotal  {} bytes ({})\n", table::grouped(total_bytes), table::size(total_bytes));
    text += &format!(
        "arena  {} chunks of {} bytes, {} in use, at most {} so far\n",
        table::grouped(report.arena_chunks),
        table::grouped(report.arena_chunk_size),
        table::grouped(report.chunks_in_use),
        table::grouped(report.chunks_peak),
    );
    if let Some(rss_bytes) = report.rss_bytes {
        text += &format!("rss    {} bytes ({})\n", table::grouped(rss_bytes), table::size(rss_bytes));
    }
    Reply::new(&MemoryTotal { total_bytes, report }, text)
}

fn show_pools(rows: &[PoolRow]) -> Reply {
    // Without permits, which over all shards say the same as the size.
    let columns = [
        left("server", |row: &PoolRow| row.server.clone()),
        left("database", |row| row.database.clone()),
        left("user", |row| row.user.clone()),
        left("mode", |row| row.mode.name().to_string()),
        right("size", |row| row.size.to_string()),
        right("linked", |row| row.linked.to_string()),
        right("idle", |row| row.idle.to_string()),
        right("dialing", |row| row.dialing.to_string()),
        right("cleaning", |row| row.cleaning.to_string()),
        right("clients", |row| row.clients.to_string()),
        right("waiting", |row| row.waiting.to_string()),
        right("oldest", |row| table::short_span(row.oldest_wait_ms)),
        right("queries", |row| row.queries.to_string()),
        right("transactions", |row| row.transactions.to_string()),
        left("role", |row| row.role.clone()),
    ];
    Reply::new(&rows, table::render(&columns, rows))
}

fn show_clients(rows: &[ClientRow]) -> Reply {
    let columns = [
        right("shard", |row: &ClientRow| row.shard.to_string()),
        right("id", |row| row.id.to_string()),
        left("database", |row| row.database.clone()),
        left("user", |row| row.user.clone()),
        left("state", |row| row.state.name().to_string()),
        right("wait", |row| table::short_span(row.wait_ms)),
        right("backend", |row| optional(row.backend_pid)),
        left("pinned", |row| row.pinned.join(", ")),
        right("connected", |row| table::span(row.connected_s)),
        left("address", |row| row.address.clone()),
        left("application", |row| row.application_name.clone()),
    ];
    Reply::new(&rows, table::render(&columns, rows))
}

fn show_pins(rows: &[ClientRow]) -> Reply {
    let columns = [
        right("shard", |row: &ClientRow| row.shard.to_string()),
        right("id", |row| row.id.to_string()),
        left("database", |row| row.database.clone()),
        left("user", |row| row.user.clone()),
        right("for", |row| table::span(row.pinned_s)),
        left("pinned by", |row| row.pinned.join(", ")),
        right("backend", |row| optional(row.backend_pid)),
        left("address", |row| row.address.clone()),
        left("application", |row| row.application_name.clone()),
    ];
    Reply::new(&rows, table::render(&columns, rows))
}

fn show_backends(rows: &[BackendRow]) -> Reply {
    let columns = [
        right("shard", |row: &BackendRow| row.shard.to_string()),
        right("pid", |row| optional(row.pid)),
        left("server", |row| row.server.clone()),
        left("database", |row| row.database.clone()),
        left("user", |row| row.user.clone()),
        left("state", |row| row.state.name().to_string()),
        right("age", |row| table::span(row.age_s)),
        right("idle", |row| table::span(row.idle_s)),
        right("client", |row| optional(row.client)),
    ];
    Reply::new(&rows, table::render(&columns, rows))
}

fn show_shards(rows: &[ShardRow]) -> Reply {
    let columns = [
        right("shard", |row: &ShardRow| row.shard.to_string()),
        right("core", |row| optional(row.core)),
        right("clients", |row| row.counters.clients.to_string()),
        right("backends", |row| row.counters.backends.to_string()),
        right("queries", |row| row.counters.queries.to_string()),
        right("transactions", |row| row.counters.transactions.to_string()),
        right("in", |row| table::size(row.counters.bytes_in)),
        right("out", |row| table::size(row.counters.bytes_out)),
        right("waits", |row| row.counters.waits.to_string()),
    ];
    Reply::new(&rows, table::render(&columns, rows))
}

impl Status {
    pub fn reply(&self) -> Reply {
        let text = format!(
            "qcp {}, process {}, {} for {}\nlistening  {}\nconfig     {}\ncores      {}\nclients    {}\nbackends   {}\n",
            self.version,
            self.pid,
            self.state.name(),
            table::span(self.uptime_s),
            self.listening.join(", "),
            self.config,
            self.cores,
            self.clients,
            self.backends,
        );
        Reply::new(self, text)
    }
}

impl Reopened {
    pub fn reply(&self) -> Reply {
        let text = match &self.file {
            Some(file) => format!("opened {file} anew\n"),
            None => "the log is not a file\n".to_owned(),
        };
        Reply::new(self, text)
    }
}

impl Draining {
    pub fn reply(&self) -> Reply {
        let most = table::short_span(self.shutdown_timeout_ms);
        Reply::new(self, format!("qcp, process {}, is draining, for {most} at most\n", self.pid))
    }
}

fn optional(number: Option<impl ToString>) -> String {
    number.map_or_else(|| "-".to_string(), |number| number.to_string())
}

impl RelayMode {
    pub fn name(self) -> &'static str {
        match self {
            RelayMode::Session => "Session",
            RelayMode::Smart => "Smart",
            RelayMode::Statement => "Statement",
        }
    }
}

impl ClientState {
    pub fn name(self) -> &'static str {
        match self {
            ClientState::Login => "login",
            ClientState::Idle => "idle",
            ClientState::Waiting => "waiting",
            ClientState::Active => "active",
            ClientState::Dedicated => "dedicated",
            ClientState::Console => "console",
            ClientState::Closing => "closing",
        }
    }
}

impl BackendState {
    pub fn name(self) -> &'static str {
        match self {
            BackendState::Dialing => "dialing",
            BackendState::Login => "login",
            BackendState::Idle => "idle",
            BackendState::Linked => "linked",
            BackendState::Cleaning => "cleaning",
            BackendState::Dedicated => "dedicated",
            BackendState::Listening => "listening",
            BackendState::Closing => "closing",
        }
    }
}

impl RunState {
    pub fn name(self) -> &'static str {
        match self {
            RunState::Running => "running",
            RunState::Draining => "draining",
        }
    }
}

#[cfg(test)]
mod tests;
