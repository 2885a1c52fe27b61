//! A TCP proxy that breaks connections in the ways that networks do: refused, cut, or open but dead.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::process::free_port;

/// What the proxy does with its connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    /// Carries bytes both ways.
    Pass,
    /// Nothing listens, and what was connected has been reset.
    Refuse,
    /// Connections are accepted and stay open, but no byte passes and no reset comes.
    BlackHole,
}

#[derive(Clone, Copy, Debug)]
struct Weather {
    mode: Mode,
    /// Connections of an earlier generation are reset.
    generation: u64,
}

/// A proxy in front of one server. Dropped, it is gone with all its connections.
#[derive(Debug)]
pub(crate) struct Proxy {
    port: u16,
    weather: watch::Sender<Weather>,
    listening: watch::Receiver<bool>,
    _tasks: JoinSet<()>,
}

impl Proxy {
    /// Listens on a free port, in front of `server`, which need not be there yet.
    pub(crate) async fn start(server: u16) -> Self {
        let listener = loop {
            if let Ok(listener) = TcpListener::bind(("127.0.0.1", free_port())).await {
                break listener;
            }
        };
        let port = listener.local_addr().unwrap().port();
        let (weather, seen) = watch::channel(Weather { mode: Mode::Pass, generation: 0 });
        let (listens, listening) = watch::channel(true);
        let mut tasks = JoinSet::new();
        tasks.spawn(accept(listener, server, seen, listens));
        Self { port, weather, listening, _tasks: tasks }
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// Changes the weather; returns when it has changed (a refused port refuses, an open one accepts).
    pub(crate) async fn set(&mut self, mode: Mode) {
        self.weather.send_modify(|weather| {
            weather.mode = mode;
            weather.generation += u64::from(mode == Mode::Refuse);
        });
        let open = mode != Mode::Refuse;
        self.listening.wait_for(|listening| *listening == open).await.unwrap();
    }

    /// Resets all connections that there are; new ones are welcome.
    pub(crate) fn cut(&self) {
        self.weather.send_modify(|weather| weather.generation += 1);
    }
}

async fn accept(
    listener: TcpListener,
    server: u16,
    mut weather: watch::Receiver<Weather>,
    listens: watch::Sender<bool>,
) {
    let address = listener.local_addr().unwrap();
    let mut listener = Some(listener);
    let mut connections = JoinSet::new();
    loop {
        let refused = weather.borrow_and_update().mode == Mode::Refuse;
        if refused {
            listener = None;
        } else if listener.is_none() {
            listener = Some(TcpListener::bind(address).await.expect("its own port is free again"));
        }
        listens.send_replace(!refused);
        let accepted = async {
            match &listener {
                Some(listener) => listener.accept().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            changed = weather.changed() => if changed.is_err() { return },
            accepted = accepted => if let Ok((client, _)) = accepted {
                connections.spawn(carry(client, server, weather.clone()));
            },
            Some(_) = connections.join_next() => {}
        }
    }
}

/// One connection, from its acceptance to its end.
async fn carry(client: TcpStream, server: u16, mut weather: watch::Receiver<Weather>) {
    let generation = weather.borrow().generation;
    let mut cut = weather.clone();
    let over = async {
        // An error: the proxy is gone, and its connections with it.
        drop(cut.wait_for(|weather| weather.generation != generation).await);
    };
    tokio::select! {
        () = over => reset(&client),
        remote = connect(server, &mut weather) => match remote {
            Some(remote) => relay(client, remote, weather, generation).await,
            None => reset(&client),
        },
    }
}

/// Waits for fair weather, then connects to the server.
async fn connect(server: u16, weather: &mut watch::Receiver<Weather>) -> Option<TcpStream> {
    fair(weather).await?;
    TcpStream::connect(("127.0.0.1", server)).await.ok()
}

/// Carries bytes both ways until both sides have ended or the connection is cut.
async fn relay(mut client: TcpStream, mut remote: TcpStream, mut weather: watch::Receiver<Weather>, generation: u64) {
    let both = weather.clone();
    let broken = {
        // Borrowed halves: owned ones would say good-bye when dropped, and a cut is to be a reset.
        let (client_in, client_out) = client.split();
        let (remote_in, remote_out) = remote.split();
        tokio::select! {
            _ = weather.wait_for(|weather| weather.generation != generation) => true,
            ended = async { tokio::join!(pump(client_in, remote_out, both.clone()), pump(remote_in, client_out, both.clone())) } => {
                ended.0.is_none() || ended.1.is_none()
            }
        }
    };
    if broken {
        reset(&client);
        reset(&remote);
    }
}

/// One direction. `None`: broken; otherwise the end was passed on.
async fn pump(mut from: ReadHalf<'_>, mut to: WriteHalf<'_>, mut weather: watch::Receiver<Weather>) -> Option<()> {
    let mut buffer = vec![0; 64 * 1024];
    loop {
        fair(&mut weather).await?;
        let read = from.read(&mut buffer).await.ok()?;
        // What was read when the weather turned is held back: no packet passes.
        fair(&mut weather).await?;
        if read == 0 {
            return to.shutdown().await.ok();
        }
        to.write_all(&buffer[..read]).await.ok()?;
    }
}

/// Returns in fair weather. `None`: the proxy is gone.
async fn fair(weather: &mut watch::Receiver<Weather>) -> Option<()> {
    weather.wait_for(|weather| weather.mode == Mode::Pass).await.ok().map(drop)
}

/// Makes the coming close a reset.
fn reset(stream: &TcpStream) {
    // Fails only on a connection that is gone.
    drop(stream.set_zero_linger());
}

mod tests {
    use std::io::ErrorKind;
    use std::time::Duration;

    use tokio::time::timeout;

    use super::*;

    const SOON: Duration = Duration::from_secs(10);
    /// For "nothing comes": long enough for what would come over loopback.
    const QUIET: Duration = Duration::from_millis(200);

    async fn echo() -> (u16, JoinSet<()>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((mut stream, _)) = listener.accept().await {
                connections.spawn(async move {
                    let (mut input, mut output) = stream.split();
                    drop(tokio::io::copy(&mut input, &mut output).await);
                });
            }
        });
        (port, tasks)
    }

    async fn ask(stream: &mut TcpStream) -> std::io::Result<u8> {
        stream.write_u8(7).await?;
        timeout(SOON, stream.read_u8()).await.expect("an answer or an end")
    }

    #[tokio::test]
    async fn a_proxy_passes_bytes_and_cuts_connections() {
        let (server, _tasks) = echo().await;
        let proxy = Proxy::start(server).await;
        let mut stream = TcpStream::connect(("127.0.0.1", proxy.port())).await.unwrap();
        assert_eq!(ask(&mut stream).await.unwrap(), 7);
        proxy.cut();
        assert_eq!(timeout(SOON, stream.read_u8()).await.unwrap().unwrap_err().kind(), ErrorKind::ConnectionReset);
        let mut next = TcpStream::connect(("127.0.0.1", proxy.port())).await.unwrap();
        assert_eq!(ask(&mut next).await.unwrap(), 7);
    }

    #[tokio::test]
    async fn a_proxy_that_refuses_resets_what_was_connected_and_comes_back_on_the_same_port() {
        let (server, _tasks) = echo().await;
        let mut proxy = Proxy::start(server).await;
        let mut stream = TcpStream::connect(("127.0.0.1", proxy.port())).await.unwrap();
        assert_eq!(ask(&mut stream).await.unwrap(), 7);
        proxy.set(Mode::Refuse).await;
        assert_eq!(timeout(SOON, stream.read_u8()).await.unwrap().unwrap_err().kind(), ErrorKind::ConnectionReset);
        let refused = TcpStream::connect(("127.0.0.1", proxy.port())).await.unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
        proxy.set(Mode::Pass).await;
        let mut next = TcpStream::connect(("127.0.0.1", proxy.port())).await.unwrap();
        assert_eq!(ask(&mut next).await.unwrap(), 7);
    }

    #[tokio::test]
    async fn a_black_hole_accepts_and_answers_nothing_until_it_ends() {
        let (server, _tasks) = echo().await;
        let mut proxy = Proxy::start(server).await;
        let mut old = TcpStream::connect(("127.0.0.1", proxy.port())).await.unwrap();
        assert_eq!(ask(&mut old).await.unwrap(), 7);
        proxy.set(Mode::BlackHole).await;
        let mut new = TcpStream::connect(("127.0.0.1", proxy.port())).await.unwrap();
        for stream in [&mut old, &mut new] {
            stream.write_u8(8).await.unwrap();
            assert!(timeout(QUIET, stream.read_u8()).await.is_err(), "neither an answer nor an end");
        }
        proxy.set(Mode::Pass).await;
        for stream in [&mut old, &mut new] {
            assert_eq!(timeout(SOON, stream.read_u8()).await.unwrap().unwrap(), 8);
        }
    }
}
