//! Builds the programs that a comparison needs.

use std::{
    collections::HashMap,
    io::{Error, Result},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use serde_json::Value;

use crate::server::{Program, Server, built};

/// The folder of this crate.
pub(crate) fn bench() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

const FRAMEMILL: &str = "bench_server";
/// Not built, but found in the path.
const NODE: &str = "node";

/// Executables by name.
pub(crate) struct Programs(HashMap<String, PathBuf>);

impl Programs {
    /// Builds what `servers` need. Leaves out, saying so, what isn't there: framemill as long as it
    /// has no example to run, and servers in other languages that nobody fetched.
    pub(crate) fn build(servers: &[Server]) -> Result<Self> {
        println!("building load, limit, peer and uws");
        let own = ["load", "limit", "peer", "uws"].map(|name| ["--bin", name]);
        let own = own.as_flattened();
        let mut programs = cargo_build(&bench().join("Cargo.toml"), own)?;
        let framemill = |server: &Server| matches!(server.program, Program::Framemill { .. });
        if servers.iter().any(framemill) {
            let library = bench().join("..");
            let example = Path::new("examples").join(FRAMEMILL).with_extension("rs");
            if library.join(&example).exists() {
                println!("building framemill");
                let example = ["--example", FRAMEMILL, "--features", "tls"];
                programs.extend(cargo_build(&library.join("Cargo.toml"), &example)?);
            } else {
                println!("framemill is left out: there is no {}", example.display());
            }
        }
        for server in servers {
            if let Some(why) = server.program.missing() {
                println!("{} is left out: {why}", server.label);
            }
        }
        programs.insert(NODE.to_owned(), NODE.into());
        for server in servers {
            if let Program::Foreign(name) = server.program {
                programs.insert(name.to_owned(), built(name));
            }
        }
        Ok(Self(programs))
    }

    pub(crate) fn has(&self, program: &Program) -> bool {
        program.missing().is_none() && self.path(program).is_some()
    }

    pub(crate) fn path<'a>(&'a self, program: &'a Program) -> Option<&'a Path> {
        let name = match program {
            Program::Limit => "limit",
            Program::Framemill { .. } => FRAMEMILL,
            Program::Peer { .. } => "peer",
            Program::Uws => "uws",
            Program::Node => NODE,
            Program::Foreign(name) => name,
            Program::Other(path) => return Some(Path::new(path)),
        };
        self.0.get(name).map(PathBuf::as_path)
    }

    pub(crate) fn load(&self) -> &Path {
        &self.0["load"]
    }
}

/// Builds for release; cargo itself tells where the results are.
fn cargo_build(manifest: &Path, targets: &[&str]) -> Result<HashMap<String, PathBuf>> {
    let output = Command::new(std::env::var_os("CARGO").unwrap_or("cargo".into()))
        .args([
            "build",
            "--release",
            "--message-format",
            "json-render-diagnostics",
        ])
        .arg("--manifest-path")
        .arg(manifest)
        .args(targets)
        .stderr(Stdio::inherit())
        .output()?;
    if !output.status.success() {
        return Err(Error::other(format!(
            "cargo build {} failed",
            targets.join(" ")
        )));
    }
    let built: HashMap<String, PathBuf> = String::from_utf8_lossy(&output.stdout)
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .filter_map(|message| {
            let name = message["target"]["name"].as_str()?;
            Some((
                name.to_owned(),
                PathBuf::from(message["executable"].as_str()?),
            ))
        })
        .collect();
    Ok(built)
}
