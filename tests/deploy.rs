//! With what servers are deployed with: nginx, HAProxy and systemd, with the files of docs/deploy.
//!
//! What is not installed is skipped, with a word about it, unless `FRAMEMILL_INTEROP` is `required`.
#![cfg(target_os = "linux")]

mod support;

use std::fs;
use std::io::Write;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::time::Duration;

use framemill::{
    Accept, CloseCode, Drain, Handler, Message, Origin, Peer, ProxyProtocol, Request, Response,
    Server, ServerHandle, UnixSocket,
};
use socket2::{Domain, Socket, Type};
#[cfg(feature = "systemd")]
use support::example::first_line;
use support::example::run;
use support::folder::Folder;
use support::needs::installed;
use support::{Raw, Stream, WAIT, frame, request, until};

const FILES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/deploy");

/// One of docs/deploy, put into the folder with this in the place of that.
fn prepared(folder: &Folder, name: &str, changes: &[(&str, &str)]) -> String {
    let mut text = fs::read_to_string(Path::new(FILES).join(name)).unwrap();
    for (from, to) in changes {
        assert!(text.contains(from), "{name} has no {from}");
        text = text.replace(from, to);
    }
    fs::write(folder.file(name), text).unwrap();
    folder.file(name)
}

/// A program that ends with the test.
struct Program(Child);

impl Program {
    fn start(command: &mut Command) -> Self {
        Self(command.stdin(Stdio::null()).spawn().unwrap())
    }

    fn terminate(&self) {
        let id = self.0.id().to_string();
        assert!(
            Command::new("kill")
                .args(["-TERM", &id])
                .status()
                .unwrap()
                .success()
        );
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        if self.0.try_wait().unwrap().is_none() {
            // nginx and HAProxy end their workers when they are asked to.
            self.terminate();
            until("it has ended", || self.0.try_wait().unwrap().is_some());
        }
    }
}

/// A port that was free a moment ago: programs that can't be asked which they took need one.
fn free() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
}

/// Tells each client its address, and load balancers its health.
#[derive(Default)]
struct Tells(OnceLock<ServerHandle>);

impl Handler for Tells {
    type Session = ();

    fn start(&self, server: &ServerHandle) {
        let _ = self.0.set(server.clone());
    }

    fn open(&self, _: &Request, peer: &Peer) -> Result<Accept<()>, Response> {
        let _ = peer.send(peer.remote_addr().to_string());
        Ok(Accept::new(()))
    }

    fn message(&self, (): &mut (), peer: &Peer, message: Message) {
        let _ = peer.send(message);
    }

    fn http(&self, request: &Request) -> Response {
        match request.path() {
            "/health" => self.0.get().unwrap().health(),
            _ => Response::not_found(),
        }
    }
}

/// A server that ends with the test.
struct Served(ServerHandle);

impl Drop for Served {
    fn drop(&mut self) {
        self.0.shutdown(Duration::ZERO);
    }
}

/// A WebSocket through a proxy: what the server calls us, and the connection; `None` if the proxy has
/// no server (yet, or any more).
fn through(addr: SocketAddr, headers: &str) -> Option<(String, Raw)> {
    // From an address that nobody trusts.
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    let from: SocketAddr = "127.0.0.2:0".parse().unwrap();
    socket.bind(&from.into()).unwrap();
    socket.connect(&addr.into()).ok()?;
    let mut raw = Raw::over(Stream::Plain(socket.into()));
    raw.stream.set_read_timeout(Some(WAIT)).unwrap();
    let request = request(addr).replacen("\r\n", &format!("\r\n{headers}"), 1);
    raw.stream.write_all(request.as_bytes()).ok()?;
    if !raw.hears(WAIT) || !raw.begins(b"HTTP/1.1 101 ") {
        return None;
    }
    raw.head();
    let who = String::from_utf8(raw.frame().unwrap().1).unwrap();
    Some((who, raw))
}

fn echoes(raw: &mut Raw) {
    for len in [1, 1000, 100_000] {
        let payload = vec![b'x'; len];
        raw.write(&frame(0x82, &payload));
        assert_eq!(raw.frame().unwrap(), (0x82, payload));
    }
}

#[test]
fn nginx_over_a_unix_socket() {
    let Some(nginx) = installed("nginx") else {
        return;
    };
    let folder = Folder::new("deploy");
    let socket = format!("unix:{}", folder.file("app.sock"));
    // nginx may run its workers as somebody else.
    let server = Server::bind(UnixSocket(folder.file("app.sock"), 0o666))
        .unwrap()
        .trust_proxies(["unix"])
        .unwrap();
    // Origin is left at the same host.
    let _server = Served(server.start(Tells::default()).unwrap());
    let addr = free();
    let changes = [
        ("unix:/run/framemill.sock", &*socket),
        ("listen 80", &*format!("listen {addr}")),
    ];
    let site = prepared(&folder, "nginx.conf", &changes);
    let [temp, pid] = [folder.file("temp"), folder.file("pid")];
    let main = format!(
        "daemon off; pid {pid}; error_log stderr warn; events {{ worker_connections 64; }}\n\
         http {{ access_log off; client_body_temp_path {temp}; proxy_temp_path {temp}; \
         fastcgi_temp_path {temp}; uwsgi_temp_path {temp}; scgi_temp_path {temp}; include {site}; }}\n"
    );
    fs::write(folder.file("main.conf"), main).unwrap();
    let command = || {
        let mut command = Command::new(&nginx);
        command.args([
            "-p",
            &folder.file(""),
            "-e",
            "stderr",
            "-c",
            &folder.file("main.conf"),
        ]);
        command
    };
    let said = run(command().arg("-t"));
    assert!(
        said.contains("test is successful") && !said.contains("warn"),
        "{said}"
    );
    let _nginx = Program::start(&mut command());
    until("nginx listens", || TcpStream::connect(addr).is_ok());

    let (who, mut raw) = through(addr, "").unwrap();
    assert_eq!(who, "127.0.0.2:0");
    echoes(&mut raw);
    // What the client claims is only claimed.
    let spoofed = "X-Forwarded-For: 192.0.2.1\r\nForwarded: for=192.0.2.1\r\n";
    assert_eq!(through(addr, spoofed).unwrap().0, "127.0.0.2:0");
    let same_host = format!("Origin: http://{addr}\r\n");
    assert!(through(addr, &same_host).is_some());
    assert!(through(addr, "Origin: http://elsewhere\r\n").is_none());
    assert_eq!(support::get(addr, "/health").0, 200);
}

#[test]
fn haproxy_with_proxy_v2_and_a_drain() {
    let Some(haproxy) = installed("haproxy") else {
        return;
    };
    let folder = Folder::new("deploy");
    let server = Server::bind("127.0.0.1:0").unwrap().origin(Origin::Any);
    let server = server.trust_proxies(["127.0.0.1"]).unwrap().loops(2);
    let server = server.proxy_protocol(ProxyProtocol::Required);
    let served = Served(server.start(Tells::default()).unwrap());
    let behind = served.0.local_addr().unwrap();
    let addr = free();
    let changes = [
        ("bind :80", &*format!("bind {addr}")),
        ("127.0.0.1:9001", &*behind.to_string()),
        ("maxconn 100000", "maxconn 100"),
        ("inter 1s", "inter 100ms"),
    ];
    let file = prepared(&folder, "haproxy.cfg", &changes);
    run(Command::new(&haproxy).args(["-c", "-f", &file]));
    let _haproxy = Program::start(Command::new(&haproxy).args(["-db", "-q", "-f", &file]));
    until("haproxy has found the server", || {
        through(addr, "").is_some()
    });

    let (who, mut raw) = through(addr, "X-Forwarded-For: 192.0.2.1\r\n").unwrap();
    // Address and port: the PROXY header tells both.
    assert_eq!(who, raw.stream.tcp().local_addr().unwrap().to_string());
    echoes(&mut raw);

    // Its health checks notice a drain while the server still accepts, and send nobody there any more.
    let drain = Drain {
        code: CloseCode::Restart,
        notice: WAIT,
        spread: Duration::ZERO,
        deadline: 2 * WAIT,
    };
    std::thread::scope(|scope| {
        let handle = served.0.clone();
        let ended = scope.spawn(move || handle.drain(drain));
        until("haproxy has noticed", || through(addr, "").is_none());
        assert!(TcpStream::connect(behind).is_ok());
        echoes(&mut raw);
        let handle = served.0.clone();
        let hurried = scope.spawn(move || handle.shutdown(WAIT));
        assert_eq!(raw.close_code(), Some(1001));
        raw.write(&frame(0x88, &1001_u16.to_be_bytes()));
        assert!(hurried.join().unwrap() && ended.join().unwrap());
    });
}

/// With the line that it has for that.
#[cfg(feature = "tls")]
#[test]
fn haproxy_asks_through_tls() {
    let Some(haproxy) = installed("haproxy") else {
        return;
    };
    let folder = Folder::new("deploy");
    let server = Server::bind("127.0.0.1:0").unwrap();
    let server = server.trust_proxies(["127.0.0.1"]).unwrap();
    let server = server.proxy_protocol(ProxyProtocol::Required);
    let server = server.tls(support::tls::identity());
    let served = Served(server.start(Tells::default()).unwrap());
    let addr = free();
    let behind = served.0.local_addr().unwrap();
    let changes = [
        ("bind :80", &*format!("bind {addr}")),
        ("127.0.0.1:9001", &*behind.to_string()),
        ("maxconn 100000", "maxconn 100"),
        ("inter 1s", "inter 100ms"),
        ("# default-server check-ssl", "default-server check-ssl"),
    ];
    let file = prepared(&folder, "haproxy.cfg", &changes);
    run(Command::new(&haproxy).args(["-c", "-f", &file]));
    let _haproxy = Program::start(Command::new(&haproxy).args(["-db", "-q", "-f", &file]));
    // Until then it takes the server for healthy unasked, and after two checks that failed no more.
    let answered = || served.0.metrics().total.http_requests;
    until("haproxy has asked three times", || answered() >= 3);
    let mut raw = Raw::open(support::Addr::Tls(addr));
    let who = String::from_utf8(raw.frame().unwrap().1).unwrap();
    assert_eq!(who, raw.stream.tcp().local_addr().unwrap().to_string());
    echoes(&mut raw);
}

#[test]
fn the_units_are_sound() {
    let Some(analyze) = installed("systemd-analyze") else {
        return;
    };
    let folder = Folder::new("deploy");
    let service = prepared(
        &folder,
        "framemill.service",
        &[("/usr/local/bin/deployed", "/bin/true")],
    );
    let socket = prepared(&folder, "framemill.socket", &[]);
    let said = run(Command::new(analyze).args(["verify", "--man=no", &service, &socket]));
    assert!(!said.contains("framemill"), "{said}");
}

#[cfg(feature = "systemd")]
mod systemd {
    use std::os::linux::net::SocketAddrExt;
    use std::os::unix::net::{SocketAddr as UnixAddr, UnixDatagram, UnixStream};

    use super::*;

    /// The next thing that the service manager is told.
    fn told(manager: &UnixDatagram) -> String {
        manager.set_read_timeout(Some(WAIT)).unwrap();
        let mut buf = [0; 1024];
        let len = manager.recv(&mut buf).expect("it tells something");
        String::from_utf8(buf[..len].to_vec()).unwrap()
    }

    /// Through a Unix socket: what the server calls us.
    fn who(path: &str) -> (String, Raw) {
        let socket = UnixStream::connect(path).unwrap();
        socket.set_read_timeout(Some(WAIT)).unwrap();
        let mut raw = Raw::over(Stream::Unix(socket));
        raw.write(request("localhost").as_bytes());
        assert!(raw.head().starts_with("HTTP/1.1 101 "));
        (String::from_utf8(raw.frame().unwrap().1).unwrap(), raw)
    }

    #[test]
    fn sockets_are_handed_over_and_readiness_is_told() {
        let Some(activate) = installed("systemd-socket-activate") else {
            return;
        };
        let folder = Folder::new("deploy");
        let manager = UnixDatagram::bind(folder.file("notify")).unwrap();
        let (tcp, unix) = (free(), folder.file("app.sock"));
        let mut program = Program::start(
            Command::new(activate)
                .args(["-l", &tcp.to_string(), "-l", &unix])
                .args(["-E", &format!("NOTIFY_SOCKET={}", folder.file("notify"))])
                .arg(support::example::binary("deployed")),
        );
        // It is started by who comes first.
        until("systemd listens", || {
            Path::new(&unix).exists() && TcpStream::connect(tcp).is_ok()
        });
        assert_eq!(told(&manager), "READY=1");
        let (name, mut one) = who(&unix);
        assert!(name.starts_with("you are unix, "), "{name}");
        echoes(&mut one);
        let (_, mut two) = through(tcp, "").unwrap();
        echoes(&mut two);

        program.terminate();
        assert_eq!(told(&manager), "STOPPING=1");
        for raw in [&mut one, &mut two] {
            assert_eq!(raw.close_code(), Some(1012));
            raw.write(&frame(0x88, &1012_u16.to_be_bytes()));
        }
        until("it has ended", || program.0.try_wait().unwrap().is_some());
        assert!(Path::new(&unix).exists(), "the file is systemd's");
    }

    #[test]
    fn readiness_goes_to_abstract_sockets_too() {
        let name = format!("framemill-{}", std::process::id());
        let addr = UnixAddr::from_abstract_name(&name).unwrap();
        let manager = UnixDatagram::bind_addr(&addr).unwrap();
        let mut program = Program::start(
            Command::new(support::example::binary("deployed"))
                .arg("127.0.0.1:0")
                .env("NOTIFY_SOCKET", format!("@{name}"))
                .stdout(Stdio::null()),
        );
        assert_eq!(told(&manager), "READY=1");
        program.terminate();
        assert_eq!(told(&manager), "STOPPING=1");
        until("it has ended", || program.0.try_wait().unwrap().is_some());
    }

    /// The example on an address, and which that is.
    fn deployed(addr: &str) -> (Program, String) {
        let mut command = Command::new(support::example::binary("deployed"));
        let mut program = Program::start(command.arg(addr).stdout(Stdio::piped()));
        let line = first_line(program.0.stdout.take().unwrap()).expect("it says where it is");
        let addr = line.trim().rsplit(' ').next().unwrap().to_owned();
        (program, addr)
    }

    /// With its times as they are: it sends nobody there any more before nobody listens.
    #[test]
    fn haproxy_notices_the_end_in_time() {
        let Some(haproxy) = installed("haproxy") else {
            return;
        };
        let folder = Folder::new("deploy");
        let (mut server, behind) = deployed("127.0.0.1:0");
        let addr = free();
        let changes = [
            ("bind :80", &*format!("bind {addr}")),
            ("127.0.0.1:9001", &behind),
            ("maxconn 100000", "maxconn 100"),
        ];
        let file = prepared(&folder, "haproxy.cfg", &changes);
        let _haproxy = Program::start(Command::new(&haproxy).args(["-db", "-q", "-f", &file]));
        until("haproxy has found the server", || {
            through(addr, "").is_some()
        });
        let (who, mut raw) = through(addr, "").unwrap();
        let own = raw.stream.tcp().local_addr().unwrap();
        assert!(who.starts_with(&format!("you are {own}, ")), "{who}");
        server.terminate();
        until("haproxy has noticed", || through(addr, "").is_none());
        assert!(TcpStream::connect(behind).is_ok(), "it still listens");
        echoes(&mut raw);
        // Its end is of no interest here.
        server.0.kill().unwrap();
        server.0.wait().unwrap();
    }

    /// Two on one port, one of which is replaced while the other goes on.
    #[test]
    fn processes_share_a_port() {
        let (mut first, addr) = deployed("127.0.0.1:0");
        let (second, same) = deployed(&addr);
        assert_eq!(addr, same);
        let addr: SocketAddr = addr.parse().unwrap();
        let by = |program: &Program, who: &str| who.ends_with(&format!(" {}", program.0.id()));

        let open: Vec<_> = (0..64).map(|_| through(addr, "").unwrap()).collect();
        let by_first = open.iter().filter(|(who, _)| by(&first, who)).count();
        let by_second = open.iter().filter(|(who, _)| by(&second, who)).count();
        assert_eq!(by_first + by_second, 64);
        assert!((8..=56).contains(&by_first), "{by_first} of 64");

        first.terminate();
        for (who, mut raw) in open {
            if by(&first, &who) {
                assert_eq!(raw.close_code(), Some(1012));
            } else {
                echoes(&mut raw);
            }
        }
        until("the first has ended", || {
            first.0.try_wait().unwrap().is_some()
        });
        for _ in 0..16 {
            assert!(by(&second, &through(addr, "").unwrap().0));
        }
    }
}
