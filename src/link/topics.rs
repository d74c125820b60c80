//! The topics of a server by name, how many subscribe to each on which loop, and how a message gets to
//! all of them.
//!
//! A name is looked up once per publish; the loops know topics by number only. Each loop has the list
//! of its own subscribers (`reactor`), and commands to change it go through the same channel as what
//! is published: so that a thread which subscribes and then publishes, or tells another to, finds
//! the subscriber there. The counts here change at the call, and serve to leave out loops on which
//! nobody listens.
//!
//! A topic is here only while it has subscribers, so names may come and go. One that comes back has
//! another number.

use std::borrow::Borrow;
use std::collections::HashSet;
use std::hash::{Hash, Hasher};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard, Weak};

use super::outbox::QueueKey;
use super::{Feeds, LoopHandle, Shared, SharedFrame};
use crate::backplane::{Backplane, Post};
use crate::id::PeerId;
use crate::message::{LatestKey, Message};

/// Bytes of the longest name that may be subscribed to: each is kept a few times.
pub(super) const MAX_NAME: usize = 1024;

/// See the module's documentation.
#[derive(Debug, Default)]
pub(crate) struct Topics {
    /// The loops of the server; not set for clients, who have no topics.
    loops: OnceLock<Box<[Weak<LoopHandle>]>>,
    /// Those that have subscribers.
    by_name: RwLock<HashSet<Named>>,
    /// The number of the next topic that is new.
    next: AtomicU64,
    /// Told of the first and the last subscriber of each.
    backplane: OnceLock<Arc<dyn Backplane>>,
    /// Told of the last one.
    histories: OnceLock<Arc<Feeds>>,
}

/// A name that somebody subscribes to, or did a moment ago.
#[derive(Debug)]
pub(crate) struct Topic {
    /// Never used for another.
    pub(crate) number: u64,
    pub(super) name: Box<str>,
    /// See [`Backplane::mark`]; from when it came to be here.
    mark: Option<(u64, u64)>,
    /// Of all loops. Grows only while the topic is in `Topics::by_name`, under its lock.
    subscribers: AtomicUsize,
    /// Of each loop.
    on_loop: Box<[AtomicUsize]>,
}

/// A topic, to be found by its name.
#[derive(Clone, Debug)]
pub(super) struct Named(pub(super) Arc<Topic>);

impl Borrow<str> for Named {
    fn borrow(&self) -> &str {
        &self.0.name
    }
}

impl Hash for Named {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.name.hash(state);
    }
}

impl PartialEq for Named {
    fn eq(&self, other: &Self) -> bool {
        self.0.name == other.0.name
    }
}

impl Eq for Named {}

/// A message on its way to the subscribers of a topic.
#[derive(Debug)]
pub(crate) struct Publication {
    /// The number of the topic.
    pub(crate) topic: u64,
    pub(crate) frame: SharedFrame,
    /// The connection that sent it, which does not get it.
    pub(crate) except: Option<PeerId>,
    /// Set if only the latest matters to those who don't keep up.
    pub(crate) latest: Option<QueueKey>,
}

impl Topics {
    /// These are the loops of the server.
    pub(crate) fn span(&self, loops: &[Arc<LoopHandle>]) {
        // Set once: a server starts once.
        let _ = self.loops.set(loops.iter().map(Arc::downgrade).collect());
    }

    /// Topics span other servers as well.
    pub(super) fn span_nodes(&self, backplane: Arc<dyn Backplane>) {
        let _ = self.backplane.set(backplane);
    }

    /// Some keep their last messages.
    pub(super) fn keep(&self, histories: Arc<Feeds>) {
        let _ = self.histories.set(histories);
    }

    /// Counts a subscriber on this loop in. `None`: there are no topics here.
    pub(super) fn enter(&self, name: &str, loop_index: usize) -> Option<Arc<Topic>> {
        self.enter_with(name, Some(loop_index))
    }

    /// Counts a subscriber in that is on no loop's list yet.
    pub(super) fn reserve(&self, name: &str) -> Option<Arc<Topic>> {
        self.enter_with(name, None)
    }

    fn enter_with(&self, name: &str, loop_index: Option<usize>) -> Option<Arc<Topic>> {
        let loops = self.loops.get()?.len();
        if let Some(Named(topic)) = self.read().get(name) {
            topic.enter(loop_index);
            return Some(topic.clone());
        }
        let mut by_name = self.write();
        if !by_name.contains(name) {
            by_name.insert(Named(Arc::new(Topic {
                number: self.next.fetch_add(1, Ordering::Relaxed),
                name: name.into(),
                mark: self.backplane.get().and_then(|b| b.mark(name)),
                subscribers: AtomicUsize::new(0),
                on_loop: (0..loops).map(|_| AtomicUsize::new(0)).collect(),
            })));
            // Under the lock, so that it is told in the order of what happens.
            if let Some(backplane) = self.backplane.get() {
                backplane.subscribe(name);
            }
        }
        let topic = by_name.get(name)?.0.clone();
        topic.enter(loop_index);
        Some(topic)
    }

    /// Counts one out.
    pub(super) fn leave(&self, topic: &Topic, loop_index: usize) {
        topic.on_loop[loop_index].fetch_sub(1, Ordering::Relaxed);
        self.release(topic);
    }

    /// Counts one out that was on no loop's list.
    pub(super) fn release(&self, topic: &Topic) {
        if topic.subscribers.fetch_sub(1, Ordering::AcqRel) > 1 {
            return;
        }
        let mut by_name = self.write();
        // Somebody may have entered meanwhile, or this one have been replaced by one of the same name.
        let here = by_name.get(&*topic.name);
        if here.is_some_and(|here| here.0.number == topic.number && here.0.subscribers() == 0) {
            by_name.remove(&*topic.name);
            let backplane = self.backplane.get();
            if let Some(backplane) = backplane {
                backplane.unsubscribe(&topic.name);
            }
            if let Some(histories) = self.histories.get() {
                let elsewhere = backplane.is_some_and(|backplane| backplane.keeps_history());
                histories.forget(&topic.name, elsewhere);
            }
        }
    }

    /// Whether there are any: a client has none.
    pub(super) fn are_here(&self) -> bool {
        self.loops.get().is_some()
    }

    /// The number of a topic that has subscribers.
    pub(super) fn number(&self, name: &str) -> Option<u64> {
        self.read().get(name).map(|topic| topic.0.number)
    }

    /// What is published here after this is for those who subscribed on this node. `None`: nobody does;
    /// the inner one: the backplane can't tell.
    pub(super) fn mark(&self, name: &str) -> Option<Option<(u64, u64)>> {
        self.read().get(name).map(|topic| topic.0.mark)
    }

    /// All loops, and whether they have subscribers of this.
    pub(super) fn on_loops(&self, name: &str) -> Vec<(Arc<LoopHandle>, bool)> {
        let Some(Named(topic)) = self.read().get(name).cloned() else {
            return Vec::new();
        };
        let loops = self.loops.get().into_iter().flatten();
        let loops = loops.zip(&topic.on_loop).map(|(handle, subscribers)| {
            let wanted = subscribers.load(Ordering::Relaxed) > 0;
            // A loop that is gone has no subscribers.
            handle.upgrade().map(|handle| (handle, wanted))
        });
        loops.flatten().collect()
    }

    /// How many subscribe to this.
    pub(crate) fn subscribers(&self, name: &str) -> usize {
        self.read()
            .get(name)
            .map_or(0, |topic| topic.0.subscribers())
    }

    fn read(&self) -> RwLockReadGuard<'_, HashSet<Named>> {
        self.by_name.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, HashSet<Named>> {
        self.by_name.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Topic {
    fn enter(&self, loop_index: Option<usize>) {
        self.subscribers.fetch_add(1, Ordering::Relaxed);
        if let Some(index) = loop_index {
            self.on_loop[index].fetch_add(1, Ordering::Relaxed);
        }
    }

    fn subscribers(&self) -> usize {
        self.subscribers.load(Ordering::Acquire)
    }
}

impl Shared {
    /// Sends a message to all who subscribe to `name`, on all nodes. `false`: it is no data message,
    /// there are no topics here, or the server has ended.
    pub(crate) fn publish(
        &self,
        name: &str,
        message: &Message,
        except: Option<PeerId>,
        latest: Option<LatestKey>,
    ) -> bool {
        if self.has_ended() {
            return false;
        }
        if let Some(keep) = self.histories.of(name) {
            let post = Post::new(name, message.clone());
            return self.publish_kept(Post { latest, ..post }, keep, except);
        }
        let Some(backplane) = &self.backplane else {
            return self.publish_here(name, message, except, latest);
        };
        let published = self.publish_here(name, message, except, latest.clone());
        // Nobody could ever subscribe to a longer one.
        if published && name.len() <= MAX_NAME {
            let post = Post::new(name, message.clone());
            backplane.publish(Post { latest, ..post });
        }
        published
    }

    /// The same for those on this node: one command to each loop that has any.
    pub(super) fn publish_here(
        &self,
        name: &str,
        message: &Message,
        except: Option<PeerId>,
        latest: Option<LatestKey>,
    ) -> bool {
        let topics = &self.topics;
        let Some(loops) = topics.loops.get() else {
            return false;
        };
        if !(message.is_text() || message.is_binary()) {
            return false;
        }
        let Some(Named(topic)) = topics.read().get(name).cloned() else {
            return true;
        };
        let Some(frame) = SharedFrame::encode(message, self, self.compress(name)) else {
            return false;
        };
        let publication = Arc::new(Publication {
            topic: topic.number,
            frame,
            except,
            latest: latest.map(|key| QueueKey::published(topic.number, key)),
        });
        for (handle, subscribers) in loops.iter().zip(&topic.on_loop) {
            if subscribers.load(Ordering::Relaxed) > 0 {
                // A loop that is gone has no subscribers.
                if let Some(handle) = handle.upgrade() {
                    handle.publish(publication.clone());
                }
            }
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    fn on_two_loops() -> Topics {
        let topics = Topics::default();
        let poll = mio::Poll::new().unwrap();
        let shared = Arc::new(Shared::new(Config::default()));
        let waker = mio::Waker::new(poll.registry(), mio::Token(0)).unwrap();
        let (handle, _receiver) = LoopHandle::new(0, shared, waker);
        topics.span(&[handle.clone(), handle]);
        topics
    }

    #[test]
    fn names_come_and_go() {
        let topics = on_two_loops();
        let first = topics.enter("a", 0).unwrap();
        let again = topics.enter("a", 1).unwrap();
        assert!(Arc::ptr_eq(&first, &again));
        assert_eq!((topics.subscribers("a"), topics.subscribers("b")), (2, 0));
        topics.leave(&first, 0);
        assert_eq!(topics.subscribers("a"), 1);
        topics.leave(&first, 1);
        assert_eq!((topics.subscribers("a"), topics.read().len()), (0, 0));
        let other = topics.enter("a", 0).unwrap();
        assert_ne!(first.number, other.number, "late commands are not for it");
    }

    #[test]
    fn without_loops_there_are_none() {
        assert!(Topics::default().enter("a", 0).is_none());
    }

    /// Whoever has entered is found for as long as it stays, whoever else leaves meanwhile.
    #[test]
    fn nobody_is_lost_between_names_that_come_and_go() {
        let topics = on_two_loops();
        std::thread::scope(|scope| {
            for loop_index in [0, 1, 0, 1] {
                let topics = &topics;
                scope.spawn(move || {
                    for n in 0..20_000 {
                        let name = if n % 3 == 0 { "a" } else { "b" };
                        let topic = topics.enter(name, loop_index).unwrap();
                        assert!(topics.subscribers(name) > 0);
                        let found = topics.read().get(name).cloned().unwrap().0;
                        assert!(Arc::ptr_eq(&found, &topic));
                        topics.leave(&topic, loop_index);
                    }
                });
            }
        });
        assert!(topics.read().is_empty());
    }
}
