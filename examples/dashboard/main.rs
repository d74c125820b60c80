//! A server that shows what it does, live: connections, rates, times, reasons, each loop and worker.
//!
//! `cargo run --release --example dashboard`, then open the printed address. So that something moves,
//! it connects to itself: some clients that ask now more, now less, and come and go, not all of them
//! politely. The page and its WebSocket are a handler around the real one, `support/dashboard`, which
//! other examples have too (`--dashboard`); `/metrics` has the same for Prometheus.
#![allow(clippy::print_stdout, unreachable_pub)]

#[path = "../support/dashboard/mod.rs"]
mod dashboard;
mod load;

use std::time::Duration;

use framemill::{Accept, Handler, Message, Peer, Request, Response, Server};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use self::dashboard::Dashboard;

const USAGE: &str = "\
usage: dashboard [OPTIONS]

  --addr HOST:PORT   [127.0.0.1:9001]
  --loops N          [2]
  --workers N        [4]
  --clients N        that make the load [80]
";

/// What took some thinking is told to all.
const THOUGHTS: &str = "thoughts";

/// Answers after it has thought a little: a message tells for how many microseconds.
struct Thinker;

impl Handler for Thinker {
    type Session = ();

    fn open(&self, request: &Request, peer: &Peer) -> Result<Accept<()>, Response> {
        if request.path() != "/" {
            return Err(Response::not_found());
        }
        peer.subscribe(THOUGHTS);
        Ok(Accept::new(()))
    }

    fn message(&self, (): &mut (), peer: &Peer, message: Message) {
        if let Some(time) = load::thought(&message) {
            std::thread::sleep(time);
            peer.publish(THOUGHTS, message.clone());
        }
        let _ = peer.send(message);
    }

    fn http(&self, request: &Request) -> Response {
        match request.path() {
            "/" => Response::html("<meta http-equiv=refresh content='0;url=/dashboard'>"),
            "/health" => Response::ok(),
            _ => Response::not_found(),
        }
    }
}

struct Args {
    addr: String,
    loops: usize,
    workers: usize,
    clients: usize,
}

impl Args {
    fn parse() -> Option<Self> {
        let mut args = Self {
            addr: "127.0.0.1:9001".into(),
            loops: 2,
            workers: 4,
            clients: 80,
        };
        let mut words = std::env::args().skip(1);
        while let Some(name) = words.next() {
            let value = words.next()?;
            match name.as_str() {
                "--addr" => args.addr = value,
                "--loops" => args.loops = value.parse().ok()?,
                "--workers" => args.workers = value.parse().ok()?,
                "--clients" => args.clients = value.parse().ok()?,
                _ => return None,
            }
        }
        Some(args)
    }
}

fn main() -> framemill::Result<()> {
    env_logger::init();
    let Some(args) = Args::parse() else {
        eprintln!("{USAGE}");
        std::process::exit(2);
    };
    let mut signals = Signals::new([SIGINT, SIGTERM])?;
    let handle = Server::bind(args.addr.as_str())?
        .loops(args.loops)
        .workers(args.workers)
        .ping(Duration::from_secs(5), Duration::from_secs(5))
        .start(Dashboard::around(Thinker))?;
    println!(
        "listening on http://{}",
        handle.local_addrs().join(" http://")
    );
    if let Some(addr) = handle.local_addr() {
        load::start(addr, args.clients)?;
    }
    signals.forever().next();
    handle.shutdown(Duration::from_secs(2));
    Ok(())
}
