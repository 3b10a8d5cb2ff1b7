//! Clients that wait for a backend: first come, first served, one queue a pool, links in one table of fixed size.

use std::time::Instant;

use crate::ids::ClientId;

const NONE: u32 = u32::MAX;

/// Links of all clients of a shard; a client stands in one queue at most.
pub struct Waiters {
    links: Box<[Link]>,
}

#[derive(Clone, Copy)]
struct Link {
    previous: u32,
    next: u32,
    generation: u32,
    since: Option<Instant>,
}

/// The queue of one pool's part.
#[derive(Clone, Copy, Debug)]
pub struct Queue {
    head: u32,
    tail: u32,
    length: u32,
}

impl Default for Queue {
    fn default() -> Self {
        Self { head: NONE, tail: NONE, length: 0 }
    }
}

impl Queue {
    /// Clients waiting.
    pub fn len(&self) -> usize {
        self.length as usize
    }

    /// Whether nobody waits.
    pub fn is_empty(&self) -> bool {
        self.length == 0
    }
}

impl Waiters {
    /// For client slots below `clients_max`.
    pub fn new(clients_max: usize) -> Self {
        let free = Link { previous: NONE, next: NONE, generation: 0, since: None };
        Self { links: vec![free; clients_max].into_boxed_slice() }
    }

    /// Bytes of one client's link, for the sums.
    pub const fn link_size() -> usize {
        size_of::<Link>()
    }

    /// The client at the head of a queue, and since when it waits.
    pub fn first(&self, queue: &Queue) -> Option<(ClientId, Instant)> {
        let link = self.links.get(queue.head as usize)?;
        Some((ClientId { index: queue.head, generation: link.generation }, link.since?))
    }

    /// Puts a client at the end.
    pub fn push(&mut self, queue: &mut Queue, client: ClientId, now: Instant) {
        let link = &mut self.links[client.index as usize];
        assert!(link.since.is_none(), "a client waits in one queue at most");
        *link = Link { previous: queue.tail, next: NONE, generation: client.generation, since: Some(now) };
        if queue.tail == NONE {
            queue.head = client.index;
        } else {
            self.links[queue.tail as usize].next = client.index;
        }
        queue.tail = client.index;
        queue.length += 1;
    }

    /// Takes the client that has waited longest.
    pub fn pop(&mut self, queue: &mut Queue) -> Option<(ClientId, Instant)> {
        let first = self.first(queue)?;
        self.remove(queue, first.0);
        Some(first)
    }

    /// Takes a client out wherever it stands; whether it stood there.
    pub fn remove(&mut self, queue: &mut Queue, client: ClientId) -> bool {
        let link = self.links[client.index as usize];
        if link.since.is_none() || link.generation != client.generation {
            return false;
        }
        self.links[client.index as usize].since = None;
        if link.previous == NONE {
            queue.head = link.next;
        } else {
            self.links[link.previous as usize].next = link.next;
        }
        if link.next == NONE {
            queue.tail = link.previous;
        } else {
            self.links[link.next as usize].previous = link.previous;
        }
        queue.length -= 1;
        true
    }

    /// Since when a client waits.
    pub fn since(&self, client: ClientId) -> Option<Instant> {
        let link = self.links.get(client.index as usize)?;
        if link.generation == client.generation { link.since } else { None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::VecDeque;

    proptest! {
        #[test]
        fn a_queue_is_a_queue(steps in proptest::collection::vec((0u32..8, 0u8..3), 0..200)) {
            let mut waiters = Waiters::new(8);
            let mut queue = Queue::default();
            let mut model: VecDeque<u32> = VecDeque::new();
            let now = Instant::now();
            for (index, what) in steps {
                let client = ClientId { index, generation: 3 };
                match what {
                    0 if !model.contains(&index) => {
                        waiters.push(&mut queue, client, now);
                        model.push_back(index);
                    }
                    1 => {
                        let stood = waiters.remove(&mut queue, client);
                        prop_assert_eq!(stood, model.contains(&index));
                        model.retain(|&other| other != index);
                    }
                    2 => {
                        let first = waiters.pop(&mut queue).map(|(client, _)| client.index);
                        prop_assert_eq!(first, model.pop_front());
                    }
                    _ => {}
                }
                prop_assert_eq!(queue.len(), model.len());
            }
        }
    }
}
