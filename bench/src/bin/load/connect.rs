//! Mode `connect`: open, shake hands, close, begin the next; `--connections` at a time.

use std::{io::Result, time::Duration};

use framemill_bench::{
    net::{Events, Poller, Sources},
    report::Report,
};

use crate::{
    Args,
    open::{Opening, Target},
    window::{Window, drive},
};

pub(crate) fn run(args: &Args) -> Result<Report> {
    let mut churn = Churn::begin(args)?;
    churn.go_on(args, args.warmup)?;
    let window = Window::open(args.server_pid)?;
    let connections = churn.go_on(args, args.seconds)?;
    window.close(connections, 0)
}

struct Churn {
    poller: Poller,
    events: Events,
    sources: Sources,
    target: Target,
    opening: Vec<Opening>,
}

impl Churn {
    fn begin(args: &Args) -> Result<Self> {
        let poller = Poller::new()?;
        let mut sources = Sources::default();
        let target = Target::new(args)?;
        let opening = (0..args.connections as usize)
            .map(|token| Opening::begin(&target, sources.next(&args.addr), &poller, token))
            .collect::<Result<_>>()?;
        Ok(Self {
            poller,
            events: Events::new(),
            sources,
            target,
            opening,
        })
    }

    /// Returns the number of connections opened in `time`.
    fn go_on(&mut self, args: &Args, time: Duration) -> Result<u64> {
        drive(time, |wait| {
            let mut opened = 0;
            for (token, flags) in self.poller.wait(&mut self.events, Some(wait))? {
                if self.opening[token].advance(&self.target, flags)? {
                    opened += 1;
                    // The old connection closes where the new one takes its place.
                    let source = self.sources.next(&args.addr);
                    self.opening[token] =
                        Opening::begin(&self.target, source, &self.poller, token)?;
                }
            }
            Ok(opened)
        })
    }
}
