//! Memory that messages were made of, to be used again once they are dropped.

use std::collections::VecDeque;

use bytes::BytesMut;

/// Blocks that are kept an eye on: as many as workers may have that were given the messages of a group of
/// connections. Handlers on the loop have few at a time.
const KEPT: usize = 128;

/// Blocks of which nothing is left, in the order they were used up. The messages in them may still be
/// with the user, who may keep them for ever; what is forgotten here is freed with the last of them.
#[derive(Debug, Default)]
pub(super) struct Spent(VecDeque<BytesMut>);

impl Spent {
    /// A block is used up.
    pub(super) fn add(&mut self, block: BytesMut) {
        if self.is_full() {
            self.0.pop_front();
        }
        self.0.push_back(block);
    }

    /// The block that was used up first, as it is the likeliest that nobody has any of any more: if so,
    /// and if it holds `least` bytes and not more than `most`. One of another size is let go of.
    pub(super) fn reclaim(&mut self, least: usize, most: usize) -> Option<BytesMut> {
        let mut block = self.0.pop_front()?;
        // More than is left of it: to be had only if all of it is.
        if !block.try_reclaim(block.capacity() + 1) {
            self.0.push_back(block);
            return None;
        }
        (least..=most).contains(&block.capacity()).then_some(block)
    }

    /// Nothing can be added without forgetting another.
    pub(super) fn is_full(&self) -> bool {
        self.0.len() == KEPT
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn release(&mut self) {
        self.0 = VecDeque::new();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn used_up(size: usize) -> (BytesMut, BytesMut) {
        let mut block = BytesMut::with_capacity(size);
        block.extend_from_slice(&vec![7; size]);
        let message = block.split();
        (block, message)
    }

    #[test]
    fn what_nobody_has_any_more() {
        let mut spent = Spent::default();
        let (block, message) = used_up(1000);
        let place = message.as_ptr();
        spent.add(block);
        assert!(spent.reclaim(1000, 2000).is_none(), "still used");
        drop(message);
        let mut block = spent.reclaim(1000, 2000).unwrap();
        block.extend_from_slice(&[1]);
        assert_eq!(block.as_ptr(), place);
        assert!(spent.is_empty());
    }

    #[test]
    fn other_sizes_make_room() {
        let mut spent = Spent::default();
        for wrong in [1001..=2000, 1..=999] {
            spent.add(used_up(1000).0);
            assert!(spent.reclaim(*wrong.start(), *wrong.end()).is_none());
            assert!(spent.is_empty());
        }
    }

    #[test]
    fn not_more_than_is_bounded() {
        let mut spent = Spent::default();
        let messages: Vec<_> = (0..2 * KEPT)
            .map(|_| {
                let (block, message) = used_up(100);
                spent.add(block);
                message
            })
            .collect();
        assert_eq!(spent.0.len(), KEPT);
        assert!(messages.iter().all(|message| message[..] == [7; 100]));
        spent.release();
        assert!(spent.is_empty());
    }
}
