//! How many topics one connection may subscribe to, and what it is told past that.

mod support;

use framemill::{Follow, Followed, Follower, History, Message, Peer, Server, Since};
use support::following::message;
use support::spy::{Seen, spy};
use support::{Raw, Running, frame, serve, until};

/// A server whose clients may follow what they like.
fn server(settings: impl FnOnce(Server) -> Server) -> (Running, Seen) {
    let (handler, seen) = spy(|peer: &Peer, message| {
        let follow = Follow::parse(&message).unwrap();
        peer.subscribe_from(&follow.topic, follow.since);
    });
    let settings = |s: Server| settings(s.history("news/*", History::last(3)));
    (serve(settings, handler), seen)
}

fn ask(raw: &mut Raw, follower: &mut Follower, topic: &str) -> Followed {
    let request = follower.follow(topic, Since::Now);
    raw.write(&frame(0x81, request.to_text().unwrap().as_bytes()));
    follower.take(message(raw))
}

/// By default 1,024, and who asks for more is told with each.
#[test]
fn one_connection_can_not_fill_the_memory_with_topics() {
    for workers in [0, 2] {
        let (server, seen) = server(|s| s.workers(workers));
        let handle = &server.handle;
        let mut raw = Raw::open(server.addr);
        let peer = seen.peer();
        let mut follower = Follower::new();
        for n in 0..2000 {
            let topic = format!("news/{n}");
            let answer = ask(&mut raw, &mut follower, &topic);
            match answer {
                Followed::Live { topic: of, .. } => assert!(n < 1024 && of == topic, "{n}"),
                Followed::Refused { topic: of } => assert!(n >= 1024 && of == topic, "{n}"),
                other => panic!("{other:?}"),
            }
            // It counts twice for a moment, when it has just gone live.
            until("it is counted", || {
                handle.subscribers(&topic) == usize::from(n < 1024)
            });
        }
        let refused = || handle.metrics().total.subscriptions_refused;
        assert_eq!(refused(), 2000 - 1024);
        // What it has it may ask for again, and there is room when it leaves one.
        assert!(peer.subscribe("news/0") && peer.subscribe_from("news/1", Since::Now));
        assert!(matches!(
            follower.take(message(&mut raw)),
            Followed::Live { .. }
        ));
        assert!(!peer.subscribe("other") && peer.unsubscribe("news/2") && peer.subscribe("other"));
        assert!(!peer.subscribe_from("news/2", Since::Start));
        assert_eq!(message(&mut raw), Message::text("refused start news/2\n"));
        assert_eq!(refused(), 2000 - 1024 + 2);
        // Others have their own.
        let mut raw = Raw::open(server.addr);
        assert!(matches!(
            ask(&mut raw, &mut follower, "news/2"),
            Followed::Live { .. }
        ));
        let text = handle.metrics().prometheus();
        assert!(text.contains("framemill_subscriptions_refused_total 978\n"));
    }
}

/// Nor with long names, of few topics.
#[test]
fn names_of_topics_are_not_longer_than_a_kilobyte() {
    let (server, seen) = server(|s| s.max_subscriptions(2));
    let mut raw = Raw::open(server.addr);
    let peer = seen.peer();
    let name = |len: usize| format!("news/{}", "x".repeat(len - 5));
    let (longest, longer) = (name(1024), name(1025));
    assert!(peer.subscribe(&longest) && !peer.subscribe(&longer));
    let mut follower = Follower::new();
    let answer = ask(&mut raw, &mut follower, &longer);
    assert_eq!(
        answer,
        Followed::Refused {
            topic: longer.clone()
        }
    );
    let answer = ask(&mut raw, &mut follower, &longest);
    assert!(matches!(answer, Followed::Live { .. }));
    assert!(server.handle.publish(&longest, "kept") && !server.handle.publish(&longer, "not kept"));
    drop(raw);
    until("it has left", || server.handle.subscribers(&longest) == 0);
    assert!(!peer.subscribe("news/after"));
    assert_eq!(server.handle.metrics().total.subscriptions_refused, 2);
}

/// From many threads at once, too.
#[test]
fn no_more_than_that_from_many_threads() {
    let (server, seen) = server(|s| s.max_subscriptions(10));
    let _raw = Raw::open(server.addr);
    let peer = seen.peer();
    std::thread::scope(|scope| {
        for id in 0..4 {
            let peer = &peer;
            scope.spawn(move || {
                for n in 0..100 {
                    let topic = format!("news/{id}/{n}");
                    match n % 2 {
                        0 => peer.subscribe(&topic),
                        _ => peer.subscribe_from(&topic, Since::Now),
                    };
                }
            });
        }
    });
    let topics = (0..4).flat_map(|id| (0..100).map(move |n| format!("news/{id}/{n}")));
    let subscribed = topics.filter(|topic| server.handle.subscribers(topic) == 1);
    assert_eq!(subscribed.count(), 10);
    let metrics = server.handle.metrics().total;
    assert_eq!(metrics.subscriptions_refused, 390);
}

/// Also by a handler, of what it does not grant.
#[test]
fn a_refusal_is_understood() {
    let mut follower = Follower::new();
    for since in [
        Since::Now,
        Since::Start,
        "5-3-7".parse::<framemill::Offset>().unwrap().into(),
    ] {
        let request = follower.follow("a b", since);
        let follow = Follow::parse(&request).unwrap();
        let refused = Followed::Refused {
            topic: "a b".into(),
        };
        assert_eq!(follower.take(follow.refusal()), refused);
        // It asks again when it comes back, from where it was.
        assert_eq!(follower.requests(), [request]);
    }
    for other in [
        "refused\n",
        "refused now\n",
        "refused 1 a b\n",
        "refused now c\n",
    ] {
        let other = Message::text(other);
        assert_eq!(follower.take(other.clone()), Followed::Other(other));
    }
}
