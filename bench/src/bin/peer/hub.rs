//! Broadcast and topics as one does them with tokio: a channel for each topic, to which every
//! connection that has it listens.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use bytes::Bytes;
use futures_util::{
    FutureExt, StreamExt,
    stream::{self, BoxStream, SelectAll},
};
use tokio::sync::broadcast::{self, Receiver, Sender};

/// Messages that a connection may fall behind by, in all topics together. The load generator never
/// has that many under way in one of them.
const BACKLOG: usize = 1024;
/// The same of one topic, where there are many: a channel takes memory for all of them.
const LEAST_BACKLOG: usize = 64;

#[derive(Clone)]
pub(crate) struct Hub(Arc<Topics>);

struct Topics {
    channels: Vec<Sender<Post>>,
    /// So many connections after another have no topic in common.
    groups: usize,
    /// Whether an author hears itself.
    to_author: bool,
    opened: AtomicUsize,
    published: AtomicUsize,
}

/// A message to everyone in a topic.
#[derive(Clone)]
pub(crate) struct Post {
    author: usize,
    pub(crate) text: bool,
    pub(crate) payload: Bytes,
}

/// The seat of one connection: where it hears the others.
pub(crate) struct Member {
    posts: Posts,
    pub(crate) author: Author,
}

enum Posts {
    One(Receiver<Post>),
    /// Only those of which there is news are looked at.
    Many(SelectAll<BoxStream<'static, Post>>),
}

/// The other half of a seat: where it is heard.
#[derive(Clone)]
pub(crate) struct Author {
    id: usize,
    hub: Hub,
}

impl Hub {
    /// One topic, in which every message goes to everyone but its author.
    pub(crate) fn broadcast() -> Self {
        Self::new(1, 1, false)
    }

    /// A connection has `subscriptions` topics, the n-th those that are n modulo `topics /
    /// subscriptions`; message m goes to topic m modulo `topics`, to its author too.
    pub(crate) fn publish(topics: usize, subscriptions: usize) -> Self {
        Self::new(topics, subscriptions, true)
    }

    fn new(topics: usize, subscriptions: usize, to_author: bool) -> Self {
        let backlog = (BACKLOG / topics).max(LEAST_BACKLOG);
        Self(Arc::new(Topics {
            channels: (0..topics).map(|_| broadcast::channel(backlog).0).collect(),
            groups: (topics / subscriptions).max(1),
            to_author,
            opened: AtomicUsize::new(0),
            published: AtomicUsize::new(0),
        }))
    }

    pub(crate) fn join(&self) -> Member {
        let topics = &self.0;
        let id = topics.opened.fetch_add(1, Ordering::Relaxed);
        let mut channels = topics.channels[id % topics.groups..]
            .iter()
            .step_by(topics.groups);
        let posts = match (channels.next(), channels.len()) {
            (Some(only), 0) => Posts::One(only.subscribe()),
            (first, _) => {
                let all = first.into_iter().chain(channels);
                Posts::Many(all.map(|channel| as_stream(channel.subscribe())).collect())
            }
        };
        let hub = self.clone();
        Member {
            posts,
            author: Author { id, hub },
        }
    }
}

/// Ends where one has fallen too far behind.
fn as_stream(posts: Receiver<Post>) -> BoxStream<'static, Post> {
    stream::unfold(posts, async |mut posts| {
        Some((posts.recv().await.ok()?, posts))
    })
    .boxed()
}

impl Author {
    pub(crate) fn post(&self, text: bool, payload: Bytes) {
        let topics = &self.hub.0;
        let topic = topics.published.fetch_add(1, Ordering::Relaxed) % topics.channels.len();
        // It is no error that nobody else is there.
        let _ = topics.channels[topic].send(Post {
            author: self.id,
            text,
            payload,
        });
    }

    fn hears(&self, post: &Post) -> bool {
        self.hub.0.to_author || post.author != self.id
    }
}

impl Member {
    /// The next message that it is to hear; `None` if it fell too far behind.
    pub(crate) async fn next(&mut self) -> Option<Post> {
        loop {
            let post = match &mut self.posts {
                Posts::One(posts) => posts.recv().await.ok()?,
                Posts::Many(posts) => posts.next().await?,
            };
            if self.author.hears(&post) {
                return Some(post);
            }
        }
    }

    /// A further one if it is there already.
    pub(crate) fn try_next(&mut self) -> Option<Post> {
        loop {
            let post = match &mut self.posts {
                Posts::One(posts) => posts.try_recv().ok()?,
                Posts::Many(posts) => posts.next().now_or_never()??,
            };
            if self.author.hears(&post) {
                return Some(post);
            }
        }
    }
}
