//! Who is in a topic: a sorted set `PREFIX{TOPIC}:p` of nodes and names, by when each has to be renewed.
//! Times are those of Redis, so that the clocks of nodes don't matter.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use std::time::{Duration, Instant};

use redis::{Cmd, Connection, RedisResult, cmd};

use super::publisher::HEARTBEAT;
use super::retry::BackOff;
use super::{ANSWER, Inner, bound, lock};

/// Each name is renewed so often.
const RENEWAL: Duration = Duration::from_secs(3);

/// A part of them at each sign of life.
const PARTS: usize = (RENEWAL.as_millis() / HEARTBEAT.as_millis()) as usize;

/// A node that is not heard of for this long is dead, and nobody is there.
const EXPIRY: Duration = Duration::from_secs(10);

/// Names that left longer ago than this, Redis has forgotten by itself.
const GONE: Duration = EXPIRY.saturating_add(ANSWER);

/// Names in one batch that are news, and as many that are renewed.
const BATCH: usize = 1024;

/// Connections for questions that are kept for the next ones.
const IDLE: usize = 4;

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

/// A topic and a name.
type Place = (Box<str>, Box<str>);

/// Those of this node, and what Redis has to be told of them.
#[derive(Default)]
pub(super) struct Present {
    names: BTreeSet<Place>,
    /// Who has come or left, and when; which of the two, `names` knows.
    news: BTreeMap<Place, Instant>,
    /// What Redis is being told of them.
    telling: Vec<(Place, Instant)>,
    /// So many are to be renewed now: those after this one, and then from the first on.
    due: usize,
    renewed: Option<Place>,
    /// When a part of them was last due.
    part: Option<Instant>,
    /// Redis refuses them, and is left alone until then.
    again: Option<Instant>,
    back_off: BackOff,
    /// The publisher has been told that there is something.
    pub(super) told: bool,
}

impl Present {
    pub(super) fn note(&mut self, topic: &str, name: &str, present: bool) {
        let place: Place = (topic.into(), name.into());
        if present {
            self.names.insert(place.clone());
        } else {
            self.names.remove(&place);
        }
        self.news.insert(place, Instant::now());
    }

    /// How long until Redis has to be told something. `None`: until there is something.
    pub(super) fn pause(&self) -> Option<Duration> {
        let left = |at: Instant| at.saturating_duration_since(Instant::now());
        let some = self.due > 0 || !self.news.is_empty();
        some.then(|| self.again.map(left).unwrap_or_default())
    }

    /// What Redis is to be told now.
    pub(super) fn commands(&mut self, inner: &Inner) -> Vec<Cmd> {
        if self.part.is_none_or(|at| at.elapsed() >= HEARTBEAT) {
            let part = self.names.len().div_ceil(PARTS);
            self.due = (self.due + part).min(self.names.len());
            self.part = Some(Instant::now());
        }
        if self.pause().is_none_or(|left| !left.is_zero()) {
            return Vec::new();
        }
        while self.telling.len() < BATCH {
            let Some(one) = self.news.pop_first() else {
                break;
            };
            self.telling.push(one);
        }
        let news = self.telling.iter().map(|(place, _)| place);
        let (come, left): (Vec<_>, Vec<_>) = news.partition(|place| self.names.contains(*place));
        let after = self
            .renewed
            .as_ref()
            .map_or(Bound::Unbounded, Bound::Excluded);
        let some = self.due.min(BATCH).min(self.names.len());
        let renewed = self.names.range((after, Bound::Unbounded));
        let renewed: Vec<_> = renewed.chain(&self.names).take(some).collect();

        let mut commands = Vec::new();
        for part in [&come, &renewed] {
            for names in part.chunk_by(|(a, _), (b, _)| a == b) {
                let mut command = cmd("EVAL");
                command.arg(ENTER).arg(1).arg(inner.present(&names[0].0));
                command.arg(EXPIRY.as_millis() as u64);
                for (_, name) in names {
                    command.arg(inner.member(name));
                }
                commands.push(command);
            }
        }
        for (topic, name) in left {
            let mut command = cmd("ZREM");
            command.arg(inner.present(topic)).arg(inner.member(name));
            commands.push(command);
        }
        if let Some(&last) = renewed.last() {
            self.renewed = Some(last.clone());
        }
        self.due = self.due.saturating_sub(BATCH).min(self.names.len());
        commands
    }

    /// It has been told.
    pub(super) fn told(&mut self) {
        self.telling.clear();
        self.back_off.succeeded();
        self.again = None;
    }

    /// It has perhaps not: all are told once more.
    pub(super) fn repeat(&mut self) {
        for (place, at) in self.telling.drain(..) {
            self.news.entry(place).or_insert(at);
        }
        let names = &self.names;
        self.news
            .retain(|place, at| !names.contains(place) && at.elapsed() < GONE);
        self.due = names.len();
    }

    /// It doesn't want to hear it now.
    pub(super) fn refused(&mut self) {
        self.repeat();
        self.again = Some(Instant::now() + self.back_off.pause());
    }
}

impl Inner {
    fn present(&self, topic: &str) -> String {
        self.key(topic, "p")
    }

    fn member(&self, name: &str) -> String {
        format!("{:016x}{name}", self.node)
    }

    /// Asks Redis, on a connection of its own. Takes no longer than one answer may.
    pub(super) fn who(&self, topic: &str) -> RedisResult<Vec<String>> {
        let deadline = Instant::now() + ANSWER;
        let mut ask = cmd("EVAL");
        ask.arg(WHO).arg(1).arg(self.present(topic));
        let kept = lock(&self.asking).pop();
        let answer = kept.and_then(|connection| self.ask(connection, &ask, deadline).ok());
        let members = match answer {
            Some(members) => members,
            // A kept one may be from before Redis was restarted.
            None => self.ask(self.address.connect(deadline)?, &ask, deadline)?,
        };
        let names = members.iter().filter_map(|member| member.get(16..));
        let mut names: Vec<_> = names.map(ToOwned::to_owned).collect();
        names.sort_unstable();
        names.dedup();
        Ok(names)
    }

    /// The connection is kept, unless this fails.
    fn ask(
        &self,
        mut connection: Connection,
        ask: &Cmd,
        deadline: Instant,
    ) -> RedisResult<Vec<String>> {
        bound(
            &connection,
            deadline.saturating_duration_since(Instant::now()),
        )?;
        let members = ask.query(&mut connection)?;
        let mut asking = lock(&self.asking);
        if asking.len() < IDLE {
            asking.push(connection);
        }
        Ok(members)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_redis_is_told_is_bounded() {
        let redis = crate::backplane::Redis::new("redis://localhost/").unwrap();
        let inner = &redis.inner;
        let mut present = Present::default();
        for _ in 0..10_000 {
            present.note("hall", "ada", true);
            present.repeat();
            present.note("hall", "ada", false);
        }
        assert_eq!(present.commands(inner).len(), 1, "that she has left");
        present.told();
        for n in 0..3 * BATCH {
            present.note("hall", &n.to_string(), true);
        }
        present.part = Some(Instant::now());
        assert_eq!(present.commands(inner).len(), 1, "a part of the news");
        assert_eq!(present.telling.len(), BATCH);
        present.told();
        assert_eq!(present.pause(), Some(Duration::ZERO), "there is more");
        present.refused();
        assert!(present.pause() > Some(Duration::ZERO), "but later");
        assert!(present.commands(inner).is_empty());
        assert!(present.news.is_empty() && present.due == 3 * BATCH);
        present.told();
        for _ in 0..3 {
            present.part = Some(Instant::now());
            assert_eq!(present.commands(inner).len(), 1);
        }
        assert_eq!((present.due, present.pause()), (0, None));
    }

    #[test]
    fn who_has_left_long_ago_is_forgotten() {
        let mut present = Present::default();
        let (Some(long_ago), now) = (Instant::now().checked_sub(2 * GONE), Instant::now()) else {
            return;
        };
        for (name, at) in [("ada", long_ago), ("ben", now)] {
            present.news.insert(("hall".into(), name.into()), at);
        }
        present.repeat();
        assert_eq!(present.news.len(), 1);
    }
}
