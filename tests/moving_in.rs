//! Configurations of PgBouncer's, written after those that people show: several teams, a pod, rules of access, peers, old
//! applications. Each is imported and run, before a server that asks everybody for a password, and used as its users would.

mod support;

use std::fs;
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use support::certificates::Authority;
use support::postgres::SUPERUSER;
use support::programs::{Finished, Program, Running, psql};
use support::server::Server;
use support::{Address, free_port, wait_until};

/// What stands in the place of the machines of the files, in a folder of its own.
struct Place {
    folder: PathBuf,
    port: u16,
    server: Server,
}

/// One that runs; stopped at the end of the test.
struct Pooler(Option<Running>);

impl Drop for Pooler {
    fn drop(&mut self) {
        if let Some(running) = self.0.take() {
            running.signal(nix::sys::signal::Signal::SIGINT);
            let ended = running.finish();
            if std::thread::panicking() {
                eprintln!("{}", ended.stderr);
            }
        }
    }
}

impl Place {
    fn new(test: &str) -> Place {
        let server = Server::start(&[]);
        for statement in [
            "CREATE ROLE app LOGIN PASSWORD 'app secret'",
            "CREATE ROLE report LOGIN PASSWORD 'report \"secret\"'",
            "CREATE ROLE pooler LOGIN PASSWORD 'pooler secret'",
            "CREATE DATABASE shop",
            "CREATE DATABASE \"shop archive\"",
        ] {
            server.execute("postgres", statement);
        }
        server.execute(
            "shop",
            "CREATE SCHEMA pooler; GRANT USAGE ON SCHEMA pooler TO pooler;\n\
             CREATE FUNCTION pooler.user_lookup(name, OUT uname name, OUT phash text) LANGUAGE sql SECURITY DEFINER\n\
             SET search_path = pg_catalog AS 'SELECT usename, passwd FROM pg_shadow WHERE usename = $1'",
        );
        server.set_access("host all all 127.0.0.1/32 scram-sha-256");
        let folder = std::env::temp_dir().join(format!("qcp-moving-{test}-{}", std::process::id()));
        fs::create_dir_all(&folder).expect("the temporary folder is writable");
        Authority::new(&folder, "authority").sign("server", &["localhost", "127.0.0.1"]);
        let place = Place { folder, port: free_port(), server };
        let files = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/import/running");
        for file in fs::read_dir(files).expect("they are there") {
            let file = file.expect("it can be read");
            let at = place.server.tcp();
            let text = fs::read_to_string(file.path()).expect("it is text");
            let text = text.replace("$folder", &place.folder.display().to_string());
            let text = text.replace("$host", &at.host).replace("$port", &at.port.to_string());
            let text = text.replace("$listen", &place.port.to_string());
            let path = place.folder.join(file.file_name());
            fs::write(&path, text).expect("the folder is writable");
            fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("it is ours");
        }
        place
    }

    fn file(&self, name: &str) -> String {
        self.folder.join(name).display().to_string()
    }

    /// Says of each key what becomes of it; nothing is open but this.
    fn import(&self, file: &str, open: &[&str]) -> Finished {
        let imported = Program::new(env!("CARGO_BIN_EXE_qcp")).arg("--import-pgbouncer").arg(self.file(file)).finish();
        let lines = imported.stderr.lines().filter(|line| line.contains(": needs your decision"));
        let found: Vec<&str> = lines.filter(|line| !open.iter().any(|open| line.contains(open))).collect();
        assert!(found.is_empty(), "{found:?}");
        assert_eq!(imported.status.code(), Some(if open.is_empty() { 0 } else { 3 }), "{}", imported.stderr);
        imported
    }

    /// By PgBouncer's file, or by what it was imported to.
    fn start(&self, option: &str, file: &str) -> Pooler {
        let program = Program::new(env!("CARGO_BIN_EXE_qcp"));
        let program = program.args(["--cores", "2", "--control", &self.file("control.sock"), option]);
        let program = program.arg(self.file(file));
        let pooler = Pooler(Some(program.start()));
        wait_until("it listens", Duration::from_secs(20), || TcpStream::connect(("127.0.0.1", self.port)).is_ok());
        pooler
    }

    fn tcp(&self) -> Address {
        Address::loopback(self.port)
    }

    fn unix(&self) -> Address {
        Address { host: self.folder.display().to_string(), port: self.port }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.folder);
    }
}

fn ask(at: &Address, user: &str, password: &str, database: &str, query: &str) -> Finished {
    psql(at, user, database).env("PGPASSWORD", password).args(["-XAtc", query]).finish()
}

const WHO: &str = "select current_user || ' in ' || current_database()";

#[test]
fn several_teams() {
    let place = Place::new("teams");
    place.import("teams.ini", &[]);
    let _pooler = place.start("--pgbouncer-ini", "teams.ini");
    for at in [place.tcp(), place.unix()] {
        assert_eq!(ask(&at, "app", "app secret", "shop", WHO).success(), "app in shop\n");
        assert_eq!(ask(&at, "report", "report \"secret\"", "shop_session", WHO).success(), "report in shop\n");
        assert_eq!(ask(&at, "app", "app secret", "shop of last year", WHO).success(), "app in shop archive\n");
        assert!(ask(&at, "app", "wrong", "shop", WHO).failure().contains("password authentication failed"));
        assert!(ask(&at, "app", "app secret", "postgres", WHO).failure().contains("postgres"), "it is not listed");
    }
    let pools = ask(&place.tcp(), "ops", "operators only", "pgbouncer", "SHOW POOLS").success();
    let mode = |database: &str, user: &str| {
        let line = pools.lines().find(|line| line.starts_with(&format!("{database}|{user}|")));
        line.and_then(|line| line.split('|').nth(15)).unwrap_or_else(|| panic!("{database}/{user}: {pools}")).to_owned()
    };
    // "users" goes before "databases", and both before the rest.
    assert_eq!(mode("shop", "app"), "transaction");
    assert_eq!(mode("shop_session", "report"), "session");
    let databases = ask(&place.tcp(), "stats", "who counts", "pgbouncer", "SHOW DATABASES").success();
    let shop = databases.lines().find(|line| line.starts_with("shop|")).expect("it is listed");
    assert_eq!(shop.split('|').nth(5), Some("3"), "{shop}");
    assert!(!ask(&place.tcp(), "stats", "who counts", "pgbouncer", "PAUSE").status.success(), "who counts only looks");
    assert!(!ask(&place.tcp(), "app", "app secret", "pgbouncer", "SHOW POOLS").status.success(), "nor others");
    assert!(place.folder.join("pgbouncer.log").exists());
}

#[test]
fn a_pod_of_kubernetes() {
    let place = Place::new("kubernetes");
    place.import("kubernetes.ini", &[]);
    let _pooler = place.start("--pgbouncer-ini", "kubernetes.ini");
    let ask = |user: &str, password: &str, mode: &str, query: &str| {
        let program = psql(&place.tcp(), user, "shop").env("PGPASSWORD", password).env("PGSSLMODE", mode);
        program.env("PGSSLROOTCERT", &place.file("authority.crt")).args(["-XAtc", query]).finish()
    };
    // Neither is in the file: what the server's function says is believed.
    assert_eq!(ask("app", "app secret", "verify-full", WHO).success(), "app in shop\n");
    assert_eq!(ask("report", "report \"secret\"", "require", WHO).success(), "report in shop\n");
    assert!(ask("app", "wrong", "require", WHO).failure().contains("password authentication failed"));
    assert!(ask("nobody", "at all", "require", WHO).failure().contains("password authentication failed"));
    assert!(!ask("app", "app secret", "disable", WHO).status.success(), "not in plaintext");
    // Drivers ask for it at startup, and PgBouncer had to be told to ignore it.
    let program = psql(&place.tcp(), "app", "shop").env("PGPASSWORD", "app secret").env("PGSSLMODE", "require");
    let set = program.env("PGOPTIONS", "-c extra_float_digits=2").args(["-XAtc", "SHOW extra_float_digits"]).finish();
    assert_eq!(set.success(), "2\n");
}

#[test]
fn rules_of_access() {
    let place = Place::new("hba");
    place.import("hba.ini", &[]);
    let _pooler = place.start("--pgbouncer-ini", "hba.ini");
    assert_eq!(ask(&place.tcp(), "app", "app secret", "shop", WHO).success(), "app in shop\n");
    assert!(!ask(&place.tcp(), "report", "report \"secret\"", "shop", WHO).status.success(), "a rule rejects it");
    assert_eq!(ask(&place.unix(), "report", "report \"secret\"", "archive", WHO).success(), "report in shop archive\n");
    assert!(!ask(&place.unix(), "app", "app secret", "archive", WHO).status.success(), "no rule lets it in");
    if nix::unistd::geteuid().is_root() {
        assert_eq!(ask(&place.unix(), "app", "", "shop", WHO).success(), "app in shop\n", "by the map");
    }
    let begun = std::time::Instant::now();
    let late = ask(&place.tcp(), "app", "app secret", "shop", "SELECT pg_sleep(60)").failure();
    assert!(late.contains("canceling") && begun.elapsed() < Duration::from_secs(20), "{late}");
    let transaction = ask(&place.unix(), "report", "report \"secret\"", "archive", "BEGIN").failure();
    assert!(transaction.contains("ransaction"), "statement mode: {transaction}");
}

#[test]
fn peers_become_one_process() {
    let place = Place::new("peers");
    let refused = Program::new(env!("CARGO_BIN_EXE_qcp")).arg("--pgbouncer-ini").arg(place.file("peers.ini")).finish();
    assert!(refused.failure().contains("[peers] 1: needs your decision"), "the sizes are for a person to add up");
    let imported = place.import("peers.ini", &["[peers] 1", "[peers] 2"]);
    fs::write(place.folder.join("qcp.yaml"), imported.stdout).expect("the folder is writable");
    let _pooler = place.start("--config", "qcp.yaml");
    assert_eq!(ask(&place.tcp(), "app", "app secret", "shop", WHO).success(), "app in shop\n");
    assert_eq!(
        ask(&place.tcp(), "report", "report \"secret\"", "shop archive", WHO).success(),
        "report in shop archive\n"
    );
    // Whichever core the cancel comes to.
    for _ in 0..4 {
        let sleeps =
            psql(&place.tcp(), "app", "shop").env("PGPASSWORD", "app secret").args(["-XAtc", "SELECT pg_sleep(60)"]);
        let sleeps = sleeps.start();
        wait_until("it sleeps", Duration::from_secs(10), || place.server.count_activity("wait_event = 'PgSleep'") == 1);
        sleeps.signal(nix::sys::signal::Signal::SIGINT);
        assert!(sleeps.finish().failure().contains("canceling statement due to user request"));
    }
}

#[test]
fn old_applications_under_one_role() {
    let place = Place::new("fallback");
    place.import("fallback.ini", &[]);
    let _pooler = place.start("--pgbouncer-ini", "fallback.ini");
    // The server knows no joe.
    assert_eq!(ask(&place.tcp(), "joe", "joes password", "legacy", WHO).success(), "app in shop\n");
    assert_eq!(ask(&place.unix(), "joe", "joes password", "shop archive", WHO).success(), "app in shop archive\n");
    assert_eq!(ask(&place.tcp(), "report", "report \"secret\"", "postgres", WHO).success(), "app in postgres\n");
    assert!(ask(&place.tcp(), "joe", "joes", "legacy", WHO).failure().contains("password authentication failed"));
    assert!(ask(&place.tcp(), SUPERUSER, "", "legacy", WHO).failure().contains("password"), "who is not in the file");
    // A session leaves nothing to the next.
    assert_eq!(ask(&place.tcp(), "joe", "joes password", "legacy", "SET work_mem = '5MB'").success(), "SET\n");
    for _ in 0..4 {
        assert_ne!(ask(&place.tcp(), "joe", "joes password", "legacy", "SHOW work_mem").success(), "5MB\n");
    }
}
