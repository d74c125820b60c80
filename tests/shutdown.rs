//! The end of a server: who is told what, what is still delivered, and who waits for whom.

mod support;

use std::io::Read;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded};
use framemill::{
    CloseCause, CloseCode, Handler, History, Initiator, Message, Origin, Peer, SendError, Server,
};
use support::spy::{Seen, exactly, frames, narrow, number, numbered, spy, upgraded};
use support::{Raw, Running, Transport, WAIT, client, frame, over_every_transport, request, until};

over_every_transport! {
    idle_peers_are_told_and_go,
    a_server_without_peers_ends_at_once,
    a_deadline_may_be_any_time,
    nobody_is_let_in_meanwhile,
    what_had_arrived_is_still_answered,
    what_was_accepted_is_delivered,
    what_is_not_delivered_is_counted,
    a_slow_reader_has_until_the_deadline,
    who_does_not_hang_up_misses_nothing,
    what_is_accepted_at_the_very_end_is_counted,
    a_peer_that_does_not_answer_is_cut_off,
    a_handler_that_blocks_is_left_behind,
    a_handler_gets_the_time_until_the_deadline,
    a_handshake_in_progress_is_refused,
    a_handler_that_still_decides_may_accept,
    run_returns,
    whoever_waits_hears_the_same,
    run_waits_for_the_last_handler,
    a_second_shutdown_may_be_shorter,
}

/// Far enough away not to be reached.
const LONG: Duration = WAIT;
/// Soon reached.
const SHORT: Duration = Duration::from_millis(300);

const GOING_AWAY: &[u8] = b"\x03\xE9";

/// A server whose handler does nothing.
fn quiet(transport: Transport, workers: usize) -> (Running, Seen) {
    let (handler, seen) = spy(|_, _| ());
    (
        transport.serve(|s| s.loops(2).workers(workers), handler),
        seen,
    )
}

/// Answers the close frame that comes next, and sees the end of the stream.
fn part(raw: &mut Raw) {
    assert_eq!(raw.frame(), Some((0x88, GOING_AWAY.to_vec())));
    raw.write(&frame(0x88, GOING_AWAY));
    assert_eq!(raw.frame(), None);
}

/// Whether nobody listens there any more.
fn refuses(server: &Running) -> bool {
    server.addr.refuses()
}

// ---- in good order ----

fn idle_peers_are_told_and_go(transport: Transport) {
    for workers in [0, 2] {
        let (server, seen) = quiet(transport, workers);
        let mut raws: Vec<Raw> = (0..10).map(|_| Raw::open(server.addr)).collect();
        let mut other = client(server.addr);
        thread::scope(|scope| {
            let shutdown = scope.spawn(|| server.handle.shutdown(LONG));
            raws.iter_mut().for_each(part);
            let Message::Close(Some(close)) = other.read().unwrap() else {
                panic!("no close frame");
            };
            assert_eq!(close.code, CloseCode::Away);
            assert!(other.read().is_err(), "the end");
            drop(raws);
            drop(other);
            assert!(shutdown.join().unwrap());
        });
        for _ in 0..11 {
            let reason = seen.end();
            assert_eq!(reason.code(), CloseCode::Away);
            assert_eq!(reason.initiator(), Initiator::Local);
            assert_eq!(reason.cause(), CloseCause::Shutdown);
            assert_eq!(reason.undelivered_bytes(), 0);
            assert!(reason.is_clean());
        }
        assert_eq!(server.handle.connections(), 0);
        assert!(refuses(&server));
    }
}

fn a_server_without_peers_ends_at_once(transport: Transport) {
    for workers in [0, 2] {
        let (server, _seen) = quiet(transport, workers);
        let start = Instant::now();
        assert!(server.handle.shutdown(LONG));
        assert!(start.elapsed() < LONG / 4);
        assert!(refuses(&server));
        // There is nothing left to end.
        assert!(server.handle.shutdown(Duration::ZERO));
    }
}

fn a_deadline_may_be_any_time(transport: Transport) {
    let (server, _seen) = quiet(transport, 1);
    assert!(server.handle.shutdown(Duration::MAX));
}

/// No more connections while those that are there say goodbye.
fn nobody_is_let_in_meanwhile(transport: Transport) {
    let (server, _seen) = quiet(transport, 2);
    let mut raw = Raw::open(server.addr);
    thread::scope(|scope| {
        let shutdown = scope.spawn(|| server.handle.shutdown(LONG));
        assert_eq!(raw.frame(), Some((0x88, GOING_AWAY.to_vec())));
        until("the listener is closed", || refuses(&server));
        raw.write(&frame(0x88, GOING_AWAY));
        assert_eq!(raw.frame(), None);
        drop(raw);
        assert!(shutdown.join().unwrap());
    });
}

fn what_had_arrived_is_still_answered(transport: Transport) {
    const MESSAGES: usize = 20;
    let (release, gate) = bounded::<()>(0);
    let (handler, seen) = spy(move |peer: &Peer, message: Message| {
        gate.recv_timeout(WAIT).unwrap();
        peer.send(message).unwrap();
    });
    let server = transport.serve(|s| s.workers(1), handler);
    let mut idle = Raw::open(server.addr);
    let mut raw = Raw::open(server.addr);
    for n in 0..MESSAGES {
        raw.write(&frame(0x81, n.to_string().as_bytes()));
    }
    // The loop answers pings by itself, when it has read all that came before.
    raw.write(&frame(0x89, b"all there?"));
    assert_eq!(raw.frame(), Some((0x8A, b"all there?".to_vec())));
    thread::scope(|scope| {
        let shutdown = scope.spawn(|| server.handle.shutdown(LONG));
        // Others are told already, so the shutdown has begun.
        part(&mut idle);
        for n in 0..MESSAGES {
            release.send_timeout((), WAIT).unwrap();
            assert_eq!(raw.frame(), Some((0x81, n.to_string().into_bytes())));
        }
        part(&mut raw);
        drop((raw, idle));
        assert!(shutdown.join().unwrap());
    });
    assert_eq!(seen.end().undelivered_bytes(), 0);
    assert_eq!(seen.end().undelivered_bytes(), 0);
}

// ---- what was accepted is delivered, or counted ----

/// Sends numbered messages from several threads until the connection takes no more.
struct Senders {
    /// Messages accepted, of each thread.
    accepted: Vec<AtomicU32>,
    bytes: AtomicUsize,
}

const SENDERS: u32 = 3;

impl Senders {
    fn new() -> Self {
        Self {
            accepted: (0..SENDERS).map(|_| AtomicU32::new(0)).collect(),
            bytes: AtomicUsize::new(0),
        }
    }

    /// Thread `id` sends its next message. `false`: it was refused.
    fn send(&self, id: u32, peer: &Peer) -> bool {
        let accepted = &self.accepted[id as usize];
        let n = accepted.load(Ordering::SeqCst);
        let len = 8 + (n as usize * 37) % 500;
        let mut payload = id.to_be_bytes().to_vec();
        payload.extend_from_slice(&numbered(n, len - 4));
        match peer.send(payload) {
            Ok(_) => {
                accepted.store(n + 1, Ordering::SeqCst);
                let header = if len < 126 { 2 } else { 4 };
                self.bytes.fetch_add(header + len, Ordering::SeqCst);
                true
            }
            Err(SendError::Closed(_)) => false,
            Err(error) => panic!("{error}"),
        }
    }
}

/// What one client received.
#[derive(Default)]
struct Received {
    messages: [u32; SENDERS as usize],
    bytes: usize,
    code: Option<u16>,
}

impl Received {
    /// Reads to the end, and checks that each thread's messages come in order and without a gap.
    fn all<S: Read + std::io::Write>(raw: &mut Raw<S>) -> Self {
        let mut received = Self::default();
        while let Some((first, payload)) = raw.frame() {
            match first {
                0x82 => {
                    let (id, rest) = payload.split_at(4);
                    let next = &mut received.messages[id[3] as usize];
                    assert_eq!(number(rest), *next);
                    *next += 1;
                    received.bytes += payload.len() + if payload.len() < 126 { 2 } else { 4 };
                }
                0x88 => {
                    received.code = Some(u16::from_be_bytes([payload[0], payload[1]]));
                    raw.write(&frame(0x88, &payload));
                }
                0x81 => {}
                other => panic!("a frame of type {other:x}"),
            }
        }
        received
    }
}

/// A client whose socket holds little, and the server's view of it.
fn narrow_client(server: &Running, seen: &Seen) -> (Raw, Peer) {
    let raw = upgraded(narrow(server.addr));
    (raw, seen.peer())
}

/// Several threads send to several clients while the server is shut down; every message that was
/// accepted arrives.
fn what_was_accepted_is_delivered(transport: Transport) {
    const CLIENTS: usize = 5;
    for (workers, broadcasting) in [(0, false), (2, false), (2, true)] {
        let (handler, seen) = spy(|_, _| ());
        let server = transport.serve_narrow(
            |s| s.loops(2).workers(workers).outbound_limit(256 << 20),
            handler,
        );
        let (raws, peers): (Vec<Raw>, Vec<Peer>) =
            (0..CLIENTS).map(|_| narrow_client(&server, &seen)).unzip();
        let senders: Vec<Senders> = peers.iter().map(|_| Senders::new()).collect();
        let mut received = Vec::new();
        thread::scope(|scope| {
            for id in 0..SENDERS {
                let (peers, senders, server) = (&peers, &senders, &server);
                scope.spawn(move || {
                    let mut open = [true; CLIENTS];
                    for round in 0.. {
                        for n in 0..CLIENTS {
                            open[n] = open[n] && senders[n].send(id, &peers[n]);
                        }
                        if !open.contains(&true) {
                            return;
                        }
                        if broadcasting && round % 10 == 0 {
                            server.handle.broadcast("to all");
                        }
                        // Faster than the clients read, but within bounds.
                        if peers.iter().any(|peer| peer.queued_bytes() > 4 << 20) {
                            thread::yield_now();
                        }
                    }
                });
            }
            until("all are busy", || {
                let busy = |s: &Senders| s.accepted.iter().all(|n| n.load(Ordering::SeqCst) > 200);
                senders.iter().all(busy)
            });
            let shutdown = scope.spawn(|| server.handle.shutdown(LONG));
            let readers: Vec<_> = raws
                .into_iter()
                .enumerate()
                .map(|(n, mut raw)| (n, scope.spawn(move || Received::all(&mut raw))))
                .collect();
            let all = readers.into_iter().map(|(n, r)| (n, r.join().unwrap()));
            received.extend(all);
            assert!(shutdown.join().unwrap());
        });
        // Only now have all senders counted their last.
        for (n, received) in received {
            assert_eq!(received.code, Some(1001));
            let accepted = senders[n].accepted.iter();
            let accepted: Vec<u32> = accepted.map(|n| n.load(Ordering::SeqCst)).collect();
            assert_eq!(
                received.messages[..],
                accepted,
                "client {n}, broadcasting: {broadcasting}"
            );
        }
        for _ in 0..CLIENTS {
            assert_eq!(seen.end().undelivered_bytes(), 0);
        }
    }
}

/// The same with clients that don't read in time: each connection's end tells exactly how much was
/// not delivered.
fn what_is_not_delivered_is_counted(transport: Transport) {
    const CLIENTS: usize = 8;
    for workers in [0, 2] {
        let (handler, seen) = spy(|_, _| ());
        let server = transport.serve_narrow(
            |s| s.loops(2).workers(workers).outbound_limit(256 << 20),
            handler,
        );
        let (mut raws, peers): (Vec<Raw>, Vec<Peer>) =
            (0..CLIENTS).map(|_| narrow_client(&server, &seen)).unzip();
        let senders: Vec<Senders> = peers.iter().map(|_| Senders::new()).collect();
        thread::scope(|scope| {
            for id in 0..SENDERS {
                for (peer, senders) in peers.iter().zip(&senders) {
                    scope.spawn(move || while senders.send(id, peer) {});
                }
            }
            until("all are congested", || {
                peers.iter().all(|peer| peer.queued_bytes() > 100 << 10)
            });
            assert!(!server.handle.shutdown(Duration::ZERO), "some were cut off");
        });
        for (n, raw) in raws.iter_mut().enumerate() {
            let (peer, senders) = (&peers[n], &senders[n]);
            let received = raw.rest().len();
            let accepted = senders.bytes.load(Ordering::SeqCst);
            // A count that is too small would say that more was delivered than arrived.
            exactly(transport, received + peer.queued_bytes(), accepted);
        }
        let mut queued: Vec<usize> = peers.iter().map(Peer::queued_bytes).collect();
        let mut undelivered: Vec<usize> = (0..CLIENTS)
            .map(|_| seen.end().undelivered_bytes())
            .collect();
        queued.sort_unstable();
        undelivered.sort_unstable();
        assert_eq!(undelivered, queued);
    }
}

/// It has all the time until the deadline, if it takes what it is sent; and if it doesn't, that it was cut off
/// is said, though that is before the deadline.
fn a_slow_reader_has_until_the_deadline(transport: Transport) {
    const MESSAGES: u32 = 900;
    const TIMEOUT: Duration = Duration::from_secs(1);
    for (workers, reads) in [(0, true), (2, true), (0, false), (2, false)] {
        let (handler, seen) = spy(|_, _| ());
        let settings = |s: Server| s.workers(workers).close_timeout(TIMEOUT);
        let server = transport.serve_narrow(settings, handler);
        let (mut raw, peer) = narrow_client(&server, &seen);
        for n in 0..MESSAGES {
            peer.send(numbered(n, 1000)).unwrap();
        }
        thread::scope(|scope| {
            let done = scope.spawn(|| server.handle.shutdown(LONG));
            if reads {
                // But for what the kernel holds, over several timeouts.
                for n in 0..MESSAGES {
                    assert_eq!(number(&raw.frame().expect("a message").1), n);
                    if n < MESSAGES / 2 && n % 64 == 0 {
                        thread::sleep(TIMEOUT / 5);
                    }
                }
                part(&mut raw);
            }
            assert_eq!(done.join().unwrap(), reads);
        });
        let reason = seen.end();
        assert_eq!(reason.undelivered_bytes() == 0, reads);
        assert_eq!(reason.cause(), CloseCause::Shutdown);
    }
}

/// All is said on both sides, and the peer only stays on the line: it misses nothing when that is cut.
fn who_does_not_hang_up_misses_nothing(transport: Transport) {
    for workers in [0, 2] {
        let (server, seen) = quiet(transport, workers);
        let mut raw = Raw::open(server.addr);
        raw.write(&frame(0x88, GOING_AWAY));
        assert_eq!(raw.frame(), Some((0x88, GOING_AWAY.to_vec())));
        assert!(seen.end().is_clean());
        assert!(server.handle.shutdown(SHORT));
        assert_eq!(server.handle.connections(), 0);
    }
}

/// A peer hangs up while others send to it: what was accepted after that is counted as well.
fn what_is_accepted_at_the_very_end_is_counted(transport: Transport) {
    let (handler, seen) = spy(|_, _| ());
    // Of room there is plenty: a close frame for want of it would be received and never was accepted.
    let server = transport.serve(
        |s| {
            s.workers(1)
                .close_timeout(SHORT / 3)
                .outbound_limit(256 << 20)
        },
        handler,
    );
    for _ in 0..50 {
        let mut raw = Raw::open(server.addr);
        let peer = seen.peer();
        let senders = Senders::new();
        let mut received = 0;
        thread::scope(|scope| {
            for id in 0..SENDERS {
                let (peer, senders) = (&peer, &senders);
                scope.spawn(move || {
                    while senders.send(id, peer) {
                        thread::yield_now();
                    }
                });
            }
            // The server is told the end while it is still written to.
            raw.stream.shutdown(std::net::Shutdown::Write).unwrap();
            received = raw.rest().len();
        });
        let accepted = senders.bytes.load(Ordering::SeqCst);
        assert_eq!(received + seen.end().undelivered_bytes(), accepted);
    }
}

// ---- who doesn't go ----

fn a_peer_that_does_not_answer_is_cut_off(transport: Transport) {
    for workers in [0, 2] {
        let (server, seen) = quiet(transport, workers);
        let mut raw = Raw::open(server.addr);
        let start = Instant::now();
        assert!(!server.handle.shutdown(SHORT));
        assert!(start.elapsed() >= SHORT);
        assert!(start.elapsed() < SHORT + LONG / 2);
        assert_eq!(raw.frame(), Some((0x88, GOING_AWAY.to_vec())));
        assert_eq!(raw.frame(), None);
        let reason = seen.end();
        assert_eq!(reason.code(), CloseCode::Away);
        assert_eq!(reason.cause(), CloseCause::Shutdown);
        assert_eq!(reason.initiator(), Initiator::Local);
        assert!(!reason.is_clean());
        assert!(refuses(&server));
    }
}

/// A handler that blocks until the returned channel is dropped.
fn blocking() -> (impl Handler, Sender<()>, Receiver<()>) {
    let (release, gate) = bounded::<()>(0);
    let (entered, inside) = bounded(1);
    let handler = move |peer: &Peer, message: Message| {
        entered.send(()).unwrap();
        let _ = gate.recv_timeout(WAIT);
        peer.send(message)
    };
    (handler, release, inside)
}

fn a_handler_that_blocks_is_left_behind(transport: Transport) {
    let (handler, release, inside) = blocking();
    let server = transport.serve(|s| s.workers(2), handler);
    let mut raw = Raw::open(server.addr);
    raw.write(&frame(0x81, b"block"));
    inside.recv_timeout(WAIT).unwrap();
    let start = Instant::now();
    assert!(!server.handle.shutdown(SHORT));
    assert!(start.elapsed() >= SHORT);
    assert!(start.elapsed() < SHORT + LONG / 2);
    assert!(refuses(&server));
    drop(release);
}

fn a_handler_gets_the_time_until_the_deadline(transport: Transport) {
    let (handler, release, inside) = blocking();
    let server = transport.serve(|s| s.workers(2), handler);
    let mut raw = Raw::open(server.addr);
    raw.write(&frame(0x81, b"block"));
    inside.recv_timeout(WAIT).unwrap();
    let mut idle = Raw::open(server.addr);
    thread::scope(|scope| {
        let shutdown = scope.spawn(|| server.handle.shutdown(LONG));
        part(&mut idle);
        drop(release);
        assert_eq!(raw.frame(), Some((0x81, b"block".to_vec())));
        part(&mut raw);
        drop((raw, idle));
        assert!(shutdown.join().unwrap());
    });
}

fn a_handshake_in_progress_is_refused(transport: Transport) {
    for workers in [0, 2] {
        let (server, _seen) = quiet(transport, workers);
        let mut blank = Raw::connect(server.addr);
        let mut half = Raw::connect(server.addr);
        let all = request(server.addr);
        half.write(&all.as_bytes()[..60]);
        // Both are there, and so is half a request, once a later one is served on the same loop.
        let mut later: Vec<Raw> = (0..2).map(|_| Raw::open(server.addr)).collect();
        assert_eq!(server.handle.connections(), 4);
        thread::scope(|scope| {
            let shutdown = scope.spawn(|| server.handle.shutdown(LONG));
            later.iter_mut().for_each(part);
            assert_eq!(blank.rest(), b"");
            let (status, ..) = half.response();
            assert_eq!(status, 503);
            drop((later, blank, half));
            assert!(shutdown.join().unwrap());
        });
    }
}

fn a_handler_that_still_decides_may_accept(transport: Transport) {
    struct Deciding(Sender<()>, Receiver<()>);
    impl Handler for Deciding {
        type Session = ();
        fn open(
            &self,
            _: &framemill::Request,
            _: &Peer,
        ) -> Result<framemill::Accept<()>, framemill::Response> {
            self.0.send(()).unwrap();
            let _ = self.1.recv_timeout(WAIT);
            Ok(framemill::Accept::new(()))
        }
        fn message(&self, (): &mut (), _: &Peer, _: Message) {}
    }
    let (entered, inside) = bounded(1);
    let (release, gate) = bounded::<()>(0);
    let server = transport.serve(|s| s.workers(2), Deciding(entered, gate));
    let mut raw = Raw::connect(server.addr);
    raw.write(request(server.addr).as_bytes());
    inside.recv_timeout(WAIT).unwrap();
    thread::scope(|scope| {
        let shutdown = scope.spawn(|| server.handle.shutdown(LONG));
        until("the listener is closed", || refuses(&server));
        drop(release);
        assert!(raw.head().starts_with("HTTP/1.1 101 "));
        part(&mut raw);
        drop(raw);
        assert!(shutdown.join().unwrap());
    });
}

// ---- who waits ----

/// `run` on a thread of its own, with the handle to stop it.
fn running(
    transport: Transport,
    handler: impl Handler,
) -> (Running, thread::JoinHandle<framemill::Result<()>>) {
    let (server, bound) = transport.bind();
    let server = server.origin(Origin::Any).workers(2);
    let handle = server.handle();
    let run = thread::spawn(move || server.run(handler));
    (bound.running(handle), run)
}

fn run_returns(transport: Transport) {
    let (server, run) = running(transport, |peer: &Peer, message: Message| {
        peer.send(message)
    });
    let mut raw = Raw::open(server.addr);
    raw.write(&frame(0x81, b"hello"));
    assert_eq!(raw.frame(), Some((0x81, b"hello".to_vec())));
    thread::scope(|scope| {
        let shutdown = scope.spawn(|| server.handle.shutdown(LONG));
        part(&mut raw);
        drop(raw);
        assert!(shutdown.join().unwrap());
    });
    run.join().unwrap().unwrap();
}

/// The verdict is the same, no matter who waited first.
fn whoever_waits_hears_the_same(transport: Transport) {
    let (handler, release, inside) = blocking();
    let (server, run) = running(transport, handler);
    let mut raw = Raw::open(server.addr);
    raw.write(&frame(0x81, b"block"));
    inside.recv_timeout(WAIT).unwrap();
    let verdicts: Vec<bool> = thread::scope(|scope| {
        let calls: Vec<_> = (0..3)
            .map(|_| scope.spawn(|| server.handle.shutdown(SHORT)))
            .collect();
        calls.into_iter().map(|call| call.join().unwrap()).collect()
    });
    assert_eq!(
        verdicts, [false; 3],
        "a handler blocks and a peer is cut off"
    );
    run.join().unwrap().unwrap();
    drop(release);
}

/// A peer is gone, but its handler is at work and the deadline far: `run` waits for it.
fn run_waits_for_the_last_handler(transport: Transport) {
    let (release, gate) = bounded::<()>(0);
    let (entered, inside) = bounded(1);
    let (done_in, done) = bounded(1);
    let (server, run) = running(transport, move |_: &Peer, _: Message| {
        entered.send(()).unwrap();
        gate.recv_timeout(WAIT).unwrap();
        done_in.send(()).unwrap();
    });
    let mut raw = Raw::open(server.addr);
    raw.write(&frame(0x81, b"work"));
    inside.recv_timeout(WAIT).unwrap();
    support::reset(raw.stream);
    until("the connection is gone", || {
        server.handle.connections() == 0
    });
    let ended = AtomicBool::new(false);
    thread::scope(|scope| {
        let shutdown = scope.spawn(|| {
            let verdict = server.handle.shutdown(LONG);
            ended.store(true, Ordering::SeqCst);
            verdict
        });
        until("the listener is closed", || refuses(&server));
        // Long enough for the loops to end, and for a `run` that doesn't wait to return.
        let patience = Instant::now() + SHORT;
        until("some time has passed", || {
            Instant::now() > patience || run.is_finished()
        });
        assert!(!run.is_finished() && !ended.load(Ordering::SeqCst));
        release.send_timeout((), WAIT).unwrap();
        assert!(shutdown.join().unwrap());
    });
    done.recv_timeout(WAIT).unwrap();
    run.join().unwrap().unwrap();
}

/// A second call with less patience is heeded.
fn a_second_shutdown_may_be_shorter(transport: Transport) {
    let (server, _seen) = quiet(transport, 2);
    let _silent = Raw::open(server.addr);
    let start = Instant::now();
    thread::scope(|scope| {
        let first = scope.spawn(|| server.handle.shutdown(LONG));
        until("the listener is closed", || refuses(&server));
        server.handle.shutdown(Duration::ZERO);
        first.join().unwrap();
    });
    assert!(start.elapsed() < LONG / 2);
}

/// A signal may come before the server runs.
#[test]
fn a_shutdown_before_the_start_is_not_forgotten() {
    let server = Server::bind("127.0.0.1:0").unwrap().workers(1);
    let handle = server.handle();
    handle.shutdown(SHORT);
    let run = thread::spawn(move || server.run(|_: &Peer, _: Message| ()));
    let deadline = Instant::now() + LONG / 4;
    until("run returns", || {
        run.is_finished() || Instant::now() > deadline
    });
    let returned = run.is_finished();
    until("run returns at the second request", || {
        handle.shutdown(Duration::ZERO);
        run.is_finished()
    });
    assert!(returned);
}

/// Whoever produces for a server learns that it has ended.
#[test]
fn a_server_that_has_ended_takes_nothing_more() {
    for workers in [0, 2] {
        let (handler, seen) = spy(|_, _| ());
        let settings = |s: Server| s.workers(workers).history("kept", History::last(10));
        let server = Transport::Plain.serve(settings, handler);
        let _raw = Raw::open(server.addr);
        let peer = seen.peer();
        let handle = &server.handle;
        assert!(handle.broadcast("x") && handle.publish("kept", "x") && peer.publish("t", "x"));
        assert!(handle.enter("t", "ann").is_some());
        handle.shutdown(Duration::ZERO);
        assert!(!handle.broadcast("x"));
        assert!(!handle.publish("t", "x") && !handle.publish("kept", "x"));
        assert!(!handle.publish_latest("t", 1_u8, "x"));
        assert!(!peer.publish("t", "x") && !peer.publish_latest("t", 1_u8, "x"));
        assert!(handle.enter("t", "ann").is_none());
        assert!(handle.who("t").is_empty());
    }
}

#[cfg(feature = "tls")]
#[test]
fn a_server_that_has_ended_has_no_certificate() {
    let (server, _) = quiet(Transport::Tls, 2);
    assert!(server.handle.reload_tls(support::tls::identity()).is_ok());
    server.handle.shutdown(Duration::ZERO);
    let refused = server.handle.reload_tls(support::tls::identity());
    assert!(matches!(refused, Err(framemill::Error::Config(_))));
}

#[cfg(unix)]
#[test]
fn the_file_of_a_unix_socket_is_removed() {
    let path = std::env::temp_dir().join(format!("framemill-shutdown-{}", std::process::id()));
    let addr = format!("unix:{}", path.display());
    for _ in 0..2 {
        let handle = Server::bind(&addr)
            .unwrap()
            .workers(1)
            .start(|peer: &Peer, message: Message| peer.send(message))
            .unwrap();
        assert_eq!(handle.local_addrs(), [addr.as_str()]);
        let stream = std::os::unix::net::UnixStream::connect(&path).unwrap();
        stream.set_read_timeout(Some(WAIT)).unwrap();
        let mut raw = upgraded(stream);
        raw.write(&frames(0..1, 10));
        assert_eq!(raw.frame().unwrap().1, numbered(0, 10));
        thread::scope(|scope| {
            let shutdown = scope.spawn(|| handle.shutdown(LONG));
            assert_eq!(raw.frame(), Some((0x88, GOING_AWAY.to_vec())));
            // Already while the last ones are leaving.
            until("the file is gone", || !path.exists());
            raw.write(&frame(0x88, GOING_AWAY));
            assert_eq!(raw.frame(), None);
            drop(raw);
            assert!(shutdown.join().unwrap());
        });
    }
}
