//! What a loop can be asked, and its end of the channel that brings it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::Receiver;
use http::StatusCode;

use super::{Dial, Link, Publication, SharedFrame};
use crate::addr::RemoteAddr;
use crate::guard::Guarded;
use crate::id::Key;
use crate::message::{CloseCode, LatestKey, Message};
use crate::net::Stream;
#[cfg(feature = "tls")]
use crate::net::TlsStream;
#[cfg(feature = "deflate")]
use crate::proto::Violation;
use crate::proto::http::Answer;

/// What a loop can be asked to do.
#[derive(Debug)]
pub(crate) enum Command {
    /// Something is in the outbox. At most one per connection is on its way.
    Flush(Key),
    /// The handler has caught up: read on.
    Resume(Key),
    /// The handler accepted: the connection is a WebSocket once this head is written.
    Accept(Key, Vec<u8>),
    /// The handler answered with a plain response of this status: write it and close.
    Respond(Key, StatusCode, Answer),
    /// The handler has dealt with all that came before the end of the stream: write what is left
    /// and close.
    Finished(Key),
    /// A TLS handshake has made a step: the stream comes back. `true`: it is done.
    #[cfg(feature = "tls")]
    Secured(Key, Box<TlsStream>, std::io::Result<bool>),
    /// A message turned out to break a rule when it was inflated.
    #[cfg(feature = "deflate")]
    Fail(Key, Violation),
    /// End this connection without another word.
    Terminate(Key),
    /// Run the mailbox of a connection whose handler runs inline.
    Run(Arc<Link>),
    /// Connect to a server.
    Dial(Box<Dial>),
    /// A socket that another loop accepted.
    Adopt(Stream, RemoteAddr),
    /// See [`LoopHandle::ordered`](super::LoopHandle::ordered).
    Send {
        link: Arc<Link>,
        message: Guarded<Message>,
    },
    /// The same for what waits in the outbox under this key.
    SendLatest {
        link: Arc<Link>,
        key: LatestKey,
    },
    /// The same for the close frame.
    Close(Arc<Link>),
    /// One message for every open connection of the loop.
    Broadcast(Arc<SharedFrame>, Permit),
    /// The same for the subscribers of a topic.
    Publish(Arc<Publication>, Permit),
    /// A connection subscribes to the topic of this number, or does so no longer. Always through the
    /// channel, as what is published is.
    Subscribe(Key, u64),
    Unsubscribe(Key, u64),
    /// What is left of what it missed of topics with history goes out as there is room.
    CatchUp(Key),
    /// One message for these connections but one, as far as they are open.
    Multicast {
        frame: Arc<SharedFrame>,
        to: Arc<Vec<Key>>,
        except: Option<Key>,
    },
    /// All that one call of a room asked for; see [`Cork`](super::Cork).
    Batch(Vec<Command>, Permit),
    /// Close all connections and end the loop, by this time at the latest.
    Shutdown(Instant),
    /// The same, a few at a time over `spread`, with this code.
    Drain {
        code: CloseCode,
        spread: Duration,
        deadline: Instant,
    },
}

/// Messages to many that may be on their way to a loop. A thread that broadcasts or publishes faster than
/// the loop writes waits for it, so that the channel holds no more than this many frames.
pub(super) const BROADCASTS: usize = 256;

/// The place of one such message among [`BROADCASTS`], given back when it has been carried out.
#[derive(Debug, Default)]
pub(crate) enum Permit {
    Held,
    /// Nothing to give back: a call of a room has one for all it asks, and a loop can't wait for one.
    #[default]
    None,
}

/// The loop's end of its channel.
#[derive(Debug)]
pub(crate) struct CommandReceiver {
    pub(crate) commands: Receiver<Command>,
    pub(super) permits: Receiver<()>,
}

impl CommandReceiver {
    /// A broadcast has been carried out.
    pub(crate) fn return_permit(&self, permit: Permit) {
        if let Permit::Held = permit {
            let _ = self.permits.try_recv();
        }
    }
}
