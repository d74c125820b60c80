use proptest::prelude::*;

use super::*;

const HEAD: &[u8] = b"GET /chat?room=1 HTTP/1.1\r\nHost: a.test\r\nX: 1\r\n\r\n";

fn parse(head: &[u8]) -> Result<Request, HttpError> {
    parse_request(head, 64, RemoteAddr::Unix)
}

fn status_of(head: &[u8]) -> u16 {
    parse(head).map_or_else(|error| error.status.as_u16(), |_| 200)
}

/// A request with these lines after its `Host`.
fn with_lines(lines: &str) -> Vec<u8> {
    format!("POST / HTTP/1.1\r\nHost: a\r\n{lines}\r\n").into_bytes()
}

fn written(response: &Response, head_only: bool) -> String {
    let answer = encode_response(response, head_only);
    String::from_utf8([&answer.head, &answer.body[..]].concat()).unwrap()
}

#[test]
fn the_head_is_found_at_every_split_point() {
    for prefix in [&b""[..], b"\r\n"] {
        let head = [prefix, HEAD].concat();
        let all = [&head[..], b"\x81\x80\r\n\r\nnot ours"].concat();
        for split in 0..all.len() {
            let mut scan = HeadScan::default();
            let early = scan.request(&all[..split], 8192).unwrap();
            assert_eq!(early, (split >= head.len()).then_some(head.len()));
            assert_eq!(scan.request(&all, 8192).unwrap(), Some(head.len()));
        }
        assert_eq!(parse(&head).unwrap().path(), "/chat");
    }
}

/// Each byte is looked at once, however it arrives (tungstenite's CVE-2023-43669).
#[test]
fn a_head_byte_by_byte_is_scanned_once() {
    let head = [
        &b"GET / HTTP/1.1\r\nHost: a\r\nX: "[..],
        &[b'x'; 8000],
        b"\r\n\r\n",
    ]
    .concat();
    let mut scan = HeadScan::default();
    for len in 0..head.len() {
        assert_eq!(scan.request(&head[..len], 8192), Ok(None));
        assert_eq!(scan.scanned, len);
    }
    assert_eq!(scan.request(&head, 8192), Ok(Some(head.len())));
}

#[test]
fn the_limit_counts_the_whole_head() {
    let find = |buf: &[u8], max| {
        HeadScan::default()
            .request(buf, max)
            .map_err(|e| e.status.as_u16())
    };
    assert_eq!(find(HEAD, HEAD.len()), Ok(Some(HEAD.len())));
    assert_eq!(find(HEAD, HEAD.len() - 1), Err(431));
    assert_eq!(find(&HEAD[..HEAD.len() - 1], HEAD.len()), Ok(None));
    assert_eq!(find(&HEAD[..HEAD.len() - 1], HEAD.len() - 1), Err(431));
    assert_eq!(
        find(&[b"GET /".as_slice(), &[b'a'; 200]].concat(), 100),
        Err(414)
    );
}

#[test]
fn what_is_not_http_is_refused_at_once() {
    for bytes in [
        &b"\x16\x03\x01\x02\x00\x01\x00\x01\xFC\x03\x03"[..], // TLS ClientHello
        b"\x80\x2e\x01\x00\x02",                              // SSL 2 hello
        b"\x81\x85",                                          // a WebSocket frame
        b"\n",
        b"\r\n\r\n",
        b"\rG",
        b" GET",
        b"GET\t/",
        b"GET:",
        b"AAAAAAAAAAAAAAAAAAAAA",
        b"GET / HTTP/1.1\n",
    ] {
        let outcome = HeadScan::default().request(bytes, 8192);
        assert_eq!(outcome.unwrap_err().status, 400, "{bytes:?}");
    }
    for bytes in [
        &b""[..],
        b"\r",
        b"\r\n",
        b"G",
        b"\r\nUPDATEREDIRECTREF ",
        b"GET /\xFF",
    ] {
        assert_eq!(
            HeadScan::default().request(bytes, 8192),
            Ok(None),
            "{bytes:?}"
        );
    }
    assert!(HeadScan::default().response(b"HTTP/2", 99).is_err());
    assert_eq!(HeadScan::default().response(b"HTT", 99), Ok(None));
}

/// Each line that is refused could be read differently by a proxy in front.
#[test]
fn hostile_header_lines_are_refused() {
    for (name, status, lines) in [
        ("sound", 200, &b"X: 1\r\n"[..]),
        ("opaque bytes", 200, b"X: \xE9\x85\r\n"),
        ("tab in a value", 200, b"X:\t1\t2\r\n"),
        ("vertical tab as line end", 400, b"X: 1\x0BY: 2\r\n"),
        ("form feed", 400, b"X: 1\x0CY: 2\r\n"),
        ("file separator", 400, b"X: 1\x1CY: 2\r\n"),
        ("group separator", 400, b"X: 1\x1DY: 2\r\n"),
        ("record separator", 400, b"X: 1\x1EY: 2\r\n"),
        ("next line in a name", 400, b"X\x85Y: 2\r\n"),
        ("space before the colon", 400, b"X : 1\r\n"),
        ("tab before the colon", 400, b"X\t: 1\r\n"),
        ("no colon", 400, b"X\r\n"),
        ("leading space", 400, b" X: 1\r\n"),
        ("folded line", 400, b"X: 1\r\n 2\r\n"),
        ("folded line, tab", 400, b"X: 1\r\n\t2\r\n"),
        ("folded empty line", 400, b"X:\r\n 2\r\n"),
        ("NUL in a name", 400, b"X\0: 1\r\n"),
        ("NUL in a value", 400, b"X: \0\r\n"),
        ("DEL in a value", 400, b"X: \x7F\r\n"),
        ("bare LF", 400, b"X: 1\nY: 2\r\n"),
        ("bare LF, empty value", 400, b"X:\nY: 2\r\n"),
        ("bare CR", 400, b"X: 1\rY: 2\r\n"),
        ("CR CR LF", 400, b"X: 1\r\r\n"),
        ("empty header name", 400, b": 1\r\n"),
        ("a second Host", 400, b"Host: a\r\n"),
        ("another Host", 400, b"hOST: b\r\n"),
        ("a second request", 400, b"\r\nGET / HTTP/1.1\r\n"),
    ] {
        let head = [&b"GET / HTTP/1.1\r\nHost: a\r\n"[..], lines, b"\r\n"].concat();
        assert_eq!(status_of(&head), status, "{name}");
    }
}

#[test]
fn hostile_request_lines_are_refused() {
    for (name, status, line) in [
        ("sound", 200, &b"GET / HTTP/1.1"[..]),
        ("HTTP/1.0", 200, b"GET / HTTP/1.0"),
        ("absolute form", 200, b"GET http://h:1/a HTTP/1.1"),
        ("unescaped in a query", 200, b"GET /?a|b^{\"} HTTP/1.1"),
        ("another method", 200, b"OPTIONS /a HTTP/1.1"),
        ("an empty line in front", 200, b"\r\nGET / HTTP/1.1"),
        ("method injection", 400, b"GE\0T / HTTP/1.1"),
        ("version injection", 400, b"GET / HTTP/1.1 x"),
        ("version injection", 400, b"GET / HTTP/1.1\tx"),
        ("no version", 400, b"GET /"),
        ("two spaces", 400, b"GET  / HTTP/1.1"),
        ("trailing space", 400, b"GET / HTTP/1.1 "),
        ("lower-case version", 400, b"GET / http/1.1"),
        ("version digits", 400, b"GET / HTTP/1.10"),
        ("control bytes in front", 400, b"\x01GET / HTTP/1.1"),
        ("a space in front", 400, b" GET / HTTP/1.1"),
        ("two empty lines", 400, b"\r\n\r\nGET / HTTP/1.1"),
        ("bare LF in front", 400, b"\nGET / HTTP/1.1"),
        ("bare LF after", 400, b"GET / HTTP/1.1\nX: 1"),
        ("bare CR in the target", 400, b"GET /\rX HTTP/1.1"),
        ("absolute, user", 400, b"GET http://u@h/ HTTP/1.1"),
        ("absolute, no host", 400, b"GET http:///a HTTP/1.1"),
        ("other scheme", 400, b"GET file:///a HTTP/1.1"),
        ("relative target", 400, b"GET a HTTP/1.1"),
        ("fragment", 400, b"GET /a#b HTTP/1.1"),
        ("target not ASCII", 400, b"GET /\xC3\xA9 HTTP/1.1"),
        ("target not UTF-8", 400, b"GET /\xE9 HTTP/1.1"),
        ("CONNECT", 501, b"CONNECT h:1 HTTP/1.1"),
        ("OPTIONS *", 501, b"OPTIONS * HTTP/1.1"),
        ("two spaces", 400, b"GET /  HTTP/1.1"),
        ("no target", 400, b"GET HTTP/1.1"),
        ("four words", 400, b"GET / b HTTP/1.1"),
        ("HTTP/2 preface", 505, b"PRI * HTTP/2.0"),
        ("HTTP/1.2", 505, b"GET / HTTP/1.2"),
        ("HTTP/0.9", 505, b"GET / HTTP/0.9"),
    ] {
        let head = [line, b"\r\nHost: a\r\n\r\n"].concat();
        assert_eq!(status_of(&head), status, "{name}");
    }
}

/// A map of headers has an end, and the host of an absolute target may be one too many.
#[test]
fn more_headers_than_can_be_kept() {
    for (status, target, headers) in [
        (200, "http://h/", 24_000),
        (200, "/", 24_576),
        (431, "http://h/", 24_576),
        (431, "/", 24_577),
    ] {
        let lines: String = (0..headers).map(|n| format!("x{n}:\r\n")).collect();
        let head = format!("GET {target} HTTP/1.0\r\n{lines}\r\n");
        let parsed = parse_request(head.as_bytes(), usize::MAX, RemoteAddr::Unix);
        let got = parsed.map_or_else(|error| error.status.as_u16(), |_| 200);
        assert_eq!(got, status, "{target}, {headers} headers");
    }
}

/// Without a trustworthy Host there is no check against DNS rebinding.
#[test]
fn hosts_are_required_and_checked() {
    for (status, version, lines) in [
        (200, "1.1", "Host: a.test:8080\r\n"),
        (200, "1.0", ""),
        (400, "1.1", ""),
        (400, "1.1", "Host:\r\n"),
        (400, "1.1", "Host: a, b c\r\n"),
        (400, "1.1", "Host: u@a\r\n"),
        (400, "1.1", "Host: a/b\r\n"),
        (400, "1.1", "Host: \u{e9}\r\n"),
        (400, "1.0", "Host: a\r\nHost: b\r\n"),
    ] {
        let head = format!("GET / HTTP/{version}\r\n{lines}\r\n");
        assert_eq!(status_of(head.as_bytes()), status, "{version} {lines}");
    }
}

#[test]
fn a_head_must_be_whole() {
    for len in 0..HEAD.len() {
        assert_eq!(status_of(&HEAD[..len]), 400, "{len}");
    }
    assert_eq!(status_of(&[HEAD, b"X"].concat()), 400);
    assert_eq!(status_of(b"GET / HTTP/1.1\r\nHost: a\r\n\n"), 400);
}

/// Refused, not cut off (ws had CVE-2024-37890 here).
#[test]
fn too_many_headers_are_431() {
    let head = |count: usize| with_lines(&"a:\r\n".repeat(count - 1));
    assert!(parse_request(&head(64), 64, RemoteAddr::Unix).is_ok());
    for (count, max) in [(65, 64), (2000, 64), (40_000, usize::MAX)] {
        let error = parse_request(&head(count), max, RemoteAddr::Unix).unwrap_err();
        assert_eq!(error.status, 431, "{count}");
    }
    assert_eq!(
        parse_request(HEAD, 0, RemoteAddr::Unix).unwrap_err().status,
        431
    );
}

#[test]
fn authorities() {
    for text in [
        "a",
        "a_b.test",
        "a:",
        "a:80",
        "127.0.0.1:1",
        "[::1]",
        "[::]:443",
        "[::ffff:1.2.3.4]",
        "x%41",
    ] {
        assert!(is_authority(text.as_bytes()), "{text}");
    }
    for text in [
        "",
        ":80",
        "a:b",
        "a:1:2",
        "[::1",
        "[]",
        "[]:1",
        "[a]",
        "::1",
        "[fe80::1%25eth0]",
        "a:+1",
        "[::1]x",
        "[::1]80",
        "a b",
        "a\"",
        "a@b",
        "a]",
    ] {
        assert!(!is_authority(text.as_bytes()), "{text}");
    }
}

/// What request smuggling is made of.
#[test]
fn body_lengths_are_read_one_way_only() {
    let huge = format!("Content-Length: {}0\r\n", usize::MAX);
    for (lines, expected) in [
        ("", Ok(0)),
        ("Content-Length: 0\r\n", Ok(0)),
        ("content-length:   0012\t\r\n", Ok(12)),
        ("Content-Length:\r\n", Err(400)),
        ("Content-Length: +5\r\n", Err(400)),
        ("Content-Length: -0\r\n", Err(400)),
        ("Content-Length: 0x5\r\n", Err(400)),
        ("Content-Length: 5,5\r\n", Err(400)),
        ("Content-Length: 5 5\r\n", Err(400)),
        ("Content-Length: \u{663}\r\n", Err(400)),
        (huge.as_str(), Err(400)),
        ("Content-Length: 5\r\nContent-Length: 5\r\n", Err(400)),
        (
            "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n",
            Err(400),
        ),
        ("Transfer-Encoding: chunked\r\n", Err(411)),
        ("Transfer-Encoding: xchunked\r\n", Err(411)),
        ("Transfer-Encoding:\r\n", Err(411)),
    ] {
        let request = parse(&with_lines(lines)).unwrap();
        assert_eq!(
            body_length(&request).map_err(|e| e.status.as_u16()),
            expected,
            "{lines}"
        );
    }
}

#[test]
fn continue_is_for_http_1_1() {
    let head = String::from_utf8(with_lines("Expect: 100-Continue\r\n")).unwrap();
    assert!(expects_continue(&parse(head.as_bytes()).unwrap()));
    assert!(!expects_continue(
        &parse(head.replace("1.1", "1.0").as_bytes()).unwrap()
    ));
    assert!(!expects_continue(&parse(HEAD).unwrap()));
}

#[test]
fn responses_frame_themselves() {
    let mut response = Response::text("hi");
    for (name, value) in [
        (header::CONTENT_LENGTH, "99"),
        (header::TRANSFER_ENCODING, "chunked"),
        (header::CONNECTION, "keep-alive"),
        (header::SET_COOKIE, "a=1"),
        (header::SET_COOKIE, "b=2"),
    ] {
        response = response.header(name, HeaderValue::from_static(value));
    }
    let head = "HTTP/1.1 200 OK\r\ncontent-type: text/plain; charset=utf-8\r\nset-cookie: a=1\r\n\
                set-cookie: b=2\r\nConnection: close\r\nContent-Length: 2\r\n\r\n";
    assert_eq!(written(&response, true), head);
    assert_eq!(written(&response, false), format!("{head}hi"));
}

#[test]
fn statuses_without_a_body_send_none() {
    for (status, length) in [(204, ""), (304, ""), (205, "Content-Length: 0\r\n")] {
        let status = StatusCode::from_u16(status).unwrap();
        let text = written(&Response::new(status).body("never"), false);
        let reason = status.canonical_reason().unwrap();
        let expected = format!(
            "HTTP/1.1 {} {reason}\r\nConnection: close\r\n{length}\r\n",
            status.as_str()
        );
        assert_eq!(text, expected);
    }
}

#[test]
fn an_unknown_status_has_an_empty_reason() {
    let response = Response::new(StatusCode::from_u16(599).unwrap());
    assert!(written(&response, false).starts_with("HTTP/1.1 599 \r\n"));
}

#[test]
fn a_handler_cannot_send_101() {
    let text = written(&Response::new(StatusCode::SWITCHING_PROTOCOLS), false);
    assert!(text.starts_with("HTTP/1.1 500 "), "{text}");
}

/// A refused upgrade closes, and says which protocol would do.
#[test]
fn refusals_close_and_carry_their_headers() {
    let refusal = |status| written(&HttpError::new(status, "why").into(), false);
    let upgrade = refusal(StatusCode::UPGRADE_REQUIRED);
    for line in [
        "upgrade: websocket",
        "sec-websocket-version: 13",
        "Connection: close, Upgrade",
    ] {
        assert!(upgrade.contains(&format!("{line}\r\n")), "{upgrade}");
    }
    let bare = written(&StatusCode::UPGRADE_REQUIRED.into(), false);
    assert!(
        bare.contains("\r\nUpgrade: websocket\r\nConnection: close, Upgrade\r\n"),
        "{bare}"
    );
    let method = refusal(StatusCode::METHOD_NOT_ALLOWED);
    assert!(
        method.contains("\r\nallow: GET\r\n") && method.ends_with("\r\n\r\nwhy"),
        "{method}"
    );
    let busy = refusal(StatusCode::SERVICE_UNAVAILABLE);
    assert!(busy.contains("\r\nConnection: close\r\n"), "{busy}");
}

#[test]
fn response_heads() {
    let head = parse_response(b"HTTP/1.1 302 Found\r\nLocation: /x\r\n\r\n", 64).unwrap();
    assert_eq!(
        (head.status, head.version),
        (StatusCode::FOUND, Version::HTTP_11)
    );
    assert_eq!(head.headers[header::LOCATION], "/x");
    let head = parse_response(b"HTTP/1.0 200\r\n\r\n", 0).unwrap();
    assert_eq!(head.version, Version::HTTP_10);
    for head in [
        &b"HTTP/1.1 099 Low\r\n\r\n"[..],
        b"HTTP/1.1 1010 Long\r\n\r\n",
        b"HTTP/1.1 +10 Sign\r\n\r\n",
        b"HTTP/1.1 101 Bare\n\r\n",
        b"HTTP/1.1 101 Fold\r\nA: 1\r\n 2\r\n\r\n",
        b"HTTP/1.1 101 Space\r\nA : 1\r\n\r\n",
        b"HTTP/2.0 101 Version\r\n\r\n",
        b"HTTP/1.1 101 More\r\n\r\nrest",
        b"",
    ] {
        assert!(parse_response(head, 64).is_err(), "{}", head.escape_ascii());
    }
}

#[test]
fn list_tokens_match_whole_items_over_all_headers() {
    let mut headers = HeaderMap::new();
    headers.append(
        header::CONNECTION,
        HeaderValue::from_static("keep-alive,, UPGRADE\t"),
    );
    headers.append(
        header::CONNECTION,
        HeaderValue::from_bytes(b"\xE9, close").unwrap(),
    );
    let has = |token| has_token(&headers, header::CONNECTION, token);
    assert!(has("upgrade") && has("close") && has("keep-alive"));
    assert!(!has("keep") && !has("") && !has("e9"));
}

proptest! {
    /// No bytes panic, and what is accepted keeps the promises of `Request`.
    #[test]
    fn any_bytes_are_safe(
        start in prop::sample::select(vec!["", "GET / HTTP/1.1\r\nHost: a\r\n", "\r\nGET "]),
        bytes in prop::collection::vec(prop::sample::select(b"GET /:?#\r\n\t\0 a\x80\xC3\xA9HTTP/1.1".to_vec()), 0..80),
        end in prop::sample::select(vec!["", "\r\n\r\n", " HTTP/1.1\r\nHost: a\r\n\r\n"]),
    ) {
        let head = [start.as_bytes(), &bytes, end.as_bytes()].concat();
        let _ = HeadScan::default().request(&head, 64);
        let _ = parse_response(&head, 8);
        if let Ok(request) = parse(&head) {
            prop_assert!(request.path().starts_with('/'));
            prop_assert!(request.path().bytes().all(|b| b.is_ascii_graphic()));
            prop_assert!(request.version() == Version::HTTP_10 || request.host().is_some());
            prop_assert!(request.headers().values().all(|v| !v.as_bytes().iter().any(|b| b"\r\n\0".contains(b))));
            let _ = body_length(&request);
        }
    }

    /// Two cuts anywhere give what one piece gives.
    #[test]
    fn scanning_does_not_depend_on_the_pieces(
        tail in prop::collection::vec(prop::sample::select(b"a:\r\n ".to_vec()), 0..40),
        cuts in (0..60usize, 0..60usize),
    ) {
        let all = [b"GET / HTTP/1.1\r\n".as_slice(), &tail].concat();
        let mut pieces = [cuts.0.min(all.len()), cuts.1.min(all.len()), all.len()];
        pieces.sort_unstable();
        let mut scan = HeadScan::default();
        let outcome = pieces.iter().map(|len| scan.request(&all[..*len], 8192)).find(|o| *o != Ok(None));
        prop_assert_eq!(outcome.unwrap_or(Ok(None)), HeadScan::default().request(&all, 8192));
    }
}
