//! How long things took, in buckets that double.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// The first bucket holds what took less than 2^FIRST nanoseconds.
const FIRST: u32 = 8;

/// Bounds, each twice the one before: from 256 ns to 34 s.
const BOUNDS: usize = 28;

/// A histogram that is being filled. One thread writes, unless
/// [`record_from_any`](Self::record_from_any) is used; any may read.
#[derive(Debug, Default)]
pub(crate) struct Buckets {
    counts: [AtomicU64; BOUNDS + 1],
    sum_ns: AtomicU64,
}

fn bucket(ns: u64) -> usize {
    let bits = u64::BITS - ns.leading_zeros();
    (bits.saturating_sub(FIRST) as usize).min(BOUNDS)
}

impl Buckets {
    #[inline]
    pub(crate) fn record(&self, took: Duration) {
        let ns = took.as_nanos() as u64;
        super::advance(&self.counts[bucket(ns)], 1);
        super::advance(&self.sum_ns, ns);
    }

    /// The same for histograms that many threads write.
    pub(crate) fn record_from_any(&self, took: Duration) {
        let ns = took.as_nanos() as u64;
        self.counts[bucket(ns)].fetch_add(1, Ordering::Relaxed);
        self.sum_ns.fetch_add(ns, Ordering::Relaxed);
    }

    pub(crate) fn read(&self) -> Histogram {
        let read = |n: &AtomicU64| n.load(Ordering::Relaxed);
        Histogram {
            counts: self.counts.iter().map(read).collect(),
            sum: self.sum(),
        }
    }

    pub(super) fn sum(&self) -> Duration {
        Duration::from_nanos(self.sum_ns.load(Ordering::Relaxed))
    }
}

/// How often something took how long. The bounds of the buckets double from 256 ns to 34 s, so a quantile is right
/// within a factor of two.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Histogram {
    counts: Vec<u64>,
    sum: Duration,
}

impl Default for Histogram {
    fn default() -> Self {
        Self {
            counts: vec![0; BOUNDS + 1],
            sum: Duration::ZERO,
        }
    }
}

impl Histogram {
    /// For each bucket, from the shortest on: its upper bound (exclusive), and the count in this bucket alone. The
    /// last bucket has no bound.
    pub fn buckets(&self) -> impl Iterator<Item = (Option<Duration>, u64)> {
        self.counts.iter().enumerate().map(|(n, &count)| {
            let bound = (n < BOUNDS).then(|| bound(n));
            (bound, count)
        })
    }

    /// How many times were recorded.
    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// The sum of all recorded times.
    pub fn sum(&self) -> Duration {
        self.sum
    }

    /// The average; zero if nothing was recorded.
    pub fn mean(&self) -> Duration {
        let nanos = self.sum.as_nanos() / u128::from(self.count().max(1));
        Duration::from_nanos(nanos as u64)
    }

    /// The time that this part of the recorded times did not exceed: `quantile(0.99)` is the 99th percentile. It is
    /// an estimate, which takes the times in one bucket to be spread evenly over it. Zero if nothing was recorded.
    pub fn quantile(&self, part: f64) -> Duration {
        let rank = part.clamp(0.0, 1.0) * self.count() as f64;
        let mut below = 0.0;
        for (n, &count) in self.counts.iter().enumerate() {
            let count = count as f64;
            if count > 0.0 && below + count >= rank {
                let low = if n == 0 { Duration::ZERO } else { bound(n - 1) };
                let high = bound(n.min(BOUNDS - 1)).max(low);
                return low + (high - low).mul_f64(((rank - below) / count).clamp(0.0, 1.0));
            }
            below += count;
        }
        Duration::ZERO
    }

    /// What was added since `earlier`, an older reading of the same histogram.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        let pairs = self.counts.iter().zip(&earlier.counts);
        Self {
            counts: pairs.map(|(now, then)| now.saturating_sub(*then)).collect(),
            sum: self.sum.saturating_sub(earlier.sum),
        }
    }

    pub(super) fn add(&mut self, other: &Self) {
        for (mine, others) in self.counts.iter_mut().zip(&other.counts) {
            *mine += others;
        }
        self.sum += other.sum;
    }
}

fn bound(n: usize) -> Duration {
    Duration::from_nanos(1 << (FIRST as usize + n))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_time_has_its_bucket() {
        for n in 0..BOUNDS {
            let at = 1 << (FIRST as usize + n);
            assert_eq!(bucket(at - 1), n, "below a bound");
            assert_eq!(bucket(at), n + 1, "at it");
        }
        assert_eq!((bucket(0), bucket(u64::MAX)), (0, BOUNDS));
    }

    #[test]
    fn figures_are_right_within_a_factor_of_two() {
        let buckets = Buckets::default();
        for us in 1..=1000 {
            buckets.record(Duration::from_micros(us));
        }
        let before = buckets.read();
        assert_eq!(before.count(), 1000);
        assert_eq!(before.sum(), Duration::from_micros(500_500));
        assert_eq!(before.mean(), Duration::from_nanos(500_500));
        for (part, us) in [(0.5, 500), (0.99, 990), (0.1, 100), (1.0, 1000)] {
            let found = before.quantile(part);
            let right = Duration::from_micros(us);
            assert!(
                found * 2 >= right && found <= right * 2,
                "{part}: {found:?}"
            );
        }
        buckets.record_from_any(Duration::from_secs(100));
        let news = buckets.read().since(&before);
        assert_eq!(news.count(), 1);
        assert_eq!(news.buckets().last(), Some((None, 1)));
        assert!(news.quantile(0.5) > Duration::from_secs(30));
        assert_eq!(Histogram::default().quantile(0.5), Duration::ZERO);
    }
}
