//! What the threads of a server count while they run.
//!
//! Each thread writes its own set, which shares no cache line with anything of others, by plain loads
//! and stores: that is as cheap as counting in a variable. What is counted is added up per read, per
//! batch or per turn, not per message. The few things that any thread may have to count are rare.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::busy::Busy;
use super::histogram::Buckets;
use super::labels::{self, CAUSES, CODES, Refusal};
use super::{LoopMetrics, TickMetrics, WorkerMetrics};
use crate::message::CloseReason;

/// A number that one thread writes, unless [`add_from_any`](Self::add_from_any) is used; any may read.
#[derive(Debug, Default)]
pub(crate) struct Counter(AtomicU64);

/// What one thread does to a number of its own.
#[inline]
pub(super) fn advance(counter: &AtomicU64, by: u64) {
    let value = counter.load(Ordering::Relaxed).wrapping_add(by);
    counter.store(value, Ordering::Relaxed);
}

impl Counter {
    #[inline]
    pub(crate) fn add(&self, by: usize) {
        advance(&self.0, by as u64);
    }

    #[inline]
    pub(crate) fn take_away(&self, by: usize) {
        advance(&self.0, (by as u64).wrapping_neg());
    }

    /// The same for numbers that many threads write.
    pub(crate) fn add_from_any(&self, by: usize) {
        self.0.fetch_add(by as u64, Ordering::Relaxed);
    }

    pub(crate) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Of one loop; only its thread writes.
#[derive(Debug, Default)]
#[repr(align(128))]
pub(crate) struct LoopCounters {
    pub(crate) received_bytes: Counter,
    pub(crate) received: Counter,
    pub(crate) sent_bytes: Counter,
    pub(crate) sent: Counter,
    pub(crate) turns: Buckets,
    /// While it is awake.
    pub(crate) busy: Busy,
    /// With handlers inline, a sample.
    pub(crate) handler: Buckets,
    pub(crate) round_trips: Buckets,
    pub(crate) connections: Counter,
    pub(crate) accepted: Counter,
    pub(crate) opened: Counter,
    pub(crate) http_requests: Counter,
    pub(crate) pauses: Counter,
    pub(crate) blocked: Counter,
    pub(crate) blocked_bytes: Counter,
    refused: [Counter; Refusal::LABELS.len()],
    by_cause: [Counter; CAUSES.len()],
    by_code: [Counter; CODES.len()],
    pub(crate) losses: Losses,
}

impl LoopCounters {
    #[cold]
    pub(crate) fn refused(&self, why: Refusal) {
        self.refused[why as usize].add(1);
    }

    pub(crate) fn closed(&self, reason: &CloseReason) {
        self.by_cause[labels::cause(reason.cause)].add(1);
        self.by_code[labels::code(reason.code)].add(1);
    }

    pub(crate) fn read(&self, commands: usize) -> LoopMetrics {
        LoopMetrics {
            connections: self.connections.get(),
            accepted: self.accepted.get(),
            refused: labels::read(&Refusal::LABELS, &self.refused),
            opened: self.opened.get(),
            http_requests: self.http_requests.get(),
            messages_received: self.received.get(),
            bytes_received: self.received_bytes.get(),
            messages_sent: self.sent.get(),
            bytes_sent: self.sent_bytes.get(),
            messages_refused: self.losses.refused.get(),
            messages_dropped: self.losses.dropped.get(),
            messages_conflated: self.losses.conflated.get(),
            subscriptions_refused: self.losses.subscriptions.get(),
            blocked_connections: self.blocked.get(),
            blocked_bytes: self.blocked_bytes.get(),
            reading_paused: self.pauses.get(),
            closed_by_cause: labels::read(&CAUSES, &self.by_cause),
            closed_by_code: labels::read(&CODES, &self.by_code),
            commands_queued: commands as u64,
            turns: self.turns.read(),
            busy_time: self.busy.read(&self.turns).1,
            handler: self.handler.read(),
            round_trips: self.round_trips.read(),
        }
    }
}

/// Messages that did not reach their peers though the connection lives on. Any thread writes, as it
/// is senders who find a queue full.
#[derive(Debug, Default)]
#[repr(align(128))]
pub(crate) struct Losses {
    /// By `Overflow::DropNewest`.
    pub(crate) refused: Counter,
    /// By `Overflow::DropOldest`.
    pub(crate) dropped: Counter,
    /// Replaced by a later one of the same key.
    pub(crate) conflated: Counter,
    /// Not messages, but topics that a connection may not subscribe to.
    pub(crate) subscriptions: Counter,
}

/// Of one worker; only its thread writes.
#[derive(Debug, Default)]
#[repr(align(128))]
pub(crate) struct WorkerCounters {
    /// Events of connections: messages, most of them.
    pub(crate) events: Counter,
    /// While it runs something.
    pub(crate) busy: Busy,
    pub(crate) runs: Buckets,
    pub(crate) waits: Buckets,
}

impl WorkerCounters {
    pub(crate) fn read(&self) -> WorkerMetrics {
        let (busy, busy_time) = self.busy.read(&self.runs);
        WorkerMetrics {
            busy,
            busy_time,
            events: self.events.get(),
            handler: self.runs.read(),
            mailbox_wait: self.waits.read(),
        }
    }
}

/// Of all rooms with a clock. Any worker writes, once a tick.
#[derive(Debug, Default)]
pub(crate) struct TickCounters {
    merged: Counter,
    overruns: Counter,
    late: Buckets,
}

impl TickCounters {
    pub(crate) fn ticked(&self, merged: u32, late: Duration) {
        self.merged.add_from_any(merged as usize);
        self.late.record_from_any(late);
    }

    pub(crate) fn overrun(&self, ticks: u64) {
        if ticks > 0 {
            self.overruns.add_from_any(ticks as usize);
        }
    }

    pub(crate) fn read(&self) -> TickMetrics {
        TickMetrics {
            merged: self.merged.get(),
            overruns: self.overruns.get(),
            late: self.late.read(),
        }
    }
}
