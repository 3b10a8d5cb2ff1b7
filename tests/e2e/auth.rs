//! Logins that QCP checks itself, and its own logins to servers: method, secret and outcome in a table.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use super::support::pooler::{Qcp, Setup};
use super::support::postgres::{ROLES, Role, SUPERUSER, postgres};
use super::support::programs::psql;
use super::support::raw::{PATIENCE, PROTOCOL_3_0, RawClient, Received, error_field, message, startup};
use super::support::{Address, free_port, proc, wait_until};

const ASK: &str = "SELECT current_user, current_database()";

/// Logs in with psql; `Ok` is what it printed, `Err` what it complained of.
fn login(address: &Address, user: &str, database: &str, password: &str) -> Result<String, String> {
    let psql = psql(address, user, database).args(["-XAt", "-w", "-c", ASK]);
    let finished = psql.env("PGPASSWORD", password).finish();
    if finished.status.success() { Ok(finished.stdout.trim().to_owned()) } else { Err(finished.stderr) }
}

/// The SQLSTATE that a login ends with, which psql does not show; empty where it ends well.
fn code(address: &Address, user: &str, database: &str, password: &str) -> String {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime starts");
    runtime.block_on(async {
        let conninfo = format!("{} password='{password}'", address.conninfo(user, database));
        match tokio_postgres::connect(&conninfo, tokio_postgres::NoTls).await {
            Ok((client, connection)) => {
                let connection = tokio::spawn(connection);
                let outcome = client.simple_query("SELECT 1").await;
                drop(client);
                let _ = connection.await;
                outcome.err().map_or_else(String::new, |error| shown(&error))
            }
            Err(error) => shown(&error),
        }
    })
}

fn shown(error: &tokio_postgres::Error) -> String {
    error.code().map_or_else(|| error.to_string(), |code| code.code().to_owned())
}

fn role(method: &str) -> &'static Role {
    ROLES.iter().find(|role| role.method == method).expect("listed")
}

/// What PostgreSQL itself keeps of a role's password.
fn stored(role: &Role) -> String {
    let statement = format!("SELECT rolpassword FROM pg_authid WHERE rolname = '{}'", role.name);
    postgres().execute("postgres", &statement).trim().to_owned()
}

/// A file that is gone at the end of the test.
struct Scrap(PathBuf);

impl Scrap {
    fn new(name: &str, text: &str) -> Scrap {
        let path = std::env::temp_dir().join(format!("qcp-auth-{}-{name}", std::process::id()));
        fs::write(&path, text).expect("the temporary folder is writable");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("the file is ours");
        Scrap(path)
    }

    fn path(&self) -> String {
        self.0.display().to_string()
    }
}

impl Drop for Scrap {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

/// Right, wrong, empty and unknown, over TCP and a Unix socket, each twice: the second may be answered from memory.
fn check_outcomes(qcp: &Qcp, role: &Role, database: &str, may_be_right: bool, what: &str) {
    for address in [qcp.tcp(), qcp.unix()] {
        for _ in 0..2 {
            let right = login(&address, role.name, database, role.password);
            let denied = |said: &Result<String, String>, user: &str| {
                let text = format!("password authentication failed for user \"{user}\"");
                said.as_ref().is_err_and(|said| said.contains(&text))
            };
            match may_be_right {
                true => assert_eq!(right, Ok(format!("{}|{database}", role.name)), "{what}"),
                false => assert!(denied(&right, role.name), "{what}: {right:?}"),
            }
            let wrong = login(&address, role.name, database, "a wrong guess");
            assert!(denied(&wrong, role.name), "{what}: {wrong:?}");
            let unknown = login(&address, "nobody_of_that_name", database, role.password);
            assert!(denied(&unknown, "nobody_of_that_name"), "{what}: {unknown:?}");
        }
    }
}

/// The table: how QCP asks, what it knows, and how the server asks QCP.
fn check_table(mode: &str, database: &str) {
    postgres().create_database(database);
    for asked in ["password", "md5", "scram-sha-256"] {
        for (server, known) in [
            ("trust", "plain"),
            ("password", "plain"),
            ("md5", "plain"),
            ("md5", "hash"),
            ("scram-sha-256", "plain"),
            // QCP has no plaintext: the keys of the client's login open the backends.
            ("scram-sha-256", "verifier"),
        ] {
            let role = role(server);
            let secret = match known {
                "plain" => role.password.to_owned(),
                _ => stored(role),
            };
            let users = format!("users: {{{}: '{secret}'}}", role.name);
            let yaml = format!(
                "relay_mode: {mode}\npool: {{size: 2}}\nauth: {{method: {asked}, failed_logins_max: 0, {users}}}\n"
            );
            let qcp = Qcp::start(&yaml, 1);
            // Nothing but md5 itself, or the password, can be checked by an md5 hash.
            let possible = !(asked == "scram-sha-256" && known == "hash");
            check_outcomes(&qcp, role, database, possible, &format!("{mode}: {asked}, {known}, server: {server}"));
        }
    }
    wait_until("the poolers' backends are gone", Duration::from_secs(10), || postgres().count_backends(database) == 0);
}

#[test]
fn every_method_with_every_secret_in_smart_mode() {
    check_table("Smart", "auth_table_smart");
}

#[test]
fn every_method_with_every_secret_in_session_mode() {
    check_table("Session", "auth_table_session");
}

#[test]
fn a_pool_with_credentials_opens_its_own_backends() {
    postgres().create_database("auth_refill");
    let role = role("scram-sha-256");
    // With `preserve` its client leaves while the server is asked what the session has changed; that costs no backend.
    for (name, secret, state) in [
        ("plain", role.password.to_owned(), "none"),
        ("verifier", stored(role), "none"),
        ("verifier", stored(role), "preserve"),
    ] {
        let users = format!("users: {{{}: '{secret}'}}", role.name);
        let qcp = Qcp::start(
            &format!("session_state: {state}\npool: {{size: 3}}\nauth: {{method: scram-sha-256, {users}}}\n"),
            1,
        );
        let slow =
            "BEGIN; SELECT pg_sleep(0.3); SELECT count(*) FROM pg_stat_activity WHERE datname = 'auth_refill'; END";
        let started = Instant::now();
        std::thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    let client = psql(&qcp.tcp(), role.name, "auth_refill").args(["-XAt", "-w", "-c", slow]);
                    client.env("PGPASSWORD", role.password).finish().success();
                });
            }
        });
        assert!(started.elapsed() < Duration::from_secs(5), "{name}");
        assert_eq!(postgres().count_backends("auth_refill"), 3, "{name}, {state}: one login brought one backend only");
        drop(qcp);
        wait_until("its backends are gone", Duration::from_secs(10), || postgres().count_backends("auth_refill") == 0);
    }
}

#[test]
fn keys_that_do_not_fit_the_server_say_so() {
    postgres().create_database("auth_mismatch");
    let role = role("scram-sha-256");
    // The same password, with another salt.
    let statement = "SET password_encryption = 'scram-sha-256'; CREATE ROLE salted_otherwise LOGIN PASSWORD \
                     'salted and peppered'; SELECT rolpassword FROM pg_authid WHERE rolname = 'salted_otherwise'";
    let other = postgres().execute("postgres", statement);
    let users = format!("users: {{{}: '{}'}}", role.name, other.trim());
    let qcp = Qcp::start(&format!("auth: {{method: scram-sha-256, {users}}}\n"), 1);
    let said = login(&qcp.tcp(), role.name, "auth_mismatch", role.password).expect_err("the keys are of no use");
    assert!(said.contains("asks a password that qcp does not keep"), "{said}");
    assert_eq!(code(&qcp.tcp(), role.name, "auth_mismatch", role.password), "08006");
    assert!(qcp.log().contains("another salt or count"), "{}", qcp.log());
}

#[test]
fn a_wrong_password_for_the_server_says_which_login_failed() {
    for method in ["password", "md5", "scram-sha-256"] {
        let role = role(method);
        let auth = format!("method: trust, server_user: {}, server_password: 'not it'", role.name);
        let qcp = Qcp::start(&format!("auth: {{{auth}}}\n"), 1);
        let said = login(&qcp.tcp(), "anybody", "postgres", "").expect_err("the server refuses");
        assert_eq!(code(&qcp.tcp(), "anybody", "postgres", ""), "28P01");
        assert!(said.contains(&format!("qcp could not log in to the server as \"{}\"", role.name)), "{said}");
    }
}

#[test]
fn the_server_may_know_clients_by_another_name() {
    postgres().create_database("auth_renamed");
    let role = role("scram-sha-256");
    let file = Scrap::new("password", &format!("{}\n", role.password));
    let by_file = format!("server_password_file: '{}'", file.path());
    let by_text = format!("server_password: '{}'", role.password);
    for given in [by_file, by_text] {
        let yaml = format!(
            "databases: {{shown: {{dbname: auth_renamed, auth: {{server_user: {}, {given}}}}}}}\n\
             auth: {{method: md5, users: {{app: its own}}}}\n",
            role.name
        );
        let qcp = Qcp::start(&yaml, 1);
        let expected = Ok(format!("{}|auth_renamed", role.name));
        assert_eq!(login(&qcp.tcp(), "app", "shown", "its own"), expected);
        assert!(login(&qcp.tcp(), "app", "shown", role.password).is_err());
        // Not under the server's name: that is nobody here.
        assert!(login(&qcp.tcp(), role.name, "shown", role.password).is_err());
    }
}

#[test]
fn a_client_with_a_backend_of_its_own_is_checked_first() {
    postgres().create_database("auth_dedicated");
    let role = role("scram-sha-256");
    for secret in [role.password.to_owned(), stored(role)] {
        let qcp = Qcp::start(
            &format!(
                "dedicated_databases: [auth_dedicated]\nauth: {{method: scram-sha-256, users: {{{}: '{secret}'}}}}\n",
                role.name
            ),
            1,
        );
        check_outcomes(&qcp, role, "auth_dedicated", true, "dedicated");
        let wrong = login(&qcp.tcp(), role.name, "no_such_database", role.password).expect_err("there is none");
        assert!(wrong.contains("does not exist"), "{wrong}");
        assert_eq!(code(&qcp.tcp(), role.name, "no_such_database", role.password), "3D000");
    }
}

#[test]
fn the_users_own_level_goes_before_the_databases() {
    let role = role("trust");
    let yaml = format!(
        "databases: {{postgres: {{auth: {{method: reject}}}}}}\nusers: {{{0}: {{auth: {{method: trust}}}}}}\n\
         auth: {{method: scram-sha-256, users: {{{0}: x}}}}\n",
        role.name
    );
    let qcp = Qcp::start(&yaml, 1);
    assert!(login(&qcp.tcp(), role.name, "postgres", "").is_ok());
    let said = login(&qcp.tcp(), SUPERUSER, "postgres", "").expect_err("rejected");
    assert!(said.contains("reject"), "{said}");
    assert_eq!(code(&qcp.tcp(), SUPERUSER, "postgres", ""), "28000");
    let said = login(&qcp.tcp(), SUPERUSER, "template1", "").expect_err("asked for a password");
    assert!(!said.contains("reject"), "{said}");
}

#[test]
fn a_user_list_of_pgbouncer_is_taken_as_it_is() {
    postgres().create_database("auth_userlist");
    let (scram, md5, password) = (role("scram-sha-256"), role("md5"), role("password"));
    let text = format!(
        "; made by hand\n\"{}\" \"{}\"\n\"{}\" \"{}\" \"\"\n\"{}\" \"{}\"\n",
        scram.name,
        stored(scram),
        md5.name,
        stored(md5),
        password.name,
        password.password
    );
    let file = Scrap::new("userlist.txt", &text);
    let qcp = Qcp::start(&format!("auth: {{method: md5, user_file: '{}'}}\n", file.path()), 1);
    for role in [scram, md5, password] {
        check_outcomes(&qcp, role, "auth_userlist", true, role.name);
    }
    assert!(!qcp.log().contains(password.password), "a password is in the log");

    let broken = Scrap::new("broken.txt", "\"a\" \"b\"\nhunter2\n");
    let said = Setup::new(&format!("auth: {{method: md5, user_file: '{}'}}\n", broken.path())).refused();
    assert!(said.contains("broken.txt: line 2") && !said.contains("hunter2"), "{said}");
}

#[test]
fn rules_of_access_decide_as_in_postgresql() {
    postgres().create_database("auth_hba");
    let scram = role("scram-sha-256");
    let me = nix::unistd::User::from_uid(nix::unistd::geteuid()).ok().flatten().expect("we have a name").name;
    let ident = Scrap::new("ident.conf", &format!("# who may be whom\nadmins {me} postgres\nadmins /^(.*)x$ \\1\n"));
    let hba = Scrap::new(
        "hba.conf",
        &format!(
            "local all {SUPERUSER} peer map=admins\nlocal all trust_user peer\n\
             host auth_hba {} 127.0.0.0/8 scram-sha-256\nhost template1 all samehost reject\n\
             host sameuser all 127.0.0.1 255.255.255.255 trust\nhostssl all all all trust\n",
            scram.name
        ),
    );
    let yaml = format!(
        "auth: {{method: hba, hba_file: '{}', ident_file: '{}', users: {{{}: '{}'}}}}\n",
        hba.path(),
        ident.path(),
        scram.name,
        scram.password
    );
    let qcp = Qcp::start(&yaml, 1);
    // The kernel says who runs psql.
    assert_eq!(login(&qcp.unix(), SUPERUSER, "auth_hba", ""), Ok(format!("{SUPERUSER}|auth_hba")));
    let said = login(&qcp.unix(), "trust_user", "auth_hba", "").expect_err("another name");
    assert!(said.contains("Peer authentication failed for user \"trust_user\""), "{said}");

    check_over_tcp(&qcp, scram);
    let said = login(&qcp.tcp(), SUPERUSER, "template1", "").expect_err("rejected");
    assert!(said.contains("pg_hba.conf rejects connection"), "{said}");
    assert_eq!(code(&qcp.tcp(), SUPERUSER, "template1", ""), "28000");
    let said = login(&qcp.tcp(), SUPERUSER, "auth_hba", "").expect_err("no rule");
    assert!(said.contains("no pg_hba.conf entry for host \"127.0.0.1\""), "{said}");
    assert_eq!(code(&qcp.tcp(), SUPERUSER, "auth_hba", ""), "28000");
    assert_eq!(login(&qcp.tcp(), SUPERUSER, SUPERUSER, ""), Ok(format!("{SUPERUSER}|{SUPERUSER}")));

    let wrong = Scrap::new("wrong.conf", "local all all trust\nhost all all all ldap ldapserver=x\n");
    let said = Setup::new(&format!("auth: {{method: hba, hba_file: '{}'}}\n", wrong.path())).refused();
    assert!(said.contains("wrong.conf:2: ldap: qcp does not have this method"), "{said}");
}

fn check_over_tcp(qcp: &Qcp, role: &Role) {
    assert_eq!(login(&qcp.tcp(), role.name, "auth_hba", role.password), Ok(format!("{}|auth_hba", role.name)));
    let said = login(&qcp.tcp(), role.name, "auth_hba", "a wrong guess").expect_err("it is wrong");
    assert!(said.contains("password authentication failed"), "{said}");
    assert_eq!(code(&qcp.tcp(), role.name, "auth_hba", "a wrong guess"), "28P01");
}

#[test]
fn peer_alone_asks_the_kernel() {
    let qcp = Qcp::start("auth: {method: peer}\n", 1);
    let said = login(&qcp.unix(), "nobody_of_that_name", "postgres", "").expect_err("we are somebody else");
    assert!(said.contains("Peer authentication failed"), "{said}");
    assert_eq!(code(&qcp.tcp(), SUPERUSER, "postgres", "x"), "28000");
}

#[test]
fn tokio_postgres_logs_in_by_each_method() {
    postgres().create_database("auth_tokio");
    let role = role("scram-sha-256");
    for method in ["password", "md5", "scram-sha-256"] {
        let users = format!("users: {{{}: '{}'}}", role.name, role.password);
        let qcp = Qcp::start(&format!("auth: {{method: {method}, {users}}}\n"), 1);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime starts");
        runtime.block_on(async {
            for (password, right) in [(role.password, true), ("a wrong guess", false)] {
                let conninfo = format!("{} password='{password}'", qcp.tcp().conninfo(role.name, "auth_tokio"));
                let connected = tokio_postgres::connect(&conninfo, tokio_postgres::NoTls).await;
                assert_eq!(connected.is_ok(), right, "{method}");
                if let Err(error) = &connected {
                    let code = error.code().map(|code| code.code());
                    assert_eq!(code, Some("28P01"), "{method}");
                }
                let Ok((client, connection)) = connected else { continue };
                tokio::spawn(async move {
                    let _ = connection.await;
                });
                let row = client.query_one("SELECT current_user::text", &[]).await.expect("it is there");
                assert_eq!(row.get::<_, &str>(0), role.name);
            }
        });
    }
}

/// What a client gets that logs in with this packet for a password.
fn answer_to(qcp: &Qcp, user: &str, answer: &[u8]) -> (String, String) {
    let mut client = RawClient::connect(&qcp.tcp());
    client.send(&startup(PROTOCOL_3_0, &[("user", user), ("database", "postgres")]));
    let Received::Message(question) = client.receive(PATIENCE) else { panic!("no question") };
    assert_eq!(question.tag, b'R', "{question:?}");
    client.send(answer);
    let Received::Message(refusal) = client.receive(PATIENCE) else { panic!("no answer") };
    assert_eq!(refusal.tag, b'E', "{refusal:?}");
    (error_field(&refusal.body, b'C'), error_field(&refusal.body, b'M'))
}

#[test]
fn junk_in_an_exchange_is_answered_and_leaves_no_slot_behind() {
    let auth = "failed_logins_max: 0, users: {app: its own}";
    let qcp = Qcp::start(&format!("limits: {{max_clients: 5}}\nauth: {{method: scram-sha-256, {auth}}}\n"), 1);
    for (answer, code) in [
        (message(b'p', b"SCRAM-SHA-256\0\0\0\0\x02n,"), "08P01"),
        (message(b'p', b"SCRAM-SHA-1\0\0\0\0\x03n,,"), "08P01"),
        (message(b'p', b"SCRAM-SHA-256\0\xff\xff\xff\xff"), "08P01"),
        (message(b'p', b"no zero"), "08P01"),
        (message(b'p', b"SCRAM-SHA-256\0\0\0\0\x11n,a=root,n=,r=abc"), "0A000"),
        (message(b'Q', b"SELECT 1\0"), "08P01"),
        (b"p\x7f\xff\xff\xff".to_vec(), "08P01"),
        (b"p\0\0\0\x01".to_vec(), "08P01"),
    ] {
        for _ in 0..10 {
            let (said, text) = answer_to(&qcp, "app", &answer);
            assert_eq!(said, code, "{}: {text}", answer.escape_ascii());
        }
    }
    // Half a handshake, and gone.
    for _ in 0..20 {
        let mut client = RawClient::connect(&qcp.tcp());
        client.send(&startup(PROTOCOL_3_0, &[("user", "app"), ("database", "postgres")]));
        let _ = client.receive(PATIENCE);
        client.send(b"p\0\0\0\x40SCRAM");
    }
    wait_until("their slots are back", Duration::from_secs(5), || {
        login(&qcp.tcp(), "app", "postgres", "wrong").is_err_and(|said| said.contains("password authentication failed"))
    });
}

#[test]
fn failed_logins_wait_and_are_refused_and_logged_once() {
    let qcp = Qcp::start("auth: {method: md5, failed_logins_max: 6, users: {app: its own}}\n", 1);
    let wrong = || answer_to(&qcp, "app", &message(b'p', b"md50123\0"));
    for _ in 0..3 {
        assert_eq!(wrong().0, "28P01");
    }
    let started = Instant::now();
    for _ in 0..3 {
        assert_eq!(wrong().0, "28P01");
    }
    assert!(started.elapsed() > Duration::from_millis(700), "it gets slower: {:?}", started.elapsed());
    let mut client = RawClient::connect(&qcp.tcp());
    client.send(&startup(PROTOCOL_3_0, &[("user", "app"), ("database", "postgres")]));
    let Received::Message(refusal) = client.receive(PATIENCE) else { panic!("no answer") };
    assert_eq!(error_field(&refusal.body, b'C'), "28000");
    assert!(error_field(&refusal.body, b'H').contains("auth.failed_logins_max"));
    // Another way in is not closed.
    assert!(
        login(&qcp.unix(), "app", "postgres", "wrong")
            .is_err_and(|said| said.contains("password authentication failed"))
    );
    let lines = qcp.log().lines().filter(|line| line.contains("INFO") && line.contains("(failed login")).count();
    // The first of the address, the one with which it is refused, and the first of the Unix socket.
    assert_eq!(lines, 3, "{}", qcp.log());
}

/// A login that the server checks, with a guess for a password: what it ends with, and after how long.
fn guess_at_the_server(qcp: &Qcp, user: &str, database: &str) -> (String, String, Duration) {
    let since = Instant::now();
    let mut client = RawClient::connect(&qcp.tcp());
    client.send(&startup(PROTOCOL_3_0, &[("user", user), ("database", database)]));
    client.send(&message(b'p', b"a wrong guess\0"));
    let said = client.receive_until_ready();
    let refusal = said.iter().find(|message| message.tag == b'E').unwrap_or_else(|| panic!("{said:?}\n{}", qcp.log()));
    (error_field(&refusal.body, b'C'), error_field(&refusal.body, b'M'), since.elapsed())
}

#[test]
fn failed_logins_that_the_server_checks_wait_and_are_refused_too() {
    postgres().create_database("auth_relayed_failures");
    let limit = 7;
    for (cores, more) in [(1, ""), (2, ""), (2, "dedicated_databases: [auth_relayed_failures]\n")] {
        let qcp = Qcp::start(&format!("pool: {{size: 2}}\nauth: {{failed_logins_max: {limit}}}\n{more}"), cores);
        let mut took = Vec::new();
        for count in 1..=limit {
            let (code, text, waited) = guess_at_the_server(&qcp, "password_user", "auth_relayed_failures");
            // The server's own words, however late.
            assert_eq!(
                (code.as_str(), text.as_str()),
                ("28P01", "password authentication failed for user \"password_user\"")
            );
            took.push(waited);
            // While it waits, nobody at the server does.
            assert!(postgres().count_backends("auth_relayed_failures") <= 1, "{count}");
            // The other shards hear of it by message.
            std::thread::sleep(Duration::from_millis(20));
        }
        for (count, least) in [(3, 100), (4, 200), (5, 400), (6, 800)] {
            assert!(took[count] >= Duration::from_millis(least), "{cores} cores: {took:?}");
        }
        // Over all shards, whichever they come to; and not even the right password is tried.
        for _ in 0..10 {
            assert_eq!(guess_at_the_server(&qcp, "password_user", "auth_relayed_failures").0, "28000");
        }
        let said = login(&qcp.tcp(), "password_user", "auth_relayed_failures", "in the clear");
        assert!(said.as_ref().is_err_and(|said| said.contains("logins from this address have failed")), "{said:?}");
        assert!(login(&qcp.unix(), "password_user", "auth_relayed_failures", "in the clear").is_ok());
        let lines: Vec<String> = qcp
            .log()
            .lines()
            .filter(|line| line.contains("INFO") && line.contains("failed"))
            .map(str::to_owned)
            .collect();
        // The first, and the one from which on they are refused: each is counted, and logged, by the shard it came to.
        let counted = lines.iter().filter(|line| line.contains("(failed login")).count();
        assert_eq!(counted, 2, "{}", qcp.log());
        wait_until("the poolers' backends are gone", Duration::from_secs(10), || {
            postgres().count_backends("auth_relayed_failures") <= 1
        });
    }
}

/// Whom the server turns away without asking is one who fails, too; what it lacks is nobody's failure, and logged once.
#[test]
fn what_the_server_refuses_is_counted_by_what_it_says() {
    let qcp = Qcp::start("auth: {failed_logins_max: 3}\n", 1);
    for _ in 0..8 {
        let (code, ..) = guess_at_the_server(&qcp, SUPERUSER, "no_database_of_that_name");
        assert_eq!(code, "3D000");
    }
    let lines = |text: &str| qcp.log().lines().filter(|line| line.contains("INFO") && line.contains(text)).count();
    assert_eq!(lines("no_database_of_that_name"), 1, "{}", qcp.log());
    // A login that goes well takes one of the failures back.
    assert_eq!(guess_at_the_server(&qcp, "password_user", "postgres").0, "28P01");
    assert_eq!(guess_at_the_server(&qcp, "password_user", "postgres").0, "28P01");
    assert!(login(&qcp.tcp(), "password_user", "postgres", "in the clear").is_ok());
    assert_eq!(guess_at_the_server(&qcp, "rejected_user", "postgres").0, "28000");
    let (code, text, _) = guess_at_the_server(&qcp, "rejected_user", "postgres");
    assert!(code == "28000" && text.contains("pg_hba.conf rejects connection"), "{text}");
    let (code, text, _) = guess_at_the_server(&qcp, "rejected_user", "postgres");
    assert!(code == "28000" && text.contains("logins from this address have failed"), "{text}");
}

#[test]
fn a_configuration_that_cannot_be_meant_is_refused() {
    let check = |yaml: &str, expected: &str| {
        let said = Setup::new(yaml).refused();
        assert!(said.contains(expected), "{yaml}: {said}");
    };
    check("auth: {method: hba}\n", "auth.hba_file must name the file");
    check("auth: {server_user: x}\n", "a method other than server");
    check("users: {a: {auth: {server_user: x}}}\n", "users.a.auth.server_user");
    check("auth: {method: trust, server_password: a, server_password_env: B}\n", "cannot be given together");
    check("auth: {method: trust, server_password_env: NO_SUCH_VARIABLE_OF_QCP}\n", "a variable of the environment");
    check("auth: {method: trust, server_password_file: /nonexistent/x}\n", "cannot be read");
    check("auth: {method: trust, server_password: 12345}\n", "a secret in quotes");
    check("auth: {method: md5, query: 'SELECT 1'}\n", "auth.query_user must say who asks");
    check("auth: {method: md5, query: 'SELECT 1', query_user: x}\n", "a query with $1");
    let verifier = stored(role("scram-sha-256"));
    check(&format!("auth: {{method: trust, server_password: '{verifier}'}}\n"), "a verifier cannot log in");
}

#[test]
fn a_password_is_in_no_log_and_no_error() {
    let yaml = "log_level: Trace\nauth: {method: password, users: {app: xyzzy-1}, server_user: scram_user, \
                server_password: xyzzy-2}\n";
    let qcp = Qcp::start(yaml, 1);
    assert!(login(&qcp.tcp(), "app", "postgres", "xyzzy-3").is_err());
    assert!(login(&qcp.tcp(), "app", "postgres", "xyzzy-1").is_err(), "the server's is wrong");
    assert!(!qcp.log().contains("xyzzy"), "{}", qcp.log());
    let said = Setup::new("auth: {method: trust, server_password: [xyzzy-4]}\n").refused();
    assert!(!said.contains("xyzzy"), "{said}");
}

/// A password is nowhere in QCP's memory when the login is over: neither in what was received nor in what was sent.
#[test]
fn nothing_is_left_of_a_password() {
    const RIGHT: &[u8] = b"in the clear";
    const WRONG: &[u8] = b"wrong, and typed by hand";
    let verifier = "SCRAM-SHA-256$4096:W22ZaJ0SNY7soEsUEjb6gQ==$WG5d8oPm3OtcPnkdi4Uo7BkeZkBFzpcXkuLmtbsT4qY=:\
                    wfPLwcE6nTWhTAmQ7tl2KeoiWGPlZqQxSrmfPwDl2dU=";
    for auth in [
        // Relayed.
        "method: server".to_owned(),
        "method: server, failed_logins_max: 0}\ndedicated_databases: [postgres]\nlimits: {login_timeout: 60s"
            .to_owned(),
        // Checked here: by a hash, and by a verifier.
        format!("method: password, users: {{password_user: '{}'}}", md5_of("password_user", RIGHT)),
        format!("method: password, users: {{password_user: '{verifier}'}}, server_user: postgres"),
    ] {
        let qcp = Qcp::start(&format!("auth: {{{auth}}}\n"), 1);
        for password in [WRONG, RIGHT] {
            for pieces in [1, 2] {
                let mut client = RawClient::connect(&qcp.tcp());
                client.send(&startup(PROTOCOL_3_0, &[("user", "password_user"), ("database", "postgres")]));
                let Received::Message(question) = client.receive(PATIENCE) else { panic!("no question") };
                assert_eq!(question.tag, b'R');
                let answer = message(b'p', &[password, b"\0"].concat());
                let size = answer.len().div_ceil(pieces);
                for piece in answer.chunks(size) {
                    client.send(piece);
                    std::thread::sleep(Duration::from_millis(30));
                }
                client.receive_until_ready();
                // What stands behind the half that is cut off tells less than all of it.
                let end = &password[password.len() - 8..];
                wait_until("nothing is left of it", Duration::from_secs(5), || {
                    proc::count_in_memory(qcp.pid(), end) == 0
                });
            }
        }
    }
    // One that QCP logs in with is there as often after that as before.
    let file = Scrap::new("left", "in the clear\n");
    let auth = format!("method: trust, server_user: password_user, server_password_file: '{}'", file.path());
    let qcp = Qcp::start(&format!("auth: {{{auth}}}\n"), 1);
    let before = proc::count_in_memory(qcp.pid(), RIGHT);
    assert!(before > 0, "it is looked for where it is");
    assert!(login(&qcp.tcp(), "anybody", "postgres", "").is_ok());
    wait_until("no more of it", Duration::from_secs(5), || proc::count_in_memory(qcp.pid(), RIGHT) <= before);
}

/// As PostgreSQL keeps it.
fn md5_of(user: &str, password: &[u8]) -> String {
    let statement = format!("SELECT 'md5' || md5('{}{user}')", String::from_utf8_lossy(password));
    postgres().execute("postgres", &statement).trim().to_owned()
}

#[test]
fn a_server_with_many_iterations_stalls_nobody() {
    postgres().create_database("auth_iterations");
    // PostgreSQL 15 has no setting for it, but takes a verifier as it is given.
    let salted = "SCRAM-SHA-256$1000001:c2FsdHlzYWx0$QUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUE=:\
                  QUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUE=";
    let slow = salted.replace("1000001", "300000");
    for (name, verifier) in [("scram_too_many", salted), ("scram_slow", &slow)] {
        postgres().execute("postgres", &format!("CREATE ROLE {name} LOGIN PASSWORD '{verifier}'"));
    }
    // The roles have no line of their own in pg_hba.conf: QCP's side is looked at with its own verifier.
    let users = format!("users: {{slow: '{slow}', app: '{}'}}", role("scram-sha-256").password);
    let yaml = format!(
        "pool: {{size: 2}}\nusers: {{postgres: {{auth: {{method: trust}}}}}}\n\
         auth: {{method: password, failed_logins_max: 0, {users}}}\n"
    );
    let qcp = Qcp::start(&yaml, 1);
    let mut busy = RawClient::login(&qcp.tcp(), SUPERUSER, "auth_iterations");
    busy.query("SELECT 1").expect("it answers");
    let mut worst_beside_a_login = || {
        std::thread::scope(|scope| {
            let slow = scope.spawn(|| login(&qcp.tcp(), "slow", "postgres", "guess"));
            let mut worst = Duration::ZERO;
            let mut count = 0;
            while !slow.is_finished() || count < 20 {
                let asked = Instant::now();
                busy.query("SELECT 1").expect("it answers");
                worst = worst.max(asked.elapsed());
                count += 1;
            }
            let said = slow.join().expect("no panic").expect_err("it is a guess");
            assert!(said.contains("password authentication failed"), "{said}");
            worst
        })
    };
    // A machine that is busy with something else makes a query wait, too: not three times in a row.
    let worst = (0..3).map(|_| worst_beside_a_login()).min().expect("three");
    assert!(worst < Duration::from_millis(100), "a query waited {worst:?} for somebody's login");
}

/// QCP as a client, of another QCP that knows its user by a verifier of so many rounds.
#[test]
fn a_server_may_ask_for_few_rounds_with_a_warning_and_for_too_many_not_at_all() {
    // Of "pencil"; 1,000 and 1,000,001 rounds.
    let verifiers = [
        "SCRAM-SHA-256$1000:c2FsdHkgc2FsdCBvZiAxNg==$CCIJZZzXnv9mwyWjT7P0Aux0CacTzV/A6NmCUTRFd6k=:\
         POdC+EK2bxEI6n2OLGyrEy+/EXaMxt+oyS9ZjpZctmk=",
        "SCRAM-SHA-256$1000001:c2FsdHkgc2FsdCBvZiAxNg==$nhvBMoD5F+llXtQc3OJMPQ3NBpGdmQLtvEN8lApUxfM=:\
         aaxnhC7VsC8Mc0DCdq/kPnRLSDcmd97dFarxeOWjRBE=",
    ];
    for (verifier, is_in) in verifiers.iter().zip([true, false]) {
        let users = format!("users: {{postgres: '{verifier}'}}, server_user: postgres");
        let server = Qcp::start(&format!("auth: {{method: scram-sha-256, {users}}}\n"), 1);
        let yaml = "auth: {method: trust, server_user: postgres, server_password: pencil}\n";
        let qcp = Setup::new(yaml).server(&format!("127.0.0.1:{}", server.tcp().port)).start();
        let said = login(&qcp.tcp(), "anybody", "postgres", "");
        if is_in {
            assert_eq!(said, Ok("postgres|postgres".to_owned()));
            assert!(qcp.log().contains("the server's SCRAM secret has only 1000 iterations"), "{}", qcp.log());
        } else {
            assert!(said.is_err());
            assert!(qcp.log().contains("auth.scram_iterations_max"), "{}", qcp.log());
        }
    }
}

#[test]
fn nowhere_to_go_is_said_after_the_check() {
    let nowhere = free_port();
    let yaml = "limits: {login_timeout: 3s}\nauth: {method: md5, users: {app: its own}}\n";
    let qcp = Setup::new(yaml).server(&format!("127.0.0.1:{nowhere}")).start();
    let said = login(&qcp.tcp(), "app", "postgres", "guess").expect_err("it is a guess");
    assert!(said.contains("password authentication failed"), "who is not let in hears nothing of servers: {said}");
    let said = login(&qcp.tcp(), "app", "postgres", "its own").expect_err("there is no server");
    assert!(said.contains("FATAL"), "{said}");
}

/// `auth.query` as a user who may do nothing but that.
fn asking(database: &str, more: &str) -> Qcp {
    let statements = "CREATE FUNCTION find_secret(given text) RETURNS TABLE (name text, secret text) LANGUAGE sql SECURITY \
                      DEFINER SET search_path = pg_catalog AS $$ SELECT rolname::text, CASE WHEN rolvaliduntil < now() THEN \
                      NULL ELSE rolpassword END FROM pg_authid WHERE rolname = given AND rolcanlogin $$";
    postgres().create_database(database);
    postgres().execute(database, statements);
    Qcp::start(
        &format!(
            "auth: {{method: scram-sha-256, query: 'SELECT * FROM public.find_secret($1)', query_user: password_user, \
             users: {{password_user: in the clear}}, failed_logins_max: 0}}\n{more}"
        ),
        1,
    )
}

#[test]
fn secrets_are_asked_for_at_the_server() {
    for mode in ["Smart", "Session"] {
        let database = format!("auth_query_{}", mode.to_lowercase());
        let qcp = asking(&database, &format!("relay_mode: {mode}\npool: {{size: 2}}\n"));
        let role = role("scram-sha-256");
        check_outcomes(&qcp, role, &database, true, mode);
        // What the server keeps of these is of no use for SCRAM.
        check_outcomes(&qcp, self::role("md5"), &database, false, mode);
        assert!(!qcp.log().contains("SCRAM-SHA-256$"), "a secret is in the log");
    }
}

#[test]
fn a_lookup_that_takes_long_keeps_nobody_waiting() {
    postgres().create_database("auth_query_slow");
    let (asked_for, listed) = (role("scram-sha-256"), role("md5"));
    let query = "SELECT rolname, rolpassword FROM (SELECT pg_sleep(6)) slept, pg_authid WHERE rolname = $1";
    let qcp = Qcp::start(
        &format!(
            "auth: {{method: scram-sha-256, query: '{query}', query_user: postgres, users: {{{}: '{}'}}}}\n",
            listed.name, listed.password
        ),
        1,
    );
    let is_asked = || postgres().count_activity("query LIKE '%pg_sleep(6)%' AND state = 'active'") > 0;
    std::thread::scope(|scope| {
        let waits = scope.spawn(|| login(&qcp.tcp(), asked_for.name, "auth_query_slow", asked_for.password));
        wait_until("the server is asked", Duration::from_secs(5), is_asked);
        for _ in 0..5 {
            let said = login(&qcp.tcp(), listed.name, "auth_query_slow", listed.password);
            assert_eq!(said, Ok(format!("{}|auth_query_slow", listed.name)));
        }
        assert!(is_asked(), "they were in before the answer came");
        assert_eq!(waits.join().expect("no panic"), Ok(format!("{}|auth_query_slow", asked_for.name)));
    });
}

#[test]
fn a_new_password_is_seen_and_an_expired_one_is_none() {
    let qcp = asking("auth_query_change", "");
    // The server lets it in by SCRAM, like every user of that name: it takes the role of one that has such a line.
    let statement = "CREATE ROLE changing LOGIN PASSWORD 'first'";
    postgres().execute("postgres", statement);
    let may = |password: &str| {
        let said = login(&qcp.tcp(), "changing", "auth_query_change", password);
        // Its pg_hba.conf has no line for this role; who comes so far has been let in by QCP.
        said.as_ref().is_err_and(|said| said.contains("pg_hba.conf"))
    };
    assert!(may("first") && !may("second"));
    postgres().execute("postgres", "ALTER ROLE changing PASSWORD 'second'");
    std::thread::sleep(Duration::from_millis(1100));
    assert!(!may("second"), "the old answer is believed once more, and then no longer");
    assert!(may("second") && !may("first"));
    postgres().execute("postgres", "ALTER ROLE changing VALID UNTIL '2020-01-01'");
    std::thread::sleep(Duration::from_millis(1100));
    assert!(!may("first"));
    assert!(!may("second"), "it has expired");
    postgres().execute("postgres", "ALTER ROLE changing VALID UNTIL 'infinity' NOLOGIN");
    std::thread::sleep(Duration::from_millis(1100));
    assert!(!may("second"), "it may not log in");
}

#[test]
fn names_that_would_be_sql_find_nobody() {
    let qcp = asking("auth_query_names", "");
    for name in ["x' OR true --", "\\'; DROP FUNCTION find_secret; --", "$1", "a\"b", "\u{e4}"] {
        let said = login(&qcp.tcp(), name, "auth_query_names", "x");
        assert!(said.as_ref().is_err_and(|said| said.contains("password authentication failed")), "{name}: {said:?}");
    }
    let role = role("scram-sha-256");
    assert!(login(&qcp.tcp(), role.name, "auth_query_names", role.password).is_ok(), "the function is still there");
}

#[test]
fn a_search_path_of_somebody_elses_is_not_used() {
    let qcp = asking("auth_query_path", "");
    let trap = "CREATE SCHEMA trap; CREATE FUNCTION trap.now() RETURNS timestamptz LANGUAGE sql AS 'SELECT 1/0; SELECT \
                pg_catalog.now()'; GRANT USAGE ON SCHEMA trap TO PUBLIC; ALTER DATABASE auth_query_path SET search_path = \
                trap, pg_catalog, public";
    postgres().execute("auth_query_path", trap);
    let direct = "auth: {method: scram-sha-256, query: 'SELECT rolname, rolpassword FROM pg_authid WHERE rolname = $1 AND \
                  now() IS NOT NULL', query_user: postgres, failed_logins_max: 0}\n";
    drop(qcp);
    let qcp = Qcp::start(direct, 1);
    let role = role("scram-sha-256");
    let said = login(&qcp.tcp(), role.name, "auth_query_path", role.password);
    assert!(said.is_ok(), "{said:?}\n{}", qcp.log());
}

#[test]
fn a_query_that_fails_is_the_poolers_trouble() {
    let yaml =
        "auth: {method: md5, query: 'SELECT no_such_column FROM pg_roles WHERE rolname = $1', query_user: postgres}\n";
    let qcp = Qcp::start(yaml, 1);
    let said = login(&qcp.tcp(), "scram_user", "postgres", "x").expect_err("nobody can be asked");
    assert!(said.contains("could not ask the server"), "{said}");
    assert!(!said.contains("no_such_column") && qcp.log().contains("no_such_column"), "{said}");
}
