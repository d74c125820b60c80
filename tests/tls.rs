//! TLS itself: handshakes, their limits, and ends. What is the same over every transport is in the
//! other files.
#![cfg(feature = "tls")]

mod support;

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::process::{Command, Stdio};
use std::sync::{Mutex, OnceLock, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use framemill::{CloseCause, CloseCode, Error, Message, Origin, Peer, Sent, Server};
use native_tls::{Certificate, HandshakeError, TlsStream};
use support::spy::{PLENTY, frames, narrow, number, numbered, spy, upgraded};
use support::tls::{EC, RSA, connector, identity, slow_identity};
use support::{Addr, Raw, Running, Stream, Transport, WAIT, client, echoes, frame, request, until};

/// A deadline of the server that a test waits for.
const SHORT: Duration = Duration::from_millis(200);

/// For what must not happen: a while in which it would have.
const LONG_ENOUGH: Duration = Duration::from_millis(300);

/// Loops and workers.
const THREADS: [(usize, usize); 4] = [(1, 0), (1, 2), (2, 0), (2, 2)];

/// A TLS server that echoes.
fn serve(settings: impl FnOnce(Server) -> Server) -> Running {
    let echo = |peer: &Peer, message: Message| peer.send(message);
    Transport::Tls.serve(settings, echo)
}

/// TCP only.
fn socket(server: &Running) -> TcpStream {
    support::socket(server.addr.tcp()).tcp()
}

/// Up to the end of TCP, which must come in time.
fn rest(mut socket: TcpStream) -> Vec<u8> {
    let mut rest = Vec::new();
    match socket.read_to_end(&mut rest) {
        Err(error) if error.kind() != io::ErrorKind::ConnectionReset => panic!("{error}"),
        _ => rest,
    }
}

fn raw_echoes<S: Read + Write>(raw: &mut Raw<S>) {
    raw.write(&frame(0x81, b"hello"));
    assert_eq!(raw.frame(), Some((0x81, b"hello".to_vec())));
}

/// What a client says first.
fn client_hello() -> Vec<u8> {
    struct Deaf(Vec<u8>);

    impl Read for Deaf {
        fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
            Err(io::ErrorKind::WouldBlock.into())
        }
    }

    impl Write for Deaf {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    match connector().connect("localhost", Deaf(Vec::new())) {
        Err(HandshakeError::WouldBlock(stream)) => stream.get_ref().0.clone(),
        _ => panic!("it waits for no answer"),
    }
}

// ---- certificates ----

/// The certificate that the server shows.
fn certificate(raw: &Raw) -> Vec<u8> {
    let Stream::Tls(stream) = &raw.stream else {
        panic!("not TLS");
    };
    let certificate = |tls: &mut TlsStream<TcpStream>| tls.peer_certificate();
    let shown = stream.with(certificate).unwrap().expect("a certificate");
    shown.to_der().unwrap()
}

fn der(pem: &[u8]) -> Vec<u8> {
    Certificate::from_pem(pem).unwrap().to_der().unwrap()
}

#[test]
fn a_new_certificate_is_for_new_connections() {
    for (loops, workers) in THREADS {
        let server = serve(|s| s.loops(loops).workers(workers));
        let mut old = Raw::open(server.addr);
        assert_eq!(certificate(&old), der(EC));
        server.handle.reload_tls(slow_identity()).unwrap();
        // On each loop.
        for _ in 0..2 {
            let mut new = Raw::open(server.addr);
            assert_eq!(certificate(&new), der(RSA));
            raw_echoes(&mut new);
            raw_echoes(&mut old);
        }
        server.handle.reload_tls(identity()).unwrap();
        assert_eq!(certificate(&Raw::open(server.addr)), der(EC));
    }
}

#[test]
fn only_a_server_with_a_certificate_can_have_a_new_one() {
    let server = Transport::Plain.echo();
    let refused = server.handle.reload_tls(identity());
    assert!(matches!(refused, Err(Error::Config(_))), "{refused:?}");
    let idle = Server::bind("127.0.0.1:0").unwrap().tls(identity());
    let refused = idle.handle().reload_tls(identity());
    assert!(matches!(refused, Err(Error::Config(_))), "{refused:?}");
}

#[test]
fn alpn_agrees_on_http_1_1() {
    let server = serve(|s| s.workers(1));
    let Stream::Tls(stream) = support::socket(server.addr) else {
        panic!("not TLS");
    };
    let alpn = stream.with(|tls| tls.negotiated_alpn()).unwrap();
    assert_eq!(alpn.as_deref(), Some(&b"http/1.1"[..]));
}

// ---- who doesn't speak TLS ----

/// Keeps what framemill logs.
struct Log(Mutex<Vec<String>>);

impl log::Log for Log {
    fn enabled(&self, metadata: &log::Metadata<'_>) -> bool {
        metadata.target().starts_with("framemill")
    }

    fn log(&self, record: &log::Record<'_>) {
        if self.enabled(record.metadata()) {
            let line = format!("{} {}", record.level(), record.args());
            self.0.lock().unwrap().push(line);
        }
    }

    fn flush(&self) {}
}

impl Log {
    fn get() -> &'static Self {
        static LOG: Log = Log(Mutex::new(Vec::new()));
        static SET: OnceLock<()> = OnceLock::new();
        SET.get_or_init(|| {
            log::set_logger(&LOG).unwrap();
            log::set_max_level(log::LevelFilter::Debug);
        });
        &LOG
    }

    fn lines(&self, with: &str) -> Vec<String> {
        let lines = self.0.lock().unwrap();
        lines.iter().filter(|l| l.contains(with)).cloned().collect()
    }
}

#[test]
fn who_does_not_speak_tls_is_hung_up_on() {
    let log = Log::get();
    let http = "plain HTTP on a TLS port";
    let garbage = "does not speak TLS";
    let long = vec![b'x'; 100_000];
    let (mut told_http, mut told_garbage) = (0, 0);
    for workers in [0, 2] {
        let server = serve(|s| s.workers(workers).handshake_timeout(10 * WAIT));
        let upgrade = request(server.addr);
        for (bytes, why) in [
            (upgrade.as_bytes(), http),
            (b"POST / HTTP/1.1\r\n", http),
            (b"GET ", http),
            (b"SSH-2.0-OpenSSH_9.6\r\n", garbage),
            (b"GETTING", garbage),
            (b"\x80\x2E\x01\x00\x02", garbage),
            (b"\0", garbage),
            (&long, garbage),
        ] {
            let mut socket = socket(&server);
            // It may be hung up on before it is through.
            let _ = socket.write_all(bytes);
            assert_eq!(rest(socket), b"");
            match why == http {
                true => told_http += 1,
                false => told_garbage += 1,
            }
        }
        until("all are gone", || server.handle.connections() == 0);
        for (what, count) in [(http, told_http), (garbage, told_garbage)] {
            let lines = log.lines(what);
            assert_eq!(lines.len(), count, "{lines:#?}");
            assert!(lines.iter().all(|line| line.starts_with("DEBUG ")));
        }
        echoes(&mut client(server.addr), "still there?");
    }
}

// ---- handshakes that take their time ----

#[test]
fn a_handshake_that_is_never_finished_ends_in_time() {
    let hello = client_hello();
    for (loops, workers) in THREADS {
        let server = serve(|s| s.loops(loops).workers(workers).handshake_timeout(SHORT));
        for said in [&b""[..], b"G", &hello[..1], &hello[..60], &hello] {
            let begun = Instant::now();
            let mut socket = socket(&server);
            socket.write_all(said).unwrap();
            let answer = rest(socket);
            // The server's own hello is all that is ever said.
            assert_eq!(answer.is_empty(), said.len() < hello.len());
            let took = begun.elapsed() + Duration::from_millis(20);
            assert!(took >= SHORT, "{took:?} for {} bytes", said.len());
        }
        until("all are forgotten", || server.handle.connections() == 0);
    }
}

/// Writes each byte by itself.
#[derive(Debug)]
struct ByteByByte(TcpStream);

impl Read for ByteByByte {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.0.read(buf)
    }
}

impl Write for ByteByByte {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        for byte in bytes {
            self.0.write_all(&[*byte])?;
            thread::yield_now();
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_handshake_may_come_byte_by_byte() {
    for (loops, workers) in THREADS {
        let server = serve(|s| s.loops(loops).workers(workers));
        for _ in 0..3 {
            let stream = ByteByByte(socket(&server));
            let stream = connector().connect("localhost", stream).unwrap();
            raw_echoes(&mut upgraded(stream));
        }
    }
}

#[test]
fn slow_handshakes_hinder_nobody() {
    const SLOW: usize = 250;
    let hello = client_hello();
    for workers in [0, 2] {
        let server = serve(|s| s.workers(workers));
        let mut old = client(server.addr);
        let mut slow: Vec<TcpStream> = Vec::new();
        for n in 0..SLOW {
            // Not every system allows a long backlog.
            until("there is room", || server.handle.connections() + 50 > n);
            slow.push(socket(&server));
            // Each stops at another byte.
            slow[n].write_all(&hello[..n % hello.len()]).unwrap();
            echoes(&mut old, "meanwhile");
        }
        until("all are there", || server.handle.connections() == SLOW + 1);
        for _ in 0..20 {
            echoes(&mut client(server.addr), "a newcomer");
        }
        // They go on, and are answered.
        for (n, socket) in slow.iter_mut().enumerate() {
            socket.write_all(&hello[n % hello.len()..]).unwrap();
        }
        for socket in &mut slow {
            let mut first = [0];
            socket.read_exact(&mut first).unwrap();
            assert_eq!(first[0], 0x16, "a handshake record");
        }
        drop(slow);
        until("they are forgotten", || server.handle.connections() == 1);
        echoes(&mut old, "still there?");
    }
}

/// As many as there may be; the others wait, and have their turn.
#[test]
fn handshakes_beyond_the_limit_wait() {
    const MOST: usize = 4;
    const OTHERS: usize = 20;
    for (loops, workers) in THREADS {
        let server = serve(|s| s.loops(loops).workers(workers).max_tls_handshakes(MOST));
        let mut old = client(server.addr);
        let stuck: Vec<TcpStream> = (0..MOST).map(|_| socket(&server)).collect();
        until("all are there", || server.handle.connections() == MOST + 1);
        thread::scope(|scope| {
            let others: Vec<_> = (0..OTHERS)
                .map(|_| scope.spawn(|| raw_echoes(&mut Raw::open(server.addr))))
                .collect();
            let patience = Instant::now() + LONG_ENOUGH;
            while Instant::now() < patience {
                echoes(&mut old, "meanwhile");
                assert_eq!(server.handle.connections(), MOST + 1);
            }
            assert!(others.iter().all(|other| !other.is_finished()));
            drop(stuck);
            others.into_iter().for_each(|other| other.join().unwrap());
        });
        until("all have left", || server.handle.connections() == 1);
        // All places are free again.
        let _stuck: Vec<TcpStream> = (0..MOST).map(|_| socket(&server)).collect();
        until("all are there", || server.handle.connections() == MOST + 1);
    }
}

/// Those who begin a handshake and say no more don't keep others out for as long as one may take.
#[test]
fn silent_peers_make_room_when_others_wait() {
    const MOST: usize = 4;
    let hello = client_hello();
    for workers in [0, 2] {
        let settings = |s: Server| s.workers(workers).max_tls_handshakes(MOST);
        let server = serve(|s| settings(s).handshake_timeout(100 * support::WAIT));
        let silent = (0..MOST).map(|n| {
            let mut socket = socket(&server);
            socket.write_all(&hello[..n * hello.len() / MOST]).unwrap();
            socket
        });
        let _silent: Vec<TcpStream> = silent.collect();
        until("all are there", || server.handle.connections() == MOST);
        raw_echoes(&mut Raw::open(server.addr));
        // Nothing was wrong with their TLS.
        let refused = server.handle.metrics().total.refused;
        assert!(refused["silent"] > 0 && refused["tls"] == 0, "{refused:?}");
    }
}

/// A socket that is away for its handshake when its time is up has news later on, which are not those of
/// whoever has its place by then.
#[test]
fn news_of_the_dead_are_not_for_the_living() {
    let (block, blocked) = mpsc::channel::<()>();
    let blocked = Mutex::new(blocked);
    let hello = client_hello();
    let server = Transport::Tls.serve(
        |s| s.workers(1).handshake_timeout(Duration::from_secs(1)),
        move |_: &Peer, _: Message| {
            let _ = blocked.lock().unwrap().recv();
        },
    );
    let mut old = client(server.addr);
    old.send("block".into()).unwrap();
    let stuck = socket(&server);
    until("it is there", || server.handle.connections() == 2);
    (&stuck).write_all(&hello).unwrap();
    until("its time is up", || server.handle.connections() == 1);
    thread::scope(|scope| {
        let late = scope.spawn(|| drop(client(server.addr)));
        until("another is there", || server.handle.connections() == 2);
        drop(stuck);
        // The loop has heard of that when it has also let in another.
        let _third = socket(&server);
        until("the loop has turned", || server.handle.connections() == 3);
        drop(block);
        late.join().unwrap();
    });
}

#[test]
fn who_vanishes_in_mid_handshake_leaves_nothing() {
    let hello = client_hello();
    for workers in [0, 2] {
        // Enough for some only: a place that is not given back is missed.
        let server = serve(|s| s.workers(workers).max_tls_handshakes(10));
        for (n, len) in (0..=hello.len()).step_by(5).enumerate() {
            let mut socket = socket(&server);
            socket.write_all(&hello[..len]).unwrap();
            match n % 4 {
                0 => support::reset(socket),
                1 => socket.shutdown(Shutdown::Write).unwrap(),
                _ => drop(socket),
            }
        }
        for n in 0..20 {
            let mut socket = socket(&server);
            socket.write_all(&hello).unwrap();
            socket.read_exact(&mut [0; 10]).unwrap();
            match n % 2 {
                0 => support::reset(socket),
                _ => drop(socket),
            }
        }
        until("all are gone", || server.handle.connections() == 0);
        thread::scope(|scope| {
            for _ in 0..20 {
                scope.spawn(|| raw_echoes(&mut Raw::open(server.addr)));
            }
        });
    }
}

// ---- what is said at once ----

/// The request, messages and the end follow the handshake without a pause, while the server may still
/// be at it.
#[test]
fn all_may_be_said_at_once() {
    for (loops, workers) in THREADS {
        let server = serve(|s| s.loops(loops).workers(workers));
        let all = [
            request(server.addr).into_bytes(),
            frame(0x81, b"one"),
            frame(0x82, &[7; 100_000]),
            frame(0x88, b"\x03\xE8"),
        ]
        .concat();
        for _ in 0..20 {
            let mut raw = Raw::connect(server.addr);
            raw.write(&all);
            assert!(raw.head().starts_with("HTTP/1.1 101 "));
            assert_eq!(raw.frame(), Some((0x81, b"one".to_vec())));
            assert!(raw.frame() == Some((0x82, vec![7; 100_000])));
            assert_eq!(raw.close_code(), Some(1000));
            assert_eq!(raw.frame(), None);
        }
    }
}

// ---- ends ----

/// Looks at the records that come: native-tls does not tell an end of TLS from one of TCP.
#[derive(Debug)]
struct Watched {
    socket: TcpStream,
    /// What is there of the head of the next record.
    head: Vec<u8>,
    /// What is to come of the record that has begun.
    body: usize,
    /// The type of the last one.
    last: u8,
}

impl Watched {
    fn watch(&mut self, mut bytes: &[u8]) {
        while let Some((&byte, rest)) = bytes.split_first() {
            if self.body > 0 {
                let now = self.body.min(bytes.len());
                self.body -= now;
                bytes = &bytes[now..];
                continue;
            }
            bytes = rest;
            self.head.push(byte);
            if let [kind, _, _, high, low] = self.head[..] {
                self.last = kind;
                self.body = u16::from_be_bytes([high, low]).into();
                self.head.clear();
            }
        }
    }
}

impl Read for Watched {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.socket.read(buf)?;
        self.watch(&buf[..n]);
        Ok(n)
    }
}

impl Write for Watched {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.socket.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

type WatchedRaw = Raw<TlsStream<Watched>>;

fn watched(server: &Running) -> WatchedRaw {
    let stream = Watched {
        socket: socket(server),
        head: Vec::new(),
        body: 0,
        last: 0,
    };
    Raw::over(connector().connect("localhost", stream).unwrap())
}

fn watched_open(server: &Running) -> WatchedRaw {
    upgraded(watched(server).stream)
}

/// Reads to the end, which must be one of TLS and not just of TCP.
#[track_caller]
fn ends_with_close_notify(raw: &mut WatchedRaw) {
    raw.rest();
    let Watched {
        head, body, last, ..
    } = raw.stream.get_ref();
    assert!(
        head.is_empty() && *body == 0,
        "the last record is not whole"
    );
    assert_eq!(*last, 0x15, "an alert");
}

#[test]
fn every_end_is_announced() {
    for (loops, workers) in THREADS {
        let (handler, seen) = spy(|peer: &Peer, message: Message| match message.to_text() {
            Ok("close") => assert!(peer.close(CloseCode::Normal, "")),
            _ => drop(peer.send(message)),
        });
        let settings = |s: Server| s.loops(loops).workers(workers).max_connections(1);
        let server = Transport::Tls.serve(settings, handler);
        let all_gone = || until("all are gone", || server.handle.connections() == 0);
        let open = || {
            all_gone();
            watched_open(&server)
        };

        // The peer closes, the server closes.
        let mut raw = open();
        raw.write(&frame(0x88, b"\x03\xE8"));
        ends_with_close_notify(&mut raw);
        drop(raw);
        assert_eq!(seen.end().cause(), CloseCause::Handshake);
        let mut raw = open();
        raw.write(&frame(0x81, b"close"));
        assert_eq!(raw.close_code(), Some(1000));
        raw.write(&frame(0x88, b"\x03\xE8"));
        ends_with_close_notify(&mut raw);
        drop(raw);
        assert!(seen.end().is_clean());

        // The peer ends TLS only: what it has said is answered, and so is the end.
        let mut raw = open();
        raw.write(&[frame(0x81, b"one"), frame(0x81, b"two")].concat());
        raw.stream.shutdown().unwrap();
        assert_eq!(raw.frame(), Some((0x81, b"one".to_vec())));
        assert_eq!(raw.frame(), Some((0x81, b"two".to_vec())));
        ends_with_close_notify(&mut raw);
        assert_eq!(seen.end().cause(), CloseCause::Eof);

        // It breaks a rule, or is silent.
        let mut raw = open();
        raw.write(b"\xFF\xFF");
        assert_eq!(raw.close_code(), Some(1002));
        ends_with_close_notify(&mut raw);
        drop(raw);
        assert!(matches!(seen.end().cause(), CloseCause::Protocol(_)));
        let strict = serve(|s| s.loops(loops).workers(workers).ping(SHORT, SHORT));
        let mut raw = watched_open(&strict);
        ends_with_close_notify(&mut raw);

        // Plain HTTP, and a refusal.
        all_gone();
        let mut raw = watched(&server);
        raw.write(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n");
        assert!(raw.head().starts_with("HTTP/1.1 426 "));
        ends_with_close_notify(&mut raw);
        drop(raw);
        let _only = open();
        let mut raw = watched(&server);
        raw.write(request(server.addr).as_bytes());
        assert!(raw.head().starts_with("HTTP/1.1 503 "));
        ends_with_close_notify(&mut raw);
    }
}

#[test]
fn a_shutdown_says_goodbye() {
    for (loops, workers) in THREADS {
        for deadline in [WAIT, Duration::ZERO] {
            let server = serve(|s| s.loops(loops).workers(workers));
            let mut raws: Vec<WatchedRaw> = (0..10).map(|_| watched_open(&server)).collect();
            // Some are not so far.
            let mut hello = socket(&server);
            hello.write_all(&client_hello()[..50]).unwrap();
            let silent = socket(&server);
            until("all are there", || server.handle.connections() == 12);
            thread::scope(|scope| {
                let shutdown = scope.spawn(|| server.handle.shutdown(deadline));
                for raw in &mut raws {
                    assert_eq!(raw.close_code(), Some(1001));
                    if !deadline.is_zero() {
                        raw.write(&frame(0x88, b"\x03\xE9"));
                    }
                    ends_with_close_notify(raw);
                }
                assert_eq!(rest(hello), b"");
                assert_eq!(rest(silent), b"");
                raws.clear();
                assert_eq!(shutdown.join().unwrap(), !deadline.is_zero());
            });
        }
    }
}

// ---- much at once ----

/// Nothing stalls, though most of what there is to read is announced by no event of its own, and most
/// of what there is to write waits for the reader.
#[test]
fn long_messages_both_ways_with_a_slow_reader() {
    const LEN: usize = 1 << 20;
    const COUNT: u32 = 12;
    for (loops, workers) in THREADS {
        let (handler, seen) = spy(|peer: &Peer, message| drop(peer.send(message)));
        let settings = |s: Server| {
            s.loops(loops)
                .workers(workers)
                .outbound_limit(COUNT as usize * (LEN + 10))
        };
        let server = Transport::Tls.serve_narrow(settings, handler);
        let mut raw = upgraded(narrow(server.addr));
        let peer = seen.peer();
        let mut writer = Raw::over(raw.stream.try_clone().unwrap());
        thread::scope(|scope| {
            scope.spawn(move || (0..COUNT).for_each(|n| writer.write(&frames(n..n + 1, LEN))));
            let mut echo = vec![0; 10 + LEN];
            for n in 0..COUNT {
                // Now and then nothing is read until the server can write no more.
                if n % 4 == 0 {
                    until("an answer waits", || peer.queued_bytes() > LEN / 4);
                }
                for piece in echo.chunks_mut(50_000) {
                    raw.stream.read_exact(piece).unwrap();
                }
                assert_eq!(number(&echo[10..]), n);
            }
        });
        until("nothing is queued", || peer.queued_bytes() == 0);
        raw_echoes(&mut raw);
    }
}

/// What waits behind what TLS has kept goes out before the end. No event tells of room for that alone: the
/// kernel announces room when a third of its buffer is free, and a read sends what TLS has kept before.
#[test]
fn what_waits_behind_tls_is_sent_before_the_end() {
    const LEN: usize = 1 << 10;
    let ends = [
        (Some(1000), frame(0x88, b"\x03\xE8")),
        (Some(1002), frame(0x83, b"?")),
        (None, Vec::new()),
    ];
    for workers in [0, 2] {
        for (code, last) in &ends {
            let (handler, seen) = spy(|_, _| ());
            let server = Transport::Tls.serve(|s| s.workers(workers), handler);
            let mut raw = Raw::open(server.addr);
            let peer = seen.peer();
            // One by one, so that TLS keeps a part of one only; the last waits behind that.
            let mut sent = 1;
            while peer.send(numbered(sent - 1, LEN)).unwrap() == Sent::Queued {
                sent += 1;
                let deadline = Instant::now() + WAIT;
                while peer.queued_bytes() > 0 {
                    assert!(Instant::now() < deadline, "message {sent} is not taken");
                    thread::yield_now();
                }
            }
            let mut next = 0..sent;
            let mut read = |(first, payload): (u8, Vec<u8>)| {
                let same = first == 0x82 && next.next() == Some(number(&payload));
                assert!(same, "{first:x}, before {next:?}");
            };
            // Room for more than TLS keeps, and for far less than a third of what the kernel holds.
            let early = sent / 16;
            (0..early).for_each(|_| read(raw.frame().unwrap()));
            raw.write(last);
            if code.is_none() {
                raw.stream.shutdown(Shutdown::Write).unwrap();
            }
            (early..sent).for_each(|_| read(raw.frame().expect("all that was sent")));
            assert_eq!(raw.close_code(), *code);
            assert_eq!(raw.frame(), None);
            assert_eq!(seen.end().undelivered_bytes(), 0);
        }
    }
}

/// RFC 6455 §5.5.3: the pong of the latest ping is enough, also where TLS has taken all that was to be
/// written and the kernel has not.
#[test]
fn pings_of_a_peer_that_does_not_read_cost_nothing() {
    for workers in [0, 2] {
        let (handler, seen) = spy(|_, _| ());
        let server = Transport::Tls.serve_narrow(|s| s.workers(workers).no_ping(), handler);
        let mut raw = upgraded(narrow(server.addr));
        let peer = seen.peer();
        let pings = frame(0x89, &[7; 125]).repeat(1000);
        for _ in 0..60 {
            raw.write(&pings);
            let queued = peer.queued_bytes();
            assert!(queued < PLENTY / 2, "{queued} bytes queued");
        }
        raw.write(&frame(0x89, b"last"));
        while raw.frame().unwrap() != (0x8A, b"last".to_vec()) {}
    }
}

/// A Unix socket beside a TLS port is plain.
#[cfg(unix)]
#[test]
fn a_broadcast_reaches_every_transport() {
    for (loops, workers) in THREADS {
        let (unix, bound) = Transport::Unix.bind();
        let server = unix.and_bind("127.0.0.1:0").unwrap().tls(identity());
        let server = server.origin(Origin::Any).loops(loops).workers(workers);
        let server = bound.running(server.start(|_: &Peer, _: Message| ()).unwrap());
        let tls = Addr::Tls(server.handle.local_addr().unwrap());
        let mut raws: Vec<Raw> = [tls, server.addr, tls, server.addr]
            .map(Raw::open)
            .into_iter()
            .collect();
        let long = numbered(1, 100_000);
        assert!(server.handle.broadcast("to all"));
        assert!(server.handle.broadcast(long.clone()));
        for raw in &mut raws {
            assert_eq!(raw.frame(), Some((0x81, b"to all".to_vec())));
            assert!(raw.frame() == Some((0x82, long.to_vec())));
        }
    }
}

// ---- a foreign peer ----

#[test]
fn openssl_s_client() {
    let Some(openssl) = support::needs::installed("openssl") else {
        return;
    };
    // At its usual level it would not even want 1.1.
    let old = ["-tls1_1", "-cipher", "DEFAULT@SECLEVEL=0"];
    for (version, works) in [(&["-tls1_2"][..], true), (&old, false)] {
        let server = serve(|s| s.workers(2));
        let certificate = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/certs/ec.pem");
        let mut peer = Command::new(&openssl)
            .args(["s_client", "-quiet", "-verify_return_error"])
            .args(version)
            .args(["-CAfile", certificate, "-verify_hostname", "localhost"])
            .args(["-alpn", "http/1.1"])
            .args(["-connect", &server.addr.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut stdin = peer.stdin.take().unwrap();
        let all = [
            request(server.addr).into_bytes(),
            frame(0x81, b"hello"),
            frame(0x88, b"\x03\xE8"),
        ];
        // It may have given up already.
        let _ = stdin.write_all(&all.concat());
        let mut answer = Vec::new();
        // The server's end is its end.
        peer.stdout
            .take()
            .unwrap()
            .read_to_end(&mut answer)
            .unwrap();
        assert_eq!(peer.wait().unwrap().success(), works);
        assert_eq!(answer.starts_with(b"HTTP/1.1 101 "), works);
        assert_eq!(answer.ends_with(b"\x81\x05hello\x88\x02\x03\xE8"), works);
        drop(stdin);
    }
}

// ---- what a handshake costs the others ----

/// With an RSA key of 4096 bits a handshake costs the server milliseconds. They are made on the
/// workers, so that a loop serves others meanwhile: while the only worker is busy, nobody's is made.
#[test]
fn handshakes_do_not_stop_a_loop() {
    let (let_go, gate) = mpsc::channel::<()>();
    let gate = Mutex::new(gate);
    let (entered, is_in) = mpsc::channel();
    let hold = move |_: &Peer, _: Message| {
        entered.send(()).unwrap();
        // Closed, the gate is open.
        let _ = gate.lock().unwrap().recv_timeout(WAIT);
    };
    let settings = |s: Server| s.loops(1).workers(1).tls(slow_identity());
    let server = Transport::Tls.serve(settings, hold);
    let mut open = Raw::open(server.addr);
    open.write(&frame(0x81, b"hold the worker"));
    is_in.recv_timeout(WAIT).unwrap();
    let mut arriving = socket(&server);
    arriving.set_read_timeout(Some(WAIT)).unwrap();
    arriving.write_all(&client_hello()).unwrap();
    // The loop, which has seen the hello, answers pings itself; and sees to what it had no time for after
    // the first.
    until("both are there", || server.handle.connections() == 2);
    for payload in [b"1", b"2", b"3"] {
        open.write(&frame(0x89, payload));
        assert_eq!(open.frame(), Some((0x8A, payload.to_vec())));
    }
    arriving.set_nonblocking(true).unwrap();
    let early = arriving.read(&mut [0]).unwrap_err();
    assert_eq!(early.kind(), io::ErrorKind::WouldBlock);
    drop(let_go);
    arriving.set_nonblocking(false).unwrap();
    let mut answer = [0; 6];
    arriving.read_exact(&mut answer).unwrap();
    assert_eq!((answer[0], answer[5]), (0x16, 2), "a ServerHello");
}
