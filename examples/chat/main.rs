//! A chat: rooms by name, who is here, who is typing, and what was said last.
//!
//! `cargo run --release --example chat`, then open the printed address in two windows; or, with `-- --addr
//! 0.0.0.0:9001`, port 9001 of this machine's address on a phone. A room begins with whoever comes first and is forgotten, with what
//! was said in it, when the last one leaves. `--dashboard` adds a page of figures, `/dashboard`.
//!
//! A room is a [`ChatRoom`] of its own on the worker pool: see `room.rs`. What travels is JSON, see
//! `protocol.rs`; what may be said, and how often, is in `limits.rs`; the page is `page.html`.
#![allow(clippy::print_stdout, unreachable_pub)]

#[path = "../support/dashboard/mod.rs"]
mod dashboard;
mod limits;
mod protocol;
mod room;

use std::time::Duration;

use framemill::{
    Accept, CloseCode, Handler, Membership, Message, MessageRate, OverRate, Peer, Request,
    Response, Rooms, Server,
};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use self::dashboard::Dashboard;
use self::room::{ChatRoom, Guest};

const USAGE: &str = "usage: chat [--addr HOST:PORT] [--dashboard]";

const PAGE: &str = include_str!("page.html");

/// Rooms that the page is told of.
const LISTED: usize = 12;

struct Chat {
    rooms: Rooms<ChatRoom>,
}

impl Handler for Chat {
    /// The room; none before the first message, which says where to and as whom.
    type Session = Option<Membership<ChatRoom>>;

    fn open(&self, _: &Request, _: &Peer) -> Result<Accept<Self::Session>, Response> {
        Ok(Accept::new(None))
    }

    fn message(&self, stay: &mut Self::Session, peer: &Peer, message: Message) {
        if let Some(stay) = stay {
            return stay.message(message);
        }
        match protocol::join(&message) {
            Some(join) => match limits::line(&join.room, limits::ROOM) {
                Some(room) => {
                    let guest = Guest::new(join.name, join.key);
                    *stay = Some(self.rooms.join(&room, peer, guest));
                }
                None => protocol::refuse(peer, "Room names have 1 to 32 characters."),
            },
            None => {
                peer.close(CloseCode::Policy, "first say who you are");
            }
        }
    }

    fn http(&self, request: &Request) -> Response {
        match request.path() {
            "/" => Response::html(PAGE),
            "/rooms" => self.list(),
            "/health" => Response::ok(),
            _ => Response::not_found(),
        }
    }
}

impl Chat {
    /// The fullest rooms.
    fn list(&self) -> Response {
        let names = self.rooms.names().into_iter();
        let rooms = names.filter_map(|name| Some((self.rooms.find(&name)?.len(), name)));
        let mut rooms: Vec<_> = rooms.filter(|(len, _)| *len > 0).collect();
        rooms.sort_by(|(len, name), other| (other.0, name).cmp(&(*len, &other.1)));
        rooms.truncate(LISTED);
        protocol::rooms(&rooms)
    }
}

fn main() -> framemill::Result<()> {
    env_logger::init();
    let mut addr = "127.0.0.1:9001".to_owned();
    let mut words = std::env::args().skip(1);
    let mut dashboard = false;
    while let Some(word) = words.next() {
        match word.as_str() {
            "--addr" => addr = words.next().unwrap_or_default(),
            "--dashboard" => dashboard = true,
            _ => {
                eprintln!("{USAGE}");
                std::process::exit(2);
            }
        }
    }
    let mut signals = Signals::new([SIGINT, SIGTERM])?;
    let server = Server::bind(addr.as_str())?
        .max_message(limits::MESSAGE)
        // Rooms have a limit on what is said, and tell; this is for those who don't listen.
        .message_rate(MessageRate {
            per_second: 20,
            burst: 40,
            over: OverRate::Close,
        })
        // Everybody may say something under a new name. A page that is opened takes three or four.
        .accept_rate_per_ip(10, 100)
        .max_connections_per_ip(50);
    let chat = Chat {
        rooms: Rooms::new(|_| ChatRoom::default()),
    };
    let handle = match dashboard {
        true => server.start(Dashboard::around(chat))?,
        false => server.start(chat)?,
    };
    println!(
        "listening on http://{}",
        handle.local_addrs().join(" http://")
    );
    signals.forever().next();
    handle.shutdown(Duration::from_secs(5));
    Ok(())
}
