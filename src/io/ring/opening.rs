//! How a connection begins: accepted from a listener, or connected to a server.

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::time::Duration;

use io_uring::{cqueue, opcode, types};
use nix::sys::socket::{self as sys, AddressFamily, SockFlag, SockType, SockaddrLike, SockaddrStorage};

use super::Ring;
use super::connection::{Closing, Operation, user_data};
use crate::ids::ConnectionId;
use crate::io::{Errno, Event, Group, SocketAddress, Transport};

pub(super) struct Listener {
    pub(super) socket: OwnedFd,
    pub(super) local: bool,
    /// Accepting failed (no descriptors): armed again at the next tick.
    pub(super) resting: bool,
}

/// The kernel takes no longer times for keepalive.
const MAX_SECONDS: u32 = 32_767;

impl Ring {
    /// How TCP notices that a server is gone; see [`Ring::tune`].
    pub fn set_tcp(&mut self, keepalive: Duration, user_timeout: Duration) {
        self.tcp = (keepalive, user_timeout);
    }

    /// Has a TCP socket notice a peer that is gone: probed after the first time, and given up six probes later, after as long
    /// again; with bytes under way, after the second time. Zero: as the system does it.
    pub fn tune(socket: &OwnedFd, (keepalive, user_timeout): (Duration, Duration)) -> nix::Result<()> {
        const PROBES: u32 = 6;
        let seconds = |time: Duration| u32::try_from(time.as_secs()).unwrap_or(MAX_SECONDS).clamp(1, MAX_SECONDS);
        sys::setsockopt(socket, sys::sockopt::KeepAlive, &true)?;
        if !keepalive.is_zero() {
            sys::setsockopt(socket, sys::sockopt::TcpKeepIdle, &seconds(keepalive))?;
            sys::setsockopt(socket, sys::sockopt::TcpKeepInterval, &seconds(keepalive / PROBES))?;
            sys::setsockopt(socket, sys::sockopt::TcpKeepCount, &PROBES)?;
        }
        if !user_timeout.is_zero() {
            let millis = u32::try_from(user_timeout.as_millis()).unwrap_or(u32::MAX);
            sys::setsockopt(socket, sys::sockopt::TcpUserTimeout, &millis)?;
        }
        Ok(())
    }

    /// Accepts clients on `socket`, which must listen.
    pub fn listen(&mut self, socket: OwnedFd, local: bool) {
        self.listeners.push(Listener { socket, local, resting: false });
        self.arm_accept(self.listeners.len() - 1);
    }

    pub(super) fn arm_accept(&mut self, listener: usize) {
        let Some(Listener { socket, .. }) = self.listeners.get(listener) else { return };
        let entry = opcode::AcceptMulti::new(types::Fd(socket.as_raw_fd())).flags(libc::SOCK_CLOEXEC).build();
        let number = ConnectionId { index: listener as u32, generation: 0 };
        self.push(entry.user_data(user_data(Operation::Accept, number)));
    }

    pub(super) fn on_accept(&mut self, listener: usize, entry: &cqueue::Entry) -> Option<Event> {
        let result = entry.result();
        if !cqueue::more(entry.flags()) {
            if result == -libc::ECANCELED {
                return None;
            }
            if result < 0 && self.listeners.get(listener).is_some() {
                log::warn!("accepting a client failed: {}; trying again", Errno(-result));
                self.listeners[listener].resting = true;
            } else {
                self.arm_accept(listener);
            }
        }
        if result < 0 {
            return None;
        }
        // SAFETY: the kernel has just made this descriptor for us; nobody else has it.
        let socket = unsafe { OwnedFd::from_raw_fd(result) };
        let local = self.listeners.get(listener).is_some_and(|listener| listener.local);
        match self.insert(socket, Group::Client, local) {
            Ok(connection) => Some(Event::Accepted { connection, local }),
            Err(_full) => None,
        }
    }

    /// See [`Transport::connect`].
    pub(super) fn open(&mut self, address: &SocketAddress) -> Result<ConnectionId, Errno> {
        let errno = |error: nix::Error| Errno(error as i32);
        let (family, storage, local) = match address {
            SocketAddress::Tcp(address) => {
                let family = if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
                (family, SockaddrStorage::from(*address), false)
            }
            SocketAddress::Unix(path) => {
                let unix = sys::UnixAddr::new(path).map_err(errno)?;
                // SAFETY: the pointer and length describe the address made above, which lives until after the call.
                let storage = unsafe { SockaddrStorage::from_raw(unix.as_ptr().cast(), Some(unix.len())) };
                (AddressFamily::Unix, storage.ok_or(Errno(libc::ENAMETOOLONG))?, true)
            }
        };
        let socket = sys::socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).map_err(errno)?;
        if !local {
            sys::setsockopt(&socket, sys::sockopt::TcpNoDelay, &true).map_err(errno)?;
            Self::tune(&socket, self.tcp).map_err(errno)?;
        }
        let id = self.insert(socket, Group::Backend, local).map_err(|_full| Errno(libc::ENFILE))?;
        let connection = self.connections.get_mut(id.index, id.generation).expect("just inserted");
        connection.operations += 1;
        let storage = connection.connecting.insert(Box::new(storage));
        let entry = opcode::Connect::new(types::Fd(connection.socket), storage.as_ptr(), storage.len()).build();
        self.push(entry.user_data(user_data(Operation::Connect, id)));
        Ok(id)
    }

    pub(super) fn on_connect(&mut self, id: ConnectionId, result: i32) -> Option<Event> {
        let slot = self.connections.get_mut(id.index, id.generation);
        let connection = slot.expect("a slot is kept while an operation is in flight");
        connection.operations -= 1;
        connection.connecting = None;
        if connection.closing != Closing::No {
            self.finished_check(id);
            return None;
        }
        if result < 0 {
            self.begin_close(id);
            return Some(Event::Connected { connection: id, error: Some(Errno(-result)) });
        }
        self.receive(id, true);
        Some(Event::Connected { connection: id, error: None })
    }
}
