use bytes::Bytes;
use tungstenite::client::IntoClientRequest;
use tungstenite::handshake::client;

use super::*;
use crate::addr::RemoteAddr;
use crate::http::Response;
use crate::proto::http::{HeadScan, parse_request};

/// The example of RFC 6455 §1.3.
pub(crate) const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";
const ACCEPT: &str = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";
const SOUND: &str = "GET /chat HTTP/1.1\r\nHost: server.example.com\r\nUpgrade: websocket\r\n\
     Connection: Upgrade\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
     Origin: http://example.com\r\nSec-WebSocket-Protocol: chat, superchat\r\n\
     Sec-WebSocket-Version: 13\r\n\r\n";
pub(crate) const ANSWER: &str = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\
     Connection: Upgrade\r\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";

pub(crate) fn request(head: &[u8]) -> Request {
    parse_request(head, 64, RemoteAddr::Unix).unwrap()
}

/// The status of `SOUND` after one replacement; 101 where it is still sound.
fn status_with(from: &str, to: &str) -> u16 {
    assert!(SOUND.contains(from), "{from}");
    let head = SOUND.replacen(from, to, 1);
    let outcome = parse_request(head.as_bytes(), 64, RemoteAddr::Unix);
    match outcome.and_then(|request| check(&request)) {
        Ok(_) => 101,
        Err(error) => error.status.as_u16(),
    }
}

pub(crate) fn each_replacement(table: &[(&str, &[&str])], test: impl Fn(&str, &str)) {
    for (from, replacements) in table {
        replacements.iter().for_each(|to| test(from, to));
    }
}

#[test]
fn the_example_of_the_rfc() {
    let request = request(SOUND.as_bytes());
    assert!(wants_upgrade(&request));
    let upgrade = check(&request).unwrap();
    assert_eq!(upgrade.accept, ACCEPT);
    let chosen = choose_subprotocol(&request, "chat").unwrap();
    let mut out = Vec::new();
    accept_response(&upgrade, Some(chosen), None, &HeaderMap::new(), &mut out);
    let expected = ANSWER.replace("\r\n\r\n", "\r\nSec-WebSocket-Protocol: chat\r\n\r\n");
    assert_eq!(String::from_utf8(out).unwrap(), expected);
}

#[test]
fn heads_that_browsers_and_proxies_send() {
    let table: [(&str, &[&str]); 7] = [
        (
            ": Upgrade\r",
            &[
                ": keep-alive, Upgrade\r",
                ": close\r\nConnection: upgrade\r",
            ],
        ),
        (
            "Upgrade: websocket",
            &[
                "Upgrade: WebSocket",
                "Upgrade: h2c/1\r\nUpgrade: ,websocket",
            ],
        ),
        ("Host: ", &["hOsT:"]),
        (
            "http://example.com",
            &["null", "https://xn--caf-dma.test:8443"],
        ),
        (
            "Origin: http://example.com\r\n",
            &["", "Content-Length: 0\r\n"],
        ),
        ("/chat", &["http://server.example.com/chat", "/"]),
        ("ZQ==", &["ZR=="]),
    ];
    each_replacement(&table, |from, to| {
        assert_eq!(status_with(from, to), 101, "{to}")
    });
}

/// Every rule of RFC 6455 §4.2.1, broken.
#[test]
fn hostile_handshakes_are_refused_with_400() {
    let table: [(&str, &[&str]); 16] = [
        ("HTTP/1.1", &["HTTP/1.0"]),
        ("Host", &["Hos", "Host: a\r\nHost"]),
        ("Upgrade: websocket\r\n", &["", "Upgrade:\r\n"]),
        (
            ": websocket",
            &[": websockets", ": web socket", ": \u{e9}websocket"],
        ),
        ("Connection: Upgrade\r\n", &["", "Connection:\r\n"]),
        (
            ": Upgrade\r",
            &[": keep-alive\r", ": close upgrade\r", ": \"upgrade\"\r"],
        ),
        (
            "Sec-WebSocket-Key: ",
            &["X: ", "Sec-WebSocket-Key: a\r\nSec-WebSocket-Key: "],
        ),
        (
            "dGhlIHNhbXBsZSBub25jZQ==\r",
            &["dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r"],
        ),
        // No bytes, 15, 17, 18, and 16 in the wrong alphabet or padding.
        (
            KEY,
            &[
                "",
                "AAAAAAAAAAAAAAAAAAAA",
                "AAAAAAAAAAAAAAAAAAAAAAA=",
                "AAAAAAAAAAAAAAAAAAAAAAAA",
            ],
        ),
        ("dGhl", &["d-_l", "d=hl", "d hl", "\u{e9}hl", "dGhldGhl"]),
        (
            "Version: 13",
            &["Versio: 13", "Version: 13\r\nSec-WebSocket-Version: 13"],
        ),
        ("Origin", &["Origin: http://a\r\nOrigin"]),
        ("http://example.com", &["http://\u{e9}"]),
        (
            "Origin",
            &["Content-Length: 5\r\nX", "Transfer-Encoding: chunked\r\nX"],
        ),
        (
            "Origin",
            &[
                "Content-Length: +0\r\nX",
                "Content-Length: 0\r\nContent-Length: 0\r\nX",
            ],
        ),
        (
            "chat, superchat\r",
            &[
                "caf\u{e9}\r",
                "b    x\r",
                "a\r X: 1\r",
                "a\r\nSec-WebSocket-Extensions: a; b=\"\r",
            ],
        ),
    ];
    each_replacement(&table, |from, to| {
        assert_eq!(status_with(from, to), 400, "{to}")
    });
}

/// Version 13 or nothing.
#[test]
fn other_methods_and_versions_have_their_own_status() {
    let other =
        |status| move |from: &str, to: &str| assert_eq!(status_with(from, to), status, "{to}");
    each_replacement(&[("GET", &["POST", "HEAD", "get"])], other(405));
    each_replacement(
        &[(
            "Version: 13",
            &["Version: 8", "Version: 13, 8", "Version: 013", "Version:"],
        )],
        other(426),
    );
    each_replacement(&[("HTTP/1.1", &["HTTP/2.0", "HTTP/1.2"])], other(505));
}

#[test]
fn an_upgrade_is_told_from_a_plain_request() {
    let wants =
        |from: &str, to: &str| wants_upgrade(&request(SOUND.replacen(from, to, 1).as_bytes()));
    assert!(wants("Upgrade: websocket", "Upgrade: h2c, WEBSOCKET"));
    assert!(wants("GET", "POST"));
    assert!(!wants("Upgrade: websocket", "Upgrade: h2c"));
    assert!(!wants("Upgrade: websocket\r\n", ""));
    assert!(!wants("HTTP/1.1", "HTTP/1.0"));
}

#[test]
fn a_handler_is_held_to_what_was_offered() {
    let request = request(SOUND.as_bytes());
    assert_eq!(choose_subprotocol(&request, "superchat"), Ok("superchat"));
    for chosen in ["", "Chat", "chat, superchat", "chat\r\nX: 1"] {
        let error = choose_subprotocol(&request, chosen).unwrap_err();
        assert_eq!(error.status, 500, "{chosen}");
    }
}

/// Headers of every kind that the handshake keeps to itself, and two cookies.
pub(crate) fn meddling_headers() -> HeaderMap {
    let names = "upgrade connection content-length transfer-encoding sec-websocket-accept \
                 sec-websocket-key sec-websocket-protocol sec-websocket-extensions \
                 sec-websocket-version set-cookie set-cookie";
    let name = |name| HeaderName::from_static(name);
    let mut headers = HeaderMap::new();
    for (at, name) in names.split(' ').map(name).enumerate() {
        headers.append(name, HeaderValue::from(at));
    }
    headers
}

#[test]
fn extra_headers_cannot_change_the_101() {
    let upgrade = check(&request(SOUND.as_bytes())).unwrap();
    let mut out = Vec::new();
    accept_response(&upgrade, None, None, &meddling_headers(), &mut out);
    let cookies = "\r\nset-cookie: 9\r\nset-cookie: 10\r\n\r\n";
    assert_eq!(
        String::from_utf8(out).unwrap(),
        ANSWER.replace("\r\n\r\n", cookies)
    );
}

/// At this length, a parser that goes back over its input would not finish (ws' CVE-2021-32640, CVE-2020-7662).
#[test]
fn long_values_take_linear_time() {
    let spaces = " ".repeat(1 << 20);
    for value in [
        format!("b{spaces}x"),
        spaces.clone(),
        ",".repeat(1 << 20),
        format!("a; b=\"{spaces}"),
        format!("a; b=\"{}", "\\\"".repeat(1 << 19)),
        format!("a{spaces};{spaces}b{spaces}={spaces}c"),
        "x".repeat(1 << 20),
        "a,".repeat(1 << 19),
    ] {
        let get = |headers| {
            Request::new(Method::GET, "/", headers, Bytes::new(), RemoteAddr::Unix).unwrap()
        };
        let value = HeaderValue::from_str(&value).unwrap();
        let mut headers = request(SOUND.as_bytes()).headers().clone();
        for name in [header::UPGRADE, header::CONNECTION] {
            headers.append(name, value.clone());
        }
        headers.insert(header::SEC_WEBSOCKET_EXTENSIONS, value.clone());
        let request = get(headers);
        let _ = check(&request);
        let mut headers = request.headers().clone();
        headers.insert(header::SEC_WEBSOCKET_PROTOCOL, value);
        let request = get(headers);
        let _ = check(&request);
        assert!(request.subprotocols().all(|name| !name.contains(',')));
    }
}

/// An independent client against our server.
#[test]
fn tungstenites_client_is_accepted() {
    let uri = "ws://localhost:3000/a?b=c".into_client_request().unwrap();
    let (head, key) = client::generate_request(uri).unwrap();
    assert_eq!(
        HeadScan::default().request(&head, 8192),
        Ok(Some(head.len()))
    );
    let request = request(&head);
    assert_eq!(
        (request.path(), request.host()),
        ("/a", Some("localhost:3000"))
    );
    assert_eq!(
        check(&request).unwrap().accept,
        derive_accept_key(key.as_bytes())
    );
}

#[test]
fn refusals_become_responses() {
    let head = SOUND.replace("Version: 13", "Version: 12");
    let error = check(&request(head.as_bytes())).unwrap_err();
    let response = Response::from(error);
    assert_eq!(response.status(), 426);
    assert_eq!(response.headers()[header::SEC_WEBSOCKET_VERSION], "13");
}
