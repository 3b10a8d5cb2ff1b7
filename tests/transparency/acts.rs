//! What clients do: random acts of one client, as the bytes that it writes.

use super::support::raw::{message, zero_ended};

/// One write, and how many ReadyForQuery answer it.
#[derive(Clone)]
pub struct Act {
    pub text: String,
    pub bytes: Vec<u8>,
    pub readies: usize,
    /// What else it does.
    pub kind: Kind,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Nothing.
    Write,
    /// It asks for a cancel until an answer is there.
    Cancels,
    /// Instead: it says Terminate and logs in anew.
    Leaves,
    /// It hangs up behind what it wrote, and logs in anew.
    Vanishes,
    /// Before it writes, the tester itself has notified its first channel.
    IsTold,
    /// The same in a transaction, which it begins before and ends behind.
    IsToldInside,
}

/// Numbers from a seed (splitmix64).
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Random {
        Random(seed)
    }

    pub fn below(&mut self, end: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((mixed ^ (mixed >> 31)) % end.max(1) as u64) as usize
    }

    pub fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        &from[self.below(from.len())]
    }

    pub fn chance(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }
}

/// Settings and values that they may have.
const SETTINGS: [(&str, &[&str]); 10] = [
    ("work_mem", &["1MB", "2MB", "3MB"]),
    ("statement_timeout", &["0", "1h", "2h"]),
    ("extra_float_digits", &["0", "1", "3"]),
    ("timezone", &["UTC", "Asia/Tokyo", "America/New_York"]),
    ("datestyle", &["ISO, MDY", "German, DMY", "SQL, DMY"]),
    ("intervalstyle", &["postgres", "iso_8601"]),
    ("application_name", &["one", "two", "it''s"]),
    ("default_transaction_isolation", &["read committed", "repeatable read"]),
    ("my.own", &["a", "b \\ c", ""]),
    ("session.own", &["c", "d"]),
];

/// What the client asks for when it connects.
pub fn startup(random: &mut Random, client: usize) -> Vec<(String, String)> {
    let mut parameters = Vec::new();
    if random.chance(40) {
        parameters.push(("TimeZone".to_owned(), "Europe/Berlin".to_owned()));
    }
    if random.chance(30) {
        parameters.push(("application_name".to_owned(), format!("client {client}")));
    }
    if random.chance(30) {
        parameters.push(("options".to_owned(), "-c work_mem=5MB".to_owned()));
    }
    parameters
}

pub fn query(text: &str) -> Act {
    Act { text: text.to_owned(), bytes: message(b'Q', &zero_ended(text)), readies: 1, kind: Kind::Write }
}

pub fn parse(name: &str, text: &str) -> Vec<u8> {
    let mut body = [zero_ended(name), zero_ended(text)].concat();
    body.extend_from_slice(&[0, 0]);
    message(b'P', &body)
}

pub fn bind(name: &str, values: &[&str]) -> Vec<u8> {
    let mut body = [zero_ended(""), zero_ended(name)].concat();
    body.extend_from_slice(&[0, 0]);
    body.extend_from_slice(&(values.len() as u16).to_be_bytes());
    for value in values {
        body.extend_from_slice(&(value.len() as u32).to_be_bytes());
        body.extend_from_slice(value.as_bytes());
    }
    body.extend_from_slice(&[0, 0]);
    message(b'B', &body)
}

pub fn execute() -> Vec<u8> {
    message(b'E', &[0, 0, 0, 0, 0])
}

pub fn sync() -> Vec<u8> {
    message(b'S', &[])
}

/// Messages of the extended protocol.
pub fn extended(text: String, messages: &[Vec<u8>]) -> Act {
    let readies = messages.iter().filter(|message| message[0] == b'S').count();
    Act { text, bytes: messages.concat(), readies, kind: Kind::Write }
}

pub fn act(random: &mut Random, client: usize, may_pin: bool) -> Act {
    if may_pin && random.chance(40) {
        return pinning(random, client);
    }
    let (name, values) = *random.pick(&SETTINGS);
    let value = *random.pick(values);
    let plain = value.replace("''", "'");
    match random.below(64) {
        0..=2 => query(&format!("set {name} to {}", literal(value))),
        3 => query(&format!("set local {name} = {}", literal(value))),
        4 => query(&format!("reset {name}")),
        5 => query(&format!("set session {name} to default")),
        6 => query("reset all"),
        7 => query(&format!("select set_config('{name}', '{value}', {})", random.chance(30))),
        8..=9 => {
            let name = name.to_owned();
            extended(
                format!("set_config by parameters: {name} = {plain}"),
                &[parse("", "select set_config($1, $2, false)"), bind("", &[&name, &plain]), execute(), sync()],
            )
        }
        10 => query(&format!("do $$ begin perform set_config('work_mem', '{}MB', false); end $$", 6 + random.below(3))),
        11 => query(&format!("select c{client}.f('statement_timeout', '{}min')", 1 + random.below(9))),
        12..=16 => query(&show()),
        17 => query(&format!("begin; set {name} to {}", literal(value))),
        18 => query("begin"),
        19..=20 => query("commit"),
        21 => query("rollback"),
        22 => query("savepoint a"),
        23 => query("rollback to a"),
        24 => query("select 1/0"),
        25 => query(&format!("set work_mem to '{}MB'; select 1/0", 1 + random.below(3))),
        26 => query(&format!(
            "set search_path to {}",
            random.pick(&[&format!("c{client}")[..], "public", "\"$user\", public"])
        )),
        27 => query(&format!("insert into t values ({}, 'x') on conflict do nothing", random.below(5))),
        28 => query("select count(*) from t"),
        29 => query(&format!("set role {}", random.pick(&[&format!("r{client}")[..], "none"]))),
        30 => query("reset role"),
        31 => query("discard all"),
        32 => {
            let name = *random.pick(&["s", "T"]);
            let text = &*statement(random, name);
            extended(format!("parse {name}: {text}"), &[parse(name, text), bind(name, &[]), execute(), sync()])
        }
        33 => {
            let name = *random.pick(&["s", "T"]);
            extended(format!("execute {name}"), &[bind(name, &[]), execute(), sync()])
        }
        34 => {
            let name = *random.pick(&["s", "T"]);
            extended(format!("close {name}"), &[message(b'C', &[b"S", &zero_ended(name)[..]].concat()), sync()])
        }
        35 => extended(
            format!("batch: set {name}, show, error, show"),
            &[
                parse("", &format!("set {name} to {}", literal(value))),
                bind("", &[]),
                execute(),
                parse("", &show()),
                bind("", &[]),
                execute(),
                sync(),
                parse("", "select 1/0"),
                bind("", &[]),
                execute(),
                sync(),
                parse("", &show()),
                bind("", &[]),
                execute(),
                sync(),
            ],
        ),
        36 => query(&format!("deallocate {}", random.pick(&["s", "\"T\"", "all"]))),
        37 => query(&format!("execute {}", random.pick(&["s", "\"T\""]))),
        38 => query(&format!("copy (select {}) to stdout", random.below(9))),
        39 => copy_in(random),
        40 => pipeline(&[&format!("set {name} to {}", literal(value)), &show(), "select 1/0", "select 1", &show()]),
        41 => pipeline(&["begin", &format!("set {name} to {}", literal(value)), "rollback", &show()]),
        42 => {
            let text = format!("select pg_sleep(5) -- client {client}");
            Act { text: format!("{text}, cancelled"), kind: Kind::Cancels, ..query(&text) }
        }
        43 => Act {
            text: "insert in a transaction and vanish".to_owned(),
            // Its last message is not whole.
            bytes: [query("insert into t values (7, 'never')").bytes, query("commit").bytes[..9].to_vec()].concat(),
            readies: 1,
            kind: Kind::Vanishes,
        }
        .after("begin"),
        45..=46 => {
            let (one, other) = (&*statement(random, "s"), &*statement(random, "T"));
            let batches = [parse("s", one), sync(), parse("T", other), sync()];
            extended(format!("parse s: {one} | parse T: {other}"), &batches)
        }
        47..=48 => extended("execute s | execute T".to_owned(), &execute_both()),
        49 => pipeline(&["deallocate all", "execute s", "execute \"T\""]),
        54 => {
            let all = *random.pick(&["deallocate all", "discard all", "select 1"]);
            let mut act = extended(format!("{all} | execute s | execute T"), &execute_both());
            act.bytes = [query(all).bytes, act.bytes].concat();
            act.readies += 1;
            act
        }
        50 => {
            let name = *random.pick(&["s", "T"]);
            let deallocate = query(&format!("deallocate \"{name}\"")).bytes;
            let mut act = extended(format!("deallocate {name} | execute s | execute T"), &execute_both());
            act.bytes = [deallocate, act.bytes].concat();
            act.readies += 1;
            act
        }
        51 => query(&format!("set session authorization r{client}")),
        52 => query("reset session authorization"),
        53 => query(&format!("set local role r{client}")),
        56..=57 => {
            let text = *random.pick(&[
                "select set_config($1, $2, false)",
                "select $1::text || $2",
                "execute s",
                "show work_mem",
            ]);
            extended(format!("parse without a name: {text}"), &[parse("", text), sync()])
        }
        58..=59 => {
            let name = name.to_owned();
            extended(
                format!("bind what has no name: {name}, {plain}"),
                &[bind("", &[&name, &plain]), execute(), sync()],
            )
        }
        60 => extended("bind what has no name".to_owned(), &[bind("", &[]), execute(), sync()]),
        61..=62 => {
            let text =
                *random.pick(&["execute s", "execute \"T\"", "deallocate s", "deallocate \"T\"", "deallocate all"]);
            let name = *random.pick(&["s", "T"]);
            let text_of = &*statement(random, name);
            let mut messages = vec![parse("", text), bind("", &[]), execute()];
            if random.chance(40) {
                messages.extend([parse(name, text_of), bind(name, &[]), execute()]);
            }
            messages.push(sync());
            extended(format!("{text}, extended, parse {name}: {text_of} or not"), &messages)
        }
        63 => extended("close what has no name".to_owned(), &[message(b'C', b"S\0"), sync()]),
        44 => Act { text: "vanish".to_owned(), bytes: Vec::new(), readies: 0, kind: Kind::Vanishes },
        _ => Act { text: "leave and come back".to_owned(), bytes: Vec::new(), readies: 0, kind: Kind::Leaves },
    }
}

/// An act where some use sequences: only they insert or copy, as that may be with a sequence too.
pub fn act_with_sequences(random: &mut Random, client: usize, may_pin: bool) -> Act {
    if may_pin && random.chance(30) {
        let own = format!("c{client}.numbers");
        return query(&match random.below(8) {
            0..=1 => format!("select nextval('{own}')"),
            2 => format!("select setval('{own}', {})", 10 + random.below(9)),
            3..=4 => "select lastval()".to_owned(),
            5 => format!("select currval('{own}')"),
            6 => format!("select nextval('{own}'), lastval()"),
            _ => "discard sequences".to_owned(),
        });
    }
    loop {
        let act = act(random, client, may_pin);
        if may_pin || !["insert", "copy"].iter().any(|word| act.text.contains(word)) {
            return act;
        }
    }
}

/// What a statement of this name is: an error names one of a client's names for a text, and not always the one that was
/// used.
fn statement(random: &mut Random, name: &str) -> String {
    format!("{} -- {name}", random.pick(&["select count(*) from t", "select 1 + 1", "show work_mem"]))
}

fn execute_both() -> [Vec<u8>; 6] {
    [bind("s", &[]), execute(), sync(), bind("T", &[]), execute(), sync()]
}

impl Act {
    /// With a query before it, in the same write.
    fn after(mut self, text: &str) -> Act {
        self.bytes = [query(text).bytes, self.bytes].concat();
        self.readies += 1;
        self
    }
}

/// Queries in one write.
fn pipeline(texts: &[&str]) -> Act {
    let bytes = texts.iter().flat_map(|text| query(text).bytes).collect();
    Act { text: texts.join(" | "), bytes, readies: texts.len(), kind: Kind::Write }
}

/// A COPY of a few rows, which may be there already, or not be rows; or it is given up.
fn copy_in(random: &mut Random) -> Act {
    let mut act = query("copy t from stdin");
    for _ in 0..random.below(4) {
        let row = match random.below(8) {
            0 => "no number\tx\n".to_owned(),
            id => format!("{id}\tcopied\n"),
        };
        act.bytes.extend(message(b'd', row.as_bytes()));
        act.text.push_str(&format!(" {row:?}"));
    }
    let gives_up = random.chance(20);
    act.text.push_str(if gives_up { ", given up" } else { "" });
    act.bytes.extend(if gives_up { message(b'f', &zero_ended("no more")) } else { message(b'c', &[]) });
    act
}

/// A channel on which only this client listens.
pub fn first_channel(client: usize) -> String {
    format!("channel_{client}_0")
}

/// What keeps the client on its backend.
fn pinning(random: &mut Random, client: usize) -> Act {
    let key = client * 1000 + random.below(3);
    query(&match random.below(31) {
        0 => "create temp table if not exists mine (a int)".to_owned(),
        1 => "create temp table soon on commit drop as select 1 as a".to_owned(),
        2 => "insert into mine values (1)".to_owned(),
        3 => "select count(*) from mine".to_owned(),
        4 => "drop table mine".to_owned(),
        5 => format!("select pg_advisory_lock({key})"),
        6 => format!("select pg_advisory_unlock({key})"),
        7 => format!(
            "select count(*) from pg_locks where locktype = 'advisory' and objid between {} and {}",
            client * 1000,
            client * 1000 + 999
        ),
        8 => "select pg_advisory_unlock_all()".to_owned(),
        9 => "begin; declare c cursor with hold for select generate_series(1, 9); commit".to_owned(),
        10 => "fetch 2 from c".to_owned(),
        11 => "close c".to_owned(),
        12 => "prepare p(int) as select $1 + 1".to_owned(),
        13 => "execute p(1)".to_owned(),
        14 => "deallocate p".to_owned(),
        15 => format!("listen channel_{client}_{}", random.below(2)),
        16 => format!("notify channel_{client}_{}, '{}'", random.below(2), random.below(9)),
        17 if random.chance(50) => "unlisten *".to_owned(),
        17 => format!("unlisten channel_{client}_{}", random.below(2)),
        18 => "discard temp".to_owned(),
        28 => return Act { kind: Kind::IsToldInside, ..query("select 'told inside'") },
        // Where a transaction is open, it hears of that at its end.
        22..=23 => {
            return Act { kind: Kind::IsTold, ..query(random.pick::<&str>(&["select 'told'", "commit"])) };
        }
        24..=25 => format!("listen channel_{client}_{}", random.below(2)),
        26 => {
            let channel = format!("channel_{client}_{}", random.below(2));
            let (unlisten, notify) = (format!("unlisten {channel}"), format!("notify {channel}, 'unheard'"));
            return match random.chance(50) {
                true => pipeline(&[&unlisten, &notify, "select 1"]),
                false => pipeline(&["begin", &unlisten, "commit", &notify, "select 1"]),
            };
        }
        27 => format!("unlisten channel_{client}_0"),
        29 => {
            let notify = format!("notify channel_{client}_0, '{}'", random.below(9));
            return match random.below(3) {
                0 => pipeline(&["commit", &notify, "select 1", &notify, "select 2"]),
                1 => pipeline(&["rollback", "begin", &notify, "select 1", "commit", "select 2"]),
                _ => pipeline(&["select 1", "reset all", &show(), &notify, "reset all", &show()]),
            };
        }
        // It ends what was begun: nobody waits for what it has locked.
        19 => format!("commit; begin; prepare transaction 'g{client}'"),
        20 => format!("{} prepared 'g{client}'", random.pick(&["commit", "rollback"])),
        21 => format!("select count(*) from pg_prepared_xacts where gid = 'g{client}'"),
        // Who asks in a transaction is not told what another connection listens on for it.
        _ => format!("listen channel_{client}_0; select pg_notify('channel_{client}_0', '{}')", random.below(9)),
    })
}

/// Everything that a client can have set. What was set once is '' afterwards rather than unknown, for the life of a
/// backend: the one difference that is known.
fn show() -> String {
    let values: Vec<String> =
        SETTINGS.iter().map(|(name, _)| format!("coalesce(current_setting('{name}', true), '')")).collect();
    format!("select {}, current_setting('search_path'), current_user, session_user", values.join(", "))
}

fn literal(value: &str) -> String {
    format!("'{value}'")
}
