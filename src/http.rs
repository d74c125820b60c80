//! What a handler sees of HTTP: the [`Request`] that asked for a WebSocket (or for a plain page),
//! and the [`Response`] it may answer with instead.
//!
//! Plain data with accessors that cannot fail on a peer's bytes: what is missing or unreadable is
//! `None`, never a panic. Absent: parsing and writing (`proto/http.rs`), the rules of the opening
//! handshake (`proto/handshake.rs`), routing, keep-alive, and streamed bodies in either direction.

use std::borrow::Cow;
use std::fmt;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Version, header};

use crate::addr::RemoteAddr;

/// One HTTP request: the opening handshake of a WebSocket, or a plain request on the same port.
///
/// Its head has passed the strict parser: header names are tokens, header values hold no control
/// bytes (but may hold bytes outside ASCII), and an HTTP/1.1 request has exactly one `Host`.
/// Nothing has been decoded.
#[derive(Clone)]
pub struct Request {
    method: Method,
    version: Version,
    /// In origin form; begins with `/`.
    target: String,
    /// Where the `?` stands: `path_len <= target.len()`, equal when there is no query.
    path_len: usize,
    headers: HeaderMap,
    body: Bytes,
    remote_addr: RemoteAddr,
}

impl Request {
    /// An HTTP/1.1 request. `target` is in origin form, or in absolute form and is then reduced to
    /// its path. `None`: there are so many headers that the host it names is one too many.
    pub(crate) fn new(
        method: Method,
        target: &str,
        mut headers: HeaderMap,
        body: Bytes,
        remote_addr: RemoteAddr,
    ) -> Option<Self> {
        let (authority, path) = split_target(target);
        // RFC 9112 §3.2.2: "When an origin server receives a request with an absolute-form of
        // request-target, the origin server MUST ignore the received Host header field (if any) and
        // instead use the host information of the request-target."
        if let Some(host) = authority.and_then(|a| HeaderValue::from_str(a).ok()) {
            headers.try_insert(header::HOST, host).ok()?;
        }
        let slash = if path.starts_with('/') { "" } else { "/" };
        let target = [slash, path].concat();
        let path_len = target.find('?').unwrap_or(target.len());
        Some(Self {
            method,
            version: Version::HTTP_11,
            target,
            path_len,
            headers,
            body,
            remote_addr,
        })
    }

    pub(crate) fn set_version(&mut self, version: Version) {
        self.version = version;
    }

    pub(crate) fn set_remote_addr(&mut self, remote_addr: RemoteAddr) {
        self.remote_addr = remote_addr;
    }

    pub(crate) fn set_body(&mut self, body: Bytes) {
        self.body = body;
    }

    pub(crate) fn version(&self) -> Version {
        self.version
    }

    /// The request method; always `GET` for a WebSocket.
    pub fn method(&self) -> &Method {
        &self.method
    }

    /// The path as it was sent, before any `?`: not percent-decoded, dot segments not resolved.
    ///
    /// It begins with `/`.
    pub fn path(&self) -> &str {
        &self.target[..self.path_len]
    }

    /// What follows the first `?`, as it was sent; `None` without a `?`.
    pub fn query(&self) -> Option<&str> {
        self.target.get(self.path_len + 1..)
    }

    /// The first query parameter with this name, decoded as HTML forms encode: `+` is a space,
    /// `%XX` a byte.
    ///
    /// A `%` not followed by two hexadecimal digits stands for itself, and bytes that are not UTF-8
    /// become U+FFFD. A parameter without `=` has the empty value.
    pub fn query_param(&self, name: &str) -> Option<Cow<'_, str>> {
        self.query()?.split('&').find_map(|pair| {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            (!pair.is_empty() && decode(key) == name).then(|| decode(value))
        })
    }

    /// All headers, as they were sent.
    pub fn headers(&self) -> &HeaderMap {
        &self.headers
    }

    /// The first value of a header, when it is text.
    ///
    /// Header values are bytes chosen by the peer; `None` also stands for a value that is not
    /// UTF-8. [`headers`](Self::headers) has the bytes.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).and_then(text_of)
    }

    /// The host (and port, unless it is the default) that the client wanted to reach.
    ///
    /// From the `Host` header, or from the target where that was an absolute URI. The client
    /// chooses it.
    pub fn host(&self) -> Option<&str> {
        self.header("host")
    }

    /// The origin of the page that opened the WebSocket, `https://example.com`; browsers always
    /// send it.
    pub fn origin(&self) -> Option<&str> {
        self.header("origin")
    }

    /// The value of the first cookie with this name, from any `Cookie` header.
    ///
    /// Names are case-sensitive. The value is as it was sent: not decoded, and quotes are part of
    /// it.
    pub fn cookie(&self, name: &str) -> Option<&str> {
        let headers = self.headers.get_all(header::COOKIE).iter();
        let mut pairs = headers.flat_map(|value| value.as_bytes().split(|b| *b == b';'));
        pairs.find_map(|pair| {
            let pair = pair.trim_ascii();
            let value = pair.strip_prefix(name.as_bytes())?.strip_prefix(b"=")?;
            std::str::from_utf8(value).ok()
        })
    }

    /// The subprotocols that the client offers, in its order of preference; usually there are none.
    ///
    /// RFC 6455 §11.3.4: the header "MAY appear multiple times", which "is logically the same as a
    /// single" one.
    pub fn subprotocols(&self) -> impl Iterator<Item = &str> {
        let headers = self.headers.get_all(header::SEC_WEBSOCKET_PROTOCOL).iter();
        headers
            .filter_map(text_of)
            .flat_map(|list| list.split(','))
            .map(|item| item.trim_matches([' ', '\t']))
            .filter(|item| !item.is_empty())
    }

    /// The body of a plain request; always empty for a WebSocket.
    pub fn body(&self) -> &Bytes {
        &self.body
    }

    /// The client's address: that of the other end of the connection or, if that is a proxy that the server
    /// [trusts](crate::Server::trust_proxies), the address that the proxy names.
    pub fn remote_addr(&self) -> RemoteAddr {
        self.remote_addr
    }
}

/// Leaves out the headers, the query and the body: cookies and tokens do not belong in a log.
impl fmt::Debug for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Request")
            .field("method", &self.method)
            .field("path", &self.path())
            .field("remote_addr", &self.remote_addr)
            .finish_non_exhaustive()
    }
}

/// Splits an absolute-form target (RFC 9112 §3.2.2) into its authority and the rest, which is empty
/// or begins with `/` or `?`. Any other target comes back whole.
pub(crate) fn split_target(target: &str) -> (Option<&str>, &str) {
    const SCHEMES: [&str; 4] = ["http", "https", "ws", "wss"];
    match target.split_once("://") {
        Some((scheme, rest)) if SCHEMES.iter().any(|s| scheme.eq_ignore_ascii_case(s)) => {
            let end = rest.find(['/', '?']).unwrap_or(rest.len());
            (Some(&rest[..end]), &rest[end..])
        }
        _ => (None, target),
    }
}

fn text_of(value: &HeaderValue) -> Option<&str> {
    std::str::from_utf8(value.as_bytes()).ok()
}

/// Form decoding, in one pass; borrows where there is nothing to decode.
fn decode(text: &str) -> Cow<'_, str> {
    if !text.contains(['+', '%']) {
        return Cow::Borrowed(text);
    }
    let mut decoded = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        let (byte, tail) = match (first, tail) {
            (b'+', _) => (b' ', tail),
            (b'%', [high, low, after @ ..]) => match (hex(*high), hex(*low)) {
                (Some(high), Some(low)) => (high << 4 | low, after),
                _ => (b'%', tail),
            },
            _ => (*first, tail),
        };
        decoded.push(byte);
        rest = tail;
    }
    Cow::Owned(match String::from_utf8(decoded) {
        Ok(text) => text,
        Err(error) => String::from_utf8_lossy(error.as_bytes()).into_owned(),
    })
}

fn hex(digit: u8) -> Option<u8> {
    // A value below 16 fits a byte.
    char::from(digit).to_digit(16).map(|value| value as u8)
}

/// An HTTP response: the answer to a plain request, or the refusal of a WebSocket.
///
/// It is written with `Content-Length` and `Connection: close`, whatever was set here for
/// `Connection`, `Content-Length` and `Transfer-Encoding`; the connection ends after it.
///
/// ```
/// use framemill::{HeaderValue, Response, StatusCode, header};
///
/// let busy = Response::new(StatusCode::SERVICE_UNAVAILABLE)
///     .header(header::RETRY_AFTER, HeaderValue::from_static("5"))
///     .body("the room is full\n");
/// assert_eq!(busy.status(), 503);
/// ```
#[derive(Clone, Debug)]
pub struct Response(Box<Parts>);

/// Behind a pointer, as a response is mostly the `Err` of something.
#[derive(Clone, Debug)]
struct Parts {
    status: StatusCode,
    headers: HeaderMap,
    content: Bytes,
}

impl Response {
    /// A response with no headers and an empty body.
    ///
    /// `status` should be a final one (200 and above): an interim 1xx status ends no exchange and
    /// is sent as 500.
    pub fn new(status: StatusCode) -> Self {
        Self(Box::new(Parts {
            status,
            headers: HeaderMap::new(),
            content: Bytes::new(),
        }))
    }

    /// Adds a header; one of the same name that is already there stays.
    #[must_use]
    pub fn header(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.0.headers.append(name, value);
        self
    }

    /// Sets the body; its `Content-Type` is the caller's to add.
    ///
    /// It is not sent where HTTP allows no body: in answer to `HEAD`, and with 204, 205 and 304. It is not copied,
    /// however many connections are sent the same [`Bytes`], and does not count towards
    /// [`outbound_limit`](crate::Server::outbound_limit). A body of more than 1 GiB is a mistake of the handler: it is
    /// logged and answered with 500.
    #[must_use]
    pub fn body(mut self, body: impl Into<Bytes>) -> Self {
        self.0.content = body.into();
        self
    }

    /// The status.
    pub fn status(&self) -> StatusCode {
        self.0.status
    }

    /// The headers set so far.
    pub fn headers(&self) -> &HeaderMap {
        &self.0.headers
    }

    /// The body set by [`body`](Self::body).
    pub fn content(&self) -> &Bytes {
        &self.0.content
    }

    /// 200 with the text `ok`: enough for a health check.
    pub fn ok() -> Self {
        Self::text("ok\n")
    }

    /// 200 with plain text.
    pub fn text(text: impl Into<String>) -> Self {
        Self::typed(StatusCode::OK, "text/plain; charset=utf-8", text.into())
    }

    /// 200 with an HTML page.
    pub fn html(page: impl Into<String>) -> Self {
        Self::typed(StatusCode::OK, "text/html; charset=utf-8", page.into())
    }

    /// 404.
    pub fn not_found() -> Self {
        Self::plain(StatusCode::NOT_FOUND, "not found\n")
    }

    /// 403: this client is not allowed, whoever it is.
    pub fn forbidden() -> Self {
        Self::plain(StatusCode::FORBIDDEN, "forbidden\n")
    }

    /// 401: this client must say who it is.
    ///
    /// RFC 9110 §15.5.2 wants the scheme named: add `WWW-Authenticate` with
    /// [`header`](Self::header).
    pub fn unauthorized() -> Self {
        Self::plain(StatusCode::UNAUTHORIZED, "unauthorized\n")
    }

    /// 503: not now; the server is full, or about to stop.
    pub fn unavailable() -> Self {
        Self::plain(StatusCode::SERVICE_UNAVAILABLE, "unavailable\n")
    }

    /// 426 with `Upgrade: websocket` and `Sec-WebSocket-Version: 13`: this address speaks only
    /// WebSocket.
    pub fn upgrade_required() -> Self {
        Self::plain(
            StatusCode::UPGRADE_REQUIRED,
            "a WebSocket is expected here\n",
        )
        .asking_for_websocket()
    }

    /// A refusal with one line of plain text.
    pub(crate) fn plain(status: StatusCode, text: &'static str) -> Self {
        Self::typed(status, "text/plain; charset=utf-8", text)
    }

    /// What a 426 must say (RFC 9110 §15.5.22, RFC 6455 §4.4).
    pub(crate) fn asking_for_websocket(self) -> Self {
        self.header(header::UPGRADE, HeaderValue::from_static("websocket"))
            .header(
                header::SEC_WEBSOCKET_VERSION,
                HeaderValue::from_static("13"),
            )
    }

    fn typed(status: StatusCode, kind: &'static str, content: impl Into<Bytes>) -> Self {
        Self::new(status)
            .header(header::CONTENT_TYPE, HeaderValue::from_static(kind))
            .body(content)
    }
}

/// A bare status, with an empty body.
impl From<StatusCode> for Response {
    fn from(status: StatusCode) -> Self {
        Self::new(status)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn request(target: &str, headers: &[(&'static str, &[u8])]) -> Request {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(*name, HeaderValue::from_bytes(value).unwrap());
        }
        Request::new(Method::GET, target, map, Bytes::new(), RemoteAddr::Unix).unwrap()
    }

    #[test]
    fn targets_split_into_path_and_query() {
        for (target, path, query) in [
            ("/", "/", None),
            ("/a/b?c=d?e", "/a/b", Some("c=d?e")),
            ("/a?", "/a", Some("")),
            ("/a?u=http://x/", "/a", Some("u=http://x/")),
            ("//host/a", "//host/a", None),
            ("http://h/a?b", "/a", Some("b")),
            ("WS://h:80", "/", None),
            ("https://h?b", "/", Some("b")),
        ] {
            let request = request(target, &[]);
            assert_eq!((request.path(), request.query()), (path, query), "{target}");
        }
    }

    #[test]
    fn the_host_of_an_absolute_target_wins() {
        assert_eq!(request("/a", &[("host", b"one")]).host(), Some("one"));
        assert_eq!(
            request("http://two:8/a", &[("host", b"one")]).host(),
            Some("two:8")
        );
    }

    #[test]
    fn query_parameters_are_decoded() {
        let request = request(
            "/?a=1&a=2&b+c=%68i+%F0%9F%8E%AE&bad=%zz%4&lossy=%FF&flag&%61d=x&=y",
            &[],
        );
        for (name, value) in [
            ("a", Some("1")),
            ("b c", Some("hi 🎮")),
            ("bad", Some("%zz%4")),
            ("lossy", Some("\u{FFFD}")),
            ("flag", Some("")),
            ("ad", Some("x")),
            ("", Some("y")),
            ("absent", None),
        ] {
            assert_eq!(request.query_param(name).as_deref(), value, "{name}");
        }
        assert!(matches!(request.query_param("a"), Some(Cow::Borrowed(_))));
    }

    /// As they did in others (Granian's CVE-2026-42544, nes' CVE-2017-16025).
    #[test]
    fn bytes_outside_ascii_never_panic() {
        let request = request(
            "/",
            &[
                ("sec-websocket-protocol", b"caf\xE9, chat"),
                ("sec-websocket-protocol", b"json"),
                ("origin", b"\xE9"),
                ("cookie", b"a=\xE9; b=\xC3\xA9"),
                ("cookie", b"=; ;;=x; c"),
            ],
        );
        assert_eq!(request.subprotocols().collect::<Vec<_>>(), ["json"]);
        assert_eq!(request.origin(), None);
        assert_eq!(request.cookie("a"), None);
        assert_eq!(request.cookie("b"), Some("é"));
        assert_eq!(request.cookie("c"), None);
        assert_eq!(request.header("not a \u{e9} name"), None);
        assert_eq!(request.header(""), None);
    }

    #[test]
    fn cookies_match_whole_names() {
        let request = request(
            "/",
            &[("cookie", b"sid2=no; SID=no;sid=yes=\"1\" ; sid=late")],
        );
        assert_eq!(request.cookie("sid"), Some("yes=\"1\""));
        assert_eq!(request.cookie("si"), None);
    }

    #[test]
    fn subprotocols_come_from_every_header_in_order() {
        let request = request(
            "/",
            &[
                ("sec-websocket-protocol", b" a ,,b\t,"),
                ("sec-websocket-protocol", b"c"),
            ],
        );
        assert_eq!(request.subprotocols().collect::<Vec<_>>(), ["a", "b", "c"]);
    }

    #[test]
    fn the_body_comes_after_the_head() {
        let mut request = request("/", &[]);
        assert!(request.body().is_empty());
        request.set_body(Bytes::from_static(b"body"));
        assert_eq!(request.body(), "body");
    }

    #[test]
    fn debug_shows_no_secrets() {
        let shown = format!("{:?}", request("/p?token=1", &[("cookie", b"sid=2")]));
        assert!(
            shown.contains("/p") && !shown.contains("token") && !shown.contains("sid"),
            "{shown}"
        );
    }

    #[test]
    fn the_upgrade_response_names_protocol_and_version() {
        let response = Response::upgrade_required();
        assert_eq!(response.status(), 426);
        assert_eq!(response.headers()[header::UPGRADE], "websocket");
        assert_eq!(response.headers()[header::SEC_WEBSOCKET_VERSION], "13");
        assert!(!response.content().is_empty());
    }

    proptest! {
        /// The decoder against an encoder that escapes everything.
        #[test]
        fn decoding_undoes_encoding(text in any::<String>()) {
            let escaped: String = text.bytes().map(|b| format!("%{b:02x}")).collect();
            prop_assert_eq!(decode(&escaped), text);
        }

        #[test]
        fn decoding_takes_anything(text in any::<String>()) {
            prop_assert!(decode(&text).chars().count() <= text.chars().count());
        }
    }
}
