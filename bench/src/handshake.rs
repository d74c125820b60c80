//! Both ends of the opening handshake (RFC 6455, section 4), as bytes.

use std::io::{Error, Result};

/// The key and the answer to it from RFC 6455, section 1.3. One key will do: servers have to hash
/// it every time.
const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";
const ACCEPT: &str = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";

/// A head longer than this is taken for garbage.
const MAX_HEAD: usize = 8 * 1024;

/// The only compression that is measured: no message may refer to those before it.
const DEFLATE: &str = "Sec-WebSocket-Extensions: permessage-deflate; \
                       server_no_context_takeover; client_no_context_takeover\r\n";

pub fn request(host: &str, deflate: bool) -> Vec<u8> {
    let extensions = if deflate { DEFLATE } else { "" };
    format!(
        "GET / HTTP/1.1\r\nHost: {host}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Key: {KEY}\r\nSec-WebSocket-Version: 13\r\n{extensions}\r\n"
    )
    .into_bytes()
}

/// The client's side: the length of the response head once it is complete, after checking that the
/// server did upgrade, and compresses if it was asked to.
pub fn check_response(received: &[u8], deflate: bool) -> Result<Option<usize>> {
    let Some(length) = head_length(received)? else {
        return Ok(None);
    };
    let head = text(&received[..length])?;
    if !head.starts_with("HTTP/1.1 101") {
        return Err(Error::other(format!(
            "upgrade refused: {}",
            head.lines().next().unwrap_or_default()
        )));
    }
    if field(head, "Sec-WebSocket-Accept") != Some(ACCEPT) {
        return Err(Error::other("wrong Sec-WebSocket-Accept"));
    }
    let extensions = field(head, "Sec-WebSocket-Extensions").unwrap_or_default();
    let wanted = ["permessage-deflate", "server_no_context_takeover"];
    if deflate && !wanted.iter().all(|word| extensions.contains(word)) {
        let text = format!("no compression without context: {extensions:?}");
        return Err(Error::other(text));
    }
    if !deflate && !extensions.is_empty() {
        return Err(Error::other("an extension that was not offered"));
    }
    Ok(Some(length))
}

/// The server's side: the length of the request head once it is complete, and the response to it.
pub fn respond(received: &[u8]) -> Result<Option<(usize, Vec<u8>)>> {
    let Some(length) = head_length(received)? else {
        return Ok(None);
    };
    let key = field(text(&received[..length])?, "Sec-WebSocket-Key")
        .ok_or_else(|| Error::other("no key"))?;
    let accept = tungstenite::handshake::derive_accept_key(key.as_bytes());
    let response = format!(
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Accept: {accept}\r\n\r\n"
    );
    Ok(Some((length, response.into_bytes())))
}

fn head_length(received: &[u8]) -> Result<Option<usize>> {
    const END: &[u8] = b"\r\n\r\n";
    let head = &received[..received.len().min(MAX_HEAD)];
    match head.windows(END.len()).position(|window| window == END) {
        Some(at) => Ok(Some(at + END.len())),
        None if head.len() == MAX_HEAD => Err(Error::other("endless HTTP head")),
        None => Ok(None),
    }
}

fn text(head: &[u8]) -> Result<&str> {
    std::str::from_utf8(head).map_err(|_| Error::other("HTTP head is not text"))
}

fn field<'a>(head: &'a str, wanted: &str) -> Option<&'a str> {
    head.lines()
        .filter_map(|line| line.split_once(':'))
        .find(|(name, _)| name.eq_ignore_ascii_case(wanted))
        .map(|(_, value)| value.trim())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_two_sides_agree() {
        let request = request("localhost", false);
        let (length, response) = respond(&request).unwrap().unwrap();
        assert_eq!(length, request.len());
        assert_eq!(
            check_response(&response, false).unwrap(),
            Some(response.len())
        );
        assert_eq!(
            check_response(&response[..response.len() - 1], false).unwrap(),
            None
        );
    }

    #[test]
    fn an_answer_without_compression_is_an_error_where_it_was_asked_for() {
        let (_, response) = respond(&request("localhost", true)).unwrap().unwrap();
        assert!(check_response(&response, true).is_err());
        let head = str::from_utf8(&response).unwrap().trim_end();
        let agreed = format!("{head}\r\n{DEFLATE}\r\n").into_bytes();
        assert_eq!(check_response(&agreed, true).unwrap(), Some(agreed.len()));
        assert!(check_response(&agreed, false).is_err());
    }

    #[test]
    fn a_refusal_is_an_error() {
        let error = check_response(b"HTTP/1.1 503 Full\r\n\r\n", false).unwrap_err();
        assert_eq!(error.to_string(), "upgrade refused: HTTP/1.1 503 Full");
    }
}
