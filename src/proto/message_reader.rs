//! Frames to messages: the receiving half of one WebSocket, as pure data.
//!
//! Call [`MessageReader::next`] with what was read until it gives `None`: then all of the input is
//! consumed, and what was incomplete is kept inside. Between messages nothing is kept at all, so an
//! idle connection costs the size of this struct.
//!
//! A [`Violation`] is final: the caller sends its code in a close frame and reads no further.

use bytes::Bytes;
use tungstenite::Utf8Bytes;
use tungstenite::protocol::Message;

use super::close::{self, Violation};
use super::compressed::compressed_message;
use super::frame::{Header, MAX_CONTROL, MAX_HEADER, Opcode, Whole, frame_len};
use super::mask::{copy_masked, mask};
use super::payload::{Blocks, Buffer};
use super::utf8::Utf8Validator;

/// Which side of the connection we are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    Server,
    Client,
}

/// Bytes that a message must have before more of it is read directly into place.
const DIRECT: usize = 4 << 10;

/// What [`MessageReader::fill`] came to.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Filled {
    pub(crate) arrived: usize,
    /// The place was filled; there may be more to read.
    pub(crate) all: bool,
}

/// A whole message as it came, its UTF-8 not looked at yet.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Masked<'a> {
    /// Text or binary.
    pub(crate) opcode: Opcode,
    pub(crate) payload: &'a [u8],
    /// Zeros if it is not masked, being a server's.
    pub(crate) key: [u8; 4],
}

/// The receiving half of one WebSocket.
#[derive(Debug)]
pub(crate) struct MessageReader {
    role: Role,
    accepts: Accepts,
    /// Frames of one read, as far as they can be counted: a measure of work where bytes are none.
    frames: u16,
    /// Longest message, assembled, in bytes.
    max_message: u32,
    /// What has begun and is not whole; `None` between messages.
    partial: Option<Box<Partial>>,
}

/// What may come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Accepts {
    Plain,
    /// Plain messages and compressed ones.
    #[cfg_attr(not(feature = "deflate"), allow(dead_code, reason = "never agreed on"))]
    Compressed,
    /// §5.5.1: after a close frame no more data follows; what comes all the same is ignored.
    Nothing,
}

/// A header, a frame or a message that has begun.
#[derive(Debug, Default)]
struct Partial {
    /// A header that was cut short; `header_len < MAX_HEADER`, 0 when `frame` is there.
    header: [u8; MAX_HEADER],
    header_len: usize,
    /// The frame whose payload is arriving.
    frame: Option<Frame>,
    /// The payload so far, if that frame is a control frame; at most [`MAX_CONTROL`] bytes.
    control: Vec<u8>,
    /// The message whose fragments are arriving.
    message: Option<Assembly>,
}

/// A frame in the middle of its payload: `received < header.len`, or both are 0.
#[derive(Debug)]
struct Frame {
    header: Header,
    received: usize,
}

/// A message in the middle: `bytes.len() <= max_message`.
#[derive(Debug)]
struct Assembly {
    /// Text or binary.
    opcode: Opcode,
    compressed: bool,
    utf8: Utf8Validator,
    /// Bytes have arrived that no text can contain.
    invalid: bool,
    bytes: Buffer,
}

impl MessageReader {
    pub(crate) fn new(role: Role, max_message: u32) -> Self {
        Self {
            role,
            accepts: Accepts::Plain,
            frames: 0,
            max_message,
            partial: None,
        }
    }

    /// As it is between two messages, `compressed` if it takes such ones.
    #[inline]
    pub(crate) fn between_messages(role: Role, max_message: u32, compressed: bool) -> Self {
        let accepts = match compressed {
            true => Accepts::Compressed,
            false => Accepts::Plain,
        };
        Self {
            accepts,
            ..Self::new(role, max_message)
        }
    }

    /// Whether [`between_messages`](Self::between_messages) would make one that does the same.
    #[inline]
    pub(crate) fn is_between_messages(&self) -> bool {
        self.partial.is_none() && self.accepts != Accepts::Nothing
    }

    #[inline]
    pub(crate) fn takes_compressed(&self) -> bool {
        self.accepts == Accepts::Compressed
    }

    #[cfg(feature = "deflate")]
    /// From now on messages may be compressed: permessage-deflate was agreed on.
    pub(crate) fn allow_compression(&mut self) {
        self.accepts = Accepts::Compressed;
    }

    /// Takes a whole frame off the front of `input`, if that is a whole message of the kind that nearly
    /// all are, see [`Whole`]. `None`: [`next`](Self::next) tells.
    #[inline(always)] // on the path of every message
    pub(crate) fn next_plain<'a>(&mut self, input: &mut &'a mut [u8]) -> Option<Masked<'a>> {
        if !self.is_between_messages() {
            return None;
        }
        let whole = Whole::find(input, self.role)?;
        if whole.end - whole.start > self.max_message as usize {
            return None;
        }
        self.frames = self.frames.saturating_add(1);
        let (frame, rest) = std::mem::take(input).split_at_mut(whole.end);
        *input = rest;
        Some(Masked {
            opcode: whole.opcode,
            payload: &frame[whole.start..],
            key: whole.key,
        })
    }

    /// Finds a message of that kind, of at least `least` bytes, at the front of `input`, and counts it as
    /// taken.
    pub(crate) fn next_plain_of(&mut self, least: usize, input: &[u8]) -> Option<Whole> {
        if !self.is_between_messages() {
            return None;
        }
        let whole = Whole::find(input, self.role)?;
        let within = (least..=self.max_message as usize).contains(&(whole.end - whole.start));
        if within {
            self.frames = self.frames.saturating_add(1);
        }
        within.then_some(whole)
    }

    /// Takes the next message off the front of `input`, unmasking in place. Control frames are
    /// messages too, and compressed ones are [`Message::Frame`], see
    /// [`compressed_message`]. `None`: `input` is consumed to the end.
    pub(crate) fn next(
        &mut self,
        input: &mut &mut [u8],
        blocks: &mut Blocks,
    ) -> Result<Option<Message>, Violation> {
        if self.is_between_messages() {
            let Some(header) = Header::parse(input, self.role, self.compression())? else {
                self.keep_header(input);
                return Ok(None);
            };
            let whole = header.len.saturating_add(u64::from(header.size)) <= input.len() as u64;
            if whole && header.fin && header.opcode != Opcode::Continuation {
                self.check(&header)?;
                self.frames = self.frames.saturating_add(1);
                let coming = input.len();
                let (_, rest) = std::mem::take(input).split_at_mut(header.size as usize);
                let (payload, rest) = rest.split_at_mut(header.len as usize);
                *input = rest;
                return self.whole_frame(&header, payload, blocks, coming);
            }
        }
        self.next_in_parts(input, blocks)
    }

    /// In the middle of a large message, the next bytes of its payload can go straight to where
    /// they are kept: calls `read` with the place and gives its result. `None` if there is no such
    /// place now. Call [`next`](Self::next) afterwards, even without input.
    ///
    /// Memory still follows what has arrived, so this begins with the second [`DIRECT`] bytes.
    pub(crate) fn fill<E>(
        &mut self,
        most: usize,
        read: impl FnOnce(&mut [u8]) -> Result<usize, E>,
    ) -> Option<Result<Filled, E>> {
        if !self.is_in_large_message() {
            return None;
        }
        let partial = self.partial.as_deref_mut()?;
        let frame = partial.frame.as_mut()?;
        let message = partial.message.as_mut()?;
        let missing = frame.header.len as usize - frame.received;
        if missing < DIRECT / 4 {
            // So little may as well come along with what follows.
            return None;
        }
        let start = message.bytes.len();
        // At most doubled, unless the memory is there anyway.
        let room = missing.min(start.max(message.bytes.ready())).min(most);
        let result = read(message.bytes.place(room));
        let arrived = *result.as_ref().unwrap_or(&0);
        message.bytes.advance(arrived);
        message.arrived(start, &frame.header, frame.received);
        frame.received += arrived;
        Some(result.map(|arrived| Filled {
            arrived,
            all: arrived == room,
        }))
    }

    /// Takes over the memory of what was read between two messages, if it is a large message, or at
    /// least half of one, and nothing else; otherwise gives it back. Call [`next`](Self::next)
    /// afterwards, even without input.
    pub(crate) fn adopt(&mut self, mut read: Buffer) -> Result<(), Buffer> {
        if !self.is_between_messages() {
            return Err(read);
        }
        let Ok(Some(header)) = Header::parse(read.from(0), self.role, self.compression()) else {
            return Err(read);
        };
        let size = header.size as usize;
        let received = read.len() - size;
        let large = !header.opcode.is_control() && received >= DIRECT;
        let missing = header.len.checked_sub(received as u64);
        let fits = missing.is_some_and(|missing| missing <= received.min(read.spare()) as u64);
        if !large || !fits || self.check(&header).is_err() {
            return Err(read);
        }
        // `check` held `len` against the limit. What others have sent is no measure of what this peer may hold.
        if read.is_wasted_on(header.len as usize) {
            return Err(read);
        }
        self.frames = self.frames.saturating_add(1);
        self.begin(header);
        let partial = self.partial.get_or_insert_default();
        if let (Some(frame), Some(message)) = (&mut partial.frame, &mut partial.message) {
            read.skip(size);
            message.bytes = read;
            message.arrived(0, &header, 0);
            frame.received = received;
        }
        Ok(())
    }

    pub(crate) fn role(&self) -> Role {
        self.role
    }

    /// Bytes of a frame with `len` bytes of payload, as the peer sends it.
    pub(crate) fn frame_len(&self, len: usize) -> usize {
        frame_len(len, self.role == Role::Server)
    }

    /// Frames seen since [`count_afresh`](Self::count_afresh); `u16::MAX` stands for any more.
    pub(crate) fn frames(&self) -> u16 {
        self.frames
    }

    pub(crate) fn count_afresh(&mut self) {
        self.frames = 0;
    }

    /// Whether a large message is arriving, of which more should be read while it is in the cache.
    pub(crate) fn is_in_large_message(&self) -> bool {
        let Some(partial) = &self.partial else {
            return false;
        };
        let data = partial
            .frame
            .as_ref()
            .is_some_and(|frame| !frame.header.opcode.is_control());
        data && partial
            .message
            .as_ref()
            .is_some_and(|message| message.bytes.len() >= DIRECT)
    }

    /// Whether the next byte belongs to a text or binary message.
    pub(crate) fn expects_data(&self, input: &[u8]) -> bool {
        let partial = self.partial.as_deref();
        let first = match partial {
            Some(Partial {
                frame: Some(frame), ..
            }) => return !frame.header.opcode.is_control(),
            Some(partial) if partial.header_len > 0 => Some(partial.header[0]),
            _ => input.first().copied(),
        };
        first.is_some_and(|first| first & 0x08 == 0)
    }

    fn compression(&self) -> bool {
        self.accepts == Accepts::Compressed
    }

    fn keep_header(&mut self, input: &mut &mut [u8]) {
        if input.is_empty() {
            return;
        }
        let mut partial = Box::<Partial>::default();
        partial.header[..input.len()].copy_from_slice(input);
        partial.header_len = input.len();
        self.partial = Some(partial);
        *input = &mut [];
    }

    /// The rules of a header that depend on what came before it (§5.4) and on the limit.
    fn check(&self, header: &Header) -> Result<(), Violation> {
        if header.opcode.is_control() {
            return Ok(());
        }
        let message = self.partial.as_ref().and_then(|p| p.message.as_ref());
        let so_far = match (header.opcode, message) {
            (Opcode::Continuation, None) => {
                return Err(Violation::protocol("continuation of nothing"));
            }
            (Opcode::Continuation, Some(message)) => message.bytes.len(),
            (_, Some(_)) => {
                return Err(Violation::protocol(
                    "new message before the end of the last",
                ));
            }
            (_, None) => 0,
        };
        if header.len > (self.limit(header) - so_far) as u64 {
            return Err(Violation::TOO_BIG);
        }
        Ok(())
    }

    /// How long the message of this frame may become on the wire.
    fn limit(&self, header: &Header) -> usize {
        let max = self.max_message as usize;
        let message = self.partial.as_ref().and_then(|p| p.message.as_ref());
        if header.compressed || message.is_some_and(|message| message.compressed) {
            // What can't be compressed becomes longer: by an eighth where a compressor writes each
            // byte in the nine bits that the fixed code has for half of them, as fast ones do. The
            // limit holds for what comes out.
            return max + max / 8 + 64;
        }
        max
    }

    #[inline]
    fn whole_frame(
        &mut self,
        header: &Header,
        payload: &mut [u8],
        blocks: &mut Blocks,
        coming: usize,
    ) -> Result<Option<Message>, Violation> {
        let opcode = header.opcode;
        Ok(Some(match opcode {
            _ if header.compressed => {
                compressed_message(opcode, blocks.copy(payload, header.key, coming))
            }
            Opcode::Text => Message::Text(text(blocks.copy(payload, header.key, coming))?),
            Opcode::Binary => Message::Binary(blocks.copy(payload, header.key, coming)),
            _ => {
                mask(payload, header.key, 0);
                self.control_frame(opcode, payload)?
            }
        }))
    }

    fn control_frame(&mut self, opcode: Opcode, payload: &[u8]) -> Result<Message, Violation> {
        Ok(match opcode {
            Opcode::Ping => Message::Ping(Bytes::copy_from_slice(payload)),
            Opcode::Pong => Message::Pong(Bytes::copy_from_slice(payload)),
            _ => {
                let frame = close::parse_body(payload)?;
                self.accepts = Accepts::Nothing;
                self.partial = None;
                Message::Close(frame)
            }
        })
    }

    /// The slow path: something is, or becomes, incomplete.
    fn next_in_parts(
        &mut self,
        input: &mut &mut [u8],
        blocks: &mut Blocks,
    ) -> Result<Option<Message>, Violation> {
        while self.accepts != Accepts::Nothing {
            let compression = self.compression();
            let partial = self.partial.get_or_insert_default();
            if partial.frame.is_none() {
                let Some(header) = partial.header(input, self.role, compression)? else {
                    return Ok(None);
                };
                self.check(&header)?;
                self.frames = self.frames.saturating_add(1);
                self.begin(header);
            }
            if let Some(message) = self.payload(input, blocks)? {
                return Ok(Some(message));
            }
            if input.is_empty() {
                self.forget_if_between_messages();
                return Ok(None);
            }
        }
        *input = &mut [];
        Ok(None)
    }

    fn begin(&mut self, header: Header) {
        let partial = self.partial.get_or_insert_default();
        if matches!(header.opcode, Opcode::Text | Opcode::Binary) {
            partial.message = Some(Assembly {
                opcode: header.opcode,
                compressed: header.compressed,
                utf8: Utf8Validator::default(),
                invalid: false,
                bytes: Buffer::default(),
            });
        }
        partial.control.clear();
        partial.frame = Some(Frame {
            header,
            received: 0,
        });
    }

    /// Moves payload of the current frame from `input`; gives the message that this completes.
    fn payload(
        &mut self,
        input: &mut &mut [u8],
        blocks: &mut Blocks,
    ) -> Result<Option<Message>, Violation> {
        let Some(partial) = self.partial.as_deref_mut() else {
            return Ok(None);
        };
        let Some(frame) = partial.frame.as_mut() else {
            return Ok(None);
        };
        let header = frame.header;
        // `check` held `len` against the limit, so it fits a usize.
        let missing = header.len as usize - frame.received;
        let arrived = missing.min(input.len());
        let (piece, rest) = std::mem::take(input).split_at_mut(arrived);
        *input = rest;
        let offset = frame.received;
        frame.received += piece.len();
        let complete = piece.len() == missing;

        if header.opcode.is_control() {
            debug_assert!(partial.control.len() + piece.len() <= MAX_CONTROL);
            copy_masked(&mut partial.control, piece, header.key, offset);
            if !complete {
                return Ok(None);
            }
            partial.frame = None;
            let payload = std::mem::take(&mut partial.control);
            let message = self.control_frame(header.opcode, &payload)?;
            self.forget_if_between_messages();
            return Ok(Some(message));
        }

        let Some(message) = partial.message.as_mut() else {
            return Ok(None);
        };
        message.push(piece, &header, offset, blocks);
        if message.invalid {
            return Err(Violation::INVALID_UTF8);
        }
        if !complete {
            return Ok(None);
        }
        partial.frame = None;
        if !header.fin {
            return Ok(None);
        }
        let message = partial.message.take();
        self.partial = None;
        message.map(|m| m.finish(blocks)).transpose()
    }

    fn forget_if_between_messages(&mut self) {
        if self
            .partial
            .as_ref()
            .is_some_and(|p| p.header_len == 0 && p.frame.is_none() && p.message.is_none())
        {
            self.partial = None;
        }
    }
}

impl Partial {
    /// Completes a header from what is kept and `input`, or keeps all of `input`.
    fn header(
        &mut self,
        input: &mut &mut [u8],
        role: Role,
        compression: bool,
    ) -> Result<Option<Header>, Violation> {
        let kept = self.header_len;
        let more = input.len().min(MAX_HEADER - kept);
        self.header[kept..kept + more].copy_from_slice(&input[..more]);
        let Some(header) = Header::parse(&self.header[..kept + more], role, compression)? else {
            // Fourteen bytes always hold a header, so all of `input` went in.
            self.header_len = kept + more;
            *input = &mut [];
            return Ok(None);
        };
        self.header_len = 0;
        *input = &mut std::mem::take(input)[header.size as usize - kept..];
        Ok(Some(header))
    }
}

impl Assembly {
    /// Memory follows what has arrived, at most doubled: never what a header claims.
    fn push(&mut self, piece: &[u8], header: &Header, offset: usize, blocks: &mut Blocks) {
        let start = self.bytes.len();
        if self.bytes.spare() < piece.len() {
            let frame_left = header.len as usize - offset;
            let double = piece.len().max(start);
            // Only the last frame tells how much is still to come. To give each of many tiny ones
            // just what it needs would be to move the message for every byte.
            let room = if header.fin {
                double.min(frame_left)
            } else {
                double
            };
            if start == 0 {
                self.bytes = blocks.buffer(room, frame_left);
            } else {
                self.bytes.reserve(room);
            }
        }
        self.bytes.extend(piece);
        self.arrived(start, header, offset);
    }

    /// Unmasks and checks what has arrived from `start` on.
    fn arrived(&mut self, start: usize, header: &Header, offset: usize) {
        let fresh = self.bytes.from(start);
        mask(fresh, header.key, offset);
        if self.opcode == Opcode::Text && !self.compressed {
            self.invalid |= self.utf8.push(fresh).is_err();
        }
    }

    fn finish(self, blocks: &mut Blocks) -> Result<Message, Violation> {
        let bytes = blocks.assembled(self.bytes);
        match self.opcode {
            opcode if self.compressed => Ok(compressed_message(opcode, bytes)),
            Opcode::Text => Ok(Message::Text(text(bytes)?)),
            _ => Ok(Message::Binary(bytes)),
        }
    }
}

/// §8.1: "the endpoint MUST _Fail the WebSocket Connection_".
#[inline]
fn text(bytes: Bytes) -> Result<Utf8Bytes, Violation> {
    Utf8Bytes::try_from(bytes).map_err(|_| Violation::INVALID_UTF8)
}

#[cfg(test)]
mod tests;
