//! Other nodes: what is published on one reaches the subscribers on all.
//!
//! | file | what |
//! |---|---|
//! | `local` | [`Local`]: there are no others |
//! | `envelope` | how a message travels between nodes |
//! | `shards` | [`Shards`]: topics spread over several |
//! | `redis` | [`Redis`], feature `redis` |
//!
//! A backplane knows no connections and no loops. It is told which topics have subscribers here, takes
//! what is published here, and gives what came from elsewhere to the [`Node`].

#[cfg(feature = "redis")]
mod envelope;
mod local;
mod presence;
#[cfg(feature = "redis")]
mod redis;
mod shards;

use std::fmt::Debug;
use std::sync::Weak;
use std::time::{Duration, Instant};

use crate::error::Result;
use crate::history::{History, Offset};
use crate::id::PeerId;
use crate::message::{LatestKey, Message};

pub use local::Local;
pub(crate) use presence::Presences;
#[cfg(feature = "redis")]
pub use redis::Redis;
pub use shards::Shards;

/// A message that is published to a topic, on its way between nodes.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Post {
    /// The name of the topic.
    pub topic: Box<str>,
    /// Text or binary.
    pub message: Message,
    /// Set if only the latest of its key matters.
    pub latest: Option<LatestKey>,
}

impl Post {
    /// A message for a topic.
    pub fn new(topic: impl Into<Box<str>>, message: Message) -> Self {
        Self {
            topic: topic.into(),
            message,
            latest: None,
        }
    }
}

/// A message of a topic with history, as the backplane has it.
#[derive(Clone, Debug)]
#[allow(clippy::exhaustive_structs, reason = "backplanes make these")]
pub struct Kept {
    /// What was published.
    pub post: Post,
    /// Its position. Numbers begin with 1 in each epoch and have no holes.
    pub offset: Offset,
    /// The node that published it: any number that no other node has.
    pub node: u64,
    /// Its position among the messages of that node; grows.
    pub sequence: u64,
    /// The connection of this node that does not get it: the one that published it.
    pub except: Option<PeerId>,
    /// How long ago it was published.
    pub age: Duration,
}

/// What the backplane has of a topic with history.
#[derive(Clone, Debug)]
#[allow(clippy::exhaustive_structs, reason = "backplanes make these")]
pub struct Tail {
    /// The name of the topic.
    pub topic: Box<str>,
    /// The latest message, kept or not; the default if there never was any.
    pub last: Offset,
    /// What is kept after the offset that was asked for, in order; with the message that has it, by which
    /// the node can tell that it is still the same.
    pub kept: Vec<Kept>,
}

/// How topics span several servers. [`Local`], which is the default, says that there is one.
///
/// Given to [`Server::backplane`](crate::Server::backplane). Only [`who`](Self::who) and
/// [`stop`](Self::stop) may block: the others are called by the threads that publish and subscribe,
/// event loops among them. [`subscribe`](Self::subscribe), [`unsubscribe`](Self::unsubscribe),
/// [`mark`](Self::mark) and [`announce`](Self::announce) are called with a lock of the server held, so
/// they must not call the [`Node`].
pub trait Backplane: Debug + Send + Sync + 'static {
    /// The server starts. What comes from other nodes goes to `node`, which is gone when the server is.
    ///
    /// # Errors
    /// Anything that makes it impossible to start; that other nodes can't be reached yet is not an error.
    fn start(&self, node: Weak<dyn Node>) -> Result<()>;

    /// A topic has its first subscriber here. Calls for one topic come in the order of what happened.
    fn subscribe(&self, topic: &str);

    /// Its last one has left.
    fn unsubscribe(&self, topic: &str);

    /// Something was published here, for the subscribers on other nodes; those here have it already.
    /// What one thread publishes comes in order, and is to arrive so. Topics that nobody can subscribe to,
    /// as their names are [too long](crate::Server::max_subscriptions), are not among it.
    fn publish(&self, post: Post);

    /// Whether it keeps the messages of topics with history, and numbers them. The rest of these is
    /// only called if so. Default: no; then each node keeps its own.
    fn keeps_history(&self) -> bool {
        false
    }

    /// Something was published to a topic with history, for the subscribers on all nodes. Those here,
    /// but for `except`, get it when it comes back by [`Node::deliver_kept`]. `false`: there is no room
    /// for it.
    fn publish_kept(&self, post: Post, keep: History, except: Option<PeerId>) -> bool {
        let _ = (post, keep, except);
        false
    }

    /// This node, as in [`Kept::node`], and a sequence: what is published to this topic here from now on
    /// has a greater one. So a thread that subscribes and then publishes finds its own message among what
    /// is [fetched](Node::adopt). Default: `None`, it can't tell.
    fn mark(&self, topic: &str) -> Option<(u64, u64)> {
        let _ = topic;
        None
    }

    /// A subscriber here needs what there is of a topic: ask [`Node::missing`] from where on.
    fn refresh(&self, topic: &str) {
        let _ = topic;
    }

    /// This name has been entered in a topic here, or is not there any more. Calls for one topic come in
    /// the order of what happened.
    fn announce(&self, topic: &str, name: &str, present: bool) {
        let _ = (topic, name, present);
    }

    /// Who is in a topic, on all nodes, each name once. `None`: it can't tell. May block.
    fn who(&self, topic: &str) -> Option<Vec<String>> {
        let _ = topic;
        None
    }

    /// How it is doing.
    fn state(&self) -> BackplaneState;

    /// The server ends: passes on what is queued, until the deadline. May block.
    fn stop(&self, deadline: Instant);
}

/// The server, as its backplane sees it.
pub trait Node: Send + Sync {
    /// Gives a message to all who subscribe to its topic here. Waits while too many of these are on their
    /// way to a loop. One thread's calls arrive in order.
    fn deliver(&self, post: Post);

    /// The next message of a topic with history. A server that keeps no history of this topic delivers it
    /// without its offset. `false`: it does not follow the one before, and what is [missing](Self::missing) is to be
    /// fetched.
    fn deliver_kept(&self, kept: Kept) -> bool;

    /// Whether what was kept of this topic is wanted, and after which offset (in the same epoch; all in
    /// another). Asked once what is published there is heard, so that nothing comes between, and not
    /// again before the answer, or before it is known that none will come. A subscriber that comes
    /// meanwhile waits for the next one.
    fn missing(&self, topic: &str) -> Option<Offset>;

    /// The answer to [`missing`](Self::missing): what was wanted.
    fn adopt(&self, tail: Tail);

    /// Nothing is heard of this topic at present: from now on something may be missing.
    fn out_of_step(&self, topic: &str);
}

/// What can be said of a backplane at one moment. Counters begin with the server.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct BackplaneState {
    /// Whether this node hears the others, and they this one. [`Local`] never does.
    pub connected: bool,
    /// Topics that have subscribers here.
    pub topics: usize,
    /// Those of them that are subscribed to at the other end by now.
    pub subscribed: usize,
    /// Messages that wait to be passed on, including those on their way.
    pub queued: usize,
    /// Their bytes, with those of the names of topics and keys.
    pub queued_bytes: usize,
    /// Messages that were passed on, and acknowledged.
    pub published: u64,
    /// Messages that came from other nodes for subscribers here.
    pub received: u64,
    /// Messages of topics with history that were not heard when they were published, and fetched later.
    pub fetched: u64,
    /// Messages that came twice, and were dropped the second time.
    pub repeated: u64,
    /// Messages that other nodes never got, because the queue was full, or they could not be passed on. What
    /// was passed on, and not heard by a node, is not among them.
    pub lost: u64,
    /// Connections that were lost or could not be made, and attempts to fetch what was missed that failed.
    pub failures: u64,
}
