//! A generational slab: values in numbered slots, and keys that remember which life of the slot
//! they belong to.
//!
//! A late event or command names a connection by [`Key`]; when that connection is gone the key
//! finds nothing, even if its slot serves another one by now. Freed slots are reused last in,
//! first out, so a busy slab stays dense and its slots stay in cache.
//!
//! When the last value leaves a slab that had grown large, the memory is given back. Keys from
//! before stay dead: new slots begin at a generation that none of the old ones had reached.
//!
//! Limit: a key would be mistaken for a newer one after 2^32 - 1 reuses of its slot, which takes
//! more than eleven hours of 100 000 connections per second, all in that one slot.

use std::{mem, vec};

use crate::id::Key;

/// End of the free list. Never a slot.
const NIL: u32 = u32::MAX;

/// Slots kept when the slab falls empty: little enough to hold for ever, and enough that a small
/// server never comes here.
const KEPT_SLOTS: usize = 1024;

/// Values of one type in slots numbered from 0.
#[derive(Debug)]
pub(crate) struct Slab<T> {
    /// `entries.len() <= NIL`
    entries: Vec<Entry<T>>,
    /// Head of the list through the vacant entries, or `NIL`.
    free: u32,
    /// Occupied entries, `len <= entries.len()`. The free list has the others.
    len: usize,
    /// Generation of a slot's first life. Every generation in `entries` is this one or later,
    /// and all given out for slots since released are earlier. Never 0.
    first_generation: u32,
}

/// The generation is in both variants so that it shares a word with the tag: 8 bytes above `T`.
#[derive(Debug)]
enum Entry<T> {
    Occupied {
        generation: u32,
        value: T,
    },
    /// `generation` is of the life to come; no key has it yet.
    Vacant {
        generation: u32,
        next: u32,
    },
}

impl<T> Default for Slab<T> {
    fn default() -> Self {
        Self {
            entries: Vec::new(),
            free: NIL,
            len: 0,
            first_generation: 1,
        }
    }
}

impl<T> Slab<T> {
    /// Stores the value made for its own key.
    pub(crate) fn insert_with(&mut self, value: impl FnOnce(Key) -> T) -> Key {
        let key = self.next_key();
        let entry = Entry::Occupied {
            generation: key.generation,
            value: value(key),
        };
        match self.entries.get_mut(key.slot as usize) {
            None => self.entries.push(entry),
            Some(vacant) => {
                if let Entry::Vacant { next, .. } = mem::replace(vacant, entry) {
                    self.free = next;
                }
            }
        }
        self.len += 1;
        key
    }

    /// The value of this key, unless removed.
    fn get(&self, key: Key) -> Option<&T> {
        match self.entries.get(key.slot as usize)? {
            Entry::Occupied { generation, value } if *generation == key.generation => Some(value),
            _ => None,
        }
    }

    /// The value of this key, unless removed.
    pub(crate) fn get_mut(&mut self, key: Key) -> Option<&mut T> {
        let (current, value) = self.get_slot_mut(key.slot)?;
        (current == key).then_some(value)
    }

    /// Whatever lives in the slot now, for callers whose own tables are indexed by slot and
    /// cleared on removal.
    pub(crate) fn get_slot_mut(&mut self, slot: u32) -> Option<(Key, &mut T)> {
        self.entries.get_mut(slot as usize)?.occupied_mut(slot)
    }

    /// Takes the value out. Neither this key nor an earlier one of its slot finds anything again.
    pub(crate) fn remove(&mut self, key: Key) -> Option<T> {
        self.get(key)?;
        let vacant = Entry::Vacant {
            generation: generation_after(key.generation),
            next: self.free,
        };
        let entry = mem::replace(&mut self.entries[key.slot as usize], vacant);
        self.free = key.slot;
        self.len -= 1;
        if self.len == 0 && self.entries.len() > KEPT_SLOTS {
            self.release();
        }
        entry.into_value()
    }

    /// Number of values.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Whether there is no value.
    pub(crate) fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The keys of all values, in slot order, as of now: the slab may change during the walk, so
    /// look each key up when its turn comes.
    pub(crate) fn keys(&self) -> vec::IntoIter<Key> {
        let mut keys = Vec::with_capacity(self.len);
        for (slot, entry) in (0..).zip(&self.entries) {
            if let Entry::Occupied { generation, .. } = *entry {
                keys.push(Key { slot, generation });
            }
        }
        keys.into_iter()
    }

    /// All values from this slot on, in slot order.
    pub(crate) fn iter_mut_from(&mut self, slot: u32) -> impl Iterator<Item = (Key, &mut T)> {
        let entries = (slot..).zip(self.entries.iter_mut().skip(slot as usize));
        entries.filter_map(|(slot, entry)| entry.occupied_mut(slot))
    }

    /// The key that the next insertion gives out.
    fn next_key(&self) -> Key {
        match self.entries.get(self.free as usize) {
            Some(entry) => Key {
                slot: self.free,
                generation: entry.generation(),
            },
            None => Key {
                slot: u32::try_from(self.entries.len())
                    .ok()
                    .filter(|&slot| slot != NIL)
                    .expect("a slab holds fewer than 2^32 - 1 values"),
                generation: self.first_generation,
            },
        }
    }

    /// Drops all entries, which are vacant. The walk is paid for by the insertions that made them.
    fn release(&mut self) {
        debug_assert!(self.is_empty());
        let lives = |generation: &u32| generation.wrapping_sub(self.first_generation);
        let generations = self.entries.iter().map(Entry::generation);
        if let Some(latest) = generations.max_by_key(lives) {
            self.first_generation = latest;
        }
        self.entries.clear();
        self.entries.shrink_to(KEPT_SLOTS);
        self.free = NIL;
    }
}

impl<T> Entry<T> {
    fn generation(&self) -> u32 {
        match *self {
            Self::Occupied { generation, .. } | Self::Vacant { generation, .. } => generation,
        }
    }

    fn occupied_mut(&mut self, slot: u32) -> Option<(Key, &mut T)> {
        match self {
            Self::Occupied { generation, value } => {
                let generation = *generation;
                Some((Key { slot, generation }, value))
            }
            Self::Vacant { .. } => None,
        }
    }

    fn into_value(self) -> Option<T> {
        match self {
            Self::Occupied { value, .. } => Some(value),
            Self::Vacant { .. } => None,
        }
    }
}

/// 0 is skipped: it marks words that are no keys.
fn generation_after(generation: u32) -> u32 {
    generation.wrapping_add(1).max(1)
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    fn starting_at<T>(first_generation: u32) -> Slab<T> {
        Slab {
            first_generation,
            ..Slab::default()
        }
    }

    #[test]
    fn an_entry_adds_eight_bytes() {
        assert_eq!(size_of::<Entry<[u64; 4]>>(), 4 * 8 + 8);
    }

    #[test]
    fn slots_are_reused_last_in_first_out() {
        let mut slab = Slab::default();
        let keys = [(); 3].map(|()| slab.insert_with(|_| ()));
        slab.remove(keys[0]);
        slab.remove(keys[2]);
        let slots = [(); 3].map(|()| slab.insert_with(|_| ()).slot);
        assert_eq!(slots, [2, 0, 3]);
    }

    #[test]
    fn a_generation_wraps_past_zero() {
        let mut slab = starting_at(u32::MAX);
        let old = slab.insert_with(|_| ());
        slab.remove(old);
        let new = slab.insert_with(|_| ());
        assert_eq!((old.generation, new.generation), (u32::MAX, 1));
        assert_eq!((new.slot, slab.get(old)), (old.slot, None));
    }

    #[test]
    fn memory_is_released_when_the_last_value_leaves() {
        let mut slab = Slab::default();
        let keys: Vec<_> = (0..=KEPT_SLOTS).map(|_| slab.insert_with(|_| ())).collect();
        let (last, others) = keys.split_last().unwrap();
        for &key in others {
            slab.remove(key);
        }
        assert!(slab.entries.capacity() > KEPT_SLOTS);
        slab.remove(*last);
        assert!(slab.entries.is_empty() && slab.entries.capacity() <= KEPT_SLOTS);
    }

    #[test]
    fn keys_from_before_a_release_stay_dead() {
        for first_generation in [1, u32::MAX - 2, u32::MAX] {
            let mut slab = starting_at(first_generation);
            let mut old = Vec::new();
            // The first slot lives more often than the others, and wraps.
            for _ in 0..5 {
                old.push(slab.insert_with(|_| ()));
                slab.remove(old[old.len() - 1]);
            }
            old.extend((0..=KEPT_SLOTS).map(|_| slab.insert_with(|_| ())));
            for &key in &old {
                slab.remove(key);
            }
            assert!(slab.entries.is_empty());
            let new: Vec<_> = (0..2 * KEPT_SLOTS)
                .map(|_| slab.insert_with(|_| ()))
                .collect();
            assert!(old.iter().all(|&key| slab.get(key).is_none()));
            assert!(slab.keys().eq(new));
        }
    }

    #[derive(Clone, Debug)]
    enum Op {
        Insert(usize),
        Remove(prop::sample::Index),
        RemoveAll,
    }

    fn op() -> impl Strategy<Value = Op> {
        prop_oneof![
            12 => (1usize..4).prop_map(Op::Insert),
            1 => Just(Op::Insert(KEPT_SLOTS + 1)),
            12 => any::<prop::sample::Index>().prop_map(Op::Remove),
            2 => Just(Op::RemoveAll),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]
        #[test]
        fn agrees_with_a_map_and_stale_keys_find_nothing(
            ops in prop::collection::vec(op(), 0..40),
            first_generation in prop::sample::select(vec![1, u32::MAX - 3]),
        ) {
            let mut slab = starting_at(first_generation);
            let mut present = HashMap::new();
            let mut given = Vec::new();
            for op in ops {
                let doomed = match op {
                    Op::Insert(count) => {
                        for value in given.len()..given.len() + count {
                            let key = slab.insert_with(|key| (key, value));
                            prop_assert_eq!(present.insert(key, (key, value)), None);
                            given.push(key);
                        }
                        vec![]
                    }
                    Op::Remove(_) if given.is_empty() => vec![],
                    Op::Remove(index) => vec![*index.get(&given)],
                    Op::RemoveAll => given.clone(),
                };
                for key in doomed {
                    prop_assert_eq!(slab.remove(key), present.remove(&key));
                }
                prop_assert_eq!(slab.len(), present.len());
                prop_assert_eq!(slab.is_empty(), present.is_empty());
                for &key in &given {
                    prop_assert_eq!(slab.get(key), present.get(&key));
                    prop_assert_eq!(slab.get_mut(key).copied(), present.get(&key).copied());
                }
                let keys: Vec<_> = slab.keys().collect();
                prop_assert!(keys.is_sorted_by_key(|key| key.slot));
                let walked: HashMap<_, _> = slab.iter_mut_from(0).map(|(key, v)| (key, *v)).collect();
                prop_assert_eq!(keys.len(), walked.len());
                prop_assert!(keys.iter().all(|key| present.contains_key(key)));
                prop_assert_eq!(&walked, &present);
                for key in keys {
                    prop_assert_eq!(slab.get_slot_mut(key.slot).unwrap().0, key);
                }
            }
        }
    }
}
