//! The handle that users send with.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::addr::RemoteAddr;
use crate::config::Compress;
use crate::error::{SendError, Sent};
use crate::history::Since;
use crate::id::PeerId;
use crate::link::Link;
use crate::message::{CloseCause, CloseCode, LatestKey, Message};
use crate::proto::is_sendable;

/// A handle to one connection: cheap to clone, usable from any thread, for as long as you like. After the
/// connection has ended, sending to it gives [`SendError::Closed`].
///
/// ```no_run
/// use framemill::{Message, Peer, SendError, Sent, Server};
///
/// /// A job that takes minutes, on a thread of its own.
/// fn work(peer: &Peer, order: Message) {
///     let answer = format!("done, {} bytes", order.len());
///     match peer.send(answer) {
///         Ok(Sent::Queued) => {}
///         Ok(Sent::Congested) => println!("{} reads slowly: {} bytes wait", peer.id(), peer.queued_bytes()),
///         Err(SendError::Closed(_)) => println!("{} has left", peer.id()),
///         Err(error) => println!("not sent: {error}"),
///     }
/// }
///
/// fn main() -> framemill::Result<()> {
///     Server::bind("127.0.0.1:9001")?.run(|peer: &Peer, order: Message| {
///         let peer = peer.clone();
///         std::thread::spawn(move || work(&peer, order));
///     })
/// }
/// ```
///
/// **Order.** Messages that one thread sends to one peer arrive in the order of its calls, whether by
/// [`send`](Self::send), [`publish`](Self::publish) or
/// [`ServerHandle::broadcast`](crate::ServerHandle::broadcast). There are two exceptions:
///
/// - A message of [`send_latest`](Self::send_latest) or [`publish_latest`](Self::publish_latest) that replaces
///   an earlier one takes its place in the queue.
/// - Messages of a topic with [history](crate::Server::history) arrive in the order of their offsets. They come
///   later than messages that the same thread sends afterwards if Redis keeps the history, or while the peer is
///   still being sent what it missed.
///
/// Between threads there is no order, except where your own synchronisation gives one.
///
/// **Sending never blocks.** It queues; the loop writes. How much may be queued for a slow peer is limited, see
/// [`Server::outbound_limit`](crate::Server::outbound_limit). Only [`publish`](Self::publish) and
/// [`publish_latest`](Self::publish_latest), which send to many, wait at times.
///
/// Two peers are equal if they are the same connection. As a key in a map, use [`id`](Self::id), which is unique
/// among the connections of one server.
#[derive(Clone)]
pub struct Peer {
    pub(crate) link: Arc<Link>,
}

impl Peer {
    /// The identity of this connection.
    pub fn id(&self) -> PeerId {
        self.link.id
    }

    /// Sends a message: text, binary, or a [`Message::Ping`], [`Message::Pong`] or
    /// [`Message::Close`] of your own.
    ///
    /// The owner of a payload made with `Bytes::from_owner` may be dropped on a loop's thread, with a lock of the
    /// connection held. So its `Drop` must be quick, and must not use a [`Peer`]. (There, a panic in it is caught.)
    ///
    /// The reason of a close frame is cut as in [`close`](Self::close), and code 1005 is sent as a close frame
    /// without a code.
    ///
    /// # Errors
    /// The message comes back
    ///
    /// - if the connection is closed or closing, or is closed now because the queue is full
    ///   ([`Overflow::Close`](crate::Overflow::Close));
    /// - if the queue is full and [`Overflow::DropNewest`](crate::Overflow::DropNewest) is in force, or if the
    ///   message is over 1 GiB;
    /// - if it is a ping or pong and twice the limit is queued, whatever is in force (below twice the limit, pings
    ///   and pongs are always accepted);
    /// - if it can't be sent: a raw frame, a ping or pong over 125 bytes, a close code that must not be sent.
    pub fn send(&self, message: impl Into<Message>) -> Result<Sent, SendError> {
        self.link.send(message.into(), Compress::Auto)
    }

    /// Sends a message of which only the latest matters: if an earlier one with the same key has not been
    /// taken for writing yet, this one takes its place in the queue. So a slow peer gets the current state of
    /// each key instead of its history, and the queue holds one message per key.
    ///
    /// A message that takes the place of an earlier one may arrive before messages that were sent between the
    /// two. It is compressed if it reaches the threshold of `Deflate`.
    ///
    /// ```no_run
    /// use framemill::Peer;
    ///
    /// /// Called sixty times a second: a peer that can't keep up is sent fewer positions, none of them old.
    /// fn moved(peer: &Peer, ship: u64, x: f32, y: f32) {
    ///     peer.send_latest(ship, format!("{ship} {x} {y}")).ok();
    /// }
    /// ```
    ///
    /// # Errors
    /// As for [`send`](Self::send).
    pub fn send_latest(
        &self,
        key: impl Into<LatestKey>,
        message: impl Into<Message>,
    ) -> Result<Sent, SendError> {
        self.link.send_latest(message.into(), key.into())
    }

    /// The same as [`send`](Self::send), with a choice of whether to compress this one message. Without
    /// permessage-deflate there is no difference.
    ///
    /// # Errors
    /// As for [`send`](Self::send).
    pub fn send_with(
        &self,
        message: impl Into<Message>,
        compress: Compress,
    ) -> Result<Sent, SendError> {
        self.link.send(message.into(), compress)
    }

    /// Subscribes this connection to a topic: it gets what is [published](Self::publish) there, from
    /// any thread, for as long as it lives or until it [unsubscribes](Self::unsubscribe). A topic is any
    /// name; it exists while somebody subscribes to it.
    ///
    /// Takes effect with this call: what this thread publishes next arrives. `true`: the connection is
    /// subscribed, now or since an earlier call. `false`, if
    ///
    /// - the connection is closed or closing;
    /// - it already subscribes to as many topics as it [may](crate::Server::max_subscriptions);
    /// - the name is over 1,024 bytes long;
    /// - the connection is a client's: clients have no topics.
    pub fn subscribe(&self, topic: &str) -> bool {
        self.link.subscribe(topic)
    }

    /// Subscribes to a topic that [keeps](crate::Server::history) its last messages. The messages that are kept
    /// after `since` are sent first, then those that are published from then on, with no gap and nothing twice.
    /// Each carries its position. Between them come lines that a [`Follower`](crate::Follower) reads: `live` once
    /// everything missed has been sent, and `gap` before that if the history does not reach back far enough.
    ///
    /// Returns at once. With Redis, missed messages arrive after a round trip or, while Redis is unreachable, once
    /// it is back. An earlier subscription to the topic is replaced. Among the missed messages are those that this
    /// peer published itself. `false`, if
    ///
    /// - the topic has no history;
    /// - [`subscribe`](Self::subscribe) would return `false`. Where that is for the number of topics or the length
    ///   of the name, the peer is also sent [`Follow::refusal`](crate::Follow::refusal).
    ///
    /// A history may be longer than the [`outbound_limit`](crate::Server::outbound_limit): it is sent in pieces, as
    /// the peer reads, and never fills more than about a quarter of that limit. A peer that reads more slowly than
    /// others publish is sent `gap` for messages that are no longer kept. Once it is live, the messages queued for
    /// it are subject to [`Overflow`](crate::Overflow) like all others. With `Overflow::Close`, a client that was
    /// closed comes back for the rest; with the other two it is not told that messages were dropped.
    pub fn subscribe_from(&self, topic: &str, since: impl Into<Since>) -> bool {
        self.link.subscribe_from(topic, since.into())
    }

    /// Ends a subscription: what this thread publishes from now on does not arrive. `true`: there was a
    /// subscription.
    pub fn unsubscribe(&self, topic: &str) -> bool {
        self.link.unsubscribe_from(topic)
    }

    /// Whether this connection subscribes to this topic now; also while missed messages are still being sent.
    pub fn is_subscribed(&self, topic: &str) -> bool {
        self.link.is_subscribed(topic)
    }

    /// Sends a text or binary message to all subscribers of `topic` but this connection. The connection itself
    /// need not subscribe, and may be closed already, so that the others can be told of its end. The message is
    /// encoded once (and compressed once for each window size that was agreed on). Each subscriber's own queue
    /// limit and [`Overflow`](crate::Overflow) apply, so a slow one delays nobody. Whether the message is
    /// compressed is set by topic: [`Server::compress`](crate::Server::compress).
    ///
    /// Waits while 256 messages to many are on their way to a loop, unless it is called on a loop (a handler with
    /// `workers(0)`). `false`, if it is not a text or binary message, the server has ended, or the connection is a
    /// client's; and, for a topic with history, if the queue for Redis is full, the name is over 1,024 bytes, or
    /// the message with its first line is over 1 GiB.
    pub fn publish(&self, topic: &str, message: impl Into<Message>) -> bool {
        let link = &self.link;
        let shared = &link.handle.shared;
        shared.publish(topic, &message.into(), Some(link.id), None)
    }

    /// Publishes a message of which only the latest matters: a subscriber that does not keep up gets only the
    /// newest for each key of the topic, as with [`send_latest`](Self::send_latest). A subscriber that keeps up
    /// gets all of them, and so does a client that comes back to a topic with [history](crate::Server::history).
    ///
    /// In topics with history the newest message does not take the place of the one before it, but comes last:
    /// each subscriber gets messages in the order of their offsets. Everything else is as with
    /// [`publish`](Self::publish).
    pub fn publish_latest(
        &self,
        topic: &str,
        key: impl Into<LatestKey>,
        message: impl Into<Message>,
    ) -> bool {
        let (link, key) = (&self.link, key.into());
        let shared = &link.handle.shared;
        shared.publish(topic, &message.into(), Some(link.id), Some(key))
    }

    /// Begins the closing handshake (RFC 6455 §7.1.2), behind everything that was sent. The connection ends when
    /// the peer answers, or when [`close_timeout`](crate::Server::close_timeout) is over; to end it at once, call
    /// [`terminate`](Self::terminate).
    ///
    /// Messages that have arrived before this call are still handled. Those that arrive later are thrown away:
    /// the peer sent them before it saw the close frame.
    ///
    /// [`CloseCode::Status`] sends a close frame without a code. A reason over 123 bytes is cut. `false`: the
    /// connection was closing already, or the code is one that must not be sent (§7.4.1), such as
    /// [`CloseCode::Abnormal`].
    pub fn close(&self, code: CloseCode, reason: &str) -> bool {
        let sendable = is_sendable(code) || code == CloseCode::Status;
        sendable && self.link.close(code, reason, CloseCause::Handshake)
    }

    /// Drops the connection at once, without a close frame: for a peer that misbehaves or no longer reads.
    /// What is queued for it is thrown away, and counted as
    /// [undelivered](crate::CloseReason::undelivered_bytes).
    ///
    /// [`Handler::close`](crate::Handler::close) is told [`CloseCause::Terminated`], as always after the
    /// messages that had arrived before. Called in [`Handler::open`](crate::Handler::open), it disconnects
    /// the client whatever `open` returns. If this peer belongs to a [`Client`](crate::Client), the client does
    /// not reconnect.
    ///
    /// May be called while the connection is closing, and even after the handler was told its end, while the
    /// connection only waits for the peer to hang up. `false`: it is gone, or was terminated before.
    pub fn terminate(&self) -> bool {
        self.link.terminate()
    }

    /// Whether nothing can be sent any more: the connection is closed or closing.
    pub fn is_closed(&self) -> bool {
        self.link.outbox().is_sealed()
    }

    /// Bytes queued for this peer, frame headers included: everything from [`send`](Self::send) until
    /// the kernel has taken it. Once the connection is over: the bytes that it never took.
    pub fn queued_bytes(&self) -> usize {
        self.link.outbox().queued()
    }

    /// Where the peer connected from; behind a proxy that the server
    /// [trusts](crate::Server::trust_proxies), where the client did.
    pub fn remote_addr(&self) -> RemoteAddr {
        self.link.remote()
    }

    /// The subprotocol that was agreed on. `None`: none was, or the handshake is not answered yet, as in
    /// [`Handler::open`](crate::Handler::open).
    pub fn subprotocol(&self) -> Option<&str> {
        self.link.subprotocol()
    }

    /// The round trip time of the last ping that was answered; `None` before the first. Pings are sent
    /// only after a silence, so on a busy connection this is old.
    pub fn latency(&self) -> Option<Duration> {
        match self.link.latency_us() {
            u32::MAX => None,
            us => Some(Duration::from_micros(us.into())),
        }
    }
}

impl fmt::Debug for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Peer({} from {})", self.id(), self.remote_addr())
    }
}

impl PartialEq for Peer {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.link, &other.link)
    }
}

impl Eq for Peer {}
