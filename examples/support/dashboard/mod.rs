//! A handler around another that adds a live page of the server's metrics, and the same as text for
//! Prometheus:
//!
//! | | |
//! |---|---|
//! | `/dashboard` | the page |
//! | `/dashboard/live` | its WebSocket: what has been in the last minute, then news twice a second |
//! | `/metrics` | text for Prometheus |
//!
//! All else goes to the handler inside. Whoever may reach the port sees all of it: on a real server, ask
//! for a password in `open` and `http`, or have the dashboard on a listener of its own.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use framemill::{
    Accept, CloseReason, Handler, HeaderValue, Histogram, LatestKey, LoopMetrics, Message, Metrics,
    Peer, Request, Response, SendError, ServerHandle, StatusCode, header,
};
use serde_json::{Value, json};

const PAGE: &str = include_str!("page.html");

/// Of the news only the newest matters to a page that is slow.
const NEWS: LatestKey = LatestKey::Number(0);

/// Between two pieces of news.
const PERIOD: Duration = Duration::from_millis(500);

/// What a page that is opened is told at once: a little more than its charts show.
const KEPT: usize = 130;

/// See the module's documentation.
pub(crate) struct Dashboard<H> {
    inner: H,
    server: OnceLock<ServerHandle>,
    feed: Arc<Mutex<Feed>>,
}

/// Whose connection it is.
pub(crate) enum Session<S> {
    Watcher,
    Inner(S),
}

#[derive(Default)]
struct Feed {
    last: Metrics,
    /// The news so far, the oldest first.
    news: VecDeque<String>,
    /// Those that look on. No topic: topics are the inner handler's, and may span other servers.
    watchers: Vec<Peer>,
}

impl<H> Dashboard<H> {
    pub(crate) fn around(inner: H) -> Self {
        Self {
            inner,
            server: OnceLock::new(),
            feed: Arc::default(),
        }
    }
}

impl<H: Handler> Handler for Dashboard<H> {
    type Session = Session<H::Session>;

    fn start(&self, server: &ServerHandle) {
        let _ = self.server.set(server.clone());
        let (feed, handle) = (self.feed.clone(), server.clone());
        server.every(PERIOD, move || lock(&feed).go_on(handle.metrics()));
        self.inner.start(server);
    }

    fn open(&self, request: &Request, peer: &Peer) -> Result<Accept<Self::Session>, Response> {
        if request.path() != "/dashboard/live" {
            let accept = self.inner.open(request, peer)?;
            return Ok(accept.map(Session::Inner));
        }
        lock(&self.feed).admit(peer);
        Ok(Accept::new(Session::Watcher))
    }

    fn message(&self, session: &mut Self::Session, peer: &Peer, message: Message) {
        if let Session::Inner(session) = session {
            self.inner.message(session, peer, message);
        }
    }

    fn writable(&self, session: &mut Self::Session, peer: &Peer) {
        if let Session::Inner(session) = session {
            self.inner.writable(session, peer);
        }
    }

    fn close(&self, session: Self::Session, peer: &Peer, reason: &CloseReason) {
        match session {
            Session::Inner(session) => self.inner.close(session, peer, reason),
            Session::Watcher => lock(&self.feed).watchers.retain(|other| other != peer),
        }
    }

    fn http(&self, request: &Request) -> Response {
        match request.path() {
            "/dashboard" => Response::html(PAGE),
            "/metrics" => {
                let metrics = self.server.get().map(ServerHandle::metrics);
                let kind = HeaderValue::from_static("text/plain; version=0.0.4");
                Response::new(StatusCode::OK)
                    .header(header::CONTENT_TYPE, kind)
                    .body(metrics.unwrap_or_default().prometheus())
            }
            _ => self.inner.http(request),
        }
    }
}

impl Feed {
    /// Tells what has happened so far; the news follow.
    fn admit(&mut self, peer: &Peer) {
        let past: Vec<&str> = self.news.iter().map(String::as_str).collect();
        let _ = peer.send(format!("[{}]", past.join(",")));
        self.watchers.push(peer.clone());
    }

    /// Tells what has happened since the last time, as JSON.
    fn go_on(&mut self, now: Metrics) {
        let last = std::mem::replace(&mut self.last, now.clone());
        let news = news(&now, &last).to_string();
        let message = Message::text(news.as_str());
        self.watchers.retain(|peer| {
            let sent = peer.send_latest(NEWS, message.clone());
            !matches!(sent, Err(SendError::Closed(_)))
        });
        if self.news.len() == KEPT {
            self.news.pop_front();
        }
        self.news.push_back(news);
    }
}

fn news(now: &Metrics, last: &Metrics) -> Value {
    let seconds = (now.uptime.saturating_sub(last.uptime))
        .as_secs_f64()
        .max(0.001);
    let rate = |now: u64, last: u64| (now.saturating_sub(last) as f64 / seconds).round();
    let of = |figure: fn(&LoopMetrics) -> u64| rate(figure(&now.total), figure(&last.total));
    let share = |now: Duration, last: Duration| {
        let busy = now.saturating_sub(last).as_secs_f64() / seconds;
        (busy.min(1.0) * 1000.0).round() / 1000.0
    };
    let loops = now.loops.iter().enumerate().map(|(n, each)| {
        let before = last.loops.get(n).cloned().unwrap_or_default();
        json!({
            "connections": each.connections,
            "in": rate(each.messages_received, before.messages_received),
            "out": rate(each.messages_sent, before.messages_sent),
            "busy": share(each.busy_time, before.busy_time),
        })
    });
    let workers = now.workers.iter().enumerate().map(|(n, each)| {
        let before = last.workers.get(n).cloned().unwrap_or_default();
        json!({
            "events": rate(each.events, before.events),
            "busy": share(each.busy_time, before.busy_time),
        })
    });
    let total = &now.total;
    json!({
        "t": now.uptime.as_millis() as u64,
        "connections": now.connections,
        "in": of(|t| t.messages_received),
        "out": of(|t| t.messages_sent),
        "bytesIn": of(|t| t.bytes_received),
        "bytesOut": of(|t| t.bytes_sent),
        "opened": of(|t| t.opened),
        "conflated": of(|t| t.messages_conflated),
        "dropped": of(|t| t.messages_dropped + t.messages_refused),
        "blocked": total.blocked_connections,
        "blockedBytes": total.blocked_bytes,
        "runQueue": now.run_queue,
        "handler": times(&now.handler, &last.handler),
        "wait": times(&now.mailbox_wait, &last.mailbox_wait),
        "turn": times(&total.turns, &last.total.turns),
        "ping": times(&total.round_trips, &last.total.round_trips),
        "tick": times(&now.ticks.late, &last.ticks.late),
        "causes": some(&total.closed_by_cause),
        "codes": some(&total.closed_by_code),
        "refused": some(&total.refused),
        "loops": loops.collect::<Vec<_>>(),
        "workers": workers.collect::<Vec<_>>(),
    })
}

/// Median and 99th percentile of what is new, in microseconds; nothing if nothing is.
fn times(now: &Histogram, last: &Histogram) -> Value {
    let fresh = now.since(last);
    if fresh.count() == 0 {
        return Value::Null;
    }
    let us = |part| (fresh.quantile(part).as_secs_f64() * 1e7).round() / 10.0;
    json!([us(0.5), us(0.99)])
}

fn some(counts: &BTreeMap<&'static str, u64>) -> BTreeMap<&'static str, u64> {
    let some = counts.iter().filter(|(_, count)| **count > 0);
    some.map(|(label, count)| (*label, *count)).collect()
}

fn lock(feed: &Mutex<Feed>) -> MutexGuard<'_, Feed> {
    feed.lock().unwrap_or_else(PoisonError::into_inner)
}
