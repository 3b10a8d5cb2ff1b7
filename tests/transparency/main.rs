//! The differential tester: random sessions, each spoken to PostgreSQL directly and through QCP in Smart mode with
//! `session_state: preserve`, where they take turns on fewer backends than there are clients. Every message must be
//! the same, but for process ids and times.
//!
//! Each client has its own schema, role, channels and lock keys, so that there is one right answer whatever the order.
//! Clients that may be pinned are one less than the backends; the others finish their transactions before another of
//! them goes on. In every eighth seed they use sequences, by way of a pool of its own: there those who insert keep their
//! backends. In every fourth they change what their texts do, by DDL.
//!
//! `SEEDS=n` (40) runs so many from `FROM` (1), each `TIMES=n` (1) over: not all that can go wrong does every time;
//! `SEED=n` runs one and shows what it says. A seed that fails is shrunk to a few steps first. `STEPS=n` (25) is the
//! length of a session. `QUIET=path` has it wait between two seeds while this file is there: somebody measures.

mod acts;
mod ddl;
#[path = "../support/mod.rs"]
mod support;
#[path = "../conversations/trace.rs"]
mod trace;

use std::cell::RefCell;
use std::path::Path;
use std::time::{Duration, Instant};

use acts::{Act, Kind, Random, first_channel};
use support::Address;
use support::pooler::Qcp;
use support::postgres::{SUPERUSER, postgres};
use support::raw::{PATIENCE, PROTOCOL_3_0, RawClient, Received, message, startup, untagged};

const CLIENTS: usize = 6;
const BACKENDS: usize = 3;
/// Clients that may be pinned.
const PINNED: usize = BACKENDS - 1;
const DATABASE: &str = "transparency";
/// The same, as QCP calls it where sequences are used.
const WITH_SEQUENCES: &str = "transparency_with_sequences";
/// Acts behind a LISTEN in which its moment is over.
const MOMENT: usize = 3;

/// The session of one client.
#[derive(Clone)]
struct Session {
    number: usize,
    /// What QCP calls the database.
    database: &'static str,
    startup: Vec<(String, String)>,
    acts: Vec<Act>,
}

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().unwrap_or_else(|_| panic!("{name}: {text}")))
}

#[test]
fn sessions_are_as_on_a_direct_connection() {
    let server = postgres();
    server.create_database(DATABASE);
    for client in 0..CLIENTS {
        server.execute(
            DATABASE,
            &format!(
                "CREATE SCHEMA c{client}; CREATE TABLE c{client}.t (id int PRIMARY KEY, v text);
                 CREATE ROLE r{client}; GRANT ALL ON SCHEMA c{client} TO r{client};
                 GRANT ALL ON c{client}.t TO r{client};
                 CREATE SEQUENCE c{client}.numbers; GRANT ALL ON c{client}.numbers TO r{client};
                 CREATE FUNCTION c{client}.f(n text, v text) RETURNS text LANGUAGE sql
                 AS $$ SELECT set_config(n, v, false) $$"
            ),
        );
    }
    let yaml = format!(
        "relay_mode: Smart\nsession_state: preserve\npool: {{size: {BACKENDS}, queue_timeout: 5s}}\n\
         databases: {{{WITH_SEQUENCES}: {{dbname: {DATABASE}}}}}\n"
    );
    let qcp = Qcp::start(&yaml, 2);
    let places = Places { direct: server.tcp(), through: qcp.tcp() };
    // What a DO does cannot be learned from others that did nothing; on both shards.
    for _ in 0..8 {
        let mut client = RawClient::login(&places.through, SUPERUSER, DATABASE);
        for _ in 0..4 {
            client.query("do $$ begin perform 1; end $$").expect("it does nothing");
        }
    }
    // Who uses sequences keeps its backend where somebody has asked for their last values; on both shards.
    for _ in 0..16 {
        let mut client = RawClient::login(&places.through, SUPERUSER, WITH_SEQUENCES);
        client.query("select lastval()").expect_err("there is none");
    }
    if let Ok(seed) = std::env::var("SEED") {
        return one(&places, seed.parse().expect("SEED is a number"));
    }
    let (from, count) = (number("FROM", 1), number("SEEDS", 40));
    let (begun, mut acts) = (Instant::now(), 0);
    let times = number("TIMES", 1);
    for seed in (from..from + count).flat_map(|seed| std::iter::repeat_n(seed, times as usize)) {
        while std::env::var("QUIET").is_ok_and(|path| Path::new(&path).exists()) {
            std::thread::sleep(Duration::from_millis(200));
        }
        let sessions = sessions(seed);
        acts += sessions.iter().map(|session| session.acts.len()).sum::<usize>();
        if let Some(difference) = places.difference(&sessions, seed) {
            // A difference that does not come again is one all the same.
            println!("seed {seed}: {difference}");
            one(&places, seed);
            panic!("seed {seed} differs, not always: {difference}");
        }
    }
    let seconds = begun.elapsed().as_secs_f64();
    let sessions = (count * times) as usize * CLIENTS;
    println!("{count} seeds from {from}: {sessions} sessions, {acts} acts, {seconds:.0} s; {}", spent());
}

/// Shows what differs with this seed, in as few acts as it takes.
fn one(places: &Places, seed: u64) {
    let sessions = sessions(seed);
    let Some(difference) = places.difference(&sessions, seed) else {
        println!("seed {seed} is clean");
        return;
    };
    println!("seed {seed}: {difference}\nshrinking");
    let sessions = shrink(places, sessions, seed);
    for session in &sessions {
        if !session.acts.is_empty() {
            println!("client {} {:?}", session.number, session.startup);
        }
        for act in &session.acts {
            println!("    {}", act.text);
        }
    }
    let difference = places.difference(&sessions, seed).unwrap_or_else(|| "not always".to_owned());
    panic!("seed {seed}: {difference}");
}

fn sessions(seed: u64) -> Vec<Session> {
    let steps = number("STEPS", 25) as usize;
    let (database, act): (_, fn(&mut Random, usize, bool) -> Act) = match seed % 8 {
        7 => (WITH_SEQUENCES, acts::act_with_sequences),
        1 | 5 => (DATABASE, ddl::act_with_ddl),
        _ => (DATABASE, acts::act),
    };
    let session = |client: usize| {
        let mut random = Random::new(seed * 1000 + client as u64);
        let startup = acts::startup(&mut random, client);
        let acts = (0..steps).map(|_| act(&mut random, client, client < PINNED)).collect();
        Session { number: client, database, startup, acts }
    };
    (0..CLIENTS).map(session).collect()
}

/// Leaves acts out as long as something still differs.
fn shrink(places: &Places, mut sessions: Vec<Session>, seed: u64) -> Vec<Session> {
    let until = Instant::now() + Duration::from_secs(number("SHRINK", 60));
    for client in 0..sessions.len() {
        let mut size = sessions[client].acts.len();
        while size > 0 {
            let mut at = 0;
            while at < sessions[client].acts.len() && Instant::now() < until {
                let mut fewer = sessions.clone();
                let end = (at + size).min(fewer[client].acts.len());
                fewer[client].acts.drain(at..end);
                if places.difference(&fewer, seed).is_some() {
                    sessions = fewer;
                } else {
                    at += size;
                }
            }
            size /= 2;
        }
    }
    sessions
}

/// Where the time goes, by what is done.
#[derive(Clone, Copy)]
enum Part {
    Cleaning,
    Directly,
    Through,
}

thread_local! {
    static SPENT: RefCell<[Duration; 3]> = const { RefCell::new([Duration::ZERO; 3]) };
}

fn spend<R>(part: Part, work: impl FnOnce() -> R) -> R {
    let begun = Instant::now();
    let result = work();
    SPENT.with_borrow_mut(|spent| spent[part as usize] += begun.elapsed());
    result
}

fn spent() -> String {
    let [cleaning, directly, through] = SPENT.with_borrow(|spent| spent.map(|time| time.as_secs_f64()));
    format!("{directly:.1} s directly, {through:.1} s through QCP, {cleaning:.1} s between them")
}

struct Places {
    direct: Address,
    through: Address,
}

impl Places {
    /// The first difference between the two ways.
    fn difference(&self, sessions: &[Session], seed: u64) -> Option<String> {
        spend(Part::Cleaning, || clean_up(seed));
        let alone = |session: &Session| -> Vec<Vec<String>> {
            let mut client = Client::connect(&self.direct, DATABASE, session);
            let first = std::mem::take(&mut client.greeting);
            std::iter::once(first).chain(session.acts.iter().map(|act| client.play(act))).collect()
        };
        let direct: Vec<_> = spend(Part::Directly, || sessions.iter().map(alone).collect());
        spend(Part::Cleaning, || clean_up(seed));
        spend(Part::Through, || self.compare(sessions, seed, &direct))
    }

    /// The first difference from what was heard directly.
    fn compare(&self, sessions: &[Session], seed: u64, direct: &[Vec<Vec<String>>]) -> Option<String> {
        let mut random = Random::new(seed ^ 0x5eed);
        let connect = |session: &Session| Client::connect(&self.through, session.database, session);
        let mut clients: Vec<Client> = sessions.iter().map(connect).collect();
        for (session, client) in sessions.iter().zip(&clients) {
            if client.greeting != direct[session.number][0] {
                return Some(told(session, "its login", &direct[session.number][0], &client.greeting));
            }
        }
        let mut at = vec![0; sessions.len()];
        // A client without a backend of its own that is in a transaction.
        let mut busy: Option<usize> = None;
        loop {
            let open = |client: &usize| at[*client] < sessions[*client].acts.len();
            let shares = |client: usize| client >= PINNED;
            let free = |client: &usize| busy.is_none_or(|busy| !shares(*client) || busy == *client);
            let ready: Vec<usize> = (0..sessions.len()).filter(|client| open(client) && free(client)).collect();
            let Some(&chosen) = ready.get(random.below(ready.len().max(1))) else {
                if let Some(left) = busy.take() {
                    // Its session is over while its transaction is not.
                    clients[left].leave();
                    continue;
                }
                return None;
            };
            let (session, act) = (&sessions[chosen], &sessions[chosen].acts[at[chosen]]);
            let heard = clients[chosen].play(act);
            let expected = &direct[chosen][at[chosen] + 1];
            let may_differ = [fails_sooner, fails_later, fails_for_another_reason];
            if heard != *expected && !may_differ.iter().any(|may| may(act, expected, &heard)) {
                let later = clients[chosen].hear_later();
                let heard: Vec<String> = heard.into_iter().chain(later).collect();
                return Some(told(session, &act.text, expected, &heard));
            }
            at[chosen] += 1;
            if shares(chosen) {
                busy = (clients[chosen].status != b'I').then_some(chosen);
            }
        }
    }
}

/// What EXECUTE in the extended protocol names is prepared with its Bind where the backend lacks it: what is wrong with it is said
/// instead of BindComplete rather than behind it.
fn fails_sooner(act: &Act, expected: &[String], heard: &[String]) -> bool {
    let sooner = |at: &usize| expected[*at] == "BindComplete" && expected.get(at + 1) == heard.get(*at);
    let executes = act.text.contains("execute") || act.text.contains("no name");
    executes
        && (0..expected.len()).find(sooner).is_some_and(|at| {
            let without = expected.iter().enumerate().filter(|(line, _)| *line != at).map(|(_, line)| line);
            heard.get(at).is_some_and(|line| line.starts_with("ErrorResponse")) && without.eq(heard)
        })
}

/// While no backend is free a Parse of what the server took before is answered all the same, and what is wrong with it by now is said
/// behind that.
fn fails_later(act: &Act, expected: &[String], heard: &[String]) -> bool {
    let Some(at) = expected.iter().position(|line| line.starts_with("ErrorResponse")) else { return false };
    act.text.starts_with("parse G")
        && heard.get(at).is_some_and(|line| line == "ParseComplete")
        && heard[..at] == expected[..at]
        && heard[at + 1..] == expected[at..]
}

/// In a failed transaction nothing can be prepared, so values that do not fit a statement which the backend lacks are not said to.
fn fails_for_another_reason(act: &Act, expected: &[String], heard: &[String]) -> bool {
    let differ = |(expected, heard): (&String, &String)| {
        expected == heard
            || expected.starts_with("ErrorResponse ERROR 08P01 \"bind message supplies")
                && heard.starts_with("ErrorResponse ERROR 25P02 ")
    };
    act.text.starts_with("bind")
        && expected.len() == heard.len()
        && expected.iter().zip(heard).all(differ)
        && heard.last().is_some_and(|line| line == "ReadyForQuery E")
}

fn told(session: &Session, act: &str, expected: &[String], heard: &[String]) -> String {
    let lines =
        |mark: &str, lines: &[String]| lines.iter().map(|line| format!("\n  {mark} {line}")).collect::<String>();
    format!("client {}, {act}:{}{}", session.number, lines("-", expected), lines("+", heard))
}

/// Runs a query of the tester's own, directly.
fn ask(query: &str) -> Vec<String> {
    // One connection for all seeds: to make one takes longer than what is asked.
    thread_local! {
        static OWN: RefCell<Option<RawClient>> = const { RefCell::new(None) };
    }
    OWN.with_borrow_mut(|own| {
        let own = own.get_or_insert_with(|| RawClient::login(&postgres().tcp(), SUPERUSER, DATABASE));
        own.query(query).expect("the server answers")
    })
}

/// Asks again and again, until there are no rows.
fn wait_for_none(query: &str, what: &str) {
    let begun = Instant::now();
    while !ask(query).is_empty() {
        assert!(begun.elapsed() < PATIENCE, "{what}: not within {PATIENCE:?}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// What sessions leave in the database, and in servers' processes that have not heard yet of their end.
fn clean_up(seed: u64) {
    let left = format!(
        "select 1 from pg_locks where locktype = 'advisory' union all select 1 from pg_stat_activity \
         where datname = '{DATABASE}' and state <> 'idle' and pid <> pg_backend_pid()"
    );
    wait_for_none(&left, "sessions that are over leave nothing");
    for prepared in ask("select gid from pg_prepared_xacts") {
        ask(&format!("rollback prepared '{prepared}'"));
    }
    // Cheaper than TRUNCATE, which makes files.
    let clean = |client| format!("DELETE FROM c{client}.t; SELECT setval('c{client}.numbers', 1, false)");
    let statements: Vec<String> = (0..CLIENTS).map(clean).collect();
    ask(&statements.join("; "));
    if seed % 4 == 1 {
        ask(&(0..CLIENTS).map(ddl::clean).collect::<String>());
    }
}

struct Client {
    connection: Option<RawClient>,
    greeting: Vec<String>,
    status: u8,
    /// Its open transaction says LISTEN. A notification sent meanwhile is heard where the connection listened on something
    /// else before, as its place in the queue is older: an accident that nobody is promised, so none is sent.
    listens_inside: bool,
    /// Acts since it has last said LISTEN. For a moment it hears of some channels from one connection, of others from
    /// another: each in order, but not between them.
    since_listen: usize,
    number: usize,
    address: Address,
    database: &'static str,
    startup: Vec<(String, String)>,
}

impl Client {
    fn connect(address: &Address, database: &'static str, session: &Session) -> Client {
        let mut client = Client {
            connection: None,
            greeting: Vec::new(),
            status: b'I',
            listens_inside: false,
            since_listen: MOMENT,
            number: session.number,
            address: address.clone(),
            database,
            startup: session.startup.clone(),
        };
        client.greeting = client.log_in();
        client
    }

    fn log_in(&mut self) -> Vec<String> {
        let mut connection = RawClient::connect(&self.address);
        let own = self.startup.iter().map(|(name, value)| (name.as_str(), value.as_str()));
        let parameters: Vec<(&str, &str)> =
            [("user", SUPERUSER), ("database", self.database)].into_iter().chain(own).collect();
        connection.send(&startup(PROTOCOL_3_0, &parameters));
        self.connection = Some(connection);
        self.listen(1)
    }

    /// Does it, and says what came of it.
    fn play(&mut self, act: &Act) -> Vec<String> {
        let listens = act.text.contains("listen channel") && !act.text.contains("unlisten");
        self.since_listen = if listens || self.listens_inside { 0 } else { self.since_listen + 1 };
        let mut heard = self.do_it(act);
        self.listens_inside |= listens;
        self.listens_inside &= self.status != b'I';
        let is_notification = |line: &String| line.starts_with("NotificationResponse");
        let is_unasked = |line: &String| is_notification(line) || line.starts_with("ParameterStatus");
        for told in heard.chunk_by_mut(|line, next| is_unasked(line) && is_unasked(next)) {
            // Both may come at any time: what is new of settings is not before or behind what others have said.
            told.sort_by_key(|line| !is_notification(line));
        }
        if self.since_listen < MOMENT {
            for told in heard.chunk_by_mut(|line, next| is_notification(line) && is_notification(next)) {
                told.sort_by_key(|line| line.split(' ').nth(2).map(str::to_owned));
            }
        }
        heard
    }

    /// The tester's own notification.
    fn tell(&self) {
        if !self.listens_inside {
            ask(&format!("notify {}", first_channel(self.number)));
        }
    }

    fn do_it(&mut self, act: &Act) -> Vec<String> {
        if act.kind == Kind::Leaves {
            self.leave();
            return self.log_in();
        }
        if act.kind == Kind::IsToldInside {
            return self.hear_behind_a_transaction(act);
        }
        if self.connection.is_none() {
            return Vec::new();
        }
        if act.kind == Kind::IsTold {
            self.tell();
        }
        let Some(connection) = &mut self.connection else { return Vec::new() };
        connection.send(&act.bytes);
        match act.kind {
            Kind::Cancels => self.cancel(),
            Kind::Vanishes => {
                let mut heard = self.listen(act.readies);
                self.vanish();
                heard.extend(self.log_in());
                heard
            }
            Kind::IsTold => {
                // It comes before the answer or behind it, but before its ReadyForQuery.
                let (told, rest): (Vec<String>, Vec<String>) =
                    self.listen(act.readies).into_iter().partition(|line| line.starts_with("Notification"));
                told.into_iter().chain(rest).collect()
            }
            Kind::Write | Kind::Leaves | Kind::IsToldInside => self.listen(act.readies),
        }
    }

    fn hear_behind_a_transaction(&mut self, act: &Act) -> Vec<String> {
        let mut heard = Vec::new();
        for (bytes, is_told) in
            [(message(b'Q', b"begin\0"), true), (act.bytes.clone(), false), (message(b'Q', b"commit\0"), false)]
        {
            let Some(connection) = &mut self.connection else { break };
            connection.send(&bytes);
            heard.extend(self.listen(1));
            if is_told {
                self.tell();
                // Long enough for it to have come, if it were to come now.
                std::thread::sleep(Duration::from_millis(2));
            }
        }
        heard
    }

    /// Asks to cancel what is under way, again and again from the moment on that it sleeps: before that the request may be
    /// without effect, or come before the description of the rows.
    fn cancel(&mut self) -> Vec<String> {
        const CANCEL_REQUEST: u32 = 80877102;
        let connection = self.connection.as_mut().expect("the caller has looked");
        let key = connection.key.clone();
        let sleeps = format!(
            "select 1 from pg_stat_activity where wait_event = 'PgSleep' and query like '%client {}%'",
            self.number
        );
        let begun = Instant::now();
        while begun.elapsed() < PATIENCE {
            match connection.receive(Duration::from_millis(2)) {
                Received::Quiet if ask(&sleeps).is_empty() => {}
                Received::Quiet => {
                    let mut other = RawClient::connect(&self.address);
                    other.send(&untagged(CANCEL_REQUEST, &key));
                    // Closed when the signal is sent.
                    while let Received::Message(_) = other.receive(PATIENCE) {}
                }
                Received::Closed => return vec!["closed".to_owned()],
                Received::Message(message) => {
                    let first = trace::line(&message);
                    let rest = self.listen(1);
                    return first.into_iter().chain(rest).collect();
                }
            }
        }
        vec!["(not cancelled)".to_owned()]
    }

    /// Hangs up. What it held is free before it goes on, so that there is one right answer.
    fn vanish(&mut self) {
        self.connection = None;
        self.status = b'I';
        let keys = format!("between {} and {}", self.number * 1000, self.number * 1000 + 999);
        let held = format!("select 1 from pg_locks where locktype = 'advisory' and objid {keys}");
        if self.number < PINNED {
            wait_for_none(&held, "a lost client's locks are free");
        }
    }

    /// What comes unasked in a moment: to know whether it was late or never came.
    fn hear_later(&mut self) -> Vec<String> {
        let Some(connection) = &mut self.connection else { return Vec::new() };
        match connection.receive(Duration::from_millis(300)) {
            Received::Message(message) => vec![format!("(later) {:?}", trace::line(&message))],
            Received::Quiet | Received::Closed => Vec::new(),
        }
    }

    fn leave(&mut self) {
        if let Some(mut connection) = self.connection.take() {
            connection.send(&message(b'X', &[]));
            // Its end says that what it had is given back, or at least that it has been read.
            while let Received::Message(_) = connection.receive(PATIENCE) {}
        }
        self.status = b'I';
    }

    fn listen(&mut self, readies: usize) -> Vec<String> {
        let Some(connection) = &mut self.connection else { return Vec::new() };
        let (mut lines, mut left) = (Vec::new(), readies);
        while left > 0 {
            match connection.receive(PATIENCE) {
                Received::Message(message) => {
                    if message.tag == b'Z' {
                        left -= 1;
                        self.status = message.body[0];
                    }
                    lines.extend(trace::line(&message));
                }
                Received::Quiet => {
                    lines.push("(nothing)".to_owned());
                    break;
                }
                Received::Closed => {
                    lines.push("closed".to_owned());
                    self.status = b'I';
                    break;
                }
            }
        }
        trace::normalise(lines)
    }
}
