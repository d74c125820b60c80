//! From the settings to a server that runs.

use std::io;
#[cfg(unix)]
use std::os::fd::OwnedFd;
use std::sync::Arc;
#[cfg(unix)]
use std::time::Duration;
use std::time::Instant;

use crossbeam_channel::{Receiver, bounded};

use super::builder::Server;
use super::check::check;
use super::engine::Engine;
use super::events::{Event, ToChannel};
use super::handle::{Running, ServerHandle, Threads};
use super::handler::{Accept, Handler};
use super::inline::OnTheLoop;
use super::workers::ToWorkers;
use crate::backplane::Node;
use crate::error::{Error, Result};
use crate::guard::guarded;
use crate::http::{Request, Response};
use crate::hub;
use crate::link::{Shared, may_be_a_loop};
use crate::net::Listener;
#[cfg(unix)]
use crate::reactor::StopSource;
use crate::reactor::{self, Prepared, ReadyLoop};
use crate::worker::Pool;

/// Events that wait for the receiver of [`Server::events`] before the senders are slowed down.
const EVENTS: usize = 1024;

/// Running it.
impl Server {
    /// Runs until somebody ends it: [`ServerHandle::shutdown`] or [`drain`](ServerHandle::drain) on another thread,
    /// [`ServerHandle::begin_shutdown`] on any, or what [`shutdown_on`](Self::shutdown_on) was given. `Ok` even if
    /// connections had to be cut off; `shutdown` tells that afterwards.
    ///
    /// The calling thread is the first of the loops: with one loop and no workers no other thread is needed (but for
    /// timers, rooms with a clock, and Redis). In a process of only one thread the kernel has less to do for each
    /// read and write, so an echo costs 1 to 3 % less there. (On a thread that belongs to a server or to clients,
    /// the loop has a thread of its own all the same.)
    ///
    /// # Errors
    /// As for [`start`](Self::start); and [`Error::Io`] if the server has ended because one of its loops has
    /// failed, see [`ServerHandle::wait`].
    pub fn run(self, handler: impl Handler) -> Result<()> {
        let server = self.handle();
        // From before anybody can wait for it.
        let is_free = may_be_a_loop() && !hub::is_running();
        let running = is_free.then(|| server.runs_here());
        let first = self.launch(handler, running.is_some())?;
        if let Some(first) = first {
            // It deals with panics, but as it goes it drops what is the user's, the handler for one.
            if guarded(|| first.run()).is_none() {
                server.failed_here();
            }
        }
        drop(running);
        server.wait();
        match server.has_failed() {
            true => Err(Error::Io(io::Error::other("a loop has failed"))),
            false => Ok(()),
        }
    }

    /// Runs on threads of its own, and returns at once.
    ///
    /// # Errors
    /// [`Error::Config`] for a setting that is out of range, [`Error::Io`] if a thread or a poll instance can't be
    /// created, and the error of [`Backplane::start`](crate::Backplane::start).
    pub fn start(self, handler: impl Handler) -> Result<ServerHandle> {
        let server = self.handle();
        self.launch(handler, false)?;
        Ok(server)
    }

    /// Starts all of it, or all but the first loop, if that is to run `here`.
    fn launch(self, handler: impl Handler, here: bool) -> Result<Option<ReadyLoop>> {
        check(&self.config)?;
        let listeners = spread(self.listeners, self.config.loops)?;
        for listener in listeners.iter().flatten() {
            listener.set_nodelay(self.config.nodelay)?;
        }
        let engine = Arc::new(Engine::new(handler, &self.config));
        let (loops, workers) = (self.config.loops, self.config.workers);
        let mut shared = Shared::new(self.config);
        shared.keep(self.histories);
        if let Some(backplane) = &self.backplane {
            shared.span_nodes(backplane.clone());
        }
        let shared = Arc::new(shared);
        #[cfg(feature = "tls")]
        self.tls.into_iter().for_each(|tls| shared.speak_tls(tls));
        let prepared = Prepared::all(loops, &shared)?;
        let handle = self.handle.handle().clone();
        #[cfg(unix)]
        let prepared = match self.shutdown_on {
            Some((source, deadline)) => watching(prepared, &source, &handle, deadline)?,
            None => prepared,
        };
        let handles = reactor::handles(&prepared);
        let (pool, run_queue) = Pool::start_if_any(workers, &engine)?;
        let mut starting = Starting {
            server: &handle,
            backplane: false,
            failed: true,
        };
        // In this order: the handle reaches all of the server before any handler runs, which may
        // broadcast or join a room; then come messages of other nodes, and last the connections.
        handle.services().settle(&shared, run_queue.as_ref());
        shared.topics.span(&handles);
        handle.reachable(Running {
            shared: shared.clone(),
            loops: handles.clone(),
            workers: engine.workers().clone(),
            started: Instant::now(),
        });
        if let Some(backplane) = self.backplane {
            let node: Arc<dyn Node> = shared;
            backplane.start(Arc::downgrade(&node))?;
            starting.backplane = true;
        }
        engine.start(&handle);
        let mut ready = match run_queue {
            Some(queue) => reactor::ready_all(prepared, || ToWorkers(queue.clone()), listeners)?,
            None => reactor::ready_all(prepared, || OnTheLoop(engine.clone()), listeners)?,
        };
        let first = here.then(|| ready.remove(0));
        let loops = reactor::spawn_all(ready, &handles)?;
        starting.failed = false;
        drop(starting);
        self.handle.started();
        handle.started(Threads { loops, here, pool });
        if self.notify_systemd {
            handle.notify_systemd();
        }
        Ok(first)
    }

    /// Runs on threads of its own and passes everything that happens to the returned channel, which
    /// works in `crossbeam_channel::select!` and may be received from by any threads. Events of one
    /// connection are in order.
    ///
    /// The channel holds 1,024 events; when nobody receives, the peers are slowed down. At least one worker runs,
    /// whatever [`workers`](Self::workers) says.
    ///
    /// A shutdown puts the end of every connection into the channel too, and waits for room in it. So drop the
    /// receiver before, or receive on another thread.
    ///
    /// All clients within the server's limits are let in; [`events_with`](Self::events_with) can refuse.
    ///
    /// # Errors
    /// As for [`start`](Self::start).
    pub fn events(self) -> Result<(ServerHandle, Receiver<Event>)> {
        self.events_with(|_| Ok(Accept::new(())))
    }

    /// Like [`events`](Self::events), but `decide` is asked first: it lets a connection in, perhaps with a
    /// subprotocol and headers, or refuses it with a response. A refused connection produces no event. `decide` is
    /// called on workers, as [`Handler::open`] is, and may block.
    ///
    /// ```no_run
    /// use framemill::{Accept, Response, Server};
    ///
    /// let server = Server::bind("127.0.0.1:9001")?;
    /// let (handle, events) = server.events_with(|request| match request.query_param("token") {
    ///     Some(token) if token == "sesame" => Ok(Accept::new(())),
    ///     _ => Err(Response::unauthorized()),
    /// })?;
    /// # drop((handle, events));
    /// # framemill::Result::Ok(())
    /// ```
    ///
    /// # Errors
    /// As for [`start`](Self::start).
    pub fn events_with(
        mut self,
        decide: impl Fn(&Request) -> std::result::Result<Accept<()>, Response> + Send + Sync + 'static,
    ) -> Result<(ServerHandle, Receiver<Event>)> {
        let (events, receiver) = bounded(EVENTS);
        self.config.workers = self.config.workers.max(1);
        let handle = self.start(ToChannel { events, decide })?;
        Ok((handle, receiver))
    }
}

/// Loops that end the server on a word from `source`. All of them look at it, as any may be the last.
#[cfg(unix)]
fn watching(
    mut prepared: Vec<Prepared>,
    source: &OwnedFd,
    server: &ServerHandle,
    deadline: Duration,
) -> Result<Vec<Prepared>> {
    for prepared in &mut prepared {
        let (source, server) = (source.try_clone()?, server.clone());
        prepared.watch(StopSource::new(source, move || {
            server.begin_shutdown(deadline);
        }))?;
    }
    Ok(prepared)
}

/// A server whose parts begin to work one after the other. If the next can't, or the handler panics, those
/// that do are stopped.
struct Starting<'a> {
    server: &'a ServerHandle,
    /// It has been started.
    backplane: bool,
    failed: bool,
}

impl Drop for Starting<'_> {
    fn drop(&mut self) {
        if self.failed {
            self.server.failed(self.backplane);
        }
    }
}

/// The listeners of each loop: all to the first, and to the others one more of those that are shared.
fn spread(listeners: Vec<Listener>, loops: usize) -> Result<Vec<Vec<Listener>>> {
    let mut of_loops = Vec::with_capacity(loops);
    for _ in 1..loops {
        let more = listeners.iter().filter_map(Listener::another);
        of_loops.push(more.collect::<io::Result<_>>()?);
    }
    of_loops.insert(0, listeners);
    Ok(of_loops)
}
