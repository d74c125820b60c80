//! Thousands of connections from one process, each with some messages in flight, and how long the
//! answers take.
//!
//! Start a server that sends everything back (`cargo run --release --example echo`), then
//! `cargo run --release --example load -- ws://127.0.0.1:9001 --connections 5000 --inflight 1`. Progress
//! goes to standard error, the histogram to standard output. With `--rate` each connection sends so
//! many messages a second at most; without, the next when an answer has come. If no connection is left at the end, that
//! is a failure.
#![allow(clippy::print_stdout)]

use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use framemill::{Client, ClientHandler, Clients, CloseReason, Error, HeaderMap, Message, Peer};

const USAGE: &str = "\
usage: load URL [OPTIONS]

  --connections N   [100]
  --size BYTES      of each message, at least 8 [64]
  --inflight N      messages of each connection that wait for their answer [1]
  --seconds S       how long to measure, once all are connected [10]
  --rate R          messages a second and connection at most, 0 for no limit [0]
  --loops N         event-loop threads [1]
  --workers N       worker threads; 0 is fastest [0]
";

/// What the library allows.
const MOST_QUEUED: usize = 1 << 30;

struct Args {
    client: Client,
    connections: usize,
    size: usize,
    inflight: usize,
    seconds: f64,
    rate: f64,
    loops: usize,
    workers: usize,
}

impl Args {
    fn parse() -> Result<Self, String> {
        let mut words = std::env::args().skip(1);
        let url = words.next().ok_or("a URL is needed")?;
        let mut args = Self {
            client: Client::new(url).map_err(|error| error.to_string())?,
            connections: 100,
            size: 64,
            inflight: 1,
            seconds: 10.0,
            rate: 0.0,
            loops: 1,
            workers: 0,
        };
        while let Some(name) = words.next() {
            let (name, value) = match name.split_once('=') {
                Some((name, value)) => (name.to_owned(), Some(value.to_owned())),
                None => (name, words.next()),
            };
            let value = || value.ok_or(format!("{name} needs a value"));
            match name.as_str() {
                "--connections" => args.connections = number(&name, &value()?)?,
                "--size" => args.size = number::<usize>(&name, &value()?)?.max(8),
                "--inflight" => args.inflight = number::<usize>(&name, &value()?)?.max(1),
                "--seconds" => args.seconds = finite(&name, &value()?)?.clamp(0.1, LONGEST),
                "--rate" => args.rate = finite(&name, &value()?)?.clamp(0.0, 1e6),
                "--loops" => args.loops = number(&name, &value()?)?,
                "--workers" => args.workers = number(&name, &value()?)?,
                _ => return Err(format!("{name} is not an option")),
            }
        }
        // Twice what a connection may ever have in its queue, and whatever it gets back.
        let message = args.size.saturating_add(16);
        let queue = args
            .inflight
            .saturating_mul(message)
            .saturating_mul(4)
            .max(1 << 20);
        if queue > MOST_QUEUED {
            return Err("--size and --inflight are too much for a connection".into());
        }
        args.client = args
            .client
            .outbound_limit(queue)
            .max_message(args.size.max(1 << 20));
        Ok(args)
    }
}

fn number<T: std::str::FromStr>(name: &str, value: &str) -> Result<T, String> {
    let wrong = |_| format!("{name}: {value} is not a number that fits");
    value.parse().map_err(wrong)
}

/// Neither infinite nor "not a number", both of which Rust reads.
fn finite(name: &str, value: &str) -> Result<f64, String> {
    let number: f64 = number(name, value)?;
    let wrong = || format!("{name}: {value} is not a number that fits");
    number.is_finite().then_some(number).ok_or_else(wrong)
}

/// Buckets of a histogram: 8 for each doubling of the microseconds, so within 9 % of the truth.
const BUCKETS: usize = 8 * 40;

fn bucket(us: u64) -> usize {
    let us = us.max(8);
    let doublings = us.ilog2() as usize;
    ((doublings - 3) * 8 + (us >> (doublings - 3)) as usize - 8).min(BUCKETS - 1)
}

/// The least number of microseconds that falls into a bucket.
fn least(bucket: usize) -> u64 {
    (8 + bucket as u64 % 8) << (bucket / 8)
}

/// Seconds of anything.
const LONGEST: f64 = 1e6;

/// What all connections share.
struct Run {
    start: Instant,
    size: usize,
    inflight: usize,
    /// Time between two messages of one connection.
    pause: Option<Duration>,
    open: AtomicUsize,
    failed: AtomicUsize,
    lost: AtomicUsize,
    /// All are connected: from now on it counts.
    measuring: AtomicBool,
    answers: AtomicU64,
    latencies: [AtomicU64; BUCKETS],
}

impl Run {
    fn us(&self) -> u64 {
        self.start.elapsed().as_micros() as u64
    }
}

/// One connection.
struct Bot {
    run: Arc<Run>,
    payload: Vec<u8>,
}

impl Bot {
    /// A message that carries the time it was sent.
    fn send(&mut self, peer: &Peer) {
        self.payload[..8].copy_from_slice(&self.run.us().to_be_bytes());
        let _ = peer.send(self.payload.clone());
    }
}

impl ClientHandler for Bot {
    fn open(&mut self, peer: &Peer, _: &HeaderMap) {
        self.run.open.fetch_add(1, Ordering::Relaxed);
        if self.run.pause.is_none() {
            (0..self.run.inflight).for_each(|_| self.send(peer));
        }
    }

    fn message(&mut self, peer: &Peer, message: Message) {
        let now = self.run.us();
        let data = message.into_data();
        if let Some(sent) = data.first_chunk().map(|sent| u64::from_be_bytes(*sent)) {
            if self.run.measuring.load(Ordering::Relaxed) {
                self.run.answers.fetch_add(1, Ordering::Relaxed);
                let latency = bucket(now.saturating_sub(sent));
                self.run.latencies[latency].fetch_add(1, Ordering::Relaxed);
            }
        }
        if self.run.pause.is_none() {
            self.send(peer);
        }
    }

    fn close(&mut self, _: &Peer, reason: &CloseReason) {
        self.run.open.fetch_sub(1, Ordering::Relaxed);
        if self.run.lost.fetch_add(1, Ordering::Relaxed) == 0 {
            log::warn!("the first to be lost: {reason}");
        }
    }

    fn error(&mut self, error: &Error) {
        if self.run.failed.fetch_add(1, Ordering::Relaxed) == 0 {
            log::warn!("the first that failed: {error}");
        }
    }
}

fn main() -> framemill::Result<()> {
    env_logger::init();
    let args = Args::parse().unwrap_or_else(|wrong| {
        eprintln!("{wrong}\n\n{USAGE}");
        std::process::exit(2);
    });
    let run = Arc::new(Run {
        start: Instant::now(),
        size: args.size,
        inflight: args.inflight,
        pause: (args.rate > 0.0).then(|| Duration::from_secs_f64((1.0 / args.rate).min(LONGEST))),
        open: AtomicUsize::new(0),
        failed: AtomicUsize::new(0),
        lost: AtomicUsize::new(0),
        measuring: AtomicBool::new(false),
        answers: AtomicU64::new(0),
        latencies: [const { AtomicU64::new(0) }; BUCKETS],
    });
    let clients = Clients::start(args.loops, args.workers)?;
    let mut handles = Vec::with_capacity(args.connections);
    for _ in 0..args.connections {
        let bot = Bot {
            run: run.clone(),
            payload: vec![b'x'; args.size],
        };
        handles.push(clients.open(args.client.clone(), bot)?);
    }
    if connect(&run, args.connections) == 0 {
        eprintln!("there is nothing to measure");
        std::process::exit(1);
    }
    measure(&run, Duration::from_secs_f64(args.seconds), || {
        if run.pause.is_some() {
            for handle in &handles {
                let mut payload = vec![b'x'; run.size];
                payload[..8].copy_from_slice(&run.us().to_be_bytes());
                let _ = handle.send(payload);
            }
        }
    });
    // Whether anybody reads it or not.
    let _ = report(&run, args.seconds);
    if run.open.load(Ordering::Relaxed) == 0 {
        eprintln!("all connections were lost");
        std::process::exit(1);
    }
    clients.shutdown(Duration::from_secs(2));
    Ok(())
}

/// Waits until every connection is open, was lost again or has failed: how many are open.
fn connect(run: &Run, connections: usize) -> usize {
    let count = |of: &AtomicUsize| of.load(Ordering::Relaxed);
    let done = || count(&run.open) + count(&run.lost) + count(&run.failed);
    while done() < connections {
        bar("connecting", done(), connections, "");
        std::thread::sleep(Duration::from_millis(50));
    }
    let open = count(&run.open);
    eprintln!(
        "\r\x1b[K{open} connected in {:.2?}, {} failed, {} were lost",
        run.start.elapsed(),
        count(&run.failed),
        count(&run.lost),
    );
    open
}

/// With a rate, calls `tick` once for each round of messages.
fn measure(run: &Run, time: Duration, tick: impl Fn()) {
    run.measuring.store(true, Ordering::Relaxed);
    let began = Instant::now();
    let (mut rounds, mut shown) = (0u32, Duration::ZERO);
    loop {
        let passed = began.elapsed();
        if passed >= time {
            break;
        }
        if passed >= shown {
            let answers = run.answers.load(Ordering::Relaxed);
            let note = format!(
                "{answers} answers, {} lost",
                run.lost.load(Ordering::Relaxed)
            );
            bar(
                "measuring",
                passed.as_millis() as usize,
                time.as_millis() as usize,
                &note,
            );
            shown = passed + Duration::from_millis(200);
        }
        let due = run.pause.map_or(shown, |pause| pause * rounds);
        if run.pause.is_some() && due <= passed {
            tick();
            rounds += 1;
        } else {
            std::thread::sleep(due.min(shown).min(time).saturating_sub(began.elapsed()));
        }
    }
    run.measuring.store(false, Ordering::Relaxed);
    eprint!("\r\x1b[K");
}

fn bar(what: &str, done: usize, of: usize, note: &str) {
    let filled = done * 40 / of.max(1);
    eprint!("\r\x1b[K{what} [{:<40}] {note}", "#".repeat(filled.min(40)));
}

fn report(run: &Run, seconds: f64) -> io::Result<()> {
    let mut out = io::stdout().lock();
    let counts: Vec<u64> = run
        .latencies
        .iter()
        .map(|n| n.load(Ordering::Relaxed))
        .collect();
    let all: u64 = counts.iter().sum();
    writeln!(
        out,
        "{:.0} answers a second, {} lost",
        all as f64 / seconds,
        run.lost.load(Ordering::Relaxed)
    )?;
    if all == 0 {
        return Ok(());
    }
    let percentile = |part: f64| {
        let mut left = (all as f64 * part).ceil() as u64;
        let place = counts.iter().position(|n| {
            left = left.saturating_sub(*n);
            left == 0
        });
        place.map_or(0, |place| least(place + 1))
    };
    for (name, part) in [
        ("50 %", 0.5),
        ("90 %", 0.9),
        ("99 %", 0.99),
        ("99.9 %", 0.999),
        ("all", 1.0),
    ] {
        writeln!(out, "{name:>7} within {}", micros(percentile(part)))?;
    }
    // Four buckets to a line: a line for each half of a doubling.
    let lines: Vec<u64> = counts.chunks(4).map(|four| four.iter().sum()).collect();
    let most = lines.iter().max().copied().unwrap_or(0).max(1);
    for (n, count) in lines.iter().enumerate().filter(|(_, count)| **count > 0) {
        let width = (count * 50).div_ceil(most) as usize;
        writeln!(
            out,
            "{:>9} {count:>9} {}",
            micros(least(n * 4)),
            "#".repeat(width)
        )?;
    }
    Ok(())
}

fn micros(us: u64) -> String {
    match us {
        0..=9_999 => format!("{us} µs"),
        10_000..=9_999_999 => format!("{} ms", us / 1000),
        _ => format!("{} s", us / 1_000_000),
    }
}
