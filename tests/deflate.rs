//! permessage-deflate (RFC 7692) as a peer sees it: what is agreed on, what is compressed, and what
//! becomes of those who break its rules.
#![cfg(feature = "deflate")]

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use framemill::{
    CloseCause, Compress, Deflate, History, Members, Message, Overflow, Peer, Refused, Room, Rooms,
    Server, Since,
};
use support::deflate::{ALONE, BINARY, TEXT, Zip, noise, offering, open, prose, unzip, zip};
use support::spy::{Seen, spy};
use support::{Raw, Running, frame, serve, until};

const WORKERS: [usize; 2] = [0, 2];

fn echo(settings: impl FnOnce(Server) -> Server) -> Running {
    serve(settings, |peer: &Peer, message: Message| peer.send(message))
}

/// Sends everything back, and counts what it sees.
fn counting_echo(settings: impl FnOnce(Server) -> Server) -> (Running, Seen, Arc<AtomicUsize>) {
    let count: Arc<AtomicUsize> = Arc::default();
    let counter = count.clone();
    let (handler, seen) = spy(move |peer: &Peer, message| {
        counter.fetch_add(1, Ordering::SeqCst);
        let _ = peer.send(message);
    });
    let server = serve(|s| settings(s.deflate(Deflate::new())), handler);
    (server, seen, count)
}

// ---- the opening handshake ----

/// Asserts what is answered to these offers, and that messages are compressed accordingly.
fn assert_answer(server: &Running, offers: &[&str], expected: Option<&str>) {
    let (mut raw, answer) = offering(server.addr, offers);
    assert_eq!(answer.as_deref(), expected, "to {offers:?}");
    let text = prose(2_000);
    raw.write(&frame(0x81, text.as_bytes()));
    let (first, payload) = raw.frame().unwrap();
    match expected {
        Some(_) => assert_eq!((first, unzip(&payload)), (TEXT, text.into_bytes())),
        None => assert_eq!((first, payload), (0x81, text.into_bytes())),
    }
}

const OFFER: &str = "permessage-deflate";

#[test]
fn each_message_alone_by_default() {
    let server = echo(|s| s.deflate(Deflate::new()));
    for offer in [
        OFFER,
        ALONE,
        "permessage-deflate; client_max_window_bits",
        "permessage-deflate; client_max_window_bits=9",
        "permessage-deflate;client_no_context_takeover",
        "x-webkit-deflate-frame, permessage-deflate, permessage-deflate; server_max_window_bits=9",
    ] {
        assert_answer(&server, &[offer], Some(ALONE));
    }
    for asked in 9..=15 {
        // Rounded down.
        let bits = match asked {
            9..12 => 9,
            12..15 => 12,
            _ => 15,
        };
        for quote in ["", "\""] {
            let offer = format!("permessage-deflate; server_max_window_bits={quote}{asked}{quote}");
            let expected = format!("{ALONE}; server_max_window_bits={bits}");
            assert_answer(&server, &[&offer], Some(&expected));
        }
    }
}

#[test]
fn windows_are_kept_where_both_want_to() {
    let server = echo(|s| s.deflate(Deflate::new().context_takeover(true, true)));
    for (offer, expected) in [
        (OFFER, OFFER),
        (ALONE, ALONE),
        ("permessage-deflate; client_max_window_bits", OFFER),
        (
            "permessage-deflate; server_no_context_takeover",
            "permessage-deflate; server_no_context_takeover",
        ),
        (
            "permessage-deflate; client_no_context_takeover",
            "permessage-deflate; client_no_context_takeover",
        ),
    ] {
        assert_answer(&server, &[offer], Some(expected));
    }
}

#[test]
fn smaller_windows_are_asked_of_those_who_can() {
    let server = echo(|s| s.deflate(Deflate::new().window_bits(12, 11)));
    let ours = format!("{ALONE}; server_max_window_bits=12");
    for (offer, more) in [
        ("", ""),
        ("; client_max_window_bits", "; client_max_window_bits=11"),
        ("; client_max_window_bits=13", "; client_max_window_bits=11"),
        ("; client_max_window_bits=11", ""),
        ("; client_max_window_bits=8", ""),
        ("; server_max_window_bits=15", ""),
    ] {
        let offer = format!("{OFFER}{offer}");
        assert_answer(&server, &[&offer], Some(&format!("{ours}{more}")));
    }
}

/// None of these is an error: the connection goes without compression.
#[test]
fn offers_that_are_declined() {
    let server = echo(|s| s.deflate(Deflate::new()));
    assert_answer(&server, &[], None);
    for offer in [
        // A window that zlib can't write for.
        "permessage-deflate; server_max_window_bits=8",
        "permessage-deflate; server_max_window_bits",
        "permessage-deflate; server_max_window_bits=16",
        "permessage-deflate; server_max_window_bits=7",
        "permessage-deflate; server_max_window_bits=09",
        "permessage-deflate; client_max_window_bits=16",
        "permessage-deflate; client_max_window_bits=x",
        "permessage-deflate; server_no_context_takeover=1",
        "permessage-deflate; server_no_context_takeover; server_no_context_takeover",
        "permessage-deflate; client_max_window_bits=10; client_max_window_bits=10",
        "permessage-deflate; something_new",
        "x-webkit-deflate-frame",
        "permessage-bzip2; level=9",
    ] {
        assert_answer(&server, &[offer], None);
        // What is offered besides is taken, in one header or in two.
        assert_answer(&server, &[offer, OFFER], Some(ALONE));
        assert_answer(&server, &[&format!("{offer}, {OFFER}")], Some(ALONE));
    }
}

#[test]
fn a_server_without_compression() {
    let server = echo(|s| s);
    for offers in [&[][..], &[OFFER], &[ALONE, "x-other"]] {
        assert_answer(&server, offers, None);
    }
}

// ---- what is compressed ----

#[test]
fn short_messages_are_sent_as_they_are() {
    let server = echo(|s| s.deflate(Deflate::new().threshold(100)));
    let mut raw = open(server.addr);
    for len in [0, 1, 99, 100, 101, 5_000] {
        let text = prose(len);
        for (compressed, plain) in [(TEXT, 0x81), (BINARY, 0x82)] {
            // However it came.
            for (first, payload) in [
                (plain, text.clone().into_bytes()),
                (compressed, zip(text.as_bytes())),
            ] {
                raw.write(&frame(first, &payload));
                let (first, payload) = raw.frame().unwrap();
                if len < 100 {
                    assert_eq!((first, payload), (plain, text.clone().into_bytes()));
                } else {
                    assert!(payload.len() < len, "{len}");
                    assert_eq!(
                        (first, unzip(&payload)),
                        (compressed, text.clone().into_bytes())
                    );
                }
            }
        }
    }
}

/// What would not become shorter is sent as it is.
#[test]
fn noise_is_sent_as_it_is() {
    let server = echo(|s| s.deflate(Deflate::new().threshold(0)));
    let mut raw = open(server.addr);
    for len in [0, 1, 3, 10, 1_000, 100_000] {
        raw.write(&frame(BINARY, &zip(&noise(len))));
        assert!(raw.frame() == Some((0x82, noise(len))), "{len}");
    }
}

#[test]
fn a_word_on_compression() {
    let server = serve(
        |s| s.deflate(Deflate::new().threshold(1_000)),
        |peer: &Peer, message: Message| {
            for compress in [Compress::Always, Compress::Never, Compress::Auto] {
                peer.send_with(message.clone(), compress).unwrap();
            }
            peer.send_with(Message::Ping("p".into()), Compress::Always)
                .unwrap();
        },
    );
    let mut raw = open(server.addr);
    let mut without = Raw::open(server.addr);
    for len in [200, 2_000] {
        let text = prose(len);
        let message = frame(0x81, text.as_bytes());
        for firsts in [[TEXT, 0x81, if len < 1_000 { 0x81 } else { TEXT }]] {
            raw.write(&message);
            without.write(&message);
            for first in firsts {
                let (got, payload) = raw.frame().unwrap();
                assert_eq!(got, first, "{len}");
                let payload = if first == TEXT {
                    unzip(&payload)
                } else {
                    payload
                };
                assert_eq!(payload, text.as_bytes());
                assert_eq!(without.frame(), Some((0x81, text.clone().into_bytes())));
            }
            for raw in [&mut raw, &mut without] {
                assert_eq!(raw.frame(), Some((0x89, b"p".to_vec())));
            }
        }
    }
}

/// Says everything to all who are there; never compressed.
struct Aloud;

impl Room for Aloud {
    type Join = ();

    fn join(&mut self, _: &mut Members, _: &Peer, (): ()) -> Result<(), Refused> {
        Ok(())
    }

    fn message(&mut self, room: &mut Members, _: &Peer, message: Message) {
        room.broadcast_with(message.clone(), Compress::Never);
        room.broadcast_with(message.clone(), Compress::Always);
        room.broadcast(message);
    }
}

/// What goes through the loop's channel is counted at the call and again when it comes to the queue: the same.
#[test]
fn what_is_sent_behind_a_broadcast_is_counted_right() {
    let policies = [Overflow::Close, Overflow::DropNewest, Overflow::DropOldest];
    for (workers, overflow) in WORKERS.map(|n| policies.map(|how| (n, how))).concat() {
        let handler = |peer: &Peer, _| {
            peer.publish("others", "x"); // on its way while the next two are sent
            let _ = peer.send("1");
            let _ = peer.send(prose(2_000));
        };
        let settings = |s: Server| {
            let s = s.loops(1).workers(workers).deflate(Deflate::new());
            s.overflow(overflow)
        };
        let (handler, seen) = spy(handler);
        let server = serve(settings, handler);
        let (mut other, _) = offering(server.addr, &[OFFER]);
        assert!(seen.peer().subscribe("others"));
        let mut raw = open(server.addr);
        let peer = seen.peer();
        for _ in 0..20 {
            raw.write(&frame(0x81, b"go"));
            assert_eq!(other.frame(), Some((0x81, b"x".to_vec())));
            assert_eq!(raw.frame(), Some((0x81, b"1".to_vec())));
            let (first, payload) = raw.frame().unwrap();
            assert_eq!((first, unzip(&payload)), (TEXT, prose(2_000).into_bytes()));
        }
        assert_eq!(server.handle.metrics().total.messages_dropped, 0);
        until("nothing waits any more", || peer.queued_bytes() == 0);
    }
}

/// The same for what goes to many.
#[test]
fn a_word_on_the_compression_of_broadcasts() {
    let firsts = |len| [0x81, TEXT, if len < 1_000 { 0x81 } else { TEXT }];
    let settings = |s: Server| s.deflate(Deflate::new().threshold(1_000));
    let server = serve(settings, |_: &Peer, _: Message| ());
    let rooms = Rooms::new(|_| Aloud);
    let handler = rooms.handler(|_| Ok(("a".into(), ())));
    let with_room = serve(settings, handler);
    let (mut raw, mut without) = (open(server.addr), Raw::open(server.addr));
    let mut member = open(with_room.addr);
    for len in [200, 2_000] {
        let text = prose(len);
        for compress in [Compress::Never, Compress::Always, Compress::Auto] {
            assert!(server.handle.broadcast_with(text.clone(), compress));
        }
        member.write(&frame(0x81, text.as_bytes()));
        for first in firsts(len) {
            for raw in [&mut raw, &mut member] {
                assert_eq!(plain(raw), (first, text.clone().into_bytes()), "{len}");
            }
            assert_eq!(without.frame(), Some((0x81, text.clone().into_bytes())));
        }
    }
    // What would not become shorter is not compressed at all.
    assert!(server.handle.broadcast_with(noise(2_000), Compress::Always));
    assert!(raw.frame() == Some((0x82, noise(2_000))));
}

/// The next frame, with its payload inflated.
fn plain(raw: &mut Raw) -> (u8, Vec<u8>) {
    match raw.frame().unwrap() {
        (first, payload) if first & 0x40 != 0 => (first, unzip(&payload)),
        as_it_is => as_it_is,
    }
}

/// Topics say it for what is published to them, also when it is kept and comes later.
#[test]
fn a_word_on_the_compression_of_topics() {
    for workers in WORKERS {
        let settings = |s: Server| {
            s.workers(workers)
                .deflate(Deflate::new().threshold(1_000))
                .history("kept/*", History::last(10))
                .compress("kept/plain", Compress::Never)
                .compress("plain", Compress::Never)
                .compress("short*", Compress::Always)
        };
        let server = serve(settings, |peer: &Peer, message: Message| {
            let topic = message.to_text().unwrap();
            match topic.starts_with("kept/") {
                true => peer.subscribe_from(topic, Since::Start),
                false => peer.subscribe(topic),
            }
        });
        let (long, short) = (prose(2_000), prose(200));
        for (topic, text, first) in [
            ("plain", &long, 0x81),
            ("any", &long, TEXT),
            ("any", &short, 0x81),
            ("short/one", &short, TEXT),
        ] {
            let mut raw = open(server.addr);
            raw.write(&frame(0x81, topic.as_bytes()));
            until("it subscribes", || server.handle.subscribers(topic) == 1);
            assert!(server.handle.publish(topic, text.clone()));
            assert!(server.handle.publish_latest(topic, 1_u8, text.clone()));
            for _ in 0..2 {
                assert_eq!(plain(&mut raw), (first, text.clone().into_bytes()));
            }
            drop(raw);
            until("it is gone", || server.handle.subscribers(topic) == 0);
        }
        for (topic, first) in [("kept/plain", 0x81), ("kept/any", TEXT)] {
            assert!(server.handle.publish(topic, long.clone()));
            let mut raw = open(server.addr);
            raw.write(&frame(0x81, topic.as_bytes()));
            let ends_well = |raw: &mut Raw| {
                let (got, text) = plain(raw);
                assert_eq!(got, first, "{topic}");
                assert!(text.ends_with(long.as_bytes()));
            };
            ends_well(&mut raw);
            assert!(plain(&mut raw).1.starts_with(b"live "));
            assert!(server.handle.publish(topic, long.clone()));
            ends_well(&mut raw);
        }
    }
}

// ---- what comes compressed ----

/// Wherever a message is cut into fragments, with control frames between them; and wherever the bytes
/// are cut on their way.
#[test]
fn fragments_of_compressed_messages() {
    for workers in WORKERS {
        let server = echo(|s| {
            s.workers(workers)
                .deflate(Deflate::new().threshold(1 << 20))
        });
        let mut raw = open(server.addr);
        let text = "sluices, κόσμε, 🦀, and sluices again";
        let packed = zip(text.as_bytes());
        for (compressed, plain) in [(TEXT, 0x81), (BINARY, 0x82)] {
            let expected = Some((plain, text.as_bytes().to_vec()));
            let pong = Some((0x8A, b"between".to_vec()));
            for cut in 0..=packed.len() {
                let (one, two) = packed.split_at(cut);
                raw.write(&frame(compressed & 0x7F, one));
                raw.write(&frame(0x89, b"between"));
                raw.write(&frame(0x80, two));
                assert_eq!(raw.frame(), pong);
                assert_eq!(raw.frame(), expected, "cut at {cut}");
            }
            let whole = frame(compressed, &packed);
            for cut in 0..=whole.len() {
                raw.write(&whole[..cut]);
                raw.write(&whole[cut..]);
                assert_eq!(raw.frame(), expected, "cut at {cut}");
            }
            raw.write(&frame(compressed & 0x7F, &[]));
            for byte in &packed {
                raw.write(&frame(0x00, &[*byte]));
            }
            raw.write(&frame(0x80, &[]));
            assert_eq!(raw.frame(), expected);
        }
    }
}

/// §6.1: RSV1 is for the first frame of a data message, and §7 for those who agreed on it.
#[test]
fn the_reserved_bit_where_it_must_not_be() {
    let server = echo(|s| s.deflate(Deflate::new()));
    let packed = zip(b"hello");
    let (one, two) = packed.split_at(3);
    for bytes in [
        [frame(0x41, one), frame(0xC0, two)].concat(),
        [frame(0x01, b"hel"), frame(0xC0, b"lo")].concat(),
        [frame(0x41, one), frame(0x40, two)].concat(),
        frame(0xC9, b"ping"),
        frame(0xCA, b"pong"),
        frame(0xC8, b"\x03\xE8"),
        // RSV2 and RSV3 are nobody's.
        frame(TEXT | 0x20, &packed),
        frame(TEXT | 0x10, &packed),
        frame(0xA1, b"hello"),
    ] {
        let mut raw = open(server.addr);
        raw.write(&bytes);
        assert_eq!(raw.close_code(), Some(1002), "{bytes:x?}");
    }
    let without = echo(|s| s);
    let not_offered = [Raw::open(server.addr), Raw::open(without.addr)];
    let not_answered = offering(without.addr, &[ALONE]).0;
    for mut raw in not_offered.into_iter().chain([not_answered]) {
        raw.write(&frame(TEXT, &packed));
        assert_eq!(raw.close_code(), Some(1002));
    }
}

/// What was sent before is answered, and nothing that was sent after is seen by anybody.
#[test]
fn corrupt_data() {
    let whole = zip(prose(500).as_bytes());
    let damaged: Vec<u8> = whole.iter().map(|byte| !byte).collect();
    let cut = &whole[..whole.len() / 2];
    let more = [&whole[..], b"more"].concat();
    for corrupt in [&damaged, cut, &more, b"\xFF", b"\x07", b""] {
        for workers in WORKERS {
            let (server, seen, count) = counting_echo(|s| s.workers(workers));
            let mut raw = open(server.addr);
            let hello = frame(TEXT, &zip(b"hello"));
            let plain = frame(0x81, b"hello");
            let fragments = [frame(0x41, corrupt), frame(0x80, b"")].concat();
            let bytes = [&hello, &plain, &fragments, &hello, &plain, &hello].map(|b| &b[..]);
            raw.write(&bytes.concat());
            for _ in 0..2 {
                assert_eq!(raw.frame(), Some((0x81, b"hello".to_vec())));
            }
            assert_eq!(raw.close_code(), Some(1002), "{corrupt:x?}");
            assert_eq!(raw.frame(), None);
            let reason = seen.end();
            let cause = CloseCause::Protocol("corrupt compressed data");
            assert_eq!(reason.cause(), cause);
            assert_eq!(count.load(Ordering::SeqCst), 2);
        }
    }
}

/// The peer may be gone, or closing, when it is found out that what it sent is corrupt.
#[test]
fn corrupt_data_at_the_end() {
    for workers in WORKERS {
        for more in [&frame(0x88, b"\x03\xE8")[..], b""] {
            let (server, seen, count) = counting_echo(|s| s.workers(workers));
            let mut raw = open(server.addr);
            let hello = frame(TEXT, &zip(b"hello"));
            let corrupt = frame(TEXT, b"\xFF");
            raw.write(&[&hello[..], &corrupt, &hello, more].concat());
            raw.stream.shutdown(std::net::Shutdown::Write).unwrap();
            assert_eq!(raw.frame(), Some((0x81, b"hello".to_vec())));
            raw.rest();
            seen.end();
            assert_eq!(count.load(Ordering::SeqCst), 1);
        }
    }
}

/// Whose own close frame is there by the time that is found out is told what was wrong all the same.
#[test]
fn corrupt_data_before_a_close_frame() {
    for workers in WORKERS {
        for (bad, code, cause) in [
            (b"\xFF".to_vec(), 1002, None),
            (zip(b"\xFF"), 1007, Some(CloseCause::InvalidUtf8)),
            (zip(&[0; 2000]), 1009, Some(CloseCause::TooBig)),
        ] {
            let (server, seen, count) = counting_echo(|s| s.workers(workers).max_message(1000));
            let mut raw = open(server.addr);
            let hello = frame(TEXT, &zip(b"hello"));
            let close = frame(0x88, b"\x03\xE8");
            raw.write(&[hello, frame(TEXT, &bad), close].concat());
            assert_eq!(raw.frame(), Some((0x81, b"hello".to_vec())));
            assert_eq!(raw.close_code(), Some(code), "{workers} workers");
            let told = seen.end();
            match cause {
                Some(cause) => assert_eq!(told.cause(), cause),
                None => assert!(matches!(told.cause(), CloseCause::Protocol(_)), "{told:?}"),
            }
            assert_eq!(count.load(Ordering::SeqCst), 1);
        }
    }
}

/// With context a message is read with those before it in mind, and ends with them.
#[test]
fn corrupt_data_in_context() {
    let server = echo(|s| s.deflate(Deflate::new().context_takeover(true, true)));
    let (mut raw, _) = offering(server.addr, &[OFFER]);
    let mut zip = Zip::new(6, 15);
    let text = prose(200);
    for _ in 0..3 {
        raw.write(&frame(TEXT, &zip.message(text.as_bytes())));
        assert_eq!(raw.frame(), Some((0x81, text.clone().into_bytes())));
    }
    // Somebody who hasn't read them makes nothing of it.
    let packed = zip.message(text.as_bytes());
    let (mut other, _) = offering(server.addr, &[OFFER]);
    other.write(&frame(TEXT, &packed));
    assert_eq!(other.close_code(), Some(1002));
}

#[test]
fn text_that_is_none() {
    for workers in WORKERS {
        let (server, seen, count) = counting_echo(|s| s.workers(workers));
        let mut raw = open(server.addr);
        let bytes = [
            b"caf\xE9".as_slice(),
            &b"caf\xC3".repeat(500),
            b"\xED\xA0\x80",
        ];
        for (n, bytes) in bytes.into_iter().enumerate() {
            // Binary messages may be anything.
            raw.write(&frame(BINARY, &zip(bytes)));
            let (_, payload) = raw.frame().unwrap();
            assert!(payload == bytes || unzip(&payload) == bytes);
            raw.write(&[frame(TEXT, &zip(bytes)), frame(0x81, b"unseen")].concat());
            assert_eq!(raw.close_code(), Some(1007));
            assert_eq!(raw.frame(), None);
            assert_eq!(seen.end().cause(), CloseCause::InvalidUtf8);
            assert_eq!(count.load(Ordering::SeqCst), n + 1);
            raw = open(server.addr);
        }
    }
}

// ---- limits ----

/// The limit holds for what comes out, to the byte.
#[test]
fn the_longest_message() {
    const MAX: usize = 100_000;
    for workers in WORKERS {
        let server = echo(|s| s.workers(workers).max_message(MAX).deflate(Deflate::new()));
        let mut raw = open(server.addr);
        for message in [prose(MAX).into_bytes(), vec![0; MAX]] {
            raw.write(&frame(BINARY, &zip(&message)));
            let (first, payload) = raw.frame().unwrap();
            assert_eq!(first, BINARY);
            assert!(unzip(&payload) == message);
        }
        for message in [
            prose(MAX + 1).into_bytes(),
            vec![0; MAX + 1],
            noise(MAX + 1),
        ] {
            let mut raw = open(server.addr);
            raw.write(&frame(BINARY, &zip(&message)));
            assert_eq!(raw.close_code(), Some(1009));
        }
    }
}

/// Noise becomes longer by being compressed, with some compressors more than with others.
#[test]
fn the_longest_message_of_noise() {
    const MAX: usize = 1 << 20;
    let server = echo(|s| s.max_message(MAX).deflate(Deflate::new()));
    let mut raw = open(server.addr);
    for level in 0..=9 {
        let message = noise(MAX);
        let packed = Zip::new(level, 15).message(&message);
        assert!(packed.len() > MAX);
        raw.write(&frame(BINARY, &packed));
        assert!(
            raw.frame() == Some((0x82, message)),
            "level {level}: {}",
            packed.len()
        );
    }
}

/// Too long on the wire already: refused by what the header says.
#[test]
fn a_frame_that_is_too_long() {
    let server = echo(|s| s.max_message(1_000).deflate(Deflate::new()));
    for len in [1_500u16, u16::MAX] {
        let mut raw = open(server.addr);
        let [high, low] = len.to_be_bytes();
        raw.write(&[BINARY, 0xFE, high, low, 1, 2, 3, 4]);
        assert_eq!(raw.close_code(), Some(1009));
    }
}
