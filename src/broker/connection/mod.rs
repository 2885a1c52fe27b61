//! One client's connection: a task that waits for one event, applies it, and then does all that has become possible.
//!
//! [`Connection::advance`] takes packets from what was read, starts an offer, releases acknowledgements, pumps the
//! session and moves the outbox to the socket: one read, many packets, one offer, one write. Nothing in it waits.
//!
//! **Back-pressure.** It stops reading while as many acknowledgements are held as the Receive Maximum allows, or while
//! what waits to be offered is too much: a link that blocks stops exactly this publisher, by TCP (R6). Then the keep-alive
//! does not run. It also stops reading who does not read: against such a client the keep-alive runs on (MQTT-3.1.2-22).

mod acks;
mod admission;
mod ending;
mod enhanced;
mod handshake;
mod publish;
mod subscribe;
mod throttle;

use std::collections::VecDeque;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::{Buf, BytesMut};
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use self::acks::{Reply, Wait};
use self::admission::Holdings;
use self::enhanced::Enhanced;
use self::publish::{Offer, Offered, Pending};
#[cfg(test)]
pub(super) use self::subscribe::{FILTERS_MAX, SHARES_MAX};
use self::subscribe::{Subscribing, TURN_STEPS, Wish};
use self::throttle::Throttle;
use super::aliases::TheirAliases;
use super::client::Tail;
use super::limits::usage::Arrival;
use super::places::Place;
use super::registry::{Attached, Ending};
use super::session::Acks;
use super::store::{Op, Page};
use super::transport::{Admitted, Carrier, Entrance, Peer, Refused, Socket, Stream, hang_up};
use super::{Broker, Config};
use crate::hub::Watcher;
use crate::telemetry::board::BrokerBoard;
use crate::topic::TopicName;
use crate::wire::{Decoder, Disconnect, Packet, PacketId, ReasonCode, ReasonProperties, Version, encode, encoded_len};

/// What is read at a time from a client that fills it; others get [`READ_BYTES_MIN`].
const READ_BYTES_MAX: usize = 64 << 10;

/// A first read: a factory's machine sends some hundred bytes.
const READ_BYTES_MIN: usize = 2 << 10;

/// What is moved from the session's outbox to the socket at a time.
const WRITE_BYTES: usize = 256 << 10;

/// With so much to send, the client is not read until it has taken some of it.
const UNREAD_BYTES_MAX: usize = WRITE_BYTES * 4;

/// With so much to send, waiting for more makes it no cheaper.
const GATHERED_BYTES: usize = 16 << 10;

/// Waiting that did not help is tried so many times more, and then once in so many times.
const PATIENCE: u8 = 16;

/// Replies other than to a PUBLISH that may be held.
const OTHERS_MAX: usize = 1_024;

/// Their bytes.
const OTHERS_BYTES_MAX: u32 = 1 << 20;

/// What can wake a connection.
enum Event {
    /// So many bytes were read.
    Read(io::Result<usize>),
    Writable(io::Result<()>),
    /// Somebody pushed to the session.
    Pushed,
    Offered(Offered),
    /// An acknowledgement is due, or the store moved.
    Look,
    Page(Option<Page>),
    Kicked,
    Tick,
    /// Its login has ended.
    Lapsed,
    /// It is not over its rate any more.
    Rested,
}

/// Why a connection ends.
#[derive(Debug)]
enum End {
    /// The client said so; with its will if it asked for that.
    Disconnect { with_will: bool },
    /// The socket is gone.
    Closed,
    /// We end it, and say why where the version has words for it.
    Told(ReasonCode, String),
    /// Take-over or the gateway's own end.
    Kicked,
}

type Outcome = Result<(), End>;

/// Packets of one read, counted at its end however that comes.
struct Packets<'a> {
    board: &'a BrokerBoard,
    count: u64,
}

impl Drop for Packets<'_> {
    fn drop(&mut self) {
        self.board.packets_in.fetch_add(self.count, Ordering::Relaxed);
    }
}

/// See the module.
struct Connection {
    broker: Arc<Broker>,
    /// As it was at CONNECT: what the client was told of it holds for as long as it is connected.
    config: Arc<Config>,
    attached: Attached,
    version: Version,
    stream: Stream,
    peer: Peer,
    decoder: Decoder,
    input: BytesMut,
    read_bytes: usize,
    /// Bytes of the buffer that `input` is what is left of.
    input_held: usize,
    output: BytesMut,
    /// PUBACK and PUBREC, in order of receipt.
    publishes: Acks<Reply, Wait>,
    /// All other replies that wait for the store.
    others: Acks<Reply, Wait>,
    others_bytes: u32,
    /// What is left of this turn for SUBSCRIBEs, see [`subscribe::TURN_STEPS`].
    steps: u32,
    /// A SUBSCRIBE that takes more than a turn.
    subscribing: Option<Box<Subscribing>>,
    pending: Pending,
    offer: Option<Offer>,
    /// Topic aliases that it has set, where it has.
    aliases: Option<Box<TheirAliases>>,
    /// What it published to last, unless that is long.
    last_topic: Option<TopicName>,
    /// Topics whose retained message this client is to get, with how it subscribed.
    retained: VecDeque<Wish>,
    page: Option<(Tail, oneshot::Receiver<Page>)>,
    mark: Watcher,
    /// What was durable when the session was last pumped.
    durable: u64,
    keep_alive: Option<Duration>,
    last_seen: Instant,
    /// With a keep-alive: when it is looked at next.
    tick: Option<Pin<Box<tokio::time::Sleep>>>,
    session_expiry_s: u32,
    packet_bytes_max: usize,
    /// Request Problem Information: reason strings may be sent with any packet.
    wants_reasons: bool,
    /// Something was to be sent that is larger than the client takes.
    is_oversize: bool,
    /// In `output`, and not counted yet.
    packets_out: u64,
    user: Option<Arc<str>>,
    /// There are rules for what it publishes. Whether there are is settled at CONNECT; what they say may change.
    has_rights: bool,
    /// Its login ends then.
    expires: Option<Pin<Box<tokio::time::Sleep>>>,
    /// It authenticated by AUTH packets, and may do so again.
    enhanced: Option<Box<Enhanced>>,
    is_reading: bool,
    /// What it holds of its listener's and its user's limits, while it is connected.
    held: Holdings,
    /// `None`: its rates are not limited.
    throttle: Option<Box<Throttle>>,
    /// How often somebody pushed, see [`Connection::gather`].
    pushes: u8,
    /// How often more to wait for others, see [`Connection::gather`].
    patience: u8,
}

/// Serves a client from its first byte to its last. `stop` asks it to end in order.
///
/// A task has room for the largest that it ever waits for, as long as it lives: beginning and end are boxed, so that a connection
/// that only waits holds neither. For the same reason this is no `async fn`: what begins is not held twice.
pub(super) fn serve(
    broker: Arc<Broker>,
    socket: Socket,
    peer: Peer,
    entrance: Arc<Entrance>,
    place: Place,
    stop: CancellationToken,
) -> impl Future<Output = ()> + Send + 'static {
    let beginning = Box::pin(begin(broker, socket, peer, entrance, place, stop.clone()));
    async move {
        let Some(mut connection) = beginning.await else { return };
        let end = tokio::select! {
            end = connection.run() => end,
            () = stop.cancelled() => End::Kicked,
        };
        Box::pin(connection.wind_down(end, &stop)).await;
    }
}

/// All handshakes, CONNECT's included. `None`: it is not connected, and nothing is left to do for it.
async fn begin(
    broker: Arc<Broker>,
    socket: Socket,
    mut peer: Peer,
    entrance: Arc<Entrance>,
    mut place: Place,
    stop: CancellationToken,
) -> Option<Box<Connection>> {
    // Of all handshakes together.
    let deadline = tokio::time::Instant::now() + broker.config.load().connect_timeout;
    if let Err(error) = socket.prepare() {
        tracing::debug!(%error, "a socket's options cannot be set");
    }
    let greeting = async {
        let (Admitted { stream, input }, arrival) = match entrance.is_plain() {
            true => (Admitted { stream: Stream::Plain(socket), input: BytesMut::new() }, broker.arrive(&peer)?),
            false => admit(&broker, socket, &mut peer, &entrance, &mut place, deadline).await?,
        };
        handshake::greet(&broker, stream, input, (peer, arrival), place, deadline).await
    };
    tokio::select! {
        greeted = greeting => greeted,
        () = stop.cancelled() => None,
    }
}

/// The handshakes below MQTT. `None`: they failed, which has been counted and logged; or the limits of its listener leave it no
/// time for them.
async fn admit(
    broker: &Broker,
    socket: Socket,
    peer: &mut Peer,
    entrance: &Entrance,
    place: &mut Place,
    deadline: tokio::time::Instant,
) -> Option<(Admitted, Arrival)> {
    let handshakes = async {
        if let Some(refused) = entrance.turns_away(peer) {
            return Err((refused, None));
        }
        let input = match entrance.hear_proxy(&socket, peer).await {
            Ok(input) => input,
            Err(refused) => return Err((refused, Some(Carrier::Plain(socket)))),
        };
        // Before the costly ones, and as soon as its address is known.
        let Some(arrival) = broker.arrive(peer) else { return Ok(None) };
        let admitted = entrance.admit(socket, input, peer).await;
        admitted.map(|admitted| Some((admitted, arrival))).map_err(|(refused, carrier)| (refused, Some(carrier)))
    };
    let (Refused { reason, text }, carrier) = match tokio::time::timeout_at(deadline, handshakes).await {
        Ok(Ok(admitted)) => return admitted,
        Ok(Err(refused)) => refused,
        Err(_elapsed) => {
            let text = "the handshakes took longer than `connect_timeout`".to_owned();
            (Refused { reason: "handshake_timeout", text }, None)
        }
    };
    broker.board.refused(reason);
    if let Some(held_back) = entrance.refusals.pass(broker.clock.now()) {
        let listener = &entrance.listener.bind;
        tracing::info!(%listener, address = %peer, reason, held_back, "a connection is refused: {text}");
    }
    if let Some(carrier) = carrier
        && let Some(_farewell) = place.leave()
    {
        hang_up(carrier).await;
    }
    None
}

/// However it ends, a panic included, the session is handed back: else its client id could never connect again.
impl Drop for Connection {
    fn drop(&mut self) {
        self.broker.detach(&self.attached, Ending::Abnormal);
    }
}

impl Connection {
    async fn run(&mut self) -> End {
        loop {
            if let Err(end) = self.advance() {
                return end;
            }
            let event = self.next_event().await;
            if matches!(event, Event::Pushed) {
                self.gather().await;
            }
            if let Err(end) = self.apply(event) {
                return end;
            }
        }
    }

    /// Lets others push more before it is all sent at once: one `send` costs more than all else that a message costs. Whether
    /// that helps is seen by trying: a lone publisher's subscriber soon does not wait for others any more.
    async fn gather(&mut self) {
        let waiting = self.attached.client.outbox_bytes();
        self.pushes = self.pushes.wrapping_add(1);
        if waiting >= GATHERED_BYTES || (self.patience == 0 && !self.pushes.is_multiple_of(PATIENCE)) {
            return;
        }
        tokio::task::yield_now().await;
        let has_grown = self.attached.client.outbox_bytes() > waiting;
        self.patience = if has_grown { PATIENCE } else { self.patience.saturating_sub(1) };
    }

    /// Does all that is possible now.
    fn advance(&mut self) -> Outcome {
        loop {
            self.go_on_subscribing();
            let is_held = self.take_packets()?;
            self.start_offers();
            // Looked at before, so that what a subscription brings does not overtake its SUBACK.
            let durable = self.broker.store.durable();
            self.release_acks()?;
            if self.is_oversize {
                return Err(End::Told(ReasonCode::PacketTooLarge, String::new()));
            }
            self.feed_retained();
            self.pump(durable);
            // Behind it: nobody else would call for the next page where all of one is given up.
            self.ask_page();
            // What found no room may find it now: nobody else would call for it.
            let goes_on = is_held && self.may_read();
            if !self.write_now()? && !goes_on {
                return Ok(());
            }
        }
    }

    /// Waits for the next event. Cancel safe: nothing is taken before it is returned.
    async fn next_event(&mut self) -> Event {
        if self.steps == 0 {
            // Others have their turns first.
            tokio::task::yield_now().await;
            self.steps = TURN_STEPS;
        }
        let is_subscribing = self.is_subscribing();
        let may_read = self.may_read();
        let waits_for_store = self.waits_for_store();
        let Self { stream, input, output, offer, publishes, page, mark, tick, attached, expires, throttle, .. } = self;
        let (read_bytes, client) = (self.read_bytes, &attached.client);
        let waits_for_receipt = publishes.head_mut().is_some_and(|wait| matches!(wait, Wait::Receipt(_)));
        // All that a connection waits for in ordinary times, in one future: to wait for five costs five times as much.
        let ordinary = poll_fn(|context| {
            if client.bell.poll_rung(context).is_ready() {
                return Poll::Ready(if attached.kick.is_kicked() { Event::Kicked } else { Event::Pushed });
            }
            if (!output.is_empty() || stream.holds_output())
                && let Poll::Ready(ready) = stream.poll_writable(context)
            {
                return Poll::Ready(Event::Writable(ready));
            }
            if may_read && let Poll::Ready(read) = stream.poll_read(context, input, read_bytes) {
                return Poll::Ready(Event::Read(read));
            }
            if is_ready(tick, context) {
                return Poll::Ready(Event::Tick);
            }
            if let Some((_, rows)) = page
                && let Poll::Ready(rows) = Pin::new(rows).poll(context)
            {
                return Poll::Ready(Event::Page(rows.ok()));
            }
            if is_ready(expires, context) {
                return Poll::Ready(Event::Lapsed);
            }
            if throttle.as_mut().is_some_and(|throttle| throttle.poll_rested(context).is_ready()) {
                return Poll::Ready(Event::Rested);
            }
            if is_subscribing { Poll::Ready(Event::Look) } else { Poll::Pending }
        });
        if offer.is_none() && !waits_for_store {
            // Most of a connection's life is spent here: the room for what is seldom waited for is not part of it.
            return tokio::select! {
                biased;
                () = settled(publishes), if waits_for_receipt => Event::Look,
                event = ordinary => event,
            };
        }
        let seldom = async {
            tokio::select! {
                biased;
                offered = async { match offer { Some(offer) => offer.done().await, None => std::future::pending().await } },
                    if offer.is_some() => Event::Offered(offered),
                () = settled(publishes), if waits_for_receipt => Event::Look,
                event = ordinary => event,
                _alive = mark.changed(), if waits_for_store => Event::Look,
            }
        };
        Box::pin(seldom).await
    }

    fn apply(&mut self, event: Event) -> Outcome {
        match event {
            Event::Look | Event::Pushed => Ok(()),
            Event::Kicked => Err(End::Kicked),
            Event::Read(read) => self.take_read(read),
            Event::Writable(ready) => ready.map_err(|_gone| End::Closed),
            Event::Offered(offered) => {
                self.take_offered(offered);
                Ok(())
            }
            Event::Page(rows) => {
                let Some((asked, _)) = self.page.take() else { return Ok(()) };
                // Asking again at once would only burn the processor: the client's next connection asks.
                let words = "what is owed to the session cannot be read";
                let rows = rows.ok_or_else(|| End::Told(ReasonCode::ImplementationSpecificError, words.into()))?;
                self.broker.take_page(&self.attached.client, asked, rows);
                Ok(())
            }
            Event::Tick => self.check_keep_alive(),
            Event::Lapsed => Err(End::Told(ReasonCode::MaximumConnectTime, "the login has expired".into())),
            Event::Rested => {
                self.go_on_reading();
                Ok(())
            }
        }
    }

    /// Whether there is room for what more would bring.
    fn may_read(&self) -> bool {
        self.is_ready() && self.output.len() < UNREAD_BYTES_MAX
    }

    /// Whether nothing of ours keeps us from reading.
    fn is_ready(&self) -> bool {
        self.is_reading
            && self.subscribing.is_none()
            && !self.throttle.as_ref().is_some_and(|throttle| throttle.is_paused())
            && self.publishes.len() < usize::from(self.config.receive_maximum)
            && self.pending.has_room()
            && self.others.len() < OTHERS_MAX
            && self.others_bytes < OTHERS_BYTES_MAX
    }

    fn take_read(&mut self, read: io::Result<usize>) -> Outcome {
        let bytes = match read {
            Ok(0) => return Err(End::Closed),
            Ok(bytes) => bytes,
            // TLS and WebSocket read much that is not for us.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
            Err(_gone) => return Err(End::Closed),
        };
        let fills = bytes >= self.read_bytes;
        self.read_bytes = if fills { (self.read_bytes * 2).min(READ_BYTES_MAX) } else { self.read_bytes };
        self.last_seen = self.broker.clock.now();
        self.broker.board.bytes_in.fetch_add(bytes as u64, Ordering::Relaxed);
        self.broker.hub.memory().brought(bytes as u64);
        self.note_bytes(bytes);
        Ok(())
    }

    /// Takes what was read apart. `true`: more is there, and no room for it.
    fn take_packets(&mut self) -> Result<bool, End> {
        let mut packets = Packets { board: &Arc::clone(&self.broker).board, count: 0 };
        let mut is_publisher = false;
        self.input_held = self.input_held.max(self.input.capacity());
        while self.may_read() && !self.input.is_empty() {
            match self.decoder.decode(&mut self.input) {
                Ok(Some(packet)) => {
                    packets.count += 1;
                    is_publisher |= matches!(packet, Packet::Publish(_));
                    self.handle(packet)?;
                }
                Ok(None) => break,
                Err(error) => return Err(End::Told(error.code, error.to_string())),
            }
        }
        if self.input.is_empty() {
            // An idle connection holds no read buffer.
            (self.input, self.input_held) = (BytesMut::new(), 0);
        }
        // What has been read is dealt with first.
        self.slow_down()?;
        if is_publisher && self.broker.is_short_of_memory() {
            self.hold_back();
        }
        Ok(!self.input.is_empty() && !self.may_read())
    }

    fn handle(&mut self, packet: Packet) -> Outcome {
        match packet {
            Packet::Publish(publish) => self.handle_publish(publish),
            Packet::Puback(ack) => self.handle_puback(&ack),
            Packet::Pubrec(ack) => self.handle_pubrec(&ack),
            Packet::Pubrel(ack) => self.handle_pubrel(&ack),
            Packet::Pubcomp(ack) => self.handle_pubcomp(&ack),
            Packet::Subscribe(subscribe) => self.handle_subscribe(subscribe),
            Packet::Unsubscribe(unsubscribe) => self.handle_unsubscribe(&unsubscribe),
            Packet::Pingreq => {
                self.put(Packet::Pingresp);
                Ok(())
            }
            Packet::Disconnect(disconnect) => Err(self.handle_disconnect(&disconnect)),
            Packet::Auth(auth) => self.handle_auth(&auth),
            Packet::Connect(_) | Packet::Connack(_) | Packet::Suback(_) | Packet::Unsuback(_) | Packet::Pingresp => {
                Err(End::Told(ReasonCode::ProtocolError, "a packet that does not belong here".into()))
            }
        }
    }

    fn handle_disconnect(&mut self, disconnect: &Disconnect) -> End {
        if let Some(expiry_s) = disconnect.properties.session_expiry_s {
            if self.session_expiry_s == 0 && expiry_s != 0 {
                return End::Told(ReasonCode::ProtocolError, "a session that ends with its connection stays so".into());
            }
            let granted = handshake::granted_expiry_s(&self.config, expiry_s);
            let mut state = self.attached.client.lock();
            state.terms.expiry_s = granted;
            state.terms.kept = granted > 0;
        }
        End::Disconnect { with_will: disconnect.code == ReasonCode::DisconnectWithWill }
    }

    fn check_keep_alive(&mut self) -> Outcome {
        let Some(limit) = self.keep_alive else { return Ok(()) };
        let now = self.broker.clock.now();
        if !self.is_ready() {
            // R6: who is not read cannot show that it lives. Who is not read since it does not read can: by reading.
            self.last_seen = now;
        }
        let silent = now.saturating_duration_since(self.last_seen);
        if silent >= limit {
            return Err(End::Told(ReasonCode::KeepAliveTimeout, format!("silent for {} s", silent.as_secs())));
        }
        if let Some(tick) = &mut self.tick {
            tick.as_mut().reset(tokio::time::Instant::now() + (limit - silent));
        }
        Ok(())
    }

    /// Encodes a packet other than PUBLISH. Reason strings and user properties are left out where they would make it larger
    /// than the client takes (MQTT-3.2.2-19 and its like).
    fn put(&mut self, mut packet: Packet) {
        let (version, most) = (self.version, self.packet_bytes_max);
        let is_large = |packet: &Packet| encoded_len(packet, version).is_ok_and(|bytes| bytes > most);
        if is_large(&packet) {
            packet.strip_reason();
            if is_large(&packet) {
                self.is_oversize = true;
                return;
            }
        }
        self.packets_out += 1;
        if let Err(error) = encode(&packet, version, &mut self.output) {
            tracing::error!(%error, packet = %packet.kind(), "a packet of our own cannot be encoded");
        }
    }

    /// Asked of what was durable when the session was last pumped: the store may have moved since, and then
    /// [`Watcher::changed`] says so at once.
    fn waits_for_store(&self) -> bool {
        let waits_for_room = self.subscribing.as_ref().is_some_and(|subscribing| subscribing.waits_for_room);
        waits_for_room || !self.others.is_empty() || self.attached.client.lock().outbound.waits_for_store(self.durable)
    }

    fn ask_page(&mut self) {
        if self.page.is_none() {
            self.page = self.broker.ask_page(&self.attached.client);
        }
    }

    fn pump(&mut self, durable: u64) {
        let (broker, client) = (&self.broker, &self.attached.client);
        self.durable = durable;
        let mut state = client.lock();
        if state.outbound.is_quiet() {
            return;
        }
        let now = broker.clock.moment();
        let mut given_up = Vec::new();
        if !state.notes_ids() || !state.outbound.can_assign() {
            given_up = state.pump(None, durable, now, &broker.board);
            if given_up.is_empty() && !(state.notes_ids() && state.outbound.can_assign()) {
                return;
            }
        }
        drop(state);
        // Where rows were given up there may be room for others now.
        broker.store.stage(|unit| {
            given_up.into_iter().for_each(|row| unit.push(Op::Settle(row.seq)));
            client.lock().pump(Some(unit), durable, now, &broker.board)
        });
    }

    /// Writes what is there. `true`: all is written, and there may be more to do.
    fn write_now(&mut self) -> Result<bool, End> {
        if self.output.len() < WRITE_BYTES {
            let mut state = self.attached.client.lock();
            // Much of it waits until all before it is written, and is then taken as it lies: a slow client's would lie here twice.
            if let Some(online) = &mut state.online
                && !online.outbox.is_empty()
                && (self.output.is_empty() || online.outbox.len() <= GATHERED_BYTES)
            {
                self.packets_out += u64::from(std::mem::take(&mut online.packets));
                online.taken = online.taken.wrapping_add(1);
                if self.output.is_empty() {
                    std::mem::swap(&mut self.output, &mut online.outbox);
                } else {
                    self.output.extend_from_slice(&online.outbox);
                    online.outbox.clear();
                }
            }
        }
        if self.output.is_empty() {
            return self.flush_now().map(|()| false);
        }
        let board = &self.broker.board;
        board.packets_out.fetch_add(std::mem::take(&mut self.packets_out), Ordering::Relaxed);
        let written = self.stream.try_write(&self.output);
        if self.output.len() >= UNREAD_BYTES_MAX && matches!(written, Ok(1..)) {
            // It is not read, and takes what it is sent: it lives.
            self.last_seen = self.broker.clock.now();
        }
        match written {
            Ok(0) => Err(End::Closed),
            Ok(bytes) if bytes == self.output.len() => {
                board.bytes_out.fetch_add(bytes as u64, Ordering::Relaxed);
                self.output.clear();
                if self.output.capacity() > READ_BYTES_MAX {
                    self.output = BytesMut::new();
                }
                Ok(true)
            }
            Ok(bytes) => {
                board.bytes_out.fetch_add(bytes as u64, Ordering::Relaxed);
                self.output.advance(bytes);
                Ok(false)
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(false),
            Err(_gone) => Err(End::Closed),
        }
    }

    fn flush_now(&mut self) -> Outcome {
        match self.stream.try_flush() {
            Err(error) if error.kind() != io::ErrorKind::WouldBlock => Err(End::Closed),
            Ok(()) | Err(_) => Ok(()),
        }
    }
}

/// Waits for the first acknowledgement's receipt, and notes what became of it.
async fn settled(publishes: &mut Acks<Reply, Wait>) {
    if let Some(wait) = publishes.head_mut()
        && let Wait::Receipt(receipt) = wait
    {
        // A log that is gone decides nothing any more; only waiting for it says so.
        *wait = match receipt.settled().await {
            Ok(()) => Wait::Durable,
            Err(_rejected) => Wait::Refused,
        };
    }
}

/// Whether a time has come, where there is one.
fn is_ready(time: &mut Option<Pin<Box<tokio::time::Sleep>>>, context: &mut Context<'_>) -> bool {
    time.as_mut().is_some_and(|time| time.as_mut().poll(context).is_ready())
}

fn packet_id(id: u16) -> Option<PacketId> {
    PacketId::new(id)
}

fn no_properties() -> ReasonProperties {
    ReasonProperties::default()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What [`serve`] gives, as far as its size goes.
    const fn size_of_task<F: Future>(
        _: fn(Arc<Broker>, Socket, Peer, Arc<Entrance>, Place, CancellationToken) -> F,
    ) -> usize {
        size_of::<F>()
    }

    #[test]
    fn a_connection_that_only_waits_takes_little_memory() {
        let task = size_of_task(serve);
        // The allocator gives so much to each, behind the task's head and the counts of references.
        let (connection, client) = (size_of::<Connection>(), size_of::<crate::broker::client::Client>());
        assert!(task <= 640 && connection <= 896 && client <= 752, "{task} {connection} {client}");
    }
}
