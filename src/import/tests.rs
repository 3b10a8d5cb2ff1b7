//! What each key becomes, whatever its value, and that all that is made loads.

use std::collections::BTreeMap;
use std::io;

use super::*;
use crate::config::Warning;

/// Every key of `[pgbouncer]` in PgBouncer 1.25's documentation and source, and some of before.
const GLOBAL: &[&str] = &[
    "admin_users",
    "application_name_add_host",
    "auth_dbname",
    "auth_file",
    "auth_hba_file",
    "auth_ident_file",
    "auth_ldap_options",
    "auth_pam_confdir",
    "auth_query",
    "auth_type",
    "auth_user",
    "autodb_idle_timeout",
    "cancel_wait_timeout",
    "client_idle_timeout",
    "client_login_timeout",
    "client_tls13_ciphers",
    "client_tls_ca_file",
    "client_tls_cert_file",
    "client_tls_ciphers",
    "client_tls_dheparams",
    "client_tls_ecdhcurve",
    "client_tls_key_file",
    "client_tls_protocols",
    "client_tls_sslmode",
    "conffile",
    "default_pool_size",
    "disable_pqexec",
    "dns_max_ttl",
    "dns_nxdomain_ttl",
    "dns_zone_check_period",
    "idle_transaction_timeout",
    "ignore_startup_parameters",
    "job_name",
    "listen_addr",
    "listen_backlog",
    "listen_port",
    "log_connections",
    "log_disconnections",
    "log_pooler_errors",
    "log_stats",
    "logfile",
    "login_notify_message",
    "max_client_conn",
    "max_db_client_connections",
    "max_db_connections",
    "max_packet_size",
    "max_prepared_statements",
    "max_user_client_connections",
    "max_user_connections",
    "min_pool_size",
    "peer_id",
    "pidfile",
    "pkt_buf",
    "pool_idle_timeout",
    "pool_mode",
    "query_timeout",
    "query_wait_notify",
    "query_wait_timeout",
    "reserve_pool_size",
    "reserve_pool_timeout",
    "resolv_conf",
    "sbuf_loopcnt",
    "scram_iterations",
    "server_check_delay",
    "server_check_query",
    "server_connect_timeout",
    "server_fast_close",
    "server_idle_timeout",
    "server_lifetime",
    "server_login_retry",
    "server_reset_query",
    "server_reset_query_always",
    "server_round_robin",
    "server_tls13_ciphers",
    "server_tls_ca_file",
    "server_tls_cert_file",
    "server_tls_ciphers",
    "server_tls_key_file",
    "server_tls_protocols",
    "server_tls_sslmode",
    "service_name",
    "so_reuseport",
    "stats_period",
    "stats_users",
    "suspend_timeout",
    "syslog",
    "syslog_facility",
    "syslog_ident",
    "tcp_defer_accept",
    "tcp_keepalive",
    "tcp_keepcnt",
    "tcp_keepidle",
    "tcp_keepintvl",
    "tcp_socket_buffer",
    "tcp_user_timeout",
    "track_extra_parameters",
    "transaction_timeout",
    "unix_socket_dir",
    "unix_socket_group",
    "unix_socket_mode",
    "user",
    "verbose",
];

/// Every key of a connect string in `[databases]`.
const DATABASE: &[&str] = &[
    "application_name",
    "auth_dbname",
    "auth_query",
    "auth_user",
    "client_encoding",
    "connect_query",
    "datestyle",
    "dbname",
    "host",
    "load_balance_hosts",
    "max_db_client_connections",
    "max_db_connections",
    "min_pool_size",
    "password",
    "pool_mode",
    "pool_size",
    "port",
    "query_wait_timeout",
    "reserve_pool",
    "reserve_pool_size",
    "server_lifetime",
    "target_session_attrs",
    "timezone",
    "user",
];

/// Every key of an entry of `[users]`.
const USER: &[&str] = &[
    "client_idle_timeout",
    "idle_transaction_timeout",
    "max_user_client_connections",
    "max_user_connections",
    "pool_mode",
    "pool_size",
    "query_timeout",
    "query_wait_timeout",
    "reserve_pool_size",
    "transaction_timeout",
];

const FILE: &str = "pgbouncer.ini";

/// Imports one file, with others beside it.
fn import_files(files: &[(&str, &str)]) -> Import {
    let mut load = |name: &str| {
        let found = files.iter().find(|(file, _)| *file == name);
        found.map(|(_, text)| (*text).to_owned()).ok_or(io::ErrorKind::NotFound.into())
    };
    let import = import(FILE, &mut load, true).unwrap_or_else(|error| panic!("{error}"));
    loaded(&import);
    import
}

fn import_text(text: &str) -> Import {
    import_files(&[(FILE, text)])
}

/// By the real loader, without a warning but the one that nobody is listed, as in PgBouncer without an auth_file.
fn loaded(import: &Import) -> Config {
    let is_expected = |warning: &Warning| warning.to_string().contains("nobody can log in by it");
    match Config::parse("imported", &import.yaml) {
        Ok((config, warnings)) if warnings.iter().all(is_expected) => config,
        other => panic!("{other:?}\n{}", import.yaml),
    }
}

fn verdict<'a>(import: &'a Import, key: &str) -> &'a Verdict {
    let found = import.findings.iter().find(|finding| finding.key == key);
    &found.unwrap_or_else(|| panic!("nothing is said of {key}")).verdict
}

fn said(import: &Import, key: &str) -> String {
    verdict(import, key).to_string()
}

#[test]
fn every_key_of_pgbouncer_is_known_with_every_kind_of_value() {
    let values =
        ["", "0", "1", "30", "2.5", "on", "/etc/x", "transaction", "require", "md5", "a, b", "x'y", "-1", "9e99"];
    for value in values {
        for key in GLOBAL {
            let import = import_text(&format!("[databases]\n* = host=h\n[pgbouncer]\n{key} = {value}\n"));
            assert!(!said(&import, key).contains("not a key"), "{key} = {value}: {}", said(&import, key));
        }
        let value = format!("'{}'", value.replace('\'', "''"));
        for key in DATABASE {
            let import = import_text(&format!("[databases]\nd = {key}={value}\n"));
            let labelled = |finding: &&Finding| finding.key == format!("[databases] d: {key}");
            match import.findings.iter().find(labelled) {
                Some(found) => assert!(!found.to_string().contains("not a parameter"), "{found}"),
                // What servers are made of is told with them.
                None => assert!(matches!(*key, "host" | "port"), "{key}"),
            }
        }
        for key in USER {
            let import = import_text(&format!("[users]\nu = {key}={value}\n"));
            let said = said(&import, &format!("[users] u: {key}"));
            assert!(!said.contains("not a parameter"), "{key} = {value}: {said}");
        }
    }
}

#[test]
fn what_pgbouncer_does_not_know_either_is_asked_about() {
    let import = import_text(
        "[databases]\nd = host=h colour=red\n[users]\nu = size=1\n[pgbouncer]\npool_moed = x\n[odd]\na=b\n",
    );
    for key in ["[databases] d: colour", "[users] u: size", "pool_moed", "[odd] a"] {
        assert!(matches!(verdict(&import, key), Verdict::Decide(_)), "{key}");
    }
    assert_eq!(import.open().count(), 4);
}

/// Without a word PgBouncer does other things than QCP without a word.
#[test]
fn defaults_are_pgbouncers() {
    let config = loaded(&import_text("[databases]\n[pgbouncer]\n"));
    assert_eq!(config.max_clients, 100);
    assert_eq!(config.listen.len(), 1, "PgBouncer listens on its Unix socket only");
    assert_eq!(config.listen[0].to_string(), "unix:/tmp/.s.PGSQL.6432");
    assert_eq!(config.reconnect.connect_timeout.as_secs(), 15);
    assert!(config.pool("any", "one").is_none(), "no * means that only what is listed is served");
    let config = loaded(&import_text("[databases]\n* =\n[pgbouncer]\n"));
    let pool = config.pool("any", "one").expect("* is there");
    assert_eq!(pool.relay_mode, crate::session::RelayMode::Session);
    assert_eq!(pool.servers[0].to_string(), "unix:/tmp");
    assert_eq!(pool.pool.queue_timeout.as_secs(), 120);
    assert_eq!(pool.pool.size, 20);
}

#[test]
fn values_arrive() {
    let import = import_text(
        "[databases]\n\
         * = host=10.0.0.1,10.0.0.2 port=5433 pool_size=7\n\
         \"odd name\" = dbname='it''s' host=/run/pg pool_mode=statement query_wait_timeout=0.5 server_lifetime=0\n\
         v6 = host=2001:db8::1\n\
         [users]\nbatch = pool_mode=session pool_size=3 query_wait_timeout=-1\n\
         [pgbouncer]\n\
         listen_addr = *, 10.1.1.1, ::1, localhost\nlisten_port = 7000\nunix_socket_dir =\n\
         pool_mode = Transaction\nmax_client_conn = 0x200\ndefault_pool_size = 010\nmin_pool_size = 500\n\
         server_idle_timeout = 0\nserver_lifetime = 60\nquery_wait_timeout = 7.25\nserver_login_retry = 0.05\n\
         client_login_timeout = 30\nlogfile = /var/log/pgbouncer.log\nverbose = 1\nauth_type = trust\n",
    );
    let config = loaded(&import);
    let addresses: Vec<String> = config.listen.iter().map(ToString::to_string).collect();
    assert_eq!(addresses, ["0.0.0.0:7000", "[::]:7000", "10.1.1.1:7000", "[::1]:7000", "127.0.0.1:7000"]);
    assert_eq!(config.max_clients, 512);
    assert_eq!(config.log.output, crate::config::LogOutput::File("/var/log/pgbouncer.log".into()));
    assert_eq!(config.log.level, log::LevelFilter::Debug);
    assert_eq!((config.reconnect.min_backoff.as_millis(), config.reconnect.max_backoff.as_millis()), (50, 50));
    assert_eq!(config.login_timeout.as_secs(), 30);
    let pool = |database, user| config.pool(database, user).expect("it is served");
    let any = pool("any", "one");
    assert_eq!(any.rules.method, crate::auth::settings::Method::Trust);
    assert_eq!(any.servers.iter().map(ToString::to_string).collect::<Vec<_>>(), ["10.0.0.1:5433", "10.0.0.2:5433"]);
    assert_eq!((any.pool.size, any.pool.min_size), (7, 7));
    assert_eq!(any.pool.idle_timeout.as_secs(), 0);
    assert_eq!(any.pool.lifetime.as_secs(), 60);
    assert_eq!(any.pool.queue_timeout.as_millis(), 7250);
    assert_eq!(any.relay_mode, crate::session::RelayMode::Smart);
    let odd = pool("odd name", "one");
    assert_eq!(odd.server_database, "it's");
    assert_eq!(odd.servers[0].to_string(), "unix:/run/pg");
    assert_eq!(odd.relay_mode, crate::session::RelayMode::Statement);
    assert_eq!(odd.pool.queue_timeout.as_millis(), 500);
    assert_eq!(odd.pool.lifetime.as_millis(), 1, "PgBouncer's 0 is \"once\"");
    assert_eq!(pool("v6", "one").servers[0].to_string(), "[2001:db8::1]:5432");
    assert_eq!(
        (pool("any", "batch").pool.size, pool("any", "batch").relay_mode),
        (3, crate::session::RelayMode::Session)
    );
}

#[test]
fn what_would_be_another_thing_is_open() {
    let check = |text: &str, key: &str| {
        let import = import_text(&format!("[databases]\n* = host=h\n[pgbouncer]\n{text}\n"));
        let open: Vec<String> = import.open().map(|finding| finding.key.clone()).collect();
        assert_eq!(open, [key], "{text}\n{}", import.yaml);
    };
    check("disable_pqexec = 1", "disable_pqexec");
    check("server_reset_query_always = 1", "server_reset_query_always");
    check("auth_type = pam", "auth_type");
    check("auth_type = any", "auth_type");
    check("listen_addr = db.example.org, 127.0.0.1", "listen_addr");
    check("listen_port = 99999", "listen_port");
    check("unix_socket_dir = @abstract", "unix_socket_dir");
    check("unix_socket_mode = 0700", "unix_socket_mode");
    check("max_client_conn = none", "max_client_conn");
    check("max_db_connections = 50", "max_db_connections");
    check("default_pool_size = 0", "default_pool_size");
    check("resolv_conf = /x", "resolv_conf");
    check("[peers]\n1 = host=/tmp/1", "[peers] 1");
    check("[databases]\npgbouncer = host=h", "[databases] pgbouncer");
    check("[databases]\nd = host=h connect_query='select 1'", "[databases] d: connect_query");
    check("[databases]\nd = host='h", "[databases] d");
    check("[databases]\nd = host=h;rm", "[databases] d");
    check("[databases]\nd = host=@x", "[databases] d");
    check("[users]\n* = pool_mode=session", "[users] *: pool_mode");
}

#[test]
fn what_does_not_matter_is_not() {
    let import = import_text(
        "[databases]\n* = host=h\n[users]\nu =\n[pgbouncer]\npidfile = /x\nuser = postgres\npkt_buf = 2048\n\
         log_stats = 0\nserver_check_query = select 1\nserver_check_delay = 10\nignore_startup_parameters = options\n\
         server_round_robin = 1\ntcp_keepalive = 1\ntcp_keepcnt = 3\nunix_socket_mode = 777\nquery_timeout = 0\n\
         max_db_connections = 0\nreserve_pool_size = 0\nreserve_pool_timeout = 3\ndisable_pqexec = 0\n\
         client_tls_sslmode = disable\nclient_tls_key_file = /k\nserver_reset_query = discard all\nsyslog = 0\n\
         max_packet_size = 2147483647\nstats_period = 60\nadmin_users = a,b\n",
    );
    let open: Vec<String> = import.open().map(ToString::to_string).collect();
    assert!(open.is_empty(), "{open:?}");
}

/// The loader is asked, so this holds whatever it has learned by now.
#[test]
fn a_key_that_the_loader_refuses_is_said_and_is_not_there() {
    let text = "[databases]\n* = host=h\n[pgbouncer]\nquery_timeout = 5\nserver_tls_sslmode = verify-full\n\
                server_tls_ca_file = /no/such/ca\nauth_type = hba\nauth_hba_file = /hba\nreserve_pool_size = 5\n";
    let import = import_files(&[(FILE, text), ("/hba", "host all all 0.0.0.0/0 md5\n")]);
    for (key, target) in [
        ("query_timeout", "limits.query_timeout"),
        ("server_tls_sslmode", "tls.server.mode"),
        ("server_tls_ca_file", "tls.server.ca"),
        ("auth_hba_file", "auth.hba_file"),
        ("reserve_pool_size", "pool.reserve_size"),
    ] {
        let beside = format!("# {key}, line ");
        match verdict(&import, key) {
            Verdict::Mapped { to, .. } => {
                assert_eq!(to, &[target]);
                assert!(import.yaml.contains(&beside), "{key}\n{}", import.yaml);
            }
            Verdict::Later { to, is_open, .. } => {
                assert_eq!(to, &[target]);
                assert!(*is_open && !import.yaml.contains(&beside), "{key}\n{}", import.yaml);
            }
            // It is there, and the file that it names is not.
            Verdict::Decide(reason) => assert!(reason.contains('/'), "{key}: {reason}"),
            Verdict::Ignored(reason) => panic!("{key} is dropped: {reason}"),
        }
    }
}

#[test]
fn the_last_of_a_name_counts_and_the_others_are_said() {
    let import = import_text(
        "[databases]\nd = host=a\nd = host=b dbname=x dbname=y\n[pgbouncer]\npool_mode = session\npool_mode = statement\n",
    );
    let pool = loaded(&import).pool("d", "u").expect("it is listed");
    assert_eq!(pool.servers[0].to_string(), "b:5432");
    assert_eq!(pool.server_database, "y");
    assert_eq!(pool.relay_mode, crate::session::RelayMode::Statement);
    let again = import.findings.iter().filter(|finding| finding.to_string().contains("given again behind it"));
    assert_eq!(again.count(), 3);
}

#[test]
fn passwords_are_in_no_message() {
    let text = "[databases]\nd = host=h user=u password=s3cret\n[pgbouncer]\nauth_file = /users\n";
    let import = import_files(&[(FILE, text), ("/users", "\"a\" \"s3cret\"\n")]);
    let messages: Vec<String> = import.findings.iter().map(ToString::to_string).collect();
    assert!(!messages.join("\n").contains("s3cret"));
    let comments: Vec<&str> = import.yaml.lines().filter_map(|line| line.split_once('#')).map(|(_, c)| c).collect();
    assert!(!comments.join("\n").contains("s3cret"));
}

#[test]
fn the_users_of_a_list_are_counted_and_a_broken_one_is_told() {
    let text = "[databases]\n* = host=h\n[pgbouncer]\nauth_type = plain\nauth_file = /users\n";
    let of = |users: &str| {
        let import = import_files(&[(FILE, text), ("/users", users)]);
        said(&import, "auth_file")
    };
    let whole = of("\"a\" \"x\"\n\"b\" \"SCRAM-SHA-256$1\"\n");
    assert!(whole.contains("2 users (1 plain, 0 md5, 1 SCRAM)") || whole.contains("auth.user_file"), "{whole}");
    let broken = of("\"a\" \"x\"\nb x\n");
    assert!(broken.contains("line 2"), "{broken}");
    let import = import_text(text);
    assert!(said(&import, "auth_file").contains("/users cannot be read"));
}

/// Names with anything in them reach the configuration as they are.
#[test]
fn odd_names_survive() {
    let names = ["null", "true", "1", "a: b", "ü", "x#y", "\u{1f418}", "- a", "é\u{85}", "%x", "'", "{}"];
    let entries: String =
        names.iter().map(|name| format!("\"{}\" = host=h dbname=target\n", name.replace('"', "\"\""))).collect();
    let config = loaded(&import_text(&format!("[databases]\n{entries}")));
    for name in names {
        assert_eq!(config.pool(name, "u").map(|pool| pool.server_database).as_deref(), Some("target"), "{name}");
    }
}

#[test]
fn each_line_of_the_configuration_says_where_it_is_from() {
    let import = import_text("[databases]\nd = host=h pool_size=4\n[pgbouncer]\npool_mode = session\n");
    let expected = [
        ("relay_mode: Session", "pool_mode, line 4"),
        ("size: 4", "[databases] d: pool_size, line 2"),
        ("servers: [\"h:5432\"]", "[databases] d, line 2"),
        ("max_clients: 100", "PgBouncer's default of max_client_conn"),
        ("databases_only: true", "PgBouncer's default of [databases] without *"),
    ];
    let lines: BTreeMap<&str, &str> = import.yaml.lines().filter_map(|line| line.trim().split_once("  # ")).collect();
    for (line, origin) in expected {
        assert_eq!(lines.get(line), Some(&origin), "{}", import.yaml);
    }
}

#[test]
fn the_properties_of_the_fuzzer_hold() {
    let sample =
        b"[databases]\n* = host=a port=b pool_size=0\n\"x\" = user=a\n%include b\n[pgbouncer]\nlisten_addr=*\n";
    for (_, property) in properties::ALL {
        property(sample);
        property(b"\"a\" \"b\"\n\"c");
        property(b"a='b' c=d '");
    }
}
