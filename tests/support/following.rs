//! For tests of topics that keep their last messages: a server, and what a client gets of them.

use std::time::{Duration, Instant};

use framemill::{Followed, Follower, Message, Offset, Peer, Server};

use super::spy::{Seen, spy};
use super::{Raw, Running, serve, until};

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

/// For topics that keep what is no older than this.
pub const AGE: Duration = Duration::from_secs(2);

/// Publishes something that is too old and something that is not, and `missed` gives what is kept of it. A
/// machine that stands still meanwhile makes all of it too old: then it is tried again.
pub fn only_the_young(publish: impl Fn(&str), missed: impl Fn() -> Vec<String>) {
    for _ in 0..10 {
        publish("old");
        let old = Instant::now();
        until("half of the time is over", || old.elapsed() > AGE / 2);
        let young = Instant::now();
        publish("young");
        // Redis counts in milliseconds.
        let over = AGE + Duration::from_millis(10);
        until("the old one is too old", || old.elapsed() > over);
        let all = missed();
        if young.elapsed() < AGE {
            return assert_eq!(all, ["young"]);
        }
        assert!(!all.iter().any(|text| text == "old"), "{all:?}");
    }
    panic!("this machine is too slow");
}
