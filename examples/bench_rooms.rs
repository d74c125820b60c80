//! How punctual many rooms are: by default 1,000 rooms of 10 players at 20 ticks a second, each tick
//! a broadcast of 100 bytes to the room.
//!
//! `ulimit -n 20000; cargo run --release --example bench_rooms`. The players are in a process of their
//! own. Prints how late ticks began after they were due, how many were merged, what the server's
//! process used of the CPU, and what arrived.
#![allow(clippy::print_stdout)]

use std::io::{self, BufRead, BufReader, Read};
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use framemill::{
    Bytes, Client, Clients, Members, Message, Peer, Refused, Room, RoomHandle, Rooms, Server, Tick,
};

const USAGE: &str = "\
usage: bench_rooms [OPTIONS]

  --rooms N      [1000]
  --players N    in each room [10]
  --rate HERTZ   ticks of each room [20]
  --size BYTES   of what each tick broadcasts [100]
  --seconds S    how long to measure, once all are connected [10]
  --loops N      of the server [1]
  --workers N    of the server [1]
";

#[derive(Clone)]
struct Args {
    rooms: usize,
    players: usize,
    rate: f64,
    size: usize,
    seconds: f64,
    loops: usize,
    workers: usize,
    /// Where to connect to: this is the process of the players.
    play: Option<String>,
}

impl Args {
    fn parse() -> Result<Self, String> {
        let mut args = Self {
            rooms: 1000,
            players: 10,
            rate: 20.0,
            size: 100,
            seconds: 10.0,
            loops: 1,
            workers: 1,
            play: None,
        };
        let mut words = std::env::args().skip(1);
        while let Some(name) = words.next() {
            let mut value = || words.next().ok_or(format!("{name} needs a value"));
            match name.as_str() {
                "--rooms" => args.rooms = number(&name, &value()?, 1)?,
                "--players" => args.players = number(&name, &value()?, 1)?,
                "--rate" => args.rate = positive(&name, &value()?)?,
                "--size" => args.size = number(&name, &value()?, 0)?,
                "--seconds" => args.seconds = positive(&name, &value()?)?,
                "--loops" => args.loops = number(&name, &value()?, 1)?,
                "--workers" => args.workers = number(&name, &value()?, 0)?,
                "--play" => args.play = Some(value()?),
                _ => return Err(format!("{name} is not an option")),
            }
        }
        Ok(args)
    }
}

fn number(name: &str, value: &str, least: usize) -> Result<usize, String> {
    let number = value.parse().ok().filter(|number| *number >= least);
    number.ok_or(format!("{name}: {value} is not a number that fits"))
}

fn positive(name: &str, value: &str) -> Result<f64, String> {
    let fits = |number: &f64| *number > 0.0 && *number <= 1e6;
    let number = value.parse().ok().filter(fits);
    number.ok_or(format!("{name}: {value} is not a number that fits"))
}

fn main() -> ExitCode {
    let args = match Args::parse() {
        Ok(args) => args,
        Err(error) => {
            eprintln!("{error}\n\n{USAGE}");
            return ExitCode::from(2);
        }
    };
    let outcome = match &args.play {
        Some(addr) => play(&args, addr),
        None => serve(&args),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

type Outcome = Result<(), Box<dyn std::error::Error>>;

// ---- the server ----

/// What the ticks of all rooms came to.
#[derive(Default)]
struct Ticks {
    /// How late each began, in nanoseconds.
    late: Vec<u64>,
    merged: u64,
}

struct Arena {
    state: Bytes,
    measuring: Arc<AtomicBool>,
    ticks: Ticks,
    all: Arc<Mutex<Ticks>>,
}

impl Room for Arena {
    type Join = ();

    fn join(&mut self, _: &mut Members, _: &Peer, (): ()) -> Result<(), Refused> {
        Ok(())
    }

    fn message(&mut self, _: &mut Members, _: &Peer, _: Message) {}

    fn tick(&mut self, room: &mut Members, tick: Tick) {
        if self.measuring.load(Ordering::Relaxed) {
            self.ticks.late.push(tick.late.as_nanos() as u64);
            self.ticks.merged += u64::from(tick.merged);
        }
        room.broadcast(Message::Binary(self.state.clone()));
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        let mut all = self.all.lock().unwrap();
        all.late.append(&mut self.ticks.late);
        all.merged += self.ticks.merged;
    }
}

fn serve(args: &Args) -> Outcome {
    let measuring = Arc::new(AtomicBool::new(false));
    let all = Arc::new(Mutex::new(Ticks::default()));
    let arena = {
        let (measuring, all) = (measuring.clone(), all.clone());
        let state = Bytes::from(vec![7; args.size]);
        move |_: &str| Arena {
            state: state.clone(),
            measuring: measuring.clone(),
            ticks: Ticks::default(),
            all: all.clone(),
        }
    };
    let rooms = Rooms::new(arena).tick_rate(args.rate);
    let handler = rooms.clone().handler(|r| Ok((r.path().to_owned(), ())));
    let server = Server::bind("127.0.0.1:0")?
        .loops(args.loops)
        .workers(args.workers)
        .start(handler)?;
    let addr = server.local_addr().ok_or("no address")?.to_string();
    let (mut players, mut told) = start_players(args, &addr)?;
    let mut line = String::new();
    told.read_line(&mut line)?;
    if line.trim() != "all are there" {
        return Err("not all players could connect".into());
    }
    let is_full = |room: Option<RoomHandle<Arena>>| room.is_some_and(|r| r.len() == args.players);
    let names: Vec<String> = (0..args.rooms).map(|n| format!("/{n}")).collect();
    while !names.iter().all(|name| is_full(rooms.find(name))) {
        std::thread::sleep(Duration::from_millis(10));
    }
    println!(
        "{} rooms of {} at {} Hz",
        rooms.len(),
        args.players,
        args.rate
    );

    let before = cpu_time()?;
    let start = Instant::now();
    measuring.store(true, Ordering::Relaxed);
    std::thread::sleep(Duration::from_secs_f64(args.seconds));
    measuring.store(false, Ordering::Relaxed);
    let seconds = start.elapsed().as_secs_f64();
    let cpu = (cpu_time()? - before).as_secs_f64();

    // The end of its input is the end of the game.
    drop(players.stdin.take());
    line.clear();
    told.read_line(&mut line)?;
    players.wait()?;
    server.shutdown(Duration::from_secs(5));
    let mut ticks = all.lock().unwrap();
    let count = ticks.late.len();
    ticks.late.sort_unstable();
    let at = |share: f64| {
        let n = ((count as f64 * share) as usize).min(count.saturating_sub(1));
        ticks.late.get(n).map_or(0.0, |late| *late as f64 / 1e6)
    };
    println!(
        "ticks          {count} in {seconds:.1} s, {:.0} a second",
        count as f64 / seconds
    );
    println!(
        "late, ms       p50 {:.3}  p90 {:.3}  p99 {:.3}  p99.9 {:.3}  max {:.3}",
        at(0.5),
        at(0.9),
        at(0.99),
        at(0.999),
        at(1.0)
    );
    println!("merged         {}", ticks.merged);
    println!("server's CPU   {:.0} % of one core", cpu / seconds * 100.0);
    println!("{}", line.trim());
    Ok(())
}

fn start_players(args: &Args, addr: &str) -> io::Result<(Child, impl BufRead + use<>)> {
    let mut players = Command::new(std::env::current_exe()?)
        .args(["--play", addr])
        .args(["--rooms", &args.rooms.to_string()])
        .args(["--players", &args.players.to_string()])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    let told = players.stdout.take().ok_or(io::ErrorKind::BrokenPipe)?;
    Ok((players, BufReader::new(told)))
}

/// CPU time of this process, from Linux's `/proc`, in steps of 10 ms.
fn cpu_time() -> io::Result<Duration> {
    let stat = std::fs::read_to_string("/proc/self/stat")?;
    let fields = stat.rsplit(')').next().unwrap_or_default();
    let ticks = fields.split_whitespace().skip(11).take(2);
    let ticks: u64 = ticks.filter_map(|field| field.parse::<u64>().ok()).sum();
    Ok(Duration::from_millis(ticks * 10))
}

// ---- the players ----

fn play(args: &Args, addr: &str) -> Outcome {
    let clients = Clients::start(1, 0)?;
    let received = Arc::new(AtomicUsize::new(0));
    let there = args.rooms * args.players;
    // Some at a time, so that nobody waits in the queue of the listener for long.
    for n in 0..there {
        let url = format!("ws://{addr}/{}", n % args.rooms);
        let received = received.clone();
        let count = move |_: &Peer, _: Message| received.fetch_add(1, Ordering::Relaxed);
        clients.open(Client::new(&url)?, count)?;
        while n + 1 == there && clients.connections() < there {
            std::thread::sleep(Duration::from_millis(10));
        }
        if n % 256 == 255 {
            std::thread::sleep(Duration::from_millis(50));
        }
    }
    println!("all are there");
    let (before, start) = (received.load(Ordering::Relaxed), Instant::now());
    io::stdin().read_to_end(&mut Vec::new())?;
    let count = received.load(Ordering::Relaxed) - before;
    let seconds = start.elapsed().as_secs_f64();
    println!(
        "arrived        {:.0} messages a second",
        count as f64 / seconds
    );
    clients.shutdown(Duration::from_secs(2));
    Ok(())
}
