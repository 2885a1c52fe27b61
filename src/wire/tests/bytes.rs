//! Exact bytes, read and written, worked out by hand from MQTT 3.1.1 and 5.0 (chapter 3 of each; for 3.1 its own).

use std::num::{NonZeroU16, NonZeroU32};

use ::bytes::{Bytes, BytesMut};

use super::super::*;
use super::{connect, encoded, id, receiver};
use crate::message::{Properties, Qos};

fn check(version: Version, packet: &Packet, bytes: &[u8]) {
    assert_eq!(&encoded(packet, version)[..], bytes, "written: {packet:?} in {version}");
    let mut input = BytesMut::from(bytes);
    let found = receiver(packet.kind(), version).decode(&mut input);
    assert_eq!(found.as_ref(), Ok(&Some(packet.clone())), "read: {bytes:02X?} in {version}");
    assert!(input.is_empty());
}

fn publish(topic: &str, payload: &'static [u8]) -> Publish {
    Publish {
        topic: topic.into(),
        payload: Bytes::from_static(payload),
        qos: Qos::AtMostOnce,
        dup: false,
        retain: false,
        id: None,
        properties: PublishProperties::default(),
    }
}

#[test]
fn connect_has_the_bytes_of_each_version() {
    for (version, bytes) in [
        (Version::V31, &b"\x10\x0F\x00\x06MQIsdp\x03\x02\x00\x3C\x00\x01c"[..]),
        (Version::V311, b"\x10\x0D\x00\x04MQTT\x04\x02\x00\x3C\x00\x01c"),
        (Version::V5, b"\x10\x0E\x00\x04MQTT\x05\x02\x00\x3C\x00\x00\x01c"),
    ] {
        check(version, &Packet::Connect(Box::new(connect(version))), bytes);
    }
}

#[test]
fn connect_carries_will_login_and_properties() {
    let mut packet = connect(Version::V311);
    packet.user = Some("u".into());
    packet.password = Some(Password(Bytes::from_static(b"p")));
    packet.will = Some(Will {
        topic: "w".into(),
        payload: Bytes::from_static(b"x"),
        qos: Qos::AtLeastOnce,
        retain: true,
        properties: WillProperties::default(),
    });
    let bytes = b"\x10\x19\x00\x04MQTT\x04\xEE\x00\x3C\x00\x01c\x00\x01w\x00\x01x\x00\x01u\x00\x01p";
    check(Version::V311, &Packet::Connect(Box::new(packet.clone())), bytes);

    packet.version = Version::V5;
    packet.properties.session_expiry_s = Some(16);
    packet.properties.receive_maximum = NonZeroU16::new(20);
    packet.properties.maximum_packet_size = NonZeroU32::new(100);
    packet.properties.topic_alias_maximum = Some(5);
    packet.properties.request_problem_information = Some(false);
    packet.properties.user = vec![("a".into(), "b".into())];
    packet.will.as_mut().unwrap().properties.delay_s = Some(10);
    packet.will.as_mut().unwrap().properties.application.payload_is_utf8 = true;
    let bytes = b"\x10\x3B\x00\x04MQTT\x05\xEE\x00\x3C\
        \x19\x11\x00\x00\x00\x10\x21\x00\x14\x27\x00\x00\x00\x64\x22\x00\x05\x17\x00\x26\x00\x01a\x00\x01b\
        \x00\x01c\x07\x18\x00\x00\x00\x0A\x01\x01\x00\x01w\x00\x01x\x00\x01u\x00\x01p";
    check(Version::V5, &Packet::Connect(Box::new(packet)), bytes);
}

#[test]
fn connack_says_a_return_code_or_a_reason_code() {
    let mut packet =
        Connack { session_present: true, code: ReasonCode::Success, properties: ConnackProperties::default() };
    check(Version::V311, &Packet::Connack(Box::new(packet.clone())), b"\x20\x02\x01\x00");
    check(Version::V5, &Packet::Connack(Box::new(packet.clone())), b"\x20\x03\x01\x00\x00");
    packet.properties.assigned_client_id = Some("id".into());
    packet.properties.maximum_qos = Some(Qos::AtLeastOnce);
    packet.properties.server_keep_alive_s = Some(9);
    let bytes = b"\x20\x0D\x01\x00\x0A\x24\x01\x12\x00\x02id\x13\x00\x09";
    check(Version::V5, &Packet::Connack(Box::new(packet.clone())), bytes);
    packet =
        Connack { session_present: false, code: ReasonCode::NotAuthorized, properties: ConnackProperties::default() };
    check(Version::V31, &Packet::Connack(Box::new(packet.clone())), b"\x20\x02\x00\x05");
    check(Version::V5, &Packet::Connack(Box::new(packet)), b"\x20\x03\x00\x87\x00");
}

#[test]
fn publish_has_its_flags_id_and_properties() {
    let mut packet = publish("a/b", b"hi");
    check(Version::V311, &Packet::Publish(packet.clone()), b"\x30\x07\x00\x03a/bhi");
    check(Version::V5, &Packet::Publish(packet.clone()), b"\x30\x08\x00\x03a/b\x00hi");
    (packet.qos, packet.id, packet.dup, packet.retain) = (Qos::ExactlyOnce, Some(id(10)), true, true);
    check(Version::V31, &Packet::Publish(packet.clone()), b"\x3D\x09\x00\x03a/b\x00\x0Ahi");
    packet.properties.expiry_s = Some(60);
    packet.properties.topic_alias = NonZeroU16::new(7);
    packet.properties.application = Properties {
        payload_is_utf8: true,
        content_type: Some("t".into()),
        response_topic: Some("r".into()),
        correlation_data: Some(Bytes::from_static(b"\x00")),
        user: vec![("k".into(), "1".into()), ("k".into(), "2".into())],
    };
    let bytes = b"\x3D\x2E\x00\x03a/b\x00\x0A\
        \x24\x02\x00\x00\x00\x3C\x23\x00\x07\x01\x01\x03\x00\x01t\x08\x00\x01r\x09\x00\x01\x00\
        \x26\x00\x01k\x00\x011\x26\x00\x01k\x00\x012hi";
    check(Version::V5, &Packet::Publish(packet.clone()), bytes);
    packet.topic = "".into();
    packet.properties = PublishProperties { topic_alias: NonZeroU16::new(7), ..PublishProperties::default() };
    check(Version::V5, &Packet::Publish(packet), b"\x3D\x0A\x00\x00\x00\x0A\x03\x23\x00\x07hi");
}

#[test]
fn a_publish_to_a_client_names_its_subscriptions() {
    let mut packet = publish("a", b"");
    packet.properties.subscription_ids = vec![SubscriptionId::new(1).unwrap(), SubscriptionId::new(128).unwrap()];
    let bytes = b"\x30\x09\x00\x01a\x05\x0B\x01\x0B\x80\x01";
    assert_eq!(&encoded(&Packet::Publish(packet.clone()), Version::V5)[..], bytes);
    let found = Decoder::client(Version::V5, 100).decode(&mut BytesMut::from(&bytes[..]));
    assert_eq!(found, Ok(Some(Packet::Publish(packet))));
}

#[test]
fn acknowledgements_are_as_short_as_they_can_be() {
    type Wrap = fn(Ack) -> Packet;
    for (first, wrap, kind, error) in [
        (0x40, Packet::Puback as Wrap, AckKind::Puback, ReasonCode::QuotaExceeded),
        (0x50, Packet::Pubrec, AckKind::Pubrec, ReasonCode::NotAuthorized),
        (0x62, Packet::Pubrel, AckKind::Pubrel, ReasonCode::PacketIdentifierNotFound),
        (0x70, Packet::Pubcomp, AckKind::Pubcomp, ReasonCode::PacketIdentifierNotFound),
    ] {
        for version in [Version::V31, Version::V311, Version::V5] {
            check(version, &wrap(Ack::success(id(0x0102))), &[first, 2, 1, 2]);
        }
        check(Version::V5, &wrap(Ack::new(id(0x0102), error)), &[first, 3, 1, 2, error.byte()]);
        let mut long = Ack::new(id(0x0102), error);
        long.properties.reason = Some("no".into());
        check(Version::V5, &wrap(long), &[first, 9, 1, 2, error.byte(), 5, 0x1F, 0, 2, b'n', b'o']);
        for (version, code) in [(Version::V311, ReasonCode::Success), (Version::V5, error)] {
            let mut fast = BytesMut::new();
            encode_ack(kind, id(0x0102), code, version, &mut fast);
            assert_eq!(fast, encoded(&wrap(Ack::new(id(0x0102), code)), version));
        }
    }
}

#[test]
fn an_acknowledgement_with_a_code_and_no_property_length_reads() {
    let found = super::server(Version::V5).decode(&mut BytesMut::from(&b"\x40\x04\x00\x01\x10\x00"[..]));
    assert_eq!(found, Ok(Some(Packet::Puback(Ack::new(id(1), ReasonCode::NoMatchingSubscribers)))));
}

#[test]
fn subscribe_and_unsubscribe_and_their_answers() {
    let options = SubscribeOptions {
        qos: Qos::AtLeastOnce,
        no_local: true,
        retain_as_published: true,
        retain_handling: RetainHandling::DoNotSend,
    };
    let plain = SubscribeOptions { qos: Qos::ExactlyOnce, ..SubscribeOptions::default() };
    let mut subscribe = Subscribe {
        id: id(10),
        subscription_id: None,
        user: Vec::new(),
        subscriptions: vec![Subscription { filter: "a/#".into(), options: plain }],
    };
    check(Version::V311, &Packet::Subscribe(subscribe.clone()), b"\x82\x08\x00\x0A\x00\x03a/#\x02");
    check(Version::V5, &Packet::Subscribe(subscribe.clone()), b"\x82\x09\x00\x0A\x00\x00\x03a/#\x02");
    subscribe.subscription_id = SubscriptionId::new(300);
    subscribe.subscriptions.push(Subscription { filter: "+".into(), options });
    let bytes = b"\x82\x10\x00\x0A\x03\x0B\xAC\x02\x00\x03a/#\x02\x00\x01+\x2D";
    check(Version::V5, &Packet::Subscribe(subscribe), bytes);

    let mut suback = Suback {
        id: id(10),
        codes: vec![ReasonCode::granted(Qos::ExactlyOnce), ReasonCode::UnspecifiedError],
        properties: ReasonProperties::default(),
    };
    check(Version::V311, &Packet::Suback(suback.clone()), b"\x90\x04\x00\x0A\x02\x80");
    suback.codes[1] = ReasonCode::TopicFilterInvalid;
    assert_eq!(&encoded(&Packet::Suback(suback.clone()), Version::V311)[..], b"\x90\x04\x00\x0A\x02\x80");
    check(Version::V5, &Packet::Suback(suback), b"\x90\x05\x00\x0A\x00\x02\x8F");

    let unsubscribe = Packet::Unsubscribe(Unsubscribe { id: id(11), user: Vec::new(), filters: vec!["a".into()] });
    check(Version::V31, &unsubscribe, b"\xA2\x05\x00\x0B\x00\x01a");
    check(Version::V5, &unsubscribe, b"\xA2\x06\x00\x0B\x00\x00\x01a");
    let mut unsuback = Unsuback { id: id(11), codes: Vec::new(), properties: ReasonProperties::default() };
    check(Version::V311, &Packet::Unsuback(unsuback.clone()), b"\xB0\x02\x00\x0B");
    unsuback.codes = vec![ReasonCode::NoSubscriptionExisted];
    check(Version::V5, &Packet::Unsuback(unsuback), b"\xB0\x04\x00\x0B\x00\x11");
}

#[test]
fn the_short_packets() {
    for version in [Version::V31, Version::V311, Version::V5] {
        check(version, &Packet::Pingreq, b"\xC0\x00");
        check(version, &Packet::Pingresp, b"\xD0\x00");
        let normal = Disconnect { code: ReasonCode::Success, properties: DisconnectProperties::default() };
        check(version, &Packet::Disconnect(normal), b"\xE0\x00");
    }
    let mut disconnect =
        Disconnect { code: ReasonCode::DisconnectWithWill, properties: DisconnectProperties::default() };
    check(Version::V5, &Packet::Disconnect(disconnect.clone()), b"\xE0\x01\x04");
    disconnect.properties.session_expiry_s = Some(1);
    check(Version::V5, &Packet::Disconnect(disconnect), b"\xE0\x07\x04\x05\x11\x00\x00\x00\x01");
    let mut auth = Auth { code: ReasonCode::Success, properties: AuthProperties::default() };
    check(Version::V5, &Packet::Auth(auth.clone()), b"\xF0\x00");
    auth.code = ReasonCode::ContinueAuthentication;
    auth.properties.method = Some("m".into());
    auth.properties.data = Some(Bytes::from_static(b"d"));
    check(Version::V5, &Packet::Auth(auth), b"\xF0\x0A\x18\x08\x15\x00\x01m\x16\x00\x01d");
}

#[test]
fn lengths_change_their_size_where_the_specification_says() {
    for (payload, bytes) in [
        (124, &[0x7F][..]),
        (125, &[0x80, 0x01]),
        (16_380, &[0xFF, 0x7F]),
        (16_381, &[0x80, 0x80, 0x01]),
        (2_097_148, &[0xFF, 0xFF, 0x7F]),
        (2_097_149, &[0x80, 0x80, 0x80, 0x01]),
    ] {
        let mut packet = publish("a", b"");
        packet.payload = Bytes::from(vec![7; payload]);
        let mut input = encoded(&Packet::Publish(packet.clone()), Version::V311);
        assert_eq!(&input[1..=bytes.len()], bytes);
        assert_eq!(Decoder::client(Version::V311, 1 << 22).decode(&mut input), Ok(Some(Packet::Publish(packet))));
    }
}

#[test]
fn a_text_may_begin_with_a_byte_order_mark_and_keeps_it() {
    check(Version::V311, &Packet::Publish(publish("\u{FEFF}a", b"")), b"\x30\x06\x00\x04\xEF\xBB\xBFa");
}

#[test]
fn a_payload_shares_the_bytes_of_the_read() {
    let mut input = BytesMut::from(&b"\x30\x07\x00\x03a/bhi\xC0\x00"[..]);
    let expected = input.as_ptr().wrapping_add(7);
    let found = super::server(Version::V311).decode(&mut input);
    let Ok(Some(Packet::Publish(found))) = found else { panic!("{found:?}") };
    assert_eq!((found.payload.as_ptr(), &input[..]), (expected, &b"\xC0\x00"[..]));
}

#[test]
fn a_password_is_never_shown() {
    let mut packet = connect(Version::V5);
    packet.password = Some(Password(Bytes::from_static(b"hunter2")));
    let shown = format!("{packet:?}");
    assert!(!shown.contains("hunter2") && !shown.contains("104, 117"), "{shown}");
}
