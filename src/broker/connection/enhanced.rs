//! AUTH packets: the conversation before CONNACK, and re-authentication after it (MQTT 5.0 section 4.12).

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::{Bytes, BytesMut};

use super::handshake::{Refusal, packet_bytes_max};
use super::{Connection, End, Outcome, READ_BYTES_MIN};
use crate::broker::Broker;
use crate::broker::auth::Granted;
use crate::broker::auth::enhanced::{self, Exchange, Step};
use crate::broker::transport::{Peer, Stream};
use crate::telemetry::limited::Limited;
use crate::telemetry::shown::Shown;
use crate::wire::{
    Auth, AuthProperties, ConnackProperties, Connect, Decoder, Packet, ReasonCode, Version, encode, encoded_len,
};

/// Of a client that was authenticated so.
#[derive(Debug, Default)]
pub(super) struct Enhanced {
    /// A re-authentication that is under way.
    exchange: Option<Exchange>,
}

/// The conversation that a CONNECT with an Authentication Method begins: what the client is granted, and our own proof for CONNACK.
/// `due`: who it has to be, if that is said. `None`: the client is gone.
pub(super) async fn converse(
    broker: &Broker,
    connect: &Connect,
    due: Option<Arc<str>>,
    (stream, peer): (&mut Stream, &Peer),
    decoder: &mut Decoder,
    input: &mut BytesMut,
) -> Option<Result<(Granted, Bytes), Refusal>> {
    let refuse = |code, text: &str| Some(Err(Refusal::of(connect, code, text)));
    let method = connect.properties.auth_method.as_deref();
    if !method.is_some_and(enhanced::is_known) {
        return refuse(ReasonCode::BadAuthenticationMethod, "no such authentication method is known here");
    }
    let (address, now) = (peer.address.map(|address| address.ip()), broker.clock.now());
    let directory = broker.auth.load_full();
    if let Err((code, text)) = directory.may_begin(address, now) {
        return refuse(code, text);
    }
    let since = directory.moment_of_users();
    let mut step = Exchange::begin(due, connect.properties.auth_data.as_ref(), &*directory);
    loop {
        let (data, then) = match step {
            Step::Ask { data, then } => (data, then),
            Step::Done { user, data } => return Some(Ok((Granted { since, ..Granted::proven(user) }, data))),
            Step::Failed { code, text } => {
                directory.failed(address, &text, now).await;
                return refuse(code, "the authentication has failed");
            }
        };
        let packet = auth(method, ReasonCode::ContinueAuthentication, data);
        let mut output = BytesMut::new();
        if encoded_len(&packet, Version::V5).is_ok_and(|bytes| bytes > packet_bytes_max(connect)) {
            return refuse(ReasonCode::PacketTooLarge, "the client takes no packet that is large enough for AUTH");
        }
        if encode(&packet, Version::V5, &mut output).is_err() || stream.write_all(&output).await.is_err() {
            return None;
        }
        broker.board.packets_out.fetch_add(1, Ordering::Relaxed);
        // MQTT-3.1.2-30: until CONNACK nothing but AUTH and DISCONNECT.
        step = match next_packet(stream, decoder, input).await? {
            Ok(Packet::Auth(auth)) => match enhanced::check_packet(&auth, ReasonCode::ContinueAuthentication) {
                Ok(()) => then.step(&auth.properties.data.unwrap_or_default(), &*directory),
                Err((code, text)) => return refuse(code, text),
            },
            Ok(Packet::Disconnect(_)) => return None,
            Ok(_) => return refuse(ReasonCode::ProtocolError, "a packet other than AUTH within an authentication"),
            Err((code, text)) => return refuse(code, &text),
        };
        broker.board.packets_in.fetch_add(1, Ordering::Relaxed);
    }
}

/// `None`: the client is gone.
async fn next_packet(
    stream: &mut Stream,
    decoder: &mut Decoder,
    input: &mut BytesMut,
) -> Option<Result<Packet, (ReasonCode, String)>> {
    loop {
        match decoder.decode(input) {
            Ok(Some(packet)) => return Some(Ok(packet)),
            Ok(None) => {}
            Err(error) => return Some(Err((error.code, error.to_string()))),
        }
        input.reserve(READ_BYTES_MIN);
        match stream.read_buf(input).await {
            Ok(0) | Err(_) => return None,
            Ok(_) => {}
        }
    }
}

fn auth(method: Option<&str>, code: ReasonCode, data: Bytes) -> Packet {
    let data = Some(data).filter(|data| !data.is_empty());
    let properties = AuthProperties { method: method.map(Into::into), data, ..AuthProperties::default() };
    Packet::Auth(Auth { code, properties })
}

impl Connection {
    /// Of a client that has proven who it is: CONNACK names the method (MQTT-4.12.0-5) and carries our own proof.
    pub(super) fn note_proof(
        &mut self,
        method: Option<Box<str>>,
        proof: Option<Bytes>,
        connack: &mut ConnackProperties,
    ) {
        self.enhanced = proof.as_ref().map(|_proof| Box::default());
        connack.auth_method = method.filter(|_| proof.is_some());
        connack.auth_data = proof;
    }

    /// AUTH after CONNACK: a re-authentication, as the same user and by the same method.
    pub(super) fn handle_auth(&mut self, packet: &Auth) -> Outcome {
        let broker = Arc::clone(&self.broker);
        let Some(enhanced) = &mut self.enhanced else {
            return Err(End::Told(ReasonCode::ProtocolError, "AUTH without an authentication method".into()));
        };
        let under_way = enhanced.exchange.take();
        let due = match under_way {
            Some(_) => ReasonCode::ContinueAuthentication,
            None => ReasonCode::ReAuthenticate,
        };
        enhanced::check_packet(packet, due).map_err(|(code, text)| End::Told(code, text.into()))?;
        let directory = broker.auth.load_full();
        let step = match under_way {
            Some(exchange) => exchange.step(packet.properties.data.as_deref().unwrap_or_default(), &*directory),
            None => Exchange::begin(self.user.clone(), packet.properties.data.as_ref(), &*directory),
        };
        let (code, data) = match step {
            Step::Ask { data, then } => {
                enhanced.exchange = Some(then);
                (ReasonCode::ContinueAuthentication, data)
            }
            Step::Done { data, .. } => (ReasonCode::Success, data),
            Step::Failed { code, text } => {
                static LOGGED: Limited = Limited::new(Duration::from_secs(10));
                if let Some(held_back) = LOGGED.pass(broker.clock.now()) {
                    let (client, text) = (Shown(&self.attached.client.name), Shown(&text));
                    tracing::warn!(%client, %text, held_back, "a re-authentication has failed");
                }
                return Err(End::Told(code, "the re-authentication has failed".into()));
            }
        };
        self.put(auth(packet.properties.method.as_deref(), code, data));
        Ok(())
    }
}
