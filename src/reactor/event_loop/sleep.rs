//! How long the loop sleeps, when it lets others have its core, and what it does about quiet.

use std::io;
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
        if !self.upstream.is_inline() {
            self.aside.step_aside(self.woke);
        }
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
