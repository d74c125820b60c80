//! Listening sockets, and what [`Server::bind`](crate::Server::bind) takes for an address.

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6, ToSocketAddrs};
#[cfg(target_os = "linux")]
use std::os::linux::net::SocketAddrExt;
#[cfg(unix)]
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
#[cfg(target_os = "linux")]
use std::os::unix::net::{SocketAddr as UnixAddr, UnixDatagram};
#[cfg(unix)]
use std::path::{Path, PathBuf};
#[cfg(target_os = "linux")]
use std::time::{Duration, Instant};

use mio::net::TcpListener;
#[cfg(unix)]
use mio::net::UnixListener;
use mio::{Interest, Registry, Token};
use socket2::SockRef;
#[cfg(unix)]
use socket2::{Domain, SockAddr, Socket, Type};

use super::Stream;
use crate::addr::RemoteAddr;
use crate::error::{Error, Result};

/// Something to listen on.
///
/// - `"127.0.0.1:9001"`, `"[::]:80"`, `"localhost:0"`, a [`SocketAddr`], or a pair of a name or address and a port,
///   such as `(Ipv4Addr::LOCALHOST, 9001)`: TCP.
///   A name is resolved, and every address of it that can be bound is listened on; with port 0, for
///   which the system chooses, only the first.
/// - `"unix:/run/app.sock"`: a Unix stream socket. The file of a server that no longer runs is replaced. The file is
///   removed when the server stops, unless it is another server's by then. The umask decides who may connect: as a
///   rule the same user only.
/// - `UnixSocket("/run/app.sock", 0o660)`: a Unix stream socket whose file has this mode.
/// - `ReusePort("0.0.0.0:80")`: TCP, beside other listeners on the same port.
/// - A listener of `std::net` or `std::os::unix::net` that is already open.
/// - `SystemdSockets`: all sockets that systemd handed over (feature `systemd`).
pub trait Listen {
    /// Opens the sockets.
    ///
    /// # Errors
    /// [`Error::Bind`] if an address can't be listened on, [`Error::Config`] if it can't be read, or if a
    /// socket that is already open does not listen (which is noticed on Linux).
    #[doc(hidden)]
    fn listen(self) -> Result<Vec<Bound>>;
}

/// A TCP address that is listened on with `SO_REUSEPORT`: each loop has a listener of its own, and other
/// processes of the same user may listen beside it. The system distributes new connections among all listeners, by
/// the connections' addresses and ports. Without `SO_REUSEPORT`, the first loop accepts and deals connections out to
/// all loops in turn, and an address belongs to one process.
///
/// Benefits: all loops accept, for servers where very many connections come and go, and several processes can share
/// one port. Costs: the shares are even only on average, and when a listener is closed, the system resets the
/// connections that wait in its backlog.
///
/// ```
/// use framemill::{ReusePort, Server};
///
/// let server = Server::bind(ReusePort("127.0.0.1:0"))?.loops(2);
/// # drop(server);
/// # framemill::Result::Ok(())
/// ```
#[cfg(unix)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReusePort<A>(
    /// The address, of any type that [`ToSocketAddrs`] takes and errors can show ([`Debug`](fmt::Debug)). If a name
    /// has several addresses, the first that can be bound is taken.
    pub A,
);

/// A Unix stream socket whose file has a mode of its own. With a plain `"unix:…"` the umask decides, and as a rule
/// leaves 0755; then only the same user may connect, as connecting takes the permission to write.
///
/// For a proxy that runs as another user, take `0o660` and a group that both are in, with a directory whose files get
/// that group (by its set-group-ID bit); or `0o666` in a directory that only the two can enter.
///
/// ```
/// use framemill::{Server, UnixSocket};
///
/// # let path = std::env::temp_dir().join(format!("framemill-doc-{}", std::process::id()));
/// let server = Server::bind(UnixSocket(&path, 0o660))?;
/// # drop(server);
/// # framemill::Result::Ok(())
/// ```
#[cfg(unix)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnixSocket<P>(
    /// Where the file is to be, without `unix:`.
    pub P,
    /// The file's permissions, as for `chmod`. They are set before anybody can connect.
    pub u32,
);

#[cfg(unix)]
impl<P: AsRef<Path>> Listen for UnixSocket<P> {
    fn listen(self) -> Result<Vec<Bound>> {
        let path = self.0.as_ref();
        let listener = Listener::unix(path, Some(self.1));
        let shown = format!("unix:{}", path.display());
        Ok(vec![Bound(listener.map_err(bind_error(shown))?)])
    }
}

/// An open listening socket, in a form that only this crate can look into.
#[derive(Debug)]
pub struct Bound(pub(crate) Listener);

#[cfg(unix)]
impl<A: ToSocketAddrs + fmt::Debug> Listen for ReusePort<A> {
    fn listen(self) -> Result<Vec<Bound>> {
        // All that can be shown of an address of any type; of a text, without its quotes.
        let shown = format!("{:?}", self.0);
        let shown = shown.trim_matches('"');
        let addrs = self.0.to_socket_addrs().map_err(unresolved(shown))?;
        let mut failed = Error::Config(format!("{shown} resolves to nothing"));
        for addr in addrs {
            match Listener::reusing(addr) {
                Ok(listener) => return Ok(vec![Bound(listener)]),
                Err(error) => failed = bind_error(addr)(error),
            }
        }
        Err(failed)
    }
}

/// Connections that may wait to be accepted.
const BACKLOG: i32 = 4096;

/// A listening socket of any kind.
#[derive(Debug)]
pub(crate) enum Listener {
    Tcp(TcpListener),
    /// One of several on this address.
    #[cfg(unix)]
    Shared(TcpListener),
    /// The file goes before the socket is closed: as long as the socket is there, whoever wants to listen
    /// there next does not take its file for a stale one, and puts no other in its place.
    #[cfg(unix)]
    Unix(
        #[expect(dead_code, reason = "held for its Drop, which removes the file")] UnixPath,
        UnixListener,
    ),
}

/// The file of a Unix socket, removed when the listener goes, unless another has taken its place.
#[cfg(unix)]
#[derive(Debug)]
pub(crate) struct UnixPath(Option<(PathBuf, FileId)>);

/// Which file it is, whatever its name: device and inode.
#[cfg(unix)]
type FileId = (u64, u64);

#[cfg(unix)]
impl UnixPath {
    /// The file that is there.
    fn of(path: &Path) -> io::Result<Self> {
        Ok(Self(Some((path.into(), file_id(path)?))))
    }
}

#[cfg(unix)]
impl Drop for UnixPath {
    fn drop(&mut self) {
        if let Some((path, id)) = &self.0 {
            if file_id(path).is_ok_and(|there| there == *id) {
                let _ = std::fs::remove_file(path);
            }
        }
    }
}

#[cfg(unix)]
fn file_id(path: &Path) -> io::Result<FileId> {
    let file = std::fs::symlink_metadata(path)?;
    Ok((file.dev(), file.ino()))
}

/// Where a listener listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum LocalAddr {
    Ip(SocketAddr),
    Unix(String),
}

impl fmt::Display for LocalAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ip(addr) => addr.fmt(f),
            Self::Unix(path) => write!(f, "unix:{path}"),
        }
    }
}

/// A TCP listener of either kind.
#[cfg(unix)]
macro_rules! tcp {
    ($listener:ident) => {
        Listener::Tcp($listener) | Listener::Shared($listener)
    };
}
#[cfg(not(unix))]
macro_rules! tcp {
    ($listener:ident) => {
        Listener::Tcp($listener)
    };
}

impl Listener {
    fn tcp(addr: SocketAddr) -> io::Result<Self> {
        let listener = TcpListener::bind(addr)?;
        // Once more with a longer backlog than mio's: a rush of clients should wait here, not for
        // the second try of their SYN. The system cuts it to what it allows.
        SockRef::from(&listener).listen(BACKLOG)?;
        Ok(Self::Tcp(listener))
    }

    /// One that others may listen beside.
    #[cfg(unix)]
    fn reusing(addr: SocketAddr) -> io::Result<Self> {
        let socket = Socket::new(Domain::for_address(addr), Type::STREAM, None)?;
        // As mio's own, for the sake of earlier connections in TIME_WAIT.
        socket.set_reuse_address(true)?;
        socket.set_reuse_port(true)?;
        socket.set_nonblocking(true)?;
        socket.bind(&addr.into())?;
        socket.listen(BACKLOG)?;
        Ok(Self::Shared(TcpListener::from_std(socket.into())))
    }

    /// Another beside this one, for another loop; `None` if it is to be alone.
    pub(crate) fn another(&self) -> Option<io::Result<Self>> {
        match self {
            #[cfg(unix)]
            Self::Shared(listener) => Some(listener.local_addr().and_then(Self::reusing)),
            _ => None,
        }
    }

    /// Whether each loop has one of its own.
    pub(crate) fn is_shared(&self) -> bool {
        #[cfg(unix)]
        return matches!(self, Self::Shared(_));
        #[cfg(not(unix))]
        false
    }

    #[cfg(unix)]
    fn unix(path: &Path, mode: Option<u32>) -> io::Result<Self> {
        let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
        socket.set_nonblocking(true)?;
        let addr = SockAddr::unix(path)?;
        // Until it listens, its file looks like a stale one.
        #[cfg(target_os = "linux")]
        let _alone = alone_in_directory(path);
        match socket.bind(&addr) {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && is_stale(path) => {
                std::fs::remove_file(path)?;
                socket.bind(&addr)?;
            }
            other => other?,
        }
        let file = UnixPath::of(path)?;
        if let Some(mode) = mode {
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))?;
        }
        socket.listen(BACKLOG)?;
        Ok(Self::Unix(file, UnixListener::from_std(socket.into())))
    }

    pub(crate) fn is_tcp(&self) -> bool {
        matches!(self, tcp!(_listener))
    }

    /// The next connection that waits, `WouldBlock` if there is none.
    pub(crate) fn accept(&self) -> io::Result<(Stream, RemoteAddr)> {
        match self {
            tcp!(listener) => {
                let (stream, addr) = listener.accept()?;
                Ok((Stream::Tcp(stream), RemoteAddr::Ip(addr)))
            }
            #[cfg(unix)]
            Self::Unix(_, listener) => {
                let (stream, _) = listener.accept()?;
                Ok((Stream::Unix(stream), RemoteAddr::Unix))
            }
        }
    }

    /// TCP_NODELAY for every connection of this listener.
    ///
    /// On Linux an accepted socket inherits it, which saves a system call per connection.
    pub(crate) fn set_nodelay(&self, on: bool) -> io::Result<()> {
        match self {
            tcp!(listener) => SockRef::from(listener).set_tcp_nodelay(on),
            #[cfg(unix)]
            Self::Unix(..) => Ok(()),
        }
    }

    pub(crate) fn register(&mut self, registry: &Registry, token: Token) -> io::Result<()> {
        match self {
            tcp!(listener) => registry.register(listener, token, Interest::READABLE),
            #[cfg(unix)]
            Self::Unix(_, listener) => registry.register(listener, token, Interest::READABLE),
        }
    }

    pub(crate) fn deregister(&mut self, registry: &Registry) -> io::Result<()> {
        match self {
            tcp!(listener) => registry.deregister(listener),
            #[cfg(unix)]
            Self::Unix(_, listener) => registry.deregister(listener),
        }
    }

    pub(crate) fn local_addr(&self) -> io::Result<LocalAddr> {
        Ok(match self {
            tcp!(listener) => LocalAddr::Ip(listener.local_addr()?),
            #[cfg(unix)]
            Self::Unix(_, listener) => LocalAddr::Unix(
                listener
                    .local_addr()?
                    .as_pathname()
                    .map_or_else(|| "(unnamed)".into(), |path| path.display().to_string()),
            ),
        })
    }
}

/// Keeps other servers from putting sockets into the same directory meanwhile: of two that find the same
/// stale file, the second would remove the new file of the first. The lock is an abstract socket, which
/// ends with its process however that ends, and leaves nothing behind. Whoever has the name otherwise is
/// not waited for for long.
#[cfg(target_os = "linux")]
fn alone_in_directory(path: &Path) -> Option<UnixDatagram> {
    const PATIENCE: Duration = Duration::from_secs(1);
    let directory = path.parent().filter(|parent| parent != &Path::new(""));
    let directory = std::fs::metadata(directory.unwrap_or(Path::new("."))).ok()?;
    let name = format!("framemill-bind-{}-{}", directory.dev(), directory.ino());
    let addr = UnixAddr::from_abstract_name(name).ok()?;
    let begun = Instant::now();
    loop {
        match UnixDatagram::bind_addr(&addr) {
            Err(error)
                if error.kind() == io::ErrorKind::AddrInUse && begun.elapsed() < PATIENCE =>
            {
                std::thread::sleep(Duration::from_millis(1));
            }
            other => return other.ok(),
        }
    }
}

/// Whether nobody listens behind this socket file any more.
#[cfg(unix)]
fn is_stale(path: &Path) -> bool {
    let is_socket = std::fs::metadata(path).is_ok_and(|meta| meta.file_type().is_socket());
    // Whoever has its backlog full is there, and may not make room for long: it is not waited for.
    let connect = || {
        let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
        socket.set_nonblocking(true)?;
        socket.connect(&SockAddr::unix(path)?)
    };
    let refused = |error: io::Error| error.kind() == io::ErrorKind::ConnectionRefused;
    is_socket && connect().is_err_and(refused)
}

fn bind_error(addr: impl fmt::Display) -> impl FnOnce(io::Error) -> Error {
    move |source| Error::Bind {
        addr: addr.to_string(),
        source,
    }
}

/// Why there are no addresses to listen on: the text can't be read, or the name can't be resolved.
fn unresolved(addr: &str) -> impl FnOnce(io::Error) -> Error {
    move |source| match source.kind() {
        io::ErrorKind::InvalidInput => {
            Error::Config(format!("{addr:?} is not an address: {source}"))
        }
        _ => bind_error(addr)(source),
    }
}

/// Listens on every address of a name that can be had; on the first if the system chooses the port.
fn resolve(addr: impl ToSocketAddrs, shown: &str) -> Result<Vec<Bound>> {
    let mut bound = Vec::new();
    let mut failed = None;
    for addr in addr.to_socket_addrs().map_err(unresolved(shown))? {
        match Listener::tcp(addr) {
            Ok(listener) => bound.push(Bound(listener)),
            Err(error) => failed = Some(bind_error(shown)(error)),
        }
        if addr.port() == 0 && !bound.is_empty() {
            break;
        }
    }
    match (bound.is_empty(), failed) {
        (false, _) => Ok(bound),
        (true, Some(error)) => Err(error),
        (true, None) => Err(Error::Config(format!("{shown} resolves to nothing"))),
    }
}

impl Listen for &str {
    fn listen(self) -> Result<Vec<Bound>> {
        match self.strip_prefix("unix:") {
            #[cfg(unix)]
            Some(path) => Ok(vec![Bound(
                Listener::unix(path.as_ref(), None).map_err(bind_error(self))?,
            )]),
            #[cfg(not(unix))]
            Some(_) => Err(Error::Config("this system has no Unix sockets".into())),
            None => resolve(self, self),
        }
    }
}

impl Listen for &String {
    fn listen(self) -> Result<Vec<Bound>> {
        self.as_str().listen()
    }
}

impl Listen for String {
    fn listen(self) -> Result<Vec<Bound>> {
        self.as_str().listen()
    }
}

impl Listen for SocketAddr {
    fn listen(self) -> Result<Vec<Bound>> {
        Ok(vec![Bound(Listener::tcp(self).map_err(bind_error(self))?)])
    }
}

macro_rules! listen_as_socket_addr {
    ($($addr:ty),*) => {$(
        impl Listen for $addr {
            fn listen(self) -> Result<Vec<Bound>> {
                SocketAddr::from(self).listen()
            }
        }
    )*};
}
listen_as_socket_addr!(
    SocketAddrV4,
    SocketAddrV6,
    (IpAddr, u16),
    (Ipv4Addr, u16),
    (Ipv6Addr, u16)
);

impl Listen for (&str, u16) {
    fn listen(self) -> Result<Vec<Bound>> {
        resolve(self, self.0)
    }
}

/// Makes ready what comes open. That it listens is more than its type says: it may have been made of
/// any socket.
fn check_open(socket: SockRef<'_>) -> Result<()> {
    let open = "an open listener";
    socket.set_nonblocking(true).map_err(bind_error(open))?;
    #[cfg(target_os = "linux")]
    if !socket.is_listener().map_err(bind_error(open))? {
        return Err(Error::Config(format!("{open} does not listen")));
    }
    Ok(())
}

impl Listen for std::net::TcpListener {
    fn listen(self) -> Result<Vec<Bound>> {
        check_open(SockRef::from(&self))?;
        Ok(vec![Bound(Listener::Tcp(TcpListener::from_std(self)))])
    }
}

#[cfg(unix)]
impl Listen for std::os::unix::net::UnixListener {
    fn listen(self) -> Result<Vec<Bound>> {
        check_open(SockRef::from(&self))?;
        // The file belongs to whoever opened the socket.
        let listener = Listener::Unix(UnixPath(None), UnixListener::from_std(self));
        Ok(vec![Bound(listener)])
    }
}
