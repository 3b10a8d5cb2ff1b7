//! What a configuration file may say, and what is said to one that may not.

use proptest::prelude::*;

use super::*;

fn parse(text: &str) -> Config {
    let (config, warnings) = Config::parse("qcp.yaml", text).unwrap_or_else(|error| panic!("{error}\n{text}"));
    assert_eq!(warnings, [], "{text}");
    config
}

fn refusal(text: &str) -> String {
    Config::parse("qcp.yaml", text).map(|_| ()).expect_err(text).to_string()
}

#[test]
fn nothing_said_is_the_defaults() {
    for text in ["", "# nothing\n", "---\n", "{}", "pool:\nlimits: {}\ndatabases:\ncores: ~\n"] {
        assert_eq!(parse(text), parse(""), "{text:?}");
    }
    let config = parse("");
    assert_eq!(config.listen, [Listen::Tcp("0.0.0.0:8080".parse().unwrap())]);
    assert_eq!(config.arena, Arena { chunk_size: 66560, chunks_count: 3150 });
    assert_eq!(config.log, Log { level: log::LevelFilter::Info, output: LogOutput::Stderr, format: LogFormat::Text });
    let pool = config.pool("shop", "alice").unwrap();
    assert_eq!(pool.server_database, "shop");
    assert_eq!(pool.relay_mode, RelayMode::Smart);
    assert_eq!(pool.pool.size, 20);
    assert!(!pool.dedicated);
    assert_eq!(pool.servers[0].to_string(), "127.0.0.1:5432");
}

#[test]
fn every_refusal_names_file_line_key_value_and_what_is_allowed() {
    let check = |text: &str, expected: &str| assert_eq!(refusal(text), expected, "{text}");
    let whole = "a whole number from 1 to 100000";
    let duration = "a duration from 0s to 8784h, such as 100ms, 10s, 5m or 1h";
    let duration_above_0 = "a duration from 1ms to 8784h, such as 100ms, 10s, 5m or 1h";
    let server =
        "\"host:port\", \"[v6 address]:port\", \"unix:/directory\" or \"unix:/directory:port\"; without a port, 5432";

    // Numbers.
    check("\npool:\n  size: -3", &format!("qcp.yaml:3: pool.size: found -3: {whole}"));
    check("pool: {size: 0}", &format!("qcp.yaml:1: pool.size: found 0: {whole}"));
    check("pool: {size: 100001}", &format!("qcp.yaml:1: pool.size: found 100001: {whole}"));
    check("pool: {size: 1.5}", &format!("qcp.yaml:1: pool.size: found 1.5: {whole}"));
    check("pool: {size: \"20\"}", &format!("qcp.yaml:1: pool.size: found \"20\": {whole}"));
    check("pool: {size: true}", &format!("qcp.yaml:1: pool.size: found true: {whole}"));
    check("pool: {size: [1]}", &format!("qcp.yaml:1: pool.size: found a list: {whole}"));
    check("pool: {size: {a: 1}}", &format!("qcp.yaml:1: pool.size: found a map: {whole}"));
    check(
        "pool: {size: 99999999999999999999}",
        &format!("qcp.yaml:1: pool.size: found 100000000000000000000: {whole}"),
    );
    check("cores: 0", "qcp.yaml:1: cores: found 0: a whole number from 1 to 1024");
    check("limits: {max_clients: 0}", "qcp.yaml:1: limits.max_clients: found 0: a whole number from 1 to 1000000");
    check("auth: {check_connections: 0}", "qcp.yaml:1: auth.check_connections: found 0: a whole number from 1 to 1000");

    // Durations and sizes.
    check("pool: {queue_timeout: 10}", &format!("qcp.yaml:1: pool.queue_timeout: found 10: {duration}"));
    check("shutdown_timeout: 1 day", &format!("qcp.yaml:1: shutdown_timeout: found \"1 day\": {duration}"));
    check(
        "limits:\n  login_timeout: 0s",
        &format!("qcp.yaml:2: limits.login_timeout: found \"0s\": {duration_above_0}"),
    );
    check(
        "arena: {total_size: 3.1 TB}",
        "qcp.yaml:1: arena.total_size: found \"3.1 TB\": a number of bytes, or a size such as 64 KB or 3.1 GB (B, KB, MB, GB)",
    );
    check(
        "arena:\n  chunk_size: 5000",
        "qcp.yaml:2: arena.chunk_size: found 5000: a multiple of 1024 from 16384 to 1048576 (bytes)",
    );
    check("arena: {total_size: 1 KB}", "qcp.yaml:1: arena.total_size: found 1 KB: from one chunk, 65 KB, to 1040 GB");
    check("arena: {chunks_count: 0}", "qcp.yaml:1: arena.chunks_count: found 0: a whole number from 1 to 16777216");

    // Words.
    check("relay_mode: Clever", "qcp.yaml:1: relay_mode: found \"Clever\": one of Session, Smart, Statement");
    check("log_level: Loud", "qcp.yaml:1: log_level: found \"Loud\": one of Off, Error, Warn, Info, Debug, Trace");
    check(
        "pool: {schedule: lifo}",
        "qcp.yaml:1: pool.schedule: found \"lifo\": one of round-robin, random, load-balancing",
    );
    check(
        "auth: {method: ask}",
        "qcp.yaml:1: auth.method: found \"ask\": one of server, trust, reject, password, md5, scram-sha-256, scram-sha-256-plus, cert, peer, hba",
    );
    check("databases_only: 1", "qcp.yaml:1: databases_only: found 1: true or false");
    check("session_state: some", "qcp.yaml:1: session_state: found \"some\": one of preserve, none");
    check("log_output: paper", "qcp.yaml:1: log_output: found \"paper\": one of stderr, stdout, syslog, {file: PATH}");
    check("log_format: xml", "qcp.yaml:1: log_format: found \"xml\": one of text, json");
    check(
        "metrics: {address: \"9930\"}",
        "qcp.yaml:1: metrics.address: found \"9930\": \"address:port\" with a numeric address, such as 127.0.0.1:9930 or [::1]:9930",
    );
    check("log_output: {file: \"\"}", "qcp.yaml:1: log_output.file: found \"\": the path of a file");
    check("log_output: {}", "qcp.yaml:1: log_output: lacks the key file");

    // Addresses.
    check("servers: 10.0.0.1", "qcp.yaml:1: servers: found \"10.0.0.1\": a list");
    check("servers: []", "qcp.yaml:1: servers: found an empty list: at least one address");
    check(
        "servers:\n - a\n - \"b:\"",
        &format!("qcp.yaml:3: servers[1]: found \"b:\": {server}; or a map with the key address"),
    );
    check("servers:\n - address: ::1", &format!("qcp.yaml:2: servers[0].address: found \"::1\": {server}"));
    check("servers:\n - {}", "qcp.yaml:2: servers[0]: lacks the key address");
    check("servers:\n - 5432", &format!("qcp.yaml:2: servers[0]: found 5432: {server}; or a map with the key address"));
    check("servers: [a, \"a:5432\"]", "qcp.yaml:1: servers[1]: found \"a:5432\" a second time: each address once");
    check("servers:\n - {address: a, tls: {mode: verify-full}}", "qcp.yaml:2: servers[0].tls: lacks the key ca");
    check(
        "servers:\n - b\n - address: a\n   tls: {mode: some}",
        "qcp.yaml:4: servers[1].tls.mode: found \"some\": one of disable, allow, prefer, require, verify-ca, verify-full",
    );
    check(
        "servers: [{address: a, tls: {mode: prefer, negotiation: direct}}]",
        "qcp.yaml:1: servers[0].tls.negotiation: found direct: postgres, unless mode is require, verify-ca or verify-full",
    );
    check(
        "servers: [{address: a, tls: {modus: require}}]",
        "qcp.yaml:1: servers[0].tls.modus: unknown key; allowed here: mode, ca, certificate, key, sni, negotiation, \
         minimum_version, ciphers, curves",
    );
    check(
        "servers: [{address: 'unix:/run/pg', tls: {mode: require}}]",
        "qcp.yaml:1: servers[0].tls: found it for unix:/run/pg: none: a Unix socket is not encrypted",
    );
    check(
        "databases: {shop: {servers: [{address: a, tls: {mode: verify-ca}}]}}",
        "qcp.yaml:1: databases.shop.servers[0].tls: lacks the key ca",
    );
    check(
        "listening_address: [\"0.0.0.0:1\", \"localhost:8080\"]",
        "qcp.yaml:1: listening_address[1]: found \"localhost:8080\": \"address:port\" with a numeric address (0.0.0.0 and \
         [::] are all of this machine's), \"unix:/directory\" or \"unix:/directory:port\"",
    );
    check("listening_address: []", "qcp.yaml:1: listening_address: found an empty list: at least one address");
    check(
        "databases:\n  shop:\n    servers: [a, a]",
        "qcp.yaml:3: databases.shop.servers[1]: found \"a:5432\" a second time: each address once",
    );

    // Names.
    check(
        "dedicated_users: [1.5]",
        "qcp.yaml:1: dedicated_users[0]: found 1.5: a name (in quotes, if YAML takes it for something else)",
    );
    check(
        "users: {\"*\": {}}",
        "qcp.yaml:1: users.*: found \"*\": a user's name; what is for every user stands at the top level",
    );

    // Keys.
    check("pool:\n  size: 1\n  size: 2", "qcp.yaml:3: pool.size: is there twice");
    check("databases: {a: {}, a: {}}", "qcp.yaml:1: databases.a: is there twice");
    check(
        "pool:\n  sise: 3",
        "qcp.yaml:2: pool.sise: unknown key; did you mean size?; allowed here: size, min_size, reserve_size, reserve_timeout, max_backends, max_queue, queue_timeout, \
         schedule, placement, idle_timeout, lifetime, keepalive_interval, keepalive_timeout, \
         reset_query, max_statements",
    );
    check("control:\n  port: 3", "qcp.yaml:2: control.port: unknown key; allowed here: socket");
    check(
        "databases: {a: {size: 3}}",
        "qcp.yaml:1: databases.a.size: unknown key; allowed here: servers, dbname, route, relay_mode, session_state, transparency, slow_query, pool, limits, tls, auth",
    );
    check("databases: {a: 3}", "qcp.yaml:1: databases.a: found 3: a map of settings");
    check("just a text", "qcp.yaml:1: found \"just a text\": a map of settings");
    check(
        "databases_only: true\ndatabases: {\"*\": {}}",
        "qcp.yaml:1: databases_only: cannot be given together with databases.*, which lists every database",
    );

    // What agrees with nothing else.
    check("pool: {min_size: 21}", "qcp.yaml:1: pool.min_size: found 21: at most pool.size, which is 20 there");
    check(
        "pool: {min_size: 5}\nusers:\n  batch:\n    pool: {size: 3}",
        "qcp.yaml:4: users.batch.pool.size: found 3: at least pool.min_size, which is 5 there",
    );
    check(
        "databases: {shop: {pool: {size: 4}}}\nusers:\n  batch: {pool: {min_size: 5}}",
        "qcp.yaml:3: users.batch.pool.min_size: found 5: at most pool.size, which is 4 there",
    );
    check(
        "reconnect: {min_backoff: 6s}",
        "qcp.yaml:1: reconnect.min_backoff: found 6s: at most max_backoff, which is 5s",
    );
    check(
        "reconnect: {max_backoff: 50ms}",
        "qcp.yaml:1: reconnect.max_backoff: found 50ms: at least min_backoff, which is 100ms",
    );
}

#[test]
fn placement_goes_by_user_then_database() {
    let (config, _) = Config::parse(
        "qcp.yaml",
        "pool: {placement: random}\ndatabases: {a: {pool: {placement: round-robin}}}\n\
         users: {u: {pool: {placement: load-balancing}}}\n",
    )
    .expect("it is valid");
    let placement = |database, user| config.pool(database, user).expect("all are served").pool.placement;
    assert_eq!(placement("b", "v"), pool::Schedule::Random);
    assert_eq!(placement("a", "v"), pool::Schedule::RoundRobin);
    assert_eq!(placement("a", "u"), pool::Schedule::LoadBalancing);
}

#[test]
fn a_route_is_the_primary_where_there_are_several_servers() {
    let text = "servers: [a, {address: b, weight: 3}]\nrole_check_interval: 1s\n\
                databases: {one: {servers: [c]}, two: {route: standby}}\nusers: {u: {route: any}}\n";
    let (config, _) = Config::parse("qcp.yaml", text).unwrap();
    let route = |database, user| config.pool(database, user).unwrap().route;
    assert_eq!((route("x", "v"), route("x", "u")), (pool::Route::Primary, pool::Route::Any));
    assert_eq!((route("one", "v"), route("two", "v"), route("two", "u")), {
        (pool::Route::Any, pool::Route::Standby, pool::Route::Any)
    });
    assert_eq!(config.pool("x", "v").unwrap().weights, [1, 3]);
    assert_eq!(config.role_check_interval, Duration::from_secs(1));
    assert!(refusal("route: split").contains("primary"), "{}", refusal("route: split"));
}

#[test]
fn what_comes_later_is_told_from_what_is_unknown() {
    let error = refusal("hold_prepared_transactions: true");
    assert_eq!(error, "qcp.yaml:1: hold_prepared_transactions: known, comes later");
}

#[test]
fn what_is_not_yaml_says_where() {
    for (text, line) in [("a: [1,\n2", 2), ("a:\n\t- b", 2), ("a: 1\n---\nb: 2", 2), ("a: *nowhere", 1)] {
        let error = Config::parse("qcp.yaml", text).unwrap_err();
        assert!(matches!(error.problem, Problem::Syntax(_)), "{error:?}");
        // The parser names the line where it gave up, or the one before.
        assert!(error.line.is_none_or(|found| found.abs_diff(line) <= 1), "{text}: {error}");
    }
}

#[test]
fn a_file_that_cannot_be_read_is_named() {
    let error = Config::load(Path::new("/nowhere/qcp.yaml")).unwrap_err();
    assert_eq!(error.to_string(), "/nowhere/qcp.yaml: cannot be read: No such file or directory (os error 2)");
}

#[test]
fn the_total_size_of_the_arena_wins_with_a_warning() {
    let text = "arena:\n  chunk_size: 65 KB\n  chunks_count: 3150\n  total_size: 3.1 GB\n";
    let (config, warnings) = Config::parse("qcp.yaml", text).unwrap();
    assert_eq!(config.arena, Arena { chunk_size: 66560, chunks_count: 50009 });
    let warnings: Vec<String> = warnings.iter().map(Warning::to_string).collect();
    assert_eq!(warnings, ["qcp.yaml:3: arena.chunks_count: has no effect, because total_size is there too"]);
}

#[test]
fn the_user_goes_before_the_database_and_the_database_before_everyone() {
    let config = parse(
        "relay_mode: statement
pool: {size: 10, min_size: 1, max_queue: 7, lifetime: 2h}
servers: [a, 'b:1']
databases:
  reports: {servers: ['unix:/run/pg'], dbname: reports_v2, relay_mode: session, pool: {size: 5, max_queue: 8}}
  2024:
  '*': {pool: {size: 6, schedule: Random}}
users:
  batch: {relay_mode: Smart, pool: {size: 3, idle_timeout: 0s}}
dedicated_databases: [audit]
dedicated_users: [2024]
",
    );
    let check = |database, user, mode, size, max_queue, servers: &str, server_database| {
        let found = config.pool(database, user).unwrap();
        let shown: Vec<String> = found.servers.iter().map(ServerAddress::to_string).collect();
        assert_eq!(
            (found.relay_mode, found.pool.size, found.pool.max_queue),
            (mode, size, max_queue),
            "{database} {user}"
        );
        assert_eq!((shown.join(" ").as_str(), found.server_database.as_str()), (servers, server_database));
        assert_eq!(found.pool.min_size, 1);
    };
    use RelayMode::{Session, Smart, Statement};
    check("reports", "alice", Session, 5, 8, "unix:/run/pg", "reports_v2");
    check("reports", "batch", Smart, 3, 8, "unix:/run/pg", "reports_v2");
    // An entry that says nothing is listed all the same: what * says is not for it.
    check("2024", "alice", Statement, 10, 7, "a:5432 b:1", "2024");
    check("shop", "alice", Statement, 6, 7, "a:5432 b:1", "shop");
    check("shop", "batch", Smart, 3, 7, "a:5432 b:1", "shop");
    let pool = config.pool("shop", "batch").unwrap().pool;
    assert_eq!((pool.idle_timeout, pool.schedule), (Duration::ZERO, pool::Schedule::Random));
    assert_eq!(pool.lifetime, Duration::from_secs(7200));
    let dedicated = |database, user| config.pool(database, user).unwrap().dedicated;
    assert_eq!([dedicated("audit", "x"), dedicated("x", "2024"), dedicated("x", "y")], [true, true, false]);
}

#[test]
fn each_server_is_reached_by_the_tls_that_is_said_nearest_to_it() {
    let config = parse(
        "tls: {server: {mode: prefer}}
servers: [{address: a, tls: {mode: require}}, b]
databases:
  plain: {tls: {mode: disable}}
  own: {servers: [{address: a, tls: {mode: allow}}, c], tls: {mode: disable}}
  others: {servers: [{address: a, tls: {mode: allow}}, c]}
",
    );
    let ways = |database: &str| {
        let ways = config.pool(database, "u").expect("served").tls;
        ways.iter().map(|&way| config.server_tls()[way].0.to_string()).collect::<Vec<_>>()
    };
    assert_eq!(ways("any"), ["servers[0].tls", "tls.server"]);
    // A database goes before the top level, a server of its own before that.
    assert_eq!(ways("plain"), ["databases.plain.tls", "databases.plain.tls"]);
    assert_eq!(ways("own"), ["databases.own.servers[0].tls", "databases.own.tls"]);
    assert_eq!(ways("others"), ["databases.others.servers[0].tls", "tls.server"]);
    assert!(config.has_tls() && !parse("servers: [{address: a, tls: {mode: disable}}]").has_tls());
    assert!(parse("servers: [{address: a, tls: {mode: allow}}]").has_tls());
    // What --check goes by is what clients' connections go by.
    let found = config.destinations("any");
    let way = |server: &str, database: &str| {
        let (_, there) = found.iter().find(|(address, _)| address.to_string() == server).expect("it is one");
        let ways = there.iter().filter(|(name, _)| *name == database);
        ways.map(|(_, way)| config.server_tls()[*way].0.to_string()).collect::<Vec<_>>()
    };
    assert_eq!(way("a:5432", "any"), ["servers[0].tls"]);
    assert_eq!(way("a:5432", "own"), ["databases.own.servers[0].tls"]);
    assert_eq!(way("c:5432", "own"), ["databases.own.tls"]);
    assert_eq!(way("b:5432", "any"), ["tls.server"]);
}

#[test]
fn with_databases_only_the_others_are_not_served() {
    let config = parse("databases_only: true\ndatabases: {shop: }");
    assert!(config.pool("shop", "alice").is_some());
    assert!(config.pool("other", "alice").is_none());
}

#[test]
fn a_socket_file_has_the_port_of_the_first_tcp_address() {
    let check = |text, expected: &[&str]| {
        let shown: Vec<String> = parse(text).listen.iter().map(Listen::to_string).collect();
        assert_eq!(shown, expected, "{text}");
    };
    check("listening_address: unix:/run/qcp", &["unix:/run/qcp/.s.PGSQL.8080"]);
    check("listening_address: unix:/run/qcp:6432", &["unix:/run/qcp/.s.PGSQL.6432"]);
    check(
        "listening_address: [unix:/run/qcp, '[::1]:6432', '127.0.0.1:6433']",
        &["unix:/run/qcp/.s.PGSQL.6432", "[::1]:6432", "127.0.0.1:6433"],
    );
}

#[test]
fn the_control_socket_is_where_it_was_put_or_in_one_of_two_places() {
    let check = |configured: Option<&str>, runtime_directory: Option<&str>, expected: &[&str]| {
        let found = control_sockets(configured.map(Path::new), runtime_directory.map(OsStr::new));
        assert_eq!(found, expected.iter().map(PathBuf::from).collect::<Vec<_>>());
    };
    check(None, None, &["/run/qcp/control.sock"]);
    check(None, Some("/run/user/7"), &["/run/qcp/control.sock", "/run/user/7/qcp/control.sock"]);
    check(None, Some("not/absolute"), &["/run/qcp/control.sock"]);
    check(Some("/tmp/c"), Some("/run/user/7"), &["/tmp/c"]);
    assert_eq!(parse("control: {socket: /tmp/c}").control_socket, Some("/tmp/c".into()));
}

#[test]
fn every_server_that_clients_get_to_is_a_destination() {
    let check = |text: &str, expected: &[(&str, &[&str])]| {
        let config = parse(text);
        let found = config
            .destinations("x")
            .into_iter()
            .map(|(to, there)| (to.to_string(), there.into_iter().map(|(database, _)| database).collect::<Vec<_>>()));
        let found: Vec<_> = found.collect();
        let expected: Vec<_> = expected.iter().map(|(to, there)| (to.to_string(), there.to_vec())).collect();
        assert_eq!(found, expected, "{text}");
    };
    check("", &[("127.0.0.1:5432", &["x"])]);
    check("servers: [b, a]", &[("b:5432", &["x"]), ("a:5432", &["x"])]);
    // A database that is called as the one that stands for all others does not hide their servers.
    check("servers: [a]\ndatabases: {x: {servers: [b]}, y: {}}", &[("a:5432", &["x", "y"]), ("b:5432", &["x"])]);
    check("servers: [a]\ndatabases: {y: {servers: [b, a], dbname: x}}", &[("a:5432", &["x"]), ("b:5432", &["x"])]);
    check("servers: [a]\ndatabases: {\"*\": {servers: [b], dbname: z}}", &[("b:5432", &["z"])]);
    check("databases_only: true\ndatabases: {y: {servers: [b]}}", &[("b:5432", &["y"])]);
}

#[test]
fn a_password_for_the_server_may_come_from_the_environment() {
    // Cargo sets this one for every test.
    let config = parse("auth: {method: trust, server_password_env: CARGO_PKG_NAME}");
    let credentials = config.pool("a", "b").expect("served").rules.credentials.expect("there is a password");
    let secret = credentials.secret.as_deref().expect("there is a password");
    assert_eq!(secret.password(), Some(env!("CARGO_PKG_NAME").as_bytes()));
}

#[test]
fn a_verifier_of_too_few_rounds_is_warned_of() {
    let with = |iterations: u32| {
        let secret = format!(
            "SCRAM-SHA-256${iterations}:c2FsdHkgc2FsdCBvZiAxNg==$CCIJZZzXnv9mwyWjT7P0Aux0CacTzV/A6NmCUTRFd6k=:\
             POdC+EK2bxEI6n2OLGyrEy+/EXaMxt+oyS9ZjpZctmk="
        );
        let text = format!("auth: {{method: scram-sha-256, users: {{joe: '{secret}'}}}}");
        let (_, warnings) = Config::parse("qcp.yaml", &text).expect("valid");
        warnings.iter().map(Warning::to_string).collect::<Vec<_>>()
    };
    assert_eq!(with(4095), ["qcp.yaml:1: auth.users: joe: its SCRAM secret has fewer than 4096 iterations"]);
    assert!(with(4096).is_empty());
}

/// Texts that are nearly configurations: keys and values of ours in any order and nesting.
fn nearly_a_configuration() -> impl Strategy<Value = String> {
    let piece = prop::sample::select(vec![
        "pool",
        "size",
        "servers",
        "databases",
        "users",
        "arena",
        "total_size",
        "chunk_size",
        "log_output",
        "file",
        "address",
        "listening_address",
        "auth",
        "*",
        "a",
        ":",
        ": ",
        "\n",
        "\n  ",
        "\n    ",
        "- ",
        "{",
        "}",
        "[",
        "]",
        ", ",
        "10s",
        "3 GB",
        "-1",
        "20",
        "unix:/a",
        "[::1]:1",
        "host:1",
        "~",
        "true",
        "\"",
        "'",
        "#",
        "&x ",
        "*x",
        "!!str ",
        "|",
        ">",
        "---",
        "? ",
        "<<",
    ]);
    prop::collection::vec(piece, 0..40).prop_map(|pieces| pieces.concat())
}

proptest! {
    #[test]
    fn no_text_panics(any: String, near in nearly_a_configuration()) {
        for text in [any, near] {
            match Config::parse("qcp.yaml", &text) {
                Ok((config, _)) => { let _ = config.pool("a", "a"); }
                Err(error) => { let _ = error.to_string(); }
            }
        }
    }
}

#[test]
fn secrets_are_shown_by_no_error_and_no_debug() {
    for text in [
        "auth: {users: {a: [xyzzy]}}",
        "auth: {users: {a: {xyzzy: 1}}}",
        "auth: {users: {a: 424242}}",
        "auth: {users: {a: true}}",
        "auth: {server_password: 424242}",
        "auth: {method: trust, server_password: xyzzy, server_password_env: HOME}",
        "databases: {d: {auth: {server_password: 4242.42}}}",
    ] {
        let said = refusal(text);
        assert!(!said.contains("424") && !said.contains("true,"), "{text}: {said}");
        assert!(!said.split("found").last().is_some_and(|found| found.contains("xyzzy")), "{text}: {said}");
    }
    let text = "auth: {method: trust, users: {a: xyzzy}, server_password: xyzzy}";
    let (config, _) = Config::parse("qcp.yaml", text).unwrap();
    assert!(!format!("{config:?}").contains("xyzzy"));
}

#[test]
fn the_innermost_login_of_qcps_own_counts_and_the_user_list_is_the_last() {
    use crate::auth::settings::Method;
    let text = "auth: {method: md5, server_password: everyone, users: {listed: known}}\n\
                databases: {d: {auth: {server_user: other}}, e: {auth: {method: trust}}}\n\
                users: {u: {auth: {server_password: own, method: reject}}}";
    let (config, _) = Config::parse("qcp.yaml", text).unwrap();
    let check = |database: &str, user: &str, method: Method, name: Option<&str>, password: Option<&str>| {
        let rules = config.pool(database, user).unwrap().rules;
        assert_eq!(rules.method, method, "{database} {user}");
        let credentials = rules.credentials.as_deref();
        assert_eq!(credentials.and_then(|known| known.user.as_deref()), name, "{database} {user}");
        let secret = credentials.and_then(|known| known.secret.as_deref());
        assert_eq!(secret.and_then(|secret| secret.password()), password.map(str::as_bytes), "{database} {user}");
    };
    check("x", "y", Method::Md5, None, Some("everyone"));
    check("d", "y", Method::Md5, Some("other"), None);
    check("e", "y", Method::Trust, None, Some("everyone"));
    check("d", "u", Method::Reject, None, Some("own"));
    let (config, _) = Config::parse("qcp.yaml", "auth: {method: md5, users: {listed: known}}").unwrap();
    let known = |user: &str| config.pool("x", user).unwrap().rules.credentials;
    assert!(known("listed").is_some() && known("unlisted").is_none());
}
