//! `show stats` and `show errors`: what was counted since the start, as rows.

use std::collections::BTreeMap;

use serde::Serialize;

use super::metrics::{Histogram, Origin, ShardMetrics, merged};
use super::table::{self, left, right};
use super::{Reply, Topic};

/// A pool, with what it has done since it was made.
#[derive(Serialize)]
struct StatsRow {
    server: String,
    database: String,
    user: String,
    transactions: u64,
    queries: u64,
    bytes_in: u64,
    bytes_out: u64,
    waits: u64,
    /// At most so long, in microseconds: the ends of the histogram's buckets.
    wait_p99_us: u64,
    query_p50_us: u64,
    query_p99_us: u64,
    transaction_p50_us: u64,
    transaction_p99_us: u64,
}

#[derive(Serialize)]
struct ErrorRow {
    sqlstate: String,
    origin: &'static str,
    count: u64,
}

/// The answer to `show stats` or `show errors`, from what all shards have counted.
pub fn show_counted(topic: Topic, shards: &[ShardMetrics]) -> Reply {
    match topic {
        Topic::Errors => show_errors(shards),
        Topic::Stats
        | Topic::Memory
        | Topic::Pools
        | Topic::Clients
        | Topic::Pins
        | Topic::Backends
        | Topic::Shards => show_stats(shards),
    }
}

fn show_stats(shards: &[ShardMetrics]) -> Reply {
    let row = |pool: super::metrics::PoolMetrics| {
        let at = |histogram: &Histogram, share| histogram.quantile_us(share);
        let totals = &pool.totals;
        let (query, transaction) = (totals.query(), totals.transaction());
        StatsRow {
            transactions: transaction.count(),
            queries: query.count(),
            bytes_in: totals.bytes_in,
            bytes_out: totals.bytes_out,
            waits: totals.wait.count(),
            wait_p99_us: at(&totals.wait, 0.99),
            query_p50_us: at(&query, 0.5),
            query_p99_us: at(&query, 0.99),
            transaction_p50_us: at(&transaction, 0.5),
            transaction_p99_us: at(&transaction, 0.99),
            server: pool.server,
            database: pool.database,
            user: pool.user,
        }
    };
    let rows: Vec<StatsRow> = merged(shards).into_iter().map(row).collect();
    let columns = [
        left("server", |row: &StatsRow| row.server.clone()),
        left("database", |row| row.database.clone()),
        left("user", |row| row.user.clone()),
        right("transactions", |row| row.transactions.to_string()),
        right("queries", |row| row.queries.to_string()),
        right("in", |row| table::size(row.bytes_in)),
        right("out", |row| table::size(row.bytes_out)),
        right("waits", |row| row.waits.to_string()),
        right("wait p99", |row| time(row.wait_p99_us)),
        right("query p50", |row| time(row.query_p50_us)),
        right("query p99", |row| time(row.query_p99_us)),
        right("tx p50", |row| time(row.transaction_p50_us)),
        right("tx p99", |row| time(row.transaction_p99_us)),
    ];
    Reply::new(&rows, table::render(&columns, &rows))
}

/// Below so long.
fn time(us: u64) -> String {
    match us {
        0 => "-".to_owned(),
        u64::MAX => "more".to_owned(),
        1..1000 => format!("{us} us"),
        1000..1_000_000 => format!("{:.1} ms", us as f64 / 1e3),
        _ => format!("{:.1} s", us as f64 / 1e6),
    }
}

fn show_errors(shards: &[ShardMetrics]) -> Reply {
    let mut counts: BTreeMap<(String, Origin), u64> = BTreeMap::new();
    for (code, origin, count) in shards.iter().flat_map(|shard| &shard.errors) {
        *counts.entry((code.clone(), *origin)).or_default() += count;
    }
    let rows: Vec<ErrorRow> = counts
        .into_iter()
        .map(|((sqlstate, origin), count)| ErrorRow { sqlstate, origin: origin.name(), count })
        .collect();
    let columns = [
        left("sqlstate", |row: &ErrorRow| row.sqlstate.clone()),
        left("from", |row| row.origin.to_owned()),
        right("count", |row| row.count.to_string()),
    ];
    Reply::new(&rows, table::render(&columns, &rows))
}
