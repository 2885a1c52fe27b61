//! A connection to a remote by wire's packets, for those that have to know when each goes and comes ([`exact`](super::exact),
//! [`exact_source`](super::exact_source)): logging in, reading, writing, keep-alive, good-bye.

use std::io;
use std::num::{NonZeroU16, NonZeroU32};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, ReadHalf, WriteHalf};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::Version;
use super::client::{Attempt, Direction, GOOD_BYE_WAIT, OFFLINE, RECEIVE_MAX, SESSION_EXPIRY_S, Settings};
use super::dial::Stream;
use crate::links::{LinkError, tls};
use crate::message::Qos;
use crate::wire::{
    AckKind, Connack, Connect, ConnectProperties, Decoder, Disconnect, DisconnectProperties, Packet, PacketId,
    Password, ReasonCode, Will, WillProperties, encode, encode_ack,
};

/// Bytes read at once: of most links what comes back are acknowledgements.
const READ: usize = 8 << 10;

/// Nothing else: the session stays.
const GOOD_BYE: Disconnect = Disconnect {
    code: ReasonCode::Success,
    properties: DisconnectProperties { session_expiry_s: None, reason: None, user: Vec::new(), server_reference: None },
};

/// See the module.
pub(super) struct Packets {
    pub(super) version: crate::wire::Version,
    reader: ReadHalf<Box<dyn Stream>>,
    writer: WriteHalf<Box<dyn Stream>>,
    decoder: Decoder,
    input: BytesMut,
    /// On its way.
    pub(super) output: BytesMut,
    unflushed: bool,
    keep_alive: Duration,
    written: Instant,
    /// When a PINGREQ went that nothing has come after.
    pinged: Option<Instant>,
}

impl Packets {
    /// Has the remote let us in. `clean_start`: it forgets what it has of us.
    pub(super) async fn log_in(
        settings: &Settings,
        attempt: &Attempt,
        clean_start: bool,
    ) -> Result<(Self, Connack), LinkError> {
        let version = version(settings.config.version);
        let mut stream = attempt.way.dial(&attempt.line).await.map_err(|error| ended(&error))?;
        let mut output = BytesMut::new();
        let connect = connect(settings, attempt.login.clone(), clean_start);
        encode(&Packet::Connect(Box::new(connect)), version, &mut output).map_err(|error| unsaid(&error))?;
        stream.write_all_buf(&mut output).await.map_err(|error| ended(&error))?;
        stream.flush().await.map_err(|error| ended(&error))?;
        let size_max = usize::try_from(settings.config.max_packet_size.0).unwrap_or(usize::MAX);
        let (mut decoder, mut input) = (Decoder::client(version, size_max), BytesMut::new());
        let connack = loop {
            match decoder.decode(&mut input).map_err(|error| malformed(&error))? {
                Some(Packet::Connack(connack)) => break *connack,
                Some(Packet::Disconnect(disconnect)) => return Err(disconnected(&disconnect)),
                Some(other) => {
                    return Err(LinkError::Transient(format!("{} in the place of CONNACK", other.kind())));
                }
                None => {}
            }
            if stream.read_buf(&mut input).await.map_err(|error| ended(&error))? == 0 {
                return Err(LinkError::Transient("the remote closed the connection".to_owned()));
            }
        };
        if connack.code != ReasonCode::Success {
            return Err(refusal(&connack));
        }
        let (reader, writer) = tokio::io::split(stream);
        let keep_alive_s = connack.properties.server_keep_alive_s.unwrap_or(settings.config.keep_alive_s);
        let packets = Self {
            version,
            reader,
            writer,
            decoder,
            input,
            output: BytesMut::new(),
            unflushed: false,
            keep_alive: Duration::from_secs(keep_alive_s.into()),
            written: now(),
            pinged: None,
        };
        Ok((packets, connack))
    }

    /// Waits until something has gone, or has come, or nothing has for so long that a PINGREQ goes. Answers whether something has come. Without
    /// `reads` it stays with the remote. Cancel safe.
    pub(super) async fn moved(&mut self, reads: bool) -> Result<bool, LinkError> {
        if !reads {
            // What would answer a PINGREQ is not read.
            self.pinged = None;
        }
        let ping_due = (!self.keep_alive.is_zero()).then(|| self.pinged.unwrap_or(self.written) + self.keep_alive);
        let Self { reader, writer, input, output, unflushed, .. } = self;
        input.reserve(READ);
        tokio::select! {
            written = write(writer, output, unflushed), if !output.is_empty() || *unflushed => {
                written.map_err(|error| ended(&error))?;
                self.written = now();
            }
            read = reader.read_buf(input), if reads => return match read {
                Ok(0) => Err(LinkError::Transient("the remote closed the connection".to_owned())),
                Ok(_) => {
                    self.pinged = None;
                    Ok(true)
                }
                Err(error) => Err(ended(&error)),
            },
            () = sleep_until(ping_due) => self.ping()?,
        }
        Ok(false)
    }

    fn ping(&mut self) -> Result<(), LinkError> {
        if self.pinged.is_some() {
            return Err(LinkError::Transient(format!("no answer to a PINGREQ within {:?}", self.keep_alive)));
        }
        self.pinged = Some(now());
        encode(&Packet::Pingreq, self.version, &mut self.output).map_err(|error| unsaid(&error))
    }

    /// The next packet that is here.
    pub(super) fn next(&mut self) -> Result<Option<Packet>, LinkError> {
        self.decoder.decode(&mut self.input).map_err(|error| malformed(&error))
    }

    /// An acknowledgement that waits for nothing.
    pub(super) fn acknowledge(&mut self, kind: AckKind, id: PacketId, code: ReasonCode) {
        encode_ack(kind, id, code, self.version, &mut self.output);
    }

    /// Whether all has gone.
    pub(super) fn is_flushed(&self) -> bool {
        self.output.is_empty() && !self.unflushed
    }

    /// Good-bye, by then or never. The session stays.
    pub(super) async fn end(mut self, until: Instant) -> Result<(), LinkError> {
        encode(&Packet::Disconnect(GOOD_BYE), self.version, &mut self.output).map_err(|error| unsaid(&error))?;
        let said = async {
            write(&mut self.writer, &mut self.output, &mut self.unflushed).await?;
            self.writer.shutdown().await
        };
        let said = tokio::time::timeout_at(until, said).await;
        said.map_err(io::Error::from).flatten().map_err(|error| ended(&error))
    }
}

/// When a good-bye has to be over.
pub(super) fn good_bye_until() -> Instant {
    now() + GOOD_BYE_WAIT
}

/// What no remote sends to a client that publishes, or subscribes, alone.
pub(super) fn unexpected(packet: &Packet) -> LinkError {
    LinkError::Transient(format!("the remote sent {}", packet.kind()))
}

/// The end of the save that is under way; without one, never. Cancel safe.
pub(super) async fn saved(saving: &mut Option<JoinHandle<io::Result<()>>>) -> io::Result<()> {
    match saving {
        Some(saving) => saving.await.unwrap_or_else(|ended| Err(io::Error::other(ended))),
        None => std::future::pending().await,
    }
}

/// Cancel safe: what has gone is no longer in `output`.
async fn write(writer: &mut WriteHalf<Box<dyn Stream>>, output: &mut BytesMut, unflushed: &mut bool) -> io::Result<()> {
    *unflushed = true;
    writer.write_all_buf(output).await?;
    writer.flush().await?;
    *unflushed = false;
    Ok(())
}

async fn sleep_until(due: Option<Instant>) {
    match due {
        Some(due) => tokio::time::sleep_until(due).await,
        None => std::future::pending().await,
    }
}

fn connect(settings: &Settings, login: Option<(String, String)>, clean_start: bool) -> Connect {
    let config = &settings.config;
    let (user, password) = login.unzip();
    let is_v5 = config.version == Version::V5;
    let will = settings.state_topic.as_ref().map(|topic| Will {
        topic: topic.as_str().into(),
        payload: Bytes::from_static(OFFLINE.as_bytes()),
        qos: Qos::AtLeastOnce,
        retain: true,
        properties: WillProperties::default(),
    });
    let packet_max = NonZeroU32::new(u32::try_from(config.max_packet_size.0).unwrap_or(u32::MAX));
    Connect {
        version: version(config.version),
        clean_start,
        keep_alive_s: config.keep_alive_s,
        client_id: settings.client_id.as_str().into(),
        will,
        user: user.map(Into::into),
        password: password.map(|password| Password(password.into())),
        properties: ConnectProperties {
            session_expiry_s: is_v5.then_some(SESSION_EXPIRY_S),
            maximum_packet_size: packet_max.filter(|_| is_v5),
            receive_maximum: NonZeroU16::new(RECEIVE_MAX).filter(|_| is_v5 && settings.direction == Direction::In),
            ..ConnectProperties::default()
        },
    }
}

pub(super) const fn version(version: Version) -> crate::wire::Version {
    match version {
        Version::V4 => crate::wire::Version::V311,
        Version::V5 => crate::wire::Version::V5,
    }
}

#[expect(clippy::wildcard_enum_match_arm, reason = "all other codes say that somebody has to change something")]
fn refusal(connack: &Connack) -> LinkError {
    use ReasonCode as Code;
    let why = connack.properties.reason.as_ref().map(|why| format!(": {why}")).unwrap_or_default();
    let words = format!("the remote refuses the connection: {:?}{why}", connack.code);
    match connack.code {
        Code::ServerUnavailable
        | Code::ServerBusy
        | Code::UnspecifiedError
        | Code::ImplementationSpecificError
        | Code::QuotaExceeded
        | Code::ConnectionRateExceeded => LinkError::Transient(words),
        _ => LinkError::Misconfigured(words),
    }
}

pub(super) fn disconnected(disconnect: &Disconnect) -> LinkError {
    let why = disconnect.properties.reason.as_ref().map(|why| format!(": {why}")).unwrap_or_default();
    let words = format!("the remote disconnected us: {:?}{why}", disconnect.code);
    if matches!(disconnect.code, ReasonCode::NotAuthorized | ReasonCode::SessionTakenOver) {
        LinkError::Misconfigured(words)
    } else {
        LinkError::Transient(words)
    }
}

fn ended(error: &io::Error) -> LinkError {
    if tls::is_refusal(error) {
        return LinkError::Misconfigured(error.to_string());
    }
    LinkError::Transient(error.to_string())
}

fn malformed(error: &crate::wire::DecodeError) -> LinkError {
    LinkError::Transient(format!("the remote sent what is no MQTT: {error}"))
}

pub(super) fn unsaid(error: &crate::wire::EncodeError) -> LinkError {
    LinkError::Misconfigured(error.to_string())
}

pub(super) fn cannot_keep(error: &io::Error) -> LinkError {
    LinkError::Transient(format!("the exchanges of QoS 2 cannot be written down: {error}"))
}

fn now() -> Instant {
    Instant::from_std(crate::clock::now())
}
