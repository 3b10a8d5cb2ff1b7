//! How a connection begins: accepted from a listener, or connected to a server.

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::time::Duration;

use io_uring::{cqueue, opcode, types};
use nix::sys::socket::{self as sys, AddressFamily, SockFlag, SockType, SockaddrLike, SockaddrStorage};

use super::Ring;
use super::connection::{Closing, Operation, user_data};
use crate::ids::{ConnectionId, DoorId};
use crate::io::{Errno, Event, Group, SocketAddress, Transport};

pub(super) struct Listener {
    pub(super) socket: OwnedFd,
    pub(super) local: bool,
    /// By which name its owner closes it.
    pub(super) door: DoorId,
    /// Accepts no more; it goes with the last completion of its accept.
    pub(super) closing: bool,
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

    /// Has the kernel keep a connection back until its first bytes are here, for about a second at most: a client of PostgreSQL
    /// speaks first, so who is accepted has something to say, and the shard is woken once instead of twice.
    pub fn defer_accept(listener: &OwnedFd) -> nix::Result<()> {
        let seconds: libc::c_int = 1;
        let (level, name) = (libc::IPPROTO_TCP, libc::TCP_DEFER_ACCEPT);
        let size = size_of_val(&seconds) as libc::socklen_t;
        // SAFETY: the value is an integer of this function's, and its size is told.
        let result = unsafe { libc::setsockopt(listener.as_raw_fd(), level, name, (&raw const seconds).cast(), size) };
        nix::errno::Errno::result(result).map(drop)
    }

    /// See [`Transport::listen`].
    pub(super) fn accept_on(&mut self, socket: OwnedFd, local: bool, door: DoorId) {
        let listener = Some(Listener { socket, local, door, closing: false, resting: false });
        // A place is free when no accept of the listener that it had is in flight.
        let at = match self.listeners.iter().position(Option::is_none) {
            Some(free) => {
                self.listeners[free] = listener;
                free
            }
            None => {
                self.listeners.push(listener);
                self.listeners.len() - 1
            }
        };
        self.arm_accept(at);
    }

    /// Ends the accepts of these doors. What the kernel has accepted by then is told of as ever; what it has not stays in
    /// the socket's queue, for whoever else has the socket.
    pub(super) fn unlisten(&mut self, is_meant: impl Fn(DoorId) -> bool) {
        for at in 0..self.listeners.len() {
            let Some(listener) = self.listeners[at].as_mut().filter(|listener| is_meant(listener.door)) else {
                continue;
            };
            if std::mem::take(&mut listener.resting) {
                self.listeners[at] = None;
                continue;
            }
            if std::mem::replace(&mut listener.closing, true) {
                continue;
            }
            let number = ConnectionId { index: at as u32, generation: 0 };
            let entry = opcode::AsyncCancel::new(user_data(Operation::Accept, number)).build();
            let nobody = ConnectionId { index: u32::MAX, generation: 0 };
            self.push(entry.user_data(user_data(Operation::Cancel, nobody)));
        }
    }

    pub(super) fn arm_accept(&mut self, listener: usize) {
        let Some(Some(Listener { socket, .. })) = self.listeners.get(listener) else { return };
        let entry = opcode::AcceptMulti::new(types::Fd(socket.as_raw_fd())).flags(libc::SOCK_CLOEXEC).build();
        let number = ConnectionId { index: listener as u32, generation: 0 };
        self.push(entry.user_data(user_data(Operation::Accept, number)));
    }

    pub(super) fn on_accept(&mut self, listener: usize, entry: &cqueue::Entry) -> Option<Event> {
        let result = entry.result();
        let known = self.listeners.get_mut(listener).and_then(Option::as_mut);
        let local = known.as_ref().is_some_and(|listener| listener.local);
        if !cqueue::more(entry.flags()) {
            match known {
                Some(known) if known.closing || result == -libc::ECANCELED => self.listeners[listener] = None,
                Some(resting) if result < 0 => {
                    log::warn!("accepting a client failed: {}; trying again", Errno(-result));
                    resting.resting = true;
                }
                Some(_) => self.arm_accept(listener),
                None => {}
            }
        }
        if result < 0 {
            return None;
        }
        // SAFETY: the kernel has just made this descriptor for us; nobody else has it.
        let socket = unsafe { OwnedFd::from_raw_fd(result) };
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
