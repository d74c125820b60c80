//! Where the bytes of a message live once they leave the read buffer.
//!
//! A message is handed to user code, which may keep it for ever, so it can't stay in the read
//! buffer of the loop.
//!
//! - *Small* messages share blocks of at most [`BLOCK`] bytes: one allocation for all that a read
//!   brought, and a kept message of 20 bytes holds [`BLOCK`] bytes alive at worst.
//! - *Middling* messages have a block of their own, at most about twice their size. Where handlers run on
//!   the loop they usually need none, see `in_place`.
//! - *Large* messages have a buffer of their own, at most about twice their size, which comes home
//!   when the last reference to the message is dropped, on whatever thread that is.
//!
//! As long as user code drops what it gets, the same memory is used again and again: an inline
//! echo allocates nothing per message that is not large, and large ones don't make the allocator
//! give pages back to the system and fetch them again.

use std::iter;
use std::sync::{Arc, Mutex};

use bytes::{Bytes, BytesMut};

use tungstenite::Utf8Bytes;
use tungstenite::protocol::Message;

use super::close::Violation;
use super::frame::Opcode;
use super::mask::mask;
use super::message_reader::Masked;
use super::spent::Spent;
use crate::sync::lock;

/// The most memory that small messages share.
const BLOCK: usize = 4096;
/// Bytes of a frame that are not payload, at most.
const FRAME: usize = 14;
/// Messages over this size don't share.
const SHARE_MAX: usize = 1024;
/// What is unmasked soon after it was copied, while it is in the nearest cache.
const NEAR: usize = 8 << 10;
/// Large buffers that wait to be used again, in bytes; released when the loop has been idle.
const SPARE: usize = 16 << 20;
/// So many of them at most: all are looked through.
const SPARE_BUFFERS: usize = 1024;

/// The source of payload memory of one loop.
#[derive(Debug)]
pub(crate) struct Blocks {
    /// What is left of the current block of small messages: empty, with spare capacity.
    block: BytesMut,
    /// All of the current block; 0 if there is none.
    size: usize,
    /// Blocks come back, so that they are worth making large.
    reused: bool,
    /// Used up by small messages, and by middling ones.
    small: Spent,
    middling: Spent,
    home: Arc<LargeMemory>,
    /// The last large frame, and its header; the next is expected to be as long. 0: none was.
    expected: usize,
    /// That was wrong a moment ago: how many more are not expected to be.
    doubted: u8,
    /// None followed at once a moment ago: so often none is expected to.
    alone: u8,
}

/// Where large buffers come back to.
#[derive(Debug, Default)]
struct LargeMemory(Mutex<Spare>);

#[derive(Debug, Default)]
struct Spare {
    /// The one used last is the last, and is still in a cache.
    ///
    /// `buffers.len() <= SPARE_BUFFERS`
    buffers: Vec<Vec<u8>>,
    /// Sum of their lengths, `<= SPARE`.
    bytes: usize,
}

impl LargeMemory {
    fn open(&self) -> std::sync::MutexGuard<'_, Spare> {
        lock(&self.0)
    }

    fn take_back(&self, bytes: Vec<u8>) {
        let mut spare = self.open();
        if spare.bytes + bytes.len() <= SPARE && spare.buffers.len() < SPARE_BUFFERS {
            spare.bytes += bytes.len();
            spare.buffers.push(bytes);
        }
    }
}

/// Up to here, large frames are read in one go, into memory that was made for what came before them.
const EXPECTED: usize = 256 << 10;
/// How often they are read otherwise after that was wrong.
const DOUBTED: u8 = 15;

/// Where in a page large reads begin.
///
/// Sockets keep what arrives in whole pages, and the allocator gives large memory in whole pages, so
/// a copy from the one to the other would go from and to nearly the same place of a page. There,
/// processors with fast `rep movsb` (AMD since Zen 3) are 16 times slower if the target is 1 to 15
/// bytes further on, as they take the two for overlapping. Half a page is as far from it as can be.
/// Measured with 1 MiB messages: a third less processor time for the whole echo.
const STAGGER: usize = 2048;
/// Messages from this size on are staggered.
const STAGGERED: usize = 32 << 10;
/// How many bytes into a page large memory of the usual allocators begins.
const ALLOCATOR: usize = 16;

pub(super) const PAGE: usize = 4096;

/// How far from `memory` it is to where large reads begin; less than a page.
pub(super) fn into_page(memory: *const u8) -> usize {
    (STAGGER + PAGE - memory as usize % PAGE) % PAGE
}

/// The buffer that a loop reads into.
#[derive(Debug)]
pub(crate) struct ReadBuffer {
    memory: Vec<u8>,
    start: usize,
    size: usize,
}

impl ReadBuffer {
    pub(crate) fn new(size: usize) -> Self {
        let memory = vec![0; size + PAGE];
        let start = into_page(memory.as_ptr());
        Self {
            memory,
            start,
            size,
        }
    }

    pub(crate) fn bytes(&mut self) -> &mut [u8] {
        &mut self.memory[self.start..][..self.size]
    }
}

/// Memory for one large message. Bytes once written stay initialised when the buffer is used again,
/// so that reading into it needs no clearing.
#[derive(Debug, Default)]
pub(crate) struct Buffer {
    /// All of it initialised.
    bytes: Vec<u8>,
    /// The message is `bytes[start..end]`; `start <= end <= bytes.len()`.
    start: usize,
    end: usize,
}

impl Buffer {
    pub(crate) fn len(&self) -> usize {
        self.end - self.start
    }

    /// Initialised memory that is there already.
    pub(crate) fn ready(&self) -> usize {
        self.bytes.len() - self.end
    }

    /// What can be added without allocating.
    pub(crate) fn spare(&self) -> usize {
        self.bytes.capacity() - self.end
    }

    /// Whether it is too large to be kept for a message of `len` bytes.
    pub(crate) fn is_wasted_on(&self, len: usize) -> bool {
        self.bytes.capacity() > 2 * len + BLOCK
    }

    pub(crate) fn reserve(&mut self, room: usize) {
        let beyond = (self.end + room).saturating_sub(self.bytes.len());
        self.bytes.reserve_exact(beyond);
    }

    pub(crate) fn extend(&mut self, piece: &[u8]) {
        let (known, new) = piece.split_at(self.ready().min(piece.len()));
        self.bytes[self.end..self.end + known.len()].copy_from_slice(known);
        self.bytes.extend_from_slice(new);
        self.end += piece.len();
    }

    /// A place for `room` bytes behind what is there; [`advance`](Self::advance) tells how many of
    /// them count.
    pub(crate) fn place(&mut self, room: usize) -> &mut [u8] {
        let end = self.end + room;
        if self.bytes.len() < end {
            self.bytes.resize(end, 0);
        }
        &mut self.bytes[self.end..end]
    }

    pub(crate) fn advance(&mut self, arrived: usize) {
        debug_assert!(self.end + arrived <= self.bytes.len());
        self.end += arrived;
    }

    /// The first `bytes` of what is there are none of the message's.
    pub(crate) fn skip(&mut self, bytes: usize) {
        debug_assert!(bytes <= self.len());
        self.start += bytes;
    }

    /// What is there from the `from`th byte of the message on.
    pub(crate) fn from(&mut self, from: usize) -> &mut [u8] {
        &mut self.bytes[self.start + from..self.end]
    }
}

/// A large message that user code has; its memory comes home with the last reference.
struct Lent {
    buffer: Buffer,
    home: Arc<LargeMemory>,
}

impl AsRef<[u8]> for Lent {
    fn as_ref(&self) -> &[u8] {
        &self.buffer.bytes[self.buffer.start..self.buffer.end]
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        self.home.take_back(std::mem::take(&mut self.buffer.bytes));
    }
}

impl Blocks {
    /// `reused`: messages are usually dropped before the next ones are made. Otherwise a block is
    /// never made larger than what the current read can fill.
    pub(crate) fn new(reused: bool) -> Self {
        Self {
            block: BytesMut::new(),
            size: 0,
            reused,
            small: Spent::default(),
            middling: Spent::default(),
            home: Arc::default(),
            expected: 0,
            doubted: 0,
            alone: 0,
        }
    }

    /// Makes a message of a copy of the payload, unmasked, and puts it behind `messages`. `coming` is how
    /// many bytes the rest of the read may still bring.
    ///
    /// Copied first and unmasked where it then is, so that it is not copied in large pieces a moment
    /// after it was written in small ones.
    #[inline(never)] // the only one that splits blocks, so that splitting is inlined here
    pub(crate) fn message(
        &mut self,
        message: Masked<'_>,
        coming: usize,
        messages: &mut Vec<Message>,
    ) -> Result<(), Violation> {
        let Masked {
            opcode,
            payload,
            key,
        } = message;
        if let Some(bytes) = self.alone(payload, key, coming) {
            return add(opcode, bytes, messages);
        }
        if self.block.capacity() < payload.len() {
            self.renew(payload.len(), coming);
        }
        self.block.extend_from_slice(payload);
        mask(&mut self.block, key, 0);
        if opcode == Opcode::Text {
            return add(opcode, self.block.split().freeze(), messages);
        }
        // Made in the place where it stays. Or else it would be read, to be moved there, a moment after it was
        // written in pieces of another size, for which processors wait.
        messages.extend(iter::once_with(|| {
            Message::Binary(self.block.split().freeze())
        }));
        Ok(())
    }

    /// What shares its memory with no other message.
    #[inline(always)]
    fn alone(&mut self, payload: &[u8], key: [u8; 4], coming: usize) -> Option<Bytes> {
        if payload.len() >= STAGGERED {
            Some(self.copy_large(payload, key))
        } else if payload.len() > SHARE_MAX {
            Some(self.copy_middling(payload, key))
        } else if !self.reused && payload.len() + FRAME >= coming {
            // Nobody to share with.
            let mut bytes = payload.to_vec();
            mask(&mut bytes, key, 0);
            Some(bytes.into())
        } else {
            None
        }
    }

    /// The same for what is not a message yet.
    pub(crate) fn copy(&mut self, payload: &[u8], key: [u8; 4], coming: usize) -> Bytes {
        let mut one = Vec::with_capacity(1);
        let message = Masked {
            opcode: Opcode::Binary,
            payload,
            key,
        };
        let _ = self.message(message, coming, &mut one);
        one.pop().map(Message::into_data).unwrap_or_default()
    }

    #[inline(never)]
    fn copy_middling(&mut self, payload: &[u8], key: [u8; 4]) -> Bytes {
        let most = 2 * payload.len() + BLOCK;
        let mut block = match self.middling.reclaim(payload.len(), most) {
            Some(block) => block,
            // Many are out at a time: from where there may be more of them.
            None if self.middling.is_full() => return self.copy_large(payload, key),
            None => BytesMut::with_capacity(payload.len()),
        };
        for piece in payload.chunks(NEAR) {
            let start = block.len();
            block.extend_from_slice(piece);
            mask(&mut block[start..], key, start);
        }
        let message = block.split().freeze();
        self.middling.add(block);
        message
    }

    fn copy_large(&mut self, payload: &[u8], key: [u8; 4]) -> Bytes {
        let mut buffer = self.buffer(payload.len(), payload.len());
        for piece in payload.chunks(NEAR) {
            let start = buffer.len();
            buffer.extend(piece);
            mask(buffer.from(start), key, start);
        }
        self.hand_out(buffer)
    }

    fn renew(&mut self, needed: usize, coming: usize) {
        let size = if self.reused {
            BLOCK
        } else {
            coming.clamp(needed, BLOCK)
        };
        // All of it or nothing: what is left of a block that is kept is not worth having.
        if !self.block.try_reclaim(size) {
            let block = self.small.reclaim(size, BLOCK);
            let block = block.unwrap_or_else(|| BytesMut::with_capacity(size));
            let old = std::mem::replace(&mut self.block, block);
            if std::mem::replace(&mut self.size, self.block.capacity()) > 0 {
                self.small.add(old);
            }
        }
    }

    /// An empty buffer for a message of perhaps `expected` bytes, of which `len` have arrived: one
    /// used before, if it suits the whole, or else a new one for what has arrived.
    pub(crate) fn buffer(&mut self, len: usize, expected: usize) -> Buffer {
        let start = if expected < STAGGERED {
            0
        } else {
            STAGGER - ALLOCATOR
        };
        let most = start + 2 * expected + BLOCK;
        let suits = |buffer: &Vec<u8>| (start + expected..=most).contains(&buffer.len());
        let mut spare = self.home.open();
        let bytes = match spare.buffers.iter().rposition(suits) {
            Some(place) => {
                let bytes = spare.buffers.remove(place);
                spare.bytes -= bytes.len();
                bytes
            }
            None => Vec::with_capacity(start + len),
        };
        let mut buffer = Buffer {
            bytes,
            start,
            end: start,
        };
        buffer.place(0);
        buffer
    }

    /// A large frame has come; `frame` is its length with its header.
    pub(crate) fn note_large(&mut self, frame: usize) {
        self.expected = frame;
    }

    /// How long the next large frame probably is, with its header; 0 if none has come.
    pub(crate) fn expected(&self) -> usize {
        self.expected
    }

    /// Memory to read a large frame into that becomes the message's own, if it is as long as the last
    /// one, with its size. `None`: better read otherwise.
    pub(crate) fn expect_large(&mut self) -> Option<(Buffer, usize)> {
        let size = self.expected;
        let doubted = self.doubted > 0;
        self.doubted = self.doubted.saturating_sub(1);
        let wanted = !doubted && (STAGGERED..=EXPECTED).contains(&size);
        wanted.then(|| (self.buffer(size, size), size))
    }

    /// Whether to look for another large message right after one.
    pub(crate) fn expect_another(&mut self) -> bool {
        let alone = self.alone > 0;
        self.alone = self.alone.saturating_sub(1);
        !alone
    }

    /// There was none.
    pub(crate) fn none_followed(&mut self) {
        self.alone = DOUBTED;
    }

    /// What was read into this memory did not become a message's own.
    pub(crate) fn not_as_expected(&mut self, buffer: Buffer) {
        // A ping in between says nothing about large frames.
        if buffer.len() > SHARE_MAX {
            self.doubted = DOUBTED;
        }
        self.home.take_back(buffer.bytes);
    }

    /// Nothing was read into this memory.
    pub(crate) fn take_back(&mut self, buffer: Buffer) {
        self.home.take_back(buffer.bytes);
    }

    /// Makes a message of the fragments that were gathered in `buffer`.
    pub(crate) fn assembled(&mut self, mut buffer: Buffer) -> Bytes {
        let len = buffer.len();
        // A short message in a large buffer would hold all of it alive, and what held a short one, or
        // nothing at all, is not worth keeping.
        if len <= SHARE_MAX || buffer.spare() > len {
            self.copy(buffer.from(0), [0; 4], len)
        } else {
            self.hand_out(buffer)
        }
    }

    /// Makes a message of what is in `buffer`.
    fn hand_out(&mut self, buffer: Buffer) -> Bytes {
        Bytes::from_owner(Lent {
            buffer,
            home: self.home.clone(),
        })
    }

    /// Whether there is memory that could be released.
    pub(crate) fn holds_memory(&self) -> bool {
        !(self.small.is_empty() && self.middling.is_empty() && self.home.open().buffers.is_empty())
    }

    /// Lets go of all memory that is not in use.
    pub(crate) fn release(&mut self) {
        *self.home.open() = Spare::default();
        self.block = BytesMut::new();
        self.size = 0;
        self.small.release();
        self.middling.release();
    }
}

/// Makes a message of `bytes`, behind `messages`, in its place; see [`Blocks::message`].
#[inline(never)]
fn add(opcode: Opcode, bytes: Bytes, messages: &mut Vec<Message>) -> Result<(), Violation> {
    if opcode == Opcode::Text {
        // §8.1: "the endpoint MUST _Fail the WebSocket Connection_".
        let text = Utf8Bytes::try_from(bytes).map_err(|_| Violation::INVALID_UTF8)?;
        messages.extend(iter::once_with(|| Message::Text(text)));
    } else {
        messages.extend(iter::once_with(|| Message::Binary(bytes)));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dropped_messages_leave_their_block_to_the_next() {
        let mut blocks = Blocks::new(true);
        let first = blocks.copy(&[1; 64], [0; 4], 64).as_ptr();
        for n in 1..1000 {
            let next = blocks.copy(&[2; 64], [0; 4], 64).as_ptr();
            assert_eq!(next as usize, first as usize + n * 64 % BLOCK);
        }
    }

    #[test]
    fn dropped_large_messages_too() {
        let mut blocks = Blocks::new(false);
        let first = blocks.copy(&[1; 20_000], [0; 4], 0).as_ptr();
        for _ in 0..100 {
            assert_eq!(blocks.copy(&[2; 16_000], [0; 4], 0).as_ptr(), first);
        }
        // A message must not hold much more than its own size alive.
        let small = blocks.copy(&[2; 2_000], [0; 4], 0);
        blocks.release();
        let small = small.try_into_mut().expect("nobody else has it");
        assert!(small.capacity() <= 2 * 2_000 + BLOCK);
        let kept = blocks.copy(&[3; 20_000], [0; 4], 0);
        assert_ne!(blocks.copy(&[4; 20_000], [0; 4], 0).as_ptr(), kept.as_ptr());
        assert_eq!(kept[..], [3; 20_000]);
    }

    /// Or a peer could fill the list of what waits with nothing.
    #[test]
    fn few_buffers_wait() {
        let mut blocks = Blocks::new(false);
        let messages: Vec<Bytes> = (0..3 * SPARE_BUFFERS)
            .map(|_| blocks.copy_large(&[1; SHARE_MAX + 1], [0; 4]))
            .collect();
        drop(messages);
        assert_eq!(blocks.home.open().buffers.len(), SPARE_BUFFERS);
    }

    #[test]
    fn kept_messages_keep_their_bytes() {
        for reused in [false, true] {
            let mut blocks = Blocks::new(reused);
            let kept: Vec<Bytes> = (0..3000usize)
                .map(|n| blocks.copy(&vec![n as u8; n * 7 % 9000], [0; 4], 65536))
                .collect();
            for (n, bytes) in kept.iter().enumerate() {
                assert_eq!(bytes[..], vec![n as u8; n * 7 % 9000]);
            }
            drop(kept);
            assert!(blocks.home.open().bytes <= SPARE);
            blocks.release();
            assert!(!blocks.holds_memory());
        }
    }
}
