//! A process that gets no more threads: what can't be started says so, leaves nothing behind, and is tried
//! again.
//!
//! What runs out is the address space, of which each stack takes a share. The limit is per process, so all of
//! it runs in children: this very program, under `ulimit -v`.
#![cfg(target_os = "linux")]

mod support;

use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crossbeam_channel::{Sender, bounded};
use framemill::{Clients, Error, Message, Peer, Server};
use support::until;

/// In KiB: room for a few stacks.
const SPACE: u64 = 4 << 20;
const STACK: u64 = 512 << 20;

/// Set in the children.
const CHILD: &str = "FRAMEMILL_TEST_THREADS";

/// More loops than there is room for.
const MANY: usize = 32;

/// Runs the test of this name in a child. `false`: this is the child.
fn in_child(test: &str) -> bool {
    if std::env::var_os(CHILD).is_some() {
        return false;
    }
    let status = Command::new("sh")
        .args(["-c", r#"ulimit -v "$1"; exec "$2" --exact "$3""#, "sh"])
        .arg(SPACE.to_string())
        .arg(std::env::current_exe().unwrap())
        .arg(test)
        .env(CHILD, "")
        .env("RUST_MIN_STACK", STACK.to_string())
        .status();
    assert!(status.unwrap().success());
    true
}

/// Threads of this process.
fn threads() -> usize {
    std::fs::read_dir("/proc/self/task").unwrap().count()
}

/// Takes all the room that there is for threads, until it is dropped.
struct Crowd(Option<Sender<()>>, Vec<JoinHandle<bool>>);

impl Crowd {
    fn gather() -> Self {
        let (end, ends) = bounded::<()>(0);
        let mut all = Vec::new();
        loop {
            let ends = ends.clone();
            let one = thread::Builder::new().spawn(move || ends.recv().is_err());
            match one {
                Ok(one) => all.push(one),
                Err(_) => break,
            }
        }
        assert!(!all.is_empty() && all.len() < MANY);
        Self(Some(end), all)
    }
}

impl Drop for Crowd {
    fn drop(&mut self) {
        self.0.take();
        self.1
            .drain(..)
            .for_each(|one| assert!(one.join().unwrap()));
    }
}

fn server() -> Server {
    Server::bind("127.0.0.1:0").unwrap().workers(0)
}

/// Timers that found no thread fire once there is one.
#[test]
fn timers_are_tried_again() {
    if in_child("timers_are_tried_again") {
        return;
    }
    let handle = server().start(|_: &Peer, _: Message| ()).unwrap();
    let crowd = Crowd::gather();
    let fired = Arc::new(AtomicU32::new(0));
    let count = || {
        let fired = fired.clone();
        move || {
            fired.fetch_add(1, Ordering::SeqCst);
        }
    };
    handle.after(Duration::ZERO, count());
    drop(crowd);
    handle.after(Duration::ZERO, count());
    until("both have fired", || fired.load(Ordering::SeqCst) == 2);
    assert!(handle.shutdown(support::WAIT));
}

/// Those of the loops that could be started end.
#[test]
fn no_loop_of_a_server_is_left_behind() {
    if in_child("no_loop_of_a_server_is_left_behind") {
        return;
    }
    let before = threads();
    let outcome = server().loops(MANY).start(|_: &Peer, _: Message| ());
    assert!(matches!(outcome, Err(Error::Io(_))), "{outcome:?}");
    until("its threads are gone", || threads() == before);
}

#[test]
fn no_loop_of_clients_is_left_behind() {
    if in_child("no_loop_of_clients_is_left_behind") {
        return;
    }
    for workers in [0, 1] {
        let before = threads();
        let outcome = Clients::start(MANY, workers);
        assert!(matches!(outcome, Err(Error::Io(_))), "{outcome:?}");
        until("their threads are gone", || threads() == before);
    }
}
