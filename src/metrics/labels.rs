//! What counters are told apart by.

use std::collections::BTreeMap;

use super::Counter;
use crate::message::{CloseCause, CloseCode};

/// Why a connection did not become a WebSocket, or was not let in at all.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Refusal {
    /// `max_connections`: 503.
    MaxConnections,
    /// `max_connections_per_ip` or `accept_rate_per_ip`: 429.
    PerAddress,
    /// Over a limit like those, and dropped, as too many are being answered already. Or the system could
    /// not watch one more socket, or a loop has all that it can number.
    Unanswered,
    /// 400 and its like: no sound request.
    BadRequest,
    /// 405.
    Method,
    /// 413, 414, 431.
    TooLarge,
    /// 426: a version of the protocol that we don't speak.
    Version,
    /// 403.
    Origin,
    /// 408, or nothing where it is the handler that was too slow.
    Timeout,
    /// Not a byte of a request came in all the time, or nothing more while others waited.
    Silent,
    /// The peer hung up before its request was complete, or in the TLS handshake.
    HungUp,
    /// The TLS handshake failed.
    #[cfg_attr(not(feature = "tls"), allow(dead_code, reason = "has no other use"))]
    Tls,
    /// The handler's `open` said no.
    Handler,
    /// The server is being shut down: 503, or nothing if nothing was asked.
    Shutdown,
}

impl Refusal {
    pub(super) const LABELS: [&'static str; 14] = [
        "max_connections",
        "max_connections_per_ip",
        "unanswered",
        "bad_request",
        "method",
        "too_large",
        "version",
        "origin",
        "timeout",
        "silent",
        "hung_up",
        "tls",
        "handler",
        "shutdown",
    ];

    /// The word for it.
    pub(crate) fn label(self) -> &'static str {
        Self::LABELS[self as usize]
    }

    /// What this server means by a status with which it refuses a request of its own accord.
    pub(crate) fn of_status(status: u16) -> Self {
        match status {
            403 => Self::Origin,
            405 => Self::Method,
            408 => Self::Timeout,
            413 | 414 | 431 => Self::TooLarge,
            426 => Self::Version,
            429 => Self::PerAddress,
            503 => Self::Shutdown,
            _ => Self::BadRequest,
        }
    }

    /// What the end of a connection that was not open yet means.
    pub(crate) fn of_cause(cause: CloseCause) -> Self {
        match cause {
            CloseCause::HandshakeTimeout => Self::Timeout,
            CloseCause::Shutdown => Self::Shutdown,
            // While it was asked.
            CloseCause::Terminated => Self::Handler,
            _ => Self::HungUp,
        }
    }
}

pub(super) const CAUSES: [&str; 15] = [
    "handshake",
    "eof",
    "transport",
    "protocol",
    "invalid_utf8",
    "too_big",
    "rate_limit",
    "overflow",
    "no_pong",
    "write_stall",
    "close_timeout",
    "handshake_timeout",
    "panic",
    "shutdown",
    "terminated",
];

pub(super) fn cause(cause: CloseCause) -> usize {
    match cause {
        CloseCause::Handshake => 0,
        CloseCause::Eof => 1,
        CloseCause::Transport => 2,
        CloseCause::Protocol(_) => 3,
        CloseCause::InvalidUtf8 => 4,
        CloseCause::TooBig => 5,
        CloseCause::RateLimit => 6,
        CloseCause::Overflow => 7,
        CloseCause::NoPong => 8,
        CloseCause::WriteStall => 9,
        CloseCause::CloseTimeout => 10,
        CloseCause::HandshakeTimeout => 11,
        CloseCause::Panic => 12,
        CloseCause::Shutdown => 13,
        CloseCause::Terminated => 14,
    }
}

/// Those a peer may choose freely are counted together.
pub(super) const CODES: [&str; 19] = [
    "1000", "1001", "1002", "1003", "1004", "1005", "1006", "1007", "1008", "1009", "1010", "1011",
    "1012", "1013", "1014", "1015", "3xxx", "4xxx", "other",
];

pub(super) fn code(code: CloseCode) -> usize {
    match u16::from(code) {
        code @ 1000..=1015 => usize::from(code) - 1000,
        3000..=3999 => 16,
        4000..=4999 => 17,
        _ => 18,
    }
}

/// Counts by label.
pub(super) fn read<const N: usize>(
    labels: &[&'static str; N],
    counters: &[Counter; N],
) -> BTreeMap<&'static str, u64> {
    let counts = counters.iter().map(Counter::get);
    labels.iter().copied().zip(counts).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_in_the_order_of_their_numbers() {
        assert_eq!(
            Refusal::LABELS[Refusal::MaxConnections as usize],
            "max_connections"
        );
        assert_eq!(Refusal::LABELS[Refusal::Origin as usize], "origin");
        assert_eq!(Refusal::LABELS[Refusal::Shutdown as usize], "shutdown");
        assert_eq!(CAUSES[cause(CloseCause::Shutdown)], "shutdown");
        assert_eq!(CAUSES[cause(CloseCause::Terminated)], "terminated");
        assert_eq!(CAUSES[cause(CloseCause::NoPong)], "no_pong");
        assert_eq!(CAUSES[cause(CloseCause::Protocol("x"))], "protocol");
        assert_eq!(CODES[code(CloseCode::Normal)], "1000");
        assert_eq!(CODES[code(CloseCode::Tls)], "1015");
        assert_eq!(CODES[code(CloseCode::from(3999))], "3xxx");
        assert_eq!(CODES[code(CloseCode::from(4000))], "4xxx");
        assert_eq!(CODES[code(CloseCode::from(2000))], "other");
    }
}
