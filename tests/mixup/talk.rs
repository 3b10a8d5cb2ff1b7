//! What a client says, and what it must hear: exactly that, in this order, and nothing else.
//!
//! A *talk* is a few steps; a step is bytes and the messages that answer them. Each request has a token of its own, which
//! comes back in rows, tags, errors and notices, so that an answer of anybody else's cannot be taken for the right one.

use std::collections::VecDeque;
use std::time::Duration;

use super::random::Random;
use super::support::raw::{message, zero_ended};

/// Names of prepared statements: the same for all clients, with other texts behind them.
pub const STATEMENTS: usize = 4;

/// Whether a write is in the table at the end.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fate {
    /// Not there: never committed, or refused.
    Absent,
    /// There at most once: nobody has said.
    Unknown,
    /// There exactly once: acknowledged.
    Present,
}

/// What a client knows of itself over all its connections.
pub struct Facts {
    pub id: usize,
    pub tokens: u64,
    /// By the write's number.
    pub writes: Vec<Fate>,
    /// What each prepared statement of this connection gives.
    pub prepared: [Option<String>; STATEMENTS],
    pub application_name: String,
}

/// What a reply changes.
#[derive(Clone, Debug)]
pub enum Effect {
    None,
    Prepared(usize, String),
    Closed(usize),
    ClosedAll,
    Named(String),
}

#[derive(Clone, Debug)]
pub enum What {
    ParseComplete,
    BindComplete,
    CloseComplete,
    ParameterDescription,
    /// With this name of the first column, where it is the client's own.
    RowDescription(Option<String>),
    /// The text of each column.
    Row(Vec<String>),
    /// One column: a token so many times.
    Repeated(String, usize),
    Suspended,
    Empty,
    Tag(String),
    /// SQLSTATE and part of the text.
    Error(&'static str, String),
    Notice(String),
    CopyIn,
    CopyOut,
    CopyData(String),
    CopyDone,
    Ready(Ready),
}

/// The end of a request.
#[derive(Clone, Debug)]
pub struct Ready {
    pub status: u8,
    /// Where its last byte is in the step.
    pub end: usize,
    /// Writes that are there when it has come without an error before it.
    pub writes: Vec<u32>,
}

#[derive(Clone, Debug)]
pub struct Expect {
    pub what: What,
    pub effect: Effect,
}

/// A cancel request, sent while a step goes on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Cancel {
    /// With the own key, again and again until the step is answered.
    Right,
    /// With a key that is wrong in one way or another.
    Wrong,
    /// With the own key, when the step has been answered.
    Late,
}

#[derive(Default, Debug)]
pub struct Step {
    pub bytes: Vec<u8>,
    pub expects: VecDeque<Expect>,
    /// The data of a COPY that the step before began: left out when that was refused.
    pub copy_data: bool,
    /// A transaction over several requests: what an error in one of them makes of the others is not foretold.
    pub chained: bool,
    pub pause: Duration,
    pub cancel: Option<Cancel>,
}

impl Step {
    fn expect(&mut self, what: What) -> &mut Step {
        self.with(what, Effect::None)
    }

    fn with(&mut self, what: What, effect: Effect) -> &mut Step {
        self.expects.push_back(Expect { what, effect });
        self
    }

    /// Ends a request. Fields of Step: `status` as ReadyForQuery says it, `writes` that are done by then.
    fn ready(&mut self, status: u8, writes: &[u32]) {
        let end = self.bytes.len();
        self.expect(What::Ready(Ready { status, end, writes: writes.to_vec() }));
    }

    fn query(&mut self, text: &str) -> &mut Step {
        self.bytes.extend(message(b'Q', &zero_ended(text)));
        self
    }

    fn parse(&mut self, name: &str, text: &str) -> &mut Step {
        let mut body = zero_ended(name);
        body.extend(zero_ended(text));
        body.extend([0, 0]);
        self.bytes.extend(message(b'P', &body));
        self
    }

    fn bind(&mut self, name: &str, values: &[&str]) -> &mut Step {
        let mut body = vec![0];
        body.extend(zero_ended(name));
        body.extend([0, 0]);
        body.extend((values.len() as u16).to_be_bytes());
        for value in values {
            body.extend((value.len() as u32).to_be_bytes());
            body.extend(value.as_bytes());
        }
        body.extend([0, 0]);
        self.bytes.extend(message(b'B', &body));
        self
    }

    fn describe(&mut self, kind: u8, name: &str) -> &mut Step {
        let mut body = vec![kind];
        body.extend(zero_ended(name));
        self.bytes.extend(message(b'D', &body));
        self
    }

    fn close(&mut self, name: &str) -> &mut Step {
        let mut body = vec![b'S'];
        body.extend(zero_ended(name));
        self.bytes.extend(message(b'C', &body));
        self
    }

    fn execute(&mut self, limit: u32) -> &mut Step {
        let mut body = vec![0];
        body.extend(limit.to_be_bytes());
        self.bytes.extend(message(b'E', &body));
        self
    }

    fn bare(&mut self, tag: u8) -> &mut Step {
        self.bytes.extend(message(tag, b""));
        self
    }

    fn copy_data(&mut self, text: &str) -> &mut Step {
        self.bytes.extend(message(b'd', text.as_bytes()));
        self
    }
}

fn row(values: &[&str]) -> What {
    What::Row(values.iter().map(|value| (*value).to_owned()).collect())
}

fn tag(text: &str) -> What {
    What::Tag(text.to_owned())
}

/// What the talks of a run may be of.
#[derive(Clone, Copy)]
pub struct Manners {
    /// Relay mode Session: the session is the client's own.
    pub session: bool,
    /// This client sends cancel requests.
    pub cancels: bool,
}

pub struct Author<'a> {
    pub facts: &'a mut Facts,
    pub random: &'a mut Random,
    pub manners: Manners,
    /// Prepared statements that the step under way uses already.
    used: [bool; STATEMENTS],
}

impl Author<'_> {
    pub fn new<'a>(facts: &'a mut Facts, random: &'a mut Random, manners: Manners) -> Author<'a> {
        Author { facts, random, manners, used: [false; STATEMENTS] }
    }

    /// The next thing to talk about.
    pub fn talk(&mut self) -> Vec<Step> {
        let mut steps = match self.random.below(100) {
            0..20 => vec![self.pipeline(1, 1)],
            20..38 => vec![self.pipeline(2, 8)],
            38..52 => self.transaction(),
            52..57 => vec![self.chain()],
            57..65 => self.copy_in(),
            65..71 => vec![self.copy_out()],
            71..77 => vec![self.large_row()],
            77..82 => vec![self.large_value()],
            82..88 => self.flushed(),
            88..92 => vec![self.naps()],
            92..95 => vec![self.named()],
            95..97 if self.manners.cancels => vec![self.cancelled()],
            97..98 if self.manners.cancels => vec![self.late()],
            98 if self.manners.session => self.own_state(),
            _ => vec![self.bothered()],
        };
        if self.random.in_thousand(100) {
            steps[0].pause = Duration::from_millis(self.random.between(1, 300));
        }
        steps
    }

    fn token(&mut self) -> String {
        self.facts.tokens += 1;
        format!("c{}t{}", self.facts.id, self.facts.tokens)
    }

    /// A write that is not there yet, and the statement that makes it.
    fn write(&mut self, how: &str) -> (u32, String) {
        let number = self.facts.writes.len() as u32;
        self.facts.writes.push(Fate::Absent);
        (number, format!("INSERT INTO writes VALUES ({}, {number}, '{how}')", self.facts.id))
    }

    fn pipeline(&mut self, least: u64, most: u64) -> Step {
        let mut step = Step::default();
        self.used = [false; STATEMENTS];
        for _ in 0..self.random.between(least, most) {
            self.request(&mut step);
        }
        step
    }

    /// One request that stands alone. It ends well or leaves nothing behind.
    fn request(&mut self, step: &mut Step) {
        let token = self.token();
        match self.random.below(16) {
            0..2 => {
                step.query(&format!("SELECT '{token}' AS \"{token}\""))
                    .expect(What::RowDescription(Some(token.clone())))
                    .expect(row(&[&token]))
                    .expect(tag("SELECT 1"));
                step.ready(b'I', &[]);
            }
            2..4 => {
                step.parse("", &format!("SELECT $1::text, '{token}' AS \"{token}\""))
                    .bind("", &[&token])
                    .describe(b'P', "")
                    .execute(0)
                    .bare(b'S')
                    .expect(What::ParseComplete)
                    .expect(What::BindComplete)
                    .expect(What::RowDescription(None))
                    .expect(row(&[&token, &token]))
                    .expect(tag("SELECT 1"));
                step.ready(b'I', &[]);
            }
            4..7 => self.prepared(step),
            7 => {
                // Several statements in one message.
                let (number, insert) = self.write("several");
                step.query(&format!("SELECT '{token}' AS a; {insert}; SELECT '{token}' AS b"))
                    .expect(What::RowDescription(Some("a".to_owned())))
                    .expect(row(&[&token]))
                    .expect(tag("SELECT 1"))
                    .expect(tag("INSERT 0 1"))
                    .expect(What::RowDescription(Some("b".to_owned())))
                    .expect(row(&[&token]))
                    .expect(tag("SELECT 1"));
                step.ready(b'I', &[number]);
            }
            8 => {
                // Portions of a portal.
                step.parse("", &format!("SELECT '{token}.' || n FROM generate_series(1, 5) n"))
                    .bind("", &[])
                    .execute(2)
                    .execute(2)
                    .execute(0)
                    .bare(b'S')
                    .expect(What::ParseComplete)
                    .expect(What::BindComplete);
                for n in 1..=5 {
                    step.expect(row(&[&format!("{token}.{n}")]));
                    if n == 2 || n == 4 {
                        step.expect(What::Suspended);
                    }
                }
                step.expect(tag("SELECT 1"));
                step.ready(b'I', &[]);
            }
            9 => {
                step.query(&format!("DO $$BEGIN RAISE NOTICE '{token}'; RAISE NOTICE '{token}!'; END$$"))
                    .expect(What::Notice(token.clone()))
                    .expect(What::Notice(format!("{token}!")))
                    .expect(tag("DO"));
                step.ready(b'I', &[]);
            }
            10 => {
                step.query("").expect(What::Empty);
                step.ready(b'I', &[]);
            }
            11 => {
                let (number, insert) = self.write("simple");
                step.query(&format!("{insert} RETURNING '{token}' AS \"{token}\""))
                    .expect(What::RowDescription(Some(token.clone())))
                    .expect(row(&[&token]))
                    .expect(tag("INSERT 0 1"));
                step.ready(b'I', &[number]);
            }
            12 => {
                let (number, insert) = self.write("extended");
                step.parse("", &format!("{insert} RETURNING $1::text"))
                    .bind("", &[&token])
                    .execute(0)
                    .bare(b'S')
                    .expect(What::ParseComplete)
                    .expect(What::BindComplete)
                    .expect(row(&[&token]))
                    .expect(tag("INSERT 0 1"));
                step.ready(b'I', &[number]);
            }
            _ => self.error(step, &token, b'I'),
        }
    }

    /// A request that the server refuses; what it wrote before is undone.
    fn error(&mut self, step: &mut Step, token: &str, failed: u8) {
        let (_, insert) = self.write("undone");
        match self.random.below(6) {
            0 => {
                step.query(&format!("\"{token}\""));
                step.expect(What::Error("42601", token.to_owned()));
            }
            1 => {
                step.query(&format!("{insert}; SELECT \"{token}\""))
                    .expect(tag("INSERT 0 1"))
                    .expect(What::Error("42703", token.to_owned()));
            }
            2 => {
                step.query(&format!("SELECT '{token}' AS \"{token}\"; {insert}; SELECT 1 / 0"))
                    .expect(What::RowDescription(Some(token.to_owned())))
                    .expect(row(&[token]))
                    .expect(tag("SELECT 1"))
                    .expect(tag("INSERT 0 1"))
                    .expect(What::Error("22012", String::new()));
            }
            3 => {
                step.parse("", &format!("{insert} RETURNING $1::int"))
                    .bind("", &[token])
                    .execute(0)
                    .bare(b'S')
                    .expect(What::ParseComplete)
                    .expect(What::Error("22P02", token.to_owned()));
            }
            4 => {
                // Two rows, and then the error.
                step.parse("", &format!("SELECT '{token}' || (1 / (3 - n)) FROM generate_series(1, 5) n"))
                    .bind("", &[])
                    .execute(0)
                    .bare(b'S')
                    .expect(What::ParseComplete)
                    .expect(What::BindComplete)
                    .expect(row(&[&format!("{token}0")]))
                    .expect(row(&[&format!("{token}1")]))
                    .expect(What::Error("22012", String::new()));
            }
            _ => {
                // No such statement; what follows up to the Sync is skipped.
                step.parse("", &insert)
                    .bind("", &[])
                    .execute(0)
                    .bind(token, &[])
                    .execute(0)
                    .bare(b'S')
                    .expect(What::ParseComplete)
                    .expect(What::BindComplete)
                    .expect(tag("INSERT 0 1"))
                    .expect(What::Error("26000", token.to_owned()));
            }
        }
        step.ready(failed, &[]);
    }

    /// A named prepared statement: made, used, described or closed.
    fn prepared(&mut self, step: &mut Step) {
        let slot = self.random.below(STATEMENTS);
        let name = format!("s{slot}");
        let token = self.token();
        if std::mem::replace(&mut self.used[slot], true) {
            step.query(&format!("SELECT '{token}' AS \"{token}\""))
                .expect(What::RowDescription(Some(token.clone())))
                .expect(row(&[&token]))
                .expect(tag("SELECT 1"));
            step.ready(b'I', &[]);
            return;
        }
        match self.facts.prepared[slot].clone() {
            None => {
                // Often the text is one that other clients prepare too.
                let text = if self.random.in_thousand(500) { format!("shared{slot}") } else { token.clone() };
                step.parse(&name, &format!("SELECT '{text}', $1::text"))
                    .bind(&name, &[&token])
                    .execute(0)
                    .bare(b'S')
                    .with(What::ParseComplete, Effect::Prepared(slot, text.clone()))
                    .expect(What::BindComplete)
                    .expect(row(&[&text, &token]))
                    .expect(tag("SELECT 1"));
            }
            Some(text) => match self.random.below(6) {
                0 => {
                    step.describe(b'S', &name)
                        .bare(b'S')
                        .expect(What::ParameterDescription)
                        .expect(What::RowDescription(None));
                }
                1 => {
                    step.close(&name).bare(b'S').with(What::CloseComplete, Effect::Closed(slot));
                }
                2 => {
                    step.parse(&name, "SELECT 1").bare(b'S').expect(What::Error("42P05", format!("\"{name}\"")));
                    step.ready(b'I', &[]);
                    return;
                }
                _ => {
                    step.bind(&name, &[&token])
                        .execute(0)
                        .bare(b'S')
                        .expect(What::BindComplete)
                        .expect(row(&[&text, &token]))
                        .expect(tag("SELECT 1"));
                }
            },
        }
        step.ready(b'I', &[]);
    }

    /// A transaction request by request, each sent when the last is answered.
    fn transaction(&mut self) -> Vec<Step> {
        let mut begin = Step::default();
        begin.query("BEGIN").expect(tag("BEGIN"));
        begin.ready(b'T', &[]);
        let mut steps = vec![begin];
        let mut numbers = Vec::new();
        self.used = [false; STATEMENTS];
        for _ in 0..self.random.between(1, 4) {
            let mut step = Step::default();
            let (number, insert) = self.write("transaction");
            numbers.push(number);
            if self.random.in_thousand(500) {
                step.query(&insert).expect(tag("INSERT 0 1"));
            } else {
                step.parse("", &insert)
                    .bind("", &[])
                    .execute(0)
                    .bare(b'S')
                    .expect(What::ParseComplete)
                    .expect(What::BindComplete)
                    .expect(tag("INSERT 0 1"));
            }
            step.ready(b'T', &[]);
            if self.random.in_thousand(100) {
                step.pause = Duration::from_millis(self.random.between(1, 20));
            }
            steps.push(step);
            // A request that ends in an error would end the transaction: only those that do not are asked here.
            let mut step = Step::default();
            let token = self.token();
            step.query(&format!("SELECT '{token}' AS \"{token}\""))
                .expect(What::RowDescription(Some(token.clone())))
                .expect(row(&[&token]))
                .expect(tag("SELECT 1"));
            step.ready(b'T', &[]);
            steps.push(step);
        }
        match self.random.below(4) {
            0 => {
                let mut step = Step::default();
                step.query("ROLLBACK").expect(tag("ROLLBACK"));
                step.ready(b'I', &[]);
                steps.push(step);
            }
            1 => {
                let (mut failing, mut step) = (Step::default(), Step::default());
                let token = self.token();
                self.error(&mut failing, &token, b'E');
                step.query("SELECT 1").expect(What::Error("25P02", String::new()));
                step.ready(b'E', &[]);
                step.query("COMMIT").expect(tag("ROLLBACK"));
                step.ready(b'I', &[]);
                steps.extend([failing, step]);
            }
            _ => {
                let mut step = Step::default();
                step.query("COMMIT").expect(tag("COMMIT"));
                step.ready(b'I', &numbers);
                steps.push(step);
            }
        }
        steps
    }

    /// A transaction sent at once, over several requests.
    fn chain(&mut self) -> Step {
        let mut step = Step { chained: true, ..Step::default() };
        let token = self.token();
        step.query("BEGIN").expect(tag("BEGIN"));
        step.ready(b'T', &[]);
        let (number, insert) = self.write("chain");
        step.parse("", &insert)
            .bind("", &[])
            .execute(0)
            .bare(b'S')
            .expect(What::ParseComplete)
            .expect(What::BindComplete)
            .expect(tag("INSERT 0 1"));
        step.ready(b'T', &[]);
        step.query(&format!("SELECT '{token}' AS \"{token}\""))
            .expect(What::RowDescription(Some(token.clone())))
            .expect(row(&[&token]))
            .expect(tag("SELECT 1"));
        step.ready(b'T', &[]);
        step.query("COMMIT").expect(tag("COMMIT"));
        step.ready(b'I', &[number]);
        step
    }

    fn copy_in(&mut self) -> Vec<Step> {
        let rows = self.random.between(1, 30) as usize;
        let numbers: Vec<u32> = (0..rows).map(|_| self.write("copy").0).collect();
        let lines = numbers.iter().map(|number| format!("{}\t{number}\tcopy\n", self.facts.id)).collect::<Vec<_>>();
        let extended = self.random.in_thousand(400);
        let (mut step, mut data) = (Step::default(), Step { copy_data: !extended, ..Step::default() });
        if extended {
            step.parse("", "COPY writes FROM STDIN")
                .bind("", &[])
                .execute(0)
                .bare(b'H')
                .expect(What::ParseComplete)
                .expect(What::BindComplete)
                .expect(What::CopyIn);
        } else {
            step.query("COPY writes FROM STDIN").expect(What::CopyIn);
        }
        for line in &lines {
            // Any cut will do: the messages need not be lines.
            let at = self.random.below(line.len());
            data.copy_data(&line[..at]).copy_data(&line[at..]);
        }
        let token = self.token();
        let how = self.random.below(5);
        if how == 0 {
            data.bytes.extend(message(b'f', &zero_ended(&token)));
            data.expect(What::Error("57014", token));
        } else if how == 1 {
            data.copy_data(&format!("{token}\t0\tbad\n")).bare(b'c');
            data.expect(What::Error("22P02", token));
        } else {
            data.bare(b'c').expect(tag(&format!("COPY {rows}")));
        }
        if extended {
            data.bare(b'S');
        }
        data.ready(b'I', if how > 1 { &numbers } else { &[] });
        // Impatient clients do not wait to be asked for the data.
        if !extended && self.random.in_thousand(300) {
            let offset = step.bytes.len();
            step.bytes.append(&mut data.bytes);
            for expect in &mut data.expects {
                if let What::Ready(ready) = &mut expect.what {
                    ready.end += offset;
                }
            }
            step.expects.append(&mut data.expects);
            return vec![step];
        }
        vec![step, data]
    }

    fn copy_out(&mut self) -> Step {
        let mut step = Step::default();
        let (token, rows) = (self.token(), self.random.between(0, 300));
        step.query(&format!("COPY (SELECT '{token}.' || n FROM generate_series(1, {rows}) n) TO STDOUT"))
            .expect(What::CopyOut);
        for n in 1..=rows {
            step.expect(What::CopyData(format!("{token}.{n}\n")));
        }
        step.expect(What::CopyDone).expect(tag(&format!("COPY {rows}")));
        step.ready(b'I', &[]);
        // The next request is behind it already.
        if self.random.in_thousand(300) {
            self.request(&mut step);
        }
        step
    }

    /// Rows larger than a chunk, among others.
    fn large_row(&mut self) -> Step {
        let mut step = Step::default();
        let token = self.token();
        let count = self.random.between(1, 30_000) as usize;
        step.query(&format!("SELECT repeat('{token}|', {count}) AS \"{token}\""))
            .expect(What::RowDescription(Some(token.clone())))
            .expect(What::Repeated(format!("{token}|"), count))
            .expect(tag("SELECT 1"));
        step.ready(b'I', &[]);
        self.used = [false; STATEMENTS];
        self.request(&mut step);
        step
    }

    /// A value larger than a chunk, there and back.
    fn large_value(&mut self) -> Step {
        let mut step = Step::default();
        let token = format!("{}|", self.token());
        let count = self.random.between(1, 20_000) as usize;
        step.parse("", "SELECT $1::text")
            .bind("", &[&token.repeat(count)])
            .execute(0)
            .bare(b'S')
            .expect(What::ParseComplete)
            .expect(What::BindComplete)
            .expect(What::Repeated(token, count))
            .expect(tag("SELECT 1"));
        step.ready(b'I', &[]);
        step
    }

    /// The answers are asked for before the Sync.
    fn flushed(&mut self) -> Vec<Step> {
        let (mut step, mut rest) = (Step::default(), Step::default());
        let token = self.token();
        let (number, insert) = self.write("flushed");
        step.parse("", &format!("{insert} RETURNING '{token}'"))
            .bind("", &[])
            .execute(0)
            .bare(b'H')
            .expect(What::ParseComplete)
            .expect(What::BindComplete)
            .expect(row(&[&token]))
            .expect(tag("INSERT 0 1"));
        rest.bare(b'S');
        rest.ready(b'I', &[number]);
        rest.pause = Duration::from_millis(self.random.between(0, 10));
        vec![step, rest]
    }

    fn naps(&mut self) -> Step {
        let mut step = Step::default();
        let token = self.token();
        let nap = self.random.between(1, 20);
        step.query(&format!("SELECT '{token}' AS \"{token}\", pg_sleep(0.0{nap:02})::text"))
            .expect(What::RowDescription(Some(token.clone())))
            .expect(row(&[&token, ""]))
            .expect(tag("SELECT 1"));
        step.ready(b'I', &[]);
        step
    }

    /// What the client is called follows it from backend to backend.
    fn named(&mut self) -> Step {
        let mut step = Step::default();
        match self.random.below(3) {
            0 => {
                let token = self.token();
                step.query(&format!("SET application_name = '{token}'")).with(tag("SET"), Effect::Named(token));
            }
            1 => {
                step.query("DEALLOCATE ALL").with(tag("DEALLOCATE ALL"), Effect::ClosedAll);
            }
            _ => {
                let name = self.facts.application_name.clone();
                step.query("SHOW application_name")
                    .expect(What::RowDescription(Some("application_name".to_owned())))
                    .expect(row(&[&name]))
                    .expect(tag("SHOW"));
            }
        }
        step.ready(b'I', &[]);
        step
    }

    fn cancelled(&mut self) -> Step {
        let mut step = Step { cancel: Some(Cancel::Right), ..Step::default() };
        let token = self.token();
        let (_, insert) = self.write("cancelled");
        step.query(&format!("{insert}; SELECT '{token}' AS \"{token}\", pg_sleep(300)"));
        step.expect(What::Error("57014", String::new()));
        step.ready(b'I', &[]);
        step
    }

    fn late(&mut self) -> Step {
        let mut step = self.pipeline(1, 1);
        step.cancel = Some(Cancel::Late);
        step
    }

    /// A cancel request with a wrong key must do nothing.
    fn bothered(&mut self) -> Step {
        let mut step = self.naps();
        step.cancel = Some(Cancel::Wrong);
        step
    }

    /// State that only a session of one's own keeps.
    fn own_state(&mut self) -> Vec<Step> {
        let (mut make, mut use_it) = (Step::default(), Step::default());
        let token = self.token();
        make.query(&format!("CREATE TEMP TABLE {token} AS SELECT '{token}' AS t")).expect(tag("SELECT 1"));
        make.ready(b'I', &[]);
        use_it
            .query(&format!("SELECT t FROM {token}; DROP TABLE {token}"))
            .expect(What::RowDescription(Some("t".to_owned())))
            .expect(row(&[&token]))
            .expect(tag("SELECT 1"))
            .expect(tag("DROP TABLE"));
        use_it.ready(b'I', &[]);
        vec![make, use_it]
    }
}
