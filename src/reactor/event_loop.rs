//! The turn of a loop, and only the turn.
//!
//! Each turn is the same list of steps (`EventLoop::turn`). Every step is bounded, and what it cuts
//! short goes on the `again` list: readiness is edge-triggered, so nobody will remind us.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use http::StatusCode;
use mio::{Events, Poll, Token};

use super::acceptor::{self, Acceptor};
use super::conn::{Conn, Context, News, Phase, TURN_BUDGET};
use super::dialing::{self, Dialing};
use super::opening::Opening;
use super::outbound::Outbound;
use super::slab::Slab;
use super::spreading::{Reach, Run, Spread};
use super::stopping::Stopping;
use super::timer::Wheel;
use super::topics::Audience;
use super::upstream::Upstream;
use crate::addr::RemoteAddr;
use crate::config::Config;
use crate::error::Error;
use crate::id::{Key, PeerId};
use crate::link::{self, Command, Dial, EventBatch, Inlet, Link, LoopHandle, Shared};
use crate::message::{CloseCause, Message};
use crate::metrics::Refusal;
use crate::net::{Listener, Stream};
use crate::peer::Peer;
use crate::proto::{Blocks, ReadBuffer};

/// Events taken from the kernel per turn.
const EVENTS: usize = 1024;

/// How long a loop sleeps at most after it gave work to the workers; see
/// [`LoopHandle`](crate::link::LoopHandle).
const NAP: Duration = Duration::from_millis(1);

/// After so much idleness, memory kept for reuse is released.
const TIDY: Duration = Duration::from_millis(100);

/// Runnable connections are passed on in groups of this size, so that with more than one core the
/// workers begin while the loop still reads.
const GROUP: usize = 32;

/// Of one in so many runs it is noted how long it had to wait for a worker.
const WAITS: u32 = 8;

/// Connections that a client's loop begins to make per turn.
const DIALS: usize = 64;

const WAKER: Token = Token(usize::MAX);
/// Connections have their slot for a token, and above it their generation where there is room: a
/// socket that is on a worker for its TLS handshake may outlive its connection, and its events are not
/// for whoever has the slot by then. Listeners begin here.
const LISTENERS: usize = PeerId::MAX_SLOTS as usize;
const LAST_LISTENER: usize = u32::MAX as usize - 1;

fn token(key: Key) -> Token {
    let generation = (key.generation as usize).checked_shl(32).unwrap_or(0);
    Token(key.slot as usize | generation)
}

/// A loop that can be started: what can fail has succeeded.
pub(crate) struct Prepared {
    poll: Poll,
    inlet: Inlet,
    handle: Arc<LoopHandle>,
}

impl Prepared {
    pub(crate) fn new(index: usize, shared: Arc<Shared>) -> io::Result<Self> {
        let poll = Poll::new()?;
        let waker = mio::Waker::new(poll.registry(), WAKER)?;
        let (handle, inlet) = LoopHandle::new(index, shared, waker);
        Ok(Self {
            poll,
            inlet,
            handle,
        })
    }

    pub(crate) fn handle(&self) -> &Arc<LoopHandle> {
        &self.handle
    }
}

/// Starts the thread of a loop. What its listeners bring is dealt out to `loops`, unless each loop has
/// its own.
pub(crate) fn spawn<U: Upstream>(
    prepared: Prepared,
    upstream: U,
    listeners: Vec<Listener>,
    loops: Vec<Arc<LoopHandle>>,
) -> io::Result<JoinHandle<()>> {
    let mut acceptor = Acceptor::new(listeners, loops);
    acceptor.register(prepared.poll.registry(), LISTENERS)?;
    let name = format!("framemill-loop-{}", prepared.handle.index);
    thread::Builder::new()
        .name(name)
        .spawn(move || EventLoop::new(prepared, upstream, acceptor).run())
}

/// One loop: its sockets, its clock, its lists.
pub(crate) struct EventLoop<U> {
    poll: Poll,
    events: Events,
    inlet: Inlet,
    handle: Arc<LoopHandle>,
    upstream: U,
    acceptor: Acceptor,
    conns: Slab<Conn>,
    /// Who of them subscribes to what.
    audience: Audience,
    wheel: Wheel,
    /// The clock: milliseconds since `start`, which is the epoch of what is counted, read once per turn.
    start: Instant,
    now: u64,
    /// When the turn began.
    woke: Instant,
    /// Runs of handlers, inline or on workers, wrapping: of some samples are taken.
    runs: u32,
    /// Connections cut short, each once.
    again: Vec<Key>,
    /// Connections that are to be made; always empty on a server.
    dials: VecDeque<Box<Dial>>,
    /// Frames for many, gathered and not spread yet; empty between steps.
    run: Run,
    /// Connections that were sent something this turn, each once.
    touched: Vec<Key>,
    /// Connections to be removed; may name one twice.
    gone: Vec<Key>,
    runnable: Vec<Peer>,
    large_left: usize,
    /// Work was given away a moment ago.
    nap: bool,
    /// Another loop is behind with what handlers of this one ask for: nothing is read meanwhile.
    ahead: bool,
    /// There was something to do since memory was last let go of.
    untidy: bool,
    stopping: Option<Stopping>,
    tools: Tools,
}

/// What connections use while they are served.
struct Tools {
    buf: ReadBuffer,
    blocks: Blocks,
    messages: Vec<Message>,
    batch: EventBatch,
    out: Outbound,
}

impl<U: Upstream> EventLoop<U> {
    fn new(prepared: Prepared, upstream: U, acceptor: Acceptor) -> Self {
        let Prepared {
            poll,
            inlet,
            handle,
        } = prepared;
        let blocks = Blocks::new(upstream.is_inline());
        let start = handle.counters.busy.epoch();
        // A read that fills it is cut short for the turn.
        let buf = ReadBuffer::new(handle.config.read_buffer);
        Self {
            poll,
            events: Events::with_capacity(EVENTS),
            inlet,
            handle,
            upstream,
            acceptor,
            conns: Slab::default(),
            audience: Audience::default(),
            wheel: Wheel::new(0),
            start,
            now: 0,
            woke: Instant::now(),
            runs: 0,
            again: Vec::new(),
            dials: VecDeque::new(),
            run: Run::default(),
            touched: Vec::new(),
            gone: Vec::new(),
            runnable: Vec::new(),
            large_left: 0,
            nap: false,
            ahead: false,
            untidy: false,
            stopping: None,
            tools: Tools {
                buf,
                blocks,
                messages: Vec::new(),
                batch: EventBatch::default(),
                out: Outbound::default(),
            },
        }
    }

    fn run(mut self) {
        self.handle.run_here();
        while self.turn() {}
        self.turn_ended(Instant::now());
        log::debug!("loop {}: ended", self.handle.index);
    }

    /// `false` when the loop is done.
    fn turn(&mut self) -> bool {
        if let Err(error) = self.wait() {
            log::error!("loop {}: {error}; stopping", self.handle.index);
            self.end_all();
            return false;
        }
        self.large_left = TURN_BUDGET;
        self.ahead = link::still_ahead();
        self.go_on();
        self.sockets();
        self.accept();
        self.commands();
        self.dial();
        self.timers();
        self.flush();
        self.stop();
        self.pass_on(0);
        self.reap();
        self.stopping.is_none() || !self.conns.is_empty() || !self.dials.is_empty()
    }

    // ---- the steps ----

    /// Sleeps until there is something to do.
    fn wait(&mut self) -> io::Result<()> {
        let (timeout, slept_from) = self.timeout().unzip();
        let timeout = timeout.unwrap_or(Some(Duration::ZERO));
        let busy = timeout == Some(Duration::ZERO);
        let napping = self.nap && timeout.is_none_or(|t| t > NAP);
        let timeout = if busy || !self.handle.fall_asleep(self.nap) {
            Some(Duration::ZERO)
        } else if napping {
            Some(NAP)
        } else if self.worth_tidying() {
            Some(timeout.map_or(TIDY, |timeout| timeout.min(TIDY)))
        } else {
            timeout
        };
        if let Some(slept_from) = slept_from {
            self.turn_ended(slept_from);
        }
        let result = self.poll.poll(&mut self.events, timeout);
        self.handle.awake();
        let woke = Instant::now();
        if slept_from.is_none() {
            // A turn that another follows at once lasts until that one begins.
            self.turn_ended(woke);
        }
        let since_start = woke.saturating_duration_since(self.start);
        self.handle.counters.busy.begin(since_start);
        self.woke = woke;
        self.now = since_start.as_millis() as u64;
        self.untidy |= !self.events.is_empty();
        if self.events.is_empty() {
            // It was quiet for as long as it took.
            match timeout {
                Some(NAP) => self.nap = false,
                Some(TIDY) => {
                    self.untidy = false;
                    self.tools.blocks.release();
                    link::release_spare();
                    if let Some(call) = self.handle.config.on_quiet {
                        call();
                    }
                }
                _ => {}
            }
        }
        match result {
            Err(error) if error.kind() != io::ErrorKind::Interrupted => Err(error),
            _ => Ok(()),
        }
    }

    fn turn_ended(&self, at: Instant) {
        let counters = &self.handle.counters;
        let turn = at.saturating_duration_since(self.woke);
        counters.busy.end(turn, &counters.turns);
    }

    /// Whether there is something to let go of after some idleness, or somebody to tell.
    fn worth_tidying(&self) -> bool {
        self.tools.blocks.holds_memory()
            || (self.untidy && (self.handle.config.on_quiet.is_some() || link::keeps_spare()))
    }

    /// The time until the nearest of all deadlines, if there is one, and the time now. `None`: something
    /// waits already.
    fn timeout(&self) -> Option<(Option<Duration>, Instant)> {
        // Those that could go on wait for another loop.
        let again = !self.again.is_empty() && !self.ahead;
        let waiting = again || !self.touched.is_empty() || !self.dials.is_empty();
        if waiting || self.handle.has_own() {
            return None;
        }
        let now = Instant::now();
        let since_start = now.saturating_duration_since(self.start);
        let until = |at: u64| Duration::from_millis(at).saturating_sub(since_start);
        let timers = self.wheel.next().map(until);
        let accept = self.acceptor.deadline(self.now).map(until);
        let stopping = self.stopping.as_ref();
        let stop = stopping.map(|stopping| stopping.wait(now));
        let other_loop = self.ahead.then_some(NAP);
        let nearest = [timers, accept, stop, other_loop]
            .into_iter()
            .flatten()
            .min();
        Some((nearest, now))
    }

    fn sockets(&mut self) {
        let events = std::mem::replace(&mut self.events, Events::with_capacity(0));
        for event in &events {
            match event.token() {
                WAKER => {}
                Token(n) if (LISTENERS..=LAST_LISTENER).contains(&n) => {
                    self.acceptor.ready(n - LISTENERS)
                }
                Token(n) => {
                    let news = News {
                        readable: event.is_readable(),
                        writable: event.is_writable(),
                        closed: event.is_read_closed() || event.is_error(),
                    };
                    if let Some(key) = self.key(n) {
                        self.serve(key, |conn, cx| conn.ready(news, cx));
                    }
                    self.pass_on(GROUP);
                }
            }
        }
        self.events = events;
    }

    fn accept(&mut self) {
        let mut here = Vec::new();
        self.acceptor
            .accept(self.now, |stream, remote| here.push((stream, remote)));
        for (stream, remote) in here {
            self.adopt(stream, remote);
        }
    }

    /// Carries out what was asked; what is asked meanwhile waits for the next turn.
    fn commands(&mut self) {
        let mut own = Vec::new();
        self.handle.take_own(&mut own);
        for command in own {
            self.carry_out(command);
        }
        for _ in 0..self.inlet.commands.len() {
            match self.inlet.commands.try_recv() {
                Ok(command) => self.carry_out(command),
                Err(_) => break,
            }
        }
        self.spread();
    }

    /// Begins to connect, as often as the budget allows.
    fn dial(&mut self) {
        for _ in 0..DIALS {
            let Some(mut dial) = self.dials.pop_front() else {
                return;
            };
            let begun = if self.stopping.is_some() || self.is_full() {
                Err(Error::Closed)
            } else {
                dialing::begin(&mut dial)
            };
            match begun {
                Ok((stream, remote)) => {
                    let _ = acceptor::admit(&self.handle.shared, remote);
                    let config = Some(dial.config.clone());
                    let dialing = Dialing::new(dial, self.start);
                    self.take_in(stream, remote, config, Phase::Dialing(Box::new(dialing)));
                }
                Err(error) => self.upstream.failed(dial, error),
            }
        }
    }

    fn timers(&mut self) {
        let mut fired = Vec::new();
        self.wheel.expire(self.now, &mut fired);
        for slot in fired {
            self.serve_slot(slot, |conn, cx| {
                conn.on_deadline(cx);
                conn.flush_if_dirty(cx);
            });
        }
    }

    /// First those that were cut short: they have waited longer than whoever has news.
    fn go_on(&mut self) {
        let mut served = 0;
        for key in std::mem::take(&mut self.again) {
            self.serve(key, |conn, cx| {
                conn.listed = false;
                conn.advance(cx);
            });
            if self.large_left > 0 {
                served = self.again.len();
            }
        }
        // Those that found the turn's budget used up go before those that used it.
        self.again.rotate_left(served);
    }

    /// One write for each connection that was sent something.
    fn flush(&mut self) {
        let mut touched = std::mem::take(&mut self.touched);
        for key in touched.drain(..) {
            self.serve(key, |conn, cx| {
                conn.touched = false;
                conn.flush(cx);
            });
        }
        // Keeps the memory, and what was touched while flushing.
        touched.append(&mut self.touched);
        self.touched = touched;
    }

    /// While the server stops: says farewell to some more; at the deadline, to all.
    fn stop(&mut self) {
        let Some(stopping) = &mut self.stopping else {
            return;
        };
        let now = Instant::now();
        if now >= stopping.deadline {
            return self.end_all();
        }
        let code = stopping.code;
        for key in stopping.due(now) {
            self.serve(key, |conn, cx| {
                if conn.is_open() {
                    conn.go_away(code, "", CloseCause::Shutdown, cx);
                    conn.flush_if_dirty(cx);
                } else {
                    conn.stop_opening(cx);
                }
            });
        }
    }

    /// Makes the gathered connections run, if there are at least so many.
    fn pass_on(&mut self, at_least: usize) {
        if self.runnable.len() > at_least {
            // A nap, not sleep, follows.
            self.nap = !self.upstream.is_inline();
            for peer in self.runnable.drain(..) {
                let timed = self.runs % WAITS == 0;
                self.runs = self.runs.wrapping_add(1);
                self.upstream.schedule(peer, timed.then_some(self.woke));
            }
        }
    }

    fn reap(&mut self) {
        while let Some(key) = self.gone.pop() {
            let Some(mut conn) = self.conns.remove(key) else {
                continue;
            };
            self.wheel.cancel(key.slot);
            conn.leave_opening();
            // Whoever goes and nothing is known of has hung up.
            conn.note_refusal(Refusal::HungUp);
            conn.part(self.poll.registry());
            #[cfg(feature = "tls")]
            if !U::DIALS && conn.is_securing() {
                conn.leave_handshake();
            }
            conn.uncount();
            conn.peer.link.end_subscriptions();
            self.handle.counters.connections.take_away(1);
            acceptor::discharge(
                &self.handle.shared,
                conn.peer.link.remote(),
                conn.is_refused(),
                conn.is_counted_by_ip(),
            );
        }
    }

    // ---- helpers ----

    /// Lets a connection do something, and looks at what it needs next.
    fn serve(&mut self, key: Key, act: impl FnOnce(&mut Conn, &mut Context<'_, U>)) {
        let Some(conn) = self.conns.get_mut(key) else {
            // A late command for a connection that is gone.
            return;
        };
        let own_config = U::DIALS.then(|| conn.peer.link.config().clone());
        let config = own_config.as_ref().unwrap_or(&self.handle.config);
        let mut cx = Context {
            upstream: &self.upstream,
            config,
            start: self.start,
            now: self.now,
            buf: self.tools.buf.bytes(),
            blocks: &mut self.tools.blocks,
            messages: &mut self.tools.messages,
            batch: &mut self.tools.batch,
            out: &mut self.tools.out,
            runnable: &mut self.runnable,
            dials: &mut self.dials,
            large_left: &mut self.large_left,
            runs: &mut self.runs,
            counters: &self.handle.counters,
            stopping: self.stopping.as_ref().map(|stopping| stopping.code),
        };
        act(conn, &mut cx);
        if conn.gone {
            self.gone.push(key);
            return;
        }
        if conn.again && !conn.listed {
            conn.listed = true;
            self.again.push(key);
        }
        if conn.is_dirty() && !std::mem::replace(&mut conn.touched, true) {
            self.touched.push(key);
        }
        if std::mem::take(&mut conn.rearm) {
            match conn.deadline(config, self.now) {
                Some(at) => self.wheel.arm(key.slot, at),
                None => self.wheel.cancel(key.slot),
            }
        }
    }

    /// Whose token this is.
    fn key(&mut self, token: usize) -> Option<Key> {
        let (key, _) = self.conns.get_slot_mut(token as u32)?;
        (self::token(key) == Token(token)).then_some(key)
    }

    fn serve_slot(&mut self, slot: u32, act: impl FnOnce(&mut Conn, &mut Context<'_, U>)) {
        let key = self.conns.get_slot_mut(slot).map(|(key, _)| key);
        if let Some(key) = key {
            self.serve(key, act);
        }
    }

    fn carry_out(&mut self, command: Command) {
        use Command::{Broadcast, Flush, Publish, Resume};
        if !matches!(command, Broadcast(..) | Publish(..) | Flush(_) | Resume(_)) {
            // It may write to outboxes, or change who is there.
            self.spread();
        }
        match command {
            Command::Flush(key) => self.touch(key),
            Command::Resume(key) => self.serve(key, |conn, _| conn.resume()),
            Command::Accept(key, head) => self.serve(key, |conn, cx| conn.accept(head, cx)),
            Command::Respond(key, status, response) => {
                self.serve(key, |conn, cx| conn.respond(status, response, cx));
            }
            Command::Finished(key) => self.serve(key, |conn, cx| conn.finished(cx)),
            #[cfg(feature = "tls")]
            Command::Secured(key, stream, step) => {
                self.serve(key, |conn, cx| conn.secured(stream, step, cx));
            }
            #[cfg(feature = "deflate")]
            Command::Fail(key, violation) => self.serve(key, |conn, cx| {
                if conn.is_open() {
                    conn.fail(violation, cx);
                }
            }),
            Command::Terminate(key) => self.serve(key, |conn, cx| conn.terminate(cx)),
            Command::Run(link) => self.runnable.push(Peer { link }),
            Command::Dial(dial) => self.dials.push_back(dial),
            Command::Adopt(stream, remote) => self.adopt(stream, remote),
            Command::Send { link, message } => {
                link.push_reserved(message);
                self.applied(&link);
            }
            Command::SendLatest { link, key } => {
                link.push_latest(key);
                self.applied(&link);
            }
            Command::Close(link) => {
                link.outbox().say_goodbye();
                self.applied(&link);
            }
            Command::Broadcast(frame, permit) => self.gather(Spread::All(frame, permit)),
            Command::Publish(publication, permit) => {
                self.gather(Spread::Topic(publication, permit));
            }
            Command::Multicast { frame, to, except } => {
                self.reach().multicast(&frame, &to, except);
                self.handle.ordered_applied();
            }
            Command::Batch(commands, permit) => {
                for command in commands {
                    self.carry_out(command);
                }
                self.inlet.give_back(permit);
            }
            // If the connection is gone, it is struck off by a command behind this one.
            Command::Subscribe(key, topic) => self.audience.subscribe(topic, key),
            Command::Unsubscribe(key, topic) => self.audience.unsubscribe(topic, key),
            Command::CatchUp(key) => self.serve(key, |conn, _| conn.catch_up()),
            Command::Shutdown(deadline) => {
                self.acceptor.close(self.poll.registry());
                let untold = self.conns.keys().collect();
                self.stopping = Some(Stopping::at_once(untold, deadline));
            }
            Command::Drain {
                code,
                spread,
                deadline,
            } => {
                self.acceptor.close(self.poll.registry());
                let untold = self.conns.keys().collect();
                self.stopping = Some(Stopping::spread(
                    untold,
                    code,
                    spread,
                    Instant::now(),
                    deadline,
                ));
            }
        }
    }

    /// An ordered command has written to an outbox.
    fn applied(&mut self, link: &Link) {
        self.touch(link.id.key());
        self.handle.ordered_applied();
    }

    fn touch(&mut self, key: Key) {
        if let Some(conn) = self.conns.get_mut(key) {
            if !std::mem::replace(&mut conn.touched, true) {
                self.touched.push(key);
            }
        }
    }

    /// Spreads a frame together with those before and behind it, if they are for the same connections.
    fn gather(&mut self, spread: Spread) {
        if !self.run.takes(&spread) {
            self.spread();
        }
        self.run.push(spread);
    }

    /// Puts what was gathered into the outboxes.
    fn spread(&mut self) {
        if self.run.is_empty() {
            return;
        }
        let mut run = std::mem::take(&mut self.run);
        self.reach().spread(&run);
        for spread in run.drain() {
            self.inlet.give_back(spread.into_permit());
            self.handle.ordered_applied();
        }
        // Keeps the memory.
        self.run = run;
    }

    fn reach(&mut self) -> Reach<'_> {
        Reach {
            conns: &mut self.conns,
            audience: &self.audience,
            touched: &mut self.touched,
            index: self.handle.index,
        }
    }

    /// Takes a socket in.
    fn adopt(&mut self, stream: Stream, remote: RemoteAddr) {
        let counters = &self.handle.counters;
        counters.accepted.add(1);
        let admitted = match self.stopping.is_some() || self.is_full() {
            true => return self.turn_away(remote, Refusal::Shutdown),
            false => acceptor::admit(&self.handle.shared, remote),
        };
        let refusal = match admitted {
            Ok(()) => None,
            Err(Some(status)) => {
                counters.refused(match status {
                    StatusCode::TOO_MANY_REQUESTS => Refusal::PerAddress,
                    _ => Refusal::MaxConnections,
                });
                // It takes no place at the door, or one address alone could shut that for all others.
                self.handle.shared.leave_opening();
                Some(status)
            }
            Err(None) => return self.turn_away(remote, Refusal::Unanswered),
        };
        let config = self.handle.config.clone();
        let opening = Opening::new(refusal, config.proxies.contains(remote.ip()), &config);
        #[cfg(feature = "tls")]
        let stream = match opening.awaits_proxy_header() {
            // It comes before TLS.
            true => stream,
            false => self.handle.shared.secure(stream, refusal.is_none()),
        };
        let opening = Phase::Opening(Box::new(opening));
        self.take_in(stream, remote, None, opening);
    }

    /// Hangs up on somebody who was not even taken in.
    fn turn_away(&self, remote: RemoteAddr, why: Refusal) {
        log::debug!(
            "loop {}: {remote} refused: {}",
            self.handle.index,
            why.label()
        );
        self.handle.counters.refused(why);
        self.handle.shared.leave_opening();
    }

    fn is_full(&self) -> bool {
        self.conns.len() >= PeerId::MAX_SLOTS as usize
    }

    fn take_in(
        &mut self,
        stream: Stream,
        remote: RemoteAddr,
        client: Option<Arc<Config>>,
        phase: Phase,
    ) {
        let (handle, now) = (&self.handle, self.now);
        handle.counters.connections.add(1);
        let key = self.conns.insert_with(|key| {
            let id = PeerId::new(handle.index, key);
            let link = Arc::new(Link::new(id, remote, handle.clone(), client));
            Conn::new(stream, Peer { link }, phase, now)
        });
        let registry = self.poll.registry();
        let registered = self.conns.get_mut(key).map(|conn| {
            let way = if U::DIALS {
                "connecting to"
            } else {
                "connected from"
            };
            let over = match conn.is_refused() {
                true => ", over a limit",
                false => "",
            };
            log::debug!("{}: {way} {remote}{over}", conn.peer.link.id);
            conn.register(registry, token(key))
        });
        match registered {
            Some(Ok(())) => self.serve(key, |conn, _| conn.rearm = true),
            Some(Err(error)) => {
                self.serve(key, |conn, cx| conn.cannot_be_served(&error, cx));
            }
            None => {}
        }
    }

    /// Drops every connection, telling the handlers.
    fn end_all(&mut self) {
        if !self.conns.is_empty() {
            self.handle.shared.note_cut_off();
        }
        for key in self.conns.keys() {
            self.serve(key, |conn, cx| conn.cut_off(cx));
        }
        for dial in std::mem::take(&mut self.dials) {
            self.upstream.failed(dial, Error::Closed);
        }
        self.pass_on(0);
        self.reap();
    }
}
