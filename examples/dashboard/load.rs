//! Load that the server gives itself: what real clients do, good ones and bad.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::Receiver;
use framemill::{Client, ClientEvent, ClientHandle, Clients, CloseCode, Message};

/// Between two looks at what is to be done.
const STEP: Duration = Duration::from_millis(20);

/// A number that walks about; nothing here needs better ones.
struct Dice(u64);

impl Dice {
    fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % n
    }
}

/// No thought is longer, whoever asks for it: there are few workers, and all wait for them.
const LONGEST: Duration = Duration::from_millis(20);

/// How long the handler is to think of this message.
pub fn thought(message: &Message) -> Option<Duration> {
    let Message::Binary(payload) = message else {
        return None;
    };
    let us = u32::from_be_bytes(payload.get(..4)?.try_into().ok()?);
    (us > 0).then(|| Duration::from_micros(us.into()).min(LONGEST))
}

/// A message that is to be thought of for so long.
fn question(us: u32, len: usize) -> Message {
    let mut payload = vec![0; len.max(4)];
    payload[..4].copy_from_slice(&us.to_be_bytes());
    Message::binary(payload)
}

type Asker = (ClientHandle, Receiver<ClientEvent>);

/// Starts the clients of a server at `addr`, on threads of their own that end with the process.
pub fn start(addr: SocketAddr, most: usize) -> framemill::Result<()> {
    let clients = Clients::start(1, 1)?;
    thread::Builder::new()
        .name("load".into())
        .spawn(move || run(&clients, reachable(addr), most))?;
    Ok(())
}

/// Where a server can be reached from the same machine that listens at `addr`.
fn reachable(mut addr: SocketAddr) -> SocketAddr {
    if addr.ip().is_unspecified() {
        addr.set_ip(match addr {
            SocketAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
            SocketAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
        });
    }
    addr
}

fn run(clients: &Clients, addr: SocketAddr, most: usize) {
    let url = format!("ws://{addr}/");
    let mut dice = Dice(0x5EED_0F0C_0FFE_E000 | 1);
    let mut askers: Vec<Asker> = Vec::new();
    let begun = Instant::now();
    loop {
        let seconds = begun.elapsed().as_secs_f64();
        // Two waves, one long, one short.
        let wave = 0.65 + 0.25 * (seconds / 9.0).sin() + 0.1 * (seconds / 2.3).sin();
        let wanted = (most as f64 * wave) as usize;
        if askers.len() < wanted {
            if let Ok(client) = Client::new(&url) {
                askers.extend(clients.connect(client));
            }
        } else if askers.len() > wanted {
            leave(&mut askers, &mut dice);
        }
        let busy = 0.5 + 0.5 * (seconds / 5.0).sin().powi(3);
        for asker in &askers {
            ask(asker, busy, &mut dice);
        }
        if dice.below(150) == 0 {
            misbehave(addr, &mut dice);
        }
        thread::sleep(STEP);
    }
}

/// Takes what came, and asks a little more.
fn ask((client, events): &Asker, busy: f64, dice: &mut Dice) {
    while events.try_recv().is_ok() {}
    let Some(peer) = client.peer() else { return };
    for _ in 0..dice.below(2 + (busy * 4.0) as u64) {
        // Most thoughts are short.
        let us = match dice.below(400) {
            0 => 4_000 + dice.below(8_000) as u32,
            1..8 => 150 + dice.below(400) as u32,
            _ => 0,
        };
        let len = 32 + dice.below(480) as usize;
        let _ = peer.send(question(us, len));
    }
}

/// One goes away, in one way or another.
fn leave(askers: &mut Vec<Asker>, dice: &mut Dice) {
    let n = dice.below(askers.len() as u64) as usize;
    let (client, _) = askers.swap_remove(n);
    let Some(peer) = client.peer() else { return };
    match dice.below(10) {
        0 => drop(peer.close(CloseCode::from(4001), "bored")),
        1 => drop(peer.close(CloseCode::Status, "")),
        2..5 => drop(peer.close(CloseCode::Away, "")),
        _ => drop(peer.close(CloseCode::Normal, "")),
    }
}

/// What a server on the internet meets.
fn misbehave(addr: SocketAddr, dice: &mut Dice) {
    let Ok(mut stream) = TcpStream::connect(addr) else {
        return;
    };
    let _ = stream.set_read_timeout(Some(STEP));
    let upgrade = |path: &str, more: &str| {
        format!(
            "GET {path} HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n{more}\r\n"
        )
    };
    let said = match dice.below(6) {
        0 => "\x16\x03\x01 is this TLS?\r\n\r\n".into(),
        1 => upgrade("/", "Origin: https://elsewhere.example\r\n"),
        2 => upgrade("/admin", ""),
        3 => String::new(),
        // Opens, and goes without a word; or breaks a rule first.
        _ => upgrade("/", ""),
    };
    let _ = stream.write_all(said.as_bytes());
    if dice.below(2) == 0 {
        let _ = stream.read(&mut [0; 512]);
        let _ = stream.write_all(&[0xFF, 0x80, 0, 0, 0, 0]);
        let _ = stream.read(&mut [0; 512]);
    }
}
