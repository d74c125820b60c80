//! How a loop is made and its thread started, and what its tokens mean.

use std::io;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Instant;

use mio::{Poll, Token};

use super::EventLoop;
use crate::id::{Key, PeerId};
use crate::link::{Command, CommandReceiver, LoopHandle, Shared};
use crate::net::Listener;
use crate::reactor::acceptor::Acceptor;
use crate::reactor::upstream::Upstream;

pub(super) const WAKER: Token = Token(usize::MAX);
/// Connections have their slot for a token, and above it their generation where there is room: a
/// socket that is on a worker for its TLS handshake may outlive its connection, and its events are not
/// for the connection that has the slot by then. Listeners begin here.
pub(super) const LISTENERS: usize = PeerId::MAX_SLOTS as usize;
pub(super) const LAST_LISTENER: usize = u32::MAX as usize - 1;

pub(super) fn token(key: Key) -> Token {
    let generation = (key.generation as usize).checked_shl(32).unwrap_or(0);
    Token(key.slot as usize | generation)
}

/// A loop that can be started: what can fail has succeeded.
pub(crate) struct Prepared {
    pub(super) poll: Poll,
    pub(super) receiver: CommandReceiver,
    pub(super) handle: Arc<LoopHandle>,
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
        })
    }
}

pub(crate) fn handles(prepared: &[Prepared]) -> Vec<Arc<LoopHandle>> {
    prepared.iter().map(|p| p.handle.clone()).collect()
}

/// Starts the threads of all loops, each with the next of `listeners` and with what `upstream` makes. If one
/// can't be started, those that were are told to end.
pub(crate) fn spawn_all<U: Upstream>(
    prepared: Vec<Prepared>,
    upstream: impl Fn() -> U,
    listeners: impl IntoIterator<Item = Vec<Listener>>,
) -> io::Result<Vec<JoinHandle<()>>> {
    let loops = handles(&prepared);
    let threads: io::Result<Vec<_>> = prepared
        .into_iter()
        .zip(listeners)
        .map(|(prepared, listeners)| spawn(prepared, upstream(), listeners, loops.clone()))
        .collect();
    if threads.is_err() {
        for handle in loops {
            handle.post(Command::Shutdown(Instant::now()));
        }
    }
    threads
}

/// Starts the thread of a loop. What its listeners bring is dealt out to `loops`, unless each loop has
/// its own.
fn spawn<U: Upstream>(
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
