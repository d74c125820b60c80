//! A queue that at most one worker empties at a time.
//!
//! The rule, and why it keeps order (every step under the lock that the owner puts around this):
//!
//! 1. [`push`](Mailbox::push) into an idle mailbox makes it *scheduled*, and tells the caller to
//!    put it on the run queue. Into a scheduled one it only adds.
//! 2. A worker [takes](Mailbox::take) what is there and runs it without the lock.
//! 3. Only [`finish`](Mailbox::finish), with the queue empty, makes it idle again; otherwise it tells
//!    the worker to put it back on the run queue.
//!
//! So a mailbox is on the run queue or with a worker exactly while it is scheduled, never twice;
//! hence at most one worker runs it, and what was pushed first runs first.
//!
//! A *parked* mailbox is one whose worker gave its work back, because its connection is not to be
//! served for now: it counts as idle, but pushes don't schedule it until [`unpark`](Mailbox::unpark).

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU8, Ordering};

/// Items on their way, behind one pointer: so they change hands for nothing, and an empty mailbox is
/// small.
pub(crate) type Batch<T> = Box<VecDeque<T>>;

/// See the module's documentation. What is in it and the state are wherever their owner keeps them, both
/// behind one lock that it holds while it has this.
#[derive(Debug)]
pub(crate) struct Mailbox<'a, T> {
    /// Never empty; nothing is ever taken but all.
    pub(crate) queue: &'a mut Option<Batch<T>>,
    pub(crate) state: &'a State,
}

/// The state of a mailbox. Atomic only so that it can be kept, and [asked](State::is_parked), outside the lock.
#[derive(Debug, Default)]
pub(crate) struct State(AtomicU8);

const IDLE: u8 = 0;
const SCHEDULED: u8 = 1;
const PARKED: u8 = 2;
/// Scheduled again after it was parked, and not yet empty.
const RESUMED: u8 = 3;

impl State {
    fn get(&self) -> u8 {
        self.0.load(Ordering::Relaxed)
    }

    fn set(&self, state: u8) {
        self.0.store(state, Ordering::Relaxed);
    }

    fn is_scheduled(&self) -> bool {
        matches!(self.get(), SCHEDULED | RESUMED)
    }

    /// It has been parked, and is not empty yet. Without the lock it may have changed by the time that is
    /// known, unless the caller is the only one who runs it.
    pub(crate) fn is_parked(&self) -> bool {
        matches!(self.get(), PARKED | RESUMED)
    }

    /// Schedules it, if that is its state.
    fn schedule_if(&self, from: u8, to: u8) -> bool {
        let now = self.get() == from;
        if now {
            self.set(to);
        }
        now
    }
}

impl<T> Mailbox<'_, T> {
    /// Adds all of `batch`, and leaves an empty one: itself, or a `spare`. `true`: the caller puts the
    /// mailbox on the run queue.
    #[must_use]
    pub(crate) fn push(self, batch: &mut Batch<T>, spare: impl FnOnce() -> Batch<T>) -> bool {
        match self.queue {
            Some(queue) => queue.append(batch),
            None => *self.queue = Some(std::mem::replace(batch, spare())),
        }
        self.state.schedule_if(IDLE, SCHEDULED)
    }

    /// The same for one item.
    #[must_use]
    pub(crate) fn push_one(self, item: T) -> bool {
        self.queue.get_or_insert_default().push_back(item);
        self.state.schedule_if(IDLE, SCHEDULED)
    }

    /// How many items wait.
    pub(crate) fn len(self) -> usize {
        self.queue.as_ref().map_or(0, |queue| queue.len())
    }

    /// Everything that waits, for the worker that runs this mailbox.
    pub(crate) fn take(self) -> Batch<T> {
        debug_assert!(self.state.is_scheduled());
        self.queue.take().unwrap_or_default()
    }

    /// Ends a run. `true`: more came meanwhile, and the caller puts it back on the run queue.
    #[must_use]
    pub(crate) fn finish(self) -> bool {
        debug_assert!(self.state.is_scheduled());
        let more = self.queue.is_some();
        if !more {
            self.state.set(IDLE);
        }
        more
    }

    /// Ends a run with `rest` not done: it goes back in front, and nothing runs until
    /// [`unpark`](Self::unpark).
    pub(crate) fn park(self, mut rest: Batch<T>) {
        debug_assert!(self.state.is_scheduled());
        if let Some(mut queue) = self.queue.take() {
            rest.append(&mut queue);
        }
        *self.queue = Some(rest).filter(|rest| !rest.is_empty());
        self.state.set(PARKED);
    }

    /// Lets a parked mailbox run again. `true`: the caller puts it on the run queue.
    #[must_use]
    pub(crate) fn unpark(self) -> bool {
        self.state.schedule_if(PARKED, RESUMED)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
    use std::sync::{Arc, Mutex};

    struct Owned<T> {
        queue: Option<Batch<T>>,
        state: State,
    }

    impl<T> Owned<T> {
        fn new() -> Self {
            Self {
                queue: None,
                state: State::default(),
            }
        }

        fn get(&mut self) -> Mailbox<'_, T> {
            Mailbox {
                queue: &mut self.queue,
                state: &self.state,
            }
        }
    }

    #[test]
    fn scheduled_exactly_once() {
        let mut mailbox = Owned::new();
        assert!(mailbox.get().push(&mut Box::new([1].into()), Box::default));
        assert!(!mailbox.get().push_one(2));
        assert_eq!(*mailbox.get().take(), [1, 2]);
        assert!(!mailbox.get().push(&mut Box::new([3].into()), Box::default));
        assert!(mailbox.get().finish());
        assert_eq!(*mailbox.get().take(), [3]);
        assert!(!mailbox.get().finish());
        assert!(mailbox.get().push_one(4));
    }

    #[test]
    fn parked_work_stays_in_front() {
        let mut mailbox = Owned::new();
        assert!(
            mailbox
                .get()
                .push(&mut Box::new([1, 2, 3].into()), Box::default)
        );
        let mut batch = mailbox.get().take();
        batch.pop_front();
        assert!(!mailbox.get().push(&mut Box::new([4].into()), Box::default));
        assert!(!mailbox.state.is_parked());
        mailbox.get().park(batch);
        assert!(mailbox.state.is_parked());
        assert!(!mailbox.get().push(&mut Box::new([5].into()), Box::default));
        assert!(mailbox.get().unpark());
        assert!(!mailbox.get().unpark());
        assert_eq!(*mailbox.get().take(), [2, 3, 4, 5]);
        assert!(mailbox.state.is_parked(), "and not yet done");
        assert!(!mailbox.get().finish());
        assert!(!mailbox.state.is_parked());
    }

    /// Many producers and workers on one mailbox: never two workers at once, and each producer's
    /// items in its order.
    #[test]
    fn one_runner_at_a_time_and_order_kept() {
        const PRODUCERS: usize = 4;
        const ITEMS: usize = 5000;
        let mailbox = Arc::new(Mutex::new(Owned::new()));
        let (run_queue, runnable) = crossbeam_channel::unbounded();
        let running = Arc::new(AtomicBool::new(false));
        let done = Arc::new(AtomicUsize::new(0));
        let seen = Arc::new(Mutex::new(vec![0; PRODUCERS]));
        std::thread::scope(|scope| {
            for producer in 0..PRODUCERS {
                let (mailbox, run_queue) = (mailbox.clone(), run_queue.clone());
                scope.spawn(move || {
                    for item in 0..ITEMS {
                        let mut batch = Box::new(VecDeque::from([(producer, item)]));
                        if mailbox.lock().unwrap().get().push(&mut batch, Box::default) {
                            run_queue.send(()).unwrap();
                        }
                    }
                });
            }
            for _ in 0..3 {
                let (mailbox, runnable, run_queue) =
                    (mailbox.clone(), runnable.clone(), run_queue.clone());
                let (running, done, seen) = (running.clone(), done.clone(), seen.clone());
                scope.spawn(move || {
                    while done.load(Ordering::SeqCst) < PRODUCERS * ITEMS {
                        if runnable
                            .recv_timeout(std::time::Duration::from_millis(10))
                            .is_err()
                        {
                            continue;
                        }
                        assert!(!running.swap(true, Ordering::SeqCst), "two at once");
                        let batch = mailbox.lock().unwrap().get().take();
                        let mut seen = seen.try_lock().unwrap();
                        for (producer, item) in *batch {
                            assert_eq!(seen[producer], item);
                            seen[producer] += 1;
                            done.fetch_add(1, Ordering::SeqCst);
                        }
                        drop(seen);
                        running.store(false, Ordering::SeqCst);
                        if mailbox.lock().unwrap().get().finish() {
                            run_queue.send(()).unwrap();
                        }
                    }
                });
            }
        });
        assert_eq!(*seen.lock().unwrap(), [ITEMS; PRODUCERS]);
    }
}
