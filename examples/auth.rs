//! Who may come in: a token and the origin are checked before the connection is a WebSocket, and a
//! page is served on the same port.
//!
//! Run me and open http://127.0.0.1:9001 in a browser. The page connects with a token; change it in
//! the page, and the handshake is refused with 401. From a page of another origin it is refused
//! with 403, as `Origin::SameHost` is the default.
//!
//! The token travels as a subprotocol: the one header that a browser lets a page choose. In a URL it
//! would end up in logs.
#![allow(clippy::print_stdout)]

use std::time::Duration;

use framemill::{
    Accept, CloseReason, Handler, HeaderValue, Message, Peer, Request, Response, Server,
    StatusCode, header,
};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

const PAGE: &str = r#"<!doctype html><html lang="en"><meta charset="utf-8"><title>framemill: auth</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark"><link rel="icon" href="data:,">
<style>
body { font: 16px/1.45 system-ui, sans-serif; margin: 2em auto; max-width: 40em; padding: 0 1em }
form { display: flex; gap: .5em } input { flex: 1; min-width: 0 } input, button { font: inherit; padding: .4em .7em }
pre { white-space: pre-wrap; overflow-wrap: anywhere }
</style>
<h1>Who may come in</h1>
<form id="f"><input id="token" value="open-sesame" aria-label="Token" autocapitalize="none"> <button>Connect</button></form>
<pre id="log"></pre>
<script>
const log = line => document.getElementById("log").textContent += line + "\n";
document.getElementById("f").onsubmit = event => {
  event.preventDefault();
  const token = document.getElementById("token").value;
  let ws;
  try {
    ws = new WebSocket(location.origin.replace(/^http/, "ws"), ["hello.v1", "token." + token]);
  } catch {
    // Blanks and the like can't be in a header's list.
    return log(JSON.stringify(token) + " can be no token");
  }
  ws.onopen = () => { log("open, speaking " + ws.protocol); ws.send("who am I?"); };
  ws.onmessage = event => log("server: " + event.data);
  ws.onclose = event => log("closed: " + event.code + " " + event.reason);
};
</script>"#;

/// Users by token. A real server asks its database here: `open` runs on a worker and may block.
const USERS: &[(&str, &str)] = &[("open-sesame", "Ali Baba"), ("xyzzy", "the adventurer")];

struct Hall;

impl Handler for Hall {
    /// The user's name: what was found out once need not be asked again.
    type Session = &'static str;

    fn open(&self, request: &Request, peer: &Peer) -> Result<Accept<&'static str>, Response> {
        let token = request
            .subprotocols()
            .find_map(|name| name.strip_prefix("token."))
            .ok_or_else(refusal)?;
        let user = USERS.iter().find(|(known, _)| same(known, token));
        let (_, name) = user.ok_or_else(refusal)?;
        log::info!("{}: {name} from {}", peer.id(), peer.remote_addr());
        Ok(Accept::new(*name).subprotocol("hello.v1"))
    }

    fn message(&self, name: &mut &'static str, peer: &Peer, message: Message) {
        let answer = match message.to_text() {
            Ok("who am I?") => format!("you are {name}"),
            _ => format!("{name}, I don't understand"),
        };
        let _ = peer.send(answer);
    }

    fn close(&self, name: &'static str, _: &Peer, reason: &CloseReason) {
        log::info!("{name} left: {reason}");
    }

    fn http(&self, request: &Request) -> Response {
        match request.path() {
            "/" => Response::html(PAGE),
            "/health" => Response::text("ok\n"),
            _ => Response::not_found(),
        }
    }
}

fn refusal() -> Response {
    let challenge = HeaderValue::from_static("Bearer");
    Response::new(StatusCode::UNAUTHORIZED)
        .header(header::WWW_AUTHENTICATE, challenge)
        .body("a token, please\n")
}

/// Compares in a time that doesn't tell how much was right.
fn same(known: &str, given: &str) -> bool {
    let differing = known.bytes().zip(given.bytes()).map(|(a, b)| a ^ b);
    known.len() == given.len() && differing.fold(0, |all, bits| all | bits) == 0
}

fn main() -> framemill::Result<()> {
    env_logger::init();
    let addr = std::env::args().skip(1).last();
    let mut signals = Signals::new([SIGINT, SIGTERM])?;
    let handle = Server::bind(addr.as_deref().unwrap_or("127.0.0.1:9001"))?.start(Hall)?;
    println!("open http://{}", handle.local_addrs().join(" http://"));
    signals.forever().next();
    handle.shutdown(Duration::from_secs(5));
    Ok(())
}
