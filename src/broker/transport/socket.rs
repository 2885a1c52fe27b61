//! Sockets: TCP and Unix. Listening ones are a [`Door`].

use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::BytesMut;
use nix::sys::socket::{setsockopt, sockopt};
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio_util::io::poll_read_buf;

use super::unix::SocketFile;
use crate::broker::Bind;

/// A silent peer is probed after so many seconds, so often, so many times: a half-open connection ends within three minutes.
const PROBE_AFTER_S: u32 = 120;

/// See [`PROBE_AFTER_S`].
const PROBE_EVERY_S: u32 = 15;

/// See [`PROBE_AFTER_S`].
const PROBES: u32 = 4;

/// A connected socket.
#[derive(Debug)]
pub(in crate::broker) enum Socket {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Socket {
    pub(super) async fn readable(&self) -> io::Result<()> {
        match self {
            Self::Tcp(stream) => stream.readable().await,
            Self::Unix(stream) => stream.readable().await,
        }
    }

    pub(super) async fn writable(&self) -> io::Result<()> {
        match self {
            Self::Tcp(stream) => stream.writable().await,
            Self::Unix(stream) => stream.writable().await,
        }
    }

    /// See [`super::Stream::poll_read`]. A read that does not fill its room tells tokio that no more is there, so that no second
    /// one has to ask the system.
    pub(super) fn poll_read(
        &mut self,
        context: &mut Context<'_>,
        input: &mut BytesMut,
        room: usize,
    ) -> Poll<io::Result<usize>> {
        ready!(self.poll_readable(context))?;
        input.reserve(room);
        let read = match self {
            Self::Tcp(stream) => poll_read_buf(Pin::new(stream), context, input),
            Self::Unix(stream) => poll_read_buf(Pin::new(stream), context, input),
        };
        if input.is_empty() {
            *input = BytesMut::new();
        }
        read
    }

    pub(super) fn poll_readable(&self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Tcp(stream) => stream.poll_read_ready(context),
            Self::Unix(stream) => stream.poll_read_ready(context),
        }
    }

    pub(super) fn poll_writable(&self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Tcp(stream) => stream.poll_write_ready(context),
            Self::Unix(stream) => stream.poll_write_ready(context),
        }
    }

    pub(super) fn try_read_buf(&self, input: &mut BytesMut) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.try_read_buf(input),
            Self::Unix(stream) => stream.try_read_buf(input),
        }
    }

    pub(super) fn try_read(&self, room: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.try_read(room),
            Self::Unix(stream) => stream.try_read(room),
        }
    }

    pub(super) fn try_write_vectored(&self, parts: &[IoSlice<'_>]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.try_write_vectored(parts),
            Self::Unix(stream) => stream.try_write_vectored(parts),
        }
    }

    pub(super) fn try_write(&self, output: &[u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.try_write(output),
            Self::Unix(stream) => stream.try_write(output),
        }
    }

    /// Nothing more is written.
    pub(super) async fn shutdown(&mut self) -> io::Result<()> {
        match self {
            Self::Tcp(stream) => stream.shutdown().await,
            Self::Unix(stream) => stream.shutdown().await,
        }
    }

    /// No delay; and the system finds peers that are gone without a word, for clients that asked for no keep-alive.
    pub(in crate::broker) fn prepare(&self) -> io::Result<()> {
        let Self::Tcp(stream) = self else { return Ok(()) };
        stream.set_nodelay(true)?;
        setsockopt(stream, sockopt::KeepAlive, &true)?;
        setsockopt(stream, sockopt::TcpKeepIdle, &PROBE_AFTER_S)?;
        setsockopt(stream, sockopt::TcpKeepInterval, &PROBE_EVERY_S)?;
        setsockopt(stream, sockopt::TcpKeepCount, &PROBES)?;
        Ok(())
    }
}

/// A listening socket.
#[derive(Debug)]
pub(in crate::broker) enum Door {
    Tcp(TcpListener),
    Unix { listener: UnixListener, _file: SocketFile },
}

impl Door {
    /// Binds, and answers where: a port 0 has become a free one.
    pub(in crate::broker) async fn bind(bind: &Bind) -> io::Result<(Self, Bind)> {
        match bind {
            Bind::Tcp(address) => {
                let listener = TcpListener::bind(address).await?;
                let address = listener.local_addr()?;
                Ok((Self::Tcp(listener), Bind::Tcp(address)))
            }
            Bind::Unix { path, mode } => {
                let (listener, file) = SocketFile::bind(path, *mode)?;
                Ok((Self::Unix { listener, _file: file }, bind.clone()))
            }
        }
    }

    /// The next connection, and the address that it comes from. Cancel safe.
    pub(in crate::broker) async fn accept(&self) -> io::Result<(Socket, Option<SocketAddr>)> {
        match self {
            Self::Tcp(listener) => listener.accept().await.map(|(stream, from)| (Socket::Tcp(stream), Some(from))),
            Self::Unix { listener, .. } => {
                listener.accept().await.map(|(stream, _unnamed)| (Socket::Unix(stream), None))
            }
        }
    }
}
