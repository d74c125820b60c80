//! The PROXY protocol, versions 1 and 2: a header that a proxy puts in front of everything else on a
//! connection, TLS included, to tell whose connection it is
//! (<https://www.haproxy.org/download/2.9/doc/proxy-protocol.txt>, whose sections are cited).
//!
//! [`scan`] looks at all bytes so far, after each read, until it is sure. Strict: whatever the document
//! doesn't allow is an error, and the connection is to be closed without an answer (§2: "it is very
//! likely that [...] a connection is established from a non-proxy").
//!
//! Absent: whom to believe, which is the caller's to know before asking; the contents of the optional
//! fields of version 2, whose checksum among them repeats what TCP does.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// §2.1: "the maximum line lengths the receiver must support including the CRLF" is 107 characters.
const MAX_LINE: usize = 107;

/// The longest header of version 2 that is taken. Addresses take 216 bytes at most; what follows them
/// is for certificates' names and the like, of which nothing is used.
const MAX_BINARY: usize = 4 << 10;

const LINE: &[u8] = b"PROXY ";
const SIGNATURE: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";

/// What the first bytes of a connection are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ProxyHeader {
    /// They may become a header.
    Partial,
    /// No header: something else begins here.
    Absent,
    /// A header of `len` bytes.
    Found {
        len: usize,
        /// Whose connection it is; `None`: the proxy's own (a health check), or it does not know.
        source: Option<SocketAddr>,
    },
}

/// Something that begins like a header and isn't one; says why.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BadProxyHeader(pub(crate) &'static str);

/// Looks at the first bytes of a connection, all of them each time.
pub(crate) fn scan(buf: &[u8]) -> Result<ProxyHeader, BadProxyHeader> {
    if begins(buf, SIGNATURE) {
        binary(buf)
    } else if begins(buf, LINE) {
        line(buf)
    } else {
        Ok(ProxyHeader::Absent)
    }
}

/// As far as both go, they are the same.
fn begins(buf: &[u8], with: &[u8]) -> bool {
    buf.iter().zip(with).all(|(a, b)| a == b)
}

/// Version 1: `PROXY TCP4 192.0.2.1 198.51.100.1 56324 443\r\n`.
fn line(buf: &[u8]) -> Result<ProxyHeader, BadProxyHeader> {
    let within = &buf[..buf.len().min(MAX_LINE)];
    let Some(end) = within.iter().position(|b| matches!(b, b'\r' | b'\n')) else {
        return match within.len() < MAX_LINE {
            true => Ok(ProxyHeader::Partial),
            false => Err(BadProxyHeader("the line is too long")),
        };
    };
    match within[end..] {
        [b'\r'] if end + 1 < MAX_LINE => return Ok(ProxyHeader::Partial),
        [b'\r', b'\n', ..] => {}
        _ => return Err(BadProxyHeader("the line does not end with CRLF")),
    }
    let text = std::str::from_utf8(&buf[LINE.len()..end]);
    let text = text.map_err(|_| BadProxyHeader("the line is not ASCII"))?;
    Ok(ProxyHeader::Found {
        len: end + 2,
        source: source_of(text)?,
    })
}

/// What follows `PROXY `.
fn source_of(text: &str) -> Result<Option<SocketAddr>, BadProxyHeader> {
    let mut fields = text.split(' ');
    let family = fields.next();
    // §2.1: "the receiver must ignore anything presented before the CRLF".
    if family == Some("UNKNOWN") {
        return Ok(None);
    }
    let address = |text: Option<&str>| -> Option<IpAddr> {
        match family {
            Some("TCP4") => text?.parse::<Ipv4Addr>().ok().map(IpAddr::V4),
            Some("TCP6") => text?.parse::<Ipv6Addr>().ok().map(IpAddr::V6),
            _ => None,
        }
    };
    let addresses = (address(fields.next()), address(fields.next()));
    let ports = (port(fields.next()), port(fields.next()));
    match (addresses, ports, fields.next()) {
        ((Some(ip), Some(_)), (Some(port), Some(_)), None) => Ok(Some((ip, port).into())),
        _ => Err(BadProxyHeader("the line is malformed")),
    }
}

/// §2.1: "a decimal integer in the range [0..65535] inclusive", with no leading zeroes.
fn port(text: Option<&str>) -> Option<u16> {
    let text = text?;
    let plain = text.bytes().all(|b| b.is_ascii_digit()) && (text == "0" || !text.starts_with('0'));
    text.parse().ok().filter(|_| plain)
}

/// Version 2: the signature, a command, a family, a length, addresses, and optional fields.
fn binary(buf: &[u8]) -> Result<ProxyHeader, BadProxyHeader> {
    // What is wrong is told as soon as it shows.
    let command = buf.get(12).map(|byte| (byte >> 4, byte & 15));
    if command.is_some_and(|command| !matches!(command, (2, 0 | 1))) {
        return Err(BadProxyHeader("the version or the command is unknown"));
    }
    let family = buf.get(13).copied();
    let local = command == Some((2, 0));
    let addresses = match family {
        None => return Ok(ProxyHeader::Partial),
        // §2.2: the receiver "must discard the protocol block including the family".
        Some(_) if local => 0,
        Some(0x00) => 0,
        Some(0x11) => 12,
        Some(0x21) => 36,
        Some(0x31) => 216,
        Some(_) => return Err(BadProxyHeader("the family is not of a stream")),
    };
    let Some(&[high, low]) = buf.get(14..16) else {
        return Ok(ProxyHeader::Partial);
    };
    let len = 16 + usize::from(u16::from_be_bytes([high, low]));
    if len > MAX_BINARY {
        return Err(BadProxyHeader("the header is too long"));
    }
    if len < 16 + addresses {
        return Err(BadProxyHeader("the header is too short for its family"));
    }
    let Some(header) = buf.get(16..len) else {
        return Ok(ProxyHeader::Partial);
    };
    if !local && family != Some(0) {
        check_fields(&header[addresses..])?;
    }
    let source = match (family, header) {
        _ if local => None,
        (Some(0x11), &[a, b, c, d, _, _, _, _, high, low, ..]) => {
            Some(([a, b, c, d], u16::from_be_bytes([high, low])).into())
        }
        (Some(0x21), _) => {
            let ip: Option<[u8; 16]> = header[..16].try_into().ok();
            ip.map(|ip| (ip, u16::from_be_bytes([header[32], header[33]])).into())
        }
        _ => None,
    };
    Ok(ProxyHeader::Found { len, source })
}

/// §2.2.x: each is a type, a length of two bytes, and bytes of that length; together they fill the header.
fn check_fields(mut fields: &[u8]) -> Result<(), BadProxyHeader> {
    while !fields.is_empty() {
        let rest = match *fields {
            [_, high, low, ref rest @ ..] => rest.get(u16::from_be_bytes([high, low]).into()..),
            _ => None,
        };
        fields = rest.ok_or(BadProxyHeader("a field goes beyond the header"))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn v2(command: u8, family: u8, payload: &[u8]) -> Vec<u8> {
        let mut header = SIGNATURE.to_vec();
        header.extend([0x20 | command, family]);
        header.extend((payload.len() as u16).to_be_bytes());
        header.extend(payload);
        header
    }

    const V4: &[u8] = &[192, 0, 2, 1, 198, 51, 100, 1, 0xDC, 0x04, 1, 0xBB];

    fn v6() -> Vec<u8> {
        let ip: Ipv6Addr = "2001:db8::7".parse().unwrap();
        let mut payload = ip.octets().to_vec();
        payload.extend(Ipv6Addr::LOCALHOST.octets());
        payload.extend([0x12, 0x34, 0, 80]);
        payload
    }

    fn sound() -> Vec<(Vec<u8>, Option<&'static str>)> {
        let with_fields = [V4, &[0x04, 0, 2, 9, 9, 0x20, 0, 0]].concat();
        let longest = [V4, &[0x04, 0x0F, 0xE1], &[7; 0xFE1]].concat();
        vec![
            (
                b"PROXY TCP4 192.0.2.1 198.51.100.1 56324 443\r\n".into(),
                Some("192.0.2.1:56324"),
            ),
            (
                b"PROXY TCP6 2001:db8::7 ::1 4660 80\r\n".into(),
                Some("[2001:db8::7]:4660"),
            ),
            (
                b"PROXY TCP4 0.0.0.0 255.255.255.255 0 65535\r\n".into(),
                Some("0.0.0.0:0"),
            ),
            (b"PROXY UNKNOWN\r\n".into(), None),
            (b"PROXY UNKNOWN ffff::1 whatever 65536 -1\r\n".into(), None),
            (v2(1, 0x11, V4), Some("192.0.2.1:56324")),
            (v2(1, 0x11, &with_fields), Some("192.0.2.1:56324")),
            (v2(1, 0x11, &longest), Some("192.0.2.1:56324")),
            (v2(1, 0x21, &v6()), Some("[2001:db8::7]:4660")),
            (v2(1, 0x31, &[b'/'; 216]), None),
            (v2(1, 0x00, b"anything"), None),
            (v2(0, 0x00, b""), None),
            (v2(0, 0x11, V4), None),
            (v2(0, 0xFF, b"x"), None),
        ]
    }

    /// At every split point: no verdict before the last byte, and whatever follows changes nothing.
    #[test]
    fn sound_headers_are_found_when_whole_and_not_before() {
        for (header, source) in sound() {
            for end in 0..header.len() {
                assert_eq!(
                    scan(&header[..end]),
                    Ok(ProxyHeader::Partial),
                    "{end} of {header:x?}"
                );
            }
            let found = ProxyHeader::Found {
                len: header.len(),
                source: source.map(|source| source.parse().unwrap()),
            };
            for rest in ["", "\r\n", "GET / HTTP/1.1\r\n", "PROXY "] {
                assert_eq!(scan(&[&header, rest.as_bytes()].concat()), Ok(found));
            }
        }
    }

    #[test]
    fn other_beginnings_are_not_headers() {
        let others: [&[u8]; 9] = [
            b"GET / HTTP/1.1\r\n",
            b"POST / HTTP/1.1\r\n",
            b"PROPFIND / HTTP/1.1\r\n",
            b"proxy TCP4",
            b"\r\nGET / HTTP/1.1\r\n",
            b"\r\n\r\nGET",
            b"\x16\x03\x01\x02\x00",
            b"\0",
            b"PROXY\t",
        ];
        for other in others {
            assert_eq!(scan(other), Ok(ProxyHeader::Absent), "{other:?}");
            // And never an error on the way there.
            for end in 0..other.len() {
                let seen = scan(&other[..end]);
                assert!(matches!(
                    seen,
                    Ok(ProxyHeader::Absent | ProxyHeader::Partial)
                ));
            }
        }
    }

    #[test]
    fn hostile_lines_are_refused() {
        for rest in [
            "TCP4 192.0.2.1 198.51.100.1 56324 443\n",
            "TCP4 192.0.2.1 198.51.100.1 56324 443\rX",
            "TCP4 192.0.2.1 198.51.100.1 56324 443 \r\n",
            "TCP4 192.0.2.1 198.51.100.1 56324\r\n",
            "TCP4 192.0.2.1 198.51.100.1 56324 443 1\r\n",
            "TCP4  192.0.2.1 198.51.100.1 56324 443\r\n",
            "TCP4\t192.0.2.1 198.51.100.1 56324 443\r\n",
            "TCP4 192.0.2.01 198.51.100.1 56324 443\r\n",
            "TCP4 192.0.2.256 198.51.100.1 56324 443\r\n",
            "TCP4 2001:db8::7 ::1 56324 443\r\n",
            "TCP6 192.0.2.1 198.51.100.1 56324 443\r\n",
            "TCP6 fe80::1%eth0 ::1 1 2\r\n",
            "TCP4 192.0.2.1 198.51.100.1 65536 443\r\n",
            "TCP4 192.0.2.1 198.51.100.1 056 443\r\n",
            "TCP4 192.0.2.1 198.51.100.1 +56 443\r\n",
            "TCP4 192.0.2.1 198.51.100.1 -1 443\r\n",
            "TCP4 192.0.2.1 198.51.100.1 1 x\r\n",
            "tcp4 192.0.2.1 198.51.100.1 1 2\r\n",
            "UDP4 192.0.2.1 198.51.100.1 1 2\r\n",
            " UNKNOWN\r\n",
            "\r\n",
            "TCP4 192.0.2.1\r\n 198.51.100.1 56324 443\r\n",
        ] {
            let line = format!("PROXY {rest}");
            assert!(scan(line.as_bytes()).is_err(), "{line:?}");
        }
        assert!(scan(b"PROXY TCP4 \xFF\r\n").is_err());
        let long = [b"PROXY UNKNOWN ".as_slice(), &[b'x'; 91]].concat();
        assert_eq!(scan(&long), Ok(ProxyHeader::Partial));
        assert!(scan(&[&long, b"\r\n".as_slice()].concat()).is_ok());
        assert!(scan(&[&long, b"x\r\n".as_slice()].concat()).is_err());
        assert!(scan(&[&long, b"xx".as_slice()].concat()).is_err());
    }

    #[test]
    fn hostile_binary_headers_are_refused_at_once() {
        let refused = |header: &[u8]| assert!(scan(header).is_err(), "{header:x?}");
        for byte in (0..=255).filter(|byte| ![0x20, 0x21].contains(byte)) {
            refused(&[SIGNATURE, &[byte]].concat());
        }
        for family in (0..=255).filter(|family| ![0, 0x11, 0x21, 0x31].contains(family)) {
            refused(&[SIGNATURE, &[0x21, family]].concat());
        }
        for (family, least) in [(0x11, 12_u16), (0x21, 36), (0x31, 216)] {
            let short = (least - 1).to_be_bytes();
            refused(&[SIGNATURE, &[0x21, family], &short].concat());
        }
        // A length is not waited for before it is believed.
        refused(&[SIGNATURE, &[0x21, 0x11, 0xFF, 0xFF]].concat());
        for fields in [
            &[4][..],
            &[4, 0],
            &[4, 0, 1],
            &[4, 0xFF, 0xFF, 1],
            &[4, 0, 0, 4],
        ] {
            refused(&v2(1, 0x11, &[V4, fields].concat()));
        }
    }

    proptest! {
        /// Whatever comes: no panic, and a verdict doesn't change when more comes.
        #[test]
        fn verdicts_are_final(which in 0..3_usize, noise in prop::collection::vec(any::<u8>(), 0..300)) {
            let bytes = [[&b""[..], LINE, SIGNATURE][which], &noise].concat();
            let mut verdict = Ok(ProxyHeader::Partial);
            for end in 0..=bytes.len() {
                let now = scan(&bytes[..end]);
                if verdict != Ok(ProxyHeader::Partial) {
                    prop_assert_eq!(now.is_err(), verdict.is_err());
                    prop_assert!(now == verdict || now.is_err());
                }
                if let Ok(ProxyHeader::Found { len, .. }) = now {
                    prop_assert!(len <= end);
                }
                verdict = now;
            }
        }
    }
}
