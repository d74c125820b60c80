//! What a process has used of the machine: CPU time and resident memory.

use std::{
    fs,
    io::{Error, Result},
    time::Duration,
};

/// CPU time (user and system) of all threads of a process, to the nanosecond.
///
/// The process's own clock rather than `utime` and `stime` of /proc/PID/stat, which are the same in
/// steps of 10 ms. It needs no more rights than those.
pub fn cpu_time(pid: u32) -> Result<Duration> {
    let mut clock = 0;
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: both calls only write to the place they are given.
    let failure = unsafe {
        match libc::clock_getcpuclockid(pid.cast_signed(), &mut clock) {
            0 => libc::clock_gettime(clock, &mut time),
            error => error,
        }
    };
    match failure {
        0 => Ok(Duration::new(time.tv_sec as u64, time.tv_nsec as u32)),
        _ => Err(Error::other(format!(
            "no CPU clock of process {pid}: has it ended?"
        ))),
    }
}

/// Resident memory (VmRSS) in bytes.
pub fn resident(pid: u32) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))
        .and_then(|value| value.trim().strip_suffix(" kB")?.parse::<u64>().ok())
        .map(|kib| kib * 1024)
        .ok_or_else(|| Error::other(format!("process {pid} has no VmRSS: has it ended?")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_uses_both() {
        let pid = std::process::id();
        let before = cpu_time(pid).unwrap();
        while cpu_time(pid).unwrap() - before < Duration::from_millis(1) {}
        assert!(resident(pid).unwrap() > 4096);
    }

    #[test]
    fn a_process_that_is_gone_is_an_error() {
        let mut child = std::process::Command::new("true").spawn().unwrap();
        child.wait().unwrap();
        assert!(cpu_time(child.id()).is_err());
        assert!(resident(child.id()).is_err());
    }
}
