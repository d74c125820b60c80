//! What the loop, the workers and the handles of one connection share: a [`Link`].
//!
//! | direction | where it waits | who puts in | who takes out |
//! |---|---|---|---|
//! | to the handler | the inbox, a [`Mailbox`] of [`Event`]s | the loop | one worker at a time |
//! | to the peer | the [`Outbox`] | any thread | the loop |
//!
//! Both have their own lock, held for moments, never one inside the other and never while user
//! code runs. The session's lock is the third: whoever runs the mailbox holds it while running, and
//! takes the other two inside it. Where compression keeps its window, the compressor has a fourth,
//! inside the session's: whoever sends holds it while compressing, and takes the outbox's inside it;
//! the inflater's is of the runner alone. The last one is around what the connection subscribes to;
//! inside it come the outbox's and that of the server's topics, one at a time. These are all locks of a
//! connection.
//!
//! A connection that is silent holds no buffers here at all.

mod arrivals;
mod aside;
#[cfg(feature = "deflate")]
mod deflate;
mod dial;
mod event;
mod feed;
mod feeds;
mod histories;
mod hold;
mod inflow;
mod loop_handle;
mod node;
mod outbox;
mod queue;
mod shared;
mod shared_frame;
mod spare;
mod subscriptions;
mod thread;
mod topics;

use std::any::Any;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use crate::addr::{PackedAddr, RemoteAddr};
#[cfg(feature = "deflate")]
use crate::config::Overflow;
use crate::config::{Compress, Config};
use crate::error::{SendError, Sent};
use crate::id::PeerId;
use crate::message::{CloseCause, CloseCode, LatestKey, Message, Utf8Bytes};
#[cfg(feature = "deflate")]
use crate::proto::compressed_parts;
use crate::proto::{Opcode, Violation, may_travel};
use crate::worker::Mailbox;
use subscriptions::Subscriptions;

use arrivals::Arrivals;
#[cfg(feature = "deflate")]
pub(crate) use deflate::Compression;
pub(crate) use dial::{Connected, Dial, Target};
pub(crate) use event::{Event, EventBatch, Opening};
pub(crate) use feeds::Histories;
use hold::Holds;
pub(crate) use inflow::{Inflow, Load};
pub(crate) use loop_handle::{Command, Inlet, LoopHandle, Permit};
pub(crate) use outbox::Outbox;
use queue::Lost;
pub(crate) use queue::{QueueKey, Segment};
pub(crate) use shared::Shared;
pub(crate) use shared_frame::SharedFrame;
pub(crate) use spare::{
    Buffer, give_batch, give_buffer, keeps as keeps_spare, release as release_spare,
    release_own as release_own_spare,
};
pub(crate) use thread::{Cork, Inline, defer_wakes, is_ahead, still_ahead, wake_deferred};
pub(crate) use topics::{Publication, Topics};

/// The state of one connection that more than one thread sees.
pub(crate) struct Link {
    pub(crate) id: PeerId,
    pub(crate) handle: Arc<LoopHandle>,
    outbox: Mutex<Outbox>,
    inbox: Mutex<Mailbox<Event>>,
    pub(crate) inflow: Inflow,
    /// More than half of the outbound limit is queued: what this peer sends waits until it has read
    /// what it was sent. So a reply always finds room, however much a peer asks for at once.
    ///
    /// With `TELLS_WRITABLE`.
    congested: AtomicU8,
    /// The mailbox has been parked and is not empty yet. With handlers inline, when only the loop
    /// touches it, this tells whether there is anything in it.
    parked: AtomicBool,
    /// Rooms that have more of this peer's messages than they should.
    holds: Holds,
    latency_us: AtomicU32,
    /// The user's session, type-erased so that a `Peer` needs no type parameter.
    pub(crate) session: Mutex<Option<Box<dyn Any + Send>>>,
    extra: OnceLock<Box<Extra>>,
    remote: PackedAddr,
}

/// A bit of `Link::congested`.
const CONGESTED: u8 = 1;

/// Another: the mailbox has an `Event::Writable`, and a second one would tell nothing new.
const TELLS_WRITABLE: u8 = 2;

/// What most connections have nothing of.
#[derive(Default)]
struct Extra {
    /// Of a client: each has its own.
    config: Option<Arc<Config>>,
    /// Set once, when the connection opens.
    agreement: OnceLock<Agreement>,
    subscriptions: Mutex<Subscriptions>,
}

/// What the two sides agreed on in the opening handshake, beyond the protocol itself; most
/// connections have nothing of the kind.
#[derive(Default)]
pub(crate) struct Agreement {
    pub(crate) subprotocol: Option<Box<str>>,
    #[cfg(feature = "deflate")]
    pub(crate) compression: Option<Compression>,
}

/// A panic while a lock is held would be a bug of ours, not a reason to stop serving others: the
/// data are plain counters and queues.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

pub(crate) fn cause_of(violation: Violation) -> CloseCause {
    match violation.code {
        CloseCode::Invalid => CloseCause::InvalidUtf8,
        CloseCode::Size => CloseCause::TooBig,
        _ => CloseCause::Protocol(violation.why),
    }
}

impl Link {
    /// `client`: we are the client, and these are its settings.
    pub(crate) fn new(
        id: PeerId,
        remote: RemoteAddr,
        handle: Arc<LoopHandle>,
        client: Option<Arc<Config>>,
    ) -> Self {
        let masked = client.is_some();
        let extra = client.map(|config| {
            Box::new(Extra {
                config: Some(config),
                ..Extra::default()
            })
        });
        Self {
            id,
            handle,
            outbox: Mutex::new(Outbox::new(masked)),
            inbox: Mutex::default(),
            inflow: Inflow::default(),
            congested: AtomicU8::new(0),
            parked: AtomicBool::new(false),
            holds: Holds::default(),
            latency_us: AtomicU32::new(u32::MAX),
            session: Mutex::new(None),
            extra: extra.map_or_else(OnceLock::new, OnceLock::from),
            remote: remote.into(),
        }
    }

    pub(crate) fn outbox(&self) -> MutexGuard<'_, Outbox> {
        lock(&self.outbox)
    }

    /// Of the server, or of this client.
    #[inline]
    pub(crate) fn config(&self) -> &Arc<Config> {
        let own = self.extra.get().and_then(|extra| extra.config.as_ref());
        own.unwrap_or(&self.handle.config)
    }

    // ---- sending, from any thread ----

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
            _ => return self.send_unusual(message, None, compress),
        };
        let config = self.config();
        #[cfg(feature = "deflate")]
        if compress.wants(payload.len(), config) {
            return self.send_unusual(message, None, compress);
        }
        if self.handle.has_ordered() {
            return self.send_unusual(message, None, compress);
        }
        let mut outbox = self.outbox();
        if let Some((status, flush)) = outbox.push_plain(opcode, payload, config) {
            if flush {
                self.handle.request_flush(self.id, outbox);
            }
            return Ok(status);
        }
        drop(outbox);
        self.send_unusual(message, None, compress)
    }

    /// Queues `message` in place of an unsent one of the same key.
    pub(crate) fn send_latest(
        self: &Arc<Self>,
        message: Message,
        key: LatestKey,
    ) -> Result<Sent, SendError> {
        self.send_unusual(message, Some(key), Compress::Auto)
    }

    #[cold]
    fn send_unusual(
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
        self.send_as_is(message, key)
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
            return self.send_as_is(message, key);
        };
        let in_context =
            compression.keeps_window() && key.is_none() && config.overflow != Overflow::DropOldest;
        let mut sender = in_context.then(|| compression.sender()).flatten();
        if let Some(sender) = sender.as_mut().filter(|_| !self.handle.has_ordered()) {
            let counted = self.outbox().compressed();
            let frame = compression.in_context(sender, &message, settings, counted);
            let mut outbox = self.outbox();
            if outbox.compressed() == counted {
                let result = outbox.push(frame, None, config);
                if result.is_ok() {
                    sender.queued(outbox.compressed());
                }
                let status = self.pushed(outbox);
                return self.counted(result.map(|()| status).map_err(|e| e.about(message)));
            }
            // A broadcast came in between. Not tried again: where there are many, that might never
            // end.
        }
        let frame = compression.alone(&message, settings);
        if frame.len() >= message.len() {
            return self.send_as_is(message, key);
        }
        self.send_as_is(frame, key).map_err(|e| e.about(message))
    }

    fn send_as_is(
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
        let status = self.pushed(outbox);
        self.counted(result.map(|()| status))
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
                        message: message.clone(),
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
        let status = self.pushed(outbox);
        self.counted(command.map(|()| status))
    }

    /// A close frame of the user's own.
    fn send_close(self: &Arc<Self>, message: Message) -> Result<Sent, SendError> {
        let (code, text) = match &message {
            Message::Close(Some(frame)) => (frame.code, frame.reason.clone()),
            _ => (CloseCode::Status, Utf8Bytes::default()),
        };
        if !(may_travel(code) || code == CloseCode::Status) {
            return Err(SendError::Invalid(message));
        }
        if self.close(code, &text, CloseCause::Handshake) {
            Ok(Sent::Queued)
        } else {
            Err(SendError::Closed(message))
        }
    }

    /// Something may have been queued: notes how full the queue is, and tells the loop.
    fn pushed(self: &Arc<Self>, mut outbox: MutexGuard<'_, Outbox>) -> Sent {
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
        if outbox.queued() > self.config().outbound_bytes / 2 {
            self.congested.fetch_or(CONGESTED, Ordering::SeqCst);
            outbox.stall();
        }
        outbox.status()
    }

    /// Queues what was counted before, and came through the loop's channel.
    pub(crate) fn push_reserved(&self, message: Message) {
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
    fn counted<T>(&self, result: Result<T, SendError>) -> Result<T, SendError> {
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
        let _ = self.pushed(outbox);
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
            self.handle.command_at_once(command);
        }
        ends
    }

    // ---- receiving ----

    /// What the handler is to see of a message. `None`: it breaks a rule, and the loop fails the
    /// connection. Only the runner of the mailbox calls this.
    #[inline]
    pub(crate) fn inflate(self: &Arc<Self>, message: Message) -> Option<Message> {
        #[cfg(feature = "deflate")]
        if let Some((opcode, payload)) = compressed_parts(&message) {
            let limit = self.config().max_message as usize;
            let fail = |violation: Violation| {
                // At once, as the peer's own close frame may be next.
                self.close(violation.code, violation.why, cause_of(violation));
                self.handle.command(Command::Fail(self.id.key(), violation));
            };
            let inflated = self.compression()?.inflate(opcode, payload, limit);
            return inflated.map_err(fail).ok();
        }
        Some(message)
    }

    /// Adds a batch for the handler. `true`: the caller makes it run.
    pub(crate) fn deliver(&self, batch: &mut EventBatch) -> bool {
        lock(&self.inbox).push(batch, spare::take_batch)
    }

    pub(crate) fn take_inbox(&self) -> EventBatch {
        lock(&self.inbox).take()
    }

    /// Ends a run; `true`: more has come.
    pub(crate) fn finish_run(&self) -> bool {
        let more = lock(&self.inbox).finish();
        if !more {
            self.parked.store(false, Ordering::Relaxed);
        }
        more
    }

    /// Ends a run because the peer [must wait](Self::must_wait); `rest` is run later. `true`: it can run at once.
    pub(crate) fn park(&self, rest: EventBatch) -> bool {
        self.parked.store(true, Ordering::Relaxed);
        lock(&self.inbox).park(rest);
        // The loop may have drained the queue before it could see a parked mailbox.
        !self.must_wait() && self.unpark()
    }

    /// Ends a run because whoever is to have the events has no room for them; `rest` is run when
    /// [`unpark`](Self::unpark) says so.
    pub(crate) fn set_aside(&self, rest: EventBatch) {
        self.parked.store(true, Ordering::Relaxed);
        lock(&self.inbox).park(rest);
    }

    /// The loop has written: no longer congested if at most `low` bytes are left. `Some(true)`: the
    /// mailbox was parked and runs again.
    pub(crate) fn decongest_below(&self, low: usize) -> Option<bool> {
        // Under the lock, as whoever fills the queue sets the flag under it.
        let outbox = self.outbox();
        if outbox.queued() > low {
            return None;
        }
        self.congested.fetch_and(!CONGESTED, Ordering::SeqCst);
        drop(outbox);
        Some(self.unpark())
    }

    /// Nothing more is sent, so nothing waits for room. `true`: the mailbox was parked and runs again.
    pub(crate) fn decongest(&self) -> bool {
        self.congested.fetch_and(!CONGESTED, Ordering::SeqCst);
        self.holds.end();
        self.unpark()
    }

    /// Whether the mailbox is to be told that the queue has drained, which it may know already.
    pub(crate) fn note_writable(&self) -> bool {
        self.congested.fetch_or(TELLS_WRITABLE, Ordering::AcqRel) & TELLS_WRITABLE == 0
    }

    /// The handler is being told.
    pub(crate) fn tell_writable(&self) {
        self.congested.fetch_and(!TELLS_WRITABLE, Ordering::AcqRel);
    }

    /// Lets a parked mailbox run again. `true`: the caller puts it on the run queue.
    pub(crate) fn unpark(&self) -> bool {
        lock(&self.inbox).unpark()
    }

    /// Whether events wait in the mailbox of a connection whose handler runs inline.
    pub(crate) fn has_parked(&self) -> bool {
        self.parked.load(Ordering::Relaxed)
    }

    /// Whether what the peer says has to stay in the mailbox: it is congested, or a room is behind. Not
    /// once the connection has ended: nobody would let it go on.
    pub(crate) fn must_wait(&self) -> bool {
        (self.is_congested() || self.holds.is_held()) && !self.holds.is_over()
    }

    pub(crate) fn is_congested(&self) -> bool {
        self.congested.load(Ordering::SeqCst) & CONGESTED != 0
    }

    // ---- facts ----

    pub(crate) fn remote(&self) -> RemoteAddr {
        self.remote.into()
    }

    pub(crate) fn subprotocol(&self) -> Option<&str> {
        self.agreement()?.subprotocol.as_deref()
    }

    fn agreement(&self) -> Option<&Agreement> {
        self.extra.get()?.agreement.get()
    }

    pub(crate) fn agree(&self, agreement: Agreement) {
        // Set once: a connection is opened once.
        let _ = self
            .extra
            .get_or_init(Box::default)
            .agreement
            .set(agreement);
    }

    #[cfg(feature = "deflate")]
    pub(crate) fn compression(&self) -> Option<&Compression> {
        self.agreement()?.compression.as_ref()
    }

    /// The last measured round trip in microseconds, `u32::MAX` before the first.
    pub(crate) fn latency_us(&self) -> u32 {
        self.latency_us.load(Ordering::Relaxed)
    }

    pub(crate) fn set_latency_us(&self, us: u32) {
        self.latency_us.store(us, Ordering::Relaxed);
    }
}

impl std::fmt::Debug for Link {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Link({})", self.id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// With the two counters of its `Arc` and a word of the allocator's, 192 bytes.
    #[test]
    fn a_link_is_small() {
        assert!(size_of::<Link>() <= 168, "{}", size_of::<Link>());
    }
}
