//! What waits to be sent to one peer, and the policy when it is too much.
//!
//! Frames are encoded here, by the thread that sends, straight into the buffer that the loop will
//! write. Small messages become one run of bytes; a large payload is kept by reference and written
//! from where it is. The loop takes the front, writes it, and says how much the kernel took.
//!
//! Messages that may be dropped or replaced while they wait (`Overflow::DropOldest`, `send_latest`)
//! are kept one by one.

use std::collections::VecDeque;

use crate::config::{Config, Overflow};
use crate::error::{SendError, Sent};
use crate::message::{CloseCause, CloseCode, LatestKey, Message};
use crate::proto::{MAX_HEADER, Opcode, data_frame, encode, frame_len, new_mask, truncate_reason};

use super::aside::{Aside, Goodbye};
use super::queue::{BY_REFERENCE, Early, Lost, Queue, QueueKey, Segment};
use super::spare::{self, Buffer};

/// The bytes that a loop takes at a time from the messages that are kept one by one. What is taken
/// can be neither dropped nor replaced any more.
const TAKE: usize = 256 << 10;

/// More than so many bytes of small messages that wait are a sign that the peer does not keep up.
const FRESH: usize = 16 << 10;

/// What a message that is kept one by one, because it may be dropped, costs beside its bytes, about.
const KEPT: usize = 128;

/// So many of them are taken at a time, at most.
const TAKE_MESSAGES: usize = 1024;

/// The largest frame that is accepted: with the limit at most 1 GiB too, sums fit 32 bits.
pub(super) const MAX_FRAME: usize = 1 << 30;

/// See the module's documentation.
#[derive(Debug, Default)]
pub(crate) struct Outbox {
    /// Whole frames, to be sent before `queue`; not empty. Given away when the loop takes it: an
    /// idle connection holds no buffer.
    buf: Option<Buffer>,
    /// What is kept one by one, and the end.
    aside: Option<Box<Aside>>,
    /// Bytes accepted and not yet taken by the kernel:
    /// `buf` + `queue` + what the loop has taken + what is reserved; 32 bits, see `MAX_FRAME`.
    queued: u32,
    /// Compressed frames queued so far, wrapping; and all others that a compressor has to start
    /// afresh after.
    compressed: u32,
    /// Data messages queued since the loop last counted them.
    pushed: u32,
    /// The connection is gone: nothing more is accepted.
    dead: bool,
    /// The loop knows that there is something to write.
    flush_requested: bool,
    /// The kernel took less than it was offered, or more than half of the limit is queued; until
    /// the queue is empty.
    stalled: bool,
    /// We are the client, so every frame is masked (§5.1).
    masked: bool,
}

impl Outbox {
    pub(crate) fn new(masked: bool) -> Self {
        Self {
            masked,
            ..Self::default()
        }
    }

    // ---- for senders ----

    /// Queues a small message if there is plenty of room and nothing special about it: nearly
    /// always. `None`: [`push`](Self::push) decides; `true`: the loop is to be told.
    #[inline]
    pub(crate) fn push_plain(
        &mut self,
        opcode: Opcode,
        payload: &[u8],
        config: &Config,
    ) -> Option<(Sent, bool)> {
        let plain = payload.len() < BY_REFERENCE
            && self.queued() + payload.len() + MAX_HEADER <= config.outbound_bytes / 2
            && self.aside.is_none()
            && !self.dead
            && config.overflow != Overflow::DropOldest;
        if !plain {
            return None;
        }
        let key = self.key();
        let most = payload.len() + MAX_HEADER;
        let buf = match &mut self.buf {
            Some(buf) if buf.capacity() - buf.len() >= most => buf,
            buf => widen(buf.get_or_insert_with(spare::take_buffer), most),
        };
        let before = buf.len();
        encode(opcode, payload, key, buf);
        self.queued += (buf.len() - before) as u32;
        self.pushed = self.pushed.wrapping_add(1);
        Some((
            self.status(),
            !std::mem::replace(&mut self.flush_requested, true),
        ))
    }

    /// What senders are told.
    pub(crate) fn status(&self) -> Sent {
        if self.stalled {
            Sent::Congested
        } else {
            Sent::Queued
        }
    }

    /// Queues one message.
    pub(crate) fn push(
        &mut self,
        message: Message,
        key: Option<LatestKey>,
        config: &Config,
    ) -> Result<(), SendError> {
        if self.is_sealed() {
            return Err(SendError::Closed(message));
        }
        let Some((_, payload)) = data_frame(&message) else {
            return self.push_control(message);
        };
        let size = self.frame_len(payload.len());
        let key = key.map(QueueKey::from);
        let replaced = key.as_ref().map_or(0, |key| self.waiting(key));
        // A message that takes the place of a larger one needs no room.
        if size > replaced {
            if let Err(refused) = self.room_for(size - replaced, config) {
                return Err(refused(message));
            }
        }
        self.queued += size as u32;
        self.append(message, key, config.overflow);
        Ok(())
    }

    /// Counts a message that will be queued by [`push_reserved`](Self::push_reserved), or tells how
    /// it is refused.
    pub(crate) fn reserve(
        &mut self,
        message: &Message,
        config: &Config,
    ) -> Result<(), fn(Message) -> SendError> {
        if self.is_sealed() {
            return Err(SendError::Closed);
        }
        let Some((_, payload)) = data_frame(message) else {
            return check_control(message);
        };
        let size = self.frame_len(payload.len());
        self.room_for(size, config)?;
        self.queued += size as u32;
        Ok(())
    }

    /// The same for a message of which only the latest matters; it waits here. `true`: it is the
    /// first with this key, and is to be queued by [`push_latest`](Self::push_latest). `held`: not before
    /// a call of a room is over, so the first that is not held is to be queued too.
    pub(crate) fn reserve_latest(
        &mut self,
        message: Message,
        key: &LatestKey,
        held: bool,
        config: &Config,
    ) -> Result<bool, SendError> {
        if self.is_sealed() {
            return Err(SendError::Closed(message));
        }
        let early = self.queue_if_any().and_then(|queue| queue.early.get(key));
        let replaced = early.map(|early| early.size);
        let first = early.is_none_or(|early| early.held && !held);
        let held = held && early.is_none_or(|early| early.held);
        let size = data_frame(&message).map_or(0, |(_, payload)| self.frame_len(payload.len()));
        if let Err(refused) = self.room_for(size.saturating_sub(replaced.unwrap_or(0)), config) {
            return Err(refused(message));
        }
        self.queued += size as u32;
        self.queued -= replaced.unwrap_or(0) as u32;
        let early = Early {
            message,
            size,
            held,
        };
        let queue = self.queue();
        queue.lost.conflated += u32::from(replaced.is_some());
        queue.early.insert(key.clone(), early);
        Ok(first)
    }

    /// Queues what was counted before.
    pub(crate) fn push_reserved(&mut self, message: Message, config: &Config) {
        if data_frame(&message).is_none() {
            return drop(self.push_control(message));
        }
        if self.is_finished() {
            // Accepted before the close and not sent after it: it stays counted, as undelivered.
            return;
        }
        self.make_reserved_room(self.frame_len(message.len()), config);
        self.append(message, None, config.overflow);
    }

    /// Queues the latest message of this key.
    pub(crate) fn push_latest(&mut self, key: LatestKey, config: &Config) {
        let aside = self.aside.as_mut();
        let early = aside.and_then(|aside| aside.queue.early.remove(&key));
        // Not behind the close frame, as above.
        if let Some(early) = early.filter(|_| !self.is_finished()) {
            self.make_reserved_room(early.size, config);
            self.append(early.message, Some(key.into()), config.overflow);
        }
    }

    /// Queues a frame that was encoded for many, or one that so many `messages` were joined to; if the
    /// peer does not keep up, in place of an unsent one of the same key. `false`: it was refused.
    pub(crate) fn push_shared(
        &mut self,
        frame: &Segment,
        messages: usize,
        latest: Option<&QueueKey>,
        config: &Config,
    ) -> bool {
        let latest = latest.filter(|_| !self.keeps_up());
        let replaced = latest.map_or(0, |key| self.waiting(key));
        let more = frame.len().saturating_sub(replaced);
        // What was sent before the close frame still goes out before it.
        if self.is_finished() || (more > 0 && !matches!(self.make_room(more, config), Room::Made)) {
            return false;
        }
        self.queued += frame.len() as u32;
        self.pushed = self.pushed.wrapping_add(messages as u32);
        // Compressed or not: to start afresh once too often costs little.
        self.compressed = self.compressed.wrapping_add(1);
        let (header, rest) = frame.parts();
        let small = header.is_empty();
        if small && latest.is_none() && config.overflow != Overflow::DropOldest {
            self.small().extend_from_slice(rest);
        } else {
            let replaced = self.queue().push(frame.clone(), latest.cloned());
            self.queued -= replaced as u32;
        }
        true
    }

    /// Whether so many bytes find room whatever the policy, and need not be kept one by one.
    pub(crate) fn has_plenty(&self, bytes: usize, config: &Config) -> bool {
        let little = self.queued() + bytes <= config.outbound_bytes / 2;
        little && config.overflow != Overflow::DropOldest
    }

    /// What waits goes out in this turn of the loop, as far as can be foreseen. Then it is not worth
    /// keeping by key, and costs no more than any message.
    fn keeps_up(&self) -> bool {
        !self.stalled && !self.keeps_some() && self.buffered() < FRESH
    }

    fn push_control(&mut self, message: Message) -> Result<(), SendError> {
        if let Err(refused) = check_control(&message) {
            return Err(refused(message));
        }
        match message {
            Message::Ping(payload) => self.control(Opcode::Ping, &payload),
            Message::Pong(payload) => self.control(Opcode::Pong, &payload),
            _ => {}
        }
        Ok(())
    }

    /// Queues a control frame; they are exempt from the limit. The caller bounds their number.
    pub(crate) fn control(&mut self, opcode: Opcode, payload: &[u8]) {
        if !self.is_sealed() {
            self.add_control(opcode, payload);
        }
    }

    fn add_control(&mut self, opcode: Opcode, payload: &[u8]) {
        let key = self.key();
        let buf = self.small();
        let before = buf.len();
        encode(opcode, payload, key, buf);
        let added = (buf.len() - before) as u32;
        self.queued += added;
    }

    /// Queues a close frame behind everything else and refuses what comes after it. `false` if that
    /// was done before.
    pub(crate) fn close(&mut self, code: CloseCode, text: &str, cause: CloseCause) -> bool {
        let sealed = self.seal(code, text, cause);
        if sealed {
            self.say_goodbye();
        }
        sealed
    }

    /// Refuses what comes from now on; the close frame itself follows with
    /// [`say_goodbye`](Self::say_goodbye).
    pub(crate) fn seal(&mut self, code: CloseCode, text: &str, cause: CloseCause) -> bool {
        if self.is_sealed() {
            return false;
        }
        self.aside().goodbye = Some(Goodbye {
            code,
            text: truncate_reason(text).into(),
            cause,
            size: 0,
            news: false,
        });
        true
    }

    /// Queues the close frame.
    pub(crate) fn say_goodbye(&mut self) {
        if self.dead {
            return;
        }
        let Some(goodbye) = self.goodbye().filter(|goodbye| goodbye.size == 0) else {
            return;
        };
        let mut body = Vec::with_capacity(2 + goodbye.text.len());
        // 1005 stands for a close frame without a code.
        if goodbye.code != CloseCode::Status {
            body.extend_from_slice(&u16::from(goodbye.code).to_be_bytes());
            body.extend_from_slice(goodbye.text.as_bytes());
        }
        self.add_control(Opcode::Close, &body);
        let size = self.frame_len(body.len());
        if let Some(goodbye) = self.goodbye_mut() {
            goodbye.size = size;
            goodbye.news = true;
        }
    }

    /// Makes the loop look, if it doesn't know yet. `true`: the caller tells it.
    pub(crate) fn request_flush(&mut self) -> bool {
        let something = self.buf.is_some() || self.keeps_some();
        let unknown = something && !std::mem::replace(&mut self.flush_requested, true);
        // A peer that takes nothing is not written to, but its closing has a deadline.
        let news = |goodbye: &mut Goodbye| std::mem::take(&mut goodbye.news);
        unknown | self.goodbye_mut().is_some_and(news)
    }

    /// The loop is told later than [`request_flush`](Self::request_flush) or
    /// [`push_plain`](Self::push_plain) asked for: whoever else sends meanwhile tells it.
    pub(crate) fn put_off_flush(&mut self) {
        self.flush_requested = false;
    }

    // ---- facts ----

    /// Compressed frames queued so far, wrapping.
    #[cfg(feature = "deflate")]
    pub(crate) fn compressed(&self) -> u32 {
        self.compressed
    }

    /// Bytes from `send` until the kernel took them.
    pub(crate) fn queued(&self) -> usize {
        self.queued as usize
    }

    /// The connection is gone, or about to go.
    pub(crate) fn is_dead(&self) -> bool {
        self.dead
    }

    /// Nothing more is accepted.
    #[inline]
    pub(crate) fn is_sealed(&self) -> bool {
        self.dead || self.goodbye().is_some()
    }

    /// Nothing more will be queued: the close frame is, or the connection is gone.
    pub(crate) fn is_finished(&self) -> bool {
        self.dead || self.goodbye().is_some_and(|g| g.size > 0)
    }

    pub(crate) fn goodbye(&self) -> Option<&Goodbye> {
        self.aside.as_ref()?.goodbye.as_ref()
    }

    /// Bytes of messages that nobody will deliver if the connection ends now.
    pub(crate) fn undelivered(&self) -> usize {
        let close_frame = self.goodbye().map_or(0, |goodbye| goodbye.size);
        let discarded = self.aside.as_ref().map_or(0, |aside| aside.discarded);
        self.queued().saturating_sub(close_frame) + discarded
    }

    // ---- for the loop ----

    /// Moves the front of the queue to the end of what `head` and then `into` hold: of the messages
    /// that are kept one by one, about `most` bytes. `false`: nothing is there.
    pub(crate) fn take(
        &mut self,
        head: &mut Option<Buffer>,
        into: &mut VecDeque<Segment>,
        most: usize,
    ) -> bool {
        self.flush_requested = false;
        let mut taken = self.buffered();
        if head.is_none() {
            *head = self.buf.take();
        } else {
            into.extend(self.buf.take().map(Segment::Small));
        }
        if let Some(aside) = &mut self.aside {
            let queue = &mut aside.queue;
            // Of what may still be replaced, no more than the kernel will soon have sent.
            let take = if queue.has_keys() { FRESH } else { TAKE };
            while taken < take.min(most).max(1) && into.len() < TAKE_MESSAGES {
                let Some(segment) = queue.pop() else { break };
                taken += segment.len();
                into.push_back(segment);
            }
            if aside.is_empty() {
                self.aside.take().into_iter().for_each(spare::give_aside);
            } else {
                aside.tidy();
            }
        }
        head.is_some() || !into.is_empty()
    }

    /// The kernel took `bytes`. `true`: the queue had been stalled and is empty now.
    pub(crate) fn written(&mut self, bytes: usize) -> bool {
        debug_assert!(bytes <= self.queued());
        self.queued = self.queued.saturating_sub(bytes as u32);
        self.queued == 0 && std::mem::take(&mut self.stalled)
    }

    /// Data messages queued since this was last asked.
    pub(crate) fn take_pushed(&mut self) -> usize {
        std::mem::take(&mut self.pushed) as usize
    }

    /// Messages dropped and replaced in the queue since this was last asked. Whoever queues asks before
    /// the lock is given back.
    pub(super) fn take_lost(&mut self) -> Lost {
        match &mut self.aside {
            Some(aside) => std::mem::take(&mut aside.queue.lost),
            None => Lost::default(),
        }
    }

    /// The kernel took less than it was offered.
    pub(crate) fn stall(&mut self) {
        self.stalled = true;
    }

    /// Counts bytes that the loop itself writes: the response to the handshake.
    pub(crate) fn count(&mut self, bytes: usize) {
        self.queued += bytes as u32;
    }

    /// The connection is gone: nothing is accepted any more and nothing kept. `false`: it was gone before.
    pub(crate) fn abandon(&mut self) -> bool {
        let first = !std::mem::replace(&mut self.dead, true);
        self.buf = None;
        if let Some(aside) = &mut self.aside {
            aside.queue = Queue::default();
        }
        first
    }

    // ---- inside ----

    /// Makes room for a frame of `size` bytes, as the policy says.
    fn make_room(&mut self, size: usize, config: &Config) -> Room {
        if size > MAX_FRAME {
            return Room::Full;
        }
        let limit = config.outbound_bytes;
        let too_much = |queued: usize| queued + size > limit && queued > limit / 2;
        if !too_much(self.held(config)) {
            return Room::Made;
        }
        match config.overflow {
            Overflow::DropNewest => return Room::Full,
            Overflow::Close => {
                self.discard();
                self.close(CloseCode::Again, "too slow", CloseCause::Overflow);
                return Room::Closed;
            }
            Overflow::DropOldest => {}
        }
        while too_much(self.held(config)) {
            let Some(dropped) = self.drop_oldest() else {
                // All that is left is being written: `TAKE` bytes at most, or one message. Or it is on
                // its way here behind a broadcast, and may be dropped then; but it has to be counted.
                if self.queued() > 2 * MAX_FRAME {
                    return Room::Full;
                }
                break;
            };
            self.note_discarded(dropped);
        }
        Room::Made
    }

    /// Drops what [`reserve`](Self::reserve) would have dropped, had it been here already.
    fn make_reserved_room(&mut self, size: usize, config: &Config) {
        if config.overflow == Overflow::DropOldest {
            // It is counted already.
            self.queued -= size as u32;
            let _ = self.make_room(size, config);
            self.queued += size as u32;
        }
    }

    /// What counts towards the limit: where every message is kept one by one, the memory that takes.
    pub(super) fn held(&self, config: &Config) -> usize {
        let kept = self.queue_if_any().map_or(0, Queue::count);
        self.queued() + kept * kept_beside(config)
    }

    /// The same, with the refusal for the message.
    fn room_for(&mut self, size: usize, config: &Config) -> Result<(), fn(Message) -> SendError> {
        match self.make_room(size, config) {
            Room::Made => Ok(()),
            Room::Full => Err(SendError::Full),
            Room::Closed => Err(SendError::Closed),
        }
    }

    fn append(&mut self, message: Message, key: Option<QueueKey>, overflow: Overflow) {
        if key.is_some() {
            // Whether compressed or not: one that is may take its place, in front of what is queued
            // by then.
            self.compressed = self.compressed.wrapping_add(1);
        } else {
            self.count_compressed(&message);
        }
        let Some((first, payload)) = data_frame(&message) else {
            return;
        };
        self.pushed = self.pushed.wrapping_add(1);
        let mask = self.key();
        if payload.len() < BY_REFERENCE && key.is_none() && overflow != Overflow::DropOldest {
            encode(first, payload, mask, self.small());
        } else {
            let frame = Segment::whole(first, message.into_data(), mask);
            let replaced = self.queue().push(frame, key);
            self.queued -= replaced as u32;
        }
    }

    /// The bytes of small messages that wait in front.
    fn buffered(&self) -> usize {
        self.buf.as_ref().map_or(0, |buf| buf.len())
    }

    /// Where small frames go: behind everything that is queued.
    fn small(&mut self) -> &mut Vec<u8> {
        match &mut self.aside {
            Some(aside) if !aside.queue.is_empty() => aside.queue.small(),
            _ => self.buf.get_or_insert_with(spare::take_buffer),
        }
    }

    #[inline]
    fn count_compressed(&mut self, message: &Message) {
        if let Message::Frame(_) = message {
            self.compressed = self.compressed.wrapping_add(1);
        }
    }

    /// The key of the next frame.
    #[inline]
    fn key(&self) -> Option<[u8; 4]> {
        self.masked.then(new_mask)
    }

    /// Bytes of a frame with `len` bytes of payload.
    fn frame_len(&self, len: usize) -> usize {
        frame_len(len, self.masked)
    }

    fn aside(&mut self) -> &mut Aside {
        self.aside.get_or_insert_with(spare::take_aside)
    }

    fn goodbye_mut(&mut self) -> Option<&mut Goodbye> {
        self.aside.as_mut()?.goodbye.as_mut()
    }

    fn queue_if_any(&self) -> Option<&Queue> {
        Some(&self.aside.as_ref()?.queue)
    }

    /// Whether messages wait that are kept one by one.
    fn keeps_some(&self) -> bool {
        self.queue_if_any().is_some_and(|queue| !queue.is_empty())
    }

    fn queue(&mut self) -> &mut Queue {
        &mut self.aside().queue
    }

    /// Size of the unsent message of this key.
    fn waiting(&self, key: &QueueKey) -> usize {
        self.queue_if_any().map_or(0, |queue| queue.waiting(key))
    }

    /// Drops the oldest message that may be dropped; gives its size.
    fn drop_oldest(&mut self) -> Option<usize> {
        let queue = &mut self.aside.as_mut()?.queue;
        while let Some(segment) = queue.pop() {
            match segment {
                // Control frames: they stay, in front of all that is left.
                Segment::Small(bytes) => {
                    let buf = self.buf.get_or_insert_with(spare::take_buffer);
                    buf.extend_from_slice(&bytes);
                }
                whole => {
                    queue.lost.dropped += 1;
                    return Some(whole.len());
                }
            }
        }
        None
    }

    /// Throws away what the loop has not taken.
    fn discard(&mut self) {
        let waiting = self.aside.as_mut().map_or(0, |aside| {
            let queue = std::mem::take(&mut aside.queue);
            queue.len()
        });
        self.note_discarded(waiting + self.buffered());
        self.buf = None;
    }

    /// So many bytes that were queued will not be sent.
    fn note_discarded(&mut self, bytes: usize) {
        self.queued -= bytes as u32;
        self.aside().discarded += bytes;
    }
}

/// Finds room for so many more bytes of small messages, if it is to be had without allocating.
#[cold]
fn widen(buf: &mut Buffer, more: usize) -> &mut Buffer {
    let len = buf.len();
    if len + more > spare::BYTES {
        let mut large = spare::take_large_buffer();
        if large.capacity() >= len + more {
            large.extend_from_slice(buf);
            std::mem::swap(buf, &mut large);
        }
        spare::give_buffer(large);
    } else if buf.capacity() > spare::BYTES / 4 {
        // Twice as large it might be too large to be kept.
        buf.reserve_exact(spare::BYTES - len);
    }
    buf
}

/// What each message that waits counts towards the limit beside its bytes.
pub(super) fn kept_beside(config: &Config) -> usize {
    match config.overflow {
        Overflow::DropOldest => KEPT,
        _ => 0,
    }
}

/// Whether a control frame may be sent by the user. Close frames take another way.
fn check_control(message: &Message) -> Result<(), fn(Message) -> SendError> {
    match message {
        Message::Ping(payload) | Message::Pong(payload) if payload.len() <= 125 => Ok(()),
        _ => Err(SendError::Invalid),
    }
}

enum Room {
    Made,
    Full,
    Closed,
}
