//! What a message keeps from any kind of remote to any other: a table, one row a property, held against the mappings for each pair of
//! kinds, and against the table in docs/routes.md.

use bytes::Bytes;

use super::{Outgoing, kafka, mqtt, rabbitmq};
use crate::buffer::Place;
use crate::clock::WallMs;
use crate::hub::Publication;
use crate::message::tests_support::message;
use crate::message::{Envelope, Message, Properties, Qos, headers};

/// What a message comes through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Mqtt5,
    Mqtt311,
    Rabbitmq,
    Kafka,
}

const KINDS: [Kind; 4] = [Kind::Mqtt5, Kind::Mqtt311, Kind::Rabbitmq, Kind::Kafka];

impl Kind {
    const fn name(self) -> &'static str {
        match self {
            Self::Mqtt5 => "MQTT 5",
            Self::Mqtt311 => "MQTT 3.1.1",
            Self::Rabbitmq => "RabbitMQ",
            Self::Kafka => "Kafka",
        }
    }

    /// Sent to such a remote by one gateway, and received from there by the next.
    fn over(self, message: Message) -> Message {
        let destination = if self == Self::Kafka { "lake".into() } else { message.topic.as_str().into() };
        let expiry_left_s = message.expiry_s;
        let envelope = Envelope { destination, key: None, ordinal: 0, failure: None, batch: None, message };
        let (place, seq) = (Place::default(), "cafe0001-0-0".to_owned());
        let record = Outgoing { place, seq, backfill: false, envelope, expiry_left_s, expired_before: 0 };
        accepted(match self {
            Self::Mqtt5 => mqtt::hop(&record, mqtt::Version::V5),
            Self::Mqtt311 => mqtt::hop(&record, mqtt::Version::V4),
            Self::Rabbitmq => rabbitmq::hop(&record),
            Self::Kafka => kafka::hop(&record),
        })
    }
}

/// As the hub of the next gateway takes it: with an id and a time of its own, unless the message brings them.
fn accepted(publication: Publication) -> Message {
    let mut message = Message {
        topic: publication.topic,
        payload: publication.payload,
        qos: publication.qos,
        retain: publication.retain,
        time: publication.time_ms.map_or(WallMs(2_000), WallMs),
        expiry_s: publication.expiry_s,
        properties: publication.properties,
        ..message("there", b"")
    };
    message.id.run = 8;
    message.origin.site = "there".into();
    headers::adopt(&mut message);
    message.properties.user.retain(|(name, _)| !name.starts_with(headers::PREFIX));
    message
}

/// A property: what puts it into a message, what shows it, and which kinds keep it, as in [`KINDS`].
struct Row {
    name: &'static str,
    put: fn(&mut Message),
    show: fn(&Message) -> String,
    kept: [bool; 4],
}

const ALL: [bool; 4] = [true; 4];
/// MQTT 3.1.1 has no properties.
const WITH_PROPERTIES: [bool; 4] = [true, false, true, true];
/// A table of AMQP has no order, MQTT 3.1.1 nothing to order.
const IN_ORDER: [bool; 4] = [true, false, false, true];

fn user(message: &mut Message, pairs: &[(&str, &str)]) {
    message.properties.user = pairs.iter().map(|&(name, value)| (name.into(), value.into())).collect();
}

fn shown(message: &Message) -> String {
    format!("{:?}", message.properties.user)
}

const ROWS: &[Row] = &[
    Row { name: "topic", put: |m| m.payload = Bytes::new(), show: |m| m.topic.to_string(), kept: ALL },
    Row { name: "payload, empty too", put: |_| {}, show: |m| format!("{:?}", m.payload), kept: ALL },
    Row {
        name: "payload, any bytes",
        put: |m| m.payload = Bytes::from_static(b"\x00\xFF"),
        show: |m| format!("{:?}", m.payload),
        kept: ALL,
    },
    Row { name: "QoS 1", put: |m| m.qos = Qos::AtLeastOnce, show: |m| format!("{:?}", m.qos), kept: ALL },
    Row {
        name: "QoS 2 (MQTT: with `qos: 2`)",
        put: |m| m.qos = Qos::ExactlyOnce,
        show: |m| format!("{:?}", m.qos),
        kept: ALL,
    },
    Row { name: "retain", put: |m| m.retain = true, show: |m| m.retain.to_string(), kept: ALL },
    Row {
        name: "message expiry",
        put: |m| m.expiry_s = Some(600),
        show: |m| format!("{:?}", m.expiry_s),
        kept: WITH_PROPERTIES,
    },
    Row {
        name: "payload format (UTF-8)",
        put: |m| m.properties.payload_is_utf8 = true,
        show: |m| m.properties.payload_is_utf8.to_string(),
        kept: WITH_PROPERTIES,
    },
    Row {
        name: "content type",
        put: |m| m.properties.content_type = Some("application/json".into()),
        show: |m| format!("{:?}", m.properties.content_type),
        kept: WITH_PROPERTIES,
    },
    Row {
        name: "response topic",
        put: |m| m.properties.response_topic = Some("re/p.ly".into()),
        show: |m| format!("{:?}", m.properties.response_topic),
        kept: WITH_PROPERTIES,
    },
    Row {
        name: "correlation data, text",
        put: |m| m.properties.correlation_data = Some(Bytes::from_static(b"call-7")),
        show: |m| format!("{:?}", m.properties.correlation_data),
        kept: WITH_PROPERTIES,
    },
    Row {
        name: "correlation data, any bytes",
        put: |m| m.properties.correlation_data = Some(Bytes::from_static(b"\xFF\x00")),
        show: |m| format!("{:?}", m.properties.correlation_data),
        kept: WITH_PROPERTIES,
    },
    Row {
        name: "user property or header",
        put: |m| user(m, &[("colour", "blue")]),
        show: shown,
        kept: WITH_PROPERTIES,
    },
    Row { name: "one that is empty", put: |m| user(m, &[("colour", "")]), show: shown, kept: WITH_PROPERTIES },
    Row {
        name: "several of one name, in order",
        put: |m| user(m, &[("k", "v"), ("k", "a"), ("k", "w")]),
        show: shown,
        kept: WITH_PROPERTIES,
    },
    Row {
        name: "the order of different names",
        put: |m| user(m, &[("z", "1"), ("a", "2"), ("m", "3")]),
        show: shown,
        kept: IN_ORDER,
    },
    Row {
        name: "names that RabbitMQ acts upon (`CC`)",
        put: |m| user(m, &[("CC", "everybody")]),
        show: shown,
        kept: WITH_PROPERTIES,
    },
    Row {
        name: "`traceparent`, `tracestate`",
        put: |m| {
            user(
                m,
                &[("traceparent", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"), ("tracestate", "a=1")],
            );
        },
        show: shown,
        kept: WITH_PROPERTIES,
    },
    Row {
        name: "event time, in ms",
        put: |m| m.time = WallMs(1_700_000_000_123),
        show: |m| m.time.to_string(),
        kept: WITH_PROPERTIES,
    },
    Row { name: "message id", put: |m| m.id.counter = 77, show: |m| m.id.to_string(), kept: WITH_PROPERTIES },
    Row {
        name: "site of origin",
        put: |m| m.origin.site = "plant-7".into(),
        show: |m| m.origin.site.to_string(),
        kept: WITH_PROPERTIES,
    },
    Row {
        name: "publisher's client id",
        put: |m| m.origin.client_id = Some("press-7".into()),
        show: |m| format!("{:?}", m.origin.client_id),
        kept: WITH_PROPERTIES,
    },
    Row {
        name: "publisher's user name",
        put: |m| m.origin.user = Some("anna".into()),
        show: |m| format!("{:?}", m.origin.user),
        kept: WITH_PROPERTIES,
    },
    Row {
        name: "sites passed",
        put: |m| m.origin.path = vec!["a".into(), "b".into()],
        show: |m| m.origin.path.iter().take(2).map(|site| format!("{site},")).collect(),
        kept: WITH_PROPERTIES,
    },
];

#[test]
fn what_both_kinds_keep_crosses_every_pair_of_them_and_nothing_else_does() {
    for row in ROWS {
        let mut sent = message("plant/line/7", b"");
        (row.put)(&mut sent);
        for (from, kept_from) in KINDS.into_iter().zip(row.kept) {
            let once = from.over(sent.clone());
            assert_eq!((row.show)(&once) == (row.show)(&sent), kept_from, "{} over {}", row.name, from.name());
            for (to, kept_to) in KINDS.into_iter().zip(row.kept) {
                let arrived = to.over(once.clone());
                let (arrived, sent) = ((row.show)(&arrived), (row.show)(&sent));
                let keeps = kept_from && kept_to;
                assert_eq!(arrived == sent, keeps, "{} from {} to {}: {arrived}", row.name, from.name(), to.name());
            }
        }
    }
}

#[test]
fn the_reference_has_the_table() {
    let mut table =
        format!("| |{}\n| --- |{}\n", KINDS.map(|kind| format!(" {} |", kind.name())).concat(), " --- |".repeat(4));
    for Row { name, kept, .. } in ROWS {
        let cells = kept.map(|kept| if kept { " yes |" } else { " |" }).concat();
        table.push_str(&format!("| {name} |{cells}\n"));
    }
    let reference = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/routes.md")).unwrap();
    assert!(reference.contains(&table), "docs/routes.md should have:\n{table}");
}

/// Of the message's own properties none is a place where another one hides.
#[test]
fn all_of_them_together_cross_what_has_properties() {
    let mut sent = message("plant/line/7", b"{}");
    for row in ROWS.iter().filter(|row| !row.name.starts_with("payload") && row.name != "topic") {
        let user = std::mem::take(&mut sent.properties.user);
        (row.put)(&mut sent);
        sent.properties.user.extend(user);
    }
    sent.properties.user.sort();
    sent.properties.user.dedup();
    for pair in [[Kind::Mqtt5, Kind::Rabbitmq], [Kind::Rabbitmq, Kind::Kafka], [Kind::Kafka, Kind::Mqtt5]] {
        let mut arrived = pair.into_iter().fold(sent.clone(), |message, kind| kind.over(message));
        arrived.properties.user.sort();
        let Properties { user, .. } = &arrived.properties;
        assert_eq!(user, &sent.properties.user, "{pair:?}");
        assert_eq!(arrived.properties, sent.properties, "{pair:?}");
        assert_eq!((arrived.qos, arrived.retain, arrived.expiry_s), (sent.qos, sent.retain, sent.expiry_s), "{pair:?}");
        assert_eq!((arrived.id, arrived.time), (sent.id.clone(), sent.time), "{pair:?}");
    }
}
