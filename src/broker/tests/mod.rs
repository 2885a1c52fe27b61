//! The broker over real sockets, by raw packets.

mod conformance;
mod delivery;
mod five;
mod links;
mod sessions;
mod shared;
mod support;
