//! Rooms over real sockets: who gets what, in which order, and what becomes of a room.

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use framemill::{Members, Message, Peer, Refused, Room, Rooms, Server, Tick};
use support::{Raw, Running, frame, request, serve, until};

/// Threads to try everything with: loops and workers.
const THREADS: [(usize, usize); 4] = [(1, 0), (1, 1), (2, 0), (2, 4)];

/// Says what happens to all who are there.
#[derive(Default)]
struct Talk {
    said: usize,
    made: Arc<AtomicUsize>,
}

impl Drop for Talk {
    fn drop(&mut self) {
        self.made.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Room for Talk {
    type Join = String;

    fn join(&mut self, room: &mut Members, peer: &Peer, name: String) -> Result<(), Refused> {
        if name == "nobody" {
            let _ = peer.send("no");
            return Err(Refused);
        }
        let _ = peer.send(format!("hello {name}, {} are here", room.len()));
        room.broadcast(format!("{name} comes"));
        Ok(())
    }

    fn message(&mut self, room: &mut Members, peer: &Peer, message: Message) {
        let text = message.to_text().unwrap();
        self.said += 1;
        match text {
            "panic" => panic!("on purpose"),
            "close" => room.close(),
            "out" => assert!(room.remove(peer.id())),
            _ => {
                let _ = peer.send(format!("you said {text}"));
                room.broadcast_except(peer.id(), format!("{} {text}", self.said));
                room.broadcast(format!("all {text}"));
            }
        }
    }

    fn leave(&mut self, room: &mut Members, peer: &Peer) {
        assert!(!room.contains(peer.id()));
        room.broadcast("somebody goes");
    }

    fn tick(&mut self, _: &mut Members, _: Tick) {}
}

/// Rooms of talk, and how many there are.
fn talk() -> (Rooms<Talk>, Arc<AtomicUsize>) {
    let made = Arc::new(AtomicUsize::new(0));
    let count = made.clone();
    let rooms = Rooms::new(move |_| {
        count.fetch_add(1, Ordering::SeqCst);
        Talk {
            said: 0,
            made: count.clone(),
        }
    });
    (rooms, made)
}

/// Into the room and by the name that are in the path: `/room/name`.
fn serve_talk((loops, workers): (usize, usize), rooms: &Rooms<Talk>) -> Running {
    let handler = rooms.clone().handler(|request| {
        let mut parts = request.path().split('/').skip(1);
        let mut part = || parts.next().unwrap().to_owned();
        Ok((part(), part()))
    });
    serve(move |s: Server| s.loops(loops).workers(workers), handler)
}

fn enter(server: &Running, path: &str) -> Raw {
    let mut raw = Raw::connect(server.addr);
    raw.write(
        request(server.addr)
            .replacen("GET / ", &format!("GET {path} "), 1)
            .as_bytes(),
    );
    assert!(raw.head().starts_with("HTTP/1.1 101 "));
    raw
}

fn say(raw: &mut Raw, text: &str) {
    raw.write(&frame(0x81, text.as_bytes()));
}

#[track_caller]
fn hears(raw: &mut Raw, text: &str) {
    let (first, payload) = raw.frame().expect("more");
    assert_eq!(
        (first, std::str::from_utf8(&payload).unwrap()),
        (0x81, text)
    );
}

#[test]
fn joins_talks_and_leaves() {
    for threads in THREADS {
        let (rooms, made) = talk();
        let server = serve_talk(threads, &rooms);
        let mut ann = enter(&server, "/a/ann");
        hears(&mut ann, "hello ann, 0 are here");
        let mut bob = enter(&server, "/a/bob");
        hears(&mut bob, "hello bob, 1 are here");
        hears(&mut ann, "bob comes");
        let mut cat = enter(&server, "/b/cat");
        hears(&mut cat, "hello cat, 0 are here");
        say(&mut ann, "one");
        say(&mut ann, "two");
        for n in ["one", "two"] {
            hears(&mut ann, &format!("you said {n}"));
            hears(&mut ann, &format!("all {n}"));
        }
        for (n, word) in ["one", "two"].iter().enumerate() {
            hears(&mut bob, &format!("{} {word}", n + 1));
            hears(&mut bob, &format!("all {word}"));
        }
        assert_eq!(rooms.len(), 2);
        assert_eq!(rooms.find("a").unwrap().len(), 2);
        drop(bob);
        hears(&mut ann, "somebody goes");
        say(&mut cat, "me");
        hears(&mut cat, "you said me");
        hears(&mut cat, "all me");
        drop((ann, cat));
        until("all rooms are closed", || {
            rooms.is_empty() && made.load(Ordering::SeqCst) == 0
        });
        assert!(rooms.find("a").is_none());
    }
}

/// Counts its ticks, and tells each to all.
struct Clock;

impl Room for Clock {
    type Join = ();

    fn join(&mut self, _: &mut Members, _: &Peer, (): ()) -> Result<(), Refused> {
        Ok(())
    }

    fn message(&mut self, _: &mut Members, _: &Peer, _: Message) {}

    fn tick(&mut self, room: &mut Members, tick: Tick) {
        for part in 0..3 {
            for peer in room.peers() {
                let _ = peer.send(format!("{} {part}", tick.number));
            }
        }
        room.broadcast(format!("{} {}", tick.number, tick.dt.as_micros()));
    }
}

#[test]
fn ticks() {
    for (loops, workers) in THREADS {
        let rooms = Rooms::new(|_| Clock).tick_rate(100.0);
        let handler = rooms.clone().handler(|_| Ok(("clock".into(), ())));
        let server = serve(|s| s.loops(loops).workers(workers), handler);
        let mut raw = Raw::open(server.addr);
        let mut time = Duration::ZERO;
        for _ in 0..10 {
            let mut number = String::new();
            for part in 0..3 {
                let (_, payload) = raw.frame().unwrap();
                let text = String::from_utf8(payload).unwrap();
                let (n, which) = text.split_once(' ').unwrap();
                number = n.to_owned();
                assert_eq!(which, part.to_string());
            }
            let (_, payload) = raw.frame().unwrap();
            let text = String::from_utf8(payload).unwrap();
            let (n, micros) = text.split_once(' ').unwrap();
            assert_eq!(n, number);
            time += Duration::from_micros(micros.parse().unwrap());
            let number: u32 = number.parse().unwrap();
            assert!(time <= Duration::from_millis(10) * number);
        }
        assert!(rooms.find("clock").unwrap().stats().ticks >= 10);
    }
}
