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

/// A message of a topic with history, as a backplane keeps it.
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
    /// The connection of this node that does not get the message, because it published it.
    pub except: Option<PeerId>,
    /// How long ago it was published.
    pub age: Duration,
}

/// What a backplane keeps of a topic with history.
#[derive(Clone, Debug)]
#[allow(clippy::exhaustive_structs, reason = "backplanes make these")]
pub struct Tail {
    /// The name of the topic.
    pub topic: Box<str>,
    /// The offset of the latest message, kept or not; the default if there never was a message.
    pub last: Offset,
    /// The messages that are kept after the offset that was asked for, in order. They are preceded by the message at
    /// that offset itself, if it is kept, so that the node can tell whether it is still the same.
    pub kept: Vec<Kept>,
}

/// How topics span several servers. [`Local`], which is the default, says that there is one.
///
/// Given to [`Server::backplane`](crate::Server::backplane). [`start`](Self::start) is called once, by the thread that
/// starts the server, and may block. Of the others, only [`who`](Self::who) and [`stop`](Self::stop) may block: the
/// rest are called by the threads that publish and subscribe, event loops among them.
/// [`subscribe`](Self::subscribe), [`unsubscribe`](Self::unsubscribe), [`mark`](Self::mark) and
/// [`announce`](Self::announce) are called with a lock of the server held, so they must not call the [`Node`].
pub trait Backplane: Debug + Send + Sync + 'static {
    /// The server starts. Pass messages of other nodes to `node`, which is gone when the server is. May block.
    ///
    /// # Errors
    /// Anything that makes it impossible to start. It is not an error if other nodes can't be reached yet.
    fn start(&self, node: Weak<dyn Node>) -> Result<()>;

    /// A topic has its first subscriber here. For one topic, this and [`unsubscribe`](Self::unsubscribe) are called
    /// in the order in which subscribers came and left.
    fn subscribe(&self, topic: &str);

    /// The last subscriber of a topic here has left.
    fn unsubscribe(&self, topic: &str);

    /// A message was published here. Pass it to the subscribers on other nodes; those here have it already. A
    /// thread's messages come in the order in which it published them, and are to arrive in that order. Messages to
    /// topics whose names are [too long](crate::Server::max_subscriptions) to be subscribed to don't come here.
    fn publish(&self, post: Post);

    /// Whether this backplane keeps the messages of topics with history, and numbers them.
    /// [`publish_kept`](Self::publish_kept) and [`refresh`](Self::refresh) are only called if this is true. Default:
    /// `false`; then each node keeps its own.
    fn keeps_history(&self) -> bool {
        false
    }

    /// A message was published to a topic with history, for the subscribers on all nodes. Those here, except for
    /// `except`, get it when it comes back by [`Node::deliver_kept`]. `false`: there is no room for it.
    fn publish_kept(&self, post: Post, keep: History, except: Option<PeerId>) -> bool {
        let _ = (post, keep, except);
        false
    }

    /// The number of this node, as in [`Kept::node`], and a sequence number: messages that are published to this
    /// topic here from now on have greater ones. So a thread that subscribes and then publishes finds its own message
    /// among those that are [fetched](Node::adopt). Default: `None`, for a backplane that can't tell.
    fn mark(&self, topic: &str) -> Option<(u64, u64)> {
        let _ = topic;
        None
    }

    /// A subscriber here needs the messages that are kept of a topic: ask [`Node::missing`] which, and pass them to
    /// [`Node::adopt`].
    fn refresh(&self, topic: &str) {
        let _ = topic;
    }

    /// This name has been entered in a topic here (`present`), or has left it. For one topic, calls come in the
    /// order in which names came and left. Default: does nothing.
    fn announce(&self, topic: &str, name: &str, present: bool) {
        let _ = (topic, name, present);
    }

    /// The names in a topic, on all nodes, each once. `None`, the default, for a backplane that can't tell; then
    /// the names of this node are taken. May block.
    fn who(&self, topic: &str) -> Option<Vec<String>> {
        let _ = topic;
        None
    }

    /// How the backplane is doing. Must not block.
    fn state(&self) -> BackplaneState;

    /// The server ends: pass on the messages that are queued, until the deadline. May block.
    fn stop(&self, deadline: Instant);
}

/// The server, as its backplane sees it.
pub trait Node: Send + Sync {
    /// Gives a message to all who subscribe to its topic here. Waits while too many messages are on their way to a
    /// loop. A thread's messages arrive in the order of its calls.
    fn deliver(&self, post: Post);

    /// Gives the next message of a topic with history to its subscribers here. A server that keeps no history of
    /// this topic delivers it without its offset. `false`: it does not follow the message before it, and the
    /// [missing](Self::missing) ones are to be fetched.
    fn deliver_kept(&self, kept: Kept) -> bool;

    /// Whether kept messages of this topic are wanted, and after which offset (in the same epoch; in another epoch,
    /// all messages are). Ask only once new messages of the topic are heard, so that none falls between the kept and
    /// the new. Don't ask again before [`adopt`](Self::adopt), or before it is known that there will be no answer: a
    /// subscriber that comes meanwhile waits for the next answer.
    fn missing(&self, topic: &str) -> Option<Offset>;

    /// The answer to [`missing`](Self::missing): the messages that were wanted.
    fn adopt(&self, tail: Tail);

    /// New messages of this topic are not heard at present: from now on some may be missing.
    fn out_of_step(&self, topic: &str);
}

/// How a backplane is doing at one moment. Counters begin with the server.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct BackplaneState {
    /// Whether this node hears the others, and they this one. [`Local`] never does.
    pub connected: bool,
    /// Topics that have subscribers here.
    pub topics: usize,
    /// How many of these this node already subscribes to at the other end.
    pub subscribed: usize,
    /// Messages that wait to be passed on, including those on their way.
    pub queued: usize,
    /// The bytes of these, with those of the names of topics and keys.
    pub queued_bytes: usize,
    /// Messages that were passed on, and acknowledged.
    pub published: u64,
    /// Messages that came from other nodes for subscribers here.
    pub received: u64,
    /// Messages of topics with history that were not heard when they were published, and were fetched later.
    pub fetched: u64,
    /// Messages that came twice, and were dropped the second time.
    pub repeated: u64,
    /// Messages that other nodes never got, because the queue was full or they could not be passed on. Messages
    /// that were passed on, but that a node did not hear, are not counted here.
    pub lost: u64,
    /// Connections that were lost or could not be made, and failed attempts to fetch missed messages.
    pub failures: u64,
}
