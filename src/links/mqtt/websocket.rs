//! MQTT over WebSocket (MQTT 5.0 section 6.0, RFC 6455), the client's side: the HTTP request that begins it, and binary messages as a
//! stream of bytes. The frames are tungstenite's.

use std::io::{self, Read, Write};
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use bytes::{Buf as _, Bytes};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadBuf};
use tungstenite::client::IntoClientRequest as _;
use tungstenite::handshake::client::{Response, generate_request};
use tungstenite::handshake::derive_accept_key;
use tungstenite::handshake::machine::TryParse;
use tungstenite::http::StatusCode;
use tungstenite::http::header::{HeaderValue, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_PROTOCOL};
use tungstenite::protocol::{Role, WebSocketConfig};
use tungstenite::{Error, Message};

/// The HTTP answer at most.
const ANSWER_BYTES_MAX: usize = 16 << 10;
/// What is read from the socket at a time, and what is gathered into one frame.
const BUFFER_BYTES: usize = 64 << 10;

/// A WebSocket as a stream of bytes.
#[derive(Debug)]
pub(super) struct WebSocket<S> {
    inner: tungstenite::WebSocket<Bridge<S>>,
    /// Of a message that was not read to its end.
    rest: Bytes,
}

/// A stream for a library that asks and does not wait: who waits is woken when it may ask again.
#[derive(Debug)]
struct Bridge<S> {
    stream: S,
    waker: Waker,
}

impl<S: AsyncRead + AsyncWrite + Unpin> WebSocket<S> {
    /// Asks for `url` on `stream`. `message_bytes_max`: what a message may have, either way.
    pub(super) async fn connect(mut stream: S, url: &str, message_bytes_max: usize) -> io::Result<Self> {
        let mut request = url.into_client_request().map_err(io::Error::other)?;
        request.headers_mut().insert(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static("mqtt"));
        let (request, key) = generate_request(request).map_err(io::Error::other)?;
        stream.write_all(&request).await?;
        stream.flush().await?;
        let (answer, rest) = read_answer(&mut stream).await?;
        check(&answer, &key)?;
        let config = WebSocketConfig::default()
            .read_buffer_size(BUFFER_BYTES)
            .write_buffer_size(BUFFER_BYTES)
            .max_frame_size(Some(message_bytes_max.saturating_add(BUFFER_BYTES)))
            .max_message_size(Some(message_bytes_max.saturating_add(BUFFER_BYTES)));
        let bridge = Bridge { stream, waker: Waker::noop().clone() };
        let inner = tungstenite::WebSocket::from_partially_read(bridge, rest, Role::Client, Some(config));
        Ok(Self { inner, rest: Bytes::new() })
    }
}

/// The answer's head, and what came behind it.
async fn read_answer(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<(Response, Vec<u8>)> {
    let mut bytes = Vec::new();
    loop {
        if stream.read_buf(&mut bytes).await? == 0 {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the connection ended within the HTTP answer"));
        }
        if let Some((length, answer)) = Response::try_parse(&bytes).map_err(no_websocket)? {
            return Ok((answer, bytes.split_off(length)));
        }
        if bytes.len() > ANSWER_BYTES_MAX {
            return Err(no_websocket("its HTTP answer is too long"));
        }
    }
}

fn check(answer: &Response, key: &str) -> io::Result<()> {
    if answer.status() != StatusCode::SWITCHING_PROTOCOLS {
        return Err(no_websocket(format!("HTTP {}", answer.status())));
    }
    let accepted = answer.headers().get(SEC_WEBSOCKET_ACCEPT).map(HeaderValue::as_bytes);
    if accepted != Some(derive_accept_key(key.as_bytes()).as_bytes()) {
        return Err(no_websocket("its answer is to another request"));
    }
    Ok(())
}

fn no_websocket(why: impl std::fmt::Display) -> io::Error {
    io::Error::other(format!("no MQTT over WebSocket is spoken there: {why}"))
}

impl<S: AsyncRead + Unpin> Read for Bridge<S> {
    fn read(&mut self, room: &mut [u8]) -> io::Result<usize> {
        let mut room = ReadBuf::new(room);
        match Pin::new(&mut self.stream).poll_read(&mut Context::from_waker(&self.waker), &mut room) {
            Poll::Ready(read) => read.map(|()| room.filled().len()),
            Poll::Pending => Err(io::ErrorKind::WouldBlock.into()),
        }
    }
}

impl<S: AsyncWrite + Unpin> Write for Bridge<S> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match Pin::new(&mut self.stream).poll_write(&mut Context::from_waker(&self.waker), bytes) {
            Poll::Ready(written) => written,
            Poll::Pending => Err(io::ErrorKind::WouldBlock.into()),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match Pin::new(&mut self.stream).poll_flush(&mut Context::from_waker(&self.waker)) {
            Poll::Ready(flushed) => flushed,
            Poll::Pending => Err(io::ErrorKind::WouldBlock.into()),
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> WebSocket<S> {
    fn awaken(&mut self, cx: &Context<'_>) {
        self.inner.get_mut().waker.clone_from(cx.waker());
    }

    fn flushed(&mut self) -> Poll<io::Result<()>> {
        match self.inner.flush() {
            Err(Error::Io(error)) if error.kind() == io::ErrorKind::WouldBlock => Poll::Pending,
            Ok(()) | Err(Error::ConnectionClosed) => Poll::Ready(Ok(())),
            Err(error) => Poll::Ready(Err(failure(error))),
        }
    }
}

fn failure(error: Error) -> io::Error {
    if let Error::Io(error) = error { error } else { io::Error::other(error) }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for WebSocket<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, room: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.awaken(cx);
        while self.rest.is_empty() {
            match self.inner.read() {
                Ok(Message::Binary(bytes)) => self.rest = bytes,
                // Its answer, and that of a ping, went with the reading.
                Ok(Message::Close(_)) | Err(Error::ConnectionClosed | Error::AlreadyClosed) => {
                    return Poll::Ready(Ok(()));
                }
                Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_)) => {}
                Ok(Message::Text(_)) => {
                    return Poll::Ready(Err(no_websocket("it sent a text message, and MQTT is binary")));
                }
                Err(Error::Io(error)) if error.kind() == io::ErrorKind::WouldBlock => return Poll::Pending,
                Err(error) => return Poll::Ready(Err(failure(error))),
            }
        }
        let take = self.rest.len().min(room.remaining());
        room.put_slice(self.rest.get(..take).unwrap_or_default());
        self.rest.advance(take);
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for WebSocket<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.awaken(cx);
        // A frame at a time: what waits for the socket stays bounded.
        match self.flushed() {
            Poll::Ready(Ok(())) => {}
            Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
            Poll::Pending => return Poll::Pending,
        }
        let take = bytes.get(..bytes.len().min(BUFFER_BYTES)).unwrap_or_default();
        match self.inner.write(Message::Binary(Bytes::copy_from_slice(take))) {
            Ok(()) => Poll::Ready(Ok(take.len())),
            // It is queued all the same.
            Err(Error::Io(error)) if error.kind() == io::ErrorKind::WouldBlock => Poll::Ready(Ok(take.len())),
            Err(error) => Poll::Ready(Err(failure(error))),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.awaken(cx);
        self.flushed()
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.awaken(cx);
        match self.inner.close(None) {
            Ok(()) | Err(Error::ConnectionClosed | Error::AlreadyClosed) => {}
            Err(Error::Io(error)) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Poll::Ready(Err(failure(error))),
        }
        self.flushed()
    }
}
