//! Back-pressure from rooms: a connection whose messages a room has not caught up with is held, that is,
//! its mailbox is parked, so that its loop stops reading when the mailbox is full too.

use std::sync::atomic::{AtomicU16, Ordering};

use super::Link;

/// How many rooms hold a connection; or that none does any more.
#[derive(Debug, Default)]
pub(super) struct Holds(AtomicU16);

/// The connection ends: what it has said, which is bounded, may go wherever it goes.
const OVER: u16 = 1 << 15;

impl Holds {
    pub(super) fn is_held(&self) -> bool {
        (1..OVER).contains(&self.0.load(Ordering::SeqCst))
    }

    pub(super) fn end(&self) {
        self.0.fetch_or(OVER, Ordering::SeqCst);
    }
}

impl Link {
    /// One more room holds the connection.
    pub(crate) fn hold(&self) {
        self.holds.0.fetch_add(1, Ordering::SeqCst);
    }

    /// One holds it no longer. `true`: the mailbox was parked and is to be run again.
    pub(crate) fn release(&self) -> bool {
        self.holds.0.fetch_sub(1, Ordering::SeqCst);
        !self.must_wait() && self.unpark()
    }
}
