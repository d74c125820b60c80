//! Broadcast as one does it with tokio: a channel that every connection listens to.

use bytes::Bytes;
use tokio::sync::broadcast::{self, Receiver, Sender};

/// Messages that a connection may fall behind by. The load generator never has that many under way.
const BACKLOG: usize = 1024;

#[derive(Clone)]
pub(crate) struct Hub(Sender<Post>);

/// A message to everyone but its author.
#[derive(Clone)]
pub(crate) struct Post {
    author: u64,
    pub(crate) text: bool,
    pub(crate) payload: Bytes,
}

/// The seat of one connection: where it hears the others.
pub(crate) struct Member {
    posts: Receiver<Post>,
    pub(crate) author: Author,
}

/// The other half of a seat: where it is heard.
#[derive(Clone)]
pub(crate) struct Author {
    id: u64,
    hub: Sender<Post>,
}

impl Hub {
    pub(crate) fn new() -> Self {
        Self(broadcast::channel(BACKLOG).0)
    }

    pub(crate) fn join(&self) -> Member {
        use std::sync::atomic::{AtomicU64, Ordering};
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let id = NEXT.fetch_add(1, Ordering::Relaxed);
        let author = Author {
            id,
            hub: self.0.clone(),
        };
        Member {
            posts: self.0.subscribe(),
            author,
        }
    }
}

impl Author {
    pub(crate) fn post(&self, text: bool, payload: Bytes) {
        // It is no error that nobody else is there.
        let _ = self.hub.send(Post {
            author: self.id,
            text,
            payload,
        });
    }
}

impl Member {
    /// The next message of somebody else; `None` if it fell too far behind.
    pub(crate) async fn next(&mut self) -> Option<Post> {
        loop {
            let post = self.posts.recv().await.ok()?;
            if post.author != self.author.id {
                return Some(post);
            }
        }
    }

    /// A further one if it is there already.
    pub(crate) fn try_next(&mut self) -> Option<Post> {
        loop {
            let post = self.posts.try_recv().ok()?;
            if post.author != self.author.id {
                return Some(post);
            }
        }
    }
}
