//! A connection's end: from the event that ends it to the last byte.

use std::future::poll_fn;
use std::time::Duration;

use bytes::BytesMut;
use tokio_util::sync::CancellationToken;

use super::{Connection, End, READ_BYTES_MIN};
use crate::broker::ended::{What, Whom};
use crate::broker::registry::Ending;
use crate::broker::transport::Stream;
use crate::wire::{Disconnect, DisconnectProperties, Packet, ReasonCode};

/// At the end: how long what was received may take to be acknowledged (DESIGN.md section 9).
const RECEIPTS_DEADLINE: Duration = Duration::from_secs(5);

/// At the end: how long a client may take to receive its last bytes.
pub(super) const FAREWELL_DEADLINE: Duration = Duration::from_secs(1);

/// At the end: how long a socket may take to show what it still has, see [`Connection::hear_out`].
const HEAR_OUT_DEADLINE: Duration = Duration::from_secs(1);

/// At the end: how long we listen on to a client that was told its last, see [`drain`].
const DRAIN_DEADLINE: Duration = Duration::from_secs(3);

impl Connection {
    /// The gateway is ending: nothing more is read; what was read gets its acknowledgements, under a deadline.
    async fn wind_up(&mut self) -> End {
        self.is_reading = false;
        let deadline = tokio::time::sleep(RECEIPTS_DEADLINE);
        tokio::pin!(deadline);
        loop {
            if let Err(end) = self.advance() {
                return end;
            }
            let is_done = self.pending.is_empty() && self.offer.is_none() && self.publishes.is_empty();
            if is_done && self.subscribing.is_none() && self.others.is_empty() {
                return self.broker.farewell();
            }
            let event = tokio::select! {
                event = self.next_event() => event,
                () = &mut deadline => {
                    return self.broker.farewell();
                }
            };
            if let Err(end) = self.apply(event) {
                return end;
            }
        }
    }

    /// The socket is gone, which may have been seen by a write. What its client had sent by then is there still: acknowledgements, and a
    /// DISCONNECT, after which its will is not to be published (MQTT-3.14.4-3).
    async fn hear_out(&mut self) -> End {
        let deadline = tokio::time::Instant::now() + HEAR_OUT_DEADLINE;
        loop {
            // Nobody reads the answers.
            self.output.clear();
            if let Err(end) = self.take_packets() {
                return end;
            }
            if !self.may_read() {
                return End::Closed;
            }
            let Self { stream, input, read_bytes, .. } = self;
            // It has something, or its end; the runtime may not know that yet.
            let there = poll_fn(|context| stream.poll_read(context, input, *read_bytes));
            let Ok(read @ Ok(1..)) = tokio::time::timeout_at(deadline, there).await else { return End::Closed };
            if let Err(end) = self.take_read(read) {
                return end;
            }
        }
    }

    /// It, for the log.
    pub(super) fn whom(&self) -> Whom<'_> {
        let (client, user) = (Some(&*self.attached.client.name), self.user.as_deref());
        Whom { client, user, peer: &self.peer, version: Some(self.version) }
    }

    /// From the event that ends it to the last byte.
    pub(super) async fn wind_down(mut self: Box<Self>, end: End, stop: &CancellationToken) {
        let end = if matches!(end, End::Closed) { self.hear_out().await } else { end };
        let end = if stop.is_cancelled() { self.wind_up().await } else { end };
        if !matches!(end, End::Kicked) && !stop.is_cancelled() {
            tokio::select! {
                () = self.finish_offers() => {}
                () = deadline_of(stop) => {}
            }
        }
        self.finish(end, stop).await;
    }

    /// Hands the session back, then says why to the client.
    async fn finish(mut self: Box<Self>, end: End, stop: &CancellationToken) {
        self.hand_receipts_over();
        let ending = match end {
            End::Disconnect { with_will: false } => Ending::Orderly,
            End::Disconnect { with_will: true } | End::Closed | End::Told(..) | End::Kicked => Ending::Abnormal,
        };
        let ended_by_us = match end {
            End::Kicked => Some((self.attached.kick.reason(), String::new())),
            End::Told(code, text) => Some((code, text)),
            End::Disconnect { .. } | End::Closed => None,
        };
        if let Some((code, text)) = &ended_by_us {
            let text = if text.is_empty() { code.name() } else { text };
            self.broker.log_ended(What::Ended, self.whom(), *code, text);
        }
        self.broker.detach(&self.attached, ending);
        let _farewell = self.held.leave();
        let Some((code, text)) = ended_by_us else {
            self.stream.part();
            return;
        };
        if self.version.is_v5() {
            let reason = Some(text.into_boxed_str()).filter(|text| !text.is_empty());
            let elsewhere = self.broker.config.load().server_reference.clone();
            let (code, server_reference) = match elsewhere.filter(|_| code == ReasonCode::ServerShuttingDown) {
                Some(elsewhere) => (ReasonCode::UseAnotherServer, Some(elsewhere)),
                None => (code, None),
            };
            let properties = DisconnectProperties { reason, server_reference, ..DisconnectProperties::default() };
            self.put(Packet::Disconnect(Disconnect { code, properties }));
        }
        let farewell = async {
            self.stream.write_all(&self.output).await?;
            self.stream.close().await
        };
        if !matches!(tokio::time::timeout(FAREWELL_DEADLINE, farewell).await, Ok(Ok(()))) {
            tracing::debug!("a client did not take its last bytes");
        }
        tokio::select! {
            () = drain(&mut self.stream) => {}
            () = stop.cancelled() => {}
        }
    }
}

/// Reads to the end what a client still sends that has been told its last. A socket that is closed with unread bytes resets the
/// connection, and the client may never see why it was ended.
pub(super) async fn drain(stream: &mut Stream) {
    let mut waste = BytesMut::with_capacity(READ_BYTES_MIN);
    let all = async {
        while matches!(stream.read_buf(&mut waste).await, Ok(1..)) {
            waste.clear();
        }
    };
    // One that goes on and on is reset all the same.
    drop(tokio::time::timeout(DRAIN_DEADLINE, all).await);
}

/// A link that blocks must not hold up the gateway's end.
async fn deadline_of(stop: &CancellationToken) {
    stop.cancelled().await;
    tokio::time::sleep(RECEIPTS_DEADLINE).await;
}
