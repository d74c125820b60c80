//! What a loop needs from above. The loop knows neither handlers nor workers.

use std::collections::VecDeque;

use crate::error::Error;
use crate::link::{Dial, Event};
use crate::peer::Peer;

/// Takes what connections have to say.
pub(crate) trait Upstream: Send + 'static {
    /// Whether the connections are a client's, each with settings of its own. What a server does
    /// not need is thus not in its loop at all.
    const DIALS: bool = false;

    /// Whether [`deliver`](Self::deliver) runs handlers on the spot.
    fn is_inline(&self) -> bool;

    /// Delivers events in order and leaves `events` empty. `true`: the loop calls
    /// [`schedule`](Self::schedule) when it has gathered what its turn brings.
    fn deliver(&self, peer: &Peer, events: &mut VecDeque<Event>) -> bool;

    /// Makes a connection's events run.
    fn schedule(&self, peer: Peer);

    /// There will be no WebSocket: what was to be made of it comes back, with the reason.
    fn failed(&self, dial: Box<Dial>, error: Error) {
        drop((dial, error));
    }
}
