//! What comes before a connection and may take long: pauses between attempts, and names to resolve.
//!
//! The system's resolver blocks, so it is asked neither on a loop nor on a worker, but on threads of
//! its own: as many as there is to do at once, at most a few, and none while there is nothing. The same
//! threads wait out the pauses. An address that needs no resolver goes straight to a loop.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::io;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::handle::Control;
use super::session::Session;
use super::url::Place;
use crate::error::Error;
use crate::link::{Command, Dial, LoopHandle, Target, lock};
use crate::proto::new_key;

/// Names that are resolved at the same time.
const THREADS: usize = 4;

/// A thread with nothing to do stays this long.
const IDLE: Duration = Duration::from_secs(1);

/// What a name resolved to is good for so long: thousands of clients of one server ask once.
const FRESH: Duration = Duration::from_secs(1);

/// See the module's documentation.
pub(super) struct Dialer {
    queue: Mutex<Queue>,
    changed: Condvar,
    loops: Vec<Arc<LoopHandle>>,
    /// The loop whose turn it is.
    next: AtomicUsize,
    stopped: AtomicBool,
}

#[derive(Default)]
struct Queue {
    waiting: BinaryHeap<Reverse<Due>>,
    /// Numbers what waits, so that equals keep their order.
    count: u64,
    threads: usize,
    idle: usize,
    last: Option<Resolved>,
}

struct Resolved {
    host: String,
    at: Instant,
    addrs: Vec<IpAddr>,
}

/// An attempt whose time comes.
struct Due {
    at: Instant,
    number: u64,
    session: Box<Session>,
}

impl Due {
    fn key(&self) -> (Instant, u64) {
        (self.at, self.number)
    }
}

impl PartialEq for Due {
    fn eq(&self, other: &Self) -> bool {
        self.key() == other.key()
    }
}

impl Eq for Due {}

impl PartialOrd for Due {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Due {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.key().cmp(&other.key())
    }
}

impl Dialer {
    pub(super) fn new(loops: Vec<Arc<LoopHandle>>) -> Self {
        Self {
            queue: Mutex::default(),
            changed: Condvar::new(),
            loops,
            next: AtomicUsize::new(0),
            stopped: AtomicBool::new(false),
        }
    }

    /// Connects after `delay`. The outcome comes through the loop, unless all is being stopped.
    pub(super) fn dial(self: &Arc<Self>, session: Box<Session>, delay: Duration) {
        let now = Instant::now();
        if delay.is_zero() {
            if let Some(targets) = known(&session.plan.place) {
                return self.hand_over(session, now, Ok(targets));
            }
        }
        let mut queue = lock(&self.queue);
        if self.is_stopped() {
            drop(queue);
            // The loops may have ended already, so the outcome does not come through one.
            return session.failed(Error::Closed);
        }
        queue.count += 1;
        // Under the lock: `hurry` may have come before.
        let called_off = session.control.is_closing();
        let due = Due {
            at: if called_off { now } else { now + delay },
            number: queue.count,
            session,
        };
        queue.waiting.push(Reverse(due));
        self.need_thread(queue);
    }

    /// Makes somebody look at the queue.
    fn need_thread(self: &Arc<Self>, mut queue: MutexGuard<'_, Queue>) {
        if queue.idle > 0 {
            return self.changed.notify_one();
        }
        if queue.threads == THREADS {
            return;
        }
        queue.threads += 1;
        let name = format!("framemill-dialer-{}", queue.threads);
        let dialer = self.clone();
        let spawned = std::thread::Builder::new()
            .name(name)
            .spawn(move || dialer.run());
        if let Err(error) = spawned {
            queue.threads -= 1;
            // The others will get to it, if there are any.
            let orphans = if queue.threads == 0 {
                std::mem::take(&mut queue.waiting).into_vec()
            } else {
                Vec::new()
            };
            drop(queue);
            for Reverse(due) in orphans {
                let error = crate::error::duplicate(&error);
                self.hand_over(due.session, Instant::now(), Err(Error::Io(error)));
            }
        }
    }

    /// The client is not wanted any more: if it waits, it need not.
    pub(super) fn hurry(&self, control: &Arc<Control>) {
        let mut queue = lock(&self.queue);
        let waiting = std::mem::take(&mut queue.waiting).into_vec().into_iter();
        queue.waiting = waiting
            .map(|Reverse(mut due)| {
                if Arc::ptr_eq(&due.session.control, control) {
                    due.at = Instant::now();
                }
                Reverse(due)
            })
            .collect();
        self.changed.notify_all();
    }

    pub(super) fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::SeqCst)
    }

    /// Gives back what waits; nothing is dialed any more.
    pub(super) fn stop(&self) {
        let mut queue = lock(&self.queue);
        self.stopped.store(true, Ordering::SeqCst);
        let waiting = std::mem::take(&mut queue.waiting).into_vec();
        self.changed.notify_all();
        drop(queue);
        for Reverse(due) in waiting {
            self.hand_over(due.session, Instant::now(), Err(Error::Closed));
        }
    }

    /// Waits until its threads have ended. One that waits for the resolver is left to itself.
    pub(super) fn join(&self, deadline: Instant) {
        let mut queue = lock(&self.queue);
        while queue.threads > 0 {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            let waited = self.changed.wait_timeout(queue, left);
            (queue, _) = waited.unwrap_or_else(PoisonError::into_inner);
        }
    }

    // ---- its threads ----

    fn run(self: &Arc<Self>) {
        let mut queue = lock(&self.queue);
        while !self.is_stopped() {
            let now = Instant::now();
            let next = queue.waiting.peek().map(|Reverse(due)| due.at);
            if next.is_some_and(|at| at <= now) {
                let Some(Reverse(due)) = queue.waiting.pop() else {
                    continue;
                };
                let more = !queue.waiting.is_empty();
                if more {
                    // While this one is busy, somebody else watches the time.
                    self.need_thread(queue);
                } else {
                    drop(queue);
                }
                self.resolve_and_go(due.session);
                queue = lock(&self.queue);
                continue;
            }
            let wait = next.map_or(IDLE, |at| at - now);
            queue.idle += 1;
            let waited = self.changed.wait_timeout(queue, wait);
            let (mut woken, timeout) = waited.unwrap_or_else(PoisonError::into_inner);
            woken.idle -= 1;
            queue = woken;
            if timeout.timed_out() && next.is_none() && queue.waiting.is_empty() {
                break;
            }
        }
        queue.threads -= 1;
        self.changed.notify_all();
    }

    fn resolve_and_go(&self, session: Box<Session>) {
        let began = Instant::now();
        if session.control.is_closing() {
            return self.hand_over(session, began, Err(Error::Closed));
        }
        let targets = match (&session.plan.place, known(&session.plan.place)) {
            (_, Some(targets)) => Ok(targets),
            (Place::Host { host, port }, None) => self.resolve(host, *port),
            #[cfg(unix)]
            (Place::Unix(_), None) => Ok(VecDeque::new()),
        };
        self.hand_over(session, began, targets);
    }

    fn resolve(&self, host: &str, port: u16) -> Result<VecDeque<Target>, Error> {
        let target = |ip: &IpAddr| Target::Ip(SocketAddr::new(*ip, port));
        if let Some(last) = &lock(&self.queue).last {
            if last.host == host && last.at.elapsed() < FRESH {
                return Ok(last.addrs.iter().map(target).collect());
            }
        }
        let failed = |source| Error::Resolve {
            host: host.to_owned(),
            source,
        };
        let addrs = (host, port).to_socket_addrs().map_err(failed)?;
        let mut unique: Vec<IpAddr> = Vec::new();
        for addr in addrs {
            if !unique.contains(&addr.ip()) {
                unique.push(addr.ip());
            }
        }
        if unique.is_empty() {
            return Err(failed(io::ErrorKind::NotFound.into()));
        }
        let targets = unique.iter().map(target).collect();
        lock(&self.queue).last = Some(Resolved {
            host: host.to_owned(),
            at: Instant::now(),
            addrs: unique,
        });
        Ok(targets)
    }

    /// To the next loop, which connects or says that it can't be done.
    fn hand_over(
        &self,
        session: Box<Session>,
        began: Instant,
        targets: Result<VecDeque<Target>, Error>,
    ) {
        let plan = &session.plan;
        let (targets, failure) = match targets {
            Ok(targets) => (targets, None),
            Err(error) => (VecDeque::new(), Some(error)),
        };
        let mut request = plan.request.clone();
        request.key = new_key();
        let dial = Dial {
            targets,
            failure,
            request,
            config: plan.config.clone(),
            #[cfg(feature = "tls")]
            tls: plan.tls.clone(),
            deadline: began + plan.config.handshake_timeout,
            session,
        };
        let turn = self.next.fetch_add(1, Ordering::Relaxed) % self.loops.len();
        self.loops[turn].command(Command::Dial(Box::new(dial)));
    }
}

/// Where a place is, if that needs no resolver.
fn known(place: &Place) -> Option<VecDeque<Target>> {
    let target = match place {
        Place::Host { host, port } => Target::Ip(SocketAddr::new(host.parse().ok()?, *port)),
        #[cfg(unix)]
        Place::Unix(path) => Target::Unix(path.clone()),
    };
    Some(VecDeque::from([target]))
}

#[cfg(test)]
mod tests {
    use super::super::session::Sink;
    use super::super::{Client, Clients};
    use super::*;
    use std::net::TcpListener;

    const WAIT: Duration = Duration::from_secs(20);

    /// tungstenite's server, for one connection.
    fn server() -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = listener.local_addr().unwrap();
        std::thread::spawn(move || {
            let (stream, _) = listener.accept().unwrap();
            let mut socket = tungstenite::accept(stream).unwrap();
            while socket.read().is_ok() {}
        });
        addr
    }

    /// Nobody listens there.
    fn refusing() -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.local_addr().unwrap()
    }

    /// Drops what comes, like a host that is off.
    fn dead() -> (SocketAddr, Vec<socket2::Socket>) {
        use socket2::{Domain, Socket, Type};
        let listener = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        let any: SocketAddr = "127.0.0.1:0".parse().unwrap();
        listener.bind(&any.into()).unwrap();
        listener.listen(0).unwrap();
        let addr = listener.local_addr().unwrap();
        let mut kept = vec![listener];
        // The backlog is full when nobody is let in any more.
        for _ in 0..100 {
            let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
            let full = socket
                .connect_timeout(&addr, Duration::from_millis(200))
                .is_err();
            kept.push(socket);
            if full {
                break;
            }
        }
        (addr.as_socket().unwrap(), kept)
    }

    /// Tries `addrs` in turn: how that ends, and after what time.
    fn try_all(addrs: &[SocketAddr], timeout: Duration) -> (Result<SocketAddr, Error>, Duration) {
        let clients = Clients::start(1, 1).unwrap();
        let client = Client::new("ws://example.invalid/").unwrap();
        let plan = client.handshake_timeout(timeout).plan().unwrap();
        let (sender, _events) = crossbeam_channel::bounded(8);
        let (ready, opened) = crossbeam_channel::bounded(1);
        let engine = clients.engine.clone();
        let sink = Sink::channel(sender);
        let session = Session::new(Arc::new(plan), engine, sink, Some(ready));
        let began = Instant::now();
        let targets = addrs.iter().map(|addr| Target::Ip(*addr)).collect();
        let dialer = &clients.engine.dialer;
        dialer.hand_over(Box::new(session), began, Ok(targets));
        let outcome = opened.recv_timeout(WAIT).expect("an outcome");
        let remote = outcome.map(|peer| match peer.remote_addr() {
            crate::addr::RemoteAddr::Ip(addr) => addr,
            crate::addr::RemoteAddr::Unix => unreachable!(),
        });
        (remote, began.elapsed())
    }

    #[test]
    fn addresses_are_tried_in_turn() {
        let live = server();
        let (remote, _) = try_all(&[refusing(), refusing(), live], WAIT);
        assert_eq!(remote.unwrap(), live);
        let last = refusing();
        match try_all(&[refusing(), last], WAIT).0 {
            Err(Error::Connect { addr, .. }) => assert_eq!(addr, last.to_string()),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_dead_address_leaves_time_for_the_next() {
        let (dead, _kept) = dead();
        let live = server();
        let timeout = Duration::from_secs(2);
        let (remote, took) = try_all(&[dead, live], timeout);
        assert_eq!(remote.unwrap(), live);
        // Its share: half of the time.
        assert!(took >= timeout / 2, "{took:?}");
        let (remote, took) = try_all(&[dead], Duration::from_millis(200));
        assert!(matches!(remote, Err(Error::Timeout)), "{remote:?}");
        assert!(took >= Duration::from_millis(200), "{took:?}");
    }

    #[test]
    fn too_late_is_too_late() {
        let (outcome, _) = try_all(&[refusing()], Duration::ZERO);
        assert!(matches!(outcome, Err(Error::Timeout)), "{outcome:?}");
    }
}
