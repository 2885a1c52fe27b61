//! From the first byte to CONNACK: what a client may ask for, and what it gets.

use std::collections::VecDeque;
use std::num::{NonZeroU16, NonZeroU32};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use parking_lot::Mutex;

use super::admission::Holdings;
use super::ending::{FAREWELL_DEADLINE, drain};
use super::enhanced;
use super::publish::{Pending, TOPIC_ALIASES};
use super::subscribe::TURN_STEPS;
use super::{Connection, READ_BYTES_MIN};
use crate::broker::auth::{Authenticator, Granted, Login, Verdict};
use crate::broker::client::Terms;
use crate::broker::ended::{What, Whom};
use crate::broker::limits::usage::{self, Arrival};
use crate::broker::memory::WILLS_PART;
use crate::broker::places::Place;
use crate::broker::registry::{Attached, Claim, Ending, NotTheirs};
use crate::broker::session::Acks;
use crate::broker::transport::{Peer, Stream};
use crate::broker::wills::Will;
use crate::broker::{Broker, Config, convert};
use crate::message::Message;
use crate::topic::{LEVELS_MAX, is_too_deep};
use crate::wire::{Connack, ConnackProperties, Connect, Decoder, Packet, ReasonCode, Version, encode, encoded_len};

/// A CONNECT's bytes at most: what a client that nobody knows yet may make us hold. A will of 64 KiB fits.
const CONNECT_BYTES_MAX: usize = 128 << 10;

/// Why a CONNECT is refused.
pub(super) struct Refusal {
    /// `None`: it is not known yet.
    client: Option<Box<str>>,
    version: Version,
    code: ReasonCode,
    text: String,
    /// What the client takes.
    packet_bytes_max: usize,
}

impl Refusal {
    pub(super) fn of(connect: &Connect, code: ReasonCode, text: impl Into<String>) -> Self {
        let packet_bytes_max = packet_bytes_max(connect);
        let client = Some((*connect.client_id).into());
        Self { client, version: connect.version, code, text: text.into(), packet_bytes_max }
    }
}

/// Maximum Packet Size of a CONNECT.
pub(super) fn packet_bytes_max(connect: &Connect) -> usize {
    let most = connect.properties.maximum_packet_size.map_or(u32::MAX, NonZeroU32::get);
    usize::try_from(most).unwrap_or(usize::MAX)
}

/// Reads the CONNECT, takes the session and sends CONNACK. `None`: it was refused, or the socket is gone.
///
/// `input` is what was read of it before; `deadline` ends the wait for a CONNECT.
pub(super) async fn greet(
    broker: &Arc<Broker>,
    mut stream: Stream,
    mut input: BytesMut,
    (peer, mut arrival): (Peer, Arrival),
    mut place: Place,
    deadline: tokio::time::Instant,
) -> Option<Box<Connection>> {
    let size_max = usize::try_from(broker.config.load().max_packet_size.0).unwrap_or(usize::MAX);
    let mut decoder = Decoder::server(size_max.min(CONNECT_BYTES_MAX));
    let first = tokio::time::timeout_at(deadline, first_packet(&mut stream, &mut decoder, &mut input));
    let Ok(first) = first.await else {
        broker.board.refused("no_connect");
        let whom = Whom { client: None, user: None, peer: &peer, version: None };
        broker.log_ended(
            What::Refused,
            whom,
            ReasonCode::UnspecifiedError,
            "it sent no CONNECT within `connect_timeout`",
        );
        return None;
    };
    let first = first?.and_then(|connect| match arrival.verdict {
        usage::Verdict::Told(why) => {
            let (code, text) = why.words();
            Err(Refusal::of(&connect, code, text))
        }
        usage::Verdict::Welcome | usage::Verdict::Closed(_) => Ok(connect),
    });
    let accepted = match first {
        Ok(connect) => {
            let admitted = admit(broker, &connect, &mut stream, &peer, &mut decoder, &mut input).await?;
            match admitted {
                Ok(_) if !place.enter(deadline).await => {
                    broker.board.limited("connections_max");
                    Err(Refusal::of(&connect, ReasonCode::ServerBusy, "as many clients are connected as may be"))
                }
                admitted => admitted.map(|admitted| (connect, admitted)),
            }
        }
        Err(refusal) => Err(refusal),
    };
    let (connect, admitted) = match accepted {
        Ok(accepted) => accepted,
        Err(refusal) => {
            turn_down(broker, stream, &peer, refusal, place).await;
            return None;
        }
    };
    arrival.enter();
    decoder.set_size_max(size_max);
    stream.allow(size_max);
    broker.board.packets_in.fetch_add(1, Ordering::Relaxed);
    open(broker, *connect, admitted, stream, (peer, arrival, place), decoder, input).await
}

/// `None`: the socket is gone.
async fn first_packet(
    stream: &mut Stream,
    decoder: &mut Decoder,
    input: &mut BytesMut,
) -> Option<Result<Box<Connect>, Refusal>> {
    loop {
        let version = decoder.version();
        match decoder.decode(input) {
            Ok(Some(Packet::Connect(connect))) => return Some(Ok(connect)),
            Ok(Some(_)) => return None,
            Ok(None) => {}
            Err(error) => {
                let version = decoder.version().or(version).unwrap_or(Version::V311);
                let (code, text) = (error.code, error.to_string());
                return Some(Err(Refusal { client: None, version, code, text, packet_bytes_max: usize::MAX }));
            }
        }
        input.reserve(READ_BYTES_MIN);
        match stream.read_buf(input).await {
            Ok(0) | Err(_) => return None,
            Ok(_) => {}
        }
    }
}

/// A client that may come in.
struct Admitted {
    granted: Granted,
    /// Of an enhanced authentication: what goes with CONNACK.
    proof: Option<Bytes>,
}

/// Who the client is, and whether it may come in. `None`: it is gone, or took too long.
async fn admit(
    broker: &Broker,
    connect: &Connect,
    stream: &mut Stream,
    peer: &Peer,
    decoder: &mut Decoder,
    input: &mut BytesMut,
) -> Option<Result<Admitted, Refusal>> {
    if let Err(refusal) = check(broker, connect) {
        return Some(Err(refusal));
    }
    let certificate_user = match certificate_user(connect, peer) {
        Ok(user) => user,
        Err(refusal) => return Some(Err(refusal)),
    };
    if connect.properties.auth_method.is_none() {
        let granted = log_in(broker, connect, peer, certificate_user).await;
        return Some(granted.map(|granted| Admitted { granted, proof: None }));
    }
    // Who shows a certificate proves to be whom it names.
    let due = certificate_user.or_else(|| connect.user.as_deref().map(Arc::from));
    let conversation = enhanced::converse(broker, connect, due, (stream, peer), decoder, input);
    match tokio::time::timeout(broker.config.load().connect_timeout, conversation).await {
        Ok(end) => Some(end?.map(|(granted, proof)| Admitted { granted, proof: Some(proof) })),
        Err(_elapsed) => {
            tracing::debug!(address = %peer, "a client did not authenticate in time");
            None
        }
    }
}

/// What is asked of every client, whoever it is.
fn check(broker: &Broker, connect: &Connect) -> Result<(), Refusal> {
    let version = connect.version;
    let refuse = |code, text: &str| Err(Refusal::of(connect, code, text));
    let needs_id = match version {
        Version::V31 => true,
        Version::V311 => !connect.clean_start,
        Version::V5 => false,
    };
    if connect.client_id.is_empty() && needs_id {
        return refuse(ReasonCode::ClientIdentifierNotValid, "a session that is kept needs a client id");
    }
    if broker.is_short_of_memory() {
        broker.board.limited("max_memory_connections");
        return refuse(no_room(version), "the gateway is short of memory (`max_memory`); try again later");
    }
    if broker.store.has_failed() && !connect.clean_start {
        return refuse(ReasonCode::ServerUnavailable, "the broker's store has failed: no session can be kept");
    }
    Ok(())
}

/// That there is no room for a client, in the words of its version.
const fn no_room(version: Version) -> ReasonCode {
    if version.is_v5() { ReasonCode::QuotaExceeded } else { ReasonCode::ServerUnavailable }
}

/// The user of its certificate, where the listener takes users from there.
fn certificate_user(connect: &Connect, peer: &Peer) -> Result<Option<Arc<str>>, Refusal> {
    let (Some(certificate), Some(part)) = (&peer.certificate, peer.listener.certificate_user) else { return Ok(None) };
    match part.of(certificate) {
        Some(user) => Ok(Some(user.into())),
        None => Err(Refusal::of(connect, ReasonCode::NotAuthorized, "the certificate does not name a user")),
    }
}

async fn log_in(
    broker: &Broker,
    connect: &Connect,
    peer: &Peer,
    certificate_user: Option<Arc<str>>,
) -> Result<Granted, Refusal> {
    let login = Login {
        client_id: &connect.client_id,
        user: connect.user.as_deref(),
        password: connect.password.as_ref().map(|password| &*password.0),
        certificate_user: certificate_user.as_deref(),
        address: peer.address.map(|address| address.ip()),
        anonymous: peer.listener.anonymous,
        peer,
        version: connect.version,
    };
    match broker.auth.load_full().authenticate(&login, broker.clock.now()).await {
        Verdict::Granted(granted) => Ok(granted),
        Verdict::Refused { code, text } => Err(Refusal::of(connect, code, text)),
    }
}

/// Says why, and listens on for a while so that the client can read it. Another may come in its place meanwhile.
async fn turn_down(broker: &Broker, mut stream: Stream, peer: &Peer, refusal: Refusal, mut place: Place) {
    let farewell = place.leave();
    refuse(broker, &mut stream, peer, refusal).await;
    if farewell.is_some() {
        drain(&mut stream).await;
    }
}

async fn refuse(broker: &Broker, stream: &mut Stream, peer: &Peer, refusal: Refusal) {
    let Refusal { client, version, code, text, packet_bytes_max } = refusal;
    let whom = Whom { client: client.as_deref(), user: None, peer, version: Some(version) };
    broker.log_ended(What::Refused, whom, code, &text);
    broker.board.refused("connect");
    // MQTT 3.x has five return codes; what none of them says is said by closing (3.1.1: MQTT-3.1.4-1 and MQTT-3.2.2-6).
    let has_words = version.is_v5() || code.has_return_code();
    // What MQTT 5 does not allow in a CONNACK is said by closing.
    let code = if code.belongs_in(crate::wire::PacketKind::Connack) { code } else { ReasonCode::UnspecifiedError };
    let elsewhere = broker.config.load().server_reference.clone();
    let (code, server_reference) = match elsewhere.filter(|_| code == ReasonCode::ServerUnavailable) {
        Some(elsewhere) => (ReasonCode::UseAnotherServer, Some(elsewhere)),
        None => (code, None),
    };
    let properties = ConnackProperties { reason: Some(text.into()), server_reference, ..ConnackProperties::default() };
    let mut output = BytesMut::new();
    let mut connack = Packet::Connack(Box::new(Connack { session_present: false, code, properties }));
    if encoded_len(&connack, version).is_ok_and(|bytes| bytes > packet_bytes_max) {
        connack.strip_reason();
    }
    if has_words && encode(&connack, version, &mut output).is_err() {
        output.clear();
    }
    let farewell = async {
        stream.write_all(&output).await?;
        stream.close().await
    };
    if !matches!(tokio::time::timeout(FAREWELL_DEADLINE, farewell).await, Ok(Ok(()))) {
        tracing::debug!("a refused client did not take its CONNACK");
    }
}

/// What a session may keep at most, of `asked` seconds.
pub(super) fn granted_expiry_s(config: &Config, asked: u32) -> u32 {
    asked.min(u32::try_from(config.session_expiry_max.as_secs()).unwrap_or(u32::MAX))
}

async fn open(
    broker: &Arc<Broker>,
    connect: Connect,
    admitted: Admitted,
    mut stream: Stream,
    (peer, arrival, place): (Peer, Arrival, Place),
    mut decoder: Decoder,
    input: BytesMut,
) -> Option<Box<Connection>> {
    let (config, auth) = (broker.config.load_full(), broker.auth.load_full());
    let mut properties = connack_properties(&config, &connect);
    let (version, clean_start) = (connect.version, connect.clean_start);
    let keep_alive_s = properties.server_keep_alive_s.unwrap_or(connect.keep_alive_s);
    let wants_reasons = connect.properties.request_problem_information.unwrap_or(true);
    let asked_expiry_s = connect.properties.session_expiry_s.unwrap_or(0);
    let (assigned, wants_response) =
        (connect.client_id.is_empty(), connect.properties.request_response_information == Some(true));
    let Admitted { granted, proof } = admitted;
    let (expires, method) = (granted.expires, connect.properties.auth_method.clone());
    let claimed =
        claim_of((broker, &config), connect, granted).and_then(|mut claim| match broker.take_up(&mut claim, &peer) {
            Ok(connection) => Ok((claim, connection)),
            Err(text) => {
                let (code, packet_bytes_max) = (no_room(version), claim.packet_bytes_max);
                Err(Refusal { client: Some((*claim.name).into()), version, code, text, packet_bytes_max })
            }
        });
    let (claim, held) = match claimed {
        Ok((claim, connection)) => (claim, Holdings::new(arrival, connection, place)),
        Err(refusal) => {
            turn_down(broker, stream, &peer, refusal, place).await;
            return None;
        }
    };
    let (name, granted, packet_bytes_max) = (Arc::clone(&claim.name), claim.terms.expiry_s, claim.packet_bytes_max);
    tracing::debug!(client = %name, address = %peer, %version, clean_start, "a client connects");
    let limits = claim.limits.clone();
    let size_max = broker.packet_bytes_max(&peer, limits.as_deref());
    decoder.set_size_max(usize::try_from(size_max.0).unwrap_or(usize::MAX));
    properties.maximum_packet_size = u32::try_from(size_max.0).ok().and_then(NonZeroU32::new);
    let attached = match broker.attach(claim).await {
        Ok(attached) => attached,
        Err(why) => {
            let (code, text) = match why {
                NotTheirs::Session => (ReasonCode::ClientIdentifierNotValid, "the client id is another user's"),
                NotTheirs::Login => (ReasonCode::NotAuthorized, "the user's entry has changed meanwhile"),
            };
            let text = text.to_owned();
            let client = Some((*name).into());
            refuse(broker, &mut stream, &peer, Refusal { client, version, code, text, packet_bytes_max }).await;
            return None;
        }
    };
    let connection = Connection::new((broker, config), attached, stream, peer, decoder, input, version, keep_alive_s);
    let mut connection = Box::new(connection);
    (connection.session_expiry_s, connection.packet_bytes_max) = (granted, packet_bytes_max);
    connection.wants_reasons = wants_reasons;
    connection.expires = expires.map(|at| Box::pin(tokio::time::sleep_until(at.into())));
    connection.held = held;
    connection.limit_rates(limits.as_deref());
    let session = (connection.attached.unreadable, connection.attached.position);
    if let Some(why) = obstacle(broker, &auth, session).await {
        connection.turn_away(why).await;
        return None;
    }
    connection.attached.before = None;
    connection.note_proof(method, proof, &mut properties);
    properties.assigned_client_id = assigned.then(|| (*name).into());
    properties.session_expiry_s = (version.is_v5() && asked_expiry_s != granted).then_some(granted);
    properties.response_information = response_information(&name).filter(|_| wants_response);
    let session_present = connection.attached.resumed;
    connection.put(Packet::Connack(Box::new(Connack { session_present, code: ReasonCode::Success, properties })));
    Some(connection)
}

/// Why a client that has its session cannot be served all the same.
async fn obstacle(
    broker: &Broker,
    auth: &Arc<Authenticator>,
    (unreadable, position): (bool, Option<u64>),
) -> Option<&'static str> {
    // Who was let in by rules that are not those any more comes again.
    if !Arc::ptr_eq(auth, &broker.auth.load()) {
        return Some("logins and rules have changed meanwhile");
    }
    if unreadable {
        return Some("what is owed to the session cannot be read");
    }
    let has_failed = broker.store_mark.clone().passed(position?).await.is_err();
    has_failed.then_some("the broker's store has failed")
}

/// A topic below which a client may ask for responses: its own, where its name can stand in a topic.
fn response_information(client: &str) -> Option<Box<str>> {
    (!client.contains(['+', '#', '/'])).then(|| format!("response/{client}").into())
}

fn connack_properties(config: &Config, connect: &Connect) -> ConnackProperties {
    let most = config.keep_alive_max.map(|most| u16::try_from(most.as_secs()).unwrap_or(u16::MAX));
    let asked = connect.keep_alive_s;
    ConnackProperties {
        receive_maximum: NonZeroU16::new(config.receive_maximum),
        maximum_packet_size: u32::try_from(config.max_packet_size.0).ok().and_then(NonZeroU32::new),
        topic_alias_maximum: Some(TOPIC_ALIASES),
        // MQTT 3.x cannot be told: there the client's own counts.
        server_keep_alive_s: most.filter(|most| connect.version.is_v5() && (asked == 0 || asked > *most)),
        ..ConnackProperties::default()
    }
}

/// A will may say what its client could publish, and no more.
fn check_will(
    broker: &Broker,
    granted: &Granted,
    client: &str,
    will: Message,
    version: Version,
) -> Result<Will, (ReasonCode, String)> {
    if is_too_deep(will.topic.as_str()) {
        return Err((
            ReasonCode::TopicNameInvalid,
            format!("the will's topic: a topic has at most {LEVELS_MAX} levels"),
        ));
    }
    let is_allowed = broker.auth.load().rights(granted, client).is_none_or(|rights| rights.may_publish(&will.topic));
    if will.topic.is_own() || !is_allowed {
        broker.board.refused("not_allowed");
        let text = "this client may not publish to the topic of its will".to_owned();
        return Err((ReasonCode::NotAuthorized, text));
    }
    let most = broker.hub.memory().part(WILLS_PART);
    broker.wills.take_in(will, most).map_err(|error| {
        broker.board.limited("wills");
        (no_room(version), error.to_string())
    })
}

fn claim_of((broker, config): (&Broker, &Config), connect: Connect, granted: Granted) -> Result<Claim, Refusal> {
    let (version, packet_bytes_max) = (connect.version, packet_bytes_max(&connect));
    let name: Arc<str> = if connect.client_id.is_empty() {
        format!("tg-{:016x}", rand::random::<u64>()).into()
    } else {
        (*connect.client_id).into()
    };
    let user = granted.user.clone();
    let asked = match version {
        Version::V5 => connect.properties.session_expiry_s.unwrap_or(0),
        Version::V31 | Version::V311 if connect.clean_start => 0,
        Version::V31 | Version::V311 => u32::MAX,
    };
    let expiry_s = granted_expiry_s(config, asked);
    let will_delay_s = connect.will.as_ref().and_then(|will| will.properties.delay_s).unwrap_or(0);
    let now = broker.clock.moment();
    let will = connect.will.map(|will| convert::will_message(will, &name, user.as_ref(), now)).transpose();
    let will = will.map_err(|error| (ReasonCode::TopicNameInvalid, format!("the will's topic: {error}")));
    let will = will.and_then(|will| will.map(|will| check_will(broker, &granted, &name, will, version)).transpose());
    let client = || Some((*name).into());
    let will = will.map_err(|(code, text)| Refusal { client: client(), version, code, text, packet_bytes_max })?;
    let peer_window = connect.properties.receive_maximum.map_or(u16::MAX, NonZeroU16::get);
    Ok(Claim {
        name,
        clean_start: connect.clean_start,
        granted: Arc::new(granted),
        terms: Terms { version, kept: expiry_s > 0, expiry_s, user, will, will_delay_s },
        window: usize::from(peer_window.min(config.in_flight)),
        packet_bytes_max,
        alias_max: connect.properties.topic_alias_maximum.unwrap_or(0),
        limits: None,
        held: Mutex::default(),
        kept_at: Mutex::default(),
    })
}

impl Connection {
    /// The session is handed back as it was, with the will of the connection before; that of this one is not published. CONNACK says why.
    async fn turn_away(mut self: Box<Self>, text: &str) {
        self.broker.detach(&self.attached, Ending::Orderly);
        let refusal = Refusal {
            client: Some((*self.attached.client.name).into()),
            version: self.version,
            code: ReasonCode::ServerUnavailable,
            text: text.to_owned(),
            packet_bytes_max: self.packet_bytes_max,
        };
        let broker = Arc::clone(&self.broker);
        let Self { stream, peer, .. } = &mut *self;
        refuse(&broker, stream, peer, refusal).await;
    }

    #[expect(clippy::too_many_arguments, reason = "the parts of a connection, joined here once")]
    fn new(
        (broker, config): (&Arc<Broker>, Arc<Config>),
        attached: Attached,
        stream: Stream,
        peer: Peer,
        decoder: Decoder,
        input: BytesMut,
        version: Version,
        keep_alive_s: u16,
    ) -> Self {
        // One and a half times what the client said (MQTT-3.1.2-22).
        let keep_alive = (keep_alive_s > 0).then(|| Duration::from_millis(u64::from(keep_alive_s) * 1_500));
        let state = attached.client.lock();
        let (user, has_rights) = (state.terms.user.clone(), state.has_rights());
        drop(state);
        Self {
            broker: Arc::clone(broker),
            config,
            attached,
            user,
            version,
            stream,
            peer,
            decoder,
            input,
            read_bytes: READ_BYTES_MIN,
            input_held: 0,
            output: BytesMut::new(),
            publishes: Acks::default(),
            others: Acks::default(),
            others_bytes: 0,
            subscribing: None,
            steps: TURN_STEPS,
            pending: Pending::default(),
            offer: None,
            aliases: None,
            last_topic: None,
            retained: VecDeque::new(),
            page: None,
            mark: broker.store.watch(),
            durable: 0,
            keep_alive,
            last_seen: broker.clock.now(),
            tick: keep_alive.map(|after| Box::pin(tokio::time::sleep(after))),
            session_expiry_s: 0,
            packet_bytes_max: usize::MAX,
            wants_reasons: true,
            is_oversize: false,
            packets_out: 0,
            has_rights,
            expires: None,
            enhanced: None,
            is_reading: true,
            held: Holdings::default(),
            throttle: None,
            pushes: 0,
            patience: 0,
        }
    }
}
