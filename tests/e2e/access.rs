//! Who may come in: by certificate, over a bound channel, on behalf of a PROXY header's client, and how many of each.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use super::support::certificates::Authority;
use super::support::pooler::{Qcp, Setup};
use super::support::postgres::{SUPERUSER, postgres};
use super::support::programs::{Finished, psql};
use super::support::raw::{
    Message, PATIENCE, PROTOCOL_3_0, RawClient, Received, error_field, message, startup, untagged, zero_ended,
};
use super::support::wait_until;
use super::tls::{Folder, s_client};

const WHO: &str = "SELECT 'in as ' || current_user";

fn write(folder: &Folder, name: &str, text: &str) -> String {
    fs::write(PathBuf::from(folder.path(name)), text).expect("the folder is ours");
    folder.path(name)
}

/// `tls: {client: ..}` that asks for certificates, and more keys.
fn with_authority(folder: &Folder, more: &str) -> String {
    folder.client_tls("allow", &format!(", ca: {}", folder.path("ca.crt"))) + more
}

/// Logs in with psql over TLS, with a certificate or with none.
fn with_certificate(qcp: &Qcp, folder: &Folder, user: &str, certificate: Option<&str>) -> Finished {
    let (crt, key) = match certificate {
        Some(name) => (folder.path(&format!("{name}.crt")), folder.path(&format!("{name}.key"))),
        None => ("/nonexistent".to_owned(), "/nonexistent".to_owned()),
    };
    let program = psql(&qcp.tcp(), user, "postgres").args(["-XAtw", "-c", WHO]).env("PGSSLMODE", "require");
    program.env("PGSSLCERT", &crt).env("PGSSLKEY", &key).finish()
}

#[test]
fn a_certificate_says_who_a_client_is() {
    let folder = Folder::with_certificates();
    for mode in ["Smart", "Session"] {
        let qcp = Qcp::start(&with_authority(&folder, &format!("relay_mode: {mode}\nauth: {{method: cert}}\n")), 1);
        let said = with_certificate(&qcp, &folder, SUPERUSER, Some(SUPERUSER)).success();
        assert_eq!(said.trim(), "in as postgres", "{mode}");
        let failed = "certificate authentication failed for user";
        for (user, certificate) in [(SUPERUSER, None), ("trust_user", Some(SUPERUSER)), ("POSTGRES", Some(SUPERUSER))] {
            let said = with_certificate(&qcp, &folder, user, certificate).failure();
            assert!(said.contains(failed), "{mode} {user} {certificate:?}: {said}");
        }
        // Of an authority that is not asked.
        let said = with_certificate(&qcp, &folder, "foreign", Some("foreign")).failure();
        assert!(!said.contains("in as"), "{said}");
        let plain = psql(&qcp.tcp(), SUPERUSER, "postgres").args(["-XAtw", "-c", WHO]).env("PGSSLMODE", "disable");
        assert!(plain.finish().failure().contains(failed));
        let local = psql(&qcp.unix(), SUPERUSER, "postgres").args(["-XAtw", "-c", WHO]).finish();
        assert!(local.failure().contains(failed), "a Unix socket has no certificate");
    }
}

#[test]
fn rules_ask_for_certificates() {
    let folder = Folder::with_certificates();
    let maps = "certs postgres trust_user\ncerts /^(.*)foreign$ nobody\nnames \"CN=postgres\" trust_user\n";
    let ident = write(&folder, "ident.conf", maps);
    let check = |rule: &str, user: &str, certificate: Option<&str>, expected: Result<(), &str>| {
        let hba = write(&folder, "hba.conf", &format!("{rule}\n"));
        let auth = format!("auth: {{method: hba, hba_file: {hba}, ident_file: {ident}}}\n");
        let qcp = Qcp::start(&with_authority(&folder, &auth), 1);
        let finished = with_certificate(&qcp, &folder, user, certificate);
        match expected {
            Ok(()) => assert_eq!(finished.success().trim(), format!("in as {user}"), "{rule}"),
            Err(expected) => {
                let said = finished.failure();
                assert!(said.contains(expected), "{rule}: {said}");
            }
        }
    };
    let required = Err("connection requires a valid client certificate");
    check("hostssl all all all cert", SUPERUSER, Some(SUPERUSER), Ok(()));
    check("hostssl all all all cert", "trust_user", Some(SUPERUSER), required);
    check("hostssl all all all cert", SUPERUSER, None, required);
    check("hostssl all all all cert map=certs", "trust_user", Some(SUPERUSER), Ok(()));
    // With a map the certificate's own name is nobody's, unless the map says so.
    check("hostssl all all all cert map=certs", SUPERUSER, Some(SUPERUSER), required);
    check("hostssl all all all cert clientname=DN map=names", "trust_user", Some(SUPERUSER), Ok(()));
    check("hostssl all all all cert clientname=DN", SUPERUSER, Some(SUPERUSER), required);
    check("hostssl all all all trust clientcert=verify-ca", "trust_user", Some(SUPERUSER), Ok(()));
    check("hostssl all all all trust clientcert=verify-ca", "trust_user", None, required);
    check("hostssl all all all trust clientcert=verify-full", "trust_user", Some(SUPERUSER), required);
    check("hostssl all all all trust clientcert=verify-full", SUPERUSER, Some(SUPERUSER), Ok(()));
    check("hostssl all all all reject clientcert=verify-ca", SUPERUSER, Some(SUPERUSER), Err("rejects connection"));
}

#[test]
fn certificates_that_nobody_could_show_are_refused_at_start() {
    let folder = Folder::with_certificates();
    let hba = write(&folder, "hba.conf", "hostssl all all all cert\n");
    let check = |yaml: &str, expected: &str| {
        let said = Setup::new(yaml).refused();
        assert!(said.contains(expected), "{yaml}: {said}");
    };
    check("auth: {method: cert}\n", "tls.client must name the ca");
    check(&(folder.client_tls("require", "") + "auth: {method: cert}\n"), "tls.client must name the ca");
    check("users: {a: {auth: {method: cert}}}\n", "users.a.auth.method");
    check(&format!("auth: {{method: hba, hba_file: {hba}}}\n"), "hba.conf:1: it asks for a certificate");
    check("auth: {method: scram-sha-256-plus}\n", "tls.client.mode must not be disable");
}

fn bound(qcp: &Qcp, user: &str, password: &str, more: &[(&str, &str)]) -> Finished {
    let mut program = psql(&qcp.tcp(), user, "postgres").args(["-XAtw", "-c", WHO]).env("PGPASSWORD", password);
    for (name, value) in more {
        program = program.env(name, value);
    }
    program.finish()
}

/// libpq binds, on both sides of QCP, and QCP does towards a server.
#[test]
fn logins_are_bound_to_their_channel() {
    let folder = Folder::with_certificates();
    let ca = folder.path("ca.crt");
    let full = [("PGSSLMODE", "verify-full"), ("PGSSLROOTCERT", ca.as_str()), ("PGCHANNELBINDING", "require")];
    for (method, mode) in
        [("scram-sha-256", "Smart"), ("scram-sha-256-plus", "Smart"), ("scram-sha-256-plus", "Session")]
    {
        let verifier = postgres().execute("postgres", "SELECT rolpassword FROM pg_authid WHERE rolname = 'scram_user'");
        for secret in ["salted and peppered", verifier.trim()] {
            let auth = format!("relay_mode: {mode}\nauth: {{method: {method}, users: {{scram_user: '{secret}'}}}}\n");
            let qcp = Qcp::start(&(folder.client_tls("allow", "") + &auth), 1);
            let said = bound(&qcp, "scram_user", "salted and peppered", &full).success();
            assert_eq!(said.trim(), "in as scram_user", "{method} {mode}");
            let said = bound(&qcp, "scram_user", "a wrong guess", &full).failure();
            assert!(said.contains("password authentication failed"), "{said}");
            let without = [("PGSSLMODE", "require"), ("PGCHANNELBINDING", "disable")];
            let unbound = bound(&qcp, "scram_user", "salted and peppered", &without);
            let plain = bound(&qcp, "scram_user", "salted and peppered", &[("PGSSLMODE", "disable")]);
            if method == "scram-sha-256" {
                unbound.success();
                plain.success();
            } else {
                unbound.failure();
                let said = plain.failure();
                assert!(said.contains("channel binding is required, and the connection is not TLS"), "{said}");
            }
        }
    }
    // Whoever asks for a password only cannot bind: libpq does not send it.
    let auth = "auth: {method: md5, users: {scram_user: 'salted and peppered'}}\n";
    let qcp = Qcp::start(&(folder.client_tls("allow", "") + auth), 1);
    let said = bound(&qcp, "scram_user", "salted and peppered", &full).failure();
    assert!(said.contains("channel binding required"), "{said}");
}

/// Somebody in between takes PLUS out of the offer; the client says that it could have bound and saw none.
#[test]
fn a_stripped_offer_is_refused() {
    let folder = Folder::with_certificates();
    let auth = "auth: {method: scram-sha-256, users: {app: its own}}\n";
    let qcp = Qcp::start(&(folder.client_tls("require", "") + auth), 1);
    for (flag, expected) in [("y", "channel binding"), ("n", "R")] {
        let mut bytes = startup(PROTOCOL_3_0, &[("user", "app"), ("database", "postgres")]);
        let data = format!("{flag},,n=,r=abcdefghijklmnopqrstuvwx");
        let mut body = zero_ended("SCRAM-SHA-256");
        body.extend((data.len() as u32).to_be_bytes());
        body.extend(data.as_bytes());
        bytes.extend(message(b'p', &body));
        let finished = s_client(qcp.tcp().port, &["-starttls", "postgres"], &bytes);
        assert!(finished.stdout.contains("SCRAM-SHA-256-PLUS"), "it was offered: {finished:?}");
        assert!(finished.stdout.contains(expected), "{flag}: {finished:?}");
        // Whoever does not bind gets the salt and the count.
        assert_eq!(finished.stdout.contains(",i=4096"), flag == "n", "{flag}: {finished:?}");
    }
}

/// QCP as a client of a server that takes nothing but PLUS, which is another QCP.
#[test]
fn qcp_binds_towards_servers() {
    let folder = Folder::with_certificates();
    let auth = "auth: {method: scram-sha-256-plus, users: {scram_user: 'salted and peppered'}}\n";
    let server = Qcp::start(&(folder.client_tls("allow", "") + auth), 1);
    let yaml = |tls: &str, password: &str| {
        format!(
            "tls: {{server: {tls}}}\nauth: {{method: trust, server_user: scram_user, server_password: '{password}'}}\n"
        )
    };
    let through = |yaml: &str| {
        let qcp = Setup::new(yaml).server(&format!("localhost:{}", server.tcp().port)).start();
        let finished = psql(&qcp.tcp(), "anybody", "postgres").args(["-XAtw", "-c", WHO]).finish();
        (finished, qcp.log())
    };
    let verified = format!("{{mode: verify-full, ca: {}}}", folder.path("ca.crt"));
    for tls in ["{mode: require}", &verified] {
        assert_eq!(through(&yaml(tls, "salted and peppered")).0.success().trim(), "in as scram_user");
        let said = through(&yaml(tls, "a wrong guess")).0.failure();
        assert!(said.contains("qcp could not log in to the server as \"scram_user\""), "{said}");
    }
    let (finished, log) = through(&yaml("{mode: disable}", "salted and peppered"));
    assert!(finished.failure().contains("channel binding is required"), "{log}");
}

fn header(source: &str) -> Vec<u8> {
    format!("PROXY TCP4 {source} 198.51.100.2 56324 5432\r\n").into_bytes()
}

/// The second version, from an address of IPv4 or with none.
fn binary_header(source: Option<[u8; 4]>) -> Vec<u8> {
    let mut bytes = b"\r\n\r\n\0\r\nQUIT\n".to_vec();
    match source {
        Some(source) => {
            bytes.extend([0x21, 0x11, 0, 12]);
            bytes.extend(source);
            bytes.extend([198, 51, 100, 2, 0xdc, 4, 0x15, 0x38]);
        }
        None => bytes.extend([0x20, 0, 0, 0]),
    }
    bytes
}

fn first_error(messages: &[Message]) -> Option<(String, String)> {
    let error = messages.iter().find(|message| message.tag == b'E')?;
    Some((error_field(&error.body, b'C'), error_field(&error.body, b'M')))
}

/// What becomes of a login that begins with these bytes. `Ok`: it is in, and stays for as long as the client is held.
fn begin(qcp: &Qcp, header: &[u8], user: &str) -> Result<RawClient, (String, String)> {
    let mut client = RawClient::connect(&qcp.tcp());
    client.send(header);
    client.send(&startup(PROTOCOL_3_0, &[("user", user), ("database", "postgres")]));
    let said = client.receive_until_ready();
    match said.last() {
        Some(last) if last.tag == b'Z' => Ok(client),
        _ => Err(first_error(&said).unwrap_or_else(|| panic!("no ErrorResponse: {said:?}"))),
    }
}

#[test]
fn a_proxy_header_says_who_the_client_is() {
    let folder = Folder::with_certificates();
    let hba = write(
        &folder,
        "hba.conf",
        "host all all 192.0.2.0/24 trust\nhost all trust_user 127.0.0.1/32 trust\nhost all all all reject\n",
    );
    for cores in [1, 2] {
        let auth = format!("auth: {{method: hba, hba_file: {hba}}}\nproxy_protocol_from: [10.0.0.0/8, 127.0.0.1]\n");
        let qcp = Qcp::start(&(folder.client_tls("allow", "") + &auth), cores);
        for given in [header("192.0.2.1"), binary_header(Some([192, 0, 2, 77]))] {
            let mut client = begin(&qcp, &given, SUPERUSER).unwrap_or_else(|error| panic!("{error:?}"));
            assert_eq!(client.query("SELECT 1"), Ok(vec!["1".to_owned()]));
        }
        for given in [header("198.51.100.9"), binary_header(Some([198, 51, 100, 9]))] {
            let (code, text) = begin(&qcp, &given, SUPERUSER).err().expect("rejected");
            assert_eq!(code, "28000");
            assert!(text.contains("host \"198.51.100.9\""), "{text}");
        }
        // The balancer itself.
        for given in [b"PROXY UNKNOWN\r\n".to_vec(), binary_header(None)] {
            assert!(begin(&qcp, &given, "trust_user").is_ok());
            let (_, text) = begin(&qcp, &given, SUPERUSER).err().expect("rejected");
            assert!(text.contains("host \"127.0.0.1\""), "{text}");
        }
        wait_until("the log names the client", Duration::from_secs(5), || qcp.log().contains("198.51.100.9:56324: "));
        // A byte at a time, and TLS behind it.
        let mut slow = RawClient::connect(&qcp.tcp());
        let mut bytes = header("192.0.2.1");
        bytes.extend(startup(PROTOCOL_3_0, &[("user", SUPERUSER), ("database", "postgres")]));
        for byte in &bytes {
            slow.send(&[*byte]);
        }
        assert!(slow.receive_until_ready().last().is_some_and(|last| last.tag == b'Z'));
        let mut encrypted = RawClient::connect(&qcp.tcp());
        encrypted.send(&[header("192.0.2.1"), untagged(80_877_103, b"")].concat());
        assert_eq!(encrypted.receive_byte(), Some(b'S'));
        // Without one, or with a wrong one, nobody gets further.
        for wrong in [&b""[..], b"PROXY TCP4 192.0.2.1\r\n", b"PROXY TCP4 192.0.2.1 198.51.100.2 1 99999\r\n"] {
            let (code, _) = begin(&qcp, wrong, SUPERUSER).err().expect("refused");
            assert_eq!(code, "08P01");
        }
    }
}

#[test]
fn a_proxy_header_is_believed_from_listed_networks_only() {
    // The user is let in by the server without a password: from this machine only, whatever a header says.
    let listed = Qcp::start("proxy_protocol_from: [127.0.0.0/8]\n", 1);
    assert!(begin(&listed, &header("127.0.0.1"), SUPERUSER).is_ok());
    let (code, text) = begin(&listed, &header("192.0.2.1"), SUPERUSER).err().expect("from afar");
    assert_eq!(code, "28000", "{text}");
    for yaml in ["proxy_protocol_from: [10.0.0.0/8]\n", ""] {
        let qcp = Qcp::start(yaml, 1);
        let (code, text) = begin(&qcp, &header("127.0.0.1"), SUPERUSER).err().expect("junk");
        assert_eq!((code.as_str(), text.as_str()), ("08P01", "invalid length of startup packet"), "{yaml}");
        assert!(begin(&qcp, b"", SUPERUSER).is_ok());
    }
    let said = Setup::new("proxy_protocol_from: [balancer]\n").refused();
    assert!(said.contains("proxy_protocol_from[0]: found \"balancer\": a network"), "{said}");
}

/// Failed logins count for the client behind the balancer, and not for the balancer.
#[test]
fn failed_logins_count_for_whom_the_header_names() {
    let auth = "auth: {method: md5, failed_logins_max: 3, users: {app: its own}}\n";
    let qcp = Qcp::start(&format!("proxy_protocol_from: [127.0.0.1]\n{auth}"), 2);
    let code = |source: &str| {
        let mut client = RawClient::connect(&qcp.tcp());
        client.send(&header(source));
        client.send(&startup(PROTOCOL_3_0, &[("user", "app"), ("database", "postgres")]));
        client.send(&message(b'p', b"md50123\0"));
        first_error(&client.receive_until_ready()).expect("it is wrong").0
    };
    for _ in 0..3 {
        assert_eq!(code("192.0.2.1"), "28P01");
    }
    wait_until("all shards know", Duration::from_secs(5), || code("192.0.2.1") == "28000");
    for _ in 0..10 {
        assert_eq!(code("192.0.2.1"), "28000");
    }
    assert_eq!(code("192.0.2.2"), "28P01");
}

/// The limit holds over all shards: without that, each of them would have its own.
#[test]
fn failed_logins_are_counted_over_all_shards() {
    let qcp = Qcp::start("auth: {method: md5, failed_logins_max: 3, users: {app: its own}}\n", 2);
    let code = || {
        let mut client = RawClient::connect(&qcp.tcp());
        client.send(&startup(PROTOCOL_3_0, &[("user", "app"), ("database", "postgres")]));
        client.send(&message(b'p', b"md50123\0"));
        first_error(&client.receive_until_ready()).expect("it is wrong").0
    };
    let mut wrong = 0;
    for _ in 0..40 {
        match code().as_str() {
            "28P01" => wrong += 1,
            "28000" => {}
            other => panic!("{other}"),
        }
        // A message to the other shards takes its time.
        std::thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(wrong, 3);
}

/// Many that came before the first of them failed have no more tries than one after the other.
#[test]
fn guesses_at_once_are_no_more_than_guesses_in_turn() {
    let qcp = Qcp::start("auth: {method: password, failed_logins_max: 5, users: {app: its own}}\n", 1);
    let mut clients: Vec<RawClient> = (0..50).map(|_| RawClient::connect(&qcp.tcp())).collect();
    for client in &mut clients {
        client.send(&startup(PROTOCOL_3_0, &[("user", "app"), ("database", "postgres")]));
    }
    for client in &mut clients {
        assert!(matches!(client.receive(PATIENCE), Received::Message(Message { tag: b'R', .. })));
    }
    for client in &mut clients {
        client.send(&message(b'p', b"a wrong guess\0"));
    }
    let codes: Vec<String> =
        clients.iter_mut().map(|client| first_error(&client.receive_until_ready()).expect("it is wrong").0).collect();
    assert_eq!(codes.iter().filter(|code| *code == "28P01").count(), 5, "{codes:?}");
    assert_eq!(codes.iter().filter(|code| *code == "28000").count(), 45, "{codes:?}");
}

/// So many are let in, the next is told why not, and when one goes another may come.
fn check_limit(qcp: &Qcp, limit: usize, enter: &dyn Fn() -> Result<RawClient, (String, String)>, expected: &str) {
    for _ in 0..3 {
        let mut inside: Vec<RawClient> = (0..limit)
            .map(|count| {
                let mut entered = None;
                // Those of the round before leave in their own time.
                wait_until("there is room again", Duration::from_secs(5), || {
                    entered = enter().ok();
                    entered.is_some()
                });
                entered.unwrap_or_else(|| panic!("client {count}: {}", qcp.log()))
            })
            .collect();
        for _ in 0..5 {
            let (code, text) = enter().err().unwrap_or_else(|| panic!("{expected}: one too many is in"));
            assert_eq!((code.as_str(), text.as_str()), ("53300", expected));
        }
        for client in &mut inside {
            assert_eq!(client.query("SELECT 1"), Ok(vec!["1".to_owned()]));
        }
    }
}

#[test]
fn clients_of_a_database_a_user_and_an_address_are_limited() {
    // Not template1, which nobody may be in while another test creates its database.
    postgres().create_database("access_limits");
    let limits = "databases: {postgres: {limits: {max_clients: 3}}}\nusers: {trust_user: {limits: {max_clients: 2}}}\n\
                  limits: {max_clients: 100, max_clients_per_address: 5}\nproxy_protocol_from: [127.0.0.1]\n";
    for auth in [
        "auth: {method: trust}\n",
        "",
        "auth: {method: trust}\ndedicated_databases: [postgres]\n",
        "dedicated_users: [postgres, trust_user]\n",
    ] {
        for cores in [1, 2] {
            let qcp = Qcp::start(&format!("{limits}{auth}pool: {{size: 4}}\n"), cores);
            let as_user = |user: &'static str| {
                let qcp = &qcp;
                move || begin(qcp, &header("127.0.0.1"), user)
            };
            check_limit(&qcp, 3, &as_user(SUPERUSER), "too many connections for database \"postgres\"");
            check_limit(&qcp, 2, &as_user("trust_user"), "too many connections for role \"trust_user\"");
            let in_template = || {
                let mut client = RawClient::connect(&qcp.tcp());
                client.send(&header("127.0.0.9"));
                client.send(&startup(PROTOCOL_3_0, &[("user", SUPERUSER), ("database", "access_limits")]));
                let said = client.receive_until_ready();
                if said.last().is_some_and(|last| last.tag == b'Z') {
                    Ok(client)
                } else {
                    Err(first_error(&said).unwrap_or_else(|| panic!("{said:?}")))
                }
            };
            check_limit(&qcp, 5, &in_template, "too many connections from this address (5 are allowed)");
            let lines = qcp.log().lines().filter(|line| line.contains("INFO") && line.contains("53300")).count();
            // 45 refusals over two addresses, and a line for each of these and each core.
            assert!((2..=2 * cores).contains(&lines), "{}", qcp.log());
        }
    }
}

/// Logins that fail, or that are never finished, count for nobody.
#[test]
fn a_login_that_fails_gives_its_seat_back() {
    let yaml = "auth: {method: md5, failed_logins_max: 0, users: {postgres: its own}}\nlimits: {max_clients: 4, max_clients_per_address: 3, login_timeout: 1s}\n\
                databases: {postgres: {limits: {max_clients: 2}}}\n";
    let qcp = Qcp::start(yaml, 1);
    let slots_are_back = |what: &str| {
        // As many as may be there at once, all let in as far as the question.
        wait_until(what, Duration::from_secs(8), || {
            let mut three: Vec<RawClient> = (0..3).map(|_| RawClient::connect(&qcp.tcp())).collect();
            three.iter_mut().all(|client| {
                client.send(&startup(PROTOCOL_3_0, &[("user", "postgres"), ("database", "postgres")]));
                matches!(client.receive(PATIENCE), Received::Message(Message { tag: b'R', .. }))
            })
        });
        // They have hung up; the next is not to come before that is known.
        let gone = || qcp.control(&["show", "clients", "--json"]).success().trim() == "[]";
        wait_until("they are gone", Duration::from_secs(8), gone);
    };
    let whole = startup(PROTOCOL_3_0, &[("user", "postgres"), ("database", "postgres")]);
    let oversize = [&10_005u32.to_be_bytes()[..], &[0; 100]].concat();
    for (what, bytes, code) in [
        ("junk", b"GET / HTTP/1.1\r\n\r\n".to_vec(), Some("08P01")),
        ("more than 10,000 bytes", oversize, Some("08P01")),
        ("a length below the least", 3u32.to_be_bytes().to_vec(), Some("08P01")),
        ("an unknown version", untagged(4 << 16, b"user\0postgres\0\0"), Some("0A000")),
        ("no user", untagged(PROTOCOL_3_0, b"database\0x\0\0"), Some("28000")),
        ("no end", untagged(PROTOCOL_3_0, b"user\0postgres"), Some("08P01")),
        ("a wrong password", [&whole[..], &message(b'p', b"md5x\0")].concat(), Some("28P01")),
        ("a query for a password", [&whole[..], &message(b'Q', b"SELECT 1\0")].concat(), Some("08P01")),
        ("half a startup packet", whole[..whole.len() - 4].to_vec(), None),
        ("half a password", [&whole[..], &b"p\0\0\0\x40md5"[..]].concat(), None),
        ("nothing", Vec::new(), None),
    ] {
        for _ in 0..5 {
            let mut client = RawClient::connect(&qcp.tcp());
            client.send(&bytes);
            let Some(code) = code else { continue };
            let said = client.receive_until_ready();
            assert_eq!(first_error(&said).map(|(code, _)| code).as_deref(), Some(code), "{what}: {said:?}");
        }
        slots_are_back(what);
    }
    // Those who say nothing, and stay: login_timeout ends them.
    let silent: Vec<TcpStream> = (0..3)
        .map(|_| {
            let mut client = TcpStream::connect(("127.0.0.1", qcp.tcp().port)).expect("it accepts");
            client.write_all(&whole[..10]).expect("it listens");
            client
        })
        .collect();
    for mut client in silent {
        let mut said = Vec::new();
        let since = Instant::now();
        client.read_to_end(&mut said).expect("it is told and closed");
        assert!(since.elapsed() < Duration::from_secs(5));
        assert!(String::from_utf8_lossy(&said).contains("canceling authentication due to timeout"), "{said:?}");
    }
    slots_are_back("after login_timeout");
    let lines = qcp.log().lines().filter(|line| line.contains("INFO") && line.contains("127.0.0.1:")).count();
    assert!(lines <= 4, "one line for each kind of log a minute, at most:\n{}", qcp.log());
}

/// PostgreSQL reads what is sent ahead when its time comes.
#[test]
fn what_is_sent_ahead_of_a_login_waits() {
    let query = message(b'Q', b"SELECT 'through'\0");
    let through = |yaml: &str, user: &str, database: &str, ahead: &[Vec<u8>]| {
        let qcp = Qcp::start(yaml, 1);
        for in_one_write in [true, false] {
            let mut client = RawClient::connect(&qcp.tcp());
            let mut parts = vec![startup(PROTOCOL_3_0, &[("user", user), ("database", database)])];
            parts.extend(ahead.iter().cloned());
            parts.push(query.clone());
            if in_one_write {
                client.send(&parts.concat());
            } else {
                for part in parts {
                    client.send(&part);
                    std::thread::sleep(Duration::from_millis(5));
                }
            }
            let login = client.receive_until_ready();
            assert!(login.last().is_some_and(|last| last.tag == b'Z'), "{yaml}: {login:?}");
            let answer = client.receive_until_ready();
            assert!(answer.iter().any(|message| message.tag == b'D'), "{yaml}: {answer:?}");
        }
    };
    let password = message(b'p', b"in the clear\0");
    let long = message(b'Q', format!("SELECT length('{}')\0", "x".repeat(40_000)).as_bytes());
    for dedicated in ["", "dedicated_databases: [postgres]\n"] {
        // The server asks nobody, and the login is relayed.
        through(dedicated, SUPERUSER, "postgres", &[]);
        // The server asks, and the answer is there already.
        through(dedicated, "password_user", "postgres", std::slice::from_ref(&password));
        // QCP asks.
        let own = "auth: {method: password, users: {password_user: in the clear}}\n";
        through(&format!("{own}{dedicated}"), "password_user", "postgres", std::slice::from_ref(&password));
        through(&format!("auth: {{method: trust}}\n{dedicated}"), SUPERUSER, "postgres", &[]);
    }
    // More than is kept in a block.
    for dedicated in ["", "dedicated_databases: [postgres]\n"] {
        let qcp = Qcp::start(dedicated, 1);
        let mut client = RawClient::connect(&qcp.tcp());
        let head = startup(PROTOCOL_3_0, &[("user", "password_user"), ("database", "postgres")]);
        client.send(&[head, password.clone(), long.clone(), query.clone()].concat());
        for _ in 0..3 {
            let said = client.receive_until_ready();
            assert!(said.last().is_some_and(|last| last.tag == b'Z'), "{dedicated}: {said:?}");
        }
    }
    // Something else than a password is what PostgreSQL calls it.
    let qcp = Qcp::start("", 1);
    let mut client = RawClient::connect(&qcp.tcp());
    let head = startup(PROTOCOL_3_0, &[("user", "password_user"), ("database", "postgres")]);
    client.send(&[head, query.clone()].concat());
    let error = first_error(&client.receive_until_ready()).expect("refused");
    assert_eq!(error, ("08P01".to_owned(), "expected password response, got message type 81".to_owned()));
}

/// Rules may go by the roles that a user is a member of, which a server is asked for.
#[test]
fn rules_go_by_roles() {
    postgres().execute(
        "postgres",
        "CREATE ROLE staff; CREATE ROLE bosses IN ROLE staff; CREATE ROLE ann LOGIN IN ROLE bosses; CREATE ROLE bob LOGIN; \
         CREATE ROLE teamroom; CREATE ROLE eve LOGIN IN ROLE teamroom",
    );
    postgres().create_database("teamroom");
    postgres().create_database("access_roles");
    let folder = Folder::with_certificates();
    let hba = write(&folder, "hba.conf", "host access_roles +staff all trust\nhost samerole all all trust\n");
    let asker = "users: {password_user: {auth: {server_user: password_user, server_password: in the clear}}}\n";
    let qcp = Qcp::start(
        &format!(
            "auth: {{method: hba, hba_file: {hba}, query_user: password_user, query_database: postgres, \
             server_user: postgres}}\n{asker}"
        ),
        1,
    );
    let check = |user: &str, database: &str, is_in: bool| {
        for _ in 0..2 {
            let program = psql(&qcp.tcp(), user, database).args(["-XAtw", "-c", "SELECT current_database()"]);
            let finished = program.finish();
            if is_in {
                assert_eq!(finished.success().trim(), database, "{user}");
            } else {
                let said = finished.failure();
                assert!(said.contains("no pg_hba.conf entry"), "{user} {database}: {said}\n{}", qcp.log());
            }
        }
    };
    check("ann", "access_roles", true);
    check("bob", "access_roles", false);
    // A superuser is a member of all roles, but not where it comes to rules.
    check(SUPERUSER, "access_roles", false);
    check("nobody_of_that_name", "access_roles", false);
    check("o'brien\\", "access_roles", false);
    check("eve", "teamroom", true);
    check("ann", "teamroom", false);
    check("teamroom", "teamroom", true);
    let hba = write(&folder, "unasked.conf", "host all +staff all trust\n");
    let said = Setup::new(&format!("auth: {{method: hba, hba_file: {hba}}}\n")).refused();
    assert!(said.contains("unasked.conf:1: +role and samerole need auth.query_user"), "{said}");
}

/// The authority of somebody else's certificates is no authority here.
#[test]
fn a_certificate_of_the_same_name_from_elsewhere_is_nobodys() {
    let folder = Folder::with_certificates();
    let other = Folder::with_certificates();
    Authority::new(&PathBuf::from(other.path("")), "mallory").sign(SUPERUSER, &[]);
    let qcp = Qcp::start(&with_authority(&folder, "auth: {method: cert}\n"), 1);
    let said = with_certificate(&qcp, &other, SUPERUSER, Some(SUPERUSER)).failure();
    assert!(!said.contains("in as"), "{said}");
    with_certificate(&qcp, &folder, SUPERUSER, Some(SUPERUSER)).success();
}
