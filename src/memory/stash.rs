//! A few bytes kept aside in a block: half a message, or a short request that waits.

use super::{Arena, Block, Scratch, Slice};

/// Grows by blocks, up to a chunk.
#[derive(Default)]
pub struct Stash {
    block: Option<Block>,
    length: u32,
}

/// The arena is used up, or a chunk is too small.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Full;

impl Stash {
    /// Appends; all of it or nothing. For bytes of a server's: they must have room.
    pub fn add(&mut self, arena: &Arena, bytes: &[u8]) -> Result<(), Full> {
        self.add_with(bytes, |size| arena.block(size))
    }

    /// As [`Self::add`], for bytes of a client's: only while chunks are left for the servers' answers.
    pub fn add_spare(&mut self, arena: &Arena, bytes: &[u8]) -> Result<(), Full> {
        self.add_with(bytes, |size| arena.spare_block(size))
    }

    /// As [`Self::add_spare`], for a request that waits for a backend.
    pub fn add_waiting(&mut self, arena: &Arena, bytes: &[u8]) -> Result<(), Full> {
        self.add_with(bytes, |size| arena.waiting_block(size))
    }

    fn add_with(&mut self, bytes: &[u8], block: impl FnOnce(usize) -> Option<Block>) -> Result<(), Full> {
        let end = self.len() + bytes.len();
        if self.block.as_ref().is_none_or(|block| block.size() < end) {
            let mut larger = block(end).ok_or(Full)?;
            larger.bytes_mut()[..self.len()].copy_from_slice(self.bytes());
            self.block = Some(larger);
        }
        let block = self.block.as_mut().expect("there is one of the size");
        block.bytes_mut()[self.length as usize..end].copy_from_slice(bytes);
        self.length = end as u32;
        Ok(())
    }

    /// What is kept.
    pub fn bytes(&self) -> &[u8] {
        self.block.as_ref().map_or(&[], |block| &block.bytes()[..self.length as usize])
    }

    /// Bytes kept.
    #[inline]
    pub fn len(&self) -> usize {
        self.length as usize
    }

    /// Whether nothing is kept.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// Moves what is kept into a slice that can be sent. `None`: no chunk is to be had, and it stays.
    pub fn take(&mut self, scratch: &mut Scratch) -> Option<Slice> {
        let slice = scratch.copy(self.bytes())?;
        self.clear();
        Some(slice)
    }

    /// As [`Self::take`], of what may be a secret: nothing of it stays in the block, nor for long in the slice's chunk.
    pub fn take_secret(&mut self, scratch: &mut Scratch) -> Option<Slice> {
        let slice = scratch.copy(self.bytes())?;
        slice.hold_secret();
        if let Some(block) = &mut self.block {
            block.bytes_mut()[..self.length as usize].fill(0);
        }
        self.clear();
        Some(slice)
    }

    /// Gives the block back.
    pub fn clear(&mut self) {
        self.block = None;
        self.length = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_grows_and_gives_back() {
        let arena = Arena::new(8192, 4).unwrap();
        let mut scratch = Scratch::new(&arena);
        let mut stash = Stash::default();
        for _ in 0..10 {
            stash.add(&arena, &[5; 100]).unwrap();
        }
        assert_eq!(stash.add(&arena, &[0; 8192]), Err(Full));
        assert_eq!(stash.bytes(), [5; 1000]);
        assert_eq!(&*stash.take(&mut scratch).unwrap(), [5; 1000]);
        assert!(stash.is_empty());
        scratch.rest();
        assert_eq!(arena.free_count(), 4);
    }

    #[test]
    fn what_waits_and_is_short_has_room_where_others_have_none() {
        let arena = Arena::new(8192, 16).unwrap();
        arena.set_floor(6);
        let held: Vec<_> = (0..10).map(|_| arena.take().expect("it is free")).collect();
        assert!(!arena.has_room() && !arena.has_spare());
        let mut stash = Stash::default();
        assert_eq!(stash.add_spare(&arena, &[5; 100]), Err(Full));
        assert_eq!(stash.add_waiting(&arena, &[5; 129]), Err(Full), "long");
        stash.add_waiting(&arena, &[5; 100]).unwrap();
        assert_eq!(arena.free_count(), 5);
        // Half of the floor stays, whoever waits.
        let many: Vec<_> = (0..1000)
            .map_while(|_| {
                let mut stash = Stash::default();
                stash.add_waiting(&arena, &[5; 100]).ok().map(|()| stash)
            })
            .collect();
        assert_eq!((many.len(), arena.free_count()), (3 * 8192 / 256 - 1, 3));
        drop((stash, many));
        assert_eq!(arena.free_count(), 6);
        drop(held);
    }
}
