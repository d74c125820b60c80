//! To the peer, from any thread: messages into the outbox, and the close frame.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::outbox::Lost;
use super::receiving::CONGESTED;
use super::{Command, Link, Outbox, OutboxGuard, QueueKey, SharedFrame, thread};
use crate::config::Compress;
#[cfg(feature = "deflate")]
use crate::config::Overflow;
use crate::error::{SendError, Sent};
use crate::guard::Guarded;
use crate::message::{CloseCause, CloseCode, LatestKey, Message, Utf8Bytes};
use crate::proto::{Opcode, is_sendable};

impl Link {
    /// Queues `message`.
    #[inline(never)] // or the message is moved once more
    pub(crate) fn send(
        self: &Arc<Self>,
        message: Message,
        compress: Compress,
    ) -> Result<Sent, SendError> {
        let (opcode, payload): (_, &[u8]) = match &message {
            Message::Text(text) => (Opcode::Text, text.as_bytes()),
            Message::Binary(payload) => (Opcode::Binary, payload),
            _ => return self.send_slow(message, None, compress),
        };
        let config = self.config();
        #[cfg(feature = "deflate")]
        if compress.wants(payload.len(), config) {
            return self.send_slow(message, None, compress);
        }
        if self.handle.has_ordered() {
            return self.send_slow(message, None, compress);
        }
        let mut outbox = self.outbox();
        if let Some((status, flush)) = outbox.push_plain(opcode, payload, config) {
            if flush {
                self.handle.request_flush(self.id, outbox);
            }
            return Ok(status);
        }
        drop(outbox);
        self.send_slow(message, None, compress)
    }

    /// Queues `message` in place of an unsent one of the same key.
    pub(crate) fn send_latest(
        self: &Arc<Self>,
        message: Message,
        key: LatestKey,
    ) -> Result<Sent, SendError> {
        self.send_slow(message, Some(key), Compress::Auto)
    }

    #[cold]
    fn send_slow(
        self: &Arc<Self>,
        message: Message,
        key: Option<LatestKey>,
        compress: Compress,
    ) -> Result<Sent, SendError> {
        match message {
            Message::Close(_) => return self.send_close(message),
            // Inside, such a message is one that is compressed already.
            Message::Frame(_) => return Err(SendError::Invalid(message)),
            _ => {}
        }
        #[cfg(feature = "deflate")]
        if compress.wants(message.len(), self.config()) {
            return self.send_compressed(message, key);
        }
        let _ = compress;
        self.enqueue(message, key)
    }

    /// The same, but compressed if that was agreed on.
    #[cfg(feature = "deflate")]
    #[cold]
    fn send_compressed(
        self: &Arc<Self>,
        message: Message,
        key: Option<LatestKey>,
    ) -> Result<Sent, SendError> {
        let config = self.config();
        let data = message.is_text() || message.is_binary();
        let (Some(compression), Some(settings), true) = (self.compression(), &config.deflate, data)
        else {
            return self.enqueue(message, key);
        };
        let in_context =
            compression.keeps_window() && key.is_none() && config.overflow != Overflow::DropOldest;
        let mut sender = in_context.then(|| compression.sender()).flatten();
        if let Some(sender) = sender.as_mut().filter(|_| !self.handle.has_ordered()) {
            let epoch = self.outbox().compression_epoch();
            let frame = compression.in_context(sender, &message, settings, epoch);
            let mut outbox = self.outbox();
            if outbox.compression_epoch() == epoch {
                let result = outbox.push(frame, None, config);
                if result.is_ok() {
                    sender.queued(outbox.compression_epoch());
                }
                let status = self.after_push(outbox);
                return self.count_refusal(result.map(|()| status).map_err(|e| e.about(message)));
            }
            // A broadcast came in between. Not tried again: where there are many, that might never
            // end.
        }
        let frame = compression.alone(&message, settings);
        if frame.len() >= message.len() {
            return self.enqueue(message, key);
        }
        self.enqueue(frame, key).map_err(|e| e.about(message))
    }

    fn enqueue(
        self: &Arc<Self>,
        message: Message,
        key: Option<LatestKey>,
    ) -> Result<Sent, SendError> {
        if self.handle.has_ordered() {
            // An earlier broadcast of this thread may still be on its way to the loop.
            return self.send_ordered(message, key);
        }
        let config = self.config();
        let mut outbox = self.outbox();
        let result = outbox.push(message, key, config);
        let status = self.after_push(outbox);
        self.count_refusal(result.map(|()| status))
    }

    /// The same, behind all that was put into the loop's channel so far.
    #[cold]
    fn send_ordered(
        self: &Arc<Self>,
        message: Message,
        key: Option<LatestKey>,
    ) -> Result<Sent, SendError> {
        let config = self.config();
        let link = self.clone();
        let mut outbox = self.outbox();
        let command = match key.filter(|_| !message.is_ping() && !message.is_pong()) {
            None => outbox
                .reserve(&message, config)
                .map(|()| {
                    Command::Send {
                        link,
                        message: Guarded::new(message.clone()),
                    }
                    .into()
                })
                .map_err(|refused| refused(message)),
            Some(key) => outbox
                .reserve_latest(message, &key, thread::is_corked(), config)
                .map(|first| first.then_some(Command::SendLatest { link, key })),
        };
        let command = command.map(|command| {
            if let Some(command) = command {
                // Under the lock, so that no close frame gets between what was accepted and its
                // command. In a call of a room, which holds it back, one of another thread may: then
                // it stays counted as undelivered.
                self.handle.ordered(command);
            }
        });
        let status = self.after_push(outbox);
        self.count_refusal(command.map(|()| status))
    }

    /// A close frame of the user's own.
    fn send_close(self: &Arc<Self>, message: Message) -> Result<Sent, SendError> {
        let (code, text) = match &message {
            Message::Close(Some(frame)) => (frame.code, frame.reason.clone()),
            _ => (CloseCode::Status, Utf8Bytes::default()),
        };
        if !(is_sendable(code) || code == CloseCode::Status) {
            return Err(SendError::Invalid(message));
        }
        if self.close(code, &text, CloseCause::Handshake) {
            Ok(Sent::Queued)
        } else {
            Err(SendError::Closed(message))
        }
    }

    /// Something may have been queued: notes how full the queue is, and tells the loop.
    fn after_push(self: &Arc<Self>, mut outbox: OutboxGuard<'_>) -> Sent {
        let status = self.note_level(&mut outbox);
        if outbox.request_flush() {
            self.handle.request_flush(self.id, outbox);
        }
        status
    }

    /// Queues a frame that was encoded for many, perhaps in place of one with the same key; the loop,
    /// which calls this, flushes.
    pub(crate) fn send_shared(&self, frame: &SharedFrame, latest: Option<&QueueKey>) {
        let mut outbox = self.outbox();
        self.push_shared(&mut outbox, frame, latest);
        let _ = self.note_level(&mut outbox);
    }

    /// The same for several, of which `joined` was made: one by one where they might find no room
    /// together, or may be dropped one by one.
    pub(crate) fn send_shared_run(&self, joined: &SharedFrame, frames: &[&SharedFrame]) {
        let mut outbox = self.outbox();
        let all = joined.for_link(self);
        if outbox.has_plenty(all.len(), self.config()) {
            outbox.push_shared(all, frames.len(), None, self.config());
        } else {
            for frame in frames {
                self.push_shared(&mut outbox, frame, None);
            }
        }
        let _ = self.note_level(&mut outbox);
    }

    /// Answers a ping. The loop, which calls this, flushes. What the peer sends next waits if a great many
    /// answers do.
    pub(crate) fn send_pong(&self, payload: &[u8]) {
        let mut outbox = self.outbox();
        outbox.control(Opcode::Pong, payload);
        let _ = self.note_level(&mut outbox);
    }

    fn push_shared(&self, outbox: &mut Outbox, frame: &SharedFrame, latest: Option<&QueueKey>) {
        let pushed = outbox.push_shared(frame.for_link(self), 1, latest, self.config());
        if !pushed && !outbox.is_sealed() {
            self.handle.counters.losses.refused.add_from_any(1);
        }
    }

    fn note_level(&self, outbox: &mut Outbox) -> Sent {
        let lost = outbox.take_lost();
        if lost != Lost::default() {
            self.count_lost(lost);
        }
        // What counts at the end was not delivered, and is in nobody's way.
        if outbox.queued() > self.config().outbound_bytes / 2 && outbox.is_writable() {
            self.flags.fetch_or(CONGESTED, Ordering::SeqCst);
            outbox.stall();
        }
        outbox.status()
    }

    /// Queues what was counted before, and came through the loop's channel.
    pub(crate) fn push_reserved(&self, message: Guarded<Message>) {
        let mut outbox = self.outbox();
        outbox.push_reserved(message, self.config());
        self.count_lost(outbox.take_lost());
    }

    /// Queues the latest message of this key, which waited here.
    pub(crate) fn push_latest(&self, key: LatestKey) {
        let mut outbox = self.outbox();
        outbox.push_latest(key, self.config());
        self.count_lost(outbox.take_lost());
    }

    #[cold]
    fn count_lost(&self, lost: Lost) {
        let losses = &self.handle.counters.losses;
        losses.dropped.add_from_any(lost.dropped as usize);
        losses.conflated.add_from_any(lost.conflated as usize);
    }

    /// The outcome of queueing one message, of which a refusal is counted.
    fn count_refusal<T>(&self, result: Result<T, SendError>) -> Result<T, SendError> {
        if let Err(SendError::Full(_)) = &result {
            self.handle.counters.losses.refused.add_from_any(1);
        }
        result
    }

    /// Begins the closing handshake, behind all that was sent. `false` if it had begun before.
    pub(crate) fn close(self: &Arc<Self>, code: CloseCode, text: &str, cause: CloseCause) -> bool {
        let mut outbox = self.outbox();
        let ordered = self.handle.has_ordered();
        let begun = if ordered {
            outbox.seal(code, text, cause)
        } else {
            outbox.close(code, text, cause)
        };
        let _ = self.after_push(outbox);
        if begun && ordered {
            self.handle.ordered(Command::Close(self.clone()));
        }
        begun
    }

    /// Ends the connection without another word. `false` if it had ended before.
    pub(crate) fn terminate(&self) -> bool {
        // Here already, so that nothing is accepted behind this.
        let ends = self.outbox().abandon();
        if ends {
            let command = Command::Terminate(self.id.key());
            self.handle.post_now(command);
        }
        ends
    }
}
