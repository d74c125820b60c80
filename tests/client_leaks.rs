//! What is left of clients when they are gone: nothing. In a file of its own, as it looks at the whole
//! process.
#![cfg(target_os = "linux")]

mod support;

use std::net::TcpListener;
use std::time::Duration;

use framemill::{
    Client, ClientEvent, Clients, CloseCode, Error, Message, Origin, Peer, Reconnect, Server,
    StatusCode,
};
use support::{Running, WAIT, alone, descriptors, serve, until};

/// Threads of this process that framemill started.
fn threads() -> usize {
    let tasks = std::fs::read_dir("/proc/self/task").unwrap();
    let ours = tasks.filter(|task| {
        let comm = task.as_ref().unwrap().path().join("comm");
        // A thread may end meanwhile.
        std::fs::read_to_string(comm).is_ok_and(|name| name.starts_with("framemill-"))
    });
    ours.count()
}

fn server() -> Running {
    serve(
        |s| {
            s.workers(1)
                .outbound_limit(64 << 20)
                .origin(Origin::SameHost)
        },
        |peer: &Peer, message: Message| match message.to_text().unwrap_or_default() {
            "close" => drop(peer.close(CloseCode::Normal, "")),
            // Something arrives for as long as anybody is there.
            "tick" => {
                let peer = peer.clone();
                std::thread::spawn(move || {
                    while peer.send("tock").is_ok() {
                        std::thread::sleep(Duration::from_millis(1));
                    }
                });
            }
            "flood" => (0..1000).for_each(|_| drop(peer.send(vec![1; 5000]))),
            _ => drop(peer.send(message)),
        },
    )
}

/// One client that ends in one of many ways.
fn come_and_go(clients: &Clients, server: &Running, way: usize) {
    let url = format!("ws://{}/", server.addr);
    let client = Client::new(&url).unwrap();
    match way {
        0 => {
            let (handle, _events) = clients.connect(client).unwrap();
            handle.close_and_wait(CloseCode::Normal, "").unwrap();
        }
        1 => {
            let (handle, events) = clients.connect(client).unwrap();
            handle.send("close").unwrap();
            assert!(events.iter().any(|e| matches!(e, ClientEvent::Close(_))));
        }
        2 => {
            let (handle, events) = clients.connect(client).unwrap();
            handle.send("flood").unwrap();
            until("the channel is full", || events.is_full());
            handle.close_and_wait(CloseCode::Normal, "").unwrap();
        }
        3 => {
            let (handle, events) = clients.connect(client).unwrap();
            drop(events);
            handle.send("tick").unwrap();
            drop(handle);
        }
        4 => {
            let nowhere = TcpListener::bind("127.0.0.1:0")
                .unwrap()
                .local_addr()
                .unwrap();
            let quickly = Duration::from_millis(1);
            let client = Client::new(format!("ws://{nowhere}/"))
                .unwrap()
                .reconnect(Reconnect::new().delays(quickly, quickly).attempts(2));
            let handle = clients.open(client, |_: &Peer, _: Message| ()).unwrap();
            assert!(matches!(handle.wait(), Err(Error::Connect { .. })));
        }
        5 => {
            let silent = TcpListener::bind("127.0.0.1:0").unwrap();
            let client = Client::new(format!("ws://{}/", silent.local_addr().unwrap())).unwrap();
            let client = client.handshake_timeout(Duration::from_millis(5));
            assert!(matches!(clients.connect(client), Err(Error::Timeout)));
        }
        6 => {
            let client = client.origin("http://evil.example");
            match clients.connect(client) {
                Err(Error::Refused { status, .. }) => assert_eq!(status, StatusCode::FORBIDDEN),
                other => panic!("{other:?}"),
            }
        }
        7 => {
            let name = format!("ws://localhost:{}/", server.addr.tcp().port());
            let (handle, _events) = clients.connect(Client::new(name).unwrap()).unwrap();
            handle.close_and_wait(CloseCode::Away, "").unwrap();
        }
        _ => {
            let handle = clients
                .open(client, |_: &Peer, _: Message| panic!("as you wish"))
                .unwrap();
            until("it is open", || handle.is_open());
            handle.send("boo").unwrap();
            handle.wait().unwrap();
        }
    }
}

const WAYS: usize = 9;

/// Engines that are let go.
const ROUNDS: usize = 50;

#[test]
fn nothing_is_left() {
    let _alone = alone();
    for workers in [0, 2] {
        let before = descriptors();
        assert_eq!(threads(), 0);
        let server = server();
        let clients = Clients::start(2, workers).unwrap();
        let idle = 2 + 2 + workers;
        until("all threads are there", || threads() == idle);
        let calm = descriptors();
        for n in 0..10 * WAYS {
            come_and_go(&clients, &server, n % WAYS);
        }
        until("all connections are gone", || {
            clients.connections() == 0 && server.handle.connections() == 0
        });
        until("their descriptors, too", || descriptors() == calm);
        until("those who wait have gone", || threads() == idle);

        // Some are there at the end.
        let (handle, events) = clients
            .connect(Client::new(format!("ws://{}/", server.addr)).unwrap())
            .unwrap();
        handle.send("flood").unwrap();
        until("the channel is full", || events.is_full());
        // Cut off, or closed if no further message has arrived yet.
        clients.shutdown(Duration::from_millis(50));
        until("only the server is left", || threads() == 2);
        drop((clients, handle, events));
        drop(server);
        assert_eq!(threads(), 0);
        assert_eq!(descriptors(), before);
    }
}

#[test]
fn a_graceful_end_leaves_nothing() {
    let _alone = alone();
    let before = descriptors();
    let server = Server::bind("127.0.0.1:0").unwrap();
    let server = server
        .start(|peer: &Peer, m: Message| peer.send(m))
        .unwrap();
    let url = format!("ws://{}/", server.local_addr().unwrap());
    let clients = Clients::start(1, 1).unwrap();
    for _ in 0..100 {
        clients
            .open(Client::new(&url).unwrap(), |_: &Peer, _: Message| ())
            .unwrap();
    }
    until("all are open", || server.connections() == 100);
    assert!(clients.shutdown(WAIT));
    assert!(server.shutdown(WAIT));
    assert_eq!(threads(), 0);
    drop((clients, server));
    assert_eq!(descriptors(), before);
}

/// The end of an engine may come on a thread of its own, or of a server.
#[test]
fn an_engine_that_a_handler_lets_go_leaves_nothing() {
    let _alone = alone();
    let before = descriptors();
    for workers in [0, 1] {
        let far = server();
        let url = format!("ws://{}/", far.addr);
        let inner = Clients::start(1, workers).unwrap();
        let (upstream, _events) = inner.connect(Client::new(&url).unwrap()).unwrap();
        let mut inner = Some(inner);
        let own = std::sync::Mutex::new(inner.take());
        // Dropped by the last who has it: the worker that drops the handler.
        let near = serve(
            |s| s.workers(1),
            move |peer: &Peer, message: Message| {
                drop(own.lock().unwrap().take());
                peer.send(message).unwrap();
            },
        );
        let mut client = support::client(near.addr);
        support::echoes(&mut client, "let go");
        drop((client, near, upstream));
        until("only the far server is left", || threads() == 2);
        drop(far);

        // Now on one of its own.
        let far = server();
        let url = format!("ws://{}/", far.addr);
        let clients = Clients::start(1, workers).unwrap();
        let own = std::sync::Arc::new(std::sync::Mutex::new(None));
        let client = Client::new(&url).unwrap();
        let handler = {
            let own = own.clone();
            move |_: &Peer, _: Message| drop::<Option<Clients>>(own.lock().unwrap().take())
        };
        let handle = clients.open(client, handler).unwrap();
        until("it is open", || handle.is_open());
        *own.lock().unwrap() = Some(clients);
        handle.send("hello").unwrap();
        until("only the far server is left", || threads() == 2);
        drop((handle, far));
    }
    assert_eq!(threads(), 0);
    until("no descriptor is left", || descriptors() == before);
}

/// The same with a channel that nobody receives from: that client ends as well.
#[test]
fn an_engine_that_is_let_go_ends_those_that_wait() {
    let _alone = alone();
    let far = server();
    let url = format!("ws://{}/", far.addr);
    for _ in 0..ROUNDS {
        let clients = Clients::start(4, 2).unwrap();
        let (full, events) = clients.connect(Client::new(&url).unwrap()).unwrap();
        full.send("flood").unwrap();
        until("the channel is full", || events.is_full());
        let own = std::sync::Arc::new(std::sync::Mutex::new(None));
        let client = Client::new(&url).unwrap();
        let handler = {
            let own = own.clone();
            move |_: &Peer, _: Message| drop::<Option<Clients>>(own.lock().unwrap().take())
        };
        let handle = clients.open(client, handler).unwrap();
        until("it is open", || handle.is_open());
        *own.lock().unwrap() = Some(clients);
        handle.send("hello").unwrap();
        until("both have ended", || handle.has_ended() && full.has_ended());
        assert!(events.iter().count() >= 64);
    }
    drop(far);
    until("nothing is left", || threads() == 0);
}
