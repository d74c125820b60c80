//! What waits to be sent to one peer, and the policy when it is too much.
//!
//! Frames are encoded here, by the thread that sends, straight into the buffer that the loop will
//! write. Small messages become one run of bytes; a large payload is kept by reference and written
//! from where it is. The loop takes the front, writes it, and says how much the kernel took.
//!
//! Messages that may be dropped or replaced while they wait (`Overflow::DropOldest`, `send_latest`)
//! are kept one by one.
//!
//! | file | subject |
//! |---|---|
//! | `overflow` | the policy |
//! | `closing` | the close frame, and the end |
//! | `draining` | what the loop asks and takes |
//! | `queue` | messages that wait one by one |
//! | `aside` | what few outboxes have anything of |

mod aside;
mod closing;
mod draining;
mod overflow;
mod queue;

use crate::config::{Config, Overflow};
use crate::error::{SendError, Sent};
use crate::guard::Guarded;
use crate::message::{LatestKey, Message};
use crate::proto::{MAX_HEADER, Opcode, data_frame, encode, frame_len, new_mask};

use self::overflow::Admission;
use self::queue::{BY_REFERENCE, Early, Queue};
use super::spare::{self, Buffer};

pub(super) use self::aside::Aside;
pub(super) use self::overflow::{MAX_FRAME, kept_beside};
pub(super) use self::queue::Lost;
pub(crate) use self::queue::{QueueKey, Segment};

/// What waits for one peer; behind the lock of its [`Link`](super::Link), which callers hold.
///
/// - to queue, on any thread: `push_plain` and `push` for messages, `push_latest` and `push_shared` for
///   what replaces another or was encoded for many, `control` for pings and pongs;
/// - to queue what goes through the loop's channel: `reserve` and `reserve_latest` count it at the call,
///   `push_reserved` and `push_latest` queue it when the loop carries it out;
/// - to end: `close` queues the close frame; `seal` only accepts nothing more, and `push_close_frame` queues
///   that frame later; `abandon` throws everything away;
/// - for the loop, on its thread: `take` what is to be written, then `written`; `stall`, `count`,
///   `take_pushed`;
/// - between the two: `request_flush`, when something was queued, says whether the loop has to be told;
/// - facts: `status`, `queued`, `is_sealed`, `is_finished`, `is_dead`, `undelivered`.
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
    compression_epoch: u32,
    /// Data messages queued since the loop last counted them.
    messages_uncounted: u32,
    life: Life,
    /// The loop knows that there is something to write.
    flush_requested: bool,
    /// The kernel took less than it was offered, or more than half of the limit is queued; until
    /// the queue is empty.
    stalled: bool,
    /// We are the client, so every frame is masked (§5.1).
    masked: bool,
}

/// Whether what is queued can still go anywhere.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Life {
    #[default]
    Writable,
    /// A write has failed: nothing is accepted or kept, but the connection is still read.
    Unwritable,
    /// The connection is gone: as above, for good.
    Gone,
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
    pub(super) fn push_plain(
        &mut self,
        opcode: Opcode,
        payload: &[u8],
        config: &Config,
    ) -> Option<(Sent, bool)> {
        let plain = payload.len() < BY_REFERENCE
            && self.queued() + payload.len() + MAX_HEADER <= config.outbound_bytes / 2
            && self.aside.is_none()
            && self.life == Life::Writable
            && config.overflow != Overflow::DropOldest;
        if !plain {
            return None;
        }
        let key = self.masking_key();
        let most = payload.len() + MAX_HEADER;
        let buf = match &mut self.buf {
            Some(buf) if buf.capacity() - buf.len() >= most => buf,
            buf => spare::widen(buf.get_or_insert_with(spare::take_buffer), most),
        };
        let before = buf.len();
        encode(opcode, payload, key, buf);
        self.queued += (buf.len() - before) as u32;
        self.messages_uncounted = self.messages_uncounted.wrapping_add(1);
        Some((
            self.status(),
            !std::mem::replace(&mut self.flush_requested, true),
        ))
    }

    /// What senders are told.
    pub(super) fn status(&self) -> Sent {
        if self.stalled {
            Sent::Congested
        } else {
            Sent::Queued
        }
    }

    /// Queues one message.
    pub(super) fn push(
        &mut self,
        message: Message,
        key: Option<LatestKey>,
        config: &Config,
    ) -> Result<(), SendError> {
        if self.is_sealed() {
            return Err(SendError::Closed(message));
        }
        let Some((_, payload)) = data_frame(&message) else {
            return self.push_control(message, config);
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
        self.append(Guarded::new(message), key, config.overflow);
        Ok(())
    }

    /// Counts a message that will be queued by [`push_reserved`](Self::push_reserved), or tells how
    /// it is refused.
    pub(super) fn reserve(
        &mut self,
        message: &Message,
        config: &Config,
    ) -> Result<(), fn(Message) -> SendError> {
        if self.is_sealed() {
            return Err(SendError::Closed);
        }
        let size = self.message_len(message);
        match data_frame(message) {
            Some(_) => self.room_for(size, config)?,
            None => {
                check_control(message)?;
                self.room_for_control(size, config)?;
            }
        }
        self.queued += size as u32;
        Ok(())
    }

    /// The same for a message of which only the latest matters; it waits here. `true`: it is the
    /// first with this key, and is to be queued by [`push_latest`](Self::push_latest). `held`: not before
    /// a call of a room is over, so the first that is not held is to be queued too.
    pub(super) fn reserve_latest(
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
            message: Guarded::new(message),
            size,
            held,
        };
        let queue = self.queue();
        queue.lost.conflated += u32::from(replaced.is_some());
        queue.early.insert(key.clone(), early);
        // The one that was replaced will not be, when this one is queued.
        let uncounted = self.messages_uncounted;
        self.messages_uncounted = uncounted.wrapping_add(u32::from(replaced.is_some()));
        Ok(first)
    }

    /// Queues what was counted before.
    pub(crate) fn push_reserved(&mut self, message: Guarded<Message>, config: &Config) {
        let size = self.message_len(&message);
        if self.is_finished() {
            // Accepted before the close and not sent after it: it stays counted, as undelivered.
            return;
        }
        if data_frame(&message).is_none() {
            self.queued -= size as u32;
            return self.append_control(&message);
        }
        self.make_reserved_room(size, config);
        self.append(message, None, config.overflow);
    }

    /// Queues the latest message of this key.
    pub(super) fn push_latest(&mut self, key: LatestKey, config: &Config) {
        let aside = self.aside.as_mut();
        let early = aside.and_then(|aside| aside.queue.early.remove(&key));
        // Not behind the close frame, as above.
        if let Some(early) = early.filter(|_| !self.is_finished()) {
            self.make_reserved_room(early.size, config);
            self.append(early.message, Some(key.into()), config.overflow);
        }
    }

    /// Queues a frame that was encoded for many, or one to which `messages` frames were joined; if the
    /// peer does not keep up, in place of an unsent one of the same key. `false`: it was refused.
    pub(super) fn push_shared(
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
        if self.is_finished()
            || (more > 0 && !matches!(self.make_room(more, config), Admission::Granted))
        {
            return false;
        }
        self.queued += frame.len() as u32;
        self.messages_uncounted = self.messages_uncounted.wrapping_add(messages as u32);
        // Compressed or not: to start afresh once too often costs little.
        self.compression_epoch = self.compression_epoch.wrapping_add(1);
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

    fn push_control(&mut self, message: Message, config: &Config) -> Result<(), SendError> {
        let size = self.message_len(&message);
        let checked = check_control(&message);
        let admitted = checked.and_then(|()| self.room_for_control(size, config));
        if let Err(refused) = admitted {
            return Err(refused(message));
        }
        self.append_control(&message);
        Ok(())
    }

    fn append_control(&mut self, message: &Message) {
        match message {
            Message::Ping(payload) => self.add_control(Opcode::Ping, payload),
            Message::Pong(payload) => self.add_control(Opcode::Pong, payload),
            _ => {}
        }
    }

    /// Queues a control frame of our own; they are exempt from the limit. The caller bounds their number.
    pub(crate) fn control(&mut self, opcode: Opcode, payload: &[u8]) {
        if !self.is_sealed() {
            self.add_control(opcode, payload);
        }
    }

    fn add_control(&mut self, opcode: Opcode, payload: &[u8]) {
        let key = self.masking_key();
        let buf = self.small();
        let before = buf.len();
        encode(opcode, payload, key, buf);
        let added = (buf.len() - before) as u32;
        self.queued += added;
    }

    // ---- facts ----

    /// Compressed frames queued so far, wrapping.
    #[cfg(feature = "deflate")]
    pub(super) fn compression_epoch(&self) -> u32 {
        self.compression_epoch
    }

    /// Bytes from `send` until the kernel took them.
    pub(crate) fn queued(&self) -> usize {
        self.queued as usize
    }

    // ---- inside ----

    fn append(&mut self, message: Guarded<Message>, key: Option<QueueKey>, overflow: Overflow) {
        if key.is_some() {
            // Whether compressed or not: one that is may take its place, in front of what is queued
            // by then.
            self.compression_epoch = self.compression_epoch.wrapping_add(1);
        } else {
            self.count_compressed(&message);
        }
        let Some((first, payload)) = data_frame(&message) else {
            return;
        };
        self.messages_uncounted = self.messages_uncounted.wrapping_add(1);
        let mask = self.masking_key();
        if payload.len() < BY_REFERENCE && key.is_none() && overflow != Overflow::DropOldest {
            encode(first, payload, mask, self.small());
        } else {
            let frame = Segment::whole(first, message.into_inner().into_data(), mask);
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
            self.compression_epoch = self.compression_epoch.wrapping_add(1);
        }
    }

    /// The key of the next frame.
    #[inline]
    fn masking_key(&self) -> Option<[u8; 4]> {
        self.masked.then(new_mask)
    }

    /// Bytes of a frame with `len` bytes of payload.
    fn frame_len(&self, len: usize) -> usize {
        frame_len(len, self.masked)
    }

    /// What it takes as a frame. Of one that is compressed already, `Message::len` would have the header in it.
    fn message_len(&self, message: &Message) -> usize {
        let payload = data_frame(message).map(|(_, payload)| payload.len());
        self.frame_len(payload.unwrap_or(message.len()))
    }

    fn aside(&mut self) -> &mut Aside {
        self.aside.get_or_insert_with(spare::take_aside)
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
}

/// Whether a control frame may be sent by the user. Close frames take another way.
fn check_control(message: &Message) -> Result<(), fn(Message) -> SendError> {
    match message {
        Message::Ping(payload) | Message::Pong(payload) if payload.len() <= 125 => Ok(()),
        _ => Err(SendError::Invalid),
    }
}
