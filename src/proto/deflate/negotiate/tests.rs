use http::HeaderValue;
use proptest::prelude::*;

use super::*;
use crate::proto::extension::parse_extensions;

fn parsed(header: &str) -> Vec<Extension> {
    parse_extensions([&HeaderValue::from_str(header).unwrap()]).unwrap()
}

fn half(bits: u8, takeover: bool) -> Half {
    Half { bits, takeover }
}

fn agreed(send: (u8, bool), receive: (u8, bool)) -> Agreed {
    Agreed {
        send: half(send.0, send.1),
        receive: half(receive.0, receive.1),
    }
}

/// Parameters, with the prefixes of their names shortened: `S` and `C` are the two flags, `s=` and
/// `c=` the two windows.
fn long(short: &str) -> String {
    let params = short.split_whitespace().map(|param| match param {
        "S" => SERVER_NO_TAKEOVER.to_owned(),
        "C" => CLIENT_NO_TAKEOVER.to_owned(),
        _ => param
            .replacen("s=", "server_max_window_bits=", 1)
            .replacen("c=", "client_max_window_bits=", 1)
            .trim_end_matches('=')
            .to_owned(),
    });
    std::iter::once(NAME.to_owned())
        .chain(params)
        .collect::<Vec<_>>()
        .join("; ")
}

/// The parameters of the answer to one offer, or "declined".
fn answered(short: &str, want: &Deflate) -> (Option<Agreed>, String) {
    match answer(&parsed(&long(short)), want) {
        Some((agreed, value)) => (Some(agreed), value),
        None => (None, "declined".into()),
    }
}

#[test]
fn stateless_answers() {
    let want = Deflate::new();
    for (offered, reply, send, receive) in [
        ("", "S C", 15, 15),
        ("S", "S C", 15, 15),
        ("C", "S C", 15, 15),
        ("S C", "S C", 15, 15),
        ("c=", "S C", 15, 15), // what browsers offer
        ("c=15", "S C", 15, 15),
        ("c=10", "S C", 15, 10),
        ("c=8", "S C", 15, 8),
        ("s=15", "S C s=15", 15, 15),
        ("s=9", "S C s=9", 9, 15),
        ("c= S s=10 C", "S C s=9", 9, 15),
    ] {
        let expected = agreed((send, false), (receive, false));
        assert_eq!(
            answered(offered, &want),
            (Some(expected), long(reply)),
            "{offered}"
        );
    }
}

#[test]
fn answers_with_context() {
    let want = Deflate::new().context_takeover(true, true);
    for (offered, reply, send, receive) in [
        ("", "", true, true),
        ("S", "S", false, true),
        ("C", "C", true, false),
        ("C S", "S C", false, false),
        ("s=12 c=11", "s=12", true, true),
    ] {
        let (halves, value) = answered(offered, &want);
        let halves = halves.unwrap();
        assert_eq!(
            (halves.send.takeover, halves.receive.takeover),
            (send, receive),
            "{offered}"
        );
        assert_eq!(value, long(reply), "{offered}");
    }
    let one_way = |send, receive| answered("", &Deflate::new().context_takeover(send, receive)).1;
    assert_eq!(one_way(true, false), long("C"));
    assert_eq!(one_way(false, true), long("S"));
}

#[test]
fn answers_with_smaller_windows() {
    let want = Deflate::new()
        .context_takeover(true, true)
        .window_bits(11, 12);
    for (offered, reply, send, receive) in [
        // Not asked, we may still say that we use less; the client can't be told to.
        ("", "s=11", 11, 15),
        ("s=15", "s=11", 11, 15),
        ("s=11", "s=11", 11, 15),
        ("s=10", "s=9", 9, 15),
        ("c=", "s=11 c=12", 11, 12),
        ("c=15", "s=11 c=12", 11, 12),
        ("c=13", "s=11 c=12", 11, 12),
        ("c=12", "s=11", 11, 12),
        ("c=9", "s=11", 11, 9),
        ("c=8", "s=11", 11, 8),
    ] {
        let expected = agreed((send, true), (receive, true));
        assert_eq!(
            answered(offered, &want),
            (Some(expected), long(reply)),
            "{offered}"
        );
    }
}

/// Whatever clients ask for, what goes to many is compressed three times at most.
#[test]
fn few_windows_are_agreed_to() {
    for own in 9..=15 {
        let want = Deflate::new().window_bits(own, 15);
        let mut windows: Vec<u8> = Vec::new();
        for asked in 9..=15 {
            let (agreed, reply) = answered(&format!("s={asked}"), &want);
            let bits = agreed.unwrap().send.bits;
            assert!(bits <= asked.min(own) && bits >= 9);
            assert_eq!(reply, long(&format!("S C s={bits}")));
            windows.push(bits);
        }
        assert_eq!(windows.last(), Some(&own));
        windows.dedup();
        assert!(windows.len() <= 3, "{windows:?}");
    }
}

#[test]
fn offers_that_cannot_be_met_are_declined() {
    let invalid = [
        "x",
        "S x=1",
        "server_No_context_takeover",
        "constructor",
        "S S",
        "C C",
        "s=10 s=10",
        "s=10 s=11",
        "c= c=",
        "c= c=15",
        "c=15 c=",
        "server_no_context_takeover=true",
        "server_no_context_takeover=1",
        "client_no_context_takeover=0",
        "client_no_context_takeover=client_no_context_takeover",
        "s=", // needs a value
        "s=8",
        "s=7",
        "s=0",
        "s=16",
        "s=09",
        "s=015",
        "s=+9",
        "s=-9",
        "s=1e1",
        "s=9.0",
        "s=ten",
        "s=265", // 9 in a byte
        "s=99999999999999999999",
        "c=7",
        "c=16",
        "c=08",
        "c=0x9",
        "c=271",
    ];
    let wants = [
        Deflate::new(),
        Deflate::new().context_takeover(true, true),
        Deflate::new().window_bits(9, 9),
    ];
    for want in &wants {
        for offered in invalid {
            assert_eq!(
                answered(offered, want),
                (None, "declined".into()),
                "{offered}"
            );
            // The next one has its chance, whatever stands around it.
            let header = format!(
                "x; s=1, {}, {NAME}; client_max_window_bits, y",
                long(offered)
            );
            let alone = answer(&parsed(&long("c=")), want);
            assert!(alone.is_some());
            assert_eq!(answer(&parsed(&header), want), alone, "{header}");
        }
    }
}

#[test]
fn the_first_acceptable_offer_is_taken() {
    let want = Deflate::new().context_takeover(true, true);
    for (header, reply) in [
        (
            format!("{}, {}, {}", long("S s=9"), long("S"), long("")),
            long("S s=9"),
        ),
        (
            format!("{}, {}, {}", long("S s=8"), long("S"), long("")),
            long("S"),
        ),
        (format!("{}, {}", long("s=8"), long("s=12")), long("s=12")),
        (format!("{}, {}", long(""), long("S")), long("")),
        (format!("x-webkit-deflate-frame, {}", long("S")), long("S")),
        // Quotes are gone by the time it gets here.
        (
            format!("{NAME}; server_max_window_bits=\"1\\2\""),
            long("s=12"),
        ),
    ] {
        assert_eq!(
            answer(&parsed(&header), &want).unwrap().1,
            reply,
            "{header}"
        );
    }
    for header in [
        "",
        "permessage-Deflate",
        "x",
        "permessage-bzip2; client_max_compress_level=9",
    ] {
        assert_eq!(answer(&parsed(header), &want), None, "{header}");
    }
}

#[test]
fn what_a_client_offers() {
    let new = Deflate::new;
    assert_eq!(offer(&new()), long("S C c="));
    assert_eq!(offer(&new().context_takeover(true, true)), long("c="));
    assert_eq!(offer(&new().context_takeover(true, false)), long("S c="));
    assert_eq!(offer(&new().context_takeover(false, true)), long("C c="));
    assert_eq!(offer(&new().window_bits(9, 12)), long("S C s=12 c=9"));
}

fn accepted(short: &str, want: &Deflate) -> Result<Agreed, &'static str> {
    accept(&parsed(&long(short))[0], want)
}

#[test]
fn answers_a_client_accepts() {
    let both = Deflate::new().context_takeover(true, true);
    for (reply, send, receive) in [
        ("", (15, true), (15, true)),
        ("S", (15, true), (15, false)),
        ("C", (15, false), (15, true)),
        ("s=8", (15, true), (8, true)),
        ("s=15 c=15", (15, true), (15, true)),
        ("c=9 S s=10 C", (9, false), (10, false)),
    ] {
        assert_eq!(accepted(reply, &both), Ok(agreed(send, receive)), "{reply}");
    }
    // A hint that the server ignores is still our promise.
    let alone = agreed((15, false), (15, false));
    assert_eq!(accepted("S", &Deflate::new()), Ok(alone));
    assert_eq!(accepted("S C", &Deflate::new()), Ok(alone));
    let small = both.window_bits(11, 12);
    assert_eq!(accepted("s=12", &small), Ok(agreed((11, true), (12, true))));
    assert_eq!(
        accepted("s=9 c=10", &small),
        Ok(agreed((10, true), (9, true)))
    );
}

#[test]
fn answers_that_fail_the_connection() {
    let both = Deflate::new().context_takeover(true, true);
    for reply in [
        "x",
        "S S",
        "C C",
        "s=9 s=9",
        "c=9 c=9",
        "s=",
        "c=",
        "s=7",
        "s=16",
        "s=08",
        "c=8",
        "c=7",
        "c=16",
        "c=015",
        "server_no_context_takeover=1",
        "client_no_context_takeover=1",
    ] {
        assert!(accepted(reply, &both).is_err(), "{reply}");
    }
    // Asked for, and not agreed to.
    for reply in ["", "C", "s=9"] {
        assert!(accepted(reply, &Deflate::new()).is_err(), "{reply}");
    }
    let small = both.window_bits(11, 12);
    for reply in ["", "c=9", "s=13", "s=15", "s=12 c=12", "s=12 c=15"] {
        assert!(accepted(reply, &small).is_err(), "{reply}");
    }
    assert!(accept(&parsed("x")[0], &Deflate::new()).is_err());
}

fn settings() -> impl Strategy<Value = Deflate> {
    (any::<[bool; 2]>(), 9..=15_u8, 9..=15_u8).prop_map(|(takeover, send, receive)| {
        Deflate::new()
            .context_takeover(takeover[0], takeover[1])
            .window_bits(send, receive)
    })
}

proptest! {
    /// Two of us always come to terms, and to the same: nothing is sent that the other can't read.
    #[test]
    fn client_and_server_agree(client in settings(), server in settings()) {
        let (theirs, value) = answer(&parsed(&offer(&client)), &server).unwrap();
        let ours = accept(&parsed(&value)[0], &client).unwrap();
        prop_assert!(theirs.send.bits <= ours.receive.bits);
        prop_assert!(ours.send.bits <= theirs.receive.bits);
        prop_assert_eq!(theirs.send.takeover, ours.receive.takeover);
        prop_assert_eq!(ours.send.takeover, theirs.receive.takeover);
        prop_assert!(ours.send.bits <= client.send_bits && ours.receive.bits <= client.receive_bits);
        prop_assert!(theirs.send.bits <= server.send_bits);
        prop_assert!(theirs.receive.bits <= server.receive_bits);
        prop_assert!(!ours.send.takeover || client.send_takeover);
        prop_assert!(!theirs.send.takeover || server.send_takeover);
    }

    /// Whatever is offered, the answer keeps the rules of §7.1 towards that offer.
    #[test]
    fn answers_keep_the_rules(
        offered in prop::collection::vec("S|C|s=|c=|x|[sc]=(0?[0-9]|1[0-7])", 0..5),
        want in settings(),
    ) {
        let offered = offered.join(" ");
        let reply = answer(&parsed(&long(&offered)), &want);
        let asked: Vec<_> = offered.split_whitespace().collect();
        let Some((agreed, value)) = reply else { return Ok(()) };
        let has = |param: &str| asked.contains(&param);
        let gave = &parsed(&value)[0].params;
        let given = |name: &str| gave.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_deref());
        prop_assert!(!has("x") && !has("s=") && !has("s=8"));
        prop_assert!(!has("S") || given(SERVER_NO_TAKEOVER) == Some(None));
        prop_assert_eq!(given(SERVER_NO_TAKEOVER).is_none(), agreed.send.takeover);
        prop_assert_eq!(given(CLIENT_NO_TAKEOVER).is_none(), agreed.receive.takeover);
        let number = |text: &str| text.parse::<u8>().unwrap();
        if let Some(most) = asked.iter().find_map(|p| p.strip_prefix("s=")) {
            let bits = number(given(SERVER_BITS).unwrap().unwrap());
            prop_assert!(bits <= number(most) && bits == agreed.send.bits);
        }
        match asked.iter().find_map(|p| p.strip_prefix("c=")) {
            None => prop_assert_eq!(given(CLIENT_BITS), None),
            Some(most) => if let Some(bits) = given(CLIENT_BITS) {
                let bits = number(bits.unwrap());
                prop_assert!(most.is_empty() || bits <= number(most));
                prop_assert_eq!(bits, agreed.receive.bits);
            }
        }
    }
}
