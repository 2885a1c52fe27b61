//! What is written reads back, whole, in pieces, and by each of the ways to write a PUBLISH.

use ::bytes::BytesMut;
use proptest::prelude::*;

use super::super::*;
use super::{arbitrary, encoded, receiver};
use crate::message::Qos;

fn versions() -> impl Strategy<Value = Version> {
    prop_oneof![Just(Version::V31), Just(Version::V311), Just(Version::V5), Just(Version::V5)]
}

proptest! {
    #[test]
    fn a_packet_reads_back_as_it_was_written(
        (version, packet) in versions().prop_flat_map(|version| (Just(version), arbitrary::packet(version))),
    ) {
        let mut input = encoded(&packet, version);
        let mut decoder = receiver(packet.kind(), version);
        prop_assert_eq!(decoder.decode(&mut input), Ok(Some(packet)));
        prop_assert!(input.is_empty());
    }

    #[test]
    fn a_packet_that_comes_byte_by_byte_is_the_same(
        (version, packet) in versions().prop_flat_map(|version| (Just(version), arbitrary::packet(version))),
    ) {
        let bytes = encoded(&packet, version);
        let mut decoder = receiver(packet.kind(), version);
        let mut input = BytesMut::new();
        let (last, all_but_last) = bytes.split_last().unwrap();
        for (at, byte) in all_but_last.iter().enumerate() {
            input.extend_from_slice(&[*byte]);
            prop_assert_eq!(decoder.decode(&mut input), Ok(None));
            prop_assert!((1..=bytes.len() - at - 1).contains(&decoder.missing()));
        }
        input.extend_from_slice(&[*last]);
        prop_assert_eq!(decoder.decode(&mut input), Ok(Some(packet)));
    }

    #[test]
    fn packets_in_one_read_come_one_by_one(packets in prop::collection::vec(arbitrary::publish(Version::V5), 0..6)) {
        let mut input = BytesMut::new();
        for packet in &packets {
            encode(&Packet::Publish(packet.clone()), Version::V5, &mut input).unwrap();
        }
        let mut decoder = super::server(Version::V5);
        for packet in packets {
            prop_assert_eq!(decoder.decode(&mut input), Ok(Some(Packet::Publish(packet))));
        }
        prop_assert_eq!(decoder.decode(&mut input), Ok(None));
    }

    #[test]
    fn a_shared_publish_is_the_same_as_one_of_its_own(
        (version, publish) in versions().prop_flat_map(|version| (Just(version), arbitrary::publish(version))),
    ) {
        let parts = PublishParts::of(&publish);
        let alone = encoded(&Packet::Publish(publish.clone()), version);
        let shared = SharedPublish::new(&parts, publish.payload.clone(), version).unwrap();
        let mut out = BytesMut::from(&b"in front"[..]);
        shared.append(publish.id, publish.dup, &mut out).unwrap();
        prop_assert_eq!(&out[8..], &alone[..]);
        prop_assert_eq!(shared.encoded_len(), alone.len());
        prop_assert_eq!(parts.encoded_len(version), Ok(alone.len()));
        prop_assert_eq!(shared.needs_id(), publish.qos != Qos::AtMostOnce);
    }
}
