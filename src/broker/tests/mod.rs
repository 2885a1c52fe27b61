//! The broker over real sockets, by raw packets.

mod delivery;
mod links;
mod sessions;
mod support;
