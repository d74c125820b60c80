//! Back-pressure from rooms: a connection whose messages a room has not caught up with is held, that is,
//! its mailbox is parked, so that its loop stops reading when the mailbox is full too.

use std::sync::atomic::{AtomicU16, Ordering};

/// How many rooms hold a connection, in steps of [`ONE`]; and whether that is [`OVER`].
#[derive(Debug, Default)]
pub(super) struct Holds(AtomicU16);

/// The connection ends: what it has said, which is bounded, may go wherever it goes. The lowest bit, so
/// that no count reaches it.
const OVER: u16 = 1;

const ONE: u16 = 2;

/// From here on it is less than none: a room may let go on one thread before it has taken hold on another.
const NEGATIVE: u16 = 1 << 15;

impl Holds {
    pub(super) fn hold(&self) {
        self.0.fetch_add(ONE, Ordering::SeqCst);
    }

    pub(super) fn release(&self) {
        self.0.fetch_sub(ONE, Ordering::SeqCst);
    }

    pub(super) fn is_held(&self) -> bool {
        (ONE..NEGATIVE).contains(&self.0.load(Ordering::SeqCst))
    }

    pub(super) fn end(&self) {
        self.0.fetch_or(OVER, Ordering::SeqCst);
    }

    /// From now on nothing waits for anything.
    pub(super) fn is_over(&self) -> bool {
        self.0.load(Ordering::SeqCst) & OVER != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn less_than_none_is_not_held() {
        let holds = Holds::default();
        holds.release();
        assert!(!holds.is_held());
        holds.hold();
        assert!(!holds.is_held());
        holds.hold();
        assert!(holds.is_held());
    }

    #[test]
    fn over_is_over_whatever_rooms_do() {
        let holds = Holds::default();
        holds.release();
        holds.end();
        holds.hold();
        assert!(holds.is_over() && !holds.is_held());
        holds.release();
        assert!(holds.is_over() && !holds.is_held());
    }
}
