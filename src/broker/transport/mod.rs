//! How clients reach the broker: what carries the bytes of MQTT, from the socket up.
//!
//! ```text
//! socket (TCP, Unix) ── [proxy header] ── [TLS] ── [WebSocket] ── MQTT
//! ```
//!
//! A [`Stream`] is read and written by readiness, never by waiting within: `connection` waits for [`Stream::readable`] and
//! [`Stream::writable`] beside all else that may happen, and then moves what it can. A plain socket is passed through: no box, no
//! copy, no system call more than it needs by itself. Over TLS and WebSocket too a round is one write.
//!
//! - [`entrance`]: a listener's handshakes, one above the other.
//! - [`socket`], [`unix`]: sockets, and the file of a Unix socket.
//! - [`proxy`]: the PROXY protocol. [`tls`]: TLS, its files, their reload. [`websocket`]: the HTTP request, and frames.
//! - [`network`]: networks of addresses. [`peer`]: who is at the other end, as far as the transport can tell.
//!
//! It does not know MQTT.

mod entrance;
mod network;
mod peer;
mod proxy;
mod socket;
mod tls;
mod unix;
mod websocket;

use std::io;
use std::pin::pin;
use std::task::{Context, Poll, ready};

use bytes::BytesMut;

pub(super) use self::entrance::{Admitted, Entrance, hang_up};
pub use self::network::{Network, NetworkError};
pub use self::peer::{AlternativeName, Peer, PeerCertificate};
pub(super) use self::socket::{Door, Socket};
pub(super) use self::tls::Certificates;
use self::tls::Tls;
pub use self::tls::{
    ClientSources as TlsClientSources, Finding as TlsFinding, Material as TlsMaterial, Part as TlsPart,
    Sources as TlsSources, examine as examine_tls, examine_client as examine_tls_client,
};
pub(super) use self::websocket::Carrier;
use self::websocket::WebSocket;

/// Why a connection got no further than its handshakes.
#[derive(Debug)]
pub(super) struct Refused {
    /// It is counted under this name.
    pub(super) reason: &'static str,
    /// For the log.
    pub(super) text: String,
}

/// A client's connection: bytes of MQTT in both directions.
#[derive(Debug)]
pub(super) enum Stream {
    /// As they come from the socket.
    Plain(Socket),
    Tls(Box<Tls>),
    WebSocket(Box<WebSocket>),
}

impl Stream {
    /// Returns when there may be something to read. Cancel safe.
    pub(super) async fn readable(&self) -> io::Result<()> {
        match self {
            Self::Plain(socket) => socket.readable().await,
            Self::Tls(tls) if tls.has_ended() => Ok(()),
            Self::Tls(tls) => tls.socket().readable().await,
            Self::WebSocket(websocket) if websocket.has_more() => {
                // Nothing here waits for the system: others on this thread get their turn all the same.
                tokio::task::consume_budget().await;
                Ok(())
            }
            Self::WebSocket(websocket) => websocket.socket().readable().await,
        }
    }

    /// Returns when something may be written. Cancel safe.
    pub(super) async fn writable(&self) -> io::Result<()> {
        match self {
            Self::Plain(socket) => socket.writable().await,
            Self::Tls(tls) => tls.socket().writable().await,
            Self::WebSocket(websocket) => websocket.socket().writable().await,
        }
    }

    /// Reads what is there into `input`, which gets `room` only when there is something: a connection that waits holds none. 0: the
    /// end of the stream. `WouldBlock`: what came was not for the reader, and something may have to be written now.
    pub(super) fn poll_read(
        &mut self,
        context: &mut Context<'_>,
        input: &mut BytesMut,
        room: usize,
    ) -> Poll<io::Result<usize>> {
        if let Self::Plain(socket) = self {
            return socket.poll_read(context, input, room);
        }
        ready!(self.poll_readable(context))?;
        input.reserve(room);
        let read = self.try_read_buf(input);
        if input.is_empty() {
            *input = BytesMut::new();
        }
        Poll::Ready(read)
    }

    /// See [`Stream::readable`].
    fn poll_readable(&self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Plain(socket) => socket.poll_readable(context),
            Self::Tls(tls) if tls.has_ended() => Poll::Ready(Ok(())),
            Self::Tls(tls) => tls.socket().poll_readable(context),
            // Nothing here waits for the system: others on this thread get their turn all the same.
            Self::WebSocket(websocket) if websocket.has_more() => {
                pin!(tokio::task::consume_budget()).poll(context).map(Ok)
            }
            Self::WebSocket(websocket) => websocket.socket().poll_readable(context),
        }
    }

    /// Ready when something may be written.
    pub(super) fn poll_writable(&self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Plain(socket) => socket.poll_writable(context),
            Self::Tls(tls) => tls.socket().poll_writable(context),
            Self::WebSocket(websocket) => websocket.socket().poll_writable(context),
        }
    }

    /// Reads what is there: into the free room of `input` from a plain socket, up to 64 KiB more from others. 0: the end of the stream.
    pub(super) fn try_read_buf(&mut self, input: &mut BytesMut) -> io::Result<usize> {
        match self {
            Self::Plain(socket) => socket.try_read_buf(input),
            Self::Tls(tls) => tls.try_read_buf(input),
            Self::WebSocket(websocket) => websocket.try_read_buf(input),
        }
    }

    /// Takes as much of `output` as it can now.
    pub(super) fn try_write(&mut self, output: &[u8]) -> io::Result<usize> {
        match self {
            Self::Plain(socket) => socket.try_write(output),
            Self::Tls(tls) => tls.try_write(output),
            Self::WebSocket(websocket) => websocket.try_write(output),
        }
    }

    /// Whether it has taken bytes that the socket has not: then [`Stream::try_flush`] is due when it is writable.
    pub(super) fn holds_output(&self) -> bool {
        match self {
            Self::Plain(_) => false,
            Self::Tls(tls) => tls.holds_output(),
            Self::WebSocket(websocket) => websocket.holds_output(),
        }
    }

    /// Moves what it holds to the socket. `WouldBlock`: not all of it.
    pub(super) fn try_flush(&mut self) -> io::Result<()> {
        match self {
            Self::Plain(_) => Ok(()),
            Self::Tls(tls) => tls.try_flush(),
            Self::WebSocket(websocket) if websocket.holds_output() => websocket.try_flush(),
            Self::WebSocket(_) => Ok(()),
        }
    }

    /// The client has been let in: it may send packets of this size.
    pub(super) fn allow(&mut self, packet_bytes_max: usize) {
        if let Self::WebSocket(websocket) = self {
            websocket.allow(packet_bytes_max);
        }
    }

    /// Reads at least a byte into the free room of `input`, unless the stream ends: then 0. Cancel safe.
    pub(super) async fn read_buf(&mut self, input: &mut BytesMut) -> io::Result<usize> {
        loop {
            self.readable().await?;
            match self.try_read_buf(input) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                done => return done,
            }
        }
    }

    /// Writes all of `output`, to the socket.
    pub(super) async fn write_all(&mut self, mut output: &[u8]) -> io::Result<()> {
        while !output.is_empty() {
            match self.try_write(output) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(bytes) => output = output.get(bytes..).unwrap_or_default(),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.writable().await?,
                Err(error) => return Err(error),
            }
        }
        self.flush().await
    }

    /// Tells the other side that nothing follows.
    pub(super) async fn close(&mut self) -> io::Result<()> {
        match self {
            Self::Plain(socket) => socket.shutdown().await,
            Self::Tls(tls) => tls.close().await,
            Self::WebSocket(websocket) => websocket.close().await,
        }
    }

    /// The client has ended the connection: what TLS and WebSocket say then, as far as the socket takes it now.
    pub(super) fn part(&mut self) {
        match self {
            Self::Plain(_) => {}
            Self::Tls(tls) => tls.part(),
            Self::WebSocket(websocket) => websocket.part(),
        }
    }

    async fn flush(&mut self) -> io::Result<()> {
        loop {
            match self.try_flush() {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.writable().await?,
                done => return done,
            }
        }
    }
}
