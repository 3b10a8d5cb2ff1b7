//! Blocks: pieces of a chunk for what is short and stays a while (a request that waits, half a message, a client's
//! statement names), so that it does not sit in a whole chunk.
//!
//! Invariant: a chunk is cut into blocks of one class; it goes back to the arena with its last block.

use super::arena::{Arena, Chunk};

/// Block sizes, smallest first; what is larger gets a whole chunk.
const SIZES: [usize; 4] = [256, 1024, 4096, 16384];
const NONE: u32 = u32::MAX;

/// Some bytes of the arena that one owner may read and write.
pub struct Block {
    chunk: Chunk,
    start: u32,
    class: Class,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Class {
    Cut(u8),
    Whole,
}

/// Which chunks are cut, and into what.
pub(super) struct Classes {
    cuts: Box<[Cut]>,
    /// For each class the first of the chunks that have a free block.
    partial: [u32; SIZES.len()],
}

#[derive(Clone)]
struct Cut {
    /// Keeps the chunk out of the free list while any block of it is lent or free.
    chunk: Option<ChunkHold>,
    lent: u16,
    /// Blocks below this index have been lent before; the rest are untouched.
    fresh: u16,
    /// Head of the list of blocks that came back; the next index stands in the block's first bytes.
    returned: u16,
    previous: u32,
    next: u32,
}

/// Wraps the chunk so that `Cut` can be cloned when the table is made (empty).
struct ChunkHold(Chunk);

impl Clone for ChunkHold {
    fn clone(&self) -> Self {
        unreachable!("only empty cuts are cloned")
    }
}

const NO_BLOCK: u16 = u16::MAX;

impl Classes {
    pub(super) fn new(chunk_size: usize, count: usize) -> Self {
        assert!(chunk_size / SIZES[0] < NO_BLOCK as usize);
        let empty = Cut { chunk: None, lent: 0, fresh: 0, returned: NO_BLOCK, previous: NONE, next: NONE };
        Self { cuts: vec![empty; count].into_boxed_slice(), partial: [NONE; SIZES.len()] }
    }

    fn link(&mut self, class: usize, index: u32) {
        let head = self.partial[class];
        self.cuts[index as usize].next = head;
        self.cuts[index as usize].previous = NONE;
        if head != NONE {
            self.cuts[head as usize].previous = index;
        }
        self.partial[class] = index;
    }

    fn unlink(&mut self, class: usize, index: u32) {
        let (previous, next) = (self.cuts[index as usize].previous, self.cuts[index as usize].next);
        if previous == NONE {
            self.partial[class] = next;
        } else {
            self.cuts[previous as usize].next = next;
        }
        if next != NONE {
            self.cuts[next as usize].previous = previous;
        }
    }
}

pub(super) fn take(arena: &Arena, size: usize) -> Option<Block> {
    take_above(arena, size, 0)
}

/// As [`take`]; a new chunk is taken only if more than `floor` are free.
pub(super) fn take_above(arena: &Arena, size: usize, floor: usize) -> Option<Block> {
    let chunk_size = arena.inner().chunk_size();
    let Some(class) = SIZES.iter().position(|&class_size| size <= class_size && class_size * 4 <= chunk_size) else {
        if size > chunk_size || arena.free_count() <= floor {
            return None;
        }
        let chunk = arena.take()?;
        return Some(Block { chunk, start: 0, class: Class::Whole });
    };
    let block_size = SIZES[class];
    let per_chunk = (chunk_size / block_size) as u16;
    let mut index = arena.inner().classes.borrow().partial[class];
    if index == NONE {
        if arena.free_count() <= floor {
            return None;
        }
        let chunk = arena.take()?;
        index = chunk.index();
        let mut classes = arena.inner().classes.borrow_mut();
        let cut = &mut classes.cuts[index as usize];
        assert!(cut.chunk.is_none() && cut.lent == 0, "a chunk that was free is not cut");
        *cut = Cut { chunk: Some(ChunkHold(chunk)), lent: 0, fresh: 0, returned: NO_BLOCK, previous: NONE, next: NONE };
        classes.link(class, index);
    }
    let mut classes = arena.inner().classes.borrow_mut();
    let cut = &mut classes.cuts[index as usize];
    let chunk = cut.chunk.as_ref().expect("a chunk with free blocks is cut").0.clone();
    let position = if cut.returned == NO_BLOCK {
        cut.fresh += 1;
        cut.fresh - 1
    } else {
        let position = cut.returned;
        // SAFETY: the block is free, so nobody reads or writes it; its first two bytes hold the next index.
        cut.returned = unsafe { chunk.pointer().add(position as usize * block_size).cast::<u16>().read_unaligned() };
        position
    };
    cut.lent += 1;
    if cut.returned == NO_BLOCK && cut.fresh == per_chunk {
        classes.unlink(class, index);
    }
    drop(classes);
    let start = position as u32 * block_size as u32;
    Some(Block { chunk, start, class: Class::Cut(class as u8) })
}

impl Block {
    /// Bytes of the block; at least what was asked for.
    pub fn size(&self) -> usize {
        match self.class {
            Class::Cut(class) => SIZES[class as usize],
            Class::Whole => self.chunk.size(),
        }
    }

    /// The block's bytes.
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: the range belongs to this block alone until it is dropped.
        unsafe { std::slice::from_raw_parts(self.chunk.pointer().add(self.start as usize), self.size()) }
    }

    /// The block's bytes, to be written.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: the range belongs to this block alone until it is dropped, and `self` is borrowed for writing.
        unsafe { std::slice::from_raw_parts_mut(self.chunk.pointer().add(self.start as usize), self.size()) }
    }

    /// Copies `bytes` to `at`, and touches nothing else of the block: the kernel may be reading what lies before it.
    pub(super) fn fill(&mut self, at: usize, bytes: &[u8]) {
        assert!(at + bytes.len() <= self.size());
        // SAFETY: the range lies within this block, which belongs to its owner alone, and `self` is borrowed for writing.
        unsafe {
            let target = self.chunk.pointer().add(self.start as usize + at);
            std::ptr::copy_nonoverlapping(bytes.as_ptr(), target, bytes.len());
        }
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        let Class::Cut(class) = self.class else { return };
        let class = class as usize;
        let index = self.chunk.index();
        let per_chunk = (self.chunk.inner().chunk_size() / SIZES[class]) as u16;
        let mut classes = self.chunk.inner().classes.borrow_mut();
        let cut = &mut classes.cuts[index as usize];
        let was_full = cut.returned == NO_BLOCK && cut.fresh == per_chunk;
        // SAFETY: the block is ours until this function ends and has room for two bytes.
        unsafe { self.chunk.pointer().add(self.start as usize).cast::<u16>().write_unaligned(cut.returned) };
        cut.returned = (self.start as usize / SIZES[class]) as u16;
        cut.lent -= 1;
        if cut.lent > 0 {
            if was_full {
                classes.link(class, index);
            }
            return;
        }
        let hold = cut.chunk.take();
        if !was_full {
            classes.unlink(class, index);
        }
        drop(classes);
        drop(hold);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_last_block_returns_the_chunk() {
        let arena = Arena::new(66560, 2).unwrap();
        let blocks: Vec<_> = (0..260).map(|_| arena.block(200).unwrap()).collect();
        assert_eq!(arena.free_count(), 1);
        let one_more = arena.block(256).unwrap();
        assert_eq!(arena.free_count(), 0);
        assert!(arena.block(1000).is_none());
        drop(blocks);
        assert_eq!(arena.free_count(), 1);
        drop(one_more);
        assert_eq!(arena.free_count(), 2);
    }

    #[test]
    fn what_is_larger_than_a_chunk_is_refused() {
        let arena = Arena::new(8192, 2).unwrap();
        assert!(arena.block(8193).is_none());
        assert_eq!(arena.block(8192).unwrap().size(), 8192);
    }

    proptest! {
        /// Whatever is taken and dropped in whatever order, no two blocks share a byte and nothing is lost.
        #[test]
        fn blocks_never_overlap(steps in proptest::collection::vec((1usize..6000, any::<u8>(), any::<bool>()), 1..300)) {
            let arena = Arena::new(16384, 16).unwrap();
            let mut held: Vec<(Block, u8)> = Vec::new();
            for (size, mark, keep) in steps {
                if keep {
                    if let Some(mut block) = arena.block(size) {
                        prop_assert!(block.size() >= size);
                        block.bytes_mut().fill(mark);
                        held.push((block, mark));
                    }
                } else if !held.is_empty() {
                    let (block, mark) = held.swap_remove(mark as usize % held.len());
                    prop_assert!(block.bytes().iter().all(|&byte| byte == mark));
                }
            }
            for (block, mark) in &held {
                prop_assert!(block.bytes().iter().all(|byte| byte == mark));
            }
            held.clear();
            prop_assert_eq!(arena.free_count(), 16);
        }
    }
}
