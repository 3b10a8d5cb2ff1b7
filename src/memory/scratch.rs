//! A chunk that messages of our own are written into, one behind the other, and sent from.
//!
//! Invariant: bytes below `used` are only read; what is written lies above them.

use super::arena::{Arena, Chunk, Slice};

/// Room for messages that QCP makes. One chunk is held while any of them is unsent.
pub struct Scratch {
    arena: Arena,
    chunk: Option<Chunk>,
    used: usize,
}

impl Scratch {
    /// An empty one; the first chunk is taken when something is written.
    pub fn new(arena: &Arena) -> Self {
        Self { arena: arena.clone(), chunk: None, used: 0 }
    }

    /// Lets `write` fill up to `room` bytes and returns what it says it wrote. `None` when no chunk is to be had;
    /// `room` is at most the chunk size.
    pub fn write(&mut self, room: usize, write: impl FnOnce(&mut [u8]) -> usize) -> Option<Slice> {
        assert!(room <= self.arena.chunk_size());
        if self.chunk.as_ref().is_some_and(Chunk::is_sole) {
            self.used = 0;
        }
        if self.chunk.is_none() || self.used + room > self.arena.chunk_size() {
            self.chunk = Some(self.arena.take()?);
            self.used = 0;
        }
        let chunk = self.chunk.as_ref().expect("just taken");
        // SAFETY: `used..used + room` lies within the chunk, above all that slices show, and is ours alone.
        let free = unsafe { std::slice::from_raw_parts_mut(chunk.pointer().add(self.used), room) };
        let written = write(free);
        assert!(written <= room);
        let slice = chunk.slice(self.used, written);
        self.used += written;
        Some(slice)
    }

    /// A copy of `bytes`. `None` when no chunk is to be had.
    #[inline]
    pub fn copy(&mut self, bytes: &[u8]) -> Option<Slice> {
        self.write(bytes.len(), |free| {
            free.copy_from_slice(bytes);
            bytes.len()
        })
    }

    /// Gives the chunk back if nothing in it is in use.
    pub fn rest(&mut self) {
        if self.chunk.as_ref().is_some_and(Chunk::is_sole) {
            self.chunk = None;
            self.used = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_stays_while_more_is_written() {
        let arena = Arena::new(4096, 3).unwrap();
        let mut scratch = Scratch::new(&arena);
        let first = scratch.copy(b"hello").unwrap();
        let mut second = scratch.copy(b" world").unwrap();
        assert_eq!((&*first, &*second), (&b"hello"[..], &b" world"[..]));
        let big = scratch.copy(&[7; 4090]).unwrap();
        assert_eq!(&*first, b"hello");
        assert_eq!(big.len(), 4090);
        assert_eq!(arena.free_count(), 1);
        second.advance(1);
        assert_eq!(&*second, b"world");
        drop((first, second));
        assert_eq!(arena.free_count(), 2);
        drop(big);
        scratch.rest();
        assert_eq!(arena.free_count(), 3);
    }
}
