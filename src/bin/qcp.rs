//! The pooler's program: reads the command line and the configuration, and hands over to `qcp::process`.
#![forbid(unsafe_code)]

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{ArgGroup, Parser};
use qcp::config::{Config, Warning};
use qcp::import::{self, Import};
use qcp::process::{self, Beginning};

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

    /// Take the place of the qcp that runs with this configuration's control socket: no client that connects is refused
    ///
    /// It is handed the listening sockets (the number of cores may differ), and goes on when it can serve; if it cannot, the
    /// other goes on as before. The other ends when its clients have gone: transactions end as they would, clients that do
    /// nothing for a second are sent off, those that never pause, or keep a server connection, after its shutdown_timeout.
    /// Until then its control socket has its process id behind its name, and server connections of both count.
    #[arg(long, conflicts_with_all = ["check", "import_pgbouncer"])]
    takeover: bool,
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
not (qcp-ctrl quit --now). SIGHUP reads the configuration again (qcp-ctrl reload)
and opens the log file anew (qcp-ctrl reopen). SIGUSR1 pauses, SIGUSR2 resumes.

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
    let from = match (arguments.config.clone(), arguments.pgbouncer_ini.clone()) {
        (Some(file), _) => From::Yaml(file),
        (None, Some(file)) => From::Ini(file),
        (None, None) => unreachable!("clap asks for one of the group"),
    };
    let (config, warnings) = match from.load() {
        Ok(loaded) => loaded,
        Err(reason) => {
            eprintln!("qcp: {reason}");
            return ExitCode::FAILURE;
        }
    };
    for warning in warnings {
        eprintln!("qcp: warning: {warning}");
    }
    let cores = process::cores(arguments.cores.map(usize::from), &config);
    if arguments.check {
        return process::check(&config);
    }
    let beginning = if arguments.takeover { Beginning::Takeover } else { Beginning::Fresh };
    match process::run(config, cores, Box::new(move || from.load()), beginning) {
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

/// Where the configuration is, at the start and at each reload.
enum From {
    Yaml(PathBuf),
    /// PgBouncer's.
    Ini(PathBuf),
}

impl From {
    fn load(&self) -> Result<(Config, Vec<Warning>), String> {
        match self {
            From::Yaml(file) => Config::load(file).map_err(|error| error.to_string()),
            From::Ini(file) => load_ini(file),
        }
    }
}

/// PgBouncer's configuration as one of ours, if nothing in it is open.
fn load_ini(file: &Path) -> Result<(Config, Vec<Warning>), String> {
    let import = import::from_disk(file).map_err(|error| error.to_string())?;
    if import.open().next().is_some() {
        let open: Vec<String> = import.open().map(|finding| format!("{finding}\nqcp: ")).collect();
        let advice = format!("not started: decide, with the help of qcp --import-pgbouncer {}", file.display());
        return Err(open.concat() + &advice);
    }
    let parsed = Config::parse(&format!("{} (imported)", file.display()), &import.yaml);
    parsed.map_err(|error| error.to_string())
}

fn refuse(reason: &dyn std::error::Error) -> ExitCode {
    eprintln!("qcp: {reason}");
    ExitCode::FAILURE
}
