//! What may not be sent, and the reason code that answers it.

use ::bytes::BytesMut;

use super::super::*;
use super::{LIMIT, server};

const V31: Version = Version::V31;
const V311: Version = Version::V311;
const V5: Version = Version::V5;

fn refused(mut decoder: Decoder, bytes: &[u8]) -> u8 {
    let error = decoder.decode(&mut BytesMut::from(bytes)).expect_err(&format!("{bytes:02X?} was taken"));
    assert!(!error.text.is_empty());
    assert_eq!(decoder.decode(&mut BytesMut::from(&b"\xC0\x00"[..])), Err(error.clone()), "an error stays");
    error.code.byte()
}

#[test]
fn connects_are_refused_with_their_reason() {
    for (bytes, code) in [
        (&b"\xC0\x00"[..], 0x82),                                                   // PINGREQ first.
        (b"\x30", 0x82),                                                            // PUBLISH first: seen at once.
        (b"\x00", 0x81),                                                            // Type 0.
        (b"\x11\x0D\x00\x04MQTT\x04\x02\x00\x3C\x00\x01c", 0x81),                   // Flags.
        (b"\x10\x0D\x00\x04MQTT\x06\x02\x00\x3C\x00\x01c", 0x84),                   // Level 6.
        (b"\x10\x0D\x00\x04MQTT\x84\x02\x00\x3C\x00\x01c", 0x84),                   // Mosquitto's bridge bit.
        (b"\x10\x0D\x00\x04MQTT\x03\x02\x00\x3C\x00\x01c", 0x84),                   // 3.1 by the wrong name.
        (b"\x10\x0F\x00\x06MQIsdp\x04\x02\x00\x3C\x00\x01c", 0x84),                 // 3.1.1 by the wrong name.
        (b"\x10\x0D\x00\x04mqtt\x04\x02\x00\x3C\x00\x01c", 0x84),                   // Case counts.
        (b"\x10\x0D\x00\x04MQTT\x04\x03\x00\x3C\x00\x01c", 0x81),                   // Reserved flag.
        (b"\x10\x0D\x00\x04MQTT\x04\x0A\x00\x3C\x00\x01c", 0x81),                   // Will QoS without a will.
        (b"\x10\x0D\x00\x04MQTT\x04\x22\x00\x3C\x00\x01c", 0x81),                   // Will retain without one.
        (b"\x10\x13\x00\x04MQTT\x04\x1E\x00\x3C\x00\x01c\x00\x01w\x00\x01x", 0x81), // Will QoS 3.
        (b"\x10\x10\x00\x04MQTT\x04\x42\x00\x3C\x00\x01c\x00\x01p", 0x81),          // Password without a user.
        (b"\x10\x0E\x00\x04MQTT\x04\x02\x00\x3C\x00\x01cX", 0x81),                  // Left over.
        (b"\x10\x0D\x00\x04MQTT\x04\x02\x00\x3C\x00\x02c", 0x81),                   // Field over the end.
        (b"\x10\x0D\x00\x04MQTT\x04\x02\x00\x3C\x00\x01\x00", 0x81),                // NUL.
        (b"\x10\x0D\x00\x04MQTT\x04\x02\x00\x3C\x00\x01\xFF", 0x81),                // Not UTF-8.
        (b"\x10\x13\x00\x04MQTT\x04\x06\x00\x3C\x00\x01c\x00\x01#\x00\x01x", 0x90), // Wildcard in the will.
        (b"\x10\x12\x00\x04MQTT\x04\x06\x00\x3C\x00\x01c\x00\x00\x00\x01x", 0x90),  // Empty will topic.
        (b"\x10\x11\x00\x04MQTT\x05\x02\x00\x3C\x03\x21\x00\x00\x00\x01c", 0x82),   // Receive maximum 0.
        (b"\x10\x13\x00\x04MQTT\x05\x02\x00\x3C\x05\x27\x00\x00\x00\x00\x00\x01c", 0x82), // Packet size 0.
        (b"\x10\x10\x00\x04MQTT\x05\x02\x00\x3C\x02\x17\x02\x00\x01c", 0x82),       // Neither 0 nor 1.
        (b"\x10\x12\x00\x04MQTT\x05\x02\x00\x3C\x04\x17\x00\x17\x00\x00\x01c", 0x82), // Twice.
        (b"\x10\x12\x00\x04MQTT\x05\x02\x00\x3C\x04\x16\x00\x01d\x00\x01c", 0x82),  // Data without method.
        (b"\x10\x11\x00\x04MQTT\x05\x02\x00\x3C\x03\x23\x00\x01\x00\x01c", 0x81),   // Not a CONNECT's.
        (b"\x10\x11\x00\x04MQTT\x05\x02\x00\x3C\x03\x7F\x00\x01\x00\x01c", 0x81),   // Unknown.
        (b"\x10\x11\x00\x04MQTT\x05\x02\x00\x3C\x03\xA2\x00\x01\x00\x01c", 0x81),   // Identifier of two bytes.
        (b"\x10\x0E\x00\x04MQTT\x05\x02\x00\x3C\x7F\x00\x01c", 0x81),               // Properties over the end.
        (b"\x10\x8E\x00\x00\x04MQTT\x05\x02\x00\x3C\x00\x00\x01c", 0x81),           // Length not minimal.
        (b"\x10\xFF\xFF\xFF\xFF", 0x81),                                            // Length of over 4 bytes.
        (b"\x10\xFF\xFF\xFF\x7F", 0x95),                                            // Larger than allowed.
    ] {
        assert_eq!(refused(Decoder::server(LIMIT), bytes), code, "{bytes:02X?}");
    }
}

#[test]
fn mqtt_3_does_not_ask_for_the_shortest_length_of_a_connect() {
    let mut bytes = BytesMut::from(&b"\x10\x8D\x00\x00\x04MQTT\x04\x02\x00\x3C\x00\x01c"[..]);
    assert!(matches!(Decoder::server(LIMIT).decode(&mut bytes), Ok(Some(Packet::Connect(_)))));
}

#[test]
fn packets_of_a_session_are_refused_with_their_reason() {
    for (version, bytes, code) in [
        (V311, &b"\x10\x0D\x00\x04MQTT\x04\x02\x00\x3C\x00\x01c"[..], 0x82), // A second CONNECT.
        (V311, b"\x20\x02\x00\x00", 0x82),                                   // A server's packet.
        (V311, b"\xF0\x00", 0x81),                                           // AUTH before MQTT 5.
        (V311, b"\x36\x05\x00\x01a\x00\x01", 0x81),                          // QoS 3.
        (V311, b"\x38\x03\x00\x01a", 0x81),                                  // DUP at QoS 0.
        (V311, b"\x32\x05\x00\x01a\x00\x00", 0x82),                          // Packet id 0.
        (V311, b"\x32\x04\x00\x01a\x00", 0x81),                              // Half a packet id.
        (V311, b"\x30\x03\x00\x01+", 0x90),                                  // Wildcard.
        (V311, b"\x30\x05\x00\x03a/#", 0x90),                                // Wildcard.
        (V311, b"\x30\x02\x00\x00", 0x90),                                   // No topic.
        (V311, b"\x30\x03\x00\x01\x00", 0x81),                               // NUL.
        (V311, b"\x30\x05\x00\x03\xED\xA0\x80", 0x81),                       // A surrogate.
        (V311, b"\x30\x04\x00\x02\xC0\x80", 0x81),                           // NUL in too many bytes.
        (V5, b"\x30\x03\x00\x00\x00", 0x82),                                 // Neither topic nor alias.
        (V5, b"\x30\x07\x00\x01a\x03\x23\x00\x00", 0x94),                    // Alias 0.
        (V5, b"\x30\x06\x00\x01a\x02\x0B\x01", 0x82),                        // A client's subscription id.
        (V5, b"\x30\x06\x00\x01a\x02\x01\x02", 0x82),                        // Payload format 2.
        (V5, b"\x30\x08\x00\x01a\x04\x08\x00\x01+", 0x82),                   // Wildcard in the response topic.
        (V5, b"\x30\x06\x00\x01a\x02\x24\x01", 0x81),                        // Not a PUBLISH's.
        (V5, b"\x30\x06\x00\x01a\x01\x01\x01", 0x81),                        // Cut by the list's end.
        (V5, b"\x30\x05\x00\x01a\x80\x00", 0x81),                            // Length not minimal.
        (V5, b"\x30\x84\x00\x00\x01a\x00", 0x81),                            // Remaining length not minimal.
        (V311, b"\x40\x02\x00\x00", 0x82),                                   // Packet id 0.
        (V311, b"\x40\x01\x00", 0x81),                                       // Short.
        (V311, b"\x40\x03\x00\x01\x00", 0x81),                               // Long.
        (V311, b"\x41\x02\x00\x01", 0x81),                                   // Flags.
        (V311, b"\x60\x02\x00\x01", 0x81),                                   // PUBREL without its flags.
        (V5, b"\x40\x03\x00\x01\x11", 0x82),                                 // A code of another packet.
        (V5, b"\x40\x03\x00\x01\x7F", 0x81),                                 // No code at all.
        (V5, b"\x40\x04\x00\x01\x00\x05", 0x81),                             // Properties over the end.
        (V311, b"\x80\x06\x00\x01\x00\x01a\x00", 0x81),                      // SUBSCRIBE without its flags.
        (V311, b"\x82\x02\x00\x01", 0x82),                                   // No filter.
        (V5, b"\x82\x03\x00\x01\x00", 0x82),                                 // No filter.
        (V311, b"\x82\x06\x00\x00\x00\x01a\x00", 0x82),                      // Packet id 0.
        (V311, b"\x82\x05\x00\x01\x00\x01a", 0x81),                          // No options.
        (V311, b"\x82\x06\x00\x01\x00\x01a\x03", 0x81),                      // QoS 3.
        (V5, b"\x82\x07\x00\x01\x00\x00\x01a\x03", 0x82),                    // QoS 3.
        (V311, b"\x82\x06\x00\x01\x00\x01a\x04", 0x81),                      // Reserved bits.
        (V5, b"\x82\x07\x00\x01\x00\x00\x01a\x40", 0x81),                    // Reserved bits.
        (V5, b"\x82\x07\x00\x01\x00\x00\x01a\x30", 0x82),                    // Retain handling 3.
        (V5, b"\x82\x09\x00\x01\x02\x0B\x00\x00\x01a\x00", 0x82),            // Subscription id 0.
        (V5, b"\x82\x0B\x00\x01\x04\x0B\x01\x0B\x01\x00\x01a\x00", 0x82),    // Two subscription ids.
        (V5, b"\x82\x10\x00\x01\x00\x00\x0A$share/g/a\x04", 0x82),           // Shared and No Local.
        (V311, b"\xA2\x02\x00\x01", 0x82),                                   // No filter.
        (V311, b"\xA0\x05\x00\x01\x00\x01a", 0x81),                          // Flags.
        (V311, b"\xC0\x01\x00", 0x81),                                       // PINGREQ with a body.
        (V311, b"\xE0\x01\x00", 0x81),                                       // 3.x has no code.
        (V5, b"\xE0\x01\x11", 0x82),                                         // A code of another packet.
        (V5, b"\xE0\x06\x00\x04\x1C\x00\x01s", 0x82),                        // Only a server's.
        (V5, b"\xF0\x02\x18\x00", 0x82),                                     // No method.
        (V5, b"\xF0\x01\x04", 0x82),                                         // A code of another packet.
    ] {
        assert_eq!(refused(server(version), bytes), code, "{bytes:02X?} in {version}");
    }
}

#[test]
fn a_client_refuses_what_a_server_may_not_send() {
    for (version, bytes, code) in [
        (V311, &b"\xC0\x00"[..], 0x82),                      // A client's packet.
        (V311, b"\x20\x02\x02\x00", 0x81),                   // Reserved flags.
        (V311, b"\x20\x02\x00\x06", 0x81),                   // Reserved return code.
        (V311, b"\x20\x02\x01\x05", 0x82),                   // Session present in a refusal.
        (V5, b"\x20\x03\x00\x01\x00", 0x82),                 // A SUBACK's code.
        (V311, b"\x90\x02\x00\x01", 0x82),                   // No code.
        (V311, b"\x90\x03\x00\x01\x03", 0x81),               // QoS 3.
        (V311, b"\xE0\x00", 0x82),                           // A client's in 3.x.
        (V5, b"\xE0\x07\x00\x05\x11\x00\x00\x00\x01", 0x82), // A client's property.
        (V5, b"\xB0\x03\x00\x01\x00", 0x82),                 // No code.
    ] {
        assert_eq!(refused(Decoder::client(version, LIMIT), bytes), code, "{bytes:02X?} in {version}");
    }
}

#[test]
fn what_is_too_large_is_refused_before_it_is_there() {
    let mut decoder = Decoder::client(V311, 100);
    let error = decoder.decode(&mut BytesMut::from(&b"\x30\x63"[..])).unwrap_err();
    assert_eq!(error.to_string(), "packet too large (0x95) in PUBLISH: the packet has 101 bytes, and 100 are allowed");
    let mut decoder = Decoder::client(V311, 100);
    assert_eq!(decoder.decode(&mut BytesMut::from(&b"\x30\x62"[..])), Ok(None));
    assert_eq!(decoder.missing(), 98);
}

#[test]
fn mqtt_3_1_repeats_with_dup() {
    for bytes in [&b"\x8A\x06\x00\x01\x00\x01a\x01"[..], b"\xAA\x05\x00\x01\x00\x01a", b"\x6A\x02\x00\x01"] {
        assert!(matches!(server(V31).decode(&mut BytesMut::from(bytes)), Ok(Some(_))), "{bytes:02X?}");
        assert_eq!(refused(server(V311), bytes), 0x81);
    }
}

#[test]
fn the_version_is_known_even_if_the_connect_is_wrong_behind_it() {
    let mut decoder = Decoder::server(LIMIT);
    let bytes = b"\x10\x0E\x00\x04MQTT\x05\x03\x00\x3C\x00\x00\x01c";
    assert!(decoder.decode(&mut BytesMut::from(&bytes[..])).is_err());
    assert_eq!(decoder.version(), Some(V5));
}

#[test]
fn what_cannot_be_written_leaves_nothing_behind() {
    let mut out = BytesMut::from(&b"before"[..]);
    let mut ack = Ack::success(PacketId::new(1).unwrap());
    ack.properties.reason = Some("x".repeat(65_536).into());
    assert_eq!(encode(&Packet::Puback(ack.clone()), V5, &mut out), Err(EncodeError::FieldTooLong));
    assert_eq!(encode(&Packet::Puback(ack), V311, &mut BytesMut::new()), Ok(()), "3.1.1 does not write it");
    let auth = Packet::Auth(Auth { code: ReasonCode::Success, properties: AuthProperties::default() });
    let missing = EncodeError::NotInVersion { packet: PacketKind::Auth, version: V311 };
    assert_eq!(encode(&auth, V311, &mut out), Err(missing));
    let properties = crate::message::Properties::default();
    let parts = PublishParts {
        topic: "a",
        payload: b"",
        qos: crate::message::Qos::AtLeastOnce,
        dup: false,
        retain: false,
        id: None,
        expiry_s: None,
        topic_alias: None,
        subscription_ids: &[],
        properties: &properties,
    };
    assert_eq!(encode_publish(&parts, V5, &mut out), Err(EncodeError::NoPacketId));
    let shared = SharedPublish::new(&parts, ::bytes::Bytes::new(), V5).unwrap();
    assert_eq!(shared.append(None, false, &mut out), Err(EncodeError::NoPacketId));
    assert_eq!(&out[..], b"before");
}
