//! The [`Feed`]s by name: which topics have one, and when it is forgotten.
//!
//! One to which nothing was published goes with its last subscriber. Of the others, those of which all is
//! too old go, and, of those that nobody subscribes to, the ones to which nothing was published for the
//! longest time, if all together have become too large: both are looked for now and then.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};

use super::Shared;
use super::feed::Feed;
use crate::history::History;
use crate::id::PeerId;
use crate::patterns::Patterns;
use crate::sync::lock;

/// Feeds in memory of which all is too old are looked for whenever there are this many more.
const SWEEP: usize = 1024;

/// See the module's documentation.
#[derive(Debug, Default)]
pub(crate) struct Feeds {
    /// In the order in which they were set: the first that matches counts.
    patterns: Patterns<History>,
    feeds: Mutex<Table>,
    /// Bytes that were kept since it was last looked at what is idle.
    grown: AtomicUsize,
}

#[derive(Debug, Default)]
struct Table {
    by_name: HashMap<Box<str>, Arc<Mutex<Feed>>>,
    /// With this many, those that are over are looked for.
    sweep_at: usize,
    /// Of those that are numbered here and begin now; 0 before there are any.
    epoch: u64,
}

impl Table {
    /// Numbers that were given may be given again from now on.
    fn begin_epoch(&mut self) {
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        let now = since.map_or(1, |since| since.as_micros() as u64);
        self.epoch = now.max(self.epoch + 1);
    }
}

/// Whether nobody has a feed but the map, under whose lock this is asked: so nobody else gets it, and it
/// is not locked. Only such a feed may be locked under the map's lock, against the order of locks (see
/// [`link`](super), *Locks*).
fn is_unused(feed: &Arc<Mutex<Feed>>) -> bool {
    Arc::strong_count(feed) == 1
}

impl Feeds {
    pub(crate) fn keep(&mut self, pattern: &str, history: History) {
        self.patterns.add(pattern, history);
    }

    /// What this topic keeps.
    pub(super) fn of(&self, topic: &str) -> Option<History> {
        let history = self.patterns.of(topic)?;
        // A line feed would end its name in what clients are told.
        (!topic.contains('\n')).then_some(*history)
    }

    /// The feed of a topic, a new one if need be. `here`: this server numbers the messages.
    pub(super) fn feed(&self, topic: &str, keep: History, here: bool) -> Arc<Mutex<Feed>> {
        let mut feeds = lock(&self.feeds);
        if let Some(feed) = feeds.by_name.get(topic) {
            return feed.clone();
        }
        if here && feeds.by_name.len() >= feeds.sweep_at {
            let over = |feed: &_| is_unused(feed) && lock(feed).is_over(Duration::from_secs(60));
            let before = feeds.by_name.len();
            feeds.by_name.retain(|_, feed| !over(feed));
            if feeds.by_name.len() < before {
                feeds.begin_epoch();
            }
            feeds.sweep_at = feeds.by_name.len() + SWEEP;
        }
        if here && feeds.epoch == 0 {
            feeds.begin_epoch();
        }
        let epoch = here.then_some(feeds.epoch);
        let feed = Arc::new(Mutex::new(Feed::new(keep, epoch)));
        feeds.by_name.insert(topic.into(), feed.clone());
        feed
    }

    /// The feed of a topic, if there is one.
    pub(super) fn existing(&self, topic: &str) -> Option<Arc<Mutex<Feed>>> {
        lock(&self.feeds).by_name.get(topic).cloned()
    }

    /// Nobody subscribes to this any more. `elsewhere`: what was kept can be had again. What is here
    /// stays, if it is anything: a feed to which nothing was published can be made again as it was.
    pub(super) fn forget(&self, topic: &str, elsewhere: bool) {
        if self.of(topic).is_none() {
            return;
        }
        let by_name = &mut lock(&self.feeds).by_name;
        let is_new = |feed| is_unused(feed) && lock(feed).is_new();
        if elsewhere || by_name.get(topic).is_some_and(is_new) {
            by_name.remove(topic);
            if by_name.len() < by_name.capacity() / 8 {
                by_name.shrink_to(by_name.len() * 2);
            }
        }
    }

    /// This connection has ended.
    pub(super) fn nobody_waits(&self, topic: &str, id: PeerId) {
        if let Some(feed) = self.existing(topic) {
            lock(&feed).wait_no_longer(id);
        }
    }
}

// ---- what nobody subscribes to ----

/// What a feed costs without its messages and its name, about.
const FEED: usize = 600;

/// A feed that nobody uses at the moment.
struct Idle {
    name: Box<str>,
    /// When something was published to it.
    latest: Instant,
    bytes: usize,
}

impl Feeds {
    /// `bytes` more are about to be kept. `true`: it is time to look at what is idle.
    fn grows(&self, bytes: usize, step: usize) -> bool {
        let before = self.grown.fetch_add(bytes, Ordering::Relaxed);
        before < step && before.saturating_add(bytes) >= step
    }

    fn idle<T>(&self, tell: impl Fn(&str, Instant, usize) -> T) -> Vec<T> {
        let feeds = lock(&self.feeds);
        let unused = feeds.by_name.iter().filter(|(_, feed)| is_unused(feed));
        let told = unused.map(|(name, feed)| {
            let feed = lock(feed);
            tell(name, feed.latest(), FEED + name.len() + feed.size())
        });
        told.collect()
    }

    fn forget_all<'a>(&self, names: impl Iterator<Item = &'a str>) {
        let mut feeds = lock(&self.feeds);
        for name in names {
            if feeds.by_name.get(name).is_some_and(is_unused) {
                feeds.by_name.remove(name);
            }
        }
        feeds.begin_epoch();
    }
}

impl Shared {
    /// `bytes` of this topic are about to be kept: makes room now and then.
    pub(super) fn make_room_to_keep(&self, topic: &str, bytes: usize) {
        let most = self.config.idle_histories;
        let step = (most / 8).max(64 << 10);
        if self.histories.grows(FEED + topic.len() + bytes, step) {
            self.forget_idle(most);
            self.histories.grown.store(0, Ordering::Relaxed);
        }
    }

    fn forget_idle(&self, most: usize) {
        let all: usize = self.histories.idle(|_, _, bytes| bytes).iter().sum();
        if all <= most {
            return;
        }
        let mut idle = self.histories.idle(|name, latest, bytes| Idle {
            name: name.into(),
            latest,
            bytes,
        });
        // Whoever subscribes after this misses nothing of what comes, or is told what it has missed.
        idle.retain(|idle| self.topics.number(&idle.name).is_none());
        let all: usize = idle.iter().map(|idle| idle.bytes).sum();
        let mut excess = all.saturating_sub(most);
        idle.sort_unstable_by_key(|idle| idle.latest);
        let gone = idle.iter().take_while(|idle| {
            let goes = excess > 0;
            excess = excess.saturating_sub(idle.bytes);
            goes
        });
        self.histories.forget_all(gone.map(|idle| &*idle.name));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::addr::RemoteAddr;
    use crate::config::Config;
    use crate::history::Since;
    use crate::id::Key;
    use crate::link::{Link, LoopHandle};
    use crate::message::Message;

    /// A server with one loop that nobody runs, and a connection.
    fn link(history: History) -> (Arc<Shared>, Arc<Link>) {
        let mut shared = Shared::new(Config {
            max_subscriptions: usize::MAX,
            ..Config::default()
        });
        let mut histories = Feeds::default();
        histories.keep("news/*", history);
        shared.keep(histories);
        let shared = Arc::new(shared);
        let poll = mio::Poll::new().unwrap();
        let waker = mio::Waker::new(poll.registry(), mio::Token(0)).unwrap();
        let (handle, _receiver) = LoopHandle::new(0, shared.clone(), waker);
        shared.topics.span(std::slice::from_ref(&handle));
        let key = Key {
            slot: 0,
            generation: 1,
        };
        let id = PeerId::new(0, key);
        let link = Link::new(id, RemoteAddr::Unix, handle, None);
        (shared, Arc::new(link))
    }

    fn feeds(shared: &Shared) -> usize {
        lock(&shared.histories.feeds).by_name.len()
    }

    fn publish(shared: &Shared, topic: &str) {
        assert!(shared.publish(topic, &Message::text("x"), None, None));
    }

    /// Or peers could fill the memory with the names of topics.
    #[test]
    fn topics_to_which_nothing_was_published_go_with_their_subscribers() {
        let (shared, link) = link(History::last(10));
        for n in 0..10_000 {
            assert!(link.subscribe_from(&format!("news/{n}"), Since::Now));
        }
        for n in 0..5000 {
            assert!(link.unsubscribe_from(&format!("news/{n}")));
        }
        assert_eq!(feeds(&shared), 5000);
        publish(&shared, "news/5000");
        let before = lock(&shared.histories.existing("news/6000").unwrap()).last();
        link.outbox().abandon();
        link.end_subscriptions();
        assert_eq!(feeds(&shared), 1);
        assert!(lock(&shared.histories.feeds).by_name.capacity() < 1000);
        // Whoever saw it so misses nothing when it comes back.
        let feed = shared.feed("news/6000", History::last(10));
        publish(&shared, "news/6000");
        assert_eq!(lock(&feed).replay(before.into()).gap, None);
    }

    /// Somebody is about to append to one that is empty, when others are looked through.
    #[test]
    fn a_feed_in_use_is_not_forgotten() {
        let (shared, link) = link(History::for_the_last(Duration::from_secs(1)));
        let of = |topic: &str| shared.histories.of(topic).unwrap();
        assert!(link.subscribe_from("news/used", Since::Now));
        let used = shared.feed("news/used", of("news/used"));
        assert!(link.unsubscribe_from("news/used"));
        let unused = Arc::downgrade(&shared.feed("news/unused", of("news/unused")));
        let last = lock(&used).last();
        for n in 0..2 * SWEEP {
            publish(&shared, &format!("news/{n}"));
        }
        assert!(unused.upgrade().is_none());
        let again = shared.feed("news/used", of("news/used"));
        assert!(Arc::ptr_eq(&used, &again));
        // Numbers may have been given by those that are gone.
        drop((used, again));
        shared.histories.forget("news/used", false);
        let later = shared.feed("news/used", of("news/used"));
        assert!(lock(&later).last().epoch > last.epoch);
    }
}
