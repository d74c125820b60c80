//! A real Redis for one test, and a wire to it that can be cut.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use super::folder::Folder;
use super::needs::installed;
use super::{lock, until};

/// A Redis that keeps what it has over a restart, on a Unix socket of its own.
pub struct Redis {
    program: PathBuf,
    folder: Folder,
    child: Option<Child>,
}

impl Redis {
    /// `None`: it is not here.
    pub fn start() -> Option<Self> {
        let mut redis = Self {
            program: installed("redis-server")?,
            folder: Folder::new("redis"),
            child: None,
        };
        redis.begin();
        Some(redis)
    }

    fn socket(&self) -> PathBuf {
        self.folder.path().join("redis.sock")
    }

    pub fn url(&self) -> String {
        format!("unix://{}", self.socket().display())
    }

    /// Starts it (again).
    pub fn begin(&mut self) {
        let _ = std::fs::remove_file(self.socket());
        let child = Command::new(&self.program)
            .args([
                "--port",
                "0",
                "--save",
                "",
                "--appendonly",
                "yes",
                "--appendfsync",
                "always",
            ])
            .arg("--unixsocket")
            .arg(self.socket())
            .arg("--dir")
            .arg(self.folder.path())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        self.child = Some(child);
        until("Redis answers", || self.ask("PING") == Some("+PONG".into()));
    }

    /// `kill -9`.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    /// The first line of the answer.
    pub fn ask(&self, command: &str) -> Option<String> {
        let mut stream = std::os::unix::net::UnixStream::connect(self.socket()).ok()?;
        stream.set_read_timeout(Some(super::WAIT)).ok()?;
        stream.write_all(command.as_bytes()).ok()?;
        stream.write_all(b"\r\n").ok()?;
        let (mut line, mut byte) = (Vec::new(), [0]);
        while !line.ends_with(b"\r\n") {
            stream.read_exact(&mut byte).ok()?;
            line.push(byte[0]);
        }
        Some(String::from_utf8_lossy(&line).trim().to_owned())
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A TCP port whose connections end at a Redis, until it is cut: then nothing passes, nothing ends, and
/// new connections are taken and left alone, as when packets are lost.
pub struct Wire {
    pub url: String,
    cut: Arc<AtomicBool>,
    ends: Arc<Mutex<Vec<TcpStream>>>,
}

impl Wire {
    pub fn to(redis: &Redis) -> Self {
        Self::on("127.0.0.1", redis)
    }

    /// One that begins at this address.
    pub fn on(address: &str, redis: &Redis) -> Self {
        let listener = TcpListener::bind((address, 0)).unwrap();
        let wire = Self {
            url: format!("redis://{}/", listener.local_addr().unwrap()),
            cut: Arc::default(),
            ends: Arc::default(),
        };
        let (cut, ends, socket) = (wire.cut.clone(), wire.ends.clone(), redis.socket());
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                lock(&ends).push(stream.try_clone().unwrap());
                if cut.load(Ordering::SeqCst) {
                    continue;
                }
                let Ok(far) = std::os::unix::net::UnixStream::connect(&socket) else {
                    let _ = stream.shutdown(Shutdown::Both);
                    continue;
                };
                let (near, far_too) = (stream.try_clone().unwrap(), far.try_clone().unwrap());
                let (one, other) = (cut.clone(), cut.clone());
                thread::spawn(move || pass(stream, far, &one));
                thread::spawn(move || pass(far_too, near, &other));
            }
        });
        wire
    }

    pub fn cut(&self) {
        self.cut.store(true, Ordering::SeqCst);
    }

    /// What was connected before stays dead, and is told so now.
    pub fn mend(&self) {
        self.cut.store(false, Ordering::SeqCst);
        for end in lock(&self.ends).drain(..) {
            let _ = end.shutdown(Shutdown::Both);
        }
    }
}

/// What has been read is passed on, or thrown away if the wire is cut by then.
fn pass(mut from: impl Read, mut to: impl Write, cut: &AtomicBool) {
    let mut chunk = [0; 16 << 10];
    while let Ok(len @ 1..) = from.read(&mut chunk) {
        if cut.load(Ordering::SeqCst) {
            // For good: half of what was said would not be understood later.
            while matches!(from.read(&mut chunk), Ok(1..)) {}
            return;
        }
        if to.write_all(&chunk[..len]).is_err() {
            return;
        }
    }
}

/// Waits for so long that nothing more is to be expected.
pub const QUIET: Duration = Duration::from_millis(200);
