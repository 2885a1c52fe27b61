//! How clients reach the broker: what carries the bytes of MQTT, from the socket up.
//!
//! A [`Stream`] is read and written by readiness, never by waiting within: `connection` waits for [`Stream::readable`] and
//! [`Stream::writable`] beside all else that may happen, and then moves what it can. A plain socket is passed through: no box, no
//! copy, no system call more than it needs by itself.
//!
//! - [`socket`]: TCP and Unix sockets.
//! - [`unix`]: binding a Unix socket's file.
//! - [`peer`]: who is at the other end, as far as the transport can tell.
//!
//! It does not know MQTT.

mod peer;
mod socket;
mod unix;

use std::io;

use bytes::BytesMut;

pub use self::peer::{AlternativeName, Peer, PeerCertificate};
pub(super) use self::socket::{Door, Socket};

/// A client's connection: bytes of MQTT in both directions.
#[derive(Debug)]
pub(super) enum Stream {
    /// As they come from the socket.
    Plain(Socket),
}

impl Stream {
    /// Returns when there may be something to read. Cancel safe.
    pub(super) async fn readable(&self) -> io::Result<()> {
        match self {
            Self::Plain(socket) => socket.readable().await,
        }
    }

    /// Returns when something may be written. Cancel safe.
    pub(super) async fn writable(&self) -> io::Result<()> {
        match self {
            Self::Plain(socket) => socket.writable().await,
        }
    }

    /// Reads what is there into the free room of `input`. 0: the end of the stream.
    pub(super) fn try_read_buf(&mut self, input: &mut BytesMut) -> io::Result<usize> {
        match self {
            Self::Plain(socket) => socket.try_read_buf(input),
        }
    }

    /// Takes as much of `output` as it can now.
    pub(super) fn try_write(&mut self, output: &[u8]) -> io::Result<usize> {
        match self {
            Self::Plain(socket) => socket.try_write(output),
        }
    }

    /// Whether it has taken bytes that the socket has not: then [`Stream::try_flush`] is due when it is writable.
    pub(super) const fn holds_output(&self) -> bool {
        match self {
            Self::Plain(_) => false,
        }
    }

    /// Moves what it holds to the socket. `WouldBlock`: not all of it.
    pub(super) fn try_flush(&mut self) -> io::Result<()> {
        match self {
            Self::Plain(_) => Ok(()),
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
