//! Ten peers flood the server with what costs it the most per byte, or fifty with the longest
//! messages; one good client beside them must not have to wait.
//!
//! For the numbers: `cargo test --release --test fairness -- --nocapture`.

mod support;

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use framemill::{Accept, Handler, Message, Peer, Request, Response, Server};
use support::{Addr, Raw, WAIT, alone, client, echoes, frame, memory, reset, serve, until};

const FLOODERS: usize = 10;
/// How long the good client measures.
const MEASURED: Duration = Duration::from_millis(if cfg!(debug_assertions) { 1000 } else { 3000 });
/// The longest it may wait for an echo. An unoptimised server is given time: the figure is that of `--release`.
const PATIENCE: Duration = Duration::from_millis(if cfg!(debug_assertions) { 1000 } else { 100 });
/// Who is starved is starved every time; on a machine that is busy otherwise one only has to wait now and then.
const ATTEMPTS: usize = 10;

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
    /// Whether its messages are compressed.
    compressed: bool,
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
            compressed: false,
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
fn flood(addr: Addr, flood: &Flood, stop: &AtomicBool, written: &AtomicUsize) {
    while !stop.load(Ordering::Relaxed) {
        let raw = match flood.compressed {
            #[cfg(feature = "deflate")]
            true => support::deflate::offering(addr, &["permessage-deflate"]).0,
            _ => Raw::open(addr),
        };
        let stream = raw.stream.tcp();
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
    let settings = |s: Server| match kind.compressed {
        #[cfg(feature = "deflate")]
        true => s.workers(workers).deflate(framemill::Deflate::new()),
        _ => s.workers(workers),
    };
    let server = serve(settings, handler);
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
        kind.reads || kind.compressed || queued <= 2 * (64 << 10),
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

/// A message that may stay where it was read, and behind it as many pings as such a read takes.
#[test]
fn pings_behind_a_message() {
    let mut kind = Flood::of("pings behind a message", &frame(0x82, &[0; 1 << 10]));
    kind.chunk = frame(0x82, &[0; 1 << 10]);
    kind.chunk.extend(frame(0x89, b"").repeat(40_000));
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

/// A thousand bytes that are a MiB, to be inflated and compressed again.
#[cfg(feature = "deflate")]
fn bombs() -> Flood {
    use support::deflate::{BINARY, zip};
    let mut kind = Flood::of("bombs", &frame(BINARY, &zip(&[0; 1 << 20])));
    kind.compressed = true;
    kind
}

#[cfg(feature = "deflate")]
#[test]
fn bombs_by_peers_that_read() {
    let mut kind = bombs();
    kind.reads = true;
    nobody_waits_for(&kind);
}

#[cfg(feature = "deflate")]
#[test]
fn bombs_by_peers_that_do_not_read() {
    nobody_waits_for(&bombs());
}

/// So long as they come that each is a large message before it is inflated.
#[cfg(feature = "deflate")]
#[test]
fn large_bombs_by_peers_that_read() {
    use support::deflate::{BINARY, zip};
    let mut state = 1_u32;
    let mut payload: Vec<u8> = (0..40 << 10)
        .map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 24) as u8
        })
        .collect();
    payload.resize(1 << 20, 0);
    let zipped = zip(&payload);
    assert!(zipped.len() > 32 << 10);
    let mut kind = Flood::of("large bombs", &frame(BINARY, &zipped));
    kind.compressed = true;
    kind.reads = true;
    nobody_waits_for(&kind);
}

// ---- more large messages than a turn has bytes for ----

const CROWD: usize = 50;
/// The longest message by default, as it comes in and as it goes back.
const LONGEST: usize = 1 << 20;
const ECHOED: usize = 10 + LONGEST;
/// So many answers to the first of the crowd are enough to see whether the last has its part.
const MANY: usize = 12;

/// One of the crowd: writes and reads whatever the kernel takes and has.
struct Eager<'a> {
    stream: TcpStream,
    /// Of the message that it is writing.
    written: usize,
    received: &'a AtomicUsize,
}

impl<'a> Eager<'a> {
    fn new(addr: Addr, received: &'a AtomicUsize) -> Self {
        let stream = Raw::open(addr).stream.tcp();
        stream.set_nonblocking(true).unwrap();
        Self {
            stream,
            written: 0,
            received,
        }
    }

    /// `false`: the kernel had nothing and took nothing.
    fn go_on(&mut self, message: &[u8], buf: &mut [u8]) -> bool {
        let read = some(self.stream.read(buf));
        self.received.fetch_add(read, Ordering::Relaxed);
        let written = some(self.stream.write(&message[self.written..]));
        self.written = (self.written + written) % message.len();
        read + written > 0
    }
}

/// How many bytes could be moved; an end of the connection is not expected.
fn some(moved: std::io::Result<usize>) -> usize {
    match moved {
        Ok(0) => panic!("the server hung up"),
        Ok(n) => n,
        Err(error) if error.kind() == ErrorKind::WouldBlock => 0,
        Err(error) => panic!("{error}"),
    }
}

/// Stops the crowd, also if the test fails.
struct StopAtEnd<'a>(&'a AtomicBool);

impl Drop for StopAtEnd<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// The longest wait of a good client beside the crowd; none of which is starved.
fn beside_a_crowd(workers: usize) -> Duration {
    let server = serve(|s| s.workers(workers), Echo::default());
    let mut good = client(server.addr);
    let message = frame(0x82, &[7; LONGEST]);
    let received: Vec<AtomicUsize> = (0..CROWD).map(|_| AtomicUsize::new(0)).collect();
    let stop = AtomicBool::new(false);
    let mut waits = Vec::new();
    thread::scope(|scope| {
        let _stop = StopAtEnd(&stop);
        for received in received.chunks(CROWD / 2) {
            let (stop, message) = (&stop, &message);
            scope.spawn(move || {
                let mut crowd: Vec<Eager<'_>> = received
                    .iter()
                    .map(|received| Eager::new(server.addr, received))
                    .collect();
                let mut buf = vec![0; 256 << 10];
                while !stop.load(Ordering::Relaxed) {
                    let mut moved = false;
                    for one in &mut crowd {
                        moved |= one.go_on(message, &mut buf);
                    }
                    if !moved {
                        thread::yield_now();
                    }
                }
                crowd.into_iter().for_each(|one| reset(one.stream));
            });
        }
        let answers = |n: &AtomicUsize| n.load(Ordering::Relaxed) / ECHOED;
        until("all have an answer", || {
            received.iter().all(|n| answers(n) > 0)
        });
        let before: Vec<usize> = received.iter().map(answers).collect();
        let begun = Instant::now();
        loop {
            let asked = Instant::now();
            echoes(&mut good, "am I heard?");
            waits.push(asked.elapsed());
            let since = received.iter().zip(&before).map(|(n, b)| answers(n) - b);
            let (least, most) = (since.clone().min().unwrap(), since.max().unwrap());
            if begun.elapsed() > MEASURED && most >= MANY {
                eprintln!("{least} to {most} answers each");
                assert!(4 * least >= most, "{least} answers and {most}");
                break;
            }
            assert!(begun.elapsed() < 2 * WAIT, "too slow: {most} answers");
        }
    });
    until("all have left", || server.handle.connections() == 1);
    waits.sort_unstable();
    let (half, worst) = (waits[waits.len() / 2], waits[waits.len() - 1]);
    eprintln!(
        "{CROWD} large senders, workers {workers}: median {half:.1?}, worst {worst:.1?} of {}",
        waits.len()
    );
    worst
}

#[test]
fn large_messages_of_a_crowd() {
    let _alone = alone();
    for workers in [0, 2] {
        let soon = (0..ATTEMPTS).any(|_| beside_a_crowd(workers) < PATIENCE);
        assert!(soon, "workers {workers}");
    }
}
