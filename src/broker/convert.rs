//! PUBLISH and will to what the hub takes, and subscription options to what the store keeps.

use std::sync::Arc;

use bytes::Bytes;

use crate::clock::Moment;
use crate::hub::{Publication, Source};
use crate::message::{Message, MessageId, Origin, Properties, Qos};
use crate::router::Endpoint;
use crate::topic::{TopicError, TopicName};
use crate::wire::{Publish, RetainHandling, SubscribeOptions, Will};

/// Where clients' messages come from.
pub(super) fn source() -> Source {
    Source { from: Endpoint::Broker, channel: None, takes_copies: false }
}

/// Below this a payload is always copied: that costs less than the allocation.
const SMALL: usize = 4 << 10;

/// User properties that a message may have room for beside its own.
const SPARE_PAIRS_MAX: usize = 16;

/// A payload may keep so many times itself in memory. What waits for slow subscribers is bounded by its payloads' bytes.
const KEPT_MAX: usize = 4;

/// A client's PUBLISH. The payload is copied out of a read that is much larger than itself, so that a message that is kept long does not
/// keep the read. `held`: the bytes of the buffer that it is part of.
pub(super) fn publication(
    publish: Publish,
    topic: TopicName,
    client: &Arc<str>,
    user: Option<&Arc<str>>,
    packet_id: Option<u16>,
    held: usize,
) -> Publication {
    let properties = compact(publish.properties.application);
    let is_copied = publish.payload.len() < SMALL.max(held / KEPT_MAX);
    Publication {
        topic,
        payload: if is_copied { Bytes::copy_from_slice(&publish.payload) } else { publish.payload },
        qos: publish.qos,
        retain: publish.retain,
        expiry_s: publish.properties.expiry_s,
        time_ms: None,
        properties,
        client_id: Some(Arc::clone(client)),
        user: user.cloned(),
        packet_id,
        id: None,
    }
}

/// Properties that keep neither the read that they came with nor room for more.
fn compact(mut properties: Properties) -> Properties {
    properties.correlation_data = properties.correlation_data.map(|data| Bytes::copy_from_slice(&data));
    if properties.user.capacity() - properties.user.len() > SPARE_PAIRS_MAX {
        properties.user.shrink_to_fit();
    }
    properties
}

/// A will as it is kept: a message without an id of its own, which it gets when it is published. It keeps nothing of its CONNECT.
pub(super) fn will_message(
    will: Will,
    client: &Arc<str>,
    user: Option<&Arc<str>>,
    now: Moment,
) -> Result<Message, TopicError> {
    Ok(Message {
        id: MessageId { site: "will".into(), run: 0, counter: 0 },
        topic: TopicName::new(will.topic.as_str())?,
        payload: Bytes::copy_from_slice(&will.payload),
        qos: will.qos,
        retain: will.retain,
        time: now.wall,
        time_unsync: !now.synced,
        expiry_s: will.properties.expiry_s,
        accepted: now,
        origin: Origin { client_id: Some(Arc::clone(client)), user: user.cloned(), ..Origin::default() },
        properties: compact(will.properties.application),
    })
}

/// The publication of a will: its event time and its expiry count from now.
pub(super) fn will_publication(will: &Message) -> Publication {
    Publication {
        topic: will.topic.clone(),
        payload: will.payload.clone(),
        qos: will.qos,
        retain: will.retain,
        expiry_s: will.expiry_s,
        time_ms: None,
        properties: will.properties.clone(),
        client_id: will.origin.client_id.clone(),
        user: will.origin.user.clone(),
        packet_id: None,
        id: None,
    }
}

/// The options byte of MQTT 5.0 section 3.8.3.1.
pub(super) fn options_byte(options: SubscribeOptions) -> u8 {
    options.qos.bits()
        | u8::from(options.no_local) << 2
        | u8::from(options.retain_as_published) << 3
        | (options.retain_handling as u8) << 4
}

/// The other way.
pub(super) fn options_from(byte: u8) -> SubscribeOptions {
    SubscribeOptions {
        qos: Qos::from_bits(byte & 3).unwrap_or_default(),
        no_local: byte & 4 != 0,
        retain_as_published: byte & 8 != 0,
        retain_handling: match byte >> 4 & 3 {
            1 => RetainHandling::SendIfNew,
            2 => RetainHandling::DoNotSend,
            _ => RetainHandling::Send,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::{PublishProperties, WillProperties};

    #[test]
    fn a_message_keeps_no_read_that_is_more_than_four_times_its_payload() {
        let of = |len, held| {
            let read = Bytes::from(vec![7; held]);
            let mut properties = PublishProperties::default();
            properties.application.correlation_data = Some(read.slice(..10));
            let (payload, topic) = (read.slice(held - len..), TopicName::new("a").unwrap());
            let publish = Publish {
                dup: false,
                qos: Qos::AtMostOnce,
                retain: false,
                topic: "a".into(),
                id: None,
                properties,
                payload,
            };
            let made = publication(publish, topic, &"c".into(), None, None, held);
            assert_eq!((made.payload.len(), &made.properties.correlation_data.unwrap()[..]), (len, &[7; 10][..]));
            drop(made.payload);
            read.is_unique()
        };
        let shared = |len, held| {
            let read = Bytes::from(vec![7; held]);
            let publish = Publish {
                dup: false,
                qos: Qos::AtMostOnce,
                retain: false,
                topic: "a".into(),
                id: None,
                properties: PublishProperties::default(),
                payload: read.slice(..len),
            };
            let made = publication(publish, TopicName::new("a").unwrap(), &"c".into(), None, None, held);
            let is_shared = made.payload.as_ptr() == read.as_ptr();
            drop(made);
            is_shared
        };
        assert!(of(100, 2 << 10), "what has correlation data keeps no read either");
        for (len, held, is_shared) in [
            (100, 2 << 10, false),
            (4 << 10, 4 << 10, true),
            (5 << 10, 64 << 10, false),
            (16 << 10, 64 << 10, true),
            (20 << 10, 2 << 20, false),
            (1 << 20, 2 << 20, true),
        ] {
            assert_eq!(shared(len, held), is_shared, "{len} of {held}");
        }
    }

    #[test]
    fn r36_a_will_keeps_nothing_of_its_connect_and_no_room_for_more_properties() {
        let read = Bytes::from(vec![7; 100_000]);
        let mut properties = WillProperties::default();
        properties.application.correlation_data = Some(read.slice(..10));
        properties.application.user = Vec::with_capacity(1_000);
        properties.application.user.push(("a".into(), "b".into()));
        let (topic, payload) = ("w".into(), read.slice(..60_000));
        let will = Will { topic, payload, qos: Qos::AtMostOnce, retain: false, properties };
        let made = will_message(will, &"c".into(), None, Moment::default()).unwrap();
        assert_eq!((made.payload.len(), made.properties.user.len()), (60_000, 1));
        assert!(read.is_unique() && made.properties.user.capacity() < 100);
    }
}
