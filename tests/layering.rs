//! Who may import whom (see the crate's `src`): arrows only go down, and into a folder only through
//! its `mod.rs`. A gentle reminder, by reading the sources as text.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

/// A module may import those of lower ranks and itself.
const RANKS: &[(u32, &[&str])] = &[
    (
        0,
        &[
            "addr", "guard", "id", "message", "network", "patterns", "sync",
        ],
    ),
    (1, &["config", "logging"]),
    (2, &["error", "history", "http", "metrics", "token_bucket"]),
    (3, &["backplane", "net", "proto", "worker"]),
    (4, &["link"]),
    (5, &["peer"]),
    (6, &["reactor"]),
    (7, &["client", "hub"]),
    (8, &["server"]),
    (9, &["internals"]),
];

/// Every source file under `dir`, by its path below `src`, without comments.
fn sources(dir: &Path, below: &str, into: &mut BTreeMap<String, String>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let name = format!("{below}{}", path.file_name().unwrap().to_str().unwrap());
        if path.is_dir() {
            sources(&path, &format!("{name}/"), into);
        } else if name.ends_with(".rs") {
            let text = fs::read_to_string(&path).unwrap();
            let lines = text
                .lines()
                .map(|line| line.split("//").next().unwrap_or_default());
            into.insert(name, lines.collect::<Vec<_>>().join("\n"));
        }
    }
}

/// The names that follow each `crate::` of `text`: `crate::a::b::C` gives `[a, b, C]`. Groups in
/// braces end a path, except right after `crate::`, which `use` statements here don't do.
fn paths(text: &str) -> impl Iterator<Item = Vec<&str>> {
    text.split("crate::").skip(1).map(|rest| {
        let word = |c: char| c.is_alphanumeric() || c == '_' || c == ':';
        let end = rest.find(|c| !word(c)).unwrap_or(rest.len());
        rest[..end]
            .split("::")
            .filter(|name| !name.is_empty())
            .collect()
    })
}

#[test]
fn arrows_go_down() {
    let mut files = BTreeMap::new();
    sources(
        &Path::new(env!("CARGO_MANIFEST_DIR")).join("src"),
        "",
        &mut files,
    );
    let rank: BTreeMap<&str, u32> = RANKS
        .iter()
        .flat_map(|(rank, names)| names.iter().map(|name| (*name, *rank)))
        .collect();
    let mut wrong = BTreeSet::new();
    for (file, text) in files.iter().filter(|(file, _)| *file != "lib.rs") {
        let from = file.split(['/', '.']).next().unwrap();
        let Some(own) = rank.get(from) else {
            wrong.insert(format!("{file}: {from} has no rank"));
            continue;
        };
        for path in paths(text) {
            let [to, inner @ ..] = &path[..] else {
                wrong.insert(format!("{file}: a path that this test can't read"));
                continue;
            };
            match rank.get(to) {
                _ if *to == from => continue,
                Some(other) if other < own => {}
                Some(other) => {
                    wrong.insert(format!("{file}, rank {own}: {to}, rank {other}"));
                }
                None => {
                    wrong.insert(format!("{file}: {to} has no rank"));
                }
            }
            // What `mod.rs` passes on is to be had from there.
            let facade = files.get(&format!("{to}/mod.rs")).map_or("", |text| text);
            if let Some(inner) = inner.first() {
                if facade.contains(&format!("use {inner}::")) {
                    wrong.insert(format!("{file}: {to}::{inner} instead of {to}"));
                }
            }
        }
    }
    assert!(files.len() > 20, "these are not the sources");
    assert!(wrong.is_empty(), "{wrong:#?}");
}
