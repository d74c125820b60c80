//! The client, against framemill's own server, tungstenite's as an independent one, and a raw one for
//! everything that no decent server does.

mod support;

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::panic::panic_any;
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded, unbounded};
use framemill::{
    Accept, Client, ClientEvent, ClientHandler, Clients, CloseCause, CloseCode, CloseReason, Error,
    Handler, HeaderMap, HeaderName, HeaderValue, Initiator, Message, Origin, Peer, Reconnect,
    Request, Response, Retry, RetryReason, Sent, Server, StatusCode, connect, header,
};
use support::remote::{
    Remote, answering, client, each_connection, end, head, message, opening, switching,
};
use support::spy::{number, numbered};
use support::{Addr, Running, WAIT, echo, no_more, serve, until};

// ---- kit ----

fn url(addr: impl Into<Addr>) -> String {
    format!("ws://{}/", addr.into())
}

fn next(events: &Receiver<ClientEvent>) -> ClientEvent {
    events.recv_timeout(WAIT).expect("an event")
}

/// Tells of everything that happens.
struct Tell(Sender<Told>);

#[derive(Debug)]
enum Told {
    Open(Peer, HeaderMap),
    Message(Message),
    Close(CloseReason),
    Retry(u32, Duration, String),
    Error(String),
}

impl ClientHandler for Tell {
    fn open(&mut self, peer: &Peer, headers: &HeaderMap) {
        let _ = self.0.send(Told::Open(peer.clone(), headers.clone()));
    }

    fn message(&mut self, _: &Peer, message: Message) {
        let _ = self.0.send(Told::Message(message));
    }

    fn close(&mut self, _: &Peer, reason: &CloseReason) {
        let _ = self.0.send(Told::Close(reason.clone()));
    }

    fn retry(&mut self, retry: &Retry) {
        let reason = match &retry.reason {
            RetryReason::Closed(reason) => reason.to_string(),
            RetryReason::Failed(error) => error.to_string(),
            _ => unreachable!(),
        };
        let _ = self.0.send(Told::Retry(retry.attempt, retry.delay, reason));
    }

    fn error(&mut self, error: &Error) {
        let _ = self.0.send(Told::Error(error.to_string()));
    }
}

fn tell() -> (Tell, Receiver<Told>) {
    let (sender, told) = unbounded();
    (Tell(sender), told)
}

fn hear(told: &Receiver<Told>) -> Told {
    told.recv_timeout(WAIT).expect("something happens")
}

/// Does what a text says, and sends everything else back.
fn obedient() -> Running {
    serve(
        |s| s.workers(2),
        |peer: &Peer, message: Message| match message.to_text().unwrap_or_default() {
            "close" => drop(peer.close(CloseCode::Library(4001), "as you wish")),
            "bare close" => drop(peer.close(CloseCode::Status, "")),
            "ping" => drop(peer.send(Message::Ping("are you there?".into()))),
            _ => drop(peer.send(message)),
        },
    )
}

// ---- messages ----

#[test]
fn echoes_of_all_sizes_and_kinds_in_order() {
    let server = serve(
        |s| s.workers(2).outbound_limit(64 << 20),
        |peer: &Peer, message| peer.send(message),
    );
    for workers in [0, 2] {
        let clients = Clients::start(1, workers).unwrap();
        let settings = client(server.addr).outbound_limit(64 << 20);
        let (handle, events) = clients.connect(settings).unwrap();
        let sizes = [0, 1, 125, 126, 4095, 4096, 65535, 65536, 1 << 20];
        for size in sizes {
            handle.send(vec![size as u8; size]).unwrap();
            handle.send("x".repeat(size)).unwrap();
        }
        for size in sizes {
            assert_eq!(message(&events), Message::binary(vec![size as u8; size]));
            assert_eq!(message(&events), Message::text("x".repeat(size)));
        }
        for n in 0..5000 {
            handle.send(numbered(n, 20)).unwrap();
        }
        for n in 0..5000 {
            assert_eq!(number(&message(&events).into_data()), n);
        }
        assert!(clients.shutdown(WAIT));
    }
}

#[test]
fn connects_with_one_line() {
    let server = echo();
    let (peer, events) = connect(url(server.addr)).unwrap();
    peer.send("hello").unwrap();
    assert_eq!(message(&events), Message::text("hello"));
    assert_eq!(peer.remote_addr(), server.addr.tcp().into());
    assert!(peer.close(CloseCode::Normal, "done"));
    let reason = end(&events);
    assert_eq!(reason.code(), CloseCode::Normal);
    assert_eq!(reason.text(), "done");
    assert_eq!(reason.initiator(), Initiator::Local);
    assert!(reason.is_clean());
    no_more(&events);
    until("the server has seen it", || {
        server.handle.connections() == 0
    });
}

/// What a thread sends while another receives.
#[test]
fn full_duplex_from_several_threads() {
    let server = echo();
    let (peer, events) = connect(url(server.addr)).unwrap();
    const EACH: u32 = 2000;
    thread::scope(|scope| {
        for sender in 0..4u32 {
            let peer = &peer;
            scope.spawn(move || {
                for n in 0..EACH {
                    peer.send(numbered(sender << 16 | n, 16)).unwrap();
                }
            });
        }
        let mut seen = [0; 4];
        for _ in 0..4 * EACH {
            let n = number(&message(&events).into_data());
            let sender = (n >> 16) as usize;
            assert_eq!(n & 0xFFFF, seen[sender], "in the order of its calls");
            seen[sender] += 1;
        }
    });
}

#[test]
fn fragments_and_control_frames_in_between() {
    // In the same packet as the head.
    let mut frames = b"\x01\x03one\x89\x02hi\x00\x04-two\x8A\x00\x80\x06-three".to_vec();
    frames.extend(b"\x82\x00");
    let (addr, remotes) = opening("", frames);
    let (_peer, events) = connect(url(addr)).unwrap();
    assert_eq!(message(&events), Message::text("one-two-three"));
    assert_eq!(message(&events), Message::binary(vec![]));
    let (_, mut remote) = remotes.recv_timeout(WAIT).unwrap();
    assert_eq!(remote.frame(), Some((0x8A, b"hi".to_vec())));
}

/// Every way to cut the answer and the frame behind it.
#[test]
fn an_answer_in_two_pieces() {
    const CUTS: usize = 200;
    let (tell, codes) = unbounded();
    let mut cuts = 0..CUTS;
    let addr = each_connection(move |mut stream| {
        let request = head(&mut stream);
        let mut answer = b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n".to_vec();
        answer.extend(switching(&request, ""));
        answer.extend(b"\x81\x05hello");
        stream.set_nodelay(true).unwrap();
        let (first, second) = answer.split_at(cuts.next().unwrap().min(answer.len()));
        stream.write_all(first).unwrap();
        stream.write_all(second).unwrap();
        tell.send(Remote(stream).close_code()).unwrap();
    });
    let clients = Clients::start(1, 0).unwrap();
    for _ in 0..CUTS {
        let (handle, events) = clients.connect(client(addr)).unwrap();
        assert_eq!(message(&events), Message::text("hello"));
        handle.close(CloseCode::Normal, "");
        assert_eq!(codes.recv_timeout(WAIT), Ok(Some(1000)));
    }
}

#[test]
fn pings_of_the_server_are_answered() {
    let server = obedient();
    let (peer, events) = connect(url(server.addr)).unwrap();
    peer.send("ping").unwrap();
    peer.send("still here").unwrap();
    assert_eq!(message(&events), Message::text("still here"));
}

#[test]
fn latency_is_measured_and_silence_is_noticed() {
    let server = echo();
    let settings = client(server.addr).ping(Duration::from_millis(20), WAIT);
    let (handle, _events) = settings.connect().unwrap();
    let peer = handle.peer().unwrap();
    until("a pong has come", || peer.latency().is_some());

    // This one never answers.
    let (addr, _remotes) = opening("", Vec::new());
    let patience = Duration::from_millis(50);
    let (_handle, events) = client(addr).ping(patience, patience).connect().unwrap();
    let reason = end(&events);
    assert_eq!(reason.cause(), CloseCause::NoPong);
    assert_eq!(reason.code(), CloseCode::Abnormal);
}

// ---- closing ----

#[test]
fn the_server_closes() {
    let server = obedient();
    for (order, code, text) in [
        ("close", CloseCode::Library(4001), "as you wish"),
        ("bare close", CloseCode::Status, ""),
    ] {
        let (peer, events) = connect(url(server.addr)).unwrap();
        peer.send(order).unwrap();
        let reason = end(&events);
        assert_eq!((reason.code(), reason.text()), (code, text));
        assert_eq!(reason.initiator(), Initiator::Peer);
        assert!(reason.is_clean());
        assert!(peer.is_closed());
        assert!(peer.send("too late").is_err());
    }
}

/// The server says all and hangs up, and what the client answers meanwhile can't be written.
#[test]
fn a_server_that_hangs_up_before_it_is_answered() {
    const MESSAGES: u32 = 5000;
    let said: Vec<u8> = (0..MESSAGES)
        .flat_map(|n| [&[0x82, 4][..], &n.to_be_bytes()].concat())
        .chain(*b"\x88\x02\x0F\xA1")
        .collect();
    for workers in [0, 2] {
        let (addr, remotes) = opening("", said.clone());
        let clients = Clients::start(1, workers).unwrap();
        let (handle, events) = clients.connect(client(addr)).unwrap();
        drop(remotes.recv_timeout(WAIT).unwrap());
        for n in 0..MESSAGES {
            assert_eq!(message(&events).into_data()[..], n.to_be_bytes());
            let _ = handle.send("and then?");
        }
        let reason = end(&events);
        assert_eq!(reason.code(), CloseCode::Library(4001));
        assert_eq!(reason.cause(), CloseCause::Handshake);
        assert_eq!(reason.initiator(), Initiator::Peer);
    }
}

/// The client waits for the answer to its close frame, and for the server to end TCP.
#[test]
fn closing_waits_for_the_answer() {
    let (addr, remotes) = opening("", Vec::new());
    let clients = Clients::start(1, 1).unwrap();
    let (handle, events) = clients.connect(client(addr)).unwrap();
    thread::scope(|scope| {
        let closing = scope.spawn(|| handle.close_and_wait(CloseCode::Normal, "bye"));
        let (_, mut remote) = remotes.recv_timeout(WAIT).unwrap();
        assert_eq!(remote.close_code(), Some(1000));
        // Nothing is told before the answer.
        assert!(events.recv_timeout(Duration::from_millis(100)).is_err());
        assert!(!closing.is_finished());
        remote.write(b"\x81\x04last\x88\x02\x03\xE8");
        // §7.1.1: the client doesn't hang up before us, not even its half.
        let Remote(mut stream) = remote;
        stream
            .set_read_timeout(Some(Duration::from_millis(300)))
            .unwrap();
        let heard = stream.read(&mut [0]).map_err(|error| error.kind());
        assert_eq!(heard, Err(ErrorKind::WouldBlock));
        drop(stream);
        let reason = closing.join().unwrap().expect("it was open");
        assert!(reason.is_clean());
        assert_eq!(reason.code(), CloseCode::Normal);
    });
    assert!(handle.has_ended() && !handle.is_open() && handle.peer().is_none());
    assert!(!handle.close(CloseCode::Normal, ""));
    assert!(end(&events).is_clean());
    until("the socket is closed", || clients.connections() == 0);
}

#[test]
fn a_server_that_does_not_answer_the_close() {
    let (addr, _remotes) = opening("", Vec::new());
    let settings = client(addr).close_timeout(Duration::from_millis(50));
    let (handle, events) = settings.connect().unwrap();
    let reason = handle.close_and_wait(CloseCode::Normal, "").unwrap();
    assert_eq!(reason.cause(), CloseCause::CloseTimeout);
    assert!(!reason.is_clean());
    assert_eq!(end(&events), reason);
}

#[test]
fn codes_that_must_not_be_sent() {
    let server = echo();
    let (handle, _events) = client(server.addr).connect().unwrap();
    for code in [CloseCode::Abnormal, CloseCode::Tls, CloseCode::from(1004)] {
        assert!(!handle.close(code, ""));
    }
    assert!(handle.is_open());
}

/// The rules that a server can break, and the code that each is answered with.
#[test]
fn violations_by_the_server() {
    let cases: [(&[u8], u16, CloseCause); 8] = [
        (
            b"\x81\x85\0\0\0\0hello",
            1002,
            CloseCause::Protocol("masked frame from a server"),
        ),
        (b"\xC1\x00", 1002, CloseCause::Protocol("reserved bit set")),
        (b"\x83\x00", 1002, CloseCause::Protocol("reserved opcode")),
        (
            b"\x80\x00",
            1002,
            CloseCause::Protocol("continuation of nothing"),
        ),
        (
            b"\x09\x00",
            1002,
            CloseCause::Protocol("fragmented control frame"),
        ),
        (b"\x81\x01\xFF", 1007, CloseCause::InvalidUtf8),
        (b"\x82\x7F\0\0\0\0\0\x20\0\0", 1009, CloseCause::TooBig),
        (
            b"\x88\x02\x03\xED",
            1002,
            CloseCause::Protocol("close code that must not be sent"),
        ),
    ];
    for (bytes, code, cause) in cases {
        let (addr, remotes) = opening("", [b"\x81\x04fine", bytes].concat());
        let (_peer, events) = connect(url(addr)).unwrap();
        assert_eq!(message(&events), Message::text("fine"));
        let (_, mut remote) = remotes.recv_timeout(WAIT).unwrap();
        assert_eq!(remote.close_code(), Some(code));
        // §7.1.7: and hangs up.
        assert_eq!(remote.0.read(&mut [0]).unwrap(), 0);
        let reason = end(&events);
        assert_eq!((reason.cause(), u16::from(reason.code())), (cause, code));
    }
}

#[test]
fn the_connection_breaks() {
    for reset in [false, true] {
        let (addr, remotes) = opening("", Vec::new());
        let (_peer, events) = connect(url(addr)).unwrap();
        let (_, Remote(stream)) = remotes.recv_timeout(WAIT).unwrap();
        let cause = if reset {
            support::reset(stream);
            CloseCause::Transport
        } else {
            drop(stream);
            CloseCause::Eof
        };
        let reason = end(&events);
        assert_eq!(reason.cause(), cause);
        assert_eq!(reason.code(), CloseCode::Abnormal);
    }
}

// ---- the opening handshake ----

struct Doorman;

impl Handler for Doorman {
    type Session = ();

    fn open(&self, request: &Request, peer: &Peer) -> Result<Accept<()>, Response> {
        match request.path() {
            "/401" => {
                let challenge = HeaderValue::from_static("Bearer");
                return Err(Response::unauthorized().header(header::WWW_AUTHENTICATE, challenge));
            }
            "/302" => {
                let elsewhere = HeaderValue::from_static("ws://example.com/");
                return Err(Response::new(StatusCode::FOUND).header(header::LOCATION, elsewhere));
            }
            _ => {}
        }
        let names: Vec<_> = request.subprotocols().collect();
        let seen = format!(
            "{} {} {} {} {}",
            request.path(),
            request.query().unwrap_or("-"),
            request.origin().unwrap_or("-"),
            request.header("x-test").unwrap_or("-"),
            names.join("+")
        );
        peer.send(seen).unwrap();
        let accept = Accept::new(()).header(header::SERVER, HeaderValue::from_static("doorman"));
        Ok(match names.last() {
            Some(name) => accept.subprotocol(*name),
            None => accept,
        })
    }

    fn message(&self, (): &mut (), _: &Peer, _: Message) {}
}

#[test]
fn what_the_server_sees_of_the_request() {
    let server = serve(|s| s.workers(2), Doorman);
    let (told, hears) = tell();
    let settings = Client::new(format!("ws://{}/a%20b?q=%C3%A4", server.addr))
        .unwrap()
        .origin("https://example.com")
        .header("X-Test", "yes")
        .header("Host", "elsewhere")
        .header("Sec-WebSocket-Key", "mine")
        .subprotocol("one")
        .subprotocol("two");
    let handle = settings.start(told).unwrap();
    let Told::Open(peer, headers) = hear(&hears) else {
        panic!("not an open");
    };
    assert_eq!(peer.subprotocol(), Some("two"));
    assert_eq!(headers[header::SERVER], "doorman");
    let Told::Message(seen) = hear(&hears) else {
        panic!("not a message");
    };
    let expected = "/a%20b q=%C3%A4 https://example.com yes one+two";
    assert_eq!(seen, Message::text(expected));
    assert!(handle.close(CloseCode::Away, ""));
    assert!(matches!(hear(&hears), Told::Close(reason) if reason.code() == CloseCode::Away));
    no_more(&hears);
}

#[test]
fn refusals_and_redirects() {
    let server = serve(|s| s.workers(2), Doorman);
    for (path, expected, name, value) in [
        (
            "401",
            StatusCode::UNAUTHORIZED,
            header::WWW_AUTHENTICATE,
            "Bearer",
        ),
        (
            "302",
            StatusCode::FOUND,
            header::LOCATION,
            "ws://example.com/",
        ),
    ] {
        match connect(format!("{}{path}", url(server.addr))) {
            Err(Error::Refused { status, headers }) => {
                assert_eq!(
                    (status, &headers[name]),
                    (expected, &HeaderValue::from_static(value))
                );
            }
            other => panic!("{other:?}"),
        }
    }
    let server = serve(|s| s.origin(Origin::SameHost), Doorman);
    let foreign = client(server.addr).origin("https://evil.example");
    let error = foreign.connect().unwrap_err();
    assert!(
        matches!(
            error,
            Error::Refused {
                status: StatusCode::FORBIDDEN,
                ..
            }
        ),
        "{error}"
    );
}

#[test]
fn answers_that_are_none() {
    type Answer = Box<dyn Fn(&str) -> Vec<u8> + Send>;
    let cases: Vec<(&str, Answer)> = vec![
        (
            "this is not HTTP/1",
            Box::new(|_| b"SSH-2.0-OpenSSH_9.6\r\n".to_vec()),
        ),
        (
            "this is not HTTP/1",
            Box::new(|_| b"HTTP/2 101\r\n\r\n".to_vec()),
        ),
        (
            "a line ends without a carriage return",
            Box::new(|_| b"HTTP/1.1 101 x\n\n".to_vec()),
        ),
        (
            "Sec-WebSocket-Accept does not answer the key",
            Box::new(|_| {
                b"HTTP/1.1 101 x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
                  Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n"
                    .to_vec()
            }),
        ),
        (
            "the server did not upgrade to websocket",
            Box::new(|request| {
                let answer = String::from_utf8(switching(request, "")).unwrap();
                answer.replace("websocket", "h2c").into_bytes()
            }),
        ),
        (
            "the server chose a subprotocol that was not offered",
            Box::new(|request| switching(request, "Sec-WebSocket-Protocol: chat\r\n")),
        ),
        (
            "the server chose an extension that was not offered",
            Box::new(|request| switching(request, "Sec-WebSocket-Extensions: permessage-x\r\n")),
        ),
        (
            "the head of the answer is too long",
            Box::new(|request| switching(request, &format!("X: {}\r\n", "x".repeat(9000)))),
        ),
        (
            "there are too many header fields",
            Box::new(|request| switching(request, &"X: y\r\n".repeat(65))),
        ),
        (
            "the head of the answer is too long",
            Box::new(|_| b"HTTP/1.1 100 Continue\r\n\r\n".repeat(1000)),
        ),
    ];
    for (why, answer) in cases {
        let (addr, _remotes) = answering(answer);
        match connect(url(addr)) {
            Err(Error::Handshake(reason)) => assert_eq!(reason, why),
            other => panic!("{other:?} instead of {why}"),
        }
    }
}

#[test]
fn no_answer_and_no_server() {
    // Nobody listens.
    let free = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = free.local_addr().unwrap();
    drop(free);
    match connect(url(addr)) {
        Err(Error::Connect {
            addr: tried,
            source,
        }) => {
            assert_eq!(tried, addr.to_string());
            assert_eq!(source.kind(), std::io::ErrorKind::ConnectionRefused);
        }
        other => panic!("{other:?}"),
    }
    // Takes connections, and says nothing.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = silent.local_addr().unwrap();
    let began = Instant::now();
    let settings = client(addr).handshake_timeout(Duration::from_millis(100));
    let error = settings.connect().unwrap_err();
    assert!(matches!(error, Error::Timeout), "{error}");
    assert!(began.elapsed() >= Duration::from_millis(100));
    // Hangs up instead.
    let addr = each_connection(drop);
    let error = connect(url(addr)).unwrap_err();
    assert!(matches!(error, Error::Connect { .. }), "{error}");
    // Half an answer.
    let addr = each_connection(|mut stream| {
        head(&mut stream);
        stream.write_all(b"HTTP/1.1 101 Switch").unwrap();
    });
    let error = connect(url(addr)).unwrap_err();
    assert!(matches!(error, Error::Connect { .. }), "{error}");
}

#[test]
fn names() {
    let server = echo();
    let port = server.addr.tcp().port();
    // Has an IPv6 address, too, on most machines, where nobody listens.
    let (peer, events) = connect(format!("ws://localhost:{port}/")).unwrap();
    peer.send("by name").unwrap();
    assert_eq!(message(&events), Message::text("by name"));
    match connect("ws://no-such-host.invalid/") {
        Err(Error::Resolve { host, .. }) => assert_eq!(host, "no-such-host.invalid"),
        // Without a resolver it takes its time.
        Err(Error::Timeout) => {}
        other => panic!("{other:?}"),
    }
}

#[test]
fn urls_and_settings_that_make_no_sense() {
    for wrong in [
        "",
        "localhost",
        "http://localhost",
        "ws://",
        "ws://h/#x",
        "ws://u:p@h/",
    ] {
        match Client::new(wrong) {
            Err(Error::Url { url, .. }) => assert!(!url.contains("u:p"), "{url}"),
            other => panic!("{other:?}"),
        }
    }
    let good = Client::new("ws://127.0.0.1:1/").unwrap();
    for wrong in [
        good.clone().header("a b", "c"),
        good.clone().header("a", "b\r\nc: d"),
        good.clone().subprotocol("a b"),
        good.clone().subprotocol("a").subprotocol("a"),
        good.clone().origin("a\r\nb: c"),
        good.clone().max_message(0),
        good.clone().max_message(usize::MAX),
        good.clone().inbound_limit(0, 1),
        good.clone().outbound_limit(usize::MAX),
        good.clone().outbound_limit((1 << 30) + 1),
        good.clone().handshake_timeout(Duration::ZERO),
        good.clone().ping(Duration::ZERO, WAIT),
        good.clone().ping(WAIT, Duration::ZERO),
    ] {
        assert!(matches!(wrong.connect(), Err(Error::Config(_))));
    }
    assert!(matches!(Clients::start(0, 1), Err(Error::Config(_))));
    assert!(matches!(Clients::start(257, 1), Err(Error::Config(_))));
}

#[cfg(unix)]
#[test]
fn unix_sockets() {
    let path = std::env::temp_dir().join(format!("framemill-client-{}.sock", std::process::id()));
    let path = path.to_str().unwrap();
    let server = Server::bind(format!("unix:{path}")).unwrap();
    let server = server.start(Doorman).unwrap();
    let (peer, events) = connect(format!("ws+unix:{path}:/deep?q")).unwrap();
    assert_eq!(message(&events), Message::text("/deep q - - "));
    assert_eq!(peer.remote_addr().to_string(), "unix");
    server.shutdown(Duration::ZERO);
    assert!(matches!(
        connect(format!("ws+unix:{path}")),
        Err(Error::Connect { .. })
    ));
}

// ---- an independent server ----

/// tungstenite's server, which sends everything back.
fn tungstenite_echo() -> SocketAddr {
    use tungstenite::handshake::server::{Request, Response};
    each_connection(|stream| {
        thread::spawn(move || {
            #[allow(clippy::result_large_err, reason = "tungstenite's")]
            let choose = |request: &Request, mut response: Response| {
                if let Some(names) = request.headers().get("Sec-WebSocket-Protocol") {
                    let name = names.to_str().unwrap().split(',').next().unwrap();
                    let name = name.trim().parse().unwrap();
                    response
                        .headers_mut()
                        .insert("Sec-WebSocket-Protocol", name);
                }
                Ok(response)
            };
            let mut socket = tungstenite::accept_hdr(stream, choose).unwrap();
            while let Ok(message) = socket.read() {
                if message.is_text() || message.is_binary() {
                    socket.send(message).unwrap();
                }
            }
        });
    })
}

#[test]
fn speaks_with_tungstenite() {
    let addr = tungstenite_echo();
    let settings = client(addr).subprotocol("echo.v1").subprotocol("other");
    let (handle, events) = settings.connect().unwrap();
    assert_eq!(handle.peer().unwrap().subprotocol(), Some("echo.v1"));
    for size in [0, 5, 126, 70_000, 1 << 20] {
        handle.send("ä".repeat(size / 2)).unwrap();
        assert_eq!(message(&events), Message::text("ä".repeat(size / 2)));
        handle.send(vec![7; size]).unwrap();
        assert_eq!(message(&events), Message::binary(vec![7; size]));
    }
    handle.send(Message::Ping("!".into())).unwrap();
    let reason = handle
        .close_and_wait(CloseCode::Library(4242), "enough")
        .unwrap();
    assert_eq!(reason.code(), CloseCode::Library(4242));
    assert!(reason.is_clean());
}

// ---- handlers ----

#[test]
fn a_closure_that_counts() {
    let server = echo();
    let (done, finished) = bounded(1);
    let mut count = 0;
    let handle = client(server.addr)
        .start(move |peer: &Peer, message: Message| {
            count += 1;
            if count == 10 {
                peer.close(CloseCode::Normal, "");
                let _ = done.send(());
            } else {
                let _ = peer.send(message);
            }
        })
        .unwrap();
    until("it is open", || handle.is_open());
    handle.send("ball").unwrap();
    finished.recv_timeout(WAIT).unwrap();
    assert_eq!(handle.wait().unwrap().code(), CloseCode::Normal);
}

#[test]
fn run_with_tells_the_end() {
    let server = obedient();
    struct Closer;
    impl ClientHandler for Closer {
        fn open(&mut self, peer: &Peer, _: &HeaderMap) {
            peer.send("close").unwrap();
        }
        fn message(&mut self, _: &Peer, _: Message) {}
    }
    let reason = client(server.addr).run_with(Closer).unwrap();
    assert_eq!(reason.code(), CloseCode::Library(4001));
    let free = TcpListener::bind("127.0.0.1:0").unwrap();
    let nowhere = free.local_addr().unwrap();
    drop(free);
    let error = client(nowhere).run_with(Closer).unwrap_err();
    assert!(matches!(error, Error::Connect { .. }), "{error}");
}

#[test]
fn a_panic_closes_its_own_connection() {
    let server = echo();
    for workers in [0, 2] {
        let clients = Clients::start(1, workers).unwrap();
        let bystander = clients.connect(client(server.addr)).unwrap();
        let settings = client(server.addr).reconnect(Reconnect::new());
        let handle = clients
            .open(settings, |_: &Peer, _: Message| panic!("as you wish"))
            .unwrap();
        until("it is open", || handle.is_open());
        handle.send("boo").unwrap();
        let reason = handle.wait().unwrap();
        assert_eq!(
            (reason.code(), reason.cause()),
            (CloseCode::Error, CloseCause::Panic)
        );
        bystander.0.send("still here").unwrap();
        assert_eq!(message(&bystander.1), Message::text("still here"));
    }
}

/// What a handler panics with is dropped by the thread that called it, and may panic in turn.
#[test]
fn a_panic_that_panics_costs_no_thread() {
    struct Bomb;
    impl Drop for Bomb {
        fn drop(&mut self) {
            panic!("and once more");
        }
    }
    /// Panics when it is called, or when it goes.
    struct Bomber {
        at_once: bool,
    }
    impl ClientHandler for Bomber {
        fn message(&mut self, peer: &Peer, _: Message) {
            if self.at_once {
                panic_any(Bomb);
            }
            peer.close(CloseCode::Normal, "");
        }
    }
    impl Drop for Bomber {
        fn drop(&mut self) {
            if !self.at_once {
                panic_any(Bomb);
            }
        }
    }
    let server = echo();
    for (workers, at_once) in [(0, true), (0, false), (1, true), (1, false)] {
        let clients = Clients::start(1, workers).unwrap();
        let bystander = clients.connect(client(server.addr)).unwrap();
        let handle = clients
            .open(client(server.addr), Bomber { at_once })
            .unwrap();
        until("it is open", || handle.is_open());
        handle.send("boo").unwrap();
        let (over, ended) = bounded(1);
        thread::spawn(move || over.send(handle.wait().map(|reason| reason.code())));
        let code = ended.recv_timeout(WAIT).expect("an end").unwrap();
        let expected = if at_once {
            CloseCode::Error
        } else {
            CloseCode::Normal
        };
        assert_eq!(code, expected);
        bystander.0.send("still here").unwrap();
        assert_eq!(message(&bystander.1), Message::text("still here"));
    }
}

/// A handler that panics when it is told of an attempt gets none.
#[test]
fn a_panic_ends_the_attempts() {
    struct Nervous;
    impl ClientHandler for Nervous {
        fn message(&mut self, _: &Peer, _: Message) {}
        fn retry(&mut self, _: &Retry) {
            panic!("as you wish");
        }
    }
    let free = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = free.local_addr().unwrap();
    drop(free);
    let error = client(addr)
        .reconnect(quickly())
        .run_with(Nervous)
        .unwrap_err();
    assert!(matches!(error, Error::Connect { .. }), "{error}");
}

// ---- reconnecting ----

fn quickly() -> Reconnect {
    Reconnect::new().delays(Duration::from_millis(5), Duration::from_millis(50))
}

#[test]
fn a_server_goes_and_comes_back() {
    let first = echo();
    let addr = first.addr;
    let (handle, events) = client(addr).reconnect(quickly()).connect().unwrap();
    let old = handle.peer().unwrap();
    handle.send("one").unwrap();
    assert_eq!(message(&events), Message::text("one"));
    drop(first);
    let reason = end(&events);
    assert_eq!(reason.initiator(), Initiator::Peer);
    let ClientEvent::Reconnecting(retry) = next(&events) else {
        panic!("no attempt is told");
    };
    assert_eq!(retry.attempt, 1);
    assert!(matches!(retry.reason, RetryReason::Closed(_)));
    assert!(!handle.is_open());
    assert!(handle.send("nowhere").is_err());

    let mut listener = TcpListener::bind(addr.tcp());
    until("the port is free", || {
        if listener.is_err() {
            listener = TcpListener::bind(addr.tcp());
        }
        listener.is_ok()
    });
    let server = Server::bind(listener.unwrap()).unwrap();
    let server = server
        .start(|peer: &Peer, message| peer.send(message))
        .unwrap();
    let new = loop {
        match next(&events) {
            ClientEvent::Reconnecting(retry) => assert!(retry.attempt > 1),
            ClientEvent::Open(peer, _) => break peer,
            other => panic!("{other:?}"),
        }
    };
    assert!(new != old && old.is_closed());
    assert_eq!(handle.peer(), Some(new));
    handle.send("two").unwrap();
    assert_eq!(message(&events), Message::text("two"));

    // What we close stays closed.
    assert!(
        handle
            .close_and_wait(CloseCode::Normal, "")
            .unwrap()
            .is_clean()
    );
    end(&events);
    no_more(&events);
    server.shutdown(Duration::ZERO);
}

#[test]
fn attempts_are_told_and_end() {
    let free = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = free.local_addr().unwrap();
    drop(free);
    let (told, hears) = tell();
    let settings = client(addr).reconnect(quickly().attempts(3));
    let handle = settings.start(told).unwrap();
    for n in 1..=3 {
        match hear(&hears) {
            Told::Retry(attempt, delay, why) => {
                assert_eq!(attempt, n);
                assert!(delay <= Duration::from_millis(50));
                assert!(why.starts_with("cannot connect to"), "{why}");
            }
            other => panic!("{other:?}"),
        }
    }
    assert!(matches!(hear(&hears), Told::Error(_)));
    assert!(handle.wait().is_err());
    no_more(&hears);
    // The first connection of `connect` is not retried.
    let error = client(addr)
        .reconnect(Reconnect::new())
        .connect()
        .unwrap_err();
    assert!(matches!(error, Error::Connect { .. }), "{error}");
}

/// Which ends are followed by another attempt.
#[test]
fn what_is_not_tried_again() {
    let mut nth = 0;
    let addr = each_connection(move |mut stream| {
        let request = head(&mut stream);
        nth += 1;
        let _ = match nth {
            1 => stream.write_all(b"HTTP/1.1 503 Busy\r\n\r\n"),
            2 => {
                let mut answer = switching(&request, "");
                answer.extend(b"\x88\x02\x03\xF4");
                stream.write_all(&answer)
            }
            _ => {
                let mut answer = switching(&request, "");
                // Then it hangs up, before the handler is through with the message.
                answer.extend(b"\x81\x03bye\x88\x02\x03\xE8");
                stream.write_all(&answer)
            }
        };
    });
    let (told, hears) = tell();
    let handle = client(addr).reconnect(quickly()).start(told).unwrap();
    assert!(matches!(hear(&hears), Told::Retry(1, ..)));
    assert!(matches!(hear(&hears), Told::Open(..)));
    assert!(matches!(hear(&hears), Told::Close(reason) if u16::from(reason.code()) == 1012));
    assert!(matches!(hear(&hears), Told::Retry(2, ..)));
    assert!(matches!(hear(&hears), Told::Open(..)));
    assert!(matches!(hear(&hears), Told::Message(..)));
    assert!(matches!(
        hear(&hears),
        Told::Close(reason) if reason.code() == CloseCode::Normal && reason.cause() == CloseCause::Handshake
    ));
    no_more(&hears);
    assert_eq!(handle.wait().unwrap().code(), CloseCode::Normal);
}

#[test]
fn a_pause_between_attempts_can_be_called_off() {
    let free = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = free.local_addr().unwrap();
    drop(free);
    let (told, hears) = tell();
    let hour = Duration::from_secs(3600);
    let settings = client(addr).reconnect(Reconnect::new().delays(hour, hour));
    let handle = settings.start(told).unwrap();
    assert!(matches!(hear(&hears), Told::Retry(1, ..)));
    assert_eq!(handle.close_and_wait(CloseCode::Normal, ""), None);
    assert!(matches!(hear(&hears), Told::Error(why) if why == Error::Closed.to_string()));
    assert!(handle.has_ended());
}

/// Closes whatever it gets a message from.
struct Sated(Tell);

impl ClientHandler for Sated {
    fn message(&mut self, peer: &Peer, _: Message) {
        assert!(peer.close(CloseCode::Library(4000), "enough"));
    }

    fn close(&mut self, peer: &Peer, reason: &CloseReason) {
        self.0.close(peer, reason);
    }

    fn retry(&mut self, retry: &Retry) {
        self.0.retry(retry);
    }
}

/// What a handler closes stays closed, even if the server does not answer as it should.
#[test]
fn what_a_handler_closes_is_not_tried_again() {
    type Server = fn(TcpStream) -> Option<TcpStream>;
    let hangs_up: Server = |_| None;
    let resets: Server = |stream| {
        support::reset(stream);
        None
    };
    let says_nothing: Server = |stream| Some(stream);
    let breaks_a_rule: Server = |mut stream| {
        stream.write_all(b"\x83\x00").unwrap();
        Some(stream)
    };
    let answers: Server = |mut stream| {
        stream.write_all(b"\x88\x02\x0F\xA0").unwrap();
        None
    };
    for (server, cause) in [
        (hangs_up, CloseCause::Eof),
        (resets, CloseCause::Transport),
        (says_nothing, CloseCause::CloseTimeout),
        (breaks_a_rule, CloseCause::Protocol("reserved opcode")),
        (answers, CloseCause::Handshake),
    ] {
        let (addr, remotes) = opening("", b"\x81\x04more".to_vec());
        let (told, hears) = tell();
        let patience = match cause {
            CloseCause::CloseTimeout => Duration::from_millis(50),
            _ => WAIT,
        };
        let settings = client(addr).close_timeout(patience);
        let handle = settings.reconnect(quickly()).start(Sated(told)).unwrap();
        let (_, mut remote) = remotes.recv_timeout(WAIT).unwrap();
        assert_eq!(remote.close_code(), Some(4000));
        let _open = server(remote.0);
        assert!(matches!(hear(&hears), Told::Close(reason) if reason.cause() == cause));
        no_more(&hears);
        assert_eq!(handle.wait().unwrap().cause(), cause);
    }
}

/// A server that closes is tried again, however long the handler takes to notice; but not if the
/// handler has closed too, meanwhile.
#[test]
fn a_server_that_closes_while_the_handler_is_busy() {
    struct Busy(Tell, Receiver<()>, bool);
    impl ClientHandler for Busy {
        fn message(&mut self, peer: &Peer, _: Message) {
            let _ = self.1.recv_timeout(WAIT);
            if self.2 {
                assert!(peer.close(CloseCode::Normal, ""));
            }
        }

        fn close(&mut self, peer: &Peer, reason: &CloseReason) {
            self.0.close(peer, reason);
        }

        fn retry(&mut self, retry: &Retry) {
            self.0.retry(retry);
        }
    }
    for closes in [false, true] {
        let (go, goes) = bounded(1);
        let addr = each_connection(move |mut stream| {
            let request = head(&mut stream);
            let mut answer = switching(&request, "");
            answer.extend(b"\x81\x04more\x88\x02\x03\xF4");
            stream.write_all(&answer).unwrap();
            if closes {
                // Most often it has come to the client by now.
                go.send(()).unwrap();
            }
            let _ = stream.read_to_end(&mut Vec::new());
            let _ = go.try_send(());
        });
        let (told, hears) = tell();
        let patience = if closes {
            WAIT
        } else {
            Duration::from_millis(50)
        };
        let settings = client(addr).close_timeout(patience);
        let busy = Busy(told, goes, closes);
        let _handle = settings.reconnect(quickly()).start(busy).unwrap();
        assert!(matches!(hear(&hears), Told::Close(_)));
        if closes {
            no_more(&hears);
        } else {
            assert!(matches!(hear(&hears), Told::Retry(1, ..)));
        }
    }
}

// ---- many, and those that hold others up ----

/// A gateway: ids begin anew in every engine, so the first connections of two have the same.
#[test]
fn an_inline_handler_sends_to_a_peer_of_another_engine() {
    let far = echo();
    let clients = Clients::start(1, 1).unwrap();
    let (told, hears) = tell();
    let handle = clients.open(client(far.addr), told).unwrap();
    let Told::Open(upstream, _) = hear(&hears) else {
        panic!("it does not open");
    };
    let gateway = serve(
        |s| s.workers(0),
        move |peer: &Peer, message: Message| {
            assert_eq!(peer.id(), upstream.id());
            upstream.send(message).unwrap();
        },
    );
    let mut near = support::client(gateway.addr);
    for text in ["one", "two"] {
        near.send(Message::text(text)).unwrap();
        assert!(matches!(hear(&hears), Told::Message(heard) if heard == Message::text(text)));
    }
    handle.close(CloseCode::Normal, "");
}

#[test]
fn a_thousand_on_one_loop() {
    const CLIENTS: usize = 1000;
    const ROUNDS: u32 = 5;
    let server = echo();
    for workers in [0, 2] {
        let clients = Clients::start(1, workers).unwrap();
        let (done, finished) = unbounded();
        struct Bot(u32, Sender<()>);
        impl ClientHandler for Bot {
            fn open(&mut self, peer: &Peer, _: &HeaderMap) {
                peer.send(numbered(0, 32)).unwrap();
            }
            fn message(&mut self, peer: &Peer, message: Message) {
                assert_eq!(number(&message.into_data()), self.0);
                self.0 += 1;
                if self.0 < ROUNDS {
                    peer.send(numbered(self.0, 32)).unwrap();
                } else {
                    let _ = self.1.send(());
                }
            }
            fn error(&mut self, error: &Error) {
                panic!("{error}");
            }
        }
        let handles: Vec<_> = (0..CLIENTS)
            .map(|_| {
                clients
                    .open(client(server.addr), Bot(0, done.clone()))
                    .unwrap()
            })
            .collect();
        for n in 0..CLIENTS {
            finished
                .recv_timeout(WAIT)
                .unwrap_or_else(|_| panic!("only {n} are done"));
        }
        assert_eq!(clients.connections(), CLIENTS);
        assert!(clients.shutdown(WAIT));
        let gone = |handle: &framemill::ClientHandle| {
            handle.wait().unwrap().cause() == CloseCause::Shutdown
        };
        assert!(handles.iter().all(gone));
        until("the server is alone", || server.handle.connections() == 0);
    }
}

/// Whoever waits for a connection may be the only worker that there is.
#[test]
fn a_handler_connects_on_its_own_engine() {
    struct Gateway(
        std::sync::Arc<Clients>,
        String,
        Sender<Result<Message, Error>>,
    );
    impl ClientHandler for Gateway {
        fn open(&mut self, _: &Peer, _: &HeaderMap) {
            let connected = self.0.connect(Client::new(&self.1).unwrap());
            let answer = connected.map(|(handle, _events)| {
                assert!(handle.is_open());
                handle.send("through").unwrap();
                Message::text("open")
            });
            let _ = self.2.send(answer);
        }

        fn message(&mut self, _: &Peer, _: Message) {}
    }
    let server = echo();
    let free = TcpListener::bind("127.0.0.1:0").unwrap();
    let nowhere = free.local_addr().unwrap();
    drop(free);
    let clients = std::sync::Arc::new(Clients::start(1, 1).unwrap());
    for (target, good) in [(url(server.addr), true), (url(nowhere), false)] {
        let (sender, answers) = bounded(1);
        let gateway = Gateway(clients.clone(), target, sender);
        clients.open(client(server.addr), gateway).unwrap();
        match answers.recv_timeout(WAIT).expect("an answer") {
            Ok(_) => assert!(good),
            Err(Error::Connect { .. }) => assert!(!good),
            Err(error) => panic!("{error}"),
        }
    }
    clients.shutdown(WAIT);
}

/// Nobody receives from some connections: their servers are slowed down, others don't notice.
#[test]
fn a_receiver_that_does_not_receive() {
    const MESSAGES: u32 = 3000;
    const LEN: usize = 4000;
    struct Flood;
    impl Handler for Flood {
        type Session = u32;
        fn open(&self, request: &Request, peer: &Peer) -> Result<Accept<u32>, Response> {
            if request.path() == "/flood" {
                fill(&mut 0, peer);
            }
            Ok(Accept::new(0))
        }
        fn message(&self, _: &mut u32, peer: &Peer, message: Message) {
            let _ = peer.send(message);
        }
    }
    fn fill(n: &mut u32, peer: &Peer) {
        while *n < MESSAGES {
            assert_ne!(
                peer.send(numbered(*n, LEN)),
                Err(framemill::SendError::Closed("".into()))
            );
            *n += 1;
        }
    }
    let server = serve(|s| s.workers(2).outbound_limit(64 << 20), Flood);
    for workers in [0, 1] {
        let clients = Clients::start(1, workers).unwrap();
        let flooded: Vec<_> = (0..10)
            .map(|_| {
                let url = format!("{}flood", url(server.addr));
                clients.connect(Client::new(url).unwrap()).unwrap()
            })
            .collect();
        until("their channels are full", || {
            flooded.iter().all(|(_, events)| events.is_full())
        });
        let (handle, events) = clients.connect(client(server.addr)).unwrap();
        for n in 0..200 {
            handle.send(numbered(n, 100)).unwrap();
            assert_eq!(number(&message(&events).into_data()), n);
        }
        // All of it is there once somebody receives, in order; but for one, which is closed as it is.
        let mut flooded = flooded.into_iter();
        let (handle, events) = flooded.next().unwrap();
        let reason = handle
            .close_and_wait(CloseCode::Normal, "")
            .expect("it was open");
        assert_eq!(reason.code(), CloseCode::Normal);
        assert!(events.is_full());
        for (handle, events) in flooded {
            for n in 0..MESSAGES {
                assert_eq!(number(&message(&events).into_data()), n);
            }
            assert!(handle.is_open());
        }
        assert!(clients.shutdown(WAIT));
    }
}

/// The server is told to stop while nobody receives: it does not take longer than it may.
#[test]
fn shutdown_with_a_full_channel() {
    for workers in [0, 1] {
        let server = serve(
            |s| s.workers(1).outbound_limit(64 << 20),
            |peer: &Peer, _: Message| {
                for n in 0..1000 {
                    let _ = peer.send(numbered(n, 4000));
                }
            },
        );
        let clients = Clients::start(1, workers).unwrap();
        let (handle, events) = clients.connect(client(server.addr)).unwrap();
        let peer = handle.peer().unwrap();
        peer.send("go").unwrap();
        until("the channel is full", || events.is_full());
        // Cut off, or closed if no further message has arrived yet.
        let began = Instant::now();
        clients.shutdown(Duration::from_millis(100));
        assert!(began.elapsed() < WAIT / 2);
        for n in 0..64 {
            assert_eq!(number(&message(&events).into_data()), n);
        }
        no_more(&events);
        assert!(peer.is_closed());
        assert_eq!(handle.wait().unwrap().cause(), CloseCause::Shutdown);
    }
}

/// What is sent without anybody reading is limited on this side as on the server's.
#[test]
fn overflow() {
    let (addr, _remotes) = opening("", Vec::new());
    let settings = client(addr).outbound_limit(100_000);
    let settings = settings.close_timeout(Duration::from_millis(100));
    let (handle, events) = settings.connect().unwrap();
    let peer = handle.peer().unwrap();
    let mut congested = false;
    while let Ok(sent) = peer.send(vec![1; 10_000]) {
        congested |= sent == Sent::Congested;
    }
    assert!(congested);
    let reason = end(&events);
    assert_eq!(reason.cause(), CloseCause::Overflow);
    assert!(reason.undelivered_bytes() > 0);
}

/// Both sides send as fast as they can and read what comes: nobody waits for the other for ever.
#[test]
fn two_floods_pass_each_other() {
    const MESSAGES: u32 = 2000;
    const LEN: usize = 4096;
    let server = echo();
    let settings = client(server.addr).outbound_limit(64 << 20);
    let (handle, events) = settings.connect().unwrap();
    for n in 0..MESSAGES {
        handle.send(numbered(n, LEN)).unwrap();
    }
    for n in 0..MESSAGES {
        assert_eq!(number(&message(&events).into_data()), n);
    }
    assert!(handle.is_open());
}

// ---- letting go ----

#[test]
fn letting_go() {
    let server = serve(
        |s| s.workers(2),
        |peer: &Peer, message: Message| {
            if message != Message::text("tick") {
                return drop(peer.send(message));
            }
            let peer = peer.clone();
            thread::spawn(move || {
                while peer.send("tock").is_ok() {
                    thread::sleep(Duration::from_millis(1));
                }
            });
        },
    );
    let clients = Clients::start(1, 2).unwrap();
    // Handlers go on without their handle.
    let (told, hears) = tell();
    drop(clients.open(client(server.addr), told).unwrap());
    let Told::Open(peer, _) = hear(&hears) else {
        panic!("not an open");
    };
    peer.send("hello").unwrap();
    assert!(matches!(hear(&hears), Told::Message(_)));
    assert!(!peer.is_closed());
    // Without a receiver one can still send, ...
    let (handle, events) = clients.connect(client(server.addr)).unwrap();
    drop(events);
    handle.send("nobody hears the answer").unwrap();
    handle.send("nor this").unwrap();
    let silent = handle.peer().unwrap();
    until("all is sent", || silent.queued_bytes() == 0);
    assert!(!silent.is_closed());
    assert_eq!(clients.connections(), 2);
    // ... but without either, the next thing that arrives finds nobody.
    drop(handle);
    silent.send("tick").unwrap();
    drop(silent);
    until("it is closed", || clients.connections() == 1);
}

#[test]
fn dropping_the_engine_cuts_off() {
    let server = echo();
    let clients = Clients::start(2, 2).unwrap();
    let (handle, events) = clients.connect(client(server.addr)).unwrap();
    let (told, hears) = tell();
    let hour = Duration::from_secs(3600);
    let free = TcpListener::bind("127.0.0.1:0").unwrap();
    let nowhere = free.local_addr().unwrap();
    drop(free);
    let settings = client(nowhere).reconnect(Reconnect::new().delays(hour, hour));
    let waiting = clients.open(settings, told).unwrap();
    assert!(matches!(hear(&hears), Told::Retry(..)));
    drop(clients);
    assert_eq!(end(&events).cause(), CloseCause::Shutdown);
    assert!(matches!(hear(&hears), Told::Error(_)));
    assert!(handle.has_ended());
    assert!(waiting.wait().is_err());
    until("the server is alone", || server.handle.connections() == 0);
}

/// After the end there is no way in, with a name or without.
#[test]
fn after_a_shutdown_clients_are_told_so() {
    for workers in [0, 1] {
        let clients = Clients::start(1, workers).unwrap();
        assert!(clients.shutdown(WAIT));
        for url in ["ws://127.0.0.1:1/", "ws://localhost:1/"] {
            let (told, hears) = tell();
            let client = Client::new(url).unwrap();
            let handle = clients.open(client.clone(), told).unwrap();
            match hears.recv_timeout(WAIT) {
                Ok(Told::Error(why)) => assert_eq!(why, Error::Closed.to_string()),
                other => panic!("{other:?} of {url}"),
            }
            no_more(&hears);
            assert!(handle.has_ended());
            let error = clients.connect(client).unwrap_err();
            assert!(matches!(error, Error::Closed), "{error}");
        }
    }
}

/// A request that the kernel does not take at once is sent once.
#[test]
fn a_request_longer_than_the_kernel_takes() {
    const LONG: usize = 24 << 20;
    let (sent, told) = bounded(1);
    let addr = each_connection(move |mut stream| {
        let (mut request, mut buf) = (Vec::new(), vec![0; 1 << 20]);
        while !request.ends_with(b"\r\n\r\n") {
            let n = stream.read(&mut buf).unwrap();
            assert!(n > 0);
            request.extend_from_slice(&buf[..n]);
        }
        assert!(request.len() > LONG);
        let request = String::from_utf8(request).unwrap();
        stream.write_all(&switching(&request, "")).unwrap();
        sent.send(Remote(stream).frame()).unwrap();
    });
    let long = HeaderValue::from_bytes(&vec![b'x'; LONG]).unwrap();
    let client = client(addr).header(HeaderName::from_static("x-long"), long);
    let (handle, _events) = client.connect().unwrap();
    handle.send("hi").unwrap();
    let frame = told.recv_timeout(WAIT).expect("a frame");
    assert_eq!(frame, Some((0x81, b"hi".to_vec())));
}
