//! LISTEN where backends are shared: many clients hear by one, each notification once, in order, after its commit.

use std::time::Duration;

use super::support::door::{Door, Manner};
use super::support::pooler::{Qcp, Setup};
use super::support::postgres::{SUPERUSER, postgres};
use super::support::raw::{Message, PATIENCE, RawClient, Received, message, zero_ended};
use super::support::wait_until;

fn qcp(database: &str, size: usize, cores: usize) -> Qcp {
    postgres().create_database(database);
    Qcp::start(&format!("relay_mode: Smart\nsession_state: preserve\npool: {{size: {size}}}\n"), cores)
}

fn client(qcp: &Qcp, database: &str) -> RawClient {
    RawClient::login(&qcp.tcp(), SUPERUSER, database)
}

/// What a notification says: who, where, what.
fn notification(message: &Message) -> Option<(u32, String, String)> {
    if message.tag != b'A' {
        return None;
    }
    let pid = u32::from_be_bytes(message.body[..4].try_into().expect("four bytes"));
    let mut words = message.body[4..].split(|&byte| byte == 0).map(|word| String::from_utf8_lossy(word).into_owned());
    Some((pid, words.next().expect("a channel"), words.next().expect("a payload")))
}

/// Runs it, and what was heard before its ReadyForQuery.
fn run(client: &mut RawClient, sql: &str) -> Vec<(u32, String, String)> {
    client.send(&message(b'Q', &zero_ended(sql)));
    let replies = client.receive_until_ready();
    assert!(!replies.iter().any(|reply| reply.tag == b'E'), "{sql}: {replies:?}");
    replies.iter().filter_map(notification).collect()
}

/// The next notification's payload.
fn hear(client: &mut RawClient) -> String {
    match client.receive(PATIENCE) {
        Received::Message(message) => notification(&message).unwrap_or_else(|| panic!("{message:?}")).2,
        other => panic!("{other:?}"),
    }
}

fn hear_nothing(client: &mut RawClient) {
    assert_eq!(client.receive(Duration::from_millis(300)), Received::Quiet);
}

/// Waits until no client is pinned.
fn settle(qcp: &Qcp) {
    let clean = || !qcp.control(&["show", "clients", "--json"]).stdout.contains("LISTEN");
    wait_until("nobody is pinned by LISTEN", Duration::from_secs(5), clean);
}

fn given_pid(client: &RawClient) -> u32 {
    u32::from_be_bytes(client.key[..4].try_into().expect("four bytes"))
}

#[test]
fn many_listen_by_one_backend() {
    for (database, size, cores) in [("listen_one", 1, 1), ("listen_few", 3, 2)] {
        let qcp = qcp(database, size, cores);
        let mut ears: Vec<RawClient> = (0..40).map(|_| client(&qcp, database)).collect();
        for (at, ear) in ears.iter_mut().enumerate() {
            assert!(run(ear, &format!("listen c{}; listen all_of_them", at % 5)).is_empty());
        }
        settle(&qcp);
        assert!(postgres().count_backends(database) <= size + cores, "more than a listener for each core");
        let mut mouth = client(&qcp, database);
        for round in 0..10 {
            run(
                &mut mouth,
                &format!("begin; notify c{}, 'a{round}'; notify all_of_them, 'b{round}'; commit", round % 5),
            );
            run(&mut mouth, "begin; notify all_of_them, 'never'; rollback");
        }
        for (at, ear) in ears.iter_mut().enumerate() {
            for round in 0..10 {
                if round % 5 == at % 5 {
                    assert_eq!(hear(ear), format!("a{round}"));
                }
                assert_eq!(hear(ear), format!("b{round}"));
            }
        }
        hear_nothing(&mut ears[0]);
        drop(ears);
        let listening = || !qcp.control(&["show", "backends", "--json"]).stdout.contains("listening");
        wait_until("the listener is given back", Duration::from_secs(5), listening);
    }
}

#[test]
fn ones_own_notifications_come_before_ready_with_ones_own_pid() {
    let database = "listen_own";
    let qcp = qcp(database, 2, 1);
    let (mut one, mut other) = (client(&qcp, database), client(&qcp, database));
    run(&mut one, "listen jobs");
    run(&mut other, "listen jobs");
    settle(&qcp);
    let own = given_pid(&one);
    for round in 0..50 {
        let heard = run(&mut one, &format!("notify jobs, '{round}'"));
        assert_eq!(heard, [(own, "jobs".to_owned(), round.to_string())]);
        // The other has not read it yet; what it asks now comes behind it.
        let heard = run(&mut other, "select 1");
        assert!(heard.len() == 1 && heard[0].0 != given_pid(&other) && heard[0].2 == round.to_string(), "{heard:?}");
    }
    assert_eq!(run(&mut one, "select pg_notify('jobs', 'f')").len(), 1);
    assert_eq!(run(&mut one, "notify jobs; notify jobs; notify jobs, 'x'").len(), 2);
    assert!(run(&mut one, "notify elsewhere").is_empty());
}

#[test]
fn what_comes_in_a_transaction_waits_for_its_end() {
    let database = "listen_wait";
    let qcp = qcp(database, 2, 1);
    let (mut ear, mut mouth) = (client(&qcp, database), client(&qcp, database));
    run(&mut ear, "listen a");
    settle(&qcp);
    assert!(run(&mut ear, "begin").is_empty());
    for round in 0..2000 {
        run(&mut mouth, &format!("notify a, '{round:0100}'"));
    }
    hear_nothing(&mut ear);
    assert!(run(&mut ear, "select 1").is_empty());
    let heard = run(&mut ear, "commit");
    assert!(heard.iter().map(|(_, _, payload)| payload.clone()).eq((0..2000).map(|round| format!("{round:0100}"))));
}

#[test]
fn listen_and_unlisten_are_transactional() {
    let database = "listen_rules";
    let qcp = qcp(database, 3, 1);
    let (mut ear, mut mouth) = (client(&qcp, database), client(&qcp, database));
    let mut hears = |ear: &mut RawClient, expected: &[&str]| {
        run(&mut mouth, "begin; notify a, 'a'; notify b, 'b'; notify \"C d\", 'c'; commit");
        let mut heard: Vec<String> = run(ear, "select 1").into_iter().map(|(_, _, payload)| payload).collect();
        // Right behind a LISTEN some channels are heard here and some there: each is in order, but not between them.
        heard.sort();
        assert_eq!(heard, expected);
        settle(&qcp);
    };
    run(&mut ear, "begin; listen a; rollback");
    hears(&mut ear, &[]);
    run(&mut ear, "begin; listen a; savepoint s; listen b; rollback to s; listen \"C d\"; commit");
    hears(&mut ear, &["a", "c"]);
    run(&mut ear, "begin");
    run(&mut ear, "unlisten a");
    run(&mut ear, "rollback");
    hears(&mut ear, &["a", "c"]);
    run(&mut ear, "begin");
    run(&mut ear, "unlisten a");
    run(&mut ear, "listen b");
    run(&mut ear, "commit");
    hears(&mut ear, &["b", "c"]);
    run(&mut ear, "unlisten \"C d\"; listen a");
    hears(&mut ear, &["a", "b"]);
    assert!(ear.query("unlisten a; select 1/0").is_err());
    hears(&mut ear, &["a", "b"]);
    run(&mut ear, "do $$ begin execute 'unlisten b'; execute 'listen \"C d\"'; end $$");
    hears(&mut ear, &["a", "c"]);
    assert_eq!(ear.query("select * from pg_listening_channels() order by 1").expect("it is true"), ["C d", "a"]);
    hears(&mut ear, &["a", "c"]);
    run(&mut ear, "unlisten *");
    hears(&mut ear, &[]);
    run(&mut ear, "listen a");
    hears(&mut ear, &["a"]);
    run(&mut ear, "discard all");
    hears(&mut ear, &[]);
}

/// Every answer of the server comes late: what it says of a session's channels is old when the client has said something
/// since it was asked.
#[test]
fn an_answer_on_channels_from_before_discard_all_is_not_believed() {
    const LATE: Duration = Duration::from_millis(60);
    let database = "listen_late";
    postgres().create_database(database);
    let door = Door::before(postgres().tcp(), Manner::Open);
    let yaml = "relay_mode: Smart\nsession_state: preserve\npool: {size: 3}\n";
    let qcp = Setup::new(yaml).server(&door.address()).start();
    // Somebody listens on it already, so that the listener does.
    let (mut first, mut ear, mut mouth) = (client(&qcp, database), client(&qcp, database), client(&qcp, database));
    run(&mut first, "listen a");
    settle(&qcp);
    run(&mut ear, "select 1");
    door.set_delay(LATE);
    for round in 0..9 {
        run(&mut ear, "listen a");
        // Somewhere in the two round trips in which the server is asked what the LISTEN has done.
        std::thread::sleep(LATE * round / 4);
        run(&mut ear, "discard all");
        if round % 2 == 0 {
            std::thread::sleep(LATE * 5);
            run(&mut mouth, "notify a, 'not for it'");
        } else {
            run(&mut ear, "listen a");
            run(&mut mouth, &format!("notify a, '{round}'"));
            assert_eq!(hear(&mut ear), round.to_string());
            run(&mut ear, "discard all");
            std::thread::sleep(LATE * 5);
        }
        assert!(run(&mut ear, "select 1").is_empty(), "round {round}");
    }
    hear_nothing(&mut ear);
}

/// A listener that is not yet told to hear marks would not see that of a client which moves to it.
#[test]
fn who_comes_while_a_listener_begins_hears_all() {
    let database = "listen_begins";
    postgres().create_database(database);
    let door = Door::before(postgres().tcp(), Manner::Open);
    let yaml = "relay_mode: Smart\nsession_state: preserve\npool: {size: 4}\n";
    let qcp = Setup::new(yaml).server(&door.address()).start();
    let (mut first, mut second, mut mouth) = (client(&qcp, database), client(&qcp, database), client(&qcp, database));
    run(&mut mouth, "select 1");
    door.hold_questions("SET idle_session_timeout = 0; LISTEN");
    run(&mut first, "listen a");
    run(&mut second, "listen a");
    std::thread::sleep(Duration::from_millis(300));
    door.let_ask();
    for round in 0..3 {
        run(&mut mouth, &format!("notify a, '{round}'"));
        for ear in [&mut first, &mut second] {
            assert_eq!(hear(ear), round.to_string());
        }
    }
    settle(&qcp);
}

#[test]
fn none_is_lost_or_doubled_while_clients_move() {
    let database = "listen_move";
    let qcp = qcp(database, 4, 2);
    let mut first = client(&qcp, database);
    run(&mut first, "listen a");
    settle(&qcp);
    // One that never stops.
    let address = qcp.tcp();
    let (stop, stopped) = std::sync::mpsc::channel::<()>();
    let mouth = std::thread::spawn(move || {
        let mut mouth = RawClient::login(&address, SUPERUSER, "listen_move");
        let mut count = 0;
        while stopped.try_recv().is_err() {
            run(&mut mouth, &format!("notify a, '{count}'"));
            count += 1;
        }
        count
    });
    let mut ears: Vec<(RawClient, Vec<u64>)> = Vec::new();
    for _ in 0..100 {
        let mut ear = client(&qcp, database);
        run(&mut ear, "listen a");
        ears.push((ear, Vec::new()));
    }
    settle(&qcp);
    stop.send(()).expect("it runs");
    let count: u64 = mouth.join().expect("it ends");
    assert!(count > 20, "{count}");
    for (ear, heard) in &mut ears {
        while heard.last() != Some(&(count - 1)) {
            heard.push(hear(ear).parse().expect("a number"));
        }
        assert!(heard.windows(2).all(|pair| pair[1] == pair[0] + 1), "{heard:?}");
    }
    assert!((0..count).all(|number| hear(&mut first) == number.to_string()));
}

#[test]
fn a_lost_listener_is_told_and_the_next_works() {
    let database = "listen_lost";
    let qcp = qcp(database, 2, 1);
    let (mut ear, mut other) = (client(&qcp, database), client(&qcp, database));
    run(&mut ear, "listen a");
    settle(&qcp);
    run(&mut other, "select 1");
    postgres().execute(
        "postgres",
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = 'listen_lost' AND query LIKE '%LISTEN%'",
    );
    let Received::Message(error) = ear.receive(PATIENCE) else { panic!("the client is told") };
    assert!(error.tag == b'E' && String::from_utf8_lossy(&error.body).contains("08006"), "{error:?}");
    assert_eq!(ear.receive(PATIENCE), Received::Closed);
    run(&mut other, "listen a");
    settle(&qcp);
    assert_eq!(run(&mut other, "notify a, 'again'").len(), 1);
}

#[test]
fn who_does_not_read_is_closed_and_the_others_hear() {
    let database = "listen_slow";
    let qcp = qcp(database, 2, 1);
    let mut slow = RawClient::connect_narrow(&qcp.tcp()).logged_in(SUPERUSER, database);
    let (mut ear, mut mouth) = (client(&qcp, database), client(&qcp, database));
    run(&mut slow, "listen a");
    run(&mut ear, "listen a");
    settle(&qcp);
    let payload = "x".repeat(7000);
    for _ in 0..2000 {
        run(&mut mouth, &format!("notify a, '{payload}'"));
        assert_eq!(hear(&mut ear).len(), 7000);
    }
    assert!(qcp.log().contains("too many notifications"), "{}", qcp.log());
    run(&mut mouth, "select 1");
}

/// `LISTENERS` (200) clients on `CHANNELS` (20) channels through two cores: each is told of each notification on its two
/// channels once, in order, and of nothing else. `scripts/listen` runs it with 5,000 and 500.
#[test]
fn a_crowd_listens() {
    let number = |name: &str, default: usize| {
        std::env::var(name).map_or(default, |text| text.parse().unwrap_or_else(|_| panic!("{name}: {text}")))
    };
    let (listeners, channels) = (number("LISTENERS", 200), number("CHANNELS", 20));
    let database = "listen_crowd";
    let qcp = qcp(database, 8, 2);
    let begun = std::time::Instant::now();
    let of = |ear: usize| (ear % channels, (ear * 7 + 3) % channels);
    let mut ears: Vec<RawClient> = (0..listeners)
        .map(|at| {
            let mut ear = client(&qcp, database);
            let (one, two) = of(at);
            run(&mut ear, &format!("listen c{one}; listen c{two}"));
            ear
        })
        .collect();
    settle(&qcp);
    let listening = begun.elapsed();
    let shown = qcp.control(&["show", "backends", "--json"]).stdout;
    assert!(shown.matches("listening").count() <= 2, "{shown}");
    let mut mouths: Vec<RawClient> = (0..4).map(|_| client(&qcp, database)).collect();
    let rounds = 3;
    for round in 0..rounds {
        for channel in 0..channels {
            let mouth = &mut mouths[channel % 4];
            run(mouth, "begin; notify c0, 'rolled back'; rollback");
            run(mouth, &format!("begin; notify c{channel}, '{round}.{channel}'; commit"));
        }
    }
    for (at, ear) in ears.iter_mut().enumerate() {
        let (one, two) = of(at);
        for round in 0..rounds {
            for channel in [one.min(two), one.max(two)].into_iter().take(if one == two { 1 } else { 2 }) {
                assert_eq!(hear(ear), format!("{round}.{channel}"), "client {at}");
            }
        }
    }
    for ear in ears.iter_mut().step_by(listeners / 10 + 1) {
        hear_nothing(ear);
    }
    assert!(postgres().count_backends(database) <= 8 + 2);
    println!("{listeners} clients on {channels} channels: {listening:.1?} to listen, {:.1?} in all", begun.elapsed());
}
