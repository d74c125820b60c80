//! What a loop needs from above. The loop knows neither handlers nor workers.

use std::collections::VecDeque;
use std::sync::Arc;

use crate::link::{Event, Link};

/// Takes what connections have to say.
pub(crate) trait Upstream: Send + 'static {
    /// Whether [`deliver`](Self::deliver) runs handlers on the spot.
    fn is_inline(&self) -> bool;

    /// Delivers events in order and leaves `events` empty; with handlers inline, those that a
    /// congested peer must not have yet are left in it. `true`: the loop calls
    /// [`schedule`](Self::schedule) when it has gathered what its turn brings.
    fn deliver(&self, link: &Arc<Link>, events: &mut VecDeque<Event>) -> bool;

    /// Makes a link's events run.
    fn schedule(&self, link: Arc<Link>);
}
