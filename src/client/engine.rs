//! The threads of clients, and how their parts hang together.

use std::collections::VecDeque;
use std::fmt;
use std::iter;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, bounded};

use super::builder::Client;
use super::channel_feeder::{ChannelFeeder, Watched};
use super::dialer::Dialer;
use super::handle::ClientHandle;
use super::handler::{ClientEvent, ClientHandler};
use super::session::{Session, Sink};
use crate::config::{Config, NEVER};
use crate::error::{Error, Result};
use crate::id::PeerId;
use crate::link::{
    Command, Connected, Dial, Event, EventBatch, Inline, Link, Load, LoopHandle, RUN_INFLATED,
    Shared, defer_wakes, give_batch, keeps_spare, release_own_spare, wake_deferred,
};
use crate::message::{CloseCode, Message};
use crate::peer::Peer;
use crate::proto::Role;
use crate::reactor::{self, NotInline, Prepared, Upstream};
use crate::sync::lock;
use crate::worker::{Pool, RunQueue, Work};

/// Events that wait for the receiver of one client before its connection is slowed down.
const EVENTS: usize = 64;

/// What a worker may need to tell that a connection is open.
const GRACE: Duration = Duration::from_secs(1);

/// Threads for clients: event loops that own the connections, and workers that call the handlers. One
/// `Clients` serves thousands of clients: bots, load generators, gateways.
///
/// [`connect`](crate::connect()) and the methods of [`Client`] use one that is shared by the process,
/// with one loop and a worker per core, at least two; start your own to choose the number of threads, or
/// to be able to [shut it down](Self::shutdown).
///
/// Dropping it cuts off all its connections at once. If one of its loops fails, which is logged, all its
/// clients end; those that are connected without a `Clients` of their own get new threads then.
///
/// ```no_run
/// use framemill::{Client, Clients, Message, Peer};
/// use std::time::Duration;
///
/// // A thousand bots that answer whatever they are sent, on one loop and no workers.
/// let clients = Clients::start(1, 0)?;
/// for n in 0..1000 {
///     let client = Client::new(format!("ws://127.0.0.1:9001/?bot={n}"))?;
///     clients.open(client, |peer: &Peer, message: Message| peer.send(message))?;
/// }
/// std::thread::sleep(Duration::from_secs(60));
/// println!("{} are connected", clients.connections());
/// clients.shutdown(Duration::from_secs(5));
/// # framemill::Result::Ok(())
/// ```
pub struct Clients {
    pub(super) engine: Arc<Engine>,
    threads: Mutex<Option<Threads>>,
}

struct Threads {
    loops: Vec<JoinHandle<()>>,
    pool: Option<Pool>,
}

/// What all clients of a [`Clients`] share.
pub(super) struct Engine {
    pub(super) dialer: Arc<Dialer>,
    pub(super) feeder: Arc<ChannelFeeder>,
    shared: Arc<Shared>,
    loops: Vec<Arc<LoopHandle>>,
    /// References to a link that its loop and the running worker have.
    pub(super) own_references: usize,
}

impl Clients {
    /// Starts `loops` event loops (1 to 256) and `workers` worker threads (0 to 4,096). One loop is enough
    /// for thousands of connections; without workers the handlers run on the loops, which is fastest, but
    /// then they must not block.
    ///
    /// # Errors
    /// [`Error::Config`] for other numbers, [`Error::Io`] if a thread or a poll instance can't be created.
    pub fn start(loops: usize, workers: usize) -> Result<Self> {
        if !(1..=PeerId::MAX_LOOPS).contains(&loops) || workers > 4096 {
            let why = "loops must be 1 to 256, and workers 0 to 4,096";
            return Err(Error::Config(why.into()));
        }
        let config = Config {
            loops,
            workers,
            ..Config::default()
        };
        let shared = Arc::new(Shared::new(config));
        let prepared = Prepared::all(loops, &shared)?;
        let handles = reactor::handles(&prepared);
        let engine = Arc::new(Engine {
            dialer: Arc::new(Dialer::new(handles.clone())),
            feeder: Arc::new(ChannelFeeder::new()),
            shared,
            loops: handles,
            own_references: if workers == 0 { 1 } else { 2 },
        });
        let (pool, run_queue) = Pool::start_if_any(workers, &engine)?;
        if let Some(queue) = &run_queue {
            engine.feeder.feeds(queue.downgrade());
        }
        let no_listeners = iter::repeat_with(Vec::new);
        let ready = match run_queue {
            Some(queue) => reactor::ready_all(prepared, || ToWorkers(queue.clone()), no_listeners)?,
            None => reactor::ready_all(prepared, || OnTheLoop(engine.clone()), no_listeners)?,
        };
        let loops = reactor::spawn_all(ready, &engine.loops)?;
        Ok(Self {
            engine,
            threads: Mutex::new(Some(Threads { loops, pool })),
        })
    }

    /// Begins to connect and returns at once; the handler is told the outcome. Names are resolved on
    /// threads of their own. After a [`shutdown`](Self::shutdown) the handler is told [`Error::Closed`]
    /// before this returns.
    ///
    /// # Errors
    /// [`Error::Config`] for an invalid setting.
    pub fn open(&self, client: Client, handler: impl ClientHandler) -> Result<ClientHandle> {
        let sink = Sink::Calls(Box::new(handler));
        self.launch(client, sink, None)
    }

    /// Connects, waits until the opening handshake is through, and passes all later events to the returned channel,
    /// as [`Client::connect`] does.
    ///
    /// # Errors
    /// As for [`Client::connect`].
    pub fn connect(&self, client: Client) -> Result<(ClientHandle, Receiver<ClientEvent>)> {
        let (_, handle, events) = self.connect_peer(client)?;
        Ok((handle, events))
    }

    pub(super) fn connect_peer(
        &self,
        client: Client,
    ) -> Result<(Peer, ClientHandle, Receiver<ClientEvent>)> {
        let (sender, events) = bounded(EVENTS);
        let (ready, opened) = bounded(1);
        let timeout = client.config.handshake_timeout;
        let deadline = Instant::now().checked_add(timeout.saturating_add(GRACE));
        let handle = self.launch(client, Sink::channel(sender), Some(ready))?;
        let outcome = match deadline {
            Some(deadline) => opened.recv_deadline(deadline),
            None => opened.recv().map_err(Into::into),
        };
        match outcome {
            Ok(peer) => Ok((peer?, handle, events)),
            Err(RecvTimeoutError::Disconnected) => Err(Error::Closed),
            Err(RecvTimeoutError::Timeout) => {
                // A step of a TLS handshake may wait for the worker that we are.
                handle.close(CloseCode::Away, "");
                Err(Error::Timeout)
            }
        }
    }

    fn launch(
        &self,
        client: Client,
        sink: Sink,
        ready: Option<crossbeam_channel::Sender<Result<Peer>>>,
    ) -> Result<ClientHandle> {
        let plan = Arc::new(client.plan()?);
        let config = &plan.config;
        let patience = config
            .handshake_timeout
            .saturating_add(config.close_timeout);
        let engine = self.engine.clone();
        let session = Box::new(Session::new(plan, engine.clone(), sink, ready));
        let handle = ClientHandle {
            control: session.control.clone(),
            engine,
            patience,
        };
        self.engine.dialer.dial(session, Duration::ZERO);
        Ok(handle)
    }

    /// Connections that are open or opening.
    pub fn connections(&self) -> usize {
        self.engine.shared.connections.load(Ordering::Relaxed)
    }

    /// A loop has failed, and so the others end.
    pub(super) fn have_failed(&self) -> bool {
        self.engine.shared.has_failed()
    }

    /// Ends all clients in good order, and waits for the end: makes no more attempts, lets handlers deal with the
    /// messages that have arrived, sends the queued messages and then a close frame with 1001, and waits for the
    /// answers. After `deadline` the connections that are left are cut off. Clients that had no connection are told
    /// [`Error::Closed`].
    ///
    /// `true`: everything ended by itself, handlers included, and no connection was cut off. Must not be called by a
    /// handler, which would wait for itself.
    pub fn shutdown(&self, deadline: Duration) -> bool {
        let deadline = Instant::now() + deadline.min(NEVER);
        self.tell_to_stop(deadline);
        let threads = lock(&self.threads).take();
        threads.is_none_or(|threads| threads.join(&self.engine, deadline))
    }

    fn is_own_thread(&self) -> bool {
        let current = std::thread::current();
        // Those that resolve names and wait for receivers are not kept; those of others count too.
        let helps = |name: &str| {
            name.starts_with("framemill-feeder") || name.starts_with("framemill-dialer")
        };
        let threads = lock(&self.threads);
        current.name().is_some_and(helps)
            || threads.as_ref().is_some_and(|threads| {
                let loops = threads.loops.iter().map(|thread| thread.thread().id());
                let mut ids = loops.chain(threads.pool.iter().flat_map(Pool::threads));
                ids.any(|id| id == current.id())
            })
    }

    fn tell_to_stop(&self, deadline: Instant) {
        self.engine.dialer.stop();
        for handle in &self.engine.loops {
            handle.post(Command::Shutdown(deadline));
        }
    }
}

impl Threads {
    /// After all have been told to stop, by `deadline`: waits for that, and does what is left then. `true`
    /// if nothing was cut off and nobody is still busy.
    fn join(self, engine: &Engine, deadline: Instant) -> bool {
        self.loops.into_iter().for_each(|t| drop(t.join()));
        let late = deadline.max(Instant::now()) + Duration::from_millis(100);
        // The loops have ended, so nobody else runs these.
        let run_left = || {
            for peer in engine.feeder.join(late) {
                while engine.run_mailbox(&peer) {}
            }
        };
        engine.feeder.abandon();
        run_left();
        engine.dialer.join(late);
        let idle = self.pool.is_none_or(|pool| pool.join(late));
        // A worker may have found no room just before, and have set a connection aside since.
        run_left();
        idle && !engine.shared.has_cut_off() && !engine.shared.has_failed()
    }
}

impl Drop for Clients {
    fn drop(&mut self) {
        if !self.is_own_thread() {
            self.shutdown(Duration::ZERO);
            return;
        }
        // It would wait for itself; but somebody has to, and to do what nobody else does in the end.
        self.tell_to_stop(Instant::now());
        let Some(threads) = lock(&self.threads).take() else {
            return;
        };
        let engine = self.engine.clone();
        let join = move || threads.join(&engine, Instant::now());
        let thread = std::thread::Builder::new().name("framemill-end".into());
        if thread.spawn(join).is_err() {
            self.engine.feeder.abandon();
        }
    }
}

impl fmt::Debug for Clients {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Clients({} connections)", self.connections())
    }
}

// ---- running events ----

/// What workers do.
pub(super) enum Job {
    /// Run the mailbox of a connection.
    Run(Peer),
    /// Tell that a connection could not be had.
    Failed(Mutex<Option<(Box<Dial>, Error)>>),
}

/// Why a run of a mailbox ended.
enum Ran {
    /// All events are dealt with.
    Done,
    /// There was no room for the one that is now the first.
    NoRoom(Watched),
    /// It has taken long enough; the rest comes when others have had their turn.
    Paused,
}

/// Deals with events in order, and takes them out.
fn run_events(peer: &Peer, events: &mut VecDeque<Event>) -> Ran {
    let link = &peer.link;
    let mut slot = link.session();
    let mut session: Option<Box<Session>> = slot.take().and_then(|s| s.downcast().ok());
    let ran = run_for(&mut session, peer, events);
    if let Some(session) = session {
        session.leave_if_unheard(peer);
        *slot = Some(session);
    }
    drop(slot);
    if link.inflow.settle(Load::inbound_limit(link.config())) {
        resume(link);
    }
    ran
}

/// The same; the session is there from the event on that tells of the connection until the one that tells its end.
fn run_for(session: &mut Option<Box<Session>>, peer: &Peer, events: &mut VecDeque<Event>) -> Ran {
    let link = &peer.link;
    let mut inflated = 0;
    loop {
        if inflated >= RUN_INFLATED && !events.is_empty() {
            return Ran::Paused;
        }
        if session.as_mut().is_some_and(|s| !s.relieve()) {
            return no_room(session.as_deref(), peer);
        }
        let Some(event) = events.pop_front() else {
            return Ran::Done;
        };
        match event {
            Event::Connected(connected) => *session = begin(peer, *connected),
            Event::Message(message) => match run_message(session.as_deref_mut(), peer, message) {
                Ok(more) => inflated += more,
                Err(message) => {
                    events.push_front(Event::Message(message));
                    return no_room(session.as_deref(), peer);
                }
            },
            Event::Writable => {
                link.tell_writable();
                if let Some(session) = session {
                    session.writable(peer);
                }
            }
            Event::Close { code, text, cause } => drop(link.close(code, text, cause)),
            Event::Eof => link.handle.finished(link.id.key()),
            Event::Closed(reason) => {
                #[cfg(feature = "deflate")]
                link.end_compression();
                if let Some(session) = session.take() {
                    session.closed(peer, *reason);
                }
            }
            // A server's.
            Event::Open(_) | Event::Http(_) => {}
            #[cfg(feature = "tls")]
            Event::Secure(mut stream) => {
                let step = stream.handshake();
                let back = Command::Secured(link.id.key(), stream, step);
                link.handle.post(back);
            }
        }
    }
}

/// A message; gives how many bytes it was inflated to, if it had to be. It comes back if there is no room for
/// it.
fn run_message(
    session: Option<&mut Session>,
    peer: &Peer,
    message: Message,
) -> std::result::Result<usize, Message> {
    let link = &peer.link;
    let bytes = message.len();
    let is_compressed = matches!(message, Message::Frame(_));
    let mut inflated = 0;
    match (link.inflate(message), session) {
        (Some(message), session) => {
            if is_compressed {
                inflated = message.len();
            }
            if let Some(session) = session {
                match session.message(peer, message) {
                    // It can't be inflated twice.
                    Err(message) if is_compressed => session.keep(message),
                    told => told?,
                }
            }
        }
        (None, Some(session)) => session.mute(),
        (None, None) => {}
    }
    let limit = Load::inbound_limit(link.config());
    if link.inflow.handled(bytes, limit) {
        resume(link);
    }
    Ok(inflated)
}

/// The run ends here: there is no room for what is to be told next.
fn no_room(session: Option<&Session>, peer: &Peer) -> Ran {
    match session.and_then(|session| session.waits_for(peer)) {
        Some(waits) => Ran::NoRoom(waits),
        None => Ran::Done,
    }
}

/// The handler has caught up: the loop may read again.
fn resume(link: &Link) {
    link.handle.post(Command::Resume(link.id.key()));
}

impl Engine {
    /// Parks what there was no room for.
    fn set_aside(&self, peer: &Peer, rest: EventBatch, waits: Watched) {
        peer.link.set_aside(rest);
        // It may have run only because the peer is no longer congested.
        if waits.begins() {
            self.feeder.watch(waits);
        }
    }

    fn run_mailbox(&self, peer: &Peer) -> bool {
        let mut events = peer.link.take_inbox();
        match run_events(peer, &mut events) {
            Ran::Done => {
                give_batch(events);
                peer.link.finish_run()
            }
            Ran::NoRoom(waits) => {
                self.set_aside(peer, events, waits);
                false
            }
            Ran::Paused => {
                peer.link.set_aside(events);
                peer.link.unpark()
            }
        }
    }
}

/// The connection is open.
fn begin(peer: &Peer, connected: Connected) -> Option<Box<Session>> {
    let mut session: Box<Session> = connected.session.downcast().ok()?;
    session.opened(peer, connected.headers);
    Some(session)
}

fn fail(dial: Box<Dial>, error: Error) {
    if let Ok(session) = dial.session.downcast::<Session>() {
        session.failed(error);
    }
}

impl Work<Job> for Engine {
    type State = ();

    fn begin(&self, _: usize) {
        defer_wakes();
    }

    fn run(&self, (): &mut (), job: &mut Job) -> bool {
        match job {
            Job::Run(peer) => self.run_mailbox(peer),
            Job::Failed(failed) => {
                if let Some((dial, error)) = lock(failed).take() {
                    fail(dial, error);
                }
                false
            }
        }
    }

    fn pause(&self, (): &mut ()) {
        wake_deferred();
    }

    fn keeps(&self) -> bool {
        keeps_spare()
    }

    fn rest(&self) {
        release_own_spare();
    }
}

/// Hands events to the workers, but for what somebody waits for in `connect`: that may be the only one.
struct ToWorkers(RunQueue<Job>);

impl ToWorkers {
    /// Whether it is the opening of a connection that somebody waits for.
    fn is_awaited(event: &Event) -> bool {
        match event {
            Event::Connected(connected) => {
                let session = connected.session.downcast_ref();
                session.is_some_and(Session::is_awaited)
            }
            _ => false,
        }
    }
}

impl Upstream for ToWorkers {
    const ROLE: Role = Role::Client;
    type Inline = NotInline;

    fn is_inline(&self) -> bool {
        false
    }

    fn deliver(&self, peer: &Peer, events: &mut EventBatch) -> bool {
        if events.front().is_some_and(Self::is_awaited) {
            // It is the first of all events, so no worker has the slot.
            if let Some(Event::Connected(connected)) = events.pop_front() {
                let session = begin(peer, *connected);
                *peer.link.session() = session.map(|session| session as _);
            }
        }
        !events.is_empty() && peer.link.deliver(events)
    }

    fn schedule(&self, peer: Peer, _: Option<Instant>) {
        self.0.push(Job::Run(peer));
    }

    fn failed(&self, dial: Box<Dial>, error: Error) {
        if dial.session.downcast_ref().is_some_and(Session::is_awaited) {
            return fail(dial, error);
        }
        self.0.push(Job::Failed(Mutex::new(Some((dial, error)))));
    }
}

/// Runs handlers on the loop: no workers.
///
/// The mailbox is used only while a receiver does not receive; as nobody but the loop touches it then,
/// the usual case is a plain call.
struct OnTheLoop(Arc<Engine>);

impl Upstream for OnTheLoop {
    const ROLE: Role = Role::Client;
    type Inline = NotInline;

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
        match run_events(peer, events) {
            Ran::Done => false,
            Ran::NoRoom(waits) => {
                let rest = link.pass_through_inbox(events);
                self.0.set_aside(peer, rest, waits);
                false
            }
            Ran::Paused => {
                let rest = link.pass_through_inbox(events);
                link.set_aside(rest);
                link.unpark()
            }
        }
    }

    fn schedule(&self, peer: Peer, _: Option<Instant>) {
        // Not marked as inline: what is sent here asks for a flush like anything else.
        while self.0.run_mailbox(&peer) {}
        // Reading has waited for this.
        resume(&peer.link);
    }

    fn failed(&self, dial: Box<Dial>, error: Error) {
        fail(dial, error);
    }
}
