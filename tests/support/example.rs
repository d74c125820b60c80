//! The examples as users run them: processes of their own.

use std::io::{BufRead, BufReader, Read};
use std::path::PathBuf;
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::thread;

use super::needs::installed;
use super::{WAIT, until};

/// A running example, which is killed when it is dropped.
pub struct Example {
    name: String,
    child: Child,
    /// `HOST:PORT`, the last word of the first line that it printed.
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
        Self::start_as(name, &[&["--addr", addr], args].concat())
    }

    /// The same with these arguments only.
    pub fn start_as(name: &str, args: &[&str]) -> Self {
        let mut command = Command::new(binary(name));
        command.args(args);
        Self::start_by(command, name)
    }

    /// Like [`start_on`](Self::start_on), in a network namespace.
    pub fn start_in(namespace: &str, name: &str, addr: &str, args: &[&str]) -> Self {
        let mut command = Command::new(installed("ip").expect("there is a namespace"));
        command.args(["netns", "exec", namespace]).arg(binary(name));
        command.args(["--addr", addr]).args(args);
        Self::start_by(command, name)
    }

    /// Starts `name` with these arguments only; whatever it prints after the first line finds nobody there.
    pub fn start_unheard(name: &str, args: &[&str]) -> Self {
        let mut command = Command::new(binary(name));
        command.args(args);
        Self::start_and_read(command, name, only_line)
    }

    fn start_by(command: Command, name: &str) -> Self {
        Self::start_and_read(command, name, first_line)
    }

    fn start_and_read(
        mut command: Command,
        name: &str,
        read: impl FnOnce(ChildStdout) -> Option<String>,
    ) -> Self {
        let mut child = command
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
        let line = read(out).unwrap_or_else(|| panic!("{name} does not say where it is"));
        let (_, addr) = line.rsplit_once(' ').expect(&line);
        example.addr = addr.trim_start_matches("http://").to_owned();
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

/// One that is an end in itself: it need not say where it is. Killed when it is dropped, if it has not ended.
pub struct Program {
    name: String,
    pub child: Child,
}

impl Program {
    /// What it says is thrown away.
    pub fn start(name: &str, args: &[&str], input: Stdio) -> Self {
        let mut command = Command::new(binary(name));
        command.args(args).stdin(input);
        command.stdout(Stdio::null()).stderr(Stdio::null());
        Self {
            name: name.to_owned(),
            child: command.spawn().unwrap(),
        }
    }

    /// Waits for its end.
    pub fn ends(mut self) -> ExitStatus {
        let mut status = None;
        until(&format!("{} has ended", self.name), || {
            status = self.child.try_wait().unwrap();
            status.is_some()
        });
        status.unwrap()
    }
}

impl Drop for Program {
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

/// Runs a program to its end; gives what it said. It must succeed.
pub fn run(command: &mut Command) -> String {
    let (status, said) = outcome(command);
    assert!(status.success(), "{said}");
    said
}

/// Runs a program to its end; gives what it said, however that was.
pub fn outcome(command: &mut Command) -> (ExitStatus, String) {
    command.stdin(Stdio::null());
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut program = Program {
        name: format!("{command:?}"),
        child: command.spawn().unwrap(),
    };
    let out = read(program.child.stdout.take());
    let err = read(program.child.stderr.take());
    let status = program.ends();
    (status, out.join().unwrap() + &err.join().unwrap())
}

/// All that comes, while the program runs: it must not have to wait for a reader.
fn read(from: Option<impl Read + Send + 'static>) -> thread::JoinHandle<String> {
    thread::spawn(move || {
        let mut all = Vec::new();
        from.unwrap().read_to_end(&mut all).unwrap();
        String::from_utf8_lossy(&all).into_owned()
    })
}

/// The first line, if it comes in time; the rest is read so that nobody has to wait for it.
pub fn first_line(out: ChildStdout) -> Option<String> {
    lines(out).recv_timeout(WAIT).ok()
}

/// The first line, if it comes in time; the program is not listened to any longer.
fn only_line(out: ChildStdout) -> Option<String> {
    let (sender, line) = mpsc::channel();
    thread::spawn(move || {
        let mut line = String::new();
        let _ = BufReader::new(out).read_line(&mut line);
        let _ = sender.send(line);
    });
    let line = line.recv_timeout(WAIT).ok()?;
    Some(line.trim_end().to_owned())
}

/// What a program says, line by line, so that a wait for it can be bounded. All is read, whether anybody wants it
/// or not.
pub fn lines(out: impl Read + Send + 'static) -> mpsc::Receiver<String> {
    let (sender, lines) = mpsc::channel();
    thread::spawn(move || {
        for line in BufReader::new(out).lines().map_while(Result::ok) {
            let _ = sender.send(line);
        }
    });
    lines
}
