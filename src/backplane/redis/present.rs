//! Who is in a topic: a sorted set `PREFIX{TOPIC}:p` of nodes and names, by when each has to be renewed.
//! Times are those of Redis, so that the clocks of nodes don't matter.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use redis::{Cmd, RedisResult, cmd};

use super::{Inner, lock};

/// Between two renewals.
const RENEWAL: Duration = Duration::from_secs(3);

/// A node that is not heard of for so long is dead, and nobody is there.
const EXPIRY: Duration = Duration::from_secs(10);

/// KEYS: the set. ARGV: for how long, then members.
const ENTER: &str = "\
local time = redis.call('TIME')
local at = time[1] * 1000 + math.floor(time[2] / 1000) + tonumber(ARGV[1])
for n = 2, #ARGV do redis.call('ZADD', KEYS[1], at, ARGV[n]) end
redis.call('PEXPIRE', KEYS[1], ARGV[1])
return 0";

/// KEYS: the set.
const WHO: &str = "\
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now)
return redis.call('ZRANGE', KEYS[1], 0, -1)";

/// Those of this node, and what Redis has to be told of them.
#[derive(Default)]
pub(super) struct Present {
    names: HashMap<Box<str>, HashSet<Box<str>>>,
    gone: Vec<(Box<str>, Box<str>)>,
    fresh: HashSet<Box<str>>,
    renewed: Option<Instant>,
}

impl Present {
    pub(super) fn note(&mut self, topic: Box<str>, name: Box<str>, present: bool) {
        if present {
            self.fresh.insert(topic.clone());
            self.names.entry(topic).or_default().insert(name);
            return;
        }
        if let Some(names) = self.names.get_mut(&topic) {
            names.remove(&name);
            if names.is_empty() {
                self.names.remove(&topic);
            }
        }
        self.gone.push((topic, name));
    }

    pub(super) fn has_news(&self) -> bool {
        !self.fresh.is_empty() || !self.gone.is_empty()
    }

    /// What Redis is to be told now.
    pub(super) fn commands(&mut self, inner: &Inner) -> Vec<Cmd> {
        let mut commands = Vec::new();
        for (topic, name) in &self.gone {
            let mut command = cmd("ZREM");
            command.arg(inner.present(topic)).arg(inner.member(name));
            commands.push(command);
        }
        let all = self.renewed.is_none_or(|at| at.elapsed() >= RENEWAL);
        // Of a topic all at once: one that has left and come back is among them.
        let topics = self.names.iter();
        for (topic, names) in topics.filter(|(topic, _)| all || self.fresh.contains(*topic)) {
            let mut command = cmd("EVAL");
            command.arg(ENTER).arg(1).arg(inner.present(topic));
            command.arg(EXPIRY.as_millis() as u64);
            for name in names {
                command.arg(inner.member(name));
            }
            commands.push(command);
        }
        if all {
            self.renewed = Some(Instant::now());
        }
        commands
    }

    /// It has been told.
    pub(super) fn told(&mut self) {
        self.gone.clear();
        self.fresh.clear();
    }

    /// It has perhaps not.
    pub(super) fn repeat(&mut self) {
        self.renewed = None;
    }
}

impl Inner {
    fn present(&self, topic: &str) -> String {
        self.key(topic, "p")
    }

    fn member(&self, name: &str) -> String {
        format!("{:016x}{name}", self.node)
    }

    /// Asks Redis, on a connection of its own.
    pub(super) fn who(&self, topic: &str) -> RedisResult<Vec<String>> {
        let mut asking = lock(&self.asking);
        let mut connection = match asking.take() {
            Some(connection) => connection,
            None => self.connect()?,
        };
        let mut ask = cmd("EVAL");
        ask.arg(WHO).arg(1).arg(self.present(topic));
        let members: Vec<String> = ask.query(&mut connection)?;
        // One that failed is not used again.
        *asking = Some(connection);
        let names = members.iter().filter_map(|member| member.get(16..));
        let mut names: Vec<_> = names.map(ToOwned::to_owned).collect();
        names.sort_unstable();
        names.dedup();
        Ok(names)
    }
}
