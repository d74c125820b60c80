//! Ten peers flood the server with what costs it the most per byte; one good client beside them
//! must not have to wait.
//!
//! For the numbers: `cargo test --release --test fairness -- --nocapture`.

mod support;

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use framemill::{Accept, Handler, Message, Peer, Request, Response};
use support::{Raw, alone, client, echoes, frame, memory, reset, serve, until};

const FLOODERS: usize = 10;
/// How long the good client measures.
const MEASURED: Duration = Duration::from_millis(if cfg!(debug_assertions) { 1000 } else { 3000 });
/// The longest it may wait for an echo. An unoptimised server is given time.
const PATIENCE: Duration = Duration::from_millis(if cfg!(debug_assertions) { 1000 } else { 100 });
/// Who is starved is starved every time; a machine that is busy otherwise isn't.
const ATTEMPTS: usize = 3;

/// What a flooder writes after its handshake.
#[derive(Clone)]
struct Flood {
    name: &'static str,
    /// First of all, and once.
    start: Vec<u8>,
    /// Over and over.
    chunk: Vec<u8>,
    /// So often; then it resets the connection and begins anew.
    times: usize,
    /// Whether it reads what it is sent.
    reads: bool,
}

impl Flood {
    /// `unit` for ever.
    fn of(name: &'static str, unit: &[u8]) -> Self {
        Self {
            name,
            start: Vec::new(),
            chunk: unit.repeat((64 << 10) / unit.len()),
            times: usize::MAX,
            reads: false,
        }
    }
}

/// Echoes, except when told to be quiet, and makes the peers known to the test.
#[derive(Clone, Default)]
struct Echo {
    peers: Arc<Mutex<Vec<Peer>>>,
}

impl Handler for Echo {
    type Session = bool;

    fn open(&self, request: &Request, peer: &Peer) -> Result<Accept<bool>, Response> {
        self.peers.lock().unwrap().push(peer.clone());
        Ok(Accept::new(request.path() == "/"))
    }

    fn message(&self, echoes: &mut bool, peer: &Peer, message: Message) {
        if *echoes {
            let _ = peer.send(message);
        }
    }
}

/// Floods until told to stop; counts the bytes.
fn flood(addr: SocketAddr, flood: &Flood, stop: &AtomicBool, written: &AtomicUsize) {
    while !stop.load(Ordering::Relaxed) {
        let stream = Raw::open(addr).stream;
        stream
            .set_write_timeout(Some(Duration::from_millis(100)))
            .unwrap();
        thread::scope(|scope| {
            if flood.reads {
                scope.spawn(|| while (&stream).read(&mut [0; 65536]).is_ok_and(|n| n > 0) {});
            }
            let mut chunks = std::iter::once(&flood.start)
                .chain(std::iter::repeat_n(&flood.chunk, flood.times))
                .take_while(|_| !stop.load(Ordering::Relaxed));
            while chunks
                .next()
                .is_some_and(|chunk| push(&stream, chunk, stop, written))
            {}
            stream.shutdown(std::net::Shutdown::Both).ok();
        });
        reset(stream);
    }
}

/// Writes all of `chunk`, however long that takes. `false`: that can't be done.
fn push(mut stream: &TcpStream, chunk: &[u8], stop: &AtomicBool, written: &AtomicUsize) -> bool {
    let mut rest = chunk;
    while !rest.is_empty() && !stop.load(Ordering::Relaxed) {
        match stream.write(rest) {
            Ok(n) => {
                rest = &rest[n..];
                written.fetch_add(n, Ordering::Relaxed);
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(_) => return false,
        }
    }
    true
}

/// Runs `kind` against a server, and gives the longest wait.
fn measure(kind: &Flood, workers: usize) -> Duration {
    let handler = Echo::default();
    let peers = handler.peers.clone();
    let server = serve(|s| s.workers(workers), handler);
    let mut good = client(server.addr);
    let (stop, written) = (AtomicBool::new(false), AtomicUsize::new(0));
    let mut waits = Vec::new();
    let (mut queued, mut flooded) = (0, 0);
    let resident = memory("VmRSS");
    thread::scope(|scope| {
        for _ in 0..FLOODERS {
            scope.spawn(|| flood(server.addr, kind, &stop, &written));
        }
        // In full swing.
        until("the flood is there", || {
            written.load(Ordering::Relaxed) > FLOODERS << 20
        });
        let (begun, before) = (Instant::now(), written.load(Ordering::Relaxed));
        while begun.elapsed() < MEASURED {
            let asked = Instant::now();
            echoes(&mut good, "am I heard?");
            waits.push(asked.elapsed());
            let mut peers = peers.lock().unwrap();
            peers.retain(|peer| !peer.is_closed());
            let most = peers.iter().map(Peer::queued_bytes).max();
            queued = queued.max(most.unwrap_or(0));
        }
        flooded = written.load(Ordering::Relaxed) - before;
        stop.store(true, Ordering::Relaxed);
    });
    let grown = memory("VmRSS").saturating_sub(resident);
    waits.sort_unstable();
    let (half, worst) = (waits[waits.len() / 2], waits[waits.len() - 1]);
    eprintln!(
        "{:24} workers {workers}: median {half:>8.1?}, worst {worst:>8.1?} of {:>5}; \
         flood {:>4} MB/s, queue {:>6} B, memory {:+} MB",
        kind.name,
        waits.len(),
        flooded / MEASURED.as_millis() as usize / 1000,
        queued,
        grown >> 20,
    );
    assert!(flooded > 1 << 20, "{}: that was no flood", kind.name);
    // What one read may bring pings for, before it shows that the kernel takes no more pongs.
    assert!(
        kind.reads || queued <= 2 * (64 << 10),
        "{}: {queued} B",
        kind.name
    );
    assert!(grown < 128 << 20, "{}: {grown} B", kind.name);
    until("all have left", || server.handle.connections() == 1);
    worst
}

fn nobody_waits_for(kind: &Flood) {
    let _alone = alone();
    for workers in [0, 2] {
        let worst = (0..ATTEMPTS).map(|_| measure(kind, workers));
        let soon = worst.take_while(|&worst| worst >= PATIENCE).count() < ATTEMPTS;
        assert!(soon, "{}, workers {workers}", kind.name);
    }
}

#[test]
fn tiny_messages() {
    let mut kind = Flood::of("tiny messages", &frame(0x81, b""));
    kind.reads = true;
    nobody_waits_for(&kind);
}

#[test]
fn fragments_of_one_byte() {
    let mut kind = Flood::of("fragments of one byte", &frame(0x00, b"x"));
    kind.start = frame(0x02, b"");
    // Just short of the limit for a message.
    kind.times = (1 << 20) / ((64 << 10) / 7);
    nobody_waits_for(&kind);
}

#[test]
fn empty_fragments() {
    let mut kind = Flood::of("empty fragments", &frame(0x00, b""));
    kind.start = frame(0x01, b"");
    nobody_waits_for(&kind);
}

#[test]
fn pings_by_peers_that_do_not_read() {
    nobody_waits_for(&Flood::of("empty pings, unread", &frame(0x89, b"")));
}

#[test]
fn long_pings_by_peers_that_do_not_read() {
    nobody_waits_for(&Flood::of("long pings, unread", &frame(0x89, &[0; 125])));
}

#[test]
fn pings_by_peers_that_read() {
    let mut kind = Flood::of("pings, read", &frame(0x89, b""));
    kind.reads = true;
    nobody_waits_for(&kind);
}

#[test]
fn large_messages() {
    let mut kind = Flood::of("large messages", &frame(0x82, &[0; 60_000]));
    kind.chunk = frame(0x82, &[0; 1 << 20]);
    kind.reads = true;
    nobody_waits_for(&kind);
}
