//! A game for many: glide about, collect sparks, keep clear of the mines, dash into others to rob them.
//!
//! `cargo run --release --example game`, then open the printed address, on a phone with
//! `-- --addr 0.0.0.0:9001`. `--bots N` chooses how many play along, `--rate N` how many snapshots a second
//! are sent, and `--stats` prints each second what it costs.
#![allow(clippy::print_stdout)]

mod bots;
mod interest;
mod picture;
mod room;
mod server;
mod ship;
mod snapshot;
mod stats;
#[cfg(test)]
mod tests;
mod wire;
mod world;

use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::{Receiver, bounded, select, tick};
use framemill::Clients;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::stats::Stats;

const USAGE: &str = "\
usage: game [OPTIONS]

  --addr HOST:PORT   where to listen [127.0.0.1:9001]
  --rate N           snapshots a second, up to 60 [20]
  --bots N           players that are none [30]
  --stats            a line of figures each second
  --connect URL      no server, only bots, which play there
";

struct Args {
    addr: String,
    rate: u32,
    bots: usize,
    stats: bool,
    connect: Option<String>,
}

impl Args {
    fn parse() -> Result<Self, String> {
        let mut args = Self {
            addr: "127.0.0.1:9001".into(),
            rate: 20,
            bots: 30,
            stats: false,
            connect: None,
        };
        let mut words = std::env::args().skip(1);
        while let Some(name) = words.next() {
            let mut value = || words.next().ok_or(format!("{name} needs a value"));
            match name.as_str() {
                "--addr" => args.addr = value()?,
                "--rate" => args.rate = number(&value()?)?,
                "--bots" => args.bots = number(&value()?)?,
                "--stats" => args.stats = true,
                "--connect" => args.connect = Some(value()?),
                _ => return Err(format!("{name} is not an option")),
            }
        }
        match args.rate {
            1..=60 => Ok(args),
            _ => Err("--rate is from 1 to 60".into()),
        }
    }
}

fn number<T: std::str::FromStr>(text: &str) -> Result<T, String> {
    text.parse().map_err(|_| format!("{text} is no number"))
}

fn main() -> framemill::Result<()> {
    env_logger::init();
    let args = Args::parse().unwrap_or_else(|wrong| {
        eprintln!("{wrong}\n\n{USAGE}");
        std::process::exit(2);
    });
    let stats = Arc::new(Stats::new(args.stats));
    let (handle, url) = match args.connect {
        Some(url) => (None, url),
        None => {
            let handle = server::start(&args.addr, args.rate, stats.clone())?;
            let addr = handle.local_addrs().join(" http://");
            println!("listening on http://{addr}");
            let port = handle.local_addr().map_or(0, |addr| addr.port());
            (Some(handle), format!("ws://127.0.0.1:{port}/"))
        }
    };
    let clients = Clients::start(1, 0)?;
    bots::start(&clients, &url, args.bots)?;

    let every_second = match args.stats && handle.is_some() {
        true => tick(Duration::from_secs(1)),
        false => crossbeam_channel::never(),
    };
    let end = end()?;
    loop {
        select! {
            recv(every_second) -> _ => println!("{}", stats.line()),
            recv(end) -> _ => break,
        }
    }
    clients.shutdown(Duration::from_secs(1));
    if let Some(handle) = handle {
        handle.shutdown(Duration::from_secs(5));
    }
    Ok(())
}

/// Ctrl-C, or being told to end.
fn end() -> framemill::Result<Receiver<()>> {
    let (sender, end) = bounded(1);
    let mut signals = Signals::new([SIGINT, SIGTERM])?;
    std::thread::spawn(move || {
        signals.forever().next();
        let _ = sender.send(());
    });
    Ok(end)
}
