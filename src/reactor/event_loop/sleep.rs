//! How long the loop sleeps, when it lets others have its core, and what it does about quiet.

use std::io;
use std::thread;
use std::time::{Duration, Instant};

use super::EventLoop;
use crate::config::OnQuiet;
use crate::guard::guarded;
use crate::link;
use crate::logging::Throttle;
use crate::reactor::upstream::Upstream;

/// How long a loop sleeps at most after it gave work to the workers; see
/// [`LoopHandle`](crate::link::LoopHandle).
const NAP: Duration = Duration::from_millis(1);

/// After this much idleness, memory kept for reuse is released.
const TIDY: Duration = Duration::from_millis(100);

/// Workers that share the loop's core rarely take longer for a group of connections. If it was longer,
/// handlers are slow, or others want the core too.
const LONG: Duration = Duration::from_micros(200);

/// After that the loop keeps the core for so many times as long: for twice as many each time in a row, so
/// that one of them is nothing much, and many cost a hundredth at most.
const STAYS_FIRST: u32 = 8;
const STAYS_MOST: u32 = 128;

/// In a row: with no more than so many milliseconds of short ones in between.
const FORGOTTEN: u64 = 100;

/// Nor longer than this: the process may have been stopped.
const STAYS_AT_MOST: Duration = Duration::from_secs(10);

/// When the loop lets workers that share its core go first. Times in milliseconds of the loop's clock.
#[derive(Debug, Default)]
pub(super) struct StepAside {
    /// Not before.
    next: u64,
    /// Long ones in a row.
    long: u32,
}

impl StepAside {
    fn is_due(&self, now: u64) -> bool {
        now >= self.next
    }

    fn took(&mut self, time: Duration, now: u64) {
        if now > self.next + FORGOTTEN {
            self.long = 0;
        }
        if time <= LONG {
            return;
        }
        let times = (STAYS_FIRST << self.long).min(STAYS_MOST);
        let stays = (time * times).min(STAYS_AT_MOST);
        self.next = now + stays.as_millis() as u64;
        self.long = (self.long + 1).min(8); // enough for the most
    }
}

/// How the loop waits for its sockets and its waker.
#[derive(Clone, Copy)]
enum Sleep {
    /// Something waits already.
    Not,
    /// For [`NAP`]: workers may soon have something.
    Nap,
    /// For [`TIDY`]: then it has been quiet for long enough to tidy up.
    UntilTidy,
    /// Until the nearest deadline, if there is one.
    UntilDue(Option<Duration>),
}

impl Sleep {
    /// As a poll takes it.
    fn timeout(self) -> Option<Duration> {
        match self {
            Self::Not => Some(Duration::ZERO),
            Self::Nap => Some(NAP),
            Self::UntilTidy => Some(TIDY),
            Self::UntilDue(timeout) => timeout,
        }
    }
}

impl<U: Upstream> EventLoop<U> {
    /// Sleeps until there is something to do.
    pub(super) fn wait(&mut self) -> io::Result<()> {
        let (sleep, slept_from) = self.plan();
        if let Some(slept_from) = slept_from {
            self.turn_ended(slept_from);
        }
        let result = self.poll.poll(&mut self.events, sleep.timeout());
        self.handle.awake();
        let woke = Instant::now();
        if slept_from.is_none() {
            // A turn that another follows at once lasts until that one begins.
            self.turn_ended(woke);
        }
        self.turn_begins(woke);
        if self.events.is_empty() {
            self.was_quiet(sleep);
        } else {
            self.untidy = true;
        }
        match result {
            Err(error) if error.kind() != io::ErrorKind::Interrupted => Err(error),
            _ => Ok(()),
        }
    }

    /// How to sleep, and from when if not for something that waits.
    fn plan(&self) -> (Sleep, Option<Instant>) {
        let Some((due_in, now)) = self.timeout() else {
            return (Sleep::Not, None);
        };
        let at_least = |least| due_in.is_none_or(|due_in| due_in >= least);
        let sleep = if due_in == Some(Duration::ZERO) || !self.handle.fall_asleep(self.nap) {
            Sleep::Not
        } else if self.nap && at_least(NAP) {
            Sleep::Nap
        } else if at_least(TIDY) && self.worth_tidying() {
            Sleep::UntilTidy
        } else {
            Sleep::UntilDue(due_in)
        };
        (sleep, Some(now))
    }

    /// Lets workers that share the loop's core run what they were given: while it is in the cache, and before
    /// the loop falls asleep, from which they would have to wake it.
    pub(super) fn step_aside(&mut self) {
        if self.upstream.is_inline() || !self.aside.is_due(self.now) {
            return;
        }
        let from = Instant::now();
        thread::yield_now();
        self.aside.took(from.elapsed(), self.now);
    }

    fn turn_begins(&mut self, woke: Instant) {
        let since_start = woke.saturating_duration_since(self.start);
        self.handle.counters.busy.begin(since_start);
        self.woke = woke;
        self.now = since_start.as_millis() as u64;
    }

    pub(super) fn turn_ended(&self, at: Instant) {
        let counters = &self.handle.counters;
        let turn = at.saturating_duration_since(self.woke);
        counters.busy.end(turn, &counters.turns);
    }

    /// Whether there is something to let go of after some idleness, or somebody to tell.
    fn worth_tidying(&self) -> bool {
        self.tools.blocks.holds_memory()
            || self.tools.in_place.holds_memory()
            || (self.untidy && (self.handle.config.on_quiet.is_some() || link::keeps_spare()))
    }

    /// Nothing came for as long as it slept.
    fn was_quiet(&mut self, sleep: Sleep) {
        match sleep {
            Sleep::Nap => self.nap = false,
            Sleep::UntilTidy => self.tidy(),
            Sleep::Not | Sleep::UntilDue(_) => {}
        }
    }

    fn tidy(&mut self) {
        self.untidy = false;
        self.tools.blocks.release();
        self.tools.in_place.release();
        link::release_spare();
        if let Some(OnQuiet(call)) = &self.handle.config.on_quiet {
            if guarded(call.as_ref()).is_none() {
                static PANICS: Throttle = Throttle::new();
                if let Some(more) = PANICS.pass() {
                    log::error!("loop {}: on_quiet panicked{more}", self.handle.index);
                }
            }
        }
    }

    /// The time until the nearest of all deadlines, if there is one, and the time now. `None`: something
    /// waits already.
    fn timeout(&self) -> Option<(Option<Duration>, Instant)> {
        // Those that could go on wait for another loop.
        let again = !self.again.is_empty() && !self.ahead;
        let waiting = again || !self.touched.is_empty() || !self.dials.is_empty();
        if waiting || self.handle.has_own() {
            return None;
        }
        let now = Instant::now();
        let since_start = now.saturating_duration_since(self.start);
        let until = |at: u64| Duration::from_millis(at).saturating_sub(since_start);
        let timers = self.wheel.next().map(until);
        let accept = self.acceptor.deadline(self.now).map(until);
        let stopping = self.stopping.as_ref();
        let stop = stopping.map(|stopping| stopping.wait(now));
        let others = (self.ahead || self.held_back).then_some(NAP);
        let nearest = [timers, accept, stop, others].into_iter().flatten().min();
        Some((nearest, now))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How long the loop keeps its core after it stepped aside for so many milliseconds.
    fn stays(aside: &mut StepAside, ms: u64) -> u64 {
        let now = aside.next;
        aside.took(Duration::from_millis(ms), now);
        aside.next - now
    }

    #[test]
    fn long_waits_in_a_row_become_rare() {
        let mut aside = StepAside::default();
        assert!(aside.is_due(0));
        let all: Vec<_> = (0..6).map(|_| stays(&mut aside, 3)).collect();
        assert_eq!(all, [24, 48, 96, 192, 384, 384]);
        assert!(!aside.is_due(aside.next - 1));
        assert_eq!(stays(&mut aside, 60_000), 10_000);
        assert_eq!(stays(&mut aside, 0), 0);
        assert_eq!(stays(&mut aside, 1), 128);
        aside.took(Duration::ZERO, aside.next + FORGOTTEN + 1);
        assert_eq!(stays(&mut aside, 1), 8);
    }
}
