//! Plain HTTP on the port of the WebSockets: one request, one answer, and the connection is closed.

mod support;

use std::net::Shutdown;
use std::time::Duration;

use framemill::{
    Accept, Handler, HeaderName, HeaderValue, Message, Method, Peer, Request, Response, Server,
    StatusCode, header,
};
use support::{Addr, Raw, Running, Transport, client, echoes, over_every_transport};

over_every_transport! {
    the_handler_answers,
    who_has_no_answer_asks_for_a_websocket,
    the_answer_to_head_has_no_body,
    the_refusal_of_head_has_no_body,
    a_handler_cannot_break_the_framing,
    a_panic_is_500_for_that_request_only,
    a_half_closed_client_gets_its_answer,
    a_body_may_come_in_pieces,
    a_body_is_for_get_and_head_too_and_may_be_empty,
    a_client_may_ask_before_it_sends_the_body,
    a_body_that_cannot_be_taken_is_refused_before_it_comes,
    a_refused_upload_still_reads_its_answer,
    a_body_that_is_too_long_to_be_sent_is_500,
    other_methods_are_405,
    malformed_requests_are_refused,
    each_connection_has_one_request,
    requests_come_as_they_were_sent,
}

/// Longer than the tests wait: an answer that comes was not caused by a deadline.
const NEVER: Duration = Duration::from_secs(3600);

/// A small site beside a WebSocket that echoes.
struct Site;

impl Handler for Site {
    type Session = ();

    fn open(&self, _: &Request, _: &Peer) -> Result<Accept<()>, Response> {
        Ok(Accept::new(()))
    }

    fn message(&self, (): &mut (), peer: &Peer, message: Message) {
        let _ = peer.send(message);
    }

    fn http(&self, request: &Request) -> Response {
        match request.path() {
            "/health" => Response::ok(),
            "/page" => Response::html("<p>hello").header(
                HeaderName::from_static("x-query"),
                HeaderValue::from_str(request.query().unwrap_or_default()).unwrap(),
            ),
            "/length" => Response::text(format!("{} {}", request.method(), request.body().len())),
            "/echo" => Response::new(StatusCode::CREATED).body(request.body().clone()),
            "/huge" => Response::ok().body(vec![0; (1 << 30) + 1]),
            "/empty" => Response::new(StatusCode::NO_CONTENT).body("never sent"),
            "/switch" => Response::new(StatusCode::SWITCHING_PROTOCOLS),
            "/meddle" => Response::text("four")
                .header(header::CONTENT_LENGTH, HeaderValue::from_static("400"))
                .header(header::CONNECTION, HeaderValue::from_static("keep-alive"))
                .header(
                    header::TRANSFER_ENCODING,
                    HeaderValue::from_static("chunked"),
                ),
            "/panic" => panic!("as you wish"),
            _ => Response::not_found(),
        }
    }
}

fn site(transport: Transport, settings: impl FnOnce(Server) -> Server) -> Running {
    transport.serve(|s| settings(s).handshake_timeout(NEVER), Site)
}

/// Sends `request` and gives status, head in lower case, and body.
fn exchange(addr: Addr, request: impl AsRef<[u8]>) -> (u16, String, Vec<u8>) {
    let mut raw = Raw::connect(addr);
    raw.write(request.as_ref());
    response(&mut raw)
}

fn response(raw: &mut Raw) -> (u16, String, Vec<u8>) {
    let (status, head, body) = raw.response();
    (status, head.to_lowercase(), body)
}

fn get(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: game.test\r\n\r\n")
}

/// A head with these lines more, each with its line end.
fn head(method: &str, path: &str, lines: &str) -> String {
    format!("{method} {path} HTTP/1.1\r\nHost: game.test\r\n{lines}\r\n")
}

fn post(path: &str, body: &[u8]) -> Vec<u8> {
    let lines = format!("Content-Length: {}\r\n", body.len());
    [head("POST", path, &lines).as_bytes(), body].concat()
}

fn length_of(head: &str) -> Option<usize> {
    let (_, rest) = head.split_once("\r\ncontent-length: ")?;
    rest.split_once("\r\n")?.0.parse().ok()
}

// ---- answers ----

fn the_handler_answers(transport: Transport) {
    for workers in [0, 2] {
        let server = site(transport, |s| s.workers(workers));
        let (status, head, body) = exchange(server.addr, get("/page?a=b&c"));
        assert_eq!(status, 200);
        for line in [
            "content-type: text/html; charset=utf-8",
            "x-query: a=b&c",
            "content-length: 8",
            "connection: close",
        ] {
            assert!(head.contains(&format!("\r\n{line}\r\n")), "{head}");
        }
        assert_eq!(body, b"<p>hello");

        let (status, _, body) = exchange(server.addr, get("/elsewhere"));
        assert_eq!((status, &body[..]), (404, &b"not found\n"[..]));
        let (status, head, body) = exchange(server.addr, get("/empty"));
        assert_eq!((status, length_of(&head), &body[..]), (204, None, &b""[..]));

        // The WebSocket on the same port does not mind.
        echoes(&mut client(server.addr), "hello");
    }
}

fn who_has_no_answer_asks_for_a_websocket(transport: Transport) {
    for workers in [0, 2] {
        let server = transport.serve(|s| s.workers(workers), |_: &Peer, _: Message| {});
        for request in [get("/"), head("POST", "/any", "Content-Length: 0\r\n")] {
            let (status, head, _) = exchange(server.addr, request);
            assert_eq!(status, 426);
            for line in [
                "upgrade: websocket",
                "sec-websocket-version: 13",
                "connection: close, upgrade",
            ] {
                assert!(head.contains(&format!("\r\n{line}\r\n")), "{head}");
            }
        }
    }
}

fn the_answer_to_head_has_no_body(transport: Transport) {
    for workers in [0, 2] {
        let server = site(transport, |s| s.workers(workers));
        for path in ["/health", "/page", "/elsewhere", "/empty", "/panic"] {
            let (_, of_get, _) = exchange(server.addr, get(path));
            let (_, of_head, body) = exchange(server.addr, head("HEAD", path, ""));
            assert_eq!(of_head, of_get);
            assert!(body.is_empty(), "{path}: {body:?}");
        }
        let (_, _, body) = exchange(server.addr, head("HEAD", "/length", ""));
        assert!(body.is_empty());
        let server = transport.serve(|s| s.workers(workers), |_: &Peer, _: Message| {});
        let (status, _, body) = exchange(server.addr, head("HEAD", "/", ""));
        assert_eq!((status, body), (426, Vec::new()));
    }
}

/// Nor has a refusal that no handler was asked for (RFC 9110 §9.3.2).
fn the_refusal_of_head_has_no_body(transport: Transport) {
    let server = site(transport, |s| s.workers(1).max_body(10).max_head(200, 8));
    for (expected, lines) in [
        (405, "Upgrade: websocket\r\nConnection: Upgrade\r\n"),
        (411, "Transfer-Encoding: chunked\r\n"),
        (413, "Content-Length: 11\r\n"),
        (400, "Content-Length: eleven\r\n"),
        (400, "X : 1\r\n"),
        (431, &"a:\r\n".repeat(8)),
        (431, &format!("X: {}\r\n", "x".repeat(200))),
    ] {
        let (status, of_head, body) = exchange(server.addr, head("HEAD", "/", lines));
        assert_eq!(status, expected, "{lines}");
        assert!(body.is_empty(), "{status}: {}", body.escape_ascii());
        let (_, of_get, body) = exchange(server.addr, head("GET", "/", lines));
        if expected != 405 {
            assert_eq!(of_head, of_get);
            assert_eq!(length_of(&of_get), Some(body.len()));
        }
    }

    let full = site(transport, |s| s.workers(1).max_connections(0));
    let (status, _, body) = exchange(full.addr, head("HEAD", "/health", ""));
    assert_eq!((status, body), (503, Vec::new()));
}

fn a_handler_cannot_break_the_framing(transport: Transport) {
    for workers in [0, 2] {
        let server = site(transport, |s| s.workers(workers));
        let (status, head, body) = exchange(server.addr, get("/meddle"));
        assert_eq!((status, &body[..]), (200, &b"four"[..]));
        assert_eq!(length_of(&head), Some(4));
        assert_eq!(head.matches("content-length").count(), 1);
        assert!(head.contains("\r\nconnection: close\r\n"), "{head}");
        assert!(!head.contains("transfer-encoding"), "{head}");
        // An interim status would leave the client waiting.
        assert_eq!(exchange(server.addr, get("/switch")).0, 500);
    }
}

fn a_panic_is_500_for_that_request_only(transport: Transport) {
    for workers in [0, 2] {
        let server = site(transport, |s| s.workers(workers));
        let mut other = client(server.addr);
        for _ in 0..4 {
            let (status, head, _) = exchange(server.addr, get("/panic"));
            assert_eq!(status, 500);
            assert!(head.contains("\r\nconnection: close\r\n"), "{head}");
        }
        echoes(&mut other, "still there?");
        assert_eq!(exchange(server.addr, get("/health")).0, 200);
    }
}

fn a_half_closed_client_gets_its_answer(transport: Transport) {
    for workers in [0, 2] {
        let server = site(transport, |s| s.workers(workers));
        for request in [get("/health").into_bytes(), post("/echo", b"body")] {
            let mut raw = Raw::connect(server.addr);
            raw.write(&request);
            raw.stream.shutdown(Shutdown::Write).unwrap();
            let (status, ..) = response(&mut raw);
            assert!(status < 300, "{status}");
        }
    }
}

// ---- bodies ----

fn a_body_may_come_in_pieces(transport: Transport) {
    for workers in [0, 2] {
        let server = site(transport, |s| s.workers(workers));
        let mut other = client(server.addr);
        let body: Vec<u8> = (0..20_000u32).map(|n| (n % 251) as u8).collect();
        let all = post("/echo", &body);
        let start = all.len() - body.len();
        for cuts in [
            &[][..],
            &[start - 1],
            &[start],
            &[start + 1],
            &[all.len() - 1],
            &[5, start - 2, start, start + 1, start + 5000, all.len() - 1],
        ] {
            let mut raw = Raw::connect(server.addr);
            let mut from = 0;
            for &cut in cuts.iter().chain([&all.len()]) {
                raw.write(&all[from..cut]);
                from = cut;
                echoes(&mut other, "the loop has had its turn");
            }
            let (status, _, echo) = response(&mut raw);
            assert_eq!(status, 201, "{cuts:?}");
            assert!(echo == body, "{cuts:?}");
        }
    }
}

fn a_body_is_for_get_and_head_too_and_may_be_empty(transport: Transport) {
    let server = site(transport, |s| s.workers(1));
    for (method, lines, body, answer) in [
        ("GET", "", "", "GET 0"),
        ("GET", "Content-Length: 5\r\n", "hello", "GET 5"),
        ("POST", "", "", "POST 0"),
        ("POST", "Content-Length: 0\r\n", "", "POST 0"),
        ("POST", "Content-Length:  0005 \r\n", "hello", "POST 5"),
    ] {
        let request = head(method, "/length", lines) + body;
        let (status, _, text) = exchange(server.addr, &request);
        assert_eq!(status, 200, "{request}");
        assert_eq!(String::from_utf8(text).unwrap(), answer, "{request}");
    }
}

fn a_client_may_ask_before_it_sends_the_body(transport: Transport) {
    for workers in [0, 2] {
        let server = site(transport, |s| s.workers(workers).max_body(10));
        let asking = |length: usize| {
            let lines = format!("Content-Length: {length}\r\nExpect: 100-Continue\r\n");
            head("POST", "/echo", &lines)
        };
        let mut raw = Raw::connect(server.addr);
        raw.write(asking(5).as_bytes());
        assert_eq!(raw.head(), "HTTP/1.1 100 Continue\r\n\r\n");
        raw.write(b"hello");
        let (status, _, body) = response(&mut raw);
        assert_eq!((status, &body[..]), (201, &b"hello"[..]));

        // Whoever did not wait is not answered twice.
        let (status, _, body) = exchange(server.addr, asking(5) + "hello");
        assert_eq!((status, &body[..]), (201, &b"hello"[..]));
        // No body to come.
        assert_eq!(exchange(server.addr, asking(0)).0, 201);
        // The final status at once: the body need not be sent.
        assert_eq!(exchange(server.addr, asking(11)).0, 413);
        // HTTP/1.0 knows no interim responses.
        let mut raw = Raw::connect(server.addr);
        raw.write(asking(5).replace("HTTP/1.1", "HTTP/1.0").as_bytes());
        echoes(&mut client(server.addr), "the loop has had its turn");
        raw.write(b"hello");
        assert_eq!(response(&mut raw).0, 201);
    }
}

fn a_body_that_cannot_be_taken_is_refused_before_it_comes(transport: Transport) {
    for workers in [0, 2] {
        let server = site(transport, |s| s.workers(workers));
        for (expected, lines) in [
            (411, "Transfer-Encoding: chunked\r\n"),
            (411, "Transfer-Encoding: gzip, chunked\r\n"),
            (400, "Transfer-Encoding: chunked\r\nContent-Length: 5\r\n"),
            (400, "Content-Length: 5\r\nContent-Length: 5\r\n"),
            (400, "Content-Length: 5\r\nContent-Length: 6\r\n"),
            (400, "Content-Length: 5, 5\r\n"),
            (400, "Content-Length: +5\r\n"),
            (400, "Content-Length: -5\r\n"),
            (400, "Content-Length: 0x5\r\n"),
            (400, "Content-Length: five\r\n"),
            (400, "Content-Length:\r\n"),
            (400, "Content-Length: 99999999999999999999999\r\n"),
            (413, "Content-Length: 65537\r\n"),
            (413, "Content-Length: 9223372036854775807\r\n"),
            (413, "Content-Length: 18446744073709551615\r\n"),
        ] {
            let (status, head, _) = exchange(server.addr, head("POST", "/echo", lines));
            assert_eq!(status, expected, "{lines}");
            assert!(head.contains("\r\nconnection: close\r\n"), "{head}");
        }
    }
}

/// The refusal is not lost to a reset because the client was still sending.
fn a_refused_upload_still_reads_its_answer(transport: Transport) {
    let server = site(transport, |s| s.workers(1));
    let mut raw = Raw::connect(server.addr);
    raw.write(&post("/echo", &vec![0; 4 << 20]));
    assert_eq!(response(&mut raw).0, 413);
}

// ---- requests ----

fn a_body_that_is_too_long_to_be_sent_is_500(transport: Transport) {
    for workers in [0, 2] {
        let server = transport.serve(|s| s.workers(workers), Site);
        for _ in 0..2 {
            let mut raw = Raw::connect(server.addr);
            raw.write(b"GET /huge HTTP/1.1\r\nHost: a\r\n\r\n");
            assert_eq!(raw.response().0, 500);
        }
        echoes(&mut client(server.addr), "still there?");
    }
}

fn other_methods_are_405(transport: Transport) {
    for workers in [0, 2] {
        let server = site(transport, |s| s.workers(workers));
        for method in [
            "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "PURGE", "get", "Get",
        ] {
            let request = head(method, "/health", "Content-Length: 0\r\n");
            let (status, head, _) = exchange(server.addr, request);
            assert_eq!(status, 405, "{method}");
            assert!(head.contains("\r\nallow: get, head, post\r\n"), "{head}");
        }
        let connect = "CONNECT game.test:443 HTTP/1.1\r\nHost: game.test:443\r\n\r\n";
        assert_eq!(exchange(server.addr, connect).0, 501);
    }
}

fn malformed_requests_are_refused(transport: Transport) {
    let server = site(transport, |s| s.workers(1));
    for (expected, request) in [
        (400, "GET /health HTTP/1.1\r\n\r\n"),
        (400, "GET /health HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n"),
        (400, "GET health HTTP/1.1\r\nHost: a\r\n\r\n"),
        (400, "GET /health\r\n\r\n"),
        (400, "GET /health HTTP/1.1\r\nHost: a\r\nX : 1\r\n\r\n"),
        (400, "GET /health HTTP/1.1\r\nHost: a\r\nX: 1\r\n 2\r\n\r\n"),
        (505, "GET /health HTTP/3.0\r\nHost: a\r\n\r\n"),
        (200, "GET /health HTTP/1.0\r\n\r\n"),
        (200, "GET http://a/health HTTP/1.1\r\nHost: b\r\n\r\n"),
        (200, "\r\nGET /health HTTP/1.1\r\nHost: a\r\n\r\n"),
    ] {
        assert_eq!(exchange(server.addr, request).0, expected, "{request:?}");
    }
}

/// What follows a request is never taken for another one.
fn each_connection_has_one_request(transport: Transport) {
    for workers in [0, 2] {
        let server = site(transport, |s| s.workers(workers));
        let second = get("/page");
        for first in [
            get("/health").into_bytes(),
            head("GET", "/health", "Connection: keep-alive\r\n").into_bytes(),
            head("POST", "/health", "Content-Length: 2\r\n\r\nhi").into_bytes(),
            post("/health", b"hello"),
            head("PUT", "/health", "").into_bytes(),
            head("POST", "/health", "Content-Length: no\r\n").into_bytes(),
        ] {
            let mut raw = Raw::connect(server.addr);
            raw.write(&[&first, second.as_bytes()].concat());
            let (_, head, body) = response(&mut raw);
            assert!(head.contains("\r\nconnection: close\r\n"), "{head}");
            assert_eq!(length_of(&head), Some(body.len()), "one answer");
        }
    }
}

fn requests_come_as_they_were_sent(transport: Transport) {
    struct Looks;
    impl Handler for Looks {
        type Session = ();

        fn open(&self, _: &Request, _: &Peer) -> Result<Accept<()>, Response> {
            Err(Response::not_found())
        }

        fn message(&self, (): &mut (), _: &Peer, _: Message) {}

        fn http(&self, request: &Request) -> Response {
            assert_eq!(request.method(), Method::POST);
            assert_eq!(request.path(), "/a%20b");
            assert_eq!(request.query_param("q").as_deref(), Some("c d"));
            assert_eq!(request.host(), Some("game.test"));
            assert_eq!(request.cookie("sid"), Some("1"));
            assert_eq!(request.header("x-trace"), Some("2"));
            assert_eq!(request.body(), "body");
            let ip = request.remote_addr().ip();
            Response::text(ip.map_or("none".into(), |ip| ip.to_string()))
        }
    }

    let server = transport.serve(|s| s.workers(1), Looks);
    let lines = "Cookie: sid=1\r\nX-Trace: 2\r\nContent-Length: 4\r\n";
    let request = head("POST", "/a%20b?q=c+d", lines) + "body";
    let (status, _, body) = exchange(server.addr, request);
    let ip = match server.addr {
        #[cfg(unix)]
        Addr::Unix(_) => "none",
        _ => "127.0.0.1",
    };
    assert_eq!((status, &body[..]), (200, ip.as_bytes()));
}
