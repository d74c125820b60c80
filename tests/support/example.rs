//! The examples as users run them: processes of their own.

use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::thread;

use super::{WAIT, until};

/// A running example, which is killed when it is dropped.
pub struct Example {
    name: String,
    child: Child,
    /// `HOST:PORT`, from the first line that it printed.
    pub addr: String,
}

impl Example {
    /// Starts `name` on a free port.
    pub fn start(name: &str, args: &[&str]) -> Self {
        Self::start_on(name, "127.0.0.1:0", args)
    }

    /// Starts `name` with `--addr ADDR` and what else is given, and waits for the line that says
    /// where it listens. Whatever else it prints is thrown away.
    pub fn start_on(name: &str, addr: &str, args: &[&str]) -> Self {
        Self::start_by(Command::new(binary(name)), name, addr, args)
    }

    /// The same in a network namespace.
    pub fn start_in(namespace: &str, name: &str, addr: &str, args: &[&str]) -> Self {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", namespace]).arg(binary(name));
        Self::start_by(command, name, addr, args)
    }

    fn start_by(mut command: Command, name: &str, addr: &str, args: &[&str]) -> Self {
        let mut child = command
            .args(["--addr", addr])
            .args(args)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let out = child.stdout.take().unwrap();
        let mut example = Self {
            name: name.to_owned(),
            child,
            addr: String::new(),
        };
        let line = first_line(out).unwrap_or_else(|| panic!("{name} does not say where it is"));
        let (_, addr) = line.rsplit_once("http://").expect(&line);
        example.addr = addr.trim().to_owned();
        example
    }

    /// Where its page is; `path` begins with a slash.
    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.addr)
    }

    /// The process.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Asks it to stop (SIGTERM), and waits for its end.
    pub fn stop(mut self) -> ExitStatus {
        let id = self.child.id().to_string();
        let kill = Command::new("kill").args(["-TERM", &id]).status();
        assert!(kill.unwrap().success());
        let mut status = None;
        until(&format!("{} has ended", self.name), || {
            status = self.child.try_wait().unwrap();
            status.is_some()
        });
        status.unwrap()
    }
}

impl Drop for Example {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Cargo builds the examples before it runs all tests, into the folder beside the tests' own.
pub fn binary(name: &str) -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let profile = test.ancestors().nth(2).unwrap();
    let binary = profile.join("examples").join(name);
    assert!(
        binary.exists(),
        "there is no {}: build it with `cargo build --example {name}`",
        binary.display()
    );
    binary
}

/// The first line, if it comes in time; the rest is read so that nobody has to wait for it.
fn first_line(out: ChildStdout) -> Option<String> {
    let (sender, line) = mpsc::channel();
    thread::spawn(move || {
        for line in BufReader::new(out).lines().map_while(Result::ok) {
            let _ = sender.send(line);
        }
    });
    line.recv_timeout(WAIT).ok()
}
