//! The admin side: HTTP over a Unix socket in the data folder (for `tidegate status` on the same machine) and, where
//! `admin:` asks for it, over TCP (for probes and Prometheus).
//!
//! | path | answer |
//! | --- | --- |
//! | `/livez` | 200: the process runs |
//! | `/readyz` | 200 when listeners are bound and buffers and store are open, else 503 with the reason |
//! | `/metrics` | Prometheus text |
//! | `/v1/status` | the status board as JSON |
//!
//! It must not know the gateway: what it shows comes through [`Control`]. Nothing here changes anything.

mod pages;
mod socket;

use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use axum::serve::{Listener, ListenerExt as _};
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
    serve(listener, control, token).await
}

async fn serve<L>(listener: L, control: Arc<dyn Control>, token: CancellationToken) -> io::Result<()>
where
    L: Listener,
    L::Addr: std::fmt::Debug,
{
    let server = axum::serve(listener, pages::router(control)).with_graceful_shutdown(token.clone().cancelled_owned());
    tokio::select! {
        ended = server.into_future() => ended,
        () = async { token.cancelled().await; tokio::time::sleep(GRACE).await; } => Ok(()),
    }
}
