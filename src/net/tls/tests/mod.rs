//! Over real sockets, edge-triggered, and never going on without an event or `has_buffered`: what is
//! forgotten shows as a wait that ends in a panic.

mod closing;
mod cost;
mod hello;
mod identity;
mod rig;
mod transfer;
