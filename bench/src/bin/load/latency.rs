//! A histogram of latencies: 32 steps to every doubling, so percentiles are right to 3 %.

use std::time::Duration;

use framemill_bench::report::{Report, rounded};

const STEPS: usize = 32;

pub(crate) struct Latency {
    counts: Vec<u32>,
}

impl Latency {
    pub(crate) fn new() -> Self {
        Self {
            counts: vec![0; bucket(u64::MAX) + 1],
        }
    }

    pub(crate) fn record(&mut self, time: Duration) {
        self.counts[bucket(time.as_nanos() as u64)] += 1;
    }

    pub(crate) fn put_into(&self, report: &mut Report) {
        report.p50_us = self.percentile(50.0);
        report.p99_us = self.percentile(99.0);
    }

    /// In microseconds; `None` if nothing was recorded.
    pub(crate) fn percentile(&self, percent: f64) -> Option<f64> {
        let total: u64 = self.counts.iter().map(|&count| u64::from(count)).sum();
        let rank = (total as f64 * percent / 100.0).ceil().max(1.0) as u64;
        let mut seen = 0;
        let found = self.counts.iter().position(|&count| {
            seen += u64::from(count);
            seen >= rank
        })?;
        Some(rounded(middle(found) / 1000.0))
    }
}

fn bucket(nanos: u64) -> usize {
    match nanos.checked_ilog2() {
        Some(log @ 5..) => (log as usize - 4) * STEPS + (nanos >> (log - 5)) as usize % STEPS,
        _ => nanos as usize,
    }
}

fn middle(bucket: usize) -> f64 {
    if bucket < STEPS {
        return bucket as f64;
    }
    let width = (1_u64 << (bucket / STEPS - 1)) as f64;
    ((STEPS + bucket % STEPS) as f64 + 0.5) * width
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_are_narrow_and_in_order() {
        let mut last = 0;
        for nanos in (0..2_000_000).step_by(7) {
            let bucket = bucket(nanos);
            assert!(bucket >= last);
            last = bucket;
            assert!(
                (middle(bucket) - nanos as f64).abs() <= 1.0 + nanos as f64 * 0.04,
                "{nanos}"
            );
        }
    }

    #[test]
    fn percentiles() {
        let mut latency = Latency::new();
        assert_eq!(latency.percentile(50.0), None);
        (1..=1000).for_each(|micros| latency.record(Duration::from_micros(micros)));
        assert!((latency.percentile(50.0).unwrap() - 500.0).abs() < 20.0);
        assert!((latency.percentile(99.0).unwrap() - 990.0).abs() < 30.0);
    }
}
