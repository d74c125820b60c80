//! Warnings that somebody outside can cause at will: a few in each period are written, the others are
//! only counted.
//!
//! What is logged where: errors and warnings are what an operator should know of; debug tells the end
//! of each connection, or its refusal or answer, with its id in front; nothing is logged per message.
//! The target is the module (`framemill::reactor::ending` for how connections end, `framemill::server`
//! for handlers that panic), but for `framemill::history`, `framemill::topics` and
//! `framemill::backplane`, which stand for what several modules do.

use std::fmt;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use crate::sync::lock;

/// Lines of one kind that are written …
const LINES: u32 = 5;

/// … per period of this length.
const WHILE: Duration = Duration::from_secs(10);

/// Lets a few lines of one kind pass; a `static` beside the line itself.
#[derive(Debug)]
pub(crate) struct Throttle(Mutex<State>);

#[derive(Debug)]
struct State {
    /// When the current period began.
    since: Option<Instant>,
    passed: u32,
    held: u64,
}

/// How many lines like this were held back since the last that was written; goes at its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Held(u64);

impl Throttle {
    pub(crate) const fn new() -> Self {
        Self(Mutex::new(State {
            since: None,
            passed: 0,
            held: 0,
        }))
    }

    /// `None`: this line is not to be written.
    pub(crate) fn pass(&self) -> Option<Held> {
        self.pass_at(Instant::now())
    }

    fn pass_at(&self, now: Instant) -> Option<Held> {
        let mut state = lock(&self.0);
        let over = |since: Instant| now.saturating_duration_since(since) >= WHILE;
        if state.since.is_none_or(over) {
            state.since = Some(now);
            state.passed = 0;
        }
        if state.passed == LINES {
            state.held += 1;
            return None;
        }
        state.passed += 1;
        Some(Held(std::mem::take(&mut state.held)))
    }
}

impl fmt::Display for Held {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            0 => Ok(()),
            n => write!(f, " ({n} more like this were not logged)"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_few_a_while_and_the_rest_counted() {
        let throttle = Throttle::new();
        let start = Instant::now();
        let mut passed = Vec::new();
        for ms in 0..25_000 {
            passed.extend(throttle.pass_at(start + Duration::from_millis(ms)));
        }
        assert_eq!(passed.len(), 15, "5 in each while begun");
        assert_eq!(passed[0].to_string(), "");
        assert_eq!(
            passed[5].to_string(),
            " (9995 more like this were not logged)"
        );
        assert_eq!(passed.iter().filter(|held| held.0 > 0).count(), 2);
    }
}
