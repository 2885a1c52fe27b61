//! Settings of a remote MQTT broker.

use std::path::PathBuf;
use std::time::Duration;

use crate::links::{Secret, Tls};
use crate::message::Qos;
use crate::units::ByteSize;

/// MQTT protocol version of a link (R25: 3.1 is for devices).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Version {
    /// 3.1.1.
    V4,
    /// 5.0.
    #[default]
    V5,
}

/// A remote MQTT broker.
#[derive(Clone, PartialEq, Eq)]
pub struct Config {
    /// At least one. The first is the home: others are for when it is not there.
    pub addresses: Vec<Address>,
    /// How often is looked whether the first address is back. Default 1 min.
    pub fail_back: Duration,
    /// For the addresses that ask for it; where one is named, only its own authority is trusted.
    pub tls: Tls,
    /// Default 5.
    pub version: Version,
    /// The highest QoS it is published with; default 1. A message is sent with the lower of this and 1 at least.
    pub qos: Qos,
    /// Default: `SITE-LINK`. Where both halves are used: `ID-out` and `ID-in` (R25).
    pub client_id: Option<String>,
    /// User name.
    pub user: Option<String>,
    /// Looked up at each connection.
    pub password: Secret,
    /// Where the link says `online` and `offline`, retained: the latter also as its will.
    pub state_topic: Option<String>,
    /// Seconds. Default 30.
    pub keep_alive_s: u16,
    /// Largest packet, either way. Default 1 MiB (R3).
    pub max_packet_size: ByteSize,
    /// Where its source keeps what is under way with QoS 2 (R25).
    pub arrivals: Option<PathBuf>,
}

/// One of a remote's addresses.
#[derive(Clone, PartialEq, Eq)]
pub struct Address {
    /// Host name or address, without brackets.
    pub host: String,
    /// Default 1883, with TLS 8883, over WebSocket 80 and 443.
    pub port: u16,
    /// `mqtts://`, `wss://`.
    pub tls: bool,
    /// `ws://`, `wss://`: the path.
    pub websocket: Option<String>,
}

impl std::fmt::Display for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { host, port, .. } = self;
        if host.contains(':') { write!(f, "[{host}]:{port}") } else { write!(f, "{host}:{port}") }
    }
}

impl std::fmt::Debug for Address {
    /// Without the query of its path, where a token may be.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { host, port, tls, websocket } = self;
        let websocket = websocket.as_deref().map(|path| match path.split_once('?') {
            Some((path, _)) => format!("{path}?***"),
            None => path.to_owned(),
        });
        f.debug_struct("Address")
            .field("host", host)
            .field("port", port)
            .field("tls", tls)
            .field("websocket", &websocket)
            .finish()
    }
}

impl Config {
    /// The same for another client, which announces nothing.
    #[must_use]
    pub fn as_client(&self, client_id: String) -> Self {
        Self { client_id: Some(client_id), state_topic: None, ..self.clone() }
    }
}

impl std::fmt::Debug for Config {
    /// Without the password.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Config")
            .field("addresses", &self.addresses)
            .field("version", &self.version)
            .field("client_id", &self.client_id)
            .field("user", &self.user)
            .finish_non_exhaustive()
    }
}
