//! What arrives in which order, and who waits for whom.

mod support;

use std::io::Write;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::thread;
use std::time::Duration;

use crossbeam_channel::{bounded, unbounded};
use framemill::{
    Accept, CloseCode, CloseReason, Handler, Members, Membership, Message, Peer, Refused, Request,
    Response, Rooms, SendError, Server, ServerHandle,
};
use support::sequences::Sequences;
use support::spy::spy;
use support::{Raw, Transport, WAIT, client, frame, over_every_transport, until};

over_every_transport! {
    a_thread_sends_and_broadcasts_in_order,
    a_handler_sends_and_broadcasts_in_order,
    close_comes_behind_what_was_sent,
    refusals_are_the_same_behind_a_broadcast,
    handlers_send_to_other_peers_in_order,
    replies_under_pipelining_keep_order,
    one_worker_at_a_time_touches_a_session,
    different_connections_run_at_the_same_time,
    a_blocked_handler_holds_up_nobody_else,
    what_was_sent_arrives_while_the_handler_blocks,
    what_was_broadcast_arrives_while_the_handler_blocks,
    many_get_what_several_broadcast_and_publish_in_order,
    many_need_not_wait_for_a_handler_that_blocks,
    a_loop_that_is_behind_is_waited_for,
    a_handler_a_room_and_a_timer_send_in_order,
}

fn a_thread_sends_and_broadcasts_in_order(transport: Transport) {
    const PEERS: usize = 6;
    const THREADS: u32 = 4;
    const MESSAGES: u32 = 600;
    for (loops, workers) in [(1, 0), (1, 2), (2, 2)] {
        let (handler, seen) = spy(|_, _| ());
        let server = transport.serve(
            |s| s.loops(loops).workers(workers).outbound_limit(64 << 20),
            handler,
        );
        let raws: Vec<Raw> = (0..PEERS).map(|_| Raw::open(server.addr)).collect();
        let peers: Vec<Peer> = raws.iter().map(|_| seen.peer()).collect();
        thread::scope(|scope| {
            for id in 0..THREADS {
                let (peers, everybody) = (&peers, &server.handle);
                scope.spawn(move || {
                    for n in 0..MESSAGES {
                        let text = format!("{id}:{n}");
                        // Runs of one kind and of the other, different for each thread.
                        if (n / (1 + id)) % 2 == 0 {
                            assert!(everybody.broadcast(text));
                        } else {
                            for peer in peers {
                                peer.send(text.as_str()).unwrap();
                            }
                        }
                    }
                });
            }
            for mut raw in raws {
                scope.spawn(move || Sequences::default().read(&mut raw, THREADS * MESSAGES));
            }
        });
    }
}

fn a_handler_sends_and_broadcasts_in_order(transport: Transport) {
    for workers in [0, 4] {
        let everybody = Arc::new(OnceLock::<ServerHandle>::new());
        let handle = everybody.clone();
        let server = transport.serve(
            |s| {
                let _ = everybody.set(s.handle());
                s.workers(workers)
            },
            move |peer: &Peer, message: Message| {
                let n: u32 = message.to_text().unwrap().parse().unwrap();
                peer.send(format!("0:{}", 3 * n)).unwrap();
                assert!(handle.get().unwrap().broadcast(format!("0:{}", 3 * n + 1)));
                peer.send(format!("0:{}", 3 * n + 2)).unwrap();
            },
        );
        let mut raw = Raw::open(server.addr);
        let questions: Vec<Vec<u8>> = (0..500)
            .map(|n: u32| frame(0x81, n.to_string().as_bytes()))
            .collect();
        raw.write(&questions.concat());
        Sequences::default().read(&mut raw, 1500);
    }
}

/// `close` begins the closing handshake "behind everything that was sent".
fn close_comes_behind_what_was_sent(transport: Transport) {
    for workers in [0, 2] {
        let everybody = Arc::new(OnceLock::<ServerHandle>::new());
        let handle = everybody.clone();
        let (tell, outcome) = unbounded();
        let (handler, seen) = spy(move |peer: &Peer, _| {
            assert!(handle.get().unwrap().broadcast("one"));
            peer.send("two").unwrap();
            // Not judged here: behind a close frame, a panic changes nothing.
            let closed = [peer.close(CloseCode::Normal, ""), peer.is_closed()];
            tell.send((closed, peer.send("three"))).unwrap();
        });
        let server = transport.serve(
            |s| {
                let _ = everybody.set(s.handle());
                s.workers(workers)
            },
            handler,
        );
        let mut raw = Raw::open(server.addr);
        raw.write(&frame(0x81, b"go"));
        assert_eq!(raw.frame(), Some((0x81, b"one".to_vec())), "{workers}");
        assert_eq!(raw.frame(), Some((0x81, b"two".to_vec())), "{workers}");
        assert_eq!(raw.frame(), Some((0x88, b"\x03\xE8".to_vec())));
        let (closed, sent) = outcome.recv_timeout(WAIT).unwrap();
        assert_eq!(closed, [true, true]);
        assert_eq!(sent, Err(SendError::Closed("three".into())));
        raw.write(&frame(0x88, b"\x03\xE8"));
        assert_eq!(raw.frame(), None);
        assert_eq!(seen.end().undelivered_bytes(), 0);
    }
}

/// What can't be sent is refused, whatever else is on its way.
fn refusals_are_the_same_behind_a_broadcast(transport: Transport) {
    let everybody = Arc::new(OnceLock::<ServerHandle>::new());
    let handle = everybody.clone();
    let server = transport.serve(
        |s| {
            let _ = everybody.set(s.handle());
            s.workers(0)
        },
        move |peer: &Peer, _: Message| {
            let long = Message::Ping(vec![0; 126].into());
            let before = peer.send(long.clone());
            handle.get().unwrap().broadcast("on its way");
            let after = peer.send(long);
            let same = before == after && matches!(before, Err(SendError::Invalid(_)));
            peer.send(if same { "same" } else { "not the same" })
                .unwrap();
        },
    );
    let mut raw = Raw::open(server.addr);
    raw.write(&frame(0x81, b"go"));
    assert_eq!(raw.frame(), Some((0x81, b"on its way".to_vec())));
    assert_eq!(raw.frame(), Some((0x81, b"same".to_vec())));
}

fn handlers_send_to_other_peers_in_order(transport: Transport) {
    const CLIENTS: u32 = 4;
    const MESSAGES: u32 = 300;
    for workers in [0, 4] {
        let members = Arc::new(Mutex::new(Vec::<Peer>::new()));
        let table = members.clone();
        let (handler, seen) = spy(move |peer: &Peer, message: Message| {
            let others = table.lock().unwrap().clone();
            for other in others.iter().filter(|other| *other != peer) {
                other.send(message.clone()).unwrap();
            }
        });
        let server = transport.serve(|s| s.loops(2).workers(workers), handler);
        let raws: Vec<Raw> = (0..CLIENTS).map(|_| Raw::open(server.addr)).collect();
        members
            .lock()
            .unwrap()
            .extend(raws.iter().map(|_| seen.peer()));
        thread::scope(|scope| {
            for (id, mut raw) in raws.into_iter().enumerate() {
                scope.spawn(move || {
                    let mut writer = Raw::over(raw.stream.try_clone().unwrap());
                    let all: Vec<Vec<u8>> = (0..MESSAGES)
                        .map(|n| frame(0x81, format!("{id}:{n}").as_bytes()))
                        .collect();
                    writer.write(&all.concat());
                    Sequences::default().read(&mut raw, (CLIENTS - 1) * MESSAGES);
                });
            }
        });
    }
}

fn replies_under_pipelining_keep_order(transport: Transport) {
    const MESSAGES: u32 = 5000;
    let server = transport.serve(|s| s.workers(4), |peer: &Peer, m: Message| peer.send(m));
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let mut raw = Raw::open(server.addr);
                let stream = raw.stream.try_clone().unwrap();
                let writer = scope.spawn(move || {
                    let mut writer = Raw::over(stream);
                    for n in 0..MESSAGES {
                        writer.write(&frame(0x81, format!("0:{n}").as_bytes()));
                    }
                });
                Sequences::default().read(&mut raw, MESSAGES);
                writer.join().unwrap();
            });
        }
    });
}

/// Counts calls that overlap on one connection.
struct Exclusive {
    overlaps: Arc<AtomicUsize>,
    closed: crossbeam_channel::Sender<u32>,
}

/// Not to be entered twice at once.
#[derive(Default)]
struct Room {
    inside: AtomicBool,
    /// Without a lock or an atomic: lost if two workers count at once.
    calls: u32,
}

impl Exclusive {
    fn visit(&self, room: &mut Room) {
        if room.inside.swap(true, Ordering::SeqCst) {
            self.overlaps.fetch_add(1, Ordering::SeqCst);
        }
        thread::yield_now();
        room.calls += 1;
        room.inside.store(false, Ordering::SeqCst);
    }
}

impl Handler for Exclusive {
    type Session = Room;

    fn open(&self, _: &Request, _: &Peer) -> Result<Accept<Room>, Response> {
        Ok(Accept::new(Room::default()))
    }

    fn message(&self, room: &mut Room, _: &Peer, _: Message) {
        self.visit(room);
    }

    fn close(&self, mut room: Room, _: &Peer, _: &CloseReason) {
        self.visit(&mut room);
        self.closed.send(room.calls).unwrap();
    }
}

fn one_worker_at_a_time_touches_a_session(transport: Transport) {
    const MESSAGES: u32 = 2000;
    let overlaps = Arc::new(AtomicUsize::new(0));
    let (closed, calls) = unbounded();
    let handler = Exclusive {
        overlaps: overlaps.clone(),
        closed,
    };
    let server = transport.serve(|s| s.workers(4), handler);
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let mut raw = Raw::open(server.addr);
                for _ in 0..MESSAGES {
                    raw.write(&frame(0x82, b"x"));
                }
            });
        }
    });
    for _ in 0..4 {
        assert_eq!(calls.recv_timeout(WAIT), Ok(MESSAGES + 1));
    }
    assert_eq!(overlaps.load(Ordering::SeqCst), 0);
}

fn different_connections_run_at_the_same_time(transport: Transport) {
    // Each handler waits for the other: neither goes on if they take turns.
    let (meet, other) = bounded(0);
    let server = transport.serve(
        |s| s.workers(2),
        move |peer: &Peer, message: Message| match message.to_text() {
            Ok("give") => meet
                .send_timeout((), WAIT)
                .map(|()| peer.send("met"))
                .is_ok(),
            _ => other.recv_timeout(WAIT).map(|()| peer.send("met")).is_ok(),
        },
    );
    let (mut a, mut b) = (Raw::open(server.addr), Raw::open(server.addr));
    a.write(&frame(0x81, b"give"));
    b.write(&frame(0x81, b"take"));
    assert_eq!(a.frame(), Some((0x81, b"met".to_vec())));
    assert_eq!(b.frame(), Some((0x81, b"met".to_vec())));
}

fn a_blocked_handler_holds_up_nobody_else(transport: Transport) {
    let (release, gate) = bounded::<()>(1);
    let server = transport.serve(
        |s| s.workers(2),
        move |peer: &Peer, message: Message| {
            if message == Message::text("block") {
                gate.recv_timeout(WAIT).unwrap();
            }
            peer.send(message)
        },
    );
    let mut blocked = Raw::open(server.addr);
    blocked.write(&[frame(0x81, b"block"), frame(0x81, b"behind")].concat());
    let mut others: Vec<_> = (0..100).map(|_| client(server.addr)).collect();
    for other in &mut others {
        other.send(Message::text("hello")).unwrap();
    }
    for other in &mut others {
        assert_eq!(other.read().unwrap(), Message::text("hello"));
    }
    release.send(()).unwrap();
    assert_eq!(blocked.frame(), Some((0x81, b"block".to_vec())));
    assert_eq!(blocked.frame(), Some((0x81, b"behind".to_vec())));
}

/// A batch of messages may run on one worker without a pause, but each reply goes out all the same.
fn what_was_sent_arrives_while_the_handler_blocks(transport: Transport) {
    for workers in [1, 3] {
        let (release, gate) = bounded::<()>(0);
        let server = transport.serve(
            |s| s.workers(workers),
            move |peer: &Peer, message: Message| {
                peer.send(message).unwrap();
                gate.recv_timeout(WAIT).unwrap();
            },
        );
        let mut raw = Raw::open(server.addr);
        // All three are in the mailbox before the first is handled, or come while it blocks.
        raw.write(&[frame(0x81, b"1"), frame(0x81, b"2"), frame(0x81, b"3")].concat());
        for n in [b"1", b"2", b"3"] {
            assert_eq!(raw.frame(), Some((0x81, n.to_vec())));
            release.send_timeout((), WAIT).unwrap();
        }
    }
}

fn what_was_broadcast_arrives_while_the_handler_blocks(transport: Transport) {
    for workers in [1, 3] {
        let everybody = Arc::new(OnceLock::<ServerHandle>::new());
        let handle = everybody.clone();
        let (release, gate) = bounded::<()>(0);
        let server = transport.serve(
            |s| {
                let _ = everybody.set(s.handle());
                s.loops(2).workers(workers)
            },
            move |_: &Peer, message: Message| {
                assert!(handle.get().unwrap().broadcast(message));
                gate.recv_timeout(WAIT).unwrap();
            },
        );
        let mut other = client(server.addr);
        let mut raw = Raw::open(server.addr);
        raw.write(&[frame(0x81, b"1"), frame(0x81, b"2")].concat());
        for n in ["1", "2"] {
            assert_eq!(raw.frame(), Some((0x81, n.as_bytes().to_vec())));
            assert_eq!(other.read().unwrap(), Message::text(n));
            release.send_timeout((), WAIT).unwrap();
        }
    }
}

/// Passes each message on to its room, after it has said the same itself.
struct Both(Rooms<Sayer>, Arc<OnceLock<ServerHandle>>);

impl Handler for Both {
    type Session = Membership<Sayer>;

    fn open(&self, _: &Request, peer: &Peer) -> Result<Accept<Self::Session>, Response> {
        Ok(Accept::new(self.0.join("it", peer, ())))
    }

    fn message(&self, session: &mut Self::Session, peer: &Peer, message: Message) {
        let n = message.to_text().unwrap().parse().unwrap();
        say(0, n, peer, self.1.get().unwrap());
        session.message(message);
    }
}

struct Sayer(Arc<OnceLock<ServerHandle>>);

impl framemill::Room for Sayer {
    type Join = ();

    fn join(&mut self, _: &mut Members, _: &Peer, (): ()) -> Result<(), Refused> {
        Ok(())
    }

    fn message(&mut self, room: &mut Members, peer: &Peer, message: Message) {
        let n: u32 = message.to_text().unwrap().parse().unwrap();
        match n % 5 {
            4 => room.broadcast(format!("1:{n}")),
            _ => say(1, n, peer, self.0.get().unwrap()),
        }
    }
}

/// To the one peer that there is, in one way or the other.
fn say(sender: u32, n: u32, peer: &Peer, everybody: &ServerHandle) {
    let text = format!("{sender}:{n}");
    match n % 3 {
        2 => assert!(everybody.broadcast(text)),
        _ => drop(peer.send(text).unwrap()),
    }
}

fn a_handler_a_room_and_a_timer_send_in_order(transport: Transport) {
    const MESSAGES: u32 = 1000;
    for (loops, workers) in [(1, 0), (1, 2), (2, 4)] {
        let everybody = Arc::new(OnceLock::<ServerHandle>::new());
        let handle = everybody.clone();
        let rooms = Rooms::new(move |_| Sayer(handle.clone()));
        let handler = Both(rooms.clone(), everybody.clone());
        let settings = |s: Server| s.loops(loops).workers(workers).outbound_limit(64 << 20);
        let server = transport.serve(settings, handler);
        let handle = server.handle.clone();
        everybody.set(handle.clone()).unwrap();
        let mut raw = Raw::open(server.addr);
        let (tell, peer) = bounded(1);
        until("it is in", || {
            rooms.find("it").is_some_and(|it| it.len() == 1)
        });
        let room = rooms.find("it").unwrap();
        room.with(move |_, members| tell.send(members.peers().next().unwrap().clone()).unwrap());
        let peer = peer.recv_timeout(WAIT).unwrap();
        let mut numbers = 0..MESSAGES;
        server.handle.every(Duration::from_millis(1), move || {
            for n in numbers.by_ref().take(20) {
                say(2, n, &peer, &handle);
            }
        });
        let questions: Vec<_> = (0..MESSAGES)
            .map(|n| frame(0x81, n.to_string().as_bytes()))
            .collect();
        raw.write(&questions.concat());
        Sequences::default().read(&mut raw, 3 * MESSAGES);
    }
}

/// A client may be there before the server runs; its handler can reach everybody all the same.
#[test]
fn the_first_handler_can_broadcast() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let mut early = Raw::connect(listener.local_addr().unwrap());
    early.write(support::request("localhost").as_bytes());
    early.write(&frame(0x81, b"go"));
    let everybody = Arc::new(OnceLock::<ServerHandle>::new());
    let handle = everybody.clone();
    let _server = support::serve_on(
        listener,
        |s| {
            let _ = everybody.set(s.handle());
            // Many threads, so that starting takes a while.
            s.loops(64).workers(0)
        },
        move |peer: &Peer, _: Message| {
            let done = handle.get().unwrap().broadcast("to all");
            peer.send(format!("{done}"))
        },
    );
    assert!(early.head().starts_with("HTTP/1.1 101 "));
    assert_eq!(early.frame(), Some((0x81, b"to all".to_vec())));
    assert_eq!(early.frame(), Some((0x81, b"true".to_vec())));
}

/// To everybody and to the topic that everybody subscribes to, in turn.
struct ToAll(OnceLock<ServerHandle>);

impl Handler for ToAll {
    type Session = u32;

    fn start(&self, server: &ServerHandle) {
        assert!(self.0.set(server.clone()).is_ok());
    }

    fn open(&self, _: &Request, peer: &Peer) -> Result<Accept<u32>, Response> {
        assert!(peer.subscribe("all"));
        Ok(Accept::new(0))
    }

    fn message(&self, sent: &mut u32, _: &Peer, message: Message) {
        let server = self.0.get().unwrap();
        for _ in 0..2 {
            assert!(server.broadcast(format!("{message}:{sent}")));
            server.publish("all", format!("{message}:{}", *sent + 1));
            *sent += 2;
        }
    }
}

/// So many that the loop waits a moment for what else is on its way to all of them.
const MANY: usize = 300;

fn many_get_what_several_broadcast_and_publish_in_order(transport: Transport) {
    const SENDERS: usize = 8;
    const MESSAGES: u32 = 25;
    for workers in [0, 1, 3] {
        let server = transport.serve(|s| s.workers(workers), ToAll(OnceLock::new()));
        let mut raws: Vec<Raw> = (0..MANY).map(|_| Raw::open(server.addr)).collect();
        for _ in 0..MESSAGES {
            for (id, raw) in raws[..SENDERS].iter_mut().enumerate() {
                raw.write(&frame(0x81, id.to_string().as_bytes()));
            }
        }
        for raw in &mut raws {
            Sequences::default().read(raw, 4 * MESSAGES * SENDERS as u32);
        }
    }
}

fn many_need_not_wait_for_a_handler_that_blocks(transport: Transport) {
    let (release, gate) = bounded::<()>(0);
    let everybody = Arc::new(OnceLock::<ServerHandle>::new());
    let handle = everybody.clone();
    let server = transport.serve(
        |s| {
            let _ = everybody.set(s.handle());
            s.workers(2)
        },
        move |_: &Peer, message: Message| match message.to_text() {
            Ok("block") => gate.recv_timeout(WAIT).unwrap(),
            _ => assert!(handle.get().unwrap().broadcast(message)),
        },
    );
    let mut raws: Vec<Raw> = (0..MANY).map(|_| Raw::open(server.addr)).collect();
    for _ in 0..10 {
        raws[0].write(&frame(0x81, b"to all"));
        raws[1].write(&frame(0x81, b"block"));
        for raw in &mut raws {
            assert_eq!(raw.frame(), Some((0x81, b"to all".to_vec())));
        }
        release.send_timeout((), WAIT).unwrap();
    }
}

/// A flood of broadcasts by inline handlers of one loop, while the other is busy: nobody waits, and yet
/// no more is put in than the busy one can hold.
fn a_loop_that_is_behind_is_waited_for(transport: Transport) {
    const MESSAGES: usize = 20_000;
    let (go, gate) = bounded::<()>(0);
    let (busy, began) = unbounded();
    let handle: Arc<OnceLock<ServerHandle>> = Arc::default();
    let everyone = handle.clone();
    let server = transport.serve(
        |s| s.workers(0).loops(2).outbound_limit(64 << 20),
        move |_: &Peer, message: Message| {
            if message.to_text().is_ok_and(|text| text == "wait") {
                busy.send(()).unwrap();
                let _ = gate.recv_timeout(WAIT);
            } else if let Some(everyone) = everyone.get() {
                everyone.broadcast(message);
            }
        },
    );
    handle.set(server.handle.clone()).ok().unwrap();
    // Dealt to the loops in turn.
    let mut slow = Raw::open(server.addr);
    let mut flood = Raw::open(server.addr);
    slow.write(&frame(0x81, b"wait"));
    began.recv_timeout(WAIT).unwrap();
    let mut writer = flood.stream.try_clone().unwrap();
    let frames = frame(0x82, b"to all").repeat(MESSAGES);
    let writes = thread::spawn(move || writer.write_all(&frames));
    let queued = || server.handle.metrics().total.commands_queued;
    support::until("the other loop is behind", || queued() >= 256);
    let reads = thread::spawn(move || {
        for n in 0..MESSAGES {
            assert_eq!(flood.frame(), Some((0x82, b"to all".to_vec())), "{n}");
        }
        flood
    });
    // What it holds stays bounded for as long as one cares to look.
    for _ in 0..100 {
        assert!(queued() < 2_000, "{}", queued());
        thread::sleep(std::time::Duration::from_millis(2));
    }
    assert!(!reads.is_finished(), "it is waited for");
    drop(go);
    for n in 0..MESSAGES {
        assert_eq!(slow.frame(), Some((0x82, b"to all".to_vec())), "{n}");
    }
    reads.join().unwrap();
    writes.join().unwrap().unwrap();
}
