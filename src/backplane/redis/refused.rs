//! Messages that Redis doesn't take for now, apart from the others, which go on.

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

use super::publisher::{BATCH, BATCH_BYTES, Pending};
use super::retry::BackOff;

/// All of topics with history. Later ones of their topics stand behind them.
#[derive(Default)]
pub(super) struct Refused {
    messages: VecDeque<Pending>,
    /// So many of each topic.
    of: HashMap<Box<str>, usize>,
    back_off: BackOff,
    /// Not before this.
    again: Option<Instant>,
    /// Some of them are on their way once more.
    trying: bool,
}

impl Refused {
    pub(super) fn is_empty(&self) -> bool {
        self.messages.is_empty()
    }

    pub(super) fn len(&self) -> usize {
        self.messages.len()
    }

    /// Whether the next message of this topic has to stand behind others.
    pub(super) fn has_of(&self, topic: &str) -> bool {
        !self.of.is_empty() && self.of.contains_key(topic)
    }

    pub(super) fn push(&mut self, message: Pending) {
        *self.of.entry(message.post.topic.clone()).or_insert(0) += 1;
        self.messages.push_back(message);
    }

    /// These were refused (again): they go before all that is here.
    pub(super) fn put_back(&mut self, messages: Vec<Pending>) {
        for message in messages.into_iter().rev() {
            *self.of.entry(message.post.topic.clone()).or_insert(0) += 1;
            self.messages.push_front(message);
        }
        self.trying = false;
        self.again = Some(Instant::now() + self.back_off.pause());
    }

    /// What was tried again was taken.
    pub(super) fn accepted(&mut self) {
        if std::mem::take(&mut self.trying) {
            self.back_off.succeeded();
            self.again = None;
        }
    }

    /// How long until some are to be tried again, if there are any.
    pub(super) fn pause(&self) -> Option<Duration> {
        let now = Instant::now();
        let left = self.again.map(|at| at.saturating_duration_since(now));
        (!self.is_empty()).then(|| left.unwrap_or_default())
    }

    #[cfg(test)]
    pub(super) fn hurry(&mut self) {
        self.again = None;
    }

    /// Moves those that are to be tried again now, as many as one batch holds.
    pub(super) fn release(&mut self, to: &mut VecDeque<Pending>) {
        if self.pause().is_none_or(|left| !left.is_zero()) {
            return;
        }
        let mut bytes = 0;
        while to.len() < BATCH && bytes < BATCH_BYTES {
            let Some(message) = self.messages.pop_front() else {
                break;
            };
            if let Some(count) = self.of.get_mut(&message.post.topic) {
                *count -= 1;
                if *count == 0 {
                    self.of.remove(&message.post.topic);
                }
            }
            bytes += message.envelope.len();
            to.push_back(message);
            self.trying = true;
        }
    }
}
