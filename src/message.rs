//! What travels: messages and close codes (tungstenite's own types), and why a connection ended.

use std::fmt;

pub use bytes::Bytes;
pub use tungstenite::Utf8Bytes;
pub use tungstenite::protocol::frame::coding::CloseCode;
pub use tungstenite::protocol::{CloseFrame, Message};

/// The key by which `send_latest` and `publish_latest` tell which message replaces which: a number or a name.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum LatestKey {
    /// A number, such as the id of an entity. Costs nothing to make. Negative numbers of signed types become the
    /// numbers from 2^63 on.
    Number(u64),
    /// A name, such as a ticker symbol.
    Name(Box<str>),
}

macro_rules! latest_key_from {
    ($($number:ty),*) => {$(
        impl From<$number> for LatestKey {
            fn from(number: $number) -> Self {
                Self::Number(number as u64)
            }
        }
    )*};
}
latest_key_from!(u8, u16, u32, u64, usize, i8, i16, i32, i64, isize);

impl From<&str> for LatestKey {
    fn from(name: &str) -> Self {
        Self::Name(name.into())
    }
}

impl From<&String> for LatestKey {
    fn from(name: &String) -> Self {
        name.as_str().into()
    }
}

impl From<String> for LatestKey {
    fn from(name: String) -> Self {
        Self::Name(name.into())
    }
}

/// Which side brought a connection to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Initiator {
    /// The other side: it sent the first close frame, broke a rule (such as the limit on the size of messages), hung
    /// up, or the transport failed.
    Peer,
    /// This side: a call of [`Peer::close`](crate::Peer::close) or
    /// [`terminate`](crate::Peer::terminate), a rate limit, a full queue, a timeout, a panic, a shutdown.
    /// A peer that vanishes without closing is dropped for its silence, so that counts as this side too.
    Local,
}

/// The event that ended a connection: the same label in handlers, logs and metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum CloseCause {
    /// The peer sent a close frame, first or in answer to ours. [`CloseReason::is_clean`] says whether
    /// both sides sent one (RFC 6455 §7.1.4).
    Handshake,
    /// The peer closed its half of the TCP connection without a close frame.
    Eof,
    /// The transport failed: reset by the peer, or another I/O error.
    Transport,
    /// The peer broke RFC 6455; closed with 1002.
    Protocol(&'static str),
    /// A text message or close reason was not UTF-8; closed with 1007.
    InvalidUtf8,
    /// A message was longer than the limit; closed with 1009.
    TooBig,
    /// The peer sent faster than its allowance; closed with 1008.
    RateLimit,
    /// More was queued for the peer than its limit; closed with 1013.
    Overflow,
    /// Nothing was heard from the peer, not even a pong to our ping.
    NoPong,
    /// The peer took nothing of the messages queued for it, for as long as a ping may stay unanswered; or, when the
    /// connection was closed, for as long as the closing handshake may take, so that it never got the close frame.
    WriteStall,
    /// The close frame was sent, but the peer did not answer in time.
    CloseTimeout,
    /// The connection was dropped before the opening handshake was through, or `open` chose a
    /// subprotocol that was not offered.
    HandshakeTimeout,
    /// The handler panicked; closed with 1011.
    Panic,
    /// The server, or the engine of the client, was shut down; closed with 1001, or with the code of the
    /// [`Drain`](crate::Drain). A peer that was cut off at the deadline may have been sent no
    /// close frame.
    Shutdown,
    /// [`Peer::terminate`](crate::Peer::terminate) was called; nothing more was said.
    Terminated,
}

impl CloseCause {
    /// What the peer sent breaks a rule or a limit of messages.
    pub(crate) fn is_violation(self) -> bool {
        matches!(self, Self::Protocol(_) | Self::InvalidUtf8 | Self::TooBig)
    }

    /// Ends that this side decides on, without a word to the peer.
    pub(crate) fn is_local(self) -> bool {
        matches!(
            self,
            Self::NoPong
                | Self::WriteStall
                | Self::CloseTimeout
                | Self::HandshakeTimeout
                | Self::Shutdown
                | Self::Terminated
        )
    }
}

impl fmt::Display for CloseCause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Handshake => "close handshake",
            Self::Eof => "end of stream without a close frame",
            Self::Transport => "transport error",
            Self::Protocol(why) => return write!(f, "protocol error: {why}"),
            Self::InvalidUtf8 => "invalid UTF-8",
            Self::TooBig => "message too big",
            Self::RateLimit => "message rate over the limit",
            Self::Overflow => "outbound queue over the limit",
            Self::NoPong => "no pong",
            Self::WriteStall => "peer stopped reading",
            Self::CloseTimeout => "no answer to the close frame",
            Self::HandshakeTimeout => "opening handshake not completed",
            Self::Panic => "handler panicked",
            Self::Shutdown => "shutdown",
            Self::Terminated => "terminated",
        })
    }
}

/// How and why a connection ended: what [`Handler::close`](crate::Handler::close) is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CloseReason {
    pub(crate) code: CloseCode,
    pub(crate) text: Utf8Bytes,
    pub(crate) initiator: Initiator,
    pub(crate) cause: CloseCause,
    pub(crate) clean: bool,
    pub(crate) undelivered: usize,
}

impl CloseReason {
    /// The status code of the first close frame, whoever sent it. [`CloseCode::Status`] (1005)
    /// if that frame had none, [`CloseCode::Abnormal`] (1006) if there was no close frame at all
    /// (RFC 6455 §7.1.5).
    pub fn code(&self) -> CloseCode {
        self.code
    }

    /// The text that came with the code, often empty.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Which side brought the end about.
    pub fn initiator(&self) -> Initiator {
        self.initiator
    }

    /// What ended the connection.
    pub fn cause(&self) -> CloseCause {
        self.cause
    }

    /// Whether both sides exchanged close frames, whatever the cause.
    pub fn is_clean(&self) -> bool {
        self.clean
    }

    /// Bytes that [`Peer::send`](crate::Peer::send) accepted and the kernel never took, frame headers included: at
    /// least these did not reach the peer. Messages that [`Overflow::DropOldest`](crate::Overflow::DropOldest)
    /// dropped are counted; messages that a later one of the same key replaced
    /// ([`Peer::send_latest`](crate::Peer::send_latest)) are not. With TLS, encrypted bytes count as taken, though up
    /// to 64 KiB of them may not have reached the kernel.
    pub fn undelivered_bytes(&self) -> usize {
        self.undelivered
    }
}

impl fmt::Display for CloseReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let by = match self.initiator {
            Initiator::Peer => "peer",
            Initiator::Local => "us",
        };
        write!(f, "{} by {by}: {}", self.code, self.cause)?;
        if !self.text.is_empty() {
            write!(f, " ({})", self.text.escape_debug())?;
        }
        if self.undelivered > 0 {
            write!(f, ", {} bytes undelivered", self.undelivered)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_is_one_key_whatever_its_type() {
        let keys: [LatestKey; 6] = [
            7.into(),
            7u8.into(),
            7u64.into(),
            7i64.into(),
            7usize.into(),
            (7i8).into(),
        ];
        assert!(keys.iter().all(|key| *key == LatestKey::Number(7)));
        assert_eq!(LatestKey::from(-1i8), LatestKey::from(-1i64));
        assert_eq!(LatestKey::from(&"a".to_owned()), LatestKey::from("a"));
    }
}
