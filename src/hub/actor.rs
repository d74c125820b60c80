//! The actor behind one room name: its mailbox, and how the room's calls are made.
//!
//! The room itself comes and goes in it: it is made when somebody joins, and dropped when it closes. The
//! actor goes with it, unless somebody has joined meanwhile; then the next room is made in the same
//! actor. Whether that is so is decided with the registry and the inbox locked, and joining takes both
//! too, so nobody joins an actor that is no more.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, Instant};

use super::members::Members;
use super::membership::RoomStats;
use super::room::{Refused, Room};
use super::rooms::Registry;
use super::schedule::{Pace, Schedule};
use super::seat::{Counted, Seat};
use super::services::Services;
use super::task::Runnable;
use super::ticker::Look;
use crate::guard::guarded;
use crate::id::PeerId;
use crate::link::Cork;
use crate::logging::Throttle;
use crate::message::{CloseCause, CloseCode, Message};
use crate::peer::Peer;
use crate::sync::lock;
use crate::worker::{Batch, Mailbox, MailboxState};

/// Runs the room of one name; registry, members and handles refer to it.
///
/// - for all, on any thread: [`call`](Self::call) has a call made in its turn; [`len`](Self::len) and
///   [`stats`](Self::stats) are as of the last call;
/// - for the registry, with itself locked: [`put_in`](Self::put_in) and [`retire`](Self::retire), after
///   which the caller makes it [run](Self::make_run) once nothing is locked;
/// - for the thread that runs it, one at a time: `run`, and all calls of the room under it.
pub(super) struct Actor<R: Room> {
    pub(super) name: Arc<str>,
    pub(super) services: Arc<Services>,
    registry: Arc<Registry<R>>,
    inbox: Mutex<Inbox<R>>,
    stage: Mutex<Stage<R>>,
    len: AtomicUsize,
    counts: Counts,
    me: Weak<Self>,
}

struct Inbox<R: Room> {
    calls: Option<Batch<Call<R>>>,
    state: MailboxState,
    /// The actor is no more: nothing is accepted.
    retired: bool,
}

impl<R: Room> Inbox<R> {
    fn mailbox(&mut self) -> Mailbox<'_, Call<R>> {
        Mailbox {
            queue: &mut self.calls,
            state: &self.state,
        }
    }
}

/// The room, and what it is played on.
struct Stage<R> {
    room: Option<R>,
    members: Members,
    pace: Option<Arc<Pace>>,
}

/// A call to be made.
pub(super) enum Call<R: Room> {
    Join(Counted, R::Join),
    Message(Counted, Message),
    Leave(Arc<Seat>),
    Tick,
    With(Visit<R>),
    /// The server has ended.
    End,
}

/// What [`RoomHandle::with`](super::RoomHandle::with) is given.
pub(super) type Visit<R> = Box<dyn FnOnce(&mut R, &mut Members) + Send>;

#[derive(Default)]
struct Counts {
    ticks: AtomicU64,
    merged: AtomicU64,
    overruns: AtomicU64,
    worst_late: AtomicU64,
}

impl<R: Room> Actor<R> {
    pub(super) fn new(
        name: &str,
        services: Arc<Services>,
        registry: Arc<Registry<R>>,
    ) -> Arc<Self> {
        Arc::new_cyclic(|me| {
            let name: Arc<str> = name.into();
            Self {
                name: name.clone(),
                services,
                registry,
                inbox: Mutex::new(Inbox {
                    calls: None,
                    state: MailboxState::default(),
                    retired: false,
                }),
                stage: Mutex::new(Stage {
                    room: None,
                    members: Members::new(name),
                    pace: None,
                }),
                len: AtomicUsize::new(0),
                counts: Counts::default(),
                me: me.clone(),
            }
        })
    }

    /// One that nobody is or ever will be in.
    pub(super) fn nowhere(
        name: &str,
        services: Arc<Services>,
        registry: Arc<Registry<R>>,
    ) -> Arc<Self> {
        let actor = Self::new(name, services, registry);
        lock(&actor.inbox).retired = true;
        actor
    }

    pub(super) fn len(&self) -> usize {
        self.len.load(Ordering::Relaxed)
    }

    pub(super) fn stats(&self) -> RoomStats {
        let count = |count: &AtomicU64| count.load(Ordering::Relaxed);
        RoomStats {
            ticks: count(&self.counts.ticks),
            merged: count(&self.counts.merged),
            overruns: count(&self.counts.overruns),
            worst_late: Duration::from_nanos(count(&self.counts.worst_late)),
        }
    }

    /// Puts a call into the inbox. `Ok(true)`: the caller makes the actor run, once it holds no lock.
    pub(super) fn put_in(&self, call: Call<R>) -> Result<bool, Call<R>> {
        let mut inbox = lock(&self.inbox);
        if inbox.retired {
            return Err(call);
        }
        Ok(inbox.mailbox().push_one(call))
    }

    /// How many calls wait.
    pub(super) fn waiting(&self) -> usize {
        lock(&self.inbox).mailbox().len()
    }

    /// Makes a call, in its turn. `false`: there is no such room any more.
    pub(super) fn call(&self, call: Call<R>) -> bool {
        match self.put_in(call) {
            Ok(true) => self.make_run(),
            Ok(false) => {}
            Err(call) => {
                drop_unused(call);
                return false;
            }
        }
        true
    }

    pub(super) fn make_run(&self) {
        if let Some(me) = self.me.upgrade() {
            self.services.run(me);
        }
    }

    /// With the registry locked: ends the actor, unless more calls have come. `false`: they have, and
    /// it must be run again.
    pub(super) fn retire(&self) -> bool {
        let mut inbox = lock(&self.inbox);
        let more = inbox.mailbox().finish();
        inbox.retired = !more;
        !more
    }

    // ---- the calls ----

    fn perform(&self, stage: &mut Stage<R>, call: Call<R>) {
        match call {
            Call::Join(waiting, join) => self.join(stage, waiting.seat().clone(), join),
            Call::Leave(seat) if stage.members.has(&seat) => self.leave(stage, seat.peer.id()),
            Call::Leave(_) => {}
            Call::Message(waiting, message) if stage.members.has(waiting.seat()) => {
                let peer = &waiting.seat().peer;
                self.play(stage, |room, members| room.message(members, peer, message));
            }
            Call::Message(..) => drop_unused(call),
            Call::Tick => self.tick(stage),
            Call::With(f) if stage.room.is_some() => {
                self.play(stage, |room, members| f(room, members));
            }
            Call::End => self.close(stage),
            Call::With(_) => drop_unused(call),
        }
    }

    fn join(&self, stage: &mut Stage<R>, seat: Arc<Seat>, join: R::Join) {
        // A second time: out first. If nobody else is in the room, it stays for this one.
        let was_in = self.go(stage, seat.peer.id());
        if was_in && stage.room.is_none() {
            // It panicked then, and this one is no member any more.
            let peer = &seat.peer;
            peer.link.close(CloseCode::Error, "", CloseCause::Panic);
            return drop_unused(join);
        }
        if stage.members.is_closing() {
            self.close(stage);
        }
        let made = stage.room.is_some() || self.open(stage);
        let verdict = match &mut stage.room {
            Some(room) if made => guarded(|| room.join(&mut stage.members, &seat.peer, join)),
            _ => {
                drop_unused(join);
                None
            }
        };
        match verdict {
            Some(Ok(())) => stage.members.insert(seat),
            Some(Err(Refused)) => seat.dismiss(CloseCode::Again, "refused"),
            None => self.panicked(stage, Some(&seat.peer)),
        }
        self.settle(stage);
    }

    fn leave(&self, stage: &mut Stage<R>, id: PeerId) {
        if self.go(stage, id) {
            self.settle(stage);
        }
    }

    /// `false`: it was not in the room.
    fn go(&self, stage: &mut Stage<R>, id: PeerId) -> bool {
        let Some(seat) = stage.members.take(id) else {
            return false;
        };
        self.call_room(stage, |room, members| room.leave(members, &seat.peer));
        true
    }

    fn tick(&self, stage: &mut Stage<R>) {
        let Some(pace) = stage.pace.clone() else {
            return;
        };
        let Some(tick) = pace.begin(Instant::now()) else {
            return;
        };
        let counts = &self.counts;
        let late = u64::try_from(tick.late.as_nanos()).unwrap_or(u64::MAX);
        counts.ticks.fetch_add(1, Ordering::Relaxed);
        counts
            .merged
            .fetch_add(tick.merged.into(), Ordering::Relaxed);
        counts.worst_late.fetch_max(late, Ordering::Relaxed);
        self.services.ticks.ticked(tick.merged, tick.late);
        self.play(stage, |room, members| room.tick(members, tick));
        pace.end(tick);
    }

    /// Calls the room, if there is one, and sees to what comes of it.
    fn play(&self, stage: &mut Stage<R>, call: impl FnOnce(&mut R, &mut Members)) {
        self.call_room(stage, call);
        self.settle(stage);
    }

    fn call_room(&self, stage: &mut Stage<R>, call: impl FnOnce(&mut R, &mut Members)) {
        let Some(room) = &mut stage.room else { return };
        if guarded(|| call(room, &mut stage.members)).is_none() {
            self.panicked(stage, None);
        }
    }

    // ---- the room's life ----

    /// Makes the room. `false`: that panicked.
    fn open(&self, stage: &mut Stage<R>) -> bool {
        stage.room = guarded(|| self.registry.make(&self.name));
        if let (Some(_), Some(period)) = (&stage.room, self.registry.period()) {
            stage.pace = Some(self.begin_ticks(period));
        }
        stage.room.is_some()
    }

    fn begin_ticks(&self, period: Duration) -> Arc<Pace> {
        let start = self.services.start_of_period(period, Instant::now());
        let schedule = Schedule::new(start, period);
        let pace = Arc::new(Pace::new(schedule));
        if let Some(first) = schedule.at(1) {
            let (pace, actor) = (pace.clone(), self.me.clone());
            self.services.at(first, Ticks { pace, actor });
        }
        pace
    }

    /// After a call: closes the room if that is what is to be.
    fn settle(&self, stage: &mut Stage<R>) {
        stage.members.dismiss_removed();
        let empty = stage.members.is_empty() && !self.registry.keeps_empty();
        if stage.members.is_closing() || empty {
            self.close(stage);
        }
        self.len.store(stage.members.len(), Ordering::Relaxed);
    }

    fn panicked(&self, stage: &mut Stage<R>, joining: Option<&Peer>) {
        let name = &self.name;
        static PANICS: Throttle = Throttle::new();
        if let Some(more) = PANICS.pass() {
            log::error!("room {name:?} panicked; closing it, and with 1011 its members{more}");
        }
        for peer in stage.members.peers().chain(joining) {
            peer.link.close(CloseCode::Error, "", CloseCause::Panic);
        }
        self.close(stage);
    }

    fn close(&self, stage: &mut Stage<R>) {
        if let Some(pace) = stage.pace.take() {
            pace.stop();
            self.services.one_is_over();
        }
        stage.members.dismiss_all();
        self.len.store(0, Ordering::Relaxed);
        let room = stage.room.take();
        if guarded(|| drop(room)).is_none() {
            static PANICS: Throttle = Throttle::new();
            if let Some(more) = PANICS.pass() {
                log::error!("room {:?} panicked when it was dropped{more}", self.name);
            }
        }
    }
}

impl<R: Room> Runnable for Actor<R> {
    fn run(&self) -> bool {
        let calls = lock(&self.inbox).mailbox().take();
        let mut stage = lock(&self.stage);
        for call in *calls {
            let _cork = Cork::new();
            self.perform(&mut stage, call);
        }
        let closed = stage.room.is_none();
        drop(stage);
        if closed {
            !self.registry.retire(self)
        } else {
            lock(&self.inbox).mailbox().finish()
        }
    }
}

/// The ticks of one room, as the ticker has them.
struct Ticks<R: Room> {
    pace: Arc<Pace>,
    actor: Weak<Actor<R>>,
}

impl<R: Room> Look for Ticks<R> {
    fn look(&mut self, now: Instant) -> Option<Instant> {
        let due = self.pace.look(now);
        let actor = self.actor.upgrade().filter(|_| due.next.is_some())?;
        let overruns = &actor.counts.overruns;
        overruns.fetch_add(due.overruns, Ordering::Relaxed);
        actor.services.ticks.overrun(due.overruns);
        if due.pass_on {
            actor.call(Call::Tick);
        }
        due.next
    }

    fn is_over(&self) -> bool {
        self.pace.is_stopped()
    }
}

/// Drops what a room was not given: there is user code in its `Drop`.
fn drop_unused<T>(unused: T) {
    if guarded(|| drop(unused)).is_none() {
        static PANICS: Throttle = Throttle::new();
        if let Some(more) = PANICS.pass() {
            log::error!(
                "what was passed to a room that is closed panicked when it was dropped{more}"
            );
        }
    }
}
