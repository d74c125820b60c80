//! What users write: a [`Handler`], or just a closure.

use http::{HeaderMap, HeaderName, HeaderValue};

use super::handle::ServerHandle;
use crate::http::{Request, Response};
use crate::message::{CloseReason, Message};
use crate::peer::Peer;

/// Your server's logic.
///
/// All methods but [`start`](Self::start) are called on worker threads, so they may block: ask a database, wait for
/// a lock, sleep. For one connection they are called one at a time and in order: [`open`](Self::open) first,
/// [`close`](Self::close) last. Connections don't wait for each other as long as a worker is idle. With `workers(0)`
/// the methods run on the loop, and must not block.
///
/// A panic ends the connection it happened on with 1011, after which only `close` is called for it. Nothing else is
/// disturbed (unless you build with `panic = "abort"`).
///
/// ```no_run
/// use framemill::{Accept, CloseReason, Handler, Message, Peer, Request, Response, Server};
///
/// /// Everybody names the room and themselves, `/talk?name=Ann`; messages go to all others in the room.
/// struct Talk;
///
/// struct Guest {
///     name: String,
///     room: String,
/// }
///
/// impl Handler for Talk {
///     type Session = Guest;
///
///     fn open(&self, request: &Request, peer: &Peer) -> Result<Accept<Guest>, Response> {
///         let Some(name) = request.query_param("name") else {
///             return Err(Response::forbidden());
///         };
///         let (name, room) = (name.into_owned(), request.path().to_owned());
///         peer.subscribe(&room);
///         peer.publish(&room, format!("{name} is here"));
///         Ok(Accept::new(Guest { name, room }))
///     }
///
///     fn message(&self, guest: &mut Guest, peer: &Peer, message: Message) {
///         if let Message::Text(text) = message {
///             peer.publish(&guest.room, format!("{}: {text}", guest.name));
///         }
///     }
///
///     fn close(&self, guest: Guest, peer: &Peer, reason: &CloseReason) {
///         // The connection is over, but the others can still be told.
///         peer.publish(&guest.room, format!("{} has left: {reason}", guest.name));
///     }
/// }
///
/// fn main() -> framemill::Result<()> {
///     Server::bind("127.0.0.1:9001")?.run(Talk)
/// }
/// ```
pub trait Handler: Send + Sync + 'static {
    /// The state of one connection. One worker at a time touches it, so it needs no lock.
    type Session: Send + 'static;

    /// The server is about to run: called once, before the first connection, by the thread that calls
    /// [`Server::start`](crate::Server::start). So a handler can keep a handle to its server, in a `OnceLock` for
    /// instance. (A handle can also be had before the handler is made: [`Server::handle`](crate::Server::handle).)
    ///
    /// A panic in here is a panic of `Server::start`.
    fn start(&self, server: &ServerHandle) {
        let _ = server;
    }

    /// A client asks for a WebSocket. The request is a correct opening handshake, and its origin has
    /// passed [`Server::origin`](crate::Server::origin).
    ///
    /// Accept it, with the session and perhaps a subprotocol, or answer with any HTTP response. Messages that are
    /// sent to `peer` in here arrive right after the handshake.
    ///
    /// Must return within [`handshake_timeout`](crate::Server::handshake_timeout), or the connection is closed. (With
    /// `workers(0)` nothing closes it: a slow `open` holds up the loop, and with it all timeouts.)
    ///
    /// # Errors
    /// The response with which the client is refused.
    #[allow(
        clippy::result_large_err,
        reason = "once per connection, and easy to write"
    )]
    fn open(&self, request: &Request, peer: &Peer) -> Result<Accept<Self::Session>, Response>;

    /// A text or binary message has arrived. Pings are answered automatically.
    fn message(&self, session: &mut Self::Session, peer: &Peer, message: Message);

    /// The peer's queue is empty again after the kernel's buffer was full or more than half of the outbound limit
    /// was queued. Always called after a send that returned [`Sent::Congested`](crate::Sent::Congested); may also be
    /// called without one.
    fn writable(&self, session: &mut Self::Session, peer: &Peer) {
        let _ = (session, peer);
    }

    /// The connection is over. Called once for every `open` that accepted, however it ended.
    fn close(&self, session: Self::Session, peer: &Peer, reason: &CloseReason) {
        let _ = (session, peer, reason);
    }

    /// A plain HTTP request on the same port, GET, HEAD or POST, with its whole body: for health
    /// checks, metrics, a page. By default the answer is 426 (upgrade required).
    ///
    /// One request per connection; no keep-alive. An answer that takes longer than
    /// [`handshake_timeout`](crate::Server::handshake_timeout) finds the connection closed.
    fn http(&self, request: &Request) -> Response {
        let _ = request;
        Response::upgrade_required()
    }
}

/// A closure is a handler with no session, which accepts every connection, with one of
/// [`Server::subprotocols`](crate::Server::subprotocols) if the client offers one. Its result is ignored, so it can
/// end in `peer.send(…)`.
impl<F, R> Handler for F
where
    F: Fn(&Peer, Message) -> R + Send + Sync + 'static,
{
    type Session = ();

    fn open(&self, _: &Request, _: &Peer) -> Result<Accept<()>, Response> {
        Ok(Accept::new(()))
    }

    #[inline(always)] // or the message is moved once more
    fn message(&self, (): &mut (), peer: &Peer, message: Message) {
        self(peer, message);
    }
}

/// Accepts a connection, with its session.
#[derive(Debug)]
#[must_use = "it is what `Handler::open` returns"]
pub struct Accept<S> {
    pub(crate) session: S,
    pub(crate) subprotocol: Option<String>,
    pub(crate) headers: HeaderMap,
}

impl<S> Accept<S> {
    /// Accepts, with the first of [`Server::subprotocols`](crate::Server::subprotocols) that the client
    /// offers, if there is one.
    pub fn new(session: S) -> Self {
        Self {
            session,
            subprotocol: None,
            headers: HeaderMap::new(),
        }
    }

    /// Agrees on this subprotocol, whatever the server prefers. It must be one of
    /// [`Request::subprotocols`]; if it is not, the handshake is answered with 500, as the client would
    /// fail the connection anyway (RFC 6455 §4.1).
    pub fn subprotocol(mut self, name: impl Into<String>) -> Self {
        self.subprotocol = Some(name.into());
        self
    }

    /// Replaces the session: for handlers that wrap other handlers.
    pub fn map<T>(self, session: impl FnOnce(S) -> T) -> Accept<T> {
        Accept {
            session: session(self.session),
            subprotocol: self.subprotocol,
            headers: self.headers,
        }
    }

    /// Adds a header to the response. Headers that belong to the handshake itself are ignored.
    pub fn header(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.headers.append(name, value);
        self
    }
}
