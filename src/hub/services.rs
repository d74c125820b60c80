//! What the rooms and timers of one server need of it: its workers, its ticker, and to be told its
//! end.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, OnceLock, Weak};
use std::time::{Duration, Instant};

use super::task::{Later, Runnable, Task, run_here};
use super::ticker::{Look, Ticker};
use crate::link::{Command, Shared};
use crate::metrics::TickCounters;
use crate::peer::Peer;
use crate::sync::lock;
use crate::worker::{RunQueue, WeakRunQueue};

/// Ticks of rooms of one rate are this far apart, or at the same time: so the ticker wakes no more often
/// than this, however many rooms there are.
const SLOT: Duration = Duration::from_micros(500);

/// The most by which the first period of a room begins later: a room with a tick each half minute should
/// not wait another half minute for the first.
const SPREAD: Duration = Duration::from_millis(100);

/// What the rooms and timers of one server share; the server has it, and each room refers to it.
///
/// - for the server: it says who the workers are, when the server runs, when nothing is to be woken any
///   more, and at last that everything has [ended](Self::end);
/// - for rooms and timers, on any thread: [`run`](Self::run) makes something run, [`at`](Self::at) has
///   something looked at by the ticker, [`tell_end`](Self::tell_end) registers who is told of the end.
///   `run` may run it on the spot, so it is called with no lock of a room held but the stage that the
///   caller runs in.
pub(crate) struct Services {
    /// Not set while the server has not been started, and without workers.
    workers: OnceLock<WeakRunQueue<Task>>,
    ticker: Arc<Ticker>,
    end_listeners: Mutex<Vec<Weak<dyn EndListener>>>,
    ended: AtomicBool,
    /// The slots of ticks are counted from here.
    epoch: Instant,
    /// Rooms with ticks that were opened, wrapping.
    opened: AtomicU32,
    pub(crate) ticks: TickCounters,
}

/// Something that is to be told that the server has ended.
pub(super) trait EndListener: Send + Sync {
    fn ended(&self, services: &Arc<Services>);
}

impl Services {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self {
            workers: OnceLock::new(),
            ticker: Arc::new(Ticker::new()),
            end_listeners: Mutex::default(),
            ended: AtomicBool::new(false),
            epoch: Instant::now(),
            opened: AtomicU32::new(0),
            ticks: TickCounters::default(),
        })
    }

    /// The server that this connection belongs to. `None`: it is a client's.
    pub(super) fn of(peer: &Peer) -> Option<&Arc<Self>> {
        let services = peer.link.handle.shared.services.get()?;
        services.downcast_ref()
    }

    // ---- for the server ----

    /// Before its threads start.
    pub(crate) fn settle(self: &Arc<Self>, shared: &Shared, workers: Option<&RunQueue<Task>>) {
        if let Some(workers) = workers {
            // Weak: the workers end when nobody can bring them work but themselves.
            let _ = self.workers.set(workers.downgrade());
        }
        let _ = shared.services.set(Box::new(self.clone()));
        self.ticker.start();
    }

    /// How much waits for a worker.
    pub(crate) fn run_queue(&self) -> usize {
        self.workers.get().map_or(0, WeakRunQueue::len)
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
        let listeners = {
            let mut listeners = lock(&self.end_listeners);
            self.ended.store(true, Ordering::SeqCst);
            std::mem::take(&mut *listeners)
        };
        for listener in listeners.iter().filter_map(Weak::upgrade) {
            listener.ended(self);
        }
    }

    // ---- for rooms and timers ----

    pub(super) fn has_ended(&self) -> bool {
        self.ended.load(Ordering::SeqCst)
    }

    /// Makes something run: on a worker, or here if there is none (any more).
    pub(super) fn run(self: &Arc<Self>, runnable: Arc<dyn Runnable>) {
        let task = Task::Run(runnable);
        let left = match self.workers.get() {
            Some(workers) => workers.push(task).err(),
            None => Some(task),
        };
        if let Some(Task::Run(runnable)) = left {
            run_here(runnable, |more| self.run_later(more));
        }
    }

    /// Without workers: on the ticker, between other things.
    fn run_later(self: &Arc<Self>, runnable: Arc<dyn Runnable>) {
        let (services, mut later) = (self.clone(), Later::new(runnable));
        let look = move |_| {
            services.run(later.take()?);
            None
        };
        self.at(Instant::now(), look);
    }

    /// A room that held this connection has caught up.
    pub(super) fn release(&self, peer: &Peer) {
        let parked = peer.link.release();
        let handle = &peer.link.handle;
        match self.workers.get() {
            // When the workers are gone, so are the loops, and no connection is held.
            Some(workers) if parked => drop(workers.push(Task::Conn(peer.clone(), None))),
            Some(_) => {}
            None => {
                if parked {
                    handle.post(Command::Run(peer.link.clone()));
                }
                // Without workers, a connection that is held is not read from.
                handle.post(Command::Resume(peer.id().key()));
            }
        }
    }

    pub(super) fn at(&self, at: Instant, look: impl Look + 'static) {
        self.ticker.add(at, Box::new(look));
    }

    /// Nothing more will come of something that the ticker has.
    pub(super) fn one_is_over(&self) {
        self.ticker.one_is_over();
    }

    /// When the first period of a room that opens now begins: rooms of one rate are spread over the
    /// period, or the first of it, as evenly as it goes without knowing how many there will be.
    pub(super) fn start_of_period(&self, period: Duration, now: Instant) -> Instant {
        let n = self.opened.fetch_add(1, Ordering::Relaxed);
        phase_start(self.epoch, now, period, n)
    }

    /// `false`: it has come, and nobody is told any more.
    pub(super) fn tell_end(&self, listener: Weak<dyn EndListener>) -> bool {
        let mut listeners = lock(&self.end_listeners);
        if self.has_ended() {
            return false;
        }
        if !listeners.iter().any(|other| other.ptr_eq(&listener)) {
            listeners.retain(|other| other.strong_count() > 0);
            listeners.push(listener);
        }
        true
    }
}

impl std::fmt::Debug for Services {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Services")
    }
}

/// The next beginning of a period from `now` on, for the n-th room.
fn phase_start(epoch: Instant, now: Instant, period: Duration, n: u32) -> Instant {
    let cycle = period.min(SPREAD).as_nanos();
    let slots = cycle / SLOT.as_nanos();
    // The bits of the count, the last first: halves, then quarters, then eighths.
    let slot = (u128::from(n.reverse_bits()) * slots) >> 32;
    let phase = SLOT.as_nanos() * slot;
    let since = now.saturating_duration_since(epoch).as_nanos() % cycle;
    let wait = (phase + cycle - since) % cycle;
    now + Duration::from_nanos(u64::try_from(wait).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timers_that_are_cancelled_do_not_pile_up() {
        let services = Services::new();
        let hour = Duration::from_secs(3600);
        let stays = services.after(hour, || ());
        for _ in 0..100_000 {
            services.after(hour, || ()).cancel();
            services.every(hour, || ()).cancel();
        }
        assert!(services.ticker.len() < 100, "{}", services.ticker.len());
        assert!(!stays.is_over());
    }

    #[test]
    fn rooms_are_spread_over_the_period() {
        const PERIOD: Duration = Duration::from_millis(50);
        let epoch = Instant::now();
        let mut slots = [0; 100];
        for n in 0..1000 {
            // They open at any time.
            let now = epoch + Duration::from_micros(77) * n;
            let start = phase_start(epoch, now, PERIOD, n);
            assert!(start >= now && start - now < PERIOD);
            let phase = (start - epoch).as_nanos() % PERIOD.as_nanos();
            assert_eq!(phase % SLOT.as_nanos(), 0);
            slots[(phase / SLOT.as_nanos()) as usize] += 1;
        }
        assert!(slots.iter().all(|n| (8..=12).contains(n)), "{slots:?}");
        // Rates so high, or so low, that there is nothing to spread.
        let now = epoch + Duration::from_secs(1);
        for period in [Duration::from_micros(100), Duration::from_secs(1 << 40)] {
            let start = phase_start(epoch, now, period, 3);
            assert!(start >= now && start - now < period.min(SPREAD));
        }
    }
}
