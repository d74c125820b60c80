//! What a server counts, against what was really done to it; and the text for Prometheus, against the
//! rules of its format.

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use framemill::{
    Accept, CloseCode, CloseReason, Handler, LoopMetrics, Members, Message, Metrics, Origin,
    Overflow, Peer, Refused, Request, Response, Room, Rooms, Server, ServerHandle, Tick,
};
use support::needs::installed;
use support::{Raw, Running, client, echo, echoes, frame, request, reset, serve, until};

/// Waits until a figure is what it is to be; it shows what it is instead.
#[track_caller]
fn comes_to<T: PartialEq + std::fmt::Debug>(
    server: &Running,
    figure: impl Fn(&Metrics) -> T,
    right: T,
) {
    let mut last = None;
    let deadline = std::time::Instant::now() + support::WAIT;
    while last.as_ref() != Some(&right) {
        assert!(
            std::time::Instant::now() < deadline,
            "{last:?}, not {right:?}"
        );
        last = Some(figure(&server.handle.metrics()));
    }
}

fn traffic(m: &LoopMetrics) -> [u64; 4] {
    [
        m.messages_received,
        m.bytes_received,
        m.messages_sent,
        m.bytes_sent,
    ]
}

/// Messages and bytes to the last one, with handlers on workers and inline, pipelined and not.
#[test]
fn messages_and_bytes_both_ways() {
    for workers in [0, 2] {
        let server = serve(
            |s| s.workers(workers),
            |peer: &Peer, m: Message| peer.send(m),
        );
        let mut raw = Raw::open(server.addr);
        let opening = request(server.addr).len() as u64;
        until("the answer is counted", || {
            server.handle.metrics().total.bytes_sent > 0
        });
        let answer = server.handle.metrics().total.bytes_sent;
        let hello = frame(0x81, b"hello");
        raw.write(&hello);
        assert_eq!(raw.frame().unwrap().1, b"hello");
        let many: Vec<u8> = (0..500).flat_map(|_| hello.clone()).collect();
        raw.write(&many);
        for _ in 0..500 {
            assert_eq!(raw.frame().unwrap().1, b"hello");
        }
        // Control frames and fragments are bytes, but only whole messages are messages.
        raw.write(&frame(0x89, b"ping"));
        assert_eq!(raw.frame().unwrap(), (0x8A, b"ping".to_vec()));
        raw.write(&frame(0x01, b"he"));
        raw.write(&frame(0x80, b"llo"));
        assert_eq!(raw.frame().unwrap().1, b"hello");
        let received = opening + 501 * hello.len() as u64 + 10 + 8 + 9;
        let sent = answer + 502 * 7 + 6;
        comes_to(&server, |m| traffic(&m.total), [502, received, 502, sent]);

        let metrics = server.handle.metrics();
        assert_eq!(metrics.workers.len(), workers);
        if workers > 0 {
            let events = |m: &Metrics| m.workers.iter().map(|w| w.events).sum::<u64>();
            // The opening, and each message.
            comes_to(&server, events, 503);
            assert!(metrics.handler.count() >= 3, "runs of the mailbox");
            // The waiting of the first is measured, and then of one in eight.
            let waits = metrics.mailbox_wait.count();
            assert!((1..=metrics.handler.count() / 8 + 2).contains(&waits));
        }
        assert!(metrics.total.turns.count() >= 3);
        assert!(metrics.total.turns.sum() <= metrics.uptime);
    }
}

/// With handlers inline a sample of the runs is timed.
#[test]
fn inline_handlers_are_timed_too() {
    let handler = |peer: &Peer, message: Message| {
        std::thread::sleep(Duration::from_millis(2));
        peer.send(message)
    };
    let server = serve(|s| s.workers(0), handler);
    let mut client = client(server.addr);
    for n in 0..32 {
        echoes(&mut client, &n.to_string());
    }
    comes_to(&server, |m| m.handler.count(), 2);
    let metrics = server.handle.metrics();
    assert!(metrics.handler.quantile(0.5) >= Duration::from_millis(1));
    assert!(metrics.total.turns.quantile(0.5) >= Duration::from_millis(1));
}

/// A worker that is busy, and what waits for it.
#[test]
fn a_busy_worker_and_its_queue() {
    let (let_go, gate) = crossbeam_channel::bounded::<()>(0);
    let handler = move |_: &Peer, _: Message| gate.recv().is_ok();
    let server = serve(|s| s.workers(1), handler);
    // So many that some of those that wait are measured.
    let mut peers: Vec<_> = (0..16).map(|_| client(server.addr)).collect();
    for peer in &mut peers {
        peer.send(Message::text("x")).unwrap();
    }
    comes_to(&server, |m| (m.workers[0].busy, m.run_queue), (true, 15));
    // What the handler has taken so far counts, though it is not through.
    until("it shows", || {
        server.handle.metrics().workers[0].busy_time > Duration::from_millis(50)
    });
    let metrics = server.handle.metrics();
    assert!(metrics.handler.quantile(1.0) < Duration::from_millis(50));
    let samples = check(&metrics.prometheus());
    assert!(samples["framemill_worker_busy_seconds_total{worker=\"0\"}"] > 0.05);
    drop(let_go);
    comes_to(&server, |m| (m.workers[0].busy, m.run_queue), (false, 0));
    let last = server.handle.metrics().workers[0].busy_time;
    assert!(last > metrics.workers[0].busy_time && last < metrics.uptime + support::WAIT);
    let metrics = server.handle.metrics();
    assert_eq!(metrics.workers[0].busy_time, last, "it has nothing to do");
    // The first ran about as long as the others waited.
    assert!(metrics.handler.quantile(1.0) >= Duration::from_millis(30));
    assert!(metrics.mailbox_wait.quantile(1.0) >= Duration::from_millis(30));
}

/// A loop that is held up by a handler shows it meanwhile.
#[test]
fn a_busy_loop() {
    let (let_go, gate) = crossbeam_channel::bounded::<()>(0);
    let server = serve(
        |s| s.workers(0),
        move |_: &Peer, _: Message| gate.recv().is_ok(),
    );
    // Goes before the server, which waits for its loop.
    let let_go = let_go;
    let mut client = client(server.addr);
    comes_to(&server, |m| m.total.opened, 1);
    client.send(Message::text("x")).unwrap();
    until("it shows", || {
        let total = server.handle.metrics().total;
        total.busy_time > total.turns.sum() + Duration::from_millis(50)
    });
    drop(let_go);
    until("the turn is over", || {
        let total = server.handle.metrics().total;
        total.turns.sum() > Duration::from_millis(50)
    });
    let metrics = server.handle.metrics();
    let samples = check(&metrics.prometheus());
    assert!(samples["framemill_loop_busy_seconds_total{loop=\"0\"}"] > 0.05);
}

/// A handler that refuses, closes, panics, and answers plain requests.
struct Picky;

impl Handler for Picky {
    type Session = ();

    fn open(&self, request: &Request, _: &Peer) -> Result<Accept<()>, Response> {
        match request.path() {
            "/no" => Err(Response::unauthorized()),
            _ => Ok(Accept::new(())),
        }
    }

    fn message(&self, (): &mut (), peer: &Peer, message: Message) {
        match message.to_text().unwrap() {
            "panic" => panic!("on purpose"),
            _ => drop(peer.close(CloseCode::from(4001), "")),
        }
    }

    fn close(&self, (): (), _: &Peer, _: &CloseReason) {}

    fn http(&self, _: &Request) -> Response {
        Response::ok()
    }
}

fn only(pairs: &[(&'static str, u64)]) -> BTreeMap<&'static str, u64> {
    pairs.iter().copied().collect()
}

fn not_zero(counts: &BTreeMap<&'static str, u64>) -> BTreeMap<&'static str, u64> {
    let some = counts.iter().filter(|(_, count)| **count > 0);
    some.map(|(label, count)| (*label, *count)).collect()
}

#[test]
fn who_did_not_get_in_and_why() {
    let server = serve(
        |s| {
            s.origin(Origin::SameHost)
                .handshake_timeout(Duration::from_millis(150))
                .max_connections(4)
        },
        Picky,
    );
    let status = |sent: &str| {
        let mut raw = Raw::connect(server.addr);
        raw.write(sent.as_bytes());
        raw.response().0
    };
    let upgrade = request(server.addr);
    let host = "Host: x\r\n";
    let foreign = upgrade.replace("\r\n\r\n", "\r\nOrigin: http://evil.example\r\n\r\n");
    assert_eq!(status(&foreign), 403);
    assert_eq!(status(&upgrade.replace("GET / ", "GET /no ")), 401);
    assert_eq!(status(&upgrade.replace("Version: 13", "Version: 8")), 426);
    assert_eq!(status("nonsense\r\n\r\n"), 400);
    assert_eq!(status(&format!("PUT / HTTP/1.1\r\n{host}\r\n")), 405);
    let long = format!("GET / HTTP/1.1\r\n{host}X: {}\r\n\r\n", "x".repeat(9000));
    assert_eq!(status(&long), 431);
    assert_eq!(status(&format!("GET / HTTP/1.1\r\n{host}\r\n")), 200);
    assert_eq!(status("GET / HT"), 408);
    assert_eq!(Raw::connect(server.addr).rest(), b"", "silent");
    drop(Raw::connect(server.addr));
    comes_to(&server, |m| m.total.refused["hung_up"], 1);
    comes_to(&server, |m| m.connections, 0);
    let four: Vec<_> = (0..4).map(|_| Raw::open(server.addr)).collect();
    assert_eq!(status(&upgrade), 503);
    let right = only(&[
        ("origin", 1),
        ("handler", 1),
        ("version", 1),
        ("bad_request", 1),
        ("method", 1),
        ("too_large", 1),
        ("timeout", 1),
        ("silent", 1),
        ("hung_up", 1),
        ("max_connections", 1),
    ]);
    comes_to(&server, |m| not_zero(&m.total.refused), right);
    let figures = |m: &Metrics| {
        let t = &m.total;
        [t.accepted, t.opened, t.http_requests, t.connections]
    };
    comes_to(&server, figures, [15, 4, 1, 4]);
    drop(four);
    comes_to(&server, figures, [15, 4, 1, 0]);
}

/// Takes its time with whoever asks for `/slow`, until it is let go.
struct Slowpoke(crossbeam_channel::Receiver<()>);

impl Handler for Slowpoke {
    type Session = ();

    fn open(&self, request: &Request, _: &Peer) -> Result<Accept<()>, Response> {
        self.http(request);
        Ok(Accept::new(()))
    }

    fn message(&self, (): &mut (), _: &Peer, _: Message) {}

    fn http(&self, request: &Request) -> Response {
        if request.path() == "/slow" {
            let _ = self.0.recv();
        }
        Response::ok()
    }
}

fn sum(counts: &BTreeMap<&'static str, u64>) -> u64 {
    counts.values().sum()
}

/// Of a server that has ended: each socket is counted once, and what opened once more.
#[track_caller]
fn adds_up(server: &Running) -> LoopMetrics {
    let total = server.handle.metrics().total;
    let told = total.opened + total.http_requests + sum(&total.refused);
    assert_eq!(total.accepted, told, "{:?}", total.refused);
    assert_eq!(total.opened, sum(&total.closed_by_cause));
    assert_eq!(total.opened, sum(&total.closed_by_code));
    assert_eq!(total.connections, 0);
    total
}

/// However a connection ends before it is open.
#[test]
fn everybody_is_counted_once() {
    let (let_go, gate) = crossbeam_channel::bounded::<()>(0);
    let server = serve(
        |s| {
            s.workers(3)
                .max_connections(2)
                .handshake_timeout(Duration::from_secs(1))
        },
        Slowpoke(gate),
    );
    let so_far = |m: &Metrics| (m.total.accepted, m.total.connections);
    let two = [Raw::open(server.addr), Raw::open(server.addr)];
    // Over the limit, and then: nothing, half a request, the end.
    let mut silent = Raw::connect(server.addr);
    let mut half = Raw::connect(server.addr);
    half.write(b"GET / HT");
    drop(Raw::connect(server.addr));
    assert_eq!(silent.rest(), b"");
    assert_eq!(half.response().0, 408);
    drop((silent, half));
    comes_to(&server, so_far, (5, 2));
    drop(two);
    comes_to(&server, so_far, (5, 0));
    // In the middle of a request.
    let mut half = Raw::connect(server.addr);
    half.write(b"GET / HT");
    comes_to(&server, so_far, (6, 1));
    reset(half.stream);
    comes_to(&server, so_far, (6, 0));
    // The handler takes too long.
    let slow = request(server.addr).replace("GET / ", "GET /slow ");
    let slow = [&*slow, "GET /slow HTTP/1.1\r\nHost: x\r\n\r\n"].map(|sent| {
        let mut raw = Raw::connect(server.addr);
        raw.write(sent.as_bytes());
        raw
    });
    slow.into_iter()
        .for_each(|mut raw| assert_eq!(raw.rest(), b""));
    drop(let_go);
    comes_to(&server, so_far, (8, 0));
    assert!(server.handle.shutdown(support::WAIT));
    let right = only(&[("max_connections", 3), ("hung_up", 1), ("timeout", 2)]);
    assert_eq!(not_zero(&adds_up(&server).refused), right);
}

/// Whoever is there when the server ends.
#[test]
fn the_end_of_a_server_is_counted_too() {
    let (let_go, gate) = crossbeam_channel::bounded::<()>(0);
    let server = serve(|s| s.workers(2), Slowpoke(gate));
    let _open = Raw::open(server.addr);
    let _silent = Raw::connect(server.addr);
    let mut half = Raw::connect(server.addr);
    half.write(b"GET / HT");
    let slow = request(server.addr).replace("GET / ", "GET /slow ");
    let mut undecided = Raw::connect(server.addr);
    undecided.write(slow.as_bytes());
    comes_to(&server, |m| m.workers.iter().any(|w| w.busy), true);
    comes_to(&server, |m| m.total.accepted, 4);
    let ended = server.handle.shutdown(Duration::from_millis(100));
    assert!(!ended, "it had to cut somebody off");
    let total = adds_up(&server);
    assert_eq!(not_zero(&total.refused), only(&[("shutdown", 3)]));
    assert_eq!(total.opened, 1);
    drop(let_go);
}

/// Over TLS, and for those that a proxy brings.
#[test]
fn secured_and_proxied_ones_are_counted_once() {
    let settings = |s: Server, workers| {
        s.workers(workers)
            .handshake_timeout(Duration::from_secs(1))
            .max_connections_per_ip(1)
            .trust_proxies(["127.0.0.1"])
            .unwrap()
            .proxy_protocol(framemill::ProxyProtocol::Required)
    };
    let header = b"PROXY TCP4 192.0.2.1 192.0.2.2 1234 80\r\n";
    let so_far = |m: &Metrics| (m.total.accepted, m.total.connections);
    for workers in [0, 2] {
        let server = serve(|s| settings(s, workers), Picky);
        let mut first = Raw::connect(server.addr);
        first.write(header);
        first.write(request(server.addr).as_bytes());
        assert!(first.head().starts_with("HTTP/1.1 101 "));
        // Another from the same address says nothing more.
        let mut second = Raw::connect(server.addr);
        second.write(header);
        second.rest();
        drop(Raw::connect(server.addr));
        comes_to(&server, so_far, (3, 1));
        drop(first);
        comes_to(&server, so_far, (3, 0));
        assert!(server.handle.shutdown(support::WAIT));
        let right = only(&[("max_connections_per_ip", 1), ("hung_up", 1)]);
        assert_eq!(not_zero(&adds_up(&server).refused), right);
    }
    #[cfg(feature = "tls")]
    for workers in [0, 2] {
        let transport = support::Transport::Tls;
        let server = transport.serve(|s| settings(s, workers), Picky);
        // A balancer that looks whether the port is open is not one whose handshake failed.
        let parts = [&b""[..], header, &[header, &[0x16, 3, 1][..]].concat()];
        for (n, sent) in (1..).zip(parts) {
            let mut socket = std::net::TcpStream::connect(server.addr.tcp()).unwrap();
            socket.write_all(sent).unwrap();
            drop(socket);
            comes_to(&server, so_far, (n, 0));
        }
        assert!(server.handle.shutdown(support::WAIT));
        let right = only(&[("hung_up", 3)]);
        assert_eq!(not_zero(&adds_up(&server).refused), right);
    }
}

#[test]
fn how_connections_end() {
    let server = serve(|s| s.loops(2), Picky);
    let mut bye = client(server.addr);
    bye.close(None).unwrap();
    while bye.read().is_ok() {}
    drop(Raw::open(server.addr));
    for (sent, code) in [("close", 4001), ("panic", 1011)] {
        let mut raw = Raw::open(server.addr);
        raw.write(&frame(0x81, sent.as_bytes()));
        assert_eq!(raw.close_code(), Some(code));
        raw.write(&frame(0x88, &code.to_be_bytes()));
        raw.rest();
    }
    let mut raw = Raw::open(server.addr);
    raw.write(&[0xFF, 0x80, 0, 0, 0, 0]);
    assert_eq!(raw.close_code(), Some(1002));
    let causes = only(&[("handshake", 2), ("eof", 1), ("panic", 1), ("protocol", 1)]);
    comes_to(&server, |m| not_zero(&m.total.closed_by_cause), causes);
    let codes = only(&[
        ("1005", 1),
        ("1006", 1),
        ("4xxx", 1),
        ("1011", 1),
        ("1002", 1),
    ]);
    comes_to(&server, |m| not_zero(&m.total.closed_by_code), codes);
    // Dealt out to both loops, and the total is their sum.
    let metrics = server.handle.metrics();
    let opened: Vec<u64> = metrics.loops.iter().map(|l| l.opened).collect();
    assert_eq!(opened, [3, 2]);
    assert_eq!(metrics.total.opened, 5);
}

/// Peers that don't read: what is refused, dropped and conflated, and what waits.
#[test]
fn what_queues_lose_and_hold() {
    const SIZE: usize = 10_000;
    for overflow in [Overflow::DropNewest, Overflow::DropOldest] {
        let server = serve(
            |s| s.overflow(overflow).outbound_limit(1 << 20),
            |peer: &Peer, _: Message| {
                let payload = vec![0_u8; SIZE];
                for n in 0..2000_u32 {
                    let _ = peer.send(payload.clone());
                    let _ = peer.send_latest(n % 2, payload.clone());
                }
            },
        );
        let mut raw = Raw::open(server.addr);
        // Until the kernel takes no more; from then on its messages wait.
        until("the peer is blocked", || {
            raw.write(&frame(0x81, b"go"));
            server.handle.metrics().total.blocked_connections == 1
        });
        let lost = |m: &Metrics| {
            let t = &m.total;
            (t.messages_refused, t.messages_dropped, t.messages_conflated)
        };
        until("something is lost", || {
            let (refused, dropped, conflated) = lost(&server.handle.metrics());
            let policy = match overflow {
                Overflow::DropNewest => refused > 0 && dropped == 0,
                _ => dropped > 0 && refused == 0,
            };
            policy && conflated > 0
        });
        until("bytes are known to wait", || {
            server.handle.metrics().total.blocked_bytes > SIZE as u64
        });
        drop(raw);
        let gone = |m: &Metrics| [m.total.blocked_connections, m.total.blocked_bytes];
        comes_to(&server, gone, [0, 0]);
        // Nothing that was dropped or conflated had not been taken in before.
        let all = server.handle.metrics().total;
        assert!(all.messages_sent > all.messages_dropped + all.messages_conflated);
    }
}

/// Whether replaced in the queue or on the way there, behind a broadcast.
#[test]
fn what_was_conflated_was_sent_before() {
    for behind in [false, true] {
        let everybody = Arc::new(OnceLock::<ServerHandle>::new());
        let handle = everybody.clone();
        let server = serve(
            |s| {
                let _ = everybody.set(s.handle());
                s.workers(1)
            },
            move |peer: &Peer, _: Message| {
                if behind {
                    handle.get().unwrap().broadcast("all");
                }
                for n in 0..10 {
                    peer.send_latest("key", n.to_string()).unwrap();
                }
            },
        );
        let mut raw = Raw::open(server.addr);
        raw.write(&frame(0x81, b"go"));
        let mut received = 0;
        while raw.frame().unwrap().1 != b"9" {
            received += 1;
        }
        received += 1;
        comes_to(&server, |m| m.total.messages_sent, 10 + u64::from(behind));
        let lost = |m: &Metrics| m.total.messages_sent - m.total.messages_conflated;
        comes_to(&server, lost, received);
    }
}

/// What the kernel doesn't take is in TLS then, and nothing of it in the queue.
#[cfg(feature = "tls")]
#[test]
fn what_waits_in_tls_is_counted() {
    const SIZE: usize = 60_000;
    let send = |peer: &Peer, _: Message| peer.send(vec![0_u8; SIZE]);
    let server = support::Transport::Tls.serve_narrow(|s| s, send);
    let mut raw = support::spy::upgraded(support::spy::narrow(server.addr));
    raw.write(&frame(0x81, b"go"));
    let blocked = |m: &Metrics| m.total.blocked_connections;
    until("it is blocked", || {
        let all = server.handle.metrics().total;
        let waits = all.blocked_bytes;
        all.blocked_connections == 1 && (1..=SIZE as u64 + 1000).contains(&waits)
    });
    // What queues up behind it counts with it, once.
    raw.write(&frame(0x81, b"go"));
    until("more waits", || {
        let all = server.handle.metrics().total;
        assert_eq!(all.blocked_connections, 1);
        all.blocked_bytes > SIZE as u64
    });
    for _ in 0..2 {
        assert_eq!(raw.frame().unwrap().1.len(), SIZE);
    }
    let gone = |m: &Metrics| [m.total.blocked_connections, m.total.blocked_bytes];
    comes_to(&server, gone, [0, 0]);
    // And one that goes while it is blocked.
    raw.write(&frame(0x81, b"go"));
    comes_to(&server, blocked, 1);
    drop(raw);
    comes_to(&server, gone, [0, 0]);
}

/// On "join" subscribes; on anything else publishes a burst, which goes to the subscribers in one piece.
struct Bursts {
    size: usize,
    server: OnceLock<ServerHandle>,
    published: Arc<AtomicU64>,
}

const BURST: u64 = 50;

impl Handler for Bursts {
    type Session = ();

    fn start(&self, server: &ServerHandle) {
        let _ = self.server.set(server.clone());
    }

    fn open(&self, _: &Request, _: &Peer) -> Result<Accept<()>, Response> {
        Ok(Accept::new(()))
    }

    fn message(&self, (): &mut (), peer: &Peer, message: Message) {
        if message.to_text().unwrap() == "join" {
            assert!(peer.subscribe("bursts"));
            let _ = peer.send("joined");
            return;
        }
        let server = self.server.get().unwrap();
        for _ in 0..BURST {
            assert!(server.publish("bursts", vec![0_u8; self.size]));
        }
        self.published.fetch_add(BURST, Ordering::SeqCst);
    }
}

fn bursts(size: usize) -> (Bursts, Arc<AtomicU64>) {
    let published = Arc::default();
    let bursts = Bursts {
        size,
        server: OnceLock::new(),
        published: Arc::clone(&published),
    };
    (bursts, published)
}

fn joined(server: &Running) -> Raw {
    let mut raw = Raw::open(server.addr);
    raw.write(&frame(0x81, b"join"));
    assert_eq!(raw.frame(), Some((0x81, b"joined".to_vec())));
    raw
}

/// Each delivery is one message, also of those that are put into a queue together.
#[test]
fn each_message_of_a_burst_counts() {
    let (handler, _) = bursts(10);
    let server = serve(|s| s.workers(0), handler);
    let mut subscribers = [joined(&server), joined(&server)];
    let mut publisher = Raw::open(server.addr);
    publisher.write(&frame(0x81, b"go"));
    for raw in &mut subscribers {
        for _ in 0..BURST {
            assert_eq!(raw.frame(), Some((0x82, vec![0; 10])));
        }
    }
    let sent = 2 + 2 * BURST;
    comes_to(&server, |m| m.total.messages_sent, sent);
}

/// What finds the queue full counts too, so that nothing is unaccounted for.
#[test]
fn each_message_of_a_burst_that_is_refused_counts() {
    let (handler, published) = bursts(200);
    let settings = |s: Server| {
        let s = s.workers(0).overflow(Overflow::DropNewest);
        s.outbound_limit(64 << 10)
    };
    let server = serve(settings, handler);
    let stalled = joined(&server);
    let mut publisher = Raw::open(server.addr);
    until("some are refused", || {
        publisher.write(&frame(0x81, b"go").repeat(100));
        server.handle.metrics().total.messages_refused > 0
    });
    // It has answered, so all before that is published.
    publisher.write(&frame(0x89, b"?"));
    assert_eq!(publisher.frame(), Some((0x8A, b"?".to_vec())));
    drop(stalled);
    until("it is gone", || server.handle.connections() == 1);
    let counted = |m: &Metrics| m.total.messages_sent - 1 + m.total.messages_refused;
    comes_to(&server, counted, published.load(Ordering::SeqCst));
}

#[test]
fn pings_and_pauses() {
    let (let_go, gate) = crossbeam_channel::bounded::<()>(0);
    let server = serve(
        |s| {
            s.ping(Duration::from_millis(20), support::WAIT)
                .inbound_limit(4, 1 << 20)
        },
        move |_: &Peer, _: Message| gate.recv().is_ok(),
    );
    let mut raw = Raw::open(server.addr);
    let (first, payload) = raw.frame().unwrap();
    assert_eq!(first, 0x89);
    raw.write(&frame(0x8A, &payload));
    comes_to(&server, |m| m.total.round_trips.count(), 1);
    let trip = server.handle.metrics().total.round_trips.sum();
    assert!(trip > Duration::ZERO && trip < support::WAIT);
    raw.write(&frame(0x81, b"x").repeat(10));
    comes_to(&server, |m| m.total.reading_paused, 1);
    drop(let_go);
    comes_to(&server, |m| m.total.messages_received, 10);
}

/// One pong to each ping counts, however many come.
#[test]
fn pongs_that_nobody_asked_for() {
    let server = serve(
        |s| s.ping(Duration::from_millis(50), support::WAIT),
        |peer: &Peer, m: Message| peer.send(m),
    );
    let mut raw = Raw::open(server.addr);
    let (first, payload) = raw.frame().unwrap();
    assert_eq!(first, 0x89);
    let mut pongs = frame(0x8A, &payload).repeat(100);
    pongs.extend(frame(0x81, b"hello"));
    raw.write(&pongs);
    while raw.frame().unwrap().0 != 0x81 {}
    assert_eq!(server.handle.metrics().total.round_trips.count(), 1);
}

struct Slow;

impl Room for Slow {
    type Join = ();

    fn join(&mut self, _: &mut Members, _: &Peer, (): ()) -> Result<(), Refused> {
        Ok(())
    }

    fn message(&mut self, _: &mut Members, _: &Peer, _: Message) {}

    fn tick(&mut self, room: &mut Members, _: Tick) {
        // Two periods and a half.
        std::thread::sleep(Duration::from_millis(25));
        room.broadcast("tick");
    }
}

#[test]
fn late_ticks_are_counted() {
    let rooms = Rooms::new(|_| Slow).tick_rate(100.0);
    let stats = rooms.clone();
    let server = serve(|s| s, rooms.handler(|_| Ok(("slow".into(), ()))));
    let mut client = client(server.addr);
    for _ in 0..4 {
        assert_eq!(client.read().unwrap(), Message::text("tick"));
    }
    let ticks = server.handle.metrics().ticks;
    let room = stats.find("slow").unwrap().stats();
    assert!(ticks.merged > 0 && ticks.overruns > 0, "{ticks:?}");
    assert!((4..=room.ticks).contains(&ticks.late.count()));
    assert!(ticks.merged <= room.merged);
}

#[test]
fn a_server_that_does_not_run_has_done_nothing() {
    let server = Server::bind("127.0.0.1:0").unwrap();
    let metrics = server.handle().metrics();
    assert!(metrics.loops.is_empty() && metrics.connections == 0);
    // Every label is there to be asked for.
    assert_eq!(metrics.total.refused["tls"], 0);
    assert_eq!(metrics.total.closed_by_cause["eof"], 0);
    assert_eq!(metrics.total.closed_by_code["1000"], 0);
    check(&metrics.prometheus());
}

// ---- the text for Prometheus ----

/// Requires what its format says: <https://prometheus.io/docs/instrumenting/exposition_formats/>. Gives
/// the samples.
fn check(text: &str) -> BTreeMap<String, f64> {
    assert!(text.ends_with('\n'));
    let name = |name: &str| {
        let rest = name.trim_start_matches("framemill_");
        rest.len() < name.len()
            && rest
                .bytes()
                .all(|b| matches!(b, b'a'..=b'z' | b'_' | b'0'..=b'9'))
    };
    let (mut samples, mut metrics) = (BTreeMap::new(), BTreeSet::new());
    let (mut current, mut kind) = ("", "");
    let mut last_bucket: Option<(String, f64, f64)> = None;
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        if let Some(help) = line.strip_prefix("# HELP ") {
            let (metric, words) = help.split_once(' ').expect(line);
            assert!(name(metric) && !words.is_empty() && !words.contains('\\'));
            let again = !metrics.insert(metric);
            assert!(!again, "{metric} stands there twice");
            let typed = lines.next().unwrap().strip_prefix("# TYPE ").expect(line);
            let (same, of_kind) = typed.split_once(' ').unwrap();
            assert_eq!(same, metric);
            assert!(["counter", "gauge", "histogram"].contains(&of_kind));
            assert_eq!(metric.ends_with("_total"), of_kind == "counter");
            (current, kind) = (metric, of_kind);
            continue;
        }
        let (series, value) = line.rsplit_once(' ').expect(line);
        let value: f64 = value.parse().expect(line);
        assert!(value >= 0.0, "{line}");
        let (metric, labels) = match series.split_once('{') {
            None => (series, ""),
            Some((metric, labels)) => (metric, labels.strip_suffix('}').expect(line)),
        };
        for label in labels.split_terminator(',') {
            let (label, value) = label.split_once('=').expect(line);
            assert!(label.bytes().all(|b| b.is_ascii_lowercase()), "{line}");
            let value = value.strip_prefix('"').and_then(|v| v.strip_suffix('"'));
            assert!(!value.expect(line).contains(['"', '\\', '\n']));
        }
        let suffix = metric.strip_prefix(current).expect(line);
        match kind {
            "histogram" => assert!(["_bucket", "_sum", "_count"].contains(&suffix), "{line}"),
            _ => assert_eq!(suffix, "", "{line}"),
        }
        // Buckets add up, in the order of their bounds; the last is all.
        if suffix == "_bucket" {
            let (others, bound) = labels.rsplit_once("le=\"").expect(line);
            let bound = bound.trim_end_matches('"').replace("+Inf", "inf");
            let bound: f64 = bound.parse().expect(line);
            if let Some((before, low, count)) = last_bucket.take().filter(|b| b.1 < f64::INFINITY) {
                assert!(before == others && low < bound && count <= value, "{line}");
            }
            last_bucket = Some((others.to_owned(), bound, value));
        } else if suffix == "_count" {
            let (_, bound, count) = last_bucket.clone().expect(line);
            assert!(bound == f64::INFINITY && count == value, "{line}");
        }
        let again = samples.insert(series.to_owned(), value).is_some();
        assert!(!again, "{series} stands there twice");
    }
    samples
}

#[test]
fn text_for_prometheus() {
    let server = echo();
    let mut client = client(server.addr);
    for n in 0..100 {
        echoes(&mut client, &n.to_string());
    }
    comes_to(&server, |m| m.total.messages_sent, 100);
    let text = server.handle.metrics().prometheus();
    let samples = check(&text);
    assert_eq!(
        samples["framemill_messages_received_total{loop=\"0\"}"],
        100.0
    );
    assert_eq!(samples["framemill_connections{loop=\"0\"}"], 1.0);
    assert_eq!(samples["framemill_closed_total{cause=\"no_pong\"}"], 0.0);
    assert!(samples["framemill_handler_seconds_count"] >= 1.0);
    assert!(!text.contains("backplane"));
    promtool(&text);

    // Its place is there before there is one.
    let mut metrics = server.handle.metrics();
    metrics.backplane = Some(framemill::BackplaneMetrics::default());
    let samples = check(&metrics.prometheus());
    assert_eq!(samples["framemill_backplane_connected"], 0.0);
    promtool(&metrics.prometheus());
}

/// What Prometheus itself says to it.
fn promtool(text: &str) {
    let Some(promtool) = installed("promtool") else {
        return;
    };
    let mut child = Command::new(promtool)
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child
        .stdin
        .take()
        .unwrap()
        .write_all(text.as_bytes())
        .unwrap();
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.is_empty(), "{said}");
}
