//! Settings of the built-in broker.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::auth;
use super::limits::{ListenerLimits, UserLimits};
use super::session::Window;
use super::transport::{AlternativeName, Network, PeerCertificate};
use crate::topic::TopicFilter;
use crate::units::ByteSize;

/// The built-in broker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// At least one.
    pub listeners: Vec<Listener>,
    /// Default 1 MiB (R3).
    pub max_packet_size: ByteSize,
    /// What the broker takes unacknowledged from a client (MQTT 5 Receive Maximum). Default 1,024.
    pub receive_maximum: u16,
    /// What it sends unacknowledged to a client at most. Default 256.
    pub in_flight: u16,
    /// Their bytes: what a client that never acknowledges costs in memory. One message more may be in flight. Default 8 MiB.
    pub in_flight_bytes: ByteSize,
    /// The longest session expiry granted; also what a 3.1.1 client with `clean_session: false` gets. Default 7 days.
    pub session_expiry_max: Duration,
    /// Messages owed to one offline session at most; beyond it the oldest is dropped, counted. Default 100,000.
    pub session_messages_max: u64,
    /// Their bytes at most, each message with its topic and properties and 128 bytes for itself; likewise. Default 1 GiB.
    pub session_bytes_max: ByteSize,
    /// Retained messages at most. Default 100,000.
    pub retained_messages_max: u64,
    /// Their bytes at most, counted as above, and with what the tree of their topics takes. Default in `routes.yaml`: an eighth of
    /// `max_memory`, at most 256 MiB.
    pub retained_bytes_max: ByteSize,
    /// A client that has not sent CONNECT after this is closed. Default 10 s.
    pub connect_timeout: Duration,
    /// Clients that are connected at most. Default 10,000.
    pub connections_max: usize,
    /// Sessions that are kept, connected or not, at most. Default 50,000.
    pub sessions_max: usize,
    /// Connections of one listener that have not come so far, at most. Default 4,000.
    pub handshakes_max: usize,
    /// The longest keep-alive of an MQTT 5 client: one that asks for more, or for none, is told this one (Server Keep Alive).
    /// Default: whatever the client asks for.
    pub keep_alive_max: Option<Duration>,
    /// Where MQTT 5 clients are sent when this broker stops or cannot take them (Server Reference). Default: nowhere.
    pub server_reference: Option<Box<str>>,
    /// How often the figures below `$SYS/broker/` are published; zero: never. Default 10 s, as Mosquitto.
    pub sys_interval: Duration,
    /// Who may come in, and what they may do. Default: nobody is asked, and everything is allowed.
    pub auth: auth::Config,
    /// What no client may subscribe to, nor gets by a wider subscription. Default: nothing.
    pub deny_subscribe: Vec<TopicFilter>,
    /// What users may take; the first that fits counts. Default: as much as all others.
    pub limits: Vec<Arc<UserLimits>>,
}

impl Config {
    /// Whether some listener takes users from certificates, so that a name must never be taken on trust.
    pub(super) fn names_count(&self) -> bool {
        self.listeners.iter().any(|listener| listener.certificate_user.is_some())
    }

    /// What may be in flight to a client.
    pub(super) fn window(&self) -> Window {
        let bytes = usize::try_from(self.in_flight_bytes.0).unwrap_or(usize::MAX);
        Window { messages: usize::from(self.in_flight), bytes }
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            listeners: vec![Listener { anonymous: true, ..Listener::tcp(SocketAddr::from(([127, 0, 0, 1], 1883))) }],
            max_packet_size: ByteSize(1 << 20),
            receive_maximum: 1_024,
            in_flight: 256,
            in_flight_bytes: ByteSize(8 << 20),
            session_expiry_max: Duration::from_secs(7 * 86_400),
            session_messages_max: 100_000,
            session_bytes_max: ByteSize(1 << 30),
            retained_messages_max: 100_000,
            retained_bytes_max: ByteSize(256 << 20),
            connect_timeout: Duration::from_secs(10),
            connections_max: 10_000,
            sessions_max: 50_000,
            handshakes_max: 4_000,
            keep_alive_max: None,
            server_reference: None,
            sys_interval: Duration::from_secs(10),
            auth: auth::Config::default(),
            deny_subscribe: Vec::new(),
            limits: Vec::new(),
        }
    }
}

/// Where clients come in, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listener {
    /// Where.
    pub bind: Bind,
    /// Clients without a login are let in. Those that show one are checked all the same, where there is something to check it by.
    pub anonymous: bool,
    /// What its clients may take.
    pub limits: ListenerLimits,
    /// What of a client's certificate is its user. Default: nothing, it logs in besides.
    pub certificate_user: Option<CertificateUser>,
    /// TLS, and whose certificates clients may show.
    pub tls: Option<TlsConfig>,
    /// MQTT over WebSocket.
    pub websocket: Option<WebSocketTerms>,
    /// A proxy stands before it, and each connection begins with its header (PROXY protocol 1 or 2).
    pub proxy_protocol: Option<ProxyTerms>,
}

impl Listener {
    /// Plain TCP, and no client without a login.
    #[must_use]
    pub const fn tcp(address: SocketAddr) -> Self {
        let limits = ListenerLimits::unlimited();
        Self {
            bind: Bind::Tcp(address),
            anonymous: false,
            limits,
            certificate_user: None,
            tls: None,
            websocket: None,
            proxy_protocol: None,
        }
    }
}

impl Listener {
    /// What lies between the socket and MQTT, from below: `proxy`, `tls`, `websocket`.
    #[must_use]
    pub fn layers(&self) -> Vec<&'static str> {
        let layers = [
            (self.proxy_protocol.is_some(), "proxy"),
            (self.tls.is_some(), "tls"),
            (self.websocket.is_some(), "websocket"),
        ];
        layers.into_iter().filter_map(|(is_there, name)| is_there.then_some(name)).collect()
    }
}

/// `0.0.0.0:8884 (tls, websocket)`.
impl fmt::Display for Listener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let layers = self.layers();
        write!(f, "{}", self.bind)?;
        if layers.is_empty() { Ok(()) } else { write!(f, " ({})", layers.join(", ")) }
    }
}

/// The part of a client's certificate that names its user.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CertificateUser {
    /// The subject's common name (Mosquitto: `use_identity_as_username`).
    CommonName,
    /// The first subject alternative name.
    AlternativeName,
    /// The whole subject, as RFC 4514 writes it (Mosquitto: `use_subject_as_username`).
    Subject,
}

impl CertificateUser {
    /// The user; `None`: that part is not there.
    #[must_use]
    pub fn of(self, certificate: &PeerCertificate) -> Option<String> {
        let name = match self {
            Self::CommonName => certificate.common_name.as_deref().map(str::to_owned),
            Self::AlternativeName => certificate.alternative_names.first().map(|name| match name {
                AlternativeName::Dns(name) | AlternativeName::Email(name) | AlternativeName::Uri(name) => {
                    name.to_string()
                }
                AlternativeName::Ip(address) => address.to_string(),
            }),
            Self::Subject => Some(certificate.subject.to_string()),
        };
        name.filter(|name| !name.is_empty())
    }
}

/// TLS of a listener. The files are PEM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsConfig {
    /// The server's certificate, and those between it and its authority.
    pub cert: PathBuf,
    /// Its private key.
    pub key: PathBuf,
    /// Authorities of clients' certificates. Without it none is asked for.
    pub client_ca: Option<PathBuf>,
    /// Revocation lists of these authorities.
    pub crl: Option<PathBuf>,
    /// Whether a client has to show one. Default: it has to.
    pub client_cert: ClientCert,
    /// Default: 1.2 and 1.3.
    pub versions: TlsVersions,
}

/// What a client without a certificate is told.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ClientCert {
    /// It is refused.
    #[default]
    Required,
    /// It is let in, and may log in by other means. A certificate that does not verify is refused all the same.
    Optional,
}

/// Versions of TLS that are spoken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TlsVersions {
    /// 1.2 and 1.3.
    #[default]
    From12,
    /// 1.3.
    Only13,
}

/// What a WebSocket's request has to say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WebSocketTerms {
    /// Its path; `None`: any.
    pub path: Option<Box<str>>,
    /// Of which pages a browser may connect, as its `Origin` header has it; none: of all.
    pub origins: Vec<Box<str>>,
}

/// Whose word is taken for where a client comes from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ProxyTerms {
    /// Where the proxies are; none: whoever reaches the listener is taken for one.
    pub from: Vec<Network>,
}

impl ProxyTerms {
    /// Whether a header from `address` is believed. `None`: a Unix socket, whose permissions say who reaches it.
    #[must_use]
    pub fn trusts(&self, address: Option<IpAddr>) -> bool {
        let Some(address) = address.filter(|_| !self.from.is_empty()) else { return true };
        self.from.iter().any(|network| network.contains(address))
    }

    /// Whether it leaves nobody out.
    #[must_use]
    pub fn trusts_everyone(&self) -> bool {
        self.from.is_empty() || self.from.iter().any(|network| network.is_everything())
    }
}

/// An address to listen on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Bind {
    /// Port 0: a free one.
    Tcp(SocketAddr),
    /// `unix:PATH`.
    Unix {
        /// The socket's file.
        path: PathBuf,
        /// Its permissions, such as `0o660`.
        mode: u32,
    },
}

impl Bind {
    /// Whether it is the same place, whoever may use it.
    #[must_use]
    pub(super) fn is_at(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Tcp(own), Self::Tcp(other)) => own == other,
            (Self::Unix { path: own, .. }, Self::Unix { path: other, .. }) => own == other,
            (Self::Tcp(_), Self::Unix { .. }) | (Self::Unix { .. }, Self::Tcp(_)) => false,
        }
    }

    /// Whether who listens at one of them takes the other's place: the same one, or one that stands for all addresses.
    /// `v6_only`: `[::]` does not stand for those of IPv4 (Linux's `net.ipv6.bindv6only`).
    #[must_use]
    pub fn collides(&self, other: &Self, v6_only: bool) -> bool {
        let (Some(own), Some(second)) = (self.address(), other.address()) else { return self.is_at(other) };
        let covers = |all: SocketAddr, one: SocketAddr| {
            all.ip().is_unspecified() && (all.is_ipv4() == one.is_ipv4() || all.is_ipv6() && !v6_only)
        };
        own.port() != 0 && own.port() == second.port() && (own == second || covers(own, second) || covers(second, own))
    }

    /// The address, if it is TCP.
    #[must_use]
    pub const fn address(&self) -> Option<SocketAddr> {
        match self {
            Self::Tcp(address) => Some(*address),
            Self::Unix { .. } => None,
        }
    }
}

/// As `bind:` in `routes.yaml`.
impl fmt::Display for Bind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix { path, .. } => write!(f, "unix:{}", path.display()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_part_of_a_certificate_can_name_the_user() {
        let certificate = PeerCertificate {
            common_name: Some("press-7".into()),
            subject: "CN=press-7,O=Plant".into(),
            alternative_names: vec![
                AlternativeName::Email("press@plant.example".into()),
                AlternativeName::Dns("b".into()),
            ],
            der: Box::default(),
        };
        let nameless = PeerCertificate::default();
        for (part, user) in [
            (CertificateUser::CommonName, "press-7"),
            (CertificateUser::AlternativeName, "press@plant.example"),
            (CertificateUser::Subject, "CN=press-7,O=Plant"),
        ] {
            assert_eq!(part.of(&certificate).as_deref(), Some(user));
            assert_eq!(part.of(&nameless), None);
        }
    }
}
