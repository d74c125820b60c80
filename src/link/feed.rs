//! What one topic keeps, and who gets which part of it.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Link;
use crate::backplane::{Kept, Tail};
use crate::history::{self, BESIDE, History, Offset, Since};
use crate::id::PeerId;
use crate::message::Message;

/// Nodes that are remembered, so that what comes twice is noticed.
const NODES: usize = 4096;

/// The tag of an offset that stands for nothing, where there was something that is lost: whoever comes with it
/// to a node that does not know so yet must not be given all of that as if it had seen none of it.
const LOST: u32 = 1;

/// What one topic keeps, and who waits for it; behind a lock (see [`link`](super), *Locks*).
///
/// - for those who publish here: [`append`](Self::append), which numbers a message and keeps it;
/// - for what comes from the backplane, which numbers them: [`follow`](Self::follow) what is published,
///   and, for the answer to what was [missing](Self::ask), [`rejoin`](Self::rejoin),
///   [`take_in`](Self::take_in) and [`catch_up`](Self::catch_up);
/// - for subscribers: [`replay`](Self::replay) says what one has missed, [`messages`](Self::messages) gives
///   it; [`wait`](Self::wait) is for those that have to wait for an answer;
/// - for those that forget feeds: [`is_new`](Self::is_new), [`is_over`](Self::is_over),
///   [`size`](Self::size), [`latest`](Self::latest).
#[derive(Debug)]
pub(super) struct Feed {
    keep: History,
    /// The newest message, whether or not it is kept; without its tag.
    last: Offset,
    /// The node that published it, and its number there; zeros if that is not known.
    last_of: (u64, u64),
    /// Numbers below this were given twice, perhaps: a subscriber that comes with one is told that it has
    /// missed something.
    lost_before: u64,
    /// In the order of their numbers, none of which is over `last`.
    entries: VecDeque<Entry>,
    /// What these come to, with what keeping them costs.
    bytes: usize,
    /// When something was published last.
    latest: Instant,
    progress: Progress,
    /// How often it was asked what is missing here.
    asked: u64,
    /// Those who want what is not known yet, and how often it had been asked by then: the answer to what
    /// was asked before may say nothing of what they have seen elsewhere.
    waiting: HashMap<PeerId, (Arc<Link>, u64)>,
    /// The latest of each node.
    heard: HashMap<u64, u64>,
}

/// How much of its topic a feed has. One that is numbered here is in step for good.
///
/// ```text
///              catch_up               wait, fall_behind,
///                                     a follow that doesn't
///   Unknown ──────────────▶ InStep ─────────────────────────▶ Behind
///      │                       ▲                                │ ▲
///      │                       └─────────── catch_up ───────────┘ │
///      └──────── catch_up, while somebody waits for more ─────────┘
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Progress {
    /// Nothing has come of it yet; what others keep is to be asked for.
    Unknown,
    /// What was before `last` is in `entries`, as far as the backplane has it. What comes next may not follow.
    Behind,
    /// Nothing has been missed since: what comes next follows `last`.
    InStep,
}

#[derive(Debug)]
struct Entry {
    number: u64,
    tag: u32,
    at: Instant,
    /// As subscribers get it.
    message: Message,
}

impl Entry {
    fn size(&self) -> usize {
        self.message.len() + BESIDE
    }
}

/// What somebody is to be sent before it is live.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Replay {
    /// Of which kind, if anything is missing before.
    pub(super) gap: Option<Gap>,
    /// All that is after this.
    pub(super) after: Offset,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Gap {
    /// Not kept any more.
    TooOld,
    /// Another epoch, or more than is known here.
    Unknown,
}

/// What those who are live are to be told now.
#[derive(Debug, Default)]
pub(super) struct FeedUpdate {
    /// Something is missing before.
    pub(super) gap: Option<Message>,
    pub(super) messages: Vec<(Message, Kept)>,
}

impl Feed {
    /// `epoch`: it begins here; otherwise it is known elsewhere.
    pub(super) fn new(keep: History, epoch: Option<u64>) -> Self {
        Self {
            keep,
            last: Offset {
                epoch: epoch.unwrap_or(0),
                ..Offset::default()
            },
            last_of: (0, 0),
            lost_before: 0,
            entries: VecDeque::new(),
            bytes: 0,
            latest: Instant::now(),
            progress: match epoch {
                Some(_) => Progress::InStep,
                None => Progress::Unknown,
            },
            asked: 0,
            waiting: HashMap::new(),
            heard: HashMap::new(),
        }
    }

    #[cfg(test)]
    pub(super) fn last(&self) -> Offset {
        self.last
    }

    /// When something was published last, or it was made.
    pub(super) fn latest(&self) -> Instant {
        self.latest
    }

    /// What its messages come to in memory.
    pub(super) fn size(&self) -> usize {
        self.bytes
    }

    /// This one wants what is to be asked for.
    pub(super) fn wait(&mut self, link: &Arc<Link>) {
        self.waiting.insert(link.id, (link.clone(), self.asked));
        self.fall_behind();
    }

    pub(super) fn wait_no_longer(&mut self, id: PeerId) {
        self.waiting.remove(&id);
    }

    /// From now on something may be missing.
    pub(super) fn fall_behind(&mut self) {
        if self.progress == Progress::InStep {
            self.progress = Progress::Behind;
        }
    }

    /// Whether it has what was before its last message.
    pub(super) fn is_known(&self) -> bool {
        self.progress != Progress::Unknown
    }

    /// After which message it is to be asked what there is; there is an answer to come. `None`: nothing
    /// is missing.
    pub(super) fn ask(&mut self) -> Option<Offset> {
        if self.progress == Progress::InStep {
            return None;
        }
        self.asked += 1;
        Some(self.last)
    }

    /// Whether there is an answer to come, or was one.
    pub(super) fn was_asked(&self) -> bool {
        self.asked > 0
    }

    /// Those who are answered by what has been taken in.
    fn answered(&mut self) -> Vec<Arc<Link>> {
        let mut answered = Vec::new();
        self.waiting.retain(|_, (link, before)| {
            let waits = *before == self.asked;
            if !waits {
                answered.push(link.clone());
            }
            waits
        });
        answered
    }

    /// One more message, which gets its number here: what subscribers are to get.
    pub(super) fn append(&mut self, topic: &str, message: &Message) -> Message {
        self.last.number += 1;
        self.push(topic, message, Instant::now())
    }

    /// One more message, which has its number. `None`: it does not follow what is there, so something is
    /// missing.
    pub(super) fn follow(&mut self, kept: Kept) -> Option<FeedUpdate> {
        let offset = kept.offset;
        let known = offset.epoch == self.last.epoch && offset.number <= self.last.number;
        if self.progress != Progress::InStep || known {
            // Not in step: it will come with the rest.
            return Some(FeedUpdate::default());
        }
        let next = Offset {
            number: self.last.number + 1,
            ..self.last
        };
        if offset != next {
            self.fall_behind();
            return None;
        }
        let mut update = FeedUpdate::default();
        self.accept(kept, &mut update);
        Some(update)
    }

    /// Nothing was published yet.
    pub(super) fn is_new(&self) -> bool {
        self.last.number == 0
    }

    /// The backplane has this after what is known here; it is to be [taken in](Self::take_in), and then
    /// this has [caught up](Self::catch_up). Those who are live are told if something is missing before.
    pub(super) fn rejoin(&mut self, tail: &mut Tail) -> FeedUpdate {
        let mut update = FeedUpdate::default();
        let before = self.last;
        // Of an epoch before there may be some left.
        tail.kept
            .retain(|kept| kept.offset.epoch == tail.last.epoch);
        // Under the number of our latest there is something else: others went on from less.
        let mut same = tail.kept.iter().filter(|kept| kept.offset == before);
        let known = tag(self.last_of) != 0;
        let branched = same.any(|kept| known && (kept.node, kept.sequence) != self.last_of);
        if tail.last.epoch != before.epoch {
            self.clear();
            self.last = Offset {
                number: 0,
                ..tail.last
            };
            self.last_of = (0, 0);
            self.lost_before = 0;
        } else if branched {
            // How many before it are others too, nobody can tell.
            self.lost_before = before.number;
            self.last.number = before.number - 1;
        }
        let first = tail.kept.iter().map(|kept| kept.offset.number);
        let first = first.filter(|&n| n > self.last.number).min();
        let first = first.unwrap_or(tail.last.number + 1);
        // From nothing to the first of all is no other epoch.
        let other_epoch = tail.last.epoch != before.epoch && before != Offset::default();
        if self.is_known() && (first > self.last.number + 1 || other_epoch || branched) {
            self.last.number = first - 1;
            self.last_of = (0, 0);
            let mut last = self.last;
            if last == Offset::default() {
                last.tag = LOST;
            }
            update.gap = Some(history::said("gap", &tail.topic, last));
            // Whoever comes for what is before is told of the gap too.
            self.clear();
        }
        update
    }

    /// One of those, if it is not here yet.
    pub(super) fn take_in(&mut self, kept: Kept) -> FeedUpdate {
        let mut update = FeedUpdate::default();
        let is_new = kept.offset.number > self.last.number;
        if is_new && kept.offset.epoch == self.last.epoch {
            self.accept(kept, &mut update);
        }
        update
    }

    /// That was all up to this one: gives those who have waited for it. For the others it has to be asked
    /// again.
    pub(super) fn catch_up(&mut self, last: Offset) -> Vec<Arc<Link>> {
        if last.number > self.last.number {
            self.last.number = last.number;
            self.last_of = (0, 0);
        }
        let answered = self.answered();
        self.progress = match self.waiting.is_empty() {
            true => Progress::InStep,
            false => Progress::Behind,
        };
        answered
    }

    /// Takes it in, unless it came before under another number: a Redis that has lost what it had
    /// can't know what it was sent twice.
    fn accept(&mut self, kept: Kept, update: &mut FeedUpdate) {
        self.last = kept.offset;
        self.last_of = (kept.node, kept.sequence);
        if self.heard.len() >= NODES && !self.heard.contains_key(&kept.node) {
            self.heard.clear();
        }
        let heard = self.heard.entry(kept.node).or_insert(0);
        if kept.sequence <= *heard {
            return;
        }
        *heard = kept.sequence;
        let now = Instant::now();
        let at = now.checked_sub(kept.age).unwrap_or(now);
        let message = self.push(&kept.post.topic, &kept.post.message, at);
        update.messages.push((message, kept));
    }

    fn push(&mut self, topic: &str, message: &Message, at: Instant) -> Message {
        let offset = self.tagged(self.last.number);
        let message = history::framed(topic, offset, message);
        let entry = Entry {
            number: offset.number,
            tag: offset.tag,
            at,
            message: message.clone(),
        };
        self.bytes += entry.size();
        self.latest = at;
        self.entries.push_back(entry);
        self.trim();
        message
    }

    fn clear(&mut self) {
        self.entries.clear();
        self.bytes = 0;
    }

    /// The message of this number, with its tag as far as that is known.
    fn tagged(&self, number: u64) -> Offset {
        let tag = if number == self.last.number {
            tag(self.last_of)
        } else {
            let at = self.entries.binary_search_by_key(&number, |e| e.number);
            at.map_or(0, |at| self.entries[at].tag)
        };
        let last = self.last;
        Offset {
            number,
            tag,
            ..last
        }
    }

    fn trim(&mut self) {
        let keep = self.keep;
        while self.entries.len() > keep.messages || self.bytes > keep.bytes {
            self.drop_oldest();
        }
        let Some(age) = keep.age else { return };
        while self.entries.front().is_some_and(|e| e.at.elapsed() > age) {
            self.drop_oldest();
        }
    }

    fn drop_oldest(&mut self) {
        let oldest = self.entries.pop_front();
        self.bytes -= oldest.map_or(0, |entry| entry.size());
    }

    /// Where somebody has to begin.
    pub(super) fn replay(&mut self, since: Since) -> Replay {
        self.trim();
        let last = self.last;
        let first = self.entries.front().map_or(last.number + 1, |e| e.number);
        let (gap, before) = match since {
            Since::Now => (None, last.number),
            Since::Start => (None, first - 1),
            Since::After(offset) if offset.epoch != last.epoch => {
                // Whoever has seen nothing because there was nothing has missed nothing but what is gone.
                let nothing = offset == Offset::default() && first == 1;
                ((!nothing).then_some(Gap::Unknown), first - 1)
            }
            Since::After(offset) if offset.number > last.number => (Some(Gap::Unknown), first - 1),
            Since::After(offset) if offset.number + 1 < first => (Some(Gap::TooOld), first - 1),
            // What was seen under this number was lost, and perhaps some before it.
            Since::After(offset) if self.is_other(offset) => (Some(Gap::Unknown), first - 1),
            // Told of it once: that line has no tag.
            Since::After(offset) if offset.tag != 0 && offset.number < self.lost_before => {
                (Some(Gap::TooOld), first - 1)
            }
            Since::After(offset) => (None, offset.number),
        };
        let mut after = Offset {
            number: before,
            ..last
        };
        let has_seen = matches!(since, Since::After(offset) if offset != Offset::default());
        if has_seen && last == Offset::default() {
            after.tag = LOST;
        }
        Replay { gap, after }
    }

    /// Whether what is known under this number is another message.
    fn is_other(&self, offset: Offset) -> bool {
        let tag = self.tagged(offset.number).tag;
        tag != 0 && offset.tag != 0 && tag != offset.tag
    }

    /// The messages of that, and how far each takes the subscriber that gets it; at last, that it is live.
    pub(super) fn messages<'a>(
        &'a self,
        topic: &'a str,
        replay: &Replay,
    ) -> impl Iterator<Item = (Offset, Message)> + 'a {
        let after = replay.after;
        let gap = replay.gap.is_some();
        let gap = gap.then(|| (after, history::said("gap", topic, after)));
        let from = self.entries.partition_point(|e| e.number <= after.number);
        let messages = self.entries.range(from..).map(move |entry| {
            let (number, tag) = (entry.number, entry.tag);
            let reached = Offset {
                number,
                tag,
                ..after
            };
            (reached, entry.message.clone())
        });
        let live = std::iter::once_with(move || {
            let nothing = self.last == Offset::default();
            let last = if nothing {
                after
            } else {
                self.tagged(self.last.number)
            };
            (last, history::said("live", topic, last))
        });
        gap.into_iter().chain(messages).chain(live)
    }

    /// Whether all that it keeps is too old, so that it may be forgotten.
    pub(super) fn is_over(&self, grace: Duration) -> bool {
        let Some(age) = self.keep.age else {
            return false;
        };
        let over = |e: &Entry| e.at.elapsed() > age.saturating_add(grace);
        self.waiting.is_empty() && self.entries.back().is_none_or(over)
    }
}

/// See [`Offset`].
fn tag((node, sequence): (u64, u64)) -> u32 {
    let mixed = (node ^ sequence).wrapping_mul(0xFF51_AFD7_ED55_8CCD);
    let tag = (mixed >> 32) as u32;
    if sequence == 0 { 0 } else { tag.max(1) }
}

#[cfg(test)]
mod tests;
