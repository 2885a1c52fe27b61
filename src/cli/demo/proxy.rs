//! The line between the two sites: a TCP proxy that can be cut (connections drop, new ones are refused) or go dead
//! (connections stay open and nothing passes). It knows nothing of MQTT.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};

use anyhow::Context;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

/// What the line does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Line {
    /// Bytes pass.
    Open,
    /// Connections are dropped and refused.
    Cut,
    /// Connections stay and are accepted, no byte passes: a dead mobile line.
    Dead,
}

/// Bytes that one direction moves at a time: two Ethernet frames' worth would do, a page more costs nothing.
const CHUNK_BYTES: usize = 16 * 1024;

/// The proxy; it serves as long as [`Proxy::serve`] is polled.
#[derive(Debug)]
pub(crate) struct Proxy {
    listener: Option<TcpListener>,
    address: SocketAddr,
    upstream: SocketAddr,
    line: watch::Receiver<Line>,
}

impl Proxy {
    /// Binds a free port.
    pub(crate) async fn bind(upstream: u16, line: watch::Receiver<Line>) -> anyhow::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, super::site::free_port()?))
            .await
            .context("no port for the proxy")?;
        let address = listener.local_addr()?;
        let upstream = SocketAddr::from((Ipv4Addr::LOCALHOST, upstream));
        Ok(Self { listener: Some(listener), address, upstream, line })
    }

    /// Where the edge connects to.
    pub(crate) const fn port(&self) -> u16 {
        self.address.port()
    }

    /// Carries bytes until the line's other end is dropped. Ends all connections when it is dropped.
    pub(crate) async fn serve(mut self) -> anyhow::Result<()> {
        let mut tunnels = JoinSet::new();
        let given = self.line.clone();
        while self.line.wait_for(|line| *line != Line::Cut).await.is_ok() {
            // While the line is cut there is no listener, so that the system itself refuses connections.
            let listener = match self.listener.take() {
                Some(listener) => listener,
                None => TcpListener::bind(self.address).await.context("the proxy's port was taken")?,
            };
            loop {
                tokio::select! {
                    cut = self.line.wait_for(|line| *line == Line::Cut) => match cut {
                        Ok(_) => break,
                        Err(_) => return Ok(()),
                    },
                    accepted = listener.accept() => if let Ok((client, _)) = accepted {
                        tunnels.spawn(tunnel(client, self.upstream, given.clone()));
                    },
                    Some(_) = tunnels.join_next() => {}
                }
            }
        }
        Ok(())
    }
}

/// One connection through the line, both ways. How it ends is the two peers' business.
async fn tunnel(client: TcpStream, upstream: SocketAddr, line: watch::Receiver<Line>) {
    let Ok(server) = TcpStream::connect(upstream).await else { return };
    let ((client_read, client_write), (server_read, server_write)) = (client.into_split(), server.into_split());
    // The first direction to end ends both: a half-closed MQTT connection is of no use.
    tokio::select! {
        _ = carry(client_read, server_write, line.clone()) => {}
        _ = carry(server_read, client_write, line) => {}
    }
}

async fn carry(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, mut line: watch::Receiver<Line>) -> io::Result<()> {
    let mut chunk = vec![0; CHUNK_BYTES];
    loop {
        let now = match line.wait_for(|line| *line != Line::Dead).await {
            Ok(now) => *now,
            Err(_) => return Ok(()),
        };
        if now == Line::Cut {
            return Ok(());
        }
        tokio::select! {
            biased;
            _ = line.changed() => {}
            read = from.read(&mut chunk) => match read? {
                0 => return Ok(()),
                length => to.write_all(chunk.get(..length).unwrap_or_default()).await?,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    struct Rig {
        line: watch::Sender<Line>,
        port: u16,
        upstream: TcpListener,
        tasks: JoinSet<anyhow::Result<()>>,
    }

    async fn rig() -> Rig {
        let upstream = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let (line, watched) = watch::channel(Line::Open);
        let proxy = Proxy::bind(upstream.local_addr().unwrap().port(), watched).await.unwrap();
        let port = proxy.port();
        let mut tasks = JoinSet::new();
        tasks.spawn(proxy.serve());
        Rig { line, port, upstream, tasks }
    }

    async fn pair(rig: &Rig) -> (TcpStream, TcpStream) {
        let client = TcpStream::connect((Ipv4Addr::LOCALHOST, rig.port)).await.unwrap();
        (client, rig.upstream.accept().await.unwrap().0)
    }

    #[tokio::test]
    async fn bytes_pass_both_ways_while_the_line_is_open() {
        let rig = rig().await;
        let (mut client, mut server) = pair(&rig).await;
        client.write_all(b"ping").await.unwrap();
        let mut bytes = [0; 4];
        server.read_exact(&mut bytes).await.unwrap();
        server.write_all(b"pong").await.unwrap();
        client.read_exact(&mut bytes).await.unwrap();
        assert_eq!(&bytes, b"pong");
    }

    #[tokio::test]
    async fn a_cut_ends_connections_and_refuses_new_ones_until_it_is_mended() {
        let mut rig = rig().await;
        let (mut client, _server) = pair(&rig).await;
        rig.line.send(Line::Cut).unwrap();
        let ended = client.read(&mut [0; 1]).await;
        assert!(matches!(ended, Ok(0) | Err(_)), "{ended:?}");
        // The listener goes in the same turn as the connections; whichever the client sees first.
        while TcpStream::connect((Ipv4Addr::LOCALHOST, rig.port)).await.is_ok() {
            tokio::task::yield_now().await;
        }
        rig.line.send(Line::Open).unwrap();
        while TcpStream::connect((Ipv4Addr::LOCALHOST, rig.port)).await.is_err() {
            assert!(rig.tasks.try_join_next().is_none());
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn a_dead_line_keeps_the_connection_and_lets_the_bytes_through_later() {
        let rig = rig().await;
        let (mut client, mut server) = pair(&rig).await;
        rig.line.send(Line::Dead).unwrap();
        tokio::task::yield_now().await;
        client.write_all(b"late").await.unwrap();
        let mut bytes = [0; 4];
        let waited = tokio::time::timeout(Duration::from_millis(50), server.read_exact(&mut bytes)).await;
        assert!(waited.is_err(), "nothing passes a dead line");
        rig.line.send(Line::Open).unwrap();
        server.read_exact(&mut bytes).await.unwrap();
        assert_eq!(&bytes, b"late");
    }
}
