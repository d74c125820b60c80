//! From the peer: events into the mailbox, and when it has to wait.

use std::ops::{Deref, DerefMut};
use std::sync::Arc;
use std::sync::atomic::Ordering;

#[cfg(feature = "deflate")]
use super::Command;
use super::{EventBatch, Link, Session, spare};
use crate::message::Message;
#[cfg(feature = "deflate")]
use crate::proto::{Violation, compressed_parts};

/// A bit of `Link::flags`: more than half of the outbound limit is queued. What this peer sends waits
/// until it has read what it was sent, so a reply always finds room, however much a peer asks for at
/// once.
pub(super) const CONGESTED: u8 = 1;

/// Another: the mailbox has an `Event::Writable`, and a second one would tell nothing new.
const WRITABLE_QUEUED: u8 = 2;

/// The session of a connection, taken out of its [`Link`] so that user code runs under no lock; it goes back
/// in the end.
pub(crate) struct SessionGuard<'a> {
    session: Session,
    link: &'a Link,
}

impl Deref for SessionGuard<'_> {
    type Target = Session;

    fn deref(&self) -> &Session {
        &self.session
    }
}

impl DerefMut for SessionGuard<'_> {
    fn deref_mut(&mut self) -> &mut Session {
        &mut self.session
    }
}

impl Drop for SessionGuard<'_> {
    fn drop(&mut self) {
        if let Some(session) = self.session.take() {
            self.link.traffic().session = Some(session);
        }
    }
}

impl Link {
    /// What the handler is to see of a message. `None`: it breaks a rule, and the loop fails the
    /// connection. Only the runner of the mailbox calls this.
    #[inline]
    pub(crate) fn inflate(self: &Arc<Self>, message: Message) -> Option<Message> {
        #[cfg(feature = "deflate")]
        if let Some((opcode, payload)) = compressed_parts(&message) {
            let limit = self.config().max_message as usize;
            let fail = |violation: Violation| {
                // At once, as the peer's own close frame may be next.
                self.close(violation.code, violation.why, violation.cause());
                self.handle.post(Command::Fail(self.id.key(), violation));
            };
            let inflated = self.compression()?.inflate(opcode, payload, limit);
            return inflated.map_err(fail).ok();
        }
        Some(message)
    }

    /// Adds a batch for the handler. `true`: the caller makes it run.
    pub(crate) fn deliver(&self, batch: &mut EventBatch) -> bool {
        self.traffic()
            .mailbox(&self.mailbox)
            .push(batch, spare::take_batch)
    }

    /// The session, for as long as a run has it. Only the runner of the mailbox calls this.
    pub(crate) fn session(&self) -> SessionGuard<'_> {
        SessionGuard {
            session: self.traffic().session.take(),
            link: self,
        }
    }

    pub(crate) fn take_inbox(&self) -> EventBatch {
        self.traffic().mailbox(&self.mailbox).take()
    }

    /// Begins a run of what a loop had tried to handle itself, so that it can be parked. Nothing is in the
    /// mailbox, and nobody runs it.
    pub(crate) fn pass_through_inbox(&self, events: &mut EventBatch) -> EventBatch {
        let scheduled = self.deliver(events);
        debug_assert!(scheduled, "nothing was parked, so the mailbox was idle");
        self.take_inbox()
    }

    /// Ends a run; `true`: more has come.
    pub(crate) fn finish_run(&self) -> bool {
        self.traffic().mailbox(&self.mailbox).finish()
    }

    /// Ends a run because the peer [must wait](Self::must_wait); `rest` is run later. `true`: it can run
    /// at once.
    pub(crate) fn park(&self, rest: EventBatch) -> bool {
        self.set_aside(rest);
        // The loop may have drained the queue before it could see a parked mailbox.
        !self.must_wait() && self.unpark()
    }

    /// Ends a run because the receiver of the events has no room for them; `rest` is run when
    /// [`unpark`](Self::unpark) says so.
    pub(crate) fn set_aside(&self, rest: EventBatch) {
        self.traffic().mailbox(&self.mailbox).park(rest);
    }

    /// The loop has written: no longer congested if at most `low` bytes are left. `Some(true)`: the
    /// mailbox was parked and runs again.
    pub(crate) fn decongest_below(&self, low: usize) -> Option<bool> {
        // Under the lock, as the thread that fills the queue sets the flag under it.
        let outbox = self.outbox();
        if outbox.queued() > low {
            return None;
        }
        self.flags.fetch_and(!CONGESTED, Ordering::SeqCst);
        drop(outbox);
        Some(self.unpark())
    }

    /// Nothing can be sent any more, so nothing waits for room; for rooms that are behind it still does. `true`:
    /// the mailbox was parked and runs again.
    pub(crate) fn lose_writing(&self) -> bool {
        self.flags.fetch_and(!CONGESTED, Ordering::SeqCst);
        !self.must_wait() && self.unpark()
    }

    /// Nothing more is sent, so nothing waits for room. `true`: the mailbox was parked and runs again.
    pub(crate) fn decongest(&self) -> bool {
        self.flags.fetch_and(!CONGESTED, Ordering::SeqCst);
        self.holds.end();
        self.unpark()
    }

    /// Whether the mailbox is to be told that the queue has drained, which it may know already.
    pub(crate) fn note_writable(&self) -> bool {
        self.flags.fetch_or(WRITABLE_QUEUED, Ordering::AcqRel) & WRITABLE_QUEUED == 0
    }

    /// The handler is being told.
    pub(crate) fn tell_writable(&self) {
        self.flags.fetch_and(!WRITABLE_QUEUED, Ordering::AcqRel);
    }

    /// Lets a parked mailbox run again. `true`: the caller puts it on the run queue.
    pub(crate) fn unpark(&self) -> bool {
        self.traffic().mailbox(&self.mailbox).unpark()
    }

    /// Whether events wait in the mailbox of a connection whose handler runs inline.
    pub(crate) fn has_parked(&self) -> bool {
        self.mailbox.is_parked()
    }

    /// Whether what the peer says has to stay in the mailbox: it is congested, or a room is behind. Not
    /// once the connection has ended: nobody would let it go on.
    pub(crate) fn must_wait(&self) -> bool {
        (self.is_congested() || self.holds.is_held()) && !self.holds.is_over()
    }

    pub(crate) fn is_congested(&self) -> bool {
        self.flags.load(Ordering::SeqCst) & CONGESTED != 0
    }

    /// One more room holds the connection.
    pub(crate) fn hold(&self) {
        self.holds.hold();
    }

    /// One holds it no longer. `true`: the mailbox was parked and is to be run again.
    pub(crate) fn release(&self) -> bool {
        self.holds.release();
        !self.must_wait() && self.unpark()
    }
}
