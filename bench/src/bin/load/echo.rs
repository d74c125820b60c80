//! Mode `echo`: as many new requests as replies came, in one write per read.

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

pub(crate) fn run(mut client: Client, args: &Args) -> Result<Report> {
    for conn in &mut client.conns {
        conn.sent_at = Instant::now();
        conn.send(&client.traffic, client.traffic.inflight)?;
    }
    // With more in flight there is no telling which of them a reply belongs to.
    let mut latency = (args.inflight == 1).then(Latency::new);
    // Times are taken during the warm-up too: what it leaves under way is received in the window.
    exchange(&mut client, args.warmup, latency.as_mut())?;
    latency = latency.map(|_| Latency::new());

    let window = Window::open(args.server_pid)?;
    let echoes = exchange(&mut client, args.seconds, latency.as_mut())?;
    let mut report = window.close(echoes, args.size)?;
    client.drain(0, (client.conns.len() * client.traffic.inflight) as u64)?;
    report.compressed = client.traffic.compressed_len();
    if let Some(latency) = latency {
        latency.put_into(&mut report);
    }
    Ok(report)
}

/// Returns the number of echoes received in `time`.
fn exchange(client: &mut Client, time: Duration, mut latency: Option<&mut Latency>) -> Result<u64> {
    drive(time, |wait| {
        let mut echoes = 0;
        client.turn(wait, |_, conn, traffic, replies| {
            echoes += replies as u64;
            if let Some(latency) = &mut latency {
                // One look at the clock ends a round trip and begins the next.
                let now = Instant::now();
                latency.record(now - conn.sent_at);
                conn.sent_at = now;
            }
            conn.send(traffic, replies)
        })?;
        Ok(echoes)
    })
}
