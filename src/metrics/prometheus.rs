//! The text format of Prometheus (version 0.0.4): for each metric a word of help, its type, and a line
//! for each set of labels.

use std::collections::BTreeMap;
use std::fmt::{Display, Write};

use super::{Histogram, LoopMetrics, Metrics};

/// Text that grows by metrics.
struct Exposition(String);

impl Exposition {
    fn head(&mut self, name: &str, kind: &str, help: &str) {
        let _ = writeln!(self.0, "# HELP framemill_{name} {help}");
        let _ = writeln!(self.0, "# TYPE framemill_{name} {kind}");
    }

    fn line(&mut self, name: &str, labels: &str, value: impl Display) {
        let _ = if labels.is_empty() {
            writeln!(self.0, "framemill_{name} {value}")
        } else {
            writeln!(self.0, "framemill_{name}{{{labels}}} {value}")
        };
    }

    fn gauge(&mut self, name: &str, help: &str, value: impl Display) {
        self.head(name, "gauge", help);
        self.line(name, "", value);
    }

    fn counter(&mut self, name: &str, help: &str, value: impl Display) {
        self.head(name, "counter", help);
        self.line(name, "", value);
    }

    /// One line for each reason.
    fn by(&mut self, name: &str, label: &str, help: &str, counts: &BTreeMap<&str, u64>) {
        self.head(name, "counter", help);
        for (value, count) in counts {
            self.line(name, &format!("{label}=\"{value}\""), count);
        }
    }

    /// One line for each loop.
    fn per_loop<T: Display>(
        &mut self,
        name: &str,
        kind: &str,
        help: &str,
        loops: &[LoopMetrics],
        value: impl Fn(&LoopMetrics) -> T,
    ) {
        self.head(name, kind, help);
        for (n, each) in loops.iter().enumerate() {
            self.line(name, &format!("loop=\"{n}\""), value(each));
        }
    }

    fn histogram(&mut self, name: &str, labels: &str, histogram: &Histogram) {
        let comma = if labels.is_empty() { "" } else { "," };
        let bucket = format!("{name}_bucket");
        let mut below = 0;
        for (bound, count) in histogram.buckets() {
            below += count;
            let le = match bound {
                Some(bound) => bound.as_secs_f64().to_string(),
                None => "+Inf".to_owned(),
            };
            self.line(&bucket, &format!("{labels}{comma}le=\"{le}\""), below);
        }
        self.line(
            &format!("{name}_sum"),
            labels,
            histogram.sum().as_secs_f64(),
        );
        self.line(&format!("{name}_count"), labels, below);
    }

    fn one_histogram(&mut self, name: &str, help: &str, histogram: &Histogram) {
        self.head(name, "histogram", help);
        self.histogram(name, "", histogram);
    }
}

impl Metrics {
    /// All metrics in the text format of Prometheus, to be answered by [`Handler::http`](crate::Handler::http) with
    /// the content type `text/plain; version=0.0.4`. The names are in the repository's `docs/metrics.md`.
    ///
    /// ```no_run
    /// use framemill::{
    ///     Accept, Handler, HeaderValue, Message, Peer, Request, Response, Server, ServerHandle, StatusCode, header,
    /// };
    ///
    /// struct Echo {
    ///     server: ServerHandle,
    /// }
    ///
    /// impl Handler for Echo {
    ///     type Session = ();
    ///
    ///     fn open(&self, _: &Request, _: &Peer) -> Result<Accept<()>, Response> {
    ///         Ok(Accept::new(()))
    ///     }
    ///
    ///     fn message(&self, _: &mut (), peer: &Peer, message: Message) {
    ///         peer.send(message).ok();
    ///     }
    ///
    ///     /// Everybody who can reach the port can read it: ask for a password here if that is too many.
    ///     fn http(&self, request: &Request) -> Response {
    ///         match request.path() {
    ///             "/metrics" => Response::new(StatusCode::OK)
    ///                 .header(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; version=0.0.4"))
    ///                 .body(self.server.metrics().prometheus()),
    ///             _ => Response::upgrade_required(),
    ///         }
    ///     }
    /// }
    ///
    /// fn main() -> framemill::Result<()> {
    ///     let server = Server::bind("127.0.0.1:9001")?;
    ///     let echo = Echo { server: server.handle() };
    ///     server.run(echo)
    /// }
    /// ```
    pub fn prometheus(&self) -> String {
        let mut out = Exposition(String::with_capacity(16 << 10));
        self.connections_to(&mut out);
        self.traffic_to(&mut out);
        self.times_to(&mut out);
        self.workers_to(&mut out);
        self.backplane_to(&mut out);
        out.0
    }

    fn connections_to(&self, out: &mut Exposition) {
        let (total, loops) = (&self.total, &self.loops);
        out.gauge(
            "uptime_seconds",
            "Since the server was started.",
            self.uptime.as_secs_f64(),
        );
        out.per_loop("connections", "gauge", "Sockets now.", loops, |l| {
            l.connections
        });
        out.per_loop(
            "accepted_total",
            "counter",
            "Sockets accepted.",
            loops,
            |l| l.accepted,
        );
        out.by(
            "refused_total",
            "reason",
            "Sockets that did not become a WebSocket.",
            &total.refused,
        );
        out.counter("opened_total", "WebSockets opened.", total.opened);
        out.counter(
            "http_requests_total",
            "Plain requests that the handler answered.",
            total.http_requests,
        );
        out.by(
            "closed_total",
            "cause",
            "WebSockets that ended, by what ended them.",
            &total.closed_by_cause,
        );
        out.by(
            "closed_codes_total",
            "code",
            "WebSockets that ended, by the code of the first close frame.",
            &total.closed_by_code,
        );
    }

    fn traffic_to(&self, out: &mut Exposition) {
        let (total, loops) = (&self.total, &self.loops);
        let mut each = |name: &str, help: &str, value: fn(&LoopMetrics) -> u64| {
            out.per_loop(name, "counter", help, loops, value);
        };
        each(
            "messages_received_total",
            "Text and binary messages from peers.",
            |l| l.messages_received,
        );
        each("messages_sent_total", "Messages queued for peers.", |l| {
            l.messages_sent
        });
        each("bytes_received_total", "Bytes read from sockets.", |l| {
            l.bytes_received
        });
        each("bytes_sent_total", "Bytes written to sockets.", |l| {
            l.bytes_sent
        });
        out.counter(
            "messages_refused_total",
            "Messages that found a queue full.",
            total.messages_refused,
        );
        out.counter(
            "messages_dropped_total",
            "Messages dropped from a queue to make room.",
            total.messages_dropped,
        );
        out.counter(
            "messages_conflated_total",
            "Messages replaced by later ones of the same key.",
            total.messages_conflated,
        );
        out.counter(
            "subscriptions_refused_total",
            "Topics that a connection could not subscribe to.",
            total.subscriptions_refused,
        );
        out.per_loop(
            "blocked_connections",
            "gauge",
            "Connections whose kernel buffer is full.",
            loops,
            |l| l.blocked_connections,
        );
        out.per_loop(
            "blocked_bytes",
            "gauge",
            "Bytes that wait for blocked connections.",
            loops,
            |l| l.blocked_bytes,
        );
        out.counter(
            "reading_paused_total",
            "Times that a connection was not read from because its handler was behind.",
            total.reading_paused,
        );
        out.per_loop(
            "commands_queued",
            "gauge",
            "What other threads asked of the loop and it has not done yet.",
            loops,
            |l| l.commands_queued,
        );
    }

    fn times_to(&self, out: &mut Exposition) {
        out.head(
            "turn_seconds",
            "histogram",
            "Turns of a loop, from waking to sleeping.",
        );
        for (n, each) in self.loops.iter().enumerate() {
            out.histogram("turn_seconds", &format!("loop=\"{n}\""), &each.turns);
        }
        out.per_loop(
            "loop_busy_seconds_total",
            "counter",
            "How long the loop has been awake, the present turn included.",
            &self.loops,
            |l| l.busy_time.as_secs_f64(),
        );
        out.one_histogram(
            "handler_seconds",
            "Runs of handlers, rooms and timers.",
            &self.handler,
        );
        out.one_histogram(
            "mailbox_wait_seconds",
            "How long connections waited for a worker.",
            &self.mailbox_wait,
        );
        out.one_histogram(
            "ping_round_trip_seconds",
            "Pings that were answered.",
            &self.total.round_trips,
        );
        out.one_histogram(
            "tick_late_seconds",
            "How late the ticks of rooms began.",
            &self.ticks.late,
        );
        out.counter(
            "ticks_merged_total",
            "Ticks that were merged into a later one.",
            self.ticks.merged,
        );
        out.counter(
            "ticks_overrun_total",
            "Ticks that were due before the one before was done.",
            self.ticks.overruns,
        );
    }

    fn workers_to(&self, out: &mut Exposition) {
        out.gauge(
            "run_queue",
            "Connections, rooms and timers that wait for a worker.",
            self.run_queue,
        );
        let each = |out: &mut Exposition, name: &str, value: &dyn Fn(usize) -> String| {
            for n in 0..self.workers.len() {
                out.line(name, &format!("worker=\"{n}\""), value(n));
            }
        };
        let workers = &self.workers;
        out.head(
            "worker_busy",
            "gauge",
            "Whether the worker runs something now.",
        );
        each(out, "worker_busy", &|n| {
            u8::from(workers[n].busy).to_string()
        });
        out.head(
            "worker_busy_seconds_total",
            "counter",
            "How long the worker has run something, what it runs now included.",
        );
        each(out, "worker_busy_seconds_total", &|n| {
            workers[n].busy_time.as_secs_f64().to_string()
        });
        out.head(
            "worker_events_total",
            "counter",
            "Messages and other events that the worker dealt with.",
        );
        each(out, "worker_events_total", &|n| {
            workers[n].events.to_string()
        });
    }

    fn backplane_to(&self, out: &mut Exposition) {
        let Some(backplane) = &self.backplane else {
            return;
        };
        out.gauge(
            "backplane_connected",
            "Whether the backplane is there.",
            u8::from(backplane.connected),
        );
        out.counter(
            "backplane_failures_total",
            "Connections that were lost or could not be made, and failed attempts to fetch missed messages.",
            backplane.failures,
        );
        out.counter(
            "backplane_published_total",
            "Messages sent to other nodes.",
            backplane.published,
        );
        out.counter(
            "backplane_received_total",
            "Messages that came from other nodes.",
            backplane.received,
        );
        out.counter(
            "backplane_fetched_total",
            "Messages that were not heard when they were published, and fetched later.",
            backplane.fetched,
        );
        out.gauge(
            "backplane_queued",
            "Messages that wait to be sent to other nodes.",
            backplane.queued,
        );
        out.counter(
            "backplane_lost_total",
            "Messages that other nodes never got.",
            backplane.lost,
        );
    }
}
