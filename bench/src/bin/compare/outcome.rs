//! All measurements of one scenario, and the rows they add up to.

use framemill_bench::report::Report;

use crate::{
    scenario::{Mode, Scenario},
    server::{Program, Server},
};

/// A process that used this much of its core had no time left.
const BUSY: f64 = 0.95;

/// Of an open loop: answers over requests. A little is always under way when the time is up.
const KEPT_UP: f64 = 0.98;

pub(crate) struct Outcome<'a> {
    pub(crate) scenario: &'a Scenario,
    pub(crate) servers: Vec<Server>,
    /// Per server, the reports in the order of the rounds.
    reports: Vec<Vec<Report>>,
}

/// What is said of one server. Each figure is the median over the rounds.
pub(crate) struct Row<'a> {
    pub(crate) server: &'a Server,
    /// Of the reference, in the same round. Of rates (more is better); in an open loop, where the
    /// rates are given, of p99 (less is).
    pub(crate) ratio: Option<Spread>,
    pub(crate) rate: Option<f64>,
    pub(crate) cpu_us: Option<f64>,
    /// CPU per message over that of the reference in the same round (less is better).
    pub(crate) cpu_ratio: Option<f64>,
    pub(crate) p50_us: Option<f64>,
    pub(crate) p99_us: Option<f64>,
    pub(crate) p999_us: Option<f64>,
    /// How late the load generator sent (p99).
    pub(crate) late_us: Option<f64>,
    /// Messages a second over those that were asked for.
    pub(crate) kept_up: Option<f64>,
    pub(crate) server_busy: Option<f64>,
    pub(crate) load_busy: Option<f64>,
    pub(crate) bytes: Option<Spread>,
    pub(crate) resident_at_start: Option<f64>,
    /// Bytes that a message was compressed to.
    pub(crate) compressed: Option<f64>,
    pub(crate) doubt: Option<Doubt>,
    /// Of the first measurement that failed.
    pub(crate) error: Option<&'a str>,
}

#[derive(Clone, Copy)]
pub(crate) struct Spread {
    pub(crate) median: f64,
    pub(crate) min: f64,
    pub(crate) max: f64,
}

/// Why a rate says little about the server.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Doubt {
    /// The load generator had no time left, the server had.
    LoadGenerator,
    /// In an open loop: not everything was answered in time, so latency only tells how long the
    /// measurement was.
    FellBehind,
    /// The same, but it is the load generator that had no time when a message was due.
    SentLate,
    /// Both had: something else took the cores, or there was not enough in flight.
    NeitherBusy,
}

impl<'a> Outcome<'a> {
    pub(crate) fn new(scenario: &'a Scenario, servers: Vec<Server>) -> Self {
        let reports = vec![Vec::new(); servers.len()];
        Self {
            scenario,
            servers,
            reports,
        }
    }

    pub(crate) fn record(&mut self, server: usize, report: Report) {
        self.reports[server].push(report);
    }

    pub(crate) fn failures(&self) -> usize {
        self.reports
            .iter()
            .flatten()
            .filter(|report| report.error.is_some())
            .count()
    }

    pub(crate) fn chart_file(&self) -> String {
        format!("{}.svg", self.scenario.name)
    }

    /// The server that the others are measured by: `limit`, or the first of all.
    pub(crate) fn reference(&self) -> usize {
        self.servers
            .iter()
            .position(|server| server.program == Program::Limit)
            .unwrap_or(0)
    }

    pub(crate) fn rows(&self) -> Vec<Row<'_>> {
        (0..self.servers.len())
            .map(|server| self.row(server))
            .collect()
    }

    fn row(&self, server: usize) -> Row<'_> {
        let reference = self.reference();
        let median = |figure: fn(&Report) -> Option<f64>| {
            Some(spread(self.figures(server, figure).flatten())?.median)
        };
        let ratio = |figure: fn(&Report) -> Option<f64>| {
            let pairs = self
                .figures(server, figure)
                .zip(self.figures(reference, figure));
            spread(pairs.filter_map(|(mine, theirs)| Some(mine? / theirs?)))
        };
        let rate = |report: &Report| Some(report.messages_per_second);
        let bytes = |report: &Report| report.bytes_per_connection;
        let server_busy = median(|report| report.server_busy);
        let load_busy = median(|report| Some(report.load_busy));
        let kept_up = median(|report| Some(report.messages_per_second / report.asked_per_second?));
        let (p99_us, late_us) = (
            median(|report| report.p99_us),
            median(|report| report.late_us),
        );
        Row {
            server: &self.servers[server],
            ratio: match self.scenario.mode {
                Mode::OpenLoop => ratio(|report| report.p99_us),
                _ => ratio(rate),
            },
            rate: median(rate),
            cpu_us: median(|report| report.server_cpu_us),
            cpu_ratio: ratio(|report| report.server_cpu_us).map(|ratio| ratio.median),
            p50_us: median(|report| report.p50_us),
            p99_us,
            p999_us: median(|report| report.p999_us),
            late_us,
            kept_up,
            server_busy,
            load_busy,
            bytes: spread(self.figures(server, bytes).flatten()),
            resident_at_start: median(|report| report.resident_at_start.map(|bytes| bytes as f64)),
            compressed: median(|report| report.compressed.map(|bytes| bytes as f64)),
            doubt: match kept_up {
                Some(kept_up) => Doubt::of_open_loop(kept_up, late_us.zip(p99_us)),
                None => server_busy
                    .zip(load_busy)
                    .and_then(|(server, load)| Doubt::of(server, load)),
            },
            error: self.reports[server]
                .iter()
                .find_map(|report| report.error.as_deref()),
        }
    }

    /// A figure of each round; `None` where the measurement failed.
    fn figures(
        &self,
        server: usize,
        figure: fn(&Report) -> Option<f64>,
    ) -> impl Iterator<Item = Option<f64>> {
        self.reports[server]
            .iter()
            .map(move |report| figure(report).filter(|_| report.error.is_none()))
    }
}

impl Doubt {
    /// `late` is by how much the load generator sent late, and the latency that this is a part of.
    fn of_open_loop(kept_up: f64, late: Option<(f64, f64)>) -> Option<Self> {
        match late {
            Some((late, latency)) if late > latency / 2.0 => Some(Self::SentLate),
            _ => (kept_up < KEPT_UP).then_some(Self::FellBehind),
        }
    }

    fn of(server_busy: f64, load_busy: f64) -> Option<Self> {
        match (server_busy >= BUSY, load_busy > BUSY) {
            (true, _) => None,
            (false, true) => Some(Self::LoadGenerator),
            (false, false) => Some(Self::NeitherBusy),
        }
    }
}

fn spread(values: impl Iterator<Item = f64>) -> Option<Spread> {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    let (&min, &max) = (values.first()?, values.last()?);
    let half = values.len() / 2;
    let median = match values.len() % 2 {
        0 => (values[half - 1] + values[half]) / 2.0,
        _ => values[half],
    };
    Some(Spread { median, min, max })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{scenarios::SCENARIOS, server};

    fn report(rate: f64, cpu: f64, server_busy: f64, load_busy: f64) -> Report {
        Report {
            messages_per_second: rate,
            server_cpu_us: Some(cpu),
            server_busy: Some(server_busy),
            load_busy,
            ..Report::default()
        }
    }

    #[test]
    fn ratios_are_taken_within_a_round() {
        let names = ["tokio-tungstenite", "limit"].map(str::to_owned);
        let mut outcome = Outcome::new(&SCENARIOS[0], server::choose(&names, &[]).unwrap());
        // The machine is twice as fast in the second round. In the third, one fails.
        for (mine, limit) in [(50.0, 100.0), (120.0, 200.0), (0.0, 100.0)] {
            let mut mine = report(mine, 3.0, 1.0, 0.5);
            mine.error = (mine.messages_per_second == 0.0).then(|| "refused".to_owned());
            outcome.record(0, mine);
            outcome.record(1, report(limit, 2.0, 0.5, 1.0));
        }
        let rows = outcome.rows();
        let ratio = rows[0].ratio.unwrap();
        assert_eq!((ratio.min, ratio.median, ratio.max), (0.5, 0.55, 0.6));
        assert_eq!(
            (rows[0].cpu_ratio, rows[0].error),
            (Some(1.5), Some("refused"))
        );
        assert_eq!(rows[1].ratio.unwrap().median, 1.0);
        assert!(rows[0].doubt.is_none() && rows[1].doubt == Some(Doubt::LoadGenerator));
        assert_eq!(outcome.failures(), 1);
    }

    #[test]
    fn an_open_loop_compares_latency_and_tells_of_what_spoils_it() {
        let names = ["framemill-0", "uws"].map(str::to_owned);
        let scenario = SCENARIOS
            .iter()
            .find(|scenario| scenario.mode == Mode::OpenLoop)
            .unwrap();
        let mut outcome = Outcome::new(scenario, server::choose(&names, &[]).unwrap());
        let answered = |rate, p99, late| Report {
            asked_per_second: Some(1000.0),
            p99_us: Some(p99),
            late_us: Some(late),
            ..report(rate, 1.0, 0.2, 1.0)
        };
        outcome.record(0, answered(999.0, 100.0, 20.0));
        outcome.record(1, answered(900.0, 300.0, 20.0));
        let rows = outcome.rows();
        assert_eq!(rows[1].ratio.unwrap().median, 3.0);
        assert!(rows[0].doubt.is_none() && rows[1].doubt == Some(Doubt::FellBehind));
        // The median of the two, 55, is more than half of 100.
        outcome.record(0, answered(999.0, 100.0, 90.0));
        assert!(outcome.rows()[0].doubt == Some(Doubt::SentLate));
    }
}
