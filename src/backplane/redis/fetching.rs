//! What was missed of topics with history: fetched on a connection of its own.
//!
//! A fetch that fails concerns its topic, which waits, and is tried again. Others are listened to
//! meanwhile: what is published to a topic without history is not kept anywhere.

use std::collections::BTreeSet;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Weak};
use std::time::Instant;

use redis::{Connection, RedisError, RedisResult};

use super::Inner;
use super::retry::BackOff;
use crate::backplane::{Node, Tail};
use crate::history::Offset;
use crate::logging::Throttle;

/// So many may fail before the others have to wait: it is the thread that listens which tries them.
const FAILURES: usize = 64;

/// See the module's documentation.
pub(super) struct Fetching {
    inner: Arc<Inner>,
    node: Weak<dyn Node>,
    /// Dropped when anything fails: the next attempt is made on another.
    connection: Option<Connection>,
    /// There was none to be had, so nothing is tried before `again`.
    unreachable: bool,
    /// Topics for which it failed, all of which are listened to.
    failed: BTreeSet<Box<str>>,
    /// Those of them that are tried next.
    due: BTreeSet<Box<str>>,
    /// Not before this.
    again: Option<Instant>,
    back_off: BackOff,
}

impl Fetching {
    pub(super) fn new(inner: Arc<Inner>, node: Weak<dyn Node>) -> Self {
        Self {
            inner,
            node,
            connection: None,
            unreachable: false,
            failed: BTreeSet::new(),
            due: BTreeSet::new(),
            again: None,
            back_off: BackOff::default(),
        }
    }

    /// Nothing is listened to any more: all of it will be fetched from anew.
    pub(super) fn clear(&mut self) {
        self.connection = None;
        self.unreachable = false;
        self.failed.clear();
        self.due.clear();
    }

    /// This topic is not listened to any more.
    pub(super) fn forget(&mut self, topic: &str) {
        self.failed.remove(topic);
        self.due.remove(topic);
    }

    /// Fetches what is missing of a topic with history, if anything is; later, if it has just failed.
    pub(super) fn fetch(&mut self, topic: &str) {
        if !self.failed.contains(topic) && !self.due.contains(topic) {
            self.attempt(topic);
        }
    }

    /// Tries those again that failed, once it is time. Called whenever something was heard, so at each sign of
    /// life at least.
    pub(super) fn retry(&mut self) {
        let none = self.failed.is_empty() && self.due.is_empty();
        if none || self.is_too_early() {
            return;
        }
        if self.due.is_empty() {
            std::mem::swap(&mut self.due, &mut self.failed);
        }
        self.unreachable = false;
        let mut failures = 0;
        while failures < FAILURES && !self.unreachable {
            let Some(topic) = self.due.pop_first() else {
                break;
            };
            if !self.attempt(&topic) {
                failures += 1;
            }
        }
        if failures == 0 {
            self.back_off.succeeded();
        }
    }

    fn is_too_early(&self) -> bool {
        self.again.is_some_and(|at| Instant::now() < at)
    }

    /// `false`: it has to be tried again.
    fn attempt(&mut self, topic: &str) -> bool {
        let Some(node) = self.node.upgrade() else {
            return true;
        };
        let Some(after) = node.missing(topic) else {
            return true;
        };
        if self.unreachable {
            self.failed.insert(topic.into());
            return false;
        }
        match self.tail(topic, after) {
            Ok(tail) => {
                let fetched = tail.kept.iter().filter(|kept| kept.offset != after);
                let fetched = fetched.count() as u64;
                self.inner.fetched.fetch_add(fetched, Relaxed);
                node.adopt(tail);
                true
            }
            Err(error) => {
                self.fail(topic, &error);
                false
            }
        }
    }

    fn tail(&mut self, topic: &str, after: Offset) -> RedisResult<Tail> {
        let kept = self.connection.take();
        let was_kept = kept.is_some();
        match self.tail_on(kept, topic, after) {
            // Redis has closed it while it was idle, perhaps.
            Err(error) if was_kept && error.is_io_error() && !error.is_timeout() => {
                self.tail_on(None, topic, after)
            }
            tail => tail,
        }
    }

    /// On this connection, or a new one, which is kept unless this fails.
    fn tail_on(
        &mut self,
        connection: Option<Connection>,
        topic: &str,
        after: Offset,
    ) -> RedisResult<Tail> {
        let mut connection = match connection {
            Some(connection) => connection,
            None => self.inner.connect()?,
        };
        let tail = self.inner.tail(&mut connection, topic, after)?;
        self.connection = Some(connection);
        Ok(tail)
    }

    fn fail(&mut self, topic: &str, error: &RedisError) {
        self.failed.insert(topic.into());
        self.unreachable = error.is_io_error();
        if !self.is_too_early() {
            self.again = Some(Instant::now() + self.back_off.pause());
        }
        self.inner.failures.fetch_add(1, Relaxed);
        static FETCHES: Throttle = Throttle::new();
        if let Some(more) = FETCHES.pass() {
            log::warn!(target: "framemill::backplane", "Redis: what is kept of {topic:?} can't be fetched for now: {error}{more}");
        }
    }
}
