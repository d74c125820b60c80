//! Topics: who gets what is published, in which order, and what a slow subscriber gets of it.

mod support;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread;

use crossbeam_channel::unbounded;
use framemill::{
    Accept, Bytes, CloseCause, CloseCode, Handler, Message, Overflow, Peer, Request, Response,
    Server, ServerHandle,
};
use support::sequences::Sequences;
use support::spy::{PLENTY, Seen, narrow, number, numbered, spy, upgraded};
use support::{Raw, Running, Transport, WAIT, frame, over_every_transport, serve, until};

over_every_transport! {
    everyone_but_the_sender,
    a_topic_has_its_own_subscribers,
    subscriptions_die_with_the_connection,
    a_thread_sends_and_publishes_in_order,
    a_handler_subscribes_sends_and_publishes_in_order,
    a_slow_subscriber_is_closed_and_delays_nobody,
    a_slow_subscriber_loses_what_the_policy_says,
    a_slow_subscriber_gets_the_newest_of_each_key,
    one_that_keeps_up_gets_all,
    keys_of_topics_are_their_own,
}

const THREADS: [(usize, usize); 4] = [(1, 0), (1, 2), (2, 0), (3, 2)];

/// A server whose handler does nothing, and clients with their peers.
fn with_clients(
    transport: Transport,
    settings: impl FnOnce(Server) -> Server,
    clients: usize,
) -> (Running, Seen, Vec<(Raw, Peer)>) {
    let (handler, seen) = spy(|_, _| ());
    let server = transport.serve(settings, handler);
    let clients = (0..clients)
        .map(|_| (Raw::open(server.addr), seen.peer()))
        .collect();
    (server, seen, clients)
}

fn text(raw: &mut Raw) -> String {
    let (first, payload) = raw.frame().expect("one more message");
    assert_eq!(first, 0x81);
    String::from_utf8(payload).unwrap()
}

// ---- who ----

fn everyone_but_the_sender(transport: Transport) {
    for (loops, workers) in THREADS {
        let (server, _seen, mut clients) =
            with_clients(transport, |s| s.loops(loops).workers(workers), 7);
        let handle = &server.handle;
        assert!(handle.publish("news", "to nobody"));
        for (_, peer) in &clients[1..] {
            assert!(peer.subscribe("news") && peer.subscribe("news"));
        }
        assert_eq!(handle.subscribers("news"), 6);
        assert!(handle.publish("news", "to all"));
        let bytes = Bytes::from_static(&[0, 0xFF]);
        assert!(clients[1].1.publish("news", bytes));
        // Nor does one have to subscribe.
        assert!(clients[0].1.publish("news", "from outside"));
        for refused in [Message::Ping(Bytes::new()), Message::Close(None)] {
            assert!(!handle.publish("news", refused.clone()));
            assert!(!clients[0].1.publish("news", refused.clone()));
            assert!(!clients[0].1.publish_latest("news", 1_u8, refused));
        }
        for (_, peer) in &clients {
            peer.send("end").unwrap();
        }
        for (n, (raw, _)) in clients.iter_mut().enumerate() {
            if n > 0 {
                assert_eq!(text(raw), "to all");
            }
            if n > 1 {
                assert_eq!(raw.frame(), Some((0x82, vec![0, 0xFF])));
            }
            if n > 0 {
                assert_eq!(text(raw), "from outside");
            }
            assert_eq!(text(raw), "end");
        }
    }
}

fn a_topic_has_its_own_subscribers(transport: Transport) {
    let (server, _seen, mut clients) = with_clients(transport, |s| s.loops(2).workers(1), 4);
    let handle = &server.handle;
    for (n, (_, peer)) in clients.iter().enumerate() {
        assert!(peer.subscribe(""));
        assert!(peer.subscribe(if n % 2 == 0 { "even" } else { "odd" }));
    }
    assert!(!clients[0].1.unsubscribe("odd") && !clients[0].1.unsubscribe("unknown"));
    assert!(handle.publish("even", "even") && handle.publish("odd", "odd"));
    assert!(clients[0].1.unsubscribe("even"));
    assert!(!clients[0].1.unsubscribe("even"));
    let counts = ["", "even", "odd", "unknown"].map(|topic| handle.subscribers(topic));
    assert_eq!(counts, [4, 1, 2, 0]);
    assert!(handle.publish("even", "even again") && handle.publish("", "end"));
    // A name that comes back.
    assert!(clients[2].1.unsubscribe("even"));
    assert_eq!(handle.subscribers("even"), 0);
    assert!(handle.publish("even", "to nobody"));
    assert!(clients[1].1.subscribe("even"));
    assert!(handle.publish("even", "even at last") && handle.publish("", "end"));
    let expected: [&[&str]; 4] = [
        &["even", "end", "end"],
        &["odd", "end", "even at last", "end"],
        &["even", "even again", "end", "end"],
        &["odd", "end", "end"],
    ];
    for ((raw, _), expected) in clients.iter_mut().zip(expected) {
        for &expected in expected {
            assert_eq!(text(raw), expected);
        }
    }
}

/// From the moment that the handler is told the end.
fn subscriptions_die_with_the_connection(transport: Transport) {
    for (loops, workers) in THREADS {
        let (server, seen, mut clients) =
            with_clients(transport, |s| s.loops(loops).workers(workers), 5);
        let handle = &server.handle;
        for (_, peer) in &clients {
            assert!(peer.subscribe("news") && peer.subscribe("more"));
        }
        let (raw, peer) = clients.pop().unwrap();
        drop(raw);
        seen.end();
        assert_eq!(handle.subscribers("news"), 4);
        assert!(!peer.subscribe("news") && !peer.unsubscribe("news"));
        // What there is to say of it can still be said.
        assert!(peer.publish("news", "gone"));
        let (mut raw, peer) = clients.pop().unwrap();
        peer.close(CloseCode::Normal, "");
        assert!(peer.is_closed() && !peer.subscribe("others"));
        assert!(handle.publish("more", "one more"));
        assert_eq!(text(&mut raw), "gone");
        raw.write(&frame(0x88, b"\x03\xE8"));
        assert_eq!(raw.close_code(), Some(1000));
        seen.end();
        assert_eq!(handle.subscribers("more"), 3);
        // Those who have the places now have nothing of the old.
        let mut fresh: Vec<Raw> = (0..2).map(|_| Raw::open(server.addr)).collect();
        let peers: Vec<Peer> = fresh.iter().map(|_| seen.peer()).collect();
        assert!(handle.publish("news", "two more"));
        for peer in peers {
            peer.send("fresh").unwrap();
        }
        for raw in &mut fresh {
            assert_eq!(text(raw), "fresh");
        }
        for (raw, _) in &mut clients {
            for expected in ["gone", "one more", "two more"] {
                assert_eq!(text(raw), expected);
            }
        }
        drop((clients, fresh));
        (0..5).for_each(|_| drop(seen.end()));
        assert_eq!(handle.subscribers("news") + handle.subscribers("more"), 0);
    }
}

/// Subscriptions of a connection that is refused count for nothing.
#[test]
fn a_refused_connection_leaves_nothing() {
    struct Refuse(OnceLock<ServerHandle>, AtomicUsize);

    impl Handler for Refuse {
        type Session = ();

        fn start(&self, server: &ServerHandle) {
            assert_eq!(self.1.fetch_add(1, Ordering::SeqCst), 0);
            assert_eq!((server.connections(), server.subscribers("news")), (0, 0));
            // Nobody is there, and nobody is waited for.
            for _ in 0..1000 {
                assert!(server.broadcast("hello") && server.publish("news", "hello"));
            }
            self.0.set(server.clone()).unwrap();
        }

        fn open(&self, _: &Request, peer: &Peer) -> Result<Accept<()>, Response> {
            assert!(peer.subscribe("news"));
            let server = self.0.get().unwrap();
            assert_eq!(server.subscribers("news"), 1);
            assert!(server.publish("news", "hello"));
            Err(Response::unauthorized())
        }

        fn message(&self, (): &mut (), _: &Peer, _: Message) {}
    }

    for workers in [0, 1] {
        let refuse = Refuse(OnceLock::new(), AtomicUsize::new(0));
        let server = serve(|s| s.workers(workers), refuse);
        for _ in 0..3 {
            let mut raw = Raw::connect(server.addr);
            raw.write(support::request(server.addr).as_bytes());
            let (status, _, body) = raw.response();
            assert_eq!(status, 401);
            assert!(!String::from_utf8_lossy(&body).contains("hello"));
            drop(raw);
            until("it is gone", || server.handle.connections() == 0);
            assert_eq!(server.handle.subscribers("news"), 0);
        }
    }
}

/// The other side has no topics.
#[test]
fn a_client_has_no_topics() {
    let server = support::echo();
    let addr = server.handle.local_addr().unwrap();
    let (peer, _events) = framemill::connect(format!("ws://{addr}/")).unwrap();
    assert!(!peer.subscribe("news") && !peer.unsubscribe("news"));
    assert!(!peer.publish("news", "hello") && !peer.publish_latest("news", 1_u8, "hello"));
    drop(server);
}

// ---- in which order ----

fn a_thread_sends_and_publishes_in_order(transport: Transport) {
    const MESSAGES: u32 = 400;
    for (loops, workers) in THREADS {
        let settings = |s: Server| s.loops(loops).workers(workers).outbound_limit(64 << 20);
        let (server, _seen, mut clients) = with_clients(transport, settings, 5);
        let peers: Vec<Peer> = clients.iter().map(|(_, peer)| peer.clone()).collect();
        for peer in &peers {
            assert!(peer.subscribe("all"));
        }
        thread::scope(|scope| {
            for id in 0..3 {
                let (peers, handle) = (&peers, &server.handle);
                scope.spawn(move || {
                    let own = format!("of {id}");
                    for n in 0..MESSAGES {
                        let text = format!("{id}:{n}");
                        // Runs of one kind and of another, different for each thread.
                        match (n / (1 + id)) % 4 {
                            0 => assert!(handle.publish("all", text)),
                            1 => assert!(handle.broadcast(text)),
                            2 => {
                                for peer in peers {
                                    assert!(peer.subscribe(&own));
                                }
                                assert!(handle.publish(&own, text));
                                for peer in peers {
                                    assert!(peer.unsubscribe(&own));
                                }
                                assert!(handle.publish(&own, "to nobody"));
                            }
                            _ => {
                                for peer in peers {
                                    peer.send(text.as_str()).unwrap();
                                }
                            }
                        }
                    }
                });
            }
            for (raw, _) in &mut clients {
                scope.spawn(move || {
                    Sequences::default().read(raw, 3 * MESSAGES);
                });
            }
        });
    }
}

fn a_handler_subscribes_sends_and_publishes_in_order(transport: Transport) {
    for (loops, workers) in THREADS {
        let everybody = Arc::new(OnceLock::<ServerHandle>::new());
        let handle = everybody.clone();
        let server = transport.serve(
            |s| {
                let _ = everybody.set(s.handle());
                s.loops(loops).workers(workers)
            },
            move |peer: &Peer, message: Message| {
                let n = message.to_text().unwrap();
                let topic = format!("of {}", peer.id());
                let everybody = handle.get().unwrap();
                peer.send(format!("{n}a")).unwrap();
                assert!(peer.subscribe(&topic));
                assert!(everybody.publish(&topic, format!("{n}b")));
                peer.send(format!("{n}c")).unwrap();
                assert!(peer.publish(&topic, "not to me"));
                assert!(everybody.publish_latest(&topic, 1_u8, format!("{n}d")));
                assert!(peer.unsubscribe(&topic));
                assert!(everybody.publish(&topic, "to nobody"));
                peer.send(format!("{n}e")).unwrap();
            },
        );
        let mut raws: Vec<Raw> = (0..3).map(|_| Raw::open(server.addr)).collect();
        let questions: Vec<Vec<u8>> = (0..100)
            .map(|n: u32| frame(0x81, n.to_string().as_bytes()))
            .collect();
        for raw in &mut raws {
            raw.write(&questions.concat());
        }
        for raw in &mut raws {
            for n in 0..100 {
                for step in ["a", "b", "c", "d", "e"] {
                    assert_eq!(text(raw), format!("{n}{step}"));
                }
            }
        }
    }
}

/// Two threads subscribe and unsubscribe one peer as fast as they can: what the peer believes and
/// what it gets is the same.
#[test]
fn a_peer_and_its_loop_agree() {
    for (loops, workers) in THREADS {
        let (server, _seen, mut clients) = with_clients(
            Transport::Plain,
            |s| s.loops(loops).workers(workers).outbound_limit(64 << 20),
            1,
        );
        let (raw, peer) = &mut clients[0];
        for round in 0..50 {
            thread::scope(|scope| {
                for id in 0..3 {
                    let peer = peer.clone();
                    scope.spawn(move || {
                        for n in 0..20 {
                            if (n + id + round) % 3 == 0 {
                                peer.unsubscribe("it");
                            } else {
                                peer.subscribe("it");
                            }
                        }
                    });
                }
            });
            let subscribed = server.handle.subscribers("it");
            assert!(server.handle.publish("it", "yes"));
            peer.send("end").unwrap();
            let mut got = 0;
            while text(raw) == "yes" {
                got += 1;
            }
            assert_eq!((got, peer.unsubscribe("it")), (subscribed, subscribed == 1));
        }
        assert_eq!(server.handle.subscribers("it"), 0);
    }
}

// ---- slow subscribers ----

/// A server, a client that does not read with its peer, and one that does; both subscribe to "it".
fn slow_and_fast(
    transport: Transport,
    settings: impl FnOnce(Server) -> Server,
) -> (Running, Seen, (Raw, Peer), (Raw, Peer)) {
    let (handler, seen) = spy(|_, _| ());
    let server = transport.serve_narrow(settings, handler);
    let slow = upgraded(narrow(server.addr));
    let slow = (slow, seen.peer());
    let fast = (Raw::open(server.addr), seen.peer());
    assert!(slow.1.subscribe("it") && fast.1.subscribe("it"));
    (server, seen, slow, fast)
}

fn a_slow_subscriber_is_closed_and_delays_nobody(transport: Transport) {
    for (loops, workers) in [(1, 0), (2, 2)] {
        let limit = 256 << 10;
        let settings = |s: Server| s.loops(loops).workers(workers).outbound_limit(limit);
        let (server, seen, (mut slow, peer), (mut fast, _)) = slow_and_fast(transport, settings);
        // Small ones and large ones, far more than there is room for.
        for n in 0..400 {
            let len = if n % 4 == 0 { 20_000 } else { 50 };
            assert!(server.handle.publish("it", numbered(n, len)));
            let (first, payload) = fast.frame().unwrap();
            assert_eq!((first, number(&payload), payload.len()), (0x82, n, len));
        }
        until("it is closed", || peer.is_closed());
        assert_eq!(slow.close_code(), Some(1013));
        slow.write(&frame(0x88, &1013_u16.to_be_bytes()));
        assert_eq!(seen.end().cause(), CloseCause::Overflow);
        assert_eq!(server.handle.subscribers("it"), 1);
    }
}

fn a_slow_subscriber_loses_what_the_policy_says(transport: Transport) {
    const MESSAGES: u32 = 4000;
    for overflow in [Overflow::DropNewest, Overflow::DropOldest] {
        let limit = 128 << 10;
        let settings = |s: Server| s.workers(1).outbound_limit(limit).overflow(overflow);
        let (server, _seen, (mut slow, peer), (mut fast, _)) = slow_and_fast(transport, settings);
        for n in 0..MESSAGES {
            assert!(server.handle.publish("it", numbered(n, 1000)));
            assert_eq!(number(&fast.frame().unwrap().1), n);
        }
        // `TAKE` bytes, or one message, may be with the loop already.
        assert!(peer.queued_bytes() <= 2 * limit);
        let mut got = Vec::new();
        while peer.queued_bytes() > 0 {
            got.push(number(&slow.frame().unwrap().1));
        }
        // And what the kernel holds by now.
        assert!(server.handle.publish("it", numbered(MESSAGES, 4)));
        while got.last() != Some(&MESSAGES) {
            got.push(number(&slow.frame().unwrap().1));
        }
        got.pop();
        assert!(got.len() < MESSAGES as usize && got.is_sorted());
        let half = (limit / 2000) as u32;
        let (first, last) = (0..half, MESSAGES - half..MESSAGES);
        match overflow {
            Overflow::DropNewest => assert!(got.iter().copied().zip(first).all(|(a, b)| a == b)),
            _ => assert!(
                got.iter()
                    .rev()
                    .copied()
                    .zip(last.rev())
                    .all(|(a, b)| a == b)
            ),
        }
    }
}

fn a_slow_subscriber_gets_the_newest_of_each_key(transport: Transport) {
    const KEYS: u32 = 20;
    for (workers, len) in [(0, 500), (2, 500), (2, 6000)] {
        let (server, _seen, (mut slow, peer), (mut fast, _)) =
            slow_and_fast(transport, |s| s.workers(workers));
        let handle = &server.handle;
        let rounds = 2 * (PLENTY as u32) / (KEYS * len as u32);
        for n in 0..rounds * KEYS {
            let message = numbered(n, len);
            // By number and by name.
            assert!(match n % KEYS {
                key if key % 2 == 0 => handle.publish_latest("it", key, message),
                key => handle.publish_latest("it", format!("key {key}"), message),
            });
            assert_eq!(number(&fast.frame().unwrap().1), n, "one that keeps up");
        }
        // One of each key, and what was taken for writing: no more than one does not fit.
        assert!(peer.queued_bytes() < PLENTY / 2, "{}", peer.queued_bytes());
        assert!(handle.publish("it", "end"));
        let mut newest = vec![None; KEYS as usize];
        let mut count = 0;
        loop {
            let (first, payload) = slow.frame().unwrap();
            if first == 0x81 {
                break;
            }
            let n = number(&payload);
            let before = newest[(n % KEYS) as usize].replace(n);
            assert!(before < Some(n), "not back in time");
            count += 1;
        }
        let last = (rounds - 1) * KEYS;
        assert!(newest.into_iter().eq((last..last + KEYS).map(Some)));
        assert!(count < rounds * KEYS / 2, "{count} of {}", rounds * KEYS);
    }
}

fn one_that_keeps_up_gets_all(transport: Transport) {
    for (loops, workers) in THREADS {
        let (server, _seen, mut clients) =
            with_clients(transport, |s| s.loops(loops).workers(workers), 3);
        for (_, peer) in &clients {
            assert!(peer.subscribe("it"));
        }
        for n in 0..200 {
            assert!(server.handle.publish_latest("it", 1_u8, n.to_string()));
            for (raw, _) in &mut clients {
                assert_eq!(text(raw), n.to_string());
            }
        }
    }
}

/// What is published to one topic replaces nothing of another, nor what was sent to this peer alone.
fn keys_of_topics_are_their_own(transport: Transport) {
    let (server, _seen, (mut slow, peer), _fast) = slow_and_fast(transport, |s| s.workers(1));
    let handle = &server.handle;
    assert!(peer.subscribe("other"));
    let mut filler = 0;
    while peer.queued_bytes() == 0 || !matches!(peer.send("?"), Ok(framemill::Sent::Congested)) {
        peer.send(numbered(0, 8000)).unwrap();
        filler += 1;
        assert!(filler < 10_000);
    }
    for n in 0..5 {
        assert!(handle.publish_latest("it", 7_u8, format!("it {n}")));
        assert!(handle.publish_latest("other", 7_u8, format!("other {n}")));
        peer.send_latest(7_u8, format!("sent {n}")).unwrap();
    }
    let mut got = Vec::new();
    while got.len() < 3 {
        let (first, payload) = slow.frame().unwrap();
        if first == 0x81 && payload != b"?" {
            got.push(String::from_utf8(payload).unwrap());
        }
    }
    assert_eq!(got, ["it 4", "other 4", "sent 4"]);
    peer.send("end").unwrap();
    assert_eq!(text(&mut slow), "end");
}

/// Frames that wait one behind the other are put into outboxes together, but not past what is sent to one,
/// and not to who subscribes, unsubscribes or closes in between.
#[test]
fn what_waits_together_keeps_its_order() {
    const CLIENTS: usize = 3;
    const TOPICS: [&str; 2] = ["a", "b"];
    for seed in 1..=20_u64 {
        let (busy, is_busy) = unbounded();
        let (gate, open) = unbounded::<()>();
        let (handler, seen) = spy(move |_, _| {
            busy.send(()).unwrap();
            let _ = open.recv_timeout(WAIT);
        });
        let server = serve(|s: Server| s.workers(0), handler);
        let mut raws: Vec<_> = (0..=CLIENTS).map(|_| Raw::open(server.addr)).collect();
        let peers: Vec<_> = (0..=CLIENTS).map(|_| seen.peer()).collect();
        // The last keeps the loop busy while all else is asked.
        raws[CLIENTS].write(&frame(0x81, b"wait"));
        is_busy.recv_timeout(WAIT).unwrap();
        let mut random = seed;
        let mut pick = |below: usize| {
            random = random
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            (random >> 33) as usize % below
        };
        let mut subscribed = [[false; 2]; CLIENTS];
        let mut closed = [false; CLIENTS];
        let mut expected = vec![Vec::new(); CLIENTS];
        for n in 0..200 {
            let (who, topic) = (pick(CLIENTS), pick(2));
            let text = format!("{n} {}", "x".repeat([1, 100, 3000, 5000][pick(4)]));
            let mut goes_to = [false; CLIENTS];
            match pick(20) {
                0..5 => {
                    assert!(server.handle.broadcast(text.clone()));
                    goes_to = [true; CLIENTS];
                }
                5..10 => {
                    assert!(server.handle.publish(TOPICS[topic], text.clone()));
                    goes_to = subscribed.map(|s| s[topic]);
                }
                10..14 => {
                    assert!(peers[who].publish(TOPICS[topic], text.clone()));
                    goes_to = subscribed.map(|s| s[topic]);
                    goes_to[who] = false;
                }
                14..16 => goes_to[who] = peers[who].send(text.clone()).is_ok(),
                16..18 => subscribed[who][topic] = peers[who].subscribe(TOPICS[topic]),
                18 => {
                    peers[who].unsubscribe(TOPICS[topic]);
                    subscribed[who][topic] = false;
                }
                _ if n > 150 => {
                    closed[who] |= peers[who].close(CloseCode::Normal, "");
                }
                _ => {}
            }
            for who in 0..CLIENTS {
                if goes_to[who] && !closed[who] {
                    expected[who].push(text.clone());
                }
            }
        }
        for peer in &peers[..CLIENTS] {
            peer.close(CloseCode::Normal, "");
        }
        drop(gate);
        for (who, raw) in raws[..CLIENTS].iter_mut().enumerate() {
            for text in &expected[who] {
                let (_, payload) = raw.frame().expect("more");
                assert!(
                    payload == text.as_bytes(),
                    "seed {seed}: {:.5} to {who}",
                    text
                );
            }
            assert_eq!(raw.close_code(), Some(1000));
        }
    }
}
