//! A connection's output: from its outbox to the kernel, one write a turn where that is enough.

use std::io;

use super::conn::{Conn, Context, HandlerKnows, Phase};
use super::counts::Counts;
use super::liveness::Moment;
use super::outbound::Outbound;
use super::upstream::Upstream;
use crate::guard::Guarded;
use crate::link::{Event, Outbox};
use crate::message::Bytes;
use crate::proto::{InPlace, Opcode};

/// Times that the queue of one connection is refilled per flush.
const REFILLS: usize = 8;

/// What a flush came to.
#[derive(Clone, Copy, Debug)]
struct Flushed {
    /// The kernel took something before it was full.
    progress: bool,
    /// The queue was stalled and is empty again.
    drained: bool,
    /// No more frames follow.
    sealed: bool,
}

impl Flushed {
    /// Nothing more than what the outbox says.
    fn nothing(outbox: &Outbox) -> Self {
        Self {
            progress: false,
            drained: false,
            sealed: outbox.is_finished(),
        }
    }
}

impl Conn {
    /// Whether the kernel has everything that was taken out of the outbox.
    pub(super) fn is_all_written(&self) -> bool {
        let is_done = self.writing.as_deref().is_none_or(Outbound::is_done);
        is_done && !self.stream.has_pending()
    }

    /// Whether the loop queued something that is not written yet.
    pub(super) fn is_dirty(&self) -> bool {
        self.dirty
    }

    pub(super) fn flush_if_dirty<U: Upstream>(&mut self, cx: &mut Context<'_, U>) {
        if self.dirty {
            self.flush(cx);
        }
    }

    /// Though no event has told of room: writes what waits, if the kernel takes any. `true`: it took some.
    pub(super) fn try_blocked<U: Upstream>(&mut self, cx: &mut Context<'_, U>) -> bool {
        if !std::mem::take(&mut self.blocked) {
            return false;
        }
        // What TLS was given and could not pass on is no progress.
        let given = cx.counters.sent_bytes.get();
        let pending = self.stream.pending() as u64;
        self.flush(cx);
        let given = cx.counters.sent_bytes.get() - given;
        !self.unwritable && (self.stream.pending() as u64) < pending + given
    }

    /// Writes what is queued until nothing is left or the kernel takes no more.
    pub(super) fn flush<U: Upstream>(&mut self, cx: &mut Context<'_, U>) {
        self.dirty = false;
        if self.gone || matches!(self.phase, Phase::Deciding) {
            return;
        }
        if self.unwritable {
            if self.peer.link.outbox().is_gone() {
                self.end_unwritable(cx);
            }
            return;
        }
        self.note_room();
        let result = if self.blocked {
            Ok(Flushed::nothing(&self.peer.link.outbox()))
        } else if let Some(mut writing) = self.writing.take() {
            let result = self.write_all(&mut writing, cx.in_place);
            if writing.is_empty() && !self.stream.has_pending() {
                writing.count_blocked(0, cx.counters);
            } else {
                self.writing = Some(writing);
            }
            result
        } else {
            let result = self.write_all(cx.out, cx.in_place);
            if !cx.out.is_empty() {
                self.writing = Some(Box::new(std::mem::take(cx.out)));
            }
            result
        };
        if !self.is_all_written() {
            self.note_blocked();
        }
        match result {
            Ok(flushed) => self.after_flush(flushed, cx),
            Err(error) => self.lose_writing(&error, cx),
        }
    }

    /// The kernel took what TLS had kept, and no event has told yet: a read sends that too. Or else what
    /// waits in the outbox would not be seen, as nothing is being written.
    fn note_room(&mut self) {
        if self.blocked && self.is_all_written() && !self.is_dialing() {
            self.blocked = false;
        }
    }

    fn write_all(&mut self, out: &mut Outbound, in_place: &InPlace) -> io::Result<Flushed> {
        let most = self.peer.link.config().outbound_bytes / 4;
        let mut written = 0;
        let mut refills = 0;
        let mut drained = false;
        let counters = &self.peer.link.handle.counters;
        self.stream.flush_pending()?;
        loop {
            if out.is_empty() {
                let pong = out.pong.take();
                let mut outbox = self.peer.link.outbox();
                drained |= outbox.written(std::mem::take(&mut written));
                if let Some(payload) = pong {
                    outbox.control(Opcode::Pong, &payload);
                }
                let more = out.refill(&mut outbox, most);
                counters.sent.add(outbox.take_pushed());
                if !more {
                    let full = self.stream.has_pending();
                    if full {
                        // TLS has taken the last of it and the kernel has not: nothing has drained.
                        self.blocked = true;
                        self.rearm = true;
                        outbox.stall();
                    }
                    return Ok(Flushed {
                        progress: full,
                        drained: drained && !full,
                        ..Flushed::nothing(&outbox)
                    });
                }
                refills += 1;
                if refills > REFILLS {
                    (self.again, self.dirty) = (true, true);
                    return Ok(Flushed::nothing(&outbox));
                }
            }
            match out.write(&mut self.stream, in_place) {
                Ok(n) => {
                    written += n;
                    counters.sent_bytes.add(n);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.blocked = true;
                    self.rearm = true;
                    let mut outbox = self.peer.link.outbox();
                    outbox.written(written);
                    outbox.stall();
                    return Ok(Flushed {
                        progress: written > 0,
                        ..Flushed::nothing(&outbox)
                    });
                }
                Err(error) => {
                    self.peer.link.outbox().written(written);
                    return Err(error);
                }
            }
        }
    }

    fn after_flush<U: Upstream>(&mut self, flushed: Flushed, cx: &mut Context<'_, U>) {
        if self.peer.link.is_congested() {
            if flushed.progress || flushed.drained {
                // While a peer is congested it is not read from: what it takes is its sign of life.
                self.last_seen = Moment::at(cx.now);
            }
            let low = cx.config.outbound_bytes / 4;
            if let Some(unparked) = self.peer.link.decongest_below(low) {
                if unparked {
                    cx.runnable.push(self.peer.clone());
                }
                self.again = true;
            }
        }
        if (flushed.progress || flushed.drained) && self.has_time() {
            // A slow reader gets all of a long answer.
            self.since = Moment::at(cx.now);
            self.rearm = true;
        }
        if self.counts.has(Counts::BEHIND) {
            self.catch_up();
        }
        if flushed.drained
            && self.handler_knows == HandlerKnows::Opening
            && self.peer.link.note_writable()
        {
            cx.batch.push_back(Event::Writable);
            self.deliver(cx);
        }
        self.after_flush_ending(flushed.sealed, cx);
    }

    /// Queues more of what the peer missed of topics with history, as far as there is room.
    #[cold]
    pub(super) fn catch_up(&mut self) {
        match self.peer.link.catch_up() {
            true => self.counts.enter(Counts::BEHIND),
            false => drop(self.counts.leave(Counts::BEHIND)),
        }
    }

    /// The kernel lacks something: counts what waits.
    #[cold]
    fn note_blocked(&mut self) {
        // What TLS has taken of it is queued no more.
        let waits = self.peer.link.outbox().queued() + self.stream.pending();
        let writing = self.writing.get_or_insert_default();
        writing.count_blocked(waits, &self.peer.link.handle.counters);
    }

    /// The connection is gone, and counts no more; what was queued for it has gone with it.
    pub(super) fn uncount(&mut self) {
        let counters = &self.peer.link.handle.counters;
        let mut outbox = self.peer.link.outbox();
        outbox.abandon();
        counters.sent.add(outbox.take_pushed());
        if let Some(writing) = &mut self.writing {
            writing.count_blocked(0, counters);
        }
    }

    /// Puts bytes in front of all that the outbox holds.
    pub(super) fn write_first(&mut self, bytes: Vec<u8>) {
        self.peer.link.outbox().count(bytes.len());
        self.writing.get_or_insert_default().add(bytes);
        self.dirty = true;
    }

    /// Puts the user's own bytes behind those of [`write_first`](Self::write_first).
    pub(super) fn write_next(&mut self, bytes: Guarded<Bytes>) {
        self.peer.link.outbox().count(bytes.len());
        self.writing.get_or_insert_default().add_shared(bytes);
    }
}
