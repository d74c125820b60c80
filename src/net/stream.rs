//! One connected socket.

use std::io::{self, IoSlice, Read, Write};
use std::net::{Shutdown, SocketAddr};

use mio::event::Source;
use mio::net::TcpStream;
#[cfg(unix)]
use mio::net::UnixStream;
use mio::{Interest, Registry, Token};

/// A connected socket of any kind. Non-blocking; readiness is edge-triggered.
#[derive(Debug)]
pub(crate) enum Stream {
    Tcp(TcpStream),
    #[cfg(unix)]
    Unix(UnixStream),
}

macro_rules! each {
    ($self:expr, $stream:ident => $body:expr) => {
        match $self {
            Stream::Tcp($stream) => $body,
            #[cfg(unix)]
            Stream::Unix($stream) => $body,
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
        if let Some(error) = each!(self, stream => stream.take_error())? {
            return Err(error);
        }
        let peer = each!(self, stream => stream.peer_addr().map(drop));
        match peer {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::NotConnected => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Reads and writes are both registered once and for good: with edge triggering, writability
    /// costs nothing until the kernel's buffer has been full.
    pub(crate) fn register(&mut self, registry: &Registry, token: Token) -> io::Result<()> {
        let interest = Interest::READABLE | Interest::WRITABLE;
        each!(self, stream => stream.register(registry, token, interest))
    }

    pub(crate) fn deregister(&mut self, registry: &Registry) -> io::Result<()> {
        each!(self, stream => stream.deregister(registry))
    }

    pub(crate) fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        each!(self, stream => stream.read(buf))
    }

    pub(crate) fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        each!(self, stream => stream.write(buf))
    }

    pub(crate) fn write_vectored(&mut self, bufs: &[IoSlice<'_>]) -> io::Result<usize> {
        each!(self, stream => stream.write_vectored(bufs))
    }

    /// Ends the sending half: the peer sees the end of the stream once it has read everything.
    pub(crate) fn shutdown_write(&mut self) -> io::Result<()> {
        each!(self, stream => stream.shutdown(Shutdown::Write))
    }
}
