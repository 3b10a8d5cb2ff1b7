//! Moving in from PgBouncer, as an operator does it: `qcp --import-pgbouncer` and `qcp --pgbouncer-ini`, on files like
//! those that people have.

mod support;

use std::fs;
use std::path::{Path, PathBuf};

use qcp::config::Config;
use support::postgres::{SUPERUSER, postgres};
use support::programs::{Finished, Program, psql};
use support::{Address, free_port, wait_until};

const UNDECIDED: i32 = 3;

/// Every file of the kind, with what is open in it: what a person has to look at before it runs. Only what no version
/// of QCP decides by itself; what this version does not have yet may be open as well.
const FILES: [(&str, &[&str]); 5] = [
    ("sample.ini", &[]),
    ("one_host.ini", &[]),
    ("container.ini", &[]),
    ("split.ini", &[]),
    (
        "strict.ini",
        &[
            "[databases] ledger: connect_query",
            "[databases] ledger: load_balance_hosts",
            "[databases] ledger: max_db_connections",
            "[databases] audit: client_encoding",
            "[users] batch: max_user_connections",
            "[peers] 1",
            "[peers] 2",
            "unix_socket_mode",
            "unix_socket_group",
            "client_tls_ciphers",
            "server_reset_query_always",
            "disable_pqexec",
            "max_user_connections",
        ],
    ),
];

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/import")
}

fn qcp(option: &str, file: &Path) -> Finished {
    Program::new(env!("CARGO_BIN_EXE_qcp")).arg(option).arg(file).finish()
}

/// The keys that are said to need a decision.
fn open(messages: &str) -> Vec<String> {
    let lines = messages.lines().filter(|line| line.contains(": needs your decision"));
    let key = |line: &str| {
        let (before, _) = line.split_once(": needs your decision").expect("filtered above");
        // FILE:LINE: KEY
        before.split_once(": ").map_or(before, |(_, key)| key).to_owned()
    };
    lines.map(key).collect()
}

#[test]
fn every_file_imports_to_a_configuration_that_loads() {
    for (file, expected) in FILES {
        let imported = qcp("--import-pgbouncer", &folder().join(file));
        let (_config, warnings) = Config::parse(file, &imported.stdout)
            .unwrap_or_else(|error| panic!("{error}\n{}\n{}", imported.stdout, imported.stderr));
        // A file of users that is not here lets nobody in, as in PgBouncer.
        // And the one that is here is in the repository, for all to read.
        let known = ["nobody can log in by it", "every user of this machine can read"];
        let odd = warnings.iter().find(|warning| !known.iter().any(|known| warning.text.contains(known)));
        assert!(odd.is_none(), "{file}: {odd:?}");
        let found = open(&imported.stderr);
        for key in expected {
            assert!(found.iter().any(|open| open == key), "{file}: {key} is not open\n{}", imported.stderr);
        }
        let code = if found.is_empty() { 0 } else { UNDECIDED };
        assert_eq!(imported.status.code(), Some(code), "{file}: {}", imported.stderr);
        if expected.is_empty() {
            assert!(found.is_empty(), "{file}: {found:?}");
        }
        // Each key of the file is spoken of, by its line.
        let text = fs::read_to_string(folder().join(file)).expect("the file is there");
        for (index, line) in text.lines().enumerate() {
            let is_entry = !line.is_empty() && !line.starts_with([';', '#', '[', '%']);
            let place = format!("{file}:{}: ", index + 1);
            assert!(!is_entry || imported.stderr.contains(&place), "{place}nothing said\n{}", imported.stderr);
        }
        assert!(imported.stderr.lines().last().is_some_and(|line| line.contains(" mapped, ")), "{}", imported.stderr);
        assert!(!imported.stderr.contains("hush"), "a password is told");
    }
}

#[test]
fn what_is_open_keeps_it_from_starting_by_name() {
    let refused = qcp("--pgbouncer-ini", &folder().join("strict.ini")).failure();
    for key in ["disable_pqexec", "[databases] ledger: connect_query", "[peers] 1"] {
        assert!(refused.contains(&format!("{key}: needs your decision: ")), "{refused}");
    }
    assert!(refused.contains("not started"), "{refused}");
}

#[test]
fn a_file_that_cannot_be_read_is_named() {
    let missing = qcp("--import-pgbouncer", &folder().join("no.ini"));
    assert_eq!(missing.status.code(), Some(1));
    assert!(missing.failure().contains("no.ini: cannot be read: No such file"), "the name is missing");
    let both = Program::new(env!("CARGO_BIN_EXE_qcp")).args(["--config", "a", "--pgbouncer-ini", "b"]).finish();
    assert_eq!(both.status.code(), Some(2), "{both:?}");
}

/// The one-line trial: PgBouncer's file, qcp instead of pgbouncer.
#[test]
fn pgbouncers_file_runs() {
    let server = postgres();
    server.create_database("moved");
    let folder = std::env::temp_dir().join(format!("qcp-import-{}", std::process::id()));
    fs::create_dir_all(&folder).expect("the temporary folder is writable");
    let (port, at) = (free_port(), server.tcp());
    let ini = format!(
        "[databases]\nnew_name = host={} port={} dbname=moved pool_size=3\n[pgbouncer]\nlisten_addr = 127.0.0.1\n\
         listen_port = {port}\nunix_socket_dir = {}\npool_mode = transaction\nauth_type = trust\nauth_file = {}\n",
        at.host,
        at.port,
        folder.display(),
        self::folder().join("userlist.txt").display(),
    );
    let file = folder.join("pgbouncer.ini");
    fs::write(&file, ini).expect("the temporary folder is writable");
    // The control socket has no key in PgBouncer's file.
    let running = Program::new(env!("CARGO_BIN_EXE_qcp"))
        .args(["--cores", "1", "--control"])
        .arg(folder.join("control.sock"))
        .arg("--pgbouncer-ini")
        .arg(&file)
        .start();
    let address = Address::loopback(port);
    wait_until("qcp listens", std::time::Duration::from_secs(20), || {
        std::net::TcpStream::connect(("127.0.0.1", port)).is_ok()
    });
    let asked = psql(&address, SUPERUSER, "new_name").args(["-XAtc", "select current_database()"]).finish();
    let refused = psql(&address, SUPERUSER, "moved").args(["-XAtc", "select 1"]).finish();
    let unix = Address { host: folder.display().to_string(), port };
    let by_socket = psql(&unix, SUPERUSER, "new_name").args(["-XAtc", "select 2"]).finish();
    running.signal(nix::sys::signal::Signal::SIGINT);
    let ended = running.finish();
    let _ = fs::remove_dir_all(&folder);
    assert_eq!(asked.success(), "moved\n");
    assert_eq!(by_socket.success(), "2\n");
    assert!(refused.failure().contains("moved"), "what is not listed is not served");
    ended.success();
}
