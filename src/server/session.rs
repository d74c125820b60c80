//! The session of a connection, as its link keeps it: live or muted.
//!
//! Which of them is told by its type, not by a tag beside it: so a session of no size takes no memory, as in
//! most small servers, and any other no more than its own.

use crate::link::Session as Slot;

/// The session of a connection that gets no more messages: its handler panicked, or what it sent was
/// corrupt. It is still told the end.
struct Muted<S>(Box<S>);

/// What the handler is called with; `None` if it is to hear of nothing but the end.
pub(super) fn live<S: 'static>(slot: &mut Slot) -> Option<&mut S> {
    slot.as_mut().and_then(|session| session.downcast_mut())
}

pub(super) fn mute<S: Send + 'static>(slot: &mut Slot) {
    *slot = slot.take().map(|session| match session.downcast::<S>() {
        Ok(live) => Box::new(Muted(live)) as _,
        Err(muted) => muted,
    });
}

/// The session itself, live or muted.
pub(super) fn take<S: 'static>(slot: &mut Slot) -> Option<Box<S>> {
    match slot.take()?.downcast() {
        Ok(live) => Some(live),
        Err(muted) => muted.downcast().ok().map(|muted: Box<Muted<S>>| muted.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_muted_is_still_there_in_the_end() {
        let mut slot: Slot = Some(Box::new(7));
        assert_eq!(live(&mut slot), Some(&mut 7));
        for _ in 0..2 {
            mute::<i32>(&mut slot);
            assert_eq!(live::<i32>(&mut slot), None);
        }
        assert_eq!(take(&mut slot), Some(Box::new(7)));
        assert_eq!(take::<i32>(&mut slot), None);
        mute::<i32>(&mut slot);
        assert!(slot.is_none());
    }
}
