//! The closing handshake (RFC 6455 §7), seen from both ends.

mod support;

use std::collections::HashSet;
use std::io::Write;
use std::net::Shutdown;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, bounded, unbounded};
use framemill::{
    Accept, Client, ClientEvent, CloseCause, CloseCode, CloseReason, Handler, Initiator, Message,
    Peer, Reconnect, Request, Response, SendError, Server, ServerHandle,
};
use support::spy::{PLENTY, exactly, frames, narrow, number, numbered, spy, upgraded};
use support::{
    Raw, Transport, WAIT, client, frame, no_more, over_every_transport, request, reset, until,
};

over_every_transport! {
    the_peer_closes,
    the_peer_closes_and_hangs_up,
    the_answer_to_a_close_needs_no_handler,
    the_handler_closes,
    a_panic_closes_its_own_connection_only,
    what_comes_behind_a_panic_counts,
    a_violation_behind_our_close_frame_ends_it_at_once,
    the_peer_vanishes,
    what_a_peer_said_before_it_left_is_heard,
    a_peer_that_has_left_is_terminated,
    a_slow_reader_gets_all_before_the_close_frame,
    a_half_closed_peer_still_gets_its_answers,
    data_after_close_is_ignored,
    a_broadcast_before_the_close_throws_nothing_away,
    a_peer_is_terminated,
    a_peer_that_closes_is_terminated,
    a_close_frame_that_is_thrown_away_is_no_message,
    a_peer_is_terminated_while_it_opens,
    a_peer_that_does_not_read_is_terminated,
    many_end_at_the_same_time,
    violations_get_the_code_the_rfc_names,
}

/// Echoes, closes on request, and reports how each connection ended.
struct Reports(Sender<CloseReason>);

impl Handler for Reports {
    type Session = ();

    fn open(&self, _: &Request, _: &Peer) -> Result<Accept<()>, Response> {
        Ok(Accept::new(()))
    }

    fn message(&self, (): &mut (), peer: &Peer, message: Message) {
        match message.to_text() {
            Ok("close me") => assert!(peer.close(CloseCode::Library(4001), "as you wish")),
            Ok("panic") => panic!("as you wish"),
            _ => drop(peer.send(message)),
        }
    }

    fn close(&self, (): (), _: &Peer, reason: &CloseReason) {
        self.0.send(reason.clone()).unwrap();
    }
}

/// Waits before each message until it may go on, or nobody is left to tell.
struct Slow(Receiver<()>, Reports);

impl Handler for Slow {
    type Session = ();

    fn open(&self, request: &Request, peer: &Peer) -> Result<Accept<()>, Response> {
        self.1.open(request, peer)
    }

    fn message(&self, session: &mut (), peer: &Peer, message: Message) {
        let _ = self.0.recv_timeout(WAIT);
        self.1.message(session, peer, message);
    }

    fn close(&self, session: (), peer: &Peer, reason: &CloseReason) {
        self.1.close(session, peer, reason);
    }
}

/// Closes, and is not done before it may.
struct Stays(Receiver<()>, Reports);

impl Handler for Stays {
    type Session = ();

    fn open(&self, request: &Request, peer: &Peer) -> Result<Accept<()>, Response> {
        self.1.open(request, peer)
    }

    fn message(&self, (): &mut (), peer: &Peer, _: Message) {
        peer.close(CloseCode::Normal, "");
        let _ = self.0.recv_timeout(WAIT);
    }

    fn close(&self, session: (), peer: &Peer, reason: &CloseReason) {
        self.1.close(session, peer, reason);
    }
}

/// Tells who opens.
struct Tells(Sender<Peer>, Slow);

impl Handler for Tells {
    type Session = ();

    fn open(&self, request: &Request, peer: &Peer) -> Result<Accept<()>, Response> {
        self.0.send(peer.clone()).unwrap();
        self.1.open(request, peer)
    }

    fn message(&self, session: &mut (), peer: &Peer, message: Message) {
        self.1.message(session, peer, message);
    }

    fn close(&self, session: (), peer: &Peer, reason: &CloseReason) {
        self.1.close(session, peer, reason);
    }
}

fn the_peer_closes(transport: Transport) {
    for workers in [0, 2] {
        let (ends, reasons) = unbounded();
        let server = transport.serve(|s| s.workers(workers), Reports(ends));
        let mut raw = Raw::open(server.addr);
        // The message before the close frame is still answered.
        raw.write(&[frame(0x81, b"last words"), frame(0x88, b"\x0F\xA0bye")].concat());
        assert_eq!(raw.frame(), Some((0x81, b"last words".to_vec())));
        assert_eq!(raw.frame(), Some((0x88, b"\x0F\xA0".to_vec())));
        assert_eq!(raw.frame(), None);
        let reason = reasons.recv_timeout(WAIT).unwrap();
        assert_eq!(reason.code(), CloseCode::Library(4000));
        assert_eq!(reason.text(), "bye");
        assert_eq!(reason.initiator(), Initiator::Peer);
        assert_eq!(reason.cause(), CloseCause::Handshake);
        assert!(reason.is_clean());
    }
}

/// It has said all, and reads no answer.
fn the_peer_closes_and_hangs_up(transport: Transport) {
    for workers in [0, 2] {
        let (go, gate) = bounded(0);
        let (ends, reasons) = unbounded();
        let server = transport.serve(|s| s.workers(workers), Slow(gate, Reports(ends)));
        let mut raw = Raw::open(server.addr);
        raw.write(&[frame(0x81, b"last words"), frame(0x88, b"\x03\xE8")].concat());
        raw.stream.shutdown(Shutdown::Write).unwrap();
        go.send_timeout((), WAIT).unwrap();
        let reason = reasons.recv_timeout(WAIT).unwrap();
        assert_eq!(reason.code(), CloseCode::Normal);
        assert_eq!(reason.cause(), CloseCause::Handshake);
        assert!(reason.is_clean());
    }
}

/// However many messages wait for the handler, the answer to our close frame is read.
fn the_answer_to_a_close_needs_no_handler(transport: Transport) {
    for workers in [1, 2] {
        let (go, gate) = bounded(0);
        let (ends, reasons) = unbounded();
        let (opened, peers) = unbounded();
        let handler = Tells(opened, Slow(gate, Reports(ends)));
        let server = transport.serve(|s| s.workers(workers), handler);
        let mut raw = Raw::open(server.addr);
        raw.write(&frame(0x81, b"hello").repeat(100));
        let peer = peers.recv_timeout(WAIT).unwrap();
        support::until("it is not read any more", || {
            server.handle.metrics().total.reading_paused > 0
        });
        assert!(peer.close(CloseCode::Away, ""));
        assert_eq!(raw.close_code(), Some(1001));
        raw.write(&frame(0x88, b"\x03\xE9"));
        // The server ends the connection, without any help of the handler's.
        assert_eq!(raw.frame(), None);
        drop(go);
        let reason = reasons.recv_timeout(WAIT).unwrap();
        assert_eq!(reason.cause(), CloseCause::Handshake);
        assert!(reason.is_clean());
    }
}

fn the_handler_closes(transport: Transport) {
    for workers in [0, 2] {
        let (ends, reasons) = unbounded();
        let server = transport.serve(|s| s.workers(workers), Reports(ends));
        let mut client = client(server.addr);
        client.send(Message::text("close me")).unwrap();
        let Message::Close(Some(frame)) = client.read().unwrap() else {
            panic!("no close frame");
        };
        assert_eq!(frame.code, CloseCode::Library(4001));
        assert_eq!(&*frame.reason, "as you wish");
        client.flush().unwrap();
        let reason = reasons.recv_timeout(WAIT).unwrap();
        assert_eq!(reason.code(), CloseCode::Library(4001));
        assert_eq!(reason.initiator(), Initiator::Local);
        assert_eq!(reason.cause(), CloseCause::Handshake);
        assert!(reason.is_clean());
    }
}

fn a_panic_closes_its_own_connection_only(transport: Transport) {
    for workers in [0, 2] {
        let (ends, reasons) = unbounded();
        let server = transport.serve(|s| s.workers(workers), Reports(ends));
        let mut other = client(server.addr);
        let mut raw = Raw::open(server.addr);
        raw.write(&frame(0x81, b"panic"));
        assert_eq!(raw.close_code(), Some(1011));
        raw.write(&frame(0x88, b"\x03\xF3"));
        assert_eq!(raw.frame(), None);
        let reason = reasons.recv_timeout(WAIT).unwrap();
        assert_eq!(reason.cause(), CloseCause::Panic);
        other.send(Message::text("still there?")).unwrap();
        assert_eq!(other.read().unwrap(), Message::text("still there?"));
    }
}

/// What else came with the message that the handler panicked at: the closing does not wait for it again.
fn what_comes_behind_a_panic_counts(transport: Transport) {
    for workers in [0, 2] {
        for (behind, clean) in [(frame(0x88, b"\x03\xF3"), true), (frame(0x83, b"?"), false)] {
            let (ends, reasons) = unbounded();
            let server = transport.serve(
                |s| s.workers(workers).close_timeout(2 * WAIT),
                Reports(ends),
            );
            let mut raw = Raw::open(server.addr);
            raw.write(&[frame(0x81, b"panic"), behind].concat());
            assert_eq!(raw.close_code(), Some(1011));
            assert_eq!(raw.frame(), None);
            let reason = reasons.recv_timeout(WAIT).unwrap();
            assert_eq!(reason.is_clean(), clean);
            assert_eq!(server.handle.metrics().total.messages_received, 1);
        }
    }
}

/// Whatever the handler is at.
fn a_violation_behind_our_close_frame_ends_it_at_once(transport: Transport) {
    let (busy, gate) = bounded(0);
    let (ends, reasons) = unbounded();
    let stays = Stays(gate, Reports(ends));
    let server = transport.serve(|s| s.workers(2).close_timeout(2 * WAIT), stays);
    let mut raw = Raw::open(server.addr);
    raw.write(&frame(0x81, b"bye"));
    assert_eq!(raw.close_code(), Some(1000));
    raw.write(&frame(0x83, b"?"));
    assert_eq!(raw.frame(), None);
    drop(busy);
    let reason = reasons.recv_timeout(WAIT).unwrap();
    assert!(
        matches!(reason.cause(), CloseCause::Protocol(_)),
        "{reason:?}"
    );
}

fn the_peer_vanishes(transport: Transport) {
    let (ends, reasons) = unbounded();
    let server = transport.serve(|s| s.workers(2), Reports(ends));
    drop(Raw::open(server.addr));
    let reason = reasons.recv_timeout(WAIT).unwrap();
    assert_eq!(reason.code(), CloseCode::Abnormal);
    assert_eq!(reason.initiator(), Initiator::Peer);
    assert!(!reason.is_clean());
}

/// It hangs up before it is answered, so that the answers can't be written: all it said counts, its close frame
/// too.
fn what_a_peer_said_before_it_left_is_heard(transport: Transport) {
    const MESSAGES: u32 = 1000;
    let mut leave: Vec<fn(Raw)> = vec![drop];
    if transport.has_resets() {
        leave.push(|raw| reset(raw.stream));
    }
    for (workers, leave) in [0, 2]
        .into_iter()
        .flat_map(|n| leave.iter().map(move |l| (n, l)))
    {
        let (go, gate) = bounded::<()>(0);
        let (enter, entered) = bounded(1);
        let heard = Arc::new(AtomicU32::new(0));
        let count = heard.clone();
        let (handler, seen) = spy(move |peer: &Peer, message: Message| {
            let n = number(&message.clone().into_data());
            if n == 0 {
                enter.send(()).unwrap();
                gate.recv_timeout(WAIT).unwrap();
            }
            assert_eq!(count.fetch_add(1, Ordering::SeqCst), n);
            let _ = peer.send(message);
        });
        let server = transport.serve(|s| s.workers(workers), handler);
        let mut raw = Raw::open(server.addr);
        raw.write(&frames(0..10, 50));
        entered.recv_timeout(WAIT).unwrap();
        // No event tells of these before those above have been answered.
        raw.write(&frames(10..MESSAGES, 50));
        raw.write(&frame(0x88, b"\x0F\xA1"));
        leave(raw);
        go.send_timeout((), WAIT).unwrap();
        let reason = seen.end();
        assert_eq!(heard.load(Ordering::SeqCst), MESSAGES);
        assert_eq!(reason.code(), CloseCode::Library(4001));
        assert_eq!(reason.cause(), CloseCause::Handshake);
        assert_eq!(reason.initiator(), Initiator::Peer);
        assert!(!reason.is_clean());
        until("it is forgotten", || server.handle.connections() == 0);
    }
}

/// Nothing can be written to it any more, and much of what it said is still to be read.
fn a_peer_that_has_left_is_terminated(transport: Transport) {
    const MESSAGES: u32 = 1000;
    for closes in [false, true] {
        let (enter, entered) = bounded(1);
        let (go, gate) = bounded::<()>(0);
        let (handler, seen) = spy(move |peer: &Peer, message: Message| {
            match number(&message.clone().into_data()) {
                0 => {
                    enter.send(()).unwrap();
                    gate.recv_timeout(WAIT).unwrap();
                }
                20 => {
                    until("that is known", || peer.send("more").is_err());
                    assert!(match closes {
                        true => peer.close(CloseCode::Away, "enough"),
                        false => peer.terminate(),
                    });
                }
                _ => {}
            }
            let _ = peer.send(message);
        });
        let server = transport.serve(|s| s.workers(2), handler);
        let mut raw = Raw::open(server.addr);
        raw.write(&frames(0..MESSAGES, 50));
        entered.recv_timeout(WAIT).unwrap();
        drop(raw);
        go.send_timeout((), WAIT).unwrap();
        let reason = seen.end();
        assert_eq!(reason.initiator(), Initiator::Local);
        match closes {
            true => assert_eq!(reason.code(), CloseCode::Away),
            false => assert_eq!(reason.cause(), CloseCause::Terminated),
        }
        assert!(!reason.is_clean());
        until("it is forgotten", || server.handle.connections() == 0);
    }
}

/// It reads no more and writes on and on.
#[cfg(unix)]
#[test]
fn a_peer_that_only_writes_is_dropped() {
    for workers in [0, 2] {
        // Slower than the peer, so that there is always more of it.
        let (handler, seen) = spy(|peer: &Peer, message| {
            thread::sleep(Duration::from_millis(1));
            let _ = peer.send(message);
        });
        let server = Transport::Unix.serve(|s| s.workers(workers), handler);
        let mut raw = Raw::open(server.addr);
        raw.stream.shutdown(Shutdown::Read).unwrap();
        let some = frames(0..10, 5000);
        let ended = (0..500).any(|_| raw.stream.write_all(&some).is_err());
        assert!(ended, "it is read on and on");
        assert_eq!(seen.end().cause(), CloseCause::Transport);
        until("it is forgotten", || server.handle.connections() == 0);
    }
}

/// However long that takes: the time to answer is counted from the close frame.
fn a_slow_reader_gets_all_before_the_close_frame(transport: Transport) {
    const TIMEOUT: Duration = Duration::from_secs(1);
    const MESSAGES: u32 = 1000;
    /// What the kernel holds is read fast, as it is with the kernel that it counts as sent.
    const SLOW: u32 = 600;
    for workers in [0, 2] {
        let (handler, seen) = spy(|peer: &Peer, _| {
            for n in 0..MESSAGES {
                peer.send(numbered(n, 1000)).unwrap();
            }
            assert!(peer.close(CloseCode::Normal, "that was all"));
        });
        let settings = |s: Server| s.workers(workers).close_timeout(TIMEOUT);
        let server = transport.serve_narrow(settings, handler);
        let mut raw = upgraded(narrow(server.addr));
        raw.write(&frame(0x81, b"all of it"));
        for n in 0..MESSAGES {
            assert_eq!(number(&raw.frame().expect("a message").1), n);
            if n < SLOW && n % 64 == 0 {
                thread::sleep(TIMEOUT / 5);
            }
        }
        assert_eq!(raw.close_code(), Some(1000));
        raw.write(&frame(0x88, b"\x03\xE8"));
        let reason = seen.end();
        assert!(reason.is_clean(), "{reason}");
        assert_eq!(reason.undelivered_bytes(), 0);
    }
}

fn a_half_closed_peer_still_gets_its_answers(transport: Transport) {
    for workers in [0, 2] {
        let (ends, reasons) = unbounded();
        let server = transport.serve(|s| s.workers(workers), Reports(ends));
        let mut raw = Raw::open(server.addr);
        raw.write(&[frame(0x81, b"one"), frame(0x81, b"two")].concat());
        raw.stream.shutdown(std::net::Shutdown::Write).unwrap();
        assert_eq!(raw.frame(), Some((0x81, b"one".to_vec())));
        assert_eq!(raw.frame(), Some((0x81, b"two".to_vec())));
        assert_eq!(raw.frame(), None);
        let reason = reasons.recv_timeout(WAIT).unwrap();
        assert_eq!(reason.cause(), CloseCause::Eof);
    }
}

fn data_after_close_is_ignored(transport: Transport) {
    let server = transport.echo();
    let mut raw = Raw::open(server.addr);
    raw.write(
        &[
            frame(0x88, b"\x03\xE8"),
            frame(0x81, b"late"),
            frame(0x89, b"late"),
        ]
        .concat(),
    );
    assert_eq!(raw.frame(), Some((0x88, b"\x03\xE8".to_vec())));
    assert_eq!(raw.frame(), None);
}

/// Says something long, broadcasts, and closes.
struct SaysAndCloses(OnceLock<ServerHandle>, Sender<CloseReason>);

impl Handler for SaysAndCloses {
    type Session = ();

    fn start(&self, server: &ServerHandle) {
        self.0.set(server.clone()).unwrap();
    }

    fn open(&self, _: &Request, peer: &Peer) -> Result<Accept<()>, Response> {
        peer.send(numbered(7, 3000)).unwrap();
        assert!(self.0.get().unwrap().broadcast(numbered(8, 300)));
        assert!(peer.close(CloseCode::Library(4001), "bye"));
        Ok(Accept::new(()))
    }

    fn message(&self, (): &mut (), _: &Peer, _: Message) {}

    fn close(&self, (): (), _: &Peer, reason: &CloseReason) {
        self.1.send(reason.clone()).unwrap();
    }
}

/// It finds no room, but what was accepted before it goes out.
fn a_broadcast_before_the_close_throws_nothing_away(transport: Transport) {
    for workers in [0, 2] {
        let (ends, reasons) = unbounded();
        let settings = |s: Server| s.workers(workers).outbound_limit(1000);
        let server = transport.serve(settings, SaysAndCloses(OnceLock::new(), ends));
        let mut raw = Raw::open(server.addr);
        let (first, payload) = raw.frame().expect("a message");
        assert_eq!((first, number(&payload), payload.len()), (0x82, 7, 3000));
        assert_eq!(raw.close_code(), Some(4001));
        raw.write(&frame(0x88, b"\x0F\xA1"));
        let reason = reasons.recv_timeout(WAIT).unwrap();
        assert!(reason.is_clean());
        assert_eq!(reason.undelivered_bytes(), 0);
    }
}

/// At once and without a word, and told as such, once.
fn a_peer_is_terminated(transport: Transport) {
    for workers in [0, 2] {
        // Not judged where it happens: behind the end, a panic changes nothing.
        let (tell, outcome) = unbounded();
        let (handler, seen) = spy(move |peer: &Peer, message: Message| {
            if matches!(message.to_text(), Ok("out")) {
                let ended = [peer.terminate(), peer.terminate()];
                let closed = [peer.is_closed(), peer.close(CloseCode::Normal, "")];
                tell.send((ended, closed, peer.send("more"))).unwrap();
            } else {
                let _ = peer.send(message);
            }
        });
        let server = transport.serve(|s| s.workers(workers), handler);
        let mut raw = Raw::open(server.addr);
        let words = [frame(0x81, b"hello"), frame(0x81, b"out")].concat();
        raw.write(&words);
        while let Some((first, payload)) = raw.frame() {
            // The reply before may still have gone out.
            assert_eq!((first, &*payload), (0x81, &b"hello"[..]));
        }
        let (ended, closed, sent) = outcome.recv_timeout(WAIT).unwrap();
        assert_eq!(ended, [true, false]);
        assert_eq!(closed, [true, false]);
        assert_eq!(sent, Err(SendError::Closed("more".into())));
        let reason = seen.end();
        assert_eq!(reason.cause(), CloseCause::Terminated);
        assert_eq!(reason.code(), CloseCode::Abnormal);
        assert_eq!(reason.initiator(), Initiator::Local);
        assert!(!reason.is_clean());
        let metrics = server.handle.metrics();
        assert_eq!(metrics.total.closed_by_cause["terminated"], 1);
        assert_eq!(metrics.total.closed_by_code["1006"], 1);
        drop(server);
        assert!(seen.closed.try_recv().is_err(), "once");
    }
}

/// Whoever has begun to close need not be waited for.
fn a_peer_that_closes_is_terminated(transport: Transport) {
    for workers in [0, 2] {
        let (ends, reasons) = unbounded();
        let (opened, peers) = unbounded();
        let (_go, gate) = bounded(0);
        let handler = Tells(opened, Slow(gate, Reports(ends)));
        let server = transport.serve(|s| s.workers(workers), handler);
        let mut raw = Raw::open(server.addr);
        let peer = peers.recv_timeout(WAIT).unwrap();
        assert!(peer.close(CloseCode::Away, "bye"));
        assert_eq!(raw.close_code(), Some(1001));
        assert!(peer.terminate());
        assert_eq!(raw.frame(), None);
        let reason = reasons.recv_timeout(WAIT).unwrap();
        assert_eq!(reason.cause(), CloseCause::Terminated);
        assert_eq!((reason.code(), reason.text()), (CloseCode::Away, "bye"));
        assert!(!reason.is_clean() && !peer.terminate());
    }
}

/// Hangs up on who asks.
struct Doorman(Reports);

impl Handler for Doorman {
    type Session = ();

    fn open(&self, request: &Request, peer: &Peer) -> Result<Accept<()>, Response> {
        assert!(peer.terminate());
        self.0.open(request, peer)
    }

    fn message(&self, (): &mut (), _: &Peer, _: Message) {
        unreachable!("nobody is let in");
    }

    fn close(&self, session: (), peer: &Peer, reason: &CloseReason) {
        self.0.close(session, peer, reason);
    }
}

/// The handler closes and terminates before the loop has written anything.
fn a_close_frame_that_is_thrown_away_is_no_message(transport: Transport) {
    let (handler, seen) = spy(|peer: &Peer, _| {
        assert!(peer.close(CloseCode::Normal, "good bye"));
        assert!(peer.terminate());
    });
    let server = transport.serve(|s| s.workers(0), handler);
    let mut raw = Raw::open(server.addr);
    // Long enough that the reply to it would be written at once.
    raw.write(&frame(0x82, &[0; 5000]));
    let reason = seen.end();
    assert_eq!(reason.undelivered_bytes(), 0);
    assert!(!reason.is_clean());
}

fn a_peer_is_terminated_while_it_opens(transport: Transport) {
    for workers in [0, 2] {
        let (ends, reasons) = unbounded();
        let server = transport.serve(|s| s.workers(workers), Doorman(Reports(ends)));
        let mut raw = Raw::connect(server.addr);
        raw.write(request(server.addr).as_bytes());
        assert_eq!(raw.rest(), b"");
        let reason = reasons.recv_timeout(WAIT).unwrap();
        assert_eq!(reason.cause(), CloseCause::Terminated);
        let metrics = server.handle.metrics();
        assert_eq!(metrics.total.refused["handler"], 1);
        assert_eq!(metrics.total.opened, 0);
        drop(server);
        assert!(reasons.try_recv().is_err(), "once");
    }
}

/// What waits for it is thrown away, and counted.
fn a_peer_that_does_not_read_is_terminated(transport: Transport) {
    for workers in [0, 2] {
        let (handler, seen) = spy(|_, _| ());
        let settings = |s: Server| s.workers(workers).close_timeout(WAIT * 10);
        let server = transport.serve_narrow(settings, handler);
        let mut raw = upgraded(narrow(server.addr));
        let peer = seen.peer();
        let mut sent = 0;
        while peer.queued_bytes() < PLENTY / 2 {
            peer.send(numbered(sent, 1000)).unwrap();
            sent += 1;
        }
        assert!(peer.terminate());
        let reason = seen.end();
        assert_eq!(reason.cause(), CloseCause::Terminated);
        let received = raw.rest().len();
        let undelivered = reason.undelivered_bytes();
        assert!(undelivered > PLENTY / 4, "{undelivered}");
        exactly(transport, received + undelivered, sent as usize * 1004);
        support::until("it is gone", || server.handle.connections() == 0);
    }
}

/// Whoever ends it, and whatever is sent meanwhile: it ends once.
fn many_end_at_the_same_time(transport: Transport) {
    const PEERS: usize = 60;
    for workers in [0, 2] {
        let (handler, seen) = spy(|peer, message| drop(peer.send(message)));
        let server = transport.serve(|s| s.loops(2).workers(workers), handler);
        let mut raws: Vec<_> = (0..PEERS).map(|_| Raw::open(server.addr)).collect();
        let peers: Vec<_> = (0..PEERS).map(|_| seen.peer()).collect();
        let [first, second] = thread::scope(|scope| {
            scope.spawn(|| {
                for peer in &peers {
                    while peer.send(numbered(0, 2000)).is_ok() {
                        thread::yield_now();
                    }
                }
            });
            scope.spawn(|| {
                for peer in peers.iter().step_by(2) {
                    peer.close(CloseCode::Away, "");
                }
            });
            let terminate = || peers.iter().map(Peer::terminate).collect::<Vec<_>>();
            let both = [scope.spawn(terminate), scope.spawn(terminate)];
            for (n, raw) in raws.iter_mut().enumerate() {
                let (first, payload) = [(0x81, &b"hello"[..]), (0x88, b"\x03\xE8")][n / 2 % 2];
                // It may be gone.
                let _ = raw.stream.write_all(&frame(first, payload));
            }
            both.map(|one| one.join().unwrap())
        });
        let twice = first
            .iter()
            .zip(&second)
            .any(|(first, second)| *first && *second);
        assert!(!twice, "each by one of them at most");
        for raw in &mut raws {
            raw.rest();
        }
        let mut told = HashSet::new();
        for _ in 0..PEERS {
            let (peer, reason) = seen.closed.recv_timeout(WAIT).unwrap();
            assert!(told.insert(peer.id()), "twice: {reason}");
        }
        support::until("all are gone", || server.handle.connections() == 0);
        drop(server);
        assert!(seen.closed.try_recv().is_err());
    }
}

/// And a client's own connection, which is not made again.
#[test]
fn a_client_terminates() {
    let (ends, reasons) = unbounded();
    let server = Transport::Plain.serve(|s| s.workers(2), Reports(ends));
    let client = Client::new(format!("ws://{}", server.addr)).unwrap();
    let (handle, events) = client.reconnect(Reconnect::new()).connect().unwrap();
    assert!(handle.peer().unwrap().terminate());
    match events.recv_timeout(WAIT).unwrap() {
        ClientEvent::Close(reason) => assert_eq!(reason.cause(), CloseCause::Terminated),
        other => panic!("{other:?}"),
    }
    assert_eq!(handle.wait().unwrap().cause(), CloseCause::Terminated);
    no_more(&events);
    let reason = reasons.recv_timeout(WAIT).unwrap();
    assert_eq!(reason.initiator(), Initiator::Peer);
    assert_eq!(reason.code(), CloseCode::Abnormal);
}

fn violations_get_the_code_the_rfc_names(transport: Transport) {
    let server = transport.serve(
        |s| s.workers(1).max_message(1000),
        |peer: &Peer, m: Message| peer.send(m),
    );
    let long_ping = [&[0x89, 0xFE, 0, 126, 1, 2, 3, 4][..], &[0; 126]].concat();
    let cases: &[(&str, Vec<u8>, u16)] = &[
        ("no mask", vec![0x81, 0x01, b'x'], 1002),
        ("reserved bit", frame(0xC1, b"x"), 1002),
        ("reserved opcode", frame(0x83, b"x"), 1002),
        ("fragmented ping", frame(0x09, b"x"), 1002),
        ("long ping", long_ping, 1002),
        ("continuation of nothing", frame(0x80, b"x"), 1002),
        ("close with one byte", frame(0x88, b"\x03"), 1002),
        ("close with 1005", frame(0x88, b"\x03\xED"), 1002),
        ("close with bad text", frame(0x88, b"\x03\xE8\xFF"), 1007),
        ("bad text", frame(0x81, b"\xC0\xAF"), 1007),
        ("too long", frame(0x82, &[0; 1001]), 1009),
        (
            "claims 2^40",
            vec![0x82, 0xFF, 0, 0, 1, 0, 0, 0, 0, 0, 1, 2, 3, 4],
            1009,
        ),
        (
            "over 63 bits",
            vec![0x82, 0xFF, 0x80, 0, 0, 0, 0, 0, 0, 0],
            1002,
        ),
        (
            "fragments too long",
            [frame(0x02, &[0; 600]), frame(0x80, &[0; 401])].concat(),
            1009,
        ),
    ];
    for (name, bytes, code) in cases {
        let mut raw = Raw::open(server.addr);
        // What came before is still answered.
        raw.write(&[frame(0x81, b"before"), bytes.clone()].concat());
        assert_eq!(raw.frame(), Some((0x81, b"before".to_vec())), "{name}");
        assert_eq!(raw.close_code(), Some(*code), "{name}");
        assert_eq!(raw.frame(), None, "{name}: the server hangs up");
    }
}
