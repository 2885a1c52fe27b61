//! A listener's way in: the handshakes that it asks for, in their order, before the first byte of MQTT.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;

use super::proxy::{self, Source};
use super::socket::Socket;
use super::tls::{self, Certificates};
use super::websocket::{self, Carrier};
use super::{Peer, Refused, Stream};
use crate::broker::{Bind, Listener};
use crate::telemetry::board::ListenerStatus;
use crate::telemetry::limited::Limited;

/// Of one listener, refusals are logged this often; all are counted.
const LOG_EVERY: Duration = Duration::from_secs(10);

/// How long a refused client may take to receive why.
const FAREWELL_DEADLINE: Duration = Duration::from_secs(1);

/// How long we listen on to it: a socket that is closed with unread bytes resets the connection, and the client may never see why.
const DRAIN_DEADLINE: Duration = Duration::from_secs(3);

/// See the module.
pub(in crate::broker) struct Entrance {
    pub(in crate::broker) listener: Arc<Listener>,
    pub(in crate::broker) certificates: Option<Arc<Certificates>>,
    pub(in crate::broker) refusals: Limited,
}

/// A connection that has passed.
pub(in crate::broker) struct Admitted {
    pub(in crate::broker) stream: Stream,
    /// MQTT that came with the last handshake.
    pub(in crate::broker) input: BytesMut,
}

impl Entrance {
    pub(in crate::broker) const fn new(listener: Arc<Listener>, certificates: Option<Arc<Certificates>>) -> Self {
        Self { listener, certificates, refusals: Limited::new(LOG_EVERY) }
    }

    /// Whether MQTT begins at once.
    pub(in crate::broker) fn is_plain(&self) -> bool {
        self.certificates.is_none() && self.listener.websocket.is_none() && self.listener.proxy_protocol.is_none()
    }

    /// Why a connection is closed before a byte of it is read, if it is.
    pub(in crate::broker) fn turns_away(&self, peer: &Peer) -> Option<Refused> {
        let terms = self.listener.proxy_protocol.as_ref()?;
        if terms.trusts(peer.address.map(|address| address.ip())) {
            return None;
        }
        let text = "it is none of the proxies that this listener's `proxy_protocol: { from: [ .. ] }` names".to_owned();
        Some(Refused { reason: "proxy_untrusted", text })
    }

    /// Reads the proxy's header, where there is one, and notes what it tells of the client. What came behind it is the answer. The
    /// caller sets the deadline.
    pub(in crate::broker) async fn hear_proxy(&self, socket: &Socket, peer: &mut Peer) -> Result<BytesMut, Refused> {
        let mut input = BytesMut::new();
        if self.listener.proxy_protocol.is_none() {
            return Ok(input);
        }
        let proxied = proxy::read_header(socket, &mut input).await;
        let proxied = proxied.map_err(|text| Refused { reason: "proxy_header", text })?;
        match proxied.source {
            Source::Own => {}
            Source::Client(address) => peer.address = Some(address),
            Source::Unix => peer.address = None,
        }
        peer.is_secure = proxied.is_secure;
        peer.certificate = proxied.certificate.map(Arc::new);
        Ok(input)
    }

    /// Does the other handshakes, and notes what they tell of the client. The caller sets the deadline.
    pub(in crate::broker) async fn admit(
        &self,
        socket: Socket,
        input: BytesMut,
        peer: &mut Peer,
    ) -> Result<Admitted, (Refused, Carrier)> {
        let (carrier, input) = match &self.certificates {
            None => (Carrier::Plain(socket), input),
            Some(certificates) => {
                let accepted = tls::accept(socket, input, certificates).await;
                let (tls, certificate, plaintext) =
                    accepted.map_err(|(refused, socket)| (refused, Carrier::Plain(socket)))?;
                peer.is_secure = true;
                peer.certificate = certificate.map(Arc::new).or_else(|| peer.certificate.take());
                (Carrier::Tls(Box::new(tls)), plaintext)
            }
        };
        if let Some(terms) = &self.listener.websocket {
            let websocket = websocket::accept(carrier, input, terms).await?;
            return Ok(Admitted { stream: Stream::WebSocket(Box::new(websocket)), input: BytesMut::new() });
        }
        let stream = match carrier {
            Carrier::Plain(socket) => Stream::Plain(socket),
            Carrier::Tls(tls) => Stream::Tls(tls),
        };
        Ok(Admitted { stream, input })
    }

    /// For `status`.
    pub(in crate::broker) fn status(&self, bound: &Bind) -> ListenerStatus {
        ListenerStatus {
            bind: bound.to_string(),
            layers: self.listener.layers().into_iter().map(str::to_owned).collect(),
            certificate_ends_s: self.certificates.as_ref().map(|certificates| certificates.not_after_s()),
        }
    }
}

impl fmt::Debug for Entrance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Entrance").field("listener", &self.listener).finish_non_exhaustive()
    }
}

/// Ends a refused connection so that the client can read why.
pub(in crate::broker) async fn hang_up(mut carrier: Carrier) {
    if !matches!(tokio::time::timeout(FAREWELL_DEADLINE, carrier.close()).await, Ok(Ok(()))) {
        return;
    }
    let mut waste = [0; 1 << 10];
    let all = async {
        loop {
            carrier.socket().readable().await?;
            match carrier.socket().try_read(&mut waste) {
                Ok(0) => return Ok(()),
                Err(error) if error.kind() != io::ErrorKind::WouldBlock => return Err(error),
                Ok(_) | Err(_) => {}
            }
        }
    };
    drop(tokio::time::timeout(DRAIN_DEADLINE, all).await);
}
