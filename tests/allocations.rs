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

use framemill::{Message, Peer};
use support::{Raw, frame, serve};

/// Counts what all threads allocate but those that say otherwise: the client of these tests.
struct Counting;

static ALLOCATIONS: AtomicUsize = AtomicUsize::new(0);

thread_local! {
    static UNCOUNTED: Cell<bool> = const { Cell::new(false) };
}

fn count() {
    if !UNCOUNTED.get() {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
    }
}

unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count();
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count();
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

/// One test, so that no other thread of this process does anything meanwhile.
#[test]
fn messages() {
    UNCOUNTED.set(true);
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
