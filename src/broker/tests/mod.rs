//! The broker over real sockets, by raw packets.

mod delivery;
mod sessions;
mod support;
