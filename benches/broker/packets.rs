//! The little of MQTT 3.1.1 that the generator and the relay speak. It is not the product's: a mistake in that must not
//! cancel itself out here, and the relay is to cost as little as possible.

pub(super) const CONNECT: u8 = 1;
pub(super) const CONNACK: u8 = 2;
pub(super) const PUBLISH: u8 = 3;
pub(super) const PUBACK: u8 = 4;
pub(super) const PUBREC: u8 = 5;
pub(super) const PUBREL: u8 = 6;
pub(super) const PUBCOMP: u8 = 7;
pub(super) const SUBSCRIBE: u8 = 8;
pub(super) const SUBACK: u8 = 9;

/// A whole packet.
#[derive(Clone, Copy)]
pub(super) struct Packet<'a> {
    pub(super) kind: u8,
    pub(super) flags: u8,
    /// From the first byte on.
    pub(super) whole: &'a [u8],
    /// Behind the fixed header.
    pub(super) body: &'a [u8],
}

impl<'a> Packet<'a> {
    /// The packet that `bytes` begins with; `None`: it is not there as a whole.
    pub(super) fn first(bytes: &'a [u8]) -> Option<Self> {
        let (&first, rest) = bytes.split_first()?;
        let (mut remaining, mut shift) = (0, 0);
        for (at, &byte) in rest.iter().take(4).enumerate() {
            remaining |= usize::from(byte & 0x7F) << shift;
            shift += 7;
            if byte & 0x80 == 0 {
                let begin = at + 2;
                let whole = bytes.get(..begin + remaining)?;
                return Some(Self { kind: first >> 4, flags: first & 0x0F, whole, body: &whole[begin..] });
            }
        }
        None
    }

    pub(super) const fn qos(&self) -> u8 {
        self.flags >> 1 & 3
    }

    /// Of an acknowledgement.
    pub(super) fn id(&self) -> [u8; 2] {
        [self.body[0], self.body[1]]
    }

    /// Topic, packet id (QoS 0: none) and payload of a PUBLISH.
    pub(super) fn publish(&self) -> (&'a [u8], [u8; 2], &'a [u8]) {
        let end = 2 + usize::from(u16::from_be_bytes([self.body[0], self.body[1]]));
        let topic = &self.body[2..end];
        if self.qos() == 0 {
            return (topic, [0; 2], &self.body[end..]);
        }
        (topic, [self.body[end], self.body[end + 1]], &self.body[end + 2..])
    }

    /// The only filter of a SUBSCRIBE, and its QoS.
    pub(super) fn subscribe(&self) -> (&'a [u8], u8) {
        let end = 4 + usize::from(u16::from_be_bytes([self.body[2], self.body[3]]));
        (&self.body[4..end], self.body[end])
    }
}

/// An acknowledgement.
pub(super) const fn ack(kind: u8, id: [u8; 2]) -> [u8; 4] {
    let flags = if kind == PUBREL { 2 } else { 0 };
    [kind << 4 | flags, 2, id[0], id[1]]
}

/// A clean session without keep-alive.
pub(super) fn connect(client: &str) -> Vec<u8> {
    let mut body = b"\0\x04MQTT\x04\x02\0\0".to_vec();
    put_text(&mut body, client);
    with_header(CONNECT << 4, &body)
}

pub(super) fn subscribe(filter: &str, qos: u8) -> Vec<u8> {
    let mut body = vec![0, 1];
    put_text(&mut body, filter);
    body.push(qos);
    with_header(SUBSCRIBE << 4 | 2, &body)
}

/// A PUBLISH with packet id 0, to be written over, and where its packet id and its payload begin.
pub(super) fn publish(topic: &str, qos: u8, payload: &[u8]) -> (Vec<u8>, usize, usize) {
    let mut body = Vec::new();
    put_text(&mut body, topic);
    let id_at = body.len();
    if qos > 0 {
        body.extend([0; 2]);
    }
    let payload_at = body.len();
    body.extend(payload);
    let whole = with_header(PUBLISH << 4 | qos << 1, &body);
    let header = whole.len() - body.len();
    (whole, header + id_at, header + payload_at)
}

fn put_text(out: &mut Vec<u8>, text: &str) {
    out.extend(u16::try_from(text.len()).unwrap().to_be_bytes());
    out.extend(text.as_bytes());
}

fn with_header(first: u8, body: &[u8]) -> Vec<u8> {
    let mut out = vec![first];
    let mut left = body.len();
    loop {
        let byte = u8::try_from(left & 0x7F).unwrap();
        left >>= 7;
        out.push(if left == 0 { byte } else { byte | 0x80 });
        if left == 0 {
            break;
        }
    }
    out.extend(body);
    out
}
