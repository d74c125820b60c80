//! What a server has done so far and how it is now, as plain data: [`Metrics`].
//!
//! | file | what |
//! |---|---|
//! | `busy` | for how long a thread has been at work |
//! | `counters` | what the threads count while they run |
//! | `histogram` | times, in buckets that double |
//! | `labels` | reasons, causes and codes |
//! | `prometheus` | all of it as text for Prometheus |

mod busy;
mod counters;
mod histogram;
mod labels;
mod prometheus;

use std::collections::BTreeMap;
use std::time::Duration;

use counters::advance;
pub(crate) use counters::{Counter, LoopCounters, TickCounters, WorkerCounters};
pub(crate) use histogram::Buckets;
pub use histogram::Histogram;
pub(crate) use labels::Refusal;

/// What a server has done since it was started, and how it is now:
/// [`ServerHandle::metrics`](crate::ServerHandle::metrics).
///
/// Every number is right by itself, and counts never decrease. Two numbers may be a moment apart, as the threads go
/// on while the numbers are read.
///
/// [`prometheus`](Self::prometheus) turns the metrics into text, for [`Handler::http`](crate::Handler::http).
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct Metrics {
    /// Since the server was started.
    pub uptime: Duration,
    /// Connections now, over all loops, as
    /// [`ServerHandle::connections`](crate::ServerHandle::connections).
    pub connections: u64,
    /// All loops together.
    pub total: LoopMetrics,
    /// Each loop.
    pub loops: Vec<LoopMetrics>,
    /// Each worker; none with `workers(0)`.
    pub workers: Vec<WorkerMetrics>,
    /// How long handlers ran, all workers and loops together. One run is all messages that a connection had brought
    /// when a worker took it up, or the calls of a room, or a timer. With `workers(0)` this is a sample: one read in
    /// 16 is timed, splitting it into messages included.
    pub handler: Histogram,
    /// How long connections waited for a worker: from the moment the loop woke to read until a worker took the
    /// connection up. A sample of one run in 8; empty with `workers(0)`.
    pub mailbox_wait: Histogram,
    /// Connections, rooms and timers that wait for a worker now.
    pub run_queue: u64,
    /// The clocks of all rooms together.
    pub ticks: TickMetrics,
    /// Other nodes; `None` without a backplane.
    pub backplane: Option<BackplaneMetrics>,
}

/// What one loop has done, or all together.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct LoopMetrics {
    /// Sockets now, including those that are opening, closing or being refused.
    pub connections: u64,
    /// Sockets accepted so far, including those that were over a limit.
    pub accepted: u64,
    /// Of these, the sockets that did not become a WebSocket, by reason: `max_connections`,
    /// `max_connections_per_ip` (over that limit or over `accept_rate_per_ip`), `unanswered` (over a limit, and
    /// dropped because too many are being answered already), `bad_request`, `method`, `too_large`, `version`,
    /// `origin`, `timeout`, `silent` (no byte of a request came in time, or nothing for 2 s while others waited),
    /// `hung_up`, `tls`, `handler` ([`Handler::open`](crate::Handler::open) refused), `shutdown`.
    /// Every reason is a key from the start, here and in the other maps.
    pub refused: BTreeMap<&'static str, u64>,
    /// WebSockets opened so far. Each accepted socket is in the end counted exactly once: here, in
    /// `http_requests`, or in `refused`.
    pub opened: u64,
    /// Plain requests that the handler answered, with 500 if it panicked.
    pub http_requests: u64,
    /// Text and binary messages from peers.
    pub messages_received: u64,
    /// Bytes read from sockets: frames, handshakes, plain HTTP; with TLS, after decryption.
    pub bytes_received: u64,
    /// Text and binary messages that were taken into the queue of a peer, including those that were
    /// dropped or conflated later. Each delivery of a broadcast counts.
    pub messages_sent: u64,
    /// Bytes written to sockets: frames, handshakes, plain HTTP; with TLS, before encryption.
    pub bytes_sent: u64,
    /// Messages that found a queue full and were refused
    /// ([`Overflow::DropNewest`](crate::Overflow::DropNewest)); not among `messages_sent`.
    pub messages_refused: u64,
    /// Messages that made room for later ones ([`Overflow::DropOldest`](crate::Overflow::DropOldest)).
    pub messages_dropped: u64,
    /// Messages whose place in a queue was taken by a later one of the same key.
    pub messages_conflated: u64,
    /// Topics that a connection could not subscribe to:
    /// [`Server::max_subscriptions`](crate::Server::max_subscriptions).
    pub subscriptions_refused: u64,
    /// Connections now for which the kernel took less than there was to write.
    pub blocked_connections: u64,
    /// Bytes that waited for these connections when the loop last wrote to each, or tried to.
    pub blocked_bytes: u64,
    /// How often a connection was not read from because its handler was behind.
    pub reading_paused: u64,
    /// WebSockets that ended, by [`CloseCause`](crate::CloseCause): `handshake`, `eof`, `no_pong`, … (A connection
    /// for which [`Handler::open`](crate::Handler::open) took too long was never a WebSocket: it is counted in
    /// `refused`, as `timeout`.)
    pub closed_by_cause: BTreeMap<&'static str, u64>,
    /// The same by the code of the first close frame: `1000` to `1015`, `3xxx`, `4xxx`, `other`.
    pub closed_by_code: BTreeMap<&'static str, u64>,
    /// Commands from other threads that the loop has not carried out yet.
    pub commands_queued: u64,
    /// Turns: from waking to sleeping again.
    pub turns: Histogram,
    /// How long the loop has been awake: its turns, and the time that the present turn has taken so far.
    pub busy_time: Duration,
    /// With `workers(0)`: see [`Metrics::handler`].
    pub handler: Histogram,
    /// Pings that were answered in time.
    pub round_trips: Histogram,
}

/// What one worker has done.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct WorkerMetrics {
    /// Whether it runs a handler, a room or a timer now.
    pub busy: bool,
    /// Messages, and other events of connections, that it has dealt with.
    pub events: u64,
    /// How long it has been busy: its runs, and the time that the present run has taken so far.
    pub busy_time: Duration,
    /// How long its runs took: see [`Metrics::handler`].
    pub handler: Histogram,
    /// See [`Metrics::mailbox_wait`].
    pub mailbox_wait: Histogram,
}

/// What became of the ticks of rooms: see [`RoomStats`](crate::RoomStats) for one room.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct TickMetrics {
    /// Ticks that were due and were merged into a later tick.
    pub merged: u64,
    /// Ticks that were due before the previous tick was done.
    pub overruns: u64,
    /// How late each tick began.
    pub late: Histogram,
}

/// The connection to other nodes.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct BackplaneMetrics {
    /// Whether it is connected now.
    pub connected: bool,
    /// Connections that were lost or could not be made, and failed attempts to fetch missed messages.
    pub failures: u64,
    /// Messages that were sent to other nodes, and acknowledged.
    pub published: u64,
    /// Messages that came from other nodes for subscribers here.
    pub received: u64,
    /// Messages of topics with history that were not heard when they were published, and were fetched later.
    pub fetched: u64,
    /// Messages that wait to be sent, including those on their way.
    pub queued: u64,
    /// Messages that other nodes never got, because the queue was full or they could not be passed on.
    pub lost: u64,
}

impl Metrics {
    /// Adds up what was read from each thread.
    pub(crate) fn of(loops: Vec<LoopMetrics>, workers: Vec<WorkerMetrics>) -> Self {
        let mut metrics = Self::default();
        for each in &loops {
            metrics.total.add(each);
            metrics.handler.add(&each.handler);
        }
        for each in &workers {
            metrics.handler.add(&each.handler);
            metrics.mailbox_wait.add(&each.mailbox_wait);
        }
        (metrics.loops, metrics.workers) = (loops, workers);
        metrics
    }
}

impl Default for LoopMetrics {
    /// Nothing, of everything that is counted.
    fn default() -> Self {
        LoopCounters::default().read(0)
    }
}

impl LoopMetrics {
    fn add(&mut self, other: &Self) {
        // In full, so that no field is forgotten.
        let Self {
            connections,
            accepted,
            refused,
            opened,
            http_requests,
            messages_received,
            bytes_received,
            messages_sent,
            bytes_sent,
            messages_refused,
            messages_dropped,
            messages_conflated,
            subscriptions_refused,
            blocked_connections,
            blocked_bytes,
            reading_paused,
            closed_by_cause,
            closed_by_code,
            commands_queued,
            turns,
            busy_time,
            handler,
            round_trips,
        } = other;
        self.connections += connections;
        self.accepted += accepted;
        add_each(&mut self.refused, refused);
        self.opened += opened;
        self.http_requests += http_requests;
        self.messages_received += messages_received;
        self.bytes_received += bytes_received;
        self.messages_sent += messages_sent;
        self.bytes_sent += bytes_sent;
        self.messages_refused += messages_refused;
        self.messages_dropped += messages_dropped;
        self.messages_conflated += messages_conflated;
        self.subscriptions_refused += subscriptions_refused;
        self.blocked_connections += blocked_connections;
        self.blocked_bytes += blocked_bytes;
        self.reading_paused += reading_paused;
        add_each(&mut self.closed_by_cause, closed_by_cause);
        add_each(&mut self.closed_by_code, closed_by_code);
        self.commands_queued += commands_queued;
        self.turns.add(turns);
        self.busy_time += *busy_time;
        self.handler.add(handler);
        self.round_trips.add(round_trips);
    }
}

fn add_each(to: &mut BTreeMap<&'static str, u64>, from: &BTreeMap<&'static str, u64>) {
    for (label, count) in from {
        *to.entry(label).or_default() += count;
    }
}
