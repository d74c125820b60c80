//! What the load generator, the reference servers and the comparison have in common.
//!
//! - [`frame`]: the one message a run is made of, as the bytes both sides put on the wire
//! - [`handshake`]: both ends of the opening handshake
//! - [`net`]: addresses, listening, connecting, edge-triggered epoll
//! - [`process`]: CPU time and resident memory of a process
//! - [`report`]: what a run of `load` found, as one line of JSON
//! - [`stream`]: a non-blocking socket, with or without TLS
//!
//! Nothing here knows framemill. The benchmark must not share a line with what it measures.

pub mod frame;
pub mod handshake;
pub mod net;
pub mod process;
pub mod report;
pub mod stream;
