//! From the queue to Redis, as many commands at a time as there are.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError};
use redis::{Connection, Pipeline, RedisError, RedisResult, Value, cmd};

use super::retry::BackOff;
use super::{Inner, Job, keeping};
use crate::backplane::Post;
use crate::backplane::envelope::Envelope;
use crate::history::History;

/// Commands that are sent before their answers are read. More of them gain little, and all of them are
/// sent again if the connection breaks meanwhile.
const BATCH: usize = 256;

/// Bytes of them, about.
const BATCH_BYTES: usize = 1 << 20;

/// Between two signs of life.
pub(super) const HEARTBEAT: Duration = Duration::from_millis(500);

/// Errors that pass: what was asked is asked again.
const PASSING: &[&str] = &[
    "BUSY",
    "CLUSTERDOWN",
    "LOADING",
    "MASTERDOWN",
    "MISCONF",
    "NOREPLICAS",
    "NOSCRIPT",
    "OOM",
    "OUTOFORDER", // our own
    "READONLY",
    "TRYAGAIN",
];

/// See the module's documentation.
pub(super) struct Publisher {
    inner: Arc<Inner>,
    queue: Receiver<Job>,
    /// With the digest of the script that adds to histories.
    connection: Option<(Connection, String)>,
    back_off: BackOff,
    /// Sent perhaps, and not acknowledged.
    pending: VecDeque<Pending>,
    /// The next message's number.
    sequence: u64,
    /// The subscriber is to be told that it has something to do.
    tell: bool,
    last_sign: Option<Instant>,
}

/// A message with its number, which it keeps however often it is sent.
struct Pending {
    post: Post,
    keep: Option<History>,
    sequence: u64,
    envelope: Vec<u8>,
}

impl Publisher {
    pub(super) fn new(inner: Arc<Inner>, queue: Receiver<Job>) -> Self {
        Self {
            inner,
            queue,
            connection: None,
            back_off: BackOff::default(),
            pending: VecDeque::new(),
            sequence: 1,
            tell: false,
            last_sign: None,
        }
    }

    pub(super) fn run(mut self) {
        loop {
            self.take();
            let end = &self.inner.end;
            let nothing_left = self.pending.is_empty() && self.queue.is_empty() && !self.tell;
            if end.deadline().is_some() && nothing_left || end.has_come() {
                break;
            }
            if let Err(error) = self.send() {
                self.failed(&error);
            }
        }
        let left = self.inner.queued.load(Relaxed);
        if left > 0 {
            self.inner.lose(left as u64, "the server has ended");
        }
        self.inner.speaks.store(false, Relaxed);
    }

    /// Takes from the queue what fits into a batch; waits if there is nothing to do.
    fn take(&mut self) {
        if self.pending.is_empty() && !self.tell {
            let sign = self
                .last_sign
                .map_or(Duration::ZERO, |at| HEARTBEAT.saturating_sub(at.elapsed()));
            match self.queue.recv_timeout(sign) {
                Ok(job) => self.add(job),
                Err(RecvTimeoutError::Timeout) => return,
                // A server that was dropped without being shut down.
                Err(RecvTimeoutError::Disconnected) => self.inner.end.is_near(Instant::now()),
            }
        }
        let mut bytes: usize = self.pending.iter().map(|p| p.envelope.len()).sum();
        while self.pending.len() < BATCH && bytes < BATCH_BYTES {
            let Ok(job) = self.queue.try_recv() else {
                return;
            };
            let before = self.pending.len();
            self.add(job);
            if self.pending.len() > before {
                bytes += self.pending.back().map_or(0, |p| p.envelope.len());
            }
        }
    }

    fn add(&mut self, job: Job) {
        match job {
            Job::Post { post, keep, sender } => {
                let envelope = Envelope {
                    node: self.inner.node,
                    sequence: self.sequence,
                    sender,
                    latest: post.latest.clone(),
                    message: post.message.clone(),
                };
                self.pending.push_back(Pending {
                    post,
                    keep,
                    sequence: self.sequence,
                    envelope: envelope.encode(),
                });
                self.sequence += 1;
            }
            Job::Tell => self.tell = true,
            // The subscriber wakes up by it.
            Job::Stop => self.tell = true,
        }
    }

    /// Sends all that is pending, and takes off what is acknowledged.
    fn send(&mut self) -> RedisResult<()> {
        let (connection, digest) = match &mut self.connection {
            Some(connection) => connection,
            none => {
                let mut connection = self.inner.connect()?;
                let load = cmd("SCRIPT").arg("LOAD").arg(keeping::ADD).take();
                let digest = load.query(&mut connection)?;
                none.insert((connection, digest))
            }
        };
        let mut batch = Pipeline::new();
        let sign = self.tell || self.last_sign.is_none_or(|at| at.elapsed() >= HEARTBEAT);
        if sign {
            let own = self.inner.own_channel();
            batch.add_command(cmd("PUBLISH").arg(own).arg("").take());
        }
        // What stands before it of the same topic, which must have got through.
        let mut before = HashMap::new();
        for Pending {
            post,
            keep,
            sequence,
            envelope,
        } in &self.pending
        {
            batch.add_command(match keep {
                Some(keep) => {
                    let before = before.insert(&*post.topic, *sequence).unwrap_or(0);
                    let numbers = (before, *sequence);
                    self.inner.add(digest, post, keep, numbers, envelope)
                }
                None => {
                    let channel = self.inner.channel(&post.topic);
                    cmd("PUBLISH").arg(channel).arg(&envelope[..]).take()
                }
            });
        }
        if batch.is_empty() {
            return Ok(());
        }
        connection.send_packed_command(&batch.get_packed_pipeline())?;
        if sign {
            connection.recv_response()?.extract_error()?;
            self.tell = false;
            self.last_sign = Some(Instant::now());
        }
        if !self.inner.speaks.swap(true, Relaxed) {
            log::info!(target: "framemill::backplane", "Redis: connected");
        }
        self.back_off.succeeded();
        for _ in 0..self.pending.len() {
            let refused = match connection.recv_response()? {
                Value::ServerError(error) => Some(RedisError::from(error)),
                _ => None,
            };
            match refused {
                Some(error) if error.code().is_some_and(|code| PASSING.contains(&code)) => {
                    return Err(error);
                }
                Some(error) => self
                    .inner
                    .lose(1, &format!("Redis refuses a message: {error}")),
                None => drop(self.inner.published.fetch_add(1, Relaxed)),
            }
            if let Some(done) = self.pending.pop_front() {
                self.inner.queued.fetch_sub(1, Relaxed);
                let len = done.post.message.len();
                self.inner.queued_bytes.fetch_sub(len, Relaxed);
            }
        }
        Ok(())
    }

    /// Whatever was not acknowledged is sent again, on another connection.
    fn failed(&mut self, error: &RedisError) {
        self.connection = None;
        self.inner.failures.fetch_add(1, Relaxed);
        if self.inner.speaks.swap(false, Relaxed) {
            log::warn!(target: "framemill::backplane", "Redis: publishing has stopped: {error}");
        } else {
            log::debug!(target: "framemill::backplane", "Redis: still not publishing: {error}");
        }
        self.back_off.wait(&self.inner.end);
    }
}
