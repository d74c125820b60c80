//! Proof, part by part; `served.rs` is about all of it together.

mod page;
mod rules;
mod served;
mod snapshots;
mod words;
