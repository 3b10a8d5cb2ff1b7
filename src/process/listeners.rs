//! The sockets on which clients are accepted. The process keeps them, and shards get duplicates: so one can be handed to
//! another process, and an address can come and go while qcp runs.
//!
//! Each shard has a socket of its own for each TCP address (SO_REUSEPORT: the kernel spreads the clients), and a
//! descriptor of the one socket of each Unix socket file. They are made by hand because the libraries' listeners leave
//! out SO_REUSEADDR or CLOEXEC and have small backlogs. Where there are more sockets than shards (another process with more
//! cores has made them), a shard has several: none may be left without a shard, since the kernel goes on filling its queue.
//! Where there are fewer, shards share.

use std::fmt;
use std::fs;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::sys::socket::sockopt::{Ipv6V6Only, KeepAlive, ReuseAddr, ReusePort, TcpNoDelay};
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, SockaddrStorage, UnixAddr, bind, getsockname, getsockopt, listen,
    setsockopt, socket, sockopt,
};

use crate::config::{Listen, Tcp};
use crate::ids::DoorId;
use crate::io::ring::Ring;
use crate::shard::mailbox::Listener;

/// The addresses that clients come by.
#[derive(Debug)]
pub struct Listening {
    doors: Vec<Door>,
    shards: usize,
    tcp: Tcp,
    /// Of addresses that another process had and this one has not: removed when the other has gone from there.
    unused: Vec<SocketFile>,
    /// That of the next one.
    number: u32,
}

/// One address.
#[derive(Debug)]
pub struct Door {
    id: DoorId,
    /// Whether a client came over TCP or not is for `auth` to know.
    address: Listen,
    sockets: Vec<OwnedFd>,
    file: Option<SocketFile>,
}

/// What is to be changed: it listens already, and nobody accepts there yet.
pub struct Plan {
    come: Vec<Door>,
    go: Vec<DoorId>,
}

/// A Unix socket's name in the file system; removed when dropped, unless another has taken the name since.
#[derive(Debug)]
pub struct SocketFile {
    path: PathBuf,
    device: u64,
    inode: u64,
    /// Not yet, or not any more: another process listens there.
    ours: bool,
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        let is_ours = |found: fs::Metadata| (found.dev(), found.ino()) == (self.device, self.inode);
        if self.ours && fs::symlink_metadata(&self.path).is_ok_and(is_ours) {
            // Nobody is left to be told; a file that stays is recognised as stale by the next start.
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Why an address cannot be listened on.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Error {
    pub address: Listen,
    pub cause: Cause,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Cause {
    InUse,
    /// No interface has it.
    NotOurs,
    /// A port below 1024.
    Privileged,
    /// In the place of the socket file is something that is no socket.
    NotASocket,
    /// Of the file system, for a socket file.
    Denied,
    NoDirectory,
    Other(Errno),
}

impl std::error::Error for Error {}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Error { address, cause } = self;
        match cause {
            Cause::InUse => write!(f, "{address} is in use by another process"),
            Cause::NotOurs => write!(f, "{address} is not an address of this machine"),
            Cause::Privileged => {
                write!(
                    f,
                    "{address}: ports below 1024 need root or CAP_NET_BIND_SERVICE (systemd: AmbientCapabilities)"
                )
            }
            Cause::NotASocket => write!(f, "{address} is there and is not a socket; it is left alone"),
            Cause::Denied => write!(f, "{address}: the directory may not be written by this user"),
            Cause::NoDirectory => write!(f, "{address}: the directory does not exist"),
            Cause::Other(errno) => write!(f, "{address}: {errno}"),
        }
    }
}

impl Listening {
    /// Either all addresses for all shards, or none. `given`: sockets that somebody else has opened and that listen, which
    /// are taken where an address is theirs.
    pub fn open(addresses: &[Listen], shards: usize, tcp: Tcp, given: Vec<Given>) -> Result<Listening, Error> {
        let mut listening = Listening { doors: Vec::new(), shards, tcp, unused: Vec::new(), number: 0 };
        let plan = listening.plan(addresses, given)?;
        listening.carry_out(plan);
        Ok(listening)
    }

    /// What it takes to listen on these addresses and no others. Whatever stands in the way does so now.
    pub fn plan(&mut self, addresses: &[Listen], mut given: Vec<Given>) -> Result<Plan, Error> {
        let mut plan = Plan { come: Vec::new(), go: Vec::new() };
        for door in &self.doors {
            if !addresses.contains(&door.address) {
                plan.go.push(door.id);
            }
        }
        for address in addresses {
            if self.doors.iter().chain(&plan.come).any(|door| door.address == *address) {
                continue;
            }
            let (sockets, file) = match given.iter().position(|given| given.address == *address) {
                Some(at) => {
                    let given = given.swap_remove(at);
                    let file = given.file();
                    (given.sockets, file)
                }
                None => self.make(address)?,
            };
            let door = Door { id: DoorId(self.number), address: address.clone(), sockets, file };
            self.number += 1;
            plan.come.push(door);
        }
        // Not before all of them can be had: a listening socket that is closed resets who has connected to it.
        for door in &plan.come {
            door.listen(self.tcp)?;
        }
        for given in given {
            log::warn!("{} is not in listening_address (any more), and is closed", given.address);
            self.unused.extend(given.file());
        }
        Ok(plan)
    }

    /// What comes, for [`Self::of_shard`], and what goes, to be closed by the shards before [`Self::forget`].
    pub fn carry_out(&mut self, plan: Plan) -> (Vec<DoorId>, Vec<DoorId>) {
        let come = plan.come.iter().map(|door| door.id).collect();
        self.doors.extend(plan.come);
        (come, plan.go)
    }

    /// Closes what no shard accepts on any more.
    pub fn forget(&mut self, doors: &[DoorId]) {
        self.doors.retain(|door| !doors.contains(&door.id));
    }

    /// What a shard accepts on. None may be left out: over all shards these are all sockets.
    pub fn of_shard(&self, shard: usize, doors: &[DoorId]) -> io::Result<Vec<Listener>> {
        let mut listeners = Vec::new();
        for door in self.doors.iter().filter(|door| doors.contains(&door.id)) {
            let local = matches!(door.address, Listen::Unix { .. });
            let count = door.sockets.len();
            let own = (0..count)
                .filter(|at| if count < self.shards { shard % count == *at } else { at % self.shards == shard });
            for at in own {
                listeners.push(Listener { socket: door.sockets[at].try_clone()?, local, door: door.id });
            }
        }
        Ok(listeners)
    }

    pub fn ids(&self) -> Vec<DoorId> {
        self.doors.iter().map(|door| door.id).collect()
    }

    pub fn addresses(&self) -> impl Iterator<Item = &Listen> {
        self.doors.iter().map(|door| &door.address)
    }

    /// Accepts no more, once the shards have stopped too. Names of socket files stay until the end, as before.
    pub fn close(&mut self) {
        for door in &mut self.doors {
            door.sockets.clear();
        }
    }

    /// At the end: the names of socket files go too.
    pub fn end(&mut self) {
        self.doors.clear();
    }

    /// Another process has all of it now: the names of socket files are its to remove.
    pub fn give_away(&mut self) {
        self.unused.clear();
        for door in self.doors.drain(..) {
            if let Some(file) = door.file {
                file.leave();
            }
        }
    }

    /// The process that had it before has gone from there: names of socket files are this one's to remove, and those of
    /// addresses that it has not are removed at once.
    pub fn settle(&mut self) {
        for file in self.doors.iter_mut().filter_map(|door| door.file.as_mut()).chain(&mut self.unused) {
            file.ours = true;
        }
        self.unused.clear();
    }

    /// Socket files that are not for this process to remove.
    pub fn borrowed(&self) -> Vec<PathBuf> {
        let path = |door: &Door| match &door.address {
            Listen::Unix { path, .. } if door.file.is_none() => Some(path.clone()),
            Listen::Unix { .. } | Listen::Tcp(_) => None,
        };
        self.doors.iter().filter_map(path).collect()
    }

    /// Each address with its sockets, for another process.
    pub fn sockets(&self) -> impl Iterator<Item = (&Listen, &[OwnedFd])> {
        self.doors.iter().map(|door| (&door.address, door.sockets.as_slice()))
    }

    /// Where a TCP address has fewer sockets than there are shards, makes more, so that the kernel spreads the clients. What
    /// is made gets clients at once. Where it cannot be, shards share, which works as well.
    pub fn widen(&mut self) {
        for door in &mut self.doors {
            let Listen::Tcp(address) = door.address else { continue };
            while door.sockets.len() < self.shards {
                let Ok(socket) = bind_tcp(address, Sharing::WithShards) else { break };
                if door.listen_on(&socket, self.tcp).is_err() {
                    break;
                }
                door.sockets.push(socket);
            }
            // Those that were there before are told how it is here, as far as they can be.
            let _ = door.listen(self.tcp);
        }
    }

    /// Bound, and not listening yet.
    fn make(&self, address: &Listen) -> Result<(Vec<OwnedFd>, Option<SocketFile>), Error> {
        match address {
            Listen::Tcp(tcp) => {
                let refused = |errno| refused_tcp(*tcp, errno);
                // SO_REUSEPORT lets a second instance in without a word, and it would take half of the clients. So each
                // address is tried once without it, unless it is ourselves who are in the way (0.0.0.0 and 127.0.0.1).
                // What is only bound refuses whoever connects, and keeps nobody.
                let ours =
                    self.doors.iter().any(|door| matches!(door.address, Listen::Tcp(own) if own.port() == tcp.port()));
                if !ours {
                    bind_tcp(*tcp, Sharing::Alone).map_err(refused)?;
                }
                let sockets = (0..self.shards).map(|_| bind_tcp(*tcp, Sharing::WithShards).map_err(refused));
                Ok((sockets.collect::<Result<_, _>>()?, None))
            }
            Listen::Unix { path, .. } => {
                let (socket, file) = bind_unix(path).map_err(|cause| Error { address: address.clone(), cause })?;
                Ok((vec![socket], Some(file)))
            }
        }
    }
}

impl Door {
    /// Clients can connect from here on. What listens already is told anew how many may wait to be accepted.
    fn listen(&self, tcp: Tcp) -> Result<(), Error> {
        self.sockets.iter().try_for_each(|socket| self.listen_on(socket, tcp))
    }

    fn listen_on(&self, socket: &OwnedFd, tcp: Tcp) -> Result<(), Error> {
        let cause = |errno| match errno {
            // Another one was faster.
            Errno::EADDRINUSE => Cause::InUse,
            other => Cause::Other(other),
        };
        let refused = |errno| Error { address: self.address.clone(), cause: cause(errno) };
        if let Listen::Tcp(_) = self.address {
            // What is accepted inherits how TCP notices that a peer is gone.
            Ring::tune(socket, (tcp.keepalive, tcp.user_timeout)).map_err(refused)?;
        }
        // Where the C library was built for a smaller number, the largest that the kernel takes.
        let backlog = Backlog::new(i32::try_from(tcp.backlog).unwrap_or(i32::MAX)).unwrap_or(Backlog::MAXALLOWABLE);
        listen(socket, backlog).map_err(refused)
    }
}

/// Sockets of an address that somebody else has opened.
#[derive(Debug)]
pub struct Given {
    pub address: Listen,
    pub sockets: Vec<OwnedFd>,
    /// Whoever opened it removes the name of its socket file.
    pub borrowed: bool,
}

impl Given {
    fn file(&self) -> Option<SocketFile> {
        match &self.address {
            Listen::Unix { path, .. } if !self.borrowed => {
                let mut file = SocketFile::of(path).ok()?;
                file.ours = false;
                Some(file)
            }
            Listen::Unix { .. } | Listen::Tcp(_) => None,
        }
    }
}

/// Sorts sockets by the addresses that they listen on, as far as clients can come there.
pub fn by_address(sockets: Vec<OwnedFd>) -> Vec<Given> {
    let mut given: Vec<Given> = Vec::new();
    for socket in sockets {
        let listens = getsockopt(&socket, sockopt::AcceptConn) == Ok(true);
        let Some(address) = address_of(&socket).filter(|_| listens) else {
            log::warn!("a socket that qcp was given is of no use: it does not listen, or not on TCP or a file");
            continue;
        };
        match given.iter_mut().find(|given| given.address == address) {
            Some(given) => given.sockets.push(socket),
            None => given.push(Given { address, sockets: vec![socket], borrowed: false }),
        }
    }
    given
}

fn address_of(socket: &OwnedFd) -> Option<Listen> {
    let bound = getsockname::<SockaddrStorage>(socket.as_raw_fd()).ok()?;
    if let Some(v4) = bound.as_sockaddr_in() {
        return Some(Listen::Tcp(SocketAddr::from((v4.ip(), v4.port()))));
    }
    if let Some(v6) = bound.as_sockaddr_in6() {
        return Some(Listen::Tcp(SocketAddr::from((v6.ip(), v6.port()))));
    }
    let path = bound.as_unix_addr()?.path()?.to_owned();
    Some(Listen::Unix { directory: path.parent()?.to_owned(), path })
}

impl SocketFile {
    fn of(path: &Path) -> io::Result<SocketFile> {
        let found = fs::symlink_metadata(path)?;
        Ok(SocketFile { path: path.to_owned(), device: found.dev(), inode: found.ino(), ours: true })
    }

    /// The name is somebody else's to remove.
    fn leave(mut self) {
        self.ours = false;
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Sharing {
    Alone,
    WithShards,
}

fn bind_tcp(address: SocketAddr, sharing: Sharing) -> nix::Result<OwnedFd> {
    let family = match address {
        SocketAddr::V4(_) => AddressFamily::Inet,
        SocketAddr::V6(_) => AddressFamily::Inet6,
    };
    let stream = socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    // A restart does not wait for the connections of the run before to time out.
    setsockopt(&stream, ReuseAddr, &true)?;
    if address.is_ipv6() {
        // As PostgreSQL does: 0.0.0.0 and [::] can stand side by side on every system.
        setsockopt(&stream, Ipv6V6Only, &true)?;
    }
    // What is accepted inherits these two.
    setsockopt(&stream, TcpNoDelay, &true)?;
    setsockopt(&stream, KeepAlive, &true)?;
    Ring::defer_accept(&stream)?;
    if sharing == Sharing::WithShards {
        setsockopt(&stream, ReusePort, &true)?;
    }
    bind(stream.as_raw_fd(), &SockaddrStorage::from(address))?;
    Ok(stream)
}

fn refused_tcp(address: SocketAddr, errno: Errno) -> Error {
    let cause = match errno {
        Errno::EADDRINUSE => Cause::InUse,
        Errno::EADDRNOTAVAIL => Cause::NotOurs,
        Errno::EACCES => Cause::Privileged,
        other => Cause::Other(other),
    };
    Error { address: Listen::Tcp(address), cause }
}

fn bind_unix(path: &Path) -> Result<(OwnedFd, SocketFile), Cause> {
    remove_stale(path)?;
    let stream = socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).map_err(Cause::Other)?;
    let address = UnixAddr::new(path).map_err(Cause::Other)?;
    bind(stream.as_raw_fd(), &address).map_err(file_cause)?;
    let socket_file = SocketFile::of(path).map_err(|error| file_cause(errno(&error)))?;
    // Any user may connect, as with PostgreSQL; who may log in is for `auth`, or for the directory.
    fs::set_permissions(path, fs::Permissions::from_mode(0o777)).map_err(|error| file_cause(errno(&error)))?;
    Ok((stream, socket_file))
}

/// A socket file outlives a process that was killed. It is stale if nobody accepts behind it.
fn remove_stale(path: &Path) -> Result<(), Cause> {
    let found = match fs::symlink_metadata(path) {
        Ok(found) => found,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(file_cause(errno(&error))),
    };
    if !found.file_type().is_socket() {
        return Err(Cause::NotASocket);
    }
    match UnixStream::connect(path) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            fs::remove_file(path).map_err(|error| file_cause(errno(&error)))
        }
        // It answers, or will not let this user ask: in both cases it is somebody's.
        Ok(_) | Err(_) => Err(Cause::InUse),
    }
}

fn file_cause(errno: Errno) -> Cause {
    match errno {
        Errno::EADDRINUSE => Cause::InUse,
        Errno::EACCES | Errno::EPERM | Errno::EROFS => Cause::Denied,
        Errno::ENOENT | Errno::ENOTDIR => Cause::NoDirectory,
        other => Cause::Other(other),
    }
}

fn errno(error: &io::Error) -> Errno {
    Errno::from_raw(error.raw_os_error().unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};
    use std::os::unix::net::UnixListener;
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
    use std::thread;
    use std::time::Duration;

    const TCP: Tcp = Tcp { keepalive: Duration::ZERO, user_timeout: Duration::ZERO, backlog: 128 };

    fn open(addresses: &[Listen], shards: usize) -> Result<Listening, Error> {
        Listening::open(addresses, shards, TCP, Vec::new())
    }

    /// How many sockets each shard accepts on.
    fn spread(listening: &Listening) -> Vec<usize> {
        let ids = listening.ids();
        (0..listening.shards).map(|shard| listening.of_shard(shard, &ids).unwrap().len()).collect()
    }

    fn free_port() -> SocketAddr {
        TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
    }

    /// A directory of this test alone.
    fn unix_listen(test: &str) -> (PathBuf, Listen) {
        let directory = std::env::temp_dir().join(format!("qcp-{test}-{}", std::process::id()));
        fs::create_dir_all(&directory).unwrap();
        let path = directory.join(".s.PGSQL.8080");
        (path.clone(), Listen::Unix { directory, path })
    }

    #[test]
    fn each_shard_has_a_socket_of_its_own() {
        let address = free_port();
        let listeners = open(&[Listen::Tcp(address)], 3).unwrap();
        assert_eq!(spread(&listeners), [1, 1, 1]);
        TcpStream::connect(address).unwrap();
    }

    /// Who tries while it opens is refused, or kept until it is accepted; nobody is let in and then reset.
    #[test]
    fn nobody_is_reset_while_an_address_is_opened() {
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let taken = Listen::Tcp(taken.local_addr().unwrap());
        let mut kept = 0;
        for _ in 0..100 {
            let address = free_port();
            let (tries, done) = (AtomicUsize::new(0), AtomicBool::new(false));
            let tried = || {
                let mut clients = Vec::new();
                while !done.load(Ordering::SeqCst) && clients.len() < 100 {
                    if let Ok(mut client) = TcpStream::connect(address) {
                        // A client that says nothing is not with the listener yet.
                        let _ = client.write_all(b"hello");
                        clients.push(client);
                    }
                    tries.fetch_add(1, Ordering::SeqCst);
                }
                clients
            };
            thread::scope(|scope| {
                let client = scope.spawn(tried);
                while tries.load(Ordering::SeqCst) == 0 {
                    thread::yield_now();
                }
                // The second address cannot be had, so the first is not opened.
                let refused = open(&[Listen::Tcp(address), taken.clone()], 2);
                let opened = open(&[Listen::Tcp(address)], 2);
                thread::sleep(Duration::from_millis(1));
                done.store(true, Ordering::SeqCst);
                assert!(refused.is_err() && opened.is_ok(), "{refused:?}, {opened:?}");
                for client in client.join().unwrap() {
                    client.set_nonblocking(true).unwrap();
                    let heard = (&client).read(&mut [0; 1]).map_err(|error| error.kind());
                    assert_eq!(heard, Err(io::ErrorKind::WouldBlock), "not reset, and not ended");
                    kept += 1;
                }
            });
        }
        assert!(kept > 0);
    }

    /// However many cores it has: each socket of the one before has a shard that accepts on it.
    #[test]
    fn sockets_of_another_process_are_all_accepted_on() {
        let address = Listen::Tcp(free_port());
        let given = || {
            let before = open(std::slice::from_ref(&address), 3).unwrap();
            let sockets = before.sockets().flat_map(|(_, sockets)| sockets).map(|socket| socket.try_clone().unwrap());
            by_address(sockets.collect())
        };
        let take = |shards| Listening::open(std::slice::from_ref(&address), shards, TCP, given()).unwrap();
        assert_eq!(spread(&take(1)), [3]);
        assert_eq!(spread(&take(2)), [2, 1]);
        assert_eq!(spread(&take(3)), [1, 1, 1]);
        let mut wider = take(5);
        assert_eq!(spread(&wider), [1, 1, 1, 1, 1], "two are shared");
        wider.widen();
        assert_eq!(wider.sockets().map(|(_, sockets)| sockets.len()).sum::<usize>(), 5);
        assert_eq!(spread(&wider), [1, 1, 1, 1, 1]);
    }

    /// As long as it is not sure that the other process goes.
    #[test]
    fn what_is_taken_over_keeps_its_name() {
        let (path, address) = unix_listen("inherited");
        let before = open(std::slice::from_ref(&address), 1).unwrap();
        let given = || {
            let sockets = before.sockets().flat_map(|(_, sockets)| sockets).map(|socket| socket.try_clone().unwrap());
            by_address(sockets.collect())
        };
        drop(Listening::open(std::slice::from_ref(&address), 1, TCP, given()).unwrap());
        drop(Listening::open(&[], 1, TCP, given()).unwrap());
        assert!(path.exists());
        let mut taken = Listening::open(std::slice::from_ref(&address), 1, TCP, given()).unwrap();
        taken.settle();
        let mut before = before;
        before.give_away();
        drop(before);
        assert!(path.exists());
        drop(taken);
        assert!(!path.exists());
    }

    #[test]
    fn addresses_come_and_go() {
        let (one, other, third) = (Listen::Tcp(free_port()), Listen::Tcp(free_port()), Listen::Tcp(free_port()));
        let mut listening = open(&[one.clone(), other.clone()], 1).unwrap();
        let plan = listening.plan(&[other.clone(), third.clone()], Vec::new()).unwrap();
        let (come, go) = listening.carry_out(plan);
        assert_eq!((come.len(), go.len()), (1, 1));
        listening.forget(&go);
        assert_eq!(listening.addresses().collect::<Vec<_>>(), [&other, &third]);
        // One that is taken: nothing is changed.
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = Listen::Tcp(taken.local_addr().unwrap());
        assert!(listening.plan(&[address], Vec::new()).is_err());
        assert_eq!(listening.addresses().count(), 2);
    }

    #[test]
    fn one_port_of_all_addresses_and_of_one() {
        let port = free_port().port();
        let both = ["0.0.0.0", "127.0.0.1"].map(|host| Listen::Tcp(format!("{host}:{port}").parse().unwrap()));
        let listening = open(&both, 2).unwrap();
        assert_eq!(spread(&listening), [2, 2]);
    }

    #[test]
    fn a_second_instance_is_refused() {
        let address = Listen::Tcp(free_port());
        let _first = open(std::slice::from_ref(&address), 2).unwrap();
        let error = open(std::slice::from_ref(&address), 2).unwrap_err();
        assert_eq!(error.to_string(), format!("{address} is in use by another process"));
    }

    #[test]
    fn an_address_of_another_machine_is_refused() {
        // TEST-NET-1: nobody has it.
        let error = open(&[Listen::Tcp("192.0.2.1:8080".parse().unwrap())], 1).unwrap_err();
        assert_eq!(error.to_string(), "192.0.2.1:8080 is not an address of this machine");
    }

    #[test]
    fn a_restart_does_not_wait_for_old_connections() {
        let address = free_port();
        let mut first = open(&[Listen::Tcp(address)], 1).unwrap();
        let accepting = TcpListener::from(first.doors.remove(0).sockets.remove(0));
        let client = TcpStream::connect(address).unwrap();
        // The side that closes first keeps the port in TIME_WAIT.
        drop(accepting.accept().unwrap());
        drop((client, accepting));
        open(&[Listen::Tcp(address)], 1).unwrap();
    }

    #[test]
    fn a_socket_file_is_shared_by_the_shards_and_removed_at_the_end() {
        let (path, listen) = unix_listen("shared");
        let listeners = open(&[listen], 2).unwrap();
        assert_eq!(spread(&listeners), [1, 1]);
        UnixStream::connect(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o777);
        drop(listeners);
        assert!(!path.exists());
    }

    #[test]
    fn a_stale_socket_file_is_replaced_and_a_living_one_is_not() {
        let (path, listen) = unix_listen("stale");
        drop(UnixListener::bind(&path).unwrap());
        assert!(path.exists());
        let first = open(std::slice::from_ref(&listen), 1).unwrap();
        let error = open(std::slice::from_ref(&listen), 1).unwrap_err();
        assert_eq!(error.to_string(), format!("unix:{} is in use by another process", path.display()));
        UnixStream::connect(&path).unwrap();
        drop(first);
    }

    #[test]
    fn a_name_that_another_took_is_left_to_it() {
        let (path, listen) = unix_listen("taken");
        let listeners = open(&[listen], 1).unwrap();
        fs::remove_file(&path).unwrap();
        let other = UnixListener::bind(&path).unwrap();
        drop(listeners);
        UnixStream::connect(&path).unwrap();
        drop(other);
        fs::remove_file(&path).unwrap();
    }

    #[test]
    fn what_is_no_socket_is_left_alone() {
        let (path, listen) = unix_listen("file");
        fs::write(&path, "mine").unwrap();
        assert_eq!(open(&[listen], 1).unwrap_err().cause, Cause::NotASocket);
        assert_eq!(fs::read_to_string(&path).unwrap(), "mine");
        fs::remove_file(&path).unwrap();
    }

    #[test]
    fn a_directory_that_is_not_there_is_said_to_be_missing() {
        let listen = Listen::Unix { directory: "/nowhere".into(), path: "/nowhere/.s.PGSQL.8080".into() };
        let error = open(&[listen], 1).unwrap_err();
        assert_eq!(error.to_string(), "unix:/nowhere/.s.PGSQL.8080: the directory does not exist");
    }
}
