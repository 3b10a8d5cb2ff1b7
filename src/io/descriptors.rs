//! Descriptors that come from another process: with a message over a Unix socket, or from whoever started this one.
//!
//! Invariant: each has one owner here from the moment that it is known of, so none is left open.

use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg};

/// As many as one message may carry (the kernel's SCM_MAX_FD is 253).
pub const AT_ONCE_MAX: usize = 200;

/// Sends one byte with up to [`AT_ONCE_MAX`] descriptors, which stay open here.
pub fn send(stream: &UnixStream, byte: u8, descriptors: &[impl AsFd]) -> io::Result<()> {
    let raw: Vec<RawFd> = descriptors.iter().map(|descriptor| descriptor.as_fd().as_raw_fd()).collect();
    let bytes = [byte];
    let rights = [ControlMessage::ScmRights(&raw)];
    let rights = if raw.is_empty() { &[][..] } else { &rights[..] };
    loop {
        match sendmsg::<()>(stream.as_raw_fd(), &[IoSlice::new(&bytes)], rights, MsgFlags::MSG_NOSIGNAL, None) {
            Err(nix::Error::EINTR) => {}
            sent => return Ok(sent.map(drop)?),
        }
    }
}

/// Receives some bytes, and what descriptors came with them. 0: the peer has closed.
pub fn receive(stream: &UnixStream, bytes: &mut [u8], descriptors: &mut Vec<OwnedFd>) -> io::Result<usize> {
    let mut room = nix::cmsg_space!([RawFd; AT_ONCE_MAX]);
    loop {
        let mut pieces = [IoSliceMut::new(bytes)];
        // Closed in whatever this process starts.
        let flags = MsgFlags::MSG_CMSG_CLOEXEC;
        let message = match recvmsg::<()>(stream.as_raw_fd(), &mut pieces, Some(&mut room), flags) {
            Err(nix::Error::EINTR) => continue,
            received => received?,
        };
        for control in message.cmsgs()? {
            if let ControlMessageOwned::ScmRights(raw) = control {
                // SAFETY: the kernel has just made these descriptors for us; nobody else has them.
                descriptors.extend(raw.into_iter().map(|raw| unsafe { OwnedFd::from_raw_fd(raw) }));
            }
        }
        if message.flags.contains(MsgFlags::MSG_CTRUNC) {
            return Err(io::Error::other("more descriptors came than one message may bring"));
        }
        return Ok(message.bytes);
    }
}

/// Sockets that systemd has opened for this process (`LISTEN_FDS`). Empty: there are none, they are for another process, or
/// they have been taken.
pub fn inherited() -> Vec<OwnedFd> {
    const FIRST: RawFd = 3;
    static TAKEN: AtomicBool = AtomicBool::new(false);
    if TAKEN.swap(true, Ordering::Relaxed) {
        return Vec::new();
    }
    let number = |name| std::env::var(name).ok()?.parse::<i64>().ok();
    if number("LISTEN_PID") != Some(i64::from(std::process::id())) {
        return Vec::new();
    }
    let count = number("LISTEN_FDS").and_then(|count| RawFd::try_from(count).ok()).unwrap_or(0);
    let sockets = (FIRST..FIRST.saturating_add(count.min(AT_ONCE_MAX as RawFd))).map(|raw| {
        // SAFETY: "the first passed descriptor is 3" (sd_listen_fds); it is this process that they were opened for, so it
        // had opened nothing of its own there, and no second caller gets them.
        let socket = unsafe { OwnedFd::from_raw_fd(raw) };
        // What this process starts is not to have them. It fails only for what is no descriptor, and that shows at once.
        let _ = nix::fcntl::fcntl(&socket, nix::fcntl::FcntlArg::F_SETFD(nix::fcntl::FdFlag::FD_CLOEXEC));
        socket
    });
    sockets.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::io::{Read, Write};

    #[test]
    fn a_descriptor_arrives_with_its_byte() {
        let (near, far) = UnixStream::pair().expect("two descriptors");
        let (reader, mut writer) = UnixStream::pair().expect("two descriptors");
        send(&near, b'x', &[reader]).expect("there is room");
        (&near).write_all(b"yz\n").expect("there is room");
        let (mut bytes, mut text, mut found) = ([0; 16], Vec::new(), Vec::new());
        while text.last() != Some(&b'\n') {
            let count = receive(&far, &mut bytes, &mut found).expect("it is there");
            text.extend_from_slice(&bytes[..count]);
        }
        assert_eq!((text.as_slice(), found.len()), (&b"xyz\n"[..], 1));
        writer.write_all(b"!").expect("its other end is open");
        let mut byte = [0];
        File::from(found.remove(0)).read_exact(&mut byte).expect("it is the other end");
        assert_eq!(byte, *b"!");
        drop(near);
        assert_eq!(receive(&far, &mut bytes, &mut found).expect("an end"), 0);
    }
}
