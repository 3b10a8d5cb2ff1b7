//! `tests/README.md` says which test sees the effect of what: whatever can be configured, commanded or scraped has a row
//! there, and every test that is named exists.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use clap::CommandFactory;
use qcp::config::{Config, Problem};
use qcp::control::console::show::Show;
use qcp::control::report::metrics;

#[path = "../src/bin/qcp-ctrl/arguments.rs"]
#[allow(dead_code)]
mod ctrl;

const TABLE: &str = include_str!("README.md");

/// Every map of the configuration by the name of its keys, as a text that puts a key into it that is not allowed there.
/// What is below `pool`, `limits`, `auth` and `tls` of a database or user is the same as at the top.
const MAPS: [(&str, &str); 16] = [
    ("", "?: 1"),
    ("arena.", "arena: {?: 1}"),
    ("pool.", "pool: {?: 1}"),
    ("limits.", "limits: {?: 1}"),
    ("reconnect.", "reconnect: {?: 1}"),
    ("auth.", "auth: {?: 1}"),
    ("control.", "control: {?: 1}"),
    ("metrics.", "metrics: {?: 1}"),
    ("tcp.", "tcp: {?: 1}"),
    ("log_output.", "log_output: {?: 1}"),
    ("tls.client.", "tls: {client: {?: 1}}"),
    ("tls.client.certificates.*.", "tls: {client: {certificates: [{?: 1}]}}"),
    ("tls.server.", "tls: {server: {?: 1}}"),
    ("servers.*.", "servers: [{?: 1}]"),
    ("databases.*.", "databases: {x: {?: 1}}"),
    ("users.*.", "users: {x: {?: 1}}"),
];

/// What stands in backquotes in the first column of a row, or in the sentence on what has no test.
fn named() -> BTreeSet<String> {
    let columns = TABLE.lines().filter_map(|line| match line.strip_prefix("| ") {
        Some(row) => row.split(" | ").next(),
        None => line.strip_prefix("No test of its own yet has: "),
    });
    columns.flat_map(|column| column.split('`').skip(1).step_by(2)).map(str::to_owned).collect()
}

fn assert_listed(kind: &str, wanted: impl IntoIterator<Item = String>) {
    let named = named();
    let missing: Vec<String> = wanted.into_iter().filter(|name| !named.contains(name)).collect();
    assert!(missing.is_empty(), "{kind} without a row in tests/README.md: {missing:?}");
}

#[test]
fn every_key_has_a_row() {
    let keys = MAPS.iter().flat_map(|(prefix, text)| {
        let error = Config::parse("map", &text.replace('?', "no_such_key")).expect_err(text);
        let Problem::UnknownKey { allowed } = error.problem else { panic!("{text}: {error}") };
        allowed.iter().map(|key| format!("{prefix}{key}")).collect::<Vec<_>>()
    });
    let keys: Vec<String> = keys.collect();
    assert!(keys.len() > 90, "{keys:?}");
    assert_listed("keys", keys);
}

#[test]
fn every_command_has_a_row() {
    let command = ctrl::Arguments::command();
    let commands: Vec<String> = command.get_subcommands().map(|command| command.get_name().to_owned()).collect();
    assert!(commands.len() > 12, "{commands:?}");
    assert_listed("commands", commands);
    let shows = Show::ALL.iter().map(|show| format!("SHOW {}", show.name().to_uppercase()));
    let acts = ["PAUSE", "RESUME", "DISABLE", "ENABLE", "RECONNECT", "WAIT_CLOSE", "KILL", "KILL_CLIENT", "SET"];
    let others = ["RELOAD", "SHUTDOWN", "SHUTDOWN WAIT_FOR_SERVERS"];
    assert_listed("commands of the console", shows.chain(acts.into_iter().chain(others).map(str::to_owned)));
}

#[test]
fn every_metric_has_a_row() {
    let page = metrics::page(&[Default::default()], &Default::default());
    let families: Vec<String> =
        page.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next().map(str::to_owned)).collect();
    assert!(families.len() > 50, "{families:?}");
    assert_listed("metrics", families);
}

/// `CRATE path::test`, in the last column of a row.
#[test]
fn every_test_that_is_named_exists() {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests");
    let mut count = 0;
    for line in TABLE.lines().take_while(|line| *line != "## By hand").filter(|line| line.starts_with("| `")) {
        let last = line.trim_end_matches(" |").rsplit(" | ").next().expect("a row has columns");
        for reference in last.split('`').skip(1).step_by(2) {
            let (file, test) = match reference.split_once(' ') {
                Some(("e2e", path)) => {
                    let (module, test) = path.split_once("::").unwrap_or((path, ""));
                    (tests.join("e2e").join(format!("{module}.rs")), test)
                }
                Some((name, test)) if tests.join(format!("{name}.rs")).exists() => {
                    (tests.join(format!("{name}.rs")), test)
                }
                Some((name, test)) => (tests.join(name).join("main.rs"), test),
                None if tests.join(format!("{reference}.rs")).exists() => continue,
                // The rest of a list: `..::test`, or what is no reference.
                None => continue,
            };
            let text =
                fs::read_to_string(&file).unwrap_or_else(|error| panic!("{reference}: {}: {error}", file.display()));
            assert!(
                test.is_empty() || text.contains(&format!("fn {test}(")),
                "{reference}: there is no such test\n{line}"
            );
            count += 1;
        }
    }
    assert!(count > 100, "{count} references were read");
}
