//! A server on the thread that runs it, and what ends it there: `Server::run`, `Server::shutdown_on`,
//! `ServerHandle::begin_shutdown`.

mod support;

#[cfg(target_os = "linux")]
use std::fs::File;
#[cfg(unix)]
use std::io::{Read, Write};
#[cfg(unix)]
use std::net::TcpStream;
#[cfg(target_os = "linux")]
use std::os::fd::OwnedFd;
#[cfg(unix)]
use std::os::unix::net::UnixStream;
use std::sync::{Arc, OnceLock};
use std::thread::{self, JoinHandle, ThreadId};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded, unbounded};
#[cfg(unix)]
use framemill::Drain;
use framemill::{Error, Handler, Message, Origin, Peer, Server, ServerHandle};
use support::{Addr, Raw, WAIT, frame, no_more, until};

const GOING_AWAY: &[u8] = b"\x03\xE9";

/// A server that is not run yet, and where it listens.
fn server(loops: usize, workers: usize) -> (Server, Addr) {
    let server = Server::bind("127.0.0.1:0").unwrap().origin(Origin::Any);
    let addr = server.handle().local_addr().unwrap().into();
    (server.loops(loops).workers(workers), addr)
}

/// Echoes, and tells on which thread.
fn telling() -> (impl Handler, Receiver<ThreadId>) {
    let (tell, told) = unbounded();
    let handler = move |peer: &Peer, message: Message| {
        let _ = tell.send(thread::current().id());
        peer.send(message)
    };
    (handler, told)
}

/// On a thread of its own, which tells when it has returned.
fn run(server: Server, handler: impl Handler) -> (JoinHandle<framemill::Result<()>>, Receiver<()>) {
    let (running, returned) = bounded(0);
    let thread = thread::spawn(move || {
        let outcome = server.run(handler);
        drop(running);
        outcome
    });
    (thread, returned)
}

fn ends((thread, returned): (JoinHandle<framemill::Result<()>>, Receiver<()>)) {
    no_more(&returned);
    thread.join().unwrap().unwrap();
}

fn echoes(raw: &mut Raw) {
    raw.write(&frame(0x81, b"hello"));
    assert_eq!(raw.frame(), Some((0x81, b"hello".to_vec())));
}

/// Answers the close frame that comes next, sees the end of the stream, and hangs up.
fn parts(mut raw: Raw) {
    assert_eq!(raw.frame(), Some((0x88, GOING_AWAY.to_vec())));
    raw.write(&frame(0x88, GOING_AWAY));
    assert_eq!(raw.frame(), None);
}

#[test]
fn the_calling_thread_is_the_first_loop() {
    for (loops, workers) in [(1, 0), (2, 0), (1, 1)] {
        let (server, addr) = server(loops, workers);
        let handle = server.handle();
        let (handler, told) = telling();
        let running = run(server, handler);
        let mut peers = [Raw::open(addr), Raw::open(addr)];
        peers.iter_mut().for_each(echoes);
        let here = running.0.thread().id();
        let on_it = told.iter().take(2).filter(|id| *id == here).count();
        // They are dealt out in turn.
        let expected = if workers > 0 { 0 } else { 2 / loops };
        assert_eq!(on_it, expected, "{loops} loops, {workers} workers");
        handle.begin_shutdown(WAIT);
        peers.into_iter().for_each(parts);
        ends(running);
        // Everybody hears of the end, also those who come late.
        assert!(handle.shutdown(WAIT));
    }
}

/// A thread that was a loop has nothing left of it: the next server there, and what is sent to others from
/// there, works as anywhere.
#[test]
fn a_thread_may_run_one_after_the_other() {
    let (_, addr_of_another) = {
        let (server, addr) = server(1, 0);
        let handle = server.start(|peer: &Peer, message| peer.send(message));
        (handle.unwrap(), addr)
    };
    let (servers, to_run) = bounded::<(Server, Sender<Peer>)>(1);
    let (ended, ends) = unbounded();
    let thread = thread::spawn(move || {
        let here = thread::current().id();
        for (server, tell) in to_run {
            let peers: Arc<OnceLock<Peer>> = Arc::default();
            let last = peers.clone();
            server
                .run(move |peer: &Peer, message: Message| {
                    assert_eq!(thread::current().id(), here);
                    let _ = tell.send(last.get_or_init(|| peer.clone()).clone());
                    peer.send(message)
                })
                .unwrap();
            // It is over, and this is no loop any more.
            assert!(peers.get().unwrap().send("too late").is_err());
            ended.send(()).unwrap();
        }
    });
    for _ in 0..3 {
        let (server, addr) = server(1, 0);
        let handle = server.handle();
        let (tell, told) = unbounded();
        servers.send((server, tell)).unwrap();
        let (mut first, mut second) = (Raw::open(addr), Raw::open(addr));
        echoes(&mut first);
        echoes(&mut second);
        let peer = told.recv_timeout(WAIT).unwrap();
        peer.send("from elsewhere").unwrap();
        assert_eq!(first.frame(), Some((0x81, b"from elsewhere".to_vec())));
        handle.broadcast("to all");
        for raw in [&mut first, &mut second] {
            assert_eq!(raw.frame(), Some((0x81, b"to all".to_vec())));
        }
        thread::scope(|scope| {
            let shutdown = scope.spawn(|| handle.shutdown(WAIT));
            parts(first);
            parts(second);
            assert!(shutdown.join().unwrap());
        });
        ends.recv_timeout(WAIT).unwrap();
    }
    drop(servers);
    thread.join().unwrap();
    echoes(&mut Raw::open(addr_of_another));
}

/// Threads that belong to a server already are left to it: the other one has threads of its own.
#[test]
fn a_handler_may_run_another_server() {
    for workers in [0, 1] {
        let (inner, inner_addr) = server(1, 0);
        let inner_handle = inner.handle();
        let inner = std::sync::Mutex::new(Some(inner));
        let (begin, begun) = bounded(1);
        let (tell, told) = unbounded();
        let (outer, addr) = server(1, workers);
        let handle = outer
            .start(move |peer: &Peer, message: Message| {
                let here = thread::current().id();
                if let Some(inner) = inner.lock().unwrap().take() {
                    begin.send(here).unwrap();
                    let tell = tell.clone();
                    let echo = move |peer: &Peer, message: Message| {
                        let _ = tell.send(thread::current().id());
                        peer.send(message)
                    };
                    inner.run(echo).unwrap();
                }
                peer.send(message)
            })
            .unwrap();
        let mut raw = Raw::open(addr);
        raw.write(&frame(0x81, b"run it"));
        let outer_thread = begun.recv_timeout(WAIT).unwrap();
        let mut other = Raw::open(inner_addr);
        echoes(&mut other);
        assert_ne!(told.recv_timeout(WAIT).unwrap(), outer_thread);
        inner_handle.begin_shutdown(WAIT);
        parts(other);
        assert_eq!(raw.frame(), Some((0x81, b"run it".to_vec())));
        echoes(&mut raw);
        handle.begin_shutdown(WAIT);
        parts(raw);
        assert!(handle.shutdown(WAIT));
    }
}

/// What it has sent before goes out, and what has arrived is answered.
#[test]
fn a_handler_may_end_its_server() {
    for workers in [0, 1, 2] {
        let (server, addr) = server(1, workers);
        let handle: ServerHandle = server.handle();
        let running = run(server, move |peer: &Peer, message: Message| {
            let ends = message.to_text().is_ok_and(|text| text == "end");
            peer.send(message).unwrap();
            if ends {
                handle.begin_shutdown(WAIT);
            }
        });
        let (mut raw, mut other) = (Raw::open(addr), Raw::open(addr));
        echoes(&mut other);
        raw.write(&[frame(0x81, b"end"), frame(0x81, b"behind it")].concat());
        assert_eq!(raw.frame(), Some((0x81, b"end".to_vec())));
        assert_eq!(raw.frame(), Some((0x81, b"behind it".to_vec())));
        parts(raw);
        parts(other);
        ends(running);
    }
}

#[cfg(unix)]
#[test]
fn what_can_be_read_ends_it() {
    for (loops, workers) in [(1, 0), (2, 1)] {
        let (told, mut tell) = UnixStream::pair().unwrap();
        let (server, addr) = server(loops, workers);
        let running = run(
            server.shutdown_on(told, WAIT),
            |peer: &Peer, message: Message| peer.send(message),
        );
        let mut raw = Raw::open(addr);
        echoes(&mut raw);
        tell.write_all(b"1").unwrap();
        assert_eq!(raw.frame(), Some((0x88, GOING_AWAY.to_vec())));
        // Once more, as a signal may come once more: it is still open.
        tell.write_all(b"2").unwrap();
        raw.write(&frame(0x88, GOING_AWAY));
        assert_eq!(raw.frame(), None);
        drop(raw);
        ends(running);
        // But no longer.
        tell.set_read_timeout(Some(WAIT)).unwrap();
        assert!(matches!(tell.read(&mut [0]), Ok(0) | Err(_)));
        assert!(tell.write_all(b"3").is_err());
    }
}

#[cfg(unix)]
#[test]
fn its_end_ends_it_too() {
    let (told, tell) = UnixStream::pair().unwrap();
    let (server, addr) = server(1, 0);
    let (handler, _) = telling();
    let running = run(server.shutdown_on(told, WAIT), handler);
    let mut raw = Raw::open(addr);
    echoes(&mut raw);
    drop(tell);
    parts(raw);
    ends(running);
    // Before it begins.
    let (told, tell) = UnixStream::pair().unwrap();
    drop(tell);
    let (server, _) = self::server(1, 0);
    let (handler, _) = telling();
    ends(run(server.shutdown_on(told, WAIT), handler));
}

/// The deadline is that which was given with it.
#[cfg(unix)]
#[test]
fn its_deadline_counts() {
    let (told, tell) = UnixStream::pair().unwrap();
    let (server, addr) = server(1, 0);
    let server = server.close_timeout(4 * WAIT);
    let (handler, _) = telling();
    let running = run(server.shutdown_on(told, Duration::ZERO), handler);
    let mut raw = Raw::open(addr);
    echoes(&mut raw);
    drop(tell);
    // It does not answer.
    ends(running);
    drop(raw);
}

/// Whichever loop is the last one, it still looks.
#[cfg(unix)]
#[test]
fn it_cuts_a_drain_short() {
    for leaves in 0..2 {
        let (told, tell) = UnixStream::pair().unwrap();
        let (server, addr) = server(2, 0);
        let handle = server.handle();
        let (handler, _) = telling();
        let running = run(server.shutdown_on(told, WAIT), handler);
        let mut peers = [Raw::open(addr), Raw::open(addr)];
        peers.iter_mut().for_each(echoes);
        // They are dealt out in turn, so one loop has nobody any more.
        let [first, second] = peers;
        let (gone, stays) = if leaves == 0 {
            (first, second)
        } else {
            (second, first)
        };
        drop(gone);
        until("one has left", || handle.connections() == 1);
        let drain = thread::spawn(move || {
            handle.drain(Drain {
                notice: Duration::ZERO,
                spread: 10 * WAIT,
                deadline: 20 * WAIT,
                ..Drain::default()
            })
        });
        until("it is not let in", || {
            TcpStream::connect(addr.tcp()).is_err()
        });
        drop(tell);
        parts(stays);
        ends(running);
        assert!(drain.join().unwrap());
    }
}

#[cfg(unix)]
#[test]
fn the_last_of_them_counts() {
    let (first, tell_first) = UnixStream::pair().unwrap();
    let (second, tell_second) = UnixStream::pair().unwrap();
    let (server, addr) = server(1, 0);
    let server = server.shutdown_on(first, WAIT).shutdown_on(second, WAIT);
    let (handler, _) = telling();
    let running = run(server, handler);
    drop(tell_first);
    let mut raw = Raw::open(addr);
    echoes(&mut raw);
    drop(tell_second);
    parts(raw);
    ends(running);
}

/// All that follows the end of the loops is done: timers end, nothing is sent to anybody any more.
#[test]
fn a_server_ends_though_nobody_waits() {
    for (workers, early) in [(0, false), (1, false), (0, true)] {
        let (server, addr) = server(2, workers);
        let handle = server.handle();
        let (tick, ticks) = unbounded();
        handle.every(Duration::from_millis(1), move || tick.send(()).unwrap());
        let (handler, _) = telling();
        if early {
            handle.begin_shutdown(WAIT);
            drop(server.start(handler).unwrap());
        } else {
            drop(server.start(handler).unwrap());
            ticks.recv_timeout(WAIT).unwrap();
            let mut raw = Raw::open(addr);
            echoes(&mut raw);
            handle.begin_shutdown(WAIT);
            parts(raw);
        }
        until("it has ended", || !handle.broadcast("anybody?"));
        while ticks.recv_timeout(WAIT).is_ok() {}
        assert!(handle.shutdown(WAIT), "it did so in good order");
    }
}

/// Who asks again puts nothing off, and who asks for less has it.
#[test]
fn the_nearest_deadline_counts() {
    let (server, addr) = server(1, 0);
    let server = server.close_timeout(10 * WAIT);
    let handle = server.handle();
    let (handler, _) = telling();
    let running = run(server, handler);
    let mut raw = Raw::open(addr);
    echoes(&mut raw);
    let begun = Instant::now();
    handle.begin_shutdown(10 * WAIT);
    assert_eq!(raw.frame(), Some((0x88, GOING_AWAY.to_vec())));
    handle.begin_shutdown(Duration::from_millis(300));
    for _ in 0..100 {
        handle.begin_shutdown(10 * WAIT);
    }
    // It does not answer, and is cut off.
    ends(running);
    assert!(begun.elapsed() >= Duration::from_millis(300));
    assert!(begun.elapsed() < WAIT);
    assert!(!handle.shutdown(WAIT));
}

/// Others wait for the loop on the thread that runs it, as for any.
#[test]
fn others_wait_for_the_first_loop() {
    struct Slow(Sender<()>, Receiver<()>);
    impl Drop for Slow {
        fn drop(&mut self) {
            let _ = self.0.send(());
            let _ = self.1.recv_timeout(WAIT);
        }
    }
    let (server, addr) = server(1, 0);
    let handle = server.handle();
    let (inside, at_the_end) = bounded(1);
    let (release, gate) = bounded(0);
    let slow = Slow(inside, gate);
    let running = run(server, move |peer: &Peer, message: Message| {
        let _of_the_handler = &slow;
        peer.send(message)
    });
    let mut raw = Raw::open(addr);
    echoes(&mut raw);
    handle.begin_shutdown(WAIT);
    parts(raw);
    // The loop has ended but for what it drops, the handler among it.
    at_the_end.recv_timeout(WAIT).unwrap();
    let (heard, hears) = bounded(1);
    let waits = thread::spawn(move || {
        handle.wait();
        heard.send(()).unwrap();
    });
    assert!(hears.recv_timeout(Duration::from_millis(100)).is_err());
    drop(release);
    hears.recv_timeout(WAIT).unwrap();
    waits.join().unwrap();
    ends(running);
}

/// A loop that waited for its own end would wait for ever.
#[test]
fn a_handler_on_the_loop_does_not_wait() {
    let (server, addr) = server(1, 0);
    let handle = server.handle();
    let (tell, told) = unbounded();
    let running = run(server, move |peer: &Peer, message: Message| {
        tell.send(handle.shutdown(WAIT)).unwrap();
        handle.wait();
        peer.send(message)
    });
    let mut raw = Raw::open(addr);
    echoes(&mut raw);
    assert!(!told.recv_timeout(WAIT).unwrap());
    parts(raw);
    ends(running);
}

/// What the last loop drops is the user's: that it panics is told, and ends nothing else.
#[test]
fn a_handler_may_panic_as_it_goes() {
    struct Panics;
    impl Drop for Panics {
        fn drop(&mut self) {
            panic!("on purpose");
        }
    }
    let (server, addr) = server(1, 0);
    let handle = server.handle();
    let panics = Panics;
    let (thread, returned) = run(server, move |peer: &Peer, message: Message| {
        let _of_the_handler = &panics;
        peer.send(message)
    });
    let mut raw = Raw::open(addr);
    echoes(&mut raw);
    handle.begin_shutdown(WAIT);
    parts(raw);
    no_more(&returned);
    let outcome = thread.join().expect("it returns");
    assert!(matches!(outcome, Err(Error::Io(_))), "{outcome:?}");
    assert!(!handle.shutdown(WAIT));
}

/// A timer without workers has a thread that it shares with rooms: to run a server there would stop them.
#[test]
fn a_timer_may_run_a_server() {
    let (outer, _) = server(1, 0);
    let (inner, addr) = server(1, 0);
    let inner_handle = inner.handle();
    let (tell, told) = unbounded();
    let handle = outer.start(|_: &Peer, _: Message| ()).unwrap();
    handle.after(Duration::from_millis(1), move || {
        let timers = thread::current().id();
        let echo = move |peer: &Peer, message: Message| {
            let _ = tell.send(thread::current().id() == timers);
            peer.send(message)
        };
        inner.run(echo).unwrap();
    });
    let mut raw = Raw::open(addr);
    echoes(&mut raw);
    assert!(!told.recv_timeout(WAIT).unwrap());
    inner_handle.begin_shutdown(WAIT);
    parts(raw);
    assert!(handle.shutdown(WAIT));
}

#[cfg(target_os = "linux")] // elsewhere it can always be read
#[test]
fn what_can_not_be_polled_is_an_error() {
    let file: OwnedFd = File::open("Cargo.toml").unwrap().into();
    let (server, addr) = server(1, 1);
    let (handler, _) = telling();
    let outcome = server.shutdown_on(file, WAIT).run(handler);
    assert!(matches!(outcome, Err(Error::Io(_))), "{outcome:?}");
    // Nothing is left of it.
    assert!(TcpStream::connect(addr.tcp()).is_err());
}
