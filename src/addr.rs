//! Who is at the other end of a connection.
//!
//! Not here: addresses to listen on, and what proxies tell of their clients (`proto/forwarded.rs`,
//! `proto/proxy.rs`).

use std::fmt;
use std::net::{IpAddr, SocketAddr, SocketAddrV4, SocketAddrV6};

/// The address of a connected peer.
///
/// It comes from the kernel, or from a proxy if the server [trusts](crate::Server::trust_proxies) that. The port is 0
/// where a proxy does not tell it.
///
/// A peer on a Unix socket has no useful address: clients hardly ever bind their end to a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RemoteAddr {
    /// A TCP peer, with or without TLS.
    Ip(SocketAddr),
    /// A peer on a Unix domain socket.
    Unix,
}

impl RemoteAddr {
    /// The peer's IP address; `None` on a Unix socket. Limits per address count connections by it.
    ///
    /// It is as the kernel (or the proxy) gave it: an IPv4 peer of a dual-stack listener is `::ffff:a.b.c.d` (see
    /// [`IpAddr::to_canonical`]).
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

/// The same in 20 bytes instead of 32: what a connection keeps. Flow labels are not kept, nor are the
/// indices of interfaces past 65,533.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PackedAddr {
    ip: [u8; 16],
    /// The index of an interface; those are small numbers. Or what the address is, if not of IPv6.
    scope: u16,
    port: u16,
}

const V4: u16 = u16::MAX;
const UNIX: u16 = u16::MAX - 1;

impl From<RemoteAddr> for PackedAddr {
    fn from(addr: RemoteAddr) -> Self {
        let mut ip = [0; 16];
        let (scope, port) = match addr {
            RemoteAddr::Unix => (UNIX, 0),
            RemoteAddr::Ip(SocketAddr::V4(addr)) => {
                ip[..4].copy_from_slice(&addr.ip().octets());
                (V4, addr.port())
            }
            RemoteAddr::Ip(SocketAddr::V6(addr)) => {
                ip = addr.ip().octets();
                let scope = addr.scope_id().try_into().unwrap_or(0);
                (if scope < UNIX { scope } else { 0 }, addr.port())
            }
        };
        Self { ip, scope, port }
    }
}

impl From<PackedAddr> for RemoteAddr {
    fn from(packed: PackedAddr) -> Self {
        let [a, b, c, d, ..] = packed.ip;
        Self::Ip(match packed.scope {
            UNIX => return Self::Unix,
            V4 => SocketAddrV4::new([a, b, c, d].into(), packed.port).into(),
            scope => SocketAddrV6::new(packed.ip.into(), packed.port, 0, scope.into()).into(),
        })
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

    #[test]
    fn packing_keeps_all_that_matters() {
        let addrs = ["192.0.2.1:80", "[2001:db8::1]:443", "[fe80::1%3]:65535"];
        for addr in addrs.map(|addr| RemoteAddr::Ip(addr.parse().unwrap())) {
            assert_eq!(RemoteAddr::from(PackedAddr::from(addr)), addr);
        }
        // An interface whose number does not fit is none, rather than another.
        let far = RemoteAddr::Ip("[fe80::1%65539]:80".parse().unwrap());
        let scopeless = RemoteAddr::Ip("[fe80::1]:80".parse().unwrap());
        assert_eq!(RemoteAddr::from(PackedAddr::from(far)), scopeless);
        let unix = PackedAddr::from(RemoteAddr::Unix);
        assert_eq!(RemoteAddr::from(unix), RemoteAddr::Unix);
        assert_eq!(size_of::<PackedAddr>(), 20);
    }
}
