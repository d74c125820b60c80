//! What a burst leaves behind in memory: next to nothing. In a file of its own, as it looks at the whole
//! process. The allocator has to be told: see `Server::on_quiet`.
#![cfg(all(target_os = "linux", target_env = "gnu"))]
#![allow(
    unsafe_code,
    reason = "malloc_trim and mallopt can't be called without"
)]

mod support;

use std::hint::black_box;
use std::io::Read;
use std::thread;
use std::time::{Duration, Instant};

use framemill::{Message, Peer};
use support::spy::{narrow, upgraded};
use support::{Raw, Transport, WAIT, alone, frame, memory, until};

const CONNECTIONS: usize = 1000;
/// What each is sent, and does not read at first.
const EACH: usize = 1 << 20;

/// What may stay beyond a tenth of what was there before, two thousandths of the burst: small blocks lie
/// scattered in what some threads allocated from, and each keeps a page. 0.1 to 1.4 MB stay in all, as a rule.
const REST: usize = 2 << 20;

/// `mallopt`'s name for how much may stay free at the end of what a thread allocates from. `malloc_trim`
/// doesn't touch that, and glibc raises it by itself to twice the largest block that it mapped: 2 MiB for
/// each thread, once a message of 1 MiB was freed.
const M_TRIM_THRESHOLD: i32 = -1;

unsafe extern "C" {
    fn malloc_trim(pad: usize) -> i32;
    fn mallopt(param: i32, value: i32) -> i32;
}

/// The end of what a thread allocates from is none of `malloc_trim`'s; glibc looks at it when the thread frees
/// 64 KiB at once.
fn trim() {
    drop(black_box(vec![1_u8; 100 << 10]));
    unsafe { malloc_trim(0) };
}

/// An echo; but what says how large messages should be gets as many of them as come to `EACH`.
fn answer(peer: &Peer, message: Message) {
    match message.to_text().unwrap_or_default().parse() {
        Ok(size) => (0..EACH / size).for_each(|_| peer.send(vec![1; size]).map(drop).unwrap()),
        Err(_) => peer.send(message).map(drop).unwrap(),
    }
}

/// One that is not a number.
fn echo(raw: &mut Raw) {
    raw.write(&frame(0x81, b"hello"));
    assert_eq!(raw.frame().unwrap().1, b"hello");
}

/// A gigabyte waits in the server, until the peers read it.
fn burst(workers: usize, size: usize) {
    let server = Transport::Plain.serve_narrow(
        |s| {
            s.workers(workers)
                .no_ping()
                .outbound_limit(4 * EACH)
                .on_quiet(trim)
        },
        answer,
    );
    unsafe { mallopt(M_TRIM_THRESHOLD, 128 << 10) };
    let mut peers: Vec<Raw> = (0..CONNECTIONS)
        .map(|_| upgraded(narrow(server.addr)))
        .collect();
    peers.iter_mut().for_each(echo);
    let header = if size < 1 << 16 { 4 } else { 10 };
    let mut answers = vec![0; EACH / size * (header + size)];
    answers.fill(1); // so that its pages are there before
    trim();
    let before = memory("VmRSS");
    for peer in &mut peers {
        peer.write(&frame(0x81, size.to_string().as_bytes()));
    }
    let most = CONNECTIONS * EACH;
    until("most of it waits", || {
        memory("VmRSS") > before + most / 4 * 3
    });
    for peer in &mut peers {
        peer.stream.read_exact(&mut answers).unwrap();
        assert_eq!(answers.last(), Some(&1));
    }
    let most = before + before / 10 + REST;
    // Trimmed once when it has been quiet, and not everything may have been free by then: once more after
    // some life.
    let given_back = || memory("VmRSS") < most;
    let within = |time| {
        let begun = Instant::now();
        while !given_back() && begun.elapsed() < time {
            thread::sleep(Duration::from_millis(5));
        }
    };
    for _ in 0..3 {
        within(WAIT / 4);
        if !given_back() {
            peers.iter_mut().take(10).for_each(echo);
        }
    }
    until("it is given back", given_back);
    peers.iter_mut().for_each(echo);
    eprintln!(
        "{workers} workers, {size} B: {} KiB before, {} after",
        before >> 10,
        memory("VmRSS") >> 10
    );
}

#[test]
fn inline() {
    let _alone = alone();
    for size in [1 << 10, 16 << 10] {
        burst(0, size);
    }
}

#[test]
fn with_workers() {
    let _alone = alone();
    for size in [1 << 10, 16 << 10] {
        burst(2, size);
    }
}
