//! Damaged packets: never a panic, never more read than there is, and never a packet that could not be written.

use ::bytes::BytesMut;
use proptest::prelude::*;

use super::super::*;
use super::{LIMIT, arbitrary, encoded, receiver, server};

const VERSIONS: [Version; 3] = [Version::V31, Version::V311, Version::V5];

/// What was taken can be written, reads back the same, and takes no more bytes than it came in; the shorter forms
/// that the encoder chooses may save some.
fn check(mut decoder: Decoder, bytes: &[u8]) {
    let mut fresh = decoder.clone();
    let mut input = BytesMut::from(bytes);
    let Ok(Some(packet)) = decoder.decode(&mut input) else { return };
    let taken = bytes.len() - input.len();
    let version = decoder.version().unwrap();
    let mut again = encoded(&packet, version);
    assert!(again.len() <= taken, "{bytes:02X?} grew: {packet:?}");
    assert_eq!(fresh.decode(&mut again), Ok(Some(packet)), "{bytes:02X?}");
}

/// One packet of each kind with all that it can carry, found by taking the longest of many.
fn full_packets(version: Version) -> Vec<Packet> {
    use proptest::strategy::ValueTree;
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let mut longest = std::collections::BTreeMap::new();
    for _ in 0..400 {
        let packet = arbitrary::packet(version).new_tree(&mut runner).unwrap().current();
        let len = encoded_len(&packet, version).unwrap();
        let best = longest.entry(packet.kind()).or_insert_with(|| (len, packet.clone()));
        if len > best.0 {
            *best = (len, packet);
        }
    }
    assert_eq!(longest.len(), if version.is_v5() { 15 } else { 14 }, "every kind of packet");
    longest.into_values().map(|(_, packet)| packet).collect()
}

#[test]
fn every_truncation_waits_or_is_refused() {
    for version in VERSIONS {
        for packet in full_packets(version) {
            let bytes = encoded(&packet, version);
            for len in 0..bytes.len() {
                let found = receiver(packet.kind(), version).decode(&mut BytesMut::from(&bytes[..len]));
                assert_eq!(found, Ok(None), "{packet:?} cut to {len}");
            }
        }
    }
}

#[test]
fn every_body_cut_behind_its_length_is_refused_or_whole() {
    for version in VERSIONS {
        for packet in full_packets(version) {
            let mut bytes = encoded(&packet, version);
            let header = bytes.iter().skip(1).position(|byte| byte & 0x80 == 0).unwrap() + 2;
            let body = bytes.split_off(header);
            for len in 0..body.len().min(127) {
                let mut cut = vec![bytes[0], u8::try_from(len).unwrap()];
                cut.extend_from_slice(&body[..len]);
                check(receiver(packet.kind(), version), &cut);
            }
        }
    }
}

#[test]
fn every_flipped_bit_and_every_replaced_byte_is_survived() {
    for version in VERSIONS {
        for packet in full_packets(version) {
            let bytes = encoded(&packet, version);
            for at in 0..bytes.len() {
                for bit in 0..8 {
                    let mut damaged = bytes.to_vec();
                    damaged[at] ^= 1 << bit;
                    check(receiver(packet.kind(), version), &damaged);
                }
                for value in [0x00, 0x01, 0x7F, 0x80, 0xFF] {
                    let mut damaged = bytes.to_vec();
                    damaged[at] = value;
                    check(receiver(packet.kind(), version), &damaged);
                }
            }
        }
    }
}

#[test]
fn every_first_byte_is_survived() {
    for version in VERSIONS {
        for first in 0..=u8::MAX {
            for body in [&[][..], &[0], &[0, 1], &[0, 1, 0], &[0, 1, b'a', 0, 1], &[0xFF; 9]] {
                let mut bytes = vec![first, u8::try_from(body.len()).unwrap()];
                bytes.extend_from_slice(body);
                check(server(version), &bytes);
                check(Decoder::client(version, LIMIT), &bytes);
                check(Decoder::server(LIMIT), &bytes);
            }
        }
    }
}

#[test]
fn an_incomplete_packet_reserves_nothing() {
    let mut input = BytesMut::from(&b"\x30\xFF\xFF\x1F"[..]);
    let before = input.capacity();
    assert_eq!(Decoder::client(Version::V311, LIMIT).decode(&mut input), Ok(None));
    assert_eq!(input.capacity(), before);
}

proptest! {
    #[test]
    fn noise_is_survived(bytes in prop::collection::vec(any::<u8>(), 0..200), five in any::<bool>()) {
        let version = if five { Version::V5 } else { Version::V311 };
        check(server(version), &bytes);
        check(Decoder::client(version, LIMIT), &bytes);
        check(Decoder::server(LIMIT), &bytes);
    }

    #[test]
    fn noise_behind_a_good_header_is_survived(first in any::<u8>(), body in prop::collection::vec(any::<u8>(), 0..100)) {
        let mut bytes = vec![first, u8::try_from(body.len()).unwrap()];
        bytes.extend_from_slice(&body);
        check(server(Version::V5), &bytes);
        check(Decoder::client(Version::V5, LIMIT), &bytes);
    }
}
