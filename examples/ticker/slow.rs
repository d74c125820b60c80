//! A client that reads only so many bytes a second, and how far behind that leaves it.

use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use socket2::{Domain, Socket, Type};
use tungstenite::Message;

use crate::market::SECTORS;

/// So small that little waits in the kernel, where nothing can be replaced any more.
const RECEIVE_BUFFER: usize = 4 << 10;
/// The time that one read has to take.
const PACE: Duration = Duration::from_millis(50);

/// What happened to it in the last second.
#[derive(Clone, Copy, Debug, Default)]
pub struct Report {
    /// Updates that were read.
    pub read: u64,
    /// Updates that were never sent, as newer ones of their keys had come.
    pub skipped: u64,
    /// The greatest age of a price when it was read.
    pub oldest: Duration,
}

/// Connects to `addr`, and reads `bytes` a second of all sectors for as long as it can. `started` is
/// when the market's time began.
pub fn start(addr: SocketAddr, bytes: usize, started: Instant) -> Arc<Mutex<Report>> {
    let report = Arc::new(Mutex::new(Report::default()));
    let told = report.clone();
    thread::spawn(move || {
        if let Err(error) = run(addr, bytes, started, &told) {
            log::warn!("the slow client has ended: {error}");
        }
    });
    report
}

fn run(
    addr: SocketAddr,
    bytes: usize,
    started: Instant,
    told: &Mutex<Report>,
) -> Result<(), tungstenite::Error> {
    let socket = Socket::new(Domain::for_address(addr), Type::STREAM, None)?;
    socket.set_recv_buffer_size(RECEIVE_BUFFER)?;
    socket.connect(&addr.into())?;
    let trickle = Trickle {
        stream: socket.into(),
        at_once: (bytes as f64 * PACE.as_secs_f64()).ceil() as usize,
    };
    let url = format!("ws://{addr}/");
    let (mut client, _) = tungstenite::client::client(url, trickle)
        .map_err(|error| io::Error::other(error.to_string()))?;
    client.send(Message::text(json!({"watch": SECTORS}).to_string()))?;

    let mut seen = Seen::default();
    let (mut report, mut second) = (Report::default(), Instant::now());
    loop {
        let message = client.read()?;
        let value: Value = match message.to_text() {
            Ok(text) => serde_json::from_str(text).unwrap_or_default(),
            Err(_) => continue,
        };
        seen.read(&value, started.elapsed(), &mut report);
        if second.elapsed() >= Duration::from_secs(1) {
            *told.lock().unwrap_or_else(PoisonError::into_inner) = report;
            (report, second) = (Report::default(), Instant::now());
        }
    }
}

/// The number of the newest update of each key that was read.
#[derive(Debug, Default)]
pub struct Seen(HashMap<u64, u64>);

impl Seen {
    /// Counts what this message is, read `now` in the market's time.
    pub fn read(&mut self, message: &Value, now: Duration, report: &mut Report) {
        let number = |of: &Value, nth: usize| of[nth].as_u64().unwrap_or(0);
        // A snapshot: nothing is missed that was before it. What came after it may have been read already.
        for stock in message["stocks"].as_array().into_iter().flatten() {
            self.newest(number(stock, 0), number(stock, 3));
        }
        if message.is_array() {
            let (key, nth) = (number(message, 0), number(message, 2));
            let before = self.newest(key, nth).unwrap_or(nth);
            report.read += 1;
            report.skipped += nth.saturating_sub(before + 1);
            let at = Duration::from_millis(number(message, 3));
            report.oldest = report.oldest.max(now.saturating_sub(at));
        }
    }

    /// Remembers a number, unless a higher one is known: the one that was known.
    fn newest(&mut self, key: u64, nth: u64) -> Option<u64> {
        let before = self.0.get(&key).copied();
        self.0.insert(key, before.unwrap_or(0).max(nth));
        before
    }
}

/// A stream that gives a few bytes at a time, and takes its time.
struct Trickle {
    stream: TcpStream,
    at_once: usize,
}

impl Read for Trickle {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        thread::sleep(PACE);
        let len = buf.len().min(self.at_once);
        self.stream.read(&mut buf[..len])
    }
}

impl Write for Trickle {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.stream.write(buf)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stream.flush()
    }
}
