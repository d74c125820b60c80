//! Being in a topic, for others to see.

use std::fmt;
use std::sync::Arc;

use crate::link::Shared;

/// A name in a topic, for as long as this value lives: see [`ServerHandle::enter`](super::ServerHandle::enter). Keep
/// it in the session of a connection, and the name leaves with the connection.
#[must_use = "whoever enters leaves when this is dropped"]
pub struct Presence {
    shared: Arc<Shared>,
    topic: Box<str>,
    name: Box<str>,
}

impl Presence {
    pub(super) fn begin(shared: Arc<Shared>, topic: &str, name: &str) -> Self {
        shared.presences.enter(topic, name, || {
            if let Some(backplane) = &shared.backplane {
                backplane.announce(topic, name, true);
            }
        });
        let (topic, name) = (topic.into(), name.into());
        Self {
            shared,
            topic,
            name,
        }
    }
}

impl Drop for Presence {
    fn drop(&mut self) {
        let (shared, topic, name) = (&self.shared, &self.topic, &self.name);
        shared.presences.leave(topic, name, || {
            if let Some(backplane) = &shared.backplane {
                backplane.announce(topic, name, false);
            }
        });
    }
}

impl fmt::Debug for Presence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Presence({:?} in {:?})", self.name, self.topic)
    }
}
