//! Asks a running pooler over its control socket, prints what it says, and tells by the exit code how it went.
#![forbid(unsafe_code)]

use std::io::{self, IsTerminal, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{Parser, Subcommand};
use qcp::config::{self, Config, control_sockets};
use qcp::control::client::{Connection, Failure};
use qcp::control::command::{Command, Topic};
use qcp::control::report::Draining;
use qcp::control::wire::Reply;
use serde::Deserialize;

const EXAMPLES: &str = "\
Examples:
  qcp-ctrl status                        is it running, and since when
  qcp-ctrl show pools                    who waits, and for which backends
  qcp-ctrl show clients --json           every client, as JSON for a script
  qcp-ctrl show stats --watch            queries, transactions and their times, each second
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

    /// Open the log file anew, after it was moved away; SIGHUP does that too
    Reopen,

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
    let mut connection = Connection::open(candidates, ANSWER_PATIENCE)?;
    match *request {
        Request::Status { json } => print(&connection.ask(Command::Status, ANSWER_PATIENCE)?, json),
        Request::Reopen => print(&connection.ask(Command::Reopen, ANSWER_PATIENCE)?, false),
        Request::Show { topic, json, watch: None } => {
            print(&connection.ask(Command::Show(topic), ANSWER_PATIENCE)?, json);
        }
        Request::Show { topic, json, watch: Some(every) } => return watch(candidates, connection, topic, json, every),
        Request::Quit { now, no_wait } => {
            let reply = connection.ask(Command::Quit { now }, ANSWER_PATIENCE)?;
            print(&reply, false);
            if !no_wait {
                connection.wait_for_exit(drain_max(&reply) + EXIT_PATIENCE)?;
                print_text("stopped\n");
            }
        }
    }
    Ok(())
}

/// Until the pooler or the reader is gone.
fn watch(
    candidates: &[PathBuf],
    mut connection: Connection,
    topic: Topic,
    json: bool,
    every: Duration,
) -> Result<(), Failure> {
    let is_screen = io::stdout().is_terminal();
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
