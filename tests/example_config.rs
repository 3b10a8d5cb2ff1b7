//! `config-example.yaml` is what an operator reads first: it must load, say what the defaults are, and leave out no
//! key.

use qcp::config::{Config, Problem};

const EXAMPLE: &str = include_str!("../config-example.yaml");

/// Every map of the configuration, as a text that puts a key into it that is not allowed there.
const MAPS: &[&str] = &[
    "?: 1",
    "arena: {?: 1}",
    "pool: {?: 1}",
    "limits: {?: 1}",
    "reconnect: {?: 1}",
    "auth: {?: 1}",
    "control: {?: 1}",
    "tls: {?: 1}",
    "tls: {client: {?: 1}}",
    "tls: {client: {certificates: [{?: 1}]}}",
    "tls: {server: {?: 1}}",
    "databases: {x: {tls: {?: 1}}}",
    "metrics: {?: 1}",
    "log_output: {?: 1}",
    "servers: [{?: 1}]",
    "databases: {x: {?: 1}}",
    "databases: {x: {pool: {?: 1}}}",
    "users: {x: {?: 1}}",
    "users: {x: {pool: {?: 1}}}",
    "databases: {x: {auth: {?: 1}}}",
    "users: {x: {auth: {?: 1}}}",
    "databases: {x: {limits: {?: 1}}}",
    "users: {x: {limits: {?: 1}}}",
];

/// Settings that cannot be had beside the others on this machine.
const LEFT_OUT: &[&str] = &["user_file", "hba_file", "ident_file", "server_password_file", "server_password_env"];

#[test]
fn the_example_says_the_defaults() {
    let (example, warnings) = Config::parse("config-example.yaml", EXAMPLE).unwrap_or_else(|error| panic!("{error}"));
    let (defaults, _) = Config::parse("empty", "").unwrap();
    assert_eq!(warnings, []);
    assert_eq!(example, defaults);
}

#[test]
fn the_example_has_every_key() {
    for map in MAPS {
        let error = Config::parse("map", &map.replace('?', "no_such_key")).unwrap_err();
        let Problem::UnknownKey { allowed } = error.problem else { panic!("{map}: {error}") };
        for key in allowed {
            let is_there = EXAMPLE.lines().any(|line| is_setting(line) && mentions(line, key));
            // The file of a log is shown in the comment of its key: there is none by default.
            assert!(is_there || *key == "file", "{map}: {key} is missing");
        }
    }
    assert!(EXAMPLE.contains("{file: /tmp/qcp.log}"));
}

/// The settings that are commented out are right as well.
#[test]
fn the_example_can_be_uncommented() {
    let uncomment = |line: &str| match line.strip_prefix('#') {
        // A file that is not here, or another way to say what the line before it says.
        Some(setting) if LEFT_OUT.iter().any(|key| mentions(setting, key)) => line.to_owned(),
        Some(setting) if is_setting(line) => setting.to_owned(),
        // An empty map would close before the lines that now follow it.
        _ => line.replace(": {}", ":"),
    };
    let text: Vec<String> = EXAMPLE.lines().map(uncomment).collect();
    let (config, warnings) = Config::parse("uncommented", &text.join("\n")).unwrap_or_else(|error| panic!("{error}"));
    // Of chunks_count and total_size.
    assert_eq!(warnings.len(), 1);
    assert_eq!(config.cores, Some(2));
    assert_eq!(config.pool("reports", "alice").unwrap().server_database, "reports_v2");
}

/// The block of the document that QCP was made from, to the letter: it shows both ways to give the arena's size.
#[test]
fn the_original_block_loads_with_one_warning() {
    let text = "\
log_level: Info
log_output:
    file: /tmp/qcp.log
# Конфигурация памяти (опционально)
arena:
    chunk_size: 66560  # Размер одного \"куска\" памяти, в байтах
    # Общее количество потребляемой памяти можно указать либо используя параметр
    # \"количество кусков памяти\":
    chunks_count: 3150 # Количество таких \"кусков\"
    # ... или указав общее количество напрямую:
    total_size: 3.1 GB # Поддерживаются суффиксы B, KB, MB, GB
";
    let (config, warnings) = Config::parse("qcp.yaml", text).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(warnings.len(), 1);
    assert_eq!(
        warnings[0].to_string(),
        "qcp.yaml:9: arena.chunks_count: has no effect, because total_size is there too"
    );
    assert_eq!(config.arena.chunks_count, 3_328_599_654 / 66560);
}

/// A key, or one that is commented out: with nothing or the indentation of its map after the "#", where prose has a
/// space.
fn is_setting(line: &str) -> bool {
    let indented = line.strip_prefix('#').unwrap_or(line);
    let text = indented.trim_start();
    let indentation = indented.len() - text.len();
    let begins_with_key = text.trim_start_matches("- ").split(' ').next().is_some_and(|word| word.ends_with(':'));
    begins_with_key && indentation != 1 && !text.starts_with('#')
}

fn mentions(line: &str, key: &str) -> bool {
    let words = line.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_' || c == ':'));
    words.into_iter().any(|word| word.strip_suffix(':') == Some(key))
}
