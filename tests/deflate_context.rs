//! permessage-deflate where messages may refer to those before them: whoever sends, in whatever order,
//! each peer can read all that it gets.
#![cfg(feature = "deflate")]

mod support;

use std::sync::{Arc, OnceLock};
use std::thread;

use framemill::{
    Bytes, Compress, Deflate, Message, Overflow, Peer, SendError, Server, ServerHandle,
};
use support::deflate::{ALONE, BINARY, TEXT, Unzip, Zip, noise, offering, offering_on, prose};
use support::inflate::Narrow;
use support::spy::{PLENTY, narrow, numbered, spy};
use support::{Addr, Raw, Transport, frame, serve, until};

fn takeover() -> Deflate {
    Deflate::new().context_takeover(true, true)
}

/// A client that reads, and unpacks what it reads.
struct Reader {
    raw: Raw,
    /// `None`: nothing was agreed on.
    unzip: Option<Unzip>,
    /// The bits of its window, if it keeps it.
    keeps: Option<u8>,
    /// What has come, compressed and not.
    compressed: usize,
    plain: usize,
}

impl Reader {
    fn open(addr: impl Into<Addr>, offer: &str) -> Self {
        let offers: &[&str] = if offer.is_empty() { &[] } else { &[offer] };
        let (raw, answer) = offering(addr, offers);
        Self::new(raw, answer)
    }

    fn new(raw: Raw, answer: Option<String>) -> Self {
        let answer = answer.as_deref();
        let bits = answer.map(|answer| {
            let bits = answer.split("server_max_window_bits=").nth(1);
            bits.map_or(15, |bits| bits.split(';').next().unwrap().parse().unwrap())
        });
        let keeps = answer.is_some_and(|answer| !answer.contains("server_no_context_takeover"));
        Self {
            raw,
            unzip: bits.map(Unzip::new),
            keeps: bits.filter(|_| keeps),
            compressed: 0,
            plain: 0,
        }
    }

    /// What the next message says. Ends the test if nothing can be made of it.
    fn next(&mut self) -> Option<Vec<u8>> {
        let (first, payload) = self.raw.frame()?;
        match (first, &mut self.unzip) {
            (0x81 | 0x82, _) => {
                self.plain += 1;
                Some(payload)
            }
            (TEXT | BINARY, Some(unzip)) => {
                self.compressed += 1;
                let message = unzip.message(&payload);
                if self.keeps.is_none() {
                    *unzip = Unzip::new(15);
                }
                Some(message.expect("a message that can be inflated"))
            }
            (0x88, _) => None,
            _ => panic!("a frame {first:x}"),
        }
    }
}

// ---- one after the other ----

/// An echo server and a client that both keep their windows: everything comes back, and what was said
/// before takes next to no room.
#[test]
fn both_ways() {
    for workers in [0, 2] {
        for bits in 9..=15 {
            let deflate = takeover().window_bits(bits, bits).threshold(0);
            let server = serve(
                |s| s.workers(workers).deflate(deflate),
                |peer: &Peer, message: Message| peer.send(message),
            );
            let offer = "permessage-deflate; client_max_window_bits";
            let (mut raw, answer) = offering(server.addr, &[offer]);
            let expected = match bits {
                15 => "permessage-deflate".into(),
                _ => format!(
                    "permessage-deflate; server_max_window_bits={bits}; client_max_window_bits={bits}"
                ),
            };
            assert_eq!(answer.as_deref(), Some(&*expected));
            let mut narrow = Narrow::new(bits);
            let mut zip = Zip::new(6, bits);
            // In reach of the smallest window: zlib looks back 262 bytes less than it could.
            let text = prose(200);
            for n in 0..200 {
                let message = match n % 10 {
                    4 => String::new(),
                    7 => prose(15_000),
                    _ => format!("{n}: {text}"),
                };
                let packed = zip.message(message.as_bytes());
                raw.write(&frame(TEXT, &packed));
                let (first, payload) = raw.frame().unwrap();
                assert_eq!(first, TEXT);
                assert_eq!(narrow.message(&payload).unwrap(), message.as_bytes());
                if ![0, 4, 7, 8].contains(&(n % 10)) {
                    assert!(packed.len() < 50, "{n}: sent {}", packed.len());
                    assert!(payload.len() < 50, "{n}: received {}", payload.len());
                }
            }
        }
    }
}

/// Bytes that don't compress, and messages that go uncompressed, leave the context as it is.
#[test]
fn what_does_not_compress() {
    let server = serve(
        |s| s.workers(0).deflate(takeover()),
        |peer: &Peer, message: Message| match message.len() % 7 {
            0 => peer.send_with(message, Compress::Never),
            1 => peer.send_with(message, Compress::Always),
            _ => peer.send(message),
        },
    );
    let mut reader = Reader::open(server.addr, "permessage-deflate");
    let mut zip = Zip::new(6, 15);
    for n in 0..400 {
        let message = match n % 3 {
            0 => prose(900 + n).into_bytes(),
            1 => noise(1000 + 100 * n),
            _ => noise(n),
        };
        let sent = match n % 5 {
            0 => frame(0x82, &message),
            _ => frame(BINARY, &zip.message(&message)),
        };
        reader.raw.write(&sent);
        assert_eq!(reader.next(), Some(message), "{n}");
    }
    assert!(reader.compressed > 100 && reader.plain > 100);
}

// ---- many at once ----

const THRESHOLD: usize = 200;

/// Who sends what to whom: each thread decides by the number of its message.
struct Script {
    peers: Vec<Peer>,
    everybody: ServerHandle,
    corpus: Bytes,
    how: How,
}

/// What a thread does with its `n`th message.
type How = fn(thread: usize, n: usize) -> To;

#[derive(Clone, Copy)]
enum To {
    Everybody,
    /// Peers by their number, as bits.
    These(usize),
}

impl Script {
    /// Half of what each thread says is the same, over and over, and half of it is short.
    fn message(&self, thread: usize, n: usize) -> Vec<u8> {
        let random = mixed(thread, n);
        let len = match random % 8 {
            0..=3 => random / 8 % THRESHOLD,
            4..=6 => random / 8 % 2_000,
            _ => random / 8 % 30_000,
        };
        let start = random / 64 % 16 * 97;
        let mut message = format!("{thread}:{n}:").into_bytes();
        message.extend_from_slice(&self.corpus[start..start + len]);
        message
    }

    fn includes(&self, peer: usize, thread: usize, n: usize) -> bool {
        match (self.how)(thread, n) {
            To::Everybody => true,
            To::These(peers) => peers >> peer & 1 == 1,
        }
    }

    fn perform(&self, thread: usize) {
        for n in 0..MESSAGES {
            let message = Message::binary(self.message(thread, n));
            match (self.how)(thread, n) {
                To::Everybody => assert!(self.everybody.broadcast(message)),
                To::These(_) => {
                    for (number, peer) in self.peers.iter().enumerate() {
                        if self.includes(number, thread, n) {
                            peer.send(message.clone()).unwrap();
                        }
                    }
                }
            }
        }
    }

    /// Reads all that this peer is to get; of each thread, in the order that it was sent.
    fn read(&self, peer: usize, reader: &mut Reader) {
        let mut next: Vec<_> = (0..THREADS)
            .map(|thread| (0..MESSAGES).filter(move |&n| self.includes(peer, thread, n)))
            .collect();
        let total: usize = next.iter().map(|left| left.clone().count()).sum();
        for _ in 0..total {
            let message = reader.next().expect("more messages");
            let mut words = message.split(|&byte| byte == b':');
            let mut number = || -> usize {
                let word = std::str::from_utf8(words.next().unwrap()).unwrap();
                word.parse().unwrap()
            };
            let (thread, n) = (number(), number());
            assert_eq!(next[thread].next(), Some(n), "peer {peer}, of {thread}");
            assert!(
                message == self.message(thread, n),
                "{thread}:{n} is damaged"
            );
        }
    }
}

/// A number that looks random.
fn mixed(a: usize, b: usize) -> usize {
    let mut x = (a as u64 + 1) << 32 ^ (b as u64 + 1);
    for _ in 0..3 {
        x = (x ^ x >> 29).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    }
    (x >> 16) as usize
}

const THREADS: usize = 4;
const MESSAGES: usize = 2_000;

/// Threads, two of them workers, send to peers that asked for windows of every size, one that keeps none and one
/// that doesn't compress.
fn many_at_once(how: How) {
    let script: Arc<OnceLock<Script>> = Arc::default();
    let (handler, seen) = {
        let script = script.clone();
        spy(move |_, message: Message| {
            let thread = message.to_text().unwrap().parse().unwrap();
            script.get().unwrap().perform(thread);
        })
    };
    let deflate = takeover().threshold(THRESHOLD);
    let server = serve(
        |s| {
            s.loops(2)
                .workers(2)
                .outbound_limit(512 << 20)
                .deflate(deflate)
        },
        handler,
    );
    let windows = (9..=15).map(|bits| format!("permessage-deflate; server_max_window_bits={bits}"));
    let offers: Vec<String> = windows.chain([ALONE.into(), String::new()]).collect();
    let mut peers = Vec::new();
    let mut readers: Vec<Reader> = Vec::new();
    for offer in &offers {
        readers.push(Reader::open(server.addr, offer));
        peers.push(seen.peer());
    }
    let keeps: Vec<_> = readers.iter().map(|reader| reader.keeps).collect();
    let windows = [9, 9, 9, 12, 12, 12, 15].map(Some);
    assert_eq!(keeps, [&windows[..], &[None, None]].concat());
    let _ = script.set(Script {
        peers,
        everybody: server.handle.clone(),
        corpus: prose(40_000).into(),
        how,
    });
    let script = script.get().unwrap();
    for (thread, reader) in readers.iter_mut().take(2).enumerate() {
        reader
            .raw
            .write(&frame(0x81, thread.to_string().as_bytes()));
    }
    thread::scope(|scope| {
        for thread in 2..THREADS {
            scope.spawn(move || script.perform(thread));
        }
        for (peer, reader) in readers.iter_mut().enumerate() {
            scope.spawn(move || script.read(peer, reader));
        }
    });
    for reader in &readers[..8] {
        assert!(reader.compressed > 100 && reader.plain > 100);
    }
    assert_eq!(readers[8].compressed, 0);
}

#[test]
fn everybody_sends_and_broadcasts() {
    many_at_once(|thread, n| match mixed(n, thread) % 4 {
        0 => To::Everybody,
        _ => To::These(mixed(n, thread) / 4),
    });
}

/// Nothing that a thread does itself is between its messages: only others are.
#[test]
fn some_send_and_some_broadcast() {
    many_at_once(|thread, n| match thread % 2 {
        0 => To::Everybody,
        _ => To::These(mixed(n, thread)),
    });
}

#[test]
fn everybody_sends() {
    many_at_once(|thread, n| To::These(mixed(n, thread)));
}

// ---- slow peers ----

/// A peer that reads nothing yet, and behind so much that all that is sent now waits in its queue.
fn stalled(settings: impl FnOnce(Server) -> Server) -> (support::Running, Peer, Reader) {
    let (handler, seen) = spy(|_, _| ());
    let deflate = takeover().threshold(THRESHOLD);
    let server =
        Transport::Plain.serve_narrow(|s| settings(s.workers(0).deflate(deflate)), handler);
    let (raw, answer) = offering_on(narrow(server.addr), &["permessage-deflate"]);
    let reader = Reader::new(raw, answer);
    let peer = seen.peer();
    // The loop writes the first, and takes no more until it is written.
    for n in 0..2 {
        let before = peer.queued_bytes();
        let message = numbered(n, PLENTY);
        peer.send_with(message, Compress::Never).unwrap();
        until("the loop writes", || {
            peer.queued_bytes() < before + PLENTY || n > 0
        });
    }
    (server, peer, reader)
}

impl Reader {
    /// Past what [`stalled`] has sent.
    fn catch_up(&mut self) {
        for n in 0..2 {
            assert!(self.next().unwrap() == numbered(n, PLENTY));
        }
        self.plain = 0;
    }
}

/// A message that says its number, and more, in one of three ways: short, long, or as noise.
fn some_message(n: usize) -> Vec<u8> {
    let random = mixed(n, 0);
    let mut message = format!("{n}:").into_bytes();
    match random % 3 {
        0 => message.extend(prose(random / 3 % 50).bytes()),
        1 => message.extend(prose(1_000 + random / 3 % 3_000).bytes()),
        _ => message.extend(noise(300 + random / 3 % 300)),
    }
    message
}

fn number(message: &[u8]) -> usize {
    let end = message.iter().position(|&byte| byte == b':').unwrap();
    let text = std::str::from_utf8(&message[..end]).unwrap();
    text.parse().unwrap()
}

/// Messages take the places of others in the middle of the queue, compressed or not as either may be,
/// and what is behind them can be read all the same.
#[test]
fn latest_messages() {
    const KEYS: usize = 20;
    let (_server, peer, mut reader) = stalled(|s| s.outbound_limit(64 << 20));
    let mut expected: Vec<(Option<usize>, usize)> = Vec::new();
    for n in 0..3_000 {
        let message = Message::binary(some_message(n));
        let key = Some(mixed(n, 1) % (8 * KEYS)).filter(|key| *key < KEYS);
        match key {
            None => drop(peer.send(message).unwrap()),
            Some(key) => drop(peer.send_latest(key as u64, message).unwrap()),
        }
        let mut waiting = expected.iter_mut();
        match waiting.find(|(other, _)| key.is_some() && *other == key) {
            Some((_, older)) => *older = n,
            None => expected.push((key, n)),
        }
    }
    reader.catch_up();
    for (key, n) in expected {
        let message = reader.next().expect("one more");
        assert!(message == some_message(n), "{key:?}: {n}");
    }
    assert!(reader.compressed > 1_000 && reader.plain > 500);
}

/// The same, with broadcasts: whatever waits for them in the loop's channel has its place in the end.
#[test]
fn latest_messages_and_broadcasts() {
    const KEYS: usize = 20;
    let (server, peer, mut reader) = stalled(|s| s.outbound_limit(64 << 20));
    let (mut others, mut latest) = (Vec::new(), [None; KEYS]);
    for n in 0..3_000 {
        let message = Message::binary(some_message(n));
        match mixed(n, 1) % (8 * KEYS) {
            key if key < KEYS => {
                peer.send_latest(key as u64, message).unwrap();
                latest[key] = Some(n);
                continue;
            }
            key if key < 2 * KEYS => assert!(server.handle.broadcast(message)),
            _ => drop(peer.send(message).unwrap()),
        }
        others.push(n);
    }
    peer.close(framemill::CloseCode::Normal, "");
    reader.catch_up();
    let mut others = others.into_iter().peekable();
    while let Some(message) = reader.next() {
        let n = number(&message);
        assert!(message == some_message(n), "{n} is damaged");
        if others.next_if_eq(&n).is_none() {
            let key = mixed(n, 1) % (8 * KEYS);
            assert!(key < KEYS, "{n} instead of {:?}", others.peek());
            if latest[key] == Some(n) {
                latest[key] = None;
            }
        }
    }
    assert_eq!((others.next(), latest), (None, [None; KEYS]));
}

/// While somebody broadcasts, everything that is not refused arrives, and no more.
#[test]
fn the_newest_are_dropped() {
    let (server, peer, mut reader) = stalled(|s| {
        s.overflow(Overflow::DropNewest)
            .outbound_limit(2 * PLENTY + (300 << 10))
    });
    let mut expected = Vec::new();
    let mut refused = 0;
    thread::scope(|scope| {
        scope.spawn(|| {
            for n in 0..200 {
                assert!(server.handle.broadcast(format!("1000000:{n}:{}", prose(n))));
            }
        });
        // Larger ones are refused where smaller ones still find room.
        for n in 0..3_000 {
            let message = some_message(n);
            match peer.send(message.clone()) {
                Ok(_) => expected.push(n),
                Err(error) => {
                    assert_eq!(error, SendError::Full(Message::binary(message)));
                    refused += 1;
                }
            }
        }
    });
    peer.close(framemill::CloseCode::Normal, "");
    reader.catch_up();
    let (mut arrived, mut broadcasts) = (Vec::new(), 0);
    while let Some(message) = reader.next() {
        match number(&message) {
            1_000_000 => broadcasts += 1,
            n => {
                assert!(message == some_message(n), "{n} is damaged");
                arrived.push(n);
            }
        }
    }
    assert_eq!(arrived, expected);
    assert!(refused > 100 && arrived.len() > 100 && broadcasts > 0);
}

/// The oldest make room, and the others can do without them.
#[test]
fn the_oldest_are_dropped() {
    for broadcasts in [false, true] {
        let (server, peer, mut reader) = stalled(|s| {
            s.overflow(Overflow::DropOldest)
                .outbound_limit(PLENTY + (300 << 10))
        });
        for n in 0..3_000 {
            let message = Message::binary(some_message(n));
            match broadcasts && n % 10 == 0 {
                true => assert!(server.handle.broadcast(message)),
                false => drop(peer.send(message).unwrap()),
            }
        }
        peer.close(framemill::CloseCode::Normal, "");
        let mut arrived = Vec::new();
        assert!(reader.next().unwrap() == numbered(0, PLENTY));
        while let Some(message) = reader.next() {
            let n = number(&message);
            assert!(message == some_message(n), "{n} is damaged");
            arrived.push(n);
        }
        assert!(arrived.is_sorted());
        assert_eq!(arrived.last(), Some(&2_999));
        assert!((100..2_500).contains(&arrived.len()));
    }
}

// ---- broadcasts ----

/// A broadcast is compressed for a window, not for a peer: those with the same get the same bytes.
#[test]
fn a_class_gets_the_same_bytes() {
    let server = serve(
        |s| s.loops(2).deflate(takeover()),
        |_: &Peer, _: Message| (),
    );
    let open = |offer: &str| Reader::open(server.addr, offer);
    let mut classes: Vec<Vec<Reader>> = Vec::new();
    for bits in [9, 12, 15] {
        let window = format!("; server_max_window_bits={bits}");
        let offers = [
            format!("permessage-deflate{window}"),
            format!("permessage-deflate{window}; server_no_context_takeover"),
            format!("{ALONE}{window}"),
        ];
        classes.push(offers.iter().map(|offer| open(offer)).collect());
    }
    // No parameter is the same as the largest window.
    classes[2].push(open("permessage-deflate"));
    let text = prose(3_000).repeat(3);
    let mut plain = open("");
    for n in 0..10 {
        let text = format!("{n}{text}");
        assert!(server.handle.broadcast(text.clone()));
        let mut lengths = Vec::new();
        for (bits, class) in [9, 12, 15].into_iter().zip(&mut classes) {
            let frames: Vec<_> = class.iter_mut().map(|r| r.raw.frame().unwrap()).collect();
            assert!(frames.windows(2).all(|two| two[0] == two[1]));
            assert_eq!(frames[0].0, TEXT);
            lengths.push(frames[0].1.len());
            // One message alone, in reach of the window.
            let mut narrow = Narrow::new(bits);
            assert_eq!(narrow.message(&frames[0].1).unwrap(), text.as_bytes());
        }
        // What is repeated lies 3,000 bytes back.
        assert!(lengths[0] > 2 * lengths[1], "{lengths:?}");
        assert_eq!(plain.next().unwrap(), text.as_bytes());
    }
}
