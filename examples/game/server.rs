//! The server around the arena: its limits, its page, and what happens to messages before they get there.

use std::net::{SocketAddr, TcpListener, ToSocketAddrs};
use std::sync::Arc;
use std::time::Duration;

use framemill::{
    Accept, Error, Handler, HeaderName, HeaderValue, Membership, Message, MessageRate, OverRate,
    Peer, Request, Response, Rooms, Server, StatusCode, header,
};
use socket2::{Domain, Socket, Type};

use crate::room::{Arena, Pass};
use crate::stats::Stats;
use crate::wire::{self, BadMessage, ToServer, code};
use crate::world::HERTZ;

const PAGE: &str = include_str!("page.html");
const SCRIPTS: &[(&str, &str)] = &[
    ("/sim.js", include_str!("sim.js")),
    ("/draw.js", include_str!("draw.js")),
    ("/steer.js", include_str!("steer.js")),
    ("/game.js", include_str!("game.js")),
];
/// The page loads nothing from elsewhere, and runs nothing that somebody wrote into it.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'unsafe-inline'; \
    img-src data:; connect-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'";
/// A page sends some 25 messages a second.
const RATE: MessageRate = MessageRate {
    per_second: 70,
    burst: 140,
    over: OverRate::Close,
};
/// Connections that an address may open a second, and at once for each of its players: a page takes six, with
/// all that it loads.
const ACCEPT_RATE: u32 = 10;
const ACCEPT_BURST: u32 = 6;
/// One snapshot, and a few small things.
const OUTBOUND: usize = 64 << 10;
/// What may wait in the kernel for each client (`SO_SNDBUF`). Whatever is there is sent, however old it
/// has become, and nobody is passed over as long as there is room; left alone, the kernel takes megabytes.
///
/// It must hold what is on its way and not acknowledged: of 30 snapshots a second over 300 ms that is ten,
/// each with about 1 KiB of the kernel's own, and Linux counts twice what is asked for. Measured over such
/// a way, 4 KiB lost a third of the snapshots and 8 KiB none (of 60 a second, a third); over one of 4 kB/s,
/// what arrived was 1.1 s old (median) with 8 KiB, and with 16 KiB as far behind as without a limit.
const SEND_BUFFER: usize = 8 << 10;

/// The server, with its limits; `players` is how many may come from one address.
pub(crate) fn bind(addr: &str, players: u32) -> framemill::Result<Server> {
    let mut listeners = listen(addr)?;
    let mut server = Server::bind(listeners.remove(0))?;
    for listener in listeners {
        server = server.and_bind(listener)?;
    }
    let server = server
        .max_message(wire::MAX_MESSAGE)
        .message_rate(RATE)
        .outbound_limit(OUTBOUND)
        // Nobody fills the arena alone.
        .max_connections_per_ip(players as usize)
        .accept_rate_per_ip(ACCEPT_RATE, ACCEPT_BURST.saturating_mul(players))
        // A player whose connection is gone should not fly on for a minute.
        .ping(Duration::from_secs(3), Duration::from_secs(5));
    Ok(server)
}

/// A listener for every address of a name that can be had, one at least; for the first alone if the
/// system chooses the port.
fn listen(addr: &str) -> framemill::Result<Vec<TcpListener>> {
    let failed = |source| Error::Bind {
        addr: addr.into(),
        source,
    };
    let mut listeners = Vec::new();
    let mut why = std::io::ErrorKind::AddrNotAvailable.into();
    for one in addr.to_socket_addrs().map_err(failed)? {
        match listener(one) {
            Ok(listener) => listeners.push(listener),
            Err(error) => why = error,
        }
        if one.port() == 0 && !listeners.is_empty() {
            break;
        }
    }
    match listeners.is_empty() {
        true => Err(failed(why)),
        false => Ok(listeners),
    }
}

/// Whose connections have a small send buffer.
fn listener(addr: SocketAddr) -> std::io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(addr), Type::STREAM, None)?;
    // On Windows that would let others in on a port in use.
    socket.set_reuse_address(cfg!(unix))?;
    socket.set_send_buffer_size(SEND_BUFFER)?;
    socket.bind(&addr.into())?;
    socket.listen(1024)?;
    Ok(socket.into())
}

pub(crate) struct Game {
    rooms: Rooms<Arena>,
}

impl Game {
    pub(crate) fn new(rate: u32, stats: Arc<Stats>) -> Self {
        let rooms = Rooms::new(move |_| Arena::new(rate, stats.clone()))
            .tick_rate(HERTZ.into())
            // Who has lost the connection finds the arena as it was.
            .keep_empty(true);
        Self { rooms }
    }
}

impl Handler for Game {
    /// The arena; none before hello.
    type Session = Option<Membership<Arena>>;

    fn open(&self, _: &Request, _: &Peer) -> Result<Accept<Self::Session>, Response> {
        Ok(Accept::new(None))
    }

    fn message(&self, stay: &mut Self::Session, peer: &Peer, message: Message) {
        let Message::Binary(bytes) = &message else {
            peer.close(code::MALFORMED.into(), "not a message of the game");
            return;
        };
        if let Some(stay) = stay {
            // Pongs don't wait for the arena: the page shows the way, not the game's thoughts.
            return match ToServer::decode(bytes) {
                Ok(ToServer::Ping(cookie)) => drop(peer.send(wire::pong(cookie))),
                _ => stay.message(message),
            };
        }
        let (code, why) = match ToServer::decode(bytes) {
            Ok(ToServer::Hello { token, name }) => {
                *stay = Some(self.rooms.join("arena", peer, Pass { token, name }));
                return;
            }
            Ok(_) => (code::HELLO, "hello comes first"),
            Err(BadMessage::Version) => (code::VERSION, "reload the page"),
            Err(BadMessage::Malformed) => (code::MALFORMED, "not a message of the game"),
        };
        peer.close(code.into(), why);
    }

    fn http(&self, request: &Request) -> Response {
        let script = SCRIPTS.iter().find(|(path, _)| *path == request.path());
        match (request.path(), script) {
            ("/", _) => with(
                Response::html(PAGE),
                header::CONTENT_SECURITY_POLICY,
                POLICY,
            ),
            (_, Some((_, script))) => {
                let kind = "text/javascript; charset=utf-8";
                let response = Response::new(StatusCode::OK).body(*script);
                with(response, header::CONTENT_TYPE, kind)
            }
            ("/health", _) => Response::ok(),
            _ => Response::not_found(),
        }
    }
}

fn with(response: Response, name: HeaderName, value: &'static str) -> Response {
    response
        .header(name, HeaderValue::from_static(value))
        .header(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"))
}
