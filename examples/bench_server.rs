//! The server with every knob, for benchmarks and conformance checks.
//!
//! `bench_server echo --addr 127.0.0.1:9001 --workers 0` sends every message back to its sender,
//! `broadcast` to every connection, the sender included, and `sink` to nobody. Prints one line,
//! `listening on ADDR`, when it is ready; ends on SIGINT or SIGTERM with a close frame (1001) to
//! everybody.
#![allow(clippy::print_stdout)]

use std::time::Duration;

use framemill::{Message, Origin, Peer, Server};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

const USAGE: &str = "\
usage: bench_server <echo|broadcast|sink> [OPTIONS]

  echo       every message back to its sender
  broadcast  every message to every connection, its sender included
  sink       every message to nobody

  --addr HOST:PORT|unix:PATH   where to listen [127.0.0.1:9001]
  --loops N                    event-loop threads [1]
  --workers N                  worker threads; 0 runs the handler on the loops [one per core]
  --max-message BYTES          longest message [1048576]
  --handshake-timeout SECS     for the opening handshake [10]
  --queue-limit BYTES          what may wait to be written to one peer [1048576]
  --ping SECS                  silence before a ping, 0 for no pings [25]
";

#[derive(Clone, Copy)]
enum Mode {
    Echo,
    Broadcast,
    Sink,
}

impl Mode {
    fn parse(word: Option<&str>) -> Result<Self, String> {
        match word {
            Some("echo") => Ok(Self::Echo),
            Some("broadcast") => Ok(Self::Broadcast),
            Some("sink") => Ok(Self::Sink),
            _ => Err("the first argument is echo, broadcast or sink".into()),
        }
    }
}

/// By hand, so that what is measured is the library and not an argument parser.
struct Args {
    mode: Mode,
    addr: String,
    loops: usize,
    workers: Option<usize>,
    max_message: usize,
    handshake_timeout: f64,
    queue_limit: usize,
    ping: f64,
}

impl Args {
    fn parse() -> Result<Self, String> {
        let mut words = std::env::args().skip(1);
        let mut args = Self {
            mode: Mode::parse(words.next().as_deref())?,
            addr: "127.0.0.1:9001".into(),
            loops: 1,
            workers: None,
            max_message: 1 << 20,
            handshake_timeout: 10.0,
            queue_limit: 1 << 20,
            ping: 25.0,
        };
        while let Some(name) = words.next() {
            let (name, value) = match name.split_once('=') {
                Some((name, value)) => (name.to_owned(), Some(value.to_owned())),
                None => (name, words.next()),
            };
            let value = value.ok_or(format!("{name} needs a value"))?;
            match name.as_str() {
                "--addr" => args.addr = value,
                "--loops" => args.loops = number(&name, &value)?,
                "--workers" => args.workers = Some(number(&name, &value)?),
                "--max-message" => args.max_message = number(&name, &value)?,
                "--handshake-timeout" => args.handshake_timeout = seconds(&name, &value)?,
                "--queue-limit" => args.queue_limit = number(&name, &value)?,
                "--ping" => args.ping = seconds(&name, &value)?,
                _ => return Err(format!("{name} is not an option")),
            }
        }
        Ok(args)
    }
}

fn number<T: std::str::FromStr>(name: &str, value: &str) -> Result<T, String> {
    let wrong = |_| format!("{name}: {value} is not a number that fits");
    value.parse().map_err(wrong)
}

fn seconds(name: &str, value: &str) -> Result<f64, String> {
    let seconds: f64 = number(name, value)?;
    let sensible = (0.0..=1e9).contains(&seconds);
    sensible
        .then_some(seconds)
        .ok_or(format!("{name}: {value} is not a number of seconds"))
}

fn main() -> framemill::Result<()> {
    env_logger::init();
    let args = Args::parse().unwrap_or_else(|wrong| {
        eprintln!("{wrong}\n\n{USAGE}");
        std::process::exit(2);
    });
    // Before any thread starts, so that no signal is missed.
    let mut signals = Signals::new([SIGINT, SIGTERM])?;

    let mut server = Server::bind(&args.addr)?
        .loops(args.loops)
        .max_message(args.max_message)
        .handshake_timeout(Duration::from_secs_f64(args.handshake_timeout))
        .outbound_limit(args.queue_limit)
        .origin(Origin::Any);
    if let Some(workers) = args.workers {
        server = server.workers(workers);
    }
    server = match args.ping {
        0.0 => server.no_ping(),
        seconds => server.ping(Duration::from_secs_f64(seconds), Duration::from_secs(20)),
    };
    let everybody = server.handle();
    let mode = args.mode;
    let handle = server.start(move |peer: &Peer, message: Message| match mode {
        Mode::Echo => drop(peer.send(message)),
        Mode::Broadcast => {
            everybody.broadcast(message);
        }
        Mode::Sink => {}
    })?;
    println!("listening on {}", handle.local_addrs().join(" "));

    signals.forever().next();
    handle.shutdown(Duration::from_secs(5));
    Ok(())
}
