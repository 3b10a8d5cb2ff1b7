//! The other ways in and out: Unix sockets, connections that are not pooled, replication.

use std::fs;
use std::time::Duration;

use super::support::pooler::{Qcp, Setup};
use super::support::postgres::{SUPERUSER, postgres};
use super::support::programs::{client_program, psql};
use super::support::raw::RawClient;
use super::support::wait_until;

#[test]
fn unix_sockets_on_both_sides() {
    let server = postgres();
    server.create_database("routes_unix");
    let unix = server.unix();
    let qcp = Setup::new("pool: {size: 2}\n").server(&format!("unix:{}:{}", unix.host, unix.port)).start();
    for address in [qcp.tcp(), qcp.unix()] {
        let psql = psql(&address, SUPERUSER, "routes_unix").args(["-XAt", "-c", "SELECT inet_server_addr() IS NULL"]);
        assert_eq!(psql.finish().success().trim(), "t", "the server sees a Unix socket");
    }
    let mut client = RawClient::login(&qcp.unix(), SUPERUSER, "routes_unix");
    assert_eq!(client.query("SELECT length(repeat('x', 500000))").expect("the server answers"), ["500000"]);
}

/// Clients that are not pooled have a backend each, from their login to their end.
fn check_dedicated(database: &str, key: &str) {
    const CLIENTS: usize = 3;
    let server = postgres();
    server.create_database(database);
    let qcp = Qcp::start(&format!("{key}\npool: {{size: 1}}\n"), 1);
    let mut clients: Vec<RawClient> = (0..CLIENTS).map(|_| RawClient::login(&qcp.tcp(), SUPERUSER, database)).collect();
    assert_eq!(server.count_backends(database), CLIENTS);
    let mut pids = Vec::new();
    for client in &mut clients {
        client.query("CREATE TEMP TABLE mine (n int)").expect("the server answers");
        pids.extend(
            client.query("SELECT pg_backend_pid() FROM mine RIGHT JOIN (SELECT 1) one ON true").expect("it is mine"),
        );
    }
    pids.sort();
    pids.dedup();
    assert_eq!(pids.len(), CLIENTS);
    drop(clients);
    wait_until("their backends end with them", Duration::from_secs(5), || server.count_backends(database) == 0);
}

#[test]
fn dedicated_databases_are_not_pooled() {
    check_dedicated("routes_dedicated", "dedicated_databases: [routes_dedicated]");
}

#[test]
fn dedicated_users_are_not_pooled() {
    check_dedicated("routes_dedicated_user", "dedicated_users: [postgres]");
}

#[test]
fn databases_have_settings_and_names_of_their_own() {
    let server = postgres();
    server.create_database("routes_real");
    let yaml = "databases:\n  routes_alias: {dbname: routes_real, relay_mode: Session, pool: {size: 1}}\n";
    let qcp = Qcp::start(yaml, 1);
    let mut client = RawClient::login(&qcp.tcp(), SUPERUSER, "routes_alias");
    assert_eq!(client.query("SELECT current_database()").expect("the server answers"), ["routes_real"]);
    client.query("SET work_mem = '5MB'").expect("the server answers");
    assert_eq!(client.query("SHOW work_mem").expect("the server answers"), ["5MB"]);
}

#[test]
fn replication_commands_pass_through() {
    let qcp = Qcp::start("pool: {size: 1}\n", 1);
    let ask = |address: &super::support::Address| {
        let conninfo = format!("{} replication=database", address.conninfo(SUPERUSER, "postgres"));
        client_program("psql", address, SUPERUSER, "postgres")
            .args(["-XAt", "-c", "IDENTIFY_SYSTEM", &conninfo])
            .finish()
    };
    let identity = |said: String| said.split('|').next().unwrap_or_default().to_owned();
    assert_eq!(identity(ask(&qcp.tcp()).success()), identity(ask(&postgres().tcp()).success()));
}

#[test]
fn a_base_backup_passes_through() {
    let qcp = Qcp::start("pool: {size: 1}\n", 1);
    let folder = std::env::temp_dir().join(format!("qcp-backup-{}", std::process::id()));
    // -X stream takes a second replication connection, with COPY both ways, beside the backup.
    let backup = client_program("pg_basebackup", &qcp.tcp(), SUPERUSER, "postgres")
        .args(["--checkpoint=fast", "--wal-method=stream", "--no-sync", "-D"])
        .arg(&folder)
        .finish();
    let has_version = folder.join("PG_VERSION").exists();
    let _ = fs::remove_dir_all(&folder);
    backup.success();
    assert!(has_version, "the backup is whole");
}
