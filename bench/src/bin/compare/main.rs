//! The comparison: every server in turn, each scenario, several rounds; tables and charts.
//!
//! What makes the figures worth something on a machine that is neither quiet nor constant:
//!
//! - All servers run in turn within each round, and figures are **ratios within a round**, of which
//!   the median and the spread are reported. A machine that slows down slows all of them.
//! - Every second round goes through the servers backwards, so that a steady drift cancels.
//! - A server is a fresh process for each measurement, on a core of its own, the load generator on
//!   another.
//! - CPU time per message stands beside the rate, since a rate says nothing about a server that is
//!   faster than the load generator. Such rows are marked.
//!
//! | file | noun |
//! |---|---|
//! | `scenario`, `scenarios` | what is asked of the servers, and all of it |
//! | `server` | which servers there are, and how they are asked |
//! | `running` | a server that is up, on its core |
//! | `build` | their programs |
//! | `measure` | one measurement: one server, one scenario, one run of `load` |
//! | `outcome` | all measurements of one scenario, and the rows they add up to |
//! | `markdown`, `chart` | how rows are shown |

mod build;
mod chart;
mod markdown;
mod measure;
mod outcome;
mod running;
mod scenario;
mod scenarios;
mod server;

use std::{
    fs,
    io::{self, Result, Write},
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use clap::Parser;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::{
    build::Programs,
    measure::Setting,
    outcome::Outcome,
    running::Cores,
    scenario::{Mode, Scenario},
    scenarios::SCENARIOS,
    server::Server,
};

#[derive(Parser)]
#[command(about = "Compares framemill with other WebSocket servers")]
struct Args {
    /// Measurements of every server in every scenario
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// Seconds of each measurement
    #[arg(long, default_value_t = 2.0)]
    seconds: f64,
    /// Seconds of load before each measurement
    #[arg(long, default_value_t = 0.5)]
    warmup: f64,
    /// One short round, to see that all is well
    #[arg(long, conflicts_with_all = ["rounds", "seconds", "warmup"])]
    quick: bool,
    /// Only scenarios whose name contains one of these
    #[arg(long, value_delimiter = ',', value_name = "PART OF NAME")]
    only: Vec<String>,
    /// Only these servers, in this order. Where `limit` does not apply, the first is the reference
    #[arg(long, value_delimiter = ',', value_name = "A,B,C")]
    servers: Vec<String>,
    /// A further server, run as `PROGRAM echo --addr 127.0.0.1:0` (or `broadcast`, or `publish
    /// --topics N --subscriptions S`; also with `--tls-cert FILE --tls-key FILE` or `--deflate`),
    /// which has to print `listening on ADDR` and to end on SIGTERM
    #[arg(long, value_name = "NAME=PROGRAM")]
    also: Vec<String>,
    /// Where the tables and charts go. A run of some scenarios or servers only writes them if told
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// The core of the server
    #[arg(long, default_value_t = 0)]
    server_cpu: u32,
    /// The core of the load generator
    #[arg(long, default_value_t = 1)]
    load_cpu: u32,
    /// Run both before all else that wants their cores (needs root): for a machine that is shared
    #[arg(long)]
    boost: bool,
    /// List scenarios and servers
    #[arg(long)]
    list: bool,
}

fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(0) => ExitCode::SUCCESS,
        Ok(failures) => {
            eprintln!("compare: {failures} measurements failed, see above");
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("compare: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Returns the number of measurements that failed.
fn run(args: &Args) -> Result<usize> {
    let servers = server::choose(&args.servers, &args.also)?;
    let scenarios: Vec<&Scenario> = SCENARIOS
        .iter()
        .filter(|scenario| {
            let named = |part: &String| scenario.name.contains(part);
            args.only.is_empty() || args.only.iter().any(named)
        })
        .collect();
    if args.list {
        scenarios
            .iter()
            .for_each(|scenario| println!("{:44}{}", scenario.name, scenario.title()));
        servers
            .iter()
            .for_each(|server| println!("{:44}{}", server.name, server.label));
        return Ok(0);
    }
    // Of ten thousand connections each side has a file; what is started here inherits the limit.
    let files = getrlimit(Resource::Nofile);
    setrlimit(
        Resource::Nofile,
        Rlimit {
            current: files.maximum,
            ..files
        },
    )?;
    let programs = Programs::build(&servers)?;
    let servers: Vec<Server> = servers
        .into_iter()
        .filter(|server| programs.has(&server.program))
        .collect();
    let setting = Setting::new(args);

    let mut outcomes: Vec<Outcome> = Vec::new();
    for (index, scenario) in scenarios.iter().enumerate() {
        println!(
            "\n[{}/{}] {}: {}",
            index + 1,
            scenarios.len(),
            scenario.name,
            scenario.title()
        );
        let outcome = compare(scenario, &servers, &programs, &setting);
        if outcome.servers.is_empty() {
            println!("  none of these servers can take part");
            continue;
        }
        println!("\n{}", markdown::table(&outcome));
        outcomes.push(outcome);
        // After each, so that a run that is cut short has not been for nothing.
        if let Some(folder) = out_folder(args) {
            write(&folder, &outcomes, &setting)?;
        }
    }
    if let Some(folder) = out_folder(args) {
        println!("written to {}", folder.display());
    }
    Ok(outcomes.iter().map(Outcome::failures).sum())
}

/// Plain sockets in one document, TLS and compression in another: a run of one kind leaves what is
/// known of the other as it is.
fn write(folder: &Path, outcomes: &[Outcome<'_>], setting: &Setting) -> Result<()> {
    fs::create_dir_all(folder)?;
    for document in ["results.md", "tls-deflate.md"] {
        let of_it = |outcome: &&Outcome<'_>| outcome.scenario.document() == document;
        let outcomes: Vec<&Outcome<'_>> = outcomes.iter().filter(of_it).collect();
        if !outcomes.is_empty() {
            let text = markdown::document(&outcomes, setting);
            fs::write(folder.join(document), text)?;
        }
    }
    for outcome in outcomes {
        fs::write(folder.join(outcome.chart_file()), chart::draw(outcome))?;
    }
    Ok(())
}

fn out_folder(args: &Args) -> Option<PathBuf> {
    let whole = args.only.is_empty() && args.servers.is_empty() && !args.quick;
    args.out
        .clone()
        .or_else(|| whole.then(|| build::bench().join("../docs/bench")))
}

fn compare<'a>(
    scenario: &'a Scenario,
    servers: &[Server],
    programs: &Programs,
    setting: &Setting,
) -> Outcome<'a> {
    let servers = servers
        .iter()
        .filter(|server| server.suits(scenario))
        .cloned()
        .collect();
    let mut outcome = Outcome::new(scenario, servers);
    for round in 0..setting.rounds {
        let mut order: Vec<usize> = (0..outcome.servers.len()).collect();
        if round % 2 == 1 {
            order.reverse();
        }
        let rate = match scenario.mode {
            Mode::OpenLoop => saturation(round, &outcome, programs, setting),
            _ => None,
        };
        for index in order {
            let server = &outcome.servers[index];
            print!("  round {}  {:28}", round + 1, server.label);
            let _ = io::stdout().flush();
            let report = measure::measure(server, scenario, rate, programs, setting);
            match &report.error {
                None => println!("  {}", measure::summary(&report)),
                Some(error) => println!("  FAILED: {error}"),
            }
            outcome.record(index, report);
        }
    }
    outcome
}

/// What the reference can do at most, just before a round of open loop: the rates of that are parts
/// of it, the same for all servers. Without it the round fails, which is said there.
fn saturation(
    round: u32,
    outcome: &Outcome<'_>,
    programs: &Programs,
    setting: &Setting,
) -> Option<f64> {
    let reference = outcome.servers.get(outcome.reference())?;
    print!(
        "  round {}  {:28}",
        round + 1,
        format!("{}, all it can", reference.label)
    );
    let _ = io::stdout().flush();
    let scenario = outcome.scenario.saturation();
    let report = measure::measure(reference, &scenario, None, programs, setting);
    match &report.error {
        None => println!("  {}", measure::summary(&report)),
        Some(error) => println!("  FAILED: {error}"),
    }
    let part = f64::from(outcome.scenario.percent) / 100.0;
    let failed = report.error.is_some();
    (!failed).then_some(report.messages_per_second * part)
}

impl Setting {
    fn new(args: &Args) -> Self {
        let (rounds, warmup, seconds) = match args.quick {
            true => (1, 0.2, 0.5),
            false => (args.rounds, args.warmup, args.seconds),
        };
        Self {
            rounds,
            warmup: Duration::from_secs_f64(warmup),
            seconds: Duration::from_secs_f64(seconds),
            server_cores: Cores {
                cpu: args.server_cpu,
                or: None,
                boost: args.boost,
            },
            load_cores: Cores {
                cpu: args.load_cpu,
                or: None,
                boost: args.boost,
            },
        }
    }
}
