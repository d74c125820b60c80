//! What one connection subscribes to.
//!
//! The set is kept under a lock, which is held while the command goes to the loop: two threads that
//! subscribe and unsubscribe one peer leave the set and the loop's list of subscribers alike.

use std::collections::HashSet;

use super::topics::{Named, Topic};
use super::{Command, Link, lock};

/// Nothing but a pointer for most connections.
pub(super) type Subscriptions = Option<Box<HashSet<Named>>>;

impl Link {
    /// `false`: nothing can be sent any more, or there are no topics here.
    pub(crate) fn subscribe(&self, name: &str) -> bool {
        let mut subscriptions = lock(&self.subscriptions);
        // Sealed before `end_subscriptions`, so nothing is subscribed to behind that.
        if self.outbox().is_sealed() {
            return false;
        }
        if subscriptions.as_ref().is_some_and(|set| set.contains(name)) {
            return true;
        }
        let topics = &self.handle.shared.topics;
        let Some(topic) = topics.enter(name, self.handle.index) else {
            return false;
        };
        let command = Command::Subscribe(self.id.key(), topic.number);
        self.handle.put_in_at_once(command);
        subscriptions.get_or_insert_default().insert(Named(topic));
        true
    }

    /// `false`: it was not subscribed.
    pub(super) fn unsubscribe(&self, name: &str) -> bool {
        let mut subscriptions = lock(&self.subscriptions);
        let Some(set) = subscriptions.as_mut() else {
            return false;
        };
        let Some(Named(topic)) = set.take(name) else {
            return false;
        };
        if set.is_empty() {
            *subscriptions = None;
        }
        self.leave(&topic);
        true
    }

    /// The connection ends, and with it all that it subscribes to. Its outbox is sealed.
    pub(crate) fn end_subscriptions(&self) {
        debug_assert!(self.outbox().is_sealed());
        let mut subscriptions = lock(&self.subscriptions);
        for Named(topic) in subscriptions.take().into_iter().flat_map(|set| *set) {
            self.leave(&topic);
        }
    }

    /// Called under the lock.
    fn leave(&self, topic: &Topic) {
        let command = Command::Unsubscribe(self.id.key(), topic.number);
        self.handle.put_in_at_once(command);
        self.handle.shared.topics.leave(topic, self.handle.index);
    }
}
