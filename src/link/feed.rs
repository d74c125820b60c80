//! What one topic keeps, and who gets which part of it.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Link;
use super::topics::Topic;
use crate::backplane::{Kept, Tail};
use crate::history::{self, History, Offset, Since};
use crate::message::Message;

/// Nodes that are remembered, so that what comes twice is noticed.
const NODES: usize = 4096;

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct Feed {
    keep: History,
    /// The newest message, whether or not it is kept.
    last: Offset,
    /// Who published it, and the how-manieth of that node it is.
    last_of: (u64, u64),
    /// In the order of their numbers, none of which is over `last`.
    entries: VecDeque<Entry>,
    /// What was before `last` is in `entries`, as far as the backplane has it.
    pub(super) known: bool,
    /// Nothing has been missed since: what comes next follows `last`.
    pub(super) in_step: bool,
    /// Those who want what is not known yet.
    pub(super) waiting: Vec<Waiting>,
    /// The latest of each node.
    heard: HashMap<u64, u64>,
}

#[derive(Debug)]
struct Entry {
    number: u64,
    at: Instant,
    /// As subscribers get it.
    message: Message,
}

#[derive(Debug)]
pub(super) struct Waiting {
    pub(super) link: Arc<Link>,
    pub(super) since: Since,
    /// Counts it among the subscribers, so that the topic stays.
    pub(super) seat: Arc<Topic>,
}

/// What somebody is to be sent before it is live.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Replay {
    /// Of which kind, if anything is missing before.
    pub(super) gap: Option<Gap>,
    /// All from this number on.
    from: u64,
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
pub(super) struct News {
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
                number: 0,
            },
            last_of: (0, 0),
            entries: VecDeque::new(),
            known: epoch.is_some(),
            in_step: epoch.is_some(),
            waiting: Vec::new(),
            heard: HashMap::new(),
        }
    }

    pub(super) fn last(&self) -> Offset {
        self.last
    }

    /// One more message, which gets its number here: what subscribers are to get.
    pub(super) fn append(&mut self, topic: &str, message: &Message) -> Message {
        self.last.number += 1;
        self.push(topic, message, Instant::now())
    }

    /// One more message, which has its number. `None`: it does not follow what is there.
    pub(super) fn follow(&mut self, kept: Kept) -> Option<News> {
        let offset = kept.offset;
        let known = offset.epoch == self.last.epoch && offset.number <= self.last.number;
        if !self.in_step || known {
            // Not in step: it will come with the rest.
            return Some(News::default());
        }
        let next = Offset {
            number: self.last.number + 1,
            ..self.last
        };
        (offset == next).then(|| {
            let mut news = News::default();
            self.accept(kept, &mut news);
            news
        })
    }

    /// All that the backplane has after what is known here.
    pub(super) fn adopt(&mut self, mut tail: Tail) -> News {
        let mut news = News::default();
        let before = self.last;
        // Of an epoch before there may be some left.
        tail.kept
            .retain(|kept| kept.offset.epoch == tail.last.epoch);
        // Under the number of our latest there is something else: others went on from less.
        let identity = |kept: &Kept| (kept.node, kept.sequence);
        let mut same = tail.kept.iter().filter(|kept| kept.offset == before);
        let branched = same.any(|kept| identity(kept) != self.last_of);
        let was_known = self.known;
        (self.known, self.in_step) = (true, true);
        if tail.last.epoch != before.epoch {
            self.entries.clear();
            self.last = Offset {
                number: 0,
                ..tail.last
            };
        }
        let first = tail.kept.iter().map(|kept| kept.offset.number);
        let first = first.filter(|&n| n > self.last.number).min();
        let first = first.unwrap_or(tail.last.number + 1);
        // From nothing to the first of all is no other epoch.
        let other_epoch = tail.last.epoch != before.epoch && before != Offset::default();
        if was_known && (first > self.last.number + 1 || other_epoch || branched) {
            let number = first - 1;
            let offset = Offset {
                number,
                ..tail.last
            };
            news.gap = Some(history::said("gap", &tail.topic, offset));
        }
        for kept in tail.kept {
            if kept.offset.number > self.last.number {
                self.accept(kept, &mut news);
            }
        }
        self.last.number = self.last.number.max(tail.last.number);
        if !was_known {
            // Whoever is live here has asked for nothing of before.
            news = News::default();
        }
        news
    }

    /// Takes it in, unless it came before under another number: a Redis that has lost what it had
    /// can't know what it was sent twice.
    fn accept(&mut self, kept: Kept, news: &mut News) {
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
        news.messages.push((message, kept));
    }

    fn push(&mut self, topic: &str, message: &Message, at: Instant) -> Message {
        let message = history::framed(topic, self.last, message);
        self.entries.push_back(Entry {
            number: self.last.number,
            at,
            message: message.clone(),
        });
        self.trim();
        message
    }

    fn trim(&mut self) {
        while self.entries.len() > self.keep.messages {
            self.entries.pop_front();
        }
        let Some(age) = self.keep.age else { return };
        while self.entries.front().is_some_and(|e| e.at.elapsed() > age) {
            self.entries.pop_front();
        }
    }

    /// Where somebody has to begin.
    pub(super) fn replay(&mut self, since: Since) -> Replay {
        self.trim();
        let last = self.last;
        let first = self.entries.front().map_or(last.number + 1, |e| e.number);
        let (gap, from) = match since {
            Since::Now => (None, last.number + 1),
            Since::Start => (None, first),
            Since::After(offset) if offset.epoch != last.epoch => {
                // Whoever has seen nothing because there was nothing has missed nothing but what is gone.
                let nothing = offset == Offset::default() && first == 1;
                ((!nothing).then_some(Gap::Unknown), first)
            }
            Since::After(offset) if offset.number > last.number => (Some(Gap::Unknown), first),
            Since::After(offset) if offset.number + 1 < first => (Some(Gap::TooOld), first),
            Since::After(offset) => (None, offset.number + 1),
        };
        Replay { gap, from }
    }

    /// The messages of that.
    pub(super) fn messages(&self, topic: &str, replay: &Replay) -> Vec<Message> {
        let from = self.entries.partition_point(|e| e.number < replay.from);
        let number = replay.from - 1;
        let before = Offset {
            number,
            ..self.last
        };
        let gap = replay.gap.as_ref();
        let gap = gap.map(|_| history::said("gap", topic, before));
        let messages = self.entries.range(from..).map(|e| e.message.clone());
        let live = history::said("live", topic, self.last);
        gap.into_iter().chain(messages).chain([live]).collect()
    }

    /// Whether all that it keeps is too old, so that it may be forgotten.
    pub(super) fn is_over(&self, grace: Duration) -> bool {
        let Some(age) = self.keep.age else {
            return false;
        };
        let over = |e: &Entry| e.at.elapsed() > age + grace;
        self.waiting.is_empty() && self.entries.back().is_none_or(over)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backplane::Post;

    fn offset(epoch: u64, number: u64) -> Offset {
        Offset { epoch, number }
    }

    fn kept(epoch: u64, number: u64, sequence: u64) -> Kept {
        Kept {
            post: Post::new("t", Message::text(sequence.to_string())),
            offset: offset(epoch, number),
            node: 1,
            sequence,
            except: None,
            age: Duration::ZERO,
        }
    }

    fn tail(last: Offset, kept: Vec<Kept>) -> Tail {
        let topic = "t".into();
        Tail { topic, last, kept }
    }

    fn texts(messages: &[Message]) -> Vec<&str> {
        messages.iter().map(|m| m.to_text().unwrap()).collect()
    }

    #[test]
    fn whoever_comes_back_gets_what_it_missed_or_is_told() {
        let mut feed = Feed::new(History::last(3), Some(9));
        let replay = feed.replay(Since::After(offset(9, 0)));
        assert_eq!(texts(&feed.messages("t", &replay)), ["live 9-0 t\n"]);
        for n in 1..=5 {
            feed.append("t", &Message::text(n.to_string()));
        }
        let mut get = |since| {
            let replay = feed.replay(since);
            let messages = feed.messages("t", &replay);
            texts(&messages).join("|")
        };
        let (m3, m4, m5) = ("msg 9-3 t\n3", "msg 9-4 t\n4", "msg 9-5 t\n5");
        let all = format!("{m3}|{m4}|{m5}|live 9-5 t\n");
        assert_eq!(get(Since::Start), all);
        assert_eq!(get(Since::After(offset(9, 2))), all);
        assert_eq!(
            get(Since::After(offset(9, 4))),
            format!("{m5}|live 9-5 t\n")
        );
        for now in [Since::Now, Since::After(offset(9, 5))] {
            assert_eq!(get(now), "live 9-5 t\n");
        }
        let gap = format!("gap 9-2 t\n|{all}");
        let lost = [
            (9, 1),
            (9, 0),
            (9, 6),
            (8, 4),
            (10, 4),
            (0, 0),
            (9, u64::MAX),
        ];
        for (epoch, number) in lost {
            assert_eq!(
                get(Since::After(offset(epoch, number))),
                gap,
                "{epoch}-{number}"
            );
        }
    }

    #[test]
    fn what_is_missed_is_adopted_once() {
        let mut feed = Feed::new(History::last(10), None);
        assert!(feed.follow(kept(5, 1, 1)).unwrap().messages.is_empty());
        let news = feed.adopt(tail(offset(5, 2), vec![kept(5, 1, 1), kept(5, 2, 2)]));
        assert!(news.messages.is_empty() && news.gap.is_none());
        assert_eq!(feed.follow(kept(5, 3, 3)).unwrap().messages.len(), 1);
        assert!(feed.follow(kept(5, 3, 3)).unwrap().messages.is_empty());
        assert!(feed.follow(kept(5, 5, 5)).is_none(), "4 is missing");
        let news = feed.adopt(tail(offset(5, 5), vec![kept(5, 4, 4), kept(5, 5, 5)]));
        assert_eq!((news.messages.len(), news.gap), (2, None));
        // Some of it is gone.
        let news = feed.adopt(tail(offset(5, 9), vec![kept(5, 8, 8), kept(5, 9, 9)]));
        assert_eq!(news.gap, Some(Message::text("gap 5-7 t\n")));
        assert_eq!(news.messages.len(), 2);
        // What is there under the number of the latest is something else.
        let news = feed.adopt(tail(offset(5, 10), vec![kept(5, 9, 10), kept(5, 10, 11)]));
        assert_eq!(news.gap, Some(Message::text("gap 5-9 t\n")));
        assert_eq!(news.messages.len(), 1);
        // Redis has lost everything, and was sent 11 again.
        let again = vec![kept(5, 11, 12), kept(6, 1, 11), kept(6, 2, 12)];
        let news = feed.adopt(tail(offset(6, 2), again));
        assert_eq!(news.gap, Some(Message::text("gap 6-0 t\n")));
        assert_eq!(news.messages.len(), 1);
        assert_eq!(feed.last(), offset(6, 2));
    }

    #[test]
    fn the_first_message_of_all_is_no_gap() {
        let mut feed = Feed::new(History::last(10), None);
        feed.adopt(tail(Offset::default(), Vec::new()));
        assert!(feed.follow(kept(7, 1, 1)).is_none(), "another epoch");
        let news = feed.adopt(tail(offset(7, 1), vec![kept(7, 1, 1)]));
        assert_eq!((news.messages.len(), news.gap), (1, None));
        assert_eq!(feed.replay(Since::After(Offset::default())).gap, None);
    }

    #[test]
    fn old_messages_go() {
        let keep = History::last(10).no_older_than(Duration::ZERO);
        let mut feed = Feed::new(keep, Some(1));
        feed.append("t", &Message::text("x"));
        std::thread::sleep(Duration::from_millis(1));
        assert_eq!(
            feed.replay(Since::After(offset(1, 0))).gap,
            Some(Gap::TooOld)
        );
        assert_eq!(feed.replay(Since::After(offset(1, 1))).gap, None);
        assert!(feed.is_over(Duration::ZERO));
    }
}
