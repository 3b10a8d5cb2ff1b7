//! Where a quiet shard sleeps: in glommio, until its ring has a completion.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, IntoRawFd, RawFd};

use super::doorbell::Doorbell;
use glommio::io::BufferedFile;

/// An eventfd that the ring signals while the shard is parked. Owned by one shard.
pub struct Park {
    file: BufferedFile,
}

impl Park {
    /// Must be called on the shard's executor, with the doorbell of the shard. Errors: no descriptor to be had.
    pub fn new(doorbell: &Doorbell) -> io::Result<Self> {
        let descriptor = doorbell.park_descriptor()?.into_raw_fd();
        // SAFETY: the descriptor has just been given up by its owner; the file owns it from here on.
        Ok(Self { file: unsafe { BufferedFile::from_raw_fd(descriptor) } })
    }

    /// The descriptor to be signalled.
    pub fn descriptor(&self) -> RawFd {
        self.file.as_raw_fd()
    }

    /// Sleeps until it is signalled. The read is never dropped half-way: a cancelled one could swallow the signal.
    pub async fn wait(&self) {
        if let Err(error) = self.file.read_at(0, 8).await {
            log::error!("waiting for the ring failed: {error}");
        }
    }
}
