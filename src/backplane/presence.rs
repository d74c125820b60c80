//! Who is in a topic, on one node.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, MutexGuard};

use crate::sync::lock;

/// Names by topic, with how often each has entered.
#[derive(Debug, Default)]
pub(crate) struct Presences(Mutex<ByTopic>);

type ByTopic = HashMap<Box<str>, BTreeMap<Box<str>, usize>>;

impl Presences {
    /// `true`: the name is new here. What `then` does happens in the order of what is noted.
    pub(crate) fn enter(&self, topic: &str, name: &str, then: impl FnOnce()) {
        let mut topics = self.lock();
        let names = topics.entry(topic.into()).or_default();
        let count = names.entry(name.into()).or_insert(0);
        *count += 1;
        if *count == 1 {
            then();
        }
    }

    /// The same for a name that is here no more.
    pub(crate) fn leave(&self, topic: &str, name: &str, then: impl FnOnce()) {
        let mut topics = self.lock();
        let Some(names) = topics.get_mut(topic) else {
            return;
        };
        let Some(count) = names.get_mut(name) else {
            return;
        };
        *count -= 1;
        if *count == 0 {
            names.remove(name);
            if names.is_empty() {
                topics.remove(topic);
            }
            then();
        }
    }

    pub(crate) fn of(&self, topic: &str) -> Vec<String> {
        let topics = self.lock();
        let names = topics.get(topic).into_iter().flat_map(BTreeMap::keys);
        names.map(ToString::to_string).collect()
    }

    fn lock(&self) -> MutexGuard<'_, ByTopic> {
        lock(&self.0)
    }
}
