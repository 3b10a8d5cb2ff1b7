//! The console: what stands behind the databases `qcp` and `pgbouncer`. A [`Session`] takes a client's bytes after its
//! login and gives back those of the answer, as a server would; it knows no socket and waits for nothing. What it tells and
//! does goes through a [`Source`].
//!
//! Both protocols are spoken, simple and extended, values in text and in binary, so that drivers need no special care.
//! Rights are looked at for each statement, not at the login: who loses them loses them at once.

pub mod rows;
pub mod show;
mod sockets;
pub mod statement;
pub mod stats;

use std::collections::BTreeMap;
use std::time::Duration;

use super::command::{Act, Command};
use super::report::metrics::ShardMetrics;
use super::report::{CONSOLE_VERSION, KeyRow, RelayMode, ShardReport};
use super::wire::Answer;
use crate::protocol::error::Severity;
use crate::protocol::tag::{TargetKind, frontend};
use crate::protocol::{Direction, ErrorFields, Framer, SqlState, Step, TransactionStatus, reader};
use rows::{Column, Formats, Rows, put, put_columns, put_row};
use show::{HELP, Show};
use statement::{Statement, StatementFault, statements};
use stats::Sums;

use CONSOLE_VERSION as SERVER_VERSION;

/// Commands are short.
const MESSAGE_SIZE_MAX: u32 = 16 * 1024;
/// Prepared statements of one session, and as many portals.
const PREPARED_MAX: usize = 64;

/// What a user may do, in rising order.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum May {
    /// Not any more, perhaps.
    Nothing,
    Look,
    Everything,
}

/// A database of the configuration, or one that is served without being listed there.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DatabaseEntry {
    pub hosts: Vec<(String, Option<u16>)>,
    /// As the servers call it.
    pub database: String,
    /// As whom QCP logs in, where that is not the client's user.
    pub force_user: Option<String>,
    pub pool_size: u64,
    pub min_pool_size: u64,
    pub reserve_pool_size: u64,
    pub server_lifetime_s: u64,
    pub mode: RelayMode,
    pub schedule: String,
    pub max_connections: u64,
    pub max_clients: u64,
}

/// What the configuration says of a user.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct UserEntry {
    pub pool_size: Option<u64>,
    pub reserve_pool_size: Option<u64>,
    pub mode: Option<RelayMode>,
    pub max_clients: u64,
}

/// What the console asks of the process, and has it do.
pub trait Source {
    fn reports(&self) -> Result<Vec<ShardReport>, String>;
    fn counted(&self) -> Result<Vec<ShardMetrics>, String>;
    /// By database, from what is counted now.
    fn averages(&self, counted: &BTreeMap<String, Sums>) -> BTreeMap<String, Sums>;
    /// Of all databases together.
    fn averages_of_all(&self, counted: &BTreeMap<String, Sums>) -> Sums;
    /// The configuration's keys, by our names and by PgBouncer's.
    fn keys(&self) -> Vec<KeyRow>;
    /// By name, as configured.
    fn databases(&self) -> Vec<String>;
    /// `None`: it is not served.
    fn database(&self, name: &str) -> Option<DatabaseEntry>;
    /// By name, as configured.
    fn users(&self) -> Vec<String>;
    fn user(&self, name: &str) -> UserEntry;
    /// Since the epoch.
    fn now(&self) -> Duration;
    fn clients_max(&self) -> u64;
    /// Where clients connect to.
    fn port(&self) -> u16;
    fn answer(&self, command: &Command) -> Answer;
    /// By our name of a key or by PgBouncer's.
    fn set(&self, key: &str, value: &str) -> Result<(), String>;
    /// Whether there was one of this id.
    fn kill_client(&self, id: u64) -> bool;
}

/// Where a session stands when it has answered as far as it can.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Progress {
    /// The client's turn.
    Done,
    /// Something has yet to happen: to be asked again.
    Waits,
    /// To be closed behind its answer.
    Ended,
    /// As `Done`; then the process ends.
    Quit { now: bool },
}

/// One client at the console.
pub struct Session {
    framer: Framer,
    /// Messages, or part of one, that have not been looked at.
    input: Vec<u8>,
    status: TransactionStatus,
    /// An error in the extended protocol: "discard messages until a Sync" (Extended Query).
    discards: bool,
    prepared: BTreeMap<Vec<u8>, Option<Statement>>,
    portals: BTreeMap<Vec<u8>, Portal>,
    waiting: Option<Waiting>,
    outcome: Progress,
}

/// A statement that was bound.
struct Portal {
    statement: Option<Statement>,
    formats: Formats,
    /// Its rows, once it has been executed, and how many of them were sent.
    rows: Option<(Rows, usize)>,
}

/// What an answer waits for.
struct Waiting {
    until: Until,
    /// What is said then.
    tag: &'static str,
    /// The statements behind it in the same Query; `None`: it was an Execute.
    rest: Option<Vec<Result<Statement, StatementFault>>>,
}

enum Until {
    /// The database, or all, has no backend at work.
    Paused(Option<String>),
    /// None that is to be replaced.
    Closed(Option<String>),
}

/// An error for the client.
struct Refusal(SqlState, String);

impl From<String> for Refusal {
    fn from(why: String) -> Refusal {
        Refusal(SqlState::INTERNAL_ERROR, why)
    }
}

impl From<&StatementFault> for Refusal {
    fn from(fault: &StatementFault) -> Refusal {
        let code = match fault {
            StatementFault::Unknown(_) | StatementFault::Unterminated | StatementFault::NotText => {
                SqlState::SYNTAX_ERROR
            }
            StatementFault::Never(..) => SqlState::FEATURE_NOT_SUPPORTED,
        };
        Refusal(code, fault.to_string())
    }
}

/// How a statement was done.
enum Done {
    Rows(Rows, &'static str),
    Said(&'static str),
    Notice(&'static str, &'static str),
    Waits(Until, &'static str),
}

impl Default for Session {
    fn default() -> Session {
        Session {
            framer: Framer::new(Direction::Frontend),
            input: Vec::new(),
            status: TransactionStatus::Idle,
            discards: false,
            prepared: BTreeMap::new(),
            portals: BTreeMap::new(),
            waiting: None,
            outcome: Progress::Done,
        }
    }
}

impl Session {
    /// Takes what has come of the client, and answers into `out`.
    pub fn on_bytes(&mut self, bytes: &[u8], may: May, source: &dyn Source, out: &mut Vec<u8>) -> Progress {
        self.input.extend_from_slice(bytes);
        if self.waiting.is_some() {
            return Progress::Waits;
        }
        self.go_on(may, source, out)
    }

    /// Looks whether what the answer waits for has happened, and goes on then.
    pub fn on_time(&mut self, may: May, source: &dyn Source, out: &mut Vec<u8>) -> Progress {
        let Some(waiting) = &self.waiting else { return Progress::Done };
        match waiting.until.has_come(source) {
            Ok(false) => return Progress::Waits,
            Ok(true) => {
                let Waiting { tag, rest, .. } = self.waiting.take().expect("looked at above");
                put_tag(out, tag);
                if let Some(rest) = rest {
                    self.run_all(rest, may, source, out);
                }
            }
            Err(why) => {
                let simple = self.waiting.take().is_some_and(|waiting| waiting.rest.is_some());
                self.refuse(out, &why.into(), simple);
            }
        }
        self.go_on(may, source, out)
    }

    fn go_on(&mut self, may: May, source: &dyn Source, out: &mut Vec<u8>) -> Progress {
        let input = std::mem::take(&mut self.input);
        let mut at = 0;
        while self.outcome == Progress::Done && self.waiting.is_none() {
            // All of a message at once; one that is too long is refused by its head.
            let need = |_, size: u32| if size > MESSAGE_SIZE_MAX { 0 } else { size as usize };
            match self.framer.next(&input[at..], need) {
                Ok(Step::Message { size, .. }) if size > MESSAGE_SIZE_MAX => {
                    let text = format!("a message of {size} bytes: the console takes {MESSAGE_SIZE_MAX}");
                    self.end(out, SqlState::PROGRAM_LIMIT_EXCEEDED, &text);
                }
                Ok(Step::Message { tag, available, .. }) => {
                    let message = &input[at..at + available];
                    at += available;
                    self.on_message(tag, message, may, source, out);
                }
                Ok(Step::Incomplete { .. } | Step::End) => break,
                Ok(Step::Rest { .. }) => unreachable!("messages are taken whole"),
                Err(malformed) => self.end(out, SqlState::PROTOCOL_VIOLATION, &malformed.to_string()),
            }
        }
        self.input = input[at..].to_vec();
        if self.waiting.is_some() { Progress::Waits } else { self.outcome }
    }

    fn on_message(&mut self, tag: u8, message: &[u8], may: May, source: &dyn Source, out: &mut Vec<u8>) {
        if self.discards && !matches!(tag, frontend::SYNC | frontend::TERMINATE) {
            return;
        }
        let outcome = match tag {
            frontend::QUERY => match reader::query(message) {
                Ok(text) => {
                    let statements = statements(text);
                    if statements.is_empty() {
                        put(out, 16, |writer| writer.empty_query_response().expect("the room was asked for"));
                    }
                    self.run_all(statements, may, source, out);
                    return;
                }
                Err(malformed) => Err(malformed),
            },
            frontend::PARSE => reader::parse(message).map(|parse| {
                let outcome = self.parse(parse.name, parse.query);
                self.reply(out, outcome, |writer| writer.parse_complete());
            }),
            frontend::BIND => reader::bind_names(message).map(|names| {
                // It is whole, so its names are.
                let Some(names) = names else { return };
                let outcome = self.bind(
                    &message[names.portal],
                    &message[names.statement.clone()],
                    bind_rest(message, names.statement.end),
                );
                self.reply(out, outcome, |writer| writer.bind_complete());
            }),
            frontend::DESCRIBE => reader::target(message).map(|target| {
                let Some(target) = target else { return };
                if let Err(refusal) = self.describe(target.kind, &message[target.name], out) {
                    self.refuse(out, &refusal, false);
                }
            }),
            frontend::EXECUTE => reader::execute(message).map(|execute| {
                let rows_max = usize::try_from(execute.rows_max).unwrap_or(0);
                if let Err(refusal) = self.execute(execute.portal, rows_max, may, source, out) {
                    self.refuse(out, &refusal, false);
                }
            }),
            frontend::CLOSE => reader::target(message).map(|target| {
                let Some(target) = target else { return };
                match target.kind {
                    TargetKind::Statement => drop(self.prepared.remove(&message[target.name])),
                    TargetKind::Portal => drop(self.portals.remove(&message[target.name])),
                }
                put(out, 16, |writer| writer.close_complete().expect("the room was asked for"));
            }),
            frontend::SYNC => {
                self.discards = false;
                self.portals.clear();
                self.put_ready(out);
                Ok(())
            }
            frontend::FLUSH => Ok(()),
            frontend::TERMINATE => {
                self.outcome = Progress::Ended;
                Ok(())
            }
            // As a server does outside of COPY.
            frontend::COPY_DATA | frontend::COPY_DONE | frontend::COPY_FAIL => Ok(()),
            frontend::FUNCTION_CALL => {
                let text = "the console has no functions".to_owned();
                self.refuse(out, &Refusal(SqlState::FEATURE_NOT_SUPPORTED, text), true);
                Ok(())
            }
            tag => {
                self.end(out, SqlState::PROTOCOL_VIOLATION, &format!("invalid frontend message type {tag}"));
                Ok(())
            }
        };
        if let Err(malformed) = outcome {
            self.end(out, SqlState::PROTOCOL_VIOLATION, &malformed.to_string());
        }
    }

    /// The statements of a Query, in turn, up to one that fails, or that waits.
    fn run_all(
        &mut self,
        statements: Vec<Result<Statement, StatementFault>>,
        may: May,
        source: &dyn Source,
        out: &mut Vec<u8>,
    ) {
        let mut statements = statements.into_iter();
        while let Some(statement) = statements.next() {
            let done = statement.as_ref().map_err(Refusal::from).and_then(|statement| self.run(statement, may, source));
            match done {
                Err(refusal) => return self.refuse(out, &refusal, true),
                Ok(Done::Waits(until, tag)) => {
                    self.waiting = Some(Waiting { until, tag, rest: Some(statements.collect()) });
                    return;
                }
                Ok(Done::Rows(rows, tag)) => {
                    let formats = Formats::default();
                    put_columns(out, &rows.columns, &formats);
                    rows.rows.iter().for_each(|row| put_row(out, &rows.columns, row, &formats));
                    put_tag(out, tag);
                }
                Ok(Done::Notice(text, tag)) => {
                    put_notice(out, text);
                    put_tag(out, tag);
                }
                Ok(Done::Said(tag)) => put_tag(out, tag),
            }
        }
        self.put_ready(out);
    }

    fn run(&mut self, statement: &Statement, may: May, source: &dyn Source) -> Result<Done, Refusal> {
        let needs = match statement {
            Statement::Show(..)
            | Statement::ShowParameter(..)
            | Statement::SetParameter(_)
            | Statement::Begin
            | Statement::Commit
            | Statement::Rollback
            | Statement::Forget(_) => May::Look,
            Statement::Set { .. }
            | Statement::Act(..)
            | Statement::KillClient(_)
            | Statement::WaitClose(_)
            | Statement::Reload
            | Statement::Shutdown { .. } => May::Everything,
        };
        if may < needs {
            let text = match needs {
                May::Everything => "admin access needed: the user is not one of auth.admin_users",
                May::Look | May::Nothing => "the user has no right at the console any more",
            };
            return Err(Refusal(SqlState::INSUFFICIENT_PRIVILEGE, text.to_owned()));
        }
        let ends = matches!(statement, Statement::Commit | Statement::Rollback);
        if self.status == TransactionStatus::Failed && !ends {
            let text = "current transaction is aborted, commands ignored until end of transaction block";
            return Err(Refusal(SqlState::IN_FAILED_TRANSACTION, text.to_owned()));
        }
        if needs == May::Everything {
            log::info!("console: {statement:?}");
        }
        let tag = match statement {
            Statement::Show(Show::Help, _) => return Ok(Done::Notice(HELP, "SHOW")),
            Statement::Show(show, of) => return Ok(Done::Rows(show.rows(of.as_deref(), source)?, "SHOW")),
            Statement::ShowParameter(name, value) => return Ok(Done::Rows(parameter(name, value), "SHOW")),
            Statement::SetParameter(_) => return Ok(Done::Notice("SET ignored", "SET")),
            Statement::Begin => {
                self.status = TransactionStatus::InTransaction;
                "BEGIN"
            }
            Statement::Commit => match std::mem::replace(&mut self.status, TransactionStatus::Idle) {
                TransactionStatus::Failed => "ROLLBACK",
                TransactionStatus::Idle | TransactionStatus::InTransaction => "COMMIT",
            },
            Statement::Rollback => {
                self.status = TransactionStatus::Idle;
                "ROLLBACK"
            }
            Statement::Forget(tag) => {
                if *tag != "RESET" {
                    self.prepared.clear();
                }
                tag
            }
            Statement::Set { key, value } => {
                source.set(key, value).map_err(|why| Refusal(SqlState::INVALID_PARAMETER_VALUE, why))?;
                "SET"
            }
            Statement::Act(act, database) => return order(*act, database.as_deref(), source),
            Statement::KillClient(id) => {
                if !source.kill_client(*id) {
                    return Err(Refusal(SqlState::UNDEFINED_OBJECT, format!("there is no client {id}")));
                }
                "KILL_CLIENT"
            }
            Statement::WaitClose(database) => return Ok(Done::Waits(Until::Closed(database.clone()), "WAIT_CLOSE")),
            Statement::Reload => {
                source.answer(&Command::Reload { recycle: false })?;
                "RELOAD"
            }
            Statement::Shutdown { now } => {
                self.outcome = Progress::Quit { now: *now };
                "SHUTDOWN"
            }
        };
        Ok(Done::Said(tag))
    }

    fn parse(&mut self, name: &[u8], query: &[u8]) -> Result<(), Refusal> {
        let mut statements = statements(query);
        if statements.len() > 1 {
            let text = "cannot insert multiple commands into a prepared statement".to_owned();
            return Err(Refusal(SqlState::SYNTAX_ERROR, text));
        }
        let statement = statements.pop().transpose().map_err(|fault| Refusal::from(&fault))?;
        if !name.is_empty() && self.prepared.contains_key(name) {
            let text = format!("prepared statement \"{}\" already exists", String::from_utf8_lossy(name));
            return Err(Refusal(SqlState::DUPLICATE_STATEMENT, text));
        }
        if self.prepared.len() >= PREPARED_MAX && !self.prepared.contains_key(name) {
            let text = format!("the console keeps {PREPARED_MAX} prepared statements");
            return Err(Refusal(SqlState::CONFIGURATION_LIMIT_EXCEEDED, text));
        }
        self.prepared.insert(name.to_vec(), statement);
        Ok(())
    }

    fn bind(&mut self, portal: &[u8], statement: &[u8], formats: Option<(usize, Formats)>) -> Result<(), Refusal> {
        let Some((parameters, formats)) = formats else {
            return Err(Refusal(SqlState::PROTOCOL_VIOLATION, "a Bind that makes no sense".to_owned()));
        };
        let Some(found) = self.prepared.get(statement) else { return Err(unknown_statement(statement)) };
        if parameters > 0 {
            let text = format!("bind message supplies {parameters} parameters, but the console's commands have none");
            return Err(Refusal(SqlState::PROTOCOL_VIOLATION, text));
        }
        if self.portals.len() >= PREPARED_MAX && !self.portals.contains_key(portal) {
            let text = format!("the console keeps {PREPARED_MAX} portals");
            return Err(Refusal(SqlState::CONFIGURATION_LIMIT_EXCEEDED, text));
        }
        let bound = Portal { statement: found.clone(), formats, rows: None };
        self.portals.insert(portal.to_vec(), bound);
        Ok(())
    }

    fn describe(&self, kind: TargetKind, name: &[u8], out: &mut Vec<u8>) -> Result<(), Refusal> {
        let (statement, formats) = match kind {
            TargetKind::Statement => {
                let statement = self.prepared.get(name).ok_or_else(|| unknown_statement(name))?;
                put(out, 16, |writer| writer.parameter_description(&[]).expect("the room was asked for"));
                (statement, &Formats::default())
            }
            TargetKind::Portal => {
                let portal = self.portals.get(name).ok_or_else(|| unknown_portal(name))?;
                (&portal.statement, &portal.formats)
            }
        };
        let columns = statement.as_ref().map(columns).unwrap_or_default();
        if columns.is_empty() {
            put(out, 16, |writer| writer.no_data().expect("the room was asked for"));
        } else {
            put_columns(out, &columns, formats);
        }
        Ok(())
    }

    fn execute(
        &mut self,
        name: &[u8],
        rows_max: usize,
        may: May,
        source: &dyn Source,
        out: &mut Vec<u8>,
    ) -> Result<(), Refusal> {
        let Some(mut portal) = self.portals.remove(name) else { return Err(unknown_portal(name)) };
        let Some(statement) = &portal.statement else {
            put(out, 16, |writer| writer.empty_query_response().expect("the room was asked for"));
            return Ok(());
        };
        if portal.rows.is_none() {
            match self.run(statement, may, source)? {
                Done::Rows(rows, _) => portal.rows = Some((rows, 0)),
                Done::Said(tag) => put_tag(out, tag),
                Done::Notice(text, tag) => {
                    put_notice(out, text);
                    put_tag(out, tag);
                }
                Done::Waits(until, tag) => self.waiting = Some(Waiting { until, tag, rest: None }),
            }
        }
        if let Some((rows, sent)) = &mut portal.rows {
            let count = if rows_max == 0 { usize::MAX } else { rows_max };
            for row in rows.rows.iter().skip(*sent).take(count) {
                put_row(out, &rows.columns, row, &portal.formats);
                *sent += 1;
            }
            if *sent < rows.rows.len() {
                put(out, 16, |writer| writer.portal_suspended().expect("the room was asked for"));
            } else {
                put_tag(out, "SHOW");
            }
            self.portals.insert(name.to_vec(), portal);
        }
        Ok(())
    }

    fn reply(
        &mut self,
        out: &mut Vec<u8>,
        outcome: Result<(), Refusal>,
        write: impl FnOnce(&mut crate::protocol::Writer<'_>) -> Result<(), crate::protocol::Full>,
    ) {
        match outcome {
            Ok(()) => put(out, 16, |writer| write(writer).expect("the room was asked for")),
            Err(refusal) => self.refuse(out, &refusal, false),
        }
    }

    /// An error; `simple`: of a Query, which is over with it.
    fn refuse(&mut self, out: &mut Vec<u8>, refusal: &Refusal, simple: bool) {
        let Refusal(code, text) = refusal;
        put_error(out, Severity::Error, *code, text);
        if self.status == TransactionStatus::InTransaction {
            self.status = TransactionStatus::Failed;
        }
        if simple {
            self.put_ready(out);
        } else {
            self.discards = true;
        }
    }

    fn end(&mut self, out: &mut Vec<u8>, code: SqlState, text: &str) {
        put_error(out, Severity::Fatal, code, text);
        self.outcome = Progress::Ended;
    }

    fn put_ready(&self, out: &mut Vec<u8>) {
        put(out, 16, |writer| writer.ready_for_query(self.status).expect("the room was asked for"));
    }
}

impl Until {
    fn has_come(&self, source: &dyn Source) -> Result<bool, String> {
        use super::report::BackendState;
        let reports = source.reports()?;
        let mut backends = reports.iter().flat_map(|report| &report.backends);
        let is_meant = |of: &Option<String>, database: &str| of.as_deref().is_none_or(|of| of == database);
        Ok(!backends.any(|backend| match self {
            Until::Paused(of) => is_meant(of, &backend.database) && backend.state != BackendState::Idle,
            Until::Closed(of) => is_meant(of, &backend.database) && backend.close_needed,
        }))
    }
}

/// Clients that are at the console are nobody's concern here.
fn order(act: Act, database: Option<&str>, source: &dyn Source) -> Result<Done, Refusal> {
    if let Some(name) = database {
        let is_served = source.database(name).is_some();
        let is_console = ["qcp", "pgbouncer"].contains(&name);
        if !is_served || is_console {
            return Err(Refusal(SqlState::INVALID_CATALOG_NAME, format!("no such database: {name}")));
        }
    }
    let database = database.map(str::to_owned);
    source.answer(&Command::Order(act, database.clone()))?;
    Ok(match act {
        Act::Pause => Done::Waits(Until::Paused(database), "PAUSE"),
        Act::Resume => Done::Said("RESUME"),
        Act::Drain => Done::Said("DRAIN"),
        Act::Kill => Done::Said("KILL"),
        Act::Disable => Done::Said("DISABLE"),
        Act::Enable => Done::Said("ENABLE"),
        Act::Reconnect => Done::Said("RECONNECT"),
    })
}

fn columns(statement: &Statement) -> Vec<Column> {
    match statement {
        Statement::Show(show, _) => show.columns(),
        Statement::ShowParameter(name, _) => vec![(name, rows::Kind::Text)],
        Statement::SetParameter(_)
        | Statement::Set { .. }
        | Statement::Act(..)
        | Statement::KillClient(_)
        | Statement::WaitClose(_)
        | Statement::Reload
        | Statement::Shutdown { .. }
        | Statement::Begin
        | Statement::Commit
        | Statement::Rollback
        | Statement::Forget(_) => Vec::new(),
    }
}

fn parameter(name: &'static str, value: &str) -> Rows {
    Rows { columns: vec![(name, rows::Kind::Text)], rows: vec![vec![value.into()]] }
}

fn unknown_statement(name: &[u8]) -> Refusal {
    let text = format!("prepared statement \"{}\" does not exist", String::from_utf8_lossy(name));
    Refusal(SqlState::INVALID_STATEMENT_NAME, text)
}

fn unknown_portal(name: &[u8]) -> Refusal {
    Refusal(SqlState::INVALID_CURSOR_NAME, format!("portal \"{}\" does not exist", String::from_utf8_lossy(name)))
}

/// How many parameters a Bind has, and in which formats it wants its results. `at`: the end of its names.
fn bind_rest(message: &[u8], at: usize) -> Option<(usize, Formats)> {
    let parameters = reader::bind_values(message).ok()?.count();
    let number = |at: usize| Some(u16::from_be_bytes(*message.get(at..)?.first_chunk()?));
    // Behind the name's zero: formats of parameters, the parameters, formats of results.
    let mut at = at + 1;
    at += 2 + 2 * usize::from(number(at)?);
    let count = number(at)?;
    at += 2;
    for _ in 0..count {
        let size = i32::from_be_bytes(*message.get(at..)?.first_chunk()?);
        at += 4 + usize::try_from(size).unwrap_or(0);
    }
    let formats = (0..usize::from(number(at)?)).map(|index| number(at + 2 + 2 * index));
    let formats: Option<Vec<bool>> = formats.map(|format| Some(format? != 0)).collect();
    Some((parameters, Formats(formats?)))
}

fn put_tag(out: &mut Vec<u8>, tag: &str) {
    put(out, tag.len() + 16, |writer| writer.command_complete(tag.as_bytes()).expect("the room was asked for"));
}

fn put_notice(out: &mut Vec<u8>, text: &str) {
    let fields = ErrorFields::new(Severity::Notice, SqlState::SUCCESSFUL_COMPLETION, text);
    put(out, text.len() + 64, |writer| writer.notice_response(&fields).expect("the room was asked for"));
}

fn put_error(out: &mut Vec<u8>, severity: Severity, code: SqlState, text: &str) {
    let fields = ErrorFields::new(severity, code, text);
    put(out, text.len() + 64, |writer| writer.error_response(&fields).expect("the room was asked for"));
}

#[cfg(test)]
mod tests;
