//! What a thread is to the loops, and what it holds back from them.

use std::cell::{Cell, RefCell};
use std::sync::Arc;

use super::{Command, LoopHandle, spare};
use crate::id::PeerId;

/// What a thread is to the loops: nothing, a loop itself, or a worker in a batch. It has no destructor, so it is
/// there to the very end of a thread, where the user's own thread-locals may still send.
pub(super) struct Thread {
    /// Address of the `LoopHandle` of the loop that this thread is; 0 for others.
    pub(super) own_loop: Cell<usize>,
    /// The connection whose handler runs inline right now; it is flushed afterwards anyway.
    pub(super) inline: Cell<Option<PeerId>>,
    /// This thread is a worker: it holds back wake-ups of napping loops.
    pub(super) defers: Cell<bool>,
    /// Whether there is any loop that is [`behind`](Lists::behind).
    pub(super) is_ahead: Cell<bool>,
    /// A room is being called: what it asks of the loops waits in `held`.
    pub(super) corked: Cell<bool>,
}

/// What a thread has for the loops. All of it is empty unless [`Thread`] says that there may be something, and
/// only then it is looked at, as it is gone before a thread has quite ended.
pub(super) struct Lists {
    /// Commands of the loop to itself.
    pub(super) own_commands: RefCell<Vec<Command>>,
    pub(super) deferred: RefCell<Vec<Arc<LoopHandle>>>,
    /// This thread is a loop, and these have more messages to many from it than they should.
    behind: RefCell<Vec<Arc<LoopHandle>>>,
    held: RefCell<Vec<Held>>,
}

impl Drop for Lists {
    fn drop(&mut self) {
        THREAD.with(|thread| {
            thread.own_loop.set(0);
            thread.defers.set(false);
            thread.is_ahead.set(false);
            thread.corked.set(false);
        });
    }
}

/// What one loop is to be asked when the call is over.
struct Held {
    handle: Arc<LoopHandle>,
    commands: Vec<Command>,
    /// Connections that were sent something, some of them perhaps several times.
    flushes: Vec<PeerId>,
}

impl Held {
    fn new(handle: &Arc<LoopHandle>) -> Self {
        Self {
            handle: handle.clone(),
            commands: Vec::new(),
            flushes: Vec::new(),
        }
    }

    fn flush(&mut self, id: PeerId) {
        let flushes = &mut self.flushes;
        if flushes.last() == Some(&id) {
            return;
        }
        if flushes.len() == flushes.capacity() {
            // Grows with the connections, not with what they are sent.
            flushes.sort_unstable();
            flushes.dedup();
            flushes.reserve(flushes.len().max(16));
        }
        flushes.push(id);
    }

    fn into_commands(self) -> Vec<Command> {
        let mut commands = self.commands;
        let flushes = self.flushes.iter().map(|id| Command::Flush(id.key()));
        commands.extend(flushes);
        commands
    }
}

thread_local! {
    pub(super) static THREAD: Thread = const {
        Thread {
            own_loop: Cell::new(0),
            inline: Cell::new(None),
            defers: Cell::new(false),
            is_ahead: Cell::new(false),
            corked: Cell::new(false),
        }
    };
    pub(super) static LISTS: Lists = const {
        Lists {
            own_commands: RefCell::new(Vec::new()),
            deferred: RefCell::new(Vec::new()),
            behind: RefCell::new(Vec::new()),
            held: RefCell::new(Vec::new()),
        }
    };
}

/// Makes the thread a loop for as long as it lives.
pub(crate) struct OwnLoop(());

impl OwnLoop {
    pub(crate) fn new(handle: &LoopHandle) -> Self {
        THREAD.with(|thread| thread.own_loop.set(handle.address()));
        Self(())
    }
}

impl Drop for OwnLoop {
    /// What the thread still has for the loops goes, or another loop that runs here later would find it. (What it keeps
    /// for compression stays until it ends.)
    fn drop(&mut self) {
        THREAD.with(|thread| {
            thread.own_loop.set(0);
            thread.is_ahead.set(false);
        });
        let left = LISTS.with(|lists| (lists.own_commands.take(), lists.behind.take()));
        // With nothing borrowed any more, as it may have owners that send something.
        drop(left);
        spare::release_own();
    }
}

/// Whether this thread may become a loop: it is none, nor a worker, nor does it call a room.
pub(crate) fn may_be_a_loop() -> bool {
    let is_free = |thread: &Thread| {
        thread.own_loop.get() == 0 && !thread.defers.get() && !thread.corked.get()
    };
    // Not at the very end of a thread, as far as can be told.
    THREAD.with(is_free) && LISTS.try_with(|_| ()).is_ok() && spare::is_there()
}

/// From now on this thread holds back wake-ups of napping loops, until [`wake_deferred`].
pub(crate) fn defer_wakes() {
    THREAD.with(|thread| thread.defers.set(true));
}

/// Sends off the wake-ups that were held back.
pub(crate) fn wake_deferred() {
    if !THREAD.with(|thread| thread.defers.get()) {
        return;
    }
    LISTS.with(|lists| {
        for handle in lists.deferred.borrow_mut().drain(..) {
            handle.wake_now();
        }
    });
}

/// Whether another loop has more to do for the handlers of this one than it should: then this one
/// reads no more messages, which might make it even more.
#[inline]
pub(crate) fn is_ahead() -> bool {
    THREAD.with(|thread| thread.is_ahead.get())
}

/// Looks again whether it is so.
pub(crate) fn still_ahead() -> bool {
    is_ahead()
        && LISTS.with(|lists| {
            let mut behind = lists.behind.borrow_mut();
            behind.retain(|handle| handle.is_behind());
            THREAD.with(|thread| thread.is_ahead.set(!behind.is_empty()));
            !behind.is_empty()
        })
}

/// Notes a loop that has not kept up with this one.
#[cold]
pub(super) fn note_behind(handle: &Arc<LoopHandle>) {
    LISTS.with(|lists| {
        let mut behind = lists.behind.borrow_mut();
        if !behind.iter().any(|other| Arc::ptr_eq(other, handle)) {
            behind.push(handle.clone());
        }
    });
    THREAD.with(|thread| thread.is_ahead.set(true));
}

/// Marks the connection whose handler this loop runs inline, for as long as it lives.
pub(crate) struct Inline(());

impl Inline {
    pub(crate) fn run(id: PeerId) -> Self {
        THREAD.with(|thread| thread.inline.set(Some(id)));
        Self(())
    }
}

impl Drop for Inline {
    fn drop(&mut self) {
        THREAD.with(|thread| thread.inline.set(None));
    }
}

/// Holds back what this thread asks of the loops for as long as it lives; then each loop gets all of
/// it as one command, so it writes once to each connection. One inside another changes nothing.
///
/// Messages are queued at once all the same: what counts towards the limits, and what
/// [`Peer::send`](crate::Peer::send) tells, is as ever. What others send to the same connections meanwhile
/// goes out at once, and takes with it what is in front of it.
pub(crate) struct Cork {
    outermost: bool,
}

impl Cork {
    pub(crate) fn new() -> Self {
        // Where nothing can be held back any more, all goes out at once.
        let outermost =
            LISTS.try_with(|_| ()).is_ok() && THREAD.with(|thread| !thread.corked.replace(true));
        Self { outermost }
    }
}

impl Drop for Cork {
    fn drop(&mut self) {
        if !self.outermost {
            return;
        }
        THREAD.with(|thread| thread.corked.set(false));
        let held = LISTS.with(|lists| std::mem::take(&mut *lists.held.borrow_mut()));
        for held in held {
            let handle = held.handle.clone();
            handle.enqueue_batch(held.into_commands());
        }
    }
}

/// Whether this thread is in a call of a room.
pub(super) fn is_corked() -> bool {
    THREAD.with(|thread| thread.corked.get())
}

/// Holds a command back.
#[cold]
pub(super) fn hold(handle: &Arc<LoopHandle>, command: Command) {
    with_held(handle, |held| held.commands.push(command));
}

/// The same for a [`Command::Flush`].
#[cold]
pub(super) fn hold_flush(handle: &Arc<LoopHandle>, id: PeerId) {
    with_held(handle, |held| held.flush(id));
}

fn with_held(handle: &Arc<LoopHandle>, add: impl FnOnce(&mut Held)) {
    LISTS.with(|lists| {
        let mut held = lists.held.borrow_mut();
        let place = held.iter().position(|h| Arc::ptr_eq(&h.handle, handle));
        let place = place.unwrap_or_else(|| {
            held.push(Held::new(handle));
            held.len() - 1
        });
        add(&mut held[place]);
    });
}

/// What is held back from this loop.
pub(super) fn take_held(handle: &Arc<LoopHandle>) -> Option<Vec<Command>> {
    if !is_corked() {
        return None;
    }
    LISTS.with(|lists| {
        let mut held = lists.held.borrow_mut();
        let at = held.iter().position(|h| Arc::ptr_eq(&h.handle, handle))?;
        Some(held.remove(at).into_commands())
    })
}
