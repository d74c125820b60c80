//! Networks by prefix: whom a server takes for its own proxy.

use std::net::IpAddr;

/// A list of networks; by default empty, and nobody is in it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Networks {
    prefixes: Vec<Prefix>,
    /// Connections through a Unix socket are in it.
    unix: bool,
}

/// The leading bits that all addresses of a network have in common. IPv4 is kept apart from IPv6.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Prefix {
    first: IpAddr,
    bits: u32,
}

impl Networks {
    /// Adds `10.0.0.0/8`, `2001:db8::/32`, a single address, or `unix`. `false`: it is none of these.
    pub(crate) fn add(&mut self, text: &str) -> bool {
        if text == "unix" {
            self.unix = true;
            return true;
        }
        let prefix = parse(text);
        self.prefixes.extend(prefix);
        prefix.is_some()
    }

    /// Whether an address is in one of them; `None` is a Unix socket's.
    pub(crate) fn contains(&self, ip: Option<IpAddr>) -> bool {
        match ip.map(|ip| ip.to_canonical()) {
            Some(ip) => self.prefixes.iter().any(|prefix| prefix.contains(ip)),
            None => self.unix,
        }
    }
}

fn parse(text: &str) -> Option<Prefix> {
    let (first, bits) = match text.split_once('/') {
        Some((first, bits)) => {
            let decimal = !bits.is_empty() && bits.bytes().all(|b| b.is_ascii_digit());
            (first, Some(bits.parse().ok().filter(|_| decimal)?))
        }
        None => (text, None),
    };
    let first: IpAddr = first.parse().ok()?;
    let (first, most) = match (first, first.to_canonical()) {
        // `::ffff:10.0.0.0/104` is how IPv6 writes 10.0.0.0/8.
        (IpAddr::V6(_), v4 @ IpAddr::V4(_)) => {
            let bits = bits.unwrap_or(128);
            return ((96..=128).contains(&bits)).then(|| Prefix {
                first: v4,
                bits: bits - 96,
            });
        }
        (first @ IpAddr::V4(_), _) => (first, 32),
        (first @ IpAddr::V6(_), _) => (first, 128),
    };
    let bits = bits.unwrap_or(most);
    (bits <= most).then_some(Prefix { first, bits })
}

impl Prefix {
    fn contains(self, ip: IpAddr) -> bool {
        let differ = match (self.first, ip) {
            (IpAddr::V4(a), IpAddr::V4(b)) => (a.to_bits() ^ b.to_bits()).leading_zeros(),
            (IpAddr::V6(a), IpAddr::V6(b)) => (a.to_bits() ^ b.to_bits()).leading_zeros(),
            _ => return false,
        };
        differ >= self.bits
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(networks: &[&str]) -> Networks {
        let mut list = Networks::default();
        for network in networks {
            assert!(list.add(network), "{network}");
        }
        list
    }

    #[test]
    fn addresses_are_found_in_their_networks() {
        let list = of(&["10.0.0.0/8", "192.0.2.7", "2001:db8::/33", "::1/128"]);
        let has = |ip: &str| list.contains(Some(ip.parse().unwrap()));
        for ip in [
            "10.0.0.0",
            "10.255.1.2",
            "192.0.2.7",
            "2001:db8:7fff::1",
            "::1",
            "::ffff:10.1.1.1",
        ] {
            assert!(has(ip), "{ip}");
        }
        for ip in [
            "11.0.0.0",
            "9.255.255.255",
            "192.0.2.8",
            "2001:db8:8000::",
            "::2",
            "::ffff:11.0.0.1",
        ] {
            assert!(!has(ip), "{ip}");
        }
        assert!(!list.contains(None));
        assert!(of(&["unix"]).contains(None));
        assert!(of(&["0.0.0.0/0"]).contains(Some([1, 2, 3, 4].into())));
        assert!(!of(&["0.0.0.0/0"]).contains(Some("::1".parse().unwrap())));
        assert!(of(&["::/0"]).contains(Some("::1".parse().unwrap())));
        assert!(of(&["::ffff:10.0.0.0/104"]).contains(Some([10, 2, 3, 4].into())));
        assert!(!Networks::default().contains(Some([127, 0, 0, 1].into())));
    }

    #[test]
    fn what_is_no_network_is_refused() {
        let texts = [
            "",
            "/",
            "10.0.0.0/33",
            "10.0.0.0/-1",
            "10.0.0.0/+8",
            "10.0.0.0/",
            "10.0.0/8",
            "::/129",
        ];
        for text in texts.into_iter().chain([
            "::ffff:1.2.3.4/95",
            "localhost",
            "10.0.0.0/8/8",
            " ::1",
            "Unix",
        ]) {
            assert!(!Networks::default().add(text), "{text}");
        }
    }
}
