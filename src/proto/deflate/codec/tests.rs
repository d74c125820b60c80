use proptest::prelude::*;

use super::*;

#[path = "../../../../tests/support/inflate.rs"]
#[allow(unreachable_pub, reason = "shared with the integration tests")]
mod inflate;

use inflate::Narrow;

const AMPLE: usize = 1 << 20;

fn inflated(payload: &[u8], limit: usize) -> Result<Vec<u8>, InflateError> {
    Inflater::new().inflate(payload, limit, false)
}

fn compressed(payload: &[u8], level: u32, bits: u8) -> Vec<u8> {
    let mut out = Vec::new();
    Deflater::new(level, bits).compress(payload, false, &mut out);
    out
}

/// What waits for a peer counts with its length, so it may not take much more.
#[test]
fn what_is_compressed_takes_little_more_than_its_length() {
    for size in [64, 1000, 64 << 10, 1 << 20] {
        let out = compressed(&vec![0; size], 1, 15);
        assert!(
            out.capacity() <= 2 * out.len() + 64,
            "{} bytes for {} of {size}",
            out.capacity(),
            out.len()
        );
    }
}

fn bytes(hex: &str) -> Vec<u8> {
    let digits: Vec<u8> = hex
        .bytes()
        .filter(|b| !b.is_ascii_whitespace())
        .map(|b| (b as char).to_digit(16).unwrap() as u8)
        .collect();
    digits.chunks(2).map(|two| two[0] << 4 | two[1]).collect()
}

/// RFC 7692 §7.2.3, the examples of messages that stand alone.
#[test]
fn examples_of_the_rfc() {
    for (what, hex) in [
        ("one block", "f2 48 cd c9 c9 07 00"),
        ("no compression", "00 05 00 fa ff 48 65 6c 6c 6f 00"),
        ("a final block", "f3 48 cd c9 c9 07 00 00"),
        ("two blocks", "f2 48 05 00 00 00 ff ff ca c9 c9 07 00"),
    ] {
        for takeover in [false, true] {
            let mut inflater = Inflater::new();
            for limit in [5, 6, AMPLE] {
                let message = inflater.inflate(&bytes(hex), limit, takeover);
                assert_eq!(message.as_deref(), Ok(&b"Hello"[..]), "{what}");
            }
            let message = inflater.inflate(&bytes(hex), 4, takeover);
            assert_eq!(message, Err(InflateError::TooBig), "{what}");
        }
    }
    assert_eq!(compressed(b"Hello", 6, 15), bytes("f2 48 cd c9 c9 07 00"));
    assert_eq!(compressed(b"", 6, 15), [0]);
    assert_eq!(inflated(&[0], 0), Ok(vec![]));
}

/// §7.2.3.2: the same message again, as a reference to the first.
#[test]
fn the_example_of_a_shared_window() {
    let (first, second) = (bytes("f2 48 cd c9 c9 07 00"), bytes("f2 00 11 00 00"));
    let mut inflater = Inflater::new();
    for payload in [&first, &second, &second, &first] {
        let message = inflater.inflate(payload, 5, true);
        assert_eq!(message.as_deref(), Ok(&b"Hello"[..]));
    }
    // There is nothing to refer to without it.
    inflater.reset();
    assert_eq!(
        inflater.inflate(&second, 5, true),
        Err(InflateError::Corrupt)
    );
    inflater.inflate(&first, 5, false).unwrap();
    assert_eq!(
        inflater.inflate(&second, 5, true),
        Err(InflateError::Corrupt)
    );

    let mut deflater = Deflater::new(6, 15);
    let mut out = Vec::new();
    deflater.compress(b"Hello", true, &mut out);
    deflater.compress(b"Hello", true, &mut out);
    assert_eq!(out, [first.clone(), second].concat());
    deflater.reset();
    out.clear();
    deflater.compress(b"Hello", false, &mut out);
    deflater.compress(b"Hello", false, &mut out);
    assert_eq!(out, [first.clone(), first].concat());
}

const SHELLS: &[u8] = b"she sells sea shells on the sea shore; the shells she sells are sea \
    shells for sure";
const SHELLS_DEFLATED: &str = "2ace4855284ecdc9290692890ac51960667e9e4209581c24925f946a0de142248b\
    e13a128b529175a5e51729149716a502";

/// What C zlib wrote, with every strategy and kind of block it has.
#[test]
fn messages_from_another_compressor() {
    let huffman = "04c1b10d80401003c156dc07d55c60e4c0e2a55be89f1962e116e111718bcea337161e91b3b\
        ef4c6226e11b1708b662d3c226ed17d567ceb1f";
    let quick = "2ace4855284ecdc9290692890ac51960667e9e4209581c24925f946a0de14224816aa03a128b4\
        02cb8aeb4fc2285e2d2a2540000";
    let stored = format!("00 5300 acff {} 00", hex(SHELLS));
    let alone = format!("{SHELLS_DEFLATED}00");
    for payload in [huffman, quick, &stored, &alone] {
        assert_eq!(
            inflated(&bytes(payload), SHELLS.len()).as_deref(),
            Ok(SHELLS),
            "{payload}"
        );
    }
    // A full flush in the middle, then a partial one.
    let mixed = format!("{SHELLS_DEFLATED}000000ffff{SHELLS_DEFLATED}0400");
    assert_eq!(inflated(&bytes(&mixed), AMPLE), Ok(SHELLS.repeat(2)));
    // Two messages, the second of which is a single match.
    let three = "2ace4855284ecdc9290692890ac51960667e9e4209581c24925f946a0de142248be13a128b5291\
        75a5e51729149716a5160f09230100";
    let mut inflater = Inflater::new();
    assert_eq!(
        inflater.inflate(&bytes(three), AMPLE, true),
        Ok(SHELLS.repeat(3))
    );
    assert_eq!(
        inflater
            .inflate(&bytes("a281910000"), AMPLE, true)
            .as_deref(),
        Ok(SHELLS)
    );
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// Written with a dynamic tree, by C zlib with Z_HUFFMAN_ONLY.
const DYNAMIC: &str = "04c1010100000082a0add8ff0f81c59a495485c2a0550b44aa690d461b834228364d0216\
    19a0aa6589241a6d88c9201b306204620816c46026495a42ab2861208d089541818016ac3a00";
const DYNAMIC_BEGINS: &[u8] = b"acbaacbcacababaabbbbbaaabbaaacaaaabcbbbcbaaaaabaababbbcabcbcaaaac";

#[test]
fn a_dynamic_block() {
    let message = inflated(&bytes(DYNAMIC), AMPLE).unwrap();
    assert!(message.len() == 300 && message.starts_with(DYNAMIC_BEGINS));
}

/// As many as anybody needs: any number with something in them, a thousand without.
#[test]
fn final_blocks_have_an_end() {
    let last = bytes(&(SHELLS_DEFLATED.replacen("2ace", "2bce", 1) + "00"));
    let many = inflated(&last.repeat(10_000), AMPLE).unwrap();
    assert_eq!(many.len(), 10_000 * SHELLS.len());
    let empty = bytes("0300").repeat(1024);
    assert_eq!(inflated(&empty, AMPLE).as_deref(), Ok(&b""[..]));
    let too_many = [&empty[..], &bytes("03000300")].concat();
    assert_eq!(inflated(&too_many, AMPLE), Err(InflateError::Corrupt));
    let hellos = bytes("f348cdc9c90700").repeat(2000);
    assert_eq!(inflated(&hellos, AMPLE), Err(InflateError::Corrupt));
}

/// §7.2.3.4. A final block ends a stream: what follows begins another, and can't refer to it.
#[test]
fn final_blocks() {
    let last = SHELLS_DEFLATED.replacen("2ace", "2bce", 1) + "00";
    let hello = "f2 48 cd c9 c9 07 00";
    let both = [SHELLS, b"Hello"].concat();
    for (payload, message) in [
        (last.clone(), SHELLS),            // by itself
        (format!("{last}00"), SHELLS),     // as the RFC has it
        (format!("{last}0300"), SHELLS),   // an empty one after it
        (format!("{last}01"), SHELLS),     // the empty stored block is a final one
        (format!("{last}{hello}"), &both), // more data
        (format!("{last}{hello}0000ffff00"), &both),
        ("01".into(), b""),
        ("0300".into(), b""),
        ("030000".into(), b""),
    ] {
        for takeover in [false, true] {
            let mut inflater = Inflater::new();
            for _ in 0..2 {
                let inflated = inflater.inflate(&bytes(&payload), message.len(), takeover);
                assert_eq!(inflated.as_deref(), Ok(message), "{payload}");
            }
            let small = message.len().checked_sub(1);
            if let Some(limit) = small {
                let inflated = inflater.inflate(&bytes(&payload), limit, takeover);
                assert_eq!(inflated, Err(InflateError::TooBig), "{payload}");
            }
        }
    }
    for (payload, why) in [
        (
            format!("{last}f20011 0000"),
            "refers to what is before the final block",
        ),
        (format!("{last}ff"), "there is no such block"),
        (format!("{last}000000"), "an empty stored block, cut short"),
        (
            format!("{last}000000ffff"),
            "an empty stored block, and no other",
        ),
    ] {
        assert_eq!(
            inflated(&bytes(&payload), AMPLE),
            Err(InflateError::Corrupt),
            "{why}"
        );
    }
    let mut inflater = Inflater::new();
    inflater.inflate(&bytes(&last), AMPLE, true).unwrap();
    let reference = inflater.inflate(&bytes("f200110000"), AMPLE, true);
    assert_eq!(reference, Err(InflateError::Corrupt));
}

/// Output of a megabyte from a kilobyte: stops at the limit, in memory and in time.
#[test]
fn bombs_stop_at_the_limit() {
    let bomb = compressed(&vec![0; 16 << 20], 9, 15);
    assert!(bomb.len() < 20_000);
    for limit in [0, 1, 63, 64, 65, 1000, 4096, 100_000, AMPLE, (16 << 20) - 1] {
        let mut out = Vec::new();
        let mut inflater = Inflater::new();
        let done = inflater.message(&bomb, limit, true, &mut out);
        assert_eq!(done, Err(InflateError::TooBig), "{limit}");
        assert!(out.capacity() <= limit, "{} for {limit}", out.capacity());
        assert!(inflater.0.total_out() <= limit as u64 + 1);
    }
    let whole = inflated(&bomb, 16 << 20).unwrap();
    assert!(whole.len() == 16 << 20 && whole.iter().all(|b| *b == 0));
}

/// A generous limit is no reason to allocate.
#[test]
fn memory_grows_with_what_came_out() {
    for length in [0, 1, 10, 1000, 5000, 100_000, 3_000_000] {
        let message = vec![b'x'; length];
        let payload = compressed(&message, 6, 15);
        let mut out = Vec::new();
        let done = Inflater::new().message(&payload, 1 << 30, false, &mut out);
        assert_eq!((done, out.len()), (Ok(()), length));
        assert!(out.capacity() <= 2 * (length + payload.len()) + 128);
        let kept = inflated(&payload, 1 << 30).unwrap();
        assert!(
            kept.capacity() <= 2 * length + 1,
            "{} for {length}",
            kept.capacity()
        );
    }
}

#[test]
fn a_limit_that_is_exactly_met() {
    for length in [
        0, 1, 2, 63, 64, 65, 127, 128, 129, 4096, 32768, 32769, 100_000,
    ] {
        for message in [vec![7; length], mixed(length, 99)] {
            for level in [1, 6] {
                let payload = compressed(&message, level, 15);
                assert_eq!(inflated(&payload, length).as_ref(), Ok(&message));
                assert_eq!(inflated(&payload, length + 1).as_ref(), Ok(&message));
                if length > 0 {
                    assert_eq!(inflated(&payload, length - 1), Err(InflateError::TooBig));
                }
            }
        }
    }
}

/// The inflater may have taken all input and still have most of a match to give.
#[test]
fn a_match_is_all_that_is_left() {
    for length in 20_000..20_300 {
        let payload = compressed(&vec![0; length], 9, 15);
        for limit in [length - 1, length - 100] {
            assert_eq!(
                inflated(&payload, limit),
                Err(InflateError::TooBig),
                "{length}"
            );
        }
        assert_eq!(inflated(&payload, length).map(|m| m.len()), Ok(length));
    }
}

/// Bytes that compress a little, the same for the same seed.
fn mixed(length: usize, seed: u32) -> Vec<u8> {
    let mut state = seed | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state
    };
    let mut out = Vec::new();
    while out.len() < length {
        match next() % 4 {
            0 => out.extend_from_slice(b"so it is with shells"),
            1 => out.extend(std::iter::repeat_n(next() as u8, (next() % 50) as usize)),
            _ => out.extend_from_slice(&next().to_le_bytes()),
        }
    }
    out.truncate(length);
    out
}

/// A message cut anywhere is never taken for whole, whatever kind of block it is cut in, and the
/// inflater is fit for the next. Only what ends behind the header of a stored block is a message too,
/// since that is where messages end.
#[test]
fn truncations_are_corrupt() {
    let text = SHELLS.repeat(20);
    for (payload, whole) in [
        (bytes("00 05 00 fa ff 48 65 6c 6c 6f 00"), &[1][..]),
        (bytes("f2 48 05 00 00 00 ff ff ca c9 c9 07 00"), &[4]),
        (bytes(DYNAMIC), &[]),
        (compressed(&text, 1, 15), &[]),
        (compressed(&text, 6, 15), &[]),
        (compressed(&mixed(3000, 5), 6, 12), &[]),
        (compressed(&mixed(3000, 6), 9, 9), &[]),
    ] {
        let mut inflater = Inflater::new();
        let message = inflater.inflate(&payload, AMPLE, false).unwrap();
        for end in 0..payload.len() {
            let inflated = inflater.inflate(&payload[..end], AMPLE, false);
            if whole.contains(&end) {
                assert!(message.starts_with(&inflated.unwrap()));
            } else {
                let of = payload.len();
                assert_eq!(inflated, Err(InflateError::Corrupt), "{end} of {of}");
            }
        }
        assert_eq!(inflater.inflate(&payload, AMPLE, false), Ok(message));
    }
}

/// With context, a cut can only hide in the tables of a dynamic block; then what came out is right.
#[test]
fn truncations_with_context() {
    let text = SHELLS.repeat(20);
    for payload in [
        bytes("00 05 00 fa ff 48 65 6c 6c 6f 00"),
        bytes(DYNAMIC),
        compressed(&text, 1, 15),
        compressed(&text, 6, 15),
        compressed(&mixed(3000, 5), 6, 12),
    ] {
        let message = inflated(&payload, AMPLE).unwrap();
        let mut hidden = 0;
        for end in 0..payload.len() {
            let result = Inflater::new().inflate(&payload[..end], AMPLE, true);
            if let Ok(inflated) = result {
                assert!(message.starts_with(&inflated));
                hidden += 1;
            }
        }
        assert!(hidden <= 80, "{hidden} of {}", payload.len());
    }
}

#[test]
fn garbage_after_a_message_is_corrupt() {
    let payload = compressed(SHELLS, 6, 15);
    for garbage in [&b"garbage"[..], b"\xff", b"\x00", b"\0\0\xff\xff", b"\x07"] {
        let longer = [&payload, garbage].concat();
        assert_eq!(
            inflated(&longer, AMPLE),
            Err(InflateError::Corrupt),
            "{garbage:?}"
        );
    }
}

/// Empty blocks that end nothing cost no more than their bytes.
#[test]
fn a_million_empty_blocks() {
    let payload = [bytes("000000ffff").repeat(200_000), vec![0]].concat();
    assert_eq!(inflated(&payload, 0), Ok(vec![]));
}

/// A compressor that is given no room at first, or more than enough, writes the same.
#[test]
fn compressed_messages_are_appended() {
    for length in [1, 60, 64, 65, 300, 5000, 70_000, 300_000] {
        let message = mixed(length, 77);
        for level in 1..=9 {
            let alone = compressed(&message, level, 15);
            for room in [0, 1, 7, alone.len(), alone.len() + 4, 1 << 20] {
                let mut out = Vec::with_capacity(room + 5);
                out.extend_from_slice(b"head ");
                Deflater::new(level, 15).compress(&message, false, &mut out);
                assert!(out.starts_with(b"head "));
                assert_eq!(inflated(&out[5..], length).as_ref(), Ok(&message));
            }
        }
    }
}

/// Payloads that compress well, badly, and against each other.
fn payload() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        Just(Vec::new()),
        prop::collection::vec(any::<u8>(), 0..2000),
        prop::collection::vec(prop::sample::select(&b"ab "[..]), 0..3000),
        (0..60_000_usize, 0..4_u32).prop_map(|(length, seed)| mixed(length, seed)),
        (any::<u8>(), 0..100_000_usize).prop_map(|(byte, length)| vec![byte; length]),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Any messages, with any settings, come back as they were; and nobody looks back further than
    /// the window that was agreed to.
    #[test]
    fn round_trips(
        messages in prop::collection::vec(payload(), 1..6),
        level in 1..=9_u32,
        bits in 9..=15_u8,
        takeover in any::<bool>(),
    ) {
        let mut deflater = Deflater::new(level, bits);
        let mut inflater = Inflater::new();
        let mut narrow = Narrow::new(bits);
        for message in &messages {
            let mut payload = Vec::new();
            deflater.compress(message, takeover, &mut payload);
            let inflated = inflater.inflate(&payload, message.len(), takeover);
            prop_assert_eq!(inflated.as_ref(), Ok(message));
            if !takeover {
                let fresh = self::inflated(&payload, message.len());
                prop_assert_eq!(fresh.as_ref(), Ok(message));
                narrow = Narrow::new(bits);
            }
            let read = narrow.message(&payload);
            prop_assert_eq!(read.as_ref(), Ok(message));
        }
    }

    /// Random bytes: an answer of some kind, within the limit, and an inflater that still works.
    #[test]
    fn random_bytes(
        noise in prop::collection::vec(any::<u8>(), 0..300),
        limit in 0..400_usize,
        takeover in any::<bool>(),
    ) {
        let mut inflater = Inflater::new();
        let mut out = Vec::new();
        let _ = inflater.message(&noise, limit, takeover, &mut out);
        prop_assert!(out.len() <= limit && out.capacity() <= limit);
        inflater.reset();
        if let Ok(message) = inflater.inflate(&noise, limit, takeover) {
            prop_assert!(message.len() <= limit);
        }
        let hello = bytes("f2 48 cd c9 c9 07 00");
        inflater.reset();
        prop_assert_eq!(inflater.inflate(&hello, 5, takeover), Ok(b"Hello".to_vec()));
    }

    /// A sound message with bytes changed.
    #[test]
    fn damaged_messages(
        length in 1..3000_usize,
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
        limit in 0..4000_usize,
        takeover in any::<bool>(),
    ) {
        let mut payload = compressed(&mixed(length, length as u32), 6, 15);
        for (at, byte) in changes {
            let at = at.index(payload.len());
            payload[at] = byte;
        }
        let mut out = Vec::new();
        let _ = Inflater::new().message(&payload, limit, takeover, &mut out);
        prop_assert!(out.len() <= limit && out.capacity() <= limit);
    }
}
