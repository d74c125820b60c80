//! Timers for handlers.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, Instant};

use super::schedule::Schedule;
use super::services::Services;
use super::task::Runnable;
use super::ticker::Look;
use crate::guard::guarded;
use crate::logging::Throttle;
use crate::sync::lock;

/// A timer that was set with [`ServerHandle::every`](crate::ServerHandle::every) or
/// [`after`](crate::ServerHandle::after). Dropping it does not cancel the timer.
#[derive(Clone)]
pub struct Timer {
    alarm: Arc<Alarm>,
}

impl Timer {
    /// Cancels the timer: no further call begins. One that is under way on another thread goes on.
    pub fn cancel(&self) {
        if self.alarm.cancel() {
            if let Some(services) = self.alarm.services.upgrade() {
                services.one_is_over();
            }
        }
    }

    /// Whether it will fire no more: it was cancelled, has fired for the last time, has panicked, or the server has
    /// ended.
    pub fn is_over(&self) -> bool {
        // One that is set for beyond all time is not told of the end.
        let services = self.alarm.services.upgrade();
        let ended = services.is_none_or(|services| services.has_ended());
        ended || self.alarm.over.load(Ordering::SeqCst)
    }
}

impl fmt::Debug for Timer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Timer(over: {})", self.is_over())
    }
}

type Call = Box<dyn FnMut() + Send>;

struct Alarm {
    services: Weak<Services>,
    /// The call waits for a worker, or runs. What is due meanwhile is merged with it.
    pending: AtomicBool,
    over: AtomicBool,
    once: bool,
    call: Mutex<Option<Call>>,
}

impl Services {
    /// Calls `f` once in every period.
    pub(crate) fn every(
        self: &Arc<Self>,
        period: Duration,
        f: impl FnMut() + Send + 'static,
    ) -> Timer {
        let schedule = Schedule::new(Instant::now(), period);
        let mut seen = 0;
        let next = move |now| {
            seen = schedule.due(now).max(seen);
            schedule.at(seen + 1)
        };
        self.alarm(schedule.at(1), false, Box::new(f), Box::new(next))
    }

    /// Calls `f` once.
    pub(crate) fn after(
        self: &Arc<Self>,
        delay: Duration,
        f: impl FnOnce() + Send + 'static,
    ) -> Timer {
        let mut f = Some(f);
        let call = move || {
            if let Some(f) = f.take() {
                f();
            }
        };
        let at = Instant::now().checked_add(delay);
        self.alarm(at, true, Box::new(call), Box::new(|_| None))
    }

    fn alarm(self: &Arc<Self>, at: Option<Instant>, once: bool, call: Call, next: Next) -> Timer {
        let alarm = Arc::new(Alarm {
            services: Arc::downgrade(self),
            pending: AtomicBool::new(false),
            over: AtomicBool::new(false),
            once,
            call: Mutex::new(Some(call)),
        });
        let timer = Timer {
            alarm: alarm.clone(),
        };
        // Beyond all time, it never goes off.
        if let Some(at) = at {
            self.at(at, Set { alarm, next });
        }
        timer
    }
}

/// When it fires next.
type Next = Box<dyn FnMut(Instant) -> Option<Instant> + Send>;

/// An alarm that the ticker has. When the ticker lets go of it, that was all.
struct Set {
    alarm: Arc<Alarm>,
    next: Next,
}

impl Look for Set {
    fn look(&mut self, now: Instant) -> Option<Instant> {
        let services = self.alarm.services.upgrade()?;
        if self.is_over() {
            return None;
        }
        if !self.alarm.pending.swap(true, Ordering::SeqCst) {
            services.run(self.alarm.clone());
        }
        (self.next)(now)
    }

    fn is_over(&self) -> bool {
        self.alarm.over.load(Ordering::SeqCst)
    }
}

impl Drop for Set {
    fn drop(&mut self) {
        // The last call may still wait for a worker.
        if !self.alarm.once || !self.alarm.pending.load(Ordering::SeqCst) {
            self.alarm.cancel();
        }
    }
}

impl Alarm {
    /// `false`: it was over before.
    fn cancel(&self) -> bool {
        let first = !self.over.swap(true, Ordering::SeqCst);
        // Not while it runs; then it goes when it is done.
        let call = self.call.try_lock().ok().and_then(|mut call| call.take());
        drop_call(call);
        first
    }
}

fn drop_call(call: Option<Call>) {
    if guarded(|| drop(call)).is_none() {
        static PANICS: Throttle = Throttle::new();
        if let Some(more) = PANICS.pass() {
            log::error!("what a timer was to call panicked when it was dropped{more}");
        }
    }
}

impl Runnable for Alarm {
    fn run(&self) -> bool {
        let mut slot = lock(&self.call);
        if !self.over.load(Ordering::SeqCst) {
            if let Some(call) = &mut *slot {
                if guarded(call).is_none() {
                    static PANICS: Throttle = Throttle::new();
                    if let Some(more) = PANICS.pass() {
                        log::error!("a timer panicked; it is cancelled{more}");
                    }
                    self.over.store(true, Ordering::SeqCst);
                }
            }
        }
        if self.once {
            self.over.store(true, Ordering::SeqCst);
        }
        let over = self.over.load(Ordering::SeqCst);
        let call = if over { slot.take() } else { None };
        drop(slot);
        drop_call(call);
        self.pending.store(false, Ordering::SeqCst);
        false
    }
}
