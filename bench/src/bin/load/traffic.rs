//! What a run sends and what it expects back, made once.

use framemill_bench::frame::{self, Opcode};

pub(crate) struct Traffic {
    /// As many masked frames, end to end, as may be under way on a connection: one write can send
    /// any number of them.
    pub(crate) requests: Vec<u8>,
    /// Length of each of them.
    pub(crate) request_len: usize,
    /// Messages under way per connection.
    pub(crate) inflight: usize,
    /// What every reply consists of.
    pub(crate) header: Vec<u8>,
    pub(crate) payload: Vec<u8>,
}

impl Traffic {
    pub(crate) fn new(opcode: Opcode, size: usize, inflight: usize) -> Self {
        let payload = frame::payload(size);
        let request = frame::client_frame(opcode, &payload);
        Self {
            requests: request.repeat(inflight),
            request_len: request.len(),
            inflight,
            header: frame::server_header(opcode, size),
            payload,
        }
    }
}
