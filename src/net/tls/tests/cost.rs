//! What a connection costs. By hand, alone, with output:
//!
//!     cargo test --release --features tls --lib net::tls::tests::cost -- --ignored --nocapture --test-threads 1

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::time::Duration;

use mio::{Events, Poll, Token};

use super::super::{Tls, TlsStream};
use super::rig::{CERT, KEY, Rig, connector_to, tcp_pair, tls};
use crate::net::Stream;

const RSA_CERT: &[u8] = include_bytes!("../../../../tests/certs/rsa.pem");
const RSA_KEY: &[u8] = include_bytes!("../../../../tests/certs/rsa.key");

fn median(times: &mut [Duration]) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}

#[test]
#[ignore = "a measurement, run by hand as told at the top; figures are in docs and README"]
fn time_of_a_handshake() {
    for (name, cert, key) in [("EC P-256", CERT, KEY), ("RSA 4096", RSA_CERT, RSA_KEY)] {
        let tls = Tls::from_pem(cert, key).unwrap();
        let (mut all, mut longest) = (Vec::new(), Vec::new());
        for _ in 0..100 {
            let mut rig = Rig::over(tcp_pair(), &tls, cert);
            rig.shake_hands();
            all.push(rig.server.shaking.iter().sum());
            longest.push(*rig.server.shaking.iter().max().unwrap());
        }
        let (all, longest) = (median(&mut all), median(&mut longest));
        eprintln!("{name}: {all:?} in all, {longest:?} in the longest step");
        assert!(all < Duration::from_millis(100));
    }
}

/// Kilobytes of this process in memory.
fn resident() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:"));
    line.unwrap()
        .split_whitespace()
        .nth(1)
        .unwrap()
        .parse()
        .unwrap()
}

/// Shakes hands and echoes one byte.
fn serve(socket: TcpStream, tls: &Tls) -> Box<TlsStream> {
    socket.set_nonblocking(true).unwrap();
    let stream = Stream::Tcp(mio::net::TcpStream::from_std(socket));
    let mut stream = Box::new(TlsStream::server(stream, tls));
    let mut poll = Poll::new().unwrap();
    stream.register(poll.registry(), Token(0)).unwrap();
    let mut events = Events::with_capacity(8);
    let mut open = false;
    let mut byte = [0; 1];
    loop {
        poll.poll(&mut events, Some(Duration::from_secs(10)))
            .unwrap();
        assert!(!events.is_empty(), "no event will come any more");
        stream.socket_readable(false);
        open = open || stream.handshake().unwrap();
        if open && stream.has_buffered() && stream.read(&mut byte).is_ok() {
            stream.write(&byte).unwrap();
            let more = stream.has_buffered() && stream.read(&mut byte).is_ok();
            assert!(!more);
            return stream;
        }
    }
}

const CONNECTIONS: usize = 1000;
const PORT: &str = "FRAMEMILL_TEST_PORT";

#[test]
#[ignore = "a measurement, run by hand as told at the top; figures are in docs and README"]
fn memory_of_an_idle_connection() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut clients = Command::new(std::env::current_exe().unwrap())
        .args(["--ignored", "clients_of_the_measurement"])
        .env(PORT, listener.local_addr().unwrap().port().to_string())
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let tls = tls();
    let accept = || serve(listener.accept().unwrap().0, &tls);
    let mut connections: Vec<_> = (0..CONNECTIONS / 10).map(|_| accept()).collect();
    let before = resident();
    connections.extend((0..CONNECTIONS).map(|_| accept()));
    let each = (resident() - before) * 1024 / CONNECTIONS;
    eprintln!("{each} bytes for each of {CONNECTIONS} idle connections");
    assert!(each < 24 << 10);
    drop(clients.stdin.take());
    assert!(clients.wait().unwrap().success());
}

/// The other process, so that only the server's side is counted.
#[test]
#[ignore = "run by memory_of_an_idle_connection"]
fn clients_of_the_measurement() {
    let Ok(port) = std::env::var(PORT) else {
        return;
    };
    let connector = connector_to(CERT);
    let connect = || {
        let socket = TcpStream::connect(("127.0.0.1", port.parse().unwrap())).unwrap();
        let mut stream = connector.connect("localhost", socket).unwrap();
        stream.write_all(b"x").unwrap();
        stream.read_exact(&mut [0]).unwrap();
        stream
    };
    let _all: Vec<_> = (0..CONNECTIONS + CONNECTIONS / 10)
        .map(|_| connect())
        .collect();
    std::io::stdin().read_to_end(&mut Vec::new()).unwrap();
}
