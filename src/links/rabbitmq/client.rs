//! Connecting to a RabbitMQ, and telling what may pass by itself from what somebody must change.
//!
//! The TCP connection is made here, not by lapin, for one reason: lapin's thread waits for a mute peer for ever, and
//! nothing in its interface ends that wait. A second handle on the socket ends it when [`Client`] (or the future of
//! [`connect`]) is dropped, so that a link whose peer is dead leaves neither threads nor sockets behind.

use std::net::Shutdown;
use std::os::fd::AsFd as _;
use std::sync::Arc;
use std::time::Duration;

use lapin::tcp::RustlsConnector;
use lapin::uri::{AMQPScheme, AMQPUri, SASLMechanism};
use lapin::{AsyncTcpStream, Connection, ConnectionProperties, ErrorKind};
use parking_lot::Mutex;

use super::Config;
use crate::links::line::Line;
use crate::links::tls::{Roots, client_config};
use crate::links::{Identity, LinkError};

/// RabbitMQ's usual heartbeat of 60 s finds a dead peer after two minutes; this one after 20 s. The URL may ask for
/// another (`?heartbeat=30`).
const HEARTBEAT_S: u16 = 10;
/// How long a good-bye may take; after it the socket is cut.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

/// A connection. Dropping it closes the socket at once.
pub(super) struct Client {
    pub(super) connection: Connection,
    pub(super) line: Line,
    _socket: SocketGuard,
}

impl Client {
    /// Tells the broker good-bye, and cuts the socket where it does not answer.
    pub(super) async fn close(self) {
        let closing = self.connection.close(200, "OK".into());
        if tokio::time::timeout(CLOSE_TIMEOUT, closing).await.is_err() {
            tracing::debug!("rabbitmq did not answer the good-bye; the connection is cut");
        }
    }
}

/// Connects and logs in. `role` stands in the connection's name, which the management pages show.
pub(super) async fn connect(config: &Config, identity: &Identity, role: &str) -> Result<Client, LinkError> {
    let uri = uri(config)?;
    let address = address(&uri);
    let tls = tls(config, &uri)?;
    let name = format!("tidegate {} {} {role}", identity.site, identity.link);
    let properties = ConnectionProperties::default().with_connection_name(name.into());
    let runtime = lapin::runtime::default_runtime().map_err(|error| classify(&error))?;
    let socket = SocketGuard::default();
    let slot = Arc::clone(&socket.0);
    let line = Line::default();
    let watched = line.clone();
    let dialling = runtime.clone();
    let dial = async move |uri: AMQPUri, _runtime| {
        let addresses = tokio::net::lookup_host((uri.authority.host.as_str(), uri.authority.port)).await?;
        let stream = AsyncTcpStream::connect(&dialling, addresses.collect::<Vec<_>>()).await?;
        if let AsyncTcpStream::Plain(plain) = &stream {
            hold(&slot, plain.get_ref().as_fd().try_clone_to_owned()?.into())?;
            watched.watch(plain.get_ref())?;
        }
        match &tls {
            None => Ok(stream),
            Some((connector, name)) => Ok(stream.into_rustls(connector, name).await?),
        }
    };
    let connected = Connection::connector(uri, runtime, dial, properties).await;
    let connection = connected.map_err(|error| at(&address, &error))?;
    Ok(Client { connection, line, _socket: socket })
}

/// Where the broker is, for errors: without user and password.
pub(super) fn vhost(config: &Config) -> String {
    config.url.parse::<AMQPUri>().map_or_else(|_unreadable| String::new(), |uri| uri.vhost)
}

/// The address, with our heartbeat, and with IPv6 hosts, which lapin's own parser takes for `localhost`.
fn uri(config: &Config) -> Result<AMQPUri, LinkError> {
    // No reason with it: lapin's own words may quote the URL, and with it the password.
    let bad = || LinkError::Misconfigured("the url is none: amqp://USER:PASSWORD@HOST:PORT/VHOST is one".to_owned());
    let mut uri: AMQPUri = config.url.parse().map_err(|_quotes_it| bad())?;
    let url = url::Url::parse(&config.url).map_err(|_unreadable| bad())?;
    if let Some(url::Host::Ipv6(address)) = url.host() {
        uri.authority.host = address.to_string();
    }
    uri.query.heartbeat.get_or_insert(HEARTBEAT_S);
    // Without a user the certificate says who we are; lapin would be `guest`.
    if config.tls.identity.is_some() && url.username().is_empty() {
        uri.query.auth_mechanism.get_or_insert(SASLMechanism::External);
    }
    Ok(uri)
}

/// Host, port, and whether TLS is spoken there.
pub(in crate::links) fn endpoint(config: &Config) -> Result<(String, u16, bool), LinkError> {
    let uri = uri(config)?;
    Ok((uri.authority.host, uri.authority.port, uri.scheme == AMQPScheme::AMQPS))
}

/// Which vhost of which broker: `HOST:PORT/VHOST`.
pub(super) fn place(config: &Config) -> String {
    uri(config).map_or_else(|_unreadable| String::new(), |uri| format!("{}/{}", address(&uri), uri.vhost))
}

fn address(uri: &AMQPUri) -> String {
    let (host, port) = (&uri.authority.host, uri.authority.port);
    if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
}

/// An error of connecting. The broker's own words speak for themselves; the system's do not say where.
fn at(address: &str, error: &lapin::Error) -> LinkError {
    let answered = matches!(error.kind(), ErrorKind::ProtocolError(_));
    match classify(error) {
        LinkError::Transient(words) if !answered && is_no_tls(&words) => LinkError::Misconfigured(format!(
            "{address}: no TLS is spoken there ({words}): write `amqp://`, or the port that RabbitMQ has for TLS, as a rule 5671"
        )),
        LinkError::Transient(words) if !answered => LinkError::Transient(format!("{address}: {words}")),
        LinkError::Misconfigured(words) if !answered => LinkError::Misconfigured(format!("{address}: {words}")),
        other @ (LinkError::Transient(_) | LinkError::Misconfigured(_)) => other,
    }
}

/// rustls's name for an answer that is no TLS at all: RabbitMQ answers in plain AMQP, and will the next time.
fn is_no_tls(words: &str) -> bool {
    words.contains("InvalidContentType")
}

/// Who makes TLS of a stream, and the name that the certificate has to have. `None`: none is spoken.
fn tls(config: &Config, uri: &AMQPUri) -> Result<Option<(RustlsConnector, String)>, LinkError> {
    if uri.scheme == AMQPScheme::AMQP {
        return Ok(None);
    }
    let name = config.tls.server_name.clone().unwrap_or_else(|| uri.authority.host.clone());
    Ok(Some((client_config(&config.tls, Roots::Beside)?.into(), name)))
}

/// What an error of lapin means for the link. 403 (no permission, wrong password), 404 (no such exchange or queue) and 530
/// (no such vhost) stay until somebody changes something; everything else may pass.
pub(super) fn classify(error: &lapin::Error) -> LinkError {
    if let ErrorKind::ProtocolError(remote) = error.kind() {
        let words = format!("{} {}", remote.get_id(), remote.get_message());
        return match remote.get_id() {
            403 | 404 | 530 => LinkError::Misconfigured(words),
            _ => LinkError::Transient(words),
        };
    }
    let words = if let ErrorKind::IOError(cause) = error.kind() { cause.to_string() } else { error.to_string() };
    let hopeless = matches!(error.kind(), ErrorKind::AuthProviderError(_) | ErrorKind::InvalidProtocolVersion(_));
    if hopeless || is_certificate_error(&words) { LinkError::Misconfigured(words) } else { LinkError::Transient(words) }
}

/// rustls says it in the text of an I/O error: a certificate does not get better by trying again.
fn is_certificate_error(words: &str) -> bool {
    ["invalid peer certificate", "certificate required", "received fatal alert"]
        .iter()
        .any(|known| words.contains(known))
}

/// The second handle on the socket; see the module.
#[derive(Default)]
struct SocketGuard(Arc<Mutex<Socket>>);

#[derive(Default)]
enum Socket {
    #[default]
    NotYet,
    Open(std::net::TcpStream),
    GivenUp,
}

impl Drop for SocketGuard {
    fn drop(&mut self) {
        if let Socket::Open(stream) = std::mem::replace(&mut *self.0.lock(), Socket::GivenUp) {
            // It fails only where the socket is closed already.
            drop(stream.shutdown(Shutdown::Both));
        }
    }
}

/// Keeps the handle, unless the guard went while the TCP connection was being made.
fn hold(slot: &Mutex<Socket>, stream: std::net::TcpStream) -> std::io::Result<()> {
    let mut slot = slot.lock();
    match *slot {
        Socket::GivenUp => Err(std::io::Error::new(std::io::ErrorKind::ConnectionAborted, "given up")),
        Socket::NotYet | Socket::Open(_) => {
            *slot = Socket::Open(stream);
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;
    use crate::router::LinkId;

    fn config(url: &str) -> Config {
        Config {
            url: url.to_owned(),
            exchange: String::new(),
            declare: None,
            queues: Vec::new(),
            mandatory: true,
            unroutable: super::super::Unroutable::DeadLetter,
            prefetch: 512,
            topic_escape: false,
            tls: crate::links::Tls::default(),
            streams: std::collections::BTreeMap::new(),
            positions: None,
        }
    }

    fn identity() -> Identity {
        Identity { site: "test".into(), link: LinkId::new("r") }
    }

    #[tokio::test]
    async fn amqps_never_speaks_in_plain_text() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("amqps://user:secret@127.0.0.1:{}/%2f", listener.local_addr().unwrap().port());
        let config = config(&url);
        let identity = identity();
        let accept = async {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut first = [0_u8; 3];
            stream.read_exact(&mut first).await.unwrap();
            first
        };
        let (first, result) = tokio::join!(accept, connect(&config, &identity, "test"));
        // A TLS record of type handshake, version 3.x; plain AMQP would be the letters `AMQ`.
        assert_eq!((first[0], first[1]), (0x16, 0x03));
        assert!(result.is_err());
    }

    #[tokio::test]
    async fn amqps_to_a_port_without_tls_is_misconfigured_and_says_what_would_be_right() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let config = config(&format!("amqps://user:secret@{address}/%2f"));
        let identity = identity();
        let answer = async {
            let (mut stream, _) = listener.accept().await.unwrap();
            stream.read_exact(&mut [0_u8; 3]).await.unwrap();
            // What RabbitMQ says on its plain port to what is no AMQP.
            stream.write_all(b"AMQP\x00\x00\x09\x01").await.unwrap();
            drop(stream.read(&mut [0_u8; 4096]).await);
        };
        let ((), result) = tokio::join!(answer, connect(&config, &identity, "test"));
        let Err(LinkError::Misconfigured(words)) = result.map(drop) else { panic!("not misconfigured") };
        assert!(words.starts_with(&format!("{address}: ")) && words.contains("`amqp://`"), "{words}");
        assert!(!words.contains("secret"), "{words}");
    }

    #[tokio::test]
    async fn a_mute_peer_is_left_with_its_socket_closed_when_the_connect_is_given_up() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let config = config(&format!("amqp://127.0.0.1:{}/%2f", listener.local_addr().unwrap().port()));
        let identity = identity();
        let mut accepted = tokio::select! {
            _ = connect(&config, &identity, "test") => panic!("the peer never spoke"),
            stream = async {
                let mut stream = listener.accept().await.unwrap().0;
                let mut header = [0_u8; 8];
                stream.read_exact(&mut header).await.unwrap();
                stream
            } => stream,
        };
        // The future of `connect` is gone: the peer sees the end of the stream.
        assert_eq!(accepted.read(&mut [0_u8; 8]).await.unwrap(), 0);
    }

    #[tokio::test]
    async fn an_address_without_a_broker_is_named() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        drop(listener);
        let config = config(&format!("amqp://user:secret@{address}/%2f"));
        let error = connect(&config, &identity(), "test").await.err().unwrap();
        assert!(matches!(error, LinkError::Transient(_)), "{error}");
        let words = error.to_string();
        assert!(words.starts_with(&format!("{address}: ")) && !words.contains("secret"), "{words}");
    }

    #[test]
    fn a_bad_url_is_never_quoted() {
        for url in ["amqp:user:secret@host", "http://user:secret@host", "secret", "amqp://user:secret@host:port/"] {
            let error = uri(&config(url)).unwrap_err().to_string();
            assert!(!error.contains("secret") && error.contains("amqp://"), "{error}");
        }
    }

    #[test]
    fn an_ipv6_host_is_kept_and_a_heartbeat_is_set() {
        let uri = uri(&config("amqp://u:p@[::1]:5673/v")).unwrap();
        assert_eq!((uri.authority.host.as_str(), uri.query.heartbeat), ("::1", Some(HEARTBEAT_S)));
    }
}
