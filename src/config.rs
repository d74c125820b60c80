//! Every setting with its unit and default. The builder's methods on [`Server`](crate::Server)
//! document what happens at each limit; here is only the data.

use std::time::Duration;

/// What happens to a message that finds the outbound queue of its peer full.
///
/// The queue counts every byte from [`Peer::send`](crate::Peer::send) until the kernel took it. It
/// is full for a message that would take it past the limit; only while the queue is at most half
/// full, one message is accepted whatever its size, so that a reply larger than what is left can be
/// sent at all. Control frames are always accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Overflow {
    /// Discard what is queued and close with 1013 (try again later). The default: a peer that does
    /// not keep up would otherwise work on stale data and never know.
    #[default]
    Close,
    /// Give the new message back in [`SendError::Full`](crate::SendError::Full).
    DropNewest,
    /// Drop the oldest messages that are not yet being written, until the new one fits.
    DropOldest,
}

/// Whether one message is compressed, where permessage-deflate was agreed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Compress {
    /// From the threshold of the settings on. What [`Peer::send`](crate::Peer::send) does.
    #[default]
    Auto,
    /// However short it is.
    Always,
    /// Not at all: it is compressed already, or holds a secret beside text that someone else chose
    /// (the length of what comes out tells about both; CRIME, BREACH).
    Never,
}

impl Compress {
    /// Whether to look into what the connection agreed on.
    #[cfg(feature = "deflate")]
    #[inline]
    pub(crate) fn wants(self, len: usize, config: &Config) -> bool {
        match (self, &config.deflate) {
            (_, None) | (Self::Never, _) => false,
            (Self::Always, Some(_)) => true,
            (Self::Auto, Some(deflate)) => len >= deflate.threshold,
        }
    }
}

/// Which origins a browser page may come from to open a WebSocket here.
///
/// Browsers send cookies along with any page's handshake, so a server that trusts cookies and does
/// not look at `Origin` can be used by every page on the web (cross-site WebSocket hijacking,
/// CWE-1385). A request without an `Origin` header does not come from a browser's page and passes.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Origin {
    /// The page must come from this very host and port: `Origin` must name what `Host` names. The
    /// default.
    #[default]
    SameHost,
    /// The origin must be one of these, as browsers write them: `https://example.com`, with a port
    /// if it isn't the scheme's own. Compared without regard to case.
    List(Vec<String>),
    /// Any page may connect. For public data, or when [`Handler::open`](crate::Handler::open)
    /// checks a token that no other page can have.
    Any,
}

impl Origin {
    /// Whether a request with these headers may proceed.
    pub(crate) fn allows(&self, origin: Option<&str>, host: Option<&str>) -> bool {
        let Some(origin) = origin else { return true };
        match self {
            Self::Any => true,
            Self::List(list) => list.iter().any(|one| one.eq_ignore_ascii_case(origin)),
            Self::SameHost => match (origin.split_once("://"), host) {
                (Some((scheme, from)), Some(host)) => same_host(scheme, from, host),
                _ => false,
            },
        }
    }
}

fn same_host(scheme: &str, from: &str, host: &str) -> bool {
    // Browsers leave the scheme's own port out of both headers; a proxy may put it in.
    let port = match scheme {
        "http" => ":80",
        "https" => ":443",
        _ => return false,
    };
    let plain = |name: &str| name.strip_suffix(port).unwrap_or(name).to_ascii_lowercase();
    plain(from) == plain(host)
}

/// What happens when a peer sends messages faster than [`MessageRate`] allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum OverRate {
    /// Stop reading from it until its allowance has grown again: TCP slows the sender down.
    #[default]
    Wait,
    /// Close with 1008 (policy violation).
    Close,
}

/// How many messages a peer may send: a token bucket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MessageRate {
    /// Messages a second in the long run; at least 1.
    pub per_second: u32,
    /// Messages at once after a silence; at least 1.
    pub burst: u32,
    /// What happens to a peer that sends more.
    pub over: OverRate,
}

/// The settings of a server as plain data.
#[derive(Clone, Debug)]
pub(crate) struct Config {
    pub(crate) loops: usize,
    pub(crate) workers: usize,
    /// At most 1 GiB.
    pub(crate) max_message: u32,
    pub(crate) max_head: usize,
    pub(crate) max_headers: usize,
    pub(crate) max_body: usize,
    pub(crate) handshake_timeout: Duration,
    pub(crate) ping_interval: Option<Duration>,
    pub(crate) pong_timeout: Duration,
    pub(crate) close_timeout: Duration,
    pub(crate) inbound_messages: usize,
    pub(crate) inbound_bytes: usize,
    pub(crate) outbound_bytes: usize,
    pub(crate) overflow: Overflow,
    pub(crate) max_connections: usize,
    pub(crate) max_connections_per_ip: usize,
    pub(crate) message_rate: Option<MessageRate>,
    pub(crate) nodelay: bool,
    pub(crate) origin: Origin,
    #[cfg(feature = "deflate")]
    pub(crate) deflate: Option<Deflate>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            loops: 1,
            workers: std::thread::available_parallelism().map_or(4, |n| n.get()),
            max_message: 1 << 20,
            max_head: 8 << 10,
            max_headers: 64,
            max_body: 64 << 10,
            handshake_timeout: Duration::from_secs(10),
            ping_interval: Some(Duration::from_secs(25)),
            pong_timeout: Duration::from_secs(20),
            close_timeout: Duration::from_secs(10),
            inbound_messages: 64,
            inbound_bytes: 1 << 20,
            outbound_bytes: 1 << 20,
            overflow: Overflow::Close,
            max_connections: usize::MAX,
            max_connections_per_ip: usize::MAX,
            message_rate: None,
            nodelay: true,
            origin: Origin::SameHost,
            #[cfg(feature = "deflate")]
            deflate: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn same_host_origins() {
        let same = |origin, host| Origin::SameHost.allows(Some(origin), Some(host));
        assert!(same("http://example.com", "example.com"));
        assert!(same("https://Example.com", "example.COM"));
        assert!(same("http://localhost:9001", "localhost:9001"));
        assert!(same("https://example.com", "example.com:443"));
        assert!(same("http://[::1]:80", "[::1]"));
        assert!(!same("http://example.com:81", "example.com"));
        assert!(!same("https://evil.com", "example.com"));
        assert!(!same("https://example.com.evil.com", "example.com"));
        assert!(!same("null", "null"));
        assert!(!same("file://", ""));
        assert!(!Origin::SameHost.allows(Some("http://a"), None));
        assert!(Origin::SameHost.allows(None, None));
    }

    #[test]
    fn listed_origins() {
        let list = Origin::List(vec!["https://example.com".into()]);
        assert!(list.allows(Some("https://EXAMPLE.com"), Some("api.example.com")));
        assert!(!list.allows(Some("http://example.com"), Some("example.com")));
        assert!(list.allows(None, Some("example.com")));
    }
}
