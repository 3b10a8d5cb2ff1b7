//! What is to be sent to one connection: slices in order, in nodes of a table that the whole shard shares.
//!
//! Invariant: `bytes` is the sum of the slices' lengths and `pieces` their number.

use super::arena::{Arena, Slice};
use super::block::Block;

const NONE: u32 = u32::MAX;

/// The nodes of all outboxes of a shard; the number is fixed at start.
pub struct Nodes {
    nodes: Box<[Node]>,
    free: u32,
    free_count: u32,
}

struct Node {
    piece: Option<Piece>,
    next: u32,
}

/// Bytes that wait in an outbox.
pub enum Piece {
    /// Where they were received or written; the whole chunk is held for them.
    Shared(Slice),
    /// Copied aside, because they stay.
    Kept(Kept),
}

/// Bytes `start..end` of a block of their own.
pub struct Kept {
    block: Block,
    start: u16,
    end: u16,
}

impl std::ops::Deref for Piece {
    type Target = [u8];

    #[inline]
    fn deref(&self) -> &[u8] {
        match self {
            Self::Shared(slice) => slice,
            Self::Kept(kept) => &kept.block.bytes()[kept.start as usize..kept.end as usize],
        }
    }
}

impl Piece {
    #[inline]
    fn advance(&mut self, count: usize) {
        match self {
            Self::Shared(slice) => slice.advance(count),
            Self::Kept(kept) => {
                assert!(count <= (kept.end - kept.start) as usize);
                kept.start += count as u16;
            }
        }
    }
}

/// A block that small pieces are gathered in has at least this size.
const GATHERED_MIN: usize = 1024;
/// The largest block that is cut from a chunk; more bytes than this go into several.
const KEPT_MAX: usize = 16 * 1024;
const _: () = assert!(KEPT_MAX <= u16::MAX as usize);

/// The queue of one connection.
pub struct Outbox {
    head: u32,
    tail: u32,
    pieces: u32,
    bytes: u32,
}

/// All nodes are in use: the one who wanted to send cannot be served now.
#[derive(Debug)]
pub struct Full;

impl Nodes {
    /// `count` free nodes, touched.
    pub fn new(count: usize) -> Self {
        assert!(count > 0 && count < NONE as usize);
        let next = |index: usize| if index + 1 == count { NONE } else { index as u32 + 1 };
        let nodes = (0..count).map(|index| Node { piece: None, next: next(index) }).collect();
        Self { nodes, free: 0, free_count: count as u32 }
    }

    /// Bytes of one node, for the sums.
    pub const fn node_size() -> usize {
        size_of::<Node>()
    }

    /// Nodes not in use.
    pub fn free_count(&self) -> usize {
        self.free_count as usize
    }

    fn give_back(&mut self, index: u32) {
        let node = &mut self.nodes[index as usize];
        node.piece = None;
        node.next = self.free;
        self.free = index;
        self.free_count += 1;
    }
}

impl Default for Outbox {
    fn default() -> Self {
        Self { head: NONE, tail: NONE, pieces: 0, bytes: 0 }
    }
}

impl Outbox {
    /// Appends `slice`. `keep_tail`: the last piece may be in the kernel's hands, so do not grow it.
    #[inline]
    pub fn push(&mut self, nodes: &mut Nodes, slice: Slice, keep_tail: bool) -> Result<(), Full> {
        let length = slice.len() as u32;
        debug_assert!(length > 0);
        let slice = if self.tail == NONE || keep_tail {
            slice
        } else {
            match nodes.nodes[self.tail as usize].piece.as_mut().expect("a queued node holds a piece") {
                Piece::Shared(tail) => match tail.join(slice) {
                    Ok(()) => {
                        self.bytes += length;
                        return Ok(());
                    }
                    Err(slice) => slice,
                },
                Piece::Kept(_) => slice,
            }
        };
        self.append(nodes, Piece::Shared(slice))
    }

    fn append(&mut self, nodes: &mut Nodes, piece: Piece) -> Result<(), Full> {
        let length = piece.len() as u32;
        let index = nodes.free;
        if index == NONE {
            return Err(Full);
        }
        let node = &mut nodes.nodes[index as usize];
        nodes.free = node.next;
        nodes.free_count -= 1;
        node.piece = Some(piece);
        node.next = NONE;
        if self.tail == NONE {
            self.head = index;
        } else {
            nodes.nodes[self.tail as usize].next = index;
        }
        self.tail = index;
        self.pieces += 1;
        self.bytes += length;
        Ok(())
    }

    /// The pieces from the first.
    pub fn iter<'a>(&self, nodes: &'a Nodes) -> impl Iterator<Item = &'a Piece> {
        let mut at = self.head;
        std::iter::from_fn(move || {
            let node = nodes.nodes.get(at as usize)?;
            at = node.next;
            Some(node.piece.as_ref().expect("a queued node holds a piece"))
        })
    }

    /// Removes the first `count` bytes: they were sent.
    pub fn consume(&mut self, nodes: &mut Nodes, mut count: usize) {
        assert!(count <= self.bytes as usize, "no more is sent than was queued");
        self.bytes -= count as u32;
        while count > 0 {
            let node = &mut nodes.nodes[self.head as usize];
            let piece = node.piece.as_mut().expect("a queued node holds a piece");
            if piece.len() > count {
                piece.advance(count);
                return;
            }
            count -= piece.len();
            let next = node.next;
            nodes.give_back(self.head);
            self.head = next;
            self.pieces -= 1;
        }
        if self.head == NONE {
            self.tail = NONE;
        }
    }

    /// Takes the first piece out of an outbox that nothing was kept aside in.
    pub fn pop(&mut self, nodes: &mut Nodes) -> Option<Slice> {
        let Piece::Shared(slice) = self.iter(nodes).next()? else { unreachable!("nothing was kept aside") };
        let slice = slice.clone();
        self.consume(nodes, slice.len());
        Some(slice)
    }

    /// Appends a copy of `bytes`, in the last piece's block if that has room. For what is short and comes while the
    /// pieces before it do not leave: each would hold a whole chunk otherwise. `false`: no block or node is to be had.
    pub fn gather(&mut self, nodes: &mut Nodes, arena: &Arena, bytes: &[u8]) -> bool {
        assert!(bytes.len() <= KEPT_MAX);
        if self.tail != NONE
            && let Some(Piece::Kept(kept)) = &mut nodes.nodes[self.tail as usize].piece
            && kept.block.size().min(KEPT_MAX) - kept.end as usize >= bytes.len()
        {
            let end = kept.end as usize + bytes.len();
            // Above `end`, where nobody reads, even while what is below it is in the kernel's hands.
            kept.block.fill(kept.end as usize, bytes);
            kept.end = end as u16;
            self.bytes += bytes.len() as u32;
            return true;
        }
        let Some(kept) = keep(arena, bytes.len().max(GATHERED_MIN), bytes) else { return false };
        self.append(nodes, kept).is_ok()
    }

    /// Copies all pieces into blocks of their own, if that makes chunks free; nothing of it may be in the kernel's
    /// hands. What there is no block for stays where it is.
    pub fn compact(&mut self, nodes: &mut Nodes, arena: &Arena) {
        let mut old = std::mem::take(self);
        while old.head != NONE {
            let shared = matches!(nodes.nodes[old.head as usize].piece, Some(Piece::Shared(_)));
            // Whole blocks, over the borders of pieces; what fits into none is moved as it is.
            let size = old.bytes().min(KEPT_MAX);
            let held = old.pieces() * arena.chunk_size();
            let worth = shared && (size < KEPT_MAX || held > 2 * old.bytes());
            // A part of a large piece needs a node more than there was.
            if worth
                && nodes.free_count > 0
                && let Some(mut block) = arena.spare_block(size)
            {
                let mut at = 0;
                for piece in old.iter(nodes) {
                    let count = piece.len().min(size - at);
                    block.fill(at, &piece[..count]);
                    at += count;
                    if at == size {
                        break;
                    }
                }
                old.consume(nodes, size);
                let kept = Piece::Kept(Kept { block, start: 0, end: size as u16 });
                self.append(nodes, kept).expect("a node is free");
                continue;
            }
            let head = old.head;
            let node = &mut nodes.nodes[head as usize];
            let (piece, next) = (node.piece.take().expect("a queued node holds a piece"), node.next);
            old.bytes -= piece.len() as u32;
            old.pieces -= 1;
            old.head = next;
            nodes.give_back(head);
            self.append(nodes, piece).expect("its own node was given back");
        }
    }

    /// Drops everything.
    pub fn clear(&mut self, nodes: &mut Nodes) {
        self.consume(nodes, self.bytes as usize);
        debug_assert!(self.pieces == 0 && self.head == NONE);
    }

    /// Replaces all pieces by one with the same bytes.
    pub fn replace(&mut self, nodes: &mut Nodes, slice: Slice) {
        assert_eq!(slice.len(), self.bytes as usize);
        self.clear(nodes);
        self.push(nodes, slice, true).expect("at least one node was given back");
    }

    /// Whether any piece holds a chunk that others could use.
    pub fn is_shared(&self, nodes: &Nodes) -> bool {
        self.iter(nodes).any(|piece| matches!(piece, Piece::Shared(_)))
    }

    /// Bytes queued.
    #[inline]
    pub fn bytes(&self) -> usize {
        self.bytes as usize
    }

    /// Pieces queued.
    #[inline]
    pub fn pieces(&self) -> usize {
        self.pieces as usize
    }

    /// Whether nothing is queued.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.head == NONE
    }
}

fn keep(arena: &Arena, room: usize, bytes: &[u8]) -> Option<Piece> {
    let mut block = arena.spare_block(room)?;
    block.fill(0, bytes);
    Some(Piece::Kept(Kept { block, start: 0, end: bytes.len() as u16 }))
}

#[cfg(test)]
mod tests {
    use super::super::{Arena, Scratch};
    use super::*;

    #[test]
    fn pieces_join_are_sent_in_part_and_give_their_nodes_back() {
        let arena = Arena::new(4096, 2).unwrap();
        let mut scratch = Scratch::new(&arena);
        let mut nodes = Nodes::new(2);
        let mut outbox = Outbox::default();
        for word in [&b"one "[..], b"two "] {
            outbox.push(&mut nodes, scratch.copy(word).unwrap(), false).unwrap();
        }
        assert_eq!((outbox.pieces(), outbox.bytes()), (1, 8));
        outbox.push(&mut nodes, scratch.copy(b"three").unwrap(), true).unwrap();
        assert!(outbox.push(&mut nodes, scratch.copy(b"!").unwrap(), true).is_err());
        outbox.consume(&mut nodes, 5);
        let rest: Vec<u8> = outbox.iter(&nodes).flat_map(|slice| slice.to_vec()).collect();
        assert_eq!(rest, b"wo three");
        outbox.consume(&mut nodes, 3);
        assert_eq!((outbox.pieces(), nodes.free_count()), (1, 1));
        outbox.clear(&mut nodes);
        assert!(outbox.is_empty() && nodes.free_count() == 2);
        scratch.rest();
        drop(scratch);
        assert_eq!(arena.free_count(), 2);
    }

    #[test]
    fn short_pieces_behind_a_stuck_one_share_a_block() {
        let arena = Arena::new(66560, 8).unwrap();
        let mut nodes = Nodes::new(8);
        let mut outbox = Outbox::default();
        outbox.push(&mut nodes, arena.take().unwrap().filled(3), false).unwrap();
        let mut scratch = Scratch::new(&arena);
        let mut expected = vec![0; 3];
        for number in 0..100u8 {
            let piece = scratch.copy(&[number; 30]).unwrap();
            assert!(outbox.gather(&mut nodes, &arena, &piece));
            expected.extend([number; 30]);
        }
        scratch.rest();
        // Three blocks of 1 KB, all of one chunk, beside the chunk of the first.
        assert_eq!((outbox.pieces(), outbox.bytes(), arena.free_count()), (4, 3003, 6));
        let kept: Vec<u8> = outbox.iter(&nodes).flat_map(|piece| piece.to_vec()).collect();
        assert_eq!(kept, expected);
        outbox.consume(&mut nodes, 3003);
        assert_eq!((arena.free_count(), nodes.free_count()), (8, 8));
    }

    #[test]
    fn without_a_block_nothing_is_gathered() {
        let arena = Arena::new(8192, 3).unwrap();
        arena.set_floor(3);
        let (mut nodes, mut outbox) = (Nodes::new(2), Outbox::default());
        assert!(!outbox.gather(&mut nodes, &arena, b"short"));
        assert_eq!((outbox.bytes(), outbox.pieces()), (0, 0));
    }

    proptest::proptest! {
        /// Compacting changes no byte and holds no more chunks than before; all come back.
        #[test]
        fn compacting_keeps_the_bytes(sizes in proptest::collection::vec((1usize..66560, 0usize..66560), 1..12), sent in 0usize..1000) {
            let arena = Arena::new(66560, 32).unwrap();
            let (mut nodes, mut outbox) = (Nodes::new(16), Outbox::default());
            for &(size, skipped) in &sizes {
                let mut scratch = Scratch::new(&arena);
                let filled = scratch.write(size, |room| {
                    for (at, byte) in room.iter_mut().enumerate() {
                        *byte = (at * 7 + size) as u8;
                    }
                    size
                });
                let slice = filled.unwrap();
                outbox.push(&mut nodes, slice.part(skipped % size, size), true).unwrap();
            }
            outbox.consume(&mut nodes, sent % outbox.bytes());
            let before: Vec<u8> = outbox.iter(&nodes).flat_map(|piece| piece.to_vec()).collect();
            let free = arena.free_count();
            outbox.compact(&mut nodes, &arena);
            let after: Vec<u8> = outbox.iter(&nodes).flat_map(|piece| piece.to_vec()).collect();
            proptest::prop_assert!(before == after && outbox.bytes() == after.len());
            // One chunk more at most for each class of blocks.
            proptest::prop_assert!(arena.free_count() + 4 >= free);
            outbox.clear(&mut nodes);
            proptest::prop_assert_eq!((arena.free_count(), nodes.free_count()), (32, 16));
        }
    }
}
