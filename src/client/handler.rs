//! What users of a client write: a [`ClientHandler`], or just a closure; or they take events from a
//! channel.

use http::HeaderMap;

use super::reconnect::Retry;
use crate::error::Error;
use crate::message::{CloseReason, Message};
use crate::peer::Peer;

/// Your client's logic. Each client has a handler of its own, so its state can be in its fields; it
/// outlives the single connection if the client [reconnects](crate::Client::reconnect).
///
/// All methods are called on worker threads, so they may block, one at a time and in order. On
/// [`Clients`](crate::Clients) without workers they run on the loop, and must not block.
///
/// The order: `open`, then any number of `message` and `writable`, then `close`. If another attempt is
/// to follow, `retry`, and so on from `open`. An attempt that fails is told by `retry` if another
/// follows, by `error` if not. The last call is always `close` or `error`, and then the handler is
/// dropped.
///
/// A panic closes the connection with 1011, after which only `close` is called, and there is no further
/// attempt. After one in `retry` nothing is called.
pub trait ClientHandler: Send + 'static {
    /// A text or binary message has arrived. Pings are answered automatically.
    fn message(&mut self, peer: &Peer, message: Message);

    /// A connection is open. `headers` are those of the server's answer; the subprotocol is
    /// [`Peer::subprotocol`]. After a reconnect this is another [`Peer`]; the earlier ones are closed.
    fn open(&mut self, peer: &Peer, headers: &HeaderMap) {
        let _ = (peer, headers);
    }

    /// The kernel has taken all that was queued. Always follows [`Sent::Congested`](crate::Sent::Congested),
    /// and may also come without it.
    fn writable(&mut self, peer: &Peer) {
        let _ = peer;
    }

    /// The connection is over. Called once for every `open`.
    fn close(&mut self, peer: &Peer, reason: &CloseReason) {
        let _ = (peer, reason);
    }

    /// Another attempt will be made, after a pause. [`ClientHandle::close`](crate::ClientHandle::close)
    /// cancels it.
    fn retry(&mut self, retry: &Retry) {
        let _ = retry;
    }

    /// There is no connection, and there will be no further attempt.
    fn error(&mut self, error: &Error) {
        let _ = error;
    }
}

/// A closure takes the messages; what it returns is ignored, so it can end in `peer.send(…)`.
impl<F, R> ClientHandler for F
where
    F: FnMut(&Peer, Message) -> R + Send + 'static,
{
    fn message(&mut self, peer: &Peer, message: Message) {
        self(peer, message);
    }
}

/// Something that happened to a client, in order. See [`connect`](crate::connect()) and
/// [`Client::connect`](crate::Client::connect).
#[derive(Debug)]
#[non_exhaustive]
pub enum ClientEvent {
    /// A connection is open, with the headers of the server's answer. Not sent for the first, which
    /// `connect` has waited for. After a reconnect the peer is another one.
    Open(Peer, Box<HeaderMap>),
    /// A text or binary message has arrived.
    Message(Message),
    /// The kernel has taken all that was queued. Always follows [`Sent::Congested`](crate::Sent::Congested),
    /// and may also come without it.
    Writable,
    /// The connection is over. The last event, unless `Reconnecting` follows.
    Close(CloseReason),
    /// Another attempt will be made, after a pause. A receiver that is behind may miss all but the
    /// latest of several in a row.
    Reconnecting(Retry),
    /// The last attempt to reconnect has failed. The last event.
    Error(Error),
}
