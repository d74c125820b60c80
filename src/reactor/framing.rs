//! A connection's input, from frames to messages, and from messages to what the handler is given.

use std::time::Instant;

use super::conn::{Conn, Context, over_rate_waits};
use super::upstream::{InlineRun, InlineUpstream, Upstream};
use crate::config::Config;
use crate::link::{Event, Load};
use crate::message::{Bytes, CloseCause, CloseCode, CloseFrame, Message};
use crate::metrics::Buckets;
use crate::proto::Violation;

/// Messages that a connection may bring per turn when handlers run inline: enough that the turn's
/// fixed costs vanish, few enough that ten flooding peers delay others by milliseconds only.
const INLINE: Load = Load {
    messages: 256,
    bytes: 1 << 20,
};

/// Messages that are found before they are handled.
const ROUND: usize = 32;

/// Is left where a message was taken out.
const NONE: Message = Message::Binary(Bytes::new());

/// What the compressed ones among them may come to: a thousand bytes may be a whole MiB, and to inflate that
/// takes a third of a millisecond, to send as much back compressed three times as long. Before they are
/// inflated, each is taken for the most that it can hold.
const INLINE_INFLATED: usize = 2 << 20;
/// Where they are inflated later, and only that is known: most hold much less.
const MAY_INFLATE: usize = 8 << 20;
/// RFC 1951: a match of 258 bytes takes two bits at least.
const MOST_INFLATED: usize = 1032;

/// Inline, replies to at least this many bytes are written at once, while they and their buffers are in the
/// cache. Those to fewer wait until more connections were read, or for the end of the turn: a peer that is
/// woken by the first of many small writes is awake for the others, and every wake-up less is a microsecond
/// less.
const FLUSH_NOW: usize = 4096;

/// Why no more messages are taken out of what was read.
enum Stop {
    /// All of it has been looked at.
    Empty,
    /// The rest has to wait.
    Full,
    /// The peer has used up its allowance.
    OverRate,
    Close(Option<CloseFrame>),
    Failed(Violation),
}

/// One in this many runs of inline handlers is timed: two readings of the clock are a hundredth of what
/// it costs to answer one small message.
const SAMPLE: u32 = 16;

/// A run of an inline handler, if it is one of the sample.
struct Timed(Option<Instant>);

impl Timed {
    #[inline]
    fn begin(runs: &mut u32) -> Self {
        *runs = runs.wrapping_add(1);
        Self((*runs % SAMPLE == 0).then(Instant::now))
    }

    #[inline]
    fn end(self, buckets: &Buckets) {
        if let Some(began) = self.0 {
            buckets.record(began.elapsed());
        }
    }
}

/// What came of handling messages on the spot.
#[derive(Default)]
struct Handled {
    /// Known before those that were found last are handled, which may panic.
    stop: Option<Stop>,
    /// Found, and handled but for those that are held, or that were behind a panic.
    done: Load,
    /// In the batch.
    held: Load,
}

/// A message that was found.
struct Taken {
    bytes: usize,
    /// What it may come to once it is inflated.
    inflated: usize,
}

impl Conn {
    /// Frames to messages, as many as the handler has room for; tells how many bytes have to wait.
    pub(super) fn frames<U: Upstream>(
        &mut self,
        bytes: &mut [u8],
        cx: &mut Context<'_, U>,
    ) -> usize {
        if self.ending.as_ref().is_some_and(|e| e.has_failed()) {
            return 0;
        }
        let mut input = bytes;
        let inline = cx.upstream.inline();
        let inline = inline.map(|upstream| (upstream, self.peer.clone()));
        loop {
            // Behind those that wait already, if there are any.
            let stop = match inline.as_ref().filter(|(_, peer)| !peer.link.has_parked()) {
                Some((upstream, peer)) => {
                    let mut handled = Handled::default();
                    // Nothing is delivered meanwhile, so all else that is to do waits for its end.
                    let timed = Timed::begin(cx.runs);
                    let run = upstream.run(peer, |run| {
                        self.messages_inline(&mut input, &mut handled, run, cx);
                    });
                    timed.end(&cx.counters.handler);
                    // The replies are there already.
                    self.dirty = true;
                    if run.is_none() {
                        // It panicked: those found behind that message are of no interest to it.
                        cx.messages.clear();
                    }
                    self.after_inline(&handled, cx);
                    match handled.stop {
                        Some(stop) => stop,
                        // What comes after a panic is looked at all the same.
                        None => continue,
                    }
                }
                None => self.messages(&mut input, cx),
            };
            match stop {
                Stop::Empty => return 0,
                Stop::Full => return input.len(),
                Stop::OverRate if over_rate_waits(cx.config) => {
                    self.rearm = true;
                    return input.len();
                }
                Stop::OverRate => {
                    let text = "too many messages";
                    self.close_for(CloseCode::Policy, text, CloseCause::RateLimit, cx);
                }
                Stop::Close(frame) => {
                    self.on_close(frame, cx);
                    return 0;
                }
                Stop::Failed(violation) => {
                    self.fail(violation, cx);
                    return 0;
                }
            }
        }
    }

    /// Handles messages on the spot. When the peer becomes congested, those that were found and not
    /// handled are left in the batch.
    ///
    /// In rounds: some are found, then those are handled. A message is written in one kind of pieces
    /// and read in another, and a processor that has to do the second right after the first waits until
    /// what was written has reached its cache. With others in between it needn't.
    #[inline(always)] // called once, in a closure
    fn messages_inline<U: Upstream>(
        &mut self,
        input: &mut &mut [u8],
        handled: &mut Handled,
        run: &mut impl InlineRun,
        cx: &mut Context<'_, U>,
    ) {
        let mut done = found_before(cx.messages);
        let mut inflated = 0;
        loop {
            let round = done.messages + ROUND;
            let mut may_inflate = 0;
            handled.stop = loop {
                if done.messages == round || may_inflate >= INLINE_INFLATED {
                    break None;
                }
                if done.reaches(INLINE) || inflated >= INLINE_INFLATED {
                    break Some(Stop::Full);
                }
                if self.is_over_rate(cx.now) && self.reader.expects_data(input) {
                    break Some(Stop::OverRate);
                }
                match self.next_message(input, cx) {
                    Ok(taken) => {
                        done.messages += 1;
                        done.bytes += taken.bytes;
                        may_inflate += taken.inflated;
                    }
                    Err(stop) => break Some(stop),
                }
            };
            handled.done = done;
            let mut found = cx.messages.iter_mut();
            while !self.peer.link.must_wait() {
                let Some(message) = found.next() else { break };
                inflated += run.message(message);
            }
            for message in found {
                handled.held.messages += 1;
                handled.held.bytes += message.len();
                let message = std::mem::replace(message, NONE);
                cx.batch.push_back(Event::Message(message));
            }
            cx.messages.clear();
            if handled.held.messages > 0 {
                handled.stop.get_or_insert(Stop::Full);
            }
            if handled.stop.is_some() {
                return;
            }
        }
    }

    fn after_inline<U: Upstream>(&mut self, handled: &Handled, cx: &mut Context<'_, U>) {
        cx.counters.received.add(handled.done.messages);
        if handled.held.messages > 0 {
            self.peer.link.inflow.add(handled.held);
            self.deliver(cx);
        }
        if handled.done.bytes >= FLUSH_NOW {
            self.flush(cx);
        }
    }

    /// Hands messages over in batches.
    fn messages<U: Upstream>(&mut self, input: &mut &mut [u8], cx: &mut Context<'_, U>) -> Stop {
        let limit = Load::inbound_limit(cx.config);
        let inline = cx.upstream.is_inline();
        let mut room = if inline { INLINE } else { self.room(limit) };
        let mut load = found_before(cx.messages);
        let mut may_inflate = 0;
        let stop = loop {
            // While the connection ends, nothing is handed over that would need room.
            let full = load.reaches(room) && self.ending.is_none();
            if full || (inline && may_inflate >= MAY_INFLATE) {
                self.hand_over(load, cx);
                load = Load::NOTHING;
                if inline {
                    break Stop::Full;
                }
                room = self.room(limit);
                let full = room.messages == 0 || room.bytes == 0;
                if full && self.peer.link.inflow.pause(limit) {
                    self.paused = true;
                    cx.counters.pauses.add(1);
                    break Stop::Full;
                }
                continue;
            }
            if self.is_over_rate(cx.now) && self.reader.expects_data(input) {
                break Stop::OverRate;
            }
            match self.next_message(input, cx) {
                Ok(taken) => {
                    load.messages += 1;
                    load.bytes += taken.bytes;
                    may_inflate += taken.inflated;
                }
                Err(stop) => break stop,
            }
        };
        self.hand_over(load, cx);
        stop
    }

    /// Finds the next message for the handler, or tells why there is none.
    #[inline(always)]
    fn next_message<U: Upstream>(
        &mut self,
        input: &mut &mut [u8],
        cx: &mut Context<'_, U>,
    ) -> Result<Taken, Stop> {
        if self.ending.is_none() {
            if let Some(plain) = self.reader.next_plain(input) {
                let bytes = plain.payload.len();
                let coming = bytes + input.len();
                let message = cx.blocks.message(plain, coming, cx.messages);
                self.note_message(bytes, cx);
                message.map_err(Stop::Failed)?;
                return Ok(Taken { bytes, inflated: 0 });
            }
        }
        let message = self.next_of_any_kind(input, cx)?;
        let taken = Taken {
            bytes: message.len(),
            inflated: most_inflated(&message, cx.config),
        };
        cx.messages.push(message);
        Ok(taken)
    }

    #[inline(never)]
    fn next_of_any_kind<U: Upstream>(
        &mut self,
        input: &mut &mut [u8],
        cx: &mut Context<'_, U>,
    ) -> Result<Message, Stop> {
        loop {
            match self.reader.next(input, cx.blocks) {
                Ok(None) => return Err(Stop::Empty),
                Ok(Some(Message::Ping(payload))) => self.pong(payload),
                Ok(Some(Message::Pong(payload))) => self.on_pong(&payload, cx),
                Ok(Some(Message::Close(frame))) => return Err(Stop::Close(frame)),
                // What comes after we have closed is of no interest to anybody.
                Ok(Some(_)) if self.ending.is_some() => {}
                Ok(Some(message)) => {
                    self.note_message(message.len(), cx);
                    return Ok(message);
                }
                Err(violation) => return Err(Stop::Failed(violation)),
            }
        }
    }

    /// How much more may be handed to the handler now.
    fn room(&self, limit: Load) -> Load {
        let taken = self.peer.link.inflow.outstanding();
        Load {
            messages: limit.messages.saturating_sub(taken.messages),
            bytes: limit.bytes.saturating_sub(taken.bytes),
        }
    }

    /// Gives the batch to the handler.
    fn hand_over<U: Upstream>(&mut self, load: Load, cx: &mut Context<'_, U>) {
        if !cx.messages.is_empty() {
            cx.batch.extend(cx.messages.drain(..).map(Event::Message));
            self.peer.link.inflow.add(load);
            cx.counters.received.add(load.messages);
            self.deliver(cx);
        }
    }

    pub(super) fn deliver<U: Upstream>(&mut self, cx: &mut Context<'_, U>) {
        if cx.upstream.deliver(&self.peer, cx.batch) {
            cx.runnable.push(self.peer.clone());
        }
        if cx.upstream.is_inline() {
            // The replies are there already.
            self.dirty = true;
        }
    }

    fn pong(&mut self, payload: Bytes) {
        if self.blocked || self.writing.is_some() {
            self.writing.get_or_insert_default().pong = Some(payload);
        } else {
            self.peer.link.send_pong(&payload);
            self.dirty = true;
        }
    }
}

/// What is in the batch already: messages that stayed where they were read.
#[inline(always)] // nearly always nothing
fn found_before(messages: &[Message]) -> Load {
    Load {
        messages: messages.len(),
        bytes: messages.iter().map(Message::len).sum(),
    }
}

/// What a message may come to once it is inflated; nothing, if it needn't be.
fn most_inflated(message: &Message, config: &Config) -> usize {
    match message {
        Message::Frame(frame) => {
            let most = frame.payload().len().saturating_mul(MOST_INFLATED);
            most.min(config.max_message as usize)
        }
        _ => 0,
    }
}
