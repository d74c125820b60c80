//! Topics that keep their last messages, on one server: nothing is missed, nothing comes twice, and
//! whoever was away for too long, or is too slow, is told so.

mod support;

use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded};
use framemill::{
    Follow, Followed, Follower, History, Members, Message, Offset, Overflow, Peer, Refused, Room,
    Rooms, Sent, Server, Since,
};
use support::following::{AGE, client, message, only_the_young, place, server, until_live};
use support::spy::{Seen, narrow, number, numbered, spy, upgraded};
use support::{Raw, Running, Transport, WAIT, serve, until};

const THREADS: [(usize, usize); 3] = [(1, 0), (1, 2), (2, 2)];

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
    assert_eq!(other, Offset::new(1, 1));
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

// ---- more than a queue takes ----

/// More than the default `outbound_limit`, and than the kernel holds of it.
const LONG: u32 = 20_000;

/// A server that lets clients follow what they ask for, with a topic `it` of `LONG` messages of 200 bytes.
fn long_history(settings: impl FnOnce(Server) -> Server) -> (Running, Seen) {
    let server = history_to_be(settings);
    publish(&server.0, 0..LONG);
    server
}

/// The same before anything was published.
fn history_to_be(settings: impl FnOnce(Server) -> Server) -> (Running, Seen) {
    let (handler, seen) = spy(|peer: &Peer, message| {
        let follow = Follow::parse(&message).unwrap();
        assert!(peer.subscribe_from(&follow.topic, follow.since));
    });
    let settings = |s: Server| settings(s.history("*", History::last(LONG as usize)));
    (Transport::Plain.serve_narrow(settings, handler), seen)
}

fn publish(server: &Running, numbers: std::ops::Range<u32>) {
    for n in numbers {
        assert!(server.handle.publish("it", numbered(n, 200)));
    }
}

/// A client that has asked for all of `it` and reads nothing yet.
fn follower((server, seen): &(Running, Seen)) -> (Raw, Peer, Follower) {
    let mut raw = upgraded(narrow(server.addr));
    let mut follower = Follower::new();
    let request = follower.follow("it", Since::Start);
    let peer = seen.peer();
    raw.write(&support::frame(0x81, request.to_text().unwrap().as_bytes()));
    until("it follows", || server.handle.subscribers("it") == 1);
    (raw, peer, follower)
}

/// The number of the next message; an error: a gap, or live.
fn next(raw: &mut Raw, follower: &mut Follower) -> Result<u32, Followed> {
    match follower.take(message(raw)) {
        Followed::Message { message, .. } => Ok(number(&message.into_data())),
        other => Err(other),
    }
}

#[test]
fn a_history_longer_than_the_queue_comes_whole() {
    for overflow in [Overflow::Close, Overflow::DropNewest, Overflow::DropOldest] {
        for workers in [0, 2] {
            let server = long_history(|s| s.workers(workers).overflow(overflow));
            let (mut raw, peer, mut follower) = follower(&server);
            // It has not come so far that this were sent as it happens.
            publish(&server.0, LONG..LONG + 100);
            assert!(peer.queued_bytes() < 512 << 10);
            for n in 0..LONG + 100 {
                assert_eq!(
                    next(&mut raw, &mut follower),
                    Ok(n),
                    "{overflow:?}, workers {workers}"
                );
            }
            let live = next(&mut raw, &mut follower);
            assert!(matches!(live, Err(Followed::Live { .. })), "{live:?}");
            publish(&server.0, LONG + 100..LONG + 101);
            assert_eq!(next(&mut raw, &mut follower), Ok(LONG + 100));
        }
    }
}

/// Where each message is kept by itself, that counts towards the limit, and short ones come to much more than
/// their bytes.
#[test]
fn short_messages_of_a_long_history_come_whole() {
    for workers in [0, 2] {
        let server = history_to_be(|s| s.workers(workers).overflow(Overflow::DropOldest));
        for n in 0..LONG {
            assert!(server.0.handle.publish("it", numbered(n, 4)));
        }
        let (mut raw, _, mut follower) = follower(&server);
        for n in 0..LONG {
            assert_eq!(next(&mut raw, &mut follower), Ok(n), "workers {workers}");
        }
        let live = next(&mut raw, &mut follower);
        assert!(matches!(live, Err(Followed::Live { .. })), "{live:?}");
    }
}

/// A publisher is faster than this client: it is told of each hole.
#[test]
fn whoever_falls_behind_a_history_is_told() {
    let server = long_history(|s| s);
    let (mut raw, _, mut follower) = follower(&server);
    let end = 3 * LONG;
    publish(&server.0, LONG..end);
    let (mut expected, mut gaps) = (0, 0);
    loop {
        match next(&mut raw, &mut follower) {
            Ok(n) => assert_eq!(n, std::mem::replace(&mut expected, n + 1)),
            Err(Followed::Gap { offset, .. }) => {
                // The first message has number 1.
                expected = place(offset) as u32;
                gaps += 1;
            }
            Err(Followed::Live { .. }) => break,
            Err(other) => panic!("{other:?}"),
        }
    }
    assert!(expected == end && gaps > 0, "{gaps} gaps, then {expected}");
}

/// In the middle of it: to subscribe changes nothing, to unsubscribe ends it, and so does the end of the
/// connection.
#[test]
fn a_long_history_can_be_ended() {
    let server = long_history(|s| s);
    let handle = &server.0.handle;
    let (mut raw, peer, mut follower) = follower(&server);
    assert!(peer.subscribe("it"));
    assert_eq!(handle.subscribers("it"), 1);
    assert!(peer.unsubscribe("it") && !peer.unsubscribe("it"));
    assert_eq!(handle.subscribers("it"), 0);
    peer.send("end").unwrap();
    let end = Followed::Other(Message::text("end"));
    let mut got = 0;
    while let Ok(n) = next(&mut raw, &mut follower).inspect_err(|last| assert_eq!(*last, end)) {
        assert_eq!(n, got);
        got += 1;
    }
    assert!((1..LONG).contains(&got));
    assert!(peer.subscribe_from("it", Since::Start));
    assert_eq!(handle.subscribers("it"), 1);
    drop(raw);
    until("it has left", || handle.subscribers("it") == 0);
}

/// A long one leaves room for others.
#[test]
fn histories_take_turns() {
    let server = long_history(|s| s);
    server.0.handle.publish("next", "x");
    let (mut raw, peer, mut follower) = follower(&server);
    assert!(peer.subscribe_from("next", Since::Start));
    follower.follow("next", Since::Start);
    let mut before = 0;
    loop {
        match follower.take(message(&mut raw)) {
            Followed::Message { topic, .. } if topic == "next" => break,
            _ => before += 1,
        }
    }
    assert!(before < LONG, "all of the other came first");
}

#[test]
fn by_time_alone() {
    let forever = History::for_the_last(Duration::from_secs(3600));
    let at_once = History::for_the_last(Duration::ZERO);
    let server = server(|s| s.history("long", forever).history("short", at_once));
    let handle = &server.0.handle;
    let (mut raw, peer) = client(&server);
    let mut follower = Follower::new();
    for topic in ["long", "short"] {
        for n in 0..100 {
            assert!(handle.publish(topic, n.to_string()));
        }
        follower.follow(topic, Since::Start);
    }
    let published = Instant::now();
    assert!(peer.subscribe_from("long", Since::Start));
    assert_eq!(until_live(&mut raw, &mut follower).len(), 100);
    until("some time is over", || published.elapsed() > Duration::ZERO);
    assert!(peer.subscribe_from("short", Since::Start));
    assert!(until_live(&mut raw, &mut follower).is_empty());
}

#[test]
fn what_is_too_old_is_not_kept() {
    let server = server(|s| s.history("it", History::for_the_last(AGE)));
    only_the_young(
        |text| assert!(server.0.handle.publish("it", text)),
        || {
            let (mut raw, peer) = client(&server);
            let mut follower = Follower::new();
            follower.follow("it", Since::Start);
            assert!(peer.subscribe_from("it", Since::Start));
            until_live(&mut raw, &mut follower)
        },
    );
}

/// However few messages that is; one that is longer than all of it is not kept.
#[test]
fn by_bytes() {
    let keep = History::last(1000).no_larger_than(10_000);
    let server = server(|s| s.history("*", keep));
    let handle = &server.0.handle;
    let (mut raw, peer) = client(&server);
    let mut follower = Follower::new();
    follower.follow("it", Since::Start);
    for n in 0..100 {
        assert!(handle.publish("it", numbered(n, 1000)));
    }
    // Whether something is missing before, the numbers, and where the last is.
    let mut missed = |since: Since| {
        assert!(peer.subscribe_from("it", since));
        let (mut gap, mut all) = (false, Vec::new());
        loop {
            match follower.take(message(&mut raw)) {
                Followed::Message { message, .. } => all.push(number(&message.into_data())),
                Followed::Gap { .. } => gap = true,
                Followed::Live { offset, .. } => {
                    assert!(peer.unsubscribe("it"));
                    return (gap, all, offset);
                }
                other => panic!("{other:?}"),
            }
        }
    };
    let (gap, all, last) = missed(Since::Start);
    // With what is beside each.
    assert_eq!((gap, all), (false, (91..100).collect()));
    assert!(handle.publish("it", numbered(100, 5000)));
    let (gap, all, _) = missed(last.into());
    assert_eq!((gap, all), (false, vec![100]));
    assert_eq!(missed(Since::Start).1, (96..101).collect::<Vec<_>>());
    assert!(handle.publish("it", numbered(101, 10_000)));
    let (gap, all, _) = missed(last.into());
    assert_eq!((gap, all), (true, Vec::new()));
    assert!(handle.publish("it", numbered(102, 1000)));
    assert_eq!(missed(Since::Start).1, [102]);
}

/// However many topics peers publish to. Those with subscribers stay, and the latest of the others.
#[test]
fn topics_that_nobody_subscribes_to_are_forgotten() {
    const TOPICS: u32 = 5000;
    let server = server(|s| s.idle_histories(1 << 20).history("*", History::last(10)));
    let handle = &server.0.handle;
    let publish = |n: u32| assert!(handle.publish(&n.to_string(), numbered(n, 1000)));
    // What is kept of this, whether something is missing before, and where the latest is.
    let kept = |n: u32, since: Since| {
        let (mut raw, peer) = client(&server);
        let (topic, mut follower) = (n.to_string(), Follower::new());
        follower.follow(&topic, since);
        assert!(peer.subscribe_from(&topic, since));
        let (mut all, mut gap) = (Vec::new(), false);
        loop {
            match follower.take(message(&mut raw)) {
                Followed::Message { message, .. } => all.push(number(&message.into_data())),
                Followed::Gap { .. } => gap = true,
                Followed::Live { offset, .. } => return (all, gap, offset),
                other => panic!("{other:?}"),
            }
        }
    };
    let (_raw, stays) = client(&server);
    assert!(stays.subscribe("0"));
    publish(0);
    publish(1);
    let (all, gap, of_one) = kept(1, Since::Start);
    assert_eq!((all, gap), (vec![1], false));
    until("it has left", || handle.subscribers("1") == 0);
    (2..TOPICS).for_each(publish);
    assert_eq!(kept(0, Since::Start).0, [0]);
    let (all, gap, _) = kept(1, of_one.into());
    assert_eq!((all, gap), (Vec::new(), true));
    // A message with its topic comes to 1.7 KB.
    let first = (2..TOPICS).find(|&n| !kept(n, Since::Start).0.is_empty());
    let left = TOPICS - first.unwrap();
    assert!((500..800).contains(&left), "{left}");
    for n in TOPICS - left..TOPICS {
        assert_eq!(kept(n, Since::Start).0, [n]);
    }
}

/// A follower that does not keep up gets only the newest of each key, and what it gets is in order: so
/// wherever its connection ends, it has missed nothing that it is not sent when it comes back.
#[test]
fn the_newest_of_each_key_comes_in_its_order() {
    const ROUNDS: u32 = 200;
    let server = server(|s| s.history("it", History::last(5000)));
    let handle = &server.0.handle;
    let (mut raw, peer) = client(&server);
    let mut follower = Follower::new();
    follower.follow("it", Since::Now);
    assert!(peer.subscribe_from("it", Since::Now));
    assert!(until_live(&mut raw, &mut follower).is_empty());
    fill(&peer);
    for round in 0..ROUNDS {
        assert!(handle.publish_latest("it", "a", format!("a {round}")));
        assert!(handle.publish_latest("it", "b", format!("b {round}")));
        if round % 10 == 0 {
            assert!(handle.publish("it", format!("all {round}")));
        }
    }
    assert!(handle.publish("it", "end"));
    let mut got: Vec<(Offset, String)> = Vec::new();
    while got.last().is_none_or(|(_, text)| text != "end") {
        match follower.take(message(&mut raw)) {
            Followed::Message {
                offset, message, ..
            } => got.push((offset, message.to_string())),
            Followed::Other(_) => {}
            other => panic!("{other:?}"),
        }
    }
    let places: Vec<u64> = got.iter().map(|(offset, _)| place(*offset)).collect();
    assert!(places.is_sorted_by(|a, b| a < b), "{got:?}");
    let last = ROUNDS - 1;
    let mut expected: Vec<String> = (0..ROUNDS)
        .step_by(10)
        .map(|n| format!("all {n}"))
        .collect();
    expected.extend([format!("a {last}"), format!("b {last}"), "end".to_owned()]);
    let texts: Vec<_> = got.iter().map(|(_, text)| text).collect();
    assert!(texts.into_iter().eq(&expected), "{got:?}");
    // From any of them on.
    for (n, (offset, _)) in got.iter().enumerate() {
        let (mut raw, peer) = client(&server);
        assert!(peer.subscribe_from("it", *offset));
        let rest = until_live(&mut raw, &mut follower);
        for text in &expected[n + 1..] {
            let times = rest.iter().filter(|other| *other == text).count();
            assert_eq!(times, 1, "{text} after {offset}");
        }
        assert!(expected[..=n].iter().all(|text| !rest.contains(text)));
    }
}

/// Sends until the peer, which does not read, is stalled.
fn fill(peer: &Peer) {
    for _ in 0..10_000 {
        if peer.send(numbered(0, 8000)).unwrap() == Sent::Congested {
            return;
        }
    }
    panic!("it never stalls");
}

/// One who asks for all of a long history in a call of the room, behind what the room has said, and does
/// not come back before it is told to.
struct Asks {
    asked: Sender<Peer>,
    go: Receiver<()>,
}

impl Room for Asks {
    type Join = ();

    fn join(&mut self, _: &mut Members, _: &Peer, (): ()) -> Result<(), Refused> {
        Ok(())
    }

    fn message(&mut self, room: &mut Members, peer: &Peer, _: Message) {
        room.broadcast("here it comes");
        assert!(peer.subscribe_from("it", Since::Start));
        self.asked.send(peer.clone()).unwrap();
        self.go.recv_timeout(WAIT).unwrap();
    }
}

/// In a call of a room what is sent is held back, but not the first piece: the loop has reason to send the
/// next one before the call is over.
#[test]
fn pieces_of_a_room_and_of_the_loop_come_in_order() {
    let (asked, peers) = bounded(1);
    let (go, going) = bounded(1);
    let rooms = Rooms::new(move |_| Asks {
        asked: asked.clone(),
        go: going.clone(),
    });
    let handler = rooms.handler(|_| Ok(("room".to_owned(), ())));
    let settings = |s: Server| {
        // So that a piece, which is measured generously, leaves some room.
        let s = s.workers(2).overflow(Overflow::DropOldest);
        s.history("*", History::last(LONG as usize))
    };
    let server = serve(settings, handler);
    publish(&server, 0..LONG);
    for n in 0..LONG / 10 {
        assert!(server.handle.publish("next", numbered(n, 200)));
    }
    let mut raw = Raw::open(server.addr);
    raw.write(&support::frame(0x81, b"x"));
    let peer = peers.recv_timeout(WAIT).unwrap();
    assert!(peer.subscribe_from("next", Since::Start));
    assert!(peer.send("so far").is_ok());
    let mut follower = Follower::new();
    follower.follow("it", Since::Start);
    let (mut got, mut others) = (0, Vec::new());
    while got < LONG {
        match follower.take(message(&mut raw)) {
            Followed::Message { message, .. } => {
                assert_eq!(number(&message.into_data()), got);
                got += 1;
            }
            Followed::Other(Message::Text(text)) => {
                if text.as_str() == "so far" {
                    go.send(()).unwrap();
                }
                others.push(text.to_string());
            }
            Followed::Other(_) => {}
            other => panic!("{other:?}"),
        }
    }
    others.retain(|text| !text.starts_with("live "));
    assert_eq!(others, ["here it comes", "so far"]);
}
