//! The sockets on which clients are accepted, made before any shard exists.
//!
//! Each shard has a socket of its own for each TCP address (SO_REUSEPORT: the kernel spreads the clients), and a
//! descriptor of the one socket of each Unix socket file. They are made by hand because the libraries' listeners leave
//! out SO_REUSEADDR or CLOEXEC and have small backlogs.

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
    AddressFamily, Backlog, SockFlag, SockType, SockaddrLike, SockaddrStorage, UnixAddr, bind, listen, setsockopt,
    socket,
};

use crate::config::{Listen, Tcp};
use crate::io::ring::Ring;

/// Clients that connect while a shard is busy wait here; the kernel cuts it down to net.core.somaxconn.
const BACKLOG: i32 = 4096;

/// All listening sockets of the process.
#[derive(Debug)]
pub struct Listeners {
    /// One set for each shard, in the order of the addresses.
    pub shards: Vec<Vec<Listener>>,
    /// Dropped when the process has stopped to accept.
    pub socket_files: Vec<SocketFile>,
}

#[derive(Debug)]
pub struct Listener {
    pub socket: OwnedFd,
    /// Where it listens; whether a client came over TCP or not is for `auth` to know.
    pub address: Listen,
}

/// A Unix socket's name in the file system; removed when dropped, unless another has taken the name since.
#[derive(Debug)]
pub struct SocketFile {
    path: PathBuf,
    device: u64,
    inode: u64,
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        let is_ours = |found: fs::Metadata| (found.dev(), found.ino()) == (self.device, self.inode);
        if fs::symlink_metadata(&self.path).is_ok_and(is_ours) {
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

/// Either all addresses for all shards, or none.
pub fn open(addresses: &[Listen], shards: usize) -> Result<Listeners, Error> {
    // SO_REUSEPORT lets a second instance in without a word, and it would take half of the clients. So each address is
    // tried once without it.
    for address in addresses {
        if let Listen::Tcp(tcp) = address {
            open_tcp(*tcp, Sharing::Alone).map_err(|errno| refused_tcp(*tcp, errno))?;
        }
    }
    let mut listeners = Listeners { shards: (0..shards).map(|_| Vec::new()).collect(), socket_files: Vec::new() };
    for address in addresses {
        match address {
            Listen::Tcp(tcp) => {
                for shard in &mut listeners.shards {
                    let socket = open_tcp(*tcp, Sharing::WithShards).map_err(|errno| refused_tcp(*tcp, errno))?;
                    shard.push(Listener { socket, address: address.clone() });
                }
            }
            Listen::Unix { path, .. } => {
                let refused = |cause| Error { address: address.clone(), cause };
                let (first, socket_file) = open_unix(path).map_err(refused)?;
                listeners.socket_files.push(socket_file);
                for shard in &mut listeners.shards {
                    let socket = first.try_clone().map_err(|error| refused(Cause::Other(errno(&error))))?;
                    shard.push(Listener { socket, address: address.clone() });
                }
            }
        }
    }
    Ok(listeners)
}

/// What is accepted inherits how TCP notices that a peer is gone; the number of those that wait to be taken is told anew.
pub fn tune(listeners: &Listeners, tcp: Tcp) -> nix::Result<()> {
    for listener in listeners.shards.iter().flatten() {
        if let Listen::Tcp(_) = listener.address {
            Ring::tune(&listener.socket, (tcp.keepalive, tcp.user_timeout))?;
        }
        let backlog = i32::try_from(tcp.backlog).unwrap_or(i32::MAX);
        listen(&listener.socket, Backlog::new(backlog).unwrap_or(Backlog::MAXALLOWABLE))?;
    }
    Ok(())
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Sharing {
    Alone,
    WithShards,
}

fn open_tcp(address: SocketAddr, sharing: Sharing) -> nix::Result<OwnedFd> {
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
    if sharing == Sharing::WithShards {
        setsockopt(&stream, ReusePort, &true)?;
    }
    bind_and_listen(stream, &SockaddrStorage::from(address))
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

fn open_unix(path: &Path) -> Result<(OwnedFd, SocketFile), Cause> {
    remove_stale(path)?;
    let stream = socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).map_err(Cause::Other)?;
    let address = UnixAddr::new(path).map_err(Cause::Other)?;
    let socket = bind_and_listen(stream, &address).map_err(file_cause)?;
    let found = fs::symlink_metadata(path).map_err(|error| file_cause(errno(&error)))?;
    let socket_file = SocketFile { path: path.to_owned(), device: found.dev(), inode: found.ino() };
    // Any user may connect, as with PostgreSQL; who may log in is for `auth`, or for the directory.
    fs::set_permissions(path, fs::Permissions::from_mode(0o777)).map_err(|error| file_cause(errno(&error)))?;
    Ok((socket, socket_file))
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

fn bind_and_listen(socket: OwnedFd, address: &dyn SockaddrLike) -> nix::Result<OwnedFd> {
    bind(socket.as_raw_fd(), address)?;
    // Where the C library was built for a smaller number, the largest that the kernel takes.
    listen(&socket, Backlog::new(BACKLOG).unwrap_or(Backlog::MAXALLOWABLE))?;
    Ok(socket)
}

fn errno(error: &io::Error) -> Errno {
    Errno::from_raw(error.raw_os_error().unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{TcpListener, TcpStream};
    use std::os::unix::net::UnixListener;

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
        assert_eq!(listeners.shards.iter().map(Vec::len).collect::<Vec<_>>(), [1, 1, 1]);
        TcpStream::connect(address).unwrap();
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
        let first = open(&[Listen::Tcp(address)], 1).unwrap();
        let accepting = TcpListener::from(first.shards.into_iter().next().unwrap().remove(0).socket);
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
        assert_eq!(listeners.shards.iter().map(Vec::len).collect::<Vec<_>>(), [1, 1]);
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
