//! What one connection subscribes to.
//!
//! The set is kept under a lock, which is held while the command goes to the loop: two threads that
//! subscribe and unsubscribe one peer leave the set and the loop's list of subscribers alike.
//!
//! A topic with history may be *behind*: some of what was missed is still to be sent
//! ([`histories`](super::histories)). Only after that is it *live*, that is, on the loop's list. One that
//! is behind changes only under the lock of its feed, but for the end of the connection.

use std::collections::{BTreeMap, HashSet};
use std::ops::Bound;
use std::sync::Arc;

use super::topics::{MAX_NAME, Named, Topic};
use super::{Command, Link};
use crate::config::Compress;
use crate::history::{self, Since};
use crate::logging::Throttle;
use crate::sync::lock;

/// Each topic is in one of these at most.
#[derive(Debug, Default)]
pub(super) struct Subscriptions {
    live: HashSet<Named>,
    behind: BTreeMap<Box<str>, Behind>,
    /// Of those, the one that found no more room last: others go before it.
    latest: Option<Box<str>>,
    /// Behind as well, but by what is not known here yet: the feed knows of this connection.
    waiting: BTreeMap<Box<str>, Behind>,
}

/// A topic that is behind.
#[derive(Debug)]
struct Behind {
    /// What comes after this is still to be sent.
    since: Since,
    /// Counts it among the subscribers, so that the topic stays.
    seat: Arc<Topic>,
}

/// Whether a topic came to be behind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Begun {
    Yes,
    /// There are too many.
    Full,
    /// Nothing can be sent any more.
    Closed,
}

impl Subscriptions {
    /// Whether it has this already, or may have one more with `most` in all.
    fn may_have(&self, name: &str, most: usize) -> bool {
        let all = self.live.len() + self.behind.len() + self.waiting.len();
        all < most && name.len() <= MAX_NAME || self.has(name)
    }

    fn has(&self, name: &str) -> bool {
        self.live.contains(name)
            || self.behind.contains_key(name)
            || self.waiting.contains_key(name)
    }

    fn take_behind(&mut self, name: &str) -> Option<Arc<Topic>> {
        let behind = self.behind.remove(name);
        let taken = behind.or_else(|| self.waiting.remove(name));
        taken.map(|behind| behind.seat)
    }
}

impl Link {
    /// `false`: nothing can be sent any more, there are too many, or there are no topics here.
    pub(crate) fn subscribe(&self, name: &str) -> bool {
        let mut subscriptions = lock(&self.extra.get_or_init(Box::default).subscriptions);
        // Sealed before `end_subscriptions`, so nothing is subscribed to behind that.
        if self.outbox().is_sealed() {
            return false;
        }
        // One that is behind misses nothing until it is live.
        if subscriptions.has(name) {
            return true;
        }
        if !subscriptions.may_have(name, self.config().max_subscriptions) {
            drop(subscriptions);
            self.count_refused(name);
            return false;
        }
        self.enter(&mut subscriptions, name)
    }

    pub(crate) fn is_subscribed(&self, name: &str) -> bool {
        let extra = self.extra.get();
        extra.is_some_and(|extra| lock(&extra.subscriptions).has(name))
    }

    /// Whether it subscribes to this, or may do so.
    pub(super) fn may_subscribe(&self, name: &str) -> bool {
        let subscriptions = lock(&self.extra.get_or_init(Box::default).subscriptions);
        subscriptions.may_have(name, self.config().max_subscriptions)
    }

    /// The peer asked for this and may not subscribe to it: it is told.
    #[cold]
    pub(super) fn refuse(self: &Arc<Self>, name: &str, since: Since) {
        self.count_refused(name);
        let _ = self.send(history::refused(name, since), Compress::Auto);
    }

    #[cold]
    fn count_refused(&self, name: &str) {
        let losses = &self.handle.counters.losses;
        losses.subscriptions.add_from_any(1);
        static REFUSED: Throttle = Throttle::new();
        if let Some(more) = REFUSED.pass() {
            let (most, len) = (self.config().max_subscriptions, name.len());
            log::debug!(target: "framemill::topics", "{}: refused a topic, with a name of {len} bytes ({most} topics at most, of {MAX_NAME} bytes){more}", self.id);
        }
    }

    /// `false`: it was not subscribed.
    pub(super) fn unsubscribe(&self, name: &str) -> bool {
        let Some(extra) = self.extra.get() else {
            return false;
        };
        let mut subscriptions = lock(&extra.subscriptions);
        let Some(Named(topic)) = subscriptions.live.take(name) else {
            return false;
        };
        if subscriptions.live.is_empty() {
            // It may have been large.
            subscriptions.live = HashSet::new();
        }
        self.leave(&topic);
        true
    }

    /// Called under the lock.
    fn enter(&self, subscriptions: &mut Subscriptions, name: &str) -> bool {
        let topics = &self.handle.shared.topics;
        let Some(topic) = topics.enter(name, self.handle.index) else {
            return false;
        };
        let command = Command::Subscribe(self.id.key(), topic.number);
        self.handle.enqueue_behind_held(command);
        subscriptions.live.insert(Named(topic));
        true
    }

    /// Called under the lock.
    fn leave(&self, topic: &Topic) {
        let command = Command::Unsubscribe(self.id.key(), topic.number);
        self.handle.enqueue_behind_held(command);
        self.handle.shared.topics.leave(topic, self.handle.index);
    }

    // ---- topics that are behind ----

    /// From here on this topic is to be sent, instead of what was before. `known`: what that is, is known
    /// here.
    pub(super) fn fall_behind(&self, seat: &Arc<Topic>, since: Since, known: bool) -> Begun {
        let mut subscriptions = lock(&self.extra.get_or_init(Box::default).subscriptions);
        if self.outbox().is_sealed() {
            return Begun::Closed;
        }
        if !subscriptions.may_have(&seat.name, self.config().max_subscriptions) {
            return Begun::Full;
        }
        if let Some(Named(topic)) = subscriptions.live.take(&*seat.name) {
            self.leave(&topic);
        }
        if let Some(before) = subscriptions.take_behind(&seat.name) {
            self.handle.shared.topics.release(&before);
        }
        let list = match known {
            true => &mut subscriptions.behind,
            false => &mut subscriptions.waiting,
        };
        let seat = seat.clone();
        list.insert(seat.name.clone(), Behind { since, seat });
        Begun::Yes
    }

    /// The next that is behind, by turns.
    pub(super) fn next_behind(&self) -> Option<Arc<Topic>> {
        let subscriptions = lock(&self.extra.get()?.subscriptions);
        let behind = &subscriptions.behind;
        let after = subscriptions.latest.as_ref().and_then(|latest| {
            let rest = (Bound::Excluded(latest), Bound::Unbounded);
            behind.range::<Box<str>, _>(rest).next()
        });
        let (_, next) = after.or_else(|| behind.first_key_value())?;
        Some(next.seat.clone())
    }

    /// From where on this is still to be sent. `None`: it is not behind, or not known.
    pub(super) fn behind(&self, name: &str) -> Option<Since> {
        let subscriptions = lock(&self.extra.get()?.subscriptions);
        subscriptions.behind.get(name).map(|behind| behind.since)
    }

    /// Some of it has been sent.
    pub(super) fn still_behind(&self, name: &str, since: Since) {
        let Some(extra) = self.extra.get() else {
            return;
        };
        let mut subscriptions = lock(&extra.subscriptions);
        if let Some(behind) = subscriptions.behind.get_mut(name) {
            behind.since = since;
            subscriptions.latest = Some(name.into());
        }
    }

    /// What it waited for is known now; whoever wants only what is new begins with `now`.
    pub(super) fn wait_no_longer(&self, name: &str, now: Since) {
        let Some(extra) = self.extra.get() else {
            return;
        };
        let mut subscriptions = lock(&extra.subscriptions);
        if let Some((name, mut behind)) = subscriptions.waiting.remove_entry(name) {
            if behind.since == Since::Now {
                behind.since = now;
            }
            subscriptions.behind.insert(name, behind);
        }
    }

    /// All has been sent. Gives what counted it, to be released once the feed is not locked.
    pub(super) fn go_live(&self, name: &str) -> Option<Arc<Topic>> {
        let mut subscriptions = lock(&self.extra.get()?.subscriptions);
        let Behind { seat, .. } = subscriptions.behind.remove(name)?;
        if subscriptions.behind.is_empty() {
            subscriptions.latest = None;
        }
        if !self.outbox().is_sealed() {
            self.enter(&mut subscriptions, name);
        }
        Some(seat)
    }

    /// The rest of it is not wanted any more. Gives what counted it, as [`go_live`](Self::go_live) does.
    pub(super) fn give_up(&self, name: &str) -> Option<Arc<Topic>> {
        lock(&self.extra.get()?.subscriptions).take_behind(name)
    }

    /// The connection ends, and with it all that it subscribes to. Its outbox is sealed.
    pub(crate) fn end_subscriptions(&self) {
        debug_assert!(self.outbox().is_sealed());
        let Some(extra) = self.extra.get() else {
            return;
        };
        let mut subscriptions = lock(&extra.subscriptions);
        for Named(topic) in std::mem::take(&mut subscriptions.live) {
            self.leave(&topic);
        }
        let behind = std::mem::take(&mut subscriptions.behind);
        let waiting = std::mem::take(&mut subscriptions.waiting);
        // A feed is not locked under this lock.
        drop(subscriptions);
        let shared = &self.handle.shared;
        for name in waiting.keys() {
            shared.histories.nobody_waits(name, self.id);
        }
        for behind in behind.values().chain(waiting.values()) {
            shared.topics.release(&behind.seat);
        }
    }
}
