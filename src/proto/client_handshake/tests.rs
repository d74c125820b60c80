use proptest::prelude::*;
use tungstenite::handshake::machine::TryParse;
use tungstenite::handshake::server;

use super::*;
use crate::proto::handshake::tests::{ANSWER, KEY, each_replacement, meddling_headers, request};
use crate::proto::handshake::{accept_response, check, choose_subprotocol, wants_upgrade};

fn client_request() -> ClientRequest {
    ClientRequest {
        host: "server.example.com".into(),
        target: "/chat".into(),
        key: KEY.into(),
        origin: None,
        subprotocols: Vec::new(),
        extensions: None,
        headers: HeaderMap::new(),
    }
}

fn written(request: &ClientRequest) -> Result<Vec<u8>, &'static str> {
    let mut out = Vec::new();
    request.write(&mut out).map(|()| out)
}

/// Ten naive lines of RFC 4648.
fn base64(bytes: &[u8]) -> String {
    let alphabet: Vec<char> = ('A'..='Z')
        .chain('a'..='z')
        .chain('0'..='9')
        .chain(['+', '/'])
        .collect();
    let mut text = String::new();
    for chunk in bytes.chunks(3) {
        let bits = (0..3).fold(0, |bits, i| {
            bits << 8 | u32::from(*chunk.get(i).unwrap_or(&0))
        });
        for i in 0..4 {
            let digit = alphabet[(bits >> (18 - 6 * i) & 63) as usize];
            text.push(if i > chunk.len() { '=' } else { digit });
        }
    }
    text
}

#[test]
fn extra_headers_cannot_change_the_request() {
    let mut headers = meddling_headers();
    headers.append("host", HeaderValue::from_static("no"));
    headers.append("origin", HeaderValue::from_static("extra"));
    let with_origin = |origin: Option<&str>| {
        let (origin, headers) = (origin.map(str::to_owned), headers.clone());
        request(
            &written(&ClientRequest {
                origin,
                headers,
                ..client_request()
            })
            .unwrap(),
        )
    };
    let sent = with_origin(None);
    assert!(check(&sent).is_ok());
    assert_eq!(sent.host(), Some("server.example.com"));
    assert_eq!(sent.origin(), Some("extra"));
    let sent = with_origin(Some("http://a"));
    assert!(check(&sent).is_ok());
    assert_eq!(sent.origin(), Some("http://a"));
}

/// A URL that someone else chose cannot add lines.
#[test]
fn a_client_request_is_checked_before_it_is_written() {
    type Change = fn(&mut ClientRequest);
    let changes: [(&str, Change); 10] = [
        ("the host is invalid", |r| r.host = "a\r\nX: 1".into()),
        ("the host is invalid", |r| r.host.clear()),
        ("the path is invalid", |r| {
            r.target = "/ HTTP/1.1\r\nX: 1".into()
        }),
        ("the path is invalid", |r| r.target = "a".into()),
        ("the path is invalid", |r| r.target = "/a#b".into()),
        ("the key is invalid", |r| r.key.truncate(23)),
        ("the origin is invalid", |r| r.origin = Some("a\n".into())),
        ("a subprotocol is invalid", |r| {
            r.subprotocols = vec!["a b".into()]
        }),
        ("a subprotocol is offered twice", |r| {
            r.subprotocols = vec!["a".into(), "a".into()]
        }),
        ("the extensions are malformed", |r| {
            r.extensions = Some("a\r\nX: 1".into())
        }),
    ];
    for (why, change) in changes {
        let mut request = client_request();
        change(&mut request);
        assert_eq!(written(&request), Err(why));
    }
    let head = String::from_utf8(written(&client_request()).unwrap()).unwrap();
    assert!(!head.contains("Protocol") && head.ends_with("Version: 13\r\n\r\n"));
}

fn verified(from: &str, to: &str) -> Result<Accepted, ClientRefused> {
    assert!(ANSWER.contains(from), "{from}");
    let asked = ClientRequest {
        subprotocols: vec!["a".into(), "b".into()],
        extensions: Some("x; p, y".into()),
        ..client_request()
    };
    verify(&asked, ANSWER.replacen(from, to, 1).as_bytes(), 64)
}

#[test]
fn a_client_takes_what_it_asked_for() {
    let more = "\r\nSec-WebSocket-Protocol: b\r\nSec-WebSocket-Extensions: y\r\n\
                Sec-WebSocket-Extensions: ,x;q=1\r\nX: 1\r\n\r\n";
    let accepted = verified("\r\n\r\n", more).unwrap();
    assert_eq!(accepted.subprotocol.as_deref(), Some("b"));
    let agreed = parse_extensions([&HeaderValue::from_static("y, x; q=1")]);
    assert_eq!(Ok(accepted.extensions), agreed);
    assert_eq!(accepted.headers["x"], "1");
    assert!(verified("Upgrade\r", "close, upgrade\r").is_ok());
    assert!(verified(": websocket", ": WebSocket").is_ok());
}

#[test]
fn a_client_refuses_any_other_answer() {
    let table: [(&str, &[&str]); 6] = [
        ("HTTP/1.1", &["HTTP/1.0", "HTTP/2.0", "http/1.1"]),
        (
            "Upgrade: websocket\r\n",
            &["", "Upgrade: websocket\n", "Upgrade:\r\n"],
        ),
        (
            ": websocket",
            &[
                ": h2c",
                ": websocket, h2c",
                ": websocket\r\nUpgrade: websocket",
            ],
        ),
        ("Connection: Upgrade\r\n", &["", "Connection: close\r\n"]),
        ("s3pP", &["S3PP", ""]),
        (
            "Sec-WebSocket-Accept",
            &["X", "Sec-WebSocket-Accept: x\r\nSec-WebSocket-Accept"],
        ),
    ];
    let refused =
        |from: &str, to: &str| matches!(verified(from, to), Err(ClientRefused::Invalid(_)));
    each_replacement(&table, |from, to| assert!(refused(from, to), "{to}"));
    for line in [
        "Protocol: c",
        "Protocol: B",
        "Protocol:",
        "Protocol: a, b",
        "Protocol: a\r\nSec-WebSocket-Protocol: a",
        "Protocol: \u{e9}",
        "Extensions: z",
        "Extensions: X",
        "Extensions: x, x",
        "Extensions: x;",
    ] {
        let to = format!("\r\nSec-WebSocket-{line}\r\n\r\n");
        assert!(refused("\r\n\r\n", &to), "{line}");
    }
    assert!(matches!(
        verify(&client_request(), ANSWER.as_bytes(), 2),
        Err(ClientRefused::Invalid("there are too many header fields"))
    ));
}

#[test]
fn other_statuses_reach_the_caller_with_their_headers() {
    for status in [103, 200, 302, 401, 426, 503] {
        let head = format!("HTTP/1.1 {status} X\r\nLocation: /y\r\n\r\n");
        match verify(&client_request(), head.as_bytes(), 64) {
            Err(ClientRefused::Status(head)) => {
                assert_eq!(head.status.as_u16(), status);
                assert_eq!(head.headers[header::LOCATION], "/y");
            }
            other => panic!("{other:?}"),
        }
    }
}

/// An independent server against our client.
#[test]
fn tungstenites_server_accepts_our_client() {
    let ours = ClientRequest {
        key: new_key(),
        ..client_request()
    };
    let head = written(&ours).unwrap();
    let (len, theirs) = server::Request::try_parse(&head).unwrap().unwrap();
    assert_eq!(len, head.len());
    let response = server::create_response(&theirs).unwrap();
    let mut answer = Vec::new();
    server::write_response(&mut answer, &response).unwrap();
    assert!(verify(&ours, &answer, 64).is_ok());
}

proptest! {
    /// What a client writes, a server accepts, and what the server answers, the client accepts.
    #[test]
    fn both_roles_agree(
        key in any::<[u8; 16]>(),
        target in "/[a-z/%0-9]{0,12}(\\?[a-z=&+]{0,8})?",
        host in "([a-z0-9][a-z0-9.-]{0,12}|\\[::1\\])(:[0-9]{1,5})?",
        origin in prop::option::of("https?://[a-z.]{1,10}"),
        subprotocols in prop::collection::btree_set("[!-~&&[^\"(),/:;<=>?@\\[\\\\\\]{}]]{1,8}", 0..4),
        pick in any::<prop::sample::Index>(),
        extensions in prop::option::of(prop::sample::select(vec!["x", "x; a=1; b", "y, x;c=\"d\""])),
        cookie in "[ -~]{0,20}",
    ) {
        let cookie = HeaderValue::from_str(cookie.trim()).unwrap();
        let headers = HeaderMap::from_iter([(header::SET_COOKIE, cookie.clone())]);
        let sent = ClientRequest {
            host,
            target,
            key: base64(&key),
            origin,
            subprotocols: subprotocols.into_iter().collect(),
            extensions: extensions.map(str::to_owned),
            headers: headers.clone(),
        };
        let received = request(&written(&sent).unwrap());
        prop_assert!(wants_upgrade(&received));
        prop_assert_eq!(received.host(), Some(&*sent.host));
        prop_assert_eq!(received.origin(), sent.origin.as_deref());
        prop_assert_eq!(received.headers().get(header::SET_COOKIE), Some(&cookie));
        prop_assert!(received.subprotocols().eq(sent.subprotocols.iter().map(String::as_str)));

        let upgrade = check(&received).unwrap();
        prop_assert_eq!(&upgrade.offers, &sent.offers().unwrap());
        let chosen = (!sent.subprotocols.is_empty()).then(|| pick.get(&sent.subprotocols).as_str());
        let chosen = chosen.map(|name| choose_subprotocol(&received, name).unwrap());
        let agreed = extensions.map(|_| "x; q");
        let mut answer = Vec::new();
        accept_response(&upgrade, chosen, agreed, &headers, &mut answer);

        let accepted = verify(&sent, &answer, 64).unwrap();
        prop_assert_eq!(accepted.subprotocol.as_deref(), chosen);
        prop_assert_eq!(accepted.extensions.len(), usize::from(agreed.is_some()));
        prop_assert_eq!(accepted.headers.get(header::SET_COOKIE), Some(&cookie));
    }
}
