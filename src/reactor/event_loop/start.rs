//! How a loop is made and started, on a thread of its own or on the caller's, and what its tokens mean.

use std::io;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Instant;

use mio::{Poll, Token};

use super::EventLoop;
#[cfg(unix)]
use super::stop_source::StopSource;
use crate::id::{Key, PeerId};
use crate::link::{Command, CommandReceiver, LoopHandle, OwnLoop, Shared};
use crate::net::Listener;
use crate::reactor::acceptor::Acceptor;
use crate::reactor::upstream::Upstream;

pub(super) const WAKER: Token = Token(usize::MAX);
/// Connections have their slot for a token, and above it their generation where there is room: a
/// socket that is on a worker for its TLS handshake may outlive its connection, and its events are not
/// for the connection that has the slot by then. Listeners begin here.
pub(super) const LISTENERS: usize = PeerId::MAX_SLOTS as usize;
pub(super) const LAST_LISTENER: usize = u32::MAX as usize - 2;
/// Of the [`StopSource`].
#[cfg(unix)]
pub(super) const STOP: Token = Token(LAST_LISTENER + 1);

pub(super) fn token(key: Key) -> Token {
    let generation = (key.generation as usize).checked_shl(32).unwrap_or(0);
    Token(key.slot as usize | generation)
}

/// A loop that can be started: what can fail has succeeded.
pub(crate) struct Prepared {
    pub(super) poll: Poll,
    pub(super) receiver: CommandReceiver,
    pub(super) handle: Arc<LoopHandle>,
    #[cfg(unix)]
    pub(super) stop_source: Option<StopSource>,
}

impl Prepared {
    /// `loops` of them, numbered from 0.
    pub(crate) fn all(loops: usize, shared: &Arc<Shared>) -> io::Result<Vec<Self>> {
        (0..loops)
            .map(|index| Self::new(index, shared.clone()))
            .collect()
    }

    fn new(index: usize, shared: Arc<Shared>) -> io::Result<Self> {
        let poll = Poll::new()?;
        let waker = mio::Waker::new(poll.registry(), WAKER)?;
        let (handle, receiver) = LoopHandle::new(index, shared, waker);
        Ok(Self {
            poll,
            receiver,
            handle,
            #[cfg(unix)]
            stop_source: None,
        })
    }

    /// What it is to look at besides.
    #[cfg(unix)]
    pub(crate) fn watch(&mut self, source: StopSource) -> io::Result<()> {
        source.register(self.poll.registry(), STOP)?;
        self.stop_source = Some(source);
        Ok(())
    }
}

pub(crate) fn handles(prepared: &[Prepared]) -> Vec<Arc<LoopHandle>> {
    prepared.iter().map(|p| p.handle.clone()).collect()
}

/// A loop that has all it needs to run, on whichever thread.
pub(crate) struct ReadyLoop {
    index: usize,
    body: Box<dyn FnOnce() + Send>,
}

impl ReadyLoop {
    /// Runs it on the calling thread, to its end.
    pub(crate) fn run(self) {
        (self.body)();
    }

    fn spawn(self) -> io::Result<JoinHandle<()>> {
        let name = format!("framemill-loop-{}", self.index);
        thread::Builder::new().name(name).spawn(self.body)
    }
}

/// Gives each loop the next of `listeners`, and what `upstream` makes.
pub(crate) fn ready_all<U: Upstream>(
    prepared: Vec<Prepared>,
    upstream: impl Fn() -> U,
    listeners: impl IntoIterator<Item = Vec<Listener>>,
) -> io::Result<Vec<ReadyLoop>> {
    let loops = handles(&prepared);
    let prepared = prepared.into_iter().zip(listeners);
    let ready =
        prepared.map(|(prepared, listeners)| ready(prepared, upstream(), listeners, loops.clone()));
    ready.collect()
}

/// What the listeners of a loop bring is dealt out to `loops`, unless each loop has its own.
fn ready<U: Upstream>(
    prepared: Prepared,
    upstream: U,
    listeners: Vec<Listener>,
    loops: Vec<Arc<LoopHandle>>,
) -> io::Result<ReadyLoop> {
    let mut acceptor = Acceptor::new(listeners, loops);
    acceptor.register(prepared.poll.registry(), LISTENERS)?;
    let handle = prepared.handle.clone();
    Ok(ReadyLoop {
        index: handle.index,
        body: Box::new(move || {
            let _own = OwnLoop::new(&handle);
            EventLoop::new(prepared, upstream, acceptor).run();
        }),
    })
}

/// Starts a thread for each. If one can't be started, all `loops` are told to end.
pub(crate) fn spawn_all(
    ready: impl IntoIterator<Item = ReadyLoop>,
    loops: &[Arc<LoopHandle>],
) -> io::Result<Vec<JoinHandle<()>>> {
    let threads: io::Result<Vec<_>> = ready.into_iter().map(ReadyLoop::spawn).collect();
    if threads.is_err() {
        for handle in loops {
            handle.post(Command::Shutdown(Instant::now()));
        }
    }
    threads
}
