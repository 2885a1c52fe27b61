//! The reason codes of MQTT 5.0 (section 2.4), and how they read in MQTT 3.x.

use std::fmt;

use super::packet::PacketKind;
use crate::message::Qos;

macro_rules! reason_codes {
    ($($(#[$doc:meta])* $name:ident = $byte:literal, $text:literal;)+) => {
        /// Why something was granted, refused or ended.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[repr(u8)]
        pub enum ReasonCode {
            $($(#[$doc])* $name = $byte,)+
        }

        impl ReasonCode {
            /// Every code, in the order of their numbers.
            pub const ALL: &[Self] = &[$(Self::$name),+];

            /// From the byte on the wire; `None` for a number that MQTT 5.0 does not know.
            #[must_use]
            pub const fn from_byte(byte: u8) -> Option<Self> {
                match byte {
                    $($byte => Some(Self::$name),)+
                    _ => None,
                }
            }

            /// What it says, in the words of the specification.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$name => $text,)+
                }
            }
        }
    };
}

reason_codes! {
    /// 0x00: Success. Normal disconnection and granted QoS 0 have the same number.
    Success = 0x00, "success";
    /// 0x01: Granted QoS 1.
    GrantedQos1 = 0x01, "granted QoS 1";
    /// 0x02: Granted QoS 2.
    GrantedQos2 = 0x02, "granted QoS 2";
    /// 0x04: Disconnect with will message.
    DisconnectWithWill = 0x04, "disconnect with will message";
    /// 0x10: No matching subscribers.
    NoMatchingSubscribers = 0x10, "no matching subscribers";
    /// 0x11: No subscription existed.
    NoSubscriptionExisted = 0x11, "no subscription existed";
    /// 0x18: Continue authentication.
    ContinueAuthentication = 0x18, "continue authentication";
    /// 0x19: Re-authenticate.
    ReAuthenticate = 0x19, "re-authenticate";
    /// 0x80: Unspecified error.
    UnspecifiedError = 0x80, "unspecified error";
    /// 0x81: Malformed packet.
    MalformedPacket = 0x81, "malformed packet";
    /// 0x82: Protocol error.
    ProtocolError = 0x82, "protocol error";
    /// 0x83: Implementation specific error.
    ImplementationSpecificError = 0x83, "implementation specific error";
    /// 0x84: Unsupported protocol version.
    UnsupportedProtocolVersion = 0x84, "unsupported protocol version";
    /// 0x85: Client identifier not valid.
    ClientIdentifierNotValid = 0x85, "client identifier not valid";
    /// 0x86: Bad user name or password.
    BadUserNameOrPassword = 0x86, "bad user name or password";
    /// 0x87: Not authorized.
    NotAuthorized = 0x87, "not authorized";
    /// 0x88: Server unavailable.
    ServerUnavailable = 0x88, "server unavailable";
    /// 0x89: Server busy.
    ServerBusy = 0x89, "server busy";
    /// 0x8A: Banned.
    Banned = 0x8A, "banned";
    /// 0x8B: Server shutting down.
    ServerShuttingDown = 0x8B, "server shutting down";
    /// 0x8C: Bad authentication method.
    BadAuthenticationMethod = 0x8C, "bad authentication method";
    /// 0x8D: Keep alive timeout.
    KeepAliveTimeout = 0x8D, "keep alive timeout";
    /// 0x8E: Session taken over.
    SessionTakenOver = 0x8E, "session taken over";
    /// 0x8F: Topic filter invalid.
    TopicFilterInvalid = 0x8F, "topic filter invalid";
    /// 0x90: Topic name invalid.
    TopicNameInvalid = 0x90, "topic name invalid";
    /// 0x91: Packet identifier in use.
    PacketIdentifierInUse = 0x91, "packet identifier in use";
    /// 0x92: Packet identifier not found.
    PacketIdentifierNotFound = 0x92, "packet identifier not found";
    /// 0x93: Receive maximum exceeded.
    ReceiveMaximumExceeded = 0x93, "receive maximum exceeded";
    /// 0x94: Topic alias invalid.
    TopicAliasInvalid = 0x94, "topic alias invalid";
    /// 0x95: Packet too large.
    PacketTooLarge = 0x95, "packet too large";
    /// 0x96: Message rate too high.
    MessageRateTooHigh = 0x96, "message rate too high";
    /// 0x97: Quota exceeded.
    QuotaExceeded = 0x97, "quota exceeded";
    /// 0x98: Administrative action.
    AdministrativeAction = 0x98, "administrative action";
    /// 0x99: Payload format invalid.
    PayloadFormatInvalid = 0x99, "payload format invalid";
    /// 0x9A: Retain not supported.
    RetainNotSupported = 0x9A, "retain not supported";
    /// 0x9B: QoS not supported.
    QosNotSupported = 0x9B, "QoS not supported";
    /// 0x9C: Use another server.
    UseAnotherServer = 0x9C, "use another server";
    /// 0x9D: Server moved.
    ServerMoved = 0x9D, "server moved";
    /// 0x9E: Shared subscriptions not supported.
    SharedSubscriptionsNotSupported = 0x9E, "shared subscriptions not supported";
    /// 0x9F: Connection rate exceeded.
    ConnectionRateExceeded = 0x9F, "connection rate exceeded";
    /// 0xA0: Maximum connect time.
    MaximumConnectTime = 0xA0, "maximum connect time";
    /// 0xA1: Subscription identifiers not supported.
    SubscriptionIdentifiersNotSupported = 0xA1, "subscription identifiers not supported";
    /// 0xA2: Wildcard subscriptions not supported.
    WildcardSubscriptionsNotSupported = 0xA2, "wildcard subscriptions not supported";
}

impl ReasonCode {
    /// The byte on the wire.
    #[must_use]
    pub const fn byte(self) -> u8 {
        self as u8
    }

    /// 0x80 and above: a failure.
    #[must_use]
    pub const fn is_error(self) -> bool {
        self.byte() >= 0x80
    }

    /// What a SUBACK says for a granted QoS.
    #[must_use]
    pub const fn granted(qos: Qos) -> Self {
        match qos {
            Qos::AtMostOnce => Self::Success,
            Qos::AtLeastOnce => Self::GrantedQos1,
            Qos::ExactlyOnce => Self::GrantedQos2,
        }
    }

    /// Whether MQTT 5.0 (section 2.4) lets a packet of this kind carry it.
    #[must_use]
    pub const fn belongs_in(self, kind: PacketKind) -> bool {
        let byte = self.byte();
        match kind {
            PacketKind::Connack => matches!(byte, 0x00 | 0x80..=0x8A | 0x8C | 0x90 | 0x95 | 0x97 | 0x99..=0x9D | 0x9F),
            PacketKind::Puback | PacketKind::Pubrec => {
                matches!(byte, 0x00 | 0x10 | 0x80 | 0x83 | 0x87 | 0x90 | 0x91 | 0x97 | 0x99)
            }
            PacketKind::Pubrel | PacketKind::Pubcomp => matches!(byte, 0x00 | 0x92),
            PacketKind::Suback => {
                matches!(byte, 0x00..=0x02 | 0x80 | 0x83 | 0x87 | 0x8F | 0x91 | 0x97 | 0x9E | 0xA1 | 0xA2)
            }
            PacketKind::Unsuback => matches!(byte, 0x00 | 0x11 | 0x80 | 0x83 | 0x87 | 0x8F | 0x91),
            PacketKind::Disconnect => {
                matches!(byte, 0x00 | 0x04 | 0x80..=0x83 | 0x87 | 0x89 | 0x8B..=0x90 | 0x93..=0xA2)
            }
            PacketKind::Auth => matches!(byte, 0x00 | 0x18 | 0x19),
            PacketKind::Connect
            | PacketKind::Publish
            | PacketKind::Subscribe
            | PacketKind::Unsubscribe
            | PacketKind::Pingreq
            | PacketKind::Pingresp => false,
        }
    }

    /// The return code that says it in a CONNACK of MQTT 3.x (3.1.1, table 3.1): 0 to 5.
    #[must_use]
    pub const fn connack_return_code(self) -> u8 {
        match self.byte() {
            0x00..=0x7F => 0,
            0x84 => 1,
            0x85 => 2,
            0x86 => 4,
            0x87 | 0x8A | 0x8C => 5,
            _ => 3,
        }
    }

    /// Whether a return code of MQTT 3.x says it, and not only one that is near.
    #[must_use]
    pub const fn has_return_code(self) -> bool {
        matches!(self.byte(), 0x00 | 0x84..=0x8A | 0x8C)
    }

    /// The meaning of a CONNACK return code of MQTT 3.x; `None` for a reserved one.
    #[must_use]
    pub const fn from_connack_return_code(byte: u8) -> Option<Self> {
        match byte {
            0 => Some(Self::Success),
            1 => Some(Self::UnsupportedProtocolVersion),
            2 => Some(Self::ClientIdentifierNotValid),
            3 => Some(Self::ServerUnavailable),
            4 => Some(Self::BadUserNameOrPassword),
            5 => Some(Self::NotAuthorized),
            _ => None,
        }
    }
}

impl fmt::Display for ReasonCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (0x{:02X})", self.name(), self.byte())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_code_reads_back_from_its_byte() {
        assert_eq!(ReasonCode::ALL.len(), 43);
        for &code in ReasonCode::ALL {
            assert_eq!(ReasonCode::from_byte(code.byte()), Some(code));
        }
        let known = (0..=u8::MAX).filter(|&byte| ReasonCode::from_byte(byte).is_some()).count();
        assert_eq!(known, ReasonCode::ALL.len());
    }

    #[test]
    fn a_code_shows_its_name_and_number() {
        assert_eq!(ReasonCode::QuotaExceeded.to_string(), "quota exceeded (0x97)");
    }

    #[test]
    fn each_return_code_of_3_x_reads_back() {
        for byte in 0..=5 {
            let code = ReasonCode::from_connack_return_code(byte).unwrap();
            assert_eq!(code.connack_return_code(), byte);
            assert!(code.has_return_code());
        }
        assert_eq!(ReasonCode::from_connack_return_code(6), None);
        assert_eq!(ReasonCode::Banned.connack_return_code(), 5);
        assert_eq!(ReasonCode::PacketTooLarge.connack_return_code(), 3);
        assert!(!ReasonCode::PacketTooLarge.has_return_code() && !ReasonCode::MalformedPacket.has_return_code());
    }
}
