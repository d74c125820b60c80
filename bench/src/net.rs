//! Addresses, listening, connecting, and edge-triggered epoll: the system calls without a layer
//! between.

use std::{
    fmt,
    io::{Error, Result},
    net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, ToSocketAddrs},
    os::{
        fd::{AsFd, AsRawFd, OwnedFd},
        unix::net::UnixListener,
    },
    path::PathBuf,
    str::FromStr,
    time::Duration,
};

use rustix::{
    buffer::spare_capacity,
    event::epoll,
    io::Errno,
    net::{self, AddressFamily, SocketAddrUnix, SocketFlags, SocketType, sockopt},
    time::Timespec,
};

pub use rustix::event::epoll::EventFlags;

/// Long enough that no burst of connections is turned away for the listener's sake.
const BACKLOG: i32 = 4096;

/// `HOST:PORT` or `unix:PATH`.
#[derive(Clone, Debug)]
pub enum Addr {
    Tcp(SocketAddr),
    Unix(PathBuf),
}

impl FromStr for Addr {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text.strip_prefix("unix:") {
            Some(path) => Ok(Self::Unix(path.into())),
            None => text
                .to_socket_addrs()?
                .next()
                .map(Self::Tcp)
                .ok_or_else(|| Error::other("no such host")),
        }
    }
}

impl fmt::Display for Addr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(addr) => addr.fmt(f),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// Returns a non-blocking listener and the address it got (a port of 0 lets the kernel choose).
pub fn listen(addr: &Addr) -> Result<(OwnedFd, Addr)> {
    let (listener, addr) = match addr {
        Addr::Tcp(addr) => {
            let listener = TcpListener::bind(addr)?;
            listener.set_nonblocking(true)?;
            let addr = Addr::Tcp(listener.local_addr()?);
            (OwnedFd::from(listener), addr)
        }
        Addr::Unix(path) => {
            let listener = UnixListener::bind(path)?;
            listener.set_nonblocking(true)?;
            (OwnedFd::from(listener), addr.clone())
        }
    };
    net::listen(&listener, BACKLOG)?;
    Ok((listener, addr))
}

/// `None` when nobody is waiting. TCP_NODELAY is set where there is TCP.
pub fn accept(listener: &OwnedFd, addr: &Addr) -> Result<Option<OwnedFd>> {
    let socket = match net::accept_with(listener, SocketFlags::NONBLOCK | SocketFlags::CLOEXEC) {
        Err(Errno::AGAIN | Errno::CONNABORTED) => return Ok(None),
        accepted => accepted?,
    };
    if let Addr::Tcp(_) = addr {
        sockopt::set_tcp_nodelay(&socket, true)?;
    }
    Ok(Some(socket))
}

/// Begins to connect, from `source` if one is given. The socket is writable once connected.
pub fn connect(addr: &Addr, source: Option<Ipv4Addr>) -> Result<OwnedFd> {
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let (socket, outcome) = match addr {
        Addr::Tcp(addr) => {
            let family = if addr.is_ipv4() {
                AddressFamily::INET
            } else {
                AddressFamily::INET6
            };
            let socket = net::socket_with(family, SocketType::STREAM, flags, None)?;
            sockopt::set_tcp_nodelay(&socket, true)?;
            if let Some(source) = source {
                choose_port_on_connect(&socket)?;
                net::bind(&socket, &SocketAddrV4::new(source, 0))?;
            }
            let outcome = net::connect(&socket, addr);
            (socket, outcome)
        }
        Addr::Unix(path) => {
            let socket = net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
            let outcome = net::connect(&socket, &SocketAddrUnix::new(path)?);
            (socket, outcome)
        }
    };
    match outcome {
        Ok(()) | Err(Errno::INPROGRESS) => Ok(socket),
        Err(error) => Err(error.into()),
    }
}

/// A port taken by `bind` is taken for everybody on the machine until long after. Taken by
/// `connect`, it is only taken towards the same server.
fn choose_port_on_connect(socket: &OwnedFd) -> Result<()> {
    let (on, length): (libc::c_int, _) = (1, size_of::<libc::c_int>() as libc::socklen_t);
    let option = libc::IP_BIND_ADDRESS_NO_PORT;
    // SAFETY: the option is an integer, and `length` is that of the integer at `on`.
    let outcome = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_IP,
            option,
            (&raw const on).cast(),
            length,
        )
    };
    if outcome == 0 {
        Ok(())
    } else {
        Err(Error::last_os_error())
    }
}

/// Loopback addresses to connect from.
///
/// A closed connection keeps its port busy for a minute. Connecting some ten thousand times a
/// second would use up the ports of one address within seconds, so the address changes now and
/// then: all of 127.0.0.0/8 is loopback.
#[derive(Default)]
pub struct Sources(u32);

impl Sources {
    /// Connections from one address. Well below the 28,000 ports that the kernel chooses from,
    /// since the last ones take it long to find.
    const EACH: u32 = 10_000;

    /// Where to connect from to `addr`; `None` leaves it to the kernel (not IPv4 loopback).
    pub fn next(&mut self, addr: &Addr) -> Option<Ipv4Addr> {
        let Addr::Tcp(SocketAddr::V4(addr)) = addr else {
            return None;
        };
        if !addr.ip().is_loopback() {
            return None;
        }
        let host = 2 + self.0 / Self::EACH;
        self.0 += 1;
        Some(Ipv4Addr::from_bits(
            Ipv4Addr::new(127, 0, 0, 0).to_bits() + host,
        ))
    }
}

/// epoll with every socket registered once, edge-triggered, for both directions.
///
/// The cheapest way to use it: no system call to change what is waited for, and the kernel does not
/// look at a socket again that it has reported. In return its user must read until a read comes
/// back short.
pub struct Poller {
    epoll: OwnedFd,
}

/// Room for the events of one turn, apart from the poller so that sockets can be added while going
/// through them.
pub struct Events(Vec<epoll::Event>);

impl Events {
    #[expect(clippy::new_without_default, reason = "allocates")]
    pub fn new() -> Self {
        Self(Vec::with_capacity(1024))
    }
}

impl Poller {
    pub fn new() -> Result<Self> {
        Ok(Self {
            epoll: epoll::create(epoll::CreateFlags::CLOEXEC)?,
        })
    }

    pub fn add(&self, socket: impl AsFd, token: usize) -> Result<()> {
        let interest = EventFlags::IN | EventFlags::OUT | EventFlags::RDHUP | EventFlags::ET;
        Ok(epoll::add(
            &self.epoll,
            socket,
            epoll::EventData::new_u64(token as u64),
            interest,
        )?)
    }

    /// Waits for events, at most `timeout`, and returns them as (token, flags).
    pub fn wait<'e>(
        &self,
        Events(events): &'e mut Events,
        timeout: Option<Duration>,
    ) -> Result<impl Iterator<Item = (usize, EventFlags)> + use<'e>> {
        let timeout = timeout.map(|time| Timespec {
            tv_sec: time.as_secs() as i64,
            tv_nsec: i64::from(time.subsec_nanos()),
        });
        events.clear();
        match epoll::wait(&self.epoll, spare_capacity(events), timeout.as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        Ok(events
            .iter()
            .map(|event| (event.data.u64() as usize, event.flags)))
    }
}
