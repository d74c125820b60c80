//! Inbound accounting of one connection: how much was handed to its handler and not yet handled.
//!
//! Only the loop adds and only the worker that runs the mailbox takes away, so both sides count
//! upwards with plain stores, and what is outstanding is the (wrapping) difference. The limits hold
//! for the messages a worker has taken too: 64 means 64, wherever they are.
//!
//! Pausing is a handshake of two flags: the loop sets `paused` and then looks at the counters once
//! more; the worker counts and then looks at `paused`, with a fence between at the end of each batch.
//! Whatever the interleaving, one of them sees the other, so no connection stays paused with an
//! empty mailbox.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering, fence};

use crate::config::Config;

/// See the module's documentation.
///
/// With handlers on workers `0 <= delivered - handled <= limit` for messages; for bytes it may be over
/// by less than one message, as the message that reaches the limit is taken whole.
#[derive(Debug, Default)]
pub(crate) struct Inflow {
    delivered: AtomicU32,
    delivered_bytes: AtomicU32,
    handled: AtomicU32,
    handled_bytes: AtomicU32,
    paused: AtomicBool,
}

/// What one run of a mailbox may inflate: that takes a third of a millisecond, and to send as much back
/// compressed three times as long. Compressed, all of it may be a thousand bytes, so the limits of what waits
/// don't bound it.
pub(crate) const RUN_INFLATED: usize = 1 << 20;

/// Messages and bytes, either an amount or a limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Load {
    pub(crate) messages: usize,
    pub(crate) bytes: usize,
}

impl Load {
    pub(crate) const NOTHING: Self = Self {
        messages: 0,
        bytes: 0,
    };

    /// What may wait for a handler before its peer is not read from.
    pub(crate) fn inbound_limit(config: &Config) -> Self {
        Self {
            messages: config.inbound_messages,
            bytes: config.inbound_bytes,
        }
    }

    pub(crate) fn reaches(self, limit: Self) -> bool {
        self.messages >= limit.messages || self.bytes >= limit.bytes
    }

    /// Reading resumes at a quarter: late enough that a resumed connection has work for a while.
    pub(crate) fn quarter(self) -> Self {
        Self {
            messages: self.messages / 4 + 1,
            bytes: self.bytes / 4 + 1,
        }
    }
}

impl Inflow {
    /// What is with the handler now.
    pub(crate) fn outstanding(&self) -> Load {
        let less = |more: &AtomicU32, less: &AtomicU32| {
            let less = less.load(Ordering::Acquire);
            more.load(Ordering::Acquire).wrapping_sub(less) as usize
        };
        Load {
            messages: less(&self.delivered, &self.handled),
            bytes: less(&self.delivered_bytes, &self.handled_bytes),
        }
    }

    /// The loop delivers. Only the loop calls this.
    pub(crate) fn add(&self, load: Load) {
        advance(&self.delivered, load.messages);
        advance(&self.delivered_bytes, load.bytes);
    }

    /// The worker has handled one. Only the runner of the mailbox calls this. `true`: the loop has
    /// paused the connection, and should be told to go on.
    #[must_use]
    pub(crate) fn handled(&self, bytes: usize, limit: Load) -> bool {
        advance(&self.handled_bytes, bytes);
        advance(&self.handled, 1);
        self.paused.load(Ordering::Relaxed) && self.try_resume(limit)
    }

    /// The same question at the end of a batch, when no later message will ask it again.
    #[must_use]
    pub(crate) fn settle(&self, limit: Load) -> bool {
        fence(Ordering::SeqCst);
        self.paused.load(Ordering::Relaxed) && self.try_resume(limit)
    }

    /// The loop stops reading. `false`: enough has been handled meanwhile that it needn't.
    #[must_use]
    pub(crate) fn pause(&self, limit: Load) -> bool {
        self.paused.store(true, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        !self.try_resume(limit)
    }

    /// `true` for exactly one caller per pause, once little enough is outstanding.
    fn try_resume(&self, limit: Load) -> bool {
        !self.outstanding().reaches(limit.quarter()) && self.paused.swap(false, Ordering::AcqRel)
    }
}

/// A counter with one writer.
fn advance(counter: &AtomicU32, by: usize) {
    let value = counter.load(Ordering::Relaxed).wrapping_add(by as u32);
    counter.store(value, Ordering::Release);
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Load = Load {
        messages: 64,
        bytes: 1000,
    };

    #[test]
    fn resumes_at_a_quarter_and_once() {
        let inflow = Inflow::default();
        inflow.add(Load {
            messages: 64,
            bytes: 640,
        });
        assert!(inflow.outstanding().reaches(LIMIT));
        assert!(inflow.pause(LIMIT));
        let resumed: Vec<bool> = (0..64).map(|_| inflow.handled(10, LIMIT)).collect();
        assert_eq!(resumed.iter().filter(|&&r| r).count(), 1);
        assert_eq!(resumed.iter().position(|&r| r), Some(47), "16 outstanding");
        assert!(!inflow.settle(LIMIT));
        assert!(
            !inflow.pause(LIMIT),
            "nothing outstanding: no need to pause"
        );
    }

    /// The loop pauses at the limit while a worker empties: it is always told to go on.
    #[test]
    fn never_stays_paused() {
        let inflow = Inflow::default();
        let (resume, resumed) = crossbeam_channel::unbounded();
        let (deliver, delivered) = crossbeam_channel::unbounded();
        const MESSAGES: usize = 200_000;
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for batch in delivered {
                    for _ in 0..batch {
                        if inflow.handled(1, LIMIT) {
                            resume.send(()).unwrap();
                        }
                    }
                    if inflow.settle(LIMIT) {
                        resume.send(()).unwrap();
                    }
                }
            });
            let mut sent = 0;
            while sent < MESSAGES {
                let room = LIMIT.messages - inflow.outstanding().messages;
                let batch = room.min(7);
                inflow.add(Load {
                    messages: batch,
                    bytes: batch,
                });
                deliver.send(batch).unwrap();
                sent += batch;
                if inflow.outstanding().reaches(LIMIT) && inflow.pause(LIMIT) {
                    resumed
                        .recv_timeout(std::time::Duration::from_secs(20))
                        .expect("told to go on");
                }
            }
            drop(deliver);
        });
    }
}
