//! What one connection subscribes to.
//!
//! The set is kept under a lock, which is held while the command goes to the loop: two threads that
//! subscribe and unsubscribe one peer leave the set and the loop's list of subscribers alike.

use std::collections::HashSet;

use super::topics::{Named, Topic};
use super::{Command, Link, lock};

pub(super) type Subscriptions = HashSet<Named>;

impl Link {
    /// `false`: nothing can be sent any more, or there are no topics here.
    pub(crate) fn subscribe(&self, name: &str) -> bool {
        let mut subscriptions = lock(&self.extra.get_or_init(Box::default).subscriptions);
        // Sealed before `end_subscriptions`, so nothing is subscribed to behind that.
        if self.outbox().is_sealed() {
            return false;
        }
        if subscriptions.contains(name) {
            return true;
        }
        let topics = &self.handle.shared.topics;
        let Some(topic) = topics.enter(name, self.handle.index) else {
            return false;
        };
        let command = Command::Subscribe(self.id.key(), topic.number);
        self.handle.put_in_at_once(command);
        subscriptions.insert(Named(topic));
        true
    }

    /// `false`: it was not subscribed.
    pub(super) fn unsubscribe(&self, name: &str) -> bool {
        let Some(extra) = self.extra.get() else {
            return false;
        };
        let mut subscriptions = lock(&extra.subscriptions);
        let Some(Named(topic)) = subscriptions.take(name) else {
            return false;
        };
        if subscriptions.is_empty() {
            // It may have been large.
            *subscriptions = HashSet::new();
        }
        self.leave(&topic);
        true
    }

    /// The connection ends, and with it all that it subscribes to. Its outbox is sealed.
    pub(crate) fn end_subscriptions(&self) {
        debug_assert!(self.outbox().is_sealed());
        let Some(extra) = self.extra.get() else {
            return;
        };
        let mut subscriptions = lock(&extra.subscriptions);
        for Named(topic) in std::mem::take(&mut *subscriptions) {
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
