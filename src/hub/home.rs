//! What the rooms and timers of one server need of it: its workers, its ticker, and to be told its
//! end.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, OnceLock, Weak};
use std::time::{Duration, Instant};

use super::task::{Runnable, Task, run_here};
use super::ticker::{Look, Ticker};
use crate::link::{Command, Shared, lock};
use crate::peer::Peer;
use crate::worker::{RunQueue, WeakRunQueue};

/// Ticks are begun so far apart, at least, so that the ticker wakes no more often than this however
/// many rooms there are.
const SLOT: Duration = Duration::from_micros(500);

/// See the module's documentation.
pub(crate) struct Home {
    /// Not set while the server has not been started, and without workers.
    workers: OnceLock<WeakRunQueue<Task>>,
    ticker: Arc<Ticker>,
    guests: Mutex<Vec<Weak<dyn Guest>>>,
    ended: AtomicBool,
    /// Rooms with ticks that were opened, wrapping.
    opened: AtomicU32,
}

/// Whoever is to be told that the server has ended.
pub(super) trait Guest: Send + Sync {
    fn ended(&self, home: &Arc<Home>);
}

impl Home {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self {
            workers: OnceLock::new(),
            ticker: Arc::new(Ticker::new()),
            guests: Mutex::default(),
            ended: AtomicBool::new(false),
            opened: AtomicU32::new(0),
        })
    }

    /// The server that this connection belongs to. `None`: it is a client's.
    pub(super) fn of(peer: &Peer) -> Option<&Arc<Self>> {
        let home = peer.link.handle.shared.home.get()?;
        home.downcast_ref()
    }

    // ---- for the server ----

    /// Before its threads start.
    pub(crate) fn settle(self: &Arc<Self>, shared: &Shared, workers: Option<&RunQueue<Task>>) {
        if let Some(workers) = workers {
            // Weak: the workers end when nobody can bring them work but themselves.
            let _ = self.workers.set(workers.downgrade());
        }
        let _ = shared.home.set(Box::new(self.clone()));
        self.ticker.start();
    }

    /// Its loops have ended: no more ticks.
    pub(crate) fn stop_ticker(&self) {
        self.ticker.stop();
    }

    /// Waits for the ticker's thread, but not past `deadline`. `false`: it is still busy.
    pub(crate) fn join_ticker(&self, deadline: Instant) -> bool {
        self.ticker.join(deadline)
    }

    /// Everything has ended: the rooms do.
    pub(crate) fn end(self: &Arc<Self>) {
        self.ended.store(true, Ordering::SeqCst);
        let guests = std::mem::take(&mut *lock(&self.guests));
        for guest in guests.iter().filter_map(Weak::upgrade) {
            guest.ended(self);
        }
    }

    // ---- for rooms and timers ----

    pub(super) fn has_ended(&self) -> bool {
        self.ended.load(Ordering::SeqCst)
    }

    /// Makes something run: on a worker, or here if there is none (any more).
    pub(super) fn run(&self, runnable: Arc<dyn Runnable>) {
        let task = Task::Run(runnable);
        let left = match self.workers.get() {
            Some(workers) => workers.push(task).err(),
            None => Some(task),
        };
        if let Some(Task::Run(runnable)) = left {
            run_here(runnable);
        }
    }

    /// A room that held this connection has caught up.
    pub(super) fn release(&self, peer: &Peer) {
        let parked = peer.link.release();
        let handle = &peer.link.handle;
        match self.workers.get() {
            // When the workers are gone, so are the loops, and no connection is held.
            Some(workers) if parked => drop(workers.push(Task::Conn(peer.clone()))),
            Some(_) => {}
            None => {
                if parked {
                    handle.command(Command::Run(peer.link.clone()));
                }
                // Without workers, a connection that is held is not read from.
                handle.command(Command::Resume(peer.id().key()));
            }
        }
    }

    pub(super) fn at(&self, at: Instant, look: Look) {
        self.ticker.add(at, look);
    }

    /// When the first period of a room that opens now begins: rooms of one rate are spread over the
    /// period, as evenly as it goes without knowing how many there will be.
    pub(super) fn phase(&self, period: Duration) -> Duration {
        let n = self.opened.fetch_add(1, Ordering::Relaxed);
        let slots = period.as_nanos() / SLOT.as_nanos();
        // The bits of the count, the last first: halves, then quarters, then eighths.
        let slot = (u128::from(n.reverse_bits()) * slots) >> 32;
        SLOT * u32::try_from(slot).unwrap_or(0)
    }

    pub(super) fn tell_end(&self, guest: Weak<dyn Guest>) {
        let mut guests = lock(&self.guests);
        if !guests.iter().any(|other| other.ptr_eq(&guest)) {
            guests.retain(|other| other.strong_count() > 0);
            guests.push(guest);
        }
    }
}

impl std::fmt::Debug for Home {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Home")
    }
}
