//! What few outboxes have anything of, behind one pointer, so that the others are small.

use super::closing::LocalClose;
use super::queue::Queue;

/// See the module's documentation.
#[derive(Debug, Default)]
pub(in crate::link) struct Aside {
    pub(super) queue: Queue,
    /// Decided: nothing more is accepted.
    pub(super) local_close: Option<LocalClose>,
    /// Bytes that were accepted and then thrown away because there was no room: for the reason of the end. All that
    /// there ever were, which may be more than a small machine can address.
    pub(super) discarded: u64,
}

impl Aside {
    /// Nothing is in it.
    pub(super) fn is_empty(&self) -> bool {
        self.queue.is_empty() && self.local_close.is_none() && self.discarded == 0
    }

    /// What stays for the sake of something else than the queue holds little of that.
    pub(super) fn tidy(&mut self) {
        if self.queue.is_empty() && !self.queue.is_worth_keeping() {
            self.queue = Queue::default();
        }
    }

    /// Emptied, it holds little memory.
    pub(in crate::link) fn is_worth_keeping(&self) -> bool {
        self.is_empty() && self.queue.is_worth_keeping()
    }
}
