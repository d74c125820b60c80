//! One measurement: one server, one scenario, one run of `load`.

use std::{
    io::{Error, Result},
    time::Duration,
};

use framemill_bench::report::Report;

use crate::{
    build::Programs,
    scenario::{Mode, Scenario, thousands},
    server::{self, Core, Running, Server},
};

/// What is the same for all measurements of a run.
pub(crate) struct Setting {
    pub(crate) rounds: u32,
    pub(crate) warmup: Duration,
    pub(crate) seconds: Duration,
    pub(crate) server_core: Core,
    pub(crate) load_core: Core,
}

/// For `load` to open its connections and to end, besides the time it measures. It gives up by
/// itself when nothing moves for ten seconds.
const PATIENCE: Duration = Duration::from_secs(120);

/// What went wrong, if anything, is in the report too.
pub(crate) fn measure(
    server: &Server,
    scenario: &Scenario,
    programs: &Programs,
    setting: &Setting,
) -> Report {
    let outcome = run(server, scenario, programs, setting);
    outcome.unwrap_or_else(|error| Report {
        error: Some(error.to_string()),
        ..Report::default()
    })
}

fn run(
    server: &Server,
    scenario: &Scenario,
    programs: &Programs,
    setting: &Setting,
) -> Result<Report> {
    let program = programs
        .path(&server.program)
        .expect("servers without a program are left out");
    let running = Running::start(program, &server.arguments(scenario), setting.server_core)?;
    let report = load(&running, scenario, programs, setting);
    let stopped = running.stop();
    let report = report?;
    stopped?;
    Ok(report)
}

fn load(
    running: &Running,
    scenario: &Scenario,
    programs: &Programs,
    setting: &Setting,
) -> Result<Report> {
    let arguments = arguments(running, scenario, setting);
    let mut child = server::spawn(setting.load_core, programs.load(), &arguments)?;
    let patience = setting.warmup + setting.seconds + PATIENCE;
    if server::wait(&mut child, patience)?.is_none() {
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

fn arguments(running: &Running, scenario: &Scenario, setting: &Setting) -> Vec<String> {
    let mode = match scenario.mode {
        Mode::Echo => "echo",
        Mode::Broadcast => "broadcast",
        Mode::Connect => "connect",
        Mode::Idle => "idle",
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
    let switches = [(scenario.tls, "--tls"), (scenario.deflate, "--deflate")];
    let switches = switches.iter().filter(|(on, _)| *on).map(|(_, name)| *name);
    let words = line.split_whitespace().chain(switches);
    words.map(str::to_owned).collect()
}

/// One line for the one who waits.
pub(crate) fn summary(report: &Report) -> String {
    if let Some(bytes) = report.bytes_per_connection {
        return format!("{:>9} bytes a connection", thousands(bytes));
    }
    format!(
        "{:>9}/s  {:8.3} µs CPU each  (server {:3.0} % busy, load generator {:3.0} %)",
        thousands(report.messages_per_second),
        report.server_cpu_us.unwrap_or_default(),
        report.server_busy.unwrap_or_default() * 100.0,
        report.load_busy * 100.0,
    )
}
