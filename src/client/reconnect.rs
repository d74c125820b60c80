//! When a client tries again, and how long it waits before.

use std::time::Duration;

use http::StatusCode;

use crate::error::Error;
use crate::message::{CloseCause, CloseCode, CloseReason, Initiator};

/// No longest wait is shorter than this: a server that refuses at once would be asked again at once.
const LEAST: Duration = Duration::from_millis(10);
const MOST: Duration = Duration::from_secs(365 * 86_400);

/// How a client reconnects; see [`Client::reconnect`](crate::Client::reconnect).
///
/// The wait before attempt *n* is chosen at random between 0 and `base` · 2ⁿ⁻¹, at most `max`: exponential back-off
/// with full jitter, so that a server that comes back is not overrun by all its clients at the same moment.
///
/// The client reconnects
///
/// - after a connection that was lost or could not be made, or a timeout;
/// - after a response of 408, 425, 429 or 5xx;
/// - after a close with a code other than 1000.
///
/// It does not reconnect
///
/// - after a close that this side asked for, whatever the server answered;
/// - after a clean close with 1000 (unless [`after_normal`](Self::after_normal) is set);
/// - after a panic of the handler;
/// - when the server refuses with any other status, or does not speak WebSocket.
///
/// A `Retry-After` in the server's answer does not change the wait. It is among the headers of [`Error::Refused`],
/// which is in [`Retry::reason`]: to honour it, close the client and start another later.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reconnect {
    base: Duration,
    max: Duration,
    attempts: Option<u32>,
    after_normal: bool,
}

/// At most half a second before the first attempt and 30 s before any; no limit on attempts.
impl Default for Reconnect {
    fn default() -> Self {
        Self {
            base: Duration::from_millis(500),
            max: Duration::from_secs(30),
            attempts: None,
            after_normal: false,
        }
    }
}

impl Reconnect {
    /// The default: at most half a second before the first attempt and 30 s before any; no limit on
    /// attempts.
    pub fn new() -> Self {
        Self::default()
    }

    /// The longest wait before the first attempt (`base`), and before any attempt (`max`); each is 10 ms at least.
    /// Default: 500 ms, 30 s.
    #[must_use]
    pub fn delays(mut self, base: Duration, max: Duration) -> Self {
        (self.base, self.max) = (base.max(LEAST), max.clamp(LEAST, MOST));
        self
    }

    /// Gives up after `attempts` failures in a row. Default: never gives up. A connection that lasted at least as long
    /// as the longest delay ends a row of failures.
    #[must_use]
    pub fn attempts(mut self, attempts: u32) -> Self {
        self.attempts = Some(attempts);
        self
    }

    /// Also reconnects after a clean close with 1000 by the server. Default: no.
    #[must_use]
    pub fn after_normal(mut self) -> Self {
        self.after_normal = true;
        self
    }

    /// Whether a connection is worth calling stable.
    pub(super) fn has_settled(&self, lasted: Duration) -> bool {
        lasted >= self.max
    }

    /// Whether there is an attempt with this number, counted from 1, and how long to wait for it.
    pub(super) fn delay(&self, attempt: u32) -> Option<Duration> {
        if self.attempts.is_some_and(|most| attempt > most) {
            return None;
        }
        Some(self.ceiling(attempt).mul_f64(rand::random::<f64>()))
    }

    fn ceiling(&self, attempt: u32) -> Duration {
        let doubled = 2u32.saturating_pow(attempt.saturating_sub(1).min(31));
        self.base.saturating_mul(doubled).min(self.max)
    }

    /// Whether an end of this kind is followed by another attempt.
    pub(super) fn covers(&self, reason: &RetryReason) -> bool {
        match reason {
            RetryReason::Closed(reason) => {
                let ours = reason.initiator() == Initiator::Local;
                match reason.cause() {
                    CloseCause::Panic | CloseCause::Shutdown | CloseCause::Terminated => false,
                    // Closed on this side, whatever became of that.
                    CloseCause::Handshake | CloseCause::Transport | CloseCause::Eof if ours => {
                        false
                    }
                    CloseCause::Handshake => {
                        self.after_normal || reason.code() != CloseCode::Normal
                    }
                    _ => true,
                }
            }
            RetryReason::Failed(error) => match error {
                Error::Resolve { .. } | Error::Connect { .. } | Error::Timeout | Error::Io(_) => {
                    true
                }
                Error::Refused { status, .. } => {
                    status.is_server_error()
                        || *status == StatusCode::REQUEST_TIMEOUT
                        || *status == StatusCode::TOO_EARLY
                        || *status == StatusCode::TOO_MANY_REQUESTS
                }
                _ => false,
            },
        }
    }
}

/// A further attempt that is going to be made.
#[derive(Debug)]
#[non_exhaustive]
pub struct Retry {
    /// Its number in this row of attempts, from 1.
    pub attempt: u32,
    /// The wait before it.
    pub delay: Duration,
    /// Why there is another attempt.
    pub reason: RetryReason,
}

/// Why a client connects once more.
#[derive(Debug)]
#[non_exhaustive]
pub enum RetryReason {
    /// The connection ended.
    Closed(CloseReason),
    /// The last attempt failed.
    Failed(Error),
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io;

    #[test]
    fn waits_double_up_to_the_longest_and_are_jittered() {
        let reconnect = Reconnect::new().delays(Duration::from_millis(100), Duration::from_secs(1));
        let ceilings: Vec<_> = (1..=6).map(|n| reconnect.ceiling(n).as_millis()).collect();
        assert_eq!(ceilings, [100, 200, 400, 800, 1000, 1000]);
        assert_eq!(reconnect.ceiling(u32::MAX), Duration::from_secs(1));
        let delays: Vec<_> = (0..64).map(|_| reconnect.delay(5).unwrap()).collect();
        assert!(delays.iter().all(|delay| *delay <= Duration::from_secs(1)));
        let low = delays.iter().min().unwrap();
        let high = delays.iter().max().unwrap();
        assert!(
            *high - *low > Duration::from_millis(300),
            "{low:?}..{high:?}"
        );
    }

    /// Or a server that refuses would be asked again at once, for ever.
    #[test]
    fn there_is_some_wait_whatever_is_set() {
        let reconnect = Reconnect::new().delays(Duration::ZERO, Duration::ZERO);
        for attempt in [1, 100] {
            assert_eq!(reconnect.ceiling(attempt), Duration::from_millis(10));
        }
        assert!(!reconnect.has_settled(Duration::ZERO));
    }

    #[test]
    fn attempts_are_counted() {
        assert_eq!(Reconnect::new().attempts(0).delay(1), None);
        let three = Reconnect::new().attempts(3);
        assert!(three.delay(3).is_some());
        assert_eq!(three.delay(4), None);
        assert!(Reconnect::new().delay(u32::MAX).is_some());
    }

    #[test]
    fn what_is_tried_again() {
        let reconnect = Reconnect::new();
        let refused = |code: u16| {
            let status = StatusCode::from_u16(code).unwrap();
            let headers = Box::default();
            RetryReason::Failed(Error::Refused { status, headers })
        };
        for (code, again) in [
            (301, false),
            (401, false),
            (404, false),
            (429, true),
            (503, true),
        ] {
            assert_eq!(reconnect.covers(&refused(code)), again, "{code}");
        }
        let failed = |error| reconnect.covers(&RetryReason::Failed(error));
        assert!(failed(Error::Timeout));
        assert!(failed(Error::Io(io::ErrorKind::Other.into())));
        assert!(!failed(Error::Closed));
        assert!(!failed(Error::Handshake("no")));
        let closed = |code, initiator, cause| {
            RetryReason::Closed(CloseReason {
                code,
                text: "".into(),
                initiator,
                cause,
                clean: true,
                undelivered: 0,
            })
        };
        use CloseCause::{Eof, Handshake, Panic, Terminated};
        use Initiator::{Local, Peer};
        let normal = closed(CloseCode::Normal, Peer, Handshake);
        assert!(!reconnect.covers(&normal));
        assert!(Reconnect::new().after_normal().covers(&normal));
        assert!(reconnect.covers(&closed(CloseCode::Away, Peer, Handshake)));
        assert!(!reconnect.covers(&closed(CloseCode::Away, Local, Handshake)));
        assert!(reconnect.covers(&closed(CloseCode::Abnormal, Peer, Eof)));
        assert!(!reconnect.covers(&closed(CloseCode::Error, Local, Panic)));
        assert!(!reconnect.covers(&closed(CloseCode::Abnormal, Local, Terminated)));
    }
}
