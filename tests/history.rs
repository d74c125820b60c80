//! Topics that keep their last messages, on one server: nothing is missed, nothing comes twice, and
//! whoever was away for too long is told so.

mod support;

use std::thread;

use framemill::{Followed, Follower, History, Message, Offset, Peer, Server, Since};
use support::spy::{Seen, spy};
use support::{Raw, Running, serve, until};

const THREADS: [(usize, usize); 3] = [(1, 0), (1, 2), (2, 2)];

fn server(settings: impl FnOnce(Server) -> Server) -> (Running, Seen) {
    let (handler, seen) = spy(|_, _| ());
    let settings = |s: Server| settings(s.outbound_limit(64 << 20));
    (serve(settings, handler), seen)
}

fn client((server, seen): &(Running, Seen)) -> (Raw, Peer) {
    (Raw::open(server.addr), seen.peer())
}

fn message(raw: &mut Raw) -> Message {
    match raw.frame().expect("one more message") {
        (0x81, text) => Message::text(String::from_utf8(text).unwrap()),
        (_, bytes) => Message::binary(bytes),
    }
}

/// What comes until `live`, as text.
fn until_live(raw: &mut Raw, follower: &mut Follower) -> Vec<String> {
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

#[test]
fn whoever_comes_back_gets_what_it_missed() {
    let server = server(|s| s.history("news/*", History::last(5)));
    let handle = &server.0.handle;
    let (mut raw, peer) = client(&server);
    assert!(
        !peer.subscribe_from("other", Since::Now) && !peer.subscribe_from("news/\n", Since::Now)
    );
    let mut follower = Follower::new();
    follower.follow("news/a", Since::Start);
    assert!(peer.subscribe_from("news/a", Since::Start));
    assert!(until_live(&mut raw, &mut follower).is_empty());
    for n in 1..=3 {
        assert!(handle.publish("news/a", n.to_string()));
        let Followed::Message { message, .. } = follower.take(message(&mut raw)) else {
            panic!("no message");
        };
        assert_eq!(message, Message::text(n.to_string()));
    }
    drop(raw);
    server.1.end();
    assert!(!peer.subscribe_from("news/a", Since::Now));
    for n in 4..=6 {
        assert!(handle.publish("news/a", n.to_string()));
    }
    let offset = follower.offset("news/a").unwrap();
    let (mut raw, peer) = client(&server);
    assert!(peer.subscribe_from("news/a", offset));
    assert_eq!(until_live(&mut raw, &mut follower), ["4", "5", "6"]);
    // Again, in the middle of it: instead of before.
    assert!(peer.subscribe_from("news/a", offset));
    assert_eq!(until_live(&mut raw, &mut follower), ["4", "5", "6"]);
    assert_eq!(handle.subscribers("news/a"), 1);
    // The peer itself is left out, but not of what it missed.
    assert!(peer.publish("news/a", "7") && handle.publish("news/a", "8"));
    assert!(message(&mut raw).to_string().ends_with("\n8"));
    assert!(peer.subscribe_from("news/a", offset));
    assert_eq!(
        until_live(&mut raw, &mut follower),
        ["4", "5", "6", "7", "8"]
    );
    assert!(handle.publish("news/a", "9"));
    assert!(peer.subscribe_from("news/a", offset));
    assert!(message(&mut raw).to_string().ends_with("\n9"));
    let rest = ["gap", "5", "6", "7", "8", "9"];
    assert_eq!(until_live(&mut raw, &mut follower), rest);
    let other: Offset = "1-1".parse().unwrap();
    assert!(peer.subscribe_from("news/a", other));
    assert_eq!(until_live(&mut raw, &mut follower), rest);
    assert!(peer.unsubscribe("news/a") && !peer.unsubscribe("news/a"));
    assert_eq!(handle.subscribers("news/a"), 0);
}

/// Publishers, and a peer that follows again and again while they do: each number once, in order, however
/// the calls fall.
#[test]
fn no_gap_and_nothing_twice_while_others_publish() {
    const MESSAGES: usize = 3000;
    for (loops, workers) in THREADS {
        let server = server(|s| {
            s.loops(loops)
                .workers(workers)
                .history("it", History::last(MESSAGES))
        });
        let handle = &server.0.handle;
        let (mut raw, peer) = client(&server);
        let mut follower = Follower::new();
        follower.follow("it", Since::Start);
        assert!(peer.subscribe_from("it", Since::Start));
        let mut got: Vec<String> = Vec::new();
        thread::scope(|scope| {
            for id in 0..2 {
                scope.spawn(move || {
                    for n in 0..MESSAGES / 2 {
                        assert!(handle.publish("it", format!("{id}:{n}")));
                    }
                });
            }
            // It comes back by itself, from where the reader has come to.
            let (ask, asked) = crossbeam_channel::bounded::<Offset>(0);
            let again = peer.clone();
            scope.spawn(move || {
                for offset in asked {
                    assert!(again.unsubscribe("it"));
                    assert!(again.send("from here").is_ok());
                    assert!(again.subscribe_from("it", offset));
                }
            });
            while got.len() < MESSAGES {
                match follower.take(message(&mut raw)) {
                    Followed::Message { message, .. } => got.push(message.to_string()),
                    Followed::Live { .. } => continue,
                    other => panic!("{other:?}"),
                }
                if got.len() % 250 == 0 && got.len() < MESSAGES {
                    ask.send(follower.offset("it").unwrap()).unwrap();
                    // What was on its way is thrown away, as by a connection that breaks.
                    while message(&mut raw) != Message::text("from here") {}
                }
            }
            drop(ask);
        });
        for id in 0..2 {
            let own = got.iter().filter_map(|m| m.strip_prefix(&format!("{id}:")));
            let expected: Vec<_> = (0..MESSAGES / 2).map(|n| n.to_string()).collect();
            assert!(own.eq(expected.iter()), "loops {loops}, workers {workers}");
        }
    }
}

/// A publisher that fills the queue of a loop, and a handler on that loop which wants the same history.
#[test]
fn a_loop_never_waits_for_who_waits_for_it() {
    let (handler, seen) = spy(|peer: &Peer, _: Message| {
        peer.publish("it", "from the loop");
        peer.subscribe_from("it", Since::Now);
    });
    let settings = |s: Server| {
        let s = s.workers(0).loops(2).history("it", History::last(10));
        s.outbound_limit(64 << 20)
    };
    let server = (serve(settings, handler), seen);
    let mut clients: Vec<_> = (0..3).map(|_| client(&server)).collect();
    for (_, peer) in &clients {
        assert!(peer.subscribe("it"));
    }
    let handle = &server.0.handle;
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| (0..2000).for_each(|_| assert!(handle.publish("it", "from outside"))));
        }
        for (raw, _) in &mut clients {
            scope.spawn(|| {
                let question = support::frame(0x81, b"x");
                raw.write(&question.repeat(500));
                let mut outside = 0;
                while outside < 4000 {
                    let text = message(raw).to_string();
                    outside += usize::from(text.ends_with("from outside"));
                }
            });
        }
    });
    until("nothing is left over", || handle.subscribers("it") == 3);
}
