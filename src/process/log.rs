//! Where the log goes, and what a line of it looks like: `2026-11-21T08:00:00.000Z INFO  message`.

use std::fmt;
use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use env_logger::fmt::Formatter;
use env_logger::{Builder, Target};
use log::Record;

use crate::config::{Log, LogOutput};

/// Why nothing can be logged.
#[derive(Debug)]
pub enum Error {
    File {
        path: PathBuf,
        reason: io::Error,
    },
    /// This process has a logger already.
    Twice,
}

impl std::error::Error for Error {}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::File { path, reason } => write!(f, "log_output: {}: {reason}", path.display()),
            Error::Twice => write!(f, "the log was set up twice"),
        }
    }
}

/// From here on, what is logged anywhere in the process goes where `log` says.
pub fn start(log: &Log) -> Result<(), Error> {
    let target = match &log.output {
        LogOutput::Stderr => Target::Stderr,
        LogOutput::Stdout => Target::Stdout,
        LogOutput::File(path) => Target::Pipe(Box::new(open(path)?)),
    };
    builder(log.level, target).try_init().map_err(|_| Error::Twice)
}

/// Appended to: a restart does not lose what the last run said.
fn open(path: &Path) -> Result<File, Error> {
    let opened = File::options().append(true).create(true).open(path);
    opened.map_err(|reason| Error::File { path: path.to_owned(), reason })
}

fn builder(level: log::LevelFilter, target: Target) -> Builder {
    let mut builder = Builder::new();
    builder.filter_level(level).target(target).format(write_line);
    builder
}

fn write_line(line: &mut Formatter, record: &Record<'_>) -> io::Result<()> {
    let timestamp = line.timestamp_millis();
    writeln!(line, "{timestamp} {:<5} {}", record.level(), record.args())
}

#[cfg(test)]
mod tests {
    use super::*;
    use log::Log as _;

    #[test]
    fn a_file_is_appended_to_and_a_line_has_its_form() {
        let path = std::env::temp_dir().join(format!("qcp-log-{}", std::process::id()));
        std::fs::write(&path, "before\n").unwrap();
        let logger = builder(log::LevelFilter::Info, Target::Pipe(Box::new(open(&path).unwrap()))).build();
        let say = |level, text: &str| {
            logger.log(&Record::builder().level(level).args(format_args!("{text}")).build());
        };
        say(log::Level::Info, "listening");
        say(log::Level::Debug, "not shown");
        say(log::Level::Error, "over");
        let text = std::fs::read_to_string(&path).unwrap();
        std::fs::remove_file(&path).unwrap();

        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 3, "{text}");
        assert_eq!(lines[0], "before");
        let form: String = lines[1].chars().map(|c| if c.is_ascii_digit() { '0' } else { c }).collect();
        assert_eq!(form, "0000-00-00T00:00:00.000Z INFO  listening");
        assert!(lines[2].ends_with("Z ERROR over"), "{}", lines[2]);
    }

    #[test]
    fn a_file_that_cannot_be_opened_is_named() {
        let error = open(Path::new("/nowhere/qcp.log")).unwrap_err();
        assert_eq!(error.to_string(), "log_output: /nowhere/qcp.log: No such file or directory (os error 2)");
    }
}
