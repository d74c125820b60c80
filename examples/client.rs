//! Talk to any WebSocket: type lines, see what comes.
//!
//! Run `cargo run --example client -- ws://127.0.0.1:9001/`, with `--header "Name: value"`,
//! `--subprotocol NAME`, `--origin ORIGIN` or `--reconnect` as you like. A line is a text message (what is not
//! UTF-8 in it becomes U+FFFD); `/ping` sends a ping, `/close 1000 reason` says goodbye, and the end of the input
//! does so, too, as does the end of whoever reads the output. Lines are read as fast as the server reads them. The exit status is 0 after a clean close with
//! 1000, 1 after any other, and 2 if there was no connection.
#![allow(clippy::print_stdout)]

use std::io::{self, BufRead, Write, stdout};
use std::process::ExitCode;
use std::time::Duration;

use crossbeam_channel::{Receiver, after, bounded, never, select};
use framemill::{
    Client, ClientEvent, ClientHandle, CloseCode, CloseReason, Error, Message, Reconnect,
    RetryReason, Sent,
};

/// After the end of the input, answers may still come for so long.
const LAST_ANSWERS: Duration = Duration::from_secs(1);

const USAGE: &str = "\
usage: client URL [--header 'NAME: VALUE']... [--subprotocol NAME]... [--origin ORIGIN] [--reconnect]";

fn parse() -> Result<Client, String> {
    let mut words = std::env::args().skip(1);
    let url = words.next().ok_or("a URL is needed")?;
    let mut client = Client::new(url).map_err(|error| error.to_string())?;
    while let Some(name) = words.next() {
        let mut value = || words.next().ok_or(format!("{name} needs a value"));
        client = match name.as_str() {
            "--header" => {
                let line = value()?;
                let (name, value) = line.split_once(':').ok_or("a header is 'NAME: VALUE'")?;
                client.header(name.trim(), value.trim())
            }
            "--subprotocol" => client.subprotocol(value()?),
            "--origin" => client.origin(value()?),
            "--reconnect" => client.reconnect(Reconnect::new()),
            _ => return Err(format!("{name} is not an option")),
        };
    }
    Ok(client)
}

fn main() -> ExitCode {
    env_logger::init();
    let client = match parse() {
        Ok(client) => client,
        Err(wrong) => {
            eprintln!("{wrong}\n{USAGE}");
            return ExitCode::from(2);
        }
    };
    let (handle, events) = match client.connect() {
        Ok(connected) => connected,
        Err(error) => {
            explain(&error);
            return ExitCode::from(2);
        }
    };
    if let Some(peer) = handle.peer() {
        let subprotocol = peer.subprotocol().unwrap_or("no subprotocol");
        eprintln!("* connected to {}, {subprotocol}", peer.remote_addr());
    }
    match talk(&handle, &events, &lines()) {
        Some(reason) if reason.is_clean() && reason.code() == CloseCode::Normal => {
            ExitCode::SUCCESS
        }
        Some(_) => ExitCode::FAILURE,
        None => ExitCode::from(2),
    }
}

/// Both ways at once, until the last connection is over: how that ended.
fn talk(
    handle: &ClientHandle,
    events: &Receiver<ClientEvent>,
    lines: &Receiver<String>,
) -> Option<CloseReason> {
    let (mut ended, mut congested) = (false, false);
    let mut enough = never();
    let mut last = None;
    loop {
        let input = match ended || congested {
            true => &never(),
            false => lines,
        };
        select! {
            recv(events) -> event => match event {
                Ok(event) => {
                    // Another connection has a queue of its own.
                    congested &= !matches!(event, ClientEvent::Writable | ClientEvent::Open(..));
                    // Nobody reads it any more.
                    if show(event, handle, &mut last).is_err() {
                        handle.close(CloseCode::Normal, "");
                    }
                }
                // The channel ends with the client.
                Err(_) => return last,
            },
            recv(input) -> line => match line {
                Ok(line) => congested = say(handle, &line),
                Err(_) => {
                    ended = true;
                    enough = after(LAST_ANSWERS);
                }
            },
            recv(enough) -> _ => {
                handle.close(CloseCode::Normal, "");
            }
        }
    }
}

fn show(
    event: ClientEvent,
    handle: &ClientHandle,
    last: &mut Option<CloseReason>,
) -> io::Result<()> {
    match event {
        ClientEvent::Message(Message::Text(text)) => writeln!(stdout(), "< {text}")?,
        ClientEvent::Message(message) => {
            let bytes = message.into_data();
            let start: Vec<_> = bytes.iter().take(32).map(|b| format!("{b:02x}")).collect();
            writeln!(stdout(), "< {} bytes: {}", bytes.len(), start.join(" "))?;
        }
        ClientEvent::Open(peer, _) => eprintln!("* connected again, to {}", peer.remote_addr()),
        ClientEvent::Close(reason) => {
            eprintln!("* closed with {}: {reason}", u16::from(reason.code()));
            *last = Some(reason);
        }
        ClientEvent::Reconnecting(retry) => {
            let why = match &retry.reason {
                RetryReason::Failed(error) => format!(": {error}"),
                _ => String::new(),
            };
            eprintln!("* attempt {} in {:.1?}{why}", retry.attempt, retry.delay);
        }
        ClientEvent::Error(error) => explain(&error),
        _ => {}
    }
    if let Some(latency) = handle.peer().and_then(|peer| peer.latency()) {
        log::info!("the last ping took {latency:?}");
    }
    Ok(())
}

/// Whether to wait before more is said.
fn say(handle: &ClientHandle, line: &str) -> bool {
    let (command, rest) = line.split_once(' ').unwrap_or((line, ""));
    match command {
        "/close" => {
            let (code, reason) = rest.split_once(' ').unwrap_or((rest, ""));
            let code = code.parse().unwrap_or(1000).into();
            if !handle.close(code, reason) {
                eprintln!("* this code must not be sent, or it is closing already");
            }
        }
        "/ping" => drop(handle.send(Message::Ping(rest.to_owned().into()))),
        _ => match handle.send(line) {
            Ok(sent) => return sent == Sent::Congested,
            Err(error) => eprintln!("* not sent: {error}"),
        },
    }
    false
}

fn explain(error: &Error) {
    eprintln!("* {error}");
    if let Error::Refused { headers, .. } = error {
        for (name, value) in headers.iter() {
            eprintln!("*   {name}: {}", String::from_utf8_lossy(value.as_bytes()));
        }
    }
}

/// What is typed, read on a thread of its own: reading blocks.
fn lines() -> Receiver<String> {
    let (sender, lines) = bounded(1);
    std::thread::spawn(move || {
        for line in std::io::stdin().lock().split(b'\n').map_while(Result::ok) {
            let line = line.strip_suffix(b"\r").unwrap_or(&line);
            if sender
                .send(String::from_utf8_lossy(line).into_owned())
                .is_err()
            {
                return;
            }
        }
    });
    lines
}
