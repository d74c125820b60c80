//! What a test runs over: TCP, TLS, a Unix socket. One test, written once with a [`Transport`] to
//! serve over, becomes three by [`over_every_transport`].

use std::fmt;
use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
#[cfg(unix)]
use std::os::unix::net::UnixStream;
use std::time::Duration;

use framemill::{Handler, Origin, Server};

use super::{Running, WAIT};

/// Makes a module of each of these functions of a [`Transport`], with a test for every transport:
/// `name::plain`, `name::tls`, `name::unix`. (By name, so that the functions stay ordinary ones; one
/// that is forgotten here is dead code.)
macro_rules! over_every_transport {
    ($($(#[$attribute:meta])* $name:ident),* $(,)?) => {$(
        $(#[$attribute])*
        mod $name {
            use crate::support::Transport;

            #[test]
            fn plain() {
                super::$name(Transport::Plain);
            }

            #[cfg(feature = "tls")]
            #[test]
            fn tls() {
                super::$name(Transport::Tls);
            }

            #[cfg(unix)]
            #[test]
            fn unix() {
                super::$name(Transport::Unix);
            }
        }
    )*};
}
pub(crate) use over_every_transport;

/// How a server is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    Plain,
    #[cfg(feature = "tls")]
    Tls,
    #[cfg(unix)]
    Unix,
}

impl Transport {
    /// A server that listens, with nothing else set.
    pub fn bind(self) -> (Server, Bound) {
        match self {
            #[cfg(unix)]
            Self::Unix => {
                let place = Place::fresh();
                let addr = format!("unix:{}", place.path().display());
                (Server::bind(addr).unwrap(), Bound(self, Some(place)))
            }
            _ => (
                self.wrap(Server::bind("127.0.0.1:0").unwrap()),
                Bound(self, None),
            ),
        }
    }

    /// With the certificate of the tests, if there is to be one.
    pub fn wrap(self, server: Server) -> Server {
        match self {
            #[cfg(feature = "tls")]
            Self::Tls => {
                // Takes a quarter of a second, which should be no part of the first handshake.
                super::tls::connector();
                server.tls(super::tls::identity())
            }
            _ => server,
        }
    }

    /// A server set up by `settings`.
    pub fn serve(self, settings: impl FnOnce(Server) -> Server, handler: impl Handler) -> Running {
        let (server, bound) = self.bind();
        let handle = settings(server.origin(Origin::Any)).start(handler).unwrap();
        bound.running(handle)
    }

    /// On the loop and on workers, for a test that takes long: both over TCP, one over the others.
    pub fn heavy_workers(self) -> &'static [usize] {
        match self {
            Self::Plain => &[0, 2],
            #[cfg(feature = "tls")]
            Self::Tls => &[2],
            #[cfg(unix)]
            Self::Unix => &[0],
        }
    }

    /// A server that sends everything back, with two workers.
    pub fn echo(self) -> Running {
        self.serve(
            |s| s.workers(2),
            |peer: &framemill::Peer, message| peer.send(message),
        )
    }

    /// What was written and not read, or read and not yet passed on, is between TLS and the kernel
    /// where nobody counts.
    pub fn is_exact(self) -> bool {
        #[cfg(feature = "tls")]
        return self != Self::Tls;
        #[cfg(not(feature = "tls"))]
        true
    }

    /// A client can hang up with a reset.
    pub fn has_resets(self) -> bool {
        #[cfg(unix)]
        return self != Self::Unix;
        #[cfg(not(unix))]
        true
    }
}

/// Where a server of [`Transport::bind`] listens, once it runs.
pub struct Bound(Transport, Option<Place>);

impl Bound {
    /// By TCP, whoever made the listener.
    pub fn tcp(transport: Transport) -> Self {
        Self(transport, None)
    }

    pub fn running(self, handle: framemill::ServerHandle) -> Running {
        let tcp = || handle.local_addr().unwrap();
        let addr = match self.0 {
            Transport::Plain => Addr::Plain(tcp()),
            #[cfg(feature = "tls")]
            Transport::Tls => Addr::Tls(tcp()),
            #[cfg(unix)]
            Transport::Unix => Addr::Unix(self.1.unwrap()),
        };
        Running { handle, addr }
    }
}

/// A directory of its own for the file of a Unix socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place(u32);

impl Place {
    #[cfg(unix)]
    fn fresh() -> Self {
        use std::sync::atomic::{AtomicU32, Ordering};
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let place = Self(NEXT.fetch_add(1, Ordering::Relaxed));
        std::fs::create_dir_all(place.dir()).unwrap();
        place
    }

    fn dir(self) -> std::path::PathBuf {
        let name = format!("framemill-test-{}-{}", std::process::id(), self.0);
        std::env::temp_dir().join(name)
    }

    pub fn path(self) -> std::path::PathBuf {
        self.dir().join("socket")
    }

    pub fn remove(self) {
        let _ = std::fs::remove_dir_all(self.dir());
    }
}

/// Where a server is reached, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Addr {
    Plain(SocketAddr),
    #[cfg(feature = "tls")]
    Tls(SocketAddr),
    #[cfg(unix)]
    Unix(Place),
}

impl From<SocketAddr> for Addr {
    fn from(addr: SocketAddr) -> Self {
        Self::Plain(addr)
    }
}

/// As a `Host`.
impl fmt::Display for Addr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Plain(addr) => addr.fmt(f),
            #[cfg(feature = "tls")]
            Self::Tls(addr) => addr.fmt(f),
            #[cfg(unix)]
            Self::Unix(_) => f.pad("localhost"),
        }
    }
}

impl Addr {
    /// Of those that are reached by TCP.
    pub fn tcp(self) -> SocketAddr {
        match self {
            Self::Plain(addr) => addr,
            #[cfg(feature = "tls")]
            Self::Tls(addr) => addr,
            #[cfg(unix)]
            Self::Unix(_) => panic!("a Unix socket has no such address"),
        }
    }

    /// Whether nobody listens there (any more).
    pub fn refuses(self) -> bool {
        let error = match self {
            #[cfg(unix)]
            Self::Unix(place) => UnixStream::connect(place.path()).map(drop),
            _ => TcpStream::connect_timeout(&self.tcp(), WAIT).map(drop),
        };
        error.is_err_and(|error| {
            let kind = error.kind();
            kind == io::ErrorKind::ConnectionRefused || kind == io::ErrorKind::NotFound
        })
    }

    /// Connected, and through the TLS handshake if there is one.
    pub fn connect(self) -> Stream {
        match self {
            #[cfg(unix)]
            Self::Unix(place) => Stream::Unix(UnixStream::connect(place.path()).unwrap()).bounded(),
            _ => self.over(TcpStream::connect_timeout(&self.tcp(), WAIT).unwrap()),
        }
    }

    /// The same over a TCP socket that is connected already.
    pub fn over(self, socket: TcpStream) -> Stream {
        let _ = socket.set_nodelay(true);
        let stream = Stream::Plain(socket).bounded();
        match (self, stream) {
            #[cfg(feature = "tls")]
            (Self::Tls(_), Stream::Plain(socket)) => {
                Stream::Tls(super::tls::Shared::connect(socket))
            }
            (_, stream) => stream,
        }
    }
}

/// A connected client.
pub enum Stream {
    Plain(TcpStream),
    #[cfg(feature = "tls")]
    Tls(super::tls::Shared),
    #[cfg(unix)]
    Unix(UnixStream),
}

macro_rules! each {
    ($self:expr, $stream:ident => $body:expr) => {
        match $self {
            Stream::Plain($stream) => $body,
            #[cfg(feature = "tls")]
            Stream::Tls($stream) => $body,
            #[cfg(unix)]
            Stream::Unix($stream) => $body,
        }
    };
}

impl From<TcpStream> for Stream {
    fn from(stream: TcpStream) -> Self {
        Self::Plain(stream)
    }
}

impl Stream {
    fn bounded(mut self) -> Self {
        self.set_read_timeout(Some(WAIT)).unwrap();
        self.set_write_timeout(Some(WAIT)).unwrap();
        self
    }

    pub fn set_read_timeout(&mut self, timeout: Option<Duration>) -> io::Result<()> {
        each!(self, stream => stream.set_read_timeout(timeout))
    }

    pub fn set_write_timeout(&mut self, timeout: Option<Duration>) -> io::Result<()> {
        each!(self, stream => stream.set_write_timeout(timeout))
    }

    /// With TLS, what ends the sending half sends close_notify first.
    pub fn shutdown(&mut self, how: Shutdown) -> io::Result<()> {
        each!(self, stream => stream.shutdown(how))
    }

    /// Another handle of the same connection, for another thread.
    pub fn try_clone(&mut self) -> io::Result<Self> {
        Ok(match self {
            Self::Plain(stream) => Self::Plain(stream.try_clone()?),
            #[cfg(feature = "tls")]
            Self::Tls(stream) => Self::Tls(stream.share()?),
            #[cfg(unix)]
            Self::Unix(stream) => Self::Unix(stream.try_clone()?),
        })
    }

    /// The TCP socket below.
    pub fn tcp(&self) -> TcpStream {
        match self {
            Self::Plain(stream) => stream.try_clone().unwrap(),
            #[cfg(feature = "tls")]
            Self::Tls(stream) => stream.socket(),
            #[cfg(unix)]
            Self::Unix(_) => panic!("not a TCP socket"),
        }
    }
}

impl Read for Stream {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        each!(self, stream => stream.read(buf))
    }
}

impl Write for Stream {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        each!(self, stream => stream.write(buf))
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Hangs up with a reset instead of an orderly end, where there is such a thing.
pub fn reset(stream: impl Into<Stream>) {
    let stream = stream.into();
    #[cfg(unix)]
    if matches!(stream, Stream::Unix(_)) {
        return;
    }
    let socket = socket2::Socket::from(stream.tcp());
    socket.set_linger(Some(Duration::ZERO)).unwrap();
}
