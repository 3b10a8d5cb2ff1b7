//! Receives of a stream: several chunks at once, so that a large answer takes few receives and few sends.
//!
//! Invariant: the kernel may write to a slot's chunks, and reads its header, exactly between [`Bulk::begin`] and
//! [`Bulk::end`]; nobody else holds those chunks. The table never grows, so that headers stay where they are.

use crate::memory::{Arena, Chunk, Slice};

/// Chunks of one receive.
pub(super) const PIECES: usize = 4;
/// Such receives in flight at once; the streams beyond get one chunk at a time.
const SLOTS: usize = 16;

pub(super) struct Bulk {
    slots: Box<[Slot]>,
    free: Vec<u8>,
}

struct Slot {
    header: libc::msghdr,
    pieces: [libc::iovec; PIECES],
    chunks: [Option<Chunk>; PIECES],
}

impl Bulk {
    pub(super) fn new() -> Self {
        let slot = |_| Slot {
            // SAFETY: all-zero is a valid value of both C structs.
            header: unsafe { std::mem::zeroed() },
            // SAFETY: as above.
            pieces: unsafe { std::mem::zeroed() },
            chunks: [const { None }; PIECES],
        };
        Self { slots: (0..SLOTS).map(slot).collect(), free: (0..SLOTS as u8).rev().collect() }
    }

    /// Bytes of the table: slots, and the size of one.
    pub(super) const fn table_size() -> (usize, usize) {
        (SLOTS, size_of::<Slot>())
    }

    /// Lends chunks of `arena`, leaving `reserve` there and half of all. The slot, and what the kernel is to be told.
    pub(super) fn begin(&mut self, arena: &Arena, reserve: usize) -> Option<(u8, *mut libc::msghdr)> {
        let left = arena.free_count().checked_sub(PIECES)?;
        if left < reserve.max(arena.chunk_count() / 2) {
            return None;
        }
        let number = self.free.pop()?;
        let slot = &mut self.slots[number as usize];
        for (held, piece) in slot.chunks.iter_mut().zip(&mut slot.pieces) {
            let chunk = arena.take().expect("so many are free");
            *piece = libc::iovec { iov_base: chunk.pointer().cast(), iov_len: chunk.size() };
            *held = Some(chunk);
        }
        slot.header.msg_iov = slot.pieces.as_mut_ptr();
        slot.header.msg_iovlen = PIECES;
        Some((number, &raw mut slot.header))
    }

    /// The receive is through, with `size` bytes. What came goes to `take`, piece by piece; the other chunks go back.
    pub(super) fn end(&mut self, slot: u8, mut size: usize, mut take: impl FnMut(Slice)) {
        for chunk in &mut self.slots[slot as usize].chunks {
            let chunk = chunk.take().expect("lent when it was begun");
            let length = size.min(chunk.size());
            size -= length;
            if length > 0 {
                take(chunk.filled(length));
            }
        }
        assert_eq!(size, 0, "no more comes than there is room for");
        self.free.push(slot);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_come_back_with_what_was_received_or_at_once() {
        let arena = Arena::new(4096, 2 * PIECES + 1).unwrap();
        let mut bulk = Bulk::new();
        let (slot, header) = bulk.begin(&arena, 0).unwrap();
        assert_eq!(arena.free_count(), PIECES + 1);
        // SAFETY: the header stays where it is until the end.
        assert_eq!(unsafe { (*header).msg_iovlen }, PIECES);
        assert!(bulk.begin(&arena, 0).is_none(), "half of all is left alone");
        let mut sizes = Vec::new();
        let mut kept = Vec::new();
        bulk.end(slot, 4096 + 10, |slice| {
            sizes.push(slice.len());
            kept.push(slice);
        });
        assert_eq!(sizes, [4096, 10]);
        assert_eq!(arena.free_count(), 2 * PIECES - 1);
        drop(kept);
        assert!(bulk.begin(&arena, PIECES + 2).is_none(), "the reserve is left alone");
        let (slot, _) = bulk.begin(&arena, 0).unwrap();
        bulk.end(slot, 0, |_| panic!("nothing came"));
        assert_eq!(arena.free_count(), 2 * PIECES + 1);
    }
}
