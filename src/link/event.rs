//! What a loop tells the handler of a connection, in order: one opening or one plain request first,
//! `Closed` last.

use crate::http::Request;
use crate::message::{CloseCause, CloseCode, CloseReason, Message};
#[cfg(feature = "tls")]
use crate::net::TlsStream;
use crate::proto::handshake::Upgrade;

use super::dial::Connected;
use crate::worker::Batch;

/// Events on their way to a handler.
pub(crate) type EventBatch = Batch<Event>;

/// One entry of an inbox.
#[derive(Debug)]
pub(crate) enum Event {
    /// An opening handshake that is right so far; the handler decides.
    Open(Box<UpgradeRequest>),
    /// The next step of a TLS handshake is to be made; the stream goes back with
    /// [`Command::Secured`](super::Command::Secured).
    #[cfg(feature = "tls")]
    Secure(Box<TlsStream>),
    /// The server has accepted: this side's client is open.
    Connected(Box<Connected>),
    /// A request that is not for a WebSocket.
    Http(Box<Request>),
    /// A whole text or binary message.
    Message(Message),
    /// The outbound queue has drained after it was congested.
    Writable,
    /// Close the connection, now that all that came before has been handled.
    Close {
        code: CloseCode,
        text: &'static str,
        cause: CloseCause,
    },
    /// The peer has ended its half of the stream: tell the loop when all that came before has been
    /// handled.
    Eof,
    /// The connection is over.
    Closed(Box<CloseReason>),
}

/// A request for a WebSocket, and what the answer needs.
#[derive(Debug)]
pub(crate) struct UpgradeRequest {
    pub(crate) request: Request,
    pub(crate) upgrade: Upgrade,
}
