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
/// **Order.** What one thread sends to one peer, by [`send`](Self::send), by
/// [`publish`](Self::publish) or by [`ServerHandle::broadcast`](crate::ServerHandle::broadcast), arrives
/// in the order of its calls. Between threads there is no order but that of your own locks.
///
/// **Sending never blocks.** It queues; the loop writes. What a slow peer leaves in the queue is limited,
/// see [`Server::outbound_limit`](crate::Server::outbound_limit). Only [`publish`](Self::publish), which
/// sends to many, waits at times.
///
/// Two are equal if they are the same connection. As a key in a map, use [`id`](Self::id): it tells the
/// connections of one server apart.
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
    /// A payload made with `Bytes::from_owner` may be dropped by a loop's thread, and with a lock of the
    /// connection held: so its `Drop` must be quick, must not panic, and must not use a [`Peer`].
    ///
    /// # Errors
    /// The message comes back if the connection is closed or closing, if the queue is full and
    /// [`Overflow::DropNewest`](crate::Overflow::DropNewest) is in force (pings and pongs are exempt, up to twice
    /// the limit; then they come back whatever is in force), or if it can't be sent (a raw frame, a ping or pong
    /// over 125 bytes, a close code that must not be sent). The reason of a close frame is cut as in
    /// [`close`](Self::close), and code 1005 is sent as a close frame without one.
    pub fn send(&self, message: impl Into<Message>) -> Result<Sent, SendError> {
        self.link.send(message.into(), Compress::Auto)
    }

    /// Sends a message of which only the latest matters: if an earlier one with the same key has
    /// not been taken for writing yet, this one takes its place in the queue. So a slow peer gets the
    /// current state of each key instead of its history, and the queue holds one message per key.
    ///
    /// A message that takes an earlier one's place may arrive before others that were sent in
    /// between. It is compressed if it reaches the threshold of the settings.
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

    /// The same as [`send`](Self::send), but says whether this one message is compressed, whatever its
    /// length. Without permessage-deflate there is no difference.
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
    /// Takes effect with this call: what this thread publishes next arrives. `true`: it is subscribed,
    /// perhaps it was before. `false`: the connection is closed or closing; it already subscribes to as
    /// many topics as it [may](crate::Server::max_subscriptions); the name is over 1,024 bytes long; or the
    /// connection belongs to a client, which has no topics.
    pub fn subscribe(&self, topic: &str) -> bool {
        self.link.subscribe(topic)
    }

    /// Subscribes to a topic that [keeps](crate::Server::history) its last messages, from one of them
    /// on: what is kept after it is sent first, then what is published from then on, with no gap and
    /// nothing twice. Each message carries its position; between them come lines that a
    /// [`Follower`](crate::Follower) reads: `live` once everything missed has been sent, `gap` before that
    /// if the history does not reach back far enough.
    ///
    /// Does not wait: with a backplane that keeps the history, what was missed may come a little later,
    /// and not before Redis is back. An earlier subscription is replaced. What this peer published
    /// itself comes with the rest of what it missed. `false`: the topic keeps nothing, or as for
    /// [`subscribe`](Self::subscribe); a peer that may not subscribe to one more is told so, by
    /// [`Follow::refusal`](crate::Follow::refusal).
    ///
    /// A history may be longer than the [`outbound_limit`](crate::Server::outbound_limit): it is sent in
    /// pieces, as the peer reads, and never fills more than about a quarter of that. A peer that reads more
    /// slowly than others publish is told `gap` for what is no longer kept. Once it is live, what it leaves
    /// in the queue is subject to [`Overflow`](crate::Overflow) like everything else: a client that is
    /// closed for it comes back for the rest, but it is not told of what is dropped.
    pub fn subscribe_from(&self, topic: &str, since: impl Into<Since>) -> bool {
        self.link.subscribe_from(topic, since.into())
    }

    /// Ends a subscription: what this thread publishes from now on does not arrive. `true`: there was
    /// one.
    pub fn unsubscribe(&self, topic: &str) -> bool {
        self.link.unsubscribe_from(topic)
    }

    /// Whether it subscribes to this topic now, also while what it missed is still being sent.
    pub fn is_subscribed(&self, topic: &str) -> bool {
        self.link.is_subscribed(topic)
    }

    /// Sends a text or binary message to all subscribers of `topic`, except this connection itself,
    /// whether or not it subscribes. The message is encoded once (and compressed once for each window size
    /// that was agreed on); each subscriber's own queue limit and [`Overflow`](crate::Overflow) apply, so a
    /// slow one delays nobody. Whether it is compressed is set by topic:
    /// [`Server::compress`](crate::Server::compress).
    ///
    /// This connection may be closed already, so the others can be told of its end. Waits while many
    /// messages to many are still on their way, unless it is called on a loop (a handler with
    /// `workers(0)`). `false`: it is not a text or binary message, the server has ended, or the connection
    /// is not a server's.
    pub fn publish(&self, topic: &str, message: impl Into<Message>) -> bool {
        let link = &self.link;
        let shared = &link.handle.shared;
        shared.publish(topic, &message.into(), Some(link.id), None)
    }

    /// Publishes a message of which only the latest matters: a subscriber that does not keep up gets
    /// only the newest for each key of the topic, as with [`send_latest`](Self::send_latest). One that
    /// keeps up gets all of them, and so does one that comes back to a topic with
    /// [history](crate::Server::history). There the newest does not take the place of the one before it,
    /// but comes last: each subscriber gets its messages in the order of their offsets.
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

    /// Begins the closing handshake (RFC 6455 §7.1.2), behind everything that was sent. The
    /// connection ends when the peer answers, or after
    /// [`close_timeout`](crate::Server::close_timeout); [`terminate`](Self::terminate) ends it at once.
    ///
    /// Messages that had arrived by then are still handled. What the peer sends before it has seen the close
    /// frame is thrown away.
    ///
    /// [`CloseCode::Status`] sends a close frame without a code. A reason over 123 bytes is cut.
    /// `false`: the connection was closing already, or the code is one that must not be sent
    /// (§7.4.1), such as [`CloseCode::Abnormal`].
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
    /// the client whatever `open` returns. A client does not reconnect.
    ///
    /// May be called while the connection is closing, and while it only waits for the peer to hang up, when
    /// the handler has been told its end already. `false`: it is gone, or was terminated before.
    pub fn terminate(&self) -> bool {
        self.link.terminate()
    }

    /// Whether nothing can be sent any more: the connection is closed or closing.
    pub fn is_closed(&self) -> bool {
        self.link.outbox().is_sealed()
    }

    /// Bytes queued for this peer, frame headers included: everything from [`send`](Self::send) until
    /// the kernel has taken it.
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

    /// The round trip time of the last ping that was answered; `None` before the first. Pings go
    /// out only in silence, so on a busy connection this is old.
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
