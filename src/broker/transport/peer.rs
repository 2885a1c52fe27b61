//! Who is at the other end of a connection.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use crate::broker::Listener;

/// What the transport knows of a client before it has said a word of MQTT.
#[derive(Clone, Debug)]
pub struct Peer {
    /// Where it connects from; behind a proxy that says so (PROXY protocol) the client's own address. `None` on a Unix socket.
    pub address: Option<SocketAddr>,
    /// Where it connected to.
    pub listener: Arc<Listener>,
    /// Its certificate, verified against the listener's authorities; `None` if it showed none.
    pub certificate: Option<Arc<PeerCertificate>>,
    /// What it sends cannot be read on its way: TLS, to us or to the proxy before us.
    pub is_secure: bool,
}

/// A client's own certificate, the first of its chain, verified.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PeerCertificate {
    /// The subject's common name (the last, if there are several), if it is text.
    pub common_name: Option<Box<str>>,
    /// The whole subject as RFC 4514 writes it: `CN=press-7,O=Plant`. Empty where only a proxy has seen the certificate.
    pub subject: Box<str>,
    /// Subject alternative names, in their order; kinds that are not here are left out.
    pub alternative_names: Vec<AlternativeName>,
    /// The certificate itself. Empty where only a proxy has seen it.
    pub der: Box<[u8]>,
}

/// A subject alternative name (RFC 5280 section 4.2.1.6).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AlternativeName {
    /// `dNSName`.
    Dns(Box<str>),
    /// `rfc822Name`.
    Email(Box<str>),
    /// `uniformResourceIdentifier`.
    Uri(Box<str>),
    /// `iPAddress`.
    Ip(IpAddr),
}

/// For logs: `192.0.2.7:49152`, or the socket's path.
impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.address {
            Some(address) => address.fmt(f),
            None => self.listener.bind.fmt(f),
        }
    }
}
