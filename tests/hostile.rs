//! Peers that mean harm, and peers that merely behave as if: slow, deaf, raving, half gone, gone.
//! Whatever they do, the server lives, forgets them, and serves the others. (Those who flood it are
//! in `fairness`.)

mod support;

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::ops::Range;
use std::panic::resume_unwind;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, unbounded};
use framemill::{
    Accept, Bytes, CloseCause, CloseCode, CloseReason, Handler, Message, Overflow, Peer, Request,
    Response, SendError, Sent,
};
use support::needs::not_allowed;
use support::{
    Addr, Raw, Running, Transport, WAIT, alone, client, descriptors, echoes, frame, memory,
    over_every_transport, request, reset, serve, until,
};

over_every_transport! {
    byte_by_byte_beside_others,
    what_stays_incomplete_waits_alone_and_costs_nothing,
    half_closes_at_any_point,
    a_half_closed_client_gets_all_of_a_long_page,
    a_slow_reader_gets_all_of_a_long_page,
    a_long_page_is_not_copied_for_each,
    a_panic_anywhere_ends_its_own_connection_only,
}

/// Echoes, and keeps account of those who came and went.
#[derive(Clone, Default)]
struct Echo(Arc<Account>);

#[derive(Default)]
struct Account {
    opened: AtomicUsize,
    closed: AtomicUsize,
}

impl Handler for Echo {
    type Session = ();

    fn open(&self, _: &Request, _: &Peer) -> Result<Accept<()>, Response> {
        self.0.opened.fetch_add(1, Ordering::SeqCst);
        Ok(Accept::new(()))
    }

    fn message(&self, (): &mut (), peer: &Peer, message: Message) {
        let _ = peer.send(message);
    }

    fn close(&self, (): (), _: &Peer, _: &CloseReason) {
        self.0.closed.fetch_add(1, Ordering::SeqCst);
    }
}

/// Nobody is left behind, every `open` has had its `close`, and a new client is served.
fn assert_sound(server: &Running, Echo(account): &Echo) {
    until("all have left", || server.handle.connections() == 0);
    until("all are accounted for", || {
        account.opened.load(Ordering::SeqCst) == account.closed.load(Ordering::SeqCst)
    });
    echoes(&mut client(server.addr), "still there?");
}

/// A conversation as a client writes it: the request, and frames of every kind.
struct Script {
    request: Vec<u8>,
    frames: Vec<Vec<u8>>,
}

impl Script {
    fn new(addr: Addr) -> Self {
        Self {
            request: request(addr).into_bytes(),
            frames: vec![
                frame(0x81, b"hello"),
                frame(0x82, &[7; 200]),
                frame(0x01, b"frag"),
                frame(0x89, b"now"),
                frame(0x80, b"ments"),
                frame(0x81, b""),
                frame(0x88, b"\x03\xE8"),
            ],
        }
    }

    fn bytes(&self) -> Vec<u8> {
        [self.request.clone(), self.frames.concat()].concat()
    }

    /// What the server has to answer if it gets the first `len` bytes, in the order of the kinds:
    /// messages, pongs, the close frame.
    fn answers(&self, len: usize) -> Vec<(u8, Vec<u8>)> {
        let answers = [
            Some((0x81, b"hello".to_vec())),
            Some((0x82, vec![7; 200])),
            None,
            Some((0x8A, b"now".to_vec())),
            Some((0x81, b"fragments".to_vec())),
            Some((0x81, Vec::new())),
            Some((0x88, b"\x03\xE8".to_vec())),
        ];
        let mut end = self.request.len();
        let mut due = Vec::new();
        for (frame, answer) in self.frames.iter().zip(answers) {
            end += frame.len();
            due.extend(answer.filter(|_| end <= len));
        }
        sorted(due)
    }
}

/// Control frames may overtake messages, but each kind keeps its order.
fn sorted(mut frames: Vec<(u8, Vec<u8>)>) -> Vec<(u8, Vec<u8>)> {
    frames.sort_by_key(|(first, _)| first & 0x0F >= 8);
    frames
}

/// Every frame up to the end of the stream.
fn frames(raw: &mut Raw) -> Vec<(u8, Vec<u8>)> {
    sorted(std::iter::from_fn(|| raw.frame()).collect())
}

// ---- slow ----

#[test]
fn slow_handshakes_end_in_time_and_hinder_nobody() {
    const TIMEOUT: Duration = Duration::from_secs(1);
    let _alone = alone();
    for workers in [0, 2] {
        let account = Echo::default();
        let server = serve(
            |s| s.workers(workers).handshake_timeout(TIMEOUT),
            account.clone(),
        );
        let mut old = client(server.addr);
        // Few at a time, as not every system allows a long backlog.
        let slow = |before: usize| -> Vec<_> {
            let connect = |n| {
                until("there is room", || {
                    server.handle.connections() + 50 > before + n
                });
                Raw::connect(server.addr)
            };
            (0..100).map(connect).collect()
        };
        let (silent, mut stuck, mut dripping) = (slow(1), slow(101), slow(201));
        let half = &request(server.addr).into_bytes()[..60];
        stuck.iter_mut().for_each(|raw| raw.write(half));
        dripping.iter_mut().for_each(|raw| raw.write(half));
        until("all are there", || server.handle.connections() == 301);
        let begun = Instant::now();

        thread::scope(|scope| {
            let mut drips: Vec<_> = dripping
                .iter_mut()
                .map(|raw| raw.stream.try_clone().unwrap())
                .collect();
            scope.spawn(move || {
                while !drips.is_empty() {
                    drips.retain_mut(|stream| stream.write_all(b"x").is_ok());
                    thread::sleep(Duration::from_millis(20));
                }
            });
            while begun.elapsed() < TIMEOUT / 2 {
                echoes(&mut client(server.addr), "a newcomer");
                echoes(&mut old, "an old friend");
            }
            // Who sent nothing gets no answer.
            for mut raw in silent {
                assert_eq!(raw.rest(), b"");
            }
            for mut raw in stuck.into_iter().chain(dripping) {
                assert!(raw.rest().starts_with(b"HTTP/1.1 408 "));
                let _ = raw.stream.shutdown(Shutdown::Both);
            }
        });
        let took = begun.elapsed();
        assert!(took < TIMEOUT + Duration::from_secs(3), "{took:?}");
        echoes(&mut old, "an old friend");
        drop(old);
        assert_sound(&server, &account);
    }
}

/// With the handler inline, the loop accepts nobody while the handler is busy.
#[test]
fn a_rush_waits_in_the_backlog_and_not_for_a_second_syn() {
    const RUSH: usize = 400;
    let _alone = alone();
    let most = std::fs::read_to_string("/proc/sys/net/core/somaxconn").unwrap_or_default();
    if most.trim().parse().is_ok_and(|most: usize| most < RUSH) {
        return not_allowed(format_args!("this system allows a backlog of {most} only"));
    }
    let (begun, busy) = unbounded();
    let (go_on, wait) = unbounded::<()>();
    let server = serve(
        |s| s.workers(0),
        move |peer: &Peer, message: Message| {
            if message.is_binary() {
                begun.send(()).unwrap();
                wait.recv_timeout(WAIT).unwrap();
            }
            peer.send(message)
        },
    );
    let mut raw = Raw::open(server.addr);
    raw.write(&frame(0x82, b"take your time"));
    busy.recv_timeout(WAIT).unwrap();
    let rush: Vec<_> = (0..RUSH)
        .map(|_| TcpStream::connect_timeout(&server.addr.tcp(), WAIT / 10).unwrap())
        .collect();
    go_on.send(()).unwrap();
    until("all are there", || server.handle.connections() == RUSH + 1);
    drop((raw, rush));
    echoes(&mut client(server.addr), "still there?");
}

fn byte_by_byte_beside_others(transport: Transport) {
    let _alone = alone();
    for workers in [0, 2] {
        let account = Echo::default();
        let server = transport.serve(|s| s.workers(workers), account.clone());
        thread::scope(|scope| {
            for _ in 0..5 {
                scope.spawn(|| {
                    let script = Script::new(server.addr);
                    let mut raw = Raw::connect(server.addr);
                    script.bytes().iter().for_each(|&byte| raw.write(&[byte]));
                    assert!(raw.head().starts_with("HTTP/1.1 101 "));
                    assert_eq!(frames(&mut raw), script.answers(usize::MAX));
                });
            }
            for _ in 0..20 {
                echoes(&mut client(server.addr), "meanwhile");
            }
        });
        assert_sound(&server, &account);
    }
}

fn what_stays_incomplete_waits_alone_and_costs_nothing(transport: Transport) {
    let _alone = alone();
    for workers in [0, 2] {
        let account = Echo::default();
        let server = transport.serve(|s| s.workers(workers).max_message(1 << 29), account.clone());
        let mut good = client(server.addr);
        echoes(&mut good, "before");
        let before = memory("VmData");
        // Each claims half a gibibyte, which the limit allows, and leaves it at that.
        let claim = [&[0x82, 0xFF][..], &(1u64 << 29).to_be_bytes(), &[0; 4]].concat();
        let mut claims: Vec<_> = (0..50).map(|_| Raw::open(server.addr)).collect();
        for raw in &mut claims {
            raw.write(&claim);
            raw.write(b"not that much");
        }
        // These stop between two fragments, where there is room for a ping.
        let mut fragments: Vec<_> = (0..50).map(|_| Raw::open(server.addr)).collect();
        for raw in &mut fragments {
            raw.write(&[frame(0x01, b"once upon a"), frame(0x89, b"?")].concat());
            assert_eq!(raw.frame(), Some((0x8A, b"?".to_vec())));
        }
        for _ in 0..100 {
            echoes(&mut good, "meanwhile");
        }
        let grown = memory("VmData").saturating_sub(before);
        assert!(grown < 256 << 20, "{grown} bytes");
        // They may still change their mind.
        for raw in &mut fragments {
            raw.write(&frame(0x80, b" time"));
            assert_eq!(raw.frame(), Some((0x81, b"once upon a time".to_vec())));
        }
        assert_eq!(server.handle.connections(), 101);
        drop((good, claims, fragments));
        assert_sound(&server, &account);
    }
}

// ---- deaf ----

/// Makes its peers, and how they ended, known to the test.
struct Known(Sender<Peer>, Sender<CloseReason>);

impl Handler for Known {
    type Session = ();

    fn open(&self, _: &Request, peer: &Peer) -> Result<Accept<()>, Response> {
        // The test may know all it wants.
        let _ = self.0.send(peer.clone());
        Ok(Accept::new(()))
    }

    fn message(&self, (): &mut (), peer: &Peer, message: Message) {
        let _ = peer.send(message);
    }

    fn close(&self, (): (), _: &Peer, reason: &CloseReason) {
        let _ = self.1.send(reason.clone());
    }
}

const DEAF: usize = 50;
const QUEUE: usize = 256 << 10;

/// Peers that never read, and the server's view of them.
struct Deaf {
    server: Running,
    raws: Vec<Raw>,
    peers: Vec<Peer>,
    reasons: Receiver<CloseReason>,
}

impl Deaf {
    fn new(overflow: Overflow, workers: usize) -> Self {
        let (peers, opened) = unbounded();
        let (ends, reasons) = unbounded();
        let server = serve(
            |s| {
                s.workers(workers)
                    .outbound_limit(QUEUE)
                    .overflow(overflow)
                    .close_timeout(Duration::from_millis(500))
            },
            Known(peers, ends),
        );
        let raws = (0..DEAF).map(|_| Raw::open(server.addr)).collect();
        let peers = opened.iter().take(DEAF).collect();
        Self {
            server,
            raws,
            peers,
            reasons,
        }
    }

    /// Sends each peer numbered messages until `enough` says so of the number and the outcome.
    /// Memory stays within bounds all the while.
    fn flood(&self, mut enough: impl FnMut(&Peer, u32, Result<(), SendError>) -> bool) {
        let resident = memory("VmRSS");
        let mut peers: Vec<_> = self.peers.iter().map(|peer| (peer, false)).collect();
        for number in 0u32.. {
            peers.retain_mut(|(peer, deaf)| {
                let mut payload = vec![0; 4000];
                payload[..4].copy_from_slice(&number.to_be_bytes());
                let outcome = peer.send(Message::binary(payload)).map(drop);
                let queued = peer.queued_bytes();
                assert!(queued <= QUEUE + 4096, "{queued} bytes queued");
                if enough(peer, number, outcome) {
                    return false;
                }
                // Not faster than the loop writes, so that it is the kernel that fills first.
                until("the loop has written, or can't", || {
                    let little = peer.queued_bytes() <= QUEUE / 4;
                    *deaf = *deaf || !little && stalled(peer);
                    little || *deaf
                });
                true
            });
            let grown = memory("VmRSS").saturating_sub(resident);
            assert!(grown < 2 * DEAF * QUEUE + (32 << 20), "{grown} bytes");
            if peers.is_empty() {
                return;
            }
        }
    }
}

/// Whether the kernel takes no more for this peer (or its queue is more than half full, or over twice the limit).
fn stalled(peer: &Peer) -> bool {
    match peer.send(Message::Ping(Bytes::new())) {
        Ok(sent) => sent == Sent::Congested,
        Err(error) => matches!(error, SendError::Full(_)),
    }
}

/// More than the queue and the kernel's buffers hold: 16 MB.
const ENOUGH: u32 = 4000;

#[test]
fn a_deaf_peer_is_closed_by_default() {
    let _alone = alone();
    for workers in [0, 2] {
        let mut deaf = Deaf::new(Overflow::Close, workers);
        deaf.flood(|_, number, outcome| {
            assert!(number < ENOUGH, "nothing holds it up");
            matches!(outcome, Err(SendError::Closed(_)))
        });
        for _ in 0..DEAF {
            let reason = deaf.reasons.recv_timeout(WAIT).unwrap();
            assert_eq!(reason.code(), CloseCode::Again);
            assert_eq!(reason.cause(), CloseCause::Overflow);
            assert!(!reason.is_clean());
        }
        until("all are gone", || deaf.server.handle.connections() == 0);
        // They find what the kernel had for them, and the end.
        for raw in &mut deaf.raws {
            assert!(raw.rest().len() > QUEUE);
        }
        echoes(&mut client(deaf.server.addr), "can you hear me?");
    }
}

#[test]
fn a_deaf_peer_keeps_the_oldest_or_the_newest() {
    let _alone = alone();
    for (overflow, workers) in [
        (Overflow::DropNewest, 0),
        (Overflow::DropNewest, 2),
        (Overflow::DropOldest, 0),
        (Overflow::DropOldest, 2),
    ] {
        let mut deaf = Deaf::new(overflow, workers);
        let (mut accepted, mut refused) = (Vec::new(), 0);
        deaf.flood(|peer, number, outcome| {
            match outcome {
                Ok(()) if *peer == deaf.peers[0] => accepted.push(number),
                Ok(()) => {}
                Err(SendError::Full(_)) => refused += 1,
                Err(error) => panic!("{error}"),
            }
            number == ENOUGH
        });
        assert_eq!(refused > 0, overflow == Overflow::DropNewest, "{refused}");
        // One wakes up: what was kept for it is there, in order and whole.
        let (raw, peer) = (&mut deaf.raws[0], &deaf.peers[0]);
        let (mut got, mut marked) = (Vec::new(), false);
        loop {
            match raw.frame().unwrap() {
                (0x82, payload) => got.push(u32::from_be_bytes(payload[..4].try_into().unwrap())),
                (0x81, mark) => break assert_eq!(mark, b"the end"),
                // Probes.
                (first, _) => assert_eq!(first, 0x89),
            }
            if !marked && peer.queued_bytes() == 0 {
                peer.send(Message::text("the end")).unwrap();
                marked = true;
            }
        }
        if overflow == Overflow::DropNewest {
            assert_eq!(got, accepted);
        } else {
            assert!(got.is_sorted() && got.last() == Some(&ENOUGH), "{got:?}");
        }
        assert!(got.len() < ENOUGH as usize);
        assert_eq!(deaf.server.handle.connections(), DEAF);
        echoes(&mut client(deaf.server.addr), "can you hear me?");
    }
}

// ---- gone ----

#[test]
fn resets_at_any_point() {
    let _alone = alone();
    for workers in [0, 2] {
        let account = Echo::default();
        let server = serve(|s| s.workers(workers), account.clone());
        // Whatever is opened once is open now.
        assert_sound(&server, &account);
        until("it left", || server.handle.connections() == 0);
        let before = descriptors();
        let script = Script::new(server.addr);
        let bytes = script.bytes();
        for len in 0..=bytes.len() {
            let mut raw = Raw::connect(server.addr);
            raw.write(&bytes[..len]);
            reset(raw.stream);
            if let Some(frames) = bytes[..len].get(script.request.len()..) {
                let mut raw = Raw::open(server.addr);
                raw.write(frames);
                reset(raw.stream);
            }
        }
        assert_sound(&server, &account);
        until("all descriptors are back", || descriptors() <= before);
    }
}

fn half_closes_at_any_point(transport: Transport) {
    let _alone = alone();
    for workers in [0, 2] {
        let account = Echo::default();
        let server = transport.serve(|s| s.workers(workers), account.clone());
        let script = Script::new(server.addr);
        let bytes = script.bytes();
        // Over TLS each costs a handshake, so some have to do.
        let step = if transport == Transport::Plain { 1 } else { 3 };
        for len in (0..=bytes.len()).step_by(step) {
            let mut raw = Raw::connect(server.addr);
            raw.write(&bytes[..len]);
            raw.stream.shutdown(Shutdown::Write).unwrap();
            if len < script.request.len() {
                assert_eq!(raw.rest(), b"", "{len}");
                continue;
            }
            // What it has said is answered before the server hangs up, too.
            assert!(raw.head().starts_with("HTTP/1.1 101 "), "{len}");
            assert_eq!(frames(&mut raw), script.answers(len), "{len}");
        }
        assert_sound(&server, &account);
    }
}

/// Answers plain requests with a page.
struct Page(Bytes);

impl Handler for Page {
    type Session = ();

    fn open(&self, _: &Request, _: &Peer) -> Result<Accept<()>, Response> {
        Ok(Accept::new(()))
    }

    fn message(&self, (): &mut (), _: &Peer, _: Message) {}

    fn http(&self, _: &Request) -> Response {
        Response::from(framemill::StatusCode::OK).body(self.0.clone())
    }
}

/// More than the kernel's buffers hold.
const PAGE: usize = 16 << 20;

fn a_half_closed_client_gets_all_of_a_long_page(transport: Transport) {
    let _alone = alone();
    for workers in [0, 2] {
        let server = transport.serve(|s| s.workers(workers), Page(vec![b'x'; PAGE].into()));
        let mut raw = Raw::connect(server.addr);
        raw.write(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n");
        raw.stream.shutdown(Shutdown::Write).unwrap();
        let (status, _, body) = raw.response();
        assert_eq!((status, body.len()), (200, PAGE));
    }
}

fn a_slow_reader_gets_all_of_a_long_page(transport: Transport) {
    let _alone = alone();
    let timeout = Duration::from_secs(1);
    let server = transport.serve(
        |s| s.workers(2).close_timeout(timeout),
        Page(vec![b'x'; PAGE].into()),
    );
    let mut raw = Raw::connect(server.addr);
    raw.write(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n");
    raw.head();
    // Never a long pause, but several timeouts for as much as the kernel waits for before it tells of room.
    let mut piece = vec![0; PAGE / 300];
    for _ in 0..50 {
        raw.stream.read_exact(&mut piece).unwrap();
        thread::sleep(timeout / 10);
    }
    // Some of it came with the head.
    let got = 50 * piece.len() + raw.rest().len();
    assert_eq!(got, PAGE);
}

/// However many are sent it and take their time, it is in memory once.
fn a_long_page_is_not_copied_for_each(transport: Transport) {
    let _alone = alone();
    for workers in [0, 2] {
        let page = Page(vec![b'x'; PAGE].into());
        let server = transport.serve(|s| s.workers(workers), page);
        let before = memory("VmData");
        let mut readers: Vec<_> = (0..20)
            .map(|_| {
                let mut raw = Raw::connect(server.addr);
                raw.write(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n");
                assert!(raw.head().starts_with("HTTP/1.1 200 "));
                raw
            })
            .collect();
        let grown = memory("VmData").saturating_sub(before);
        assert!(grown < 4 * PAGE, "{grown} bytes");
        assert_eq!(readers.remove(0).rest().len(), PAGE);
    }
}

// ---- raving ----

/// A small deterministic source of nonsense.
struct Xorshift(u64);

impl Xorshift {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit as u64) as usize
    }

    fn bytes(&mut self, limit: usize) -> Vec<u8> {
        (0..self.below(limit)).map(|_| self.next() as u8).collect()
    }

    fn range(&mut self, len: usize) -> Range<usize> {
        let start = self.below(len);
        start..start + self.below(len - start + 1)
    }

    /// Flips a bit, puts in nonsense, leaves something out, says something twice.
    fn mutate(&mut self, bytes: &mut Vec<u8>, from: usize) {
        let len = bytes.len() - from;
        let range = self.range(len);
        let (start, end) = (from + range.start, from + range.end);
        match self.below(4) {
            0 => bytes[start] ^= 1 << self.below(8),
            1 => drop(bytes.splice(start..start, self.bytes(20))),
            2 => drop(bytes.drain(start..end)),
            _ => {
                let twice = bytes[start..end].to_vec();
                bytes.splice(start..start, twice);
            }
        }
        if bytes.len() <= from {
            bytes.push(0);
        }
    }
}

#[test]
fn nonsense() {
    let _alone = alone();
    for workers in [0, 2] {
        let account = Echo::default();
        let server = serve(|s| s.workers(workers), account.clone());
        let mut good = client(server.addr);
        let mut random = Xorshift(0x9E37_79B9_7F4A_7C15);
        let script = Script::new(server.addr);
        for n in 0..2000 {
            let mut bytes = match n % 4 {
                0 => random.bytes(400),
                // The mutations are in the frames only, or anywhere.
                1 => [script.request.clone(), random.bytes(400)].concat(),
                _ => script.bytes(),
            };
            if n % 4 >= 2 {
                let from = (n % 4 - 2) * script.request.len();
                for _ in 0..=random.below(4) {
                    random.mutate(&mut bytes, from);
                }
            }
            let mut stream = TcpStream::connect(server.addr.tcp()).unwrap();
            stream.set_read_timeout(Some(WAIT)).unwrap();
            // The server may have hung up before all of it is written.
            let _ = stream.write_all(&bytes);
            match random.below(3) {
                0 => reset(stream),
                1 => drop(stream),
                _ => {
                    // Whatever it was, it gets an end.
                    let _ = stream.shutdown(Shutdown::Write);
                    match std::io::copy(&mut stream, &mut std::io::sink()) {
                        Err(error) if error.kind() != ErrorKind::ConnectionReset => {
                            panic!("case {n}: {error}: {bytes:?}")
                        }
                        _ => {}
                    }
                }
            }
            if n % 100 == 0 {
                echoes(&mut good, "sense");
            }
        }
        echoes(&mut good, "sense");
        drop(good);
        assert_sound(&server, &account);
    }
}

// ---- panicking: it is the handler that misbehaves ----

/// Panics in the method that the path names.
#[derive(Clone, Default)]
struct Panics {
    latest: Arc<Mutex<Option<Peer>>>,
    closed: Arc<Mutex<Vec<(String, CloseCause)>>>,
}

/// A panic, without the message that it prints.
fn panics() -> ! {
    resume_unwind(Box::new("as the test wants it"))
}

impl Handler for Panics {
    type Session = String;

    fn open(&self, request: &Request, peer: &Peer) -> Result<Accept<String>, Response> {
        *self.latest.lock().unwrap() = Some(peer.clone());
        match request.path() {
            "/open" => panics(),
            path => Ok(Accept::new(path.into())),
        }
    }

    fn message(&self, path: &mut String, peer: &Peer, message: Message) {
        match &**path {
            "/message" => panics(),
            // More than the kernel's buffers hold.
            "/writable" => drop(peer.send(vec![0; PAGE])),
            _ => drop(peer.send(message)),
        }
    }

    fn writable(&self, path: &mut String, _: &Peer) {
        if path == "/writable" {
            panics();
        }
    }

    fn close(&self, path: String, _: &Peer, reason: &CloseReason) {
        let entry = (path.clone(), reason.cause());
        self.closed.lock().unwrap().push(entry);
        if path == "/close" {
            panics();
        }
    }

    fn http(&self, _: &Request) -> Response {
        panics()
    }
}

fn open_at(addr: Addr, path: &str) -> Raw {
    let mut raw = Raw::connect(addr);
    let request = request(addr).replacen("GET /", &format!("GET {path}"), 1);
    raw.write(request.as_bytes());
    raw
}

fn a_panic_anywhere_ends_its_own_connection_only(transport: Transport) {
    let _alone = alone();
    for workers in [0, 2] {
        let handler = Panics::default();
        let (latest, closed) = (handler.latest.clone(), handler.closed.clone());
        let server = transport.serve(|s| s.workers(workers), handler);
        let mut good = client(server.addr);

        for _ in 0..3 {
            let (status, ..) = open_at(server.addr, "/open").response();
            assert_eq!(status, 500);
            echoes(&mut good, "after open");

            let mut raw = Raw::connect(server.addr);
            raw.write(b"GET /http HTTP/1.1\r\nHost: localhost\r\n\r\n");
            assert_eq!(raw.response().0, 500);
            echoes(&mut good, "after http");

            for path in ["/message", "/writable"] {
                let mut raw = open_at(server.addr, path);
                raw.head();
                raw.write(&frame(0x81, b"one"));
                if path == "/writable" {
                    let peer = latest.lock().unwrap().clone().unwrap();
                    until("the kernel is full", || stalled(&peer));
                }
                assert_eq!(raw.close_code(), Some(1011), "{path}");
                // The second message is nobody's any more.
                raw.write(&[frame(0x81, b"two"), frame(0x88, b"\x03\xF3")].concat());
                assert_eq!(raw.frame(), None);
                echoes(&mut good, path);
            }

            let mut raw = open_at(server.addr, "/close");
            raw.head();
            raw.write(&frame(0x88, b"\x03\xE8"));
            assert_eq!(raw.close_code(), Some(1000));
            assert_eq!(raw.frame(), None);
            echoes(&mut good, "after close");
        }

        until("only one is left", || server.handle.connections() == 1);
        until("each close was called", || {
            closed.lock().unwrap().len() == 9
        });
        let mut closed = std::mem::take(&mut *closed.lock().unwrap());
        closed.sort_by(|a, b| a.0.cmp(&b.0));
        closed.dedup();
        let once = [
            ("/close".into(), CloseCause::Handshake),
            ("/message".into(), CloseCause::Panic),
            ("/writable".into(), CloseCause::Panic),
        ];
        assert_eq!(closed, once);
    }
}
