//! What becomes of everything else when a loop fails. In a file of its own, as there is one log: it panics
//! where it is told to, which no loop expects.

mod support;

use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, Once, PoisonError};
use std::thread;

use crossbeam_channel::{Receiver, bounded};
use framemill::{ClientEvent, CloseCause, Error, Message, Origin, Peer, Server, connect};
use log::{LevelFilter, Metadata, Record};
use support::spy::spy;
use support::{Raw, Running, WAIT, echo, frame, serve, until};

/// Errors that were logged, and where to panic: the thread, and what is in the line.
#[derive(Default)]
struct State {
    errors: Vec<String>,
    trap: Option<(&'static str, &'static str)>,
}

struct Log(Mutex<State>);

static LOG: Log = Log(Mutex::new(State {
    errors: Vec::new(),
    trap: None,
}));

impl Log {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn has(&self, error: &str) -> bool {
        self.state().errors.iter().any(|line| line.contains(error))
    }
}

impl log::Log for Log {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &Record<'_>) {
        let text = record.args().to_string();
        let mut state = self.state();
        if record.level() == log::Level::Error {
            state.errors.push(text.clone());
        }
        let here = |(name, part): (&str, &str)| {
            thread::current().name() == Some(name) && text.contains(part)
        };
        if state.trap.is_some_and(here) {
            state.trap = None;
            drop(state);
            panic!("on purpose");
        }
    }

    fn flush(&self) {}
}

/// One test at a time: whoever steps into a trap should be the one that it was laid for.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    static SET: Once = Once::new();
    let guard = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    SET.call_once(|| log::set_logger(&LOG).unwrap());
    log::set_max_level(LevelFilter::Debug);
    *LOG.state() = State::default();
    guard
}

/// The connections of the loop that fails are told, as far as may be, and those of the other.
#[test]
fn a_server_ends_if_a_loop_fails() {
    let _alone = alone();
    // The thread that calls `run`, and one of its own.
    for (workers, failing) in [
        (0, "runs"),
        (1, "runs"),
        (0, "framemill-loop-1"),
        (1, "framemill-loop-1"),
    ] {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = listener.local_addr().unwrap();
        let server = Server::bind(listener).unwrap().origin(Origin::Any);
        let server = server.loops(2).workers(workers);
        let handle = server.handle();
        let (handler, seen) = spy(|_, _| ());
        let (done, ended) = bounded(1);
        let run = thread::Builder::new().name("runs".into());
        run.spawn(move || done.send(server.run(handler))).unwrap();
        let mut peers = [Raw::open(addr), Raw::open(addr)];
        LOG.state().trap = Some((failing, "connected from"));
        // They are dealt out in turn. One may be too late: it is refused.
        let _others = [TcpStream::connect(addr), TcpStream::connect(addr)];
        for peer in &mut peers {
            assert_eq!(peer.close_code(), Some(1001));
            peer.write(&frame(0x88, b"\x03\xE9"));
            assert_eq!(peer.frame(), None);
        }
        drop(peers);
        let outcome = ended.recv_timeout(WAIT).expect("`run` returns");
        assert!(matches!(outcome, Err(Error::Io(_))), "{outcome:?}");
        for _ in 0..2 {
            assert_eq!(seen.end().cause(), CloseCause::Shutdown);
        }
        let index = usize::from(failing != "runs");
        assert!(LOG.has(&format!("loop {index}: it panicked; all loops end")));
        assert!(handle.is_draining());
        assert!(!handle.shutdown(WAIT));
    }
}

/// That which it was busy with, too.
#[test]
fn the_connection_that_a_loop_fails_at_is_told() {
    let _alone = alone();
    for workers in [0, 1] {
        let (handler, seen) = spy(|_, _| ());
        let server = serve(|s| s.workers(workers), handler);
        let mut raw = Raw::open(server.addr);
        let peer = seen.peer();
        LOG.state().trap = Some(("framemill-loop-0", "mask"));
        // Not masked.
        raw.write(b"\x81\x01a");
        assert_eq!(seen.end().cause(), CloseCause::Shutdown);
        until("it is over", || server.handle.connections() == 0);
        assert!(peer.is_closed());
        assert!(!server.handle.shutdown(WAIT));
    }
}

fn coming(events: &Receiver<ClientEvent>) -> impl Iterator<Item = ClientEvent> {
    std::iter::from_fn(|| events.recv_timeout(WAIT).ok())
}

/// Those who wait for a connection are told, and the next ones find loops that work.
#[test]
fn clients_connect_again_if_a_loop_failed() {
    let _alone = alone();
    let server = echo();
    let url = format!("ws://{}/", server.addr);
    let (_first, events) = connect(&url).unwrap();
    LOG.state().trap = Some(("framemill-loop-0", "connecting to"));
    assert!(connect(&url).is_err());
    until("it is logged", || LOG.has("loop 0: it panicked"));
    let end = coming(&events).last();
    assert!(matches!(end, Some(ClientEvent::Close(_))), "{end:?}");
    let (peer, events) = connect(&url).unwrap();
    peer.send("hello").unwrap();
    assert!(coming(&events).any(|e| matches!(e, ClientEvent::Message(_))));
}

/// What is called when it is quiet may panic.
#[test]
fn a_loop_outlives_a_panic_of_on_quiet() {
    let _alone = alone();
    let calls = Arc::new(AtomicUsize::new(0));
    let counted = calls.clone();
    let server: Running = serve(
        |s| {
            s.workers(1).on_quiet(move || {
                counted.fetch_add(1, Ordering::SeqCst);
                panic!("on purpose")
            })
        },
        |peer: &Peer, message: Message| peer.send(message),
    );
    let mut raw = Raw::open(server.addr);
    for n in 1..=2 {
        raw.write(&frame(0x81, b"hello"));
        assert_eq!(raw.frame(), Some((0x81, b"hello".to_vec())));
        until("it is quiet", || calls.load(Ordering::SeqCst) >= n);
    }
    until("it is logged", || LOG.has("on_quiet panicked"));
    let close = frame(0x88, b"\x03\xE8");
    raw.write(&close);
    assert_eq!(raw.close_code(), Some(1000));
    drop(raw);
    assert!(server.handle.shutdown(WAIT));
}
