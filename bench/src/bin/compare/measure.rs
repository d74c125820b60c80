//! One measurement: one server, one scenario, one run of `load`.

use std::{
    io::{Error, Result},
    time::Duration,
};

use framemill_bench::report::Report;

use crate::{
    build::Programs,
    running::{self, Cores, Running},
    scenario::{Mode, Scenario, thousands},
    server::Server,
};

/// What is the same for all measurements of a run.
pub(crate) struct Setting {
    pub(crate) rounds: u32,
    pub(crate) warmup: Duration,
    pub(crate) seconds: Duration,
    pub(crate) server_cores: Cores,
    pub(crate) load_cores: Cores,
}

impl Setting {
    /// Where the server runs, and where the load generator does.
    fn cores(&self, scenario: &Scenario) -> (Cores, Cores) {
        let (server, load) = (self.server_cores, self.load_cores);
        let both = |cores| Cores {
            cpu: server.cpu,
            or: Some(load.cpu),
            ..cores
        };
        match scenario.shared_cores {
            true => (both(server), both(load)),
            false => (server, load),
        }
    }
}

/// For `load` to open its connections and to end, besides the time it measures. It gives up by
/// itself when nothing moves for ten seconds.
const PATIENCE: Duration = Duration::from_secs(120);

/// What went wrong, if anything, is in the report too. `rate` is that of an open loop.
pub(crate) fn measure(
    server: &Server,
    scenario: &Scenario,
    rate: Option<f64>,
    programs: &Programs,
    setting: &Setting,
) -> Report {
    let outcome = run(server, scenario, rate, programs, setting);
    outcome.unwrap_or_else(|error| Report {
        error: Some(error.to_string()),
        ..Report::default()
    })
}

fn run(
    server: &Server,
    scenario: &Scenario,
    rate: Option<f64>,
    programs: &Programs,
    setting: &Setting,
) -> Result<Report> {
    let program = programs
        .path(&server.program)
        .expect("servers without a program are left out");
    let (cores, load_cores) = setting.cores(scenario);
    let running = Running::start(program, &server.arguments(scenario), cores)?;
    let arguments = arguments(&running, scenario, rate, setting)?;
    let report = load(&arguments, load_cores, programs, setting);
    let stopped = running.stop();
    let report = report?;
    stopped?;
    Ok(report)
}

fn load(
    arguments: &[String],
    cores: Cores,
    programs: &Programs,
    setting: &Setting,
) -> Result<Report> {
    let mut child = running::spawn(cores, programs.load(), arguments)?;
    let patience = setting.warmup + setting.seconds + PATIENCE;
    if running::wait(&mut child, patience)?.is_none() {
        child.kill()?;
    }
    let output = child.wait_with_output()?;
    let line = String::from_utf8_lossy(&output.stdout);
    let report = line
        .lines()
        .last()
        .and_then(|line| serde_json::from_str(line).ok());
    report.ok_or_else(|| Error::other(format!("load made no report: {}", output.status)))
}

fn arguments(
    running: &Running,
    scenario: &Scenario,
    rate: Option<f64>,
    setting: &Setting,
) -> Result<Vec<String>> {
    let unknown = || Error::other("nobody knows what the reference can do");
    let mode = match scenario.mode {
        Mode::Echo => "echo".to_owned(),
        Mode::Broadcast => "broadcast".to_owned(),
        Mode::Publish => format!("publish --receivers {}", scenario.receivers()),
        Mode::OpenLoop => format!("open-loop --rate {}", rate.ok_or_else(unknown)?),
        Mode::Connect => "connect".to_owned(),
        Mode::Idle => "idle".to_owned(),
    };
    let line = format!(
        "{mode} --addr {} --server-pid {} --connections {} --size {} --inflight {} \
         --warmup {} --seconds {} {}",
        running.addr,
        running.pid(),
        scenario.connections,
        scenario.size,
        scenario.inflight,
        setting.warmup.as_secs_f64(),
        setting.seconds.as_secs_f64(),
        match (scenario.text, scenario.deflate) {
            (false, false) => "--binary",
            _ => "--text",
        },
    );
    let switches = [
        (scenario.tls, "--tls"),
        (scenario.deflate, "--deflate"),
        (
            scenario.mode == Mode::OpenLoop && scenario.shared_cores,
            "--sleep",
        ),
    ];
    let switches = switches.iter().filter(|(on, _)| *on).map(|(_, name)| *name);
    let words = line.split_whitespace().chain(switches);
    Ok(words.map(str::to_owned).collect())
}

/// One line for the one who waits.
pub(crate) fn summary(report: &Report) -> String {
    if let Some(bytes) = report.bytes_per_connection {
        return format!("{:>9} bytes a connection", thousands(bytes));
    }
    if let Some(asked) = report.asked_per_second {
        let figure = |value: Option<f64>| thousands(value.unwrap_or_default());
        return format!(
            "{:>9}/s of {:>9}  p50 {:>6}, p99 {:>6}, p99.9 {:>6} µs  (sent late by up to {} µs)",
            thousands(report.messages_per_second),
            thousands(asked),
            figure(report.p50_us),
            figure(report.p99_us),
            figure(report.p999_us),
            figure(report.late_us),
        );
    }
    format!(
        "{:>9}/s  {:8.3} µs CPU each  (server {:3.0} % busy, load generator {:3.0} %)",
        thousands(report.messages_per_second),
        report.server_cpu_us.unwrap_or_default(),
        report.server_busy.unwrap_or_default() * 100.0,
        report.load_busy * 100.0,
    )
}
