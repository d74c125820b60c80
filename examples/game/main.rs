//! A game.
#![allow(clippy::print_stdout, dead_code)]

mod interest;
mod picture;
mod ship;
mod snapshot;
#[cfg(test)]
mod tests;
mod wire;
mod world;

fn main() {}
