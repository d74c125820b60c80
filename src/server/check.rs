//! Settings that make no sense.

use crate::config::Config;
#[cfg(feature = "deflate")]
use crate::config::Deflate;
use crate::error::{Error, Result};
use crate::id::PeerId;
use crate::proto::http::is_token;

/// Says so before anything starts.
pub(super) fn check(config: &Config) -> Result<()> {
    // Counters of bytes are 32 bits wide and their differences must not wrap.
    let widest = 1 << 30;
    let wrong = [
        (config.loops == 0, "at least one loop"),
        (config.loops > PeerId::MAX_LOOPS, "at most 256 loops"),
        (config.workers > 4096, "at most 4096 workers"),
        (config.max_message == 0, "max_message of at least 1 byte"),
        (
            config.max_message as usize > widest,
            "max_message of at most 1 GiB",
        ),
        (
            !(1 << 10..=16 << 20).contains(&config.read_buffer),
            "read_buffer of 1 KiB to 16 MiB",
        ),
        (
            config.proxy_protocol.is_some() && config.read_buffer < 4 << 10,
            "read_buffer of at least 4 KiB, as long as a PROXY header may be",
        ),
        (config.max_head < 64, "max_head of at least 64 bytes"),
        (config.max_head > widest, "max_head of at most 1 GiB"),
        (
            config.inbound_messages == 0 || config.inbound_bytes == 0,
            "inbound_limit of at least one message and byte",
        ),
        (
            config.inbound_messages > widest || config.inbound_bytes > widest,
            "inbound_limit of at most 1 GiB",
        ),
        (
            config.outbound_bytes > widest,
            "outbound_limit of at most 1 GiB",
        ),
        (
            config
                .message_rate
                .is_some_and(|r| r.per_second == 0 || r.burst == 0),
            "message_rate of at least 1",
        ),
        (
            config
                .byte_rate
                .is_some_and(|r| r.per_second == 0 || r.burst == 0),
            "byte_rate of at least 1",
        ),
        (
            [config.accept_rate, config.accept_rate_per_ip]
                .iter()
                .flatten()
                .any(|r| r.per_second == 0 || r.burst == 0),
            "accept_rate of at least 1",
        ),
        (
            !(1..=128).contains(&config.ipv6_prefix),
            "ipv6_prefix of 1 to 128 bits",
        ),
        (
            !config
                .subprotocols
                .iter()
                .all(|name| is_token(name.as_bytes())),
            "subprotocols that are tokens",
        ),
    ];
    #[cfg(feature = "deflate")]
    if let Some(Err(why)) = config.deflate.as_ref().map(Deflate::check) {
        return Err(Error::Config(why.into()));
    }
    match wrong.iter().find(|(wrong, _)| *wrong) {
        Some((_, needs)) => Err(Error::Config(format!("a server needs {needs}"))),
        None => Ok(()),
    }
}
