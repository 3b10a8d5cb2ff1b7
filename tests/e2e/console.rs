//! The console: psql and drivers connected to the databases `qcp` and `pgbouncer`.

use std::time::Duration;

use nix::sys::signal::Signal;
use tokio_postgres::{NoTls, SimpleQueryMessage};

use super::support::pooler::{Qcp, Setup};
use super::support::postgres::{SUPERUSER, postgres};
use super::support::programs::{Program, psql};
use super::support::raw::{RawClient, error_field, message, zero_ended};
use super::support::{Address, wait_until};

/// Who may do what, over TCP too.
const USERS: &str = "auth: {method: scram-sha-256, admin_users: [ann], stats_users: [stan], \
                     users: {ann: 'secret of ann', stan: 'secret of stan', bob: 'secret of bob', postgres: any}}\n";

/// Rows of one statement at the console, as its owner, over the Unix socket.
fn console(qcp: &Qcp, statement: &str) -> Vec<String> {
    let said = psql(&qcp.unix(), "anybody", "pgbouncer").args(["-XAtc", statement]).finish().success();
    said.lines().map(str::to_owned).collect()
}

/// One column of one row, which is found by its first columns.
fn value(qcp: &Qcp, statement: &str, row: &str, column: &str) -> String {
    let said = psql(&qcp.unix(), "anybody", "qcp").args(["-XAc", statement]).finish().success();
    let columns: Vec<&str> = said.lines().next().expect("a header").split('|').collect();
    let at = columns.iter().position(|name| *name == column).unwrap_or_else(|| panic!("{column}: {columns:?}"));
    let found = said.lines().skip(1).find(|line| line.starts_with(&format!("{row}|")));
    let found = found.unwrap_or_else(|| panic!("no row {row} in\n{said}"));
    found.split('|').nth(at).expect("as many as columns").to_owned()
}

fn as_user(address: &Address, user: &str, password: &str, statement: &str) -> Program {
    psql(address, user, "pgbouncer").env("PGPASSWORD", password).args(["-XAtc", statement])
}

#[test]
fn rows_say_what_there_is() {
    let server = postgres();
    server.create_database("console_rows");
    for cores in [1, 2] {
        let qcp = Qcp::start("pool: {size: 3, min_size: 1}\nlimits: {max_clients: 77}\n", cores);
        let mut busy = RawClient::login(&qcp.tcp(), SUPERUSER, "console_rows");
        let mut idle = RawClient::login(&qcp.tcp(), SUPERUSER, "console_rows");
        busy.query("BEGIN").expect("served");
        for _ in 0..9 {
            idle.query("SELECT 1").expect("served");
        }
        let row = format!("console_rows|{SUPERUSER}");
        let pools = |column: &str| value(&qcp, "SHOW POOLS", &row, column);
        assert_eq!((pools("cl_active").as_str(), pools("sv_active").as_str()), ("2", "1"));
        assert_eq!((pools("cl_waiting").as_str(), pools("pool_mode").as_str()), ("0", "transaction"));
        assert_eq!((pools("pool_size").as_str(), pools("maxwait").as_str()), ("3", "0"));
        let totals = |column: &str| value(&qcp, "SHOW STATS_TOTALS", "console_rows", column);
        assert_eq!((totals("query_count").as_str(), totals("xact_count").as_str()), ("10", "9"));
        assert_eq!(totals("client_login_count"), "2");
        assert!(totals("query_time").parse::<u64>().expect("a number") > 0);
        assert_eq!(value(&qcp, "SHOW STATS", "console_rows", "total_query_count"), "10");
        assert_eq!(value(&qcp, "SHOW TOTALS", "total_query_count", "value"), "10");
        let databases = |column: &str| value(&qcp, "SHOW DATABASES", "console_rows", column);
        assert_eq!((databases("host").as_str(), databases("database").as_str()), ("127.0.0.1", "console_rows"));
        assert_eq!(databases("port"), server.tcp().port.to_string());
        assert_eq!((databases("pool_size").as_str(), databases("min_pool_size").as_str()), ("3", "1"));
        assert_eq!((databases("current_client_connections").as_str(), databases("paused").as_str()), ("2", "0"));
        assert_eq!(value(&qcp, "SHOW LISTS", "used_clients", "items"), "3", "one is at the console");
        assert_eq!(value(&qcp, "SHOW CONFIG", "max_client_conn", "value"), "77");
        assert_eq!(value(&qcp, "SHOW CONFIG", "pool.size", "value"), "3");
        assert_eq!(value(&qcp, "SHOW CONFIG", "query_wait_timeout", "value"), "10");
        assert_eq!(value(&qcp, "SHOW USERS", SUPERUSER, "current_client_connections"), "2");
        let clients = console(&qcp, "SHOW CLIENTS");
        assert_eq!(clients.iter().filter(|row| row.starts_with(&format!("C|{SUPERUSER}|console_rows|"))).count(), 2);
        assert!(clients.iter().any(|row| row.starts_with("C|anybody|pgbouncer|none|active|unix|0|")), "{clients:?}");
        let pid = busy.query("SELECT pg_backend_pid()").expect("served").remove(0);
        let servers = console(&qcp, "SHOW SERVERS");
        let linked = servers.iter().find(|row| row.split('|').nth(16) == Some(pid.as_str())).expect("it is listed");
        assert!(linked.starts_with(&format!("S|{SUPERUSER}|console_rows|none|active|127.0.0.1|")), "{linked}");
        let link = linked.split('|').nth(15).expect("a column");
        assert!(clients.iter().any(|row| row.split('|').nth(14) == Some(link)), "{link}: {clients:?}");
        assert_eq!(console(&qcp, "SHOW VERSION"), [format!("QCP {}", env!("CARGO_PKG_VERSION"))]);
        assert_eq!(console(&qcp, "SHOW STATE"), ["active|yes", "paused|no", "suspended|no"]);
        assert_eq!(console(&qcp, "SHOW CORES").len(), cores);
        assert!(console(&qcp, "SHOW MEM").iter().any(|row| row.starts_with("clients|")));
        assert!(busy.query("SELECT 1/0").is_err());
        assert_eq!(value(&qcp, "SHOW ERRORS", "22012|server", "count"), "1");
        for empty in ["PEERS", "PEER_POOLS", "DNS_HOSTS", "DNS_ZONES", "PINS"] {
            assert!(console(&qcp, &format!("SHOW {empty}")).is_empty(), "{empty}");
        }
        for show in ["SOCKETS", "ACTIVE_SOCKETS", "STATS_AVERAGES"] {
            assert!(!console(&qcp, &format!("SHOW {show}")).is_empty(), "{show}");
        }
    }
}

/// Columns that the other tests leave out: a client that waits, what the configuration says, what has been counted.
#[test]
fn the_other_columns_are_true() {
    let server = postgres();
    server.create_database("console_columns");
    let yaml = format!(
        "session_state: preserve\npool: {{size: 1, lifetime: 30m, reserve_size: 2, reserve_timeout: 1h, max_backends: 9}}\n\
         databases: {{console_columns: {{limits: {{max_clients: 7}}}}}}\n\
         users: {{{SUPERUSER}: {{pool: {{size: 1}}, relay_mode: Smart, limits: {{max_clients: 8}}}}}}\n"
    );
    let qcp = Qcp::start(&yaml, 1);
    let mut busy = RawClient::login(&qcp.tcp(), SUPERUSER, "console_columns");
    busy.query("SET application_name = 'the busy one'").expect("served");
    busy.send(&message(b'P', b"named\0SELECT 1\0\0\0"));
    busy.send(&message(b'S', b""));
    busy.receive_until_ready();
    busy.query("BEGIN").expect("served");
    let mut waiting = RawClient::login(&qcp.tcp(), SUPERUSER, "console_columns");
    waiting.send(&message(b'Q', &zero_ended("SELECT 1")));
    std::thread::sleep(Duration::from_millis(1_300));

    let pool = format!("console_columns|{SUPERUSER}");
    let pools = |column: &str| value(&qcp, "SHOW POOLS", &pool, column);
    let number = |text: String| text.parse::<u64>().unwrap_or_else(|_| panic!("{text:?} is no number"));
    assert_eq!((pools("cl_active").as_str(), pools("cl_waiting").as_str()), ("1", "1"));
    let waited = number(pools("maxwait"));
    assert!((1..9).contains(&waited) && number(pools("maxwait_us")) < 1_000_000, "{waited}");
    assert_eq!((pools("sv_idle").as_str(), pools("sv_login").as_str(), pools("sv_tested").as_str()), ("0", "0", "0"));
    assert_eq!(pools("servers"), format!("127.0.0.1:{}", server.tcp().port));
    let clients = console(&qcp, "SHOW CLIENTS");
    let columns = |row: &str| row.split('|').map(str::to_owned).collect::<Vec<_>>();
    let at_work =
        clients.iter().find(|row| row.contains("|the busy one|")).map(|row| columns(row)).expect("it is listed");
    let queued = clients.iter().find(|row| row.contains("|waiting|")).map(|row| columns(row)).expect("it is listed");
    assert!(number(queued[11].clone()) >= 1 && number(queued[12].clone()) < 1_000_000, "wait, wait_us: {queued:?}");
    assert_eq!(
        (queued[15].as_str(), at_work[19].as_str(), at_work[21].as_str()),
        ("", "1", "0"),
        "link, statements, core"
    );
    for moment in &at_work[9..11] {
        let age =
            server.execute("postgres", &format!("SELECT extract(epoch FROM now() - '{moment}')::int BETWEEN 0 AND 20"));
        assert_eq!(age.trim(), "t", "{moment}");
    }
    let active = console(&qcp, "SHOW ACTIVE_SOCKETS");
    assert!(active.iter().any(|row| row.starts_with("C|") && row.contains("|cl_waiting|")), "{active:?}");
    assert!(active.iter().any(|row| row.starts_with("S|") && row.contains("|sv_active|")), "{active:?}");

    let databases = |column: &str| value(&qcp, "SHOW DATABASES", "console_columns", column);
    assert_eq!((databases("reserve_pool_size").as_str(), databases("server_lifetime").as_str()), ("2", "1800"));
    assert_eq!((databases("pool_mode").as_str(), databases("force_user").as_str()), ("transaction", ""));
    assert_eq!((databases("max_connections").as_str(), databases("current_connections").as_str()), ("9", "1"));
    assert_eq!((databases("max_client_connections").as_str(), databases("load_balance_hosts").as_str()), ("7", ""));
    let users = |column: &str| value(&qcp, "SHOW USERS", SUPERUSER, column);
    assert_eq!((users("pool_size").as_str(), users("pool_mode").as_str()), ("1", "transaction"));
    assert_eq!((users("max_user_client_connections").as_str(), users("current_connections").as_str()), ("8", "1"));

    // So much of a startup packet that it is a login.
    let mut coming = RawClient::connect(&qcp.tcp());
    coming.send(&[0, 0, 0, 60, 0, 3]);
    wait_until("it is seen", Duration::from_secs(5), || value(&qcp, "SHOW LISTS", "login_clients", "items") == "1");
    let lists = |row: &str| number(value(&qcp, "SHOW LISTS", row, "items"));
    assert_eq!((lists("pools"), lists("used_clients"), lists("free_servers"), lists("used_servers")), (2, 4, 0, 1));
    assert!(lists("databases") >= 2 && lists("users") >= 1 && lists("free_clients") > 100);
    drop(coming);

    qcp.control(&["reconnect", "console_columns"]).success();
    let servers = |column: &str| value(&qcp, "SHOW SERVERS", &format!("S|{SUPERUSER}|console_columns"), column);
    assert_eq!((servers("close_needed").as_str(), servers("state").as_str()), ("1", "active"));
    busy.query("COMMIT").expect("served");
    waiting.receive_until_ready();
    assert_eq!((pools("cl_waiting").as_str(), pools("maxwait").as_str()), ("0", "0"));
    assert!(number(pools("p50_wait_us")) >= 1_000_000 && number(pools("p99_wait_us")) >= 1_000_000);
    let totals = |column: &str| number(value(&qcp, "SHOW STATS_TOTALS", "console_columns", column));
    assert!(totals("wait_time") >= 1_000_000 && totals("xact_time") >= 1_000_000);
    let counts = ["server_assignment_count", "bytes_received", "bytes_sent"].map(totals);
    assert!(counts.iter().zip([2, 50, 50]).all(|(count, least)| *count >= least), "{counts:?}");
    let sum = |row: &str| number(value(&qcp, "SHOW TOTALS", row, "value"));
    assert!(sum("total_wait_time") >= 1_000_000 && sum("total_server_assignment_count") >= 2);
    let core = |column: &str| number(value(&qcp, "SHOW CORES", "0", column));
    assert_eq!((core("clients"), core("servers")), (3, 1), "the console is a client");
    assert!(core("queries") >= 4 && core("transactions") >= 2 && core("waits") >= 1);
    assert!(core("bytes_received") > 50 && core("bytes_sent") > 50);
    for row in console(&qcp, "SHOW MEM") {
        let row = columns(&row);
        let (each, count) = (number(row[1].clone()), number(row[2].clone()) + number(row[3].clone()));
        assert_eq!(each * count, number(row[4].clone()), "{row:?}");
    }
    let config = |column: &str| value(&qcp, "SHOW CONFIG", "pool.lifetime", column);
    assert_eq!(
        (config("value").as_str(), config("default").as_str(), config("changeable").as_str()),
        ("30m", "1h", "yes")
    );
    assert_eq!(value(&qcp, "SHOW CONFIG", "client_idle_timeout", "default"), "0");

    busy.query("SELECT pg_advisory_lock(5)").expect("served");
    let pid = busy.query("SELECT pg_backend_pid()").expect("served").remove(0);
    let pin = columns(&console(&qcp, "SHOW PINS").remove(0));
    assert_eq!(
        (pin[0].as_str(), pin[1].as_str(), pin[2].as_str()),
        (at_work[20].as_str(), "console_columns", SUPERUSER)
    );
    assert!(pin[3].contains("lock") && number(pin[4].clone()) < 20 && pin[6].starts_with("127.0.0.1:"), "{pin:?}");
    assert_eq!((pin[5].as_str(), pin[7].as_str(), pin[8].as_str()), (pid.as_str(), "the busy one", "0"));
    let at_work =
        console(&qcp, "SHOW CLIENTS").into_iter().find(|row| row.contains("|the busy one|")).expect("it is listed");
    assert!(columns(&at_work)[22].contains("lock") && number(columns(&at_work)[23].clone()) < 20, "{at_work}");

    busy.query("SELECT pg_advisory_unlock(5)").expect("served");
    qcp.control(&["pause", "console_columns"]).success();
    assert_eq!(databases("paused"), "1");
    qcp.control(&["resume", "console_columns"]).success();
    qcp.control(&["disable", "console_columns"]).success();
    assert_eq!((databases("paused").as_str(), databases("disabled").as_str()), ("0", "1"));
}

/// Where a connection came to, how it is encrypted, and whether it replicates.
#[test]
fn connections_are_described() {
    let server = postgres();
    server.create_database("console_sockets");
    let folder = server.certificates();
    let yaml = format!(
        "pool: {{size: 2}}\ntls: {{client: {{mode: allow, certificate: {0}/server.crt, key: {0}/own.key}}, server: {{mode: require}}}}\n",
        folder.display()
    );
    let own = folder.join("own.key");
    std::fs::copy(folder.join("server.key"), &own).expect("the folder is writable");
    let qcp = Qcp::start(&yaml, 1);
    let mut plain = RawClient::login(&qcp.tcp(), SUPERUSER, "console_sockets");
    plain.query("BEGIN").expect("served");
    let clients = |column: &str| value(&qcp, "SHOW CLIENTS", &format!("C|{SUPERUSER}|console_sockets"), column);
    assert_eq!((clients("local_addr").as_str(), clients("local_port")), ("127.0.0.1", qcp.tcp().port.to_string()));
    assert_eq!((clients("tls").as_str(), clients("replication").as_str()), ("", "none"));
    let servers = |column: &str| value(&qcp, "SHOW SERVERS", &format!("S|{SUPERUSER}|console_sockets"), column);
    // It is the server's word for the same connection.
    let pid = plain.query("SELECT pg_backend_pid()").expect("served").remove(0);
    let seen = server.execute(
        "postgres",
        &format!("SELECT host(client_addr) || ':' || client_port FROM pg_stat_activity WHERE pid = {pid}"),
    );
    assert_eq!(format!("{}:{}", servers("local_addr"), servers("local_port")), seen.trim());
    let cipher = server.execute("postgres", &format!("SELECT version || '/' FROM pg_stat_ssl WHERE pid = {pid}"));
    assert!(servers("tls").starts_with(cipher.trim()), "{}", servers("tls"));
    plain.query("COMMIT").expect("served");
    drop(plain);
    let gone = || console(&qcp, "SHOW CLIENTS").iter().all(|line| !line.contains("console_sockets"));
    wait_until("the first is gone", Duration::from_secs(5), gone);

    let mut encrypted = psql(&qcp.tcp(), SUPERUSER, "console_sockets").env("PGSSLMODE", "require");
    encrypted = encrypted.args(["-XAtc", "SELECT pg_sleep(3)"]);
    let running = encrypted.start();
    wait_until("it is there", Duration::from_secs(5), || !gone());
    wait_until("it is encrypted", Duration::from_secs(2), || clients("tls").starts_with("TLSv1.3/TLS"));
    running.finish().success();

    let replica =
        format!("host=127.0.0.1 port={} user={SUPERUSER} dbname=console_sockets replication=database", qcp.tcp().port);
    let running = Program::new(server.programs.join("psql")).args(["-XAtc", "SELECT pg_sleep(3)", &replica]).start();
    wait_until("it is there", Duration::from_secs(5), || !gone());
    wait_until("it replicates", Duration::from_secs(2), || clients("replication") == "logical");
    // Beside the one of the pool.
    let row = format!("S|{SUPERUSER}|console_sockets|logical|");
    assert!(console(&qcp, "SHOW SERVERS").iter().any(|line| line.starts_with(&row)));
    running.finish().success();
    let _ = std::fs::remove_file(&own);
}

#[test]
fn a_pinned_client_and_its_statements_are_seen() {
    postgres().create_database("console_pins");
    let qcp = Qcp::start("session_state: preserve\n", 1);
    let mut client = RawClient::login(&qcp.tcp(), SUPERUSER, "console_pins");
    client.query("CREATE TEMP TABLE kept (a int)").expect("served");
    client.send(&message(b'P', b"named\0SELECT 1\0\0\0"));
    client.send(&message(b'S', b""));
    client.receive_until_ready();
    client.send(&message(b'B', b"\0named\0\0\0\0\0\0\0"));
    client.send(&message(b'S', b""));
    client.receive_until_ready();
    let pins = console(&qcp, "SHOW PINS");
    assert!(pins.len() == 1 && pins[0].contains("|console_pins|") && pins[0].contains("temp"), "{pins:?}");
    assert_eq!(value(&qcp, "SHOW POOLS", &format!("console_pins|{SUPERUSER}"), "pinned"), "1");
    let totals = |column: &str| value(&qcp, "SHOW STATS_TOTALS", "console_pins", column);
    let counts = (totals("client_parse_count"), totals("server_parse_count"), totals("bind_count"));
    assert_eq!(counts, ("1".to_owned(), "1".to_owned(), "1".to_owned()));
    let clients = console(&qcp, "SHOW CLIENTS");
    let row = clients.iter().find(|row| row.contains("|console_pins|")).expect("it is listed");
    assert_eq!(row.split('|').nth(19), Some("1"), "{row}");
}

#[test]
fn only_the_owner_gets_in_where_nobody_is_listed() {
    postgres().create_database("console_owner");
    let qcp = Qcp::start("", 1);
    for database in ["qcp", "pgbouncer"] {
        // The server would let this one in: that gives no right here.
        let refused = psql(&qcp.tcp(), SUPERUSER, database).args(["-c", "SHOW POOLS"]).finish().failure();
        assert!(refused.contains("FATAL"), "{refused}");
        psql(&qcp.unix(), SUPERUSER, database).args(["-c", "SHOW POOLS"]).finish().success();
    }
    assert!(!console(&qcp, "SHOW VERSION").is_empty());
    // With trust anybody may say any name; that is no right either.
    let trusting = Qcp::start("auth: {method: trust}\n", 1);
    let refused = psql(&trusting.tcp(), SUPERUSER, "qcp").args(["-c", "SHOW POOLS"]).finish().failure();
    assert!(refused.contains("may not use the console"), "{refused}");
    // And where another runs the client.
    let shell = format!(
        "setpriv --reuid nobody --clear-groups psql 'host={} port={} user=root dbname=qcp' -c 'SHOW POOLS'",
        qcp.unix().host,
        qcp.unix().port
    );
    let refused = Program::new("sh").args(["-c", &shell]).finish().failure();
    assert!(refused.contains("FATAL"), "{refused}");
}

#[test]
fn rights_come_from_the_lists() {
    postgres().create_database("console_rights");
    let qcp = Qcp::start(USERS, 1);
    let tcp = qcp.tcp();
    assert_eq!(as_user(&tcp, "ann", "secret of ann", "RELOAD").finish().success().trim(), "RELOAD");
    assert!(!as_user(&tcp, "stan", "secret of stan", "SHOW POOLS").finish().success().is_empty());
    for command in ["RELOAD", "PAUSE", "KILL console_rights", "SHUTDOWN", "SET pool.size = 3"] {
        let refused = as_user(&tcp, "stan", "secret of stan", command).finish().failure();
        assert!(refused.contains("admin access needed"), "{command}: {refused}");
    }
    let refused = as_user(&tcp, "bob", "secret of bob", "SHOW POOLS").finish().failure();
    assert!(refused.contains("user \"bob\" may not use the console"), "{refused}");
    for (user, password) in [("ann", "wrong"), ("ann", ""), ("nobody", "any")] {
        let refused = as_user(&tcp, user, password, "SHOW POOLS").finish().failure();
        assert!(!refused.contains("may not use"), "{refused}");
        assert!(refused.contains("password"), "{refused}");
    }
    // Who loses the right loses it at once.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime starts");
    runtime.block_on(async {
        let client = connect(&tcp, "stan", "secret of stan").await;
        client.simple_query("SHOW STATE").await.expect("it may look");
        qcp.reload(&USERS.replace("stats_users: [stan], ", ""));
        let error = client.simple_query("SHOW STATE").await.expect_err("not any more");
        assert_eq!(error.code().map(|code| code.code()), Some("42501"), "{error}");
    });
}

async fn connect(address: &Address, user: &str, password: &str) -> tokio_postgres::Client {
    let conninfo = format!("{} password='{password}'", address.conninfo(user, "pgbouncer"));
    let (client, connection) = tokio_postgres::connect(&conninfo, NoTls).await.expect("the login succeeds");
    tokio::spawn(connection);
    client
}

#[test]
fn tokio_postgres_prepares_and_reads_binary() {
    postgres().create_database("console_tokio");
    let qcp = Qcp::start(USERS, 2);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime starts");
    runtime.block_on(async {
        let client = connect(&qcp.tcp(), "ann", "secret of ann").await;
        let lists = client.query("SHOW LISTS", &[]).await.expect("it is prepared and read");
        let used = lists.iter().find(|row| row.get::<_, &str>("list") == "used_clients").expect("a row");
        assert!(used.get::<_, i32>("items") >= 1);
        let statement = client.prepare("SHOW POOLS").await.expect("it is prepared");
        assert_eq!(statement.columns()[2].type_().name(), "int4");
        for _ in 0..3 {
            let rows = client.query(&statement, &[]).await.expect("rows");
            assert_eq!(rows.last().expect("the console's own").get::<_, &str>("database"), "pgbouncer");
        }
        let stats = client.prepare("SHOW STATS").await.expect("it is prepared");
        assert_eq!(stats.columns()[1].type_().name(), "numeric");
        assert_eq!(client.execute("SET pool.size = 4", &[]).await.expect("it is set"), 0);
        let said = client.simple_query("SHOW CONFIG").await.expect("rows");
        let size = said.iter().find_map(|message| match message {
            SimpleQueryMessage::Row(row) if row.get("key") == Some("pool.size") => row.get("value"),
            _ => None,
        });
        assert_eq!(size, Some("4"));
        let error = client.prepare("SELECT 1").await.expect_err("no command of the console");
        assert_eq!(error.code().map(|code| code.code()), Some("42601"), "{error}");
    });
}

/// What PgBouncer's exporter asks, and how: extra_float_digits at startup, one connection kept.
const EXPORTER: &str = "
import sys, psycopg2
connection = psycopg2.connect(sys.argv[1])
connection.autocommit = sys.argv[2] == 'on'
cursor = connection.cursor()
for query in ['SHOW VERSION', 'SHOW STATS_TOTALS', 'SHOW POOLS', 'SHOW DATABASES', 'SHOW LISTS', 'SHOW CONFIG', 'SHOW CLIENTS']:
    cursor.execute(query + ';')
    names = [column.name for column in cursor.description]
    rows = cursor.fetchall()
    assert rows, query
    print(query, len(names), type(rows[0][-1]).__name__)
connection.commit()
cursor.execute('SHOW STATS_TOTALS')
row = dict(zip([column.name for column in cursor.description], cursor.fetchall()[0]))
print(row['database'], int(row['query_count']))
connection.rollback()
connection.close()
";

#[test]
fn the_exporters_queries_by_psycopg2() {
    postgres().create_database("console_exporter");
    let qcp = Qcp::start("", 1);
    let mut client = RawClient::login(&qcp.tcp(), SUPERUSER, "console_exporter");
    client.query("SELECT 1").expect("served");
    let conninfo = format!("{} options='-c extra_float_digits=2'", qcp.unix().conninfo("exporter", "pgbouncer"));
    for autocommit in ["on", "off"] {
        let program = Program::new("/usr/bin/python3").args(["-c", EXPORTER, &conninfo, autocommit]);
        let said = program.finish().success();
        assert!(said.contains("SHOW STATS_TOTALS 13 Decimal"), "{said}");
        assert!(said.contains("SHOW POOLS 22 "), "{said}");
        assert!(said.trim_end().ends_with("console_exporter 1"), "{said}");
    }
}

#[test]
fn orders_are_done() {
    let server = postgres();
    server.create_database("console_orders");
    let qcp = Qcp::start("", 2);
    let mut client = RawClient::login(&qcp.tcp(), SUPERUSER, "console_orders");
    client.query("BEGIN").expect("served");
    // It waits for the transaction, as PgBouncer's does.
    let pausing = psql(&qcp.unix(), "x", "pgbouncer").args(["-XAtc", "PAUSE console_orders"]).start();
    wait_until("it is paused", Duration::from_secs(5), || {
        value(&qcp, "SHOW DATABASES", "console_orders", "paused") == "1"
    });
    client.query("COMMIT").expect("what was begun is ended");
    assert_eq!(pausing.finish().success().trim(), "PAUSE");
    assert_eq!(server.count_backends("console_orders"), 0);
    client.send(&message(b'Q', &zero_ended("SELECT 'waited'")));
    wait_until("it waits", Duration::from_secs(5), || {
        value(&qcp, "SHOW POOLS", &format!("console_orders|{SUPERUSER}"), "cl_waiting") == "1"
    });
    assert_eq!(console(&qcp, "RESUME console_orders"), ["RESUME"]);
    assert!(client.receive_until_ready().iter().any(|reply| reply.body.ends_with(b"waited")));
    assert_eq!(console(&qcp, "PAUSE"), ["PAUSE"]);
    assert_eq!(console(&qcp, "SHOW STATE"), ["active|no", "paused|yes", "suspended|no"]);
    assert_eq!(console(&qcp, "RESUME"), ["RESUME"]);
    assert_eq!(console(&qcp, "DISABLE console_orders"), ["DISABLE"]);
    assert_eq!(value(&qcp, "SHOW DATABASES", "console_orders", "disabled"), "1");
    let refused = psql(&qcp.tcp(), SUPERUSER, "console_orders").args(["-c", "SELECT 1"]).finish().failure();
    assert!(refused.contains("disabled"), "{refused}");
    assert_eq!(console(&qcp, "ENABLE console_orders"), ["ENABLE"]);
    let before = client.query("SELECT pg_backend_pid()").expect("served");
    client.query("BEGIN").expect("served");
    assert_eq!(console(&qcp, "RECONNECT console_orders"), ["RECONNECT"]);
    let waits = psql(&qcp.unix(), "x", "pgbouncer").args(["-XAtc", "WAIT_CLOSE console_orders"]).start();
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(value(&qcp, "SHOW SERVERS", "S|postgres|console_orders|none|active|127.0.0.1", "close_needed"), "1");
    client.query("COMMIT").expect("served");
    assert_eq!(waits.finish().success().trim(), "WAIT_CLOSE");
    assert_ne!(client.query("SELECT pg_backend_pid()").expect("served"), before);
    // One client alone.
    let mut other = RawClient::login(&qcp.tcp(), SUPERUSER, "console_orders");
    let ids: Vec<String> = console(&qcp, "SHOW CLIENTS")
        .iter()
        .filter(|row| row.contains("|console_orders|"))
        .map(|row| row.split('|').nth(20).expect("a column").to_owned())
        .collect();
    assert_eq!(ids.len(), 2);
    for id in &ids {
        assert_eq!(console(&qcp, &format!("KILL_CLIENT {id}")), ["KILL_CLIENT"]);
    }
    for client in [&mut client, &mut other] {
        assert_eq!(error_field(&client.receive_until_ready()[0].body, b'C'), "57P01");
    }
    let mut third = RawClient::login(&qcp.tcp(), SUPERUSER, "console_orders");
    assert_eq!(console(&qcp, "KILL console_orders"), ["KILL"]);
    assert_eq!(error_field(&third.receive_until_ready()[0].body, b'C'), "57P01");
    for (wrong, words) in [
        ("PAUSE console_nowhere extra", "invalid command"),
        ("SUSPEND", "not supported"),
        ("SHOW FDS", "not supported"),
        ("SHUTDOWN WAIT_FOR_CLIENTS", "not supported"),
        ("SET max_client_conn = 20000", "only at the start"),
        ("SET pool.sise = 3", "pool.sise"),
        ("SET default_pool_size = many", "pool.size"),
        ("PAUSE pgbouncer", "no such database"),
    ] {
        let refused = psql(&qcp.unix(), "x", "pgbouncer").args(["-XAtc", wrong]).finish().failure();
        assert!(refused.contains(words), "{wrong}: {refused}");
    }
    let help = psql(&qcp.unix(), "x", "pgbouncer").args(["-Xc", "SHOW HELP"]).finish();
    assert!(help.stderr.contains("SHOW HELP|CONFIG"), "{help:?}");
}

#[test]
fn keys_are_set_by_either_name() {
    postgres().create_database("console_set");
    let qcp = Qcp::start("pool: {size: 2}\n", 1);
    assert_eq!(console(&qcp, "SET default_pool_size = 1"), ["SET"]);
    assert_eq!(value(&qcp, "SHOW CONFIG", "pool.size", "value"), "1");
    assert_eq!(console(&qcp, "SET query_wait_timeout TO '0.3'"), ["SET"]);
    assert_eq!(value(&qcp, "SHOW CONFIG", "pool.queue_timeout", "value"), "300ms");
    let mut one = RawClient::login(&qcp.tcp(), SUPERUSER, "console_set");
    let mut two = RawClient::login(&qcp.tcp(), SUPERUSER, "console_set");
    one.query("BEGIN").expect("served");
    assert_eq!(two.query("SELECT 1").expect_err("one place").0, "53300");
    assert_eq!(console(&qcp, "RELOAD"), ["RELOAD"]);
    assert_eq!(two.query("SELECT 1").expect("two places again"), ["1"]);
}

#[test]
fn the_names_are_free_without_it() {
    let server = postgres();
    let qcp = Qcp::start("console: off\n", 1);
    let refused = psql(&qcp.unix(), SUPERUSER, "qcp").args(["-c", "SHOW POOLS"]).finish().failure();
    assert!(refused.contains("database \"qcp\" does not exist"), "{refused}");
    server.create_database("qcp");
    let said = psql(&qcp.unix(), SUPERUSER, "qcp").args(["-XAtc", "SELECT 'real'"]).finish().success();
    assert_eq!(said.trim(), "real");
    // With it, a configuration that gives the name away is refused.
    let refused = Setup::new("databases: {pgbouncer: {dbname: qcp}}\n").refused();
    assert!(refused.contains("console"), "{refused}");
    assert!(qcp.reload("").contains("console"));
    assert!(!console(&qcp, "SHOW VERSION").is_empty());
}

#[test]
fn it_ends_the_pooler() {
    postgres().create_database("console_shutdown");
    let mut qcp = Qcp::start("", 2);
    assert_eq!(console(&qcp, "SHUTDOWN"), ["SHUTDOWN"]);
    assert!(qcp.wait().success());
    let mut qcp = Qcp::start("", 2);
    let mut client = RawClient::login(&qcp.tcp(), SUPERUSER, "console_shutdown");
    client.query("BEGIN").expect("served");
    assert_eq!(console(&qcp, "SHUTDOWN WAIT_FOR_SERVERS"), ["SHUTDOWN"]);
    assert_eq!(client.query("SELECT 1").expect("its transaction goes on"), ["1"]);
    client.query("COMMIT").expect("its transaction goes on");
    assert!(qcp.wait().success());
}

#[test]
fn a_crowd_at_the_console_disturbs_nobody() {
    postgres().create_database("console_crowd");
    let qcp = Qcp::start("limits: {max_clients: 2000}\n", 1);
    let mut client = RawClient::login(&qcp.tcp(), SUPERUSER, "console_crowd");
    let many: Vec<RawClient> = (0..300).map(|_| RawClient::login(&qcp.tcp(), SUPERUSER, "console_crowd")).collect();
    // Sixteen may be there; the others are told so.
    let mut visitors: Vec<RawClient> = Vec::new();
    for _ in 0..16 {
        visitors.push(RawClient::login(&qcp.unix(), "x", "qcp"));
    }
    let refused = psql(&qcp.unix(), "x", "qcp").args(["-c", "SHOW STATE"]).finish().failure();
    assert!(refused.contains("too many clients at the console"), "{refused}");
    // Each asks for a lot and reads nothing: a client's queries go on meanwhile.
    for visitor in &mut visitors {
        for _ in 0..40 {
            visitor.send(&message(b'Q', &zero_ended("SHOW CLIENTS")));
        }
    }
    for _ in 0..50 {
        assert_eq!(client.query("SELECT 1").expect("served"), ["1"]);
    }
    for visitor in &mut visitors {
        for _ in 0..40 {
            let replies = visitor.receive_until_ready();
            assert_eq!(replies.iter().filter(|reply| reply.tag == b'D').count(), many.len() + 1 + 16);
        }
    }
    drop(visitors);
    wait_until("they are gone", Duration::from_secs(5), || {
        psql(&qcp.unix(), "x", "qcp").args(["-c", "SHOW STATE"]).finish().status.success()
    });
    qcp.signal(Signal::SIGHUP);
}
