//! What comes from other nodes: to those who subscribe here, and into the histories.

use super::feed::FeedUpdate;
use super::{Command, Shared};
use crate::backplane::{Kept, Node, Post, Tail};
use crate::history::{Offset, Since};
use crate::logging::Throttle;
use crate::sync::lock;

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
            let update = feed.follow(kept);
            follows = update.is_some();
            update.unwrap_or_default()
        });
        follows
    }

    fn missing(&self, topic: &str) -> Option<Offset> {
        let keep = self.histories.of(topic)?;
        self.topics.number(topic)?;
        let feed = self.feed(topic, keep);
        lock(&feed).ask()
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
        let feed = self.feed(&topic, keep);
        let (known, asked) = {
            let feed = lock(&feed);
            (feed.is_known(), feed.was_asked())
        };
        if !asked {
            // All have left who wanted it. It may be too little for who has come since.
            return;
        }
        if known {
            // Much may have been missed: it comes as if it were published now, one after the other.
            self.bring(&topic, keep, |feed| feed.rejoin(&mut tail));
            for kept in std::mem::take(&mut tail.kept) {
                self.bring(&topic, keep, |feed| match feed.is_known() {
                    true => feed.take_in(kept),
                    false => FeedUpdate::default(),
                });
            }
        }
        self.bring(&topic, keep, |feed| {
            let mut update = FeedUpdate::default();
            if feed.is_known() != known || !feed.was_asked() {
                // All have left meanwhile. For whoever has come, it is fetched again.
                return update;
            }
            if !known {
                feed.rejoin(&mut tail);
                for kept in std::mem::take(&mut tail.kept) {
                    update.messages.extend(feed.take_in(kept).messages);
                }
                // A subscriber that is live already has asked for nothing earlier.
                update
                    .messages
                    .retain(|(_, kept)| kept.offset.number > now.number);
            }
            for link in feed.catch_up(tail.last) {
                link.wait_no_longer(&topic, Since::After(now));
                link.handle.post(Command::CatchUp(link.id.key()));
            }
            update
        });
    }

    fn out_of_step(&self, topic: &str) {
        if let Some(feed) = self.histories.existing(topic) {
            lock(&feed).fall_behind();
        }
    }
}
