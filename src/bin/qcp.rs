//! The pooler's program: reads the command line and the configuration, and hands over to `qcp::process`.
#![forbid(unsafe_code)]

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use qcp::config::Config;
use qcp::process;

/// QCP, a PostgreSQL connection pooler
///
/// Clients connect to QCP as if it were PostgreSQL; QCP lends each of them a backend connection from a small pool, and
/// takes it back as early as the relay mode allows. One thread per core, a fixed amount of memory.
#[derive(Parser)]
#[command(version, after_long_help = EXAMPLES)]
struct Arguments {
    /// The configuration, in YAML; config-example.yaml explains every key
    #[arg(long, value_name = "FILE")]
    config: PathBuf,

    /// Threads, each on a core of its own; goes before `cores` of the configuration [default: the cores this process may
    /// run on]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    cores: Option<u16>,

    /// Check the configuration, log in to every server, say how it went, and exit: 0 if all is well, 1 if not
    ///
    /// Prints one line for each server and database: host reached, login accepted, database there, version, primary or
    /// standby. The databases are those of `databases`, and for all others PGDATABASE (default: postgres); the user is
    /// PGUSER (default: postgres). No password is sent: a server that asks for one is well with `auth: {method:
    /// server}`, since clients answer it themselves. Each login may take reconnect.connect_timeout.
    #[arg(long)]
    check: bool,
}

const EXAMPLES: &str = "\
Examples:
  qcp --config /etc/qcp.yaml            run in the foreground
  qcp --config /etc/qcp.yaml --check    is the file right, are the servers there?
  psql -h 127.0.0.1 -p 8080 mydb        connect through it

A configuration needs no more than this:
  listening_address: 0.0.0.0:8080
  servers:
    - 10.0.0.1:5432

A running pooler is asked and stopped with qcp-ctrl; see qcp-ctrl --help.
SIGTERM lets transactions finish first (qcp-ctrl quit), SIGINT does not
(qcp-ctrl quit --now).

Exit codes:
  0  it stopped as asked
  1  it could not start or run; the reason is on stderr
  2  the command line is wrong";

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let (config, warnings) = match Config::load(&arguments.config) {
        Ok(loaded) => loaded,
        Err(error) => return refuse(&error),
    };
    for warning in warnings {
        eprintln!("qcp: warning: {warning}");
    }
    let cores = process::cores(arguments.cores.map(usize::from), &config);
    if arguments.check {
        return process::check(&config);
    }
    match process::run(config, cores) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => refuse(&error),
    }
}

fn refuse(reason: &dyn std::error::Error) -> ExitCode {
    eprintln!("qcp: {reason}");
    ExitCode::FAILURE
}
