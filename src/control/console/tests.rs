use std::cell::RefCell;

use super::*;
use crate::control::report::metrics::{Measured, Totals};
use crate::control::report::{BackendRow, BackendState, ClientRow, ClientState, PoolRow};
use crate::control::wire::Reply;
use crate::protocol::Writer;
use crate::protocol::trace;

/// A process of one shard, with a client and a backend.
#[derive(Default)]
struct Fake {
    commands: RefCell<Vec<String>>,
    /// Backends that are at work.
    busy: RefCell<usize>,
}

impl Source for Fake {
    fn reports(&self) -> Result<Vec<ShardReport>, String> {
        let client = ClientRow {
            id: 7,
            user: "app".to_owned(),
            database: "shop".to_owned(),
            state: ClientState::Idle,
            shard: 0,
            address: "10.0.0.7:40312".to_owned(),
            connected_s: 60,
            application_name: "psql".to_owned(),
            backend_pid: None,
            wait_ms: 0,
            pinned: Vec::new(),
            pinned_s: 0,
            quiet_s: 2,
            tls: false,
            local: String::new(),
            cipher: String::new(),
            replication: "none".to_owned(),
            prepared_statements: 0,
        };
        let backend = BackendRow {
            pid: Some(4711),
            user: "app".to_owned(),
            database: "shop".to_owned(),
            server: "10.0.0.1:5432".to_owned(),
            state: if *self.busy.borrow() > 0 { BackendState::Linked } else { BackendState::Idle },
            shard: 0,
            age_s: 90,
            idle_s: 0,
            client: None,
            transaction_ms: 0,
            busy: false,
            close_needed: false,
            tls: false,
            local: String::new(),
            cipher: String::new(),
            replication: "none".to_owned(),
            prepared_statements: 3,
        };
        let pool = PoolRow {
            role: String::new(),
            server: "10.0.0.1:5432".to_owned(),
            database: "shop".to_owned(),
            user: "app".to_owned(),
            mode: RelayMode::Smart,
            size: 5,
            permits: 5,
            idle: 1,
            linked: 0,
            dialing: 0,
            cleaning: 0,
            waiting: 0,
            oldest_wait_ms: 0,
            queries: 10,
            transactions: 10,
            clients: 1,
        };
        Ok(vec![ShardReport {
            clients: vec![client],
            backends: vec![backend],
            pools: vec![pool],
            ..Default::default()
        }])
    }

    fn counted(&self) -> Result<Vec<ShardMetrics>, String> {
        let mut totals = Totals::default();
        totals.logins = 4;
        (0..9).for_each(|_| totals.query_took(Measured::of_us(0)));
        totals.query_took(Measured::of_us(70_000_123));
        Ok(vec![ShardMetrics { retired: vec![("shop".to_owned(), totals)], ..Default::default() }])
    }

    fn averages(&self, counted: &BTreeMap<String, Sums>) -> BTreeMap<String, Sums> {
        counted.clone()
    }

    fn averages_of_all(&self, counted: &BTreeMap<String, Sums>) -> Sums {
        counted["shop"]
    }

    fn keys(&self) -> Vec<KeyRow> {
        Vec::new()
    }

    fn databases(&self) -> Vec<String> {
        vec!["shop".to_owned()]
    }

    fn database(&self, name: &str) -> Option<DatabaseEntry> {
        (name == "shop").then(|| DatabaseEntry {
            hosts: vec![("10.0.0.1".to_owned(), Some(5432))],
            database: "shop".to_owned(),
            force_user: None,
            pool_size: 5,
            min_pool_size: 0,
            reserve_pool_size: 0,
            server_lifetime_s: 3600,
            mode: RelayMode::Smart,
            schedule: "round-robin".to_owned(),
            max_connections: 0,
            max_clients: 0,
        })
    }

    fn users(&self) -> Vec<String> {
        vec!["app".to_owned()]
    }

    fn user(&self, _name: &str) -> UserEntry {
        UserEntry::default()
    }

    fn now(&self) -> Duration {
        Duration::from_secs(1_735_689_600)
    }

    fn clients_max(&self) -> u64 {
        100
    }

    fn port(&self) -> u16 {
        6432
    }

    fn answer(&self, command: &Command) -> Answer {
        self.commands.borrow_mut().push(command.to_string());
        Ok(Reply { value: Default::default(), text: String::new() })
    }

    fn set(&self, key: &str, value: &str) -> Result<(), String> {
        self.commands.borrow_mut().push(format!("{key}={value}"));
        if key == "wrong" { Err("no such key".to_owned()) } else { Ok(()) }
    }

    fn kill_client(&self, id: u64) -> bool {
        id == 7
    }
}

/// Messages, one after another.
fn said(write: impl FnOnce(&mut Writer<'_>)) -> Vec<u8> {
    let mut out = Vec::new();
    put(&mut out, 8192, write);
    out
}

fn query(text: &str) -> Vec<u8> {
    said(|writer| writer.query(text.as_bytes()).expect("it is short"))
}

/// What was answered, a message a line.
fn lines(out: &[u8]) -> Vec<String> {
    let mut framer = Framer::new(Direction::Backend);
    let (mut at, mut lines) = (0, Vec::new());
    while let Ok(Step::Message { available, .. }) = framer.next(&out[at..], |_, size| size as usize) {
        lines.push(trace::line(Direction::Backend, &out[at..at + available]));
        at += available;
    }
    assert_eq!(at, out.len(), "whole messages");
    lines
}

/// The kinds of the answer's messages, by their tags.
fn tags(out: &[u8]) -> String {
    let mut framer = Framer::new(Direction::Backend);
    let (mut at, mut tags) = (0, String::new());
    while let Ok(Step::Message { tag, available, .. }) = framer.next(&out[at..], |_, size| size as usize) {
        tags.push(tag as char);
        at += available;
    }
    tags
}

fn ask(session: &mut Session, bytes: &[u8], may: May, source: &Fake) -> (Vec<u8>, Progress) {
    let mut out = Vec::new();
    let progress = session.on_bytes(bytes, may, source, &mut out);
    (out, progress)
}

#[test]
fn every_show_has_the_columns_that_it_says() {
    let source = Fake::default();
    for show in Show::ALL {
        let rows = show.rows(None, &source).expect("the shards answer");
        for row in &rows.rows {
            assert_eq!(row.len(), rows.columns.len(), "{}", show.name());
        }
        let (out, _) = ask(&mut Session::default(), &query(&format!("SHOW {}", show.name())), May::Look, &source);
        let tags = tags(&out);
        assert!(tags.ends_with("CZ"), "{}: {tags}", show.name());
        assert!(!tags.contains('E'), "{}: {tags}", show.name());
    }
}

#[test]
fn pgbouncers_columns_come_first() {
    let names = |show: Show| show.columns().iter().map(|(name, _)| *name).collect::<Vec<_>>().join(" ");
    let check = |show, expected: &str| assert!(names(show).starts_with(expected), "{}", names(show));
    check(
        Show::Pools,
        "database user cl_active cl_waiting cl_active_cancel_req cl_waiting_cancel_req sv_active sv_active_cancel \
         sv_being_canceled sv_idle sv_used sv_tested sv_login maxwait maxwait_us pool_mode load_balance_hosts",
    );
    check(
        Show::Clients,
        "type user database replication state addr port local_addr local_port connect_time request_time wait wait_us \
         close_needed ptr link remote_pid tls application_name prepared_statements id",
    );
    check(
        Show::Databases,
        "name host port database force_user pool_size min_pool_size reserve_pool_size server_lifetime pool_mode \
         load_balance_hosts max_connections current_connections max_client_connections current_client_connections \
         paused disabled",
    );
    check(
        Show::Stats,
        "database total_server_assignment_count total_xact_count total_query_count total_received total_sent \
         total_xact_time total_query_time total_wait_time total_client_parse_count total_server_parse_count \
         total_bind_count total_client_login_count avg_server_assignment_count avg_xact_count avg_query_count avg_recv \
         avg_sent avg_xact_time avg_query_time avg_wait_time avg_client_parse_count avg_server_parse_count \
         avg_bind_count avg_client_login_count",
    );
    check(
        Show::StatsTotals,
        "database server_assignment_count xact_count query_count bytes_received bytes_sent xact_time query_time \
         wait_time client_parse_count server_parse_count bind_count client_login_count",
    );
    check(
        Show::Users,
        "name pool_size reserve_pool_size pool_mode max_user_connections current_connections \
         max_user_client_connections current_client_connections",
    );
    check(Show::Config, "key value default changeable");
    check(Show::Lists, "list items");
    check(Show::Mem, "name size used free memtotal");
}

#[test]
fn rows_are_of_one_where_that_is_asked() {
    let source = Fake::default();
    let count = |show: Show, of: &str| show.rows(Some(of), &source).expect("they answer").rows.len();
    assert_eq!((count(Show::Stats, "shop"), count(Show::Stats, "other")), (1, 0));
    assert_eq!((count(Show::Clients, "7"), count(Show::Clients, "8"), count(Show::Servers, "4711")), (1, 0, 1));
}

#[test]
fn the_extended_protocol() {
    let source = Fake::default();
    let mut session = Session::default();
    let bytes = said(|writer| {
        writer.parse(b"s", b"SHOW STATS_TOTALS", &[0, 0]).expect("it is short");
        writer.describe(TargetKind::Statement, b"s").expect("it is short");
        // All results in binary.
        writer.bind(b"", b"s", &[0, 0, 0, 0, 0, 1, 0, 1]).expect("it is short");
        writer.describe(TargetKind::Portal, b"").expect("it is short");
        writer.execute(b"", 0).expect("it is short");
        writer.sync().expect("it is short");
    });
    // However it arrives.
    for piece in [1, 7, bytes.len()] {
        let mut out = Vec::new();
        session.prepared.clear();
        for piece in bytes.chunks(piece) {
            session.on_bytes(piece, May::Look, &source, &mut out);
        }
        assert_eq!(tags(&out), "1tT2TDCZ", "{:?}", lines(&out));
        // 10 queries, as a numeric: one digit.
        let numeric = [0, 0, 0, 10, 0, 1, 0, 0, 0, 0, 0, 0, 0, 10];
        assert!(out.windows(numeric.len()).any(|bytes| bytes == numeric));
    }
    // What fails is discarded up to the Sync.
    let bytes = said(|writer| {
        writer.bind(b"", b"none", &[0, 0, 0, 0, 0, 0]).expect("it is short");
        writer.execute(b"", 0).expect("it is short");
        writer.sync().expect("it is short");
        writer.query(b"SHOW VERSION").expect("it is short");
    });
    let (out, progress) = ask(&mut session, &bytes, May::Look, &source);
    assert_eq!((tags(&out).as_str(), progress), ("EZTDCZ", Progress::Done));
    // A row at a time.
    let bytes = said(|writer| {
        writer.parse(b"", b"SHOW STATE", &[0, 0]).expect("it is short");
        writer.bind(b"p", b"", &[0, 0, 0, 0, 0, 0]).expect("it is short");
        for _ in 0..3 {
            writer.execute(b"p", 1).expect("it is short");
        }
        writer.close(TargetKind::Portal, b"p").expect("it is short");
        writer.execute(b"p", 1).expect("it is short");
        writer.sync().expect("it is short");
    });
    let (out, _) = ask(&mut session, &bytes, May::Look, &source);
    assert_eq!(tags(&out), "12DsDsDC3EZ");
}

#[test]
fn rights_are_looked_at_for_each_statement() {
    let source = Fake::default();
    let mut session = Session::default();
    for text in
        ["PAUSE", "RESUME", "KILL shop", "RELOAD", "SET pool.size = 3", "SHUTDOWN", "KILL_CLIENT 7", "WAIT_CLOSE"]
    {
        let (out, progress) = ask(&mut session, &query(text), May::Look, &source);
        assert_eq!((tags(&out).as_str(), progress), ("EZ", Progress::Done), "{text}");
        assert!(lines(&out)[0].contains("42501"), "{text}: {:?}", lines(&out));
    }
    assert!(source.commands.borrow().is_empty());
    assert_eq!(tags(&ask(&mut session, &query("SHOW POOLS"), May::Nothing, &source).0), "EZ");
    assert_eq!(tags(&ask(&mut session, &query("RELOAD; SET pool.size = 3"), May::Everything, &source).0), "CCZ");
    assert_eq!(*source.commands.borrow(), ["reload", "pool.size=3"]);
}

#[test]
fn what_is_done_and_what_is_refused() {
    let source = Fake::default();
    let mut session = Session::default();
    let mut check = |text: &str, expected: &str, code: &str| {
        let (out, _) = ask(&mut session, &query(text), May::Everything, &source);
        assert_eq!(tags(&out), expected, "{text}: {:?}", lines(&out));
        assert!(lines(&out)[0].contains(code), "{text}: {:?}", lines(&out));
    };
    check("RECONNECT shop", "CZ", "");
    check("RECONNECT nowhere", "EZ", "3D000");
    check("PAUSE qcp", "EZ", "3D000");
    check("KILL_CLIENT 7", "CZ", "");
    check("KILL_CLIENT 8", "EZ", "42704");
    check("SET wrong = 3", "EZ", "22023");
    check("SET extra_float_digits = 3", "NCZ", "");
    check("SHOW extra_float_digits", "TDCZ", "");
    check("SUSPEND", "EZ", "0A000");
    check("SHOW FDS", "EZ", "0A000");
    check("SELECT 1", "EZ", "42601");
    check("", "IZ", "");
    check("BEGIN", "CZ", "");
    check("SELECT 1", "EZ", "42601");
    check("SHOW POOLS", "EZ", "25P02");
    check("ROLLBACK", "CZ", "");
    let (out, progress) = ask(&mut session, &query("SHUTDOWN WAIT_FOR_SERVERS"), May::Everything, &source);
    assert_eq!((tags(&out).as_str(), progress), ("CZ", Progress::Quit { now: false }));
}

#[test]
fn a_pause_answers_when_it_is_so() {
    let source = Fake::default();
    let mut session = Session::default();
    *source.busy.borrow_mut() = 1;
    let (out, progress) = ask(&mut session, &query("PAUSE shop; SHOW VERSION"), May::Everything, &source);
    assert_eq!((tags(&out).as_str(), progress), ("", Progress::Waits));
    // What is sent meanwhile waits as well.
    let (out, progress) = ask(&mut session, &query("SHOW STATE"), May::Everything, &source);
    assert_eq!((tags(&out).as_str(), progress), ("", Progress::Waits));
    let mut out = Vec::new();
    assert_eq!(session.on_time(May::Everything, &source, &mut out), Progress::Waits);
    *source.busy.borrow_mut() = 0;
    assert_eq!(session.on_time(May::Everything, &source, &mut out), Progress::Done);
    assert_eq!(tags(&out), "CTDCZTDDDCZ");
}

#[test]
fn nonsense_ends_the_session() {
    let source = Fake::default();
    let check = |bytes: &[u8]| {
        let (out, progress) = ask(&mut Session::default(), bytes, May::Everything, &source);
        assert_eq!((tags(&out).as_str(), progress), ("E", Progress::Ended), "{bytes:?}");
    };
    check(b"!\0\0\0\x04");
    check(b"Q\0\x10\0\0");
    check(b"Q\0\0\0\x05a");
    check(b"p\0\0\0\x05a");
    // A Bind that says that it has more formats than bytes, in any length, is refused or ends it, and never more.
    for size in 4..40u8 {
        let mut bytes = vec![b'B', 0, 0, 0, size];
        bytes.extend(std::iter::repeat_n(0xff, usize::from(size) - 4));
        let (_, progress) = ask(&mut Session::default(), &bytes, May::Everything, &source);
        assert!(matches!(progress, Progress::Done | Progress::Ended));
    }
    let (out, progress) = ask(&mut Session::default(), b"X\0\0\0\x04", May::Look, &source);
    assert_eq!((out.len(), progress), (0, Progress::Ended));
}

/// Messages of the kinds that there are, of mostly sensible and sometimes any content.
fn any_message() -> impl proptest::strategy::Strategy<Value = Vec<u8>> {
    use proptest::prelude::*;
    let words = prop::sample::select(vec![
        "SHOW POOLS\0",
        "SHOW HELP;\0",
        "BEGIN\0",
        "PAUSE shop\0",
        "RELOAD\0",
        "s\0",
        "\0",
        "SET a='b'\0",
        "\0\0\0\0\0\0",
        "\0\0\x01\0\x01",
    ]);
    let body = prop_oneof![
        3 => prop::collection::vec(words, 0..4).prop_map(|words| words.concat().into_bytes()),
        1 => prop::collection::vec(any::<u8>(), 0..40),
    ];
    (prop::sample::select(b"QPBDECHSXFpdcf?".to_vec()), body, 0..20u32).prop_map(|(tag, body, odd)| {
        // Now and then a length that is not the message's.
        let length = body.len() as u32 + if odd == 0 { 3 } else { 4 };
        [&[tag][..], &length.to_be_bytes(), &body].concat()
    })
}

proptest::proptest! {
    /// Whatever comes, however it is cut: whole messages are answered, the same ones, and nothing panics.
    #[test]
    fn any_bytes_are_answered_in_whole_messages(
        messages in proptest::collection::vec(any_message(), 0..12),
        piece in 1..64usize,
    ) {
        let bytes = messages.concat();
        let play = |pieces: &mut dyn Iterator<Item = &[u8]>| {
            let (mut session, source, mut out) = (Session::default(), Fake::default(), Vec::new());
            for piece in pieces {
                let mut progress = session.on_bytes(piece, May::Everything, &source, &mut out);
                while progress == Progress::Waits {
                    // Nothing is at work there, so what is waited for has come.
                    progress = session.on_time(May::Everything, &source, &mut out);
                }
                if progress != Progress::Done {
                    break;
                }
            }
            lines(&out)
        };
        let whole = play(&mut std::iter::once(&bytes[..]));
        proptest::prop_assert_eq!(whole, play(&mut bytes.chunks(piece)));
    }

    #[test]
    fn any_text_is_a_statement_or_none(text in ".*") {
        statements(text.as_bytes());
    }
}
