//! What the example for small machines takes, under load.
#![cfg(target_os = "linux")]

mod support;

use std::thread;

use support::example::Example;
use support::{Raw, frame};

/// As many connections as it allows, each with messages as long as it allows, all at once.
const CONNECTIONS: usize = 64;
const LONGEST: usize = 16 << 10;

/// What it has allocated and uses. What else is resident are pages of the program and of libc, which
/// depend on how both are built.
fn own_memory(id: u32) -> usize {
    let status = std::fs::read_to_string(format!("/proc/{id}/status")).unwrap();
    let line = status.lines().find_map(|l| l.strip_prefix("RssAnon:"));
    let kib: usize = line
        .unwrap()
        .split_whitespace()
        .next()
        .unwrap()
        .parse()
        .unwrap();
    kib << 10
}

#[test]
fn little_memory_under_load() {
    let server = Example::start("embedded", &[]);
    let addr: std::net::SocketAddr = server.addr.parse().unwrap();
    let at_start = own_memory(server.id());
    let mut peers: Vec<Raw> = (0..CONNECTIONS).map(|_| Raw::open(addr)).collect();
    thread::scope(|scope| {
        for peer in &mut peers {
            scope.spawn(|| {
                for _ in 0..100 {
                    peer.write(&frame(0x82, &[1; LONGEST]));
                    assert_eq!(peer.frame().unwrap().1.len(), LONGEST);
                    peer.write(&frame(0x82, &[1; 64]).repeat(4));
                    (0..4).for_each(|_| assert_eq!(peer.frame().unwrap().1.len(), 64));
                }
            });
        }
    });
    let loaded = own_memory(server.id());
    eprintln!(
        "{} KiB at the start, {} after",
        at_start >> 10,
        loaded >> 10
    );
    // The libraries behind these features bring tables that are written to when they are loaded.
    if !cfg!(any(feature = "tls", feature = "redis")) {
        assert!(at_start < 512 << 10, "{at_start}");
    }
    assert!(loaded < at_start + (512 << 10), "{loaded}");

    // One more than it allows.
    let mut raw = Raw::connect(addr);
    raw.write(support::request(addr).as_bytes());
    assert_eq!(raw.response().0, 503);
}
