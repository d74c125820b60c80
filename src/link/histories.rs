//! Topics that keep their last messages: how a subscriber gets from what is kept to what is live without
//! a gap and without anything twice.
//!
//! Each has a [`Feed`] behind a lock. Publishing appends and asks the loops under that lock, and a
//! subscriber is sent the last of what it missed and put on the loop's list under it as well; commands of
//! a loop are carried out in order, so one is wholly before the other.
//!
//! What was missed may be more than an outbox takes. It is sent in pieces, of which the thread that
//! subscribes sends the first, and the loop one whenever it has written most of what was queued. Only
//! with the last of them the subscriber goes on the loop's list; until then it gets from the feed what
//! is published, as it would later.
//!
//! Under that lock nobody may wait for a loop: the loop may wait for the lock. So room is made before.
//! For the order of this lock and others see [`link`](super), *Locks*.

use std::sync::{Arc, Mutex};

use super::feed::{Feed, FeedUpdate, Gap};
use super::outbox::{MAX_FRAME, QueueKey, kept_beside};
use super::subscriptions::Begun;
use super::topics::{MAX_NAME, Publication, Topic};
use super::{Command, Link, LoopHandle, Permit, Shared, SharedFrame};
use crate::backplane::Post;
use crate::config::Compress;
use crate::history::{BESIDE, History, Since};
use crate::id::PeerId;
use crate::message::{LatestKey, Message};
use crate::proto::MAX_HEADER;
use crate::sync::lock;

/// A permit of each of the loops that have subscribers of a topic.
struct Permits(Vec<(Arc<LoopHandle>, Permit)>);

impl Permits {
    /// For a loop whose first subscriber has come since, there is always room.
    fn take(&mut self, handle: &Arc<LoopHandle>) -> Permit {
        let mut loops = self.0.iter_mut();
        let own = loops.find(|(other, _)| Arc::ptr_eq(other, handle));
        own.map(|(_, permit)| std::mem::take(permit))
            .unwrap_or_default()
    }
}

impl Drop for Permits {
    fn drop(&mut self) {
        for (handle, permit) in self.0.drain(..) {
            handle.return_permit(permit);
        }
    }
}

impl Shared {
    /// The backplane keeps the history and numbers the messages.
    pub(super) fn keeps_elsewhere(&self) -> bool {
        let backplane = self.backplane.as_ref();
        backplane.is_some_and(|backplane| backplane.keeps_history())
    }

    pub(super) fn feed(&self, topic: &str, keep: History) -> Arc<Mutex<Feed>> {
        self.histories.feed(topic, keep, !self.keeps_elsewhere())
    }

    /// Publishes to a topic that keeps this much.
    pub(super) fn publish_kept(&self, post: Post, keep: History, except: Option<PeerId>) -> bool {
        if !(post.message.is_text() || post.message.is_binary()) {
            return false;
        }
        if post.topic.len() > MAX_NAME || post.message.len() > MAX_FRAME - 2 * MAX_NAME {
            // Nobody could ever subscribe to it, or be sent it with the line before it.
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
        self.make_room_to_keep(&post.topic, BESIDE + post.message.len());
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
    fn make_room(&self, topic: &str) -> Permits {
        let loops = self.topics.on_loops(topic).into_iter();
        let wanted = loops.filter(|(_, wanted)| *wanted);
        Permits(
            wanted
                .map(|(handle, _)| {
                    let permit = handle.acquire_own_permit();
                    (handle, permit)
                })
                .collect(),
        )
    }

    /// Called under the lock of the feed.
    fn tell(
        &self,
        room: &mut Permits,
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
            latest: latest.map(|key| QueueKey::kept(number, key)),
        });
        for (handle, wanted) in self.topics.on_loops(topic) {
            if wanted {
                let permit = room.take(&handle);
                handle.publish_at_once(publication.clone(), permit);
            }
        }
    }

    /// Brings something into a feed, and what is new to those who are live; nothing if nobody subscribes.
    pub(super) fn bring(
        &self,
        topic: &str,
        keep: History,
        act: impl FnOnce(&mut Feed) -> FeedUpdate,
    ) {
        if self.topics.number(topic).is_none() {
            return;
        }
        let feed = self.feed(topic, keep);
        let mut room = self.make_room(topic);
        let mut feed = lock(&feed);
        let update = act(&mut feed);
        if let Some(gap) = &update.gap {
            self.tell(&mut room, topic, gap, None, None);
        }
        for (message, kept) in update.messages {
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
    /// `false`: nothing can be sent any more, this topic keeps nothing, or there are too many: then it is
    /// told.
    pub(crate) fn subscribe_from(self: &Arc<Self>, topic: &str, since: Since) -> bool {
        let shared = &self.handle.shared;
        let Some(keep) = shared.histories.of(topic) else {
            return false;
        };
        if self.outbox().is_sealed() {
            return false;
        }
        // Before anybody hears of the topic.
        if !self.may_subscribe(topic) {
            self.refuse(topic, since);
            return false;
        }
        let Some(seat) = shared.topics.reserve(topic) else {
            return false;
        };
        let feed = shared.feed(topic, keep);
        let mut locked = lock(&feed);
        locked.wait_no_longer(self.id);
        // Where others number the messages, they may know better.
        let certain = !shared.keeps_elsewhere()
            || (locked.is_known() && locked.replay(since).gap != Some(Gap::Unknown));
        let begun = self.fall_behind(&seat, since, certain);
        let reached = match (begun, certain) {
            (Begun::Yes, true) => self.replay(&mut locked, topic),
            (Begun::Yes, false) => {
                locked.wait(self);
                Reached::Behind
            }
            _ => Reached::Nothing,
        };
        // In a call of a room it is held back, behind what the room has asked for before, and the loop may
        // send the next piece as soon as it may look.
        self.handle.uncork();
        drop(locked);
        drop(feed);
        match reached {
            Reached::Live(seat) => shared.topics.release(&seat),
            Reached::Behind if certain => self.handle.post(Command::CatchUp(self.id.key())),
            Reached::Behind => {
                if let Some(backplane) = &shared.backplane {
                    backplane.refresh(topic);
                }
            }
            Reached::Nothing => {}
        }
        if begun != Begun::Yes {
            shared.topics.release(&seat);
        }
        if begun == Begun::Full {
            // By another thread, meanwhile.
            self.refuse(topic, since);
        }
        begun == Begun::Yes && !self.outbox().is_sealed()
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
            feed.wait_no_longer(self.id);
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
