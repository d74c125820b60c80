//! A WebSocket server engine on threads, with no async runtime.
//!
//! Event-loop threads (mio, so epoll on Linux) own the sockets; whole messages travel over channels
//! to a pool of worker threads, where your code runs as plain blocking Rust.
//!
//! ```no_run
//! use framemill::{Message, Peer, Server};
//!
//! fn main() -> framemill::Result<()> {
//!     Server::bind("127.0.0.1:9001")?.run(|peer: &Peer, message: Message| peer.send(message))
//! }
//! ```
//!
//! - [`Server`] is the builder, with all limits in one table; [`ServerHandle`] the running server.
//! - [`Handler`] is the trait to implement when a closure is not enough: per-connection sessions,
//!   authentication, subprotocols, plain HTTP on the same port.
//! - [`Peer`] is a connection that any thread may send to.
//! - [`Room`] is state that several connections share, with a clock if you like: matches, documents,
//!   chats. [`Rooms`] finds rooms by name.
//! - [`connect`] and [`Client`] are the client: WebSockets to other servers, on the same kind of
//!   threads. [`Clients`] holds thousands of them.
//!
//! # Topics
//!
//! A topic is a name; it exists while somebody subscribes to it. A message that is published to it goes to its
//! subscribers on all loops, encoded once:
//!
//! ```no_run
//! use framemill::{Message, Peer, Server};
//!
//! fn main() -> framemill::Result<()> {
//!     Server::bind("127.0.0.1:9001")?.run(|peer: &Peer, message: Message| {
//!         peer.subscribe("lobby");
//!         peer.publish("lobby", message); // to everyone there but the sender
//!     })
//! }
//! ```
//!
//! [`ServerHandle::publish`] sends to everyone there, from any thread. [`Peer::publish_latest`] is for state of
//! which a subscriber that can't keep up needs only the newest. In which order messages arrive is told at [`Peer`].
//!
//! # Features
//!
//! | feature | what | default |
//! |---|---|---|
//! | `deflate` | permessage-deflate (RFC 7692): `Deflate` | on; used only if the builder asks for it |
//! | `redis` | topics that span several servers: `Redis` for [`Server::backplane`] | off |
//! | `systemd` | sockets that systemd hands over: `SystemdSockets` for [`Server::bind`] | off |
//! | `tls` | `wss://` through native-tls: `Tls` for servers, `Trust` for clients | off |
//!
//! # Threads
//!
//! Apart from handlers under `workers(0)`, a loop runs little of your code, and all of it should be quick: the call
//! of [`Server::on_quiet`]; [`Backplane::subscribe`] and [`unsubscribe`](Backplane::unsubscribe) of a backplane of
//! your own; and the `Drop` of the owner of a payload that was made with `Bytes::from_owner`. Rooms and timers of a
//! server with `workers(0)` run on the loop, the ticker, or the thread that brings them work.
//!
//! | thread | number | does |
//! |---|---|---|
//! | `framemill-loop-N` | [`Server::loops`]; the first of them is the thread that calls [`Server::run`], if one does | reads, parses, queues, writes; runs your handlers only with `workers(0)` |
//! | `framemill-worker-N` | [`Server::workers`] | calls your [`Handler`]; for one connection one call at a time, in order; runs your [`Room`]s and timers likewise |
//! | `framemill-ticker` | 1, once a room has a clock or a timer is set | wakes rooms and timers |
//! | `framemill-redis-out`, `-in` | 1 each for every `Redis` | pass on messages that are published here; take those of other nodes |
//! | `framemill-dialer-N` | up to 9, while a [`Client`] needs them | resolve names, wait out the pauses before another attempt |
//! | `framemill-feeder` | 1, while a receiver of [`ClientEvent`]s does not receive | waits for it |
//! | `framemill-end` | 1, when a [`Clients`] is dropped by one of its own threads, or a server ends and nobody waits | waits for them |

#![cfg_attr(docsrs, feature(doc_cfg))]

mod addr;
mod backplane;
mod client;
mod config;
mod error;
mod guard;
mod history;
mod http;
mod hub;
mod id;
#[cfg(feature = "_internals")]
#[doc(hidden)]
pub mod internals;
mod link;
mod logging;
mod message;
mod metrics;
mod net;
mod network;
mod patterns;
mod peer;
mod proto;
mod reactor;
mod server;
mod sync;
mod token_bucket;
mod worker;

// The README's programs have to compile too.
#[cfg(all(doctest, feature = "deflate", feature = "tls"))]
#[doc = include_str!("../README.md")]
mod readme {}

pub use self::addr::RemoteAddr;
#[cfg(feature = "redis")]
pub use self::backplane::Redis;
pub use self::backplane::{Backplane, BackplaneState, Kept, Local, Node, Post, Shards, Tail};
pub use self::client::{
    Client, ClientEvent, ClientHandle, ClientHandler, Clients, Reconnect, Retry, RetryReason,
    connect,
};
#[cfg(feature = "deflate")]
pub use self::config::Deflate;
pub use self::config::{
    ByteRate, Compress, ForwardedHeader, MessageRate, Origin, OverRate, Overflow, ProxyProtocol,
};

pub use self::error::{Error, Result, SendError, Sent};
pub use self::history::{Follow, Followed, Follower, History, NoOffset, Offset, Since};
pub use self::http::{Request, Response};
pub use self::hub::{
    Members, Membership, Refused, Room, RoomHandle, RoomStats, Rooms, Tick, Timer,
};
pub use self::id::PeerId;
pub use self::message::{
    Bytes, CloseCause, CloseCode, CloseFrame, CloseReason, Initiator, LatestKey, Message, Utf8Bytes,
};
pub use self::metrics::{
    BackplaneMetrics, Histogram, LoopMetrics, Metrics, TickMetrics, WorkerMetrics,
};
pub use self::net::Listen;
#[cfg(all(unix, feature = "systemd"))]
pub use self::net::SystemdSockets;
#[cfg(unix)]
pub use self::net::{ReusePort, UnixSocket};
#[cfg(feature = "tls")]
pub use self::net::{Tls, Trust};
pub use self::peer::Peer;
pub use self::server::{Accept, Drain, Event, Handler, Presence, Server, ServerHandle};
pub use ::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
