//! How many instructions the parts of a message's way take: what a change costs, on machines whose clocks
//! tell little.
//!
//! `cargo bench --bench instructions --features _internals` counts with valgrind, compares with
//! `benches/instructions.txt` and fails if anything takes over 5 % more (30 with workers), or if only one of the
//! two knows a case; `-- --renew` writes the file. The numbers are of one compiler and one libc: renew them with
//! either, and with every change that is worth its price.
//!
//! Each case runs in a process of its own, twice: what `2 * n` rounds take more than `n` is divided by
//! `n`, so that starting and warming up don't count. The client of an echo counts, which is the same few
//! system calls each time.
#![allow(clippy::print_stdout)]

use std::collections::{BTreeMap, VecDeque};
use std::fmt::Write as _;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::{Command, ExitCode};

use framemill::internals::{AnyMailbox, Parser, encode_text, through_mailbox};
use framemill::{Message, Origin, Peer, Server};

const FILE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/instructions.txt");

/// In percent.
const TOLERANCE: f64 = 5.0;
/// The same where two threads take turns: how long one looks out for the other before it sleeps depends on
/// what else the machine does.
const TOLERANCE_OF_TWO: f64 = 30.0;

/// Name, rounds, messages per round, and what runs so many rounds.
type Case = (&'static str, u64, u64, fn(u64));

const CASES: &[Case] = &[
    ("parse 16 B", 1000, 32, |n| parse(16, n)),
    ("parse 64 B", 1000, 32, |n| parse(64, n)),
    ("parse 1 KiB", 1000, 32, |n| parse(1024, n)),
    ("encode 64 B", 1000, 32, |n| encode(64, n)),
    ("encode 1 KiB", 1000, 32, |n| encode(1024, n)),
    ("mailbox, batches of 1", 10_000, 1, |n| mailbox(1, n)),
    ("mailbox, batches of 32", 1000, 32, |n| mailbox(32, n)),
    ("echo inline", 1000, 1, |n| echo(0, 1, n)),
    ("echo inline, 32 in flight", 200, 32, |n| echo(0, 32, n)),
    ("echo, 1 worker", 1000, 1, |n| echo(1, 1, n)),
    ("echo, 1 worker, 32 in flight", 200, 32, |n| echo(1, 32, n)),
];

fn frames(size: usize, count: usize) -> Vec<u8> {
    let mut frame = vec![0x81];
    match size {
        ..=125 => frame.push(0x80 | size as u8),
        _ => {
            frame.push(0x80 | 126);
            frame.extend((size as u16).to_be_bytes());
        }
    }
    let key = [0x12, 0x34, 0x56, 0x78];
    frame.extend(key);
    frame.extend(key.iter().cycle().take(size).map(|k| b'x' ^ k));
    frame.repeat(count)
}

fn parse(size: usize, rounds: u64) {
    let mut parser = Parser::default();
    let mut input = frames(size, 32);
    for _ in 0..rounds {
        assert_eq!(parser.parse(&mut input), 32);
    }
}

fn encode(size: usize, rounds: u64) {
    let payload = vec![b'x'; size];
    let mut out = Vec::with_capacity(64 << 10);
    for _ in 0..rounds {
        out.clear();
        (0..32).for_each(|_| encode_text(&payload, &mut out));
        assert!(out.len() > 32 * size);
    }
}

fn mailbox(items: u64, rounds: u64) {
    let mut mailbox = AnyMailbox::default();
    let mut batch = Box::<VecDeque<u64>>::default();
    for _ in 0..rounds {
        batch.extend(0..items);
        assert_eq!(
            through_mailbox(&mut mailbox, &mut batch),
            (0..items).sum::<u64>()
        );
    }
}

fn echo(workers: usize, in_flight: usize, rounds: u64) {
    let server = Server::bind("127.0.0.1:0").unwrap();
    let server = server.workers(workers).origin(Origin::Any).no_ping();
    let server = server
        .start(|peer: &Peer, message: Message| peer.send(message))
        .unwrap();
    let mut stream = TcpStream::connect(server.local_addr().unwrap()).unwrap();
    stream.set_nodelay(true).unwrap();
    let request = "GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
        Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n";
    stream.write_all(request.as_bytes()).unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).unwrap();
        head.extend(byte);
    }
    let input = frames(64, in_flight);
    let mut echoes = vec![0; in_flight * 66];
    for _ in 0..rounds {
        stream.write_all(&input).unwrap();
        stream.read_exact(&mut echoes).unwrap();
    }
    server.shutdown(std::time::Duration::ZERO);
}

/// Instructions of a process that runs so many rounds of the `case`th.
fn count(case: usize, rounds: u64) -> Option<u64> {
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
        .arg(std::env::current_exe().ok()?)
        .args(["run", &case.to_string(), &rounds.to_string()])
        .output()
        .ok()?;
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    let (_, after) = said.split_once("Collected : ")?;
    after.split_whitespace().next()?.parse().ok()
}

/// Per message. Of several tries the least: threads that meet otherwise than usual only ever add to it.
fn measure(case: usize) -> Option<f64> {
    let (name, rounds, messages, _) = CASES[case];
    let tries = if name.contains("worker") { 5 } else { 1 };
    let once = || {
        let more = count(case, 2 * rounds)? as f64 - count(case, rounds)? as f64;
        Some(more / (rounds * messages) as f64)
    };
    let counts: Option<Vec<f64>> = (0..tries).map(|_| once()).collect();
    counts?.into_iter().reduce(f64::min)
}

fn known() -> BTreeMap<String, f64> {
    let text = std::fs::read_to_string(FILE).unwrap_or_default();
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    lines
        .filter_map(|line| {
            let (count, name) = line.trim().split_once(' ')?;
            Some((name.trim().to_owned(), count.parse().ok()?))
        })
        .collect()
}

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if let [run, case, rounds] = &args[..] {
        if run == "run" {
            let case: usize = case.parse().unwrap();
            CASES[case].3(rounds.parse().unwrap());
            return ExitCode::SUCCESS;
        }
    }
    if Command::new("valgrind").arg("--version").output().is_err() {
        println!("skipped: there is no valgrind");
        return ExitCode::SUCCESS;
    }
    let renew = args.iter().any(|arg| arg == "--renew");
    let mut known = known();
    let (mut worse, mut unknown) = (0, 0);
    let mut lines =
        String::from("# Instructions per message, and what for; see instructions.rs.\n");
    println!("| instructions per message | known | now | change |\n|---|---|---|---|");
    for (case, (name, ..)) in CASES.iter().enumerate() {
        let now = measure(case).expect("valgrind tells a count");
        let _ = writeln!(lines, "{now:.0} {name}");
        let Some(before) = known.remove(*name) else {
            println!("| {name} | – | {now:.0} | new |");
            unknown += 1;
            continue;
        };
        let change = (now / before - 1.0) * 100.0;
        println!("| {name} | {before:.0} | {now:.0} | {change:+.1} % |");
        // What takes a handful of instructions changes by whole ones.
        let tolerance = match name.contains("worker") {
            true => TOLERANCE_OF_TWO,
            false => TOLERANCE,
        };
        worse += u32::from(change > tolerance && now - before > 2.0);
    }
    for (name, before) in &known {
        println!("| {name} | {before:.0} | – | gone |");
        unknown += 1;
    }
    if renew {
        std::fs::write(FILE, lines).unwrap();
        println!("written to {FILE}");
        return ExitCode::SUCCESS;
    }
    if worse > 0 {
        println!(
            "{worse} take over {TOLERANCE} % more ({TOLERANCE_OF_TWO} with workers): mend that, or renew the numbers (`-- --renew`)"
        );
    }
    if unknown > 0 {
        println!("{unknown} are here or in {FILE} only: renew the numbers (`-- --renew`)");
    }
    match worse + unknown {
        0 => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    }
}
