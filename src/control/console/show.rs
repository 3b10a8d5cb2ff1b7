//! What SHOW has rows for: PgBouncer's columns by name, order and type, and ours behind them.

use std::collections::{BTreeMap, BTreeSet};

use super::rows::{Column, Kind, Rows, Value};
use super::sockets::{SOCKET, SOCKET_BUFFERS, SOCKET_OURS, sockets};
use super::stats::{self, AVERAGES, COUNTS, Sums, TOTALS};
use super::{DatabaseEntry, Source};
use crate::control::report::metrics::{Origin, PoolMetrics, merged};
use crate::control::report::{
    BackendState, ClientRow, ClientState, NameRow, RelayMode, ShardReport, is_held, merge_memory,
};

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Show {
    Help,
    Config,
    Databases,
    Pools,
    Peers,
    PeerPools,
    Clients,
    Servers,
    Sockets,
    ActiveSockets,
    Lists,
    Version,
    State,
    Stats,
    StatsTotals,
    StatsAverages,
    Totals,
    Users,
    Mem,
    DnsHosts,
    DnsZones,
    // Ours.
    Pins,
    Cores,
    Errors,
}

/// Why there are no rows: the shards do not answer.
pub type Failed = String;

/// Told by SHOW HELP, as a notice.
pub const HELP: &str = "\n\
    \tSHOW HELP|CONFIG|DATABASES|POOLS|CLIENTS|SERVERS|USERS|VERSION\n\
    \tSHOW PEERS|PEER_POOLS\n\
    \tSHOW SOCKETS|ACTIVE_SOCKETS|LISTS|MEM|STATE\n\
    \tSHOW DNS_HOSTS|DNS_ZONES\n\
    \tSHOW STATS|STATS_TOTALS|STATS_AVERAGES|TOTALS\n\
    \tSHOW PINS|CORES|ERRORS\n\
    \tSET key = arg\n\
    \tRELOAD\n\
    \tPAUSE [<db>]\n\
    \tRESUME [<db>]\n\
    \tDISABLE <db>\n\
    \tENABLE <db>\n\
    \tDRAIN <db>\n\
    \tRECONNECT [<db>]\n\
    \tKILL [<db>]\n\
    \tKILL_CLIENT <client_id>\n\
    \tWAIT_CLOSE [<db>]\n\
    \tSHUTDOWN\n\
    \tSHUTDOWN WAIT_FOR_SERVERS";

impl Show {
    pub const ALL: [Show; 24] = [
        Show::Help,
        Show::Config,
        Show::Databases,
        Show::Pools,
        Show::Peers,
        Show::PeerPools,
        Show::Clients,
        Show::Servers,
        Show::Sockets,
        Show::ActiveSockets,
        Show::Lists,
        Show::Version,
        Show::State,
        Show::Stats,
        Show::StatsTotals,
        Show::StatsAverages,
        Show::Totals,
        Show::Users,
        Show::Mem,
        Show::DnsHosts,
        Show::DnsZones,
        Show::Pins,
        Show::Cores,
        Show::Errors,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Show::Help => "help",
            Show::Config => "config",
            Show::Databases => "databases",
            Show::Pools => "pools",
            Show::Peers => "peers",
            Show::PeerPools => "peer_pools",
            Show::Clients => "clients",
            Show::Servers => "servers",
            Show::Sockets => "sockets",
            Show::ActiveSockets => "active_sockets",
            Show::Lists => "lists",
            Show::Version => "version",
            Show::State => "state",
            Show::Stats => "stats",
            Show::StatsTotals => "stats_totals",
            Show::StatsAverages => "stats_averages",
            Show::Totals => "totals",
            Show::Users => "users",
            Show::Mem => "mem",
            Show::DnsHosts => "dns_hosts",
            Show::DnsZones => "dns_zones",
            Show::Pins => "pins",
            Show::Cores => "cores",
            Show::Errors => "errors",
        }
    }

    /// Whether the name of one database, or the id of one client or backend, may follow.
    pub fn takes_one(self) -> bool {
        matches!(
            self,
            Show::Stats
                | Show::StatsTotals
                | Show::StatsAverages
                | Show::Pools
                | Show::Databases
                | Show::Clients
                | Show::Servers
        )
    }

    /// The columns, which do not depend on what there is.
    pub fn columns(self) -> Vec<Column> {
        use Kind::{Int4, Int8, Numeric, Text};
        let numeric = |names: [&'static str; COUNTS]| names.map(|name| (name, Numeric));
        match self {
            Show::Help => Vec::new(),
            Show::Config => vec![("key", Text), ("value", Text), ("default", Text), ("changeable", Text)],
            Show::Databases => vec![
                ("name", Text),
                ("host", Text),
                ("port", Int4),
                ("database", Text),
                ("force_user", Text),
                ("pool_size", Int4),
                ("min_pool_size", Int4),
                ("reserve_pool_size", Int4),
                ("server_lifetime", Int4),
                ("pool_mode", Text),
                ("load_balance_hosts", Text),
                ("max_connections", Int4),
                ("current_connections", Int4),
                ("max_client_connections", Int4),
                ("current_client_connections", Int4),
                ("paused", Int4),
                ("disabled", Int4),
            ],
            Show::Pools => vec![
                ("database", Text),
                ("user", Text),
                ("cl_active", Int4),
                ("cl_waiting", Int4),
                ("cl_active_cancel_req", Int4),
                ("cl_waiting_cancel_req", Int4),
                ("sv_active", Int4),
                ("sv_active_cancel", Int4),
                ("sv_being_canceled", Int4),
                ("sv_idle", Int4),
                ("sv_used", Int4),
                ("sv_tested", Int4),
                ("sv_login", Int4),
                ("maxwait", Int4),
                ("maxwait_us", Int4),
                ("pool_mode", Text),
                ("load_balance_hosts", Text),
                ("pinned", Int4),
                ("p50_wait_us", Int8),
                ("p99_wait_us", Int8),
                ("pool_size", Int4),
                ("servers", Text),
            ],
            Show::Peers => vec![("peer_id", Int4), ("host", Text), ("port", Int4), ("pool_size", Int4)],
            Show::PeerPools => vec![
                ("peer_id", Int4),
                ("cl_active_cancel_req", Int4),
                ("cl_waiting_cancel_req", Int4),
                ("sv_active_cancel", Int4),
                ("sv_login", Int4),
            ],
            Show::Clients | Show::Servers => SOCKET.into_iter().chain(SOCKET_OURS).collect(),
            Show::Sockets | Show::ActiveSockets => {
                SOCKET.into_iter().chain(SOCKET_BUFFERS.map(|name| (name, Int4))).chain(SOCKET_OURS).collect()
            }
            Show::Lists => vec![("list", Text), ("items", Int4)],
            Show::Version => vec![("version", Text)],
            Show::State => vec![("key", Text), ("value", Text)],
            Show::Stats => {
                let totals = numeric(TOTALS.map(|(name, _)| name));
                [("database", Text)].into_iter().chain(totals).chain(numeric(AVERAGES.map(|(name, _)| name))).collect()
            }
            Show::StatsTotals | Show::StatsAverages => {
                [("database", Text)].into_iter().chain(numeric(TOTALS.map(|(_, name)| name))).collect()
            }
            Show::Totals => vec![("name", Text), ("value", Numeric)],
            Show::Users => vec![
                ("name", Text),
                ("pool_size", Text),
                ("reserve_pool_size", Text),
                ("pool_mode", Text),
                ("max_user_connections", Int4),
                ("current_connections", Int4),
                ("max_user_client_connections", Int4),
                ("current_client_connections", Int4),
            ],
            Show::Mem => {
                vec![("name", Text), ("size", Int4), ("used", Int4), ("free", Int4), ("memtotal", Int4), ("what", Text)]
            }
            Show::DnsHosts => vec![("hostname", Text), ("ttl", Int8), ("addrs", Text)],
            Show::DnsZones => vec![("zonename", Text), ("serial", Int8), ("count", Int4)],
            Show::Pins => vec![
                ("id", Int4),
                ("database", Text),
                ("user", Text),
                ("pinned", Text),
                ("pinned_s", Int4),
                ("remote_pid", Int4),
                ("addr", Text),
                ("application_name", Text),
                ("core", Int4),
            ],
            Show::Cores => vec![
                ("core", Int4),
                ("clients", Int4),
                ("servers", Int4),
                ("queries", Numeric),
                ("transactions", Numeric),
                ("bytes_received", Numeric),
                ("bytes_sent", Numeric),
                ("waits", Numeric),
            ],
            Show::Errors => vec![("sqlstate", Text), ("origin", Text), ("count", Numeric)],
        }
    }

    /// The rows, as things are now; `of`: of this database, client or backend alone.
    pub fn rows(self, of: Option<&str>, source: &dyn Source) -> Result<Rows, Failed> {
        let mut rows = match self {
            // There is nothing that they could have.
            Show::Help | Show::Peers | Show::PeerPools | Show::DnsZones => Vec::new(),
            Show::DnsHosts => names(source)?,
            Show::Config => config(source),
            Show::Databases => databases(source)?,
            Show::Pools => pools(source)?,
            Show::Clients => sockets(source, |socket| socket.is_client && socket.state != "login", false)?,
            Show::Servers => sockets(source, |socket| !socket.is_client, false)?,
            Show::Sockets => sockets(source, |_| true, true)?,
            Show::ActiveSockets => sockets(source, |socket| ["active", "waiting"].contains(&socket.state), true)?,
            Show::Lists => lists(source)?,
            Show::Version => vec![vec![format!("QCP {}", env!("CARGO_PKG_VERSION")).into()]],
            Show::State => state(source)?,
            Show::Stats | Show::StatsTotals | Show::StatsAverages => self.statistics(source)?,
            Show::Totals => totals(source)?,
            Show::Users => users(source)?,
            Show::Mem => memory(source)?,
            Show::Pins => pins(source)?,
            Show::Cores => cores(source)?,
            Show::Errors => errors(source)?,
        };
        if let Some(of) = of {
            let by_id = matches!(self, Show::Clients | Show::Servers);
            rows.retain(|row| match (if by_id { SOCKET.len() - 1 } else { 0 }, row) {
                (at, row) if by_id => matches!(&row[at], Value::Number(id) if id.to_string() == of),
                (at, row) => matches!(&row[at], Value::Text(name) if name == of),
            });
        }
        Ok(Rows { columns: self.columns(), rows })
    }

    fn statistics(self, source: &dyn Source) -> Result<Vec<Vec<Value>>, Failed> {
        let counted = stats::by_database(&source.counted()?);
        let averages = source.averages(&counted);
        let row = |(database, totals): (&String, &Sums)| {
            let averages = averages.get(database).copied().unwrap_or_default();
            let numbers: Vec<u64> = match self {
                Show::StatsTotals => totals.to_vec(),
                Show::StatsAverages => averages.to_vec(),
                _ => totals.iter().chain(&averages).copied().collect(),
            };
            std::iter::once(database.as_str().into()).chain(numbers.into_iter().map(Value::from)).collect()
        };
        Ok(counted.iter().map(row).collect())
    }
}

fn totals(source: &dyn Source) -> Result<Vec<Vec<Value>>, Failed> {
    let counted = stats::by_database(&source.counted()?);
    let sum = |of: &BTreeMap<String, Sums>| {
        let mut sum = Sums::default();
        of.values().for_each(|more| stats::add(&mut sum, more));
        sum
    };
    let averages = source.averages_of_all(&counted);
    let totals = TOTALS.iter().map(|(name, _)| *name).zip(sum(&counted));
    let averages = AVERAGES.iter().map(|(name, _)| *name).zip(averages);
    Ok(totals.chain(averages).map(|(name, value)| vec![name.into(), value.into()]).collect())
}

/// Each shard remembers for itself: what the one says that has asked last.
fn names(source: &dyn Source) -> Result<Vec<Vec<Value>>, Failed> {
    let reports = source.reports()?;
    let mut latest: BTreeMap<(&str, u16), &NameRow> = BTreeMap::new();
    for name in of_all(&reports, |report| &report.names) {
        let known = latest.entry((&name.host, name.port)).or_insert(name);
        if name.ttl_s > known.ttl_s {
            *known = name;
        }
    }
    let row = |name: &NameRow| vec![name.host.as_str().into(), name.ttl_s.into(), name.addresses.join(",").into()];
    Ok(latest.into_values().map(row).collect())
}

fn config(source: &dyn Source) -> Vec<Vec<Value>> {
    let row = |key: crate::control::report::KeyRow| {
        let changeable = if key.changeable { "yes" } else { "no" };
        vec![key.key.into(), key.value.into(), key.default.into(), changeable.into()]
    };
    source.keys().into_iter().map(row).collect()
}

/// As PgBouncer calls it.
fn mode_name(mode: RelayMode) -> &'static str {
    match mode {
        RelayMode::Session => "session",
        RelayMode::Smart => "transaction",
        RelayMode::Statement => "statement",
    }
}

/// As the configuration calls the schedule of several servers; one needs none.
fn schedule(entry: &DatabaseEntry) -> Value {
    (entry.hosts.len() > 1).then(|| entry.schedule.clone()).into()
}

fn databases(source: &dyn Source) -> Result<Vec<Vec<Value>>, Failed> {
    let reports = source.reports()?;
    let seen = reports.iter().flat_map(|report| &report.pools).map(|pool| pool.database.clone());
    let names: BTreeSet<String> = source.databases().into_iter().chain(seen).collect();
    let row = |name: String| {
        let entry = source.database(&name)?;
        let backends = of_all(&reports, |report| &report.backends).filter(|row| row.database == name).count() as u64;
        let clients = of_all(&reports, |report| &report.clients).filter(|row| row.database == name).count() as u64;
        let is_in = |held: fn(&ShardReport) -> &Vec<String>| reports.iter().any(|report| is_held(held(report), &name));
        let port = entry.hosts.first().and_then(|(_, port)| *port);
        let hosts: Vec<&str> = entry.hosts.iter().map(|(host, _)| host.as_str()).collect();
        Some(vec![
            name.clone().into(),
            hosts.join(",").into(),
            u64::from(port.unwrap_or(5432)).into(),
            entry.database.clone().into(),
            entry.force_user.clone().into(),
            entry.pool_size.into(),
            entry.min_pool_size.into(),
            entry.reserve_pool_size.into(),
            entry.server_lifetime_s.into(),
            mode_name(entry.mode).into(),
            schedule(&entry),
            entry.max_connections.into(),
            backends.into(),
            entry.max_clients.into(),
            clients.into(),
            is_in(|report| &report.paused).into(),
            is_in(|report| &report.disabled).into(),
        ])
    };
    let mut rows: Vec<Vec<Value>> = names.into_iter().filter_map(row).collect();
    // PgBouncer lists its own console too, which is one client's and nobody's server.
    let here =
        of_all(&reports, |report| &report.clients).filter(|row| row.state == ClientState::Console).count() as u64;
    let own: [Value; 17] = [
        "pgbouncer".into(),
        Value::Null,
        Value::Number(source.port().into()),
        "pgbouncer".into(),
        "pgbouncer".into(),
        2u64.into(),
        0u64.into(),
        0u64.into(),
        0u64.into(),
        "statement".into(),
        Value::Null,
        0u64.into(),
        0u64.into(),
        0u64.into(),
        here.into(),
        0u64.into(),
        0u64.into(),
    ];
    rows.push(own.into());
    Ok(rows)
}

pub(super) fn of_all<'r, T: 'r>(
    reports: &'r [ShardReport],
    list: impl Fn(&'r ShardReport) -> &'r Vec<T>,
) -> impl Iterator<Item = &'r T> {
    reports.iter().flat_map(list)
}

/// By database and user, as PgBouncer's pools are; ours are by server as well.
fn pools(source: &dyn Source) -> Result<Vec<Vec<Value>>, Failed> {
    let (reports, counted) = (source.reports()?, source.counted()?);
    let mut pools: BTreeMap<(String, String), Vec<PoolMetrics>> = BTreeMap::new();
    for pool in merged(&counted) {
        pools.entry((pool.database.clone(), pool.user.clone())).or_default().push(pool);
    }
    let row = |((database, user), parts): ((String, String), Vec<PoolMetrics>)| {
        let sum = |count: fn(&PoolMetrics) -> u64| -> Value { parts.iter().map(count).sum::<u64>().into() };
        let oldest = parts.iter().map(|part| part.oldest_wait).max().unwrap_or_default();
        let mut wait = crate::control::report::metrics::Histogram::default();
        parts.iter().for_each(|part| wait.add(&part.totals.wait));
        let of_pool = |row: &&ClientRow| row.database == database && row.user == user && !row.pinned.is_empty();
        let pinned = of_all(&reports, |report| &report.clients).filter(of_pool).count() as u64;
        let servers: Vec<&str> = parts.iter().map(|part| part.server.as_str()).collect();
        let schedule = source.database(&database).map_or(Value::Null, |entry| schedule(&entry));
        vec![
            database.clone().into(),
            user.clone().into(),
            sum(|pool| pool.clients_active + pool.clients_idle),
            sum(|pool| pool.clients_waiting),
            0u64.into(),
            0u64.into(),
            sum(|pool| pool.backends_active),
            0u64.into(),
            0u64.into(),
            sum(|pool| pool.backends_idle),
            0u64.into(),
            sum(|pool| pool.backends_cleaning),
            sum(|pool| pool.backends_login),
            oldest.as_secs().into(),
            u64::from(oldest.subsec_micros()).into(),
            mode_name(parts[0].mode).into(),
            schedule,
            pinned.into(),
            wait.quantile_us(0.5).into(),
            wait.quantile_us(0.99).into(),
            sum(|pool| pool.size),
            servers.join(",").into(),
        ]
    };
    let mut rows: Vec<Vec<Value>> = pools.into_iter().map(row).collect();
    let here =
        of_all(&reports, |report| &report.clients).filter(|row| row.state == ClientState::Console).count() as u64;
    let mut own: Vec<Value> = vec!["pgbouncer".into(), "pgbouncer".into(), here.into()];
    own.extend((0..12).map(|_| Value::Number(0)));
    own.extend(["statement".into(), Value::Null]);
    own.extend((0..4).map(|_| Value::Number(0)));
    own.push(Value::Null);
    rows.push(own);
    Ok(rows)
}

fn lists(source: &dyn Source) -> Result<Vec<Vec<Value>>, Failed> {
    let reports = source.reports()?;
    let pools: BTreeSet<(&str, &str)> =
        of_all(&reports, |report| &report.pools).map(|pool| (pool.database.as_str(), pool.user.as_str())).collect();
    let databases: BTreeSet<String> =
        source.databases().into_iter().chain(pools.iter().map(|(database, _)| (*database).to_owned())).collect();
    let users: BTreeSet<String> =
        source.users().into_iter().chain(pools.iter().map(|(_, user)| (*user).to_owned())).collect();
    let login = of_all(&reports, |report| &report.clients).filter(|row| row.state == ClientState::Login).count() as u64;
    let clients = reports.iter().map(|report| report.clients.len() as u64).sum::<u64>();
    let backends = reports.iter().map(|report| report.backends.len() as u64).sum::<u64>();
    let free = of_all(&reports, |report| &report.backends).filter(|row| row.state == BackendState::Idle).count() as u64;
    let names = names(source)?.len() as u64;
    let lists: [(&str, u64); 14] = [
        ("databases", databases.len() as u64 + 1),
        ("users", users.len() as u64),
        ("peers", 0),
        ("pools", pools.len() as u64 + 1),
        ("peer_pools", 0),
        ("free_clients", source.clients_max().saturating_sub(clients)),
        ("used_clients", clients),
        ("login_clients", login),
        ("free_servers", free),
        ("used_servers", backends - free),
        ("dns_names", names),
        ("dns_zones", 0),
        ("dns_queries", 0),
        ("dns_pending", 0),
    ];
    Ok(lists.into_iter().map(|(list, items)| vec![list.into(), items.into()]).collect())
}

fn state(source: &dyn Source) -> Result<Vec<Vec<Value>>, Failed> {
    let paused = source.reports()?.iter().any(|report| report.paused.iter().any(|name| name == "*"));
    let row = |key: &str, yes: bool| vec![key.into(), if yes { "yes" } else { "no" }.into()];
    Ok(vec![row("active", !paused), row("paused", paused), row("suspended", false)])
}

fn users(source: &dyn Source) -> Result<Vec<Vec<Value>>, Failed> {
    let reports = source.reports()?;
    let seen = of_all(&reports, |report| &report.pools).map(|pool| pool.user.clone());
    let names: BTreeSet<String> = source.users().into_iter().chain(seen).collect();
    let row = |name: String| {
        let entry = source.user(&name);
        let backends = of_all(&reports, |report| &report.backends).filter(|row| row.user == name).count() as u64;
        let clients = of_all(&reports, |report| &report.clients).filter(|row| row.user == name).count() as u64;
        vec![
            name.into(),
            entry.pool_size.map(|size| size.to_string()).unwrap_or_default().into(),
            entry.reserve_pool_size.map(|size| size.to_string()).unwrap_or_default().into(),
            entry.mode.map(mode_name).into(),
            0u64.into(),
            backends.into(),
            entry.max_clients.into(),
            clients.into(),
        ]
    };
    Ok(names.into_iter().map(row).collect())
}

fn memory(source: &dyn Source) -> Result<Vec<Vec<Value>>, Failed> {
    let memory = merge_memory(source.reports()?.into_iter().map(|report| report.memory));
    let in_use = memory.chunks_in_use;
    let row = |term: crate::control::report::Term| {
        // All of it was taken at the start; of the arena it is known how much is in use.
        let used = if term.count == memory.arena_chunks { in_use } else { term.count };
        vec![
            term.name.into(),
            term.each_bytes.into(),
            used.into(),
            (term.count - used.min(term.count)).into(),
            term.bytes.into(),
            term.what.into(),
        ]
    };
    Ok(memory.terms.into_iter().map(row).collect())
}

fn pins(source: &dyn Source) -> Result<Vec<Vec<Value>>, Failed> {
    let reports = source.reports()?;
    let mut pinned: Vec<&ClientRow> =
        of_all(&reports, |report| &report.clients).filter(|row| !row.pinned.is_empty()).collect();
    pinned.sort_by_key(|row| std::cmp::Reverse(row.pinned_s));
    let row = |row: &ClientRow| {
        vec![
            row.id.into(),
            row.database.clone().into(),
            row.user.clone().into(),
            row.pinned.join(", ").into(),
            row.pinned_s.into(),
            row.backend_pid.map_or(0, |pid| u64::from(pid as u32)).into(),
            row.address.clone().into(),
            row.application_name.clone().into(),
            u64::from(row.shard).into(),
        ]
    };
    Ok(pinned.into_iter().map(row).collect())
}

fn cores(source: &dyn Source) -> Result<Vec<Vec<Value>>, Failed> {
    let row = |report: &ShardReport| {
        let of = &report.counters;
        let numbers = [of.clients, of.backends, of.queries, of.transactions, of.bytes_in, of.bytes_out, of.waits]
            .map(Value::from);
        std::iter::once(u64::from(report.shard).into()).chain(numbers).collect()
    };
    Ok(source.reports()?.iter().map(row).collect())
}

fn errors(source: &dyn Source) -> Result<Vec<Vec<Value>>, Failed> {
    let mut counts: BTreeMap<(String, Origin), u64> = BTreeMap::new();
    for (code, origin, count) in source.counted()?.into_iter().flat_map(|shard| shard.errors) {
        *counts.entry((code, origin)).or_default() += count;
    }
    Ok(counts
        .into_iter()
        .map(|((code, origin), count)| vec![code.into(), origin.name().into(), count.into()])
        .collect())
}
