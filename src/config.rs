//! Every setting with its unit and default. The builder's methods on [`Server`](crate::Server)
//! document what happens at each limit; here is only the data.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::network::Networks;
use crate::patterns::Patterns;

/// In effect never, and small enough that no sum with it overflows.
pub(crate) const NEVER: Duration = Duration::from_secs(100 * 365 * 86_400);

/// What happens to a message that finds the outbound queue of its peer full.
///
/// The queue counts every byte from [`Peer::send`](crate::Peer::send) until the kernel has taken it. The queue is
/// full for a message that would take it past the limit. Exception: while at most half of the limit is queued,
/// one message of any size (up to 1 GiB) is accepted, so that a large reply can be sent at all. Close frames and
/// automatic pings and pongs are always accepted; pings and pongs that you send come back once twice the limit is
/// queued (with a limit of less than 4 KiB: the limit and 4 KiB).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Overflow {
    /// Discard the queue and close with 1013 (try again later). The default: a peer that does not keep up
    /// would otherwise miss messages and never know.
    #[default]
    Close,
    /// Give the new message back in [`SendError::Full`](crate::SendError::Full).
    DropNewest,
    /// Drop the oldest messages that are not yet being written, until the new one fits. Each message in the
    /// queue counts as 128 bytes more than its size: that is what keeping it separately costs.
    ///
    /// While an earlier broadcast is on its way to the loop, later messages wait behind it and are dropped, if
    /// necessary, only once they reach the queue. Past 2 GiB they are refused as with `DropNewest`.
    DropOldest,
}

/// Whether one message is compressed, where permessage-deflate was agreed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Compress {
    /// If it is at least as long as the threshold of the settings. This is how [`Peer::send`](crate::Peer::send)
    /// decides.
    #[default]
    Auto,
    /// Whatever its length. As with `Auto`, a message that compression would not make shorter is sent plain
    /// nevertheless, unless it is sent to one peer for which the window is kept (`Deflate::context_takeover`).
    Always,
    /// Never. For messages that are compressed already, or that hold a secret beside text that someone else chose:
    /// the compressed length reveals something about both (CRIME, BREACH).
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
    /// The page must come from the same host and port, default ports left out: `Origin` must name what `Host`
    /// names. `http` and `https` are not told apart; to insist on `https`, use `List`. The default.
    #[default]
    SameHost,
    /// The origin must be one of these, as browsers write them: `https://example.com`, followed by the port
    /// if that isn't the scheme's own. Compared without regard to case.
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

/// The header in which the proxies that a server [trusts](crate::Server::trust_proxies) tell the client's
/// address.
///
/// Only one can be believed: a proxy that writes one of these headers passes the other on as the client
/// wrote it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum ForwardedHeader {
    /// `X-Forwarded-For`, as nearly all proxies write it. The default.
    #[default]
    XForwardedFor,
    /// `Forwarded`, RFC 7239.
    Forwarded,
    /// Neither: they use the PROXY protocol, or the address is of no interest.
    None,
}

/// Whether connections from the proxies that a server [trusts](crate::Server::trust_proxies) begin
/// with a header of the PROXY protocol, version 1 or 2.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ProxyProtocol {
    /// They must; connections without the header are closed.
    Required,
    /// They may. Beware of proxies that send no such header: they pass on the first bytes of their client, and
    /// these may be a forged header.
    Optional,
}

/// What happens when a peer sends messages faster than [`MessageRate`] allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum OverRate {
    /// Stop reading from it until its allowance has grown again: TCP slows the sender down.
    #[default]
    Wait,
    /// Close with 1008 (policy violation). A peer that goes on sending is dropped 2 s after the close frame.
    Close,
}

/// How fast a [`TokenBucket`](crate::token_bucket::TokenBucket) fills and how much it holds, both in tokens. At least one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Rate {
    pub(crate) per_second: u32,
    pub(crate) burst: u32,
}

/// How many messages a peer may send, as a token bucket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MessageRate {
    /// Messages a second in the long run; at least 1.
    pub per_second: u32,
    /// Messages at once after a silence; at least 1.
    pub burst: u32,
    /// What happens to a peer that sends more.
    pub over: OverRate,
}

impl MessageRate {
    pub(crate) fn rate(self) -> Rate {
        Rate {
            per_second: self.per_second,
            burst: self.burst,
        }
    }
}

/// How many bytes a peer may send, as a token bucket. Frames of every kind count, headers included, and compressed
/// messages at their compressed size; the overhead of TLS does not count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ByteRate {
    /// Bytes a second in the long run; at least 1.
    pub per_second: u32,
    /// Bytes at once after a silence; at least 1. It is checked after each read, so one read
    /// ([`Server::read_buffer`](crate::Server::read_buffer), 64 KiB by default; up to 256 KiB within a large
    /// message) may overdraw it. With [`OverRate::Wait`], nothing is read then until the debt is paid.
    pub burst: u32,
    /// What happens to a peer that sends more.
    pub over: OverRate,
}

impl ByteRate {
    pub(crate) fn rate(self) -> Rate {
        Rate {
            per_second: self.per_second,
            burst: self.burst,
        }
    }
}

/// Settings of permessage-deflate (RFC 7692), the compression of messages.
///
/// The defaults compress each message alone, in both directions: no connection holds any compression
/// state, and one compressed message may go to many peers. They favour speed and a small machine.
///
/// | setting | default | meaning |
/// |---|---|---|
/// | [`level`](Self::level) | 1 | effort, 1 (fastest) to 9 (smallest) |
/// | [`threshold`](Self::threshold) | 1024 bytes | shorter messages are sent as they are |
/// | [`context_takeover`](Self::context_takeover) | no, no | messages may refer to those before them |
/// | [`window_bits`](Self::window_bits) | 15, 15 | how far back, as a power of two of bytes |
///
/// "Send" and "receive" are from our own point of view, whichever side of the connection we are on.
///
/// A message is inflated up to the limit for messages and no further, so a small frame can't become
/// a large allocation. If a secret and text that a stranger chose are compressed together, the stranger
/// may be able to guess the secret from the length (BREACH): send such messages uncompressed
/// ([`Peer::send_with`](crate::Peer::send_with),
/// [`ServerHandle::broadcast_with`](crate::ServerHandle::broadcast_with),
/// [`Server::compress`](crate::Server::compress) for topics), or don't compress.
#[cfg(feature = "deflate")]
#[derive(Clone, Debug)]
pub struct Deflate {
    pub(crate) level: u32,
    pub(crate) threshold: usize,
    pub(crate) send_takeover: bool,
    pub(crate) receive_takeover: bool,
    pub(crate) send_bits: u8,
    pub(crate) receive_bits: u8,
}

#[cfg(feature = "deflate")]
impl Deflate {
    /// The defaults: see the table.
    pub fn new() -> Self {
        Self {
            level: 1,
            threshold: 1024,
            send_takeover: false,
            receive_takeover: false,
            send_bits: 15,
            receive_bits: 15,
        }
    }

    /// The effort, from 1 (fastest) to 9 (smallest). Default: 1. Anything else is an
    /// [`Error::Config`](crate::Error::Config) when the server or client is started.
    ///
    /// Measured on single messages: level 1 takes half to three quarters of the time of level 2, and a tenth to a
    /// half of that of level 9. JSON of 1 KiB shrinks to 0.53 with level 1 and 0.41 with level 6 if each record is
    /// different, and to 0.19 and 0.17 if the records are much alike. Prose of 16 KiB shrinks to 0.63 with level 1
    /// and 0.46 with level 2. So where bytes are dear, level 2 or 6 is worth its time.
    #[must_use]
    pub fn level(mut self, level: u32) -> Self {
        self.level = level;
        self
    }

    /// Messages shorter than `bytes` are sent uncompressed: there is little to gain from them. Default:
    /// 1024. Received messages may always be compressed.
    #[must_use]
    pub fn threshold(mut self, bytes: usize) -> Self {
        self.threshold = bytes;
        self
    }

    /// Whether the window is kept between messages, in what we send and in what we receive, if the
    /// peer agrees. Many small messages that resemble each other then shrink far more. Default:
    /// neither.
    ///
    /// It costs memory *per connection*, for as long as the connection lives: 371 KiB for sending with 15 window
    /// bits and 245 KiB with 9, and 47 KiB for receiving with any. Without takeover it is as much per *thread*.
    #[must_use]
    pub fn context_takeover(mut self, send: bool, receive: bool) -> Self {
        self.send_takeover = send;
        self.receive_takeover = receive;
        self
    }

    /// The largest window for sending and for receiving, as the exponent of a power of two of bytes: 9 (512 bytes)
    /// to 15 (32 KiB). Default: 15 for both. Anything else is an [`Error::Config`](crate::Error::Config) when the
    /// server or client is started.
    ///
    /// Sending: the peer may ask for a smaller window, down to 9, and gets it. A server rounds the size down to 12
    /// or 9, as messages to many are compressed once for each size. If the peer asks for 8, which the compressor
    /// doesn't have, a server goes on without compression, and a client fails. Receiving: a client that does not
    /// offer to keep to a smaller window is let in all the same.
    #[must_use]
    pub fn window_bits(mut self, send: u8, receive: u8) -> Self {
        self.send_bits = send;
        self.receive_bits = receive;
        self
    }

    /// Whether these settings make sense, or what is wrong with them.
    pub(crate) fn check(&self) -> Result<(), &'static str> {
        let window = |bits: u8| (9..=15).contains(&bits);
        if !(1..=9).contains(&self.level) {
            return Err("the level of Deflate must be 1 to 9");
        }
        if !window(self.send_bits) || !window(self.receive_bits) {
            return Err("the window_bits of Deflate must be 9 to 15");
        }
        Ok(())
    }
}

#[cfg(feature = "deflate")]
impl Default for Deflate {
    fn default() -> Self {
        Self::new()
    }
}

/// What a loop calls when it has been quiet; see [`Server::on_quiet`](crate::Server::on_quiet).
#[derive(Clone)]
pub(crate) struct OnQuiet(pub(crate) Arc<dyn Fn() + Send + Sync>);

impl fmt::Debug for OnQuiet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("OnQuiet")
    }
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
    /// Topics of one connection.
    pub(crate) max_subscriptions: usize,
    /// Bytes of histories that nobody subscribes to.
    pub(crate) idle_histories: usize,
    pub(crate) max_connections: usize,
    pub(crate) max_connections_per_ip: usize,
    /// Bits of an IPv6 address that count as one address.
    pub(crate) ipv6_prefix: u8,
    /// Connections accepted, on the whole server and from one address.
    pub(crate) accept_rate: Option<Rate>,
    pub(crate) accept_rate_per_ip: Option<Rate>,
    pub(crate) max_handshakes: usize,
    pub(crate) message_rate: Option<MessageRate>,
    pub(crate) byte_rate: Option<ByteRate>,
    /// The proxies that are believed.
    pub(crate) proxies: Networks,
    pub(crate) forwarded_header: ForwardedHeader,
    pub(crate) proxy_protocol: Option<ProxyProtocol>,
    pub(crate) nodelay: bool,
    pub(crate) read_buffer: usize,
    pub(crate) on_quiet: Option<OnQuiet>,
    pub(crate) origin: Origin,
    /// The best first.
    pub(crate) subprotocols: Vec<String>,
    #[cfg(feature = "tls")]
    pub(crate) max_tls_handshakes: usize,
    #[cfg(feature = "deflate")]
    pub(crate) deflate: Option<Deflate>,
    pub(crate) topic_compression: Patterns<Compress>,
}

impl Config {
    /// Whether the times make sense, or what is wrong with them.
    pub(crate) fn check_times(&self) -> Result<(), &'static str> {
        if self.handshake_timeout.is_zero() {
            return Err("handshake_timeout must be more than 0");
        }
        if self.ping_interval == Some(Duration::ZERO)
            || (self.ping_interval.is_some() && self.pong_timeout.is_zero())
        {
            return Err("both times of ping must be more than 0");
        }
        Ok(())
    }
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
            max_subscriptions: 1024,
            idle_histories: 256 << 20,
            max_connections: usize::MAX,
            max_connections_per_ip: usize::MAX,
            ipv6_prefix: 64,
            accept_rate: None,
            accept_rate_per_ip: None,
            max_handshakes: usize::MAX,
            message_rate: None,
            byte_rate: None,
            proxies: Networks::default(),
            forwarded_header: ForwardedHeader::default(),
            proxy_protocol: None,
            nodelay: true,
            read_buffer: 64 << 10,
            on_quiet: None,
            origin: Origin::SameHost,
            subprotocols: Vec::new(),
            #[cfg(feature = "tls")]
            max_tls_handshakes: 256,
            #[cfg(feature = "deflate")]
            deflate: None,
            topic_compression: Patterns::default(),
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

    #[cfg(feature = "deflate")]
    #[test]
    fn settings_of_compression_are_checked() {
        assert_eq!(Deflate::new().check(), Ok(()));
        for bits in 0..=255 {
            let sound = (9..=15).contains(&bits);
            let deflate = Deflate::new();
            assert_eq!(deflate.clone().window_bits(bits, 15).check().is_ok(), sound);
            assert_eq!(deflate.window_bits(15, bits).check().is_ok(), sound);
        }
        for level in [0, 1, 9, 10, u32::MAX] {
            let sound = (1..=9).contains(&level);
            assert_eq!(Deflate::default().level(level).check().is_ok(), sound);
        }
    }

    #[test]
    fn listed_origins() {
        let list = Origin::List(vec!["https://example.com".into()]);
        assert!(list.allows(Some("https://EXAMPLE.com"), Some("api.example.com")));
        assert!(!list.allows(Some("http://example.com"), Some("example.com")));
        assert!(list.allows(None, Some("example.com")));
    }
}
