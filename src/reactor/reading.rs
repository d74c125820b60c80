//! A connection's input: from the kernel to frames, and from frames to events for the handler.

use std::io;

use super::conn::{Conn, Context, Habit, Phase, Rest, over_rate_waits};
use super::liveness::Moment;
use super::upstream::Upstream;
use crate::config::Config;
use crate::link::{self, Event, Load};
use crate::message::{Bytes, CloseCause, CloseCode, Message};
use crate::proto::{Filled, Opcode};

/// Messages that a connection may bring per turn when handlers run inline: enough that the turn's
/// fixed costs vanish, few enough that ten flooding peers delay others by milliseconds only.
const INLINE_MESSAGES: usize = 256;

/// What the compressed ones among them may come to, each taken for the most that it can hold: a
/// thousand bytes may be a whole MiB, and to inflate that takes a third of a millisecond.
const INLINE_INFLATED: usize = 8 << 20;
/// RFC 1951: a match of 258 bytes takes two bits at least.
const MOST_INFLATED: usize = 1032;

/// Bytes of a large message that are read per turn: finishing one message while it is in the cache
/// beats reading a little of each, and even this takes well under a millisecond. A little more than
/// the default limit of a message, so that the longest of those is read in one go.
const LARGE_BUDGET: usize = (1 << 20) + (64 << 10);
/// Of which one read takes so many, so that they are unmasked while they are in the cache.
const CHUNK: usize = 256 << 10;

/// From this size on a message is expected to be followed by others like it: then only so much is
/// read into the loop's buffer as is needed to see the next one begin, and the rest goes directly to
/// its place.
const LARGE: usize = 32 << 10;
const FIRST_READ: usize = 8 << 10;

/// Frames of fewer bytes than this on average, header included, cost more than their bytes tell: ten
/// peers that flood with them would make a turn long, so each is read less of.
const TINY: usize = 16;
const TINY_READ: usize = 8 << 10;

/// Inline, replies to so many bytes are written at once, while they and their buffers are in the
/// cache. Those to less wait for the end of the turn: a peer that is woken by the first of many small
/// writes is awake for the others, and every wake-up less is a microsecond less.
const FLUSH_NOW: usize = 4096;

impl Conn {
    /// One read; several in the middle of a large message.
    pub(super) fn read<U: Upstream>(&mut self, cx: &mut Context<'_, U>) {
        let mut budget = LARGE_BUDGET;
        loop {
            let filled = match self
                .protocol
                .fill(budget.min(CHUNK), |place| self.stream.read(place))
            {
                Some(result) => {
                    let filled = self.note_read(result, cx);
                    if filled.is_some() {
                        self.frames(&mut [], cx);
                    }
                    filled
                }
                None => self.read_and_look(cx),
            };
            let Some(filled) = filled else { return };
            budget = budget.saturating_sub(filled.arrived);
            *cx.large_left = cx.large_left.saturating_sub(filled.arrived);
            let more = filled.all && budget > 0 && self.protocol.is_in_large_message();
            if !more || self.gone || self.waits(cx) {
                return;
            }
        }
    }

    fn read_and_look<U: Upstream>(&mut self, cx: &mut Context<'_, U>) -> Option<Filled> {
        let buf = std::mem::take(&mut cx.buf);
        let size = match self.habit {
            Habit::Large => FIRST_READ,
            Habit::Tiny => TINY_READ,
            Habit::Usual => buf.len(),
        };
        let frames = self.protocol.frames();
        let result = self.stream.read(&mut buf[..size]);
        let result = result.map(|arrived| Filled {
            arrived,
            all: arrived == size,
        });
        let filled = self.note_read(result, cx);
        if let Some(filled) = filled {
            self.input(&mut buf[..filled.arrived], cx);
            let frames = self.protocol.frames().wrapping_sub(frames) as usize;
            if frames > filled.arrived / TINY {
                self.habit = Habit::Tiny;
            } else if self.habit == Habit::Tiny {
                self.habit = Habit::Usual;
            }
        }
        cx.buf = buf;
        filled
    }

    /// What every read means for the connection. `Some`: bytes have arrived.
    fn note_read<U: Upstream>(
        &mut self,
        result: io::Result<Filled>,
        cx: &mut Context<'_, U>,
    ) -> Option<Filled> {
        match result {
            Ok(Filled { arrived: 0, .. }) => {
                self.eof = true;
                self.on_eof(cx);
            }
            Ok(mut filled) => {
                filled.all |= self.stream.has_buffered();
                // epoll(7): for a stream, a read that comes up short has emptied the socket, and
                // whatever arrives later is a new edge; but an end that was announced together with
                // the data is not announced again.
                self.readable = filled.all || self.hung_up;
                self.last_seen = Moment::at(cx.now);
                if std::mem::take(&mut self.pinged) {
                    // Anything received is as good as a pong.
                    self.rearm = true;
                }
                return Some(filled);
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.readable = false,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => self.fail_transport(&error, cx),
        }
        None
    }

    /// Looks at bytes in the order they came; keeps those whose time has not come.
    pub(super) fn input<U: Upstream>(&mut self, bytes: &mut [u8], cx: &mut Context<'_, U>) {
        match self.phase {
            Phase::Opening(_) => self.request_input(bytes, cx),
            Phase::Dialing(_) => self.answer_input(bytes, cx),
            Phase::Deciding => self.keep(bytes),
            Phase::Open(_) => self.frames(bytes, cx),
            Phase::Lingering => {}
        }
    }

    pub(super) fn keep(&mut self, bytes: &[u8]) {
        if !bytes.is_empty() {
            self.rest = Some(Box::new(Rest(bytes.into())));
        }
    }

    /// Frames to events, as many as the handler has room for.
    fn frames<U: Upstream>(&mut self, bytes: &mut [u8], cx: &mut Context<'_, U>) {
        if self.ending.as_ref().is_some_and(|e| e.has_failed()) {
            return;
        }
        let inline = cx.upstream.is_inline();
        let limit = inbound_limit(cx.config);
        let mut room = self.room(inline, limit);
        let mut inflated = 0;
        let mut load = Load {
            messages: 0,
            bytes: 0,
        };
        let mut input = bytes;
        while !self.gone {
            if load.reaches(room) || (inline && inflated >= INLINE_INFLATED) {
                self.hand_over(load, cx);
                load = Load {
                    messages: 0,
                    bytes: 0,
                };
                room = self.room(inline, limit);
                let full = room.messages == 0 || room.bytes == 0;
                if inline {
                    self.keep(input);
                    return;
                }
                if full && self.peer.link.inflow.pause(limit) {
                    self.paused = true;
                    self.keep(input);
                    return;
                }
                continue;
            }
            if self.is_over_rate(cx.now) && self.protocol.expects_data(input) {
                self.hand_over(load, cx);
                load = Load {
                    messages: 0,
                    bytes: 0,
                };
                if over_rate_waits(cx.config) {
                    self.keep(input);
                    self.rearm = true;
                    return;
                }
                let text = "too many messages";
                self.close_for(CloseCode::Policy, text, CloseCause::RateLimit, cx);
            }
            match self.protocol.next(&mut input, cx.blocks) {
                Ok(None) => break,
                Ok(Some(Message::Ping(payload))) => self.pong(payload),
                Ok(Some(Message::Pong(payload))) => self.on_pong(&payload, cx),
                Ok(Some(Message::Close(frame))) => {
                    self.hand_over(load, cx);
                    return self.on_close(frame, cx);
                }
                Ok(Some(message)) => {
                    if let Phase::Open(Some(bucket)) = &mut self.phase {
                        bucket.take_one(cx.now);
                    }
                    // What comes after we have closed is of no interest to anybody.
                    if self.ending.is_none() {
                        self.habit = if message.len() >= LARGE {
                            Habit::Large
                        } else {
                            Habit::Usual
                        };
                        load.messages += 1;
                        if let Message::Frame(frame) = &message {
                            let most = frame.payload().len() * MOST_INFLATED;
                            inflated += most.min(cx.config.max_message as usize);
                        }
                        load.bytes += message.len();
                        cx.batch.push_back(Event::Message(message));
                    }
                }
                Err(violation) => {
                    self.hand_over(load, cx);
                    return self.fail(violation, cx);
                }
            }
        }
        self.hand_over(load, cx);
    }

    /// How much more may be handed to the handler now.
    fn room(&self, inline: bool, limit: Load) -> Load {
        if inline {
            return Load {
                messages: INLINE_MESSAGES,
                bytes: limit.bytes,
            };
        }
        let taken = self.peer.link.inflow.outstanding();
        Load {
            messages: limit.messages.saturating_sub(taken.messages),
            bytes: limit.bytes.saturating_sub(taken.bytes),
        }
    }

    /// Gives the batch to the handler.
    fn hand_over<U: Upstream>(&mut self, load: Load, cx: &mut Context<'_, U>) {
        if cx.batch.is_empty() {
            return;
        }
        self.peer.link.inflow.add(load);
        self.deliver(cx);
        if cx.upstream.is_inline() && load.bytes >= FLUSH_NOW {
            self.flush(cx);
        }
    }

    pub(super) fn deliver<U: Upstream>(&mut self, cx: &mut Context<'_, U>) {
        if cx.upstream.deliver(&self.peer, cx.batch) {
            cx.runnable.push(self.peer.clone());
        }
        if cx.upstream.is_inline() {
            // The replies are there already.
            self.dirty = true;
        } else if cx.batch.capacity() == 0 {
            *cx.batch = link::take_batch();
        }
    }

    fn pong(&mut self, payload: Bytes) {
        if self.blocked || self.writing.is_some() {
            self.writing.get_or_insert_default().pong = Some(payload);
        } else {
            self.peer.link.outbox().control(Opcode::Pong, &payload);
            self.dirty = true;
        }
    }
}

fn inbound_limit(config: &Config) -> Load {
    Load {
        messages: config.inbound_messages,
        bytes: config.inbound_bytes,
    }
}
