//! What a loop needs from above. The loop knows neither handlers nor workers.

use std::collections::VecDeque;

use crate::link::Event;
use crate::peer::Peer;

/// Takes what connections have to say.
pub(crate) trait Upstream: Send + 'static {
    /// Whether [`deliver`](Self::deliver) runs handlers on the spot.
    fn is_inline(&self) -> bool;

    /// Delivers events in order and leaves `events` empty. `true`: the loop calls
    /// [`schedule`](Self::schedule) when it has gathered what its turn brings.
    fn deliver(&self, peer: &Peer, events: &mut VecDeque<Event>) -> bool;

    /// Makes a connection's events run.
    fn schedule(&self, peer: Peer);
}
