//! The shard's slice of the arena: one mapping, touched at start, cut into chunks that are lent and counted.
//!
//! Invariant: a chunk is on the free list exactly while nobody holds it. Owned by one shard; nothing here crosses cores
//! (the types are `!Send` by their `Rc`).

use std::cell::{Cell, RefCell};
use std::io;
use std::ops::Deref;
use std::ptr::NonNull;
use std::rc::Rc;

use super::block::Classes;

/// The chunks of one shard. Cloning gives another handle to the same arena.
#[derive(Clone)]
pub struct Arena {
    inner: Rc<Inner>,
}

/// In the count of a chunk's holders: there is a secret in it, and the last holder wipes it.
const SECRET: u32 = 1 << 31;

pub(super) struct Inner {
    base: NonNull<u8>,
    chunk_size: usize,
    /// How many hold each chunk, with [`SECRET`].
    holders: Box<[Cell<u32>]>,
    /// Last in, first out: the chunk returned last is still in the cache.
    free: RefCell<Vec<u32>>,
    in_use_peak: Cell<u32>,
    floor: Cell<usize>,
    block_floor: Cell<usize>,
    pub(super) classes: RefCell<Classes>,
}

/// What is short is at most a chunk divided by this.
const SHORT_PARTS: usize = 64;

/// A chunk held by someone; it goes back to the arena when the last holder lets go.
pub struct Chunk {
    inner: Rc<Inner>,
    index: u32,
}

/// Bytes of a chunk that will not change any more. Holding one holds the chunk.
#[derive(Clone)]
pub struct Slice {
    chunk: Chunk,
    start: u32,
    length: u32,
}

impl Arena {
    /// Maps and touches `count` chunks of `chunk_size` bytes. Errors: the kernel's, when memory is not to be had.
    pub fn new(chunk_size: usize, count: usize) -> io::Result<Self> {
        assert!(chunk_size > 0 && count > 0);
        assert!(u32::try_from(chunk_size).is_ok() && u32::try_from(count).is_ok());
        let size = chunk_size.checked_mul(count).ok_or(io::ErrorKind::OutOfMemory)?;
        // SAFETY: a fresh anonymous mapping that overlaps nothing; the result is checked before use.
        let base = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                size,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            )
        };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the range is the mapping made above; both calls only advise or touch it.
        unsafe {
            libc::madvise(base, size, libc::MADV_HUGEPAGE);
            std::ptr::write_bytes(base.cast::<u8>(), 0, size);
        }
        let base = NonNull::new(base.cast::<u8>()).expect("mmap does not map address zero");
        let inner = Inner {
            base,
            chunk_size,
            holders: (0..count).map(|_| Cell::new(0)).collect(),
            free: RefCell::new((0..count as u32).rev().collect()),
            in_use_peak: Cell::new(0),
            floor: Cell::new(0),
            block_floor: Cell::new(0),
            classes: RefCell::new(Classes::new(chunk_size, count)),
        };
        Ok(Self { inner: Rc::new(inner) })
    }

    /// Takes a chunk; `None` when all are in use.
    #[inline]
    pub fn take(&self) -> Option<Chunk> {
        let mut free = self.inner.free.borrow_mut();
        let index = free.pop()?;
        let in_use = (self.inner.holders.len() - free.len()) as u32;
        if in_use > self.inner.in_use_peak.get() {
            self.inner.in_use_peak.set(in_use);
        }
        let holders = &self.inner.holders[index as usize];
        assert_eq!(holders.get(), 0, "a free chunk has no holder");
        holders.set(1);
        drop(free);
        Some(Chunk { inner: self.inner.clone(), index })
    }

    /// A block of at least `size` bytes, cut from a chunk that holds only blocks; `None` when the arena is used up or
    /// `size` is above the chunk size.
    pub fn block(&self, size: usize) -> Option<super::Block> {
        super::block::take(self, size)
    }

    /// As [`Self::block`], but only while chunks are left for what is more urgent (see [`Self::set_floor`]).
    pub fn spare_block(&self, size: usize) -> Option<super::Block> {
        super::block::take_above(self, size, self.inner.block_floor.get())
    }

    /// As [`Self::spare_block`], for a request that waits. What is short may go half of the way below the floor: one chunk
    /// keeps many of them, and gives back the chunk that each came in.
    pub fn waiting_block(&self, size: usize) -> Option<super::Block> {
        let is_short = size * SHORT_PARTS <= self.chunk_size();
        let floor = if is_short { self.inner.floor.get() / 2 } else { self.inner.block_floor.get() };
        super::block::take_above(self, size, floor)
    }

    /// So many chunks are left to backends and to messages of our own. [`Self::spare_block`] leaves an eighth of all alone
    /// besides: where there are no blocks there is still room to receive into.
    pub fn set_floor(&self, floor: usize) {
        self.inner.floor.set(floor);
        self.inner.block_floor.set(floor + self.chunk_count() / 8);
    }

    /// Chunks that nobody holds.
    #[inline]
    pub fn free_count(&self) -> usize {
        self.inner.free.borrow().len()
    }

    /// Whether more than half is in use: from there on nobody is given more than it can pass on at once.
    #[inline]
    pub fn is_tight(&self) -> bool {
        self.free_count() * 2 < self.chunk_count()
    }

    /// Whether [`Self::spare_block`] may take another chunk.
    pub fn has_spare(&self) -> bool {
        self.free_count() > self.inner.block_floor.get()
    }

    /// Whether clients can be received from into another chunk.
    pub fn has_room(&self) -> bool {
        self.free_count() > self.inner.floor.get()
    }

    /// All chunks.
    pub fn chunk_count(&self) -> usize {
        self.inner.holders.len()
    }

    /// Bytes of one chunk.
    #[inline]
    pub fn chunk_size(&self) -> usize {
        self.inner.chunk_size
    }

    /// The most chunks that were in use at once.
    pub fn in_use_peak(&self) -> usize {
        self.inner.in_use_peak.get() as usize
    }

    pub(super) fn inner(&self) -> &Inner {
        &self.inner
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        // SAFETY: made by `mmap` with this size in `Arena::new`; no `Chunk` is left, since each holds the `Rc`.
        unsafe {
            libc::munmap(self.base.as_ptr().cast(), self.chunk_size * self.holders.len());
        }
    }
}

impl Clone for Chunk {
    #[inline]
    fn clone(&self) -> Self {
        let holders = &self.inner.holders[self.index as usize];
        holders.set(holders.get().checked_add(1).expect("fewer holders than pieces of a chunk"));
        Self { inner: self.inner.clone(), index: self.index }
    }
}

impl Drop for Chunk {
    #[inline]
    fn drop(&mut self) {
        let holders = &self.inner.holders[self.index as usize];
        debug_assert!(holders.get() & !SECRET > 0, "a held chunk has a holder");
        let left = holders.get() - 1;
        holders.set(left);
        if left & !SECRET == 0 {
            if left != 0 {
                self.wipe();
            }
            self.inner.free.borrow_mut().push(self.index);
        }
    }
}

impl Chunk {
    /// First byte of the chunk. Whoever writes through it keeps the module's invariant.
    #[inline]
    pub(crate) fn pointer(&self) -> *mut u8 {
        // SAFETY: `index` is below the count, so the offset stays within the mapping.
        unsafe { self.inner.base.as_ptr().add(self.index as usize * self.inner.chunk_size) }
    }

    /// Bytes of the chunk.
    #[inline]
    pub fn size(&self) -> usize {
        self.inner.chunk_size
    }

    /// Whether nobody else holds this chunk.
    #[inline]
    pub fn is_sole(&self) -> bool {
        self.inner.holders[self.index as usize].get() & !SECRET == 1
    }

    /// For the last holder.
    #[cold]
    fn wipe(&self) {
        // SAFETY: the chunk lies within the mapping, and nobody else holds it: no slice shows what is written over.
        unsafe { std::ptr::write_bytes(self.pointer(), 0, self.inner.chunk_size) };
        self.inner.holders[self.index as usize].set(0);
    }

    pub(super) fn index(&self) -> u32 {
        self.index
    }

    pub(super) fn inner(&self) -> &Inner {
        &self.inner
    }

    /// The chunk's first `length` bytes, which will not be written again while the slice lives.
    #[inline]
    pub(crate) fn filled(self, length: usize) -> Slice {
        assert!(length <= self.inner.chunk_size);
        Slice { chunk: self, start: 0, length: length as u32 }
    }

    /// Bytes `start..start + length`, which will not be written again while the slice lives.
    #[inline]
    pub(super) fn slice(&self, start: usize, length: usize) -> Slice {
        assert!(start + length <= self.inner.chunk_size);
        Slice { chunk: self.clone(), start: start as u32, length: length as u32 }
    }
}

impl Inner {
    pub(super) fn chunk_size(&self) -> usize {
        self.chunk_size
    }
}

impl Slice {
    /// The part `start..end` of this slice.
    #[inline]
    #[must_use]
    pub fn part(&self, start: usize, end: usize) -> Self {
        assert!(start <= end && end <= self.length as usize);
        Self { chunk: self.chunk.clone(), start: self.start + start as u32, length: (end - start) as u32 }
    }

    /// There is a secret in it: its chunk is wiped before anybody else gets it.
    pub fn hold_secret(&self) {
        let holders = &self.chunk.inner.holders[self.chunk.index as usize];
        holders.set(holders.get() | SECRET);
    }

    /// Drops the first `count` bytes.
    #[inline]
    pub fn advance(&mut self, count: usize) {
        assert!(count <= self.length as usize);
        self.start += count as u32;
        self.length -= count as u32;
    }

    /// Grows by `next` if that follows at once in the same chunk; gives it back if not.
    #[inline]
    pub fn join(&mut self, next: Self) -> Result<(), Self> {
        if self.chunk.index == next.chunk.index && self.start + self.length == next.start {
            self.length += next.length;
            return Ok(());
        }
        Err(next)
    }
}

impl Deref for Slice {
    type Target = [u8];

    #[inline]
    fn deref(&self) -> &[u8] {
        // SAFETY: the range lies within the chunk (checked when made), was initialised at the latest by the zeroing in
        // `Arena::new`, and is not written while a slice of it lives (the module's invariant).
        unsafe { std::slice::from_raw_parts(self.chunk.pointer().add(self.start as usize), self.length as usize) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chunk_returns_when_its_last_holder_goes() {
        let arena = Arena::new(4096, 2).unwrap();
        let first = arena.take().unwrap();
        let second = arena.take().unwrap();
        assert!(arena.take().is_none());
        let slice = first.filled(10);
        let part = slice.part(2, 5);
        drop(slice);
        assert_eq!(arena.free_count(), 0);
        assert_eq!(part.len(), 3);
        drop(part);
        assert_eq!(arena.free_count(), 1);
        drop(second);
        assert_eq!((arena.free_count(), arena.in_use_peak()), (2, 2));
    }

    #[test]
    fn a_secret_is_wiped_when_its_last_holder_goes() {
        let arena = Arena::new(4096, 1).unwrap();
        let shown = |bytes: &[u8]| {
            let chunk = arena.take().unwrap();
            // SAFETY: the chunk is ours alone, and as long as that.
            unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), chunk.pointer(), bytes.len()) };
            chunk.filled(bytes.len())
        };
        let before = || arena.take().unwrap().filled(9).to_vec();
        let slice = shown(b"a message");
        drop(slice);
        assert_eq!(before(), b"a message", "what is no secret is left there");
        let slice = shown(b"pencil!!!");
        let part = slice.part(0, 6);
        part.hold_secret();
        drop(part);
        assert_eq!((&slice[..], slice.chunk.is_sole()), (&b"pencil!!!"[..], true), "somebody holds it");
        drop(slice);
        assert_eq!(before(), [0; 9]);
        assert_eq!(arena.free_count(), 1);
    }

    #[test]
    fn only_neighbours_join() {
        let arena = Arena::new(4096, 2).unwrap();
        let whole = arena.take().unwrap().filled(100);
        let other = arena.take().unwrap().filled(100);
        let mut left = whole.part(0, 10);
        assert!(left.join(whole.part(11, 20)).is_err());
        assert!(left.join(other.part(10, 20)).is_err());
        assert!(left.join(whole.part(10, 20)).is_ok());
        assert_eq!(left.len(), 20);
    }
}
