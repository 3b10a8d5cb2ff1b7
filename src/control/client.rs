//! The asking end of the control socket: `qcp-ctrl`, and a starting `qcp` that finds a socket in its place.
//!
//! No wait is without an end: neither for a full backlog, nor for a pooler that took the connection and hangs.

use std::fmt;
use std::io::{self, Read};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, setsockopt, socket, sockopt};
use nix::sys::time::{TimeVal, TimeValLike};

use super::command::Command;
use super::wire::{self, Clock, Deadline, LineFault, MessageFault, Reply};

/// A connection to a pooler. The protocol has one command for each; what may follow is the end of the pooler.
pub struct Connection {
    stream: UnixStream,
    path: PathBuf,
    clock: Clock,
}

/// Why a command was not done.
#[derive(Debug)]
pub enum Failure {
    /// Nobody listens at any of these places.
    Nobody { tried: Vec<PathBuf> },
    /// Somebody may listen there, but the system does not let us in.
    Closed { path: PathBuf, error: io::Error },
    /// The pooler said no, and why.
    Refused(String),
    /// Somebody listens, but no line came or went.
    Line { path: PathBuf, fault: LineFault },
    /// A line came, but not from a qcp as we know it.
    Message { path: PathBuf, fault: MessageFault },
    /// The pooler promised to end, and is still there.
    StillRunning { path: PathBuf, waited: Duration },
}

impl Connection {
    /// Connects to the first place where somebody listens.
    pub fn open(candidates: &[PathBuf], patience: Duration, clock: Clock) -> Result<Connection, Failure> {
        let mut closed = None;
        for path in candidates {
            match dial(path, patience) {
                Ok(stream) => return Ok(Connection { stream, path: path.clone(), clock }),
                Err(error) if nobody_listens(&error) => {}
                // Another user's pooler at the first place does not hide one's own at the second.
                Err(error) => closed = closed.or(Some(Failure::Closed { path: path.clone(), error })),
            }
        }
        Err(closed.unwrap_or_else(|| Failure::Nobody { tried: candidates.to_vec() }))
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The process that listens. None if it is in another container, whose numbers mean nothing here.
    pub fn peer_pid(&self) -> Option<u32> {
        let peer = nix::sys::socket::getsockopt(&self.stream, sockopt::PeerCredentials).ok()?;
        u32::try_from(peer.pid()).ok().filter(|pid| *pid != 0)
    }

    /// Sends the command and waits for its answer, both within `patience`.
    pub fn ask(&mut self, command: Command, patience: Duration) -> Result<Reply, Failure> {
        let deadline = Deadline::after(patience, self.clock);
        let sent = wire::send_line(&self.stream, &wire::encode_request(command), deadline);
        // A pooler that refuses us closes without reading, and its reason is there to be read even so.
        let received = match sent {
            Ok(()) | Err(LineFault::Closed) => wire::receive_line(&self.stream, wire::ANSWER_SIZE_MAX, deadline),
            Err(fault) => Err(fault),
        };
        let line = received.map_err(|fault| Failure::Line { path: self.path.clone(), fault })?;
        let answer = wire::decode_answer(&line);
        answer.map_err(|fault| Failure::Message { path: self.path.clone(), fault })?.map_err(Failure::Refused)
    }

    /// For a conversation of more than one command.
    pub fn into_stream(self) -> UnixStream {
        self.stream
    }

    /// After `quit`: returns when the process has gone, which the kernel shows by closing the connection.
    pub fn wait_for_exit(mut self, patience: Duration) -> Result<(), Failure> {
        let ended = self.stream.set_read_timeout(Some(patience)).map_err(LineFault::from).and_then(|()| {
            loop {
                match self.stream.read(&mut [0]) {
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(error) => return Err(error.into()),
                    Ok(0) => return Ok(()),
                    // After the answer there is nothing more to say.
                    Ok(_) => return Err(LineFault::TooLong { size_max: 0 }),
                }
            }
        });
        match ended {
            Ok(()) | Err(LineFault::Closed) => Ok(()),
            Err(LineFault::TimedOut) => Err(Failure::StillRunning { path: self.path, waited: patience }),
            Err(fault) => Err(Failure::Line { path: self.path, fault }),
        }
    }
}

impl Failure {
    /// The exit code of `qcp-ctrl`; 2 is for its usage.
    pub fn exit_code(&self) -> u8 {
        match self {
            Failure::Nobody { .. } => 3,
            Failure::Closed { .. }
            | Failure::Refused(_)
            | Failure::Line { .. }
            | Failure::Message { .. }
            | Failure::StillRunning { .. } => 1,
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Failure::Nobody { tried } => {
                let tried: Vec<String> = tried.iter().map(|path| path.display().to_string()).collect();
                write!(f, "no qcp listens at {}", tried.join(" or "))
            }
            Failure::Closed { path, error } if error.kind() == io::ErrorKind::PermissionDenied => {
                write!(f, "{} is not open to you: only to root and to the user who runs qcp", path.display())
            }
            Failure::Closed { path, error } => write!(f, "cannot connect to {}: {error}", path.display()),
            Failure::Refused(reason) => f.write_str(reason),
            Failure::Line { path, fault } => write!(f, "{} is held, but there was no answer: {fault}", path.display()),
            Failure::Message { path, fault } => write!(f, "{}: {fault}", path.display()),
            Failure::StillRunning { path, waited } => {
                write!(f, "qcp at {} has not ended within {} s", path.display(), waited.as_secs())
            }
        }
    }
}

impl std::error::Error for Failure {}

/// No file, or a file that a process left behind.
fn nobody_listens(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused | io::ErrorKind::NotADirectory)
}

/// As `UnixStream::connect`, which waits without end for a place in a full backlog.
fn dial(path: &Path, patience: Duration) -> io::Result<UnixStream> {
    let socket = socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    let milliseconds = i64::try_from(patience.as_millis()).unwrap_or(i64::MAX);
    setsockopt(&socket, sockopt::SendTimeout, &TimeVal::milliseconds(milliseconds))?;
    connect(socket.as_raw_fd(), &UnixAddr::new(path)?)?;
    Ok(UnixStream::from(socket))
}
