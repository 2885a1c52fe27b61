//! Settings of a remote MQTT broker.

use std::path::PathBuf;

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
    /// Host name or address.
    pub host: String,
    /// Default 1883, with TLS 8883.
    pub port: u16,
    /// `mqtts://`.
    pub tls: Option<Tls>,
    /// Default 5.
    pub version: Version,
    /// The highest QoS it is published with; default 1. A message is sent with the lower of this and 1 at least.
    pub qos: Qos,
    /// Default: `SITE-LINK`. Where both halves are used: `ID-out` and `ID-in` (R25).
    pub client_id: Option<String>,
    /// User name and password.
    pub login: Option<(String, String)>,
    /// Seconds. Default 30.
    pub keep_alive_s: u16,
    /// Largest packet, either way. Default 1 MiB (R3).
    pub max_packet_size: ByteSize,
}

/// TLS towards a remote: the web's roots, and an own CA where one is named.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tls {
    /// PEM file of an own authority; then only it is trusted.
    pub ca: Option<PathBuf>,
    /// Client certificate and key, PEM files.
    pub identity: Option<(PathBuf, PathBuf)>,
}

impl std::fmt::Debug for Config {
    /// Without the password.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Config")
            .field("host", &self.host)
            .field("port", &self.port)
            .field("version", &self.version)
            .field("client_id", &self.client_id)
            .field("user", &self.login.as_ref().map(|(user, _)| user))
            .finish_non_exhaustive()
    }
}
