//! Mode `idle`: what a connection costs that does nothing.

use std::{
    io::{self, Read, Result, Write},
    thread,
    time::{Duration, Instant},
};

use framemill_bench::{
    process,
    report::{Report, rounded},
};

use crate::{Args, client::Client, window::Progress};

/// Echoes under way at a time, so that what is measured is not the memory of a burst.
const AT_ONCE: usize = 64;

/// For the server to tidy up before it is measured.
const SETTLE: Duration = Duration::from_millis(500);

pub(crate) fn run(
    mut client: Client,
    args: &Args,
    resident_at_start: Option<u64>,
) -> Result<Report> {
    let start = Instant::now();
    if !args.no_echo {
        one_echo_each(&mut client)?;
    }
    thread::sleep(SETTLE);
    let connections = client.conns.len() as u64;
    let resident = args.server_pid.map(process::resident).transpose()?;
    let growth = resident
        .zip(resident_at_start)
        .map(|(end, start)| end as f64 - start as f64);
    let report = Report {
        seconds: rounded(start.elapsed().as_secs_f64()),
        messages: connections,
        resident,
        bytes_per_connection: growth.map(|bytes| rounded(bytes / connections as f64)),
        ..Report::default()
    };
    println!("ready");
    io::stdout().flush()?;
    hold(&mut client)?;
    Ok(report)
}

fn one_echo_each(client: &mut Client) -> Result<()> {
    let (mut asked, mut answered) = (0, 0);
    let mut progress = Progress::new();
    while answered < client.conns.len() {
        while asked < client.conns.len() && asked - answered < AT_ONCE {
            client.conns[asked].send(&client.traffic, 1)?;
            asked += 1;
        }
        client.turn(Duration::from_secs(1), |_, _, _, replies| {
            answered += replies;
            Ok(())
        })?;
        progress.check(answered as u64)?;
    }
    Ok(())
}

/// Until stdin ends. Pings are answered meanwhile, lest the server think its clients dead.
fn hold(client: &mut Client) -> Result<()> {
    let stdin = thread::spawn(|| io::stdin().read_to_end(&mut Vec::new()));
    while !stdin.is_finished() {
        client.turn(Duration::from_millis(100), |_, _, _, _| Ok(()))?;
    }
    Ok(())
}
