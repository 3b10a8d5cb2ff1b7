//! What holds for any bytes that are taken for PgBouncer's files.

use std::io;

use super::{import, ini};
use crate::config::Config;

/// A target of the fuzzer: its name, and what panics where the property fails.
pub type Property = (&'static str, fn(&[u8]));

/// The targets of this layer.
pub const ALL: &[Property] = &[
    ("pgbouncer_ini", whatever_is_read_loads),
    ("connect_string", a_connect_string_reads_back),
    ("user_list", counts_lines),
];

/// The file that includes itself, holds its users and its hba rules: all from the same bytes.
fn whatever_is_read_loads(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes).into_owned();
    let mut loads = 0;
    let mut load = |_: &str| {
        loads += 1;
        // A file that includes itself twice would be read a thousand times.
        if loads <= 4 { Ok(text.clone()) } else { Err(io::ErrorKind::NotFound.into()) }
    };
    match import("pgbouncer.ini", &mut load, true) {
        Ok(import) => {
            let loaded = Config::parse("imported", &import.yaml);
            assert!(loaded.is_ok(), "{:?}\n{}", loaded.err(), import.yaml);
        }
        Err(super::Error::File(_)) => {}
        Err(super::Error::Refused(error)) => panic!("{error}"),
    }
}

fn a_connect_string_reads_back(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    if let Ok(pairs) = ini::connect_string(&text) {
        let quoted = |(key, value): &(String, String)| format!("{key}='{}'", value.replace('\'', "''"));
        let again: Vec<String> = pairs.iter().map(quoted).collect();
        assert_eq!(ini::connect_string(&again.join(" ")).as_ref(), Ok(&pairs));
    }
}

fn counts_lines(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let lines = text.lines().count();
    match ini::user_list(&text) {
        Ok(users) => assert!(users.plain + users.md5 + users.scram <= lines),
        Err(line) => assert!((1..=lines).contains(&line)),
    }
}
