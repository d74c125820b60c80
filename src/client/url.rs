//! What the URL of a WebSocket may contain (RFC 6455 §3), and what the handshake makes of it.
//!
//! Nothing is decoded, and nothing encoded: a path reaches the server as it was written. Absent:
//! Unicode host names (write `xn--…`), and user info, which would end up in logs.

use std::net::Ipv6Addr;

use crate::proto::http::{is_authority, is_origin_form};

/// A URL, taken apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Url {
    pub(super) place: Place,
    /// The scheme is wss.
    pub(super) secure: bool,
    /// For `Host`: without the scheme's own port.
    pub(super) authority: String,
    /// Path and query.
    pub(super) target: String,
}

/// Where the server is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// A name or an address, the latter without brackets.
    Host { host: String, port: u16 },
    #[cfg(unix)]
    Unix(std::path::PathBuf),
}

impl Url {
    pub(super) fn parse(url: &str) -> Result<Self, &'static str> {
        if !url.bytes().all(|b| b.is_ascii_graphic()) {
            return Err("it may contain visible ASCII only; percent-encode the rest");
        }
        if url.contains('#') {
            return Err("it has a fragment, which RFC 6455 forbids");
        }
        let (scheme, rest) = url.split_once(':').ok_or("it has no scheme")?;
        match &*scheme.to_ascii_lowercase() {
            "ws" => Self::tcp(rest, false),
            "wss" if cfg!(feature = "tls") => Self::tcp(rest, true),
            "wss" => Err("this was built without TLS (feature `tls`)"),
            "ws+unix" => Self::unix(rest),
            "http" | "https" => Err("its scheme is not ws"),
            _ => Err("its scheme is unknown"),
        }
    }

    fn tcp(rest: &str, secure: bool) -> Result<Self, &'static str> {
        let default_port = if secure { 443 } else { 80 };
        let rest = rest.strip_prefix("//").ok_or("it has no host")?;
        let end = rest.find(['/', '?']).unwrap_or(rest.len());
        let (authority, target) = rest.split_at(end);
        if authority.contains('@') {
            return Err("it has user info: send an Authorization header instead");
        }
        let (host, port) = split_port(authority)?;
        if host.is_empty() {
            return Err("it has no host");
        }
        let port = match port {
            "" => default_port,
            digits => digits
                .parse()
                .map_err(|_| "its port is not a number up to 65535")?,
        };
        if port == 0 {
            return Err("nobody listens on port 0");
        }
        let shown = match port {
            port if port == default_port => host.to_owned(),
            port => format!("{host}:{port}"),
        };
        if !is_authority(shown.as_bytes()) {
            return Err("its host is invalid");
        }
        let host = host.trim_start_matches('[').trim_end_matches(']');
        Ok(Self {
            secure,
            place: Place::Host {
                host: host.to_owned(),
                port,
            },
            authority: shown,
            target: origin_form(target)?,
        })
    }

    /// `ws+unix:/path/of/socket`, and perhaps `:/path?query` behind it.
    #[cfg(unix)]
    fn unix(rest: &str) -> Result<Self, &'static str> {
        let rest = rest.strip_prefix("//").unwrap_or(rest);
        let (path, target) = rest.split_once(':').unwrap_or((rest, ""));
        if path.is_empty() {
            return Err("it has no path of a socket");
        }
        Ok(Self {
            secure: false,
            place: Place::Unix(path.into()),
            authority: "localhost".to_owned(),
            target: origin_form(target)?,
        })
    }

    #[cfg(not(unix))]
    fn unix(_: &str) -> Result<Self, &'static str> {
        Err("there are no Unix sockets on this system")
    }
}

/// Host, with its brackets, and digits.
fn split_port(authority: &str) -> Result<(&str, &str), &'static str> {
    let after = match authority.strip_prefix('[') {
        None => authority.find(':').unwrap_or(authority.len()),
        Some(rest) => {
            let end = rest.find(']').ok_or("its IPv6 address has no end")?;
            if rest[..end].parse::<Ipv6Addr>().is_err() {
                return Err("its IPv6 address is invalid");
            }
            end + 2
        }
    };
    let (host, port) = authority.split_at(after);
    match port.strip_prefix(':') {
        // RFC 3986 §3.2.3 allows a colon with nothing behind it.
        Some(digits) if digits.bytes().all(|b| b.is_ascii_digit()) => Ok((host, digits)),
        None if port.is_empty() => Ok((host, "")),
        _ => Err("its port is not a number up to 65535"),
    }
}

/// §3: "resource-name", which begins with a slash even if the URL has none.
fn origin_form(target: &str) -> Result<String, &'static str> {
    let slash = if target.starts_with('/') { "" } else { "/" };
    let target = [slash, target].concat();
    if is_origin_form(&target) {
        Ok(target)
    } else {
        Err("its path is invalid")
    }
}

/// The URL as an error may show it: without all that stands before the last `@`. A password that is not
/// encoded, and so may be why the URL is wrong, can have anything in it.
pub(super) fn without_secrets(url: &str) -> String {
    let Some(at) = url.rfind('@') else {
        return url.to_owned();
    };
    let is_scheme = |name: &&str| {
        name.bytes()
            .all(|byte| byte.is_ascii_alphabetic() || byte == b'+')
    };
    let scheme = url.split_once("://").map(|(name, _)| name);
    match scheme.filter(is_scheme) {
        Some(scheme) => format!("{scheme}://***{}", &url[at..]),
        None => format!("***{}", &url[at..]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tcp(url: &str) -> (String, u16, String, String) {
        let url = Url::parse(url).unwrap();
        match url.place {
            Place::Host { host, port } => (host, port, url.authority, url.target),
            #[cfg(unix)]
            Place::Unix(path) => panic!("{path:?}"),
        }
    }

    #[test]
    fn parts() {
        let cases = [
            ("ws://example.com", ("example.com", 80, "example.com", "/")),
            (
                "WS://example.com:80/",
                ("example.com", 80, "example.com", "/"),
            ),
            (
                "ws://example.com:/a",
                ("example.com", 80, "example.com", "/a"),
            ),
            ("ws://h:9001?q=1", ("h", 9001, "h:9001", "/?q=1")),
            (
                "ws://h/a%20b/?q=%C3%A4+x",
                ("h", 80, "h", "/a%20b/?q=%C3%A4+x"),
            ),
            ("ws://[::1]:9001/x", ("::1", 9001, "[::1]:9001", "/x")),
            (
                "ws://[2001:db8::1]",
                ("2001:db8::1", 80, "[2001:db8::1]", "/"),
            ),
            (
                "ws://127.0.0.1:65535/@:",
                ("127.0.0.1", 65535, "127.0.0.1:65535", "/@:"),
            ),
        ];
        for (url, (host, port, authority, target)) in cases {
            let expected = (
                host.to_owned(),
                port,
                authority.to_owned(),
                target.to_owned(),
            );
            assert_eq!(tcp(url), expected, "{url}");
        }
    }

    #[test]
    fn refusals() {
        let cases = [
            ("", "it has no scheme"),
            ("example.com", "it has no scheme"),
            ("localhost:9001", "its scheme is unknown"),
            ("http://example.com", "its scheme is not ws"),
            ("ws:example.com", "it has no host"),
            ("ws://", "it has no host"),
            ("ws:///path", "it has no host"),
            ("ws://:80/", "it has no host"),
            ("ws://h/#top", "it has a fragment, which RFC 6455 forbids"),
            (
                "ws://me:secret@h/",
                "it has user info: send an Authorization header instead",
            ),
            ("ws://h:0/", "nobody listens on port 0"),
            ("ws://h:65536/", "its port is not a number up to 65535"),
            ("ws://h:80x/", "its port is not a number up to 65535"),
            ("ws://::1/", "its port is not a number up to 65535"),
            ("ws://[::1/", "its IPv6 address has no end"),
            ("ws://[::g]/", "its IPv6 address is invalid"),
            ("ws://[::1]x/", "its port is not a number up to 65535"),
            ("ws://a\\b/", "its host is invalid"),
            (
                "ws://h/a b",
                "it may contain visible ASCII only; percent-encode the rest",
            ),
            (
                "ws://h/ä",
                "it may contain visible ASCII only; percent-encode the rest",
            ),
            (
                "ws://h/\r\nX: y",
                "it may contain visible ASCII only; percent-encode the rest",
            ),
        ];
        for (url, why) in cases {
            assert_eq!(Url::parse(url), Err(why), "{url}");
        }
    }

    #[cfg(unix)]
    #[test]
    fn unix_sockets() {
        for (url, path, target) in [
            ("ws+unix:/run/app.sock", "/run/app.sock", "/"),
            (
                "ws+unix:///run/app.sock:/chat?a=b:c",
                "/run/app.sock",
                "/chat?a=b:c",
            ),
            ("ws+unix:app.sock:?q", "app.sock", "/?q"),
        ] {
            let url = Url::parse(url).unwrap();
            assert_eq!(url.place, Place::Unix(path.into()));
            assert_eq!((&*url.authority, &*url.target), ("localhost", target));
        }
        assert!(Url::parse("ws+unix:").is_err());
    }

    #[test]
    fn secrets_are_not_shown() {
        for secret in [
            "ws://me:pass@h/x",
            "ws://me:pa/ss@h/x",
            "ws://me:pa?ss@h/x",
            "ws://me:p#a@ss@h/x",
            "ws://me:pa//ss@h/x",
            "wss:me:pass@h/x",
        ] {
            let shown = without_secrets(secret);
            assert!(shown.ends_with("***@h/x"), "{shown}");
            assert!(!shown.contains("pa") && !shown.contains("me"), "{shown}");
            assert!(Url::parse(secret).is_err());
        }
        assert_eq!(without_secrets("ws://me:pass@h/x"), "ws://***@h/x");
        assert_eq!(without_secrets("ws://h/ä"), "ws://h/ä");
    }
}
