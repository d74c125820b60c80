//! Modes `broadcast` and `publish`: a message comes back more than once.
//!
//! `broadcast`: one connection sends, all others receive what the server passes on to everyone else.
//! `publish`: all connections send, one after the other, and the server passes each message on to
//! `--receivers` of them.

use std::{
    io::{Error, Result},
    time::{Duration, Instant},
};

use framemill_bench::report::Report;

use crate::{
    Args,
    client::Client,
    latency::Latency,
    window::{Window, drive},
};

pub(crate) fn broadcast(client: Client, args: &Args) -> Result<Report> {
    let receivers = client.conns.len() as u64 - 1;
    FanOut::new(client, 1, 1, receivers).run(args)
}

pub(crate) fn publish(client: Client, args: &Args) -> Result<Report> {
    let connections = client.conns.len();
    let receivers = u64::from(args.receivers.unwrap_or(args.connections));
    FanOut::new(client, connections, 0, receivers).run(args)
}

struct FanOut {
    client: Client,
    /// The first so many connections send.
    senders: usize,
    /// Whose turn it is.
    next: usize,
    /// What comes to the connections before this one is not counted: some servers would let a sender
    /// hear itself, some would not.
    first_receiver: usize,
    /// Deliveries of each message.
    receivers: u64,
    sent: u64,
    delivered: u64,
    sent_at: Instant,
}

impl FanOut {
    fn new(client: Client, senders: usize, first_receiver: usize, receivers: u64) -> Self {
        Self {
            client,
            senders,
            next: 0,
            first_receiver,
            receivers,
            sent: 0,
            delivered: 0,
            sent_at: Instant::now(),
        }
    }

    fn run(mut self, args: &Args) -> Result<Report> {
        self.exchange(args.warmup, None)?;
        let mut latency = (args.inflight == 1).then(Latency::new);
        let window = Window::open(args.server_pid)?;
        let deliveries = self.exchange(args.seconds, latency.as_mut())?;
        let mut report = window.close(deliveries, args.size)?;
        let missing = (self.sent * self.receivers).checked_sub(self.delivered);
        let missing = missing.ok_or_else(too_many)?;
        self.client.drain(self.first_receiver, missing)?;
        if let Some(latency) = latency {
            latency.put_into(&mut report);
        }
        Ok(report)
    }

    /// Returns the number of deliveries in `time`. Latency is from a message to the last of its
    /// deliveries.
    fn exchange(&mut self, time: Duration, mut latency: Option<&mut Latency>) -> Result<u64> {
        drive(time, |wait| {
            self.send_due(latency.as_deref_mut())?;
            let before = self.delivered;
            self.client.turn(wait, |index, _, _, messages| {
                if index >= self.first_receiver {
                    self.delivered += messages as u64;
                }
                Ok(())
            })?;
            Ok(self.delivered - before)
        })
    }

    /// Keeps as many messages under way as there may be:
    /// `sent - delivered / receivers <= inflight`.
    fn send_due(&mut self, latency: Option<&mut Latency>) -> Result<()> {
        let inflight = self.client.traffic.inflight as u64;
        let arrived = self.delivered / self.receivers;
        if arrived > self.sent {
            return Err(too_many());
        }
        let due = arrived + inflight - self.sent;
        if due == 0 {
            return Ok(());
        }
        let now = Instant::now();
        if let Some(latency) = latency.filter(|_| self.sent > 0) {
            latency.record(now - self.sent_at);
        }
        self.sent_at = now;
        self.sent += due;
        // Where one sends for all, one write will do.
        let each = if self.senders == 1 { due } else { 1 };
        for _ in 0..due / each {
            self.client.conns[self.next].send(&self.client.traffic, each as usize)?;
            self.next = (self.next + 1) % self.senders;
        }
        Ok(())
    }
}

fn too_many() -> Error {
    Error::other("more was delivered than was sent")
}
