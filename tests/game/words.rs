//! The messages: what is encoded is what is decoded, and nothing else is.

use proptest::prelude::*;

use crate::ship::Input;
use crate::wire::{
    BadMessage, Reader, ToServer, VERSION, Welcome, put_number, tidy, unzigzag, zigzag,
};

fn input() -> impl Strategy<Value = Input> {
    (any::<i8>(), any::<i8>(), any::<bool>()).prop_map(|(x, y, dash)| Input { x, y, dash })
}

fn message() -> impl Strategy<Value = ToServer> {
    prop_oneof![
        (any::<Option<[u8; 16]>>(), "[a-z]{1,16}").prop_map(|(token, name)| ToServer::Hello {
            token: token.filter(|token| *token != [0; 16]),
            name
        }),
        (any::<u32>(), prop::collection::vec(input(), 1..=16))
            .prop_map(|(first, inputs)| ToServer::Input { first, inputs }),
        any::<[u8; 8]>().prop_map(ToServer::Ping),
    ]
}

proptest! {
    #[test]
    fn messages_arrive_as_they_were(message in message()) {
        prop_assert_eq!(ToServer::decode(&message.encode()), Ok(message));
    }

    #[test]
    fn half_a_message_is_none(message in message(), cut in any::<prop::sample::Index>()) {
        let bytes = message.encode();
        let part = &bytes[..cut.index(bytes.len())];
        // Inputs may end after each.
        let whole = part.first() == Some(&2) && part.len() > 5 && (part.len() - 5) % 3 == 0;
        prop_assert_eq!(ToServer::decode(part).is_ok(), whole);
    }

    #[test]
    fn rubbish_does_no_harm(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = ToServer::decode(&bytes);
        let _ = Welcome::decode(&bytes);
    }

    #[test]
    fn numbers(number in any::<u32>(), small in any::<i16>()) {
        let mut out = Vec::new();
        put_number(&mut out, number);
        prop_assert_eq!(Reader(&out).number(), Some(number));
        prop_assert_eq!(unzigzag(zigzag(small)), Some(small));
        prop_assert_eq!(zigzag(small) < 128, (-64..64).contains(&small));
    }

    #[test]
    fn names_are_short_and_plain(name in any::<String>()) {
        let tidy = tidy(&name);
        prop_assert!((1..=16).contains(&tidy.chars().count()));
        prop_assert!(tidy.len() <= 48 && !tidy.chars().any(char::is_control));
        prop_assert_eq!(tidy.trim(), tidy.as_str());
    }
}

#[test]
fn names() {
    assert_eq!(tidy("  Ada   Lovelace "), "Ada Lovelace");
    assert_eq!(tidy("\u{202e}evil\u{200b}\n"), "evil");
    assert_eq!(tidy("Ada \u{200b}  Love\nlace"), "Ada Love lace");
    assert_eq!(tidy(" \t"), "nameless");
    assert_eq!(
        tidy("<b>&amp;</b>"),
        "<b>&amp;</b>",
        "the page draws it as text"
    );
    assert_eq!(tidy(&"é".repeat(40)), "é".repeat(16));
    assert_eq!(tidy(&"😀".repeat(40)), "😀".repeat(12), "48 bytes");
}

/// Two names that look the same are the same, and what looks like none is none.
#[test]
fn names_hold_nothing_that_can_not_be_seen() {
    let unseen = [
        '\u{ad}',
        '\u{34f}',
        '\u{61c}',
        '\u{115f}',
        '\u{1160}',
        '\u{17b4}',
        '\u{17b5}',
        '\u{180b}',
        '\u{180e}',
        '\u{200b}',
        '\u{200f}',
        '\u{202e}',
        '\u{2060}',
        '\u{2069}',
        '\u{2800}',
        '\u{3164}',
        '\u{fe00}',
        '\u{fe0f}',
        '\u{feff}',
        '\u{ffa0}',
        '\u{fff9}',
        '\u{1d173}',
        '\u{e0001}',
        '\u{e0041}',
        '\u{e0100}',
        '\u{e01ef}',
    ];
    for c in unseen {
        assert_eq!(tidy(&format!("A{c}da{c}")), "Ada", "{c:?}");
        assert_eq!(tidy(&format!("{c} {c}")), "nameless", "{c:?}");
    }
}

#[test]
fn other_versions_and_endless_numbers() {
    let mut hello = ToServer::Hello {
        token: None,
        name: "a".into(),
    }
    .encode();
    hello[1] = VERSION + 1;
    assert_eq!(ToServer::decode(&hello), Err(BadMessage::Version));
    assert_eq!(ToServer::decode(&[]), Err(BadMessage::Malformed));
    assert_eq!(ToServer::decode(&[9]), Err(BadMessage::Malformed));
    assert_eq!(
        ToServer::decode(&[2, 1, 0, 0, 0, 5, 5, 2]),
        Err(BadMessage::Malformed),
        "dash is 0 or 1"
    );
    let many = [[2, 1, 0, 0, 0].as_slice(), &[0; 17 * 3]].concat();
    assert_eq!(
        ToServer::decode(&many),
        Err(BadMessage::Malformed),
        "at most 16"
    );
    assert_eq!(Reader(&[0xff; 9]).number(), None);
    assert_eq!(
        Reader(&[0xff, 0xff, 0xff, 0xff, 0x1f]).number(),
        None,
        "over 32 bits"
    );
}
