//! A load generator that is cheaper per message than any server it measures.
//!
//! One thread, edge-triggered epoll, no WebSocket library. Requests lie ready, masked, in one
//! buffer, so that sending any number of them is one `send`; replies are counted by stepping from
//! header to header, and only a sample of them is looked at.
//!
//! | mode | does | counts |
//! |---|---|---|
//! | `echo` | keeps `--inflight` messages under way on each of `--connections` | echoes |
//! | `broadcast` | one more connection sends, `--connections` receive | deliveries |
//! | `publish` | the connections send in turn, `--receivers` of them receive each message | deliveries |
//! | `open-loop` | sends `--rate` messages a second, answered or not | echoes |
//! | `connect` | opens, shakes hands, closes, `--connections` at a time | connections |
//! | `idle` | opens `--connections`, one echo each, prints `ready`, holds them until stdin ends | memory |
//!
//! The last line on stdout is the result as JSON ([`Report`]). Exit code 1 and a message on stderr
//! tell of a server that refused, hung up, stopped answering for ten seconds, or sent a wrong byte.

mod client;
mod conn;
mod connect;
mod deflate;
mod echo;
mod fan_out;
mod idle;
mod latency;
mod open;
mod open_loop;
mod reader;
mod traffic;
mod window;

use std::{
    io::{Error, Result},
    process::ExitCode,
    time::Duration,
};

use clap::{Parser, ValueEnum};
use framemill_bench::{frame::Opcode, net::Addr, process, report::Report};

use crate::{client::Client, traffic::Traffic};

/// How long a server may leave everything unanswered. Far longer than any of them takes, far
/// shorter than a hang.
const PATIENCE: Duration = Duration::from_secs(10);

#[derive(Parser)]
#[command(about = "Load generator for WebSocket servers")]
struct Args {
    #[arg(value_enum, default_value_t = Mode::Echo)]
    mode: Mode,
    /// HOST:PORT or unix:PATH
    #[arg(long)]
    addr: Addr,
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..))]
    connections: u32,
    /// Bytes of payload of each message
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..))]
    size: u32,
    /// Messages under way per connection (broadcast and publish: in all)
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    inflight: u32,
    /// Mode publish: deliveries of each message [all connections]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    receivers: Option<u32>,
    /// Mode open-loop: messages a second, in all
    #[arg(long, value_parser = positive)]
    rate: Option<f64>,
    /// Mode open-loop: sleep until the next message is due, for where the server needs this core too.
    /// Less punctual than to look at the clock all the time
    #[arg(long)]
    sleep: bool,
    /// Seconds of load before the measured window
    #[arg(long, default_value = "0.5", value_parser = seconds)]
    warmup: Duration,
    /// Seconds of the measured window
    #[arg(long, default_value = "2", value_parser = seconds)]
    seconds: Duration,
    /// Send text messages
    #[arg(long, conflicts_with = "binary")]
    text: bool,
    /// Send binary messages (the default)
    #[arg(long)]
    binary: bool,
    /// TLS, of one version and with one cipher; the certificate is not looked at
    #[arg(long)]
    tls: bool,
    /// Send messages of text (JSON) compressed, each for itself, and expect the same back (echo and
    /// idle)
    #[arg(long, conflicts_with = "binary")]
    deflate: bool,
    /// Report CPU time and memory of this process too
    #[arg(long)]
    server_pid: Option<u32>,
    /// Mode idle: leave out the one echo per connection
    #[arg(long)]
    no_echo: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Mode {
    Echo,
    Broadcast,
    Publish,
    OpenLoop,
    Connect,
    Idle,
}

fn seconds(text: &str) -> std::result::Result<Duration, String> {
    let seconds: f64 = text.parse().map_err(|_| "not a number".to_owned())?;
    Duration::try_from_secs_f64(seconds).map_err(|error| error.to_string())
}

fn positive(text: &str) -> std::result::Result<f64, String> {
    let number: f64 = text.parse().map_err(|_| "not a number".to_owned())?;
    let right = number.is_finite() && number > 0.0;
    right
        .then_some(number)
        .ok_or_else(|| "has to be more than 0".to_owned())
}

fn main() -> ExitCode {
    let (report, code) = match run(&Args::parse()) {
        Ok(report) => (report, ExitCode::SUCCESS),
        Err(error) => {
            eprintln!("load: {error}");
            (
                Report {
                    error: Some(error.to_string()),
                    ..Report::default()
                },
                ExitCode::FAILURE,
            )
        }
    };
    println!(
        "{}",
        serde_json::to_string(&report).expect("numbers and strings")
    );
    code
}

fn run(args: &Args) -> Result<Report> {
    let resident_at_start = args.server_pid.map(process::resident).transpose()?;
    let (size, inflight) = (args.size as usize, args.inflight as usize);
    let traffic = match args.deflate {
        true if !matches!(args.mode, Mode::Echo | Mode::Idle) => {
            return Err(Error::other("--deflate is for echo and idle"));
        }
        true => Traffic::compressed(size, inflight)?,
        false => Traffic::new(Opcode::of_message(args.text), size, inflight),
    };
    let connections = args.connections as usize;
    let report = match args.mode {
        Mode::Echo => echo::run(Client::open(args, connections, traffic)?, args)?,
        Mode::Broadcast => fan_out::broadcast(Client::open(args, 1 + connections, traffic)?, args)?,
        Mode::Publish => fan_out::publish(Client::open(args, connections, traffic)?, args)?,
        Mode::OpenLoop => open_loop::run(Client::open(args, connections, traffic)?, args)?,
        Mode::Connect => connect::run(args)?,
        Mode::Idle => idle::run(
            Client::open(args, connections, traffic)?,
            args,
            resident_at_start,
        )?,
    };
    Ok(Report {
        resident_at_start,
        ..report
    })
}
