//! How a server is taken out of service without being missed.

use std::sync::{Condvar, Mutex};
use std::time::Duration;

use crate::message::CloseCode;
use crate::sync::lock;

/// How [`ServerHandle::drain`](crate::ServerHandle::drain) goes about it.
///
/// ```
/// use framemill::{CloseCode, Drain};
/// use std::time::Duration;
///
/// let restart = Drain {
///     code: CloseCode::Restart,
///     spread: Duration::from_secs(60),
///     deadline: Duration::from_secs(90),
///     ..Drain::default()
/// };
/// # drop(restart);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Drain {
    /// What connections are closed with. Default: [`CloseCode::Away`], 1001; [`CloseCode::Restart`],
    /// 1012, tells clients to come back. A code that must not be sent counts as `Away`.
    pub code: CloseCode,
    /// For how long connections are still accepted while
    /// [`health`](crate::ServerHandle::health) says 503 already: what a load balancer needs to notice.
    /// Default: 5 s.
    pub notice: Duration,
    /// Over how long connections are closed after that, in batches and at random, so that not all of
    /// them come back elsewhere at once; at most nine tenths of what is then left until the `deadline`, so
    /// that the last can answer. Default: 10 s.
    pub spread: Duration,
    /// When all of it is over, from the beginning; what is left then is cut off. Default: 30 s.
    pub deadline: Duration,
}

impl Default for Drain {
    fn default() -> Self {
        Self {
            code: CloseCode::Away,
            notice: Duration::from_secs(5),
            spread: Duration::from_secs(10),
            deadline: Duration::from_secs(30),
        }
    }
}

/// Ends a notice early: somebody wants the server to end now.
#[derive(Debug, Default)]
pub(super) struct Hurry {
    wanted: Mutex<bool>,
    told: Condvar,
}

impl Hurry {
    pub(super) fn hurry(&self) {
        *lock(&self.wanted) = true;
        self.told.notify_all();
    }

    /// Waits for so long, and then begins, unless somebody was in a hurry. Who is so later waits until it
    /// has begun, so that nothing of it comes behind what they do.
    pub(super) fn wait(&self, notice: Duration, begin: impl FnOnce()) {
        let wanted = lock(&self.wanted);
        let waited = self
            .told
            .wait_timeout_while(wanted, notice, |wanted| !*wanted);
        let wanted = waited.map_or_else(|poisoned| poisoned.into_inner().0, |(wanted, _)| wanted);
        if !*wanted {
            begin();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_drain_never_begins_behind_a_shutdown() {
        let hurry = Hurry::default();
        let mut begun = false;
        hurry.wait(Duration::ZERO, || {
            begun = true;
            assert!(hurry.wanted.try_lock().is_err(), "a shutdown waits for it");
        });
        assert!(begun);
        hurry.hurry();
        hurry.wait(Duration::from_secs(3600), || unreachable!("it is too late"));
    }
}
