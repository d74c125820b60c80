//! Setting a server up.

#[cfg(unix)]
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use super::handle::ServerHandle;
use crate::backplane::Backplane;
#[cfg(feature = "deflate")]
use crate::config::Deflate;
use crate::config::{
    ByteRate, Compress, Config, ForwardedHeader, MessageRate, OnQuiet, Origin, Overflow,
    ProxyProtocol, Rate,
};
use crate::error::{Error, Result};
use crate::history::History;
use crate::link::Feeds;
#[cfg(feature = "tls")]
use crate::net::Tls;
use crate::net::{Bound, Listen, Listener};

/// A server that is listening and not yet running: choose the settings, then [`run`](Self::run) it
/// or [`start`](Self::start) it.
///
/// ```no_run
/// use framemill::{Message, Origin, Peer, Server};
/// use std::time::Duration;
///
/// fn main() -> framemill::Result<()> {
///     let handle = Server::bind("0.0.0.0:9001")?
///         .workers(16)                    // handlers that may block at the same time
///         .max_message(64 << 10)          // bytes
///         .max_connections_per_ip(100)
///         .origin(Origin::List(vec!["https://example.com".into()]))
///         .start(|peer: &Peer, message: Message| peer.send(message))?;
///     println!("listening on {}", handle.local_addrs().join(" "));
///     std::io::stdin().read_line(&mut String::new())?; // until somebody presses Enter
///     handle.shutdown(Duration::from_secs(10));
///     Ok(())
/// }
/// ```
///
/// # Limits
///
/// The time and memory that one connection can take are limited by default. The number of connections, the rate
/// at which they may come, and how much each may send are not: these limits are `unlimited` or `off` below. A
/// server that faces the internet should set them.
///
/// | setting | default | at the limit |
/// |---|---|---|
/// | [`handshake_timeout`](Self::handshake_timeout) | 10 s | 408, or close without an answer |
/// | [`max_head`](Self::max_head) | 8 KiB, 64 headers | 431 (414 for the first line) |
/// | [`max_body`](Self::max_body) | 64 KiB | 413 |
/// | [`max_message`](Self::max_message) | 1 MiB | close 1009 |
/// | [`ping`](Self::ping) | after 25 s of silence; 20 s for the pong | drop |
/// | [`close_timeout`](Self::close_timeout) | 10 s | drop |
/// | [`inbound_limit`](Self::inbound_limit) | 64 messages or 1 MiB | stop reading |
/// | [`outbound_limit`](Self::outbound_limit) | 1 MiB | [`Overflow::Close`]: 1013 |
/// | [`max_subscriptions`](Self::max_subscriptions) | 1,024 topics a connection | `subscribe` returns `false`; followers are sent `refused` |
/// | [`history`](Self::history) of one topic | 64 MiB ([`History::no_larger_than`]) | the oldest messages go |
/// | [`idle_histories`](Self::idle_histories) | 256 MiB | the topics published to least recently are forgotten |
/// | [`max_connections`](Self::max_connections) | unlimited | 503 |
/// | [`max_connections_per_ip`](Self::max_connections_per_ip) | unlimited | 429 |
/// | [`accept_rate`](Self::accept_rate) | off | wait to be accepted |
/// | [`accept_rate_per_ip`](Self::accept_rate_per_ip) | off | 429 |
/// | [`max_handshakes`](Self::max_handshakes) | unlimited | wait to be accepted |
/// | `max_tls_handshakes` (feature `tls`) | 256 | wait to be accepted |
/// | [`message_rate`](Self::message_rate) | off | stop reading, or close 1008 |
/// | [`byte_rate`](Self::byte_rate) | off | stop reading, or close 1008 |
/// | [`origin`](Self::origin) | same host | 403 |
#[derive(Debug)]
#[must_use = "a server does nothing until it is run or started"]
pub struct Server {
    pub(super) config: Config,
    #[cfg(feature = "tls")]
    pub(super) tls: Option<Tls>,
    pub(super) listeners: Vec<Listener>,
    pub(super) notify_systemd: bool,
    #[cfg(unix)]
    pub(super) shutdown_on: Option<(OwnedFd, Duration)>,
    pub(super) backplane: Option<Arc<dyn Backplane>>,
    pub(super) histories: Feeds,
    pub(super) handle: Unstarted,
}

/// The handle to a server that serves nobody yet. If it never will, timers and rooms that were made for it end.
#[derive(Debug)]
pub(super) struct Unstarted {
    handle: ServerHandle,
    serves: bool,
}

impl Unstarted {
    fn new() -> Self {
        Self {
            handle: ServerHandle::new(),
            serves: false,
        }
    }

    pub(super) fn handle(&self) -> &ServerHandle {
        &self.handle
    }

    pub(super) fn started(mut self) {
        self.serves = true;
    }
}

impl Drop for Unstarted {
    fn drop(&mut self) {
        if !self.serves {
            self.handle.services().stop_ticker();
            self.handle.services().end();
        }
    }
}

impl Server {
    /// Listens on `addr`: `"127.0.0.1:9001"`, `"unix:/run/app.sock"`, a listener that is already
    /// open, and more; see [`Listen`].
    ///
    /// # Errors
    /// [`Error::Bind`] if the address can't be listened on, [`Error::Config`] if it can't be read.
    pub fn bind(addr: impl Listen) -> Result<Self> {
        let server = Self {
            config: Config::default(),
            #[cfg(feature = "tls")]
            tls: None,
            listeners: Vec::new(),
            notify_systemd: false,
            #[cfg(unix)]
            shutdown_on: None,
            backplane: None,
            histories: Feeds::default(),
            handle: Unstarted::new(),
        };
        server.and_bind(addr)
    }

    /// Listens on one more address.
    ///
    /// # Errors
    /// As for [`bind`](Self::bind).
    pub fn and_bind(mut self, addr: impl Listen) -> Result<Self> {
        let bound = addr.listen()?.into_iter();
        let listeners: Vec<_> = bound.map(|Bound(listener)| listener).collect();
        let addrs: std::io::Result<_> = listeners.iter().map(Listener::local_addr).collect();
        self.handle.handle().add_addrs(addrs?);
        self.listeners.extend(listeners);
        Ok(self)
    }

    /// The handle to this server, even before it runs: for handlers that
    /// [broadcast](ServerHandle::broadcast), for instance.
    pub fn handle(&self) -> ServerHandle {
        self.handle.handle().clone()
    }

    // ---- threads ----

    /// Event-loop threads, 1 to 256; the thread that calls [`run`](Self::run) is the first of them. Anything else is an
    /// [`Error::Config`] when the server is started. Default: 1, which is enough for several hundred thousand messages
    /// a second. More loops pay off when the thread of one is busy all the time.
    pub fn loops(mut self, loops: usize) -> Self {
        self.config.loops = loops;
        self
    }

    /// Worker threads, which run the handler, at most 4,096. Anything else is an [`Error::Config`] when the
    /// server is started. Default: one per core. Handlers that wait a lot need more workers. With 0, handlers run
    /// on the loops, which is fastest and right for single-core machines; then they must not block.
    pub fn workers(mut self, workers: usize) -> Self {
        self.config.workers = workers;
        self
    }

    // ---- limits ----

    /// The longest message, in bytes, assembled from all its fragments: 1 byte to 1 GiB. Default: 1 MiB.
    /// Anything else is an [`Error::Config`] when the server is started. Memory grows with the bytes that have
    /// arrived, never with the length that a header claims.
    pub fn max_message(mut self, bytes: usize) -> Self {
        // What does not fit is over the most that `check` allows anyway.
        self.config.max_message = bytes.try_into().unwrap_or(u32::MAX);
        self
    }

    /// The longest request head, 64 bytes to 1 GiB, and the most headers. Default: 8 KiB, 64. Anything
    /// else is an [`Error::Config`] when the server is started.
    pub fn max_head(mut self, bytes: usize, headers: usize) -> Self {
        self.config.max_head = bytes;
        self.config.max_headers = headers;
        self
    }

    /// The longest body of a plain HTTP request, in bytes. Default: 64 KiB.
    pub fn max_body(mut self, bytes: usize) -> Self {
        self.config.max_body = bytes;
        self
    }

    /// How many messages, and how many bytes of them, may wait for the handler of one connection, each from 1 to
    /// 2³⁰. Default: 64, 1 MiB. Anything else is an [`Error::Config`] when the server is started. When either
    /// limit is reached, the connection is not read from until a quarter is left; TCP slows the sender down. The
    /// message that reaches the limit in bytes is still taken whole.
    pub fn inbound_limit(mut self, messages: usize, bytes: usize) -> Self {
        self.config.inbound_messages = messages;
        self.config.inbound_bytes = bytes;
        self
    }

    /// How many bytes may wait to be written to one peer, at most 1 GiB. Default: 1 MiB. Anything else is
    /// an [`Error::Config`] when the server is started. [`overflow`](Self::overflow) sets what happens at the limit.
    ///
    /// Once more than half of the limit is queued, messages *from* that peer wait until a quarter is left: a peer
    /// that asks without reading the answers is slowed down, not overflowed.
    pub fn outbound_limit(mut self, bytes: usize) -> Self {
        self.config.outbound_bytes = bytes;
        self
    }

    /// What happens to a message that finds the queue of its peer full. Default: [`Overflow::Close`].
    pub fn overflow(mut self, overflow: Overflow) -> Self {
        self.config.overflow = overflow;
        self
    }

    /// The most topics that one connection may subscribe to, including those whose missed messages are still
    /// being sent. Default: 1,024. One more is refused: [`Peer::subscribe`](crate::Peer::subscribe) returns `false`,
    /// and a client that has asked to [follow](crate::Follow) it is sent `refused`. Each subscription takes some
    /// hundreds of bytes and a few copies of the topic's name. Names of more than 1,024 bytes are refused in the
    /// same way, whatever is set here.
    pub fn max_subscriptions(mut self, topics: usize) -> Self {
        self.config.max_subscriptions = topics;
        self
    }

    /// The most connections, on all loops together. Default: unlimited. One more is answered
    /// with 503.
    pub fn max_connections(mut self, connections: usize) -> Self {
        self.config.max_connections = connections;
        self
    }

    /// The most connections from one IPv4 address or one IPv6 [prefix](Self::ipv6_prefix). Default:
    /// unlimited. One more is answered with 429. Unix sockets have no address and no such limit.
    pub fn max_connections_per_ip(mut self, connections: usize) -> Self {
        self.config.max_connections_per_ip = connections;
        self
    }

    /// How many bits of an IPv6 address count as one address where limits are per address, 1 to 128.
    /// Default: 64, the least that a site is given; many are given 56 or 48. Anything else is an
    /// [`Error::Config`] when the server is started.
    pub fn ipv6_prefix(mut self, bits: u8) -> Self {
        self.config.ipv6_prefix = bits;
        self
    }

    /// How many connections are accepted a second, on all addresses together, and how many at once after a
    /// silence, each at least 1; 0 is an [`Error::Config`] when the server is started. Default: as many as come.
    /// Further connections wait in the system's backlog, where they cost the process nothing. If the backlog is
    /// full, the system turns them away.
    pub fn accept_rate(mut self, per_second: u32, burst: u32) -> Self {
        self.config.accept_rate = Some(Rate { per_second, burst });
        self
    }

    /// How many connections are accepted a second from one IPv4 address or one IPv6 [prefix](Self::ipv6_prefix),
    /// and how many at once after a silence, each at least 1; 0 is an [`Error::Config`] when the server is started.
    /// Default: as many as come. Further connections are answered with 429.
    pub fn accept_rate_per_ip(mut self, per_second: u32, burst: u32) -> Self {
        self.config.accept_rate_per_ip = Some(Rate { per_second, burst });
        self
    }

    /// The most opening handshakes at a time, each from accepting the connection to the answer, including
    /// [`Handler::open`](crate::Handler::open); 0 counts as 1. Default: unlimited.
    ///
    /// Further connections wait in the backlog. While the limit is reached, a handshake in which the client has sent
    /// nothing for 2 s is closed. Connections that are being refused (503, 429) do not count; at most 256 of these
    /// are answered at a time, the rest are closed without an answer.
    pub fn max_handshakes(mut self, handshakes: usize) -> Self {
        self.config.max_handshakes = handshakes.max(1);
        self
    }

    /// How many bytes a second each peer may send. Default: as many as it likes. A rate or burst of 0 is an
    /// [`Error::Config`] when the server is started.
    pub fn byte_rate(mut self, rate: ByteRate) -> Self {
        self.config.byte_rate = Some(rate);
        self
    }

    /// How many messages a second each peer may send. Default: as many as it likes. A rate or burst of 0 is an
    /// [`Error::Config`] when the server is started.
    pub fn message_rate(mut self, rate: MessageRate) -> Self {
        self.config.message_rate = Some(rate);
        self
    }

    /// The origins from which browser pages may connect. Default: [`Origin::SameHost`]. Pages of other origins
    /// are answered with 403.
    pub fn origin(mut self, origin: Origin) -> Self {
        self.config.origin = origin;
        self
    }

    /// Subprotocols that the server speaks, in order of preference. Default: none. A name that is not a token
    /// (RFC 9110 §5.6.2) is an [`Error::Config`] when the server is started.
    ///
    /// The first of them that a client offers is agreed on, unless [`Handler::open`](crate::Handler::open) has chosen
    /// another. So closures, rooms and [`events`](Self::events) can have a subprotocol too.
    /// [`Peer::subprotocol`](crate::Peer::subprotocol) tells which was agreed on. A client that offers only other
    /// subprotocols is let in without one; browsers then fail the connection.
    pub fn subprotocols<I>(mut self, names: I) -> Self
    where
        I: IntoIterator<Item: Into<String>>,
    {
        self.config.subprotocols = names.into_iter().map(Into::into).collect();
        self
    }

    /// The server's own proxies, as networks: `"10.0.0.0/8"`, `"2001:db8::/32"`, single addresses, and
    /// `"unix"` for connections through a Unix socket. Default: none.
    ///
    /// For a connection from one of them, [`Peer::remote_addr`](crate::Peer::remote_addr),
    /// [`Request::remote_addr`](crate::Request::remote_addr) and the limits per address mean the client that the
    /// proxy names: in the [`forwarded_header`](Self::forwarded_header), which is read from the right up to the
    /// first address that is not a proxy's, or with the [`proxy_protocol`](Self::proxy_protocol). A header from any
    /// other address is ignored. The proxies themselves are not held to the limits per address.
    ///
    /// # Errors
    /// [`Error::Config`] if one of these is not a network.
    pub fn trust_proxies<I>(mut self, networks: I) -> Result<Self>
    where
        I: IntoIterator<Item: AsRef<str>>,
    {
        for network in networks {
            let network = network.as_ref();
            if !self.config.proxies.add(network) {
                return Err(Error::Config(format!("{network:?} is not a network")));
            }
        }
        Ok(self)
    }

    /// The header in which trusted proxies tell the client's address. Default:
    /// [`ForwardedHeader::XForwardedFor`]. A `Forwarded` from a trusted proxy that can't be parsed is
    /// answered with 400.
    pub fn forwarded_header(mut self, header: ForwardedHeader) -> Self {
        self.config.forwarded_header = header;
        self
    }

    /// Whether connections from trusted proxies begin with a header of the PROXY protocol, version 1
    /// or 2, before TLS. Default: they don't. A connection with a malformed header is closed. After the header
    /// of a health check (`LOCAL`, `UNKNOWN`), the address is the proxy's own. If the header names a client, the
    /// [`forwarded_header`](Self::forwarded_header) is believed only if that client is a trusted proxy in turn.
    pub fn proxy_protocol(mut self, proxies: ProxyProtocol) -> Self {
        self.config.proxy_protocol = Some(proxies);
        self
    }

    /// Offers permessage-deflate (RFC 7692) to clients that ask for it. Default: off.
    ///
    /// Messages are compressed by the thread that sends them and inflated by the worker that handles
    /// them. A message that would be longer than [`max_message`](Self::max_message) once inflated closes the
    /// connection with 1009; no more than `max_message` is ever allocated for it.
    #[cfg(feature = "deflate")]
    pub fn deflate(mut self, deflate: Deflate) -> Self {
        self.config.deflate = Some(deflate);
        self
    }

    /// Speaks TLS on all TCP addresses; Unix sockets stay plain. Default: no TLS.
    ///
    /// The handshake counts towards [`handshake_timeout`](Self::handshake_timeout) and is made on the
    /// workers. A connection that does not begin with a TLS handshake is closed. The identity can be
    /// changed while the server runs: [`ServerHandle::reload_tls`].
    #[cfg(feature = "tls")]
    pub fn tls(mut self, tls: Tls) -> Self {
        self.tls = Some(tls);
        self
    }

    /// The most TLS handshakes at a time, each of which costs memory and a signature; 0 counts as 1.
    /// Default: 256. Further connections wait in the backlog, and silent ones are closed after 2 s, as with
    /// [`max_handshakes`](Self::max_handshakes).
    #[cfg(feature = "tls")]
    pub fn max_tls_handshakes(mut self, handshakes: usize) -> Self {
        self.config.max_tls_handshakes = handshakes.max(1);
        self
    }

    // ---- topics ----

    /// Sets compression for the topics that match `topics` (a name, or a prefix followed by `*`; the first match
    /// counts). Default: [`Compress::Auto`] for all. Use [`Compress::Never`] for payloads that are already compressed
    /// or hold secrets. Without permessage-deflate there is no difference.
    ///
    /// The setting also applies to messages from other nodes and from a [history](Self::history). So make it on all
    /// nodes.
    pub fn compress(mut self, topics: &str, compress: Compress) -> Self {
        self.config.topic_compression.add(topics, compress);
        self
    }

    /// Has the topics that match `topics` (a name, or a prefix followed by `*`; the first match counts) keep their
    /// last messages, so that a client that comes back gets what it missed:
    /// [`Peer::subscribe_from`](crate::Peer::subscribe_from). Default: none.
    ///
    /// Each message to subscribers of such a topic begins with a line that tells its position, see
    /// [`Follower`](crate::Follower) and `docs/scaling.md`.
    ///
    /// With [`Redis`](crate::Server::backplane), Redis keeps the messages and decides on their order, and all
    /// subscribers get them by way of Redis: in one order for all nodes, but later than other messages that the same
    /// thread sends afterwards, and not while Redis is away. Without Redis, messages are kept in memory, even while
    /// nobody subscribes (within [`idle_histories`](Self::idle_histories)), and arrive as promptly as others.
    pub fn history(mut self, topics: &str, history: History) -> Self {
        self.histories.keep(topics, history);
        self
    }

    /// The memory, in bytes (approximate), for histories of topics that nobody subscribes to. Default: 256 MiB.
    /// Past it, the topics published to least recently are forgotten; a returning client is sent `gap`. A history
    /// that Redis keeps is in memory only while its topic has subscribers.
    pub fn idle_histories(mut self, bytes: usize) -> Self {
        self.config.idle_histories = bytes;
        self
    }

    // ---- other nodes ----

    /// How topics span several servers. Default: [`Local`](crate::Local), with which they don't. With the
    /// feature `redis` there is `Redis`.
    pub fn backplane(mut self, backplane: impl Backplane) -> Self {
        self.backplane = Some(Arc::new(backplane));
        self
    }

    // ---- times ----

    /// How long a connection may take to become a WebSocket, [`Handler::open`](crate::Handler::open) included, or
    /// until [`Handler::http`](crate::Handler::http) has answered it. After that time it is closed: with 408 if its
    /// request has begun and is not complete, otherwise without an answer. Default: 10 s. Zero is an
    /// [`Error::Config`] when the server is started. Resolution as with [`ping`](Self::ping).
    pub fn handshake_timeout(mut self, timeout: Duration) -> Self {
        self.config.handshake_timeout = timeout;
        self
    }

    /// Pings a peer after `after` of silence and drops it if nothing is heard for another `timeout`. Default: 25 s,
    /// 20 s. Any byte received counts as life; so does any progress in writing to a peer that does not keep up. The
    /// ping waits behind what the kernel has buffered (up to a few MB), so the peer must read that within `timeout`.
    /// Resolution 1 ms, rounded up; 49.7 days or more: never. Zero for either is an [`Error::Config`] when the server is
    /// started.
    pub fn ping(mut self, after: Duration, timeout: Duration) -> Self {
        self.config.ping_interval = Some(after);
        self.config.pong_timeout = timeout;
        self
    }

    /// Sends no pings: a peer that vanishes without closing is not noticed until something is sent to it.
    pub fn no_ping(mut self) -> Self {
        self.config.ping_interval = None;
        self
    }

    /// How long a peer may take for the closing handshake: counted from the first close frame, sent or received;
    /// while messages in front of ours are still being written, from the last time that the peer took some of
    /// them. Default: 10 s. Zero: nobody waits for an answer.
    pub fn close_timeout(mut self, timeout: Duration) -> Self {
        self.config.close_timeout = timeout;
        self
    }

    /// Whether small writes go out at once (`TCP_NODELAY`). Default: yes.
    pub fn nodelay(mut self, on: bool) -> Self {
        self.config.nodelay = on;
        self
    }

    /// Shuts the server down, as [`ServerHandle::shutdown`] does with this `deadline`, as soon as something can be
    /// read from `source` or its other end is closed: a pipe, a socket, an eventfd. Default: nothing. No thread
    /// waits for it, so this is how a server of one thread is ended by a signal:
    ///
    /// ```no_run
    /// use framemill::{Message, Peer, Server};
    /// use signal_hook::consts::SIGTERM;
    /// use signal_hook::low_level::pipe;
    /// use std::os::unix::net::UnixStream;
    /// use std::time::Duration;
    ///
    /// fn main() -> framemill::Result<()> {
    ///     let (told, tell) = UnixStream::pair()?;
    ///     pipe::register(SIGTERM, tell)?; // from now on, the signal writes a byte to it
    ///     Server::bind("127.0.0.1:9001")?
    ///         .workers(0)
    ///         .shutdown_on(told, Duration::from_secs(5))
    ///         .run(|peer: &Peer, message: Message| peer.send(message))
    /// }
    /// ```
    ///
    /// Nothing is read from `source`; it is closed when the server has ended. A source that can't be polled (on Linux a
    /// regular file, for instance) is an [`Error::Io`] when the server is started. If this is called twice, the second
    /// source counts.
    #[cfg(unix)]
    pub fn shutdown_on(mut self, source: impl Into<OwnedFd>, deadline: Duration) -> Self {
        self.shutdown_on = Some((source.into(), deadline));
        self
    }

    /// Whether systemd is told when the server is ready, and when it begins to stop (`READY=1`,
    /// `STOPPING=1`; `Type=notify` in the unit). Default: no. Without systemd (no `NOTIFY_SOCKET`)
    /// nothing happens.
    pub fn notify_systemd(mut self, on: bool) -> Self {
        self.notify_systemd = on;
        self
    }

    // ---- memory ----

    /// The buffer that each loop reads into, in bytes, 1 KiB (with `proxy_protocol` 4 KiB) to 16 MiB. Default:
    /// 64 KiB. Anything else is an [`Error::Config`] when the server is started.
    ///
    /// It also bounds what one connection may bring per turn, except where messages are of 1 KiB and more (then 1 MiB, or
    /// one message). Memory: one buffer per loop. With `workers(0)`, while messages of 1 to 64 KiB arrive, those are read into
    /// another of four times its size (256 KiB at most, or its size if that is more), and stay there until they are
    /// dropped: a handler that keeps some may make it up to eight. If it is smaller than peers' usual bursts, more reads
    /// are needed.
    pub fn read_buffer(mut self, bytes: usize) -> Self {
        self.config.read_buffer = bytes;
        self
    }

    /// Calls `call` on a loop's thread when that loop has been idle for 100 ms and has freed the memory it kept
    /// for reuse. Default: nothing is called. The loop waits for the call, so it must not block, and should take
    /// milliseconds at most.
    ///
    /// This is for allocators that keep freed memory until they are told to give it back. With glibc's, much of the
    /// memory of a burst may stay resident until a program calls
    /// [`malloc_trim`](https://man7.org/linux/man-pages/man3/malloc_trim.3.html), which is `unsafe` and so is left to
    /// you. If `call` panics, that is logged.
    pub fn on_quiet(mut self, call: impl Fn() + Send + Sync + 'static) -> Self {
        self.config.on_quiet = Some(OnQuiet(Arc::new(call)));
        self
    }
}
