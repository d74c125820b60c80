use proptest::prelude::*;
use tungstenite::protocol::CloseFrame;
use tungstenite::protocol::frame::coding::CloseCode;

use super::*;
use crate::proto::frame::encode_header;

const KEY: [u8; 4] = [0x37, 0xfa, 0x21, 0x3d];

/// One frame as a client writes it.
fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    let mut header = [0; MAX_HEADER];
    let size = encode_header(Opcode::Text, payload.len(), Some(KEY), &mut header);
    header[0] = first;
    let mut out = header[..size].to_vec();
    copy_masked(&mut out, payload, KEY, 0);
    out
}

fn script(frames: &[(u8, &[u8])]) -> Vec<u8> {
    frames
        .iter()
        .flat_map(|&(first, payload)| frame(first, payload))
        .collect()
}

/// Feeds `pieces` in turn, and gives all messages up to the end or the first violation.
fn receive<'a>(
    protocol: &mut MessageReader,
    pieces: impl IntoIterator<Item = &'a [u8]>,
) -> (Vec<Message>, Option<Violation>) {
    receive_by(protocol, pieces, true)
}

/// The same, with the short way for plain messages or without.
fn receive_by<'a>(
    protocol: &mut MessageReader,
    pieces: impl IntoIterator<Item = &'a [u8]>,
    short: bool,
) -> (Vec<Message>, Option<Violation>) {
    let mut blocks = Blocks::new(false);
    let mut messages = Vec::new();
    for piece in pieces {
        let mut piece = piece.to_vec();
        let mut input = &mut piece[..];
        loop {
            let plain = short.then(|| protocol.next_plain(&mut input)).flatten();
            if let Some(plain) = plain {
                let coming = plain.payload.len() + input.len();
                match blocks.message(plain, coming, &mut messages) {
                    Ok(()) => continue,
                    Err(violation) => return (messages, Some(violation)),
                }
            }
            match protocol.next(&mut input, &mut blocks) {
                Ok(Some(message)) => messages.push(message),
                Ok(None) => break,
                Err(violation) => return (messages, Some(violation)),
            }
        }
        assert!(
            input.is_empty(),
            "next() gave None before the end of its input"
        );
    }
    (messages, None)
}

/// Whole, cut in two at every place, and byte by byte: always the same.
fn receive_split_everywhere(bytes: &[u8], limit: u32) -> (Vec<Message>, Option<Violation>) {
    let fresh = || MessageReader::new(Role::Server, limit);
    let expected = receive(&mut fresh(), [bytes]);
    for cut in 0..=bytes.len() {
        let (head, tail) = bytes.split_at(cut);
        assert_eq!(
            receive(&mut fresh(), [head, tail]),
            expected,
            "cut at {cut}"
        );
    }
    assert_eq!(
        receive_by(&mut fresh(), [bytes], false),
        expected,
        "without the short way"
    );
    let mut slow = fresh();
    assert_eq!(
        receive(&mut slow, bytes.chunks(1)),
        expected,
        "byte by byte"
    );
    expected
}

fn violation(frames: &[(u8, &[u8])]) -> (CloseCode, &'static str) {
    let violation = receive_split_everywhere(&script(frames), 1000).1.unwrap();
    (violation.code, violation.why)
}

/// A large message that was read into memory that can be its own is the same message, and so is all
/// else that was read there.
#[test]
fn what_is_adopted_is_what_was_sent() {
    let text = "grüße".repeat(1500);
    let large = text.as_bytes();
    let mut bad = large.to_vec();
    bad[9000] = 0xFF;
    let scripts: [&[(u8, &[u8])]; 9] = [
        &[(0x82, large)],
        &[(0x81, large)],
        &[(0x81, &bad)],
        &[(0x01, large), (0x80, large)],
        &[(0x82, large), (0x81, b"next")],
        &[(0x82, b"small")],
        &[(0x80, large)],
        &[(0xC2, large)],
        &[(0x88, b"\x03\xE8")],
    ];
    let mut adopted = 0;
    for frames in scripts {
        let bytes = script(frames);
        for limit in [1 << 20, 5000] {
            let expected = receive(&mut MessageReader::new(Role::Server, limit), [&bytes[..]]);
            for cut in (1..=bytes.len()).filter(|cut| cut % 97 < 3 || bytes.len() - cut < 20) {
                let mut protocol = MessageReader::new(Role::Server, limit);
                let mut blocks = Blocks::new(false);
                let (head, tail) = bytes.split_at(cut);
                let mut read = blocks.buffer(bytes.len(), bytes.len());
                read.extend(head);
                let mut got = match protocol.adopt(read) {
                    Ok(()) => {
                        adopted += 1;
                        receive(&mut protocol, [&[][..], tail])
                    }
                    Err(mut read) => {
                        assert_eq!(read.from(0), head);
                        receive(&mut protocol, [&read.from(0)[..], tail])
                    }
                };
                if expected.1.is_some() {
                    // Known as soon as it is there.
                    got.0.truncate(expected.0.len());
                }
                assert_eq!(got, expected, "{frames:?} cut at {cut}");
            }
        }
    }
    assert!(adopted > 500, "{adopted}");
}

/// Or a peer could hold as much as others have sent with a little of its own.
#[test]
fn what_is_much_too_large_is_not_adopted() {
    let bytes = frame(0x82, &[7; 8192]);
    for (memory, adopted) in [(8300, true), (256 << 10, false)] {
        let mut blocks = Blocks::new(false);
        let mut read = blocks.buffer(memory, memory);
        read.extend(&bytes[..4096 + 8]);
        let mut protocol = MessageReader::new(Role::Server, 1 << 20);
        assert_eq!(protocol.adopt(read).is_ok(), adopted, "{memory}");
    }
}

/// Not empty ones either, of which a peer can send any number.
#[test]
fn short_fragmented_messages_leave_nothing_behind() {
    for parts in [["", ""], ["a", ""], ["", "b"], ["a", "b"]] {
        let mut bytes = script(&[(0x02, parts[0].as_bytes()), (0x80, parts[1].as_bytes())]);
        bytes = bytes.repeat(1000);
        let mut protocol = MessageReader::new(Role::Server, 1000);
        let mut blocks = Blocks::new(false);
        let mut input = &mut bytes[..];
        let mut messages = 0;
        while let Ok(Some(message)) = protocol.next(&mut input, &mut blocks) {
            assert_eq!(message.into_data(), parts.concat());
            messages += 1;
        }
        assert_eq!(messages, 1000);
        assert!(!blocks.holds_memory(), "{parts:?}");
    }
}

#[test]
fn messages_fragments_and_control_frames_between() {
    let (messages, violation) = receive_split_everywhere(
        &script(&[
            (0x81, "grüße".as_bytes()),
            (0x82, b""),
            (0x01, &"€".as_bytes()[..1]),
            (0x89, b"are you there"),
            (0x00, &"€".as_bytes()[1..2]),
            (0x8A, b""),
            (0x00, b""),
            (0x80, &"€".as_bytes()[2..]),
            (0x02, b""),
            (0x80, b""),
            (0x82, &[7; 300]),
        ]),
        1000,
    );
    assert_eq!(violation, None);
    assert_eq!(
        messages,
        [
            Message::text("grüße"),
            Message::binary(&b""[..]),
            Message::Ping(Bytes::from_static(b"are you there")),
            Message::Pong(Bytes::new()),
            Message::text("€"),
            Message::binary(&b""[..]),
            Message::binary(vec![7; 300]),
        ]
    );
}

#[test]
fn nothing_is_kept_between_messages() {
    let mut protocol = MessageReader::new(Role::Server, 1000);
    let bytes = script(&[(0x01, b"ab"), (0x89, b"x"), (0x80, b"c"), (0x89, b"y")]);
    receive(&mut protocol, bytes.chunks(1));
    assert!(protocol.partial.is_none());
}

#[test]
fn fragmentation_rules() {
    let protocol = CloseCode::Protocol;
    assert_eq!(
        violation(&[(0x80, b"x")]),
        (protocol, "continuation of nothing")
    );
    assert_eq!(
        violation(&[(0x01, b"x"), (0x81, b"y")]),
        (protocol, "new message before the end of the last")
    );
    assert_eq!(
        violation(&[(0x81, b"x"), (0x00, b"y")]),
        (protocol, "continuation of nothing")
    );
}

#[test]
fn text_fails_at_the_first_impossible_byte() {
    // A lone surrogate: the second byte decides it, the frame claims 900 more.
    let mut bytes = frame(0x81, &[&b"ok \xED\xA0"[..], &[b'x'; 900]].concat());
    bytes.truncate(6 + 2 + 5);
    let (messages, violation) = receive_split_everywhere(&bytes, 1000);
    assert_eq!(
        (messages.len(), violation),
        (0, Some(Violation::INVALID_UTF8))
    );
    // Cut within a character at the end of the message.
    assert_eq!(
        violation_code(&[(0x01, b"\xC3"), (0x80, b"")]),
        CloseCode::Invalid
    );
}

fn violation_code(frames: &[(u8, &[u8])]) -> CloseCode {
    violation(frames).0
}

#[test]
fn limits_hold_for_frames_and_for_their_sum() {
    assert_eq!(violation_code(&[(0x82, &[0; 1001])]), CloseCode::Size);
    assert_eq!(
        violation_code(&[(0x02, &[0; 600]), (0x80, &[0; 401])]),
        CloseCode::Size
    );
    let (messages, violation) =
        receive_split_everywhere(&script(&[(0x02, &[0; 600]), (0x80, &[0; 400])]), 1000);
    assert_eq!((messages.len(), violation), (1, None));
    // Nine bytes that claim 2^62: refused at once.
    let claim = [0x82, 0xFF, 0x40, 0, 0, 0, 0, 0, 0, 0, 1, 2, 3, 4];
    let mut protocol = MessageReader::new(Role::Server, u32::MAX);
    let (_, violation) = receive(&mut protocol, [&claim[..]]);
    assert_eq!(violation, Some(Violation::TOO_BIG));
}

#[test]
fn a_claim_allocates_nothing() {
    let mut protocol = MessageReader::new(Role::Server, 1 << 30);
    let mut bytes = vec![0x82, 0xFF, 0, 0, 0, 0, 0x3F, 0, 0, 0, 1, 2, 3, 4];
    bytes.extend_from_slice(&[0; 100]);
    receive(&mut protocol, [&bytes[..]]);
    let message = protocol.partial.unwrap().message.unwrap();
    assert_eq!(message.bytes.len(), 100);
    assert!(message.bytes.spare() <= 100, "{}", message.bytes.spare());
}

/// However little each fragment brings, the message is moved a few times only: room doubles.
#[test]
fn fragments_of_one_byte_move_the_message_rarely() {
    const FRAGMENTS: usize = 200_000;
    let mut protocol = MessageReader::new(Role::Server, 1 << 20);
    let (start, more) = (frame(0x02, b"x"), frame(0x00, b"x"));
    let (mut room, mut grown) = (0, 0);
    for n in 0..FRAGMENTS {
        receive(&mut protocol, [if n == 0 { &start[..] } else { &more }]);
        let partial = protocol.partial.as_ref().unwrap();
        let bytes = &partial.message.as_ref().unwrap().bytes;
        assert_eq!(bytes.len(), n + 1);
        let now = bytes.len() + bytes.spare();
        grown += usize::from(now != std::mem::replace(&mut room, now));
    }
    assert!(grown <= 1 + FRAGMENTS.ilog2() as usize + 1, "{grown} times");
}

#[test]
fn close_ends_it() {
    let bytes = script(&[
        (0x01, b"half"),
        (0x88, b"\x03\xE9off"),
        (0x80, b"ignored"),
        (0xFF, b""),
    ]);
    let (messages, violation) = receive_split_everywhere(&bytes, 1000);
    let frame = CloseFrame {
        code: CloseCode::Away,
        reason: "off".into(),
    };
    assert_eq!(
        (messages, violation),
        (vec![Message::Close(Some(frame))], None)
    );
    assert_eq!(violation_code(&[(0x88, b"\x03")]), CloseCode::Protocol);
    assert_eq!(violation_code(&[(0x88, b"\x03\xED")]), CloseCode::Protocol);
    assert_eq!(
        violation_code(&[(0x88, b"\x03\xE8\xFF")]),
        CloseCode::Invalid
    );
}

#[test]
fn the_client_role_reads_unmasked_frames() {
    let mut protocol = MessageReader::new(Role::Client, 1000);
    let (messages, violation) = receive(&mut protocol, [&b"\x81\x02hi"[..]]);
    assert_eq!((messages, violation), (vec![Message::text("hi")], None));
}

/// A message and the sizes of the fragments that it is sent in.
fn any_message() -> impl Strategy<Value = (Message, Vec<usize>)> {
    let message = prop_oneof![
        ".{0,40}".prop_map(Message::text),
        prop::collection::vec(any::<u8>(), 0..400).prop_map(Message::binary),
        prop::collection::vec(any::<u8>(), 0..125).prop_map(|p| Message::Ping(p.into())),
        prop::collection::vec(any::<u8>(), 0..125).prop_map(|p| Message::Pong(p.into())),
    ];
    (message, prop::collection::vec(0usize..50, 0..5))
}

fn write(message: &Message, fragments: &[usize], out: &mut Vec<u8>) {
    let payload = message.clone().into_data();
    let opcode = match message {
        Message::Text(_) => 1,
        Message::Binary(_) => 2,
        Message::Ping(_) => return out.extend(frame(0x89, &payload)),
        _ => return out.extend(frame(0x8A, &payload)),
    };
    let mut rest = &payload[..];
    let mut first = opcode;
    for &size in fragments {
        let (piece, left) = rest.split_at(size.min(rest.len()));
        out.extend(frame(first, piece));
        (first, rest) = (0, left);
    }
    out.extend(frame(0x80 | first, rest));
}

proptest! {
    /// Any messages, in any fragments, in any chunks: the same messages, in order.
    #[test]
    fn round_trip(messages in prop::collection::vec(any_message(), 0..12),
                  chunks in prop::collection::vec(1usize..200, 1..20)) {
        let mut bytes = Vec::new();
        for (message, fragments) in &messages {
            write(message, fragments, &mut bytes);
        }
        let mut pieces = Vec::new();
        let mut rest = &bytes[..];
        for &size in chunks.iter().cycle() {
            if rest.is_empty() { break; }
            let (piece, left) = rest.split_at(size.min(rest.len()));
            pieces.push(piece);
            rest = left;
        }
        let expected: Vec<Message> = messages.into_iter().map(|(message, _)| message).collect();
        let mut protocol = MessageReader::new(Role::Server, 1000);
        let (got, violation) = receive(&mut protocol, pieces);
        prop_assert_eq!(violation, None);
        prop_assert_eq!(got, expected);
        prop_assert!(protocol.partial.is_none());
    }

    /// Any bytes at all: no panic, and the same verdict however they are cut.
    #[test]
    fn garbage(bytes in prop::collection::vec(any::<u8>(), 0..200), cut in 0usize..200) {
        let whole = receive(&mut MessageReader::new(Role::Server, 1000), [&bytes[..]]);
        let (head, tail) = bytes.split_at(cut.min(bytes.len()));
        prop_assert_eq!(receive(&mut MessageReader::new(Role::Server, 1000), [head, tail]), whole);
    }
}

/// A megabyte may hold more of them than there are numbers: then there are very many, not few.
#[test]
fn the_count_of_frames_does_not_begin_again() {
    let mut reader = MessageReader::new(Role::Server, 1 << 20);
    let ping = frame(0x89, b"");
    for (pings, counted) in [(1 << 16, u16::MAX), (3, u16::MAX)] {
        let input = ping.repeat(pings);
        assert_eq!(receive(&mut reader, [&input[..]]).0.len(), pings);
        assert_eq!(reader.frames(), counted);
    }
    reader.count_afresh();
    receive(&mut reader, [&ping[..]]);
    assert_eq!(reader.frames(), 1);
}
