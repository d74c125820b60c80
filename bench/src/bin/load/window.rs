//! The measured window, and the watch over a run that stands still.

use std::{
    io::{Error, Result},
    time::{Duration, Instant},
};

use framemill_bench::{
    process,
    report::{Report, rounded},
};

use crate::PATIENCE;

/// From `open` to `close`: wall time, and CPU time of both sides.
pub(crate) struct Window {
    server: Option<u32>,
    start: Instant,
    server_cpu: Duration,
    load_cpu: Duration,
}

impl Window {
    pub(crate) fn open(server: Option<u32>) -> Result<Self> {
        let server_cpu = server
            .map(process::cpu_time)
            .transpose()?
            .unwrap_or_default();
        Ok(Self {
            server,
            start: Instant::now(),
            server_cpu,
            load_cpu: process::cpu_time(std::process::id())?,
        })
    }

    pub(crate) fn close(self, messages: u64, size: u32) -> Result<Report> {
        let seconds = self.start.elapsed().as_secs_f64();
        let load_cpu = process::cpu_time(std::process::id())? - self.load_cpu;
        let mut report = Report {
            seconds: rounded(seconds),
            messages,
            messages_per_second: rounded(messages as f64 / seconds),
            megabytes_per_second: rounded(messages as f64 * f64::from(size) / seconds / 1e6),
            load_busy: rounded(load_cpu.as_secs_f64() / seconds),
            ..Report::default()
        };
        if messages == 0 {
            return Err(Error::other("nothing came back within the measured window"));
        }
        if let Some(server) = self.server {
            let cpu = (process::cpu_time(server)? - self.server_cpu).as_secs_f64();
            report.server_cpu_us = Some(rounded(cpu * 1e6 / messages as f64));
            report.server_busy = Some(rounded(cpu / seconds));
            report.resident = Some(process::resident(server)?);
        }
        Ok(report)
    }
}

/// Tells when a count has stopped growing.
pub(crate) struct Progress {
    count: u64,
    since: Instant,
}

impl Progress {
    pub(crate) fn new() -> Self {
        Self {
            count: 0,
            since: Instant::now(),
        }
    }

    pub(crate) fn check(&mut self, count: u64) -> Result<()> {
        if count != self.count {
            *self = Self {
                count,
                since: Instant::now(),
            };
        } else if self.since.elapsed() > PATIENCE {
            let seconds = PATIENCE.as_secs();
            return Err(Error::other(format!(
                "no answer for {seconds} s (after {count} in this phase)"
            )));
        }
        Ok(())
    }
}

/// Calls `turn` until `time` has passed. `turn` gets the longest it may wait and returns how many
/// messages it counted; the sum is returned.
pub(crate) fn drive(time: Duration, mut turn: impl FnMut(Duration) -> Result<u64>) -> Result<u64> {
    let end = Instant::now() + time;
    let mut progress = Progress::new();
    let mut count = 0;
    loop {
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(count);
        }
        count += turn(left.min(Duration::from_secs(1)))?;
        progress.check(count)?;
    }
}
