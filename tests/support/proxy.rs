//! A TCP proxy that breaks connections in the ways that networks do: refused, cut, cut within a frame, half open, open but dead, mute,
//! slow, or far away.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout_at};

use super::process::free_port;

/// Bytes that one step of a slow line carries, and how long it takes: 1 KiB a second.
const SLOW_STEP: (usize, Duration) = (128, Duration::from_millis(125));

/// What the kernel may take for a slow line's proxy, so that it acknowledges what the line has carried and not much more.
const SLOW_BUFFER: u32 = 1024;

/// What is under way on a line at most.
const UNDER_WAY_MAX: usize = 4 << 20;

/// What the proxy does with its connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    /// Carries bytes both ways.
    Pass,
    /// Nothing listens, and what was connected has been reset.
    Refuse,
    /// Connections are accepted and stay open, but no byte passes and no reset comes.
    BlackHole,
    /// What clients send passes; what the server answers does not.
    Mute,
    /// 1 KiB a second each way. What was connected has been reset: a line becomes slow with a new connection.
    Slow,
    /// Each byte arrives so much later, each way.
    Far(Duration),
}

/// Which way bytes go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    ToServer,
    ToClient,
}

/// Connections are numbered as they are accepted; what happens to those below a number does not happen to later ones.
#[derive(Clone, Copy, Debug)]
struct Weather {
    mode: Mode,
    /// Those below are reset.
    cut_below: u64,
    /// Those below are open at the client's end alone.
    half_open_below: u64,
    /// Those below are reset when so many more bytes have passed one way.
    doomed: Option<(u64, Way, usize)>,
}

/// A proxy in front of one server. Dropped, it is gone with all its connections.
#[derive(Debug)]
pub(crate) struct Proxy {
    port: u16,
    weather: watch::Sender<Weather>,
    /// The mode that the listener is in.
    listening: watch::Receiver<Mode>,
    accepted: Arc<AtomicU64>,
    _tasks: JoinSet<()>,
}

impl Proxy {
    /// Listens on a free port, in front of `server`, which need not be there yet.
    pub(crate) async fn start(server: u16) -> Self {
        let listener = loop {
            if let Ok(listener) = listen(free_port(), Mode::Pass).await {
                break listener;
            }
        };
        let port = listener.local_addr().unwrap().port();
        let fair = Weather { mode: Mode::Pass, cut_below: 0, half_open_below: 0, doomed: None };
        let (weather, seen) = watch::channel(fair);
        let (listens, listening) = watch::channel(Mode::Pass);
        let accepted = Arc::new(AtomicU64::new(0));
        let mut tasks = JoinSet::new();
        tasks.spawn(accept(listener, server, seen, listens, Arc::clone(&accepted)));
        Self { port, weather, listening, accepted, _tasks: tasks }
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// Changes the weather; returns when it has changed (a refused port refuses, an open one accepts).
    pub(crate) async fn set(&mut self, mode: Mode) {
        let accepted = self.accepted.load(Ordering::SeqCst);
        self.weather.send_modify(|weather| {
            weather.mode = mode;
            if matches!(mode, Mode::Refuse | Mode::Slow) {
                weather.cut_below = accepted;
            }
        });
        self.listening.wait_for(|listening| *listening == mode).await.unwrap();
    }

    /// Resets all connections that there are; new ones are welcome.
    pub(crate) fn cut(&self) {
        let accepted = self.accepted.load(Ordering::SeqCst);
        self.weather.send_modify(|weather| weather.cut_below = accepted);
    }

    /// The same, of each connection when so many more bytes have passed one way: within a frame, if the number is odd enough.
    pub(crate) fn cut_after(&self, way: Way, bytes: usize) {
        let accepted = self.accepted.load(Ordering::SeqCst);
        self.weather.send_modify(|weather| weather.doomed = Some((accepted, way, bytes)));
    }

    /// The server's end of all connections that there are is gone, and the clients hear nothing of it; new ones are welcome.
    pub(crate) fn half_open(&self) {
        let accepted = self.accepted.load(Ordering::SeqCst);
        self.weather.send_modify(|weather| weather.half_open_below = accepted);
    }

    /// How many connections it has accepted.
    pub(crate) fn accepted(&self) -> u64 {
        self.accepted.load(Ordering::SeqCst)
    }
}

/// A slow line's listener has small buffers, which its connections inherit.
async fn listen(port: u16, mode: Mode) -> std::io::Result<TcpListener> {
    if mode != Mode::Slow {
        return TcpListener::bind(("127.0.0.1", port)).await;
    }
    let socket = TcpSocket::new_v4()?;
    socket.set_reuseaddr(true)?;
    socket.set_recv_buffer_size(SLOW_BUFFER)?;
    socket.bind(([127, 0, 0, 1], port).into())?;
    socket.listen(64)
}

async fn accept(
    listener: TcpListener,
    server: u16,
    mut weather: watch::Receiver<Weather>,
    listens: watch::Sender<Mode>,
    accepted: Arc<AtomicU64>,
) {
    let port = listener.local_addr().unwrap().port();
    let mut listener = Some(listener);
    let mut connections = JoinSet::new();
    loop {
        let (before, mode) = (*listens.borrow(), weather.borrow_and_update().mode);
        if mode == Mode::Refuse || (before == Mode::Slow) != (mode == Mode::Slow) {
            listener = None;
        }
        if mode != Mode::Refuse && listener.is_none() {
            listener = Some(listen(port, mode).await.expect("its own port is free again"));
        }
        listens.send_replace(mode);
        let next = async {
            match &listener {
                Some(listener) => listener.accept().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            changed = weather.changed() => if changed.is_err() { return },
            next = next => if let Ok((client, _)) = next {
                let number = accepted.fetch_add(1, Ordering::SeqCst);
                connections.spawn(carry(client, server, weather.clone(), number));
            },
            Some(_) = connections.join_next() => {}
        }
    }
}

/// One connection, from its acceptance to its end.
async fn carry(client: TcpStream, server: u16, mut weather: watch::Receiver<Weather>, number: u64) {
    let mut cut = weather.clone();
    let over = async {
        // An error: the proxy is gone, and its connections with it.
        drop(cut.wait_for(|weather| number < weather.cut_below).await);
    };
    tokio::select! {
        () = over => reset(&client),
        remote = connect(server, &mut weather) => match remote {
            Some(remote) => relay(client, remote, weather, number).await,
            None => reset(&client),
        },
    }
}

/// Waits for weather in which something passes, then connects to the server.
async fn connect(server: u16, weather: &mut watch::Receiver<Weather>) -> Option<TcpStream> {
    passes(weather, Way::ToServer).await?;
    TcpStream::connect(("127.0.0.1", server)).await.ok()
}

/// Carries bytes both ways until both sides have ended or the connection is cut.
async fn relay(mut client: TcpStream, mut remote: TcpStream, mut weather: watch::Receiver<Weather>, number: u64) {
    let (up, down) = (weather.clone(), weather.clone());
    let mut half_open = weather.clone();
    let broken = {
        // Borrowed halves: owned ones would say good-bye when dropped, and a cut is to be a reset.
        let (client_in, client_out) = client.split();
        let (remote_in, remote_out) = remote.split();
        tokio::select! {
            _ = weather.wait_for(|weather| number < weather.cut_below) => Broken::Cut,
            _ = half_open.wait_for(|weather| number < weather.half_open_below) => Broken::HalfOpen,
            ended = async {
                tokio::try_join!(
                    pump(client_in, remote_out, up, Way::ToServer, number),
                    pump(remote_in, client_out, down, Way::ToClient, number)
                )
            } => if ended.is_err() { Broken::Cut } else { Broken::Not },
        }
    };
    if broken != Broken::Not {
        reset(&remote);
    }
    if broken == Broken::HalfOpen {
        drop(remote);
        // Until the proxy is gone, or this one is cut.
        drop(weather.wait_for(|weather| number < weather.cut_below).await);
    }
    if broken != Broken::Not {
        reset(&client);
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Broken {
    Not,
    Cut,
    HalfOpen,
}

/// What was read and is not written yet, with the moment at which it arrives. An empty piece is the end.
#[derive(Debug, Default)]
struct UnderWay {
    pieces: VecDeque<(Instant, Vec<u8>)>,
    bytes: usize,
}

/// A connection that is to be reset.
#[derive(Debug)]
struct Reset;

/// One direction, until its end was passed on.
async fn pump(
    from: ReadHalf<'_>,
    to: WriteHalf<'_>,
    weather: watch::Receiver<Weather>,
    way: Way,
    number: u64,
) -> Result<(), Reset> {
    let (line, changed) = (parking_lot::Mutex::new(UnderWay::default()), Notify::new());
    let taken = take(from, weather.clone(), way, &line, &changed);
    let given = give(to, weather, way, number, &line, &changed);
    tokio::pin!(taken, given);
    let ended = tokio::select! {
        given = &mut given => given,
        taken = &mut taken => match taken {
            Some(()) => given.await,
            None => None,
        },
    };
    ended.ok_or(Reset)
}

/// Puts what comes on the line.
async fn take(
    mut from: ReadHalf<'_>,
    mut weather: watch::Receiver<Weather>,
    way: Way,
    line: &parking_lot::Mutex<UnderWay>,
    changed: &Notify,
) -> Option<()> {
    let mut buffer = vec![0; 64 * 1024];
    loop {
        passes(&mut weather, way).await?;
        while line.lock().bytes > UNDER_WAY_MAX {
            changed.notified().await;
        }
        let mode = weather.borrow().mode;
        let most = if mode == Mode::Slow { SLOW_STEP.0 } else { buffer.len() };
        let read = from.read(&mut buffer[..most]).await.ok()?;
        let begun = Instant::now();
        let mode = weather.borrow().mode;
        let late = if let Mode::Far(late) = mode { late } else { Duration::ZERO };
        {
            let mut line = line.lock();
            line.bytes += read;
            line.pieces.push_back((begun + late, buffer[..read].to_vec()));
        }
        changed.notify_one();
        if read == 0 {
            return Some(());
        }
        if mode == Mode::Slow {
            pause_until(begun + SLOW_STEP.1).await;
        }
    }
}

/// Takes what has arrived off the line. What is on it when the weather turns is held back: no packet passes.
async fn give(
    mut to: WriteHalf<'_>,
    mut weather: watch::Receiver<Weather>,
    way: Way,
    number: u64,
    line: &parking_lot::Mutex<UnderWay>,
    changed: &Notify,
) -> Option<()> {
    let mut passed = None;
    loop {
        let next = line.lock().pieces.pop_front();
        let Some((arrives, piece)) = next else {
            changed.notified().await;
            continue;
        };
        pause_until(arrives).await;
        passes(&mut weather, way).await?;
        if piece.is_empty() {
            return to.shutdown().await.ok();
        }
        let doomed = weather.borrow().doomed.filter(|doomed| number < doomed.0 && doomed.1 == way);
        let left = doomed.map(|(_, _, bytes)| bytes.saturating_sub(*passed.get_or_insert(0)));
        let end = left.map_or(piece.len(), |left| left.min(piece.len()));
        to.write_all(&piece[..end]).await.ok()?;
        if let Some(passed) = &mut passed {
            *passed += end;
        }
        if left.is_some_and(|left| left <= piece.len()) {
            return None;
        }
        line.lock().bytes -= piece.len();
        changed.notify_one();
    }
}

/// The line's own time.
async fn pause_until(moment: Instant) {
    drop(timeout_at(moment, std::future::pending::<()>()).await);
}

/// Returns in weather in which bytes go this way. `None`: the proxy is gone.
async fn passes(weather: &mut watch::Receiver<Weather>, way: Way) -> Option<()> {
    let open = |mode| match mode {
        Mode::Pass | Mode::Slow | Mode::Far(_) => true,
        Mode::Mute => way == Way::ToServer,
        Mode::Refuse | Mode::BlackHole => false,
    };
    weather.wait_for(|weather| open(weather.mode)).await.ok().map(drop)
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

    /// `count` bytes and their echo; how many came back.
    async fn ask_for(stream: &mut TcpStream, count: usize) -> usize {
        stream.write_all(&vec![7; count]).await.unwrap();
        let mut back = 0;
        let mut buffer = [0; 1024];
        while back < count {
            match timeout(SOON, stream.read(&mut buffer)).await.expect("an answer or an end") {
                Ok(read) if read > 0 => back += read,
                _ => break,
            }
        }
        back
    }

    #[tokio::test]
    async fn a_connection_is_cut_within_a_frame_either_way_and_the_next_is_not() {
        for way in [Way::ToServer, Way::ToClient] {
            let (server, _tasks) = echo().await;
            let proxy = Proxy::start(server).await;
            let mut stream = TcpStream::connect(("127.0.0.1", proxy.port())).await.unwrap();
            assert_eq!(ask(&mut stream).await.unwrap(), 7);
            proxy.cut_after(way, 10);
            assert!(ask_for(&mut stream, 100).await <= 10);
            let mut next = TcpStream::connect(("127.0.0.1", proxy.port())).await.unwrap();
            assert_eq!(ask_for(&mut next, 100).await, 100);
        }
    }

    #[tokio::test]
    async fn what_is_half_open_stays_silent_and_a_new_connection_passes() {
        let (server, _tasks) = echo().await;
        let proxy = Proxy::start(server).await;
        let mut old = TcpStream::connect(("127.0.0.1", proxy.port())).await.unwrap();
        assert_eq!(ask(&mut old).await.unwrap(), 7);
        proxy.half_open();
        old.write_u8(8).await.unwrap();
        assert!(timeout(QUIET, old.read_u8()).await.is_err(), "neither an answer nor an end");
        let mut new = TcpStream::connect(("127.0.0.1", proxy.port())).await.unwrap();
        assert_eq!(ask(&mut new).await.unwrap(), 7);
    }

    #[tokio::test]
    async fn a_mute_server_hears_and_is_not_heard() {
        let (server, _tasks) = echo().await;
        let mut proxy = Proxy::start(server).await;
        let mut stream = TcpStream::connect(("127.0.0.1", proxy.port())).await.unwrap();
        assert_eq!(ask(&mut stream).await.unwrap(), 7);
        proxy.set(Mode::Mute).await;
        stream.write_u8(8).await.unwrap();
        assert!(timeout(QUIET, stream.read_u8()).await.is_err());
        proxy.set(Mode::Pass).await;
        assert_eq!(timeout(SOON, stream.read_u8()).await.unwrap().unwrap(), 8);
    }

    #[tokio::test]
    async fn a_far_server_answers_late_and_a_slow_line_takes_its_time() {
        let (server, _tasks) = echo().await;
        let mut proxy = Proxy::start(server).await;
        let mut stream = TcpStream::connect(("127.0.0.1", proxy.port())).await.unwrap();
        proxy.set(Mode::Far(Duration::from_millis(150))).await;
        let asked = Instant::now();
        assert_eq!(ask(&mut stream).await.unwrap(), 7);
        assert!(asked.elapsed() >= Duration::from_millis(300), "there and back");
        proxy.set(Mode::Slow).await;
        let mut stream = TcpStream::connect(("127.0.0.1", proxy.port())).await.unwrap();
        let asked = Instant::now();
        assert_eq!(ask_for(&mut stream, 512).await, 512);
        assert!(asked.elapsed() >= Duration::from_millis(300), "half a KiB at 1 KiB a second");
    }
}
