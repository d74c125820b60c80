//! What workers run: connections, and whatever else has work of its own.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use crate::peer::Peer;

/// An entry of the run queue.
pub(crate) enum Task {
    /// The mailbox of a connection, and since when it has waited, if that is measured.
    Conn(Peer, Option<Instant>),
    /// A room, a timer.
    Run(Arc<dyn Runnable>),
}

/// Something that is run by one thread at a time.
pub(crate) trait Runnable: Send + Sync {
    /// Does what there is to do. `true`: more has come meanwhile. Doesn't panic.
    fn run(&self) -> bool;
}

thread_local! {
    /// Whether this thread is running something on the spot, and what it is to run next.
    static HERE: (Cell<bool>, RefCell<VecDeque<Arc<dyn Runnable>>>) =
        const { (Cell::new(false), RefCell::new(VecDeque::new())) };
}

/// Runs something on this thread: at once, or after what it is running so already. So rooms that
/// bring each other work don't pile up on the stack. What has got more to do meanwhile goes to `later`:
/// others may bring it work for ever.
pub(super) fn run_here(runnable: Arc<dyn Runnable>, later: impl Fn(Arc<dyn Runnable>)) {
    if HERE.try_with(|_| ()).is_err() {
        // The thread has all but ended.
        if runnable.run() {
            later(runnable);
        }
        return;
    }
    HERE.with(|(busy, next)| {
        next.borrow_mut().push_back(runnable);
        if busy.replace(true) {
            return;
        }
        let _idle = Idle(busy);
        loop {
            let Some(runnable) = next.borrow_mut().pop_front() else {
                break;
            };
            if runnable.run() {
                later(runnable);
            }
        }
    });
}

/// Nothing runs here any more, even if it panicked.
struct Idle<'a>(&'a Cell<bool>);

impl Drop for Idle<'_> {
    fn drop(&mut self) {
        self.0.set(false);
    }
}

/// Whether this thread is running something on the spot.
pub(crate) fn is_running() -> bool {
    HERE.try_with(|(busy, _)| busy.get()).unwrap_or(true)
}

/// What is to run later. If it never does, it runs when this goes.
pub(super) struct Later(Option<Arc<dyn Runnable>>);

impl Later {
    pub(super) fn new(runnable: Arc<dyn Runnable>) -> Self {
        Self(Some(runnable))
    }

    /// Gives it away.
    pub(super) fn take(&mut self) -> Option<Arc<dyn Runnable>> {
        self.0.take()
    }
}

impl Drop for Later {
    fn drop(&mut self) {
        if let Some(runnable) = self.take() {
            while runnable.run() {}
        }
    }
}
