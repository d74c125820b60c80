//! A connection's input, from the kernel to where its frames are looked at.

use std::io;

use bytes::BytesMut;

use super::conn::{Conn, Context, Phase, ReadMode, Rest};
use super::liveness::Moment;
use super::upstream::Upstream;
use crate::config::{ByteRate, OverRate};
use crate::link::is_ahead;
use crate::message::{CloseCause, CloseCode, Message};
use crate::proto::{Buffer, Filled, InPlace};

/// Bytes of large messages that one connection may bring per turn: finishing one message while it is in the
/// cache beats reading a little of each, and to read even this takes well under a millisecond. A little more than
/// the default limit of a message, so that the longest of those is read in one go.
const LARGE_BUDGET: usize = (1 << 20) + (64 << 10);
/// Bytes of them that one read takes, so that they are unmasked while they are in the cache.
const CHUNK: usize = 256 << 10;

/// From this size on a message is expected to be followed by others like it: then (unless they may stay where they
/// are read) only [`FIRST_READ`] bytes are read into the loop's buffer, enough to see the next one begin, and the
/// rest goes directly to its place.
const LARGE: usize = 32 << 10;
/// From this size on, messages for workers are read one after the other, as large ones are. (Those that are handled
/// inline may stay where they were read, and one read takes several.)
const MIDDLING: usize = 8 << 10;
const FIRST_READ: usize = 8 << 10;

/// Frames of fewer bytes than this on average, header included, cost more than their bytes tell: ten
/// peers that flood with them would make a turn long, so each is read less of.
const TINY: usize = 16;
const TINY_READ: usize = 8 << 10;

impl Conn {
    /// One read; several in the middle of a large message, and where one follows the other.
    pub(super) fn read<U: Upstream>(&mut self, cx: &mut Context<'_, U>) {
        let mut budget = LARGE_BUDGET;
        let mut followed = 0;
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
            let Some(filled) = filled else {
                if followed == 1 && !self.reader.is_in_large_message() {
                    cx.blocks.none_followed();
                }
                return;
            };
            budget = budget.saturating_sub(filled.arrived);
            *cx.large_left = cx.large_left.saturating_sub(filled.arrived);
            if !filled.all || budget == 0 || self.gone || self.waits(cx) {
                return;
            }
            if !self.reader.is_in_large_message() {
                if !self.reads_on(cx) || (followed == 0 && !cx.blocks.expect_another()) {
                    return;
                }
                followed += 1;
            }
        }
    }

    /// Whether it goes on with the next message, if there is one: after those of others, what the kernel has of it
    /// would have left the cache.
    fn reads_on<U: Upstream>(&self, cx: &Context<'_, U>) -> bool {
        // What messages may inflate to while the loop waits is bounded for each read.
        let inflates = cx.upstream.is_inline() && self.reader.takes_compressed();
        let may = self.rest.is_none() && !is_ahead() && !inflates;
        match self.read_mode {
            ReadMode::Large => may,
            // In place, one read takes several of them.
            ReadMode::Middling => may && !has_in_place(cx),
            ReadMode::Usual | ReadMode::Tiny => false,
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
    fn reads_in_place<U: Upstream>(&self, cx: &Context<'_, U>) -> bool {
        let suits = match self.read_mode {
            ReadMode::Middling => true,
            ReadMode::Large => InPlace::suits(cx.blocks.expected(), cx.config.read_buffer),
            ReadMode::Usual | ReadMode::Tiny => false,
        };
        let usual = matches!(self.phase, Phase::Open(None)) && self.ending.is_none();
        // Compressed messages are no good where they are.
        let next_begins = self.reader.is_between_messages() && !self.reader.takes_compressed();
        has_in_place(cx) && suits && usual && next_begins && !self.peer.link.has_parked()
    }

    /// One read that may bring middling messages, into memory that they can stay in.
    fn read_in_place<U: Upstream>(
        &mut self,
        mut memory: BytesMut,
        cx: &mut Context<'_, U>,
    ) -> Option<Filled> {
        let size = cx.in_place.whole_frames(memory.len());
        let result = self.stream.read(&mut memory[..size]);
        let result = result.map(|arrived| Filled {
            arrived,
            all: arrived == size,
        });
        let Some(filled) = self.note_read(result, cx) else {
            cx.in_place.take_back(memory);
            return None;
        };
        let reader = &mut self.reader;
        let rest = cx
            .in_place
            .take(memory, filled.arrived, reader, cx.messages);
        let last = cx.messages.last().map(Message::len);
        self.read_mode = ReadMode::Usual;
        if let Some(bytes) = last {
            self.note_message(bytes, cx);
        }
        if rest.len() <= cx.buf.len() {
            let buf = std::mem::take(&mut cx.buf);
            let bytes = &mut buf[..rest.len()];
            cx.in_place.copy(rest, bytes);
            self.input(bytes, cx);
            cx.buf = buf;
        } else {
            // The reader is between messages, so nothing more is read until this was looked at.
            let mut bytes = vec![0; rest.len()];
            cx.in_place.copy(rest, &mut bytes);
            self.input(&mut [], cx);
            self.keep(&bytes);
        }
        Some(filled)
    }

    /// One read, into wherever what it brings had best be.
    fn read_and_look<U: Upstream>(&mut self, cx: &mut Context<'_, U>) -> Option<Filled> {
        if self.reads_in_place(cx) {
            if let Some(memory) = cx.in_place.memory(cx.buf.len()) {
                return self.read_in_place(memory, cx);
            }
        }
        if self.read_mode == ReadMode::Large && self.is_open() {
            if let Some((buffer, size)) = cx.blocks.expect_large() {
                return self.read_large(buffer, size, cx);
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

    /// A message has come: of what kind the next is expected to be.
    pub(super) fn note_message<U: Upstream>(&mut self, bytes: usize, cx: &mut Context<'_, U>) {
        if let Phase::Open(Some(allowance)) = &mut self.phase {
            allowance.take_message(cx.now);
            // Whatever comes next has to wait, and the timer ends that.
            self.rearm |= allowance.is_out_of_messages(cx.now);
        }
        let middling = match has_in_place(cx) {
            true => {
                let suits = InPlace::suits(self.reader.frame_len(bytes), cx.config.read_buffer);
                suits && bytes >= InPlace::LEAST
            }
            false => bytes >= MIDDLING,
        };
        self.read_mode = if bytes >= LARGE {
            cx.blocks.note_large(self.reader.frame_len(bytes));
            ReadMode::Large
        } else if middling {
            ReadMode::Middling
        } else {
            ReadMode::Usual
        };
    }
}

/// Messages of a server's clients that are handled on the loop may stay where they were read.
fn has_in_place<U: Upstream>(cx: &Context<'_, U>) -> bool {
    cx.upstream.inline().is_some()
}

/// Whether a read of so many bytes brought frames that are tiny; or so many that they are not counted any more,
/// which is enough for a turn however long they are.
fn are_tiny(frames: u16, bytes: usize) -> bool {
    frames == u16::MAX || usize::from(frames) > bytes / TINY
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
