//! The examples as processes, and what can be said of their rules without any.

mod support;

// The rules of the chat, and the prices.
#[path = "../examples/chat/limits.rs"]
#[allow(dead_code, unreachable_pub)]
mod limits;
#[path = "../examples/ticker/market.rs"]
#[allow(dead_code, unreachable_pub)]
mod market;
#[path = "../examples/ticker/slow.rs"]
#[allow(dead_code, unreachable_pub)]
mod slow;

// The dashboard, around handlers of a test.
#[path = "../examples/support/dashboard/mod.rs"]
#[allow(dead_code, unreachable_pub)]
mod dashboard;

use std::collections::{HashMap, HashSet};
use std::net::TcpStream;
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, Instant};

use dashboard::Dashboard;
use framemill::{Backplane, BackplaneState, Node, Peer, Post};
use limits::Allowance;
use market::{Market, SECTORS};
use serde_json::{Value, json};
use socket2::{Domain, Socket, Type};
use support::example::Example;
use support::{Raw, WAIT, serve, until};
use tungstenite::{Message, WebSocket};

type Client = WebSocket<TcpStream>;

// ---- rules ----

#[test]
fn names_are_one_line_that_can_be_seen() {
    for (given, name) in [
        ("Ada", Some("Ada")),
        ("  Ada \t of\n the mill ", Some("Ada of the mill")),
        ("<b>Ada</b>", Some("<b>Ada</b>")),
        ("Адa 🦀", Some("Адa 🦀")),
        ("", None),
        (" \u{A0}\u{3000} ", None),
        ("\u{200B}", None),
        ("Ada\u{202E}", None),
        ("A\u{0}da", None),
        ("\u{FEFF}Ada", None),
        // Blank, or nothing at all.
        ("\u{3164}", None),
        ("\u{2800}Ada", None),
        ("A\u{34F}da", None),
        ("Ada\u{FFA0}", None),
        // Only another way to draw the same.
        ("Ada\u{FE0F}", Some("Ada")),
        ("\u{2764}\u{FE0F}", Some("\u{2764}")),
        ("\u{E0100}", None),
        ("Ada\u{200D}", Some("Ada")),
        ("👩\u{200D}💻", Some("👩💻")),
        ("Ada\u{E0061}", Some("Ada")),
        // What looks like a letter that there is in one piece.
        ("e\u{301}", None),
        ("\u{E9}", Some("\u{E9}")),
        ("\u{304B}\u{3099}", None),
        ("\u{627}\u{654}", None),
        ("\u{1112}\u{1161}\u{11AB}", None),
        ("한", Some("한")),
        // Signs that belong to letters: on one, and not too many.
        ("\u{E49}", None),
        ("Ada \u{5B0}", None),
        ("\u{5B0}\u{5B0}", None),
        ("ครั้ง", Some("ครั้ง")),
        (
            "\u{939}\u{93F}\u{928}\u{94D}\u{926}\u{940}",
            Some("\u{939}\u{93F}\u{928}\u{94D}\u{926}\u{940}"),
        ),
        ("בְּרֵאשִׁית", Some("בְּרֵאשִׁית")),
        ("\u{E01}\u{E49}\u{E49}\u{E49}", None),
        ("z\u{20D0}\u{20D0}\u{20D0}", None),
    ] {
        assert_eq!(limits::line(given, 20).as_deref(), name, "{given:?}");
    }
    assert!(limits::line(&"é".repeat(20), 20).is_some());
    assert!(limits::line(&"é".repeat(21), 20).is_none());
}

#[test]
fn texts_keep_their_lines() {
    assert_eq!(
        limits::text(" a\r\n b\u{7}c \n").as_deref(),
        Some("a\n b c")
    );
    assert_eq!(limits::text(" \n\t"), None);
    let long = "\u{1F980}".repeat(limits::TEXT);
    assert_eq!(limits::text(&long).as_ref(), Some(&long));
    assert_eq!(limits::text(&(long.clone() + "x")), None);
    // The longest one fits a message, however it is written.
    let escaped = r"\ud83e\udd80".len() * limits::TEXT;
    assert!(escaped + 100 < limits::MESSAGE);
}

#[test]
fn an_allowance_comes_back_with_time() {
    let (start, second) = (Instant::now(), Duration::from_secs(1));
    let mut allowance = Allowance::new(3, second, start);
    let mut given = |after: f64| allowance.take(start + second.mul_f64(after));
    // All at once after a long silence, and no more.
    assert_eq!([100.0; 4].map(&mut given), [true, true, true, false]);
    assert!(!given(100.9));
    assert!(given(101.0));
    assert!(!given(101.9));
    // Two seconds are two, whatever came between.
    assert_eq!([103.1; 3].map(&mut given), [true, true, false]);
    assert_eq!([200.0; 4].map(&mut given), [true, true, true, false]);
}

#[test]
fn a_snapshot_tells_everything_of_its_sector() {
    let mut market = Market::new(400, 7);
    let symbols: HashSet<_> = market.stocks.iter().map(|s| s.symbol.clone()).collect();
    assert_eq!(symbols.len(), 400);
    let mut prices = Vec::new();
    for second in 0..50 {
        (0..500).for_each(|_| _ = market.walk(second));
        market.remember();
        prices.push(market.stocks.iter().map(|s| s.cents).collect::<Vec<_>>());
    }
    let last = market.walk(51);
    for (sector, name) in SECTORS.iter().enumerate() {
        let snapshot: Value = serde_json::from_str(&market.snapshot(sector)).unwrap();
        assert_eq!(snapshot["sector"], *name);
        let stocks = snapshot["stocks"].as_array().unwrap();
        assert_eq!(stocks.len(), 400 / SECTORS.len());
        for stock in stocks {
            let key = stock[0].as_u64().unwrap() as usize;
            let cents = market.stocks[key].cents;
            assert_eq!(
                (stock[2].as_u64(), stock[4].as_u64()),
                (Some(cents.into()), Some(market.stocks[key].open.into()))
            );
            // The history, from now back.
            let mut price = i64::from(cents);
            let steps = stock[5].as_array().unwrap();
            assert_eq!(steps.len(), 32);
            for (back, step) in steps.iter().enumerate() {
                price += step.as_i64().unwrap();
                assert_eq!(price, i64::from(prices[49 - back][key]), "{key}");
            }
        }
    }
    let stock = &market.stocks[last];
    assert_eq!(
        stock.quote(last),
        format!("[{last},{},{},51]", stock.cents, stock.updates)
    );
}

/// Updates may stand before the snapshot that they belong behind, and the other way round.
#[test]
fn skipped_is_what_never_came() {
    let mut seen = slow::Seen::default();
    let mut report = slow::Report::default();
    let snapshot = json!({"sector": "foods", "stocks": [[1, "TEST", 100, 8, 100, []]]});
    for message in [
        json!([1, 100, 9, 40]),
        snapshot,
        json!([1, 100, 10, 0]),
        json!([1, 100, 7, 50]),
        json!([1, 100, 12, 50]),
    ] {
        seen.read(&message, Duration::from_millis(50), &mut report);
    }
    assert_eq!((report.read, report.skipped), (4, 1));
    assert_eq!(report.oldest, Duration::from_millis(50));
}

// ---- chat ----

fn connect(example: &Example) -> Client {
    open(TcpStream::connect(&*example.addr).unwrap(), example)
}

fn open(stream: TcpStream, example: &Example) -> Client {
    stream.set_read_timeout(Some(WAIT)).unwrap();
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

/// The code that the connection is closed with, after whatever else.
fn closed(client: &mut Client) -> u16 {
    loop {
        if let Message::Close(frame) = client.read().unwrap() {
            return frame.unwrap().code.into();
        }
    }
}

fn join(client: &mut Client, room: &str, name: &str, key: &str) -> Value {
    tell(
        client,
        json!({"type": "join", "room": room, "name": name, "key": key}),
    );
    hear(client)
}

#[test]
fn the_chat_keeps_its_rules() {
    let chat = Example::start("chat", &[]);
    let [mut ada, mut ben] = [(); 2].map(|()| connect(&chat));
    let joined = join(&mut ada, " the  mill ", "Ada", "a");
    assert_eq!(
        (&joined["type"], &joined["room"]),
        (&json!("joined"), &json!("the mill"))
    );
    let joined = join(&mut ben, "the mill", "Ben", "b");
    assert_eq!(joined["here"], json!(["Ada", "Ben"]));
    assert_eq!(hear(&mut ada), json!({"type": "came", "name": "Ben"}));

    // Wrong names and rooms; a name that is taken; no name at all.
    for (room, name) in [
        ("the mill", "BEN"),
        ("the mill", " "),
        ("the mill", &*"x".repeat(25)),
        ("", "Cleo"),
        (&*"x".repeat(33), "Cleo"),
    ] {
        let mut other = connect(&chat);
        assert_eq!(
            join(&mut other, room, name, "c")["type"],
            "refused",
            "{room} {name}"
        );
        assert_eq!(closed(&mut other), 4000);
    }
    for wrong in [
        json!({"type": "say", "text": "hi"}),
        json!([]),
        json!({"type": "join", "room": "x"}),
    ] {
        let mut other = connect(&chat);
        tell(&mut other, wrong);
        assert_eq!(closed(&mut other), 1008);
    }

    // Too long, or not known: said to one, heard by no other.
    for wrong in [
        json!({"type": "say", "text": "x".repeat(1001)}),
        json!({"type": "say", "text": " "}),
        json!({"type": "?"}),
    ] {
        tell(&mut ben, wrong);
        assert_eq!(hear(&mut ben)["type"], "notice");
    }
    // Six at once, and those that were too many come back.
    for nth in 0..8 {
        tell(&mut ben, json!({"type": "say", "text": format!("{nth}")}));
    }
    let heard: Vec<_> = (0..8).map(|_| hear(&mut ben)).collect();
    let said = |heard: &[Value]| heard.iter().filter(|m| m["type"] == "said").count();
    assert!((6..8).contains(&said(&heard)), "{heard:?}");
    assert!(
        heard
            .iter()
            .any(|m| m["type"] == "notice" && m["unsent"] == "7"),
        "{heard:?}"
    );
    for nth in 0..6 {
        let message = hear(&mut ada);
        assert_eq!(
            (&message["id"], &message["text"]),
            (&json!(nth + 1), &json!(format!("{nth}")))
        );
    }

    // Ben comes back on another connection before the first is known to be lost.
    let mut again = connect(&chat);
    let joined = join(&mut again, "the mill", "Ben", "b");
    assert_eq!(joined["here"], json!(["Ada", "Ben"]));
    assert_eq!(joined["history"].as_array().unwrap().len(), said(&heard));
    assert_eq!(closed(&mut ben), 4001);
    tell(&mut ada, json!({"type": "say", "text": "back?", "n": 7}));
    loop {
        let message = hear(&mut ada);
        assert_eq!(message["type"], "said", "nobody came or left");
        if message["text"] == "back?" {
            assert_eq!(message["n"], 7);
            break;
        }
    }
    tell(&mut again, json!({"type": "ping"}));
    assert_eq!(hear(&mut again)["text"], "back?");
    assert_eq!(hear(&mut again), json!({"type": "pong"}));
    drop(again);
    assert_eq!(hear(&mut ada), json!({"type": "left", "name": "Ben"}));

    // Somebody who floods without listening is put out.
    let mut flood = connect(&chat);
    join(&mut flood, "another", "Cleo", "c");
    (0..200).for_each(|_| _ = flood.send(Message::text(r#"{"type":"say","text":"x"}"#)));
    assert_eq!(closed(&mut flood), 1008);

    // A room that nobody is in is forgotten.
    drop(ada);
    // Whoever asks too often is told to wait, so this one comes before.
    let mut late = connect(&chat);
    let gone = (200, "[]".to_owned());
    until("the room is gone", || answer(&chat, "/rooms") == gone);
    let joined = join(&mut late, "the mill", "Ada", "x");
    assert_eq!(joined["history"], json!([]));
    drop(late);
    assert!(chat.stop().success());
}

fn get(example: &Example, path: &str) -> Value {
    let (status, body) = answer(example, path);
    assert_eq!(status, 200);
    serde_json::from_str(&body).unwrap()
}

#[test]
fn a_room_remembers_fifty() {
    let chat = Example::start("chat", &[]);
    // Each may say six at once. Somebody is always there, so that the room stays.
    let mut clients = Vec::new();
    for guest in 0..10 {
        let mut client = connect(&chat);
        let name = format!("guest {guest}");
        join(&mut client, "mill", &name, &name);
        for nth in 0..6 {
            tell(
                &mut client,
                json!({"type": "say", "text": format!("{}", guest * 6 + nth)}),
            );
            while hear(&mut client)["type"] != "said" {}
        }
        clients.push(client);
    }
    let joined = join(&mut connect(&chat), "mill", "late", "late");
    let history = joined["history"].as_array().unwrap().iter();
    let texts: Vec<_> = history.map(|m| m["text"].as_str().unwrap()).collect();
    let last: Vec<_> = (10..60).map(|n| n.to_string()).collect();
    assert_eq!(texts, last);
}

// ---- ticker ----

/// A client that reads nothing for a while, and then everything: it is told the newest prices, and
/// no more waited for it than one of each key.
#[test]
fn a_client_that_stalls_gets_the_newest_prices() {
    const KEYS: usize = 200;
    let ticker = Example::start("ticker", &["--keys", "200", "--rate", "50000"]);
    let published = || get(&ticker, "/figures")["published"].as_u64().unwrap();
    let queued = || get(&ticker, "/figures")["queued"].as_u64().unwrap();
    let memory = || {
        let status =
            std::fs::read_to_string(format!("/proc/{}/status", ticker.id())).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        line.and_then(|l| l.trim().trim_end_matches(" kB").parse::<u64>().ok())
            .unwrap_or(0)
            * 1024
    };
    let addr: std::net::SocketAddr = ticker.addr.parse().unwrap();
    let socket = Socket::new(Domain::for_address(addr), Type::STREAM, None).unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    socket.connect(&addr.into()).unwrap();
    let mut slow = open(socket.into(), &ticker);
    tell(&mut slow, json!({"watch": SECTORS}));
    until("something waits for it", || queued() > 0);
    let (before, begin) = (memory(), published());
    until("many times more was published than fits", || {
        // A frame of a price has under 40 bytes; the snapshots are not conflated.
        let most = KEYS as u64 * 40 * 2 + KEYS as u64 * 250;
        let queued = queued();
        assert!(queued <= most, "{queued} bytes wait");
        published() > begin + 100_000
    });
    let grown = memory().saturating_sub(before);
    assert!(grown < 2 << 20, "{grown} bytes more");

    // What another client has now is what this one must have, or newer.
    let mut fast = connect(&ticker);
    tell(&mut fast, json!({"watch": SECTORS}));
    let mut newest = HashMap::new();
    while newest.len() < KEYS {
        for stock in hear(&mut fast)["stocks"].as_array().into_iter().flatten() {
            newest.insert(stock[0].as_u64().unwrap(), stock[3].as_u64().unwrap());
        }
    }
    drop(fast);
    let (mut read, mut seen) = (0u64, HashMap::<u64, u64>::new());
    while newest
        .iter()
        .any(|(key, nth)| seen.get(key).is_none_or(|seen| seen < nth))
    {
        let message = hear(&mut slow);
        if let Some(quote) = message.as_array() {
            let (key, nth) = (quote[0].as_u64().unwrap(), quote[2].as_u64().unwrap());
            // Nothing old after something new.
            assert!(seen.insert(key, nth).is_none_or(|before| before < nth));
            read += 1;
        }
    }
    let updates: u64 = newest.values().sum();
    assert!(read < updates / 10, "{read} read of {updates}");
    drop(slow);
    assert!(ticker.stop().success());
}

#[test]
fn the_slow_client_of_the_ticker_reports() {
    let args = ["--keys", "500", "--rate", "20000", "--slow-client=16384"];
    let ticker = Example::start("ticker", &args);
    until("it has skipped something", || {
        let slow = &get(&ticker, "/figures")["slow"];
        slow["read"].as_u64() > Some(0) && slow["skipped"].as_u64() > slow["read"].as_u64()
    });
    // It does not hold up the end.
    assert!(ticker.stop().success());
}

// ---- the dashboard, where it is asked for ----

/// A response of an example: status and body.
fn answer(example: &Example, path: &str) -> (u16, String) {
    support::get(&*example.addr, path)
}

#[test]
fn examples_have_a_dashboard_if_asked() {
    for name in ["chat", "ticker", "game"] {
        let plain = Example::start(name, &[]);
        assert_eq!(answer(&plain, "/dashboard").0, 404, "{name}");
        assert_eq!(answer(&plain, "/metrics").0, 404, "{name}");
        let watched = Example::start(name, &["--dashboard"]);
        // What it does itself, it still does.
        assert_eq!(answer(&watched, "/"), answer(&plain, "/"), "{name}");
        let (status, page) = answer(&watched, "/dashboard");
        assert!(status == 200 && page.contains("<title>framemill dashboard"));
        let (status, text) = answer(&watched, "/metrics");
        assert!(status == 200 && text.contains("\nframemill_accepted_total{loop=\"0\"} "));

        let url = format!("ws://{}/dashboard/live", watched.addr);
        let stream = TcpStream::connect(&watched.addr).unwrap();
        stream.set_read_timeout(Some(WAIT)).unwrap();
        let (mut live, _) = tungstenite::client::client(url, stream).unwrap();
        let past = hear(&mut live);
        assert!(past.is_array(), "{past}");
        let (first, second) = (hear(&mut live), hear(&mut live));
        assert!(first["connections"].as_u64() >= Some(1), "{first}");
        assert!(first["t"].as_u64() < second["t"].as_u64());
    }
}

/// What is published on one server goes to all others at once.
#[derive(Clone, Debug, Default)]
struct Bus {
    nodes: Arc<Mutex<Vec<Weak<dyn Node>>>>,
    own: Arc<Mutex<Option<Weak<dyn Node>>>>,
}

impl Bus {
    fn another(&self) -> Self {
        let own = Arc::default();
        let nodes = self.nodes.clone();
        Self { nodes, own }
    }
}

impl Backplane for Bus {
    fn start(&self, node: Weak<dyn Node>) -> framemill::Result<()> {
        *support::lock(&self.own) = Some(node.clone());
        support::lock(&self.nodes).push(node);
        Ok(())
    }

    fn subscribe(&self, _: &str) {}

    fn unsubscribe(&self, _: &str) {}

    fn publish(&self, post: Post) {
        let own = support::lock(&self.own).clone();
        for node in support::lock(&self.nodes).iter() {
            let elsewhere = own.as_ref().is_none_or(|own| !own.ptr_eq(node));
            if let Some(node) = node.upgrade().filter(|_| elsewhere) {
                node.deliver(post.clone());
            }
        }
    }

    fn state(&self) -> BackplaneState {
        BackplaneState::default()
    }

    fn stop(&self, _: Instant) {}
}

/// Topics of the server, and of others that it is joined with, are not the dashboard's.
#[test]
fn a_dashboard_shows_its_own_server() {
    let bus = Bus::default();
    let servers = [0, 1].map(|_| {
        let handler = Dashboard::around(|peer: &Peer, m: framemill::Message| peer.send(m));
        serve(|s| s.workers(1).backplane(bus.another()), handler)
    });
    // So that one can be told from the other.
    let _others: Vec<Raw> = (0..4).map(|_| Raw::open(servers[0].addr)).collect();
    let mut pages = servers.each_ref().map(|server| {
        let url = format!("ws://{}/dashboard/live", server.addr);
        let (mut page, _) = tungstenite::client::client(url, server.addr.connect()).unwrap();
        let past = page.read().unwrap();
        assert!(past.to_text().unwrap().starts_with('['));
        page
    });
    until("all have connected", || {
        servers.each_ref().map(|s| s.handle.connections()) == [5, 1]
    });
    for (server, page) in servers.iter().zip(&mut pages) {
        let _ = server.handle.publish("dashboard/live", "not news");
        let mut shown = Vec::new();
        let mut times = Vec::new();
        for _ in 0..5 {
            let news: Value =
                serde_json::from_str(page.read().unwrap().to_text().unwrap()).unwrap();
            shown.push(news["connections"].as_u64().unwrap() as usize);
            times.push(news["t"].as_u64().unwrap());
        }
        // The first may be of the time when they connected.
        assert!(
            shown[1..].iter().all(|n| *n == server.handle.connections()),
            "{shown:?}"
        );
        assert!(times.is_sorted_by(|a, b| a < b), "{times:?}");
    }
    pages[0].close(None).unwrap();
    while pages[0].read().is_ok() {}
    until("it is gone", || servers[0].handle.connections() == 4);
}
