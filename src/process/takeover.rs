//! A new process takes the place of a running one, and no client that connects meanwhile is refused or forgotten.
//!
//! ```text
//! new                                                   old
//! takeover (a command on the control socket)  ------->
//!                       <-------  its listening sockets (SCM_RIGHTS), and who it has taken over from
//! starts its shards; they accept nothing yet            goes on as ever
//! hand-over             ------->                        its shards stop to accept; the sockets stay open
//!                       <-------  stopped: what connects now waits in the sockets' queues
//! takes the place of the control socket, accepts
//! accepting             ------->                        closes them, sees its clients off, ends with the last one
//! ```
//!
//! Invariant: each socket is accepted on by exactly one of the two, or for a moment by none, and closed by nobody before the
//! other has it. Whenever the new process goes away before its last word, the old one accepts again as if nothing had been.

use std::ffi::OsString;
use std::fmt;
use std::io;
use std::net::TcpListener;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::sync::PoisonError;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::{Duration, Instant};

use ::log::{error, info, warn};
use serde::{Deserialize, Serialize};

use crate::config::Listen;
use crate::control::client::{Connection, Failure};
use crate::control::command::Command;
use crate::control::report::Upgrading;
use crate::control::socket::Place;
use crate::control::wire::{self, Answer, Deadline, LineFault, MessageFault, Reply};
use crate::io::descriptors;
use crate::shard::doors::Stray;
use crate::shard::mailbox::Mail;

use super::listeners::{Given, by_address};
use super::notify::Tell;
use super::{Desk, metrics};

/// For the new process to start: it may have a large arena to make.
const START_PATIENCE: Duration = Duration::from_secs(60);
/// For what is only to be said.
const WORD_PATIENCE: Duration = Duration::from_secs(10);
/// A word is short; so is an offer, beside its descriptors.
const LINE_SIZE_MAX: usize = 64 * 1024;
/// Cancel requests that wait to be passed on; more are dropped.
const STRAYS_MAX: usize = 64;
/// How often it is looked whether the last client has gone.
const LOOK_PAUSE: Duration = Duration::from_millis(50);

/// What the old process says with its sockets.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
struct Offer {
    pid: u32,
    version: String,
    /// Control sockets of those that it has taken over from itself, and that may still have clients.
    elders: Vec<PathBuf>,
    /// Socket files that it has from systemd, which removes them.
    borrowed: Vec<PathBuf>,
}

/// The rest of what is said; each is a line.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Word {
    /// The new process can accept.
    HandOver,
    /// The old one does not any more; its control socket is here now.
    Stopped { aside: PathBuf },
    /// The new one does.
    Accepting { pid: u32 },
}

/// Why there is no takeover. The old process goes on as before.
#[derive(Debug)]
pub enum Error {
    /// Nobody to take over from, or it does not let us.
    Ask(Failure),
    Line(LineFault),
    Message(MessageFault),
    Refused(String),
    /// The old one said something else than what was to be said.
    Unexpected,
    Io(io::Error),
}

impl std::error::Error for Error {}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("--takeover: ")?;
        match self {
            Error::Ask(Failure::Nobody { tried }) => {
                let tried: Vec<String> = tried.iter().map(|path| path.display().to_string()).collect();
                write!(f, "no qcp listens at {}: start without --takeover", tried.join(" or "))
            }
            Error::Ask(failure) => failure.fmt(f),
            Error::Line(fault) => write!(f, "the running qcp: {fault}"),
            Error::Message(fault) => fault.fmt(f),
            Error::Refused(reason) => write!(f, "the running qcp says: {reason}"),
            Error::Unexpected => f.write_str("the running qcp answers something else than was asked"),
            Error::Io(error) => error.fmt(f),
        }
    }
}

/// What the new process has of the old one.
pub struct Heritage {
    stream: UnixStream,
    /// Where the old one's control socket is, or was.
    pub control: PathBuf,
    pub sockets: Vec<Given>,
    elders: Vec<PathBuf>,
    pub pid: u32,
}

/// Asks the pooler at one of these places for its sockets. It goes on accepting.
pub fn ask(candidates: &[PathBuf]) -> Result<Heritage, Error> {
    let connection = Connection::open(candidates, WORD_PATIENCE, Instant::now).map_err(Error::Ask)?;
    let control = connection.path().to_path_buf();
    let stream = connection.into_stream();
    let deadline = Deadline::after(WORD_PATIENCE, Instant::now);
    wire::send_line(&stream, &wire::encode_request(Command::Takeover), deadline).map_err(Error::Line)?;
    let mut sockets = Vec::new();
    let line = receive(&stream, &mut sockets, WORD_PATIENCE)?;
    let reply = wire::decode_answer(&line).map_err(Error::Message)?.map_err(Error::Refused)?;
    let offer = Offer::deserialize(&reply.value).map_err(|_| Error::Unexpected)?;
    info!("taking over from qcp {}, process {}: {} sockets", offer.version, offer.pid, sockets.len());
    let mut sockets = by_address(sockets);
    for given in &mut sockets {
        given.borrowed = matches!(&given.address, Listen::Unix { path, .. } if offer.borrowed.contains(path));
    }
    Ok(Heritage { stream, control, sockets, elders: offer.elders, pid: offer.pid })
}

impl Heritage {
    /// The socket of the metrics, if they are to be where they were.
    pub fn metrics(&mut self, at: std::net::SocketAddr) -> Option<TcpListener> {
        let is_it = |given: &Given| matches!(given.address, Listen::Tcp(address) if address == at);
        let found = self.sockets.iter().position(is_it)?;
        let socket = self.sockets.swap_remove(found).sockets.pop()?;
        Some(TcpListener::from(socket))
    }

    /// From when this returns on nobody accepts, until this process does. Then [`Promised::keep`] is to be called soon.
    pub fn hand_over(self) -> Result<Promised, Error> {
        say(&self.stream, &Word::HandOver)?;
        let Word::Stopped { aside } = listen(&self.stream, WORD_PATIENCE)? else { return Err(Error::Unexpected) };
        let elders = std::iter::once(aside).chain(self.elders).collect();
        Ok(Promised { stream: self.stream, elders })
    }
}

/// The old process does not accept, and will again if this is dropped.
pub struct Promised {
    stream: UnixStream,
    pub elders: Vec<PathBuf>,
}

impl Promised {
    /// This process accepts.
    pub fn keep(self) {
        // If it is not there to be told, it has gone: its clients have, too.
        if let Err(error) = say(&self.stream, &Word::Accepting { pid: std::process::id() }) {
            warn!("{error}");
        }
    }
}

/// Where shards put cancel requests for clients of the old processes.
pub fn strays() -> (SyncSender<Stray>, Receiver<Stray>) {
    sync_channel(STRAYS_MAX)
}

/// Passes cancel requests on, as long as there is anybody to pass them to.
pub fn pass_on(strays: Receiver<Stray>, mut elders: Vec<PathBuf>) -> io::Result<()> {
    let run = move || {
        while let Ok((process_id, key)) = strays.recv() {
            elders.retain(|elder| {
                let asked = Connection::open(std::slice::from_ref(elder), WORD_PATIENCE, Instant::now);
                let command = Command::Cancel { process_id, key: key.clone() };
                let told = asked.and_then(|mut connection| connection.ask(command, WORD_PATIENCE));
                if let Err(failure) = &told {
                    info!("a cancel request was not passed on: {failure}");
                }
                !matches!(told, Err(Failure::Nobody { .. }))
            });
            if elders.is_empty() {
                return;
            }
        }
    };
    std::thread::Builder::new().name("qcp-strays".to_owned()).spawn(run).map(drop)
}

/// How this process was started, for another to be started like that.
pub(super) struct Program {
    /// By its name at the start: what stands there when it is asked for may be a newer one.
    path: io::Result<PathBuf>,
    arguments: Vec<OsString>,
}

impl Program {
    pub(super) fn of_this_process() -> Program {
        let arguments = std::env::args_os().skip(1).filter(|argument| argument != "--takeover").collect();
        Program { path: std::env::current_exe(), arguments }
    }

    fn start(&self) -> io::Result<Child> {
        let path = self.path.as_ref().map_err(|error| io::Error::new(error.kind(), error.to_string()))?;
        // These name this process, and sockets that the other is handed.
        let unset = ["LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"];
        let mut command = std::process::Command::new(path);
        for name in unset {
            command.env_remove(name);
        }
        command.args(&self.arguments).arg("--takeover").stdin(Stdio::null()).spawn()
    }
}

impl Desk {
    /// Starts what is to take over: as a child of this process, so that whoever watches over that has the other, too.
    pub(super) fn upgrade(&self) -> Answer {
        if self.draining.load(Ordering::Relaxed) || self.in_succession.load(Ordering::Acquire) {
            return Err("it is about to end".to_owned());
        }
        let mut child = self.program.start().map_err(|error| format!("the program cannot be started: {error}"))?;
        let pid = child.id();
        info!("process {pid} is started, to take over");
        let wait = move || match child.wait() {
            Ok(status) if !status.success() => error!("process {pid}, which was to take over, has ended: {status}"),
            Ok(_) | Err(_) => {}
        };
        let waiting = std::thread::Builder::new().name("qcp-upgrade".to_owned()).spawn(wait);
        waiting.map_err(|error| format!("a thread cannot be started: {error}"))?;
        Ok(Upgrading { pid }.reply())
    }

    /// The old process's side: on the control thread, which is not to wait. `place` is that of its control socket.
    pub(super) fn begin_succession(&self, stream: UnixStream, place: &Place) {
        let (desk, place) = (self.clone(), place.clone());
        let run = move || desk.succeed(&stream, &place);
        if let Err(error) = std::thread::Builder::new().name("qcp-takeover".to_owned()).spawn(run) {
            error!("takeover: no thread: {error}");
        }
    }

    fn succeed(&self, stream: &UnixStream, place: &Place) {
        if self.draining.load(Ordering::Relaxed) {
            refuse(stream, "it is about to end");
            return;
        }
        if self.in_succession.swap(true, Ordering::Acquire) {
            refuse(stream, "another process is about to take over");
            return;
        }
        match self.negotiate(stream, place) {
            Ok(pid) => self.see_off(pid),
            Err(error) => {
                warn!("nobody has taken over: {error}");
                self.in_succession.store(false, Ordering::Release);
            }
        }
    }

    /// Up to the moment when the other process accepts; its process id. Error: all is as it was.
    fn negotiate(&self, stream: &UnixStream, place: &Place) -> Result<u32, Error> {
        self.offer(stream)?;
        let Word::HandOver = listen(stream, START_PATIENCE)? else { return Err(Error::Unexpected) };
        let aside = place.make_way().map_err(Error::Io)?;
        let doors = self.listening().ids();
        self.tell(|done| Mail::Close(doors.clone(), done));
        info!("handing over");
        let told = say(stream, &Word::Stopped { aside: aside.clone() }).and_then(|()| listen(stream, WORD_PATIENCE));
        if let Ok(Word::Accepting { pid }) = told {
            place.stay_aside(&aside);
            return Ok(pid);
        }
        place.come_back(&aside);
        self.accept_at(&doors).map_err(Error::Io)?;
        Err(told.err().unwrap_or(Error::Unexpected))
    }

    fn offer(&self, stream: &UnixStream) -> Result<(), Error> {
        let listening = self.listening();
        let of_metrics = self.scraped().as_ref().map(metrics::Scraped::socket).transpose().map_err(Error::Io)?;
        let all = listening.sockets().flat_map(|(_, sockets)| sockets).chain(&of_metrics);
        let sockets: Vec<BorrowedFd<'_>> = all.map(AsFd::as_fd).collect();
        let elders = self.elders.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let version = env!("CARGO_PKG_VERSION").to_owned();
        let offer = Offer { pid: std::process::id(), version, elders, borrowed: listening.borrowed() };
        let answer: Answer = Ok(Reply::new(&offer, String::new()));
        let line = wire::encode_answer(&answer);
        let pieces = sockets.chunks(descriptors::AT_ONCE_MAX);
        let rest = &line[pieces.len()..];
        for (byte, piece) in line.iter().zip(pieces) {
            descriptors::send(stream, *byte, piece).map_err(Error::Io)?;
        }
        wire::send_line(stream, rest, Deadline::after(WORD_PATIENCE, Instant::now)).map_err(Error::Line)
    }

    /// Clients are another process's now. Those that are here are served until they go, and this process with the last one.
    fn see_off(&self, successor: u32) {
        self.draining.store(true, Ordering::Relaxed);
        self.listening().give_away();
        if let Some(scraped) = self.scraped().take() {
            scraped.stop();
        }
        let within = self.config().shutdown_timeout;
        info!("process {successor} has taken over; {} clients are left to be served here", self.population.count());
        Tell::Successor(successor).say();
        self.succeeded.store(true, Ordering::Relaxed);
        for address in &self.addresses {
            address.send(Mail::SeeOff(within));
        }
        while self.population.count() > 0 {
            std::thread::sleep(LOOK_PAUSE);
        }
        self.quit(true);
    }
}

fn refuse(stream: &UnixStream, reason: &str) {
    let answer: Answer = Err(reason.to_owned());
    // Who has gone need not be told.
    let _ = wire::send_line(stream, &wire::encode_answer(&answer), Deadline::after(WORD_PATIENCE, Instant::now));
}

fn say(stream: &UnixStream, word: &Word) -> Result<(), Error> {
    let mut line = serde_json::to_vec(word).expect("a word is plain data");
    line.push(b'\n');
    wire::send_line(stream, &line, Deadline::after(WORD_PATIENCE, Instant::now)).map_err(Error::Line)
}

fn listen(stream: &UnixStream, patience: Duration) -> Result<Word, Error> {
    let line =
        wire::receive_line(stream, LINE_SIZE_MAX, Deadline::after(patience, Instant::now)).map_err(Error::Line)?;
    serde_json::from_slice(&line).map_err(|_| Error::Unexpected)
}

/// A line, and the descriptors that came with it.
fn receive(stream: &UnixStream, sockets: &mut Vec<OwnedFd>, patience: Duration) -> Result<Vec<u8>, Error> {
    let deadline = Deadline::after(patience, Instant::now);
    let (mut line, mut piece) = (Vec::new(), [0; 4096]);
    loop {
        let left = deadline.left().map_err(Error::Line)?;
        stream.set_read_timeout(Some(left)).map_err(Error::Io)?;
        let count = descriptors::receive(stream, &mut piece, sockets).map_err(Error::Io)?;
        line.extend_from_slice(&piece[..count]);
        if count == 0 {
            return Err(Error::Line(LineFault::Closed));
        }
        if line.len() > LINE_SIZE_MAX {
            return Err(Error::Line(LineFault::TooLong { size_max: LINE_SIZE_MAX }));
        }
        if line.last() == Some(&b'\n') {
            line.pop();
            return Ok(line);
        }
    }
}
