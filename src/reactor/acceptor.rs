//! New connections: taken off the listeners within a budget, held against the limits, dealt out to
//! the loops in turn.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use http::StatusCode;

use crate::addr::RemoteAddr;
use crate::link::{Command, LoopHandle, Shared};
use crate::logging::Throttle;
use crate::net::{Listener, Stream};

/// Connections accepted per listener and turn: a rush of newcomers delays those who are there by
/// little.
const ACCEPTS: usize = 64;

/// How long a listener rests that can't accept: when the process or the system is out of descriptors, or
/// when there is something wrong with itself.
const REST_MS: u64 = 100;

/// How long it rests when as many handshakes are under way as may be.
const PATIENCE_MS: u64 = 5;

/// Connections over the limit that are told so. The next ones are dropped without a word, as each
/// answer needs a descriptor for as long as it takes.
const REFUSALS: usize = 256;

/// The listeners of a loop. The first has all that are alone on their address, and deals out to the
/// others; of those that share an address each loop has one.
#[derive(Debug, Default)]
pub(crate) struct Acceptor {
    listeners: Vec<Listening>,
    loops: Vec<Arc<LoopHandle>>,
    /// The loop whose turn it is.
    next: usize,
    /// The listener whose turn it is: the one behind the last that brought a connection, so that a rush
    /// on one leaves to the others what a limit lets in.
    first: usize,
    /// No accepting before this time.
    rest_until: Option<u64>,
}

#[derive(Debug)]
struct Listening {
    listener: Listener,
    /// Connections may be waiting.
    ready: bool,
    /// No accepting before this time: the last attempt failed, and that has been logged.
    failed_until: Option<u64>,
}

impl Listening {
    fn is_ready(&self, now: u64) -> bool {
        self.ready && self.failed_until.is_none_or(|until| until <= now)
    }

    fn failed(&mut self, error: &io::Error, now: u64) {
        match error.kind() {
            io::ErrorKind::WouldBlock => self.ready = false,
            // The peer gave up while it waited: the next one may be fine.
            io::ErrorKind::ConnectionAborted | io::ErrorKind::Interrupted => {}
            _ => {
                // EMFILE, ENFILE, ENOBUFS, ENOMEM, which the others will find as well; or this one is no
                // listener any more, which is no business of theirs. Nothing an immediate retry would
                // mend, and it stays ready. The connection waits in the backlog.
                static STARVED: Throttle = Throttle::new();
                if self.failed_until.replace(now + REST_MS).is_none() {
                    if let Some(more) = STARVED.pass() {
                        log::warn!("cannot accept connections for now: {error}{more}");
                    }
                }
            }
        }
    }
}

/// Where an accepted connection goes.
pub(crate) enum Placed {
    /// To this very loop.
    Here(Stream, RemoteAddr),
    Elsewhere,
}

impl Acceptor {
    pub(crate) fn new(listeners: Vec<Listener>, loops: Vec<Arc<LoopHandle>>) -> Self {
        let listening = |listener| Listening {
            listener,
            ready: true,
            failed_until: None,
        };
        Self {
            listeners: listeners.into_iter().map(listening).collect(),
            loops,
            next: 0,
            first: 0,
            rest_until: None,
        }
    }

    /// All loops, this one too.
    pub(crate) fn loops(&self) -> &[Arc<LoopHandle>] {
        &self.loops
    }

    /// Registers the listeners under the tokens `first`, `first + 1`, …
    pub(crate) fn register(&mut self, registry: &mio::Registry, first: usize) -> io::Result<()> {
        for (n, listening) in self.listeners.iter_mut().enumerate() {
            let token = mio::Token(first + n);
            listening.listener.register(registry, token)?;
        }
        Ok(())
    }

    /// A listener has news.
    pub(crate) fn ready(&mut self, n: usize) {
        if let Some(listening) = self.listeners.get_mut(n) {
            listening.ready = true;
        }
    }

    /// When to call [`accept`](Self::accept) again without news: now, later or not at all.
    pub(crate) fn deadline(&self, now: u64) -> Option<u64> {
        let ready = self.listeners.iter().filter(|listening| listening.ready);
        let next = ready
            .map(|listening| listening.failed_until.unwrap_or(now))
            .min()?;
        Some(next.max(self.rest_until.unwrap_or(now)))
    }

    /// Accepts what the budget allows, and calls `place` for each that belongs to this loop.
    pub(crate) fn accept(&mut self, now: u64, mut place: impl FnMut(Stream, RemoteAddr)) {
        if self.rest_until.is_some_and(|until| now < until) {
            return;
        }
        self.rest_until = None;
        let (first, count) = (self.first, self.listeners.len());
        for n in (0..count).map(|n| (first + n) % count) {
            for _ in 0..ACCEPTS {
                if !self.listeners[n].is_ready(now) {
                    break;
                }
                if let Some(until) = self.pause(n, now) {
                    // They wait in the backlog.
                    self.rest_until = self.rest_until.max(Some(until));
                    break;
                }
                match self.listeners[n].listener.accept() {
                    Ok((stream, remote)) => {
                        self.first = (n + 1) % count;
                        self.listeners[n].failed_until = None;
                        let shared = &self.loops[0].shared;
                        shared.enter_opening();
                        shared.arrivals.count();
                        if let Placed::Here(stream, remote) = self.deal(n, stream, remote) {
                            place(stream, remote);
                        }
                    }
                    Err(error) => self.listeners[n].failed(&error, now),
                }
            }
        }
    }

    /// Until when no more may be accepted from a listener, if so.
    fn pause(&self, n: usize, now: u64) -> Option<u64> {
        let shared = &self.loops.first()?.shared;
        // Only TCP speaks TLS.
        let shaking_hands = shared.tls_handshakes_full() && self.listeners[n].listener.is_tcp();
        if shaking_hands || shared.handshakes_full() {
            return Some(now + PATIENCE_MS);
        }
        shared.arrivals.wait().map(|wait| now + wait)
    }

    fn deal(&mut self, n: usize, stream: Stream, remote: RemoteAddr) -> Placed {
        if self.listeners[n].listener.is_shared() {
            return Placed::Here(stream, remote);
        }
        let turn = self.next;
        self.next = (turn + 1) % self.loops.len();
        // The listeners are the first loop's.
        if turn == 0 {
            return Placed::Here(stream, remote);
        }
        self.loops[turn].post(Command::Adopt(stream, remote));
        Placed::Elsewhere
    }

    /// Stops listening.
    pub(crate) fn close(&mut self, registry: &mio::Registry) {
        for mut listening in self.listeners.drain(..) {
            let _ = listening.listener.deregister(registry);
        }
    }
}

/// Counts a connection in; from its own address only if that is no proxy's. `Err`: it is over a limit,
/// and gets this answer, or none.
pub(crate) fn admit(shared: &Shared, remote: RemoteAddr) -> Result<(), Option<StatusCode>> {
    let config = &shared.config;
    let before = shared.connections.fetch_add(1, Ordering::Relaxed);
    let status = if before >= config.max_connections {
        StatusCode::SERVICE_UNAVAILABLE
    } else if !config.proxies.contains(remote.ip()) && !shared.arrivals.admit(remote.ip(), config) {
        StatusCode::TOO_MANY_REQUESTS
    } else {
        return Ok(());
    };
    shared.connections.fetch_sub(1, Ordering::Relaxed);
    Err(enter_refusals(shared).then_some(status))
}

/// Counts a connection among those that are told of a limit. `false`: there are too many of them.
pub(crate) fn enter_refusals(shared: &Shared) -> bool {
    let room = shared.refusals.fetch_add(1, Ordering::Relaxed) < REFUSALS;
    if !room {
        shared.refusals.fetch_sub(1, Ordering::Relaxed);
    }
    room
}

/// Counts a connection out; `refused` if it was over a limit, `counted` if its address was.
pub(crate) fn discharge(shared: &Shared, remote: RemoteAddr, refused: bool, counted: bool) {
    if refused {
        shared.refusals.fetch_sub(1, Ordering::Relaxed);
    } else {
        shared.connections.fetch_sub(1, Ordering::Relaxed);
    }
    if counted {
        shared.arrivals.discharge(remote.ip(), &shared.config);
    }
}
