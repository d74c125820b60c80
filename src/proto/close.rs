//! The closing handshake's rules (RFC 6455 §7): which codes may be put on the wire, what a close
//! frame may hold, and the code that each violation is answered with.

use tungstenite::Utf8Bytes;
use tungstenite::protocol::CloseFrame;
use tungstenite::protocol::frame::coding::CloseCode;

use crate::message::CloseCause;

/// A rule that the other side broke: the connection is failed (§7.1.7) with `code`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Violation {
    pub(crate) code: CloseCode,
    pub(crate) why: &'static str,
}

impl Violation {
    pub(crate) const fn protocol(why: &'static str) -> Self {
        Self {
            code: CloseCode::Protocol,
            why,
        }
    }

    /// As which the other side's violation is reported.
    pub(crate) fn cause(self) -> CloseCause {
        match self.code {
            CloseCode::Invalid => CloseCause::InvalidUtf8,
            CloseCode::Size => CloseCause::TooBig,
            _ => CloseCause::Protocol(self.why),
        }
    }

    pub(crate) const INVALID_UTF8: Self = Self {
        code: CloseCode::Invalid,
        why: "invalid UTF-8",
    };

    pub(crate) const TOO_BIG: Self = Self {
        code: CloseCode::Size,
        why: "message too big",
    };
}

/// Whether `code` may be sent in a close frame.
///
/// §7.4.1 and the IANA registry: 1004 is reserved; 1005, 1006 and 1015 "MUST NOT be set as a status
/// code in a Close control frame"; §7.4.2: 0–999 are not used, 1016–2999 belong to future
/// specifications, 3000–4999 are free for libraries and applications.
pub(crate) fn is_sendable(code: CloseCode) -> bool {
    matches!(u16::from(code), 1000..=1003 | 1007..=1014 | 3000..=4999)
}

/// Reads the body of a close frame (§5.5.1). An empty body is a close without a code.
pub(crate) fn parse_body(body: &[u8]) -> Result<Option<CloseFrame>, Violation> {
    match body {
        [] => Ok(None),
        [_] => Err(Violation::protocol("close frame with a body of one byte")),
        [high, low, reason @ ..] => {
            let code = CloseCode::from(u16::from_be_bytes([*high, *low]));
            if !is_sendable(code) {
                return Err(Violation::protocol("close code that must not be sent"));
            }
            let reason = std::str::from_utf8(reason).map_err(|_| Violation::INVALID_UTF8)?;
            Ok(Some(CloseFrame {
                code,
                reason: Utf8Bytes::from(reason),
            }))
        }
    }
}

/// The longest prefix of `reason` that fits into a close frame (§5.5: 125 bytes less the code).
pub(crate) fn truncate_reason(reason: &str) -> &str {
    let mut end = reason.len().min(123);
    while !reason.is_char_boundary(end) {
        end -= 1;
    }
    &reason[..end]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_is_judged() {
        let allowed: Vec<u16> = (0..=u16::MAX)
            .filter(|&code| is_sendable(CloseCode::from(code)))
            .collect();
        let expected: Vec<u16> = (1000..=1003)
            .chain(1007..=1014)
            .chain(3000..=4999)
            .collect();
        assert_eq!(allowed, expected);
    }

    #[test]
    fn bodies() {
        assert_eq!(parse_body(b""), Ok(None));
        assert_eq!(parse_body(b"\x03").unwrap_err().code, CloseCode::Protocol);
        assert_eq!(parse_body(&[3, 237]).unwrap_err().code, CloseCode::Protocol); // 1005
        assert_eq!(parse_body(&[3, 232, 0xC0]), Err(Violation::INVALID_UTF8));
        let frame = parse_body(b"\x03\xE8bye").unwrap().unwrap();
        assert_eq!((frame.code, &*frame.reason), (CloseCode::Normal, "bye"));
    }

    #[test]
    fn reasons_are_cut_between_characters() {
        assert_eq!(truncate_reason("short"), "short");
        let long = "ä".repeat(100);
        assert_eq!(truncate_reason(&long).len(), 122);
    }
}
