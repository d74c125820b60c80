//! From the queue to Redis, as many commands at a time as there are.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError};
use redis::{Connection, Pipeline, RedisError, RedisResult, Value, cmd};

use super::refused::Refused;
use super::retry::BackOff;
use super::{COMPLAINTS, Inner, Job, keeping, lock};
use crate::backplane::Post;
use crate::backplane::envelope::Envelope;
use crate::history::History;

/// Commands that are sent before their answers are read. More of them gain little, and all of them are
/// sent again if the connection breaks meanwhile.
pub(super) const BATCH: usize = 256;

/// Bytes of them, about.
pub(super) const BATCH_BYTES: usize = 1 << 20;

/// Between two signs of life.
pub(super) const HEARTBEAT: Duration = Duration::from_millis(500);

/// Errors that pass, but perhaps not for this connection: another is made.
const ELSEWHERE: &[&str] = &[
    "BUSY",
    "CLUSTERDOWN",
    "LOADING",
    "MASTERDOWN",
    "NOSCRIPT",
    "READONLY",
    "TRYAGAIN",
];

/// Errors of one command that pass: the others are carried out.
const LATER: &[&str] = &["MISCONF", "NOREPLICAS", "OOM", keeping::OUT_OF_ORDER];

/// See the module's documentation.
pub(super) struct Publisher {
    inner: Arc<Inner>,
    queue: Receiver<Job>,
    /// With the digest of the script that adds to histories.
    connection: Option<(Connection, String)>,
    back_off: BackOff,
    /// Sent perhaps, and not acknowledged.
    pending: VecDeque<Pending>,
    refused: Refused,
    /// When it was last logged that there are such.
    complained: Option<Instant>,
    /// The next message's number.
    sequence: u64,
    /// The subscriber is to be told that it has something to do.
    tell: bool,
    last_sign: Option<Instant>,
}

/// A message with its number, which it keeps however often it is sent.
pub(super) struct Pending {
    pub(super) post: Post,
    keep: Option<History>,
    sequence: u64,
    pub(super) envelope: Vec<u8>,
}

/// What is to be done about a command that Redis doesn't carry out.
#[derive(Debug, PartialEq, Eq)]
enum Refusal {
    /// Nothing.
    Final,
    /// To wait, while others are carried out.
    Later,
    /// To try another connection.
    Elsewhere,
}

/// What Redis says of those of one batch.
#[derive(Default)]
struct Refusals {
    /// The latest that is final.
    last: Option<RedisError>,
    later: Option<RedisError>,
    elsewhere: Option<RedisError>,
}

impl Refusals {
    /// `None`: it has carried it out.
    fn note(&mut self, answer: Value) -> Option<Refusal> {
        let Value::ServerError(error) = answer else {
            return None;
        };
        let error = RedisError::from(error);
        let what = refusal(&error);
        let of_kind = match what {
            Refusal::Final => &mut self.last,
            Refusal::Later => &mut self.later,
            Refusal::Elsewhere => &mut self.elsewhere,
        };
        *of_kind = Some(error);
        Some(what)
    }
}

impl Publisher {
    pub(super) fn new(inner: Arc<Inner>, queue: Receiver<Job>) -> Self {
        Self {
            inner,
            queue,
            connection: None,
            back_off: BackOff::default(),
            pending: VecDeque::new(),
            refused: Refused::default(),
            complained: None,
            sequence: 1,
            tell: false,
            last_sign: None,
        }
    }

    pub(super) fn run(mut self) {
        loop {
            self.take();
            let end = &self.inner.end;
            if end.deadline().is_some() && self.is_done() || end.has_come() {
                break;
            }
            if let Err(error) = self.send() {
                self.failed(&error);
            }
        }
        let Self { inner, queue, .. } = self;
        // Before it is counted what was in it: nothing comes in after that.
        drop(queue);
        let left = inner.queued.swap(0, Relaxed);
        inner.queued_bytes.store(0, Relaxed);
        if left > 0 {
            inner.lose(left as u64, "the server has ended");
        }
        inner.speaks.store(false, Relaxed);
    }

    /// Whether nothing is left to be passed on. Who is there, and that the subscriber has to end, is
    /// not worth waiting for a Redis that is away: they come to that by themselves.
    fn is_done(&self) -> bool {
        self.pending.is_empty()
            && self.refused.is_empty()
            && self.queue.is_empty()
            && (self.connection.is_none() || !self.tell && !self.has_news())
    }

    /// Something is to be told of who is there, now.
    fn has_news(&self) -> bool {
        lock(&self.inner.presences).pause() == Some(Duration::ZERO)
    }

    /// Takes from the queue what fits into a batch; waits if there is nothing to do.
    fn take(&mut self) {
        self.refused.release(&mut self.pending);
        if self.pending.is_empty() && !self.tell {
            let sign = self
                .last_sign
                .map_or(Duration::ZERO, |at| HEARTBEAT.saturating_sub(at.elapsed()));
            let news = lock(&self.inner.presences).pause();
            let wait = [news, self.refused.pause()].into_iter().flatten();
            match self.queue.recv_timeout(wait.fold(sign, Duration::min)) {
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
                let message = Pending {
                    post,
                    keep,
                    sequence: self.sequence,
                    envelope: envelope.encode(),
                };
                self.sequence += 1;
                if message.keep.is_some() && self.refused.has_of(&message.post.topic) {
                    self.refused.push(message);
                } else {
                    self.pending.push_back(message);
                }
            }
            // Looked at with each batch.
            Job::Present => lock(&self.inner.presences).told = false,
            Job::Tell => self.tell = true,
            // The subscriber wakes up by it.
            Job::Stop => self.tell = true,
        }
    }

    /// Sends all that is pending, and takes off what is acknowledged.
    fn send(&mut self) -> RedisResult<()> {
        let (mut connection, digest) = match self.connection.take() {
            Some(connection) => connection,
            None => {
                let mut connection = self.inner.connect()?;
                let load = cmd("SCRIPT").arg("LOAD").arg(keeping::ADD).take();
                let digest = load.query(&mut connection)?;
                (connection, digest)
            }
        };
        let mut batch = Pipeline::new();
        let sign = self.tell || self.last_sign.is_none_or(|at| at.elapsed() >= HEARTBEAT);
        if sign {
            let own = self.inner.own_channel();
            batch.add_command(cmd("PUBLISH").arg(own).arg("").take());
        }
        let presences = lock(&self.inner.presences).commands(&self.inner);
        let present = presences.len();
        for command in presences {
            batch.add_command(command);
        }
        self.add_messages(&mut batch, &digest);
        if !batch.is_empty() {
            connection.send_packed_command(&batch.get_packed_pipeline())?;
            self.settle(sign, present, || connection.recv_response())?;
        }
        // One that failed is not used again.
        self.connection = Some((connection, digest));
        Ok(())
    }

    fn add_messages(&self, batch: &mut Pipeline, digest: &str) {
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
    }

    /// Reads the answers to a batch: all of them, before it is decided what becomes of what was refused.
    /// An error: another connection is needed.
    fn settle(
        &mut self,
        sign: bool,
        presences: usize,
        mut answer: impl FnMut() -> RedisResult<Value>,
    ) -> RedisResult<()> {
        let mut refusals = Refusals::default();
        if sign {
            if let Value::ServerError(error) = answer()? {
                refusals.elsewhere = Some(error.into());
            } else {
                self.tell = false;
                self.last_sign = Some(Instant::now());
            }
        }
        for _ in 0..presences {
            refusals.note(answer()?);
        }
        if let Some(error) = refusals.last.take() {
            log::debug!(target: "framemill::backplane", "Redis: who is there can't be told: {error}");
        }
        if refusals.later.is_some() {
            lock(&self.inner.presences).refused();
        } else if presences > 0 && refusals.elsewhere.is_none() {
            lock(&self.inner.presences).told();
        }
        let refused = self.settle_messages(&mut refusals, answer)?;
        if let Some(error) = refusals.elsewhere {
            self.put_back(refused);
            return Err(error);
        }
        if refused.is_empty() {
            self.refused.accepted();
        } else {
            self.refused.put_back(refused);
        }
        if let Some(error) = refusals.later {
            self.complain(&error);
        }
        if !self.inner.speaks.swap(true, Relaxed) {
            log::info!(target: "framemill::backplane", "Redis: connected");
        }
        self.back_off.succeeded();
        Ok(())
    }

    /// Which of them are refused, but may be taken later.
    fn settle_messages(
        &mut self,
        refusals: &mut Refusals,
        mut answer: impl FnMut() -> RedisResult<Value>,
    ) -> RedisResult<Vec<Pending>> {
        let mut refused = Vec::new();
        for _ in 0..self.pending.len() {
            let what = match answer() {
                Ok(answer) => refusals.note(answer),
                Err(error) => {
                    // Some of the rest may have got through.
                    lose_plain(&self.inner, &mut refused, |_| true);
                    self.put_back(refused);
                    return Err(error);
                }
            };
            let Some(message) = self.pending.pop_front() else {
                break;
            };
            match what {
                None => {
                    self.inner.published.fetch_add(1, Relaxed);
                    self.inner.settled(&message.post);
                    if message.keep.is_none() && !refused.is_empty() {
                        // In order, or not at all.
                        lose_plain(&self.inner, &mut refused, |it| *it == *message.post.topic);
                    }
                }
                Some(Refusal::Final) => {
                    self.inner.settled(&message.post);
                    let why = refusals.last.take().map(|error| error.to_string());
                    let why = why.unwrap_or_default();
                    self.inner
                        .lose(1, &format!("Redis refuses a message: {why}"));
                }
                Some(Refusal::Later | Refusal::Elsewhere) => refused.push(message),
            }
        }
        for message in refused.iter_mut().filter(|it| it.keep.is_none()) {
            // Others have heard larger ones by now, and would take it for a repetition.
            message.sequence = self.sequence;
            Envelope::renumber(&mut message.envelope, self.sequence);
            self.sequence += 1;
            self.inner.accepted.fetch_add(1, Relaxed);
        }
        Ok(refused)
    }

    /// What comes next is sent once more, before all else.
    fn put_back(&mut self, messages: Vec<Pending>) {
        for message in messages.into_iter().rev() {
            self.pending.push_front(message);
        }
    }

    /// Some messages have to wait, or who is there can't be told, while the rest goes on.
    fn complain(&mut self, error: &RedisError) {
        if self.complained.is_none_or(|at| at.elapsed() >= COMPLAINTS) {
            self.complained = Some(Instant::now());
            let waiting = self.refused.len();
            log::warn!(target: "framemill::backplane", "Redis takes nothing to keep; {waiting} messages wait: {error}");
        }
    }

    /// Whatever was not acknowledged is sent again, on another connection.
    fn failed(&mut self, error: &RedisError) {
        self.connection = None;
        lock(&self.inner.presences).repeat();
        self.inner.failures.fetch_add(1, Relaxed);
        if self.inner.speaks.swap(false, Relaxed) {
            log::warn!(target: "framemill::backplane", "Redis: publishing has stopped: {error}");
        } else {
            log::debug!(target: "framemill::backplane", "Redis: still not publishing: {error}");
        }
        self.back_off.wait(&self.inner.end);
    }
}

/// Of these, those of topics without history that later ones have overtaken, or may have.
fn lose_plain(inner: &Inner, refused: &mut Vec<Pending>, is_overtaken: impl Fn(&str) -> bool) {
    refused.retain(|message| {
        let lost = message.keep.is_none() && is_overtaken(&message.post.topic);
        if lost {
            inner.settled(&message.post);
            inner.lose(1, "Redis was busy");
        }
        !lost
    });
}

/// What is to be done about it.
fn refusal(error: &RedisError) -> Refusal {
    let mut code = error.code().unwrap_or_default();
    if code == "ERR" {
        // Before Redis 7, what stopped a script stands within: "Error running script …: -OOM …".
        let within = error.detail().unwrap_or_default().split_once(" -");
        let word = within.and_then(|(_, rest)| rest.split(' ').next());
        code = word.unwrap_or(code);
    }
    if LATER.contains(&code) {
        Refusal::Later
    } else if ELSEWHERE.contains(&code) {
        Refusal::Elsewhere
    } else {
        Refusal::Final
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(line: &str) -> Value {
        redis::parse_redis_value(format!("{line}\r\n").as_bytes()).unwrap()
    }

    #[test]
    fn what_becomes_of_a_refused_command() {
        let of = |line: &str| Refusals::default().note(answer(line));
        for line in [
            "-OOM command not allowed when used memory > 'maxmemory'. script: 7a, on @user_script:5.",
            "-ERR Error running script (call to f_7a): @user_script:5: @user_script: 5: -OOM command not",
            "-ERR Error running script (call to f_7a): @user_script:5: -MISCONF Redis is configured to",
            "-OUTOFORDER one before it is missing",
        ] {
            assert_eq!(of(line), Some(Refusal::Later), "{line}");
        }
        for line in [
            "-BUSY Redis is busy",
            "-READONLY You can't",
            "-LOADING Redis",
        ] {
            assert_eq!(of(line), Some(Refusal::Elsewhere), "{line}");
        }
        for line in ["-ERR it is no integer - or out of range", "-WRONGTYPE it"] {
            assert_eq!(of(line), Some(Refusal::Final), "{line}");
        }
        assert_eq!(of(":1"), None);
    }

    /// Publishes these, topics and texts, to a Redis that gives these answers; what is left to be sent.
    fn left(posts: &[(&str, &str)], answers: &[&str]) -> (Publisher, Vec<(String, u64)>) {
        let redis = crate::backplane::Redis::new("redis://localhost/").unwrap();
        let queue = lock(&redis.queue).take().unwrap();
        let mut publisher = Publisher::new(redis.inner.clone(), queue);
        for (topic, text) in posts {
            let post = Post::new(*topic, crate::message::Message::text(*text));
            let keep = topic.starts_with("kept").then(|| History::last(9));
            assert!(redis.put_in(post, keep, None));
        }
        publisher.take();
        let mut answers = answers.iter();
        let broken = || RedisError::from(std::io::Error::from(std::io::ErrorKind::BrokenPipe));
        let done = publisher.settle(false, 0, || {
            answers.next().map(|line| answer(line)).ok_or_else(broken)
        });
        assert!(done.is_ok() || !publisher.pending.is_empty());
        let pending = publisher.pending.iter().map(|it| {
            let sent = Envelope::decode(&it.envelope).unwrap();
            assert_eq!(sent.sequence, it.sequence);
            (sent.message.to_string(), it.sequence)
        });
        let pending = pending.collect();
        (publisher, pending)
    }

    fn counts(publisher: &Publisher) -> (usize, u64) {
        let inner = &publisher.inner;
        (inner.queued.load(Relaxed), inner.lost.load(Relaxed))
    }

    #[test]
    fn what_was_refused_is_neither_repeated_nor_out_of_order() {
        let posts = [("a", "1"), ("b", "2"), ("kept", "3"), ("b", "4")];
        // 4 has got through: 2 would come after it. 1 needs a number that others haven't heard yet.
        let (publisher, pending) = left(&posts, &["-BUSY", "-BUSY", "-BUSY", ":1"]);
        assert_eq!(pending, [("1".into(), 5), ("3".into(), 3)]);
        assert_eq!(counts(&publisher), (2, 1));
        // Nobody knows whether 4 has.
        let (publisher, pending) = left(&posts, &["-BUSY", ":1", "-BUSY"]);
        assert_eq!(pending, [("3".into(), 3), ("4".into(), 4)]);
        assert_eq!(counts(&publisher), (2, 1));
        let (publisher, pending) = left(&posts, &[":1", ":1", "-WRONGTYPE", ":1"]);
        assert!(pending.is_empty());
        assert_eq!(counts(&publisher), (0, 1));
    }

    #[test]
    fn what_has_to_wait_holds_up_its_topic_only() {
        let posts = [("kept", "1"), ("it", "2"), ("kept", "3"), ("kept2", "4")];
        let (mut publisher, pending) = left(&posts, &["-OOM", ":1", "-OUTOFORDER", ":1"]);
        assert!(pending.is_empty());
        assert_eq!(publisher.refused.len(), 2);
        for topic in ["kept", "kept2"] {
            publisher.add(Job::Post {
                post: Post::new(topic, crate::message::Message::text(topic)),
                keep: Some(History::last(9)),
                sender: None,
            });
        }
        assert_eq!((publisher.refused.len(), publisher.pending.len()), (3, 1));
        publisher.pending.clear();
        publisher.refused.hurry();
        publisher.refused.release(&mut publisher.pending);
        let sequences: Vec<_> = publisher.pending.iter().map(|it| it.sequence).collect();
        assert_eq!(sequences, [1, 3, 5]);
        assert!(!publisher.refused.has_of("kept"));
    }
}
