//! From the events of a connection to calls of the user's handler, on a worker or inline.

use std::any::Any;
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use http::{Method, StatusCode};

use super::handle::ServerHandle;
use super::handler::{Accept, Handler};
use crate::config::Config;
use crate::guard::guarded;
use crate::http::{Request, Response};
use crate::hub::Task;
use crate::id::PeerId;
#[cfg(feature = "deflate")]
use crate::link::Compression;
use crate::link::{
    Agreement, Command, Event, EventBatch, Inline, Link, Load, RUN_INFLATED, UpgradeRequest,
    defer_wakes, give_batch, keeps_spare, release_own_spare, wake_deferred,
};
use crate::logging::Throttle;
use crate::message::{Bytes, CloseCause, CloseCode, CloseReason, Initiator, Message, Utf8Bytes};
use crate::metrics::WorkerCounters;
use crate::peer::Peer;
#[cfg(feature = "deflate")]
use crate::proto::deflate;
use crate::proto::handshake::{accept_response, choose_subprotocol, first_offered};
use crate::proto::http::{HttpError, encode_response};
use crate::reactor::{NoRun, Run, Upstream};
use crate::worker::{RunQueue, Work};

/// Runs the events of any connection against the handler.
pub(crate) struct Engine<H> {
    handler: H,
    limit: Load,
    workers: Arc<[WorkerCounters]>,
}

/// The longest body of a response: what is counted together has to fit 32 bits.
const MAX_BODY: usize = 1 << 30;

/// Why a run of a mailbox ended.
#[derive(PartialEq, Eq)]
enum Ran {
    /// All events are handled.
    Done,
    /// The peer is congested; the rest must wait.
    Congested,
    /// It has taken long enough; the rest comes when others have had their turn.
    Paused,
}

impl<H: Handler> Engine<H> {
    pub(crate) fn new(handler: H, config: &Config) -> Self {
        let limit = Load::inbound_limit(config);
        let workers = (0..config.workers).map(|_| WorkerCounters::default());
        let workers = workers.collect();
        Self {
            handler,
            limit,
            workers,
        }
    }

    /// What the workers count.
    pub(super) fn workers(&self) -> &Arc<[WorkerCounters]> {
        &self.workers
    }

    pub(super) fn start(&self, server: &ServerHandle) {
        self.handler.start(server);
    }

    fn run_events(&self, peer: &Peer, events: &mut VecDeque<Event>) -> Ran {
        let link = &peer.link;
        let mut session = link.session();
        let mut inflated = 0;
        while let Some(event) = events.front() {
            if inflated >= RUN_INFLATED {
                return Ran::Paused;
            }
            if let Event::Message(_) = event {
                if self.messages(peer, &mut session, events, &mut inflated) == Ran::Congested {
                    return Ran::Congested;
                }
                continue;
            }
            match events.pop_front() {
                Some(Event::Open(opening)) => *session = self.open(peer, &opening),
                #[cfg(feature = "tls")]
                Some(Event::Secure(mut stream)) => {
                    let step = stream.handshake();
                    let back = Command::Secured(link.id.key(), stream, step);
                    link.handle.post(back);
                }
                Some(Event::Http(request)) => self.http(link, &request),
                Some(Event::Writable) => {
                    link.tell_writable();
                    self.writable(peer, &mut session);
                }
                Some(Event::Close { code, text, cause }) => drop(link.close(code, text, cause)),
                Some(Event::Eof) => link.handle.finished(link.id.key()),
                Some(Event::Closed(reason)) => {
                    #[cfg(feature = "deflate")]
                    link.end_compression();
                    self.close(peer, session.take(), &reason);
                }
                Some(Event::Message(_) | Event::Connected(_)) | None => {}
            }
        }
        if link.inflow.settle(self.limit) {
            link.handle.post(Command::Resume(link.id.key()));
        }
        Ran::Done
    }

    /// Handles the messages in front, under one guard against panics, until too much of them was `inflated`.
    fn messages(
        &self,
        peer: &Peer,
        session: &mut Option<Box<dyn Any + Send>>,
        events: &mut VecDeque<Event>,
        inflated: &mut usize,
    ) -> Ran {
        let link = &peer.link;
        let (mut congested, mut corrupt) = (false, false);
        let outcome = guarded(|| {
            let mut session = live::<H>(session);
            while let Some(Event::Message(_)) = events.front() {
                if link.must_wait() {
                    congested = true;
                    return;
                }
                let Some(Event::Message(message)) = events.pop_front() else {
                    return;
                };
                let counted = Counted {
                    link,
                    bytes: message.len(),
                    limit: self.limit,
                };
                match &mut session {
                    // Past `inflate`, through which it would be moved once more.
                    Some(session) if !matches!(message, Message::Frame(_)) => {
                        self.handler.message(session, peer, message);
                    }
                    Some(session) => {
                        let Some(message) = link.inflate(message) else {
                            corrupt = true;
                            return;
                        };
                        *inflated += message.len();
                        self.handler.message(session, peer, message);
                        if *inflated >= RUN_INFLATED {
                            return;
                        }
                    }
                    None => {}
                }
                drop(counted);
            }
        });
        if outcome.is_none() {
            self.panicked(link, session);
        } else if corrupt {
            mute(session);
        }
        if congested { Ran::Congested } else { Ran::Done }
    }

    fn panicked(&self, link: &Arc<Link>, session: &mut Option<Box<dyn Any + Send>>) {
        panicked(link.id, "; closing with 1011");
        link.close(CloseCode::Error, "", CloseCause::Panic);
        mute(session);
    }

    fn open(&self, peer: &Peer, opening: &UpgradeRequest) -> Option<Box<dyn Any + Send>> {
        let link = &peer.link;
        let request = &opening.request;
        let decide = || {
            let accept = self.handler.open(request, peer)?;
            let head = accept_head(link, opening, &accept).map_err(Response::from);
            Ok((head, accept.session))
        };
        let accepted = guarded(decide).unwrap_or_else(|| {
            panicked(link.id, " in open");
            Err(StatusCode::INTERNAL_SERVER_ERROR.into())
        });
        match accepted {
            Ok((Ok(head), session)) => {
                link.handle.post(Command::Accept(link.id.key(), head));
                Some(Box::new(session))
            }
            Ok((Err(response), session)) => {
                self.respond(link, response, false);
                // What the handler says from now on goes nowhere.
                let cause = CloseCause::HandshakeTimeout;
                link.outbox().seal(CloseCode::Abnormal, "", cause);
                // What was accepted is told its end, though it never began.
                let reason = CloseReason {
                    code: CloseCode::Abnormal,
                    text: Utf8Bytes::default(),
                    initiator: Initiator::Local,
                    clean: false,
                    cause: CloseCause::HandshakeTimeout,
                    undelivered: 0,
                };
                self.close(peer, Some(Box::new(session)), &reason);
                None
            }
            Err(response) => {
                self.respond(link, response, false);
                None
            }
        }
    }

    fn http(&self, link: &Arc<Link>, request: &Request) {
        let response = guarded(|| self.handler.http(request)).unwrap_or_else(|| {
            panicked(link.id, " in http");
            StatusCode::INTERNAL_SERVER_ERROR.into()
        });
        self.respond(link, response, request.method() == Method::HEAD);
    }

    fn respond(&self, link: &Arc<Link>, response: Response, head_only: bool) {
        let mut status = response.status();
        let answer = if response.content().len() > MAX_BODY {
            log::error!("{}: the body of a response is over 1 GiB", link.id);
            status = StatusCode::INTERNAL_SERVER_ERROR;
            encode_response(&status.into(), head_only)
        } else {
            encode_response(&response, head_only)
        };
        link.handle
            .post(Command::Respond(link.id.key(), status, answer));
        // Its body may be of a type of the user's.
        if guarded(|| drop(response)).is_none() {
            panicked(link.id, " as a response was dropped");
        }
    }

    fn writable(&self, peer: &Peer, session: &mut Option<Box<dyn Any + Send>>) {
        let outcome = guarded(|| {
            if let Some(session) = live::<H>(session) {
                self.handler.writable(session, peer);
            }
        });
        if outcome.is_none() {
            self.panicked(&peer.link, session);
        }
    }

    fn close(&self, peer: &Peer, session: Option<Box<dyn Any + Send>>, reason: &CloseReason) {
        let session = session.and_then(|session| {
            let session = match session.downcast::<Muted>() {
                Ok(muted) => muted.0,
                Err(session) => session,
            };
            session.downcast::<H::Session>().ok()
        });
        // None: `open` refused, so there is nobody to tell.
        let Some(session) = session else { return };
        if guarded(|| self.handler.close(*session, peer, reason)).is_none() {
            panicked(peer.id(), " in close");
        }
    }
}

/// A peer may know how to make a handler panic.
fn panicked(id: PeerId, what: &str) {
    static PANICS: Throttle = Throttle::new();
    if let Some(more) = PANICS.pass() {
        log::error!("{id}: the handler panicked{what}{more}");
    }
}

/// The session of a connection that gets no more messages: its handler panicked, or what it sent was
/// corrupt. It is still told the end.
struct Muted(Box<dyn Any + Send>);

fn mute(session: &mut Option<Box<dyn Any + Send>>) {
    *session = session
        .take()
        .map(|session| Box::new(Muted(session)) as Box<dyn Any + Send>);
}

fn live<H: Handler>(session: &mut Option<Box<dyn Any + Send>>) -> Option<&mut H::Session> {
    session.as_mut().and_then(|session| session.downcast_mut())
}

/// Counts a message as handled when it goes, even if its handler panics.
struct Counted<'a> {
    link: &'a Arc<Link>,
    bytes: usize,
    limit: Load,
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        if self.link.inflow.handled(self.bytes, self.limit) {
            let key = self.link.id.key();
            self.link.handle.post(Command::Resume(key));
        }
    }
}

/// The 101, or why there can't be one.
fn accept_head<S>(
    link: &Link,
    opening: &UpgradeRequest,
    accept: &Accept<S>,
) -> Result<Vec<u8>, HttpError> {
    let subprotocol = match &accept.subprotocol {
        None => first_offered(&opening.request, &link.config().subprotocols),
        Some(name) => Some(choose_subprotocol(&opening.request, name).inspect_err(|_| {
            static UNOFFERED: Throttle = Throttle::new();
            if let Some(more) = UNOFFERED.pass() {
                log::error!("{}: subprotocol {name:?} was not offered{more}", link.id);
            }
        })?),
    };
    #[cfg(feature = "deflate")]
    let (compression, extensions) = agree_on_compression(link, opening).unzip();
    #[cfg(not(feature = "deflate"))]
    let extensions: Option<String> = None;
    if subprotocol.is_some() || extensions.is_some() {
        link.agree(Agreement {
            subprotocol: subprotocol.map(Into::into),
            #[cfg(feature = "deflate")]
            compression,
        });
    }
    // Enough without subprotocol and extensions, and no more than a link takes: if one were cut from this
    // memory later, it would leave a hole.
    let mut head = Vec::with_capacity(144);
    accept_response(
        &opening.upgrade,
        subprotocol,
        extensions.as_deref(),
        &accept.headers,
        &mut head,
    );
    Ok(head)
}

/// permessage-deflate, if we want it and the client offers it in a way we can meet; with the value of
/// the header that says so.
#[cfg(feature = "deflate")]
fn agree_on_compression(link: &Link, opening: &UpgradeRequest) -> Option<(Compression, String)> {
    let want = link.config().deflate.as_ref()?;
    let (agreed, answer) = deflate::answer(&opening.upgrade.offers, want)?;
    Some((Compression::new(agreed, link.handle.shared.clone()), answer))
}

impl<H: Handler> Engine<H> {
    fn run_mailbox(&self, peer: &Peer, handled: &mut usize) -> bool {
        let mut events = peer.link.take_inbox();
        let taken = events.len();
        let ran = self.run_events(peer, &mut events);
        *handled = taken - events.len();
        match ran {
            Ran::Done => {
                give_batch(events);
                peer.link.finish_run()
            }
            Ran::Congested | Ran::Paused => peer.link.park(events),
        }
    }
}

/// What a worker counts, and when.
pub(crate) struct Desk {
    workers: Arc<[WorkerCounters]>,
    n: usize,
    /// When its last run ended; the next begins then, unless it has paused meanwhile.
    ended: Option<Instant>,
}

impl<H: Handler> Work<Task> for Engine<H> {
    type Desk = Desk;

    fn begin(&self, n: usize) -> Desk {
        defer_wakes();
        Desk {
            workers: self.workers.clone(),
            n,
            ended: None,
        }
    }

    fn run(&self, desk: &mut Desk, task: &mut Task) -> bool {
        let counters = &desk.workers[desk.n];
        let began = desk.ended.unwrap_or_else(Instant::now);
        let epoch = counters.busy.epoch();
        counters.busy.begin(began.saturating_duration_since(epoch));
        let more = match task {
            Task::Conn(peer, since) => {
                if let Some(since) = since.take() {
                    counters
                        .waits
                        .record(began.saturating_duration_since(since));
                }
                let mut handled = 0;
                let more = self.run_mailbox(peer, &mut handled);
                counters.events.add(handled);
                more
            }
            Task::Run(runnable) => runnable.run(),
        };
        let ended = Instant::now();
        let took = ended.saturating_duration_since(began);
        counters.busy.end(took, &counters.runs);
        desk.ended = Some(ended);
        more
    }

    fn pause(&self, desk: &mut Desk) {
        wake_deferred();
        desk.ended = None;
    }

    fn keeps(&self) -> bool {
        keeps_spare()
    }

    fn rest(&self) {
        release_own_spare();
    }
}

/// Hands events to the workers.
pub(crate) struct ToWorkers(pub(crate) RunQueue<Task>);

impl Upstream for ToWorkers {
    type Run<'a> = NoRun;

    fn run<R>(&self, _: &Peer, _: impl FnOnce(&mut NoRun) -> R) -> Option<R> {
        None
    }

    fn is_inline(&self) -> bool {
        false
    }

    fn deliver(&self, peer: &Peer, events: &mut EventBatch) -> bool {
        peer.link.deliver(events)
    }

    fn schedule(&self, peer: Peer, since: Option<Instant>) {
        self.0.push(Task::Conn(peer, since));
    }
}

/// Runs handlers on the loop: `workers(0)`.
///
/// The mailbox is used only for what a congested peer must not have yet; as nobody but the loop
/// touches it then, the usual case is a plain call.
pub(crate) struct OnTheLoop<H>(pub(crate) Arc<Engine<H>>);

impl<H: Handler> Upstream for OnTheLoop<H> {
    type Run<'a> = InlineRun<'a, H>;

    fn run<R>(&self, peer: &Peer, body: impl FnOnce(&mut InlineRun<'_, H>) -> R) -> Option<R> {
        let engine = &*self.0;
        let _inline = Inline::run(peer.link.id);
        let mut session = peer.link.session();
        let mut corrupt = false;
        let result = guarded(|| {
            body(&mut InlineRun {
                engine,
                peer,
                session: live::<H>(&mut session),
                corrupt: &mut corrupt,
            })
        });
        if result.is_none() {
            engine.panicked(&peer.link, &mut session);
        } else if corrupt {
            mute(&mut session);
        }
        result
    }

    fn is_inline(&self) -> bool {
        true
    }

    fn deliver(&self, peer: &Peer, events: &mut EventBatch) -> bool {
        let link = &peer.link;
        if link.has_parked() {
            // Behind those that wait already.
            return link.deliver(events);
        }
        let _inline = Inline::run(link.id);
        if self.0.run_events(peer, events) == Ran::Done {
            return false;
        }
        let rest = link.pass_through_inbox(events);
        link.park(rest)
    }

    fn schedule(&self, peer: Peer, _: Option<Instant>) {
        // Not marked as inline: what is sent here asks for a flush like anything else.
        while self.0.run_mailbox(&peer, &mut 0) {}
    }
}

/// The messages of one connection, handled as they are read.
pub(crate) struct InlineRun<'a, H: Handler> {
    engine: &'a Engine<H>,
    peer: &'a Peer,
    session: Option<&'a mut H::Session>,
    /// A message could not be inflated, and none after it is looked at.
    corrupt: &'a mut bool,
}

impl<H: Handler> Run for InlineRun<'_, H> {
    #[inline(always)] // or the message is moved once more
    fn message(&mut self, message: &mut Message) -> usize {
        let Some(session) = &mut self.session else {
            return 0;
        };
        if matches!(message, Message::Frame(_)) {
            return self.compressed(message);
        }
        let message = std::mem::replace(message, NONE);
        self.engine.handler.message(session, self.peer, message);
        0
    }
}

/// What is left where a message was.
const NONE: Message = Message::Binary(Bytes::new());

impl<H: Handler> InlineRun<'_, H> {
    #[cold]
    fn compressed(&mut self, message: &mut Message) -> usize {
        let message = std::mem::replace(message, NONE);
        match (self.peer.link.inflate(message), &mut self.session) {
            (Some(message), Some(session)) => {
                let inflated = message.len();
                self.engine.handler.message(session, self.peer, message);
                inflated
            }
            _ => {
                *self.corrupt = true;
                self.session = None;
                0
            }
        }
    }
}
