//! What is counted, and the page of it that Prometheus reads: PgBouncer exporter's names where the thing exists, and our
//! own. Each shard fills in a [`ShardMetrics`]; [`page`] adds them up.

use std::collections::BTreeMap;
use std::fmt::{Display, Write};
use std::time::Duration;

use super::RelayMode;

/// The first bucket ends at 64 us, each further one at twice that; the last has no end.
const BUCKETS: usize = 22;
const FIRST_US: u64 = 64;
/// Pools whose histograms are shown: those with the most transactions. The page stays below some megabytes.
const HISTOGRAM_POOLS_MAX: usize = 500;

/// Times, by how long they were. Recording is a few instructions; nothing grows.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Histogram {
    counts: [u64; BUCKETS],
    sum_us: u64,
}

impl Histogram {
    #[inline]
    pub fn record(&mut self, time: Duration) {
        self.record_measured(Measured::new(time));
    }

    /// As [`Histogram::record`], for a time that several histograms get.
    #[inline]
    pub fn record_measured(&mut self, time: Measured) {
        self.counts[time.bucket] += 1;
        self.sum_us += time.us;
    }

    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// That share of them took at most so long, to the end of a bucket: 0 where there are none, the largest number in the
    /// bucket without an end.
    pub fn quantile_us(&self, share: f64) -> u64 {
        let wanted = (self.count() as f64 * share).ceil() as u64;
        let mut count = 0;
        for (index, more) in self.counts.iter().enumerate() {
            count += more;
            if count >= wanted && count > 0 {
                return if index + 1 < BUCKETS { FIRST_US << index } else { u64::MAX };
            }
        }
        0
    }

    pub fn seconds(&self) -> f64 {
        self.sum_us as f64 / 1e6
    }

    /// All of them together, in microseconds.
    pub fn total_us(&self) -> u64 {
        self.sum_us
    }

    fn and(mut self, other: &Histogram) -> Histogram {
        self.add(other);
        self
    }

    pub fn add(&mut self, other: &Histogram) {
        self.counts.iter_mut().zip(other.counts).for_each(|(count, more)| *count += more);
        self.sum_us += other.sum_us;
    }
}

/// A time, and the bucket that it belongs to.
#[derive(Clone, Copy, Debug)]
pub struct Measured {
    us: u64,
    bucket: usize,
}

impl Measured {
    #[inline]
    pub fn new(time: Duration) -> Measured {
        Self::of_us(time.as_secs() * 1_000_000 + u64::from(time.subsec_micros()))
    }

    /// Of so many microseconds.
    #[inline]
    pub fn of_us(us: u64) -> Measured {
        let firsts = us.saturating_sub(1) / FIRST_US;
        // How many bits it has.
        let doublings = (firsts << 1 | 1).ilog2() as usize;
        Measured { us, bucket: doublings.min(BUCKETS - 1) }
    }
}

/// What a pool has done since it was made.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Totals {
    /// Times that a client was given a backend.
    pub links: u64,
    /// From clients that were given a backend, and from servers for them.
    pub bytes_in: u64,
    pub bytes_out: u64,
    /// Of clients that found no backend idle and were given one.
    pub wait: Histogram,
    /// Queries that were not a transaction of their own, and transactions of several.
    queries: Histogram,
    transactions: Histogram,
    /// Queries that were a transaction of their own: most are, and one entry is cheaper than two.
    alone: Histogram,
    /// From the first look at the address to the end of the login.
    pub connect: Histogram,
    /// Clients let in.
    pub logins: u64,
    /// Named statements that clients prepared, that servers were told to, and Binds.
    pub client_parses: u64,
    pub server_parses: u64,
    pub binds: u64,
}

impl Totals {
    /// A query was answered, and its transaction goes on.
    #[inline]
    pub fn query_took(&mut self, time: Measured) {
        self.queries.record_measured(time);
    }

    /// A transaction of more than one query has ended; its last query is counted apart.
    #[inline]
    pub fn transaction_took(&mut self, time: Measured) {
        self.transactions.record_measured(time);
    }

    /// A query was answered that was a whole transaction.
    #[inline]
    pub fn query_took_alone(&mut self, time: Measured) {
        self.alone.record_measured(time);
    }

    /// From a query to the end of its answer, of all queries.
    pub fn query(&self) -> Histogram {
        self.queries.and(&self.alone)
    }

    /// From the first query to the end of the transaction, of all transactions.
    pub fn transaction(&self) -> Histogram {
        self.transactions.and(&self.alone)
    }

    pub fn add(&mut self, other: &Totals) {
        self.links += other.links;
        self.bytes_in += other.bytes_in;
        self.bytes_out += other.bytes_out;
        self.wait.add(&other.wait);
        self.queries.add(&other.queries);
        self.transactions.add(&other.transactions);
        self.alone.add(&other.alone);
        self.connect.add(&other.connect);
        self.logins += other.logins;
        self.client_parses += other.client_parses;
        self.server_parses += other.server_parses;
        self.binds += other.binds;
    }
}

/// A shard's part of a pool.
#[derive(Clone, PartialEq, Debug)]
pub struct PoolMetrics {
    /// As the configuration names it.
    pub server: String,
    /// The host, or the socket file; and the port, where there is one.
    pub host: String,
    pub port: String,
    pub database: String,
    /// What the server calls it.
    pub server_database: String,
    pub user: String,
    pub mode: RelayMode,
    /// Over all shards.
    pub size: u64,
    pub clients_idle: u64,
    pub clients_active: u64,
    pub clients_waiting: u64,
    pub oldest_wait: Duration,
    pub backends_idle: u64,
    pub backends_active: u64,
    pub backends_cleaning: u64,
    pub backends_login: u64,
    /// The last attempt to open a backend failed.
    pub in_trouble: bool,
    pub totals: Totals,
}

/// Who an error came from.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Origin {
    Server,
    /// QCP.
    Pooler,
}

impl Origin {
    pub fn name(self) -> &'static str {
        match self {
            Origin::Server => "server",
            Origin::Pooler => "pooler",
        }
    }
}

/// What one shard says when it is asked for its counters.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct ShardMetrics {
    pub shard: u16,
    pub clients: u64,
    pub clients_login: u64,
    pub backends: u64,
    pub bytes_in: u64,
    pub bytes_out: u64,
    pub queries: u64,
    pub links: u64,
    pub waits: u64,
    pub accepted: u64,
    /// Links broken and panics caught.
    pub broken: u64,
    pub arena_chunks: u64,
    pub arena_chunk_size: u64,
    pub arena_used: u64,
    pub arena_peak: u64,
    pub pools: Vec<PoolMetrics>,
    /// By database, of pools that are gone.
    pub retired: Vec<(String, Totals)>,
    pub errors: Vec<(String, Origin, u64)>,
}

/// What the process adds to what its shards say.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct ProcessMetrics {
    pub version: String,
    pub started_s: f64,
    pub draining: bool,
    pub resident_bytes: Option<u64>,
    pub clients_max: u64,
    /// By shard; of its threads.
    pub cpu_s: Vec<(u16, f64)>,
}

/// The page, in Prometheus' text format, version 0.0.4.
pub fn page(shards: &[ShardMetrics], process: &ProcessMetrics) -> String {
    let mut page = Page::default();
    process_families(&mut page, process);
    core_families(&mut page, shards);
    let pools = merged(shards);
    exporter_families(&mut page, shards, &pools, process);
    pool_families(&mut page, &pools);
    let mut errors: BTreeMap<(&str, Origin), u64> = BTreeMap::new();
    for (code, origin, count) in shards.iter().flat_map(|shard| &shard.errors) {
        *errors.entry((code, *origin)).or_default() += count;
    }
    page.counter("qcp_errors_total", "Errors that clients were told, by SQLSTATE, and by whom.");
    for ((code, origin), count) in errors {
        page.value("qcp_errors_total", &[("sqlstate", code), ("origin", origin.name())], count);
    }
    page.text
}

/// Whether clients can be served: some pool's server answers, or nobody has asked for any yet.
pub fn has_server(shards: &[ShardMetrics]) -> bool {
    let mut pools = shards.iter().flat_map(|shard| &shard.pools).peekable();
    pools.peek().is_none() || pools.any(|pool| !pool.in_trouble)
}

fn process_families(page: &mut Page, process: &ProcessMetrics) {
    page.gauge("pgbouncer_up", "QCP answers.");
    page.value("pgbouncer_up", &[], 1);
    page.gauge("pgbouncer_version_info", "The version of QCP.");
    page.value("pgbouncer_version_info", &[("version", &format!("QCP {}", process.version))], 1);
    page.gauge("qcp_info", "The version of QCP.");
    page.value("qcp_info", &[("version", &process.version)], 1);
    page.gauge("qcp_draining", "1 while QCP takes no more clients and ends.");
    page.value("qcp_draining", &[], u8::from(process.draining));
    page.gauge("process_start_time_seconds", "When QCP was started, since the epoch.");
    page.value("process_start_time_seconds", &[], process.started_s);
    if let Some(bytes) = process.resident_bytes {
        page.gauge("process_resident_memory_bytes", "Memory of the process that is in RAM.");
        page.value("process_resident_memory_bytes", &[], bytes);
    }
    page.counter("qcp_core_cpu_seconds_total", "CPU time of the core's threads.");
    for (shard, seconds) in &process.cpu_s {
        page.value("qcp_core_cpu_seconds_total", &[("core", &shard.to_string())], seconds);
    }
}

fn core_families(page: &mut Page, shards: &[ShardMetrics]) {
    type Read = fn(&ShardMetrics) -> u64;
    let counters: [(&str, &str, Read); 7] = [
        ("qcp_received_bytes_total", "Bytes from clients.", |shard| shard.bytes_in),
        ("qcp_sent_bytes_total", "Bytes from servers.", |shard| shard.bytes_out),
        ("qcp_requests_total", "Simple queries, function calls and Syncs.", |shard| shard.queries),
        ("qcp_links_total", "Times that a client was given a backend.", |shard| shard.links),
        ("qcp_waits_total", "Requests that found no backend idle.", |shard| shard.waits),
        ("qcp_accepted_total", "Connections accepted from clients.", |shard| shard.accepted),
        ("qcp_broken_total", "Links closed because of a mistake in QCP; 0 unless there is one.", |shard| shard.broken),
    ];
    let gauges: [(&str, &str, Read); 3] = [
        ("qcp_clients", "Connections of clients.", |shard| shard.clients),
        ("qcp_backends", "Connections to servers.", |shard| shard.backends),
        ("qcp_arena_peak_bytes", "The most of the arena that was in use.", |shard| {
            shard.arena_peak * shard.arena_chunk_size
        }),
    ];
    let mut family = |(name, help, read): (&str, &str, Read), is_counter| {
        if is_counter {
            page.counter(name, help)
        } else {
            page.gauge(name, help)
        }
        for shard in shards {
            page.value(name, &[("core", &shard.shard.to_string())], read(shard));
        }
    };
    counters.into_iter().for_each(|of| family(of, true));
    gauges.into_iter().for_each(|of| family(of, false));
    page.gauge("qcp_arena_bytes", "The memory for data, all taken at start.");
    for shard in shards {
        let core = shard.shard.to_string();
        let free = shard.arena_chunks - shard.arena_used;
        page.value("qcp_arena_bytes", &[("core", &core), ("state", "used")], shard.arena_used * shard.arena_chunk_size);
        page.value("qcp_arena_bytes", &[("core", &core), ("state", "free")], free * shard.arena_chunk_size);
    }
}

/// Each pool once, its parts added up, in order of server, database and user.
pub fn merged(shards: &[ShardMetrics]) -> Vec<PoolMetrics> {
    let mut pools: BTreeMap<(&str, &str, &str), PoolMetrics> = BTreeMap::new();
    for part in shards.iter().flat_map(|shard| &shard.pools) {
        let key = (part.server.as_str(), part.database.as_str(), part.user.as_str());
        pools.entry(key).and_modify(|pool| pool.add(part)).or_insert_with(|| part.clone());
    }
    pools.into_values().collect()
}

impl PoolMetrics {
    fn add(&mut self, part: &PoolMetrics) {
        self.size = self.size.max(part.size);
        self.clients_idle += part.clients_idle;
        self.clients_active += part.clients_active;
        self.clients_waiting += part.clients_waiting;
        self.oldest_wait = self.oldest_wait.max(part.oldest_wait);
        self.backends_idle += part.backends_idle;
        self.backends_active += part.backends_active;
        self.backends_cleaning += part.backends_cleaning;
        self.backends_login += part.backends_login;
        self.in_trouble |= part.in_trouble;
        self.totals.add(&part.totals);
    }

    fn backends(&self) -> u64 {
        self.backends_idle + self.backends_active + self.backends_cleaning + self.backends_login
    }
}

/// What the exporter of PgBouncer has, by its names.
fn exporter_families(page: &mut Page, shards: &[ShardMetrics], pools: &[PoolMetrics], process: &ProcessMetrics) {
    // By database and user; a pool of ours is of one server as well.
    let mut by_user: BTreeMap<(&str, &str), PoolMetrics> = BTreeMap::new();
    let mut by_server: BTreeMap<(&str, &str), PoolMetrics> = BTreeMap::new();
    let mut by_database: BTreeMap<&str, Totals> = BTreeMap::new();
    for pool in pools {
        let of_user = by_user.entry((&pool.database, &pool.user));
        of_user.and_modify(|sum| sum.add(pool)).or_insert_with(|| pool.clone());
        let of_server = by_server.entry((&pool.server, &pool.database));
        of_server.and_modify(|sum| sum.add(pool)).or_insert_with(|| pool.clone());
        by_database.entry(&pool.database).or_default().add(&pool.totals);
    }
    for (database, totals) in shards.iter().flat_map(|shard| &shard.retired) {
        by_database.entry(database).or_default().add(totals);
    }

    type OfPool = fn(&PoolMetrics) -> f64;
    let of_pools: [(&str, &str, OfPool); 7] = [
        ("client_active_connections", "Clients that have a backend or need none.", |pool| {
            (pool.clients_active + pool.clients_idle) as f64
        }),
        ("client_waiting_connections", "Clients that wait for a backend.", |pool| pool.clients_waiting as f64),
        ("server_active_connections", "Backends that a client has.", |pool| pool.backends_active as f64),
        ("server_idle_connections", "Backends that can be lent at once.", |pool| pool.backends_idle as f64),
        ("server_testing_connections", "Backends that are being reset.", |pool| pool.backends_cleaning as f64),
        ("server_login_connections", "Backends that are being opened.", |pool| pool.backends_login as f64),
        ("client_maxwait_seconds", "How long the first in the queue has waited.", |pool| {
            pool.oldest_wait.as_secs_f64()
        }),
    ];
    for (name, help, read) in of_pools {
        let name = format!("pgbouncer_pools_{name}");
        page.gauge(&name, help);
        for ((database, user), pool) in &by_user {
            page.value(&name, &[("database", database), ("user", user)], read(pool));
        }
    }
    let of_databases: [(&str, &str, OfPool); 2] = [
        ("pool_size", "Backends that one of its pools may have.", |pool| pool.size as f64),
        ("current_connections", "Backends of all its pools.", |pool| pool.backends() as f64),
    ];
    for (name, help, read) in of_databases {
        let name = format!("pgbouncer_databases_{name}");
        page.gauge(&name, help);
        for ((_, database), pool) in &by_server {
            let labels = [
                ("name", *database),
                ("host", &pool.host),
                ("port", &pool.port),
                ("database", &pool.server_database),
                ("force_user", ""),
                ("pool_mode", mode(pool.mode)),
            ];
            page.value(&name, &labels, read(pool));
        }
    }
    type OfTotals = fn(&Totals) -> f64;
    let of_totals: [(&str, &str, OfTotals); 12] = [
        ("queries_pooled_total", "Queries that were answered.", |totals| totals.query().count() as f64),
        ("queries_duration_seconds_total", "Time from a query to the end of its answer.", |totals| {
            totals.query().seconds()
        }),
        ("received_bytes_total", "Bytes from clients that have, or had, a backend.", |totals| totals.bytes_in as f64),
        ("sent_bytes_total", "Bytes from servers for clients.", |totals| totals.bytes_out as f64),
        ("client_wait_seconds_total", "Time that clients waited for a backend.", |totals| totals.wait.seconds()),
        ("sql_transactions_pooled_total", "Transactions that have ended.", |totals| {
            totals.transaction().count() as f64
        }),
        ("server_in_transaction_seconds_total", "Time in transactions.", |totals| totals.transaction().seconds()),
        ("server_assignments_total", "Times that a client was given a backend.", |totals| totals.links as f64),
        ("client_parses_total", "Named statements that clients prepared.", |totals| totals.client_parses as f64),
        ("server_parses_total", "Named statements prepared at a server.", |totals| totals.server_parses as f64),
        ("binds_total", "Binds of named statements.", |totals| totals.binds as f64),
        ("client_logins_total", "Clients that were let in.", |totals| totals.logins as f64),
    ];
    for (name, help, read) in of_totals {
        let name = format!("pgbouncer_stats_{name}");
        page.counter(&name, help);
        for (database, totals) in &by_database {
            page.value(&name, &[("database", database)], read(totals));
        }
    }

    let sum = |read: fn(&ShardMetrics) -> u64| shards.iter().map(read).sum::<u64>();
    let clients = sum(|shard| shard.clients);
    let users: std::collections::BTreeSet<&str> = pools.iter().map(|pool| pool.user.as_str()).collect();
    let free: u64 = pools.iter().map(|pool| pool.backends_idle).sum();
    let lists = [
        ("databases", "Databases in use.", by_database.len() as u64),
        ("users", "Users with a pool.", users.len() as u64),
        ("pools", "Pools.", by_user.len() as u64),
        ("free_clients", "Clients that could still connect.", process.clients_max.saturating_sub(clients)),
        ("used_clients", "Connections of clients.", clients),
        ("login_clients", "Clients that are logging in.", sum(|shard| shard.clients_login)),
        ("free_servers", "Backends that can be lent at once.", free),
        ("used_servers", "Backends that are not idle.", sum(|shard| shard.backends).saturating_sub(free)),
        ("config_max_client_connections", "limits.max_clients.", process.clients_max),
    ];
    for (name, help, value) in lists {
        let name = format!("pgbouncer_{name}");
        page.gauge(&name, help);
        page.value(&name, &[], value);
    }
}

/// PgBouncer's word.
fn mode(mode: RelayMode) -> &'static str {
    match mode {
        RelayMode::Session => "session",
        RelayMode::Smart => "transaction",
        RelayMode::Statement => "statement",
    }
}

fn pool_families(page: &mut Page, pools: &[PoolMetrics]) {
    page.gauge("qcp_pool_in_trouble", "1 if the last attempt to open a backend failed.");
    for pool in pools {
        page.value("qcp_pool_in_trouble", &pool.labels(), u8::from(pool.in_trouble));
    }
    let mut busiest: Vec<&PoolMetrics> = pools.iter().collect();
    busiest.sort_by_key(|pool| std::cmp::Reverse(pool.totals.links));
    let left_out = busiest.len().saturating_sub(HISTOGRAM_POOLS_MAX);
    busiest.truncate(HISTOGRAM_POOLS_MAX);
    page.gauge("qcp_pools_without_histograms", "Pools left out of the histograms; the busiest 500 are there.");
    page.value("qcp_pools_without_histograms", &[], left_out);
    type Read = fn(&Totals) -> Histogram;
    let histograms: [(&str, &str, Read); 4] = [
        ("qcp_wait_seconds", "How long clients waited that found no backend idle.", |totals| totals.wait),
        ("qcp_query_seconds", "From a query to the end of its answer.", Totals::query),
        ("qcp_transaction_seconds", "From the first query to the end of the transaction.", Totals::transaction),
        ("qcp_server_connect_seconds", "From the first look at the address to the end of the login.", |totals| {
            totals.connect
        }),
    ];
    for (name, help, read) in histograms {
        page.family(name, "histogram", help);
        for pool in &busiest {
            page.histogram(name, &pool.labels(), &read(&pool.totals));
        }
    }
}

impl PoolMetrics {
    fn labels(&self) -> [(&str, &str); 3] {
        [("server", &self.server), ("database", &self.database), ("user", &self.user)]
    }
}

#[derive(Default)]
struct Page {
    text: String,
}

impl Page {
    fn counter(&mut self, name: &str, help: &str) {
        self.family(name, "counter", help);
    }

    fn gauge(&mut self, name: &str, help: &str) {
        self.family(name, "gauge", help);
    }

    fn family(&mut self, name: &str, kind: &str, help: &str) {
        let _ = writeln!(self.text, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    fn value(&mut self, name: &str, labels: &[(&str, &str)], value: impl Display) {
        self.sample(name, "", labels, None, value);
    }

    fn histogram(&mut self, name: &str, labels: &[(&str, &str)], histogram: &Histogram) {
        let mut count = 0;
        for (index, more) in histogram.counts.iter().enumerate() {
            count += more;
            let end = match index + 1 < BUCKETS {
                true => ((FIRST_US << index) as f64 / 1e6).to_string(),
                false => "+Inf".to_owned(),
            };
            self.sample(name, "_bucket", labels, Some(&end), count);
        }
        self.sample(name, "_sum", labels, None, histogram.seconds());
        self.sample(name, "_count", labels, None, count);
    }

    fn sample(&mut self, name: &str, ending: &str, labels: &[(&str, &str)], le: Option<&str>, value: impl Display) {
        self.text += name;
        self.text += ending;
        let mut before = '{';
        for (label, value) in labels.iter().copied().chain(le.map(|le| ("le", le))) {
            self.text.push(before);
            let _ = write!(self.text, "{label}=\"");
            for c in value.chars() {
                match c {
                    '\\' | '"' => self.text.extend(['\\', c]),
                    '\n' => self.text += "\\n",
                    c => self.text.push(c),
                }
            }
            self.text.push('"');
            before = ',';
        }
        if before == ',' {
            self.text.push('}');
        }
        let _ = writeln!(self.text, " {value}");
    }
}
