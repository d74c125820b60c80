//! How other threads reach a loop: a channel of [`Command`]s, and a wake-up that costs a system call
//! only when the loop sleeps.
//!
//! A loop is in one of three states:
//!
//! - *awake*: it looks at its channel before it sleeps, so nobody need wake it;
//! - *asleep*: whoever puts something in wakes it, once;
//! - *napping*: it gave work to the workers a moment ago and sleeps for a millisecond at most.
//!   Anybody wakes it, but a worker in the middle of its batch holds its wake-ups back until the
//!   batch is done, so that all replies are written in one turn. If a handler takes longer than the
//!   nap, the loop looks by itself, and then falls asleep for good: replies are late by at most one
//!   nap, and a handler that goes on blocking delays nothing that it has sent.
//!
//! No wake-up is lost: the putter puts in and then reads the state; the loop sets the state and then
//! looks at the channel; all of it sequentially consistent, so one of them sees the other.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};

use crossbeam_channel::{Sender, bounded, unbounded};

use super::command::{BROADCASTS, Command, CommandReceiver, Permit};
use super::thread::{self, LISTS, THREAD, wake_deferred};
use super::{Dial, OutboxGuard, Publication, Shared, SharedFrame};
use crate::config::Config;
use crate::id::{Key, PeerId};
use crate::logging::Throttle;
use crate::metrics::{LoopCounters, LoopMetrics};

/// A loop, seen from other threads.
#[derive(Debug)]
pub(crate) struct LoopHandle {
    pub(crate) index: usize,
    pub(crate) shared: Arc<Shared>,
    /// The same as `shared.config`, one step nearer.
    pub(crate) config: Arc<Config>,
    commands: Sender<Command>,
    permits: Sender<()>,
    waker: mio::Waker,
    state: AtomicU8,
    /// Ordered commands put in, and carried out: `applied <= issued`.
    issued: AtomicU64,
    applied: AtomicU64,
    pub(crate) counters: LoopCounters,
}

const AWAKE: u8 = 0;
const NAPPING: u8 = 1;
const ASLEEP: u8 = 2;

/// How to ask:
///
/// | by | from the loop itself | while a call of a room is corked |
/// |---|---|---|
/// | [`post`](Self::post) | next in its own list | held back |
/// | [`post_now`](Self::post_now) | next in its own list | goes out, and may overtake what is held back |
/// | [`enqueue`](Self::enqueue) | through the channel | held back |
/// | [`enqueue_behind_held`](Self::enqueue_behind_held) | through the channel | goes out, after what is held back |
/// | [`enqueue_batch`](Self::enqueue_batch) | through the channel | what was held back goes out |
/// | [`enqueue_raw`](Self::enqueue_raw) | through the channel | goes out, and may overtake what is held back |
///
/// [`ordered`](Self::ordered) and what is made of it [`enqueue`](Self::enqueue), but for
/// [`publish_at_once`](Self::publish_at_once).
impl LoopHandle {
    pub(crate) fn new(
        index: usize,
        shared: Arc<Shared>,
        waker: mio::Waker,
    ) -> (Arc<Self>, CommandReceiver) {
        let (commands, receiver) = unbounded();
        let (permits, returned) = bounded(BROADCASTS);
        let config = Arc::new(shared.config.clone());
        let handle = Self {
            index,
            shared,
            config,
            commands,
            permits,
            waker,
            state: AtomicU8::new(AWAKE),
            issued: AtomicU64::new(0),
            applied: AtomicU64::new(0),
            counters: LoopCounters::default(),
        };
        let receiver = CommandReceiver {
            commands: receiver,
            permits: returned,
        };
        (Arc::new(handle), receiver)
    }

    /// What the loop has done so far, and what waits for it.
    pub(crate) fn metrics(&self) -> LoopMetrics {
        self.counters.read(self.commands.len())
    }

    /// Whether more waits to be carried out than those who wait for a permit may put in.
    pub(super) fn is_behind(&self) -> bool {
        self.commands.len() >= BROADCASTS
    }

    pub(super) fn address(&self) -> usize {
        std::ptr::from_ref(self) as usize
    }

    /// Whether it is the loop that calls.
    pub(crate) fn is_this_thread(&self) -> bool {
        THREAD.with(|thread| thread.own_loop.get() == self.address())
    }

    // ---- for everybody ----

    /// Asks the loop. What one thread asks is carried out in the order of its calls.
    pub(crate) fn post(self: &Arc<Self>, command: Command) {
        let here =
            THREAD.with(|thread| thread.own_loop.get() == self.address() && !thread.corked.get());
        if here {
            LISTS.with(|lists| lists.own_commands.borrow_mut().push(command));
        } else {
            self.enqueue(command);
        }
    }

    /// Asks the loop, behind all that was put into its channel; even if this thread is the loop.
    fn enqueue(self: &Arc<Self>, command: Command) {
        if THREAD.with(|thread| thread.corked.get()) {
            return thread::hold(self, command);
        }
        self.enqueue_raw(command);
    }

    /// The same, with all that is held back before it, for what must not be held back itself.
    pub(super) fn enqueue_behind_held(self: &Arc<Self>, command: Command) {
        if let Some(held) = thread::take_held(self) {
            self.enqueue_batch(held);
        }
        self.enqueue_raw(command);
    }

    fn enqueue_raw(self: &Arc<Self>, command: Command) {
        // Fails only when the loop has ended, and all its connections with it.
        let _ = self.commands.send(command);
        self.wake();
    }

    /// Asks the loop without being held back: it may overtake what a call of a room asked before.
    pub(super) fn post_now(self: &Arc<Self>, command: Command) {
        let here = THREAD.with(|thread| thread.own_loop.get() == self.address());
        if here {
            LISTS.with(|lists| lists.own_commands.borrow_mut().push(command));
        } else {
            self.enqueue_raw(command);
        }
    }

    /// Asks for all of it in one turn. However many broadcasts are among it, they have one permit.
    pub(super) fn enqueue_batch(self: &Arc<Self>, mut commands: Vec<Command>) {
        let is_broadcast = |command: &Command| {
            use Command::{Broadcast, Multicast, Publish};
            matches!(command, Broadcast(..) | Publish(..) | Multicast { .. })
        };
        let command = if commands.iter().any(is_broadcast) {
            Command::Batch(commands, self.acquire_permit())
        } else if commands.len() > 1 {
            Command::Batch(commands, Permit::None)
        } else {
            let Some(command) = commands.pop() else {
                return;
            };
            command
        };
        self.enqueue_raw(command);
    }

    /// Asks the loop to look at this outbox, which has it that the loop knows. In a call of a room it is
    /// asked when that is over; what others send meanwhile does not wait for it.
    #[inline]
    pub(super) fn request_flush(self: &Arc<Self>, id: PeerId, mut outbox: OutboxGuard<'_>) {
        // Ids are unique within one server only, and a handler may send to a peer of another.
        let (inline, corked) = THREAD.with(|thread| {
            let here = thread.own_loop.get() == self.address();
            (here && thread.inline.get() == Some(id), thread.corked.get())
        });
        if inline {
            return;
        }
        if corked {
            outbox.put_off_flush();
        }
        drop(outbox);
        if corked {
            thread::hold_flush(self, id);
        } else {
            self.post(Command::Flush(id.key()));
        }
    }

    /// Hands over what is to be connected to, whatever is held back. It comes back if the loop has ended.
    pub(crate) fn dial(self: &Arc<Self>, dial: Box<Dial>) -> Result<(), Box<Dial>> {
        let sent = self.commands.send(Command::Dial(dial));
        self.wake();
        match sent {
            Err(crossbeam_channel::SendError(Command::Dial(dial))) => Err(dial),
            _ => Ok(()),
        }
    }

    fn wake(self: &Arc<Self>) {
        match self.state.load(Ordering::SeqCst) {
            AWAKE => {}
            NAPPING if THREAD.with(|thread| thread.defers.get()) => LISTS.with(|lists| {
                let mut deferred = lists.deferred.borrow_mut();
                if !deferred.iter().any(|other| Arc::ptr_eq(other, self)) {
                    deferred.push(self.clone());
                }
            }),
            _ => self.wake_now(),
        }
    }

    pub(super) fn wake_now(&self) {
        if self.state.swap(AWAKE, Ordering::SeqCst) == AWAKE {
            return;
        }
        if let Err(error) = self.waker.wake() {
            static UNWOKEN: Throttle = Throttle::new();
            if let Some(more) = UNWOKEN.pass() {
                log::error!("loop {}: cannot be woken: {error}{more}", self.index);
            }
        }
    }

    // ---- commands that a direct send must not overtake ----

    /// Puts in a command that writes to outboxes when it is carried out. Until then, direct writes
    /// from any thread go through the channel as well, so that what one thread sends and
    /// broadcasts arrives in the order of its calls.
    pub(crate) fn ordered(self: &Arc<Self>, command: Command) {
        self.issued.fetch_add(1, Ordering::SeqCst);
        // Through the channel even from the loop itself: its own commands would overtake what other
        // threads put in before.
        self.enqueue(command);
    }

    /// Whether ordered commands are on their way.
    #[inline]
    pub(crate) fn has_ordered(&self) -> bool {
        self.applied.load(Ordering::Acquire) != self.issued.load(Ordering::Acquire)
    }

    /// The handler has dealt with all that came before the end of the stream: behind what it has sent, which
    /// may go through the channel even from the loop itself.
    pub(crate) fn finished(self: &Arc<Self>, key: Key) {
        let command = Command::Finished(key);
        if self.has_ordered() {
            self.enqueue(command);
        } else {
            self.post(command);
        }
    }

    /// Sends one message to every open connection of the loop, after everything that this thread
    /// sent before. Waits while too many broadcasts are on their way; a loop reads no more instead.
    pub(crate) fn broadcast(self: &Arc<Self>, frame: Arc<SharedFrame>) {
        let permit = self.acquire_permit();
        self.ordered(Command::Broadcast(frame, permit));
    }

    /// The same for the subscribers of a topic.
    pub(crate) fn publish(self: &Arc<Self>, publication: Arc<Publication>) {
        let permit = self.acquire_permit();
        self.ordered(Command::Publish(publication, permit));
    }

    /// A place for [`publish_at_once`](Self::publish_at_once), behind all that is held back for this loop.
    pub(super) fn acquire_own_permit(self: &Arc<Self>) -> Permit {
        self.uncork();
        self.wait_for_permit(THREAD.with(|thread| thread.own_loop.get()))
    }

    /// Puts in what is held back for this loop.
    pub(super) fn uncork(self: &Arc<Self>) {
        if let Some(held) = thread::take_held(self) {
            self.enqueue_batch(held);
        }
    }

    /// A place that was not needed.
    pub(super) fn return_permit(self: &Arc<Self>, permit: Permit) {
        if let Permit::Held = permit {
            self.enqueue_raw(Command::Batch(Vec::new(), permit));
        }
    }

    /// Publishes without waiting or being held back, and behind all that is: for callers that hold a lock
    /// that a loop may want.
    pub(super) fn publish_at_once(self: &Arc<Self>, publication: Arc<Publication>, permit: Permit) {
        self.issued.fetch_add(1, Ordering::SeqCst);
        // Something may be held back all the same: the first subscriber there may have come since room
        // was made.
        self.enqueue_behind_held(Command::Publish(publication, permit));
    }

    /// The same for some connections; in a call of a room only, which holds it back.
    pub(crate) fn multicast(
        self: &Arc<Self>,
        frame: Arc<SharedFrame>,
        to: Arc<Vec<Key>>,
        except: Option<Key>,
    ) {
        self.ordered(Command::Multicast { frame, to, except });
    }

    /// A place for a message to many, which [`broadcast`](Self::broadcast) waits for.
    fn acquire_permit(self: &Arc<Self>) -> Permit {
        let (corked, own_loop) = THREAD.with(|thread| (thread.corked.get(), thread.own_loop.get()));
        if corked {
            // All of the call will have one.
            return Permit::None;
        }
        self.wait_for_permit(own_loop)
    }

    fn wait_for_permit(self: &Arc<Self>, own_loop: usize) -> Permit {
        if self.permits.try_send(()).is_ok() {
            return Permit::Held;
        }
        if own_loop != 0 {
            // Two loops that wait for each other would wait for ever. This one goes on, but reads
            // nothing until the other has caught up; what it asks of itself it does in this turn.
            // (One that has ended takes nothing and holds nothing.)
            if own_loop != self.address() && self.is_behind() {
                thread::note_behind(self);
            }
            return Permit::None;
        }
        // Held-back wake-ups may be what the loop needs to make room.
        wake_deferred();
        match self.permits.send(()) {
            Ok(()) => Permit::Held,
            Err(_) => Permit::None,
        }
    }

    /// The loop has carried out one.
    pub(crate) fn ordered_done(&self) {
        self.applied.fetch_add(1, Ordering::Release);
    }

    // ---- for the loop itself ----

    /// Moves the commands that the loop gave itself to the end of `into`.
    pub(crate) fn take_own(&self, into: &mut Vec<Command>) {
        LISTS.with(|lists| into.append(&mut lists.own_commands.borrow_mut()));
    }

    pub(crate) fn has_own(&self) -> bool {
        LISTS.with(|lists| !lists.own_commands.borrow().is_empty())
    }

    /// Declares that the loop is about to sleep. `false`: there is something to do first.
    pub(crate) fn fall_asleep(&self, nap: bool) -> bool {
        let state = if nap { NAPPING } else { ASLEEP };
        self.state.store(state, Ordering::SeqCst);
        if self.commands.is_empty() {
            return true;
        }
        self.state.store(AWAKE, Ordering::SeqCst);
        false
    }

    /// Declares that the loop is awake.
    pub(crate) fn awake(&self) {
        // Relaxed is enough: a putter that still sees an older state wakes once too often.
        self.state.store(AWAKE, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::super::Cork;
    use super::*;
    use crate::config::Compress;
    use crate::message::Message;

    /// What a call of a room has asked for before stays before it.
    #[test]
    fn a_publication_does_not_overtake_what_is_held_back() {
        let poll = mio::Poll::new().unwrap();
        let shared = Arc::new(Shared::new(Config::default()));
        let waker = mio::Waker::new(poll.registry(), mio::Token(0)).unwrap();
        let (handle, receiver) = LoopHandle::new(0, shared.clone(), waker);
        let frame = || SharedFrame::encode(&Message::text("x"), &shared, Compress::Auto).unwrap();
        let cork = Cork::new();
        handle.multicast(Arc::new(frame()), Arc::default(), None);
        let publication = Publication {
            topic: 0,
            frame: frame(),
            except: None,
            latest: None,
        };
        handle.publish_at_once(Arc::new(publication), Permit::None);
        drop(cork);
        let commands: Vec<_> = receiver.commands.try_iter().collect();
        assert!(
            matches!(commands[..], [Command::Batch(..), Command::Publish(..)]),
            "{commands:?}"
        );
    }
}
