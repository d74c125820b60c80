//! Names of connections that stay right after the connection is gone.
//!
//! A slot of the slab is used again and again; what tells two lives of one slot apart is its
//! generation. Every key carries both, so a late command, a late timer or a stale readiness
//! event for a dead connection finds nothing.

use std::fmt;

/// Where a connection lives within its loop: a slot, and which life of that slot.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) struct Key {
    /// Index into the slab of the loop, `< PeerId::MAX_SLOTS`.
    pub(crate) slot: u32,
    /// Which life of the slot; never 0.
    pub(crate) generation: u32,
}

/// The identity of one connection, unique within a server until 2³² further connections have
/// used the same slot.
///
/// Cheap to copy, hash and compare, so a good key for tables of players or users. Its `Display`
/// form (`7.3.1`: slot, loop, generation) is what log lines carry.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PeerId(u64);

impl PeerId {
    const SLOT_BITS: u32 = 24;
    const LOOP_BITS: u32 = 8;
    /// Connections that one loop can hold.
    pub(crate) const MAX_SLOTS: u32 = 1 << Self::SLOT_BITS;
    /// Loops that one server can have.
    pub(crate) const MAX_LOOPS: usize = 1 << Self::LOOP_BITS;

    pub(crate) fn new(loop_index: usize, key: Key) -> Self {
        debug_assert!(loop_index < Self::MAX_LOOPS && key.slot < Self::MAX_SLOTS);
        let high = u64::from(key.generation) << 32;
        Self(high | (loop_index as u64) << Self::SLOT_BITS | u64::from(key.slot))
    }

    /// What [`as_u64`](Self::as_u64) gave.
    #[cfg(feature = "redis")]
    pub(crate) fn from_u64(id: u64) -> Self {
        Self(id)
    }

    pub(crate) fn key(self) -> Key {
        Key {
            slot: self.0 as u32 & (Self::MAX_SLOTS - 1),
            generation: (self.0 >> 32) as u32,
        }
    }

    pub(crate) fn loop_index(self) -> usize {
        (self.0 >> Self::SLOT_BITS) as usize & (Self::MAX_LOOPS - 1)
    }

    /// The identity as a number, for logs and protocols of your own.
    pub fn as_u64(self) -> u64 {
        self.0
    }
}

impl fmt::Display for PeerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Key { slot, generation } = self.key();
        write!(f, "{slot}.{}.{generation}", self.loop_index())
    }
}

impl fmt::Debug for PeerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PeerId({self})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packs_and_unpacks() {
        for loop_index in [0, 1, PeerId::MAX_LOOPS - 1] {
            for slot in [0, 1, PeerId::MAX_SLOTS - 1] {
                for generation in [1, 2, u32::MAX] {
                    let key = Key { slot, generation };
                    let id = PeerId::new(loop_index, key);
                    assert_eq!((id.loop_index(), id.key()), (loop_index, key));
                }
            }
        }
    }
}
