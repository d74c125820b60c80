//! What a run of `load` found. Printed by it as one line of JSON, read by `compare`.

use serde::{Deserialize, Serialize};

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Report {
    /// Why there is no result. All else is zero then, and `load` exits with 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// Length of the measured window. The CPU figures are of the same window.
    pub seconds: f64,
    /// Echoes, deliveries (broadcast and publish) or connections (connect). Of all but connections, one in
    /// about sixty was compared byte for byte.
    pub messages: u64,
    pub messages_per_second: f64,
    /// Payload in one direction, in millions of bytes.
    pub megabytes_per_second: f64,
    /// CPU time of the server per message, in microseconds (with --server-pid).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub server_cpu_us: Option<f64>,
    /// CPU time of the server over wall time: 1 is one core (with --server-pid).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub server_busy: Option<f64>,
    /// The same of the load generator.
    pub load_busy: f64,
    /// From writing a message to reading its echo, in microseconds (with one in flight). In an open
    /// loop, from when it should have been written.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub p50_us: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub p99_us: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub p999_us: Option<f64>,
    /// How late the load generator sent, the 99th percentile in microseconds (open loop).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub late_us: Option<f64>,
    /// The rate that was asked for (open loop).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub asked_per_second: Option<f64>,
    /// Bytes of payload that the server compressed a message to (with --deflate).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub compressed: Option<u64>,
    /// Resident memory of the server in bytes (with --server-pid), before the first connection.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resident_at_start: Option<u64>,
    /// The same after the run, with all connections still open.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resident: Option<u64>,
    /// The difference of the two per connection (idle).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bytes_per_connection: Option<f64>,
}

/// To three decimals, which is more than any of this is good for.
pub fn rounded(value: f64) -> f64 {
    (value * 1000.0).round() / 1000.0
}
