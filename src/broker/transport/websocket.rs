//! MQTT over WebSocket (MQTT 5.0 section 6.0, RFC 6455): the HTTP request that begins it, and binary messages as a stream of bytes. The
//! frames are tungstenite's, driven by the socket's readiness.

use std::io::{self, Read, Write};

use bytes::{Buf, Bytes, BytesMut};
use tungstenite::handshake::machine::TryParse;
use tungstenite::handshake::server::{Request, create_response, write_response};
use tungstenite::http::header::{HeaderValue, ORIGIN, SEC_WEBSOCKET_PROTOCOL};
use tungstenite::protocol::frame::coding::CloseCode;
use tungstenite::protocol::{CloseFrame, Role, WebSocketConfig};
use tungstenite::{Error, Message};

use super::Refused;
use super::socket::Socket;
use super::tls::Tls;
use crate::broker::WebSocketTerms;

/// The HTTP request at most: what browsers send has one or two KiB.
const REQUEST_BYTES_MAX: usize = 8 << 10;

/// A frame's and a message's bytes at most before a CONNECT has been accepted. Later it is what a packet may have, and this.
const FRAME_BYTES: usize = 128 << 10;

/// Bytes that are read from the socket at a time.
const READ_BYTES: usize = 8 << 10;

/// MQTT that is sent as one message, and so what may wait for a socket.
const WRITE_BYTES: usize = 64 << 10;

/// After so many bytes of MQTT, or so many messages of any kind, others get their turn.
const TURN_BYTES: usize = 64 << 10;

/// See [`TURN_BYTES`].
const TURN_MESSAGES: usize = 256;

/// Subprotocols by which MQTT is known (`mqttv3.1`: clients of 3.1).
const PROTOCOLS: [&str; 2] = ["mqtt", "mqttv3.1"];

/// What carries the frames.
#[derive(Debug)]
pub(in crate::broker) enum Carrier {
    Plain(Socket),
    Tls(Box<Tls>),
}

/// A carrier, and what was read from it before.
#[derive(Debug)]
struct Wire {
    carrier: Carrier,
    early: BytesMut,
}

/// A connection after its handshake.
#[derive(Debug)]
pub(in crate::broker) struct WebSocket {
    inner: tungstenite::WebSocket<Wire>,
    /// There may be more to read than the socket tells.
    has_more: bool,
    /// The socket has not taken all yet.
    holds_output: bool,
    has_ended: bool,
}

/// An HTTP answer other than the switch of protocols.
#[derive(Debug, PartialEq, Eq)]
struct Refusal {
    status: &'static str,
    text: String,
}

/// The handshake. `early` is what was read before.
pub(super) async fn accept(
    carrier: Carrier,
    early: BytesMut,
    terms: &WebSocketTerms,
) -> Result<WebSocket, (Refused, Carrier)> {
    let mut wire = Wire { carrier, early: BytesMut::new() };
    let refused = |text: String| Refused { reason: "websocket_handshake", text };
    let (request, rest) = match wire.read_request(early).await {
        Ok(read) => read,
        Err(text) => return Err((refused(text), wire.carrier)),
    };
    let (answer, refusal) = match answer(&request, terms) {
        Ok(answer) => (answer, None),
        Err(refusal) => (refusal.to_http(), Some(refusal.text)),
    };
    let sent = wire.send(&answer).await;
    let failed = refusal.or_else(|| sent.err().map(|error| error.to_string()));
    if let Some(text) = failed {
        return Err((refused(text), wire.carrier));
    }
    let config = WebSocketConfig::default()
        .read_buffer_size(READ_BYTES)
        .write_buffer_size(WRITE_BYTES)
        // Beyond a message of ours there is room for control frames; a client that floods with pings gets no more pongs than fit.
        .max_write_buffer_size(2 * WRITE_BYTES)
        .max_frame_size(Some(FRAME_BYTES))
        .max_message_size(Some(FRAME_BYTES));
    let inner = tungstenite::WebSocket::from_partially_read(wire, rest.into(), Role::Server, Some(config));
    Ok(WebSocket { inner, has_more: true, holds_output: false, has_ended: false })
}

/// What is answered to a request.
fn answer(request: &[u8], terms: &WebSocketTerms) -> Result<Vec<u8>, Refusal> {
    let bad = |text: String| Refusal { status: "400 Bad Request", text };
    let (_, request) = Request::try_parse(request)
        .map_err(|error| bad(format!("no WebSocket request: {error}")))?
        .ok_or_else(|| bad("no WebSocket request".to_owned()))?;
    let path = request.uri().path();
    if terms.path.as_deref().is_some_and(|wanted| wanted != path) {
        return Err(Refusal { status: "404 Not Found", text: format!("nothing is at {path:?}") });
    }
    // Only browsers say where they come from, and they cannot be made not to.
    let origin = request.headers().get(ORIGIN).map(HeaderValue::as_bytes);
    let is_from = |origin: &[u8]| terms.origins.iter().any(|known| known.as_bytes().eq_ignore_ascii_case(origin));
    if let Some(origin) = origin.filter(|origin| !terms.origins.is_empty() && !is_from(origin)) {
        let text = format!("pages of {:?} may not connect", String::from_utf8_lossy(origin));
        return Err(Refusal { status: "403 Forbidden", text });
    }
    let mut response = create_response(&request)
        .map_err(|error| Refusal { status: "426 Upgrade Required", text: format!("this is a WebSocket: {error}") })?;
    let offers = request.headers().get_all(SEC_WEBSOCKET_PROTOCOL);
    let mut offered = offers.iter().filter_map(|value| value.to_str().ok()).flat_map(|value| value.split(','));
    match offered.find_map(|name| PROTOCOLS.iter().find(|known| **known == name.trim())) {
        Some(known) => drop(response.headers_mut().insert(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(known))),
        None if offers.iter().next().is_none() => {}
        None => return Err(bad("of the subprotocols none is `mqtt` or `mqttv3.1`".to_owned())),
    }
    let mut out = Vec::new();
    write_response(&mut out, &response).map_err(|error| bad(error.to_string()))?;
    Ok(out)
}

impl Refusal {
    fn to_http(&self) -> Vec<u8> {
        let Self { status, text } = self;
        let length = text.len() + 1;
        let upgrade =
            if status.starts_with("426") { "Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\n" } else { "" };
        let head = format!(
            "HTTP/1.1 {status}\r\n{upgrade}Connection: close\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: {length}\r\n\r\n"
        );
        format!("{head}{text}\n").into_bytes()
    }
}

impl Wire {
    /// The request's head, and what came behind it.
    async fn read_request(&mut self, mut bytes: BytesMut) -> Result<(BytesMut, BytesMut), String> {
        loop {
            if let Some(end) = bytes.windows(4).position(|end| end == b"\r\n\r\n") {
                let rest = bytes.split_off(end + 4);
                return Ok((bytes, rest));
            }
            if bytes.len() >= REQUEST_BYTES_MAX {
                return Err("the HTTP request is too long".to_owned());
            }
            let mut room = [0; 1 << 10];
            match self.read(&mut room) {
                Ok(0) => return Err("the connection ended within the HTTP request".to_owned()),
                Ok(read) => bytes.extend_from_slice(room.get(..read).unwrap_or_default()),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.carrier.socket().readable().await.map_err(|error| error.to_string())?;
                }
                Err(error) => return Err(error.to_string()),
            }
        }
    }

    async fn send(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() || self.carrier.holds_output() {
            let sent = if bytes.is_empty() { self.carrier.try_flush().map(|()| 0) } else { self.write(bytes) };
            match sent {
                Ok(sent) => bytes = bytes.get(sent..).unwrap_or_default(),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.carrier.socket().writable().await?,
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

impl Carrier {
    pub(super) const fn socket(&self) -> &Socket {
        match self {
            Self::Plain(socket) => socket,
            Self::Tls(tls) => tls.socket(),
        }
    }

    fn holds_output(&self) -> bool {
        match self {
            Self::Plain(_) => false,
            Self::Tls(tls) => tls.holds_output(),
        }
    }

    fn try_flush(&mut self) -> io::Result<()> {
        match self {
            Self::Plain(_) => Ok(()),
            Self::Tls(tls) => tls.try_flush(),
        }
    }

    pub(super) async fn close(&mut self) -> io::Result<()> {
        match self {
            Self::Plain(socket) => socket.shutdown().await,
            Self::Tls(tls) => tls.close().await,
        }
    }
}

impl Read for Wire {
    fn read(&mut self, room: &mut [u8]) -> io::Result<usize> {
        if self.early.is_empty() {
            match &mut self.carrier {
                Carrier::Plain(socket) => return socket.try_read(room),
                Carrier::Tls(tls) => {
                    if tls.try_read_buf(&mut self.early)? == 0 {
                        return Ok(0);
                    }
                }
            }
        }
        let read = (&mut self.early).reader().read(room)?;
        if self.early.is_empty() {
            // An idle connection holds no read buffer.
            self.early = BytesMut::new();
        }
        Ok(read)
    }
}

impl Write for Wire {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match &mut self.carrier {
            Carrier::Plain(socket) => socket.try_write(bytes),
            Carrier::Tls(tls) => tls.try_write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        self.carrier.try_flush()
    }
}

impl WebSocket {
    pub(super) fn socket(&self) -> &Socket {
        self.inner.get_ref().carrier.socket()
    }

    /// Whether reading may bring something without the socket having more.
    pub(super) const fn has_more(&self) -> bool {
        self.has_more || self.has_ended
    }

    pub(super) const fn holds_output(&self) -> bool {
        self.holds_output
    }

    /// A client that has been let in may send frames in which its largest packet fits.
    pub(super) fn allow(&mut self, packet_bytes_max: usize) {
        let most = Some(packet_bytes_max.saturating_add(FRAME_BYTES));
        self.inner.set_config(|config| (config.max_frame_size, config.max_message_size) = (most, most));
    }

    /// Appends what has come in binary messages to `input`. 0: the end.
    pub(super) fn try_read_buf(&mut self, input: &mut BytesMut) -> io::Result<usize> {
        let before = input.len();
        self.has_more = true;
        let mut turns = TURN_MESSAGES;
        while self.has_more && !self.has_ended {
            if turns == 0 || input.len() - before >= TURN_BYTES {
                break;
            }
            turns -= 1;
            let failed = match self.inner.read() {
                Ok(Message::Binary(bytes)) => {
                    input.extend_from_slice(&bytes);
                    continue;
                }
                Ok(Message::Text(_)) => self.fail(CloseCode::Unsupported, "MQTT comes in binary messages"),
                Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_)) => continue,
                Ok(Message::Close(_)) | Err(Error::ConnectionClosed | Error::AlreadyClosed) => {
                    self.has_ended = true;
                    continue;
                }
                Err(Error::Io(error)) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.has_more = false;
                    continue;
                }
                Err(Error::Io(error)) => error,
                Err(error) => self.fail(code_of(&error), &error.to_string()),
            };
            if input.len() == before {
                return Err(failed);
            }
            // What came before it is taken first: many clients close the socket right behind their DISCONNECT.
            self.has_ended = true;
        }
        // Pongs, and the answer to a close.
        match self.try_flush() {
            Err(error) if error.kind() != io::ErrorKind::WouldBlock => self.has_ended = true,
            Ok(()) | Err(_) => {}
        }
        match input.len() - before {
            0 if !self.has_ended => Err(io::ErrorKind::WouldBlock.into()),
            bytes => Ok(bytes),
        }
    }

    /// Takes MQTT for one message. Nothing is taken while an earlier one waits for the socket.
    pub(super) fn try_write(&mut self, output: &[u8]) -> io::Result<usize> {
        self.try_flush()?;
        let part = output.get(..WRITE_BYTES).unwrap_or(output);
        let sent = self.inner.write(Message::Binary(Bytes::copy_from_slice(part)));
        let sent = sent.map_err(into_io).and_then(|()| self.try_flush());
        match sent {
            // It has been taken all the same.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.holds_output = true,
            Err(error) => return Err(error),
            Ok(()) => {}
        }
        Ok(part.len())
    }

    pub(super) fn try_flush(&mut self) -> io::Result<()> {
        let flushed = self.inner.flush().map_err(into_io);
        self.holds_output = flushed.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock);
        flushed
    }

    /// A close frame, and the end of what carries it.
    pub(super) async fn close(&mut self) -> io::Result<()> {
        let mut closed =
            self.inner.close(Some(CloseFrame { code: CloseCode::Normal, reason: "".into() })).map_err(into_io);
        while closed.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock) {
            self.socket().writable().await?;
            closed = self.inner.flush().map_err(into_io);
        }
        self.holds_output = false;
        self.inner.get_mut().carrier.close().await
    }

    /// A close frame, as far as the socket takes it now.
    pub(super) fn part(&mut self) {
        drop(self.inner.close(Some(CloseFrame { code: CloseCode::Normal, reason: "".into() })));
        if let Carrier::Tls(tls) = &mut self.inner.get_mut().carrier {
            tls.part();
        }
    }

    /// The client is told why; best effort.
    fn fail(&mut self, code: CloseCode, words: &str) -> io::Error {
        drop(self.inner.close(Some(CloseFrame { code, reason: words.into() })));
        self.has_ended = true;
        io::Error::new(io::ErrorKind::InvalidData, words)
    }
}

/// RFC 6455 section 7.4.1.
fn code_of(error: &Error) -> CloseCode {
    if matches!(error, Error::Capacity(_)) {
        CloseCode::Size
    } else if matches!(error, Error::Utf8(_)) {
        CloseCode::Invalid
    } else {
        CloseCode::Protocol
    }
}

fn into_io(error: Error) -> io::Error {
    if let Error::Io(error) = error { error } else { io::Error::other(error) }
}
