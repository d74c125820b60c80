//! The opening handshake (RFC 6455 §4) as pure data, for both roles.
//!
//! On the server, after `parse_request`:
//!
//! 1. [`wants_upgrade`] decides between a WebSocket and a plain request;
//! 2. [`check`] applies every rule of §4.2.1, and gives the [`Upgrade`] or the answer to send;
//! 3. the handler has its say, and [`choose_subprotocol`] holds it to what the client offered;
//! 4. [`accept_response`] writes the 101. From the next byte on, frames are spoken.
//!
//! On the client, [`ClientRequest::write`] and then [`verify`] with the head that came back.
//!
//! All header parsing takes one pass over the bytes and keeps no more than a bounded number of
//! items, whatever they are called. What an extension's parameters mean is the extension's own
//! business. Absent: the policy on `Origin` and everything else a server may choose, redirects and
//! authentication on the client, and bytes behind the head, which belong to the caller.

use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Version, header};
use tungstenite::handshake::{client::generate_key, derive_accept_key};

use crate::http::Request;
use crate::proto::http::{
    HttpError, ResponseHead, body_length, exactly_one, has_token, is_authority, is_framing,
    is_origin_form, is_tchar, is_token, list_items, parse_response, write_header,
};

/// What a checked handshake leaves to be done.
#[derive(Clone, Debug)]
pub(crate) struct Upgrade {
    /// The value of `Sec-WebSocket-Accept`.
    accept: String,
    /// The extensions the client offers, in its order of preference.
    pub(crate) offers: Vec<Extension>,
}

/// Whether this request asks for a WebSocket, well or badly; all others are plain HTTP.
///
/// RFC 9110 §7.8: "A server MUST ignore an Upgrade header field that is received in an HTTP/1.0
/// request."
pub(crate) fn wants_upgrade(request: &Request) -> bool {
    request.version() == Version::HTTP_11
        && has_token(request.headers(), header::UPGRADE, "websocket")
}

/// Checks a client's opening handshake.
///
/// RFC 6455 §4.2.1: on anything that does not match, "the server MUST stop processing the client's
/// handshake and return an HTTP response with an appropriate error code".
pub(crate) fn check(request: &Request) -> Result<Upgrade, HttpError> {
    let headers = request.headers();
    check_upgrade(request)?;
    check_version(headers)?;
    let key = exactly_one(headers, header::SEC_WEBSOCKET_KEY)
        .map(HeaderValue::as_bytes)
        .filter(|key| is_key(key))
        .ok_or(HttpError::bad_request(
            "exactly one valid Sec-WebSocket-Key is required",
        ))?;
    check_origin(headers)?;
    if body_length(request) != Ok(0) {
        return Err(HttpError::bad_request("an upgrade may not have a body"));
    }
    if !list_items(headers, header::SEC_WEBSOCKET_PROTOCOL).all(is_token) {
        return Err(HttpError::bad_request(
            "Sec-WebSocket-Protocol is malformed",
        ));
    }
    let offers = parse_extensions(headers.get_all(header::SEC_WEBSOCKET_EXTENSIONS))
        .map_err(|Malformed| HttpError::bad_request("Sec-WebSocket-Extensions is malformed"))?;
    Ok(Upgrade {
        accept: derive_accept_key(key),
        offers,
    })
}

/// §4.2.1, items 1 to 4: the request line, `Host`, `Upgrade`, `Connection`.
fn check_upgrade(request: &Request) -> Result<(), HttpError> {
    let headers = request.headers();
    if request.method() != Method::GET {
        return Err(HttpError::new(
            StatusCode::METHOD_NOT_ALLOWED,
            "a WebSocket is opened with GET",
        ));
    }
    if request.version() != Version::HTTP_11 {
        return Err(HttpError::bad_request(
            "a WebSocket is opened over HTTP/1.1",
        ));
    }
    if exactly_one(headers, header::HOST).is_none() {
        return Err(HttpError::bad_request("exactly one Host is required"));
    }
    if !has_token(headers, header::UPGRADE, "websocket") {
        return Err(HttpError::bad_request("Upgrade does not name websocket"));
    }
    if !has_token(headers, header::CONNECTION, "upgrade") {
        return Err(HttpError::bad_request("Connection does not name Upgrade"));
    }
    Ok(())
}

/// §4.2.2: on another version the server must "send an appropriate HTTP error code (such as 426
/// Upgrade Required)" with the version it knows. None at all, or two, is no question of versions:
/// 400.
fn check_version(headers: &HeaderMap) -> Result<(), HttpError> {
    match exactly_one(headers, header::SEC_WEBSOCKET_VERSION) {
        Some(version) if version == "13" => Ok(()),
        Some(_) => Err(HttpError::new(
            StatusCode::UPGRADE_REQUIRED,
            "only version 13 of WebSocket is spoken here",
        )),
        None => Err(HttpError::bad_request(
            "exactly one Sec-WebSocket-Version is required",
        )),
    }
}

/// None or one, and readable: an `Origin` that [`Request::origin`] cannot show would pass for none.
fn check_origin(headers: &HeaderMap) -> Result<(), HttpError> {
    let readable = |value: &HeaderValue| value.to_str().is_ok();
    let sound = match exactly_one(headers, header::ORIGIN) {
        Some(origin) => readable(origin),
        None => !headers.contains_key(header::ORIGIN),
    };
    sound
        .then_some(())
        .ok_or(HttpError::bad_request("Origin is repeated or malformed"))
}

/// §4.2.1: a "value that, when decoded, is 16 bytes in length": 22 characters and `==`.
///
/// The last character has four bits that no byte uses; they need not be zero, since the key is
/// never decoded, only hashed as it came.
fn is_key(key: &[u8]) -> bool {
    let base64 = |b: &u8| b.is_ascii_alphanumeric() || *b == b'+' || *b == b'/';
    key.len() == 24 && key.ends_with(b"==") && key[..22].iter().all(base64)
}

/// The client's own spelling of the subprotocol that the handler chose.
///
/// RFC 6455 §4.2.2: the value is "derived from the client's handshake"; a client fails the
/// connection on any other (§4.1), so choosing one that was not offered is the handler's mistake.
pub(crate) fn choose_subprotocol<'r>(
    request: &'r Request,
    chosen: &str,
) -> Result<&'r str, HttpError> {
    let mut offered = request.subprotocols();
    offered.find(|offer| *offer == chosen).ok_or(HttpError::new(
        StatusCode::INTERNAL_SERVER_ERROR,
        "the server chose a subprotocol that was not offered",
    ))
}

/// Appends the 101 that opens the WebSocket.
///
/// `subprotocol` comes from [`choose_subprotocol`]; `extensions` is what was agreed to, as it is to be
/// sent, and is trusted to be one line. Headers in `extra` that the handshake itself writes are left
/// out.
pub(crate) fn accept_response(
    upgrade: &Upgrade,
    subprotocol: Option<&str>,
    extensions: Option<&str>,
    extra: &HeaderMap,
    out: &mut Vec<u8>,
) {
    debug_assert!(subprotocol.is_none_or(|name| is_token(name.as_bytes())));
    out.extend_from_slice(b"HTTP/1.1 101 Switching Protocols\r\n");
    write_fields(
        &[
            ("Upgrade", Some("websocket")),
            ("Connection", Some("Upgrade")),
            ("Sec-WebSocket-Accept", Some(&upgrade.accept)),
            ("Sec-WebSocket-Protocol", subprotocol),
            ("Sec-WebSocket-Extensions", extensions),
        ],
        out,
    );
    write_extra(extra, |_| true, out);
}

/// Header lines for the fields that have a value; an empty one counts as none.
fn write_fields(fields: &[(&str, Option<&str>)], out: &mut Vec<u8>) {
    for (name, value) in fields {
        if let Some(value) = value.filter(|value| !value.is_empty()) {
            write_header(name, value.as_bytes(), out);
        }
    }
}

/// The user's headers, less those of the handshake, and the empty line that ends the head.
fn write_extra(extra: &HeaderMap, wanted: impl Fn(&HeaderName) -> bool, out: &mut Vec<u8>) {
    for (name, value) in extra {
        if !is_reserved(name) && wanted(name) {
            write_header(name.as_str(), value.as_bytes(), out);
        }
    }
    out.extend_from_slice(b"\r\n");
}

/// Headers that only the handshake may write.
fn is_reserved(name: &HeaderName) -> bool {
    is_framing(name) || *name == header::UPGRADE || name.as_str().starts_with("sec-websocket-")
}

/// A fresh `Sec-WebSocket-Key`: 16 random bytes in base64.
pub(crate) fn new_key() -> String {
    generate_key()
}

/// A client's opening handshake. Not `Debug`: its headers carry credentials.
#[derive(Clone)]
pub(crate) struct ClientRequest {
    /// Host, with the port unless it is the scheme's default; an IPv6 address in brackets.
    pub(crate) host: String,
    /// Path and query.
    pub(crate) target: String,
    /// From [`new_key`], a new one for each connection.
    pub(crate) key: String,
    /// For clients that act for a web page.
    pub(crate) origin: Option<String>,
    /// In order of preference.
    pub(crate) subprotocols: Vec<String>,
    /// The value of `Sec-WebSocket-Extensions`: what is offered, in order of preference.
    pub(crate) extensions: Option<String>,
    /// Anything else, such as `Authorization`; headers of the handshake itself are left out.
    pub(crate) headers: HeaderMap,
}

impl ClientRequest {
    /// Appends the request, or says what is wrong with it (RFC 6455 §4.1, items 1 to 12).
    ///
    /// The strings often come from a URL that someone else chose; none of them can break out of its
    /// line.
    pub(crate) fn write(&self, out: &mut Vec<u8>) -> Result<(), &'static str> {
        self.check()?;
        for part in ["GET ", &self.target, " HTTP/1.1\r\n"] {
            out.extend_from_slice(part.as_bytes());
        }
        let subprotocols = self.subprotocols.join(", ");
        write_fields(
            &[
                ("Host", Some(&self.host)),
                ("Upgrade", Some("websocket")),
                ("Connection", Some("Upgrade")),
                ("Sec-WebSocket-Key", Some(&self.key)),
                ("Sec-WebSocket-Version", Some("13")),
                ("Origin", self.origin.as_deref()),
                ("Sec-WebSocket-Protocol", Some(&subprotocols)),
                ("Sec-WebSocket-Extensions", self.extensions.as_deref()),
            ],
            out,
        );
        let origin_is_set = self.origin.is_some();
        let wanted = |name: &HeaderName| {
            *name != header::HOST && !(origin_is_set && *name == header::ORIGIN)
        };
        write_extra(&self.headers, wanted, out);
        Ok(())
    }

    fn check(&self) -> Result<(), &'static str> {
        let unique = |(at, name): (usize, &String)| !self.subprotocols[..at].contains(name);
        let rules = [
            (is_authority(self.host.as_bytes()), "the host is invalid"),
            (is_origin_form(&self.target), "the path is invalid"),
            (is_key(self.key.as_bytes()), "the key is invalid"),
            (
                self.origin
                    .as_deref()
                    .is_none_or(|o| HeaderValue::from_str(o).is_ok()),
                "the origin is invalid",
            ),
            (
                self.subprotocols
                    .iter()
                    .all(|name| is_token(name.as_bytes())),
                "a subprotocol is invalid",
            ),
            (
                self.subprotocols.iter().enumerate().all(unique),
                "a subprotocol stands twice",
            ),
            (self.offers().is_ok(), "the extensions are malformed"),
        ];
        let broken = rules.iter().find(|(holds, _)| !holds);
        broken.map_or(Ok(()), |(_, why)| Err(why))
    }

    fn offers(&self) -> Result<Vec<Extension>, Malformed> {
        let value = self
            .extensions
            .as_deref()
            .map(HeaderValue::from_str)
            .transpose();
        parse_extensions(value.map_err(|_| Malformed)?.iter())
    }
}

/// What the server agreed to.
#[derive(Clone, Debug)]
pub(crate) struct Accepted {
    /// One of those asked for.
    pub(crate) subprotocol: Option<String>,
    /// Each was offered by name and stands once; their parameters are still to be checked.
    pub(crate) extensions: Vec<Extension>,
    /// All headers of the response.
    pub(crate) headers: HeaderMap,
}

/// Why there is no WebSocket.
#[derive(Clone, Debug)]
pub(crate) enum ClientRefused {
    /// The server answered with another status than 101: a refusal, a redirect, or (below 200) an
    /// interim response with the real head still to come.
    Status(ResponseHead),
    /// What came back breaks HTTP or the handshake.
    Invalid(&'static str),
}

/// Checks the head of the server's answer (RFC 6455 §4.1, second list).
pub(crate) fn verify(
    request: &ClientRequest,
    head: &[u8],
    max_headers: usize,
) -> Result<Accepted, ClientRefused> {
    let response = parse_response(head, max_headers).map_err(|e| ClientRefused::Invalid(e.why))?;
    // "If the status code received from the server is not 101, the client handles the response per
    // HTTP [RFC2616] procedures."
    if response.status != StatusCode::SWITCHING_PROTOCOLS {
        return Err(ClientRefused::Status(response));
    }
    accepted(request, response).map_err(ClientRefused::Invalid)
}

fn accepted(request: &ClientRequest, response: ResponseHead) -> Result<Accepted, &'static str> {
    let headers = response.headers;
    if response.version != Version::HTTP_11 {
        return Err("the server switched protocols in HTTP/1.0");
    }
    if !exactly_one(&headers, header::UPGRADE)
        .is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"websocket"))
    {
        return Err("the server did not upgrade to websocket");
    }
    if !has_token(&headers, header::CONNECTION, "upgrade") {
        return Err("Connection does not name Upgrade");
    }
    let accept = derive_accept_key(request.key.as_bytes());
    if exactly_one(&headers, header::SEC_WEBSOCKET_ACCEPT).is_none_or(|value| *value != accept) {
        return Err("Sec-WebSocket-Accept does not answer the key");
    }
    Ok(Accepted {
        subprotocol: agreed_subprotocol(request, &headers)?,
        extensions: agreed_extensions(request, &headers)?,
        headers,
    })
}

/// "a subprotocol that was not present in the client's handshake" fails the connection, and so do
/// two (§11.3.4: the header "MUST NOT appear more than once in an HTTP response").
fn agreed_subprotocol(
    request: &ClientRequest,
    headers: &HeaderMap,
) -> Result<Option<String>, &'static str> {
    if !headers.contains_key(header::SEC_WEBSOCKET_PROTOCOL) {
        return Ok(None);
    }
    let chosen = exactly_one(headers, header::SEC_WEBSOCKET_PROTOCOL)
        .and_then(|chosen| request.subprotocols.iter().find(|name| chosen == *name));
    match chosen {
        Some(name) => Ok(Some(name.clone())),
        None => Err("the server chose a subprotocol that was not offered"),
    }
}

/// "an extension that was not present in the client's handshake" fails the connection.
fn agreed_extensions(
    request: &ClientRequest,
    headers: &HeaderMap,
) -> Result<Vec<Extension>, &'static str> {
    let malformed = |Malformed| "Sec-WebSocket-Extensions is malformed";
    let offers = request.offers().map_err(malformed)?;
    let agreed =
        parse_extensions(headers.get_all(header::SEC_WEBSOCKET_EXTENSIONS)).map_err(malformed)?;
    for (at, extension) in agreed.iter().enumerate() {
        let same = |other: &Extension| other.name == extension.name;
        if !offers.iter().any(same) {
            return Err("the server chose an extension that was not offered");
        }
        if agreed[..at].iter().any(same) {
            return Err("the server chose an extension twice");
        }
    }
    Ok(agreed)
}

/// One element of `Sec-WebSocket-Extensions`, not interpreted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Extension {
    pub(crate) name: String,
    /// In order, repetitions kept; values are tokens, with or without quotes.
    pub(crate) params: Vec<(String, Option<String>)>,
}

/// The header breaks the grammar of RFC 6455 §9.1 or the limits below.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Malformed;

/// Browsers offer one; a client that lists alternatives for permessage-deflate offers a handful.
const MAX_EXTENSIONS: usize = 16;
/// permessage-deflate knows four.
const MAX_PARAMS: usize = 16;

/// Parses the extension list that all these headers make together (RFC 6455 §9.1).
///
/// Empty elements between commas are skipped, and white space is let through around separators as
/// RFC 2616 did, whose grammar §9.1 borrows.
pub(crate) fn parse_extensions<'h>(
    values: impl IntoIterator<Item = &'h HeaderValue>,
) -> Result<Vec<Extension>, Malformed> {
    let mut extensions = Vec::new();
    for value in values {
        let mut cursor = Cursor {
            rest: value.as_bytes(),
        };
        while !cursor.at_end() {
            if cursor.eat(b',') {
                continue;
            }
            if extensions.len() == MAX_EXTENSIONS {
                return Err(Malformed);
            }
            extensions.push(cursor.extension()?);
            if !cursor.at_end() && !cursor.eat(b',') {
                return Err(Malformed);
            }
        }
    }
    Ok(extensions)
}

/// A tokenizer that only ever goes forward: each byte is consumed once or ends the parse.
struct Cursor<'a> {
    rest: &'a [u8],
}

impl<'a> Cursor<'a> {
    /// `extension = token *( ";" param )`
    fn extension(&mut self) -> Result<Extension, Malformed> {
        let name = self.token()?;
        let mut params = Vec::new();
        while self.eat(b';') {
            if params.len() == MAX_PARAMS {
                return Err(Malformed);
            }
            params.push(self.param()?);
        }
        Ok(Extension { name, params })
    }

    /// `param = token [ "=" ( token | quoted-string ) ]`
    fn param(&mut self) -> Result<(String, Option<String>), Malformed> {
        let name = self.token()?;
        let value = match self.eat(b'=') {
            true if self.eat(b'"') => Some(self.quoted()?),
            true => Some(self.token()?),
            false => None,
        };
        Ok((name, value))
    }

    fn token(&mut self) -> Result<String, Malformed> {
        self.skip_space();
        let end = self.rest.iter().position(|b| !is_tchar(*b));
        let (token, rest) = self.rest.split_at(end.unwrap_or(self.rest.len()));
        self.rest = rest;
        text(token)
    }

    /// Behind the opening quote. "When using the quoted-string syntax variant, the value after
    /// quoted-string unescaping MUST conform to the 'token' ABNF."
    fn quoted(&mut self) -> Result<String, Malformed> {
        let mut value = Vec::new();
        loop {
            match self.next().ok_or(Malformed)? {
                b'"' => return text(&value),
                b'\\' => value.push(self.next().ok_or(Malformed)?),
                byte => value.push(byte),
            }
        }
    }

    fn eat(&mut self, byte: u8) -> bool {
        self.skip_space();
        let tail = self.rest.strip_prefix(&[byte]);
        self.rest = tail.unwrap_or(self.rest);
        tail.is_some()
    }

    fn at_end(&mut self) -> bool {
        self.skip_space();
        self.rest.is_empty()
    }

    fn skip_space(&mut self) {
        self.rest = self.rest.trim_ascii_start();
    }

    fn next(&mut self) -> Option<u8> {
        let (first, rest) = self.rest.split_first()?;
        self.rest = rest;
        Some(*first)
    }
}

fn text(token: &[u8]) -> Result<String, Malformed> {
    match std::str::from_utf8(token) {
        Ok(text) if is_token(token) => Ok(text.to_owned()),
        _ => Err(Malformed),
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use proptest::prelude::*;
    use tungstenite::client::IntoClientRequest;
    use tungstenite::handshake::machine::TryParse;
    use tungstenite::handshake::{client, server};

    use super::*;
    use crate::addr::RemoteAddr;
    use crate::http::Response;
    use crate::proto::http::{HeadScan, parse_request};

    /// The example of RFC 6455 §1.3.
    const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";
    const ACCEPT: &str = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";
    const SOUND: &str = "GET /chat HTTP/1.1\r\nHost: server.example.com\r\nUpgrade: websocket\r\n\
         Connection: Upgrade\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
         Origin: http://example.com\r\nSec-WebSocket-Protocol: chat, superchat\r\n\
         Sec-WebSocket-Version: 13\r\n\r\n";
    const ANSWER: &str = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\
         Connection: Upgrade\r\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";

    fn request(head: &[u8]) -> Request {
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

    fn each_replacement(table: &[(&str, &[&str])], test: impl Fn(&str, &str)) {
        for (from, replacements) in table {
            replacements.iter().for_each(|to| test(from, to));
        }
    }

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

    fn parsed(value: &str) -> Result<Vec<Extension>, Malformed> {
        parse_extensions([&HeaderValue::from_str(value).unwrap()])
    }

    fn extension(name: &str, params: &[(&str, Option<&str>)]) -> Extension {
        let owned =
            |(name, value): &(&str, Option<&str>)| ((*name).to_owned(), value.map(str::to_owned));
        Extension {
            name: name.into(),
            params: params.iter().map(owned).collect(),
        }
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

    /// Every rule of RFC 6455 §4.2.1, broken; numbers in the margin are those of SECURITY.md.
    #[test]
    fn hostile_handshakes_are_refused_with_400() {
        let table: [(&str, &[&str]); 16] = [
            ("HTTP/1.1", &["HTTP/1.0"]),
            ("Host", &["Hos", "Host: a\r\nHost"]), // 25
            ("Upgrade: websocket\r\n", &["", "Upgrade:\r\n"]), // 41
            (
                ": websocket",
                &[": websockets", ": web socket", ": \u{e9}websocket"],
            ),
            ("Connection: Upgrade\r\n", &["", "Connection:\r\n"]), // 41
            (
                ": Upgrade\r",
                &[": keep-alive\r", ": close upgrade\r", ": \"upgrade\"\r"],
            ),
            (
                "Sec-WebSocket-Key: ",
                &["X: ", "Sec-WebSocket-Key: a\r\nSec-WebSocket-Key: "],
            ), // 17
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
            ("Origin", &["Origin: http://a\r\nOrigin"]), // 60
            ("http://example.com", &["http://\u{e9}"]),
            (
                "Origin",
                &["Content-Length: 5\r\nX", "Transfer-Encoding: chunked\r\nX"],
            ), // 31
            (
                "Origin",
                &[
                    "Content-Length: +0\r\nX",
                    "Content-Length: 0\r\nContent-Length: 0\r\nX",
                ],
            ), // 9
            // 4, 16, 33; and 23 in the extensions.
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

    /// SECURITY 41 and 58: version 13 or nothing.
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
    fn meddling_headers() -> HeaderMap {
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

    /// SECURITY 33: a URL that someone else chose cannot add lines.
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
            ("a subprotocol stands twice", |r| {
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
        let x = extension("x", &[("q", Some("1"))]);
        assert_eq!(accepted.extensions, [extension("y", &[]), x]);
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
        assert!(verify(&client_request(), ANSWER.as_bytes(), 2).is_err());
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

    #[test]
    fn extension_lists() {
        let offer =
            "permessage-deflate; client_max_window_bits; server_max_window_bits=\"1\\0\", x";
        let bits = [
            ("client_max_window_bits", None),
            ("server_max_window_bits", Some("10")),
        ];
        let deflate = extension("permessage-deflate", &bits);
        assert_eq!(parsed(offer), Ok(vec![deflate, extension("x", &[])]));
        assert_eq!(parsed(""), Ok(vec![]));
        assert_eq!(parsed(" , ,"), Ok(vec![]));
        let b = extension("a", &[("b", Some("c"))]);
        assert_eq!(parsed("\ta ;\tb = c ,d"), Ok(vec![b, extension("d", &[])]));
        let twice = extension("a", &[("b", None), ("b", Some("1"))]);
        assert_eq!(parsed("a;b;b=1"), Ok(vec![twice]));
    }

    #[test]
    fn malformed_extension_lists() {
        let names = r#"; | a; | a;;b | a b | = | a=b | "a" | a/b | é"#;
        let params = r#"a;b c | a;b= | a;b=,c | a;=b | a;b=c=d | a;"b" | a;b='c,d("#;
        let quoted = r#"a;b=" | a;b="c | a;b="c\ | a;b="" | a;b="c d" | a;b="c"d | a;b="\"""#;
        for value in [names, params, quoted]
            .iter()
            .flat_map(|list| list.split(" | "))
        {
            assert_eq!(parsed(value), Err(Malformed), "{value}");
        }
    }

    /// SECURITY 15 (ws GHSA-5v72-xg48-5rpm) and 24: names and numbers are not interpreted here.
    #[test]
    fn odd_names_are_just_names() {
        let odd = "constructor; __proto__=hasOwnProperty, toString; server_max_window_bits=99";
        assert_eq!(parsed(odd).unwrap().len(), 2);
        assert_eq!(parsed(odd).unwrap()[0].name, "constructor");
    }

    #[test]
    fn extension_counts_are_bounded() {
        assert!(parsed(&"a,".repeat(MAX_EXTENSIONS)).is_ok());
        assert!(parsed(&"a,".repeat(MAX_EXTENSIONS + 1)).is_err());
        assert!(parsed(&format!("a{}", ";a".repeat(MAX_PARAMS))).is_ok());
        assert!(parsed(&format!("a{}", ";a".repeat(MAX_PARAMS + 1))).is_err());
    }

    /// SECURITY 16 (ws CVE-2021-32640), 23 (CVE-2020-7662) and 27: at this length, a parser that
    /// goes back over its input would not finish.
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
            let value = HeaderValue::from_str(&value).unwrap();
            let mut headers = request(SOUND.as_bytes()).headers().clone();
            for name in [header::UPGRADE, header::CONNECTION] {
                headers.append(name, value.clone());
            }
            headers.insert(header::SEC_WEBSOCKET_EXTENSIONS, value.clone());
            let request = Request::new(Method::GET, "/", headers, Bytes::new(), RemoteAddr::Unix);
            let _ = check(&request);
            let mut headers = request.headers().clone();
            headers.insert(header::SEC_WEBSOCKET_PROTOCOL, value);
            let request = Request::new(Method::GET, "/", headers, Bytes::new(), RemoteAddr::Unix);
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

    #[test]
    fn refusals_become_responses() {
        let head = SOUND.replace("Version: 13", "Version: 12");
        let error = check(&request(head.as_bytes())).unwrap_err();
        let response = Response::from(error);
        assert_eq!(response.status(), 426);
        assert_eq!(response.headers()[header::SEC_WEBSOCKET_VERSION], "13");
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

        /// Any value parses or is refused; what parses comes back from its canonical form.
        #[test]
        fn extensions_survive_a_round_trip(value in "[a-c ,;=\"\\\\\t]{0,24}") {
            if let Ok(extensions) = parsed(&value) {
                let item = |e: &Extension| {
                    let param = |(name, value): &(String, Option<String>)| match value {
                        Some(value) => format!(";{name}={value}"),
                        None => format!(";{name}"),
                    };
                    e.name.clone() + &e.params.iter().map(param).collect::<String>()
                };
                let canonical: Vec<_> = extensions.iter().map(item).collect();
                prop_assert_eq!(parsed(&canonical.join(",")), Ok(extensions));
            }
        }
    }
}
