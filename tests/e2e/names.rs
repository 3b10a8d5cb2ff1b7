//! A server's host name comes to mean another address. One server that listens on several stands for several.

use std::time::{Duration, Instant};

use super::support::pooler::{Qcp, Setup};
use super::support::postgres::SUPERUSER;
use super::support::programs::psql;
use super::support::raw::{RawClient, message, zero_ended};
use super::support::server::Server;
use super::support::wait_until;

const LONG: Duration = Duration::from_secs(15);

fn server() -> Server {
    let server = Server::start(&["listen_addresses=127.0.0.1,127.0.0.2"]);
    server.set_access("host all all 127.0.0.0/8 trust");
    server
}

fn start(server: &Server, yaml: &str, first: &str) -> Qcp {
    let hosts = format!("127.0.0.1 localhost\n{first} moving.test\n");
    let address = format!("moving.test:{}", server.tcp().port);
    Setup::new(&format!("auth: {{method: trust}}\n{yaml}")).server(&address).hosts(&hosts).start()
}

fn address_of(client: &mut RawClient) -> String {
    client.query("SELECT host(inet_server_addr())").expect("it answers").remove(0)
}

#[test]
fn a_name_that_moves_takes_its_backends_along() {
    let server = server();
    let qcp = start(&server, "session_state: none\ndns_ttl: 500ms\npool: {size: 3}\n", "127.0.0.1");
    let mut clients: Vec<RawClient> = (0..3).map(|_| RawClient::login(&qcp.tcp(), SUPERUSER, "postgres")).collect();
    for client in &mut clients {
        client.query("BEGIN").expect("it answers");
    }
    for client in &mut clients[1..] {
        client.query("COMMIT").expect("it answers");
    }
    let known = || psql(&qcp.unix(), "anybody", "pgbouncer").args(["-XAtc", "SHOW DNS_HOSTS"]).finish().success();
    assert_eq!(known().trim(), format!("moving.test|0|127.0.0.1:{}", server.tcp().port));
    qcp.set_hosts("127.0.0.2 moving.test\n");
    wait_until("the name is looked up again", LONG, || qcp.log().contains("is at 127.0.0.2"));
    assert_eq!(known().trim(), format!("moving.test|0|127.0.0.2:{}", server.tcp().port));
    // Idle ones are gone by now, without a word to any client.
    for client in &mut clients[1..] {
        assert_eq!(address_of(client), "127.0.0.2");
    }
    assert_eq!(address_of(&mut clients[0]), "127.0.0.1", "a transaction ends where it began");
    clients[0].query("COMMIT").expect("it answers");
    for client in &mut clients {
        assert_eq!(address_of(client), "127.0.0.2");
    }
}

#[test]
fn a_name_is_looked_up_again_when_nobody_answers() {
    let server = server();
    // Nobody listens there.
    let qcp = start(&server, "dns_ttl: 1h\n", "127.0.0.3");
    let begun = Instant::now();
    let waiting = std::thread::spawn({
        let address = qcp.tcp();
        move || address_of(&mut RawClient::login(&address, SUPERUSER, "postgres"))
    });
    wait_until("it has tried", LONG, || qcp.log().contains("no server connection"));
    qcp.set_hosts("127.0.0.2 moving.test\n");
    assert_eq!(waiting.join().expect("it has waited"), "127.0.0.2");
    assert!(begun.elapsed() < Duration::from_secs(8), "{:?}", begun.elapsed());
}

#[test]
fn a_name_is_believed_for_its_time() {
    let server = server();
    let qcp = start(&server, "dns_ttl: 1h\npool: {size: 2}\n", "127.0.0.1");
    let mut clients: Vec<RawClient> = (0..2).map(|_| RawClient::login(&qcp.tcp(), SUPERUSER, "postgres")).collect();
    clients[0].query("BEGIN").expect("it answers");
    qcp.set_hosts("127.0.0.2 moving.test\n");
    std::thread::sleep(Duration::from_millis(700));
    clients[1].send(&message(b'Q', &zero_ended("SELECT host(inet_server_addr())")));
    let replies = clients[1].receive_until_ready();
    assert!(replies.iter().any(|reply| reply.body.ends_with(b"127.0.0.1")), "{replies:?}");
}
