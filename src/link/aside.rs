//! What few outboxes have anything of, behind one pointer, so that the others are small.

use crate::message::{CloseCause, CloseCode, Utf8Bytes};

use super::queue::Queue;

/// See the module's documentation.
#[derive(Debug, Default)]
pub(super) struct Aside {
    pub(super) queue: Queue,
    /// Decided: nothing more is accepted.
    pub(super) goodbye: Option<Goodbye>,
    /// Bytes that were accepted and then thrown away because there was no room: for the reason of the end.
    pub(super) discarded: usize,
}

/// How and why this side closes.
#[derive(Clone, Debug)]
pub(crate) struct Goodbye {
    pub(crate) code: CloseCode,
    pub(crate) text: Utf8Bytes,
    pub(crate) cause: CloseCause,
    /// Size of the close frame once it is queued; 0 before.
    pub(super) size: usize,
    /// Queued since the loop was last told.
    pub(super) news: bool,
}

impl Aside {
    /// Nothing is in it.
    pub(super) fn is_empty(&self) -> bool {
        self.queue.is_empty() && self.goodbye.is_none() && self.discarded == 0
    }

    /// What stays for the sake of something else than the queue holds little of that.
    pub(super) fn tidy(&mut self) {
        if self.queue.is_empty() && !self.queue.is_worth_keeping() {
            self.queue = Queue::default();
        }
    }

    /// Emptied, it holds little memory.
    pub(super) fn is_worth_keeping(&self) -> bool {
        self.is_empty() && self.queue.is_worth_keeping()
    }
}
