//! The command line of `qcp-ctrl`; its manual page and completions are made from it, too.

use std::path::PathBuf;
use std::time::Duration;

use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{Parser, Subcommand};
use qcp::config;
use qcp::control::command::Topic;

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

/// Controls a running qcp
#[derive(Parser)]
#[command(name = "qcp-ctrl", version, after_help = EXAMPLES, arg_required_else_help = true)]
pub struct Arguments {
    /// The control socket of the pooler
    #[arg(long, value_name = "PATH", conflicts_with = "config")]
    pub socket: Option<PathBuf>,

    /// The configuration file of the pooler, for its control.socket
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,

    #[command(subcommand)]
    pub request: Request,
}

#[derive(Subcommand)]
pub enum Request {
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

    /// Start the program anew, as it was started, to take over: a new version, without one refused client
    ///
    /// Returns when the new process serves. The old one ends when its clients have gone; see qcp --takeover. If the new one
    /// cannot start, all stays as it was.
    Upgrade {
        /// Do not wait longer
        #[arg(long, value_name = "TIME", default_value = "70s", value_parser = interval)]
        timeout: Duration,
    },

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
pub struct Order {
    /// As clients name it; none: all databases
    pub database: Option<String>,

    /// For pause, drain and kill: do not wait until it is done
    #[arg(long)]
    pub no_wait: bool,

    /// For pause, drain and kill: fail when it takes longer
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = interval)]
    pub timeout: Duration,
}

fn interval(text: &str) -> Result<Duration, String> {
    let every = config::parse_duration(text).filter(|every| *every >= Duration::from_millis(100));
    every.ok_or_else(|| "a duration of at least 100ms, such as 500ms or 5s".to_owned())
}

fn topic_parser() -> impl TypedValueParser<Value = Topic> {
    PossibleValuesParser::new(Topic::ALL.map(Topic::name).into_iter().chain(["servers"]))
        .try_map(|name| name.parse::<Topic>())
}
