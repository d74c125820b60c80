//! What a server that faces the internet needs, over real sockets: limits on who arrives and on what
//! they send, proxies in front, draining, several listeners on one port. (With real proxies and systemd:
//! `deploy`.)

mod support;

use std::time::{Duration, Instant};

use framemill::{ByteRate, CloseCause, CloseCode, OverRate, Server};
use support::spy::{Seen, number, numbered, spy};
use support::{Addr, Raw, Running, Transport, WAIT, frame, over_every_transport, request, until};

over_every_transport! {
    who_comes_too_fast_waits,
    handshakes_over_the_limit_wait,
    silent_handshakes_make_room,
    who_sends_too_many_bytes_is_held_to_the_rate,
    who_sends_too_many_bytes_may_be_closed_with_1008,
    control_frames_are_bytes,
}

/// A server that echoes, and tells.
fn spied(transport: Transport, settings: impl FnOnce(Server) -> Server) -> (Running, Seen) {
    let (spy, seen) = spy(|peer, message| {
        let _ = peer.send(message);
    });
    (transport.serve(settings, spy), seen)
}

/// The status that a handshake is answered with, and the connection.
fn status(mut raw: Raw, addr: Addr) -> (u16, Raw) {
    raw.write(request(addr).as_bytes());
    (raw.head()[9..12].parse().unwrap(), raw)
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

// ---- accept_rate ----

fn who_comes_too_fast_waits(transport: Transport) {
    for loops in [1, 2] {
        let (server, _) = spied(transport, |s| s.loops(loops).accept_rate(20, 2));
        let begun = Instant::now();
        let open: Vec<_> = (0..8).map(|_| Raw::open(server.addr)).collect();
        // Nobody is turned away, and the burst is all that came at once.
        assert_eq!(server.handle.connections(), open.len());
        let least = Duration::from_millis(6 * 1000 / 20 - 20);
        assert!(begun.elapsed() >= least, "{:?}", begun.elapsed());
    }
}

#[cfg(target_os = "linux")]
#[test]
fn who_comes_too_fast_from_one_address_is_429() {
    let (server, _) = spied(Transport::Plain, |s| s.accept_rate_per_ip(1, 2));
    let from = |ip| status(connect_from(ip, server.addr), server.addr).0;
    let begun = Instant::now();
    assert_eq!([from("127.0.0.1"), from("127.0.0.1")], [101, 101]);
    // Gone or not, they have come.
    until("both have left", || server.handle.connections() == 0);
    assert_eq!(from("127.0.0.1"), 429);
    assert_eq!(from("127.0.0.2"), 101, "others come at a rate of their own");
    until("there is a token again", || from("127.0.0.1") == 101);
    assert!(begun.elapsed() >= Duration::from_millis(980));
}

// ---- max_handshakes ----

fn handshakes_over_the_limit_wait(transport: Transport) {
    for loops in [1, 2] {
        let (server, _) = spied(transport, |s| s.loops(loops).max_handshakes(1));
        let mut opening = Raw::connect(server.addr);
        until("it is in", || server.handle.connections() == 1);
        let addr = server.addr;
        std::thread::scope(|scope| {
            let waiting = scope.spawn(move || status(Raw::connect(addr), addr).0);
            // It would be in long ago, if it were let in.
            std::thread::sleep(Duration::from_millis(300));
            assert_eq!(server.handle.connections(), 1);
            // A plain request takes a place too, until it is answered.
            opening.write(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n");
            assert_eq!(opening.response().0, 426);
            assert_eq!(waiting.join().unwrap(), 101);
        });
        // Who is open is out of the way.
        let open: Vec<_> = (0..3).map(|_| Raw::open(server.addr)).collect();
        drop(open);
    }
}

fn silent_handshakes_make_room(transport: Transport) {
    let (server, _) = spied(transport, |s| s.max_handshakes(2));
    let _silent = [Raw::connect(server.addr), Raw::connect(server.addr)];
    let begun = Instant::now();
    assert_eq!(status(Raw::connect(server.addr), server.addr).0, 101);
    // Much sooner than the 10 s of the handshake timeout.
    assert!(begun.elapsed() < Duration::from_secs(8));
}

// ---- byte_rate ----

fn rate(per_second: u32, burst: u32, over: OverRate) -> ByteRate {
    ByteRate {
        per_second,
        burst,
        over,
    }
}

fn who_sends_too_many_bytes_is_held_to_the_rate(transport: Transport) {
    for workers in [0, 2] {
        let held = rate(20_000, 1000, OverRate::Wait);
        let (server, seen) = spied(transport, |s| s.workers(workers).byte_rate(held));
        let mut raw = Raw::open(server.addr);
        let begun = Instant::now();
        // Each is longer than the burst: it passes, and whatever follows has to wait for it.
        for n in 0..6 {
            raw.write(&frame(0x82, &numbered(n, 2000)));
            assert_eq!(number(&raw.frame().unwrap().1), n);
        }
        let least = Duration::from_millis(9000 * 1000 / 20_000 - 20);
        assert!(begun.elapsed() >= least, "{:?}", begun.elapsed());
        assert!(seen.closed.try_recv().is_err());
    }
}

fn who_sends_too_many_bytes_may_be_closed_with_1008(transport: Transport) {
    for workers in [0, 2] {
        let allowed = rate(1, 1000, OverRate::Close);
        let (server, seen) = spied(transport, |s| s.workers(workers).byte_rate(allowed));
        let mut raw = Raw::open(server.addr);
        // 6 bytes of header for the first, 8 for the second.
        raw.write(&frame(0x82, &numbered(0, 94)));
        raw.write(&frame(0x82, &numbered(1, 892)));
        assert_eq!(number(&raw.frame().unwrap().1), 0);
        assert_eq!(number(&raw.frame().unwrap().1), 1);
        raw.write(&frame(0x82, &numbered(2, 900)));
        assert_eq!(raw.close_code(), Some(1008));
        drop(raw);
        let end = seen.end();
        assert_eq!(
            (end.code(), end.cause()),
            (CloseCode::Policy, CloseCause::RateLimit)
        );
    }
}

fn control_frames_are_bytes(transport: Transport) {
    let allowed = rate(1, 1000, OverRate::Close);
    let (server, _) = spied(transport, |s| s.byte_rate(allowed));
    let mut raw = Raw::open(server.addr);
    for _ in 0..20 {
        raw.write(&frame(0x89, &[b'.'; 100]));
    }
    assert_eq!(raw.close_code(), Some(1008));
}
