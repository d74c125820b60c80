//! Messages that need more than one read, or very many frames: whole, in order, and in time that
//! grows with their length and no faster.

mod support;

use std::io::{BufReader, Read, Write};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::channel;
use std::thread;
use std::time::{Duration, Instant};

use framemill::{Message, Peer, Server};
use support::{Addr, Raw, Running, Stream, Transport, alone, frame, over_every_transport};

over_every_transport! {
    from_many_connections_at_once,
    what_handlers_keep_stays_as_it_was,
    many_small_ones_behind_one,
    those_before_a_text_that_is_none,
}

fn echo(transport: Transport, settings: impl FnOnce(Server) -> Server) -> Running {
    transport.serve(settings, |peer: &Peer, message: Message| peer.send(message))
}

/// A small deterministic source of numbers.
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

    /// From 1 to `2^most`; each order of magnitude as often as any other.
    fn any_size(&mut self, most: usize) -> usize {
        let order = self.below(most);
        (1 << order) + self.below(1 << order)
    }

    fn shuffle<T>(&mut self, items: &mut [T]) {
        for end in (1..items.len()).rev() {
            items.swap(end, self.below(end + 1));
        }
    }
}

// ---- all at once ----

const SEED: u64 = 0x9E37_79B9_7F4A_7C15;

const CONNECTIONS: usize = 20;
/// Sizes where the engine reads or keeps differently from there on, and how many messages of about
/// that size each connection sends in a row.
const BOUNDARIES: [(usize, usize); 6] = [
    (4 << 10, 8),
    (8 << 10, 8),
    (32 << 10, 6),
    (64 << 10, 4),
    (256 << 10, 3),
    (1 << 20, 2),
];
/// As far to either side as a frame's header is long, at most.
const AROUND: usize = 14;

/// A message as it should come back.
#[derive(PartialEq, Eq)]
struct Expected {
    first: u8,
    payload: Vec<u8>,
}

/// What a connection sends, and what comes back for it.
type Script = (Vec<u8>, Vec<Expected>);

fn script(connection: usize, random: &mut Xorshift) -> Script {
    let mut rows = BOUNDARIES;
    random.shuffle(&mut rows);
    let (mut out, mut expected) = (Vec::new(), Vec::new());
    for (size, count) in rows {
        // Each size twice: what comes is expected to be like what came before.
        for n in (connection * count..(connection + 1) * count).flat_map(|n| [n, n]) {
            // All connections together go through every distance, for each size.
            let len = size - AROUND + n % (2 * AROUND + 1);
            let message = if random.below(2) == 0 {
                Expected {
                    first: 0x81,
                    payload: text(len, random),
                }
            } else {
                Expected {
                    first: 0x82,
                    payload: binary(len, random),
                }
            };
            write(&message, &mut out, random);
            expected.push(message);
        }
    }
    (out, expected)
}

fn binary(len: usize, random: &mut Xorshift) -> Vec<u8> {
    let mut payload: Vec<u8> = Vec::with_capacity(len + 8);
    while payload.len() < len {
        payload.extend_from_slice(&random.next().to_le_bytes());
    }
    payload.truncate(len);
    payload
}

/// Characters of one to four bytes, at any offset.
fn text(len: usize, random: &mut Xorshift) -> Vec<u8> {
    const PIECE: &str = "aäあ🦀 – ключ, κλειδί, 鍵, 🗝️; ";
    let mut payload = vec![b'x'; random.below(PIECE.len())];
    while payload.len() + PIECE.len() <= len {
        payload.extend_from_slice(PIECE.as_bytes());
    }
    payload.resize(len, b'y');
    payload
}

/// In one frame mostly, or in two.
fn write(message: &Expected, out: &mut Vec<u8>, random: &mut Xorshift) {
    let payload = &message.payload;
    if random.below(4) > 0 {
        return out.extend(frame(message.first, payload));
    }
    let (start, end) = payload.split_at(random.below(payload.len() + 1));
    out.extend(frame(message.first & 0x0F, start));
    out.extend(frame(0x80, end));
}

/// In chunks of any size; the kernel and the server see to it that they don't all arrive alike.
fn write_in_chunks(mut stream: Stream, mut bytes: &[u8], random: &mut Xorshift) {
    while !bytes.is_empty() {
        let (chunk, rest) = bytes.split_at(random.any_size(18).min(bytes.len()));
        stream.write_all(chunk).unwrap();
        bytes = rest;
    }
}

/// The next frame of a server that sends large frames only.
fn read_frame(stream: &mut impl Read) -> Expected {
    let mut header = [0; 2];
    stream.read_exact(&mut header).unwrap();
    let len = match header[1] {
        126 => {
            let mut len = [0; 2];
            stream.read_exact(&mut len).unwrap();
            u16::from_be_bytes(len).into()
        }
        127 => {
            let mut len = [0; 8];
            stream.read_exact(&mut len).unwrap();
            u64::from_be_bytes(len) as usize
        }
        short => panic!("a frame {:x} of {short} bytes", header[0]),
    };
    assert!(len <= 2 << 20, "{len} bytes");
    let mut payload = vec![0; len];
    stream.read_exact(&mut payload).unwrap();
    Expected {
        first: header[0],
        payload,
    }
}

/// Sends the script in chunks and reads what comes back.
fn perform(addr: Addr, connection: usize, (bytes, expected): &Script) {
    let mut random = Xorshift(SEED + connection as u64);
    let mut stream = Raw::open(addr).stream;
    let writer = stream.try_clone().unwrap();
    thread::scope(|scope| {
        scope.spawn(|| write_in_chunks(writer, bytes, &mut random));
        let mut reader = BufReader::new(stream);
        for (n, expected) in expected.iter().enumerate() {
            let (got, len) = (read_frame(&mut reader), expected.payload.len());
            let place = format!("connection {connection}, message {n}: {len} bytes");
            assert_eq!(got.first, expected.first, "{place}");
            assert_eq!(got.payload.len(), len, "{place}");
            // No assert_eq: nobody wants to read that.
            assert!(got == *expected, "{place} are not the same");
        }
    });
}

fn from_many_connections_at_once(transport: Transport) {
    let _alone = alone();
    let mut random = Xorshift(SEED);
    let scripts: Vec<Script> = (0..CONNECTIONS)
        .map(|connection| script(connection, &mut random))
        .collect();
    for &workers in transport.heavy_workers() {
        let server = echo(transport, |s| s.workers(workers).max_message(2 << 20));
        thread::scope(|scope| {
            for (connection, script) in scripts.iter().enumerate() {
                let addr = server.addr;
                scope.spawn(move || perform(addr, connection, script));
            }
        });
    }
}

// ---- handled on the loop, which may leave them where it read them ----

/// So large that it is worth it, and not so large that they are read otherwise.
const MIDDLING: std::ops::Range<usize> = 1 << 10..64 << 10;

/// Of 400 messages the handler keeps some, from the hundredth on. They are their own, whatever else comes.
fn what_handlers_keep_stays_as_it_was(transport: Transport) {
    let (keep, kept) = channel();
    let seen = AtomicUsize::new(0);
    let handler = move |peer: &Peer, message: Message| {
        let number = seen.fetch_add(1, Ordering::Relaxed);
        if number >= 100 && number % 7 == 0 {
            keep.send((number, message.clone())).unwrap();
        }
        peer.send(message)
    };
    let server = transport.serve(|s| s.workers(0), handler);
    let mut random = Xorshift(SEED);
    let messages: Vec<Vec<u8>> = (0..400)
        .map(|_| {
            let len = MIDDLING.start + random.below(MIDDLING.len());
            binary(len, &mut random)
        })
        .collect();
    let mut raw = Raw::open(server.addr);
    // One at a time, and several at once.
    for messages in messages[..200].chunks(1).chain(messages[200..].chunks(5)) {
        let bytes: Vec<u8> = messages.iter().flat_map(|m| frame(0x82, m)).collect();
        raw.write(&bytes);
        for message in messages {
            assert!(raw.frame() == Some((0x82, message.clone())));
        }
    }
    drop(server);
    let kept: Vec<(usize, Message)> = kept.into_iter().collect();
    assert_eq!(kept.len(), (100..400).filter(|n| n % 7 == 0).count());
    for (number, message) in kept {
        assert!(message.into_data() == messages[number], "{number}");
    }
}

/// A read that takes many of them brings more of other messages than other reads do.
fn many_small_ones_behind_one(transport: Transport) {
    let server = echo(transport, |s| s.workers(0).read_buffer(16 << 10));
    let mut raw = Raw::open(server.addr);
    let middling = vec![7; MIDDLING.start];
    for round in 0..10 {
        raw.write(&frame(0x82, &middling));
        assert!(raw.frame() == Some((0x82, middling.clone())));
        let small: Vec<Vec<u8>> = (0..3000).map(|n| format!("{round} {n}").into()).collect();
        let mut bytes = frame(0x82, &middling);
        small.iter().for_each(|m| bytes.extend(frame(0x81, m)));
        bytes.extend(frame(0x82, &middling));
        raw.write(&bytes);
        assert!(raw.frame() == Some((0x82, middling.clone())));
        for message in small {
            assert_eq!(raw.frame(), Some((0x81, message)));
        }
        assert!(raw.frame() == Some((0x82, middling.clone())));
    }
}

/// What came with it is answered before the connection ends for it.
fn those_before_a_text_that_is_none(transport: Transport) {
    let server = echo(transport, |s| s.workers(0));
    let mut raw = Raw::open(server.addr);
    let good = [b'a'; MIDDLING.start];
    let mut bad = good;
    bad[MIDDLING.start - 1] = 0xFF;
    let first = frame(0x81, &good);
    raw.write(&first);
    assert!(raw.frame() == Some((0x81, good.to_vec())));
    raw.write(&[first, frame(0x81, &bad), frame(0x82, &good)].concat());
    assert!(raw.frame() == Some((0x81, good.to_vec())));
    assert_eq!(raw.close_code(), Some(1007));
}

// ---- very many fragments ----

/// `count` fragments of one byte, and the message that they make.
fn crumbs(count: usize) -> (Vec<u8>, Vec<u8>) {
    let message: Vec<u8> = (0..count).map(|n| (n % 251) as u8).collect();
    let mut bytes = Vec::with_capacity(7 * count);
    for (n, byte) in message.iter().enumerate() {
        let fin = if n + 1 == count { 0x80 } else { 0 };
        let opcode = if n == 0 { 0x02 } else { 0x00 };
        bytes.extend([fin | opcode, 0x81, 1, 2, 3, 4, byte ^ 1]);
    }
    (bytes, message)
}

/// How long a message of so many fragments takes to come back, at best.
fn time_of(count: usize, server: &Running) -> Duration {
    let (bytes, message) = crumbs(count);
    let mut raw = Raw::open(server.addr);
    let times = (0..3).map(|_| {
        let begun = Instant::now();
        raw.write(&bytes);
        assert!(raw.frame() == Some((0x82, message.clone())), "{count}");
        begun.elapsed()
    });
    times.min().unwrap()
}

/// Four times the fragments take four times as long, not sixteen times.
#[test]
fn of_very_many_fragments() {
    // It looks at the time.
    let _alone = alone();
    for workers in [0, 2] {
        let server = echo(Transport::Plain, |s| s.workers(workers));
        // What is quadratic is so every time; a machine that is busy otherwise isn't.
        let linear = (0..3).any(|_| {
            let (few, many) = (time_of(50_000, &server), time_of(200_000, &server));
            eprintln!("workers {workers}: {few:.1?} and {many:.1?}");
            many < 8 * few
        });
        assert!(linear, "workers {workers}");
    }
}
