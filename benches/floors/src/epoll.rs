//! The system calls of `floor_epoll`: level-triggered epoll, non-blocking receive and send.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

pub struct Epoll {
    descriptor: OwnedFd,
}

/// What a socket is watched for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Watch {
    Read,
    Write,
    ReadWrite,
    Nothing,
}

impl Watch {
    fn bits(self) -> u32 {
        let bits = match self {
            Watch::Read => libc::EPOLLIN,
            Watch::Write => libc::EPOLLOUT,
            Watch::ReadWrite => libc::EPOLLIN | libc::EPOLLOUT,
            Watch::Nothing => 0,
        };
        bits as u32
    }
}

pub fn is_writable(event: &libc::epoll_event) -> bool {
    event.events & libc::EPOLLOUT as u32 != 0
}

/// Readable, ended or broken: a receive tells which.
pub fn is_readable(event: &libc::epoll_event) -> bool {
    event.events & !(libc::EPOLLOUT as u32) != 0
}

impl Epoll {
    pub fn create() -> Epoll {
        // SAFETY: takes no pointer; the descriptor is ours alone and checked before it is owned.
        let descriptor = unsafe {
            let fd = libc::epoll_create1(libc::EPOLL_CLOEXEC);
            assert!(fd >= 0, "epoll_create1: {}", io::Error::last_os_error());
            OwnedFd::from_raw_fd(fd)
        };
        Epoll { descriptor }
    }

    pub fn add(&self, socket: RawFd, watch: Watch, token: u64) {
        self.control(libc::EPOLL_CTL_ADD, socket, watch, token);
    }

    pub fn change(&self, socket: RawFd, watch: Watch, token: u64) {
        self.control(libc::EPOLL_CTL_MOD, socket, watch, token);
    }

    fn control(&self, operation: i32, socket: RawFd, watch: Watch, token: u64) {
        let mut event = libc::epoll_event { events: watch.bits(), u64: token };
        // SAFETY: the event outlives the call.
        let result = unsafe { libc::epoll_ctl(self.descriptor.as_raw_fd(), operation, socket, &raw mut event) };
        assert_eq!(result, 0, "epoll_ctl: {}", io::Error::last_os_error());
    }

    /// Returns how many of `events` were filled.
    #[inline]
    pub fn wait(&self, events: &mut [libc::epoll_event]) -> usize {
        let capacity = events.len() as i32;
        // SAFETY: the kernel writes at most `capacity` events.
        let count = unsafe { libc::epoll_wait(self.descriptor.as_raw_fd(), events.as_mut_ptr(), capacity, -1) };
        count.max(0) as usize
    }
}

/// `None` if nothing is there now; zero at the end of the stream, or when it broke.
#[inline]
pub fn receive(socket: RawFd, into: &mut [u8]) -> Option<usize> {
    // SAFETY: the kernel writes at most the slice.
    let received = unsafe { libc::recv(socket, into.as_mut_ptr().cast(), into.len(), libc::MSG_DONTWAIT) };
    transferred(received)
}

/// How much the socket took; a broken socket swallows everything.
#[inline]
pub fn send(socket: RawFd, bytes: &[u8]) -> usize {
    let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
    // SAFETY: the kernel reads at most the slice.
    let sent = unsafe { libc::send(socket, bytes.as_ptr().cast(), bytes.len(), flags) };
    match transferred(sent) {
        None => 0,
        Some(0) => bytes.len(),
        Some(size) => size,
    }
}

pub fn accept(listener: RawFd) -> Option<OwnedFd> {
    let flags = libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // SAFETY: no address is asked for; the descriptor is ours alone and checked before it is owned.
    unsafe {
        let fd = libc::accept4(listener, std::ptr::null_mut(), std::ptr::null_mut(), flags);
        (fd >= 0).then(|| OwnedFd::from_raw_fd(fd))
    }
}

pub fn shutdown(socket: RawFd) {
    // SAFETY: takes no pointer.
    unsafe { libc::shutdown(socket, libc::SHUT_RDWR) };
}

#[inline]
fn transferred(result: isize) -> Option<usize> {
    if result >= 0 {
        return Some(result as usize);
    }
    let error = io::Error::last_os_error();
    (!matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::EINTR))).then_some(0)
}
