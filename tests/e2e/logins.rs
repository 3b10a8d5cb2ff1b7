//! Logins: who is let in, who is not, and in whose words.

use std::net::UdpSocket;

use super::support::pooler::{Qcp, Setup};
use super::support::postgres::{ROLES, SUPERUSER, postgres};
use super::support::programs::psql;
use super::support::raw::{PATIENCE, PROTOCOL_3_0, RawClient, Received, error_field, startup};
use super::support::{Address, free_port};

/// Logs in with psql and gives what it printed, with the ports that differ left out.
fn login(address: &Address, user: &str, database: &str, password: &str) -> (bool, String) {
    let psql = psql(address, user, database).args(["-XAt", "-w", "-c", "SELECT current_user, current_database()"]);
    let finished = psql.env("PGPASSWORD", password).finish();
    let said = format!("{}{}", finished.stdout, finished.stderr);
    (finished.status.success(), said.replace(&format!("port {}", address.port), "port *"))
}

/// A login through qcp ends as a direct one does, word for word.
fn check_same(qcp: &Qcp, user: &str, database: &str, password: &str) -> bool {
    let (is_in, said) = login(&postgres().tcp(), user, database, password);
    // Twice: the second login may be answered from what the first has brought.
    for _ in 0..2 {
        assert_eq!((is_in, said.clone()), login(&qcp.tcp(), user, database, password));
    }
    is_in
}

#[test]
fn each_method_is_relayed_word_for_word() {
    postgres().create_database("logins_methods");
    for mode in ["Session", "Smart"] {
        let yaml = format!("relay_mode: {mode}\npool: {{size: 2}}\nauth: {{failed_logins_max: 0}}\n");
        let qcp = Qcp::start(&yaml, 1);
        for role in &ROLES {
            let is_in = check_same(&qcp, role.name, "logins_methods", role.password);
            assert_eq!(is_in, role.method != "reject", "{}", role.name);
            let is_in = check_same(&qcp, role.name, "logins_methods", "a wrong guess");
            assert_eq!(is_in, role.method == "trust", "{}", role.name);
        }
    }
}

#[test]
fn a_password_is_asked_again_from_everybody() {
    postgres().create_database("logins_again");
    let qcp = Qcp::start("pool: {size: 2}\n", 1);
    let scram = ROLES.iter().find(|role| role.method == "scram-sha-256").expect("listed");
    for round in 0..3 {
        assert!(login(&qcp.tcp(), scram.name, "logins_again", scram.password).0, "round {round}");
        let (is_in, said) = login(&qcp.tcp(), scram.name, "logins_again", "a wrong guess");
        assert!(!is_in && said.contains("password authentication failed"), "round {round}: {said}");
    }
}

#[test]
fn unknown_users_and_databases_are_the_servers_business() {
    let qcp = Qcp::start("pool: {size: 2}\n", 1);
    assert!(!check_same(&qcp, "nobody_of_that_name", "postgres", ""));
    assert!(!check_same(&qcp, SUPERUSER, "no_such_database", ""));
    assert!(!check_same(&qcp, "trust_user", "no_such_database", ""));
}

#[test]
fn many_failed_logins_leave_no_backends() {
    postgres().create_database("logins_failed");
    let qcp = Qcp::start("pool: {size: 2}\nauth: {failed_logins_max: 0}\n", 1);
    for _ in 0..20 {
        assert!(!login(&qcp.tcp(), "md5_user", "logins_failed", "a wrong guess").0);
    }
    assert_eq!(postgres().count_backends("logins_failed"), 0);
    assert!(login(&qcp.tcp(), "md5_user", "logins_failed", "salted once").0);
}

#[test]
fn more_logins_than_places_all_succeed() {
    postgres().create_database("logins_many");
    let qcp = Qcp::start("pool: {size: 2}\n", 1);
    std::thread::scope(|scope| {
        for _ in 0..20 {
            scope.spawn(|| {
                let (is_in, said) = login(&qcp.tcp(), "scram_user", "logins_many", "salted and peppered");
                assert!(is_in, "{said}");
            });
        }
    });
    assert!(postgres().count_backends("logins_many") <= 2);
}

/// An address of this machine that is not the loopback, where it has one.
fn address_of_the_network() -> Option<String> {
    // Nothing is sent: connecting a datagram socket only asks for the route.
    let socket = UdpSocket::bind("0.0.0.0:0").ok()?;
    socket.connect("192.0.2.1:9").ok()?;
    let address = socket.local_addr().ok()?.ip();
    (!address.is_loopback() && !address.is_unspecified()).then(|| address.to_string())
}

#[test]
fn trust_of_the_server_is_passed_on_to_the_own_machine_only() {
    let Some(host) = address_of_the_network() else {
        eprintln!("this machine has no address but the loopback: there is nobody to refuse");
        return;
    };
    let qcp = Qcp::start("listening_address: 0.0.0.0:$port\npool: {size: 2}\n", 1);
    assert!(login(&qcp.tcp(), "trust_user", "postgres", "").0);

    let mut far = RawClient::connect(&Address { host: host.clone(), port: qcp.tcp().port });
    far.send(&startup(PROTOCOL_3_0, &[("user", "trust_user"), ("database", "postgres")]));
    let Received::Message(refusal) = far.receive(PATIENCE) else { panic!("no answer") };
    assert_eq!(refusal.tag, b'E');
    assert_eq!(error_field(&refusal.body, b'C'), "28000");
    assert!(error_field(&refusal.body, b'H').contains("auth: {method: trust}"), "{refusal:?}");

    // With a password anybody may come, and with the pooler's own trust too.
    let scram = Address { host: host.clone(), port: qcp.tcp().port };
    assert!(login(&scram, "scram_user", "postgres", "salted and peppered").0);
    let trusting = Qcp::start("listening_address: 0.0.0.0:$port\nauth: {method: trust}\n", 1);
    assert!(login(&Address { host, port: trusting.tcp().port }, "trust_user", "postgres", "").0);
}

#[test]
fn trust_of_the_pooler_asks_nobody() {
    postgres().create_database("logins_trust");
    let qcp = Qcp::start("auth: {method: trust}\npool: {size: 2}\n", 1);
    // The first login may need a backend, to learn what the server reports of itself; the others need none.
    let clients: Vec<RawClient> = (0..20).map(|_| RawClient::login(&qcp.tcp(), SUPERUSER, "logins_trust")).collect();
    assert!(postgres().count_backends("logins_trust") <= 1);
    drop(clients);
    assert!(login(&qcp.tcp(), SUPERUSER, "logins_trust", "").0);
}

#[test]
fn a_server_that_is_not_there_is_named() {
    let nowhere = free_port();
    let qcp = Setup::new("limits: {login_timeout: 3s}\n").server(&format!("127.0.0.1:{nowhere}")).start();
    let (is_in, said) = login(&qcp.tcp(), SUPERUSER, "postgres", "");
    assert!(!is_in);
    assert!(said.contains("FATAL") && said.contains(&nowhere.to_string()), "{said}");
}
