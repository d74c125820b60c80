//! HTTP/1.1 heads as pure data: a request or response head in, a response out.
//!
//! The order of calls, on the server:
//!
//! 1. [`HeadScan::request`] with all bytes so far, after each read, until it gives the length of
//!    the head;
//! 2. [`parse_request`] with exactly that head, once;
//! 3. a WebSocket goes on in `handshake`; for a plain request [`body_length`] tells how much is
//!    still to come (send [`CONTINUE`] first if [`expects_continue`]);
//! 4. [`encode_response`], then close. An [`HttpError`] from any step is a [`Response`] too.
//!
//! A client uses [`HeadScan::response`] and [`parse_response`].
//!
//! The parser is strict. Whatever two HTTP parsers could read in two ways (bare CR or LF, folded
//! lines, space before a colon, control bytes, two lengths) is refused, so that a proxy in front
//! cannot be made to disagree with us about where a request ends. Nothing here trusts a declared
//! number: memory follows the bytes that arrived.
//!
//! Absent on purpose: keep-alive and pipelining (every response closes, so that bytes behind a
//! refused upgrade are never taken for a second request), chunked bodies, trailers, HTTP/2, and
//! `Date` in responses (a handler may add one). No sockets, no clock: the caller owns the handshake
//! deadline and the 408.

use std::io::Write;
use std::net::Ipv6Addr;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Version, header};

use crate::addr::RemoteAddr;
use crate::guard::Guarded;
use crate::http::{Request, Response, split_target};

/// The longest method taken for one. The longest registered is `UPDATEREDIRECTREF`, 17 bytes.
const MAX_METHOD: usize = 20;

/// The interim response that lets a client with `Expect: 100-continue` send its body.
pub(crate) const CONTINUE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";

/// Why a request is refused, as the status to answer with and one static sentence for the body and
/// the log.
///
/// A client reads only `why`: there the fault is the server's and no one is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct HttpError {
    pub(crate) status: StatusCode,
    pub(crate) why: &'static str,
}

impl HttpError {
    pub(crate) const fn new(status: StatusCode, why: &'static str) -> Self {
        Self { status, why }
    }

    pub(crate) const fn bad_request(why: &'static str) -> Self {
        Self::new(StatusCode::BAD_REQUEST, why)
    }
}

/// The refusal as it is sent, with the headers its status calls for.
impl From<HttpError> for Response {
    fn from(error: HttpError) -> Self {
        let response = Self::plain(error.status, error.why);
        match error.status {
            // RFC 9110 §15.5.6: "The origin server MUST generate an Allow header field in a 405
            // response". Only the handshake refuses a method in this way, and it knows but one.
            StatusCode::METHOD_NOT_ALLOWED => {
                response.header(header::ALLOW, HeaderValue::from_static("GET"))
            }
            StatusCode::UPGRADE_REQUIRED => response.asking_for_websocket(),
            _ => response,
        }
    }
}

/// Finds the end of a head that arrives in pieces, looking at each byte once.
///
/// The same buffer, grown, is passed each time. What can never become a head is refused as soon as
/// it shows, so a TLS client on a plain port learns it now and not at the handshake deadline.
#[derive(Debug, Default)]
pub(crate) struct HeadScan {
    /// `scanned <= buf.len()`: no head ends before here. Up to three bytes before it are looked at
    /// again.
    scanned: usize,
}

impl HeadScan {
    /// The length of the request head at the front of `buf`, with its empty last line; `None` while
    /// incomplete.
    ///
    /// A head longer than `max_head` is refused: 431, or 414 when not even its first line fits.
    pub(crate) fn request(
        &mut self,
        buf: &[u8],
        max_head: usize,
    ) -> Result<Option<usize>, HttpError> {
        if !looks_like_http(buf) {
            return Err(HttpError::bad_request("this is not HTTP"));
        }
        self.advance(buf, max_head)
    }

    /// The same for a response head.
    pub(crate) fn response(
        &mut self,
        buf: &[u8],
        max_head: usize,
    ) -> Result<Option<usize>, HttpError> {
        if !buf.iter().zip(b"HTTP/1.").all(|(got, want)| got == want) {
            return Err(HttpError::bad_request("this is not HTTP/1"));
        }
        self.advance(buf, max_head)
    }

    fn advance(&mut self, buf: &[u8], max_head: usize) -> Result<Option<usize>, HttpError> {
        let within = &buf[..buf.len().min(max_head)];
        match self.find(within)? {
            None if buf.len() >= max_head => Err(too_long(within)),
            end => Ok(end),
        }
    }

    fn find(&mut self, buf: &[u8]) -> Result<Option<usize>, HttpError> {
        let from = self.scanned.min(buf.len());
        for at in (from..buf.len()).filter(|at| buf[*at] == b'\n') {
            let line = &buf[..=at];
            if line.ends_with(b"\r\n\r\n") {
                return Ok(Some(at + 1));
            }
            if !line.ends_with(b"\r\n") {
                return Err(BARE_LINE_FEED);
            }
        }
        self.scanned = buf.len();
        Ok(None)
    }
}

const BARE_LINE_FEED: HttpError = HttpError::bad_request("a line ends without a carriage return");

fn too_long(buf: &[u8]) -> HttpError {
    if skip_empty_line(buf).contains(&b'\n') {
        HttpError::new(
            StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            "the header fields are too large",
        )
    } else {
        HttpError::new(StatusCode::URI_TOO_LONG, "the request line is too long")
    }
}

/// Whether these first bytes can still become a request line: a method, then a space.
///
/// RFC 9112 §2.2: a server "SHOULD ignore at least one empty line (CRLF) received prior to the
/// request-line". One is ignored, here and in [`parse_request`].
fn looks_like_http(buf: &[u8]) -> bool {
    buf == b"\r" || starts_with_method(skip_empty_line(buf))
}

fn starts_with_method(buf: &[u8]) -> bool {
    let start = &buf[..buf.len().min(MAX_METHOD + 1)];
    match start.iter().position(|b| !is_tchar(*b)) {
        Some(end) => end > 0 && start[end] == b' ',
        None => start.len() <= MAX_METHOD,
    }
}

fn skip_empty_line(buf: &[u8]) -> &[u8] {
    buf.strip_prefix(b"\r\n").unwrap_or(buf)
}

/// Parses a whole request head, as [`HeadScan::request`] found it. The request's body is left
/// empty.
///
/// Every request passes here, upgrade or not, and with it every rule on framing and `Host`.
pub(crate) fn parse_request(
    head: &[u8],
    max_headers: usize,
    remote: RemoteAddr,
) -> Result<Request, HttpError> {
    let head = skip_empty_line(head);
    if !starts_with_method(head) {
        return Err(HttpError::bad_request(
            "the request line does not begin with a method",
        ));
    }
    check_line_ends(head)?;
    let mut slots = header_slots(head, max_headers);
    let mut parsed = httparse::Request::new(&mut slots);
    whole(parsed.parse(head), head)?;
    let (Some(method), Some(target), Some(minor)) = (parsed.method, parsed.path, parsed.version)
    else {
        return Err(INCOMPLETE);
    };
    let method = Method::from_bytes(method.as_bytes())
        .map_err(|_| HttpError::bad_request("the method is invalid"))?;
    let version = version_of(minor);
    check_target(&method, target)?;
    let headers = header_map(parsed.headers)?;
    check_host(&headers, version)?;
    let request = Request::new(method, target, headers, Bytes::new(), remote);
    let mut request = request.ok_or(TOO_MANY_HEADERS)?;
    request.set_version(version);
    Ok(request)
}

/// The head of a response, as a client sees it.
#[derive(Clone, Debug)]
pub(crate) struct ResponseHead {
    pub(crate) version: Version,
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
}

/// Parses a whole response head, as [`HeadScan::response`] found it.
pub(crate) fn parse_response(head: &[u8], max_headers: usize) -> Result<ResponseHead, HttpError> {
    check_line_ends(head)?;
    let mut slots = header_slots(head, max_headers);
    let mut parsed = httparse::Response::new(&mut slots);
    whole(parsed.parse(head), head)?;
    let (Some(minor), Some(code)) = (parsed.version, parsed.code) else {
        return Err(INCOMPLETE);
    };
    Ok(ResponseHead {
        version: version_of(minor),
        status: StatusCode::from_u16(code)
            .map_err(|_| HttpError::bad_request("the status is out of range"))?,
        headers: header_map(parsed.headers)?,
    })
}

const INCOMPLETE: HttpError =
    HttpError::bad_request("the head is incomplete or goes on past its end");

/// RFC 9112 §2.2 lets a recipient take a lone LF for a line end, and httparse does; a recipient in
/// front of us may not, and then the two see different headers.
fn check_line_ends(head: &[u8]) -> Result<(), HttpError> {
    let mut pairs = head.windows(2);
    if pairs.any(|pair| pair[1] == b'\n' && pair[0] != b'\r') {
        return Err(BARE_LINE_FEED);
    }
    Ok(())
}

/// Room for `max_headers`, but for no more than can stand in `head` (`a:\r\n` is the shortest).
fn header_slots(head: &[u8], max_headers: usize) -> Vec<httparse::Header<'_>> {
    vec![httparse::EMPTY_HEADER; max_headers.min(head.len() / 4)]
}

/// Requires that the parser took the head to its last byte.
fn whole(outcome: httparse::Result<usize>, head: &[u8]) -> Result<(), HttpError> {
    use httparse::Error;
    match outcome {
        Ok(httparse::Status::Complete(len)) if len == head.len() => Ok(()),
        Ok(_) => Err(INCOMPLETE),
        Err(Error::TooManyHeaders) => Err(TOO_MANY_HEADERS),
        Err(Error::Version) if names_a_version(head) => Err(HttpError::new(
            StatusCode::HTTP_VERSION_NOT_SUPPORTED,
            "only HTTP/1.1 and HTTP/1.0 are spoken here",
        )),
        Err(Error::HeaderName) => Err(HttpError::bad_request("a header name is invalid")),
        Err(Error::HeaderValue) => Err(HttpError::bad_request("a header value is invalid")),
        Err(_) => Err(HttpError::bad_request("the first line is malformed")),
    }
}

const TOO_MANY_HEADERS: HttpError = HttpError::new(
    StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
    "there are too many header fields",
);

/// Whether the first line is a method, a target and `HTTP/` DIGIT `.` DIGIT, as opposed to anything else.
fn names_a_version(head: &[u8]) -> bool {
    let line = head.split(|b| *b == b'\r').next().unwrap_or_default();
    let mut words = line.split(|b| *b == b' ');
    let target = words.nth(1).is_some_and(|target| !target.is_empty());
    let version = words.next().unwrap_or_default();
    let named = matches!(version, [b'H', b'T', b'T', b'P', b'/', major, b'.', minor]
        if major.is_ascii_digit() && minor.is_ascii_digit());
    target && named && words.next().is_none()
}

fn version_of(minor: u8) -> Version {
    match minor {
        0 => Version::HTTP_10,
        _ => Version::HTTP_11,
    }
}

/// Origin form or absolute form (RFC 9112 §3.2).
///
/// The other two belong to `CONNECT` and `OPTIONS *`, which no resource here can ever support: 501,
/// by RFC 9110 §9.1.
fn check_target(method: &Method, target: &str) -> Result<(), HttpError> {
    if *method == Method::CONNECT || target == "*" {
        return Err(HttpError::new(
            StatusCode::NOT_IMPLEMENTED,
            "this server is no proxy and has no server-wide options",
        ));
    }
    let valid = match split_target(target) {
        (Some(authority), _) => is_authority(authority.as_bytes()) && is_uri_text(target),
        (None, path) => is_origin_form(path),
    };
    valid
        .then_some(())
        .ok_or(HttpError::bad_request("the request target is invalid"))
}

/// A path with or without a query. Characters that a URI should escape but browsers do not (`|`,
/// `^`, `{`) are let through.
pub(crate) fn is_origin_form(target: &str) -> bool {
    target.starts_with('/') && is_uri_text(target)
}

/// Visible ASCII, and no fragment: RFC 6455 §3 has "fragment identifiers [...] MUST NOT be used".
fn is_uri_text(text: &str) -> bool {
    text.bytes().all(|b| b.is_ascii_graphic() && b != b'#')
}

/// RFC 9112 §3.2: "A server MUST respond with a 400 (Bad Request) status code to any HTTP/1.1
/// request message that lacks a Host header field and to any request message that contains more
/// than one Host header field line or a Host header field with an invalid field value."
fn check_host(headers: &HeaderMap, version: Version) -> Result<(), HttpError> {
    let mut hosts = headers.get_all(header::HOST).iter();
    match (hosts.next(), hosts.next()) {
        (Some(host), None) if is_authority(host.as_bytes()) => Ok(()),
        (None, _) if version == Version::HTTP_10 => Ok(()),
        _ => Err(HttpError::bad_request("exactly one valid Host is required")),
    }
}

/// `uri-host [ ":" port ]`, not empty and without user info (RFC 9110 §4.2.1 and §4.2.4 want both
/// refused).
pub(crate) fn is_authority(text: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(text) else {
        return false;
    };
    if let Some((ip, port)) = text.strip_prefix('[').and_then(|t| t.split_once(']')) {
        return ip.parse::<Ipv6Addr>().is_ok() && is_port(port);
    }
    let (name, port) = text.split_at(text.find(':').unwrap_or(text.len()));
    !name.is_empty() && name.bytes().all(is_host_byte) && is_port(port)
}

/// Empty, or a colon and any number of digits (RFC 3986 §3.2.3).
fn is_port(text: &str) -> bool {
    let digits = text.strip_prefix(':').unwrap_or_default();
    (text.is_empty() || text.starts_with(':')) && digits.bytes().all(|b| b.is_ascii_digit())
}

/// `unreserved`, `sub-delims` or the `%` of an escape (RFC 3986 §3.2.2).
fn is_host_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._~!$&'()*+,;=%".contains(&byte)
}

/// Values stay the bytes they are.
fn header_map(parsed: &[httparse::Header<'_>]) -> Result<HeaderMap, HttpError> {
    let mut headers = HeaderMap::try_with_capacity(parsed.len()).map_err(|_| TOO_MANY_HEADERS)?;
    for field in parsed {
        let name = HeaderName::from_bytes(field.name.as_bytes());
        let name = name.map_err(|_| HttpError::bad_request("a header name is invalid"))?;
        let value = HeaderValue::from_bytes(field.value);
        let value = value.map_err(|_| HttpError::bad_request("a header value is invalid"))?;
        headers
            .try_append(name, value)
            .map_err(|_| TOO_MANY_HEADERS)?;
    }
    Ok(headers)
}

/// How many bytes of body follow the head. The number is the client's claim: compare it with a
/// limit (413), and allocate only for what arrives.
///
/// Any `Transfer-Encoding` is 411 rather than 501: every recipient knows `chunked`, but RFC 9112 §6.3 says
/// "A server MAY reject a request that contains a message body but not a Content-Length by
/// responding with 411 (Length Required)", and that tells the client what would work.
pub(crate) fn body_length(request: &Request) -> Result<usize, HttpError> {
    let headers = request.headers();
    let coded = headers.contains_key(header::TRANSFER_ENCODING);
    let mut lengths = headers.get_all(header::CONTENT_LENGTH).iter();
    match (lengths.next(), lengths.next(), coded) {
        (None, _, false) => Ok(0),
        (Some(length), None, false) => {
            decimal(length.as_bytes()).ok_or(HttpError::bad_request("Content-Length is invalid"))
        }
        (None, _, true) => Err(HttpError::new(
            StatusCode::LENGTH_REQUIRED,
            "a body needs a Content-Length",
        )),
        (Some(_), Some(_), false) => Err(HttpError::bad_request(
            "there is more than one Content-Length",
        )),
        (Some(_), _, true) => Err(HttpError::bad_request(
            "Content-Length and Transfer-Encoding together",
        )),
    }
}

/// `1*DIGIT` that fits: no sign, no list, no space, not empty.
fn decimal(digits: &[u8]) -> Option<usize> {
    let digits = digits.iter().all(u8::is_ascii_digit).then_some(digits)?;
    std::str::from_utf8(digits).ok()?.parse().ok()
}

/// Whether the client waits for [`CONTINUE`] before it sends the body.
///
/// RFC 9110 §10.1.1: the server "MUST send either" a final status at once or 100, but must ignore
/// the expectation "in an HTTP/1.0 request".
pub(crate) fn expects_continue(request: &Request) -> bool {
    let expects = request.headers().get(header::EXPECT);
    request.version() == Version::HTTP_11
        && expects.is_some_and(|v| v.as_bytes().eq_ignore_ascii_case(b"100-continue"))
}

/// A response as it goes out: one behind the other.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) head: Vec<u8>,
    /// The user's own bytes, wherever they are.
    pub(crate) body: Guarded<Bytes>,
}

/// Encodes a response that ends its connection. `head_only` is for the answer to `HEAD`: same head,
/// no body.
///
/// Nothing in it can break a line: names and values are validated types.
pub(crate) fn encode_response(response: &Response, head_only: bool) -> Answer {
    let status = final_status(response.status());
    let body = match status {
        StatusCode::NO_CONTENT | StatusCode::RESET_CONTENT | StatusCode::NOT_MODIFIED => {
            Bytes::new()
        }
        _ => response.content().clone(),
    };
    let mut head = Vec::with_capacity(256);
    let out = &mut head;
    write_start(status, out);
    let headers = response.headers().iter();
    for (name, value) in headers.filter(|(name, _)| !is_framing(name)) {
        write_header(name.as_str(), value.as_bytes(), out);
    }
    write_connection(status, response.headers(), out);
    // RFC 9110 §8.6: "A server MUST NOT send a Content-Length header field in any response with a
    // status code of 1xx (Informational) or 204 (No Content)"; with 304 it would have to be the
    // length of the full answer.
    if !matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED) {
        write_header("Content-Length", body.len().to_string().as_bytes(), out);
    }
    out.extend_from_slice(b"\r\n");
    let body = Guarded::new(if head_only { Bytes::new() } else { body });
    Answer { head, body }
}

/// An interim status is no answer, and a 101 made by hand would have a proxy tunnel what follows.
fn final_status(status: StatusCode) -> StatusCode {
    if status.is_informational() {
        return StatusCode::INTERNAL_SERVER_ERROR;
    }
    status
}

fn write_start(status: StatusCode, out: &mut Vec<u8>) {
    let reason = status.canonical_reason().unwrap_or_default();
    // RFC 9112 §4: the space before the reason stays when there is none. Writing to a Vec cannot
    // fail.
    let _ = write!(out, "HTTP/1.1 {} {reason}\r\n", status.as_str());
}

/// RFC 9110 §7.8: "A sender of Upgrade MUST also send an "Upgrade" connection option", and
/// §15.5.22: "The server MUST send an Upgrade header field in a 426 response". `close` comes along
/// so that no proxy keeps a tunnel to a connection that was not upgraded.
fn write_connection(status: StatusCode, headers: &HeaderMap, out: &mut Vec<u8>) {
    let mut upgrades = headers.contains_key(header::UPGRADE);
    if status == StatusCode::UPGRADE_REQUIRED && !upgrades {
        write_header("Upgrade", b"websocket", out);
        upgrades = true;
    }
    let options = if upgrades { "close, Upgrade" } else { "close" };
    write_header("Connection", options.as_bytes(), out);
}

/// Headers that say where a message ends and what becomes of the connection: ours to write, whoever
/// sets them.
pub(crate) fn is_framing(name: &HeaderName) -> bool {
    *name == header::CONNECTION
        || *name == header::CONTENT_LENGTH
        || *name == header::TRANSFER_ENCODING
}

/// Appends one header line; the caller knows that neither part holds CR or LF.
pub(crate) fn write_header(name: &str, value: &[u8], out: &mut Vec<u8>) {
    for part in [name.as_bytes(), b": ", value, b"\r\n"] {
        out.extend_from_slice(part);
    }
}

/// The items of a comma-separated list, over all headers of that name, trimmed and without the
/// empty ones.
///
/// RFC 9110 §5.6.1.2: "A recipient MUST parse and ignore a reasonable number of empty list
/// elements". One pass.
pub(crate) fn list_items(headers: &HeaderMap, name: HeaderName) -> impl Iterator<Item = &[u8]> {
    let values = headers.get_all(name).into_iter();
    values
        .flat_map(|value| value.as_bytes().split(|b| *b == b','))
        .map(<[u8]>::trim_ascii)
        .filter(|item| !item.is_empty())
}

/// Whether such a list contains `token`, in any case.
pub(crate) fn has_token(headers: &HeaderMap, name: HeaderName, token: &str) -> bool {
    list_items(headers, name).any(|item| item.eq_ignore_ascii_case(token.as_bytes()))
}

/// The value of a header that stands exactly once.
pub(crate) fn exactly_one(headers: &HeaderMap, name: HeaderName) -> Option<&HeaderValue> {
    let mut values = headers.get_all(name).into_iter();
    values.next().filter(|_| values.next().is_none())
}

/// RFC 9110 §5.6.2: `token = 1*tchar`.
pub(crate) fn is_token(text: &[u8]) -> bool {
    !text.is_empty() && text.iter().all(|b| is_tchar(*b))
}

pub(crate) fn is_tchar(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

#[cfg(test)]
mod tests;
