//! What the server keeps for a connection that is silent. In a file of its own, as its allocator counts for the
//! whole process.
#![allow(
    unsafe_code,
    reason = "an allocator that counts can't be written without"
)]

mod support;

use std::alloc::{GlobalAlloc, Layout, System};
use std::io::{Read, Write};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use framemill::{Message, Peer};
use support::{Raw, Stream, frame, serve, until};

/// Counts what is allocated and not yet freed.
struct Counting;

static LIVE: AtomicUsize = AtomicUsize::new(0);

/// What 64-bit glibc takes for so many bytes: a word of its own, in steps of 16, at least 32.
fn taken(bytes: usize) -> usize {
    (bytes + 8).next_multiple_of(16).max(32)
}

unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        LIVE.fetch_add(taken(layout.size()), Ordering::Relaxed);
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        LIVE.fetch_sub(taken(layout.size()), Ordering::Relaxed);
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Both ends are here, and a usual limit on open files is 1024.
const CONNECTIONS: usize = 400;
/// What is there once for each thread comes with the first of them.
const FIRST: usize = 50;

/// Bytes of a connection on which nothing waits, whatever passed before: its entry among those of its loop, its
/// link and its session. A seventh more than was seen.
const MOST: usize = 280;

/// An open connection that has echoed a message. No memory of this process is its client's.
fn silent(addr: support::Addr) -> Stream {
    let mut raw = Raw::open(addr);
    let message = frame(0x81, &[b'x'; 5000]);
    raw.stream.write_all(&message).unwrap();
    // What comes back is not masked.
    raw.stream
        .read_exact(&mut vec![0; message.len() - 4])
        .unwrap();
    raw.stream
}

/// What is allocated once nobody has allocated or freed anything for a second: a loop keeps what it has for the
/// next message for the tenth of one.
fn at_rest() -> usize {
    let (mut live, mut since) = (LIVE.load(Ordering::Relaxed), Instant::now());
    until("all threads rest", || {
        let now = LIVE.load(Ordering::Relaxed);
        if now != live {
            (live, since) = (now, Instant::now());
        }
        since.elapsed() > Duration::from_secs(1)
    });
    live
}

/// One test, so that no other thread of this process does anything meanwhile.
#[test]
fn silent_connections() {
    for workers in [0, 1] {
        let echo = |peer: &Peer, message: Message| peer.send(message);
        let server = serve(|s| s.workers(workers), echo);
        let mut streams = Vec::with_capacity(CONNECTIONS);
        streams.extend((0..FIRST).map(|_| silent(server.addr)));
        let before = at_rest();
        streams.extend((FIRST..CONNECTIONS).map(|_| silent(server.addr)));
        let each = (at_rest() - before) / (CONNECTIONS - FIRST);
        eprintln!("{workers} workers: {each} bytes a connection");
        assert!(each > 100, "{each} bytes: they are not counted");
        assert!(each <= MOST, "{each} bytes");
    }
}
