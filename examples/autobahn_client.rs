//! A client for the Autobahn test suite: `tests/autobahn/run.sh --role client` runs it.
//!
//! The suite's fuzzing server says how many cases it has, plays one with each connection, and writes its
//! reports when asked to. All that the client has to do is to send back what it gets.
#![allow(clippy::print_stdout)]

use std::process::ExitCode;
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, unbounded};
use framemill::{Client, ClientHandler, Clients, CloseReason, Error, Message, Peer};

const USAGE: &str = "\
usage: autobahn_client URL [OPTIONS]
  --workers N            threads for the handlers; 0: on the loop [0]
  --max-message BYTES    the longest message [33554432]
  --seconds N            how long a case may take [60]
  --deflate              offer permessage-deflate, each message for itself
  --context-takeover     the same, and windows are kept
";

/// What the reports call us.
const AGENT: &str = "framemill";

struct Args {
    url: String,
    workers: usize,
    max_message: usize,
    limit: Duration,
    deflate: bool,
    context_takeover: bool,
}

impl Args {
    fn parse() -> Result<Self, String> {
        let mut words = std::env::args().skip(1);
        let mut args = Self {
            url: words.next().ok_or("a URL is needed")?,
            workers: 0,
            max_message: 32 << 20,
            limit: Duration::from_secs(60),
            deflate: false,
            context_takeover: false,
        };
        while let Some(name) = words.next() {
            let mut number = || {
                let value = words.next().and_then(|value| value.parse().ok());
                value.ok_or(format!("{name} needs a number"))
            };
            match name.as_str() {
                "--workers" => args.workers = number()?,
                "--max-message" => args.max_message = number()?,
                "--seconds" => args.limit = Duration::from_secs(number()? as u64),
                "--deflate" => args.deflate = true,
                "--context-takeover" => (args.deflate, args.context_takeover) = (true, true),
                _ => return Err(format!("{name} is not an option")),
            }
        }
        Ok(args)
    }

    fn client(&self, path: &str) -> framemill::Result<Client> {
        let url = format!("{}{path}", self.url.trim_end_matches('/'));
        let client = Client::new(url)?
            .max_message(self.max_message)
            .outbound_limit(2 * self.max_message);
        self.deflate(client)
    }

    /// Compression as asked for.
    #[cfg(feature = "deflate")]
    fn deflate(&self, client: Client) -> framemill::Result<Client> {
        let takeover = self.context_takeover;
        let deflate = framemill::Deflate::new().context_takeover(takeover, takeover);
        Ok(match self.deflate {
            true => client.deflate(deflate),
            false => client,
        })
    }

    #[cfg(not(feature = "deflate"))]
    fn deflate(&self, client: Client) -> framemill::Result<Client> {
        match self.deflate {
            true => Err(Error::Config("built without the feature `deflate`".into())),
            false => Ok(client),
        }
    }
}

/// Sends everything back, and tells the last message and the end.
struct Echo {
    last: Option<Message>,
    ended: Sender<Result<Option<Message>, String>>,
}

impl ClientHandler for Echo {
    fn message(&mut self, peer: &Peer, message: Message) {
        self.last = Some(message.clone());
        let _ = peer.send(message);
    }

    fn close(&mut self, _: &Peer, reason: &CloseReason) {
        log::info!("{reason}");
        let _ = self.ended.send(Ok(self.last.take()));
    }

    fn error(&mut self, error: &Error) {
        let _ = self.ended.send(Err(error.to_string()));
    }
}

/// The end of one connection, which may take until `limit`.
fn end(
    ended: &Receiver<Result<Option<Message>, String>>,
    limit: Duration,
) -> Result<Option<Message>, String> {
    match ended.recv_timeout(limit) {
        Ok(end) => end,
        Err(RecvTimeoutError::Timeout) => Err(format!("no end after {limit:?}")),
        Err(RecvTimeoutError::Disconnected) => Err("the handler has panicked".into()),
    }
}

/// One connection, to its end.
fn visit(args: &Args, clients: &Clients, path: &str) -> Result<Option<Message>, String> {
    let (sender, ended) = unbounded();
    let echo = Echo {
        last: None,
        ended: sender,
    };
    let client = args.client(path).map_err(|error| error.to_string())?;
    let opened = clients.open(client, echo);
    opened.map_err(|error| error.to_string())?;
    end(&ended, args.limit)
}

/// Runs all cases; what went wrong besides is counted.
fn run(args: &Args) -> Result<usize, String> {
    let clients = Clients::start(1, args.workers).map_err(|error| error.to_string())?;
    let count = visit(args, &clients, "/getCaseCount")?;
    let count: usize = count
        .and_then(|count| count.to_text().ok()?.parse().ok())
        .ok_or("the server does not say how many cases there are")?;
    let mut wrong = 0;
    for case in 1..=count {
        let path = format!("/runCase?case={case}&agent={AGENT}");
        if let Err(why) = visit(args, &clients, &path) {
            eprintln!("the {case}. case: {why}");
            wrong += 1;
        }
    }
    visit(args, &clients, &format!("/updateReports?agent={AGENT}"))?;
    println!("{count} cases");
    Ok(wrong)
}

fn main() -> ExitCode {
    env_logger::init();
    let args = match Args::parse() {
        Ok(args) => args,
        Err(wrong) => {
            eprintln!("{wrong}\n\n{USAGE}");
            return ExitCode::from(2);
        }
    };
    match run(&args) {
        Ok(0) => ExitCode::SUCCESS,
        Ok(_) => ExitCode::FAILURE,
        Err(why) => {
            eprintln!("{why}");
            ExitCode::FAILURE
        }
    }
}
