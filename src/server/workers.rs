//! Handlers on workers: what a worker does, and how it gets it.

use std::sync::Arc;
use std::time::Instant;

use super::engine::Engine;
use super::handler::Handler;
use crate::hub::Task;
use crate::link::{EventBatch, defer_wakes, keeps_spare, release_own_spare, wake_deferred};
use crate::metrics::WorkerCounters;
use crate::peer::Peer;
use crate::proto::Role;
use crate::reactor::{NotInline, Upstream};
use crate::worker::{RunQueue, Work};

/// What a worker counts, and when.
pub(crate) struct WorkerState {
    workers: Arc<[WorkerCounters]>,
    n: usize,
    /// When its last run ended; the next begins then, unless it has paused meanwhile.
    ended: Option<Instant>,
}

impl<H: Handler> Work<Task> for Engine<H> {
    type State = WorkerState;

    fn begin(&self, n: usize) -> WorkerState {
        defer_wakes();
        WorkerState {
            workers: self.workers().clone(),
            n,
            ended: None,
        }
    }

    fn run(&self, state: &mut WorkerState, task: &mut Task) -> bool {
        let counters = &state.workers[state.n];
        let began = state.ended.unwrap_or_else(Instant::now);
        let epoch = counters.busy.epoch();
        counters.busy.begin(began.saturating_duration_since(epoch));
        let more = match task {
            Task::Conn(peer, since) => {
                if let Some(since) = since.take() {
                    counters
                        .waits
                        .record(began.saturating_duration_since(since));
                }
                let mut handled = 0;
                let more = self.run_mailbox(peer, &mut handled);
                counters.events.add(handled);
                more
            }
            Task::Run(runnable) => runnable.run(),
        };
        let ended = Instant::now();
        let took = ended.saturating_duration_since(began);
        counters.busy.end(took, &counters.runs);
        state.ended = Some(ended);
        more
    }

    fn pause(&self, state: &mut WorkerState) {
        wake_deferred();
        state.ended = None;
    }

    fn keeps(&self) -> bool {
        keeps_spare()
    }

    fn rest(&self) {
        release_own_spare();
    }
}

/// Hands events to the workers.
pub(crate) struct ToWorkers(pub(crate) RunQueue<Task>);

impl Upstream for ToWorkers {
    const ROLE: Role = Role::Server;
    type Inline = NotInline;

    fn is_inline(&self) -> bool {
        false
    }

    fn deliver(&self, peer: &Peer, events: &mut EventBatch) -> bool {
        peer.link.deliver(events)
    }

    fn schedule(&self, peer: Peer, since: Option<Instant>) {
        self.0.push(Task::Conn(peer, since));
    }
}
