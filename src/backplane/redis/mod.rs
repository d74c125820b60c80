//! Nodes that find each other through Redis: a channel for each topic.
//!
//! | file | what |
//! |---|---|
//! | `connecting` | a connection, in bounded time |
//! | `fetching` | what was missed of topics with history |
//! | `keeping` | these topics: streams, and the script that adds to them |
//! | `present` | who is in a topic |
//! | `publisher` | one thread: from the queue to Redis, many commands at a time |
//! | `refused` | messages that Redis doesn't take for now |
//! | `subscriber` | one thread: subscribes to what is wanted here, and takes what comes |
//! | `retry` | pauses between attempts, which the end of the server cuts short |
//!
//! **Once.** A publisher that loses its connection can't know what Redis has carried out, and sends
//! again what was not acknowledged. Each message carries its node and a number that grows, so a node
//! that hears it twice drops the second. What a node hears of itself it drops as well.
//!
//! **Refused.** A Redis may take no writes for a while (`maxmemory`, a disk that is full) and still pass
//! on what is published. So what it refuses waits apart, with all that follows of the same topic.
//!
//! **Signs of life.** Each node has a channel of its own, to which its publisher speaks twice a second
//! and its subscriber listens: silence there means that one of the two is cut off. It is also how the
//! subscriber, which blocks in a read, learns that it has something to do.

mod connecting;
mod fetching;
mod keeping;
mod present;
mod publisher;
mod refused;
mod retry;
mod subscriber;

use std::collections::{BTreeSet, HashSet};
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, Weak};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, unbounded};
use redis::{Connection, RedisResult};

use super::{Backplane, BackplaneState, Node, Post};
use crate::error::{Error, Result};
use crate::history::History;
use crate::id::PeerId;
use crate::message::LatestKey;
use crate::sync::lock;
use connecting::{Address, bound};
use present::Present;
use publisher::Publisher;
use retry::End;
use subscriber::Subscriber;

/// The longest that connecting, with all answers that this needs, or any one other answer may take.
const ANSWER: Duration = Duration::from_secs(3);

/// How much longer than the deadline, by which they end, the threads get.
const GRACE: Duration = Duration::from_millis(200);

/// Between two lines about messages that are lost.
const COMPLAINTS: Duration = Duration::from_secs(5);

/// Topics that span all nodes that use the same Redis and the same [`prefix`](Self::prefix): feature
/// `redis`. It speaks RESP2 to Redis 5 or newer, over TCP or a Unix socket, on two threads of its own.
///
/// - A message that is published on any node reaches each subscriber on every node once, as long as that node hears
///   Redis. The messages of one thread arrive in the order of its calls, on all nodes.
/// - Redis cuts off a node for which too much waits (`client-output-buffer-limit`: 32 MB, or 8 MB for a minute, unless
///   it is set), because the node is too slow, or because one message is larger. The node connects anew, and has
///   missed what waited; only its [`BackplaneState::failures`] tells.
/// - A node subscribes only to topics that have subscribers on it. That takes a moment after
///   [`Peer::subscribe`](crate::Peer::subscribe) has returned; messages that other nodes publish meanwhile don't
///   arrive.
/// - While Redis is away, subscribers go on getting what is published on their own node. Messages for other nodes are
///   [queued](Self::queue); those that don't fit are lost, counted in [`BackplaneState::lost`] and logged. Messages
///   that other nodes publish meanwhile are missed.
/// - While Redis takes no writes, for instance because its memory is full, messages to topics with history wait, and
///   other topics go on.
/// - Topics with [history](crate::Server::history) are kept in Redis Streams, and miss nothing: messages that could
///   not be heard when they were published are fetched later. This needs a Redis that keeps what it has acknowledged
///   (`appendonly yes`); otherwise clients that missed something are sent `gap`.
///
/// ```no_run
/// use framemill::{Message, Peer, Redis, Server};
///
/// fn main() -> framemill::Result<()> {
///     let redis = Redis::new("redis://10.0.0.5/")?;
///     Server::bind("0.0.0.0:9001")?.backplane(redis).run(|peer: &Peer, message: Message| {
///         peer.subscribe("lobby");
///         peer.publish("lobby", message); // to everyone on every node
///     })
/// }
/// ```
pub struct Redis {
    inner: Arc<Inner>,
    jobs: Sender<Job>,
    /// For the publisher; taken when it starts.
    queue: Mutex<Option<Receiver<Job>>>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

/// What the two threads and the server share.
struct Inner {
    address: Address,
    prefix: String,
    most: usize,
    most_bytes: usize,
    /// This node, told apart from all others.
    node: u64,
    wanted: Mutex<Wanted>,
    presences: Mutex<Present>,
    end: End,
    complained: Mutex<Option<Instant>>,
    /// For questions of the server's threads; those that are not in use.
    asking: Mutex<Vec<Connection>>,
    /// The publisher is connected.
    speaks: AtomicBool,
    /// The subscriber is.
    hears: AtomicBool,
    subscribed: AtomicUsize,
    queued: AtomicUsize,
    queued_bytes: AtomicUsize,
    /// Messages in the queue so far, which the publisher numbers from 1 on, and those that got another
    /// number; at least this many.
    accepted: AtomicU64,
    published: AtomicU64,
    received: AtomicU64,
    fetched: AtomicU64,
    repeated: AtomicU64,
    lost: AtomicU64,
    failures: AtomicU64,
}

/// Topics with subscribers here.
#[derive(Default)]
struct Wanted {
    topics: HashSet<Box<str>>,
    /// Those that the subscriber's connection subscribes to, or has asked to. None while there is no connection.
    asked: HashSet<Box<str>>,
    /// What the subscriber has to look at: some of these two, so that topics that come and go while
    /// Redis is away take no memory.
    changed: HashSet<Box<str>>,
    /// It has been told so.
    told: bool,
    /// What it has looked at, and will subscribe to or unsubscribe from once all that was asked is
    /// answered; again some of these two.
    next: BTreeSet<Box<str>>,
}

impl Wanted {
    fn look_at(&mut self, topic: &str) {
        if self.topics.contains(topic) || self.asked.contains(topic) {
            self.changed.insert(topic.into());
        } else {
            self.changed.remove(topic);
            self.next.remove(topic);
        }
    }

    /// There is another connection, or none. Gives what the one before had asked for.
    fn begin_anew(&mut self) -> HashSet<Box<str>> {
        self.next.clear();
        self.changed = self.topics.clone();
        std::mem::take(&mut self.asked)
    }
}

/// Something for the publisher.
enum Job {
    Post {
        post: Post,
        /// Set for topics with history.
        keep: Option<History>,
        sender: Option<PeerId>,
    },
    /// Somebody has entered a topic, or left: `Inner::presences`.
    Present,
    /// The subscriber has something to do.
    Tell,
    /// The end is near, see `Inner::end`.
    Stop,
}

impl Redis {
    /// The Redis at this URL: `redis://[user:password@]host[:port][/db]`, or
    /// `unix:///path/of/socket`. Connects when the server starts, and again whenever the connection is
    /// lost, after a pause that grows from 50 ms to 5 s.
    ///
    /// # Errors
    /// [`Error::Config`] if this is not the URL of a Redis server.
    pub fn new(url: impl AsRef<str>) -> Result<Self> {
        // What the crate says may contain the password.
        let address = Address::parse(url.as_ref())
            .map_err(|_| Error::Config("this is not the URL of a Redis server".into()))?;
        let (jobs, queue) = unbounded();
        Ok(Self {
            inner: Arc::new(Inner {
                address,
                prefix: "framemill:".into(),
                most: 65_536,
                most_bytes: 64 << 20,
                node: rand::random(),
                wanted: Mutex::default(),
                presences: Mutex::default(),
                end: End::default(),
                complained: Mutex::default(),
                asking: Mutex::default(),
                speaks: AtomicBool::new(false),
                hears: AtomicBool::new(false),
                subscribed: AtomicUsize::new(0),
                queued: AtomicUsize::new(0),
                queued_bytes: AtomicUsize::new(0),
                accepted: AtomicU64::new(0),
                published: AtomicU64::new(0),
                received: AtomicU64::new(0),
                fetched: AtomicU64::new(0),
                repeated: AtomicU64::new(0),
                lost: AtomicU64::new(0),
                failures: AtomicU64::new(0),
            }),
            jobs,
            queue: Mutex::new(Some(queue)),
            threads: Mutex::default(),
        })
    }

    /// The prefix of all keys and channels. Default: `framemill:`.
    ///
    /// Servers with different prefixes are separate, provided that no prefix begins with another: `app:` and `app2:`
    /// are fine; `app:` and `app:t:` are not (the topic `lobby` of the second is `t:lobby` of the first); an empty
    /// prefix allows no other. This is not checked.
    #[must_use]
    pub fn prefix(mut self, prefix: impl Into<String>) -> Self {
        self.settings().prefix = prefix.into();
        self
    }

    /// How many messages may wait for Redis, and how many bytes of them, the names of topics included. Default:
    /// 65,536, 64 MiB. Further messages are lost to the other nodes; for topics with history,
    /// [`Peer::publish`](crate::Peer::publish) returns `false`.
    #[must_use]
    pub fn queue(mut self, messages: usize, bytes: usize) -> Self {
        let settings = self.settings();
        (settings.most, settings.most_bytes) = (messages, bytes);
        self
    }

    fn settings(&mut self) -> &mut Inner {
        Arc::get_mut(&mut self.inner).expect("nobody else has it before it is started")
    }
}

impl Backplane for Redis {
    fn start(&self, node: Weak<dyn Node>) -> Result<()> {
        let Some(queue) = lock(&self.queue).take() else {
            return Err(Error::Config("a Redis belongs to one server".into()));
        };
        let mut threads = lock(&self.threads);
        let publisher = Publisher::new(self.inner.clone(), queue);
        let subscriber = Subscriber::new(self.inner.clone(), node);
        let named = |name: &str| thread::Builder::new().name(name.into());
        threads.push(named("framemill-redis-out").spawn(move || publisher.run())?);
        threads.push(named("framemill-redis-in").spawn(move || subscriber.run())?);
        Ok(())
    }

    fn subscribe(&self, topic: &str) {
        lock(&self.inner.wanted).topics.insert(topic.into());
        self.look_at(topic);
    }

    fn unsubscribe(&self, topic: &str) {
        lock(&self.inner.wanted).topics.remove(topic);
        self.look_at(topic);
    }

    fn publish(&self, post: Post) {
        self.put_in(post, None, None);
    }

    fn keeps_history(&self) -> bool {
        true
    }

    fn publish_kept(&self, post: Post, keep: History, except: Option<PeerId>) -> bool {
        self.put_in(post, Some(keep), except)
    }

    fn mark(&self, _: &str) -> Option<(u64, u64)> {
        Some((self.inner.node, self.inner.accepted.load(Relaxed)))
    }

    fn refresh(&self, topic: &str) {
        self.look_at(topic);
    }

    fn announce(&self, topic: &str, name: &str, present: bool) {
        let mut presences = lock(&self.inner.presences);
        presences.note(topic, name, present);
        if !std::mem::replace(&mut presences.told, true) {
            let _ = self.jobs.send(Job::Present);
        }
    }

    fn who(&self, topic: &str) -> Option<Vec<String>> {
        // Whoever asks waits for the answer, so not for one that won't come.
        if !self.inner.is_connected() {
            return None;
        }
        let answer = self.inner.who(topic);
        answer
            .inspect_err(|error| {
                log::debug!(target: "framemill::backplane", "Redis: can't tell who is there: {error}");
            })
            .ok()
    }

    fn state(&self) -> BackplaneState {
        let inner = &self.inner;
        BackplaneState {
            connected: inner.is_connected(),
            topics: lock(&inner.wanted).topics.len(),
            subscribed: inner.subscribed.load(Relaxed),
            queued: inner.queued.load(Relaxed),
            queued_bytes: inner.queued_bytes.load(Relaxed),
            published: inner.published.load(Relaxed),
            received: inner.received.load(Relaxed),
            fetched: inner.fetched.load(Relaxed),
            repeated: inner.repeated.load(Relaxed),
            lost: inner.lost.load(Relaxed),
            failures: inner.failures.load(Relaxed),
        }
    }

    fn stop(&self, deadline: Instant) {
        self.inner.end.is_near(deadline);
        let _ = self.jobs.send(Job::Stop);
        let threads = std::mem::take(&mut *lock(&self.threads));
        for thread in threads {
            while !thread.is_finished() && Instant::now() < deadline + GRACE {
                thread::sleep(Duration::from_millis(1));
            }
            // One that waits for Redis is left behind: it will end by itself.
            if thread.is_finished() && thread.join().is_err() {
                log::error!(target: "framemill::backplane", "a thread panicked: this is a bug in framemill");
            }
        }
    }
}

impl Redis {
    /// `false`: there is no room, or the server has ended.
    fn put_in(&self, post: Post, keep: Option<History>, sender: Option<PeerId>) -> bool {
        let (inner, len) = (&self.inner, size(&post));
        // Several at once may take it past the limit by as many.
        let full = inner.queued.load(Relaxed) >= inner.most
            || inner.queued_bytes.load(Relaxed) + len > inner.most_bytes;
        if full {
            inner.lose(1, "the queue is full");
            return false;
        }
        inner.queued.fetch_add(1, Relaxed);
        inner.queued_bytes.fetch_add(len, Relaxed);
        let Err(job) = self.jobs.send(Job::Post { post, keep, sender }) else {
            // Not before: what is put in after this was read must not be counted.
            inner.accepted.fetch_add(1, Relaxed);
            return true;
        };
        // The publisher has ended, and may have counted it among what it left.
        let Job::Post { post, .. } = job.into_inner() else {
            return false;
        };
        if inner.settled(&post) {
            inner.lose(1, "the server has ended");
        }
        false
    }

    /// The subscriber is to see whether it listens to this topic as it should.
    fn look_at(&self, topic: &str) {
        let mut wanted = lock(&self.inner.wanted);
        wanted.look_at(topic);
        if !std::mem::replace(&mut wanted.told, true) {
            let _ = self.jobs.send(Job::Tell);
        }
    }
}

/// What it counts for in the queue: a name may be longer than the message.
fn size(post: &Post) -> usize {
    let key = match &post.latest {
        Some(LatestKey::Name(name)) => name.len(),
        _ => 0,
    };
    post.topic.len() + key + post.message.len()
}

impl Inner {
    /// A connection of which each answer is bounded in time.
    fn connect(&self) -> RedisResult<Connection> {
        let connection = self.address.connect(Instant::now() + ANSWER)?;
        bound(&connection, ANSWER)?;
        Ok(connection)
    }

    fn is_connected(&self) -> bool {
        self.speaks.load(Relaxed) && self.hears.load(Relaxed)
    }

    /// This message waits no more. `false`: none did.
    fn settled(&self, post: &Post) -> bool {
        let less = |by: usize| move |queued: usize| queued.checked_sub(by);
        let len = size(post);
        let _ = self.queued_bytes.fetch_update(Relaxed, Relaxed, less(len));
        self.queued.fetch_update(Relaxed, Relaxed, less(1)).is_ok()
    }

    fn channel(&self, topic: &str) -> String {
        format!("{}t:{topic}", self.prefix)
    }

    /// The channel of this node itself.
    fn own_channel(&self) -> String {
        format!("{}n:{:016x}", self.prefix, self.node)
    }

    /// These messages will never reach other nodes.
    fn lose(&self, messages: u64, why: &str) {
        let lost = self.lost.fetch_add(messages, Relaxed) + messages;
        let mut complained = lock(&self.complained);
        if complained.is_none_or(|at| at.elapsed() >= COMPLAINTS) {
            *complained = Some(Instant::now());
            log::warn!(target: "framemill::backplane", "{why}: other nodes have missed {lost} messages by now");
        }
    }
}

impl fmt::Debug for Redis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Not the URL, which may hold a password.
        f.debug_struct("Redis")
            .field("prefix", &self.inner.prefix)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Or peers could fill the memory with the names of topics while Redis is away, or slow.
    #[test]
    fn topics_that_come_and_go_are_forgotten() {
        let redis = Redis::new("redis://localhost/").unwrap();
        redis.subscribe("stays");
        for n in 0..1000 {
            redis.subscribe(&n.to_string());
            redis.unsubscribe(&n.to_string());
        }
        assert_eq!(lock(&redis.inner.wanted).changed.len(), 1);
        // It has been looked at, but Redis has yet to answer something else.
        for n in 0..1000 {
            redis.subscribe(&n.to_string());
            let mut wanted = lock(&redis.inner.wanted);
            wanted.next = std::mem::take(&mut wanted.changed).into_iter().collect();
            drop(wanted);
            redis.unsubscribe(&n.to_string());
        }
        let mut wanted = lock(&redis.inner.wanted);
        assert!(wanted.changed.len() + wanted.next.len() <= 1);
        // What was subscribed to has to be unsubscribed from, as long as there is this connection.
        wanted.asked.insert("gone".into());
        drop(wanted);
        redis.unsubscribe("gone");
        let mut wanted = lock(&redis.inner.wanted);
        assert!(wanted.changed.contains("gone"));
        assert_eq!(wanted.begin_anew().len(), 1);
        assert_eq!(wanted.changed, wanted.topics);
    }
}
