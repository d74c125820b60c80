//! What a test needs that is not ours, and may not be here: then it is skipped, where everybody sees it. With
//! `FRAMEMILL_INTEROP=required` nothing that could be installed is skipped: what is not here is a failure.

use std::fmt::Display;
use std::io::Write;
use std::path::PathBuf;

/// A program, in `PATH` or where Debian has those of administrators. `None`: it is not here, and the test is
/// to be skipped.
pub fn installed(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let more = ["/usr/sbin", "/sbin"].map(PathBuf::from);
    let file = format!("{program}{}", std::env::consts::EXE_SUFFIX);
    let mut places = std::env::split_paths(&path)
        .chain(more)
        .map(|dir| dir.join(&file));
    let found = places.find(|place| place.is_file());
    if found.is_none() {
        skipped(format_args!("no {program}"));
    }
    found
}

/// Tells that the test that calls this, or a part of it, is skipped; or fails, if nothing is to be.
#[track_caller]
pub fn skipped(why: impl Display) {
    let required = std::env::var_os("FRAMEMILL_INTEROP").is_some_and(|it| it == "required");
    assert!(!required, "nothing is to be skipped: {why}");
    not_allowed(why);
}

/// The same for what the system itself does not let a test do, which nothing that can be installed mends:
/// that is no failure anywhere.
pub fn not_allowed(why: impl Display) {
    let thread = std::thread::current();
    let test = thread.name().unwrap_or("a test");
    // Not by `eprintln!`, which nobody sees of a test that passes.
    let _ = writeln!(std::io::stderr(), "skipped: {test}: {why}");
}
