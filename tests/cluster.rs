//! Several processes, a real Redis and a real load balancer: nodes are killed, Redis is restarted, wires are
//! cut in the middle of a stream of numbers, and every client ends with all of them, once, in order.
#![cfg(all(unix, feature = "redis"))]

mod support;

use std::fmt::Write as _;
use std::io::{Read, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use framemill::{
    Accept, Client, ClientEvent, CloseCode, Drain, Follow, Followed, Follower, Handler, History,
    Message, Peer, Reconnect, Request, Response, ServerHandle, Since,
};
use support::WAIT;
use support::browser;
use support::example::Example;
use support::folder::Folder;
#[cfg(target_os = "linux")]
use support::namespace::Namespace;
use support::needs::installed;
use support::redis::{Redis, Wire};
use support::{Running, serve_on, until};

const TOPIC: &str = "kept/numbers";
const NUMBERS: usize = 6000;

/// What may be on its way to the slowest client, so that the stream lasts as long as the test.
const AHEAD: usize = 500;

/// Chromium drops all that it is loading when a link of the machine comes or goes (`ERR_NETWORK_CHANGED`), so
/// the test that makes links and the one with a page take turns.
fn links() -> MutexGuard<'static, ()> {
    static LINKS: Mutex<()> = Mutex::new(());
    LINKS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A client that follows the numbers over all its connections.
struct Reader {
    got: Arc<AtomicUsize>,
    connections: Arc<AtomicUsize>,
    thread: JoinHandle<()>,
}

impl Reader {
    fn start(addr: &str) -> Self {
        let (got, connections) = (Arc::<AtomicUsize>::default(), Arc::<AtomicUsize>::default());
        let (counter, opened) = (got.clone(), connections.clone());
        let soon = Duration::from_millis(20);
        let client = Client::new(format!("ws://{addr}/")).unwrap();
        let client = client.reconnect(Reconnect::new().delays(soon, soon * 10));
        let (handle, events) = client.connect().unwrap();
        let thread = thread::spawn(move || {
            let mut follower = Follower::new();
            handle.send(follower.follow(TOPIC, Since::Start)).unwrap();
            while counter.load(Ordering::SeqCst) < NUMBERS {
                match events.recv_timeout(WAIT * 2).expect("something to come") {
                    ClientEvent::Open(..) => {
                        opened.fetch_add(1, Ordering::SeqCst);
                        for request in follower.requests() {
                            let _ = handle.send(request);
                        }
                    }
                    ClientEvent::Message(message) => match follower.take(message) {
                        Followed::Message { message, .. } => {
                            let expected = counter.load(Ordering::SeqCst);
                            assert_eq!(message.to_string(), expected.to_string());
                            counter.fetch_add(1, Ordering::SeqCst);
                        }
                        Followed::Live { .. } => {}
                        other => panic!("{other:?}"),
                    },
                    _ => {}
                }
            }
        });
        Self {
            got,
            connections,
            thread,
        }
    }

    fn got(&self) -> usize {
        self.got.load(Ordering::SeqCst)
    }
}

fn slowest(readers: &[Reader]) -> usize {
    readers.iter().map(Reader::got).min().unwrap()
}

/// Publishes all numbers by way of `source`, does `what` when a third of them has come, and waits until
/// all have come to all.
fn stream(source: &str, readers: Vec<Reader>, what: impl FnOnce(&[Reader])) {
    stream_as_far_as(&AtomicUsize::new(NUMBERS), source, readers, what);
}

/// The same, but no more numbers than there are allowed by then.
fn stream_as_far_as(
    allowed: &AtomicUsize,
    source: &str,
    readers: Vec<Reader>,
    what: impl FnOnce(&[Reader]),
) {
    let (handle, _events) = Client::new(format!("ws://{source}/"))
        .unwrap()
        .connect()
        .unwrap();
    let slow = || readers.iter().map(Reader::got).min().unwrap();
    thread::scope(|scope| {
        scope.spawn(|| {
            for n in 0..NUMBERS {
                until("the slowest has caught up", || {
                    n < allowed.load(Ordering::SeqCst).min(slow() + AHEAD)
                });
                handle.send(format!("publish {TOPIC}\n{n}")).unwrap();
            }
        });
        until("a third has come", || slow() > NUMBERS / 3);
        what(&readers);
    });
    for reader in readers {
        reader.thread.join().unwrap();
        assert_eq!(reader.got.load(Ordering::SeqCst), NUMBERS);
    }
}

fn start(redis: &str) -> Example {
    Example::start("cluster", &["--redis", redis])
}

/// A plain HTTP answer, head and all.
fn get(addr: &str, path: &str) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(addr)?;
    stream.set_read_timeout(Some(WAIT))?;
    write!(
        stream,
        "GET {path} HTTP/1.1\r\nHost: {addr}\r\nConnection: close\r\n\r\n"
    )?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

fn says(node: &Example, what: &str) -> bool {
    get(&node.addr, "/state").is_ok_and(|state| state.contains(what))
}

#[test]
fn a_node_is_killed() {
    let Some(redis) = Redis::start() else { return };
    let url = redis.url();
    let nodes = [start(&url), start(&url)];
    let victim = start(&url);
    let addr = victim.addr.clone();
    let mut readers: Vec<_> = nodes.iter().map(|n| Reader::start(&n.addr)).collect();
    readers.extend([Reader::start(&addr), Reader::start(&addr)]);
    stream(&nodes[0].addr, readers, |readers| {
        // kill -9
        drop(victim);
        until("the others go on", || {
            readers[..2]
                .iter()
                .all(|r| r.got() > readers[2].got() + 100)
        });
        let again = Example::start_on("cluster", &addr, &["--redis", &url]);
        until("its clients have caught up", || slowest(readers) == NUMBERS);
        assert!(readers[2].connections.load(Ordering::SeqCst) > 0);
        drop(again);
    });
}

#[test]
fn redis_is_restarted() {
    let Some(mut redis) = Redis::start() else {
        return;
    };
    let nodes = [start(&redis.url()), start(&redis.url())];
    let readers = nodes.iter().map(|n| Reader::start(&n.addr)).collect();
    stream(&nodes[0].addr, readers, |_| {
        redis.kill();
        until("it is missed", || {
            nodes.iter().all(|n| says(n, "\"connected\":false"))
        });
        redis.begin();
    });
    for node in &nodes {
        assert!(says(node, "\"lost\":0"));
    }
}

/// Whether those who publish are at the node that is cut off (1) or at the other (0): numbers are streamed
/// while it is.
fn cut_off(source: usize, nodes: &[Example; 2], cut: impl FnOnce(), mend: impl FnOnce()) {
    let readers = nodes.iter().map(|n| Reader::start(&n.addr)).collect();
    stream(&nodes[source].addr, readers, |readers| {
        cut();
        if source == 0 {
            until("the other goes on", || {
                readers[0].got() > readers[1].got() + 100
            });
        }
        until("it is missed", || says(&nodes[1], "\"connected\":false"));
        mend();
    });
}

#[test]
fn a_node_is_cut_off() {
    let Some(redis) = Redis::start() else { return };
    let wire = Wire::to(&redis);
    let nodes = [start(&redis.url()), start(&wire.url)];
    for source in [0, 1] {
        redis.ask("FLUSHALL");
        cut_off(source, &nodes, || wire.cut(), || wire.mend());
    }
}

/// By the kernel: its link to Redis goes down, and nobody is told.
#[cfg(target_os = "linux")]
#[test]
fn a_link_goes_down() {
    let Some(redis) = Redis::start() else { return };
    let _turn = links();
    let Some(net) = Namespace::new() else { return };
    let wire = Wire::on(&net.near(1), &redis);
    let addr = net.far(0) + ":0";
    let inside = Example::start_in(&net.name, "cluster", &addr, &["--redis", &wire.url]);
    let nodes = [start(&redis.url()), inside];
    for source in [0, 1] {
        redis.ask("FLUSHALL");
        cut_off(source, &nodes, || net.set(false), || net.set(true));
    }
}

/// The page of the example, and the script that it has from us.
#[test]
fn a_page_comes_back() {
    let _turn = links();
    let Some(redis) = Redis::start() else { return };
    let Some(browser) = browser::find("a page comes back") else {
        return;
    };
    let url = redis.url();
    let (other, victim) = (start(&url), start(&url));
    let (handle, _events) = Client::new(format!("ws://{}/", other.addr))
        .unwrap()
        .connect()
        .unwrap();
    let say = |text: &str| handle.send(format!("publish kept/page\n{text}")).unwrap();
    say("<b>one</b>");
    let mut page = browser.page();
    page.open(&victim.url("/"));
    let log = |expected: &str| {
        format!(
            "[...document.querySelectorAll('#log li')].map(li => li.textContent).join() == '{expected}'"
        )
    };
    page.until("it has what was said before", &log("<b>one</b>"));
    page.eval("text.value = 'two'; form.requestSubmit()");
    page.until("it hears itself", &log("<b>one</b>,two"));
    let addr = victim.addr.clone();
    drop(victim);
    page.until("it is alone", "state.textContent == 'waiting'");
    say("three");
    let again = Example::start_on("cluster", &addr, &["--redis", &url]);
    page.until("it has what it missed, once", &log("<b>one</b>,two,three"));
    say("four");
    page.until("it is live", &log("<b>one</b>,two,three,four"));
    page.eval("connection.close()");
    assert_eq!(
        page.eval("connection.offset('kept/page').split('-')[1] === '4'"),
        true
    );
    drop(again);
}

/// nginx in front of these nodes.
struct Nginx {
    child: Child,
    addr: String,
    _folder: Folder,
}

impl Nginx {
    fn start<'a>(nginx: &Path, nodes: impl IntoIterator<Item = &'a str>) -> Self {
        let folder = Folder::new("nginx");
        let path = folder.path().display();
        // nginx can't tell which port it was given.
        let addr = {
            let probe = TcpListener::bind("127.0.0.1:0").unwrap();
            probe.local_addr().unwrap().to_string()
        };
        let mut servers = String::new();
        for node in nodes {
            writeln!(servers, "server {node} max_fails=1 fail_timeout=1s;").unwrap();
        }
        let config = format!(
            "daemon off; worker_processes 1; pid {path}/pid; error_log stderr crit;
             events {{ worker_connections 256; }}
             http {{
                 access_log off;
                 client_body_temp_path {path}/1; proxy_temp_path {path}/2; fastcgi_temp_path {path}/3;
                 uwsgi_temp_path {path}/4; scgi_temp_path {path}/5;
                 map $http_upgrade $how {{ default upgrade; '' close; }}
                 upstream nodes {{ {servers} }}
                 server {{
                     listen {addr};
                     location / {{
                         proxy_pass http://nodes;
                         proxy_http_version 1.1;
                         proxy_set_header Upgrade $http_upgrade;
                         proxy_set_header Connection $how;
                         proxy_set_header Host $host;
                         proxy_read_timeout 1h;
                     }}
                 }}
             }}"
        );
        let file = folder.path().join("nginx.conf");
        std::fs::write(&file, config).unwrap();
        let child = Command::new(nginx)
            .arg("-c")
            .arg(&file)
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let nginx = Self {
            child,
            addr,
            _folder: folder,
        };
        until("nginx answers", || {
            get(&nginx.addr, "/health").is_ok_and(|answer| answer.contains("200 OK"))
        });
        nginx
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        // Its worker ends with it when asked; killed, it would leave it behind.
        let id = self.child.id().to_string();
        let _ = Command::new("kill").args(["-TERM", &id]).status();
        let begun = Instant::now();
        while begun.elapsed() < WAIT && matches!(self.child.try_wait(), Ok(None)) {
            thread::sleep(Duration::from_millis(5));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Clients that know one address only. Those of a node that dies land on others.
#[test]
fn behind_a_load_balancer() {
    let Some(redis) = Redis::start() else { return };
    let Some(nginx) = installed("nginx") else {
        return;
    };
    let url = redis.url();
    let mut nodes = vec![start(&url), start(&url), start(&url)];
    let nginx = Nginx::start(&nginx, nodes.iter().map(|node| &*node.addr));
    let readers = (0..6).map(|_| Reader::start(&nginx.addr)).collect();
    let victim = nodes.pop().unwrap();
    // Whoever asks is one of them.
    let has_clients =
        |state: &str| state.contains("\"connections\":") && !state.contains("\"connections\":1,");
    until("it has clients", || {
        get(&victim.addr, "/state").is_ok_and(|state| has_clients(&state))
    });
    stream(&nodes[0].addr.clone(), readers, |readers| {
        drop(victim);
        until("some have moved", || {
            readers
                .iter()
                .any(|r| r.connections.load(Ordering::SeqCst) > 0)
        });
    });
}

/// A node of this process, which can be told to drain.
struct Node(OnceLock<ServerHandle>);

impl Handler for Node {
    type Session = ();

    fn start(&self, server: &ServerHandle) {
        let _ = self.0.set(server.clone());
    }

    fn open(&self, _: &Request, _: &Peer) -> Result<Accept<()>, Response> {
        Ok(Accept::new(()))
    }

    fn message(&self, (): &mut (), peer: &Peer, message: Message) {
        if let Some(follow) = Follow::parse(&message) {
            assert!(peer.subscribe_from(&follow.topic, follow.since));
        }
    }

    fn http(&self, _: &Request) -> Response {
        self.0.get().unwrap().health()
    }
}

impl Node {
    fn start(addr: &str, redis: &str) -> Running {
        let redis = framemill::Redis::new(redis).unwrap();
        let keep = History::last(NUMBERS);
        let settings = |s: framemill::Server| s.backplane(redis).history("kept/*", keep);
        let node = serve_on(addr, settings, Self(OnceLock::new()));
        until("it is in the cluster", || {
            node.handle.backplane_state().connected
        });
        node
    }
}

/// One node after the other goes out of service behind the load balancer, and comes back, while numbers are
/// streamed. What a node itself has published before is not lost with it.
#[test]
fn a_rolling_restart() {
    const NODES: usize = 3;
    let Some(redis) = Redis::start() else { return };
    let Some(nginx) = installed("nginx") else {
        return;
    };
    let url = redis.url();
    let source = start(&url);
    let mut nodes: Vec<_> = (0..NODES)
        .map(|_| Node::start("127.0.0.1:0", &url))
        .collect();
    let addrs: Vec<_> = nodes.iter().map(|node| node.addr.to_string()).collect();
    let nginx = Nginx::start(&nginx, addrs.iter().map(String::as_str));
    let readers: Vec<_> = (0..2 * NODES).map(|_| Reader::start(&nginx.addr)).collect();
    until("each node has clients", || {
        nodes.iter().all(|node| node.handle.connections() > 0)
    });
    // So that there is something to stream during each.
    let part = NUMBERS / (NODES + 2);
    let allowed = AtomicUsize::new(2 * part);
    stream_as_far_as(&allowed, &source.addr, readers, |readers| {
        for (n, node) in nodes.iter_mut().enumerate() {
            allowed.fetch_add(part, Ordering::SeqCst);
            assert!(node.handle.publish("kept/page", n.to_string()));
            let calm = node.handle.drain(Drain {
                code: CloseCode::Restart,
                notice: Duration::from_millis(100),
                spread: Duration::from_millis(300),
                deadline: WAIT,
            });
            assert!(calm, "node {n} was cut off");
            *node = Node::start(&addrs[n], &url);
            until("the stream goes on", || slowest(readers) > (n + 2) * part);
        }
    });
    let mut follower = Follower::new();
    let (handle, events) = Client::new(format!("ws://{}/", nginx.addr))
        .unwrap()
        .connect()
        .unwrap();
    handle
        .send(follower.follow("kept/page", Since::Start))
        .unwrap();
    let mut said = Vec::new();
    while said.len() < NODES {
        if let ClientEvent::Message(message) = events.recv_timeout(WAIT).unwrap() {
            if let Followed::Message { message, .. } = follower.take(message) {
                said.push(message.to_string());
            }
        }
    }
    assert_eq!(said, ["0", "1", "2"]);
}
