//! The server around the arena: its limits, its page, and what happens to messages before they get there.

use std::sync::Arc;

use framemill::{
    Accept, Handler, HeaderName, HeaderValue, Listen, Membership, Message, MessageRate, OverRate,
    Peer, Request, Response, Rooms, Server, StatusCode, header,
};

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
/// One snapshot, and a few small things.
const OUTBOUND: usize = 64 << 10;

/// The server, with its limits.
pub(crate) fn bind(addr: impl Listen) -> framemill::Result<Server> {
    let server = Server::bind(addr)?
        .max_message(wire::MAX_MESSAGE)
        .message_rate(RATE)
        .outbound_limit(OUTBOUND)
        // A player whose connection is gone should not fly on for a minute.
        .ping(
            std::time::Duration::from_secs(3),
            std::time::Duration::from_secs(5),
        );
    Ok(server)
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
