//! Any packet that a version can carry.

use std::num::{NonZeroU16, NonZeroU32};

use ::bytes::Bytes;
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;

use super::super::*;
use crate::message::{Properties, Qos};

/// One of each kind that the version has.
pub(super) fn packet(version: Version) -> BoxedStrategy<Packet> {
    let acks = prop_oneof![
        ack(PacketKind::Puback, version).prop_map(Packet::Puback),
        ack(PacketKind::Pubrec, version).prop_map(Packet::Pubrec),
        ack(PacketKind::Pubrel, version).prop_map(Packet::Pubrel),
        ack(PacketKind::Pubcomp, version).prop_map(Packet::Pubcomp),
    ];
    let fifth = if version.is_v5() { auth().boxed() } else { Just(Packet::Pingreq).boxed() };
    prop_oneof![
        3 => connect(version).prop_map(|packet| Packet::Connect(Box::new(packet))),
        2 => connack(version).prop_map(|packet| Packet::Connack(Box::new(packet))),
        3 => publish(version).prop_map(Packet::Publish),
        4 => acks,
        2 => subscribe(version).prop_map(Packet::Subscribe),
        1 => suback(version).prop_map(Packet::Suback),
        1 => unsubscribe(version).prop_map(Packet::Unsubscribe),
        1 => unsuback(version).prop_map(Packet::Unsuback),
        1 => prop_oneof![Just(Packet::Pingreq), Just(Packet::Pingresp)],
        1 => disconnect(version).prop_map(Packet::Disconnect),
        1 => fifth,
    ]
    .boxed()
}

/// `value` in MQTT 5, nothing before.
fn five<T: Default + std::fmt::Debug + Clone + 'static>(
    version: Version,
    value: impl Strategy<Value = T> + 'static,
) -> BoxedStrategy<T> {
    if version.is_v5() { value.boxed() } else { Just(T::default()).boxed() }
}

fn text() -> impl Strategy<Value = Box<str>> + Clone {
    "[^\0]{0,12}".prop_map(Into::into)
}

fn topic() -> impl Strategy<Value = Box<str>> + Clone {
    "[^\0+#]{1,12}".prop_map(Into::into)
}

fn binary() -> impl Strategy<Value = Bytes> {
    vec(any::<u8>(), 0..20).prop_map(Bytes::from)
}

fn user() -> impl Strategy<Value = UserProperties> {
    vec((text(), text()), 0..3)
}

fn qos() -> impl Strategy<Value = Qos> {
    (0..3_u8).prop_map(|bits| Qos::from_bits(bits).unwrap())
}

fn packet_id() -> impl Strategy<Value = PacketId> {
    any::<NonZeroU16>().prop_map(PacketId)
}

fn code(kind: PacketKind) -> impl Strategy<Value = ReasonCode> {
    let codes = ReasonCode::ALL.iter().copied().filter(|code| code.belongs_in(kind)).collect::<Vec<_>>();
    proptest::sample::select(codes)
}

fn application() -> impl Strategy<Value = Properties> {
    (any::<bool>(), option::of(text()), option::of(topic()), option::of(binary()), user()).prop_map(
        |(payload_is_utf8, content_type, response_topic, correlation_data, user)| Properties {
            payload_is_utf8,
            content_type,
            response_topic,
            correlation_data,
            user,
        },
    )
}

fn reason_properties() -> impl Strategy<Value = ReasonProperties> {
    (option::of(text()), user()).prop_map(|(reason, user)| ReasonProperties { reason, user })
}

fn connect(version: Version) -> impl Strategy<Value = Connect> {
    let properties = (
        (option::of(any::<u32>()), any::<Option<NonZeroU16>>(), any::<Option<NonZeroU32>>(), any::<Option<u16>>()),
        (any::<Option<bool>>(), any::<Option<bool>>(), user(), option::of((text(), option::of(binary())))),
    )
        .prop_map(|((session_expiry_s, receive_maximum, maximum_packet_size, topic_alias_maximum), rest)| {
            let (request_response_information, request_problem_information, user, auth) = rest;
            let (auth_method, auth_data) = auth.map_or((None, None), |(method, data)| (Some(method), data));
            ConnectProperties {
                session_expiry_s,
                receive_maximum,
                maximum_packet_size,
                topic_alias_maximum,
                request_response_information,
                request_problem_information,
                user,
                auth_method,
                auth_data,
            }
        });
    let login = (option::of(text()), option::of(binary()));
    (any::<bool>(), any::<u16>(), text(), option::of(will(version)), login, five(version, properties)).prop_map(
        move |(clean_start, keep_alive_s, client_id, will, (user, password), properties)| {
            let password = password.filter(|_| user.is_some() || version.is_v5()).map(Password);
            Connect { version, clean_start, keep_alive_s, client_id, will, user, password, properties }
        },
    )
}

fn will(version: Version) -> impl Strategy<Value = Will> {
    let properties = (any::<Option<u32>>(), any::<Option<u32>>(), application())
        .prop_map(|(delay_s, expiry_s, application)| WillProperties { delay_s, expiry_s, application });
    (topic(), binary(), qos(), any::<bool>(), five(version, properties)).prop_map(
        |(topic, payload, qos, retain, properties)| Will {
            topic: Text::from(&*topic),
            payload,
            qos,
            retain,
            properties,
        },
    )
}

fn connack(version: Version) -> impl Strategy<Value = Connack> {
    let first = (
        any::<Option<u32>>(),
        any::<Option<NonZeroU16>>(),
        option::of(prop_oneof![Just(Qos::AtMostOnce), Just(Qos::AtLeastOnce)]),
        any::<Option<bool>>(),
        any::<Option<NonZeroU32>>(),
        option::of(text()),
        any::<Option<u16>>(),
        option::of(text()),
        user(),
    );
    let second = (
        any::<Option<bool>>(),
        any::<Option<bool>>(),
        any::<Option<bool>>(),
        any::<Option<u16>>(),
        option::of(text()),
        option::of(text()),
        option::of(text()),
        option::of(binary()),
    );
    let properties = (first, second).prop_map(|(first, second)| ConnackProperties {
        session_expiry_s: first.0,
        receive_maximum: first.1,
        maximum_qos: first.2,
        retain_available: first.3,
        maximum_packet_size: first.4,
        assigned_client_id: first.5,
        topic_alias_maximum: first.6,
        reason: first.7,
        user: first.8,
        wildcard_subscriptions: second.0,
        subscription_ids: second.1,
        shared_subscriptions: second.2,
        server_keep_alive_s: second.3,
        response_information: second.4,
        server_reference: second.5,
        auth_method: second.6,
        auth_data: second.7,
    });
    let code = if version.is_v5() {
        code(PacketKind::Connack).boxed()
    } else {
        (0..=5_u8).prop_map(|byte| ReasonCode::from_connack_return_code(byte).unwrap()).boxed()
    };
    (any::<bool>(), code, five(version, properties)).prop_map(move |(present, code, properties)| Connack {
        session_present: present && !code.is_error() && version != Version::V31,
        code,
        properties,
    })
}

pub(super) fn publish(version: Version) -> impl Strategy<Value = Publish> {
    let properties =
        (any::<Option<u32>>(), any::<Option<NonZeroU16>>(), application()).prop_map(|(expiry, alias, application)| {
            PublishProperties { expiry_s: expiry, topic_alias: alias, subscription_ids: Vec::new(), application }
        });
    let flags = (qos(), any::<bool>(), any::<bool>(), packet_id(), any::<bool>());
    (topic(), binary(), flags, five(version, properties)).prop_map(
        |(topic, payload, (qos, dup, retain, id, empty), properties)| {
            let above = qos != Qos::AtMostOnce;
            let topic = if empty && properties.topic_alias.is_some() { "" } else { &*topic };
            let id = above.then_some(id);
            Publish { topic: topic.into(), payload, qos, dup: dup && above, retain, id, properties }
        },
    )
}

fn ack(kind: PacketKind, version: Version) -> impl Strategy<Value = Ack> {
    let code = if version.is_v5() { code(kind).boxed() } else { Just(ReasonCode::Success).boxed() };
    (packet_id(), code, five(version, reason_properties())).prop_map(|(id, code, properties)| Ack {
        id,
        code,
        properties,
    })
}

fn subscribe(version: Version) -> impl Strategy<Value = Subscribe> {
    let flags = (any::<bool>(), any::<bool>(), 0..3_u8);
    let subscription = (text(), qos(), flags).prop_map(move |(filter, qos, (no_local, published, handling))| {
        let mut options = SubscribeOptions { qos, ..SubscribeOptions::default() };
        if version.is_v5() {
            options.no_local = no_local && !filter.starts_with("$share/");
            options.retain_as_published = published;
            options.retain_handling = match handling {
                0 => RetainHandling::Send,
                1 => RetainHandling::SendIfNew,
                _ => RetainHandling::DoNotSend,
            };
        }
        Subscription { filter: Text::from(&*filter), options }
    });
    let subscription_id = option::of((1..=SubscriptionId::MAX).prop_map(|id| SubscriptionId::new(id).unwrap()));
    (packet_id(), five(version, subscription_id), five(version, user()), vec(subscription, 1..4))
        .prop_map(|(id, subscription_id, user, subscriptions)| Subscribe { id, subscription_id, user, subscriptions })
}

fn suback(version: Version) -> impl Strategy<Value = Suback> {
    let code = code(PacketKind::Suback)
        .prop_map(move |code| if version.is_v5() || !code.is_error() { code } else { ReasonCode::UnspecifiedError });
    (packet_id(), vec(code, 1..4), five(version, reason_properties())).prop_map(|(id, codes, properties)| Suback {
        id,
        codes,
        properties,
    })
}

fn unsubscribe(version: Version) -> impl Strategy<Value = Unsubscribe> {
    (packet_id(), five(version, user()), vec(text().prop_map(|text| Text::from(&*text)), 1..4))
        .prop_map(|(id, user, filters)| Unsubscribe { id, user, filters })
}

fn unsuback(version: Version) -> impl Strategy<Value = Unsuback> {
    (packet_id(), five(version, vec(code(PacketKind::Unsuback), 1..4)), five(version, reason_properties()))
        .prop_map(|(id, codes, properties)| Unsuback { id, codes, properties })
}

fn disconnect(version: Version) -> impl Strategy<Value = Disconnect> {
    let properties = (any::<Option<u32>>(), option::of(text()), user()).prop_map(|(session_expiry_s, reason, user)| {
        DisconnectProperties { session_expiry_s, reason, user, server_reference: None }
    });
    let code = if version.is_v5() { code(PacketKind::Disconnect).boxed() } else { Just(ReasonCode::Success).boxed() };
    (code, five(version, properties)).prop_map(|(code, properties)| Disconnect { code, properties })
}

fn auth() -> impl Strategy<Value = Packet> {
    (code(PacketKind::Auth), text(), option::of(binary()), option::of(text()), user()).prop_map(
        |(code, method, data, reason, user)| {
            Packet::Auth(Auth { code, properties: AuthProperties { method: Some(method), data, reason, user } })
        },
    )
}
