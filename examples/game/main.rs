//! A game for many: glide about, collect sparks, keep clear of the mines, dash into others to rob them.
//!
//! `cargo run --release --example game`, then open the printed address; or, with `-- --addr 0.0.0.0:9001`,
//! port 9001 of this machine's address on a phone. `--bots N` chooses how many play along, `--rate N` how many snapshots a second
//! are sent, and `--stats` prints each second what it costs.
//!
//! An address may have 50 players, beside the bots of this process: `--per-address N` is for crowds that come from
//! one, as that of `--bots 500 --connect URL` does.
//!
//! | file | |
//! |---|---|
//! | `ship.rs` | how a ship moves, in integers |
//! | `things.rs` | ships and their inputs, mines, sparks |
//! | `world.rs` | the rules; the same calls make the same world |
//! | `interest.rs` | the grid: who is near whom |
//! | `wire.rs` | the messages, and how people are put out who send others |
//! | `snapshot.rs`, `picture.rs` | deltas, written and taken in |
//! | `room.rs` | the arena as a [`Room`](framemill::Room): inputs in, ticks, snapshots out |
//! | `server.rs` | limits, the page, hello |
//! | `bots.rs` | players through the library's own client |
//! | `stats.rs` | what it costs |
//! | `sim.js`, `steer.js`, `draw.js`, `game.js` | the page: what it mirrors of the above, what is steered and seen, all the rest |
//!
//! **Who knows what.** The server alone decides. A page sends inputs with numbers, carries them out at once on
//! its own ship, and corrects itself by each snapshot, which tells the last input that was carried out. Both
//! sides move ships by the same integers, so without a hit by others there is nothing to correct. The others are
//! drawn 100 ms behind, between two snapshots.
//!
//! **Slow clients.** A snapshot is what has changed since the last one that this client was sent. One that has
//! not left for the kernel yet is not followed by another: the client is passed over, and gets a fresh delta
//! when it has caught up. What the kernel takes is kept small, see `SEND_BUFFER`: it gets old there. After ten
//! seconds of being passed over a client is put out (4005).
//!
//! **Lost connections.** The ship stays for 20 s, marked and safe, unless nobody has ever steered it, or the arena
//! is full and somebody new needs its place. Whoever shows its token has it back. A page that hears
//! nothing for five seconds takes its connection for lost, as a link that dies need not say so.
//!
//! # What it costs
//! Release build, the server alone in its process and 500 bots in another (`--bots 500 --connect URL`), on two
//! shared cores that were busy with other things, seconds in which the server was not kept from running:
//!
//! | snapshots a second | 20 | 30 |
//! |---|---|---|
//! | bytes to each player and second, frame headers included | 5,400 | 8,500 |
//! | mean snapshot | 268 bytes | 283 bytes |
//! | server CPU per player and second | 0.53 ms | 0.61 ms |
//! | tick, median and p99 | 1.7 and 3.3 ms | 2.6 and 3.7 ms |
//!
//! As JSON the same changes take 12.7 times as many bytes, and all that is in view 22 times (means of 19 snapshots
//! that `--stats` compared at 20 a second). With 50 bots it is 1,550 bytes to each player and second. When the
//! server was kept from running for half a second at a time, ticks merged, snapshots were passed over, and
//! a second later all was as before.
#![allow(clippy::print_stdout)]

mod bots;
#[path = "../support/dashboard/mod.rs"]
mod dashboard;
mod interest;
mod picture;
mod room;
mod server;
mod ship;
mod snapshot;
mod stats;
mod things;
mod wire;
mod world;

use std::io::{Write, stdout};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::{Receiver, bounded, select, tick};
use framemill::Clients;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::dashboard::Dashboard;
use crate::stats::Stats;

const USAGE: &str = "\
usage: game [OPTIONS]

  --addr HOST:PORT   where to listen [127.0.0.1:9001]
  --rate N           snapshots a second, up to 60 [20]
  --bots N           players that are none [30]
  --stats            a line of figures each second
  --dashboard        a page of figures, /dashboard
  --per-address N    players from one address, beside these bots [50]
  --connect URL      no server, only bots, which play there
";

struct Args {
    addr: String,
    rate: u32,
    bots: u32,
    stats: bool,
    dashboard: bool,
    per_address: u32,
    connect: Option<String>,
}

impl Args {
    fn parse() -> Result<Self, String> {
        let mut args = Self {
            addr: "127.0.0.1:9001".into(),
            rate: 20,
            bots: 30,
            stats: false,
            dashboard: false,
            per_address: 50,
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
                "--dashboard" => args.dashboard = true,
                "--per-address" => args.per_address = number(&value()?)?,
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
    // Before anybody is told that it runs.
    let end = end()?;
    let stats = Arc::new(Stats::new(args.stats));
    let (handle, url) = match args.connect {
        Some(url) => (None, url),
        None => {
            let players = args.per_address.saturating_add(args.bots);
            let server = server::bind(args.addr.as_str(), players)?;
            let game = server::Game::new(args.rate, stats.clone());
            let handle = match args.dashboard {
                true => server.start(Dashboard::around(game))?,
                false => server.start(game)?,
            };
            let addr = handle.local_addrs().join(" http://");
            println!("listening on http://{addr}");
            let addr = handle.local_addr().expect("it listens on TCP");
            (Some(handle), url_from_here(addr))
        }
    };
    let clients = Clients::start(1, 0)?;
    bots::start(&clients, &url, args.bots as usize)?;

    let every_second = match args.stats && handle.is_some() {
        true => tick(Duration::from_secs(1)),
        false => crossbeam_channel::never(),
    };
    loop {
        select! {
            // Whether anybody reads it or not, the game goes on.
            recv(every_second) -> _ => drop(writeln!(stdout(), "{}", stats.line())),
            recv(end) -> _ => break,
        }
    }
    clients.shutdown(Duration::from_secs(1));
    if let Some(handle) = handle {
        handle.shutdown(Duration::from_secs(5));
    }
    Ok(())
}

/// How this machine reaches a server that listens there.
fn url_from_here(addr: SocketAddr) -> String {
    let ip = match addr.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    format!("ws://{}/", SocketAddr::new(ip, addr.port()))
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
