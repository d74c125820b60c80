//! Errors, by whose fault they are.
//!
//! What a *peer* does wrong never shows up here: it ends that peer's connection, and
//! [`CloseReason`](crate::CloseReason) tells how. These are the errors of the machine and the caller.

use std::fmt;
use std::io;

use crate::message::Message;

/// Why a server could not be set up or run.
#[derive(Debug)]
#[non_exhaustive]
pub enum Error {
    /// The caller's fault: a setting that makes no sense, or an address that can't be read.
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
    /// The caller's fault: a certificate or key that can't be read or doesn't fit. Says which and why.
    #[cfg(feature = "tls")]
    Tls(String),
}

/// The result of setting up or running a server.
pub type Result<T> = std::result::Result<T, Error>;

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Config(what) => write!(f, "invalid setting: {what}"),
            Self::Bind { addr, source } => write!(f, "cannot listen on {addr}: {source}"),
            Self::Io(source) => write!(f, "{source}"),
            #[cfg(feature = "tls")]
            Self::Tls(what) => write!(f, "TLS: {what}"),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Config(_) => None,
            Self::Bind { source, .. } | Self::Io(source) => Some(source),
            #[cfg(feature = "tls")]
            Self::Tls(_) => None,
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
    /// Queued, but the peer reads more slowly than it is sent: the kernel's buffer is full, or more
    /// than half of the outbound limit waits. [`Handler::writable`](crate::Handler::writable) is
    /// called once the queue is empty again; whoever sends no more until then stays within the limit.
    Congested,
}

/// A message that was not accepted, handed back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SendError {
    /// The connection is closed or closing; nothing more can be sent.
    Closed(Message),
    /// The outbound queue is full, and [`Overflow::DropNewest`](crate::Overflow::DropNewest) is in
    /// force; or the message is over 1 GiB, which no queue takes.
    Full(Message),
    /// The caller's fault: not something that can be sent this way, such as a raw frame or a
    /// control frame over 125 bytes.
    Invalid(Message),
}

impl SendError {
    /// The same refusal of the message that the refused one was made of.
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
