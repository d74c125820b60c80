//! What comes before a connection and may take long: pauses between attempts, and names to resolve.
//!
//! The system's resolver blocks, so it is asked neither on a loop nor on a worker, but on threads of
//! its own: as many as there is to do at once, at most a few, and none while there is nothing. The same
//! threads watch the time: one that is about to ask sees to it that another does, so that a name without
//! an answer holds up nobody but those who wait for it; [`LOOKUPS`] of them hold up other names too. An address
//! that needs no resolver goes straight to a loop.

use std::io;
use std::net::{IpAddr, ToSocketAddrs};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::{Duration, Instant};

use super::handle::Control;
use super::session::Session;
use super::waiting::{Ready, Waiting};
use crate::error::{Error, duplicate};
use crate::link::{Dial, LoopHandle};
use crate::proto::new_key;
use crate::sync::lock;

/// Names that are resolved at the same time. More than a few, as one that nobody answers for keeps its
/// place for up to a minute.
const LOOKUPS: usize = 8;

/// One more watches the time.
const THREADS: usize = LOOKUPS + 1;

/// A thread with nothing to do stays this long.
const IDLE: Duration = Duration::from_secs(1);

/// What waits before it is connected; one for each `Clients`, which all its threads use.
///
/// - for sessions, on any thread: [`dial`](Self::dial), whose outcome comes through a loop;
/// - for handles of clients: [`hurry`](Self::hurry), when a client is not wanted any more;
/// - for the end of the `Clients`: [`stop`](Self::stop), then [`join`](Self::join);
/// - the rest runs on threads of its own.
///
/// Only `join` waits for threads, and not even that for the resolver.
pub(super) struct Dialer {
    /// Held, to read, while something is handed to a loop, and, to write, while all is being stopped; so
    /// nothing comes to a loop behind the command that ends it. For its order and the queue's see
    /// [`link`](crate::link), *Locks*.
    gate: RwLock<()>,
    queue: Mutex<Queue>,
    changed: Condvar,
    loops: Vec<Arc<LoopHandle>>,
    /// The loop whose turn it is.
    next: AtomicUsize,
    stopped: AtomicBool,
}

#[derive(Default)]
struct Queue {
    waiting: Waiting,
    /// Of these, `asking` wait for the resolver, at most [`LOOKUPS`], and `idle` for something to do.
    threads: usize,
    asking: usize,
    idle: usize,
}

impl Dialer {
    pub(super) fn new(loops: Vec<Arc<LoopHandle>>) -> Self {
        Self {
            gate: RwLock::default(),
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
        let mut queue = lock(&self.queue);
        // Under the lock: `hurry` or `stop` may have come before.
        let ready = if self.is_stopped() || session.control.is_closing() {
            Some(Ready::failed(session, Error::Closed))
        } else if delay.is_zero() {
            queue.waiting.begin(session, now)
        } else {
            queue.waiting.pause(session, now + delay);
            None
        };
        match ready {
            Some(ready) => {
                drop(queue);
                self.hand_over(ready);
            }
            None => self.need_thread(queue),
        }
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
            if queue.threads > 0 {
                // The others will get to it.
                return;
            }
            let orphans = queue.waiting.take_all();
            drop(queue);
            for session in orphans {
                let error = Error::Io(duplicate(&error));
                self.hand_over(Ready::failed(session, error));
            }
        }
    }

    /// The client is not wanted any more: if it waits, it need not.
    pub(super) fn hurry(&self, control: &Arc<Control>) {
        let mut queue = lock(&self.queue);
        let waited = queue.waiting.call_off(control);
        self.relax(queue);
        if let Some(session) = waited {
            self.hand_over(Ready::failed(session, Error::Closed));
        }
    }

    pub(super) fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::SeqCst)
    }

    /// Gives back what waits; nothing is dialed any more.
    pub(super) fn stop(&self) {
        let gate = self.gate.write().unwrap_or_else(PoisonError::into_inner);
        let mut queue = lock(&self.queue);
        self.stopped.store(true, Ordering::SeqCst);
        let waiting = queue.waiting.take_all();
        self.changed.notify_all();
        drop(queue);
        let failed = |session| self.put_in(Ready::failed(session, Error::Closed)).err();
        let lost: Vec<_> = waiting.filter_map(failed).collect();
        drop(gate);
        lost.into_iter().for_each(|s| s.failed(Error::Closed));
    }

    /// Waits until its threads have ended. Those that wait for the resolver are left to themselves:
    /// nobody waits for them.
    pub(super) fn join(&self, deadline: Instant) {
        let mut queue = lock(&self.queue);
        while queue.threads > queue.asking {
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
            if let Some(ready) = queue.waiting.due(now) {
                drop(queue);
                self.hand_over(ready);
                queue = lock(&self.queue);
                continue;
            }
            if let Some(host) = queue.ask() {
                self.resolve(queue, host);
                queue = lock(&self.queue);
                continue;
            }
            // One is enough to watch the time.
            let is_spare = queue.idle > 0;
            let wait = match queue.waiting.next() {
                Some(at) if is_spare => (at - now).min(IDLE),
                Some(at) => at - now,
                None => IDLE,
            };
            queue.idle += 1;
            let waited = self.changed.wait_timeout(queue, wait);
            let (mut woken, timeout) = waited.unwrap_or_else(PoisonError::into_inner);
            woken.idle -= 1;
            queue = woken;
            let is_watched = queue.idle > 0 || queue.waiting.is_empty();
            if timeout.timed_out() && is_watched && !queue.has_work() {
                break;
            }
        }
        queue.threads -= 1;
        self.changed.notify_all();
    }

    /// Asks for a name, which blocks, and tells all who wait for it.
    fn resolve(self: &Arc<Self>, queue: MutexGuard<'_, Queue>, host: String) {
        // Somebody has to watch the time meanwhile.
        self.need_thread(queue);
        let answer = look_up(&host);
        let mut queue = lock(&self.queue);
        queue.asking -= 1;
        let ready = queue.waiting.answered(host, answer);
        self.relax(queue);
        ready.into_iter().for_each(|ready| self.hand_over(ready));
    }

    /// Lets go of the queue. Whoever watches the time for what is not in it any more need not.
    fn relax(&self, queue: MutexGuard<'_, Queue>) {
        if queue.waiting.is_empty() {
            self.changed.notify_all();
        }
    }

    // ---- to the loops ----

    /// To the next loop, which connects or says that it can't be done. Not with the queue locked.
    fn hand_over(&self, ready: Ready) {
        let gate = self.gate.read().unwrap_or_else(PoisonError::into_inner);
        let lost = match self.is_stopped() {
            false => self.put_in(ready).err(),
            true => Some(ready.session),
        };
        drop(gate);
        if let Some(session) = lost {
            // Nothing comes through a loop any more.
            session.failed(Error::Closed);
        }
    }

    /// `Err`: there is no loop.
    fn put_in(&self, ready: Ready) -> Result<(), Box<Session>> {
        let Ready {
            session,
            targets,
            deadline,
        } = ready;
        let plan = &session.plan;
        let (targets, failure) = match targets {
            Ok(targets) => (targets, None),
            Err(error) => (Default::default(), Some(error)),
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
            deadline,
            session,
        };
        let turn = self.next.fetch_add(1, Ordering::Relaxed) % self.loops.len();
        let lost = self.loops[turn].dial(Box::new(dial)).err();
        match lost.and_then(|dial| dial.session.downcast().ok()) {
            Some(session) => Err(session),
            None => Ok(()),
        }
    }
}

impl Queue {
    /// A name to ask for, if one more can be.
    fn ask(&mut self) -> Option<String> {
        if self.asking == LOOKUPS {
            return None;
        }
        let host = self.waiting.ask()?;
        self.asking += 1;
        Some(host)
    }

    /// Whether there is anything to do now.
    fn has_work(&self) -> bool {
        let is_due = self.waiting.next().is_some_and(|at| at <= Instant::now());
        is_due || (self.asking < LOOKUPS && self.waiting.has_unasked())
    }
}

/// Asks the system, which takes as long as it likes: each address once.
fn look_up(host: &str) -> io::Result<Vec<IpAddr>> {
    #[cfg(test)]
    if let Some(answer) = tests::held(host) {
        return answer;
    }
    let mut unique = Vec::new();
    for addr in (host, 0).to_socket_addrs()? {
        if !unique.contains(&addr.ip()) {
            unique.push(addr.ip());
        }
    }
    match unique.is_empty() {
        true => Err(io::ErrorKind::NotFound.into()),
        false => Ok(unique),
    }
}

#[cfg(test)]
mod tests {
    use super::super::session::{Session, Sink};
    use super::super::{Client, ClientHandler, Clients, Reconnect, Retry};
    use super::*;
    use crate::link::Target;
    use crate::message::{CloseCode, Message};
    use crate::peer::Peer;
    use crossbeam_channel::{Receiver, Sender, bounded, unbounded};
    use std::net::{SocketAddr, TcpListener};

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
        clients.engine.dialer.hand_over(Ready {
            session: Box::new(session),
            targets: Ok(targets),
            deadline: began + timeout,
        });
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
        let (outcome, _) = try_all(&[refusing()], Duration::from_nanos(1));
        assert!(matches!(outcome, Err(Error::Timeout)), "{outcome:?}");
    }

    // ---- names ----

    /// A name that the resolver gives no answer for until this is dropped.
    struct Held {
        host: String,
        asked: Receiver<()>,
        _answer: Sender<()>,
    }

    type Question = (String, Sender<()>, Receiver<()>);

    static HELD: Mutex<Vec<Question>> = Mutex::new(Vec::new());

    fn hold(host: &str) -> Held {
        let (ask, asked) = unbounded();
        let (answer, answered) = bounded(0);
        lock(&HELD).push((host.to_owned(), ask, answered));
        Held {
            host: host.to_owned(),
            asked,
            _answer: answer,
        }
    }

    impl Held {
        fn client(&self) -> Client {
            Client::new(format!("ws://{}/", self.host)).unwrap()
        }
    }

    impl Drop for Held {
        fn drop(&mut self) {
            lock(&HELD).retain(|(host, ..)| *host != self.host);
        }
    }

    /// What the resolver says of a name that is or was held.
    pub(super) fn held(host: &str) -> Option<io::Result<Vec<IpAddr>>> {
        let found = |(held, ..): &&Question| held == host;
        let (_, ask, answered) = lock(&HELD).iter().find(found)?.clone();
        let _ = ask.send(());
        // It never comes: the other side goes.
        let _ = answered.recv();
        Some(Err(io::ErrorKind::HostUnreachable.into()))
    }

    struct Tell(Sender<String>);

    impl ClientHandler for Tell {
        fn message(&mut self, _: &Peer, _: Message) {}

        fn retry(&mut self, retry: &Retry) {
            let _ = self.0.send(format!("attempt {}", retry.attempt));
        }

        fn error(&mut self, error: &Error) {
            let _ = self.0.send(error.to_string());
        }
    }

    fn tell() -> (Tell, Receiver<String>) {
        let (sender, told) = unbounded();
        (Tell(sender), told)
    }

    /// Sooner than any answer.
    fn hear(told: &Receiver<String>) -> String {
        told.recv_timeout(WAIT / 2).expect("something is told")
    }

    fn at(addr: SocketAddr, delay: Duration) -> Client {
        let client = Client::new(format!("ws://{addr}/")).unwrap();
        client.reconnect(Reconnect::new().delays(delay, delay))
    }

    #[test]
    fn names_without_an_answer_hold_up_nobody_else() {
        let clients = Clients::start(1, 1).unwrap();
        let (paused, told) = tell();
        let hour = Duration::from_secs(3600);
        let paused = clients.open(at(refusing(), hour), paused).unwrap();
        assert_eq!(hear(&told), "attempt 1");
        let names: Vec<_> = (0..2 * LOOKUPS)
            .map(|n| hold(&format!("nobody-else-{n}.invalid")))
            .collect();
        for held in &names {
            let (teller, _) = tell();
            clients.open(held.client(), teller).unwrap();
        }
        for held in &names[..LOOKUPS] {
            held.asked.recv_timeout(WAIT).expect("it is asked for");
        }
        // Pauses end in time, ...
        let (teller, attempts) = tell();
        let soon = Duration::from_millis(10);
        clients.open(at(refusing(), soon), teller).unwrap();
        for n in 1..=3 {
            assert_eq!(hear(&attempts), format!("attempt {n}"));
        }
        // ... and are over at once when the client is closed.
        let began = Instant::now();
        assert_eq!(paused.close_and_wait(CloseCode::Normal, ""), None);
        assert!(began.elapsed() < WAIT / 2);
        assert_eq!(hear(&told), Error::Closed.to_string());
    }

    #[test]
    fn resolving_has_as_long_as_the_handshake() {
        let clients = Clients::start(1, 1).unwrap();
        let held = hold("as-long-as.invalid");
        let (teller, told) = tell();
        let limit = Duration::from_millis(50);
        let client = held.client().handshake_timeout(limit);
        let began = Instant::now();
        clients.open(client, teller).unwrap();
        assert_eq!(hear(&told), Error::Timeout.to_string());
        assert!(began.elapsed() >= limit);
    }

    #[test]
    fn threads_go_when_nothing_waits() {
        let clients = Clients::start(1, 1).unwrap();
        let (teller, told) = tell();
        let hour = Duration::from_secs(3600);
        let paused = clients.open(at(refusing(), hour), teller).unwrap();
        assert_eq!(hear(&told), "attempt 1");
        let dialer = &clients.engine.dialer;
        let deadline = Instant::now() + WAIT;
        while lock(&dialer.queue).idle == 0 {
            assert!(Instant::now() < deadline, "nobody watches the time");
            std::thread::yield_now();
        }
        assert!(paused.close(CloseCode::Normal, ""));
        assert_eq!(hear(&told), Error::Closed.to_string());
        let mut queue = lock(&dialer.queue);
        while queue.threads > 0 {
            let (woken, waited) = dialer.changed.wait_timeout(queue, WAIT).unwrap();
            assert!(!waited.timed_out(), "they stay");
            queue = woken;
        }
    }

    #[test]
    fn clients_of_one_name_ask_once() {
        let clients = Clients::start(1, 1).unwrap();
        let held = hold("once.invalid");
        let told: Vec<_> = (0..100)
            .map(|_| {
                let (teller, told) = tell();
                clients.open(held.client(), teller).unwrap();
                told
            })
            .collect();
        let asked = held.asked.clone();
        asked.recv_timeout(WAIT).expect("it is asked for");
        drop(held);
        for told in told {
            assert!(hear(&told).starts_with("cannot resolve"));
        }
        assert!(asked.try_recv().is_err());
    }

    #[test]
    fn a_shutdown_does_not_wait_for_an_answer() {
        let clients = Clients::start(1, 1).unwrap();
        let held = hold("shutdown.invalid");
        let (teller, told) = tell();
        let handle = clients.open(held.client(), teller).unwrap();
        held.asked.recv_timeout(WAIT).expect("it is asked for");
        let began = Instant::now();
        assert!(clients.shutdown(WAIT));
        assert!(began.elapsed() < WAIT / 2);
        assert_eq!(hear(&told), Error::Closed.to_string());
        assert!(handle.has_ended());
        // What comes now comes to nothing.
        drop(held);
        assert!(told.recv_timeout(WAIT).is_err(), "the handler is dropped");
    }
}
