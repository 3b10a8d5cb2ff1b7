//! Asks a running pooler over its control socket, prints what it says, and tells by the exit code how it went.
#![forbid(unsafe_code)]

use std::io::{self, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Parser;
use qcp::config::{self, Config, control_sockets};
use qcp::control::client::{Connection, Failure};
use qcp::control::command::{Act, Command, CommandFault, Password, Topic};
use qcp::control::report::{Draining, LoginOutcome, LoginRow, Ordered, Upgrading};
use qcp::control::wire::Reply;
use serde::Deserialize;

#[path = "qcp-ctrl/arguments.rs"]
mod arguments;
#[path = "qcp-ctrl/top.rs"]
mod top;

use arguments::{Arguments, Order, Request};

const OUTPUT_EXIT_CODE: i32 = 1;
const USAGE_EXIT_CODE: u8 = 2;
/// To connect, and again for the answer.
const ANSWER_PATIENCE: Duration = Duration::from_secs(10);
/// For servers to be logged in to, within reconnect.connect_timeout each.
const LOGIN_PATIENCE: Duration = Duration::from_secs(60);
/// For the process to end once its drain is over.
const EXIT_PATIENCE: Duration = Duration::from_secs(5);

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let candidates = match candidates(&arguments) {
        Ok(candidates) => candidates,
        Err(reason) => {
            eprintln!("qcp-ctrl: {reason}");
            return ExitCode::from(USAGE_EXIT_CODE);
        }
    };
    match run(&candidates, &arguments.request) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("qcp-ctrl: {failure}");
            ExitCode::from(failure.exit_code())
        }
    }
}

fn candidates(arguments: &Arguments) -> Result<Vec<PathBuf>, config::Error> {
    if let Some(path) = &arguments.socket {
        return Ok(vec![path.clone()]);
    }
    // Its warnings are for whoever starts the pooler.
    let loaded = arguments.config.as_deref().map(Config::load).transpose()?;
    let configured = loaded.and_then(|(config, _)| config.control_socket);
    let runtime_directory = std::env::var_os("XDG_RUNTIME_DIR");
    Ok(control_sockets(configured.as_deref(), runtime_directory.as_deref()))
}

fn run(candidates: &[PathBuf], request: &Request) -> Result<(), Failure> {
    let ask = |command| Connection::open(candidates, ANSWER_PATIENCE, Instant::now)?.ask(command, ANSWER_PATIENCE);
    match request {
        Request::Reload { recycle, json } => {
            print(&ask(Command::Reload { recycle: *recycle })?, *json);
        }
        Request::Pause(order) => return give(candidates, Act::Pause, order),
        Request::Resume(order) => return give(candidates, Act::Resume, order),
        Request::Drain(order) => return give(candidates, Act::Drain, order),
        Request::Kill(order) => return give(candidates, Act::Kill, order),
        Request::Disable(order) => return give(candidates, Act::Disable, order),
        Request::Enable(order) => return give(candidates, Act::Enable, order),
        Request::Reconnect(order) => return give(candidates, Act::Reconnect, order),
        Request::Get { key, json } => print(&ask(Command::Get(key.clone()))?, *json),
        Request::Set { key, value } => {
            let command = Command::Set { key: key.clone(), value: value.clone() };
            print(&ask(command)?, false);
        }
        Request::CheckLogin { database, user, json } => {
            let password = std::env::var("PGPASSWORD").ok().filter(|password| !password.is_empty()).map(Password);
            let command = Command::CheckLogin { database: database.clone(), user: user.clone(), password };
            let reply = Connection::open(candidates, ANSWER_PATIENCE, Instant::now)?.ask(command, LOGIN_PATIENCE)?;
            print(&reply, *json);
            let rows = Vec::<LoginRow>::deserialize(&reply.value).unwrap_or_default();
            if rows.iter().any(|row| row.outcome != LoginOutcome::Ok) {
                return Err(Failure::Refused("not every login went well".to_owned()));
            }
        }
        Request::Top { every } => return top::run(candidates, *every),
        Request::Status { json } => print(&ask(Command::Status)?, *json),
        Request::Upgrade { timeout } => return upgrade(candidates, *timeout),
        Request::Reopen => print(&ask(Command::Reopen)?, false),
        Request::Show { topic, json, watch: None } => {
            print(&ask(Command::Show(*topic))?, *json);
        }
        Request::Show { topic, json, watch: Some(every) } => return watch(candidates, *topic, *json, *every),
        Request::Quit { now, no_wait } => {
            let mut connection = Connection::open(candidates, ANSWER_PATIENCE, Instant::now)?;
            let reply = connection.ask(Command::Quit { now: *now }, ANSWER_PATIENCE)?;
            print(&reply, false);
            if !*no_wait {
                connection.wait_for_exit(drain_max(&reply) + EXIT_PATIENCE)?;
                print_text("stopped\n");
            }
        }
    }
    Ok(())
}

/// Returns when the other process has taken over.
fn upgrade(candidates: &[PathBuf], timeout: Duration) -> Result<(), Failure> {
    let since = Instant::now();
    let ask = |command| Connection::open(candidates, ANSWER_PATIENCE, Instant::now)?.ask(command, ANSWER_PATIENCE);
    let reply = ask(Command::Upgrade)?;
    print(&reply, false);
    let Ok(Upgrading { pid }) = Upgrading::deserialize(&reply.value) else {
        return Err(Failure::Refused("which process it starts was not said".to_owned()));
    };
    loop {
        std::thread::sleep(Duration::from_millis(100));
        // The place of the control socket is the other's when it serves.
        let now = Connection::open(candidates, ANSWER_PATIENCE, Instant::now)?;
        if now.peer_pid() == Some(pid) {
            print_text(&format!("process {pid} serves\n"));
            return Ok(());
        }
        if !Path::new(&format!("/proc/{pid}")).exists() {
            let text = format!("process {pid} could not take over; its log says why. All is as it was");
            return Err(Failure::Refused(text));
        }
        if since.elapsed() >= timeout {
            return Err(Failure::Refused(format!(
                "process {pid} has not taken over within {timeout:?}, and goes on trying"
            )));
        }
    }
}

/// Orders something, and waits until it is so.
fn give(candidates: &[PathBuf], act: Act, order: &Order) -> Result<(), Failure> {
    if act.needs_database() && order.database.is_none() {
        return Err(Failure::Refused(CommandFault::DatabaseMissing(act).to_string()));
    }
    let since = Instant::now();
    let ask = |command| Connection::open(candidates, ANSWER_PATIENCE, Instant::now)?.ask(command, ANSWER_PATIENCE);
    let mut reply = ask(Command::Order(act, order.database.clone()))?;
    while !order.no_wait && !is_done(act, &reply) {
        if since.elapsed() >= order.timeout {
            print(&reply, false);
            let text = format!("{}: not done within {:?}; it stays ordered", act.name(), order.timeout);
            return Err(Failure::Refused(text));
        }
        std::thread::sleep(Duration::from_millis(100));
        // Each of these orders can be given again, and says how things stand.
        reply = ask(Command::Order(act, order.database.clone()))?;
    }
    print(&reply, false);
    Ok(())
}

fn is_done(act: Act, reply: &Reply) -> bool {
    let Ok(now) = Ordered::deserialize(&reply.value) else { return true };
    match act {
        Act::Pause => now.backends == now.idle,
        Act::Kill => now.backends == 0,
        Act::Drain => now.clients == 0,
        Act::Resume | Act::Disable | Act::Enable | Act::Reconnect => true,
    }
}

/// Until the pooler or the reader is gone.
fn watch(candidates: &[PathBuf], topic: Topic, json: bool, every: Duration) -> Result<(), Failure> {
    let is_screen = io::stdout().is_terminal();
    let mut connection = Connection::open(candidates, ANSWER_PATIENCE, Instant::now)?;
    loop {
        let reply = connection.ask(Command::Show(topic), ANSWER_PATIENCE)?;
        let text = match (json, is_screen) {
            (true, _) => format!("{}\n", reply.value),
            // Home, and what is left of the time before is cleared behind the text.
            (false, true) => format!("\x1b[H{}\x1b[J", reply.text.replace('\n', "\x1b[K\n")),
            (false, false) => format!("{}\n", reply.text),
        };
        if !print_text(&text) {
            return Ok(());
        }
        std::thread::sleep(every);
        connection = Connection::open(candidates, ANSWER_PATIENCE, Instant::now)?;
    }
}

/// How long the pooler said that it may take.
fn drain_max(reply: &Reply) -> Duration {
    let draining = Draining::deserialize(&reply.value);
    draining.map_or(Duration::ZERO, |draining| Duration::from_millis(draining.shutdown_timeout_ms))
}

fn print(reply: &Reply, json: bool) {
    if json {
        print_text(&format!("{:#}\n", reply.value));
    } else {
        print_text(&reply.text);
    }
}

/// Whether somebody reads on. A reader that has seen enough, as `head` has, is no fault.
fn print_text(text: &str) -> bool {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            eprintln!("qcp-ctrl: cannot write: {error}");
            std::process::exit(OUTPUT_EXIT_CODE);
        }
        written => written.is_ok(),
    }
}
