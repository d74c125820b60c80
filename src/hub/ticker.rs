//! The thread that wakes rooms and timers when they are due. It does not run them itself, unless there
//! are no workers.

use std::cmp::Ordering;
use std::collections::BinaryHeap;
use std::io;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};

use crate::logging::Throttle;
use crate::sync::lock;

/// Something that is looked at when it is due.
pub(super) trait Look: Send {
    /// Gives the time at which to look again.
    fn look(&mut self, now: Instant) -> Option<Instant>;

    /// Whether nothing more will come of it.
    fn is_over(&self) -> bool {
        false
    }
}

impl<F: FnMut(Instant) -> Option<Instant> + Send> Look for F {
    fn look(&mut self, now: Instant) -> Option<Instant> {
        self(now)
    }
}

/// Due ones that are looked at before the lock is taken again.
const BATCH: usize = 64;

/// It is not worth looking for fewer entries that are over.
const FEW: usize = 64;

/// See the module's documentation.
pub(super) struct Ticker {
    state: Mutex<State>,
    news: Condvar,
    /// Disconnected when the thread has ended.
    ended: Receiver<()>,
}

struct State {
    entries: BinaryHeap<Entry>,
    /// Entries so far: those that are due at the same time keep their order.
    count: u64,
    /// Entries that are known to be over, and perhaps some that are not here any more.
    over: usize,
    stage: Stage,
}

enum Stage {
    /// The server has not been started: entries are only kept. The thread will hold this.
    Waiting(Sender<()>),
    /// Nothing has been due yet, or there was no thread to be had.
    Idle(Sender<()>),
    Running,
    Stopped,
}

struct Entry {
    at: Instant,
    number: u64,
    look: Box<dyn Look>,
}

impl Ticker {
    pub(super) fn new() -> Self {
        let (alive, ended) = bounded(0);
        Self {
            state: Mutex::new(State {
                entries: BinaryHeap::new(),
                count: 0,
                over: 0,
                stage: Stage::Waiting(alive),
            }),
            news: Condvar::new(),
            ended,
        }
    }

    /// `look` is asked at `at`, and then whenever it says; until it says `None`.
    pub(super) fn add(self: &Arc<Self>, at: Instant, look: Box<dyn Look>) {
        let mut state = lock(&self.state);
        if let Stage::Stopped = state.stage {
            drop(state);
            return drop(look);
        }
        let number = state.count;
        state.count += 1;
        let first = state.entries.peek().is_none_or(|first| at < first.at);
        state.entries.push(Entry { at, number, look });
        self.run_if_needed(&mut state);
        drop(state);
        if first {
            self.news.notify_one();
        }
    }

    /// An entry has come to be over before it was due. They are let go of when every other one is: so
    /// there are never many of them, and each costs little.
    pub(super) fn one_is_over(&self) {
        let mut state = lock(&self.state);
        state.over += 1;
        if state.over < FEW.max(state.entries.len() / 2) {
            return;
        }
        state.over = 0;
        let entries = std::mem::take(&mut state.entries).into_vec();
        let (over, rest): (Vec<_>, Vec<_>) =
            entries.into_iter().partition(|entry| entry.look.is_over());
        state.entries = rest.into();
        drop(state);
        drop(over);
    }

    /// The server runs: from now on there may be a thread.
    pub(super) fn start(self: &Arc<Self>) {
        let mut state = lock(&self.state);
        if let Stage::Waiting(alive) = &state.stage {
            state.stage = Stage::Idle(alive.clone());
            self.run_if_needed(&mut state);
        }
    }

    fn run_if_needed(self: &Arc<Self>, state: &mut State) {
        let Stage::Idle(alive) = &state.stage else {
            return;
        };
        if state.entries.is_empty() {
            return;
        }
        match self.spawn(alive.clone()) {
            Ok(()) => state.stage = Stage::Running,
            // The next that is added tries again.
            Err(error) => {
                static THREADLESS: Throttle = Throttle::new();
                if let Some(more) = THREADLESS.pass() {
                    log::error!("no thread for ticks and timers: {error}{more}");
                }
            }
        }
    }

    fn spawn(self: &Arc<Self>, alive: Sender<()>) -> io::Result<()> {
        let ticker = self.clone();
        let body = move || {
            ticker.run();
            drop(alive);
        };
        let name = "framemill-ticker".into();
        thread::Builder::new().name(name).spawn(body).map(drop)
    }

    /// Nothing is looked at any more.
    pub(super) fn stop(&self) {
        let mut state = lock(&self.state);
        state.stage = Stage::Stopped;
        let entries = std::mem::take(&mut state.entries);
        drop(state);
        self.news.notify_one();
        drop(entries);
    }

    /// After [`stop`](Self::stop): waits until the thread has ended, but not past `deadline`. `false`:
    /// it still runs a room or a timer.
    pub(super) fn join(&self, deadline: Instant) -> bool {
        self.ended.recv_deadline(deadline) != Err(RecvTimeoutError::Timeout)
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        lock(&self.state).entries.len()
    }

    // ---- its thread ----

    fn run(&self) {
        let mut due: Vec<Entry> = Vec::with_capacity(BATCH);
        loop {
            let mut state = lock(&self.state);
            if let Stage::Stopped = state.stage {
                drop(state);
                return drop(due);
            }
            state.entries.extend(due.drain(..));
            let now = Instant::now();
            while due.len() < BATCH {
                match state.entries.peek() {
                    Some(first) if first.at <= now => due.extend(state.entries.pop()),
                    _ => break,
                }
            }
            if due.is_empty() {
                let wait = state.entries.peek().map(|first| first.at - now);
                self.wait(state, wait);
                continue;
            }
            drop(state);
            due.retain_mut(|entry| match entry.look.look(now) {
                Some(at) => {
                    entry.at = at;
                    true
                }
                None => false,
            });
        }
    }

    fn wait(&self, state: std::sync::MutexGuard<'_, State>, wait: Option<Duration>) {
        match wait {
            Some(wait) => drop(
                self.news
                    .wait_timeout(state, wait)
                    .unwrap_or_else(PoisonError::into_inner),
            ),
            None => drop(
                self.news
                    .wait(state)
                    .unwrap_or_else(PoisonError::into_inner),
            ),
        }
    }
}

// The first to be due is the greatest.
impl Ord for Entry {
    fn cmp(&self, other: &Self) -> Ordering {
        (other.at, other.number).cmp(&(self.at, self.number))
    }
}

impl PartialOrd for Entry {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Entry {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Entry {}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicBool, Ordering};

    struct Flag(Arc<AtomicBool>);

    impl Look for Flag {
        fn look(&mut self, _: Instant) -> Option<Instant> {
            None
        }

        fn is_over(&self) -> bool {
            self.0.load(Ordering::SeqCst)
        }
    }

    /// However many are set and cancelled, the ticker keeps about as many as are still to come.
    #[test]
    fn what_is_over_is_let_go_of() {
        let ticker = Arc::new(Ticker::new());
        let later = Instant::now() + Duration::from_secs(3600);
        let add = || {
            let flag = Arc::new(AtomicBool::new(false));
            ticker.add(later, Box::new(Flag(flag.clone())));
            flag
        };
        let stay: Vec<_> = (0..1000).map(|_| add()).collect();
        let mut most = 0;
        for _ in 0..100_000 {
            add().store(true, Ordering::SeqCst);
            ticker.one_is_over();
            most = most.max(ticker.len());
        }
        assert!(most <= 2 * stay.len() + FEW, "{most}");
        assert!(stay.iter().all(|flag| Arc::strong_count(flag) == 2));
    }
}
