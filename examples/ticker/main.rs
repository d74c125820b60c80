//! Live data: thousands of prices that walk at random, to as many clients as like, each at its own
//! pace.
//!
//! `cargo run --release --example ticker`, then open the printed address. Each sector is a topic, and
//! a price is published as the latest of its key: a client that reads slowly gets fewer updates, but
//! those are the newest there are, and no more than one for each key waits for it. How old they are
//! when they are read depends on what the loop and the kernel have taken already, and on the pace of
//! the client. With `-- --slow-client` there is one that reads 32 KiB a second; the page and the
//! terminal show how it fares.
//!
//! | to the server | |
//! |---|---|
//! | `{"watch": [SECTOR, …]}` | instead of what was watched before |
//!
//! | from the server | |
//! |---|---|
//! | `[KEY, CENTS, N, AT]` | a price: the Nth of its key, set at AT milliseconds |
//! | `{"sector": …, "stocks": [[KEY, SYMBOL, CENTS, N, OPEN, STEPS], …]}` | what a sector begins with |
//! | `{"published": …, "clients": …, "queued": …, "slow": …}` | once a second |
#![allow(clippy::print_stdout, unreachable_pub)]

#[path = "../support/dashboard/mod.rs"]
mod dashboard;
mod market;
mod slow;

use std::collections::{BTreeSet, HashMap};
use std::io::Write;
use std::net::ToSocketAddrs;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use framemill::{
    Accept, CloseCode, CloseReason, Handler, HeaderValue, Message, MessageRate, OverRate, Peer,
    PeerId, Request, Response, Server, ServerHandle, StatusCode, header,
};
use serde_json::{Value, json};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use socket2::{Domain, Socket, Type};

use self::dashboard::Dashboard;
use self::market::{Market, SECTORS};
use self::slow::Report;

const PAGE: &str = include_str!("page.html");

const USAGE: &str = "\
usage: ticker [OPTIONS]

  --addr HOST:PORT         [127.0.0.1:9001]
  --keys N                 prices, up to 5000 [2000]
  --rate N                 updates a second, of all together [4000]
  --slow-client[=BYTES]    a client that reads so many bytes a second [32768]
  --dashboard              a page of figures, /dashboard
";

/// Between two rounds of updates.
const ROUND: Duration = Duration::from_millis(20);

/// For no more time than this are updates made up for, after the process was held up.
const LATE: Duration = Duration::from_secs(1);

/// What may wait in the kernel for a client that doesn't read. Left alone, the kernel takes
/// megabytes, and what it has taken gets old there.
const SEND_BUFFER: usize = 16 << 10;

/// The topic of the figures that the page shows.
const FIGURES: &str = "figures";

struct Args {
    addr: String,
    keys: usize,
    rate: usize,
    slow: Option<usize>,
    dashboard: bool,
}

#[derive(Clone)]
struct Ticker(Arc<State>);

struct State {
    started: Instant,
    /// Updates a second.
    rate: usize,
    market: Mutex<Market>,
    pace: Mutex<Pace>,
    peers: Mutex<HashMap<PeerId, Peer>>,
    slow: OnceLock<Arc<Mutex<Report>>>,
}

/// How many updates there were, and are to be.
#[derive(Default)]
struct Pace {
    /// Up to when they were counted, since the start.
    until: Duration,
    /// Part of an update.
    rest: f64,
    published: u64,
}

impl Pace {
    /// Those that are due `now`, at so many a second.
    fn due(&mut self, now: Duration, rate: usize) -> usize {
        let passed = now.saturating_sub(self.until).min(LATE);
        let due = self.rest + passed.as_secs_f64() * rate as f64;
        self.until = now;
        self.rest = due.fract();
        due as usize
    }
}

impl Handler for Ticker {
    /// The sectors that are watched.
    type Session = BTreeSet<usize>;

    fn start(&self, server: &ServerHandle) {
        let (ticker, handle) = (self.clone(), server.clone());
        server.every(ROUND, move || ticker.round(&handle));
        let (ticker, handle) = (self.clone(), server.clone());
        server.every(Duration::from_secs(1), move || {
            lock(&ticker.0.market).remember();
            let figures = ticker.figures();
            if let Some(slow) = figures["slow"].as_object() {
                // A timer that panics is cancelled: the page's figures need no terminal.
                let _ = writeln!(
                    std::io::stdout(),
                    "slow client: {} updates read, {} skipped, {} ms old at most, {} bytes queued",
                    slow["read"],
                    slow["skipped"],
                    slow["oldest"],
                    figures["queued"]
                );
            }
            handle.publish_latest(FIGURES, FIGURES, figures.to_string());
        });
    }

    fn open(&self, _: &Request, peer: &Peer) -> Result<Accept<Self::Session>, Response> {
        lock(&self.0.peers).insert(peer.id(), peer.clone());
        peer.subscribe(FIGURES);
        Ok(Accept::new(BTreeSet::new()))
    }

    fn message(&self, watched: &mut Self::Session, peer: &Peer, message: Message) {
        let Some(wanted) = watch(&message) else {
            peer.close(
                CloseCode::Policy,
                "{\"watch\": [sector, ...]} is what I understand",
            );
            return;
        };
        for gone in watched.difference(&wanted) {
            peer.unsubscribe(SECTORS[*gone]);
        }
        for new in wanted.difference(watched) {
            // In this order nothing is missed. An update may come twice, and one that is newer than the
            // snapshot before it, in the place of an older one that waited: the higher number wins.
            peer.subscribe(SECTORS[*new]);
            let snapshot = lock(&self.0.market).snapshot(*new);
            let _ = peer.send(snapshot);
        }
        *watched = wanted;
    }

    fn close(&self, _: Self::Session, peer: &Peer, _: &CloseReason) {
        lock(&self.0.peers).remove(&peer.id());
    }

    fn http(&self, request: &Request) -> Response {
        match request.path() {
            "/" => Response::html(PAGE),
            "/figures" => Response::new(StatusCode::OK)
                .header(
                    header::CONTENT_TYPE,
                    HeaderValue::from_static("application/json"),
                )
                .body(self.figures().to_string()),
            "/health" => Response::ok(),
            _ => Response::not_found(),
        }
    }
}

impl Ticker {
    fn new(args: &Args) -> Self {
        let started = Instant::now();
        Self(Arc::new(State {
            started,
            rate: args.rate,
            market: Mutex::new(Market::new(args.keys, 0x5EED_0F0C_0FFE_E000)),
            pace: Mutex::default(),
            peers: Mutex::new(HashMap::new()),
            slow: OnceLock::new(),
        }))
    }

    /// Sets some prices, and tells who watches.
    fn round(&self, server: &ServerHandle) {
        let now = self.0.started.elapsed();
        let due = lock(&self.0.pace).due(now, self.0.rate);
        let mut quotes = Vec::with_capacity(due);
        let mut market = lock(&self.0.market);
        for _ in 0..due {
            let key = market.walk(now.as_millis() as u64);
            let stock = &market.stocks[key];
            quotes.push((SECTORS[stock.sector], key as u64, stock.quote(key)));
        }
        // Who asks for a snapshot need not wait for what follows.
        drop(market);
        for (topic, key, quote) in quotes {
            server.publish_latest(topic, key, quote);
        }
        lock(&self.0.pace).published += due as u64;
    }

    fn figures(&self) -> Value {
        let peers = lock(&self.0.peers);
        let queued = peers.values().map(Peer::queued_bytes).max();
        let slow = self.0.slow.get().map(|report| *lock(report));
        json!({
            "published": lock(&self.0.pace).published,
            "clients": peers.len(),
            // For the one that is furthest behind.
            "queued": queued.unwrap_or(0),
            "slow": slow.map(|slow| json!({
                "read": slow.read,
                "skipped": slow.skipped,
                "oldest": slow.oldest.as_millis() as u64,
            })),
        })
    }
}

/// What a client wants to watch.
fn watch(message: &Message) -> Option<BTreeSet<usize>> {
    let value: Value = serde_json::from_str(message.to_text().ok()?).ok()?;
    let names = value["watch"].as_array()?.iter();
    let known = |name: &Value| SECTORS.iter().position(|sector| name == sector);
    names.map(known).collect()
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A listener whose connections have a small send buffer.
fn listen(addr: &str) -> std::io::Result<std::net::TcpListener> {
    let addr = addr.to_socket_addrs()?.next();
    let addr = addr.ok_or(std::io::ErrorKind::AddrNotAvailable)?;
    let socket = Socket::new(Domain::for_address(addr), Type::STREAM, None)?;
    socket.set_reuse_address(true)?;
    socket.set_send_buffer_size(SEND_BUFFER)?;
    socket.bind(&addr.into())?;
    socket.listen(1024)?;
    Ok(socket.into())
}

fn parse() -> Result<Args, String> {
    let mut args = Args {
        addr: "127.0.0.1:9001".into(),
        keys: 2000,
        rate: 4000,
        slow: None,
        dashboard: false,
    };
    let number = |name: &str, text: &str, most: usize| match text.parse() {
        Ok(number) if (1..=most).contains(&number) => Ok(number),
        _ => Err(format!("{name} is a number from 1 to {most}")),
    };
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        if word == "--dashboard" {
            args.dashboard = true;
            continue;
        }
        let (name, value) = match word.split_once('=') {
            Some((name, value)) => (name, Some(value.to_owned())),
            None if word == "--slow-client" => (&*word, Some("32768".into())),
            None => (&*word, words.next()),
        };
        let value = || value.ok_or(format!("{name} needs a value"));
        match name {
            "--addr" => args.addr = value()?,
            "--keys" => args.keys = number(name, &value()?, 5000)?,
            "--rate" => args.rate = number(name, &value()?, 1_000_000)?,
            "--slow-client" => args.slow = Some(number(name, &value()?, 1 << 30)?),
            _ => return Err(format!("{name} is not an option")),
        }
    }
    Ok(args)
}

fn main() -> framemill::Result<()> {
    env_logger::init();
    let args = parse().unwrap_or_else(|wrong| {
        eprintln!("{wrong}\n{USAGE}");
        std::process::exit(2);
    });
    let mut signals = Signals::new([SIGINT, SIGTERM])?;
    let ticker = Ticker::new(&args);
    let listener = listen(&args.addr).map_err(|source| framemill::Error::Bind {
        addr: args.addr.clone(),
        source,
    })?;
    let server = Server::bind(listener)?
        // A snapshot is much for a little question.
        .message_rate(MessageRate {
            per_second: 5,
            burst: 10,
            over: OverRate::Wait,
        });
    let handle = match args.dashboard {
        true => server.start(Dashboard::around(ticker.clone()))?,
        false => server.start(ticker.clone())?,
    };
    println!(
        "listening on http://{}",
        handle.local_addrs().join(" http://")
    );
    if let (Some(bytes), Some(addr)) = (args.slow, handle.local_addr()) {
        let report = slow::start(addr, bytes, ticker.0.started);
        let _ = ticker.0.slow.set(report);
    }
    signals.forever().next();
    // Slow clients would take longer.
    handle.shutdown(Duration::from_secs(2));
    Ok(())
}
