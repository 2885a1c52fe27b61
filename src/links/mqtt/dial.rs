//! The way to a remote: TCP, TLS, WebSocket, one around the other. And what should end a connection that is well: the first address
//! being back, a token that ends.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio_rustls::TlsConnector;

use super::Address;
use super::websocket::WebSocket;
use crate::links::line::Line;

/// A look whether the first address is back waits no longer for an answer.
const LOOK: Duration = Duration::from_secs(5);
/// Where it takes TCP and then no login, it is looked at less and less often.
const FAIL_BACK_MAX: Duration = Duration::from_secs(3600);

/// What MQTT goes over.
pub(super) trait Stream: AsyncRead + AsyncWrite + Send + Sync + Unpin {}
impl<S: AsyncRead + AsyncWrite + Send + Sync + Unpin> Stream for S {}

/// How one address is reached.
#[derive(Clone, Debug)]
pub(super) struct Way {
    pub(super) address: Address,
    pub(super) tls: Option<(Arc<ClientConfig>, ServerName<'static>)>,
    /// Of one packet, for WebSocket's messages.
    pub(super) bytes_max: usize,
}

impl Way {
    /// For the crate, which only shows it: the stream is ours.
    pub(super) fn address(&self) -> (String, u16) {
        (self.address.host.clone(), self.address.port)
    }

    /// Opens it; `line` looks at the socket.
    pub(super) async fn dial(&self, line: &Line) -> io::Result<Box<dyn Stream>> {
        let Address { host, port, websocket, .. } = &self.address;
        let stream = TcpStream::connect((host.as_str(), *port)).await?;
        stream.set_nodelay(true)?;
        line.watch(&stream)?;
        let (carrier, scheme): (Box<dyn Stream>, _) = match &self.tls {
            None => (Box::new(stream), "ws"),
            Some((config, name)) => {
                let connector = TlsConnector::from(Arc::clone(config));
                (Box::new(connector.connect(name.clone(), stream).await?), "wss")
            }
        };
        match websocket {
            None => Ok(carrier),
            Some(path) => {
                let url = format!("{scheme}://{}{path}", self.address);
                Ok(Box::new(WebSocket::connect(carrier, &url, self.bytes_max).await?))
            }
        }
    }
}

/// What should end a connection that is well.
#[derive(Debug, Default)]
pub(super) struct Leave(JoinSet<String>);

impl Leave {
    /// Why it should end, when it should. Cancel safe; once it has told, it tells no more of this reason.
    pub(super) async fn due(&mut self) -> String {
        loop {
            match self.0.join_next().await {
                Some(Ok(words)) => return words,
                Some(Err(_ended)) => {}
                None => std::future::pending().await,
            }
        }
    }

    /// After this time the password is looked up again.
    pub(super) fn renew_after(&mut self, pause: Duration) {
        self.0.spawn(async move {
            tokio::time::sleep(pause).await;
            "the token ends: it is looked up again".to_owned()
        });
    }

    /// When the first address is back; it is looked at each `pause`.
    pub(super) fn when_back(&mut self, first: Way, pause: Duration) {
        self.0.spawn(async move {
            loop {
                tokio::time::sleep(pause).await;
                let line = Line::default();
                if let Ok(Ok(_stream)) = tokio::time::timeout(LOOK, first.dial(&line)).await {
                    return format!("back to {}", first.address);
                }
            }
        });
    }
}

/// How long to stay at another address, where the first one was returned to `in_vain` times without a login.
pub(super) fn fail_back(pause: Duration, in_vain: u32) -> Duration {
    pause.saturating_mul(2_u32.saturating_pow(in_vain)).min(FAIL_BACK_MAX.max(pause))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_that_lets_nobody_in_is_returned_to_less_and_less_often() {
        let minutes = [0, 1, 2, 6, 99].map(|in_vain| fail_back(Duration::from_secs(60), in_vain).as_secs() / 60);
        assert_eq!(minutes, [1, 2, 4, 60, 60]);
        assert_eq!(fail_back(2 * FAIL_BACK_MAX, 3), 2 * FAIL_BACK_MAX);
    }
}
