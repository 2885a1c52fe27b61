//! The admin side: HTTP over a Unix socket in the data folder (for `tidegate status` on the same machine) and, where
//! `admin:` asks for it, over TCP (for probes and Prometheus).
//!
//! | path | answer |
//! | --- | --- |
//! | `/livez` | 200: the process runs |
//! | `/readyz` | 200 when listeners are bound and buffers and store are open, else 503 with the reason |
//! | `/metrics` | Prometheus text |
//! | `/v1/status` | the status board as JSON |
//! | POST `/v1/commands/NAME` | the Unix socket only: what a tool of the operator asks for, JSON in, JSON out; else 404, 409 or 500 with `{"error": ".."}` |
//!
//! It must not know the gateway: what it shows and does comes through [`Control`]. Over TCP, where nobody is asked who he is,
//! nothing can be changed.

mod pages;
mod socket;

use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::serve::{Listener, ListenerExt as _};
use futures_util::future::BoxFuture;
use serde_json::Value;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::telemetry::board::Status;
use crate::telemetry::metrics;

pub use socket::UnixSocket;

/// How long open requests may take after the end was asked for.
const GRACE: Duration = Duration::from_secs(1);

/// What the admin side needs of the gateway.
pub trait Control: Send + Sync + 'static {
    /// The whole gateway, now. Cheap: it is asked several times a second.
    fn status(&self) -> Status;

    /// The page for Prometheus.
    fn metrics(&self) -> String {
        metrics::page(&self.status())
    }

    /// Does what a tool of the operator asks for. It goes on to its end also when the asker hangs up.
    fn command(self: Arc<Self>, name: String, arguments: Value) -> BoxFuture<'static, Result<Value, CommandError>> {
        drop(arguments);
        Box::pin(std::future::ready(Err(CommandError::Unknown(name))))
    }
}

/// Why a command was not done.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CommandError {
    /// No such command: the tool is of another version.
    #[error("this gateway knows no command `{0}`: the tool and the gateway are of different versions")]
    Unknown(String),
    /// What it names is not there, or it makes no sense.
    #[error("{0}")]
    NotThere(String),
    /// Not now.
    #[error("{0}")]
    Refused(String),
    /// It went wrong.
    #[error("{0}")]
    Failed(String),
}

/// Binds the Unix socket and serves it until `token` is cancelled; the socket's file is gone then.
///
/// # Errors
/// The socket cannot be made, or another process serves it.
pub async fn serve_unix(path: &Path, control: Arc<dyn Control>, token: CancellationToken) -> io::Result<()> {
    UnixSocket::bind(path)?.serve(control, token).await
}

/// Binds `address` and serves it until `token` is cancelled.
///
/// # Errors
/// The address cannot be bound.
pub async fn serve_tcp(address: SocketAddr, control: Arc<dyn Control>, token: CancellationToken) -> io::Result<()> {
    serve_listener(TcpListener::bind(address).await?, control, token).await
}

/// Serves a TCP listener that is bound already (so that a bind that fails is seen before anything runs).
///
/// # Errors
/// Never for what a client does.
pub async fn serve_listener(
    listener: TcpListener,
    control: Arc<dyn Control>,
    token: CancellationToken,
) -> io::Result<()> {
    // Small answers, asked for one by one: waiting for more bytes to fill a segment only adds delay.
    let listener = listener.tap_io(|stream| _ = stream.set_nodelay(true));
    serve(listener, pages::router(control), token).await
}

async fn serve<L>(listener: L, pages: Router, token: CancellationToken) -> io::Result<()>
where
    L: Listener,
    L::Addr: std::fmt::Debug,
{
    let server = axum::serve(listener, pages).with_graceful_shutdown(token.clone().cancelled_owned());
    tokio::select! {
        ended = server.into_future() => ended,
        () = async { token.cancelled().await; tokio::time::sleep(GRACE).await; } => Ok(()),
    }
}
