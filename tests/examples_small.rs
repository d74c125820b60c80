//! The examples that do one thing, and the programs that measure, as processes: that they start, and do it.
#![cfg(unix)]

mod support;

use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};
use std::thread;

use support::example::{Example, Program, binary, outcome, run};
use support::folder::Folder;
use support::{Addr, Raw, WAIT, frame, until};

fn open(example: &Example) -> Raw {
    let addr: std::net::SocketAddr = example.addr.parse().unwrap();
    Raw::open(Addr::from(addr))
}

fn say(raw: &mut Raw, text: &str) {
    raw.write(&frame(0x81, text.as_bytes()));
}

fn hear(raw: &mut Raw) -> String {
    let (first, payload) = raw.frame().expect("a message");
    assert_eq!(first, 0x81);
    String::from_utf8(payload).unwrap()
}

/// It does not say where it listens, so the test names a place that is nobody else's.
#[test]
fn echo_sends_back() {
    let folder = Folder::new("echo");
    let path = folder.file("echo.sock");
    let _echo = Program::start("echo", &[&format!("unix:{path}")], Stdio::null());
    let mut stream = None;
    until("it listens", || {
        stream = UnixStream::connect(&path).ok();
        stream.is_some()
    });
    let stream = stream.unwrap();
    stream.set_read_timeout(Some(WAIT)).unwrap();
    let mut raw = Raw::over(stream);
    raw.write(support::request("localhost").as_bytes());
    assert!(raw.head().starts_with("HTTP/1.1 101 "));
    raw.write(&frame(0x81, b"hello"));
    assert_eq!(raw.frame(), Some((0x81, b"hello".to_vec())));
}

#[test]
fn events_tells_the_others_and_the_time() {
    let events = Example::start_as("events", &["127.0.0.1:0"]);
    let mut clients = [(); 2].map(|()| open(&events));
    say(&mut clients[0], "hello");
    // The time is told once a second.
    assert!((0..10).any(|_| hear(&mut clients[1]) == "hello"));
    // Not said to who said it.
    let time = hear(&mut clients[0]);
    assert!(time.ends_with(" here"), "{time}");
    says_goodbye(events, clients);
}

#[test]
fn bench_server_has_four_modes() {
    let message = frame(0x82, &[7; 64]);
    for (mode, counts) in [
        ("echo", [3, 0]),
        ("broadcast", [3, 3]),
        ("publish", [3, 3]),
        ("sink", [0, 0]),
    ] {
        let server = Example::start_as("bench_server", &[mode, "--addr", "127.0.0.1:0"]);
        let mut clients = [(); 2].map(|()| open(&server));
        clients[0].write(&[message.repeat(3), frame(0x89, b"")].concat());
        // The pong shows that all was read; it comes before or after what workers send.
        for ((client, count), pongs) in clients.iter_mut().zip(counts).zip([1, 0]) {
            let mut frames: Vec<_> = (0..count + pongs)
                .map(|_| client.frame().unwrap())
                .collect();
            frames.sort();
            let mut expected = vec![(0x82, vec![7; 64]); count];
            expected.extend(vec![(0x8A, vec![]); pongs]);
            assert_eq!(frames, expected, "{mode}");
        }
        assert_eq!(says_goodbye(server, clients), [vec![], vec![]], "{mode}");
    }
}

/// One loop, no workers: all it needs is the thread that it begins with.
#[cfg(target_os = "linux")]
#[test]
fn bench_server_may_be_one_thread() {
    for (workers, threads) in [("0", 1), ("1", 2)] {
        let server = Example::start_as(
            "bench_server",
            &["echo", "--addr", "127.0.0.1:0", "--workers", workers],
        );
        let mut clients = [(); 2].map(|()| open(&server));
        for client in &mut clients {
            client.write(&frame(0x82, b"hello"));
            assert_eq!(client.frame(), Some((0x82, b"hello".to_vec())));
        }
        let tasks = std::fs::read_dir(format!("/proc/{}/task", server.id())).unwrap();
        assert_eq!(tasks.count(), threads, "{workers} workers");
        assert_eq!(says_goodbye(server, clients), [vec![], vec![]]);
    }
}

/// It is asked to end, and tells each client so; what comes before is given.
fn says_goodbye(example: Example, clients: [Raw; 2]) -> [Vec<(u8, Vec<u8>)>; 2] {
    // Each hangs up then, so that nobody is waited for.
    let all = |mut client: Raw| {
        let mut frames = Vec::new();
        while frames.last().is_none_or(|(first, _)| *first != 0x88) {
            frames.push(client.frame().expect("a close frame"));
        }
        frames
    };
    let ends = thread::spawn(move || clients.map(all));
    assert!(example.stop().success());
    ends.join().unwrap().map(|mut frames| {
        assert_eq!(frames.pop(), Some((0x88, b"\x03\xE9".to_vec())));
        frames
    })
}

/// It looks at its own CPU time, which is Linux's to tell.
#[cfg(target_os = "linux")]
#[test]
fn bench_rooms_counts_the_ticks() {
    let args = ["--rooms=5", "--players=2", "--rate=50", "--seconds=0.4"];
    let args: Vec<_> = args.iter().flat_map(|arg| arg.split('=')).collect();
    let said = run(Command::new(binary("bench_rooms")).args(args));
    assert!(said.starts_with("5 rooms of 2 at 50 Hz\n"), "{said}");
    let number = |name: &str| -> f64 {
        let line = said.lines().find_map(|line| line.strip_prefix(name));
        let word = line.unwrap().split_whitespace().next().unwrap();
        word.parse().unwrap()
    };
    // Five rooms, fifty times a second; a machine that is busy merges some, and looks late.
    assert!((20.0..=250.0).contains(&number("ticks")), "{said}");
    assert!(number("arrived") > 100.0, "{said}");
}

/// What is wrong is told, with what would be right, and nothing is begun.
#[test]
fn wrong_words_are_told() {
    let wrong = |name: &str, args: &[&str]| {
        let (status, said) = outcome(Command::new(binary(name)).args(args));
        (status.code(), said)
    };
    for (name, args, why) in [
        ("ticker", &["--help"][..], "--help is not an option"),
        ("cluster", &["--help"], "--help is not an option"),
        (
            "bench_server",
            &["echo", "--help"],
            "--help is not an option",
        ),
        (
            "load",
            &["ws://127.0.0.1:9", "--help"],
            "--help is not an option",
        ),
        ("ticker", &["--keys"], "--keys needs a value"),
        ("cluster", &["--addr"], "--addr needs a value"),
        (
            "bench_server",
            &["echo", "--loops"],
            "--loops needs a value",
        ),
        ("bench_rooms", &["--help"], "--help is not an option"),
        ("bench_rooms", &["--rooms", "0"], "--rooms"),
        ("bench_rooms", &["--players", "0"], "--players"),
        ("bench_rooms", &["--rate", "nan"], "--rate"),
        ("bench_rooms", &["--seconds", "-1"], "--seconds"),
        ("embedded", &["--help"], ""),
        ("embedded", &["--addr"], ""),
        ("embedded", &["127.0.0.1:0"], ""),
        ("embedded", &["--addr", "127.0.0.1:0", "more"], ""),
    ] {
        let (code, said) = wrong(name, args);
        // The smallest one has no word but that of its error.
        let expected = if name == "embedded" { 1 } else { 2 };
        assert_eq!(code, Some(expected), "{name} {args:?}: {said}");
        assert!(said.contains(why), "{name} {args:?}: {said}");
        assert!(said.contains(&format!("usage: {name}")), "{said}");
    }
    // Somebody else is there.
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = taken.local_addr().unwrap().to_string();
    let (code, said) = wrong("ticker", &["--addr", &addr]);
    assert_eq!(code, Some(1));
    assert!(said.contains(&addr), "{said}");
    #[cfg(feature = "redis")]
    {
        drop(taken);
        let (code, said) = wrong("bench_backplane", &[&format!("redis://{addr}/")]);
        assert_eq!(code, Some(1));
        assert!(said.contains("no Redis"), "{said}");
    }
}
