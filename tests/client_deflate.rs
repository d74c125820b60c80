//! permessage-deflate in the client: against framemill's own server, and against a raw one for every
//! byte that is agreed to, sent, or wrong.
#![cfg(feature = "deflate")]

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, unbounded};
use framemill::{
    Client, ClientEvent, ClientHandle, ClientHandler, Clients, CloseCause, CloseCode, CloseReason,
    Compress, Deflate, Error, HeaderMap, Message, Peer, Server,
};
use support::deflate::{ALONE, BINARY, TEXT, Unzip, Zip, noise, prose, zip};
use support::remote::{Remote, client, end, message, opening, refusal, unmasked};
use support::{Addr, Running, WAIT, no_more, serve, until};

// ---- kit ----

/// What is offered by default.
const OFFER: &str = "permessage-deflate; server_no_context_takeover; client_no_context_takeover; \
                     client_max_window_bits";

const PLAIN_TEXT: u8 = 0x81;
const PLAIN_BINARY: u8 = 0x82;

fn extensions(value: &str) -> String {
    format!("Sec-WebSocket-Extensions: {value}\r\n")
}

fn takeover(send: bool, receive: bool) -> Deflate {
    Deflate::new().context_takeover(send, receive)
}

/// Connected to a raw server that gives this answer and sends `bytes` behind it.
fn connected(
    deflate: Deflate,
    answer: &str,
    bytes: Vec<u8>,
) -> (ClientHandle, Receiver<ClientEvent>, Remote) {
    let (addr, remotes) = opening(&extensions(answer), bytes);
    let (handle, events) = client(addr).deflate(deflate).connect().unwrap();
    let (_, remote) = remotes.recv_timeout(WAIT).unwrap();
    (handle, events, remote)
}

/// Answers each text or binary message with the same.
fn echo(settings: impl FnOnce(Server) -> Server) -> Running {
    serve(
        |s| settings(s.outbound_limit(64 << 20)),
        |peer: &Peer, message| peer.send(message),
    )
}

/// Tells of the answer's extensions and of all messages.
struct Tell {
    agreed: Sender<Option<String>>,
    messages: Sender<Message>,
    ended: Sender<CloseReason>,
}

impl ClientHandler for Tell {
    fn open(&mut self, _: &Peer, headers: &HeaderMap) {
        let mut values = headers.get_all("sec-websocket-extensions").iter();
        let value = values.next().map(|v| v.to_str().unwrap().to_owned());
        assert!(values.next().is_none());
        let _ = self.agreed.send(value);
    }

    fn message(&mut self, _: &Peer, message: Message) {
        let _ = self.messages.send(message);
    }

    fn close(&mut self, _: &Peer, reason: &CloseReason) {
        let _ = self.ended.send(reason.clone());
    }
}

/// Holds an echo server against all kinds of messages; gives what was agreed to.
fn exchange(clients: &Clients, settings: Client) -> Option<String> {
    let (agreed, agreement) = unbounded();
    let (messages, came) = unbounded();
    let (ended, ends) = unbounded();
    let tell = Tell {
        agreed,
        messages,
        ended,
    };
    let settings = settings.outbound_limit(64 << 20);
    let handle = clients.open(settings, tell).unwrap();
    let agreement = agreement.recv_timeout(WAIT).expect("it opens");
    let long = prose(100_000);
    let sent: Vec<Message> = [
        Message::text(long.clone()),
        Message::text(long.clone()),
        Message::binary(noise(70_000)),
        Message::text(""),
        Message::text("short"),
        Message::binary(long.as_bytes()[..40_000].to_vec()),
        Message::binary(Vec::new()),
        Message::text(&long[1..2000]),
        Message::binary(noise(300)),
        Message::text("κόσμε".repeat(1000)),
        Message::text(long),
    ]
    .into();
    for round in 0..3 {
        for message in &sent {
            handle.send(message.clone()).unwrap();
        }
        for message in &sent {
            let echo = came.recv_timeout(WAIT).expect("an echo");
            assert!(echo == *message, "round {round}: {} bytes", message.len());
        }
    }
    assert!(handle.close(CloseCode::Normal, ""));
    assert!(ends.recv_timeout(WAIT).unwrap().is_clean());
    agreement
}

// ---- offers and answers ----

/// What is offered with which settings, and what comes of it: messages that the agreement allows.
#[test]
fn offers() {
    let cases = [
        (Deflate::new(), OFFER),
        (
            takeover(true, true),
            "permessage-deflate; client_max_window_bits",
        ),
        (
            takeover(true, false),
            "permessage-deflate; server_no_context_takeover; client_max_window_bits",
        ),
        (
            takeover(false, true).window_bits(10, 12),
            "permessage-deflate; client_no_context_takeover; server_max_window_bits=12; \
             client_max_window_bits=10",
        ),
    ];
    for (deflate, offer) in cases {
        let (addr, remotes) = opening("", Vec::new());
        let (handle, events) = client(addr).deflate(deflate).connect().unwrap();
        let (request, mut remote) = remotes.recv_timeout(WAIT).unwrap();
        assert!(request.contains(&extensions(offer)), "{request}");
        assert_eq!(request.matches("xtensions").count(), 1);
        // It was not taken: everything goes as it is, and nothing else may come.
        let text = prose(5000);
        handle.send(text.as_str()).unwrap();
        assert_eq!(remote.frame(), Some((PLAIN_TEXT, text.into_bytes())));
        remote.write(&unmasked(PLAIN_TEXT, b"plain"));
        assert_eq!(message(&events), Message::text("plain"));
        let peer = handle.peer().unwrap();
        peer.send_with("always", Compress::Always).unwrap();
        assert_eq!(remote.frame(), Some((PLAIN_TEXT, b"always".to_vec())));
        remote.write(&unmasked(TEXT, &zip(b"compressed")));
        assert_eq!(remote.close_code(), Some(1002));
        let cause = CloseCause::Protocol("reserved bit set");
        assert_eq!(end(&events).cause(), cause);
    }
}

/// framemill with framemill: each setting of the client with each of the server.
#[test]
fn agreements_with_framemill() {
    let both = "permessage-deflate";
    let alone = ALONE;
    let no_server = "permessage-deflate; server_no_context_takeover";
    let no_client = "permessage-deflate; client_no_context_takeover";
    // The client's settings; and the answers of the servers below.
    let cases = [
        (takeover(false, false), [alone, alone, alone, alone]),
        (takeover(true, true), [alone, both, no_server, no_client]),
        (takeover(true, false), [alone, no_server, no_server, alone]),
        (takeover(false, true), [alone, no_client, alone, no_client]),
    ];
    let servers = [
        takeover(false, false),
        takeover(true, true),
        // What the server sends is what the client receives.
        takeover(false, true),
        takeover(true, false),
    ];
    for (at, server) in servers.into_iter().enumerate() {
        for workers in [0, 2] {
            let server = echo(|s| s.workers(workers).deflate(server.clone()));
            let clients = Clients::start(1, workers).unwrap();
            for (deflate, answers) in &cases {
                let settings = client(server.addr).deflate(deflate.clone());
                assert_eq!(exchange(&clients, settings).as_deref(), Some(answers[at]));
            }
            // Nothing is agreed to unless it is offered.
            assert_eq!(exchange(&clients, client(server.addr)), None);
        }
    }
    let server = echo(|s| s.workers(2));
    let clients = Clients::start(1, 2).unwrap();
    let settings = client(server.addr).deflate(takeover(true, true));
    assert_eq!(exchange(&clients, settings), None);
}

#[test]
fn windows_agreed_with_framemill() {
    let server_says = |send, receive| {
        let deflate = takeover(true, true).window_bits(send, receive);
        echo(|s| s.workers(2).deflate(deflate))
    };
    let clients = Clients::start(1, 2).unwrap();
    let agree = |server: &Running, send, receive| {
        let deflate = takeover(true, true).window_bits(send, receive);
        let answer = exchange(&clients, client(server.addr).deflate(deflate)).unwrap();
        let rest = answer.strip_prefix("permessage-deflate").unwrap();
        rest.to_owned()
    };
    let any = server_says(15, 15);
    assert_eq!(agree(&any, 15, 15), "");
    assert_eq!(agree(&any, 15, 9), "; server_max_window_bits=9");
    assert_eq!(agree(&any, 9, 15), "");
    for bits in 9..=14 {
        let some = server_says(bits, bits);
        let (down, up) = (
            format!("; server_max_window_bits={bits}"),
            format!("; client_max_window_bits={bits}"),
        );
        assert_eq!(agree(&some, 15, 15), format!("{down}{up}"));
        // It keeps to less on its own.
        assert_eq!(agree(&some, 9, 9), "; server_max_window_bits=9");
    }
}

/// Answers that may not be given: there is no WebSocket.
#[test]
fn answers_that_are_refused() {
    let bare = |answer: &str, why: &'static str| (None, answer.to_owned(), why);
    let to = |deflate: Deflate, answer: &str, why| (Some(deflate), answer.to_owned(), why);
    let alone = |more: &str, why| to(Deflate::new(), &format!("{ALONE}{more}"), why);
    let not_offered = "the server chose an extension that was not offered";
    let malformed = "Sec-WebSocket-Extensions is malformed";
    let unsure = "a parameter of permessage-deflate appears twice";
    let window = "a max_window_bits is invalid";
    let cases = [
        bare("permessage-deflate", not_offered),
        bare(OFFER, not_offered),
        alone(", x-webkit-deflate-frame", not_offered),
        to(Deflate::new(), "x-webkit-deflate-frame", not_offered),
        alone(
            ", permessage-deflate",
            "the server chose an extension twice",
        ),
        to(
            Deflate::new(),
            "permessage-deflate; client_no_context_takeover",
            "the server did not agree to server_no_context_takeover",
        ),
        to(
            takeover(true, true).window_bits(15, 12),
            "permessage-deflate",
            "the server did not agree to server_max_window_bits",
        ),
        to(
            takeover(true, true).window_bits(15, 12),
            "permessage-deflate; server_max_window_bits=13",
            "the server did not agree to server_max_window_bits",
        ),
        alone(
            "; client_max_window_bits",
            "client_max_window_bits has no value",
        ),
        alone(
            "; client_max_window_bits=8",
            "client_max_window_bits is too small to be met",
        ),
        to(
            Deflate::new().window_bits(11, 15),
            &format!("{ALONE}; client_max_window_bits=12"),
            "client_max_window_bits is larger than was offered",
        ),
        alone("; client_max_window_bits=16", window),
        alone("; client_max_window_bits=7", window),
        alone("; client_max_window_bits=010", window),
        alone("; client_max_window_bits=ten", window),
        alone("; server_max_window_bits=1", window),
        alone(
            "; server_max_window_bits",
            "server_max_window_bits has no value",
        ),
        alone("; server_no_context_takeover", unsure),
        alone(
            "; client_max_window_bits=10; client_max_window_bits=10",
            unsure,
        ),
        alone("; level=9", "a parameter of permessage-deflate is unknown"),
        alone("; server_max_window_bits=\"", malformed),
        alone(";", malformed),
        alone("; =9", malformed),
        to(
            Deflate::new(),
            "permessage-deflate; server_no_context_takeover=1",
            "a no_context_takeover has a value",
        ),
    ];
    for (deflate, answer, why) in cases {
        let (addr, remotes) = opening(&extensions(&answer), unmasked(PLAIN_TEXT, b"hello"));
        let settings = match deflate {
            Some(deflate) => client(addr).deflate(deflate),
            None => client(addr),
        };
        match refusal(settings) {
            Error::Handshake(said) => assert_eq!(said, why, "{answer}"),
            other => panic!("{answer}: {other:?}"),
        }
        // And hangs up without a word: there was no WebSocket to close.
        let (_, mut remote) = remotes.recv_timeout(WAIT).unwrap();
        assert_eq!(remote.frame(), None, "{answer}");
    }
}

#[test]
fn settings_that_make_no_sense() {
    for deflate in [
        Deflate::new().level(0),
        Deflate::new().level(10),
        Deflate::new().window_bits(8, 15),
        Deflate::new().window_bits(15, 16),
    ] {
        let (addr, _remotes) = opening("", Vec::new());
        let error = refusal(client(addr).deflate(deflate));
        assert!(matches!(error, Error::Config(_)), "{error:?}");
    }
}

// ---- what the client sends ----

#[test]
fn threshold_and_exceptions() {
    let (handle, _events, mut remote) = connected(Deflate::new().threshold(100), ALONE, Vec::new());
    let peer = handle.peer().unwrap();
    let text = prose(3000);
    let inflated = |payload: &[u8]| Unzip::new(15).message(payload).unwrap();

    handle.send(&text[..99]).unwrap();
    assert_eq!(remote.frame().unwrap(), (PLAIN_TEXT, text[..99].into()));
    handle.send(&text[..100]).unwrap();
    let (first, payload) = remote.frame().unwrap();
    assert_eq!((first, inflated(&payload)), (TEXT, text[..100].into()));
    assert!(payload.len() < 100);
    handle.send(text.clone().into_bytes()).unwrap();
    let (first, payload) = remote.frame().unwrap();
    assert_eq!((first, inflated(&payload)), (BINARY, text.clone().into()));

    peer.send_with("x".repeat(20), Compress::Always).unwrap();
    let (first, payload) = remote.frame().unwrap();
    assert_eq!((first, inflated(&payload)), (TEXT, vec![b'x'; 20]));
    peer.send_with(text.as_str(), Compress::Never).unwrap();
    assert_eq!(remote.frame(), Some((PLAIN_TEXT, text.clone().into())));
    peer.send_with(text.as_str(), Compress::Auto).unwrap();
    assert_eq!(remote.frame().unwrap().0, TEXT);
    // What does not shrink goes as it is.
    handle.send(noise(10_000)).unwrap();
    assert_eq!(remote.frame(), Some((PLAIN_BINARY, noise(10_000))));
    for short in ["x", ""] {
        peer.send_with(short, Compress::Always).unwrap();
        assert_eq!(remote.frame(), Some((PLAIN_TEXT, short.into())));
    }
    // RFC 7692 §6.1: only data messages.
    handle.send(Message::Ping(vec![b'p'; 120].into())).unwrap();
    assert_eq!(remote.frame(), Some((0x89, vec![b'p'; 120])));
    assert!(handle.close(CloseCode::Normal, &"r".repeat(120)));
    assert_eq!(remote.frame().unwrap().0, 0x88);
}

/// With a context even what does not shrink is compressed: it enters the window.
#[test]
fn in_context_everything_is_compressed() {
    let deflate = takeover(true, false).threshold(0);
    let answer = "permessage-deflate; server_no_context_takeover";
    let (handle, _events, mut remote) = connected(deflate, answer, Vec::new());
    let mut unzip = Unzip::new(15);
    for payload in [noise(5000), Vec::new(), b"x".to_vec(), noise(5000)] {
        handle.send(payload.clone()).unwrap();
        let (first, packed) = remote.frame().unwrap();
        assert_eq!(first, BINARY);
        assert_eq!(unzip.message(&packed).as_ref(), Ok(&payload));
        // The quickest level has one code for all, so noise grows by some.
        assert!(packed.len() <= payload.len() * 11 / 10 + 10);
    }
    handle.send("").unwrap();
    // RFC 7692 §7.2.3.6.
    assert_eq!(remote.frame(), Some((TEXT, vec![0])));
}

/// With the context each message is less than the one before it; without, all are the same.
#[test]
fn what_is_sent_refers_back_only_as_agreed() {
    let text = prose(20_000);
    let both = || takeover(true, true).level(6);
    let lengths = |deflate: Deflate, answer: &str, bits: u8, keeps: bool| {
        let (handle, _events, mut remote) = connected(deflate, answer, Vec::new());
        let mut unzip = Unzip::new(bits);
        let mut lengths = Vec::new();
        for _ in 0..4 {
            handle.send(text.as_str()).unwrap();
            // It enters nobody's window.
            handle.send("short").unwrap();
            let (first, payload) = remote.frame().unwrap();
            assert_eq!(first, TEXT);
            if !keeps {
                unzip = Unzip::new(bits);
            }
            assert_eq!(unzip.message(&payload).unwrap(), text.as_bytes());
            lengths.push(payload.len());
            assert_eq!(remote.frame(), Some((PLAIN_TEXT, b"short".to_vec())));
        }
        lengths
    };
    let alone = lengths(Deflate::new(), ALONE, 15, false);
    assert!(alone.iter().all(|len| *len == alone[0]), "{alone:?}");
    let kept = lengths(both(), "permessage-deflate", 15, true);
    assert!(kept[1..].iter().all(|len| len * 2 < kept[0]), "{kept:?}");
    // Either side may do without.
    let no_client = "permessage-deflate; client_no_context_takeover";
    let alone = lengths(both(), no_client, 15, false);
    assert!(alone.iter().all(|len| *len == alone[0]), "{alone:?}");
    // §7.1.1.2: if the client has said that it will not, the server may leave it at that.
    let silent = "permessage-deflate; server_no_context_takeover";
    let alone = lengths(Deflate::new(), silent, 15, false);
    assert!(alone.iter().all(|len| *len == alone[0]), "{alone:?}");
    // A window that is too small for what is farther away.
    for bits in 9..=14 {
        let answer = format!("permessage-deflate; client_max_window_bits={bits}");
        lengths(both(), &answer, bits, true);
        // The client's own wish, which the server need not repeat.
        let own = both().window_bits(bits, 15);
        lengths(own, "permessage-deflate", bits, true);
    }
}

/// Many threads with one context: every message is whole.
#[test]
fn several_threads_send_in_context() {
    let settings = takeover(true, true).threshold(0);
    let server = echo(|s| s.workers(2).deflate(settings.clone()));
    let (handle, events) = client(server.addr)
        .deflate(settings)
        .outbound_limit(64 << 20)
        .connect()
        .unwrap();
    const EACH: usize = 300;
    thread::scope(|scope| {
        for sender in 0..4 {
            let handle = &handle;
            scope.spawn(move || {
                for n in 0..EACH {
                    let how = match n % 5 {
                        0 => Compress::Never,
                        _ => Compress::Auto,
                    };
                    let text = format!("{sender} {n} {}", prose(n));
                    handle.peer().unwrap().send_with(text, how).unwrap();
                }
            });
        }
        let mut seen = [0; 4];
        for _ in 0..4 * EACH {
            let text = message(&events).into_text().unwrap();
            let mut words = text.splitn(3, ' ');
            let sender: usize = words.next().unwrap().parse().unwrap();
            assert_eq!(words.next(), Some(&*seen[sender].to_string()));
            assert_eq!(words.next(), Some(&*prose(seen[sender])));
            seen[sender] += 1;
        }
    });
}

// ---- what the client receives ----

#[test]
fn compressed_messages_in_every_form() {
    let text = prose(50_000);
    let packed = zip(text.as_bytes());
    let mut bytes = unmasked(TEXT, &packed);
    // In fragments, of which the first alone says that it is compressed, with control frames between.
    bytes.extend(unmasked(0x41, &packed[..10]));
    bytes.extend(unmasked(0x89, b"ping"));
    bytes.extend(unmasked(0x00, &[]));
    bytes.extend(unmasked(0x00, &packed[10..2000]));
    bytes.extend(unmasked(0x8A, b""));
    bytes.extend(unmasked(0x80, &packed[2000..]));
    bytes.extend(unmasked(BINARY, &zip(&noise(3000))));
    bytes.extend(unmasked(PLAIN_BINARY, &noise(3000)));
    // The two forms of nothing, and bytes in stored blocks.
    bytes.extend(unmasked(TEXT, &[0]));
    bytes.extend(unmasked(TEXT, &[2, 0]));
    bytes.extend(unmasked(TEXT, &Zip::new(0, 15).message(b"stored")));
    // §7.2.3.4 and .5: a final block, and two blocks.
    bytes.extend(unmasked(
        TEXT,
        &[0xF3, 0x48, 0xCD, 0xC9, 0xC9, 0x07, 0x00, 0x00],
    ));
    bytes.extend(unmasked(
        TEXT,
        &[
            0xF2, 0x48, 0x05, 0x00, 0x00, 0x00, 0xFF, 0xFF, 0xCA, 0xC9, 0xC9, 0x07, 0x00,
        ],
    ));
    for workers in [0, 2] {
        let clients = Clients::start(1, workers).unwrap();
        let (addr, remotes) = opening(&extensions(ALONE), bytes.clone());
        let (_handle, events) = clients
            .connect(client(addr).deflate(Deflate::new()))
            .unwrap();
        assert_eq!(message(&events), Message::text(text.as_str()));
        assert_eq!(message(&events), Message::text(text.as_str()));
        assert_eq!(message(&events), Message::binary(noise(3000)));
        assert_eq!(message(&events), Message::binary(noise(3000)));
        assert_eq!(message(&events), Message::text(""));
        assert_eq!(message(&events), Message::text(""));
        assert_eq!(message(&events), Message::text("stored"));
        assert_eq!(message(&events), Message::text("Hello"));
        assert_eq!(message(&events), Message::text("Hello"));
        let (_, mut remote) = remotes.recv_timeout(WAIT).unwrap();
        assert_eq!(remote.frame(), Some((0x8A, b"ping".to_vec())));
    }
}

#[test]
fn what_is_received_may_refer_back_if_agreed() {
    let text = prose(30_000);
    for bits in [15, 9] {
        let mut zip = Zip::new(6, bits);
        let first = zip.message(text.as_bytes());
        let second = zip.message(&text.as_bytes()[..600]);
        assert!(second.len() < first.len() / 10 || bits == 9);
        let bytes = [unmasked(TEXT, &first), unmasked(TEXT, &second)].concat();
        let answer = format!("permessage-deflate; server_max_window_bits={bits}");
        let (_handle, events, _remote) = connected(takeover(true, true), &answer, bytes);
        assert_eq!(message(&events), Message::text(text.as_str()));
        assert_eq!(message(&events), Message::text(&text[..600]));
    }
    // A server that has said it does not, and does: what it refers to is not there.
    let mut zip = Zip::new(6, 15);
    let first = zip.message(text.as_bytes());
    let second = zip.message(text.as_bytes());
    let bytes = [unmasked(TEXT, &first), unmasked(TEXT, &second)].concat();
    let (_handle, events, mut remote) = connected(Deflate::new(), ALONE, bytes);
    assert_eq!(message(&events), Message::text(text.as_str()));
    assert_eq!(remote.close_code(), Some(1002));
    assert_eq!(end(&events).code(), CloseCode::Protocol);
}

/// What the server may not send, the code that it is answered with, and nothing of what follows.
#[test]
fn violations() {
    const CORRUPT: CloseCause = CloseCause::Protocol("corrupt compressed data");
    const RESERVED: CloseCause = CloseCause::Protocol("reserved bit set");
    let whole = zip(prose(5000).as_bytes());
    let cut = &whole[..whole.len() / 2];
    let million = vec![0; 1 << 20];
    let cases = [
        // Bombs: 16 KiB become 16 MiB, and one byte more than allowed.
        (
            unmasked(BINARY, &zip(&vec![0; 16 << 20])),
            1009,
            CloseCause::TooBig,
        ),
        (
            unmasked(BINARY, &zip(&vec![0; (1 << 20) + 1])),
            1009,
            CloseCause::TooBig,
        ),
        (unmasked(BINARY, &[0xFF; 50]), 1002, CORRUPT),
        (unmasked(TEXT, cut), 1002, CORRUPT),
        (unmasked(TEXT, &[]), 1002, CORRUPT),
        (
            unmasked(TEXT, &zip(b"caf\xE9")),
            1007,
            CloseCause::InvalidUtf8,
        ),
        (unmasked(0xC9, b""), 1002, RESERVED),
        (unmasked(0xC8, &[3, 0xE8]), 1002, RESERVED),
        (unmasked(0xE1, &whole), 1002, RESERVED),
        (unmasked(0xA1, b"x"), 1002, RESERVED),
        (
            [unmasked(0x41, cut), unmasked(0xC0, &whole[cut.len()..])].concat(),
            1002,
            RESERVED,
        ),
    ];
    for (settings, answer) in [
        (Deflate::new(), ALONE),
        (takeover(true, true), "permessage-deflate"),
    ] {
        for (wrong, code, cause) in &cases {
            for workers in [0, 2] {
                // Each stands alone, which is right with the context, too.
                let mut bytes = unmasked(PLAIN_TEXT, b"fine");
                bytes.extend(unmasked(BINARY, &zip(&million)));
                bytes.extend(wrong);
                bytes.extend(unmasked(PLAIN_TEXT, b"too late"));
                bytes.extend(unmasked(TEXT, &zip(b"too late")));
                let clients = Clients::start(1, workers).unwrap();
                let (addr, remotes) = opening(&extensions(answer), bytes);
                let (_handle, events) = clients
                    .connect(client(addr).deflate(settings.clone()))
                    .unwrap();
                assert_eq!(message(&events), Message::text("fine"));
                assert!(message(&events) == Message::binary(million.clone()));
                let (_, mut remote) = remotes.recv_timeout(WAIT).unwrap();
                assert_eq!(remote.close_code(), Some(*code), "{cause}");
                match events.recv_timeout(WAIT).unwrap() {
                    ClientEvent::Close(reason) => {
                        assert_eq!(reason.cause(), *cause);
                        assert_eq!(u16::from(reason.code()), *code);
                    }
                    other => panic!("{cause}: {other:?}"),
                }
            }
        }
    }
}

// ---- others have their turn ----

/// What is compressed may take a thousand times as long as its bytes tell: other clients of the same worker
/// don't wait for more than a few such messages.
#[test]
fn bombs_take_turns() {
    const BOMBS: usize = 40;
    let clients = Clients::start(1, 1).unwrap();
    let (gate, opens) = crossbeam_channel::bounded::<()>(0);
    let (tell, told) = unbounded();
    let ours = tell.clone();
    let hears_bombs = move |_: &Peer, message: Message| {
        if message.is_text() {
            // Until all that follows is here.
            opens.recv_timeout(WAIT).unwrap();
        }
        ours.send(message.len()).unwrap();
    };
    let hears_other = move |_: &Peer, message: Message| tell.send(message.len()).unwrap();
    let bomb = unmasked(BINARY, &zip(&vec![0; 1 << 20]));
    let bytes = [unmasked(PLAIN_TEXT, b"go"), bomb.repeat(BOMBS)].concat();
    let (addr, remotes) = opening(&extensions(ALONE), bytes);
    let settings = client(addr).deflate(Deflate::new()).max_message(2 << 20);
    let _bombs = clients.open(settings, hears_bombs).unwrap();
    let (_, mut bombs) = remotes.recv_timeout(WAIT).unwrap();
    let (addr, remotes) = opening("", unmasked(PLAIN_BINARY, b"other"));
    let _other = clients.open(client(addr), hears_other).unwrap();
    let (_, mut other) = remotes.recv_timeout(WAIT).unwrap();
    // Whoever answers a ping has seen what came before it.
    for remote in [&mut bombs, &mut other] {
        remote.write(&unmasked(0x89, b""));
        assert_eq!(remote.frame(), Some((0x8A, Vec::new())));
    }
    gate.send_timeout((), WAIT).unwrap();
    let order: Vec<usize> = (0..BOMBS + 2)
        .map(|_| told.recv_timeout(WAIT).unwrap())
        .collect();
    let place = order.iter().position(|&len| len == 5).unwrap();
    assert!(place < 5, "{place} of {}", order.len());
}

// ---- nobody receives ----

/// What the channel of `connect` holds.
const CHANNEL: usize = 64;

/// A message that shows which it is, in a context that helps.
fn nth(n: usize) -> Message {
    let text = format!("{n}: {}", prose(200 + n % 7 * 500));
    match n % 3 {
        0 => Message::binary(text.into_bytes()),
        _ => Message::text(text),
    }
}

/// Frames of the first of them, in one context, some of them uncompressed and some in fragments.
fn flood(messages: usize) -> Vec<u8> {
    let mut zip = Zip::new(1, 15);
    let mut out = Vec::new();
    for n in 0..messages {
        let message = nth(n);
        let opcode = if message.is_text() { 1 } else { 2 };
        let data = message.into_data();
        if n % 11 == 5 {
            out.extend(unmasked(0x80 | opcode, &data));
            continue;
        }
        let packed = zip.message(&data);
        let (start, rest) = packed.split_at(packed.len() / 2);
        if n % 5 == 3 {
            out.extend(unmasked(0x40 | opcode, start));
            out.extend(unmasked(0x80, rest));
        } else {
            out.extend(unmasked(0xC0 | opcode, &packed));
        }
    }
    out
}

/// Connected, on workers or none, to a server that sends the flood and then closes.
fn flooded(
    clients: &Clients,
    messages: usize,
    settings: impl FnOnce(Client) -> Client,
) -> (
    ClientHandle,
    Receiver<ClientEvent>,
    Receiver<(String, Remote)>,
) {
    let mut bytes = flood(messages);
    bytes.extend(unmasked(0x88, &4321u16.to_be_bytes()));
    let (addr, remotes) = opening(&extensions("permessage-deflate"), bytes);
    let client = client(addr).deflate(takeover(true, true));
    let (handle, events) = clients.connect(settings(client)).unwrap();
    (handle, events, remotes)
}

fn assert_all(events: &Receiver<ClientEvent>, messages: std::ops::Range<usize>) {
    for n in messages {
        let message = message(events);
        assert!(message == nth(n), "{n}: {message:.20}");
    }
}

/// The channel is full and one message, that was inflated and can't be again, waits behind it: for
/// each number of messages about that.
#[test]
fn the_message_that_found_no_room_is_kept() {
    for workers in [0, 1, 3] {
        let clients = Clients::start(1, workers).unwrap();
        let lengths: Vec<_> = (CHANNEL - 2..CHANNEL + 8).collect();
        let all: Vec<_> = lengths
            .iter()
            .map(|messages| flooded(&clients, *messages, |client| client))
            .collect();
        for ((_, events, _), messages) in all.iter().zip(&lengths) {
            until("the channel is full", || {
                events.len() == CHANNEL.min(*messages + 1)
            });
        }
        for ((_, events, _), messages) in all.iter().zip(&lengths) {
            assert_all(events, 0..*messages);
            let reason = end(events);
            assert_eq!(reason.code(), CloseCode::Library(4321));
            no_more(events);
        }
    }
}

/// A receiver that takes one, waits until the channel is full again, takes the next: almost every
/// message finds no room first.
#[test]
fn a_receiver_that_is_always_behind() {
    const MESSAGES: usize = 400;
    for workers in [0, 1, 3] {
        for limit in [1, 4, 64] {
            let clients = Clients::start(1, workers).unwrap();
            let (_handle, events, _remotes) = flooded(&clients, MESSAGES, |client| {
                client.inbound_limit(limit, 1 << 20)
            });
            for n in 0..MESSAGES {
                // With the close event there is one more than messages.
                let left = MESSAGES + 1 - n;
                until("the channel is full", || events.len() == CHANNEL.min(left));
                assert_all(&events, n..n + 1);
            }
            assert_eq!(end(&events).code(), CloseCode::Library(4321));
        }
    }
}

/// The receiver is fast at times and slow at times, and many connections share a loop.
#[test]
fn receivers_of_all_speeds() {
    const MESSAGES: usize = 1000;
    for workers in [0, 2] {
        let clients = Clients::start(1, workers).unwrap();
        thread::scope(|scope| {
            for speed in 1..6 {
                let (handle, events, _remotes) = flooded(&clients, MESSAGES, |client| {
                    client.inbound_limit(3 * speed, 20_000 * speed)
                });
                scope.spawn(move || {
                    let mut n = 0;
                    while n < MESSAGES {
                        let most = (n + 37 * speed).min(MESSAGES);
                        assert_all(&events, n..most);
                        n = most;
                        let full = CHANNEL.min(MESSAGES + 1 - n);
                        until("the channel is full", || events.len() == full);
                    }
                    assert_eq!(end(&events).code(), CloseCode::Library(4321));
                    drop(handle);
                });
            }
        });
    }
}

/// framemill's own server, whose queue holds what the client does not take.
#[test]
fn framemill_floods_a_client() {
    const MESSAGES: usize = 2000;
    let settings = takeover(true, true).threshold(0);
    for workers in [0, 2] {
        let deflate = settings.clone();
        let server = serve(
            |s| s.workers(workers).outbound_limit(64 << 20).deflate(deflate),
            |peer: &Peer, _: Message| {
                for n in 0..MESSAGES {
                    peer.send(nth(n)).unwrap();
                }
                peer.close(CloseCode::Library(4321), "");
            },
        );
        let clients = Clients::start(1, workers).unwrap();
        let deaf: Vec<_> = (0..3)
            .map(|_| {
                let client = client(server.addr).deflate(settings.clone());
                let (handle, events) = clients.connect(client).unwrap();
                handle.send("go").unwrap();
                (handle, events)
            })
            .collect();
        until("their channels are full", || {
            deaf.iter().all(|(_, events)| events.is_full())
        });
        // Others on the same loop go on.
        let other = client(server.addr).deflate(settings.clone());
        let (handle, events) = clients.connect(other).unwrap();
        handle.send("go").unwrap();
        assert_all(&events, 0..MESSAGES);
        for (_, events) in deaf {
            assert_all(&events, 0..MESSAGES);
            assert_eq!(end(&events).code(), CloseCode::Library(4321));
        }
    }
}

/// The server is slowed down by TCP: what it sends does not pile up here.
#[test]
fn a_server_is_slowed_down() {
    const MESSAGES: usize = 1500;
    const LEN: usize = 64 << 10;
    for workers in [0, 1] {
        let written = Arc::new(AtomicUsize::new(0));
        let count = written.clone();
        let (addr, remotes) = opening(&extensions("permessage-deflate"), Vec::new());
        let clients = Clients::start(1, workers).unwrap();
        let (_handle, events) = clients
            .connect(client(addr).deflate(takeover(true, true)))
            .unwrap();
        let (_, mut remote) = remotes.recv_timeout(WAIT).unwrap();
        let server = thread::spawn(move || {
            let mut zip = Zip::new(0, 15);
            for n in 0..MESSAGES {
                let payload = [&(n as u32).to_be_bytes()[..], &noise(LEN)].concat();
                remote.write(&unmasked(BINARY, &zip.message(&payload)));
                count.fetch_add(1, Ordering::SeqCst);
            }
            remote
        });
        until("the channel is full", || events.is_full());
        // Once it stands still, for as long as nobody receives, little has come through: what the
        // channel, the mailbox and the kernel hold.
        let mut last = 0;
        until("it stands still", || {
            thread::sleep(Duration::from_millis(200));
            std::mem::replace(&mut last, written.load(Ordering::SeqCst)) == last
        });
        assert!(last < MESSAGES / 2, "{last} messages of {LEN} bytes");
        for n in 0..MESSAGES {
            let payload = message(&events).into_data();
            assert_eq!(payload[..4], (n as u32).to_be_bytes());
            assert!(payload[4..] == noise(LEN));
        }
        drop(server.join().unwrap());
    }
}

/// Corrupt data behind a full channel: what came before it is not lost.
#[test]
fn corrupt_data_while_nobody_receives() {
    const MESSAGES: usize = 100;
    for workers in [0, 2] {
        let clients = Clients::start(1, workers).unwrap();
        let mut bytes = flood(MESSAGES);
        bytes.extend(unmasked(BINARY, &[0xFF; 50]));
        bytes.extend(unmasked(PLAIN_TEXT, b"too late"));
        let (addr, remotes) = opening(&extensions("permessage-deflate"), bytes);
        let (_handle, events) = clients
            .connect(client(addr).deflate(takeover(true, true)))
            .unwrap();
        until("the channel is full", || events.is_full());
        assert_all(&events, 0..MESSAGES);
        let (_, mut remote) = remotes.recv_timeout(WAIT).unwrap();
        assert_eq!(remote.close_code(), Some(1002));
        match events.recv_timeout(WAIT).unwrap() {
            ClientEvent::Close(reason) => assert_eq!(reason.code(), CloseCode::Protocol),
            other => panic!("{other:?}"),
        }
    }
}

/// Whoever closes and waits does not wait for the receiver.
#[test]
fn closing_while_nobody_receives() {
    for workers in [0, 2] {
        let server = serve(
            |s| {
                let deflate = takeover(true, true).threshold(0);
                s.workers(2).outbound_limit(64 << 20).deflate(deflate)
            },
            |peer: &Peer, _: Message| (0..1000).for_each(|n| drop(peer.send(nth(n)))),
        );
        let clients = Clients::start(1, workers).unwrap();
        let client = |addr: Addr| client(addr).deflate(takeover(true, true));
        let (handle, events) = clients.connect(client(server.addr)).unwrap();
        handle.send("go").unwrap();
        until("the channel is full", || events.is_full());
        let reason = handle.close_and_wait(CloseCode::Normal, "").unwrap();
        assert_eq!(reason.code(), CloseCode::Normal);
        assert_all(&events, 0..CHANNEL);

        // One whose receiver goes away while a message waits for room.
        let (handle, events) = clients.connect(client(server.addr)).unwrap();
        handle.send("go").unwrap();
        until("the channel is full", || events.is_full());
        drop(events);
        assert!(handle.close(CloseCode::Normal, ""));
        assert!(handle.wait().unwrap().is_clean());

        // And one that is shut down.
        let (handle, events) = clients.connect(client(server.addr)).unwrap();
        handle.send("go").unwrap();
        until("the channel is full", || events.is_full());
        clients.shutdown(Duration::from_millis(200));
        until("it has ended", || handle.has_ended());
        assert_all(&events, 0..CHANNEL);
    }
}
