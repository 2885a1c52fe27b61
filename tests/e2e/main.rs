//! What users do with a gateway, each a story: the real program, real brokers, real failures. One test binary, because each links every
//! client library.

#[cfg(test)]
#[path = "../support/mod.rs"]
mod support;

#[cfg(test)]
mod access;
#[cfg(test)]
mod batches;
#[cfg(test)]
mod blocked;
#[cfg(test)]
mod contract;
#[cfg(test)]
mod damage;
#[cfg(test)]
mod doctor;
#[cfg(test)]
mod drain;
#[cfg(test)]
mod exactly_once;
#[cfg(test)]
mod exchanges;
#[cfg(test)]
mod far_kafka;
#[cfg(test)]
mod far_mqtt;
#[cfg(test)]
mod far_rabbit;
#[cfg(test)]
mod folders;
#[cfg(test)]
mod gates;
#[cfg(test)]
mod identity;
#[cfg(test)]
mod inbound;
#[cfg(test)]
mod interop;
#[cfg(test)]
mod kills;
#[cfg(test)]
mod life;
#[cfg(test)]
mod memory;
#[cfg(test)]
mod mesh;
#[cfg(test)]
mod mirror;
#[cfg(test)]
mod mistakes;
#[cfg(test)]
mod outage;
#[cfg(test)]
mod paced;
#[cfg(test)]
mod paho;
#[cfg(test)]
mod power;
#[cfg(test)]
mod properties;
#[cfg(test)]
mod queues;
#[cfg(test)]
mod refusals;
#[cfg(test)]
mod reload;
#[cfg(test)]
mod reload_gates;
#[cfg(test)]
mod renames;
#[cfg(test)]
mod replay;
#[cfg(test)]
mod rumqttc;
#[cfg(test)]
mod sessions;
#[cfg(test)]
mod spill;
#[cfg(test)]
mod syscalls;
#[cfg(test)]
mod tools;
#[cfg(test)]
mod transports;
