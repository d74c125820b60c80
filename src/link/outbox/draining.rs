//! How the loop is told that something waits, and takes it.

use std::collections::VecDeque;

use super::Outbox;
use super::closing::LocalClose;
use super::overflow::FRESH;
use super::queue::{Lost, Segment};
use super::spare::{self, Buffer};

/// The bytes that a loop takes at a time from the messages that are kept one by one. What is taken
/// can be neither dropped nor replaced any more.
const TAKE: usize = 256 << 10;

/// Messages that are kept one by one and taken at a time, at most.
const TAKE_MESSAGES: usize = 1024;

impl Outbox {
    /// Makes the loop look, if it doesn't know yet. `true`: the caller tells it.
    pub(in crate::link) fn request_flush(&mut self) -> bool {
        let something = self.buf.is_some() || self.keeps_some();
        let unknown = something && !std::mem::replace(&mut self.flush_requested, true);
        // A peer that takes nothing is not written to, but its closing has a deadline.
        let untold = |close: &mut LocalClose| std::mem::take(&mut close.untold);
        unknown | self.local_close_mut().is_some_and(untold)
    }

    /// The loop is told later than [`request_flush`](Self::request_flush) or
    /// [`push_plain`](Self::push_plain) asked for: another thread that sends meanwhile tells it.
    pub(in crate::link) fn put_off_flush(&mut self) {
        self.flush_requested = false;
    }

    /// Moves the front of the queue to the end of what `head` and then `into` hold: of the messages
    /// that are kept one by one, about `most` bytes. `false`: nothing is there.
    pub(crate) fn take(
        &mut self,
        head: &mut Option<Buffer>,
        into: &mut VecDeque<Segment>,
        most: usize,
    ) -> bool {
        self.flush_requested = false;
        let mut taken = self.buffered();
        if head.is_none() {
            *head = self.buf.take();
        } else {
            into.extend(self.buf.take().map(Segment::Small));
        }
        if let Some(aside) = &mut self.aside {
            let queue = &mut aside.queue;
            // Of what may still be replaced, no more than the kernel will soon have sent.
            let take = if queue.has_keys() { FRESH } else { TAKE };
            while taken < take.min(most).max(1) && into.len() < TAKE_MESSAGES {
                let Some(segment) = queue.pop() else { break };
                taken += segment.len();
                into.push_back(segment);
            }
            if aside.is_empty() {
                self.aside.take().into_iter().for_each(spare::give_aside);
            } else {
                aside.tidy();
            }
        }
        let some = head.is_some() || !into.is_empty();
        let writable = self.is_writable();
        if let Some(close) = self.local_close_mut().filter(|_| !some) {
            // All that was taken before was written before more is asked for.
            close.written = close.frame_len > 0 && writable;
        }
        some
    }

    /// The kernel took `bytes`. `true`: the queue had been stalled and is empty now.
    pub(crate) fn written(&mut self, bytes: usize) -> bool {
        debug_assert!(bytes <= self.queued());
        self.queued = self.queued.saturating_sub(bytes as u32);
        self.queued == 0 && std::mem::take(&mut self.stalled)
    }

    /// Data messages queued since this was last asked.
    pub(crate) fn take_pushed(&mut self) -> usize {
        std::mem::take(&mut self.messages_uncounted) as usize
    }

    /// Messages dropped and replaced in the queue since this was last asked. A thread that queues asks before
    /// the lock is given back.
    pub(in crate::link) fn take_lost(&mut self) -> Lost {
        match &mut self.aside {
            Some(aside) => std::mem::take(&mut aside.queue.lost),
            None => Lost::default(),
        }
    }

    /// The kernel took less than it was offered.
    pub(crate) fn stall(&mut self) {
        self.stalled = true;
    }

    /// Counts bytes that the loop itself writes: the response to the handshake.
    pub(crate) fn count(&mut self, bytes: usize) {
        self.queued += bytes as u32;
    }
}
