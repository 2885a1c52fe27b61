//! The codec against the specifications' bytes, against itself, and against damage.

mod arbitrary;
mod bytes;
mod damage;
mod malformed;
mod round_trip;

use ::bytes::BytesMut;

use super::*;

const LIMIT: usize = 1 << 20;

/// A decoder that is past the CONNECT.
fn server(version: Version) -> Decoder {
    let mut decoder = Decoder::server(LIMIT);
    let mut input = BytesMut::new();
    encode(&Packet::Connect(Box::new(connect(version))), version, &mut input).unwrap();
    assert!(matches!(decoder.decode(&mut input), Ok(Some(Packet::Connect(_)))));
    decoder
}

/// The end of the connection that takes `kind`.
fn receiver(kind: PacketKind, version: Version) -> Decoder {
    use PacketKind::{Connack, Connect, Pingresp, Suback, Unsuback};
    if kind == Connect {
        Decoder::server(LIMIT)
    } else if [Connack, Suback, Unsuback, Pingresp].contains(&kind) {
        Decoder::client(version, LIMIT)
    } else {
        server(version)
    }
}

fn connect(version: Version) -> Connect {
    Connect {
        version,
        clean_start: true,
        keep_alive_s: 60,
        client_id: "c".into(),
        will: None,
        user: None,
        password: None,
        properties: ConnectProperties::default(),
    }
}

fn id(id: u16) -> PacketId {
    PacketId::new(id).unwrap()
}

fn encoded(packet: &Packet, version: Version) -> BytesMut {
    let mut out = BytesMut::new();
    encode(packet, version, &mut out).unwrap();
    assert_eq!(encoded_len(packet, version).unwrap(), out.len());
    out
}
