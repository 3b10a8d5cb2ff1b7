//! What is to be sent to one connection: slices in order, in nodes of a table that the whole shard shares.
//!
//! Invariant: `bytes` is the sum of the slices' lengths and `pieces` their number.

use super::arena::Slice;

const NONE: u32 = u32::MAX;

/// The nodes of all outboxes of a shard; the number is fixed at start.
pub struct Nodes {
    nodes: Box<[Node]>,
    free: u32,
    free_count: u32,
}

struct Node {
    slice: Option<Slice>,
    next: u32,
}

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
        let nodes = (0..count).map(|index| Node { slice: None, next: next(index) }).collect();
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
        node.slice = None;
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
            let tail = nodes.nodes[self.tail as usize].slice.as_mut().expect("a queued node holds a slice");
            match tail.join(slice) {
                Ok(()) => {
                    self.bytes += length;
                    return Ok(());
                }
                Err(slice) => slice,
            }
        };
        let index = nodes.free;
        if index == NONE {
            return Err(Full);
        }
        let node = &mut nodes.nodes[index as usize];
        nodes.free = node.next;
        nodes.free_count -= 1;
        node.slice = Some(slice);
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
    pub fn iter<'a>(&self, nodes: &'a Nodes) -> impl Iterator<Item = &'a Slice> {
        let mut at = self.head;
        std::iter::from_fn(move || {
            let node = nodes.nodes.get(at as usize)?;
            at = node.next;
            Some(node.slice.as_ref().expect("a queued node holds a slice"))
        })
    }

    /// Removes the first `count` bytes: they were sent.
    pub fn consume(&mut self, nodes: &mut Nodes, mut count: usize) {
        assert!(count <= self.bytes as usize, "no more is sent than was queued");
        self.bytes -= count as u32;
        while count > 0 {
            let node = &mut nodes.nodes[self.head as usize];
            let slice = node.slice.as_mut().expect("a queued node holds a slice");
            if slice.len() > count {
                slice.advance(count);
                return;
            }
            count -= slice.len();
            let next = node.next;
            nodes.give_back(self.head);
            self.head = next;
            self.pieces -= 1;
        }
        if self.head == NONE {
            self.tail = NONE;
        }
    }

    /// Takes the first piece out.
    pub fn pop(&mut self, nodes: &mut Nodes) -> Option<Slice> {
        let slice = self.iter(nodes).next()?.clone();
        self.consume(nodes, slice.len());
        Some(slice)
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
}
