//! The log and the signals as an operator has them: rotated files, JSON, SIGQUIT.

mod support;

use std::path::PathBuf;
use std::time::Duration;

use nix::sys::signal::Signal;
use support::pooler::{Qcp, Setup};
use support::postgres::SUPERUSER;
use support::programs::psql;
use support::wait_until;

const LOGGING: &str = "log_output: {file: $folder/qcp.log}\n";

fn start(yaml: &str) -> (Qcp, PathBuf) {
    let qcp = Setup::new(&format!("{LOGGING}{yaml}")).start();
    let folder = qcp.control_socket().parent().expect("it is in a folder").to_owned();
    (qcp, folder)
}

fn read(path: &std::path::Path) -> String {
    std::fs::read_to_string(path).unwrap_or_default()
}

/// Somebody moves the file away; qcp goes on in the old one until it is told, and then begins a new one.
#[test]
fn a_rotated_log_is_opened_anew_by_sighup_and_by_command() {
    let (qcp, folder) = start("");
    let log = folder.join("qcp.log");
    let rotate = |to: &str, told: &dyn Fn()| {
        std::fs::rename(&log, folder.join(to)).expect("the log is there");
        told();
        wait_until("there is a new file", Duration::from_secs(5), || read(&log).contains("anew"));
        assert!(!read(&log).contains("listens on"), "the old one was copied");
        assert!(read(&folder.join(to)).contains("qcp") || to != "one", "the old one is kept");
    };
    wait_until("it listens", Duration::from_secs(5), || read(&log).contains("listens on"));
    rotate("one", &|| qcp.signal(Signal::SIGHUP));
    rotate("two", &|| {
        let said = qcp.control(&["reopen"]).success();
        assert!(said.contains("qcp.log anew"), "{said}");
    });
    // Clients notice nothing.
    psql(&qcp.tcp(), SUPERUSER, "postgres").args(["-XAtqc", "select 1"]).finish().success();
    // What cannot be opened leaves the old one in use.
    std::fs::remove_file(&log).expect("it is there");
    std::fs::create_dir(&log).expect("the place is free");
    let said = qcp.control(&["reopen"]).failure();
    assert!(said.contains("qcp.log: Is a directory"), "{said}");
}

#[test]
fn each_line_is_an_object_of_json() {
    let (mut qcp, folder) = start("log_format: json\nlog_level: Debug\n");
    psql(&qcp.tcp(), SUPERUSER, "no \"such\" database").args(["-XAtqc", "select 1"]).finish().failure();
    let log = folder.join("qcp.log");
    wait_until("it logs the login", Duration::from_secs(5), || read(&log).contains("such"));
    let text = read(&log);
    for line in text.lines() {
        let object: serde_json::Value = serde_json::from_str(line).unwrap_or_else(|error| panic!("{line}: {error}"));
        for key in ["time", "level", "message"] {
            assert!(object[key].is_string(), "{line}");
        }
    }
    qcp.signal(Signal::SIGTERM);
    assert!(qcp.wait().success());
}

#[test]
fn sigquit_does_not_wait_for_transactions() {
    let mut qcp = Setup::new("shutdown_timeout: 60s\n").start();
    let sleeping = psql(&qcp.tcp(), SUPERUSER, "postgres").args(["-XAtqc", "select pg_sleep(30)"]).start();
    wait_until("it is under way", Duration::from_secs(5), || {
        qcp.control(&["show", "servers", "--json"]).success().contains("\"linked\"")
    });
    let begun = std::time::Instant::now();
    qcp.signal(Signal::SIGQUIT);
    assert!(qcp.wait().success());
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
    sleeping.finish().failure();
}

#[test]
fn what_was_counted_is_shown() {
    let qcp = Setup::new("relay_mode: Smart\n").start();
    psql(&qcp.tcp(), SUPERUSER, "postgres")
        .args(["-XAtq"])
        .input("select 1;\nselect 1/0;\nselect 2;\n")
        .finish()
        .success();
    let stats = qcp.control(&["show", "stats", "--json"]).success();
    let stats: serde_json::Value = serde_json::from_str(&stats).expect("it is JSON");
    assert_eq!((&stats[0]["queries"], &stats[0]["transactions"]), (&3.into(), &3.into()), "{stats}");
    assert!(stats[0]["query_p99_us"].as_u64().is_some_and(|us| us >= 64), "{stats}");
    let errors = qcp.control(&["show", "errors"]).success();
    assert!(errors.lines().any(|line| line.starts_with("22012") && line.contains("server")), "{errors}");
}
