//! What is asked of the servers.

/// One load, the same for all servers.
pub(crate) struct Scenario {
    /// Names files, and is what `--only` looks at. Kept stable.
    pub(crate) name: &'static str,
    pub(crate) mode: Mode,
    pub(crate) size: u32,
    pub(crate) connections: u32,
    pub(crate) inflight: u32,
    pub(crate) text: bool,
    pub(crate) tls: bool,
    /// Messages are JSON, and compressed each for itself. `size` is before that.
    pub(crate) deflate: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    Echo,
    Broadcast,
    Connect,
    Idle,
}

const KIB: u32 = 1024;

/// Binary messages, 100 connections, one in flight. The rest is said by each.
const ECHO: Scenario = Scenario {
    name: "",
    mode: Mode::Echo,
    size: 64,
    connections: 100,
    inflight: 1,
    text: false,
    tls: false,
    deflate: false,
};

pub(crate) const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "echo-16b",
        size: 16,
        ..ECHO
    },
    Scenario {
        name: "echo-64b",
        ..ECHO
    },
    Scenario {
        name: "echo-1k",
        size: KIB,
        ..ECHO
    },
    Scenario {
        name: "echo-16k",
        size: 16 * KIB,
        ..ECHO
    },
    Scenario {
        name: "echo-64k",
        size: 64 * KIB,
        ..ECHO
    },
    Scenario {
        name: "echo-1m",
        size: 1024 * KIB,
        connections: 10,
        ..ECHO
    },
    Scenario {
        name: "echo-64b-32-inflight",
        inflight: 32,
        ..ECHO
    },
    Scenario {
        name: "echo-1k-16-inflight",
        size: KIB,
        inflight: 16,
        ..ECHO
    },
    Scenario {
        name: "echo-1k-16-inflight-text",
        size: KIB,
        inflight: 16,
        text: true,
        ..ECHO
    },
    Scenario {
        name: "echo-16k-4-inflight",
        size: 16 * KIB,
        inflight: 4,
        ..ECHO
    },
    Scenario {
        name: "echo-64b-10000",
        connections: 10_000,
        ..ECHO
    },
    Scenario {
        name: "broadcast-64b-to-1000",
        mode: Mode::Broadcast,
        connections: 1000,
        ..ECHO
    },
    Scenario {
        name: "broadcast-64b-to-1000-16-inflight",
        mode: Mode::Broadcast,
        connections: 1000,
        inflight: 16,
        ..ECHO
    },
    Scenario {
        name: "connect",
        mode: Mode::Connect,
        connections: 64,
        ..ECHO
    },
    Scenario {
        name: "idle-10000",
        mode: Mode::Idle,
        connections: 10_000,
        ..ECHO
    },
    Scenario {
        name: "tls-echo-64b",
        tls: true,
        ..ECHO
    },
    Scenario {
        name: "tls-echo-64b-32-inflight",
        inflight: 32,
        tls: true,
        ..ECHO
    },
    Scenario {
        name: "tls-connect",
        mode: Mode::Connect,
        connections: 64,
        tls: true,
        ..ECHO
    },
    Scenario {
        name: "tls-idle-1000",
        mode: Mode::Idle,
        connections: 1000,
        tls: true,
        ..ECHO
    },
    Scenario {
        name: "deflate-echo-1k",
        size: KIB,
        deflate: true,
        ..ECHO
    },
    Scenario {
        name: "deflate-echo-1k-16-inflight",
        size: KIB,
        inflight: 16,
        deflate: true,
        ..ECHO
    },
];

impl Scenario {
    /// The file of results that it belongs to.
    pub(crate) fn document(&self) -> &'static str {
        if self.tls || self.deflate {
            "tls-deflate.md"
        } else {
            "results.md"
        }
    }

    pub(crate) fn title(&self) -> String {
        let tls = if self.tls { "TLS: " } else { "" };
        format!("{tls}{}", self.plain_title())
    }

    fn plain_title(&self) -> String {
        let size = match self.size {
            size if size >= KIB * KIB => format!("{} MiB", size / KIB / KIB),
            size if size >= KIB => format!("{} KiB", size / KIB),
            size => format!("{size} B"),
        };
        let inflight = self.inflight;
        let connections = thousands(f64::from(self.connections));
        match self.mode {
            Mode::Echo => {
                let text = match (self.text, self.deflate) {
                    (_, true) => " of JSON, compressed",
                    (true, _) => " of text",
                    _ => "",
                };
                format!("echo {size}{text}, {connections} connections, {inflight} in flight")
            }
            Mode::Broadcast => format!("broadcast {size} to {connections}, {inflight} in flight"),
            Mode::Connect => format!("open, shake hands, close, {connections} at a time"),
            Mode::Idle => format!("memory of {connections} connections after one echo each"),
        }
    }

    /// What is counted.
    pub(crate) fn unit(&self) -> &'static str {
        match self.mode {
            Mode::Echo => "message",
            Mode::Broadcast => "delivery",
            Mode::Connect | Mode::Idle => "connection",
        }
    }

    pub(crate) fn units(&self) -> &'static str {
        match self.mode {
            Mode::Echo => "messages",
            Mode::Broadcast => "deliveries",
            Mode::Connect | Mode::Idle => "connections",
        }
    }
}

/// A whole number with its thousands apart.
pub(crate) fn thousands(value: f64) -> String {
    let digits = format!("{value:.0}");
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) && !text.ends_with('-') {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thousands_are_apart() {
        let values = [0.4, 999.0, 1000.0, 1_234_567.0, -123_456.0];
        assert_eq!(
            values.map(thousands),
            ["0", "999", "1,000", "1,234,567", "-123,456"]
        );
    }

    #[test]
    fn names_are_unique() {
        for (index, scenario) in SCENARIOS.iter().enumerate() {
            assert!(
                SCENARIOS[..index]
                    .iter()
                    .all(|other| other.name != scenario.name)
            );
        }
    }
}
