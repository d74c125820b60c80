//! What one connection subscribes to.
//!
//! The set is kept under a lock, which is held while the command goes to the loop: two threads that
//! subscribe and unsubscribe one peer leave the set and the loop's list of subscribers alike.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::topics::{Named, Topic};
use super::{Command, Link, lock};

/// Nothing but a pointer for most connections.
pub(super) type Subscriptions = Option<Box<HashSet<Named>>>;

impl Link {
    /// `false`: nothing can be sent any more, or there are no topics here.
    pub(crate) fn subscribe(&self, name: &str) -> bool {
        if self.outbox().is_sealed() {
            return false;
        }
        let mut subscriptions = lock(&self.subscriptions);
        if self.unsubscribed.load(Ordering::Relaxed) {
            return false;
        }
        if subscriptions.as_ref().is_some_and(|s| s.contains(name)) {
            return true;
        }
        let topics = &self.handle.shared.topics;
        let Some(topic) = topics.enter(name, self.handle.index) else {
            return false;
        };
        let command = Command::Subscribe(self.id.key(), topic.number);
        self.handle.put_in(command);
        subscriptions.get_or_insert_default().insert(Named(topic));
        true
    }

    /// `false`: it was not subscribed.
    pub(crate) fn unsubscribe(&self, name: &str) -> bool {
        let mut subscriptions = lock(&self.subscriptions);
        let set = subscriptions.as_mut();
        // What the connection had when it ended is the loop's to take.
        let alive = !self.unsubscribed.load(Ordering::Relaxed);
        let Some(Named(topic)) = set.filter(|_| alive).and_then(|set| set.take(name)) else {
            return false;
        };
        let command = Command::Unsubscribe(self.id.key(), topic.number);
        self.handle.put_in(command);
        if subscriptions.as_ref().is_some_and(|set| set.is_empty()) {
            *subscriptions = None;
        }
        drop(subscriptions);
        self.handle.shared.topics.leave(&topic, self.handle.index);
        true
    }

    /// The connection ends: it counts no longer as a subscriber. May be called twice.
    pub(crate) fn end_subscriptions(&self) {
        let subscriptions = lock(&self.subscriptions);
        if self.unsubscribed.swap(true, Ordering::Relaxed) {
            return;
        }
        for Named(topic) in subscriptions.iter().flat_map(|set| set.iter()) {
            self.handle.shared.topics.leave(topic, self.handle.index);
        }
    }

    /// What the connection subscribed to when it ended, for the loop to strike it off its lists.
    pub(crate) fn take_subscriptions(&self) -> impl Iterator<Item = Arc<Topic>> + use<> {
        self.end_subscriptions();
        let subscriptions = lock(&self.subscriptions).take();
        let topics = subscriptions.into_iter().flat_map(|set| set.into_iter());
        topics.map(|Named(topic)| topic)
    }
}
