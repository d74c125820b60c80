//! A connection's input: from the kernel to frames, and from frames to events for the handler.

use std::io;
use std::time::Instant;

use bytes::BytesMut;

use super::conn::{Conn, Context, Phase, ReadMode, Rest, over_rate_waits};
use super::liveness::Moment;
use super::upstream::{InlineRun, InlineUpstream, Upstream};
use crate::config::{ByteRate, Config, OverRate};
use crate::link::{Event, Load};
use crate::message::{Bytes, CloseCause, CloseCode, CloseFrame, Message};
use crate::metrics::Buckets;
use crate::proto::{Buffer, Filled, InPlace, Violation};

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

/// Bytes of a large message that are read per turn: finishing one message while it is in the cache
/// beats reading a little of each, and even this takes well under a millisecond. A little more than
/// the default limit of a message, so that the longest of those is read in one go.
const LARGE_BUDGET: usize = (1 << 20) + (64 << 10);
/// Bytes of them that one read takes, so that they are unmasked while they are in the cache.
const CHUNK: usize = 256 << 10;

/// From this size on a message is expected to be followed by others like it: then only
/// [`FIRST_READ`] bytes are read into the loop's buffer, enough to see the next one begin, and the rest
/// goes directly to its place.
const LARGE: usize = 32 << 10;
/// From this size on, and up to that, a message that is handled inline may stay where it was read.
const MIDDLING: usize = InPlace::LEAST;
const FIRST_READ: usize = 8 << 10;

/// Frames of fewer bytes than this on average, header included, cost more than their bytes tell: ten
/// peers that flood with them would make a turn long, so each is read less of.
const TINY: usize = 16;
const TINY_READ: usize = 8 << 10;

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
    /// One read; several in the middle of a large message.
    pub(super) fn read<U: Upstream>(&mut self, cx: &mut Context<'_, U>) {
        let mut budget = LARGE_BUDGET;
        loop {
            let filled = match self
                .reader
                .fill(budget.min(CHUNK), |place| self.stream.read(place))
            {
                Some(result) => {
                    let filled = self.note_read(result, cx);
                    if filled.is_some() {
                        let _ = self.frames(&mut [], cx);
                    }
                    filled
                }
                None => self.read_and_look(cx),
            };
            let Some(filled) = filled else { return };
            budget = budget.saturating_sub(filled.arrived);
            *cx.large_left = cx.large_left.saturating_sub(filled.arrived);
            let more = filled.all && budget > 0 && self.reader.is_in_large_message();
            if !more || self.gone || self.waits(cx) {
                return;
            }
        }
    }

    /// One read that may bring a large message, into memory that can be that message's own.
    fn read_large<U: Upstream>(
        &mut self,
        mut buffer: Buffer,
        size: usize,
        cx: &mut Context<'_, U>,
    ) -> Option<Filled> {
        let result = self.stream.read(buffer.place(size));
        let result = result.map(|arrived| Filled {
            arrived,
            all: arrived == size,
        });
        let Some(filled) = self.note_read(result, cx) else {
            cx.blocks.take_back(buffer);
            return None;
        };
        buffer.advance(filled.arrived);
        match self.reader.adopt(buffer) {
            Ok(()) => self.input(&mut [], cx),
            Err(mut buffer) => {
                self.input(buffer.from(0), cx);
                cx.blocks.not_as_expected(buffer);
            }
        }
        Some(filled)
    }

    /// Whether what it reads may stay where it is read, until it was handled.
    fn reads_in_place(&self) -> bool {
        let usual = matches!(self.phase, Phase::Open(None)) && self.ending.is_none();
        self.read_mode == ReadMode::Middling && usual && !self.peer.link.has_parked()
    }

    /// One read that may bring middling messages, into memory that they can stay in.
    fn read_in_place<U: Upstream>(
        &mut self,
        mut memory: BytesMut,
        cx: &mut Context<'_, U>,
    ) -> Option<Filled> {
        let size = memory.len();
        let result = self.stream.read(&mut memory);
        let result = result.map(|arrived| Filled {
            arrived,
            all: arrived == size,
        });
        let Some(filled) = self.note_read(result, cx) else {
            cx.in_place.take_back(memory);
            return None;
        };
        let buf = std::mem::take(&mut cx.buf);
        let reader = &mut self.reader;
        let rest = cx
            .in_place
            .take(memory, filled.arrived, reader, cx.messages, buf);
        let last = cx.messages.last().map(Message::len);
        self.read_mode = ReadMode::Usual;
        if let Some(bytes) = last {
            self.note_message(bytes, cx);
        }
        self.input(&mut buf[..rest], cx);
        cx.buf = buf;
        Some(filled)
    }

    /// One read, into wherever what it brings had best be.
    fn read_and_look<U: Upstream>(&mut self, cx: &mut Context<'_, U>) -> Option<Filled> {
        if self.read_mode == ReadMode::Large && self.is_open() {
            if let Some((buffer, size)) = cx.blocks.expect_large() {
                return self.read_large(buffer, size, cx);
            }
        }
        if self.reads_in_place() {
            if let Some(memory) = cx.in_place.memory(cx.buf.len()) {
                return self.read_in_place(memory, cx);
            }
        }
        let buf = std::mem::take(&mut cx.buf);
        let size = match self.read_mode {
            ReadMode::Large => FIRST_READ.min(buf.len()),
            ReadMode::Tiny => TINY_READ.min(buf.len()),
            ReadMode::Usual | ReadMode::Middling => buf.len(),
        };
        self.reader.count_afresh();
        let result = self.stream.read(&mut buf[..size]);
        let result = result.map(|arrived| Filled {
            arrived,
            all: arrived == size,
        });
        let filled = self.note_read(result, cx);
        if let Some(filled) = filled {
            self.input(&mut buf[..filled.arrived], cx);
            if are_tiny(self.reader.frames(), filled.arrived) {
                self.read_mode = ReadMode::Tiny;
            } else if self.read_mode == ReadMode::Tiny {
                self.read_mode = ReadMode::Usual;
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
                cx.counters.received_bytes.add(filled.arrived);
                self.last_seen = Moment::at(cx.now);
                if std::mem::take(&mut self.pinged) {
                    // Anything received is as good as a pong.
                    self.rearm = true;
                }
                if let Phase::Open(Some(allowance)) = &mut self.phase {
                    let within = allowance.take_bytes(filled.arrived, cx.now);
                    self.rearm |= allowance.is_out_of_bytes(cx.now);
                    if !within {
                        self.on_too_many_bytes(cx);
                    }
                }
                return Some(filled);
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                // TLS may have read much that came to nothing, and not all of it.
                self.readable = self.stream.has_buffered();
                if self.unwritable && !self.readable {
                    self.end_unwritable(cx);
                }
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => self.fail_transport(&error, cx),
        }
        None
    }

    /// The last read brought more than what was left of the allowance.
    #[cold]
    fn on_too_many_bytes<U: Upstream>(&mut self, cx: &mut Context<'_, U>) {
        let closes = |rate: ByteRate| rate.over == OverRate::Close;
        if self.ending.is_none() && cx.config.byte_rate.is_some_and(closes) {
            let text = "too many bytes";
            self.close_for(CloseCode::Policy, text, CloseCause::RateLimit, cx);
        }
    }

    /// Looks at bytes in the order they came; keeps those whose time has not come.
    pub(super) fn input<U: Upstream>(&mut self, bytes: &mut [u8], cx: &mut Context<'_, U>) {
        let left = self.look_at(bytes, cx);
        self.keep(&bytes[bytes.len() - left..]);
    }

    /// The same, but tells how many are left to be kept by the caller, the last ones.
    pub(super) fn look_at<U: Upstream>(
        &mut self,
        bytes: &mut [u8],
        cx: &mut Context<'_, U>,
    ) -> usize {
        match self.phase {
            Phase::Opening(_) => self.request_input(bytes, cx),
            Phase::Dialing(_) => self.answer_input(bytes, cx),
            Phase::Deciding => return bytes.len(),
            Phase::Open(_) => return self.frames(bytes, cx),
            Phase::Lingering => {}
        }
        0
    }

    pub(super) fn keep(&mut self, bytes: &[u8]) {
        if let Some(rest) = Rest::new(bytes) {
            self.rest = Some(rest);
        }
    }

    /// Frames to messages, as many as the handler has room for; tells how many bytes have to wait.
    fn frames<U: Upstream>(&mut self, bytes: &mut [u8], cx: &mut Context<'_, U>) -> usize {
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

    fn note_message<U: Upstream>(&mut self, bytes: usize, cx: &mut Context<'_, U>) {
        if let Phase::Open(Some(allowance)) = &mut self.phase {
            allowance.take_message(cx.now);
            // Whatever comes next has to wait, and the timer ends that.
            self.rearm |= allowance.is_out_of_messages(cx.now);
        }
        self.read_mode = if bytes >= LARGE {
            cx.blocks.note_large(self.reader.frame_len(bytes));
            ReadMode::Large
        } else if bytes >= MIDDLING && cx.upstream.inline().is_some() {
            ReadMode::Middling
        } else {
            ReadMode::Usual
        };
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

/// Whether a read of so many bytes brought frames that are tiny; or so many that they are not counted any more,
/// which is enough for a turn however long they are.
fn are_tiny(frames: u16, bytes: usize) -> bool {
    frames == u16::MAX || usize::from(frames) > bytes / TINY
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_of_tiny_frames() {
        assert!(!are_tiny(0, 0) && !are_tiny(4096, 64 << 10));
        assert!(are_tiny(1, 6) && are_tiny(4097, 64 << 10));
        assert!(are_tiny(u16::MAX, 16 << 20), "more than can be counted");
    }
}
