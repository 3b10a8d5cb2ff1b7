//! Every way in which QCP checks a login, by every kind of connection, in both relay modes, in front of a server that
//! demands each method: the table says what must come of it, right and wrong, and three clients try it.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::sync::Arc;
use std::thread;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore};
use tokio_postgres::Config;
use tokio_postgres::config::SslMode;
use tokio_postgres_rustls::MakeRustlsConnect;

use super::support::Address;
use super::support::certificates::Authority;
use super::support::pooler::Qcp;
use super::support::postgres::{ROLES, Role, postgres};
use super::support::programs::{Program, psql};
use super::tls::Folder;

/// What must come of a login: over TCP, a Unix socket and TLS, right and wrong each. `in`, or the SQLSTATE. `right` is the
/// right password, with the user's own certificate where one is asked for; `wrong` is another password, and another user's.
#[rustfmt::skip]
const TABLE: [(&str, [&str; 6]); 10] = [
    // how            TCP: right  wrong    Unix: right wrong    TLS: right  wrong
    ("server",             ["in", "28P01",      "in", "28P01",      "in", "28P01"]),
    ("trust",              ["in", "in",         "in", "in",         "in", "in"]),
    ("reject",             ["28000", "28000",   "28000", "28000",   "28000", "28000"]),
    ("password",           ["in", "28P01",      "in", "28P01",      "in", "28P01"]),
    ("md5",                ["in", "28P01",      "in", "28P01",      "in", "28P01"]),
    ("scram-sha-256",      ["in", "28P01",      "in", "28P01",      "in", "28P01"]),
    ("scram-sha-256-plus", ["28000", "28000",   "28000", "28000",   "in", "28P01"]),
    ("cert",               ["28000", "28000",   "28000", "28000",   "in", "28000"]),
    // By a map that lets us be that user; a password has no part in it.
    ("peer",               ["28000", "28000",   "in", "in",         "28000", "28000"]),
    // Rules: scram-sha-256 over TCP and Unix sockets, a certificate over TLS.
    ("hba",                ["in", "28P01",      "in", "28P01",      "in", "28000"]),
];

/// The server's methods; to a server with `trust` nobody proves anything when it is asked itself.
const SERVERS: [&str; 4] = ["trust", "password", "md5", "scram-sha-256"];
const TRANSPORTS: [&str; 3] = ["TCP", "Unix", "TLS"];
const CLIENTS: [&str; 3] = ["psql", "psycopg2", "tokio-postgres"];

/// Reads one connection string for each line, and prints what came of it: the user, or what was said.
const PSYCOPG2: &str = "
import sys, psycopg2
for line in sys.stdin:
    try:
        connection = psycopg2.connect(line.strip())
        cursor = connection.cursor()
        cursor.execute('SELECT current_user')
        print('in as ' + cursor.fetchone()[0])
        connection.close()
    except psycopg2.Error as error:
        print(' '.join(str(error).split()))
";

/// One attempt to log in.
struct Attempt {
    role: &'static Role,
    transport: usize,
    is_wrong: bool,
    /// As libpq takes it.
    conninfo: String,
}

fn role(method: &str) -> &'static Role {
    ROLES.iter().find(|role| role.method == method).expect("listed")
}

fn configuration(folder: &Folder, check: &str, mode: &str) -> String {
    let tls = folder.client_tls("allow", &format!(", ca: {}", folder.path("ca.crt")));
    let users: Vec<String> =
        SERVERS.map(|method| format!("{}: '{}'", role(method).name, role(method).password)).to_vec();
    let rules = match check {
        "peer" => "local all all peer map=ours\n",
        _ => "local all all scram-sha-256\nhostssl all all all cert\nhost all all all scram-sha-256\n",
    };
    let hba = folder.path(&format!("hba-{check}-{mode}.conf"));
    fs::write(&hba, rules).expect("the folder is ours");
    let auth = match check {
        "server" => "method: server".to_owned(),
        "peer" | "hba" => {
            let ident = folder.path("ident.conf");
            format!("method: hba, hba_file: {hba}, ident_file: {ident}, users: {{{}}}", users.join(", "))
        }
        method => format!("method: {method}, users: {{{}}}", users.join(", ")),
    };
    format!("{tls}relay_mode: {mode}\nauth: {{{auth}, failed_logins_max: 0}}\n")
}

fn attempts(qcp: &Qcp, folder: &Folder, check: &str, database: &str) -> Vec<Attempt> {
    let mut attempts = Vec::new();
    for (server, method) in SERVERS.iter().enumerate() {
        let role = role(method);
        let other = self::role(SERVERS[(server + 1) % SERVERS.len()]);
        for transport in 0..TRANSPORTS.len() {
            for is_wrong in [false, true] {
                let Address { host, port } = if transport == 1 { qcp.unix() } else { qcp.tcp() };
                let password = if is_wrong { "a wrong guess" } else { role.password };
                let mode = if transport == 2 { "require" } else { "disable" };
                let certificate = match check {
                    "cert" | "hba" => folder.path(if is_wrong { other.name } else { role.name }),
                    _ => "/nonexistent".to_owned(),
                };
                let conninfo = format!(
                    "host={host} port={port} user={} dbname={database} password='{password}' sslmode={mode} \
                     sslcert={certificate}.crt sslkey={certificate}.key",
                    role.name
                );
                attempts.push(Attempt { role, transport, is_wrong, conninfo });
            }
        }
    }
    attempts
}

impl Attempt {
    fn expected(&self, check: &str, row: &[&'static str; 6]) -> &'static str {
        if check == "server" && self.role.method == "trust" {
            return "in";
        }
        row[2 * self.transport + usize::from(self.is_wrong)]
    }

    /// The outcome as the table has it, of what libpq says; it does not tell the SQLSTATE of a login.
    fn outcome_of_words(&self, said: &str) -> String {
        if said.contains(&format!("in as {}", self.role.name)) {
            "in".to_owned()
        } else if said.contains("password authentication failed") {
            "28P01".to_owned()
        } else if said.contains("FATAL:") {
            "28000".to_owned()
        } else {
            format!("? {said}")
        }
    }

    fn by_psql(&self) -> String {
        let nowhere = Address { host: String::new(), port: 0 };
        let program = psql(&nowhere, "", "").args(["-XAtw", "-c", "SELECT 'in as ' || current_user", &self.conninfo]);
        let finished = program.finish();
        self.outcome_of_words(&format!("{}{}", finished.stdout, finished.stderr))
    }

    fn by_tokio_postgres(&self, runtime: &tokio::runtime::Runtime, folder: &Folder) -> String {
        let conninfo = self.conninfo.split(" sslmode").next().expect("there is a first part");
        let mut config: Config = conninfo.parse().expect("it takes what libpq takes");
        let is_tls = TRANSPORTS[self.transport] == "TLS";
        config.ssl_mode(if is_tls { SslMode::Require } else { SslMode::Disable });
        let tls = MakeRustlsConnect::new(self.tls_of(folder));
        let code = |error: tokio_postgres::Error| {
            error.code().map_or_else(|| format!("? {error}"), |code| code.code().to_owned())
        };
        runtime.block_on(async {
            let (client, connection) = match config.connect(tls).await {
                Err(error) => return code(error),
                Ok(both) => both,
            };
            let connection = tokio::spawn(connection);
            let row = client.query_one("SELECT current_user::text", &[]).await;
            let outcome = row.map(|row| row.get::<_, String>(0));
            drop(client);
            let _ = connection.await;
            match outcome {
                Ok(user) if user == self.role.name => "in".to_owned(),
                Ok(user) => format!("? in as {user}"),
                Err(error) => code(error),
            }
        })
    }

    /// QCP's authority, and the certificate of `sslcert`, if there is one.
    fn tls_of(&self, folder: &Folder) -> ClientConfig {
        let mut roots = RootCertStore::empty();
        let authority = CertificateDer::from_pem_file(folder.path("ca.crt")).expect("it was written");
        roots.add(authority).expect("it is one");
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
        let builder = builder.expect("it has ciphers for them").with_root_certificates(roots);
        let file = |key: &str| {
            let rest = self.conninfo.split_once(&format!("{key}=")).expect("it is there").1;
            rest.split(' ').next().expect("there is a first part")
        };
        let Ok(certificate) = CertificateDer::from_pem_file(file("sslcert")) else {
            return builder.with_no_client_auth();
        };
        let key = PrivateKeyDer::from_pem_file(file("sslkey")).expect("it was written with the certificate");
        builder.with_client_auth_cert(vec![certificate], key).expect("they belong together")
    }
}

fn by_psycopg2(attempts: &[Attempt]) -> Vec<String> {
    let lines: String = attempts.iter().map(|attempt| format!("{}\n", attempt.conninfo)).collect();
    // Debian's own: another one may stand before it in the path, without its libraries.
    let finished = Program::new("/usr/bin/python3").args(["-c", PSYCOPG2]).input(lines.into_bytes()).finish();
    assert!(!finished.stderr.contains("ModuleNotFoundError"), "apt-get install python3-psycopg2");
    let said = finished.success();
    assert_eq!(said.lines().count(), attempts.len(), "{said}");
    said.lines().zip(attempts).map(|(said, attempt)| attempt.outcome_of_words(said)).collect()
}

/// All outcomes of one row in one relay mode: by server, transport, right or wrong, and client.
fn play(check: &str, mode: &str, row: &[&'static str; 6], wrong: &mut Vec<String>) -> BTreeMap<(usize, bool), String> {
    let folder = Folder::with_certificates();
    let authority = Authority::new(&std::path::PathBuf::from(folder.path("")), "ca");
    authority.sign("qcp", &["localhost", "127.0.0.1"]);
    for method in SERVERS {
        authority.sign(role(method).name, &[]);
    }
    let me = nix::unistd::User::from_uid(nix::unistd::geteuid()).ok().flatten().expect("we have a name").name;
    fs::write(folder.path("ident.conf"), format!("ours {me} /.*\n")).expect("the folder is ours");
    let database = format!("methods_{}_{}", mode.to_lowercase(), check.replace('-', "_"));
    postgres().create_database(&database);
    let qcp = Qcp::start(&configuration(&folder, check, mode), 1);
    let attempts = attempts(&qcp, &folder, check, &database);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime starts");
    let by_psycopg2 = by_psycopg2(&attempts);
    let mut outcomes: BTreeMap<(usize, bool), String> = BTreeMap::new();
    for (attempt, by_psycopg2) in attempts.iter().zip(by_psycopg2) {
        let of_clients = [attempt.by_psql(), by_psycopg2, attempt.by_tokio_postgres(&runtime, &folder)];
        let expected = attempt.expected(check, row);
        for (client, outcome) in CLIENTS.iter().zip(of_clients) {
            if outcome != expected {
                let (server, transport) = (attempt.role.method, TRANSPORTS[attempt.transport]);
                let how = if attempt.is_wrong { "wrong" } else { "right" };
                wrong.push(format!(
                    "{mode} {check}, server {server}, {transport}, {how}, {client}: {outcome}, not {expected}"
                ));
            }
            let cell = outcomes.entry((attempt.transport, attempt.is_wrong)).or_default();
            if !cell.split('/').any(|known| known == outcome) {
                if !cell.is_empty() {
                    cell.push('/');
                }
                cell.push_str(&outcome);
            }
        }
    }
    if !wrong.is_empty() {
        eprintln!("{}", qcp.log());
    }
    outcomes
}

fn check_table(mode: &str) {
    let rows: Vec<_> = TABLE.iter().collect();
    let (mut shown, mut wrong) = (String::new(), Vec::new());
    let _ = writeln!(
        shown,
        "{mode}: how logins are checked, and what comes of them, over all of {SERVERS:?} and {CLIENTS:?}"
    );
    let heads = TRANSPORTS.iter().flat_map(|transport| ["right", "wrong"].map(|how| format!("{transport} {how}")));
    let _ = writeln!(shown, "{:20}{}", "", heads.map(|head| format!("{head:14}")).collect::<String>());
    for pair in rows.chunks(2) {
        let played: Vec<_> = thread::scope(|scope| {
            let threads: Vec<_> = pair
                .iter()
                .map(|(check, row)| {
                    scope.spawn(move || {
                        let mut wrong = Vec::new();
                        let outcomes = play(check, mode, row, &mut wrong);
                        (outcomes, wrong)
                    })
                })
                .collect();
            threads.into_iter().map(|thread| thread.join().expect("it does not panic")).collect()
        });
        for ((check, _), (outcomes, of_row)) in pair.iter().zip(played) {
            let cells: String = outcomes.values().map(|cell| format!("{cell:14}")).collect();
            let _ = writeln!(shown, "{check:20}{cells}");
            wrong.extend(of_row);
        }
    }
    println!("{shown}");
    assert!(wrong.is_empty(), "{shown}\n{}", wrong.join("\n"));
}

#[test]
fn every_method_by_every_connection_in_smart_mode() {
    check_table("Smart");
}

#[test]
fn every_method_by_every_connection_in_session_mode() {
    check_table("Session");
}
