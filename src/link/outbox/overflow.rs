//! The policy when too much waits: what is refused, dropped, or closed for.

use super::queue::{Queue, Segment};
use super::{Outbox, spare};
use crate::config::{Config, Overflow};
use crate::error::SendError;
use crate::message::{CloseCause, CloseCode, Message};

/// The largest frame that is accepted: with the limit at most 1 GiB too, sums fit 32 bits.
pub(in crate::link) const MAX_FRAME: usize = 1 << 30;

/// More bytes of small messages than this that wait are a sign that the peer does not keep up.
pub(super) const FRESH: usize = 16 << 10;

/// Room for control frames, however small the limit is.
const LEAST_CONTROL: usize = 4 << 10;

/// What a message that is kept one by one, because it may be dropped, costs beside its bytes, about.
const KEPT: usize = 128;

/// What becomes of a message that is to be queued.
pub(super) enum Admission {
    Granted,
    Full,
    Closed,
}

impl Outbox {
    /// Whether `bytes` find room whatever the policy, and need not be kept one by one.
    pub(in crate::link) fn has_plenty(&self, bytes: usize, config: &Config) -> bool {
        let little = self.queued() + bytes <= config.outbound_bytes / 2;
        little && config.overflow != Overflow::DropOldest
    }

    /// What waits goes out in this turn of the loop, as far as can be foreseen. Then it is not worth
    /// keeping by key, and costs no more than any message.
    pub(super) fn keeps_up(&self) -> bool {
        !self.stalled && !self.keeps_some() && self.buffered() < FRESH
    }

    /// Makes room for a frame of `size` bytes, as the policy says.
    pub(super) fn make_room(&mut self, size: usize, config: &Config) -> Admission {
        if size > MAX_FRAME {
            return Admission::Full;
        }
        let limit = config.outbound_bytes;
        let too_much = |queued: usize| queued + size > limit && queued > limit / 2;
        if !too_much(self.held(config)) {
            return Admission::Granted;
        }
        match config.overflow {
            Overflow::DropNewest => return Admission::Full,
            // It closes already, and what was accepted goes out before that.
            Overflow::Close if self.is_sealed() => return Admission::Closed,
            Overflow::Close => {
                self.discard();
                self.close(CloseCode::Again, "too slow", CloseCause::Overflow);
                return Admission::Closed;
            }
            Overflow::DropOldest => {}
        }
        while too_much(self.held(config)) {
            let Some(dropped) = self.drop_oldest() else {
                // All that is left is being written: `TAKE` bytes at most, or one message. Or it is on
                // its way here behind a broadcast, and may be dropped then; but it has to be counted.
                if self.queued() > 2 * MAX_FRAME {
                    return Admission::Full;
                }
                break;
            };
            self.note_discarded(dropped);
        }
        Admission::Granted
    }

    /// Drops what [`reserve`](Self::reserve) would have dropped, had it been here already.
    pub(super) fn make_reserved_room(&mut self, size: usize, config: &Config) {
        if config.overflow == Overflow::DropOldest {
            // It is counted already.
            self.queued -= size as u32;
            let _ = self.make_room(size, config);
            self.queued += size as u32;
        }
    }

    /// What counts towards the limit: where every message is kept one by one, the memory that takes.
    pub(in crate::link) fn held(&self, config: &Config) -> usize {
        let kept = self.queue_if_any().map_or(0, Queue::count);
        self.queued() + kept * kept_beside(config)
    }

    /// The same, with the refusal for the message.
    pub(super) fn room_for(
        &mut self,
        size: usize,
        config: &Config,
    ) -> Result<(), fn(Message) -> SendError> {
        match self.make_room(size, config) {
            Admission::Granted => Ok(()),
            Admission::Full => Err(SendError::Full),
            Admission::Closed => Err(SendError::Closed),
        }
    }

    /// The same for a control frame of the user's, which neither makes others go nor the connection close; but
    /// what waits has an end.
    pub(super) fn room_for_control(
        &self,
        size: usize,
        config: &Config,
    ) -> Result<(), fn(Message) -> SendError> {
        let limit = config.outbound_bytes;
        let most = limit + limit.max(LEAST_CONTROL);
        match self.queued() + size > most {
            true => Err(SendError::Full),
            false => Ok(()),
        }
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
        let aside = self.aside();
        aside.discarded = aside.discarded.saturating_add(bytes as u64);
    }
}

/// What each message that waits counts towards the limit beside its bytes.
pub(in crate::link) fn kept_beside(config: &Config) -> usize {
    match config.overflow {
        Overflow::DropOldest => KEPT,
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::Opcode;

    /// A machine of 32 bits may drop more for one peer than it can address.
    #[test]
    fn what_was_thrown_away_is_counted_without_end() {
        let mut outbox = Outbox::default();
        outbox.aside().discarded = !0;
        outbox.control(Opcode::Ping, b"");
        assert_eq!(outbox.undelivered(), usize::MAX);
        outbox.note_discarded(1);
        assert_eq!(outbox.undelivered(), usize::MAX);
    }
}
