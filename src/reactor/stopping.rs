//! A server that stops: which connections are told when.
//!
//! At a shutdown all of them at once, as far as the budget of a turn goes; at a drain a few at a time,
//! over as long as was asked for, in no order, so that those who came together don't all come back
//! together somewhere else.

use std::time::{Duration, Instant};

use rand::RngExt;
use rand::seq::SliceRandom;

use crate::id::Key;
use crate::message::CloseCode;

/// Connections told to go away per turn, so that a large server stays able to write what they say last.
const CLOSES: usize = 256;

/// Between two batches of a drain, on average; each time it is from half to one and a half of this, so
/// that several loops and several servers don't keep step.
const BATCH: Duration = Duration::from_millis(50);

/// See the module's documentation.
pub(super) struct Stopping {
    pub(super) deadline: Instant,
    /// What the connections are told.
    pub(super) code: CloseCode,
    untold: Vec<Key>,
    /// `None`: as fast as can be.
    pace: Option<Pace>,
}

struct Pace {
    begun: Instant,
    /// How long after `begun` all have been told.
    over: Duration,
    /// How many there were at `begun`.
    total: usize,
    next: Instant,
}

impl Stopping {
    /// All at once.
    pub(super) fn at_once(untold: Vec<Key>, deadline: Instant) -> Self {
        Self {
            deadline,
            code: CloseCode::Away,
            untold,
            pace: None,
        }
    }

    /// Over some time, but a tenth of what is left before the deadline is for the answers of the last.
    pub(super) fn spread(
        mut untold: Vec<Key>,
        code: CloseCode,
        over: Duration,
        begun: Instant,
        deadline: Instant,
    ) -> Self {
        untold.shuffle(&mut rand::rng());
        Self {
            deadline,
            code,
            pace: Some(Pace {
                begun,
                over: over.min(deadline.saturating_duration_since(begun) / 10 * 9),
                total: untold.len(),
                next: begun + jittered(),
            }),
            untold,
        }
    }

    /// Those that are to be told now.
    pub(super) fn due(&mut self, now: Instant) -> Vec<Key> {
        let due = match &mut self.pace {
            None => CLOSES,
            Some(pace) if now < pace.next => 0,
            Some(pace) => {
                let elapsed = now.saturating_duration_since(pace.begun);
                let told = pace.total - self.untold.len();
                let due = pace.share(elapsed).saturating_sub(told);
                if due <= CLOSES {
                    // The last of them on time.
                    pace.next = (now + jittered()).min((pace.begun + pace.over).max(now));
                }
                due.min(CLOSES)
            }
        };
        self.untold.split_off(self.untold.len().saturating_sub(due))
    }

    /// How long until there is something to do.
    pub(super) fn wait(&self, now: Instant) -> Duration {
        let next = match &self.pace {
            _ if self.untold.is_empty() => self.deadline,
            None => now,
            Some(pace) => pace.next.min(self.deadline),
        };
        next.saturating_duration_since(now)
    }
}

impl Pace {
    /// How many are to be told by then.
    fn share(&self, elapsed: Duration) -> usize {
        if elapsed >= self.over {
            return self.total;
        }
        let part = elapsed.as_secs_f64() / self.over.as_secs_f64();
        (self.total as f64 * part) as usize
    }
}

fn jittered() -> Duration {
    BATCH.mul_f64(rand::rng().random_range(0.5..1.5))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(count: u32) -> Vec<Key> {
        let key = |slot| Key {
            slot,
            generation: 0,
        };
        (0..count).map(key).collect()
    }

    /// Runs a clock by hand; gives how many were told by when, in milliseconds.
    fn run(count: u32, over: Duration, deadline: Duration) -> Vec<(u128, usize)> {
        let now = Instant::now();
        let mut stopping =
            Stopping::spread(keys(count), CloseCode::Restart, over, now, now + deadline);
        let mut told = Vec::new();
        let (mut at, mut slots) = (now, Vec::new());
        while !stopping.untold.is_empty() {
            at += stopping.wait(at).max(Duration::from_nanos(1));
            slots.extend(stopping.due(at).iter().map(|key| key.slot));
            told.push(((at - now).as_millis(), slots.len()));
        }
        let in_order: Vec<_> = (0..count).collect();
        let ascents = slots.windows(2).filter(|pair| pair[0] < pair[1]).count();
        let share = ascents as f64 / slots.len() as f64;
        assert!(
            count < 100 || (0.3..0.7).contains(&share),
            "{share}: in order"
        );
        slots.sort_unstable();
        assert_eq!(slots, in_order, "each once");
        told
    }

    #[test]
    fn a_drain_is_even_and_ends_in_time() {
        let told = run(4000, Duration::from_secs(2), Duration::from_secs(60));
        for (ms, count) in &told {
            assert!(
                (*count as i128 - 2 * *ms as i128).abs() <= 10,
                "{count} after {ms} ms"
            );
        }
        assert!((26..=100).contains(&told.len()), "{} batches", told.len());
        assert!((1990..=2010).contains(&told.last().unwrap().0));
        // No room for that: by the deadline.
        let told = run(100, Duration::from_secs(60), Duration::from_secs(1));
        assert!((850..=910).contains(&told.last().unwrap().0));
        // No time at all, and very many.
        let told = run(1000, Duration::ZERO, Duration::from_secs(1));
        assert!(told.last().unwrap().0 <= 100);
        assert_eq!(told[0].1, CLOSES);
        run(1, Duration::from_secs(1), Duration::from_secs(2));
    }
}
