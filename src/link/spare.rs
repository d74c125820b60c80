//! Emptied output buffers, kept by the thread that emptied them.
//!
//! With handlers inline, the loop that writes a buffer is the thread that fills the next one, so an
//! echo allocates nothing. With workers the buffers travel one way and the list stays out of use:
//! full on the loop, empty on the worker.

use std::cell::RefCell;

/// Buffers kept per thread, and the size above which one goes back to the allocator. Together at
/// most 256 KiB of idle memory; 64 covers the connections that one turn of a busy loop touches.
const KEPT: usize = 64;
const LARGEST: usize = 4096;

thread_local! {
    static SPARE: RefCell<Vec<Vec<u8>>> = const { RefCell::new(Vec::new()) };
}

/// An empty buffer, used before if there is one.
#[inline]
pub(super) fn take() -> Vec<u8> {
    SPARE.with_borrow_mut(|spare| spare.pop().unwrap_or_default())
}

/// Takes back a buffer that has been written.
#[inline]
pub(crate) fn give(mut buf: Vec<u8>) {
    if buf.capacity() == 0 || buf.capacity() > LARGEST {
        return;
    }
    SPARE.with_borrow_mut(|spare| {
        if spare.len() < KEPT {
            buf.clear();
            spare.push(buf);
        }
    });
}
