//! The running server, seen from anywhere.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::drain::{Drain, Hurry};
use super::presence::Presence;
use crate::backplane::BackplaneState;
use crate::config::{Compress, NEVER};
#[cfg(feature = "tls")]
use crate::error::{Error, Result};
use crate::http::Response;
use crate::hub::{Services, Timer};
use crate::link::{Command, LoopHandle, Shared, SharedFrame};
use crate::message::{CloseCode, LatestKey, Message};
use crate::metrics::{BackplaneMetrics, Metrics, WorkerCounters};
use crate::net::LocalAddr;
#[cfg(feature = "tls")]
use crate::net::Tls;
#[cfg(unix)]
use crate::net::notify;
use crate::proto::is_sendable;
use crate::sync::lock;
use crate::worker::Pool;

/// A handle to a server: cheap to clone, and usable from any thread. Dropping it changes nothing; the
/// server runs until [`shutdown`](Self::shutdown), [`begin_shutdown`](Self::begin_shutdown) or
/// [`drain`](Self::drain).
///
/// ```no_run
/// use framemill::{CloseCode, Drain, Message, Peer, Server};
/// use std::time::Duration;
///
/// fn main() -> framemill::Result<()> {
///     let handle = Server::bind("127.0.0.1:9001")?.start(|peer: &Peer, message: Message| {
///         peer.subscribe("clock");
///         peer.send(message)
///     })?;
///
///     let (clock, mut seconds) = (handle.clone(), 0);
///     let timer = handle.every(Duration::from_secs(1), move || {
///         seconds += 1;
///         clock.publish("clock", format!("up for {seconds} s")); // on a worker
///     });
///     let all = handle.clone();
///     handle.after(Duration::from_secs(3600), move || {
///         all.broadcast("this server restarts in a few minutes"); // to every connection
///     });
///
///     std::io::stdin().read_line(&mut String::new())?; // until somebody presses Enter
///     timer.cancel();
///     // Where no others take over, end sooner: `handle.shutdown(Duration::from_secs(5))`.
///     let clean = handle.drain(Drain {
///         code: CloseCode::Restart,          // come back
///         spread: Duration::from_secs(45),   // after the notice, which is 5 s by default
///         deadline: Duration::from_secs(60), // from now on
///         ..Drain::default()
///     });
///     println!("{}", if clean { "all have left" } else { "not all had left in time" });
///     Ok(())
/// }
/// ```
#[derive(Clone, Debug)]
pub struct ServerHandle {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    addrs: Mutex<Vec<LocalAddr>>,
    /// For rooms and timers.
    services: Arc<Services>,
    running: OnceLock<Running>,
    /// Held by the first thread that waits for the end; others wait for the lock.
    state: Mutex<State>,
    /// Held by the thread that called [`Server::run`](crate::Server::run) for as long as it is a loop.
    here: Mutex<()>,
    /// The latest deadline that was given for the end.
    deadline: Mutex<Option<Instant>>,
    /// The end has begun.
    draining: AtomicBool,
    hurry: Hurry,
    /// systemd is to be told.
    notifies: AtomicBool,
}

#[derive(Debug)]
enum State {
    NotStarted,
    Running(Threads),
    /// Whether it ended in good order.
    Ended(bool),
}

/// How to reach the loops.
#[derive(Debug)]
pub(super) struct Running {
    pub(super) shared: Arc<Shared>,
    pub(super) loops: Vec<Arc<LoopHandle>>,
    pub(super) workers: Arc<[WorkerCounters]>,
    pub(super) started: Instant,
}

#[derive(Debug)]
pub(super) struct Threads {
    pub(super) loops: Vec<JoinHandle<()>>,
    /// The first loop is the thread that called [`Server::run`](crate::Server::run), which waits for the end.
    pub(super) here: bool,
    pub(super) pool: Option<Pool>,
}

/// How much longer handlers get that are still busy when everything else has ended.
const GRACE: Duration = Duration::from_millis(100);

impl ServerHandle {
    pub(super) fn new() -> Self {
        Self {
            inner: Arc::new(Inner {
                addrs: Mutex::default(),
                services: Services::new(),
                running: OnceLock::new(),
                state: Mutex::new(State::NotStarted),
                here: Mutex::default(),
                deadline: Mutex::new(None),
                draining: AtomicBool::new(false),
                hurry: Hurry::default(),
                notifies: AtomicBool::new(false),
            }),
        }
    }

    pub(super) fn add_addrs(&self, more: Vec<LocalAddr>) {
        lock(&self.inner.addrs).extend(more);
    }

    pub(super) fn services(&self) -> &Arc<Services> {
        &self.inner.services
    }

    /// The loops can be reached, though they may not run yet.
    pub(super) fn reachable(&self, running: Running) {
        // Set once: a `Server` is consumed by starting it.
        let _ = self.inner.running.set(running);
    }

    /// `None`: it has not been started, or has ended.
    fn running(&self) -> Option<&Running> {
        let running = self.inner.running.get();
        running.filter(|running| !running.shared.has_ended())
    }

    /// The calling thread is about to be a loop; while it has this, others wait for its end.
    pub(super) fn runs_here(&self) -> MutexGuard<'_, ()> {
        lock(&self.inner.here)
    }

    pub(super) fn started(&self, threads: Threads) {
        *lock(&self.inner.state) = State::Running(threads);
        // Somebody may have been faster.
        let deadline = *lock(&self.inner.deadline);
        if let Some(deadline) = deadline {
            self.tell_loops(deadline);
            self.see_to_the_end();
        }
    }

    /// It could not be started after all, or its handler panicked meanwhile. `backplane`: that had begun.
    pub(super) fn failed(&self, backplane: bool) {
        let deadline = Instant::now() + GRACE;
        let services = &self.inner.services;
        services.stop_ticker();
        services.join_ticker(deadline);
        services.end();
        if let Some(running) = self.inner.running.get() {
            running.shared.end();
            if let Some(reached) = running.shared.backplane.as_ref().filter(|_| backplane) {
                reached.stop(deadline);
            }
        }
    }

    /// The address of the first TCP listener: with port 0, this is how to find the port.
    pub fn local_addr(&self) -> Option<SocketAddr> {
        lock(&self.inner.addrs).iter().find_map(|addr| match addr {
            LocalAddr::Ip(addr) => Some(*addr),
            LocalAddr::Unix(_) => None,
        })
    }

    /// All addresses that are listened on, in the order they were bound, as text that
    /// [`Server::bind`](crate::Server::bind) would take. A Unix socket without a path, which can only be one that
    /// was open already, is `unix:(unnamed)`.
    pub fn local_addrs(&self) -> Vec<String> {
        let addrs = lock(&self.inner.addrs);
        addrs.iter().map(ToString::to_string).collect()
    }

    /// Connections that are open or opening.
    pub fn connections(&self) -> usize {
        let running = self.inner.running.get();
        running.map_or(0, |r| r.shared.connections.load(Ordering::Relaxed))
    }

    /// What the server has done so far, and its state now. This reads counters that the server's threads keep
    /// anyway: it takes a few microseconds per thread and delays none of them. Empty before the server is started.
    pub fn metrics(&self) -> Metrics {
        let Some(running) = self.inner.running.get() else {
            return Metrics::default();
        };
        let loops = running.loops.iter().map(|handle| handle.metrics());
        let workers = running.workers.iter().map(WorkerCounters::read);
        let mut metrics = Metrics::of(loops.collect(), workers.collect());
        metrics.uptime = running.started.elapsed();
        metrics.connections = self.connections() as u64;
        metrics.run_queue = self.inner.services.run_queue() as u64;
        metrics.ticks = self.inner.services.ticks.read();
        let backplane = running.shared.backplane.as_ref();
        metrics.backplane = backplane.map(|backplane| {
            let state = backplane.state();
            BackplaneMetrics {
                connected: state.connected,
                failures: state.failures,
                published: state.published,
                received: state.received,
                fetched: state.fetched,
                queued: state.queued as u64,
                lost: state.lost,
            }
        });
        metrics
    }

    /// Sends a text or binary message to every open connection, encoding it once (and compressing it
    /// once for each window size that was agreed on). Each connection's own queue limit and
    /// [`Overflow`](crate::Overflow) apply. A connection whose [`open`](crate::Handler::open) has not returned
    /// yet gets it once it is accepted.
    ///
    /// Waits while 256 messages to many are on their way to a loop, unless it is called on a loop (a handler with
    /// `workers(0)`). `false`: it is not a text or binary message, or the server is not running (not started
    /// yet, or ended).
    pub fn broadcast(&self, message: impl Into<Message>) -> bool {
        self.broadcast_with(message, Compress::Auto)
    }

    /// The same as [`broadcast`](Self::broadcast), with a choice of whether to compress this one message.
    pub fn broadcast_with(&self, message: impl Into<Message>, compress: Compress) -> bool {
        let Some(running) = self.running() else {
            return false;
        };
        let Some(frame) = SharedFrame::encode(&message.into(), &running.shared, compress) else {
            return false;
        };
        // Before the loops run, nobody would take what is put in.
        if running.shared.connections.load(Ordering::Relaxed) > 0 {
            let frame = Arc::new(frame);
            for handle in &running.loops {
                handle.broadcast(frame.clone());
            }
        }
        true
    }

    /// Calls `f` once in every `period` (of at least 100 µs), from one period from now until the server
    /// ends or the timer is [cancelled](Timer::cancel). The times are fixed: a late call does not delay the next.
    ///
    /// `f` runs on a worker, so it may block. It never runs twice at once: a call that is due while an earlier one
    /// waits or runs is skipped. If `f` panics, that was the last call. `f` must not call
    /// [`shutdown`](Self::shutdown) or [`drain`](Self::drain), which would wait for it.
    ///
    /// With `workers(0)` `f` runs on the one thread of all timers, and delays the others. Timers that are set before
    /// the server is started fire only after it has been.
    pub fn every(&self, period: Duration, f: impl FnMut() + Send + 'static) -> Timer {
        self.inner.services.every(period, f)
    }

    /// Calls `f` once, after `delay`, unless the server ends before. Everything else is as with
    /// [`every`](Self::every).
    pub fn after(&self, delay: Duration, f: impl FnOnce() + Send + 'static) -> Timer {
        self.inner.services.after(delay, f)
    }

    /// Sends a text or binary message to every connection that [subscribes](crate::Peer::subscribe) to
    /// `topic`. Publishing to a topic without subscribers is fine and reaches nobody. Whether the message
    /// is compressed is set by topic: [`Server::compress`](crate::Server::compress).
    ///
    /// It waits when [`broadcast`](Self::broadcast) does. It returns `false` when `broadcast` does, and when
    /// [`Peer::publish`](crate::Peer::publish) does for a topic with history. `Peer::publish` leaves out the sender.
    pub fn publish(&self, topic: &str, message: impl Into<Message>) -> bool {
        self.publish_to(topic, &message.into(), None)
    }

    /// Publishes a message of which only the latest matters: a subscriber that does not keep up gets only the
    /// newest for each key of the topic, as with [`Peer::send_latest`](crate::Peer::send_latest). A subscriber that
    /// keeps up gets all of them. For topics with history see
    /// [`Peer::publish_latest`](crate::Peer::publish_latest).
    pub fn publish_latest(
        &self,
        topic: &str,
        key: impl Into<LatestKey>,
        message: impl Into<Message>,
    ) -> bool {
        self.publish_to(topic, &message.into(), Some(key.into()))
    }

    fn publish_to(&self, topic: &str, message: &Message, latest: Option<LatestKey>) -> bool {
        let running = self.running();
        running.is_some_and(|r| r.shared.publish(topic, message, None, latest))
    }

    /// Connections of this server that subscribe to `topic` now.
    pub fn subscribers(&self, topic: &str) -> usize {
        let running = self.inner.running.get();
        running.map_or(0, |r| r.shared.topics.subscribers(topic))
    }

    /// Enters a name in a topic, for others to [see](Self::who) on all nodes, until the returned value is dropped.
    /// It is up to you who may use which name, and whether a name may be entered twice. Names are independent of
    /// subscriptions. `None`: the server is not running.
    ///
    /// Other nodes see a name a moment later. When a node dies, its names are seen for another 10 s.
    ///
    /// ```no_run
    /// use framemill::{Accept, Handler, Message, Peer, Presence, Request, Response, Server, ServerHandle};
    ///
    /// /// `who` is answered with the names of all who are here, on all nodes.
    /// struct Lobby {
    ///     server: ServerHandle,
    /// }
    ///
    /// impl Handler for Lobby {
    ///     /// In the session, so the name goes when the connection does.
    ///     type Session = Option<Presence>;
    ///
    ///     fn open(&self, request: &Request, _: &Peer) -> Result<Accept<Option<Presence>>, Response> {
    ///         match request.query_param("name") {
    ///             Some(name) => Ok(Accept::new(self.server.enter("lobby", &name))),
    ///             None => Err(Response::forbidden()),
    ///         }
    ///     }
    ///
    ///     fn message(&self, _: &mut Option<Presence>, peer: &Peer, message: Message) {
    ///         if message.to_text().is_ok_and(|text| text == "who") {
    ///             peer.send(self.server.who("lobby").join(", ")).ok(); // may block: handlers run on workers
    ///         }
    ///     }
    /// }
    ///
    /// fn main() -> framemill::Result<()> {
    ///     let server = Server::bind("127.0.0.1:9001")?; // … and `.backplane(Redis::new(url)?)` for several nodes
    ///     let lobby = Lobby { server: server.handle() };
    ///     server.run(lobby)
    /// }
    /// ```
    pub fn enter(&self, topic: &str, name: &str) -> Option<Presence> {
        let running = self.running()?;
        Some(Presence::begin(running.shared.clone(), topic, name))
    }

    /// The names in a topic, on all nodes, each once, sorted; while Redis can't be reached, only those of
    /// this node. Names are [entered](Self::enter) by `enter`. With `Redis` this asks Redis, so it blocks, for at
    /// most 3 s (and while the system looks up the name of the Redis server, if its URL has one): don't call it in a
    /// handler with `workers(0)`.
    pub fn who(&self, topic: &str) -> Vec<String> {
        let Some(running) = self.inner.running.get() else {
            return Vec::new();
        };
        let shared = &running.shared;
        let everywhere = shared.backplane.as_ref().and_then(|b| b.who(topic));
        everywhere.unwrap_or_else(|| shared.presences.of(topic))
    }

    /// How the [backplane](crate::Server::backplane) is doing. With [`Local`](crate::Local), the default, everything
    /// is zero.
    pub fn backplane_state(&self) -> BackplaneState {
        let running = self.inner.running.get();
        let backplane = running.and_then(|r| r.shared.backplane.as_ref());
        backplane.map_or_else(BackplaneState::default, |backplane| backplane.state())
    }

    /// Uses another certificate and key for new connections, after a renewal for instance. Open
    /// connections keep the old ones.
    ///
    /// # Errors
    /// [`Error::Config`](crate::Error::Config) if the server was started without
    /// [`tls`](crate::Server::tls), or is not running. Errors in the files are reported earlier, when a
    /// [`Tls`](crate::Tls) is made of them.
    #[cfg(feature = "tls")]
    pub fn reload_tls(&self, tls: Tls) -> Result<()> {
        let Some(running) = self.running() else {
            return Err(Error::Config("this server is not running".into()));
        };
        match running.shared.reload_tls(tls) {
            true => Ok(()),
            false => Err(Error::Config("this server does not speak TLS".into())),
        }
    }

    /// Ends the server in good order, and waits for the end: stops listening, lets handlers deal with the messages
    /// that have arrived, sends to every connection the messages in its queue and then a close frame with 1001, and
    /// waits for the answers. After `deadline` the connections that are left are cut off; their
    /// [`CloseReason`](crate::CloseReason) says how much was not delivered.
    ///
    /// `true`: everything ended by itself, handlers included, and no connection was cut off. A handler that still
    /// blocks then is left behind on its thread. Where the server has ended already, this tells how; where it is
    /// about to, a later deadline changes nothing.
    ///
    /// Must not be called by a handler, a room or a timer, which would wait for itself: call it on a thread of
    /// your own, or call [`begin_shutdown`](Self::begin_shutdown). On a loop (a handler with `workers(0)`) it begins
    /// the end, waits for nothing, returns `false`, and logs an error.
    pub fn shutdown(&self, deadline: Duration) -> bool {
        self.end_by(Instant::now() + deadline.min(NEVER));
        self.end()
    }

    /// The same as [`shutdown`](Self::shutdown), but does not wait, so anybody may call it: a handler, a room or a
    /// timer too. [`Server::run`](crate::Server::run) and [`wait`](Self::wait) return when the server has ended. How
    /// it has, `shutdown` tells afterwards.
    pub fn begin_shutdown(&self, deadline: Duration) {
        self.end_by(Instant::now() + deadline.min(NEVER));
        self.see_to_the_end();
    }

    fn end_by(&self, deadline: Instant) {
        self.begin_draining();
        // First, so that no drain sets its deadline, or tells the loops, behind this.
        let again = self.inner.hurry.hurry();
        let mut known = lock(&self.inner.deadline);
        if again && known.is_some_and(|known| known <= deadline) {
            // Who asks again and again would put the end off for ever.
            return;
        }
        *known = Some(deadline);
        self.tell_loops(deadline);
    }

    /// When the loops have ended, there is more to do. Unless somebody waits for that, a thread does.
    fn see_to_the_end(&self) {
        let somebody_waits = match self.inner.state.try_lock() {
            Ok(state) => match &*state {
                State::Running(threads) => threads.here,
                State::NotStarted | State::Ended(_) => true,
            },
            Err(_) => true,
        };
        if somebody_waits {
            return;
        }
        let server = self.clone();
        let thread = thread::Builder::new().name("framemill-end".into());
        if let Err(error) = thread.spawn(move || server.end()) {
            log::error!("no thread for the end of the server: {error}");
        }
    }

    /// Takes the server out of service while others take over, and waits for its end:
    ///
    /// 1. For [`Drain::notice`], connections are still accepted, but [`is_draining`](Self::is_draining) is true and
    ///    [`health`](Self::health) says 503.
    /// 2. The server stops listening, and closes connections as [`shutdown`](Self::shutdown) does, but in batches,
    ///    at random, over [`Drain::spread`], with [`Drain::code`].
    /// 3. At [`Drain::deadline`], counted from the call, the connections that are left are cut off.
    ///
    /// `shutdown`, called on another thread meanwhile, cuts the drain short. The result is that of `shutdown`. Like
    /// `shutdown`, `drain` must not be called by a handler, a room or a timer.
    pub fn drain(&self, drain: Drain) -> bool {
        let deadline = Instant::now() + drain.deadline.min(NEVER);
        self.begin_draining();
        let code = match drain.code {
            code if is_sendable(code) => code,
            _ => CloseCode::Away,
        };
        let spread = drain.spread;
        self.inner.hurry.wait(drain.notice.min(drain.deadline), || {
            *lock(&self.inner.deadline) = Some(deadline);
            for handle in self.inner.running.get().iter().flat_map(|r| &r.loops) {
                handle.post(Command::Drain {
                    code,
                    spread,
                    deadline,
                });
            }
        });
        self.end()
    }

    fn begin_draining(&self) {
        let first = !self.inner.draining.swap(true, Ordering::SeqCst);
        #[cfg(unix)]
        if first && self.inner.notifies.load(Ordering::SeqCst) {
            notify("STOPPING=1");
        }
        #[cfg(not(unix))]
        let _ = first;
    }

    /// It is up: tells systemd so, and later that it ends.
    pub(super) fn notify_systemd(&self) {
        self.inner.notifies.store(true, Ordering::SeqCst);
        #[cfg(unix)]
        {
            notify("READY=1");
            if self.inner.draining.load(Ordering::SeqCst) {
                // Somebody was so fast that it was not told.
                notify("STOPPING=1");
            }
        }
    }

    /// Whether the server is being [drained](Self::drain) or shut down, or was; or has to end because one of its
    /// loops has failed.
    pub fn is_draining(&self) -> bool {
        self.inner.draining.load(Ordering::SeqCst) || self.has_failed()
    }

    /// The first loop, which ran here, has panicked as it went. The others were told to end before.
    pub(super) fn failed_here(&self) {
        if let Some(running) = self.inner.running.get() {
            running.shared.note_failure();
        }
    }

    /// One of the loops has failed, and so the others end.
    pub(super) fn has_failed(&self) -> bool {
        let running = self.inner.running.get();
        running.is_some_and(|running| running.shared.has_failed())
    }

    /// The answer to the health check of a load balancer, for [`Handler::http`](crate::Handler::http):
    /// 200, or 503 once the server is [draining](Self::is_draining).
    pub fn health(&self) -> Response {
        match self.is_draining() {
            false => Response::ok(),
            true => Response::unavailable(),
        }
    }

    /// Waits until the server has ended because somebody asked for it ([`shutdown`](Self::shutdown),
    /// [`begin_shutdown`](Self::begin_shutdown), [`drain`](Self::drain),
    /// [`Server::shutdown_on`](crate::Server::shutdown_on)), or because one of its loops has failed, which is logged:
    /// then all loops end as with a shutdown within the [`close_timeout`](crate::Server::close_timeout). Returns at
    /// once if it is not running, or if this thread is one of its loops.
    pub fn wait(&self) {
        self.end();
    }

    fn tell_loops(&self, deadline: Instant) {
        for handle in self.inner.running.get().iter().flat_map(|r| &r.loops) {
            handle.post(Command::Shutdown(deadline));
        }
    }

    fn end(&self) -> bool {
        let running = self.inner.running.get();
        if running.is_some_and(|r| r.loops.iter().any(|handle| handle.is_this_thread())) {
            log::error!("a loop can't wait for its own end");
            return false;
        }
        let mut state = lock(&self.inner.state);
        let Threads { loops, pool, .. } = match std::mem::replace(&mut *state, State::NotStarted) {
            State::Running(threads) => threads,
            other => {
                let verdict = !matches!(other, State::Ended(false));
                *state = other;
                return verdict;
            }
        };
        let mut sound = true;
        drop(lock(&self.inner.here));
        for thread in loops {
            sound &= thread.join().is_ok();
        }
        let running = self.inner.running.get();
        let cut_off = running.is_some_and(|r| r.shared.has_cut_off() || r.shared.has_failed());
        let services = &self.inner.services;
        services.stop_ticker();
        let deadline = (*lock(&self.inner.deadline)).unwrap_or_else(Instant::now);
        let deadline = deadline.max(Instant::now()) + GRACE;
        // The loops held the run queue open; the workers end once it is empty.
        let idle = pool.is_none_or(|pool| pool.join(deadline)) & services.join_ticker(deadline);
        services.end();
        if let Some(running) = self.inner.running.get() {
            // After the rooms, whose last words are for other nodes.
            running.shared.end();
            if let Some(backplane) = &running.shared.backplane {
                backplane.stop(deadline);
            }
        }
        let verdict = sound && idle && !cut_off;
        *state = State::Ended(verdict);
        verdict
    }
}
