//! All connections of a run and the loop that serves them.

use std::{
    io::{Error, Result},
    time::Duration,
};

use framemill_bench::{
    frame,
    net::{EventFlags, Events, Poller},
};

use crate::{
    Args,
    conn::{Conn, Scratch},
    open,
    traffic::Traffic,
    window::Progress,
};

pub(crate) struct Client {
    pub(crate) conns: Vec<Conn>,
    pub(crate) traffic: Traffic,
    poller: Poller,
    events: Events,
    scratch: Scratch,
}

impl Client {
    pub(crate) fn open(args: &Args, connections: usize, traffic: Traffic) -> Result<Self> {
        let poller = Poller::new()?;
        let conns = open::open_all(args, connections, &poller)?;
        let mut client = Self {
            conns,
            traffic,
            poller,
            events: Events::new(),
            scratch: Scratch::new(),
        };
        if client.traffic.text.is_some() {
            client.learn_reply()?;
        }
        Ok(client)
    }

    /// Asks once and looks into the answer. A server that compresses each message for itself answers
    /// all of them in the same way: from then on it is enough to compare bytes.
    fn learn_reply(&mut self) -> Result<()> {
        self.conns[0].send(&self.traffic, 1)?;
        let mut received = Vec::new();
        let mut progress = Progress::new();
        loop {
            for (token, flags) in self
                .poller
                .wait(&mut self.events, Some(Duration::from_secs(1)))?
            {
                let ended = flags.intersects(EventFlags::RDHUP | EventFlags::HUP | EventFlags::ERR);
                if token == 0 && (ended || flags.contains(EventFlags::IN)) {
                    self.conns[0].receive_raw(&mut received, &mut self.scratch, ended)?;
                }
            }
            if let Some((header, payload)) = frame::lengths(&received)
                && received.len() >= header + payload
            {
                return self.traffic.expect_reply(&received, header);
            }
            progress.check(received.len() as u64)?;
        }
    }

    /// Waits for events, at most `wait`, and serves each; `on_replies` gets the index of a
    /// connection, the connection, and how many replies it just received.
    pub(crate) fn turn(
        &mut self,
        wait: Duration,
        mut on_replies: impl FnMut(usize, &mut Conn, &Traffic, usize) -> Result<()>,
    ) -> Result<()> {
        for (token, flags) in self.poller.wait(&mut self.events, Some(wait))? {
            let conn = &mut self.conns[token];
            if flags.contains(EventFlags::OUT) {
                conn.flush(&self.traffic)?;
            }
            let ended = flags.intersects(EventFlags::RDHUP | EventFlags::HUP | EventFlags::ERR);
            if ended || flags.contains(EventFlags::IN) {
                let replies = conn.receive(&self.traffic, &mut self.scratch, ended)?;
                if replies > 0 {
                    on_replies(token, conn, &self.traffic, replies)?;
                }
            }
        }
        Ok(())
    }

    /// Receives what is still under way, without sending more: `missing` replies, of the connections
    /// from `first` on. Nothing may be lost, not even at the end.
    pub(crate) fn drain(&mut self, first: usize, mut missing: u64) -> Result<()> {
        let mut progress = Progress::new();
        while missing > 0 {
            let mut received = 0;
            self.turn(Duration::from_secs(1), |index, _, _, replies| {
                received += if index < first { 0 } else { replies as u64 };
                Ok(())
            })?;
            missing = missing
                .checked_sub(received)
                .ok_or_else(|| Error::other("more came back than was sent"))?;
            let lost = |_| Error::other(format!("{missing} messages never came back"));
            progress.check(missing).map_err(lost)?;
        }
        Ok(())
    }
}
