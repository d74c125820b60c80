//! Mode `broadcast`: one connection sends, all others receive what the server passes on to everyone
//! else.

use std::{
    io::Result,
    time::{Duration, Instant},
};

use framemill_bench::report::Report;

use crate::{
    Args,
    client::Client,
    latency::Latency,
    window::{Window, drive},
};

const SENDER: usize = 0;
const FIRST_RECEIVER: usize = 1;

pub(crate) fn run(client: Client, args: &Args) -> Result<Report> {
    let receivers = (client.conns.len() - FIRST_RECEIVER) as u64;
    let mut fan_out = FanOut {
        client,
        receivers,
        sent: 0,
        delivered: 0,
    };
    fan_out.exchange(args.warmup, None)?;

    let mut latency = (args.inflight == 1).then(Latency::new);
    let window = Window::open(args.server_pid)?;
    let deliveries = fan_out.exchange(args.seconds, latency.as_mut())?;
    let mut report = window.close(deliveries, args.size)?;
    let missing = fan_out.sent * receivers - fan_out.delivered;
    fan_out.client.drain(FIRST_RECEIVER, missing)?;
    if let Some(latency) = latency {
        latency.put_into(&mut report);
    }
    Ok(report)
}

struct FanOut {
    client: Client,
    receivers: u64,
    sent: u64,
    delivered: u64,
}

impl FanOut {
    /// Returns the number of deliveries in `time`. Latency is from a message to the last of its
    /// deliveries.
    fn exchange(&mut self, time: Duration, mut latency: Option<&mut Latency>) -> Result<u64> {
        drive(time, |wait| {
            self.send_due(latency.as_deref_mut())?;
            let before = self.delivered;
            self.client.turn(wait, |index, _, _, messages| {
                // Some servers would let the sender hear itself. That is not a delivery.
                if index >= FIRST_RECEIVER {
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
        let due = (self.delivered / self.receivers + inflight).saturating_sub(self.sent);
        if due == 0 {
            return Ok(());
        }
        let sender = &mut self.client.conns[SENDER];
        let now = Instant::now();
        if let Some(latency) = latency.filter(|_| self.sent > 0) {
            latency.record(now - sender.sent_at);
        }
        sender.sent_at = now;
        self.sent += due;
        sender.send(&self.client.traffic, due as usize)
    }
}
