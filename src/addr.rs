//! Who is at the other end of a connection.
//!
//! Only the peer's identity as the kernel tells it. Not here: addresses to listen on, and whatever
//! a proxy claims in `Forwarded` or `X-Forwarded-For` (any client can write those; a handler that
//! trusts its proxy reads the header).

use std::fmt;
use std::net::{IpAddr, SocketAddr};

/// The address of a connected peer.
///
/// A Unix socket has no address worth telling: clients hardly ever bind theirs to a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RemoteAddr {
    /// A TCP peer, with or without TLS.
    Ip(SocketAddr),
    /// A peer on a Unix domain socket.
    Unix,
}

impl RemoteAddr {
    /// The peer's IP address, which is what limits per address count by; `None` on a Unix socket.
    ///
    /// It is given as the kernel gave it: an IPv4 peer of a dual-stack listener is `::ffff:a.b.c.d`
    /// (see [`IpAddr::to_canonical`]).
    pub fn ip(&self) -> Option<IpAddr> {
        match self {
            Self::Ip(addr) => Some(addr.ip()),
            Self::Unix => None,
        }
    }
}

impl From<SocketAddr> for RemoteAddr {
    fn from(addr: SocketAddr) -> Self {
        Self::Ip(addr)
    }
}

/// `192.0.2.1:443`, `[2001:db8::1]:443` or `unix`.
impl fmt::Display for RemoteAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ip(addr) => addr.fmt(f),
            Self::Unix => f.pad("unix"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn displays_like_a_socket_address_or_unix() {
        let v6: SocketAddr = "[2001:db8::1]:443".parse().unwrap();
        assert_eq!(RemoteAddr::from(v6).to_string(), "[2001:db8::1]:443");
        assert_eq!(RemoteAddr::Unix.to_string(), "unix");
    }

    #[test]
    fn only_ip_peers_have_an_ip() {
        let v4: SocketAddr = "192.0.2.1:80".parse().unwrap();
        assert_eq!(RemoteAddr::Ip(v4).ip(), Some(v4.ip()));
        assert_eq!(RemoteAddr::Unix.ip(), None);
    }
}
