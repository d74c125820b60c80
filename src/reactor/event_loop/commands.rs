//! What others ask of the loop, carried out.

use std::time::Instant;

use super::{EventLoop, GROUP};
use crate::id::Key;
use crate::link::{Command, Link, Permit};
use crate::message::CloseCause;
use crate::peer::Peer;
use crate::reactor::fan_out::{FanOut, Frames, Recipients};
use crate::reactor::stopping::Stopping;
use crate::reactor::upstream::Upstream;

/// Frames for as many connections are held back for others, once.
const MANY: usize = 256;

impl<U: Upstream> EventLoop<U> {
    /// Carries out what was asked; what is asked meanwhile waits for the next turn.
    pub(super) fn commands(&mut self) {
        let mut own = Vec::new();
        self.handle.take_own(&mut own);
        for command in own {
            self.execute(command);
        }
        for _ in 0..self.receiver.commands.len() {
            match self.receiver.commands.try_recv() {
                Ok(command) => self.execute(command),
                Err(_) => break,
            }
        }
        self.held_back = !self.held_back && self.stopping.is_none() && self.may_be_joined();
        if !self.held_back {
            self.fan_out_and_write();
        }
    }

    /// Whether what was gathered had better wait for what workers are about to say, as work was given to
    /// them this turn: one write to each of many costs more than the wait, which a nap bounds.
    fn may_be_joined(&self) -> bool {
        let gave_work = self.gave_work || !self.runnable.is_empty();
        gave_work && !self.upstream.is_inline() && self.most_recipients() >= MANY
    }

    /// To how many connections at most the gathered frames go.
    fn most_recipients(&self) -> usize {
        self.gathered.first().map_or(0, |fan_out| match fan_out {
            FanOut::All(..) => self.conns.len(),
            FanOut::Topic(publication, _) => self.audience.of(publication.topic).len(),
            FanOut::Members(_, keys, _) => keys.len(),
        })
    }

    fn execute(&mut self, command: Command) {
        use Command::{Batch, Broadcast, Flush, Multicast, Publish, Resume};
        let goes_with_fan_outs = matches!(
            command,
            Broadcast(..) | Publish(..) | Multicast { .. } | Batch(..) | Flush(_) | Resume(_)
        );
        if !goes_with_fan_outs {
            // It may write to outboxes, or change who is there.
            self.fan_out();
        }
        match command {
            Command::Flush(key) => self.touch(key),
            Command::Resume(key) => self.serve(key, |conn, _| conn.resume()),
            Command::Accept(key, head) => self.serve(key, |conn, cx| conn.accept(head, cx)),
            Command::Respond(key, status, answer) => {
                self.serve(key, |conn, cx| conn.respond(status, answer, cx));
            }
            Command::Finished(key) => self.serve(key, |conn, cx| conn.finished(cx)),
            #[cfg(feature = "tls")]
            Command::Secured(key, stream, step) => {
                self.serve(key, |conn, cx| conn.secured(stream, step, cx));
            }
            #[cfg(feature = "deflate")]
            Command::Fail(key, violation) => self.serve(key, |conn, cx| {
                if conn.is_open() {
                    conn.fail(violation, cx);
                }
            }),
            Command::Terminate(key) => {
                self.serve(key, |conn, cx| conn.end_now(CloseCause::Terminated, cx));
            }
            Command::Run(link) => self.runnable.push(Peer { link }),
            Command::Dial(dial) => self.dials.push_back(dial),
            Command::Adopt(stream, remote) => self.adopt(stream, remote),
            Command::Send { link, message } => self.apply(&link, |link| {
                link.push_reserved(message);
            }),
            Command::SendLatest { link, key } => self.apply(&link, |link| link.push_latest(key)),
            Command::Close(link) => self.apply(&link, |link| link.outbox().push_close_frame()),
            Command::Broadcast(frame, permit) => self.gather(FanOut::All(frame, permit)),
            Command::Publish(publication, permit) => {
                self.gather(FanOut::Topic(publication, permit));
            }
            Command::Multicast { frame, to, except } => {
                self.gather(FanOut::Members(frame, to, except));
            }
            Command::Batch(commands, permit) => self.execute_all(commands, permit),
            // If the connection is gone, it is struck off by a command behind this one.
            Command::Subscribe(key, topic) => self.audience.subscribe(topic, key),
            Command::Unsubscribe(key, topic) => self.audience.unsubscribe(topic, key),
            Command::CatchUp(key) => self.serve(key, |conn, _| conn.catch_up()),
            Command::Shutdown(deadline) => {
                let untold = self.stop_accepting();
                self.stopping = Some(Stopping::at_once(untold, deadline));
            }
            Command::Drain {
                code,
                spread,
                deadline,
            } => {
                let (untold, now) = (self.stop_accepting(), Instant::now());
                self.stopping = Some(Stopping::spread(untold, code, spread, now, deadline));
            }
        }
    }

    fn execute_all(&mut self, commands: Vec<Command>, permit: Permit) {
        for command in commands {
            self.execute(command);
        }
        self.receiver.return_permit(permit);
    }

    /// The connections that there are; no others follow.
    fn stop_accepting(&mut self) -> Vec<Key> {
        self.acceptor.close(self.poll.registry());
        self.conns.keys().collect()
    }

    /// Carries out an ordered command that writes to an outbox.
    fn apply(&mut self, link: &Link, act: impl FnOnce(&Link)) {
        act(link);
        self.touch(link.id.key());
        self.handle.ordered_done();
    }

    /// Fans a frame out together with those before and behind it, if they are for the same connections.
    fn gather(&mut self, fan_out: FanOut) {
        if !self.gathered.takes(&fan_out) {
            self.fan_out();
        }
        self.gathered.push(fan_out);
    }

    /// Puts what was gathered into the outboxes; more may follow for the same connections.
    fn fan_out(&mut self) {
        self.fan_out_by(|this, frames| {
            this.recipients().send(frames, 0, usize::MAX);
        });
    }

    /// Puts the last of a turn into the outboxes and writes it, by groups, while it is in the cache.
    fn fan_out_and_write(&mut self) {
        self.fan_out_by(|this, frames| {
            let mut from = Some(0);
            while let Some(next) = from {
                // Who was sent something before has it written together with this, later.
                this.later.append(&mut this.touched);
                from = this.recipients().send(frames, next, GROUP);
                this.flush();
                // To write to thousands takes milliseconds, for which what was read needn't wait.
                this.pass_on();
            }
            this.touched.append(&mut this.later);
        });
    }

    /// `put` is given what was gathered, if that is anything.
    fn fan_out_by(&mut self, put: impl FnOnce(&mut Self, &Frames<'_>)) {
        if self.gathered.is_empty() {
            return;
        }
        let mut gathered = std::mem::take(&mut self.gathered);
        if let Some(frames) = gathered.frames() {
            put(self, &frames);
        }
        for fan_out in gathered.drain() {
            self.receiver.return_permit(fan_out.into_permit());
            self.handle.ordered_done();
        }
        // Keeps the memory.
        self.gathered = gathered;
    }

    fn recipients(&mut self) -> Recipients<'_> {
        Recipients {
            conns: &mut self.conns,
            audience: &self.audience,
            touched: &mut self.touched,
            index: self.handle.index,
        }
    }
}
