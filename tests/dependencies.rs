//! What the crate promises to do without.

mod support;

use std::process::Command;

use support::needs::skipped;

/// Async runtimes, and what only serves them.
const RUNTIMES: &[&str] = &[
    "tokio",
    "async-std",
    "smol",
    "async-io",
    "async-executor",
    "futures",
];

/// With all features, no dependency is an async runtime or belongs to one.
#[test]
fn no_async_runtime() {
    let output = Command::new(env!("CARGO"))
        .args(["tree", "--offline", "--all-features", "--edges", "normal"])
        .args(["--prefix", "none", "--format", "{p}"])
        .args([
            "--manifest-path",
            concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml"),
        ])
        .output();
    let tree = match output {
        Ok(output) if output.status.success() => String::from_utf8(output.stdout).unwrap(),
        other => return skipped(format_args!("cargo tree could not run: {other:?}")),
    };
    let mut crates: Vec<_> = tree
        .lines()
        .filter_map(|line| line.split(' ').next())
        .collect();
    crates.sort_unstable();
    crates.dedup();
    assert!(
        crates.contains(&"framemill") && crates.contains(&"mio"),
        "{tree}"
    );
    for name in crates {
        let runtime = RUNTIMES.iter().find(|runtime| {
            let rest = name.strip_prefix(**runtime);
            rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('-'))
        });
        assert_eq!(runtime, None, "{name} is among the dependencies");
    }
}
