//! The backplane of a server that is alone.

use std::sync::Weak;
use std::time::Instant;

use super::{Backplane, BackplaneState, Node, Post};
use crate::error::Result;

/// No other nodes: topics are this server's own. The default; it costs nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct Local;

impl Backplane for Local {
    fn start(&self, _: Weak<dyn Node>) -> Result<()> {
        Ok(())
    }

    fn subscribe(&self, _: &str) {}

    fn unsubscribe(&self, _: &str) {}

    fn publish(&self, _: Post) {}

    fn state(&self) -> BackplaneState {
        BackplaneState::default()
    }

    fn stop(&self, _: Instant) {}
}
