//! How long a thread has been at work, including the present piece of it: a handler that blocks for
//! minutes shows at once, not when it is through.

use std::sync::atomic::{AtomicU64, Ordering, fence};
use std::time::{Duration, Instant};

use super::Buckets;

/// Since when a thread has been at work, beside the histogram of what it has done. Written by one thread;
/// any may read.
#[derive(Debug)]
pub(crate) struct Busy {
    epoch: Instant,
    /// Nanoseconds since the epoch; 0 while there is no work.
    since: AtomicU64,
    /// The most that any reader was told: it never goes back, though between the end of a piece of work and
    /// the record of it a reader finds neither.
    told: AtomicU64,
}

impl Default for Busy {
    fn default() -> Self {
        Self {
            epoch: Instant::now(),
            since: AtomicU64::new(0),
            told: AtomicU64::new(0),
        }
    }
}

impl Busy {
    /// From when on the times are that [`begin`](Self::begin) is told.
    pub(crate) fn epoch(&self) -> Instant {
        self.epoch
    }

    /// Work begins.
    #[inline]
    pub(crate) fn begin(&self, since_epoch: Duration) {
        let since = since_epoch.as_nanos() as u64;
        self.since.store(since.max(1), Ordering::Relaxed);
    }

    /// It has ended, and took this long.
    #[inline]
    pub(crate) fn end(&self, took: Duration, done: &Buckets) {
        self.since.store(0, Ordering::Relaxed);
        // Whoever finds it among what is done finds it under way no more.
        fence(Ordering::Release);
        done.record(took);
    }

    /// Whether work is under way, and how long all of it has taken.
    pub(super) fn read(&self, done: &Buckets) -> (bool, Duration) {
        let done = done.sum();
        fence(Ordering::Acquire);
        let since = match self.since.load(Ordering::Relaxed) {
            0 => None,
            since => Some(self.epoch + Duration::from_nanos(since)),
        };
        let present = since.map_or(Duration::ZERO, |since| since.elapsed());
        let all = (done + present).as_nanos() as u64;
        let told = self.told.fetch_max(all, Ordering::Relaxed);
        (since.is_some(), Duration::from_nanos(all.max(told)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_add_up_and_the_present_one_counts() {
        let (ms, second) = (Duration::from_millis, Duration::from_secs(1));
        let busy = Busy {
            epoch: Instant::now() - 2 * second,
            ..Busy::default()
        };
        let done = Buckets::default();
        assert_eq!(busy.read(&done), (false, Duration::ZERO));
        busy.begin(ms(10));
        busy.end(ms(20), &done);
        assert_eq!(busy.read(&done), (false, ms(20)));
        busy.begin(second);
        let (at_work, time) = busy.read(&done);
        assert!(at_work && time >= ms(1020), "{time:?}");
        // Until it is recorded, the reader has that.
        busy.since.store(0, Ordering::Relaxed);
        assert_eq!(busy.read(&done), (false, time));
        busy.end(2 * second, &done);
        let (at_work, after) = busy.read(&done);
        assert!(!at_work && after >= ms(2020) && after >= time, "{after:?}");
    }
}
