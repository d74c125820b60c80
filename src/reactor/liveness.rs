//! The deadlines of a connection: which is the next, and what it does when it comes.
//!
//! A connection has one timer. Traffic does not touch it: it only notes when the peer was last
//! heard, and when the timer fires too early for that, it is set anew. So a busy connection pays
//! for a timer once per ping interval, not for every message.

use std::time::Duration;

use http::StatusCode;

use super::conn::{Conn, Context, Phase};
use super::upstream::Upstream;
use crate::config::Config;
use crate::http::Response;
use crate::message::CloseCause;
use crate::metrics::Refusal;
use crate::proto::Opcode;
use crate::token_bucket::TokenBucket;

/// How long a peer may take to hang up after all is said, and one that sent too much to answer that.
const LINGER: Duration = Duration::from_secs(2);

/// How long a peer may take for its next step of a handshake while others wait to begin theirs, so
/// that a few hundred silent sockets don't shut the door for as long as a handshake may take.
const PATIENCE_MS: u64 = 2000;

/// A moment of the loop's clock in milliseconds, of which only the low 32 bits are kept.
/// [`ms`](Self::ms) restores the rest from the present time, right for moments up to 49 days ago.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Moment(u32);

impl Moment {
    pub(super) fn at(ms: u64) -> Self {
        Self(ms as u32)
    }

    pub(super) fn ms(self, now: u64) -> u64 {
        now - u64::from((now as u32).wrapping_sub(self.0))
    }
}

/// What a peer may still send, where that is limited.
#[derive(Debug)]
pub(crate) struct Allowance {
    messages: Option<TokenBucket>,
    bytes: Option<TokenBucket>,
}

impl Allowance {
    /// `None`: as much as it likes.
    pub(super) fn new(config: &Config, now: u64) -> Option<Box<Self>> {
        let messages = config.message_rate.map(|rate| rate.rate());
        let bytes = config.byte_rate.map(|rate| rate.rate());
        (messages.is_some() || bytes.is_some()).then(|| {
            Box::new(Self {
                messages: messages.map(|rate| TokenBucket::new(rate, now)),
                bytes: bytes.map(|rate| TokenBucket::new(rate, now)),
            })
        })
    }

    pub(super) fn take_message(&mut self, now: u64) {
        if let Some(bucket) = &mut self.messages {
            bucket.take_one(now);
        }
    }

    /// `false`: these were more than it had.
    pub(super) fn take_bytes(&mut self, bytes: usize, now: u64) -> bool {
        self.bytes.as_mut().is_none_or(|bucket| {
            bucket.draw(bytes, now);
            !bucket.is_overdrawn(now)
        })
    }

    pub(super) fn is_out_of_messages(&self, now: u64) -> bool {
        self.messages.is_some_and(|bucket| bucket.is_empty(now))
    }

    pub(super) fn is_out_of_bytes(&self, now: u64) -> bool {
        self.bytes.is_some_and(|bucket| bucket.is_empty(now))
    }

    /// When there will next be more of something that is used up; `None` if nothing is.
    fn ready_at(&self, now: u64) -> Option<u64> {
        let both = [self.messages, self.bytes].into_iter().flatten();
        let empty = both.filter(|bucket| bucket.is_empty(now));
        empty.map(|bucket| bucket.ready_at(now)).min()
    }
}

/// Rounded up: what is set to less than a millisecond is still some time.
pub(super) fn millis(duration: Duration) -> u64 {
    let up = duration.saturating_add(Duration::from_nanos(999_999));
    up.as_millis().try_into().unwrap_or(u64::MAX / 4)
}

impl Conn {
    /// When this connection next needs attention, if nothing else happens.
    pub(super) fn deadline(&self, config: &Config, now: u64) -> Option<u64> {
        let after = |start: Moment, wait| Some(start.ms(now).saturating_add(millis(wait)));
        match &self.phase {
            Phase::Opening(_) if self.is_securing() || config.max_handshakes != usize::MAX => {
                let end = after(self.since, config.handshake_timeout);
                end.map(|end| end.min(now + PATIENCE_MS))
            }
            Phase::Opening(_) | Phase::Deciding => after(self.since, config.handshake_timeout),
            Phase::Dialing(dialing) => Some(dialing.deadline()),
            // All is written, or some of it was taken just now.
            Phase::Lingering if !self.is_all_written() || self.leaves_tcp_to_server() => {
                after(self.since, config.close_timeout)
            }
            Phase::Lingering => after(self.since, LINGER.min(config.close_timeout)),
            Phase::Open(_) if self.ending.as_ref().is_some_and(|e| e.is_hurried()) => {
                after(self.since, LINGER.min(config.close_timeout))
            }
            Phase::Open(_) if self.ending.is_some() => after(self.since, config.close_timeout),
            Phase::Open(allowance) => {
                let alive = match config.ping_interval {
                    _ if self.unwritable => after(self.since, config.close_timeout),
                    Some(_) if self.pinged => after(self.since, config.pong_timeout),
                    Some(interval) => after(self.last_seen, interval),
                    None => None,
                };
                let more = allowance.as_ref().and_then(|a| a.ready_at(now));
                match (alive, more) {
                    (Some(a), Some(b)) => Some(a.min(b)),
                    (a, b) => a.or(b),
                }
            }
        }
    }

    /// The timer has fired.
    pub(super) fn on_deadline<U: Upstream>(&mut self, cx: &mut Context<'_, U>) {
        // Activity may have moved the deadline; this sets the timer anew.
        self.rearm = true;
        if self.keeps_others_out(cx.now) {
            log::debug!("{}: refused: silent, and others wait", self.peer.link.id);
            self.count_refusal(Refusal::Silent);
            self.gone = true;
            return;
        }
        // There may be more of what it had used up.
        self.again |= matches!(self.phase, Phase::Open(Some(_)));
        if self
            .deadline(cx.config, cx.now)
            .is_none_or(|at| at > cx.now)
        {
            return;
        }
        match self.phase {
            Phase::Opening(_) => self.request_timeout(cx),
            Phase::Dialing(_) => self.dial_timeout(cx),
            Phase::Deciding => {
                log::debug!("{}: the handler did not decide in time", self.peer.link.id);
                self.end_now(CloseCause::HandshakeTimeout, cx);
            }
            _ if self.unwritable => {
                // It is we who take so long; or there is more and more. What a limit on rates holds back isn't
                // waited for.
                let goes_on = self.last_seen.ms(cx.now) > self.since.ms(cx.now);
                if goes_on || self.paused || self.peer.link.must_wait() {
                    self.since = Moment::at(cx.now);
                } else {
                    self.end_unwritable(cx);
                }
            }
            // A slow reader gets all of a long answer, though epoll tells of room late.
            Phase::Lingering => match self.try_blocked(cx) {
                true => self.since = Moment::at(cx.now),
                false => {
                    if cx.stopping.is_some() {
                        self.note_cut_off();
                    }
                    self.gone = true;
                }
            },
            Phase::Open(_) if self.ending.is_some() => self.on_close_timeout(cx),
            Phase::Open(_) => self.on_silence(cx),
        }
    }

    fn on_close_timeout<U: Upstream>(&mut self, cx: &mut Context<'_, U>) {
        // A slow reader gets all that is in front of our close frame, though epoll tells of room late.
        if self.has_time() && self.try_blocked(cx) {
            self.since = Moment::at(cx.now);
            return;
        }
        if self.gone || self.unwritable || !self.is_open() {
            return;
        }
        let written = self.is_all_written();
        if cx.stopping.is_some() && !written {
            self.note_cut_off();
        }
        let cause = match (self.eof, written) {
            (true, _) => CloseCause::Eof,
            (false, true) => CloseCause::CloseTimeout,
            (false, false) => CloseCause::WriteStall,
        };
        self.end_now(cause, cx);
    }

    /// Its handshake waits for the peer, for long already, while as many are under way as may be.
    fn keeps_others_out(&self, now: u64) -> bool {
        let silent = now >= self.last_seen.ms(now) + PATIENCE_MS;
        if !matches!(self.phase, Phase::Opening(_)) || !silent {
            return false;
        }
        let shared = &self.peer.link.handle.shared;
        #[cfg(feature = "tls")]
        if self.stream.is_lent() {
            // It is our turn.
            return false;
        }
        #[cfg(feature = "tls")]
        if self.is_securing() && shared.tls_handshakes_full() {
            return true;
        }
        shared.handshakes_full()
    }

    /// Nothing was heard for the ping interval, or for the pong timeout after a ping.
    fn on_silence<U: Upstream>(&mut self, cx: &mut Context<'_, U>) {
        if self.is_deaf() {
            // It is we who don't listen.
            self.last_seen = Moment::at(cx.now);
            self.pinged = false;
        } else if !self.pinged {
            self.ping(cx);
        } else if self.takes_what_it_is_sent(cx) {
            self.pinged = false;
        } else if self.gone || self.ending.is_some() {
            // That was found out when it was written to.
        } else if self.peer.link.is_congested() {
            self.end_now(CloseCause::WriteStall, cx);
        } else {
            self.end_now(CloseCause::NoPong, cx);
        }
    }

    /// Whether the kernel has taken something for a peer that does not keep up, since it was pinged: the ping
    /// may have to wait for all of that.
    ///
    /// epoll tells of room only when a third of the kernel's buffer is free, which may be a megabyte, and
    /// takes a slow peer longer than it has for a pong. A write tells of any.
    fn takes_what_it_is_sent<U: Upstream>(&mut self, cx: &mut Context<'_, U>) -> bool {
        if self.last_seen.ms(cx.now) > self.since.ms(cx.now) {
            return true;
        }
        let takes = self.try_blocked(cx);
        if takes {
            self.last_seen = Moment::at(cx.now);
        }
        takes && !self.gone && self.ending.is_none()
    }

    fn ping<U: Upstream>(&mut self, cx: &mut Context<'_, U>) {
        self.pinged = true;
        self.awaits_pong = true;
        self.since = Moment::at(cx.now);
        let payload = cx.clock_us().to_be_bytes();
        self.peer.link.outbox().control(Opcode::Ping, &payload);
        self.dirty = true;
    }

    /// A pong. If it answers our ping, it carries the time the ping was sent. One to each ping counts.
    pub(super) fn on_pong<U: Upstream>(&mut self, payload: &[u8], cx: &Context<'_, U>) {
        let Ok(sent) = payload.try_into().map(u64::from_be_bytes) else {
            return;
        };
        if !self.awaits_pong {
            return;
        }
        let round_trip = cx.clock_us().checked_sub(sent);
        // A peer may send any pong it likes, so only a sensible one counts.
        let limit = cx
            .now
            .saturating_sub(self.since.ms(cx.now))
            .saturating_add(1000)
            * 1000;
        if let Some(us) = round_trip.filter(|&us| us <= limit) {
            self.awaits_pong = false;
            let us = us.try_into().unwrap_or(u32::MAX - 1);
            self.peer.link.set_latency_us(us);
            let took = Duration::from_micros(us.into());
            cx.counters.round_trips.record(took);
        }
    }

    fn request_timeout<U: Upstream>(&mut self, cx: &mut Context<'_, U>) {
        if self.request_is_blank() {
            // Not a byte of it was sent: nothing to answer, as for a port scan or a spare connection.
            self.note_refusal(Refusal::Silent);
            self.gone = true;
        } else {
            self.refuse(Response::from(StatusCode::REQUEST_TIMEOUT), cx);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_of_a_millisecond_counts_as_one() {
        for (micros, ms) in [(0, 0), (1, 1), (999, 1), (1000, 1), (1001, 2)] {
            assert_eq!(millis(Duration::from_micros(micros)), ms);
        }
        assert!(millis(Duration::MAX) > 1 << 60);
    }

    #[test]
    fn moments_survive_the_wrap() {
        for then in [0, 5, u64::from(u32::MAX), u64::from(u32::MAX) + 7, 1 << 40] {
            for later in [0, 1, 45_000, u64::from(u32::MAX)] {
                assert_eq!(Moment::at(then).ms(then + later), then);
            }
        }
    }
}
