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

    let mut updates = HashMap::new();
    let (mut report, mut second) = (Report::default(), Instant::now());
    loop {
        let message = client.read()?;
        let value: Value = match message.to_text() {
            Ok(text) => serde_json::from_str(text).unwrap_or_default(),
            Err(_) => continue,
        };
        let number = |of: &Value, nth: usize| of[nth].as_u64().unwrap_or(0);
        // A snapshot: nothing is missed that was before it.
        for stock in value["stocks"].as_array().into_iter().flatten() {
            updates.insert(number(stock, 0), number(stock, 3));
        }
        if value.is_array() {
            let (key, nth) = (number(&value, 0), number(&value, 2));
            let before = updates.insert(key, nth).unwrap_or(0);
            report.read += 1;
            report.skipped += nth.saturating_sub(before + 1);
            let at = Duration::from_millis(number(&value, 3));
            report.oldest = report.oldest.max(started.elapsed().saturating_sub(at));
        }
        if second.elapsed() >= Duration::from_secs(1) {
            *told.lock().unwrap_or_else(PoisonError::into_inner) = report;
            (report, second) = (Report::default(), Instant::now());
        }
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
