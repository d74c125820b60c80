//! Rooms over real sockets: who gets what, in which order, and what becomes of a room.

mod support;

use std::io::{Read, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded, unbounded};
use framemill::{
    Accept, Client, Clients, CloseCode, CloseReason, Handler, Members, Membership, Message, Peer,
    Refused, Request, Response, Room, Rooms, Server, Tick,
};
use support::sequences::Sequences;
use support::spy::{narrow, spy, upgraded};
use support::{Raw, Running, Transport, WAIT, frame, request, reset, serve, until};

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
        assert_ne!(name, "panic", "on purpose");
        if name == "nobody" {
            let _ = peer.send("no");
            return Err(Refused);
        }
        if name == "elsewhere" {
            peer.close(CloseCode::Policy, "not here");
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
            "at once" => {
                room.broadcast("not with us");
                assert!(peer.terminate());
            }
            "out with it" => {
                assert!(room.remove(peer.id()));
                let _ = peer.send("out");
                peer.close(CloseCode::Policy, "no more of that");
            }
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
}

/// Rooms of talk, and how many there are.
fn talk() -> (Rooms<Talk>, Arc<AtomicUsize>) {
    let made = Arc::new(AtomicUsize::new(0));
    let count = made.clone();
    let rooms = Rooms::new(move |name| {
        assert_ne!(name, "panic", "on purpose");
        count.fetch_add(1, Ordering::SeqCst);
        Talk {
            said: 0,
            made: count.clone(),
        }
    });
    (rooms, made)
}

/// Says everything twice to all, and once to all but who said it.
#[derive(Default)]
struct Loud {
    said: u32,
}

impl Room for Loud {
    type Join = ();

    fn join(&mut self, _: &mut Members, _: &Peer, (): ()) -> Result<(), Refused> {
        Ok(())
    }

    fn message(&mut self, room: &mut Members, peer: &Peer, _: Message) {
        room.broadcast(format!("0:{}", 2 * self.said));
        room.broadcast(format!("0:{}", 2 * self.said + 1));
        room.broadcast_except(peer.id(), format!("1:{}", self.said));
        self.said += 1;
    }
}

/// So many that the loop writes them by groups, and waits a moment for what else is on its way to them.
#[test]
fn a_room_of_hundreds() {
    const MEMBERS: usize = 300;
    const MESSAGES: u32 = 50;
    for (loops, workers) in THREADS {
        let handler = Rooms::new(|_| Loud::default()).handler(|_| Ok(("all".into(), ())));
        let server = serve(move |s: Server| s.loops(loops).workers(workers), handler);
        let mut raws: Vec<Raw> = (0..MEMBERS).map(|_| Raw::open(server.addr)).collect();
        for _ in 0..MESSAGES {
            raws[0].write(&frame(0x81, b"x"));
        }
        Sequences::default().read(&mut raws[0], 2 * MESSAGES);
        for raw in &mut raws[1..] {
            Sequences::default().read(raw, 3 * MESSAGES);
        }
    }
}

/// The room and the name that are in the path: `/room/name`.
fn room_and_name(request: &Request) -> (String, String) {
    let mut parts = request.path().split('/').skip(1);
    let mut part = || parts.next().unwrap().to_owned();
    (part(), part())
}

/// Connections that are there for their room alone.
fn serve_talk((loops, workers): (usize, usize), rooms: &Rooms<Talk>) -> Running {
    let handler = rooms.clone().handler(|request| Ok(room_and_name(request)));
    serve(move |s: Server| s.loops(loops).workers(workers), handler)
}

/// Connections that a room is only a part of.
struct Joining(Rooms<Talk>);

impl Handler for Joining {
    type Session = Membership<Talk>;

    fn open(&self, request: &Request, peer: &Peer) -> Result<Accept<Self::Session>, Response> {
        let (room, name) = room_and_name(request);
        Ok(Accept::new(self.0.join(&room, peer, name)))
    }

    fn message(&self, session: &mut Self::Session, _: &Peer, message: Message) {
        session.message(message);
    }
}

fn serve_joining((loops, workers): (usize, usize), rooms: &Rooms<Talk>) -> Running {
    let handler = Joining(rooms.clone());
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

#[test]
fn who_is_refused_is_left_alone() {
    for threads in THREADS {
        let (rooms, made) = talk();
        let server = serve_joining(threads, &rooms);
        let mut refused = enter(&server, "/a/nobody");
        hears(&mut refused, "no");
        until("the room has closed", || rooms.is_empty());
        say(&mut refused, "is anybody there?");
        let mut ann = enter(&server, "/a/ann");
        hears(&mut ann, "hello ann, 0 are here");
        say(&mut refused, "panic");
        say(&mut ann, "one");
        hears(&mut ann, "you said one");
        hears(&mut ann, "all one");
        drop(refused);
        say(&mut ann, "two");
        hears(&mut ann, "you said two");
        assert_eq!(made.load(Ordering::SeqCst), 1);
    }
}

#[test]
fn who_is_put_out_stays_connected() {
    for threads in THREADS {
        let (rooms, _) = talk();
        let server = serve_joining(threads, &rooms);
        let (mut ann, mut bob) = (enter(&server, "/a/ann"), enter(&server, "/a/bob"));
        // Whoever was first.
        for raw in [&mut ann, &mut bob] {
            while raw.frame().unwrap().1.len() != "hello ann, 0 are here".len() {}
        }
        until("both are there", || {
            rooms.find("a").is_some_and(|a| a.len() == 2)
        });
        say(&mut bob, "out");
        until("one is out", || rooms.find("a").unwrap().len() == 1);
        say(&mut bob, "panic");
        say(&mut ann, "close");
        until("it is closed", || rooms.is_empty());
        say(&mut ann, "panic");
        let mut cat = enter(&server, "/a/cat");
        hears(&mut cat, "hello cat, 0 are here");
        // All of these are still served.
        for raw in [&mut ann, &mut bob, &mut cat] {
            raw.write(&frame(0x89, b"?"));
            while raw.frame().unwrap().0 != 0x8A {}
        }
        assert_eq!(server.handle.connections(), 3);
    }
}

/// Who is there for a room alone, and is not let in, is told so.
#[test]
fn a_handler_of_rooms_closes_who_is_refused() {
    for threads in THREADS {
        let (rooms, _) = talk();
        let server = serve_talk(threads, &rooms);
        let mut ann = enter(&server, "/a/ann");
        hears(&mut ann, "hello ann, 0 are here");
        let mut refused = enter(&server, "/a/nobody");
        hears(&mut refused, "no");
        assert_eq!(refused.close_code(), Some(1013));
        // The room may have words of its own.
        let mut elsewhere = enter(&server, "/a/elsewhere");
        assert_eq!(
            elsewhere.frame(),
            Some((0x88, b"\x03\xF0not here".to_vec()))
        );
        drop((refused, elsewhere));
        until("only one is left", || server.handle.connections() == 1);
        say(&mut ann, "still");
        hears(&mut ann, "you said still");
    }
}

#[test]
fn a_handler_of_rooms_closes_who_is_put_out() {
    for threads in THREADS {
        let (rooms, _) = talk();
        let server = serve_talk(threads, &rooms);
        let mut ann = enter(&server, "/a/ann");
        hears(&mut ann, "hello ann, 0 are here");
        for (word, code) in [("out", 1000), ("out with it", 1008)] {
            let mut bob = enter(&server, "/a/bob");
            hears(&mut bob, "hello bob, 1 are here");
            say(&mut bob, word);
            if code == 1008 {
                hears(&mut bob, "out");
            }
            assert_eq!(bob.close_code(), Some(code));
        }
        // When the room is closed, all are out; others may be let into the next of that name.
        let mut cat = enter(&server, "/a/cat");
        hears(&mut cat, "hello cat, 1 are here");
        say(&mut ann, "close");
        for raw in [&mut ann, &mut cat] {
            assert_eq!(raw.close_code(), Some(1000));
        }
        until("it is closed", || rooms.is_empty());
        let mut dan = enter(&server, "/a/dan");
        hears(&mut dan, "hello dan, 0 are here");
    }
}

/// What a room says in a call is held back until it is over; that somebody is to go is not.
#[test]
fn who_is_terminated_is_gone() {
    for threads in THREADS {
        let (rooms, _) = talk();
        let server = serve_talk(threads, &rooms);
        let mut ann = enter(&server, "/a/ann");
        hears(&mut ann, "hello ann, 0 are here");
        let mut bob = enter(&server, "/a/bob");
        hears(&mut bob, "hello bob, 1 are here");
        say(&mut bob, "at once");
        for text in ["bob comes", "not with us", "somebody goes"] {
            hears(&mut ann, text);
        }
        assert_eq!(bob.frame(), None);
        say(&mut ann, "one");
        hears(&mut ann, "you said one");
    }
}

#[test]
fn a_panic_closes_the_room_and_nothing_else() {
    for threads in THREADS {
        let (rooms, made) = talk();
        let server = serve_talk(threads, &rooms);
        let mut other = enter(&server, "/b/cat");
        hears(&mut other, "hello cat, 0 are here");
        let mut ann = enter(&server, "/a/ann");
        hears(&mut ann, "hello ann, 0 are here");
        let mut bob = enter(&server, "/a/bob");
        hears(&mut bob, "hello bob, 1 are here");
        say(&mut bob, "panic");
        assert_eq!(ann.close_code(), Some(1011));
        assert_eq!(bob.close_code(), Some(1011));
        until("the room is gone", || rooms.find("a").is_none());
        let mut ann = enter(&server, "/a/ann");
        hears(&mut ann, "hello ann, 0 are here");
        // While somebody joins: those who are in, and that one.
        let mut bob = enter(&server, "/a/panic");
        assert_eq!(ann.close_code(), Some(1011));
        assert_eq!(bob.close_code(), Some(1011));
        // While the room is made.
        let mut bob = enter(&server, "/panic/bob");
        assert_eq!(bob.close_code(), Some(1011));
        until("only one room is left", || rooms.names() == ["b"]);
        say(&mut other, "still");
        hears(&mut other, "you said still");
        assert_eq!(made.load(Ordering::SeqCst), 1);
    }
}

/// Goes into whatever room the last message named, and passes on all others.
struct Wanderer(Rooms<Talk>);

impl Handler for Wanderer {
    type Session = Option<Membership<Talk>>;

    fn open(&self, _: &Request, _: &Peer) -> Result<Accept<Self::Session>, Response> {
        Ok(Accept::new(None))
    }

    fn message(&self, session: &mut Self::Session, peer: &Peer, message: Message) {
        match message.to_text().unwrap().split_once('/') {
            Some((room, name)) => *session = Some(self.0.join(room, peer, name.into())),
            None => session.as_ref().unwrap().message(message),
        }
    }
}

#[test]
fn joining_again_is_leaving_first() {
    for (loops, workers) in THREADS {
        let (rooms, made) = talk();
        let handler = Wanderer(rooms.clone());
        let server = serve(|s| s.loops(loops).workers(workers), handler);
        let mut bob = Raw::open(server.addr);
        say(&mut bob, "a/bob");
        hears(&mut bob, "hello bob, 0 are here");
        let mut ann = Raw::open(server.addr);
        for room in ["a", "b", "a", "a", "a"] {
            say(&mut ann, &format!("{room}/ann"));
            say(&mut ann, "I");
            let others = usize::from(room == "a");
            hears(&mut ann, &format!("hello ann, {others} are here"));
            hears(&mut ann, "you said I");
            hears(&mut ann, "all I");
        }
        let comes = ["ann comes", "1 I", "all I", "somebody goes"];
        let comes_again = ["ann comes", "2 I", "all I", "somebody goes"];
        let third = ["ann comes", "3 I", "all I", "somebody goes"];
        let fourth = ["ann comes", "4 I", "all I"];
        for text in [&comes[..], &comes_again, &third, &fourth].concat() {
            hears(&mut bob, text);
        }
        until("the other room has closed", || {
            made.load(Ordering::SeqCst) == 1
        });
    }
}

/// Who joins again leaves first, and is closed with the others if the room panics then.
#[test]
fn a_panic_while_joining_again() {
    struct Sticky;
    impl Room for Sticky {
        type Join = ();

        fn join(&mut self, _: &mut Members, peer: &Peer, (): ()) -> Result<(), Refused> {
            peer.send("welcome").unwrap();
            Ok(())
        }

        fn message(&mut self, _: &mut Members, _: &Peer, _: Message) {}

        fn leave(&mut self, _: &mut Members, _: &Peer) {
            panic!("on purpose");
        }
    }
    struct Again(Rooms<Sticky>);
    impl Handler for Again {
        type Session = Membership<Sticky>;

        fn open(&self, _: &Request, peer: &Peer) -> Result<Accept<Self::Session>, Response> {
            Ok(Accept::new(self.0.join("room", peer, ())))
        }

        fn message(&self, room: &mut Self::Session, peer: &Peer, _: Message) {
            *room = self.0.join("room", peer, ());
        }
    }
    for (loops, workers) in THREADS {
        let rooms = Rooms::new(|_| Sticky);
        let handler = Again(rooms.clone());
        let server = serve(|s| s.loops(loops).workers(workers), handler);
        let [mut ann, mut bob] = [(); 2].map(|()| {
            let mut raw = Raw::open(server.addr);
            hears(&mut raw, "welcome");
            raw
        });
        say(&mut ann, "again");
        assert_eq!(ann.close_code(), Some(1011));
        assert_eq!(bob.close_code(), Some(1011));
        until("the room is closed", || rooms.names().is_empty());
    }
}

/// The room stays as it is, unless it refuses.
#[test]
fn the_only_member_may_join_again() {
    for (loops, workers) in THREADS {
        let (rooms, made) = talk();
        let handler = Wanderer(rooms.clone());
        let server = serve(|s| s.loops(loops).workers(workers), handler);
        let mut ann = Raw::open(server.addr);
        for _ in 0..3 {
            say(&mut ann, "a/ann");
            say(&mut ann, "I");
            for text in ["hello ann, 0 are here", "you said I", "all I"] {
                hears(&mut ann, text);
            }
        }
        let mut bob = Raw::open(server.addr);
        say(&mut bob, "a/bob");
        hears(&mut bob, "hello bob, 1 are here");
        hears(&mut ann, "bob comes");
        say(&mut ann, "I");
        hears(&mut bob, "4 I");
        say(&mut bob, "b/bob");
        for text in ["you said I", "all I", "somebody goes"] {
            hears(&mut ann, text);
        }
        say(&mut ann, "a/nobody");
        hears(&mut ann, "no");
        until("the room is closed", || rooms.names() == ["b"]);
        assert_eq!(made.load(Ordering::SeqCst), 1);
    }
}

/// Many come and go at the same time, so that rooms close while others join them.
#[test]
fn joining_a_room_that_closes_is_never_lost() {
    const VISITS: usize = 150;
    for (loops, workers) in THREADS {
        let (rooms, made) = talk();
        let handler = Wanderer(rooms.clone());
        let server = serve(|s| s.loops(loops).workers(workers), handler);
        thread::scope(|scope| {
            for who in 0..6 {
                let addr = server.addr;
                scope.spawn(move || {
                    let mut raw = Raw::open(addr);
                    for n in 0..VISITS {
                        // To and fro, so that each room is often left by the last.
                        say(&mut raw, &format!("{}/{who}.{n}", n % 2));
                        let hello = format!("hello {who}.{n}, ");
                        while !raw.frame().unwrap().1.starts_with(hello.as_bytes()) {}
                    }
                });
            }
        });
        until("all rooms are closed", || rooms.is_empty());
        assert_eq!(made.load(Ordering::SeqCst), 0);
    }
}

#[test]
fn rooms_that_are_kept_end_with_the_server() {
    for threads in THREADS {
        let (rooms, made) = talk();
        let rooms = rooms.keep_empty(true);
        let server = serve_talk(threads, &rooms);
        let mut ann = enter(&server, "/a/ann");
        hears(&mut ann, "hello ann, 0 are here");
        say(&mut ann, "one");
        hears(&mut ann, "you said one");
        drop(ann);
        until("she has left", || rooms.find("a").unwrap().is_empty());
        let mut bob = enter(&server, "/a/bob");
        let mut cat = enter(&server, "/a/cat");
        hears(&mut bob, "hello bob, 0 are here");
        hears(&mut cat, "hello cat, 1 are here");
        say(&mut bob, "two");
        hears(&mut cat, "2 two");
        let room = rooms.find("a").unwrap();
        assert!(room.with(|talk, members| assert_eq!((talk.said, members.len()), (2, 2))));
        let done =
            thread::spawn(move || while cat.frame().is_some_and(|(first, _)| first != 0x88) {});
        drop(bob);
        server.handle.shutdown(Duration::ZERO);
        done.join().unwrap();
        assert!(rooms.is_empty());
        assert_eq!(made.load(Ordering::SeqCst), 0);
        assert!(!room.with(|_, _| unreachable!()));
        assert_eq!(room.len(), 0);
    }
}

#[test]
fn a_membership_may_outlive_its_server() {
    for (loops, workers) in THREADS {
        let (rooms, made) = talk();
        let (handler, seen) = spy(|_, _| ());
        let server = serve(|s| s.loops(loops).workers(workers), handler);
        let mut raw = Raw::open(server.addr);
        let peer = seen.peer();
        let membership = rooms.join("a", &peer, "ann".into());
        hears(&mut raw, "hello ann, 0 are here");
        server.handle.shutdown(Duration::ZERO);
        assert_eq!((rooms.len(), made.load(Ordering::SeqCst)), (0, 0));
        membership.message("anybody?".into());
        assert!(!membership.room().with(|_, _| unreachable!()));
        // There will be no end to come for a room that is made now.
        let late = rooms.join("a", &peer, "bob".into());
        assert!(!late.room().with(|_, _| unreachable!()));
        assert_eq!((rooms.len(), made.load(Ordering::SeqCst)), (0, 0));
    }
}

/// None is left over, whether it was made just before or would have been just after.
#[test]
fn joining_while_the_server_ends() {
    for (loops, workers) in THREADS {
        let (rooms, made) = talk();
        let rooms = rooms.keep_empty(true).tick_rate(100.0);
        let (handler, seen) = spy(|_, _| ());
        let server = serve(|s| s.loops(loops).workers(workers), handler);
        let _raw = Raw::open(server.addr);
        let peer = seen.peer();
        let (joined, over) = (AtomicUsize::new(0), AtomicBool::new(false));
        let began = Instant::now();
        thread::scope(|scope| {
            scope.spawn(|| {
                while !over.load(Ordering::SeqCst) && began.elapsed() < 2 * WAIT {
                    let n = joined.fetch_add(1, Ordering::SeqCst);
                    drop(rooms.join(&(n % 100).to_string(), &peer, "ann".into()));
                }
            });
            until("there are rooms", || made.load(Ordering::SeqCst) > 10);
            server.handle.shutdown(Duration::ZERO);
            let before = joined.load(Ordering::SeqCst);
            until("it has tried them all", || {
                joined.load(Ordering::SeqCst) > before + 100
            });
            over.store(true, Ordering::SeqCst);
        });
        until("all have ended", || rooms.is_empty());
        assert_eq!(made.load(Ordering::SeqCst), 0);
    }
}

#[test]
fn a_client_joins_nothing() {
    let server = support::echo();
    let (rooms, made) = talk();
    let clients = Clients::start(1, 1).unwrap();
    let (told, outcome) = bounded(1);
    let inside = rooms.clone();
    let handler = move |peer: &Peer, _: Message| {
        let membership = inside.join("a", peer, "ann".into());
        membership.message("?".into());
        let _ = told.send(membership.room().with(|_, _| ()));
    };
    let client = Client::new(format!("ws://{}", server.addr)).unwrap();
    let handle = clients.open(client, handler).unwrap();
    until("it is open", || handle.send("?").is_ok());
    assert_eq!(outcome.recv_timeout(WAIT), Ok(false));
    assert_eq!((rooms.len(), made.load(Ordering::SeqCst)), (0, 0));
}

/// Whoever floods a room that is busy is not read from for ever.
#[test]
fn a_room_that_is_behind_slows_its_members_down() {
    const LIMIT: usize = 20;
    for (loops, workers) in [(1, 0), (1, 2)] {
        let rooms = Rooms::new(|_| Sums(0));
        let passed = Arc::new(AtomicUsize::new(0));
        let handler = Counting(rooms.clone(), passed.clone());
        let settings = |s: Server| {
            s.loops(loops)
                .workers(workers)
                .inbound_limit(LIMIT, 1 << 20)
        };
        let server = serve(settings, handler);
        let mut raw = Raw::open(server.addr);
        let gate = keep_busy(&server, &rooms);
        let one = frame(0x81, b"1");
        let sent = flood(&mut raw, &one, 64 << 20);
        let most = passed.load(Ordering::SeqCst);
        assert!((1..=LIMIT).contains(&most), "{most} passed on");
        drop(gate);
        let all = complete(&mut raw, &one, sent);
        until("all is summed up", || passed.load(Ordering::SeqCst) == all);
        say(&mut raw, "?");
        hears(&mut raw, &all.to_string());
    }
}

/// Whoever joins again and again while the room is busy is not read from for ever either.
#[test]
fn a_room_that_is_behind_slows_down_who_joins_it() {
    const LIMIT: usize = 20;
    for workers in [0, 2] {
        let rooms = Rooms::new(|_| Sums(0)).keep_empty(true);
        let joined = Arc::new(AtomicUsize::new(0));
        let handler = Rejoining(rooms.clone(), joined.clone());
        let settings = |s: Server| s.workers(workers).inbound_limit(LIMIT, 1 << 20);
        let server = serve(settings, handler);
        let mut raw = Raw::open(server.addr);
        say(&mut raw, "1");
        let gate = keep_busy(&server, &rooms);
        let one = frame(0x81, &[b'1'; 100]);
        let sent = flood(&mut raw, &one, 32 << 20);
        let most = joined.load(Ordering::SeqCst);
        assert!((2..=LIMIT + 2).contains(&most), "joined {most} times");
        drop(gate);
        let all = complete(&mut raw, &one, sent) + 1;
        until("all have joined", || joined.load(Ordering::SeqCst) == all);
        until("it is in", || rooms.find("a").is_some_and(|a| a.len() == 1));
    }
}

/// Waits until somebody is in the room, and keeps it busy until what this gives is dropped.
fn keep_busy<R: Room>(server: &Running, rooms: &Rooms<R>) -> Sender<()> {
    until("somebody is in", || {
        rooms.find("a").is_some_and(|room| room.len() == 1)
    });
    let room = rooms.find("a").unwrap();
    let (busy, is_busy) = bounded(1);
    let (gate, open) = bounded(0);
    // On a thread of the server, whichever that is.
    server.handle.after(Duration::ZERO, move || {
        room.with(move |_, _| {
            busy.send(()).unwrap();
            let _ = open.recv_timeout(WAIT);
        });
    });
    is_busy.recv_timeout(WAIT).unwrap();
    gate
}

/// Writes one frame again and again until the kernel takes no more; tells how many bytes it took.
fn flood(raw: &mut Raw, one: &[u8], most: usize) -> usize {
    let many = one.repeat(10_000);
    let mut sent = 0;
    raw.stream
        .set_write_timeout(Some(Duration::from_millis(300)))
        .unwrap();
    while let Ok(n) = raw.stream.write(&many[sent % one.len()..]) {
        sent += n;
        assert!(sent < most, "it is read from all the time");
    }
    raw.stream.set_write_timeout(Some(WAIT)).unwrap();
    sent
}

/// Writes the rest of a frame that was cut; tells how many there are now.
fn complete(raw: &mut Raw, one: &[u8], sent: usize) -> usize {
    let rest = (one.len() - sent % one.len()) % one.len();
    raw.write(&one[one.len() - rest..]);
    (sent + rest) / one.len()
}

/// Joins the room with each message.
struct Rejoining(Rooms<Sums>, Arc<AtomicUsize>);

impl Handler for Rejoining {
    type Session = Option<Membership<Sums>>;

    fn open(&self, _: &Request, _: &Peer) -> Result<Accept<Self::Session>, Response> {
        Ok(Accept::new(None))
    }

    fn message(&self, session: &mut Self::Session, peer: &Peer, _: Message) {
        *session = Some(self.0.join("a", peer, ()));
        self.1.fetch_add(1, Ordering::SeqCst);
    }
}

/// Says back what it is told.
struct Echo;

impl Room for Echo {
    type Join = ();

    fn join(&mut self, _: &mut Members, _: &Peer, (): ()) -> Result<(), Refused> {
        Ok(())
    }

    fn message(&mut self, _: &mut Members, peer: &Peer, message: Message) {
        let _ = peer.send(message);
    }
}

/// Whoever asks without reading, so that what it says waits, and then is gone, is out of the room.
#[test]
fn who_is_gone_while_its_messages_wait_is_out() {
    for (loops, workers) in [(1, 0), (1, 2)] {
        let rooms = Rooms::new(|_| Echo);
        let handler = rooms.clone().handler(|_| Ok(("a".into(), ())));
        // More than twice what may be with the room.
        let settings = |s: Server| s.loops(loops).workers(workers).outbound_limit(256 << 10);
        let server = Transport::Plain.serve_narrow(settings, handler);
        let mut raw = upgraded(narrow(server.addr));
        flood(&mut raw, &frame(0x81, &[b'1'; 1000]), 64 << 20);
        reset(raw.stream);
        until("it is out", || rooms.is_empty());
    }
}

/// Sends to its member, and is busy until told otherwise.
struct Busy {
    began: Sender<Peer>,
    end: Receiver<()>,
}

impl Room for Busy {
    type Join = ();

    fn join(&mut self, _: &mut Members, _: &Peer, (): ()) -> Result<(), Refused> {
        Ok(())
    }

    fn message(&mut self, room: &mut Members, peer: &Peer, message: Message) {
        if message.to_text().unwrap() == "latest" {
            room.broadcast("first");
            let _ = peer.send_latest(1_u32, "room's");
        } else {
            let _ = peer.send("room's");
        }
        self.began.send(peer.clone()).unwrap();
        let _ = self.end.recv_timeout(WAIT);
        let _ = peer.send("end");
    }
}

/// What a room sends waits for the end of its call; what others send to the same connection doesn't.
#[test]
fn others_send_while_a_room_is_busy() {
    for (loops, workers) in [(1, 1), (2, 4)] {
        let (began, has_begun) = unbounded();
        let (gate, end) = bounded(0);
        let rooms = Rooms::new(move |_| Busy {
            began: began.clone(),
            end: end.clone(),
        });
        let handler = rooms.clone().handler(|_| Ok(("a".into(), ())));
        let server = serve(|s| s.loops(loops).workers(workers), handler);
        let mut raw = Raw::open(server.addr);
        let long = "x".repeat(5000);
        for text in ["short", &long] {
            say(&mut raw, "go");
            let peer = has_begun.recv_timeout(WAIT).unwrap();
            assert!(!raw.hears(Duration::from_millis(50)));
            peer.send(text).unwrap();
            assert!(raw.hears(WAIT / 4), "while the room is busy");
            hears(&mut raw, "room's");
            hears(&mut raw, text);
            gate.send_timeout((), WAIT).unwrap();
            hears(&mut raw, "end");
        }
        // The latest of a key, behind a broadcast that is held back.
        say(&mut raw, "latest");
        let peer = has_begun.recv_timeout(WAIT).unwrap();
        peer.send_latest(1_u32, "latest").unwrap();
        assert!(raw.hears(WAIT / 4), "while the room is busy");
        hears(&mut raw, "latest");
        gate.send_timeout((), WAIT).unwrap();
        hears(&mut raw, "first");
        hears(&mut raw, "end");
    }
}

/// RFC 6455 §5.5.1: no data follow a close frame, nor do those that a room has sent before and that wait for
/// the end of its call. They stay undelivered.
#[test]
fn nothing_of_a_busy_room_follows_a_close_frame() {
    for (loops, workers) in [(1, 1), (2, 4)] {
        let (began, has_begun) = unbounded();
        let (gate, end) = bounded(0);
        let rooms = Rooms::new(move |_| Busy {
            began: began.clone(),
            end: end.clone(),
        });
        let handler = rooms.handler(|_| Ok(("a".into(), ())));
        let server = serve(|s| s.loops(loops).workers(workers), handler);
        let mut raw = Raw::open(server.addr);
        say(&mut raw, "latest");
        let peer = has_begun.recv_timeout(WAIT).unwrap();
        assert!(peer.close(CloseCode::Normal, ""));
        assert_eq!(raw.frame(), Some((0x88, b"\x03\xE8".to_vec())));
        gate.send_timeout((), WAIT).unwrap();
        assert!(!raw.hears(Duration::from_millis(50)));
        assert_eq!(peer.queued_bytes(), 2 + "room's".len());
        raw.write(&frame(0x88, b"\x03\xE8"));
        assert_eq!(raw.frame(), None);
    }
}

/// What a call of a room sends waits for its end, so another thread may close the connection before that; it
/// was accepted, and is told to be undelivered.
#[test]
fn what_a_close_frame_overtakes_is_undelivered() {
    struct Late;
    impl Room for Late {
        type Join = ();

        fn join(&mut self, _: &mut Members, _: &Peer, (): ()) -> Result<(), Refused> {
            Ok(())
        }

        fn message(&mut self, room: &mut Members, peer: &Peer, _: Message) {
            room.broadcast("a");
            peer.send("hello").unwrap();
            let closing = peer.clone();
            let closes = move || closing.close(CloseCode::Normal, "good bye");
            assert!(thread::spawn(closes).join().unwrap());
            // Its close frame has gone out.
            until("only that waits", || peer.queued_bytes() == 2 + 5);
        }
    }
    struct Inside(Rooms<Late>, Sender<usize>);
    impl Handler for Inside {
        type Session = Membership<Late>;

        fn open(&self, _: &Request, peer: &Peer) -> Result<Accept<Self::Session>, Response> {
            Ok(Accept::new(self.0.join("room", peer, ())))
        }

        fn message(&self, room: &mut Self::Session, _: &Peer, message: Message) {
            room.message(message);
        }

        fn close(&self, _: Self::Session, _: &Peer, reason: &CloseReason) {
            self.1.send(reason.undelivered_bytes()).unwrap();
        }
    }
    let (tell, told) = unbounded();
    let handler = Inside(Rooms::new(|_| Late), tell);
    let server = serve(|s| s.workers(2), handler);
    let mut raw = Raw::open(server.addr);
    say(&mut raw, "x");
    assert_eq!(raw.close_code(), Some(1000));
    raw.write(&frame(0x88, &1000_u16.to_be_bytes()));
    assert_eq!(told.recv_timeout(WAIT), Ok(2 + 5));
}

/// Without workers, the thread that ticks may be the one that runs a room when others bring it more; as
/// much as they like, others have their ticks.
#[test]
fn a_flooded_room_does_not_keep_the_ticker() {
    let rooms = Rooms::new(|name| Slow(name == "/flooded")).tick_rate(50.0);
    let handler = rooms.handler(|request| Ok((request.path().to_owned(), ())));
    let server = serve(|s: Server| s.workers(0), handler);
    let mut other = enter(&server, "/other");
    let mut raw = enter(&server, "/flooded");
    hears(&mut other, "tick");
    hears(&mut raw, "tick");
    let flood = thread::spawn(move || {
        let many = frame(0x81, b"1").repeat(100);
        while raw.stream.write_all(&many).is_ok() {}
    });
    // So long that the first of it has long arrived.
    let patience = Duration::from_secs(2);
    other.stream.set_read_timeout(Some(patience)).unwrap();
    let deadline = Instant::now() + patience;
    while Instant::now() < deadline {
        hears(&mut other, "tick");
    }
    drop(server);
    flood.join().unwrap();
}

/// Takes its time with each message, and perhaps with ticks, so that there are messages behind them.
struct Slow(bool);

impl Room for Slow {
    type Join = ();

    fn join(&mut self, _: &mut Members, _: &Peer, (): ()) -> Result<(), Refused> {
        Ok(())
    }

    fn message(&mut self, _: &mut Members, _: &Peer, _: Message) {
        thread::sleep(Duration::from_millis(1));
    }

    fn tick(&mut self, room: &mut Members, _: Tick) {
        room.broadcast("tick");
        if self.0 {
            thread::sleep(Duration::from_millis(30));
        }
    }
}

struct Sums(usize);

impl Room for Sums {
    type Join = ();

    fn join(&mut self, _: &mut Members, _: &Peer, (): ()) -> Result<(), Refused> {
        Ok(())
    }

    fn message(&mut self, _: &mut Members, peer: &Peer, message: Message) {
        match message.to_text().unwrap().parse::<usize>() {
            Ok(n) => self.0 += n,
            Err(_) => drop(peer.send(self.0.to_string())),
        }
    }
}

/// Counts what it passes on.
struct Counting(Rooms<Sums>, Arc<AtomicUsize>);

impl Handler for Counting {
    type Session = Membership<Sums>;

    fn open(&self, _: &Request, peer: &Peer) -> Result<Accept<Self::Session>, Response> {
        Ok(Accept::new(self.0.join("a", peer, ())))
    }

    fn message(&self, session: &mut Self::Session, _: &Peer, message: Message) {
        session.message(message);
        self.1.fetch_add(1, Ordering::SeqCst);
    }
}

// ---- the clock ----

/// Counts its ticks, and tells each to all.
struct Clock {
    made: Instant,
}

impl Clock {
    fn rooms(hertz: f64) -> Rooms<Self> {
        let make = |_: &str| Self {
            made: Instant::now(),
        };
        Rooms::new(make).tick_rate(hertz)
    }
}

impl Room for Clock {
    type Join = ();

    fn join(&mut self, _: &mut Members, _: &Peer, (): ()) -> Result<(), Refused> {
        Ok(())
    }

    fn message(&mut self, _: &mut Members, _: &Peer, _: Message) {}

    fn tick(&mut self, room: &mut Members, tick: Tick) {
        let due = self.made.elapsed().saturating_sub(tick.late);
        for part in 0..3 {
            for peer in room.peers() {
                let _ = peer.send(format!("{} {part}", tick.number));
            }
        }
        let (dt, due) = (tick.dt.as_micros(), due.as_micros());
        room.broadcast(format!("{} {dt} {due}", tick.number));
    }
}

fn serve_clock((loops, workers): (usize, usize), rooms: &Rooms<Clock>) -> Running {
    let handler = rooms.clone().handler(|_| Ok(("clock".into(), ())));
    serve(|s| s.loops(loops).workers(workers), handler)
}

#[test]
fn ticks_are_numbered_and_add_up() {
    for threads in THREADS {
        let rooms = Clock::rooms(100.0);
        let server = serve_clock(threads, &rooms);
        let mut raw = Raw::open(server.addr);
        let mut time = 0;
        // A clock that is too slow is far behind by then.
        behind(&mut raw, &mut time, 10);
        let behind = behind(&mut raw, &mut time, 10);
        assert!(behind < 10_000 + BUSY, "{behind} us after {time} us");
        let stats = rooms.find("clock").unwrap().stats();
        assert!(stats.ticks >= 10, "{stats:?}");
    }
}

/// A room with slow ticks waits a whole period for the first, and hardly any longer.
#[test]
fn the_first_tick_is_a_whole_period() {
    let rooms = Clock::rooms(2.5);
    let handler = rooms
        .clone()
        .handler(|request| Ok((request.path().into(), ())));
    let server = serve(|s| s.workers(1), handler);
    let paths = ["/a", "/b", "/c", "/d", "/e", "/f"];
    let raws = paths.map(|path| enter(&server, path));
    for mut raw in raws {
        let behind = behind(&mut raw, &mut 0, 3);
        assert!(behind < 100_000 + BUSY, "{behind} us");
    }
}

/// Microseconds that the machine may take between two looks at the clock, if it has several chances.
const BUSY: u64 = 50_000;

/// How much later the next ticks are due than all `dt` up to them add up to, in microseconds: when the first
/// period began after the room was made. Of `count` ticks the least, as the machine may be busy between two
/// looks at the clock. None is due before.
fn behind(raw: &mut Raw, time: &mut u64, count: usize) -> u64 {
    let each = (0..count).map(|_| {
        let (dt, due) = tick(raw);
        *time += dt;
        assert!(due >= *time, "{time} us in ticks after {due} us");
        due - *time
    });
    each.min().unwrap()
}

/// The next tick of a [`Clock`]: its `dt`, and when it was due.
fn tick(raw: &mut Raw) -> (u64, u64) {
    let texts: Vec<_> = (0..4).map(|_| text(raw)).collect();
    let mut words = texts[3].split(' ');
    let number = words.next().unwrap();
    for (part, text) in texts[..3].iter().enumerate() {
        assert_eq!(*text, format!("{number} {part}"));
    }
    let mut micros = || words.next().unwrap().parse().unwrap();
    (micros(), micros())
}

fn text(raw: &mut Raw) -> String {
    let (first, payload) = raw.frame().unwrap();
    assert_eq!(first, 0x81);
    String::from_utf8(payload).unwrap()
}

/// What each read brings ends with the end of a tick: nothing of it was written before the rest was
/// there. Three peers, of which the last is sent to last. (Unless the loop was so late with one tick that
/// the next had begun, as may happen on a busy machine.)
#[test]
fn what_is_sent_in_a_tick_is_written_at_once() {
    for threads in THREADS {
        let rooms = Clock::rooms(200.0);
        let server = serve_clock(threads, &rooms);
        let mut raws: Vec<_> = (0..3).map(|_| Raw::open(server.addr)).collect();
        let mut torn = 0;
        for raw in &mut raws {
            for _ in 0..20 {
                let mut chunk = [0; 65536];
                let len = raw.stream.read(&mut chunk).unwrap();
                let parts = chunk[..len].iter().filter(|&&b| b == 0x81).count();
                torn += usize::from(parts % 4 != 0);
            }
        }
        assert!(torn <= 6, "{torn} of 60 reads");
    }
}

/// Sleeps on its first tick, and says what became of the next.
struct Sleeper(Sender<Tick>);

impl Room for Sleeper {
    type Join = ();

    fn join(&mut self, _: &mut Members, _: &Peer, (): ()) -> Result<(), Refused> {
        Ok(())
    }

    fn message(&mut self, _: &mut Members, _: &Peer, _: Message) {}

    fn tick(&mut self, _: &mut Members, tick: Tick) {
        if tick.number == 1 {
            thread::sleep(Duration::from_millis(210));
        }
        let _ = self.0.send(tick);
    }
}

#[test]
fn late_ticks_are_merged_and_counted() {
    const PERIOD: Duration = Duration::from_millis(20);
    for (loops, workers) in THREADS {
        let (tell, ticks) = unbounded();
        let rooms = Rooms::new(move |_| Sleeper(tell.clone())).tick_rate(50.0);
        let handler = rooms.clone().handler(|_| Ok(("it".into(), ())));
        let server = serve(|s| s.loops(loops).workers(workers), handler);
        let _raw = Raw::open(server.addr);
        let mut periods = 0;
        let mut merged = 0;
        while periods < 20 {
            let tick = ticks.recv_timeout(WAIT).unwrap();
            periods += u64::from(tick.merged) + 1;
            merged += u64::from(tick.merged);
            assert_eq!(tick.number, periods);
            assert_eq!(tick.dt, PERIOD * (tick.merged + 1));
        }
        let stats = rooms.find("it").unwrap().stats();
        // Of the ten that were due while it slept, one waited; the ticker of a busy machine may not have
        // found the last of them in time.
        assert!(merged >= 4 && stats.merged >= merged, "{merged} {stats:?}");
        assert!(stats.overruns >= 4, "{stats:?}");
        assert!(stats.ticks + stats.merged >= 20, "{stats:?}");
    }
}

#[test]
fn timers_go_off() {
    for workers in [0, 1, 4] {
        let (tell, told) = unbounded();
        let early = tell.clone();
        let server = serve(
            |s| {
                // Before the server runs.
                let handle = s.handle();
                handle.after(Duration::ZERO, move || early.send("early").unwrap());
                s.workers(workers)
            },
            |_: &Peer, _: Message| (),
        );
        assert_eq!(told.recv_timeout(WAIT), Ok("early"));
        let handle = &server.handle;
        let start = Instant::now();
        let (first, second) = (tell.clone(), tell.clone());
        handle.after(Duration::from_millis(40), move || {
            second.send("second").unwrap()
        });
        let once = handle.after(Duration::from_millis(20), move || {
            first.send("first").unwrap()
        });
        assert_eq!(told.recv_timeout(WAIT), Ok("first"));
        assert_eq!(told.recv_timeout(WAIT), Ok("second"));
        assert!(start.elapsed() >= Duration::from_millis(40));
        until("it is over", || once.is_over());
        // One that is cancelled has let go of what it had.
        let never = handle.after(Duration::from_secs(3600), {
            let tell = tell.clone();
            move || tell.send("never").unwrap()
        });
        never.cancel();
        assert!(never.is_over());
        let (mut n, every) = (0, tell.clone());
        let timer = handle.every(Duration::from_millis(2), move || {
            n += 1;
            if n <= 5 {
                every.send("every").unwrap();
            } else {
                panic!("on purpose");
            }
        });
        until("it has panicked", || timer.is_over());
        assert_eq!(told.try_iter().collect::<Vec<_>>(), ["every"; 5]);
        drop(tell);
        // Nobody has a sender any more.
        assert_eq!(told.recv_timeout(WAIT), Err(RecvTimeoutError::Disconnected));
        let late = handle.every(Duration::from_millis(1), || ());
        let beyond_time = handle.after(Duration::MAX, || unreachable!());
        assert!(!late.is_over() && !beyond_time.is_over());
        handle.shutdown(Duration::ZERO);
        assert!(late.is_over() && beyond_time.is_over());
        assert!(handle.after(Duration::ZERO, || unreachable!()).is_over());
    }
}

/// A timer does not run twice at once, and what is due meanwhile is left out.
#[test]
fn a_timer_that_is_late_is_merged() {
    let server = serve(|s| s.workers(4), |_: &Peer, _: Message| ());
    let running = Arc::new(AtomicUsize::new(0));
    let (tell, told) = unbounded();
    let start = Instant::now();
    server.handle.every(Duration::from_millis(1), move || {
        assert_eq!(running.fetch_add(1, Ordering::SeqCst), 0);
        thread::sleep(Duration::from_millis(10));
        running.fetch_sub(1, Ordering::SeqCst);
        let _ = tell.send(());
    });
    for _ in 0..10 {
        told.recv_timeout(WAIT).unwrap();
    }
    assert!(start.elapsed() >= Duration::from_millis(100));
}
