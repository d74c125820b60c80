//! What a server that faces the internet needs, over real sockets: limits on who arrives and on what
//! they send, proxies in front, draining, several listeners on one port. (With real proxies and systemd:
//! `deploy`.)

mod support;

use std::io::Write;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4, TcpStream};
#[cfg(unix)]
use std::os::unix::net::UnixStream;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, OnceLock, Weak};
use std::thread;
use std::time::{Duration, Instant};

#[cfg(unix)]
use framemill::UnixSocket;
use framemill::{
    Accept, Backplane, BackplaneState, ByteRate, CloseCause, CloseCode, Drain, Error,
    ForwardedHeader, Handler, Message, Node, OverRate, Peer, Post, ProxyProtocol, Request,
    Response, Server, ServerHandle,
};
use support::spy::{Seen, number, numbered, spy};
use support::{
    Addr, Raw, Running, Stream, Transport, WAIT, frame, over_every_transport, request, until,
};

over_every_transport! {
    who_comes_too_fast_waits,
    handshakes_over_the_limit_wait,
    silent_handshakes_make_room,
    who_sends_too_many_bytes_is_held_to_the_rate,
    who_sends_too_many_bytes_may_be_closed_with_1008,
    control_frames_are_bytes,
    a_proxy_tells_the_client_in_a_header,
    a_proxy_tells_the_client_in_front_of_all_else,
    a_proxy_header_may_come_in_pieces,
    a_proxy_header_may_be_required_or_not,
    a_broken_proxy_header_is_hung_up_on,
    limits_per_address_mean_the_client,
    who_is_over_its_limit_behind_a_proxy_is_no_connection,
    a_drain_closes_little_by_little,
    a_drain_gives_notice,
    a_drain_ends_at_its_deadline,
    a_drain_tells_its_code_at_the_deadline,
    a_drain_can_be_hurried,
}

/// A server that echoes, and tells.
fn spied(transport: Transport, settings: impl FnOnce(Server) -> Server) -> (Running, Seen) {
    let (spy, seen) = spy(|peer, message| {
        let _ = peer.send(message);
    });
    (transport.serve(settings, spy), seen)
}

/// The status that a handshake is answered with, and the connection.
fn status(mut raw: Raw, addr: Addr) -> (u16, Raw) {
    raw.write(request(addr).as_bytes());
    (raw.head()[9..12].parse().unwrap(), raw)
}

/// A socket that comes from `ip`.
#[cfg(target_os = "linux")] // where all of 127.0.0.0/8 is ours
fn connect_from(ip: &str, addr: Addr) -> Raw {
    use socket2::{Domain, Socket, Type};

    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    let from: std::net::SocketAddr = format!("{ip}:0").parse().unwrap();
    socket.bind(&from.into()).unwrap();
    socket.connect_timeout(&addr.tcp().into(), WAIT).unwrap();
    Raw::over(addr.over(socket.into()))
}

// ---- accept_rate ----

fn who_comes_too_fast_waits(transport: Transport) {
    for loops in [1, 2] {
        let (server, _) = spied(transport, |s| s.loops(loops).accept_rate(20, 2));
        let begun = Instant::now();
        let open: Vec<_> = (0..8).map(|_| Raw::open(server.addr)).collect();
        // Nobody is turned away, and the burst is all that came at once.
        assert_eq!(server.handle.connections(), open.len());
        let least = Duration::from_millis(6 * 1000 / 20 - 20);
        assert!(begun.elapsed() >= least, "{:?}", begun.elapsed());
    }
}

#[cfg(target_os = "linux")]
#[test]
fn who_comes_too_fast_from_one_address_is_429() {
    let (server, _) = spied(Transport::Plain, |s| s.accept_rate_per_ip(1, 2));
    let from = |ip| status(connect_from(ip, server.addr), server.addr).0;
    let begun = Instant::now();
    assert_eq!([from("127.0.0.1"), from("127.0.0.1")], [101, 101]);
    // Gone or not, they have come.
    until("both have left", || server.handle.connections() == 0);
    assert_eq!(from("127.0.0.1"), 429);
    assert_eq!(from("127.0.0.2"), 101, "others come at a rate of their own");
    until("there is a token again", || from("127.0.0.1") == 101);
    assert!(begun.elapsed() >= Duration::from_millis(980));
}

// ---- max_handshakes ----

fn handshakes_over_the_limit_wait(transport: Transport) {
    for loops in [1, 2] {
        let (server, _) = spied(transport, |s| s.loops(loops).max_handshakes(1));
        let mut opening = Raw::connect(server.addr);
        until("it is in", || server.handle.connections() == 1);
        let addr = server.addr;
        thread::scope(|scope| {
            let waiting = scope.spawn(move || status(Raw::connect(addr), addr).0);
            // It would be in long ago, if it were let in.
            thread::sleep(Duration::from_millis(300));
            assert_eq!(server.handle.connections(), 1);
            // A plain request takes a place too, until it is answered.
            opening.write(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n");
            assert_eq!(opening.response().0, 426);
            assert_eq!(waiting.join().unwrap(), 101);
        });
        // Who is open is out of the way.
        let open: Vec<_> = (0..3).map(|_| Raw::open(server.addr)).collect();
        drop(open);
    }
}

fn silent_handshakes_make_room(transport: Transport) {
    let (server, _) = spied(transport, |s| s.max_handshakes(2));
    let _silent = [Raw::connect(server.addr), Raw::connect(server.addr)];
    let begun = Instant::now();
    assert_eq!(status(Raw::connect(server.addr), server.addr).0, 101);
    // Much sooner than the 10 s of the handshake timeout.
    assert!(begun.elapsed() < Duration::from_secs(8));
}

/// They make room however far they have come.
#[cfg(feature = "tls")]
#[test]
fn silent_sockets_make_room_before_tls_too() {
    for workers in [0, 2] {
        let patient = |s: Server| s.workers(workers).handshake_timeout(5 * WAIT);
        let (server, _) = spied(Transport::Tls, |s| patient(s).max_handshakes(2));
        let connect = || TcpStream::connect(server.addr.tcp()).unwrap();
        let _silent = [connect(), connect()];
        until("they are in", || server.handle.connections() == 2);
        assert_eq!(status(Raw::connect(server.addr), server.addr).0, 101);
    }
}

/// Whether the server has not hung up.
#[cfg(all(feature = "tls", unix))]
fn is_there(socket: &TcpStream) -> bool {
    socket.set_nonblocking(true).unwrap();
    let peeked = socket.peek(&mut [0]);
    peeked.is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock)
}

/// One address alone can't shut the door, neither with what it may have there nor with more.
#[cfg(all(feature = "tls", target_os = "linux"))]
#[test]
fn who_is_over_a_limit_takes_no_place_at_the_door() {
    for workers in [0, 2] {
        let patient = |s: Server| s.workers(workers).handshake_timeout(5 * WAIT);
        let door = |s: Server| s.max_handshakes(4).max_tls_handshakes(4);
        let (server, _) = spied(Transport::Tls, |s| {
            door(patient(s)).max_connections_per_ip(2)
        });
        let connect = |_| TcpStream::connect(server.addr.tcp()).unwrap();
        let silent: Vec<_> = (0..10).map(connect).collect();
        let (other, _open) = status(connect_from("127.0.0.2", server.addr), server.addr);
        assert_eq!(other, 101);
        // It was not waited for that they make room.
        assert!(silent.iter().all(is_there));
        let accepted = || server.handle.metrics().total.accepted;
        until("all are in", || accepted() == 11);
        assert_eq!(server.handle.connections(), 3);
    }
}

// ---- several listeners ----

/// What a limit lets in is not only of the first listener.
#[test]
fn listeners_take_turns() {
    let (spy, _) = spy(|_, _| {});
    let server = Server::bind("127.0.0.1:0").unwrap();
    let server = server.and_bind("127.0.0.1:0").unwrap().accept_rate(20, 1);
    let handle = server.start(spy).unwrap();
    let [crowded, quiet]: [std::net::SocketAddr; 2] = handle
        .local_addrs()
        .iter()
        .map(|addr| addr.parse().unwrap())
        .collect::<Vec<_>>()
        .try_into()
        .unwrap();
    let addr = quiet.into();
    let server = Running { handle, addr };
    let connect = |_| TcpStream::connect(crowded).unwrap();
    let _crowd: Vec<_> = (0..200).map(connect).collect();
    let _open = Raw::open(addr);
    // The crowd takes ten seconds.
    let accepted = server.handle.metrics().total.accepted;
    assert!(accepted < 100, "{accepted} came first");
}

/// A handle is the server's whenever it was asked for, and addresses come in several types.
#[test]
fn a_handle_from_before_another_address() {
    let addr = (Ipv4Addr::LOCALHOST, 0);
    let server = Server::bind(addr).unwrap();
    let handle = server.handle();
    let server = server.and_bind(SocketAddrV4::new(addr.0, 0)).unwrap();
    let server = server.and_bind((IpAddr::from(addr.0), 0)).unwrap();
    let (told, ended) = std::sync::mpsc::channel();
    let (spy, _) = spy(|_, _| {});
    handle.after(Duration::ZERO, move || told.send(()).unwrap());
    let _running = server.start(spy).unwrap();
    ended.recv_timeout(WAIT).expect("the timer of before");
    let addrs = handle.local_addrs();
    assert_eq!(addrs.len(), 3);
    let _open: Vec<Raw> = addrs
        .iter()
        .map(|addr| Raw::open(addr.parse::<SocketAddr>().unwrap()))
        .collect();
    assert_eq!(handle.connections(), 3);
    assert!(!handle.shutdown(Duration::ZERO), "they are cut off");
    assert_eq!(handle.connections(), 0);
}

/// One that can't accept does not keep out who comes to the others.
#[cfg(target_os = "linux")]
#[test]
fn a_broken_listener_is_alone_with_that() {
    use std::net::TcpListener;
    for broken_first in [true, false] {
        let broken = TcpListener::bind("127.0.0.1:0").unwrap();
        let good = TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = good.local_addr().unwrap().into();
        let same = broken.try_clone().unwrap();
        let (first, second) = match broken_first {
            true => (broken, good),
            false => (good, broken),
        };
        let server = Server::bind(first).unwrap().and_bind(second).unwrap();
        // From here on all that comes of it is EINVAL.
        let same = socket2::SockRef::from(&same);
        same.shutdown(std::net::Shutdown::Both).unwrap();
        let (spy, _) = spy(|_, _| {});
        let handle = server.start(spy).unwrap();
        let server = Running { handle, addr };
        let _open: Vec<_> = (0..3).map(|_| Raw::open(addr)).collect();
        assert_eq!(server.handle.connections(), 3);
    }
}

/// What is connected already, or does not listen yet, is no listener.
#[cfg(target_os = "linux")]
#[test]
fn what_does_not_listen_is_refused() {
    use std::os::fd::OwnedFd;
    use std::os::unix::net::{UnixListener, UnixStream};
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let tcp: OwnedFd = TcpStream::connect(listener.local_addr().unwrap())
        .unwrap()
        .into();
    let unix: OwnedFd = UnixStream::pair().unwrap().0.into();
    let outcomes = [
        Server::bind(std::net::TcpListener::from(tcp)),
        Server::bind(UnixListener::from(unix)),
    ];
    for outcome in outcomes {
        assert!(matches!(outcome, Err(framemill::Error::Config(_))));
    }
}

/// No Unix socket makes a TLS handshake, so none waits for one.
#[cfg(all(feature = "tls", unix))]
#[test]
fn unix_sockets_do_not_wait_for_tls() {
    let (server, bound) = Transport::Unix.bind();
    let server = Transport::Tls.wrap(server.and_bind("127.0.0.1:0").unwrap());
    let server = server.max_tls_handshakes(1).handshake_timeout(5 * WAIT);
    let (spy, _) = spy(|_, _| {});
    let server = bound.running(server.start(spy).unwrap());
    let silent = TcpStream::connect(server.handle.local_addr().unwrap()).unwrap();
    until("it is in", || server.handle.connections() == 1);
    let _open = Raw::open(server.addr);
    assert!(
        is_there(&silent),
        "it was not waited for that it makes room"
    );
}

/// The file is removed by whose it is.
#[cfg(unix)]
#[test]
fn a_server_that_stops_leaves_the_socket_of_its_successor() {
    let old = Transport::Unix.echo();
    let Addr::Unix(place) = old.addr else {
        unreachable!("it is one");
    };
    std::fs::remove_file(place.path()).unwrap();
    let (spy, _) = spy(|_, _| {});
    let addr = format!("unix:{}", place.path().display());
    let new = Server::bind(addr).unwrap().start(spy).unwrap();
    assert!(old.handle.shutdown(WAIT));
    drop(Raw::open(old.addr));
    assert_eq!(new.metrics().total.opened, 1);
    new.shutdown(WAIT);
    assert!(!place.path().exists());
}

/// Where a test has the file of a socket, which is removed with this.
#[cfg(unix)]
struct SocketFile(std::path::PathBuf);

#[cfg(unix)]
impl SocketFile {
    fn new(test: &str) -> Self {
        let name = format!("framemill-{test}-{}", std::process::id());
        Self(std::env::temp_dir().join(name))
    }

    fn addr(&self) -> String {
        format!("unix:{}", self.0.display())
    }
}

#[cfg(unix)]
impl Drop for SocketFile {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// Whoever accepts nothing is there all the same, and is not waited for.
#[cfg(target_os = "linux")]
#[test]
fn a_socket_with_a_full_backlog_is_in_use() {
    use socket2::{Domain, SockAddr, Socket, Type};
    let file = SocketFile::new("full");
    let addr = SockAddr::unix(&file.0).unwrap();
    let socket = || Socket::new(Domain::UNIX, Type::STREAM, None).unwrap();
    let busy = socket();
    busy.bind(&addr).unwrap();
    busy.listen(1).unwrap();
    let mut waiting = Vec::new();
    loop {
        let client = socket();
        client.set_nonblocking(true).unwrap();
        match client.connect(&addr) {
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => break,
            other => other.unwrap(),
        }
        waiting.push(client);
    }
    let (tell, told) = std::sync::mpsc::channel();
    let addr = file.addr();
    thread::spawn(move || tell.send(Server::bind(addr).map(drop)));
    let outcome = told.recv_timeout(WAIT).expect("it waits");
    assert!(matches!(outcome, Err(Error::Bind { .. })), "{outcome:?}");
    assert!(file.0.exists());
}

/// Servers that start at once, where the file of a former one is left: one has the address.
#[cfg(target_os = "linux")]
#[test]
fn one_of_two_replaces_a_stale_socket() {
    // One in three hundred meets where it hurts.
    const ROUNDS: usize = 3000;
    let file = SocketFile::new("stale");
    for _ in 0..ROUNDS {
        drop(std::os::unix::net::UnixListener::bind(&file.0).unwrap());
        let begin = std::sync::Barrier::new(2);
        let bind = || {
            begin.wait();
            Server::bind(file.addr())
        };
        let outcomes = thread::scope(|scope| {
            let servers = [scope.spawn(bind), scope.spawn(bind)];
            servers.map(|server| server.join().unwrap())
        });
        assert_eq!(outcomes.iter().filter(|outcome| outcome.is_ok()).count(), 1);
        UnixStream::connect(&file.0).unwrap();
        drop(outcomes);
        assert!(!file.0.exists());
    }
}

/// Narrower than the umask has it, and wider.
#[cfg(unix)]
#[test]
fn a_socket_has_the_mode_that_is_asked_for() {
    use std::os::unix::fs::PermissionsExt;
    let file = SocketFile::new("mode");
    for mode in [0o600, 0o666, 0o600] {
        // The file of one that is no longer there has no say.
        drop(std::os::unix::net::UnixListener::bind(&file.0).unwrap());
        let server = Server::bind(UnixSocket(&file.0, mode)).unwrap();
        let is = std::fs::metadata(&file.0).unwrap().permissions();
        assert_eq!(is.mode() & 0o777, mode, "{:o}", is.mode());
        let server = server.start(|_: &Peer, _: Message| {}).unwrap();
        assert_eq!(server.local_addrs(), [file.addr()]);
        UnixStream::connect(&file.0).unwrap();
        assert!(server.shutdown(WAIT));
        assert!(!file.0.exists());
    }
    let nowhere = UnixSocket("/there/is/none", 0o600);
    let Err(Error::Bind { addr, .. }) = Server::bind(nowhere) else {
        panic!("it was bound");
    };
    assert_eq!(addr, "unix:/there/is/none");
}

// ---- byte_rate ----

fn rate(per_second: u32, burst: u32, over: OverRate) -> ByteRate {
    ByteRate {
        per_second,
        burst,
        over,
    }
}

fn who_sends_too_many_bytes_is_held_to_the_rate(transport: Transport) {
    for workers in [0, 2] {
        let held = rate(20_000, 1000, OverRate::Wait);
        let (server, seen) = spied(transport, |s| s.workers(workers).byte_rate(held));
        let mut raw = Raw::open(server.addr);
        let begun = Instant::now();
        // Each is longer than the burst: it passes, and whatever follows has to wait for it.
        for n in 0..6 {
            raw.write(&frame(0x82, &numbered(n, 2000)));
            assert_eq!(number(&raw.frame().unwrap().1), n);
        }
        let least = Duration::from_millis(9000 * 1000 / 20_000 - 20);
        assert!(begun.elapsed() >= least, "{:?}", begun.elapsed());
        assert!(seen.closed.try_recv().is_err());
    }
}

fn who_sends_too_many_bytes_may_be_closed_with_1008(transport: Transport) {
    for workers in [0, 2] {
        let allowed = rate(1, 1000, OverRate::Close);
        let (server, seen) = spied(transport, |s| s.workers(workers).byte_rate(allowed));
        let mut raw = Raw::open(server.addr);
        // 6 bytes of header for the first, 8 for the second.
        raw.write(&frame(0x82, &numbered(0, 94)));
        raw.write(&frame(0x82, &numbered(1, 892)));
        assert_eq!(number(&raw.frame().unwrap().1), 0);
        assert_eq!(number(&raw.frame().unwrap().1), 1);
        raw.write(&frame(0x82, &numbered(2, 900)));
        assert_eq!(raw.close_code(), Some(1008));
        drop(raw);
        let end = seen.end();
        assert_eq!(
            (end.code(), end.cause()),
            (CloseCode::Policy, CloseCause::RateLimit)
        );
    }
}

fn control_frames_are_bytes(transport: Transport) {
    let allowed = rate(1, 1000, OverRate::Close);
    let (server, _) = spied(transport, |s| s.byte_rate(allowed));
    let mut raw = Raw::open(server.addr);
    for _ in 0..20 {
        raw.write(&frame(0x89, &[b'.'; 100]));
    }
    assert_eq!(raw.close_code(), Some(1008));
}

// ---- trust_proxies, proxy_protocol ----

/// Tells each client its address: in a header of the 101, in answer to a message, on a page.
struct Tells;

impl Handler for Tells {
    type Session = ();

    fn open(&self, request: &Request, peer: &Peer) -> Result<Accept<()>, Response> {
        assert_eq!(request.remote_addr(), peer.remote_addr());
        Ok(Accept::new(()))
    }

    fn message(&self, (): &mut (), peer: &Peer, _: Message) {
        let _ = peer.send(peer.remote_addr().to_string());
    }

    fn http(&self, request: &Request) -> Response {
        Response::text(request.remote_addr().to_string())
    }
}

/// A server behind the proxies of this machine.
fn behind(transport: Transport, settings: impl FnOnce(Server) -> Server) -> Running {
    let trusting = |s: Server| s.trust_proxies(["127.0.0.1/32", "unix"]).unwrap();
    transport.serve(|s| settings(trusting(s)), Tells)
}

/// A connection that begins with these pieces, each in a packet of its own, before TLS even.
fn after(pieces: &[&[u8]], addr: Addr) -> Raw {
    #[cfg(unix)]
    if let Addr::Unix(place) = addr {
        let mut socket = UnixStream::connect(place.path()).unwrap();
        pieces
            .iter()
            .for_each(|piece| socket.write_all(piece).unwrap());
        socket.set_read_timeout(Some(WAIT)).unwrap();
        return Raw::over(Stream::Unix(socket));
    }
    let mut socket = TcpStream::connect_timeout(&addr.tcp(), WAIT).unwrap();
    socket.set_nodelay(true).unwrap();
    for piece in pieces {
        socket.write_all(piece).unwrap();
        if pieces.len() > 1 {
            // So that the server has a chance to see it alone.
            thread::sleep(Duration::from_millis(1));
        }
    }
    Raw::over(addr.over(socket))
}

/// A handshake with these headers too.
fn request_with(headers: &str, addr: Addr) -> String {
    request(addr).replacen("\r\n", &format!("\r\n{headers}"), 1)
}

/// The client's address as the server sees it, of a connection and a WebSocket on it.
fn told(raw: &mut Raw, headers: &str, addr: Addr) -> String {
    raw.write(request_with(headers, addr).as_bytes());
    let head = raw.head();
    assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
    raw.write(&frame(0x81, b"who am I?"));
    String::from_utf8(raw.frame().unwrap().1).unwrap()
}

const V1: &[u8] = b"PROXY TCP4 192.0.2.1 198.51.100.1 56324 443\r\n";

/// Version 2, `PROXY`, of 192.0.2.1:56324.
fn v2() -> Vec<u8> {
    let mut header = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c".to_vec();
    header.extend([192, 0, 2, 1, 198, 51, 100, 1, 0xDC, 0x04, 1, 0xBB]);
    header
}

fn a_proxy_tells_the_client_in_a_header(transport: Transport) {
    let own = |addr: Addr, client: &str| match client {
        "" => raw_addr(addr).to_owned(),
        client => client.to_owned(),
    };
    for workers in [0, 2] {
        let server = behind(transport, |s| s.workers(workers));
        let addr = server.addr;
        let x = |list: &str| format!("X-Forwarded-For: {list}\r\n");
        for (headers, client) in [
            (x("192.0.2.1"), "192.0.2.1:0"),
            (x("127.0.0.1, 198.51.100.9, 127.0.0.1"), "198.51.100.9:0"),
            (x("[2001:db8::1]:77"), "[2001:db8::1]:77"),
            (x("192.0.2.1, unknown"), ""),
            // The other header is whatever the client wrote.
            (String::from("Forwarded: for=192.0.2.1\r\n"), ""),
            (String::new(), ""),
        ] {
            let seen = told(&mut Raw::connect(addr), &headers, addr);
            let seen = if client.is_empty() {
                seen.split(':').next().unwrap()
            } else {
                &seen
            };
            assert_eq!(seen, own(addr, client), "{headers}");
        }
        let mut page = Raw::connect(addr);
        page.write(b"GET / HTTP/1.1\r\nHost: a\r\nX-Forwarded-For: 192.0.2.1\r\n\r\n");
        assert_eq!(page.response().2, b"192.0.2.1:0");
    }
    let server = behind(transport, |s| {
        s.forwarded_header(ForwardedHeader::Forwarded)
    });
    let headers = "X-Forwarded-For: 1.1.1.1\r\nForwarded: for=\"[2001:db8::1]:77\";proto=https\r\n";
    let seen = told(&mut Raw::connect(server.addr), headers, server.addr);
    assert_eq!(seen, "[2001:db8::1]:77");
    let mut raw = Raw::connect(server.addr);
    raw.write(request_with("Forwarded: for=\"1.1.1.1\r\n", server.addr).as_bytes());
    assert_eq!(raw.response().0, 400);
}

/// The host of this machine's end of a connection, as a handler sees it.
fn raw_addr(addr: Addr) -> &'static str {
    match addr {
        #[cfg(unix)]
        Addr::Unix(_) => "unix",
        _ => "127.0.0.1",
    }
}

#[cfg(target_os = "linux")]
#[test]
fn what_strangers_claim_is_ignored() {
    let server = behind(Transport::Plain, |s| {
        s.proxy_protocol(ProxyProtocol::Required)
    });
    let addr = server.addr;
    let mut stranger = connect_from("127.0.0.2", addr);
    let headers = "X-Forwarded-For: 192.0.2.1\r\nForwarded: for=192.0.2.1\r\n";
    assert!(told(&mut stranger, headers, addr).starts_with("127.0.0.2:"));
    for header in [V1, &v2()] {
        let mut stranger = connect_from("127.0.0.2", addr);
        stranger.write(&[header, request(addr).as_bytes()].concat());
        assert_eq!(stranger.response().0, 400);
    }
    // Somebody behind a proxy of bytes is a stranger too.
    let mut client = after(&[V1], addr);
    assert_eq!(
        told(&mut client, "X-Forwarded-For: 9.9.9.9\r\n", addr),
        "192.0.2.1:56324"
    );
}

fn a_proxy_tells_the_client_in_front_of_all_else(transport: Transport) {
    for workers in [0, 2] {
        let required = |s: Server| s.proxy_protocol(ProxyProtocol::Required);
        let server = behind(transport, |s| required(s).workers(workers).loops(2));
        let addr = server.addr;
        let mut v6 = b"\r\n\r\n\0\r\nQUIT\n\x21\x21\0\x24".to_vec();
        v6.extend(
            "2001:db8::1"
                .parse::<std::net::Ipv6Addr>()
                .unwrap()
                .octets(),
        );
        v6.extend([0; 16]);
        v6.extend([0, 77, 0, 80]);
        for (header, client) in [
            (V1, "192.0.2.1:56324"),
            (&v2(), "192.0.2.1:56324"),
            (&v6, "[2001:db8::1]:77"),
            (b"PROXY TCP6 2001:db8::1 ::1 77 80\r\n", "[2001:db8::1]:77"),
        ] {
            assert_eq!(told(&mut after(&[header], addr), "", addr), client);
        }
        // A health check is the proxy's own, and what it hands through counts for nothing.
        for header in [&b"PROXY UNKNOWN\r\n"[..], b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0"] {
            let seen = told(
                &mut after(&[header], addr),
                "X-Forwarded-For: 9.9.9.9\r\n",
                addr,
            );
            assert!(seen.starts_with(raw_addr(addr)), "{seen}");
        }
        // A proxy before the proxy speaks HTTP.
        let header = b"PROXY TCP4 127.0.0.1 198.51.100.1 56324 443\r\n";
        let seen = told(
            &mut after(&[header], addr),
            "X-Forwarded-For: 9.9.9.9\r\n",
            addr,
        );
        assert_eq!(seen, "9.9.9.9:0");
    }
}

fn a_proxy_header_may_come_in_pieces(transport: Transport) {
    let server = behind(transport, |s| s.proxy_protocol(ProxyProtocol::Optional));
    for header in [V1, &v2()] {
        let bytes: Vec<_> = header.chunks(1).collect();
        let seen = told(&mut after(&bytes, server.addr), "", server.addr);
        assert_eq!(seen, "192.0.2.1:56324");
    }
    if !matches!(server.addr, Addr::Plain(_)) {
        return;
    }
    // With all that follows in one packet, and every other way to cut it in two.
    let whole = [V1, request(server.addr).as_bytes(), &frame(0x81, b"?")].concat();
    for cut in (0..V1.len() + 20).chain([whole.len()]) {
        let (first, second) = whole.split_at(cut);
        let mut raw = after(&[first, second], server.addr);
        assert!(raw.head().starts_with("HTTP/1.1 101 "));
        assert_eq!(raw.frame().unwrap().1, b"192.0.2.1:56324");
    }
}

fn a_proxy_header_may_be_required_or_not(transport: Transport) {
    let server = behind(transport, |s| s.proxy_protocol(ProxyProtocol::Optional));
    let addr = server.addr;
    let seen = told(&mut after(&[], addr), "X-Forwarded-For: 9.9.9.9\r\n", addr);
    assert_eq!(seen, "9.9.9.9:0");
    let mut post = Raw::connect(addr);
    post.write(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n");
    assert_eq!(post.response().0, 200);

    let server = behind(transport, |s| s.proxy_protocol(ProxyProtocol::Required));
    let mut without = before_tls(server.addr);
    without.write(request(server.addr).as_bytes());
    assert_eq!(without.rest(), b"", "hung up on without a word");
    until("it is gone", || server.handle.connections() == 0);
}

/// A socket with nothing around it, whatever the server speaks.
fn before_tls(addr: Addr) -> Raw {
    match addr {
        #[cfg(unix)]
        Addr::Unix(_) => after(&[], addr),
        _ => after(&[], Addr::Plain(addr.tcp())),
    }
}

fn a_broken_proxy_header_is_hung_up_on(transport: Transport) {
    for proxies in [ProxyProtocol::Required, ProxyProtocol::Optional] {
        // A TLS handshake has to keep it, on a machine that may be busy.
        let short = Duration::from_secs(1);
        let server = behind(transport, |s| {
            s.proxy_protocol(proxies).handshake_timeout(short)
        });
        let all = [
            &b"PROXY TCP4 192.0.2.1 198.51.100.1 56324\r\n"[..],
            b"PROXY TCP4 192.0.2.1\n",
            &[b'P'; 1],
            &[&b"PROXY "[..], &[b'x'; 200]].concat(),
            b"\r\n\r\n\0\r\nQUIT\n\x31",
            b"\r\n\r\n\0\r\nQUIT\n\x21\x11\xff\xff",
            // Never finished.
            b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\xc0",
            b"PROXY TCP4 192.0.2.1 ",
            b"",
        ];
        // At once, as some take as long as they may.
        let all = all.map(|broken| {
            let mut raw = before_tls(server.addr);
            raw.write(broken);
            (broken, raw)
        });
        for (broken, mut raw) in all {
            assert_eq!(raw.rest(), b"", "{broken:?}");
        }
        until("all are gone", || server.handle.connections() == 0);
        let mut sound = after(&[V1], server.addr);
        assert_eq!(told(&mut sound, "", server.addr), "192.0.2.1:56324");
    }
}

fn limits_per_address_mean_the_client(transport: Transport) {
    for workers in [0, 2] {
        let limits = |s: Server| s.max_connections_per_ip(1).ipv6_prefix(48);
        let both = |s: Server| s.proxy_protocol(ProxyProtocol::Optional);
        let server = behind(transport, |s| both(limits(s)).workers(workers));
        let addr = server.addr;
        let v1 = |ip: &str| {
            let family = if ip.contains(':') { "TCP6" } else { "TCP4" };
            let header = format!("PROXY {family} {ip} {ip} 1 2\r\n");
            status(after(&[header.as_bytes()], addr), addr)
        };
        let x = |ip: &str| {
            let mut raw = Raw::connect(addr);
            raw.write(request_with(&format!("X-Forwarded-For: {ip}\r\n"), addr).as_bytes());
            (raw.head()[9..12].parse::<u16>().unwrap(), raw)
        };
        let (first, one) = v1("192.0.2.1");
        assert_eq!(first, 101);
        assert_eq!((v1("192.0.2.1").0, x("192.0.2.1").0), (429, 429));
        let (second, two) = x("192.0.2.2");
        assert_eq!(second, 101);
        assert_eq!((v1("192.0.2.2").0, x("192.0.2.2").0), (429, 429));
        // By prefix.
        let (third, three) = v1("2001:db8:0:1::1");
        assert_eq!(third, 101);
        assert_eq!((v1("2001:db8:0:2::1").0, x("2001:db8::5").0), (429, 429));
        let (fourth, _four) = x("2001:db8:1::1");
        assert_eq!(fourth, 101);
        // The proxies themselves are not counted.
        let _own = [Raw::open(addr), Raw::open(addr)];

        drop((one, two, three));
        until("three have left", || server.handle.connections() == 3);
        let again = [v1("192.0.2.1"), x("192.0.2.2"), v1("2001:db8::9")];
        assert!(again.iter().all(|(status, _)| *status == 101));
        assert_eq!(x("192.0.2.1").0, 429);
    }
}

/// It is told of the limit, and otherwise nobody minds it.
fn who_is_over_its_limit_behind_a_proxy_is_no_connection(transport: Transport) {
    for workers in [0, 2] {
        let patient = |s: Server| s.workers(workers).handshake_timeout(5 * WAIT);
        let required = |s: Server| s.proxy_protocol(ProxyProtocol::Required);
        let door = |s: Server| s.max_connections(3).max_handshakes(3);
        let server = behind(transport, |s| {
            door(required(patient(s))).max_connections_per_ip(1)
        });
        let silent: Vec<_> = (0..20)
            .map(|_| {
                let mut raw = before_tls(server.addr);
                raw.write(V1);
                raw
            })
            .collect();
        let over = || server.handle.metrics().total.refused["max_connections_per_ip"];
        until("all but one are over the limit", || {
            over() == 19 && server.handle.connections() == 1
        });
        // Another client, and one that hears of it.
        let other = b"PROXY TCP4 192.0.2.2 198.51.100.1 56324 443\r\n";
        let (first, _open) = status(after(&[other], server.addr), server.addr);
        assert_eq!(first, 101);
        assert_eq!(status(after(&[other], server.addr), server.addr).0, 429);
        drop(silent);
        until("they have left", || server.handle.connections() == 1);
    }
}

/// As many as of those that are over a limit when they are accepted.
#[test]
fn so_many_are_told_of_their_limit_behind_a_proxy() {
    let required = |s: Server| s.proxy_protocol(ProxyProtocol::Required);
    let server = behind(Transport::Plain, |s| {
        required(s)
            .max_connections_per_ip(1)
            .handshake_timeout(5 * WAIT)
    });
    let _silent: Vec<_> = (0..300).map(|_| after(&[V1], server.addr)).collect();
    let now = || server.handle.metrics().total;
    until("all have come", || now().accepted == 300);
    until("the others are dropped", || now().connections == 1 + 256);
    assert_eq!(now().refused["unanswered"], 300 - 1 - 256);
    assert_eq!(server.handle.connections(), 1);
}

// ---- a server that does not start ----

/// A backplane that is not there.
#[derive(Debug)]
struct Nowhere;

impl Backplane for Nowhere {
    fn start(&self, _: Weak<dyn Node>) -> framemill::Result<()> {
        Err(Error::Config("nowhere".into()))
    }

    fn subscribe(&self, _: &str) {}

    fn unsubscribe(&self, _: &str) {}

    fn publish(&self, _: Post) {}

    fn state(&self) -> BackplaneState {
        BackplaneState::default()
    }

    fn stop(&self, _: Instant) {}
}

/// A handler that cannot begin.
struct Broken;

impl Handler for Broken {
    type Session = ();

    fn start(&self, _: &ServerHandle) {
        panic!("on purpose");
    }

    fn open(&self, _: &Request, _: &Peer) -> Result<Accept<()>, Response> {
        Ok(Accept::new(()))
    }

    fn message(&self, (): &mut (), _: &Peer, _: Message) {}
}

/// Nothing of it runs, and nobody takes it for one that does.
#[test]
fn a_server_that_fails_to_start_is_over() {
    for workers in [0, 2] {
        for failure in ["setting", "backplane", "panic"] {
            let server = Server::bind("127.0.0.1:0").unwrap().workers(workers);
            let handle = server.handle();
            let kept = Arc::new(());
            let held = kept.clone();
            let timer = handle.every(Duration::from_millis(1), move || drop(held.clone()));
            if failure == "panic" {
                let start = AssertUnwindSafe(|| server.start(Broken));
                assert!(catch_unwind(start).is_err());
            } else {
                let server = match failure {
                    "setting" => server.loops(0),
                    _ => server.backplane(Nowhere),
                };
                let failed = server.start(|_: &Peer, _: Message| {});
                assert!(matches!(failed, Err(Error::Config(_))), "{failed:?}");
            }
            assert!(!handle.broadcast("x") && !handle.publish("topic", "x"));
            assert!(handle.enter("topic", "name").is_none());
            assert!(timer.is_over());
            until("the timer is gone", || Arc::strong_count(&kept) == 1);
            assert!(handle.shutdown(Duration::from_secs(1)));
        }
    }
}

// ---- drain ----

/// Echoes, and has a page for load balancers.
#[derive(Default)]
struct Healthy(OnceLock<ServerHandle>);

impl Handler for Healthy {
    type Session = ();

    fn start(&self, server: &ServerHandle) {
        let _ = self.0.set(server.clone());
    }

    fn open(&self, _: &Request, _: &Peer) -> Result<Accept<()>, Response> {
        Ok(Accept::new(()))
    }

    fn message(&self, (): &mut (), peer: &Peer, message: Message) {
        let _ = peer.send(message);
    }

    fn http(&self, _: &Request) -> Response {
        self.0.get().unwrap().health()
    }
}

fn health(addr: Addr) -> u16 {
    let mut raw = Raw::connect(addr);
    raw.write(b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n");
    raw.response().0
}

/// No notice, and the rest as told.
fn over(spread: Duration, deadline: Duration) -> Drain {
    Drain {
        code: CloseCode::Restart,
        notice: Duration::ZERO,
        spread,
        deadline,
    }
}

fn a_drain_closes_little_by_little(transport: Transport) {
    let spread = Duration::from_millis(800);
    for workers in [0, 2] {
        let settings = |s: Server| s.workers(workers).loops(2);
        let server = transport.serve(settings, Healthy::default());
        let clients: Vec<_> = (0..40).map(|_| Raw::open(server.addr)).collect();
        let begun = Instant::now();
        let (told, order) = thread::scope(|scope| {
            let (sender, receiver) = crossbeam_channel::unbounded();
            for (n, mut client) in clients.into_iter().enumerate() {
                let sender = sender.clone();
                scope.spawn(move || {
                    assert_eq!(client.close_code(), Some(1012));
                    sender.send((n, begun.elapsed())).unwrap();
                    client.write(&frame(0x88, &1012_u16.to_be_bytes()));
                    client.rest();
                });
            }
            drop(sender);
            assert!(
                server.handle.drain(over(spread, WAIT)),
                "nobody was cut off"
            );
            let (order, told): (Vec<_>, Vec<_>) = receiver.iter().unzip();
            (told, order)
        });
        assert_eq!(told.len(), 40);
        assert!(!order.is_sorted(), "not in the order they came");
        let early = told.iter().filter(|at| **at < spread / 2).count();
        assert!((5..=25).contains(&early), "{early} of 40 in the first half");
        let last = *told.iter().max().unwrap();
        assert!(last >= spread * 3 / 4, "{last:?}");
        assert!(server.addr.refuses());
    }
}

fn a_drain_gives_notice(transport: Transport) {
    let server = transport.serve(|s| s, Healthy::default());
    let addr = server.addr;
    assert!(!server.handle.is_draining());
    assert_eq!(health(addr), 200);
    let drain = Drain {
        notice: Duration::from_millis(700),
        ..over(Duration::ZERO, WAIT)
    };
    thread::scope(|scope| {
        let ended = scope.spawn(|| server.handle.drain(drain));
        until("it begins", || server.handle.is_draining());
        assert_eq!(health(addr), 503);
        // Who did not hear of it yet is served.
        let mut late = Raw::open(addr);
        late.write(&frame(0x81, b"still here?"));
        assert_eq!(late.frame().unwrap().1, b"still here?");
        assert_eq!(late.close_code(), Some(1012));
        until("nobody listens", || addr.refuses());
        late.write(&frame(0x88, &1012_u16.to_be_bytes()));
        assert!(ended.join().unwrap());
    });
}

fn a_drain_ends_at_its_deadline(transport: Transport) {
    let server = transport.serve(|s| s, Healthy::default());
    let mut deaf = Raw::open(server.addr);
    let begun = Instant::now();
    let deadline = Duration::from_millis(300);
    assert!(!server.handle.drain(over(Duration::from_secs(60), deadline)));
    assert!(begun.elapsed() >= deadline && begun.elapsed() < WAIT);
    // It was told all the same.
    assert_eq!(deaf.close_code(), Some(1012));
    assert_eq!(server.handle.connections(), 0);
}

/// Even who could not be told before, as its handler was still busy with what came before.
fn a_drain_tells_its_code_at_the_deadline(transport: Transport) {
    let (release, gate) = crossbeam_channel::bounded::<()>(0);
    let (spy, _) = spy(move |_, _| {
        let _ = gate.recv_timeout(WAIT);
    });
    let server = transport.serve(|s| s.workers(1), spy);
    let mut raw = Raw::open(server.addr);
    raw.write(&frame(0x81, b"this takes long"));
    let received = || server.handle.metrics().total.messages_received;
    until("the handler has it", || received() == 1);
    let deadline = Duration::from_millis(300);
    assert!(!server.handle.drain(over(Duration::ZERO, deadline)));
    assert_eq!(raw.close_code(), Some(1012));
    drop(release);
}

fn a_drain_can_be_hurried(transport: Transport) {
    for notice in [Duration::ZERO, Duration::from_secs(600)] {
        let server = transport.serve(|s| s, Healthy::default());
        let mut client = Raw::open(server.addr);
        let hour = Duration::from_secs(3600);
        let drain = Drain {
            notice,
            ..over(hour, hour)
        };
        let handle = server.handle.clone();
        thread::scope(|scope| {
            let ended = scope.spawn(move || handle.drain(drain));
            until("it begins", || server.handle.is_draining());
            if notice.is_zero() {
                until("nobody listens", || server.addr.refuses());
            }
            let shut = scope.spawn(|| server.handle.shutdown(WAIT));
            assert_eq!(client.close_code(), Some(1001));
            client.write(&frame(0x88, &1001_u16.to_be_bytes()));
            assert!(shut.join().unwrap() && ended.join().unwrap());
        });
    }
}

// ---- addresses ----

/// What can't be read is the caller's mistake; what can be read and not be had is told as it was given.
#[test]
fn what_is_no_address_is_a_mistake() {
    let mistaken = |result: framemill::Result<Server>, what: &str| match result {
        Err(Error::Config(why)) => assert!(why.contains(what), "{why}"),
        other => panic!("{what}: {other:?}"),
    };
    for addr in ["nonsense", "127.0.0.1", "1.2.3.4:99999", ""] {
        mistaken(Server::bind(addr), &format!("{addr:?}"));
        #[cfg(unix)]
        mistaken(
            Server::bind(framemill::ReusePort(addr)),
            &format!("{addr:?}"),
        );
    }
    let taken = Server::bind("127.0.0.1:0").unwrap();
    let addr = taken.handle().local_addrs().remove(0);
    let told = |result| match result {
        Err(Error::Bind { addr, .. }) => addr,
        other => panic!("{other:?}"),
    };
    assert_eq!(told(Server::bind(&addr)), addr);
    #[cfg(unix)]
    assert_eq!(told(Server::bind(framemill::ReusePort(&*addr))), addr);
    // A name that nobody has: the resolver's word, not a mistake.
    let unknown = "name.invalid:80";
    assert_eq!(told(Server::bind(unknown)), unknown);
    #[cfg(unix)]
    assert_eq!(told(Server::bind(framemill::ReusePort(unknown))), unknown);
}

// ---- ReusePort ----

#[cfg(unix)]
#[test]
fn listeners_of_each_loop_share_an_address() {
    use framemill::ReusePort;

    for workers in [0, 2] {
        let (spy, seen) = spy(|peer, message| {
            let _ = peer.send(message);
        });
        let settings = |s: Server| s.loops(4).workers(workers);
        let server = support::serve_on(ReusePort("127.0.0.1:0"), settings, spy);
        let mut open: Vec<_> = (0..200).map(|_| Raw::open(server.addr)).collect();
        let mut of_loop = [0; 4];
        for _ in &open {
            // `slot.loop.generation`
            let id = seen.peer().id().to_string();
            of_loop[id.split('.').nth(1).unwrap().parse::<usize>().unwrap()] += 1;
        }
        // Not in turn, which would be 50 each, but each some.
        assert!(
            of_loop.iter().all(|count| (10..150).contains(count)),
            "{of_loop:?}"
        );
        for raw in &mut open {
            raw.write(&frame(0x82, b"here"));
            assert_eq!(raw.frame().unwrap(), (0x82, b"here".to_vec()));
        }
        // A second server of this process takes its share of those that come now.
        let (other, _) = spied_on(ReusePort(server.addr.tcp()));
        assert_eq!(other.addr, server.addr);
        let _more: Vec<_> = (0..64).map(|_| Raw::open(server.addr)).collect();
        assert_eq!(
            server.handle.connections() + other.handle.connections(),
            264
        );
        assert!(other.handle.connections() > 0);

        drop(other);
        until("they are gone", || server.handle.connections() >= 200);
        let _again: Vec<_> = (0..16).map(|_| Raw::open(server.addr)).collect();
        // Who does not ask to share an address doesn't.
        assert!(Server::bind(server.addr.tcp()).is_err());
    }
}

#[cfg(unix)]
fn spied_on(listen: impl framemill::Listen) -> (Running, Seen) {
    let (spy, seen) = spy(|_, _| {});
    (support::serve_on(listen, |s| s, spy), seen)
}
