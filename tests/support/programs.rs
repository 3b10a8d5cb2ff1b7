//! psql, pgbench and their kind, run to their end with a limit on how long that may take.

use std::ffi::OsStr;
use std::io::{Read, Write};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::Address;
use super::postgres::newest_programs;

/// No program of a test is worth waiting longer for.
const TIME_MAX: Duration = Duration::from_secs(120);

/// A program about to be run against an address.
pub struct Program {
    command: Command,
    input: Vec<u8>,
}

/// A program that runs.
pub struct Running {
    child: Child,
    described: String,
    stdout: JoinHandle<Vec<u8>>,
    stderr: JoinHandle<Vec<u8>>,
}

/// What is left of a program that ended.
#[derive(Debug)]
pub struct Finished {
    pub described: String,
    pub status: ExitStatus,
    pub stdout: String,
    pub stderr: String,
}

pub fn psql(address: &Address, user: &str, database: &str) -> Program {
    client_program("psql", address, user, database)
}

pub fn pgbench(address: &Address, user: &str, database: &str) -> Program {
    client_program("pgbench", address, user, database)
}

/// One of PostgreSQL's client programs, told by the environment where to connect.
pub fn client_program(name: &str, address: &Address, user: &str, database: &str) -> Program {
    let mut program = Program::new(newest_programs().join(name));
    for (name, value) in [("PGHOST", address.host.as_str()), ("PGUSER", user), ("PGDATABASE", database)] {
        program.command.env(name, value);
    }
    program.command.env("PGPORT", address.port.to_string()).env("PGSSLMODE", "disable").env("LC_ALL", "C");
    // Never asks on the terminal of whoever runs the tests.
    program.command.env("PGPASSFILE", "/nonexistent").env("PSQLRC", "/nonexistent");
    program
}

impl Program {
    pub fn new(path: impl AsRef<OsStr>) -> Program {
        Program { command: Command::new(path), input: Vec::new() }
    }

    pub fn arg(mut self, argument: impl AsRef<OsStr>) -> Program {
        self.command.arg(argument);
        self
    }

    pub fn args<A: AsRef<OsStr>>(mut self, arguments: impl IntoIterator<Item = A>) -> Program {
        self.command.args(arguments);
        self
    }

    pub fn env(mut self, name: &str, value: &str) -> Program {
        self.command.env(name, value);
        self
    }

    /// Bytes for its standard input, which ends after them.
    pub fn input(mut self, bytes: impl Into<Vec<u8>>) -> Program {
        self.input = bytes.into();
        self
    }

    pub fn start(mut self) -> Running {
        let described = format!("{:?}", self.command);
        let mut child = self
            .command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("{described}: {error}"));
        let mut stdin = child.stdin.take().expect("piped above");
        let input = self.input;
        std::thread::spawn(move || {
            // A program that ends early does not read all; what it says of that is the test's business.
            let _ = stdin.write_all(&input);
        });
        let stdout = read_aside(child.stdout.take().expect("piped above"));
        let stderr = read_aside(child.stderr.take().expect("piped above"));
        Running { child, described, stdout, stderr }
    }

    /// Runs it to its end.
    pub fn finish(self) -> Finished {
        self.start().finish()
    }
}

impl Running {
    pub fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(self.child.id() as i32);
        kill(pid, signal).unwrap_or_else(|error| panic!("{}: {error}", self.described));
    }

    pub fn finish(mut self) -> Finished {
        let deadline = Instant::now() + TIME_MAX;
        let status = loop {
            match self.child.try_wait().expect("the child is ours") {
                Some(status) => break status,
                None if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(10)),
                None => {
                    self.child.kill().expect("the child is ours");
                    break self.child.wait().expect("the child is ours");
                }
            }
        };
        let text = |reader: JoinHandle<Vec<u8>>| {
            String::from_utf8_lossy(&reader.join().expect("a reader does not panic")).into_owned()
        };
        Finished { described: self.described, status, stdout: text(self.stdout), stderr: text(self.stderr) }
    }
}

impl Finished {
    /// Its standard output; the test fails if the program did.
    pub fn success(self) -> String {
        assert!(self.status.success(), "{}\n{}\n{}\n{}", self.described, self.status, self.stdout, self.stderr);
        self.stdout
    }

    /// Its standard error; the test fails if the program did not.
    pub fn failure(self) -> String {
        assert!(!self.status.success(), "{} should have failed\n{}", self.described, self.stdout);
        self.stderr
    }
}

fn read_aside(mut from: impl Read + Send + 'static) -> JoinHandle<Vec<u8>> {
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        from.read_to_end(&mut bytes).expect("a pipe of ours can be read");
        bytes
    })
}
