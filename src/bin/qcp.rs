//! The pooler's program: reads the command line and the configuration, and hands over to `qcp::process`.
#![forbid(unsafe_code)]

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Parser;
use qcp::config::{Config, Warning};
use qcp::import::{self, Import};
use qcp::process::{self, Beginning};

#[path = "qcp/arguments.rs"]
mod arguments;

use arguments::Arguments;

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
    let control = arguments.control.clone();
    let load = move || {
        let (mut config, warnings) = from.load()?;
        config.control_socket = control.clone().or(config.control_socket);
        Ok((config, warnings))
    };
    let (config, warnings) = match load() {
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
    match process::run(config, cores, Box::new(load), beginning) {
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
