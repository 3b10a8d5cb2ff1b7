//! Who the peers are, and how much they have taken.

use std::net::SocketAddr;
use std::os::fd::RawFd;

use nix::sys::socket::{self as sys, SockaddrStorage};

use super::Ring;
use crate::ids::ConnectionId;

impl Ring {
    /// See [`Transport::peer`](crate::io::Transport::peer).
    pub(super) fn name_of(&self, connection: ConnectionId) -> String {
        let slot = self.connections.get(connection.index, connection.generation);
        let Some(connection) = slot else { return String::new() };
        if connection.local {
            return "unix".to_owned();
        }
        match sys::getpeername::<SockaddrStorage>(connection.socket) {
            Ok(address) => tcp_address(&address).map_or_else(|| address.to_string(), |address| address.to_string()),
            Err(_) => "unknown".to_owned(),
        }
    }

    /// See [`Transport::local`](crate::io::Transport::local).
    pub(super) fn own_name_of(&self, connection: ConnectionId) -> String {
        let slot = self.connections.get(connection.index, connection.generation);
        let Some(connection) = slot else { return String::new() };
        let address = sys::getsockname::<SockaddrStorage>(connection.socket).ok();
        match address.as_ref().and_then(tcp_address) {
            Some(address) => address.to_string(),
            None if connection.local => "unix".to_owned(),
            None => String::new(),
        }
    }

    /// See [`Transport::is_local`](crate::io::Transport::is_local).
    pub(super) fn is_near(&self, connection: ConnectionId) -> bool {
        let slot = self.connections.get(connection.index, connection.generation);
        let Some(connection) = slot else { return false };
        if connection.local {
            return true;
        }
        let address = sys::getpeername::<SockaddrStorage>(connection.socket).ok();
        address.as_ref().and_then(tcp_address).is_some_and(|address| address.ip().to_canonical().is_loopback())
    }

    /// See [`Transport::address`](crate::io::Transport::address).
    pub(super) fn address_of(&self, connection: ConnectionId) -> Option<std::net::IpAddr> {
        let connection = self.connections.get(connection.index, connection.generation)?;
        if connection.local {
            return None;
        }
        let address = sys::getpeername::<SockaddrStorage>(connection.socket).ok();
        address.as_ref().and_then(tcp_address).map(|address| address.ip().to_canonical())
    }

    /// See [`Transport::peer_user`](crate::io::Transport::peer_user).
    pub(super) fn user_of(&self, connection: ConnectionId) -> Option<String> {
        let user = nix::unistd::User::from_uid(self.uid_of(connection)?).ok()??;
        Some(user.name)
    }

    /// Who runs the peer, as the kernel knows it. `None`: not over a Unix socket.
    pub(super) fn uid_of(&self, connection: ConnectionId) -> Option<nix::unistd::Uid> {
        let connection = self.connections.get(connection.index, connection.generation)?;
        if !connection.local {
            return None;
        }
        // SAFETY: the slot owns the descriptor, and it is not kept beyond this call.
        let socket = unsafe { std::os::fd::BorrowedFd::borrow_raw(connection.socket) };
        let peer = sys::getsockopt(&socket, sys::sockopt::PeerCredentials).ok()?;
        Some(nix::unistd::Uid::from_raw(peer.uid()))
    }
}

/// See [`taken`](crate::io::Transport::taken): what the peer's kernel has acknowledged. A Unix socket says only how much is on its way.
pub(super) fn taken(socket: RawFd, local: bool) -> u64 {
    if local {
        let mut unread: libc::c_int = 0;
        // SAFETY: the call writes an int to where it is pointed.
        unsafe { libc::ioctl(socket, libc::TIOCOUTQ, &raw mut unread) };
        return unread as u64;
    }
    // SAFETY: all-zero is a valid value of the C struct; the call writes at most `length` bytes to it.
    unsafe {
        let mut info: libc::tcp_info = std::mem::zeroed();
        let mut length = size_of::<libc::tcp_info>() as libc::socklen_t;
        let target = (&raw mut info).cast();
        if libc::getsockopt(socket, libc::IPPROTO_TCP, libc::TCP_INFO, target, &raw mut length) != 0 {
            return 0;
        }
        info.tcpi_bytes_acked
    }
}

fn tcp_address(address: &SockaddrStorage) -> Option<SocketAddr> {
    if let Some(address) = address.as_sockaddr_in() {
        return Some(SocketAddr::from((address.ip(), address.port())));
    }
    address.as_sockaddr_in6().map(|address| SocketAddr::from((address.ip(), address.port())))
}
