//! A network namespace of its own for one process, with two links out of it, one of which can go down: real
//! packets that are really lost.

use std::process::{Command, Stdio};

use super::needs::{installed, not_allowed};

/// Gone after the test, with its links.
pub struct Namespace {
    pub name: String,
    /// The ends of the links here.
    links: [String; 2],
    subnet: u32,
}

impl Namespace {
    /// `None`: that takes `ip` and root.
    pub fn new() -> Option<Self> {
        installed("ip")?;
        let id = std::process::id();
        let this = Self {
            name: format!("framemill-{id}"),
            links: ["a", "b"].map(|end| format!("fm{id}{end}")),
            subnet: id % 256,
        };
        // A process of the same number may have been killed.
        this.remove();
        if !ip(&["netns", "add", &this.name]) {
            not_allowed("no network namespace without root");
            return None;
        }
        for n in [0, 1] {
            let (near, far) = (&this.links[n], format!("fm{id}{n}"));
            let link = [
                "link", "add", near, "type", "veth", "peer", "name", &far, "netns", &this.name,
            ];
            assert!(ip(&link));
            let (own, other) = (this.near(n) + "/30", this.far(n) + "/30");
            assert!(ip(&["addr", "add", &own, "dev", near]));
            assert!(ip(&["link", "set", near, "up"]));
            let inside = ["-n", &this.name];
            assert!(ip(
                &[&inside[..], &["addr", "add", &other, "dev", &far]].concat()
            ));
            assert!(ip(&[&inside[..], &["link", "set", &far, "up"]].concat()));
        }
        Some(this)
    }

    /// Of a link, the address here. In a range that is for tests of networks (RFC 2544).
    pub fn near(&self, link: usize) -> String {
        format!("198.18.{}.{}", self.subnet, 4 * link + 1)
    }

    /// The one inside.
    pub fn far(&self, link: usize) -> String {
        format!("198.18.{}.{}", self.subnet, 4 * link + 2)
    }

    /// The second link goes down, or comes up.
    pub fn set(&self, up: bool) {
        let state = if up { "up" } else { "down" };
        assert!(ip(&["link", "set", &self.links[1], state]));
    }

    fn remove(&self) {
        // Its links go with their ends inside, but not at once.
        for link in &self.links {
            ip(&["link", "del", link]);
        }
        ip(&["netns", "del", &self.name]);
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        self.remove();
    }
}

fn ip(args: &[&str]) -> bool {
    let Some(program) = installed("ip") else {
        return false;
    };
    let status = Command::new(program)
        .args(args)
        .stderr(Stdio::null())
        .status();
    status.is_ok_and(|status| status.success())
}
