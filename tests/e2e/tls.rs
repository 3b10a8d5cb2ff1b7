//! TLS with clients and with servers, by the programs that people use: psql, openssl, pgbench.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use super::support::certificates::Authority;
use super::support::pooler::{Qcp, Setup};
use super::support::postgres::{CERTIFICATE_USER, PLAIN_USER, SUPERUSER, TLS_SCRAM_USER, TLS_USER, postgres};
use super::support::programs::{Finished, Program, pgbench, psql};
use super::support::raw::{PROTOCOL_3_0, RawClient, error_field, message, startup, untagged, zero_ended};
use super::support::{Address, wait_until};

/// A folder with certificates of its own, removed at the end.
pub(super) struct Folder(PathBuf);

impl Folder {
    fn new() -> Folder {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("qcp-tls-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let folder = std::env::temp_dir().join(name);
        fs::create_dir_all(&folder).unwrap();
        Folder(folder)
    }

    /// With an authority, a certificate for QCP, and one for a client.
    pub(super) fn with_certificates() -> Folder {
        let folder = Folder::new();
        let authority = Authority::new(&folder.0, "ca");
        authority.sign("qcp", &["localhost", "127.0.0.1"]);
        authority.sign(SUPERUSER, &[]);
        Authority::new(&folder.0, "stranger").sign("foreign", &["localhost", "127.0.0.1"]);
        folder
    }

    pub(super) fn path(&self, name: &str) -> String {
        self.0.join(name).display().to_string()
    }

    /// `tls: {client: ..}` with the certificate for QCP.
    pub(super) fn client_tls(&self, mode: &str, more: &str) -> String {
        let (certificate, key) = (self.path("qcp.crt"), self.path("qcp.key"));
        format!("tls: {{client: {{mode: {mode}, certificate: {certificate}, key: {key}{more}}}}}\npool: {{size: 2}}\n")
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

const WHO: &str = "SELECT 'in as ' || current_user";

fn log_in(address: &Address, mode: &str, more: &[(&str, &str)]) -> Finished {
    let mut program = psql(address, SUPERUSER, "postgres").args(["-XAtw", "-c", WHO]).env("PGSSLMODE", mode);
    for (name, value) in more {
        program = program.env(name, value);
    }
    program.finish()
}

/// `openssl s_client`, fed with bytes, until it has nothing more to say for a second.
pub(super) fn s_client(port: u16, arguments: &[&str], input: &[u8]) -> Finished {
    let connect = format!("127.0.0.1:{port}");
    let mut bytes = input.to_vec();
    if bytes.is_empty() {
        bytes.push(b'\n');
    }
    Program::new("timeout")
        .args(["-s", "INT", "3", "openssl", "s_client", "-quiet", "-connect", &connect])
        .args(arguments)
        .input(bytes)
        .finish()
}

/// Each mode of QCP's with each of libpq's: in or out.
#[test]
fn sslmodes_with_clients() {
    let folder = Folder::with_certificates();
    let ca = folder.path("ca.crt");
    let local = |qcp: &Qcp| Address { host: "localhost".to_owned(), port: qcp.tcp().port };
    for (mode, outcomes) in [
        // disable, allow, prefer, require, verify-ca, verify-full
        ("disable", [true, true, true, false, false, false]),
        ("allow", [true; 6]),
        ("prefer", [true; 6]),
        ("require", [false, true, true, true, true, true]),
    ] {
        let qcp = Qcp::start(&folder.client_tls(mode, ""), 1);
        let modes = ["disable", "allow", "prefer", "require", "verify-ca", "verify-full"];
        for (of_client, is_in) in modes.into_iter().zip(outcomes) {
            let finished = log_in(&local(&qcp), of_client, &[("PGSSLROOTCERT", &ca)]);
            assert_eq!(finished.status.success(), is_in, "{mode} {of_client}: {finished:?}");
        }
        if mode == "require" {
            let said = log_in(&local(&qcp), "disable", &[]).failure();
            assert!(said.contains("connections without TLS are not allowed"), "{said}");
            // As with PostgreSQL, a Unix socket needs none.
            assert_eq!(log_in(&qcp.unix(), "prefer", &[]).success().trim(), "in as postgres");
        }
    }
}

#[test]
fn clients_know_qcp_by_its_certificate() {
    let folder = Folder::with_certificates();
    let qcp = Qcp::start(&folder.client_tls("require", ""), 1);
    let (ca, stranger) = (folder.path("ca.crt"), folder.path("stranger.crt"));
    log_in(&qcp.tcp(), "verify-full", &[("PGSSLROOTCERT", &ca)]).success();
    let said = log_in(&qcp.tcp(), "verify-ca", &[("PGSSLROOTCERT", &stranger)]).failure();
    assert!(said.contains("certificate verify failed"), "{said}");
    wait_until("the failure is logged", Duration::from_secs(5), || qcp.log().contains("no TLS: the peer refused"));
    // Versions and ciphers of the configuration hold.
    for version in ["TLSv1.2", "TLSv1.3"] {
        let range = [("PGSSLMINPROTOCOLVERSION", version), ("PGSSLMAXPROTOCOLVERSION", version)];
        log_in(&qcp.tcp(), "require", &range).success();
    }
    let only = folder.client_tls("require", ", minimum_version: TLSv1.3, ciphers: [TLS_CHACHA20_POLY1305_SHA256]");
    let qcp = Qcp::start(&only, 1);
    log_in(&qcp.tcp(), "require", &[]).success();
    log_in(&qcp.tcp(), "require", &[("PGSSLMAXPROTOCOLVERSION", "TLSv1.2")]).failure();
    let shown = s_client(qcp.tcp().port, &["-starttls", "postgres", "-brief"], b"");
    assert!(shown.stderr.contains("TLS_CHACHA20_POLY1305_SHA256"), "{shown:?}");
}

#[test]
fn only_the_curves_that_are_listed_are_used() {
    let folder = Folder::with_certificates();
    let with = |qcp: &Qcp, curve| s_client(qcp.tcp().port, &["-starttls", "postgres", "-brief", "-groups", curve], b"");
    for (listed, other) in [("P-256", "X25519"), ("X25519", "P-256")] {
        let qcp = Qcp::start(&folder.client_tls("require", &format!(", curves: [{listed}]")), 1);
        let shown = with(&qcp, listed);
        assert!(shown.stderr.contains("CONNECTION ESTABLISHED"), "{listed}: {shown:?}");
        let shown = with(&qcp, other);
        assert!(!shown.stderr.contains("CONNECTION ESTABLISHED"), "{other}, where {listed} is listed: {shown:?}");
    }
}

/// Each cipher of TLS 1.2 and 1.3 carries a query both ways.
#[test]
fn every_cipher_carries_queries() {
    let folder = Folder::with_certificates();
    for cipher in [
        "TLS_AES_128_GCM_SHA256",
        "TLS_AES_256_GCM_SHA384",
        "TLS_CHACHA20_POLY1305_SHA256",
        "ECDHE-ECDSA-AES128-GCM-SHA256",
        "ECDHE-ECDSA-AES256-GCM-SHA384",
        "ECDHE-ECDSA-CHACHA20-POLY1305",
    ] {
        let qcp = Qcp::start(&folder.client_tls("require", &format!(", ciphers: [{cipher}]")), 1);
        let text =
            "SELECT sum(length(t)), max(t) FROM (SELECT repeat(i::text, 1000) t FROM generate_series(1,300) i) x";
        let through = |address: &Address, mode| {
            let program = psql(address, SUPERUSER, "postgres").args(["-XAtw", "-c", text, "-c", "TABLE pg_class"]);
            program.env("PGSSLMODE", mode).finish().success()
        };
        assert_eq!(through(&qcp.tcp(), "require"), through(&postgres().tcp(), "disable"), "{cipher}");
    }
}

#[test]
fn certificates_of_clients() {
    let folder = Folder::with_certificates();
    let (ca, crt, key) = (folder.path("ca.crt"), folder.path("postgres.crt"), folder.path("postgres.key"));
    let (foreign_crt, foreign_key) = (folder.path("foreign.crt"), folder.path("foreign.key"));
    let own = [("PGSSLCERT", crt.as_str()), ("PGSSLKEY", key.as_str())];
    let foreign = [("PGSSLCERT", foreign_crt.as_str()), ("PGSSLKEY", foreign_key.as_str())];
    let none = [("PGSSLCERT", "/nonexistent")];

    let qcp = Qcp::start(&folder.client_tls("verify-ca", &format!(", ca: {ca}")), 1);
    log_in(&qcp.tcp(), "require", &own).success();
    log_in(&qcp.tcp(), "require", &foreign).failure();
    log_in(&qcp.tcp(), "require", &none).failure();
    wait_until("both are logged or counted", Duration::from_secs(5), || qcp.log().contains("no TLS:"));

    // Asked for where there is an authority, and not demanded.
    let qcp = Qcp::start(&folder.client_tls("require", &format!(", ca: {ca}")), 1);
    log_in(&qcp.tcp(), "require", &own).success();
    log_in(&qcp.tcp(), "require", &none).success();
    log_in(&qcp.tcp(), "require", &foreign).failure();

    let qcp = Qcp::start(&folder.client_tls("verify-full", &format!(", ca: {ca}")), 1);
    log_in(&qcp.tcp(), "require", &own).success();
    let of_another = psql(&qcp.tcp(), "trust_user", "postgres").args(["-XAtw", "-c", WHO]).env("PGSSLMODE", "require");
    let said = of_another.env("PGSSLCERT", &crt).env("PGSSLKEY", &key).finish().failure();
    assert!(said.contains("certificate authentication failed for user \"trust_user\""), "{said}");
}

#[test]
fn the_name_chooses_the_certificate() {
    let folder = Folder::with_certificates();
    let authority = Authority::new(&folder.0, "second");
    authority.sign("db", &["db.example.com", "*.wild.example.com"]);
    let more = format!(", certificates: [{{certificate: {}, key: {}}}]", folder.path("db.crt"), folder.path("db.key"));
    let qcp = Qcp::start(&folder.client_tls("require", &more), 1);
    for (name, subject) in [
        ("localhost", "CN = qcp"),
        ("db.example.com", "CN = db"),
        ("a.wild.example.com", "CN = db"),
        ("a.b.wild.example.com", "CN = qcp"),
        ("elsewhere.example.com", "CN = qcp"),
    ] {
        let shown = s_client(qcp.tcp().port, &["-starttls", "postgres", "-servername", name, "-brief"], b"");
        assert!(shown.stderr.contains(&format!("Peer certificate: {subject}")), "{name}: {shown:?}");
    }
}

/// A ticket of one shard is good at all of them, and after a reload.
#[test]
fn tickets_are_good_at_every_shard() {
    let folder = Folder::with_certificates();
    let yaml = folder.client_tls("require", "") + "auth: {method: trust}\n";
    let qcp = Qcp::start(&yaml, 2);
    let ticket = folder.path("ticket");
    // In and out again: with QCP's answer comes TLS 1.3's ticket, and then the end.
    let login = startup(PROTOCOL_3_0, &[("user", SUPERUSER), ("database", "postgres")]);
    let bytes = [login, message(b'X', b"")].concat();
    let handshake = |version: &str, keep: &str| {
        let connect = format!("127.0.0.1:{}", qcp.tcp().port);
        let program = Program::new("timeout").args(["-s", "INT", "5", "openssl", "s_client", "-connect", &connect]);
        let program = program.args(["-starttls", "postgres", "-ign_eof", version, keep, &ticket]);
        let said = program.input(bytes.clone()).finish().stdout;
        (said.contains("New, TLSv1"), said.contains("Reused, TLSv1"))
    };
    for version in ["-tls1_2", "-tls1_3"] {
        assert_eq!(handshake(version, "-sess_out"), (true, false), "{version}");
        // The kernel deals connections out over the shards' sockets.
        for count in 0..8 {
            assert_eq!(handshake(version, "-sess_in"), (false, true), "{version} {count}");
        }
        qcp.reload(&yaml);
        assert_eq!(handshake(version, "-sess_in"), (false, true), "{version} after a reload");
    }
    // Of another QCP it is worth nothing.
    let other = Qcp::start(&yaml, 1);
    let connect = format!("127.0.0.1:{}", other.tcp().port);
    let program = Program::new("timeout").args(["-s", "INT", "5", "openssl", "s_client", "-connect", &connect]);
    let program = program.args(["-starttls", "postgres", "-ign_eof", "-sess_in", &ticket]);
    assert!(program.input(bytes.clone()).finish().stdout.contains("New, TLSv1"));
}

/// A startup packet and a query, in one write behind the handshake: nothing of it is lost. Directly and by SSLRequest.
#[test]
fn openssl_speaks_directly_and_by_request() {
    let folder = Folder::with_certificates();
    // With a login that is relayed, a query sent ahead of it would be refused.
    let qcp = Qcp::start(&(folder.client_tls("require", "") + "auth: {method: trust}\n"), 1);
    let mut bytes = startup(PROTOCOL_3_0, &[("user", SUPERUSER), ("database", "postgres")]);
    let query = b"SELECT 'through ' || 'tls'\0";
    bytes.push(b'Q');
    bytes.extend((query.len() as u32 + 4).to_be_bytes());
    bytes.extend(query);
    for arguments in [&["-starttls", "postgres"][..], &["-alpn", "postgresql"], &["-alpn", "postgresql", "-tls1_2"]] {
        let finished = s_client(qcp.tcp().port, arguments, &bytes);
        assert!(finished.stdout.contains("through tls"), "{arguments:?}: {finished:?}");
    }
    // "TLS without SSLRequest has to name the protocol."
    for arguments in [&[][..], &["-alpn", "http/1.1"]] {
        let finished = s_client(qcp.tcp().port, arguments, &bytes);
        assert!(!finished.stdout.contains("through tls"), "{arguments:?}: {finished:?}");
        assert!(finished.stderr.contains("alert no application protocol"), "{arguments:?}: {finished:?}");
    }
}

/// CVE-2021-23214: what comes with the SSLRequest was not encrypted, whoever sent it.
#[test]
fn plaintext_behind_the_request_is_refused() {
    let folder = Folder::with_certificates();
    let qcp = Qcp::start(&folder.client_tls("prefer", ""), 1);
    let mut socket = TcpStream::connect(("127.0.0.1", qcp.tcp().port)).unwrap();
    let mut bytes = vec![0, 0, 0, 8, 4, 0xd2, 0x16, 0x2f];
    bytes.extend(startup(PROTOCOL_3_0, &[("user", SUPERUSER)]));
    socket.write_all(&bytes).unwrap();
    let mut answer = Vec::new();
    socket.read_to_end(&mut answer).unwrap();
    // An error, and no S in front of it.
    assert_eq!(answer.first(), Some(&b'E'), "{answer:?}");
    assert_eq!(error_field(&answer[5..], b'C'), "08P01", "{answer:?}");
    // As often as anybody likes: it is logged once a minute.
    for _ in 0..10 {
        let mut socket = TcpStream::connect(("127.0.0.1", qcp.tcp().port)).unwrap();
        socket.write_all(&bytes).unwrap();
        socket.read_to_end(&mut Vec::new()).unwrap();
    }
    let log = qcp.log();
    assert_eq!(log.lines().filter(|line| line.contains("INFO") && line.contains("08P01")).count(), 1, "{log}");
    // In a segment of its own it is no handshake.
    let mut socket = TcpStream::connect(("127.0.0.1", qcp.tcp().port)).unwrap();
    socket.write_all(&bytes[..8]).unwrap();
    let mut yes = [0];
    socket.read_exact(&mut yes).unwrap();
    assert_eq!(yes, *b"S");
    socket.write_all(&bytes[8..]).unwrap();
    answer.clear();
    socket.read_to_end(&mut answer).unwrap();
    // A fatal alert, and no ErrorResponse.
    assert!(answer.first().is_none_or(|&first| first == 21), "{answer:?}");
}

/// Half a handshake holds its slot for login_timeout.
#[test]
fn half_a_handshake_ends() {
    let folder = Folder::with_certificates();
    let yaml = folder.client_tls("require", "") + "limits: {login_timeout: 500ms, max_clients: 1}\n";
    let qcp = Qcp::start(&yaml, 1);
    for begun in [&b""[..], b"\x16\x03\x01\x02\x00\x01\x00"] {
        let mut socket = TcpStream::connect(("127.0.0.1", qcp.tcp().port)).unwrap();
        socket.write_all(&[0, 0, 0, 8, 4, 0xd2, 0x16, 0x2f]).unwrap();
        let mut yes = [0];
        socket.read_exact(&mut yes).unwrap();
        socket.write_all(begun).unwrap();
        let since = Instant::now();
        let mut rest = Vec::new();
        let _ = socket.read_to_end(&mut rest);
        assert!(since.elapsed() < Duration::from_secs(5), "{:?}", since.elapsed());
        wait_until("the slot is back", Duration::from_secs(5), || log_in(&qcp.tcp(), "require", &[]).status.success());
    }
}

#[test]
fn large_results_and_copies() {
    let folder = Folder::with_certificates();
    postgres().create_database("tls_large");
    // A small arena: what streams must not need more.
    let yaml = folder.client_tls("require", "").replace("pool:", "arena: {total_size: 4 MB}\npool:");
    let qcp = Qcp::start(&yaml, 1);
    let run = |text: &str, input: Vec<u8>| {
        let program = psql(&qcp.tcp(), SUPERUSER, "tls_large").args(["-XAtqw", "-c", text]);
        program.env("PGSSLMODE", "require").input(input).finish().success()
    };
    run("CREATE TABLE t (a int, b text)", Vec::new());
    let lines: String = (0..200_000).map(|i| format!("{i}\t{}\n", "x".repeat(i % 300))).collect();
    run("COPY t FROM STDIN", lines.clone().into_bytes());
    assert_eq!(run("SELECT count(*), sum(length(b)) FROM t", Vec::new()).trim(), "200000|29890000");
    let before = super::support::proc::resident(qcp.pid());
    assert!(run("COPY (TABLE t ORDER BY a) TO STDOUT", Vec::new()) == lines, "what comes back is what went in");
    let count = run("SELECT repeat('y', 100000) FROM generate_series(1, 2000)", Vec::new()).len();
    assert_eq!(count, 2000 * 100_001);
    let grown = super::support::proc::resident(qcp.pid()).saturating_sub(before);
    assert!(grown < 1 << 20, "{grown} bytes more after 230 MB");
}

#[test]
fn many_clients_at_once() {
    let folder = Folder::with_certificates();
    postgres().create_database("tls_many");
    let qcp = Qcp::start(&folder.client_tls("require", "").replace("size: 2", "size: 4"), 2);
    pgbench(&postgres().tcp(), SUPERUSER, "tls_many").args(["-i", "-q"]).finish().success();
    for protocol in ["simple", "prepared"] {
        let run = pgbench(&qcp.tcp(), SUPERUSER, "tls_many").args(["-c", "16", "-T", "2", "-n", "-M", protocol]);
        run.env("PGSSLMODE", "require").finish().success();
    }
    // A connection for each transaction: handshakes.
    let run = pgbench(&qcp.tcp(), SUPERUSER, "tls_many").args(["-c", "8", "-t", "10", "-n", "-S", "-C"]);
    run.env("PGSSLMODE", "require").finish().success();
}

#[test]
fn a_cancel_goes_by_tls_on_both_legs() {
    let folder = Folder::with_certificates();
    let yaml = folder.client_tls("require", "");
    let yaml = yaml.replace("tls: {", "tls: {server: {mode: require}, ");
    let qcp = Qcp::start(&yaml, 2);
    let running = psql(&qcp.tcp(), TLS_USER, "postgres")
        .args(["-XAtw", "-c", "SELECT pg_sleep(30)"])
        .env("PGSSLMODE", "require")
        .start();
    wait_until("the query runs", Duration::from_secs(10), || {
        postgres()
            .count_activity(&format!("usename = '{TLS_USER}' AND query LIKE '%pg_sleep(30)%' AND state = 'active'"))
            == 1
    });
    running.signal(Signal::SIGINT);
    let said = running.finish().failure();
    assert!(said.contains("canceling statement due to user request"), "{said}");
}

/// libpq 15 sends cancels in plaintext; others do not.
#[test]
fn a_cancel_that_comes_by_tls() {
    let folder = Folder::with_certificates();
    let qcp = Qcp::start(&folder.client_tls("prefer", ""), 2);
    let mut client = RawClient::connect(&qcp.tcp());
    client.send(&startup(PROTOCOL_3_0, &[("user", SUPERUSER), ("database", "postgres")]));
    let greeting = client.receive_until_ready();
    let key = greeting.iter().find(|message| message.tag == b'K').expect("a key").body.clone();
    client.send(&message(b'Q', &zero_ended("SELECT pg_sleep(29)")));
    let is_active = "query LIKE '%pg_sleep(29)%' AND state = 'active'";
    wait_until("the query runs", Duration::from_secs(10), || postgres().count_activity(is_active) == 1);
    let cancel = untagged(80_877_102, &key);
    s_client(qcp.tcp().port, &["-starttls", "postgres"], &cancel);
    wait_until("it is cancelled", Duration::from_secs(10), || postgres().count_activity(is_active) == 0);
    let said = client.receive_until_ready();
    assert!(said.iter().any(|message| message.tag == b'E' && error_field(&message.body, b'C') == "57014"), "{said:?}");
}

/// Each mode with servers, by users whom the server lets in only with TLS or only without.
#[test]
fn sslmodes_with_servers() {
    let certificates = postgres().certificates();
    let path = |name: &str| certificates.join(name).display().to_string();
    let folder = Folder::with_certificates();
    let (ca, stranger) = (path("authority.crt"), folder.path("ca.crt"));
    let by_name = format!("localhost:{}", postgres().tcp().port);
    let check = |tls: &str, tls_user: bool, plain_user: bool| {
        let yaml = format!("tls: {{server: {tls}}}\npool: {{size: 2}}\n");
        let qcp = Setup::new(&yaml).server(&by_name).start();
        for (user, is_in) in [(TLS_USER, tls_user), (PLAIN_USER, plain_user)] {
            let finished = psql(&qcp.tcp(), user, "postgres").args(["-XAtw", "-c", WHO]).finish();
            assert_eq!(finished.status.success(), is_in, "{tls} {user}: {finished:?}\n{}", qcp.log());
        }
    };
    check("{mode: disable}", false, true);
    check("{mode: allow}", true, true);
    check("{mode: prefer}", true, true);
    check("{mode: require}", true, false);
    check(&format!("{{mode: require, ca: {ca}}}"), true, false);
    check(&format!("{{mode: verify-ca, ca: {ca}}}"), true, false);
    check(&format!("{{mode: verify-full, ca: {ca}}}"), true, false);
    check(&format!("{{mode: verify-ca, ca: {stranger}}}"), false, false);
    check(&format!("{{mode: require, ca: {stranger}}}"), false, false);
    check("{mode: require, minimum_version: TLSv1.3}", true, false);
    check("{mode: require, ciphers: [ECDHE-ECDSA-AES256-GCM-SHA384]}", true, false);
}

#[test]
fn servers_are_known_by_their_names() {
    let certificates = postgres().certificates();
    let ca = certificates.join("authority.crt").display().to_string();
    let port = postgres().tcp().port;
    let yaml = format!("tls: {{server: {{mode: verify-full, ca: {ca}}}}}\npool: {{size: 2}}\n");
    let qcp = Setup::new(&yaml).server(&format!("127.0.0.1:{port}")).start();
    psql(&qcp.tcp(), TLS_USER, "postgres").args(["-XAtw", "-c", WHO]).finish().success();
    // Another name of this machine, that the certificate does not have.
    let qcp = Setup::new(&yaml).server(&format!("127.0.0.2:{port}")).start();
    let said = psql(&qcp.tcp(), TLS_USER, "postgres").args(["-XAtw", "-c", WHO]).finish().failure();
    assert!(said.contains("no server connection"), "{said}");
}

#[test]
fn servers_know_qcp_by_its_certificate() {
    let certificates = postgres().certificates();
    let path = |name: &str| certificates.join(name).display().to_string();
    let (crt, key) = (path(&format!("{CERTIFICATE_USER}.crt")), path(&format!("{CERTIFICATE_USER}.key")));
    let yaml = format!("tls: {{server: {{mode: require, certificate: {crt}, key: {key}}}}}\npool: {{size: 2}}\n");
    let qcp = Qcp::start(&yaml, 1);
    let said = psql(&qcp.tcp(), CERTIFICATE_USER, "postgres").args(["-XAtw", "-c", WHO]).finish().success();
    assert_eq!(said.trim(), "in as certificate_user");
    let qcp = Qcp::start("tls: {server: {mode: require}}\npool: {size: 2}\n", 1);
    psql(&qcp.tcp(), CERTIFICATE_USER, "postgres").args(["-XAtw", "-c", WHO]).finish().failure();
}

/// A database may differ.
#[test]
fn databases_have_their_own_way_to_servers() {
    postgres().create_database("tls_other");
    let yaml = "tls: {server: {mode: require}}\ndatabases: {tls_other: {tls: {mode: disable}}, postgres: {}}\npool: {size: 2}\n";
    let qcp = Qcp::start(yaml, 1);
    let over = |database: &str| {
        let text = "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()";
        psql(&qcp.tcp(), SUPERUSER, database).args(["-XAtw", "-c", text]).finish().success()
    };
    assert_eq!((over("postgres").trim(), over("tls_other").trim()), ("t", "f"));
}

/// So may a server, and several servers of one database.
#[test]
fn servers_have_their_own_way() {
    let ca = postgres().certificates().join("authority.crt").display().to_string();
    let port = postgres().tcp().port;
    // One server by two names, of which one is to be reached by TLS.
    let (encrypted, plain) = (format!("localhost:{port}"), format!("127.0.0.1:{port}"));
    let verified = format!("{{address: '{encrypted}', tls: {{mode: verify-full, ca: {ca}}}}}");
    let yaml = format!(
        "servers: [{verified}, '{plain}']\nroute: any\npool: {{size: 2}}\ndatabases:\n  \
         on: {{dbname: postgres, servers: [{verified}]}}\n  \
         off: {{dbname: postgres, servers: ['{plain}']}}\n  \
         here: {{dbname: postgres, tls: {{mode: disable}}}}\n"
    );
    let text = "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()";
    for mode in ["Smart", "Session"] {
        let qcp = Qcp::start(&format!("{yaml}relay_mode: {mode}\n"), 1);
        let over = |user: &str, database: &str| {
            let program = psql(&qcp.tcp(), user, database).args(["-XAtw", "-c", text]);
            program.finish().success().trim().to_owned()
        };
        assert_eq!((over(SUPERUSER, "on"), over(SUPERUSER, "off")), ("t".to_owned(), "f".to_owned()));
        // In turn, each in its way.
        let mut ways: Vec<String> = (0..2).map(|_| over(SUPERUSER, "postgres")).collect();
        ways.sort();
        assert_eq!(ways, ["f", "t"]);
        // What is said of a database goes before what is said of the servers of all.
        assert_eq!([over(SUPERUSER, "here"), over(SUPERUSER, "here")], ["f", "f"]);
        // Those whom the server lets in with TLS only, or without only.
        assert_eq!((over(TLS_USER, "on"), over(PLAIN_USER, "off")), ("t".to_owned(), "f".to_owned()));
        for (user, database) in [(TLS_USER, "off"), (PLAIN_USER, "on")] {
            psql(&qcp.tcp(), user, database).args(["-XAtw", "-c", text]).finish().failure();
        }
        // At run time, too: none for the one, the other one with it.
        let swapped = yaml.replace(&format!("servers: ['{plain}']"), &format!("servers: [{verified}]"));
        qcp.reload(&format!("{swapped}relay_mode: {mode}\n"));
        assert_eq!(over(TLS_USER, "off"), "t");
    }
    // One that must be encrypted and cannot is not reached otherwise, also where that is not said of all.
    let server = Qcp::start("pool: {size: 2}\n", 1);
    let address = format!("127.0.0.1:{}", server.tcp().port);
    let yaml = format!("servers: [{{address: '{address}', tls: {{mode: require}}}}]\npool: {{size: 2}}\n");
    let said = log_in(&Qcp::start(&yaml, 1).tcp(), "disable", &[]).failure();
    assert!(said.contains("it has no TLS, and tls.server.mode demands it"), "{said}");
    let said = Setup::new(&yaml).check();
    assert!(said.stdout.contains("no TLS") && !said.status.success(), "{said:?}");
}

/// Whom to ask for secrets is another database; the way to the client's server is the same.
#[test]
fn secrets_are_asked_for_by_the_way_to_the_clients_server() {
    let port = postgres().tcp().port;
    let yaml = format!(
        "databases: {{safe: {{dbname: postgres, servers: [{{address: 'localhost:{port}', tls: {{mode: require}}}}]}}}}\n\
         users: {{{TLS_USER}: {{auth: {{method: trust, server_user: {TLS_USER}}}}}}}\n\
         auth: {{method: scram-sha-256, server_user: {TLS_USER}, query_user: {TLS_USER}, query_database: postgres, \
         query: \"SELECT 'app'::text, 'by the way'::text WHERE $1 = 'app' AND (SELECT ssl FROM pg_catalog.pg_stat_ssl \
         WHERE pid = pg_catalog.pg_backend_pid())\"}}\n"
    );
    let qcp = Qcp::start(&yaml, 1);
    let enter = |password: &str| {
        let program = psql(&qcp.tcp(), "app", "safe").args(["-XAtw", "-c", "SELECT current_user"]);
        program.env("PGPASSWORD", password).finish()
    };
    assert_eq!(enter("by the way").success().trim(), TLS_USER, "{}", qcp.log());
    assert!(enter("a wrong guess").failure().contains("password authentication failed"));
}

/// A server without TLS answers the request with N.
#[test]
fn servers_without_tls() {
    let folder = Folder::with_certificates();
    // A QCP without certificates is such a server.
    let plain = Qcp::start("pool: {size: 2}\n", 1);
    let address = format!("127.0.0.1:{}", plain.tcp().port);
    for (mode, is_in) in [("disable", true), ("allow", true), ("prefer", true), ("require", false)] {
        let yaml = format!("tls: {{server: {{mode: {mode}}}}}\npool: {{size: 2}}\n");
        let qcp = Setup::new(&yaml).server(&address).start();
        let finished = log_in(&qcp.tcp(), "disable", &[]);
        assert_eq!(finished.status.success(), is_in, "{mode}: {finished:?}");
        if !is_in {
            assert!(finished.stderr.contains("it has no TLS, and tls.server.mode demands it"), "{finished:?}");
        }
    }
    // And one with them can be reached directly.
    let direct = Qcp::start(&folder.client_tls("require", ""), 1);
    let address = format!("localhost:{}", direct.tcp().port);
    let ca = folder.path("ca.crt");
    let yaml = format!("tls: {{server: {{mode: verify-full, ca: {ca}, negotiation: direct}}}}\npool: {{size: 2}}\n");
    let qcp = Setup::new(&yaml).server(&address).start();
    assert_eq!(log_in(&qcp.tcp(), "disable", &[]).success().trim(), "in as postgres");
}

/// A server that says more than its answer to the request (CVE-2021-23222), or an error.
#[test]
fn servers_that_say_too_much() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let (sender, answers) = std::sync::mpsc::channel::<&'static [u8]>();
    std::thread::spawn(move || {
        for socket in listener.incoming() {
            let Ok(mut socket) = socket else { return };
            let mut request = [0; 8];
            let Ok(answer) = answers.recv() else { return };
            if socket.read_exact(&mut request).is_ok() {
                let _ = socket.write_all(answer);
                let _ = socket.read(&mut request);
            }
        }
    });
    for (answer, said) in [
        (&b"SR\0\0\0\x08\0\0\0\0"[..], "makes no sense"),
        (b"NR\0\0\0\x08\0\0\0\0", "makes no sense"),
        (b"E\0\0\0\x08FX\0\0", "with an error"),
        (b"x", "makes no sense"),
        (b"S", "TLS"),
    ] {
        let qcp = Setup::new("tls: {server: {mode: require}}\nreconnect: {connect_timeout: 1s}\npool: {size: 2}\n")
            .server(&address)
            .start();
        sender.send(answer).unwrap();
        let finished = log_in(&qcp.tcp(), "disable", &[]);
        let text = finished.failure();
        assert!(text.contains(said) || answer == b"S" && text.contains("timeout"), "{answer:?}: {text}");
    }
}

/// SPEC 5: a relayed login cannot be bound to both channels, and says so.
#[test]
fn relayed_scram_over_two_channels() {
    let folder = Folder::with_certificates();
    let yaml = folder.client_tls("prefer", "").replace("tls: {", "tls: {server: {mode: require}, ");
    let qcp = Qcp::start(&yaml, 1);
    let log_in = |mode: &str, binding: &str| {
        let program = psql(&qcp.tcp(), TLS_SCRAM_USER, "postgres").args(["-XAtw", "-c", WHO]);
        let program = program.env("PGPASSWORD", "bound to the channel").env("PGSSLMODE", mode);
        program.env("PGCHANNELBINDING", binding).finish()
    };
    log_in("disable", "prefer").success();
    log_in("require", "disable").success();
    let said = log_in("require", "prefer").failure();
    assert!(said.contains("which qcp cannot pass on") && said.contains("HINT:  Let qcp check logins itself"), "{said}");
    log_in("require", "require").failure();
    // The server leg in plaintext needs no binding.
    let said = psql(&qcp.tcp(), "scram_user", "postgres").args(["-XAtw", "-c", WHO]).env("PGSSLMODE", "disable");
    said.env("PGPASSWORD", "salted and peppered").finish().success();
}

#[test]
fn certificates_are_reloaded() {
    let folder = Folder::with_certificates();
    let qcp = Qcp::start(&folder.client_tls("require", ""), 2);
    let mut staying = psql(&qcp.tcp(), SUPERUSER, "postgres").args(["-XAtw", "-c", "SELECT pg_sleep(3)", "-c", WHO]);
    staying = staying.env("PGSSLMODE", "require");
    let staying = staying.start();
    wait_until("it is there", Duration::from_secs(10), || {
        postgres().count_activity("query LIKE '%pg_sleep(3)%' AND state = 'active'") > 0
    });
    let subject = || s_client(qcp.tcp().port, &["-starttls", "postgres", "-brief"], b"").stderr;
    assert!(subject().contains("CN = qcp"));
    // Half of a change is refused, and what was there stays.
    fs::copy(folder.path("foreign.crt"), folder.path("qcp.crt")).unwrap();
    qcp.signal(Signal::SIGHUP);
    wait_until("it says no", Duration::from_secs(5), || qcp.log().contains("does not belong to the certificate"));
    assert!(subject().contains("CN = qcp"));
    fs::copy(folder.path("foreign.key"), folder.path("qcp.key")).unwrap();
    qcp.signal(Signal::SIGHUP);
    wait_until("it says yes", Duration::from_secs(5), || qcp.log().contains("reloaded the certificates"));
    wait_until("the new one is shown", Duration::from_secs(5), || subject().contains("CN = foreign"));
    assert!(staying.finish().success().contains("in as postgres"));
}

#[test]
fn wrong_files_are_refused_at_start() {
    let folder = Folder::with_certificates();
    let refused = |yaml: &str, expected: &str| {
        let said = Setup::new(yaml).refused();
        assert!(said.contains(expected), "{yaml}: {said}");
        let said = Setup::new(yaml).check();
        assert!(said.stderr.contains(expected) && !said.status.success(), "{yaml}: {said:?}");
    };
    let with = |certificate: &str, key: &str| {
        format!(
            "tls: {{client: {{mode: require, certificate: {}, key: {}}}}}\n",
            folder.path(certificate),
            folder.path(key)
        )
    };
    refused(&with("missing.crt", "qcp.key"), "missing.crt: No such file or directory");
    refused(&with("qcp.crt", "missing.key"), "missing.key: No such file or directory");
    refused(&with("qcp.key", "qcp.key"), "has no certificate in it");
    refused(&with("qcp.crt", "qcp.crt"), "tls.client.key: ");
    refused(&with("qcp.crt", "foreign.key"), "does not belong to the certificate");
    let open = folder.path("postgres.key");
    fs::set_permissions(&open, std::os::unix::fs::PermissionsExt::from_mode(0o644)).unwrap();
    refused(&with("postgres.crt", "postgres.key"), "others may read or change it (mode 0644)");
    refused(&folder.client_tls("require", ", ciphers: [NULL-MD5]"), "\"NULL-MD5\" is not one of TLS_AES_");
    refused(&folder.client_tls("require", ", curves: [P-192]"), "\"P-192\" is not one of X25519");
    refused(&folder.client_tls("verify-ca", ""), "lacks the key ca");
    refused("tls: {client: {mode: require}}\n", "lacks the key certificate");
    refused("tls: {server: {mode: verify-full}}\n", "lacks the key ca");
    refused("tls: {server: {mode: prefer, negotiation: direct}}\n", "found direct");
    refused("tls: {server: {mode: require, ca: /nonexistent}}\n", "tls.server.ca: No such file");
}

/// What the expired and the unknown get to hear is an alert; what QCP's log says is why.
#[test]
fn expired_certificates_are_refused() {
    let folder = Folder::with_certificates();
    Authority::new(&folder.0, "old").sign_expired("late", &[]);
    let yaml = folder.client_tls("verify-ca", &format!(", ca: {}", folder.path("old.crt")));
    let qcp = Qcp::start(&yaml, 1);
    let (crt, key) = (folder.path("late.crt"), folder.path("late.key"));
    log_in(&qcp.tcp(), "require", &[("PGSSLCERT", &crt), ("PGSSLKEY", &key)]).failure();
    wait_until("it is logged", Duration::from_secs(5), || qcp.log().contains("no TLS: the certificate has expired"));
}

/// A client that hangs up in the middle of its query leaves nothing behind.
#[test]
fn a_plain_client_is_still_served_beside() {
    let folder = Folder::with_certificates();
    let qcp = Qcp::start(&folder.client_tls("allow", ""), 1);
    let mut raw = RawClient::connect(&qcp.tcp());
    raw.send(&startup(PROTOCOL_3_0, &[("user", SUPERUSER), ("database", "postgres")]));
    drop(raw);
    assert!(Path::new(&qcp.control_socket()).exists());
    log_in(&qcp.tcp(), "disable", &[]).success();
    log_in(&qcp.tcp(), "require", &[]).success();
}

/// The name of a server is told in plain text, for proxies that go by it, or is not.
#[test]
fn servers_are_told_their_name() {
    for told in [true, false] {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port is free");
        let port = listener.local_addr().expect("it is bound").port();
        // A server that takes the encryption, and never answers what is said then.
        let hello = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().expect("qcp comes");
            let mut request = [0; 8];
            stream.read_exact(&mut request).expect("an SSLRequest");
            stream.write_all(b"S").expect("it reads");
            let mut head = [0; 5];
            stream.read_exact(&mut head).expect("the head of a record");
            let mut hello = vec![0; usize::from(u16::from_be_bytes([head[3], head[4]]))];
            stream.read_exact(&mut hello).expect("a ClientHello");
            hello
        });
        let yaml = format!("auth: {{method: trust}}\ntls: {{server: {{mode: require, sni: {told}}}}}\n");
        let qcp = Setup::new(&yaml).server(&format!("localhost:{port}")).start();
        let mut client = RawClient::connect(&qcp.tcp());
        client.send(&startup(PROTOCOL_3_0, &[("user", SUPERUSER), ("database", "postgres")]));
        let hello = hello.join().expect("it has come");
        assert_eq!(hello.windows(9).any(|part| part == b"localhost"), told);
    }
}
