//! A broker on a free loopback port with a real hub, and a client that speaks raw packets.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use futures_util::FutureExt as _;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::broker::{Bind, Broker, Config};
use crate::buffer::Buffer;
use crate::clock::{self, Clock, Moment};
use crate::hub::Hub;
use crate::message::{IdSource, Properties, Qos};
use crate::router::{LinkId, Table};
use crate::telemetry::board::BrokerBoard;
use crate::wire::{
    Ack, Connack, Connect, ConnectProperties, Decoder, Packet, PacketId, Publish, PublishProperties, Subscribe,
    SubscribeOptions, Subscription, Unsubscribe, Version, encode,
};

/// Longer than anything takes, short enough to end a test that hangs.
const PATIENCE: Duration = Duration::from_secs(20);

/// What is awaited never hangs a test.
pub(super) async fn soon<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, what).await.expect("it did not happen in time")
}

/// The machine's clock, and as much more as a test says has passed.
#[derive(Debug, Default)]
pub(super) struct Later {
    more_ms: AtomicU64,
    /// The machine's clock counts only up to here.
    stopped: Option<Moment>,
}

impl Later {
    /// A clock that only a test moves.
    pub(super) fn stopped() -> Self {
        Self { stopped: Some(clock::moment()), ..Self::default() }
    }

    pub(super) fn pass(&self, time: Duration) {
        self.more_ms.fetch_add(u64::try_from(time.as_millis()).unwrap(), Ordering::Relaxed);
    }
}

impl Clock for Later {
    fn now(&self) -> Instant {
        clock::now()
    }

    fn moment(&self) -> Moment {
        let (moment, more) = (self.stopped.unwrap_or_else(clock::moment), self.more_ms.load(Ordering::Relaxed));
        Moment { wall: clock::WallMs(moment.wall.0 + more), up_ms: moment.up_ms + more, ..moment }
    }
}

/// A running broker.
pub(super) struct Rig {
    pub(super) broker: Arc<Broker>,
    pub(super) hub: Arc<Hub>,
    pub(super) board: Arc<BrokerBoard>,
    /// Of the first listener.
    pub(super) address: SocketAddr,
    /// Of all.
    pub(super) addresses: Vec<Bind>,
    pub(super) clock: Arc<Later>,
    stop: CancellationToken,
    serving: JoinHandle<()>,
}

impl Rig {
    pub(super) async fn start(dir: &Path) -> Self {
        Self::with(dir, Config::default(), Table::default(), Vec::new()).await
    }

    pub(super) async fn with(dir: &Path, config: Config, table: Table, buffers: Vec<(LinkId, Buffer)>) -> Self {
        Self::at(Arc::default(), dir, config, table, buffers).await
    }

    /// By this clock.
    pub(super) async fn at(
        later: Arc<Later>,
        dir: &Path,
        mut config: Config,
        table: Table,
        buffers: Vec<(LinkId, Buffer)>,
    ) -> Self {
        for listener in &mut config.listeners {
            if let Bind::Tcp(address) = &mut listener.bind {
                *address = SocketAddr::from(([127, 0, 0, 1], 0));
            }
        }
        let ids = IdSource::new("test".into(), rand::random());
        let clock: Arc<dyn Clock> = Arc::<Later>::clone(&later);
        let lanes = buffers.into_iter().map(|(link, buffer)| (link, buffer.into())).collect();
        let hub = Arc::new(Hub::new(ids, table, lanes, Arc::clone(&clock)));
        let board = Arc::new(BrokerBoard::default());
        let broker = Broker::open(config, dir, Arc::clone(&hub), Arc::clone(&board), clock).unwrap();
        hub.attach(Arc::clone(&broker) as _);
        let bound = broker.bind().await.unwrap();
        let addresses: Vec<Bind> = bound.listening().iter().map(|listening| listening.address().clone()).collect();
        let address = addresses[0].address().unwrap();
        let stop = CancellationToken::new();
        #[expect(clippy::disallowed_methods, reason = "a test holds the handle")]
        let serving = tokio::spawn(bound.serve(stop.clone()));
        Self { broker, hub, board, address, addresses, clock: later, stop, serving }
    }

    /// A SIGKILL, as the disk sees it: the folder as it is at this moment, which a next broker opens.
    pub(super) fn crash(&self, from: &Path) -> tempfile::TempDir {
        let copy = tempfile::tempdir().unwrap();
        self.crash_into(from, copy.path());
        copy
    }

    /// The same, into a folder that is there.
    pub(super) fn crash_into(&self, from: &Path, to: &Path) {
        // Of one moment: a kill does not tear a file in two.
        self.broker.store.frozen(|| {
            for name in ["broker.db", "broker.db-wal"] {
                if from.join(name).exists() {
                    std::fs::copy(from.join(name), to.join(name)).unwrap();
                }
            }
            // What is in a link's log came behind the store's commit, so the log is looked at second.
            for folder in ["cloud", "cloud/dead-letters"].iter().filter(|folder| from.join(folder).is_dir()) {
                std::fs::create_dir_all(to.join(folder)).unwrap();
                for entry in std::fs::read_dir(from.join(folder)).unwrap().map(Result::unwrap) {
                    if entry.file_type().unwrap().is_file() {
                        std::fs::copy(entry.path(), to.join(folder).join(entry.file_name())).unwrap();
                    }
                }
            }
        });
    }

    /// An orderly end.
    pub(super) async fn stop(self) {
        self.stop.cancel();
        soon(self.serving).await.unwrap();
        soon(self.broker.close()).await;
    }

    /// Polls: what the broker does by itself tells nobody.
    pub(super) async fn until(&self, what: &str, is_so: impl Fn(&Self) -> bool) {
        let begun = clock::now();
        while !is_so(self) {
            assert!(begun.elapsed() < PATIENCE, "it did not come to this: {what}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    pub(super) async fn peer(&self, client_id: &str) -> Peer {
        Peer::open(self.address, connect(client_id)).await.0
    }
}

/// A CONNECT of MQTT 5 with a clean start and no session.
pub(super) fn connect(client_id: &str) -> Connect {
    Connect {
        version: Version::V5,
        clean_start: true,
        keep_alive_s: 60,
        client_id: client_id.into(),
        will: None,
        user: None,
        password: None,
        properties: ConnectProperties::default(),
    }
}

/// The same for a session that is kept and resumed.
pub(super) fn kept(client_id: &str) -> Connect {
    let properties = ConnectProperties { session_expiry_s: Some(3_600), ..ConnectProperties::default() };
    Connect { clean_start: false, properties, ..connect(client_id) }
}

/// A PUBLISH.
pub(super) fn publish(topic: &str, payload: &str, qos: Qos, id: u16) -> Publish {
    Publish {
        topic: topic.into(),
        payload: Bytes::copy_from_slice(payload.as_bytes()),
        qos,
        dup: false,
        retain: false,
        id: PacketId::new(id),
        properties: PublishProperties { application: Properties::default(), ..PublishProperties::default() },
    }
}

pub(super) fn ack(id: u16) -> Ack {
    Ack::success(PacketId::new(id).unwrap())
}

/// What carries a client's bytes.
pub(super) trait Pipe: tokio::io::AsyncRead + tokio::io::AsyncWrite + Send + Unpin {}

impl<T: tokio::io::AsyncRead + tokio::io::AsyncWrite + Send + Unpin> Pipe for T {}

/// A client that does nothing by itself.
pub(super) struct Peer {
    pub(super) stream: Box<dyn Pipe>,
    decoder: Decoder,
    input: BytesMut,
    version: Version,
}

async fn tcp(address: SocketAddr) -> Box<dyn Pipe> {
    let stream = TcpStream::connect(address).await.unwrap();
    stream.set_nodelay(true).unwrap();
    Box::new(stream)
}

impl Peer {
    pub(super) async fn open(address: SocketAddr, connect: Connect) -> (Self, Connack) {
        Self::over(tcp(address).await, connect).await
    }

    pub(super) async fn over(stream: Box<dyn Pipe>, connect: Connect) -> (Self, Connack) {
        let mut peer = Self::begin_over(stream, connect).await;
        let Packet::Connack(connack) = peer.receive().await else { panic!("no CONNACK") };
        (peer, *connack)
    }

    /// Sends CONNECT, and leaves it to the test what follows.
    pub(super) async fn begin(address: SocketAddr, connect: Connect) -> Self {
        Self::begin_over(tcp(address).await, connect).await
    }

    pub(super) async fn begin_over(stream: Box<dyn Pipe>, connect: Connect) -> Self {
        let version = connect.version;
        let mut peer = Self { stream, decoder: Decoder::client(version, 1 << 24), input: BytesMut::new(), version };
        peer.send(Packet::Connect(Box::new(connect))).await;
        peer
    }

    pub(super) async fn send(&mut self, packet: Packet) {
        self.send_all([packet]).await;
    }

    /// In one write.
    pub(super) async fn send_all(&mut self, packets: impl IntoIterator<Item = Packet>) {
        let mut output = BytesMut::new();
        for packet in packets {
            encode(&packet, self.version, &mut output).unwrap();
        }
        self.stream.write_all(&output).await.unwrap();
    }

    /// The next packet; the connection must not end.
    pub(super) async fn receive(&mut self) -> Packet {
        self.next().await.expect("the broker closed the connection")
    }

    /// The next packet, or `None` at the end of the connection.
    pub(super) async fn next(&mut self) -> Option<Packet> {
        loop {
            if let Some(packet) = self.decoder.decode(&mut self.input).unwrap() {
                return Some(packet);
            }
            match soon(self.stream.read_buf(&mut self.input)).await {
                Ok(0) | Err(_) => return None,
                Ok(_) => {}
            }
        }
    }

    /// All that is there now, without waiting for more; and whether the connection has ended.
    pub(super) fn waiting(&mut self) -> (Vec<Packet>, bool) {
        let mut packets = Vec::new();
        loop {
            while let Some(packet) = self.decoder.decode(&mut self.input).unwrap() {
                packets.push(packet);
            }
            match self.stream.read_buf(&mut self.input).now_or_never() {
                None => return (packets, false),
                Some(Ok(0) | Err(_)) => return (packets, true),
                Some(Ok(_)) => {}
            }
        }
    }

    pub(super) async fn publication(&mut self) -> Publish {
        let packet = self.receive().await;
        let Packet::Publish(publish) = packet else { panic!("expected a PUBLISH, got {packet:?}") };
        publish
    }

    /// Shows that nothing was on its way before this.
    pub(super) async fn expect_silence(&mut self) {
        self.send(Packet::Pingreq).await;
        assert_eq!(self.receive().await, Packet::Pingresp);
    }

    pub(super) async fn subscribe(&mut self, filter: &str, qos: Qos) {
        self.subscribe_with(filter, SubscribeOptions { qos, ..SubscribeOptions::default() }, None).await;
    }

    pub(super) async fn subscribe_with(&mut self, filter: &str, options: SubscribeOptions, id: Option<u32>) {
        let subscriptions = vec![Subscription { filter: filter.into(), options }];
        let id = id.and_then(crate::wire::SubscriptionId::new);
        let packet_id = PacketId::new(1).unwrap();
        self.send(Packet::Subscribe(Subscribe { id: packet_id, subscription_id: id, user: Vec::new(), subscriptions }))
            .await;
        let Packet::Suback(suback) = self.receive().await else { panic!("no SUBACK") };
        assert!(suback.codes.iter().all(|code| !code.is_error()), "{suback:?}");
    }

    pub(super) async fn unsubscribe(&mut self, filter: &str) {
        let id = PacketId::new(1).unwrap();
        self.send(Packet::Unsubscribe(Unsubscribe { id, user: Vec::new(), filters: vec![filter.into()] })).await;
        let Packet::Unsuback(unsuback) = self.receive().await else { panic!("no UNSUBACK") };
        assert!(unsuback.codes.iter().all(|code| !code.is_error()), "{unsuback:?}");
    }

    /// Publishes with QoS 1 or 2 and awaits the end of the exchange.
    pub(super) async fn deliver(&mut self, topic: &str, payload: &str, qos: Qos, id: u16) {
        self.send(Packet::Publish(publish(topic, payload, qos, id))).await;
        match qos {
            Qos::AtMostOnce => {}
            Qos::AtLeastOnce => assert_eq!(self.receive().await, Packet::Puback(ack(id))),
            Qos::ExactlyOnce => {
                assert_eq!(self.receive().await, Packet::Pubrec(ack(id)));
                self.send(Packet::Pubrel(ack(id))).await;
                assert_eq!(self.receive().await, Packet::Pubcomp(ack(id)));
            }
        }
    }
}

impl Peer {
    /// Awaits the PUBREL of `id` and completes; a PUBLISH that comes before is kept for later.
    pub(super) async fn finish(&mut self, id: u16) {
        let mut held = Vec::new();
        loop {
            let packet = self.receive().await;
            if packet == Packet::Pubrel(ack(id)) {
                break;
            }
            held.push(packet);
        }
        let mut before = BytesMut::new();
        for packet in held {
            encode(&packet, self.version, &mut before).unwrap();
        }
        before.extend_from_slice(&self.input);
        self.input = before;
        self.send(Packet::Pubcomp(ack(id))).await;
    }
}
