//! What a loop needs from above. The loop knows neither handlers nor workers.

use std::time::Instant;

use crate::error::Error;
use crate::link::{Dial, EventBatch};
use crate::message::Message;
use crate::peer::Peer;
use crate::proto::Role;

/// Takes what connections have to say.
pub(crate) trait Upstream: Send + 'static {
    /// Which side of its connections the loop is: a client's have settings of their own, each. What a
    /// server does not need is thus not in its loop at all.
    const ROLE: Role;

    /// See [`inline`](Self::inline); [`NotInline`] where that gives none.
    type Inline: InlineUpstream;

    /// What calls handlers message by message, if anything does.
    fn inline(&self) -> Option<&Self::Inline> {
        None
    }

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

/// Calls handlers on the spot for one message after the other, as they are found, past the events.
pub(crate) trait InlineUpstream {
    /// A connection whose handler is being called.
    type Run<'a>: InlineRun;

    /// Calls the handler of `peer` for whatever `body` gives to it. Nothing may be delivered to this
    /// connection meanwhile. `None`: the handler panicked in the middle.
    fn run<R>(&self, peer: &Peer, body: impl FnOnce(&mut Self::Run<'_>) -> R) -> Option<R>;
}

/// See [`InlineUpstream::run`].
pub(crate) trait InlineRun {
    /// Takes the message. Returns how many bytes it was inflated to, if it had to be.
    fn message(&mut self, message: &mut Message) -> usize;
}

/// Nothing calls handlers message by message.
pub(crate) enum NotInline {}

impl InlineUpstream for NotInline {
    type Run<'a> = Self;

    fn run<R>(&self, _: &Peer, _: impl FnOnce(&mut Self) -> R) -> Option<R> {
        match *self {}
    }
}

impl InlineRun for NotInline {
    fn message(&mut self, _: &mut Message) -> usize {
        match *self {}
    }
}
