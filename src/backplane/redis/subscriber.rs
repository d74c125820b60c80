//! What other nodes publish, and which of it is wanted here.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Weak};
use std::time::Duration;

use redis::{Connection, RedisError, RedisResult, Value, cmd};

use super::fetching::Fetching;
use super::publisher::HEARTBEAT;
use super::retry::BackOff;
use super::{ANSWER, Inner, lock};
use crate::backplane::envelope::Envelope;
use crate::backplane::{Node, Post};

/// Channels that Redis may have yet to answer for, and the bytes of their names. All that it has
/// to say must fit into its buffer, or it ends the connection.
const CHUNK: usize = 512;
const CHUNK_BYTES: usize = 64 << 10;

/// Without a sign of life for this long, the connection is given up. Longer than an answer may take: the
/// publisher, which gives the signs, may wait for one.
const SILENCE: Duration = ANSWER.saturating_add(HEARTBEAT);

/// Nodes that are remembered, so that what comes twice is noticed. They come and go.
const NODES: usize = 4096;

/// See the module's documentation.
pub(super) struct Subscriber {
    inner: Arc<Inner>,
    node: Weak<dyn Node>,
    back_off: BackOff,
    /// Answers that are to come.
    unanswered: usize,
    /// Topics that Redis has confirmed: what is published there from now on is heard.
    confirmed: HashSet<Box<str>>,
    fetching: Fetching,
    /// The latest that was heard of each node.
    heard: HashMap<u64, u64>,
}

/// What Redis says on a connection that subscribes.
enum Said {
    Subscribed(Vec<u8>),
    Unsubscribed,
    Message(Vec<u8>, Vec<u8>),
}

impl Subscriber {
    pub(super) fn new(inner: Arc<Inner>, node: Weak<dyn Node>) -> Self {
        Self {
            fetching: Fetching::new(inner.clone(), node.clone()),
            inner,
            node,
            back_off: BackOff::default(),
            unanswered: 0,
            confirmed: HashSet::new(),
            heard: HashMap::new(),
        }
    }

    pub(super) fn run(mut self) {
        while self.inner.end.deadline().is_none() {
            let Err(error) = self.listen() else {
                break;
            };
            self.inner.subscribed.store(0, Relaxed);
            let asked = lock(&self.inner.wanted).begin_anew();
            if let Some(node) = self.node.upgrade() {
                asked.iter().for_each(|topic| node.out_of_step(topic));
            }
            self.inner.failures.fetch_add(1, Relaxed);
            if self.inner.hears.swap(false, Relaxed) {
                log::warn!(target: "framemill::backplane", "Redis: listening has stopped: {error}");
            } else {
                log::debug!(target: "framemill::backplane", "Redis: still not listening: {error}");
            }
            self.back_off.wait(&self.inner.end);
        }
        self.inner.hears.store(false, Relaxed);
    }

    /// Listens on one connection until it breaks, or the server ends.
    fn listen(&mut self) -> RedisResult<()> {
        let mut connection = self.inner.connect()?;
        connection.set_read_timeout(Some(SILENCE))?;
        let own = self.inner.own_channel();
        connection.send_packed_command(&cmd("SUBSCRIBE").arg(&own).get_packed_command())?;
        self.unanswered = 0;
        self.confirmed.clear();
        self.fetching.clear();
        lock(&self.inner.wanted).begin_anew();
        self.look(&mut connection)?;
        while self.inner.end.deadline().is_none() {
            match said(connection.recv_response()?)? {
                Some(Said::Subscribed(channel)) if channel == own.as_bytes() => {
                    self.inner.hears.store(true, Relaxed);
                }
                Some(Said::Subscribed(channel)) => {
                    let topic = self.topic(&channel).unwrap_or_default();
                    self.unanswered = self.unanswered.saturating_sub(1);
                    self.confirmed.insert(topic.clone());
                    // It is fetched from, or not wanted any more.
                    lock(&self.inner.wanted).look_at(&topic);
                    self.look(&mut connection)?;
                }
                Some(Said::Unsubscribed) => {
                    self.unanswered = self.unanswered.saturating_sub(1);
                    self.ask(&mut connection)?;
                }
                Some(Said::Message(channel, _)) if channel == own.as_bytes() => {
                    self.look(&mut connection)?;
                }
                Some(Said::Message(channel, payload)) => self.message(&channel, &payload),
                None => {}
            }
            self.fetching.retry();
            self.inner.subscribed.store(self.confirmed.len(), Relaxed);
            if self.unanswered == 0 && self.inner.hears.load(Relaxed) {
                self.back_off.succeeded();
            }
        }
        Ok(())
    }

    /// Sees to what is wanted by now.
    fn look(&mut self, connection: &mut Connection) -> RedisResult<()> {
        let mut same = Vec::new();
        {
            let mut wanted = lock(&self.inner.wanted);
            wanted.told = false;
            for topic in std::mem::take(&mut wanted.changed) {
                if wanted.topics.contains(&topic) && self.confirmed.contains(&topic) {
                    same.push(topic);
                } else {
                    wanted.next.insert(topic);
                }
            }
        }
        self.ask(connection)?;
        same.iter().for_each(|topic| self.fetching.fetch(topic));
        Ok(())
    }

    /// Asks Redis for some of what is to be asked, unless it has yet to answer.
    fn ask(&mut self, connection: &mut Connection) -> RedisResult<()> {
        if self.unanswered > 0 {
            return Ok(());
        }
        let (mut more, mut less, mut bytes) = (Vec::new(), Vec::new(), 0);
        {
            let mut wanted = lock(&self.inner.wanted);
            while more.len() + less.len() < CHUNK && bytes < CHUNK_BYTES {
                let Some(topic) = wanted.next.pop_first() else {
                    break;
                };
                let channel = self.inner.channel(&topic);
                let len = channel.len();
                if wanted.topics.contains(&topic) {
                    if !wanted.asked.insert(topic) {
                        continue;
                    }
                    more.push(channel);
                } else if self.confirmed.remove(&topic) {
                    wanted.asked.remove(&topic);
                    self.fetching.forget(&topic);
                    less.push(channel);
                } else {
                    continue;
                }
                bytes += len;
            }
        }
        self.unanswered = more.len() + less.len();
        let mut commands = Vec::new();
        for (name, channels) in [("SUBSCRIBE", more), ("UNSUBSCRIBE", less)] {
            if !channels.is_empty() {
                commands.extend(cmd(name).arg(channels).get_packed_command());
            }
        }
        if !commands.is_empty() {
            connection.send_packed_command(&commands)?;
        }
        Ok(())
    }

    fn topic(&self, channel: &[u8]) -> Option<Box<str>> {
        let name = std::str::from_utf8(channel).ok()?;
        let topic = name.strip_prefix(&*self.inner.channel(""))?;
        Some(topic.into())
    }

    fn message(&mut self, channel: &[u8], payload: &[u8]) {
        let topic = self.topic(channel).unwrap_or_default();
        if let Some(kept) = self.inner.kept(&topic, payload) {
            self.inner.received.fetch_add(1, Relaxed);
            let node = self.node.upgrade();
            if node.is_some_and(|node| !node.deliver_kept(kept)) {
                self.fetching.fetch(&topic);
            }
            return;
        }
        let Some(envelope) = Envelope::decode(payload) else {
            log::debug!(target: "framemill::backplane", "Redis: a message that no node sends");
            return;
        };
        if envelope.node == self.inner.node {
            return;
        }
        if !self.is_new(&envelope) {
            self.inner.repeated.fetch_add(1, Relaxed);
            return;
        }
        self.inner.received.fetch_add(1, Relaxed);
        if let Some(node) = self.node.upgrade() {
            node.deliver(Post {
                latest: envelope.latest,
                ..Post::new(topic, envelope.message)
            });
        }
    }

    /// Notes that it was heard. `false`: it had been.
    fn is_new(&mut self, envelope: &Envelope) -> bool {
        if self.heard.len() >= NODES && !self.heard.contains_key(&envelope.node) {
            self.heard.clear();
        }
        let latest = self.heard.entry(envelope.node).or_insert(0);
        let is_new = envelope.sequence > *latest;
        *latest = envelope.sequence.max(*latest);
        is_new
    }
}

/// `None`: nothing that matters here.
fn said(value: Value) -> RedisResult<Option<Said>> {
    let Value::Array(parts) = value else {
        // An error is one here, whatever it is about.
        return value.extract_error().map(|_| None);
    };
    let mut parts = parts.into_iter();
    let mut bytes = || match parts.next() {
        Some(Value::BulkString(bytes)) => Some(bytes),
        _ => None,
    };
    let (kind, channel) = (bytes(), bytes());
    let said = match (kind.as_deref(), channel) {
        (Some(b"subscribe"), Some(channel)) => Some(Said::Subscribed(channel)),
        (Some(b"unsubscribe"), Some(_)) => Some(Said::Unsubscribed),
        (Some(b"message"), Some(channel)) => bytes().map(|it| Said::Message(channel, it)),
        _ => None,
    };
    Ok::<_, RedisError>(said)
}
