//! Sessions, and other things of a handler's, whose `Drop` panics. It is user code like the methods of a handler, so wherever the
//! engine drops one, the thread it happens on must live on: with one loop and at most one
//! worker, every answer after that shows that it did.

mod support;

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crossbeam_channel::{Receiver, Sender, unbounded};
use framemill::{
    Accept, Bytes, CloseCause, CloseReason, Handler, Message, Peer, Request, Response, Server,
    StatusCode,
};
use support::spy::{narrow, spy, upgraded};
use support::{
    Addr, Raw, Running, Stream, Transport, WAIT, client, echoes, frame, over_every_transport,
    request, reset, until,
};

over_every_transport! {
    in_an_opening_that_cannot_be,
    at_the_end,
    where_nobody_looks,
    at_the_end_of_the_server,
    of_what_a_handler_panics_with,
    of_the_body_of_a_response,
    of_what_a_message_is_made_of,
}

/// How often each thing is done: more often than there are threads that could survive one each.
const TIMES: usize = 5;

/// A panic, without the message that it prints.
fn panics() -> ! {
    resume_unwind(Box::new("as the test wants it"))
}

/// Counts its drops; panics in them, if it was told to.
struct Session {
    dropped: Arc<AtomicUsize>,
    panics: bool,
}

impl Drop for Session {
    fn drop(&mut self) {
        self.dropped.fetch_add(1, Ordering::SeqCst);
        if self.panics {
            panics();
        }
    }
}

/// It may be the body of a response.
impl AsRef<[u8]> for Session {
    fn as_ref(&self) -> &[u8] {
        b"a body"
    }
}

/// Echoes. The path says what to do in `open`; the sessions of all but `/` panic when dropped.
struct Dropping {
    dropped: Arc<AtomicUsize>,
    ends: Sender<CloseCause>,
}

impl Handler for Dropping {
    type Session = Session;

    fn open(&self, request: &Request, _: &Peer) -> Result<Accept<Session>, Response> {
        let session = Session {
            dropped: self.dropped.clone(),
            panics: request.path() != "/",
        };
        if request.path() == "/no" {
            return Err(Response::new(StatusCode::FORBIDDEN).body(Bytes::from_owner(session)));
        }
        let accept = Accept::new(session);
        Ok(match request.path() {
            "/unoffered" => accept.subprotocol("chat"),
            _ => accept,
        })
    }

    fn message(&self, _: &mut Session, peer: &Peer, message: Message) {
        if message.to_text().is_ok_and(|text| text == "panic") {
            panics();
        }
        let _ = peer.send(message);
    }

    fn http(&self, _: &Request) -> Response {
        Response::ok().body(Bytes::from_owner(Session {
            dropped: self.dropped.clone(),
            panics: true,
        }))
    }

    fn close(&self, session: Session, _: &Peer, reason: &CloseReason) {
        // The test may be through.
        let _ = self.ends.send(reason.cause());
        drop(session);
    }
}

/// A server with one loop, what it counts, and how its connections end.
fn dropping(
    transport: Transport,
    workers: usize,
) -> (Running, Arc<AtomicUsize>, Receiver<CloseCause>) {
    let dropped = Arc::new(AtomicUsize::new(0));
    let (ends, causes) = unbounded();
    let handler = Dropping {
        dropped: dropped.clone(),
        ends,
    };
    let server = transport.serve(|s| s.loops(1).workers(workers), handler);
    (server, dropped, causes)
}

fn open_at(addr: Addr, path: &str) -> Raw {
    let mut raw = Raw::connect(addr);
    let request = request(addr).replacen("GET /", &format!("GET {path}"), 1);
    raw.write(request.as_bytes());
    raw
}

/// Serves those that are there, and new ones.
fn assert_alive(server: &Running, old: &mut tungstenite::WebSocket<Stream>) {
    echoes(old, "still there?");
    let mut new = client(server.addr);
    echoes(&mut new, "anybody there?");
    new.close(None).unwrap();
    while new.read().is_ok() {}
}

/// `open` accepts, but not as it may: the session goes to `close` at once.
fn in_an_opening_that_cannot_be(transport: Transport) {
    for workers in [0, 1] {
        let (server, dropped, ends) = dropping(transport, workers);
        let mut old = client(server.addr);
        for n in 1..=TIMES {
            let (status, ..) = open_at(server.addr, "/unoffered").response();
            assert_eq!(status, 500);
            assert_eq!(ends.recv_timeout(WAIT), Ok(CloseCause::HandshakeTimeout));
            until("the session is dropped", || {
                // And those of the visitors of `assert_alive`.
                dropped.load(Ordering::SeqCst) == 2 * n - 1
            });
            assert_alive(&server, &mut old);
            assert_eq!(ends.recv_timeout(WAIT), Ok(CloseCause::Handshake));
        }
        assert!(ends.is_empty(), "once for each");
    }
}

/// However a connection ends, its session goes with it.
fn at_the_end(transport: Transport) {
    let reset_cause = match transport.has_resets() {
        true => CloseCause::Transport,
        false => CloseCause::Eof,
    };
    let ends: [(fn(Raw), CloseCause); 5] = [
        (part, CloseCause::Handshake),
        (panic_and_part, CloseCause::Panic),
        (violate, CloseCause::InvalidUtf8),
        (drop, CloseCause::Eof),
        (|raw| reset(raw.stream), reset_cause),
    ];
    for workers in [0, 1] {
        let (server, dropped, causes) = dropping(transport, workers);
        let mut old = client(server.addr);
        let mut sessions = 0;
        for (end, cause) in std::iter::repeat_n(ends, TIMES).flatten() {
            let mut raw = open_at(server.addr, "/panics");
            assert!(raw.head().starts_with("HTTP/1.1 101 "));
            end(raw);
            assert_eq!(causes.recv_timeout(WAIT), Ok(cause));
            sessions += 1;
            until("the session is dropped", || {
                dropped.load(Ordering::SeqCst) == sessions
            });
            assert_alive(&server, &mut old);
            assert_eq!(causes.recv_timeout(WAIT), Ok(CloseCause::Handshake));
            sessions += 1;
        }
    }
}

fn part(mut raw: Raw) {
    raw.write(&frame(0x88, b"\x03\xE8"));
    assert_eq!(raw.close_code(), Some(1000));
    assert_eq!(raw.frame(), None);
}

/// The session of a handler that panicked is kept, and dropped in the end.
fn panic_and_part(mut raw: Raw) {
    raw.write(&frame(0x81, b"panic"));
    assert_eq!(raw.close_code(), Some(1011));
    raw.write(&frame(0x88, b"\x03\xF3"));
    assert_eq!(raw.frame(), None);
}

fn violate(mut raw: Raw) {
    raw.write(&frame(0x81, b"\xFF"));
    assert_eq!(raw.close_code(), Some(1007));
    assert_eq!(raw.frame(), None);
}

/// The default `close` just drops the session.
fn where_nobody_looks(transport: Transport) {
    struct Silent(Arc<AtomicUsize>);

    impl Handler for Silent {
        type Session = Session;

        fn open(&self, request: &Request, _: &Peer) -> Result<Accept<Session>, Response> {
            Ok(Accept::new(Session {
                dropped: self.0.clone(),
                panics: request.path() != "/",
            }))
        }

        fn message(&self, _: &mut Session, peer: &Peer, message: Message) {
            let _ = peer.send(message);
        }
    }

    for workers in [0, 1] {
        let dropped = Arc::new(AtomicUsize::new(0));
        let server = transport.serve(|s| s.loops(1).workers(workers), Silent(dropped.clone()));
        let mut old = client(server.addr);
        for n in 1..=TIMES {
            let mut raw = open_at(server.addr, "/panics");
            assert!(raw.head().starts_with("HTTP/1.1 101 "));
            part(raw);
            until("the session is dropped", || {
                dropped.load(Ordering::SeqCst) == 2 * n - 1
            });
            assert_alive(&server, &mut old);
            until("the other session is dropped", || {
                dropped.load(Ordering::SeqCst) == 2 * n
            });
        }
    }
}

/// The last sessions go when the server does, and hold nothing up.
fn at_the_end_of_the_server(transport: Transport) {
    const SESSIONS: usize = 10;
    for workers in [0, 1] {
        let (server, dropped, causes) = dropping(transport, workers);
        let raws: Vec<Raw> = (0..SESSIONS)
            .map(|_| {
                let mut raw = open_at(server.addr, "/panics");
                assert!(raw.head().starts_with("HTTP/1.1 101 "));
                raw
            })
            .collect();
        // Cuts them off; the handler is told all the same.
        server.handle.shutdown(std::time::Duration::ZERO);
        for _ in 0..SESSIONS {
            assert_eq!(causes.recv_timeout(WAIT), Ok(CloseCause::Shutdown));
        }
        until("all are dropped", || {
            dropped.load(Ordering::SeqCst) == SESSIONS
        });
        drop(raws);
    }
}

/// What a handler panics with may panic in turn when it is dropped.
fn of_what_a_handler_panics_with(transport: Transport) {
    let bomb = |dropped: &Arc<AtomicUsize>| Session {
        dropped: dropped.clone(),
        panics: true,
    };
    for workers in [0, 1] {
        let dropped = Arc::new(AtomicUsize::new(0));
        let counter = dropped.clone();
        let handler = move |peer: &Peer, message: Message| {
            if message.to_text().is_ok_and(|text| text == "panic") {
                resume_unwind(Box::new(bomb(&counter)));
            }
            peer.send(message)
        };
        let server = transport.serve(|s| s.loops(1).workers(workers), handler);
        let mut old = client(server.addr);
        for n in 1..=TIMES {
            panic_and_part(Raw::open(server.addr));
            assert_eq!(dropped.load(Ordering::SeqCst), n);
            assert_alive(&server, &mut old);
        }
    }
}

fn of_the_body_of_a_response(transport: Transport) {
    for workers in [0, 1] {
        let (server, dropped, _ends) = dropping(transport, workers);
        let mut old = client(server.addr);
        for n in 0..TIMES {
            let mut page = Raw::connect(server.addr);
            page.write(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n");
            let (status, _, body) = page.response();
            assert_eq!((status, &body[..]), (200, &b"a body"[..]));
            let (status, _, body) = open_at(server.addr, "/no").response();
            assert_eq!((status, &body[..]), (403, &b"a body"[..]));
            until("both are dropped", || {
                // And the sessions of the visitors of `assert_alive`.
                dropped.load(Ordering::SeqCst) == 3 * n + 2
            });
            assert_alive(&server, &mut old);
            until("the visitor is gone", || {
                dropped.load(Ordering::SeqCst) == 3 * n + 3
            });
        }
    }
}

/// What a message is made of may be of the user's, too. Where it is large it is kept until it is written, or until
/// its receiver is gone.
fn of_what_a_message_is_made_of(transport: Transport) {
    /// Large enough to be kept as it is.
    struct Large(Arc<AtomicUsize>);

    impl AsRef<[u8]> for Large {
        fn as_ref(&self) -> &[u8] {
            &[b'x'; 100_000]
        }
    }

    impl Drop for Large {
        fn drop(&mut self) {
            self.0.fetch_add(1, Ordering::SeqCst);
            panics();
        }
    }

    for workers in [0, 1] {
        let dropped = Arc::new(AtomicUsize::new(0));
        let large = || Bytes::from_owner(Large(dropped.clone()));
        let (handler, seen) = spy(|peer: &Peer, message| drop(peer.send(message)));
        let settings = |s: Server| s.loops(1).workers(workers).outbound_limit(500_000);
        let server = transport.serve_narrow(settings, handler);
        let mut old = client(server.addr);
        seen.peer().subscribe("topic");
        let mut gone = 0;
        for _ in 0..TIMES {
            // The loop may be done with it before this thread is, which then has the last of it.
            let _ = catch_unwind(AssertUnwindSafe(|| server.handle.broadcast(large())));
            assert_eq!(old.read().unwrap().len(), 100_000);
            let publish = || server.handle.publish("topic", large());
            let _ = catch_unwind(AssertUnwindSafe(publish));
            assert_eq!(old.read().unwrap().len(), 100_000);
            gone += 2;
            until("they are dropped", || {
                dropped.load(Ordering::SeqCst) == gone
            });

            let raw = upgraded(narrow(server.addr));
            let peer = seen.peer();
            for _ in 0..3 {
                peer.send(large()).unwrap();
                peer.send_latest("key", large()).unwrap();
            }
            reset(raw.stream);
            gone += 6;
            until("they are dropped", || {
                dropped.load(Ordering::SeqCst) == gone
            });
            assert_alive(&server, &mut old);
            seen.peer();
        }
    }
}
