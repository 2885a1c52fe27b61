//! The words that tests are written in: a [`gateway`] as a real process, [`client`]s with an exact account, real [`remote`]
//! brokers, a [`proxy`] that breaks connections, [`disk`]s that are full, [`dice`] that fall again as they did, and a [`ledger`] that compares what was acknowledged with
//! what arrived. Nothing here waits for time to pass: [`wait`] polls for a state under a deadline, and is the only place that does.

pub(crate) mod client;
pub(crate) mod dice;
pub(crate) mod disk;
pub(crate) mod gateway;
pub(crate) mod http;
pub(crate) mod ledger;
#[path = "../../src/broker/tests/pki.rs"]
pub(crate) mod pki;
pub(crate) mod process;
pub(crate) mod proxy;
pub(crate) mod remote;
pub(crate) mod server;
pub(crate) mod wait;
