//! Proof of the parts that need no sockets. What goes over them is in `served.rs`.

mod page;
mod rules;
mod snapshots;
mod words;
