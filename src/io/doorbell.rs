//! The eventfd that wakes a shard: whoever puts a message into its mailbox rings it.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::Arc;

use nix::sys::eventfd::{EfdFlags, EventFd};

/// A shard's doorbell. Cloning gives another handle to the same one; any thread may ring.
///
/// It has two bells. The ring polls the first, and wakes a shard that waits in its ring. A parked shard waits for the
/// second, which the ring signals for whatever else happens. It is rung here as well because of the kernel: a poll that
/// is woken by an eventfd may not signal another one on the spot, and the signal that is deferred then comes once and
/// never again (seen on 6.18: the ring's work waits for ever, unannounced).
#[derive(Clone)]
pub struct Doorbell {
    polled: Arc<EventFd>,
    park: Arc<EventFd>,
}

impl Doorbell {
    /// Errors: no descriptor to be had.
    pub fn new() -> io::Result<Self> {
        let polled = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
        let park = EventFd::from_flags(EfdFlags::EFD_CLOEXEC)?;
        Ok(Self { polled: Arc::new(polled), park: Arc::new(park) })
    }

    /// Wakes the shard.
    pub fn ring(&self) {
        // The counters cannot overflow in practice; if one did, the shard would be awake already.
        let _ = self.polled.write(1);
        let _ = self.park.write(1);
    }

    /// Called by the shard that owns it, before it looks into the mailbox; whether it had been rung.
    pub fn silence(&self) -> bool {
        self.polled.read().is_ok()
    }

    /// Another descriptor of the bell that a parked shard waits for.
    pub fn park_descriptor(&self) -> io::Result<OwnedFd> {
        self.park.as_fd().try_clone_to_owned()
    }
}

impl AsFd for Doorbell {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.polled.as_fd()
    }
}

impl AsRawFd for Doorbell {
    fn as_raw_fd(&self) -> RawFd {
        self.polled.as_raw_fd()
    }
}
