//! Mode `open-loop`: requests at times that were fixed beforehand, whatever comes back and when.
//!
//! As from many clients that know nothing of each other: times between requests are exponentially
//! distributed around one over `--rate`, and the same in every run. Latency is from the time at which
//! a request was to be sent, not from that at which it was: a server that stalls has all requests of
//! that time counted against it (no "coordinated omission"). What the load generator itself came too
//! late by is in the figures too, hence also reported.

use std::{
    collections::VecDeque,
    io::{Error, Result},
    time::{Duration, Instant},
};

use framemill_bench::report::{Report, rounded};

use crate::{
    Args,
    client::Client,
    latency::Latency,
    window::{Progress, Window, drive},
};

/// Requests to send before answers are looked at again, where several are due.
const AT_ONCE: usize = 8;

pub(crate) fn run(client: Client, args: &Args) -> Result<Report> {
    let rate = args
        .rate
        .ok_or_else(|| Error::other("open-loop needs a --rate"))?;
    if args.sleep {
        // Else the kernel may let a sleeper lie 50 µs longer than it asked for.
        rustix::thread::set_current_timer_slack(std::num::NonZeroU64::new(1))?;
    }
    let mut open_loop = OpenLoop {
        waiting: vec![VecDeque::new(); client.conns.len()],
        client,
        schedule: Schedule::begin(rate),
        next: 0,
        sleep: args.sleep,
        from: Instant::now(),
        latency: Latency::new(),
        late: Latency::new(),
    };
    open_loop.exchange(args.warmup)?;
    open_loop.from = Instant::now();
    (open_loop.latency, open_loop.late) = (Latency::new(), Latency::new());
    let window = Window::open(args.server_pid)?;
    let answers = open_loop.exchange(args.seconds)?;
    let mut report = window.close(answers, args.size)?;
    open_loop.drain()?;
    open_loop.latency.put_into(&mut report);
    report.p999_us = open_loop.latency.percentile(99.9);
    report.late_us = open_loop.late.percentile(99.0);
    report.asked_per_second = Some(rounded(rate));
    Ok(report)
}

struct OpenLoop {
    client: Client,
    schedule: Schedule,
    /// Connections take turns; whose it is.
    next: usize,
    /// For each connection, when the requests were due that are not answered yet.
    waiting: Vec<VecDeque<Instant>>,
    /// Whether to sleep until the next request is due, or to look at the clock until then.
    sleep: bool,
    /// Latencies are those of requests that were due from here on.
    from: Instant,
    latency: Latency,
    late: Latency,
}

impl OpenLoop {
    /// Returns the number of answers in `time`.
    fn exchange(&mut self, time: Duration) -> Result<u64> {
        drive(time, |wait| {
            let until_due = self.send_due()?;
            let wait = match self.sleep {
                true => wait.min(until_due),
                false => Duration::ZERO,
            };
            self.receive(wait)
        })
    }

    /// Returns how long it is to the next request.
    fn send_due(&mut self) -> Result<Duration> {
        for _ in 0..AT_ONCE {
            let now = Instant::now();
            let due = self.schedule.due;
            if due > now {
                return Ok(due - now);
            }
            self.late.record(now - due);
            self.waiting[self.next].push_back(due);
            self.client.conns[self.next].send(&self.client.traffic, 1)?;
            self.next = (self.next + 1) % self.waiting.len();
            self.schedule.advance();
        }
        Ok(Duration::ZERO)
    }

    fn receive(&mut self, wait: Duration) -> Result<u64> {
        let mut answers = 0;
        let (waiting, latency, from) = (&mut self.waiting, &mut self.latency, self.from);
        self.client.turn(wait, |index, _, _, replies| {
            let now = Instant::now();
            for _ in 0..replies {
                let due = waiting[index].pop_front();
                let due = due.ok_or_else(|| Error::other("more came back than was sent"))?;
                if due >= from {
                    latency.record(now - due);
                }
            }
            answers += replies as u64;
            Ok(())
        })?;
        Ok(answers)
    }

    /// The slowest answers come last: they count as well.
    fn drain(&mut self) -> Result<()> {
        let mut progress = Progress::new();
        loop {
            let missing: usize = self.waiting.iter().map(VecDeque::len).sum();
            if missing == 0 {
                return Ok(());
            }
            let lost = |_| Error::other(format!("{missing} messages never came back"));
            progress.check(missing as u64).map_err(lost)?;
            self.receive(Duration::from_secs(1))?;
        }
    }
}

/// When requests are due.
struct Schedule {
    due: Instant,
    /// In seconds.
    mean: f64,
    random: u64,
}

impl Schedule {
    fn begin(rate: f64) -> Self {
        let mut schedule = Self {
            due: Instant::now(),
            mean: 1.0 / rate,
            random: 0x9e37_79b9_7f4a_7c15,
        };
        schedule.advance();
        schedule
    }

    fn advance(&mut self) {
        // xorshift64: never 0, so the logarithm is finite.
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        let uniform = self.random as f64 / u64::MAX as f64;
        self.due += Duration::from_secs_f64(-uniform.ln() * self.mean);
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use framemill_bench::frame::Opcode;

    use super::*;
    use crate::traffic::Traffic;

    #[test]
    fn requests_come_at_the_rate_asked_for_but_not_evenly() {
        let mut schedule = Schedule::begin(1000.0);
        let start = schedule.due;
        let mut long = 0;
        for _ in 0..100_000 {
            let last = schedule.due;
            schedule.advance();
            long += u32::from(schedule.due - last > Duration::from_millis(1));
        }
        let seconds = (schedule.due - start).as_secs_f64();
        assert!((99.0..101.0).contains(&seconds), "{seconds}");
        // One in e is longer than the mean.
        assert!((36_000..37_600).contains(&long), "{long}");
    }

    /// Sends everything back, the first message only after a while.
    fn slow_to_start(stall: Duration) -> std::net::SocketAddr {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = listener.local_addr().unwrap();
        std::thread::spawn(move || {
            let (stream, _) = listener.accept().unwrap();
            let mut socket = tungstenite::accept(stream).unwrap();
            let mut first = true;
            while let Ok(message) = socket.read() {
                if std::mem::take(&mut first) {
                    std::thread::sleep(stall);
                }
                socket.send(message).unwrap();
            }
        });
        addr
    }

    #[test]
    fn what_happens_before_the_window_does_not_count() {
        let stall = Duration::from_millis(600);
        let addr = slow_to_start(stall).to_string();
        let args = Args::parse_from([
            "load",
            "open-loop",
            "--addr",
            &addr,
            "--connections",
            "1",
            "--rate",
            "100",
            "--warmup",
            "1.2",
            "--seconds",
            "0.5",
        ]);
        let traffic = Traffic::new(Opcode::Binary, args.size as usize, 1);
        let client = Client::open(&args, 1, traffic).unwrap();
        let report = run(client, &args).unwrap();
        let worst = report.p999_us.unwrap();
        assert!(worst < stall.as_micros() as f64 / 2.0, "{worst} \u{b5}s");
    }
}
