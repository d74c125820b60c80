//! What a loop needs from above. The loop knows neither handlers nor workers.

use std::time::Instant;

use crate::error::Error;
use crate::link::{Dial, EventBatch};
use crate::message::Message;
use crate::peer::Peer;

/// Takes what connections have to say.
pub(crate) trait Upstream: Send + 'static {
    /// Whether the connections are a client's, each with settings of its own. What a server does
    /// not need is thus not in its loop at all.
    const DIALS: bool = false;

    /// A connection whose handler is being called on the spot, message by message.
    type Run<'a>: Run;

    /// Calls the handler of `peer` on the spot for whatever `body` gives to it. Nothing may be delivered
    /// to this connection meanwhile. `None`: the handler panicked in the middle. Used only where
    /// [`is_inline`](Self::is_inline), and by servers.
    fn run<R>(&self, peer: &Peer, body: impl FnOnce(&mut Self::Run<'_>) -> R) -> Option<R>;

    /// Whether [`deliver`](Self::deliver) runs handlers on the spot.
    fn is_inline(&self) -> bool;

    /// Delivers events in order and leaves `events` empty. `true`: the loop calls
    /// [`schedule`](Self::schedule) when it has gathered what its turn brings.
    fn deliver(&self, peer: &Peer, events: &mut EventBatch) -> bool;

    /// Makes a connection's events run. `since`: this is one of those whose waiting is measured.
    fn schedule(&self, peer: Peer, since: Option<Instant>);

    /// There will be no WebSocket: what was to be made of it comes back, with the reason.
    fn failed(&self, dial: Box<Dial>, error: Error) {
        drop((dial, error));
    }
}

/// See [`Upstream::run`].
pub(crate) trait Run {
    /// Takes the message. Returns how many bytes it was inflated to, if it had to be.
    fn message(&mut self, message: &mut Message) -> usize;
}

/// Of those that have none.
pub(crate) enum NoRun {}

impl Run for NoRun {
    fn message(&mut self, _: &mut Message) -> usize {
        match *self {}
    }
}
