//! Pauses between attempts, which the end of the server cuts short.

use std::sync::{Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::lock;

const FIRST: Duration = Duration::from_millis(50);
const LONGEST: Duration = Duration::from_secs(5);

/// When the server ends, if it does.
#[derive(Default)]
pub(super) struct End {
    deadline: Mutex<Option<Instant>>,
    changed: Condvar,
}

impl End {
    pub(super) fn is_near(&self, deadline: Instant) {
        *lock(&self.deadline) = Some(deadline);
        self.changed.notify_all();
    }

    /// The deadline, once there is one.
    pub(super) fn deadline(&self) -> Option<Instant> {
        *lock(&self.deadline)
    }

    pub(super) fn has_come(&self) -> bool {
        self.deadline().is_some_and(|at| at <= Instant::now())
    }

    /// Waits, but not when the end becomes near, nor past it.
    fn pause(&self, pause: Duration) {
        let mut deadline = lock(&self.deadline);
        let pause = match *deadline {
            Some(at) => pause.min(at.saturating_duration_since(Instant::now())),
            None => pause,
        };
        let (until, before) = (Instant::now() + pause, *deadline);
        while *deadline == before {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            let woken = self.changed.wait_timeout(deadline, left);
            deadline = woken.unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

/// How long to wait before the next attempt.
#[derive(Default)]
pub(super) struct BackOff {
    failures: u32,
}

impl BackOff {
    pub(super) fn succeeded(&mut self) {
        self.failures = 0;
    }

    /// Twice as long each time, and a random part of that: nodes that lost Redis together do not come
    /// back together.
    pub(super) fn pause(&mut self) -> Duration {
        let most = FIRST
            .saturating_mul(1 << self.failures.min(10))
            .min(LONGEST);
        self.failures = self.failures.saturating_add(1);
        most.mul_f64(0.5 + rand::random::<f64>() / 2.0)
    }

    pub(super) fn wait(&mut self, end: &End) {
        end.pause(self.pause());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_cuts_a_pause_short() {
        let end = End::default();
        let started = Instant::now();
        std::thread::scope(|scope| {
            scope.spawn(|| end.pause(Duration::from_secs(60)));
            end.is_near(Instant::now());
        });
        assert!(started.elapsed() < Duration::from_secs(30) && end.has_come());
    }

    #[test]
    fn pauses_grow_up_to_a_limit() {
        let mut back_off = BackOff { failures: 3000 };
        let end = End::default();
        end.is_near(Instant::now());
        back_off.wait(&end);
        assert_eq!(back_off.failures, 3001);
        back_off.succeeded();
        assert_eq!(back_off.failures, 0);
    }
}
