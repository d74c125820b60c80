//! Where a client connects to, and with what settings.

use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::Receiver;
use http::{HeaderMap, HeaderName, HeaderValue};

use super::engine::Clients;
use super::handle::ClientHandle;
use super::handler::{ClientEvent, ClientHandler};
use super::reconnect::Reconnect;
use super::url::{Place, Url, without_secrets};
#[cfg(feature = "deflate")]
use crate::config::Deflate;
use crate::config::{Config, NEVER, Overflow};
use crate::error::{Error, Result};
use crate::message::CloseReason;
#[cfg(feature = "tls")]
use crate::net::Trust;
use crate::peer::Peer;
#[cfg(feature = "deflate")]
use crate::proto::deflate;
use crate::proto::{ClientRequest, new_key};
use crate::sync::lock;

/// Opens a WebSocket to `url` and waits until the opening handshake is through, for at most 10 s (11 s if all workers
/// are busy). The [`Peer`] sends from any thread; the receiver gives the events of the connection, in order.
///
/// The channel holds 64 events; when nobody receives, only this server is slowed down. If the receiver is dropped,
/// messages that arrive are thrown away. Once the peer is dropped too, the connection is closed when a message
/// arrives, but not before. To be sure that it ends, call [`close`](Peer::close).
///
/// The settings are the defaults of [`Client`], which also has reconnection, headers and subprotocols.
///
/// ```no_run
/// use framemill::{ClientEvent, connect};
///
/// let (peer, events) = connect("ws://127.0.0.1:9001/chat?room=1")?;
/// peer.send("hello").ok();
/// for event in events {
///     match event {
///         ClientEvent::Message(message) => println!("{message}"),
///         ClientEvent::Close(reason) => println!("{reason}"),
///         _ => {}
///     }
/// }
/// # framemill::Result::Ok(())
/// ```
///
/// # Errors
/// As for [`Client::connect`].
pub fn connect(url: impl AsRef<str>) -> Result<(Peer, Receiver<ClientEvent>)> {
    let (peer, _, events) = common()?.connect_peer(Client::new(url)?)?;
    Ok((peer, events))
}

/// The threads that all clients share which don't have their own.
fn common() -> Result<Arc<Clients>> {
    static COMMON: std::sync::Mutex<Option<Arc<Clients>>> = std::sync::Mutex::new(None);
    let mut common = lock(&COMMON);
    if let Some(clients) = common.as_ref().filter(|clients| !clients.have_failed()) {
        return Ok(clients.clone());
    }
    let workers = std::thread::available_parallelism().map_or(4, |n| n.get());
    // Two, so that one handler that blocks does not stop all others.
    let clients = Arc::new(Clients::start(1, workers.max(2))?);
    let failed = common.replace(clients.clone());
    drop(common);
    // It waits for its threads.
    drop(failed);
    Ok(clients)
}

/// A client that is not connected yet: choose the settings, then [`connect`](Self::connect) it for a
/// channel of events, or [`start`](Self::start) it with a [`ClientHandler`].
///
/// | setting | default | at the limit |
/// |---|---|---|
/// | [`handshake_timeout`](Self::handshake_timeout) | 10 s | [`Error::Timeout`] |
/// | head of the answer | 8 KiB, 64 headers | [`Error::Handshake`] |
/// | [`max_message`](Self::max_message) | 1 MiB | close 1009 |
/// | [`ping`](Self::ping) | after 25 s of silence; 20 s for the pong | drop |
/// | [`close_timeout`](Self::close_timeout) | 10 s | drop |
/// | [`inbound_limit`](Self::inbound_limit) | 64 messages or 1 MiB | stop reading |
/// | [`outbound_limit`](Self::outbound_limit) | 1 MiB | [`Overflow::Close`]: 1013 |
/// | [`reconnect`](Self::reconnect) | off | |
///
/// # URLs
/// - `ws://host:port/path?query`, without TLS, by default on port 80; the host is a name, an IPv4 address, or an IPv6
///   address in brackets.
/// - `wss://host:port/path?query`, with TLS (feature `tls`), by default on port 443.
/// - `ws+unix:/path/of/socket`, optionally followed by `:/path?query`, through a Unix socket.
///
/// The path is sent as written, so percent-encode it where it needs that. Fragments are not allowed (RFC 6455 §3), nor
/// is user info, which would end up in logs; send an `Authorization` header instead.
#[derive(Clone)]
#[must_use = "a client does nothing until it is connected or started"]
pub struct Client {
    url: Url,
    pub(super) config: Config,
    headers: HeaderMap,
    subprotocols: Vec<String>,
    origin: Option<String>,
    reconnect: Option<Reconnect>,
    #[cfg(feature = "tls")]
    trust: Option<Trust>,
    /// The first header that can't be one.
    wrong: Option<String>,
}

/// Where to and how, for all connections of one client.
pub(super) struct Plan {
    pub(super) place: Place,
    /// Without its key.
    pub(super) request: ClientRequest,
    pub(super) config: Arc<Config>,
    #[cfg(feature = "tls")]
    pub(super) tls: Option<(Trust, String)>,
    pub(super) reconnect: Option<Reconnect>,
}

impl Client {
    /// A client for this URL.
    ///
    /// # Errors
    /// [`Error::Url`] if it is not the URL of a WebSocket.
    pub fn new(url: impl AsRef<str>) -> Result<Self> {
        let url = url.as_ref();
        let parsed = Url::parse(url).map_err(|why| Error::Url {
            url: without_secrets(url),
            why,
        })?;
        Ok(Self {
            url: parsed,
            config: Config::default(),
            headers: HeaderMap::new(),
            subprotocols: Vec::new(),
            origin: None,
            reconnect: None,
            #[cfg(feature = "tls")]
            trust: None,
            wrong: None,
        })
    }

    /// The certificates to trust for a `wss://` URL. Default: [`Trust::system`].
    #[cfg(feature = "tls")]
    pub fn trust(mut self, trust: Trust) -> Self {
        self.trust = Some(trust);
        self
    }

    /// Offers permessage-deflate (RFC 7692) to the server. Default: off.
    #[cfg(feature = "deflate")]
    pub fn deflate(mut self, deflate: Deflate) -> Self {
        self.config.deflate = Some(deflate);
        self
    }

    // ---- the request ----

    /// Adds a header to the request, such as `Authorization` or `Cookie`. Headers that belong to the handshake itself
    /// (`Host`, `Upgrade`, `Sec-WebSocket-…`) are ignored. An invalid name or value is an [`Error::Config`] when
    /// connecting.
    pub fn header<N, V>(mut self, name: N, value: V) -> Self
    where
        N: TryInto<HeaderName>,
        V: TryInto<HeaderValue>,
    {
        match (name.try_into(), value.try_into()) {
            (Ok(name), Ok(value)) => {
                self.headers.append(name, value);
            }
            (Ok(name), Err(_)) => {
                self.wrong
                    .get_or_insert(format!("the value of the header {name}"));
            }
            (Err(_), _) => {
                self.wrong.get_or_insert("the name of a header".to_owned());
            }
        }
        self
    }

    /// Offers a subprotocol; call it once for each, in order of preference. The server chooses one of
    /// them or none: [`Peer::subprotocol`].
    pub fn subprotocol(mut self, name: impl Into<String>) -> Self {
        self.subprotocols.push(name.into());
        self
    }

    /// The origin to send, for servers that ask for one: `https://example.com`. Default: none, as this
    /// is not a browser.
    pub fn origin(mut self, origin: impl Into<String>) -> Self {
        self.origin = Some(origin.into());
        self
    }

    // ---- limits ----

    /// The longest message, in bytes, assembled from all its fragments: 1 byte to 1 GiB. Default: 1 MiB.
    /// Anything else is an [`Error::Config`] when connecting. Memory grows with the bytes that have arrived, never
    /// with the length that a header claims.
    pub fn max_message(mut self, bytes: usize) -> Self {
        self.config.max_message = bytes.try_into().unwrap_or(u32::MAX);
        self
    }

    /// How many messages, and how many bytes of them, may wait for the handler, each from 1 to 2³⁰. Default: 64,
    /// 1 MiB. Anything else is an [`Error::Config`] when connecting. When either limit is reached, nothing more is
    /// read until a quarter is left; TCP slows the server down. The channel of [`connect`](Self::connect) holds 64
    /// events besides.
    pub fn inbound_limit(mut self, messages: usize, bytes: usize) -> Self {
        self.config.inbound_messages = messages;
        self.config.inbound_bytes = bytes;
        self
    }

    /// How many bytes may wait to be written, at most 1 GiB. Default: 1 MiB. Anything else is an
    /// [`Error::Config`] when connecting. [`overflow`](Self::overflow) sets what happens at the limit.
    pub fn outbound_limit(mut self, bytes: usize) -> Self {
        self.config.outbound_bytes = bytes;
        self
    }

    /// What happens to a message that finds the outbound queue full. Default: [`Overflow::Close`].
    pub fn overflow(mut self, overflow: Overflow) -> Self {
        self.config.overflow = overflow;
        self
    }

    // ---- times ----

    /// How long it may take to open a WebSocket: resolving the name, connecting to one address after the other, and
    /// the server's answer. Default: 10 s. Zero is an [`Error::Config`]
    /// when the client is started.
    ///
    /// If the name has several addresses, each but the last gets its share of that time, at most 2 s. At most eight
    /// names are resolved at a time, by the system's resolver, which can't be interrupted: eight names without an
    /// answer delay all others.
    pub fn handshake_timeout(mut self, timeout: Duration) -> Self {
        self.config.handshake_timeout = timeout.min(NEVER);
        self
    }

    /// Pings the server after `after` of silence and drops the connection if nothing is heard for another `timeout`.
    /// Default: 25 s, 20 s. Zero for either is an [`Error::Config`] when the client is started. Everything else is as
    /// with [`Server::ping`](crate::Server::ping).
    pub fn ping(mut self, after: Duration, timeout: Duration) -> Self {
        self.config.ping_interval = Some(after);
        self.config.pong_timeout = timeout;
        self
    }

    /// Sends no pings: a server that vanishes without closing is not noticed until something is sent to it.
    pub fn no_ping(mut self) -> Self {
        self.config.ping_interval = None;
        self
    }

    /// How long the server may take for the closing handshake, and then to end the TCP connection: counted from
    /// the first close frame, sent or received; while messages in front of ours are still being written, from the
    /// last time that the server took some of them. Default: 10 s.
    pub fn close_timeout(mut self, timeout: Duration) -> Self {
        self.config.close_timeout = timeout.min(NEVER);
        self
    }

    /// Whether small writes go out at once (`TCP_NODELAY`). Default: yes.
    pub fn nodelay(mut self, on: bool) -> Self {
        self.config.nodelay = on;
        self
    }

    /// Connects again when a connection was lost or could not be made, see [`Reconnect`]. Default: no.
    pub fn reconnect(mut self, reconnect: Reconnect) -> Self {
        self.reconnect = Some(reconnect);
        self
    }

    // ---- connecting ----

    /// Connects, waits until the opening handshake is through, and passes all later events to the returned channel,
    /// in order. The channel holds 64 events; when nobody receives, only this server is slowed down. The channel ends
    /// with the client.
    ///
    /// Waits for at most [`handshake_timeout`](Self::handshake_timeout), and a second more if all workers are busy.
    /// The first connection is not [retried](Self::reconnect): its failure is returned at once.
    ///
    /// If the receiver is dropped, messages that arrive are thrown away. Once all handles and peers are dropped too,
    /// the connection is closed when anything arrives, but not before. To be sure that it ends, call
    /// [`close`](ClientHandle::close).
    ///
    /// A handler may call this if it runs on a worker, which then blocks. For `wss://` another worker must be free, as
    /// workers make the TLS handshakes.
    ///
    /// # Errors
    /// [`Error::Config`] for an invalid setting; [`Error::Resolve`], [`Error::Connect`],
    /// [`Error::Refused`], [`Error::Handshake`] or [`Error::Timeout`] if no WebSocket could be opened;
    /// [`Error::Io`] if the threads can't be started.
    pub fn connect(self) -> Result<(ClientHandle, Receiver<ClientEvent>)> {
        common()?.connect(self)
    }

    /// Begins to connect and returns at once. The handler is told the outcome; it runs on worker threads that all
    /// clients of the process share. With [`reconnect`](Self::reconnect) the first connection is retried like any
    /// other.
    ///
    /// # Errors
    /// [`Error::Config`] for an invalid setting, [`Error::Io`] if the threads can't be started.
    pub fn start(self, handler: impl ClientHandler) -> Result<ClientHandle> {
        common()?.open(self, handler)
    }

    /// Like [`start`](Self::start), but waits for the end of the last connection, and returns how it ended.
    ///
    /// # Errors
    /// As for `start`, and as for [`connect`](Self::connect) if the last attempt failed.
    pub fn run_with(self, handler: impl ClientHandler) -> Result<CloseReason> {
        self.start(handler)?.wait()
    }

    /// Checks the settings, before anything starts.
    pub(super) fn plan(self) -> Result<Plan> {
        let invalid = |what: String| Err(Error::Config(what));
        if let Some(wrong) = self.wrong {
            return invalid(format!("{wrong} is invalid"));
        }
        #[cfg(feature = "deflate")]
        if let Some(Err(why)) = self.config.deflate.as_ref().map(Deflate::check) {
            return invalid(why.to_owned());
        }
        if let Some(why) = out_of_range(&self.config) {
            return invalid(why.to_owned());
        }
        if let Err(why) = self.config.check_times() {
            return invalid(why.to_owned());
        }
        let mut request = ClientRequest {
            host: self.url.authority,
            target: self.url.target,
            key: new_key(),
            origin: self.origin,
            subprotocols: self.subprotocols,
            #[cfg(feature = "deflate")]
            extensions: self.config.deflate.as_ref().map(deflate::offer),
            #[cfg(not(feature = "deflate"))]
            extensions: None,
            headers: self.headers,
        };
        if let Err(why) = request.write(&mut Vec::new()) {
            return invalid(why.to_owned());
        }
        request.key = String::new();
        #[cfg(feature = "tls")]
        let tls = match &self.url.place {
            Place::Host { host, .. } if self.url.secure => {
                let trust = self.trust.map_or_else(Trust::system, Ok)?;
                // RFC 6066 §3: a name is sent without a trailing dot, and certificates have none.
                let name = host.strip_suffix('.').unwrap_or(host);
                Some((trust, name.to_owned()))
            }
            _ => None,
        };
        Ok(Plan {
            place: self.url.place,
            request,
            config: Arc::new(self.config),
            #[cfg(feature = "tls")]
            tls,
            reconnect: self.reconnect,
        })
    }
}

/// The first setting that is out of range.
fn out_of_range(config: &Config) -> Option<&'static str> {
    // Counters of bytes are 32 bits wide and their differences must not wrap.
    let widest = 1 << 30;
    let wrong = [
        (
            !(1..=widest).contains(&(config.max_message as usize)),
            "max_message must be 1 byte to 1 GiB",
        ),
        (
            !(1..=widest).contains(&config.inbound_messages)
                || !(1..=widest).contains(&config.inbound_bytes),
            "inbound_limit must be at least one message and one byte, and at most 2^30 of each",
        ),
        (
            config.outbound_bytes > widest,
            "outbound_limit must be at most 1 GiB",
        ),
    ];
    wrong.iter().find(|(wrong, _)| *wrong).map(|(_, why)| *why)
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Not the headers, nor the query: they carry credentials.
        f.debug_struct("Client")
            .field("place", &self.url.place)
            .finish_non_exhaustive()
    }
}
