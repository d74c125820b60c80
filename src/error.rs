//! Errors, by whose fault they are.
//!
//! What a *peer* does wrong once a connection is open never shows up here: it ends that peer's
//! connection, and [`CloseReason`](crate::CloseReason) tells how. These are the errors of the machine,
//! of the caller, and of a server that a client could not open a WebSocket to.

use std::fmt;
use std::io;

use http::{HeaderMap, StatusCode};

use crate::message::Message;

/// Why a server could not be set up or run, or a client could not be connected.
#[derive(Debug)]
#[non_exhaustive]
pub enum Error {
    /// The caller's fault: an invalid setting, or an address that can't be read. The text says which and why.
    Config(String),
    /// An address could not be listened on.
    Bind {
        /// The address as it was given.
        addr: String,
        /// What the system said.
        source: io::Error,
    },
    /// The system refused a thread, a poll instance or the like.
    Io(io::Error),
    /// A certificate or key that can't be read or doesn't fit, which is the caller's fault; or a TLS handshake with a
    /// server that failed. The text says which and why.
    #[cfg(feature = "tls")]
    Tls(String),
    /// The caller's fault: not the URL of a WebSocket.
    Url {
        /// The URL as it was given, without what may be a password.
        url: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// The host of a URL has no address, or could not be resolved.
    Resolve {
        /// The host as written in the URL.
        host: String,
        /// What the system said.
        source: io::Error,
    },
    /// No connection to the server, or it broke before the server had answered. If the host has
    /// several addresses, this is about the last one.
    Connect {
        /// The address that was tried.
        addr: String,
        /// What the system said.
        source: io::Error,
    },
    /// The server answered with another status than 101: it refuses (401, 403, 404, 429, 503), or
    /// points elsewhere (301, 302, …). Redirects are not followed.
    Refused {
        /// The status of the answer.
        status: StatusCode,
        /// The headers of the answer, such as `WWW-Authenticate`, `Retry-After` or `Location`.
        headers: Box<HeaderMap>,
    },
    /// The server's answer is not HTTP, or not a correct opening handshake (RFC 6455 §4.1).
    Handshake(&'static str),
    /// The opening handshake was not through within
    /// [`Client::handshake_timeout`](crate::Client::handshake_timeout).
    Timeout,
    /// Closed by this side before it was open.
    Closed,
}

impl Error {
    /// The same once more: `io::Error` can't be cloned.
    pub(crate) fn duplicate(&self) -> Self {
        match self {
            Self::Config(what) => Self::Config(what.clone()),
            Self::Bind { addr, source } => Self::Bind {
                addr: addr.clone(),
                source: duplicate(source),
            },
            Self::Io(source) => Self::Io(duplicate(source)),
            Self::Url { url, why } => Self::Url {
                url: url.clone(),
                why,
            },
            Self::Resolve { host, source } => Self::Resolve {
                host: host.clone(),
                source: duplicate(source),
            },
            Self::Connect { addr, source } => Self::Connect {
                addr: addr.clone(),
                source: duplicate(source),
            },
            Self::Refused { status, headers } => Self::Refused {
                status: *status,
                headers: headers.clone(),
            },
            Self::Handshake(why) => Self::Handshake(why),
            #[cfg(feature = "tls")]
            Self::Tls(what) => Self::Tls(what.clone()),
            Self::Timeout => Self::Timeout,
            Self::Closed => Self::Closed,
        }
    }
}

/// The same error once more, as far as it can be had.
pub(crate) fn duplicate(error: &io::Error) -> io::Error {
    match error.raw_os_error() {
        Some(code) => io::Error::from_raw_os_error(code),
        None => io::Error::new(error.kind(), error.to_string()),
    }
}

/// The result of setting up or running a server, or of connecting a client.
pub type Result<T> = std::result::Result<T, Error>;

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Config(why) => f.write_str(why),
            Self::Bind { addr, source } => write!(f, "cannot listen on {addr}: {source}"),
            Self::Io(source) => write!(f, "{source}"),
            #[cfg(feature = "tls")]
            Self::Tls(what) => write!(f, "TLS: {what}"),
            Self::Url { url, why } => write!(f, "{url:?} is not the URL of a WebSocket: {why}"),
            Self::Resolve { host, source } => write!(f, "cannot resolve {host}: {source}"),
            Self::Connect { addr, source } => write!(f, "cannot connect to {addr}: {source}"),
            Self::Refused { status, .. } => write!(f, "the server answered with {status}"),
            Self::Handshake(why) => write!(f, "no WebSocket handshake: {why}"),
            Self::Timeout => f.write_str("the opening handshake took too long"),
            Self::Closed => f.write_str("closed before it was open"),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Bind { source, .. }
            | Self::Resolve { source, .. }
            | Self::Connect { source, .. }
            | Self::Io(source) => Some(source),
            _ => None,
        }
    }
}

impl From<io::Error> for Error {
    fn from(source: io::Error) -> Self {
        Self::Io(source)
    }
}

/// A message that was accepted by [`Peer::send`](crate::Peer::send).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sent {
    /// Queued; the loop writes it at its next turn.
    Queued,
    /// Queued, but the peer reads more slowly than messages are sent: the kernel's buffer is full, or more than half
    /// of the outbound limit is queued. [`Handler::writable`](crate::Handler::writable) is called once the queue is
    /// empty again; a sender that waits for that call stays within the limit.
    Congested,
}

/// A message that was not accepted, handed back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SendError {
    /// The connection is closed or closing; nothing more can be sent.
    Closed(Message),
    /// The outbound queue is full, and [`Overflow::DropNewest`](crate::Overflow::DropNewest) is in force; or the
    /// message is a ping or pong, and twice the limit is queued; or the message is over 1 GiB, which no queue takes.
    Full(Message),
    /// The caller's fault: the message can't be sent this way, such as a raw frame, a control frame over 125 bytes,
    /// or a close frame with a code that must not be sent.
    Invalid(Message),
}

impl SendError {
    /// The same refusal, of the message that the refused one was made from.
    #[cfg(feature = "deflate")]
    pub(crate) fn about(self, message: Message) -> Self {
        match self {
            Self::Closed(_) => Self::Closed(message),
            Self::Full(_) => Self::Full(message),
            Self::Invalid(_) => Self::Invalid(message),
        }
    }

    /// The message that was not sent.
    pub fn into_message(self) -> Message {
        match self {
            Self::Closed(message) | Self::Full(message) | Self::Invalid(message) => message,
        }
    }
}

impl fmt::Display for SendError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Closed(_) => "the connection is closed",
            Self::Full(_) => "the outbound queue is full",
            Self::Invalid(_) => "not a message that can be sent",
        })
    }
}

impl std::error::Error for SendError {}
