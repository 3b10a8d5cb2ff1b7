//! Asks a running pooler over its control socket, prints what it says, and tells by the exit code how it went.
#![forbid(unsafe_code)]

use std::io::{self, IsTerminal, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{Parser, Subcommand};
use qcp::config::{self, Config, control_sockets};
use qcp::control::client::{Connection, Failure};
use qcp::control::command::{Act, Command, CommandFault, Password, Topic};
use qcp::control::report::{Draining, LoginOutcome, LoginRow, Ordered};
use qcp::control::wire::Reply;
use serde::Deserialize;

#[path = "qcp-ctrl/top.rs"]
mod top;

const EXAMPLES: &str = "\
Examples:
  qcp-ctrl status                        is it running, and since when
  qcp-ctrl show pools                    who waits, and for which backends
  qcp-ctrl show clients --json           every client, as JSON for a script
  qcp-ctrl show stats --watch            queries, transactions and their times, each second
  qcp-ctrl top                           all of it, live
  qcp-ctrl reload                        apply the changed configuration; nobody is dropped
  qcp-ctrl pause shop                    let its transactions end, and its clients wait
  qcp-ctrl --config qcp.yaml quit        let transactions finish, then stop, and wait for the end
  qcp-ctrl --socket /tmp/q.sock quit --now

Without --socket and --config it tries /run/qcp/control.sock, then qcp/control.sock under $XDG_RUNTIME_DIR.

Exit codes:
  0  done
  1  the pooler said no, or did not answer, and why
  2  wrong usage
  3  nobody there";

const OUTPUT_EXIT_CODE: i32 = 1;
const USAGE_EXIT_CODE: u8 = 2;
/// To connect, and again for the answer.
const ANSWER_PATIENCE: Duration = Duration::from_secs(10);
/// For servers to be logged in to, within reconnect.connect_timeout each.
const LOGIN_PATIENCE: Duration = Duration::from_secs(60);
/// For the process to end once its drain is over.
const EXIT_PATIENCE: Duration = Duration::from_secs(5);

/// Controls a running qcp
#[derive(Parser)]
#[command(name = "qcp-ctrl", version, after_help = EXAMPLES, arg_required_else_help = true)]
struct Arguments {
    /// The control socket of the pooler
    #[arg(long, value_name = "PATH", conflicts_with = "config")]
    socket: Option<PathBuf>,

    /// The configuration file of the pooler, for its control.socket
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,

    #[command(subcommand)]
    request: Request,
}

#[derive(Subcommand)]
enum Request {
    /// Stop the pooler: take no new clients, let transactions finish, close, within shutdown_timeout
    ///
    /// Returns when the process has gone, or fails when that takes 5 s longer than its shutdown_timeout.
    Quit {
        /// Do not wait for transactions
        #[arg(long)]
        now: bool,

        /// Return as soon as the pooler has begun to stop
        #[arg(long)]
        no_wait: bool,
    },

    /// Tell whether it runs or drains, since when, where it listens
    Status {
        /// Print JSON, for a script
        #[arg(long)]
        json: bool,
    },

    /// Show what the pooler does, live: its cores, its pools and who waits for them, the longest transactions
    ///
    /// Ends with q. Where the output is no terminal, it prints one screen of 200 columns and ends.
    Top {
        /// How often it is drawn (500ms, 5s)
        #[arg(long, value_name = "EVERY", default_value = "1s", value_parser = interval)]
        every: Duration,
    },

    /// Open the log file anew, after it was moved away; SIGHUP does that too
    Reopen,

    /// Read the configuration again and apply it, whole or not at all, without dropping anybody; SIGHUP does that too
    ///
    /// Lists what has changed, and what needs a restart. Passwords, rules of access and certificates are read again as well.
    Reload {
        /// Replace server connections too, each when it is free
        #[arg(long)]
        recycle: bool,

        /// Print JSON, for a script
        #[arg(long)]
        json: bool,
    },

    /// Lend no server connections: transactions end, clients wait, and time out as in the queue (SIGUSR1: all)
    Pause(Order),

    /// Take back a pause, of `pause` or of `kill` (SIGUSR2: all)
    Resume(Order),

    /// Let nobody in, and send clients off between transactions
    Drain(Order),

    /// Close clients and server connections at once, and pause: DROP DATABASE works then
    Kill(Order),

    /// Let nobody in; who is there stays
    Disable(Order),

    /// Let clients in again, after `disable` or `drain`
    Enable(Order),

    /// Replace server connections, each when it is free
    Reconnect(Order),

    /// Print a key of the configuration (or all below it), or all of them
    Get {
        /// With dots between: pool.size
        key: Option<String>,

        /// Print JSON, for a script: with defaults, and whether it can be changed without a restart
        #[arg(long)]
        json: bool,
    },

    /// Give a key another value until the next reload: set pool.size 30
    Set {
        /// With dots between: pool.size
        key: String,

        value: String,
    },

    /// Log in to the servers of a database as a user, from the running pooler, and say how that went
    ///
    /// With the password of the environment's PGPASSWORD, if there is one; else as QCP itself would log in. One line for
    /// each server: ok, invalid password, or what else is wrong. Exits 0 only if all are ok.
    CheckLogin {
        /// As clients name it
        database: String,

        user: String,

        /// Print JSON, for a script
        #[arg(long)]
        json: bool,
    },

    /// List what the pooler has at this moment, over all its cores
    #[command(arg_required_else_help = true)]
    Show {
        /// memory: what was taken at start, and for what; pools: per server, database and user; shards: per core; stats: what
        /// pools have done and how long it took; errors: by SQLSTATE. "servers" is "backends"
        #[arg(value_parser = topic_parser())]
        topic: Topic,

        /// Print JSON, for a script
        #[arg(long)]
        json: bool,

        /// Print it again and again, each second or as often as is said (500ms, 5s); with --json one line each time
        #[arg(long, value_name = "EVERY", num_args = 0..=1, default_missing_value = "1s", value_parser = interval)]
        watch: Option<Duration>,
    },
}

/// What is ordered, for which database.
#[derive(clap::Args)]
struct Order {
    /// As clients name it; none: all databases
    database: Option<String>,

    /// For pause, drain and kill: do not wait until it is done
    #[arg(long)]
    no_wait: bool,

    /// For pause, drain and kill: fail when it takes longer
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = interval)]
    timeout: Duration,
}

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
    let ask = |command| Connection::open(candidates, ANSWER_PATIENCE)?.ask(command, ANSWER_PATIENCE);
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
            let reply = Connection::open(candidates, ANSWER_PATIENCE)?.ask(command, LOGIN_PATIENCE)?;
            print(&reply, *json);
            let rows = Vec::<LoginRow>::deserialize(&reply.value).unwrap_or_default();
            if rows.iter().any(|row| row.outcome != LoginOutcome::Ok) {
                return Err(Failure::Refused("not every login went well".to_owned()));
            }
        }
        Request::Top { every } => return top::run(candidates, *every),
        Request::Status { json } => print(&ask(Command::Status)?, *json),
        Request::Reopen => print(&ask(Command::Reopen)?, false),
        Request::Show { topic, json, watch: None } => {
            print(&ask(Command::Show(*topic))?, *json);
        }
        Request::Show { topic, json, watch: Some(every) } => return watch(candidates, *topic, *json, *every),
        Request::Quit { now, no_wait } => {
            let mut connection = Connection::open(candidates, ANSWER_PATIENCE)?;
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

/// Orders something, and waits until it is so.
fn give(candidates: &[PathBuf], act: Act, order: &Order) -> Result<(), Failure> {
    if act.needs_database() && order.database.is_none() {
        return Err(Failure::Refused(CommandFault::DatabaseMissing(act).to_string()));
    }
    let since = Instant::now();
    let ask = |command| Connection::open(candidates, ANSWER_PATIENCE)?.ask(command, ANSWER_PATIENCE);
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
    let mut connection = Connection::open(candidates, ANSWER_PATIENCE)?;
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
        connection = Connection::open(candidates, ANSWER_PATIENCE)?;
    }
}

fn interval(text: &str) -> Result<Duration, String> {
    let every = config::parse_duration(text).filter(|every| *every >= Duration::from_millis(100));
    every.ok_or_else(|| "a duration of at least 100ms, such as 500ms or 5s".to_owned())
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

fn topic_parser() -> impl TypedValueParser<Value = Topic> {
    PossibleValuesParser::new(Topic::ALL.map(Topic::name).into_iter().chain(["servers"]))
        .try_map(|name| name.parse::<Topic>())
}
