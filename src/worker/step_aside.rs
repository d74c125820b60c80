//! When a thread lets others that share its core run first: a loop its workers, once it has work for them, and a
//! worker its loop, once it has none any more. So neither has to be woken.

use std::thread;
use std::time::{Duration, Instant};

/// A worker rarely takes longer for a group of connections, nor does a loop for a turn. If it was longer, handlers are
/// slow, or others want the core too.
const LONG_FOR_WORKERS: Duration = Duration::from_micros(200);
const LONG_FOR_A_LOOP: Duration = Duration::from_millis(1);

/// After that the thread keeps its core for so many times as long: for twice as many each time in a row, so that one
/// of them is nothing much, and many cost a hundredth at most.
const STAYS_FIRST: u32 = 8;
const STAYS_MOST: u32 = 128;

/// In a row: with no more than so much of short ones in between.
const FORGOTTEN: Duration = Duration::from_millis(100);

/// Nor longer than this: the process may have been stopped.
const STAYS_AT_MOST: Duration = Duration::from_secs(10);

/// See the module's documentation.
#[derive(Debug)]
pub(crate) struct StepAside {
    long_from: Duration,
    /// Not before, since a long one.
    next: Option<Instant>,
    /// Long ones in a row.
    long: u32,
}

impl StepAside {
    /// A loop's, for its workers.
    pub(crate) fn of_a_loop() -> Self {
        Self::new(LONG_FOR_WORKERS)
    }

    /// A worker's, for its loop.
    pub(super) fn of_a_worker() -> Self {
        Self::new(LONG_FOR_A_LOOP)
    }

    fn new(long_from: Duration) -> Self {
        Self {
            long_from,
            next: None,
            long: 0,
        }
    }

    /// Lets others go first, unless that took long a moment ago. `now` may be the beginning of a turn.
    pub(crate) fn step_aside(&mut self, now: Instant) {
        if self.is_due(now) {
            let from = Instant::now();
            thread::yield_now();
            self.took(from.elapsed(), from);
        }
    }

    fn is_due(&self, now: Instant) -> bool {
        self.next.is_none_or(|next| now >= next)
    }

    fn took(&mut self, time: Duration, from: Instant) {
        if self.next.is_some_and(|next| from > next + FORGOTTEN) {
            self.long = 0;
        }
        if time <= self.long_from {
            return;
        }
        let times = (STAYS_FIRST << self.long).min(STAYS_MOST);
        self.next = Some(from + time + (time * times).min(STAYS_AT_MOST));
        self.long = (self.long + 1).min(8); // enough for the most
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_waits_in_a_row_become_rare() {
        let mut aside = StepAside::of_a_loop();
        let mut now = Instant::now();
        assert!(aside.is_due(now));
        // How long the thread keeps its core after it stepped aside for so many milliseconds.
        let mut stays = |aside: &mut StepAside, ms: u64| {
            let time = Duration::from_millis(ms);
            aside.took(time, now);
            let next = aside.next.unwrap();
            let stays = next.saturating_duration_since(now + time);
            assert!(aside.is_due(next) && !aside.is_due(next - Duration::from_nanos(1)));
            now = next.max(now);
            stays.as_millis()
        };
        let all: Vec<_> = (0..6).map(|_| stays(&mut aside, 3)).collect();
        assert_eq!(all, [24, 48, 96, 192, 384, 384]);
        assert_eq!(stays(&mut aside, 60_000), 10_000);
        assert_eq!(stays(&mut aside, 0), 0);
        assert_eq!(stays(&mut aside, 1), 128);
        let later = aside.next.unwrap() + FORGOTTEN + Duration::from_millis(1);
        aside.took(Duration::ZERO, later);
        now = later;
        let mut again = |ms| {
            aside.took(Duration::from_millis(ms), now);
            aside.next.unwrap() - now
        };
        assert_eq!(again(1).as_millis(), 9);
    }
}
