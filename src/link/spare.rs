//! Emptied buffers, kept to be filled again.
//!
//! Output buffers travel from the thread that sends to the loop, batches of events from the loop to
//! a worker. To allocate on one thread and free on another is what allocators are worst at, so each
//! thread keeps what it has emptied, takes from that what it fills, and passes on in one go what is
//! too much. With handlers inline it is the same thread that does both, and an echo allocates
//! nothing.
//!
//! When a thread ends, what it keeps is gone before the last of its destructors has run: whoever sends there
//! gets a fresh buffer, and what is emptied there is freed.
#![allow(
    clippy::box_collection,
    clippy::vec_box,
    reason = "the boxes are what is kept: their memory is to be used again"
)]

use std::cell::RefCell;
use std::sync::Mutex;
use std::thread::LocalKey;

use super::event::EventBatch;
use super::outbox::Aside;

/// Kept by each thread; half of it is passed on or taken over at a time.
const KEPT: usize = 32;
/// So many times as many are kept for whichever thread needs them: enough for what is between the
/// loops and the workers when a hundred connections say something at once.
const COMMON: usize = 4;
/// The largest output buffer that is kept: together at most half a MiB, usually a hundredth of it.
const BYTES: usize = 4096;
/// But for some of at most this size, for replies to all that one read may bring, twice that for how
/// vectors grow: 2 MiB for each thread at most, and [`COMMON`] times that. Those of a loop are let go of when it
/// has been idle.
const LARGE: usize = 128 << 10;
const KEPT_LARGE: usize = 16;
/// The largest batch.
const EVENTS: usize = 32;

/// Bytes to be written, behind one pointer: so they change hands for nothing, and whoever has none
/// is small.
pub(crate) type Buffer = Box<Vec<u8>>;

/// Emptied things on their way between threads.
type Common<T> = Mutex<Vec<T>>;
type Own<T> = LocalKey<RefCell<Vec<T>>>;

static COMMON_BUFFERS: Common<Buffer> = Mutex::new(Vec::new());
static COMMON_LARGE: Common<Buffer> = Mutex::new(Vec::new());
static COMMON_BATCHES: Common<EventBatch> = Mutex::new(Vec::new());
static COMMON_ASIDES: Common<Box<Aside>> = Mutex::new(Vec::new());

thread_local! {
    static BUFFERS: RefCell<Vec<Buffer>> = const { RefCell::new(Vec::new()) };
    static LARGE_BUFFERS: RefCell<Vec<Buffer>> = const { RefCell::new(Vec::new()) };
    static BATCHES: RefCell<Vec<EventBatch>> = const { RefCell::new(Vec::new()) };
    static ASIDES: RefCell<Vec<Box<Aside>>> = const { RefCell::new(Vec::new()) };
}

/// An empty buffer, used before if there is one.
#[inline]
pub(super) fn take_buffer() -> Buffer {
    take(&BUFFERS, &COMMON_BUFFERS, KEPT)
}

/// One of more than [`BYTES`] bytes, if there is one.
fn take_large_buffer() -> Buffer {
    take(&LARGE_BUFFERS, &COMMON_LARGE, KEPT_LARGE)
}

/// Finds room for `more` bytes of small messages, if that is possible without allocating.
#[cold]
pub(super) fn widen(buf: &mut Buffer, more: usize) -> &mut Buffer {
    let len = buf.len();
    if len + more > BYTES {
        let mut large = take_large_buffer();
        if large.capacity() >= len + more {
            large.extend_from_slice(buf);
            std::mem::swap(buf, &mut large);
        }
        give_buffer(large);
    } else if buf.capacity() > BYTES / 4 {
        // Twice as large it might be too large to be kept.
        buf.reserve_exact(BYTES - len);
    }
    buf
}

/// Takes back a buffer that has been written.
#[inline]
pub(crate) fn give_buffer(mut buffer: Buffer) {
    buffer.clear();
    let size = buffer.capacity();
    if (1..=BYTES).contains(&size) {
        give(buffer, &BUFFERS, &COMMON_BUFFERS, KEPT);
    } else if (BYTES..=LARGE).contains(&size) {
        give(buffer, &LARGE_BUFFERS, &COMMON_LARGE, KEPT_LARGE);
    }
}

/// The same for batches of events.
#[inline]
pub(crate) fn take_batch() -> EventBatch {
    take(&BATCHES, &COMMON_BATCHES, KEPT)
}

#[inline]
pub(crate) fn give_batch(mut batch: EventBatch) {
    if batch.capacity() <= EVENTS {
        batch.clear();
        give(batch, &BATCHES, &COMMON_BATCHES, KEPT);
    }
}

/// The same for queues of messages that are kept one by one.
pub(super) fn take_aside() -> Box<Aside> {
    take(&ASIDES, &COMMON_ASIDES, KEPT)
}

pub(super) fn give_aside(aside: Box<Aside>) {
    if aside.is_worth_keeping() {
        give(aside, &ASIDES, &COMMON_ASIDES, KEPT);
    }
}

/// Lets go of what this thread keeps, and of what no thread has taken over. A few small things among a
/// gigabyte that was freed keep an allocator from giving it back.
pub(crate) fn release() {
    release_own();
    for_common(&COMMON_BUFFERS, Vec::clear);
    for_common(&COMMON_LARGE, Vec::clear);
    for_common(&COMMON_BATCHES, Vec::clear);
    for_common(&COMMON_ASIDES, Vec::clear);
}

/// Whether this thread keeps more than it should while it has nothing to do.
pub(crate) fn keeps() -> bool {
    LARGE_BUFFERS.with_borrow(|own| !own.is_empty())
}

/// Whether this thread can keep anything: it has not all but ended.
pub(super) fn is_there() -> bool {
    fn of<T>(own: &'static Own<T>) -> bool {
        own.try_with(|_| ()).is_ok()
    }
    of(&BUFFERS) && of(&LARGE_BUFFERS) && of(&BATCHES) && of(&ASIDES)
}

/// Lets go of what this thread keeps.
pub(crate) fn release_own() {
    BUFFERS.take();
    LARGE_BUFFERS.take();
    BATCHES.take();
    ASIDES.take();
}

#[inline]
fn take<T: Default>(own: &'static Own<T>, common: &Common<T>, kept: usize) -> T {
    let taken = own.try_with(|own| {
        let mut own = own.borrow_mut();
        if own.is_empty() {
            for_common(common, |common| {
                own.extend(common.drain(common.len().saturating_sub(kept / 2)..));
            });
        }
        own.pop()
    });
    taken.ok().flatten().unwrap_or_default()
}

#[inline]
fn give<T>(emptied: T, own: &'static Own<T>, common: &Common<T>, kept: usize) {
    let _ = own.try_with(|own| {
        let mut own = own.borrow_mut();
        if own.len() == kept {
            for_common(common, |common| {
                let room = (COMMON * kept).saturating_sub(common.len()).min(kept / 2);
                common.extend(own.drain(..room));
            });
            own.truncate(kept / 2);
        }
        own.push(emptied);
    });
}

/// Not if another thread is at it: nothing here is worth waiting for.
fn for_common<T>(common: &Common<T>, act: impl FnOnce(&mut Vec<T>)) {
    if let Ok(mut common) = common.try_lock() {
        act(&mut common);
    }
}
