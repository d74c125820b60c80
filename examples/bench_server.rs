//! The server with every knob, for benchmarks and conformance checks.
//!
//! `bench_server echo --addr 127.0.0.1:9001 --workers 0` sends every message back to its sender,
//! `broadcast` to every connection, the sender included, and `sink` to nobody. Prints one line,
//! `listening on ADDR`, when it is ready; ends on SIGINT or SIGTERM with a close frame (1001) to
//! everybody.
#![allow(clippy::print_stdout)]

use std::time::Duration;

use clap::{Parser, ValueEnum};
use framemill::{Message, Origin, Peer, Server};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

#[derive(Clone, Copy, ValueEnum)]
enum Mode {
    /// Every message back to its sender.
    Echo,
    /// Every message to every connection.
    Broadcast,
    /// Every message to nobody.
    Sink,
}

#[derive(Parser)]
struct Args {
    mode: Mode,
    /// HOST:PORT, or unix:PATH
    #[arg(long, default_value = "127.0.0.1:9001")]
    addr: String,
    /// Event-loop threads
    #[arg(long, default_value_t = 1)]
    loops: usize,
    /// Worker threads; 0 runs the handler on the loops. Default: one per core
    #[arg(long)]
    workers: Option<usize>,
    /// Longest message in bytes
    #[arg(long, default_value_t = 1 << 20)]
    max_message: usize,
    /// Seconds for the opening handshake
    #[arg(long, default_value_t = 10.0)]
    handshake_timeout: f64,
    /// Bytes that may wait to be written to one peer
    #[arg(long, default_value_t = 1 << 20)]
    queue_limit: usize,
    /// Seconds of silence before a ping; 0 for no pings
    #[arg(long, default_value_t = 25.0)]
    ping: f64,
}

fn main() -> framemill::Result<()> {
    env_logger::init();
    let args = Args::parse();
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
    let handle = match args.mode {
        Mode::Echo => server.start(|peer: &Peer, message: Message| peer.send(message))?,
        Mode::Broadcast => {
            server.start(move |_: &Peer, message: Message| everybody.broadcast(message))?
        }
        Mode::Sink => server.start(|_: &Peer, _: Message| ())?,
    };
    println!("listening on {}", handle.local_addrs().join(" "));

    signals.forever().next();
    handle.shutdown(Duration::from_secs(5));
    Ok(())
}
