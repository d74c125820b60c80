//! Settings that are out of range.

use crate::config::Config;
#[cfg(feature = "deflate")]
use crate::config::Deflate;
use crate::error::{Error, Result};
use crate::id::PeerId;
use crate::proto::http::is_token;

/// The first setting that is out of range, before anything starts.
pub(super) fn check(config: &Config) -> Result<()> {
    // Counters of bytes are 32 bits wide and their differences must not wrap.
    let widest = 1 << 30;
    let wrong = [
        (
            !(1..=PeerId::MAX_LOOPS).contains(&config.loops),
            "loops must be 1 to 256",
        ),
        (config.workers > 4096, "workers must be 0 to 4,096"),
        (
            !(1..=widest).contains(&(config.max_message as usize)),
            "max_message must be 1 byte to 1 GiB",
        ),
        (
            !(1 << 10..=16 << 20).contains(&config.read_buffer),
            "read_buffer must be 1 KiB to 16 MiB",
        ),
        (
            config.proxy_protocol.is_some() && config.read_buffer < 4 << 10,
            "read_buffer must be at least 4 KiB, as long as a PROXY header may be",
        ),
        (
            !(64..=widest).contains(&config.max_head),
            "max_head must be 64 bytes to 1 GiB",
        ),
        (
            !(1..=widest).contains(&config.inbound_messages)
                || !(1..=widest).contains(&config.inbound_bytes),
            "inbound_limit must be at least one message and one byte, and at most 2^30 of each",
        ),
        (
            config.outbound_bytes > widest,
            "outbound_limit must be at most 1 GiB",
        ),
        (
            config
                .message_rate
                .is_some_and(|r| r.per_second == 0 || r.burst == 0),
            "message_rate must be at least 1 a second, with a burst of at least 1",
        ),
        (
            config
                .byte_rate
                .is_some_and(|r| r.per_second == 0 || r.burst == 0),
            "byte_rate must be at least 1 a second, with a burst of at least 1",
        ),
        (
            config
                .accept_rate
                .is_some_and(|r| r.per_second == 0 || r.burst == 0),
            "accept_rate must be at least 1 a second, with a burst of at least 1",
        ),
        (
            config
                .accept_rate_per_ip
                .is_some_and(|r| r.per_second == 0 || r.burst == 0),
            "accept_rate_per_ip must be at least 1 a second, with a burst of at least 1",
        ),
        (
            !(1..=128).contains(&config.ipv6_prefix),
            "ipv6_prefix must be 1 to 128 bits",
        ),
        (
            !config
                .subprotocols
                .iter()
                .all(|name| is_token(name.as_bytes())),
            "subprotocols must be tokens (RFC 9110 §5.6.2)",
        ),
    ];
    #[cfg(feature = "deflate")]
    if let Some(Err(why)) = config.deflate.as_ref().map(Deflate::check) {
        return Err(Error::Config(why.into()));
    }
    config
        .check_times()
        .map_err(|why| Error::Config(why.into()))?;
    match wrong.iter().find(|(wrong, _)| *wrong) {
        Some((_, why)) => Err(Error::Config((*why).into())),
        None => Ok(()),
    }
}
