//! A table of fixed size whose slots are reused, with a generation that tells a slot's owners apart.

/// Slots for `T`, all taken at start.
pub struct Slab<T> {
    slots: Box<[Slot<T>]>,
    free: u32,
    used: u32,
}

struct Slot<T> {
    generation: u32,
    entry: Entry<T>,
}

enum Entry<T> {
    Free { next: u32 },
    Used(T),
}

const NONE: u32 = u32::MAX;

impl<T> Slab<T> {
    /// A table of `capacity` free slots; every page of it is touched here.
    pub fn new(capacity: usize) -> Self {
        assert!(capacity < NONE as usize);
        let next = |index: usize| if index + 1 == capacity { NONE } else { index as u32 + 1 };
        let slots = (0..capacity).map(|index| Slot { generation: 0, entry: Entry::Free { next: next(index) } });
        Self { slots: slots.collect(), free: if capacity == 0 { NONE } else { 0 }, used: 0 }
    }

    /// Puts `value` into a free slot; gives it back when there is none. Returns index and generation.
    pub fn insert(&mut self, value: T) -> Result<(u32, u32), T> {
        let index = self.free;
        if index == NONE {
            return Err(value);
        }
        let slot = &mut self.slots[index as usize];
        let Entry::Free { next } = slot.entry else { unreachable!("the free list holds only free slots") };
        self.free = next;
        slot.entry = Entry::Used(value);
        self.used += 1;
        Ok((index, slot.generation))
    }

    /// Empties a slot.
    pub fn remove(&mut self, index: u32, generation: u32) -> Option<T> {
        self.get(index, generation)?;
        let slot = &mut self.slots[index as usize];
        let entry = std::mem::replace(&mut slot.entry, Entry::Free { next: self.free });
        slot.generation = slot.generation.wrapping_add(1) & Self::GENERATION_MASK;
        self.free = index;
        self.used -= 1;
        let Entry::Used(value) = entry else { unreachable!("looked up above") };
        Some(value)
    }

    /// Generations fit into the bits that a completion carries beside the index.
    const GENERATION_MASK: u32 = (1 << 24) - 1;

    /// The value of a slot, if it is still the one that `generation` was given for.
    #[inline]
    pub fn get(&self, index: u32, generation: u32) -> Option<&T> {
        match self.slots.get(index as usize) {
            Some(Slot { generation: current, entry: Entry::Used(value) }) if *current == generation => Some(value),
            _ => None,
        }
    }

    /// As [`Self::get`], to be changed.
    #[inline]
    pub fn get_mut(&mut self, index: u32, generation: u32) -> Option<&mut T> {
        match self.slots.get_mut(index as usize) {
            Some(Slot { generation: current, entry: Entry::Used(value) }) if *current == generation => Some(value),
            _ => None,
        }
    }

    /// All values with their index and generation.
    pub fn iter(&self) -> impl Iterator<Item = (u32, u32, &T)> {
        self.slots.iter().enumerate().filter_map(|(index, slot)| match &slot.entry {
            Entry::Used(value) => Some((index as u32, slot.generation, value)),
            Entry::Free { .. } => None,
        })
    }

    /// The first used slot at or behind `index`: for walks that change the table on the way.
    pub fn next_used(&self, index: u32) -> Option<(u32, u32)> {
        let slots = self.slots.get(index as usize..)?;
        let offset = slots.iter().position(|slot| matches!(slot.entry, Entry::Used(_)))?;
        let found = index + offset as u32;
        Some((found, self.slots[found as usize].generation))
    }

    /// Slots in use.
    pub fn len(&self) -> usize {
        self.used as usize
    }

    /// Whether no slot is in use.
    pub fn is_empty(&self) -> bool {
        self.used == 0
    }

    /// All slots.
    pub fn capacity(&self) -> usize {
        self.slots.len()
    }

    /// Bytes of one slot, for the sums.
    pub const fn slot_size() -> usize {
        size_of::<Slot<T>>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reused_slot_is_not_mistaken_for_the_one_before() {
        let mut slab = Slab::new(1);
        let (index, old) = slab.insert("first").unwrap();
        assert_eq!(slab.insert("second"), Err("second"));
        assert_eq!(slab.remove(index, old), Some("first"));
        let (index, new) = slab.insert("second").unwrap();
        assert_eq!((slab.get(index, old), slab.get(index, new)), (None, Some(&"second")));
        assert_eq!(slab.remove(index, old), None);
        assert_eq!(slab.len(), 1);
    }
}
