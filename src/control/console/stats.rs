//! What databases have done, as PgBouncer counts it: in all, and by second over the last period.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::control::report::metrics::{ShardMetrics, Totals};

/// Over so long averages are made, as PgBouncer's `stats_period` has it.
pub const PERIOD: Duration = Duration::from_secs(60);

pub const COUNTS: usize = 12;

/// The counters in the order of the columns.
pub type Sums = [u64; COUNTS];

/// What follows `total_` in SHOW STATS, and the name in SHOW STATS_TOTALS.
pub const TOTALS: [(&str, &str); COUNTS] = [
    ("total_server_assignment_count", "server_assignment_count"),
    ("total_xact_count", "xact_count"),
    ("total_query_count", "query_count"),
    ("total_received", "bytes_received"),
    ("total_sent", "bytes_sent"),
    ("total_xact_time", "xact_time"),
    ("total_query_time", "query_time"),
    ("total_wait_time", "wait_time"),
    ("total_client_parse_count", "client_parse_count"),
    ("total_server_parse_count", "server_parse_count"),
    ("total_bind_count", "bind_count"),
    ("total_client_login_count", "client_login_count"),
];

/// As [`TOTALS`]: in SHOW STATS, and in SHOW STATS_AVERAGES.
pub const AVERAGES: [(&str, &str); COUNTS] = [
    ("avg_server_assignment_count", "server_assignment_count"),
    ("avg_xact_count", "xact_count"),
    ("avg_query_count", "query_count"),
    ("avg_recv", "bytes_received"),
    ("avg_sent", "bytes_sent"),
    ("avg_xact_time", "xact_time"),
    ("avg_query_time", "query_time"),
    ("avg_wait_time", "wait_time"),
    ("avg_client_parse_count", "client_parse_count"),
    ("avg_server_parse_count", "server_parse_count"),
    ("avg_bind_count", "bind_count"),
    ("avg_client_login_count", "client_login_count"),
];

const XACTS: usize = 1;
const QUERIES: usize = 2;
const XACT_TIME: usize = 5;
const QUERY_TIME: usize = 6;

/// By database, over all shards, pools that are gone included.
pub fn by_database(shards: &[ShardMetrics]) -> BTreeMap<String, Sums> {
    let mut databases: BTreeMap<String, Sums> = BTreeMap::new();
    let of_pools = shards.iter().flat_map(|shard| &shard.pools).map(|pool| (&pool.database, &pool.totals));
    let of_retired = shards.iter().flat_map(|shard| &shard.retired).map(|(name, totals)| (name, totals));
    for (database, totals) in of_pools.chain(of_retired) {
        add(databases.entry(database.clone()).or_default(), &sums(totals));
    }
    databases
}

fn sums(totals: &Totals) -> Sums {
    let (query, transaction) = (totals.query(), totals.transaction());
    [
        totals.links,
        transaction.count(),
        query.count(),
        totals.bytes_in,
        totals.bytes_out,
        transaction.total_us(),
        query.total_us(),
        totals.wait.total_us(),
        totals.client_parses,
        totals.server_parses,
        totals.binds,
        totals.logins,
    ]
}

/// Adds what one has done to another.
pub fn add(sum: &mut Sums, more: &Sums) {
    sum.iter_mut().zip(more).for_each(|(sum, more)| *sum += more);
}

/// What had been counted when the last two periods began.
#[derive(Default)]
pub struct Periods {
    older: Option<(Duration, BTreeMap<String, Sums>)>,
    newer: Option<(Duration, BTreeMap<String, Sums>)>,
}

impl Periods {
    /// Another period begins. `now` is any clock that goes on.
    pub fn turn(&mut self, now: Duration, counted: BTreeMap<String, Sums>) {
        self.older = self.newer.replace((now, counted));
    }

    /// What each database has done by second in the last whole period, or, in the first, since the start; times by
    /// transaction and by query, as PgBouncer has them.
    pub fn averages(&self, now: Duration, counted: &BTreeMap<String, Sums>) -> BTreeMap<String, Sums> {
        let (from, to) = self.span(now, counted);
        let micros = to.0.saturating_sub(from.0).as_micros().max(1);
        let old = |name: &String| from.1.and_then(|counted| counted.get(name)).copied().unwrap_or_default();
        to.1.iter().map(|(name, new)| (name.clone(), average(&old(name), new, micros))).collect()
    }

    /// As [`Self::averages`], of all databases together: times are by transaction and query, so they are not added up.
    pub fn averages_of_all(&self, now: Duration, counted: &BTreeMap<String, Sums>) -> Sums {
        let (from, to) = self.span(now, counted);
        let sum = |of: &BTreeMap<String, Sums>| {
            let mut sum = Sums::default();
            of.values().for_each(|more| add(&mut sum, more));
            sum
        };
        let micros = to.0.saturating_sub(from.0).as_micros().max(1);
        average(&from.1.map(sum).unwrap_or_default(), &sum(to.1), micros)
    }

    /// From when to when, with what had been counted at either end.
    fn span<'p>(&'p self, now: Duration, counted: &'p BTreeMap<String, Sums>) -> (From<'p>, To<'p>) {
        match (&self.older, &self.newer) {
            (Some(older), Some((at, newer))) => ((older.0, Some(&older.1)), (*at, newer)),
            (None, Some((at, newer))) => ((*at, Some(newer)), (now, counted)),
            (_, None) => ((Duration::ZERO, None), (now, counted)),
        }
    }
}

type From<'p> = (Duration, Option<&'p BTreeMap<String, Sums>>);
type To<'p> = (Duration, &'p BTreeMap<String, Sums>);

fn average(old: &Sums, new: &Sums, micros: u128) -> Sums {
    let mut done = [0; COUNTS];
    done.iter_mut().zip(new.iter().zip(old)).for_each(|(done, (new, old))| *done = new.saturating_sub(*old));
    let mut average = done.map(|count| (u128::from(count) * 1_000_000 / micros) as u64);
    average[XACT_TIME] = done[XACT_TIME].checked_div(done[XACTS]).unwrap_or(0);
    average[QUERY_TIME] = done[QUERY_TIME].checked_div(done[QUERIES]).unwrap_or(0);
    average
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counted(xacts: u64, time: u64) -> BTreeMap<String, Sums> {
        let mut sums = [0; COUNTS];
        (sums[XACTS], sums[XACT_TIME], sums[3]) = (xacts, time, xacts * 100);
        BTreeMap::from([("db".to_owned(), sums)])
    }

    #[test]
    fn averages_are_of_the_last_whole_period() {
        let mut periods = Periods::default();
        let at = |seconds: u64| Duration::from_secs(1000 + seconds);
        periods.turn(at(0), counted(0, 0));
        // In the first: since its start.
        assert_eq!(periods.averages(at(10), &counted(100, 2000))["db"][XACTS], 10);
        periods.turn(at(60), counted(600, 6000));
        periods.turn(at(120), counted(1800, 30_000));
        let last = periods.averages(at(150), &counted(9999, 0))["db"];
        assert_eq!((last[XACTS], last[XACT_TIME], last[3], last[QUERY_TIME]), (20, 20, 2000, 0));
    }
}
