//! Clients with settings of two kinds on one pool.

use super::support::door::{Door, Manner};
use super::support::pooler::{Qcp, Setup};
use super::support::postgres::{SUPERUSER, postgres};
use super::support::raw::{RawClient, message, zero_ended};

const TIMES: usize = 50;

/// QCP with so many backends, which it reaches by a door.
fn qcp(database: &str, size: usize) -> (Qcp, Door) {
    postgres().create_database(database);
    let door = Door::before(postgres().tcp(), Manner::Open);
    let yaml = format!("relay_mode: Smart\nsession_state: preserve\ntransparency: fast\npool: {{size: {size}}}\n");
    (Setup::new(&yaml).server(&door.address()).start(), door)
}

/// Two clients, each with two settings of its own: one that the server reports, and one that it does not.
fn two_kinds(qcp: &Qcp, database: &str) -> [RawClient; 2] {
    ["1MB", "2MB"].map(|work_mem| {
        let mut client = RawClient::login(&qcp.tcp(), SUPERUSER, database);
        client.query(&format!("set work_mem = '{work_mem}'")).expect("a setting");
        client.query(&format!("set application_name = '{work_mem}'")).expect("a setting");
        client
    })
}

/// Their settings in one write with what they ask: no round trip more than without.
#[test]
fn take_turns_without_a_further_round_trip() {
    let (qcp, door) = qcp("kinds_one", 1);
    let mut clients = two_kinds(&qcp, "kinds_one");
    let show = "select current_setting('work_mem') || current_setting('application_name')";
    let parse = message(b'P', &[zero_ended(""), zero_ended(show), vec![0, 0]].concat());
    let bind = message(b'B', &[zero_ended(""), zero_ended(""), vec![0; 6]].concat());
    let batch = [parse, bind, message(b'E', &[0; 5]), message(b'S', &[])].concat();
    let both = |clients: &mut [RawClient; 2]| {
        for (client, expected) in clients.iter_mut().zip(["1MB1MB", "2MB2MB"]) {
            assert_eq!(client.query(show).expect("it answers"), [expected]);
            client.send(&batch);
            let replies = client.receive_until_ready();
            let row = replies.iter().find(|reply| reply.tag == b'D').expect("a row");
            assert!(row.body.ends_with(expected.as_bytes()), "{replies:?}");
        }
    };
    both(&mut clients);
    let before = door.turns();
    for _ in 0..TIMES {
        both(&mut clients);
    }
    assert_eq!(door.turns() - before, 4 * TIMES);
}

/// Each gets the backend that has its settings, whichever was used last.
#[test]
fn have_a_backend_each_where_there_are_enough() {
    let (qcp, door) = qcp("kinds_two", 2);
    let mut clients = two_kinds(&qcp, "kinds_two");
    // Both at once, so that both backends are there.
    for client in &mut clients {
        client.query("begin").expect("it answers");
    }
    let pids = clients.each_mut().map(|client| client.query("select pg_backend_pid()").expect("it answers"));
    assert_ne!(pids[0], pids[1]);
    for client in &mut clients {
        client.query("commit").expect("it answers");
    }
    let before = door.turns();
    for time in 0..TIMES {
        // The one that comes next is not always the one that was last.
        let chosen = time * time / 3 % 2;
        assert_eq!(clients[chosen].query("select pg_backend_pid()").expect("it answers"), pids[chosen]);
    }
    assert_eq!(door.turns() - before, TIMES);
}
