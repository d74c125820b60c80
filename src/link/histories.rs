//! Topics that keep their last messages: which do, and how somebody gets from what is kept to what is
//! live without a gap and without anything twice.
//!
//! Each has a [`Feed`] behind a lock. Whoever publishes appends and asks the loops under that lock, and
//! whoever subscribes is sent what it missed and put on the loop's list under it as well; commands of a
//! loop are carried out in order, so one is wholly before the other.
//!
//! Under that lock nobody may wait for a loop: the loop may wait for the lock. So room is made before.
//!
//! Locks, in the order in which they are taken: a feed, the subscriptions of a link, the names of the
//! topics, the feeds by name.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, SystemTime};

use super::feed::{Feed, Gap, News, Replay, Waiting};
use super::queue::QueueKey;
use super::topics::Publication;
use super::{Link, LoopHandle, Permit, Shared, SharedFrame, lock};
use crate::backplane::{Kept, Node, Post, Tail};
use crate::config::Compress;
use crate::history::{History, Offset, Since};
use crate::id::PeerId;
use crate::message::{LatestKey, Message};

/// Feeds in memory of which all is too old are forgotten when there are so many more.
const SWEEP: usize = 1024;

/// See the module's documentation.
#[derive(Debug, Default)]
pub(crate) struct Histories {
    /// In the order in which they were set: the first that matches counts.
    patterns: Vec<(Box<str>, History)>,
    feeds: Mutex<Feeds>,
}

#[derive(Debug, Default)]
struct Feeds {
    by_name: HashMap<Box<str>, Arc<Mutex<Feed>>>,
    /// So many are too many to go on without looking for those that are over.
    sweep_at: usize,
}

/// Room on the loops that have subscribers of a topic.
struct Room(Vec<(Arc<LoopHandle>, Permit)>);

impl Room {
    /// For a loop whose first subscriber has come since, there is always room.
    fn take(&mut self, handle: &Arc<LoopHandle>) -> Permit {
        let mut loops = self.0.iter_mut();
        let own = loops.find(|(other, _)| Arc::ptr_eq(other, handle));
        own.map(|(_, permit)| std::mem::take(permit))
            .unwrap_or_default()
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        for (handle, permit) in self.0.drain(..) {
            handle.give_back(permit);
        }
    }
}

impl Histories {
    pub(crate) fn keep(&mut self, pattern: &str, history: History) {
        self.patterns.push((pattern.into(), history));
    }

    /// What this topic keeps.
    pub(super) fn of(&self, topic: &str) -> Option<History> {
        let matches = |pattern: &str| match pattern.strip_suffix('*') {
            Some(start) => topic.starts_with(start),
            None => topic == pattern,
        };
        let mut patterns = self.patterns.iter();
        let (_, history) = patterns.find(|(pattern, _)| matches(pattern))?;
        // A line feed would end its name in what clients are told.
        (!topic.contains('\n')).then_some(*history)
    }

    /// The feed of a topic, a new one if need be. `here`: this server numbers the messages.
    fn feed(&self, topic: &str, keep: History, here: bool) -> Arc<Mutex<Feed>> {
        let mut feeds = lock(&self.feeds);
        if let Some(feed) = feeds.by_name.get(topic) {
            return feed.clone();
        }
        if here && feeds.by_name.len() >= feeds.sweep_at {
            // One that is locked is in use.
            let over = |feed: &Mutex<Feed>| {
                feed.try_lock()
                    .is_ok_and(|f| f.is_over(Duration::from_secs(60)))
            };
            feeds.by_name.retain(|_, feed| !over(feed));
            feeds.sweep_at = feeds.by_name.len() + SWEEP;
        }
        let epoch = here.then(|| {
            let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
            since.map_or(1, |since| since.as_micros() as u64)
        });
        let feed = Arc::new(Mutex::new(Feed::new(keep, epoch)));
        feeds.by_name.insert(topic.into(), feed.clone());
        feed
    }

    /// Nobody subscribes to this any more, and what was kept can be had again.
    pub(super) fn forget(&self, topic: &str) {
        lock(&self.feeds).by_name.remove(topic);
    }
}

impl Shared {
    /// The backplane keeps the history and numbers the messages.
    pub(super) fn keeps_elsewhere(&self) -> bool {
        let backplane = self.backplane.as_ref();
        backplane.is_some_and(|backplane| backplane.keeps_history())
    }

    fn feed(&self, topic: &str, keep: History) -> Arc<Mutex<Feed>> {
        self.histories.feed(topic, keep, !self.keeps_elsewhere())
    }

    /// Publishes to a topic that keeps this much.
    pub(super) fn publish_kept(&self, post: Post, keep: History, except: Option<PeerId>) -> bool {
        if !(post.message.is_text() || post.message.is_binary()) {
            return false;
        }
        if let Some(backplane) = self.backplane.as_ref().filter(|b| b.keeps_history()) {
            // Those here get it when it comes back with its number.
            return self.topics.are_here() && backplane.publish_kept(post, keep, except);
        }
        if !self.keep_here(&post, keep, except) {
            return false;
        }
        if let Some(backplane) = &self.backplane {
            backplane.publish(post);
        }
        true
    }

    /// The same, of what this server keeps itself.
    pub(super) fn keep_here(&self, post: &Post, keep: History, except: Option<PeerId>) -> bool {
        if !self.topics.are_here() {
            return false;
        }
        let feed = self.feed(&post.topic, keep);
        let mut room = self.make_room(&post.topic);
        let mut feed = lock(&feed);
        let message = feed.append(&post.topic, &post.message);
        self.tell(
            &mut room,
            &post.topic,
            &message,
            except,
            post.latest.clone(),
        );
        true
    }

    /// Waits until each loop with subscribers can take a message to many.
    fn make_room(&self, topic: &str) -> Room {
        let loops = self.topics.on_loops(topic).into_iter();
        let wanted = loops.filter(|(_, wanted)| *wanted);
        Room(
            wanted
                .map(|(handle, _)| {
                    let permit = handle.make_room();
                    (handle, permit)
                })
                .collect(),
        )
    }

    /// Called under the lock of the feed.
    fn tell(
        &self,
        room: &mut Room,
        topic: &str,
        message: &Message,
        except: Option<PeerId>,
        latest: Option<LatestKey>,
    ) {
        let Some(number) = self.topics.number(topic) else {
            return;
        };
        let Some(frame) = SharedFrame::encode(message, self) else {
            return;
        };
        let publication = Arc::new(Publication {
            topic: number,
            frame,
            except,
            latest: latest.map(|key| QueueKey::published(number, key)),
        });
        for (handle, wanted) in self.topics.on_loops(topic) {
            if wanted {
                let permit = room.take(&handle);
                handle.publish_at_once(publication.clone(), permit);
            }
        }
    }

    fn tell_news(&self, room: &mut Room, topic: &str, news: News) {
        if let Some(gap) = &news.gap {
            self.tell(room, topic, gap, None, None);
        }
        for (message, kept) in news.messages {
            self.tell(room, topic, &message, kept.except, kept.post.latest);
        }
    }

    /// Sends somebody what it is to get, and makes it live.
    fn serve(&self, feed: &MutexGuard<'_, Feed>, topic: &str, link: &Arc<Link>, replay: &Replay) {
        if replay.gap == Some(Gap::TooOld) {
            log::debug!(target: "framemill::history", "{}: {topic:?} does not reach back as far", link.id);
        }
        for message in feed.messages(topic, replay) {
            if link.send(message, Compress::Auto).is_err() && link.outbox().is_sealed() {
                return;
            }
        }
        link.subscribe(topic);
    }
}

impl Link {
    /// `false`: nothing can be sent any more, or this topic keeps nothing.
    pub(crate) fn subscribe_from(self: &Arc<Self>, topic: &str, since: Since) -> bool {
        let shared = &self.handle.shared;
        let Some(keep) = shared.histories.of(topic) else {
            return false;
        };
        if self.outbox().is_sealed() {
            return false;
        }
        let Some(seat) = shared.topics.reserve(topic) else {
            return false;
        };
        let feed = shared.feed(topic, keep);
        // What a room has asked for before goes first.
        self.handle.let_go();
        let mut feed = lock(&feed);
        self.unsubscribe(topic);
        self.give_up(&mut feed);
        let replay = feed.replay(since);
        // Where others number the messages, they may know better.
        let certain = feed.known && replay.gap.as_ref() != Some(&Gap::Unknown);
        if certain || !shared.keeps_elsewhere() {
            shared.serve(&feed, topic, self, &replay);
            shared.topics.release(&seat);
            return !self.outbox().is_sealed();
        }
        let link = self.clone();
        feed.waiting.push(Waiting { link, since, seat });
        feed.in_step = false;
        drop(feed);
        if let Some(backplane) = &shared.backplane {
            backplane.refresh(topic);
        }
        true
    }

    /// Ends a subscription, or the waiting for what comes before it. `true`: there was one.
    pub(crate) fn unsubscribe_from(&self, topic: &str) -> bool {
        let shared = &self.handle.shared;
        let waits = shared.keeps_elsewhere() && shared.topics.number(topic).is_some();
        let Some(keep) = shared.histories.of(topic).filter(|_| waits) else {
            return self.unsubscribe(topic);
        };
        let feed = shared.feed(topic, keep);
        let mut feed = lock(&feed);
        // Under the lock: it may be about to be made live.
        self.unsubscribe(topic) | self.give_up(&mut feed)
    }

    /// It no longer waits for this topic. `true`: it did.
    fn give_up(&self, feed: &mut Feed) -> bool {
        let before = feed.waiting.len();
        feed.waiting.retain(|waiting| {
            let same = waiting.link.id == self.id;
            if same {
                self.handle.shared.topics.release(&waiting.seat);
            }
            !same
        });
        feed.waiting.len() < before
    }
}

impl Node for Shared {
    fn deliver(&self, post: Post) {
        match self.histories.of(&post.topic) {
            // The backplane keeps nothing: each node has its own history.
            Some(keep) => drop(self.keep_here(&post, keep, None)),
            None => drop(self.publish_here(&post.topic, &post.message, None, post.latest)),
        }
    }

    fn deliver_kept(&self, kept: Kept) -> bool {
        let topic = kept.post.topic.clone();
        let Some(keep) = self.histories.of(&topic) else {
            return true;
        };
        if self.topics.number(&topic).is_none() {
            return true;
        }
        let feed = self.feed(&topic, keep);
        let mut room = self.make_room(&topic);
        let mut feed = lock(&feed);
        let Some(news) = feed.follow(kept) else {
            feed.in_step = false;
            return false;
        };
        self.tell_news(&mut room, &topic, news);
        true
    }

    fn missing(&self, topic: &str) -> Option<Offset> {
        let keep = self.histories.of(topic)?;
        self.topics.number(topic)?;
        let feed = self.feed(topic, keep);
        let feed = lock(&feed);
        (!feed.in_step).then(|| feed.last())
    }

    fn adopt(&self, tail: Tail) {
        let topic = tail.topic.clone();
        let Some(keep) = self.histories.of(&topic) else {
            return;
        };
        if self.topics.number(&topic).is_none() {
            return;
        }
        let feed = self.feed(&topic, keep);
        let mut room = self.make_room(&topic);
        let mut feed = lock(&feed);
        let news = feed.adopt(tail);
        self.tell_news(&mut room, &topic, news);
        for Waiting { link, since, seat } in std::mem::take(&mut feed.waiting) {
            let replay = feed.replay(since);
            self.serve(&feed, &topic, &link, &replay);
            self.topics.release(&seat);
        }
    }

    fn out_of_step(&self) {
        let feeds: Vec<_> = lock(&self.histories.feeds)
            .by_name
            .values()
            .cloned()
            .collect();
        for feed in feeds {
            lock(&feed).in_step = false;
        }
    }
}
