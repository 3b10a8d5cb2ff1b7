//! A group of provided buffers: the few chunks into which the kernel receives next.
//!
//! Invariant: the kernel may write to a chunk exactly while it stands in `lent`; it leaves with the completion that
//! names it. Only a handful stand here, so that the same ones are used again while they are in the cache.

use std::io;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU16, Ordering};

use io_uring::Submitter;
use io_uring::types::BufRingEntry;

use crate::memory::{Arena, Chunk};

pub(super) struct Buffers {
    entries: NonNull<BufRingEntry>,
    map_size: usize,
    mask: u16,
    tail: u16,
    lent: Box<[Option<Chunk>]>,
    /// Ids of buffers that hold no chunk.
    vacant: Vec<u16>,
    unpublished: bool,
}

impl Buffers {
    /// Registers a group of at most `count` chunks (rounded up to a power of two).
    pub(super) fn new(submitter: &Submitter<'_>, group: u16, count: usize) -> io::Result<Self> {
        let slots = count.next_power_of_two().clamp(2, 1 << 15) as u16;
        let map_size = (slots as usize * size_of::<BufRingEntry>()).next_multiple_of(4096);
        // SAFETY: a fresh anonymous mapping; the result is checked before use.
        let map = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                map_size,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_POPULATE,
                -1,
                0,
            )
        };
        if map == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let entries = NonNull::new(map.cast::<BufRingEntry>()).expect("mmap does not map address zero");
        let buffers = Self {
            entries,
            map_size,
            mask: slots - 1,
            tail: 0,
            lent: (0..slots).map(|_| None).collect(),
            vacant: (0..slots).rev().take(slots as usize).collect(),
            unpublished: false,
        };
        // SAFETY: the mapping is page-aligned, as long as the ring lives it is not unmapped (the ring is dropped first),
        // and only this struct writes to it.
        unsafe { submitter.register_buf_ring_with_flags(entries.as_ptr() as u64, slots, group, 0)? };
        Ok(buffers)
    }

    /// Chunks in the kernel's hands.
    pub(super) fn len(&self) -> usize {
        self.lent.len() - self.vacant.len()
    }

    pub(super) fn capacity(&self) -> usize {
        self.lent.len()
    }

    /// Lends a chunk to the kernel.
    pub(super) fn lend(&mut self, chunk: Chunk) {
        debug_assert!(chunk.is_sole(), "nobody reads what the kernel may write");
        let id = self.vacant.pop().expect("the caller keeps to the capacity");
        let position = (self.tail & self.mask) as usize;
        // SAFETY: `position` is below the ring's length; the kernel reads this entry only once the tail is published.
        let entry = unsafe { &mut *self.entries.as_ptr().add(position) };
        entry.set_addr(chunk.pointer() as u64);
        entry.set_len(chunk.size() as u32);
        entry.set_bid(id);
        self.lent[id as usize] = Some(chunk);
        self.tail = self.tail.wrapping_add(1);
        self.unpublished = true;
    }

    /// Takes back the chunk that a completion names.
    pub(super) fn returned(&mut self, id: u16) -> Chunk {
        let chunk = self.lent[id as usize].take().expect("the kernel names a buffer that it was lent");
        self.vacant.push(id);
        chunk
    }

    /// Lets the kernel see what was lent.
    pub(super) fn publish(&mut self) {
        if self.unpublished {
            self.unpublished = false;
            // SAFETY: the address of the tail within the ring's first entry, as the kernel's interface has it.
            let tail = unsafe { &*BufRingEntry::tail(self.entries.as_ptr()).cast::<AtomicU16>() };
            tail.store(self.tail, Ordering::Release);
        }
    }

    /// Adds chunks of `arena` up to `target`, leaving at least `reserve` in the arena.
    pub(super) fn refill(&mut self, arena: &Arena, target: usize, reserve: usize) {
        while self.len() < target && arena.free_count() > reserve {
            let Some(chunk) = arena.take() else { break };
            self.lend(chunk);
        }
        self.publish();
    }
}

impl Drop for Buffers {
    fn drop(&mut self) {
        // SAFETY: mapped in `new` with this size; the ring that used it is gone (declared before it in `Ring`).
        unsafe { libc::munmap(self.entries.as_ptr().cast(), self.map_size) };
    }
}
