//! A remote MQTT broker, by the rumqttc crates (3.1.1 and 5), each behind a thin module with the same names.
//!
//! Two clients a link (R25): one publishes, one subscribes, so that acknowledgements never starve behind publishes. The
//! crate's poll loop is a task of its own, owned by the connection and ended with it. At QoS 1 the crate holds nothing
//! durable: the link's buffer is the only truth, so the publishing side starts clean each time; the subscribing side keeps
//! its session at the remote, which sends again what was not acknowledged. A link that publishes at QoS 2 has exchanges that outlive
//! connections and the process ([`exchanges`], [`kept`], [`written`]) and speaks to its remote itself ([`exact`], [`packets`]); so does one that subscribes with it
//! ([`arrivals`], [`exact_source`]).
//!
//! What this module must not know: the built-in broker, the buffer's form, other kinds.

mod arrivals;
mod client;
mod config;
mod dial;
mod exact;
mod exact_source;
mod exchanges;
mod kept;
mod packets;
mod sink;
mod source;
#[cfg(test)]
pub(super) mod tests;
mod v4;
mod v5;
mod websocket;
mod written;

pub use config::{Address, Config, Version};
pub use sink::{MqttSink, MqttSinkConnection};
pub use source::{MqttSource, MqttSourceConnection, MqttToken};
#[cfg(test)]
pub(super) use tests::hop;
