//! The broker's way from bytes to effects, for `fuzz/` and for the test that runs its corpus: any bytes from any of a few clients, no
//! panic, no endless loop, no more memory than a few times the bytes, and every answer is MQTT. Not an interface.

use std::io;
use std::num::NonZeroU32;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::{Buf as _, BytesMut};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::auth::{self, jwt};
use super::places::{self, Places};
use super::transport::{Entrance, Peer, Socket};
use super::{Broker, Config, Listener, ProxyTerms, WebSocketTerms, connection};
use crate::clock::Clock;
use crate::hub::Hub;
use crate::telemetry::board::BrokerBoard;
use crate::units::ByteSize;
use crate::wire::{Decoder, Packet, Version};

/// Clients that speak in turns.
const CLIENTS: usize = 4;

/// Connections at a time: those that have hung up may not have ended yet.
const PLACES: usize = 1_000;

/// Of a turn's first byte: which client. See [`serve`].
const CLIENT_BITS: u8 = 0b11;

/// Of a turn's first byte: the client hangs up after it.
const HANGS_UP: u8 = 0x80;

/// What a turn's bytes set going has so many rounds of the runtime each time that the store has caught up.
const ROUNDS: usize = 8;

/// So many times in a row nothing new was staged: then a turn is over. What waits for a commit, then for a row that is read, and then for
/// a page of them, comes within that.
const QUIET: usize = 4;

/// What takes longer hangs. A connection that was told its last is listened to for three seconds at most.
const PATIENCE: Duration = Duration::from_secs(20);

/// What a client may send in a packet: small, so that a length that is a lie shows in the memory used.
const PACKET_BYTES_MAX: u32 = 64 << 10;

/// What tokens are signed with.
pub const SECRET: &str = "secret-of-the-fuzzed-broker-0123";

/// What the bytes were taken for; a run that finds nothing in good files would be a check that cannot fail.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// Packets that the broker took.
    pub packets: u64,
    /// Packets that it answered with, PUBLISH among them.
    pub answers: usize,
    /// PUBLISH packets that it delivered.
    pub deliveries: usize,
}

/// Serves clients that send `data`: turns, each a byte (client in [`CLIENT_BITS`], [`HANGS_UP`]), a length of two bytes (little endian),
/// and so many bytes, or what there is. A client that has hung up, or was hung up on, connects anew at its next turn. `dir` is empty.
///
/// # Errors
/// What must not be: a panic, a hang, an answer that is no MQTT. Also a broker that cannot be made.
pub fn serve(dir: &Path, hub: Arc<Hub>, clock: Arc<dyn Clock>, data: &[u8]) -> io::Result<Found> {
    serve_at(Fronts::default(), dir, hub, clock, data)
}

/// The same behind what a listener may have before MQTT, as the first byte says: bit 0 a proxy's header, bit 1 WebSocket, bit 2 logins, by
/// tokens of [`SECRET`] or by proof. All of it is part of what the clients send.
///
/// # Errors
/// As for [`serve`].
pub fn serve_behind(dir: &Path, hub: Arc<Hub>, clock: Arc<dyn Clock>, data: &[u8]) -> io::Result<Found> {
    let (first, data) = data.split_first().map_or((0, data), |(first, rest)| (*first, rest));
    serve_at(Fronts::of(first), dir, hub, clock, data)
}

fn serve_at(fronts: Fronts, dir: &Path, hub: Arc<Hub>, clock: Arc<dyn Clock>, data: &[u8]) -> io::Result<Found> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let board = Arc::new(BrokerBoard::default());
        let auth = if fronts.logins { logins() } else { auth::Config::default() };
        let config = Config { max_packet_size: ByteSize(PACKET_BYTES_MAX.into()), auth, ..Config::default() };
        let broker = Broker::open(config, dir, Arc::clone(&hub), Arc::clone(&board), Arc::clone(&clock))
            .map_err(io::Error::other)?;
        hub.attach(Arc::clone(&broker) as _);
        let mut clients = Clients::new(&broker, fronts);
        for turn in turns(data) {
            clients.take(turn).await?;
        }
        let mut found = in_time(clients.end()).await??;
        // Wills and sessions that their clients have left behind.
        broker.keep_house(clock.moment());
        broker.tasks.close();
        in_time(broker.tasks.wait()).await?;
        in_time(broker.close()).await?;
        found.packets = board.packets_in.load(Ordering::Relaxed);
        Ok(found)
    })
}

/// What stands before MQTT.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Fronts {
    proxy: bool,
    websocket: bool,
    logins: bool,
}

impl Fronts {
    const fn of(byte: u8) -> Self {
        Self { proxy: byte & 1 != 0, websocket: byte & 2 != 0, logins: byte & 4 != 0 }
    }
}

/// Tokens alone: a password is checked on a thread of its own, and what follows would depend on how fast that is.
fn logins() -> auth::Config {
    let (groups_claim, acl_claim) = (Some("groups".into()), Some("mqtt".into()));
    let terms = jwt::Terms { groups_claim, acl_claim, require_expiry: false, ..jwt::Terms::default() };
    let keys = jwt::KeySource::Secret(SECRET.to_owned().into());
    // Who fails once is refused unseen, and not made to wait.
    let failed_logins_max = NonZeroU32::new(1);
    auth::Config { jwt: Some(jwt::Config { keys, terms }), failed_logins_max, ..auth::Config::default() }
}

async fn in_time<T>(what: impl Future<Output = T>) -> io::Result<T> {
    tokio::time::timeout(PATIENCE, what).await.map_err(|_elapsed| io::Error::other("the broker hangs"))
}

/// What one client does next.
struct Turn<'a> {
    client: usize,
    bytes: &'a [u8],
    hangs_up: bool,
}

fn turns(mut data: &[u8]) -> impl Iterator<Item = Turn<'_>> {
    std::iter::from_fn(move || {
        let head = data.try_get_u8().ok()?;
        let len = data.try_get_u16_le().map_or(0, usize::from);
        let (bytes, rest) = data.split_at_checked(len).unwrap_or((data, &[]));
        data = rest;
        Some(Turn { client: usize::from(head & CLIENT_BITS), bytes, hangs_up: head & HANGS_UP != 0 })
    })
}

struct Clients {
    broker: Arc<Broker>,
    entrance: Arc<Entrance>,
    places: Arc<Places>,
    fronts: Fronts,
    connected: [Option<Speaker>; CLIENTS],
    serving: JoinSet<()>,
    listening: JoinSet<io::Result<Found>>,
}

/// A client's sending half.
struct Speaker {
    socket: OwnedWriteHalf,
    /// Finds out the version of what it sends, as the broker does.
    decoder: Decoder,
    sent: BytesMut,
    version: Arc<OnceLock<Version>>,
}

impl Clients {
    fn new(broker: &Arc<Broker>, fronts: Fronts) -> Self {
        let mut listener = Listener::tcp(([127, 0, 0, 1], 0).into());
        listener.anonymous = !fronts.logins;
        listener.proxy_protocol = fronts.proxy.then(ProxyTerms::default);
        listener.websocket = fronts.websocket.then(WebSocketTerms::default);
        Self {
            broker: Arc::clone(broker),
            entrance: Arc::new(Entrance::new(Arc::new(listener), None)),
            places: Arc::new(Places::new(PLACES, None, places::places(PLACES))),
            fronts,
            connected: [const { None }; CLIENTS],
            serving: JoinSet::new(),
            listening: JoinSet::new(),
        }
    }

    async fn take(&mut self, Turn { client, bytes, hangs_up }: Turn<'_>) -> io::Result<()> {
        let connected = self.connected.get_mut(client).and_then(Option::take);
        let mut speaker = match connected {
            Some(speaker) => speaker,
            None => self.connect()?,
        };
        let is_over = in_time(speaker.say(bytes)).await?.is_err() || hangs_up;
        // Before it hangs up: what waits for the store's commit would find nobody else.
        in_time(self.settle()).await?;
        if let Some(place) = self.connected.get_mut(client).filter(|_| !is_over) {
            *place = Some(speaker);
        }
        Ok(())
    }

    /// Until all that was said has had its effects, those that wait for the store included: what follows does not depend on how fast the
    /// store's thread is.
    async fn settle(&self) {
        let store = &self.broker.store;
        let (mut durable, mut quiet) = (store.durable(), 0);
        while quiet < QUIET {
            for _ in 0..ROUNDS {
                tokio::task::yield_now().await;
            }
            store.caught_up().await;
            let now = store.durable();
            quiet = if now == durable { quiet + 1 } else { 0 };
            durable = now;
        }
    }

    fn connect(&mut self) -> io::Result<Speaker> {
        let (ours, theirs) = UnixStream::pair()?;
        let listener = Arc::clone(&self.entrance.listener);
        let peer = Peer { address: None, listener, certificate: None, is_secure: false };
        let (broker, entrance, places) =
            (Arc::clone(&self.broker), Arc::clone(&self.entrance), Arc::clone(&self.places));
        self.serving.spawn(async move {
            let place = places.one_more().await;
            connection::serve(broker, Socket::Unix(theirs), peer, entrance, place, CancellationToken::new()).await;
        });
        let (reader, socket) = ours.into_split();
        let version = Arc::new(OnceLock::new());
        if self.fronts == Fronts::default() {
            self.listening.spawn(listen(reader, Arc::clone(&version)));
        } else {
            self.listening.spawn(listen_behind(reader, self.fronts));
        }
        Ok(Speaker {
            socket,
            decoder: Decoder::server(usize::try_from(PACKET_BYTES_MAX).unwrap_or(usize::MAX)),
            sent: BytesMut::new(),
            version,
        })
    }

    /// All hang up. Returns what the broker told them, when it is done with them.
    async fn end(mut self) -> io::Result<Found> {
        self.connected = [const { None }; CLIENTS];
        while let Some(served) = self.serving.join_next().await {
            served?;
        }
        let mut found = Found::default();
        while let Some(heard) = self.listening.join_next().await {
            let heard = heard??;
            found.answers += heard.answers;
            found.deliveries += heard.deliveries;
        }
        Ok(found)
    }
}

impl Speaker {
    /// `Err`: the broker has hung up.
    async fn say(&mut self, bytes: &[u8]) -> io::Result<()> {
        if self.version.get().is_none() {
            self.sent.extend_from_slice(bytes);
            let known = self.decoder.decode(&mut self.sent);
            if let (Some(version), false) = (self.decoder.version(), matches!(known, Ok(None))) {
                self.version.get_or_init(|| version);
            }
        }
        self.socket.write_all(bytes).await
    }
}

/// Reads a client's answers to their end: all of them are MQTT of its version.
async fn listen(mut socket: OwnedReadHalf, version: Arc<OnceLock<Version>>) -> io::Result<Found> {
    let (mut decoder, mut input, mut found) = (None, BytesMut::new(), Found::default());
    while matches!(socket.read_buf(&mut input).await, Ok(1..)) {
        // Who sends no CONNECT that is one is answered in MQTT 3.1.1.
        let version = version.get().copied().unwrap_or(Version::V311);
        let decoder = decoder.get_or_insert_with(|| Decoder::client(version, 1 << 20));
        while let Some(packet) = decoder.decode(&mut input).map_err(|error| wrong(version, &error))? {
            found.answers += 1;
            found.deliveries += usize::from(matches!(packet, Packet::Publish(_)));
        }
    }
    Ok(found)
}

/// The same behind what is no MQTT: which version the client spoke is not known then, so either will do.
async fn listen_behind(mut socket: OwnedReadHalf, fronts: Fronts) -> io::Result<Found> {
    let mut sent = Vec::new();
    while matches!(socket.read_buf(&mut sent).await, Ok(1..)) {}
    let mqtt = if fronts.websocket { unframed(&sent)? } else { sent };
    match [Version::V5, Version::V311].map(|version| answers(version, &mqtt)) {
        [Ok(found), _] | [Err(_), Ok(found)] => Ok(found),
        [Err(error), Err(_)] => Err(error),
    }
}

fn answers(version: Version, mqtt: &[u8]) -> io::Result<Found> {
    let (mut decoder, mut input, mut found) =
        (Decoder::client(version, 1 << 20), BytesMut::from(mqtt), Found::default());
    while let Some(packet) = decoder.decode(&mut input).map_err(|error| wrong(version, &error))? {
        found.answers += 1;
        found.deliveries += usize::from(matches!(packet, Packet::Publish(_)));
    }
    Ok(found)
}

/// The MQTT in what a WebSocket's server has sent: an HTTP answer, and frames behind it if it was the switch of protocols.
fn unframed(sent: &[u8]) -> io::Result<Vec<u8>> {
    let mut mqtt = Vec::new();
    if sent.is_empty() {
        return Ok(mqtt);
    }
    let end = sent.windows(4).position(|four| four == b"\r\n\r\n");
    let (head, mut rest) = end.and_then(|end| sent.split_at_checked(end + 4)).unwrap_or((sent, &[]));
    if !head.starts_with(b"HTTP/1.1 101 ") {
        let is_refused = end.is_some() && head.starts_with(b"HTTP/1.1 4");
        return if is_refused { Ok(mqtt) } else { Err(io::Error::other("the broker's answer is no HTTP")) };
    }
    while let Some((opcode, payload, behind)) = frame(rest)? {
        match opcode {
            0 | 2 => mqtt.extend_from_slice(payload),
            // Close, ping and pong.
            8..=10 => {}
            _ => return Err(io::Error::other(format!("the broker's frame has the opcode {opcode}"))),
        }
        rest = behind;
    }
    Ok(mqtt)
}

/// A frame's opcode and payload, and what is behind it.
type Frame<'a> = (u8, &'a [u8], &'a [u8]);

/// The first frame; `None`: it has no end (RFC 6455 section 5.2).
fn frame(mut bytes: &[u8]) -> io::Result<Option<Frame<'_>>> {
    let (Ok(first), Ok(second)) = (bytes.try_get_u8(), bytes.try_get_u8()) else { return Ok(None) };
    if second & 0x80 != 0 {
        return Err(io::Error::other("the broker's frame is masked"));
    }
    let len = match second {
        126 => bytes.try_get_u16().map(u64::from),
        127 => bytes.try_get_u64(),
        len => Ok(len.into()),
    };
    let len = len.ok().and_then(|len| usize::try_from(len).ok());
    Ok(len.and_then(|len| bytes.split_at_checked(len)).map(|(payload, behind)| (first & 0x0F, payload, behind)))
}

fn wrong(version: Version, error: &dyn std::error::Error) -> io::Error {
    io::Error::other(format!("the broker's answer is no MQTT {version}: {error}"))
}
