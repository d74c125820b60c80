//! A token bucket: a rate a second in the long run, and a burst at once after a silence.
//!
//! No clock of its own: time comes in as milliseconds from any fixed start. No lock.

use crate::config::Rate;

/// The fill of one bucket; what it may hold, and how fast it fills, comes from its [`Rate`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct TokenBucket {
    rate: Rate,
    /// Thousandths of a token; below zero while more was taken than was there.
    milli: i64,
    /// When `milli` was right.
    at: u64,
}

const ONE: i64 = 1000;

impl TokenBucket {
    /// A full one.
    pub(crate) fn new(rate: Rate, now: u64) -> Self {
        Self {
            rate,
            milli: i64::from(rate.burst) * ONE,
            at: now,
        }
    }

    fn level(&self, now: u64) -> i64 {
        // Tokens a second are thousandths of a token a millisecond.
        let grown = now
            .saturating_sub(self.at)
            .saturating_mul(u64::from(self.rate.per_second));
        let grown = i64::try_from(grown).unwrap_or(i64::MAX);
        let full = i64::from(self.rate.burst) * ONE;
        self.milli.saturating_add(grown).min(full)
    }

    /// Not a whole token is left.
    pub(crate) fn is_empty(&self, now: u64) -> bool {
        self.level(now) < ONE
    }

    /// More was taken than was there.
    pub(crate) fn is_overdrawn(&self, now: u64) -> bool {
        self.level(now) < 0
    }

    /// Nothing was taken for long enough that it is full again.
    pub(crate) fn is_full(&self, now: u64) -> bool {
        self.level(now) == i64::from(self.rate.burst) * ONE
    }

    /// Takes one token; from an empty bucket, what there is.
    pub(crate) fn take_one(&mut self, now: u64) {
        self.milli = (self.level(now) - ONE).max(0);
        self.at = now;
    }

    /// Takes `tokens`, even if there are fewer: what is missing has to grow first.
    pub(crate) fn draw(&mut self, tokens: usize, now: u64) {
        let milli = i64::try_from(tokens)
            .unwrap_or(i64::MAX)
            .saturating_mul(ONE);
        self.milli = self.level(now).saturating_sub(milli);
        self.at = now;
    }

    /// Takes one if there is one.
    pub(crate) fn try_take(&mut self, now: u64) -> bool {
        let there = !self.is_empty(now);
        if there {
            self.take_one(now);
        }
        there
    }

    /// When there will be a token again.
    pub(crate) fn ready_at(&self, now: u64) -> u64 {
        let missing = ONE.saturating_sub(self.level(now)).max(0).unsigned_abs();
        now.saturating_add(missing.div_ceil(u64::from(self.rate.per_second.max(1))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fills_at_its_rate() {
        let rate = Rate {
            per_second: 10,
            burst: 3,
        };
        let mut bucket = TokenBucket::new(rate, 0);
        for _ in 0..3 {
            assert!(!bucket.is_empty(0));
            bucket.take_one(0);
        }
        assert!(bucket.is_empty(0));
        assert_eq!(bucket.ready_at(0), 100);
        assert!(bucket.is_empty(99));
        assert!(!bucket.is_empty(100));
        bucket.take_one(100);
        assert_eq!(bucket.ready_at(150), 200);
        // A long silence fills it, and no further than the burst.
        assert!(!bucket.is_full(399) && bucket.is_full(400));
        for _ in 0..3 {
            assert!(bucket.try_take(1_000_000));
        }
        assert!(!bucket.try_take(1_000_000));
    }

    #[test]
    fn what_was_drawn_too_much_is_paid_back() {
        let rate = Rate {
            per_second: 1000,
            burst: 500,
        };
        let mut bucket = TokenBucket::new(rate, 0);
        bucket.draw(500, 0);
        assert!(bucket.is_empty(0) && !bucket.is_overdrawn(0));
        bucket.draw(2000, 0);
        assert!(bucket.is_overdrawn(1999) && !bucket.is_overdrawn(2000));
        assert_eq!(bucket.ready_at(0), 2001);
        bucket.draw(usize::MAX, 0);
        assert!(bucket.is_overdrawn(u64::from(u32::MAX)));
        assert!(bucket.ready_at(7) > 7);
    }
}
