//! What strangers can do to the examples, which is little, and what their options come to.
#![cfg(unix)]

mod support;

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::thread;
use std::time::Instant;

use serde_json::{Value, json};
use socket2::Socket;
use support::example::{Example, Program, binary, lines};
use support::{Raw, WAIT, echo, until};
use tungstenite::{Message, WebSocket};

type Client = WebSocket<TcpStream>;

fn connect(example: &Example) -> Client {
    let stream = TcpStream::connect(&*example.addr).unwrap();
    stream.set_read_timeout(Some(WAIT)).unwrap();
    stream.set_write_timeout(Some(WAIT)).unwrap();
    let url = format!("ws://{}/", example.addr);
    tungstenite::client::client(url, stream).unwrap().0
}

fn tell(client: &mut Client, value: Value) {
    client.send(Message::text(value.to_string())).unwrap();
}

fn hear(client: &mut Client) -> Value {
    let message = client.read().unwrap();
    serde_json::from_str(message.to_text().unwrap()).unwrap()
}

fn get(example: &Example, path: &str) -> String {
    let (status, body) = support::get(&*example.addr, path);
    assert_eq!(status, 200);
    body
}

// ---- cluster ----

/// Neither with topics that nobody has thought of, nor with more of one than is kept, nor any faster from many
/// connections than from one.
#[cfg(target_os = "linux")]
#[test]
fn nobody_fills_the_memory_of_a_node() {
    const CONNECTIONS: usize = 12;
    /// Of each connection, half of them to new topics. More than its burst, so that it has to wait as well.
    const MESSAGES: usize = 4200;
    let cluster = Example::start("cluster", &["--history", "1000"]);
    let text = "x".repeat(900);
    let before = resident(cluster.id());
    for n in 0..CONNECTIONS {
        let mut client = connect(&cluster);
        for m in 0..MESSAGES / 2 {
            for topic in [format!("{n}-{m}"), "page".to_owned()] {
                let publish = Message::text(format!("publish kept/{topic}\n{text}"));
                client.write(publish).unwrap();
            }
        }
        client.send(Message::text("ping")).unwrap();
        // All of it was dealt with then.
        let mut unknown = 0;
        while client.read().unwrap().to_text().unwrap() != "pong" {
            unknown += 1;
        }
        assert_eq!(unknown, MESSAGES / 2, "topics that there are not");
    }
    let grown = resident(cluster.id()).saturating_sub(before);
    // Either half is twice as much.
    let most = CONNECTIONS * MESSAGES / 2 * text.len() / 2;
    assert!(grown < most, "{grown} bytes more");
}

/// Memory of a process, in bytes.
#[cfg(target_os = "linux")]
fn resident(id: u32) -> usize {
    let status = std::fs::read_to_string(format!("/proc/{id}/status")).unwrap();
    let mut lines = status.lines();
    let line = lines.find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    let kib = line.split_whitespace().next().unwrap();
    kib.parse::<usize>().unwrap() << 10
}

#[test]
fn a_node_has_few_topics() {
    let cluster = Example::start("cluster", &[]);
    let mut client = connect(&cluster);
    let mut said = |what: &str| {
        client.send(Message::text(what)).unwrap();
        client.read().unwrap().to_text().unwrap().to_owned()
    };
    for wrong in [
        "subscribe other",
        "subscribe kept/",
        "follow start kept/kept/page",
        "follow now other",
        "publish other\ntext",
    ] {
        assert_eq!(said(wrong), "no such topic", "{wrong}");
    }
    assert_eq!(said("ping"), "pong");
    assert!(said("follow start kept/page").starts_with("live "));
    let heard = said("publish kept/page\ntext");
    assert!(heard.starts_with("msg ") && heard.ends_with(" kept/page\ntext"));
    // What anybody says elsewhere can't be taken for that.
    assert_eq!(said("subscribe page\npublish"), "no such topic");
    client.send(Message::text("subscribe page")).unwrap();
    client
        .send(Message::text("publish page\nmsg 1-1 kept/page\nforged"))
        .unwrap();
    let heard = client.read().unwrap();
    assert_eq!(
        heard.to_text().unwrap(),
        "said page\nmsg 1-1 kept/page\nforged"
    );
}

#[test]
fn another_origin_is_let_in_if_named() {
    let ask = |cluster: &Example, origin: &str| {
        let mut raw = Raw::over(TcpStream::connect(&*cluster.addr).unwrap());
        raw.stream.set_read_timeout(Some(WAIT)).unwrap();
        let request = support::request(&cluster.addr);
        let (line, rest) = request.split_once("\r\n").unwrap();
        raw.write(format!("{line}\r\nOrigin: {origin}\r\n{rest}").as_bytes());
        raw.head().starts_with("HTTP/1.1 101")
    };
    let plain = Example::start("cluster", &[]);
    assert!(ask(&plain, &plain.url("")));
    assert!(!ask(&plain, "https://example.org"));
    let named = Example::start("cluster", &["--origin", "https://example.org"]);
    assert!(ask(&named, "https://example.org"));
    assert!(!ask(&named, "https://example.com"));
}

// ---- dashboard ----

#[test]
fn nobody_puts_the_workers_to_sleep() {
    let dashboard = Example::start("dashboard", &["--clients", "0"]);
    // As many as there are workers.
    let mut clients = [(); 4].map(|()| connect(&dashboard));
    let long = Message::binary(vec![0xFF; 4]);
    for client in &mut clients {
        client.send(long.clone()).unwrap();
    }
    for client in &mut clients {
        assert_eq!(client.read().unwrap(), long);
    }
    get(&dashboard, "/health");
}

/// Other addresses of the machine itself are there on Linux only.
#[cfg(target_os = "linux")]
#[test]
fn the_load_finds_the_dashboard_on_any_address() {
    let dashboard = Example::start_on("dashboard", "127.0.0.2:0", &["--clients", "10"]);
    until("its clients have come", || {
        let metrics = get(&dashboard, "/metrics");
        let mut lines = metrics.lines();
        let opened = lines.find_map(|line| line.strip_prefix("framemill_opened_total "));
        opened.unwrap() != "0"
    });
}

// ---- chat ----

/// What becomes of six lines: how many are said.
fn say_six(guest: &mut Client) -> usize {
    for nth in 0..6 {
        tell(guest, json!({"type": "say", "text": format!("{nth}")}));
    }
    let mut answers = 0;
    let mut said = 0;
    while answers < 6 {
        let kind = hear(guest)["type"].take();
        said += usize::from(kind == "said");
        answers += usize::from(kind == "said" || kind == "notice");
    }
    said
}

/// Whoever comes anew, in the place of an earlier connection or after it, may say no more for that.
#[test]
fn a_guest_who_comes_again_may_say_no_more() {
    let chat = Example::start("chat", &[]);
    let enter = |name: &str| {
        let mut guest = connect(&chat);
        let join = json!({"type": "join", "room": "mill", "name": name, "key": name});
        tell(&mut guest, join);
        assert_eq!(hear(&mut guest)["type"], "joined");
        guest
    };
    // Somebody stays, so that the room does.
    let mut ada = enter("Ada");
    let begun = Instant::now();
    let mut ben = enter("Ben");
    let mut said = say_six(&mut ben);
    let mut again = enter("Ben");
    said += say_six(&mut again);
    again.close(None).unwrap();
    while hear(&mut ada)["type"] != "left" {}
    said += say_six(&mut enter("Ben"));
    let since = begun.elapsed().as_secs_f64() / 1.2;
    assert!(said <= 6 + since as usize, "{said} were said");
}

#[test]
fn an_address_has_so_many_connections() {
    let chat = Example::start("chat", &[]);
    let statuses = (0..60).map(|_| {
        let mut raw = Raw::over(TcpStream::connect(&*chat.addr).unwrap());
        raw.stream.set_read_timeout(Some(WAIT)).unwrap();
        raw.write(support::request(&chat.addr).as_bytes());
        let head = raw.head();
        (raw, head)
    });
    let connections: Vec<_> = statuses.collect();
    let refused = connections
        .iter()
        .position(|(_, head)| head.starts_with("HTTP/1.1 429"));
    assert_eq!(refused, Some(50));
}

// ---- ticker ----

#[test]
fn a_low_rate_is_kept() {
    let begun = Instant::now();
    let ticker = Example::start("ticker", &["--rate", "10"]);
    let mut published = 0;
    until("some were published", || {
        let figures: Value = serde_json::from_str(&get(&ticker, "/figures")).unwrap();
        published = figures["published"].as_u64().unwrap();
        published >= 15
    });
    let due = begun.elapsed().as_secs_f64() * 10.0;
    assert!(published as f64 <= due, "{published} of {due}");
}

// ---- output that nobody reads ----

#[test]
fn the_ticker_goes_on_without_its_terminal() {
    let args = ["--addr", "127.0.0.1:0", "--slow-client"];
    let ticker = Example::start_unheard("ticker", &args);
    let mut client = connect(&ticker);
    // With each it also prints a line.
    let published = [(); 3].map(|()| hear(&mut client)["published"].as_u64().unwrap());
    assert!(published.is_sorted_by(|a, b| a < b), "{published:?}");
    drop(client);
    assert!(ticker.stop().success());
}

#[test]
fn events_go_on_without_a_terminal() {
    let events = Example::start_unheard("events", &["127.0.0.1:0"]);
    drop(connect(&events));
    let mut client = connect(&events);
    let time = |client: &mut Client| client.read().unwrap().to_text().unwrap().to_owned();
    // The first one has gone, which is printed.
    assert!((0..20).any(|_| time(&mut client).ends_with(" 1 here")));
    time(&mut client);
    client.close(None).unwrap();
    while client.read().is_ok() {}
    assert!(events.stop().success());
}

#[test]
fn the_client_ends_quietly_when_nobody_reads() {
    let echo = echo();
    let url = format!("ws://{}/", echo.addr);
    let mut command = Command::new(binary("client"));
    command.arg(&url).stdin(Stdio::piped());
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut client = command.spawn().unwrap();
    drop(client.stdout.take());
    let mut input = client.stdin.take().unwrap();
    input.write_all(b"one\ntwo\n").unwrap();
    let mut status = None;
    until("it has ended", || {
        status = client.try_wait().unwrap();
        status.is_some()
    });
    let mut said = String::new();
    client.stderr.unwrap().read_to_string(&mut said).unwrap();
    assert!(!said.contains("panicked"), "{said}");
    assert!(status.unwrap().success(), "{said}");
}

// ---- load and client ----

#[test]
fn load_ends_where_nobody_stays() {
    // It closes whoever begins with something else than a name.
    let chat = Example::start("chat", &[]);
    let url = format!("ws://{}/", chat.addr);
    let args = [&*url, "--connections", "10", "--seconds", "1"];
    let load = Program::start("load", &args, Stdio::null());
    assert_eq!(load.ends().code(), Some(1));
}

#[test]
fn load_fails_if_all_are_lost() {
    let echo = echo();
    let url = format!("ws://{}/", echo.addr);
    let args = [&*url, "--connections", "3", "--seconds", "5"];
    let mut command = Command::new(binary("load"));
    command.args(args).stdout(Stdio::null());
    let mut load = command.stderr(Stdio::piped()).spawn().unwrap();
    let told = lines(load.stderr.take().unwrap());
    let connected = told.recv_timeout(WAIT).unwrap();
    assert!(connected.contains("3 connected"), "{connected}");
    assert!(echo.handle.shutdown(WAIT));
    let mut status = None;
    until("it has ended", || {
        status = load.try_wait().unwrap();
        status.is_some()
    });
    assert_eq!(status.unwrap().code(), Some(1));
}

#[test]
fn load_takes_numbers_that_mean_something() {
    let echo = echo();
    let url = format!("ws://{}/", echo.addr);
    for (args, code) in [
        (["--seconds", "nan"], 2),
        (["--rate", "inf"], 2),
        (["--rate=1e-20", "--seconds=0.1"], 0),
        (["--size", "18446744073709551615"], 2),
        (["--size", "1000000000"], 2),
        (["--inflight", "18446744073709551615"], 2),
    ] {
        let args = [&*url, args[0], args[1]];
        let load = Program::start("load", &args, Stdio::null());
        assert_eq!(load.ends().code(), Some(code), "{args:?}");
    }
}

/// Lines come faster than the server reads them; and one of them is no text.
#[test]
fn the_client_sends_as_fast_as_the_server_reads() {
    const LINES: usize = 8000;
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let listener = Socket::from(listener);
    listener.set_recv_buffer_size(4096).unwrap();
    let listener: TcpListener = listener.into();
    let url = format!("ws://{}/", listener.local_addr().unwrap());
    let mut client = Program::start("client", &[&url], Stdio::piped());
    let mut input = client.child.stdin.take().unwrap();
    let writer = thread::spawn(move || {
        let line = [&[b'x'; 1023][..], b"\n"].concat();
        for nth in 0..LINES {
            let line: &[u8] = if nth == LINES / 2 { b"\xFF\n" } else { &line };
            input.write_all(line)?;
        }
        Ok::<_, std::io::Error>(())
    });
    listener.set_nonblocking(true).unwrap();
    let mut accepted = None;
    until("it connects", || {
        accepted = listener.accept().ok();
        accepted.is_some()
    });
    let (stream, _) = accepted.unwrap();
    stream.set_read_timeout(Some(WAIT)).unwrap();
    let mut server = tungstenite::accept(stream).unwrap();
    let mut lines = 0;
    let code = loop {
        match server.read().unwrap() {
            Message::Close(frame) => break frame.map(|frame| u16::from(frame.code)),
            message => lines += usize::from(message.is_text()),
        }
    };
    assert_eq!((lines, code), (LINES, Some(1000)));
    while server.read().is_ok() {}
    drop(server);
    writer.join().unwrap().unwrap();
    assert!(client.ends().success());
}
