//! The eventfd that wakes a shard: whoever puts a message into its mailbox rings it.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::sync::Arc;

use nix::sys::eventfd::{EfdFlags, EventFd};

/// A shard's doorbell. Cloning gives another handle to the same one; any thread may ring.
#[derive(Clone)]
pub struct Doorbell {
    eventfd: Arc<EventFd>,
}

impl Doorbell {
    /// Errors: no descriptor to be had.
    pub fn new() -> io::Result<Self> {
        let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
        Ok(Self { eventfd: Arc::new(EventFd::from_flags(flags)?) })
    }

    /// Wakes the shard.
    pub fn ring(&self) {
        // The counter cannot overflow in practice; if it did, the shard would be awake already.
        let _ = self.eventfd.write(1);
    }

    /// Called by the shard that owns it, before it looks into the mailbox.
    pub fn silence(&self) {
        let _ = self.eventfd.read();
    }
}

impl AsFd for Doorbell {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.eventfd.as_fd()
    }
}

impl AsRawFd for Doorbell {
    fn as_raw_fd(&self) -> RawFd {
        self.eventfd.as_raw_fd()
    }
}
