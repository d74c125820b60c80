//! What is left of a server when it is gone: nothing. In a file of its own, as it looks at the whole
//! process.
#![cfg(target_os = "linux")]

mod support;

use std::io::Write;
use std::net::Shutdown;
use std::time::Duration;

use crossbeam_channel::{RecvTimeoutError, bounded};
use framemill::{
    Accept, CloseCode, Handler, Message, MessageRate, OverRate, Peer, Request, Response, StatusCode,
};
use support::spy::{narrow, numbered, upgraded};
use support::{
    Raw, Running, Transport, WAIT, alone, client, descriptors, frame, over_every_transport,
    request, until,
};

over_every_transport! {
    nothing_is_left,
}

/// Threads of this process that framemill started.
fn threads() -> usize {
    let tasks = std::fs::read_dir("/proc/self/task").unwrap();
    let ours = tasks.filter(|task| {
        let comm = task.as_ref().unwrap().path().join("comm");
        // A thread may end meanwhile.
        std::fs::read_to_string(comm).is_ok_and(|name| name.starts_with("framemill-"))
    });
    ours.count()
}

/// Does what the text of a message says.
struct Obedient;

impl Handler for Obedient {
    type Session = Vec<Peer>;

    fn open(&self, request: &Request, peer: &Peer) -> Result<Accept<Vec<Peer>>, Response> {
        match request.path() {
            "/refused" => Err(StatusCode::FORBIDDEN.into()),
            "/panic" => panic!("as you wish"),
            // The session keeps the peer, which keeps the session: until the end.
            _ => Ok(Accept::new(vec![peer.clone()])),
        }
    }

    fn message(&self, _: &mut Vec<Peer>, peer: &Peer, message: Message) {
        match message.to_text().unwrap_or_default() {
            "close" => assert!(peer.close(CloseCode::Normal, "")),
            "panic" => panic!("as you wish"),
            "overflow" => while peer.send(numbered(0, 10_000)).is_ok() {},
            _ => drop(peer.send(message)),
        }
    }
}

fn start(transport: Transport, workers: usize) -> Running {
    let rate = MessageRate {
        per_second: 1000,
        burst: 50,
        over: OverRate::Close,
    };
    transport.serve_narrow(
        |s| {
            s.loops(2)
                .workers(workers)
                .max_message(1 << 20)
                .message_rate(rate)
                .handshake_timeout(Duration::from_secs(1))
                .close_timeout(Duration::from_millis(200))
        },
        Obedient,
    )
}

/// One connection that ends in one of many ways.
fn come_and_go(server: &Running, way: usize) {
    let addr = server.addr;
    let asking = |path: &str| {
        let mut raw = Raw::connect(addr);
        raw.write(request(addr).replacen("/", path, 1).as_bytes());
        raw
    };
    match way {
        0 => drop(Raw::connect(addr)),
        1 => support::reset(Raw::connect(addr).stream),
        2 => Raw::connect(addr).write(&request(addr).as_bytes()[..50]),
        3 => drop(Raw::open(addr)),
        4 => support::reset(Raw::open(addr).stream),
        5 => {
            let mut raw = Raw::open(addr);
            raw.write(&frame(0x88, b"\x03\xE8"));
            assert_eq!(raw.close_code(), Some(1000));
            assert_eq!(raw.frame(), None);
        }
        6 => {
            let mut raw = Raw::open(addr);
            raw.write(&frame(0x81, b"half"));
            raw.stream.shutdown(Shutdown::Write).unwrap();
            assert_eq!(raw.frame(), Some((0x81, b"half".to_vec())));
            assert_eq!(raw.frame(), None);
        }
        7 => {
            let mut client = client(addr);
            client.send(Message::text("close")).unwrap();
            while client.read().is_ok() {}
        }
        8 => {
            let mut raw = Raw::open(addr);
            raw.write(&frame(0x81, b"panic"));
            assert_eq!(raw.close_code(), Some(1011));
        }
        9 => {
            let mut raw = Raw::open(addr);
            raw.write(b"\xFF\xFF\xFF");
            assert_eq!(raw.close_code(), Some(1002));
        }
        10 => {
            let mut raw = Raw::open(addr);
            raw.write(&frame(0x81, &[0xFF]));
            assert_eq!(raw.close_code(), Some(1007));
        }
        11 => {
            // Doesn't read, doesn't answer, and leaves before the message is whole.
            let mut raw = Raw::open(addr);
            let message = frame(0x82, &[7; 100_000]);
            raw.write(&message[..60_000]);
        }
        12 => {
            let mut raw = upgraded(narrow(addr));
            raw.write(&frame(0x81, b"overflow"));
            assert_eq!(raw.close_code(), Some(1013));
        }
        13 => {
            let mut raw = upgraded(narrow(addr));
            raw.write(&frame(0x81, b"overflow"));
            support::reset(raw.stream);
        }
        14 => {
            let mut raw = Raw::open(addr);
            raw.write(&frame(0x81, b"too fast").repeat(100));
            assert_eq!(raw.close_code(), Some(1008));
        }
        15 => assert_eq!(asking("/refused").response().0, 403),
        16 => assert_eq!(asking("/panic").response().0, 500),
        17 => {
            let mut raw = Raw::connect(addr);
            raw.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n");
            assert_eq!(raw.response().0, 426);
        }
        18 => {
            let mut raw = Raw::connect(addr);
            raw.write(b"nonsense\r\n\r\n");
            assert_eq!(raw.response().0, 400);
        }
        // Not a word of TLS, half of the first, or nonsense, which is hung up on.
        #[cfg(feature = "tls")]
        19..=21 if matches!(addr, support::Addr::Tls(_)) => {
            let mut raw = Raw::connect(addr.tcp());
            let said = [b"" as &[u8], b"\x16\x03\x01\x02\x00\x01", b"nonsense"];
            raw.write(said[way - 19]);
            if way == 21 {
                assert_eq!(raw.rest(), b"");
            }
        }
        _ => {
            // Closed by the server, and the client doesn't answer.
            let mut raw = Raw::open(addr);
            raw.write(&frame(0x81, b"close"));
            assert_eq!(raw.close_code(), Some(1000));
            assert_eq!(raw.frame(), None);
        }
    }
}

const WAYS: usize = 23;

fn nothing_is_left(transport: Transport) {
    let _alone = alone();
    for workers in [0, 3] {
        let before = descriptors();
        assert_eq!(threads(), 0);
        let server = start(transport, workers);
        until("all threads are there", || threads() == 2 + workers);
        let idle = descriptors();
        let rounds = if transport == Transport::Plain { 10 } else { 3 };
        for n in 0..rounds * WAYS {
            come_and_go(&server, n % WAYS);
        }
        until("all connections are gone", || {
            server.handle.connections() == 0
        });
        until("their descriptors, too", || descriptors() == idle);

        // Some are there at the end, and don't go by themselves.
        let _silent: Vec<Raw> = (0..5).map(|_| Raw::open(server.addr)).collect();
        assert!(!server.handle.shutdown(Duration::from_millis(100)));
        assert_eq!(threads(), 0);
        drop(server);
        drop(_silent);
        assert_eq!(descriptors(), before);
    }
}

#[test]
fn a_thread_that_was_left_behind_ends_in_the_end() {
    let _alone = alone();
    let before = descriptors();
    let (release, gate) = bounded::<()>(0);
    let (entered, inside) = bounded(1);
    let server = support::serve(
        |s| s.workers(2),
        move |peer: &Peer, _: Message| {
            entered.send(()).unwrap();
            let _ = gate.recv_timeout(WAIT);
            peer.send("too late")
        },
    );
    let mut raw = Raw::open(server.addr);
    raw.stream.write_all(&frame(0x81, b"block")).unwrap();
    inside.recv_timeout(WAIT).unwrap();
    assert!(!server.handle.shutdown(Duration::from_millis(100)));
    assert_eq!(threads(), 1);
    drop((server, raw));
    drop(release);
    until("the thread has ended", || threads() == 0);
    until("all is closed", || descriptors() == before);
}

/// A server that is never started leaves nothing, either.
#[test]
fn a_server_that_is_not_started() {
    let _alone = alone();
    let before = descriptors();
    let server = framemill::Server::bind("127.0.0.1:0").unwrap();
    let handle = server.handle();
    assert!(descriptors() > before);
    // A timer that keeps the server that keeps the timer.
    let (kept, is_kept) = bounded::<()>(0);
    let both = (handle.clone(), kept);
    handle.after(WAIT, move || drop(both));
    drop((server, handle));
    assert_eq!(descriptors(), before);
    assert_eq!(
        is_kept.recv_timeout(WAIT / 2),
        Err(RecvTimeoutError::Disconnected)
    );
}
