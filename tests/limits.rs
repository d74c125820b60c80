//! Every row of the table of limits in the documentation of `Server`, against a real socket: what
//! is within the limit passes, what is past it meets what the table says. (The last row, `origin`,
//! is in `handshake`; how the queues behave in between is in `flow_control`.)

mod support;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{Sender, bounded, unbounded};
use framemill::{
    Accept, CloseCause, CloseCode, CloseReason, Error, Handler, Initiator, Message, MessageRate,
    OverRate, Overflow, Peer, ProxyProtocol, Request, Response, SendError, Server,
};
use support::spy::{PLENTY, Seen, Spy, narrow, number, numbered, spy, upgraded};
use support::{
    Addr, Raw, Running, Transport, WAIT, client, echoes, frame, memory, over_every_transport,
    request, until,
};

over_every_transport! {
    half_a_request_is_answered_with_408,
    who_connects_and_says_nothing_is_told_nothing,
    a_trickle_does_not_extend_the_handshake,
    an_open_connection_has_no_handshake_timeout,
    a_handler_that_does_not_decide_loses_the_connection,
    a_head_over_the_limit_is_431_or_414,
    a_body_over_the_limit_is_413,
    a_message_over_the_limit_is_1009,
    the_longest_message_is_1_mib_by_default,
    silence_is_answered_with_a_ping_and_the_ping_with_a_pong,
    who_does_not_answer_a_ping_is_dropped,
    anything_received_is_a_sign_of_life,
    pings_can_be_switched_off,
    a_blocked_handler_does_not_cost_the_connection,
    who_stops_reading_is_dropped,
    who_does_not_answer_a_close_frame_is_dropped,
    who_does_not_hang_up_after_closing_is_dropped,
    a_handler_that_is_behind_holds_its_sender_back,
    one_message_may_be_longer_than_the_inbound_limit,
    a_full_queue_is_closed_with_1013,
    a_full_queue_may_refuse_the_newest,
    a_full_queue_may_drop_the_oldest,
    one_connection_too_many_is_503,
    who_sends_too_fast_is_held_to_the_rate,
    who_is_held_to_the_rate_goes_on_in_lockstep,
    who_is_held_to_the_rate_is_not_taken_for_dead,
    who_sends_too_fast_may_be_closed_with_1008,
    who_sends_too_fast_is_closed_in_lockstep_too,
    who_sends_too_fast_is_not_listened_to_for_long,
    control_frames_are_not_messages,
}

/// A deadline of the server that a test waits for.
const SHORT: Duration = Duration::from_millis(150);

/// The same for one that TLS handshakes have to keep, on a machine that may be busy.
const HANDSHAKE: Duration = Duration::from_millis(500);

/// For what must not happen: a while in which it would have.
const LONG_ENOUGH: Duration = Duration::from_millis(400);

/// Longer than the tests wait.
const NEVER: Duration = Duration::from_secs(3600);

/// Requires that `wait` has passed since `begun`, and not much more. (The server's clock counts
/// milliseconds, as of the beginning of a turn.)
#[track_caller]
fn passed(begun: Instant, wait: Duration) {
    let elapsed = begun.elapsed();
    let early = Duration::from_millis(20);
    assert!(elapsed + early >= wait, "{elapsed:?} is too early");
    // Less than any default.
    assert!(elapsed < wait + Duration::from_secs(6), "{elapsed:?}");
}

/// Requires that nothing comes for a while.
#[track_caller]
fn silent(raw: &mut Raw) {
    assert!(!raw.hears(LONG_ENOUGH));
}

/// A server that echoes and tells what happens.
fn spied(transport: Transport, settings: impl FnOnce(Server) -> Server) -> (Running, Seen) {
    let (spy, seen) = echo_spy();
    (transport.serve(settings, spy), seen)
}

type Act = fn(&Peer, Message);

fn echo_spy() -> (Spy<Act>, Seen) {
    spy(|peer, message| drop(peer.send(message)))
}

fn raw_echoes(raw: &mut Raw) {
    raw.write(&frame(0x81, b"hello"));
    assert_eq!(next_message(raw), Some((0x81, b"hello".to_vec())));
}

/// The next frame that is not a ping.
fn next_message(raw: &mut Raw) -> Option<(u8, Vec<u8>)> {
    std::iter::from_fn(|| raw.frame()).find(|(first, _)| *first != 0x89)
}

/// The status of the answer to `request`.
fn status(addr: Addr, request: impl AsRef<[u8]>) -> u16 {
    let mut raw = Raw::connect(addr);
    raw.write(request.as_ref());
    let head = raw.head();
    let status = head[9..12].parse().unwrap();
    if status != 101 {
        raw.rest();
    }
    status
}

fn post(body: &[u8]) -> Vec<u8> {
    let length = body.len();
    let head = format!("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: {length}\r\n\r\n");
    [head.as_bytes(), body].concat()
}

// ---- handshake_timeout ----

fn half_a_request_is_answered_with_408(transport: Transport) {
    for workers in [0, 2] {
        let (server, _) = spied(transport, |s| {
            s.workers(workers).handshake_timeout(HANDSHAKE)
        });
        let half_a_head = request(server.addr).into_bytes()[..60].to_vec();
        let half_a_body = post(b"body")[..45].to_vec();
        for half in [half_a_head, half_a_body] {
            let begun = Instant::now();
            let mut raw = Raw::connect(server.addr);
            raw.write(&half);
            let (status, head, _) = raw.response();
            assert_eq!(status, 408);
            assert!(head.contains("\r\nConnection: close\r\n"), "{head}");
            passed(begun, HANDSHAKE);
        }
    }
}

fn who_connects_and_says_nothing_is_told_nothing(transport: Transport) {
    for workers in [0, 2] {
        let (server, _) = spied(transport, |s| {
            s.workers(workers).handshake_timeout(HANDSHAKE)
        });
        let begun = Instant::now();
        let mut raw = Raw::connect(server.addr);
        assert_eq!(raw.rest(), b"");
        passed(begun, HANDSHAKE);
        until("it is forgotten", || server.handle.connections() == 0);
    }
}

/// The time is for the whole handshake; a byte now and then buys no more of it.
fn a_trickle_does_not_extend_the_handshake(transport: Transport) {
    let (server, _) = spied(transport, |s| s.workers(1).handshake_timeout(HANDSHAKE));
    let begun = Instant::now();
    let mut raw = Raw::connect(server.addr);
    raw.write(b"GET / HTTP/1.1\r\nX: ");
    while !raw.hears(Duration::from_millis(10)) {
        raw.write(b"x");
        assert!(begun.elapsed() < WAIT);
    }
    assert_eq!(raw.response().0, 408);
    passed(begun, HANDSHAKE);
}

fn an_open_connection_has_no_handshake_timeout(transport: Transport) {
    for workers in [0, 2] {
        let (server, _) = spied(transport, |s| {
            s.workers(workers).handshake_timeout(HANDSHAKE)
        });
        let mut raw = Raw::open(server.addr);
        assert!(!raw.hears(2 * HANDSHAKE));
        raw_echoes(&mut raw);
    }
}

/// Takes so long to open that the connection is gone.
struct Slow(Sender<CloseReason>);

impl Handler for Slow {
    type Session = ();

    fn open(&self, request: &Request, peer: &Peer) -> Result<Accept<()>, Response> {
        if request.path() == "/slow" {
            until("the connection is gone", || peer.is_closed());
            let sent = peer.send("too late");
            assert!(matches!(sent, Err(SendError::Closed(_))), "{sent:?}");
        }
        Ok(Accept::new(()))
    }

    fn message(&self, (): &mut (), peer: &Peer, message: Message) {
        let _ = peer.send(message);
    }

    fn close(&self, (): (), _: &Peer, reason: &CloseReason) {
        self.0.send(reason.clone()).unwrap();
    }
}

fn a_handler_that_does_not_decide_loses_the_connection(transport: Transport) {
    let (ends, reasons) = unbounded();
    let server = transport.serve(|s| s.workers(2).handshake_timeout(HANDSHAKE), Slow(ends));
    let begun = Instant::now();
    let mut raw = Raw::connect(server.addr);
    let slow = request(server.addr).replacen("GET /", "GET /slow", 1);
    raw.write(slow.as_bytes());
    assert_eq!(raw.rest(), b"");
    passed(begun, HANDSHAKE);
    // It accepted, so it is told the end.
    let reason = reasons.recv_timeout(WAIT).unwrap();
    assert_eq!(reason.cause(), CloseCause::HandshakeTimeout);
    assert_eq!(reason.code(), CloseCode::Abnormal);
    assert_eq!(reason.initiator(), Initiator::Local);
    until("it is forgotten", || server.handle.connections() == 0);
    raw_echoes(&mut Raw::open(server.addr));
    assert!(reasons.recv_timeout(WAIT).is_ok(), "the second one's end");
    assert!(reasons.try_recv().is_err(), "each end is told once");
}

// ---- max_head, max_body ----

fn a_head_over_the_limit_is_431_or_414(transport: Transport) {
    for workers in [0, 2] {
        let (server, _) = spied(transport, |s| {
            s.workers(workers)
                .handshake_timeout(NEVER)
                .max_head(300, 10)
        });
        let long = |len: usize| {
            let pad = len - request(server.addr).len() - 5;
            let line = format!("X: {}\r\nHost", "x".repeat(pad));
            let head = request(server.addr).replacen("Host", &line, 1);
            assert_eq!(head.len(), len);
            head
        };
        assert_eq!(status(server.addr, long(300)), 101);
        assert_eq!(status(server.addr, long(301)), 431);
        let many = |more: usize| {
            let lines = format!("{}Host", "a:\r\n".repeat(more));
            request(server.addr).replacen("Host", &lines, 1)
        };
        // The handshake itself has five.
        assert_eq!(status(server.addr, many(5)), 101);
        assert_eq!(status(server.addr, many(6)), 431);
        // Refused when it is too long, not when it is over.
        let line = format!("GET /{}", "x".repeat(295));
        assert_eq!(line.len(), 300);
        assert_eq!(status(server.addr, &line), 414);
        let endless = format!("GET / HTTP/1.1\r\nX: {}", "x".repeat(300));
        assert_eq!(status(server.addr, endless), 431);
    }
}

fn a_body_over_the_limit_is_413(transport: Transport) {
    struct Length;
    impl Handler for Length {
        type Session = ();

        fn open(&self, _: &Request, _: &Peer) -> Result<Accept<()>, Response> {
            Err(Response::not_found())
        }

        fn message(&self, (): &mut (), _: &Peer, _: Message) {}

        fn http(&self, request: &Request) -> Response {
            Response::text(request.body().len().to_string())
        }
    }

    for workers in [0, 2] {
        let server = transport.serve(|s| s.workers(workers).max_body(1000), Length);
        let mut raw = Raw::connect(server.addr);
        raw.write(&post(&[b'x'; 1000]));
        assert_eq!(raw.response().2, b"1000");
        // The head is enough: no body has to come.
        let too_long = post(&[b'x'; 1001]);
        assert_eq!(status(server.addr, &too_long[..too_long.len() - 1001]), 413);
        assert_eq!(status(server.addr, &too_long), 413);

        let server = transport.serve(|s| s.workers(workers), Length);
        assert_eq!(status(server.addr, post(&vec![b'x'; 64 << 10])), 200);
        assert_eq!(status(server.addr, post(&vec![b'x'; (64 << 10) + 1])), 413);
    }
}

// ---- max_message ----

fn a_message_over_the_limit_is_1009(transport: Transport) {
    const LIMIT: usize = 100_000;
    for workers in [0, 2] {
        let (server, seen) = spied(transport, |s| s.workers(workers).max_message(LIMIT));
        let exact = vec![7; LIMIT];
        let in_parts = [
            frame(0x02, &exact[..60_000]),
            frame(0x00, b""),
            frame(0x00, &exact[60_000..]),
            frame(0x80, b""),
        ]
        .concat();
        let mut raw = Raw::open(server.addr);
        for within in [frame(0x82, &exact), in_parts] {
            raw.write(&within);
            // No assert_eq: nobody wants to read that.
            assert!(raw.frame() == Some((0x82, exact.clone())));
        }

        let one_more = frame(0x82, &vec![7; LIMIT + 1]);
        let last_fragment = [frame(0x02, &exact), frame(0x80, b"x")].concat();
        let header = one_more.len() - LIMIT - 1;
        for beyond in [
            &one_more[..],
            &last_fragment,
            // The claim is enough: no payload has to come.
            &one_more[..header],
            &last_fragment[..last_fragment.len() - 1],
        ] {
            let mut raw = Raw::open(server.addr);
            raw.write(beyond);
            assert_eq!(raw.close_code(), Some(1009));
            assert_eq!(raw.frame(), None);
            let reason = seen.end();
            assert_eq!(reason.cause(), CloseCause::TooBig);
            assert_eq!(reason.code(), CloseCode::Size);
        }
        raw_echoes(&mut raw);
    }
}

fn the_longest_message_is_1_mib_by_default(transport: Transport) {
    let (server, _) = spied(transport, |s| s.workers(1));
    let mut raw = Raw::open(server.addr);
    let mebibyte = vec![7; 1 << 20];
    raw.write(&frame(0x82, &mebibyte));
    assert!(raw.frame() == Some((0x82, mebibyte)));
    raw.write(&frame(0x82, &vec![7; (1 << 20) + 1]));
    assert_eq!(raw.close_code(), Some(1009));
}

/// 1 GiB is the most that may be asked for, exactly.
#[test]
fn max_message_has_a_limit_itself() {
    let start = |limit: usize| {
        let server = Server::bind("127.0.0.1:0").unwrap().workers(1);
        server
            .max_message(limit)
            .start(|peer: &Peer, message: Message| peer.send(message))
    };
    for accepted in [1, 1 << 30] {
        assert!(start(accepted).unwrap().shutdown(WAIT), "{accepted}");
    }
    // The last two don't fit the 32 bits that the engine counts with.
    for refused in [
        (1 << 30) + 1,
        1 << 31,
        (u32::MAX as usize).saturating_add(2),
        usize::MAX,
    ] {
        match start(refused) {
            Err(Error::Config(why)) => {
                assert!(why.contains("max_message must be 1 byte to 1 GiB"), "{why}");
            }
            other => panic!("{refused}: {other:?}"),
        }
    }
    assert!(matches!(start(0), Err(Error::Config(why)) if why.contains("max_message")));
}

/// What can't be counted with is refused at the start, not met later; what may just be asked for works.
#[test]
fn other_limits_have_limits_too() {
    type Settings = fn(Server) -> Server;
    let refused: [(&str, Settings); 8] = [
        ("max_head", |s| s.max_head(usize::MAX, 64)),
        ("max_head", |s| s.max_head((1 << 30) + 1, 64)),
        ("outbound_limit", |s| s.outbound_limit(usize::MAX)),
        ("outbound_limit", |s| {
            s.outbound_limit(u32::MAX as usize - 100)
        }),
        // Before TLS the header is looked at where it was received.
        ("read_buffer", |s| {
            s.proxy_protocol(ProxyProtocol::Optional).read_buffer(4095)
        }),
        ("handshake_timeout", |s| s.handshake_timeout(Duration::ZERO)),
        ("ping", |s| s.ping(Duration::ZERO, WAIT)),
        ("ping", |s| s.ping(WAIT, Duration::ZERO)),
    ];
    for (name, settings) in refused {
        let server = settings(Server::bind("127.0.0.1:0").unwrap());
        match server.start(|peer: &Peer, message: Message| peer.send(message)) {
            Err(Error::Config(why)) => assert!(why.contains(name), "{why}"),
            other => panic!("{name}: {other:?}"),
        }
    }
    let (server, _) = spied(Transport::Plain, |s| {
        s.max_head(1 << 30, usize::MAX)
            .max_body(usize::MAX)
            .outbound_limit(1 << 30)
            .ping(Duration::MAX, Duration::MAX)
            .close_timeout(Duration::ZERO)
    });
    raw_echoes(&mut Raw::open(server.addr));
}

/// Memory follows what has arrived, not what was announced (rust-websocket's CVE-2022-35922).
#[test]
fn a_claim_allocates_nothing() {
    const CLAIM: usize = 256 << 20;
    let (server, _) = spied(Transport::Plain, |s| s.workers(1).max_message(CLAIM));
    let mut other = client(server.addr);
    let before = memory("VmData");
    let claimants: Vec<Raw> = (0..64)
        .map(|_| {
            let mut raw = Raw::open(server.addr);
            let mut start = vec![0x82, 0x80 | 127];
            start.extend((CLAIM as u64).to_be_bytes());
            start.extend([1, 2, 3, 4]);
            start.extend([0; 100]);
            raw.write(&start);
            raw
        })
        .collect();
    for _ in 0..2 {
        echoes(&mut other, "the loop has had its turn");
    }
    let grown = memory("VmData").saturating_sub(before);
    // The other tests of this file run beside this one; together they don't need a single claim.
    assert!(
        grown < CLAIM,
        "{grown} bytes for {} claims",
        claimants.len()
    );
}

// ---- ping ----

/// Reads the next ping, and gives its payload.
#[track_caller]
fn ping(raw: &mut Raw) -> Vec<u8> {
    let (first, payload) = raw.frame().expect("a ping");
    assert_eq!(first, 0x89);
    payload
}

fn silence_is_answered_with_a_ping_and_the_ping_with_a_pong(transport: Transport) {
    for workers in [0, 2] {
        let (server, seen) = spied(transport, |s| s.workers(workers).ping(SHORT, NEVER));
        let mut begun = Instant::now();
        let mut raw = Raw::open(server.addr);
        let peer = seen.peer();
        assert_eq!(peer.latency(), None);
        for _ in 0..3 {
            let payload = ping(&mut raw);
            passed(begun, SHORT);
            begun = Instant::now();
            raw.write(&frame(0x8A, &payload));
        }
        raw_echoes(&mut raw);
        let latency = peer.latency().expect("a pong was received");
        assert!(latency < WAIT, "{latency:?}");
    }
}

fn who_does_not_answer_a_ping_is_dropped(transport: Transport) {
    for workers in [0, 2] {
        let (server, seen) = spied(transport, |s| s.workers(workers).ping(SHORT, SHORT));
        let begun = Instant::now();
        let mut raw = Raw::open(server.addr);
        ping(&mut raw);
        assert_eq!(raw.frame(), None, "no close frame: nobody would read it");
        passed(begun, 2 * SHORT);
        let reason = seen.end();
        assert_eq!(reason.cause(), CloseCause::NoPong);
        assert_eq!(reason.code(), CloseCode::Abnormal);
        assert_eq!(reason.initiator(), Initiator::Local);
        assert!(!reason.is_clean());
        until("it is forgotten", || server.handle.connections() == 0);
    }
}

fn anything_received_is_a_sign_of_life(transport: Transport) {
    for workers in [0, 2] {
        let pong_timeout = Duration::from_millis(500);
        let (server, _) = spied(transport, |s| s.workers(workers).ping(SHORT, pong_timeout));
        let mut raw = Raw::open(server.addr);
        // Each ping is answered with one more byte of this, never with a pong.
        let message = frame(0x81, &[b'x'; 100]);
        let mut sent = 0;
        let begun = Instant::now();
        while begun.elapsed() < 2 * (SHORT + pong_timeout) {
            ping(&mut raw);
            raw.write(&message[sent..=sent]);
            sent += 1;
        }
        raw.write(&message[sent..]);
        assert_eq!(next_message(&mut raw), Some((0x81, vec![b'x'; 100])));
    }
}

fn pings_can_be_switched_off(transport: Transport) {
    for workers in [0, 2] {
        let settings = |s: Server| s.workers(workers).ping(SHORT, SHORT).no_ping();
        let (server, _) = spied(transport, settings);
        let mut raw = Raw::open(server.addr);
        silent(&mut raw);
        raw_echoes(&mut raw);
    }
}

/// Reads until `count` messages have come, and answers all pings; tells how many pings came.
fn read_with_pongs(raw: &mut Raw, count: usize) -> usize {
    let (mut pings, mut messages) = (0, 0);
    while messages < count {
        let (first, payload) = raw.frame().expect("the connection lives");
        if first == 0x89 {
            pings += 1;
            raw.write(&frame(0x8A, &payload));
        } else {
            assert_eq!((first, number(&payload)), (0x82, messages as u32));
            messages += 1;
        }
    }
    pings
}

/// While the server does not listen, it does not take the peer for dead.
fn a_blocked_handler_does_not_cost_the_connection(transport: Transport) {
    let (release, gate) = bounded::<()>(0);
    let (spy, seen) = spy(move |peer: &Peer, message| {
        let _ = gate.recv_timeout(WAIT);
        let _ = peer.send(message);
    });
    let ping_timeouts = |s: Server| s.ping(SHORT / 3, SHORT);
    let server = transport.serve(
        |s| ping_timeouts(s.workers(2)).inbound_limit(1, 1 << 20),
        spy,
    );
    let mut raw = Raw::open(server.addr);
    for n in 0..3 {
        raw.write(&frame(0x82, &numbered(n, 100)));
    }
    let end = seen.closed.recv_timeout(LONG_ENOUGH);
    assert!(end.is_err(), "{end:?}");
    drop(release);
    read_with_pongs(&mut raw, 3);
    raw.write(&frame(0x88, b"\x03\xE8"));
    assert_eq!(seen.end().cause(), CloseCause::Handshake);
}

/// A peer that takes nothing of what it is sent is dropped as well, and the reason tells it apart.
fn who_stops_reading_is_dropped(transport: Transport) {
    for workers in [0, 2] {
        let (spy, seen) = echo_spy();
        let settings = |s: Server| {
            s.workers(workers)
                .ping(SHORT, SHORT)
                .outbound_limit(PLENTY)
                .overflow(Overflow::DropNewest)
        };
        let server = transport.serve_narrow(settings, spy);
        let raw = upgraded(narrow(server.addr));
        let peer = seen.peer();
        while peer.send(numbered(0, 1000)).is_ok() {}
        let reason = seen.end();
        assert_eq!(reason.cause(), CloseCause::WriteStall);
        assert_eq!(reason.initiator(), Initiator::Local);
        assert!(reason.undelivered_bytes() > PLENTY / 2);
        until("it is forgotten", || server.handle.connections() == 0);
        drop(raw);
    }
}

// ---- close_timeout ----

fn who_does_not_answer_a_close_frame_is_dropped(transport: Transport) {
    for workers in [0, 2] {
        let (spy, seen) = spy(|peer: &Peer, _| assert!(peer.close(CloseCode::Away, "bye")));
        let server = transport.serve(|s| s.workers(workers).close_timeout(SHORT), spy);
        let mut raw = Raw::open(server.addr);
        let begun = Instant::now();
        raw.write(&frame(0x81, b"close me"));
        assert_eq!(raw.frame(), Some((0x88, b"\x03\xE9bye".to_vec())));
        // Data is no answer, and does not extend the deadline.
        raw.write(&frame(0x81, b"what?"));
        assert_eq!(raw.frame(), None);
        passed(begun, SHORT);
        let reason = seen.end();
        assert_eq!(reason.cause(), CloseCause::CloseTimeout);
        assert_eq!(reason.code(), CloseCode::Away);
        assert_eq!(reason.initiator(), Initiator::Local);
        assert!(!reason.is_clean());
        until("it is forgotten", || server.handle.connections() == 0);
    }
}

/// RFC 6455 §7.1.1: the server closes TCP first, but "at any time" it may be done with the waiting.
fn who_does_not_hang_up_after_closing_is_dropped(transport: Transport) {
    for workers in [0, 2] {
        let (server, seen) = spied(transport, |s| s.workers(workers).close_timeout(SHORT));
        let begun = Instant::now();
        let mut raw = Raw::open(server.addr);
        raw.write(&frame(0x88, b"\x03\xE8"));
        assert_eq!(raw.frame(), Some((0x88, b"\x03\xE8".to_vec())));
        assert_eq!(raw.frame(), None);
        let reason = seen.end();
        assert_eq!(reason.cause(), CloseCause::Handshake);
        assert!(reason.is_clean());
        until("it is forgotten", || server.handle.connections() == 0);
        passed(begun, SHORT);
        drop(raw);
    }
}

// ---- inbound_limit ----

/// Nothing is read beyond the limit: TCP holds the sender back. Once the handler goes on, all
/// arrives, in order.
fn a_handler_that_is_behind_holds_its_sender_back(transport: Transport) {
    const SIZE: usize = 16 << 10;
    const COUNT: u32 = 400;
    for (messages, bytes) in [(4, usize::MAX >> 34), (1000, 4 * SIZE)] {
        let (release, gate) = bounded::<()>(0);
        let handled = Arc::<Mutex<Vec<u32>>>::default();
        let log = handled.clone();
        let (spy, _) = spy(move |_: &Peer, message| {
            let _ = gate.recv_timeout(WAIT);
            log.lock().unwrap().push(number(&message.into_data()));
        });
        let server = transport.serve_narrow(|s| s.workers(2).inbound_limit(messages, bytes), spy);
        let mut raw = upgraded(narrow(server.addr));
        let written = Arc::new(AtomicUsize::new(0));
        let count = written.clone();
        let writer = thread::spawn(move || {
            for n in 0..COUNT {
                raw.write(&frame(0x82, &numbered(n, SIZE)));
                count.fetch_add(1, Ordering::SeqCst);
            }
            raw
        });
        // Stuck is who gets nowhere for a while.
        let mut last = (usize::MAX, Instant::now());
        until("the writer is stuck", || {
            let now = written.load(Ordering::SeqCst);
            if now != last.0 {
                last = (now, Instant::now());
            }
            last.1.elapsed() > LONG_ENOUGH
        });
        // The four with the handler, one read of the loop, and what the kernel was asked to hold.
        let most = 4 * SIZE + (64 << 10) + (512 << 10);
        let held = last.0 * SIZE;
        assert!(held <= most, "{held} bytes were taken");
        assert!(last.0 >= 4, "the limit itself is taken");
        assert!(handled.lock().unwrap().is_empty());

        drop(release);
        let raw = writer.join().unwrap();
        until("all is handled", || {
            handled.lock().unwrap().len() == COUNT as usize
        });
        assert!(handled.lock().unwrap().iter().copied().eq(0..COUNT));
        drop(raw);
    }
}

/// The message that reaches the limit in bytes is taken whole.
fn one_message_may_be_longer_than_the_inbound_limit(transport: Transport) {
    for workers in [0, 2] {
        let (server, _) = spied(transport, |s| s.workers(workers).inbound_limit(1, 1));
        let mut raw = Raw::open(server.addr);
        for n in 0..10 {
            raw.write(&frame(0x82, &numbered(n, 100_000)));
        }
        for n in 0..10 {
            let (_, payload) = raw.frame().unwrap();
            assert_eq!((number(&payload), payload.len()), (n, 100_000));
        }
    }
}

// ---- outbound_limit, overflow ----

const QUEUE: usize = 64 << 10;
const PART: usize = 4000;

/// A peer that does not read, behind a short queue.
fn deaf(transport: Transport, workers: usize, overflow: Overflow) -> (Running, Seen, Raw, Peer) {
    let (spy, seen) = echo_spy();
    let settings = |s: Server| {
        s.workers(workers)
            .outbound_limit(QUEUE)
            .overflow(overflow)
            .close_timeout(WAIT)
    };
    let server = transport.serve_narrow(settings, spy);
    let raw = upgraded(narrow(server.addr));
    let peer = seen.peer();
    (server, seen, raw, peer)
}

/// Sends numbered messages until one is refused, or surely would have been; tells how many were
/// accepted, and the refusal.
fn send_past_the_limit(peer: &Peer) -> (u32, Option<SendError>) {
    let enough = (PLENTY / PART * 4) as u32;
    for n in 0..enough {
        let outcome = peer.send(numbered(n, PART));
        assert!(peer.queued_bytes() <= QUEUE, "{}", peer.queued_bytes());
        if let Err(refusal) = outcome {
            return (n, Some(refusal));
        }
    }
    (enough, None)
}

fn a_full_queue_is_closed_with_1013(transport: Transport) {
    for workers in [0, 2] {
        let (server, seen, mut raw, peer) = deaf(transport, workers, Overflow::default());
        let (accepted, refusal) = send_past_the_limit(&peer);
        assert!(matches!(refusal, Some(SendError::Closed(_))), "{refusal:?}");
        assert!(accepted as usize >= QUEUE / PART - 1);
        assert!(peer.is_closed());
        // What the kernel has already, and then the end of it.
        let mut read = 0;
        let code = loop {
            match raw.frame().expect("a close frame") {
                (0x88, payload) => break payload[..2].to_vec(),
                (_, payload) => assert_eq!(number(&payload), read),
            }
            read += 1;
        };
        assert_eq!(code, 1013u16.to_be_bytes());
        // Anything from nothing to all of it was with the kernel or on its way there.
        assert!(read <= accepted);
        raw.write(&frame(0x88, b"\x03\xF5"));
        let reason = seen.end();
        assert_eq!(reason.cause(), CloseCause::Overflow);
        assert_eq!(reason.code(), CloseCode::Again);
        assert_eq!(reason.initiator(), Initiator::Local);
        drop(server);
    }
}

fn a_full_queue_may_refuse_the_newest(transport: Transport) {
    for workers in [0, 2] {
        let (server, _, mut raw, peer) = deaf(transport, workers, Overflow::DropNewest);
        let (accepted, refusal) = send_past_the_limit(&peer);
        let Some(SendError::Full(message)) = refusal else {
            panic!("{refusal:?}");
        };
        assert_eq!(number(&message.into_data()), accepted, "it is handed back");
        for n in 0..accepted {
            assert_eq!(number(&raw.frame().unwrap().1), n);
        }
        raw_echoes(&mut raw);
        drop(server);
    }
}

fn a_full_queue_may_drop_the_oldest(transport: Transport) {
    for workers in [0, 2] {
        let (server, _, mut raw, peer) = deaf(transport, workers, Overflow::DropOldest);
        let (sent, refusal) = send_past_the_limit(&peer);
        assert!(refusal.is_none(), "there is always an older one to drop");
        let mut read = Vec::new();
        while read.last() != Some(&(sent - 1)) {
            read.push(number(&raw.frame().unwrap().1));
        }
        assert!(read.is_sorted_by(|a, b| a < b), "{read:?}");
        assert!(read.len() < sent as usize, "some were dropped");
        raw_echoes(&mut raw);
        drop(server);
    }
}

// ---- max_connections, max_connections_per_ip ----

fn one_connection_too_many_is_503(transport: Transport) {
    for workers in [0, 2] {
        let (server, _) = spied(transport, |s| s.workers(workers).max_connections(2));
        let open = Raw::open(server.addr);
        // One that has not said anything yet has a place all the same.
        let mut opening = Raw::connect(server.addr);
        until("both are in", || server.handle.connections() == 2);
        for _ in 0..3 {
            assert_eq!(status(server.addr, request(server.addr)), 503);
            assert_eq!(status(server.addr, post(b"")), 503);
        }
        assert_eq!(server.handle.connections(), 2, "the refused don't count");
        opening.write(request(server.addr).as_bytes());
        assert!(opening.head().starts_with("HTTP/1.1 101 "));

        drop(open);
        until("one has left", || server.handle.connections() == 1);
        raw_echoes(&mut Raw::open(server.addr));
        raw_echoes(&mut opening);
    }
}

/// A socket that comes from `ip`.
#[cfg(target_os = "linux")] // where all of 127.0.0.0/8 is ours
fn connect_from(ip: &str, addr: Addr) -> Raw {
    use socket2::{Domain, Socket, Type};

    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    let from: std::net::SocketAddr = format!("{ip}:0").parse().unwrap();
    socket.bind(&from.into()).unwrap();
    socket.connect_timeout(&addr.tcp().into(), WAIT).unwrap();
    Raw::over(addr.over(socket.into()))
}

#[cfg(target_os = "linux")]
#[test]
fn one_connection_too_many_of_an_address_is_429() {
    for workers in [0, 2] {
        let (server, _) = spied(Transport::Plain, |s| {
            s.workers(workers).max_connections_per_ip(2)
        });
        let status_from = |ip| {
            let mut raw = connect_from(ip, server.addr);
            raw.write(request(server.addr).as_bytes());
            (raw.head()[9..12].to_owned(), raw)
        };
        let (first, one) = status_from("127.0.0.1");
        let (second, _two) = status_from("127.0.0.1");
        assert_eq!((&*first, &*second), ("101", "101"));
        let (third, mut refused) = status_from("127.0.0.1");
        assert_eq!(third, "429");
        refused.rest();
        // Others have places of their own.
        let (other, _three) = status_from("127.0.0.2");
        assert_eq!(other, "101");
        assert_eq!(server.handle.connections(), 3);

        drop(one);
        until("one has left", || server.handle.connections() == 2);
        let (again, _four) = status_from("127.0.0.1");
        assert_eq!(again, "101");
        assert_eq!(status_from("127.0.0.1").0, "429");
    }
}

// ---- message_rate ----

fn rate(per_second: u32, burst: u32, over: OverRate) -> MessageRate {
    MessageRate {
        per_second,
        burst,
        over,
    }
}

fn messages(count: u32) -> Vec<u8> {
    (0..count)
        .flat_map(|n| frame(0x82, &numbered(n, 10)))
        .collect()
}

fn who_sends_too_fast_is_held_to_the_rate(transport: Transport) {
    for workers in [0, 2] {
        let held = rate(50, 5, OverRate::Wait);
        let (server, _) = spied(transport, |s| s.workers(workers).message_rate(held));
        let mut raw = Raw::open(server.addr);
        let begun = Instant::now();
        raw.write(&messages(20));
        for n in 0..20 {
            assert_eq!(number(&raw.frame().unwrap().1), n);
        }
        passed(begun, Duration::from_millis(15 * 1000 / 50));
    }
}

/// A client that sends the next message when it has the answer to the last, and none but the rate to
/// wake the server.
fn who_is_held_to_the_rate_goes_on_in_lockstep(transport: Transport) {
    for workers in [0, 2] {
        let held = rate(20, 1, OverRate::Wait);
        let settings = |s: Server| s.workers(workers).message_rate(held).no_ping();
        let (server, _) = spied(transport, settings);
        let mut raw = Raw::open(server.addr);
        let begun = Instant::now();
        for n in 0..10 {
            raw.write(&frame(0x82, &numbered(n, 10)));
            assert_eq!(number(&raw.frame().unwrap().1), n);
        }
        passed(begun, Duration::from_millis(9 * 1000 / 20));
    }
}

/// While the server does not listen, it does not take the peer for dead.
fn who_is_held_to_the_rate_is_not_taken_for_dead(transport: Transport) {
    for workers in [0, 2] {
        let held = rate(20, 1, OverRate::Wait);
        let settings = |s: Server| s.workers(workers).message_rate(held).ping(SHORT / 3, SHORT);
        let (server, seen) = spied(transport, settings);
        let mut raw = Raw::open(server.addr);
        // The client answers every ping, but its pongs wait behind its messages.
        raw.write(&messages(20));
        read_with_pongs(&mut raw, 20);
        assert!(seen.closed.try_recv().is_err());
    }
}

fn who_sends_too_fast_may_be_closed_with_1008(transport: Transport) {
    for workers in [0, 2] {
        let allowed = rate(1, 5, OverRate::Close);
        let (server, seen) = spied(transport, |s| s.workers(workers).message_rate(allowed));
        let mut raw = Raw::open(server.addr);
        // The last one is cut in two: the close frame behind it is found all the same.
        let all = [messages(10), frame(0x88, b"\x03\xF0")].concat();
        let (now, later) = all.split_at(all.len() - 12);
        raw.write(now);
        for n in 0..5 {
            assert_eq!(number(&raw.frame().unwrap().1), n, "the burst is answered");
        }
        assert_eq!(raw.close_code(), Some(1008));
        raw.write(later);
        assert_eq!(raw.frame(), None);
        let reason = seen.end();
        assert!(reason.is_clean());
        assert_eq!(reason.cause(), CloseCause::RateLimit);
        assert_eq!(reason.code(), CloseCode::Policy);
        assert_eq!(reason.initiator(), Initiator::Local);
    }
}

/// However they are spread over packets, messages past the burst are not just waited for.
fn who_sends_too_fast_is_closed_in_lockstep_too(transport: Transport) {
    for workers in [0, 2] {
        let allowed = rate(1, 5, OverRate::Close);
        let (server, _) = spied(transport, |s| s.workers(workers).message_rate(allowed));
        let mut raw = Raw::open(server.addr);
        for n in 0.. {
            raw.write(&frame(0x82, &numbered(n, 10)));
            match raw.frame().unwrap() {
                (0x82, payload) => assert_eq!(number(&payload), n),
                (first, payload) => {
                    assert_eq!((first, &payload[..2]), (0x88, &b"\x03\xF0"[..]));
                    assert!(n >= 5, "the burst is allowed");
                    break;
                }
            }
            assert!(n < 12, "one a second is not what was sent");
        }
    }
}

/// Who does not answer the close frame and goes on has less time than a closing handshake may take.
fn who_sends_too_fast_is_not_listened_to_for_long(transport: Transport) {
    for workers in [0, 2] {
        let allowed = rate(1, 5, OverRate::Close);
        let settings = |s: Server| {
            s.workers(workers)
                .message_rate(allowed)
                .close_timeout(NEVER)
        };
        let (server, seen) = spied(transport, settings);
        let mut raw = Raw::open(server.addr);
        let begun = Instant::now();
        raw.write(&messages(6));
        assert_eq!(raw.close_code(), Some(1008));
        raw.write(&messages(6));
        assert_eq!(raw.frame(), None);
        passed(begun, Duration::from_secs(2));
        let reason = seen.end();
        assert!(!reason.is_clean());
        assert_eq!(reason.cause(), CloseCause::RateLimit);
        assert_eq!(reason.code(), CloseCode::Policy);
        until("it is forgotten", || server.handle.connections() == 0);
    }
}

/// The limit is on messages; what holds none does not go over it.
fn control_frames_are_not_messages(transport: Transport) {
    for workers in [0, 2] {
        let allowed = rate(1, 2, OverRate::Close);
        let (server, seen) = spied(transport, |s| s.workers(workers).message_rate(allowed));
        let mut raw = Raw::open(server.addr);
        let pings = frame(0x89, b"a").repeat(10);
        raw.write(&[pings.clone(), messages(2), pings, frame(0x88, b"\x03\xE8")].concat());
        let mut last = None;
        while let Some((first, payload)) = raw.frame() {
            last = Some((first, payload));
        }
        assert_eq!(last, Some((0x88, b"\x03\xE8".to_vec())));
        assert_eq!(seen.end().cause(), CloseCause::Handshake);
    }
}
