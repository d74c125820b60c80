//! Topics that span nodes, through a real Redis: who gets what, once, and what happens while Redis is
//! away or a node is cut off.
#![cfg(all(unix, feature = "redis"))]

mod support;

use std::thread;
use std::time::{Duration, Instant};

use framemill::{History, Message, Offset, Peer, ServerHandle, Since};
use support::following::{AGE, only_the_young};
use support::redis::{Redis, Wire};
use support::sequences::Sequences;
use support::spy::{Seen, spy};
use support::{Raw, Running, serve, until};

/// A server that spans topics over this Redis, and does nothing by itself.
fn node(url: &str) -> (Running, Seen) {
    let (handler, seen) = spy(|_, _| ());
    let redis = framemill::Redis::new(url).unwrap();
    let settings = |s: framemill::Server| s.loops(2).workers(1).backplane(redis);
    let server = serve(|s| settings(s).max_subscriptions(20_000), handler);
    until("the node is connected", || connected(&server.handle));
    (server, seen)
}

fn connected(handle: &ServerHandle) -> bool {
    let state = handle.backplane_state();
    state.connected && state.subscribed == state.topics
}

fn client((server, seen): &(Running, Seen), topics: &[&str]) -> (Raw, Peer) {
    let raw = Raw::open(server.addr);
    let peer = seen.peer();
    for topic in topics {
        assert!(peer.subscribe(topic));
    }
    until("it is subscribed", || connected(&server.handle));
    (raw, peer)
}

fn text(raw: &mut Raw) -> String {
    let (first, payload) = raw.frame().expect("one more message");
    assert_eq!(first, 0x81);
    String::from_utf8(payload).unwrap()
}

#[test]
fn each_subscriber_on_each_node_once_and_in_order() {
    const MESSAGES: u32 = 2000;
    let Some(redis) = Redis::start() else { return };
    let nodes: Vec<_> = (0..3).map(|_| node(&redis.url())).collect();
    let mut clients: Vec<_> = nodes
        .iter()
        .flat_map(|node| [client(node, &["all"]), client(node, &["all", "others"])])
        .collect();
    thread::scope(|scope| {
        for (id, (server, _)) in nodes.iter().enumerate() {
            scope.spawn(move || {
                for n in 0..MESSAGES {
                    // Within what a queue holds.
                    until("there is room", || {
                        server.handle.backplane_state().queued < 500
                    });
                    assert!(server.handle.publish("all", format!("{id}:{n}")));
                }
            });
        }
        for (raw, _) in &mut clients {
            scope.spawn(move || {
                Sequences::default().read(raw, 3 * MESSAGES);
            });
        }
    });
    // Nothing came twice: this is next.
    assert!(clients[0].1.publish("all", "from a peer"));
    for (raw, _) in &mut clients[1..] {
        assert_eq!(text(raw), "from a peer");
    }
    assert!(
        nodes[1]
            .0
            .handle
            .publish("others", Message::binary(vec![0, 255]))
    );
    for n in [1, 3, 5] {
        assert_eq!(clients[n].0.frame(), Some((0x82, vec![0, 255])));
    }
    for (server, _) in &nodes {
        let state = server.handle.backplane_state();
        assert_eq!((state.lost, state.repeated, state.failures), (0, 0, 0));
        assert_eq!((state.topics, state.subscribed), (2, 2));
    }
}

/// Topics come and go with their subscribers, at Redis too.
#[test]
fn only_what_is_subscribed_to() {
    let Some(redis) = Redis::start() else { return };
    let (one, other) = (node(&redis.url()), node(&redis.url()));
    let channels = || redis.ask("PUBSUB CHANNELS framemill:t:*");
    assert_eq!(channels().as_deref(), Some("*0"));
    let (_raw, peer) = client(&one, &["a", "b"]);
    let (_raw, other_peer) = client(&other, &["b"]);
    until("two are subscribed to", || {
        channels().as_deref() == Some("*2")
    });
    assert!(other.0.handle.publish("a", "to one"));
    assert!(one.0.handle.publish("a", "to nobody else"));
    until("it is there", || {
        one.0.handle.backplane_state().received == 1
    });
    assert!(peer.unsubscribe("a") && peer.unsubscribe("b") && peer.subscribe("c"));
    let subscribed = |topic: &str| {
        let channels = redis.ask(&format!("PUBSUB CHANNELS framemill:t:{topic}"));
        channels.as_deref() == Some("*1")
    };
    until("the one of the other is left", || {
        subscribed("b") && subscribed("c") && !subscribed("a")
    });
    assert!(other_peer.unsubscribe("b") && peer.unsubscribe("c"));
    until("none is left", || channels().as_deref() == Some("*0"));
    assert_eq!(other.0.handle.backplane_state().received, 0);
}

/// Here everything goes on; there it arrives later, as far as there is room.
#[test]
fn while_redis_is_away() {
    let Some(mut redis) = Redis::start() else {
        return;
    };
    let wire = Wire::to(&redis);
    let (handler, seen) = spy(|_, _| ());
    let small = framemill::Redis::new(&wire.url).unwrap().queue(10, 1 << 20);
    let one = (serve(|s| s.backplane(small), handler), seen);
    let other = node(&redis.url());
    let (mut here, _peer) = client(&one, &["it"]);
    let (mut there, _other_peer) = client(&other, &["it"]);
    redis.kill();
    wire.mend();
    until("it is noticed", || {
        !connected(&one.0.handle) && !connected(&other.0.handle)
    });
    for n in 0..15 {
        assert!(one.0.handle.publish("it", n.to_string()));
        assert_eq!(text(&mut here), n.to_string());
    }
    let state = one.0.handle.backplane_state();
    assert_eq!((state.lost, state.queued, state.queued_bytes), (5, 10, 30));
    // Not before the other listens again, or it would miss what was queued: without history that is
    // what happens.
    wire.cut();
    redis.begin();
    until("the other is back", || connected(&other.0.handle));
    wire.mend();
    for n in 0..10 {
        assert_eq!(text(&mut there), n.to_string());
    }
    until("the queue is empty", || {
        one.0.handle.backplane_state().queued == 0 && connected(&one.0.handle)
    });
    assert!(one.0.handle.publish("it", "end"));
    assert_eq!(text(&mut there), "end");
    assert_eq!(text(&mut here), "end");
}

/// A Redis without memory passes on what it needn't keep; the rest comes once there is room.
#[test]
fn a_redis_that_is_full() {
    const MESSAGES: u32 = 1000;
    let Some(redis) = Redis::start() else { return };
    let (one, other) = (keeping(&redis.url()), keeping(&redis.url()));
    let (mut raw, peer) = client(&other, &["it"]);
    assert!(peer.subscribe_from("kept", Since::Now));
    assert_eq!(said(&mut raw).0, "live");
    assert!(one.0.handle.publish("kept", "before"));
    assert_eq!(said(&mut raw).2, "before");
    assert_eq!(redis.ask("CONFIG SET maxmemory 1").as_deref(), Some("+OK"));
    let _ada = one.0.handle.enter("hall", "ada").unwrap();
    for n in 0..MESSAGES {
        if n % 100 == 0 {
            assert!(one.0.handle.publish("kept", (n / 100).to_string()));
        }
        assert!(one.0.handle.publish("it", n.to_string()));
    }
    for n in 0..MESSAGES {
        assert_eq!(text(&mut raw), n.to_string());
    }
    // What is kept can be had, on a node that has to fetch it too.
    for node in [&other, &keeping(&redis.url())] {
        assert_eq!(missed(node, Since::Start), ["before"]);
    }
    let state = one.0.handle.backplane_state();
    assert_eq!((state.connected, state.failures), (true, 0));
    assert_eq!((state.queued, state.lost), (10, 0));
    assert_eq!(other.0.handle.backplane_state().repeated, 0);
    assert_eq!(redis.ask("CONFIG SET maxmemory 0").as_deref(), Some("+OK"));
    for n in 0..10 {
        let (kind, _, text) = said(&mut raw);
        assert_eq!((kind.as_str(), text), ("msg", n.to_string()));
    }
    until("she is there", || other.0.handle.who("hall") == ["ada"]);
    until("nothing waits", || {
        one.0.handle.backplane_state().queued == 0
    });
}

/// One that is busy with a script refuses everything, in the middle of a batch perhaps: what could not be
/// passed on in order is counted.
#[test]
fn a_redis_that_is_busy() {
    const MESSAGES: u32 = 5000;
    let Some(redis) = Redis::start() else { return };
    let (one, other) = (node(&redis.url()), node(&redis.url()));
    let (mut raw, _peer) = client(&other, &["it"]);
    assert!(redis.ask("CONFIG SET lua-time-limit 1").is_some());
    thread::scope(|scope| {
        scope.spawn(|| redis.ask("EVAL \"while true do end\" 0"));
        until("it is busy", || {
            redis.ask("PING").is_some_and(|it| it.starts_with("-BUSY"))
        });
        for n in 0..MESSAGES {
            assert!(one.0.handle.publish("it", n.to_string()));
        }
        until("it is noticed", || !connected(&one.0.handle));
        assert_eq!(redis.ask("SCRIPT KILL").as_deref(), Some("+OK"));
    });
    until("nothing waits", || {
        one.0.handle.backplane_state().queued == 0
    });
    assert!(one.0.handle.publish("it", "end"));
    let (mut got, mut last) = (0, None);
    loop {
        let text = text(&mut raw);
        if text == "end" {
            break;
        }
        let n: u32 = text.parse().unwrap();
        assert!(last < Some(n), "once and in order");
        (got, last) = (got + 1, Some(n));
    }
    let lost = one.0.handle.backplane_state().lost;
    assert_eq!(got + lost, u64::from(MESSAGES));
    assert_eq!(other.0.handle.backplane_state().repeated, 0);
}

/// All that Redis says to one that comes back with very many topics would not fit into its buffer.
#[test]
fn a_node_with_very_many_topics() {
    const TOPICS: usize = 20_000;
    let Some(redis) = Redis::start() else { return };
    let one = node(&redis.url());
    let limit = "CONFIG SET client-output-buffer-limit \"pubsub 256kb 0 0\"";
    assert_eq!(redis.ask(limit).as_deref(), Some("+OK"));
    let topics: Vec<_> = (0..TOPICS).map(|n| format!("{n:0200}")).collect();
    let names: Vec<_> = topics.iter().map(String::as_str).collect();
    let (_raw, _peer) = client(&one, &names);
    assert_eq!(one.0.handle.backplane_state().subscribed, TOPICS);
    assert!(redis.ask("CLIENT KILL TYPE pubsub").is_some());
    until("it is noticed", || {
        one.0.handle.backplane_state().failures > 0
    });
    until("all are back", || connected(&one.0.handle));
    let state = one.0.handle.backplane_state();
    assert_eq!((state.subscribed, state.failures), (TOPICS, 1));
}

/// Packets that are lost tell nobody. What was not acknowledged is sent again, and nothing twice.
#[test]
fn a_node_that_is_cut_off() {
    const MESSAGES: u32 = 500;
    let Some(redis) = Redis::start() else { return };
    let wire = Wire::to(&redis);
    let (far, near) = (node(&wire.url), node(&redis.url()));
    let (mut raw, _peer) = client(&near, &["it"]);
    for n in 0..MESSAGES {
        assert!(far.0.handle.publish("it", n.to_string()));
        if n == MESSAGES / 2 {
            until("half of it is on its way", || {
                far.0.handle.backplane_state().published > 0
            });
            wire.cut();
        }
    }
    until("it is noticed", || {
        !far.0.handle.backplane_state().connected
    });
    wire.mend();
    for n in 0..MESSAGES {
        assert_eq!(text(&mut raw), n.to_string());
    }
    until("it is connected again", || connected(&far.0.handle));
    assert!(far.0.handle.publish("it", "end"));
    assert_eq!(text(&mut raw), "end");
    assert_eq!(far.0.handle.backplane_state().lost, 0);
}

/// What was published before the end arrives; a server whose Redis is not there ends all the same.
#[test]
fn the_end_of_a_node() {
    let Some(redis) = Redis::start() else { return };
    let (one, other) = (node(&redis.url()), node(&redis.url()));
    let (mut raw, _peer) = client(&other, &["it"]);
    for n in 0..1000 {
        assert!(one.0.handle.publish("it", n.to_string()));
    }
    assert!(one.0.handle.shutdown(Duration::from_secs(20)));
    for n in 0..1000 {
        assert_eq!(text(&mut raw), n.to_string());
    }
    let (handler, _seen) = spy(|_, _| ());
    let nowhere = framemill::Redis::new("unix:///there/is/none").unwrap();
    let lonely = serve(|s| s.backplane(nowhere), handler);
    assert!(lonely.handle.publish("it", "to nobody"));
    until("it was tried", || {
        lonely.handle.backplane_state().failures > 2
    });
    assert!(lonely.handle.shutdown(Duration::from_millis(50)));
    // Its threads may need longer than they are waited for.
    until("it is counted", || {
        lonely.handle.backplane_state().lost == 1
    });
}

/// Without Redis, a node that has nothing to say waits for nothing; one that has ended takes nothing more.
#[test]
fn the_end_without_redis() {
    let (handler, _seen) = spy(|_, _| ());
    let nowhere = framemill::Redis::new("unix:///there/is/none").unwrap();
    let settings = |s: framemill::Server| s.backplane(nowhere).history("kept", History::last(3));
    let lonely = serve(settings, handler);
    let handle = &lonely.handle;
    drop(handle.enter("hall", "ada"));
    let asked = Instant::now();
    assert!(handle.shutdown(support::WAIT));
    assert!(asked.elapsed() < support::WAIT / 4);
    assert!(!handle.publish("kept", "too late"));
    handle.publish("it", "too late");
    let state = handle.backplane_state();
    assert_eq!((state.queued, state.queued_bytes), (0, 0));
}

/// Names take memory as messages do; of a topic that nobody can subscribe to, no other node has to hear.
#[test]
fn long_names_while_redis_is_away() {
    const ROOM: usize = 100_000;
    let (handler, _seen) = spy(|_, _| ());
    let nowhere = framemill::Redis::new("unix:///there/is/none").unwrap();
    let lonely = serve(|s| s.backplane(nowhere.queue(10_000, ROOM)), handler);
    let state = || lonely.handle.backplane_state();
    let too_long = "x".repeat(1025);
    assert!(lonely.handle.publish(&too_long, "m"));
    assert_eq!((state().queued, state().lost), (0, 0));
    for n in 0..200 {
        assert!(lonely.handle.publish(&format!("{n:01000}"), "m"));
        assert!(
            lonely
                .handle
                .publish_latest("it", format!("{n:01000}"), "m")
        );
    }
    assert_eq!(state().queued + state().lost as usize, 400);
    assert!((ROOM - 2000..=ROOM).contains(&state().queued_bytes));
    assert!(state().queued <= 100);
}

/// A password, a user and a database are part of its URL.
#[test]
fn who_is_let_in_by_redis() {
    let Some(redis) = Redis::start() else { return };
    let wire = Wire::to(&redis);
    let user = "ACL SETUSER ben on >secret ~* &* +@all";
    assert_eq!(redis.ask(user).as_deref(), Some("+OK"));
    let url = |user: &str, rest: &str| wire.url.replace("//", &format!("//{user}@")) + rest;
    let one = node(&url("ben:secret", "7"));
    let _ada = one.0.handle.enter("hall", "ada").unwrap();
    let seventh = "EVAL \"redis.call('SELECT', 7) return redis.call('DBSIZE')\" 0";
    until("she is there", || {
        redis.ask(seventh).as_deref() == Some(":1")
    });
    assert_eq!(redis.ask("DBSIZE").as_deref(), Some(":0"));
    assert_eq!(
        redis.ask("ACL SETUSER default >other").as_deref(),
        Some("+OK")
    );
    let password_only = node(&url(":other", ""));
    assert!(password_only.0.handle.publish("it", "let in"));
    let (handler, _seen) = spy(|_, _| ());
    let wrong = framemill::Redis::new(url(":wrong", "")).unwrap();
    let outside = serve(|s| s.backplane(wrong), handler);
    until("it was tried", || {
        outside.handle.backplane_state().failures > 1
    });
    assert!(!outside.handle.backplane_state().connected);
}

#[test]
fn what_is_no_url() {
    for url in ["", "http://a/", "redis://host:port"] {
        assert!(framemill::Redis::new(url).is_err(), "{url:?}");
    }
}

// ---- history ----

/// Three messages are kept.
fn keeping(url: &str) -> (Running, Seen) {
    let (handler, seen) = spy(|_, _| ());
    let redis = framemill::Redis::new(url).unwrap();
    let settings = |s: framemill::Server| s.backplane(redis).history("kept", History::last(3));
    let server = serve(settings, handler);
    until("the node is connected", || connected(&server.handle));
    (server, seen)
}

/// The kind of a message (`msg`, `live`, `gap`) and what is behind its first line.
fn said(raw: &mut Raw) -> (String, Offset, String) {
    let text = text(raw);
    let (line, rest) = text.split_once('\n').expect(&text);
    let mut words = line.split(' ');
    let kind = words.next().unwrap().to_owned();
    let offset = words.next().unwrap().parse().unwrap();
    (kind, offset, rest.to_owned())
}

/// From a client's coming back until it is live.
fn missed(node: &(Running, Seen), since: impl Into<Since>) -> Vec<String> {
    let (mut raw, peer) = client(node, &[]);
    assert!(peer.subscribe_from("kept", since));
    let mut all = Vec::new();
    loop {
        match said(&mut raw) {
            (kind, _, text) if kind == "msg" => all.push(text),
            (kind, ..) if kind == "live" => return all,
            (kind, ..) => all.push(kind),
        }
    }
}

#[test]
fn what_is_kept_is_kept_for_all_nodes() {
    let Some(redis) = Redis::start() else { return };
    let (one, other) = (keeping(&redis.url()), keeping(&redis.url()));
    let (mut raw, peer) = client(&one, &[]);
    assert!(peer.subscribe_from("kept", Since::Start));
    let (kind, nothing, _) = said(&mut raw);
    assert_eq!((kind.as_str(), nothing), ("live", Offset::default()));
    let mut offsets = vec![nothing];
    for n in 0..6 {
        // By turns, and the sender is left out.
        assert!(
            [&one, &other][n % 2]
                .0
                .handle
                .publish("kept", n.to_string())
        );
        let (kind, offset, text) = said(&mut raw);
        assert_eq!((kind, text), ("msg".to_owned(), n.to_string()));
        offsets.push(offset);
        if n == 2 {
            assert_eq!(
                missed(&other, nothing),
                ["0", "1", "2"],
                "all that there ever was"
            );
        }
    }
    assert!(peer.publish("kept", "6"));
    let published = |node: &(Running, Seen)| node.0.handle.backplane_state().published;
    until("it is published", || published(&one) == 4);
    for node in [&one, &other, &keeping(&redis.url())] {
        assert_eq!(missed(node, Since::Start), ["4", "5", "6"]);
        assert_eq!(missed(node, offsets[4]), ["4", "5", "6"]);
        assert_eq!(missed(node, offsets[6]), ["6"]);
        for lost in [offsets[3], offsets[1], nothing, "7-7".parse().unwrap()] {
            assert_eq!(missed(node, lost), ["gap", "4", "5", "6"], "after {lost}");
        }
        assert!(missed(node, Since::Now).is_empty());
    }
    assert!(other.0.handle.publish("kept", "7"));
    assert_eq!(said(&mut raw).2, "7");
    assert_eq!(redis.ask("XLEN framemill:{kept}:s").as_deref(), Some(":3"));
    for key in ["s", "m"] {
        let answer = redis.ask(&format!("TTL framemill:{{kept}}:{key}")).unwrap();
        let seconds: u32 = answer[1..].parse().unwrap();
        let week = 7 * 86_400;
        assert!((week..=week + 3600).contains(&seconds), "{seconds}");
    }
    // Redis may have let go of one of the two only.
    redis.ask("DEL framemill:{kept}:s");
    assert!(one.0.handle.publish("kept", "8"));
    assert_eq!(said(&mut raw).2, "8");
    let answer = redis.ask("TTL framemill:{kept}:s").unwrap();
    assert!(answer[1..].parse::<i64>().unwrap() > 0, "{answer}");
}

/// Those who are there hear it as well.
#[test]
fn a_redis_that_forgets_is_told_of() {
    let Some(redis) = Redis::start() else { return };
    let (one, other) = (keeping(&redis.url()), keeping(&redis.url()));
    let (mut raw, peer) = client(&one, &[]);
    assert!(peer.subscribe_from("kept", Since::Start));
    assert_eq!(said(&mut raw).0, "live");
    assert!(other.0.handle.publish("kept", "before"));
    let (_, before, _) = said(&mut raw);
    assert_eq!(redis.ask("FLUSHALL").as_deref(), Some("+OK"));
    assert!(other.0.handle.publish("kept", "after"));
    assert_eq!(said(&mut raw).0, "gap");
    assert_eq!(said(&mut raw).2, "after");
    assert_eq!(missed(&one, before), ["gap", "after"]);
    assert_eq!(missed(&other, before), ["gap", "after"]);
}

/// Whoever has been told that all is gone is not given it again by a node that does not know it yet.
#[test]
fn a_redis_that_forgets_all() {
    let Some(redis) = Redis::start() else { return };
    let wire = Wire::to(&redis);
    let (near, far) = (keeping(&redis.url()), keeping(&redis.url()));
    let cut_off = keeping(&wire.url);
    let mut last = Offset::default();
    let mut raws: Vec<_> = [&cut_off, &near, &far]
        .map(|node| {
            let (mut raw, peer) = client(node, &[]);
            assert!(peer.subscribe_from("kept", Since::Start));
            assert_eq!(said(&mut raw).0, "live");
            raw
        })
        .into();
    for n in 0..3 {
        assert!(near.0.handle.publish("kept", n.to_string()));
        for raw in &mut raws {
            last = said(raw).1;
        }
    }
    assert_eq!(redis.ask("FLUSHALL").as_deref(), Some("+OK"));
    // It sees so when it is back.
    wire.mend();
    let (kind, told, _) = said(&mut raws[0]);
    assert_eq!(kind, "gap");
    assert!(missed(&near, told).is_empty());
    // So does one that never knew of it.
    let new = keeping(&redis.url());
    let (mut raw, peer) = client(&new, &[]);
    assert!(peer.subscribe_from("kept", last));
    assert_eq!(said(&mut raw).0, "gap");
    let (kind, told, _) = said(&mut raw);
    assert_eq!(kind, "live");
    assert!(missed(&far, told).is_empty());
    // And nobody misses what comes then.
    assert!(far.0.handle.publish("kept", "after"));
    for raw in &mut raws {
        while said(raw).2 != "after" {}
    }
}

/// One of two goes away: the topics of the other know nothing of it.
#[test]
fn topics_spread_over_several() {
    let (Some(first), Some(mut second)) = (Redis::start(), Redis::start()) else {
        return;
    };
    let node = || {
        let (handler, seen) = spy(|_, _| ());
        let shards = [&first, &second].map(|r| framemill::Redis::new(r.url()).unwrap());
        let shards = framemill::Shards::new(shards.into()).unwrap();
        let settings =
            |s: framemill::Server| s.backplane(shards).history("kept*", History::last(99));
        let server = serve(settings, handler);
        until("the node is connected", || connected(&server.handle));
        (server, seen)
    };
    let (one, other) = (node(), node());
    let topics: Vec<_> = (0..8).map(|n| format!("kept{n}")).collect();
    let (mut raw, peer) = client(&one, &[]);
    for topic in &topics {
        assert!(peer.subscribe_from(topic, Since::Start));
        assert_eq!(said(&mut raw).0, "live");
    }
    let all = |raw: &mut Raw, text: &str| {
        for topic in &topics {
            assert!(other.0.handle.publish(topic, text));
        }
        (0..8).for_each(|_| assert_eq!(said(raw).2, text));
    };
    all(&mut raw, "before");
    let kept = |redis: &Redis| {
        let size = redis.ask("DBSIZE").unwrap();
        size.strip_prefix(':').unwrap().parse::<usize>().unwrap() / 3
    };
    let (here, there) = (kept(&first), kept(&second));
    assert!(
        here > 0 && there > 0 && here + there == 8,
        "{here} and {there}"
    );
    second.kill();
    until("it is missed", || !one.0.handle.backplane_state().connected);
    for topic in &topics {
        assert!(other.0.handle.publish(topic, "meanwhile"));
    }
    (0..here).for_each(|_| assert_eq!(said(&mut raw).2, "meanwhile"));
    assert!(!raw.hears(support::redis::QUIET));
    second.begin();
    (0..there).for_each(|_| assert_eq!(said(&mut raw).2, "meanwhile"));
    all(&mut raw, "after");
}

/// As when it was killed, or its replica took over.
fn forget_the_third(redis: &Redis, last: Offset) {
    let last = last.to_string();
    let epoch = last.split('-').next().unwrap();
    let answer = redis.ask(&format!("XDEL framemill:{{kept}}:s {epoch}-3"));
    assert_eq!(answer.as_deref(), Some(":1"));
    let answer = redis.ask(&format!("XSETID framemill:{{kept}}:s {epoch}-2"));
    assert_eq!(answer.as_deref(), Some("+OK"));
    let answer = redis.ask("HSET framemill:{kept}:m n 2");
    assert_eq!(answer.as_deref(), Some(":0"));
}

/// The numbers that it would give again are seen as such.
#[test]
fn a_redis_that_forgets_the_latest_is_told_of() {
    let Some(redis) = Redis::start() else { return };
    let (one, other) = (keeping(&redis.url()), keeping(&redis.url()));
    let (mut raw, peer) = client(&one, &[]);
    assert!(peer.subscribe_from("kept", Since::Start));
    assert_eq!(said(&mut raw).0, "live");
    let mut last = Offset::default();
    for n in 0..3 {
        assert!(other.0.handle.publish("kept", n.to_string()));
        last = said(&mut raw).1;
    }
    forget_the_third(&redis, last);
    assert!(redis.ask("CLIENT KILL TYPE pubsub").is_some());
    assert_eq!(said(&mut raw).0, "gap");
    until("both are back", || {
        connected(&one.0.handle) && connected(&other.0.handle)
    });
    for n in 3..6 {
        assert!(other.0.handle.publish("kept", n.to_string()));
        assert_eq!(said(&mut raw).2, n.to_string());
    }
    assert_eq!(missed(&one, last), ["gap", "3", "4", "5"]);
}

/// Somebody else has got the number by the time that it could be noticed: nobody's message is passed off as
/// another, on a node that saw the first one or on one that never followed.
#[test]
fn a_number_that_was_given_twice() {
    let Some(redis) = Redis::start() else { return };
    let (one, other) = (keeping(&redis.url()), keeping(&redis.url()));
    let (mut raw, peer) = client(&one, &[]);
    assert!(peer.subscribe_from("kept", Since::Start));
    assert_eq!(said(&mut raw).0, "live");
    let mut offsets = Vec::new();
    for n in 0..3 {
        assert!(other.0.handle.publish("kept", n.to_string()));
        offsets.push(said(&mut raw).1);
    }
    forget_the_third(&redis, offsets[2]);
    assert!(other.0.handle.publish("kept", "third"));
    until("it is published", || {
        other.0.handle.backplane_state().published == 4
    });
    assert!(redis.ask("CLIENT KILL TYPE pubsub").is_some());
    assert_eq!(said(&mut raw).0, "gap");
    assert_eq!(said(&mut raw).2, "third");
    assert_eq!(missed(&one, offsets[2]), ["gap", "third"]);
    assert_eq!(missed(&other, offsets[2]), ["gap", "0", "1", "third"]);
    assert_eq!(missed(&other, offsets[1]), ["third"]);
}

/// As many and as old as may be is more than Redis has numbers for.
#[test]
fn a_history_without_bounds() {
    let Some(redis) = Redis::start() else { return };
    let ages = [Duration::from_secs(60), Duration::MAX];
    for (n, age) in ages.into_iter().enumerate() {
        let (handler, seen) = spy(|_, _| ());
        let backplane = framemill::Redis::new(redis.url()).unwrap();
        let keep = History::last(usize::MAX).no_older_than(age);
        let settings = |s: framemill::Server| s.backplane(backplane).history("kept", keep);
        let one = (serve(settings, handler), seen);
        until("the node is connected", || connected(&one.0.handle));
        assert!(one.0.handle.publish("kept", n.to_string()));
        until("it is published", || {
            one.0.handle.backplane_state().queued == 0
        });
        assert_eq!(one.0.handle.backplane_state().lost, 0);
        let all: Vec<_> = (0..=n).map(|n| n.to_string()).collect();
        assert_eq!(missed(&one, Since::Start), all);
    }
}

/// For a node that has to fetch it, and in Redis as soon as something is published.
#[test]
fn what_is_too_old_is_not_kept() {
    let Some(redis) = Redis::start() else { return };
    let node = || {
        let (handler, seen) = spy(|_, _| ());
        let backplane = framemill::Redis::new(redis.url()).unwrap();
        let keep = History::for_the_last(AGE);
        let settings = |s: framemill::Server| s.backplane(backplane).history("kept", keep);
        let server = serve(settings, handler);
        until("the node is connected", || connected(&server.handle));
        (server, seen)
    };
    let one = node();
    let publish = |text: &str| {
        assert!(one.0.handle.publish("kept", text));
        until("it is published", || {
            one.0.handle.backplane_state().queued == 0
        });
    };
    only_the_young(publish, || missed(&node(), Since::Start));
    let in_redis = || redis.ask("XLEN framemill:{kept}:s");
    let young = Instant::now();
    until("all is too old", || young.elapsed() > AGE);
    publish("the only one");
    assert_eq!(in_redis().as_deref(), Some(":1"));
}

/// In Redis too, for a node that has to fetch it: long ones make room for themselves, however many short ones
/// that takes.
#[test]
fn a_history_of_so_many_bytes() {
    let Some(redis) = Redis::start() else { return };
    let node = || {
        let (handler, seen) = spy(|_, _| ());
        let backplane = framemill::Redis::new(redis.url()).unwrap();
        let keep = History::last(usize::MAX).no_larger_than(100_000);
        let settings = |s: framemill::Server| s.backplane(backplane).history("kept", keep);
        let server = serve(settings, handler);
        until("the node is connected", || connected(&server.handle));
        (server, seen)
    };
    let one = node();
    let long = |n: usize| format!("{n:05000}");
    let all = || missed(&node(), Since::Start);
    let publish = |texts: &[String]| {
        for text in texts {
            assert!(one.0.handle.publish("kept", text.as_str()));
        }
        until("it is published", || {
            one.0.handle.backplane_state().queued == 0
        });
    };
    let in_redis = || {
        let len = redis.ask("XLEN framemill:{kept}:s").unwrap();
        len.strip_prefix(':').unwrap().parse::<usize>().unwrap()
    };
    let short: Vec<_> = (0..2000).map(|n| n.to_string()).collect();
    publish(&short);
    let kept = all();
    assert!((500..1000).contains(&kept.len()), "{}", kept.len());
    assert!((kept.len()..1250).contains(&in_redis()), "{}", in_redis());
    assert_eq!(kept, short[2000 - kept.len()..]);
    // Room for few of them is left, and then for none.
    for (n, most) in [(10, 500), (18, 100), (30, 0)] {
        let texts: Vec<_> = (0..n).map(long).collect();
        publish(&texts);
        let kept = all();
        let last = n.min(19);
        assert!(kept.ends_with(&texts[n - last..]), "{} of {n}", kept.len());
        let others = kept.len() - last;
        assert!(others <= most, "{others} beside {n}");
        assert!(in_redis() <= last + 2 * most + 1, "{} of {n}", in_redis());
    }
    publish(&["0".repeat(100_000), "end".to_owned()]);
    assert_eq!((all(), in_redis()), (vec!["end".to_owned()], 1));
}

/// Whoever asks for what is not known here waits; what was missed comes when Redis is back, and what was
/// published meanwhile too.
#[test]
fn history_while_redis_is_away() {
    let Some(mut redis) = Redis::start() else {
        return;
    };
    let (one, other) = (keeping(&redis.url()), keeping(&redis.url()));
    assert!(one.0.handle.publish("kept", "0"));
    until("it is kept", || {
        one.0.handle.backplane_state().published == 1
    });
    redis.kill();
    until("it is noticed", || {
        !one.0.handle.backplane_state().connected
    });
    assert!(one.0.handle.publish("kept", "1"));
    let (mut raw, peer) = {
        let raw = Raw::open(other.0.addr);
        (raw, other.1.peer())
    };
    assert!(peer.subscribe_from("kept", Since::Start));
    assert!(!raw.hears(support::redis::QUIET));
    redis.begin();
    let mut all = Vec::new();
    while all.len() < 2 {
        let (kind, _, text) = said(&mut raw);
        if kind == "msg" {
            all.push(text);
        }
    }
    assert_eq!(all, ["0", "1"]);
    assert!(peer.unsubscribe("kept"));
    assert_eq!(other.0.handle.subscribers("kept"), 0);
}

/// A node that is catching up may be asked for what it has not heard of yet, by clients of others: they wait
/// for it, and nothing is missing.
#[test]
fn clients_that_come_to_a_node_that_is_catching_up() {
    const MESSAGES: usize = 1000;
    let Some(redis) = Redis::start() else { return };
    let wire = Wire::to(&redis);
    let node = |url: &str| {
        let (handler, seen) = spy(|_, _| ());
        let backplane = framemill::Redis::new(url).unwrap();
        let keep = History::last(usize::MAX);
        let settings = |s: framemill::Server| s.backplane(backplane).history("kept", keep);
        let server = serve(settings, handler);
        until("the node is connected", || connected(&server.handle));
        (server, seen)
    };
    let (near, far) = (node(&redis.url()), node(&wire.url));
    let follow = |node: &(Running, Seen), since: Since| {
        let raw = Raw::open(node.0.addr);
        let peer = node.1.peer();
        assert!(peer.subscribe_from("kept", since));
        raw
    };
    let (mut here, mut there) = (follow(&near, Since::Start), follow(&far, Since::Start));
    for raw in [&mut here, &mut there] {
        assert_eq!(said(raw).0, "live");
    }
    wire.cut();
    until("it is noticed", || {
        !far.0.handle.backplane_state().connected
    });
    thread::scope(|scope| {
        let (near, text) = (&near, "x".repeat(1000));
        scope.spawn(move || {
            for n in 0..MESSAGES {
                assert!(near.0.handle.publish("kept", format!("{n} {text}")));
                if n == MESSAGES / 2 {
                    wire.mend();
                }
            }
        });
        // Whoever has seen this, on the one node, goes to the other.
        let mut come = Vec::new();
        for n in 0..MESSAGES {
            let (kind, offset, text) = said(&mut here);
            assert!(kind == "msg" && text.starts_with(&format!("{n} ")));
            if n % 10 == 0 {
                come.push((n, follow(&far, offset.into())));
            }
        }
        for (n, mut raw) in come {
            let (mut next, mut live) = (n + 1, false);
            while next < MESSAGES || !live {
                let (kind, _, text) = said(&mut raw);
                match kind.as_str() {
                    "msg" => assert!(text.starts_with(&format!("{next} "))),
                    other => assert_eq!(other, "live", "after {n}"),
                }
                live |= kind == "live";
                next += usize::from(kind == "msg");
            }
        }
    });
    for n in 0..MESSAGES {
        assert!(said(&mut there).2.starts_with(&format!("{n} ")));
    }
}

/// Though the node hears of it only a moment after the call.
#[test]
fn what_is_published_right_after_subscribing_arrives() {
    let Some(redis) = Redis::start() else { return };
    let (handler, seen) = spy(|_, _| ());
    let backplane = framemill::Redis::new(redis.url()).unwrap();
    let settings = |s: framemill::Server| s.backplane(backplane).history("kept*", History::last(3));
    let one = (serve(settings, handler), seen);
    until("the node is connected", || connected(&one.0.handle));
    let (mut raw, peer) = client(&one, &[]);
    for n in 0..50 {
        let topic = format!("kept{n}");
        assert!(one.0.handle.publish(&topic, "before"));
        if n % 2 == 0 {
            assert!(peer.subscribe(&topic));
        } else {
            assert!(peer.subscribe_from(&topic, Since::Now));
        }
        assert!(one.0.handle.publish(&topic, "after"));
        while said(&mut raw).2 != "after" {}
    }
}

/// As while nodes are replaced one by one by such as keep it.
#[test]
fn a_history_that_one_node_knows_nothing_of() {
    let Some(redis) = Redis::start() else { return };
    let (one, other) = (keeping(&redis.url()), node(&redis.url()));
    let (mut raw, peer) = client(&one, &[]);
    assert!(peer.subscribe_from("kept", Since::Start));
    assert_eq!(said(&mut raw).0, "live");
    let (mut plain, _peer) = client(&other, &["kept"]);
    for n in 1..4 {
        let received = one.0.handle.backplane_state().received;
        assert!(other.0.handle.publish("kept", "without a number"));
        assert_eq!(text(&mut plain), "without a number");
        until("it is heard", || {
            one.0.handle.backplane_state().received > received
        });
        assert!(one.0.handle.publish("kept", n.to_string()));
        let (kind, offset, text_of) = said(&mut raw);
        assert_eq!((kind, text_of), ("msg".to_owned(), n.to_string()));
        let number = offset.to_string();
        assert_eq!(number.split('-').nth(1), Some(&*n.to_string()), "{offset}");
        assert_eq!(text(&mut plain), n.to_string());
    }
    assert_eq!(missed(&one, Since::Start), ["1", "2", "3"]);
}

/// Publishes to `it` until this is so; what `raw` gets of that is all of it.
#[track_caller]
fn goes_on_until(what: &str, from: &ServerHandle, raw: &mut Raw, mut done: impl FnMut() -> bool) {
    let mut published = 0;
    until(what, || {
        assert!(from.publish("it", published.to_string()));
        published += 1;
        done()
    });
    for n in 0..published {
        assert_eq!(text(raw), n.to_string());
    }
}

/// One topic can't be fetched from. It waits, and the others don't.
#[test]
fn a_history_that_can_not_be_fetched() {
    let Some(redis) = Redis::start() else { return };
    let (one, other) = (keeping(&redis.url()), keeping(&redis.url()));
    let (mut raw, _peer) = client(&other, &["it"]);
    let (mut waiting, peer) = client(&other, &[]);
    assert_eq!(
        redis.ask("SET framemill:{kept}:m x").as_deref(),
        Some("+OK")
    );
    assert!(peer.subscribe_from("kept", Since::Now));
    let failures = || other.0.handle.backplane_state().failures;
    goes_on_until("it was tried twice", &one.0.handle, &mut raw, || {
        failures() > 1
    });
    assert!(connected(&other.0.handle));
    assert!(failures() < 20, "not all the time");
    assert_eq!(redis.ask("DEL framemill:{kept}:m").as_deref(), Some(":1"));
    assert_eq!(said(&mut waiting).0, "live");
}

/// What Redis has lost can't be noted while its memory is full.
#[test]
fn a_redis_that_is_full_and_has_forgotten() {
    let Some(redis) = Redis::start() else { return };
    let (one, other) = (keeping(&redis.url()), keeping(&redis.url()));
    let (mut raw, _peer) = client(&other, &["it"]);
    let (mut waiting, peer) = client(&other, &[]);
    assert!(peer.subscribe_from("kept", Since::Start));
    assert_eq!(said(&mut waiting).0, "live");
    let mut last = Offset::default();
    for n in 0..3 {
        assert!(one.0.handle.publish("kept", n.to_string()));
        last = said(&mut waiting).1;
    }
    forget_the_third(&redis, last);
    assert_eq!(redis.ask("CONFIG SET maxmemory 1").as_deref(), Some("+OK"));
    assert!(redis.ask("CLIENT KILL TYPE pubsub").is_some());
    let state = || other.0.handle.backplane_state();
    until("it is noticed", || state().failures > 0);
    until("both are back", || {
        connected(&one.0.handle) && connected(&other.0.handle)
    });
    let before = state().failures;
    let failed_again = || state().failures > before + 1;
    goes_on_until("it was tried again", &one.0.handle, &mut raw, failed_again);
    assert!(connected(&other.0.handle));
    assert_eq!(redis.ask("CONFIG SET maxmemory 0").as_deref(), Some("+OK"));
    assert_eq!(said(&mut waiting).0, "gap");
}

/// How many are connected to it, without this question.
fn connections(redis: &Redis) -> Option<usize> {
    let count = "string.match(redis.call('INFO', 'clients'), 'connected_clients:(%d+)')";
    let answer = redis.ask(&format!("EVAL \"return tonumber({count})\" 0"))?;
    Some(answer.strip_prefix(':')?.parse::<usize>().ok()? - 1)
}

/// The connection for fetching is used now and then only. If Redis has closed it, there is another at once.
#[test]
fn a_redis_that_closes_what_is_idle() {
    let Some(redis) = Redis::start() else { return };
    let one = keeping(&redis.url());
    for n in 0..2 {
        // Publishing, listening.
        until("no other is left", || connections(&redis) == Some(2));
        assert_eq!(redis.ask("CONFIG SET timeout 0").as_deref(), Some("+OK"));
        let (mut raw, peer) = client(&one, &[]);
        assert!(peer.subscribe_from("kept", Since::Now));
        assert_eq!(said(&mut raw).0, "live");
        assert_eq!(one.0.handle.backplane_state().failures, 0, "after {n}");
        assert_eq!(connections(&redis), Some(3));
        assert_eq!(redis.ask("CONFIG SET timeout 1").as_deref(), Some("+OK"));
    }
}

/// There is no connection to be had for fetching.
#[test]
fn a_redis_that_takes_no_more_connections() {
    let Some(redis) = Redis::start() else { return };
    let (one, other) = (keeping(&redis.url()), keeping(&redis.url()));
    let spare = node(&redis.url());
    let (mut raw, _peer) = client(&other, &["it"]);
    let (mut waiting, peer) = client(&other, &[]);
    until("only nodes are connected", || {
        connections(&redis) == Some(6)
    });
    assert_eq!(redis.ask("CONFIG SET maxclients 6").as_deref(), Some("+OK"));
    until("it takes no more", || {
        redis.ask("PING").as_deref() != Some("+PONG")
    });
    assert!(peer.subscribe_from("kept", Since::Now));
    let failures = || other.0.handle.backplane_state().failures;
    goes_on_until("it was tried twice", &one.0.handle, &mut raw, || {
        failures() > 1
    });
    assert!(connected(&other.0.handle));
    assert!(spare.0.handle.shutdown(support::WAIT));
    assert_eq!(said(&mut waiting).0, "live");
}

// ---- presence ----

/// On all nodes; a node that dies takes those on it along.
#[test]
fn who_is_there() {
    let Some(mut redis) = Redis::start() else {
        return;
    };
    let wire = Wire::to(&redis);
    let (one, other) = (node(&redis.url()), node(&wire.url));
    let (here, there) = (&one.0.handle, &other.0.handle);
    assert!(here.who("hall").is_empty());
    let ada = here.enter("hall", "ada").unwrap();
    let again = here.enter("hall", "ada").unwrap();
    let ben = there.enter("hall", "ben").unwrap();
    let elsewhere = there.enter("yard", "cy").unwrap();
    for handle in [here, there] {
        until("both are there", || handle.who("hall") == ["ada", "ben"]);
        until("one is in the yard", || handle.who("yard") == ["cy"]);
    }
    drop(again);
    drop(elsewhere);
    until("the yard is empty", || here.who("yard").is_empty());
    assert_eq!(there.who("hall"), ["ada", "ben"], "one of two has left");
    // As good as dead.
    wire.cut();
    until("it has expired", || here.who("hall") == ["ada"]);
    wire.mend();
    until("it is back", || here.who("hall") == ["ada", "ben"]);
    redis.kill();
    until("those here are known", || here.who("hall") == ["ada"]);
    drop(ada);
    assert!(here.who("hall").is_empty());
    redis.begin();
    until("it is seen that she has left", || {
        there.who("hall") == ["ben"]
    });
    until("it is seen here too", || here.who("hall") == ["ben"]);
    drop(ben);
    until("nobody is left", || here.who("hall").is_empty());
}

/// Whoever asks gets an answer soon, of one kind or the other; even if Redis has several things to say
/// before it can be asked.
#[test]
fn who_is_asked_by_many_while_redis_does_not_answer() {
    let Some(redis) = Redis::start() else { return };
    let wire = Wire::to(&redis);
    let user = "ACL SETUSER ben on >secret ~* &* +@all";
    assert_eq!(redis.ask(user).as_deref(), Some("+OK"));
    let url = wire.url.replace("//", "//ben:secret@") + "1";
    let (server, _) = node(&url);
    let _ada = server.handle.enter("hall", "ada").unwrap();
    until("she is there", || server.handle.who("hall") == ["ada"]);
    wire.cut();
    let started = Instant::now();
    thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| assert_eq!(server.handle.who("hall"), ["ada"]));
        }
    });
    // As long as one answer may take.
    let took = started.elapsed();
    assert!(took < Duration::from_secs(5), "{took:?}");
}

/// A connection from before is of no use, and no reason to know less.
#[test]
fn who_is_there_after_a_restart_of_redis() {
    let Some(mut redis) = Redis::start() else {
        return;
    };
    let (one, other) = (node(&redis.url()), node(&redis.url()));
    let _ada = one.0.handle.enter("hall", "ada").unwrap();
    let _ben = other.0.handle.enter("hall", "ben").unwrap();
    let both = || redis_knows(&redis, 2);
    until("both are there", both);
    assert_eq!(one.0.handle.who("hall"), ["ada", "ben"]);
    redis.kill();
    until("it is noticed", || {
        !connected(&one.0.handle) && !connected(&other.0.handle)
    });
    redis.begin();
    until("both are back", || {
        connected(&one.0.handle) && connected(&other.0.handle) && redis_knows(&redis, 2)
    });
    assert_eq!(one.0.handle.who("hall"), ["ada", "ben"]);
}

fn redis_knows(redis: &Redis, names: usize) -> bool {
    redis.ask("ZCARD framemill:{hall}:p") == Some(format!(":{names}"))
}

/// However many are there already.
#[test]
fn one_more_costs_one_command() {
    const NAMES: usize = 1000;
    let Some(redis) = Redis::start() else { return };
    let (server, _) = node(&redis.url());
    let enter = |n: usize| server.handle.enter("hall", &n.to_string()).unwrap();
    let mut all: Vec<_> = (0..NAMES).map(enter).collect();
    until("all are there", || redis_knows(&redis, NAMES));
    let calls = || {
        let count = "string.match(redis.call('INFO', 'commandstats'), 'zadd:calls=(%d+)')";
        let answer = redis.ask(&format!("EVAL \"return tonumber({count})\" 0"));
        let calls = answer.as_deref().and_then(|it| it.strip_prefix(':'));
        calls.map_or(0, |calls| calls.parse().unwrap())
    };
    let (before, began) = (calls(), Instant::now());
    all.push(enter(NAMES));
    until("one more is there", || redis_knows(&redis, NAMES + 1));
    let after = calls();
    // A sixth of them is renewed every 500 ms.
    let renewals = began.elapsed().as_millis() as usize / 500 + 1;
    let most = 1 + renewals * (NAMES / 6 + 1);
    assert!(after - before <= most, "{} ZADDs", after - before);
}
