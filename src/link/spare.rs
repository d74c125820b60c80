//! Emptied buffers, kept to be filled again.
//!
//! Output buffers travel from the thread that sends to the loop, batches of events from the loop to
//! a worker. To allocate on one thread and free on another is what allocators are worst at, so each
//! thread keeps what it has emptied, takes from that what it fills, and passes on in one go what is
//! too much. With handlers inline it is the same thread that does both, and an echo allocates
//! nothing.

use std::cell::RefCell;
use std::sync::Mutex;
use std::thread::LocalKey;

use super::event::EventBatch;

/// Kept by each thread; half of it is passed on or taken over at a time.
const KEPT: usize = 32;
/// Kept for whichever thread needs them.
const COMMON: usize = 64;
/// The largest output buffer that is kept: together at most half a MiB, usually a hundredth of it.
const BYTES: usize = 4096;
/// The largest batch.
const EVENTS: usize = 32;

/// Emptied things on their way between threads.
type Common<T> = Mutex<Vec<T>>;
type Own<T> = LocalKey<RefCell<Vec<T>>>;

static COMMON_BUFFERS: Common<Vec<u8>> = Mutex::new(Vec::new());
static COMMON_BATCHES: Common<EventBatch> = Mutex::new(Vec::new());

thread_local! {
    static BUFFERS: RefCell<Vec<Vec<u8>>> = const { RefCell::new(Vec::new()) };
    static BATCHES: RefCell<Vec<EventBatch>> = const { RefCell::new(Vec::new()) };
}

/// An empty buffer, used before if there is one.
#[inline]
pub(super) fn take_buffer() -> Vec<u8> {
    take(&BUFFERS, &COMMON_BUFFERS)
}

/// Takes back a buffer that has been written.
#[inline]
pub(crate) fn give_buffer(mut buffer: Vec<u8>) {
    if buffer.capacity() > 0 && buffer.capacity() <= BYTES {
        buffer.clear();
        give(buffer, &BUFFERS, &COMMON_BUFFERS);
    }
}

/// The same for batches of events.
#[inline]
pub(crate) fn take_batch() -> EventBatch {
    take(&BATCHES, &COMMON_BATCHES)
}

#[inline]
pub(crate) fn give_batch(mut batch: EventBatch) {
    if batch.capacity() <= EVENTS {
        batch.clear();
        give(batch, &BATCHES, &COMMON_BATCHES);
    }
}

/// Lets go of what no thread has taken over.
pub(crate) fn release() {
    for_common(&COMMON_BUFFERS, Vec::clear);
    for_common(&COMMON_BATCHES, Vec::clear);
}

#[inline]
fn take<T: Default>(own: &'static Own<T>, common: &Common<T>) -> T {
    own.with_borrow_mut(|own| {
        if own.is_empty() {
            for_common(common, |common| {
                own.extend(common.drain(common.len().saturating_sub(KEPT / 2)..));
            });
        }
        own.pop().unwrap_or_default()
    })
}

#[inline]
fn give<T>(emptied: T, own: &'static Own<T>, common: &Common<T>) {
    own.with_borrow_mut(|own| {
        if own.len() == KEPT {
            for_common(common, |common| {
                let room = COMMON.saturating_sub(common.len()).min(KEPT / 2);
                common.extend(own.drain(..room));
            });
            own.truncate(KEPT / 2);
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
