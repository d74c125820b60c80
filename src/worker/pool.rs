//! The threads, and the run queue that feeds them.

use std::io;
use std::sync::{Arc, Weak};
use std::thread::{self, JoinHandle, ThreadId};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded, unbounded};

use super::step_aside::StepAside;

/// After this many runs a worker passes on what it held back, even if more is waiting. Large enough
/// that a busy worker wakes its loop rarely, small enough that replies don't pile up.
const RUNS: u32 = 64;

/// A worker that has had nothing to do for this long rests.
const QUIET: Duration = Duration::from_millis(100);

/// Where a runnable item is put. Items wait in the order they came; as each is a mailbox, which is
/// never queued twice, the queue is bounded by the number of mailboxes.
#[derive(Debug)]
pub(crate) struct RunQueue<T>(Arc<Sender<T>>);

impl<T> RunQueue<T> {
    pub(crate) fn push(&self, item: T) {
        // The receivers are gone only when no worker could be started at all.
        let _ = self.0.send(item);
    }

    /// The same queue, for those who must not keep the workers alive.
    pub(crate) fn downgrade(&self) -> WeakRunQueue<T> {
        WeakRunQueue(Arc::downgrade(&self.0))
    }
}

/// A run queue that is gone once everybody else has let go of it.
#[derive(Debug)]
pub(crate) struct WeakRunQueue<T>(Weak<Sender<T>>);

impl<T> WeakRunQueue<T> {
    /// Puts `item` in, or gives it back: nobody takes anything out any more.
    pub(crate) fn push(&self, item: T) -> Result<(), T> {
        match self.0.upgrade() {
            Some(queue) => queue.send(item).map_err(|error| error.0),
            None => Err(item),
        }
    }

    /// How many wait.
    pub(crate) fn len(&self) -> usize {
        self.0.upgrade().map_or(0, |queue| queue.len())
    }
}

impl<T> Clone for RunQueue<T> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

/// What workers do with the items.
pub(crate) trait Work<T>: Send + Sync + 'static {
    /// What a worker has for itself.
    type State;
    /// A worker thread begins, the n-th.
    fn begin(&self, n: usize) -> Self::State;
    /// Runs one item. `true`: it goes back on the run queue. Must not panic.
    fn run(&self, state: &mut Self::State, item: &mut T) -> bool;
    /// A worker is about to wait, or has run many items: what it held back should go out.
    fn pause(&self, state: &mut Self::State);
    /// Whether a worker keeps what should go when it has had nothing to do for a while.
    fn keeps(&self) -> bool;
    /// Lets go of it.
    fn rest(&self);
}

/// A fixed number of threads.
#[derive(Debug)]
pub(crate) struct Pool {
    threads: Vec<JoinHandle<()>>,
    /// Disconnected when the last worker has ended.
    ended: Receiver<()>,
}

impl Pool {
    /// Starts `workers` threads. They end when every clone of the returned queue is gone and what
    /// was in it is done.
    fn start<T: Send + 'static, W: Work<T>>(
        workers: usize,
        work: &Arc<W>,
    ) -> io::Result<(Self, RunQueue<T>)> {
        let (sender, receiver) = unbounded::<T>();
        let run_queue = RunQueue(Arc::new(sender));
        let (alive, ended) = bounded::<()>(0);
        let mut threads = Vec::with_capacity(workers);
        for n in 0..workers {
            let (work, alive) = (work.clone(), alive.clone());
            // Weak, or the workers would keep their own queue open for ever.
            let (receiver, back) = (receiver.clone(), Arc::downgrade(&run_queue.0));
            let body = move || {
                work_off(n, workers == 1, &*work, &receiver, &back);
                drop(alive);
            };
            let name = format!("framemill-worker-{n}");
            threads.push(thread::Builder::new().name(name).spawn(body)?);
        }
        Ok((Self { threads, ended }, run_queue))
    }

    /// The same, but nothing if there are to be none.
    pub(crate) fn start_if_any<T: Send + 'static, W: Work<T>>(
        workers: usize,
        work: &Arc<W>,
    ) -> io::Result<(Option<Self>, Option<RunQueue<T>>)> {
        Ok(match workers {
            0 => (None, None),
            _ => Some(Self::start(workers, work)?).unzip(),
        })
    }

    /// Its workers.
    pub(crate) fn threads(&self) -> impl Iterator<Item = ThreadId> {
        self.threads.iter().map(|thread| thread.thread().id())
    }

    /// Waits until all workers have ended, but not past `deadline`. `false`: some are still busy,
    /// and are left to themselves.
    pub(crate) fn join(self, deadline: Instant) -> bool {
        if self.ended.recv_deadline(deadline) == Err(RecvTimeoutError::Timeout) {
            return false;
        }
        self.threads.into_iter().for_each(|t| drop(t.join()));
        true
    }
}

/// `alone`: there are no other workers, which would take what comes meanwhile.
fn work_off<T, W: Work<T>>(
    n: usize,
    alone: bool,
    work: &W,
    items: &Receiver<T>,
    back: &Weak<Sender<T>>,
) {
    let mut state = work.begin(n);
    let mut runs = 0;
    let mut aside = StepAside::of_a_worker();
    loop {
        let mut item = match items.try_recv() {
            Ok(item) => item,
            Err(_) => {
                work.pause(&mut state);
                if alone {
                    // Whoever brings more may share the core.
                    aside.step_aside(Instant::now());
                }
                match items.try_recv().ok().or_else(|| wait(work, items)) {
                    Some(item) => item,
                    None => return,
                }
            }
        };
        runs += 1;
        if runs % RUNS == 0 {
            work.pause(&mut state);
        }
        while work.run(&mut state, &mut item) {
            // To the end of the queue, so that others get their turn.
            if let Some(back) = back.upgrade() {
                let _ = back.send(item);
                break;
            }
        }
    }
}

/// The next item, however long that takes. `None`: there will be none.
fn wait<T, W: Work<T>>(work: &W, items: &Receiver<T>) -> Option<T> {
    if work.keeps() {
        match items.recv_timeout(QUIET) {
            Err(RecvTimeoutError::Timeout) => work.rest(),
            item => return item.ok(),
        }
    }
    items.recv().ok()
}
