//! The command line of `qcp`; its manual page and completions are made from it, too.

use std::path::PathBuf;

use clap::{ArgGroup, Parser};

/// QCP, a PostgreSQL connection pooler
///
/// Clients connect to QCP as if it were PostgreSQL; QCP lends each of them a backend connection from a small pool, and
/// takes it back as early as the relay mode allows. One thread per core, a fixed amount of memory.
#[derive(Parser)]
#[command(version, after_long_help = EXAMPLES)]
#[command(group(ArgGroup::new("source").required(true).args(["config", "import_pgbouncer", "pgbouncer_ini"])))]
pub struct Arguments {
    /// The configuration, in YAML; config-example.yaml explains every key
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,

    /// Print what PgBouncer's configuration is as one of QCP's, and say of each key what became of it
    ///
    /// Reads the files that it includes and names as well. The configuration goes to stdout and loads as it is; what
    /// became of each key goes to stderr: mapped, ignored and why, not there yet, or needs your decision.
    #[arg(long, value_name = "INI", conflicts_with_all = ["cores", "check"])]
    pub import_pgbouncer: Option<PathBuf>,

    /// Run with PgBouncer's configuration, unless a key of it needs a decision
    #[arg(long, value_name = "INI")]
    pub pgbouncer_ini: Option<PathBuf>,

    /// The control socket; goes before `control.socket` of the configuration, which PgBouncer's has no word for
    #[arg(long, value_name = "PATH")]
    pub control: Option<PathBuf>,

    /// Threads, each on a core of its own; goes before `cores` of the configuration [default: the cores this process may
    /// run on]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub cores: Option<u16>,

    /// Check the configuration, log in to every server, say how it went, and exit: 0 if all is well, 1 if not
    ///
    /// Prints one line for each server and database: host reached, login accepted, database there, version, primary or
    /// standby. The databases are those of `databases`, and for all others PGDATABASE (default: postgres); the user is
    /// PGUSER (default: postgres). No password is sent: a server that asks for one is well with `auth: {method:
    /// server}`, since clients answer it themselves. Each login may take reconnect.connect_timeout.
    #[arg(long)]
    pub check: bool,

    /// Take the place of the qcp that runs with this configuration's control socket: no client that connects is refused
    ///
    /// It is handed the listening sockets (the number of cores may differ), and goes on when it can serve; if it cannot, the
    /// other goes on as before. The other ends when its clients have gone: transactions end as they would, clients that do
    /// nothing for a second are sent off, those that never pause, or keep a server connection, after its shutdown_timeout.
    /// Until then its control socket has its process id behind its name, and server connections of both count.
    #[arg(long, conflicts_with_all = ["check", "import_pgbouncer"])]
    pub takeover: bool,
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
