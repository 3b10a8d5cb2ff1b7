//! The answering end of the control socket, in the process of the pooler.
//!
//! A plain thread serves one connection at a time, and each only so long: a peer that is silent delays the next one by
//! `PATIENCE` at most. The file is for its owner only from the moment that it exists, at any time at most one process
//! holds it, and it is gone when the process ends; what a killed process left behind is told apart from what a living
//! one holds by asking it.

use std::fmt;
use std::fs::{self, DirBuilder, File, Metadata, Permissions, TryLockError};
use std::io::{self, Read};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use nix::sys::socket::{Shutdown, UnixAddr, getsockopt, shutdown, sockopt};
use nix::unistd::geteuid;

use super::client::{Connection, Failure};
use super::command::Command;
use super::wire::{self, Answer, Clock, Deadline, LineFault};

/// Does a command. It runs on the control thread, and must come to an end by itself.
pub type Handler = Box<dyn Fn(Command) -> Answer + Send>;

/// Goes on with the connection of a pooler that wants to take over, on a thread of its own.
pub type Succession = Box<dyn Fn(UnixStream) + Send>;

/// For a request to arrive, and again for its answer to be taken.
const PATIENCE: Duration = Duration::from_secs(2);
/// Clients of `quit` that wait for the end.
const MOURNERS_MAX: usize = 64;
/// Another pooler that starts at the same place is through with its socket by then.
const LOCK_ATTEMPTS_MAX: u32 = 50;
const LOCK_PAUSE: Duration = Duration::from_millis(100);
/// Until a process that is out of descriptors may have some again.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The socket is ours, and who connects waits in its backlog until [`Bound::serve`].
pub struct Bound {
    listener: UnixListener,
    file: Place,
    clock: Clock,
}

/// Where the socket is found, which changes when another process takes over.
#[derive(Clone)]
pub struct Place(Arc<Mutex<SocketFile>>);

/// The running thread.
pub struct Server {
    /// Another descriptor of the thread's listener, to shut it down by.
    listener: UnixListener,
    thread: JoinHandle<Vec<UnixStream>>,
    file: Place,
}

/// Connections of `quit` that close when the process ends. Whoever holds this leaves it to the kernel, by
/// `process::exit` or [`Farewell::until_exit`], so that they do not close a moment too early.
#[must_use = "dropped before the end, it tells the clients of quit that the process has gone"]
pub struct Farewell {
    mourners: Vec<UnixStream>,
}

/// Why there is no control socket.
#[derive(Debug)]
pub enum BindFault {
    /// A living pooler has it.
    HeldByQcp {
        path: PathBuf,
        pid: Option<u32>,
    },
    /// Something listens there that does not answer as a pooler does, unless it is one that still starts.
    HeldByStranger {
        path: PathBuf,
        pid: Option<u32>,
    },
    NotASocket {
        path: PathBuf,
    },
    /// Another process has kept the lock of the directory for too long.
    Locked {
        directory: PathBuf,
    },
    Io {
        path: PathBuf,
        act: &'static str,
        error: io::Error,
    },
}

/// Removes the file when dropped, unless another process has put its own there since.
struct SocketFile {
    path: PathBuf,
    device: u64,
    inode: u64,
}

impl Bound {
    /// Takes the first of the places that this user may write to. A place that is held ends the search: a second
    /// pooler that went on to the next would be out of reach of `qcp-ctrl`, which asks the first.
    pub fn bind(candidates: &[PathBuf], clock: Clock) -> Result<Bound, BindFault> {
        let (last, others) = candidates.split_last().expect("there is always a default place");
        for path in others {
            match bind_at(path, Holder::Keeps, clock) {
                Err(BindFault::Io { error, .. }) if not_ours_to_write(&error) => {}
                result => return result,
            }
        }
        bind_at(last, Holder::Keeps, clock)
    }

    /// Takes the place of the pooler that holds it, and that has agreed to that.
    pub fn replace(path: &Path, clock: Clock) -> Result<Bound, BindFault> {
        bind_at(path, Holder::MakesWay, clock)
    }

    pub fn path(&self) -> PathBuf {
        self.file.path()
    }

    pub fn place(&self) -> Place {
        self.file.clone()
    }

    /// Starts the thread. Signals that it shall not take must be blocked before.
    pub fn serve(self, handler: Handler, succession: Succession) -> io::Result<Server> {
        let Bound { listener, file, clock } = self;
        let accepting = listener.try_clone()?;
        let owner_uid = geteuid().as_raw();
        let thread = thread::Builder::new()
            .name("qcp-control".to_string())
            .spawn(move || accept_until_shutdown(&accepting, (owner_uid, clock), &handler, &succession))?;
        Ok(Server { listener, thread, file })
    }
}

impl Server {
    pub fn path(&self) -> PathBuf {
        self.file.path()
    }

    /// Lets the conversation that goes on come to its end, takes no other, and removes the file.
    pub fn close(self) -> Farewell {
        // Wakes the thread out of accept with EINVAL. Nothing else can be wrong with a socket that we hold.
        shutdown(self.listener.as_raw_fd(), Shutdown::Both).expect("a listening socket can be shut down");
        let mourners = self.thread.join().unwrap_or_else(|_| {
            log::error!("control: the thread of {} had died", self.file.path().display());
            Vec::new()
        });
        Farewell { mourners }
    }
}

impl Farewell {
    /// Nothing of the process may be left to do but to exit.
    pub fn until_exit(self) {
        std::mem::forget(self.mourners);
    }
}

impl Place {
    pub fn path(&self) -> PathBuf {
        self.lock().path.clone()
    }

    /// Gives the socket a second name, with this process's number behind it, so that the first can be another's.
    pub fn make_way(&self) -> io::Result<PathBuf> {
        let path = self.path();
        let mut aside = path.clone().into_os_string();
        aside.push(format!(".{}", std::process::id()));
        let aside = PathBuf::from(aside);
        // Nobody could connect to a name that is too long.
        UnixAddr::new(&aside)?;
        match fs::hard_link(&path, &aside) {
            // Left of an attempt that came to nothing, or of a process of the same number.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                fs::remove_file(&aside)?;
                fs::hard_link(&path, &aside)?;
            }
            made => made?,
        }
        Ok(aside)
    }

    /// From now on the second name is the socket's only one.
    pub fn stay_aside(&self, aside: &Path) {
        self.lock().path = aside.to_path_buf();
    }

    /// Nobody has come: the first name is this socket's again, whatever stands there now.
    pub fn come_back(&self, aside: &Path) {
        let path = self.path();
        // Where both are still the same file this does nothing, and the second name is left.
        let back = fs::rename(aside, &path);
        let _ = fs::remove_file(aside);
        if let Err(error) = back {
            log::error!("control: {} cannot be had again: {error}", path.display());
        }
    }

    fn lock(&self) -> MutexGuard<'_, SocketFile> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        let ours = |found: &Metadata| found.dev() == self.device && found.ino() == self.inode;
        if fs::symlink_metadata(&self.path).is_ok_and(|found| ours(&found)) {
            // It may be gone between the two calls, and a file that stays is recognised as stale at the next start.
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// The living process that may have the place.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Holder {
    Keeps,
    MakesWay,
}

fn bind_at(path: &Path, holder: Holder, clock: Clock) -> Result<Bound, BindFault> {
    let fails = |act| move |error| BindFault::Io { path: path.to_path_buf(), act, error };
    let directory = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    // Not only for the owner: the sockets that clients connect to may be in the same directory.
    DirBuilder::new().recursive(true).mode(0o755).create(directory).map_err(fails("make the directory of"))?;

    // Two poolers that start at once must not both find the place free. The lock ends with this function.
    let _lock = lock(directory)?;
    // Born where nobody else can reach it, the file has its mode before it has its name; a umask would be in force for
    // all threads. Connections find the socket by its inode, so that it may move.
    let cradle = directory.join(".qcp-control");
    make_cradle(&cradle).map_err(fails("prepare"))?;
    let free = if holder == Holder::Keeps { take_over(path, clock) } else { Ok(()) };
    let made = free.and_then(|()| {
        let newborn = cradle.join("s");
        let listener = UnixListener::bind(&newborn).map_err(fails("bind"))?;
        fs::set_permissions(&newborn, Permissions::from_mode(0o600)).map_err(fails("protect"))?;
        let found = fs::symlink_metadata(&newborn).map_err(fails("find"))?;
        fs::rename(&newborn, path).map_err(fails("name"))?;
        let file = SocketFile { path: path.to_path_buf(), device: found.dev(), inode: found.ino() };
        Ok(Bound { listener, file: Place(Arc::new(Mutex::new(file))), clock })
    });
    if let Err(error) = fs::remove_dir_all(&cradle) {
        log::warn!("control: cannot remove {}: {error}", cradle.display());
    }
    made
}

fn lock(directory: &Path) -> Result<File, BindFault> {
    let fails = |error| BindFault::Io { path: directory.to_path_buf(), act: "lock", error };
    let file = File::open(directory).map_err(fails)?;
    for _ in 0..LOCK_ATTEMPTS_MAX {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::WouldBlock) => thread::sleep(LOCK_PAUSE),
            Err(TryLockError::Error(error)) => return Err(fails(error)),
        }
    }
    Err(BindFault::Locked { directory: directory.to_path_buf() })
}

fn make_cradle(cradle: &Path) -> io::Result<()> {
    let private = || DirBuilder::new().mode(0o700).create(cradle);
    match private() {
        // Under the lock it can only be left of a process that was killed.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            fs::remove_dir_all(cradle)?;
            private()
        }
        result => result,
    }
}

/// Makes sure that no living process has the place. A stale file may stay, to be replaced.
fn take_over(path: &Path, clock: Clock) -> Result<(), BindFault> {
    let fails = |error| BindFault::Io { path: path.to_path_buf(), act: "look at", error };
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(fails(error)),
        Ok(found) if !found.file_type().is_socket() => {
            return Err(BindFault::NotASocket { path: path.to_path_buf() });
        }
        Ok(_) => {}
    }
    let mut holder = match Connection::open(&[path.to_path_buf()], PATIENCE, clock) {
        Ok(holder) => holder,
        Err(Failure::Nobody { .. }) => {
            log::warn!("control: replacing {}, which a process left behind that did not end by itself", path.display());
            return Ok(());
        }
        // A backlog that stays full: somebody is there, and does not accept.
        Err(Failure::Closed { error, .. }) if error.kind() == io::ErrorKind::WouldBlock => {
            return Err(BindFault::HeldByStranger { path: path.to_path_buf(), pid: None });
        }
        Err(Failure::Closed { error, .. }) => return Err(fails(error)),
        Err(other) => return Err(fails(io::Error::other(other))),
    };
    let pid = holder.peer_pid();
    match holder.ask(Command::Status, PATIENCE) {
        Ok(_) | Err(Failure::Refused(_)) => Err(BindFault::HeldByQcp { path: path.to_path_buf(), pid }),
        Err(_) => Err(BindFault::HeldByStranger { path: path.to_path_buf(), pid }),
    }
}

fn not_ours_to_write(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem)
}

fn accept_until_shutdown(
    listener: &UnixListener,
    (owner_uid, clock): (u32, Clock),
    handler: &Handler,
    succession: &Succession,
) -> Vec<UnixStream> {
    let mut mourners = Vec::new();
    loop {
        let stream = match listener.accept() {
            Ok((stream, _)) => stream,
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => return mourners,
            Err(error) => {
                log::warn!("control: cannot accept: {error}");
                thread::sleep(ACCEPT_PAUSE);
                continue;
            }
        };
        let peer_uid = match getsockopt(&stream, sockopt::PeerCredentials) {
            Ok(peer) => peer.uid(),
            Err(error) => {
                log::warn!("control: who connects is not known: {error}");
                continue;
            }
        };
        mourners.retain(still_there);
        let room = mourners.len() < MOURNERS_MAX;
        match converse(&stream, Peer { uid: peer_uid, owner_uid, may_wait_for_exit: room, clock }, handler) {
            Ok(Some(Command::Quit { .. })) if stream.set_nonblocking(true).is_ok() => mourners.push(stream),
            Ok(Some(Command::Takeover)) => succession(stream),
            Ok(_) => {}
            Err(fault) => log::debug!("control: a conversation broke off: {fault}"),
        }
    }
}

struct Peer {
    uid: u32,
    owner_uid: u32,
    may_wait_for_exit: bool,
    clock: Clock,
}

/// One request and its answer. Returns the command if it was done.
fn converse(stream: &UnixStream, peer: Peer, handler: &Handler) -> Result<Option<Command>, LineFault> {
    let clock = peer.clock;
    let (command, answer) = match receive_command(stream, &peer) {
        // The answer is all that follows.
        Ok(Command::Takeover) => return Ok(Some(Command::Takeover)),
        Ok(command) => (Some(command.clone()), handle(command, handler)),
        Err(reason) => {
            log::warn!("control: refused uid {}: {reason}", peer.uid);
            (None, Err(reason))
        }
    };
    wire::send_line(stream, &wire::encode_answer(&answer), Deadline::after(PATIENCE, clock))?;
    Ok(command.filter(|_| answer.is_ok()))
}

fn receive_command(stream: &UnixStream, peer: &Peer) -> Result<Command, String> {
    if !admitted(peer) {
        let Peer { uid, owner_uid, .. } = peer;
        return Err(format!("uid {uid} may not control this qcp, only root and uid {owner_uid}, which runs it"));
    }
    let line = wire::receive_line(stream, wire::REQUEST_SIZE_MAX, Deadline::after(PATIENCE, peer.clock))
        .map_err(|fault| fault.to_string())?;
    let command = wire::decode_request(&line).map_err(|fault| fault.to_string())?;
    match command {
        Command::Quit { .. } if !peer.may_wait_for_exit => {
            Err(format!("{MOURNERS_MAX} others have asked to quit and wait for the end"))
        }
        Command::Quit { .. }
        | Command::Status
        | Command::Top
        | Command::Reopen
        | Command::Show(_)
        | Command::Reload { .. }
        | Command::Order(..)
        | Command::Get(_)
        | Command::Set { .. }
        | Command::CheckLogin { .. }
        | Command::Upgrade
        | Command::Takeover
        | Command::Cancel { .. } => Ok(command),
    }
}

fn admitted(peer: &Peer) -> bool {
    peer.uid == 0 || peer.uid == peer.owner_uid
}

/// A defect behind one command must not take the others away, `quit` least of all.
fn handle(command: Command, handler: &Handler) -> Answer {
    let name = command.to_string();
    catch_unwind(AssertUnwindSafe(|| handler(command))).unwrap_or_else(|_| {
        log::error!("control: a panic in {name}");
        Err(format!("{name} met a defect of qcp, see its log"))
    })
}

fn still_there(mut mourner: &UnixStream) -> bool {
    matches!(mourner.read(&mut [0]), Err(error) if error.kind() == io::ErrorKind::WouldBlock)
}

impl fmt::Display for BindFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let process =
            |pid: &Option<u32>| pid.map_or("a process not seen from here".to_string(), |pid| format!("process {pid}"));
        match self {
            BindFault::HeldByQcp { path, pid } => write!(
                f,
                "{} is held by qcp, {}: stop it with qcp-ctrl quit, or configure another control.socket",
                path.display(),
                process(pid)
            ),
            BindFault::HeldByStranger { path, pid } => write!(
                f,
                "{} is held by {}, which does not answer as a running qcp does: end it, or configure another control.socket",
                path.display(),
                process(pid)
            ),
            BindFault::NotASocket { path } => {
                write!(f, "{} is there and is not a socket: configure another control.socket", path.display())
            }
            BindFault::Locked { directory } => {
                write!(f, "{} stays locked by another process that starts there", directory.display())
            }
            BindFault::Io { path, act, error } => write!(f, "cannot {act} {}: {error}", path.display()),
        }
    }
}

impl std::error::Error for BindFault {}

#[cfg(test)]
mod tests;
