//! One connected socket.

use std::io::{self, IoSlice, Read, Write};
use std::net::{Shutdown, SocketAddr};

use mio::event::Source;
use mio::net::TcpStream;
#[cfg(unix)]
use mio::net::UnixStream;
use mio::{Interest, Registry, Token};

#[cfg(feature = "tls")]
use super::{TlsStream, Trust};

/// A connected socket of any kind, with TLS or without. Non-blocking; readiness is edge-triggered.
#[derive(Debug)]
pub(crate) enum Stream {
    Tcp(TcpStream),
    #[cfg(unix)]
    Unix(UnixStream),
    #[cfg(feature = "tls")]
    Tls(Box<TlsStream>),
    /// A TLS stream whose handshake is being made elsewhere.
    #[cfg(feature = "tls")]
    Lent,
}

macro_rules! each {
    ($self:expr, $stream:ident => $body:expr, tls: $tls:expr, lent: $lent:expr) => {
        match $self {
            Stream::Tcp($stream) => $body,
            #[cfg(unix)]
            Stream::Unix($stream) => $body,
            #[cfg(feature = "tls")]
            Stream::Tls($stream) => $tls,
            #[cfg(feature = "tls")]
            Stream::Lent => $lent,
        }
    };
}

impl Stream {
    /// Begins to connect; [`connected`](Self::connected) tells how that went, once the socket is
    /// writable.
    pub(crate) fn connect(addr: SocketAddr, nodelay: bool) -> io::Result<Self> {
        let stream = TcpStream::connect(addr)?;
        // Failing to set it is no reason not to talk.
        let _ = stream.set_nodelay(nodelay);
        Ok(Self::Tcp(stream))
    }

    /// The same for a Unix socket. `WouldBlock` if the server's backlog is full.
    #[cfg(unix)]
    pub(crate) fn connect_unix(path: &std::path::Path) -> io::Result<Self> {
        UnixStream::connect(path).map(Self::Unix)
    }

    /// Whether the connection is there; `false` while the other side has not answered.
    pub(crate) fn connected(&self) -> io::Result<bool> {
        let (error, peer) = match self {
            Self::Tcp(stream) => (stream.take_error()?, stream.peer_addr().map(drop)),
            #[cfg(unix)]
            Self::Unix(stream) => (stream.take_error()?, stream.peer_addr().map(drop)),
            #[cfg(feature = "tls")]
            Self::Tls(_) | Self::Lent => return Ok(true),
        };
        if let Some(error) = error {
            return Err(error);
        }
        match peer {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::NotConnected => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Reads and writes are both registered once and for good: with edge triggering, writability
    /// costs nothing until the kernel's buffer has been full. A socket that is closed is registered no more.
    pub(crate) fn register(&mut self, registry: &Registry, token: Token) -> io::Result<()> {
        let interest = Interest::READABLE | Interest::WRITABLE;
        each!(self, stream => stream.register(registry, token, interest), tls: stream.register(registry, token), lent: lent())
    }

    /// A write has failed: none will be tried any more, and what has arrived can still be read.
    pub(crate) fn lose_writing(&mut self) {
        match self {
            // A peer that only shut its reading half might write for ever. (Elsewhere this would throw away what
            // has arrived.)
            #[cfg(target_os = "linux")]
            Self::Unix(stream) => drop(stream.shutdown(Shutdown::Read)),
            #[cfg(feature = "tls")]
            Self::Tls(stream) => stream.lose_writing(),
            _ => {}
        }
    }

    pub(crate) fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        each!(self, stream => stream.read(buf), tls: stream.read(buf), lent: lent())
    }

    pub(crate) fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        each!(self, stream => stream.write(buf), tls: stream.write(buf), lent: lent())
    }

    pub(crate) fn write_vectored(&mut self, bufs: &[IoSlice<'_>]) -> io::Result<usize> {
        each!(self, stream => stream.write_vectored(bufs), tls: stream.write_vectored(bufs), lent: lent())
    }

    /// Ends the sending half: the peer sees the end of the stream once it has read everything.
    pub(crate) fn shutdown_write(&mut self) -> io::Result<()> {
        each!(self, stream => stream.shutdown(Shutdown::Write), tls: stream.shutdown_write(), lent: lent())
    }
}

/// What only TLS has to say.
#[cfg(feature = "tls")]
impl Stream {
    /// Whether it can be read from and written to: the TLS handshake is done, or there is none.
    #[inline]
    pub(crate) fn is_ready(&self) -> bool {
        match self {
            Self::Tls(stream) => stream.is_open(),
            Self::Lent => false,
            _ => true,
        }
    }

    /// Its handshake is being made elsewhere just now.
    pub(crate) fn is_lent(&self) -> bool {
        matches!(self, Self::Lent)
    }

    /// An event has announced something to read, or (`hung_up`) the end.
    #[inline]
    pub(crate) fn note_readable(&mut self, hung_up: bool) {
        if let Self::Tls(stream) = self {
            stream.socket_readable(hung_up);
        }
    }

    /// Whether there is more to read that no event will announce.
    #[inline]
    pub(crate) fn has_buffered(&self) -> bool {
        matches!(self, Self::Tls(stream) if stream.has_buffered())
    }

    /// Whether some of what was taken is not with the kernel yet; writability will be announced.
    #[inline]
    pub(crate) fn has_pending(&self) -> bool {
        matches!(self, Self::Tls(stream) if stream.has_pending())
    }

    /// How much that is.
    pub(crate) fn pending(&self) -> usize {
        match self {
            Self::Tls(stream) => stream.pending(),
            _ => 0,
        }
    }

    /// Goes on with what was taken and is not with the kernel yet.
    #[inline]
    pub(crate) fn flush_pending(&mut self) -> io::Result<()> {
        match self {
            Self::Tls(stream) => stream.flush_pending().map(|_| ()),
            _ => Ok(()),
        }
    }

    /// Puts TLS around a connection to `domain`; its handshake is to be made next.
    pub(crate) fn secure(&mut self, trust: &Trust, domain: &str) {
        let socket = std::mem::replace(self, Self::Lent);
        let stream = TlsStream::client(socket, trust.connector(), domain);
        *self = Self::Tls(Box::new(stream));
    }

    /// The socket is about to be closed: the peer is told, as far as the kernel takes it. RFC 8446 §6.1:
    /// "Each party MUST send a "close_notify" alert before closing its write side of the connection."
    pub(crate) fn send_close_notify(&mut self) {
        if let Self::Tls(stream) = self {
            if stream.is_open() {
                // If it fails, there is nobody to be told.
                let _ = stream.shutdown_write();
            }
        }
    }

    /// The TLS stream, for its handshake to be made elsewhere.
    pub(crate) fn lend(&mut self) -> Option<Box<TlsStream>> {
        match std::mem::replace(self, Self::Lent) {
            Self::Tls(stream) => Some(stream),
            other => {
                *self = other;
                None
            }
        }
    }
}

#[cfg(feature = "tls")]
fn lent<T>() -> io::Result<T> {
    Err(io::ErrorKind::NotConnected.into())
}

/// A plain stream keeps nothing back.
#[cfg(not(feature = "tls"))]
impl Stream {
    pub(crate) fn is_ready(&self) -> bool {
        true
    }

    pub(crate) fn note_readable(&mut self, _: bool) {}

    pub(crate) fn send_close_notify(&mut self) {}

    pub(crate) fn has_buffered(&self) -> bool {
        false
    }

    pub(crate) fn has_pending(&self) -> bool {
        false
    }

    pub(crate) fn pending(&self) -> usize {
        0
    }

    pub(crate) fn flush_pending(&mut self) -> io::Result<()> {
        Ok(())
    }
}
