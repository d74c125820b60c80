//! The server's half of the opening handshake (RFC 6455 §4.2) as pure data.
//!
//! After `parse_request`:
//!
//! 1. [`wants_upgrade`] decides between a WebSocket and a plain request;
//! 2. [`check`] applies every rule of §4.2.1, and gives the [`Upgrade`] or the answer to send;
//! 3. the handler has its say, and [`choose_subprotocol`] holds it to what the client offered;
//! 4. [`accept_response`] writes the 101. From the next byte on, frames are spoken.
//!
//! All header parsing takes one pass over the bytes and keeps no more than a bounded number of
//! items, whatever they are called. Absent: the policy on `Origin` and everything else a server may
//! choose, and bytes behind the head, which belong to the caller.

use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Version, header};
use tungstenite::handshake::derive_accept_key;

use super::extension::{Extension, Malformed, parse_extensions};
use super::http::{
    HttpError, body_length, exactly_one, has_token, is_framing, is_token, list_items, write_header,
};
use crate::http::Request;

/// What a checked handshake leaves to be done.
#[derive(Clone, Debug)]
pub(crate) struct Upgrade {
    /// The value of `Sec-WebSocket-Accept`.
    accept: String,
    /// The extensions the client offers, in its order of preference.
    #[cfg_attr(
        not(any(test, feature = "deflate")),
        expect(dead_code, reason = "read by permessage-deflate")
    )]
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
pub(super) fn is_key(key: &[u8]) -> bool {
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

/// The first of these that the client offers, in the client's own spelling; `None` if it offers none of
/// them.
pub(crate) fn first_offered<'r>(request: &'r Request, preferred: &[String]) -> Option<&'r str> {
    let offered = |name: &String| request.subprotocols().find(|offer| offer == name);
    preferred.iter().find_map(offered)
}

/// Appends the 101 that opens the WebSocket.
///
/// `subprotocol` comes from [`choose_subprotocol`] or [`first_offered`]; `extensions` is what was agreed
/// to, as it is to be sent, and is trusted to be one line. Headers in `extra` that the handshake itself
/// writes are left out.
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
pub(super) fn write_fields(fields: &[(&str, Option<&str>)], out: &mut Vec<u8>) {
    for (name, value) in fields {
        if let Some(value) = value.filter(|value| !value.is_empty()) {
            write_header(name, value.as_bytes(), out);
        }
    }
}

/// The user's headers, less those of the handshake, and the empty line that ends the head.
pub(super) fn write_extra(
    extra: &HeaderMap,
    wanted: impl Fn(&HeaderName) -> bool,
    out: &mut Vec<u8>,
) {
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

#[cfg(test)]
pub(super) mod tests;
