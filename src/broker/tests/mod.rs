//! The broker over real sockets, by raw packets.

mod access;
mod bugs;
mod conformance;
mod delivery;
mod ended;
mod enhanced;
mod five;
mod hostile;
mod limits;
mod limits_each;
mod links;
mod memory;
mod model;
pub(super) mod pki;
mod sessions;
mod shared;
mod support;
mod sys;
mod tls;
mod transports;
mod websocket;
