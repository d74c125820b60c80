//! The client's half of the opening handshake (RFC 6455 §4.1) as pure data.
//!
//! [`ClientRequest::write`], then [`verify`] with the head that came back, as
//! [`HeadScan::response`](super::http::HeadScan::response) found it.
//!
//! Absent: redirects, authentication and proxies.
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, Version, header};
use tungstenite::handshake::{client::generate_key, derive_accept_key};

use super::extension::{Extension, Malformed, parse_extensions};
use super::handshake::{is_key, write_extra, write_fields};
use super::http::{
    ResponseHead, exactly_one, has_token, is_authority, is_origin_form, is_token, parse_response,
};

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
                "a subprotocol is offered twice",
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
    #[cfg_attr(
        not(any(test, feature = "deflate")),
        expect(dead_code, reason = "read by permessage-deflate")
    )]
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

#[cfg(test)]
mod tests;
