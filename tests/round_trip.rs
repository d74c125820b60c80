//! Whatever is sent comes back: any messages, in any fragments, in any pieces, over any transport.

mod support;

use std::io::{Read, Write};

use framemill::{Message, Peer};
use proptest::prelude::*;
use proptest::sample::Index;
use proptest::test_runner::{Config, TestRunner};
use support::spy::upgraded;
use support::{Running, Transport, client, frame, over_every_transport, socket};

over_every_transport! {
    with_one_worker,
    with_four_workers,
    with_handlers_on_the_loop,
    with_two_loops,
    with_handlers_on_two_loops,
    with_an_independent_client,
}

fn echo(transport: Transport, loops: usize, workers: usize) -> Running {
    transport.serve(
        |s| s.loops(loops).workers(workers),
        |peer: &Peer, message: Message| peer.send(message),
    )
}

// ---- any traffic ----

/// A message, and how it goes over the wire.
#[derive(Clone, Debug)]
struct Sent {
    text: bool,
    len: usize,
    seed: u8,
    /// Where it is cut into fragments.
    cuts: Vec<Index>,
    /// Pings before it and between its fragments: their payloads' lengths.
    pings: Vec<Option<usize>>,
}

fn sent() -> impl Strategy<Value = Sent> {
    let len = prop_oneof![
        4 => 0..200_usize,
        2 => prop::sample::select(vec![0, 125, 126, 127, 4095, 4096, 65_535, 65_536]),
        2 => 0..5_000_usize,
        1 => 0..=70_000_usize,
    ];
    (
        any::<bool>(),
        len,
        any::<u8>(),
        prop::collection::vec(any::<Index>(), 0..4),
        prop::collection::vec(prop::option::weighted(0.3, 0..=125_usize), 5),
    )
        .prop_map(|(text, len, seed, cuts, pings)| Sent {
            text,
            len,
            seed,
            cuts,
            pings,
        })
}

impl Sent {
    fn payload(&self) -> Vec<u8> {
        if !self.text {
            return (0..self.len)
                .map(|i| (i as u8).wrapping_mul(self.seed))
                .collect();
        }
        // Characters of one to four bytes, so that cuts go through the middle of some.
        let some = ["a", "é", "€", "😀", "\u{7ff}", "\0"];
        let mut text = String::new();
        for i in self.seed as usize.. {
            let next = some[(i + i / 5) % some.len()];
            if text.len() + next.len() > self.len {
                break;
            }
            text.push_str(next);
        }
        text.into_bytes()
    }

    fn opcode(&self) -> u8 {
        if self.text { 1 } else { 2 }
    }

    /// The frames as bytes; the payloads of the pings go to `pings`.
    fn write(&self, out: &mut Vec<u8>, pings: &mut Vec<Vec<u8>>) {
        let payload = self.payload();
        let mut cuts: Vec<usize> = self
            .cuts
            .iter()
            .map(|cut| cut.index(payload.len() + 1))
            .collect();
        cuts.sort_unstable();
        cuts.push(payload.len());
        let mut start = 0;
        for (n, &end) in cuts.iter().enumerate() {
            if let Some(len) = self.pings[n] {
                let ping: Vec<u8> = (0..len).map(|i| (i + pings.len()) as u8).collect();
                out.extend(frame(0x89, &ping));
                pings.push(ping);
            }
            let opcode = if n == 0 { self.opcode() } else { 0 };
            let fin = if n + 1 == cuts.len() { 0x80 } else { 0 };
            out.extend(frame(fin | opcode, &payload[start..end]));
            start = end;
        }
    }
}

/// Sends all of it in chunks of these sizes, over and over, and compares what comes back.
fn comes_back<S: Read + Write>(stream: S, messages: &[Sent], chunks: &[usize]) {
    let mut bytes = Vec::new();
    let mut pings = Vec::new();
    for message in messages {
        message.write(&mut bytes, &mut pings);
    }
    let mut raw = upgraded(stream);
    let mut rest = &bytes[..];
    // Many small chunks tell no more than some.
    for &chunk in chunks.iter().cycle().take(400) {
        let (now, later) = rest.split_at(chunk.min(rest.len()));
        raw.write(now);
        rest = later;
    }
    raw.write(rest);

    // Pongs overtake, as they don't wait for the handler.
    let mut pongs = pings.iter();
    let mut expected = messages.iter();
    while pongs.len() + expected.len() > 0 {
        let (first, payload) = raw.frame().expect("more frames");
        if first == 0x8A {
            assert_eq!(Some(&payload), pongs.next());
        } else {
            let message = expected.next().expect("no more messages");
            assert_eq!(first, 0x80 | message.opcode());
            assert!(payload == message.payload(), "not as it was sent");
        }
    }
    raw.write(&frame(0x88, b"\x03\xE8"));
    assert_eq!(raw.frame(), Some((0x88, b"\x03\xE8".to_vec())));
    assert_eq!(raw.frame(), None);
}

/// So many bytes fit into the buffers on the way back, so that no pong is left out (RFC 6455
/// §5.5.3 allows it) while the client still writes.
const FITS: usize = 140_000;

fn any_traffic(transport: Transport, loops: usize, workers: usize) {
    let echo = echo(transport, loops, workers);
    let config = Config {
        cases: 24,
        failure_persistence: None,
        // A case that fails by silence takes a while.
        max_shrink_time: 30_000,
        ..Config::default()
    };
    let messages = prop::collection::vec(sent(), 1..16);
    let chunks = prop_oneof![
        prop::collection::vec(1..20_usize, 1..8),
        prop::collection::vec(1..3_000_usize, 1..8),
        Just(vec![1 << 20]),
    ];
    let test = |(mut messages, chunks): (Vec<Sent>, Vec<usize>)| {
        let mut total = 0;
        messages.retain(|message| {
            let fits = total + message.len <= FITS;
            total += if fits { message.len } else { 0 };
            fits
        });
        comes_back(socket(echo.addr), &messages, &chunks);
        Ok(())
    };
    let result = TestRunner::new(config).run(&(messages, chunks), test);
    result.unwrap_or_else(|error| panic!("{error}"));
}

fn with_one_worker(transport: Transport) {
    any_traffic(transport, 1, 1);
}

fn with_four_workers(transport: Transport) {
    any_traffic(transport, 1, 4);
}

fn with_handlers_on_the_loop(transport: Transport) {
    any_traffic(transport, 1, 0);
}

fn with_two_loops(transport: Transport) {
    any_traffic(transport, 2, 1);
    any_traffic(transport, 2, 4);
}

fn with_handlers_on_two_loops(transport: Transport) {
    any_traffic(transport, 2, 0);
}

// ---- an independent client ----

fn with_an_independent_client(transport: Transport) {
    let echo = echo(transport, 1, 2);
    let mut client = client(echo.addr);
    for len in [0, 1, 125, 126, 65_535, 65_536, 1 << 20] {
        for message in [
            Message::text("x".repeat(len)),
            Message::binary(vec![0xFF; len]),
        ] {
            client.send(message.clone()).unwrap();
            assert!(client.read().unwrap() == message, "{len} bytes");
        }
        client.send(Message::Ping("ping".into())).unwrap();
        assert_eq!(client.read().unwrap(), Message::Pong("ping".into()));
    }
    client.close(None).unwrap();
    while client.read().is_ok() {}
    assert!(!client.can_read());
}
