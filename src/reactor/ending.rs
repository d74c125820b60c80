//! How a connection ends (RFC 6455 §7).
//!
//! Closing is a set of facts, and the verdict is derived from them:
//!
//! - *we sent* a close frame: the outbox is sealed, and `local_close` tells why;
//! - *they sent* one: `Ending::received`;
//! - *failed*: the peer broke a rule, so nothing it sends counts any more (§7.1.7);
//! - *eof*: nothing more can come.
//!
//! | facts | verdict |
//! |---|---|
//! | we sent, they sent, all written | clean: half-close, linger |
//! | failed, all written | half-close, linger |
//! | eof and nothing sent | the handler finishes what it has, then all is written, then gone |
//! | eof otherwise, all written | gone |
//! | a write has failed | what has arrived is read, then gone |
//! | the close deadline, which is short for a peer that was told that it sends too much, and moves on for one that has broken no rule while it takes what is in front of our close frame | gone |
//!
//! To linger is to wait for the peer to hang up while throwing away what it still sends: closing a
//! socket with unread data resets the connection, and the peer might never see our last words.
//!
//! The answer to a close frame waits until the handler has dealt with the messages before it, so
//! that their replies still go out.

use std::io;

use super::conn::{Conn, Context, HandlerKnows, Phase};
use super::liveness::Moment;
use super::upstream::Upstream;
use crate::error::Error;
use crate::link::{Event, Load};
use crate::message::{CloseCause, CloseCode, CloseFrame, CloseReason, Initiator, Utf8Bytes};
use crate::metrics::Refusal;
use crate::proto::Violation;

/// A connection that is being closed.
#[derive(Debug, Default)]
pub(crate) struct Ending {
    /// The peer's close frame; the inner `None` is one without a code.
    received: Option<Option<CloseFrame>>,
    /// The peer's frame came before ours.
    peer_first: bool,
    failed: Option<Violation>,
    /// The handler is through with everything after the end of the stream.
    finished: bool,
    /// The peer was told that it sends too much: since then it has as long as one that failed.
    hurried: bool,
}

impl Ending {
    /// The peer broke a rule: nothing it sends counts any more.
    pub(super) fn has_failed(&self) -> bool {
        self.failed.is_some()
    }

    pub(super) fn is_hurried(&self) -> bool {
        self.hurried
    }
}

impl Conn {
    /// Notes that closing has begun, and starts its deadline.
    fn begin_ending<U: Upstream>(&mut self, cx: &Context<'_, U>) -> &mut Ending {
        if self.ending.is_none() {
            self.since = Moment::at(cx.now);
            self.rearm = true;
            // However far the handler is behind: what comes now is for the closing alone.
            self.again = true;
        }
        self.ending.get_or_insert_default()
    }

    /// The peer's close frame.
    pub(super) fn on_close<U: Upstream>(
        &mut self,
        frame: Option<CloseFrame>,
        cx: &mut Context<'_, U>,
    ) {
        let peer_first = match self.unwritable {
            // Ours has not reached it.
            true => true,
            false => !self.peer.link.outbox().is_sealed(),
        };
        // §5.5.1: "the endpoint typically echos the status code it received".
        let code = frame.as_ref().map_or(CloseCode::Status, |frame| frame.code);
        let ending = self.begin_ending(cx);
        ending.received = Some(frame);
        ending.peer_first = peer_first;
        if self.unwritable {
            self.end_unwritable(cx);
        } else if peer_first {
            self.close_after_inbox(code, "", CloseCause::Handshake, cx);
        } else {
            self.dirty = true;
        }
    }

    /// Closes, once the handler has dealt with what it was given.
    pub(super) fn close_after_inbox<U: Upstream>(
        &mut self,
        code: CloseCode,
        text: &'static str,
        cause: CloseCause,
        cx: &mut Context<'_, U>,
    ) {
        let link = &self.peer.link;
        if link.inflow.outstanding() == Load::NOTHING && !link.has_parked() {
            self.peer.link.close(code, text, cause);
            self.dirty = true;
        } else {
            cx.batch.push_back(Event::Close { code, text, cause });
            self.deliver(cx);
        }
    }

    /// §7.1.7, fail the WebSocket connection: tell why, and listen no more. The messages before the
    /// violation are still answered.
    pub(super) fn fail<U: Upstream>(&mut self, violation: Violation, cx: &mut Context<'_, U>) {
        log::debug!("{}: {}", self.peer.link.id, violation.why);
        self.begin_ending(cx).failed = Some(violation);
        if self.unwritable {
            return self.end_unwritable(cx);
        }
        self.close_after_inbox(violation.code, violation.why, violation.cause(), cx);
        // If a close frame is out already, nothing more will be: the verdict is due.
        self.dirty = true;
    }

    /// A limit of ours is reached.
    pub(super) fn close_for<U: Upstream>(
        &mut self,
        code: CloseCode,
        text: &'static str,
        cause: CloseCause,
        cx: &mut Context<'_, U>,
    ) {
        self.begin_ending(cx);
        self.close_after_inbox(code, text, cause, cx);
    }

    /// The peer has closed its half of the connection.
    pub(super) fn on_eof<U: Upstream>(&mut self, cx: &mut Context<'_, U>) {
        match self.phase {
            Phase::Lingering => self.gone = self.is_all_written(),
            Phase::Opening(_) => self.gone = true,
            Phase::Dialing(_) => self.not_answered(cx),
            // The handler is asked already; its answer may still be read.
            Phase::Deciding => {}
            Phase::Open(_) if self.unwritable => self.end_unwritable(cx),
            Phase::Open(_) if self.ending.is_some() || self.peer.link.outbox().is_finished() => {
                self.dirty = true;
            }
            Phase::Open(_) => {
                self.begin_ending(cx);
                // Behind the messages that came before; `finished` answers.
                cx.batch.push_back(Event::Eof);
                self.deliver(cx);
            }
        }
    }

    /// The handler has dealt with everything before the end of the stream.
    pub(super) fn finished<U: Upstream>(&mut self, cx: &mut Context<'_, U>) {
        if let Some(ending) = &mut self.ending {
            ending.finished = true;
        }
        self.flush(cx);
    }

    /// The verdict, each time something has been written.
    #[inline]
    pub(super) fn after_flush_ending<U: Upstream>(
        &mut self,
        sealed: bool,
        cx: &mut Context<'_, U>,
    ) {
        if sealed || self.ending.is_some() {
            self.judge(sealed, cx);
        }
    }

    fn judge<U: Upstream>(&mut self, sealed: bool, cx: &mut Context<'_, U>) {
        match self.phase {
            Phase::Open(_) if self.peer.link.outbox().is_gone() => {
                return self.end_now(CloseCause::Terminated, cx);
            }
            Phase::Open(_) => {}
            Phase::Lingering if self.is_all_written() => {
                self.gone = self.eof;
                return self.half_close();
            }
            _ => return,
        }
        if sealed && self.ending.is_none() {
            self.begin_ending(cx);
        }
        if !self.is_all_written() {
            return;
        }
        let Some(ending) = &mut self.ending else {
            return;
        };
        if self.eof {
            if ending.finished || sealed {
                let cause = self.closing_cause().unwrap_or(CloseCause::Eof);
                self.end_now(cause, cx);
            }
        } else if sealed && (ending.received.is_some() || ending.failed.is_some()) {
            let cause = self.closing_cause().unwrap_or(CloseCause::Handshake);
            self.tell(cause, cx);
            self.release(cx);
            self.linger(cx);
        } else if sealed && !ending.hurried {
            let cause = self.peer.link.outbox().local_close().map(|ours| ours.cause);
            if cause == Some(CloseCause::RateLimit) {
                ending.hurried = true;
                self.since = Moment::at(cx.now);
                self.rearm = true;
            }
        }
    }

    /// What the peer has done to end the connection: it broke a rule, or sent a close frame, whatever
    /// became of the transport after that.
    pub(super) fn closing_cause(&self) -> Option<CloseCause> {
        let ending = self.ending.as_ref()?;
        let received = ending.received.as_ref().map(|_| CloseCause::Handshake);
        ending.failed.map(Violation::cause).or_else(|| {
            // Found out by a worker, which closes at once.
            let outbox = self.peer.link.outbox();
            let cause = outbox.local_close().map(|ours| ours.cause);
            cause.filter(|cause| cause.is_violation()).or(received)
        })
    }

    /// All is said: from here on the peer hangs up, or the deadline does.
    pub(super) fn linger<U: Upstream>(&mut self, cx: &Context<'_, U>) {
        self.leave_opening();
        self.phase = Phase::Lingering;
        self.since = Moment::at(cx.now);
        self.rearm = true;
        // What is already here is thrown away.
        self.again = true;
        if self.is_all_written() {
            self.half_close();
        }
        self.gone |= self.eof && self.is_all_written();
    }

    /// Whether the peer has time, as long as it takes now and then some of what is still to be written: that has
    /// an end, and it has broken no rule.
    pub(super) fn has_time(&self) -> bool {
        let ending = self.ending.as_deref();
        match self.phase {
            Phase::Lingering => true,
            Phase::Open(_) => {
                ending.is_some_and(|e| e.failed.is_none() && !e.hurried)
                    && self.peer.link.outbox().is_finished()
            }
            _ => false,
        }
    }

    /// RFC 6455 §7.1.1: after a closing handshake that went well, the server ends the TCP connection,
    /// so that it is the one to hold it in TIME_WAIT, and a client "SHOULD wait" for that.
    pub(super) fn leaves_tcp_to_server(&self) -> bool {
        self.is_client() && self.ending.as_ref().is_some_and(|e| e.failed.is_none())
    }

    fn half_close(&mut self) {
        if self.leaves_tcp_to_server() {
            return;
        }
        // If that fails, the peer was faster, or the socket is broken.
        self.gone |= self.stream.shutdown_write().is_err();
    }

    /// Ends the connection without another word.
    pub(super) fn end_now<U: Upstream>(&mut self, cause: CloseCause, cx: &mut Context<'_, U>) {
        let why = Refusal::of_cause(cause);
        match self.handler_knows {
            HandlerKnows::Nothing => self.note_refusal(why),
            // There is a line for it below.
            HandlerKnows::Opening | HandlerKnows::End => drop(self.count_refusal(why)),
        }
        // First, so that nothing is accepted that the reason doesn't count.
        let mut outbox = self.peer.link.outbox();
        let closed_since = self.unwritable && outbox.local_close().is_some();
        let first = outbox.abandon();
        drop(outbox);
        let cause = match first || closed_since {
            true => cause,
            // The user was faster, and the command is on its way.
            false => CloseCause::Terminated,
        };
        self.tell(cause, cx);
        self.release(cx);
        self.gone = true;
    }

    /// A write has failed. The peer may have sent more before it left, and why it leaves: whatever has arrived
    /// by now is dealt with first, and the end is told behind that.
    pub(super) fn lose_writing<U: Upstream>(&mut self, error: &io::Error, cx: &mut Context<'_, U>) {
        let hears = match &self.phase {
            Phase::Open(_) => !self.eof,
            Phase::Dialing(dialing) => !dialing.is_connecting(),
            _ => false,
        };
        let mut outbox = self.peer.link.outbox();
        // `false`: the user was faster, and the command to end it is on its way.
        if !hears || !outbox.lose_writing() {
            drop(outbox);
            return self.fail_transport(error, cx);
        }
        cx.counters.sent.add(outbox.take_pushed());
        drop(outbox);
        let id = self.peer.link.id;
        log::debug!("{id}: nothing more can be written: {error}");
        self.unwritable = true;
        self.blocked = false;
        if let Some(mut writing) = self.writing.take() {
            writing.count_blocked(0, cx.counters);
        }
        if self.peer.link.lose_writing() {
            cx.runnable.push(self.peer.clone());
        }
        self.stream.lose_writing();
        // Until a read finds nothing more.
        self.stream.note_readable(true);
        (self.readable, self.hung_up, self.again) = (true, true, true);
        self.since = Moment::at(cx.now);
        self.rearm = true;
    }

    /// All that had arrived before a write failed has been looked at; or it takes too long, or was closed here,
    /// too.
    pub(super) fn end_unwritable<U: Upstream>(&mut self, cx: &mut Context<'_, U>) {
        match self.is_dialing() {
            true => self.not_answered(cx),
            false => self.fail_transport(&io::ErrorKind::BrokenPipe.into(), cx),
        }
    }

    /// The server stops, and the peer will not get all that was for it; if it could have.
    pub(super) fn note_cut_off(&self) {
        let misses = !self.is_all_written() && self.has_time();
        if (misses || !self.is_over()) && !self.unwritable {
            self.peer.link.handle.shared.note_cut_off();
        }
    }

    /// All is said, or the peer broke a rule: what is left is that it hangs up.
    fn is_over(&self) -> bool {
        let failed = self.ending.as_ref().is_some_and(|e| e.has_failed());
        failed || matches!(self.phase, Phase::Lingering)
    }

    /// The server's deadline has come. A peer that can still be told is told.
    pub(super) fn cut_off<U: Upstream>(&mut self, cx: &mut Context<'_, U>) {
        self.note_cut_off();
        if self.is_dialing() {
            return self.not_opened(Error::Closed, cx);
        }
        if self.is_open() && self.is_all_written() {
            let code = cx.stopping.unwrap_or(CloseCode::Away);
            self.peer.link.close(code, "", CloseCause::Shutdown);
            self.flush(cx);
        }
        self.end_now(CloseCause::Shutdown, cx);
    }

    /// Tells the handler the end, once.
    fn tell<U: Upstream>(&mut self, cause: CloseCause, cx: &mut Context<'_, U>) {
        if self.handler_knows != HandlerKnows::Opening {
            return;
        }
        self.handler_knows = HandlerKnows::End;
        // So that whoever is told finds it so.
        self.peer.link.end_subscriptions();
        let reason = self.reason(cause);
        // One that `open` had too long for was none, whatever the handler thinks.
        if !matches!(self.phase, Phase::Deciding) {
            cx.counters.closed(&reason);
        }
        log::debug!("{}: closed, {reason}", self.peer.link.id);
        cx.batch.push_back(Event::Closed(Box::new(reason)));
        self.deliver(cx);
    }

    /// Nothing more is sent, so messages that wait for a congested peer wait no longer.
    fn release<U: Upstream>(&mut self, cx: &mut Context<'_, U>) {
        if self.peer.link.decongest() {
            cx.runnable.push(self.peer.clone());
        }
    }

    fn reason(&self, cause: CloseCause) -> CloseReason {
        let outbox = self.peer.link.outbox();
        let ours = outbox.local_close();
        let ending = self.ending.as_deref();
        let received = ending.and_then(|ending| ending.received.as_ref());
        let peer_first = ending.is_some_and(|e| e.peer_first || e.failed.is_some());
        let (code, text) = match (received, ours) {
            (Some(frame), _) if peer_first => match frame {
                Some(frame) => (frame.code, frame.reason.clone()),
                None => (CloseCode::Status, Utf8Bytes::default()),
            },
            (_, Some(ours)) => (ours.code, ours.text.clone()),
            (_, None) => (CloseCode::Abnormal, Utf8Bytes::default()),
        };
        // It is the peer that breaks a rule, whoever finds it out.
        let local = ours.is_some_and(|ours| !ours.cause.is_violation()) && !peer_first;
        CloseReason {
            code,
            text,
            initiator: if local || cause.is_local() {
                Initiator::Local
            } else {
                Initiator::Peer
            },
            clean: received.is_some() && ours.is_some_and(|ours| ours.was_written()),
            // A limit or a panic says more than the handshake that it led to.
            cause: match ours {
                Some(ours) if local && ours.cause != CloseCause::Handshake => ours.cause,
                _ => cause,
            },
            undelivered: outbox.undelivered(),
        }
    }
}
