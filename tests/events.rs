//! `Server::events`: a user's own loop, fed through one channel.

mod support;

use std::collections::HashMap;
use std::io::ErrorKind;
use std::io::Write;
use std::thread;
use std::time::Duration;

use crossbeam_channel::{Receiver, bounded, never, select};
use framemill::{
    Accept, CloseCode, Event, Message, Origin, Peer, PeerId, Request, Response, Sent, Server,
};
use support::spy::{NARROW, frames, narrow, number, numbered, upgraded};
use support::{Bound, Raw, Running, Transport, WAIT, frame, over_every_transport, request, until};

over_every_transport! {
    a_loop_of_ones_own,
    a_new_peer_is_reached,
    who_opens_shows_its_request,
    who_is_not_let_in_is_no_event,
    a_slow_receiver_slows_the_senders_down,
    several_threads_may_receive,
    writable_is_an_event,
    nobody_receives,
    the_channel_ends,
}

fn start(
    transport: Transport,
    settings: impl FnOnce(Server) -> Server,
) -> (Running, Receiver<Event>) {
    listens(transport.bind(), settings)
}

fn listens(
    (server, bound): (Server, Bound),
    settings: impl FnOnce(Server) -> Server,
) -> (Running, Receiver<Event>) {
    let (handle, events) = settings(server.origin(Origin::Any)).events().unwrap();
    (bound.running(handle), events)
}

/// An event that must come.
fn next(events: &Receiver<Event>) -> Event {
    events.recv_timeout(WAIT).expect("an event")
}

fn a_loop_of_ones_own(transport: Transport) {
    // At least one worker runs, even with 0.
    for workers in [0, 2] {
        let (server, events) = start(transport, |s| s.workers(workers));
        let (order, orders) = bounded::<&str>(1);
        let (tell, told) = bounded(1);
        let user = thread::spawn(move || {
            let mut peers: Vec<Peer> = Vec::new();
            let mut log = Vec::new();
            loop {
                select! {
                    recv(events) -> event => match event.unwrap() {
                        Event::Open(peer, _) => {
                            log.push("open".to_owned());
                            peer.send("welcome").unwrap();
                            peers.push(peer);
                        }
                        Event::Message(peer, message) => {
                            assert!(peers.contains(&peer));
                            log.push(format!("message {message}"));
                            peer.send(message).unwrap();
                        }
                        Event::Close(peer, reason) => {
                            log.push(format!("close {}", u16::from(reason.code())));
                            peers.retain(|other| *other != peer);
                            tell.send(()).unwrap();
                        }
                        _ => {}
                    },
                    recv(orders) -> order => match order {
                        Ok(text) => peers.iter().for_each(|peer| drop(peer.send(text))),
                        Err(_) => return log,
                    },
                    default(WAIT) => panic!("nothing happens"),
                }
            }
        });
        let mut raw = Raw::open(server.addr);
        assert_eq!(raw.frame(), Some((0x81, b"welcome".to_vec())));
        raw.write(&frame(0x81, b"hello"));
        assert_eq!(raw.frame(), Some((0x81, b"hello".to_vec())));
        order.send("from another channel").unwrap();
        assert_eq!(raw.frame(), Some((0x81, b"from another channel".to_vec())));
        raw.write(&frame(0x88, b"\x0F\xA0"));
        assert_eq!(raw.close_code(), Some(4000));
        told.recv_timeout(WAIT).unwrap();
        drop(order);
        let log = user.join().unwrap();
        assert_eq!(log, ["open", "message hello", "close 4000"]);
    }
}

/// Whoever is told that a WebSocket is open reaches it, by `send` and by `broadcast`.
fn a_new_peer_is_reached(transport: Transport) {
    const CLIENTS: usize = 300;
    let (server, events) = start(transport, |s| s.workers(2));
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut closed = 0;
            while closed < CLIENTS {
                match next(&events) {
                    Event::Open(peer, _) => {
                        assert!(server.handle.broadcast("somebody came"));
                        peer.send("welcome").unwrap();
                    }
                    Event::Close(..) => closed += 1,
                    other => panic!("{other:?}"),
                }
            }
        });
        for n in 0..CLIENTS {
            let mut raw = Raw::open(server.addr);
            let first = raw.frame().unwrap().1;
            assert_eq!(first, b"somebody came", "client {n}");
            assert_eq!(raw.frame(), Some((0x81, b"welcome".to_vec())));
        }
    });
}

/// A raw client with this path and these headers, and what it is answered.
fn asks(server: &Running, path: &str, headers: &str) -> (Raw, String) {
    let mut raw = Raw::connect(server.addr);
    let asked = request(server.addr)
        .replacen("GET /", &format!("GET {path}"), 1)
        .replacen("Host", &format!("{headers}Host"), 1);
    raw.write(asked.as_bytes());
    let head = raw.head();
    (raw, head)
}

fn who_opens_shows_its_request(transport: Transport) {
    let subprotocols = ["b", "a"];
    let (server, events) = start(transport, |s| s.workers(2).subprotocols(subprotocols));
    let offer = "Cookie: who=ann\r\nSec-WebSocket-Protocol: a, b, c\r\n";
    let (_raw, head) = asks(&server, "/game?seat=3", offer);
    assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
    let head = head.to_lowercase();
    assert!(head.contains("\r\nsec-websocket-protocol: b\r\n"), "{head}");
    let event = next(&events);
    let whom = event.peer().clone();
    let Event::Open(peer, request) = event else {
        panic!("not an open");
    };
    assert_eq!(peer, whom);
    assert_eq!(request.path(), "/game");
    assert_eq!(request.query_param("seat").as_deref(), Some("3"));
    assert_eq!(request.cookie("who"), Some("ann"));
    until("it is agreed on", || peer.subprotocol() == Some("b"));
}

fn who_is_not_let_in_is_no_event(transport: Transport) {
    let (server, bound) = transport.bind();
    let decide = |request: &Request| match request.path() {
        "/in" => Ok(Accept::new(()).subprotocol("a")),
        _ => Err(Response::unauthorized()),
    };
    let server = server.origin(Origin::Any).subprotocols(["b"]);
    let (handle, events) = server.events_with(decide).unwrap();
    let server = bound.running(handle);
    let (_, head) = asks(&server, "/out", "");
    assert!(head.starts_with("HTTP/1.1 401 "), "{head}");
    let (_raw, head) = asks(&server, "/in", "Sec-WebSocket-Protocol: a, b\r\n");
    assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
    let Event::Open(peer, request) = next(&events) else {
        panic!("not an open");
    };
    assert_eq!(request.path(), "/in");
    until("it is agreed on", || peer.subprotocol() == Some("a"));
    assert!(events.is_empty());
}

/// With this for a write timeout, a write that fails shows that nobody reads.
const STUCK: Duration = Duration::from_millis(500);

fn a_slow_receiver_slows_the_senders_down(transport: Transport) {
    const CLIENTS: usize = 4;
    const MESSAGES: u32 = 5_000;
    let (server, events) = listens(transport.bind_narrow(NARROW), |s| s.workers(2));
    let all = &frames(0..MESSAGES, 1000);
    thread::scope(|scope| {
        let (stuck, slowed) = bounded(CLIENTS);
        for _ in 0..CLIENTS {
            let (addr, stuck) = (server.addr, stuck.clone());
            scope.spawn(move || {
                let mut raw = upgraded(narrow(addr));
                raw.stream.set_write_timeout(Some(STUCK)).unwrap();
                let mut written = 0;
                while written < all.len() {
                    match raw.stream.write(&all[written..]) {
                        Ok(n) => written += n,
                        Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                        Err(error) => panic!("{error}"),
                    }
                }
                stuck.send(written).unwrap();
                raw.stream.set_write_timeout(Some(WAIT)).unwrap();
                raw.write(&all[written..]);
                raw.write(&frame(0x88, b"\x03\xE8"));
                assert_eq!(raw.close_code(), Some(1000));
            });
        }
        // Nobody receives until all clients are stuck.
        for _ in 0..CLIENTS {
            let written = slowed.recv_timeout(WAIT).unwrap();
            assert!(written < all.len() / 2, "{written} bytes were taken");
        }
        let mut seen: HashMap<PeerId, u32> = HashMap::new();
        let mut closed = 0;
        while closed < CLIENTS {
            match next(&events) {
                Event::Open(peer, _) => assert_eq!(seen.insert(peer.id(), 0), None),
                Event::Message(peer, message) => {
                    let expected = seen.get_mut(&peer.id()).unwrap();
                    assert_eq!(number(&message.into_data()), *expected);
                    *expected += 1;
                }
                Event::Close(peer, reason) => {
                    assert_eq!(seen.remove(&peer.id()), Some(MESSAGES));
                    assert_eq!(reason.code(), CloseCode::Normal);
                    closed += 1;
                }
                other => panic!("{other:?}"),
            }
        }
    });
    assert!(events.is_empty());
}

fn several_threads_may_receive(transport: Transport) {
    const MESSAGES: u32 = 2_000;
    let (server, events) = start(transport, |s| s.workers(2));
    let mut raw = Raw::open(server.addr);
    let mut numbers: Vec<u32> = thread::scope(|scope| {
        let receive = || {
            let mut numbers = Vec::new();
            loop {
                match next(&events) {
                    Event::Open(..) => {}
                    Event::Message(peer, Message::Binary(payload)) => {
                        numbers.push(number(&payload));
                        peer.send(payload).unwrap();
                    }
                    // One for each.
                    Event::Message(..) => return numbers,
                    other => panic!("{other:?}"),
                }
            }
        };
        let receivers: Vec<_> = (0..3).map(|_| scope.spawn(receive)).collect();
        raw.write(&frames(0..MESSAGES, 10));
        for _ in 0..MESSAGES {
            assert_eq!(raw.frame().unwrap().0, 0x82);
        }
        for _ in 0..3 {
            raw.write(&frame(0x81, b"end"));
        }
        let numbers = receivers.into_iter().map(|r| r.join().unwrap());
        numbers.flatten().collect()
    });
    numbers.sort_unstable();
    assert!(numbers.into_iter().eq(0..MESSAGES));
}

fn writable_is_an_event(transport: Transport) {
    let (server, events) = start(transport, |s| s.workers(2).outbound_limit(16 << 20));
    let mut raw = upgraded(narrow(server.addr));
    let Event::Open(peer, _) = next(&events) else {
        panic!("not an open");
    };
    let mut sent = 1;
    while peer.send(numbered(sent - 1, 1000)).unwrap() == Sent::Queued {
        sent += 1;
    }
    assert!(events.is_empty());
    for n in 0..sent {
        assert_eq!(number(&raw.frame().unwrap().1), n);
    }
    let event = next(&events);
    assert!(matches!(event, Event::Writable(it) if it == peer));
    assert_eq!(peer.queued_bytes(), 0);
}

/// Whoever drops the receiver has no interest any more; the server is still there, and still ends.
fn nobody_receives(transport: Transport) {
    let (server, events) = start(transport, |s| s.workers(2));
    drop(events);
    let mut raw = Raw::open(server.addr);
    raw.write(&frames(0..3000, 10));
    assert!(server.handle.broadcast("hello"));
    assert_eq!(raw.frame(), Some((0x81, b"hello".to_vec())));
    thread::scope(|scope| {
        let shutdown = scope.spawn(|| server.handle.shutdown(WAIT));
        assert_eq!(raw.close_code(), Some(1001));
        raw.write(&frame(0x88, b"\x03\xE9"));
        assert_eq!(raw.frame(), None);
        drop(raw);
        assert!(shutdown.join().unwrap());
    });
}

/// The channel ends with the server.
fn the_channel_ends(transport: Transport) {
    let (server, events) = start(transport, |s| s.workers(2));
    assert!(server.handle.shutdown(WAIT));
    let nothing = never::<()>();
    select! {
        recv(events) -> event => assert!(event.is_err()),
        recv(nothing) -> _ => unreachable!(),
        default(WAIT) => panic!("the channel is still open"),
    }
}
