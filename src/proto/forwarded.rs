//! Who the client is behind proxies that speak HTTP: `X-Forwarded-For`, and `Forwarded` (RFC 7239).
//!
//! Anybody can write these headers, so they are read from the right: the last entry was added by the
//! proxy that is connected, and is as true as that proxy; the one before it by the host that this entry
//! names, and so on. The first address that is not a trusted proxy's is the client, and everything to the
//! left of it is only what the client says.
//!
//! Pure data: headers and addresses in, an address out.

use std::net::{IpAddr, SocketAddr};

use http::{HeaderMap, HeaderName, HeaderValue, header};

use super::http::HttpError;
use crate::addr::RemoteAddr;
use crate::config::ForwardedHeader;
use crate::network::Networks;

const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

const MALFORMED: HttpError = HttpError::bad_request("the Forwarded header is malformed");

/// The client of a request that `direct` has brought.
///
/// An entry that tells no address (`unknown`, a name, nonsense) ends the search: then it is the last
/// one found, the proxy that wrote the entry. A `Forwarded` that can't be parsed is refused, as it can't
/// be read from the right.
pub(crate) fn client(
    direct: RemoteAddr,
    headers: &HeaderMap,
    which: ForwardedHeader,
    trusted: &Networks,
) -> Result<RemoteAddr, HttpError> {
    if !trusted.contains(direct.ip()) {
        return Ok(direct);
    }
    match which {
        ForwardedHeader::None => Ok(direct),
        ForwardedHeader::XForwardedFor => {
            let values = headers.get_all(X_FORWARDED_FOR).iter().rev();
            let entries = values.flat_map(|value| value.as_bytes().rsplit(|b| *b == b','));
            let entries = entries.map(<[u8]>::trim_ascii).filter(|e| !e.is_empty());
            let mut nodes = entries.map(|entry| node(std::str::from_utf8(entry).ok()?));
            Ok(walk(direct, &mut nodes, trusted))
        }
        ForwardedHeader::Forwarded => {
            let mut nodes = Vec::new();
            for value in headers.get_all(header::FORWARDED) {
                forwarded(value, &mut nodes)?;
            }
            Ok(walk(direct, &mut nodes.into_iter().rev(), trusted))
        }
    }
}

/// From proxy to proxy; `nodes` begins with the last.
fn walk(
    direct: RemoteAddr,
    nodes: &mut dyn Iterator<Item = Option<SocketAddr>>,
    trusted: &Networks,
) -> RemoteAddr {
    let mut at = direct;
    while trusted.contains(at.ip()) {
        match nodes.next() {
            Some(Some(node)) => at = RemoteAddr::Ip(node),
            Some(None) | None => break,
        }
    }
    at
}

/// `192.0.2.1`, `192.0.2.1:80`, `2001:db8::1`, `[2001:db8::1]` or `[2001:db8::1]:80`; the port is 0 where
/// none is told.
fn node(text: &str) -> Option<SocketAddr> {
    if let Some(inside) = text.strip_prefix('[').and_then(|t| t.strip_suffix(']')) {
        return Some((IpAddr::V6(inside.parse().ok()?), 0).into());
    }
    let alone = text.parse().ok().map(|ip: IpAddr| (ip, 0).into());
    let addr: SocketAddr = alone.or_else(|| text.parse().ok())?;
    // A scope means something on the machine that wrote it only.
    let scoped = matches!(addr, SocketAddr::V6(addr) if addr.scope_id() != 0);
    (!scoped).then(|| (addr.ip().to_canonical(), addr.port()).into())
}

/// RFC 7239 §4: elements between commas, of pairs between semicolons; of each, the address in `for`.
fn forwarded(value: &HeaderValue, nodes: &mut Vec<Option<SocketAddr>>) -> Result<(), HttpError> {
    let mut rest = value.as_bytes().trim_ascii();
    loop {
        let mut found: Option<Option<SocketAddr>> = None;
        let mut empty = true;
        // One element.
        loop {
            let (name, after) = token(rest);
            if !name.is_empty() {
                empty = false;
                let after = after.strip_prefix(b"=").ok_or(MALFORMED)?;
                let (value, after) = token_or_quoted(after)?;
                if name.eq_ignore_ascii_case(b"for") {
                    // "Each parameter MUST NOT occur more than once per field-value."
                    let node = std::str::from_utf8(&value).ok().and_then(bracketed_node);
                    if found.replace(node).is_some() {
                        return Err(MALFORMED);
                    }
                }
                rest = after.trim_ascii_start();
            }
            match rest.strip_prefix(b";") {
                Some(after) => rest = after.trim_ascii_start(),
                None => break,
            }
        }
        if !empty {
            nodes.push(found.flatten());
        }
        match rest {
            [] => return Ok(()),
            [b',', after @ ..] => rest = after.trim_ascii_start(),
            _ => return Err(MALFORMED),
        }
    }
}

/// §6: IPv6 addresses are in brackets here, and a port may be obfuscated, which counts as no port.
fn bracketed_node(text: &str) -> Option<SocketAddr> {
    let hidden = |port: &str| {
        let plain = |b: u8| b.is_ascii_alphanumeric() || b"._-".contains(&b);
        !port.is_empty() && port.bytes().all(plain)
    };
    let text = match text.rsplit_once(":_") {
        Some((host, port)) if hidden(port) => host,
        _ => text,
    };
    let bare_v6 = !text.starts_with('[') && text.matches(':').count() > 1;
    node(text).filter(|_| !bare_v6)
}

fn token(text: &[u8]) -> (&[u8], &[u8]) {
    let end = text.iter().position(|b| !super::http::is_tchar(*b));
    text.split_at(end.unwrap_or(text.len()))
}

/// RFC 9110 §5.6.4.
fn token_or_quoted(text: &[u8]) -> Result<(Vec<u8>, &[u8]), HttpError> {
    let Some(mut rest) = text.strip_prefix(b"\"") else {
        let (token, rest) = token(text);
        return match token {
            [] => Err(MALFORMED),
            _ => Ok((token.to_vec(), rest)),
        };
    };
    let mut value = Vec::new();
    loop {
        match rest {
            [b'"', rest @ ..] => return Ok((value, rest)),
            [b'\\', escaped, after @ ..] => {
                value.push(*escaped);
                rest = after;
            }
            [byte, after @ ..] if *byte != b'\\' => {
                value.push(*byte);
                rest = after;
            }
            _ => return Err(MALFORMED),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const PROXY: &str = "10.0.0.1:4000";

    fn trusted() -> Networks {
        let mut networks = Networks::default();
        assert!(networks.add("10.0.0.0/8") && networks.add("2001:db8::/32"));
        networks
    }

    fn of(which: ForwardedHeader, direct: &str, lines: &[&[u8]]) -> Result<String, HttpError> {
        let mut headers = HeaderMap::new();
        let name = match which {
            ForwardedHeader::Forwarded => header::FORWARDED,
            _ => X_FORWARDED_FOR,
        };
        for line in lines {
            headers.append(&name, HeaderValue::from_bytes(line).unwrap());
        }
        let direct = RemoteAddr::Ip(direct.parse().unwrap());
        client(direct, &headers, which, &trusted()).map(|addr| addr.to_string())
    }

    fn x(lines: &[&str]) -> String {
        let lines: Vec<_> = lines.iter().map(|line| line.as_bytes()).collect();
        of(ForwardedHeader::XForwardedFor, PROXY, &lines).unwrap()
    }

    fn f(lines: &[&str]) -> Result<String, HttpError> {
        let lines: Vec<_> = lines.iter().map(|line| line.as_bytes()).collect();
        of(ForwardedHeader::Forwarded, PROXY, &lines)
    }

    #[test]
    fn the_rightmost_stranger_is_the_client() {
        assert_eq!(x(&[]), PROXY);
        assert_eq!(x(&["192.0.2.1"]), "192.0.2.1:0");
        assert_eq!(x(&["1.1.1.1, 192.0.2.1"]), "192.0.2.1:0");
        assert_eq!(x(&["1.1.1.1", "192.0.2.1, 10.9.9.9"]), "192.0.2.1:0");
        assert_eq!(
            x(&["1.1.1.1 ,,192.0.2.1:77,\t2001:db8::5 , "]),
            "192.0.2.1:77"
        );
        assert_eq!(
            x(&["[2001:dead::1]:99,[2001:db8::5]:1,[2001:db8::5]"]),
            "[2001:dead::1]:99"
        );
        assert_eq!(x(&["::ffff:192.0.2.1"]), "192.0.2.1:0");
        // All of them are ours: the farthest.
        assert_eq!(x(&["10.0.0.3, 10.0.0.2"]), "10.0.0.3:0");
    }

    #[test]
    fn what_a_stranger_claims_is_ignored() {
        let claims: [&[u8]; 3] = [b"127.0.0.1", b"for=127.0.0.1", b"for=\"broken"];
        for claim in claims {
            for which in [ForwardedHeader::XForwardedFor, ForwardedHeader::Forwarded] {
                let outcome = of(which, "192.0.2.9:5", &[claim]);
                assert_eq!(outcome.as_deref(), Ok("192.0.2.9:5"));
            }
        }
        assert_eq!(
            of(ForwardedHeader::None, PROXY, &[b"192.0.2.1"]).unwrap(),
            PROXY
        );
    }

    #[test]
    fn what_is_no_address_ends_the_search() {
        for entry in [
            "unknown",
            "_hidden",
            "localhost",
            "1.2.3",
            "1.2.3.4.5",
            "1.2.3.04",
            "1.2.3.4:",
            "1.2.3.4:65536",
            "[::1",
            "::1]",
            "[1.2.3.4]",
            "fe80::1%2",
            "[fe80::1%2]:80",
            "\u{e9}",
            "1.2.3.4 5",
            "'1.2.3.4'",
        ] {
            assert_eq!(x(&[&format!("192.0.2.1, {entry}")]), PROXY, "{entry}");
            assert_eq!(
                x(&[&format!("192.0.2.1, {entry}, 10.0.0.2")]),
                "10.0.0.2:0",
                "{entry}"
            );
            // To the left of the client nobody looks.
            assert_eq!(
                x(&[&format!("{entry}, 192.0.2.1")]),
                "192.0.2.1:0",
                "{entry}"
            );
        }
        assert_eq!(
            of(ForwardedHeader::XForwardedFor, PROXY, &[b"\xFF"]).unwrap(),
            PROXY
        );
    }

    #[test]
    fn forwarded_is_read_as_rfc_7239_writes_it() {
        for (lines, client) in [
            (
                &["for=192.0.2.60;proto=http;by=203.0.113.43"][..],
                "192.0.2.60:0",
            ),
            (
                &["For=\"[2001:dead:cafe::17]:4711\""],
                "[2001:dead:cafe::17]:4711",
            ),
            (&["for=192.0.2.43, for=198.51.100.17"], "198.51.100.17:0"),
            (
                &["for=192.0.2.43", "for=198.51.100.17;by=_x,for=10.1.2.3"],
                "198.51.100.17:0",
            ),
            (&["for=\"1.1.1.1:47011\", for=unknown"], PROXY),
            (&["for=\"_gazonk\""], PROXY),
            (&["for=\"192.0.2.43:_port-1\""], "192.0.2.43:0"),
            (&["for=\"[2001:db8::1]:_p.1\""], "[2001:db8::1]:0"),
            (&["for=\"2001:db8::1:_p\""], PROXY),
            (&["for=\"192.0.2.43:_\""], PROXY),
            (&["for=\"192.0.2.43:_a b\""], PROXY),
            (&["for=\"_host:_port\""], PROXY),
            (&["proto=https;for=\"\\1.1.1.1\""], "1.1.1.1:0"),
            (&["for=1.1.1.1, proto=https"], PROXY),
            (&[";;for=1.1.1.1;; ; proto=http , ,"], "1.1.1.1:0"),
            (&["for=\"2001:dead::1\""], PROXY),
            (&["host=\"a,b;for=9.9.9.9\";for=1.1.1.1"], "1.1.1.1:0"),
            (&[""], PROXY),
        ] {
            assert_eq!(f(lines).as_deref(), Ok(client), "{lines:?}");
        }
        for line in [
            "for",
            "for=",
            "=1.1.1.1",
            "for=1.1.1.1:80",
            "for=[::1]",
            "for=\"1.1.1.1",
            "for=\"1.1.1.1\\",
            "for=1.1.1.1;for=2.2.2.2",
            "for = 1.1.1.1",
            "for=1.1.1.1 for=2.2.2.2",
            "for=\"a\"b",
            "\"for\"=1.1.1.1",
            "1.1.1.1",
        ] {
            assert_eq!(f(&[line]), Err(MALFORMED), "{line}");
            assert_eq!(f(&["for=1.1.1.1", line]), Err(MALFORMED), "{line}");
        }
    }

    proptest! {
        /// Whatever a client writes: what the proxy appends is found, or all of it is refused.
        #[test]
        fn nobody_hides_behind_nonsense(claim in "[ -~]{0,60}") {
            prop_assert_eq!(x(&[&claim, "192.0.2.1"]), "192.0.2.1:0");
            let joined = format!("{claim}, 192.0.2.1");
            prop_assert_eq!(x(&[&joined]), "192.0.2.1:0");
            let joined = format!("{claim}, for=192.0.2.1");
            if let Ok(client) = f(&[&joined]) {
                prop_assert_eq!(client, "192.0.2.1:0");
            }
        }
    }
}
