//! A server that runs out of descriptors: it goes on with those it has, does not spin, and accepts
//! again once some have left.
//!
//! The limit is per process, so the server runs in a child: this very program, under `ulimit -n`.
#![cfg(target_os = "linux")]

mod support;

use std::fs::read_to_string;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use support::{Raw, WAIT, client, echoes, request, serve, until};

const LIMIT: usize = 64;
const CLIENTS: usize = 100;

/// Set in the child, to its number of workers.
const WORKERS: &str = "FRAMEMILL_TEST_WORKERS";

/// Not a test by itself: what the child runs, until its input ends.
#[test]
fn child() {
    let Ok(workers) = std::env::var(WORKERS) else {
        return;
    };
    let server = serve(
        |s| s.workers(workers.parse().unwrap()),
        |peer: &framemill::Peer, message| peer.send(message),
    );
    // Not `println!`, which the test harness would keep.
    writeln!(std::io::stdout(), "\n{}", server.addr).unwrap();
    std::io::stdin().read_to_end(&mut Vec::new()).unwrap();
}

struct Server {
    child: Child,
    addr: SocketAddr,
}

impl Server {
    fn start(workers: usize) -> Self {
        let this = std::env::current_exe().unwrap();
        let mut child = Command::new("sh")
            .args(["-c", r#"ulimit -n "$1"; exec "$2" --exact child"#, "sh"])
            .arg(LIMIT.to_string())
            .arg(this)
            .env(WORKERS, workers.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let (found, addr) = crossbeam_channel::bounded(1);
        // Reads to the end, so that the child never has to wait for us.
        thread::spawn(move || {
            for addr in lines.filter_map(|line| line.ok()?.parse().ok()) {
                found.send(addr).unwrap();
            }
        });
        let addr = addr.recv_timeout(WAIT).expect("the child starts");
        Self { child, addr }
    }

    fn descriptors(&self) -> usize {
        let path = format!("/proc/{}/fd", self.child.id());
        std::fs::read_dir(path).map_or(0, Iterator::count)
    }

    /// User and system time so far.
    fn cpu(&self) -> Duration {
        let stat = read_to_string(format!("/proc/{}/stat", self.child.id())).unwrap();
        // After the name, which is in parentheses, come the third field and the rest.
        let (_, rest) = stat.rsplit_once(')').unwrap();
        let ticks = rest.split_whitespace().skip(14 - 3).take(2);
        let ticks: u64 = ticks.map(|ticks| ticks.parse::<u64>().unwrap()).sum();
        Duration::from_millis(ticks * 10)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // The end of its input ends it; but it may not be able to hear.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_server_without_descriptors_lives_on_and_rests() {
    for workers in [0, 2] {
        let mut server = Server::start(workers);
        let mut first = client(server.addr);
        echoes(&mut first, "plenty");

        // More than it can hold; the kernel connects them all.
        let mut clients: Vec<_> = (0..CLIENTS).map(|_| Raw::connect(server.addr)).collect();
        for raw in &mut clients {
            raw.write(request(server.addr).as_bytes());
        }
        // Some above the limit may be inherited.
        until("it has no descriptor left", || {
            server.descriptors() >= LIMIT
        });
        assert!(clients[0].head().starts_with("HTTP/1.1 101 "));

        // It neither spins nor neglects those it has.
        let before = server.cpu();
        thread::sleep(Duration::from_secs(1));
        let spent = server.cpu() - before;
        eprintln!("workers {workers}: {spent:?} of CPU time in a second of starvation");
        assert!(spent < Duration::from_millis(300), "{spent:?} in a second");
        assert!(server.descriptors() >= LIMIT);
        for _ in 0..10 {
            echoes(&mut first, "hungry");
        }
        let last = clients.last_mut().unwrap();
        assert!(!last.hears(Duration::from_millis(1)), "it had room for all");

        // Half of them leave, and there is room for the others.
        clients.drain(..CLIENTS / 2);
        for raw in &mut clients[CLIENTS / 2 - 10..] {
            assert!(raw.head().starts_with("HTTP/1.1 101 "));
        }
        echoes(&mut first, "plenty");
        drop(clients);
        echoes(&mut client(server.addr), "a newcomer");
        assert_eq!(server.child.try_wait().unwrap(), None, "it lives");
    }
}
