//! Clients that are refused, ended, or not obeyed, in the log: of each kind the first at once and then one in an interval, with who
//! it was and what would be right. A client of MQTT 3.x sees a closed connection and no reason; this is where its operator finds it.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::Broker;
use super::transport::Peer;
use crate::telemetry::limited::Limited;
use crate::telemetry::shown::Shown;
use crate::wire::{ReasonCode, Version};

/// Of one kind, so often one is logged; all are counted.
const LOG_EVERY: Duration = Duration::from_secs(10);

/// What happens to a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum What {
    /// It is not let in.
    Refused,
    /// It is connected, and is no longer.
    Ended,
    /// It goes on, or is ended for it: a publish of its is not taken.
    NotTaken,
}

impl What {
    const fn words(self) -> &'static str {
        match self {
            Self::Refused => "a client is refused",
            Self::Ended => "a client's connection is ended",
            Self::NotTaken => "a client's message is not taken",
        }
    }
}

/// The client that something happens to.
#[derive(Clone, Copy, Debug)]
pub(super) struct Whom<'a> {
    /// Its client id, where it is known.
    pub(super) client: Option<&'a str>,
    pub(super) user: Option<&'a str>,
    pub(super) peer: &'a Peer,
    /// What it speaks, where that is known.
    pub(super) version: Option<Version>,
}

/// When a line of each kind was written last. Kinds are few: they are no client's to choose.
#[derive(Debug, Default)]
pub(super) struct Ended(Mutex<HashMap<(What, ReasonCode), Limited>>);

impl Ended {
    /// Whether there is to be a line; if so, how many were held back since the last one of its kind.
    fn pass(&self, what: What, code: ReasonCode, now: Instant) -> Option<u64> {
        self.0.lock().entry((what, code)).or_insert(Limited::new(LOG_EVERY)).pass(now)
    }
}

impl Broker {
    /// Says in the log what happens to a client, and why (`text`).
    pub(super) fn log_ended(&self, what: What, whom: Whom<'_>, code: ReasonCode, text: &str) {
        if code == ReasonCode::ServerShuttingDown {
            return;
        }
        let Whom { client, user, peer, version } = whom;
        let cut = |text| Shown(text).cut();
        let (client, user, text) = (client.map(cut), user.map(cut), Shown(text));
        let (client, user) = (client.as_deref(), user.as_deref());
        let Some(held_back) = self.ended.pass(what, code, self.clock.now()) else {
            tracing::debug!(client, address = %peer, %code, %text, "{}", what.words());
            return;
        };
        let (listener, what, version) = (&peer.listener.bind, what.words(), version.map(tracing::field::display));
        let right = right(code);
        tracing::info!(client, user, address = %peer, %listener, version, reason = %code, right, held_back, "{what}: {text}");
    }
}

/// What would be right, by the reason. Where the text says it all there is none.
fn right(code: ReasonCode) -> Option<&'static str> {
    RIGHT.iter().find(|(of, _)| *of == code).map(|(_, words)| *words)
}

/// See [`right`].
const RIGHT: [(ReasonCode, &str); 20] = [
    (
        ReasonCode::MalformedPacket,
        "MQTT as its specification has it; does it speak TLS or WebSocket to a listener without it?",
    ),
    (
        ReasonCode::ProtocolError,
        "packets in the order of the specification; a newer version of the client's library may send them so",
    ),
    (ReasonCode::UnsupportedProtocolVersion, "MQTT 3.1, 3.1.1 or 5.0"),
    (
        ReasonCode::ClientIdentifierNotValid,
        "a client id of its own: not empty where its session is kept, and not that of another user's session",
    ),
    (
        ReasonCode::BadUserNameOrPassword,
        "a user and a password that `broker.auth` knows; `tidegate passwd --verify FILE USER` tries them",
    ),
    (
        ReasonCode::NotAuthorized,
        "a rule of `acl` (or `acl_file`) that allows it; for a login, a user, or `anonymous: true` of the listener",
    ),
    (ReasonCode::ServerUnavailable, "to come again; the log says what cannot be reached or has failed"),
    (
        ReasonCode::ServerBusy,
        "to come again a little later; `broker.connections_max`, `auth.failed_logins_max` and docs/limits.md say what there may be",
    ),
    (ReasonCode::BadAuthenticationMethod, "the method SCRAM-SHA-256, or a password"),
    (
        ReasonCode::KeepAliveTimeout,
        "to send something, PINGREQ for want of else, within its keep-alive; or its network is gone",
    ),
    (ReasonCode::SessionTakenOver, "a client id that no other client has; one that connects anew is well"),
    (ReasonCode::TopicFilterInvalid, "a filter of at most 200 levels, `+` for a whole level, `#` for the last"),
    (ReasonCode::TopicNameInvalid, "a topic of 1 to 65535 bytes and at most 200 levels, without `+` and `#`"),
    (
        ReasonCode::ReceiveMaximumExceeded,
        "to complete its QoS 2 messages (PUBREL) before it sends more, or a larger `broker.receive_maximum`",
    ),
    (ReasonCode::TopicAliasInvalid, "an alias that it has set on this connection, of those that CONNACK allows"),
    (
        ReasonCode::PacketTooLarge,
        "smaller packets, or a larger `max_packet_size` of `broker`, of the listener's `limits` or of the user's",
    ),
    (
        ReasonCode::MessageRateTooHigh,
        "to send more slowly, or a higher `message_rate` or `byte_rate` of the listener's `limits` or the user's",
    ),
    (ReasonCode::QuotaExceeded, "a higher limit: the text says which; docs/limits.md has them all"),
    (
        ReasonCode::ConnectionRateExceeded,
        "to connect more slowly, or a higher `connection_rate` of the listener's `limits`",
    ),
    (ReasonCode::MaximumConnectTime, "to connect again with a new token"),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_do_not_hold_back_each_other() {
        let (ended, now) = (Ended::default(), crate::clock::now());
        let (bad, large) = (ReasonCode::BadUserNameOrPassword, ReasonCode::PacketTooLarge);
        assert_eq!(ended.pass(What::Refused, bad, now), Some(0));
        for _ in 0..3 {
            assert_eq!(ended.pass(What::Refused, bad, now), None);
        }
        assert_eq!(ended.pass(What::Refused, large, now), Some(0));
        assert_eq!(ended.pass(What::Ended, large, now), Some(0));
        assert_eq!(ended.pass(What::Refused, bad, now + LOG_EVERY), Some(3));
    }
}
