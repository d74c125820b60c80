//! Waits for receivers that don't receive.
//!
//! A connection whose channel is full is set aside: its mailbox is parked, so it takes up no worker,
//! and when the mailbox is full too, its loop stops reading. One thread for all of them waits until
//! there is room in any, and lets that mailbox run again. The thread is there only while it is needed.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Select, Sender, TrySendError, bounded};

use super::engine::Job;
use super::handle::Control;
use super::handler::ClientEvent;
use crate::link::Command;
use crate::logging::Throttle;
use crate::peer::Peer;
use crate::sync::lock;
use crate::worker::WeakRunQueue;

/// With nothing to wait for, the thread stays this long.
const IDLE: Duration = Duration::from_secs(1);

/// Something that needs room in a channel.
pub(super) enum Watched {
    /// The parked mailbox of a connection.
    Mailbox {
        sender: Sender<ClientEvent>,
        peer: Peer,
        control: Arc<Control>,
    },
    /// The last events of a client that is no more.
    Rest(Sender<ClientEvent>, VecDeque<ClientEvent>),
}

impl Watched {
    /// `false`: the same is waited for already.
    pub(super) fn begins(&self) -> bool {
        match self {
            Self::Mailbox { control, peer, .. } => control.begin_watch(peer.id()),
            Self::Rest(..) => true,
        }
    }

    fn sender(&self) -> &Sender<ClientEvent> {
        match self {
            Self::Mailbox { sender, .. } | Self::Rest(sender, _) => sender,
        }
    }
}

/// See the module's documentation.
pub(super) struct ChannelFeeder {
    state: Mutex<State>,
    ended: Condvar,
    /// The engine has ended: what finds no room is dropped.
    abandoned: AtomicBool,
    poke: Sender<()>,
    poked: Receiver<()>,
}

struct State {
    /// Not yet taken over by the thread.
    fresh: Vec<Watched>,
    running: bool,
    /// All that waits is to go on.
    release: bool,
    /// Where runnable mailboxes go, as long as there is a loop; `None` if that is the loop itself.
    queue: Option<WeakRunQueue<Job>>,
    /// Those that could go on when there was no loop any more.
    left: Vec<Peer>,
}

impl ChannelFeeder {
    pub(super) fn new() -> Self {
        let (poke, poked) = bounded(1);
        Self {
            state: Mutex::new(State {
                fresh: Vec::new(),
                running: false,
                release: false,
                queue: None,
                left: Vec::new(),
            }),
            ended: Condvar::new(),
            abandoned: AtomicBool::new(false),
            poke,
            poked,
        }
    }

    pub(super) fn feeds(&self, queue: WeakRunQueue<Job>) {
        lock(&self.state).queue = Some(queue);
    }

    /// Waits for room in its place.
    pub(super) fn watch(self: &Arc<Self>, waiting: Watched) {
        if self.is_abandoned() {
            return self.go_on(waiting);
        }
        let mut state = lock(&self.state);
        state.fresh.push(waiting);
        if state.running {
            drop(state);
            let _ = self.poke.try_send(());
            return;
        }
        state.running = true;
        let feeder = self.clone();
        let spawned = std::thread::Builder::new()
            .name("framemill-feeder".into())
            .spawn(move || feeder.run());
        if let Err(error) = spawned {
            static THREADLESS: Throttle = Throttle::new();
            if let Some(more) = THREADLESS.pass() {
                log::error!("no thread to wait for a receiver: {error}{more}");
            }
            state.running = false;
            let fresh = std::mem::take(&mut state.fresh);
            drop(state);
            fresh.into_iter().for_each(|waiting| self.go_on(waiting));
        }
    }

    /// Lets all that waits look once more whether they still have to.
    pub(super) fn release_all(&self) {
        lock(&self.state).release = true;
        let _ = self.poke.try_send(());
    }

    pub(super) fn is_abandoned(&self) -> bool {
        self.abandoned.load(Ordering::SeqCst)
    }

    /// Nobody is waited for any more.
    pub(super) fn abandon(&self) {
        self.abandoned.store(true, Ordering::SeqCst);
        self.release_all();
    }

    /// After [`abandon`](Self::abandon) and the end of the loops: waits until the thread has ended, and
    /// gives the connections that nobody else can run.
    pub(super) fn join(&self, deadline: Instant) -> Vec<Peer> {
        let mut state = lock(&self.state);
        while state.running {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            let waited = self.ended.wait_timeout(state, left);
            (state, _) = waited.unwrap_or_else(PoisonError::into_inner);
        }
        state.queue = None;
        std::mem::take(&mut state.left)
    }

    fn go_on(&self, waiting: Watched) {
        match waiting {
            Watched::Mailbox { peer, control, .. } => {
                // First: a run that finds no room from now on is watched for anew.
                control.end_watch(peer.id());
                if !peer.link.unpark() {
                    return;
                }
                let mut state = lock(&self.state);
                match &state.queue {
                    Some(queue) => {
                        if let Err(Job::Run(peer)) = queue.push(Job::Run(peer)) {
                            state.left.push(peer);
                        }
                    }
                    None if self.is_abandoned() => state.left.push(peer),
                    None => peer.link.handle.post(Command::Run(peer.link.clone())),
                }
            }
            Watched::Rest(sender, rest) => {
                // The loop below has looked for room; what still finds none is lost with the engine.
                rest.into_iter()
                    .for_each(|event| drop(sender.try_send(event)));
            }
        }
    }

    // ---- its thread ----

    fn run(&self) {
        let mut waiting: Vec<Watched> = Vec::new();
        loop {
            let mut state = lock(&self.state);
            waiting.append(&mut state.fresh);
            let release = std::mem::take(&mut state.release) || self.is_abandoned();
            drop(state);
            let goes = |waiting: &Watched| match waiting {
                Watched::Mailbox { control, .. } => release || control.discards(),
                Watched::Rest(..) => self.is_abandoned(),
            };
            let (go, stay): (Vec<_>, Vec<_>) = waiting.into_iter().partition(goes);
            waiting = stay;
            go.into_iter().for_each(|waiting| self.go_on(waiting));
            if waiting.is_empty() {
                let poked = !self.is_abandoned() && self.poked.recv_timeout(IDLE).is_ok();
                let mut state = lock(&self.state);
                if !poked && state.fresh.is_empty() {
                    state.running = false;
                    self.ended.notify_all();
                    return;
                }
                continue;
            }
            self.wait(&mut waiting);
        }
    }

    /// Waits for room for any, and lets that go on.
    fn wait(&self, waiting: &mut Vec<Watched>) {
        let mut select = Select::new();
        let poked = select.recv(&self.poked);
        for one in waiting.iter() {
            select.send(one.sender());
        }
        let ready = select.ready();
        if ready == poked {
            let _ = self.poked.try_recv();
            return;
        }
        match waiting.swap_remove(ready - 1) {
            Watched::Rest(sender, mut rest) => {
                while let Some(event) = rest.pop_front() {
                    match sender.try_send(event) {
                        Ok(()) => {}
                        Err(TrySendError::Full(event)) => {
                            rest.push_front(event);
                            return waiting.push(Watched::Rest(sender, rest));
                        }
                        Err(TrySendError::Disconnected(_)) => return,
                    }
                }
            }
            mailbox => self.go_on(mailbox),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::session::Session;
    use super::super::{Client, Clients, Reconnect};
    use super::*;
    use crate::message::Message;
    use std::net::TcpListener;
    use tungstenite::protocol::CloseFrame;

    const WAIT: Duration = Duration::from_secs(20);

    fn until(what: &str, mut condition: impl FnMut() -> bool) {
        let deadline = Instant::now() + WAIT;
        while !condition() {
            assert!(Instant::now() < deadline, "waited in vain until {what}");
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// A watch for a connection that did not need it in the end may be left when the next one does.
    #[test]
    fn each_connection_is_watched_for_itself() {
        const EVENTS: usize = 64;
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("ws://{}/", listener.local_addr().unwrap());
        let (end_first, first_ends) = bounded::<()>(1);
        let server = std::thread::spawn(move || {
            let accept = || tungstenite::accept(listener.accept().unwrap().0).unwrap();
            let mut first = accept();
            for _ in 0..EVENTS {
                first.send("one".into()).unwrap();
            }
            first_ends.recv_timeout(WAIT).unwrap();
            first
                .close(Some(CloseFrame {
                    code: 1012.into(),
                    reason: "".into(),
                }))
                .unwrap();
            while first.read().is_ok() {}
            let mut second = accept();
            second.send("two".into()).unwrap();
            while second.read().is_ok() {}
        });
        let clients = Clients::start(1, 0).unwrap();
        let soon = Duration::from_millis(1);
        let client = Client::new(&url).unwrap();
        let client = client.reconnect(Reconnect::new().delays(soon, soon));
        let (handle, events) = clients.connect(client).unwrap();
        until("the channel is full", || events.is_full());
        let first = handle.peer().unwrap();
        // What a receiver that takes one in the right moment leaves behind.
        let left = {
            let slot = first.link.session();
            let session = slot.as_ref().and_then(|s| s.downcast_ref::<Session>());
            session.unwrap().waits_for(&first).unwrap()
        };
        assert!(left.begins());
        clients.engine.feeder.watch(left);
        end_first.send(()).unwrap();
        until("the second finds no room", || {
            let second = handle.peer().filter(|peer| *peer != first);
            second.is_some_and(|second| second.link.has_parked())
        });
        let next = || events.recv_timeout(WAIT).expect("an event");
        for _ in 0..EVENTS {
            assert!(matches!(next(), ClientEvent::Message(_)));
        }
        assert!(matches!(next(), ClientEvent::Close(_)));
        assert!(matches!(next(), ClientEvent::Reconnecting(_)));
        assert!(matches!(next(), ClientEvent::Open(..)));
        assert!(matches!(next(), ClientEvent::Message(m) if m == Message::text("two")));
        drop(clients);
        server.join().unwrap();
    }
}
