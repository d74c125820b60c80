//! The turn of a loop, and only the turn.
//!
//! Each turn is the same list of steps (`EventLoop::turn`). Steps that a peer can prolong have a
//! budget. A connection that is cut short goes on the `again` list, as readiness is edge-triggered and no
//! event will come for it. Listeners, dials and what is left to be closed are looked at by `timeout`.
//!
//! | file | steps |
//! |---|---|
//! | `start` | before the first: what can fail, the thread, the tokens |
//! | `stop_source` | what may end it from outside |
//! | `sleep` | `wait`, and the memory that is let go of when it is quiet; `step_aside`, after work was passed on |
//! | `admission` | `accept`, `dial` |
//! | `commands` | `commands` |

mod admission;
mod commands;
mod sleep;
mod start;
#[cfg(unix)]
mod stop_source;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;
use std::{fmt, io};

use mio::{Events, Poll, Token};

#[cfg(unix)]
use self::start::STOP;
use self::start::{LAST_LISTENER, LISTENERS, WAKER};
#[cfg(unix)]
pub(crate) use self::stop_source::StopSource;
use super::acceptor::{self, Acceptor};
use super::audience::Audience;
use super::conn::{Conn, Context, Readiness, TURN_BUDGET};
use super::fan_out::Gathered;
use super::kept::Kept;
use super::outbound::Outbound;
use super::slab::Slab;
use super::stopping::Stopping;
use super::upstream::Upstream;
use super::wheel::Wheel;
use crate::config::NEVER;
use crate::error::Error;
use crate::guard::guarded;
use crate::id::Key;
use crate::link::{self, Command, CommandReceiver, Dial, EventBatch, LoopHandle};
use crate::message::{CloseCause, Message};
use crate::metrics::Refusal;
use crate::peer::Peer;
use crate::proto::{Blocks, InPlace, ReadBuffer, Role};
use crate::worker::StepAside;

pub(crate) use self::start::{Prepared, ReadyLoop, handles, ready_all, spawn_all};

/// Events taken from the kernel per turn.
const EVENTS: usize = 1024;

/// Runnable connections are passed on in groups of this size, so that the workers begin while the loop
/// still reads: on other cores at once, on the loop's own as it steps aside. What inline handlers replied is
/// written after as many, while those connections are in the cache, the kernel's part of them above all.
const GROUP: usize = 32;

/// Of one run in this many it is noted how long it had to wait for a worker.
const WAITS: u32 = 8;

/// One loop: its sockets, its clock, its lists.
pub(crate) struct EventLoop<U> {
    poll: Poll,
    events: Events,
    receiver: CommandReceiver,
    handle: Arc<LoopHandle>,
    upstream: U,
    acceptor: Acceptor,
    conns: Slab<Kept>,
    /// Which of them subscribe to what.
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
    /// Frames for many, not in the outboxes yet; empty between turns unless they are held back.
    gathered: Gathered,
    /// They wait for more, until the next turn.
    held_back: bool,
    /// Connections that were sent something this turn, each once.
    touched: Vec<Key>,
    /// Those that wait while others are flushed; empty between steps.
    later: Vec<Key>,
    /// Connections to be removed; may name one twice.
    gone: Vec<Key>,
    runnable: Vec<Peer>,
    large_left: usize,
    /// Work was given away a moment ago.
    nap: bool,
    /// It was this turn.
    gave_work: bool,
    aside: StepAside,
    /// Another loop is behind with what handlers of this one ask for: nothing is read meanwhile.
    ahead: bool,
    /// There was something to do since memory was last let go of.
    untidy: bool,
    #[cfg(unix)]
    stop_source: Option<StopSource>,
    stopping: Option<Stopping>,
    tools: Tools,
}

/// What connections use while they are served.
struct Tools {
    buf: ReadBuffer,
    blocks: Blocks,
    in_place: InPlace,
    messages: Vec<Message>,
    batch: EventBatch,
    out: Outbound,
}

impl<U: Upstream> EventLoop<U> {
    fn new(prepared: Prepared, upstream: U, acceptor: Acceptor) -> Self {
        let Prepared {
            poll,
            receiver,
            handle,
            #[cfg(unix)]
            stop_source,
        } = prepared;
        let blocks = Blocks::new(upstream.is_inline());
        let start = handle.counters.busy.epoch();
        // A read that fills it is cut short for the turn.
        let buf = ReadBuffer::new(handle.config.read_buffer);
        Self {
            poll,
            events: Events::with_capacity(EVENTS),
            receiver,
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
            gathered: Gathered::default(),
            held_back: false,
            touched: Vec::new(),
            later: Vec::new(),
            gone: Vec::new(),
            runnable: Vec::new(),
            large_left: 0,
            nap: false,
            gave_work: false,
            aside: StepAside::of_a_loop(),
            ahead: false,
            untidy: false,
            #[cfg(unix)]
            stop_source,
            stopping: None,
            tools: Tools {
                buf,
                blocks,
                in_place: InPlace::default(),
                messages: Vec::new(),
                batch: EventBatch::default(),
                out: Outbound::default(),
            },
        }
    }

    fn run(mut self) {
        // To panic is a mistake of ours, or of a logger.
        let outcome = guarded(|| self.turns());
        self.turn_ended(Instant::now());
        match outcome {
            Some(Ok(())) => log::debug!("loop {}: ended", self.handle.index),
            Some(Err(error)) => self.fail(&error),
            None => self.fail(&"it panicked"),
        }
    }

    fn turns(&mut self) -> io::Result<()> {
        while self.turn()? {}
        Ok(())
    }

    /// `false` when the loop is done.
    fn turn(&mut self) -> io::Result<bool> {
        self.wait()?;
        self.large_left = TURN_BUDGET;
        self.gave_work = false;
        self.ahead = link::still_ahead();
        self.resume_cut_short();
        self.sockets();
        self.accept();
        self.commands();
        self.dial();
        self.timers();
        self.flush();
        self.stop();
        if !self.runnable.is_empty() {
            self.pass_on();
            self.step_aside();
        }
        self.reap();
        Ok(self.stopping.is_none() || !self.conns.is_empty() || !self.dials.is_empty())
    }

    // ---- the steps ----

    /// First those that were cut short: they have waited longer than those with new events.
    fn resume_cut_short(&mut self) {
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

    fn sockets(&mut self) {
        let events = std::mem::replace(&mut self.events, Events::with_capacity(0));
        for event in &events {
            match event.token() {
                WAKER => {}
                #[cfg(unix)]
                STOP if event.is_readable() || event.is_read_closed() => {
                    self.stop_source.iter_mut().for_each(StopSource::ready);
                }
                Token(n) if (LISTENERS..=LAST_LISTENER).contains(&n) => {
                    self.acceptor.ready(n - LISTENERS)
                }
                Token(n) => {
                    let readiness = Readiness {
                        readable: event.is_readable(),
                        writable: event.is_writable(),
                        closed: event.is_read_closed() || event.is_error(),
                    };
                    if let Some(key) = self.key(n) {
                        self.serve(key, |conn, cx| conn.ready(readiness, cx));
                    }
                    if self.runnable.len() >= GROUP {
                        self.pass_on();
                        self.step_aside();
                    }
                    if self.upstream.is_inline() && self.touched.len() >= GROUP {
                        self.flush();
                    }
                }
            }
        }
        self.events = events;
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

    /// One write for each connection that was sent something since the last time.
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

    /// While the server stops: closes some more; at the deadline, all.
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
                    conn.close_after_inbox(code, "", CloseCause::Shutdown, cx);
                    conn.flush_if_dirty(cx);
                } else {
                    conn.stop_opening(cx);
                }
            });
        }
    }

    /// Makes the gathered connections run.
    fn pass_on(&mut self) {
        if self.runnable.is_empty() {
            return;
        }
        // A nap, not sleep, follows.
        self.nap = !self.upstream.is_inline();
        self.gave_work = true;
        for peer in self.runnable.drain(..) {
            let timed = self.runs % WAITS == 0;
            self.runs = self.runs.wrapping_add(1);
            self.upstream.schedule(peer, timed.then_some(self.woke));
        }
    }

    fn reap(&mut self) {
        while let Some(key) = self.gone.pop() {
            let max_message = self.handle.config.max_message;
            let kept = self.conns.remove(key);
            let Some(mut conn) = kept.and_then(|kept| kept.into_conn(max_message)) else {
                continue;
            };
            self.wheel.cancel(key.slot);
            conn.leave_opening();
            // A connection that goes, and of which nothing else is known, has hung up.
            conn.note_refusal(Refusal::HungUp);
            conn.part();
            #[cfg(feature = "tls")]
            if U::ROLE == Role::Server && conn.is_securing() {
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
        let Some(kept) = self.conns.get_mut(key) else {
            // A late command for a connection that is gone.
            return;
        };
        let own_config = match U::ROLE {
            Role::Client => kept.peer().map(|peer| peer.link.config().clone()),
            Role::Server => None,
        };
        let config = own_config.as_ref().unwrap_or(&self.handle.config);
        let mut cx = Context {
            upstream: &self.upstream,
            config,
            start: self.start,
            now: self.now,
            buf: self.tools.buf.bytes(),
            blocks: &mut self.tools.blocks,
            in_place: &mut self.tools.in_place,
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
        kept.serve(config.max_message, |conn| {
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
        });
    }

    /// Whose token this is.
    fn key(&mut self, token: usize) -> Option<Key> {
        let (key, _) = self.conns.get_slot_mut(token as u32)?;
        (start::token(key) == Token(token)).then_some(key)
    }

    fn serve_slot(&mut self, slot: u32, act: impl FnOnce(&mut Conn, &mut Context<'_, U>)) {
        let key = self.conns.get_slot_mut(slot).map(|(key, _)| key);
        if let Some(key) = key {
            self.serve(key, act);
        }
    }

    fn touch(&mut self, key: Key) {
        if self.conns.get_mut(key).is_some_and(Kept::touch) {
            self.touched.push(key);
        }
    }

    /// This loop can't go on, so neither can the others: one of them may have the listeners, and goes on to deal
    /// out to all. They end in good order.
    #[cold]
    fn fail(mut self, why: &dyn fmt::Display) {
        let shared = &self.handle.shared;
        shared.note_failure();
        let deadline = match &self.stopping {
            Some(stopping) => stopping.deadline,
            None => Instant::now() + shared.config.close_timeout.min(NEVER),
        };
        for handle in self.acceptor.loops() {
            handle.post(Command::Shutdown(deadline));
        }
        let index = self.handle.index;
        guarded(|| log::error!("loop {index}: {why}; all loops end"));
        // It may go wrong once more, as who knows what is left.
        guarded(|| {
            let Tools {
                messages, batch, ..
            } = &mut self.tools;
            // They belong to nobody any more.
            messages.clear();
            batch.clear();
            self.tools.out = Outbound::default();
            self.end_all();
            // What was to be dialed; also while handlers were told.
            for command in self.receiver.commands.try_iter() {
                if let Command::Dial(dial) = command {
                    self.upstream.failed(dial, Error::Closed);
                }
            }
        });
    }

    /// Drops every connection, telling the handlers.
    fn end_all(&mut self) {
        for key in self.conns.keys() {
            self.serve(key, |conn, cx| conn.cut_off(cx));
        }
        for dial in std::mem::take(&mut self.dials) {
            self.upstream.failed(dial, Error::Closed);
        }
        self.pass_on();
        self.reap();
    }
}
