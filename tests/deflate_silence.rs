//! What compression leaves behind with a connection that is silent. In a file of its own, as it looks
//! at the whole process, and at how it grows.
#![cfg(all(feature = "deflate", target_os = "linux"))]

mod support;

use framemill::{Deflate, Message, Peer};
use support::deflate::{TEXT, offering, prose, zip};
use support::{Raw, Running, frame, memory, serve};

/// With both ends here, and three times over, as many as fit a usual limit on open files.
const CONNECTIONS: usize = 150;

/// Silent connections that have echoed one message each: they are kept, or the next would have their
/// memory.
struct Silent {
    _server: Running,
    _raws: Vec<Raw>,
    bytes_each: usize,
}

fn silent(deflate: Option<Deflate>) -> Silent {
    let text = prose(2_000);
    let (offers, first, payload): (&[&str], _, _) = match deflate {
        Some(_) => (&["permessage-deflate"], TEXT, zip(text.as_bytes())),
        None => (&[], 0x81, text.into_bytes()),
    };
    let server = serve(
        |s| match deflate {
            Some(deflate) => s.workers(1).deflate(deflate),
            None => s.workers(1),
        },
        |peer: &Peer, message: Message| peer.send(message),
    );
    let connect = || {
        let (mut raw, _) = offering(server.addr, offers);
        raw.write(&frame(first, &payload));
        assert_eq!(raw.frame().unwrap().0, first);
        // All of them hold the same on this side: nothing.
        Raw::over(raw.stream)
    };
    // What is there once for each thread comes with the first of them.
    let mut raws: Vec<Raw> = (0..20).map(|_| connect()).collect();
    let before = memory("VmRSS");
    raws.extend((0..CONNECTIONS).map(|_| connect()));
    let grown = memory("VmRSS") - before;
    Silent {
        _server: server,
        _raws: raws,
        bytes_each: grown / CONNECTIONS,
    }
}

/// Without context, nothing.
#[test]
fn silent_connections() {
    let plain = silent(None);
    let alone = silent(Some(Deflate::new()));
    let takeover = silent(Some(Deflate::new().context_takeover(true, true)));
    let [plain, alone, takeover] = [plain, alone, takeover].map(|silent| silent.bytes_each);
    eprintln!("bytes a connection: {plain} without, {alone} alone, {takeover} in context");
    assert!(alone < plain + 2_048, "{alone} and {plain}");
    // It would be seen.
    assert!(takeover > plain + (100 << 10), "{takeover} and {plain}");
}
