//! Who of a loop's connections subscribes to what: a list for each topic, to be walked for each
//! message that is published.
//!
//! To strike a connection off a long list, it has to be known where it stands there; short lists are
//! looked through.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

use crate::id::Key;

/// Lists that are not longer are looked through.
const SHORT: usize = 16;

/// The subscribers of a loop, by the numbers of the topics.
#[derive(Debug, Default)]
pub(crate) struct Audience {
    /// No list is empty.
    topics: HashMap<u64, Subscribers, Mixed>,
}

#[derive(Debug, Default)]
struct Subscribers {
    /// In no order; each slot once.
    keys: Vec<Key>,
    /// Where each slot stands in `keys`; empty as long as those are few.
    places: HashMap<u32, u32, Mixed>,
}

impl Audience {
    /// Adds a connection, if it isn't there.
    pub(crate) fn subscribe(&mut self, topic: u64, key: Key) {
        self.topics.entry(topic).or_default().add(key);
    }

    /// Strikes it off, if it is there.
    pub(crate) fn unsubscribe(&mut self, topic: u64, key: Key) {
        if let Some(subscribers) = self.topics.get_mut(&topic) {
            subscribers.strike_off(key);
            if subscribers.keys.is_empty() {
                self.topics.remove(&topic);
                if self.topics.len() < self.topics.capacity() / 8 {
                    self.topics.shrink_to(self.topics.len() * 2);
                }
            }
        }
    }

    /// Those who subscribe. Some may be gone.
    pub(crate) fn of(&self, topic: u64) -> &[Key] {
        self.topics.get(&topic).map_or(&[], |list| &list.keys)
    }
}

impl Subscribers {
    fn add(&mut self, key: Key) {
        if let Some(place) = self.place(key.slot) {
            // Whoever had the slot before is gone.
            self.keys[place] = key;
            return;
        }
        self.keys.push(key);
        if self.keys.len() > SHORT {
            // Of this one; when the list has just become long, of all.
            let unknown = self.places.len()..self.keys.len();
            let places = unknown.map(|place| (self.keys[place].slot, place as u32));
            self.places.extend(places);
        }
    }

    fn strike_off(&mut self, key: Key) {
        let Some(place) = self
            .place(key.slot)
            .filter(|&place| self.keys[place] == key)
        else {
            return;
        };
        self.keys.swap_remove(place);
        if self.keys.len() <= SHORT {
            self.places = HashMap::default();
        } else {
            self.places.remove(&key.slot);
            if let Some(moved) = self.keys.get(place) {
                self.places.insert(moved.slot, place as u32);
            }
        }
        if self.keys.len() < self.keys.capacity() / 4 {
            self.keys.shrink_to(self.keys.len() * 2);
            self.places.shrink_to(self.places.len() * 2);
        }
    }

    fn place(&self, slot: u32) -> Option<usize> {
        if self.keys.len() > SHORT {
            return self.places.get(&slot).map(|&place| place as usize);
        }
        self.keys.iter().position(|key| key.slot == slot)
    }
}

/// The keys of these maps are numbers that we gave out ourselves: nobody chooses them to collide.
type Mixed = BuildHasherDefault<Mix>;

#[derive(Default)]
struct Mix(u64);

impl Hasher for Mix {
    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.write_u64(byte.into());
        }
    }

    fn write_u32(&mut self, n: u32) {
        self.write_u64(n.into());
    }

    fn write_u64(&mut self, n: u64) {
        // 2^64 by the golden ratio: neighbours end up far apart.
        let mixed = (self.0 ^ n).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        self.0 = mixed ^ (mixed >> 32);
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use proptest::prelude::*;

    use super::*;

    impl Audience {
        /// What must hold whatever was done.
        fn check(&self) {
            for subscribers in self.topics.values() {
                let keys = &subscribers.keys;
                assert!(!keys.is_empty());
                let known = if keys.len() > SHORT { keys.len() } else { 0 };
                assert_eq!(subscribers.places.len(), known);
                for (&slot, &place) in &subscribers.places {
                    assert_eq!(keys[place as usize].slot, slot);
                }
            }
        }
    }

    fn key(slot: u32, generation: u32) -> Key {
        Key { slot, generation }
    }

    #[test]
    fn a_slot_that_is_used_again_stands_there_once() {
        let mut audience = Audience::default();
        audience.subscribe(1, key(7, 1));
        audience.subscribe(1, key(7, 2));
        assert_eq!(audience.of(1), [key(7, 2)]);
        audience.unsubscribe(1, key(7, 1));
        assert_eq!(audience.of(1), [key(7, 2)]);
        audience.unsubscribe(1, key(7, 2));
        assert!(audience.of(1).is_empty());
    }

    #[test]
    fn what_is_over_holds_no_memory() {
        let mut audience = Audience::default();
        for topic in 0..1000 {
            for slot in 0..40 {
                audience.subscribe(topic, key(slot, 1));
            }
        }
        for topic in 0..1000 {
            for slot in 0..40 {
                audience.unsubscribe(topic, key(slot, 1));
            }
        }
        assert!(audience.topics.capacity() < 100);
        for slot in 0..10_000 {
            audience.subscribe(1, key(slot, 1));
        }
        for slot in 5..10_000 {
            audience.unsubscribe(1, key(slot, 1));
        }
        let few = &audience.topics[&1];
        assert!(few.keys.capacity() < 64 && few.places.capacity() == 0);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn agrees_with_sets(
            ops in prop::collection::vec((any::<bool>(), 0..3_u64, 0..40_u32), 0..600),
        ) {
            let mut audience = Audience::default();
            let mut model = BTreeMap::<u64, BTreeSet<u32>>::new();
            for (join, topic, slot) in ops {
                let members = model.entry(topic).or_default();
                if join {
                    audience.subscribe(topic, key(slot, 1));
                    members.insert(slot);
                } else {
                    audience.unsubscribe(topic, key(slot, 1));
                    members.remove(&slot);
                }
                audience.check();
                let mut slots: Vec<u32> = audience.of(topic).iter().map(|k| k.slot).collect();
                slots.sort_unstable();
                prop_assert!(slots.iter().eq(members.iter()));
            }
        }
    }
}
