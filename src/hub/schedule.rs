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

#[cfg(test)]
mod tests {
    use super::*;

    const PERIOD: Duration = Duration::from_millis(10);

    /// A clock that is moved by hand.
    struct Hand {
        start: Instant,
        pace: Pace,
    }

    impl Hand {
        fn new() -> Self {
            let start = Instant::now();
            Self {
                start,
                pace: Pace::new(Schedule::new(start, PERIOD)),
            }
        }

        fn at(&self, tenths: u32) -> Instant {
            self.start + PERIOD * tenths / 10
        }

        /// The ticker looks, at this time in tenths of a period.
        fn look(&self, tenths: u32) -> (bool, u64) {
            let due = self.pace.look(self.at(tenths));
            let next = self.at((tenths / 10 + 1) * 10);
            assert_eq!(due.next, Some(next), "always on the grid");
            (due.pass_on, due.overruns)
        }

        fn begin(&self, tenths: u32) -> Option<Tick> {
            self.pace.begin(self.at(tenths))
        }
    }

    fn tick(number: u64, merged: u32, late_tenths: u32) -> Tick {
        Tick {
            number,
            merged,
            dt: PERIOD * (merged + 1),
            late: PERIOD * late_tenths / 10,
        }
    }

    #[test]
    fn nothing_adds_up() {
        let start = Instant::now();
        // 60 Hz is no whole number of nanoseconds.
        let schedule = Schedule::new(start, Duration::from_secs_f64(1.0 / 60.0));
        let day = 60 * 86_400;
        let error = schedule.at(day).unwrap() - start;
        assert!(error.abs_diff(Duration::from_secs(86_400)) < Duration::from_millis(10));
        for n in [0, 1, 59, 3600, day] {
            let at = schedule.at(n).unwrap();
            assert_eq!(schedule.due(at), n);
            assert_eq!(
                schedule.due(at - Duration::from_nanos(1)),
                n.saturating_sub(1)
            );
        }
        assert_eq!(schedule.due(start - Duration::from_secs(1)), 0);
        assert_eq!(schedule.at(u64::MAX), None);
        assert_eq!(
            Schedule::new(start, Duration::ZERO).period(),
            Schedule::FINEST
        );
    }

    #[test]
    fn in_time_every_tick_is_one_period() {
        let hand = Hand::new();
        for n in 1..50 {
            // The ticker and the room are late, by different times.
            assert_eq!(hand.look(n * 10 + n % 4), (true, 0));
            let late = n % 4 + 1;
            let now = hand.begin(n * 10 + late).unwrap();
            assert_eq!(now, tick(n.into(), 0, late));
            hand.pace.end(now);
        }
    }

    #[test]
    fn what_is_due_while_one_waits_is_merged() {
        let hand = Hand::new();
        assert_eq!(hand.look(10), (true, 0));
        assert_eq!(hand.look(20), (false, 1));
        assert_eq!(hand.look(30), (false, 1));
        let merged = hand.begin(35).unwrap();
        assert_eq!(merged, tick(3, 2, 5));
        hand.pace.end(merged);
        assert_eq!(hand.look(40), (true, 0));
        assert_eq!(hand.begin(40), Some(tick(4, 0, 0)));
    }

    #[test]
    fn what_is_due_while_one_runs_waits() {
        let hand = Hand::new();
        assert_eq!(hand.look(10), (true, 0));
        let slow = hand.begin(10).unwrap();
        assert_eq!(hand.look(20), (true, 1));
        hand.pace.end(slow);
        assert_eq!(hand.begin(21), Some(tick(2, 0, 1)));
    }

    #[test]
    fn a_tick_that_was_dealt_with_is_none() {
        let hand = Hand::new();
        assert_eq!(hand.look(10), (true, 0));
        let first = hand.begin(10).unwrap();
        // Passed on, and taken before the room has got it.
        assert_eq!(hand.look(20), (true, 1));
        hand.pace.end(first);
        let second = hand.begin(20).unwrap();
        hand.pace.end(second);
        assert_eq!(hand.begin(20), None);
    }

    #[test]
    fn a_ticker_that_slept_catches_up_in_one() {
        let hand = Hand::new();
        assert_eq!(hand.look(75), (true, 6));
        let all = hand.begin(75).unwrap();
        assert_eq!(all, tick(7, 6, 5));
        hand.pace.end(all);
        // A clock that is read out of order changes nothing.
        let early = hand.pace.look(hand.at(60));
        assert_eq!((early.pass_on, early.next), (false, Some(hand.at(80))));
        hand.pace.stop();
        assert_eq!(hand.pace.look(hand.at(90)).next, None);
    }

    /// A ticker and a room on threads of their own: the periods of all ticks add up.
    #[test]
    fn no_tick_is_lost() {
        const TICKS: u64 = 200_000;
        let start = Instant::now();
        let pace = Pace::new(Schedule::new(start, PERIOD));
        let (pass_on, passed_on) = crossbeam_channel::unbounded();
        let (calls, periods) = std::thread::scope(|scope| {
            let room = scope.spawn(|| {
                let (mut calls, mut periods) = (0_u64, 0);
                for now in passed_on {
                    if let Some(tick) = pace.begin(now) {
                        calls += 1;
                        periods += u64::from(tick.merged) + 1;
                        assert_eq!(periods, tick.number);
                        pace.end(tick);
                    }
                }
                (calls, periods)
            });
            for n in 1..=TICKS {
                let now = pace.schedule.at(n).unwrap();
                if pace.look(now).pass_on {
                    pass_on.send(now).unwrap();
                }
            }
            drop(pass_on);
            room.join().unwrap()
        });
        assert_eq!(periods, TICKS);
        assert!(calls <= periods);
    }
}
