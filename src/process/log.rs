//! Where the log goes, and what a line of it looks like: `2026-11-21T08:00:00.000Z INFO  message`, or the same as an
//! object of JSON.
//!
//! A file can be opened anew while qcp runs, so that others may rotate it. What syslog does not take at once is dropped
//! and counted: no shard waits for a daemon.

use std::fmt;
use std::fs::File;
use std::io::{self, Write};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use env_logger::fmt::Formatter;
use env_logger::{Builder, Target};
use log::{Level, Record};

use crate::config::{Log, LogFormat, LogOutput};

/// Where the system's logger listens.
const SYSLOG_SOCKET: &str = "/dev/log";
/// The facility "daemon", as a priority counts it.
const SYSLOG_FACILITY: u8 = 3 << 3;
/// Longer lines are cut: a datagram is one line, and loggers take no more.
const SYSLOG_LINE_MAX: usize = 8 * 1024;

/// Why nothing can be logged.
#[derive(Debug)]
pub enum Error {
    File {
        path: PathBuf,
        reason: io::Error,
    },
    Syslog(io::Error),
    /// This process has a logger already.
    Twice,
}

impl std::error::Error for Error {}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::File { path, reason } => write!(f, "log_output: {}: {reason}", path.display()),
            Error::Syslog(reason) => write!(f, "log_output: syslog: {SYSLOG_SOCKET}: {reason}"),
            Error::Twice => write!(f, "the log was set up twice"),
        }
    }
}

/// The file that is logged to, if it is one.
#[derive(Clone, Default)]
pub struct Reopener(Option<LogFile>);

impl Reopener {
    /// Opens the file by its name again, after somebody has moved it away; its name, if there is a file. Where it cannot
    /// be opened, the old one is kept.
    pub fn reopen(&self) -> Result<Option<&Path>, Error> {
        let Some(file) = &self.0 else { return Ok(None) };
        let new = open(&file.path)?;
        *file.now.lock().unwrap_or_else(PoisonError::into_inner) = new;
        Ok(Some(&file.path))
    }
}

/// From here on, what is logged anywhere in the process goes where `log` says.
pub fn start(log: &Log) -> Result<Reopener, Error> {
    let (target, reopener) = match &log.output {
        LogOutput::Stderr => (Target::Stderr, Reopener::default()),
        LogOutput::Stdout => (Target::Stdout, Reopener::default()),
        LogOutput::Syslog => {
            let syslog = Syslog::open(Path::new(SYSLOG_SOCKET)).map_err(Error::Syslog)?;
            (Target::Pipe(Box::new(syslog)), Reopener::default())
        }
        LogOutput::File(path) => {
            let file = LogFile::open(path)?;
            (Target::Pipe(Box::new(file.clone())), Reopener(Some(file)))
        }
    };
    let is_syslog = log.output == LogOutput::Syslog;
    // The logger itself lets all through: the level is the `log` crate's, which a reload can change.
    let all = log::LevelFilter::Trace;
    builder(all, target, log.format, is_syslog).try_init().map_err(|_| Error::Twice)?;
    log::set_max_level(log.level);
    Ok(reopener)
}

/// A file whose place another can take.
#[derive(Clone)]
struct LogFile {
    path: PathBuf,
    now: Arc<Mutex<File>>,
}

impl LogFile {
    fn open(path: &Path) -> Result<LogFile, Error> {
        Ok(LogFile { path: path.to_owned(), now: Arc::new(Mutex::new(open(path)?)) })
    }
}

impl Write for LogFile {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.now.lock().unwrap_or_else(PoisonError::into_inner).write(line)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Appended to: a restart does not lose what the last run said.
fn open(path: &Path) -> Result<File, Error> {
    let opened = File::options().append(true).create(true).open(path);
    opened.map_err(|reason| Error::File { path: path.to_owned(), reason })
}

/// The system's logger. It may end and come back.
struct Syslog {
    path: PathBuf,
    socket: UnixDatagram,
    lost: u64,
}

impl Syslog {
    fn open(path: &Path) -> io::Result<Syslog> {
        let socket = UnixDatagram::unbound()?;
        socket.set_nonblocking(true)?;
        socket.connect(path)?;
        Ok(Syslog { path: path.to_owned(), socket, lost: 0 })
    }

    fn send(&mut self, line: &[u8]) -> bool {
        let sent = match self.socket.send(line) {
            // The daemon was started anew, and its socket with it.
            Err(error) if error.kind() != io::ErrorKind::WouldBlock => {
                self.socket.connect(&self.path).and_then(|()| self.socket.send(line))
            }
            sent => sent,
        };
        sent.is_ok()
    }
}

impl Write for Syslog {
    /// A line in one call, as env_logger writes it.
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        if self.lost > 0 {
            let lost = format!(
                "<{}>qcp[{}]: {} lines of the log were lost",
                priority(Level::Warn),
                std::process::id(),
                self.lost
            );
            if self.send(lost.as_bytes()) {
                self.lost = 0;
            }
        }
        let trimmed = line.trim_ascii_end();
        if !self.send(&trimmed[..trimmed.len().min(SYSLOG_LINE_MAX)]) {
            self.lost += 1;
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Facility and severity, as RFC 3164 has them.
fn priority(level: Level) -> u8 {
    let severity = match level {
        Level::Error => 3,
        Level::Warn => 4,
        Level::Info => 6,
        Level::Debug | Level::Trace => 7,
    };
    SYSLOG_FACILITY | severity
}

fn builder(level: log::LevelFilter, target: Target, format: LogFormat, is_syslog: bool) -> Builder {
    let mut builder = Builder::new();
    builder.filter_level(level).target(target);
    builder.format(move |line, record| {
        if is_syslog {
            // The time is the logger's own to write.
            write!(line, "<{}>qcp[{}]: ", priority(record.level()), std::process::id())?;
        }
        match format {
            LogFormat::Json => write_json(line, record),
            LogFormat::Text if is_syslog => writeln!(line, "{}", record.args()),
            LogFormat::Text => write_line(line, record),
        }
    });
    builder
}

fn write_line(line: &mut Formatter, record: &Record<'_>) -> io::Result<()> {
    let timestamp = line.timestamp_millis();
    writeln!(line, "{timestamp} {:<5} {}", record.level(), record.args())
}

fn write_json(line: &mut Formatter, record: &Record<'_>) -> io::Result<()> {
    let timestamp = line.timestamp_millis();
    let message = serde_json::Value::String(record.args().to_string());
    writeln!(line, "{{\"time\":\"{timestamp}\",\"level\":\"{}\",\"message\":{message}}}", record.level())
}

#[cfg(test)]
mod tests {
    use super::*;
    use log::Log as _;

    fn folder(name: &str) -> PathBuf {
        let path = std::env::temp_dir().join(format!("qcp-log-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        path
    }

    fn say(logger: &env_logger::Logger, level: Level, text: &str) {
        logger.log(&Record::builder().level(level).args(format_args!("{text}")).build());
    }

    #[test]
    fn a_file_is_appended_to_and_a_line_has_its_form() {
        let folder = folder("file");
        let path = folder.join("qcp.log");
        std::fs::write(&path, "before\n").unwrap();
        let file = LogFile::open(&path).unwrap();
        let logger = builder(log::LevelFilter::Info, Target::Pipe(Box::new(file)), LogFormat::Text, false).build();
        say(&logger, Level::Info, "listening");
        say(&logger, Level::Debug, "not shown");
        say(&logger, Level::Error, "over");
        let text = std::fs::read_to_string(&path).unwrap();
        std::fs::remove_dir_all(&folder).unwrap();

        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 3, "{text}");
        assert_eq!(lines[0], "before");
        let form: String = lines[1].chars().map(|c| if c.is_ascii_digit() { '0' } else { c }).collect();
        assert_eq!(form, "0000-00-00T00:00:00.000Z INFO  listening");
        assert!(lines[2].ends_with("Z ERROR over"), "{}", lines[2]);
    }

    #[test]
    fn a_line_of_json_is_one_object_whatever_is_in_it() {
        let folder = folder("json");
        let path = folder.join("qcp.log");
        let file = LogFile::open(&path).unwrap();
        let logger = builder(log::LevelFilter::Info, Target::Pipe(Box::new(file)), LogFormat::Json, false).build();
        let odd = "a \"quoted\" name,\na line and \u{1b}[31m \\ é";
        say(&logger, Level::Warn, odd);
        let text = std::fs::read_to_string(&path).unwrap();
        std::fs::remove_dir_all(&folder).unwrap();
        assert_eq!(text.lines().count(), 1, "{text}");
        let object: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(object["level"], "WARN");
        assert_eq!(object["message"], odd);
        assert!(object["time"].as_str().unwrap().ends_with('Z'));
    }

    #[test]
    fn a_file_that_was_moved_away_is_opened_anew() {
        let folder = folder("rotate");
        let (path, moved) = (folder.join("qcp.log"), folder.join("qcp.log.1"));
        let file = LogFile::open(&path).unwrap();
        let reopener = Reopener(Some(file.clone()));
        let logger = builder(log::LevelFilter::Info, Target::Pipe(Box::new(file)), LogFormat::Text, false).build();
        say(&logger, Level::Info, "one");
        std::fs::rename(&path, &moved).unwrap();
        say(&logger, Level::Info, "two");
        assert_eq!(reopener.reopen().unwrap(), Some(path.as_path()));
        say(&logger, Level::Info, "three");
        // Where it cannot be opened, the old one stays.
        std::fs::rename(&folder, folder.with_extension("gone")).unwrap();
        assert!(reopener.reopen().is_err());
        say(&logger, Level::Info, "four");
        std::fs::rename(folder.with_extension("gone"), &folder).unwrap();
        let read = |path: &Path| std::fs::read_to_string(path).unwrap();
        let (old, new) = (read(&moved), read(&path));
        std::fs::remove_dir_all(&folder).unwrap();
        assert!(old.contains("one") && old.contains("two") && !old.contains("three"), "{old}");
        assert!(new.contains("three") && new.contains("four") && !new.contains("two"), "{new}");
    }

    #[test]
    fn syslog_gets_datagrams_and_may_be_away() {
        let folder = folder("syslog");
        let path = folder.join("log");
        let daemon = UnixDatagram::bind(&path).unwrap();
        let syslog = Syslog::open(&path).unwrap();
        let logger = builder(log::LevelFilter::Info, Target::Pipe(Box::new(syslog)), LogFormat::Text, true).build();
        let next = |daemon: &UnixDatagram| {
            let mut line = [0; 2 * SYSLOG_LINE_MAX];
            daemon.set_nonblocking(true).unwrap();
            let size = daemon.recv(&mut line).expect("a line has come");
            String::from_utf8_lossy(&line[..size]).into_owned()
        };
        let pid = std::process::id();
        say(&logger, Level::Info, "hello");
        assert_eq!(next(&daemon), format!("<30>qcp[{pid}]: hello"));
        say(&logger, Level::Error, &"x".repeat(2 * SYSLOG_LINE_MAX));
        assert_eq!(next(&daemon).len(), SYSLOG_LINE_MAX);
        drop(daemon);
        std::fs::remove_file(&path).unwrap();
        say(&logger, Level::Warn, "into the void");
        let daemon = UnixDatagram::bind(&path).unwrap();
        say(&logger, Level::Warn, "back");
        assert_eq!(next(&daemon), format!("<28>qcp[{pid}]: 1 lines of the log were lost"));
        assert_eq!(next(&daemon), format!("<28>qcp[{pid}]: back"));
        std::fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn a_file_that_cannot_be_opened_is_named() {
        let error = open(Path::new("/nowhere/qcp.log")).unwrap_err();
        assert_eq!(error.to_string(), "log_output: /nowhere/qcp.log: No such file or directory (os error 2)");
    }
}
