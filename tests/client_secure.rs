//! `wss://`: the client against framemill's own server, against tungstenite's over native-tls, and
//! against servers that speak TLS badly or not at all.
#![cfg(feature = "tls")]

mod support;

use std::io::ErrorKind::{ConnectionReset, UnexpectedEof};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::OnceLock;
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, unbounded};
use framemill::{
    Client, ClientEvent, ClientHandler, Clients, CloseCause, CloseCode, CloseReason, Error,
    Initiator, Listen, Message, Peer, Reconnect, Retry, RetryReason, Tls, Trust, connect,
};
use native_tls::{Identity, TlsAcceptor, TlsStream};
use support::remote::{client, each_connection, end, message, refusal};
use support::spy::{number, numbered, spy};
use support::{Addr, Running, WAIT, no_more, reset, serve, serve_on, until};

const EC: &[u8] = include_bytes!("certs/ec.pem");
const EC_KEY: &[u8] = include_bytes!("certs/ec.key");
const RSA: &[u8] = include_bytes!("certs/rsa.pem");

// ---- kit ----

/// Nobody but the certificate of these servers. Made once: OpenSSL reads all that the system trusts first.
fn trust() -> Trust {
    static TRUST: OnceLock<Trust> = OnceLock::new();
    TRUST.get_or_init(|| Trust::only(EC).unwrap()).clone()
}

fn untrusting(addr: impl Into<Addr>) -> Client {
    let addr = addr.into().tcp();
    Client::new(format!("wss://{addr}/")).unwrap()
}

fn secure(addr: impl Into<Addr>) -> Client {
    untrusting(addr).trust(trust()).outbound_limit(64 << 20)
}

fn identity() -> Tls {
    Tls::from_pem(EC, EC_KEY).unwrap()
}

fn echo_on(listen: impl Listen, workers: usize) -> Running {
    serve_on(
        listen,
        |s| s.workers(workers).tls(identity()).outbound_limit(64 << 20),
        |peer: &Peer, message| peer.send(message),
    )
}

fn echo(workers: usize) -> Running {
    echo_on("127.0.0.1:0", workers)
}

fn acceptor() -> TlsAcceptor {
    let identity = Identity::from_pkcs8(EC, EC_KEY).unwrap();
    TlsAcceptor::new(identity).unwrap()
}

/// A server of a few lines that does `act` with each TLS connection, on a thread of its own.
fn native(act: impl Fn(usize, TlsStream<TcpStream>) + Clone + Send + 'static) -> SocketAddr {
    let acceptor = acceptor();
    let mut count = 0;
    each_connection(move |stream| {
        let (acceptor, act, n) = (acceptor.clone(), act.clone(), count);
        count += 1;
        thread::spawn(move || {
            if let Ok(stream) = acceptor.accept(stream) {
                act(n, stream);
            }
        });
    })
}

/// tungstenite's echo server.
fn echo_of_tungstenite<S: Read + Write>(stream: S) {
    let mut socket = tungstenite::accept(stream).unwrap();
    while let Ok(message) = socket.read() {
        match message.to_text() {
            Ok("close") if message.is_text() => {
                let frame = tungstenite::protocol::CloseFrame {
                    code: CloseCode::Library(4004),
                    reason: "as you wish".into(),
                };
                socket.close(Some(frame)).unwrap();
            }
            _ if message.is_text() || message.is_binary() => socket.send(message).unwrap(),
            _ => {}
        }
    }
}

/// Why a TLS connection could not be had.
fn tls_error(settings: Client) -> String {
    match refusal(settings) {
        Error::Tls(why) => why,
        other => panic!("{other:?}"),
    }
}

fn exchange(clients: &Clients, settings: Client, sizes: &[usize], many: u32) {
    let (handle, events) = clients.connect(settings).unwrap();
    for &size in sizes {
        handle.send(vec![size as u8; size]).unwrap();
        handle.send("x".repeat(size)).unwrap();
    }
    for &size in sizes {
        assert!(message(&events) == Message::binary(vec![size as u8; size]));
        assert!(message(&events) == Message::text("x".repeat(size)));
    }
    for n in 0..many {
        handle.send(numbered(n, 4 + n as usize % 300)).unwrap();
    }
    for n in 0..many {
        assert_eq!(number(&message(&events).into_data()), n);
    }
    assert!(handle.close(CloseCode::Library(4001), "enough"));
    let reason = end(&events);
    assert_eq!(reason.code(), CloseCode::Library(4001));
    assert!(reason.is_clean());
}

// ---- messages ----

const SIZES: &[usize] = &[
    0,
    1,
    125,
    126,
    16_383,
    16_384,
    16_385,
    65_535,
    65_536,
    1 << 20,
];

#[test]
fn echoes_of_framemill() {
    for server_workers in [0, 2] {
        let server = echo(server_workers);
        for workers in [0, 2] {
            let clients = Clients::start(1, workers).unwrap();
            exchange(&clients, secure(server.addr), SIZES, 3000);
            assert!(clients.shutdown(WAIT));
        }
    }
}

#[test]
fn echoes_of_tungstenite() {
    let addr = native(|_, stream| echo_of_tungstenite(stream));
    for workers in [0, 2] {
        let clients = Clients::start(1, workers).unwrap();
        exchange(&clients, secure(addr), SIZES, 1000);
        let (handle, events) = clients.connect(secure(addr)).unwrap();
        handle.send("close").unwrap();
        let reason = end(&events);
        assert_eq!(reason.code(), CloseCode::Library(4004));
        assert_eq!(reason.text(), "as you wish");
        assert_eq!(reason.initiator(), Initiator::Peer);
        assert!(reason.is_clean());
    }
}

#[test]
fn close_codes_both_ways() {
    for workers in [0, 2] {
        let (handler, seen) = spy(|peer: &Peer, message: Message| {
            let code: u16 = message.to_text().unwrap().parse().unwrap();
            assert!(peer.close(CloseCode::from(code), "told so"));
        });
        let server = serve(|s| s.workers(workers).tls(identity()), handler);
        for code in [1000, 1001, 1011, 3000, 4999] {
            let (handle, events) = secure(server.addr).connect().unwrap();
            handle.send(code.to_string()).unwrap();
            let reason = end(&events);
            assert_eq!((u16::from(reason.code()), reason.text()), (code, "told so"));
            assert_eq!(reason.initiator(), Initiator::Peer);
            assert_eq!(seen.end().initiator(), Initiator::Local);

            let (handle, events) = secure(server.addr).connect().unwrap();
            assert!(handle.close(CloseCode::from(code), "of our own"));
            let reason = seen.end();
            assert_eq!(
                (u16::from(reason.code()), reason.text()),
                (code, "of our own")
            );
            let reason = end(&events);
            assert!(reason.is_clean());
            assert_eq!(reason.initiator(), Initiator::Local);
        }
    }
}

/// Neither side reads for as long as it writes: far more than sockets and TLS hold.
#[test]
fn floods_in_both_directions() {
    const MESSAGES: u32 = 400;
    const LEN: usize = 40_000;
    for workers in [0, 2] {
        let server = serve(
            |s| s.workers(workers).tls(identity()).outbound_limit(64 << 20),
            |peer: &Peer, message: Message| match message.is_text() {
                true => (0..MESSAGES).for_each(|n| drop(peer.send(numbered(n, LEN)))),
                false => drop(peer.send(message)),
            },
        );
        let clients = Clients::start(1, workers).unwrap();
        let (handle, events) = clients.connect(secure(server.addr)).unwrap();
        handle.send("flood").unwrap();
        for n in 0..MESSAGES {
            handle.send(numbered(n, LEN)).unwrap();
        }
        until("the channel is full", || events.is_full());
        for _ in 0..2 {
            for n in 0..MESSAGES {
                assert_eq!(number(&message(&events).into_data()), n);
            }
        }
        assert!(clients.shutdown(WAIT));
    }
}

/// More connections than a loop can shake hands with at a time.
#[test]
fn two_hundred_on_one_loop() {
    struct Greet(crossbeam_channel::Sender<Result<u32, String>>, u32);
    impl ClientHandler for Greet {
        fn open(&mut self, peer: &Peer, _: &framemill::HeaderMap) {
            peer.send(numbered(self.1, 1000)).unwrap();
        }
        fn message(&mut self, _: &Peer, message: Message) {
            let _ = self.0.send(Ok(number(&message.into_data())));
        }
        fn error(&mut self, error: &Error) {
            let _ = self.0.send(Err(error.to_string()));
        }
    }
    for workers in [0, 2] {
        let server = echo(workers);
        let clients = Clients::start(1, workers).unwrap();
        let (greeted, greetings) = unbounded();
        let handles: Vec<_> = (0..200)
            .map(|n| {
                let client = secure(server.addr).handshake_timeout(3 * WAIT);
                clients.open(client, Greet(greeted.clone(), n)).unwrap()
            })
            .collect();
        let mut seen: Vec<u32> = handles
            .iter()
            .map(|_| greetings.recv_timeout(3 * WAIT).unwrap().unwrap())
            .collect();
        seen.sort_unstable();
        assert!(seen.into_iter().eq(0..200));
        assert_eq!(server.handle.connections(), 200);
        for handle in &handles {
            assert!(handle.is_open());
            assert!(handle.close(CloseCode::Normal, ""));
        }
        for handle in &handles {
            assert!(handle.wait().unwrap().is_clean());
        }
        until("all are gone", || clients.connections() == 0);
    }
}

/// Both layers at once, and a receiver that is behind.
#[cfg(feature = "deflate")]
#[test]
fn compressed() {
    use framemill::Deflate;
    use support::deflate::prose;

    const MESSAGES: usize = 500;
    let both = Deflate::new().context_takeover(true, true).threshold(0);
    let text = |n: usize| format!("{n} {}", prose(n * 37 % 9000));
    for settings in [Deflate::new(), both] {
        for workers in [0, 2] {
            let server = serve(
                |s| {
                    let s = s.workers(workers).tls(identity()).deflate(settings.clone());
                    s.outbound_limit(64 << 20)
                },
                |peer: &Peer, message| peer.send(message),
            );
            let clients = Clients::start(1, workers).unwrap();
            let client = secure(server.addr).deflate(settings.clone());
            let (handle, events) = clients.connect(client).unwrap();
            for n in 0..MESSAGES {
                handle.send(text(n)).unwrap();
            }
            for n in 0..MESSAGES {
                // All that can wait does.
                until("the channel is full", || {
                    events.len() >= (MESSAGES - n).min(60)
                });
                assert!(message(&events) == Message::text(text(n)), "{n}");
            }
            assert!(handle.close(CloseCode::Normal, ""));
            assert!(end(&events).is_clean());
        }
    }
}

// ---- trust ----

#[test]
fn whom_to_trust() {
    let server = echo(2);
    let both = [RSA, EC].concat();
    for trust in [
        Trust::only(EC),
        Trust::only(&both),
        Trust::system_and(EC),
        Trust::system_and(&both),
        Trust::anybody(),
    ] {
        let client = untrusting(server.addr).trust(trust.unwrap());
        let (handle, events) = client.connect().unwrap();
        handle.send("hello").unwrap();
        assert_eq!(message(&events), Message::text("hello"));
        assert!(handle.close(CloseCode::Normal, ""));
    }
    for trust in [Trust::only(RSA), Trust::system_and(RSA), Trust::system()] {
        let why = tls_error(untrusting(server.addr).trust(trust.unwrap()));
        assert!(why.contains("certificate"), "{why}");
    }
    // By default whom the system trusts.
    let why = tls_error(untrusting(server.addr));
    assert!(why.contains("certificate"), "{why}");
    let error = connect(format!("wss://{}/", server.addr)).unwrap_err();
    assert!(matches!(error, Error::Tls(_)), "{error:?}");
    for pem in [&b""[..], b"nonsense", EC_KEY] {
        assert!(matches!(Trust::only(pem), Err(Error::Tls(_))));
        assert!(matches!(Trust::system_and(pem), Err(Error::Tls(_))));
    }
    // The server has taken no harm.
    until("it is alone", || server.handle.connections() == 0);
}

/// The name in the URL counts, and the certificate is for `localhost` and 127.0.0.1.
#[test]
fn the_name_must_be_the_one_in_the_certificate() {
    let server = echo(1);
    let url = format!("wss://localhost:{}/", server.addr.tcp().port());
    let named = Client::new(url).unwrap().trust(trust());
    let (handle, events) = named.connect().unwrap();
    handle.send("hello").unwrap();
    assert_eq!(message(&events), Message::text("hello"));

    // All of 127/8 is this machine, at least on Linux.
    if cfg!(target_os = "linux") {
        let other = echo_on("127.0.0.2:0", 1);
        let why = tls_error(secure(other.addr));
        assert!(why.contains("certificate"), "{why}");
        let anybody = untrusting(other.addr).trust(Trust::anybody().unwrap());
        anybody.connect().unwrap();
    }
}

// ---- servers that do not speak TLS, or not to the end ----

#[test]
fn a_server_without_tls() {
    let server = support::echo();
    let why = tls_error(secure(server.addr));
    assert!(!why.is_empty());
    for answer in [
        &b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n"[..],
        b"SSH-2.0-OpenSSH_9.6\r\n",
        b"\0\0\0\0\0\0\0\0\0\0",
        // TLS, but no handshake: an alert that it can't agree on anything.
        b"\x15\x03\x03\x00\x02\x02\x28",
    ] {
        let addr = each_connection(move |mut stream| {
            let _ = stream.write_all(answer);
            let _ = stream.read(&mut [0; 4096]);
        });
        for workers in [0, 1] {
            let clients = Clients::start(1, workers).unwrap();
            match clients.connect(secure(addr)) {
                Err(Error::Tls(why)) => assert!(!why.is_empty()),
                other => panic!("{other:?}"),
            }
        }
    }
    // And the other way round.
    let server = echo(1);
    match refusal(client(server.addr)) {
        Error::Handshake(_) | Error::Connect { .. } => {}
        other => panic!("{other:?}"),
    }
}

/// Passes on what both sides send; of the server's bytes only the first so many, and then `then` gets the
/// connection to the client.
fn cutting(
    server: SocketAddr,
    most: usize,
    then: impl Fn(TcpStream) + Clone + Send + 'static,
) -> SocketAddr {
    each_connection(move |near| {
        let then = then.clone();
        thread::spawn(move || {
            let mut far = support::socket(server);
            let (mut from, mut to) = (near.try_clone().unwrap(), far.try_clone().unwrap());
            let upwards = thread::spawn(move || drop(std::io::copy(&mut from, &mut to)));
            let mut buf = vec![0; most];
            let mut passed = 0;
            while passed < most {
                match far.read(&mut buf[passed..]) {
                    Ok(n @ 1..) => passed += n,
                    _ => break,
                }
            }
            (&near).write_all(&buf[..passed]).unwrap();
            // So that no other handle is left.
            near.shutdown(std::net::Shutdown::Read).unwrap();
            upwards.join().unwrap();
            then(near);
        });
    })
}

#[test]
fn a_server_that_never_answers() {
    let patience = Duration::from_millis(200);
    let server = echo(1);
    let (kept, keeps) = unbounded();
    let silent = each_connection({
        let kept = kept.clone();
        move |stream| kept.send(stream).unwrap()
    });
    let keep = move |stream| kept.send(stream).unwrap();
    // TLS to the end, but no HTTP.
    let mute = native(|_, mut stream| drop(std::io::copy(&mut stream, &mut std::io::sink())));
    let half = [1, 5, 100, 700].map(|most| cutting(server.addr.tcp(), most, keep.clone()));
    for addr in [&[silent, mute], &half[..]].concat() {
        for workers in [0, 1] {
            let clients = Clients::start(1, workers).unwrap();
            let began = Instant::now();
            match clients.connect(secure(addr).handshake_timeout(patience)) {
                Err(Error::Timeout) => {}
                other => panic!("{other:?}"),
            }
            assert!(began.elapsed() >= patience);
            until("nothing is left", || clients.connections() == 0);
        }
    }
    drop(keeps);
}

/// It says so at once, or in answer, and stays: that is no reason to wait, or to try again.
#[test]
fn a_server_that_speaks_something_else() {
    for says in [
        "SSH-2.0-OpenSSH_9.6\r\n",
        "HTTP/1.1 400 Bad Request\r\n\r\n",
        "+OK\r\n",
        "\u{0}",
    ] {
        for waits in [false, true] {
            let (keep, kept) = unbounded();
            let addr = each_connection(move |mut stream| {
                if waits {
                    let _ = stream.read(&mut [0; 4096]);
                }
                let _ = stream.write_all(says.as_bytes());
                keep.send(stream).unwrap();
            });
            let settings = secure(addr).reconnect(Reconnect::default());
            match refusal(settings.handshake_timeout(4 * WAIT)) {
                Error::Tls(why) => assert!(why.contains("does not speak TLS"), "{why}"),
                other => panic!("{other:?}"),
            }
            kept.recv_timeout(WAIT).expect("one attempt");
            assert!(kept.is_empty(), "and no other");
        }
    }
}

/// Wherever the server's side of the handshake is cut off.
#[test]
fn a_server_that_hangs_up_in_the_middle() {
    let server = echo(1);
    let hang_up: fn(TcpStream) = drop;
    for workers in [0, 1] {
        let clients = Clients::start(1, workers).unwrap();
        for (most, then) in (0..700)
            .step_by(61)
            .flat_map(|n| [(n, hang_up), (n, reset)])
        {
            let addr = match most {
                0 => each_connection(move |mut stream| {
                    // Not while there is something to read, which would be a reset.
                    let _ = stream.read(&mut [0; 4096]);
                    then(stream);
                }),
                most => cutting(server.addr.tcp(), most, then),
            };
            match clients.connect(secure(addr)) {
                Err(Error::Connect { source, .. }) => {
                    let kind = source.kind();
                    assert!(matches!(kind, UnexpectedEof | ConnectionReset), "{kind}");
                }
                other => panic!("{most}: {other:?}"),
            }
        }
        until("nothing is left", || clients.connections() == 0);
    }
    // After the handshake, before the answer.
    let addr = native(|_, mut stream| {
        let _ = stream.read(&mut [0; 4096]);
        let _ = stream.shutdown();
    });
    match refusal(secure(addr)) {
        Error::Connect { .. } => {}
        other => panic!("{other:?}"),
    }
}

/// An open WebSocket whose TLS ends, with and without a word.
#[test]
fn the_connection_breaks() {
    for orderly in [true, false] {
        let addr = native(move |_, stream| {
            let mut socket = tungstenite::accept(stream).unwrap();
            socket.send(Message::text("hello")).unwrap();
            let _ = socket.read();
            match orderly {
                true => drop(socket.get_mut().shutdown()),
                false => drop(
                    socket
                        .get_ref()
                        .get_ref()
                        .shutdown(std::net::Shutdown::Both),
                ),
            }
        });
        let (handle, events) = secure(addr).connect().unwrap();
        assert_eq!(message(&events), Message::text("hello"));
        handle.send("bye").unwrap();
        let reason = end(&events);
        assert_eq!(reason.code(), CloseCode::Abnormal);
        assert!(
            matches!(reason.cause(), CloseCause::Eof | CloseCause::Transport),
            "{reason}"
        );
    }
}

// ---- reconnecting ----

fn quickly() -> Reconnect {
    Reconnect::new().delays(Duration::from_millis(5), Duration::from_millis(50))
}

fn reconnecting(events: &Receiver<ClientEvent>) -> Retry {
    match events.recv_timeout(WAIT).unwrap() {
        ClientEvent::Reconnecting(retry) => retry,
        other => panic!("{other:?}"),
    }
}

/// Each connection shakes hands anew.
#[test]
fn reconnects() {
    // The first breaks, the second closes, the third is one to stay.
    let addr = native(|n, stream| match n {
        0 => {
            let mut socket = tungstenite::accept(stream).unwrap();
            let _ = socket.read();
        }
        1 => {
            let mut socket = tungstenite::accept(stream).unwrap();
            let _ = socket.read();
            let _ = socket.close(Some(tungstenite::protocol::CloseFrame {
                code: CloseCode::Restart,
                reason: "".into(),
            }));
            while socket.read().is_ok() {}
        }
        _ => echo_of_tungstenite(stream),
    });
    for workers in [0, 2] {
        let clients = Clients::start(1, workers).unwrap();
        let (handle, events) = clients.connect(secure(addr).reconnect(quickly())).unwrap();
        if workers == 0 {
            for code in [CloseCode::Abnormal, CloseCode::Restart] {
                handle.send("go").unwrap();
                assert_eq!(end(&events).code(), code);
                let retry = reconnecting(&events);
                assert!(matches!(retry.reason, RetryReason::Closed(_)));
                match events.recv_timeout(WAIT).unwrap() {
                    ClientEvent::Open(peer, _) => assert_eq!(handle.peer(), Some(peer)),
                    other => panic!("{other:?}"),
                }
            }
        }
        handle.send("still here").unwrap();
        assert_eq!(message(&events), Message::text("still here"));
        assert!(
            handle
                .close_and_wait(CloseCode::Normal, "")
                .unwrap()
                .is_clean()
        );
    }
}

/// The server stops, and another takes its place at the same address.
#[test]
fn a_server_goes_and_comes_back() {
    let first = echo(2);
    let addr = first.addr.tcp();
    let (handle, events) = secure(addr).reconnect(quickly()).connect().unwrap();
    handle.send("one").unwrap();
    assert_eq!(message(&events), Message::text("one"));
    drop(first);
    let _: CloseReason = end(&events);
    reconnecting(&events);
    let mut listener = TcpListener::bind(addr);
    until("the port is free", || {
        if listener.is_err() {
            listener = TcpListener::bind(addr);
        }
        listener.is_ok()
    });
    let _second = echo_on(listener.unwrap(), 0);
    until("it is open again", || handle.is_open());
    handle.send("two").unwrap();
    loop {
        match events.recv_timeout(WAIT).unwrap() {
            ClientEvent::Message(message) => {
                assert_eq!(message, Message::text("two"));
                break;
            }
            ClientEvent::Open(..) | ClientEvent::Reconnecting(_) => {}
            other => panic!("{other:?}"),
        }
    }
}

/// A connection that breaks in the middle of a TLS handshake is no connection, and tried again.
#[test]
fn tls_handshakes_that_break_are_tried_again() {
    let acceptor = acceptor();
    let mut count = 0;
    let addr = each_connection(move |mut stream| {
        count += 1;
        match count {
            1 => drop(stream.read(&mut [0; 4096])),
            2 => reset(stream),
            _ => {
                let stream = acceptor.accept(stream).unwrap();
                thread::spawn(move || echo_of_tungstenite(stream));
            }
        }
    });
    for workers in [0, 1] {
        let clients = Clients::start(1, workers).unwrap();
        let (told, tells) = unbounded();
        let settings = secure(addr).reconnect(quickly());
        let handle = clients
            .open(settings, move |_: &Peer, message| told.send(message))
            .unwrap();
        until("it is open", || handle.is_open());
        handle.send("hello").unwrap();
        assert_eq!(tells.recv_timeout(WAIT).unwrap(), Message::text("hello"));
        assert!(clients.shutdown(WAIT));
    }
}

/// Somebody else has taken its place: no further attempt.
#[test]
fn an_untrusted_certificate_is_not_tried_again() {
    let server = echo(1);
    let (told, tells) = unbounded();
    struct Tell(crossbeam_channel::Sender<String>);
    impl ClientHandler for Tell {
        fn message(&mut self, _: &Peer, _: Message) {}
        fn retry(&mut self, retry: &Retry) {
            let _ = self.0.send(format!("attempt {}", retry.attempt));
        }
        fn error(&mut self, error: &Error) {
            let _ = self.0.send(error.to_string());
        }
    }
    let client = untrusting(server.addr).trust(Trust::only(RSA).unwrap());
    let handle = client.reconnect(quickly()).start(Tell(told)).unwrap();
    let why = tells.recv_timeout(WAIT).unwrap();
    assert!(why.starts_with("TLS: "), "{why}");
    assert!(matches!(handle.wait(), Err(Error::Tls(_))));
    no_more(&tells);
}

/// Whoever stops in the middle of a handshake is done with it at once.
#[test]
fn shutdown_in_the_middle_of_a_handshake() {
    let (kept, keeps) = unbounded();
    let silent = each_connection(move |stream| kept.send(stream).unwrap());
    for workers in [0, 1] {
        let clients = Clients::start(1, workers).unwrap();
        let (told, tells) = unbounded();
        struct Tell(crossbeam_channel::Sender<String>);
        impl ClientHandler for Tell {
            fn message(&mut self, _: &Peer, _: Message) {}
            fn error(&mut self, error: &Error) {
                let _ = self.0.send(error.to_string());
            }
        }
        let handle = clients.open(secure(silent), Tell(told)).unwrap();
        let mut stream: TcpStream = keeps.recv_timeout(WAIT).unwrap();
        // Its hello is there.
        assert_eq!(stream.read(&mut [0]).unwrap(), 1);
        assert!(handle.close(CloseCode::Normal, ""));
        let began = Instant::now();
        clients.shutdown(Duration::from_millis(100));
        assert!(began.elapsed() < WAIT / 4);
        assert!(handle.wait().is_err());
        assert!(tells.recv_timeout(WAIT).is_ok());
    }
}
