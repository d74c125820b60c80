//! When a tick is due, as pure data: a fixed step, no drift, and late ones merge.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::room::Tick;

/// Fixed times, a period apart: the n-th is at `start + n * period`, however late those before were.
#[derive(Clone, Copy, Debug)]
pub(super) struct Schedule {
    start: Instant,
    /// Not zero.
    period: Duration,
}

impl Schedule {
    /// The shortest period.
    pub(super) const FINEST: Duration = Duration::from_micros(100);

    pub(super) fn new(start: Instant, period: Duration) -> Self {
        let period = period.max(Self::FINEST);
        Self { start, period }
    }

    pub(super) fn period(&self) -> Duration {
        self.period
    }

    /// When the n-th is due; `None` if that is beyond all time.
    pub(super) fn at(&self, n: u64) -> Option<Instant> {
        let nanos = self.period.as_nanos().checked_mul(n.into())?;
        let since = Duration::from_nanos(u64::try_from(nanos).ok()?);
        self.start.checked_add(since)
    }

    /// How many are due by now.
    pub(super) fn due(&self, now: Instant) -> u64 {
        let since = now.saturating_duration_since(self.start);
        u64::try_from(since.as_nanos() / self.period.as_nanos()).unwrap_or(u64::MAX)
    }
}

/// The ticks of one room, between the ticker, which finds them due, and whoever runs the room.
///
/// `done <= due`. A tick is with the room exactly while `waiting` is set; the ticker counts first and
/// then looks at `waiting`, the room clears `waiting` and then looks at the count, so one of them sees
/// the other and no tick is lost.
#[derive(Debug)]
pub(super) struct Pace {
    schedule: Schedule,
    due: AtomicU64,
    done: AtomicU64,
    waiting: AtomicBool,
    stopped: AtomicBool,
}

/// What the ticker found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Due {
    /// The room is to be given a tick.
    pub(super) pass_on: bool,
    /// Ticks that are due though one before them is not done.
    pub(super) overruns: u64,
    /// When to look again; `None`: never.
    pub(super) next: Option<Instant>,
}

impl Pace {
    pub(super) fn new(schedule: Schedule) -> Self {
        Self {
            schedule,
            due: AtomicU64::new(0),
            done: AtomicU64::new(0),
            waiting: AtomicBool::new(false),
            stopped: AtomicBool::new(false),
        }
    }

    /// The ticker looks. Only the ticker calls this.
    pub(super) fn look(&self, now: Instant) -> Due {
        if self.is_stopped() {
            return Due {
                pass_on: false,
                overruns: 0,
                next: None,
            };
        }
        let before = self.due.load(Ordering::SeqCst);
        let due = self.schedule.due(now).max(before);
        let next = self.schedule.at(due + 1);
        let fresh = due - before;
        let in_time = before == self.done.load(Ordering::SeqCst);
        self.due.store(due, Ordering::SeqCst);
        Due {
            pass_on: fresh > 0 && !self.waiting.swap(true, Ordering::SeqCst),
            overruns: fresh.saturating_sub(in_time.into()),
            next,
        }
    }

    /// The room takes its tick. `None`: an earlier one has dealt with it. Only whoever runs the room
    /// calls this.
    pub(super) fn begin(&self, now: Instant) -> Option<Tick> {
        self.waiting.store(false, Ordering::SeqCst);
        let number = self.due.load(Ordering::SeqCst);
        let fresh = number - self.done.load(Ordering::SeqCst);
        let merged = u32::try_from(fresh.checked_sub(1)?).unwrap_or(u32::MAX);
        let at = self.schedule.at(number).unwrap_or(now);
        Some(Tick {
            number,
            dt: self.schedule.period() * merged.saturating_add(1),
            merged,
            late: now.saturating_duration_since(at),
        })
    }

    /// It is done with it.
    pub(super) fn end(&self, tick: Tick) {
        self.done.store(tick.number, Ordering::SeqCst);
    }

    /// No more ticks.
    pub(super) fn stop(&self) {
        self.stopped.store(true, Ordering::SeqCst);
    }

    pub(super) fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::SeqCst)
    }
}
