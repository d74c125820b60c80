//! What is logged: under whose name, with which connection, and how often at most.

mod support;

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use framemill::{Accept, Handler, Message, Peer, Request, Response, Timer};
use log::{Level, LevelFilter, Metadata, Record};
use support::{Raw, client, echoes, frame, request, serve, until};

/// Level, target, text.
type Line = (Level, String, String);

struct Log(Mutex<Vec<Line>>);

static LOG: Log = Log(Mutex::new(Vec::new()));

impl log::Log for Log {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &Record<'_>) {
        if record.target().starts_with("framemill") {
            let text = record.args().to_string();
            let line = (record.level(), record.target().to_owned(), text);
            lines().push(line);
        }
    }

    fn flush(&self) {}
}

fn lines() -> MutexGuard<'static, Vec<Line>> {
    LOG.0.lock().unwrap_or_else(PoisonError::into_inner)
}

fn count(what: &str) -> usize {
    lines().iter().filter(|line| line.2.contains(what)).count()
}

/// `SLOT.LOOP.GENERATION: ` in front.
fn names_a_connection(text: &str) -> bool {
    let Some((id, _)) = text.split_once(": ") else {
        return false;
    };
    let numbers: Vec<_> = id.split('.').map(str::parse::<u64>).collect();
    numbers.len() == 3 && numbers.iter().all(Result::is_ok)
}

/// Echoes, and panics if it is told to; the path `/no` is refused.
struct Choosy;

impl Handler for Choosy {
    type Session = ();

    fn open(&self, request: &Request, _: &Peer) -> Result<Accept<()>, Response> {
        match request.path() {
            "/no" => Err(Response::unauthorized()),
            _ => Ok(Accept::new(())),
        }
    }

    fn message(&self, (): &mut (), peer: &Peer, message: Message) {
        assert_ne!(message.to_text().unwrap(), "panic", "on purpose");
        let _ = peer.send(message);
    }
}

/// One test, as there is one log.
#[test]
fn lines_are_few_and_tell_whose_they_are() {
    log::set_logger(&LOG).unwrap();
    log::set_max_level(LevelFilter::Trace);
    let server = serve(
        |s| {
            s.workers(2)
                .max_connections(2)
                .handshake_timeout(Duration::from_millis(200))
        },
        Choosy,
    );

    // Nothing per message, at any level.
    let mut echo = client(server.addr);
    echoes(&mut echo, "first");
    until("it is there", || count("connected from") == 1);
    let before = lines().len();
    for n in 0..1000 {
        echoes(&mut echo, &n.to_string());
    }
    assert_eq!(lines().len(), before);

    // What a peer can cause again and again: a few lines, and the end of each for who wants to know.
    let alone = || until("the others are gone", || server.handle.connections() == 1);
    for _ in 0..40 {
        alone();
        let mut raw = Raw::open(server.addr);
        raw.write(&frame(0x81, b"panic"));
        assert_eq!(raw.close_code(), Some(1011));
    }
    until("their ends are told", || count("closed, 1011") == 40);
    let panics = count("the handler panicked; closing with 1011");
    assert!((1..=10).contains(&panics), "{panics} lines");

    let mut refused = Raw::connect(server.addr);
    refused.write(b"nonsense\r\n\r\n");
    assert_eq!(refused.response().0, 400);
    until("that is told too", || count("refused with 400") == 1);
    drop(refused);

    // Every other way not to become a WebSocket has its line, one for each.
    alone();
    let mut no = Raw::connect(server.addr);
    no.write(request("x").replacen("/", "/no", 1).as_bytes());
    assert_eq!(no.response().0, 401);
    until("the handler's no is told", || {
        count("refused by the handler with 401") == 1
    });
    drop(no);
    alone();
    let mut plain = Raw::connect(server.addr);
    plain.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n");
    assert_eq!(plain.response().0, 426);
    until("a plain answer is told", || count("answered with 426") == 1);
    drop(plain);
    alone();
    let mut half = Raw::connect(server.addr);
    half.write(b"GET / HT");
    drop(half);
    until("who leaves is told", || count("refused: hung_up") == 1);
    alone();
    let mut silent = Raw::connect(server.addr);
    assert_eq!(silent.rest(), b"");
    until("who is silent is told", || count("refused: silent") == 1);
    alone();
    let second = client(server.addr);
    let mut third = Raw::connect(server.addr);
    third.write(request("x").as_bytes());
    assert_eq!(third.response().0, 503);
    until("who is one too many is told", || {
        count("refused with 503") == 1
    });
    drop((second, third));
    alone();
    assert_eq!(count("refused"), 5);

    for (level, target, text) in lines().iter() {
        assert!(names_a_connection(text), "{text}");
        assert!(target.starts_with("framemill::"), "{target}");
        let panic = text.contains("the handler panicked");
        assert_eq!(*level, if panic { Level::Error } else { Level::Debug });
        let module = if panic { "server" } else { "reactor" };
        assert_eq!(target.split("::").nth(1), Some(module), "{text}");
    }

    // What handlers may set for each message.
    let timers: Vec<_> = (0..40)
        .map(|_| server.handle.after(Duration::ZERO, || panic!("on purpose")))
        .collect();
    until("all have panicked", || timers.iter().all(Timer::is_over));
    let panics = count("a timer panicked");
    assert!((1..=10).contains(&panics), "{panics} lines");
}
