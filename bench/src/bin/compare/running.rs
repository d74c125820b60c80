//! A running server, and programs on cores of their own.

use std::{
    fs,
    io::{self, BufRead, BufReader, Error, Result},
    os::unix::process::{CommandExt, ExitStatusExt},
    path::Path,
    process::{Child, Command, ExitStatus, Stdio},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use rustix::process::{
    Pid, Signal, kill_process, set_parent_process_death_signal, setpriority_process, setsid,
};

/// For a server to print its address, and to end when told to.
const PATIENCE: Duration = Duration::from_secs(10);

/// A server that is up. Dropped, it is killed.
pub(crate) struct Running {
    child: Child,
    pub(crate) addr: String,
}

impl Running {
    pub(crate) fn start(program: &Path, arguments: &[String], cores: Cores) -> Result<Self> {
        let mut child = spawn(cores, program, arguments)?;
        let stdout = BufReader::new(child.stdout.take().expect("is piped"));
        // Made before anything can fail, so that no failure leaves the child behind.
        let mut running = Self {
            child,
            addr: String::new(),
        };
        let (said, says) = mpsc::channel();
        thread::spawn(move || {
            for line in stdout.lines().map_while(io::Result::ok) {
                // Nobody listens after the first. Still all has to be read, or the server would
                // break at a closed pipe.
                let _ = said.send(line);
            }
        });
        let line = says
            .recv_timeout(PATIENCE)
            .map_err(|_| match running.child.try_wait() {
                Ok(Some(status)) => Error::other(format!("did not start: {status}")),
                _ => Error::other("printed no address"),
            })?;
        let addr = line.strip_prefix("listening on ");
        running.addr = addr
            .ok_or_else(|| Error::other(format!("printed {line:?}")))?
            .to_owned();
        Ok(running)
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Ends it by SIGTERM. An error if it does not end, or had ended before in some other way.
    pub(crate) fn stop(mut self) -> Result<()> {
        if let Some(status) = self.child.try_wait()? {
            return Err(Error::other(format!("ended by itself: {status}")));
        }
        kill_process(Pid::from_child(&self.child), Signal::TERM)?;
        match wait(&mut self.child, PATIENCE)? {
            None => Err(Error::other("did not end on SIGTERM")),
            Some(status) if status.success() || status.signal() == Some(Signal::TERM.as_raw()) => {
                Ok(())
            }
            Some(status) => Err(Error::other(format!("ended badly on SIGTERM: {status}"))),
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Where a program runs.
#[derive(Clone, Copy)]
pub(crate) struct Cores {
    pub(crate) cpu: u32,
    /// Or there, as the kernel likes.
    pub(crate) or: Option<u32>,
    /// Before all else that wants to run there.
    pub(crate) boost: bool,
}

/// Starts a program on its cores, to live no longer than this process. Its stdout is piped.
pub(crate) fn spawn(cores: Cores, program: &Path, arguments: &[String]) -> Result<Child> {
    let list = match cores.or {
        Some(or) => format!("{},{or}", cores.cpu),
        None => cores.cpu.to_string(),
    };
    let mut command = Command::new("taskset");
    command.arg("-c").arg(list).arg(program).args(arguments);
    command.stdin(Stdio::null()).stdout(Stdio::piped());
    let prepare = move || {
        set_parent_process_death_signal(Some(Signal::KILL))?;
        if cores.boost {
            setsid()?;
            setpriority_process(None, -20)?;
        }
        Ok(())
    };
    // SAFETY: between fork and exec only what is async-signal-safe may be called: system calls are.
    unsafe { command.pre_exec(prepare) };
    let child = command.spawn()?;
    if cores.boost {
        // Where Linux shares the cores between sessions first, the priority of a process only
        // counts within its session. Where it does not, there is no such file.
        let _ = fs::write(format!("/proc/{}/autogroup", child.id()), "-20");
    }
    Ok(child)
}

/// `None` if it still runs after `patience`.
pub(crate) fn wait(child: &mut Child, patience: Duration) -> Result<Option<ExitStatus>> {
    let end = Instant::now() + patience;
    loop {
        match child.try_wait()? {
            None if Instant::now() < end => thread::sleep(Duration::from_millis(10)),
            status => return Ok(status),
        }
    }
}
