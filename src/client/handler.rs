//! What users of a client write: a [`ClientHandler`], or just a closure; or they take events from a
//! channel.

use http::HeaderMap;

use super::reconnect::Retry;
use crate::error::Error;
use crate::message::{CloseReason, Message};
use crate::peer::Peer;

/// Your client's logic. Each client has a handler of its own, which can keep the client's state in its fields. It
/// outlives the single connection if the client [reconnects](crate::Client::reconnect).
///
/// All methods are called on worker threads, so they may block. They are called one at a time and in order. On
/// [`Clients`](crate::Clients) without workers they run on the loop, and must not block.
///
/// The order of calls: `open`, then any number of `message` and `writable`, then `close`. If another attempt is to
/// follow, `retry` comes next, and then again `open`. An attempt that fails is told by `retry` if another follows,
/// and by `error` if not. The last call is always `close` or `error`; then the handler is dropped.
///
/// A panic closes the connection with 1011, after which only `close` is called, and there is no further attempt.
/// After a panic in `retry` nothing is called.
///
/// ```no_run
/// use framemill::{Client, ClientHandler, CloseReason, Error, HeaderMap, Message, Peer, Reconnect, Retry};
///
/// #[derive(Default)]
/// struct Prices {
///     seen: u64,
/// }
///
/// impl ClientHandler for Prices {
///     fn open(&mut self, peer: &Peer, _: &HeaderMap) {
///         peer.send("subscribe prices").ok(); // on each connection anew
///     }
///
///     fn message(&mut self, _: &Peer, message: Message) {
///         self.seen += 1;
///         println!("{}: {message}", self.seen);
///     }
///
///     fn close(&mut self, _: &Peer, reason: &CloseReason) {
///         println!("lost: {reason}");
///     }
///
///     fn retry(&mut self, retry: &Retry) {
///         println!("attempt {} in {:?}", retry.attempt, retry.delay);
///     }
///
///     fn error(&mut self, error: &Error) {
///         println!("given up: {error}");
///     }
/// }
///
/// fn main() -> framemill::Result<()> {
///     let client = Client::new("ws://127.0.0.1:9001/")?.reconnect(Reconnect::new().attempts(10));
///     let end = client.run_with(Prices::default())?;
///     println!("ended: {end}");
///     Ok(())
/// }
/// ```
pub trait ClientHandler: Send + 'static {
    /// A text or binary message has arrived. Pings are answered automatically.
    fn message(&mut self, peer: &Peer, message: Message);

    /// A connection is open. `headers` are those of the server's answer; the subprotocol is
    /// [`Peer::subprotocol`]. After a reconnect this is another [`Peer`]; the earlier ones are closed.
    fn open(&mut self, peer: &Peer, headers: &HeaderMap) {
        let _ = (peer, headers);
    }

    /// The queue is empty again after the kernel's buffer was full or more than half of the outbound limit was
    /// queued. Always called after a send that returned [`Sent::Congested`](crate::Sent::Congested); may also be
    /// called without one.
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

    /// An attempt to connect has failed, and there will be no other.
    fn error(&mut self, error: &Error) {
        let _ = error;
    }
}

/// A closure takes the messages. Its result is ignored, so it can end in `peer.send(…)`.
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
    /// The queue is empty again. Always comes after a send that returned
    /// [`Sent::Congested`](crate::Sent::Congested); may also come without one.
    Writable,
    /// The connection is over. The last event, unless `Reconnecting` follows.
    Close(CloseReason),
    /// Another attempt will be made, after a pause. If several of these events come in a row, a receiver that is
    /// behind may get only the latest.
    Reconnecting(Retry),
    /// The last attempt to reconnect has failed. This is the last event.
    Error(Error),
}
