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
    /// Of publish. Connections have so many subscriptions each, dealt out so that all topics have the
    /// same number of subscribers, and messages one after the other go to different ones.
    pub(crate) topics: u32,
    pub(crate) subscriptions: u32,
    /// Of open-loop: how much of what the reference can do, in hundredths.
    pub(crate) percent: u32,
    /// Server and load generator both have both cores, instead of one each.
    pub(crate) shared_cores: bool,
    /// Messages are JSON, and compressed each for itself. `size` is before that.
    pub(crate) deflate: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    Echo,
    Broadcast,
    /// To the subscribers of a topic.
    Publish,
    /// Sent at fixed times, whatever comes back.
    OpenLoop,
    Connect,
    Idle,
}

pub(crate) const KIB: u32 = 1024;

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
            Mode::Publish if self.topics == 1 => {
                format!("publish {size} to {connections}, {inflight} in flight")
            }
            Mode::Publish => {
                let topics = thousands(f64::from(self.topics));
                let receivers = self.receivers();
                format!(
                    "publish {size} in {topics} topics of {receivers}, {connections} connections, \
                     {inflight} in flight"
                )
            }
            Mode::OpenLoop => {
                let cores = match self.shared_cores {
                    true => "sharing both cores",
                    false => "with a core each",
                };
                let percent = self.percent;
                format!("latency of {size} at {percent} % load, {connections} connections, {cores}")
            }
            Mode::Connect => format!("open, shake hands, close, {connections} at a time"),
            Mode::Idle => format!("memory of {connections} connections after one echo each"),
        }
    }

    /// Of each message of publish.
    pub(crate) fn receivers(&self) -> u32 {
        self.connections * self.subscriptions / self.topics
    }

    /// The load that the rate of an open loop is a part of: the same, but each connection waits for
    /// its answer.
    pub(crate) fn saturation(&self) -> Self {
        Self {
            mode: Mode::Echo,
            ..*self
        }
    }

    /// What is counted.
    pub(crate) fn unit(&self) -> &'static str {
        match self.mode {
            Mode::Echo | Mode::OpenLoop => "message",
            Mode::Broadcast | Mode::Publish => "delivery",
            Mode::Connect | Mode::Idle => "connection",
        }
    }

    pub(crate) fn units(&self) -> &'static str {
        match self.mode {
            Mode::Echo | Mode::OpenLoop => "messages",
            Mode::Broadcast | Mode::Publish => "deliveries",
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
    use crate::scenarios::SCENARIOS;

    #[test]
    fn thousands_are_apart() {
        let values = [0.4, 999.0, 1000.0, 1_234_567.0, -123_456.0];
        assert_eq!(
            values.map(thousands),
            ["0", "999", "1,000", "1,234,567", "-123,456"]
        );
    }

    #[test]
    fn topics_have_the_same_number_of_subscribers() {
        for scenario in SCENARIOS {
            assert!(scenario.topics.is_multiple_of(scenario.subscriptions));
            let groups = scenario.topics / scenario.subscriptions;
            assert!(
                scenario.connections.is_multiple_of(groups),
                "{}",
                scenario.name
            );
        }
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
