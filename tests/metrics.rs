//! The metrics as Prometheus and a load balancer see them: over HTTP, from a qcp before a real PostgreSQL.

mod support;

#[path = "prometheus/parser.rs"]
mod parser;

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use nix::sys::signal::Signal;
use parser::Page;
use qcp::control::report::RelayMode;
use qcp::control::report::metrics::{
    self, Histogram, Measured, Origin, PoolMetrics, ProcessMetrics, ShardMetrics, Totals,
};
use support::pooler::{Qcp, Setup};
use support::postgres::{SUPERUSER, postgres};
use support::programs::{Program, pgbench, psql};
use support::raw::RawClient;
use support::{free_port, wait_until};

/// Reads a page, and prints kind, name and number of samples of each family.
const PROMETHEUS_CLIENT: &str = "
import sys
from prometheus_client.parser import text_string_to_metric_families
for family in text_string_to_metric_families(sys.stdin.read()):
    print(family.type, family.name, len(family.samples))
";

const DASHBOARD: &str = include_str!("../scripts/dashboard.json");

/// Status and body.
fn get(port: u16, path: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).expect("it listens");
    stream.set_read_timeout(Some(Duration::from_secs(20))).expect("a socket");
    write!(stream, "GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n").expect("it reads");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("it answers");
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head");
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("a status");
    (status, body.to_owned())
}

fn scrape(port: u16) -> Page {
    let (status, body) = get(port, "/metrics");
    assert_eq!(status, 200, "{body}");
    Page::read(&body)
}

/// A qcp with metrics, and their port.
fn start(yaml: &str, cores: usize, server: Option<&str>) -> (Qcp, u16) {
    let port = free_port();
    let mut setup = Setup::new(&format!("{yaml}metrics: {{address: \"127.0.0.1:{port}\"}}\n")).cores(cores);
    if let Some(server) = server {
        setup = setup.server(server);
    }
    (setup.start(), port)
}

#[test]
fn what_is_done_is_counted() {
    let server = postgres();
    server.create_database("counted");
    // Who is asked about what it has changed, and goes on meanwhile, keeps its backend.
    let (qcp, port) = start("relay_mode: Smart\nsession_state: none\npool: {size: 2}\n", 2, None);
    let of_database = [("database", "counted")];
    let of_pool = [("database", "counted"), ("user", SUPERUSER)];
    assert_eq!(scrape(port).sum("pgbouncer_pools", &[]), 0.0);

    let script = "select 1;\nbegin;\nselect 2;\nselect pg_sleep(0.3);\ncommit;\nselect 1/0;\nselect nothing;\nselect repeat('x', 100000);\n";
    psql(&qcp.tcp(), SUPERUSER, "counted").args(["-XAtq"]).input(script).finish().success();
    let page = scrape(port);
    // Eight statements; the three of the block and its frame are one transaction.
    assert_eq!(page.sum("pgbouncer_stats_queries_pooled_total", &of_database), 8.0);
    assert_eq!(page.sum("pgbouncer_stats_sql_transactions_pooled_total", &of_database), 5.0);
    assert_eq!(page.sum("pgbouncer_stats_server_assignments_total", &of_database), 5.0);
    assert_eq!(page.sum("qcp_query_seconds_count", &of_pool), 8.0);
    assert_eq!(page.sum("qcp_transaction_seconds_count", &of_pool), 5.0);
    for name in
        ["pgbouncer_stats_queries_duration_seconds_total", "pgbouncer_stats_server_in_transaction_seconds_total"]
    {
        let seconds = page.sum(name, &of_database);
        assert!((0.3..5.0).contains(&seconds), "{name} {seconds}");
    }
    // The one that slept is above 0.262 s, and nothing else.
    let quick = page.sum("qcp_query_seconds_bucket", &[("le", "0.262144"), ("database", "counted")]);
    assert!((5.0..8.0).contains(&quick), "{quick} were quick");
    assert!(page.sum("pgbouncer_stats_sent_bytes_total", &of_database) > 100_000.0);
    assert!((100.0..10_000.0).contains(&page.sum("pgbouncer_stats_received_bytes_total", &of_database)));
    assert_eq!(page.sum("qcp_errors_total", &[("sqlstate", "22012"), ("origin", "server")]), 1.0);
    assert_eq!(page.sum("qcp_errors_total", &[("sqlstate", "42703"), ("origin", "server")]), 1.0);
    assert_eq!(page.sum("qcp_errors_total", &[("origin", "pooler")]), 0.0);
    assert!(page.sum("qcp_server_connect_seconds_count", &of_pool) >= 1.0);
    assert_eq!(page.sum("pgbouncer_databases_pool_size", &[("name", "counted"), ("pool_mode", "transaction")]), 2.0);
    assert_eq!(page.sum("pgbouncer_databases_current_connections", &[("name", "counted")]), 1.0);
    assert!(page.sum("qcp_core_cpu_seconds_total", &[]) > 0.0);
    assert!(page.sum("process_resident_memory_bytes", &[]) > 1e6);
}

/// What is neither counted nor timed: who and what there is at the moment.
#[test]
fn what_is_there_is_told() {
    let server = postgres();
    server.create_database("present");
    let (qcp, port) = start("pool: {size: 3}\nlimits: {max_clients: 50}\nusers: {joe: {}}\n", 2, None);
    let mut busy = RawClient::login(&qcp.tcp(), SUPERUSER, "present");
    let _idle = RawClient::login(&qcp.tcp(), SUPERUSER, "present");
    busy.query("BEGIN").expect("served");
    let page = scrape(port);
    let is = |name: &str, expected: f64| assert_eq!(page.sum(name, &[]), expected, "{name}");
    is("pgbouncer_up", 1.0);
    is("pgbouncer_version_info", 1.0);
    is("qcp_info", 1.0);
    is("qcp_draining", 0.0);
    is("qcp_clients", 2.0);
    is("qcp_accepted_total", 2.0 + 1.0); // `start` knocks once.
    is("qcp_broken_total", 0.0);
    is("qcp_waits_total", 0.0);
    is("pgbouncer_used_clients", 2.0);
    is("pgbouncer_free_clients", 48.0);
    is("pgbouncer_login_clients", 0.0);
    is("pgbouncer_config_max_client_connections", 50.0);
    is("pgbouncer_pools_server_login_connections", 0.0);
    is("pgbouncer_pools_server_testing_connections", 0.0);
    is("pgbouncer_databases_pool_size", 3.0);
    let backends = server.count_backends("present") as f64;
    is("qcp_backends", backends);
    is("pgbouncer_databases_current_connections", backends);
    assert_eq!(page.sum("pgbouncer_used_servers", &[]) + page.sum("pgbouncer_free_servers", &[]), backends);
    for name in ["pgbouncer_databases", "pgbouncer_users", "pgbouncer_pools", "qcp_links_total", "qcp_requests_total"] {
        assert!(page.sum(name, &[]) >= 1.0, "{name}");
    }
    assert!(page.sum("qcp_received_bytes_total", &[]) > 0.0 && page.sum("qcp_sent_bytes_total", &[]) > 0.0);
    // 32 MB, in whole chunks for each of the two cores.
    let arena = page.sum("qcp_arena_bytes", &[]);
    assert!((31e6..34e6).contains(&arena), "{arena}");
    assert!((1.0..arena).contains(&page.sum("qcp_arena_peak_bytes", &[])));
    assert!(page.sum("qcp_core_cpu_seconds_total", &[]) > 0.0);
    let started = page.sum("process_start_time_seconds", &[]);
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970").as_secs_f64();
    assert!((now - 60.0..=now).contains(&started), "{started}");
}

#[test]
fn who_waits_is_seen_while_and_after() {
    let server = postgres();
    server.create_database("queueing");
    let (qcp, port) = start("relay_mode: Smart\npool: {size: 1}\n", 1, None);
    let sleep = || psql(&qcp.tcp(), SUPERUSER, "queueing").args(["-XAtqc", "select pg_sleep(1)"]).start();
    let both = [sleep(), sleep()];
    let of_pool = [("database", "queueing"), ("user", SUPERUSER)];
    wait_until("one has the backend and one waits", Duration::from_secs(5), || {
        let page = scrape(port);
        let is = |name: &str| page.sum(&format!("pgbouncer_pools_{name}"), &of_pool);
        is("client_waiting_connections") == 1.0
            && is("client_active_connections") == 1.0
            && is("server_active_connections") == 1.0
            && is("client_maxwait_seconds") > 0.1
    });
    for one in both {
        one.finish().success();
    }
    let page = scrape(port);
    assert!(page.sum("qcp_wait_seconds_count", &of_pool) >= 1.0);
    let waited = page.sum("pgbouncer_stats_client_wait_seconds_total", &[("database", "queueing")]);
    assert!((0.5..10.0).contains(&waited), "{waited}");
    wait_until("nobody is there", Duration::from_secs(5), || scrape(port).sum("pgbouncer_used_clients", &[]) == 0.0);
}

#[test]
fn errors_of_the_pooler_are_told_apart() {
    let server = postgres();
    server.create_database("refusing");
    let (qcp, port) = start("relay_mode: Smart\npool: {size: 1, queue_timeout: 100ms}\n", 1, None);
    let sleeping = psql(&qcp.tcp(), SUPERUSER, "refusing").args(["-XAtqc", "select pg_sleep(1.5)"]).start();
    wait_until("it has the backend", Duration::from_secs(5), || {
        scrape(port).sum("pgbouncer_pools_server_active_connections", &[("database", "refusing")]) == 1.0
    });
    psql(&qcp.tcp(), SUPERUSER, "refusing").args(["-XAtqc", "select 1"]).finish().failure();
    let page = scrape(port);
    assert!(page.sum("qcp_errors_total", &[("sqlstate", "53300"), ("origin", "pooler")]) >= 1.0);
    sleeping.finish().success();
}

#[test]
fn health_and_readiness() {
    let (mut qcp, port) = start("pool: {size: 1}\nshutdown_timeout: 3s\n", 1, None);
    assert_eq!(get(port, "/healthz"), (200, "ok\n".to_owned()));
    assert_eq!(get(port, "/readyz"), (200, "ok\n".to_owned()));
    assert_eq!(get(port, "/").0, 404);
    let sleeping = psql(&qcp.tcp(), SUPERUSER, "postgres").args(["-XAtqc", "begin; select pg_sleep(2)"]).start();
    wait_until("it is under way", Duration::from_secs(5), || {
        scrape(port).sum("pgbouncer_pools_server_active_connections", &[]) == 1.0
    });
    qcp.signal(Signal::SIGTERM);
    wait_until("a load balancer is told", Duration::from_secs(2), || get(port, "/readyz").0 == 503);
    assert_eq!(get(port, "/healthz").0, 200, "it lives while it drains");
    assert_eq!(scrape(port).sum("qcp_draining", &[]), 1.0);
    let _ = sleeping.finish();
    assert!(qcp.wait().success());
}

#[test]
fn without_a_server_it_is_not_ready() {
    let nowhere = format!("127.0.0.1:{}", free_port());
    let (qcp, port) = start("auth: {method: trust}\n", 1, Some(&nowhere));
    assert_eq!(get(port, "/readyz").0, 200, "nobody has asked for a server yet");
    psql(&qcp.tcp(), SUPERUSER, "postgres").args(["-XAtqc", "select 1"]).finish().failure();
    let not_ready = || get(port, "/readyz") == (503, "no server can be reached\n".to_owned());
    wait_until("it is not ready", Duration::from_secs(15), not_ready);
    assert_eq!(get(port, "/healthz").0, 200);
    assert_eq!(scrape(port).sum("qcp_pool_in_trouble", &[]), 1.0);
}

#[test]
fn an_address_that_is_taken_is_named() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = taken.local_addr().expect("a bound socket");
    let said = Setup::new(&format!("metrics: {{address: \"{address}\"}}\n")).refused();
    assert!(said.contains(&format!("metrics.address: {address}: ")), "{said}");
}

/// Scraping while the shards are busy changes no answer, and takes none long.
#[test]
fn scraped_under_load() {
    let server = postgres();
    server.create_database("scraped");
    let (qcp, port) = start("relay_mode: Smart\npool: {size: 4}\n", 2, None);
    let load = pgbench(&qcp.tcp(), SUPERUSER, "scraped").args(["-n", "-c", "8", "-T", "3", "-f"]);
    let script = std::env::temp_dir().join(format!("qcp-scrape-{}.sql", std::process::id()));
    std::fs::write(&script, "select 1;\n").expect("the temporary folder is writable");
    let load = load.arg(&script).start();
    let mut last = 0.0;
    for _ in 0..20 {
        let transactions =
            scrape(port).sum("pgbouncer_stats_sql_transactions_pooled_total", &[("database", "scraped")]);
        assert!(transactions >= last, "a counter went down");
        last = transactions;
        std::thread::sleep(Duration::from_millis(100));
    }
    assert!(last > 0.0);
    load.finish().success();
    let _ = std::fs::remove_file(&script);
}

/// Prometheus' own reader in Python finds the same families and as many samples.
#[test]
fn prometheus_reads_the_page() {
    postgres().create_database("read_by_prometheus");
    let (qcp, port) = start("relay_mode: Smart\npool: {size: 2}\n", 2, None);
    let odd = psql(&qcp.tcp(), SUPERUSER, "read_by_prometheus").args(["-XAtq"]).input("select 1;\nselect 1/0;\n");
    odd.env("PGAPPNAME", "a \"name\"\\").finish().success();
    let (_, text) = get(port, "/metrics");
    let page = Page::read(&text);
    let finished = Program::new("/usr/bin/python3").args(["-c", PROMETHEUS_CLIENT]).input(text.into_bytes()).finish();
    assert!(!finished.stderr.contains("ModuleNotFoundError"), "apt-get install python3-prometheus-client");
    let said = finished.success();
    let read: BTreeMap<&str, (&str, usize)> = said
        .lines()
        .map(|line| {
            let words: Vec<&str> = line.split(' ').collect();
            (words[1], (words[0], words[2].parse().expect("a number")))
        })
        .collect();
    // It takes the ending off the names of counters.
    let named: BTreeMap<&str, &str> =
        page.families.iter().map(|(name, kind)| (name.strip_suffix("_total").unwrap_or(name), kind.as_str())).collect();
    assert_eq!(read.iter().map(|(name, (kind, _))| (*name, *kind)).collect::<BTreeMap<_, _>>(), named);
    assert_eq!(read.values().map(|(_, samples)| samples).sum::<usize>(), page.values.len());
}

/// Metrics named in the dashboard's queries and variables.
fn dashboards_names() -> BTreeSet<String> {
    let dashboard: serde_json::Value = serde_json::from_str(DASHBOARD).expect("it is JSON");
    let mut names = BTreeSet::new();
    let mut queries = Vec::new();
    collect(&dashboard, &mut queries);
    assert!(queries.len() > 20, "{queries:?}");
    for query in queries {
        let words = query.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
        let found: Vec<String> = words
            .filter(|word| ["pgbouncer_", "qcp_", "process_"].iter().any(|prefix| word.starts_with(prefix)))
            .map(str::to_owned)
            .collect();
        assert!(!found.is_empty(), "{query} asks for nothing of ours");
        names.extend(found);
    }
    names
}

fn collect(value: &serde_json::Value, queries: &mut Vec<String>) {
    match value {
        serde_json::Value::Object(map) => {
            for (key, value) in map {
                match value.as_str().filter(|_| key == "expr" || key == "query") {
                    Some("prometheus") => {}
                    Some(query) => queries.push(query.to_owned()),
                    None => collect(value, queries),
                }
            }
        }
        serde_json::Value::Array(list) => list.iter().for_each(|value| collect(value, queries)),
        _ => {}
    }
}

fn pool(database: &str, user: &str) -> PoolMetrics {
    let mut totals = Totals::default();
    (totals.links, totals.bytes_in, totals.bytes_out) = (2, 10, 20);
    totals.query_took_alone(Measured::of_us(64));
    totals.query_took(Measured::of_us(65));
    totals.query_took(Measured::new(Duration::from_secs(1000)));
    totals.transaction_took(Measured::new(Duration::from_secs(1001)));
    PoolMetrics {
        server: "h:5432".to_owned(),
        host: "h".to_owned(),
        port: "5432".to_owned(),
        database: database.to_owned(),
        server_database: database.to_owned(),
        user: user.to_owned(),
        mode: RelayMode::Smart,
        size: 5,
        clients_idle: 1,
        clients_active: 1,
        clients_waiting: 1,
        oldest_wait: Duration::from_millis(1500),
        backends_idle: 1,
        backends_active: 1,
        backends_cleaning: 0,
        backends_login: 0,
        in_trouble: false,
        totals,
    }
}

fn shard(number: u16) -> ShardMetrics {
    let mut before = Totals::default();
    (0..100).for_each(|_| before.query_took_alone(Measured::of_us(1)));
    ShardMetrics {
        shard: number,
        clients: 3,
        backends: 2,
        arena_chunks: 10,
        arena_chunk_size: 100,
        arena_used: 3,
        pools: vec![pool("a", "u"), pool("odd \"name\\\n", "v")],
        retired: vec![("a".to_owned(), before)],
        errors: vec![("53300".to_owned(), Origin::Pooler, 1)],
        ..ShardMetrics::default()
    }
}

#[test]
fn parts_add_up_and_odd_names_are_escaped() {
    let text = metrics::page(&[shard(0), shard(1)], &ProcessMetrics { clients_max: 100, ..Default::default() });
    let page = Page::read(&text);
    assert_eq!(page.sum("pgbouncer_stats_queries_pooled_total", &[("database", "a")]), 206.0);
    assert_eq!(page.sum("pgbouncer_pools_client_active_connections", &[("database", "a")]), 4.0);
    assert_eq!(page.sum("pgbouncer_pools_client_maxwait_seconds", &[("database", "a")]), 1.5);
    assert_eq!(page.sum("pgbouncer_databases_pool_size", &[("name", "a")]), 5.0);
    assert_eq!(page.sum("pgbouncer_free_clients", &[]), 94.0);
    assert_eq!(page.sum("qcp_errors_total", &[]), 2.0);
    assert_eq!(page.sum("qcp_query_seconds_bucket", &[("database", "a"), ("le", "0.000064")]), 2.0);
    assert_eq!(page.sum("qcp_query_seconds_bucket", &[("database", "a"), ("le", "0.000128")]), 4.0);
    assert_eq!(page.sum("qcp_query_seconds_bucket", &[("database", "a"), ("le", "67.108864")]), 4.0);
    assert_eq!(page.sum("qcp_query_seconds_bucket", &[("database", "a"), ("le", "+Inf")]), 6.0);
    assert_eq!(page.sum("qcp_transaction_seconds_bucket", &[("database", "a"), ("le", "0.000064")]), 2.0);
    assert_eq!(page.sum("qcp_transaction_seconds_bucket", &[("database", "a"), ("le", "+Inf")]), 4.0);
    assert_eq!(page.sum("pgbouncer_stats_sql_transactions_pooled_total", &[("database", "a")]), 204.0);
    assert!(text.contains(r#"database="odd \"name\\\n""#), "{text}");
}

#[test]
fn every_panel_of_the_dashboard_asks_for_a_metric_that_exists() {
    let page = Page::read(&metrics::page(
        &[shard(0)],
        &ProcessMetrics { resident_bytes: Some(1), cpu_s: vec![(0, 1.0)], ..Default::default() },
    ));
    let series: BTreeSet<&str> = page.values.keys().filter_map(|series| series.split('{').next()).collect();
    for name in dashboards_names() {
        assert!(series.contains(name.as_str()), "{name} is in the dashboard and not in the metrics");
    }
}

/// As many pools as there may be: the page stays bounded.
#[test]
fn a_page_of_very_many_pools_is_bounded() {
    let mut many = shard(0);
    many.pools = (0..4096).map(|number| pool(&format!("database_{number}"), "u")).collect();
    let text = metrics::page(&[many], &ProcessMetrics::default());
    assert_eq!(Page::read(&text).sum("qcp_pools_without_histograms", &[]), 3596.0);
    assert!(text.len() < 16 << 20, "{} bytes", text.len());
}

#[test]
fn buckets_hold_what_is_at_most_their_end() {
    let mut histogram = Histogram::default();
    assert_eq!(histogram.count(), 0);
    for us in [0, 1, 64, 65, 128, 129, u64::MAX >> 20] {
        histogram.record(Duration::from_micros(us));
    }
    assert_eq!(histogram.count(), 7);
}
