//! All connections of a run and the loop that serves them.

use std::{
    io::{Error, Result},
    time::Duration,
};

use framemill_bench::net::{Addr, EventFlags, Events, Poller};

use crate::{
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
    pub(crate) fn open(addr: &Addr, connections: usize, traffic: Traffic) -> Result<Self> {
        let poller = Poller::new()?;
        let conns = open::open_all(addr, connections, &poller)?;
        Ok(Self {
            conns,
            traffic,
            poller,
            events: Events::new(),
            scratch: Scratch::new(),
        })
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
