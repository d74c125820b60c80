//! How a server is taken out of service while others take over.

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
    /// The code that connections are closed with. Default: [`CloseCode::Away`], 1001; [`CloseCode::Restart`],
    /// 1012, tells clients to come back. A code that must not be sent counts as `Away`.
    pub code: CloseCode,
    /// How long connections are still accepted while [`health`](crate::ServerHandle::health) already
    /// says 503, so that a load balancer can notice. Default: 5 s.
    pub notice: Duration,
    /// The time over which connections are closed after the `notice`, in batches and at random, so that clients
    /// don't all come back elsewhere at once. Default: 10 s. It takes at most nine tenths of the time that is left
    /// until the `deadline` when the notice is over, so that the last clients can answer.
    pub spread: Duration,
    /// When the drain is over, counted from its beginning; connections that are left are cut off. Default: 30 s.
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
    /// `true`: somebody was in a hurry before.
    pub(super) fn hurry(&self) -> bool {
        let again = std::mem::replace(&mut *lock(&self.wanted), true);
        self.told.notify_all();
        again
    }

    /// Waits for the notice and then begins, unless somebody was in a hurry. Somebody who is so later
    /// waits until it has begun, so that nothing of it comes behind what they do.
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
