//! The pooler's program: reads the command line and the configuration, and hands over to `qcp::process`.
#![forbid(unsafe_code)]

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{ArgGroup, Parser};
use qcp::config::{self, Config, Warning};
use qcp::import::{self, Import};
use qcp::process;

/// QCP, a PostgreSQL connection pooler
///
/// Clients connect to QCP as if it were PostgreSQL; QCP lends each of them a backend connection from a small pool, and
/// takes it back as early as the relay mode allows. One thread per core, a fixed amount of memory.
#[derive(Parser)]
#[command(version, after_long_help = EXAMPLES)]
#[command(group(ArgGroup::new("source").required(true).args(["config", "import_pgbouncer", "pgbouncer_ini"])))]
struct Arguments {
    /// The configuration, in YAML; config-example.yaml explains every key
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,

    /// Print what PgBouncer's configuration is as one of QCP's, and say of each key what became of it
    ///
    /// Reads the files that it includes and names as well. The configuration goes to stdout and loads as it is; what
    /// became of each key goes to stderr: mapped, ignored and why, not there yet, or needs your decision.
    #[arg(long, value_name = "INI", conflicts_with_all = ["cores", "check"])]
    import_pgbouncer: Option<PathBuf>,

    /// Run with PgBouncer's configuration, unless a key of it needs a decision
    #[arg(long, value_name = "INI")]
    pgbouncer_ini: Option<PathBuf>,

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
  qcp --import-pgbouncer /etc/pgbouncer/pgbouncer.ini > qcp.yaml

A configuration needs no more than this:
  listening_address: 0.0.0.0:8080
  servers:
    - 10.0.0.1:5432

A running pooler is asked and stopped with qcp-ctrl; see qcp-ctrl --help.
SIGTERM lets transactions finish first (qcp-ctrl quit), SIGINT and SIGQUIT do
not (qcp-ctrl quit --now). SIGHUP opens the log file anew (qcp-ctrl reopen).

Exit codes:
  0  it stopped as asked
  1  it could not start or run; the reason is on stderr
  2  the command line is wrong
  3  --import-pgbouncer: done, but some keys need your decision";

/// `--import-pgbouncer` has printed a configuration that a person should look at first.
const UNDECIDED: u8 = 3;

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if let Some(file) = &arguments.import_pgbouncer {
        return import(file);
    }
    let loaded = match (&arguments.config, &arguments.pgbouncer_ini) {
        (Some(file), _) => Config::load(file),
        (None, Some(file)) => match load_ini(file) {
            Ok(loaded) => loaded,
            Err(code) => return code,
        },
        (None, None) => unreachable!("clap asks for one of the group"),
    };
    let (config, warnings) = match loaded {
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

fn import(file: &Path) -> ExitCode {
    let import = match import::from_disk(file) {
        Ok(import) => import,
        Err(error) => return refuse(&error),
    };
    match io::stdout().write_all(import.yaml.as_bytes()) {
        // A reader that has seen enough, as `head` has, is no fault.
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => return refuse(&error),
        Ok(()) | Err(_) => {}
    }
    tell(&import);
    if import.open().next().is_some() { ExitCode::from(UNDECIDED) } else { ExitCode::SUCCESS }
}

fn tell(import: &Import) {
    for finding in &import.findings {
        eprintln!("{finding}");
    }
    eprintln!("{}", import.summary());
}

/// PgBouncer's configuration as one of ours, if nothing in it is open.
fn load_ini(file: &Path) -> Result<Result<(Config, Vec<Warning>), config::Error>, ExitCode> {
    let import = import::from_disk(file).map_err(|error| refuse(&error))?;
    if import.open().next().is_some() {
        for finding in import.open() {
            eprintln!("qcp: {finding}");
        }
        eprintln!("qcp: not started: decide, with the help of qcp --import-pgbouncer {}", file.display());
        return Err(ExitCode::FAILURE);
    }
    Ok(Config::parse(&format!("{} (imported)", file.display()), &import.yaml))
}

fn refuse(reason: &dyn std::error::Error) -> ExitCode {
    eprintln!("qcp: {reason}");
    ExitCode::FAILURE
}
