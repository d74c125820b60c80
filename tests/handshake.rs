//! The opening handshake (RFC 6455 §4): what opens a WebSocket, and what every other request for one
//! is answered with.

mod support;

use std::net::Shutdown;
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, unbounded};
use framemill::{
    Accept, CloseCause, CloseCode, CloseReason, Error, Handler, HeaderName, HeaderValue, Message,
    Origin, Peer, Request, Response, Server, header,
};
use support::{
    Addr, Raw, Running, Transport, WAIT, client, echoes, frame, over_every_transport, request,
    reset,
};

over_every_transport! {
    the_answer_is_the_one_of_the_rfc,
    a_request_may_be_cut_anywhere,
    a_request_may_come_byte_by_byte,
    frames_may_follow_in_the_same_packet,
    good_requests_are_spelled_in_many_ways,
    the_handler_adds_headers_but_not_those_of_the_handshake,
    a_subprotocol_is_agreed_on,
    tungstenites_client_agrees_on_a_subprotocol,
    the_server_chooses_a_subprotocol_where_the_handler_does_not,
    what_is_sent_while_opening_arrives_right_after_the_answer,
    bad_requests_have_their_status,
    what_cannot_become_http_is_refused_at_once,
    a_head_may_be_too_long,
    a_subprotocol_that_was_not_offered_is_500,
    the_handler_may_answer_with_any_response,
    a_panic_while_opening_is_500_for_that_one_only,
    a_peer_may_leave_while_the_handler_decides,
    pages_of_other_hosts_are_refused_by_default,
    pages_may_be_listed,
    any_page_may_be_allowed,
    plain_requests_have_no_origin_to_check,
}

/// The answer to the key in `support::request` (RFC 6455 §1.3).
const ACCEPT: &str = "sec-websocket-accept: s3pplmbitxaq9kygzzhzrbk+xoo=\r\n";

/// Longer than the tests wait: an answer that comes was not caused by a deadline.
const NEVER: Duration = Duration::from_secs(3600);

/// Does what the path says, echoes, and reports the ends.
struct ByPath {
    ends: Sender<CloseReason>,
    /// For `/wait`: entered, and let go.
    entered: Sender<()>,
    gate: Receiver<()>,
}

impl Handler for ByPath {
    type Session = ();

    fn open(&self, request: &Request, peer: &Peer) -> Result<Accept<()>, Response> {
        let accept = Accept::new(());
        match request.path() {
            "/greet" => {
                for text in ["one", "two"] {
                    peer.send(text).unwrap();
                }
            }
            "/goodbye" => {
                peer.send("sorry").unwrap();
                assert!(peer.close(CloseCode::Again, "later"));
            }
            "/panic" => panic!("as you wish"),
            "/wait" => {
                self.entered.send(()).unwrap();
                self.gate.recv_timeout(WAIT).unwrap();
            }
            "/subprotocol" => {
                return Ok(accept.subprotocol(request.query().unwrap_or_default()));
            }
            "/cookies" => {
                let name = HeaderName::from_static;
                let value = HeaderValue::from_static;
                return Ok(accept
                    .header(header::SET_COOKIE, value("a=1"))
                    .header(header::SET_COOKIE, value("b=2"))
                    .header(name("x-served-by"), value("framemill"))
                    .header(header::CONTENT_LENGTH, value("5"))
                    .header(header::CONNECTION, value("close"))
                    .header(name("sec-websocket-accept"), value("mine"))
                    .header(name("sec-websocket-extensions"), value("mine")));
            }
            "/private" => {
                peer.send("never to be seen").unwrap();
                let scheme = HeaderValue::from_static("Bearer realm=\"game\"");
                return Err(Response::unauthorized()
                    .header(header::WWW_AUTHENTICATE, scheme)
                    .body("who are you?"));
            }
            _ => {}
        }
        Ok(accept)
    }

    fn message(&self, (): &mut (), peer: &Peer, message: Message) {
        let _ = match message.to_text() {
            Ok("subprotocol?") => peer.send(peer.subprotocol().unwrap_or("none")),
            _ => peer.send(message),
        };
    }

    fn close(&self, (): (), _: &Peer, reason: &CloseReason) {
        self.ends.send(reason.clone()).unwrap();
    }
}

/// A server with this handler, and the other ends of its channels.
struct Served {
    server: Running,
    ends: Receiver<CloseReason>,
    entered: Receiver<()>,
    gate: Sender<()>,
}

fn serve_by_path(transport: Transport, settings: impl FnOnce(Server) -> Server) -> Served {
    let (ends_in, ends) = unbounded();
    let (entered_in, entered) = unbounded();
    let (gate, gate_out) = unbounded();
    let handler = ByPath {
        ends: ends_in,
        entered: entered_in,
        gate: gate_out,
    };
    Served {
        server: transport.serve(settings, handler),
        ends,
        entered,
        gate,
    }
}

/// A good request with one replacement.
fn request_with(addr: Addr, from: &str, to: &str) -> String {
    let good = request(addr);
    assert!(good.contains(from), "{from:?} is not in {good:?}");
    good.replacen(from, to, 1)
}

fn request_for(addr: Addr, path: &str) -> String {
    request_with(addr, "GET /", &format!("GET {path}"))
}

/// Sends a request that is refused, and gives status, head in lower case, and body.
fn refusal(addr: Addr, request: impl AsRef<[u8]>) -> (u16, String, String) {
    let mut raw = Raw::connect(addr);
    raw.write(request.as_ref());
    let (status, head, body) = raw.response();
    (
        status,
        head.to_lowercase(),
        String::from_utf8(body).unwrap(),
    )
}

/// Sends a request that opens a WebSocket, and gives the head of the answer in lower case.
fn opened(addr: Addr, request: &str) -> (Raw, String) {
    let mut raw = Raw::connect(addr);
    raw.write(request.as_bytes());
    let head = raw.head().to_lowercase();
    assert!(head.starts_with("http/1.1 101 "), "{request:?}\n{head:?}");
    assert!(head.contains(ACCEPT), "{head:?}");
    (raw, head)
}

fn raw_echoes(raw: &mut Raw) {
    raw.write(&frame(0x81, b"hello"));
    assert_eq!(raw.frame(), Some((0x81, b"hello".to_vec())));
}

// ---- what opens ----

fn the_answer_is_the_one_of_the_rfc(transport: Transport) {
    for workers in [0, 2] {
        let Served { server, .. } = serve_by_path(transport, |s| s.workers(workers));
        let (mut raw, head) = opened(server.addr, &request(server.addr));
        let expected = format!(
            "http/1.1 101 switching protocols\r\nupgrade: websocket\r\nconnection: upgrade\r\n{ACCEPT}\r\n"
        );
        assert_eq!(head, expected);
        raw_echoes(&mut raw);
    }
}

/// All first halves are with the server before any second half is sent.
fn a_request_may_be_cut_anywhere(transport: Transport) {
    for workers in [0, 2] {
        let server = transport.serve(
            |s| s.workers(workers),
            |peer: &Peer, m: Message| peer.send(m),
        );
        let mut other = client(server.addr);
        let all = [request(server.addr).as_bytes(), &frame(0x81, b"early")].concat();
        let mut halves: Vec<_> = (1..all.len())
            .map(|cut| (Raw::connect(server.addr), all.split_at(cut)))
            .collect();
        for (raw, (first, _)) in &mut halves {
            raw.write(first);
        }
        echoes(&mut other, "the loop has had its turn");
        for (raw, (first, second)) in &mut halves {
            raw.write(second);
            let cut = first.len();
            assert!(raw.head().starts_with("HTTP/1.1 101 "), "cut at {cut}");
            assert_eq!(raw.frame(), Some((0x81, b"early".to_vec())), "cut at {cut}");
        }
    }
}

fn a_request_may_come_byte_by_byte(transport: Transport) {
    for workers in [0, 2] {
        let server = transport.serve(
            |s| s.workers(workers),
            |peer: &Peer, m: Message| peer.send(m),
        );
        let mut other = client(server.addr);
        let mut raw = Raw::connect(server.addr);
        for byte in request(server.addr).bytes() {
            raw.write(&[byte]);
            echoes(&mut other, "the loop has had its turn");
        }
        assert!(raw.head().starts_with("HTTP/1.1 101 "));
        raw_echoes(&mut raw);
    }
}

fn frames_may_follow_in_the_same_packet(transport: Transport) {
    for workers in [0, 2] {
        let server = transport.serve(
            |s| s.workers(workers),
            |peer: &Peer, m: Message| peer.send(m),
        );
        let mut raw = Raw::connect(server.addr);
        let frames = [
            frame(0x01, b"in "),
            frame(0x80, b"parts"),
            frame(0x82, &[7; 300]),
            frame(0x88, b"\x03\xE8"),
        ];
        raw.write(&[request(server.addr).into_bytes(), frames.concat()].concat());
        assert!(raw.head().starts_with("HTTP/1.1 101 "));
        assert_eq!(raw.frame(), Some((0x81, b"in parts".to_vec())));
        assert_eq!(raw.frame(), Some((0x82, vec![7; 300])));
        assert_eq!(raw.frame(), Some((0x88, b"\x03\xE8".to_vec())));
        assert_eq!(raw.frame(), None);
    }
}

fn good_requests_are_spelled_in_many_ways(transport: Transport) {
    let server = transport.echo();
    let key = "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
    let spellings = [
        ("Upgrade: websocket", "UPGRADE: WebSocket"),
        ("Upgrade: websocket", "upgrade:websocket"),
        ("Upgrade: websocket", "Upgrade: h2c/1, ,websocket"),
        (
            "Upgrade: websocket",
            "Upgrade: h2c\r\nUpgrade:\t websocket\t",
        ),
        ("Connection: Upgrade", "connection: keep-alive, UPGRADE"),
        (
            "Connection: Upgrade",
            "Connection: keep-alive\r\nConnection: upgrade",
        ),
        ("Connection: Upgrade", "Connection: close, upgrade"),
        ("Sec-WebSocket-Key", "sec-websocket-KEY"),
        ("Sec-WebSocket-Version: 13", "sec-websocket-version:13"),
        ("Host: ", "hOST:\t"),
        ("GET / ", "GET /a/b?c=d&e=%66 "),
        ("GET / ", "GET http://somewhere.test/ "),
        ("GET / ", "\r\nGET / "),
        (key, &format!("{key}Content-Length: 0\r\n")),
        (key, &format!("{key}X-Opaque: \u{e9}\u{1F3AE}\r\n")),
        (key, &format!("{key}Sec-WebSocket-Protocol: a, b\r\n")),
        (
            key,
            &format!(
                "{key}Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits\r\n"
            ),
        ),
    ];
    for (from, to) in spellings {
        let (mut raw, head) = opened(server.addr, &request_with(server.addr, from, to));
        // Nothing is agreed on that the handler did not choose.
        assert!(!head.contains("sec-websocket-protocol"), "{to}");
        assert!(!head.contains("sec-websocket-extensions"), "{to}");
        raw_echoes(&mut raw);
    }
}

fn the_handler_adds_headers_but_not_those_of_the_handshake(transport: Transport) {
    for workers in [0, 2] {
        let Served { server, .. } = serve_by_path(transport, |s| s.workers(workers));
        let (mut raw, head) = opened(server.addr, &request_for(server.addr, "/cookies"));
        for line in [
            "set-cookie: a=1",
            "set-cookie: b=2",
            "x-served-by: framemill",
        ] {
            assert!(head.contains(&format!("\r\n{line}\r\n")), "{head}");
        }
        for name in ["upgrade", "connection", "sec-websocket-accept"] {
            assert_eq!(head.matches(&format!("\r\n{name}: ")).count(), 1, "{head}");
        }
        for absent in ["content-length", "sec-websocket-extensions", "mine"] {
            assert!(!head.contains(absent), "{head}");
        }
        raw_echoes(&mut raw);
    }
}

fn a_subprotocol_is_agreed_on(transport: Transport) {
    for workers in [0, 2] {
        let Served { server, .. } = serve_by_path(transport, |s| s.workers(workers));
        let offer = |path: &str| {
            let host =
                "Sec-WebSocket-Protocol: chat.v1, chat.v2\r\nSec-WebSocket-Protocol: json\r\nHost";
            request_for(server.addr, path).replacen("Host", host, 1)
        };
        for name in ["chat.v1", "chat.v2", "json"] {
            let (mut raw, head) = opened(server.addr, &offer(&format!("/subprotocol?{name}")));
            let line = format!("\r\nsec-websocket-protocol: {name}\r\n");
            assert!(head.contains(&line), "{head}");
            raw.write(&frame(0x81, b"subprotocol?"));
            assert_eq!(raw.frame(), Some((0x81, name.into())));
        }
        let (mut raw, head) = opened(server.addr, &offer("/"));
        assert!(!head.contains("sec-websocket-protocol"), "{head}");
        raw.write(&frame(0x81, b"subprotocol?"));
        assert_eq!(raw.frame(), Some((0x81, b"none".to_vec())));
    }
}

fn tungstenites_client_agrees_on_a_subprotocol(transport: Transport) {
    use tungstenite::client::IntoClientRequest;

    let Served { server, .. } = serve_by_path(transport, |s| s.workers(2));
    let url = format!("ws://{}/subprotocol?b", server.addr);
    let mut request = url.into_client_request().unwrap();
    request.headers_mut().insert(
        header::SEC_WEBSOCKET_PROTOCOL,
        HeaderValue::from_static("a, b"),
    );
    let stream = support::socket(server.addr);
    let (mut client, response) = tungstenite::client::client(request, stream).unwrap();
    assert_eq!(response.headers()[header::SEC_WEBSOCKET_PROTOCOL], "b");
    echoes(&mut client, "hello");
}

fn the_server_chooses_a_subprotocol_where_the_handler_does_not(transport: Transport) {
    for workers in [0, 2] {
        let settings = |s: Server| s.workers(workers).subprotocols(["two", "one"]);
        let closure = |peer: &Peer, _: Message| peer.send(peer.subprotocol().unwrap_or("none"));
        let server = transport.serve(settings, closure);
        for (offer, chosen) in [
            ("one, two", Some("two")),
            ("zero,one", Some("one")),
            ("zero, Two", None),
        ] {
            let host = format!("Sec-WebSocket-Protocol: {offer}\r\nHost");
            let (mut raw, head) = opened(server.addr, &request_with(server.addr, "Host", &host));
            let line = chosen.map(|name| format!("\r\nsec-websocket-protocol: {name}\r\n"));
            match &line {
                Some(line) => assert!(head.contains(line), "{offer}: {head}"),
                None => assert!(!head.contains("sec-websocket-protocol"), "{head}"),
            }
            raw.write(&frame(0x81, b"which?"));
            let said = chosen.unwrap_or("none").as_bytes().to_vec();
            assert_eq!(raw.frame(), Some((0x81, said)));
        }
        let (_, head) = opened(server.addr, &request(server.addr));
        assert!(!head.contains("sec-websocket-protocol"), "{head}");
        // What the handler chooses counts, if it does.
        let Served { server, .. } = serve_by_path(transport, settings);
        let request = request_for(server.addr, "/subprotocol?one");
        let offer = "Sec-WebSocket-Protocol: one, two\r\nHost";
        let (_, head) = opened(server.addr, &request.replacen("Host", offer, 1));
        assert!(
            head.contains("\r\nsec-websocket-protocol: one\r\n"),
            "{head}"
        );
    }
}

#[test]
fn a_subprotocol_is_a_token() {
    for (name, sound) in [("v1.chat", true), ("one, two", false), ("", false)] {
        let server = Server::bind("127.0.0.1:0").unwrap().subprotocols([name]);
        match server.start(|_: &Peer, _: Message| ()) {
            Ok(handle) => assert!(sound && handle.shutdown(WAIT), "{name:?}"),
            Err(Error::Config(why)) => assert!(!sound && why.contains("subprotocols"), "{why}"),
            Err(other) => panic!("{name:?}: {other}"),
        }
    }
}

fn what_is_sent_while_opening_arrives_right_after_the_answer(transport: Transport) {
    for workers in [0, 2] {
        let Served { server, ends, .. } = serve_by_path(transport, |s| s.workers(workers));
        let request = request_for(server.addr, "/greet");
        let mut raw = Raw::connect(server.addr);
        raw.write(&[request.as_bytes(), &frame(0x81, b"three")].concat());
        assert!(raw.head().starts_with("HTTP/1.1 101 "));
        for text in ["one", "two", "three"] {
            assert_eq!(raw.frame(), Some((0x81, text.into())));
        }

        let (mut raw, _) = opened(server.addr, &request_for(server.addr, "/goodbye"));
        assert_eq!(raw.frame(), Some((0x81, b"sorry".to_vec())));
        assert_eq!(raw.close_code(), Some(1013));
        raw.write(&frame(0x88, b"\x03\xF5"));
        assert_eq!(raw.frame(), None);
        let reason = ends.recv_timeout(WAIT).unwrap();
        assert_eq!(reason.code(), CloseCode::Again);
        assert!(reason.is_clean());
    }
}

// ---- what does not ----

/// Each is refused with its status, and the connection is closed, so that nothing behind it can be
/// taken for another request.
fn bad_requests_have_their_status(transport: Transport) {
    for workers in [0, 2] {
        let server = transport.serve(
            |s| s.workers(workers).handshake_timeout(NEVER),
            |_: &Peer, _: Message| {},
        );
        let key = "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
        let version = "Sec-WebSocket-Version: 13";
        let host = "Host: ";
        let rows = [
            (405, "GET", "POST"),
            (405, "GET", "PUT"),
            (405, "GET", "BREW"),
            (501, "GET /", "OPTIONS *"),
            (426, version, "Sec-WebSocket-Version: 8"),
            (426, version, "Sec-WebSocket-Version: 13, 8"),
            (426, version, "Sec-WebSocket-Version: thirteen"),
            (400, version, "X: 13"),
            (400, version, &format!("{version}\r\n{version}")),
            (400, key, ""),
            (400, key, &key.repeat(2)),
            (400, "dGhlIHNhbXBsZSBub25jZQ==", ""),
            (400, "dGhlIHNhbXBsZSBub25jZQ==", "c2hvcnQ="),
            (400, "dGhlIHNhbXBsZSBub25jZQ==", "dGhlIHNhbXBsZSBub25jZQA="),
            (400, "dGhlIHNhbXBsZSBub25jZQ==", "dGhl!HNhbXBsZSBub25jZQ=="),
            (400, host, "X: "),
            (400, host, "Host: elsewhere.test\r\nHost: "),
            (400, host, "Host: user@"),
            (400, "Connection: Upgrade\r\n", ""),
            (400, "Connection: Upgrade", "Connection: keep-alive"),
            (400, "Connection: Upgrade", "Connection: close upgrade"),
            // Not a request for a WebSocket at all, so it is the handler's, whose answer is 426.
            (426, "Upgrade: websocket\r\n", ""),
            (426, "Upgrade: websocket", "Upgrade: websockets"),
            (426, "HTTP/1.1", "HTTP/1.0"),
            (505, "HTTP/1.1", "HTTP/2.0"),
            (400, "HTTP/1.1", "HTTP/1.1 "),
            (400, "GET /", "GET  /"),
            (400, "GET /", "GET /#fragment"),
            (400, key, &format!("{key}Content-Length: 5\r\n")),
            (400, key, &format!("{key}Content-Length: +0\r\n")),
            (400, key, &format!("{key}Transfer-Encoding: chunked\r\n")),
            (
                400,
                key,
                &format!("{key}Origin: http://a\r\nOrigin: http://b\r\n"),
            ),
            (400, key, &format!("{key}Sec-WebSocket-Protocol: a b\r\n")),
            (
                400,
                key,
                &format!("{key}Sec-WebSocket-Extensions: a; b=\"\r\n"),
            ),
            (400, key, &format!("{key}X: bare line feed\n")),
            (400, key, &format!("{key}X : space before the colon\r\n")),
            (400, key, &format!("{key}X: 1\r\n folded\r\n")),
            (400, key, &format!("{key}no colon\r\n")),
            (400, key, &format!("{key}X: NUL\0\r\n")),
        ];
        for (expected, from, to) in rows {
            let request = request_with(server.addr, from, to);
            let (status, head, _) = refusal(server.addr, &request);
            assert_eq!(status, expected, "{request:?}");
            assert!(head.contains("\r\nconnection: close"), "{head}");
            let upgrade = "connection: close, upgrade\r\n";
            assert_eq!(head.contains(upgrade), status == 426, "{head}");
            assert_eq!(
                head.contains("\r\nsec-websocket-version: 13\r\n"),
                status == 426,
                "{head}"
            );
            assert_eq!(head.contains("\r\nallow: get\r\n"), status == 405, "{head}");
        }
    }
}

/// A TLS client on a plain port, and others, learn it now and not at the deadline.
fn what_cannot_become_http_is_refused_at_once(transport: Transport) {
    let server = transport.serve(
        |s| s.workers(1).handshake_timeout(NEVER),
        |_: &Peer, _: Message| {},
    );
    let client_hello = b"\x16\x03\x01\x02\x00\x01\x00\x01\xFC\x03\x03";
    for bytes in [
        &client_hello[..],
        b"\x80\x2E\x01\x00\x02",
        b"\0",
        b" GET /",
        b"\n",
        b"GET / HTTP/1.1\n",
        b"GET / HTTP/1.1\r\nHost: a\n",
        b"SSH-2.0-OpenSSH_9.6\r\n",
        b"aaaaaaaaaaaaaaaaaaaaa",
        &frame(0x81, b"a frame before the handshake"),
    ] {
        let (status, ..) = refusal(server.addr, bytes);
        assert_eq!(status, 400, "{}", bytes.escape_ascii());
    }
}

/// The defaults: 8 KiB and 64 headers. The heads without an end are refused when the limit is
/// reached, not when the client is through.
fn a_head_may_be_too_long(transport: Transport) {
    let server = transport.serve(
        |s| s.workers(1).handshake_timeout(NEVER),
        |_: &Peer, _: Message| {},
    );
    let padded = |line: &str, len: usize| {
        let good = request(server.addr);
        let pad = len - good.len() - line.len();
        good.replacen("Host", &format!("{line}{}\r\nHost", "x".repeat(pad - 2)), 1)
    };
    let longest = padded("X: ", 8192);
    assert_eq!(longest.len(), 8192);
    opened(server.addr, &longest);
    assert_eq!(refusal(server.addr, padded("X: ", 8193)).0, 431);
    let endless = format!("GET / HTTP/1.1\r\nX: {}", "x".repeat(9000));
    assert_eq!(refusal(server.addr, endless).0, 431);
    assert_eq!(
        refusal(server.addr, format!("GET /{}", "x".repeat(9000))).0,
        414
    );

    let many = |more: usize| {
        request_with(
            server.addr,
            "Host",
            &format!("{}Host", "a:\r\n".repeat(more)),
        )
    };
    // The handshake itself has five.
    opened(server.addr, &many(59));
    assert_eq!(refusal(server.addr, many(60)).0, 431);
}

fn a_subprotocol_that_was_not_offered_is_500(transport: Transport) {
    for workers in [0, 2] {
        let Served { server, ends, .. } = serve_by_path(transport, |s| s.workers(workers));
        let request = request_for(server.addr, "/subprotocol?chat");
        for request in [
            request.clone(),
            request.replacen("Host", "Sec-WebSocket-Protocol: Chat, other\r\nHost", 1),
        ] {
            assert_eq!(refusal(server.addr, request).0, 500);
            // The handler had accepted, so it is told the end.
            ends.recv_timeout(WAIT).unwrap();
        }
        drop(server);
        assert!(ends.try_recv().is_err(), "once for each");
    }
}

fn the_handler_may_answer_with_any_response(transport: Transport) {
    for workers in [0, 2] {
        let Served { server, ends, .. } = serve_by_path(transport, |s| s.workers(workers));
        let mut raw = Raw::connect(server.addr);
        let request = request_for(server.addr, "/private");
        // A frame that comes along is not taken for anything.
        raw.write(&[request.as_bytes(), &frame(0x81, b"let me in")].concat());
        let (status, head, body) = raw.response();
        assert_eq!(status, 401);
        let head = head.to_lowercase();
        for line in [
            "www-authenticate: bearer realm=\"game\"",
            "content-length: 12",
            "connection: close",
        ] {
            assert!(head.contains(&format!("\r\n{line}\r\n")), "{head}");
        }
        assert_eq!(body, b"who are you?");
        drop(server);
        assert!(ends.try_recv().is_err(), "what was refused is not closed");
    }
}

fn a_panic_while_opening_is_500_for_that_one_only(transport: Transport) {
    for workers in [0, 2] {
        let Served { server, ends, .. } = serve_by_path(transport, |s| s.workers(workers));
        let mut other = client(server.addr);
        // More often than there are workers: none of them is lost.
        for _ in 0..4 {
            let request = request_for(server.addr, "/panic");
            assert_eq!(refusal(server.addr, request).0, 500);
        }
        echoes(&mut other, "still there?");
        assert!(ends.try_recv().is_err(), "there was no session to close");
    }
}

/// Late events of a connection that is gone find nothing.
fn a_peer_may_leave_while_the_handler_decides(transport: Transport) {
    let Served {
        server,
        ends,
        entered,
        gate,
    } = serve_by_path(transport, |s| s.workers(2));
    let waiting = || {
        let mut raw = Raw::connect(server.addr);
        raw.write(request_for(server.addr, "/wait").as_bytes());
        entered.recv_timeout(WAIT).unwrap();
        raw
    };

    reset(waiting().stream);
    gate.send(()).unwrap();
    let reason = ends.recv_timeout(WAIT).unwrap();
    if transport.has_resets() {
        assert_eq!(reason.cause(), CloseCause::Transport);
    }

    drop(waiting());
    gate.send(()).unwrap();
    let reason = ends.recv_timeout(WAIT).unwrap();
    assert_eq!(reason.code(), CloseCode::Abnormal);

    // Half-closed: it can still read the answer.
    let mut raw = waiting();
    raw.stream.shutdown(Shutdown::Write).unwrap();
    gate.send(()).unwrap();
    assert!(raw.head().starts_with("HTTP/1.1 101 "));
    assert_eq!(raw.frame(), None);
    let reason = ends.recv_timeout(WAIT).unwrap();
    assert_eq!(reason.cause(), CloseCause::Eof);
}

// ---- origins ----

/// The status that a page from `origin` gets, with this `Host`.
fn status_for(addr: Addr, origin: Option<&str>, host: &str) -> u16 {
    let origin = origin.map_or(String::new(), |origin| format!("Origin: {origin}\r\n"));
    let mut raw = Raw::connect(addr);
    raw.write(
        request(host)
            .replacen("Host", &format!("{origin}Host"), 1)
            .as_bytes(),
    );
    let head = raw.head();
    let status = head[9..12].parse().unwrap();
    if status != 101 {
        assert!(head.to_lowercase().contains("\r\nconnection: close\r\n"));
        raw.rest();
    }
    status
}

fn pages_of_other_hosts_are_refused_by_default(transport: Transport) {
    for workers in [0, 2] {
        // Not `support::serve`, which allows any origin.
        let (server, bound) = transport.bind();
        let handle = server
            .workers(workers)
            .start(|_: &Peer, _: Message| {})
            .unwrap();
        let server = bound.running(handle);
        for (status, origin, host) in [
            (101, None, "game.test"),
            (101, Some("http://game.test"), "game.test"),
            (101, Some("https://GAME.test"), "game.TEST"),
            (101, Some("https://game.test"), "game.test:443"),
            (101, Some("http://game.test:8080"), "game.test:8080"),
            (403, Some("http://game.test:8081"), "game.test:8080"),
            (403, Some("http://game.test"), "game.test:8080"),
            (403, Some("https://evil.test"), "game.test"),
            (403, Some("https://game.test.evil.test"), "game.test"),
            (403, Some("https://xgame.test"), "game.test"),
            (403, Some("null"), "game.test"),
            (403, Some("file://"), "game.test"),
            (403, Some("game.test"), "game.test"),
            (403, Some(""), "game.test"),
        ] {
            let got = status_for(server.addr, origin, host);
            assert_eq!(got, status, "{origin:?} on {host}");
        }
    }
}

fn pages_may_be_listed(transport: Transport) {
    let list = vec!["https://game.test".into(), "http://localhost:3000".into()];
    let server = transport.serve(
        |s| s.workers(1).origin(Origin::List(list)),
        |_: &Peer, _: Message| {},
    );
    for (status, origin) in [
        (101, None),
        (101, Some("https://game.test")),
        (101, Some("https://Game.Test")),
        (101, Some("http://localhost:3000")),
        (403, Some("http://game.test")),
        (403, Some("https://game.test:8443")),
        (403, Some("http://localhost")),
        (403, Some("https://game.test.evil.test")),
        // The same host is not listed.
        (403, Some("https://api.test")),
    ] {
        let got = status_for(server.addr, origin, "api.test");
        assert_eq!(got, status, "{origin:?}");
    }
}

fn any_page_may_be_allowed(transport: Transport) {
    let server = transport.serve(
        |s| s.workers(1).origin(Origin::Any),
        |_: &Peer, _: Message| {},
    );
    for origin in [None, Some("https://evil.test"), Some("null")] {
        assert_eq!(status_for(server.addr, origin, "game.test"), 101);
    }
}

/// Browsers keep the answer from other pages themselves; it is only the WebSocket that they don't.
fn plain_requests_have_no_origin_to_check(transport: Transport) {
    let (server, bound) = transport.bind();
    let handle = server.workers(1).start(|_: &Peer, _: Message| {}).unwrap();
    let server = bound.running(handle);
    let plain = "GET / HTTP/1.1\r\nHost: game.test\r\nOrigin: https://evil.test\r\n\r\n";
    assert_eq!(refusal(server.addr, plain).0, 426);
}
