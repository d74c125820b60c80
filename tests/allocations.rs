//! What a message costs in allocations: nothing, with handlers inline; on the pool, one for each batch
//! at most. In a file of its own, as its allocator counts for the whole process.
#![allow(
    unsafe_code,
    reason = "an allocator that counts can't be written without"
)]

mod support;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::io::{Read, Write};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use crossbeam_channel::bounded;
use framemill::{Message, Origin, Peer};
use support::{Raw, Transport, WAIT, frame, serve, until};

/// Counts what all threads allocate but those that say otherwise: the client of these tests.
struct Counting;

static ALLOCATIONS: AtomicUsize = AtomicUsize::new(0);
static BYTES: AtomicUsize = AtomicUsize::new(0);

thread_local! {
    static UNCOUNTED: Cell<bool> = const { Cell::new(false) };
}

fn count(bytes: usize) {
    if !UNCOUNTED.get() {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        BYTES.fetch_add(bytes, Ordering::Relaxed);
    }
}

unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size());
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(layout.size());
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count(size);
        unsafe { System.realloc(at, layout, size) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// How messages come.
#[derive(Clone, Copy, Debug)]
struct Load {
    text: bool,
    size: usize,
    /// In one write, all answered before the next.
    batch: usize,
}

/// Echoes of as many batches, one after the other; how often the server has allocated meanwhile.
fn allocations(raw: &mut Raw, load: Load, batches: usize) -> usize {
    let first = if load.text { 0x81 } else { 0x82 };
    let batch = frame(first, &vec![b'x'; load.size]).repeat(load.batch);
    // What comes back is not masked.
    let mut echoes = vec![0; batch.len() - 4 * load.batch];
    let before = ALLOCATIONS.load(Ordering::Relaxed);
    for _ in 0..batches {
        raw.stream.write_all(&batch).unwrap();
        raw.stream.read_exact(&mut echoes).unwrap();
    }
    assert_eq!(echoes[0], first);
    assert_eq!(echoes.last(), Some(&b'x'));
    ALLOCATIONS.load(Ordering::Relaxed) - before
}

impl Load {
    /// The most that `batches` of them may cost.
    fn bound(self, workers: usize, batches: usize) -> usize {
        let messages = batches * self.batch;
        if self.size > FITS && self.batch > 1 {
            // Those that begin in one read and end in another have a buffer of their own.
            return messages;
        }
        if workers == 0 {
            return 0;
        }
        // However it is written, it may be read in pieces. The channels between the threads allocate for
        // 31 items at a time.
        let pieces = batches * (1 + self.size * self.batch / PIECE);
        pieces + pieces / 8
    }
}

/// A batch of 32 of them may come in one read.
const FITS: usize = 1024;
const PIECE: usize = 16 << 10;

/// What the machine may add: a client that is not run for the tenth of a second lets the loop release
/// what it keeps, and it allocates that again.
const SLACK: usize = 50;
const MESSAGES: usize = 6_400;

/// One test at a time, so that no other thread of this process does anything meanwhile.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    UNCOUNTED.set(true);
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

#[test]
fn messages() {
    let _alone = alone();
    let mut too_many = Vec::new();
    for workers in [0, 1] {
        let echo = |peer: &Peer, message: Message| peer.send(message);
        let server = serve(|s| s.workers(workers), echo);
        let mut raw = Raw::open(server.addr);
        for size in [16, 64, 1024, 16 << 10] {
            for (text, batch) in [(true, 1), (false, 1), (true, 32), (false, 32)] {
                let load = Load { text, size, batch };
                let batches = MESSAGES / batch;
                // What is kept for reuse is there then.
                allocations(&mut raw, load, 100);
                let counted = allocations(&mut raw, load, batches);
                let bound = load.bound(workers, batches);
                eprintln!("{workers} workers, {load:?}: {counted} of {bound} in {batches} batches");
                if counted > bound + SLACK {
                    too_many.push((workers, load, counted, bound));
                }
            }
        }
    }
    assert!(too_many.is_empty(), "{too_many:?}");
}

/// What was read at once and waits is moved a few times at most, however many turns it takes.
#[test]
fn a_long_read_of_short_frames() {
    // 768 KiB, which the kernel holds even where it gives a socket no large buffer.
    const FRAMES: usize = 1 << 17;
    let _alone = alone();
    for workers in [0, 1] {
        let (release, gate) = bounded::<()>(0);
        let handled = Arc::new(AtomicUsize::new(0));
        let counted = handled.clone();
        let handler = move |_: &Peer, _: Message| {
            if counted.fetch_add(1, Ordering::Relaxed) == 0 {
                gate.recv_timeout(WAIT).unwrap();
            }
        };
        let (server, bound) = Transport::Plain.bind_narrow(4 << 20);
        let server = server.workers(workers).read_buffer(16 << 20);
        let server = bound.running(server.origin(Origin::Any).start(handler).unwrap());
        let mut raw = Raw::open(server.addr);
        raw.write(&frame(0x82, b"first"));
        until("it is there", || handled.load(Ordering::Relaxed) == 1);
        let frames = frame(0x82, b"").repeat(FRAMES);
        raw.write(&frames);
        let (before, began) = (BYTES.load(Ordering::Relaxed), Instant::now());
        release.send_timeout((), WAIT).unwrap();
        until("all are", || handled.load(Ordering::Relaxed) == 1 + FRAMES);
        let bytes = BYTES.load(Ordering::Relaxed) - before;
        let (sent, took) = (frames.len(), began.elapsed());
        eprintln!("{workers} workers: {bytes} bytes for {sent}, {took:?}");
        // And so much for the batches in which workers get them.
        let most = (4 + workers * 36) * sent;
        assert!(bytes < most, "{bytes} bytes for {sent}");
    }
}

/// Messages that stay where they were read hold all that was read with them: few of those that a handler keeps may.
#[test]
fn what_kept_messages_hold() {
    const KEPT: usize = 40;
    const SIZE: usize = 1 << 10;
    let _alone = alone();
    let kept = Mutex::new(Vec::new());
    let handler = move |peer: &Peer, message: Message| {
        if message.is_text() {
            kept.lock().unwrap().push(message.clone());
        }
        peer.send(message)
    };
    let server = serve(|s| s.workers(0), handler);
    let mut raw = Raw::open(server.addr);
    let before = BYTES.load(Ordering::Relaxed);
    for _ in 0..KEPT {
        // So many that it is no longer remembered that one was kept.
        for first in [0x82; 300].into_iter().chain([0x81]) {
            raw.write(&frame(first, &[b'x'; SIZE]));
            assert!(raw.frame() == Some((first, vec![b'x'; SIZE])));
        }
    }
    let bytes = BYTES.load(Ordering::Relaxed) - before;
    eprintln!("{bytes} bytes for {KEPT} messages of {SIZE}");
    assert!(bytes < 3 << 20, "{bytes}");
}
