//! For tests of topics that keep their last messages: a server, and what a client gets of them.

use framemill::{Followed, Follower, Message, Offset, Peer, Server};

use super::spy::{Seen, spy};
use super::{Raw, Running, serve};

pub fn server(settings: impl FnOnce(Server) -> Server) -> (Running, Seen) {
    let (handler, seen) = spy(|_, _| ());
    let settings = |s: Server| settings(s.outbound_limit(64 << 20));
    (serve(settings, handler), seen)
}

pub fn client((server, seen): &(Running, Seen)) -> (Raw, Peer) {
    (Raw::open(server.addr), seen.peer())
}

pub fn message(raw: &mut Raw) -> Message {
    match raw.frame().expect("one more message") {
        (0x81, text) => Message::text(String::from_utf8(text).unwrap()),
        (_, bytes) => Message::binary(bytes),
    }
}

/// What comes until `live`, as text.
pub fn until_live(raw: &mut Raw, follower: &mut Follower) -> Vec<String> {
    let mut all = Vec::new();
    loop {
        match follower.take(message(raw)) {
            Followed::Message { message, .. } => all.push(message.to_string()),
            Followed::Gap { .. } => all.push("gap".into()),
            Followed::Live { .. } => return all,
            other => panic!("{other:?}"),
        }
    }
}

/// The how-manieth message of its topic stands there.
pub fn place(offset: Offset) -> u64 {
    let offset = offset.to_string();
    offset.split('-').nth(1).unwrap().parse().unwrap()
}
