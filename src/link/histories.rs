//! Topics that keep their last messages: which do, and how somebody gets from what is kept to what is
//! live without a gap and without anything twice.
//!
//! Each has a [`Feed`] behind a lock. Whoever publishes appends and asks the loops under that lock, and
//! whoever subscribes is sent the last of what it missed and put on the loop's list under it as well;
//! commands of a loop are carried out in order, so one is wholly before the other.
//!
//! What was missed may be more than an outbox takes. It is sent in pieces, of which the thread that
//! subscribes sends the first, and the loop one whenever it has written most of what was queued. Only
//! with the last of them the subscriber goes on the loop's list; until then it gets from the feed what
//! is published, as it would later.
//!
//! Under that lock nobody may wait for a loop: the loop may wait for the lock. So room is made before.
//!
//! Locks, in the order in which they are taken: a feed, the subscriptions of a link, the names of the
//! topics, the feeds by name.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use super::feed::{Feed, Gap, News};
use super::outbox::{MAX_FRAME, kept_beside};
use super::queue::QueueKey;
use super::topics::{Publication, Topic};
use super::{Command, Link, LoopHandle, Permit, Shared, SharedFrame, lock};
use crate::backplane::{Kept, Node, Post, Tail};
use crate::config::Compress;
use crate::history::{History, Offset, Since};
use crate::id::PeerId;
use crate::logging::Throttle;
use crate::message::{LatestKey, Message};
use crate::proto::MAX_HEADER;

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
    /// Of those that are numbered here and begin now; 0 before there are any.
    epoch: u64,
}

impl Feeds {
    /// Numbers that were given may be given again from now on.
    fn begin_epoch(&mut self) {
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        let now = since.map_or(1, |since| since.as_micros() as u64);
        self.epoch = now.max(self.epoch + 1);
    }
}

/// Whether nobody has a feed but the map, under whose lock this is asked: so nobody else gets it, and it
/// is not locked.
fn is_unused(feed: &Arc<Mutex<Feed>>) -> bool {
    Arc::strong_count(feed) == 1
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
    fn existing(&self, topic: &str) -> Option<Arc<Mutex<Feed>>> {
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
            lock(&feed).waiting.remove(&id);
        }
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
        if post.message.len() + post.topic.len() > MAX_FRAME - 1024 {
            // Nobody could ever be sent it, with the line before it.
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
        let Some(frame) = SharedFrame::encode(message, self, self.compress(topic)) else {
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

    /// Brings something into a feed, and its news to those who are live; nothing if nobody subscribes.
    fn bring(&self, topic: &str, keep: History, something: impl FnOnce(&mut Feed) -> News) {
        if self.topics.number(topic).is_none() {
            return;
        }
        let feed = self.feed(topic, keep);
        let mut room = self.make_room(topic);
        let mut feed = lock(&feed);
        let news = something(&mut feed);
        if let Some(gap) = &news.gap {
            self.tell(&mut room, topic, gap, None, None);
        }
        for (message, kept) in news.messages {
            self.tell(&mut room, topic, &message, kept.except, kept.post.latest);
        }
    }
}

/// How far somebody has come.
enum Reached {
    /// It is live. What counted it before is to be released once the feed is not locked.
    Live(Arc<Topic>),
    /// There was no room for all of it.
    Behind,
    /// It wants nothing any more.
    Nothing,
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
        let mut locked = lock(&feed);
        locked.waiting.remove(&self.id);
        // Where others number the messages, they may know better.
        let certain = !shared.keeps_elsewhere()
            || (locked.known && locked.replay(since).gap != Some(Gap::Unknown));
        let begun = self.fall_behind(&seat, since, certain);
        let reached = match certain {
            true => self.replay(&mut locked, topic),
            false if begun => {
                locked.waiting.insert(self.id, self.clone());
                locked.in_step = false;
                Reached::Behind
            }
            false => Reached::Nothing,
        };
        // In a call of a room it is held back, and the loop may send the next piece as soon as it may look.
        self.handle.let_go();
        drop(locked);
        drop(feed);
        match reached {
            Reached::Live(seat) => shared.topics.release(&seat),
            Reached::Behind if certain => self.handle.command(Command::CatchUp(self.id.key())),
            Reached::Behind => {
                if let Some(backplane) = &shared.backplane {
                    backplane.refresh(topic);
                }
            }
            Reached::Nothing => {}
        }
        if !begun {
            shared.topics.release(&seat);
        }
        begun && !self.outbox().is_sealed()
    }

    /// Ends a subscription, or the sending of what comes before it. `true`: there was one.
    pub(crate) fn unsubscribe_from(&self, topic: &str) -> bool {
        let shared = &self.handle.shared;
        if shared.histories.of(topic).is_none() {
            return self.unsubscribe(topic);
        }
        let feed = shared.histories.existing(topic);
        // Under its lock: it may be about to be made live.
        let mut locked = feed.as_deref().map(lock);
        if let Some(feed) = &mut locked {
            feed.waiting.remove(&self.id);
        }
        let seat = self.give_up(topic);
        drop(locked);
        drop(feed);
        let was_behind = seat.is_some();
        if let Some(seat) = seat {
            shared.topics.release(&seat);
        }
        self.unsubscribe(topic) | was_behind
    }

    /// Sends what was missed of all topics, as far as there is room. `true`: there is more.
    pub(crate) fn catch_up(self: &Arc<Self>) -> bool {
        let shared = &self.handle.shared;
        while let Some(topic) = self.next_behind() {
            if self.room() == 0 {
                return true;
            }
            let Some(keep) = shared.histories.of(&topic.name) else {
                return false;
            };
            let feed = shared.feed(&topic.name, keep);
            let reached = self.replay(&mut lock(&feed), &topic.name);
            drop(feed);
            match reached {
                Reached::Live(seat) => shared.topics.release(&seat),
                Reached::Behind => return true,
                Reached::Nothing => {}
            }
        }
        false
    }

    /// Sends what was missed of one, as far as there is room, and makes it live if that was all. Called
    /// under the lock of the feed.
    fn replay(self: &Arc<Self>, feed: &mut Feed, topic: &str) -> Reached {
        let Some(since) = self.behind(topic) else {
            return Reached::Nothing;
        };
        let replay = feed.replay(since);
        if replay.gap == Some(Gap::TooOld) {
            log::debug!(target: "framemill::history", "{}: {topic:?} does not reach back as far", self.id);
        }
        let mut reached = match since {
            Since::Now => Since::After(replay.after),
            since => since,
        };
        let compress: Compress = self.handle.shared.compress(topic);
        let mut room = self.room();
        for (offset, message) in feed.messages(topic, &replay) {
            let size = message.len() + MAX_HEADER + kept_beside(self.config());
            if room == 0 || self.send(message, compress).is_err() {
                self.still_behind(topic, reached);
                return Reached::Behind;
            }
            room = room.saturating_sub(size);
            reached = Since::After(offset);
        }
        self.go_live(topic).map_or(Reached::Nothing, Reached::Live)
    }

    /// How many bytes of what was missed may be queued now: well below what makes the peer wait for its
    /// messages to be handled, and with room for others.
    fn room(&self) -> usize {
        let full = (self.config().outbound_bytes / 4).max(1);
        full.saturating_sub(self.outbox().held(self.config()))
    }
}

/// After which of these messages comes what was published here since the topic was subscribed to, see
/// [`Backplane::mark`](crate::backplane::Backplane::mark).
fn before_own(tail: &Tail, mark: Option<(u64, u64)>) -> Offset {
    let is_own = |kept: &&Kept| {
        let own = mark.is_some_and(|(node, before)| kept.node == node && kept.sequence > before);
        own && kept.offset.epoch == tail.last.epoch
    };
    let first = tail.kept.iter().find(is_own);
    let number = first.map_or(tail.last.number, |kept| kept.offset.number - 1);
    Offset {
        number,
        ..tail.last
    }
}

impl Node for Shared {
    fn deliver(&self, post: Post) {
        match self.histories.of(&post.topic) {
            Some(_) if self.keeps_elsewhere() => {
                // It has no number, and none that was given here would be right.
                static UNNUMBERED: Throttle = Throttle::new();
                if let Some(more) = UNNUMBERED.pass() {
                    log::warn!(target: "framemill::history", "{:?} keeps a history here, and not on the node that published to it: dropped{more}", post.topic);
                }
            }
            // The backplane keeps nothing: each node has its own history.
            Some(keep) => drop(self.keep_here(&post, keep, None)),
            None => drop(self.publish_here(&post.topic, &post.message, None, post.latest)),
        }
    }

    fn deliver_kept(&self, kept: Kept) -> bool {
        let topic = kept.post.topic.clone();
        let Some(keep) = self.histories.of(&topic) else {
            // Other nodes keep it.
            self.publish_here(&topic, &kept.post.message, kept.except, kept.post.latest);
            return true;
        };
        let mut follows = true;
        self.bring(&topic, keep, |feed| {
            let news = feed.follow(kept);
            follows = news.is_some();
            feed.in_step &= follows;
            news.unwrap_or_default()
        });
        follows
    }

    fn missing(&self, topic: &str) -> Option<Offset> {
        let keep = self.histories.of(topic)?;
        self.topics.number(topic)?;
        let feed = self.feed(topic, keep);
        let feed = lock(&feed);
        (!feed.in_step).then(|| feed.last())
    }

    fn adopt(&self, mut tail: Tail) {
        let topic = tail.topic.clone();
        let Some(keep) = self.histories.of(&topic) else {
            return;
        };
        let Some(mark) = self.topics.mark(&topic) else {
            return;
        };
        let now = before_own(&tail, mark);
        let known = lock(&self.feed(&topic, keep)).known;
        if known {
            // Much may have been missed: it comes as if it were published now, one after the other.
            self.bring(&topic, keep, |feed| feed.rejoin(&mut tail));
            for kept in std::mem::take(&mut tail.kept) {
                self.bring(&topic, keep, |feed| match feed.known {
                    true => feed.take_in(kept),
                    false => News::default(),
                });
            }
        }
        self.bring(&topic, keep, |feed| {
            let mut news = News::default();
            if feed.known != known {
                // All have left meanwhile. For whoever has come, it is fetched again.
                return news;
            }
            if !known {
                feed.rejoin(&mut tail);
                for kept in std::mem::take(&mut tail.kept) {
                    news.messages.extend(feed.take_in(kept).messages);
                }
                // Whoever is live already has asked for nothing of before.
                news.messages
                    .retain(|(_, kept)| kept.offset.number > now.number);
            }
            feed.catch_up(tail.last);
            for (id, link) in std::mem::take(&mut feed.waiting) {
                link.wait_no_longer(&topic, Since::After(now));
                link.handle.command(Command::CatchUp(id.key()));
            }
            news
        });
    }

    fn out_of_step(&self, topic: &str) {
        if let Some(feed) = self.histories.existing(topic) {
            lock(&feed).in_step = false;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::addr::RemoteAddr;
    use crate::config::Config;
    use crate::id::Key;

    /// A server with one loop that nobody runs, and a connection.
    fn link(history: History) -> (Arc<Shared>, Arc<Link>) {
        let mut shared = Shared::new(Config::default());
        let mut histories = Histories::default();
        histories.keep("news/*", history);
        shared.keep(histories);
        let shared = Arc::new(shared);
        let poll = mio::Poll::new().unwrap();
        let waker = mio::Waker::new(poll.registry(), mio::Token(0)).unwrap();
        let (handle, _inlet) = LoopHandle::new(0, shared.clone(), waker);
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
